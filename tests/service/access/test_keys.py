import errno
import json
import os
import re
import stat
from datetime import UTC, datetime, timedelta
from multiprocessing.pool import ThreadPool

import pytest
from typer.testing import CliRunner

from service.access import keys as ring_module
from service.access.key_file import Key, add_key, moment, read_keys, revoke_key
from service.access.keys import KeyRing
from service.cli import keys_app
from service.errors import DeniedError, SettingsError, UnauthorizedError

ALL_SCOPES = ("classify", "publish", "activate", "rollback", "teach", "metrics")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "keys.json"


@pytest.fixture
def followed(path, monkeypatch):
    """A ring that follows the file, which has one key, and the key."""
    monkeypatch.setattr(ring_module, "POLL_S", 0)
    key = add_key(path, ["classify"], [])
    return KeyRing(read_keys(path), path), key


def passes(ring, key):
    try:
        return ring.authenticate(f"Bearer {key}").id == key.split("_")[1]
    except UnauthorizedError:
        return False


@pytest.mark.parametrize("held", ALL_SCOPES)
@pytest.mark.parametrize("needed", [*ALL_SCOPES, "any"])
def test_a_key_has_its_scopes_on_its_domains_and_nothing_else(path, held, needed):
    key = add_key(path, [held], ["paint"])
    ring = KeyRing(read_keys(path))
    key_id = ring.authenticate(f"Bearer {key}").id
    is_granted = needed in {held, "any"}
    assert ring.allows(key_id, needed, "paint") is is_granted
    assert ring.allows(key_id, needed, None) is is_granted
    assert not ring.allows(key_id, needed, "ink")
    assert not ring.allows("", needed, "paint")
    assert not ring.allows("unknown1", needed, "paint")
    if not is_granted:
        with pytest.raises(DeniedError):
            ring.require(key_id, needed, "paint")


@pytest.mark.parametrize(
    "header", ["", "Bearer", "Bearer x", "Basic {key}", "bearer {key}x", "Bearer pk_aaaaaaaa_" + "A" * 43]
)
def test_anything_but_a_key_of_the_file_is_unauthorized(path, header):
    key = add_key(path, ["classify"], [])
    with pytest.raises(UnauthorizedError) as refused:
        KeyRing(read_keys(path)).authenticate(header.format(key=key))
    assert refused.value.code == "unauthorized"


@pytest.mark.parametrize(
    ("period", "code"),
    [
        ({"expires": timedelta(seconds=-1)}, "key_expired"),
        ({"not_before": timedelta(hours=1)}, "key_not_yet_valid"),
        ({"not_before": timedelta(hours=-1), "expires": timedelta(hours=1)}, None),
    ],
)
def test_a_key_is_valid_from_not_before_until_it_expires(path, period, code):
    key = add_key(path, ["classify"], [], **{name: datetime.now(UTC) + delta for name, delta in period.items()})
    ring = KeyRing(read_keys(path))
    if code is None:
        assert passes(ring, key)
        return
    with pytest.raises(UnauthorizedError) as refused:
        ring.authenticate(f"Bearer {key}")
    assert refused.value.code == code


def test_the_validity_of_an_expired_key_is_shown_to_its_holder_only(path):
    key = add_key(path, ["classify"], [], expires=datetime.now(UTC) - timedelta(days=1))
    with pytest.raises(UnauthorizedError) as refused:
        KeyRing(read_keys(path)).authenticate(f"Bearer {key[:-1]}{'A' if key[-1] != 'A' else 'B'}")
    assert refused.value.code == "unauthorized"


def test_keys_that_are_added_and_revoked_take_effect_in_a_running_ring(followed, path):
    ring, first = followed
    second = add_key(path, ["publish"], ["paint"])
    assert passes(ring, first)
    assert passes(ring, second)
    revoke_key(path, first.split("_")[1])
    assert not passes(ring, first)
    assert passes(ring, second)


def test_a_ring_whose_last_key_is_revoked_stays_closed(followed, path):
    ring, key = followed
    revoke_key(path, key.split("_")[1])
    assert not passes(ring, key)
    assert not ring.is_open
    assert not ring.allows("", "any", "paint")


