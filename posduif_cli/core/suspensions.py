"""Suspensions: shut a tenant's engine out, and let it in again; the data stays, and so does the record."""

from dataclasses import replace

from posduif_cli.core import migrations, tenants
from posduif_cli.core.fleet import Fleet, wrong_state
from posduif_cli.db import admin, record
from posduif_cli.models import Plan, State, Step


def suspend(fleet: Fleet, *, name: str) -> bool:
    """Shut a tenant's engine out and end its sessions; return whether it was let in before.

    The database stays open, or pg_dump would be shut out too. Raises WrongState, and Busy naming the sessions
    that would not end; typed again, it ends what an interrupted call left connected.
    """
    with tenants.changing(fleet, name, State.ACTIVE, State.SUSPENDED) as (conn, current):
        changed = current.state is State.ACTIVE
        if changed:
            admin.shut_out(conn, name)
            tenants.write_both(conn, replace(current, state=State.SUSPENDED))
    tenants.end_engine(fleet, name=name)
    return changed


def resume(fleet: Fleet, *, name: str) -> bool:
    """Bring a suspended tenant to the newest schema and let its engine in; return whether that changed anything.

    Raises WrongState, and as `migrations.up`: then the tenant stays suspended.
    """
    server, tenant = fleet.find(name)
    if tenant.state is State.ACTIVE:
        return False
    if tenant.state is not State.SUSPENDED:
        raise wrong_state(tenant)
    with fleet.maintenance(server) as session:
        admin.ensure_roles(session)  # grants.sql gives nothing to a group that is not there yet
    with fleet.enter(server, name) as conn:
        conn.require_admin()
        with conn.lock(name):
            if record.read(conn).state is State.ACTIVE:
                return False  # someone else resumed it in this moment
            migrations.up(conn, folders=fleet.folders, states=(State.SUSPENDED,))
            with conn.transaction():
                current = record.read(conn)
                admin.let_in(conn, name)
                tenants.write_both(conn, replace(current, state=State.ACTIVE))
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
        history = migrations.history(conn, folders=fleet.folders)
    migrations.refuse_changed(name, history, fleet.folders)
    wanted = {migration.version for migration in history if migration.state == "pending"}
    role = admin.engine_role(name)
    return Plan(
        (
            *(
                Step("migrate", f"{file.version}_{file.name}", file.up.text.strip())
                for file in fleet.folders.files
                if file.version in wanted
            ),
            Step("let in", role, f"ALTER ROLE {role} LOGIN"),
            Step("let in", name, f"GRANT CONNECT ON DATABASE {name} TO {role}"),
        )
    )
