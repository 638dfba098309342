"""`posduif tenant`: create, list, show, change and drop tenants."""

import os
from collections.abc import Callable, Sequence
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from posduif_cli import notation
from posduif_cli.cli import copies, keeping, options, runs
from posduif_cli.cli.context import App, Noun, app_of, counted
from posduif_cli.errors import Busy, ConfigurationError, NoTargets, Run, UsageError, WrongState
from posduif_cli.notation import moment

if TYPE_CHECKING:
    from posduif_cli.core.fleet.fleet import Fleet, Found
    from posduif_cli.core.fleet.steps import Deed
    from posduif_cli.core.tenants.engines import Engines
    from posduif_cli.errors import PosduifError
    from posduif_cli.models.tenants import Loss, Tenant

app = Noun(help="Create, list, show, change and drop tenants.")


@app.verb("create", example="posduif tenant create acme --url https://acme.example.com --if-not-exists")
def create(
    ctx: typer.Context,
    name: options.MaybeTenant = None,
    url: options.Url = None,
    web_user: Annotated[
        str | None,
        typer.Option("--web-user", metavar="NAME", help="Make this first web user, who creates tokens."),
    ] = None,
    engine_config: options.EngineFiles = None,
    from_: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="FILE",
            help="Create all tenants of a list that do not exist: CSV, YAML or JSON with name, url, web_user, "
            "server, engine_port, redis; - is stdin.",
        ),
    ] = None,
    engine_port: options.EnginePort = None,
    redis: options.Redis = None,
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
    if from_ is not None and (url or web_user or engine_port or redis):
        raise UsageError(
            "--url, --web-user, --engine-port and --redis do not go with --from", why="they are columns of the list"
        )
    if name is None:
        _create_all(app, str(from_), jobs, engine_config, list_all, ignore_unreachable, dry_run)
        return
    from posduif_cli.core.tenants import create
    from posduif_cli.models.tenants import Tenant

    if not dry_run:
        app.out.expect(Tenant)
    asked = None if redis is None else notation.redis(redis)
    wanted = create.Wanted(name, options.url(url), web_user, engine_port, asked)
    if dry_run:
        app.show_plan(
            create.creating(app.fleet, wanted, if_not_exists=if_not_exists, ignore_unreachable=ignore_unreachable)
        )
        return
    keep = keeping.keeper(app, name, engine_config)
    tenant, changed = create.create(
        app.fleet, wanted, if_not_exists=if_not_exists, ignore_unreachable=ignore_unreachable, keep=keep
    )
    if engine_config and not changed and not engine_config.exists():
        raise keeping.never_kept(name, engine_config)
    app.out.say(f"tenant {name} {'created' if changed else 'exists, unchanged,'} on server {tenant.server}")
    if keep and changed:
        keep.tell(app, name)
    app.out.show(tenant, changed=changed)
    if changed and keep is None:
        app.out.say(keeping.rotate(name, "its engine has no password yet"))


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
    folder = keeping.Folder(engine_configs)
    with progress.watch(app.out) as watcher:
        run = make(keeper=folder, on_outcome=watcher.on_outcome)
        run.run()
    folder.tell(app)
    runs.conclude(app, run, {}, names, every=list_all or app.out.machine, list_all=list_all)
    if engine_configs is None and any(outcome.changed for outcome in run.outcomes):
        app.out.say(keeping.rotate("TENANT", "their engines have no passwords yet"))


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
    times_from: Annotated[
        str | None,
        typer.Option("--times-from", metavar="ZONE", help="Convert its times, written in this time zone, to UTC."),
    ] = None,
    keep_times: Annotated[
        bool, typer.Option("--keep-times", help="Leave its times as they are; they count as UTC from then on.")
    ] = False,
    print_sql: Annotated[
        bool,
        typer.Option("--print-sql", help="Print what a superuser runs once where one owns it; change nothing."),
    ] = False,
    ignore_unreachable: options.IgnoreUnreachable = False,
    dry_run: options.DryRun = False,
) -> None:
    """Take in a database that other people made: add what it lacks, keep what it has, refuse what differs.

    Code of theirs that would run when posduif writes to its tables is refused: it could use an administrator's rights.
    A superuser's session takes in no database that posduif did not make.
    """
    from posduif_cli.core.tenants.adopt import UNDECIDED, Adopting
    from posduif_cli.core.tenants.times import Choice
    from posduif_cli.models.tenants import Adoption

    app = app_of(ctx)
    if times_from is not None and keep_times:
        raise UsageError("--times-from and --keep-times exclude each other")
    choice = Choice(times_from, keep_times)
    adopting = Adopting(app.fleet, name, options.url(url), accept or (), ignore_unreachable, choice)
    if print_sql:
        app.out.text(adopting.spell())
        return
    if dry_run:
        app.show_plan(adopting.plan())
        return
    app.out.expect(Adoption)
    done = adopting.run()
    for change in done.changes:
        app.out.say(change)
    for thing in done.own:
        app.out.say(f"{thing} stays as it is")
    for other in done.others:
        app.out.say(f"note: {other}")
    app.out.say(f"database {name} {'adopted' if done.changed else 'is a tenant already'} on server {done.server}")
    if not done.changed and choice != UNDECIDED:
        app.out.warn(f"{name} is a tenant already: its times were left as they are")
    # On a terminal the lists have just been told line by line.
    brief = ("tenant", "server", "state", "schema_version", "url", "changed")
    told = app.out.format == "table" and not app.out.fields
    app.out.show({field: getattr(done, field) for field in brief} if told else done)
    if done.changed:
        app.out.say(keeping.rotate(name, "a new password for its engine"))


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
    verb = partial(suspend.suspend, tell=app_of(ctx).out.say)
    then = "leave its engine running: it is shut out, and works again by itself after tenant resume"
    _carry_out(app_of(ctx), name, verb, "suspended", then, dry_run, guard)


