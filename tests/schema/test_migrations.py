"""Migrations on real servers: applied once, whole or not at all, whatever happens amid them."""

import hashlib
import json
import os
import re
import signal
import threading
import time
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from posduif_cli.core.folders import Folders, digest
from posduif_cli.core.schema import apply, files, history
from posduif_cli.db.connect import connect
from posduif_cli.db.patience import LIMITS
from posduif_cli.errors import ConfigurationError, Interrupted
from posduif_cli.models.servers import Server
from support.folder import Folder
from support.runner import Posduif
from support.servers import PgServer
from support.sources import LATEST, MIGRATIONS, REPO
from support.tenants import forget, record, states, tables, versions
from support.waiting import held, sleepers, until

# A real schema change that cannot run twice, slow enough to be met in the middle.
SLOW = "CREATE TABLE slow (id int);\nINSERT INTO slow VALUES (1);\nSELECT pg_sleep({seconds});\n"


def test_a_new_tenant_has_every_bundled_migration_with_its_checksum(
    posduif: Posduif, server: PgServer, tenant: str
) -> None:
    listed = posduif.json("migrate", "list", tenant)
    assert [(row["version"], row["name"], row["state"]) for row in listed] == [
        (path.name[:4], path.stem[5:], "applied") for path in MIGRATIONS
    ]
    for row, path in zip(listed, MIGRATIONS, strict=True):
        assert row["checksum"] == hashlib.sha256(path.read_bytes()).hexdigest()
        assert 0 <= row["duration_ms"] < 60_000
        assert row["applied_at"].endswith(("Z", "+00:00"))
    assert server.sql("SELECT DISTINCT applied_by FROM schema_migrations", database=tenant) == [("postgres",)]
    noted = record(server, tenant)
    assert (noted["state"], noted["schema"], noted["set"]) == (
        "active",
        LATEST,
        digest(states(posduif, tenant)),
    )
    assert "failed" not in noted

    [row] = posduif.json("migrate", "status", tenant, "--check")
    assert (row["state"], row["schema_version"], row["latest_version"]) == ("active", LATEST, LATEST)
    assert (row["pending"], row["error"]) == (0, None)
    [outcome] = posduif.json("migrate", "up", tenant)
    assert (outcome["status"], outcome["changed"], outcome["from"], outcome["to"]) == (
        "unchanged",
        False,
        LATEST,
        LATEST,
    )


def test_a_further_folder_is_pending_then_applied_then_missing(
    posduif: Posduif, server: PgServer, tenant: str, folder: Folder
) -> None:
    file = folder.put("2000_notes.sql", "CREATE TABLE notes (id int);")
    assert states(posduif, tenant, *folder.option)["2000"] == "pending"
    [row] = posduif.json("migrate", "status", tenant, "--check", *folder.option, code=1)
    assert (row["pending"], row["schema_version"], row["latest_version"]) == (1, LATEST, "2000")
    before = record(server, tenant)

    [outcome] = posduif.json("migrate", "up", tenant, *folder.option)
    assert (outcome["status"], outcome["changed"], outcome["from"], outcome["to"]) == ("ok", True, LATEST, "2000")
    assert "notes" in tables(server, tenant)
    assert server.sql("SELECT tableowner FROM pg_tables WHERE tablename = 'notes'", database=tenant) == [
        ("posduif_admin",)
    ]
    after = record(server, tenant)
    assert (after["schema"], after["set"]) == ("2000", digest(versions(server, tenant)))
    assert {**before, "schema": "", "set": ""} == {**after, "schema": "", "set": ""}
    posduif("migrate", "status", tenant, "--check", *folder.option)

    # A lower number that comes later is applied too: gaps are allowed.
    folder.put("1000_late.sql", "CREATE TABLE late (id int);")
    posduif("migrate", "status", tenant, "--check", *folder.option, code=1)
    posduif("migrate", "up", tenant, *folder.option)
    assert "late" in tables(server, tenant)
    posduif("migrate", "status", tenant, "--check", *folder.option)

    file.unlink()
    assert states(posduif, tenant, *folder.option)["2000"] == "missing"
    again = record(server, tenant)
    [outcome] = posduif.json("migrate", "up", tenant, *folder.option)
    assert (outcome["status"], outcome["changed"]) == ("unchanged", False)
    assert record(server, tenant) == again


def test_an_edited_file_is_refused_and_nothing_is_applied(
    posduif: Posduif, server: PgServer, tenant: str, folder: Folder
) -> None:
    file = folder.put("1000_notes.sql", "CREATE TABLE notes (id int);")
    posduif("migrate", "up", tenant, *folder.option)
    before = record(server, tenant)
    file.write_bytes(file.read_bytes().replace(b"\n", b"\r\n"))
    posduif("migrate", "up", tenant, *folder.option)  # another system's line ends are no change

    folder.put("1000_notes.sql", "CREATE TABLE notes (id bigint);")
    folder.put("1001_later.sql", "CREATE TABLE later (id int);")
    refused = posduif("migrate", "up", tenant, *folder.option, "-o", "json", code=5)
    assert refused.error["code"] == "checksum_differs"
    assert str(file) in refused.error["message"]
    assert [row["status"] for row in refused.json] == ["failed"]
    found = states(posduif, tenant, *folder.option)
    assert (found["1000"], found["1001"]) == ("changed", "pending")
    assert "later" not in tables(server, tenant)
    assert record(server, tenant) == before


# What is wrong, the SQL, its line in the file (the first line of SQL is line 2), and its SQLSTATE.
FAULTS = [
    ("syntax", "SELECT 1;\n\nCREATE TABEL oops ();", 4, "42601"),
    ("no such column", "SELECT 1;\nUPDATE users\n  SET é = 1,\n  nosuch = 2;", 4, "42703"),
    ("at run time", "SELECT 1;\n-- a; comment\nSELECT 'a;b', $x$;\n;$x$;\n/* ; /* ; */ ; */ SELECT 1/0;", 6, "22012"),
    ("what exists", "CREATE TABLE half (id int);\nCREATE TABLE users (id int);", 3, "42P07"),
    ("a row", "INSERT INTO users (username, user_type)\nVALUES ('secret-row', 'x');", 2, "23514"),
    ("in a block", "SELECT 1;\nDO $$\nBEGIN\n  RAISE EXCEPTION 'secret-text';\nEND $$;", 3, "P0001"),
    ("a right", "SELECT 1;\nCREATE EXTENSION pg_stat_statements;", 3, "42501"),
    (
        "after a function",
        "CREATE FUNCTION f() RETURNS int BEGIN ATOMIC\n SELECT CASE WHEN true THEN 1 END;\nSELECT 2;\nEND; SELECT 1/0;",
        5,
        "22012",
    ),
    (
        "at the commit",
        "CREATE TABLE half (id int PRIMARY KEY, up int REFERENCES half DEFERRABLE INITIALLY DEFERRED);\n"
        "INSERT INTO half VALUES (1, 2);",
        None,
        "23503",
    ),
]  # fmt: skip


