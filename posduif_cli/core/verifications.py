"""Verifications: the record against the tenant's own table, the files against what was applied, schemas for drift."""

import random
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from posduif_cli.core import fingerprints, inspections, migrations
from posduif_cli.core.fingerprints import Thing
from posduif_cli.core.fleet import Fleet, Session, wrong_state
from posduif_cli.core.folders import Folders, digest, hash_in
from posduif_cli.core.statuses import label
from posduif_cli.db import record
from posduif_cli.errors import PosduifError, listed
from posduif_cli.models import Finding, Level, Migration, State, Tenant

SHOWN = 5
Errors = dict[str, PosduifError]


def run(
    fleet: Fleet, *, tenants: Sequence[str] | None, sample: int | None = None, repair: bool = False
) -> tuple[list[Finding], Errors]:
    """Visit tenants and compare their records with their own version tables; *repair* repairs the record.

    The tenant's own table wins. Returns a finding per tenant, and the tenants and servers that failed.
    """
    chosen, errors = _live(*fleet.choose(tenants), tenants)
    if sample is not None and sample < len(chosen):
        chosen = random.sample(chosen, sample)
    return _visit(fleet, chosen, errors, lambda conn: [check_record(conn, repair=repair)])


def reality(fleet: Fleet, *, tenants: Sequence[str] | None, repair: bool = False) -> tuple[list[Finding], Errors]:
    """Visit tenants and compare all that posduif says of them with what is: versions, rights, roles, settings.

    *repair* repairs what is posduif's to repair. Returns for each tenant a finding on its record, one for each
    half-applied file and one for each fault, then those that are no whole tenants, with what finishes them; and the
    tenants and servers that failed.
    """
    chosen, unasked = fleet.choose(tenants)
    live, errors = _live(chosen, unasked, tenants)
    folders = fleet.folders

    def look(conn: Session) -> list[Finding]:
        halves = _halves(conn.database, migrations.half_done(conn), folders)
        checked = check_record(conn, repair=repair)
        return [checked, *halves, *inspections.inspect(conn, folders=folders, repair=repair)]

    findings, errors = _visit(fleet, live, errors, look)
    for half in chosen:
        if half.state not in (State.ACTIVE, State.SUSPENDED, State.MOVED):
            error = wrong_state(half)
            fix = next(iter(error.hints), None)
            finding = Finding("state", "tenant", half.tenant, Level.CRITICAL, error.sentence, fix=fix)
            findings.append(fleet.locate(finding, half.server))
    return findings, errors


def _visit(
    fleet: Fleet, chosen: Sequence[Tenant], errors: Errors, look: Callable[[Session], list[Finding]]
) -> tuple[list[Finding], Errors]:
    findings: list[Finding] = []
    for tenant, result in fleet.each(chosen, look):
        if isinstance(result, PosduifError):
            errors[label(tenant, errors)] = result
        else:
            findings += [fleet.locate(finding, tenant.server) for finding in result]
    return findings, errors


def _live(chosen: Sequence[Tenant], errors: Errors, tenants: Sequence[str] | None) -> tuple[list[Tenant], Errors]:
    """Return those of the chosen tenants that can be visited, and the errors of servers and of named tenants."""
    live = [tenant for tenant in chosen if tenant.state in (State.ACTIVE, State.SUSPENDED)]
    if tenants is None:
        return live, {f"server {name}": error for name, error in errors.items()}
    return live, errors | {t.tenant: wrong_state(t) for t in chosen if t not in live}


def _halves(name: str, half_done: Mapping[str, int], folders: Folders) -> list[Finding]:
    """Return a finding for each half-applied file of a tenant, with the command that finishes or abandons it."""
    return [
        Finding(
            "files",
            "tenant",
            name,
            Level.WARNING,
            f"migration {(version := key.removesuffix(migrations.DOWN))} is "
            f"{'taken back' if key != version else 'applied'} by half, with {done} of its statements"
            + ("" if version in folders.paths else "; its file is gone"),
            version,
            fix=migrations.half_steps(name, key, folders)[0],
        )
        for key, done in half_done.items()
    ]


def check_record(conn: Session, *, repair: bool = False) -> Finding:
    """Compare a tenant's record with its version table; with *repair* write what the table says."""
    name = conn.database
    if not repair:
        # Both from one snapshot, or a migration that ends between the two would pass for a difference.
        with conn.transaction(read_only=True, prelude=["SET TRANSACTION ISOLATION LEVEL REPEATABLE READ"]):
            return _compare(conn, record.read(conn), set(migrations.applied(conn)))
    conn.require_admin()
    with conn.lock(name), conn.transaction(lock_timeout=inspections.LOCK_TIMEOUT):
        current, done = record.read(conn), set(migrations.applied(conn))
        finding = _compare(conn, current, done)
        if finding.level is Level.OK:
            return finding
        record.write(conn, replace(current, schema=max(done, default=None), applied=digest(done)))
        return replace(finding, level=Level.INFO, message=f"repaired: {finding.message}", fix=None)


def _compare(conn: Session, current: record.Record, done: set[str]) -> Finding:
    name, found = conn.database, max(done, default=None)
    if (current.schema, hash_in(current.applied)) == (found, hash_in(digest(done))):
        return Finding("record", "tenant", name, Level.OK, f"the record says {found}, and so does the tenant")
    what = f"the record says {current.schema or 'none'}, the tenant {found or 'none'}"
    if current.schema == found:
        what = f"both say {found}, but the sets of applied migrations differ"
    return Finding("record", "tenant", name, Level.CRITICAL, what, found, fix=f"posduif tenant verify {name} --repair")


