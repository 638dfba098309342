"""Fingerprints: the same schema has the same one, wherever it is; every kind of change shows, by name."""

import json
import os
import re
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from posduif_cli.core.fleet.fleet import Fleet
from posduif_cli.core.schema import inventory
from posduif_cli.core.tenants import create
from posduif_cli.db import admin, embedded
from posduif_cli.db.session import ADMIN_ROLE
from posduif_cli.errors import AccessDenied, QueryFailed
from posduif_cli.models.servers import Server
from support.runner import Posduif
from support.servers import PgServer, dump, shared, start, system_bin
from support.sources import REPO
from support.tenants import forget


def exists(server: PgServer, database: str) -> bool:
    return bool(server.sql("SELECT 1 FROM pg_database WHERE datname = %s", database))


def fleet_of(server: PgServer, *folders: Path) -> Fleet:
    fleet = Fleet((Server("s", server.dsn),), "test")
    return replace(fleet, folders=replace(fleet.folders, further=folders))


def reference(server: PgServer, *folders: Path) -> tuple[inventory.Thing, ...]:
    fleet = fleet_of(server, *folders)
    with fleet.maintenance(fleet.servers[0]) as session:
        admin.ensure_roles(session)
    return inventory.reference(fleet, fleet.servers[0])


@pytest.fixture(scope="module")
def migrated(server: PgServer) -> Iterator[str]:
    """A tenant that every test leaves as it was."""
    chosen = f"t{uuid.uuid4().hex[:12]}"
    create.create(fleet_of(server), create.Wanted(chosen))
    yield chosen
    forget(server, chosen)


def taken(server: PgServer, database: str) -> tuple[inventory.Thing, ...]:
    fleet = fleet_of(server)
    with fleet.enter(fleet.servers[0], database) as conn:
        return inventory.inventory(conn)


def test_a_tenant_is_what_its_migrations_make(server: PgServer, migrated: str) -> None:
    expected = reference(server)
    assert inventory.compare(expected, taken(server, migrated)) == ()
    assert len(inventory.digest(expected)) == 16
    assert {thing.kind for thing in expected} >= {
        "table",
        "column",
        "constraint",
        "index",
        "function",
        "trigger",
        "grant",
    }
    assert "owner" not in {thing.kind for thing in expected}, "everything is posduif_admin's"


def test_the_stored_schema_is_what_the_bundled_migrations_make(server: PgServer) -> None:
    """What `tenant adopt --dry-run` compares with; WRITE_SCHEMA=1 writes it anew after a new bundled migration."""
    stored = REPO / "sql" / "schema.json"
    made = [asdict(thing) for thing in reference(server) if thing.kind not in ("grant", "owner")]
    rows = [{key: value for key, value in thing.items() if value is not None} for thing in made]
    fresh = json.dumps(rows, indent=1) + "\n"
    if os.environ.get("WRITE_SCHEMA"):
        stored.write_text(fresh)
    assert stored.read_text() == fresh, "WRITE_SCHEMA=1 pytest tests/schema/test_fingerprints.py -k stored"
    things = [thing for thing in reference(server) if thing.kind != "grant"]
    assert inventory.compare(inventory.snapshot(), things) == ()


def test_a_reference_makes_no_role(own_server: PgServer) -> None:
    fleet = fleet_of(own_server)
    with pytest.raises(AccessDenied):
        inventory.reference(fleet, fleet.servers[0])
    assert own_server.sql("SELECT 1 FROM pg_roles WHERE rolname LIKE 'posduif%'") == []


@pytest.mark.one_server
def test_the_oldest_and_the_newest_postgresql_agree(server: PgServer, request: pytest.FixtureRequest) -> None:
    system = system_bin()
    if system is None or server.data_dir is None:
        pytest.skip("only one PostgreSQL is there")
    other = start(shared(request.config) / "system", system)
    assert other.version != server.version
    assert inventory.compare(reference(server), reference(other)) == ()


def test_a_dump_and_restore_changes_nothing(server: PgServer, migrated: str, name: str) -> None:
    server.sql(f"CREATE DATABASE {name} OWNER {ADMIN_ROLE} TEMPLATE template0")
    for _ in range(2):
        subprocess.run(
            [
                embedded.locate(server.bin_dir).bin_dir / "psql",
                "-qX",
                "-v",
                "ON_ERROR_STOP=1",
                server.dsn_for(dbname=name),
            ],
            input=dump(server, migrated, "--clean", "--if-exists"),
            text=True,
            check=True,
            stdout=subprocess.DEVNULL,
        )
        migrated = name
    assert inventory.compare(reference(server), taken(server, name)) == ()