def test_a_failure_names_file_and_line_keeps_nothing_and_is_remembered(
    posduif: Posduif, server: PgServer, tenant: str, folder: Folder
) -> None:
    folder.put("1000_first.sql", "CREATE TABLE first (id int);")
    clean = {"first", "schema_migrations", "users", "messages", "sync_metadata", "enrollment_tokens"}
    for what, sql, line, sqlstate in FAULTS:
        started = time.time()
        folder.put("1001_broken.sql", f"{sql}\nCREATE TABLE never (id int);")
        failed = posduif("migrate", "up", tenant, *folder.option, "-o", "json", code=7)
        assert failed.error["code"] == "migration_failed", what
        assert ("1001_broken.sql" + (f":{line}" if line else "")) in failed.error["message"], what
        assert f"SQLSTATE {sqlstate}" in failed.error["why"], what
        [outcome] = failed.json
        assert outcome["status"] == "failed", what
        details = outcome["error"]
        assert (details["sqlstate"], details["file"], details["line"]) == (sqlstate, "1001_broken.sql", line), what

        assert tables(server, tenant) == clean, what
        assert server.sql("SELECT count(*) FROM pg_proc WHERE proname = 'f'", database=tenant) == [(0,)]
        noted = record(server, tenant)
        assert noted["schema"] == "1000", what  # each file is a transaction of its own
        failure = noted["failed"]
        time_noted = datetime.fromisoformat(failure.pop("time")).timestamp()
        assert started - 2 <= time_noted <= time.time() + 2, what
        expected = {"version": "1001", "sqlstate": sqlstate, "file": "1001_broken.sql", "line": line}
        assert failure == expected, what
        assert "secret" not in json.dumps(noted), "the record is for every eye and holds no error's text"

        [row] = posduif.json("migrate", "status", tenant, "--check", *folder.option, code=1)
        assert (row["pending"], row["error"]["version"], row["error"]["sqlstate"]) == (1, "1001", sqlstate)
        assert (row["error"]["file"], row["error"]["line"]) == ("1001_broken.sql", line)
        assert states(posduif, tenant, *folder.option)["1001"] == "pending"

    folder.put("1001_broken.sql", "CREATE TABLE mended (id int);")
    posduif("migrate", "up", tenant, *folder.option)
    assert "failed" not in record(server, tenant)
    [row] = posduif.json("migrate", "status", tenant, "--check", *folder.option)
    assert row["error"] is None


def test_a_failure_is_forgotten_when_its_file_is_withdrawn(
    posduif: Posduif, server: PgServer, tenant: str, folder: Folder
) -> None:
    file = folder.put("1000_broken.sql", "SELECT 1/0;")
    posduif("migrate", "up", tenant, *folder.option, code=7)
    file.unlink()
    assert "failed" in record(server, tenant)
    posduif("migrate", "up", tenant, *folder.option)
    assert "failed" not in record(server, tenant)
    posduif("migrate", "status", tenant, "--check", *folder.option)


def test_what_one_file_does_to_its_session_does_not_reach_the_next(
    posduif: Posduif, server: PgServer, tenant: str, folder: Folder
) -> None:
    leak = "SELECT pg_catalog.set_config({!r}, {!r}, false);"
    folder.put("1000_dumped.sql", leak.format("search_path", "") + leak.format("role", "none"))
    folder.put("1001_plain.sql", "CREATE TABLE plain (id int);")
    posduif("migrate", "up", tenant, *folder.option)
    owner = server.sql(
        "SELECT schemaname::text, tableowner::text FROM pg_tables WHERE tablename = 'plain'", database=tenant
    )
    assert owner == [("public", "posduif_admin")]


def test_sql_that_only_looks_like_the_end_of_a_transaction_is_run_as_it_stands(
    posduif: Posduif, server: PgServer, tenant: str, folder: Folder
) -> None:
    folder.put(
        "1000_tricky.sql",
        """CREATE TABLE tricky ("commit;" int, note text DEFAULT E'it\\'s; COMMIT;', other text DEFAULT 'a''b;');
CREATE FUNCTION tricky_body() RETURNS int LANGUAGE plpgsql AS $body$ BEGIN RETURN 1; END; $body$;
CREATE FUNCTION tricky_sql(x int) RETURNS int BEGIN ATOMIC SELECT 1; SELECT CASE x WHEN 1 THEN 2 END; END;
CREATE RULE tricky_rule AS ON DELETE TO tricky DO ALSO (DELETE FROM users WHERE false; DELETE FROM users WHERE false;);
-- COMMIT;
/* ROLLBACK; */
INSERT INTO tricky DEFAULT VALUES
""",
    )
    posduif("migrate", "up", tenant, *folder.option)
    rows = server.sql('SELECT "commit;", note, other, tricky_body(), tricky_sql(1) FROM tricky', database=tenant)
    assert rows == [(None, "it's; COMMIT;", "a'b;", 1, 2)]
    assert "users" in tables(server, tenant)


