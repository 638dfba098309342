"""`posduif migrate`: bring tenants to the newest schema, and see who is where."""

from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Annotated

import typer

from posduif_cli.cli import copies, options, runs
from posduif_cli.cli.context import App, Noun, app_of, counted
from posduif_cli.errors import PosduifError, Run, UsageError
from posduif_cli.notation import duration

app = Noun(help="Bring tenants to the newest schema, and see who is where.")

Wave = Annotated[
    str | None,
    typer.Option("--wave", metavar="N,N%", help="Cumulative sizes of waves, such as 1,10%,100%; each is verified."),
]
MaxFailures = Annotated[
    str | None,
    typer.Option(
        "--max-failures",
        metavar="N|N%",
        help="Stop once more than N tenants in all, or N % of the running wave (rounded down), failed.",
    ),
]
# What `migrate status` shows of a tenant: where its schema is, from the record alone.
STATUS = ("tenant", "server", "state", "schema_version", "latest_version", "pending", "error", "ahead")
Pause = Annotated[str | None, typer.Option("--pause", metavar="DURATION", help="Wait this long between waves.")]


@app.verb("status", example="posduif migrate status --all")
def status(
    ctx: typer.Context,
    tenant: options.Tenants = None,
    everyone: options.All = False,
    check: Annotated[bool, typer.Option("--check", help="Exit 1 if a tenant is behind, ahead, or failed.")] = False,
    verify: Annotated[bool, typer.Option("--verify", help="Visit the tenants, and report wrong records.")] = False,
    sample: Annotated[
        int | None, typer.Option("--sample", min=1, metavar="N", help="Visit and verify N of them, at random.")
    ] = None,
    list_all: options.ListAll = False,
) -> None:
    """Show which version every tenant is at, from one query per server.

    A terminal gets a summary by version and server, and the tenants that are behind, or ahead of the files on this
    machine; --list and every machine format have a row per tenant.
    """
    from posduif_cli.models.checks import Finding, Level
    from posduif_cli.models.tenants import Tenant

    app = app_of(ctx)
    names = options.targets(tenant, everyone, "migrate status")
    found, errors = app.fleet.choose(names)
    if app.out.format == "table" and everyone and not list_all and not app.out.fields:
        from posduif_cli.render import report

        report.skew(app.out, found)
    else:
        app.out.only(*app.out.fields or STATUS).list(
            found, Tenant, empty=Run("tenant", "create", "NAME", lead="no tenants yet")
        )
    wrong: list[Finding] = []
    unvisited: dict[str, PosduifError] = {}
    if verify or sample is not None:
        from posduif_cli.core.checks import verify as checks

        findings, unvisited = checks.records(app.fleet, tenants=names, sample=sample)
        wrong = [finding for finding in findings if finding.level is not Level.OK]
        for finding in wrong:
            app.out.warn(f"{finding.subject}: {finding.message}")
    app.report_missing(errors)
    app.report_failed(unvisited, among=names)
    if wrong or (check and any(row.pending or row.ahead or row.error for row in found if row.state == "active")):
        raise typer.Exit(1)


@app.verb("list", example="posduif migrate list acme")
def list_(ctx: typer.Context, tenant: options.Tenant) -> None:
    """List a tenant's migrations: applied, pending, half (applied), missing (its file is gone) or changed since."""
    from posduif_cli.core.schema import history
    from posduif_cli.models.schema import Migration

    app = app_of(ctx)
    with app.fleet.open(tenant) as place:
        found = history.read(place.session, folders=app.fleet.folders)
    app.out.list(found, Migration, empty="no migrations")
    name_faults(app)


