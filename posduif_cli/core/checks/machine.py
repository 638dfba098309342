"""Doctors: what about this machine and these servers would get in posduif's way, each finding with what mends it."""

import re
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from posduif_cli.core.checks import server
from posduif_cli.core.fleet import proof
from posduif_cli.core.fleet.fleet import Fleet, Session
from posduif_cli.core.folders import Folders
from posduif_cli.core.schema import files
from posduif_cli.db import embedded
from posduif_cli.errors import ConfigurationError, Hint, NotEnough, PosduifError, Run
from posduif_cli.models.checks import Finding, Level
from posduif_cli.models.servers import ServerInfo

OLDEST, NEWEST = (3, 11), (3, 14)  # of Python; design, section 2
SUPPORTED = range(15, 19)  # major versions of PostgreSQL
QR_COLUMNS = 41  # what the QR code of an enrollment URL of up to 106 characters takes, with its margin


@dataclass(frozen=True)
class Machine:
    """What is known of this machine: the terminal's width is None without one, *completion* None for an odd shell."""

    utf8: bool
    term: str
    columns: int | None
    shell: str
    completion: Path | None
    passfile: Path


def machine(facts: Machine) -> Iterator[Finding]:
    """Judge this machine."""
    running = sys.version_info[:2]
    spelled = ".".join(map(str, sys.version_info[:3]))
    if running < OLDEST or running > NEWEST:
        yield _machine("python", Level.WARNING, f"Python {spelled} was not tried", fix="use Python 3.11 to 3.14")
    else:
        yield _machine("python", Level.OK, f"Python {spelled}")
    yield _terminal(facts)
    if facts.utf8:
        yield _machine("utf8", Level.OK, "the locale is UTF-8")
    else:
        # Into a pipe all is ASCII anyway; it is people who lose something.
        level = Level.WARNING if facts.columns else Level.INFO
        text = "the locale is not UTF-8: QR codes take twice the room, for the terminal may not know half blocks"
        yield _machine("utf8", level, text, fix="export LC_ALL=C.UTF-8")
    if facts.completion is None:
        yield _machine("completion", Level.INFO, f'there is no completion for the shell "{facts.shell}"')
    elif facts.completion.exists():
        yield _machine("completion", Level.OK, f"installed for {facts.shell}: {facts.completion}")
    else:
        text = f"not installed for {facts.shell}"
        yield _machine("completion", Level.INFO, text, fix=Run("completion", "install", facts.shell))
    yield from _secret(facts.passfile, "passfile", "libpq ignores it")


def _terminal(facts: Machine) -> Finding:
    if facts.columns is None:
        return _machine("terminal", Level.INFO, "stdout is no terminal: results come as TSV, and no QR code is shown")
    if facts.term in ("", "dumb"):
        text = f'TERM is "{facts.term}": a QR code may not scan from it'
        return _machine("terminal", Level.WARNING, text, fix=Run("token", "create", "TENANT", "--qr-file", "code.png"))
    if facts.columns < QR_COLUMNS:
        text = f"{facts.columns} columns are too few for the QR code of a long URL"
        fix = Run(
            "token", "create", "TENANT", "--qr-file", "code.png", lead=f"widen the window to {QR_COLUMNS} columns, or"
        )
        return _machine("terminal", Level.WARNING, text, fix=fix)
    return _machine("terminal", Level.OK, f"{facts.term}, {facts.columns} columns")


def configuration(path: Path | None, folders: Folders, *, secret: bool) -> Iterator[Finding]:
    """Judge a configuration that could be read: the migrations it names, and the rights on a file with a *secret*."""
    if path is None:
        text = "no configuration file was found; environment, libpq's variables or the embedded server decide"
        yield _configuration("file", Level.INFO, text, fix=Run("config", "init"))
    else:
        yield _configuration("file", Level.OK, f"{path} is valid")
        if secret:
            yield from _secret(path, "file_mode", "it holds a password")
    try:
        yield _configuration("migrations", Level.OK, f"{len(files.of(folders).all)} files, the newest {folders.latest}")
    except PosduifError as error:
        yield broken(error, "migrations")


def broken(error: PosduifError, check: str = "file") -> Finding:
    """Make a finding of an error in the configuration."""
    return _configuration(check, Level.CRITICAL, error.sentence, fix=next(iter(error.hints), "mend that file"))


