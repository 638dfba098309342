"""`posduif tenant`: create, list, show, change and drop tenants."""

import os
from collections.abc import Callable, Sequence
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from posduif_cli.cli import options, runs
from posduif_cli.cli.context import App, Noun, app_of, counted
from posduif_cli.errors import Busy, ConfigurationError, Run, TenantExists, UsageError
from posduif_cli.notation import moment

if TYPE_CHECKING:
    from posduif_cli.core.fleet.fleet import Fleet, Found
    from posduif_cli.core.fleet.steps import Deed
    from posduif_cli.models.tenants import Loss, Tenant

app = Noun(help="Create, list, show, change and drop tenants.")


class Keeper:
    """Takes an engine's new password before its role gets it: into a file, or to be shown once afterwards."""

    def __init__(self, tenant: str, file: Path | None) -> None:
        self.file = file
        self.password: str | None = None
        self.kept = False
        if file:
            from posduif_cli.render import engine_config

            engine_config.check(file, tenant)

    def __call__(self, password: str, settings: dict[str, Any]) -> None:
        """Keep the password; raises FileExists or ConfigurationError."""
        self.kept = True
        if self.file is None:
            self.password = password
            return
        from posduif_cli.render import engine_config

        engine_config.write(self.file, settings)

    def tell(self, app: App, tenant: str) -> None:
        """Say where the password is, or show it this once."""
        if self.file is not None:
            app.out.say(f"engine configuration with the password: {self.file}")
        elif self.password is not None:
            app.out.say(f"password of {tenant}_engine, shown this once: {self.password}")


def keeper(app: App, tenant: str, file: Path | None) -> Keeper | None:
    """Return what takes the password; None where it could only go into a pipe or JSON."""
    import sys

    shown = app.out.format == "table" and not app.out.quiet and sys.stdout.isatty() and sys.stderr.isatty()
    return Keeper(tenant, file) if file or shown else None


def bulk_keeper(folder: Path | None) -> Callable[[str, bool], Any]:
    """Return what takes the passwords of many tenants: one file each in *folder*; nothing without a folder.

    Raises ConfigurationError where the folder cannot be made.
    """
    if folder is None:
        return lambda tenant, exists: None
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise ConfigurationError(f"{folder} cannot be made", why=error.strerror) from None

    def keep(tenant: str, exists: bool) -> Keeper:
        file = folder / f"{tenant}.yaml"
        if exists and not file.exists():
            raise _never_kept(tenant, file)
        return Keeper(tenant, file)

    return keep


def _never_kept(tenant: str, file: Path) -> TenantExists:
    message = f"tenant {tenant} exists, and its engine's password cannot be read again for {file}"
    return TenantExists(message, hint=_rotate(tenant, file=str(file)))


def _rotate(tenant: str, lead: str = "", *, file: str = "FILE") -> Run:
    """Return the command that gives a tenant's engine a password."""
    return Run("tenant", "rotate-password", tenant, "--engine-config", file, lead=lead)


