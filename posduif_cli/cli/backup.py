"""`posduif backup`: back up tenants, prove the backups, restore them."""

import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Any

import typer

from posduif_cli.cli import copies, keeping, options, restoring, runs
from posduif_cli.cli.context import App, Noun, app_of
from posduif_cli.errors import (
    BackupNotFound,
    DamagedBackup,
    OperationFailed,
    PartialFailure,
    PosduifError,
    Run,
    UsageError,
)
from posduif_cli.notation import counted, duration, listed

if TYPE_CHECKING:
    from posduif_cli.core.copies.verify import Verifying
    from posduif_cli.core.store import Stored
    from posduif_cli.models.copies import Aside, Backup, Proof
    from posduif_cli.models.tenants import Tenant

app = Noun(help="Back up tenants, prove backups by restoring them, and restore.")

Which = Annotated[
    str,
    typer.Argument(
        metavar="ID|FILE|TENANT", help="A backup's id, its file, or a tenant: its newest.", show_default=False
    ),
]
Jobs = Annotated[int | None, typer.Option("--jobs", metavar="N", min=1, max=64, help="At once on each server.")]
On = Annotated[
    str | None,
    typer.Option("--on", metavar="SERVER", help="Restore on this server, not on one of their own that is thrown away."),
]
Budget = Annotated[
    str | None,
    typer.Option("--budget", metavar="DURATION", help="Begin none after this time; the longest unproved come first."),
]
Keep = Annotated[str, typer.Option("--keep", metavar="DURATION", help="How long the database that is set aside stays.")]


@app.verb("create", example="posduif backup create --all --since 20h")
def create(
    ctx: typer.Context,
    tenant: options.Tenants = None,
    everyone: options.All = False,
    since: Annotated[
        str | None, typer.Option("--since", metavar="DURATION", help="Leave out who has a backup that is newer: 20h.")
    ] = None,
    pin: Annotated[str | None, typer.Option("--pin", metavar="WHY", help="Note why these are to be kept.")] = None,
    jobs: Jobs = None,
) -> None:
    """Back up tenants, each in one snapshot, with the sums of its rows. Suspended tenants, too."""
    from posduif_cli.core.copies import dump
    from posduif_cli.models.copies import Backup
    from posduif_cli.render import progress

    app = app_of(ctx)
    app.out.expect(Backup)
    names = options.targets(tenant, everyone, "backup create")
    if pin is not None and not pin.strip():
        raise UsageError("--pin wants a reason", hint=Run("backup", "create", "acme", "--pin", "before the move"))
    limit = datetime.now(UTC) - duration(since) if since else None
    dumping = copies.dumping(app, "backup create", pin=pin, since=limit)
    chosen, errors = app.fleet.choose(names)
    with progress.line(app.out) as show:
        counter = _Counter(len(chosen), show)
        made = dump.dump_all(
            app.fleet, chosen, dumping, jobs=jobs or app.config.backup_jobs, done=lambda t, found, s: counter(found)
        )
    app.out.list(made.backups, Backup, changed=lambda backup: True)
    size = sum(backup.size_bytes for backup in made.backups)
    newer = f"; {counted(len(made.newer), 'tenant')} had a newer one" if made.newer else ""
    app.out.say(f"{counted(len(made.backups), 'backup')}, {_size(size)}, in {dumping.store.place}{newer}")
    copies.tell_left(app, made.left)
    app.report_failed(copies.of_servers(errors, names) | made.failed, among=names)


class _Counter:
    """Counts backups as they are made, for the line that shows progress."""

    def __init__(self, total: int, show: Any) -> None:
        self.total, self.show, self.done, self.bytes = total, show, 0, 0

    def __call__(self, found: Any) -> None:
        self.done += 1
        self.bytes += getattr(found, "size_bytes", 0)
        self.show(f"{self.done} of {counted(self.total, 'tenant')}, {_size(self.bytes)} ...")


def _size(number: int) -> str:
    from posduif_cli.render.tables import size

    return size(number)


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
    unread: list[PosduifError] = []
    found = copies.store_of(app).backups(tenant, unread)
    app.out.list(found, Backup, empty=Run("backup", "create", tenant or "--all", lead="no backups"))
    if limit is not None:
        _check_age(app, tenant, found, unread, limit, check_age or "")
    copies.tell_unread(app, unread)


