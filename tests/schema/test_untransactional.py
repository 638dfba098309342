"""Files with `transaction:false`: every statement once, whatever is killed, left half done or still running."""

import json
import os
import signal
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import psycopg
import pytest

from posduif_cli.core.folders import Folders, digest
from posduif_cli.core.schema import apply
from posduif_cli.db import connect
from posduif_cli.models.servers import Server
from support.folder import Folder
from support.kills import killed
from support.runner import Posduif
from support.servers import PgServer
from support.tenants import record, tables, versions
from support.waiting import held, sleepers, until

UP = "-- migrate:up transaction:false\n"
WRITER = "LOCK TABLE users IN ROW EXCLUSIVE MODE"  # what a build of an index waits for
WORK = """CREATE TABLE {w} (id int, note text);
INSERT INTO {w} SELECT n, 'x' FROM generate_series(1, 10) n;
CREATE TYPE {w}_kind AS ENUM ('a');
CREATE INDEX CONCURRENTLY {w}_a ON {w} (id);
CREATE UNIQUE INDEX CONCURRENTLY IF NOT EXISTS {w}_b ON {w} (id);
CREATE INDEX {w}_c ON {w} (note);
DROP INDEX CONCURRENTLY {w}_c;
REINDEX INDEX CONCURRENTLY {w}_a;
VACUUM {w};
ALTER TYPE {w}_kind ADD VALUE 'b';
INSERT INTO {w} VALUES (11, 'last');
"""
UNDO = """DROP INDEX CONCURRENTLY {w}_a;
UPDATE {w} SET id = id + 100;
CREATE INDEX CONCURRENTLY {w}_d ON {w} (note);
DROP TYPE {w}_kind;
"""


def runner(server: PgServer, tenant: str, folder: Folder, deed: Callable[..., Any], **how: Any) -> Callable[[], Any]:
    def run() -> Any:
        with connect.connect(Server("s", server.dsn), tenant, command="killed") as conn:
            return deed(conn, folders=Folders((folder.path,)), **how)

    return run


def indexes(server: PgServer, tenant: str, table: str) -> dict[str, bool]:
    """The indexes of a table, and whether each is valid."""
    found = server.sql(
        "SELECT indexrelid::regclass::text, indisvalid FROM pg_index WHERE indrelid = to_regclass(%s)",
        table,
        database=tenant,
    )
    return dict(found)


def progress(server: PgServer, tenant: str) -> list[tuple[Any, ...]]:
    if "posduif_migration_progress" not in tables(server, tenant):
        return []
    return server.sql(
        "SELECT version, statement, done_at IS NOT NULL FROM posduif_migration_progress ORDER BY 1, 2",
        database=tenant,
    )


def assert_up(server: PgServer, tenant: str, version: str, w: str) -> None:
    rows = server.sql(f"SELECT count(*), count(DISTINCT id), max(id) FROM {w}", database=tenant)
    assert rows == [(11, 11, 11)]
    assert indexes(server, tenant, w) == {f"{w}_a": True, f"{w}_b": True}
    labels = server.sql("SELECT enumlabel::text FROM pg_enum WHERE enumtypid = %s::regtype ORDER BY enumsortorder",
                        f"{w}_kind", database=tenant)  # fmt: skip
    assert labels == [("a",), ("b",)]
    assert_noted(server, tenant)
    assert versions(server, tenant).count(version) == 1


def assert_noted(server: PgServer, tenant: str) -> None:
    done = versions(server, tenant)
    noted = record(server, tenant)
    assert (noted["schema"], noted["set"], "failed" in noted) == (max(done), digest(done), False)
    assert progress(server, tenant) == []


