"""A run over many tenants: its waves and its brake, an outcome per tenant, and the causes of failures."""

import re
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import partial
from typing import TypeVar

from posduif_cli.core.fleet.crew import INTERRUPTED, Crew, Share
from posduif_cli.core.fleet.fleet import Errors, Fleet
from posduif_cli.core.folders import Folders
from posduif_cli.db import admin, queries, record
from posduif_cli.db.session import Session
from posduif_cli.errors import (
    Busy,
    Interrupted,
    MigrationFailed,
    PosduifError,
    ServerUnreachable,
    TenantNotFound,
    UsageError,
    WrongState,
)
from posduif_cli.models.runs import Outcome, reason
from posduif_cli.models.servers import Server
from posduif_cli.models.tenants import State, Tenant
from posduif_cli.notation import counted

T = TypeVar("T")
DEFAULT_JOBS = 4
SPARE_CONNECTIONS = 3  # of a server, which a run leaves to others
OWN_TIMEOUTS = "SET ROLE none; SET lock_timeout = '2s'; SET statement_timeout = '5s'"


def who_is(pid: int, *known: str | None) -> str:
    """Return a session's pid with what is known of it.

    >>> who_is(7, "postgres", None, "idle in transaction")
    'pid 7 (postgres, idle in transaction)'
    """
    return f"pid {pid} ({', '.join(filter(None, known))})"


@dataclass(frozen=True)
class Pace:
    """How fast and how far a run goes: *jobs* at once per server, *waves* as cumulative sizes, and where it stops.

    *max_failures* is how many may fail in all or, as a percentage, in the running wave; one more ends the run at
    once. Without it nothing stops a wave, and the next one begins only if none failed. A wave in which every tenant
    that had work failed is the last one in any case.
    """

    jobs: int = DEFAULT_JOBS
    waves: tuple[str, ...] = ()
    max_failures: str | None = None
    pause: timedelta = timedelta(0)

    def check(self) -> None:
        """Raise UsageError for what is wrong however many tenants there are."""
        for text in self.waves:
            if not size(text, 100):
                raise UsageError("a wave must contain at least one tenant", hint="--wave 1,10%,100%")
        if self.max_failures is not None:
            size(self.max_failures, 100, hint="--max-failures 5%")


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
    """Return the targets in waves of cumulative sizes, as far as these reach; raises UsageError where they shrink."""
    if not waves:
        return [list(targets)]
    sizes = [min(size(text, len(targets)), len(targets)) for text in waves]
    if sizes != sorted(sizes):
        raise UsageError("the sizes of waves are cumulative and must not shrink", hint="--wave 1,10%,100%")
    return [list(targets[begin:end]) for begin, end in zip([0, *sizes], sizes, strict=False) if end > begin]


class Lookout:
    """A session of the run on one server: it counts free connections, reads records, and finds who blocks.

    With a share of one connection it is open only while no tenant is worked on.
    """

    def __init__(self, fleet: Fleet, server: Server) -> None:
        self._fleet, self._server = fleet, server
        self._lock = threading.Lock()
        self._session: Session | None = None

    def open(self) -> None:
        """Begin the session. Raises what the server says."""
        self.ask(lambda session: None)

    def ask(self, question: Callable[[Session], T]) -> T:
        """Put a question on the server, by a new session where there is none. Raises what the server says."""
        with self._lock:
            try:
                if self._session is None:
                    self._session = self._fleet.maintenance(self._server)
                    admin.ensure_roles(self._session)  # grants.sql gives nothing to a group that is not there yet
                    # It only reads, and the login may see more of other people's sessions. A question that waited
                    # would hold up the whole run, and can be asked elsewhere.
                    self._session.script(OWN_TIMEOUTS)
                return question(self._session)
            except PosduifError:
                self._end()
                raise

    def _end(self) -> None:
        if self._session is not None:
            self._session.close()
            self._session = None

    def close(self) -> None:
        """End the session, or leave it to the process's end where a thread hangs in it."""
        if self._lock.acquire(timeout=1):
            try:
                self._end()
            finally:
                self._lock.release()

    def workers(self, jobs: int) -> int:
        """Return how many tenants to work on at once: within *jobs*, the configured share and the free connections."""
        try:
            free = self.ask(free_connections)
        except ServerUnreachable:
            free = 0
        if self._server.max_connections == 1:
            self.close()
        return max(1, min(jobs, self._server.max_connections - 1, free - SPARE_CONNECTIONS))

    @property
    def recall(self) -> Callable[[Session], record.Record] | None:
        """What reads a tenant's record from this session, which has looked into the shared catalogs before."""
        return self._recall if self._server.max_connections > 1 else None

    def _recall(self, conn: Session) -> record.Record:
        try:
            found = self.ask(lambda session: session.tuples(record.QUESTION, database=conn.database))
        except PosduifError:
            return record.read(conn)
        return record.judge(conn.database, found)

    def blockers(self, pid: int) -> tuple[str, ...]:
        """Return who blocks the session *pid* at this moment, in words; nothing where that cannot be asked."""
        if self._server.max_connections == 1:
            return ()
        try:
            rows = self.ask(lambda session: session.tuples(queries.load("fleet/run")["find_blockers"], pid=pid))
        except PosduifError:
            return ()
        return tuple(who_is(*row) for row in rows)