@pytest.mark.parametrize("damage", ["missing", "invalid", "readable by others"])
def test_a_file_that_becomes_unreadable_leaves_the_keys_in_force_and_is_reported_once(followed, path, caplog, damage):
    ring, key = followed
    assert passes(ring, key)
    content = path.read_text()
    match damage:
        case "missing":
            path.unlink()
        case "invalid":
            path.write_text("{")
        case _:
            path.chmod(0o644)
    assert [passes(ring, key) for _ in range(3)] == [True] * 3
    assert [record.message for record in caplog.records].count("keys.unreadable") == 1
    path.unlink(missing_ok=True)
    path.write_text(content.replace(key.split("_")[1], "aaaaaaaa"))
    path.chmod(0o600)
    assert not passes(ring, key)


def test_the_file_is_checked_at_most_twice_a_second(path, monkeypatch):
    key = add_key(path, ["classify"], [])
    ring = KeyRing(read_keys(path), path)
    now_s = 1000.0
    monkeypatch.setattr(ring_module.time, "monotonic", lambda: now_s)
    assert passes(ring, key)
    revoke_key(path, key.split("_")[1])
    assert passes(ring, key)
    now_s += 0.5
    assert not passes(ring, key)


def test_the_file_holds_no_key_and_is_private(path):
    first, second = (add_key(path, ["classify"], []) for _ in range(2))
    assert re.fullmatch(r"pk_[a-z0-9]{8}_[A-Za-z0-9_-]{43}", first)
    assert len(read_keys(path)) == 2
    assert path.stat().st_mode & 0o777 == 0o600
    for key in (first, second):
        secret = key.split("_", 2)[2]  # which may contain an underscore itself
        assert len(secret) == 43
        assert secret not in path.read_text()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
@pytest.mark.parametrize(
    ("owner", "mode", "is_accepted"),
    [
        (0, 0o440, True),
        (0, 0o640, True),
        (0, 0o460, False),
        (0, 0o444, False),
        (65532, 0o440, False),
        (65532, 0o400, True),
    ],
)
def test_a_group_may_read_a_file_of_root_only(path, owner, mode, is_accepted):
    add_key(path, ["classify"], [])
    os.chown(path, owner, 65532)
    path.chmod(mode)
    if is_accepted:
        assert len(read_keys(path)) == 1
        return
    with pytest.raises(SettingsError, match="accessible to other users"):
        read_keys(path)


def test_a_ring_follows_a_secret_that_kubernetes_replaces(tmp_path, monkeypatch):
    """The file is a link into a folder, which is a link itself; an update replaces the second one."""
    monkeypatch.setattr(ring_module, "POLL_S", 0)
    keys = []
    for folder in ("..1", "..2"):
        (tmp_path / folder).mkdir()
        keys.append(add_key(tmp_path / folder / "keys.json", ["classify"], []))
    (tmp_path / "..data").symlink_to("..1")
    (tmp_path / "keys.json").symlink_to("..data/keys.json")
    ring = KeyRing(read_keys(tmp_path / "keys.json"), tmp_path / "keys.json")
    assert [passes(ring, key) for key in keys] == [True, False]
    (tmp_path / "..next").symlink_to("..2")
    (tmp_path / "..next").replace(tmp_path / "..data")
    assert [passes(ring, key) for key in keys] == [False, True]


def test_a_file_of_an_earlier_release_is_read(path):
    path.write_text('{"keys": [{"id": "k3v9x2ab", "sha256": "' + "0" * 64 + '", "scopes": ["classify"]}]}')
    path.chmod(0o600)
    assert read_keys(path)[0].allows("classify", "paint")


def test_a_change_is_synced_with_the_name_of_the_file(path, monkeypatch):
    add_key(path, ["classify"], [])
    n_keys = []

    def note(fd):
        if stat.S_ISDIR(os.fstat(fd).st_mode):
            n_keys.append(len(read_keys(path)))

    monkeypatch.setattr(os, "fsync", note)
    revoke_key(path, read_keys(path)[0].id)
    assert n_keys == [0]


