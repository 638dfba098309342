"""`posduif server`: the PostgreSQL servers, and the embedded one."""

from typing import Annotated

import typer

from posduif_cli.cli import options
from posduif_cli.cli.context import App, Noun, app_of
from posduif_cli.errors import PosduifError, Run, ServerUnreachable, UsageError
from posduif_cli.notation import counted, listed

app = Noun(help="The PostgreSQL servers, and the embedded one.")


@app.verb("list", example="posduif server list")
def list_(ctx: typer.Context) -> None:
    """List the configured servers and how they are."""
    from posduif_cli.core import servers
    from posduif_cli.models.servers import ServerInfo

    app = app_of(ctx)
    found = servers.list_all(app.fleet)
    app.out.list(found, ServerInfo)
    if not any(server.reachable for server in found):
        raise ServerUnreachable("no server can be reached", hint=Run("config", "show", "--origin"))
    app.report_unreachable([server.server for server in found if not server.reachable])


@app.verb("init", example="posduif server init --print-sql")
def init(
    ctx: typer.Context,
    engines: Annotated[
        int | None,
        typer.Option("--engines", min=1, metavar="N", help="Check for this many engines; by default one per tenant."),
    ] = None,
    close: Annotated[
        bool,
        typer.Option("--close", help="Close the database postgres to all but posduif's roles, too."),
    ] = False,
    login: Annotated[
        str | None,
        typer.Option(
            "--login",
            metavar="NAME",
            help="Also create this login for administrators, which is no superuser; its password goes to ~/.pgpass.",
        ),
    ] = None,
    print_sql: Annotated[
        bool, typer.Option("--print-sql", help="Print the SQL for a superuser to run; change nothing.")
    ] = False,
) -> None:
    """Create posduif's roles on a server, and check that its settings suit its engines. Exits with 1 if they do not."""
    from posduif_cli.core import servers
    from posduif_cli.models.checks import Finding, Level

    app = app_of(ctx)
    if print_sql:
        sql = servers.spell(app.fleet, engines=engines, close=close)
        app.out.show({"sql": sql}) if app.out.machine else app.out.text(sql)
        return
    app.out.expect(Finding)
    findings, changed = servers.prepare(app.fleet, engines=engines, close=close)
    made = login is not None and _make_login(app, login)
    app.out.list(
        findings, Finding, changed=lambda finding: changed and finding.check in ("server.roles", "server.open")
    )
    app.out.say("the server was changed" if changed or made else "nothing had to be changed")
    if login is not None:
        app.out.say(f"in the configuration's dsn: user={login}")
    # Who asks is no setting of the server, and a superuser is what makes a login that is none.
    if any(finding.level not in (Level.OK, Level.INFO) and finding.check != "server.superuser" for finding in findings):
        raise typer.Exit(1)


def _make_login(app: App, name: str) -> bool:
    """Create a login for administrators, its password in the passfile first; return whether it had to be created."""
    from posduif_cli.config import load as config
    from posduif_cli.core import servers
    from posduif_cli.render import files

    kept: list[str] = []

    def keep(lines: list[str]) -> None:
        files.add_passwords(config.passfile(), lines)
        kept.extend(lines)

    made = servers.make_login(app.fleet, name=name, keep=keep)
    if not made:
        app.out.say(f"login {name} exists, unchanged")
    elif kept:
        app.out.say(f"login {name} created; its password is in {config.passfile()}")
    else:
        app.out.say(f"login {name} created without a password: this session was let in without one")
    return made


@app.verb("start", example="posduif server start")
def start(
    ctx: typer.Context,
    listen: Annotated[
        str | None,
        typer.Option(
            "--listen",
            metavar="ADDRESS:PORT",
            help="Let engines on this machine in by TCP and password, such as 127.0.0.1:5433, from now on; or off.",
        ),
    ] = None,
) -> None:
    """Start the embedded server, made first if there is none. It goes on after the command."""
    from posduif_cli.core import servers
    from posduif_cli.models.servers import EmbeddedStatus

    app = app_of(ctx)
    app.out.expect(EmbeddedStatus)
    _, started = servers.start(app.config.data_dir, app.config.bin_dir, _address(listen) if listen else None)
    app.out.say("started" if started else "already running")
    app.out.show(servers.status(app.config.data_dir, changed=started))