def kill_everywhere(
    server: PgServer,
    one: Callable[[int], tuple[Callable[[], Any], Callable[[], None], Callable[[], None]]],
) -> int:
    """Kill work before every call of SQL, and after each that could end a transaction; finish and judge it each time.

    *one* prepares the nth work: what to run and kill, what must hold after the kill, what finishes and judges it.
    """
    number, nth, reached = 0, 1, True
    while reached:
        name = ""
        for when in ("before", "after"):
            # On older servers the calls before are enough: what differs is PostgreSQL's part, not ours.
            if when == "after" and (name != "execute" or server.version < 16):
                continue
            number += 1
            work, half, whole = one(number)
            reached, name = killed(work, when, nth)
            half()
            try:
                whole()
            except AssertionError as error:
                raise AssertionError(f"killed {when} call {nth} of {name}") from error
        nth += 1
    return number


@pytest.mark.one_server
def test_a_file_killed_at_every_step_is_finished_with_each_statement_done_once(
    posduif: Posduif, server: PgServer, tenant: str, folder: Folder
) -> None:
    def one(number: int) -> tuple[Callable[[], Any], Callable[[], None], Callable[[], None]]:
        version, w = str(1000 + number), f"w{number}"
        file = folder.raw(f"{version}_work.sql", UP + WORK.format(w=w))
        up = runner(server, tenant, folder, apply.up)

        def half() -> None:
            if version in versions(server, tenant):
                assert_up(server, tenant, version, w)

        def whole() -> None:
            up()
            assert_up(server, tenant, version, w)
            file.unlink()

        return up, half, whole

    assert kill_everywhere(server, one) > 40


@pytest.mark.one_server
def test_a_down_section_killed_at_every_step_is_finished(
    posduif: Posduif, server: PgServer, tenant: str, folder: Folder
) -> None:
    file = "1000_work.sql"

    def one(number: int) -> tuple[Callable[[], Any], Callable[[], None], Callable[[], None]]:
        w = f"w{number}"
        text = UP + WORK.format(w=w) + "-- migrate:down transaction:false\n" + UNDO.format(w=w)
        folder.raw(file, text)
        posduif("migrate", "up", tenant, *folder.option)

        def half() -> None:
            if "1000" not in versions(server, tenant):
                assert f"{w}_d" in indexes(server, tenant, w)
                assert_noted(server, tenant)

        def whole() -> None:
            if "1000" in versions(server, tenant):
                posduif("migrate", "down", tenant, "--steps", "1", "--confirm", tenant, *folder.option)
            assert "1000" not in versions(server, tenant)
            assert_noted(server, tenant)
            assert indexes(server, tenant, w) == {f"{w}_b": True, f"{w}_d": True}
            assert server.sql(f"SELECT min(id), max(id) FROM {w}", database=tenant) == [(101, 111)]
            assert server.sql("SELECT 1 FROM pg_type WHERE typname = %s", f"{w}_kind", database=tenant) == []

        return runner(server, tenant, folder, apply.down, steps=1), half, whole

    assert kill_everywhere(server, one) > 20


def test_half_a_file_is_pending_for_everyone(posduif: Posduif, server: PgServer, tenant: str, folder: Folder) -> None:
    folder.raw("1000_half.sql", UP + "CREATE TABLE half (id int);\nSELECT 1/0;\n")
    failed = posduif("migrate", "up", tenant, *folder.option, "-o", "json", code=7)
    assert failed.json[0]["error"]["line"] == 3
    assert "half" in tables(server, tenant)
    assert "1000" not in versions(server, tenant)
    assert progress(server, tenant) == [("1000", 1, True)]
    assert record(server, tenant)["failed"]["line"] == 3
    [row] = posduif.json("migrate", "status", tenant, "--check", *folder.option, code=1)
    assert row["pending"] == 1
    [finding] = [
        f for f in posduif.json("migrate", "verify", tenant, *folder.option, code=1) if f["check"] == "migration.half"
    ]
    assert (finding["level"], finding["value"]) == ("warning", "1000")
    assert "applied by half, with 1 of its statements" in finding["message"]
    # What failed can be mended; what was run is history.
    folder.raw("1000_half.sql", UP + "CREATE TABLE half (id bigint);\nSELECT 1;\n")
    refused = posduif("migrate", "up", tenant, *folder.option, "-o", "json", code=5)
    assert refused.error["code"] == "checksum_differs"
    folder.raw("1000_half.sql", UP + "SELECT 1;\n")
    posduif("migrate", "up", tenant, *folder.option, code=5)
    assert progress(server, tenant) == [("1000", 1, True)]
    folder.raw("1000_half.sql", UP + "CREATE TABLE half (id int);\nINSERT INTO half VALUES (1);\n")
    posduif("migrate", "up", tenant, *folder.option)
    assert server.sql("SELECT count(*) FROM half", database=tenant) == [(1,)]
    assert_noted(server, tenant)