@app.verb("up", example="posduif migrate up --all --wave 1,10%,100% --max-failures 5%")
def up(
    ctx: typer.Context,
    tenant: options.Tenants = None,
    everyone: options.All = False,
    jobs: options.Jobs = 4,
    wave: Wave = None,
    max_failures: MaxFailures = None,
    pause: Pause = None,
    failed: Annotated[bool, typer.Option("--failed", help="Only tenants whose last migration failed.")] = False,
    list_all: options.ListAll = False,
    backup: Annotated[
        bool, typer.Option("--backup", help="Back each tenant up before anything is applied to it, and pin that.")
    ] = False,
    dry_run: options.DryRun = False,
) -> None:
    """Apply pending migrations: each in one transaction with its version row and the record.

    Tenants that are up to date are not visited. Without --max-failures a failure ends the run after its wave; with
    5% a wave goes on until more than 5 % of the tenants in it failed. A wave in which every tenant failed is the
    last. Run the command again to continue with the rest.
    """
    from posduif_cli.core.fleet.run import Pace
    from posduif_cli.core.schema import rollout
    from posduif_cli.models.runs import Outcome

    app = app_of(ctx)
    app.out.expect(Outcome)
    names = options.targets(tenant, everyone, "migrate up")
    if dry_run:
        planned, errors = rollout.plan_up(app.fleet, tenants=names, failed=failed)
        for risk in remarks(app, {version for versions in planned.versions.values() for version in versions}):
            app.out.warn(risk)
        app.show_plan(planned.plan)
        name_faults(app)
        app.report_failed(errors, among=names)
        return
    pace = Pace(jobs, split(wave), max_failures, duration(pause) if pause else timedelta(0))
    dump = None
    if backup:
        from posduif_cli.core.store import MIGRATE

        dump = copies.dumping(app, MIGRATE, pin="before migrate up").dump
    with runs.watched(app, pace) as run:

        def tell_risks(versions: set[str]) -> None:
            for risk in remarks(app, versions):
                run.tell(f"warning: {risk}")

        errors = rollout.up(run, tenants=names, failed=failed, on_pending=tell_risks, before=dump)
    name_faults(app)
    runs.conclude(app, run, errors, names, every=bool(names) or list_all, list_all=list_all)


@app.verb("down", example="posduif migrate down acme --steps 1 --confirm acme")
def down(
    ctx: typer.Context,
    tenant: options.Tenants = None,
    everyone: options.All = False,
    to: Annotated[str | None, typer.Option("--to", metavar="VERSION", help="Take back all newer than this.")] = None,
    steps: Annotated[
        int | None, typer.Option("--steps", metavar="N", min=1, help="Take back this many from each tenant.")
    ] = None,
    bundled: Annotated[bool, typer.Option("--bundled", help="Take back posduif's own migrations, too.")] = False,
    confirm: options.Confirm = None,
    jobs: options.Jobs = 4,
    list_all: options.ListAll = False,
    dry_run: options.DryRun = False,
) -> None:
    """Take back the newest migrations by their down sections; data in what they made is lost.

    It counts the rows that go. One tenant is confirmed by its name, several by their server's.
    """
    from posduif_cli.core.fleet.run import Pace
    from posduif_cli.core.schema import rollout
    from posduif_cli.models.runs import Outcome

    app = app_of(ctx)
    app.out.expect(Outcome)
    names = options.targets(tenant, everyone, "migrate down")
    if (to is None) == (steps is None):
        raise UsageError("say how far: either --to or --steps", hint=Run("migrate", "down", "acme", "--steps", "1"))
    found, errors = rollout.plan_down(app.fleet, tenants=names, to=to, steps=steps, bundled=bundled)
    plan = found.plan
    if dry_run:
        app.show_plan(plan)
        if plan.steps:
            app.out.say(f"it would lose {lost(found.lost)}")
    app.report_failed(errors, among=names)
    if dry_run:
        return
    if not plan.steps:
        app.out.say("nothing to take back")
        app.out.list([], Outcome)
        return
    servers = sorted({server.name for server in app.fleet.servers})
    expected = names[0] if names and len(names) == 1 else ",".join(servers)
    versions = ", ".join(sorted({step.subject for step in plan.steps}))
    count = counted(sum(map(bool, found.versions.values())), "tenant")
    app.confirm(expected, confirm, f"take back {versions} of {count}, which loses {lost(found.lost)}")
    with runs.watched(app, Pace(jobs)) as run:
        errors = rollout.down(run, tenants=names, to=to, steps=steps, bundled=bundled, planned=found.versions)
    runs.conclude(app, run, errors, names, every=bool(names) or list_all, list_all=list_all)


def lost(counts: Mapping[str, int | None]) -> str:
    """Return what taking migrations back loses, in words.

    >>> lost({"users": 2, "rows of archive": 1, "rows in 1001_x.sql": None}), lost({})
    ('2 users, 1 row of archive; rows not counted: rows in 1001_x.sql', 'no rows')
    """
    parts = [counted(n, noun[:-1]) for noun, n in counts.items() if n is not None and " of " not in noun]
    parts += [
        f"{counted(n, 'row')}{noun.removeprefix('rows')}"
        for noun, n in counts.items()
        if n is not None and " of " in noun
    ]
    unknown = [noun for noun, n in counts.items() if n is None]
    return (
        "; ".join(filter(None, (", ".join(parts), f"rows not counted: {', '.join(unknown)}" if unknown else "")))
        or "no rows"
    )


