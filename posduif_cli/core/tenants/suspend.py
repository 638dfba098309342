"""Suspensions: shut a tenant's engine out, and let it in again; the data stays, and so does the record."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

from posduif_cli.core.fleet.fleet import Fleet, Found
from posduif_cli.core.fleet.run import who_is
from posduif_cli.core.fleet.steps import Deed
from posduif_cli.core.schema import apply
from posduif_cli.core.tenants import create, engine, traces
from posduif_cli.db import admin, queries, record
from posduif_cli.db.quoting import quoted
from posduif_cli.db.session import ADMIN_ROLE, Session
from posduif_cli.errors import Busy, Run
from posduif_cli.models.runs import Step
from posduif_cli.models.tenants import State


def suspend(fleet: Fleet, found: Found, tell: Callable[[str], None] = lambda text: None) -> tuple[Deed, ...]:
    """Return what shuts a tenant's engine out and ends its sessions; raises WrongState.

    *tell* is called with who else may still connect. The database stays open, or pg_dump would be shut out too.
    Whatever the engine's sessions have locked, they are ended. Performing the deeds raises Busy, naming the sessions
    that would not end, or those of other logins that are still connected: the tenant is suspended then. Performed
    again, they end what an interrupted command left connected.
    """
    found.require(State.ACTIVE, State.SUSPENDED)
    name, role = found.tenant.tenant, admin.engine_role(found.tenant.tenant)
    shut = (
        Step("shut out", role, f"ALTER ROLE {role} NOLOGIN"),
        Step("shut out", name, f"REVOKE CONNECT ON DATABASE {name} FROM {role}"),
    )
    new = found.tenant.state is State.ACTIVE
    return (
        Deed(partial(_shut_out, fleet, found), shut if new else ()),
        Deed(partial(_end, name, tell), [Step("end sessions", role)] if new else ()),
    )


def _shut_out(fleet: Fleet, found: Found, session: Session) -> bool:
    name = found.tenant.tenant

    def change(shut: bool) -> bool:
        with traces.changing(fleet, found, State.ACTIVE, State.SUSPENDED) as (conn, current):
            if current.state is not State.ACTIVE:
                return False
            intent = fleet.look(session, name).intent
            admin.shut_out(conn, name)
            traces.write_both(conn, replace(current, state=State.SUSPENDED), intent)
            return True

    return engine.despite_engine(session, name, change, reopen=False)


def _end(name: str, tell: Callable[[str], None], session: Session) -> None:
    """End the engine's sessions; raises Busy while a login in none of posduif's groups is in the database."""
    engine.end_sessions(session, name)
    named, groups = queries.load("tenants/tenants"), list(admin.ROLE_COMMENTS)
    for (role,) in session.tuples(named["find_connectable"], database=name, groups=groups):
        whom = role if role == "PUBLIC" else quoted(role)
        tell(
            f"{role} may still connect to its database by a right of its own; "
            f"a member of {ADMIN_ROLE} types: REVOKE ALL ON DATABASE {quoted(name)} FROM {whom};"
        )
    if found := session.tuples(named["find_strangers"], database=name, groups=groups):
        who = ", ".join(who_is(*row) for row in found)
        raise Busy(
            f"tenant {name} is suspended, but other logins are still connected to its database",
            why=f"still there: {who}",
            hint=[
                *(f"a superuser types: SELECT pg_terminate_backend({pid});" for pid, *_ in found),
                Run("tenant", "suspend", name),
            ],
        )


def resume(fleet: Fleet, found: Found) -> tuple[Deed, ...]:
    """Return what brings a suspended tenant to the newest schema and lets its engine in; raises WrongState.

    Performing it raises as `apply.up`: then the tenant stays suspended.
    """
    found.require(State.ACTIVE, State.SUSPENDED)
    steps = _resuming(fleet, found) if found.tenant.state is State.SUSPENDED else ()
    # grants.sql gives nothing to a group that is not there yet.
    return Deed(admin.ensure_roles), Deed(partial(_let_in, fleet, found), steps)


def _resuming(fleet: Fleet, found: Found) -> Iterator[Step]:
    name, role = found.tenant.tenant, admin.engine_role(found.tenant.tenant)
    with fleet.enter(found.server, name) as conn, conn.transaction(read_only=True):
        yield from create.migrating(apply.to_apply(conn, folders=fleet.folders))
    yield Step("let in", role, f"ALTER ROLE {role} LOGIN")
    yield Step("let in", name, f"GRANT CONNECT ON DATABASE {name} TO {role}")


def _let_in(fleet: Fleet, found: Found, session: Session) -> bool:
    """Migrate a suspended tenant and make it active.

    The engine of an active tenant is let in again where an interrupted `suspend` closed its role.
    """
    name = found.tenant.tenant
    with fleet.enter(found.server, name) as conn:
        conn.require_admin()
        with conn.lock(name):
            there = fleet.look(session, name)
            if record.read(conn).state is State.ACTIVE:
                closed = there.tenant is not None and there.tenant.engine_may_log_in is False
                if closed:
                    with conn.transaction():
                        admin.let_in(conn, name)
                return closed
            apply.up(conn, folders=fleet.folders, states=(State.SUSPENDED,))
            with conn.transaction():
                current = record.read(conn)
                admin.let_in(conn, name)
                traces.write_both(conn, replace(current, state=State.ACTIVE), there.intent)
    return True