def _check_age(
    app: App, tenant: str | None, found: "list[Backup]", unread: list[PosduifError], limit: timedelta, text: str
) -> None:
    """Exit with 1 where a tenant's newest good backup is too old, or there is none of a tenant that is old enough."""
    from posduif_cli.models.copies import FAILED

    at, errors = datetime.now(UTC) - limit, dict[str, PosduifError]()
    newest = {backup.tenant: backup for backup in found if backup.verified != FAILED}
    due = [] if tenant is None else [tenant]
    if tenant is None:
        tenants, errors = _tenants(app)
        due = [each.tenant for each in tenants if each.created_at is None or each.created_at < at]
    wrong = {name for name, backup in newest.items() if backup.created_at < at and not backup.dropped}
    wrong |= {name for name in due if name not in newest}
    for error in unread:
        app.out.warn(error.sentence)
    if wrong or unread or not newest:
        app.out.warn(f"no good backup of the last {text}: {', '.join(sorted(wrong)) or 'none at all'}")
        raise typer.Exit(1)
    app.report_missing(errors)


@app.verb("show", example="posduif backup show acme")
def show(ctx: typer.Context, which: Which) -> None:
    """Show one backup."""
    app = app_of(ctx)
    app.out.show(copies.find(app, which).backup)


@app.verb("verify", example="posduif backup verify acme")
def verify(
    ctx: typer.Context,
    which: Annotated[
        list[str] | None,
        typer.Argument(metavar="[ID|FILE|TENANT]...", help="Backups, or tenants: their newest.", show_default=False),
    ] = None,
    everyone: Annotated[bool, typer.Option("--all", help="The newest of every tenant.")] = False,
    older_than: Annotated[
        str | None,
        typer.Option("--older-than", metavar="DURATION", help="Only those whose last proof is older: 7d."),
    ] = None,
    budget: Budget = None,
    on: On = None,
    jobs: Jobs = None,
) -> None:
    """Restore backups on a scratch server and compare every row's sum with the dump's. Exits with 1 if one is bad."""
    from posduif_cli.models.copies import Proof

    app = app_of(ctx)
    app.out.expect(Proof)
    if bool(which) == (everyone or older_than is not None):
        raise UsageError(
            "name backups or tenants, or --all, or --older-than",
            hint=[Run("backup", "verify", "acme"), Run("backup", "verify", "--all")],
        )
    verifying, unread = _verifying(app, budget, on, jobs), list[PosduifError]()
    if which:
        chosen, wrong = _found(app, which)
    else:
        chosen, wrong = _newest(app, unread, duration(older_than) if older_than else None), {}
    proofs = _prove(app, verifying, chosen)
    app.out.list(proofs, Proof, empty="no backups")
    app.out.say(_counts(proofs))
    if left := len(chosen) - len(proofs):
        app.out.say(f"{counted(left, 'backup')} left for the next time")
    _judge(proofs)
    copies.tell_unread(app, unread)
    app.report_failed(wrong, among=which)


def _found(app: App, which: Sequence[str]) -> "tuple[list[Stored], dict[str, PosduifError]]":
    """Return the named backups, and what went wrong with the names of the others; raises for a single one."""
    found: dict[str, Stored] = {}
    wrong: dict[str, PosduifError] = {}
    for text in dict.fromkeys(which):
        try:
            stored = copies.find(app, text)
            found.setdefault(stored.backup.location, stored)
        except (BackupNotFound, DamagedBackup) as error:
            wrong[text] = error
    if damaged := [error for error in wrong.values() if isinstance(error, DamagedBackup)]:
        for each in damaged:
            app.out.warn(each.sentence)
        raise typer.Exit(1)
    if wrong and not found:
        raise next(iter(wrong.values()))
    return list(found.values()), wrong


def _newest(app: App, unread: list[PosduifError], older_than: timedelta | None = None) -> "list[Stored]":
    """Return the newest backup of each tenant, the longest unproved first; of those that were proved before a time."""
    from posduif_cli.core.copies.verify import longest_unproved

    found = longest_unproved(copies.store_of(app).all(None, unread))
    limit = None if older_than is None else datetime.now(UTC) - older_than
    return [s for s in found if limit is None or s.backup.verified_at is None or s.backup.verified_at < limit]