CHANGES = {
    "added column": ("ALTER TABLE users ADD x int", "column public.users.x"),
    "dropped column": ("ALTER TABLE users DROP last_seen", "column public.users.last_seen"),
    "widened type": ("ALTER TABLE users ALTER username TYPE varchar(300)", "column public.users.username"),
    "zoned time": ("ALTER TABLE messages ALTER created_at TYPE timestamptz", "column public.messages.created_at"),
    "default": ("ALTER TABLE users ALTER online_status SET DEFAULT true", "column public.users.online_status"),
    "lost default": ("ALTER TABLE users ALTER created_at DROP DEFAULT", "column public.users.created_at"),
    "not null": ("ALTER TABLE users ALTER user_type DROP NOT NULL", "column public.users.user_type"),
    "collation": ('ALTER TABLE users ALTER device_id TYPE varchar(255) COLLATE "C"', "column public.users.device_id"),
    "check": (
        "ALTER TABLE users DROP CONSTRAINT chk_user_type, ADD CONSTRAINT chk_user_type CHECK (user_type IN ('web'))",
        "constraint public.users.chk_user_type",
    ),
    "unvalidated": (
        "ALTER TABLE users DROP CONSTRAINT chk_user_type, "
        "ADD CONSTRAINT chk_user_type CHECK (user_type IN ('web', 'mobile')) NOT VALID",
        "constraint public.users.chk_user_type",
    ),
    "foreign key": (
        "ALTER TABLE messages DROP CONSTRAINT fk_messages_sender, "
        "ADD CONSTRAINT fk_messages_sender FOREIGN KEY (sender_id) REFERENCES users",
        "constraint public.messages.fk_messages_sender",
    ),
    "dropped index": ("DROP INDEX idx_messages_status", "index public.idx_messages_status"),
    "other index": (
        "DROP INDEX idx_messages_status; CREATE INDEX idx_messages_status ON messages (status, id)",
        "index public.idx_messages_status",
    ),
    "invalid index": (
        "UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'idx_messages_status'::regclass",
        "index public.idx_messages_status",
    ),
    "disabled trigger": (
        "ALTER TABLE users DISABLE TRIGGER update_users_updated_at",
        "trigger public.users.update_users_updated_at",
    ),
    "disabled foreign key": ("ALTER TABLE messages DISABLE TRIGGER ALL", "fk_messages_sender (internal)"),
    "new trigger": (
        "CREATE TRIGGER x AFTER INSERT ON users EXECUTE FUNCTION update_read_at()",
        "trigger public.users.x",
    ),
    "function body": (
        "CREATE OR REPLACE FUNCTION update_read_at() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END'",
        "function public.update_read_at()",
    ),
    "security definer": ("ALTER FUNCTION update_read_at() SECURITY DEFINER", "function public.update_read_at()"),
    "function setting": ("ALTER FUNCTION update_read_at() SET work_mem = '1MB'", "function public.update_read_at()"),
    "grant": ("GRANT SELECT ON users TO pg_monitor", "grant pg_monitor on table public.users"),
    "column grant": ("GRANT SELECT (id) ON users TO pg_monitor", "grant pg_monitor on column public.users.id"),
    "lost grant": ("REVOKE INSERT ON messages FROM posduif_engine", "grant posduif_engine on table public.messages"),
    "public schema": ("GRANT CREATE ON SCHEMA public TO PUBLIC", "grant public on schema public"),
    "public function": ("GRANT EXECUTE ON FUNCTION update_read_at() TO PUBLIC", "grant public on function"),
    "default privileges": (
        "ALTER DEFAULT PRIVILEGES GRANT SELECT ON TABLES TO pg_monitor",
        "grant pg_monitor on new tables of",
    ),
    "row security": ("ALTER TABLE users ENABLE ROW LEVEL SECURITY", "table public.users"),
    "policy": ("CREATE POLICY p ON users USING (true)", "policy public.users.p"),
    "rule": ("CREATE RULE r AS ON INSERT TO users DO NOTHING", "rule public.users.r"),
    "unlogged": ("CREATE UNLOGGED TABLE x ()", "table public.x"),
    "view": ("CREATE VIEW v AS SELECT id FROM users", "view public.v"),
    "sequence": ("CREATE SEQUENCE s", "sequence public.s"),
    "type": ("CREATE TYPE mood AS ENUM ('ok')", "type public.mood"),
    "domain": ("CREATE DOMAIN age AS int CHECK (VALUE > 0)", "type public.age"),
    "schema": ("CREATE SCHEMA more", "schema more"),
    "owner": ("ALTER TABLE users OWNER TO pg_monitor", "owner table public.users"),
}


