"""What every command gets: the global options, and what follows from them, made when it is first asked for."""

import shlex
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from typer.core import TyperCommand, TyperGroup, TyperOption

from posduif_cli.config import load as configuration
from posduif_cli.config.load import Config
from posduif_cli.errors import ConfirmationMissing, NoServer, PartialFailure, PosduifError, Run, ServerUnreachable
from posduif_cli.notation import counted as counted
from posduif_cli.notation import listed

if TYPE_CHECKING:
    from posduif_cli.core.fleet.fleet import Fleet
    from posduif_cli.core.folders import Folders
    from posduif_cli.models.runs import Plan
    from posduif_cli.models.servers import Server
    from posduif_cli.render.output import Output

GLOBAL_OPTIONS: tuple[tuple[tuple[str, ...], dict[str, Any]], ...] = (
    (("--server",), {"metavar": "NAME", "help": "Only this server (POSDUIF_SERVER)."}),
    (
        ("--dsn",),
        {"metavar": "DSN", "help": "This server, in libpq's words and without a password (POSDUIF_DSN)."},
    ),
    (("--config",), {"metavar": "FILE", "help": "Configuration file (POSDUIF_CONFIG)."}),
    (("-o", "--output"), {"metavar": "FORMAT", "help": "table, tsv, json or jsonl (POSDUIF_OUTPUT)."}),
    (("--fields",), {"metavar": "A,B", "help": "Only these fields, in this order."}),
    (("--color",), {"metavar": "WHEN", "help": "auto, always or never (POSDUIF_COLOR)."}),
    (("--data-dir",), {"metavar": "DIR", "help": "Folder of the embedded server (POSDUIF_DATA_DIR)."}),
    (("-q", "--quiet"), {"is_flag": True, "help": "No chatter on stderr; the result stays."}),
    (("--debug",), {"is_flag": True, "help": "Show a traceback for an error."}),
)


def _remember(context: Any, parameter: Any, value: Any) -> None:
    if value is not None and value is not False:
        context.find_object(App).options[parameter.name] = value


def global_options() -> list[Any]:
    """Make the global options, which work before and after the subcommand."""
    return [
        TyperOption(param_decls=list(names), expose_value=False, callback=_remember, **settings)
        for names, settings in GLOBAL_OPTIONS
    ]


class Command(TyperCommand):
    """A command that takes the global options behind its own."""

    def __init__(self, *args: Any, params: list[Any] | None = None, **kwargs: Any) -> None:
        own = [name for parameter in params or [] for name in parameter.opts]
        extra = [option for option in global_options() if not set(option.opts) & set(own)]
        super().__init__(*args, params=[*(params or []), *extra], **kwargs)
        self.own_params = params or []

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Show the command's own arguments and options, then the global ones as a group."""
        everything = self.params
        own = {id(parameter) for parameter in self.own_params}
        self.params = [p for p in everything if id(p) in own]
        try:
            super().format_options(ctx, formatter)
        finally:
            self.params = everything
        rows = [record for p in everything if id(p) not in own and (record := p.get_help_record(ctx))]
        with formatter.section("Global options"):
            formatter.write_dl(rows)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the command line; an option whose value is [optional] has the first of its choices without one."""
        words = list(args)
        for option in self.own_params:
            choices = [getattr(choice, "value", choice) for choice in getattr(option.type, "choices", ())]
            if choices and option.param_type_name == "option" and (option.metavar or "").startswith("["):
                for at in reversed([at for at, word in enumerate(words) if word in option.opts]):
                    if words[at + 1 : at + 2] not in [[choice] for choice in choices]:
                        words.insert(at + 1, choices[0])
        return list(super().parse_args(ctx, words))

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """Return the words of the usage line: what may be left out is in brackets."""
        return ["[OPTIONS]", *(_usage(p) for p in self.own_params if p.param_type_name == "argument")]

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """Write the example in one line, however long: a broken one does not run when it is pasted."""
        formatter.write(f"\n  {self.epilog}\n")


def _usage(argument: Any) -> str:
    name = argument.metavar or argument.name.upper()
    return name if argument.required or name.startswith("[") else f"[{name}]"


def summary(command: Any) -> str:
    """Return the first sentence of a command's help."""
    text = " ".join((command.help or "").split("\n\n")[0].split())
    return text.split(". ")[0].rstrip(".")


class Group(TyperGroup):
    """A noun's group of verbs, which takes the global options too."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """List the verbs, each with the whole first sentence of its help."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, summary(command)) for name, command in self.commands.items()])

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """Write how to get the help of a verb, which has an example."""
        path, verb = ctx.command_path, next(iter(self.commands), "")
        if verb:
            formatter.write(f"\n  More about one, with an example: {path} {verb} --help\n")

    def __init__(self, *args: Any, params: list[Any] | None = None, **kwargs: Any) -> None:
        hidden = global_options()
        for option in hidden:
            option.hidden = True
        super().__init__(*args, params=[*(params or []), *hidden], **kwargs)