def _verifying(app: App, budget: str | None, on: str | None, jobs: int | None) -> "Verifying":
    from posduif_cli.core.copies.verify import Verifying

    until = time.monotonic() + duration(budget).total_seconds() if budget else None
    server = app.fleet.server(on) if on else None
    return Verifying(copies.keys_of(app), app.config.bin_dir, server, until, jobs or app.config.backup_jobs)


def _prove(app: App, verifying: "Verifying", chosen: "Sequence[Stored]") -> "list[Proof]":
    from posduif_cli.render import progress

    with progress.line(app.out) as show:
        proofs: list[Proof] = []

        def note(proof: "Proof") -> None:
            proofs.append(proof)
            show(f"{_counts(proofs)} of {len(chosen)} ...")

        return verifying.verify(chosen, note)


def _counts(proofs: "Sequence[Proof]") -> str:
    from posduif_cli.models.copies import VERDICTS

    counts = {word: sum(proof.verdict == word for proof in proofs) for word in VERDICTS}
    return ", ".join(f"{number} {word}" for word, number in counts.items() if number) or "nothing was verified"


def _judge(proofs: "Sequence[Proof]") -> None:
    """Exit with 1 where a backup is bad; raise OperationFailed or PartialFailure where one could not be judged."""
    from posduif_cli.models.copies import FAILED, UNJUDGED

    if any(proof.verdict == FAILED for proof in proofs):
        raise typer.Exit(1)
    if unknown := [proof.reason or "" for proof in proofs if proof.verdict == UNJUDGED]:
        kind = PartialFailure if len(unknown) < len(proofs) else OperationFailed
        raise kind(f"{counted(len(unknown), 'backup')} could not be verified", why=list(dict.fromkeys(unknown))[:3])


@app.verb("drill", example="posduif backup drill --budget 10m")
def drill(ctx: typer.Context, budget: Budget = None, on: On = None, jobs: Jobs = None) -> None:
    """Prove the newest backup of every tenant, for as long as there is time: cron's form of `verify`.

    Those that were proved longest ago come first, so that each has its turn. Tenants without a backup are named.
    """
    from posduif_cli.core.copies import verify
    from posduif_cli.models.copies import PROVED, Drill
    from posduif_cli.render import tables

    app = app_of(ctx)
    app.out.expect(Drill)
    unread: list[PosduifError] = []
    verifying, newest = _verifying(app, budget, on, jobs), _newest(app, unread)
    proofs = _prove(app, verifying, newest)
    tenants, errors = _tenants(app)
    found = verify.drilled(proofs, newest, [tenant.tenant for tenant in tenants])
    # Without the proofs, which are told one by one where they are not good.
    (app.out if app.out.machine or app.out.fields else app.out.only(*tables.COLUMNS["Drill"])).show(found)
    for proof in proofs:
        if proof.verdict != PROVED:
            app.out.warn(f"{proof.tenant}: backup {proof.backup}: {proof.verdict}: {proof.reason}")
    if found.without:
        app.out.warn(f"without a backup: {listed(found.without, runs.SHOWN)}")
    _judge(proofs)
    copies.tell_unread(app, unread)
    app.report_missing(errors)


def _tenants(app: App) -> "tuple[list[Tenant], dict[str, PosduifError]]":
    """Return the tenants that ought to have a backup, and the errors of servers: backups are proved without them."""
    try:
        tenants, errors = app.fleet.tenants()
    except PosduifError as error:
        return [], {"of the tenants": error}
    return [tenant for tenant in tenants if tenant.state in ("active", "suspended")], errors