TWICE = "CREATE TABLE dup (id int);\nINSERT INTO dup VALUES (1), (1);"


@pytest.mark.parametrize("guard", ["", "IF NOT EXISTS "])
def test_an_invalid_index_is_built_again_and_never_accepted(
    posduif: Posduif, server: PgServer, tenant: str, folder: Folder, guard: str
) -> None:
    server.sql(f"SET ROLE posduif_admin; {TWICE}", database=tenant)
    folder.raw("1000_unique.sql", UP + f"SELECT 1;\nCREATE UNIQUE INDEX CONCURRENTLY {guard}dup_id ON dup (id);\n")
    for _ in range(2):
        failed = posduif("migrate", "up", tenant, *folder.option, "-o", "json", code=7)
        error = failed.json[0]["error"]
        assert (error["sqlstate"], error["file"], error["line"]) == ("23505", "1000_unique.sql", 3)
        assert indexes(server, tenant, "dup") == {"dup_id": False}
        assert "1000" not in versions(server, tenant)
    server.sql("DELETE FROM dup; INSERT INTO dup VALUES (1)", database=tenant)
    said = posduif("migrate", "up", tenant, *folder.option).err
    assert "dup_id" in said
    assert indexes(server, tenant, "dup") == {"dup_id": True}
    with pytest.raises(psycopg.errors.UniqueViolation):
        server.sql("INSERT INTO dup VALUES (1)", database=tenant)
    assert_noted(server, tenant)


def test_what_someone_else_made_or_removed_does_not_pass_for_our_work(
    posduif: Posduif, server: PgServer, tenant: str, folder: Folder
) -> None:
    server.sql(
        "SET ROLE posduif_admin; CREATE TABLE t (id int, other int); CREATE INDEX t_id ON t (other)", database=tenant
    )
    for sql, sqlstate in (
        ("CREATE INDEX CONCURRENTLY t_id ON t (id);", "42P07"),
        ("DROP INDEX CONCURRENTLY nowhere;", "42704"),
    ):
        folder.raw("1000_x.sql", UP + sql)
        for _ in range(2):
            failed = posduif("migrate", "up", tenant, *folder.option, "-o", "json", code=7)
            assert failed.json[0]["error"]["sqlstate"] == sqlstate
        assert "1000" not in versions(server, tenant)
    folder.raw("1000_x.sql", UP + "CREATE INDEX CONCURRENTLY IF NOT EXISTS t_id ON t (other);")
    posduif("migrate", "up", tenant, *folder.option)
    assert_noted(server, tenant)


@pytest.mark.parametrize(
    "sql", ["ALTER SYSTEM SET work_mem = '64MB'", "CREATE DATABASE never", "DROP DATABASE never", "DISCARD ALL"]
)
@pytest.mark.one_server
def test_a_statement_that_cannot_be_judged_is_refused_before_any_is_run(
    posduif: Posduif, server: PgServer, tenant: str, folder: Folder, sql: str
) -> None:
    folder.raw("1000_x.sql", UP + f"CREATE TABLE never (id int);\n\n{sql};\n")
    failed = posduif("migrate", "up", tenant, *folder.option, "-o", "json", code=7)
    assert "1000_x.sql:4" in failed.error["message"]
    assert "nobody could tell" in failed.error["why"]
    assert "never" not in tables(server, tenant)
    assert server.sql("SELECT 1 FROM pg_database WHERE datname = 'never'") == []
    assert versions(server, tenant)[-1] < "1000"