@app.verb("resume", example="posduif tenant resume acme")
def resume(ctx: typer.Context, name: options.Tenant, dry_run: options.DryRun = False) -> None:
    """Bring a suspended tenant to the newest schema and let its engine in again."""
    from posduif_cli.core.tenants import suspend

    then = "its engine works again by itself; it needs a restart only if its password was changed meanwhile"
    _carry_out(app_of(ctx), name, suspend.resume, "active", then, dry_run)


def _carry_out(
    app: App,
    name: str,
    verb: "Callable[[Fleet, Found], Sequence[Deed]]",
    state: str,
    then: str,
    dry_run: bool,
    guard: "Callable[[Found], None]" = lambda found: None,
) -> None:
    """Do what *verb* returns, or show it; *state* is what the tenant is in afterwards, *then* what its engine does."""
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
    if changed:
        app.out.say(then)
    app.out.show(tenant, changed=changed)


def _guard(app: App, confirm: str | None, danger: str, found: "Found") -> None:
    """Have a change on a protected server confirmed; raises ConfirmationMissing."""
    if found.server.protected:
        name = found.tenant.tenant
        app.confirm(name, confirm, danger.format(name=name, server=found.server.name))


@app.verb("rotate-password", example="posduif tenant rotate-password acme --engine-config acme.yaml")
def rotate_password(
    ctx: typer.Context,
    name: options.MaybeTenant = None,
    everyone: options.All = False,
    from_: Annotated[
        str | None,
        typer.Option("--from", metavar="FILE", help="The tenants of a list, by its column name; - is stdin."),
    ] = None,
    engine_config: options.EngineFiles = None,
    now: Annotated[
        bool, typer.Option("--now", help="End the engine's sessions, too, which the old one opened.")
    ] = False,
    jobs: options.Jobs = 4,
    list_all: options.ListAll = False,
    confirm: options.Confirm = None,
) -> None:
    """Give a tenant's engine a new password; without --now, sessions that are connected stay so."""
    from posduif_cli.core.tenants import engine
    from posduif_cli.models.tenants import Tenant

    app = app_of(ctx)
    if (name is not None) + everyone + (from_ is not None) != 1:
        raise NoTargets(
            "name a tenant, a list of them by --from, or --all",
            hint=[
                Run("tenant", "rotate-password", "acme", "--engine-config", "acme.yaml"),
                Run("tenant", "rotate-password", "--all", "--engine-config", "DIR"),
            ],
        )
    if name is None:
        _rotate_all(app, from_, engine_config, now, jobs, list_all, confirm)
        return
    app.out.expect(Tenant)
    keep = keeping.keeper(app, name, engine_config)
    if keep is None:
        raise UsageError(
            "there is nowhere to put the new password",
            why="it is never written into a pipe or JSON",
            hint=keeping.rotate(name),
        )
    found = app.fleet.find(name)
    _guard(app, confirm, "rotate the password of {name} on the protected server {server}", found)
    try:
        tenant = engine.rotate_password(app.fleet, found, keep=keep, now=now)
    except Busy:
        if keep.kept:  # it was changed all the same
            keep.tell(app, name)
        raise
    app.out.say(f"tenant {name}: the engine's password was changed")
    keep.tell(app, name)
    app.out.say(f"the engine does not learn it by itself: restart it{f' with {keep.file}' if keep.file else ''}")
    app.out.show(tenant, changed=True)


