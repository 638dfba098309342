"""Sessions: what the second one on a server need not ask, and how few messages a lock and a transaction take."""

import re
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta

import pytest

from posduif_cli.core.fleet.fleet import Fleet
from posduif_cli.db.connect import connect
from posduif_cli.db.session import WATCHFUL, Session
from posduif_cli.errors import AccessDenied, Busy, QueryFailed
from posduif_cli.models.servers import Server
from support.runner import Posduif
from support.servers import PgServer


@pytest.fixture
def here(server: PgServer, tenant: str) -> Server:
    """A server whose login has everything otherwise than posduif wants it."""
    odd = {
        "geqo": "off",
        "lock_timeout": "7s",
        "default_transaction_isolation": "serializable",
        "DateStyle": "German",
        "standard_conforming_strings": "off",
        "quote_all_identifiers": "on",
        "role": f"{tenant}_engine",
    }
    return Server("s", server.dsn_for(options=" ".join(f"-c {key}={value}" for key, value in odd.items())))


@pytest.fixture
def session(here: Server, tenant: str) -> Iterator[Session]:
    with connect(here, tenant, command="test", path="public") as session:
        yield session


def told(session: Session) -> dict[str, object]:
    names = ["role", "geqo", "session_authorization", *WATCHFUL]
    return {name: session.value(f"SHOW {name}") for name in names}


def lockers(server: PgServer, database: str) -> list[int]:
    rows = server.sql(
        """SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND granted
           AND database = (SELECT oid FROM pg_database WHERE datname = %s)""",
        database,
    )
    return [pid for (pid,) in rows]


def test_a_session_on_a_footing_is_like_one_that_asked(here: Server, tenant: str) -> None:
    with connect(here, tenant, command="test") as first:
        footing = first.footing
        assert footing is not None
        with connect(here, tenant, command="test", footing=footing) as second:
            assert told(second) == told(first)
            assert told(second)["role"] == "posduif_admin"
            assert (told(second)["geqo"], told(second)["lock_timeout"]) == ("off", "10s")
            assert second.value("SHOW transaction_isolation") == "read committed"
            assert second.value("SELECT 'posduif_admin'::regrole::text || '\\' || date '2026-12-31'") == (
                "posduif_admin\\2026-12-31"
            )
            assert second.pid == second.value("SELECT pg_backend_pid()") != first.pid
            assert (second.member, second.standby, second.footing) == (True, False, footing)
            second.require_admin()


def test_a_session_is_restored(here: Server, tenant: str) -> None:
    with connect(here, tenant, command="test") as first:
        for footing in (None, first.footing):
            with connect(here, tenant, command="test", footing=footing) as session:
                before = told(session)
                session.script(
                    "SET TimeZone = 'Asia/Tokyo'; SET check_function_bodies = off; SET client_encoding = LATIN1"
                )
                session.script("SET default_transaction_read_only = on; SET ROLE none; SET search_path = pg_catalog")
                session.restore()
                assert told(session) == before
                assert session.value("SHOW check_function_bodies") == "on"
                assert session.value("SELECT length('é€')") == 2