MALFORMED = [
    ("1000_a.sql", b"CREATE TABLE never ();\n", "1000_a.sql:1:"),
    ("1000_a.sql", b"", "1000_a.sql:1:"),
    ("1000_a.sql", b"-- migrate:up\nSELECT 1;\n-- migrate:up\nSELECT 2;\n", "1000_a.sql:3:"),
    ("1000_a.sql", b"-- migrate:down\nSELECT 1;\n-- migrate:up\nCREATE TABLE never ();\n", "1000_a.sql:1:"),
    ("1000_a.sql", b"-- migrate:up\nSELECT 1;\n-- migrate:down\n\n-- migrate:up\nSELECT 2;", "1000_a.sql:5:"),
    ("1000_a.sql", b"\n-- migrate:up\n-- nothing; here\n/* SELECT 1; */ ;\n", "1000_a.sql:2:"),
    ("1000_a.sql", b"-- migrate:up\nSELECT 1;\nSELECT 'caf\xe9';\n", "1000_a.sql:3:"),
    ("1000_a.sql", b"-- migrate:up transaction:maybe\nSELECT 1;\n", "1000_a.sql:1:"),
    ("1000_a.sql", b"\nCREATE TABLE never ();\n-- migrate:up\nSELECT 1;\n", "1000_a.sql:2:"),
    ("1000_a.sql", b"-- migrate:up\nCREATE TABLE never ();\n\nCOMMIT;\nSELECT 1;\n", "1000_a.sql:4:"),
    ("1000_a.sql", b"-- migrate:up\nCREATE TABLE never ();\nrollback; SELECT 1;\n", "1000_a.sql:3:"),
    ("1000_a.sql", b"-- migrate:up\nBEGIN;CREATE TABLE never ();END;\n", "1000_a.sql:2:"),
    ("1000_a.sql", b"-- migrate:up\nSELECT 1;\n-- migrate:down\nSELECT 2;\nABORT;\n", "1000_a.sql:5:"),
    ("1000_a.sql", b"-- migrate:up\nCOPY users (username)\nFROM STDIN;\n", "1000_a.sql:2:"),
    ("0001_again.sql", b"-- migrate:up\nCREATE TABLE never ();\n", "0001_again.sql: version 0001 is also"),
    ("note.sql", b"-- migrate:up\nCREATE TABLE never ();\n", "note.sql: the name"),
    ("1000-a.sql", b"-- migrate:up\nCREATE TABLE never ();\n", "1000-a.sql: the name"),
]  # fmt: skip


def test_malformed_files_are_refused_before_anything_is_applied(
    posduif: Posduif, server: PgServer, tenant: str, folder: Folder
) -> None:
    folder.put("1001_good.sql", "CREATE TABLE good (id int);")
    before, had = record(server, tenant), tables(server, tenant)
    for name, content, expected in MALFORMED:
        bad = folder.path / name
        bad.write_bytes(content)
        refused = posduif("migrate", "up", tenant, *folder.option, "-o", "json", code=3)
        assert expected in refused.error["message"], content
        assert str(folder.path) in refused.error["message"], content
        assert tables(server, tenant) == had, content
        assert record(server, tenant) == before, content
        bad.unlink()
    posduif("migrate", "up", tenant, *folder.option)
    assert "good" in tables(server, tenant)


def test_a_folder_that_is_not_there_and_two_with_one_version(posduif: Posduif, tenant: str, tmp_path: Path) -> None:
    config = tmp_path / "c.yaml"
    config.write_text(f"migrations: {{paths: ['{tmp_path}/nowhere']}}\n")
    assert "nowhere" in posduif("migrate", "up", tenant, "--config", str(config), code=3).err
    for side in ("one", "two"):
        (tmp_path / side).mkdir()
        (tmp_path / side / f"1000_{side}.sql").write_text("-- migrate:up\nSELECT 1;\n")
    config.write_text(f"migrations: {{paths: ['{tmp_path}/one', '{tmp_path}/two']}}\n")
    said = posduif("migrate", "up", tenant, "--config", str(config), code=3).err
    assert f"{tmp_path}/one/1000_one.sql" in said
    assert f"{tmp_path}/two/1000_two.sql" in said


def test_reading_a_file_finds_its_parts(tmp_path: Path) -> None:
    path = tmp_path / "1000_x.sql"
    path.write_text("-- why\n\n-- migrate:up\nSELECT 1;\n-- migrate:down\nSELECT 2;\n")
    file = files.read("1000", path)
    assert (file.version, file.name, file.up.line) == ("1000", "x", 4)
    assert (file.up.text.strip(), file.down and file.down.text.strip()) == ("SELECT 1;", "SELECT 2;")
    path.write_text("-- migrate:up\nSELECT 1;\n")
    assert files.read("1000", path).down is None
    with pytest.raises(ConfigurationError):
        files.read("1000", tmp_path)


def test_pending_is_counted_from_the_record_alone(folder: Folder) -> None:
    for version in ("1000", "1001", "1002"):
        folder.put(f"{version}_x.sql", "SELECT 1;")
    folders = Folders((folder.path,))
    everything = list(folders.paths)
    for count in range(len(everything) + 1):
        applied = everything[:count]
        assert folders.pending(max(applied, default=None), digest(applied)) == len(everything) - count
    assert folders.pending(None, None) == len(everything)
    holed = [version for version in everything if version != "1001"]
    assert folders.pending("1002", digest(holed)) == 1
    newer = [*everything, "2000"]
    assert folders.pending("2000", digest(newer)) == 0, "a newer posduif was here"


def test_suspended_and_half_made_tenants_are_skipped(
    posduif: Posduif, server: PgServer, tenant: str, folder: Folder
) -> None:
    folder.put("1000_a.sql", "CREATE TABLE never (id int);")
    for state in ("suspended", "provisioning"):
        noted = {**record(server, tenant), "state": state}
        server.sql(f"COMMENT ON DATABASE {tenant} IS 'posduif {json.dumps(noted)}'")
        done = posduif("migrate", "up", tenant, *folder.option, "-o", "json")
        [outcome] = done.json
        assert (outcome["status"], outcome["changed"], done.err) == ("skipped", False, "")
        assert state in outcome["error"]["message"]
        assert record(server, tenant) == noted
        # Nobody can be told to run `migrate up` for it.
        [row] = posduif.json("migrate", "status", tenant, "--check", *folder.option)
        assert (row["state"], row["pending"]) == (state, 1)
    assert "never" not in tables(server, tenant)


