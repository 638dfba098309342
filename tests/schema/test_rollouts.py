"""Rollouts over many tenants on a real server of their own: raced, killed, locked, full, restarted, interrupted."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql

from posduif_cli.core.fleet import fleet
from posduif_cli.core.fleet.run import causes
from posduif_cli.core.folders import digest
from posduif_cli.core.schema import grants
from posduif_cli.db import connect, embedded
from posduif_cli.db.patience import LIMITS
from posduif_cli.db.session import LOCK_CLASS, Session
from posduif_cli.errors import MigrationFailed
from posduif_cli.models.servers import Server
from support.folder import Folder
from support.kills import kill
from support.outcomes import statuses
from support.runner import Posduif
from support.servers import PgServer, dump, private, start
from support.sources import BUNDLED, LATEST
from support.tenants import note, record
from support.terminal import on_terminal, standing
from support.waiting import held, sessions, until

CONNECTIONS = 40
SETTINGS: dict[str, Any] = {
    "max_connections": str(CONNECTIONS),
    "shared_buffers": "32MB",
    "autovacuum": "off",
    "restart_after_crash": "on",
}
Make = Callable[..., list[str]]


@pytest.fixture(scope="module")
def ground() -> Iterator[PgServer]:
    """A server with the closed database `pristine`: a tenant as posduif makes it, and a table that counts runs."""
    with private(**SETTINGS) as server:
        environ = {k: v for k, v in os.environ.items() if not k.startswith(("POSDUIF_", "PG", "XDG_"))}
        subprocess.run(
            [sys.executable, "-m", "posduif_cli", "tenant", "create", "source", "--web-user", "desk"],
            env={**environ, "POSDUIF_DSN": server.dsn, "HOME": str(_data_dir(server).parent)},
            check=True,
            capture_output=True,
        )
        server.sql("CREATE DATABASE pristine OWNER posduif_admin TEMPLATE source")
        server.sql("SET ROLE posduif_admin; CREATE TABLE public.runs (version text)", database="pristine")
        [(comment,)] = server.sql(
            "SELECT shobj_description(oid, 'pg_database') FROM pg_database WHERE datname = 'source'"
        )
        with server.connect() as conn:
            conn.execute(sql.SQL("COMMENT ON DATABASE pristine IS {}").format(sql.Literal(comment)))
        server.sql("ALTER DATABASE pristine OWNER TO postgres")  # so that it is no tenant
        server.sql("DROP DATABASE source")
        server.sql("DROP ROLE source_engine")
        server.sql("CREATE ROLE alice LOGIN NOSUPERUSER; GRANT posduif_admin TO alice")
        yield server


def clone(server: PgServer, *names: str) -> None:
    """Make tenants as `tenant create` leaves them, within milliseconds each."""
    with server.connect() as conn:
        for name in names:
            role = f"{name}_engine"
            [comment] = conn.execute(
                "SELECT shobj_description(oid, 'pg_database') FROM pg_database WHERE datname = 'pristine'"
            ).fetchone() or [None]
            intent = "posduif " + json.dumps({"v": 1, "tenant": name, "state": "active", "nonce": 7})
            for statement in (
                f"CREATE ROLE {role} LOGIN",
                f"GRANT posduif_engine TO {role}",
                f"GRANT {role} TO posduif_admin WITH INHERIT TRUE, SET FALSE",
                f"COMMENT ON ROLE {role} IS '{intent}'",
                f"CREATE DATABASE {name} OWNER posduif_admin TEMPLATE pristine STRATEGY FILE_COPY",
                f"REVOKE ALL ON DATABASE {name} FROM PUBLIC",
                f"GRANT CONNECT ON DATABASE {name} TO {role}, posduif_support, posduif_health, posduif_cron, "
                "posduif_backup",
                f"ALTER DATABASE {name} SET timezone = 'UTC'",
                f"COMMENT ON DATABASE {name} IS '{comment}'",
            ):
                conn.execute(statement.encode())


def remove(server: PgServer, *names: str) -> None:
    with server.connect() as conn:
        for name in names:
            conn.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)".encode())
            conn.execute(f"DROP ROLE IF EXISTS {name}_engine".encode())


@pytest.fixture
def many(ground: PgServer) -> Iterator[Make]:
    """Makes tenants a00, a01 ... on the module's server; the server has no others, and none afterwards."""
    embedded.start(_data_dir(ground), settings={"fsync": "off", "full_page_writes": "off", **SETTINGS})

    def make(count: int, first: int = 0) -> list[str]:
        names = [f"a{number:02}" for number in range(first, first + count)]
        clone(ground, *names)
        return names

    yield make
    found = ground.sql(r"SELECT datname::text FROM pg_database WHERE datname ~ '^a\d+$'")
    roles = ground.sql(r"SELECT split_part(rolname, '_', 1) FROM pg_roles WHERE rolname ~ '^a\d+_engine$'")
    remove(ground, *{name for (name,) in [*found, *roles]})


def _data_dir(server: PgServer) -> Path:
    assert server.data_dir is not None
    return server.data_dir


@pytest.fixture
def posduif(ground: PgServer, run_on: Callable[[PgServer], Posduif]) -> Posduif:
    return run_on(ground)


# One statement, so one snapshot: the table, the version row, the row of `runs`, and the record.
LOOK = """
SELECT (SELECT count(*) FROM pg_catalog.pg_class WHERE relname = 't' || v),
       (SELECT count(*) FROM public.schema_migrations WHERE version = v),
       (SELECT count(*) FROM public.runs WHERE version = v),
       (SELECT array_agg(version ORDER BY version) FROM public.schema_migrations),
       (SELECT description FROM pg_catalog.pg_shdescription s JOIN pg_catalog.pg_database d ON d.oid = s.objoid
        WHERE s.classoid = 'pg_database'::regclass AND d.datname = current_database())
FROM (SELECT %s) AS asked (v)
"""


def has(server: PgServer, tenant: str, version: str) -> bool:
    """Whether a tenant has a migration; asserts that it has all of it exactly once, or nothing."""
    [(table, row, runs, versions, comment)] = server.sql(LOOK, version, database=tenant)
    assert table == row == runs, (tenant, version, table, row, runs)
    noted = json.loads(comment.removeprefix("posduif "))
    assert (noted["schema"], noted["set"]) == (max(versions), digest(versions)), (tenant, noted, versions)
    return bool(row)


def having(server: PgServer, tenants: Sequence[str], version: str) -> list[str]:
    return [tenant for tenant in tenants if has(server, tenant, version)]


def workers(server: PgServer, condition: str = "true") -> list[int]:
    """Sessions of posduif in tenants' databases."""
    return sessions(server, f"datname <> 'postgres' AND {condition}")


