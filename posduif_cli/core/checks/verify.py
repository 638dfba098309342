"""Tenants visited, judged and repaired: `tenant verify`, `migrate verify` and `migrate status --verify`."""

import random
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from types import SimpleNamespace
from typing import TypeVar

from posduif_cli.core.checks import registry, rights, tenant
from posduif_cli.core.checks.check import Check, Repair, Verdict
from posduif_cli.core.checks.facts import Applied, Clusters, Files, Inspection, Recorded, TenantFacts
from posduif_cli.core.fleet.crew import Crew
from posduif_cli.core.fleet.fleet import Errors, Fleet, Session, all_unreachable, split, wrong_state
from posduif_cli.core.fleet.run import DEFAULT_JOBS, label
from posduif_cli.core.folders import Folders, digest
from posduif_cli.core.schema import files, history, inventory, likeness
from posduif_cli.core.schema.inventory import Thing
from posduif_cli.db import record
from posduif_cli.errors import PosduifError, ServerFull, ServerUnreachable
from posduif_cli.models.checks import Finding, Level, Repaired
from posduif_cli.models.servers import Server
from posduif_cli.models.tenants import State, Tenant

LOCK_TIMEOUT = timedelta(seconds=10)  # of a repair
T = TypeVar("T")
Outside = Mapping[tuple[str, str], SimpleNamespace]  # by server and name


def records(fleet: Fleet, *, tenants: Sequence[str] | None, sample: int | None = None) -> tuple[list[Finding], Errors]:
    """Visit tenants, all or a random *sample*, and compare their records with their own version tables.

    Returns a finding per tenant, and the errors of the tenants and servers that failed, by name.
    """
    chosen, errors = _live(*fleet.choose(tenants), tenants)
    if sample is not None and sample < len(chosen):
        chosen = random.sample(chosen, sample)

    def look(conn: Session) -> list[Finding]:
        noted, done = history.look(conn)
        facts = Recorded(subject=conn.database, folders=fleet.folders, record=noted, applied=done)
        return registry.judge("migrate status", "tenant", facts)

    return _located(fleet, _results(fleet, chosen, errors, look, named=tenants is not None)), errors


def reality(fleet: Fleet, *, tenants: Sequence[str] | None, repair: bool = False) -> tuple[list[Finding], Errors]:
    """Visit tenants and compare all that posduif says of them with what is: versions, rights, roles, settings.

    *repair* repairs what posduif may; each repaired finding is a `Repaired`. Returns the findings, at least one per
    tenant, those on tenants that are not whole last; and the errors of the tenants and servers that failed, by name.
    """
    outside: Outside = {}
    if tenants is None:
        told, unasked = split(fleet.ask(lambda session: _ask(fleet, session)))
        if unasked and not told:
            raise all_unreachable(unasked)
        chosen = sorted((t for found, _ in told.values() for t in found), key=lambda t: (t.tenant, t.server))
        outside = {(server, name): each for server, (_, found) in told.items() for name, each in found.items()}
    else:
        chosen, unasked = fleet.choose(tenants)
    live, errors = _live(chosen, unasked, tenants)
    inspector = Inspector(fleet.folders, outside, repair=repair)
    findings = _located(fleet, _results(fleet, live, errors, inspector.visit, named=tenants is not None))
    for half in chosen:
        if half.state not in (*tenant.VISITED, State.MOVED):
            found = (replace(each, level=Level.CRITICAL, value=None) for each in tenant.state(TenantFacts(half)))
            findings += [fleet.locate(each, half.server) for each in found]
    return findings, errors


def _ask(fleet: Fleet, session: Session) -> tuple[list[Tenant], dict[str, SimpleNamespace]]:
    found = fleet.list_on(session)
    return found, rights.outside(session, [each.tenant for each in found])