def free_connections(session: Session) -> int:
    """Return how many further connections an ordinary role gets on the server."""
    found = session.dicts(queries.load("fleet/fleet")["measure_connections"])[0]
    return int(found["allowed"] - found["used"])


# Returns the version before, the version after, and what of the work was done; with nothing done all is unchanged.
Work = Callable[[Session, Lookout], tuple[str | None, str | None, Sequence[str]]]


class Run:
    """Work on many tenants, several at once per server; the failure of one is its outcome and ends nothing else.

    *on_outcome* is called once per tenant, from the thread that worked on it, *tell* with remarks. *stopped_by* is why
    the run ended early, if it did.
    """

    def __init__(
        self,
        fleet: Fleet,
        pace: Pace = Pace(),
        *,
        on_outcome: Callable[[Outcome], None] = lambda outcome: None,
        tell: Callable[[str], None] = lambda text: None,
    ) -> None:
        pace.check()
        self.fleet, self.pace, self.on_outcome, self.tell = fleet, pace, on_outcome, tell
        self.crew = Crew()
        self.outcomes: list[Outcome] = []
        self.stopped_by = ""
        self._lock = threading.Lock()
        self._failures = 0
        self._failed_here = 0  # in the running wave, which has so many tenants:
        self._size = 0
        self._lookouts: dict[str, Lookout] = {}
        self._shares: dict[str, Share] = {}
        self._refused: Errors = {}  # by server: why none of its tenants can be worked on

    def record(self, outcome: Outcome) -> None:
        """Note the outcome of a tenant, and end the run where it is one failure too many."""
        with self._lock:
            self.outcomes.append(outcome)
            if outcome.status == "failed":
                self._failures += 1
                self._failed_here += 1
                self._brake()
            self.on_outcome(outcome)

    def skip(self, tenant: Tenant, why: str) -> None:
        """Note that a tenant was not touched."""
        self.record(untouched(tenant, "skipped", PosduifError(why)))

    def work_on(self, tenants: Sequence[Tenant], work: Work, check: Callable[[Session], str | None]) -> None:
        """Do *work* in each active tenant, wave by wave; afterwards each of *tenants* is in *outcomes*.

        *check* returns what is wrong with a tenant that *work* changed, or None; no wave follows one with a fault.
        Raises Interrupted on ctrl-C, after what was under way was cancelled and rolled back, and the error of the
        only server if that cannot be used when the run begins.
        """
        targets = [tenant for tenant in tenants if tenant.state is State.ACTIVE]
        for tenant in tenants:
            if tenant.state is not State.ACTIVE:
                self.skip(tenant, f"tenant {tenant.tenant} is {tenant.state}")
        if not targets:
            return
        waves = cut(targets, self.pace.waves)
        with ExitStack() as stack:
            try:
                self._open(targets, stack)
                for number, wave in enumerate(waves, 1):
                    if self.crew.stop.is_set():
                        break
                    if len(waves) > 1:
                        self.tell(f"wave {number} of {len(waves)}: {counted(len(wave), 'tenant')}")
                    self._wave(wave, work, again=len(targets) > 1)
                    if number < len(waves) and not self.crew.stop.is_set():
                        self._between(wave, number, check)
            except KeyboardInterrupt:
                self.stopped_by = INTERRUPTED
                worked_on = sum(outcome.status in ("ok", "failed") for outcome in self.outcomes)
                raise Interrupted(
                    f"interrupted; {counted(worked_on, 'tenant')} had been worked on",
                    why="what was under way was rolled back",
                    hint="run the same command again: it goes on with the tenants that are left",
                ) from None
        reached = {(outcome.tenant, outcome.server) for outcome in self.outcomes}
        for tenant in targets:
            if (tenant.tenant, tenant.server) not in reached:
                self.skip(tenant, self.stopped_by or "not part of any wave")

    def _open(self, targets: Sequence[Tenant], stack: ExitStack) -> None:
        """Open a lookout on each server; of several, one that cannot be used fails its own tenants and no others."""
        names = list(dict.fromkeys(tenant.server for tenant in targets))
        for name in names:
            self._lookouts[name] = lookout = Lookout(self.fleet, self.fleet.server(name))
            self._shares[name] = share = Share(self.crew.stop, awaits=ServerUnreachable)
            stack.callback(lookout.close)
            try:
                share.connect(lookout.open)
            except PosduifError as error:
                if len(names) == 1:
                    raise
                self._refused[name] = error

    def _wave(self, wave: Sequence[Tenant], work: Work, *, again: bool) -> None:
        """Work on the tenants of a wave; *again* tries once more, at its end, those that were locked or away.

        With one target there is nothing to go on with in the meantime, and it has been waited for long enough.
        """
        self._size, self._failed_here = len(wave), 0
        later: list[Tenant] = []
        self._pass(wave, work, later if again else None)
        if later and not self.crew.stop.is_set():
            self.tell(f"trying again: {counted(len(later), 'tenant')} that could not be worked on")
            self._pass(later, work, None)

    def _pass(self, tenants: Sequence[Tenant], work: Work, later: list[Tenant] | None) -> None:
        """Work on some tenants; those to try again are put into *later*, where there is one."""
        known = {(tenant.server, tenant.tenant): tenant for tenant in tenants}

        def one(conn: Session) -> Outcome:
            tenant = known[conn.server.name, conn.database]
            try:
                before, after, done = work(conn, self._lookouts[tenant.server])
            except PosduifError as error:
                version, changed = self._reached(conn, tenant)
                return replace(untouched(tenant, "failed", error), to=version, changed=changed)
            status = "ok" if done else "unchanged"
            return Outcome(tenant.tenant, tenant.server, status, bool(done), before, after, 0.0)

        def note(tenant: Tenant, found: Outcome | PosduifError, seconds: float) -> None:
            outcome = untouched(tenant, "failed", found) if isinstance(found, PosduifError) else found
            error = outcome.error
            if error and (self.crew.interrupted or isinstance(error, Interrupted)):
                self.skip(tenant, self.stopped_by or INTERRUPTED)
            elif isinstance(error, TenantNotFound | WrongState):
                self.skip(tenant, error.message)
            elif later is not None and isinstance(error, Busy | ServerUnreachable) and not self.crew.stop.is_set():
                later.append(tenant)
            else:
                self.record(replace(outcome, seconds=seconds))

        self.fleet.each(tenants, one, jobs=self._renew(tenants), enter=self._enter, crew=self.crew, done=note)

    def _renew(self, tenants: Sequence[Tenant]) -> dict[str, int]:
        """Let servers be tried again that were given up; return how many tenants to work on at once on each."""
        for share in self._shares.values():
            share.renew()
        return {
            name: 1 if name in self._refused else self._lookouts[name].workers(self.pace.jobs)
            for name in dict.fromkeys(tenant.server for tenant in tenants)
        }

    def _enter(self, server: Server, name: str) -> Session:
        if server.name in self._refused:
            raise self._refused[server.name].with_traceback(None)
        return self._shares[server.name].connect(partial(self.fleet.enter, server, name))

    def _reached(self, conn: Session, tenant: Tenant) -> tuple[str | None, bool]:
        """Return the version of a tenant whose work failed, and whether it changed: earlier files may be applied."""
        try:
            now = record.read(conn)
        except PosduifError:
            return tenant.schema_version, False
        pending = self.fleet.folders.pending(now.schema, now.applied)
        return now.schema, (now.schema, pending) != (tenant.schema_version, tenant.pending)

    def _between(self, wave: Sequence[Tenant], number: int, check: Callable[[Session], str | None]) -> None:
        """Check a wave, and stop before the next one if anything is wrong with it; else pause."""
        worked = {(outcome.server, outcome.tenant) for outcome in self.outcomes if outcome.status == "ok"}
        changed = [tenant for tenant in wave if (tenant.server, tenant.tenant) in worked]
        if self._failures and self.pace.max_failures is None:
            return self._stop(f"{self._failures} failed in wave {number}")
        if self._failed_here and not changed:
            return self._stop(f"every tenant of wave {number} that had work failed")
        jobs = self._renew(changed)
        for tenant, found in self.fleet.each(changed, check, jobs=jobs, enter=self._enter, crew=self.crew):
            if wrong := found.message if isinstance(found, PosduifError) else found:
                return self._stop(f"wave {number} did not verify: {tenant.tenant}: {wrong}")
        self.crew.stop.wait(self.pace.pause.total_seconds())

    def _brake(self) -> None:
        """End the run once more tenants failed than --max-failures allows: in all, or of the running wave."""
        text = self.pace.max_failures
        if text is None or self.crew.stop.is_set():
            return
        share = text.strip().endswith("%")
        failed = self._failed_here if share else self._failures
        if (self._size or not share) and failed > size(text, self._size, down=True):
            self._stop(f"more failed than --max-failures {text} allows")

    def _stop(self, why: str) -> None:
        self.stopped_by = f"not reached: {why}"
        self.crew.stop.set()


