"""Rollouts: migrations over many tenants, in waves and with a brake; one tenant's failure is an outcome, not an end."""

import re
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from typing import TypeVar

from posduif_cli.core.fleet.crew import Crew
from posduif_cli.core.fleet.fleet import Fleet, Session
from posduif_cli.core.fleet.run import FIRST_PAUSE, INTERRUPTED, LAST_PAUSE, PATIENCE, Desk, failed, label, skipped
from posduif_cli.core.schema import apply, grants, history
from posduif_cli.core.schema.apply import Applied
from posduif_cli.core.schema.files import File
from posduif_cli.core.schema.history import behind
from posduif_cli.core.schema.runner import Hooks
from posduif_cli.db import record
from posduif_cli.errors import (
    Busy,
    Interrupted,
    PosduifError,
    Refused,
    ServerFull,
    ServerUnreachable,
    TenantNotFound,
    UsageError,
    WrongState,
)
from posduif_cli.models.runs import Outcome, OutcomeError, Plan, Step
from posduif_cli.models.servers import Server
from posduif_cli.models.tenants import State, Tenant

T = TypeVar("T")
Work = Callable[[Session, Hooks], Applied]
Key = tuple[str, str]  # server and tenant
DEFAULT_JOBS = 4


@dataclass(frozen=True)
class Pace:
    """How fast and how far: *jobs* at once a server, *waves* as cumulative sizes, and where to stop.

    *max_failures* is how many may fail in all or, as a percentage, in the running wave; one more ends the run at
    once. Without it nothing stops a wave, and the next one begins only if none failed. A wave in which every tenant
    that had work failed is the last one in any case.
    """

    jobs: int = DEFAULT_JOBS
    waves: tuple[str, ...] = ()
    max_failures: str | None = None
    pause: timedelta = timedelta(0)

    def check(self) -> None:
        """Raise UsageError for what can be seen to be wrong without knowing how many targets there are."""
        for text in self.waves:
            if not size(text, 100):
                raise UsageError("a wave of nobody is none", hint="--wave 1,10%,100%")
        if self.max_failures is not None:
            size(self.max_failures, 100, hint="--max-failures 5%")


Errors = dict[str, PosduifError]


def up(
    fleet: Fleet,
    *,
    tenants: Sequence[str] | None,
    failed: bool = False,
    pace: Pace = Pace(),
    on_outcome: Callable[[Outcome], None] = lambda outcome: None,
    tell: Callable[[str], None] = lambda text: None,
    on_pending: Callable[[set[str]], None] = lambda versions: None,
) -> "tuple[Rollout, Errors]":
    """Bring the named tenants, or all, to the newest schema; *failed* narrows to those that failed last.

    Of all tenants only those are visited that are behind by their record; *on_pending* is called with the versions
    that some of them are to get, before any does. Returns the run with an outcome per
    tenant, and the servers that could not be asked. A tenant that a faulty file is pending for fails.
    """
    folders = fleet.folders
    pace.check()
    run = Rollout(
        fleet,
        lambda conn, hooks: apply.up(conn, folders=folders, hooks=hooks),
        pace,
        on_outcome,
        tell,
        lambda conn: history.problem(conn, folders),
    )
    chosen, errors = _choose(run, tenants)
    chosen = [tenant for tenant in chosen if tenant.error or not failed]
    targets = [tenant for tenant in chosen if tenants is not None or behind(tenant)]
    run.leave([tenant for tenant in chosen if tenants is None and not behind(tenant)])
    waiting = [tenant.schema_version or "" for tenant in targets if tenant.state is State.ACTIVE and tenant.pending]
    if waiting:
        on_pending({version for version in folders.paths if version > min(waiting)})
    run.run(targets)
    return run, errors