class Inspector:
    """Inspects the tenants of one run, each kind of tenant once.

    A tenant whose catalogs have the same rows as those of a tenant that was inspected without a finding has none
    either, as far as its own catalogs go. What the shared catalogs say, by server and name in *outside*, its record and
    its version table are judged for every tenant.
    """

    def __init__(
        self, folders: Folders, outside: Mapping[tuple[str, str], SimpleNamespace], *, repair: bool = False
    ) -> None:
        self._folders = folders
        self._outside = outside
        self._repair = repair
        self._clean: set[str] = set()

    def visit(self, conn: Session) -> list[Finding]:
        """Return the findings on the tenant that *conn* is in, repaired where that was asked for and is possible."""
        if self._repair:
            conn.require_admin()
        rows = likeness.catalogs(conn) if self._outside else None
        if rows and (found := self._glance(conn, *rows)):
            return found
        facts = rights.inspect(conn, self._folders)
        found = registry.judge("tenant verify", "tenant", facts)
        if self._repair and not _fine(found):
            return _repair(conn, self._folders)
        # What an adoption accepted is no finding, but for its own tenant only.
        if rows and _fine(found) and not facts.strangers and likeness.catalogs(conn) == rows:
            self._clean.update(likeness.marks(conn, *rows, facts.applied))
        return found

    def _glance(self, conn: Session, oids: Sequence[int], text: str) -> list[Finding]:
        """Return the findings on a tenant that is fine and like one that was inspected; none where that is not sure."""
        outside = self._outside.get((conn.server.name, conn.database))
        noted = record.parse(outside.comment) if outside else None
        if not self._clean or outside is None or noted is None or outside.shut_out or history.PROGRESS in text:
            return []
        facts = Inspection(
            subject=conn.database, folders=self._folders, server=conn.server,
            record=noted, applied=frozenset(history.applied(conn)), outside=outside,
        )  # fmt: skip
        found = registry.judge("tenant verify", "tenant", facts)
        marks = likeness.marks(conn, oids, text, facts.applied)
        exact = next(marks)
        if not _fine(found) or not (exact in self._clean or next(marks) in self._clean):
            return []
        self._clean.add(exact)
        return found


def _fine(findings: Sequence[Finding]) -> bool:
    return all(finding.level is Level.OK for finding in findings)


def _repair(conn: Session, folders: Folders) -> list[Finding]:
    """Repair what posduif may under the tenant's lock, and return the findings.

    Each fault is repaired in a transaction of its own. One that stays is reported with the reason.
    """
    name = conn.database
    with conn.lock(name):
        facts = rights.inspect(conn, folders)
        judged = _verdicts(facts)
        repairs = [(*each, repair) for each in judged if (repair := each[0].repair_of(each[1]))]
        if not repairs:
            return [check.finding(name, verdict) for check, verdict in judged]
        tried = {(check.id, each.thing): _try(conn, repair, facts, each.thing) for check, each, repair in repairs}
        # What was tried need not have worked: a right may come by another road. And one repair may end two faults.
        left = {(check.id, now.thing): (check, now) for check, now in _verdicts(rights.inspect(conn, folders))}
    findings = []
    for check, verdict in judged:
        _, now = left.pop((check.id, verdict.thing), (check, None))
        if verdict.level is Level.OK:
            findings.append(check.finding(name, verdict))
        elif now is None or now.level is Level.OK:
            done = replace(check.finding(name, verdict), level=Level.INFO, message=f"repaired: {verdict.message}")
            findings.append(Repaired(**vars(done) | {"fix": verdict.then}))
        else:
            why = tried.get((check.id, verdict.thing), "") if now.message == verdict.message else ""
            findings.append(check.finding(name, replace(now, message=now.message + why)))
    return findings + [check.finding(name, verdict) for check, verdict in left.values()]


def _verdicts(facts: Inspection) -> list[tuple[Check, Verdict]]:
    checks = registry.select("tenant verify", "tenant")
    return [(check, verdict) for check in checks for verdict in check.judge(facts)]


def _try(conn: Session, repair: Repair, facts: Inspection, thing: str) -> str:
    """Try to repair a fault; return what is to be said if it is still there afterwards."""
    try:
        with conn.transaction(lock_timeout=LOCK_TIMEOUT):
            repair(conn, facts, thing)
    except PosduifError as error:
        return f"; not repaired: {error.message}"
    return "; its repair changed nothing"


