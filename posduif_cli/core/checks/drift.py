"""Verifications: the record against the tenant's own table, the files against what was applied, schemas for drift."""

import random
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence

from posduif_cli.core.checks import rights
from posduif_cli.core.fleet.fleet import Fleet, Session, wrong_state
from posduif_cli.core.fleet.run import label
from posduif_cli.core.folders import Folders, digest
from posduif_cli.core.schema import files, history, inventory
from posduif_cli.core.schema.half import ways_out
from posduif_cli.core.schema.inventory import Thing
from posduif_cli.errors import PosduifError, Run
from posduif_cli.models.checks import Finding, Level
from posduif_cli.models.schema import Migration
from posduif_cli.models.tenants import State, Tenant
from posduif_cli.notation import listed

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
    return _visit(fleet, chosen, errors, lambda conn: [history.check(conn, repair=repair)])


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
        halves = _halves(conn.database, history.half_done(conn), folders)
        checked = history.check(conn, repair=repair)
        return [checked, *halves, *rights.inspect(conn, folders=folders, repair=repair)]

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
            f"migration {(version := key.removesuffix(history.DOWN))} is "
            f"{'taken back' if key != version else 'applied'} by half, with {done} of its statements"
            + ("" if version in folders.paths else "; its file is gone"),
            version,
            fix=ways_out(name, key, folders)[0],
        )
        for key, done in half_done.items()
    ]


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
            known, half_done = history.read(conn, folders=folders), history.half_done(conn)
            return known, half_done, inventory.inventory(conn)

    findings = [
        Finding("files", "file", subject, Level.CRITICAL, fault.sentence, fix=next(iter(fault.hints), None))
        for subject, fault in files.of(folders).faults.items()
    ]
    prints: dict[tuple[str, str], dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    kept: dict[str, tuple[Thing, ...]] = {}
    current = digest(folders.paths)
    for tenant, result in fleet.each(chosen, look):
        if isinstance(result, PosduifError):
            errors[label(tenant, errors)] = result
            continue
        known, half_done, things = result
        found_here = _halves(tenant.tenant, half_done, folders) or _history(tenant, known)
        findings += [fleet.locate(finding, tenant.server) for finding in found_here]
        mark = inventory.digest(things)
        kept.setdefault(mark, things)
        applied = digest([m.version for m in known if m.state not in ("pending", "half")])
        prints[(tenant.server, applied)][mark].append(tenant.tenant)
    for (server, applied), clusters in sorted(prints.items()):
        whole = applied == current and not files.of(folders).faults
        reference = inventory.reference(fleet, fleet.server(server)) if whole else None
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
        Finding("files", "tenant", name, level, message, m.version, fix=Run("migrate", "list", name))
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
    made = majority if reference is None else inventory.digest(reference)
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
    differences = inventory.compare(expected, found)
    words = [
        f"{d.kind} {d.name}: {d.found or 'missing'}" + (f" (not {d.expected})" if d.found and d.expected else "")
        for d in differences
    ]
    return f"differs {against}: {listed(words, SHOWN, '; ')}" if words else ""