def down(
    fleet: Fleet,
    *,
    tenants: Sequence[str] | None,
    to: str | None,
    steps: int | None,
    bundled: bool = False,
    planned: Mapping[Key, Sequence[str]] | None = None,
    pace: Pace = Pace(),
    on_outcome: Callable[[Outcome], None] = lambda outcome: None,
    tell: Callable[[str], None] = lambda text: None,
) -> "tuple[Rollout, Errors]":
    """Take back the newest migrations of the named tenants, or of all; see `migrations.down`.

    With *planned* nothing but the versions in it are taken back: someone else may have done so meanwhile.
    """
    folders = fleet.folders

    def work(conn: Session, hooks: Hooks) -> Applied:
        expected = None if planned is None else planned.get((conn.server.name, conn.database), ())
        return apply.down(conn, folders=folders, to=to, steps=steps, bundled=bundled, planned=expected, hooks=hooks)

    run = Rollout(
        fleet,
        work,
        pace,
        on_outcome,
        tell,
    )
    chosen, errors = _choose(run, tenants)
    run.run(chosen)
    return run, errors


def _choose(run: "Rollout", tenants: Sequence[str] | None) -> tuple[list[Tenant], Errors]:
    """Choose the targets; a name that cannot be found is a failed outcome, a server that cannot be asked an error."""
    chosen, errors = choose(run.fleet, tenants)
    if tenants is None:
        return chosen, errors
    for name, error in errors.items():
        run.fail(name, error)
    return chosen, {}


def choose(fleet: Fleet, tenants: Sequence[str] | None) -> tuple[list[Tenant], Errors]:
    """Choose as `Fleet.choose`, but wait up to PATIENCE while a server has no free connection."""
    deadline, pause = time.monotonic() + PATIENCE.total_seconds(), FIRST_PAUSE
    while True:
        try:
            chosen, errors = fleet.choose(tenants)
            if time.monotonic() > deadline or not any(isinstance(error, ServerFull) for error in errors.values()):
                return chosen, errors
        except ServerFull:
            if time.monotonic() > deadline:
                raise
        time.sleep(pause)
        pause = min(pause * 2, LAST_PAUSE)


def plan_up(fleet: Fleet, *, tenants: Sequence[str] | None, failed: bool = False) -> tuple[Plan, Errors]:
    """Say what `up` would run where: a step for each migration and group of tenants with the same plan.

    The tenants are visited in read-only transactions.
    """
    chosen, errors = choose(fleet, tenants)
    targets = [t for t in chosen if (tenants is not None or behind(t)) and (t.error or not failed)]
    found = _ask(fleet, targets, errors, lambda conn: apply.to_apply(conn, folders=fleet.folders))
    return _plan(found, "migrate up", lambda file: file.up.text), errors


@dataclass(frozen=True)
class TakingBack:
    """What `down` would do: the plan, the versions by server and tenant, and how much is lost with them.

    *lost* counts by kind of thing, over all tenants; None where some of it was not counted.
    """

    plan: Plan
    versions: Mapping[Key, Sequence[str]]
    lost: Mapping[str, int | None]


def plan_down(
    fleet: Fleet, *, tenants: Sequence[str] | None, to: str | None, steps: int | None, bundled: bool = False
) -> tuple[TakingBack, Errors]:
    """Say what `down` would run where, as `plan_up` does; a tenant where it cannot is among the errors.

    Raises Refused where one of the tenants would lose a bundled migration and *bundled* does not allow it.
    """

    def newest(conn: Session) -> tuple[list[File], dict[str, int | None]]:
        files = apply.to_take_back(conn, folders=fleet.folders, to=to, steps=steps, bundled=bundled)
        return files, apply.count_rows(conn, files, folders=fleet.folders)

    chosen, errors = choose(fleet, tenants)
    told = _ask(fleet, chosen, errors, newest)
    if (refused := next((error for error in errors.values() if type(error) is Refused), None)) is not None:
        raise refused
    found = [(tenant, files) for tenant, (files, _) in told]
    lost: dict[str, int | None] = {}
    for _, (_, counts) in told:
        for what, count in counts.items():
            before = lost.get(what, 0)
            lost[what] = None if count is None or before is None else before + count
    plan = _plan(found, "migrate down", lambda file: file.down.text if file.down else "")
    versions = {(tenant.server, tenant.tenant): [file.version for file in files] for tenant, files in found}
    return TakingBack(plan, versions, lost), errors