def untouched(tenant: Tenant, status: str, error: PosduifError | None = None) -> Outcome:
    """Return the outcome of a tenant that has the version that it had."""
    version = tenant.schema_version
    return Outcome(tenant.tenant, tenant.server, status, False, version, version, 0.0, error)


def label(tenant: Tenant, errors: Mapping[str, object]) -> str:
    """Return a key for a tenant in *errors*: its name, with the server where another tenant's name is the same."""
    return tenant.tenant if tenant.tenant not in errors else f"{tenant.tenant} on server {tenant.server}"


def causes(failed: Iterable[tuple[str, PosduifError]]) -> list[tuple[str, list[str]]]:
    """Return (cause, names of its tenants) for errors by tenant, the most frequent cause first."""
    groups: dict[str, list[tuple[str, PosduifError]]] = {}
    for name, error in failed:
        groups.setdefault(_cause(name, error), []).append((name, error))
    found = [(_told(group), sorted(name for name, _ in group)) for group in groups.values()]
    return sorted(found, key=lambda group: (-len(group[1]), group[0]))


def _cause(name: str, error: PosduifError) -> str:
    """Return an error without what differs from tenant to tenant: its name, and the line of the file."""
    message = re.sub(rf"(?<!\w){re.escape(name)}(?!\w)", "", reason(error))
    failed = _migration(error)
    return f"{failed.sqlstate} {message.replace(f'{failed.file}:{failed.line}', failed.file or '')}"


