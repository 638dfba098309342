"""One connection to one database: its settings and limits, its lock, and PostgreSQL's errors made ours."""

import logging
import math
import time
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property
from itertools import accumulate
from typing import Any, ClassVar, LiteralString, TypeVar, cast

import psycopg
from psycopg import generators, sql, waiting
from psycopg.abc import Buffer, PQGen
from psycopg.pq import ExecStatus, TransactionStatus
from psycopg.pq.abc import PGresult
from psycopg.rows import args_row, class_row, dict_row

from posduif_cli.db.quoting import Query, compose, literal, quoted
from posduif_cli.errors import (
    AccessDenied,
    Blocked,
    Busy,
    Interrupted,
    PlantedRole,
    PoolerInBetween,
    PosduifError,
    QueryFailed,
    Run,
    SchemaBehind,
    ServerUnreachable,
    StandbyServer,
)
from posduif_cli.models.servers import Server

T = TypeVar("T")
Row = tuple[str | None, ...]
ADMIN_ROLE = "posduif_admin"
LOCK_TIMEOUT = timedelta(seconds=10)  # how long a statement waits for a lock
STATEMENT_TIMEOUT = timedelta(minutes=5)  # how long a statement of a command may take
QUESTION_TIMEOUT = timedelta(seconds=10)  # how long a server may take to answer what the whole fleet is asked
SILENCE = 5.0  # seconds beyond the server's own limits after which we no longer wait for it
LETTING_GO = 0.4  # seconds that a cancelled statement has to end, before its connection is given up
CLEARING_UP = 2.0  # seconds that a server has for each step of what is cleared up after ctrl-C
INTERRUPTED = 20.0  # seconds for which that holds
_BETWEEN = "\n;\n"  # on a line of its own: a statement may end in a comment
LOCK_CLASS = 0x706F7364  # "posd": one lock space of our own beside the server's other advisory locks
DESK_CLASS = 0x706F6473  # "pods": locks of the desk, which a command on the tenant never ends
# psycopg tells of failed cancellations there, on stderr, which belongs to our own messages.
logging.getLogger("psycopg").setLevel(logging.CRITICAL)
# One round trip, and as few looks into catalogs as can be: a new session's first look into each is dear.
# The role is not taken on behind a pooler, which would keep it for other people's sessions.
SETUP: LiteralString = """
SELECT pg_backend_pid(), pg_is_in_recovery(),
       CASE WHEN pg_backend_pid() <> {pid} OR to_regrole({role}) IS NULL THEN NULL
            WHEN pg_has_role(session_user, to_regrole({role})::oid, {privilege})
            THEN set_config('role', {role}, false) = {role} AND set_config('row_security', 'off', false) = 'off'
            ELSE false END,
       pg_has_role(session_user, to_regrole({role})::oid, 'USAGE'),
       (SELECT rolsuper FROM pg_roles WHERE rolname = session_user)
"""
# A role with ADMIN OPTION could make any role a member, and so own the code that a superuser's session runs. The row of
# NULLs: the first superuser makes the maker of a role a member of it; without such a grant the maker has been dropped.
# On PostgreSQL 15 CREATEROLE may grant itself every role anyway, so that there nothing can be concluded.
PLANTED: LiteralString = """
SELECT m.roleid::regrole::text, array_agg(DISTINCT h.rolname::text)
FROM pg_auth_members m JOIN pg_roles h ON h.oid = m.member
WHERE m.admin_option AND m.roleid IN (to_regrole('posduif_admin'), to_regrole('posduif_engine'))
  AND NOT h.rolsuper AND h.rolname <> 'posduif_admin'
GROUP BY 1
UNION ALL
SELECT NULL, NULL
WHERE to_regrole('posduif_admin') IS NOT NULL
  AND NOT EXISTS (SELECT FROM pg_auth_members m JOIN pg_roles g ON g.oid = m.grantor
                  WHERE m.roleid = to_regrole('posduif_admin') AND g.rolsuper)
ORDER BY 1 NULLS LAST
"""
MEMBERS: LiteralString = """
SELECT DISTINCT h.rolname::text FROM pg_auth_members m JOIN pg_roles h ON h.oid = m.member
WHERE m.roleid = to_regrole(%(role)s) AND m.set_option AND NOT h.rolsuper AND h.rolname <> 'posduif_admin' ORDER BY 1
"""
# Who holds what keeps others from a table of this database, or has changed rows in it or in the shared catalogs and
# not ended yet.
BLOCKERS: LiteralString = """
SELECT a.pid, coalesce(a.usename, '')::text, coalesce(a.application_name, ''),
       coalesce(', on ' || string_agg(DISTINCT l.relation::regclass::text, ' and '), '')
FROM pg_locks l JOIN pg_stat_activity a USING (pid)
WHERE l.granted AND a.pid <> pg_backend_pid()
  AND (l.locktype = 'relation' AND l.database = 0 AND l.mode NOT IN ('AccessShareLock', 'RowShareLock')
       OR a.datname = current_database()
          AND (l.locktype = 'transactionid' OR l.locktype = 'relation' AND l.relation >= 16384
               AND l.mode IN ('ShareLock', 'ShareRowExclusiveLock', 'ExclusiveLock', 'AccessExclusiveLock')))
GROUP BY 1, 2, 3 ORDER BY count(l.relation) DESC, 1
"""
# The sessions that hold or want an advisory lock of ours: engines' have no business there. posduif may end these.
_TOUCHING: LiteralString = """
FROM pg_locks l JOIN pg_stat_activity a USING (pid)
WHERE l.locktype = 'advisory' AND l.objsubid = 2 AND l.classid = %(class)s
  AND l.objid::bigint = hashtext(%(subject)s)::bigint & 4294967295
  AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())"""
