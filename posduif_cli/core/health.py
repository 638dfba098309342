"""Health: what is wrong with servers and tenants. A check is one function over what one query found."""

import shlex
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, TypeVar

from posduif_cli.core.fleet import Fleet, split
from posduif_cli.db import queries
from posduif_cli.db.connect import quoted
from posduif_cli.errors import Busy, PosduifError, TenantNotFound
from posduif_cli.models import (
    Finding,
    Health,
    IndexUse,
    Level,
    Server,
    ServerHealth,
    State,
    TableSize,
    Tenant,
    TenantHealth,
)

T = TypeVar("T")
GIB = 1024**3
PATIENCE = timedelta(seconds=2)  # with a lock: a report that waits for a stuck ALTER TABLE reports nothing


@dataclass(frozen=True)
class ServerFacts:
    """What the queries found about one server."""

    figures: ServerHealth
    slots: Sequence[dict[str, Any]]


@dataclass(frozen=True)
class TenantFacts:
    """What the queries found in one tenant's database."""

    tenant: Tenant
    figures: TenantHealth
    invalid_indexes: Sequence[str] = ()
    stuck: Sequence[dict[str, Any]] = ()


def connections(facts: ServerFacts) -> Iterator[Finding]:
    """Connections in use against what ordinary roles may use: warning from 75 %, critical from 90 %."""
    used, limit = facts.figures.connections or 0, facts.figures.max_connections or 1
    share = used / limit
    level = Level.CRITICAL if share >= 0.9 else Level.WARNING if share >= 0.75 else Level.OK
    yield Finding(
        "connections",
        "server",
        facts.figures.server,
        level,
        f"{used} of {limit} connections are in use",
        round(share, 3),
        "ratio",
        "0.75 / 0.9",
        None if level is Level.OK else "lower the engines' max_connections, or raise the server's",
    )


def slots(facts: ServerFacts) -> Iterator[Finding]:
    """WAL that replication slots keep from being recycled: warning from 1 GiB, critical from 5 GiB.

    The engine's own slot is never active, so inactivity alone says nothing.
    """
    for slot in facts.slots:
        kept = slot["retained_bytes"] or 0
        level = Level.CRITICAL if kept >= 5 * GIB else Level.WARNING if kept >= GIB else Level.OK
        yield Finding(
            "slots",
            "server",
            f"{facts.figures.server}/{slot['slot']}",
            level,
            f"slot {slot['slot']} of {slot['database'] or 'the server'} keeps {kept / 1024**2:.1f} MiB of WAL",
            kept,
            "bytes",
            "1 GiB / 5 GiB",
            None if level is Level.OK else f"SELECT pg_drop_replication_slot('{slot['slot']}');",
        )


def replication(facts: ServerFacts) -> Iterator[Finding]:
    """How far the slowest replica is behind: warning from 64 MiB, critical from 512 MiB."""
    lag = facts.figures.replication_lag_bytes
    if lag is not None:
        level = Level.CRITICAL if lag >= 512 * 1024**2 else Level.WARNING if lag >= 64 * 1024**2 else Level.OK
        yield Finding(
            "replication",
            "server",
            facts.figures.server,
            level,
            f"the slowest replica is {lag / 1024**2:.1f} MiB behind",
            lag,
            "bytes",
            "64 MiB / 512 MiB",
            None if level is Level.OK else "look at the replica's network and disks",
        )


def state(facts: TenantFacts) -> Iterator[Finding]:
    """A tenant that is neither active nor suspended: warning; lost: critical."""
    tenant = facts.tenant
    if tenant.state is State.LOST:
        yield Finding(
            "state",
            "tenant",
            tenant.tenant,
            Level.CRITICAL,
            f"tenant {tenant.tenant} is lost",
            tenant.state.value,
            fix=f"posduif tenant adopt {tenant.tenant}"
            if tenant.has_database
            else f"restore its database, or posduif tenant drop {tenant.tenant}",
        )
    elif tenant.state not in (State.ACTIVE, State.SUSPENDED):
        again = "create" if tenant.state is State.PROVISIONING else "drop"
        yield Finding(
            "state",
            "tenant",
            tenant.tenant,
            Level.WARNING,
            f"tenant {tenant.tenant} is {tenant.state}",
            tenant.state.value,
            fix=f"posduif tenant {again} {tenant.tenant}",
        )


