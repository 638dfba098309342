"""What a tenant's engine may do: its four tables, its own database, and nothing else."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
import yaml
from psycopg.errors import InsufficientPrivilege

from support.runner import Posduif
from support.servers import PgServer, free_port, private
from support.tenants import FORBIDDEN, TABLES, forget


def test_an_engine_reaches_only_its_own_database(posduif: Posduif, server: PgServer, tenant: str) -> None:
    other = f"{tenant}_b"
    posduif("tenant", "create", other)
    try:
        for engine, database in ((tenant, other), (other, tenant)):
            with pytest.raises(psycopg.OperationalError, match="permission denied for database"):
                server.connect(database, user=f"{engine}_engine")
            assert server.sql("SELECT current_database()", database=engine, user=f"{engine}_engine") == [(engine,)]
    finally:
        forget(server, other)


@pytest.mark.one_server
def test_functions_that_pass_for_postgresqls_are_never_called(
    own_server: PgServer, run_on: Callable[..., Posduif]
) -> None:
    """A server from before PostgreSQL 15 may let everybody create functions in the maintenance database."""
    posduif = run_on(own_server)
    posduif("tenant", "create", "acme", "--web-user", "desk")
    own_server.sql("GRANT CREATE ON SCHEMA public TO PUBLIC; CREATE ROLE mallory LOGIN")
    body = "PERFORM set_config('role', 'none', false); ALTER ROLE mallory SUPERUSER"
    trap = f"LANGUAGE plpgsql AS $$ BEGIN {body}; RETURN {{}}; END $$"
    with own_server.connect(user="mallory") as conn:
        for function, value in (
            ("left(name, int) RETURNS text", "$1"),
            ("shobj_description(oid, text) RETURNS text", "NULL"),
            ("starts_with(name, text) RETURNS bool", "false"),
            ("coalesced(name) RETURNS text", "$1"),
            ("has_database_privilege(name, name, text) RETURNS bool", "true"),
            ("pg_database_size(bigint) RETURNS bigint", "1"),
        ):
            conn.execute(f"CREATE FUNCTION public.{function} {trap.format(value)}".encode())
    for argv in (
        ("tenant", "list", "--sizes"), ("tenant", "create", "globex"), ("server", "list"), ("server", "init"),
        ("migrate", "up", "--all"), ("tenant", "suspend", "acme"), ("tenant", "resume", "acme"), ("health",),
        ("tenant", "verify", "--all"), ("migrate", "verify", "--all"), ("tenant", "drop", "acme", "--confirm", "acme"),
    ):  # fmt: skip
        posduif(*argv, code=None)
        assert own_server.sql("SELECT rolsuper FROM pg_roles WHERE rolname = 'mallory'") == [(False,)], argv
    assert posduif.json("tenant", "list")[0]["tenant"] == "globex"


def test_nobody_else_may_connect(server: PgServer, tenant: str) -> None:
    stranger = f"{tenant}_stranger"
    server.sql(f"CREATE ROLE {stranger} LOGIN")
    try:
        with pytest.raises(psycopg.OperationalError, match="permission denied for database"):
            server.connect(tenant, user=stranger)
        granted = "SELECT grantee, privilege_type FROM pg_database, aclexplode(datacl) WHERE datname = %s"
        admin, engine = server.sql("SELECT 'posduif_admin'::regrole::oid, %s::regrole::oid", f"{tenant}_engine")[0]
        rights = set(server.sql(granted, tenant))
        assert {right for grantee, right in rights if grantee == engine} == {"CONNECT"}
        groups = server.sql(
            "SELECT oid FROM pg_roles"
            " WHERE rolname IN ('posduif_support', 'posduif_health', 'posduif_cron', 'posduif_backup')"
        )
        people = {oid for (oid,) in groups}
        assert len(people) == 4
        assert {grantee for grantee, _ in rights} == {admin, engine, *people}
        assert {right for grantee, right in rights if grantee in people} == {"CONNECT"}
    finally:
        server.sql(f"DROP ROLE {stranger}")


def test_an_engine_works_on_its_four_tables(engine: psycopg.Connection[Any]) -> None:
    for table in TABLES:
        engine.execute(f"SELECT * FROM {table}".encode())
    engine.execute("INSERT INTO users (username, user_type, device_id) VALUES ('phone', 'mobile', 'd1')")
    engine.execute("INSERT INTO sync_metadata (device_id) VALUES ('d1')")
    engine.execute("INSERT INTO messages (sender_id, recipient_id, content) SELECT id, id, 'hello' FROM users")
    engine.execute(
        """INSERT INTO enrollment_tokens (created_by, tenant_id, expires_at)
           SELECT id, 'x', now() FROM users LIMIT 1"""
    )
    assert engine.execute("UPDATE messages SET status = 'synced'").rowcount == 2
    assert engine.execute("SELECT count(*) FROM messages WHERE synced_at IS NOT NULL").fetchone() == (2,)
    for table in ("users", "enrollment_tokens"):
        assert engine.execute(f"UPDATE {table} SET device_id = 'd2'".encode()).rowcount >= 1
    assert engine.execute("UPDATE sync_metadata SET sync_status = 'syncing'").rowcount == 1


def test_an_engine_may_do_nothing_else(engine: psycopg.Connection[Any], tenant: str) -> None:
    locking = [f"DO $$ BEGIN LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE; END $$" for table in TABLES]
    for statement in (*FORBIDDEN, *locking, f"DROP DATABASE {tenant}", f"COMMENT ON DATABASE {tenant} IS 'mine'"):
        try:
            engine.execute(statement.encode())
        except InsufficientPrivilege:
            continue
        pytest.fail(f"the engine may {statement}")
    granted = "SELECT 1 FROM pg_class, aclexplode(relacl) WHERE relname = 'users' AND grantee = 0"
    engine.execute("GRANT SELECT ON users TO PUBLIC")
    assert engine.execute(granted.encode()).fetchall() == []


def test_an_engines_role_is_an_ordinary_login(server: PgServer, tenant: str) -> None:
    assert server.sql(
        """SELECT rolcanlogin, rolsuper OR rolcreatedb OR rolcreaterole OR rolreplication OR rolbypassrls,
                  pg_has_role(oid, 'posduif_admin', 'MEMBER'), pg_has_role(oid, 'posduif_engine', 'USAGE'), rolpassword
           FROM pg_authid WHERE rolname = %s""",
        f"{tenant}_engine",
    ) == [(True, False, False, True, None)]
    assert (
        server.sql("SELECT rolcanlogin FROM pg_roles WHERE rolname IN ('posduif_admin', 'posduif_engine')")
        == [(False,)] * 2
    )


def test_a_further_table_is_closed_to_the_engine(
    posduif: Posduif, server: PgServer, tenant: str, engine: psycopg.Connection[Any], tmp_path: Path
) -> None:
    (tmp_path / "more").mkdir()
    further = "CREATE TABLE invoices (); CREATE FUNCTION bill() RETURNS int LANGUAGE sql AS 'SELECT 1';"
    (tmp_path / "more" / "1000_invoices.sql").write_text(f"-- migrate:up\n{further}\n")
    (tmp_path / "config.yaml").write_text(f"migrations: {{paths: [{tmp_path / 'more'}]}}\n")
    posduif("migrate", "up", tenant, "--config", str(tmp_path / "config.yaml"))
    for statement in ("SELECT * FROM invoices", "SELECT bill()"):
        with pytest.raises(InsufficientPrivilege):
            engine.execute(statement.encode())


def test_login_by_password_in_utc_on_a_server_elsewhere(
    run_on: Any, tmp_path: Path, clean_environ: pytest.MonkeyPatch
) -> None:
    """Over TCP with the password of the FILE, on a server that keeps its clock and its clients on Tokyo time."""
    port = free_port()
    tokyo: dict[str, Any] = {"timezone": "Asia/Tokyo", "log_timezone": "Asia/Tokyo"}
    with private(listen_addresses="127.0.0.1", port=str(port), **tokyo) as server:
        posduif: Posduif = run_on(server)
        clean_environ.setenv("PGTZ", "Asia/Tokyo")
        clean_environ.setenv("TZ", "Asia/Tokyo")
        file = tmp_path / "engine.yaml"
        url = "https://acme.example.com"
        posduif("tenant", "create", "acme", "--web-user", "desk", "--url", url, "--engine-config", str(file))
        posduif("token", "create", "acme", "--ttl", "1h")
        clean_environ.delenv("PGTZ", raising=False)

        def login(password: str) -> psycopg.Connection[Any]:
            return psycopg.connect(
                host="127.0.0.1", port=port, user="acme_engine", password=password, dbname="acme", autocommit=True
            )

        first = yaml.safe_load(file.read_text())["postgres"]["password"]
        with login(first) as engine:
            assert engine.execute("SHOW TimeZone").fetchone() == ("UTC",)
            now = datetime.now(UTC).replace(tzinfo=None)
            for column, table, ahead in (
                ("created_at", "users", 0),
                ("created_at", "enrollment_tokens", 0),
                ("expires_at", "enrollment_tokens", 1),
            ):
                found = engine.execute(f"SELECT max({column}) FROM {table}".encode()).fetchone()
                assert found is not None
                assert abs(found[0] - now - timedelta(hours=ahead)) < timedelta(minutes=1), (table, column)
        posduif("tenant", "rotate-password", "acme", "--engine-config", str(file))
        second = yaml.safe_load(file.read_text())["postgres"]["password"]
        login(second).close()
        for wrong in (first, "", "x"):
            with pytest.raises(psycopg.OperationalError):
                login(wrong)
        assert server.sql("SHOW TimeZone", database="acme") == [("UTC",)]
        assert server.sql("SHOW TimeZone") == [("Asia/Tokyo",)]