@app.verb("create", example="posduif tenant create acme --url https://acme.example.com --if-not-exists")
def create(
    ctx: typer.Context,
    name: Annotated[str | None, typer.Argument(metavar="[TENANT]", help="Name of the tenant.")] = None,
    url: options.Url = None,
    web_user: Annotated[
        str | None,
        typer.Option("--web-user", metavar="NAME", help="Make this first web user, who creates tokens."),
    ] = None,
    engine_config: Annotated[
        Path | None,
        typer.Option(
            "--engine-config",
            metavar="FILE|DIR",
            help="Write the sync engine's configuration here (mode 0600); with --from, DIR/TENANT.yaml for each.",
        ),
    ] = None,
    from_: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="FILE",
            help="Create all tenants of a list that do not exist: CSV, YAML or JSON with name, url, web_user, "
            "server; - is stdin.",
        ),
    ] = None,
    jobs: options.Jobs = 4,
    list_all: options.ListAll = False,
    if_not_exists: options.IfNotExists = False,
    ignore_unreachable: options.IgnoreUnreachable = False,
    dry_run: options.DryRun = False,
) -> None:
    """Create a tenant: its database, its engine's role, its schema. Run again, it finishes what was interrupted.

    With --from it creates a list of them; run again, it is the same as once.
    """
    app = app_of(ctx)
    if (name is None) == (from_ is None):
        raise UsageError(
            "name a tenant, or a list of them by --from, and not both",
            hint=[Run("tenant", "create", "acme"), Run("tenant", "create", "--from", "tenants.csv")],
        )
    if from_ is not None and (url or web_user):
        raise UsageError("--url and --web-user do not go with --from", why="they are columns of the list")
    if name is None:
        _create_all(app, str(from_), jobs, engine_config, list_all, ignore_unreachable, dry_run)
        return
    from posduif_cli.core.tenants import create
    from posduif_cli.models.tenants import Tenant

    if not dry_run:
        app.out.expect(Tenant)
    wanted = create.Wanted(name, options.url(url), web_user)
    if dry_run:
        app.show_plan(
            create.creating(app.fleet, wanted, if_not_exists=if_not_exists, ignore_unreachable=ignore_unreachable)
        )
        return
    keep = keeper(app, name, engine_config)
    tenant, changed = create.create(
        app.fleet, wanted, if_not_exists=if_not_exists, ignore_unreachable=ignore_unreachable, keep=keep
    )
    if engine_config and not changed and not engine_config.exists():
        raise _never_kept(name, engine_config)
    app.out.say(f"tenant {name} {'created' if changed else 'exists, unchanged,'} on server {tenant.server}")
    if keep and changed:
        keep.tell(app, name)
    app.out.show(tenant, changed=changed)
    if changed and keep is None:
        app.out.say(_rotate(name, "its engine has no password yet"))


def _create_all(
    app: App,
    source: str,
    jobs: int,
    engine_configs: Path | None,
    list_all: bool,
    ignore_unreachable: bool,
    dry_run: bool,
) -> None:
    from posduif_cli.config import lists
    from posduif_cli.core.tenants import bulk
    from posduif_cli.models.runs import Outcome
    from posduif_cli.render import progress

    app.out.expect(Outcome)
    rows = lists.rows(_text(source), "stdin" if source == "-" else source, required="name")
    entries = bulk.read(app.fleet, [(row.line, row.values) for row in rows], source, check_url=options.url)
    names = [entry.wanted.name for entry in entries]
    make = partial(bulk.Creation, app.fleet, entries, jobs=jobs, ignore_unreachable=ignore_unreachable)
    if dry_run:
        plan, errors = make().plan()
        app.show_plan(plan)
        app.report_failed(errors, among=names)
        return
    keeper = bulk_keeper(engine_configs)
    with progress.watch(app.out) as watcher:
        run = make(keeper=keeper, on_outcome=watcher.on_outcome)
        run.run()
    runs.conclude(app, run, {}, names, every=list_all or app.out.machine, list_all=list_all)
    if engine_configs is None and any(outcome.changed for outcome in run.outcomes):
        app.out.say(_rotate("TENANT", "their engines have no passwords yet"))


def _text(source: str) -> str:
    """Read a file, or stdin for `-`; raises UsageError."""
    import sys

    try:
        content = sys.stdin.buffer.read() if source == "-" else Path(source).read_bytes()
        return content.decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise UsageError(f"{source} cannot be read", why=reason) from None


class Sort(StrEnum):
    """What a list of tenants is sorted by."""

    NAME = "name"
    SIZE = "size"
    VERSION = "version"
    SERVER = "server"


