"""Provisioning: one tenant as a whole process, and many from a list, against what PostgreSQL itself takes.

    python tests/bench/provision.py [--tenants 200] [--rounds 3] [--folder DIR]

The server is the embedded one with its safe settings, on the disk that holds DIR (a temporary folder without it). One
tenant is created on it as long as it is too small for a template, and again when it has eight tenants. The floors are
made in the same run: CREATE DATABASE with the migrations sent as one message, and bare copies of a migrated database by
each strategy, with 1, 4 and 8 sessions. The best of them is the bar for the list.
"""

import argparse
import os
import shutil
import statistics
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import psycopg
from measure import POSDUIF, PYTHON, PgServer, pairs, process, seconds, start

from posduif_cli.core.folders import Folders
from posduif_cli.core.schema.files import of as files_of
from posduif_cli.db import embedded

ONE_CREATE = """
import psycopg, subprocess, sys
name, dsn, psql, *files = sys.argv[1:]
with psycopg.connect(dsn, autocommit=True) as conn:
    conn.execute(f"CREATE DATABASE {name}")
with psycopg.connect(dsn, dbname=name) as conn:
    conn.execute("SELECT 1")
subprocess.run([psql, "-qX", "-v", "ON_ERROR_STOP=1", dsn + f" dbname={name}", *files], check=True)
"""


def ups() -> str:
    """Return the up sections of the bundled migrations."""
    return "\n;\n".join(file.up.text for file in files_of(Folders()).all)


def spread(
    server: PgServer, names: Sequence[str], workers: int, make: Callable[[psycopg.Connection, str], None]
) -> None:
    """Make databases by *workers* sessions."""

    def some(part: Sequence[str]) -> None:
        with server.connect() as conn:
            for name in part:
                make(conn, name)

    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(some, [names[number::workers] for number in range(workers)]))


def plain(server: PgServer) -> Callable[[psycopg.Connection, str], None]:
    """Make a database and send it the migrations."""
    text = ups().encode()

    def make(conn: psycopg.Connection, name: str) -> None:
        conn.execute(f"CREATE DATABASE {name} TEMPLATE template0".encode())
        with server.connect(name) as inside:
            inside.execute(text)

    return make


def copy(strategy: str) -> Callable[[psycopg.Connection, str], None]:
    """Copy the migrated database `original`."""

    def make(conn: psycopg.Connection, name: str) -> None:
        conn.execute(f"CREATE DATABASE {name} TEMPLATE original STRATEGY {strategy}".encode())

    return make


def clear(server: PgServer) -> None:
    """Drop all that a round made, and start the next one from a checkpoint."""
    with server.connect() as conn:
        rows = conn.execute("SELECT datname FROM pg_database WHERE datname ~ '^[tx][0-9]{1,4}$'").fetchall()
        for (name,) in rows:
            conn.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())
            conn.execute(f"DROP ROLE IF EXISTS {name}_engine".encode())
        conn.execute("CHECKPOINT")


def one(server: PgServer, folder: Path, rounds: int, where: str) -> None:
    """One tenant, a whole process each."""
    psql = shutil.which("psql")
    if psql is None:
        print("one tenant: no psql on this machine, not measured")
        return
    files = []
    for number, file in enumerate(files_of(Folders()).all):
        path = folder / f"{number}.sql"
        path.write_text(file.up.text)
        files += ["-f", str(path)]
    numbers = iter(range(100000))
    pairs(
        f"one `tenant create` {where} to: a process that connects, CREATE DATABASE, one connection, psql -f",
        lambda: process(*POSDUIF, "tenant", "create", f"x{next(numbers)}")(),
        lambda: process(PYTHON, "-c", ONE_CREATE, f"x{next(numbers)}", server.dsn, psql, *files)(),
        rounds=rounds * 3,
        afterwards=lambda: clear(server),
    )


def many(server: PgServer, folder: Path, number: int, rounds: int) -> None:
    """Many tenants from a list, in each round next to all floors."""
    names = [f"t{n}" for n in range(number)]
    manifest = folder / "tenants.csv"
    manifest.write_text("name\n" + "\n".join(names) + "\n")
    with server.connect() as conn:
        conn.execute("CREATE DATABASE original TEMPLATE template0")
    with server.connect("original") as conn:
        conn.execute(ups().encode())
    makers = {
        "create and migrate": plain(server),
        "copy, wal_log": copy("wal_log"),
        "copy, file_copy": copy("file_copy"),
    }
    taken: dict[str, list[float]] = {}
    for _ in range(rounds):
        for what, make in makers.items():
            for workers in (1, 4, 8):
                taken.setdefault(f"{what}, {workers} at once", []).append(
                    seconds(partial(spread, server, names, workers, make))
                )
                clear(server)
        for jobs in (4, 8):
            create = process(*POSDUIF, "tenant", "create", "--from", str(manifest), "--jobs", str(jobs), "-q")
            taken.setdefault(f"posduif, --jobs {jobs}", []).append(seconds(create))
            clear(server)
    for what, times in taken.items():
        print(f"  {what}: {statistics.median(times) / number * 1000:.1f} ms a tenant")
    floors = [times for what, times in taken.items() if not what.startswith("posduif")]
    best = min(floors, key=statistics.median)
    for jobs in (4, 8):
        ratios = [ours / floor for ours, floor in zip(taken[f"posduif, --jobs {jobs}"], best, strict=True)]
        print(f"{number} tenants, --jobs {jobs}: {statistics.median(ratios):.2f} x the best floor (n={rounds})")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tenants", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path)
    given = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="pd-", dir=given.folder))
    folder.chmod(0o755)
    try:
        server = start(folder / "server", fsync="on", full_page_writes="on", max_connections="100")
        os.environ |= {"POSDUIF_DSN": server.dsn, "HOME": str(folder)}
        config = folder / "config.yaml"
        config.write_text(f'servers:\n  here:\n    dsn: "{server.dsn}"\n    max_connections: 8\n')
        os.environ["POSDUIF_CONFIG"] = str(config)
        del os.environ["POSDUIF_DSN"]
        few = folder / "few.csv"
        few.write_text("name\n" + "\n".join(f"x{n}" for n in range(90000, 90008)) + "\n")
        process(*POSDUIF, "tenant", "create", "first")()
        one(server, folder, given.rounds, "without a template")
        process(*POSDUIF, "tenant", "create", "--from", str(few))()
        one(server, folder, given.rounds, "with a template")
        many(server, folder, given.tenants, given.rounds)
    finally:
        embedded.stop(folder / "server")
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
