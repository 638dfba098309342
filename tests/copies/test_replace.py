"""Restoring over a tenant: what was is set aside and comes back, and a kill at any moment is finished or taken back."""

import json
import threading
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
import yaml

from support.copies import holdings
from support.kills import kill
from support.runner import Posduif
from support.servers import PgServer
from support.tenants import record
from support.waiting import until

ASIDE = "SELECT datname::text FROM pg_database WHERE datname ~ '^posduif_(aside|restore)_' ORDER BY 1"


@pytest.fixture(autouse=True)
def nothing_left(server: PgServer, store: Path, name: str) -> Iterator[None]:
    yield
    for (database,) in server.sql(ASIDE):
        noted = server.sql("SELECT shobj_description(oid, 'pg_database') FROM pg_database WHERE datname = %s", database)
        if noted and f'"of":"{name}"' in (noted[0][0] or ""):
            server.sql(f"DROP DATABASE {database} WITH (FORCE)")


def texts(posduif: Posduif, name: str) -> list[str]:
    return sorted(message["content"] for message in posduif.json("message", "list", name, "--limit", "1000"))


def left(server: PgServer, name: str) -> list[str]:
    """The databases that are copies of a tenant."""
    found = server.sql("SELECT datname::text, shobj_description(oid, 'pg_database') FROM pg_database")
    return [database for database, noted in found if f'"of":"{name}"' in (noted or "")]


def test_a_tenant_is_replaced_and_swapped_back(
    posduif: Posduif, server: PgServer, store: Path, name: str, tmp_path: Path
) -> None:
    engine = tmp_path / "engine.yaml"
    posduif("tenant", "rotate-password", name, "--engine-config", str(engine))
    token = posduif("token", "create", name).out.strip()
    before = holdings(server, name)
    (made,) = posduif.json("backup", "create", name)
    posduif("message", "send", name, "--from", "desk", "--to", "mia", "written afterwards")
    after = holdings(server, name)
    posduif("backup", "restore", name, code=9)
    # Rights that were given by hand do not reach what is set aside.
    server.sql(f'CREATE ROLE "{name} \'Q" LOGIN; GRANT CONNECT ON DATABASE {name} TO "{name} \'Q", PUBLIC')
    assert holdings(server, name) == after
    shown = posduif.json("backup", "restore", made["backup"], "--confirm", name)
    assert (shown["state"], shown["url"], shown["changed"]) == ("active", "https://one.test", True)
    assert holdings(server, name) == before
    assert [t["status"] for t in posduif.json("token", "list", name)] == ["expired"], token
    (pinned,) = [b for b in posduif.json("backup", "list", name) if b["pinned"]]
    assert pinned["pinned"].startswith("before restore "), "the state before is a backup, too"
    (aside,) = [aside for aside in posduif.json("backup", "discard") if aside["tenant"] == name]
    assert (aside["tenant"], aside["backup"]) == (name, made["backup"])
    told = yaml.safe_load(engine.read_text())["postgres"]
    with server.connect(name, user=told["user"], password=told["password"]) as conn:
        assert conn.execute("SELECT count(*), current_setting('timezone') FROM messages").fetchone() == (500, "UTC")
    with pytest.raises(psycopg.OperationalError, match="permission denied"):
        server.connect(aside["database"], user=told["user"], password=told["password"])
    with pytest.raises(psycopg.OperationalError, match="permission denied"):
        server.connect(aside["database"], user=f"{name} 'Q")
    server.sql(f'DROP ROLE "{name} \'Q"')
    assert [f["level"] for f in posduif.json("tenant", "verify", name)] == ["ok"]
    assert {f["check"] for f in posduif.json("health", name)["findings"] if f["level"] == "info"} >= {"copies.aside"}
    # And back, and forth.
    posduif("backup", "restore", "--undo", code=2)
    posduif("backup", "restore", "--undo", "--confirm", name)
    assert holdings(server, name) == after
    assert [f["level"] for f in posduif.json("tenant", "verify", name)] == ["ok"]
    posduif("backup", "restore", "--undo", "--confirm", name)
    assert holdings(server, name) == before
    posduif("backup", "discard", name, code=9)
    posduif("backup", "discard", name, "--confirm", name)
    assert left(server, name) == []
    assert (
        "nothing to undo"
        in posduif("backup", "restore", "--undo", "--confirm", name, "-o", "json", code=5).error["message"]
    )
    assert holdings(server, name) == before
    posduif("migrate", "up", name)
    posduif("tenant", "drop", name, "--confirm", name, "--no-backup")


