"""Servers: what is configured, and the embedded one."""

from collections.abc import Iterator
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

from posduif_cli.core import preparations
from posduif_cli.core.fleet import Fleet
from posduif_cli.db import embedded as starter
from posduif_cli.db import queries
from posduif_cli.db.connect import Session
from posduif_cli.errors import PosduifError, QueryFailed
from posduif_cli.models import EmbeddedStatus, Server, ServerInfo

NAME = "embedded"
SIZES_PATIENCE = timedelta(seconds=5)


def list_all(fleet: Fleet) -> list[ServerInfo]:
    """Ask every server how it is; one that cannot be asked is in the list with its error."""

    def describe(session: Session) -> dict[str, Any]:
        named, count = queries.load("servers"), queries.load("tenants")["count_tenants"]
        row = session.dicts(named["describe_server"])[0]
        row["warnings"] = tuple(_warnings(session, row))
        found = session.dicts(named["measure_connections"])[0]
        row |= {"connections": found["used"], "max_connections": found["max_connections"]}
        row |= session.dicts(count, sizes=False)[0]
        with suppress(QueryFailed), session.transaction(statement_timeout=SIZES_PATIENCE):
            row |= session.dicts(count, sizes=True)[0]
        return {key: row[key] for key in row if not key.startswith("is_")}

    answers = fleet.ask(describe)
    return [_info(server, answers[server.name]) for server in fleet.servers]


def _info(server: Server, answer: dict[str, Any] | PosduifError) -> ServerInfo:
    if isinstance(answer, PosduifError):
        return ServerInfo(server.name, False, server.origin, error=answer.sentence)
    return ServerInfo(server=server.name, reachable=True, source=server.origin, **answer)


def _warnings(session: Session, row: dict[str, Any]) -> Iterator[str]:
    naming = preparations.naming(session.server)
    if row["is_superuser"]:
        login = f"posduif server init --login NAME{naming}"
        yield f"{row['role']} is a superuser, and code in a tenant's database could make its author one: {login}"
    if row["is_open"]:
        text = f"PUBLIC may connect to {session.database}"
        may_close = row["is_superuser"] or row["is_owner"]
        yield f"{text}: posduif server init --close{naming}" if may_close else f"{text}; its owner can end that"
    if row["is_standby"]:
        yield "it is a standby and takes no changes"
    elif row["record_owner"] is None:
        yield f"it has no posduif roles yet: posduif server init{naming}"
    elif not session.member:
        yield f"{row['role']} is no member of {row['record_owner']} and cannot change tenants"
    elif session.heir is False:
        yield f"{row['role']} does not inherit the rights of {row['record_owner']} and cannot enter tenants"


def embedded(data_dir: Path, bin_dir: Path | None) -> tuple[Server | None, bool]:
    """Return the embedded server, started if need be, and whether it was; None if none was ever made.

    Raises EmbeddedServerFailed.
    """
    if not starter.exists(data_dir):
        return None, False
    return start(data_dir, bin_dir)


def start(data_dir: Path, bin_dir: Path | None, listen: tuple[str, int] | None = None) -> tuple[Server, bool]:
    """Make the embedded server if there is none, start it, and return whether it had to be started.

    *listen* as in `db.embedded.start`. Raises WrongState, ConfigurationError without PostgreSQL binaries,
    EmbeddedServerFailed.
    """
    now, started = starter.start(data_dir, bin_dir=bin_dir, listen=listen)
    host, _, port = (now.listen or "").rpartition(":")
    engine = {"host": host, "port": int(port), "ssl_mode": "disable"} if now.listen else {}
    # No phone can reach an address of this machine alone, but a token needs one, and a try-out has no other.
    url = "http://localhost:8080"
    return Server(NAME, starter.dsn(data_dir), origin="the embedded server", url=url, engine=engine), started


def status(data_dir: Path, *, changed: bool | None = None) -> EmbeddedStatus:
    """Return how the embedded server stands."""
    found = starter.status(data_dir)
    return EmbeddedStatus(
        running=found.running,
        pid=found.pid,
        version=found.version,
        data_dir=data_dir,
        dsn=starter.dsn(data_dir) if found.running else None,
        listen=found.listen,
        changed=changed,
    )


def stop(data_dir: Path) -> bool:
    """Stop the embedded server; return whether it was running."""
    return starter.stop(data_dir)


def remove(data_dir: Path) -> bool:
    """Stop the embedded server and delete its data; return whether there was one."""
    return starter.remove(data_dir)