def test_one_of_several_that_fails_does_not_hide_or_stop_the_others(
    posduif: Posduif, server: PgServer, tenant: str, name: str, folder: Folder
) -> None:
    broken = f"{tenant}_b"
    posduif("tenant", "create", broken)
    try:
        folder.put("1000_a.sql", "CREATE TABLE added (id int);")
        server.sql("CREATE TABLE added (id int)", database=broken)
        nobody = f"{tenant}_x"
        done = posduif("migrate", "up", broken, nobody, tenant, tenant, *folder.option, "-o", "json", code=8)
        assert [(row["tenant"], row["status"]) for row in done.json] == [
            (broken, "failed"),
            (nobody, "failed"),
            (tenant, "ok"),
        ]
        assert done.error["code"] == "partial_failure"
        assert "added" in tables(server, tenant)
        posduif("migrate", "up", nobody, code=4)
        assert posduif("migrate", "up", "Bad Name", code=2).out.count("ok") == 0
    finally:
        forget(server, broken)


def test_kill_9_amid_a_migration_leaves_neither_the_change_nor_a_note(
    posduif: Posduif, server: PgServer, tenant: str, folder: Folder
) -> None:
    folder.put("1000_slow.sql", SLOW.format(seconds=60))
    before = record(server, tenant)
    runner = posduif.popen("migrate", "up", tenant, *folder.option)
    until(lambda: sleepers(server, tenant), "the migration sleeps")
    os.kill(runner.pid, signal.SIGKILL)
    runner.communicate()
    assert "slow" not in tables(server, tenant)
    assert record(server, tenant) == before
    assert versions(server, tenant) == [path.name[:4] for path in MIGRATIONS]

    folder.put("1000_slow.sql", SLOW.format(seconds=0))
    posduif("migrate", "up", tenant, *folder.option)  # waits until the server has noticed
    assert server.sql("SELECT count(*) FROM slow", database=tenant) == [(1,)]
    assert versions(server, tenant)[-1] == record(server, tenant)["schema"] == "1000"


def test_a_backend_ended_amid_a_migration_leaves_nothing_and_can_be_run_again(
    posduif: Posduif, server: PgServer, tenant: str, folder: Folder
) -> None:
    folder.put("1000_slow.sql", SLOW.format(seconds=60))
    before = record(server, tenant)
    runner = posduif.popen("migrate", "up", tenant, *folder.option, "-o", "json")
    until(lambda: sleepers(server, tenant), "the migration sleeps")
    for pid in sleepers(server, tenant):
        server.sql("SELECT pg_terminate_backend(%s)", pid)
    out, err = runner.communicate(timeout=30)
    assert runner.returncode == 6
    assert json.loads(err)["error"]["code"] == "server_unreachable"
    assert [row["status"] for row in json.loads(out)] == ["failed"]
    assert "slow" not in tables(server, tenant)
    assert record(server, tenant) == before
    folder.put("1000_slow.sql", SLOW.format(seconds=0))
    assert [row["status"] for row in posduif.json("migrate", "up", tenant, *folder.option)] == ["ok"]


def test_a_cancelled_or_too_slow_migration_failed_it_is_not_busy(
    posduif: Posduif, server: PgServer, tenant: str, folder: Folder
) -> None:
    folder.put("1000_slow.sql", SLOW.format(seconds=60))
    folder.config.write_text(f"migrations: {{paths: ['{folder.path}'], statement_timeout: 300ms}}\n")
    failed = posduif("migrate", "up", tenant, *folder.option, "-o", "json", code=7)
    assert (failed.json[0]["error"]["sqlstate"], failed.json[0]["error"]["line"]) == ("57014", 4)
    assert record(server, tenant)["failed"]["sqlstate"] == "57014"
    assert "slow" not in tables(server, tenant)


def test_two_at_once_apply_a_file_once(posduif: Posduif, server: PgServer, tenant: str, folder: Folder) -> None:
    folder.put("1000_slow.sql", SLOW.format(seconds=0.5))
    runners = [posduif.popen("migrate", "up", tenant, *folder.option, "-o", "json") for _ in range(3)]
    ends = [(runner.communicate(timeout=60), runner.returncode) for runner in runners]
    assert [code for _, code in ends] == [0, 0, 0], ends
    assert sorted(json.loads(out)[0]["status"] for (out, _), _ in ends) == ["ok", "unchanged", "unchanged"]
    assert server.sql("SELECT count(*) FROM slow", database=tenant) == [(1,)]
    assert versions(server, tenant).count("1000") == 1


def test_a_file_leaves_no_settings_to_the_next(posduif: Posduif, server: PgServer, tenant: str, folder: Folder) -> None:
    folder.put(
        "1000_first.sql",
        "SET TimeZone = 'Asia/Tokyo';\nSET check_function_bodies = off;\n"
        "SELECT set_config('client_encoding', 'LATIN1', false);",
    )
    folder.put(
        "1001_next.sql", "CREATE TABLE said AS SELECT 'é€' AS text, timestamptz '2020-01-01' = '2020-01-01Z' AS utc;"
    )
    folder.put("1002_wrong.sql", "CREATE FUNCTION f() RETURNS int LANGUAGE sql AS 'SELECT * FROM nowhere';")
    failed = posduif("migrate", "up", tenant, *folder.option, "-o", "json", code=7)
    assert failed.json[0]["error"]["sqlstate"] == "42P01"
    assert server.sql("SELECT * FROM said", database=tenant) == [("é€", True)]
    assert posduif.json("migrate", "status", tenant, *folder.option)[0]["error"]["version"] == "1002"
    folder.put("1002_wrong.sql", "SET default_transaction_read_only = on;\nSELECT 1 / 0;")
    posduif("migrate", "up", tenant, *folder.option, code=7)
    assert posduif.json("migrate", "status", tenant, *folder.option)[0]["error"]["sqlstate"] == "22012"