@pytest.mark.one_server
def test_a_suspended_tenant_stays_suspended(posduif: Posduif, server: PgServer, store: Path, name: str) -> None:
    posduif("backup", "create", name)
    posduif("tenant", "suspend", name)
    assert posduif.json("backup", "restore", name, "--confirm", name)["state"] == "suspended"
    assert posduif.json("backup", "restore", "--undo", "--confirm", name)["state"] == "suspended"
    posduif("tenant", "resume", name)


@pytest.mark.one_server
def test_what_is_damaged_touches_nothing(posduif: Posduif, server: PgServer, store: Path, name: str) -> None:
    (made,) = posduif.json("backup", "create", name)
    before, noted = holdings(server, name), record(server, name)
    file = Path(made["location"]) / made["file"]
    whole = file.read_bytes()
    file.write_bytes(whole[:-1])
    posduif("backup", "restore", name, "--confirm", name, code=5)
    assert (holdings(server, name), record(server, name), left(server, name)) == (before, noted, [])
    file.write_bytes(whole)
    manifest = file.with_name("manifest.json")
    told = json.loads(manifest.read_text())
    told["tables"][0]["rows"] += 1
    manifest.write_text(json.dumps(told))
    posduif("backup", "restore", made["backup"], "--confirm", name, code=5)
    assert (holdings(server, name), left(server, name)) == (before, []), "given up at once"
    assert posduif.json("tenant", "show", name)["state"] == "active"
    assert record(server, name) == noted


def test_who_is_in_the_way_is_named_and_the_same_command_goes_on(
    posduif: Posduif, server: PgServer, store: Path, name: str
) -> None:
    posduif("backup", "create", name)
    server.sql(f"CREATE ROLE {name}_carol LOGIN IN ROLE posduif_admin")
    try:
        with server.connect(name, user=f"{name}_carol"):
            error = posduif("backup", "restore", name, "--confirm", name, "-o", "json", code=10).error
            assert f"{name}_carol" in error["why"]
            assert any("pg_terminate_backend" in hint for hint in error["try"])
            assert posduif.json("tenant", "show", name)["state"] == "restoring"
            posduif("tenant", "resume", name, code=5)
            posduif("migrate", "up", name, code=None)
        posduif("backup", "restore", name, "--confirm", name)
        assert len(left(server, name)) == 1
        with server.connect(name, user=f"{name}_carol"):
            posduif("backup", "restore", "--undo", "--confirm", name, code=10)
        posduif("backup", "restore", "--undo", "--confirm", name)
        assert posduif.json("tenant", "show", name)["state"] == "active"
    finally:
        server.sql(f"DROP ROLE {name}_carol")


POINTS = [
    "before core.copies.replace:Replacing._shut 1",
    "after core.copies.replace:Replacing._shut 1",
    "after core.copies.replace:Replacing._keep 1",
    "after db.admin.create_database 1",
    "after core.copies.load:Loading.load 1",
    "after core.copies.restore.fill 1",
    "after core.copies.replace:Replacing._build 1",
    "after core.copies.replace.set_open 2",
    "after core.copies.replace:Replacing._close 1",
    "before core.copies.replace._revoke 1",
    "before db.record.put 3",
    "after core.copies.replace:Replacing._swap 1",
]


@pytest.mark.one_server
@pytest.mark.parametrize(("point", "then"), [*((p, "again") for p in POINTS), *((p, "undo") for p in POINTS[::3])])
def test_a_killed_restore_over_a_tenant_is_finished_or_taken_back(
    posduif: Posduif, server: PgServer, store: Path, name: str, point: str, then: str
) -> None:
    finish(posduif, server, name, point, then)


@pytest.mark.parametrize("then", ["again", "undo"])
def test_a_restore_that_was_killed_at_its_swap(
    posduif: Posduif, server: PgServer, store: Path, name: str, then: str
) -> None:
    finish(posduif, server, name, "before core.copies.replace._revoke 1", then)