def schema(facts: TenantFacts) -> Iterator[Finding]:
    """No schema, a last migration that failed, migrations without a file here, and pending ones."""
    tenant = facts.tenant
    if tenant.state is not State.ACTIVE:
        return
    if tenant.error is not None:
        failed = tenant.error
        where = f"{failed.file}:{failed.line}" if failed.file and failed.line else failed.file or failed.version
        yield Finding(
            "schema",
            "tenant",
            tenant.tenant,
            Level.CRITICAL,
            f"migration {failed.version} failed at {where} (SQLSTATE {failed.sqlstate or 'unknown'})",
            tenant.schema_version,
            fix=f"posduif migrate up {tenant.tenant}",
        )
    elif tenant.schema_version is None:
        yield Finding(
            "schema",
            "tenant",
            tenant.tenant,
            Level.CRITICAL,
            f"tenant {tenant.tenant} is at no schema: it has none of posduif's tables",
            tenant.pending,
            "migrations",
            fix=f"posduif migrate up {tenant.tenant}",
        )
    elif tenant.ahead:
        number = f"{tenant.ahead} applied migration{'' if tenant.ahead == 1 else 's'}"
        yield Finding(
            "schema",
            "tenant",
            tenant.tenant,
            Level.WARNING,
            f"the tenant is ahead: this machine has no file for {number}",
            tenant.ahead,
            "migrations",
            fix=f"posduif migrate list {tenant.tenant}",
        )
    elif tenant.pending:
        yield Finding(
            "schema",
            "tenant",
            tenant.tenant,
            Level.WARNING,
            f"{tenant.pending} migration{' is' if tenant.pending == 1 else 's are'} pending",
            tenant.pending,
            "migrations",
            fix=f"posduif migrate up {tenant.tenant}",
        )
    else:
        yield Finding(
            "schema",
            "tenant",
            tenant.tenant,
            Level.OK,
            f"the schema is at {tenant.schema_version}",
            0,
            "migrations",
        )


def indexes(facts: TenantFacts) -> Iterator[Finding]:
    """Invalid indexes: they cost on every write and serve no query."""
    for name in facts.invalid_indexes:
        yield Finding(
            "indexes",
            "tenant",
            facts.tenant.tenant,
            Level.CRITICAL,
            f"index {name} is invalid",
            name,
            fix=f"REINDEX INDEX CONCURRENTLY {quoted(name)};",
        )


def sync(facts: TenantFacts) -> Iterator[Finding]:
    """Devices whose synchronisation failed, and messages that a device should have fetched and did not.

    A pending message alone is no fault: a phone may be off.
    """
    name, errors = facts.tenant.tenant, facts.figures.sync_errors
    if errors is None:
        return
    level = Level.WARNING if errors else Level.OK
    yield Finding(
        "sync",
        "tenant",
        name,
        level,
        f"{errors} devices report a synchronisation error",
        errors,
        "devices",
        fix=f"posduif device list {name}" if errors else None,
    )
    for row in facts.stuck:
        yield Finding(
            "sync",
            "tenant",
            name,
            Level.WARNING,
            f"device {row['device']} fetched messages, but {row['stuck']} older ones still wait",
            row["stuck"],
            "messages",
            fix=f"posduif message pending {name} --device {shlex.quote(row['device'])}",
        )


SERVER_CHECKS: tuple[Callable[[ServerFacts], Iterator[Finding]], ...] = (connections, slots, replication)
TENANT_CHECKS: tuple[Callable[[TenantFacts], Iterator[Finding]], ...] = (state, schema, indexes, sync)


