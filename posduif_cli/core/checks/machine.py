"""The checks of this machine and of its configuration."""

import stat
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from posduif_cli.core.checks.check import Verdict, check, failure
from posduif_cli.core.checks.facts import Configuration, Machine
from posduif_cli.core.checks.server import SUPPORTED
from posduif_cli.core.schema import files
from posduif_cli.errors import PosduifError, Run
from posduif_cli.models.checks import Level

OLDEST, NEWEST = (3, 11), (3, 14)  # of Python
QR_COLUMNS = 41  # what the QR code of an enrollment URL of up to 106 characters takes, with its margin

machine = partial(check, "machine", ("doctor",))
config = partial(check, "configuration", ("doctor",))


@machine("machine.python", "The Python version is supported",
    "posduif is tested with Python 3.11 to 3.14.")  # fmt: skip
def python(_: Machine) -> Iterator[Verdict]:
    """Judge the version of the running Python."""
    spelled = ".".join(map(str, sys.version_info[:3]))
    if OLDEST <= sys.version_info[:2] <= NEWEST:
        yield Verdict(Level.OK, f"Python {spelled}")
    else:
        yield Verdict(Level.WARNING, f"Python {spelled} was not tried", fix="use Python 3.11 to 3.14")


@machine("machine.terminal", "The terminal shows QR codes",
    "The QR code of a long enrollment URL needs 41 columns and a terminal that can show it.")  # fmt: skip
def terminal(facts: Machine) -> Iterator[Verdict]:
    """Judge the terminal's kind and width."""
    to_file = ("token", "create", "TENANT", "--qr-file", "code.png")
    if facts.columns is None:
        yield Verdict(Level.INFO, "stdout is no terminal: results come as TSV, and no QR code is shown")
    elif facts.term in ("", "dumb"):
        yield Verdict(Level.WARNING, f'TERM is "{facts.term}": a QR code may not scan from it', fix=Run(*to_file))
    elif facts.columns < QR_COLUMNS:
        text = f"{facts.columns} columns are too few for the QR code of a long URL"
        yield Verdict(Level.WARNING, text, fix=Run(*to_file, lead=f"widen the window to {QR_COLUMNS} columns, or"))
    else:
        yield Verdict(Level.OK, f"{facts.term}, {facts.columns} columns")


@machine("machine.utf8", "The locale is UTF-8",
    "QR codes are drawn with half blocks, which only a UTF-8 terminal shows.")  # fmt: skip
def utf8(facts: Machine) -> Iterator[Verdict]:
    """Judge the locale; into a pipe all is ASCII anyway, so it matters on a terminal only."""
    if facts.utf8:
        yield Verdict(Level.OK, "the locale is UTF-8")
    else:
        level = Level.WARNING if facts.columns else Level.INFO
        text = "the locale is not UTF-8: QR codes take twice the room, for the terminal may not know half blocks"
        yield Verdict(level, text, fix="export LC_ALL=C.UTF-8")


@machine("machine.completion", "Completion is installed",
    "With it the shell completes commands and options of posduif.")  # fmt: skip
def completion(facts: Machine) -> Iterator[Verdict]:
    """Tell whether the shell's completion is installed."""
    if facts.completion is None:
        yield Verdict(Level.INFO, f'there is no completion for the shell "{facts.shell}"')
    elif facts.completion.exists():
        yield Verdict(Level.OK, f"installed for {facts.shell}: {facts.completion}")
    else:
        yield Verdict(Level.INFO, f"not installed for {facts.shell}", fix=Run("completion", "install", facts.shell))


@machine("machine.pg_dump", "pg_dump fits the servers",
    "pg_dump refuses a server that is newer than itself.")  # fmt: skip
def pg_dump(facts: Machine) -> Iterator[Verdict]:
    """Judge the newest pg_dump that was found."""
    want = f"install PostgreSQL {facts.newest or SUPPORTED[-1]}'s client programs"
    best = max(facts.pg_dumps, key=facts.pg_dumps.__getitem__, default=None)
    if best is None:
        yield Verdict(Level.INFO, "not found on PATH; dumps of a tenant need it", fix=want)
    elif not (major := facts.pg_dumps[best]):
        yield Verdict(Level.WARNING, f"{best} does not say its version", fix=want)
    elif major < facts.newest:
        text = f"{best} is of PostgreSQL {major} and refuses a server of {facts.newest}"
        yield Verdict(Level.WARNING, text, fix=want)
    else:
        yield Verdict(Level.OK, f"{best} is of PostgreSQL {major}")


@config("config.passfile", "Only its owner can read the passfile",
    "libpq ignores a passfile that others can read.")  # fmt: skip
def passfile(facts: Configuration) -> Iterator[Verdict]:
    """Judge the mode of libpq's passfile."""
    return secret(facts.passfile, "libpq ignores it")


@config("config.file", "The configuration can be read",
    "A mistake in the file fails every command. "
    "Without a file the environment, libpq or the embedded server decide.")  # fmt: skip
def file(facts: Configuration) -> Iterator[Verdict]:
    """Judge the configuration file."""
    if facts.error is not None:
        yield failure(facts.error, fix="repair that file")
    elif facts.path is None:
        text = "no configuration file was found; environment, libpq's variables or the embedded server decide"
        yield Verdict(Level.INFO, text, fix=Run("config", "init"))
    else:
        yield Verdict(Level.OK, f"{facts.path} is valid")


@config("config.mode", "Only its owner can read a configuration with secrets",
    "A file with a password that other users of this machine can read gives them the password.")  # fmt: skip
def mode(facts: Configuration) -> Iterator[Verdict]:
    """Judge the mode of a configuration file that holds a password."""
    if facts.path is not None and facts.secret:
        yield from secret(facts.path, "it holds a password")


@config("config.migrations", "The configured migrations are sound",
    "Every file in migrations.paths has to be readable and in the format of a migration.")  # fmt: skip
def migrations(facts: Configuration) -> Iterator[Verdict]:
    """Judge the migration files of the configuration."""
    if facts.folders is not None:
        try:
            yield Verdict(Level.OK, f"{len(files.of(facts.folders).all)} files, the newest {facts.folders.latest}")
        except PosduifError as error:
            yield failure(error, fix="repair that file")


@config("config.servers", "A server is named",
    "Flags, the environment, the configuration or libpq's variables name the servers, "
    "unless an embedded one was made.")  # fmt: skip
def servers(facts: Configuration) -> Iterator[Verdict]:
    """Tell why no server is named."""
    if facts.unnamed is not None:
        yield failure(facts.unnamed, fix="repair that file")


def secret(path: Path, harm: str) -> Iterator[Verdict]:
    """Judge a file with secrets, if it exists."""
    try:
        permissions = path.stat().st_mode
    except OSError:
        return
    if permissions & (stat.S_IRWXG | stat.S_IRWXO):
        text = f"{path} can be read by others (mode {stat.S_IMODE(permissions):04o}); {harm}"
        yield Verdict(Level.WARNING, text, subject=str(path), fix=f"chmod 600 {path}")