class Noun(typer.Typer):
    """A noun of the command tree; its commands take the global options."""

    def __init__(self, help: str = "") -> None:
        super().__init__(
            cls=Group,
            help=help,
            no_args_is_help=True,
            add_completion=False,
            rich_markup_mode=None,
            pretty_exceptions_enable=False,
            context_settings={"help_option_names": ["-h", "--help"]},
        )

    def verb(self, name: str, *, example: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
        """Register a command; *example* is shown in its help and run by a test."""
        return self.command(
            name,
            cls=Command,
            epilog=f"Example: {example}",
            context_settings={"help_option_names": ["-h", "--help"]},
        )


# The commands that change nothing, by their last word: these do not say which server they ask, unless a list is empty.
READING = ("list", "show", "status", "inbox", "unread", "pending", "verify", "health", "doctor", "engine-config")


class App:
    """One run of posduif: options as given, and everything that follows from them, lazily."""

    def __init__(self) -> None:
        self.options: dict[str, Any] = {}
        self.command = ""
        self.formats: Sequence[str] = configuration.FORMATS

    @cached_property
    def config(self) -> Config:
        """The configuration; raises ConfigurationError or UsageError."""
        keys = ("server", "dsn", "config", "output", "color", "data_dir")
        return configuration.load({key: self.options.get(key) for key in keys}, formats=self.formats)

    @cached_property
    def out(self) -> "Output":
        """Where results and messages go."""
        from posduif_cli.render.output import Output

        chosen = self.config.output or ("table" if sys.stdout.isatty() else "tsv")
        fields = tuple(name.strip() for name in self.options.get("fields", "").split(",") if name.strip())
        quiet, color = bool(self.options.get("quiet")), self.config.terminal.color
        return Output(chosen, fields, quiet, color, program(), self.following)

    @property
    def following(self) -> dict[str, str]:
        """The options, as typed, that must follow another command so that it asks the same server."""
        keys = ("server", "dsn", "config", "data_dir")
        return {key.replace("_", "-"): self.options[key] for key in keys if key in self.options}

    @property
    def interactive(self) -> bool:
        """Whether a person can be asked: stdin and stderr are terminals."""
        return sys.stdin.isatty() and sys.stderr.isatty()

    @cached_property
    def fleet(self) -> "Fleet":
        """The servers to work on; starts the embedded one where nothing else is configured.

        Raises NoServer.
        """
        chosen = tuple(map(self._started, self.config.servers)) or (self._embedded(),)
        others = [s for s in map(self._started, self.config.neighbours) if not s.embedded or self._made()]
        return self.fleet_of(chosen, others)

    def _made(self) -> bool:
        """Whether there is an embedded server: one that was never made has no tenants to ask for."""
        from posduif_cli.core import servers

        return servers.status(self.config.data_dir).version is not None

    def _started(self, server: "Server") -> "Server":
        """Return a server of the configuration with its DSN; the embedded one is started if need be."""
        if not server.embedded:
            return server
        from posduif_cli.core import servers

        made, started = servers.embedded(self.config.data_dir, self.config.bin_dir)
        if made is None:  # as any server that cannot be reached; the hint says how to make it
            return replace(server, dsn=servers.address(self.config.data_dir))
        if started:
            self.out.say(f"started the embedded server in {self.config.data_dir}")
        engine = {**made.engine, **server.engine}
        return replace(server, dsn=made.dsn, url=server.url or made.url, engine=engine)

    def tell_of_hidden_tenants(self) -> None:
        """Say on stderr that the embedded server has tenants, where the configuration leaves it out."""
        from posduif_cli.core import servers
        from posduif_cli.models.servers import Server

        found = self.config.servers
        if any(server.embedded for server in (*found, *self.config.neighbours)) or not any(s.named for s in found):
            return
        dsn = servers.status(self.config.data_dir).dsn
        if dsn is None:
            return
        there, _ = self.fleet_of((Server(servers.NAME, dsn, embedded=True, named=False),)).tenants()
        if there:
            text = f"the embedded server, which the configuration leaves out, has {counted(len(there), 'tenant')}"
            self.out.say(Run("tenant", "list", "--server", servers.NAME, lead=text))
            self.out.say("to have it beside the others, add below servers:  local: {embedded: true}")

    def use_embedded(self) -> None:
        """Work on the embedded server, whatever else is configured."""
        from posduif_cli.core import servers

        server, _ = servers.start(self.config.data_dir, self.config.bin_dir)
        self.fleet = self.fleet_of((server,))

    def fleet_of(self, servers: "Sequence[Server]", neighbours: "Sequence[Server]" = ()) -> "Fleet":
        """Make the fleet of some servers, with the configured migrations."""
        from posduif_cli.core.fleet.fleet import Fleet

        return Fleet(tuple(servers), self.command, self.folders, self.config.default_server, tuple(neighbours))

    @cached_property
    def folders(self) -> "Folders":
        """The migrations, bundled and configured."""
        from posduif_cli.core.folders import Folders

        return Folders(self.config.migration_paths, self.config.lock_timeout, self.config.statement_timeout)

    def _embedded(self) -> "Server":
        from posduif_cli.core import servers

        server, started = servers.embedded(self.config.data_dir, self.config.bin_dir)
        if server is None:
            raise NoServer(
                "no PostgreSQL server is configured",
                why="none is named by --server, --dsn, POSDUIF_SERVER, POSDUIF_DSN, a configuration file or "
                "libpq's variables (PGHOST, PGSERVICE), and no embedded server was made",
                hint=[
                    Run("config", "init"),
                    Run("quickstart"),
                    Run("tenant", "list", "--dsn", "host=... user=..."),
                ],
            )
        if started:
            self.out.say(f"started the embedded server in {self.config.data_dir}")
        elif self.command.split()[-1:][0] not in READING and sys.stdout.isatty():
            self.tell_of_embedded()
        return server

    def tell_of_embedded(self) -> None:
        """Say on stderr that the embedded server is used, because nothing else is configured."""
        if not self.config.servers:
            self.out.say(f"using the embedded server in {self.config.data_dir}")

    def report_ended(self) -> None:
        """Name on stderr the sessions of engines that were ended because they held locks."""
        if "fleet" in self.__dict__:
            for who in self.fleet.ended:
                self.out.warn(f"ended {who}")

    def report_missing(self, errors: dict[str, PosduifError]) -> None:
        """Name on stderr the servers that a listing lacks, and raise PartialFailure if there are any."""
        for name, error in errors.items():
            self.out.warn(f"server {name} could not be asked: {error.why or error.message}")
        self.report_unreachable(list(errors))

    def report_unreachable(self, servers: Sequence[str]) -> None:
        """Raise PartialFailure if an answer lacks servers."""
        if servers:
            raise PartialFailure(
                f"the answer lacks {len(servers)} server{'s' if len(servers) > 1 else ''}: {', '.join(servers)}",
                hint=Run("config", "show", "--origin"),
            )

    def report_failed(self, errors: dict[str, PosduifError], *, among: Sequence[str] | None) -> None:
        """Name what failed on stderr and raise: a single named tenant's own error, else PartialFailure.

        Where no server could be reached for any of the named tenants, that is the error.
        """
        if not errors:
            return
        if among is not None and len(among) == 1:
            raise next(iter(errors.values()))
        from posduif_cli.core.fleet.run import causes

        for cause, names in causes(errors.items()):
            several = f"{counted(len(names), 'tenant')} failed ({listed(names, 5)}): {cause}"
            self.out.warn(several if len(names) > 1 else _of(names[0], errors[names[0]]))
        if among is not None and all(isinstance(errors.get(name), ServerUnreachable) for name in among):
            raise errors[among[0]]
        raise PartialFailure(
            f"{len(errors)} failed: {listed(list(errors), 10)}",
            hint="fix what is said of each above, then type the same command again",
        )

    def show_plan(self, plan: "Plan") -> None:
        """Show what a command would do, having done nothing."""
        from posduif_cli.models.runs import Step

        if self.out.machine:
            self.out.show(plan)
        else:
            self.out.list(plan.steps, Step, empty="nothing to do")
            self.out.say("dry run: nothing was changed")

    def confirm(self, expected: str, given: str | None, danger: str) -> None:
        """Have a destructive command confirmed by the name of what it destroys.

        Asked for on a terminal; raises ConfirmationMissing without a terminal, or where the name differs.
        """
        if given is None and self.interactive and not self.out.machine:
            given = self.out.ask(danger, f"Type {expected} to go on:")
        if given != expected:
            raise ConfirmationMissing(
                f"refused: {danger}",
                why="nothing was changed" + (f"; {given} is not {expected}" if given else "; it was not confirmed"),
                hint=f"add --confirm {shlex.quote(expected)}",
            )


def program() -> str:
    """Spell this program so that it runs when pasted into the same shell."""
    started = Path(sys.argv[0])
    if started.name != "posduif":
        return "posduif"
    on_path = shutil.which("posduif")
    return "posduif" if on_path and Path(on_path).resolve() == started.resolve() else shlex.quote(sys.argv[0])


def _of(name: str, error: PosduifError) -> str:
    """Return an error of a tenant or server in one line that names it once."""
    return error.sentence if name in error.message else f"{name}: {error.sentence}"


def app_of(context: typer.Context) -> App:
    """Return the App of a command's context."""
    app = context.find_object(App)
    assert app is not None
    app.command = context.command_path.partition(" ")[2]
    return app