def builders(server: PgServer, tenant: str, words: str = "CREATE INDEX CONCURRENTLY") -> list[int]:
    found = server.sql(
        """SELECT pid FROM pg_stat_activity
           WHERE datname = %s AND query LIKE %s AND wait_event_type = 'Lock' AND state = 'active'""",
        tenant,
        f"%{words}%",
    )
    return [pid for (pid,) in found]


def watchers(server: PgServer, tenant: str) -> list[Any]:
    """Sessions of posduif that judge an index by who is building it."""
    return server.sql(
        """SELECT pid FROM pg_stat_activity WHERE datname = %s AND application_name LIKE 'posduif %%'
           AND query LIKE '%%pg_stat_progress_create_index%%'""",
        tenant,
    )


def test_an_idle_transaction_is_named_and_waited_for(
    posduif: Posduif, server: PgServer, tenant: str, folder: Folder
) -> None:
    folder.raw("1000_i.sql", UP + "CREATE INDEX CONCURRENTLY users_i ON users (username, user_type);\n")
    # Unlike a writer it is waited for at the very end of the build.
    reader = ("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ", "SELECT count(*) FROM users")
    with held(server, tenant, *reader) as holder:
        pid = holder.info.backend_pid
        process = posduif.popen("migrate", "up", tenant, *folder.option)
        until(lambda: builders(server, tenant), "the build waits")
        time.sleep(0.8)  # longer than the lock_timeout of 300 ms, which must not end it
        assert process.poll() is None
    _, err = process.communicate(timeout=30)
    assert process.returncode == 0, err
    assert f"pid {pid} (postgres, the holder)" in err.decode()
    assert indexes(server, tenant, "users")["users_i"] is True
    assert all(indexes(server, tenant, "users").values())
    assert_noted(server, tenant)


def test_a_killed_client_s_build_leaves_a_wreck_that_is_built_again(
    posduif: Posduif, server: PgServer, tenant: str, folder: Folder
) -> None:
    folder.raw("1000_i.sql", UP + "CREATE INDEX CONCURRENTLY users_i ON users (username, user_type);\n")
    with held(server, tenant, WRITER):
        process = posduif.popen("migrate", "up", tenant, *folder.option)
        until(lambda: builders(server, tenant), "the build waits")
        [pid] = builders(server, tenant)
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        until(lambda: not server.sql("SELECT 1 FROM pg_stat_activity WHERE pid = %s", pid), "the orphan ends")
    assert indexes(server, tenant, "users")["users_i"] is False
    posduif("migrate", "up", tenant, *folder.option)
    assert indexes(server, tenant, "users")["users_i"] is True
    assert_noted(server, tenant)


@pytest.mark.parametrize(("begun", "guard", "code"), [(True, "", 0), (False, "IF NOT EXISTS ", 0), (False, "", 7)])
@pytest.mark.parametrize("login", ["postgres", "other"])
def test_a_build_in_an_orphan_is_waited_for_never_dropped(
    posduif: Posduif, server: PgServer, tenant: str, folder: Folder, begun: bool, guard: str, code: int, login: str
) -> None:
    sql = f"CREATE INDEX CONCURRENTLY {guard}users_i ON users (username, user_type)"
    folder.raw("1000_i.sql", UP + sql + ";\n")
    if begun:
        nth = 1
        while progress(server, tenant) != [("1000", 1, False)]:
            assert killed(runner(server, tenant, folder, apply.up), "after", nth)[0]
            nth += 1
    other = f"{tenant}_admin"
    if login == "other":
        server.sql(f"CREATE ROLE {other} LOGIN IN ROLE posduif_admin")

    def orphan() -> None:
        user = {"user": other} if login == "other" else {}
        server.sql(sql, database=tenant, **user)

    try:
        thread = threading.Thread(target=orphan)
        with held(server, tenant, WRITER):
            thread.start()
            until(lambda: builders(server, tenant), "the orphan waits")
            [(made,)] = server.sql("SELECT 'users_i'::regclass::oid", database=tenant)
            process = posduif.popen("migrate", "up", tenant, *folder.option)
            until(lambda: watchers(server, tenant), "posduif looks at the build")
            time.sleep(0.3)
            assert process.poll() is None, process.communicate()
            assert indexes(server, tenant, "users")["users_i"] is False
        _, err = process.communicate(timeout=30)
        thread.join(30)
        assert process.returncode == code, err
        assert b"waiting" in err
        assert server.sql("SELECT 'users_i'::regclass::oid", database=tenant) == [(made,)], "it was built anew"
        assert indexes(server, tenant, "users")["users_i"] is True
        if code == 0:
            assert_noted(server, tenant)
    finally:
        if login == "other":
            server.sql(f"REASSIGN OWNED BY {other} TO posduif_admin", database=tenant)
            server.sql(f"DROP ROLE {other}")


