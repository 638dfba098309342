"""`posduif migrate`: bring tenants to the newest schema, and see who is where."""

from datetime import timedelta
from pathlib import Path
from typing import Annotated

import typer

from posduif_cli.cli import options, runs
from posduif_cli.cli.context import App, Noun, app_of, counted
from posduif_cli.errors import PosduifError, UsageError

app = Noun(help="Bring tenants to the newest schema, and see who is where.")

Wave = Annotated[
    str | None,
    typer.Option("--wave", metavar="N,N%", help="Cumulative sizes of waves, such as 1,10%,100%; each is verified."),
]
MaxFailures = Annotated[
    str | None, typer.Option("--max-failures", metavar="N|N%", help="Stop once more than this many failed.")
]
Pause = Annotated[str | None, typer.Option("--pause", metavar="DURATION", help="Wait this long between waves.")]


@app.verb("status", example="posduif migrate status --all")
def status(
    ctx: typer.Context,
    tenant: options.Tenants = None,
    everyone: options.All = False,
    check: Annotated[bool, typer.Option("--check", help="Exit 1 if anyone is behind.")] = False,
    verify: Annotated[bool, typer.Option("--verify", help="Visit the tenants, and report wrong records.")] = False,
    sample: Annotated[
        int | None, typer.Option("--sample", min=1, metavar="N", help="Visit and verify N of them, at random.")
    ] = None,
    list_all: options.ListAll = False,
) -> None:
    """Show where the schemas stand, from one query a server.

    A terminal gets a summary by version and server with the stragglers named; --list and every machine format
    have a row a tenant.
    """
    from posduif_cli.core import statuses
    from posduif_cli.models import Finding, Level, SchemaStatus

    app = app_of(ctx)
    names = options.targets(tenant, everyone, "migrate status")
    found, errors = statuses.status(app.fleet, tenants=names)
    if app.out.format == "table" and everyone and not list_all and not app.out.fields:
        from posduif_cli.render import report

        report.skew(app.out, found)
    else:
        app.out.list(found, SchemaStatus, empty="no tenants yet: posduif tenant create NAME")
    wrong: list[Finding] = []
    unvisited: dict[str, PosduifError] = {}
    if verify or sample is not None:
        from posduif_cli.core import verifications

        findings, unvisited = verifications.run(app.fleet, tenants=names, sample=sample)
        wrong = [finding for finding in findings if finding.level is not Level.OK]
        for finding in wrong:
            app.out.warn(f"{finding.subject}: {finding.message}")
    app.report_missing(errors)
    app.report_failed(unvisited, among=names)
    if wrong or (check and any(row.pending or row.error for row in found if row.state == "active")):
        raise typer.Exit(1)


@app.verb("list", example="posduif migrate list acme")
def list_(ctx: typer.Context, tenant: options.Tenant) -> None:
    """List a tenant's migrations: applied, pending, missing (its file is gone) or changed since."""
    from posduif_cli.core import migrations
    from posduif_cli.models import Migration

    app = app_of(ctx)
    with app.tenant(tenant) as conn:
        found = migrations.history(conn, folders=app.fleet.folders)
    app.out.list(found, Migration, empty="no migrations")


@app.verb("up", example="posduif migrate up --all --wave 1,10%,100% --max-failures 1%")
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
    dry_run: options.DryRun = False,
) -> None:
    """Apply pending migrations: each in one transaction with its version row and the record.

    A tenant that is up to date costs nothing, one that fails does not end the run. Run again, it goes on with
    who is left.
    """
    from posduif_cli.core import rollouts
    from posduif_cli.models import Outcome

    app = app_of(ctx)
    app.out.expect(Outcome)
    names = options.targets(tenant, everyone, "migrate up")
    if dry_run:
        plan, errors = rollouts.plan_up(app.fleet, tenants=names, failed=failed)
        for risk in remarks(app, {step.subject.partition("_")[0] for step in plan.steps}):
            app.out.warn(risk)
        app.show_plan(plan)
        app.report_failed(errors, among=names)
        return
    pace = rollouts.Pace(jobs, split(wave), max_failures, app.duration(pause, timedelta(0)))
    _ = app.fleet  # says which server is used before the progress line begins
    with runs.watched(app) as watcher:

        def tell_risks(versions: set[str]) -> None:
            for risk in remarks(app, versions):
                watcher.tell(f"warning: {risk}")

        run, errors = rollouts.up(
            app.fleet, tenants=names, failed=failed, pace=pace, on_pending=tell_risks, **watcher.callbacks
        )
    runs.conclude(app, run, errors, names, every=bool(names) or list_all)