@pytest.mark.parametrize(("change", "named"), CHANGES.values(), ids=list(CHANGES))
def test_a_change_shows_by_name(server: PgServer, migrated: str, change: str, named: str) -> None:
    before = taken(server, migrated)
    fleet = fleet_of(server)
    with fleet.enter(fleet.servers[0], migrated) as conn:
        conn.execute("RESET ROLE")
        with conn.transaction(rollback=True):
            conn.script(change)
            after = inventory.inventory(conn)
    assert named in "\n".join(str(difference) for difference in inventory.compare(before, after))
    assert inventory.digest(before) != inventory.digest(after)


HARMLESS = {
    "other order of columns": "ALTER TABLE users DROP last_seen; ALTER TABLE users ADD last_seen timestamp; "
    "GRANT SELECT (last_seen) ON users TO posduif_support; GRANT UPDATE (last_seen) ON users TO posduif_engine",
    "other layout of a function": """CREATE OR REPLACE FUNCTION update_updated_at_column() RETURNS trigger AS $$
        BEGIN

                NEW.updated_at = NOW();
            RETURN NEW;
        END;
        $$ LANGUAGE plpgsql""",
    "storage": "ALTER TABLE users SET (fillfactor = 70)",
    "casts": "ALTER TABLE users DROP CONSTRAINT chk_user_type; ALTER TABLE users ADD CONSTRAINT chk_user_type "
    "CHECK (user_type::text = ANY (ARRAY['web'::text, 'mobile'::text]))",
}


@pytest.mark.parametrize("change", HARMLESS.values(), ids=list(HARMLESS))
def test_what_means_nothing_does_not_show(server: PgServer, migrated: str, change: str) -> None:
    fleet = fleet_of(server)
    with fleet.enter(fleet.servers[0], migrated) as conn, conn.transaction(rollback=True):
        before = inventory.inventory(conn)
        conn.script(change)
        assert inventory.compare(before, inventory.inventory(conn)) == ()


def test_an_inventory_changes_nothing_in_the_session(server: PgServer, migrated: str) -> None:
    fleet = fleet_of(server)
    with fleet.enter(fleet.servers[0], migrated) as conn:
        with conn.transaction(read_only=True):
            inventory.inventory(conn)
            assert conn.value("SHOW search_path") == "public"
        inventory.inventory(conn)
        assert conn.value("SHOW search_path") == "public"


def test_a_reference_leaves_nothing_behind_when_a_migration_fails(server: PgServer, tmp_path: Path) -> None:
    (tmp_path / "1000_bad.sql").write_text("-- migrate:up\nCREATE TABLE more (id int);\nSELECT 1/0;\n")
    with pytest.raises(QueryFailed, match="division by zero") as caught:
        reference(server, tmp_path)
    scratch = re.search(r"posduif_reference_\w+", caught.value.message)
    assert scratch is not None
    assert not exists(server, scratch[0])


def test_a_reference_includes_further_folders(server: PgServer, tmp_path: Path) -> None:
    (tmp_path / "1000_more.sql").write_text("-- migrate:up\nCREATE TABLE more (id int);\n")
    assert "public.more.id" in {thing.name for thing in reference(server, tmp_path)}


KILLED = """
import sys, time
from posduif_cli.core.tenants import create
from posduif_cli.core.schema import inventory
from posduif_cli.core.fleet.fleet import Fleet
from posduif_cli.models.servers import Server
def stay(conn):
    sys.stdout.write(conn.database + "\\n")
    sys.stdout.flush()
    time.sleep(60)
inventory.inventory = stay
fleet = Fleet((Server("s", sys.argv[1]),), "test")
inventory.reference(fleet, fleet.servers[0])
"""


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGKILL])
def test_what_a_killed_run_left_is_dropped_by_the_next(server: PgServer, sent: signal.Signals) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, server.dsn],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ},
    )
    assert process.stdout is not None
    scratch = process.stdout.readline().decode().strip()
    reference(server)
    assert exists(server, scratch), "the run is alive, so its database is"
    assert server.sql("SELECT has_database_privilege('public', %s, 'CONNECT')", scratch) == [(False,)]
    process.send_signal(sent)
    process.wait(20)
    process.stdout.close()
    assert exists(server, scratch) is (sent is signal.SIGKILL)
    deadline = time.monotonic() + 10
    while exists(server, scratch) and time.monotonic() < deadline:
        reference(server)
    assert not exists(server, scratch)


def test_a_scratch_database_is_no_tenant(posduif: Posduif, server: PgServer) -> None:
    reference(server)
    assert "posduif_reference" not in posduif("tenant", "list").out
