"""The health report: what is wrong with servers and tenants, what causes it, and what to type.

One session per server sees nearly all of it for all tenants. A session per tenant is opened for what no other can see,
of named tenants or of all; their engines are asked on request.
"""

import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial

from posduif_cli.core import names
from posduif_cli.core.checks import causes, cluster, visits
from posduif_cli.core.checks.backups import numbered
from posduif_cli.core.checks.causes import Judged
from posduif_cli.core.checks.check import Check, Verdict, failure
from posduif_cli.core.checks.facts import ServerFacts, TenantFacts, VisitedServer
from posduif_cli.core.checks.questions import grant
from posduif_cli.core.checks.rules import Rules
from posduif_cli.core.checks.visits import Depth
from posduif_cli.core.fleet.fleet import SIZES_TIMEOUT, Fleet, ambiguous, live, split
from posduif_cli.db.session import QUESTION_TIMEOUT
from posduif_cli.errors import AccessDenied, Busy, ConfigurationError, PosduifError, Run, TenantNotFound
from posduif_cli.models.checks import Health, Level, ServerHealth
from posduif_cli.models.copies import Backup
from posduif_cli.models.tenants import Tenant

NO_BACKUPS = "backup.dir is not configured"


def report(
    fleet: Fleet,
    *,
    tenants: Sequence[str] = (),
    backups: Sequence[Backup] | PosduifError | None = None,
    rules: Rules | None = None,
    depth: Depth | None = None,
) -> Health:
    """Return what is wrong with the named tenants, or with all, and with their servers, by *rules*.

    *backups* are all there are, or why they cannot be read, None where none are configured. Named tenants are visited.
    A server or tenant that cannot be reached is a critical finding, a question that was not answered an unknown one;
    all others keep their answers. Raises InvalidName, AmbiguousTenant, Busy where another deep report is under way, and
    TenantNotFound for a named tenant that no server has, unless one of them could not be asked.
    """
    return _Report(fleet, tuple(dict.fromkeys(tenants)), backups, rules or Rules(), depth or Depth()).made()


