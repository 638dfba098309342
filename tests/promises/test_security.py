"""What an attacker tried: planted roles, engines that hold on to locks, settings of the environment and of poolers."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
import yaml

from posduif_cli.db.session import LOCK_CLASS
from support.hints import obey
from support.relay import Pooler
from support.runner import As, Posduif
from support.servers import PgServer

PLANT = """
    CREATE ROLE posduif_admin NOLOGIN CREATEDB CREATEROLE;
    COMMENT ON ROLE posduif_admin IS 'posduif: owns every tenant database and its objects';
    GRANT posduif_admin TO mallory WITH INHERIT TRUE, SET TRUE
"""
TRAP = """
    SET ROLE posduif_admin;
    CREATE FUNCTION public.trap() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        EXECUTE 'SET ROLE ' || quote_ident(session_user);
        ALTER ROLE mallory SUPERUSER;
        SET ROLE posduif_admin;
        RETURN new;
    EXCEPTION WHEN OTHERS THEN RETURN new;
    END $$;
    CREATE TRIGGER trap BEFORE INSERT ON public.users FOR EACH ROW EXECUTE FUNCTION public.trap()
"""


def superusers(server: PgServer) -> list[str]:
    return [name for (name,) in server.sql("SELECT rolname::text FROM pg_roles WHERE rolsuper ORDER BY 1")]


class TestPlantedRoles:
    """A login with CREATEROLE makes our roles before we do."""

    @pytest.fixture
    def planted(self, fresh: PgServer) -> PgServer:
        if fresh.version < 16:
            pytest.skip("before PostgreSQL 16 CREATEROLE may grant itself every role, and nothing can be proved")
        fresh.sql("CREATE ROLE mallory LOGIN CREATEROLE CREATEDB")
        fresh.sql(PLANT, user="mallory")
        return fresh

    def test_a_superuser_works_with_no_planted_owner(self, planted: PgServer, as_: As) -> None:
        root = as_("postgres")
        for argv in (("tenant", "create", "victim"), ("tenant", "list"), ("server", "init"), ("health",)):
            refused = root(*argv, code=None)
            assert refused.code in (1, 3), argv
            assert "mallory may give posduif_admin to anyone" in refused.err + refused.out, argv
        assert planted.sql("SELECT 1 FROM pg_database WHERE datname = 'victim'") == []
        assert "mallory may give posduif_admin to anyone" in root("doctor", code=1).out

        error = root("tenant", "create", "victim", "-o", "json", code=3).error
        assert error["code"] == "planted_role"
        assert error["try"][0].startswith("a superuser types: REVOKE ADMIN OPTION FOR posduif_admin FROM mallory")
        assert obey(planted, error["try"])
        root("tenant", "create", "victim", "--web-user", "admin", "--url", "https://v.example.com")

    def test_the_trap_of_a_planted_owner_is_never_entered(self, planted: PgServer, as_: As) -> None:
        as_("mallory")("tenant", "create", "victim")
        planted.sql(TRAP, database="victim", user="mallory")
        root = as_("postgres")
        for argv in (
            ("user", "create", "victim", "desk", "--type", "web"),
            ("user", "list", "victim"),
            ("migrate", "up", "victim"),
            ("tenant", "verify", "victim"),
            ("token", "purge", "--all"),
        ):
            root(*argv, code=3)
        assert superusers(planted) == ["postgres"]

    def test_a_dropped_maker_is_not_forgotten(self, planted: PgServer, as_: As) -> None:
        as_("mallory")("tenant", "create", "victim")
        planted.sql("DROP OWNED BY mallory; DROP ROLE mallory")
        root = as_("postgres")
        error = root("migrate", "up", "victim", "-o", "json", code=3).error
        assert error["code"] == "planted_role"
        assert "is gone" in error["message"]
        assert obey(planted, [hint.removeprefix("where you trust them, ") for hint in error["try"]])
        root("migrate", "up", "victim")

    def test_a_role_of_ours_that_may_log_in_is_refused(self, fresh: PgServer, as_: As) -> None:
        as_("alice")("tenant", "create", "acme")
        fresh.sql("ALTER ROLE posduif_health LOGIN PASSWORD 'known'")
        error = as_("alice")("tenant", "create", "next", "-o", "json", code=5).error
        assert "posduif_health may log in" in error["message"]
        assert obey(fresh, error["try"])
        as_("alice")("tenant", "create", "next")

    def test_who_is_no_superuser_goes_on(self, fresh: PgServer, as_: As) -> None:
        as_("alice")("tenant", "create", "acme")
        fresh.sql("GRANT posduif_admin TO bob", user="alice")
        as_("bob")("user", "create", "acme", "desk", "--type", "web")
        assert [row["tenant"] for row in as_("alice").json("tenant", "list")] == ["acme"]

    def test_who_lost_the_option_is_named_and_never_made_a_member_again(self, fresh: PgServer, as_: As) -> None:
        if fresh.version < 16:
            pytest.skip("ADMIN OPTION is given by itself since PostgreSQL 16")
        as_("alice")("tenant", "create", "acme")
        fresh.sql("GRANT posduif_admin TO bob", user="alice")
        hints = as_("postgres")("tenant", "list", "-o", "json", code=3).error["try"]
        assert [hint for hint in hints if hint.startswith("that takes it from alice, bob, too")], hints
        assert obey(fresh, hints) == 1  # nobody is made a member by name
        as_("postgres")("tenant", "list")
        as_("bob")("tenant", "create", "other", code=6)
        fresh.sql(
            as_("alice")("tenant", "create", "other", "-o", "json", code=6).error["try"][0].partition("types: ")[2]
        )
        fresh.sql("GRANT posduif_admin TO bob")
        for login in ("alice", "bob"):
            as_(login)("user", "create", "acme", f"desk_{login}", "--type", "web")
        assert fresh.sql("SELECT pg_has_role('alice', 'posduif_admin', 'MEMBER WITH ADMIN OPTION')") == [(False,)]

    @pytest.mark.parametrize("state", ["provisioning", "active"])
    def test_a_forged_intent_is_none(self, fresh: PgServer, as_: As, state: str) -> None:
        as_("alice")("tenant", "create", "acme")
        fresh.sql("CREATE ROLE mallory LOGIN CREATEROLE CREATEDB")
        fresh.sql("CREATE ROLE next_engine", user="mallory")
        noted = f'posduif {{"v":1,"tenant":"next","state":"{state}","nonce":1234567}}'
        fresh.sql(f"COMMENT ON ROLE next_engine IS '{noted}'", user="mallory")
        alice = as_("alice")
        if fresh.version < 16:
            pytest.skip("before PostgreSQL 16 nothing tells who made a role")
        assert [row["tenant"] for row in alice.json("tenant", "list")] == ["acme"]
        error = alice("tenant", "create", "next", "-o", "json", code=5).error
        assert "next_engine" in error["message"]
        assert fresh.sql("SELECT 1 FROM pg_database WHERE datname = 'next'") == []
        alice("tenant", "verify", "--all")
        alice("health")
        # Given away it is still mallory's.
        fresh.sql("GRANT next_engine TO posduif_admin WITH ADMIN OPTION", user="mallory")
        alice("tenant", "create", "next", code=5)
        fresh.sql("DROP OWNED BY mallory; DROP ROLE mallory")
        assert [row["tenant"] for row in alice.json("tenant", "list")] == ["acme"]
        alice("tenant", "create", "next", code=5)

    def test_roles_of_an_upgraded_server_are_found(self, fresh: PgServer, as_: As) -> None:
        if fresh.version < 16:
            pytest.skip("only since PostgreSQL 16 a role is administered by ADMIN OPTION")
        as_("postgres")("tenant", "create", "acme")
        fresh.sql("REVOKE ADMIN OPTION FOR acme_engine FROM posduif_admin CASCADE")
        fresh.sql("GRANT acme_engine TO posduif_admin WITH INHERIT TRUE, SET TRUE")
        fresh.sql("CREATE ROLE olga LOGIN; GRANT posduif_admin TO olga")
        olga = as_("olga")
        assert [row["tenant"] for row in olga.json("tenant", "list")] == ["acme"]
        [found] = [row for row in olga.json("server", "init", code=1) if row["check"] == "server.engines"]
        assert "acme_engine" in found["message"]
        assert found["fix"].endswith("GRANT acme_engine TO posduif_admin WITH ADMIN OPTION;")
        fresh.sql(found["fix"].partition("types: ")[2])
        assert not [
            row for row in olga.json("server", "init") if row["check"] == "server.engines" and row["level"] != "ok"
        ]
        olga("tenant", "suspend", "acme")


class Nuisance:
    """An engine that wants to be in the way: what it does, it does again as soon as its session is ended."""

    def __init__(self, server: PgServer, tenant: str, database: str, *deeds: str, stubborn: bool = True) -> None:
        self.server, self.role, self.database, self.deeds = server, f"{tenant}_engine", database, deeds
        self.stop = threading.Event()
        self.stubborn = stubborn
        self.holding = threading.Event()
        self.thread = threading.Thread(target=self._hold, daemon=True)

    def __enter__(self) -> "Nuisance":
        self.thread.start()
        assert self.holding.wait(20)
        return self

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        self.thread.join(20)

    def _hold(self) -> None:
        while not self.stop.is_set():
            with suppress(psycopg.Error), self.server.connect(self.database, user=self.role) as conn:
                for deed in self.deeds:
                    conn.execute(deed.encode())
                self.holding.set()
                while not self.stop.wait(0.01):
                    conn.execute("SELECT 1")
            if not self.stubborn:
                return


HOLDS = {
    "the tenant's lock": "SELECT pg_advisory_lock({lock}, hashtext('{name}'))",
    "the tenant's lock, shared": "SELECT pg_advisory_lock_shared({lock}, hashtext('{name}'))",
    "its own role": "BEGIN; ALTER ROLE {name}_engine SET work_mem = '1MB'; ALTER ROLE {name}_engine PASSWORD 'x'",
    # It may lock no table whole: that takes rights on the table, and it has them on columns.
    "rows": "BEGIN; UPDATE users SET username = username; INSERT INTO sync_metadata (device_id) VALUES ('d'); "
    "SELECT count(*) FROM messages",
}


@contextmanager
def hostile(server: PgServer, name: str, hold: str, *, stubborn: bool = True) -> Iterator[Nuisance]:
    server.sql(f"ALTER ROLE {name}_engine PASSWORD 'known'")
    deeds = HOLDS[hold].format(lock=LOCK_CLASS, name=name).split("; ")
    with Nuisance(server, name, name, *deeds, stubborn=stubborn) as engine:
        yield engine


@pytest.mark.parametrize("stubborn", [False, True], ids=["once", "stubborn"])
@pytest.mark.parametrize("hold", HOLDS)
def test_suspend_always_works(posduif: Posduif, server: PgServer, tenant: str, hold: str, stubborn: bool) -> None:
    with hostile(server, tenant, hold, stubborn=stubborn):
        done = posduif("tenant", "suspend", tenant)
        assert done.code == 0
        assert engine_sessions(server, tenant) == []
    assert posduif.json("tenant", "show", tenant)["state"] == "suspended"
    posduif("tenant", "verify", tenant)


@pytest.mark.parametrize("stubborn", [False, True], ids=["once", "stubborn"])
@pytest.mark.parametrize("hold", HOLDS)
def test_drop_always_works(posduif: Posduif, server: PgServer, tenant: str, hold: str, stubborn: bool) -> None:
    with hostile(server, tenant, hold, stubborn=stubborn):
        posduif("tenant", "drop", tenant, "--confirm", tenant)
    posduif("tenant", "show", tenant, code=4)
    assert server.sql("SELECT 1 FROM pg_roles WHERE rolname = %s", f"{tenant}_engine") == []


@pytest.mark.parametrize("hold", HOLDS)
def test_rotating_always_works(posduif: Posduif, server: PgServer, tenant: str, hold: str, tmp_path: Path) -> None:
    with hostile(server, tenant, hold):
        posduif("tenant", "rotate-password", tenant, "--engine-config", str(tmp_path / "engine.yaml"))
    assert yaml.safe_load((tmp_path / "engine.yaml").read_text())["postgres"]["password"]


@pytest.mark.parametrize("hold", ["the tenant's lock", "the tenant's lock, shared"])
def test_migrations_go_on_and_name_the_session(
    posduif: Posduif, server: PgServer, tenant: str, hold: str, tmp_path: Path
) -> None:
    (tmp_path / "1000_more.sql").write_text("-- migrate:up\nALTER TABLE users ADD COLUMN more int;\n")
    config = tmp_path / "config.yaml"
    config.write_text(f"migrations: {{paths: [{tmp_path}]}}\n")
    with hostile(server, tenant, hold, stubborn=False):
        done = posduif("migrate", "up", tenant, "--config", str(config))
        assert f"of {tenant}_engine: held the lock on {tenant}" in done.err
    assert posduif.json("tenant", "show", tenant)["schema_version"] == "1000"


def test_an_engine_that_is_not_in_the_way_is_left_alone(
    posduif: Posduif, server: PgServer, tenant: str, tmp_path: Path
) -> None:
    with server.connect(tenant, user=f"{tenant}_engine") as engine, server.connect(tenant) as dba:
        engine.execute("BEGIN; SELECT 1")
        dba.execute(
            f"BEGIN; ALTER ROLE {tenant}_engine SET work_mem = '1MB'; ALTER ROLE {tenant}_engine PASSWORD 'x'".encode()
        )
        file = str(tmp_path / "engine.yaml")
        error = posduif("tenant", "rotate-password", tenant, "--engine-config", file, "-o", "json", code=10).error
        assert f"pid {dba.info.backend_pid} (postgres" in error["why"]
        assert engine.execute("SELECT 1").fetchone() == (1,)
        assert server.sql("SELECT rolcanlogin FROM pg_roles WHERE rolname = %s", f"{tenant}_engine") == [(True,)]


def test_an_engine_keeps_no_other_tenant_from_being_made_or_dropped(
    posduif: Posduif, server: PgServer, tenant: str
) -> None:
    other = f"{tenant}z"
    lock = f"SELECT pg_advisory_lock({LOCK_CLASS}, hashtext('{other}'))"
    try:
        for argv in (("tenant", "create", other), ("tenant", "drop", other, "--confirm", other)):
            with Nuisance(server, tenant, "postgres", lock, stubborn=False):
                assert f"of {tenant}_engine: held the lock on {other}" in posduif(*argv).err
    finally:
        server.sql(f"DROP DATABASE IF EXISTS {other} WITH (FORCE)")
        server.sql(f"DROP ROLE IF EXISTS {other}_engine")


@pytest.mark.one_server
def test_any_other_holder_is_named_and_left(posduif: Posduif, server: PgServer, tenant: str) -> None:
    with server.connect(tenant, application_name="a script of bob's") as conn:
        conn.execute("SELECT pg_advisory_lock(%s, hashtext(%s))", [LOCK_CLASS, tenant])
        pid = conn.info.backend_pid
        error = posduif("tenant", "suspend", tenant, "-o", "json", code=10).error
        assert f"a script of bob's of postgres (pid {pid}" in error["why"]
        ends = [hint for hint in error["try"] if "pg_terminate_backend" in hint]
        assert ends == [f"or a superuser types: SELECT pg_terminate_backend({pid});"]
        assert conn.execute("SELECT 1").fetchone() == (1,)


def test_a_suspend_that_leaves_others_connected_says_so(posduif: Posduif, server: PgServer, tenant: str) -> None:
    login = f"{tenant}_old"
    server.sql(f"CREATE ROLE {login} LOGIN SUPERUSER")
    try:
        with server.connect(tenant, user=login, application_name="the old engine") as old:
            pid = old.info.backend_pid
            error = posduif("tenant", "suspend", tenant, "-o", "json", code=10).error
            assert f"pid {pid} ({login}, the old engine)" in error["why"]
            assert posduif.json("tenant", "show", tenant)["state"] == "suspended"
            posduif("tenant", "suspend", tenant, code=10)
            obey(server, error["try"])
        assert posduif.json("tenant", "suspend", tenant)["changed"] is False
    finally:
        server.sql(f"DROP ROLE {login}")


def test_resume_finishes_a_suspend_that_only_closed_the_role(posduif: Posduif, server: PgServer, tenant: str) -> None:
    server.sql(f"ALTER ROLE {tenant}_engine NOLOGIN")
    [found] = [row for row in posduif.json("health", tenant, code=1)["findings"] if row["check"] == "tenant.state"]
    assert (found["level"], found["fix"]) == ("critical", f"posduif tenant resume {tenant}")
    assert posduif.json("tenant", "resume", tenant)["changed"] is True
    assert server.sql("SELECT rolcanlogin FROM pg_roles WHERE rolname = %s", f"{tenant}_engine") == [(True,)]
    assert posduif.json("tenant", "resume", tenant)["changed"] is False
    server.sql(f"ALTER ROLE {tenant}_engine NOLOGIN")
    assert posduif.json("tenant", "suspend", tenant)["changed"] is True


def engine_sessions(server: PgServer, tenant: str) -> list[Any]:
    return server.sql("SELECT pid FROM pg_stat_activity WHERE usename = %s", f"{tenant}_engine")


ODD = {"PGTZ": "Asia/Tokyo", "PGDATESTYLE": "German", "PGOPTIONS": "-c TimeZone=Asia/Tokyo -c IntervalStyle=iso_8601"}


def test_the_environment_never_wins_over_the_pins(
    posduif: Posduif, server: PgServer, tenant: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    # psycopg's and libpq's own variables are read by a new process.
    def run(*argv: str) -> str:
        done = posduif.process(*argv, **ODD)
        assert done.code == 0, done
        return done.out

    run("user", "create", tenant, "mia", "--type", "web")
    run("user", "list", tenant)
    url = run("token", "create", tenant, "--by", "desk").strip()
    run("enroll", "complete", url, "--device", "d1", "--username", "phone")
    run("message", "send", tenant, "--from", "desk", "--to", "phone", "hello")
    (sent,) = server.sql("SELECT id::text FROM messages", database=tenant)[0]
    run("message", "mark", tenant, sent, "synced")
    (tmp_path / "1000_times.sql").write_text(
        "-- migrate:up\nCREATE TABLE times (at timestamp); INSERT INTO times VALUES (now());\n"
        "RESET TimeZone; INSERT INTO times VALUES (now());\n"
    )
    config = tmp_path / "config.yaml"
    config.write_text(f"migrations: {{paths: [{tmp_path}]}}\n")
    run("migrate", "up", tenant, "--config", str(config))
    run("migrate", "list", tenant)
    for query in (
        "SELECT synced_at, updated_at FROM messages",
        "SELECT created_at, updated_at, enrolled_at FROM users WHERE username = 'phone'",
        "SELECT created_at, used_at FROM enrollment_tokens",
        "SELECT min(at) FROM times",
        "SELECT max(at) FROM times",
    ):
        for row in server.sql(query, database=tenant, options="-c timezone=UTC"):
            for at in row:
                assert abs(datetime.now(UTC).replace(tzinfo=None) - at) < timedelta(minutes=10), query


def test_a_refused_pooler_keeps_nothing(server: PgServer, posduif: Posduif, tenant: str, run_on: Any) -> None:
    def settings() -> list[Any]:
        with psycopg.connect(pooler.dsn, autocommit=True) as conn:
            rows = conn.execute("SELECT name || '=' || setting FROM pg_settings WHERE source = 'session'").fetchall()
            return [*rows, conn.execute("SELECT current_user::text").fetchone()]

    with Pooler(server) as pooler:
        before = settings()
        refused = posduif("tenant", "list", "--dsn", pooler.dsn, code=3)
        assert "pooler" in refused.err
        assert settings() == before
