"""Nobody is locked in: dbmate reads our migrations and our table, and we read what it wrote."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from support.runner import Posduif
from support.servers import PgServer
from support.sources import BUNDLED, REPO
from support.tenants import forget, states

FOLDER = REPO / "sql" / "migrations"


def find_dbmate() -> str | None:
    beside = Path(sys.executable).parent / "dbmate"
    return str(beside) if beside.exists() else shutil.which("dbmate")


pytestmark = pytest.mark.skipif(find_dbmate() is None, reason="dbmate is not installed")


class Dbmate:
    """Runs dbmate as a superuser on one database, with some folders of migrations."""

    def __init__(self, server: PgServer, database: str) -> None:
        parts = conninfo_to_dict(server.dsn)
        host = str(parts.get("host") or "/var/run/postgresql")
        login = quote(str(parts.get("user") or "postgres"))
        if host.startswith("/"):
            address = f"{login}@/{database}?host={quote(host, safe='')}&port={parts.get('port', 5432)}"
        else:
            secret = f":{quote(str(parts['password']))}" if parts.get("password") else ""
            address = f"{login}{secret}@{host}:{parts.get('port', 5432)}/{database}?sslmode=prefer"
        self.url = f"postgres://{address}"

    def __call__(self, *argv: str, folders: tuple[Path, ...] = (FOLDER,), ok: bool = True) -> str:
        program = find_dbmate()
        assert program is not None
        where = [word for folder in folders for word in ("--migrations-dir", str(folder))]
        environ = {key: value for key, value in os.environ.items() if not key.startswith(("DBMATE_", "PG"))}
        done = subprocess.run(
            [program, "--url", self.url, *where, "--no-dump-schema", *argv],
            capture_output=True,
            text=True,
            env=environ,
            timeout=60,
        )
        said = done.stdout + done.stderr
        assert (done.returncode == 0) == ok, said
        return said


@pytest.fixture
def extra(tmp_path: Path) -> Path:
    folder = tmp_path / "extra"
    folder.mkdir()
    (folder / "2000_by_dbmate.sql").write_text(
        "-- migrate:up\nCREATE TABLE by_dbmate (id int);\n\n-- migrate:down\nDROP TABLE by_dbmate;\n"
    )
    return folder


@pytest.fixture
def plain(server: PgServer, name: str) -> str:
    """An empty database that posduif has no part in."""
    server.sql(f"CREATE DATABASE {name}")
    return name


def test_dbmate_finds_nothing_to_do_on_a_tenant(server: PgServer, tenant: str) -> None:
    said = Dbmate(server, tenant)("status")
    assert f"Applied: {len(BUNDLED)}" in said
    assert "Pending: 0" in said
    before = server.sql("SELECT * FROM schema_migrations ORDER BY version", database=tenant)
    Dbmate(server, tenant)("migrate")
    assert server.sql("SELECT * FROM schema_migrations ORDER BY version", database=tenant) == before


def test_dbmate_alone_makes_the_same_tables(server: PgServer, plain: str, tenant_beside: str) -> None:
    Dbmate(server, plain)("migrate")
    shape = """SELECT table_name::text, column_name::text, data_type::text, is_nullable::text, column_default
               FROM information_schema.columns WHERE table_schema = 'public' AND table_name <> 'schema_migrations'
               ORDER BY table_name, ordinal_position"""
    assert server.sql(shape, database=plain) == server.sql(shape, database=tenant_beside)
    rest = """SELECT indexdef FROM pg_indexes WHERE schemaname = 'public' AND tablename <> 'schema_migrations'
              UNION ALL SELECT conrelid::regclass || ' ' || conname || pg_get_constraintdef(oid) FROM pg_constraint
              WHERE connamespace = 'public'::regnamespace AND conrelid::regclass::text <> 'schema_migrations'
              UNION ALL SELECT pg_get_triggerdef(oid) FROM pg_trigger WHERE NOT tgisinternal ORDER BY 1"""
    assert server.sql(rest, database=plain) == server.sql(rest, database=tenant_beside)


@pytest.fixture
def tenant_beside(posduif: Posduif, server: PgServer, name: str) -> Iterator[str]:
    beside = f"{name}_b"
    posduif("tenant", "create", beside)
    yield beside
    forget(server, beside)


def test_dbmate_goes_all_the_way_down_and_up(server: PgServer, plain: str) -> None:
    dbmate = Dbmate(server, plain)
    dbmate("migrate")
    for version in reversed(BUNDLED):
        assert server.sql("SELECT max(version) FROM schema_migrations", database=plain) == [(version,)]
        dbmate("rollback")
    assert server.sql("SELECT tablename::text FROM pg_tables WHERE schemaname = 'public'", database=plain) == [
        ("schema_migrations",)
    ]
    dbmate("migrate")
    assert "Pending: 0" in dbmate("status")


def test_our_shape_of_the_table_is_one_that_dbmate_writes_to(server: PgServer, plain: str, extra: Path) -> None:
    """dbmate's own table gains our columns as `complete_table` gives them; then dbmate goes on with it."""
    from posduif_cli.db import queries

    dbmate = Dbmate(server, plain)
    dbmate("migrate")
    for name in ("create_table", "complete_table") * 2:
        server.sql(queries.load("schema/history")[name], database=plain)
    assert server.sql(queries.load("schema/history")["list_applied"], database=plain)[0][0] == "0001"
    dbmate("migrate", folders=(FOLDER, extra))
    [row] = server.sql(
        "SELECT checksum, applied_at > now() - interval '1 minute', duration_ms, applied_by FROM schema_migrations "
        "WHERE version = '2000'",
        database=plain,
    )
    assert row == (None, True, None, conninfo_to_dict(server.dsn).get("user", "postgres"))
    dbmate("rollback", folders=(FOLDER, extra))
    assert server.sql("SELECT max(version) FROM schema_migrations", database=plain) == [(BUNDLED[-1],)]


