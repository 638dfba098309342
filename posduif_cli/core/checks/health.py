"""Health: what is wrong with servers and tenants. A check is one function over what one query found."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, LiteralString, TypeVar

from posduif_cli.core import names
from posduif_cli.core.fleet import run
from posduif_cli.core.fleet.fleet import Fleet, Session, ambiguous, live, split, wrong_state
from posduif_cli.core.schema import history
from posduif_cli.db import queries
from posduif_cli.db.admin import HEALTH_GROUP
from posduif_cli.db.connect import MAINTENANCE
from posduif_cli.db.quoting import quoted
from posduif_cli.errors import (
    AccessDenied,
    Busy,
    Hint,
    Interrupted,
    PosduifError,
    QueryFailed,
    Run,
    ServerFull,
    ServerUnreachable,
    TenantNotFound,
)
from posduif_cli.models.checks import Finding, Health, IndexUse, Level, ServerHealth, TableSize, TenantHealth
from posduif_cli.models.servers import Server
from posduif_cli.models.tenants import State, Tenant
from posduif_cli.notation import counted

T = TypeVar("T")
GIB = 1024**3
PATIENCE = timedelta(seconds=2)  # with a lock: a report that waits for a stuck ALTER TABLE reports nothing
LIMIT = timedelta(seconds=10)  # of one question; what a phone or an engine wrote must not keep monitoring busy
QUERY_CANCELED = "57014"
VISITED = (State.ACTIVE, State.SUSPENDED)


@dataclass(frozen=True)
class ServerFacts:
    """What the queries found about one server."""

    figures: ServerHealth
    slots: Sequence[dict[str, Any]]


@dataclass(frozen=True)
class TenantFacts:
    """What the queries found in one tenant's database; *unanswered* says which of them found nothing out."""

    tenant: Tenant
    figures: TenantHealth
    invalid_indexes: Sequence[str] = ()
    stuck: Sequence[dict[str, Any]] = ()
    unanswered: Sequence[Finding] = ()


@dataclass(frozen=True)
class _Answer:
    """What one server said; *tenants* is None where it did not list them.

    *login* is the role that asked, *member* says whether it is an administrator's.
    """

    tenants: Sequence[Tenant] | None
    facts: ServerFacts
    unanswered: Sequence[Finding]
    login: str
    member: bool


