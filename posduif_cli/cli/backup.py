"""`posduif backup`: back up tenants, prove the backups, restore them."""

import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from posduif_cli.cli import keeping, options
from posduif_cli.cli.context import App, Noun, app_of
from posduif_cli.errors import OperationFailed, PartialFailure, Run, UsageError
from posduif_cli.notation import counted, duration

if TYPE_CHECKING:
    from posduif_cli.core.store import Store

app = Noun(help="Back up tenants, prove backups by restoring them, and restore.")

Which = Annotated[
    str,
    typer.Argument(
        metavar="ID|FILE|TENANT", help="A backup's id, its file, or a tenant: its newest.", show_default=False
    ),
]


def store_of(app: App, *, make: bool = False) -> "Store":
    """Return the store that is configured; raises ConfigurationError."""
    from posduif_cli.core.store import Store

    return Store.open(app.config.backup_dir, make=make)


@app.verb("create", example="posduif backup create --all --since 20h")
def create(
    ctx: typer.Context,
    tenant: options.Tenants = None,
    everyone: options.All = False,
    since: Annotated[
        str | None, typer.Option("--since", metavar="DURATION", help="Leave out who has a backup that is newer: 20h.")
    ] = None,
    pin: Annotated[str | None, typer.Option("--pin", metavar="WHY", help="Note why these are to be kept.")] = None,
    jobs: Annotated[
        int | None, typer.Option("--jobs", metavar="N", min=1, max=64, help="At once on each server.")
    ] = None,
) -> None:
    """Back up tenants, each in one snapshot, with the sums of its rows. Suspended tenants, too."""
    from posduif_cli.core.copies.dump import Dumping, newest_since
    from posduif_cli.errors import PosduifError
    from posduif_cli.models.copies import Backup
    from posduif_cli.models.tenants import State

    app = app_of(ctx)
    app.out.expect(Backup)
    names = options.targets(tenant, everyone, "backup create")
    store = store_of(app, make=True)
    limit = duration(since) if since else None
    chosen, errors = app.fleet.choose(names)
    live = [found for found in chosen if found.state in (State.ACTIVE, State.SUSPENDED)]
    if limit is not None:
        newer = newest_since(store.backups(), datetime.now(UTC) - limit)
        live = [found for found in live if found.tenant not in newer]
    dumping = Dumping(store, pin, app.config.bin_dir)
    results = app.fleet.each(live, dumping.dump, jobs=jobs or app.config.backup_jobs)
    made = [result for _, result in results if not isinstance(result, PosduifError)]
    failed = {found.tenant: result for found, result in results if isinstance(result, PosduifError)}
    left = [found.tenant for found in chosen if found.state not in (State.ACTIVE, State.SUSPENDED)]
    app.out.list(made, Backup, changed=lambda backup: True)
    app.out.say(f"{counted(len(made), 'backup')} in {store.root}")
    if left:
        app.out.say(f"not backed up, for they are not whole: {', '.join(left)}")
    missing = {f"server {name}" if names is None else name: error for name, error in errors.items()}
    app.report_failed(missing | failed, among=names)


@app.verb("list", example="posduif backup list acme")
def list_(
    ctx: typer.Context,
    tenant: Annotated[
        str | None, typer.Argument(metavar="[TENANT]", help="Only of this tenant.", show_default=False)
    ] = None,
    check_age: Annotated[
        str | None,
        typer.Option("--check-age", metavar="DURATION", help="Exit with 1 if a tenant's newest is older: 26h."),
    ] = None,
) -> None:
    """List backups, the oldest first, and how the last restore of each ended."""
    from posduif_cli.models.copies import Backup

    app = app_of(ctx)
    limit = duration(check_age) if check_age else None
    found = store_of(app).backups(tenant)
    app.out.list(found, Backup, empty=Run("backup", "create", tenant or "--all", lead="no backups"))
    if limit is None:
        return
    newest = {backup.tenant: backup.created_at for backup in found}
    old = sorted(name for name, at in newest.items() if at < datetime.now(UTC) - limit)
    if old or not newest:
        app.out.warn(f"older than {check_age}: {', '.join(old)}" if old else "there is no backup")
        raise typer.Exit(1)


@app.verb("show", example="posduif backup show acme")
def show(ctx: typer.Context, which: Which) -> None:
    """Show one backup."""
    app = app_of(ctx)
    app.out.show(store_of(app).find(which))


