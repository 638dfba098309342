"""How `backup restore` goes: as a new tenant, over the one that it is of, back again, or all of a lost server."""

from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from posduif_cli.cli import copies, keeping, runs
from posduif_cli.cli.context import App
from posduif_cli.errors import PosduifError, Run, ServerUnreachable, TenantNotFound, UsageError
from posduif_cli.notation import counted, listed

if TYPE_CHECKING:
    from posduif_cli.core.fleet.fleet import Found
    from posduif_cli.core.store import Stored
    from posduif_cli.models.copies import Aside, Backup
    from posduif_cli.models.tenants import Tenant


def show(
    app: App, which: str | None, name: str | None, *, everyone: bool, undo: bool, confirm: str | None, last: bool
) -> None:
    """Show what a restore would do, having asked the servers and changed nothing."""
    from posduif_cli.core.copies import replace, restore
    from posduif_cli.models.runs import Plan

    if everyone:
        newest, _, _ = restore.newest(copies.store_of(app).all())
        app.show_plan(Plan(tuple(step for stored in newest for step in restore.steps(stored, stored.backup.tenant))))
        return
    if undo:
        found = app.fleet.find(which or confirm or "")
        app.show_plan(Plan(tuple(replace.steps(found, None, last=False))))
        return
    if which is None:
        raise UsageError("name a backup, or a tenant", hint=Run("backup", "restore", "acme", "--as", "acme_before"))
    stored = copies.find(app, which)
    wanted = name or stored.backup.tenant
    there = None if name else existing(app, wanted)
    last = last and app.config.backup_dir is not None
    app.show_plan(Plan(tuple(replace.steps(there, stored, last=last) if there else restore.steps(stored, wanted))))


def existing(app: App, name: str, *, ignore_unreachable: bool = False) -> "Found | None":
    """Return the tenant of a name that a restore would go over; None where it would be a new one."""
    from posduif_cli.core.copies import replace

    try:
        found = app.fleet.find(name)
    except TenantNotFound:
        return None
    except ServerUnreachable:
        if not ignore_unreachable:
            raise
        return None
    return found if replace.is_over(found) else None


def anew(
    app: App,
    stored: "Stored",
    wanted: str,
    url: str | None,
    engine_config: Path | None,
    *,
    ignore_unreachable: bool,
    migrate: bool,
) -> None:
    """Restore a backup as a new tenant."""
    from posduif_cli.core.copies.restore import Restoring

    keep = keeping.keeper(app, wanted, engine_config)
    tenant = Restoring(
        app.fleet, copies.loading(app, stored), wanted, url, keep, ignore_unreachable, migrate=migrate
    ).run()
    backup = stored.backup
    said = f"tenant {wanted} restored from backup {backup.backup} of {backup.tenant}, and compared with it"
    app.out.say(said + _schema(backup, tenant))
    if keep is not None:
        keep.tell(app, wanted)
    app.out.show(tenant, changed=True)
    if keep is None:
        app.out.say(keeping.rotate(wanted, "its engine has no password yet"))


def over(
    app: App,
    stored: "Stored",
    found: "Found",
    confirm: str | None,
    *,
    no_backup: bool,
    keep: timedelta,
    migrate: bool,
) -> None:
    """Restore a backup over the tenant that it is of, once that is confirmed."""
    from posduif_cli.core.copies.replace import Replacing
    from posduif_cli.core.store import REPLACE
    from posduif_cli.render.tables import cell

    backup, name = stored.backup, found.tenant.tenant
    by = f"its backup {backup.backup} of {cell(backup.created_at)}"
    app.confirm(name, confirm, f"replace tenant {name} on server {found.server.name} by {by}")
    final = copies.maybe(app, REPLACE, not no_backup)
    tenant, aside = Replacing(app.fleet, found, copies.loading(app, stored), final, keep, migrate).run()
    app.out.say(f"tenant {name} is as backup {backup.backup} has it, and was compared with it{_schema(backup, tenant)}")
    tell_aside(app, aside)
    app.out.show(tenant, changed=True)


def _schema(backup: "Backup", tenant: "Tenant") -> str:
    """Say that migrations were applied to what was restored, or are pending."""
    if tenant.schema_version != backup.schema_version:
        return f"; then migrated from {backup.schema_version} to {tenant.schema_version}"
    return f"; {counted(tenant.pending, 'migration')} pending" if tenant.pending else ""


def tell_aside(app: App, aside: "Aside") -> None:
    """Say where the database is that was replaced, and what becomes of it."""
    from posduif_cli.core.copies.replace import undoing
    from posduif_cli.render.tables import cell

    app.out.say(f"the database before is set aside as {aside.database} until {cell(aside.until)}")
    app.out.say(undoing(aside.tenant, "to swap back"))
    app.out.say(Run("backup", "discard", aside.tenant, "--confirm", aside.tenant, lead="to drop it"))
    for slot in aside.slots:
        app.out.warn(f"replication slot {slot} went with it and holds back WAL: drop it, and let its reader begin anew")


def undo(app: App, which: str | None, confirm: str | None, keep: timedelta) -> None:
    """Take the last restore over a tenant back, or give up one that was not finished."""
    from posduif_cli.core.copies import replace
    from posduif_cli.models.tenants import Tenant
    from posduif_cli.render.tables import cell

    app.out.expect(Tenant)
    name = which or confirm
    if name is None:
        raise UsageError("--undo wants the tenant's name", hint=replace.undoing("TENANT"))
    found = app.fleet.find(name)
    app.confirm(name, confirm, f"take back the restore of tenant {name}: what was written since is set aside")
    tenant, aside, since = replace.undo(app.fleet, found, keep)
    if aside is None:
        app.out.say(f"the restore of {name} was given up")
    else:
        app.out.say(f"tenant {name} has the database again that was set aside at {cell(since)}")
        tell_aside(app, aside)
    if tenant is not None:
        app.out.show(tenant, changed=True)


def everyone(app: App, folder: keeping.Folder, jobs: int | None, *, ignore_unreachable: bool) -> None:
    """Bring back the newest backup of each tenant of the store, with an outcome for each."""
    from posduif_cli.core.copies import restore
    from posduif_cli.core.fleet.run import Pace

    unread: list[PosduifError] = []
    newest, dropped, bad = restore.newest(copies.store_of(app).all(None, unread))
    with runs.watched(app, Pace(jobs or app.config.backup_jobs)) as run:
        restore.restore_all(
            run, [copies.loading(app, stored) for stored in newest], folder, ignore_unreachable=ignore_unreachable
        )
    folder.tell(app)
    if dropped:
        app.out.say(f"not brought back, for they were dropped on purpose: {listed(dropped, runs.SHOWN)}")
    if bad:
        app.out.warn(f"every backup of these failed its verification: {listed(bad, runs.SHOWN)}")
    if folder.folder is None and any(outcome.changed for outcome in run.outcomes):
        lead = "their engines have no passwords yet"
        app.out.say(Run("tenant", "rotate-password", "--all", "--engine-config", "DIR", lead=lead))
    runs.conclude(app, run, {}, None, every=True)
    copies.tell_unread(app, unread)