def test_a_locked_version_table_names_who_locked_it(
    posduif: Posduif, server: PgServer, tenant: str, folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(LIMITS, "blocked", timedelta(seconds=1))
    folder.put("1000_more.sql", "CREATE TABLE more (id int);")
    with held(server, tenant, "LOCK TABLE schema_migrations IN ACCESS EXCLUSIVE MODE"):
        busy = posduif("migrate", "up", tenant, *folder.option, "-o", "json", code=10)
        assert busy.error["code"] == "blocked"
        assert "blocked by pid" in busy.error["why"]
        posduif("migrate", "up", tenant, "-n", *folder.option, code=10)
    assert posduif.json("migrate", "up", tenant, *folder.option)[0]["status"] == "ok"


def test_a_locked_table_is_busy_within_seconds_and_nothing_is_half_applied(
    posduif: Posduif, server: PgServer, tenant: str, folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(LIMITS, "blocked", timedelta(seconds=3))
    folder.put("1000_two.sql", "CREATE TABLE half (id int);\nALTER TABLE users ADD COLUMN extra text;")
    before = record(server, tenant)
    with held(server, tenant, "LOCK TABLE users IN ACCESS EXCLUSIVE MODE"):
        started = time.monotonic()
        busy = posduif("migrate", "up", tenant, *folder.option, "-o", "json", code=10)
        assert 0.4 < time.monotonic() - started < 60
    assert busy.error["code"] == "blocked"
    assert "blocked by pid" in busy.error["why"]
    assert "half" not in tables(server, tenant)
    assert record(server, tenant) == before, "a lock that could not be obtained is no failed migration"
    posduif("migrate", "up", tenant, *folder.option)
    assert "half" in tables(server, tenant)


@pytest.mark.one_server
def test_a_lock_held_by_another_command_is_busy_and_names_the_holder(
    posduif: Posduif, server: PgServer, tenant: str, folder: Folder
) -> None:
    folder.put("1000_a.sql", "CREATE TABLE a (id int);")
    lock = f"SELECT pg_advisory_xact_lock({0x706F7364}, hashtext('{tenant}'))"
    with held(server, tenant, lock) as holder:
        pid = holder.info.backend_pid
        busy = posduif("migrate", "up", tenant, *folder.option, "-o", "json", code=10)
        assert f"pid {pid}" in busy.error["why"]
        assert "the holder" in busy.error["why"]
    assert "a" not in tables(server, tenant)


def test_a_record_that_was_lost_behind_is_mended_by_up(posduif: Posduif, server: PgServer, tenant: str) -> None:
    noted = record(server, tenant)
    stale = {**noted, "schema": "0001", "set": digest(["0001"])}
    server.sql(f"COMMENT ON DATABASE {tenant} IS 'posduif {json.dumps(stale)}'")
    [row] = posduif.json("migrate", "status", tenant, "--check", code=1)
    assert row["pending"] == len(MIGRATIONS) - 1
    assert [row["status"] for row in posduif.json("migrate", "up", tenant)] == ["unchanged"]
    assert record(server, tenant) == noted


# What a schema is, whatever its object numbers: relations, columns, constraints, indexes, triggers, functions.
FINGERPRINT = """
SELECT 'relation', relname::text, relkind::text, '' FROM pg_class
WHERE relnamespace = 'public'::regnamespace AND relkind <> 'i'
UNION ALL SELECT 'column', c.relname || '.' || a.attname,
       format_type(a.atttypid, a.atttypmod) || CASE WHEN a.attnotnull THEN ' not null' ELSE '' END,
       coalesce(pg_get_expr(d.adbin, d.adrelid), '')
FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid
LEFT JOIN pg_attrdef d ON (d.adrelid, d.adnum) = (c.oid, attnum)
WHERE c.relnamespace = 'public'::regnamespace AND c.relkind = 'r' AND a.attnum > 0 AND NOT a.attisdropped
UNION ALL SELECT 'constraint', conrelid::regclass || '.' || conname, contype::text, pg_get_constraintdef(oid)
FROM pg_constraint WHERE connamespace = 'public'::regnamespace
UNION ALL SELECT 'index', indexname::text, tablename::text, indexdef FROM pg_indexes WHERE schemaname = 'public'
UNION ALL SELECT 'trigger', tgname::text, tgrelid::regclass::text, pg_get_triggerdef(oid)
FROM pg_trigger WHERE NOT tgisinternal
UNION ALL SELECT 'function', oid::regprocedure::text, '', prosrc FROM pg_proc
WHERE pronamespace = 'public'::regnamespace
ORDER BY 1, 2, 3, 4
"""


def test_every_migration_goes_up_down_and_up_again(server: PgServer, name: str) -> None:
    server.sql(f"CREATE DATABASE {name} TEMPLATE template0")
    folders = Folders()
    with server.connect(name) as conn:

        def schema() -> list[Any]:
            return conn.execute(FINGERPRINT).fetchall()

        for file in files.of(folders).all:
            assert file.down is not None
            before = schema()
            conn.execute(file.up.text.encode())
            after = schema()
            assert after != before, file.name
            conn.execute(file.down.text.encode())
            assert schema() == before, f"the down of {file.version} leaves something behind"
            conn.execute(file.up.text.encode())
            assert schema() == after, f"{file.version} goes up differently the second time"
        for file in reversed(files.of(folders).all):
            assert file.down is not None
            conn.execute(file.down.text.encode())
        assert schema() == []


def test_the_grants_hold_at_every_step_and_twice(posduif: Posduif, server: PgServer, tenant: str) -> None:
    grants = (REPO / "sql" / "grants.sql").read_text()
    # What is not ours stays as it is, and does not stop us.
    server.sql(
        """CREATE TABLE foreign_hands (id int); GRANT SELECT ON foreign_hands TO PUBLIC;
           CREATE FUNCTION foreign_function() RETURNS int LANGUAGE sql AS 'SELECT 1'""",
        database=tenant,
    )
    acl = "SELECT relname, relacl::text FROM pg_class WHERE relnamespace = 'public'::regnamespace ORDER BY 1"
    with server.connect(tenant) as conn:
        conn.execute("SET ROLE posduif_admin")
        before = conn.execute(acl).fetchall()
        conn.execute(grants.encode())
        assert conn.execute(acl).fetchall() == before
        conn.execute("CREATE TABLE ours (id int)")
        conn.execute("GRANT ALL ON users TO PUBLIC")
        conn.execute(grants.encode())
        assert [row for row in conn.execute(acl).fetchall() if row[0] != "ours"] == before
        assert conn.execute("SELECT has_table_privilege(%s, 'ours', 'SELECT')", [f"{tenant}_engine"]).fetchone() == (
            False,
        )
        conn.execute("DROP TABLE messages, enrollment_tokens, sync_metadata, users")
        conn.execute(grants.encode())


def test_readers_are_not_held_up_while_migrations_are_listed(posduif: Posduif, server: PgServer, tenant: str) -> None:
    """`list` and `status` answer while a migration runs in another session."""
    with held(server, tenant, "CREATE TABLE coming (id int)", "LOCK TABLE users IN ACCESS EXCLUSIVE MODE"):
        done: list[dict[str, str]] = []
        thread = threading.Thread(
            target=lambda: done.append({row.version: row.state for row in read_history(server, tenant)})
        )
        thread.start()
        thread.join(10)
        assert done, "listing waits for a migration"
        assert set(done[0].values()) == {"applied"}
        [row] = posduif.json("migrate", "status", tenant)
        assert row["pending"] == 0


def read_history(server: PgServer, tenant: str) -> Any:
    with connect(Server("s", server.dsn), tenant, command="test") as conn:
        return history.read(conn, folders=Folders())


def test_versions_are_well_formed() -> None:
    assert all(re.fullmatch(r"\d{4}", path.name[:4]) for path in MIGRATIONS)
    assert digest(["b", "a"]) == digest(["a", "b"]) != digest(["a"])


def test_what_ctrl_c_meets_between_two_files_is_not_begun(server: PgServer, tenant: str, folder: Folder) -> None:
    folder.put("1000_one.sql", "CREATE TABLE one ();")
    folder.put("1001_two.sql", "CREATE TABLE two ();")
    known, here = Folders(further=(folder.path,)), Server("s", server.dsn)
    with connect(here, tenant, command="test", path="public") as conn:
        conn.cancel()  # from another thread it comes at any moment; nothing runs at this one
        with pytest.raises(Interrupted):
            apply.up(conn, folders=known)
    made = "SELECT to_regclass('one')::text, to_regclass('two')::text"
    assert server.sql(made, database=tenant) == [("one", None)]
    assert record(server, tenant)["schema"] == "1000"
    with connect(here, tenant, command="test", path="public") as conn:
        assert apply.up(conn, folders=known).versions == ("1001",)
    assert server.sql(made, database=tenant) == [("one", "two")]


def test_a_retry_may_prepare_again(posduif: Posduif, server: PgServer, tenant: str, folder: Folder) -> None:
    folder.put("1000_p.sql", "PREPARE p AS SELECT 1;\nALTER TABLE users ADD x int;")
    folder.put("1001_p.sql", "PREPARE p AS SELECT 1;\nALTER TABLE users ADD y int;")
    with held(server, tenant, "LOCK TABLE users IN ACCESS EXCLUSIVE MODE"):
        process = posduif.popen("migrate", "up", tenant, *folder.option)
        time.sleep(2)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert versions(server, tenant)[-2:] == ["1000", "1001"]


@pytest.mark.parametrize(
    ("sql", "sqlstate"),
    [("SET LOCAL transaction_read_only = on;\nCREATE TABLE t ();", "25006"), ("SELECT 1;\nSELECT 1 / 0;", "22012")],
)
def test_what_a_file_does_to_itself_is_its_own_failure(
    posduif: Posduif, server: PgServer, tenant: str, folder: Folder, sql: str, sqlstate: str
) -> None:
    folder.put("1000_self.sql", sql)
    failed = posduif("migrate", "up", tenant, *folder.option, "-o", "json", code=7).error
    assert "migration 1000_self.sql:3 failed" in failed["message"]
    assert sqlstate in failed["why"]
    assert record(server, tenant)["failed"]["sqlstate"] == sqlstate


def test_a_comment_that_someone_holds_hides_no_failure(
    posduif: Posduif, server: PgServer, tenant: str, folder: Folder
) -> None:
    folder.put("1000_bad.sql", "SELECT 1 / 0;")
    with server.connect() as holder:
        holder.execute("BEGIN")
        holder.execute(f"COMMENT ON DATABASE {tenant} IS 'x'".encode())
        process = posduif.popen("migrate", "up", tenant, *folder.option)
        _, err = process.communicate(timeout=60)
        holder.execute("ROLLBACK")
    assert process.returncode == 7
    assert "migration 1000_bad.sql:2 failed" in str(err)


@pytest.mark.parametrize(
    "hidden",
    [
        "CREATE FUNCTION swallow() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';"
        "CREATE TRIGGER swallow BEFORE INSERT ON schema_migrations FOR EACH ROW EXECUTE FUNCTION swallow()",
        "ALTER TABLE schema_migrations ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY",
    ],
)
def test_a_version_table_that_takes_or_shows_no_rows_is_no_ground_to_go_on(
    posduif: Posduif, server: PgServer, tenant: str, folder: Folder, hidden: str
) -> None:
    before = record(server, tenant)
    server.sql(f"SET ROLE posduif_admin; {hidden}", database=tenant)
    folder.put("1000_one.sql", "CREATE TABLE one ();")
    refused = posduif("migrate", "up", tenant, *folder.option, code=None)
    assert refused.code in (6, 7), refused
    assert "0001" not in refused.err
    assert server.sql("SELECT to_regclass('one')", database=tenant) == [(None,)]
    if "ROW LEVEL" in hidden:
        assert posduif("tenant", "verify", tenant, "--repair", code=None).code != 0
    assert record(server, tenant) == before


def test_a_password_in_a_file_that_fails_is_not_shown(posduif: Posduif, tenant: str, folder: Folder) -> None:
    folder.put("1000_role.sql", "ALTER ROLE no_such_role PASSWORD 'hunter2secret';")
    failed = posduif("migrate", "up", tenant, *folder.option, code=7)
    assert "hunter2" not in failed.out + failed.err


# --- faulty files

FAULTY = "-- migrate:up\nSELECT 'never ends;\n"


def test_a_faulty_file_fails_the_commands_that_would_run_it_and_no_others(
    posduif: Posduif, server: PgServer, tenant: str, folder: Folder
) -> None:
    bad = folder.raw("1001_bad.sql", FAULTY)
    place = f"{bad}:2: a string begins here and never ends"
    folder.put("1000_good.sql", "CREATE TABLE good ();")
    before = record(server, tenant)

    listed = posduif("migrate", "list", tenant, *folder.option, "-o", "tsv")
    assert place in listed.err
    rows = posduif.json("migrate", "list", tenant, *folder.option)
    assert {row["version"]: row["state"] for row in rows}["1001"] == "pending"
    assert {row["version"]: row["name"] for row in rows}["1001"] == "bad"
    findings = posduif.json("migrate", "verify", tenant, *folder.option, code=1)
    assert [finding["message"] for finding in findings if finding["level"] == "critical"] == [place]
    assert [finding["subject"] for finding in findings if finding["check"].startswith("files.")] == ["1001", tenant]
    for argv in (("up", tenant), ("up", tenant, "--dry-run")):
        refused = posduif("migrate", *argv, *folder.option, "-o", "json", code=3).error
        assert refused["message"] == place
    assert record(server, tenant) == before
    assert "good" not in tables(server, tenant)
    for argv in (("user", "list", tenant), ("token", "list", tenant), ("migrate", "status", tenant)):
        posduif(*argv, *folder.option)
    posduif("migrate", "down", tenant, "--steps", "1", "--bundled", "--dry-run", *folder.option)

    # What is applied here needs the file no more.
    server.sql("INSERT INTO schema_migrations (version) VALUES ('1000'), ('1001')", database=tenant)
    [done] = posduif.json("migrate", "up", tenant, *folder.option)
    assert (done["status"], done["to"]) == ("unchanged", "1001")
    folder.put("1002_next.sql", "CREATE TABLE next ();", "DROP TABLE next;")
    done_with_word = posduif("migrate", "up", tenant, *folder.option, "-o", "tsv")
    assert f"warning: {place}" in done_with_word.err
    assert "next" in tables(server, tenant)
    refused = posduif("migrate", "down", tenant, "--to", "1000", "--confirm", tenant, *folder.option, code=3)
    assert "next" in tables(server, tenant)
    assert place in refused.err


def test_a_new_tenant_waits_for_whole_files_before_anything_is_made(
    posduif: Posduif, server: PgServer, name: str, folder: Folder, tmp_path: Path
) -> None:
    bad = folder.raw("1000_bad.sql", FAULTY)
    entries = tmp_path / "names.csv"
    entries.write_text(f"name\n{name}\n")
    for argv in ((name,), (name, "--dry-run"), ("--from", str(entries))):
        refused = posduif("tenant", "create", *argv, *folder.option, "-o", "json", code=3).error
        assert str(bad) in refused["message"], argv
        found = server.sql(
            "SELECT 1 FROM pg_database WHERE datname = %s UNION ALL SELECT 1 FROM pg_roles WHERE rolname = %s",
            name,
            f"{name}_engine",
        )
        assert found == [], argv


def test_a_file_without_a_version_is_named_and_stops_only_what_is_pending(
    posduif: Posduif, tenant: str, folder: Folder
) -> None:
    folder.put("notes.sql", "SELECT 1;")
    assert "notes.sql: the name is not of the form" in posduif("migrate", "list", tenant, *folder.option).err
    assert posduif.json("migrate", "up", tenant, *folder.option)[0]["status"] == "unchanged"
    posduif("tenant", "list", *folder.option)
    folder.put("1000_t.sql", "CREATE TABLE t ();")
    assert "notes.sql" in posduif("migrate", "up", tenant, *folder.option, code=3).err


# --- down


def test_posduifs_own_migrations_are_not_taken_back_by_accident(
    posduif: Posduif, server: PgServer, tenant: str, folder: Folder
) -> None:
    folder.put("1000_t.sql", "CREATE TABLE t ();", "DROP TABLE t;")
    posduif("migrate", "up", tenant, *folder.option)
    had = versions(server, tenant)
    for far in (("--steps", "2"), ("--steps", "9"), ("--to", "0"), ("--to", "0001")):
        for more in (("--confirm", tenant), ("--dry-run",), ()):
            refused = posduif("migrate", "down", tenant, *far, *more, *folder.option, "-o", "json", code=9).error
            assert f"migration {LATEST} of {tenant} is posduif's own" in refused["message"]
            assert "--bundled" in refused["message"]
            assert versions(server, tenant) == had
    posduif("migrate", "down", tenant, "--steps", "1", "--confirm", tenant, *folder.option)
    assert versions(server, tenant) == had[:-1]


@pytest.mark.one_server
def test_the_question_counts_what_is_lost(posduif: Posduif, server: PgServer, tenant: str, folder: Folder) -> None:
    folder.put("1000_t.sql", "CREATE TABLE t (id int); CREATE TABLE u (id int);", "DROP TABLE t; TRUNCATE public.u;")
    folder.put("1001_c.sql", "ALTER TABLE t ADD c int;", "ALTER TABLE t DROP COLUMN c;")
    folder.put("1002_i.sql", "CREATE INDEX i ON t (id);", "DROP INDEX i;")
    posduif("migrate", "up", tenant, *folder.option)
    server.sql("INSERT INTO t SELECT generate_series(1, 5); INSERT INTO u VALUES (1)", database=tenant)
    server.sql("INSERT INTO users (username, user_type, device_id) VALUES ('ann', 'mobile', 'd1')", database=tenant)
    posduif("message", "send", tenant, "--from", "desk", "--to", "ann", "hello")
    posduif("token", "create", tenant)

    def asked(*far: str) -> str:
        refused = posduif("migrate", "down", tenant, *far, *folder.option, "-o", "json", code=9).error
        assert refused["try"][0].startswith(f"add --confirm {tenant}")
        return str(refused["message"]).partition("which loses ")[2]

    assert asked("--steps", "1") == "no rows"
    assert asked("--steps", "2") == "rows not counted: rows in 1001_c.sql"
    assert asked("--steps", "3") == "5 rows of t, 1 row of public.u; rows not counted: rows in 1001_c.sql"
    assert asked("--to", LATEST) == asked("--steps", "3")
    with_people = asked("--to", "0", "--bundled")
    assert with_people.startswith("2 users, 1 device, 1 message, 1 token, ")
    with held(server, tenant, "LOCK TABLE t"):
        assert (
            "rows of t"
            in posduif("migrate", "down", tenant, "--steps", "3", *folder.option, "-o", "json", code=9)
            .error["message"]
            .partition("not counted")[2]
        )
    dry = posduif("migrate", "down", tenant, "--steps", "3", "--dry-run", *folder.option, "-o", "tsv")
    assert "5 rows of t" in dry.err
    posduif("migrate", "down", tenant, "--to", "0", "--bundled", "--confirm", tenant, *folder.option)
    assert versions(server, tenant) == []


def test_the_way_out_of_a_changed_bundled_file_says_bundled(posduif: Posduif, server: PgServer, tenant: str) -> None:
    server.sql("UPDATE schema_migrations SET checksum = 'x' WHERE version = '0002'", database=tenant)
    refused = posduif("migrate", "up", tenant, "-o", "json", code=5).error
    assert refused["try"][2] == f"posduif migrate down {tenant} --to 0001 --bundled"


# --- behind and ahead


@pytest.fixture
def at_0002(posduif: Posduif, tenant: str) -> str:
    posduif("migrate", "down", tenant, "--to", "0002", "--bundled", "--confirm", tenant)
    return tenant


def test_a_tenant_that_is_behind_is_told_so_before_anything_is_sent(posduif: Posduif, at_0002: str) -> None:
    nobody = "00000000-0000-4000-8000-000000000000"
    for argv in (
        ("token", "create", at_0002),
        ("token", "list", at_0002),
        ("token", "show", at_0002, nobody),
        ("token", "revoke", at_0002, nobody),
        ("enroll", "complete", at_0002, nobody, "--device", "d1", "--username", "ann"),
        ("token", "purge", at_0002),
    ):
        error = posduif(*argv, "-o", "json", code=5).error
        assert error["message"] == f"tenant {at_0002} is at schema 0002, and this needs 0003", argv
        assert error["code"] == "schema_behind"
        assert error["try"] == [f"posduif migrate up {at_0002}"]
    posduif("user", "list", at_0002)
    posduif("migrate", "up", at_0002)
    posduif("token", "list", at_0002)


def test_a_tenant_with_own_migrations_is_behind_all_the_same(
    posduif: Posduif, tenant: str, folder: Folder, at_0002: str, server: PgServer
) -> None:
    """The normal case after an upgrade: its newest version is one of its own, and says nothing of the bundled ones."""
    server.sql("INSERT INTO schema_migrations (version) VALUES ('1000')", database=tenant)
    folder.put("1000_t.sql", "SELECT 1;")
    posduif("tenant", "verify", tenant, "--repair", *folder.option)
    [row] = posduif.json("migrate", "status", tenant, *folder.option)
    assert (row["schema_version"], row["pending"], row["ahead"]) == ("1000", len(MIGRATIONS) - 2, 0)
    for option in (folder.option, ()):  # on the desk's machine, too, which has not the folder
        error = posduif("token", "create", tenant, *option, "-o", "json", code=5).error
        assert error["message"] == f"tenant {tenant} is at schema 0002, and this needs 0003"


def test_a_tenant_at_no_schema_is_told_so_and_health_says_what_to_type(posduif: Posduif, tenant: str) -> None:
    posduif("migrate", "down", tenant, "--to", "0", "--bundled", "--confirm", tenant)
    error = posduif("user", "list", tenant, "-o", "json", code=5).error
    assert error["message"] == f"tenant {tenant} is at no schema, and this needs 0001"
    report = posduif.json("health", tenant, code=1)
    [found] = [finding for finding in report["findings"] if finding["level"] == "critical"]
    assert "at no schema" in found["message"]
    assert found["fix"] == f"posduif migrate up {tenant}"
    posduif("migrate", "up", tenant)
    posduif("user", "list", tenant)


def test_a_tenant_that_is_ahead_is_shown_so_and_commands_go_on(posduif: Posduif, tenant: str, folder: Folder) -> None:
    folder.put("20260101000000_a.sql", "CREATE TABLE a ();")
    folder.put("20260101000001_b.sql", "CREATE TABLE b ();")
    posduif("migrate", "up", tenant, *folder.option)
    [there] = posduif.json("migrate", "status", tenant, "--check", *folder.option)
    assert (there["pending"], there["ahead"]) == (0, 0)
    [here] = posduif.json("migrate", "status", tenant, "--check", code=1)
    assert (here["pending"], here["ahead"]) == (0, 2)
    assert posduif.json("tenant", "show", tenant)["ahead"] == 2
    assert tenant in posduif("migrate", "status", "--all", "-o", "table").out
    report = posduif.json("health", tenant, code=None)
    [finding] = [finding for finding in report["findings"] if finding["check"].startswith("schema.")]
    assert (finding["level"], finding["value"]) == ("warning", 2)
    assert "no file for 2 applied migrations" in finding["message"]
    posduif("token", "create", tenant)
    posduif("user", "list", tenant)
    assert posduif.json("migrate", "up", tenant)[0]["status"] == "unchanged"
    assert states(posduif, tenant)["20260101000000"] == "missing"


def test_a_record_that_promises_too_much_is_looked_into(posduif: Posduif, server: PgServer, tenant: str) -> None:
    server.sql("ALTER TABLE enrollment_tokens DROP COLUMN label", database=tenant)
    error = posduif("token", "list", tenant, "-o", "json", code=7).error
    assert error["try"] == [f"posduif tenant verify {tenant}"]


def test_hints_are_commands_or_text_and_never_both(
    posduif: Posduif, server: PgServer, tenant: str, folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(LIMITS, "blocked", timedelta(seconds=1))
    folder.put("1000_t.sql", "ALTER TABLE users ADD x int;")
    for table, command in (("users", "up"), ("schema_migrations", "up")):
        with held(server, tenant, f"LOCK TABLE {table}"):
            error = posduif("migrate", command, tenant, *folder.option, "-o", "json", code=10).error
        assert error["try"] == [f"posduif migrate up {tenant} --config {folder.config}"]
        assert "run the command again when that is done" in error["why"]


def test_health_names_the_line_of_a_failed_migration(posduif: Posduif, tenant: str, folder: Folder) -> None:
    folder.put("1000_t.sql", "SELECT 1;\nSELECT 1/0;")
    posduif("migrate", "up", tenant, *folder.option, code=7)
    report = posduif.json("health", tenant, *folder.option, code=1)
    [finding] = [finding for finding in report["findings"] if finding["check"].startswith("schema.")]
    assert "1000_t.sql:3" in finding["message"]