def impatient(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    for name in ("server", "blocked"):
        monkeypatch.setitem(LIMITS, name, timedelta(seconds=seconds))


def ended(process: "subprocess.Popen[bytes]", timeout: float = 60) -> tuple[int, str, str]:
    try:
        out, err = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        out, err = process.communicate()
        raise AssertionError((out, err)) from None
    return process.returncode, out.decode(), err.decode()


LOCK_USERS = "LOCK TABLE users IN ACCESS EXCLUSIVE MODE"


# --- whom it visits, and what it says


def test_all_visits_those_who_are_behind_and_nobody_else(
    posduif: Posduif, ground: PgServer, many: Make, folder: Folder
) -> None:
    names = many(5)
    folder.counted("1000")
    posduif("migrate", "up", *names[:3], *folder.option)
    note(ground, names[4], state="suspended")
    visits = "SELECT datname::text, sessions FROM pg_stat_database WHERE datname ~ '^a\\d'"
    ground.sql("SELECT pg_stat_force_next_flush()")
    time.sleep(0.1)  # a session counts when it ends
    before = dict(ground.sql(visits))
    done = posduif("migrate", "up", "--all", "--list", *folder.option, "-o", "json")
    until(lambda: dict(ground.sql(visits))[names[3]] == before[names[3]] + 1, "the visit is counted")
    after = dict(ground.sql(visits))
    assert {name for name in names if after[name] != before[name]} == {names[3]}
    expected = dict.fromkeys(names[:3], "unchanged") | {names[3]: "ok", names[4]: "skipped"}
    assert statuses(done.json) == expected
    by_name = {row["tenant"]: row for row in done.json}
    ok = by_name[names[3]]
    assert (ok["changed"], ok["from"], ok["to"], ok["error"]) == (True, LATEST, "1000", None)
    assert 0 < ok["seconds"] < 60
    assert "suspended" in by_name[names[4]]["error"]["message"]
    assert done.err == "", "with JSON stderr holds nothing but an error"
    assert having(ground, names, "1000") == names[:4]
    assert record(ground, names[4])["state"] == "suspended"

    again = posduif("migrate", "up", "--all", *folder.option, "-o", "tsv")
    lines = [line.split("\t") for line in again.out.splitlines()]
    assert [line[0] for line in lines] == ["tenant", names[4]], "only who changed, failed or was skipped"
    assert "4 unchanged, 1 skipped; servers: " in again.err
    quiet = posduif("migrate", "up", "--all", "--list", "-q", *folder.option)
    assert (quiet.err, len(quiet.out.splitlines())) == ("", 6)


def test_an_empty_fleet_is_no_failure(posduif: Posduif, many: Make, folder: Folder) -> None:
    assert many(0) == []
    folder.counted("1000")
    done = posduif("migrate", "up", "--all", *folder.option, "-o", "json")
    assert (done.json, done.err) == ([], "")
    assert "nothing to do" in posduif("migrate", "up", "--all", *folder.option).err
    assert "nothing to take back" in posduif("migrate", "down", "--all", "--steps", "1", *folder.option).err
    posduif("migrate", "up", *folder.option, code=2)
    posduif("migrate", "up", "--all", "acme", *folder.option, code=2)


def test_one_tenants_failure_is_an_outcome_and_causes_are_grouped(
    posduif: Posduif, ground: PgServer, many: Make, folder: Folder
) -> None:
    names = many(6)
    folder.counted("1000")
    file = folder.counted(
        "1001", more="CREATE TABLE taken (id int);\nINSERT INTO users (username, user_type)\n  SELECT v, 'x' FROM bad;"
    )
    file.write_text(
        file.read_text().replace("-- migrate:up\n", "-- migrate:up\nCREATE TABLE IF NOT EXISTS bad (v text);\n")
    )
    for name in names[:2]:
        ground.sql("SET ROLE posduif_admin; CREATE TABLE taken (id int)", database=name)
    ground.sql(
        "SET ROLE posduif_admin; CREATE TABLE bad (v text); INSERT INTO bad VALUES ('secret')", database=names[2]
    )
    ran = posduif("migrate", "up", "--all", *folder.option, "-o", "tsv", code=8)
    found = [line for line in ran.err.splitlines() if re.match(r" +\d tenants? failed", line)]
    assert len(found) == 2, ran.err
    for line, words in (
        (found[0], ("2 tenants failed (a00, a01): ", "1001_x.sql:5 ", "42P07", "[CREATE TABLE taken (id int)")),
        (found[1], ("1 tenant failed (a02): ", "1001_x.sql:6 ", "23514", "[INSERT INTO users")),
    ):
        assert all(word in line for word in words), line
    assert "secret" not in ran.out + ran.err
    assert [line.split("\t")[2] for line in ran.out.splitlines()[1:]] == ["failed"] * 3 + ["ok"] * 3
    assert having(ground, names, "1000") == names
    assert having(ground, names, "1001") == names[3:]

    # Once more: only those who are left are visited, and what is told of them is the same.
    again = posduif("migrate", "up", "--all", *folder.option, "-o", "json", code=8)
    assert statuses(again.json) == dict.fromkeys(names[:3], "failed")
    assert again.error["code"] == "partial_failure"
    details = again.json[0]["error"]
    assert (details["sqlstate"], details["file"], details["line"]) == ("42P07", "1001_x.sql", 5)
    assert details["statement"].startswith("CREATE TABLE taken")
    assert (again.json[0]["changed"], again.json[0]["to"]) == (False, "1000")

    # --failed leaves alone who is merely behind; mended ones pass.
    [late] = many(1, first=6)
    ground.sql("DROP TABLE taken", database=names[0])
    narrowed = posduif("migrate", "up", "--all", "--failed", *folder.option, "-o", "json", code=8)
    assert statuses(narrowed.json) == {names[0]: "ok", names[1]: "failed", names[2]: "failed"}
    assert not has(ground, late, "1000")
    ground.sql("DROP TABLE taken", database=names[1])
    ground.sql("TRUNCATE bad", database=names[2])
    rest = posduif("migrate", "up", "--all", *folder.option, "-o", "json")
    assert statuses(rest.json) == {names[1]: "ok", names[2]: "ok", late: "ok"}
    assert having(ground, [*names, late], "1001") == [*names, late]
    assert posduif("migrate", "up", "--all", "--failed", *folder.option, "-o", "json").json == []


def test_a_failure_after_an_applied_file_tells_of_the_applied_one(
    posduif: Posduif, ground: PgServer, many: Make, folder: Folder
) -> None:
    names = many(2)
    folder.counted("1000")
    folder.counted("1001", more="SELECT 1/0;")
    for row in posduif("migrate", "up", "--all", *folder.option, "-o", "json", code=8).json:
        assert (row["status"], row["changed"], row["from"], row["to"]) == ("failed", True, LATEST, "1000")
        assert row["error"]["sqlstate"] == "22012"
    assert having(ground, names, "1000") == names
    assert having(ground, names, "1001") == []


# --- waves and the brake


def test_waves_are_cumulative_stop_at_a_failure_and_can_leave_tenants_out(
    posduif: Posduif, ground: PgServer, many: Make, folder: Folder
) -> None:
    names = many(8)
    folder.counted("1000")
    part = posduif("migrate", "up", "--all", "--wave", "1,25%", *folder.option)
    assert re.findall(r"wave \d of \d: \d tenants?", part.err) == ["wave 1 of 2: 1 tenant", "wave 2 of 2: 1 tenant"]
    assert having(ground, names, "1000") == names[:2]
    assert part.out.count("not part of any wave") == 6

    folder.counted("1001")
    ground.sql("CREATE TABLE t1001 (id int)", database=names[0])
    stopped = posduif("migrate", "up", "--all", "--wave", "1,50%,100%", *folder.option, "-o", "json", code=8)
    expected = {names[0]: "failed"} | dict.fromkeys(names[1:], "skipped")
    assert statuses(stopped.json) == expected
    assert "1 failed in wave 1" in stopped.json[1]["error"]["message"]
    assert not any(row["changed"] for row in stopped.json)
    ground.sql("DROP TABLE t1001", database=names[0])
    assert having(ground, names, "1001") == []

    started = time.monotonic()
    paused = posduif("migrate", "up", "--all", "--wave", "1,100%", "--pause", "1500ms", *folder.option)
    assert time.monotonic() - started > 1.5
    assert having(ground, names, "1001") == names, paused


def test_a_wave_that_does_not_verify_stops_the_run(
    posduif: Posduif, ground: PgServer, many: Make, folder: Folder
) -> None:
    names = many(3)
    folder.counted("1000", more=f"DELETE FROM schema_migrations WHERE version = '{LATEST}';")
    ran = posduif("migrate", "up", "--all", "--wave", "1,100%", *folder.option, "-o", "json", code=8)
    assert statuses(ran.json) == {names[0]: "ok", names[1]: "skipped", names[2]: "skipped"}
    assert f"wave 1 did not verify: {names[0]}" in ran.json[1]["error"]["message"]
    assert "wave 1 did not verify" in ran.error["why"]
    assert having(ground, names[1:], "1000") == []


@pytest.mark.parametrize(("brake", "reached"), [("0", 1), ("1", 2), ("25%", 3), ("100%", 8)])
def test_the_brake_stops_the_run(
    posduif: Posduif, ground: PgServer, many: Make, folder: Folder, brake: str, reached: int
) -> None:
    names = many(8)
    folder.counted("1000", more="SELECT 1/0;")
    argv = ("migrate", "up", "--all", "--jobs", "1", "--max-failures", brake, *folder.option, "-o", "json")
    ran = posduif(*argv, code=8)
    expected = dict.fromkeys(names[:reached], "failed") | dict.fromkeys(names[reached:], "skipped")
    assert statuses(ran.json) == expected
    if reached < len(names):
        assert "--max-failures" in ran.json[-1]["error"]["message"]
        assert "--max-failures" in ran.error["why"]


def test_the_brake_lets_waves_go_on_below_it(posduif: Posduif, ground: PgServer, many: Make, folder: Folder) -> None:
    names = many(4)
    folder.counted("1000")
    ground.sql("CREATE TABLE t1000 (id int)", database=names[0])
    ran = posduif(
        "migrate", "up", "--all", "--wave", "2,100%", "--max-failures", "1", *folder.option, "-o", "json", code=8
    )
    assert statuses(ran.json) == {names[0]: "failed"} | dict.fromkeys(names[1:], "ok")
    assert "fix the tenants, not 1000_x.sql, which other tenants have by now" in ran.error["try"][0]


def test_a_file_that_was_mended_too_late_is_refused_with_the_two_ways_out(
    posduif: Posduif, ground: PgServer, many: Make, folder: Folder
) -> None:
    names = many(2)
    folder.counted("1000")
    posduif("migrate", "up", names[0], *folder.option)
    folder.counted("1000", more="SELECT 1;")
    folder.counted("1001")
    ran = posduif("migrate", "up", *names, *folder.option, code=8)
    assert statuses(posduif.json("migrate", "up", *names, *folder.option, code=8))[names[0]] == "failed"
    assert f"changed after it was applied to {names[0]}" in ran.err
    refused = posduif("migrate", "up", names[0], *folder.option, "-o", "json", code=5).error
    assert refused["try"][2].startswith(f"posduif migrate down {names[0]} --to {LATEST} --config ")
    posduif("migrate", "down", names[0], "--to", LATEST, "--confirm", names[0], *folder.option)
    posduif("migrate", "up", names[0], *folder.option)
    assert having(ground, names, "1001") == names


def test_a_wave_that_does_not_begin_is_not_announced(
    posduif: Posduif, ground: PgServer, many: Make, folder: Folder
) -> None:
    names = many(3)
    folder.counted("1000", more="SELECT 1/0;")
    ran = posduif("migrate", "up", "--all", "--wave", "1,2,100%", *folder.option, "-o", "tsv", code=8)
    assert "wave 1 of 3: 1 tenant" in ran.err
    assert "wave 2" not in ran.err
    assert f"{names[0]}" in ran.err
    assert "fix the cause" in ran.err


@pytest.mark.parametrize("count", [0, 2])
def test_wrong_paces_are_usage_errors_before_anything_is_done(
    posduif: Posduif, ground: PgServer, many: Make, folder: Folder, count: int
) -> None:
    names = many(count)
    folder.counted("1000")
    for option, value in (
        *(("--wave", bad) for bad in ("x", "0", "101%", "-1", "1,,2", "0%,100%", "1.5", "%")),
        *(("--max-failures", bad) for bad in ("x", "-1", "101%", "1,2", "")),
        *(("--jobs", bad) for bad in ("0", "65", "x")),
        *(("--pause", bad) for bad in ("x", "-1s", "1")),
    ):
        refused = posduif("migrate", "up", "--all", f"{option}={value}", *folder.option, "-o", "json", code=2)
        assert refused.out == "", (option, value)
        if option == "--max-failures":
            assert "--wave" not in str(refused.error["try"]), value
    if count:
        posduif("migrate", "up", "--all", "--wave", "2,1", *folder.option, code=2)
    assert having(ground, names, "1000") == []


# --- raced and killed


@pytest.mark.slow
def test_two_full_runners_apply_each_file_once_on_a_hundred_tenants(
    posduif: Posduif, ground: PgServer, many: Make, folder: Folder
) -> None:
    names = many(100)
    folder.counted("1000", more="SELECT pg_sleep(0.03);")
    folder.counted("1001")
    folder.configure("servers: {both: {dsn: '%s', max_connections: 8}}\n" % ground.dsn)  # noqa: UP031
    argv = ("migrate", "up", "--all", "--list", "--jobs", "6", *folder.option, "--server", "both", "-o", "json")
    runners = [posduif.popen(*argv) for _ in range(2)]
    ends = [ended(runner, 90) for runner in runners]
    assert [code for code, _, _ in ends] == [0, 0], [err for _, _, err in ends]
    first, second = (statuses(json.loads(out)) for _, out, _ in ends)
    assert set(first) == set(second) == set(names)
    for name in names:
        assert sorted((first[name], second[name])) == ["ok", "unchanged"], name
    for _, out, _ in ends:
        visited = sum(row["seconds"] > 0 for row in json.loads(out))
        assert visited > 80, "they did not run together"
    for name in names:
        rows = ground.sql("SELECT array_agg(version ORDER BY version) FROM runs", database=name)
        assert rows == [(["1000", "1001"],)], name
        noted = record(ground, name)
        assert (noted["schema"], noted["set"]) == ("1001", digest([*BUNDLED, "1000", "1001"]))
    assert posduif.json("migrate", "up", "--all", *folder.option) == []


def test_kill_9_at_any_moment_leaves_each_tenant_wholly_old_or_new(
    posduif: Posduif, ground: PgServer, many: Make, folder: Folder
) -> None:
    names = many(14)
    folder.counted("1000", more="SELECT pg_sleep(0.05);")
    folder.counted("1001", more="SELECT pg_sleep(0.05);")
    dice = random.Random(20261122)
    argv = ("migrate", "up", "--all", "--jobs", "2", *folder.option, "-o", "json")
    seen = set()
    for number in range(9):
        runner = posduif.popen(*argv)
        until(lambda: workers(ground) or runner.poll() is not None, "a worker")  # noqa: B023
        time.sleep(dice.uniform(0, 0.15 * (number + 1)))  # later and later, so that a slow machine gets somewhere
        runner.kill()
        runner.communicate()
        seen.add((len(having(ground, names, "1000")), len(having(ground, names, "1001"))))
        if (14, 14) in seen:
            break
    assert any(0 < done < 14 for done, _ in seen), f"no kill met a run in the middle: {seen}"
    assert set(statuses(posduif.json(*argv[:-2])).values()) <= {"ok", "unchanged"}
    assert having(ground, names, "1000") == having(ground, names, "1001") == names
    assert posduif.json(*argv[:-2]) == []


# Of two tenants with two files each: what has happened in each by then, as their newest versions.
STEPS = [
    ("before core.fleet.run:Lookout.workers 1", LATEST, LATEST),
    ("before core.fleet.fleet:Fleet.enter 1", LATEST, LATEST),
    ("before core.fleet.run:Lookout._recall 1", LATEST, LATEST),
    ("after core.fleet.run:Lookout._recall 1", LATEST, LATEST),
    ("before db.pipeline:Pipeline.send 1", LATEST, LATEST),
    ("after db.pipeline:Pipeline.send 1", LATEST, LATEST),  # the lock was taken
    ("before db.record.storing 1", LATEST, LATEST),
    ("before db.pipeline:Pipeline.send 2", LATEST, LATEST),
    ("after db.pipeline:Pipeline.send 2", LATEST, LATEST),  # the file, the version row and the record; not committed
    ("before db.pipeline:Pipeline.send 3", LATEST, LATEST),
    ("after db.pipeline:Pipeline.send 3", LATEST, LATEST),  # the rights, too
    ("before db.record.require_stored 1", LATEST, LATEST),
    ("after db.record.require_stored 1", LATEST, LATEST),
    ("before db.record.storing 2", "1000", LATEST),
    ("after db.record.require_stored 2", "1000", LATEST),
    ("after core.schema.apply.up 1", "1001", LATEST),
    ("before core.fleet.run:Run.record 1", "1001", LATEST),
    ("after core.fleet.run:Run.record 1", "1001", LATEST),
    ("before core.fleet.fleet:Fleet.enter 2", "1001", LATEST),
    ("after db.record.require_stored 3", "1001", LATEST),
    ("before db.record.storing 4", "1001", "1000"),
    ("after core.schema.apply.up 2", "1001", "1001"),
    ("before core.fleet.run:Run.record 2", "1001", "1001"),
]


@pytest.mark.parametrize(("point", "first", "second"), STEPS, ids=[step[0] for step in STEPS])
def test_a_run_killed_at_any_step_is_finished_by_the_same_command(
    posduif: Posduif, ground: PgServer, many: Make, folder: Folder, point: str, first: str, second: str
) -> None:
    names = many(2)
    folder.counted("1000")
    folder.counted("1001")
    argv = ("migrate", "up", "--all", "--jobs", "1", *folder.option)
    kill(point, *argv)
    for version in ("1000", "1001"):
        assert having(ground, names, version) == [
            name for name, reached in zip(names, (first, second), strict=True) if reached >= version
        ]
    known = {row["tenant"]: row["schema_version"] for row in posduif.json("migrate", "status", "--all", *folder.option)}
    assert known == dict(zip(names, (first, second), strict=True))
    posduif(*argv)
    assert having(ground, names, "1000") == having(ground, names, "1001") == names
    assert posduif.json(*argv) == []


HELD = """SELECT what, held.grantee::regrole::text, held.privilege_type
          FROM (SELECT relname::text, relacl FROM pg_class WHERE relnamespace = 'public'::regnamespace
                UNION ALL SELECT attrelid::regclass || '.' || attname, attacl FROM pg_attribute WHERE attrelid >= 16384
                UNION ALL SELECT nspname, nspacl FROM pg_namespace WHERE nspname = 'public') AS things (what, acl)
          CROSS JOIN LATERAL aclexplode(acl) AS held ORDER BY 1, 2, 3"""
RIGHTS = {
    # What, and how many of three tenants at two steps need grants.sql to be run.
    "adds a column": ("ALTER TABLE users ADD COLUMN nickname text;", 1),
    "comments on a table": ("COMMENT ON TABLE users IS 'people';", 1),
    "changes rows, which may run any code": ("UPDATE users SET username = username;", 3),
    "makes a column anew": ("ALTER TABLE users DROP COLUMN last_seen; ALTER TABLE users ADD last_seen timestamp;", 3),
    "opens the schema": ("DO $$BEGIN EXECUTE 'GRANT CREATE ON SCHEMA public TO PUBLIC'; END$$;", 3),
    "opens a table in one tenant": (
        "DO $$BEGIN IF current_database() = 'a02' THEN EXECUTE 'GRANT SELECT ON messages TO PUBLIC'; END IF; END$$;",
        3,
    ),
    "opens a table in one tenant, and changes as many rows of the catalogs elsewhere": (
        "DO $$BEGIN EXECUTE CASE current_database() WHEN 'a02' THEN 'GRANT SELECT ON messages TO PUBLIC' "
        "ELSE 'ALTER TABLE messages SET (fillfactor = 90)' END; END$$;",
        3,
    ),
    "opens a table in one tenant, and none elsewhere": (
        "DO $$BEGIN EXECUTE CASE current_database() WHEN 'a02' THEN 'GRANT SELECT ON messages TO posduif_cron' "
        "ELSE 'CREATE INDEX other ON messages (status, id)' END; END$$;",
        3,
    ),
}


@pytest.mark.parametrize(("sql", "runs"), RIGHTS.values(), ids=list(RIGHTS))
def test_rights_are_looked_at_in_every_tenant_that_a_file_may_have_changed_them_in(
    posduif: Posduif, ground: PgServer, many: Make, folder: Folder, monkeypatch: pytest.MonkeyPatch, sql: str, runs: int
) -> None:
    names = many(3)
    before = [ground.sql(HELD, database=name) for name in names]
    assert before[0] == before[1] == before[2]
    ran, run = list[str](), grants.run

    def noted(conn: Session) -> bool:
        ran.append(conn.database)
        return run(conn)

    monkeypatch.setattr(grants, "run", noted)
    folder.put("1000_more.sql", sql)
    done = posduif.json("migrate", "up", "--all", "--jobs", "1", *folder.option)
    assert statuses(done) == dict.fromkeys(names, "ok")
    assert [ground.sql(HELD, database=name) for name in names] == before
    assert len(ran) == runs


def test_a_backend_that_is_ended_is_tried_again_at_the_end(
    posduif: Posduif, ground: PgServer, many: Make, folder: Folder
) -> None:
    names = many(4)
    folder.counted("1000", more="SELECT pg_sleep(0.4);")
    runner = posduif.popen("migrate", "up", "--all", "--jobs", "2", *folder.option, "-o", "json")
    until(lambda: len(workers(ground, "wait_event = 'PgSleep'")) == 2, "both work")
    [(victim, where), *_] = ground.sql(
        "SELECT pid, datname::text FROM pg_stat_activity WHERE wait_event = 'PgSleep' ORDER BY datname"
    )
    ground.sql("SELECT pg_terminate_backend(%s)", victim)
    code, out, err = ended(runner)
    assert (code, err) == (0, "")
    assert where == names[0]
    assert statuses(json.loads(out)) == dict.fromkeys(names, "ok")
    assert having(ground, names, "1000") == names


@pytest.mark.parametrize("how", ["kill -9 of a backend", "restart", "a long restart"])
def test_a_server_that_goes_away_amid_a_run_is_waited_for(
    posduif: Posduif, ground: PgServer, many: Make, folder: Folder, how: str
) -> None:
    names = many(8)
    folder.counted("1000", more="SELECT pg_sleep(0.2);")
    runner = posduif.popen("migrate", "up", "--all", "--jobs", "2", *folder.option, "-o", "json")
    until(lambda: len(workers(ground, "wait_event = 'PgSleep'")) == 2, "both work")
    if how == "kill -9 of a backend":
        os.kill(workers(ground, "wait_event = 'PgSleep'")[0], signal.SIGKILL)
    else:
        embedded.stop(_data_dir(ground))
        time.sleep(3 if how == "a long restart" else 0)
        start(_data_dir(ground), None, **SETTINGS)
    code, out, err = ended(runner)
    assert (code, err) == (0, ""), out
    assert statuses(json.loads(out)) == dict.fromkeys(names, "ok")
    assert having(ground, names, "1000") == names


def test_a_server_that_stays_away_ends_the_run_with_every_outcome(
    posduif: Posduif, ground: PgServer, many: Make, folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    impatient(monkeypatch, 5)
    names = many(6)
    folder.counted("1000", more="SELECT pg_sleep(0.2);")

    def stop() -> None:
        until(lambda: len(workers(ground, "wait_event = 'PgSleep'")) == 2, "both work")
        embedded.stop(_data_dir(ground))

    stopper = threading.Thread(target=stop)
    stopper.start()
    started = time.monotonic()
    try:
        ran = posduif("migrate", "up", "--all", "--jobs", "2", *folder.option, "-o", "json", code=8)
    finally:
        stopper.join()
        start(_data_dir(ground), None, **SETTINGS)
    assert time.monotonic() - started < 15, "the server is waited for once, not once a tenant"
    assert statuses(ran.json) == dict.fromkeys(names, "failed")
    assert having(ground, names, "1000") == []
    assert statuses(posduif.json("migrate", "up", "--all", *folder.option)) == dict.fromkeys(names, "ok")


@contextmanager
def stopped_amid(server: PgServer, working: str, count: int) -> Iterator[None]:
    """Stop a server as soon as so many sessions match *working*; it runs again afterwards."""

    def stop() -> None:
        until(lambda: len(sessions(server, working)) >= count, "the run works")
        embedded.stop(_data_dir(server))

    stopper = threading.Thread(target=stop)
    stopper.start()
    try:
        yield
    finally:
        stopper.join()
        start(_data_dir(server), None, **SETTINGS)


def about_a_dead_server(said: str) -> list[str]:
    return [line for line in said.splitlines() if "cannot be reached" in line or "could not be asked" in line]


def test_a_server_that_dies_under_a_run_is_told_in_one_line(
    posduif: Posduif, ground: PgServer, many: Make, folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    impatient(monkeypatch, 2)
    many(6)
    folder.counted("1000", more="SELECT pg_sleep(0.4);")
    with stopped_amid(ground, "wait_event = 'PgSleep'", 2):
        ran = posduif("migrate", "up", "--all", "--jobs", "2", *folder.option, "-o", "table", code=8)
    first, summary, why = about_a_dead_server(ran.err)
    assert first.startswith("failed: a0"), "while the run goes on, of one of them"
    assert summary.startswith("  6 tenants failed (a00, a01, a02, a03, a04 and 1 more): server dsn cannot be reached")
    assert why.startswith("  why   server dsn cannot be reached")
    assert ran.out == "", "a table has no rows for them"


def test_a_server_that_dies_under_a_comparison_is_told_in_one_line(
    posduif: Posduif, ground: PgServer, many: Make
) -> None:
    names = many(6)
    with suppress(psycopg.OperationalError), ExitStack() as stack:  # those that hold the locks die, too
        for name in names:
            stack.enter_context(held(ground, name, "LOCK TABLE schema_migrations IN ACCESS EXCLUSIVE MODE"))
        stack.enter_context(stopped_amid(ground, "wait_event_type = 'Lock' AND application_name ~ 'verify'", 4))
        ran = posduif("tenant", "verify", "--all", code=8)
    warned = [line for line in ran.err.splitlines() if line.startswith("warning: ")]
    asked = sum(int(number) for line in warned for number in re.findall(r"(\d+) tenants? failed ", line))
    assert 0 < asked <= 6, warned
    assert (asked < 6) is any(line.startswith("warning: server dsn cannot be reached") for line in warned), warned
    assert len(warned) <= 2, "those that were asked, and those that were not reached any more"


@pytest.mark.parametrize("verb", [("migrate", "status"), ("migrate", "verify"), ("tenant", "verify")])
def test_a_server_that_is_away_is_told_in_one_line(
    posduif: Posduif, ground: PgServer, many: Make, folder: Folder, monkeypatch: pytest.MonkeyPatch, verb: tuple[str]
) -> None:
    many(3)
    folder.configure(f"servers: {{eu1: {{dsn: '{ground.dsn}'}}, eu2: {{dsn: 'host=127.0.0.1 port=1'}}}}\n")
    monkeypatch.delenv("POSDUIF_DSN")
    ran = posduif(*verb, "--all", *folder.option, code=8)
    assert len(about_a_dead_server(ran.err)) == 1, ran.err
    assert "eu2" in about_a_dead_server(ran.err)[0]


def test_skipped_tenants_are_told_in_one_line(posduif: Posduif, ground: PgServer, many: Make, folder: Folder) -> None:
    names = many(5)
    folder.counted("1000", more="SELECT 1/0;")
    argv = ("migrate", "up", "--all", "--jobs", "1", "--wave", "1,100%", *folder.option, "-o", "table")
    ran = posduif(*argv, code=8)
    [line] = [line for line in ran.err.splitlines() if " skipped (" in line]
    assert line == f"  4 tenants skipped ({', '.join(names[1:])}): not reached: 1 failed in wave 1"
    assert ran.out == ""
    assert all(name in posduif(*argv, "--list", code=8).out for name in names)


def test_tenants_that_come_go_or_are_suspended_amid_a_run(
    posduif: Posduif, ground: PgServer, many: Make, folder: Folder
) -> None:
    names = many(6)
    folder.counted("1000", more="SELECT pg_sleep(0.8);")
    runner = posduif.popen("migrate", "up", "--all", "--jobs", "1", *folder.option, "-o", "json")
    until(lambda: workers(ground, "wait_event = 'PgSleep'"), "it works")
    remove(ground, names[2])
    ground.sql(f"DROP DATABASE {names[3]}")  # its engine's role remains, as amid a drop
    note(ground, names[4], state="suspended")
    [late] = many(1, first=6)
    code, out, err = ended(runner)
    assert (code, err) == (0, ""), out
    expected = dict.fromkeys(names, "ok") | dict.fromkeys(names[2:5], "skipped")
    assert statuses(json.loads(out)) == expected
    left = [names[0], names[1], names[4], names[5], late]
    assert having(ground, left, "1000") == [names[0], names[1], names[5]]
    assert record(ground, names[4])["state"] == "suspended"


def test_a_run_whose_session_for_reading_records_is_ended_reads_them_elsewhere(
    posduif: Posduif, ground: PgServer, many: Make, folder: Folder
) -> None:
    names = many(4)
    folder.counted("1000", more="SELECT pg_sleep(0.4);")
    runner = posduif.popen("migrate", "up", "--all", "--jobs", "1", *folder.option, "-o", "json")
    until(lambda: workers(ground, "wait_event = 'PgSleep'"), "it works")
    note(ground, names[2], state="suspended")
    ended_ones = ground.sql(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
        "WHERE datname = 'postgres' AND application_name = 'posduif migrate up'"
    )
    code, out, err = ended(runner)
    assert ended_ones == [(True,)]
    assert (code, err) == (0, ""), out
    assert statuses(json.loads(out)) == dict.fromkeys(names, "ok") | {names[2]: "skipped"}


def test_ctrl_c_ends_a_run_whose_session_for_reading_records_is_blocked(
    posduif: Posduif, ground: PgServer, many: Make, folder: Folder
) -> None:
    names = many(4)
    folder.counted("1000")
    runner = posduif.popen("migrate", "up", "--all", "--wave", "1,100%", "--pause", "4s", *folder.option)
    until(lambda: having(ground, names[:1], "1000"), "the first wave is through")
    time.sleep(1)  # and verified: the pause has begun
    with ground.connect() as holder:
        holder.execute("BEGIN; LOCK TABLE pg_shdescription IN ACCESS EXCLUSIVE MODE")
        waiting = "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE '%pg_get_userbyid%'"
        until(lambda: ground.sql(waiting), "it waits")
        os.kill(runner.pid, signal.SIGINT)
        code, _, err = ended(runner)  # within its deadline, though nobody let go
        holder.execute("ROLLBACK")
    assert (code, "interrupted" in err) == (130, True)
    posduif("migrate", "up", "--all", *folder.option)
    assert having(ground, names, "1000") == names


def test_servers_that_none_may_change_fail_their_tenants_in_words(
    posduif: Posduif, ground: PgServer, many: Make, folder: Folder
) -> None:
    many(2)
    folder.counted("1000")
    ground.sql("CREATE ROLE nobody_much LOGIN")
    try:
        dsn = ground.dsn_for(user="nobody_much")
        servers = f"servers: {{s1: {{dsn: '{dsn}'}}, s2: {{dsn: '{dsn}'}}}}\n"
        folder.config.write_text(servers + folder.config.read_text())
        argv = ("migrate", "up", "--all", "--wave", "1,100%", "--max-failures", "100%", *folder.option)
        failed = posduif.process(*argv, POSDUIF_DSN="")
        assert failed.code in (6, 8), failed
        assert "a bug" not in failed.err
        assert "nobody_much is not a member of posduif_admin" in failed.err
    finally:
        ground.sql("DROP ROLE nobody_much")


def test_a_tenant_dropped_under_its_migration_is_skipped(
    posduif: Posduif, ground: PgServer, many: Make, folder: Folder
) -> None:
    names = many(3)
    folder.counted("1000", more="SELECT pg_sleep(1);")
    runner = posduif.popen("migrate", "up", "--all", "--jobs", "1", *folder.option, "-o", "json")
    until(lambda: workers(ground, "wait_event = 'PgSleep'"), "it works")
    remove(ground, names[0])
    code, out, err = ended(runner)
    assert (code, err) == (0, ""), out
    assert statuses(json.loads(out)) == {names[0]: "skipped", names[1]: "ok", names[2]: "ok"}


# --- locks


def test_a_locked_tenant_is_deferred_and_then_reported_with_its_blocker(
    posduif: Posduif, ground: PgServer, many: Make, folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    impatient(monkeypatch, 1.2)
    names = many(4)
    folder.counted("1000", more="ALTER TABLE users ADD COLUMN extra text;")
    with held(ground, names[0], LOCK_USERS) as holder:
        ran = posduif("migrate", "up", "--all", "--jobs", "1", *folder.option, code=8)
        [row] = [line for line in ran.out.splitlines() if line.startswith(names[0])]
        assert f"blocked by pid {holder.info.backend_pid} (postgres, the holder, idle in transaction, 00:0" in row
        lines = ran.err.splitlines()
        order = [line.split(":")[1].strip() for line in lines if line.startswith(("ok: ", "failed: "))]
        assert order == [*names[1:], names[0]], "it was put off to the end"
        assert any("trying again: 1 tenant" in line for line in lines)
        assert holder.execute("SELECT 1").fetchone() == (1,), "nobody is killed"
        assert having(ground, names[1:], "1000") == names[1:]
        assert "failed" not in record(ground, names[0]), "to wait in vain is no failed migration"
    assert statuses(posduif.json("migrate", "up", "--all", *folder.option)) == {names[0]: "ok"}


def test_a_lock_that_is_let_go_in_time_is_no_failure(
    posduif: Posduif, ground: PgServer, many: Make, folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    impatient(monkeypatch, 1)
    names = many(3)
    folder.counted("1000", more="ALTER TABLE users ADD COLUMN extra text;")
    done: list[dict[str, str]] = []
    with held(ground, names[0], LOCK_USERS) as holder:
        timer = threading.Timer(1.6, holder.execute, ["ROLLBACK"])
        timer.start()
        done.append(statuses(posduif.json("migrate", "up", "--all", *folder.option)))
        timer.join()
    assert done == [dict.fromkeys(names, "ok")]


# --- connections


@contextmanager
def sampled(server: PgServer) -> Iterator[list[int]]:
    """Count posduif's sessions all the time; one that was closed is there for some milliseconds more."""
    counts: list[int] = []
    stop = threading.Event()

    def sample() -> None:
        query = b"SELECT pid FROM pg_stat_activity WHERE application_name LIKE 'posduif%'"
        before: set[int] = set()
        with server.connect(application_name="sampler") as conn:
            while not stop.wait(0.015):
                now = {pid for (pid,) in conn.execute(query)}
                counts.append(len(now & before))
                before = now

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield counts
    finally:
        stop.set()
        thread.join()


@pytest.mark.parametrize("share", [1, 2, 3])
def test_connections_stay_within_the_configured_share(
    posduif: Posduif, ground: PgServer, many: Make, folder: Folder, share: int
) -> None:
    names = many(9)
    folder.counted("1000", more="SELECT pg_sleep(0.1);")
    folder.configure(f"servers: {{eu1: {{dsn: '{ground.dsn}', max_connections: {share}}}}}\n")
    fleet = ("--all", *folder.option, "--server", "eu1")
    with sampled(ground) as counts:
        done = posduif.json("migrate", "up", "--jobs", "16", "--wave", "50%,100%", *fleet)
        assert statuses(done) == dict.fromkeys(names, "ok")
        folder.counted("1001")
        posduif("migrate", "up", "--dry-run", *fleet)
        posduif("migrate", "down", "--steps", "1", "--confirm", "eu1", "--jobs", "16", *fleet)
    assert max(counts) == share
    assert having(ground, names, "1001") == []


def test_a_server_with_a_small_share_does_not_slow_the_others(
    posduif: Posduif,
    ground: PgServer,
    many: Make,
    folder: Folder,
    own_server: PgServer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    names = many(3)
    folder.configure(
        f"servers: {{eu1: {{dsn: '{ground.dsn}'}}, eu2: {{dsn: '{own_server.dsn}', max_connections: 1}}}}\n"
    )
    monkeypatch.delenv("POSDUIF_DSN")
    with ExitStack() as stack:
        for name in names:
            stack.enter_context(held(ground, name, "LOCK TABLE schema_migrations IN ACCESS EXCLUSIVE MODE"))
        runner = posduif.popen("tenant", "verify", "--all", *folder.option, "-o", "json")
        until(lambda: len(workers(ground, "wait_event_type = 'Lock'")) == 3, "all are visited at once")
    assert ended(runner)[0] == 1, "the copies have a table that no migration makes"


def test_jobs_are_at_once_and_no_more(posduif: Posduif, ground: PgServer, many: Make, folder: Folder) -> None:
    names = many(6)
    folder.counted("1000", more="SELECT pg_sleep(0.15);")
    with sampled(ground) as counts:
        assert statuses(posduif.json("migrate", "up", "--all", "--jobs", "3", *folder.option)) == dict.fromkeys(
            names, "ok"
        )
    assert max(counts) == 4  # and the one that looks at blockers


def hog(server: PgServer, stack: ExitStack, **parts: Any) -> None:
    """Take every connection that there is."""
    with suppress(psycopg.OperationalError):
        while True:
            stack.enter_context(server.connect(**parts))


@pytest.mark.parametrize("login", ["postgres", "alice"])
def test_a_full_server_is_waited_for(
    posduif: Posduif, ground: PgServer, many: Make, folder: Folder, login: str
) -> None:
    """For `alice` the server says something else: the last places are kept for superusers."""
    names = many(3)
    folder.counted("1000")
    with ExitStack() as stack:
        hog(ground, stack, user=login)
        dsn = ground.dsn_for(user=login)
        runner = posduif.popen("migrate", "up", "--all", *folder.option, "-o", "json", POSDUIF_DSN=dsn)
        time.sleep(2)
        assert runner.poll() is None, runner.communicate()
    code, out, err = ended(runner)
    assert (code, err) == (0, ""), out
    assert statuses(json.loads(out)) == dict.fromkeys(names, "ok")


def test_a_server_that_fills_up_amid_a_run_is_waited_for(
    posduif: Posduif, ground: PgServer, many: Make, folder: Folder
) -> None:
    names = many(5)
    folder.counted("1000", more="SELECT pg_sleep(0.5);")
    argv = ("migrate", "up", "--all", "--jobs", "2", "--wave", "2,100%", *folder.option, "-o", "json")
    runner = posduif.popen(*argv, POSDUIF_DSN=ground.dsn_for(user="alice"))
    until(lambda: workers(ground, "wait_event = 'PgSleep'"), "it works")
    # In a race for each place that it gives up itself it would win too often.
    ground.sql("ALTER ROLE alice CONNECTION LIMIT 0")
    try:
        time.sleep(4)
        assert runner.poll() is None, runner.communicate()
    finally:
        ground.sql("ALTER ROLE alice CONNECTION LIMIT -1")
    code, out, err = ended(runner)
    assert (code, err) == (0, ""), out
    assert statuses(json.loads(out)) == dict.fromkeys(names, "ok")
    assert having(ground, names, "1000") == names


# --- interrupted


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("what", ["a table's lock", "the tenant's lock", "a statement"])
def test_ctrl_c_ends_at_once_and_leaves_nothing_half_done(
    posduif: Posduif, ground: PgServer, many: Make, folder: Folder, what: str, count: int
) -> None:
    names = many(count)
    before = {name: record(ground, name) for name in names}
    statement = "SELECT pg_sleep(60);" if what == "a statement" else "ALTER TABLE users ADD COLUMN extra text;"
    folder.counted("1000", more=statement)
    lock = {"a table's lock": LOCK_USERS, "a statement": "SELECT 1"}.get(
        what, f"SELECT pg_advisory_xact_lock({0x706F7364}, hashtext(current_database()))"
    )
    folder.configure(lock_timeout="2m" if count == 1 else "300ms")
    with ExitStack() as stack:
        for name in names:
            stack.enter_context(held(ground, name, lock))
        runner = posduif.popen("migrate", "up", *names, *folder.option, "-o", "json")
        until(lambda: len(workers(ground)) == count, "all work")
        time.sleep(0.7)
        os.kill(runner.pid, signal.SIGINT)
        code, out, err = ended(runner, 30)
        assert code == 130
        assert json.loads(err)["error"]["code"] == "interrupted"
        assert "Traceback" not in out + err
    until(lambda: not workers(ground), "no session is left")
    assert {name: record(ground, name) for name in names} == before, "who interrupts has no failed migration"
    assert having(ground, names, "1000") == []


def test_ctrl_c_between_waves(posduif: Posduif, ground: PgServer, many: Make, folder: Folder) -> None:
    names = many(3)
    folder.counted("1000")
    argv = ("migrate", "up", "--all", "--wave", "1,100%", "--pause", "60s", *folder.option)
    runner = posduif.popen(*argv)
    until(lambda: has(ground, names[0], "1000"), "the first wave")
    time.sleep(0.5)
    os.kill(runner.pid, signal.SIGINT)
    code, _, err = ended(runner, 30)
    assert code == 130, err
    assert having(ground, names, "1000") == names[:1]


@pytest.mark.parametrize("count", [1, 4])
def test_ctrl_c_in_a_fleet_command_that_waits_for_a_lock(
    posduif: Posduif, ground: PgServer, many: Make, count: int
) -> None:
    names = many(count)
    with ExitStack() as stack:
        for name in names:
            stack.enter_context(held(ground, name, "LOCK TABLE enrollment_tokens IN ACCESS EXCLUSIVE MODE"))
        runner = posduif.popen("token", "purge", "--all", "-o", "json")
        until(lambda: len(workers(ground, "wait_event_type = 'Lock'")) == count, "all wait")
        os.kill(runner.pid, signal.SIGINT)
        code, _, err = ended(runner, 30)
        assert code == 130
        assert json.loads(err)["error"]["code"] == "interrupted"
    until(lambda: not workers(ground), "no session is left")


# --- several named, and no server


def test_several_named_tenants_whose_server_cannot_be_reached_is_6(
    posduif: Posduif, ground: PgServer, many: Make, folder: Folder, clean_environ: pytest.MonkeyPatch
) -> None:
    names = many(2)
    with ExitStack() as stack:
        for name in names:
            stack.enter_context(held(ground, name, "LOCK TABLE enrollment_tokens IN ACCESS EXCLUSIVE MODE"))
        runner = posduif.popen("token", "purge", *names, "-o", "json")
        until(lambda: len(workers(ground, "wait_event_type = 'Lock'")) == 2, "both wait")
        for pid in workers(ground):
            ground.sql("SELECT pg_terminate_backend(%s)", pid)
        code, _, err = ended(runner)
    assert (code, json.loads(err)["error"]["code"]) == (6, "server_unreachable")

    with held(ground, names[0], "LOCK TABLE enrollment_tokens IN ACCESS EXCLUSIVE MODE"):
        runner = posduif.popen("token", "purge", *names, "-o", "json")
        until(lambda: len(workers(ground, "wait_event_type = 'Lock'")) == 1, "one waits")
        for pid in workers(ground):
            ground.sql("SELECT pg_terminate_backend(%s)", pid)
        code, _, err = ended(runner)
    assert (code, json.loads(err)["error"]["code"]) == (8, "partial_failure")

    folder.counted("1000")
    clean_environ.setenv("POSDUIF_DSN", "host=127.0.0.1 port=1")
    for verb in (("up",), ("up", "--dry-run"), ("down", "--steps", "1"), ("verify",)):
        for whom in (names, ["--all"]):
            posduif("migrate", *verb, *whom, *folder.option, "-o", "json", code=6)


# --- down, dry runs, new


def whole(server: PgServer, tenants: Sequence[str]) -> list[Any]:
    return [
        [dump(server, tenant, "--create") for tenant in tenants],
        server.sql("SELECT rolname::text, shobj_description(oid, 'pg_authid') FROM pg_authid ORDER BY 1"),
    ]


def test_down_takes_back_and_up_again_makes_the_same(
    posduif: Posduif, ground: PgServer, many: Make, folder: Folder
) -> None:
    names = many(3)
    folder.counted("1000", more="CREATE INDEX t_idx ON t1000 (id);\nALTER TABLE t1000 ADD CHECK (id > 0);")
    folder.counted("1001")
    clock = re.compile(r"^(\d+)\t(\w{64})\t.*$", re.MULTILINE)

    def schema(tenant: str) -> str:
        text = clock.sub(r"\1 \2", dump(ground, tenant, "--create"))
        return re.sub(r"COPY public.runs.*?\\\.", "", text, flags=re.DOTALL)

    old = {name: schema(name) for name in names}
    posduif("migrate", "up", "--all", *folder.option)
    new = {name: schema(name) for name in names}
    assert new != old

    # --to keeps the version named; --steps counts.
    argv = ("migrate", "down", names[0], "--to", LATEST, *folder.option)
    [row] = posduif.json(*argv, "--confirm", names[0])
    assert (row["status"], row["changed"], row["from"], row["to"]) == ("ok", True, "1001", LATEST)
    assert schema(names[0]) == old[names[0]]
    posduif("migrate", "up", names[0], *folder.option)
    assert schema(names[0]) == new[names[0]]

    fleet = ("migrate", "down", "--all", *folder.option)
    server_name = posduif.json("migrate", "status", names[0], *folder.option)[0]["server"]
    posduif(*fleet, "--steps", "2", "--confirm", server_name)
    again = posduif("migrate", "down", *names, "--to", LATEST, *folder.option, "-o", "json")
    assert (again.json, again.code) == ([], 0), "what is taken back already needs no confirmation"
    assert {name: schema(name) for name in names} == old
    posduif("migrate", "up", "--all", *folder.option)
    assert {name: schema(name) for name in names} == new


def test_two_downs_at_once_take_back_what_was_confirmed_and_no_more(
    posduif: Posduif, ground: PgServer, many: Make, folder: Folder
) -> None:
    [name] = many(1)
    for version in ("1000", "1001", "1002"):
        folder.counted(version)
    posduif("migrate", "up", "--all", *folder.option)
    argv = ("migrate", "down", name, "--steps", "1", "--confirm", name, *folder.option, "-o", "json")
    with ground.connect(name) as conn:
        # Both have seen what there is to take back, and wait for whoever works on the tenant.
        conn.execute("SELECT pg_advisory_lock(%s, hashtext(%s))", [LOCK_CLASS, name])
        runs = [posduif.popen(*argv) for _ in range(2)]
        until(lambda: len(workers(ground)) == 2, "both are at the tenant")
        time.sleep(0.5)
    ends = sorted(ended(run) for run in runs)
    assert [code for code, _, _ in ends] == [0, 5], ends
    assert "changed since" in ends[1][2]
    assert ground.sql("SELECT max(version) FROM schema_migrations", database=name) == [("1001",)]
    assert record(ground, name)["schema"] == "1001"


def test_down_refuses_before_anything_is_changed(
    posduif: Posduif, ground: PgServer, many: Make, folder: Folder
) -> None:
    names = many(2)
    folder.counted("1000", down=False)
    folder.counted("1001")
    posduif("migrate", "up", "--all", *folder.option)
    server_name = posduif.json("migrate", "status", names[0], *folder.option)[0]["server"]
    before = whole(ground, names)
    one, fleet = ("migrate", "down", names[0], *folder.option), ("migrate", "down", "--all", *folder.option)
    for argv, code in (
        ((*one, "--steps", "1"), 9),
        ((*one, "--steps", "1", "--confirm", names[1]), 9),
        ((*one, "--steps", "1", "--confirm", server_name), 9),
        ((*fleet, "--steps", "1"), 9),
        ((*fleet, "--steps", "1", "--confirm", names[0]), 9),
        ((*one, "--steps", "2", "--confirm", names[0]), 5),
        ((*fleet, "--steps", "2", "--confirm", server_name), 8),
        ((*one, "--to", LATEST, "--confirm", names[0]), 5),
        ((*one, "--confirm", names[0]), 2),
        ((*one, "--steps", "1", "--to", "1000", "--confirm", names[0]), 2),
        ((*one, "--steps", "0", "--confirm", names[0]), 2),
        ((*one, "--to", "3", "--confirm", names[0]), 2),
        ((*one, "--to", "oops", "--confirm", names[0]), 2),
        (("migrate", "down", "nobody", "--steps", "1", "--confirm", "nobody"), 4),
    ):
        posduif(*argv, "-o", "json", code=code)
        assert whole(ground, names) == before, argv
    refused = posduif(*one, "--steps", "2", "--confirm", names[0], "-o", "json", code=5)
    assert "1000_x.sql has no `-- migrate:down`" in refused.error["why"]
    assert server_name in posduif(*fleet, "--steps", "1", "-o", "json", code=9).error["try"][0]
    posduif(*one, "--to", "1001", "--confirm", names[0])
    assert whole(ground, names) == before, "nothing is newer than the newest"
    posduif(*one, "--steps", "1", "--confirm", names[0])
    assert having(ground, names, "1000") == names
    with pytest.raises(AssertionError):
        has(ground, names[0], "1001")  # `runs` tells of it still: the data of a run is not taken back


def test_dry_runs_change_nothing_and_group_by_plan(
    posduif: Posduif, ground: PgServer, many: Make, folder: Folder
) -> None:
    names = many(5)
    folder.counted("1000")
    posduif("migrate", "up", *names[:2], *folder.option)
    folder.counted("1001", more="SELECT pg_sleep(60);")
    note(ground, names[4], state="suspended")
    before = whole(ground, names)
    plan = posduif("migrate", "up", "--all", "--dry-run", *folder.option, "-o", "json")
    assert plan.json["dry_run"] is True
    found = {(step["subject"], tuple(step["tenants"])) for step in plan.json["steps"]}
    assert found == {
        ("1001_x", tuple(names[:2])),
        ("1000_x", tuple(names[2:4])),
        ("1001_x", tuple(names[2:4])),
    }
    assert {step["action"] for step in plan.json["steps"]} == {"migrate up"}
    assert all("CREATE TABLE t1" in step["sql"] for step in plan.json["steps"])
    assert "nothing was changed" in posduif("migrate", "up", "--all", "-n", *folder.option).err
    down = posduif("migrate", "down", *names[:2], "--steps", "1", "-n", *folder.option, "-o", "json")
    assert [(step["subject"], step["tenants"]) for step in down.json["steps"]] == [("1000_x", names[:2])]
    assert whole(ground, names) == before
    assert posduif("migrate", "up", names[4], "-n", *folder.option, "-o", "json").json["steps"] == []

    # Read-only transactions: a role that may not write at all can plan.
    ground.sql("ALTER ROLE alice SET default_transaction_read_only = on")
    try:
        posduif("migrate", "up", "--all", "-n", "--dsn", ground.dsn_for(user="alice"), *folder.option)
    finally:
        ground.sql("ALTER ROLE alice RESET default_transaction_read_only")


def test_a_down_that_cannot_be_says_so_and_nothing_else(posduif: Posduif, many: Make, folder: Folder) -> None:
    names = many(1)
    folder.counted("1000")
    posduif("migrate", "up", *names, *folder.option)
    for file in folder.path.iterdir():
        file.unlink()
    for form in ("json", "table"):
        argv = ("migrate", "down", *names, "--steps", "1", "--confirm", names[0], *folder.option, "-o", form)
        assert posduif(*argv, code=5).out == ""


def test_risks_are_told_before_they_are_taken_and_not_again(posduif: Posduif, many: Make, folder: Folder) -> None:
    names = many(2)
    folder.counted("1000", more="CREATE INDEX i ON messages (content);")
    warned = "require-concurrent-index-creation"
    assert warned in posduif("migrate", "up", "--all", "-n", *folder.option).err
    assert warned in posduif("migrate", "up", names[0], *folder.option).err
    folder.counted("1001")
    assert warned not in posduif("migrate", "up", names[0], *folder.option).err
    assert warned in posduif("migrate", "up", "--all", *folder.option).err
    assert warned not in posduif("migrate", "up", "--all", *folder.option).err


def test_a_dry_run_names_the_tenants_on_a_terminal(posduif: Posduif, many: Make, folder: Folder) -> None:
    names = many(2)
    folder.counted("1000")
    shown = posduif("migrate", "up", "--all", "-n", "-o", "table", *folder.option).out
    assert all(name in shown for name in names)


def test_new_counts_on_beyond_four_digits(posduif: Posduif, many: Make, folder: Folder) -> None:
    many(0)
    folder.counted("9999")
    made = [Path(posduif("migrate", "new", name, *folder.option).out.strip()).name for name in ("one", "two")]
    assert made == ["99990001_one.sql", "99990002_two.sql"], "versions are compared as text"


def test_new_makes_the_next_file(posduif: Posduif, many: Make, folder: Folder) -> None:
    [name] = many(1)
    made = [posduif.json("migrate", "new", f"step_{n}", *folder.option)["path"] for n in range(2)]
    assert all(Path(path).parent == folder.path for path in made)
    assert len(set(made)) == 2, "two in one second"
    assert made[0] < made[1], "also within one second"
    posduif("migrate", "new", "Bad-Name", *folder.option, code=2)
    missing = str(folder.path / "not there")
    refused = posduif("migrate", "new", "one", "--dir", missing, *folder.option, "-o", "json", code=3).error
    assert refused["try"] == [f"mkdir -p '{missing}'"]
    refused = posduif("migrate", "up", name, *folder.option, code=3)  # an empty section is no migration
    assert made[0] in refused.err


# --- the terminal


@pytest.mark.parametrize("end", ["finished", "interrupted"])
def test_the_live_line_leaves_nothing_behind(
    posduif: Posduif, ground: PgServer, many: Make, folder: Folder, end: str
) -> None:
    names = many(4)
    folder.counted(
        "1000",
        more="SELECT pg_sleep(0.2);"
        if end == "finished"
        else "SELECT pg_sleep(0.2 + 60 * (current_database() = 'a03')::int);",
    )
    ground.sql("CREATE TABLE t1000 (id int)", database=names[0])
    sent = False

    def interrupt(seen: str, process: "subprocess.Popen[bytes]") -> None:
        nonlocal sent
        if end == "interrupted" and not sent and "1 failed" in seen and "2 ok" in seen:
            time.sleep(0.3)
            os.kill(process.pid, signal.SIGINT)
            sent = True

    argv = ("migrate", "up", "--all", "--jobs", "1", *folder.option)
    shown = on_terminal(*argv, columns=200, watch=interrupt, environ={"TERM": "xterm"})
    text = shown.out
    assert shown.code == (8 if end == "finished" else 130), text
    assert re.search(r"\n1 failed \.\.\.", text), "the line lives"
    assert "1 ok, 1 failed ..." in text
    last = standing(text)
    assert not any("..." in line for line in last), last
    assert sum(line.startswith(f"failed: {names[0]}: ") for line in last) == 1
    assert last[-1] == ""
    if end == "finished":
        assert any(line.startswith("3 ok, 1 failed; servers: ") for line in last)
        assert any(re.match(rf" ?{names[1]} +\S+ +ok", line) for line in last), last
    else:
        assert any(line.startswith("error: interrupted; 3 tenants") for line in last), last


def spoil(ground: PgServer, *names: str, version: str = "1000") -> None:
    """Have a migration fail in these tenants: its table is there already."""
    for name in names:
        ground.sql(f"CREATE TABLE t{version} (id int)", database=name)


@pytest.mark.parametrize(
    ("wave", "brake", "bad", "expected"),
    [
        ("1,10%,100%", "1%", [0], "fsssssssss"),  # the canary's wave has failed as a whole
        ("1,100%", "5", [0], "fsssssssss"),  # in numbers, too
        ("2,100%", "100%", [0, 1], "ffssssssss"),
        ("50%,100%", "25%", [0, 1, 2], "ffssssssss"),  # of the wave of 5, which allows 1, not of all ten
        ("5,100%", "20%", [0], "fooooooooo"),  # 20 % of 5 is 1
        ("4,100%", "20%", [0], "fsssssssss"),  # 20 % of 4, rounded down, is none
        ("5,100%", "20%", [0, 5], "foooofoooo"),  # each wave has an allowance of its own
        ("5,100%", "1", [0, 5], "foooofssss"),  # a number is for all waves
        ("5,100%", "2", [0, 5], "foooofoooo"),
    ],
)
def test_a_canary_stops(
    posduif: Posduif,
    ground: PgServer,
    many: Make,
    folder: Folder,
    wave: str,
    brake: str,
    bad: list[int],
    expected: str,
) -> None:
    names = many(10)
    folder.counted("1000")
    spoil(ground, *(names[number] for number in bad))
    argv = ("migrate", "up", "--all", "--jobs", "1", "--wave", wave, "--max-failures", brake, *folder.option)
    ran = posduif(*argv, "-o", "json", code=8)
    assert "".join(state[0] for state in statuses(ran.json).values()) == expected
    fine = [name for number, name in enumerate(names) if number not in bad]
    assert having(ground, fine, "1000") == [names[number] for number, state in enumerate(expected) if state == "o"]


def test_a_wave_is_the_last_if_all_that_had_work_failed_in_it(
    posduif: Posduif, ground: PgServer, many: Make, folder: Folder
) -> None:
    names = many(4)
    folder.counted("1000")
    posduif("migrate", "up", names[0], *folder.option)
    spoil(ground, names[1])
    argv = ("migrate", "up", *names, "--wave", "2,100%", "--max-failures", "50%", *folder.option)
    ran = posduif(*argv, "-o", "json", code=8)
    assert statuses(ran.json) == dict(zip(names, ("unchanged", "failed", "skipped", "skipped"), strict=True))
    assert "every tenant of wave 1 that had work failed" in ran.error["why"]
    assert "already exists" in ran.error["why"], "the reason is why, not the brake"


def test_help_says_what_the_percentage_is_of(posduif: Posduif) -> None:
    said = " ".join(posduif("migrate", "up", "--help").out.split())
    assert "N % of the running wave" in said
    assert "more than 5 % of the tenants in it" in said


def test_every_failed_outcome_has_its_reason_and_failures_are_told_by_cause(
    posduif: Posduif, ground: PgServer, many: Make, folder: Folder
) -> None:
    names = many(4)
    folder.counted("1000")
    for name in names[:3]:
        ground.sql(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
    ran = posduif("migrate", "up", "--all", *folder.option, "-o", "json", code=8)
    assert statuses(ran.json) == dict.fromkeys(names[:3], "failed") | {names[3]: "ok"}
    for outcome in ran.json[:3]:
        assert "not currently accepting connections" in outcome["error"]["message"]
    plain = posduif("migrate", "up", "--all", *folder.option, "-o", "tsv", code=8)
    assert "3 tenants failed (a00, a01, a02): " in plain.err


def test_refused_tenants_are_asked_about_once_and_on_their_own_server_alone(
    posduif: Posduif,
    ground: PgServer,
    many: Make,
    folder: Folder,
    own_server: PgServer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    names = many(8)
    folder.counted("1000")
    folder.configure(f"servers: {{eu1: {{dsn: '{ground.dsn}'}}, eu2: {{dsn: '{own_server.dsn}'}}}}\n")
    monkeypatch.delenv("POSDUIF_DSN")
    monkeypatch.setattr(fleet, "SURVEYED", 60.0)
    for name in names:
        ground.sql(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
    begun: list[tuple[str, str]] = []

    def counting(server: Server, database: str, **parts: Any) -> Session:
        begun.append((server.name, database))
        return really(server, database, **parts)

    really = connect.connect
    monkeypatch.setattr(connect, "connect", counting)
    ran = posduif("migrate", "up", "--all", *folder.option, "-o", "json", code=8)
    assert statuses(ran.json) == dict.fromkeys(names, "failed")
    assert all("not currently accepting connections" in outcome["error"]["message"] for outcome in ran.json)
    assert [begun.count((server, "postgres")) for server in ("eu1", "eu2")] == [3, 1], "list, lookout, one question"
    assert len(begun) == 4 + len(names)


def test_causes_that_differ_by_line_only_are_one_group() -> None:
    def failed(number: int, line: int) -> tuple[str, MigrationFailed]:
        message = f"migration 1000_x.sql:{line} failed in a{number}: out of shared memory"
        error = MigrationFailed(
            message, sqlstate="53200", file="1000_x.sql", line=line, excerpt=f"CREATE TABLE t{line}"
        )
        return f"a{number}", error

    [(cause, tenants)] = causes([failed(number, 10 + number) for number in range(5)])
    assert tenants == [f"a{number}" for number in range(5)]
    assert cause == "migration 1000_x.sql failed: out of shared memory (SQLSTATE 53200)"
    [(cause, _)] = causes([failed(1, 7), failed(2, 7)])
    assert cause == "migration 1000_x.sql:7 failed: out of shared memory (SQLSTATE 53200) [CREATE TABLE t7]"


def test_two_tenants_of_one_name_are_two(
    posduif: Posduif, ground: PgServer, many: Make, folder: Folder, own_server: PgServer
) -> None:
    names = many(2)
    folder.counted("1000", more="SELECT 1/0;")
    folder.configure(f"servers: {{eu1: {{dsn: '{ground.dsn}'}}, eu2: {{dsn: '{own_server.dsn}'}}}}\n")
    os.environ.pop("POSDUIF_DSN")
    for name in names:
        bare = ("--config", str(folder.config.with_name("bare.yaml")))
        Path(bare[1]).write_text(f"servers: {{eu2: {{dsn: '{own_server.dsn}'}}}}\n")
        posduif("tenant", "create", name, *bare)
        own_server.sql("SET ROLE posduif_admin; CREATE TABLE public.runs (version text)", database=name)
    ran = posduif("migrate", "up", "--all", *folder.option, "-o", "tsv", code=8)
    assert "4 failed" in ran.err
    assert "error: 4 tenants failed" in ran.err
    # Each is taken back as it was planned for it, whatever the other of its name has.
    folder.counted("1000")
    posduif("migrate", "up", "--all", *folder.option)
    folder.counted("1001")
    posduif("migrate", "up", "--all", "--server", "eu1", *folder.option)
    posduif("migrate", "down", "--all", "--steps", "1", "--confirm", "eu1,eu2", *folder.option)
    rows = posduif.json("migrate", "status", "--all", *folder.option)
    assert {row["server"]: row["schema_version"] for row in rows} == {"eu1": "1000", "eu2": LATEST}


def test_a_tenant_that_is_ahead_goes_through_the_waves(
    posduif: Posduif, ground: PgServer, many: Make, folder: Folder
) -> None:
    names = many(3)
    file = folder.counted("1000")
    posduif("migrate", "up", "--all", *folder.option)
    file.unlink()
    folder.counted("1001")
    rows = posduif.json("migrate", "status", "--all", "--check", *folder.option, code=1)
    assert [(row["pending"], row["ahead"]) for row in rows] == [(1, 1)] * 3
    done = posduif.json("migrate", "up", "--all", "--wave", "1,100%", *folder.option)
    assert statuses(done) == dict.fromkeys(names, "ok")


def test_a_faulty_file_fails_the_tenants_that_need_it_and_no_others(
    posduif: Posduif, ground: PgServer, many: Make, folder: Folder
) -> None:
    names = many(3)
    bad = folder.counted("1000")
    posduif("migrate", "up", *names[:2], *folder.option)
    bad.write_text("-- migrate:up\nSELECT 'x;\n")
    good = folder.counted("1001")
    ran = posduif("migrate", "up", "--all", *folder.option, "-o", "json", code=8)
    assert statuses(ran.json) == dict.fromkeys(names[:2], "ok") | {names[2]: "failed"}
    assert f"{bad}:2: a string begins here" in ran.json[2]["error"]["message"]
    assert having(ground, names, "1001") == names[:2]
    refused = posduif("migrate", "up", names[2], *folder.option, "-o", "json", code=3).error
    assert f"{bad}:2: a string begins here" in refused["message"]
    done = posduif("migrate", "up", *names[:2], *folder.option, "-o", "tsv")
    assert f"warning: {bad}:2:" in done.err
    assert good.exists()


def test_taking_back_asks_for_each_server_by_count(
    posduif: Posduif, ground: PgServer, many: Make, folder: Folder
) -> None:
    names = many(3)
    folder.counted("1000")
    posduif("migrate", "up", "--all", *folder.option)
    for name in names:
        ground.sql("INSERT INTO t1000 VALUES (1), (2)", database=name)
    refused = posduif("migrate", "down", "--all", "--steps", "1", *folder.option, "-o", "json", code=9).error
    assert refused["message"] == "refused: take back 1000_x of 3 tenants, which loses 6 rows of t1000"
    posduif("migrate", "down", "--all", "--steps", "2", "--confirm", "dsn", *folder.option, code=9)
    assert having(ground, names, "1000") == names
