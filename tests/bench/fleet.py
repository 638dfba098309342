"""A fleet: status, no-op and a real migration over many tenants, each against what people would do otherwise.

    python tests/bench/fleet.py [--tenants 1000] [--migrate 200]

Baselines are made in the same run: bare processes, a thread pool that connects to every tenant, `xargs -P4 psql`
and `xargs -P4 dbmate`. The servers are the embedded one; every figure is a median ratio.
"""

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import psycopg
from measure import POSDUIF, PYTHON, PgServer, pairs, process, scratch, seconds, start

from posduif_cli import main
from posduif_cli.db import embedded

ONE_QUERY = """
import psycopg, sys
with psycopg.connect(sys.argv[1]) as conn:
    conn.execute("SELECT datname, shobj_description(oid, 'pg_database') FROM pg_database").fetchall()
"""


# The least that a Python process can do: no lock, no record, no look at what is applied, no rights, no outcome.
BARE = """
import psycopg, sys
from concurrent.futures import ThreadPoolExecutor
dsn, file, *names = sys.argv[1:]
text = b"BEGIN;" + open(file, "rb").read() + b"COMMIT"
def one(name):
    with psycopg.connect(dsn, dbname=name, autocommit=True) as conn:
        conn.execute(text)
with ThreadPoolExecutor(4) as pool:
    list(pool.map(one, names))
"""


@dataclass(frozen=True)
class Original:
    """A migrated database without a record, to copy tenants from, and the record that the copies get."""

    database: str
    record: str


def original(server: PgServer) -> Original:
    """Make the original from a tenant that posduif creates, and drop that tenant again."""
    in_process("tenant", "create", "source", "-q")
    record = server.sql("SELECT shobj_description(oid, 'pg_database') FROM pg_database WHERE datname = 'source'")[0][0]
    server.sql("CREATE DATABASE original OWNER posduif_admin TEMPLATE source")
    in_process("tenant", "drop", "source", "--confirm", "source", "-q")
    return Original("original", record)


def clone(server: PgServer, source: Original, names: Sequence[str]) -> None:
    """Copy a tenant, record and role included, without the cost of creating each."""
    comment = psycopg.sql.SQL("COMMENT ON DATABASE {} IS {}")
    with server.connect() as conn:
        conn.execute("SET ROLE posduif_admin")
        for name in names:
            conn.execute(f"CREATE ROLE {name}_engine".encode())
            conn.execute(f"CREATE DATABASE {name} OWNER posduif_admin TEMPLATE {source.database}".encode())
            conn.execute(comment.format(psycopg.sql.Identifier(name), psycopg.sql.Literal(source.record)))


def drop(server: PgServer, names: Sequence[str]) -> None:
    with server.connect() as conn:
        for name in names:
            conn.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())
            conn.execute(f"DROP ROLE {name}_engine".encode())


def visit(server: PgServer, names: Sequence[str]) -> None:
    """Ask every tenant for its version, eight at a time: what a tool without a record does."""

    def one(name: str) -> None:
        with server.connect(name) as conn:
            conn.execute("SELECT max(version) FROM schema_migrations").fetchone()

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(one, names))


def in_process(*argv: str) -> None:
    """Run a command in this process, where everything is imported already."""
    stdout = sys.stdout
    with open(os.devnull, "w") as sys.stdout:
        assert main.run(list(argv)) == 0
    sys.stdout = stdout


def sums(name: str, ours: Sequence[str], dsn: str, limit: float) -> None:
    """Compare a whole command with the sum of `import typer` and a psycopg script that runs one query."""
    typer = process(PYTHON, "-c", "import typer")
    query = process(PYTHON, "-c", ONE_QUERY, dsn)

    def both() -> None:
        typer()
        query()

    pairs(f"{name} / (import typer + one psycopg query), wanted at most {limit}", process(*ours), both)