def test_a_tenant_that_dbmate_went_on_with(posduif: Posduif, server: PgServer, tenant: str, extra: Path) -> None:
    dbmate = Dbmate(server, tenant)
    dbmate("migrate", folders=(FOLDER, extra))
    options = ("--config", str(extra.parent / "c.yaml"))
    (extra.parent / "c.yaml").write_text(f"migrations: {{paths: ['{extra}']}}\n")

    assert states(posduif, tenant) == {**dict.fromkeys(BUNDLED, "applied"), "2000": "missing"}
    assert states(posduif, tenant, *options) == dict.fromkeys([*BUNDLED, "2000"], "applied")
    # The record does not know of it yet, and says so rather than the contrary.
    [row] = posduif.json("migrate", "status", tenant, "--check", *options, code=1)
    assert row["pending"] == 1
    [outcome] = posduif.json("migrate", "up", tenant, *options)
    assert (outcome["status"], outcome["to"]) == ("unchanged", "2000")
    posduif("migrate", "status", tenant, "--check", *options)
    [row] = posduif.json("migrate", "status", tenant, "--check", code=1)
    assert (row["pending"], row["ahead"]) == (0, 1), "its file is not among those of this configuration"

    # What dbmate made as a superuser is not ours, and does not stop the next migration.
    (extra / "2001_by_posduif.sql").write_text("-- migrate:up\nCREATE TABLE by_posduif (id int);\n")
    assert [row["status"] for row in posduif.json("migrate", "up", tenant, *options)] == ["ok"]
    owners = server.sql(
        "SELECT tablename::text, tableowner::text FROM pg_tables WHERE tablename LIKE 'by\\_%' ORDER BY 1",
        database=tenant,
    )
    assert owners == [
        ("by_dbmate", conninfo_to_dict(server.dsn).get("user", "postgres")),
        ("by_posduif", "posduif_admin"),
    ]
    said = dbmate("status", folders=(FOLDER, extra))
    assert "Pending: 0" in said


def test_the_engine_cannot_note_a_migration(server: PgServer, tenant: str) -> None:
    with server.connect(tenant) as conn:
        conn.execute(f"SET ROLE {tenant}_engine".encode())
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            conn.execute("INSERT INTO schema_migrations (version) VALUES ('9999')")