@app.verb("restore", example="posduif backup restore acme --as acme_before")
def restore(
    ctx: typer.Context,
    which: Annotated[
        str | None,
        typer.Argument(
            metavar="[ID|FILE|TENANT]", help="A backup's id, its file, or a tenant: its newest.", show_default=False
        ),
    ] = None,
    name: Annotated[
        str | None, typer.Option("--as", metavar="NEW", help="Name of the new tenant; else the backup's own.")
    ] = None,
    everyone: Annotated[
        bool, typer.Option("--all", help="Every tenant of the store that no server has: for a server that is lost.")
    ] = False,
    latest: Annotated[bool, typer.Option("--latest", help="With --all: the newest backup of each.")] = False,
    undo: Annotated[
        bool, typer.Option("--undo", help="Take the last restore over a tenant back, or give it up.")
    ] = False,
    confirm: options.Confirm = None,
    no_backup: Annotated[
        bool, typer.Option("--no-backup", help="Make no backup of the tenant before it is replaced.")
    ] = False,
    keep: Keep = "7d",
    url: options.Url = None,
    engine_config: options.EngineFiles = None,
    ignore_unreachable: options.IgnoreUnreachable = False,
    jobs: Jobs = None,
    no_migrate: Annotated[
        bool, typer.Option("--no-migrate", help="Leave the schema as the backup has it; else it is brought up to date.")
    ] = False,
    dry_run: options.DryRun = False,
) -> None:
    """Restore a backup as a new tenant, or over the one that it is of, and compare what came with the dump.

    A new tenant's unused enrollment tokens are expired, and its url is empty unless one is given. Over a tenant, which
    wants --confirm, its engine is shut out meanwhile; the old database is set aside, and --undo brings it back.
    Interrupted, the same command goes on. Pending migrations are applied, but not to a backup that `migrate up` made.
    """
    from posduif_cli.core.copies import replace
    from posduif_cli.core.store import MIGRATE
    from posduif_cli.models.tenants import Tenant

    app = app_of(ctx)
    if dry_run:
        restoring.show(app, which, name, everyone=everyone, undo=undo, confirm=confirm, last=not no_backup)
    elif undo:
        restoring.undo(app, which, confirm, duration(keep))
    elif everyone:
        if which or not latest or name or url:
            raise UsageError(
                "--all goes with --latest, and with no name",
                hint=Run("backup", "restore", "--all", "--latest", "--server", "NEW", "--engine-config", "DIR"),
            )
        restoring.everyone(app, keeping.Folder(engine_config), jobs, ignore_unreachable=ignore_unreachable)
    elif which is None:
        raise UsageError("name a backup, or a tenant", hint=Run("backup", "restore", "acme", "--as", "acme_before"))
    else:
        app.out.expect(Tenant)
        stored = copies.find(app, which)
        wanted = name or stored.backup.tenant
        over = None if name else restoring.existing(app, wanted, ignore_unreachable=ignore_unreachable)
        if over is not None and (url or engine_config):
            raise UsageError("a tenant that is replaced keeps its url, and its engine its file")
        # The newest backup of a tenant may by now be the last one of what is replaced.
        begun = replace.under_way(over) if over is not None and which == wanted else None
        stored = copies.find(app, begun) if begun else stored
        migrate = not no_migrate and stored.backup.trigger != MIGRATE
        if over is not None:
            restoring.over(app, stored, over, confirm, no_backup=no_backup, keep=duration(keep), migrate=migrate)
        else:
            restoring.anew(
                app, stored, wanted, options.url(url), engine_config,
                ignore_unreachable=ignore_unreachable, migrate=migrate,
            )  # fmt: skip


@app.verb("discard", example="posduif backup discard acme --confirm acme")
def discard(
    ctx: typer.Context,
    tenant: Annotated[
        str | None, typer.Argument(metavar="[TENANT]", help="Whose; without it they are listed.", show_default=False)
    ] = None,
    confirm: options.Confirm = None,
    dry_run: options.DryRun = False,
) -> None:
    """Drop the databases that restores over a tenant set aside; without a name list those of all."""
    from posduif_cli.core.copies import replace
    from posduif_cli.models.copies import Aside
    from posduif_cli.models.runs import Plan, Step

    app = app_of(ctx)
    if tenant is not None and not dry_run:
        app.out.expect(Aside)
    found, errors = _asides(app, tenant)
    if tenant is None:
        app.out.list(found, Aside, empty="no database is set aside")
        app.report_missing(errors)
        return
    if dry_run:
        steps = (Step("drop database", aside.database, f"DROP DATABASE {aside.database}") for aside in found)
        app.show_plan(Plan(tuple(steps)))
        return
    if not found and not errors:
        app.fleet.find(tenant)  # which raises where there is no such tenant
    if found:
        app.confirm(tenant, confirm, f"drop {', '.join(aside.database for aside in found)}, once tenant {tenant}")
    for aside in found:
        replace.discard(app.fleet, aside)
    app.out.list(found, Aside, empty=f"no database of {tenant} is set aside", changed=lambda aside: True)
    app.report_missing(errors)


