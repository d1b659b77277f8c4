PRAGMA user_version=1;
BEGIN TRANSACTION;
CREATE TABLE domains (
    id INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    revision INTEGER NOT NULL DEFAULT 0,
    n_examples INTEGER NOT NULL DEFAULT 0,
    n_bytes INTEGER NOT NULL DEFAULT 0
);
INSERT INTO "domains" VALUES(1,'flowers',1796046020811,3,118);
CREATE TABLE examples (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    domain INTEGER NOT NULL REFERENCES domains,
    sha256 TEXT NOT NULL,
    label TEXT,
    source TEXT NOT NULL CHECK (source IN ('upload', 'traffic')),
    added_by TEXT NOT NULL,
    added_at TEXT NOT NULL,
    margin REAL,
    scored_by TEXT,
    n_bytes INTEGER NOT NULL DEFAULT 0,
    UNIQUE (domain, sha256)
);
INSERT INTO "examples" VALUES(1,1,'6b86b273ff34fce19d6b804eff5a3f5747ada4eaa22f1d49c01e52ddb7875b4b','rose','upload','anna','2026-11-30T13:40:20.810000Z',NULL,NULL,42);
INSERT INTO "examples" VALUES(2,1,'d4735e3a265e16eee03f59718b9b5d03019c07d8b6c51f90da3a666eec13ab35','tulip','upload','anna','2026-11-30T13:40:20.810234Z',NULL,NULL,38);
INSERT INTO "examples" VALUES(3,1,'4e07408562bedb8b60ce05c1decfe3ad16b72230967de01f640b7e4729b49fce',NULL,'upload','anna','2026-11-30T13:40:20.810276Z',NULL,NULL,38);
CREATE TABLE feature_keys (
    id INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    n_bytes INTEGER NOT NULL
);
INSERT INTO "feature_keys" VALUES(1,'sha256:ab/cd',32);
CREATE TABLE features (
    id INTEGER PRIMARY KEY,
    example INTEGER NOT NULL REFERENCES examples ON DELETE CASCADE,
    key INTEGER NOT NULL REFERENCES feature_keys,
    feature BLOB NOT NULL,
    UNIQUE (example, key)
);
INSERT INTO "features" VALUES(1,1,1,X'61B82B3E5F21CC3E9331243E5AE221BF58EFE03E84CD5D3ED56785BEDA60903E');
INSERT INTO "features" VALUES(2,2,1,X'1774623D6C8A1CBEBC63F7BD56C736BFD8BB063F7450AB3E7CE6C2BDCBB8673E');
INSERT INTO "features" VALUES(3,3,1,X'BA5E043F64C125BFC4EFD83D364C13BE14DDEABD3BBB5FBD290303BFD2AE70BD');
CREATE TABLE pictures (
    example INTEGER PRIMARY KEY REFERENCES examples ON DELETE CASCADE,
    thumbnail BLOB NOT NULL,
    picture BLOB
);
INSERT INTO "pictures" VALUES(1,X'574542502031',X'4A504547');
INSERT INTO "pictures" VALUES(2,X'574542502032',NULL);
INSERT INTO "pictures" VALUES(3,X'574542502033',NULL);
CREATE INDEX examples_by_domain ON examples (domain);
CREATE INDEX examples_by_label ON examples (domain, label);
CREATE TRIGGER example_added AFTER INSERT ON examples BEGIN
    UPDATE domains SET revision = max(revision + 1, CAST((julianday('now') - 2440587.5) * 86400000 AS INTEGER)), n_examples = n_examples + 1, n_bytes = n_bytes + NEW.n_bytes
    WHERE id = NEW.domain;
END;
CREATE TRIGGER example_removed AFTER DELETE ON examples BEGIN
    UPDATE domains SET revision = max(revision + 1, CAST((julianday('now') - 2440587.5) * 86400000 AS INTEGER)), n_examples = n_examples - 1, n_bytes = n_bytes - OLD.n_bytes
    WHERE id = OLD.domain;
END;
CREATE TRIGGER example_relabelled AFTER UPDATE OF label ON examples WHEN OLD.label IS NOT NEW.label BEGIN
    UPDATE domains SET revision = max(revision + 1, CAST((julianday('now') - 2440587.5) * 86400000 AS INTEGER)) WHERE id = NEW.domain;
END;
CREATE TRIGGER example_resized AFTER UPDATE OF n_bytes ON examples BEGIN
    UPDATE domains SET n_bytes = n_bytes + NEW.n_bytes - OLD.n_bytes WHERE id = NEW.domain;
END;
CREATE TRIGGER pictures_added AFTER INSERT ON pictures BEGIN
    UPDATE examples SET n_bytes = n_bytes + length(NEW.thumbnail) + coalesce(length(NEW.picture), 0)
    WHERE id = NEW.example;
END;
CREATE TRIGGER picture_kept AFTER UPDATE OF picture ON pictures BEGIN
    UPDATE examples SET n_bytes = n_bytes + coalesce(length(NEW.picture), 0) - coalesce(length(OLD.picture), 0)
    WHERE id = NEW.example;
END;
CREATE TRIGGER feature_added AFTER INSERT ON features BEGIN
    UPDATE examples SET n_bytes = n_bytes + length(NEW.feature) WHERE id = NEW.example;
END;
DELETE FROM "sqlite_sequence";
INSERT INTO "sqlite_sequence" VALUES('examples',3);
COMMIT;
