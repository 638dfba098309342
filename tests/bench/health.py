"""Health reports over many tenants, each against its own bare queries.

    python tests/bench/health.py [--tenants 1000] [--rounds 5] [--messages 1000000]

Baselines of the same run: a Python process that sends the report's own queries over one connection, after one that
imports typer; a process that connects to each tenant with the same number of workers and sends a visit's own queries.
The last part times each query of a visit to one tenant with many messages against the statement timeout.
"""

import argparse
import os
import shutil
import time
from pathlib import Path

from measure import POSDUIF, PYTHON, PgServer, pairs, process, scratch, start

from fleet import clone, original
from posduif_cli.core.checks import questions
from posduif_cli.db import embedded, queries

JOBS = 4
# What a process has to do that asks the same of a server, and no more.
BARE = """
import psycopg, sys
with psycopg.connect(sys.argv[1], autocommit=True) as conn:
    for text in open(sys.argv[2]).read().split("\\0"):
        conn.execute(text.encode()).fetchall()
"""
# What a process has to do that connects to each tenant and asks the same of it.
VISITS = """
import psycopg, sys
from concurrent.futures import ThreadPoolExecutor
dsn, jobs = sys.argv[1], int(sys.argv[3])
texts = [text.encode() for text in open(sys.argv[2]).read().split("\\0")]
with psycopg.connect(dsn, autocommit=True) as conn:
    names = [name for (name,) in conn.execute(
        "SELECT datname FROM pg_database WHERE datdba = 'posduif_admin'::regrole ORDER BY 1")]
def one(name):
    with psycopg.connect(dsn, dbname=name, autocommit=True) as conn:
        for text in texts:
            conn.execute(text).fetchall()
with ThreadPoolExecutor(jobs) as pool:
    list(pool.map(one, names))
"""


def text(query: str) -> str:
    """Return a query with its parameters as the report gives them."""
    for name, value in (("silent", "1209600"), ("sizes", "false"), ("name", "NULL"), ("role", "NULL")):
        query = query.replace(f"%({name})s", value)
    return query.replace("%%", "%")


def of_server() -> list[str]:
    """Return the queries of the default report."""
    named = queries.load("checks/cluster")
    left_out = ("measure_sizes", "find_lockers", "find_statements")
    fleet = queries.load("fleet/fleet")
    others = [fleet[name] for name in ("list_tenants", "measure_connections", "list_asides")]
    return [text(query) for query in (*others, *(named[name] for name in named if name not in left_out))]


def of_tenant() -> list[str]:
    """Return the queries of a visit to a tenant that was not named."""
    inside = queries.load("checks/inside")
    left_out = ("measure_tenant", "count_users")
    names = [name for name in inside if name not in left_out]
    return [text(query) for query in (*(inside[name] for name in names), *queries.load("checks/enrolled").values())]


def many_messages(server: PgServer, tenant: str, number: int) -> None:
    """Time each query of a visit to a tenant with many messages, a tenth of them waiting."""
    with server.connect(tenant) as conn:
        conn.execute(
            """INSERT INTO users (username, user_type, device_id)
               SELECT 'u' || n, 'mobile', 'd' || n FROM generate_series(1, 100) n"""
        )
        conn.execute(
            f"""INSERT INTO messages (sender_id, recipient_id, content, status, synced_at)
                SELECT u.id, u.id, 'a message', CASE WHEN n % 10 = 0 THEN 'pending_sync' ELSE 'synced' END,
                       CASE WHEN n % 10 > 0 THEN now() AT TIME ZONE 'UTC' END
                FROM generate_series(1, {number}) n
                JOIN (SELECT id, row_number() OVER () - 1 AS at FROM users WHERE device_id IS NOT NULL) u
                    ON u.at = n % 100
            """.encode()
        )
        conn.execute("ANALYZE")
        slowest = 0.0
        for query in of_tenant():
            started = time.perf_counter()
            conn.execute(query.encode())
            slowest = max(slowest, time.perf_counter() - started)
    share = slowest / questions.LIMIT.total_seconds()
    print(f"slowest query of a tenant with {number} messages: {slowest:.2f} s, {share:.2f} x the statement timeout")


def main() -> None:
    """Make the fleet, and time the reports."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tenants", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--messages", type=int, default=1_000_000)
    asked = parser.parse_args()
    folder = scratch()
    os.environ |= {"HOME": str(folder), "POSDUIF_DATA_DIR": str(folder / "none")}
    server = start(folder / "pg", max_connections="200")
    os.environ["POSDUIF_DSN"] = server.dsn
    try:
        source = original(server)
        names = [f"t{number:05}" for number in range(asked.tenants)]
        clone(server, source, names)
        for name, found in (("server", of_server()), ("tenant", of_tenant())):
            (folder / name).write_text("\0".join(found))
        files = {name: str(Path(folder, name)) for name in ("server", "tenant")}
        rounds, codes = asked.rounds, (0, 1)
        bare, typer = process(PYTHON, "-c", BARE, server.dsn, files["server"]), process(PYTHON, "-c", "import typer")

        def both() -> None:
            typer()
            bare()

        pairs(
            f"default report over {asked.tenants} tenants / (import typer + its bare queries in psycopg)",
            process(*POSDUIF, "health", "-o", "json", codes=codes),
            both,
            rounds=rounds,
        )
        pairs(
            f"deep report over {asked.tenants} tenants / (each connected to and asked, {JOBS} workers)",
            process(*POSDUIF, "health", "--deep", "--jobs", str(JOBS), "-o", "json", codes=codes),
            process(PYTHON, "-c", VISITS, server.dsn, files["tenant"], str(JOBS)),
            rounds=max(1, rounds // 2),
        )
        many_messages(server, names[0], asked.messages)
    finally:
        embedded.stop(folder / "pg")
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
