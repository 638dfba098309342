"""How many connections a command opens: a fleet of three servers is asked for a tenant once."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import yaml

from posduif_cli.db.connection import Connection
from support.runner import Posduif
from support.servers import PgServer, private

NAMES = ("a", "b", "c")
# A find is one connection to each server; then come one to the maintenance database of the tenant's server, if the
# command works there, and one to the tenant's database. A creation asks the other servers a second time.
MOST = {
    "tenant create multi": 5,
    "tenant create multi --if-not-exists": 4,
    "tenant set multi --url https://multi.example.com": 4,
    "tenant suspend multi": 5,
    "tenant suspend multi --dry-run": 3,
    "tenant resume multi": 5,
    "tenant resume multi --dry-run": 3,  # of an active tenant
    "tenant rotate-password multi --engine-config {folder}/engine.yaml": 5,
    "tenant rotate-password multi --engine-config {folder}/engine.yaml --now": 5,
    "tenant engine-config multi": 4,
    "tenant show multi": 3,
    "user create multi desk --type web": 4,
    "token create multi": 4,
    "token list multi": 4,
    "tenant drop multi --dry-run": 4,
    "tenant drop multi --confirm multi": 5,
}


@pytest.fixture(scope="module")
def three() -> Iterator[dict[str, PgServer]]:
    with ExitStack() as stack:
        yield {name: stack.enter_context(private()) for name in NAMES}


def test_a_tenant_is_found_once(
    three: dict[str, PgServer], cli: Posduif, tmp_path: Path, clean_environ: pytest.MonkeyPatch
) -> None:
    settings = {
        "servers": {name: {"dsn": server.dsn} for name, server in three.items()},
        "default_server": "b",
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(settings))
    clean_environ.setenv("POSDUIF_CONFIG", str(tmp_path / "config.yaml"))
    cli("tenant", "create", "first")  # makes the roles
    opened: list[str] = []
    original = Connection.connect

    def counting(*args: Any, **parts: Any) -> Any:
        opened.append(parts["dbname"])
        return original(*args, **parts)

    clean_environ.setattr(Connection, "connect", counting)
    counts = {}
    for line in MOST:
        opened.clear()
        cli(*line.format(folder=tmp_path).split())
        counts[line] = len(opened)
        assert len(opened) <= MOST[line], (line, opened)
        assert opened.count("multi") <= 1, (line, opened)
    assert min(counts.values()) == 3, "each server is asked at least"