def test_wrecks_of_reindex_are_cleared_away_and_a_running_one_is_not(
    posduif: Posduif, server: PgServer, tenant: str, folder: Folder
) -> None:
    folder.raw("1000_r.sql", UP + "REINDEX TABLE CONCURRENTLY users;\n")
    before = indexes(server, tenant, "users")
    with held(server, tenant, WRITER):
        process = posduif.popen("migrate", "up", tenant, *folder.option)
        until(lambda: builders(server, tenant, "REINDEX"), "the reindex waits")
        [pid] = builders(server, tenant, "REINDEX")
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        until(lambda: not server.sql("SELECT 1 FROM pg_stat_activity WHERE pid = %s", pid), "the orphan ends")
    wrecks = {name for name, valid in indexes(server, tenant, "users").items() if not valid}
    assert wrecks
    thread = threading.Thread(target=lambda: server.sql("REINDEX TABLE CONCURRENTLY users", database=tenant))
    with held(server, tenant, WRITER):
        thread.start()
        until(lambda: builders(server, tenant, "REINDEX"), "the other reindex waits")
        process = posduif.popen("migrate", "up", tenant, *folder.option)
        until(lambda: watchers(server, tenant), "posduif looks at the build")
        time.sleep(0.3)
        assert process.poll() is None, process.communicate()
    _, err = process.communicate(timeout=30)
    thread.join(30)
    assert process.returncode == 0, err
    assert indexes(server, tenant, "users") == before
    assert_noted(server, tenant)


def test_two_runners_at_once_do_everything_once(
    posduif: Posduif, server: PgServer, tenant: str, folder: Folder
) -> None:
    folder.raw("1000_work.sql", UP + WORK.format(w="w") + "SELECT pg_sleep(0.5);\n")
    runs = [posduif.popen("migrate", "up", tenant, *folder.option, "-o", "json") for _ in range(2)]
    ends = [(run.communicate(timeout=60)[0], run.returncode) for run in runs]
    assert sorted(json.loads(out)[0]["status"] for out, _ in ends) == ["ok", "unchanged"], ends
    assert_up(server, tenant, "1000", "w")