@app.verb("list", example="posduif tenant list 'ac*' --sort size")
def list_(
    ctx: typer.Context,
    pattern: Annotated[
        str | None,
        typer.Argument(metavar="[PATTERN]", help="A part of the name; * is any text.", show_default=False),
    ] = None,
    sort: Annotated[
        Sort, typer.Option("--sort", metavar="BY", help="name, size (largest first), version (oldest first) or server.")
    ] = Sort.NAME,
    state: Annotated[
        list[str] | None, typer.Option("--state", metavar="STATE", help="Only these, such as suspended; repeatable.")
    ] = None,
    sizes: Annotated[bool, typer.Option("--sizes", help="Ask for each database's size, too.")] = False,
) -> None:
    """List the tenants of all servers, from one query per server."""
    from fnmatch import fnmatchcase

    from posduif_cli.models.tenants import State, Tenant

    app = app_of(ctx)
    for wrong in [text for text in state or () if text not in list(State)]:
        raise UsageError(f'"{wrong}" is not a state', why=f"states are: {', '.join(State)}")
    found, errors = app.fleet.tenants(sizes=sizes or sort is Sort.SIZE)
    wanted = (pattern or "").lower()
    shown = [
        tenant
        for tenant in found
        if (fnmatchcase(tenant.tenant, wanted) if "*" in wanted else wanted in tenant.tenant)
        and (not state or tenant.state in state)
    ]
    shown.sort(key=ORDERS[sort])
    app.out.list(
        shown,
        Tenant,
        empty="no tenant fits" if found else "" if errors else Run("tenant", "create", "NAME", lead="no tenants yet"),
    )
    if not found and not errors:
        app.tell_of_embedded()
        app.tell_of_hidden_tenants()
    app.report_missing(errors)


ORDERS: "dict[Sort, Callable[[Tenant], Any]]" = {
    Sort.NAME: lambda tenant: (),  # as they come
    Sort.SIZE: lambda tenant: -(tenant.size_bytes or 0),
    Sort.VERSION: lambda tenant: (tenant.schema_version or "", -tenant.pending),
    Sort.SERVER: lambda tenant: tenant.server,
}


@app.verb("show", example="posduif tenant show acme")
def show(
    ctx: typer.Context,
    name: options.Tenant,
    sizes: Annotated[bool, typer.Option("--sizes", help="Ask for the database's size, too.")] = False,
) -> None:
    """Show one tenant."""
    app = app_of(ctx)
    app.out.show(app.fleet.find(name, sizes=sizes).tenant)


@app.verb("set", example="posduif tenant set acme --url https://acme.example.com")
def set_(
    ctx: typer.Context,
    name: options.Tenant,
    url: options.Url = None,
    desk: Annotated[
        str | None,
        typer.Option("--desk", metavar="USER", help="Web user who creates tokens where --by is not given."),
    ] = None,
) -> None:
    """Change a tenant's url, or the web user who creates its tokens."""
    from posduif_cli.core.tenants import engine
    from posduif_cli.models.tenants import Tenant

    app = app_of(ctx)
    app.out.expect(Tenant)
    origin = options.url(url)
    if origin is None and desk is None:
        raise UsageError("nothing to set", hint=Run("tenant", "set", name, "--url", f"https://{name}.example.com"))
    tenant, changed = engine.change(app.fleet, app.fleet.find(name), url=origin, desk=desk)
    what = " and ".join(["url"] * (origin is not None) + ["desk"] * (desk is not None))
    app.out.say(f"tenant {name}: {f'{what} set' if changed else 'unchanged'}")
    app.out.show(tenant, changed=changed)


