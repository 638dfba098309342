"""The root of the command tree: it knows every noun by its one line, and loads one when it is typed."""

import importlib
import os
import sys
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import typer
from typer.core import TyperCommand, TyperGroup

from posduif_cli.cli.context import App, Group, global_options, program
from posduif_cli.config import load as configuration
from posduif_cli.errors import Interrupted, OperationFailed, PosduifError, Run, UsageError, bug, scrub

if TYPE_CHECKING:
    from posduif_cli.render.output import Output

NOUNS = {
    "quickstart": "A whole tenant on an embedded server, from nothing.",
    "tenant": "Create, list, show, change and drop tenants.",
    "migrate": "Bring tenants to the newest schema, and see who is where.",
    "user": "The web and mobile users of a tenant.",
    "token": "Enrollment tokens and their QR codes.",
    "enroll": "Complete an enrollment, as a phone would.",
    "device": "The phones that enrolled.",
    "message": "Send, read and mark messages.",
    "backup": "Back up tenants, prove backups by restoring them, and restore.",
    "health": "Report what is wrong with servers and tenants.",
    "server": "The PostgreSQL servers, and the embedded one.",
    "config": "Show or make the configuration.",
    "doctor": "Check this machine, the configuration and the servers.",
    "completion": "Completion of commands by the shell.",
    "version": "Print the version.",
}
HELP = """Administer the tenant databases of the Posduif messaging service.

Each tenant is one PostgreSQL database. Kill a command anywhere and type it again: it goes on."""
EPILOG = "Start with: posduif quickstart"


class Root(Group):
    """The root; its listing loads no noun."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Find the noun; a wrong one is answered with the nearest."""
        # The suggestion is looked for among these, which are not loaded.
        nouns: Any = dict.fromkeys(NOUNS)
        self.commands = nouns
        return super().resolve_command(ctx, args)

    def list_commands(self, ctx: Any) -> list[str]:
        """Return the nouns in the order of the help."""
        return list(NOUNS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Load the noun that was typed."""
        return load(cmd_name) if cmd_name in NOUNS else None

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """List the nouns by their one line."""
        with formatter.section("Commands"):
            formatter.write_dl(list(NOUNS.items()))

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Show the global options, which hide on the nouns."""
        for parameter in self.params:
            if hasattr(parameter, "hidden"):
                parameter.hidden = False
        super().format_options(ctx, formatter)


def load(noun: str) -> Any:
    """Import one noun's module and return its command."""
    module = importlib.import_module(f"posduif_cli.cli.{noun}")
    command = typer.main.get_command(module.app)
    command.name = noun
    return command


def root() -> TyperGroup:
    """Make the root command."""
    return Root(
        name="posduif",
        help=HELP,
        epilog=EPILOG,
        no_args_is_help=True,
        rich_markup_mode=None,
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    )


def run(argv: list[str]) -> int:
    """Run one command: the single place where an error becomes a message and an exit code."""
    app = App()
    _open_streams()
    configuration.drop_session_variables()
    try:
        _require_text(argv)
        try:
            result = root().main(argv, prog_name="posduif", standalone_mode=False, obj=app)
        finally:
            app.report_ended()
        sys.stdout.flush()
        if result == Interrupted.exit_code:
            raise KeyboardInterrupt  # typer makes this number of it, and says nothing
        return result if isinstance(result, int) else 0
    except BrokenPipeError:
        # The reader of our output went away, as `head` does; nothing is wrong with us.
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
        return 0
    except PosduifError as error:
        return _fail(app, argv, error)
    except (KeyboardInterrupt, typer.Abort):
        return _fail(app, argv, Interrupted("interrupted", hint="run the same command again: it goes on"))
    except typer.TyperException as error:
        return _usage(app, argv, error)
    except OSError as error:
        return _fail(app, argv, OperationFailed("the result could not be written", why=error.strerror))
    except Exception as error:
        return _fail(app, argv, bug(error))


def _open_streams() -> None:
    """Put /dev/null in the place of a standard stream that was closed, as `>&-` does."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115


def _require_text(argv: list[str]) -> None:
    for number, word in enumerate(argv, 1):
        if any(character == "\0" or "\ud800" <= character <= "\udfff" for character in word):
            raise UsageError(f"argument {number} is not text", why="it holds bytes that no UTF-8 text has")


def _usage(app: App, argv: list[str], error: typer.TyperException) -> int:
    context: Any = getattr(error, "ctx", None)
    path = context.command_path if context else "posduif"
    help_ = Run(*path.split()[1:], "--help")
    if type(error).__name__ == "NoArgsIsHelpError":
        if not _output(app, argv).machine:
            sys.stderr.write(context.get_help() + "\n")
            return 2
        return _fail(app, argv, UsageError(f"{path} wants a command", hint=help_))
    message = " ".join(error.format_message().split()).rstrip(".")
    return _fail(app, argv, UsageError(message[:1].lower() + message[1:], hint=help_))


def _fail(app: App, argv: list[str], error: PosduifError) -> int:
    out = _output(app, argv)
    if app.options.get("debug"):
        import traceback

        from posduif_cli.render.output import write

        write(scrub(traceback.format_exc()), sys.stderr)
    if out.format == "nagios":
        # Its readers take 1 for a warning and 2 for critical; what went wrong here says nothing of a server.
        out.text(f"POSDUIF UNKNOWN - {error.sentence}")
        return 3
    with suppress(OSError):
        out.error(error)
    return error.exit_code


def _output(app: App, argv: list[str]) -> "Output":
    """Return where an error goes, as argv asks for it, also where the error came before argv was parsed."""
    from posduif_cli.render.output import Output

    app.options |= tolerantly(argv)
    asked = app.options.get("output", "") or configuration.environment_output()
    noun = next((word for word in argv if word in NOUNS), "")
    formats = (*configuration.FORMATS, *(configuration.MONITORING if noun == "health" else ()))
    try:
        out = app.out
    except Exception:
        out = Output("table", program=program(), options=app.following)
    return replace(out, format=asked if asked in formats else out.format)


def tolerantly(argv: list[str]) -> dict[str, Any]:
    """Return the global options of a command line that cannot be parsed, as far as they can be told."""
    found = App()
    settings = {"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []}
    command = TyperCommand("posduif", params=global_options(), context_settings=settings)
    with suppress(typer.TyperException):
        command.make_context("posduif", list(argv), obj=found, resilient_parsing=True)
    return found.options
