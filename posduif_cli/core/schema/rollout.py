"""Rollouts: migrations over many tenants, and what they would do."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from posduif_cli.core.fleet.crew import FIRST_PAUSE, LAST_PAUSE
from posduif_cli.core.fleet.fleet import Errors, Fleet
from posduif_cli.core.fleet.run import Lookout, Run, label, untouched
from posduif_cli.core.schema import apply, grants, history
from posduif_cli.core.schema.apply import Applied
from posduif_cli.core.schema.files import File
from posduif_cli.core.schema.history import behind
from posduif_cli.core.schema.parse import Section
from posduif_cli.core.schema.runner import Hooks
from posduif_cli.db.patience import Patience
from posduif_cli.db.session import Session
from posduif_cli.errors import PosduifError, Refused, ServerFull
from posduif_cli.models.runs import Outcome, Plan, Step
from posduif_cli.models.tenants import State, Tenant

Key = tuple[str, str]  # server and tenant
Going = tuple[Sequence[File], Mapping[str, int | None]]  # the files that would be run, and how much is lost with them


def up(
    run: Run,
    *,
    tenants: Sequence[str] | None,
    failed: bool = False,
    on_pending: Callable[[set[str]], None] = lambda versions: None,
    before: Callable[[Session], object] | None = None,
) -> Errors:
    """Bring the named tenants, or all, to the newest schema; *failed* narrows to those that failed last.

    Of all tenants only those are visited that are behind by their record; *on_pending* is called with the versions
    that some of them are to get, before any does, *before* with a session in each tenant that is about to get one.
    Return the servers that could not be asked; *run* gets an outcome per tenant. A tenant that a faulty file is pending
    for fails.
    """
    folders = run.fleet.folders
    chosen, errors = _choose(run, tenants)
    chosen = [tenant for tenant in chosen if tenant.error or not failed]
    targets = [tenant for tenant in chosen if tenants is not None or behind(tenant)]
    run.outcomes += [untouched(tenant, "unchanged") for tenant in chosen if tenants is None and not behind(tenant)]
    waiting = [tenant.schema_version or "" for tenant in targets if tenant.state is State.ACTIVE and tenant.pending]
    if waiting:
        on_pending({version for version in folders.paths if version > min(waiting)})

    hooks = _hooks(run, before)
    run.work_on(
        targets,
        lambda conn, lookout: apply.up(conn, folders=folders, hooks=hooks(lookout)),
        lambda conn: history.problem(conn, folders),
    )
    return errors


def down(
    run: Run,
    *,
    tenants: Sequence[str] | None,
    to: str | None,
    steps: int | None,
    bundled: bool = False,
    planned: Mapping[Key, Sequence[str]],
) -> Errors:
    """Take back the newest migrations of the named tenants, or of all; see `apply.down`.

    Nothing but the versions that are *planned* is taken back: another command may have done so meanwhile. Return the
    servers that could not be asked; *run* gets an outcome per tenant.
    """
    chosen, errors = _choose(run, tenants)
    hooks, take_back = _hooks(run), partial(apply.down, folders=run.fleet.folders, to=to, steps=steps, bundled=bundled)

    def work(conn: Session, lookout: Lookout) -> Applied:
        return take_back(conn, planned=planned.get((conn.server.name, conn.database), ()), hooks=hooks(lookout))

    run.work_on(chosen, work, lambda conn: None)
    return errors


def _hooks(run: Run, before: Callable[[Session], object] | None = None) -> Callable[[Lookout], Hooks]:
    """Return what makes the hooks of each tenant. All share what leaves `grants.sql` nothing to do."""
    harmless: set[grants.Effect] = set()
    return lambda lookout: Hooks(lookout.blockers, run.tell, lookout.recall, harmless, before)


def _choose(run: Run, tenants: Sequence[str] | None) -> tuple[list[Tenant], Errors]:
    """Choose the targets; a name that cannot be found is a failed outcome, a server that cannot be asked an error."""
    chosen, errors = choose(run.fleet, tenants)
    if tenants is None:
        return chosen, errors
    for name, error in errors.items():
        run.record(Outcome(name, "", "failed", False, None, None, 0.0, error))
    return chosen, {}


def choose(fleet: Fleet, tenants: Sequence[str] | None) -> tuple[list[Tenant], Errors]:
    """Choose as `Fleet.choose`, but wait while a server has no free connection."""
    patience = Patience("server", pause=FIRST_PAUSE, longest=LAST_PAUSE)
    while True:
        try:
            chosen, errors = fleet.choose(tenants)
            if not any(isinstance(error, ServerFull) for error in errors.values()) or not patience.again():
                return chosen, errors
        except ServerFull:
            if not patience.again():
                raise


@dataclass(frozen=True)
class Planned:
    """What a run would do: the plan, the versions by server and tenant, and how much is lost with them.

    *lost* counts by kind of thing, over all tenants; None where some of it was not counted.
    """

    plan: Plan
    versions: Mapping[Key, Sequence[str]]
    lost: Mapping[str, int | None]


def plan_up(fleet: Fleet, *, tenants: Sequence[str] | None, failed: bool = False) -> tuple[Planned, Errors]:
    """Return what `up` would run where, and the errors of tenants and servers."""
    chosen, errors = choose(fleet, tenants)
    targets = [t for t in chosen if (tenants is not None or behind(t)) and (t.error or not failed)]
    found = _ask(fleet, targets, errors, lambda conn: (apply.to_apply(conn, folders=fleet.folders), {}))
    return _planned(found, "migrate up", lambda file: file.up), errors


def plan_down(
    fleet: Fleet, *, tenants: Sequence[str] | None, to: str | None, steps: int | None, bundled: bool = False
) -> tuple[Planned, Errors]:
    """Return what `down` would run where, as `plan_up` does; a tenant where it cannot is among the errors.

    Raises Refused where one of the tenants would lose a bundled migration and *bundled* does not allow it.
    """

    def newest(conn: Session) -> Going:
        files = apply.to_take_back(conn, folders=fleet.folders, to=to, steps=steps, bundled=bundled)
        return files, apply.count_rows(conn, files, folders=fleet.folders)

    chosen, errors = choose(fleet, tenants)
    found = _ask(fleet, chosen, errors, newest)
    if (refused := next((error for error in errors.values() if type(error) is Refused), None)) is not None:
        raise refused
    return _planned(found, "migrate down", lambda file: file.down), errors


def _ask(
    fleet: Fleet, targets: Sequence[Tenant], errors: Errors, question: Callable[[Session], Going]
) -> list[tuple[Tenant, Going]]:
    """Put a question to each active tenant in a read-only transaction; what fails goes into *errors*."""

    def ask(conn: Session) -> Going:
        with conn.transaction(read_only=True, lock_timeout=fleet.folders.lock_timeout):
            return question(conn)

    found = []
    for tenant, answer in fleet.each([t for t in targets if t.state is State.ACTIVE], ask):
        if isinstance(answer, PosduifError):
            errors[label(tenant, errors)] = answer
        else:
            found.append((tenant, answer))
    return found


def _planned(found: Sequence[tuple[Tenant, Going]], action: str, section: Callable[[File], Section | None]) -> Planned:
    """Make a step for each migration and group of tenants with the same files, and add up what is lost."""
    groups: dict[tuple[File, ...], list[str]] = {}
    lost: dict[str, int | None] = {}
    for tenant, (files, counts) in found:
        if files:
            groups.setdefault(tuple(files), []).append(tenant.tenant)
        for what, count in counts.items():
            before = lost.get(what, 0)
            lost[what] = None if count is None or before is None else before + count
    steps = [
        Step(action, f"{file.version}_{file.name}", part.text.strip() if part else "", tuple(sorted(names)))
        for files, names in sorted(groups.items(), key=lambda group: -len(group[1]))
        for file in files
        for part in [section(file)]
    ]
    versions = {(tenant.server, tenant.tenant): [file.version for file in files] for tenant, (files, _) in found}
    return Planned(Plan(tuple(steps)), versions, lost)
