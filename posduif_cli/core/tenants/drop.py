"""Drop a tenant, so that a kill at any moment leaves what the same command finishes."""

import time
from contextlib import ExitStack
from dataclasses import replace
from datetime import timedelta

from posduif_cli.core.fleet.fleet import Fleet
from posduif_cli.core.schema import history
from posduif_cli.core.tenants import engine, traces
from posduif_cli.db import admin, queries, record
from posduif_cli.db.session import ADMIN_ROLE, Session
from posduif_cli.errors import AccessDenied, Blocked, Busy, Conflict, QueryFailed, Run
from posduif_cli.models.runs import Plan, Step
from posduif_cli.models.servers import Server
from posduif_cli.models.tenants import Loss, State, Tenant

PATIENCE = 2.0  # seconds; a server notices within 500 ms that a client was killed
COUNTING = timedelta(seconds=30)
DROPPING = timedelta(hours=1)  # the files of a large database are many
DEPENDED_ON = "2BP01"
QUERY_CANCELED = "57014"  # what a statement_timeout ends with


def loss(fleet: Fleet, *, name: str, confirmed: bool = False) -> Loss:
    """Count what dropping a tenant would destroy; `uncounted` says why where that is not known.

    Where the engine's locks are in the way of a drop that was *confirmed* already, its sessions are ended.
    Raises as Fleet.find.
    """
    server, tenant = fleet.find(name)
    if tenant.state in (State.PROVISIONING, State.DROPPING, State.LOST) or tenant.schema_version is None:
        return Loss(name, server.name, None, None, None, None)

    def count(shut: bool) -> Loss:
        with (
            fleet.enter(server, name) as conn,
            conn.transaction(read_only=True, lock_timeout=traces.BRIEFLY, statement_timeout=COUNTING),
        ):
            return Loss(name, server.name, **conn.dicts(queries.load("tenants/tenants")["count_loss"])[0])

    try:
        return engine.despite_engine(fleet, name, count, reopen=True) if confirmed else count(False)
    except (QueryFailed, Blocked) as error:
        if isinstance(error, QueryFailed) and error.sqlstate in history.NO_SUCH_TABLE_OR_COLUMN:
            return Loss(name, server.name, None, None, None, None)
        if isinstance(error, Blocked) or error.sqlstate == QUERY_CANCELED:
            return Loss(name, server.name, None, None, None, None, uncounted=error.sentence)
        raise


def plan_drop(fleet: Fleet, *, name: str) -> Plan:
    """Say what `drop` would do; changes nothing and raises as `drop`."""
    server, tenant = fleet.find(name)
    role = admin.engine_role(name)
    with fleet.maintenance(server) as session:
        there = traces.find(session, name)
        if _is_replaced(tenant, there, name):
            if _ties(session, role, elsewhere_than=""):
                raise _its_own(name, there)
            return Plan((Step("drop role", role, f"DROP ROLE {role}"),))
        _require_untied(session, name)
    return Plan(
        (
            Step(
                "end sessions",
                name,
                f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'",  # noqa: S608
            ),
            Step("drop database", name, f"DROP DATABASE {name} WITH (FORCE)"),
            Step("drop role", role, f"DROP ROLE {role}"),
        )
    )


def drop(fleet: Fleet, *, name: str) -> bool:
    """Drop a tenant's database, slots and role, or finish a drop that was interrupted.

    Returns False when someone else dropped it in the meantime.

    Of a lost tenant only the role is dropped: a database that took its place is someone else's. Raises as
    Fleet.find; Busy, naming the sessions that posduif may not end; Conflict for a lost tenant whose role has rights in
    the database of its name, which then may be its own.
    """
    server, _ = fleet.find(name)
    with fleet.maintenance(server) as session:
        session.require_admin()
        with session.lock(name):
            tenant = fleet.look(session, name)
            if tenant is None:
                return False
            there = traces.find(session, name)
            ours = traces.is_ours(there, traces.intent_of(there, name))
            if _is_replaced(tenant, there, name):
                _drop_lost_role(session, name, there)
                return True
            _require_untied(session, name)
            try:
                _announce_drop(session, fleet, server, tenant, there)
            except Blocked as error:
                session.name_blockers(error)
                if error.roles and admin.engine_role(name) not in error.roles:
                    raise
                engine.end_sessions(session, name, shut=True)
                _announce_drop(session, fleet, server, tenant, there)
            if ours:
                try:
                    _end_sessions(session, name)
                except AccessDenied as error:
                    raise engine.in_use(session, name, error) from error
                _drop_database(session, name)
            if traces.intent_of(traces.find(session, name), name) is not None:
                admin.drop_role(session, name)
            return True


