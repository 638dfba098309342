"""One connection to one database: its settings and limits, its lock, and PostgreSQL's errors made ours."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property
from typing import Any, LiteralString, TypeVar

import psycopg
from psycopg import sql
from psycopg.pq import TransactionStatus
from psycopg.rows import args_row, class_row, dict_row

from posduif_cli.db import queries
from posduif_cli.db.connection import Connection
from posduif_cli.db.patience import Patience
from posduif_cli.db.pipeline import Answer, Pipeline, bare
from posduif_cli.db.quoting import Query, compose, literal, quoted
from posduif_cli.db.translate import ASK, MAY_NOT, in_groups, translate, translated
from posduif_cli.errors import (
    AccessDenied,
    Blocked,
    Busy,
    PoolerInBetween,
    PosduifError,
    Run,
    SchemaBehind,
    StandbyServer,
)
from posduif_cli.models.servers import Server

T = TypeVar("T")
ADMIN_ROLE = "posduif_admin"
LOCK_TIMEOUT = timedelta(seconds=10)  # how long a statement waits for a lock
STATEMENT_TIMEOUT = timedelta(minutes=5)  # how long a statement of a command may take
QUESTION_TIMEOUT = timedelta(seconds=10)  # how long a server may take to answer what the whole fleet is asked
SILENCE = 5.0  # seconds beyond the server's own limits after which we no longer wait for it
LOCK_CLASS = 0x706F7364  # "posd": one lock space of our own beside the server's other advisory locks
DESK_CLASS = 0x706F6473  # "pods": locks of the desk, which a command on the tenant never ends
HEALTH_CLASS = 0x706F6468  # "podh": locks of deep reports, which are never ended either
# One round trip, and as few looks into catalogs as can be: a new session's first look into each is dear.
# The role is not taken on behind a pooler, which would keep it for the sessions of other clients.
SETUP: LiteralString = """
SELECT pg_backend_pid(), pg_is_in_recovery(),
       CASE WHEN pg_backend_pid() <> {pid} OR to_regrole({role}) IS NULL THEN NULL
            WHEN pg_has_role(session_user, to_regrole({role})::oid, {privilege})
            THEN set_config('role', {role}, false) = {role} AND set_config('row_security', 'off', false) = 'off'
            ELSE false END,
       pg_has_role(session_user, to_regrole({role})::oid, 'USAGE'),
       (SELECT rolsuper FROM pg_roles WHERE rolname = session_user),
       CASE WHEN to_regrole({role}) IS NULL OR NOT pg_has_role(session_user, to_regrole({role})::oid, 'MEMBER')
            THEN (SELECT array_agg(rolname::text ORDER BY rolname) FROM pg_roles
                  WHERE rolname = ANY ({groups}) AND pg_has_role(session_user, oid, 'MEMBER')) END