def _told(group: Sequence[tuple[str, PosduifError]]) -> str:
    """Return the cause that all of a group share in words, with the statement where it is one."""
    name, error = group[0]
    first, cause = _migration(error), reason(error)
    alike = len({(failed.line, failed.excerpt) for failed in (_migration(error) for _, error in group)}) == 1
    if not alike:
        cause = cause.replace(f"{first.file}:{first.line}", first.file or "")
    if len(group) > 1:
        cause = re.sub(rf",? (?:in |to |of )?(?:database )?{re.escape(name)}(?!\w)", "", cause)
    cause += f" (SQLSTATE {first.sqlstate})" if first.sqlstate else ""
    return cause + (f" [{first.excerpt}]" if first.excerpt and alike else "")


def _migration(error: PosduifError | None) -> MigrationFailed:
    """Return an error that is a failed migration; an empty one in the place of any other."""
    return error if isinstance(error, MigrationFailed) else MigrationFailed("")


def kept_files(outcomes: Sequence[Outcome], folders: Folders) -> list[str]:
    """Return the migration files that failed in some tenants and are applied in others: they are history."""
    reached = max((o.to or "" for o in outcomes if o.status in ("ok", "unchanged")), default="")
    failed = {_migration(outcome.error).file for outcome in outcomes if outcome.status == "failed"}
    return sorted(path.name for version, path in folders.paths.items() if path.name in failed and version <= reached)