def finish(posduif: Posduif, server: PgServer, name: str, point: str, then: str) -> None:
    """Kill a restore over a tenant at a point, and type it again, or take it back."""
    (made,) = posduif.json("backup", "create", name)
    before = holdings(server, name)
    posduif("message", "send", name, "--from", "desk", "--to", "mia", "written afterwards")
    after = holdings(server, name)
    kill(point, "backup", "restore", made["backup"], "--confirm", name)
    state = posduif.json("tenant", "show", name)["state"]
    swapped = point.startswith("after core.copies.replace:Replacing._swap")
    assert state == ("active" if swapped or "before core.copies.replace:Replacing._shut" in point else "restoring")
    (login,) = server.sql("SELECT rolcanlogin FROM pg_roles WHERE rolname = %s", f"{name}_engine")[0]
    assert login == (state == "active")
    if then == "again":
        posduif("backup", "restore", made["backup"], "--confirm", name)
        assert holdings(server, name) == before
        assert {database[:14] for database in left(server, name)} == {"posduif_aside_"}
    else:
        done = posduif("backup", "restore", "--undo", "--confirm", name, code=None).code
        assert done == (5 if "before core.copies.replace:Replacing._shut" in point else 0)
        assert holdings(server, name) == after
        assert [database for database in left(server, name) if "restore" in database] == []
    assert posduif.json("tenant", "show", name)["state"] == "active"
    assert [f["level"] for f in posduif.json("tenant", "verify", name)] == ["ok"]


@pytest.mark.one_server
@pytest.mark.parametrize("point", [point for point in POINTS if "_keep" not in point and "fill" not in point])
def test_a_killed_undo_is_finished_by_the_same_command(
    posduif: Posduif, server: PgServer, store: Path, name: str, point: str
) -> None:
    if any(word in point for word in ("create_database", "load", "_build")):
        pytest.skip("an undo builds nothing")
    posduif("backup", "create", name)
    posduif("message", "send", name, "--from", "desk", "--to", "mia", "written afterwards")
    after = holdings(server, name)
    posduif("backup", "restore", name, "--confirm", name, "--no-backup")
    restored = holdings(server, name)
    kill(point, "backup", "restore", "--undo", "--confirm", name)
    if "_swap" in point:
        assert holdings(server, name) == after
        return
    posduif("backup", "restore", "--undo", "--confirm", name)
    assert holdings(server, name) == after != restored
    assert [f["level"] for f in posduif.json("tenant", "verify", name)] == ["ok"]


@pytest.mark.one_server
def test_prune_drops_what_was_set_aside_long_enough(posduif: Posduif, server: PgServer, store: Path, name: str) -> None:
    posduif("backup", "create", name)
    posduif("backup", "restore", name, "--confirm", name, "--keep", "1s")
    (database,) = left(server, name)
    until(lambda: "aside" in posduif("backup", "prune", "--dry-run").err, "its time is over", 20)
    assert left(server, name) == [database]
    found = [f for f in posduif.json("health", name)["findings"] if f["check"] == "copies.aside"]
    assert [f["level"] for f in found if f["affected"] == [name]] == ["warning"]
    posduif("backup", "prune")
    assert left(server, name) == []


@pytest.mark.one_server
def test_no_engine_gets_in_while_a_tenant_is_restored(
    posduif: Posduif, server: PgServer, store: Path, name: str
) -> None:
    """An engine that is connected all the time, and tries again as fast as it can."""
    posduif("backup", "create", name)
    server.sql(f"ALTER ROLE {name}_engine PASSWORD 'x'")
    stop, seen = threading.Event(), set()
    which = "SELECT oid FROM pg_database WHERE datname = current_database()"

    def engine() -> None:
        while not stop.is_set():
            try:
                with server.connect(name, user=f"{name}_engine", password="x") as conn:
                    while not stop.is_set():
                        seen.add(conn.execute(which).fetchone())
            except psycopg.Error:
                stop.wait(0.01)

    thread = threading.Thread(target=engine)
    thread.start()
    try:
        until(lambda: seen, "the engine is in", 20)
        posduif("backup", "restore", name, "--confirm", name)
        until(lambda: len(seen) == 2, "the engine is in the new one", 20)
    finally:
        stop.set()
        thread.join()