class _Report:
    """One report while it is made; *told* has the answers of the servers, *lost* the errors of the others."""

    def __init__(
        self,
        fleet: Fleet,
        wanted: Sequence[str],
        backups: Sequence[Backup] | PosduifError | None,
        rules: Rules,
        depth: Depth,
    ) -> None:
        for name in wanted:
            names.tenant(name)
        self.fleet, self.wanted, self.backups, self.rules, self.depth = fleet, wanted, backups, rules, depth
        self.told: dict[str, ServerFacts] = {}
        self.lost: dict[str, PosduifError] = {}

    def _checks(self, tier: str, scope: str) -> dict[str, list[Check]]:
        """Return the checks of a tier and a scope that judge, by the server's name."""
        return {
            server.name: [c for c in self.rules.checks(server.name) if c.tier == tier and c.scope == scope]
            for server in self.fleet.servers
        }

    def made(self) -> Health:
        """Make the report."""
        fleet, depth = self.fleet, self.depth
        parts = [self._checks("listed", "server"), self._checks("listed", "tenant")]
        parts += [self._checks("probed", "tenant")] if depth.probe else []
        asking = {server.name: [c for part in parts for c in part[server.name]] for server in fleet.servers}
        ask = partial(cluster.look, fleet, self.wanted, asking, depth.sizes)
        limit = SIZES_TIMEOUT if depth.sizes else QUESTION_TIMEOUT
        self.told, self.lost = split(fleet.ask(ask, limit=limit))
        for error in self.lost.values():
            if isinstance(error, ConfigurationError) and len(fleet.servers) == 1:
                raise error  # nothing was asked: the command is wrong, not the server
        with visits.turn(fleet, self.told if depth.deep else ()):
            chosen, missing = self._choose()
            servers = self._servers(chosen, missing)
            visited, gone = self._visit(chosen)
        dropped = {tenant for tenant, result in visited.items() if isinstance(result, TenantNotFound)}
        for result in visited.values():
            if self.wanted and isinstance(result, TenantNotFound):
                raise result
        chosen = [tenant for tenant in chosen if tenant not in dropped]
        servers = [
            facts if facts.subject not in gone else replace(facts, figures=replace(facts.figures, reachable=False))
            for facts in servers
        ]
        for name, error in gone.items():
            affected = tuple(tenant.tenant for tenant in chosen if visited.get(tenant) is error)
            servers.append(ServerFacts(ServerHealth(name, False), error=error, affected=affected))
        examined = self._examine(chosen, visited, gone)
        return self._judge(servers, examined, missing, visited, gone)

    def _choose(self) -> tuple[list[Tenant], list[str]]:
        """Return the tenants that are reported on, and the names that no server gave while one was silent."""
        listed = [tenant for answer in self.told.values() for tenant in answer.tenants or ()]
        chosen: list[Tenant] = [] if self.wanted else listed
        missing: list[str] = []
        for name in self.wanted:
            found = live([tenant for tenant in listed if tenant.tenant == name])
            if len(found) > 1:
                raise ambiguous(name, found)
            if found:
                chosen += found
            elif not self._silent():
                chosen.append(self.fleet.find(name).tenant)  # which raises TenantNotFound with the nearest name
            else:
                missing.append(name)
        return chosen, missing

    def _silent(self) -> set[str]:
        """Return the names of the servers that did not say which tenants they have."""
        return {*self.lost, *(name for name, answer in self.told.items() if answer.tenants is None)}

    def _servers(self, chosen: Sequence[Tenant], missing: Sequence[str]) -> list[ServerFacts]:
        """Return the facts of the servers that are reported on: all, or those of named tenants."""
        asked = {server.name for server in self.fleet.servers}
        if self.wanted:
            asked = {tenant.server for tenant in chosen} | (self._silent() if missing else set())
        found = [
            self.told.get(name)
            or ServerFacts(ServerHealth(name, False), error=self.lost[name], affected=tuple(missing))
            for name in (server.name for server in self.fleet.servers)
            if name in asked
        ]
        if isinstance(self.backups, PosduifError) and found:
            found[0] = replace(found[0], store_error=self.backups)
        return found

    def _visit(
        self, chosen: Sequence[Tenant]
    ) -> tuple[dict[Tenant, TenantFacts | PosduifError], Mapping[str, PosduifError]]:
        """Visit the tenants, if that is asked for; return what each answered, and the servers that went away."""
        if not (self.depth.deep or self.wanted):
            return {}, {}
        alone, shared = self._checks("visited", "tenant"), self._checks("visited", "server")
        checks = {name: [*alone[name], *shared[name]] for name in alone}
        figures = {name: answer.figures for name, answer in self.told.items()}
        return visits.visits(self.fleet, chosen, checks, figures, self.depth, named=bool(self.wanted))

    def _examine(
        self,
        chosen: Sequence[Tenant],
        visited: Mapping[Tenant, TenantFacts | PosduifError],
        gone: Mapping[str, PosduifError],
    ) -> list[TenantFacts]:
        """Return the facts of each tenant: from its server, from its database, from its engine and its backups."""
        saved = numbered(self.backups) if isinstance(self.backups, Sequence) else None
        outside = {
            (name, row["tenant"]): (row["why"], row["fix"] or Run("tenant", "verify", row["tenant"], "--repair"))
            for name, server in self.told.items()
            for row in server.rows("list_shut_out")
        }
        examined: list[TenantFacts] = []
        for tenant in chosen:
            result = visited.get(tenant, TenantFacts(tenant))
            if isinstance(result, PosduifError):
                closed = (
                    () if result is gone.get(tenant.server) else (_closed(result, self.told[tenant.server], tenant),)
                )
                result = TenantFacts(tenant, unanswered=closed)
            server = self.told[tenant.server]
            size = {} if tenant.tenant not in server.sizes else {"size_bytes": server.sizes[tenant.tenant]}
            held = None if saved is None else saved.get(tenant.tenant, ())
            newest = {"backup_at": held[-1].created_at} if held else {}
            examined.append(
                replace(
                    result, measured={**result.measured, **size, **newest}, backups=held,
                    shut_out=outside.get((tenant.server, tenant.tenant)),
                )
            )  # fmt: skip
        if not self.depth.probe:
            return examined
        full = {
            (name, row["role"].removesuffix("_engine"))
            for name, server in self.told.items()
            for row in server.rows("list_engine_sessions")
            if row["used"] >= row["allowed"]
        }
        asked = self._checks("probed", "tenant")
        answers = visits.probes([facts.tenant for facts in examined if asked[facts.tenant.server]], self.depth)
        return [
            replace(facts, answer=answers.get(facts.tenant), full=(facts.tenant.server, facts.subject) in full)
            for facts in examined
        ]

    def _judge(
        self,
        servers: Sequence[ServerFacts],
        examined: Sequence[TenantFacts],
        missing: Sequence[str],
        visited: Mapping[Tenant, TenantFacts | PosduifError],
        gone: Mapping[str, PosduifError],
    ) -> Health:
        """Return the report on what was seen."""
        answered = [result for result in visited.values() if isinstance(result, TenantFacts)]
        limits = {server.name: self.rules.limits(server.name) for server in self.fleet.servers}
        judged = [
            Judged(check, server, facts.subject, verdict, limits[server])
            for server, facts, checks in self._subjects(servers, examined, answered)
            for check in checks
            for verdict in check.verdicts(facts, limits[server])
        ]
        totals = Counter(facts.tenant.server for facts in examined)
        found = causes.findings(self.fleet, judged, totals)
        skipped = self._skipped(judged, examined)
        ran: dict[str, tuple[str, ...]] = {}
        unable: set[str] = set()
        for server in servers:
            failed_here = self._unable(server)
            unable |= failed_here
            left = {*failed_here, *skipped.get(server.subject, {})}
            here = (id_ for id_ in self._ran(server, examined, answered) if id_ not in left)
            ran[server.subject] = tuple(dict.fromkeys((*ran.get(server.subject, ()), *here)))
        judging = {id_ for ids in ran.values() for id_ in ids}
        reasons = {id_: why for of in skipped.values() for id_, why in of.items() if id_ not in judging | unable}
        # Where nothing could be judged, nothing is known to be fine.
        wanted = {check.id for check in self.rules.chosen}
        calm = Level.OK if judging & wanted else Level.UNKNOWN
        whole = [facts for facts in answered if not facts.unanswered]
        failed = [
            result
            for result in visited.values()
            if not isinstance(result, TenantNotFound) and (isinstance(result, PosduifError) or result.unanswered)
        ]
        return Health(
            status=max((finding.level for finding in found), key=lambda level: level.rank, default=calm).value,
            checked_at=datetime.now(UTC),
            servers=tuple(f.figures for f in servers if f.error is None or f.subject in self.lost),
            tenants=tuple(facts.figures for facts in examined),
            coverage={
                "servers": sum(f.error is None and f.subject not in gone and not f.unanswered for f in servers),
                "tenants": len(examined) + len(missing),
                "visited": len(whole),
                "skipped": len(examined) - len(whole) - len(failed),
                "failed": len(failed) + len(missing),
                "probed": sum(facts.answer is not None for facts in examined),
                "left_out": self._left_out(examined, visited),
                "checks": len(judging),
                "checks_skipped": len(reasons),
                "checks_failed": len(unable - judging),
            },
            findings=tuple(found),
            skipped=reasons,
            named=bool(self.wanted),
            ran=ran,
            seconds=round(time.monotonic() - self.depth.started, 3),
        )

    def _left_out(self, examined: Sequence[TenantFacts], visited: Mapping[Tenant, TenantFacts | PosduifError]) -> int:
        """Return how many tenants were to be visited or probed and were not, because the budget was spent."""
        if self.depth.budget is None:
            return 0
        visits_ = self.depth.deep or bool(self.wanted)
        return sum(
            (visits_ and visits.visitable(facts.tenant) and facts.tenant not in visited)
            or (self.depth.probe and visits.probable(facts.tenant) and facts.answer is None)
            for facts in examined
        )

    def _skipped(self, judged: Sequence[Judged], examined: Sequence[TenantFacts]) -> dict[str, dict[str, str]]:
        """Return why each check that could judge nothing yet could not, by server and check.

        A check of tenants that only some could not answer has judged the others.
        """
        reasons: dict[str, dict[str, str]] = {server.name: {} for server in self.fleet.servers}
        found = [each for each in judged if each.level is Level.SKIPPED]
        counts = Counter((each.server, each.check.id) for each in found)
        totals = Counter(facts.tenant.server for facts in examined)
        probed = {facts.tenant.server for facts in examined if facts.answer is not None}
        for each in found:
            whole = counts[each.server, each.check.id] == totals[each.server]
            if each.check.tier == "probed":
                whole = each.server not in probed
            if each.check.scope == "server" or whole:
                reasons[each.server][each.check.id] = each.verdict.message
        for name, of_server in reasons.items():
            judging = self.rules.checks(name)
            for check in self.rules.chosen:
                if check not in judging:
                    of_server[check.id] = "it is switched off in the configuration"
                elif check.tier == "stored" and self.backups is None:
                    of_server[check.id] = NO_BACKUPS
        return reasons

    def _subjects(
        self, servers: Sequence[ServerFacts], examined: Sequence[TenantFacts], answered: Sequence[TenantFacts]
    ) -> Iterator[tuple[str, ServerFacts | TenantFacts | VisitedServer, Sequence[Check]]]:
        """Yield each subject with its server's name and the checks that judge it."""
        listed, stored = self._checks("listed", "server"), self._checks("stored", "server")
        for each in servers:
            yield each.subject, each, [*listed[each.subject], *stored[each.subject]]
        whole = self._checks("visited", "server")
        for name in {facts.tenant.server: None for facts in answered}:
            yield name, VisitedServer(name, [f for f in answered if f.tenant.server == name]), whole[name]
        of_tenant = {
            server.name: [check for check in self.rules.checks(server.name) if check.scope == "tenant"]
            for server in self.fleet.servers
        }
        for facts in examined:
            yield facts.tenant.server, facts, of_tenant[facts.tenant.server]

    def _ran(
        self, facts: ServerFacts, examined: Sequence[TenantFacts], answered: Sequence[TenantFacts]
    ) -> Iterator[str]:
        """Yield the ids of the checks for which a server and its tenants were asked."""
        asked = {
            "listed": facts.error is None,
            "stored": self.backups is not None and facts.error is None,
            "visited": any(each.tenant.server == facts.subject for each in answered),
            "probed": any(each.answer is not None for each in examined if each.tenant.server == facts.subject),
        }
        for check in self.rules.checks(facts.subject):
            if asked[check.tier] or check.id == "server.reach":
                yield check.id

    def _unable(self, facts: ServerFacts) -> set[str]:
        """Return the ids of the checks that could not judge a server, for lack of a right or of an answer."""
        if facts.error is not None:
            return set()
        unread = isinstance(self.backups, PosduifError)
        return {
            check.id
            for check in self.rules.checks(facts.subject)
            if (check.tier == "stored" and check.id != "backup.store" and unread)
            or (check.tier == "listed" and check.monitor and not facts.monitor)
            or (check.tier == "listed" and any(name not in facts.seen for name in check.asks))
        }


def _closed(error: PosduifError, server: ServerFacts, tenant: Tenant) -> Verdict:
    """Say why a tenant could not be looked into.

    It is unknown where another command is at work there, or where the login has no right to look.
    """
    if isinstance(error, AccessDenied) and not server.member:
        text = f"{server.login} may not connect to database {tenant.tenant}"
        return Verdict(
            Level.UNKNOWN, text, fix=grant(server.login), several=f"{server.login} may not connect to their databases"
        )
    level = Level.UNKNOWN if isinstance(error, Busy) else Level.CRITICAL
    return failure(error, level, fix=Run("server", "list"))