def test_a_full_disk_leaves_the_old_keys_and_no_other_file(path, monkeypatch):
    add_key(path, ["classify"], [])
    before = path.read_bytes()

    def full(fd):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(SettingsError, match="No space left"):
        add_key(path, ["publish"], [])
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_keys_created_at_the_same_time_are_all_in_the_file(path):
    with ThreadPool(8) as pool:
        made = pool.map(lambda _: add_key(path, ["classify"], []), range(24))
    assert {key.id for key in read_keys(path)} == {key.split("_")[1] for key in made}
    assert [other.name for other in path.parent.iterdir()] == [path.name]


def test_a_missing_public_or_invalid_key_file_is_refused(path, tmp_path):
    with pytest.raises(SettingsError, match="Cannot read"):
        read_keys(path)
    path.write_text(json.dumps({"keys": []}))
    path.chmod(0o644)
    with pytest.raises(SettingsError, match="chmod 600"):
        read_keys(path)
    path.chmod(0o600)
    path.write_text('{"keys": [{"id": "x", "sha256": "a-secret"}]}')
    with pytest.raises(SettingsError, match=r"not a key file: keys\.0\.id") as refused:
        read_keys(path)
    assert "\n" not in str(refused.value)
    assert "a-secret" not in str(refused.value)
    with pytest.raises(SettingsError, match="Cannot write"):
        add_key(tmp_path / "missing" / "keys.json", ["classify"], [])


@pytest.mark.parametrize(
    ("scopes", "domains", "fields", "message"),
    [
        (["everything"], [], {}, "Unknown scopes"),
        (["classify"], ["Not A Domain"], {}, "Not a valid domain name"),
        (["classify"], [], {"requests_per_s": 0}, "requests_per_s"),
    ],
)
def test_an_invalid_key_is_refused_and_the_file_unchanged(path, scopes, domains, fields, message):
    with pytest.raises(SettingsError, match=message):
        add_key(path, scopes, domains, **fields)
    assert not path.exists()


def test_keys_with_unknown_scopes_cannot_exist():
    with pytest.raises(ValueError, match="scopes"):
        Key.model_validate({"id": "a" * 8, "sha256": "0" * 64, "scopes": ["root"]})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2027-03-31", datetime(2027, 3, 31, tzinfo=UTC)),
        ("2027-03-31T12:00:00+00:00", datetime(2027, 3, 31, 12, tzinfo=UTC)),
    ],
)
def test_a_date_is_utc(text, expected):
    assert moment(text) == expected


@pytest.mark.parametrize(
    ("text", "delta"), [("90d", timedelta(days=90)), ("12h", timedelta(hours=12)), ("5m", timedelta(minutes=5))]
)
def test_a_duration_counts_from_now(text, delta):
    assert abs(moment(text) - datetime.now(UTC) - delta) < timedelta(seconds=10)


@pytest.mark.parametrize("text", ["", "soon", "90", "-1d", "90y", "999999d"])
def test_any_other_time_is_refused(text):
    with pytest.raises(SettingsError, match="90d"):
        moment(text)


def run(*arguments):
    return CliRunner().invoke(keys_app, [str(argument) for argument in arguments])


def test_the_commands_create_list_and_revoke_keys(path):
    made = run("new", path, "--scope", "classify", "--domain", "paint", "--name", "line 4", "--expires", "2090-01-31")
    key = made.output.strip()
    key_id, secret = key.split("_")[1], key.split("_", 2)[2]
    listed = run("ls", path)
    assert (made.exit_code, listed.exit_code) == (0, 0)
    for shown in (key_id, "line 4", "classify", "paint", "2090-01-31"):
        assert shown in listed.output
    assert secret not in listed.output
    assert read_keys(path)[0].sha256[:16] not in listed.output
    assert run("revoke", path, key_id).exit_code == 0
    assert read_keys(path) == ()


def test_an_error_of_the_commands_is_one_line_with_the_next_step(path):
    add_key(path, ["classify"], [])
    unknown = run("revoke", path, "nosuchid")
    late = run("new", path, "--scope", "classify", "--expires", "soon")
    assert (unknown.exit_code, late.exit_code) == (2, 2)
    assert "caspl keys ls" in unknown.output
    assert "90d" in late.output
    assert len(read_keys(path)) == 1