def _ask(
    fleet: Fleet, targets: Sequence[Tenant], errors: Errors, question: Callable[[Session], T]
) -> list[tuple[Tenant, T]]:
    """Put a question to each active tenant in a read-only transaction; what fails goes into *errors*."""

    def ask(conn: Session) -> T:
        with conn.transaction(read_only=True, lock_timeout=fleet.folders.lock_timeout):
            return question(conn)

    found = []
    for tenant, answer in fleet.each([t for t in targets if t.state is State.ACTIVE], ask):
        if isinstance(answer, PosduifError):
            errors[label(tenant, errors)] = answer
        else:
            found.append((tenant, answer))
    return found


def _plan(found: Sequence[tuple[Tenant, Sequence[File]]], action: str, text: Callable[[File], str]) -> Plan:
    """Make a step for each migration and group of tenants with the same files."""
    groups: dict[tuple[File, ...], list[str]] = {}
    for tenant, files in found:
        if files:
            groups.setdefault(tuple(files), []).append(tenant.tenant)
    steps = [
        Step(action, f"{file.version}_{file.name}", text(file).strip(), tuple(sorted(names)))
        for files, names in sorted(groups.items(), key=lambda group: -len(group[1]))
        for file in files
    ]
    return Plan(tuple(steps))


def size(text: str, total: int, hint: str = "--wave 1,10%,100%", *, down: bool = False) -> int:
    """Read a number or a share of *total*, rounded up, or *down*: `5`, `10%`. Raises UsageError.

    >>> size("10%", 25), size("10%", 25, down=True), size("3", 25)
    (3, 2, 3)
    """
    match = re.fullmatch(r"([0-9]{1,6})(%?)", text.strip())
    if match is None or (match[2] and int(match[1]) > 100):
        raise UsageError(f'"{text}" is neither a number nor a percentage', hint=hint)
    if not match[2]:
        return int(match[1])
    return (total * int(match[1]) + (0 if down else 99)) // 100


def cut(targets: Sequence[Tenant], waves: Sequence[str]) -> list[list[Tenant]]:
    """Cut the targets into waves whose cumulative sizes are given; what is left over is not reached.

    Raises UsageError unless the sizes grow.
    """
    if not waves:
        return [list(targets)]
    sizes = [min(size(text, len(targets)), len(targets)) for text in waves]
    if sizes != sorted(sizes):
        raise UsageError("the sizes of waves are cumulative and must not shrink", hint="--wave 1,10%,100%")
    return [list(targets[begin:end]) for begin, end in zip([0, *sizes], sizes, strict=False) if end > begin]