def schemas(fleet: Fleet, *, tenants: Sequence[str] | None) -> tuple[list[Finding], Errors]:
    """Compare tenants with the files and with each other: checksums, files that are gone, order, drift.

    Tenants are clustered by what their schemas are made of. The largest cluster of a set of applied migrations is the
    majority. The others are shown with what sets them apart from it and from what the migrations make on that server.
    Returns the findings, and the errors of the tenants and servers that failed, by name.
    """
    chosen, errors = _live(*fleet.choose(tenants), tenants)
    folders, faults = fleet.folders, files.of(fleet.folders).faults

    def look(conn: Session) -> tuple[Applied, tuple[Thing, ...]]:
        with conn.transaction(read_only=True, lock_timeout=folders.lock_timeout):
            found, half = history.read(conn, folders=folders), history.half_done(conn)
            return Applied(conn.database, folders, half, found), inventory.inventory(conn)

    findings = registry.judge("migrate verify", "file", Files(faults))
    clusters: dict[tuple[str, str], dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    kept: dict[str, tuple[Thing, ...]] = {}
    for each, (facts, things) in _results(fleet, chosen, errors, look, named=tenants is not None):
        found = registry.judge("migrate verify", "tenant", facts)
        findings += [fleet.locate(finding, each.server) for finding in found]
        mark = inventory.digest(things)
        kept.setdefault(mark, things)
        applied = digest([m.version for m in facts.migrations if m.state not in ("pending", "half")])
        clusters[each.server, applied][mark].append(each.tenant)
    for (server, applied), alike in sorted(clusters.items()):
        whole = applied == digest(folders.paths) and not faults
        reference = inventory.reference(fleet, fleet.server(server)) if whole else None
        findings += registry.judge("migrate verify", "server", Clusters(server, alike, kept, reference))
    return findings, errors


def visit(
    fleet: Fleet,
    tenants: Sequence[Tenant],
    work: Callable[[Session], T],
    *,
    jobs: int | Mapping[str, int] = DEFAULT_JOBS,
    crew: Crew | None = None,
) -> tuple[list[tuple[Tenant, T | PosduifError]], dict[str, ServerUnreachable]]:
    """Do *work* in each tenant's database, several at once; *jobs* and *crew* are those of `Fleet.each`.

    Returns each tenant with the result or error, and the errors of the servers that went away, by name. A server that
    went away is not asked again: all its tenants that were not visited have that same error.
    """
    away: dict[str, ServerUnreachable] = {}

    def enter(server: Server, name: str) -> Session:
        if server.name in away:
            raise away[server.name].with_traceback(None)
        try:
            return fleet.enter(server, name)
        except ServerUnreachable:
            try:
                fleet.maintenance(server).close()
            except ServerUnreachable as error:
                if not isinstance(error, ServerFull):
                    raise away.setdefault(server.name, error) from None
            raise

    return fleet.each(tenants, work, jobs=jobs, enter=enter, crew=crew), away


def _results(
    fleet: Fleet, chosen: Sequence[Tenant], errors: Errors, look: Callable[[Session], T], *, named: bool
) -> Iterator[tuple[Tenant, T]]:
    """Yield each tenant that was visited with the result, and add the others' errors to *errors*.

    A server that went away is one error, unless its tenants were *named*.
    """
    results, away = visit(fleet, chosen, look)
    for each, result in results:
        if not isinstance(result, PosduifError):
            yield each, result
        elif result is away.get(each.server) and not named:
            errors[f"server {each.server}"] = away[each.server]
        else:
            errors[label(each, errors)] = result


def _located(fleet: Fleet, visited: Iterator[tuple[Tenant, list[Finding]]]) -> list[Finding]:
    return [fleet.locate(finding, each.server) for each, found in visited for finding in found]


def _live(chosen: Sequence[Tenant], errors: Errors, tenants: Sequence[str] | None) -> tuple[list[Tenant], Errors]:
    """Return those of the chosen tenants that can be visited, and the errors of servers and of named tenants."""
    live = [each for each in chosen if each.state in tenant.VISITED]
    if tenants is None:
        return live, {f"server {name}": error for name, error in errors.items()}
    return live, errors | {each.tenant: wrong_state(each) for each in chosen if each not in live}