def _rotate_all(
    app: App,
    source: str | None,
    folder: Path | None,
    now: bool,
    jobs: int,
    list_all: bool,
    confirm: str | None,
) -> None:
    """Give the engines of many tenants new passwords, in files in a folder."""
    from posduif_cli.config import lists
    from posduif_cli.core.tenants import engine
    from posduif_cli.models.runs import Outcome

    if folder is None:
        raise UsageError("there is nowhere to put the new passwords", hint="--engine-config DIR")
    names = None
    if source is not None:
        rows = lists.rows(_text(source), "stdin" if source == "-" else source, required="name")
        names = list(dict.fromkeys(row.values.get("name") or "" for row in rows))
    app.out.expect(Outcome)
    chosen, errors = app.fleet.choose(names)
    servers = sorted({tenant.server for tenant in chosen if app.fleet.server(tenant.server).protected})
    if servers:
        which = ",".join(servers)
        app.confirm(which, confirm, f"rotate {counted(len(chosen), 'password')}, also on the protected server {which}")
    files = keeping.Folder(folder)

    def work(found: "Found") -> bool:
        keep = files(found.tenant.tenant, False)
        assert keep is not None
        engine.rotate_password(app.fleet, found, keep=keep, now=now)
        return True

    run = _change_engines(app, jobs, chosen, work)
    files.tell(app)
    if any(outcome.changed for outcome in run.outcomes):
        app.out.say(f"the engines do not learn them by themselves: restart each with its file in {folder}")
    _conclude(app, run, errors, names, list_all)


def _change_engines(app: App, jobs: int, chosen: "Sequence[Tenant]", work: "Callable[[Found], bool]") -> "Engines":
    """Do something for the engines of many tenants, with progress on stderr; return the run."""
    from posduif_cli.core.fleet.run import Pace
    from posduif_cli.core.tenants.engines import Engines
    from posduif_cli.render import progress

    fleet = app.fleet
    with progress.watch(app.out) as watcher:
        run = Engines(fleet, Pace(jobs), on_outcome=watcher.on_outcome)
        run.change(chosen, work)
    return run


def _conclude(
    app: App, run: "Engines", errors: "dict[str, PosduifError]", names: list[str] | None, list_all: bool
) -> None:
    """Show the outcomes; *errors* are of servers or, where tenants are named, of those."""
    every = list_all or app.out.machine
    runs.conclude(app, run, {} if names else errors, names, every=every, list_all=list_all)
    if names:
        app.report_failed(errors, among=names)


@app.verb("engine-config", example="posduif tenant engine-config acme")
def engine_config(
    ctx: typer.Context,
    name: options.MaybeTenant = None,
    out: options.Out = None,
    refresh: Annotated[
        Path | None,
        typer.Option(
            "--refresh",
            metavar="FILE",
            help="Bring an engine's file, its record and its role's limit to what the configuration says now. "
            "The password stays.",
        ),
    ] = None,
    folder: Annotated[
        Path | None, typer.Option("--all", metavar="DIR", help="Refresh DIR/TENANT.yaml of every tenant that has one.")
    ] = None,
    jobs: options.Jobs = 4,
    list_all: options.ListAll = False,
) -> None:
    """Print the YAML file that a tenant's sync engine reads, with a placeholder for the password; or refresh files."""
    from posduif_cli.core.tenants import engine
    from posduif_cli.models.tenants import Tenant
    from posduif_cli.render import engine_config as render

    app = app_of(ctx)
    if sum(value is not None for value in (out, refresh, folder)) > 1:
        raise UsageError("--out, --refresh and --all exclude each other")
    if folder is not None and name is not None:
        raise UsageError("--all and a tenant by name exclude each other")
    if folder is not None:
        _refresh_all(app, folder, jobs, list_all)
        return
    if name is None:
        raise NoTargets("no tenant is named", hint=Run("tenant", "engine-config", "acme"))
    if refresh is not None:
        app.out.expect(Tenant)
        files = keeping.Refreshed()
        tenant, changed = engine.refresh(app.fleet, app.fleet.find(name), write=partial(files, refresh))
        files.tell(app, refresh)
        app.out.show(tenant, changed=changed)
        return
    settings = engine.engine_config(app.fleet, name=name)
    if out is not None:
        if os.path.lexists(out) and not out.is_char_device():
            hints = [keeping.refresh(name, out, lead="to bring it up to date"), keeping.rotate(name, file=str(out))]
            raise UsageError(f"{out} exists", hint=hints)
        render.write(out, settings)
        app.out.say(f"written: {out}")
    elif app.out.machine:
        app.out.show(render.complete(settings))
    else:
        app.out.text(render.text(settings))
    app.out.say(keeping.rotate(name, "the password in it is a placeholder", file=str(out or "FILE")))
    if settings["sse"]["port"] is None:
        keeping.warn_of_port(app, [name], keeping.refresh(name, out or "FILE", lead="then"))