HOLDERS: LiteralString = f"""
SELECT a.pid, a.application_name, a.usename,
       coalesce(', for ' || date_trunc('second', clock_timestamp() - a.backend_start)::text, '')
{_TOUCHING} AND l.granted"""
PREPARED: LiteralString = "SELECT gid, owner::text FROM pg_prepared_xacts WHERE database = current_database()"
END_ENGINES: LiteralString = f"""
WITH found AS MATERIALIZED ( -- or others' sessions might be ended before they are told apart
    SELECT pid, usename FROM pg_stat_activity
    WHERE datname = current_database() AND usename ~ '_engine$' AND pg_has_role(usesysid, 'USAGE')
      AND usesysid IN (SELECT a.usesysid {_TOUCHING})
)
SELECT string_agg('pid ' || pid || ' of ' || usename, ', ') FROM found WHERE pg_terminate_backend(pid)"""  # noqa: S608 -- put together from constants
SETTINGS: Mapping[str, str] = {
    "quote_all_identifiers": "off",  # first: it would quote the next
    "search_path": "pg_catalog",  # in a tenant's database `public`
    "TimeZone": "UTC",
    "default_transaction_read_only": "off",
    # What is asked in the message that takes a lock must not be answered from before the lock.
    "default_transaction_isolation": "read committed",
    "idle_session_timeout": "0",
    "idle_in_transaction_session_timeout": "0",
    "lock_timeout": f"{LOCK_TIMEOUT.seconds}s",
    "statement_timeout": f"{STATEMENT_TIMEOUT.seconds}s",
    # How values and names are written and read.
    "DateStyle": "ISO",
    "IntervalStyle": "postgres",
    "standard_conforming_strings": "on",
}
# For administrators alone: a policy must fail a query of theirs, not hide rows of the version table from it.
AS_ADMIN: Mapping[str, str] = {"row_security": "off"}
# Not offered on every operating system; without it an orphaned backend only lives longer.
WATCHFUL: Mapping[str, str] = {**SETTINGS, "client_connection_check_interval": "500"}


class _Text(psycopg.adapt.Loader):
    """Reads text whose bytes need not be UTF-8: comments keep the encoding of the database they were made in."""

    def load(self, data: Buffer) -> str:
        return str(data, "utf-8", "replace")


class _Instant(psycopg.adapt.Loader):
    """Reads a time, or leaves it as PostgreSQL's text where Python has none such: infinity, BC, beyond 9999."""

    def load(self, data: Buffer) -> datetime | str:
        text = str(data, "ascii")
        try:
            return datetime.fromisoformat(text).astimezone(UTC)
        except (OverflowError, ValueError):
            return text.replace("+00", "")


class _Reading:
    """How every session reads: psycopg's own way, but for text and for times."""

    adapters = psycopg.adapt.AdaptersMap(psycopg.adapters)
    connection = None


READING = _Reading()
_Reading.adapters.register_loader("text", _Text)
_Reading.adapters.register_loader("timestamptz", _Instant)