def test_a_fleet_asks_once(here: Server, tenant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    set_up = Session._set_up

    def noted(session: Session) -> None:
        asked.append(session.database)
        set_up(session)

    monkeypatch.setattr(Session, "_set_up", noted)
    fleet = Fleet((here,), "test")
    with fleet.open(tenant) as place:
        assert place.session.value("SELECT current_user") == "posduif_admin"
    assert asked == ["postgres"]


@pytest.mark.parametrize("group", ["posduif_support", None])
def test_who_is_no_administrator_stands_on_no_footing(
    posduif: Posduif, server: PgServer, tenant: str, group: str | None
) -> None:
    login = f"{tenant}_login"
    server.sql(f"CREATE ROLE {login} LOGIN" + (f" IN ROLE {group}" if group else ""))
    try:
        fleet = Fleet((Server("s", server.dsn_for(user=login)),), "test")
        with fleet.maintenance(fleet.servers[0]) as session:
            assert (session.member, session.footing) == (False, None)
        if group is None:
            with pytest.raises(AccessDenied), fleet.open(tenant):
                pass
        else:
            with fleet.open(tenant) as place:
                assert place.session.value("SELECT current_user") == login
    finally:
        server.sql(f"DROP ROLE {login}")


def test_an_administrator_who_is_none_any_more_hears_so(server: PgServer, tenant: str) -> None:
    login = f"{tenant}_login"
    server.sql(f"CREATE ROLE {login} LOGIN IN ROLE posduif_admin")
    try:
        fleet = Fleet((Server("s", server.dsn_for(user=login)),), "test")
        fleet.maintenance(fleet.servers[0]).close()
        server.sql(f"REVOKE posduif_admin FROM {login}")
        with pytest.raises(AccessDenied, match=f"{login} is not a member of posduif_admin"):
            fleet.enter(fleet.servers[0], tenant)
    finally:
        server.sql(f"DROP ROLE {login}")


def test_an_administrator_who_does_not_inherit_hears_what_to_type(
    posduif: Posduif, server: PgServer, tenant: str
) -> None:
    login, other = f"{tenant}_login", f"{tenant}b"
    server.sql(f"CREATE ROLE {login} LOGIN CREATEDB CREATEROLE NOINHERIT IN ROLE posduif_admin")
    here = ("--dsn", server.dsn_for(user=login))
    try:
        for argv in (("tenant", "verify", tenant), ("migrate", "up", tenant), ("tenant", "create", other)):
            refused = posduif(*argv, *here, code=6)
            assert f"{login} does not inherit the rights of posduif_admin" in refused.err, argv
        assert server.sql("SELECT 1 FROM pg_roles WHERE rolname = %s", f"{other}_engine") == [], "nothing was begun"
        [listed] = posduif.json("server", "list", *here)
        assert any("does not inherit" in warning for warning in listed["warnings"])
        server.sql(refused.err.partition("a superuser types: ")[2].partition("\n")[0])
        posduif("tenant", "create", other, *here)
        posduif("tenant", "drop", other, "--confirm", other, *here)
    finally:
        server.sql(f"DROP ROLE {login}")


def test_questions_come_with_the_lock(session: Session, server: PgServer, tenant: str) -> None:
    with session.lock(tenant, asking=["VALUES (1, NULL), (2, 'b')", "SELECT 'b' WHERE false"]) as answers:
        assert answers == [[("1", None), ("2", "b")], []]
        assert lockers(server, tenant) == [session.pid]
    assert lockers(server, tenant) == []


def test_a_question_that_fails_leaves_the_lock_held_once(session: Session, server: PgServer, tenant: str) -> None:
    with session.lock(tenant, asking=["SELECT 1", "SELECT * FROM public.nowhere"]) as answers:
        assert answers is None
        assert lockers(server, tenant) == [session.pid]
    assert lockers(server, tenant) == []


def test_a_lock_that_is_kept_ends_with_the_session(
    here: Server, session: Session, server: PgServer, tenant: str
) -> None:
    with connect(here, tenant, command="holder") as holder:
        with holder.lock(tenant, keep=True):
            pass
        with (
            pytest.raises(Busy) as busy,
            session.lock(tenant, wait=timedelta(0), asking=["SELECT * FROM public.nowhere"]),
        ):
            pass
        assert "posduif holder" in str(busy.value.why)
    with session.lock(tenant):
        assert lockers(server, tenant) == [session.pid]


def test_a_transaction_begins_with_its_first_batch(session: Session, server: PgServer, tenant: str) -> None:
    def made() -> list[str]:
        return [n for (n,) in server.sql("SELECT relname::text FROM pg_class WHERE relname ~ '^once'", database=tenant)]

    with session.transaction(at_once=True, lock_timeout=timedelta(seconds=3)):
        rows, failure = session.batch(["CREATE TABLE once1 ()", "SHOW lock_timeout", "SHOW transaction_isolation"])
        assert (rows, failure) == ([(), ("3s",), ("read committed",)], None)
        assert made() == []
    assert made() == ["once1"]
    assert session.value("SHOW lock_timeout") == "10s"

    def fail() -> None:
        session.batch(["CREATE TABLE once2 ()"])
        _, failure = session.batch(["SELECT 1", "SELECT 1 / 0"])
        assert failure is not None
        assert failure[0] == 1
        raise failure[1]

    with pytest.raises(QueryFailed, match="division"), session.transaction(at_once=True):
        fail()
    with pytest.raises(ValueError, match="before it began"), session.transaction(at_once=True):
        raise ValueError("before it began")
    assert session.batch(["CREATE TABLE once3 ()"]) == ([()], None)
    assert made() == ["once1", "once3"], "nothing of a transaction that never began is left over for the next message"


@pytest.mark.parametrize(
    ("parts", "index", "position"),
    [(["SELECT 1", "SELECT nothing"], 1, 8), (["SELEKT 1", "SELECT 1"], 0, 1), (["SELECT 1", "SELECT (1"], 1, 10)],
)
def test_an_error_is_blamed_on_its_text(session: Session, parts: list[str], index: int, position: int) -> None:
    for at_once in (False, True):
        with session.transaction(at_once=at_once, rollback=True, statement_timeout=timedelta(seconds=9)):
            rows, failure = session.batch(parts)
            assert rows == []
            assert failure is not None
            assert isinstance(failure[1], QueryFailed)
            assert (failure[0], failure[1].position) == (index, position)


def test_a_setting_that_a_server_does_not_take_is_done_without(
    here: Server, tenant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from posduif_cli.db import session

    monkeypatch.setattr(session, "WATCHFUL", {**WATCHFUL, "client_connection_check_interval": "-5"})
    with connect(here, tenant, command="test") as first:
        footing = first.footing
        assert footing is not None
        assert "client_connection_check_interval" not in footing.settings
    with connect(replace(here), tenant, command="test", footing=footing) as second:
        assert second.value("SHOW client_connection_check_interval") == "0"


@pytest.mark.parametrize("closed", ["ALLOW_CONNECTIONS false", "CONNECTION LIMIT 0"])
def test_a_database_that_was_closed_by_hand_is_opened_as_the_error_says(
    posduif: Posduif, server: PgServer, tenant: str, closed: str
) -> None:
    login = f"{tenant}_login"
    server.sql(f"CREATE ROLE {login} LOGIN CREATEDB CREATEROLE IN ROLE posduif_admin")
    here = ("--dsn", server.dsn_for(user=login))  # no limit holds for a superuser
    try:
        server.sql(f"ALTER DATABASE {tenant} {closed}")
        refused = posduif("user", "list", tenant, *here, code=6)
        assert f"database {tenant} on server dsn takes no connections" in refused.err
        server.sql(re.findall("ALTER DATABASE .*;", refused.err)[0])
        posduif("user", "list", tenant, *here)
    finally:
        server.sql(f"DROP ROLE {login}")