def _asides(app: App, tenant: str | None = None) -> "tuple[list[Aside], dict[str, PosduifError]]":
    """Return the databases that restores set aside, of one tenant or of all, and the errors of servers."""
    from posduif_cli.core.fleet.asides import asides
    from posduif_cli.core.fleet.fleet import split

    told, errors = split(app.fleet.ask(lambda session: asides(session, tenant)))
    return [aside for on_server in told.values() for aside in on_server], errors


@app.verb("remove", example="posduif backup remove 20261126T014941Z-7f3a --confirm 20261126T014941Z-7f3a")
def remove(ctx: typer.Context, which: Which, confirm: options.Confirm = None) -> None:
    """Delete one backup, after --confirm ID."""
    from posduif_cli.models.copies import Backup

    app = app_of(ctx)
    app.out.expect(Backup)
    stored = copies.find(app, which)
    backup = stored.backup
    why = f", which is pinned ({backup.pinned})" if backup.pinned else ""
    app.confirm(backup.backup, confirm, f"delete backup {backup.backup} of {backup.tenant}{why}")
    stored.remove()
    app.out.say(f"deleted: {backup.location}")
    app.out.show(backup, changed=True)


@app.verb("unpin", example="posduif backup unpin 20261126T014941Z-7f3a")
def unpin(ctx: typer.Context, which: Which) -> None:
    """Take back the note that a backup is to be kept."""
    from posduif_cli.models.copies import Backup

    app = app_of(ctx)
    app.out.expect(Backup)
    stored = copies.find(app, which)
    changed = stored.unpin()
    app.out.say(f"backup {stored.backup.backup} {'is no longer' if changed else 'was not'} pinned")
    app.out.show(stored.store.read(stored.key).backup, changed=changed)


@app.verb("prune", example="posduif backup prune --dry-run")
def prune(ctx: typer.Context, confirm: options.Confirm = None, dry_run: options.DryRun = False) -> None:
    """Delete backups that no rule of backup.keep keeps, and say why each of the others stays.

    The newest of each tenant, the newest that was proved, and pinned ones always stay. To delete more than half of all
    wants --confirm with the name of the folder. Databases that were set aside are dropped when their time is over.
    """
    from posduif_cli.core.copies import retention
    from posduif_cli.models.copies import Pruned

    app = app_of(ctx)
    if not dry_run:
        app.out.expect(Pruned)
    store = copies.store_of(app)
    unread: list[PosduifError] = []
    plan = retention.plan(store, app.config.backup_keep, datetime.now(UTC), unread)
    going = [row for _, row in plan if not row.kept]
    if 2 * len(going) > len(plan) and not dry_run:
        name = store.place.rstrip("/").rpartition("/")[2]
        app.confirm(name, confirm, f"delete {len(going)} of {counted(len(plan), 'backup')} in {store.place}")
    rows = [row for _, row in plan] if dry_run else retention.carry_out(store, plan)
    app.out.list(rows, Pruned, empty="no backups")
    deleted = f"{counted(len(going), 'backup')} {'would be ' * dry_run}deleted, {len(plan) - len(going)} kept"
    app.out.say(deleted)
    if app.config.servers:
        _discard_old(app, dry_run=dry_run)
    copies.tell_unread(app, unread)


def _discard_old(app: App, *, dry_run: bool) -> None:
    """Drop the databases that were set aside and whose time is over."""
    from posduif_cli.core.copies import replace

    now = datetime.now(UTC)
    found, errors = _asides(app)
    for aside in found:
        if aside.until is not None and aside.until < now:
            if not dry_run:
                replace.discard(app.fleet, aside)
            app.out.say(f"{aside.database}, once tenant {aside.tenant}, {'would be ' * dry_run}dropped")
    app.report_missing(errors)