class Connection(psycopg.Connection[Any]):
    """A connection that waits for its server no longer than *limit* seconds, and for what was cancelled a moment.

    *limit* is None where an end is not known beforehand; *let_go* is when a cancelled statement is given up.
    """

    limit: float | None = None
    let_go: float | None = None
    interrupted_at: ClassVar[float] = -math.inf  # of any connection: what is cleared up then is often on another

    def wait(self, gen: PQGen[T], interval: float = 0.1, timeout: float | None = None) -> T:
        """Wait as psycopg does; the connection is closed, and OperationalError raised, once the time is over."""
        try:
            return waiting.wait(self._watched(gen), self.pgconn.socket, interval=interval)
        except KeyboardInterrupt:
            Connection.interrupted_at = time.monotonic()
            if self.info.transaction_status is TransactionStatus.ACTIVE:
                self.cancel_soon()
                with suppress(psycopg.Error):
                    waiting.wait(self._watched(gen, begun=True), self.pgconn.socket, interval=interval)
                if self.info.transaction_status is TransactionStatus.ACTIVE:
                    self.pgconn.finish()
            raise

    def cancel_soon(self) -> None:
        """Ask the server to cancel what it does, and wait for it a moment only."""
        self.let_go = self.let_go or time.monotonic() + LETTING_GO
        with suppress(psycopg.Error, OSError):
            self.cancel_safe(timeout=LETTING_GO)

    def _watched(self, gen: PQGen[T], *, begun: bool = False) -> PQGen[T]:
        started = time.monotonic()
        ready: int | None = waiting.Ready.NONE if begun else None
        try:
            while True:
                # At every step: a server that sends notices without end never lets the wait run out.
                ready = yield gen.send(cast(waiting.Ready, ready))
                self._require_time(time.monotonic(), started)
        except StopIteration as end:
            return cast(T, end.value)

    def _require_time(self, now: float, started: float) -> None:
        if self.limit is not None and now - started > self.limit:
            self.pgconn.finish()
            raise psycopg.OperationalError(f"the server has said nothing for {now - started:.0f} s")
        if self.let_go is not None and now > max(self.let_go, started + LETTING_GO):
            self.pgconn.finish()
            raise psycopg.OperationalError("interrupted")
        since = now - Connection.interrupted_at
        if since < INTERRUPTED and min(since, now - started) > CLEARING_UP:
            self.pgconn.finish()
            raise psycopg.OperationalError("interrupted")


@dataclass(frozen=True)
class Footing:
    """What a session of an administrator learned, so that the next one on the same server need not ask.

    *options* are the login's own, by DSN, service file or environment; *settings* are those that the server knows.
    """

    options: str
    settings: Mapping[str, str]
    superuser: bool

    def startup(self, path: LiteralString) -> str:
        """Return what goes into the start-up message in place of a query; *path* is the search_path."""
        return f"{self._startup} -c search_path={path}"

    @cached_property
    def _startup(self) -> str:
        settings = {key: value for key, value in self.settings.items() if key != "search_path"}
        ours = {"role": ADMIN_ROLE, **AS_ADMIN, **settings}
        return " ".join([self.options, *("-c " + f"{key}={value}".replace(" ", "\\ ") for key, value in ours.items())])