def fleet(fleet: Fleet) -> Iterator[Finding]:
    """Judge each server, and pg_dump against all of them."""
    known = server.list_all(fleet)
    for info in known:
        yield from _server(info)
    judged = fleet.ask(lambda session: list(_judge(fleet, session)))
    for found in judged.values():
        if not isinstance(found, PosduifError):
            # That anybody may connect is among the warnings above.
            yield from (finding for finding in found if finding.check not in ("open_database", "superuser"))
    yield _pg_dump([_major_of(server) for server in known if server.version_number])


def _judge(fleet: Fleet, session: Session) -> Iterator[Finding]:
    """Check what a server does, and for administrators how it is set up."""
    try:
        proof.require_locks(fleet, session)
    except NotEnough as error:
        fix = next(iter(error.hints), None)
        yield Finding("postgresql", "server", session.server.name, Level.CRITICAL, error.sentence, fix=fix)
    if session.member:
        yield from server.judge(session)


def _server(server: ServerInfo) -> Iterator[Finding]:
    if not server.reachable:
        text = server.error or "it cannot be reached"
        yield _on(server, "reachable", Level.CRITICAL, text, fix=Run("config", "show", "--origin"))
        return
    if _major_of(server) in SUPPORTED:
        yield _on(server, "reachable", Level.OK, f"PostgreSQL {server.version}, as {server.role}")
    else:
        text = f"PostgreSQL {server.version} was not tried"
        yield _on(server, "reachable", Level.WARNING, text, fix="use PostgreSQL 15 to 18")
    for warning in server.warnings:
        text, fix = (warning.lead, Run(*warning.words)) if isinstance(warning, Run) else (warning, None)
        level = Level.WARNING if text.startswith(f"{server.role} is a superuser") else Level.INFO
        yield _on(server, "login", level, text, fix=fix)


def _major_of(server: ServerInfo) -> int:
    """Return a server's major version by its number; its text need not be one, as "19beta1"."""
    return (server.version_number or 0) // 10000


def _pg_dump(majors: list[int]) -> Finding:
    found = {place: _major(place) for place in _pg_dumps()}
    newest = max(majors, default=0)
    want = f"install PostgreSQL {newest or SUPPORTED[-1]}'s client programs"
    if not found:
        return _machine("pg_dump", Level.INFO, "not found on PATH; dumps of a tenant need it", fix=want)
    best = max(found, key=lambda place: found[place])
    if not found[best]:
        return _machine("pg_dump", Level.WARNING, f"{best} does not say its version", fix=want)
    if found[best] < newest:
        text = f"{best} is of PostgreSQL {found[best]} and refuses a server of {newest}"
        return _machine("pg_dump", Level.WARNING, text, fix=want)
    return _machine("pg_dump", Level.OK, f"{best} is of PostgreSQL {found[best]}")


def _pg_dumps() -> Iterator[str]:
    """Find pg_dump on PATH and beside the embedded server."""
    if (found := shutil.which("pg_dump")) is not None:
        yield found
    with suppress(ConfigurationError):
        beside = embedded.locate(None).bin_dir / "pg_dump"
        if beside.is_file():
            yield str(beside)


def _major(pg_dump: str) -> int:
    """Return the major version that a pg_dump says, or 0."""
    try:
        said = subprocess.run([pg_dump, "--version"], capture_output=True, text=True, timeout=10).stdout
    except (OSError, subprocess.TimeoutExpired):
        said = ""
    match = re.search(r"\) (\d+)", said)
    return int(match[1]) if match else 0


def _secret(path: Path, check: str, harm: str) -> Iterator[Finding]:
    """Find a file with secrets that others may read."""
    try:
        mode = path.stat().st_mode
    except OSError:
        return
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        text = f"{path} can be read by others (mode {stat.S_IMODE(mode):04o}); {harm}"
        yield Finding(check, "configuration", str(path), Level.WARNING, text, fix=f"chmod 600 {path}")


def _machine(check: str, level: Level, message: str, *, fix: Hint | None = None) -> Finding:
    return Finding(check, "machine", "this machine", level, message, fix=fix)


def _configuration(check: str, level: Level, message: str, *, fix: Hint | None = None) -> Finding:
    return Finding(check, "configuration", "configuration", level, message, fix=fix)


def _on(server: ServerInfo, check: str, level: Level, message: str, *, fix: Hint | None = None) -> Finding:
    return Finding(check, "server", server.server, level, message, fix=fix)