def report(fleet: Fleet, *, tenants: Sequence[str] = ()) -> Health:
    """Examine the named tenants, or all, and their servers.

    A server or a tenant that cannot be examined is a critical finding, not an error. Raises as Fleet.find
    for a named tenant that does not exist.
    """
    if tenants:
        chosen = [fleet.find(name)[1] for name in dict.fromkeys(tenants)]
        wanted = {tenant.server for tenant in chosen}
        servers = [server for server in fleet.servers if server.name in wanted]
        lost: dict[str, PosduifError] = {}
    else:
        answers = fleet.ask(lambda session: fleet.list_on(session))
        told, lost = split(answers)
        chosen = [tenant for answer in told.values() for tenant in answer]
        servers = list(fleet.servers)

    findings: list[Finding] = []
    figures: list[ServerHealth] = []
    for server in servers:
        facts: ServerFacts | PosduifError = (
            lost[server.name] if server.name in lost else _attempt(partial(_server_facts, fleet, server))
        )
        if isinstance(facts, PosduifError):
            figures.append(ServerHealth(server.name, False))
            findings.append(_unreachable("reach", "server", server.name, facts))
        else:
            figures.append(facts.figures)
            findings += [finding for check in SERVER_CHECKS for finding in check(facts)]

    visited = 0
    examined: list[TenantHealth] = []
    with ThreadPoolExecutor(max(1, min(4, *(server.max_connections for server in servers), len(chosen) or 1))) as pool:
        results = pool.map(lambda tenant: _attempt(lambda: _tenant_facts(fleet, tenant)), chosen)
        for tenant, result in zip(tuple(chosen), results, strict=True):
            if isinstance(result, TenantNotFound):
                if tenants:
                    raise result
                chosen.remove(tenant)  # dropped since it was listed
                continue
            if isinstance(result, PosduifError):
                findings.append(_unreachable("reach", "tenant", tenant.tenant, result))
                result = TenantFacts(tenant, _known(tenant))
            else:
                visited += result.figures.users is not None
            examined.append(result.figures)
            findings += [finding for check in TENANT_CHECKS for finding in check(result)]

    order = list(Level)
    worst = max((finding.level for finding in findings), key=order.index, default=Level.OK)
    return Health(
        status=worst.value,
        checked_at=datetime.now(UTC),
        servers=tuple(figures),
        tenants=tuple(examined),
        coverage={"servers": len(servers) - len(lost), "tenants": len(chosen), "visited": visited},
        findings=tuple(sorted(findings, key=lambda finding: -order.index(finding.level))),
    )


def _attempt(question: Callable[[], T]) -> T | PosduifError:
    try:
        return question()
    except PosduifError as error:
        return error


def _unreachable(check: str, scope: str, subject: str, error: PosduifError) -> Finding:
    level = Level.UNKNOWN if isinstance(error, Busy) else Level.CRITICAL
    return Finding(check, scope, subject, level, error.sentence, fix=next(iter(error.hints), "posduif server list"))


def _server_facts(fleet: Fleet, server: Server) -> ServerFacts:
    named = queries.load("health")
    with fleet.maintenance(server) as session:
        figures = session.dicts(named["describe_server"])[0]
        return ServerFacts(
            ServerHealth(server=server.name, reachable=True, **figures), session.dicts(named["list_slots"])
        )


def _known(tenant: Tenant) -> TenantHealth:
    return TenantHealth(tenant.tenant, tenant.server, tenant.state, tenant.schema_version, tenant.pending)


def _tenant_facts(fleet: Fleet, tenant: Tenant) -> TenantFacts:
    if tenant.state not in (State.ACTIVE, State.SUSPENDED) or tenant.schema_version is None:
        return TenantFacts(tenant, _known(tenant))
    named = queries.load("health")
    with (
        fleet.enter(fleet.server(tenant.server), tenant.tenant) as conn,
        conn.transaction(read_only=True, lock_timeout=PATIENCE),
    ):
        known = _known(tenant)
        figures = TenantHealth(
            known.tenant,
            known.server,
            known.state,
            known.schema_version,
            known.pending_migrations,
            **conn.dicts(named["describe_tenant"])[0],
            tables=tuple(conn.rows(TableSize, named["list_tables"])),
            indexes=tuple(conn.rows(IndexUse, named["list_indexes"])),
        )
        invalid = [name for (name,) in conn.tuples(named["find_invalid_indexes"])]
        return TenantFacts(tenant, figures, invalid, conn.dicts(named["find_stuck_devices"]))