class Session:
    """One connection to one database of one server: autocommit, UTC, as `posduif_admin` where the login may.

    With a *footing* the session has been given all of that when it began. *path* is its search_path: `public` only
    where nobody but posduif creates objects, or they could lead an administrator's session into their functions.
    Every method raises what `translate` makes of PostgreSQL's errors.
    """

    def __init__(
        self,
        raw: Connection,
        *,
        server: Server,
        database: str,
        footing: Footing | None = None,
        path: LiteralString = "pg_catalog",
        limit: timedelta | None = None,
    ) -> None:
        self.raw = raw
        self.server = server
        self.database = database
        self.cancelled = False
        self.ended: list[str] = []
        self.bundled: str | None = None  # the newest bundled migration by the tenant's record, "" without any
        self.warnings: set[str | None] = set()
        self._gathered: list[str] | None = None
        self._opening: list[str] = []
        self.version = raw.info.server_version
        self.login = raw.info.user
        self.pid, self.standby = raw.info.backend_pid, False
        self.member: bool | None = True
        self.heir: bool | None = True
        self.superuser = footing is not None and footing.superuser
        raw.add_notice_handler(lambda notice: self.warnings.add(notice.sqlstate))
        self._footing = footing
        self._path = path
        self._settings: Mapping[str, str] = {**(footing.settings if footing else WATCHFUL), "search_path": path}
        if limit is not None:
            self._settings = {**self._settings, "statement_timeout": f"{limit.total_seconds():.0f}s"}
        self._limit = limit or STATEMENT_TIMEOUT
        raw.limit = self._silence(1)
        with translated(self):
            if footing is None:
                self._set_up()
            else:
                self._hold_pins()

    def _set_up(self) -> None:
        """Find out what the login may here, and take on role and settings.

        Behind a pooler nothing of it outlives the message: the server's session belongs to other people.
        """
        parts = {
            "pid": literal(self.pid),
            "role": literal(ADMIN_ROLE),
            "privilege": literal("SET" if self.version >= 160000 else "MEMBER"),
        }
        added = {"transaction_timeout": "0"} if self.version >= 170000 else {}
        wanted, self._settings = self._settings, {}
        for offered in (wanted, {key: value for key, value in wanted.items() if key in SETTINGS}):
            settings = {**offered, **added}
            # Every name is qualified: the login's own search_path may put other people's functions first.
            pins = ", ".join(
                f"pg_catalog.set_config('{key}', '{value}', pg_catalog.pg_backend_pid() "
                f"OPERATOR(pg_catalog.<>) {self.pid})"
                for key, value in settings.items()
            )
            try:
                cursor = self.raw.execute(f"SELECT {pins}; {self.text(compose(SETUP, **parts))}".encode())
            except psycopg.errors.InvalidParameterValue:
                if offered is not wanted:
                    raise
                continue
            cursor.nextset()
            row = cursor.fetchone()
            self._settings = settings
            break
        assert row is not None
        pid, self.standby, self.member, self.heir, self.superuser = row
        if pid != self.pid:
            raise PoolerInBetween(
                f"a connection pooler stands before server {self.server.name}",
                why="it would keep locks and roles for other people's sessions",
                hint="point the dsn at PostgreSQL itself (often port 5432 in place of 6432)",
            )
        if self.superuser and self.version >= 160000:
            self._refuse_planted()

    def _hold_pins(self) -> None:
        """Set what the environment set otherwise: PGTZ and PGDATESTYLE win over the options of a start."""
        zone, style = map(self.raw.info.parameter_status, ("TimeZone", "DateStyle"))
        if zone != "UTC" or not str(style).startswith("ISO"):
            self.raw.execute(_set_all({key: self._settings[key] for key in ("TimeZone", "DateStyle")}).encode())

    def _refuse_planted(self) -> None:
        """Raise PlantedRole where someone else could make anyone a member of our roles, a superuser's session in them.

        Code in a tenant's database can always go back to the session's own user.
        """
        planted = self.tuples(PLANTED)
        if not planted:
            return
        role, holders = planted[0]
        if role is None:
            message = (
                f"the role that made {ADMIN_ROLE} on server {self.server.name} is gone, or never was a superuser's"
            )
            hints = [
                f"look at who made the databases of {ADMIN_ROLE} and what is in them",
                f"where you trust them, a superuser types: GRANT {ADMIN_ROLE} TO {quoted(self.login)};",
            ]
        else:
            message = f"{', '.join(holders)} may give {role} to anyone on server {self.server.name}"
            hints = [
                f"a superuser types: REVOKE ADMIN OPTION FOR {given} FROM {', '.join(map(quoted, names))} CASCADE;"
                for given, names in planted
                if given is not None
            ]
            lost = sorted({name for given, _ in planted for (name,) in self.tuples(MEMBERS, role=given)})
            if lost:
                # Never as a statement with these names in it: a holder chose the members.
                taken = ", ".join(lost)
                hints.append(
                    f"that takes it from {taken}, too: GRANT it WITH INHERIT TRUE, SET TRUE to those you trust"
                )
        raise PlantedRole(
            message,
            why=f"{self.login} is a superuser, and the owner of a tenant's database can have its sessions run code",
            hint=[*hints, "or use a login that is no superuser"],
        )

    def restore(self) -> None:
        """Take back what SQL of other people did to the session's settings, role and prepared statements."""
        self.script(f"RESET ALL; DEALLOCATE ALL; {_set_all({**self._settings, **AS_ADMIN})}; SET ROLE posduif_admin")

    @property
    def footing(self) -> Footing | None:
        """What the next session on this server need not ask; None unless this one is an administrator's."""
        if self._footing is not None or not self.member or self.standby:
            return self._footing
        limit = {"statement_timeout": SETTINGS["statement_timeout"]}
        return Footing(self.raw.info.options, {**self._settings, **limit}, self.superuser)

    def become_admin(self) -> bool | None:
        """Take on the administrators' role; False where the login is no member, None where there is no role yet."""
        try:
            self.raw.execute("SET ROLE posduif_admin")
        except psycopg.errors.InvalidParameterValue:
            return None
        except psycopg.errors.InsufficientPrivilege:
            return False
        except psycopg.Error as error:
            raise translate(error, self) from error
        return True

    def cancel(self) -> None:
        """Cancel what the session is doing, from another thread, and let it wait for nothing any more."""
        self.give_up()
        self.raw.cancel_soon()

    def give_up(self) -> None:
        """Have the session's thread wait no longer than a moment for its server, from now on."""
        self.cancelled = True
        self.raw.let_go = self.raw.let_go or time.monotonic() + LETTING_GO

    @property
    def broken(self) -> bool:
        """Whether the connection was closed or lost."""
        return self.raw.closed

    def close(self) -> None:
        """End the session; a broken one too."""
        self.raw.close()

    def __enter__(self) -> "Session":
        """Return the session itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, *_: object) -> None:
        """End the session; who was in the way of it is named in the error."""
        try:
            if isinstance(error, Blocked) and not self.cancelled:
                self.name_blockers(error)
        finally:
            self.close()

    def name_blockers(self, error: Blocked) -> None:
        """Say in *error* whose locks the session could not get, as far as that can be seen afterwards; only once."""
        if not error.anonymous:
            return
        error.anonymous = False
        with suppress(PosduifError, psycopg.Error):
            self.raw.rollback()
            with self.limited(statement_timeout=timedelta(seconds=2)):
                found = self.tuples(BLOCKERS)
            if found:
                who = [f"pid {pid} ({role}, {app or 'no name'}{on})" for pid, role, app, on in found[:5]]
                error.reasons = (f"in the way: {', '.join(who)}", *error.reasons)
                error.roles = frozenset(role for _, role, *_ in found)

    def require_admin(self) -> None:
        """Raise unless this session may change tenants: StandbyServer or AccessDenied."""
        if self.standby:
            raise StandbyServer(
                f"server {self.server.name} is a standby",
                why="it takes no changes",
                hint="point the dsn at the primary, or add target_session_attrs=primary to it",
            )
        self.require_member()

    def require_member(self) -> None:
        """Raise AccessDenied unless the login belongs to the administrators, and has their rights from the start."""
        if not self.member:
            raise AccessDenied(
                f"{self.login} is not a member of {ADMIN_ROLE} on server {self.server.name}",
                hint=f"a superuser or another administrator types: GRANT {ADMIN_ROLE} TO {quoted(self.login)}"
                # Who was given the option to administer a role, and lost it, keeps a membership without these.
                f"{' WITH INHERIT TRUE, SET TRUE' if self.version >= 160000 else ''};",
            )
        if self.heir is False:
            login = quoted(self.login)
            grant = f"GRANT {ADMIN_ROLE} TO {login} WITH INHERIT TRUE;"
            raise AccessDenied(
                f"{self.login} does not inherit the rights of {ADMIN_ROLE} on server {self.server.name}",
                why="PostgreSQL lets nobody into a database by a role that is only taken on afterwards",
                hint=f"a superuser types: {grant if self.version >= 160000 else f'ALTER ROLE {login} INHERIT;'}",
            )

    @contextmanager
    def transaction(
        self,
        *,
        read_only: bool = False,
        rollback: bool = False,
        lock_timeout: timedelta | None = None,
        statement_timeout: timedelta | None = None,
        prelude: Sequence[str] = (),
        at_once: bool = False,
    ) -> Iterator[None]:
        """Run the block in one transaction, with time limits that hold for it alone; *prelude* is run first.

        With *at_once* the block does nothing before a `batch`, and the transaction begins in the message of that.
        """
        limits = {"lock_timeout": lock_timeout, "statement_timeout": statement_timeout}
        settings = ["SET TRANSACTION READ ONLY"] if read_only else []
        settings += [f"SET LOCAL {k} = {round(v.total_seconds() * 1000)}" for k, v in limits.items() if v is not None]
        settings += prelude
        if self.raw.info.transaction_status is not TransactionStatus.IDLE:
            with self._patient(statement_timeout), translated(self), self.raw.transaction(force_rollback=rollback):
                if settings:
                    self.script("; ".join(settings))
                yield
            return
        # By hand, because psycopg would need another round trip for the settings.
        ended = False
        try:
            if at_once:
                self._opening = ["BEGIN", *settings]
            else:
                self.script("; ".join(["BEGIN", *settings]))
            with self._patient(statement_timeout), translated(self):
                yield
            self.script("ROLLBACK" if rollback else "COMMIT")
            ended = True
        finally:
            self._opening = []
            if not ended and not self.raw.closed:
                with suppress(psycopg.Error):
                    self.raw.execute("ROLLBACK", prepare=False)

    def limit(self, *, lock_timeout: timedelta, statement_timeout: timedelta) -> None:
        """Give the session, which is in no transaction, other time limits for the rest of its life."""
        chosen = {"lock_timeout": lock_timeout, "statement_timeout": statement_timeout}
        self._settings = {**self._settings, **{k: str(round(v.total_seconds() * 1000)) for k, v in chosen.items()}}
        self.script(_set_all({key: self._settings[key] for key in chosen}))
        self._limit = statement_timeout
        self.raw.limit = self._silence(1)

    @contextmanager
    def limited(
        self, *, lock_timeout: timedelta | None = None, statement_timeout: timedelta | None = None
    ) -> Iterator[None]:
        """Run the block, which is in no transaction, with other time limits; 0 is none.

        RESET would go back to what the login or its environment says, not to the session's own limits.
        """
        limits = {"lock_timeout": lock_timeout, "statement_timeout": statement_timeout}
        chosen = {k: str(round(v.total_seconds() * 1000)) for k, v in limits.items() if v is not None}
        self.script(_set_all(chosen))
        try:
            with self._patient(statement_timeout):
                yield
        finally:
            if not self.broken:
                self.script(_set_all({key: self._settings[key] for key in chosen}))

    @contextmanager
    def _patient(self, statement_timeout: timedelta | None) -> Iterator[None]:
        """Wait for the server inside the block as long as it may take by *statement_timeout*; None changes nothing."""
        before, self._limit = self._limit, self._limit if statement_timeout is None else statement_timeout
        self.raw.limit = self._silence(1)
        try:
            yield
        finally:
            self._limit = before
            self.raw.limit = self._silence(1)

    def _silence(self, statements: int) -> float | None:
        """Return after how many seconds a message is given up; PostgreSQL's limit counts for each statement anew."""
        seconds = self._limit.total_seconds()
        return seconds * statements + SILENCE if seconds else None

    @contextmanager
    def savepoint(self) -> Iterator[None]:
        """Let an error inside the block undo no more than the block; costs nothing outside a transaction."""
        if self.raw.info.transaction_status is TransactionStatus.IDLE:
            yield
            return
        with self.transaction():
            yield

    def _require_schema(self, query: Query) -> None:
        """Raise SchemaBehind for a query of ours that needs a newer schema than the tenant has by its record."""
        needs = getattr(query, "needs", "")
        if self.bundled is not None and self.bundled < needs:
            raise SchemaBehind(
                f"tenant {self.database} is at {f'schema {self.bundled}' if self.bundled else 'no schema'}, "
                f"and this needs {needs}",
                hint=Run("migrate", "up", self.database),
            )

    def execute(self, query: Query, **params: Any) -> int:
        """Run one statement and return how many rows it touched; none while `together` gathers them."""
        self._require_schema(query)
        if self._gathered is not None:
            self._gathered.append(self.text(query, **params))
            return 0
        with translated(self):
            return self.raw.execute(query, params or None).rowcount

    @contextmanager
    def together(self) -> Iterator[None]:
        """Send what `execute` is given inside the block as one message at its end: one round trip for all."""
        gathered = self._gathered = []
        try:
            yield
        finally:
            self._gathered = None
        _, failure = self.batch(gathered)
        if failure is not None:
            raise failure[1]

    def script(self, text: str) -> None:
        """Run SQL text as it stands, several statements at once; QueryFailed.position counts from 1."""
        with translated(self):
            self.raw.execute(text, prepare=False)

    def batch(self, parts: Sequence[str]) -> tuple[list[Row], tuple[int, PosduifError] | None]:
        """Send SQL texts as one message, which takes one round trip, and return each statement's first row as text.

        When one fails, which ends the batch, its index and its error are returned too; the error's position counts
        from the beginning of that text. The SQLSTATEs of notices and warnings are in `warnings` until the next batch.
        Raises ServerUnreachable when the connection breaks.
        """
        results, failure = self._send(parts)
        return [next(_read(result), ()) for result in results], failure

    def _send(self, parts: Sequence[str]) -> tuple[list[PGresult], tuple[int, PosduifError] | None]:
        opening, self._opening = self._opening, []
        whole = [*opening, *parts]
        self.warnings.clear()
        # A migration that sets a limit of its own may take longer than ours.
        own = any("statement_timeout" in part for part in parts)
        self.raw.limit = None if own else self._silence(len(whole))
        try:
            with translated(self), self.raw.lock:
                self.raw.pgconn.send_query(_BETWEEN.join(whole).encode())
                results = self.raw.wait(generators.execute(self.raw.pgconn))
        finally:
            self.raw.limit = self._silence(1)
        last = results[-1]
        if last.status == ExecStatus.FATAL_ERROR:
            error = translate(psycopg.errors.error_from_result(last), self)
            if isinstance(error, ServerUnreachable):
                raise error
            index = min(len(results), len(whole)) - 1
            if isinstance(error, QueryFailed) and error.position is not None:
                # A syntax error is found before anything is run, so only the position tells whose it is.
                begins = list(accumulate((len(part) + len(_BETWEEN) for part in whole), initial=0))
                index = min(bisect_left(begins, error.position) - 1, len(whole) - 1)
                error.position -= begins[index]
            if index < len(opening):
                raise error
            return [], (index - len(opening), error)
        if last.status not in (ExecStatus.COMMAND_OK, ExecStatus.TUPLES_OK):
            self.raw.close()
            raise QueryFailed("a statement wants to exchange data with the client", why="COPY cannot be used here")
        return results[len(opening) :], None

    def text(self, query: Query, **params: Any) -> str:
        """Return a statement as text for `batch`, with its parameters as literals in it."""
        self._require_schema(query)
        if isinstance(query, sql.Composable):
            query = query.as_string(self.raw)
        return self._writer.mogrify(query, params) if params else query

    @cached_property
    def _writer(self) -> psycopg.ClientCursor[Any]:
        return psycopg.ClientCursor(self.raw)

    def rows(self, model: type[T], query: Query, **params: Any) -> list[T]:
        """Return every row as *model*, columns by name."""
        self._require_schema(query)
        with translated(self), self.raw.cursor(row_factory=class_row(model)) as cursor:
            return cursor.execute(query, params or None).fetchall()

    def stream(self, model: type[T], query: LiteralString, **params: Any) -> Iterator[T]:
        """Yield every row as *model*, columns by name, from one snapshot and a page at a time: there may be many."""
        self._require_schema(query)
        with self.transaction(read_only=True):
            self.execute("DECLARE page NO SCROLL CURSOR FOR " + query, **params)
            while page := self.rows(model, "FETCH 1000 FROM page"):
                yield from page

    def row(self, model: type[T], query: Query, **params: Any) -> T | None:
        """Return the first row as *model*, or None."""
        self._require_schema(query)
        with translated(self), self.raw.cursor(row_factory=class_row(model)) as cursor:
            return cursor.execute(query, params or None).fetchone()

    def dicts(self, query: Query, **params: Any) -> list[dict[str, Any]]:
        """Return every row as a dictionary."""
        self._require_schema(query)
        with translated(self), self.raw.cursor(row_factory=dict_row) as cursor:
            return cursor.execute(query, params or None).fetchall()

    def tuples(self, query: Query, **params: Any) -> list[tuple[Any, ...]]:
        """Return every row as a tuple."""
        self._require_schema(query)
        with translated(self), self.raw.cursor(row_factory=args_row(lambda *row: row)) as cursor:
            return cursor.execute(query, params or None).fetchall()

    def value(self, query: Query, **params: Any) -> Any:
        """Return the first column of the first row, or None."""
        rows = self.tuples(query, **params)
        return rows[0][0] if rows else None

    def scram(self, password: str, role: str) -> str:
        """Make the SCRAM verifier of *password* on the client, so that the server never sees it in clear."""
        encrypted = self.raw.pgconn.encrypt_password(password.encode(), role.encode(), b"scram-sha-256")
        return encrypted.decode()

    @contextmanager
    def lock(
        self,
        subject: str,
        *,
        wait: timedelta = timedelta(seconds=10),
        asking: Sequence[str] = (),
        lock_timeout: timedelta | None = None,
        keep: bool = False,
    ) -> Iterator[list[list[Row]] | None]:
        """Hold the advisory lock on *subject* in this session and this database.

        It is tried, never waited for inside the server: a waiting lock call would deadlock CREATE INDEX
        CONCURRENTLY. The questions of *asking* are put right after it in the same message, outside of a transaction;
        the block gets the rows of each, or None when one failed; *lock_timeout* is for them, and raises Blocked.
        With *keep* the lock is held until the session ends, which saves a message. The sessions of an engine's role
        that hold it are ended, and named in `ended`. Raises Busy, naming any other holder, once *wait* is over.
        """
        deadline = time.monotonic() + wait.total_seconds()
        which: dict[str, Any] = {"class": LOCK_CLASS, "subject": subject}
        key = self.text("(%(class)s, hashtext(%(subject)s))", **which)
        attempt, unlock = f"SELECT pg_try_advisory_lock{key}", [f"SELECT pg_advisory_unlock{key}"]
        if asking and lock_timeout is not None:
            # In the transaction that the message is, though none was begun.
            asking = [f"SET LOCAL lock_timeout = {round(lock_timeout.total_seconds() * 1000)}", *asking]
        skipped = 2 if asking and lock_timeout is not None else 1
        answered, held, told = True, False, False
        while True:
            # In the same message, or the engine would have the lock again before we ask for it.
            ending = [self.text(END_ENGINES, **which)] if held else []
            results, failure = self._send([*ending, attempt, *(asking if answered else ())])
            named = next(_read(results[0]))[0] if ending and failure is None else None
            if named and not told:
                told = True
                self.ended.append(f"{named}: held the lock on {subject}")
            if failure is None and next(_read(results[len(ending)])) == ("t",):
                break
            if self.cancelled:
                raise Interrupted("interrupted")
            if failure is not None:
                if not asking or not answered:
                    raise failure[1]
                # Whether the lock was taken is not known now; to give back what one does not hold is a mere warning.
                self.batch(unlock)
                if isinstance(failure[1], Blocked):
                    raise failure[1]
                answered = False
            elif time.monotonic() > deadline:
                raise self._held(subject, which)
            elif held:
                # An engine that lost its session wants the lock again in milliseconds.
                time.sleep(0.005 if named else 0.1)
            held = failure is None
        try:
            yield [list(_read(result)) for result in results[len(ending) + skipped :]] if answered else None
        finally:
            if not keep:
                with suppress(PosduifError):
                    self.batch(unlock)

    def _held(self, subject: str, which: Mapping[str, Any]) -> Busy:
        holders = self.tuples(HOLDERS, **which)
        who = [f"{app or 'a session'} of {user} (pid {pid}{age})" for pid, app, user, age in holders]
        ends = [f"or a superuser types: SELECT pg_terminate_backend({pid});" for pid, *_ in holders]
        if not holders:  # a prepared transaction keeps its locks without a session
            prepared = self.tuples(PREPARED)
            who = [f"perhaps the prepared transaction {gid} of {owner}" for gid, owner in prepared]
            undo = [self.text("ROLLBACK PREPARED %(gid)s;", gid=gid) for gid, _ in prepared]
            ends = [f"or a superuser types, in {self.database}: {statement}" for statement in undo]
        return Busy(
            f"{subject} is being worked on by someone else",
            why=f"the lock is held by {', '.join(who)}" if who else "the lock was held until a moment ago",
            hint=["try again when that is done", *ends],
        )


