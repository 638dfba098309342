"""A run over many tenants: a share of each server, who blocks, outcomes, and what caused failures."""

import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import TypeVar

from posduif_cli.core.fleet.fleet import Fleet, Session
from posduif_cli.db import admin, queries, record
from posduif_cli.errors import (
    MigrationFailed,
    PosduifError,
    ServerUnreachable,
)
from posduif_cli.models.runs import Outcome, OutcomeError
from posduif_cli.models.servers import Server
from posduif_cli.models.tenants import Tenant

PATIENCE = timedelta(seconds=30)  # how long a lock, or a server that is full or away, is waited for

T = TypeVar("T")
SPARE_CONNECTIONS = 3
INTERRUPTED = "interrupted"
FIRST_PAUSE, LAST_PAUSE = 0.25, 5.0  # seconds between two tries


def who_is(pid: int, *known: str | None) -> str:
    """Name a session by its pid and what is known of it.

    >>> who_is(7, "postgres", None, "idle in transaction")
    'pid 7 (postgres, idle in transaction)'
    """
    return f"pid {pid} ({', '.join(filter(None, known))})"


class Desk:
    """One server during a rollout: its share of connections, and a session of its own to look at blockers from.

    With a share of one connection that session is there only between two waves.
    """

    def __init__(self, fleet: Fleet, server: Server) -> None:
        self.fleet = fleet
        self.server = server
        self.lock = threading.Lock()
        self.session: Session | None = None
        self.missed: float | None = None
        self.enter(lambda: self._ask(_free), threading.Event())

    def _ask(self, question: Callable[[Session], T]) -> T:
        with self.lock:
            try:
                if self.session is None:
                    self.session = self.fleet.maintenance(self.server)
                    admin.ensure_roles(self.session)  # grants.sql gives nothing to a group that is not there yet
                    # It only reads, and the login may see more of other people's sessions.
                    # Whoever waits for it holds up the whole run, and can ask elsewhere.
                    self.session.script("SET ROLE none; SET lock_timeout = '2s'; SET statement_timeout = '5s'")
                return question(self.session)
            except PosduifError:
                self._close()
                raise

    def _close(self) -> None:
        if self.session is not None:
            self.session.close()
            self.session = None

    def close(self) -> None:
        """End the session, or leave it to the process's end where a thread hangs in it."""
        if self.lock.acquire(timeout=1):
            try:
                self._close()
            finally:
                self.lock.release()

    @property
    def workers(self) -> int:
        """How many tenants may be worked on at once beside this session."""
        return max(1, self.server.max_connections - 1)

    def share(self, jobs: int) -> int:
        """How many tenants to work on at once: never beyond the configured share or the free connections."""
        try:
            free = self._ask(_free)
        except ServerUnreachable:
            free = 0
        if self.server.max_connections == 1:
            self.close()
        return max(1, min(jobs, self.workers, free - SPARE_CONNECTIONS))

    def enter(self, door: Callable[[], T], stop: threading.Event) -> T:
        """Connect by *door*, trying again while the server is full or away, until PATIENCE is over for all.

        The server is waited for once, not once a tenant. Raises ServerUnreachable.
        """
        pause = FIRST_PAUSE
        while True:
            try:
                found = door()
            except ServerUnreachable:
                with self.lock:
                    self.missed = self.missed or time.monotonic()
                    waited = time.monotonic() - self.missed
                patience = PATIENCE.total_seconds()
                if stop.is_set() or waited + pause > patience:
                    raise
                stop.wait(pause)
                pause = min(pause * 2, LAST_PAUSE)
            else:
                with self.lock:
                    self.missed = None
                return found

    @property
    def recall(self) -> Callable[[Session], record.Record] | None:
        """What reads a tenant's record from this session, which has looked into the shared catalogs before."""
        return self._recall if self.server.max_connections > 1 else None

    def _recall(self, conn: Session) -> record.Record:
        try:
            found = self._ask(lambda session: session.tuples(record.QUESTION, database=conn.database))
        except PosduifError:
            return record.read(conn)
        return record.judge(conn.database, found)

    def blockers(self, pid: int) -> tuple[str, ...]:
        """Say who blocks the session *pid* at this moment."""
        if self.server.max_connections == 1:
            return ()
        try:
            rows = self._ask(lambda session: session.tuples(queries.load("fleet/run")["find_blockers"], pid=pid))
        except PosduifError:
            return ()
        return tuple(who_is(*row) for row in rows)


def _free(session: Session) -> int:
    """Return how many further connections an ordinary role gets on the server."""
    found = session.dicts(queries.load("fleet/fleet")["measure_connections"])[0]
    return int(found["allowed"] - found["used"])


def skipped(tenant: Tenant, reason: str) -> Outcome:
    """Make the outcome of a tenant that was not touched."""
    version = tenant.schema_version
    return Outcome(tenant.tenant, tenant.server, "skipped", False, version, version, 0.0, OutcomeError(reason))


def failed(
    tenant: Tenant, error: PosduifError, seconds: float, reached: tuple[str | None, bool] | None = None
) -> Outcome:
    """Make the outcome of a tenant that failed; *reached* is its version by then and whether that is a change."""
    known = error if isinstance(error, MigrationFailed) else None
    detail = OutcomeError(
        error.message if known else error.sentence,  # why a migration failed has fields of its own
        known.sqlstate if known else None,
        known.file if known else None,
        known.line if known else None,
        known.excerpt if known else None,
    )
    version, changed = reached or (tenant.schema_version, False)
    before = tenant.schema_version
    return Outcome(tenant.tenant, tenant.server, "failed", changed, before, version, round(seconds, 3), detail)


def label(tenant: Tenant, errors: Mapping[str, object]) -> str:
    """Name a tenant among *errors* by tenant, which another server may have one of the same name for."""
    return tenant.tenant if tenant.tenant not in errors else f"{tenant.tenant} on server {tenant.server}"


def causes(outcomes: Sequence[Outcome]) -> list[tuple[str, list[str]]]:
    """Group the failed outcomes by cause, the most frequent first: the cause, and the tenants."""
    groups: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        if outcome.status in ("failed", "differs") and outcome.error is not None:
            error = outcome.error
            groups.setdefault(f"{error.sqlstate} {error.file} {_cause(outcome)}", []).append(outcome)
    found = []
    for group in groups.values():
        first = group[0].error
        assert first is not None
        cause = first.message
        alike = {(outcome.error.line, outcome.error.statement) for outcome in group if outcome.error}
        if len(alike) > 1:
            cause = cause.replace(f"{first.file}:{first.line}", first.file or "")
        if len(group) > 1:
            cause = re.sub(rf" (?:in|to|of)(?: database)? {re.escape(group[0].tenant)}(?!\w)", "", cause)
        cause += f" (SQLSTATE {first.sqlstate})" if first.sqlstate else ""
        cause += f" [{first.statement}]" if first.statement and len(alike) == 1 else ""
        found.append((cause, sorted(outcome.tenant for outcome in group)))
    return sorted(found, key=lambda group: (-len(group[1]), group[0]))


def _cause(outcome: Outcome) -> str:
    """Return an outcome's error without what differs from tenant to tenant: its name, and the line of the file."""
    assert outcome.error is not None
    message = re.sub(rf"(?<!\w){re.escape(outcome.tenant)}(?!\w)", "", outcome.error.message)
    return message.replace(f"{outcome.error.file}:{outcome.error.line}", outcome.error.file or "")


def tally(outcomes: Sequence[Outcome]) -> Counter[str]:
    """Count the outcomes by status."""
    return Counter(outcome.status for outcome in outcomes)
