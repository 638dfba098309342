"""What judging a big fleet costs, without a server: `python tests/bench/registry.py`. The baseline is bare JSON."""

import json
import time
from typing import Any

from measure import pairs

from posduif_cli.core.fleet.fleet import Fleet
from posduif_cli.core.folders import Folders, digest
from posduif_cli.core.schema import history
from posduif_cli.models.servers import Server

COUNT = 100_000


def fleet(folders: Folders) -> Fleet:
    """Make a fleet of one server that nobody connects to."""
    return Fleet((Server("eu1", "", url="https://{tenant}.sync.example.com"),), "bench", folders)


def rows(count: int) -> list[dict[str, Any]]:
    """Make what `list_tenants` returns for a server of *count* tenants, every hundredth a migration behind."""
    everything = list(Folders().paths)
    return [_row(f"tenant{n:06}", everything if n % 100 else everything[:-1]) for n in range(count)]


def _row(name: str, applied: list[str]) -> dict[str, Any]:
    noted = {
        "v": 1,
        "state": "active",
        "schema": applied[-1],
        "set": digest(applied),
        "url": f"https://{name}.example.com",
        "created": "2026-01-02T03:04:05Z",
    }
    intent = {"v": 1, "tenant": name, "state": "active", "nonce": 1_234_567}
    return {
        "tenant": name,
        "has_database": True,
        "ours": True,
        "record": "posduif " + json.dumps(noted, separators=(",", ":")),
        "open": True,
        "connection_limit": -1,
        "has_role": True,
        "intent": "posduif " + json.dumps(intent, separators=(",", ":")),
        "engine_sessions": 0,
        "may_log_in": True,
        "size_bytes": None,
    }


if __name__ == "__main__":
    many = rows(COUNT)
    simulated = fleet(Folders())

    def judge() -> None:
        """List, and choose the targets, as `migrate up --all` does."""
        tenants = [simulated.judge(row, simulated.servers[0]) for row in many]
        [tenant for tenant in tenants if tenant is not None and history.behind(tenant)]

    def bare() -> None:
        """Only read every record's JSON."""
        [json.loads(row["record"].removeprefix("posduif ")) for row in many]

    started = time.process_time()
    judge()
    print(f"{(time.process_time() - started) / COUNT * 1e6:.1f} us of processor time a tenant, {COUNT} tenants")
    pairs(f"judging {COUNT} records / json.loads of each", judge, bare, rounds=5)