@app.verb("adopt", example="posduif tenant adopt acme --dry-run")
def adopt(
    ctx: typer.Context,
    name: options.Tenant,
    url: options.Url = None,
    accept: Annotated[
        list[str] | None,
        typer.Option(
            "--accept",
            metavar="NAME",
            help="Take in code of other people on posduif's tables, named as the refusal names it; repeatable.",
        ),
    ] = None,
    ignore_unreachable: options.IgnoreUnreachable = False,
    dry_run: options.DryRun = False,
) -> None:
    """Take in a database that other people made: add what it lacks, keep what it has, refuse what differs.

    Code of theirs that would run when posduif writes to its tables is refused: it could use an administrator's rights.
    A superuser's session takes in no database that posduif did not make.
    """
    from posduif_cli.core.tenants.adopt import Adopting
    from posduif_cli.models.tenants import Adoption

    app = app_of(ctx)
    adopting = Adopting(app.fleet, name, options.url(url), accept or (), ignore_unreachable)
    if dry_run:
        app.show_plan(adopting.plan())
        return
    app.out.expect(Adoption)
    done = adopting.run()
    for change in done.changes:
        app.out.say(change)
    for thing in done.own:
        app.out.say(f"{thing} stays as it is")
    app.out.say(f"database {name} {'adopted' if done.changed else 'is a tenant already'} on server {done.server}")
    # On a terminal the lists have just been told line by line.
    brief = ("tenant", "server", "state", "schema_version", "url", "changed")
    told = app.out.format == "table" and not app.out.fields
    app.out.show({field: getattr(done, field) for field in brief} if told else done)
    if done.changed:
        app.out.say(_rotate(name, "a new password for its engine"))


@app.verb("verify", example="posduif tenant verify --all")
def verify(
    ctx: typer.Context,
    tenant: options.Tenants = None,
    everyone: options.All = False,
    repair: Annotated[
        bool, typer.Option("--repair", help="Repair what posduif may repair; the tenant's own table wins.")
    ] = False,
) -> None:
    """Compare records with reality: versions, owner, grants, roles, settings. Exits with 1 if something stays wrong."""
    from posduif_cli.core.checks import verify
    from posduif_cli.models.checks import Finding, Level, Repaired

    app = app_of(ctx)
    app.out.expect(Finding)
    names = options.targets(tenant, everyone, "tenant verify")
    findings, errors = verify.reality(app.fleet, tenants=names, repair=repair)
    app.out.list(findings, Finding, changed=lambda finding: isinstance(finding, Repaired))
    if repaired := sum(isinstance(finding, Repaired) for finding in findings):
        app.out.say(f"{counted(repaired, 'finding')} repaired")
    app.report_failed(errors, among=names)
    if any(finding.level not in (Level.OK, Level.INFO) for finding in findings):
        raise typer.Exit(1)


@app.verb("suspend", example="posduif tenant suspend acme")
def suspend(
    ctx: typer.Context, name: options.Tenant, confirm: options.Confirm = None, dry_run: options.DryRun = False
) -> None:
    """Shut a tenant's engine out and end its sessions. The data stays; backups go on."""
    from posduif_cli.core.tenants import suspend

    guard = partial(_guard, app_of(ctx), confirm, "suspend {name} on the protected server {server}")
    _carry_out(app_of(ctx), name, suspend.suspend, "suspended", dry_run, guard)


@app.verb("resume", example="posduif tenant resume acme")
def resume(ctx: typer.Context, name: options.Tenant, dry_run: options.DryRun = False) -> None:
    """Bring a suspended tenant to the newest schema and let its engine in again."""
    from posduif_cli.core.tenants import suspend

    _carry_out(app_of(ctx), name, suspend.resume, "active", dry_run)


def _carry_out(
    app: App,
    name: str,
    verb: "Callable[[Fleet, Found], Sequence[Deed]]",
    state: str,
    dry_run: bool,
    guard: "Callable[[Found], None]" = lambda found: None,
) -> None:
    """Do what *verb* returns, or show it; *state* is what the tenant is in afterwards."""
    from posduif_cli.core.fleet import steps
    from posduif_cli.models.tenants import Tenant

    if not dry_run:
        app.out.expect(Tenant)
    found = app.fleet.find(name)
    deeds = verb(app.fleet, found)
    if dry_run:
        app.show_plan(steps.plan(deeds))
        return
    guard(found)
    tenant, changed = steps.carry_out(app.fleet, found, deeds)
    app.out.say(f"tenant {name} {f'is {state}' if changed else f'was {state} already'}")
    app.out.show(tenant, changed=changed)