def problem(conn: Session, folders: Folders) -> str | None:
    """Say what is wrong with a tenant that was just migrated, or None; the gate between waves."""
    finding = check_record(conn)
    if finding.level is not Level.OK:
        return finding.message
    wrong = [m for m in migrations.history(conn, folders=folders) if m.state not in ("applied", "missing")]
    return f"migration {wrong[0].version} is {wrong[0].state}" if wrong else None


def schemas(fleet: Fleet, *, tenants: Sequence[str] | None) -> tuple[list[Finding], Errors]:
    """Compare tenants with the files and with each other: checksums, files that are gone, order, drift.

    Tenants are clustered by what their schemas are made of; the largest cluster of a set of applied migrations
    is the majority, and the odd ones are shown with what sets them apart from it and from what the migrations
    make on that server.
    """
    chosen, errors = _live(*fleet.choose(tenants), tenants)
    folders = fleet.folders

    def look(conn: Session) -> tuple[tuple[Migration, ...], dict[str, int], tuple[Thing, ...]]:
        with conn.transaction(read_only=True, lock_timeout=folders.lock_timeout):
            history, half_done = migrations.history(conn, folders=folders), migrations.half_done(conn)
            return history, half_done, fingerprints.inventory(conn)

    findings = [
        Finding("files", "file", subject, Level.CRITICAL, fault.sentence, fix=next(iter(fault.hints), None))
        for subject, fault in folders.faults.items()
    ]
    prints: dict[tuple[str, str], dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    kept: dict[str, tuple[Thing, ...]] = {}
    current = digest(folders.paths)
    for tenant, result in fleet.each(chosen, look):
        if isinstance(result, PosduifError):
            errors[label(tenant, errors)] = result
            continue
        history, half_done, things = result
        found_here = _halves(tenant.tenant, half_done, folders) or _history(tenant, history)
        findings += [fleet.locate(finding, tenant.server) for finding in found_here]
        mark = fingerprints.digest(things)
        kept.setdefault(mark, things)
        applied = digest([m.version for m in history if m.state not in ("pending", "half")])
        prints[(tenant.server, applied)][mark].append(tenant.tenant)
    for (server, applied), clusters in sorted(prints.items()):
        whole = applied == current and not folders.faults
        reference = fingerprints.reference(fleet, fleet.server(server)) if whole else None
        findings += _drift(server, clusters, kept, reference)
    return findings, errors


def _history(tenant: Tenant, history: Sequence[Migration]) -> list[Finding]:
    name = tenant.tenant
    newest = max((m.version for m in history if m.state != "pending"), default="")
    wrong = [
        *(
            (m, f"migration {m.version} changed after it was applied", Level.CRITICAL)
            for m in history
            if m.state == "changed"
        ),
        *(
            (m, f"migration {m.version} is applied, but its file is gone", Level.WARNING)
            for m in history
            if m.state == "missing"
        ),
        *(
            (m, f"migration {m.version} is pending, but {newest} is applied", Level.WARNING)
            for m in history
            if m.state == "pending" and m.version < newest
        ),
    ]
    if not wrong:
        pending = sum(m.state == "pending" for m in history)
        fits = f"{len(history) - pending} applied migrations fit their files" + (f", {pending} pending" * bool(pending))
        return [Finding("files", "tenant", name, Level.OK, fits)]
    return [
        Finding("files", "tenant", name, level, message, m.version, fix=f"posduif migrate list {name}")
        for m, message, level in wrong
    ]


def _drift(
    server: str,
    clusters: dict[str, list[str]],
    kept: dict[str, tuple[Thing, ...]],
    reference: tuple[Thing, ...] | None,
) -> list[Finding]:
    ordered = sorted(clusters, key=lambda mark: (-len(clusters[mark]), mark))
    majority = ordered[0]
    made = majority if reference is None else fingerprints.digest(reference)
    meant = "the same schema" if reference is None else "the schema that the migrations make"
    findings = []
    for mark in ordered:
        names = tuple(sorted(clusters[mark]))
        if mark == made:
            message = f"server {server}: {meant} in {len(names)} of {sum(map(len, clusters.values()))} tenants"
            findings.append(
                Finding("drift", "server", server, Level.OK, message, len(names), "tenants", affected=names)
            )
            continue
        parts = []
        if reference is not None:
            parts.append(_differences("from what the migrations make", reference, kept[mark]))
        if mark != majority:
            parts.append(_differences("from the majority", kept[majority], kept[mark]))
        shown = listed(names, SHOWN)
        findings.append(
            Finding(
                "drift", "server", shown, Level.WARNING, "; ".join(part for part in parts if part),
                len(names), "tenants", fix="repair it by a migration, or by hand", affected=names,
            )
        )  # fmt: skip
    return findings


def _differences(against: str, expected: Sequence[Thing], found: Sequence[Thing]) -> str:
    differences = fingerprints.compare(expected, found)
    words = [
        f"{d.kind} {d.name}: {d.found or 'missing'}" + (f" (not {d.expected})" if d.found and d.expected else "")
        for d in differences
    ]
    return f"differs {against}: {listed(words, SHOWN, '; ')}" if words else ""