def connections(facts: ServerFacts) -> Iterator[Finding]:
    """Connections in use against what ordinary roles may use: warning from 75 %, critical from 90 %."""
    used, limit = facts.figures.connections, facts.figures.max_connections
    if used is None or limit is None:
        return
    share = used / max(limit, 1)
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
    """A tenant that is neither active nor suspended: warning; lost, or active with its engine shut out: critical."""
    tenant = facts.tenant
    if tenant.state is State.ACTIVE and tenant.engine_may_log_in is False:
        name = tenant.tenant
        yield Finding(
            "state",
            "tenant",
            name,
            Level.CRITICAL,
            f"tenant {name} is active, but its engine may not log in: a suspend was interrupted",
            tenant.state.value,
            fix=Run("tenant", "resume", name),
        )
    if tenant.state in VISITED:
        return
    error = wrong_state(tenant)
    yield Finding(
        "state",
        "tenant",
        tenant.tenant,
        Level.CRITICAL if tenant.state is State.LOST else Level.WARNING,
        error.sentence,
        tenant.state.value,
        fix=error.hints[0],
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
            fix=Run("migrate", "up", tenant.tenant),
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
            fix=Run("migrate", "up", tenant.tenant),
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
            fix=Run("migrate", "list", tenant.tenant),
        )
    elif tenant.pending:
        yield Finding(
            "schema",
            "tenant",
            tenant.tenant,
            Level.WARNING,
            f"{counted(tenant.pending, 'migration')} pending",
            tenant.pending,
            "migrations",
            fix=Run("migrate", "up", tenant.tenant),
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
    if errors is not None:
        yield Finding(
            "sync",
            "tenant",
            name,
            Level.WARNING if errors else Level.OK,
            f"{counted(errors, 'device')} with a synchronisation error",
            errors,
            "devices",
            fix=Run("device", "list", name) if errors else None,
        )
    for row in facts.stuck:
        yield Finding(
            "sync",
            "tenant",
            name,
            Level.WARNING,
            f"device {row['device']} fetched messages, but not {counted(row['stuck'], 'older one')}",
            row["stuck"],
            "messages",
            fix=Run("message", "pending", name, "--device", row["device"]),
        )


SERVER_CHECKS: tuple[Callable[[ServerFacts], Iterator[Finding]], ...] = (connections, slots, replication)
TENANT_CHECKS: tuple[Callable[[TenantFacts], Iterator[Finding]], ...] = (state, schema, indexes, sync)


def report(fleet: Fleet, *, tenants: Sequence[str] = ()) -> Health:
    """Return what is wrong with the named tenants, or with all, and with their servers.

    A server or tenant that cannot be reached is a critical finding, a question that was not answered an unknown one;
    all others keep their answers. Raises InvalidName, AmbiguousTenant, and TenantNotFound for a named tenant that no
    server has, unless one of them could not be asked.
    """
    wanted = tuple(dict.fromkeys(tenants))
    for name in wanted:
        names.tenant(name)
    told, lost = split(fleet.ask(partial(_ask_server, fleet, wanted)))
    chosen = [tenant for answer in told.values() for tenant in answer.tenants or ()]
    asked = {server.name for server in fleet.servers}
    missing: list[str] = []
    if wanted:
        silent = {*lost, *(name for name, answer in told.items() if answer.tenants is None)}
        chosen, missing = _choose(fleet, wanted, chosen, complete=not silent)
        asked = {tenant.server for tenant in chosen} | (silent if missing else set())

    findings: list[Finding] = []
    figures: list[ServerHealth] = []
    for server in (server for server in fleet.servers if server.name in asked):
        if server.name in lost:
            figures.append(ServerHealth(server.name, False))
            found = [replace(_unreachable("server", server.name, lost[server.name]), affected=tuple(missing))]
        else:
            facts = told[server.name].facts
            figures.append(facts.figures)
            found = [*told[server.name].unanswered, *(f for check in SERVER_CHECKS for f in check(facts))]
        findings += [fleet.locate(finding, server.name) for finding in found]

    away: dict[str, ServerUnreachable] = {}
    results = _ask_tenants(fleet, [t for t in chosen if t.state in VISITED and t.schema_version is not None], away)
    visited = gone = 0
    examined: list[TenantHealth] = []
    for tenant in chosen:
        result = results.get(tenant) or TenantFacts(tenant, _known(tenant))
        if isinstance(result, TenantNotFound):
            if wanted:
                raise result
            gone += 1  # dropped since it was listed
            continue
        found = []
        if isinstance(result, PosduifError):
            if result is not away.get(tenant.server):
                found.append(_closed(tenant, result, told[tenant.server]))
            result = TenantFacts(tenant, _known(tenant))
        else:
            visited += tenant in results and not result.unanswered
        examined.append(result.figures)
        found += [*result.unanswered, *(finding for check in TENANT_CHECKS for finding in check(result))]
        findings += [fleet.locate(finding, tenant.server) for finding in found]
    for name, error in away.items():
        affected = tuple(tenant.tenant for tenant in chosen if results.get(tenant) is error)
        findings.append(fleet.locate(replace(_unreachable("server", name, error), affected=affected), name))

    order = list(Level)
    worst = max((finding.level for finding in findings), key=order.index, default=Level.OK)
    covered = [name for name in asked if name in told and name not in away and not told[name].unanswered]
    return Health(
        status=worst.value,
        checked_at=datetime.now(UTC),
        servers=tuple(figures),
        tenants=tuple(examined),
        coverage={"servers": len(covered), "tenants": len(chosen) - gone + len(missing), "visited": visited},
        findings=tuple(sorted(findings, key=lambda finding: -order.index(finding.level))),
    )


def _choose(
    fleet: Fleet, wanted: Sequence[str], known: Sequence[Tenant], *, complete: bool
) -> tuple[list[Tenant], list[str]]:
    """Return the tenants of some names, and the names that no server gave while the answers were not *complete*."""
    chosen: list[Tenant] = []
    missing: list[str] = []
    for name in wanted:
        found = live([tenant for tenant in known if tenant.tenant == name])
        if len(found) > 1:
            raise ambiguous(name, found)
        if found:
            chosen += found
        elif complete:
            chosen.append(fleet.find(name).tenant)  # which raises TenantNotFound with the nearest name
        else:
            missing.append(name)
    return chosen, missing


class _Questions:
    """The questions to one session, each within its own limits, so that one without an answer leaves all others theirs.

    Raises ServerUnreachable where the connection broke, Interrupted after ctrl-C.
    """

    def __init__(self, session: Session) -> None:
        self.session = session
        self._failed: dict[tuple[Level, str, Hint | None], list[str]] = {}
        session.script("SET default_transaction_read_only = on")
        session.limit(lock_timeout=PATIENCE, statement_timeout=LIMIT)

    def ask(self, subject: str, question: Callable[[], T]) -> T | None:
        """Return the answer; None where there was none, and then `findings` says that of *subject*, and why."""
        try:
            return question()
        except (Busy, AccessDenied, QueryFailed) as error:
            if self.session.cancelled:
                raise Interrupted("interrupted") from None
            self._failed.setdefault(self._reason(error), []).append(subject)
            return None

    def figures(self, subject: str, query: LiteralString) -> dict[str, Any]:
        """Return the one row of a query, without any column where there was no answer."""
        rows = self.ask(subject, lambda: self.session.dicts(query))
        return rows[0] if rows else {}

    def findings(self, scope: str, subject: str) -> list[Finding]:
        """Return what was not answered, one finding per reason."""
        return [
            Finding("reach", scope, subject, level, f"no answer about {', '.join(asked)}: {why}", fix=fix)
            for (level, why, fix), asked in self._failed.items()
        ]

    def _reason(self, error: PosduifError) -> tuple[Level, str, Hint | None]:
        name = self.session.database
        if isinstance(error, Busy):
            who = "; ".join(self._lockers())
            return Level.UNKNOWN, f"locked by {who}" if who else error.sentence, next(iter(error.hints), None)
        if isinstance(error, AccessDenied):
            ours = self.session.member and name != MAINTENANCE
            return Level.UNKNOWN, error.message, Run("tenant", "verify", name) if ours else _grant(self.session.login)
        state = error.sqlstate if isinstance(error, QueryFailed) else None
        if state == QUERY_CANCELED:
            return Level.UNKNOWN, f"it took longer than the limit of {LIMIT.total_seconds():.0f} s", None
        fix = Run("migrate", "verify", name) if state in history.NO_SUCH_TABLE_OR_COLUMN else None
        return Level.CRITICAL, error.message, fix

    def _lockers(self) -> list[str]:
        """Name the sessions that hold the lock, while they can be seen."""
        try:
            found = self.session.tuples(queries.load("checks/health")["find_lockers"])
        except PosduifError:
            return []
        return [run.who_is(*row) for row in found]


def _grant(login: str) -> str:
    return f"a superuser or an administrator types: GRANT {HEALTH_GROUP} TO {quoted(login)};"


def _ask_server(fleet: Fleet, wanted: Sequence[str], session: Session) -> _Answer:
    """Ask a server for its tenants, those *wanted* or all, and for its figures."""
    named, questions = queries.load("checks/health"), _Questions(session)
    tenants = questions.ask(
        "tenants", lambda: [t for name in wanted or (None,) for t in fleet.list_on(session, name=name)]
    )
    limits = questions.figures("connections", queries.load("fleet/fleet")["measure_connections"])
    known = questions.figures("version, replication", named["describe_server"])
    found = questions.ask("slots", lambda: session.dicts(named["list_slots"]))
    figures = ServerHealth(
        server=session.server.name,
        reachable=True,
        connections=limits.get("used"),
        max_connections=limits.get("allowed"),
        **known,
    )
    return _Answer(
        tenants=tenants,
        facts=ServerFacts(figures, found or ()),
        unanswered=questions.findings("server", session.server.name),
        login=session.login,
        member=bool(session.member),
    )


def _ask_tenants(
    fleet: Fleet, tenants: Sequence[Tenant], away: dict[str, ServerUnreachable]
) -> dict[Tenant, TenantFacts | PosduifError]:
    """Look into tenants, several at once; *away* becomes the servers that went away, which are asked no further."""

    def enter(server: Server, name: str) -> Session:
        if server.name in away:
            raise away[server.name]
        try:
            return fleet.enter(server, name)
        except ServerUnreachable:
            try:
                fleet.maintenance(server).close()
            except ServerUnreachable as error:
                if not isinstance(error, ServerFull):
                    raise away.setdefault(server.name, error) from None
            raise

    known = {(tenant.server, tenant.tenant): tenant for tenant in tenants}
    return dict(fleet.each(tenants, partial(_look, known), enter=enter))


def _look(known: Mapping[tuple[str, str], Tenant], session: Session) -> TenantFacts:
    """Ask one tenant, that of *known* which the session is in."""
    tenant = known[session.server.name, session.database]
    named, questions = queries.load("checks/health"), _Questions(session)
    figures: dict[str, Any] = {}
    for subject, query in (
        ("size, connections", "measure_tenant"),
        ("users", "count_users"),
        ("messages", "count_messages"),
        ("synchronisation errors", "count_errors"),
    ):
        figures |= questions.figures(subject, named[query])
    tables = questions.ask("tables", lambda: session.rows(TableSize, named["list_tables"]))
    indexes = questions.ask("indexes", lambda: session.rows(IndexUse, named["list_indexes"]))
    invalid = questions.ask("invalid indexes", lambda: session.tuples(named["find_invalid_indexes"]))
    stuck = questions.ask("stuck devices", lambda: session.dicts(named["find_stuck_devices"]))
    return TenantFacts(
        tenant,
        replace(_known(tenant), tables=tuple(tables or ()), indexes=tuple(indexes or ()), **figures),
        [name for (name,) in invalid or ()],
        stuck or (),
        questions.findings("tenant", tenant.tenant),
    )


def _known(tenant: Tenant) -> TenantHealth:
    return TenantHealth(tenant.tenant, tenant.server, tenant.state, tenant.schema_version, tenant.pending)


def _unreachable(scope: str, subject: str, error: PosduifError) -> Finding:
    """Say that nothing could be asked of a server or tenant; it is only unknown where someone else is at work there."""
    level = Level.UNKNOWN if isinstance(error, Busy) else Level.CRITICAL
    return Finding("reach", scope, subject, level, error.sentence, fix=next(iter(error.hints), Run("server", "list")))


def _closed(tenant: Tenant, error: PosduifError, server: _Answer) -> Finding:
    """Say why a tenant could not be looked into; a login without the right to it learns nothing of the tenant."""
    found = _unreachable("tenant", tenant.tenant, error)
    if not isinstance(error, AccessDenied) or server.member:
        return found
    message = f"{server.login} may not connect to database {tenant.tenant}"
    return replace(found, level=Level.UNKNOWN, message=message, fix=_grant(server.login))
