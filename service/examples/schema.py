"""Tables of the example database.

Triggers keep the totals of a domain, so they agree with the rows after every commit. Pictures and features have tables
of their own, so that a list of examples reads none of them.
"""

from typing import Final

SCHEMA_VERSION: Final = 1
SCHEMA: Final = """
CREATE TABLE domains (
    id INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    revision INTEGER NOT NULL DEFAULT 0,
    n_examples INTEGER NOT NULL DEFAULT 0,
    n_bytes INTEGER NOT NULL DEFAULT 0
) STRICT;

CREATE TABLE examples (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    domain INTEGER NOT NULL REFERENCES domains,
    sha256 TEXT NOT NULL,
    label TEXT,
    source TEXT NOT NULL CHECK (source IN ('upload', 'traffic')),
    added_by TEXT NOT NULL,
    added_at TEXT NOT NULL,
    margin REAL,
    n_bytes INTEGER NOT NULL DEFAULT 0,
    UNIQUE (domain, sha256)
) STRICT;
CREATE INDEX examples_by_domain ON examples (domain);
CREATE INDEX examples_by_label ON examples (domain, label);

CREATE TABLE pictures (
    example INTEGER PRIMARY KEY REFERENCES examples ON DELETE CASCADE,
    thumbnail BLOB NOT NULL,
    picture BLOB
) STRICT;

CREATE TABLE feature_keys (
    id INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    n_bytes INTEGER NOT NULL
) STRICT;

CREATE TABLE features (
    id INTEGER PRIMARY KEY,
    example INTEGER NOT NULL REFERENCES examples ON DELETE CASCADE,
    key INTEGER NOT NULL REFERENCES feature_keys,
    feature BLOB NOT NULL,
    UNIQUE (example, key)
) STRICT;

CREATE TRIGGER example_added AFTER INSERT ON examples BEGIN
    UPDATE domains SET revision = revision + 1, n_examples = n_examples + 1, n_bytes = n_bytes + NEW.n_bytes
    WHERE id = NEW.domain;
END;
CREATE TRIGGER example_removed AFTER DELETE ON examples BEGIN
    UPDATE domains SET revision = revision + 1, n_examples = n_examples - 1, n_bytes = n_bytes - OLD.n_bytes
    WHERE id = OLD.domain;
END;
CREATE TRIGGER example_relabelled AFTER UPDATE OF label ON examples WHEN OLD.label IS NOT NEW.label BEGIN
    UPDATE domains SET revision = revision + 1 WHERE id = NEW.domain;
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
"""
