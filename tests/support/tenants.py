"""Tenants under test: made and removed, and what stands in their records and their tables."""

import json
import uuid
from base64 import b64decode
from collections.abc import Callable, Iterator
from hashlib import pbkdf2_hmac, sha256
from hmac import digest
from typing import Any

import psycopg
import pytest

from support.runner import Posduif
from support.servers import PgServer

TABLES = ("users", "messages", "sync_metadata", "enrollment_tokens")
FORBIDDEN = [
    "CREATE TABLE mine ()",
    "CREATE TEMP TABLE mine ()",
    "CREATE SCHEMA mine",
    "CREATE FUNCTION mine() RETURNS int LANGUAGE sql AS 'SELECT 1'",
    "CREATE VIEW mine AS SELECT 1",
    "CREATE SEQUENCE mine",
    "CREATE TYPE mine AS (a int)",
    "DROP EXTENSION plpgsql",
    "CREATE PUBLICATION mine",
    "CREATE DATABASE mine",
    "CREATE ROLE mine",
    "SELECT * FROM schema_migrations",
    "INSERT INTO schema_migrations (version) VALUES ('9999')",
    "DROP SCHEMA public",
    "DROP FUNCTION update_synced_at()",
    "SET ROLE posduif_admin",
    "SET ROLE posduif_engine; CREATE TABLE mine ()",
    "SET SESSION AUTHORIZATION posduif_admin",
    "ALTER ROLE posduif_engine SUPERUSER",
    "COMMENT ON ROLE posduif_engine IS 'mine'",
    "GRANT posduif_admin TO CURRENT_USER",
    "COPY (SELECT 1) TO PROGRAM 'true'",
    "SELECT pg_read_file('PG_VERSION')",
    "SELECT pg_create_logical_replication_slot('mine', 'pgoutput')",
    "SELECT rolpassword FROM pg_authid",
    *(
        template.format(table=table)
        for table in TABLES
        for template in (
            "DELETE FROM {table}",
            "TRUNCATE {table} CASCADE",
            "DROP TABLE {table} CASCADE",
            "ALTER TABLE {table} ADD COLUMN mine int",
            "ALTER TABLE {table} DISABLE TRIGGER ALL",
            "CREATE INDEX ON {table} (id)",
            "CREATE TRIGGER mine BEFORE UPDATE ON {table} FOR EACH ROW EXECUTE FUNCTION update_updated_at_column()",
        )
    ),
]


def forget(server: PgServer, name: str) -> None:
    """Remove everything under a tenant's name, whatever state it is in."""
    server.sql(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
    server.sql(f"DROP ROLE IF EXISTS {name}_engine")


@pytest.fixture
def name(server: PgServer) -> Iterator[str]:
    """A tenant's name that nobody has; what it names is removed afterwards."""
    chosen = f"t{uuid.uuid4().hex[:12]}"
    yield chosen
    forget(server, chosen)


@pytest.fixture
def tenant(posduif: Posduif, name: str) -> str:
    """A tenant with a web user `desk` and a url."""
    posduif("tenant", "create", name, "--web-user", "desk", "--url", f"https://{name}.example.com")
    return name


@pytest.fixture
def bystander(server: PgServer, name: str) -> Iterator[Callable[[], None]]:
    """A database and a role of other people with a name much like ours, and a check that they were left alone."""
    other = f"{name}_x"
    server.sql(f"CREATE ROLE {other}_engine")
    server.sql(f"CREATE DATABASE {other} OWNER {other}_engine CONNECTION LIMIT 7")

    def fingerprint() -> list[tuple[Any, ...]]:
        return server.sql(
            """SELECT d.*::text, r.*::text, shobj_description(d.oid, 'pg_database'),
                      shobj_description(r.oid, 'pg_authid')
               FROM pg_database d, pg_authid r WHERE datname = %s AND rolname = %s""",
            other,
            f"{other}_engine",
        )

    before = fingerprint()

    def untouched() -> None:
        assert len(before) == 1
        assert fingerprint() == before

    yield untouched
    forget(server, other)


def comment(server: PgServer, name: str) -> str:
    """Return the comment on a database, empty where there is none."""
    query = "SELECT shobj_description(oid, 'pg_database') FROM pg_database WHERE datname = %s"
    return str(server.sql(query, name)[0][0] or "")


def record(server: PgServer, tenant: str) -> dict[str, Any]:
    """Return a tenant's record, as it is written."""
    noted = comment(server, tenant)
    assert noted.startswith("posduif {")
    payload: dict[str, Any] = json.loads(noted.removeprefix("posduif "))
    return payload


def note(server: PgServer, tenant: str, **changes: Any) -> dict[str, Any]:
    """Change a tenant's record by hand; what is None is taken out of it. Return the record."""
    payload = {**record(server, tenant), **changes}
    payload = {key: value for key, value in payload.items() if value is not None}
    server.sql(f"COMMENT ON DATABASE {tenant} IS 'posduif {json.dumps(payload)}'")
    return payload


def state(posduif: Posduif, name: str) -> str | None:
    listed: dict[str, str] = {row["tenant"]: row["state"] for row in posduif.json("tenant", "list")}
    return listed.get(name)


def versions(server: PgServer, tenant: str) -> list[str]:
    return [v for (v,) in server.sql("SELECT version FROM schema_migrations ORDER BY version", database=tenant)]


def tables(server: PgServer, tenant: str) -> set[str]:
    return {
        name
        for (name,) in server.sql("SELECT tablename::text FROM pg_tables WHERE schemaname = 'public'", database=tenant)
    }


def states(posduif: Posduif, tenant: str, *options: str) -> dict[str, str]:
    return {row["version"]: row["state"] for row in posduif.json("migrate", "list", tenant, *options)}


def user(server: PgServer, tenant: str, **columns: str) -> uuid.UUID:
    values = {"username": uuid.uuid4().hex, "user_type": "mobile", **columns}
    [(key,)] = server.sql(
        f"INSERT INTO users ({', '.join(values)}) VALUES ({', '.join(['%s'] * len(values))}) RETURNING id",
        *values.values(),
        database=tenant,
    )
    assert isinstance(key, uuid.UUID)
    return key


def matches(verifier: str, password: str) -> bool:
    """Whether a SCRAM verifier was made from a password (RFC 5803)."""
    if not verifier:
        return False
    scheme, salt, keys = verifier.split("$")
    rounds, salt = salt.split(":")
    salted = pbkdf2_hmac("sha256", password.encode(), b64decode(salt), int(rounds))
    stored = sha256(digest(salted, b"Client Key", "sha256")).digest()
    return scheme == "SCRAM-SHA-256" and stored == b64decode(keys.split(":")[0])


@pytest.fixture
def engine(server: PgServer, tenant: str) -> Iterator[psycopg.Connection[Any]]:
    """A session of the tenant's sync engine."""
    with server.connect(tenant, user=f"{tenant}_engine") as conn:
        yield conn
