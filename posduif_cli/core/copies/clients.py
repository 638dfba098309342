"""PostgreSQL's own programs pg_dump and pg_restore: found by major version, and run apart from this environment."""

import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile
from typing import IO

from posduif_cli.db import connect, embedded
from posduif_cli.errors import ConfigurationError, OperationFailed, scrub
from posduif_cli.models.servers import Server

SYSTEM = ("/usr/lib/postgresql", "/opt/homebrew/opt", "/usr/local/opt")
SAID = 5  # lines of what a program said


@cache
def found(bin_dir: Path | None) -> dict[int, Path]:
    """Return the folders of PostgreSQL's programs by major version: the system's, and the embedded server's."""
    places = [path for root in SYSTEM for path in sorted(Path(root).glob("*/bin"))]
    places += sorted(Path("/usr").glob("pgsql-*/bin"))
    with suppress(ConfigurationError):
        places.append(embedded.locate(bin_dir).bin_dir)
    majors: dict[int, Path] = {}
    for place in places:
        if (place / "pg_dump").is_file() and (known := major(place / "pg_dump")) is not None:
            majors.setdefault(known, place)
    return majors


@cache
def major(program: Path) -> int | None:
    """Return the major version of one of PostgreSQL's programs; None for what is none."""
    try:
        told = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=10, check=False).stdout
    except (OSError, subprocess.TimeoutExpired):
        return None
    match = re.search(r"\(PostgreSQL\) (\d+)", told)
    return int(match[1]) if match else None


def program(name: str, wanted: int, bin_dir: Path | None) -> Path:
    """Return a program of a server's major version, or of the next higher one; raises ConfigurationError."""
    majors = found(bin_dir)
    for candidate in sorted(majors):
        if candidate >= wanted:
            return majors[candidate] / name
    has = f"found: {', '.join(map(str, sorted(majors)))}" if majors else "none was found"
    raise ConfigurationError(
        f"{name} of PostgreSQL {wanted} or newer is needed",
        why=has,
        hint=f"install PostgreSQL's client programs, such as postgresql-client-{wanted}",
    )


@contextmanager
def running(
    argv: list[str | Path], server: Server, database: str, *, stdin: bool = False
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a program on a database; raises OperationFailed with its words where it fails.

    What the server's DSN says goes into the child's environment, a password into a file that only this user can read:
    command lines and environments are seen by others.
    """
    with TemporaryDirectory(prefix="posduif-") as folder, TemporaryFile() as errors:
        environment = connect.child_environment(server, database, Path(folder))
        stream: int | IO[bytes] = subprocess.PIPE if stdin else subprocess.DEVNULL
        process = subprocess.Popen(
            argv, stdin=stream, stdout=subprocess.DEVNULL if stdin else subprocess.PIPE, stderr=errors, env=environment
        )
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
            if process.stdout is not None:
                process.stdout.close()
        if code:
            errors.seek(0)
            said = [scrub(line) for line in errors.read().decode("utf-8", "replace").splitlines() if line.strip()]
            name = Path(argv[0]).name
            raise OperationFailed(f"{name} failed for database {database}", why=said[-SAID:] or f"exit code {code}")