def migrate(server: PgServer, source: Original, count: int, folder: Path, rounds: int = 5) -> None:
    """Bring *count* tenants from one version to the next, by posduif and by the peers, on fresh copies each time."""
    bins = embedded.locate(None).bin_dir
    up = (folder / "1000_add_archive.sql").read_text().split("-- migrate:up")[1].split("-- migrate:down")[0]
    (folder / "up.psql").write_text(f"{up}\nINSERT INTO schema_migrations (version) VALUES ('1000');\n")
    parts = psycopg.conninfo.conninfo_to_dict(server.dsn)
    dbmate = shutil.which("dbmate") or str(Path(sys.executable).parent / "dbmate")
    commands = {
        "posduif migrate up --all": f"{' '.join(POSDUIF)} migrate up --all --config {folder}/config.yaml -q",
        "xargs -P4 psql -1 -f": f"xargs -P4 -I% {bins}/psql -q -1 -v ON_ERROR_STOP=1 -f {folder}/up.psql "
        f"'host={parts['host']} port={parts['port']} user=postgres dbname=%'",
        "bare psycopg, 4 threads": f"xargs {PYTHON} -c '{BARE}' '{server.dsn}' {folder}/up.psql",
        "xargs -P4 dbmate": f"xargs -P4 -I% {dbmate} --no-dump-schema --migrations-dir {folder} "
        f"--url 'postgres:///%?host={parts['host']}&port={parts['port']}&user=postgres' migrate",
    }
    timed: dict[str, list[float]] = {name: [] for name in commands}
    names = [f"m{number:04}" for number in range(count)]
    for turn in range(rounds):
        order = [*commands][turn % len(commands) :] + [*commands][: turn % len(commands)]
        for name in order:
            command = commands[name]
            clone(server, source, names)
            server.sql("CHECKPOINT")  # else whoever comes next pays for what making the copies left
            feed = f"printf '%s\\n' {' '.join(names)} | " if "xargs" in command else ""
            timed[name].append(seconds(process("bash", "-c", feed + command, POSDUIF_DSN=server.dsn)))
            for tenant in (names[0], names[-1]):
                assert server.sql("SELECT max(version) FROM schema_migrations", database=tenant) == [("1000",)]
            drop(server, names)
    wanted = {"xargs -P4 psql -1 -f": ", wanted below 1", "xargs -P4 dbmate": ", wanted at most 0.5"}
    ours = timed["posduif migrate up --all"]
    for name, theirs in timed.items():
        ratio = statistics.median(a / b for a, b in zip(ours, theirs, strict=True))
        each = statistics.median(theirs) / count * 1000
        print(
            f"{count} tenants, one migration: {name}: {each:.1f} ms a tenant; "
            f"posduif takes {ratio:.2f} x its time{wanted.get(name, '')}"
        )


def peak(*argv: str) -> float:
    """Return the most memory that a process took, in MiB."""
    with open(os.devnull, "w") as null:
        process = subprocess.Popen(argv, stdout=null, stderr=null)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0, argv
    return usage.ru_maxrss / 1024


def memory(server: PgServer, source: Original, names: Sequence[str], folder: Path) -> None:
    """Compare the memory of whole runs over a few tenants and over many."""
    config = ("--config", f"{folder}/config.yaml", "-q")
    runs = {
        "migrate up": (*POSDUIF, "migrate", "up", *config),
        "migrate status": (*POSDUIF, "migrate", "status", *config),
    }
    few = names[:10]
    for what, argv in runs.items():
        small, large = peak(*argv, *few), peak(*argv, "--all")
        print(
            f"memory of {what}: {len(names)} tenants take {large / small:.2f} x what {len(few)} take "
            f"({large:.0f} MiB and {small:.0f} MiB)"
        )


def run(tenants: int, migrated: int) -> None:
    folder = Path(tempfile.mkdtemp(prefix="posduif-bench-"))
    home = scratch()
    server = start(home / "server")
    os.environ["POSDUIF_DSN"] = server.dsn
    try:
        source = original(server)
        (folder / "config.yaml").write_text(f"migrations: {{paths: ['{folder}']}}\n")
        (folder / "1000_add_archive.sql").write_text(
            "-- migrate:up\nALTER TABLE messages ADD COLUMN archived_at timestamp;\n"
            "ALTER TABLE users ADD COLUMN note text;\n"
            "CREATE INDEX idx_messages_archived ON messages (archived_at) WHERE archived_at IS NOT NULL;\n"
            "-- migrate:down\nALTER TABLE messages DROP COLUMN archived_at;\nALTER TABLE users DROP COLUMN note;\n"
        )
        # The copies for the migration must be the only tenants that are behind, so that part comes first.
        migrate(server, source, migrated, folder)
        names = [f"t{number:05}" for number in range(tenants)]
        clone(server, source, names)
        memory(server, source, names, folder)
        sums(f"migrate status --all, {tenants} tenants", (*POSDUIF, "migrate", "status", "--all"), server.dsn, 1.3)
        sums(
            f"migrate up --all, nothing to do, {tenants} tenants", (*POSDUIF, "migrate", "up", "--all"), server.dsn, 1.5
        )
        status = statistics.median(seconds(lambda: in_process("migrate", "status", "--all", "-q")) for _ in range(7))
        visits = statistics.median(seconds(lambda: visit(server, names)) for _ in range(3))
        print(
            f"status in-process: {visits / status:.0f} x faster than visiting each with 8 threads, wanted at least 50"
        )
    finally:
        embedded.stop(home / "server")
        shutil.rmtree(home)
        shutil.rmtree(folder)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--tenants", type=int, default=1000)
    parser.add_argument("--migrate", type=int, default=200)
    options = parser.parse_args()
    run(options.tenants, options.migrate)
