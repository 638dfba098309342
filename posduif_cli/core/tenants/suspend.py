"""Suspensions: shut a tenant's engine out, and let it in again; the data stays, and so does the record."""

from dataclasses import replace

from posduif_cli.core.fleet.fleet import Fleet, wrong_state
from posduif_cli.core.schema import apply
from posduif_cli.core.tenants import engine, traces
from posduif_cli.db import admin, queries, record
from posduif_cli.db.session import Session
from posduif_cli.errors import Busy, Run
from posduif_cli.models.runs import Plan, Step
from posduif_cli.models.tenants import State


def suspend(fleet: Fleet, *, name: str) -> bool:
    """Shut a tenant's engine out and end its sessions; return whether it was let in before.

    The database stays open, or pg_dump would be shut out too. Whatever the engine's sessions have locked, they are
    ended. Raises WrongState; Busy naming the sessions that would not end, or those of other logins that are still
    connected: the tenant is suspended then. Typed again, it ends what an interrupted call left connected.
    """

    def change(shut: bool) -> bool:
        with traces.changing(fleet, name, State.ACTIVE, State.SUSPENDED) as (conn, current):
            if current.state is not State.ACTIVE:
                return False
            admin.shut_out(conn, name)
            traces.write_both(conn, replace(current, state=State.SUSPENDED))
            return True

    changed = engine.despite_engine(fleet, name, change, reopen=False)
    engine.end_engine(fleet, name=name)
    _require_alone(fleet, name)
    return changed


def _require_alone(fleet: Fleet, name: str) -> None:
    """Raise Busy while a login that is none of posduif's groups is connected to a suspended tenant's database."""
    server, _ = fleet.find(name)
    with fleet.maintenance(server) as session:
        found = session.tuples(
            queries.load("tenants/tenants")["find_strangers"], database=name, groups=list(admin.ROLE_COMMENTS)
        )
    if found:
        who = ", ".join(f"pid {pid} ({role}, {app or 'no name'})" for pid, role, app in found)
        raise Busy(
            f"tenant {name} is suspended, but other logins are still connected to its database",
            why=f"still there: {who}",
            hint=[
                *(f"a superuser types: SELECT pg_terminate_backend({pid});" for pid, *_ in found),
                Run("tenant", "suspend", name),
            ],
        )


def resume(fleet: Fleet, *, name: str) -> bool:
    """Bring a suspended tenant to the newest schema and let its engine in; return whether that changed anything.

    Raises WrongState, and as `apply.up`: then the tenant stays suspended.
    """
    server, tenant = fleet.find(name)
    if tenant.state not in (State.ACTIVE, State.SUSPENDED):
        raise wrong_state(tenant)
    with fleet.maintenance(server) as session:
        admin.ensure_roles(session)  # grants.sql gives nothing to a group that is not there yet
    with fleet.enter(server, name) as conn:
        conn.require_admin()
        with conn.lock(name):
            if record.read(conn).state is State.ACTIVE:
                return _reopen(conn, name)
            apply.up(conn, folders=fleet.folders, states=(State.SUSPENDED,))
            with conn.transaction():
                current = record.read(conn)
                admin.let_in(conn, name)
                traces.write_both(conn, replace(current, state=State.ACTIVE))
    return True


def _reopen(conn: Session, name: str) -> bool:
    """Let the engine of an active tenant in whose role an interrupted `suspend` closed; return whether it was."""
    if conn.value(queries.load("tenants/tenants")["may_log_in"], role=admin.engine_role(name)) is not False:
        return False
    with conn.transaction():
        admin.let_in(conn, name)
    return True


def plan_suspend(fleet: Fleet, *, name: str) -> Plan:
    """Say what `suspend` would do; raises as it, and changes nothing."""
    _, tenant = fleet.find(name)
    if tenant.state is State.SUSPENDED:
        return Plan(())
    if tenant.state is not State.ACTIVE:
        raise wrong_state(tenant)
    role = admin.engine_role(name)
    return Plan(
        (
            Step("shut out", role, f"ALTER ROLE {role} NOLOGIN"),
            Step("shut out", name, f"REVOKE CONNECT ON DATABASE {name} FROM {role}"),
            Step("end sessions", role),
        )
    )


def plan_resume(fleet: Fleet, *, name: str) -> Plan:
    """Say what `resume` would do; raises as it, and changes nothing."""
    server, tenant = fleet.find(name)
    if tenant.state is State.ACTIVE:
        return Plan(())
    if tenant.state is not State.SUSPENDED:
        raise wrong_state(tenant)
    with fleet.enter(server, name) as conn, conn.transaction(read_only=True):
        wanted = apply.to_apply(conn, folders=fleet.folders)
    role = admin.engine_role(name)
    return Plan(
        (
            *(Step("migrate", f"{file.version}_{file.name}", file.up.text.strip()) for file in wanted),
            Step("let in", role, f"ALTER ROLE {role} LOGIN"),
            Step("let in", name, f"GRANT CONNECT ON DATABASE {name} TO {role}"),
        )
    )