@app.verb("verify", example="posduif backup verify acme")
def verify(
    ctx: typer.Context,
    which: Annotated[
        list[str] | None,
        typer.Argument(metavar="[ID|FILE|TENANT]...", help="Backups, or tenants: their newest.", show_default=False),
    ] = None,
    everyone: Annotated[bool, typer.Option("--all", help="The newest of every tenant.")] = False,
    budget: Annotated[
        str | None,
        typer.Option("--budget", metavar="DURATION", help="Begin none after this time; the longest unproved first."),
    ] = None,
) -> None:
    """Restore backups on a scratch server and compare every row's sum with the dump's. Exits with 1 if one is bad."""
    from posduif_cli.core.copies import verify
    from posduif_cli.models.copies import Proof

    app = app_of(ctx)
    app.out.expect(Proof)
    if bool(which) == everyone:
        raise UsageError(
            "name backups or tenants, or --all",
            hint=[Run("backup", "verify", "acme"), Run("backup", "verify", "--all")],
        )
    store = store_of(app)
    chosen = verify.longest_unproved(store.backups()) if everyone else [store.find(text) for text in which or ()]
    until = time.monotonic() + duration(budget).total_seconds() if budget else None
    proofs = verify.verify(chosen, app.config.bin_dir, until=until)
    app.out.list(proofs, Proof, empty="no backups")
    counts = {word: sum(proof.verdict == word for proof in proofs) for word in ("proved", "failed", "could_not_verify")}
    app.out.say(", ".join(f"{number} {word}" for word, number in counts.items() if number) or "nothing was verified")
    if left := len(chosen) - len(proofs):
        app.out.say(f"{counted(left, 'backup')} left for the next time")
    if counts["failed"]:
        raise typer.Exit(1)
    if counts["could_not_verify"]:
        reasons = [proof.reason or "" for proof in proofs if proof.verdict == "could_not_verify"]
        kind = PartialFailure if counts["proved"] else OperationFailed
        raise kind(f"{counted(len(reasons), 'backup')} could not be verified", why=reasons[:3])


@app.verb("restore", example="posduif backup restore acme --as acme_before")
def restore(
    ctx: typer.Context,
    which: Which,
    name: Annotated[
        str | None, typer.Option("--as", metavar="NEW", help="Name of the new tenant; else the backup's own.")
    ] = None,
    url: options.Url = None,
    engine_config: options.EngineFiles = None,
    ignore_unreachable: options.IgnoreUnreachable = False,
) -> None:
    """Restore a backup as a new tenant, and compare what came with the dump. Interrupted, it begins again.

    Its unused enrollment tokens are expired, and its url is empty unless one is given.
    """
    from posduif_cli.core.copies.restore import Restoring
    from posduif_cli.models.tenants import Tenant

    app = app_of(ctx)
    app.out.expect(Tenant)
    backup = store_of(app).find(which)
    wanted = name or backup.tenant
    keep = keeping.keeper(app, wanted, engine_config)
    tenant = Restoring(app.fleet, backup, wanted, options.url(url), app.config.bin_dir, keep, ignore_unreachable).run()
    app.out.say(f"tenant {wanted} restored from backup {backup.backup} of {backup.tenant}, and compared with it")
    if keep is not None:
        keep.tell(app, wanted)
    app.out.show(tenant, changed=True)
    if keep is None:
        app.out.say(keeping.rotate(wanted, "its engine has no password yet"))


@app.verb("remove", example="posduif backup remove 20261126T014941Z-7f3a --confirm 20261126T014941Z-7f3a")
def remove(ctx: typer.Context, which: Which, confirm: options.Confirm = None) -> None:
    """Delete one backup, after --confirm ID."""
    from posduif_cli.models.copies import Backup

    app = app_of(ctx)
    app.out.expect(Backup)
    store = store_of(app)
    backup = store.find(which)
    why = f", which is pinned ({backup.pinned})" if backup.pinned else ""
    app.confirm(backup.backup, confirm, f"delete backup {backup.backup} of {backup.tenant}{why}")
    store.remove(backup)
    app.out.say(f"deleted: {backup.location}")
    app.out.show(backup, changed=True)


@app.verb("unpin", example="posduif backup unpin 20261126T014941Z-7f3a")
def unpin(ctx: typer.Context, which: Which) -> None:
    """Take back the note that a backup is to be kept."""
    from posduif_cli.models.copies import Backup

    app = app_of(ctx)
    app.out.expect(Backup)
    store = store_of(app)
    backup = store.find(which)
    changed = store.unpin(backup)
    app.out.say(f"backup {backup.backup} {'is' if changed else 'was'} not pinned")
    app.out.show(store.find(backup.backup), changed=changed)


@app.verb("prune", example="posduif backup prune --dry-run")
def prune(ctx: typer.Context, confirm: options.Confirm = None, dry_run: options.DryRun = False) -> None:
    """Delete backups that no rule of backup.keep keeps, and say why each of the others stays.

    The newest of each tenant, the newest that was proved, and pinned ones always stay. To delete more than half of all
    wants --confirm with the name of the folder.
    """
    from posduif_cli.core.copies import retention
    from posduif_cli.models.copies import Pruned

    app = app_of(ctx)
    if not dry_run:
        app.out.expect(Pruned)
    store = store_of(app)
    plan = retention.plan(store, app.config.backup_keep, datetime.now(UTC))
    going = [row for row in plan if not row.kept]
    if 2 * len(going) > len(plan) and not dry_run:
        app.confirm(store.root.name, confirm, f"delete {len(going)} of {counted(len(plan), 'backup')} in {store.root}")
    rows = plan if dry_run else retention.carry_out(store, plan, time.time())
    app.out.list(rows, Pruned, empty="no backups")
    deleted = f"{counted(len(going), 'backup')} {'would be ' * dry_run}deleted, {len(plan) - len(going)} kept"
    app.out.say(deleted)
