"""Sessions: what the second one on a server need not ask, and how few messages a lock and a transaction take."""

import re
import threading
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
    pipeline = session.pipeline()
    taken = session.try_lock(pipeline, tenant)
    asked = [pipeline.execute("VALUES (1, NULL), (2, 'b')"), pipeline.execute("SELECT 'b' WHERE false")]
    assert (taken.value, lockers(server, tenant)) == (None, []), "nothing is sent yet"
    pipeline.send()
    assert (taken.value, [answer.rows for answer in asked]) == (True, [[(1, None), (2, "b")], []])
    assert lockers(server, tenant) == [session.pid]


def test_what_is_asked_with_the_lock_is_of_after_the_lock(session: Session, server: PgServer, tenant: str) -> None:
    """A session that waits in the server between the two would see what was committed meanwhile."""
    server.sql("CREATE TABLE said (what text); GRANT SELECT ON said TO posduif_admin", database=tenant)
    with session.transaction():
        pipeline = session.pipeline()
        before = pipeline.execute("SELECT count(*) FROM said")
        pipeline.execute("SELECT pg_sleep(0.5)")
        after = pipeline.execute("SELECT count(*) FROM said")
        writer = threading.Timer(0.2, server.sql, ["INSERT INTO said VALUES ('x')"], {"database": tenant})
        writer.start()
        pipeline.send()
        writer.join()
    assert (before.value, after.value) == (0, 1)


def test_a_question_that_fails_leaves_the_lock_held_once(session: Session, server: PgServer, tenant: str) -> None:
    pipeline = session.pipeline()
    taken = session.try_lock(pipeline, tenant)
    wrong = pipeline.execute("SELECT * FROM public.nowhere")
    never = pipeline.execute("SELECT 1")
    with pytest.raises(QueryFailed, match="nowhere"):
        pipeline.send()
    assert (taken.value, pipeline.failed, never.rows) == (True, wrong, [])
    assert lockers(server, tenant) == [session.pid]
    with session.lock(tenant):
        pass
    assert lockers(server, tenant) == [session.pid], "it was taken twice, and given back once"


def test_a_lock_that_is_kept_ends_with_the_session(
    here: Server, session: Session, server: PgServer, tenant: str
) -> None:
    with connect(here, tenant, command="holder") as holder:
        with holder.lock(tenant, keep=True):
            pass
        with pytest.raises(Busy) as busy, session.lock(tenant, wait=timedelta(0)):
            pass
        assert "posduif holder" in str(busy.value.why)
    with session.lock(tenant):
        assert lockers(server, tenant) == [session.pid]
    assert lockers(server, tenant) == []


def test_a_transaction_begins_with_its_first_pipeline(session: Session, server: PgServer, tenant: str) -> None:
    def made() -> list[str]:
        return [n for (n,) in server.sql("SELECT relname::text FROM pg_class WHERE relname ~ '^once'", database=tenant)]

    pipeline = session.pipeline()
    with session.transaction(first=pipeline, lock_timeout=timedelta(seconds=3)):
        pipeline.execute("CREATE TABLE once1 ()")
        shown = [pipeline.execute("SHOW lock_timeout"), pipeline.execute("SHOW transaction_isolation")]
        pipeline.send()
        assert [answer.value for answer in shown] == ["3s", "read committed"]
        assert made() == []
    assert made() == ["once1"]
    assert session.value("SHOW lock_timeout") == "10s"

    def fail() -> None:
        pipeline.execute("CREATE TABLE once2 ()")
        pipeline.send()
        pipeline.execute("SELECT 1")
        wrong = pipeline.execute("SELECT 1 / 0")
        try:
            pipeline.send()
        finally:
            assert pipeline.failed is wrong

    with pytest.raises(QueryFailed, match="division"), session.transaction(first=pipeline):
        fail()
    with pytest.raises(ValueError, match="before it began"), session.transaction(first=session.pipeline()):
        raise ValueError("before it began")
    pipeline.execute("CREATE TABLE once3 ()")
    pipeline.send()
    assert made() == ["once1", "once3"], "nothing of a transaction that never began is left over for the next message"


@pytest.mark.parametrize(
    ("parts", "index", "position"),
    [
        (["SELECT 1", "SELECT nothing"], 1, 8),
        (["SELEKT 1", "SELECT 1"], 0, 1),
        (["SELECT 1", "SELECT (1"], 1, 10),
        (["SELECT 1", "SELECT 1; SELECT 2"], 1, None),
        (["SELECT 1", "SELECT $1"], 1, None),
        ([*["SELECT 1"] * 300, "SELEKT 1", *["SELECT 1"] * 300], 300, 1),
    ],
)
def test_an_error_is_blamed_on_its_statement(
    session: Session, parts: list[str], index: int, position: int | None
) -> None:
    for _ in range(20):
        pipeline = session.pipeline()
        answers = pipeline.script(*parts)
        with pytest.raises(QueryFailed) as failed:
            pipeline.send()
        assert failed.value.position == position
        assert pipeline.failed is answers[index]
        assert session.value("SELECT 1") == 1


@pytest.mark.parametrize("wrong", ["COPY pg_class TO STDOUT", "INSERT INTO pg_temp.once VALUES (1), (1)"])
def test_what_a_pipeline_cannot_get_over_ends_the_session(session: Session, wrong: str) -> None:
    session.execute("CREATE TEMPORARY TABLE once (id int UNIQUE DEFERRABLE INITIALLY DEFERRED)")
    pipeline = session.pipeline()
    pipeline.script("SELECT 1", wrong, "SELECT 2")
    with pytest.raises(QueryFailed, match="ended amid"):
        pipeline.send()
    assert session.broken


def test_a_deferred_constraint_fails_with_its_transaction(session: Session) -> None:
    session.execute("CREATE TEMPORARY TABLE once (id int UNIQUE DEFERRABLE INITIALLY DEFERRED)")

    def insert_twice() -> None:
        pipeline = session.pipeline()
        with session.transaction(first=pipeline):
            pipeline.script("INSERT INTO pg_temp.once VALUES (1), (1)", "SELECT 1")
            pipeline.send()

    with pytest.raises(QueryFailed, match="unique"):
        insert_twice()
    assert session.value("SELECT count(*) FROM pg_temp.once") == 0


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