def test_a_lock_is_tried_again_and_slowness_ends(
    posduif: Posduif, server: PgServer, tenant: str, folder: Folder
) -> None:
    folder.raw("1000_l.sql", UP + "CREATE TABLE first (id int);\nALTER TABLE users ADD COLUMN extra text;\n")
    with held(server, tenant, "LOCK TABLE users IN ACCESS EXCLUSIVE MODE"):
        process = posduif.popen("migrate", "up", tenant, *folder.option)
        until(lambda: progress(server, tenant) == [("1000", 1, True)], "the first statement is done")
        time.sleep(1)
        assert process.poll() is None, "lock_timeout is 300 ms, and it is tried again"
    _, err = process.communicate(timeout=30)
    assert process.returncode == 0, err
    assert_noted(server, tenant)

    folder.config.write_text(f"migrations: {{paths: ['{folder.path}'], statement_timeout: 100ms}}\n")
    folder.raw("1001_s.sql", UP + "SELECT 1;\nSELECT pg_sleep(20);\n")
    failed = posduif("migrate", "up", tenant, *folder.option, "-o", "json", code=7)
    assert (failed.json[0]["error"]["sqlstate"], failed.json[0]["error"]["line"]) == ("57014", 3)
    assert sleepers(server, tenant) == []
    folder.raw("1001_s.sql", UP + "SELECT 1;\nCREATE INDEX CONCURRENTLY users_i ON users (username, user_type);\n")
    with held(server, tenant, WRITER):
        started = time.monotonic()
        failed = posduif("migrate", "up", tenant, *folder.option, "-o", "json", code=7)
        assert 1 < time.monotonic() - started < 60
    assert (failed.json[0]["error"]["sqlstate"], failed.json[0]["error"]["line"]) == ("57014", 3)
    assert indexes(server, tenant, "users")["users_i"] is False
    posduif("migrate", "up", tenant, *folder.option)
    assert indexes(server, tenant, "users")["users_i"] is True
    assert_noted(server, tenant)


def test_what_a_statement_does_to_its_session_does_not_lead_the_next_astray(
    posduif: Posduif, server: PgServer, tenant: str, folder: Folder
) -> None:
    folder.raw(
        "1000_leak.sql",
        UP
        + """CREATE SCHEMA aside;
CREATE TABLE aside.users (username text);
SELECT pg_catalog.set_config('search_path', 'aside', false);
SELECT pg_catalog.set_config('lock_timeout', '100ms', false);
SELECT pg_catalog.set_config('role', 'none', false);
CREATE INDEX CONCURRENTLY users_i ON users (username);
""",
    )
    with held(server, tenant, WRITER):
        process = posduif.popen("migrate", "up", tenant, *folder.option)
        until(lambda: builders(server, tenant), "the build waits")
        time.sleep(0.5)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 0, err
    assert indexes(server, tenant, "users")["users_i"] is True
    assert indexes(server, tenant, "aside.users") == {}
    assert_noted(server, tenant)


def test_half_a_file_is_finished_before_anything_is_taken_back(
    posduif: Posduif, server: PgServer, tenant: str, folder: Folder
) -> None:
    folder.put("1000_t.sql", "CREATE TABLE t (id int, b int);", "DROP TABLE t;")
    file = folder.raw(
        "1001_i.sql", UP + "CREATE INDEX CONCURRENTLY i1 ON t (id);\nCREATE INDEX CONCURRENTLY i2 ON t (c);"
    )
    posduif("migrate", "up", tenant, *folder.option, code=7)
    down = ("migrate", "down", tenant, "--steps", "1", "--confirm", tenant, *folder.option)
    refused = posduif(*down, "-o", "json", code=5).error
    assert refused["message"] == f"migration 1001 of {tenant} is applied by half"
    assert refused["try"][1].startswith(f"posduif migrate up {tenant}")
    file.write_text(file.read_text().replace("(c)", "(b)"))
    posduif("migrate", "up", tenant, *folder.option)
    assert indexes(server, tenant, "t") == {"i1": True, "i2": True}


