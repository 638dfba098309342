"""Backups against PostgreSQL's own programs: a fleet of small tenants, one large one, and a drill.

    python tests/bench/backup.py [--tenants 100] [--drill 200] [--rows 1000000] [--rounds 5]

The baselines are made in the same run: `xargs -P2 pg_dump -Fc` with files on the same disk, `pg_dump -Fc` with its own
compression, and a bare restore of the same files on a server with the same settings. The server is the embedded one.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import yaml
import zstandard
from measure import POSDUIF, PgServer, pairs, process, scratch, seconds, start

from fleet import in_process
from posduif_cli.core.copies import verify
from posduif_cli.db import embedded

JOBS = 2
SMALL = """
INSERT INTO users (username, user_type) SELECT 'user' || n, 'mobile' FROM generate_series(1, 50) n;
INSERT INTO messages (sender_id, recipient_id, content)
SELECT (array_agg(id))[1], (array_agg(id))[2], 'message ' || n || md5(n::text)
FROM users, generate_series(1, {}) n GROUP BY n;
"""


class Bench:
    """A server with tenants, and a store on the disk of the temporary folder."""

    def __init__(self, server: PgServer, folder: Path) -> None:
        self.server, self.folder = server, folder
        self.bin = embedded.locate(None).bin_dir
        (folder / "config.yaml").write_text(
            yaml.safe_dump({"servers": {"main": {"dsn": server.dsn}}, "backup": {"dir": str(folder / "store")}})
        )
        os.environ["POSDUIF_CONFIG"] = str(folder / "config.yaml")

    def fill(self, names: list[str], rows: int) -> None:
        listing = self.folder / "tenants.csv"
        listing.write_text("\n".join(["name", *names]) + "\n")
        in_process("tenant", "create", "--from", str(listing), "-q")
        for name in names:
            self.server.sql(SMALL.format(rows), database=name)
            self.server.sql("ANALYZE", database=name)
        self.server.sql("CHECKPOINT")

    def empty(self) -> None:
        shutil.rmtree(self.folder / "store", ignore_errors=True)
        for path in self.folder.glob("*.dump"):
            path.unlink()

    def dumps(self, names: list[str]) -> None:
        """What an administrator has in a crontab."""
        dsn = self.server.dsn_for(dbname="{}")
        command = f"xargs -P{JOBS} -I{{}} {self.bin}/pg_dump -Fc -d '{dsn}' -f {self.folder}/{{}}.dump"
        subprocess.run(["bash", "-c", command], input="\n".join(names), text=True, check=True, capture_output=True)

    def restores(self, server: PgServer) -> None:
        """Restore every backup of the store into a database of its own, and drop that."""

        def one(path: Path) -> None:
            name = f"bare_{path.parent.name[-4:]}_{path.parent.parent.name}"
            server.sql(f"CREATE DATABASE {name}")
            argv = [str(self.bin / "pg_restore"), "--no-owner", "--no-acl", "-d", server.dsn_for(dbname=name)]
            with subprocess.Popen(argv, stdin=subprocess.PIPE) as process, path.open("rb") as file:
                assert process.stdin is not None
                zstandard.ZstdDecompressor().copy_stream(file, process.stdin)
            assert process.returncode == 0
            server.sql(f"DROP DATABASE {name}")

        with ThreadPoolExecutor(JOBS) as pool:
            list(pool.map(one, sorted((self.folder / "store").glob("*/*/data.dump.zst"))))


def run(tenants: int, drill: int, rows: int, rounds: int) -> None:
    folder, home = Path(tempfile.mkdtemp(prefix="posduif-bench-")), scratch()
    server = start(home / "server", fsync="on", max_connections="100")
    other = start(home / "other", None, **verify.SETTINGS)
    bench = Bench(server, folder)
    names = [f"t{number:05}" for number in range(max(tenants, drill))]
    try:
        made = seconds(lambda: bench.fill(names, 2000))
        print(f"{len(names)} tenants with 50 users and 2,000 messages were made in {made:.0f} s", file=sys.stderr)
        some = names[:tenants]
        create = process(*POSDUIF, "backup", "create", *some, "--jobs", str(JOBS), "-q")
        pairs(f"backup create, {tenants} small tenants, against xargs -P{JOBS} pg_dump -Fc, wanted at most 1.15",
              create, lambda: bench.dumps(some), rounds=rounds, afterwards=bench.empty)  # fmt: skip
        process(*POSDUIF, "backup", "create", *names[:drill], "-q")()
        pairs(f"backup drill, {drill} small tenants, against a bare restore of the same files, wanted at most 1.3",
              process(*POSDUIF, "backup", "drill", "--jobs", str(JOBS), "-q"), lambda: bench.restores(other),
              rounds=max(rounds // 2, 1))  # fmt: skip
        bench.empty()
        bench.fill(["large"], rows)
        pairs(f"backup create, one tenant with {rows} messages, against pg_dump -Fc, wanted at most 0.5",
              process(*POSDUIF, "backup", "create", "large", "-q"), lambda: bench.dumps(["large"]),
              rounds=max(rounds // 2, 1), afterwards=bench.empty)  # fmt: skip
    finally:
        embedded.stop(home / "server")
        embedded.stop(home / "other")
        shutil.rmtree(home)
        shutil.rmtree(folder)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--tenants", type=int, default=100)
    parser.add_argument("--drill", type=int, default=200)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    run(options.tenants, options.drill, options.rows, options.rounds)
