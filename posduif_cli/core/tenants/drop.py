"""Drop a tenant, so that a kill at any moment leaves what the same command finishes."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from datetime import timedelta

from posduif_cli.core.fleet.fleet import Fleet, Found, Traces
from posduif_cli.core.fleet.run import who_is
from posduif_cli.core.fleet.steps import Deed, perform, plan
from posduif_cli.core.schema import history
from posduif_cli.core.tenants import engine, traces
from posduif_cli.db import admin, queries, record
from posduif_cli.db.patience import Patience
from posduif_cli.db.session import Session
from posduif_cli.errors import AccessDenied, Blocked, Busy, Conflict, PosduifError, QueryFailed, Run
from posduif_cli.models.runs import Plan, Step
from posduif_cli.models.tenants import Loss, State

COUNTING = timedelta(seconds=30)
DROPPING = timedelta(hours=1)  # the files of a large database are many
QUERY_CANCELED = "57014"  # what a statement_timeout ends with


Last = Callable[[Session], object]


def drop(
    fleet: Fleet,
    found: Found,
    *,
    confirmed: bool = False,
    confirm: Callable[[Loss], None] = lambda loss: None,
    last: Last | None = None,
) -> tuple[Loss, bool]:
    """Drop a tenant's database, slots and role, or finish a drop that was interrupted.

    *confirm* is called with the loss before anything is changed; with *confirmed* the engine's sessions are ended
    where they keep it from being counted. *last* is called with a session in the database when its engine is shut out;
    where that fails nothing is dropped, and the engine is let in again. Return the loss, and False when another
    command dropped the tenant in the meantime.

    Of a lost tenant only the role is dropped: a database that took its place is not posduif's. Raises Busy, naming the
    sessions that posduif may not end; Conflict for a lost tenant whose role has rights in the database of its name,
    which then may be its own.
    """
    name, tenant = found.tenant.tenant, found.tenant
    with fleet.maintenance(found.server) as session, ExitStack() as stack:
        # The session that counts takes the tenant's lock afterwards.
        inside = None
        if tenant.state not in (State.PROVISIONING, State.DROPPING, State.LOST) and tenant.schema_version is not None:
            inside = stack.enter_context(fleet.enter(found.server, name))
        loss = Loss(name, found.server.name, None, None, None, None)
        if inside is not None:
            loss = _count(session, inside, loss, confirmed)
        confirm(loss)
        session.require_admin()
        with session.lock(name):
            there = fleet.look(session, name)
            if there.tenant is None:
                return loss, False
            perform(_dropping(fleet, session, there, inside, last), session)
    return loss, True


def dropping(fleet: Fleet, found: Found, last: Last | None = None) -> Plan:
    """Return the steps of `drop`; raises as it, and changes nothing."""
    with fleet.maintenance(found.server) as session:
        return plan(_dropping(fleet, session, fleet.look(session, found.tenant.tenant), None, last))


def _count(session: Session, inside: Session, loss: Loss, confirmed: bool) -> Loss:
    """Count what dropping a tenant destroys, by a session *inside* its database; `uncounted` says why it is not known.

    Where the engine's locks are in the way of a drop that was *confirmed* already, its sessions are ended.
    """

    def count(shut: bool) -> Loss:
        try:
            with inside.transaction(read_only=True, lock_timeout=traces.BRIEFLY, statement_timeout=COUNTING):
                return replace(loss, **inside.dicts(queries.load("tenants/tenants")["count_loss"])[0])
        except Blocked as error:
            inside.name_blockers(error)
            raise

    try:
        return engine.despite_engine(session, inside.database, count, reopen=True) if confirmed else count(False)
    except (QueryFailed, Blocked) as error:
        if isinstance(error, QueryFailed) and error.sqlstate in history.NO_SUCH_TABLE_OR_COLUMN:
            return loss
        if isinstance(error, Blocked) or error.sqlstate == QUERY_CANCELED:
            return replace(loss, uncounted=error.sentence)
        raise


def _dropping(
    fleet: Fleet, session: Session, there: Traces, inside: Session | None, last: Last | None = None
) -> Iterator[Deed]:
    """Yield what dropping comes to, by what is *there*; *inside* is an open session in the tenant's database, or None.

    Raises Conflict, with nothing dropped yet, where the engine's role could not be dropped.
    """
    name, role = there.name, admin.engine_role(there.name)
    replaced = there.tenant is not None and there.tenant.state is State.LOST and there.owner is not None
    if replaced and not traces.is_ours(there):
        if _ties(session, role, elsewhere_than=""):
            raise Conflict(
                f"{role} has rights in database {name}, so that may be the tenant's own",
                why=f"it belongs to {there.owner}{'' if there.comment else ' and has no record'}; it was not touched",
                hint=Run("tenant", "adopt", name),
            )
    else:
        if ties := _ties(session, role, elsewhere_than=name):
            raise Conflict(
                f"tenant {name} was not dropped: its role {role} owns something elsewhere, or was granted it",
                why=f"in {', '.join(ties)}; without that the role could not be dropped, and its name stayed taken",
                hint=[f"a superuser types, in {place}: DROP OWNED BY {role};" for place in ties],
            )
        if traces.is_ours(there) and there.tenant is not None and there.tenant.state is not State.DROPPING:
            yield Deed(lambda session: _require_endable(session, name, inside))
        yield Deed(lambda session: _announce_drop(session, fleet, there, inside))
        if traces.is_ours(there):
            where = f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'"  # noqa: S608
            yield Deed(lambda session: _end_sessions(session, name), [Step("end sessions", name, where)])
            if last is not None and _is_whole(there):
                yield Deed(lambda session: _look_last(fleet, session, there, last), [Step("back up", name)])
            sql = f"DROP DATABASE {name} WITH (FORCE)"
            yield Deed(lambda session: drop_database(session, name), [Step("drop database", name, sql)])
    if there.intent is not None:
        yield Deed(lambda session: admin.drop_role(session, name), [Step("drop role", role, f"DROP ROLE {role}")])


def _is_whole(there: Traces) -> bool:
    """Whether the database holds a tenant: it was not dropped by half, nor made by half."""
    whole = (State.ACTIVE, State.SUSPENDED, State.DROPPING)
    return there.connection_limit != -2 and there.record is not None and there.record.state in whole


def _look_last(fleet: Fleet, session: Session, there: Traces, last: Last) -> None:
    """Call *last* with a session in the database; where it fails, take back that the tenant is to be dropped."""
    try:
        with fleet.enter(session.server, there.name) as conn:
            last(conn)
    except (PosduifError, KeyboardInterrupt) as error:
        back = _take_back(session, there)
        if isinstance(error, PosduifError):
            error.reasons = (*error.reasons, *(["nothing was dropped, and its engine may connect again"] * back))
            error.hints = (*error.hints, "or add --no-backup")
        raise


def _take_back(session: Session, there: Traces) -> bool:
    """Let a tenant be what it was before its drop was announced; False where an earlier command announced it."""
    noted = there.record
    if noted is None or noted.state is State.DROPPING:
        return False
    with session.transaction():
        record.put(session, there.name, noted)
        if there.intent is not None:
            record.put_intent(session, admin.engine_role(there.name), there.intent)
        if noted.state is State.ACTIVE:
            admin.open_role(session, there.name)
    return True


def _require_endable(session: Session, name: str, inside: Session | None) -> None:
    """Raise Busy, with nothing changed, while sessions are in the database that posduif may not end.

    They are waited for a moment: one may be that of a killed command.
    """
    question, own = queries.load("tenants/tenants")["find_unendable"], [inside.pid] if inside is not None else []
    if found := Patience("killed").until_none(lambda: session.tuples(question, database=name, pids=own)):
        raise Busy(
            f"database {name} is in use by sessions that posduif may not end; nothing was changed",
            why=", ".join(who_is(*row) for row in found),
            hint=["ask their owners to disconnect", Run("tenant", "drop", name, "--confirm", name)],
        )


def _ties(session: Session, role: str, *, elsewhere_than: str) -> list[str]:
    named = queries.load("tenants/tenants")
    return [place for (place,) in session.tuples(named["find_ties"], name=elsewhere_than, role=role)]


def _announce_drop(session: Session, fleet: Fleet, there: Traces, inside: Session | None) -> None:
    """Write `dropping` into both comments and shut the engine out, once no other command works on the tenant."""
    name = there.name
    try:
        _announce(session, fleet, there, inside)
    except Blocked as error:
        session.name_blockers(error)
        if error.roles and admin.engine_role(name) not in error.roles:
            raise
        engine.end_sessions(session, name, shut=True)
        _announce(session, fleet, there, inside)
    if inside is not None:
        inside.close()


def _announce(session: Session, fleet: Fleet, there: Traces, inside: Session | None) -> None:
    name, noted = there.name, there.record if there.connection_limit != -2 else None
    with ExitStack() as stack:
        if noted is not None and there.open:
            inside = inside or stack.enter_context(fleet.enter(session.server, name))
            stack.enter_context(inside.lock(name))
        stack.enter_context(session.transaction(lock_timeout=traces.BRIEFLY))
        if noted is not None:
            record.put(session, name, replace(noted, state=State.DROPPING))
        if there.intent is not None:
            record.put_intent(session, admin.engine_role(name), replace(there.intent, state=State.DROPPING))
            admin.close_role(session, name)


def _end_sessions(session: Session, name: str) -> None:
    """End the tenant's sessions; a slot's reader first, or it keeps DROP DATABASE from working."""
    named = queries.load("tenants/tenants")
    try:
        for slot in session.dicts(named["find_slots"], database=name):
            if slot["pid"] is not None:
                session.value(named["end_session"], pid=slot["pid"])
        session.value(named["end_role"], role=admin.engine_role(name), wait=engine.SESSION_END)
    except AccessDenied as error:
        raise engine.in_use(session, name, error) from error


def drop_database(session: Session, name: str) -> None:
    """Drop the database; wait a moment for a session that posduif may not end: it may be a killed command's."""
    patience = Patience("killed")
    while True:
        try:
            with session.limited(lock_timeout=traces.BRIEFLY, statement_timeout=DROPPING):
                admin.drop_database(session, name)
            return
        except (AccessDenied, Busy, QueryFailed) as error:
            if not isinstance(error, AccessDenied) or not patience.again():
                raise engine.in_use(session, name, error) from error
