"""Kill it anywhere, type it again: every line of the protocol's table of kill points, and kills at random."""

import os
import random
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest
import yaml

from posduif_cli.db.session import LOCK_CLASS
from support.kills import Case, assert_gone, kill, strike
from support.runner import Posduif
from support.servers import PgServer, server_of
from support.tenants import matches, state


@pytest.fixture(scope="session")
def server(request: pytest.FixtureRequest) -> PgServer:
    """Servers of this worker alone: with a few tenants more there would be a template, and other steps."""
    return server_of(request, f"{request.param}-{os.environ.get('PYTEST_XDIST_WORKER', 'alone')}")


@pytest.fixture
def case(posduif: Posduif, server: PgServer, name: str, tmp_path: Path) -> Case:
    return Case(posduif, server, name, tmp_path / "engine.yaml")


@pytest.fixture
def made(case: Case) -> Case:
    case.posduif(*case.create)
    return case


CREATE_POINTS = [
    ("before db.admin.ensure_roles 1", None),
    ("before db.admin.create_engine_role 1", None),
    ("before db.admin.put_intent 1", None),
    ("after db.admin.put_intent 1", None),
    ("after db.admin.create_engine_role 1", "provisioning"),
    ("after db.admin.create_database 1", "provisioning"),
    ("after db.admin.join_groups 1", "provisioning"),
    ("after db.admin.open_database 1", "provisioning"),
    ("after db.record.put 1", "provisioning"),
    ("before core.schema.apply.up 1", "provisioning"),
    ("before core.schema.grants.text 1", "provisioning"),
    ("before core.schema.grants.text 2", "provisioning"),
    ("after db.record.require_stored 3", "provisioning"),
    ("after core.schema.apply.up 1", "provisioning"),
    ("before render.engine_config.write 1", "provisioning"),
    ("after render.engine_config.write 1", "provisioning"),
    ("after core.desk.users.create_if_missing 1", "provisioning"),
    ("after db.admin.set_password 1", "provisioning"),
    ("after db.record.write 1", "provisioning"),
    ("after core.tenants.traces.write_both 1", "provisioning"),
]


@pytest.mark.parametrize(("point", "left"), CREATE_POINTS)
def test_a_killed_create_is_finished_by_the_same_command(
    case: Case, bystander: Callable[[], None], point: str, left: str | None
) -> None:
    kill(point, *case.create)
    assert case.state() == left
    if left:
        case.posduif("user", "list", case.name, code=5)
        assert case.posduif.json("migrate", "up", case.name)[0]["status"] == "skipped"
        assert case.posduif.json(*case.create, "--dry-run")["steps"]
    case.posduif(*case.create)
    case.whole()
    bystander()


@pytest.mark.parametrize("point", [point for point, left in CREATE_POINTS if left][::3])
def test_a_killed_create_can_be_dropped(case: Case, bystander: Callable[[], None], point: str) -> None:
    kill(point, *case.create)
    case.posduif(*case.drop)
    assert_gone(case.posduif, case.server, case.name)
    bystander()


def test_a_create_killed_before_it_could_say_so_is_whole(case: Case) -> None:
    kill("before core.fleet.fleet:Fleet.look 4", *case.create)
    case.whole()
    assert case.posduif(*case.create, "-o", "json", code=5).error["code"] == "tenant_exists"
    assert case.posduif.json(*case.create, "--if-not-exists")["changed"] is False
    case.whole()


def test_a_resumed_create_keeps_the_url_of_the_first_try(case: Case) -> None:
    kill("before core.schema.apply.up 1", *case.create, "--url", "https://one.example.com")
    case.posduif(*case.create)
    assert case.posduif.json("tenant", "show", case.name)["url"] == "https://one.example.com"


DROP_POINTS = [
    ("before core.tenants.drop._announce_drop 1", "active"),
    ("after db.record.put 1", "active"),
    ("after db.record.put_intent 1", "active"),
    ("after db.admin.close_role 1", "active"),
    ("after core.tenants.drop._announce_drop 1", "dropping"),
    ("after core.tenants.drop._end_sessions 1", "dropping"),
    ("before db.admin.drop_database 1", "dropping"),
    ("after db.admin.drop_database 1", "dropping"),
    ("before db.admin.drop_role 1", "dropping"),
    ("after db.admin.drop_role 1", None),
]