def _set_all(settings: Mapping[str, str]) -> str:
    return "; ".join(f"SET {key} = '{value}'" for key, value in settings.items())


def _read(result: PGresult) -> Iterator[Row]:
    for row in range(result.ntuples):
        values = (result.get_value(row, column) for column in range(result.nfields))
        yield tuple(None if value is None else value.decode(errors="replace") for value in values)


@contextmanager
def translated(session: Session) -> Iterator[None]:
    """Turn psycopg's errors inside the block into posduif's."""
    try:
        yield
    except psycopg.Error as error:
        raise translate(error, session) from error


def translate(error: psycopg.Error, session: Session) -> PosduifError:
    """Make a PosduifError of a psycopg error.

    PostgreSQL's DETAIL is left out: it quotes rows, and a row may hold a secret.
    """
    state = error.sqlstate
    message = error.diag.message_primary or str(error).strip() or type(error).__name__
    where = f"server {session.server.name}, database {session.database}"
    if session.cancelled and (state is None or state == "57014"):
        return Interrupted("interrupted")
    if (state is None and isinstance(error, psycopg.OperationalError)) or (state or "").startswith(("08", "57P")):
        return ServerUnreachable(
            f"the connection to {where} broke",
            why=message,
            hint="run the same command again: it goes on where this one stopped",
        )
    if state == "42501":
        login = quoted(session.login)
        return AccessDenied(
            f"{where}: {message}",
            hint=Run("tenant", "verify", session.database)
            if session.member
            else f"a superuser or another administrator types: GRANT {ADMIN_ROLE} TO {login}; "
            "(posduif_support or posduif_health where that is enough)",
        )
    if state == "25006":
        return StandbyServer(f"{where} takes no changes", why=message)
    if state in ("55P03", "55006", "40P01"):
        kind = Busy if state == "55006" else Blocked
        blocked = kind(f"{where}: {message}", why=f"SQLSTATE {state}", hint="try again when the other work is done")
        if isinstance(blocked, Blocked):
            blocked.anonymous = True
        return blocked
    # What a record promises and the database does not have: the record was not written by who changed the schema.
    lacking = state in ("42P01", "42703") and session.bundled is not None
    return QueryFailed(
        f"{where}: {message}",
        hint=Run("tenant", "verify", session.database) if lacking else (),
        why=f"SQLSTATE {state}" + (f"; {error.diag.message_hint}" if error.diag.message_hint else ""),
        sqlstate=state,
        constraint=error.diag.constraint_name,
        position=int(error.diag.statement_position) if error.diag.statement_position else None,
    )
