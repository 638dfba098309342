"""`tenant verify --all`: every tenant examined, against connecting to each and asking its catalog one question.

    python tests/bench/verify.py [--tenants 200] [--jobs 4] [--rounds 5]

The baseline is made in the same run, with as many workers as the command has. The server is the embedded one.
"""

import argparse
import os
import shutil
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from measure import POSDUIF, PgServer, pairs, process, scratch, seconds, start

from fleet import in_process
from posduif_cli.db import embedded

WANTED = 2.5
CATALOG = b"SELECT count(*) FROM pg_class WHERE relnamespace = 'public'::regnamespace"


def visit(server: PgServer, names: list[str], jobs: int) -> None:
    """Connect to each database and ask its catalog one question, *jobs* at a time."""

    def one(name: str) -> None:
        with server.connect(name) as conn:
            conn.execute(CATALOG).fetchone()

    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(one, names))


def run(count: int, jobs: int, rounds: int) -> None:
    folder, home = Path(tempfile.mkdtemp(prefix="posduif-bench-")), scratch()
    server = start(home / "server")
    os.environ["POSDUIF_DSN"] = server.dsn
    names = [f"t{number:05}" for number in range(count)]
    try:
        listing = folder / "tenants.csv"
        listing.write_text("\n".join(["name,url", *(f"{name},https://{name}.example.com" for name in names)]) + "\n")
        made = seconds(lambda: in_process("tenant", "create", "--from", str(listing), "-q"))
        print(f"{count} tenants were created in {made:.0f} s", file=sys.stderr)
        server.sql("CHECKPOINT")
        verify = ("tenant", "verify", "--all", "-q")
        bare = lambda: visit(server, names, jobs)  # noqa: E731
        pairs(f"tenant verify --all in-process, {count} tenants, wanted at most {WANTED}",
              lambda: in_process(*verify), bare, rounds=rounds)  # fmt: skip
        pairs(f"tenant verify --all, a whole process, {count} tenants", process(*POSDUIF, *verify), bare, rounds=rounds)
    finally:
        embedded.stop(home / "server")
        shutil.rmtree(home)
        shutil.rmtree(folder)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--tenants", type=int, default=200)
    parser.add_argument("--jobs", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    run(options.tenants, options.jobs, options.rounds)