def _refresh_all(app: App, folder: Path, jobs: int, list_all: bool) -> None:
    """Refresh the files of all tenants in a folder."""
    from posduif_cli.core.tenants import engine
    from posduif_cli.models.runs import Outcome

    app.out.expect(Outcome)
    if not folder.is_dir():
        raise ConfigurationError(f"{folder} is no folder", hint="name the folder that holds the engines' files")
    chosen, errors = app.fleet.choose(None)
    files = keeping.Refreshed()

    def work(found: "Found") -> bool:
        file = folder / f"{found.tenant.tenant}.yaml"
        if not os.path.lexists(file):
            raise WrongState(f"{folder} has no file of it", hint=keeping.rotate(found.tenant.tenant, file=str(file)))
        return engine.refresh(app.fleet, found, write=partial(files, file))[1]

    try:
        run = _change_engines(app, jobs, chosen, work)
    finally:  # also after ctrl-C: those engines must be restarted
        for file in sorted(files.changed):
            files.tell(app, file)
    _conclude(app, run, errors, None, list_all)


def _danger(loss: "Loss", *, saved: bool) -> str:
    """Say what dropping a tenant destroys; *saved* says that a backup of it is made first."""
    if loss.uncounted:
        return f"drop tenant {loss.tenant} on server {loss.server}; its rows were not counted: {loss.uncounted}"
    if loss.users is None:
        return f"drop what is left of tenant {loss.tenant} on server {loss.server}, which is no whole tenant"
    last = f", last activity {moment(loss.last_activity)}" if loss.last_activity else ""
    rows = ((loss.users, "user"), (loss.devices, "device"), (loss.messages, "message"))
    counts = ", ".join(counted(number or 0, noun) for number, noun in rows)
    back = "" if saved else "; no last backup is made, so nothing brings it back"
    return f"drop tenant {loss.tenant} on server {loss.server} with {counts}{last}{back}"


@app.verb("drop", example="posduif tenant drop acme --confirm acme")
def drop(
    ctx: typer.Context,
    name: options.Tenant,
    confirm: options.Confirm = None,
    no_backup: Annotated[bool, typer.Option("--no-backup", help="Make no last backup.")] = False,
    dry_run: options.DryRun = False,
) -> None:
    """Drop a tenant: its engine's sessions, its database with everything in it, its role.

    Where backup.dir is configured, a last backup is made first, and pinned.
    """
    from posduif_cli.core.copies import drop
    from posduif_cli.core.store import DROP
    from posduif_cli.core.tenants.drop import dropping
    from posduif_cli.models.tenants import Loss

    app = app_of(ctx)
    last = not no_backup and app.config.backup_dir is not None
    if dry_run:
        app.show_plan(dropping(app.fleet, app.fleet.find(name), (lambda conn: None) if last else None))
        return
    app.out.expect(Loss)
    found = app.fleet.find(name)
    loss, changed, backup = drop.drop(
        app.fleet,
        found,
        copies.maybe(app, DROP, last),
        confirmed=confirm == name,
        confirm=lambda loss: app.confirm(name, confirm, _danger(loss, saved=last)),
    )
    gone = f"dropped from server {loss.server}" if changed else "was dropped by another command in this moment"
    app.out.say(f"tenant {name} {gone}")
    if backup is not None:
        app.out.say(Run("backup", "restore", backup.backup, lead="its last backup brings it back"))
    elif changed:
        why = "--no-backup was given" if no_backup else "backup.dir is not configured"
        app.out.say(f"no last backup was made: {why if not last else 'it was not whole'}")
    if changed:
        app.out.say("stop its engine and its web-api: they would go on trying to log in, several times per second")
    app.out.show(loss, changed=changed)