"""
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
    where no other role creates objects, or it could lead an administrator's session into its functions.
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
        self.version = raw.info.server_version
        self.login = raw.info.user
        self.pid, self.standby = raw.info.backend_pid, False
        self.member: bool | None = True
        self.heir: bool | None = True
        self.groups: tuple[str, ...] = ()  # of posduif, that a login is in which is no administrator's
        self.superuser = footing is not None and footing.superuser
        self._footing = footing
        self._settings: Mapping[str, str] = {**(footing.settings if footing else WATCHFUL), "search_path": path}
        if limit is not None:
            self._settings = {**self._settings, "statement_timeout": f"{limit.total_seconds():.0f}s"}
        self._limit = limit or STATEMENT_TIMEOUT
        raw.limit = self.silence(1)
        with translated(self):
            if footing is None:
                self._set_up()
            else:
                self._hold_pins()

    def _set_up(self) -> None:
        """Find out what the login may here, and take on role and settings.

        Behind a pooler nothing of it outlives the message: other clients use the server's session, too.
        """
        parts = {
            "pid": literal(self.pid),
            "role": literal(ADMIN_ROLE),
            "groups": literal(list(MAY_NOT)),
            "privilege": literal("SET" if self.version >= 160000 else "MEMBER"),
        }
        added = {"transaction_timeout": "0"} if self.version >= 170000 else {}
        wanted, self._settings = self._settings, {}
        for offered in (wanted, {key: value for key, value in wanted.items() if key in SETTINGS}):
            settings = {**offered, **added}
            # Every name is qualified: the login's own search_path may put functions of other roles first.
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
        pid, self.standby, self.member, self.heir, self.superuser, groups = row
        self.groups = tuple(groups or ())
        if pid != self.pid:
            raise PoolerInBetween(
                f"a connection pooler stands before server {self.server.name}",
                why="it would keep locks and roles for other people's sessions",
                hint="point the dsn at PostgreSQL itself (often port 5432 in place of 6432)",
            )

    def _hold_pins(self) -> None:
        """Set what the environment set otherwise: PGTZ and PGDATESTYLE win over the options of a start."""
        zone, style = map(self.raw.info.parameter_status, ("TimeZone", "DateStyle"))
        if zone != "UTC" or not str(style).startswith("ISO"):
            self.raw.execute(_set_all({key: self._settings[key] for key in ("TimeZone", "DateStyle")}).encode())

    def restore(self) -> None:
        """Take back what a migration did to the session's settings, role and prepared statements."""
        self.script(f"RESET ALL; DEALLOCATE ALL; {_set_all({**self._settings, **AS_ADMIN})}; SET ROLE posduif_admin")

    @property
    def footing(self) -> Footing | None:
        """What the next session on this server need not ask; None unless this one is an administrator's."""
        if self._footing is not None or not self.member or self.standby:
            return self._footing
        limit = {"statement_timeout": SETTINGS["statement_timeout"]}
        return Footing(self.raw.info.options, {**self._settings, **limit}, self.superuser)

    def become_admin(self) -> bool | None:
        """Take on the administrators' role; return False when the login is no member, None without such a role."""
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
        self.raw.give_up()

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
                found = self.tuples(queries.load("db/session")["find_blockers"])
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
        if not self.member and self.groups:
            raise AccessDenied(
                f"{self.login} is not a member of {ADMIN_ROLE} on server {self.server.name}",
                why=in_groups(self),
                hint=ASK,
            )
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
                why="PostgreSQL lets no login into a database by a role that is only taken on afterwards",
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
        first: Pipeline | None = None,
    ) -> Iterator[None]:
        """Run the block in one transaction, with time limits that hold for it alone; *prelude* is run first.

        With *first* the transaction begins with this pipeline: its beginning is queued there, and the block adds what
        it wants and sends it before anything else.
        """
        limits = _milliseconds({"lock_timeout": lock_timeout, "statement_timeout": statement_timeout})
        begin = [*(["SET TRANSACTION READ ONLY"] if read_only else []), *prelude]
        settings = [*begin, *(f"SET LOCAL {key} = {value}" for key, value in limits.items())]
        if self.raw.info.transaction_status is not TransactionStatus.IDLE:
            with self._patient(statement_timeout), translated(self), self.raw.transaction(force_rollback=rollback):
                if settings:
                    self.script("; ".join(settings))
                yield
            return
        # By hand, because psycopg would need another round trip for the settings.
        try:
            if first is None:
                self.script("; ".join(["BEGIN", *settings]))
            else:
                # One statement for all: each costs its own way through the protocol.
                chosen = ", ".join(f"pg_catalog.set_config('{k}', '{v}', true)" for k, v in limits.items())
                first.script("BEGIN", *begin, *([f"SELECT {chosen}"] if chosen else []))
            with self._patient(statement_timeout), translated(self):
                yield
            self.script("ROLLBACK" if rollback else "COMMIT")
        except BaseException:
            if not self.raw.closed and self.raw.info.transaction_status is not TransactionStatus.IDLE:
                with suppress(psycopg.Error):
                    self.raw.execute("ROLLBACK", prepare=False)
            raise

    def limit(self, *, lock_timeout: timedelta, statement_timeout: timedelta) -> None:
        """Give the session, which is in no transaction, other time limits for the rest of its life."""
        chosen = _milliseconds({"lock_timeout": lock_timeout, "statement_timeout": statement_timeout})
        self._settings = {**self._settings, **chosen}
        self.script(_set_all({key: self._settings[key] for key in chosen}))
        self._limit = statement_timeout
        self.raw.limit = self.silence(1)

    @contextmanager
    def limited(
        self, *, lock_timeout: timedelta | None = None, statement_timeout: timedelta | None = None
    ) -> Iterator[None]:
        """Run the block, which is in no transaction, with other time limits; 0 is none.

        RESET would go back to what the login or its environment says, not to the session's own limits.
        """
        limits = {"lock_timeout": lock_timeout, "statement_timeout": statement_timeout}
        chosen = _milliseconds(limits)
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
        self.raw.limit = self.silence(1)
        try:
            yield
        finally:
            self._limit = before
            self.raw.limit = self.silence(1)

    def silence(self, statements: int) -> float | None:
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

    def require_schema(self, query: Query) -> None:
        """Raise SchemaBehind for a query of ours that needs a newer schema than the tenant has by its record."""
        needs = getattr(query, "needs", "")
        if self.bundled is not None and self.bundled < needs:
            raise SchemaBehind(
                f"tenant {self.database} is at {f'schema {self.bundled}' if self.bundled else 'no schema'}, "
                f"and this needs {needs}",
                hint=Run("migrate", "up", self.database),
            )

    def execute(self, query: Query, **params: Any) -> int:
        """Run one statement and return how many rows it touched."""
        self.require_schema(query)
        with translated(self):
            return self.raw.execute(query, params or None).rowcount

    def pipeline(self) -> Pipeline:
        """Return a pipeline: statements that are queued, and then sent in one round trip."""
        return Pipeline(self)

    def script(self, text: str) -> None:
        """Run SQL text unchanged, several statements at once; QueryFailed.position counts from 1."""
        with translated(self):
            self.raw.execute(text, prepare=False)

    def text(self, query: Query, **params: Any) -> str:
        """Return a statement as text with its parameters as literals in it, for a person to run."""
        self.require_schema(query)
        if isinstance(query, sql.Composable):
            query = query.as_string(self.raw)
        return self._writer.mogrify(query, params) if params else query

    @cached_property
    def _writer(self) -> psycopg.ClientCursor[Any]:
        return psycopg.ClientCursor(self.raw)

    def rows(self, model: type[T], query: Query, **params: Any) -> list[T]:
        """Return every row as *model*, columns by name."""
        self.require_schema(query)
        with translated(self), self.raw.cursor(row_factory=class_row(model)) as cursor:
            return cursor.execute(query, params or None).fetchall()

    def stream(self, model: type[T], query: LiteralString, **params: Any) -> Iterator[T]:
        """Yield every row as *model*, columns by name, from one snapshot and a page at a time: there may be many."""
        self.require_schema(query)
        with self.transaction(read_only=True):
            self.execute("DECLARE page NO SCROLL CURSOR FOR " + query, **params)
            while page := self.rows(model, "FETCH 1000 FROM page"):
                yield from page

    def row(self, model: type[T], query: Query, **params: Any) -> T | None:
        """Return the first row as *model*, or None."""
        self.require_schema(query)
        with translated(self), self.raw.cursor(row_factory=class_row(model)) as cursor:
            return cursor.execute(query, params or None).fetchone()

    def dicts(self, query: Query, **params: Any) -> list[dict[str, Any]]:
        """Return every row as a dictionary."""
        self.require_schema(query)
        with translated(self), self.raw.cursor(row_factory=dict_row) as cursor:
            return cursor.execute(query, params or None).fetchall()

    def tuples(self, query: Query, **params: Any) -> list[tuple[Any, ...]]:
        """Return every row as a tuple."""
        self.require_schema(query)
        with translated(self), self.raw.cursor(row_factory=args_row(bare)) as cursor:
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
    def lock(self, subject: str, *, wait: timedelta | None = None, keep: bool = False) -> Iterator[None]:
        """Hold the advisory lock on *subject* in this session and this database.

        It is tried, never waited for inside the server: a waiting lock call would deadlock CREATE INDEX
        CONCURRENTLY. With *keep* the lock is held until the session ends. The sessions of an engine's role that hold
        the lock are ended, and named in `ended`. Raises Busy, naming any other holder, once *wait* is over.
        """
        which: dict[str, Any] = {"class": LOCK_CLASS, "subject": subject}
        # An engine that lost its session wants the lock again in milliseconds.
        patience = Patience(
            "lock",
            limit=wait,
            pause=timedelta(milliseconds=5),
            longest=timedelta(milliseconds=100),
            interrupted=lambda: self.cancelled,
        )
        taken = self.try_lock(pipeline := self.pipeline(), subject)
        pipeline.send()
        told = False
        while not taken.value:
            # Together, or the engine would have the lock again before we ask for it.
            pipeline = self.pipeline()
            ending = pipeline.execute(queries.load("db/session")["end_engines"], **which)
            taken = self.try_lock(pipeline, subject)
            pipeline.send()
            if ending.value and not told:
                told = True
                self.ended.append(f"{ending.value}: held the lock on {subject}")
            if not taken.value and not patience.again():
                raise self._held(subject, which)
        try:
            yield
        finally:
            if not keep:
                with suppress(PosduifError):
                    self.execute(queries.load("db/session")["give_back_lock"], **which)

    def try_lock(self, pipeline: Pipeline, subject: str) -> Answer:
        """Queue a try to take the lock on *subject*, until the session ends; the answer says whether it was taken."""
        return pipeline.execute(queries.load("db/session")["try_lock"], **{"class": LOCK_CLASS, "subject": subject})

    def holders(self, which: Mapping[str, Any]) -> dict[int, str]:
        """Return the sessions that hold an advisory lock, in words by their pids; *which* has its class and subject."""
        found = self.tuples(queries.load("db/session")["list_lock_holders"], **which)
        return {pid: f"{app or 'a session'} of {user} (pid {pid}{age})" for pid, app, user, age in found}

    def _held(self, subject: str, which: Mapping[str, Any]) -> Busy:
        holders = self.holders(which)
        who = list(holders.values())
        ends = [f"or a superuser types: SELECT pg_terminate_backend({pid});" for pid in holders]
        if not holders:  # a prepared transaction keeps its locks without a session
            prepared = self.tuples(queries.load("db/session")["list_prepared"])
            who = [f"perhaps the prepared transaction {gid} of {owner}" for gid, owner in prepared]
            undo = [self.text("ROLLBACK PREPARED %(gid)s;", gid=gid) for gid, _ in prepared]
            ends = [f"or a superuser types, in {self.database}: {statement}" for statement in undo]
        return Busy(
            f"{subject} is being worked on by someone else",
            why=f"the lock is held by {', '.join(who)}" if who else "the lock was held until a moment ago",
            hint=["try again when that is done", *ends],
        )


def _milliseconds(limits: Mapping[str, timedelta | None]) -> dict[str, str]:
    """Return the settings of those limits that are given."""
    return {key: str(round(limit.total_seconds() * 1000)) for key, limit in limits.items() if limit is not None}


def _set_all(settings: Mapping[str, str]) -> str:
    return "; ".join(f"SET {key} = '{value}'" for key, value in settings.items())
