"""PostgreSQL's own programs pg_dump and pg_restore: found by major version, and run apart from this environment."""

import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO

from posduif_cli.db import connect, embedded
from posduif_cli.errors import ConfigurationError, OperationFailed, scrub
from posduif_cli.models.servers import Server

SYSTEM = ("/usr/lib/postgresql", "/opt/homebrew/opt", "/usr/local/opt")
# Of this process's environment, which may hold keys, a program gets nothing.
BARE = {"PATH": "/usr/bin:/bin", "LC_ALL": "C"}
ARCHIVES = {15: "1.14", 16: "1.15", 17: "1.16", 18: "1.16"}  # the format that a pg_dump writes, by major version
SAID = 5  # lines of what a program said
# The embedded server's programs are built without TLS.
WITH_TLS = ("require", "verify-ca", "verify-full")


@cache
def found(bin_dir: Path | None) -> dict[int, list[Path]]:
    """Return the folders of PostgreSQL's programs by major version: the system's first, then the embedded server's."""
    places = [path for root in SYSTEM for path in sorted(Path(root).glob("*/bin"))]
    places += sorted(Path("/usr").glob("pgsql-*/bin"))
    if (on_path := shutil.which("pg_dump")) and not Path(on_path).resolve().name.startswith("pg_wrapper"):
        places.append(Path(on_path).resolve().parent)
    with suppress(ConfigurationError):
        places.append(embedded.locate(bin_dir).bin_dir)
    majors: dict[int, list[Path]] = {}
    for place in dict.fromkeys(places):
        if (place / "pg_dump").is_file() and (known := major(place / "pg_dump")) is not None:
            majors.setdefault(known, []).append(place)
    return majors


@cache
def major(program: Path) -> int | None:
    """Return the major version of one of PostgreSQL's programs; None for what is none."""
    try:
        told = _ask([program, "--version"]).stdout
    except (OSError, subprocess.TimeoutExpired):
        return None
    match = re.search(r"\(PostgreSQL\) (\d+)", told)
    return int(match[1]) if match else None


def _ask(argv: Sequence[str | Path], environment: Mapping[str, str] = BARE) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(argv, capture_output=True, text=True, timeout=10, check=False, env=environment)


@cache
def _speaks_tls(program: Path) -> bool:
    """Whether a program's libpq was built with TLS: one without says so before it connects anywhere."""
    where = {**BARE, "PGSSLMODE": "require", "PGHOST": "127.0.0.1", "PGPORT": "1", "PGCONNECT_TIMEOUT": "2"}
    told = _ask([program.with_name("pg_dump"), "--no-password", "postgres"], where).stderr
    return "not compiled in" not in told


def dumper(server_major: int, bin_dir: Path | None, server: Server) -> Path:
    """Return the pg_dump for a server: of its own major version, or the next higher one; raises ConfigurationError."""
    return _choose("pg_dump", server_major, [m for m in sorted(found(bin_dir)) if m >= server_major], bin_dir, server)


def restorer(server_major: int, archive: int, bin_dir: Path | None, server: Server) -> Path:
    """Return the pg_restore that reads what pg_dump of major *archive* wrote, and that a server understands.

    From 17 on it sets a parameter that older servers refuse, and archives of 17 and 18 are of one format. Raises
    ConfigurationError.
    """
    fit = [m for m in found(bin_dir) if m >= min(archive, 17) and (m < 17 or server_major >= 17)]
    fit.sort(key=lambda m: (m != server_major, m < server_major, m))
    return _choose("pg_restore", server_major, fit, bin_dir, server)


def _choose(name: str, wanted: int, fit: Sequence[int], bin_dir: Path | None, server: Server) -> Path:
    """Return a program of the first of some major versions that can do what the server's DSN asks for."""
    majors = found(bin_dir)
    tls = str(connect.parse(server).get("sslmode")) in WITH_TLS
    places = [place for major in fit for place in majors[major]]
    if place := next((place for place in places if not tls or _speaks_tls(place / name)), None):
        return place / name
    why = f"found: {', '.join(map(str, sorted(majors))) or 'none'}"
    if places:
        why = f"{', '.join(map(str, places))} can do no TLS, which the dsn of server {server.name} asks for"
    raise ConfigurationError(
        f"{name} for PostgreSQL {wanted} is needed",
        why=why,
        hint=f"install PostgreSQL's client programs, such as postgresql-client-{wanted}",
    )


@cache
def _dying() -> tuple[str, ...]:
    """Return what makes a child end with this process, however that ends, where the system has it."""
    setpriv = shutil.which("setpriv")
    if setpriv is None:
        return ()
    return (setpriv, "--pdeathsig", "KILL", "--") if "--pdeathsig" in _ask([setpriv, "--help"]).stdout else ()


@contextmanager
def running(
    argv: list[str | Path], server: Server, database: str, *, stdin: bool = False
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a program on a database; raises OperationFailed with its words where it fails.

    What the server's DSN says goes into the child's environment, a password into a file that only this user can read:
    command lines and environments are seen by others. It has a process group of its own, so that ctrl-C ends it by way
    of this process alone, and it ends with this process.
    """
    with connect.child_environment(server, database) as (environment, inherited), TemporaryFile() as errors:
        stream: int | IO[bytes] = subprocess.PIPE if stdin else subprocess.DEVNULL
        process = subprocess.Popen(
            [*_dying(), *argv],
            stdin=stream, stdout=subprocess.DEVNULL if stdin else subprocess.PIPE, stderr=errors, env=environment,
            process_group=0,
            pass_fds=inherited,
        )  # fmt: skip
        try:
            yield process
            if process.stdin is not None:
                process.stdin.close()
            code = process.wait()
        except BrokenPipeError:  # it gave up; what it said is the reason
            code = process.wait() or 1
        except BaseException:
            process.kill()
            process.wait()
            raise
        finally:
            for pipe in (process.stdout, process.stdin):
                with suppress(OSError):
                    if pipe is not None:
                        pipe.close()
        if code:
            errors.seek(0)
            said = [scrub(line) for line in errors.read().decode("utf-8", "replace").splitlines() if line.strip()]
            name = Path(argv[0]).name
            raise OperationFailed(f"{name} failed for database {database}", why=said[-SAID:] or f"exit code {code}")