@pytest.mark.parametrize(("point", "left"), DROP_POINTS)
def test_a_killed_drop_is_finished_by_the_same_command(
    made: Case, bystander: Callable[[], None], point: str, left: str | None
) -> None:
    kill(point, *made.drop)
    assert made.state() == left
    if left == "active":
        made.whole()
    if left == "dropping":
        made.posduif(*made.create, code=5)
        made.posduif("user", "list", made.name, code=5)
        assert made.posduif.json("migrate", "up", made.name)[0]["status"] == "skipped"
    made.posduif(*made.drop, code=0 if left else 4)
    assert_gone(made.posduif, made.server, made.name)
    bystander()


LOST_BACKENDS = [
    ("before db.admin.create_engine_role 1", "create"),
    ("before db.admin.create_database 1", "create"),
    ("before db.admin.open_database 1", "create"),
    ("before db.session:Session.pipeline 3", "create"),
    ("after db.admin.set_password 1", "create"),
    ("before db.admin.drop_database 1", "drop"),
    ("before db.admin.drop_role 1", "drop"),
]


@pytest.mark.parametrize(("point", "verb"), LOST_BACKENDS)
def test_a_command_whose_backend_dies_says_so_and_can_be_repeated(case: Case, point: str, verb: str) -> None:
    if verb == "drop":
        case.posduif(*case.create)
    command = case.create if verb == "create" else case.drop
    assert strike(f"lose {point}", *command) == 6
    assert case.state() != "active"
    case.posduif(*command)
    if verb == "create":
        case.whole()
    else:
        assert_gone(case.posduif, case.server, case.name)