@app.verb("down", example="posduif migrate down acme --steps 1 --confirm acme")
def down(
    ctx: typer.Context,
    tenant: options.Tenants = None,
    everyone: options.All = False,
    to: Annotated[str | None, typer.Option("--to", metavar="VERSION", help="Take back all newer than this.")] = None,
    steps: Annotated[int | None, typer.Option("--steps", min=1, help="Take back this many from each tenant.")] = None,
    confirm: options.Confirm = None,
    jobs: options.Jobs = 4,
    list_all: options.ListAll = False,
    dry_run: options.DryRun = False,
) -> None:
    """Take back the newest migrations by their down sections; data in what they made is lost.

    One tenant is confirmed by its name, several by their server's.
    """
    from posduif_cli.core import rollouts
    from posduif_cli.models import Outcome

    app = app_of(ctx)
    app.out.expect(Outcome)
    names = options.targets(tenant, everyone, "migrate down")
    if (to is None) == (steps is None):
        raise UsageError("say how far: either --to or --steps", hint="posduif migrate down acme --steps 1")
    plan, errors = rollouts.plan_down(app.fleet, tenants=names, to=to, steps=steps)
    if dry_run:
        app.show_plan(plan)
    app.report_failed(errors, among=names)
    if dry_run:
        return
    affected = sorted({name for step in plan.steps for name in step.tenants})
    if not affected:
        app.out.say("nothing to take back")
        app.out.list([], Outcome)
        return
    servers = sorted({server.name for server in app.fleet.servers})
    expected = names[0] if names and len(names) == 1 else ",".join(servers)
    versions = ", ".join(sorted({step.subject for step in plan.steps}))
    app.confirm(expected, confirm, f"take back {versions} of {counted(len(affected), 'tenant')}, with the data in it")
    with runs.watched(app) as watcher:
        run, errors = rollouts.down(
            app.fleet, tenants=names, to=to, steps=steps, plan=plan, pace=rollouts.Pace(jobs), **watcher.callbacks
        )
    runs.conclude(app, run, errors, names, every=bool(names) or list_all)


@app.verb("verify", example="posduif migrate verify --all")
def verify(
    ctx: typer.Context, tenant: options.Tenants = None, everyone: options.All = False, list_all: options.ListAll = False
) -> None:
    """Compare tenants with the files and with each other: checksums, order, and drift of the schema.

    On a server with tenants it runs the migrations in a scratch database, which it drops. It makes no role.
    Exits with 1 when there is a difference.
    """
    from posduif_cli.core import verifications
    from posduif_cli.models import Finding, Level

    app = app_of(ctx)
    names = options.targets(tenant, everyone, "migrate verify")
    findings, errors = verifications.schemas(app.fleet, tenants=names)
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
    from posduif_cli.core import folders

    app = app_of(ctx)
    path = folders.new(app.folders, name=name, folder=Path(folder) if folder else None)
    app.out.say("write the SQL between its markers, then: posduif migrate up --all --dry-run")
    app.out.show({"path": str(path), "changed": True}) if app.out.machine else app.out.text(str(path))


def split(text: str | None) -> tuple[str, ...]:
    """Read a comma-separated option."""
    return tuple(part.strip() for part in text.split(",")) if text else ()


def remarks(app: App, versions: set[str]) -> list[str]:
    """Return what the checks of some versions' files warn of, for files that are not posduif's own."""
    if not app.folders.further:
        return []
    from posduif_cli.core import risks

    paths = {app.folders.paths[version] for version in versions if version in app.folders.paths}
    return [
        f"{problem.path}:{problem.line}: {problem.message} ({problem.rule})"
        for problem in risks.check_all(app.folders)
        if problem.level == "warning" and problem.path in paths
    ]
