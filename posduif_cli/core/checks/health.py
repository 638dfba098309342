"""The health report: what is wrong with servers and tenants, by one session per server and one per tenant."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, LiteralString, TypeVar

from posduif_cli.core import names
from posduif_cli.core.checks import registry
from posduif_cli.core.checks.backups import numbered
from posduif_cli.core.checks.check import Verdict, failure
from posduif_cli.core.checks.facts import ServerFacts, TenantFacts
from posduif_cli.core.checks.tenant import VISITED
from posduif_cli.core.checks.verify import visit
from posduif_cli.core.fleet import run
from posduif_cli.core.fleet.asides import asides
from posduif_cli.core.fleet.fleet import Fleet, Session, ambiguous, live, split
from posduif_cli.core.schema import history
from posduif_cli.db import queries
from posduif_cli.db.admin import HEALTH_GROUP
from posduif_cli.db.connect import MAINTENANCE
from posduif_cli.db.quoting import quoted
from posduif_cli.errors import AccessDenied, Busy, Hint, Interrupted, PosduifError, QueryFailed, Run, TenantNotFound
from posduif_cli.models.checks import Health, IndexUse, Level, ServerHealth, TableSize
from posduif_cli.models.copies import Backup
from posduif_cli.models.tenants import Tenant

T = TypeVar("T")
LOCK_TIMEOUT = timedelta(seconds=2)  # a report that waits for a stuck ALTER TABLE reports nothing
LIMIT = timedelta(seconds=10)  # of one question; what a phone or an engine wrote must not keep monitoring busy
QUERY_CANCELED = "57014"


def report(
    fleet: Fleet,
    *,
    tenants: Sequence[str] = (),
    backups: Sequence[Backup] | PosduifError | None = None,
    checks: Collection[str] | None = None,
) -> Health:
    """Return what is wrong with the named tenants, or with all, and with their servers, and with their *backups*.

    With *checks* only these judge.

    A server or tenant that cannot be reached is a critical finding, a question that was not answered an unknown one;
    all others keep their answers. Raises InvalidName, AmbiguousTenant, and TenantNotFound for a named tenant that no
    server has, unless one of them could not be asked.
    """
    wanted = tuple(dict.fromkeys(tenants))
    saved = None if backups is None or isinstance(backups, PosduifError) else numbered(backups)
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

    servers = [
        told.get(name) or ServerFacts(ServerHealth(name, False), error=lost[name], affected=tuple(missing))
        for name in (server.name for server in fleet.servers)
        if name in asked
    ]
    here = [tenant for tenant in chosen if tenant.state in VISITED and tenant.schema_version is not None]
    by_place = {(tenant.server, tenant.tenant): tenant for tenant in here}
    answers, gone = visit(fleet, here, partial(_look, by_place))
    results = dict(answers)
    dropped = {tenant: result for tenant, result in answers if isinstance(result, TenantNotFound)}
    if wanted and dropped:
        raise next(iter(dropped.values()))
    examined: list[TenantFacts] = []
    for tenant in (tenant for tenant in chosen if tenant not in dropped):
        result = results.get(tenant, TenantFacts(tenant))
        if isinstance(result, PosduifError):
            closed = () if result is gone.get(tenant.server) else (_closed(tenant, result, told[tenant.server]),)
            result = TenantFacts(tenant, unanswered=closed)
        examined.append(replace(result, backups=None if saved is None else saved.get(tenant.tenant, ())))
    for name, error in gone.items():
        affected = tuple(tenant.tenant for tenant in chosen if results.get(tenant) is error)
        servers.append(ServerFacts(ServerHealth(name, False), error=error, affected=affected))

    if isinstance(backups, PosduifError) and servers:
        servers[0] = replace(servers[0], store_error=backups)
    judged = [(each.tenant.server, registry.judge("health", "tenant", each, checks)) for each in examined]
    judged += [(each.subject, registry.judge("health", "server", each, checks)) for each in servers]
    findings = [fleet.locate(finding, server) for server, found in judged for finding in found]
    order = list(Level)
    covered = [name for name in asked if name in told and name not in gone and not told[name].unanswered]
    visited = [tenant for tenant, result in answers if isinstance(result, TenantFacts) and not result.unanswered]
    return Health(
        status=max((finding.level for finding in findings), key=order.index, default=Level.OK).value,
        checked_at=datetime.now(UTC),
        servers=tuple(facts.figures for facts in servers if facts.error is None or facts.subject in lost),
        tenants=tuple(facts.figures for facts in examined),
        coverage={"servers": len(covered), "tenants": len(examined) + len(missing), "visited": len(visited)},
        findings=tuple(sorted(findings, key=lambda finding: -order.index(finding.level))),
    )


def _choose(
    fleet: Fleet, wanted: Sequence[str], listed: Sequence[Tenant], *, complete: bool
) -> tuple[list[Tenant], list[str]]:
    """Return the tenants of some names, and the names that no server gave while the answers were not *complete*."""
    chosen: list[Tenant] = []
    missing: list[str] = []
    for name in wanted:
        found = live([tenant for tenant in listed if tenant.tenant == name])
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
        session.limit(lock_timeout=LOCK_TIMEOUT, statement_timeout=LIMIT)

    def ask(self, subject: str, question: Callable[[], T]) -> T | None:
        """Return the answer; None where there was none, and then `unanswered` says that of *subject*, and why."""
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

    def unanswered(self) -> list[Verdict]:
        """Return what was not answered, one verdict per reason."""
        return [
            Verdict(level, f"no answer about {', '.join(asked)}: {why}", fix=fix)
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


def _ask_server(fleet: Fleet, wanted: Sequence[str], session: Session) -> ServerFacts:
    """Ask a server for its tenants, those *wanted* or all, and for its figures."""
    named, questions = queries.load("checks/health"), _Questions(session)
    tenants = questions.ask(
        "tenants", lambda: [t for name in wanted or (None,) for t in fleet.list_on(session, name=name)]
    )
    limits = questions.figures("connections", queries.load("fleet/fleet")["measure_connections"])
    described = questions.figures("version, replication", named["describe_server"])
    slots = questions.ask("slots", lambda: session.dicts(named["list_slots"])) or ()
    figures = ServerHealth(
        session.server.name, True, connections=limits.get("used"), max_connections=limits.get("allowed"), **described
    )
    copies = questions.ask("databases set aside", lambda: asides(session)) or ()
    if wanted:
        copies = [copy for copy in copies if copy.tenant in wanted]
    facts = ServerFacts(figures, slots, questions.unanswered(), tenants=tenants, asides=copies)
    return replace(facts, login=session.login, member=bool(session.member))


def _look(tenants: Mapping[tuple[str, str], Tenant], session: Session) -> TenantFacts:
    """Ask the one of the *tenants*, by server and name, that the session is in."""
    named, questions = queries.load("checks/health"), _Questions(session)
    measured: dict[str, Any] = {}
    for subject, query in (
        ("size, connections", "measure_tenant"),
        ("users", "count_users"),
        ("messages", "count_messages"),
        ("synchronisation errors", "count_errors"),
    ):
        measured |= questions.figures(subject, named[query])
    measured["tables"] = tuple(questions.ask("tables", lambda: session.rows(TableSize, named["list_tables"])) or ())
    measured["indexes"] = tuple(questions.ask("indexes", lambda: session.rows(IndexUse, named["list_indexes"])) or ())
    invalid = questions.ask("invalid indexes", lambda: session.tuples(named["find_invalid_indexes"])) or ()
    stuck = questions.ask("stuck devices", lambda: session.dicts(named["find_stuck_devices"])) or ()
    tenant = tenants[session.server.name, session.database]
    return TenantFacts(tenant, measured, [name for (name,) in invalid], stuck, questions.unanswered())


def _closed(tenant: Tenant, error: PosduifError, server: ServerFacts) -> Verdict:
    """Say why a tenant could not be looked into.

    It is unknown where another command is at work there, or where the login has no right to look.
    """
    if isinstance(error, AccessDenied) and not server.member:
        text = f"{server.login} may not connect to database {tenant.tenant}"
        return Verdict(Level.UNKNOWN, text, fix=_grant(server.login))
    level = Level.UNKNOWN if isinstance(error, Busy) else Level.CRITICAL
    return failure(error, level, fix=Run("server", "list"))