def _require_untied(session: Session, name: str) -> None:
    """Raise Conflict, with nothing dropped yet, where the engine's role could not be dropped afterwards."""
    role = admin.engine_role(name)
    if ties := _ties(session, role, elsewhere_than=name):
        raise Conflict(
            f"tenant {name} was not dropped: its role {role} owns something elsewhere, or was granted it",
            why=f"in {', '.join(ties)}; without that the role could not be dropped, and its name stayed taken",
            hint=[f"a superuser types, in {place}: DROP OWNED BY {role};" for place in ties],
        )


def _ties(session: Session, role: str, *, elsewhere_than: str) -> list[str]:
    named = queries.load("tenants/tenants")
    return [place for (place,) in session.tuples(named["find_ties"], name=elsewhere_than, role=role)]


def _is_replaced(tenant: Tenant, there: traces.Traces, name: str) -> bool:
    """Whether a lost tenant's name is that of a database which is not, or not any more, posduif's."""
    return (
        tenant.state is State.LOST
        and there.owner is not None
        and not traces.is_ours(there, traces.intent_of(there, name))
    )


def _drop_lost_role(session: Session, name: str, there: traces.Traces) -> None:
    """Drop the role that is left of a tenant, unless the database of its name knows it."""
    try:
        admin.drop_role(session, name)
    except QueryFailed as error:
        if error.sqlstate != DEPENDED_ON:
            raise
        raise _its_own(name, there) from error


def _its_own(name: str, there: traces.Traces) -> Conflict:
    return Conflict(
        f"{admin.engine_role(name)} has rights in database {name}, so that may be the tenant's own",
        why=f"it belongs to {there.owner}" + ("" if there.record else " and has no record") + "; it was not touched",
        hint=Run("tenant", "adopt", name),
    )


def _announce_drop(session: Session, fleet: Fleet, server: Server, tenant: Tenant, there: traces.Traces) -> None:
    """Write `dropping` into both comments and shut the engine out, once no other command works on the tenant."""
    name = tenant.tenant
    with ExitStack() as stack:
        noted = record.parse(there.record) if there.owner == ADMIN_ROLE else None
        if noted is not None and there.open and there.connection_limit != -2:
            inside = stack.enter_context(fleet.enter(server, name))
            stack.enter_context(inside.lock(name))
        intent = traces.intent_of(there, name)
        stack.enter_context(session.transaction(lock_timeout=traces.BRIEFLY))
        if noted is not None and there.connection_limit != -2:
            record.put(session, name, replace(noted, state=State.DROPPING))
        if intent is not None:
            record.put_intent(session, admin.engine_role(name), replace(intent, state=State.DROPPING))
            admin.close_role(session, name)


def _end_sessions(session: Session, name: str) -> None:
    """End the tenant's sessions; a slot's reader first, or it keeps DROP DATABASE from working."""
    named = queries.load("tenants/tenants")
    for slot in session.dicts(named["find_slots"], database=name):
        if slot["pid"] is not None:
            session.value(named["end_session"], pid=slot["pid"])
    session.value(named["end_role"], role=admin.engine_role(name), wait=engine.SESSION_END)


def _drop_database(session: Session, name: str) -> None:
    """Drop the database; a session that posduif may not end gets a moment, it may be a killed command's."""
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            with session.limited(lock_timeout=traces.BRIEFLY, statement_timeout=DROPPING):
                admin.drop_database(session, name)
            return
        except AccessDenied as error:
            if time.monotonic() > deadline:
                raise engine.in_use(session, name, error) from error
            time.sleep(0.1)
        except (Busy, QueryFailed) as error:
            raise engine.in_use(session, name, error) from error