@dataclass
class Rollout:
    """One run over many tenants; *on_outcome* is called once a tenant, from the thread that worked on it."""

    fleet: Fleet
    work: Work
    pace: Pace = field(default_factory=Pace)
    on_outcome: Callable[[Outcome], None] = lambda outcome: None
    tell: Callable[[str], None] = lambda text: None
    check: Callable[[Session], str | None] = lambda conn: None
    outcomes: list[Outcome] = field(default_factory=list)
    errors: Errors = field(default_factory=dict)
    stopped_by: str = ""

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._crew = Crew()
        self._failures = 0
        self._harmless: set[grants.Effect] = set()
        self._several = False
        self._wave_of: dict[Key, int] = {}
        self._sizes: list[int] = []
        self._failed_in: Counter[int] = Counter()
        self._number = 0

    def leave(self, tenants: Sequence[Tenant]) -> None:
        """Note tenants that need nothing, by their records."""
        for t in tenants:
            version = t.schema_version
            self.outcomes.append(Outcome(t.tenant, t.server, "unchanged", False, version, version, 0.0))

    def fail(self, name: str, error: PosduifError) -> None:
        """Note a tenant that could not even be found."""
        self.errors[name] = error
        detail = OutcomeError(error.message)
        self._record(Outcome(name, "", "failed", False, None, None, 0.0, detail))

    def run(self, tenants: Sequence[Tenant]) -> None:
        """Work through the tenants; every one of them ends up in *outcomes*.

        Raises Interrupted on ctrl-C, after what was under way was cancelled and rolled back, and the error of a
        server that cannot be reached when the run begins.
        """
        targets = [tenant for tenant in tenants if tenant.state is State.ACTIVE]
        for tenant in tenants:
            if tenant.state is not State.ACTIVE:
                self._record(skipped(tenant, f"tenant {tenant.tenant} is {tenant.state}"))
        if not targets:
            return
        self._several = len(targets) > 1
        waves = cut(targets, self.pace.waves)
        self._wave_of = {_key(tenant): number for number, wave in enumerate(waves, 1) for tenant in wave}
        self._sizes = [len(wave) for wave in waves]
        with ExitStack() as stack:
            desks = self._desks(targets, stack)
            for number, wave in enumerate(waves, 1):
                with self._lock:
                    self._number = number
                    self._brake()
                if self._crew.stop.is_set():
                    break
                if len(waves) > 1:
                    self.tell(f"wave {number} of {len(waves)}: {_tenants(len(wave))}")
                self._wave(wave, desks)
                if number < len(waves) and not self._crew.stop.is_set():
                    self._between(wave, number, desks)
        reached = {(outcome.tenant, outcome.server) for outcome in self.outcomes}
        reason = self.stopped_by or "not part of any wave"
        for tenant in targets:
            if (tenant.tenant, tenant.server) not in reached:
                self._record(skipped(tenant, reason))

    def _desks(self, targets: Sequence[Tenant], stack: ExitStack) -> dict[str, Desk]:
        """Open a desk on each server; of several, one that cannot be used fails its own tenants and no others."""
        desks: dict[str, Desk] = {}
        names = list(dict.fromkeys(tenant.server for tenant in targets))
        for name in names:
            server = self.fleet.server(name)
            try:
                desk = Desk(self.fleet, server)
            except PosduifError as error:
                if len(names) == 1:
                    raise
                for tenant in (tenant for tenant in targets if tenant.server == name):
                    self._keep(tenant, error)
                    self._record(failed(tenant, error, 0.0))
            else:
                stack.callback(desk.close)
                desks[name] = desk
        return desks

    def _wave(self, wave: Sequence[Tenant], desks: dict[str, Desk]) -> None:
        # With one target there is nothing to get on with in the meantime, and it has waited long enough.
        deferred: list[Tenant] | None = [] if self._several else None
        self._fan_out(wave, desks, deferred)
        if deferred and not self._crew.stop.is_set():
            self.tell(f"trying again: {_tenants(len(deferred))} that could not be worked on")
            self._fan_out(deferred, desks, None)

    def _fan_out(self, tenants: Sequence[Tenant], desks: dict[str, Desk], deferred: list[Tenant] | None) -> None:
        tasks: list[tuple[Callable[[], None], int]] = []
        for name, desk in desks.items():
            queue = deque(tenant for tenant in tenants if tenant.server == name)
            if queue:
                tasks.append((partial(self._serve, desk, queue, deferred), min(desk.share(self.pace.jobs), len(queue))))
        try:
            self._crew.run(tasks)
        except KeyboardInterrupt:
            self.stopped_by = INTERRUPTED
            worked_on = sum(outcome.status in ("ok", "failed") for outcome in self.outcomes)
            raise Interrupted(
                f"interrupted; {_tenants(worked_on)} had been worked on",
                why="what was under way was rolled back",
                hint="run the same command again: it goes on with who is left",
            ) from None

    def _serve(self, desk: Desk, queue: "deque[Tenant]", deferred: list[Tenant] | None) -> None:
        for tenant in self._crew.take(queue):
            outcome = self._one(desk, tenant, deferred)
            if outcome is not None:
                self._record(outcome)

    def _reached(self, conn: Session, tenant: Tenant) -> tuple[str | None, bool] | None:
        """Tell where a tenant stands whose migration failed: files before it may have been applied."""
        try:
            now = record.read(conn)
        except PosduifError:
            return None
        pending = self.fleet.folders.pending(now.schema, now.applied)
        return now.schema, (now.schema, pending) != (tenant.schema_version, tenant.pending)

    def _one(self, desk: Desk, tenant: Tenant, deferred: list[Tenant] | None) -> Outcome | None:
        started = time.monotonic()
        reached: tuple[str | None, bool] | None = None
        try:
            enter = partial(self.fleet.enter, desk.server, tenant.tenant)
            with desk.enter(enter, self._crew.stop) as conn, self._crew.watch(conn):
                try:
                    done = self.work(conn, Hooks(desk.blockers, self.tell, desk.recall, self._harmless))
                except PosduifError:
                    reached = self._reached(conn, tenant)
                    raise
        except (TenantNotFound, WrongState) as error:
            return skipped(tenant, error.message)
        except Interrupted as error:
            return skipped(tenant, error.message)
        except PosduifError as error:
            if self._crew.interrupted:
                return skipped(tenant, INTERRUPTED)
            if deferred is not None and isinstance(error, Busy | ServerUnreachable) and not self._crew.stop.is_set():
                deferred.append(tenant)
                return None
            self._keep(tenant, error)
            return failed(tenant, error, time.monotonic() - started, reached)
        except Exception as error:
            bug = PosduifError(f"a bug in posduif: {type(error).__name__}", why=str(error)[:200])
            self._keep(tenant, bug)
            return failed(tenant, bug, time.monotonic() - started)
        changed = bool(done.versions)
        seconds = round(time.monotonic() - started, 3)
        state = "ok" if changed else "unchanged"
        return Outcome(tenant.tenant, tenant.server, state, changed, done.before, done.after, seconds)

    def _keep(self, tenant: Tenant, error: PosduifError) -> None:
        with self._lock:
            self.errors[label(tenant, self.errors)] = error

    def _record(self, outcome: Outcome) -> None:
        with self._lock:
            self.outcomes.append(outcome)
            if outcome.status == "failed":
                self._failures += 1
                self._failed_in[self._wave_of.get((outcome.server, outcome.tenant), 0)] += 1
                self._brake()
            self.on_outcome(outcome)

    def _brake(self) -> None:
        """End the run once more tenants failed than --max-failures allows: in all, or of the running wave."""
        text = self.pace.max_failures
        if text is None or self._crew.stop.is_set():
            return
        if not text.strip().endswith("%"):
            beyond = self._failures > size(text, 0)
        elif self._number:
            allowed = size(text, self._sizes[self._number - 1], down=True)
            beyond = self._failed_in[self._number] > allowed
        else:
            beyond = False
        if beyond:
            self._stop(f"more failed than --max-failures {text} allows")

    def _stop(self, reason: str) -> None:
        self.stopped_by = f"not reached: {reason}"
        self._crew.stop.set()

    def _between(self, wave: Sequence[Tenant], number: int, desks: dict[str, Desk]) -> None:
        """Verify a wave, and stop before the next one if anything is wrong with it; else pause."""
        worked = {(o.server, o.tenant) for o in self.outcomes if o.status == "ok"}
        verified = [tenant for tenant in wave if _key(tenant) in worked]
        if self._failures and self.pace.max_failures is None:
            return self._stop(f"{self._failures} failed in wave {number}")
        if self._failed_in[number] and not verified:
            return self._stop(f"every tenant of wave {number} that had work failed")
        jobs = min([self.pace.jobs, *(desk.workers for desk in desks.values())])

        def enter(server: Server, name: str) -> Session:
            return desks[server.name].enter(lambda: self.fleet.enter(server, name), self._crew.stop)

        for tenant, found in self.fleet.each(verified, self.check, jobs=jobs, enter=enter):
            wrong = found.message if isinstance(found, PosduifError) else found
            if wrong:
                return self._stop(f"wave {number} did not verify: {tenant.tenant}: {wrong}")
        self._crew.stop.wait(self.pace.pause.total_seconds())


def _key(tenant: Tenant) -> Key:
    return tenant.server, tenant.tenant


def _tenants(number: int) -> str:
    return f"{number} tenant{'' if number == 1 else 's'}"