@app.verb("abandon", example="posduif migrate abandon acme 20260114093000 --confirm acme")
def abandon(
    ctx: typer.Context,
    tenant: options.Tenant,
    version: Annotated[str, typer.Argument(metavar="VERSION", help="The migration that is applied by half.")],
    confirm: options.Confirm = None,
    dry_run: options.DryRun = False,
) -> None:
    """Forget how far a half-applied migration is, and run nothing of it; what its statements did stays.

    Only files with transaction:false can be applied by half.
    """
    from posduif_cli.core.schema import half
    from posduif_cli.models.runs import Plan, Step

    app = app_of(ctx)
    with app.fleet.open(tenant) as place:
        conn = place.session
        begun = half.abandoning(conn, version, folders=app.folders)
        stays = [
            f"statement {each.number}{'' if each.done else ' (begun, perhaps done)'}"
            + (f": {each.text}" if each.text else "")
            for each in begun
        ]
        if dry_run:
            app.show_plan(
                Plan(
                    (Step("abandon", f"{version} of {tenant}; {'; '.join(stays) or 'nothing'} stays"),) if begun else ()
                )
            )
            return
        if begun:
            listing = "".join(f"\n  {line}" for line in stays)
            app.confirm(tenant, confirm, f"abandon migration {version} of {tenant}; this stays done:{listing}")
        changed = half.abandon(conn, version, folders=app.folders, planned=begun)
    if changed:
        app.out.say(f"migration {version} of {tenant} is abandoned; what stays done: {len(begun)} of its statements")
    else:
        app.out.say(f"migration {version} of {tenant} is not half applied")
    app.out.show({"tenant": tenant, "version": version, "statements": stays, "changed": changed})


@app.verb("verify", example="posduif migrate verify --all")
def verify(
    ctx: typer.Context, tenant: options.Tenants = None, everyone: options.All = False, list_all: options.ListAll = False
) -> None:
    """Compare tenants with the files and with each other: checksums, order, and drift of the schema.

    On a server with tenants it runs the migrations in a scratch database, which it drops. It creates no role.
    Exits with 1 when there is a difference.
    """
    from posduif_cli.core.checks import verify
    from posduif_cli.models.checks import Finding, Level

    app = app_of(ctx)
    names = options.targets(tenant, everyone, "migrate verify")
    findings, errors = verify.schemas(app.fleet, tenants=names)
    shown = findings if list_all or app.out.format != "table" else [f for f in findings if f.level is not Level.OK]
    app.out.list(shown, Finding, empty=f"{counted(len(findings), 'finding')}, all fine")
    app.report_failed(errors, among=names)
    if any(finding.level not in (Level.OK, Level.INFO) for finding in findings):
        raise typer.Exit(1)


@app.verb("new", example="posduif migrate new add_archive --dir migrations")
def new(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME", help="What it does: letters, digits and _.")],
    folder: Annotated[
        str | None, typer.Option("--dir", metavar="DIR", help="Folder; by default the first of migrations.paths.")
    ] = None,
) -> None:
    """Make the next migration file in a folder of your own."""
    from posduif_cli.core.schema import files

    app = app_of(ctx)
    path = files.new(app.folders, name=name, folder=Path(folder) if folder else None)
    app.out.say(Run("migrate", "up", "--all", "--dry-run", lead="write the SQL between its markers, then"))
    app.out.show({"path": str(path), "changed": True}) if app.out.machine else app.out.text(str(path))


def split(text: str | None) -> tuple[str, ...]:
    """Read a comma-separated option."""
    return tuple(part.strip() for part in text.split(",")) if text else ()


def name_faults(app: App) -> None:
    """Name the faulty files, which fail only what would run them."""
    from posduif_cli.core.schema import files

    for fault in files.of(app.folders).faults.values():
        app.out.warn(fault.sentence)


def remarks(app: App, versions: set[str]) -> list[str]:
    """Return what the checks of some versions' files warn of, for files that are not posduif's own."""
    if not app.folders.further:
        return []
    from posduif_cli.core.schema import files

    paths = {app.folders.paths[version] for version in versions if version in app.folders.paths}
    return [
        f"{problem.path}:{problem.line}: {problem.message} ({problem.rule})"
        for problem in files.check_all(app.folders, versions=versions)
        if problem.level == "warning" and problem.path in paths
    ]