def await_activity(server: PgServer, query: str) -> int:
    """Wait for a session that waits for a lock in a query that begins so; return its pid."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        found = server.sql(
            "SELECT pid FROM pg_stat_activity WHERE query LIKE %s AND wait_event_type = 'Lock'", query + "%"
        )
        if found:
            return int(found[0][0])
        time.sleep(0.02)
    raise AssertionError(f"nobody waits in {query}")


@pytest.mark.parametrize("orphan", ["finishes", "dies"])
def test_create_killed_within_create_database(own_server: PgServer, run_on: Any, tmp_path: Path, orphan: str) -> None:
    case = Case(run_on(own_server), own_server, "acme", tmp_path / "engine.yaml")
    kill("before db.admin.create_database 1", *case.create)
    with own_server.connect() as blocker, blocker.transaction():
        blocker.execute("LOCK TABLE pg_database IN SHARE MODE")
        process = case.posduif.popen(*case.create)
        pid = await_activity(own_server, "CREATE DATABASE")
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        if orphan == "finishes":
            assert own_server.sql("SELECT 1 FROM pg_stat_activity WHERE pid = %s", pid) == [(1,)]
        else:
            deadline = time.monotonic() + 10
            while own_server.sql("SELECT 1 FROM pg_stat_activity WHERE pid = %s", pid):
                assert time.monotonic() < deadline, "the orphan does not notice that its client is gone"
                time.sleep(0.05)
    case.posduif(*case.create)
    case.whole()


def test_create_waits_for_an_orphan_that_holds_the_lock(case: Case) -> None:
    kill("before db.admin.create_database 1", *case.create)
    intent = case.intent()
    assert intent is not None
    statement = f"""CREATE DATABASE {case.name} OWNER posduif_admin TEMPLATE template0 ENCODING 'UTF8'
                    ALLOW_CONNECTIONS false CONNECTION LIMIT {intent.nonce}"""
    locked = threading.Event()

    def orphan() -> None:
        with case.server.connect() as conn:
            conn.execute("SELECT pg_advisory_lock(%s, hashtext(%s))", (LOCK_CLASS, case.name))
            locked.set()
            conn.execute("SELECT pg_sleep(1)")
            conn.execute(statement.encode())

    thread = threading.Thread(target=orphan)
    thread.start()
    assert locked.wait(10)
    case.posduif(*case.create)
    thread.join()
    case.whole()


def test_create_database_at_the_same_moment_as_an_orphan_without_the_lock(
    own_server: PgServer, run_on: Any, tmp_path: Path
) -> None:
    case = Case(run_on(own_server), own_server, "acme", tmp_path / "engine.yaml")
    kill("before db.admin.create_database 1", *case.create)
    intent = case.intent()
    assert intent is not None
    command = f"""/* orphan */ CREATE DATABASE acme OWNER posduif_admin TEMPLATE template0 ENCODING 'UTF8'
                  ALLOW_CONNECTIONS false CONNECTION LIMIT {intent.nonce}"""
    outcome: list[BaseException | None] = []

    def orphan() -> None:
        try:
            own_server.sql(command)
        except Exception as error:
            outcome.append(error)
        else:
            outcome.append(None)

    with own_server.connect() as blocker, blocker.transaction():
        blocker.execute("LOCK TABLE pg_database IN SHARE MODE")
        thread = threading.Thread(target=orphan)
        thread.start()
        await_activity(own_server, "/* orphan */")
        process = case.posduif.popen(*case.create)
        await_activity(own_server, "CREATE DATABASE")
    _, said = process.communicate(timeout=60)
    thread.join()
    assert (process.returncode, len(outcome)) == (0, 1), said
    case.whole()


@pytest.mark.parametrize("owner", ["postgres", "posduif_admin"])
def test_an_unrecorded_database_with_another_limit_is_someone_elses(case: Case, owner: str) -> None:
    kill("before db.admin.create_database 1", *case.create)
    case.server.sql(f"CREATE DATABASE {case.name} OWNER {owner} ALLOW_CONNECTIONS false CONNECTION LIMIT 12345")
    before = case.database()
    assert case.posduif(*case.create, "-o", "json", code=5).error["code"] == "not_ours"
    assert case.database() == before
    case.posduif(*case.drop)
    assert case.database() == before
    assert case.intent() is None


@pytest.mark.parametrize("whole", [True, False])
def test_a_database_whose_drop_was_cut_off_in_the_server(case: Case, whole: bool) -> None:
    if whole:
        case.posduif(*case.create)
    else:
        kill("after db.admin.create_database 1", *case.create)
    kill("before db.admin.drop_database 1", *case.drop)
    case.server.sql("UPDATE pg_database SET datconnlimit = -2 WHERE datname = %s", case.name)
    assert case.state() == "dropping"
    case.posduif(*case.create, code=5)
    case.posduif("user", "list", case.name, code=5)
    case.posduif("tenant", "list", "--sizes")
    case.posduif("health", code=None)
    case.posduif(*case.drop)
    assert_gone(case.posduif, case.server, case.name)


def test_an_active_tenant_that_someone_half_dropped(made: Case) -> None:
    made.server.sql("UPDATE pg_database SET datconnlimit = -2 WHERE datname = %s", made.name)
    assert made.state() == "dropping"
    assert made.posduif.json("migrate", "up", made.name)[0]["status"] == "skipped"
    made.posduif(*made.create, code=5)
    made.posduif(*made.drop)
    assert_gone(made.posduif, made.server, made.name)


@pytest.mark.parametrize("owner", ["postgres", "posduif_admin"])
def test_lost_by_dropdb_and_createdb_by_hand(made: Case, owner: str) -> None:
    made.server.sql(f"DROP DATABASE {made.name}")
    assert made.state() == "lost"
    made.server.sql(f"CREATE DATABASE {made.name} OWNER {owner}")
    made.server.sql("CREATE TABLE precious ()", database=made.name)
    before = made.database()
    assert made.state() == "lost"
    for argv in (
        made.create,
        (*made.create, "--if-not-exists"),
        ("user", "list", made.name),
        ("tenant", "set", made.name, "--url", "https://x.example.com"),
        ("tenant", "rotate-password", made.name, "--engine-config", str(made.file)),
        ("token", "create", made.name),
    ):
        assert made.posduif(*argv, "-o", "json", code=5).error["code"] == "wrong_state"
    assert made.posduif.json("migrate", "up", made.name)[0]["status"] == "skipped"
    made.posduif(*made.drop)
    assert made.database() == before
    assert made.server.sql("SELECT to_regclass('precious') IS NOT NULL", database=made.name) == [(True,)]
    assert (made.state(), made.intent()) == (None, None)


def test_lost_without_a_database_can_be_dropped_and_made_again(made: Case) -> None:
    made.server.sql(f"DROP DATABASE {made.name}")
    made.posduif(*made.drop)
    assert_gone(made.posduif, made.server, made.name)
    made.posduif(*made.create)
    made.whole()


def test_drop_ends_the_engines_sessions_and_names_those_it_may_not_end(made: Case) -> None:
    with made.server.connect(made.name, user=f"{made.name}_engine") as engine:
        engine.execute("SELECT 1")
        made.posduif(*made.drop)
        with pytest.raises(psycopg.OperationalError):
            engine.execute("SELECT 1")
    assert_gone(made.posduif, made.server, made.name)


def test_drop_outwaits_the_session_of_a_killed_command(made: Case) -> None:
    orphan = made.server.connect(made.name)
    threading.Timer(0.5, orphan.close).start()
    made.posduif(*made.drop)
    assert_gone(made.posduif, made.server, made.name)


def test_drop_frees_the_slots_of_the_database(made: Case) -> None:
    slot = f"slot_{made.name}"
    create = "SELECT pg_create_logical_replication_slot(%s, 'pgoutput')"
    made.server.sql(create, slot, database=made.name)
    made.posduif(*made.drop)
    assert made.server.sql("SELECT 1 FROM pg_replication_slots WHERE slot_name = %s", slot) == []


@pytest.mark.slow
def test_kills_at_random(case: Case, bystander: Callable[[], None]) -> None:
    """At least 20 kills of create and drop, each within or shortly after a random one of their statements."""
    chance, kills, until = random.Random(20261122), 0, time.monotonic() + 300
    while kills < 20:
        assert time.monotonic() < until, f"only {kills} kills in 5 minutes"
        for command, statements, end in ((case.create, 120, "active"), (case.drop, 33, None)):
            for _ in range(4):
                point = f"{chance.uniform(0, 0.01):.4f} psycopg:Cursor.execute {chance.randint(1, statements)}"
                kills += strike(f"kill {point}", *command) == -signal.SIGKILL
                found = case.state()
                assert found in (None, "provisioning", "active", "dropping")
                if found == "active":
                    case.whole()
                if found == end:
                    break
            case.posduif(*command, code=0 if case.state() != end else 5 if end else 4)
            assert case.state() == end
            if end:
                case.whole()
        bystander()
    assert_gone(case.posduif, case.server, case.name)


TEMPLATE_POINTS = [
    "before db.admin.create_database 1",
    "after db.admin.create_database 1",
    "before db.admin.open_database 1",
    "before db.record.put 1",
    "after db.record.put 1",
]


@pytest.fixture
def templated(own_server: PgServer, run_on: Callable[..., Posduif], tmp_path: Path) -> Posduif:
    """A server with a template."""
    posduif = run_on(own_server)
    posduif("tenant", "create", "--from", few(tmp_path, "old"))
    return posduif


def few(folder: Path, prefix: str) -> str:
    """Write a list of as many tenants as are worth a template."""
    path = folder / f"{prefix}.csv"
    path.write_text("name\n" + "\n".join(f"{prefix}{number}" for number in range(8)) + "\n")
    return str(path)


@pytest.mark.one_server
def test_a_killed_copy_is_finished_by_the_same_command(
    templated: Posduif, own_server: PgServer, tmp_path: Path
) -> None:
    for number, point in enumerate(TEMPLATE_POINTS):
        name = f"acme{number}"
        argv = ("tenant", "create", name, "--engine-config", str(tmp_path / f"{name}.yaml"))
        kill(point, *argv)
        assert state(templated, name) == "provisioning", point
        templated(*argv)
        templated("tenant", "verify", name)
        assert state(templated, name) == "active"
        verifier = own_server.sql("SELECT rolpassword FROM pg_authid WHERE rolname = %s", f"{name}_engine")[0][0]
        assert matches(verifier, yaml.safe_load((tmp_path / f"{name}.yaml").read_text())["postgres"]["password"])


MAKING_POINTS = [
    "before db.admin.create_template 1",
    "after db.admin.create_template 1",
    "after db.record.put 1",
    "before core.schema.grants.text 2",
    "after core.schema.apply.up 1",
]


@pytest.mark.one_server
def test_a_killed_making_of_a_template_leaves_nothing_wrong(
    own_server: PgServer, run_on: Callable[..., Posduif], tmp_path: Path
) -> None:
    posduif = run_on(own_server)
    for number, point in enumerate(MAKING_POINTS):
        argv = ("tenant", "create", "--from", few(tmp_path, f"t{number}x"))
        kill(point, *argv)
        assert {row["state"] for row in posduif.json("tenant", "list")} <= {"active"}, point
        posduif(*argv)
        templates = own_server.sql("SELECT datname FROM pg_database WHERE datname LIKE 'posduif%%'")
        assert len(templates) == 1, point
        own_server.sql(f"DROP DATABASE {templates[0][0]}")
    posduif("tenant", "verify", "--all")