def test_half_a_file_that_is_being_taken_back_is_not_called_up_to_date(
    posduif: Posduif, server: PgServer, tenant: str, folder: Folder
) -> None:
    down = "-- migrate:down transaction:false\nDROP TABLE u1;\nDROP TABLE {};\n"
    file = folder.raw("1000_u.sql", "-- migrate:up\nCREATE TABLE u1 (); CREATE TABLE u2 ();\n" + down.format("nosuch"))
    posduif("migrate", "up", tenant, *folder.option)
    back = ("migrate", "down", tenant, "--steps", "1", "--confirm", tenant, *folder.option)
    failed = posduif(*back, "-o", "json", code=7).error
    assert failed["try"][1].startswith(f"posduif migrate down {tenant} --steps 1")
    folder.put("1001_more.sql", "CREATE TABLE more ();")
    for argv in ((tenant,), (tenant, "--failed")):
        refused = posduif("migrate", "up", *argv, *folder.option, "-o", "json", code=5).error
        assert refused["message"] == f"migration 1000 of {tenant} is taken back by half"
    [finding] = [
        f for f in posduif.json("migrate", "verify", tenant, *folder.option, code=1) if f["check"] == "migration.half"
    ]
    assert finding["fix"].startswith(f"posduif migrate down {tenant} --steps 1 --config ")
    text = file.read_text()
    file.write_text(text.replace("nosuch", "u2"))
    posduif(*back)
    posduif("migrate", "up", tenant, *folder.option)
    assert {"u1", "u2", "more"} <= set(tables(server, tenant))


def test_what_a_file_sets_is_set_again_after_a_kill(
    posduif: Posduif, server: PgServer, tenant: str, folder: Folder
) -> None:
    folder.raw(
        "1000_s.sql",
        UP + "CREATE TABLE cfg (v text);\nSET my.tenant_class = 'gold';\nSELECT pg_sleep(2);\n"
        "INSERT INTO cfg VALUES (coalesce(current_setting('my.tenant_class', true), 'none'));\n",
    )
    process = posduif.popen("migrate", "up", tenant, *folder.option)
    until(lambda: sleepers(server, tenant), "it sleeps")
    process.kill()
    process.communicate()
    posduif("migrate", "up", tenant, *folder.option)
    assert server.sql("SELECT v FROM cfg", database=tenant) == [("gold",)]


def half(posduif: Posduif, tenant: str, folder: Folder) -> Any:
    file = folder.raw("1000_half.sql", UP + "CREATE TABLE half (id int);\nSELECT 1/0;\n")
    posduif("migrate", "up", tenant, *folder.option, code=7)
    return file


def state_of(posduif: Posduif, tenant: str, version: str, folder: Folder) -> str | None:
    rows = posduif.json("migrate", "list", tenant, *folder.option)
    return next((row["state"] for row in rows if row["version"] == version), None)


def test_half_a_file_is_half_and_can_be_finished(
    posduif: Posduif, server: PgServer, tenant: str, folder: Folder
) -> None:
    file = half(posduif, tenant, folder)
    assert state_of(posduif, tenant, "1000", folder) == "half"
    [found] = [
        f for f in posduif.json("tenant", "verify", tenant, *folder.option, code=1) if f["check"] == "migration.half"
    ]
    assert found["fix"].startswith(f"posduif migrate up {tenant} --config ")
    plan = posduif.json("migrate", "up", tenant, "--dry-run", *folder.option)
    assert [step["subject"] for step in plan["steps"]] == ["1000_half"]
    file.write_text(file.read_text().replace("1/0", "1"))
    posduif("migrate", "up", tenant, *folder.option)
    assert state_of(posduif, tenant, "1000", folder) == "applied"