@app.verb("stop", example="posduif server stop")
def stop(ctx: typer.Context) -> None:
    """Stop the embedded server; its data stays, and the next command that needs it starts it again."""
    from posduif_cli.core import servers
    from posduif_cli.models.servers import EmbeddedStatus

    app = app_of(ctx)
    app.out.expect(EmbeddedStatus)
    served = _served(app) if servers.status(app.config.data_dir).running else []
    stopped = servers.stop(app.config.data_dir)
    app.out.say("stopped" if stopped else "it was not running")
    if served:
        app.out.say(f"the engines of {listed(served, 5)} were connected; they log in again when the server runs")
    app.out.show(servers.status(app.config.data_dir, changed=stopped))


@app.verb("status", example="posduif server status")
def status(ctx: typer.Context) -> None:
    """Show whether the embedded server runs; exits with 1 when it does not."""
    from posduif_cli.core import servers

    app = app_of(ctx)
    found = servers.status(app.config.data_dir)
    app.out.show(found)
    if not found.running:
        raise typer.Exit(1)


@app.verb("remove", example="posduif server remove --confirm embedded")
def remove(ctx: typer.Context, confirm: options.Confirm = None) -> None:
    """Stop the embedded server and delete all its tenants and data, after --confirm embedded."""
    from posduif_cli.core import quickstart, servers
    from posduif_cli.models.servers import EmbeddedStatus

    app = app_of(ctx)
    app.out.expect(EmbeddedStatus)
    folder = app.config.data_dir
    if servers.status(folder).version is not None:
        app.confirm(servers.NAME, confirm, f"remove the embedded server in {folder} with {_contents(app)}")
    quickstart.forget(folder)
    removed = servers.remove(folder)
    app.out.say(f"removed: the embedded server in {folder}" if removed else "there is no embedded server")
    app.out.show(servers.status(folder, changed=removed))


def _served(app: App) -> list[str]:
    """Return the tenants of the embedded server whose engines are connected, as far as it can be asked."""
    from posduif_cli.core import servers

    try:
        server, _ = servers.embedded(app.config.data_dir, app.config.bin_dir)
        found = app.fleet_of((server,)).tenants()[0] if server else []
    except PosduifError:
        return []
    return [tenant.tenant for tenant in found if tenant.engine_sessions]


def _contents(app: App) -> str:
    """Return how many tenants the embedded server has, and their names; it is started to be asked."""
    from posduif_cli.core import servers

    try:
        server, _ = servers.embedded(app.config.data_dir, app.config.bin_dir)
        if server is None:
            return "data that is no whole server"
        names = [tenant.tenant for tenant in app.fleet_of((server,)).tenants()[0]]
    except PosduifError as error:
        return f"tenants that could not be counted ({error.message})"
    return counted(len(names), "tenant") + (f": {listed(names, 5)}" if names else "")


def _address(text: str) -> tuple[str, int]:
    """Read ADDRESS:PORT of this machine, or `off` as port 0; raises UsageError."""
    import ipaddress

    if text == "off":
        return "", 0
    host, _, port = text.rpartition(":")
    address = "127.0.0.1" if host == "localhost" else host.strip("[]")
    try:
        local = ipaddress.ip_address(address).is_loopback
    except ValueError:
        local = False
    if not port.isascii() or not port.isdigit() or not 1024 <= int(port) <= 65535 or not local:
        raise UsageError(
            f'"{text}" is no address of this machine alone with a port from 1024 to 65535',
            why="the embedded server has no TLS, so nothing beyond this machine may reach it",
            hint=Run("server", "start", "--listen", "127.0.0.1:5433"),
        )
    return address, int(port)