def _guard(app: App, confirm: str | None, danger: str, found: "Found") -> None:
    """Have a change on a protected server confirmed; raises ConfirmationMissing."""
    if found.server.protected:
        name = found.tenant.tenant
        app.confirm(name, confirm, danger.format(name=name, server=found.server.name))


@app.verb("rotate-password", example="posduif tenant rotate-password acme --engine-config acme.yaml")
def rotate_password(
    ctx: typer.Context,
    name: options.Tenant,
    engine_config: options.EngineConfig = None,
    now: Annotated[
        bool, typer.Option("--now", help="End the engine's sessions, too, which the old one opened.")
    ] = False,
    confirm: options.Confirm = None,
) -> None:
    """Give a tenant's engine a new password; without --now, sessions that are connected stay so."""
    from posduif_cli.core.tenants import engine
    from posduif_cli.models.tenants import Tenant

    app = app_of(ctx)
    app.out.expect(Tenant)
    keep = keeper(app, name, engine_config)
    if keep is None:
        raise UsageError(
            "there is nowhere to put the new password",
            why="it is never written into a pipe or JSON",
            hint=_rotate(name),
        )
    found = app.fleet.find(name)
    _guard(app, confirm, "rotate the password of {name} on the protected server {server}", found)
    try:
        tenant = engine.rotate_password(app.fleet, found, keep=keep, now=now)
    except Busy:
        if keep.kept:  # it was changed all the same
            keep.tell(app, name)
        raise
    app.out.say(f"tenant {name}: the engine's password was changed; restart the engine with it")
    keep.tell(app, name)
    app.out.show(tenant, changed=True)


@app.verb("engine-config", example="posduif tenant engine-config acme")
def engine_config(ctx: typer.Context, name: options.Tenant, out: options.Out = None) -> None:
    """Print the YAML file that a tenant's sync engine reads, with a placeholder for the password."""
    from posduif_cli.core.tenants import engine
    from posduif_cli.render import engine_config as render

    app = app_of(ctx)
    settings = engine.engine_config(app.fleet, name=name)
    if out is not None:
        if os.path.lexists(out) and not out.is_char_device():
            raise UsageError(f"{out} exists", hint=_rotate(name, file=str(out)))
        render.write(out, settings)
        app.out.say(f"written: {out}")
    elif app.out.machine:
        app.out.show(settings)
    else:
        app.out.text(render.text(settings))
    app.out.say(_rotate(name, "the password in it is a placeholder"))


def _danger(loss: "Loss") -> str:
    """Say what dropping a tenant destroys."""
    if loss.uncounted:
        return f"drop tenant {loss.tenant} on server {loss.server}; its rows were not counted: {loss.uncounted}"
    if loss.users is None:
        return f"drop what is left of tenant {loss.tenant} on server {loss.server}, which is no whole tenant"
    last = f", last activity {moment(loss.last_activity)}" if loss.last_activity else ""
    rows = ((loss.users, "user"), (loss.devices, "device"), (loss.messages, "message"))
    counts = ", ".join(counted(number or 0, noun) for number, noun in rows)
    return f"drop tenant {loss.tenant} on server {loss.server} with {counts}{last}"


@app.verb("drop", example="posduif tenant drop acme --confirm acme")
def drop(
    ctx: typer.Context, name: options.Tenant, confirm: options.Confirm = None, dry_run: options.DryRun = False
) -> None:
    """Drop a tenant: its engine's sessions, its database with everything in it, its role."""
    from posduif_cli.core.tenants import drop
    from posduif_cli.models.tenants import Loss

    app = app_of(ctx)
    if dry_run:
        app.show_plan(drop.dropping(app.fleet, app.fleet.find(name)))
        return
    app.out.expect(Loss)
    loss, changed = drop.drop(
        app.fleet,
        app.fleet.find(name),
        confirmed=confirm == name,
        confirm=lambda loss: app.confirm(name, confirm, _danger(loss)),
    )
    gone = f"dropped from server {loss.server}" if changed else "was dropped by another command in this moment"
    app.out.say(f"tenant {name} {gone}")
    app.out.show(loss, changed=changed)