@pytest.mark.parametrize("gone", [False, True])
def test_half_a_file_can_be_abandoned(
    posduif: Posduif, server: PgServer, tenant: str, folder: Folder, gone: bool
) -> None:
    file = half(posduif, tenant, folder)
    again = ("migrate", "abandon", tenant, "1000", *folder.option)
    if gone:
        file.unlink()
        assert state_of(posduif, tenant, "1000", folder) == "half"
        # It is not "unchanged", as if nothing were the matter, and what is advised helps.
        folder.put("1001_later.sql", "CREATE TABLE later ();")
        for argv in (("up", tenant), ("up", tenant, "--dry-run"), ("down", tenant, "--steps", "1", "--bundled")):
            if argv[0] == "up":
                error = posduif("migrate", *argv, *folder.option, "-o", "json", code=5).error
                assert "its file is gone" in error["why"]
                assert error["try"][-1].startswith(f"posduif migrate abandon {tenant} 1000 --confirm {tenant}")
        for command in (("migrate", "verify"), ("tenant", "verify")):
            found = [
                f for f in posduif.json(*command, tenant, *folder.option, code=1) if f["check"] == "migration.half"
            ]
            assert [f["fix"].partition(" --config ")[0] for f in found if "half" in f["message"]] == [
                f"posduif migrate abandon {tenant} 1000 --confirm {tenant}"
            ]
    refused = posduif(*again, "-o", "json", code=9).error
    assert "statement 1" in refused["message"]
    assert ("CREATE TABLE half" in refused["message"]) is not gone
    posduif("migrate", "abandon", tenant, "1000", "--confirm", "other", *folder.option, code=9)
    posduif("migrate", "abandon", tenant, "1001", "--confirm", tenant, *folder.option, code=4)
    plan = posduif.json(*again, "--dry-run")
    assert [step["action"] for step in plan["steps"]] == ["abandon"]
    assert progress(server, tenant) == [("1000", 1, True)]
    assert posduif.json(*again, "--confirm", tenant)["changed"] is True
    assert progress(server, tenant) == []
    assert "half" in tables(server, tenant), "nothing of the file is run, and nothing undone"
    assert "failed" not in record(server, tenant)
    assert state_of(posduif, tenant, "1000", folder) == (None if gone else "pending")
    assert posduif.json(*again, "--confirm", tenant)["changed"] is False
    posduif("tenant", "verify", tenant, *folder.option)
    if gone:
        posduif("migrate", "up", tenant, *folder.option)
        assert "later" in tables(server, tenant)


@pytest.mark.one_server
def test_abandoning_waits_for_who_works_on_the_tenant(
    posduif: Posduif, server: PgServer, tenant: str, folder: Folder
) -> None:
    file = half(posduif, tenant, folder)
    file.write_text(file.read_text().replace("1/0", "pg_sleep(20)"))
    process = posduif.popen("migrate", "up", tenant, *folder.option)
    try:
        until(lambda: sleepers(server, tenant), "it sleeps")
        posduif("migrate", "abandon", tenant, "1000", "--confirm", tenant, *folder.option, code=10)
    finally:
        process.kill()
        process.communicate()
    assert progress(server, tenant) == [("1000", 1, True)]


def test_the_session_s_own_time_limits_are_back_after_a_statement_outside_a_transaction(
    posduif: Posduif, server: PgServer, tenant: str, folder: Folder
) -> None:
    folder.raw(
        "1000_limits.sql",
        UP + "CREATE TABLE w (id int);\nCREATE INDEX CONCURRENTLY w_a ON w (id);\n",
    )
    with connect.connect(Server("s", server.dsn), tenant, command="test", path="public") as conn:
        conn.limit(lock_timeout=timedelta(seconds=7), statement_timeout=timedelta(seconds=77))
        apply.up(conn, folders=Folders((folder.path,)))
        limits = conn.tuples("SELECT current_setting('lock_timeout'), current_setting('statement_timeout')")
        assert limits == [("7s", "77s")]


def test_a_statement_outside_a_transaction_waits_without_a_lock_timeout(
    posduif: Posduif, server: PgServer, tenant: str, folder: Folder
) -> None:
    """A lock_timeout there would leave an invalid index: the session's is 1 s, the lock is held for 3."""
    folder.put("1000_w.sql", "CREATE TABLE w (id int);")
    posduif("migrate", "up", tenant, *folder.option)
    folder.raw("1001_i.sql", UP + "CREATE INDEX CONCURRENTLY w_a ON w (id);\n")
    with held(server, tenant, "LOCK TABLE w IN ROW EXCLUSIVE MODE"):
        process = posduif.popen("migrate", "up", tenant, *folder.option, PGOPTIONS="-c lock_timeout=1000")
        until(lambda: "w_a" in indexes(server, tenant, "w"), "it builds", 60)
        time.sleep(3)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, (out, err)
    assert indexes(server, tenant, "w") == {"w_a": True}
