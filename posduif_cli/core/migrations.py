"""Migrations of one tenant: tell what is applied, apply what is pending, take back what was applied."""

import hashlib
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import cache, partial

from posduif_cli.core import scripts
from posduif_cli.core.folders import Folders, digest
from posduif_cli.core.scripts import File, Name, Section, Statement, Target
from posduif_cli.db import admin, queries, record
from posduif_cli.db.connect import Row, Session, compose, identifier
from posduif_cli.errors import (
    AccessDenied,
    Blocked,
    ChecksumDiffers,
    Conflict,
    Interrupted,
    MigrationFailed,
    OperationFailed,
    QueryFailed,
    StandbyServer,
    UsageError,
    WrongState,
)
from posduif_cli.models import Failure, Migration, State

PATIENCE = timedelta(seconds=30)
CONCURRENT_FACTOR = 12  # an index build outside a transaction may take this many times the statement_timeout
NO_SUCH_TABLE_OR_COLUMN = ("42P01", "42703")
CANNOT_RUN_IN_TRANSACTION = "25001"
READ_ONLY = "25006"
DOWN = ":down"  # behind the version of a file that is being taken back, in the progress table
# Statements that leave the rights on our tables as they are, but for a column that ADD brings again.
_KEEPS_RIGHTS = re.compile(
    r"(?:create (?:unique )?index|comment on)\b"
    r"|alter table (?:if exists )?(?:only )?\S+ (?:\. \S+ )?add\b(?!.*\b(?:alter|drop|rename|owner|inherit)\b)"
)
_ADDED = re.compile(r"\badd (?:column )?(?:if not exists )?(\S+)")


@dataclass(frozen=True)
class Hooks:
    """What a run asks of whoever started it: who blocks a session, to pass a remark on, and to read a record.

    *recall* reads the record of a session's tenant from elsewhere: a new session's first look into the shared
    catalogs takes many times as long. None where nobody else could.
    """

    blockers: Callable[[int], tuple[str, ...]] = lambda pid: ()
    tell: Callable[[str], None] = lambda text: None
    recall: Callable[[Session], record.Record] | None = None


@dataclass(frozen=True)
class Applied:
    """What was done to one tenant: its version before and after, and the versions applied or taken back."""

    before: str | None
    after: str | None
    versions: tuple[str, ...]


@dataclass(frozen=True)
class _Row:
    version: str
    checksum: str | None
    applied_at: datetime | None
    duration_ms: int | None
    applied_by: str | None


def applied(conn: Session) -> dict[str, _Row]:
    """Return the rows of the tenant's version table; none where there is no table, bare ones where dbmate made it."""
    return _table(conn)[0]


def _table(conn: Session) -> tuple[dict[str, _Row], bool]:
    """Return the rows of the version table, and whether it has all of our columns."""
    named = queries.load("migrations")
    try:
        with conn.savepoint():
            return {row.version: row for row in conn.rows(_Row, named["list_applied"])}, True
    except QueryFailed as error:
        if error.sqlstate not in NO_SUCH_TABLE_OR_COLUMN:
            raise
    if not conn.value(named["has_table"]):
        return {}, False
    bare = conn.tuples("SELECT version::text FROM public.schema_migrations WHERE version IS NOT NULL ORDER BY 1")
    return {version: _Row(version, None, None, None, None) for (version,) in bare}, False


def half_done(conn: Session) -> dict[str, int]:
    """Return the files without a transaction that were begun and are not through, with how many statements are done.

    One that is being taken back has `:down` behind its version.
    """
    if not conn.value(queries.load("migrations")["has_progress"]):
        return {}
    return dict(conn.tuples(queries.load("migrations")["list_half_done"]))


def history(conn: Session, *, folders: Folders) -> tuple[Migration, ...]:
    """Return every migration of a tenant, applied or not, in the order of versions."""
    return _history(applied(conn), folders)


def _history(rows: dict[str, _Row], folders: Folders) -> tuple[Migration, ...]:
    known = {file.version: file for file in folders.files}
    return tuple(_compare(version, known.get(version), rows.get(version)) for version in sorted({*known, *rows}))


def _compare(version: str, file: File | None, row: _Row | None) -> Migration:
    if file is None:
        state = "missing"
    elif row is None:
        state = "pending"
    else:
        state = "changed" if row.checksum and row.checksum != file.checksum else "applied"
    return Migration(
        version=version,
        name=file.name if file else "",
        state=state,
        checksum=row.checksum if row else file.checksum if file else None,
        applied_at=row.applied_at if row else None,
        duration_ms=row.duration_ms if row else None,
    )


def who_is(pid: int, *known: str | None) -> str:
    """Name a session by its pid and what is known of it.

    >>> who_is(7, "postgres", None, "idle in transaction")
    'pid 7 (postgres, idle in transaction)'
    """
    return f"pid {pid} ({', '.join(filter(None, known))})"


def _answered(stack: ExitStack, conn: Session, folders: Folders, asking: Sequence[str]) -> list[list[Row]] | None:
    """Take the tenant's lock with some questions, again while they find the version table locked; raises Blocked."""
    deadline, pause = time.monotonic() + PATIENCE.total_seconds(), 0.25
    while True:
        try:
            lock = conn.lock(conn.database, asking=asking, lock_timeout=folders.lock_timeout, keep=True)
            return stack.enter_context(lock)
        except Blocked as error:
            holders = conn.tuples(queries.load("migrations")["find_holders"])
            if time.monotonic() + pause + folders.lock_timeout.total_seconds() > deadline:
                who = "; ".join(who_is(*holder) for holder in holders)
                raise Blocked(
                    f"the version table of {conn.database} is locked",
                    why=f"blocked by {who}" if who else error.why,
                    hint=f"posduif migrate up {conn.database}, when that is done",
                ) from error
        if conn.cancelled:
            raise Interrupted("interrupted")
        time.sleep(pause)
        pause = min(pause * 2, 5)


@contextmanager
def _locked(
    conn: Session, folders: Folders, states: Sequence[State], hooks: Hooks, *, down: bool = False
) -> Iterator[tuple[record.Record, dict[str, _Row], bool]]:
    """Take the tenant's lock; the block gets its record, and what `_table` returns, from as few messages as can be."""
    named = queries.load("migrations")
    new = State.PROVISIONING in states
    asking = [named["has_table" if new else "list_checksums"], named["has_progress"]]
    if hooks.recall is None:
        asking.append(conn.text(record.QUESTION, database=conn.database))
    with ExitStack() as stack:
        answers = _answered(stack, conn, folders, asking)
        if hooks.recall is not None:
            current = hooks.recall(conn)
        else:
            current = record.read(conn) if answers is None else record.judge(conn.database, answers[2])
        if current.state not in states:
            raise WrongState(f"tenant {conn.database} is {current.state}", hint=f"posduif tenant show {conn.database}")
        half = half_done(conn) if answers is None or answers[1] == [("t",)] else {}
        if (other := next((key for key in half if key.endswith(DOWN) is not down), None)) is not None:
            raise _by_half(conn.database, other, half[other], folders)
        if new and answers is not None and answers[0] == [("f",)]:
            yield current, {}, False
        elif new or answers is None:
            yield current, *_table(conn)
        else:
            rows = {str(version): _Row(str(version), checksum, None, None, None) for version, checksum in answers[0]}
            yield current, rows, True


def up(
    conn: Session, *, folders: Folders, states: Sequence[State] = (State.ACTIVE,), hooks: Hooks | None = None
) -> Applied:
    """Apply a tenant's pending migrations, each with its version row and the record in one transaction.

    The tenant's lock is kept until the session ends. Raises Busy when another session works on the tenant, Blocked
    after PATIENCE of waiting for locks, WrongState via the record, ChecksumDiffers when an applied file changed,
    MigrationFailed with file and line when SQL fails; then a transactional migration left nothing, and of another
    the statements that were done are kept and not run again.
    """
    hooks = hooks or Hooks()
    with _locked(conn, folders, states, hooks) as (current, rows, complete):
        migrations = _history(rows, folders)
        refuse_changed(conn.database, migrations, folders)
        done = {m.version for m in migrations if m.state in ("applied", "missing")}
        before = max(done, default=None)
        pending = [file for file in folders.files if file.version not in done]
        for number, file in enumerate(pending):
            if number:
                _next(conn)
            done.add(file.version)
            _Run(conn, file, file.up, folders, hooks, current, done, complete, taking_back=False).apply()
            complete, current = True, _after(current, done)
        if not pending and (current.schema, current.applied, current.failed) != (before, digest(done), None):
            with conn.transaction(lock_timeout=folders.lock_timeout):
                record.write(conn, _after(current, done))
        return Applied(before, max(done, default=None), tuple(file.version for file in pending))


def down(
    conn: Session,
    *,
    folders: Folders,
    to: str | None = None,
    steps: int | None = None,
    planned: Sequence[str] | None = None,
    hooks: Hooks | None = None,
) -> Applied:
    """Take back a tenant's newest migrations, down to version *to* (which stays) or *steps* of them.

    Raises as `up`, and Conflict, before anything is changed, when one of them has no down section or no file, or
    when they are not those that were *planned*, and so confirmed.
    """
    hooks = hooks or Hooks()
    with _locked(conn, folders, (State.ACTIVE,), hooks, down=True) as (current, rows, complete):
        files = to_take_back(conn, folders=folders, to=to, steps=steps)
        versions = [file.version for file in files]
        if planned is not None and versions != list(planned):
            raise Conflict(
                f"{conn.database} changed since it was asked what to take back",
                why=f"that was {', '.join(planned)}; by now it would be {', '.join(versions) or 'nothing'}",
                hint=f"posduif migrate list {conn.database}",
            )
        done = set(rows)
        before = max(done, default=None)
        for number, file in enumerate(files):
            if number:
                _next(conn)
            done.discard(file.version)
            assert file.down is not None
            _Run(conn, file, file.down, folders, hooks, current, done, complete, taking_back=True).apply()
            current = _after(current, done)
        return Applied(before, max(done, default=None), tuple(file.version for file in files))


def _by_half(tenant: str, key: str, done: int, folders: Folders) -> Conflict:
    """Say that a file without a transaction, begun in the other direction, is to be finished first."""
    version, down = key.removesuffix(DOWN), key.endswith(DOWN)
    path = folders.paths.get(version, version)
    return Conflict(
        f"migration {version} of {tenant} is {'taken back' if down else 'applied'} by half",
        why=f"{done} of its statements were run, and the rest would be forgotten",
        hint=[f"mend what stands against {path}", half_step(tenant, key)],
    )


def half_step(tenant: str, key: str) -> str:
    """Return the command that finishes a file without a transaction, by its key in `half_done`."""
    return f"posduif migrate down {tenant} --steps 1" if key.endswith(DOWN) else f"posduif migrate up {tenant}"


def _next(conn: Session) -> None:
    """Go on to a run's next file, with the session as it was before the last; raises Interrupted."""
    if conn.cancelled:
        raise Interrupted("interrupted")
    conn.restore()


def to_take_back(conn: Session, *, folders: Folders, to: str | None, steps: int | None) -> list[File]:
    """Return the files that `down` would take back, the newest first.

    Raises Conflict where one cannot be, UsageError for a version *to* that nobody knows; 0 stands for all of them.
    """
    known = {file.version: file for file in folders.files}
    done = sorted(applied(conn), reverse=True)
    if to is not None and to.strip("0") and to not in {*done, *known}:
        raise UsageError(
            f"there is no migration {to} to go back to",
            why="neither a file nor the tenant has it; versions are compared as they are written, zeros included",
            hint=f"posduif migrate list {conn.database}",
        )
    chosen = [version for version in done if to is None or version > to][: steps if to is None else None]
    for version in chosen:
        file = known.get(version)
        if file is None or file.down is None:
            raise Conflict(
                f"migration {version} of {conn.database} cannot be taken back",
                why="its file is gone" if file is None else f"{file.path} has no `-- migrate:down` section",
                hint=f"posduif migrate list {conn.database}",
            )
    return [known[version] for version in chosen]


def refuse_changed(tenant: str, migrations: Sequence[Migration], folders: Folders) -> None:
    """Raise ChecksumDiffers when a file changed after it was applied."""
    for migration in migrations:
        if migration.state == "changed":
            earlier = (m.version for m in migrations if m.state != "pending" and m.version < migration.version)
            before = max(earlier, default="0")
            raise ChecksumDiffers(
                f"{folders.paths[migration.version]} changed after it was applied to {tenant}",
                why="an applied migration is history: other tenants would get another schema from it",
                hint=[
                    "restore the file and put the change into a new migration",
                    f"or, losing what it made, apply it anew: posduif migrate down {tenant} --to {before}",
                ],
            )


@dataclass(frozen=True)
class _Run:
    """One section of one file on one tenant.

    *current* is the record as it was read under the tenant's lock, *done* the set of versions once the section is
    through; *complete* says that the version table has our columns.
    """

    conn: Session
    file: File
    section: Section
    folders: Folders
    hooks: Hooks
    current: record.Record
    done: set[str]
    complete: bool
    taking_back: bool

    @property
    def _key(self) -> str:
        """What the file goes by in the progress table."""
        return self.file.version + (DOWN if self.taking_back else "")

    @property
    def _again(self) -> str:
        return half_step(self.conn.database, self._key)

    def apply(self) -> None:
        try:
            if self.section.transactional:
                self._patiently(self._whole)
            else:
                self._piecemeal()
        except MigrationFailed as error:
            if self.conn.cancelled:
                raise Interrupted("interrupted") from error
            if not self.conn.broken:
                self.conn.restore()
                failure = Failure(self.file.version, error.sqlstate, self.file.path.name, error.line, datetime.now(UTC))
                # A comment that someone holds must not hide what failed.
                with suppress(Blocked), self.conn.transaction(lock_timeout=self.folders.lock_timeout):
                    record.write(self.conn, replace(self.current, failed=failure))
            raise

    @contextmanager
    def _transaction(self, *, at_once: bool = False) -> Iterator[None]:
        limits = self.folders
        with (
            self._blamed(),
            self.conn.transaction(
                lock_timeout=limits.lock_timeout,
                statement_timeout=limits.statement_timeout,
                # An earlier statement may have changed both for the session; after a file it is restored.
                prelude=() if at_once else ["SET LOCAL ROLE posduif_admin", "SET LOCAL search_path = public"],
                at_once=at_once,
            ),
        ):
            yield

    def _whole(self) -> None:
        started = time.monotonic()
        with self._transaction(at_once=True):
            self._run(self.section.statements, [])
            self._finish(started, [])

    def _run(self, statements: Sequence[Statement], further: Sequence[str]) -> list[Row]:
        """Run statements of the file, and what belongs to them, in one message; return the first row of each."""
        rows, failure = self.conn.batch([*(statement.text for statement in statements), *further])
        if failure is not None:
            index, error = failure
            with self._blamed(statements[index] if index < len(statements) else None):
                raise error
        return rows

    def _finish(self, started: float, further: Sequence[str]) -> None:
        """Run what ends the last transaction of every migration: grants, the version row, the record."""
        conn, named, after = self.conn, queries.load("migrations"), _after(self.current, self.done)
        version: dict[str, object] = {"version": self.file.version}
        if not self.taking_back:
            duration = round((time.monotonic() - started) * 1000)
            version |= {"checksum": self.file.checksum, "duration_ms": duration, "applied_by": conn.login}
        if not all(_keeps_rights(statement.shape) for statement in self.section.statements):
            with self._blamed():
                grant(conn)
        ending = [
            "SET LOCAL ROLE posduif_admin",
            *([] if self.complete else [named["create_table"]]),
            conn.text(named["delete_applied" if self.taking_back else "add_applied"], **version),
            *record.storing(conn, conn.database, after),
        ]
        rows = self._run([], [*further, *ending])
        if (self.file.version,) not in rows:
            raise OperationFailed(
                f"the version table of {conn.database} did not take the row of migration {self.file.version}",
                why="a trigger or rule on schema_migrations stands against it; nothing of this migration was kept",
                hint=f"a superuser looks, in {conn.database}: \\d public.schema_migrations",
            )
        record.require_stored(conn, conn.database)

    def _patiently(self, attempt: Callable[[], None]) -> None:
        """Try again while locks are not to be had, until PATIENCE is over; then name who held them."""
        deadline = time.monotonic() + PATIENCE.total_seconds()
        pause, limit = 0.25, self.folders.lock_timeout.total_seconds()
        blockers: tuple[str, ...] = ()
        # A thread costs more than most migrations do, so nobody is looked for before a first try has failed.
        watched = limit * 2 > PATIENCE.total_seconds()
        while True:
            seen: list[tuple[str, ...]] = []
            watch = threading.Timer(limit * 0.7, self._look, [seen])
            watch.daemon = True
            if watched:
                watch.start()
            try:
                return attempt()
            except Blocked as error:
                blockers = (seen[-1] if seen else ()) or blockers
                if self.conn.cancelled:
                    raise Interrupted("interrupted") from error
                if time.monotonic() + pause + limit > deadline:
                    raise Blocked(
                        f"migration {self.file.path.name} got no lock in {self.conn.database}",
                        why=f"blocked by {'; '.join(blockers)}" if blockers else error.why,
                        hint=f"{self._again}, when that is done",
                    ) from error
            finally:
                watch.cancel()
            watched = True
            if self.section.transactional:
                self.conn.script("DEALLOCATE ALL")  # what the file prepared outlived its transaction
            time.sleep(pause)
            pause = min(pause * 2, 5)

    def _look(self, seen: list[tuple[str, ...]]) -> None:
        seen.append(self.hooks.blockers(self.conn.pid))

    def _piecemeal(self) -> None:
        """Run the statements one by one, each with its progress row, so that a kill loses at most its place."""
        conn, named = self.conn, queries.load("migrations")
        started = time.monotonic()
        key, statements = self._key, self.section.statements
        for statement in statements:
            if scripts.alone(statement) and scripts.target(statement).kind == "other":
                raise self._unjudged(statement)
        with self._transaction():
            conn.script(named["create_progress"])
            done = dict(conn.tuples(named["list_done"], version=key))
        # Statement by statement: what failed can be mended in the file, what is done is history.
        marks = {number: _mark(statement) for number, statement in enumerate(statements, 1)}
        if any(marks.get(number) != mark for number, mark in done.items()):
            raise ChecksumDiffers(
                f"{self.file.path} changed after {len(done)} of its statements were run in {conn.database}",
                why="it is half applied, and the other half would come from another file",
                hint="restore the statements that were run, and put the change behind them or into a new migration",
            )
        for number, statement in enumerate(statements, 1):
            if number in done:
                if scripts.is_setting(statement):  # it went with the session that was interrupted
                    with self._blamed(statement):
                        conn.script(statement.text)
                continue
            step = {"version": key, "statement": number, "checksum": marks[number]}
            try:
                self._patiently(partial(self._one, statement, step))
            except MigrationFailed as error:
                if error.sqlstate != CANNOT_RUN_IN_TRANSACTION:
                    raise
                self._bare(statement, step)
        with self._transaction():
            self._finish(started, [conn.text(named["delete_progress"], version=key), named["drop_progress"]])

    def _one(self, statement: Statement, step: dict[str, object]) -> None:
        with self._transaction():
            mark = self.conn.text(queries.load("migrations")["mark_done"], **step)
            self._run([statement], ["SET LOCAL ROLE posduif_admin", mark])

    def _bare(self, statement: Statement, step: dict[str, object]) -> None:
        """Run a statement that PostgreSQL keeps out of transactions, judging by the catalog what a kill left."""
        conn, named = self.conn, queries.load("migrations")
        what = scripts.target(statement)
        if what.kind == "other":
            raise self._unjudged(statement)
        milliseconds = round(self.folders.statement_timeout.total_seconds() * 1000 * CONCURRENT_FACTOR)
        # SET LOCAL does nothing outside a transaction, and a lock_timeout would leave an invalid index.
        conn.script("SET ROLE posduif_admin; SET search_path = public; SET lock_timeout = 0")
        conn.script(f"SET statement_timeout = {milliseconds}")
        try:
            if not self._was_done(what, step):
                self._tell_of_waiting()
                with self._blamed(statement):
                    conn.script(statement.text)
            conn.execute(named["mark_done"], **step)
        finally:
            if not conn.raw.closed:
                conn.script("SET statement_timeout = 0")

    def _tell_of_waiting(self) -> None:
        waiting = self.conn.tuples(queries.load("migrations")["find_open_transactions"])
        if waiting:
            who = ", ".join(f"pid {pid} ({role}, {app or 'no name'})" for pid, role, app in waiting)
            self.hooks.tell(f"{self.conn.database}: {self.file.path.name} waits for the transactions of {who}")

    def _was_done(self, what: Target, step: dict[str, object]) -> bool:
        """Clear away what an earlier try left; True when it did all of the statement's work.

        The intent is noted only where the statement has something to do: else an index that someone else made,
        or a name that was never there, would pass for the work of an earlier try.
        """
        conn, named = self.conn, queries.load("migrations")
        begun = bool(
            conn.value(
                named["is_begun"], version=step["version"], statement=step["statement"], checksum=step["checksum"]
            )
        )
        if what.kind == "create_index_concurrently":
            name = what.names[0]
            state = self._settled(lambda: self._index(name), name.name)
            if state == "valid":
                return begun
            if state == "invalid":
                self._drop_wreck(name)
        elif what.kind == "drop_index_concurrently":
            if all(self._settled(partial(self._index, name), name.name) is None for name in what.names):
                return begun
        elif what.kind == "reindex_concurrently":
            for schema, wreck in conn.tuples(named["find_reindex_wrecks"]):
                name = Name(schema, wreck)
                if self._settled(partial(self._index, name), wreck) == "invalid":
                    self._drop_wreck(name)
        if not begun:
            conn.execute(named["mark_begun"], **step)
        return False

    def _settled(self, look: Callable[[], str | None], index: str) -> str | None:
        """Return the state of an index once nobody works on it: a backend whose client died may still build it."""
        deadline = time.monotonic() + self.folders.statement_timeout.total_seconds() * CONCURRENT_FACTOR
        told = False
        while (state := look()) == "building":
            if not told:
                self.hooks.tell(f"{self.conn.database}: another session works on index {index}; waiting for it")
                told = True
            if time.monotonic() > deadline:
                raise Blocked(f"index {index} of {self.conn.database} is still being built by another session")
            time.sleep(0.2)
        return state

    def _drop_wreck(self, name: Name) -> None:
        self.hooks.tell(f"{self.conn.database}: dropping the invalid index {name.name}, to build it again")
        self._tell_of_waiting()
        whole = identifier(name.schema or "public", name.name)
        self.conn.execute(compose("DROP INDEX CONCURRENTLY IF EXISTS {name}", name=whole))

    def _index(self, name: Name) -> str | None:
        found = self.conn.value(
            queries.load("migrations")["find_index_state"], schema=name.schema or "public", index=name.name
        )
        return None if found is None else str(found)

    def _unjudged(self, statement: Statement) -> MigrationFailed:
        return MigrationFailed(
            f"migration {self.file.path.name}:{statement.line} cannot be run in {self.conn.database}",
            why="after a kill nobody could tell whether this statement, which takes no transaction, was done",
            hint=f"run it by hand, and take it out of {self.file.path}",
            sqlstate=CANNOT_RUN_IN_TRANSACTION,
            file=self.file.path.name,
            line=statement.line,
        )

    @contextmanager
    def _blamed(self, statement: Statement | None = None) -> Iterator[None]:
        """Turn an error of the migration's SQL into MigrationFailed, with the line of *statement*."""
        try:
            yield
        except (QueryFailed, AccessDenied, StandbyServer) as error:
            sqlstate = error.sqlstate if isinstance(error, QueryFailed) else "42501"
            if isinstance(error, StandbyServer):
                sqlstate = READ_ONLY  # the server takes changes, or nothing would have got here
            position = (error.position if isinstance(error, QueryFailed) else None) or 1
            line, excerpt = None, None
            if statement is not None:
                line, excerpt = scripts.locate(self.section, statement.offset + position)
            where = f"{self.file.path.name}:{line}" if line else self.file.path.name
            kept = "nothing of this migration was kept"
            if not self.section.transactional:
                kept = "the statements before it are done and will not run again"
            raise MigrationFailed(
                f"migration {where} failed in {self.conn.database}: {error.message.partition(': ')[2] or error.why}",
                why=f"SQLSTATE {sqlstate}; {kept}",
                hint=[
                    f"mend what stands against it, or, where no tenant has it yet, {self.file.path}",
                    self._again,
                ],
                sqlstate=sqlstate,
                file=self.file.path.name,
                line=line,
                excerpt=excerpt,
            ) from error


@cache
def _keeps_rights(shape: str) -> bool:
    """Whether a statement leaves `grants.sql` nothing to do; where this is not certain it is run, which takes time."""
    if _KEEPS_RIGHTS.match(shape) is None:
        return False
    added = _ADDED.findall(shape) if shape.startswith("alter") else []
    return not any(name == '""' or re.search(rf"\b{re.escape(name)}\b", grants()) for name in added)


def grant(conn: Session) -> None:
    """Run `grants.sql` in the transaction under way; raises UnsafeServer when it had not all of its effect."""
    look = queries.load("migrations")["look_at_rights"]
    rows, failure = conn.batch(["SET LOCAL ROLE posduif_admin", grants(), look])
    if failure is not None:
        raise failure[1]
    hold, is_open = rows[-1]
    admin.require_rights(conn.database, hold=hold != "f", is_open=is_open == "t")


@cache
def grants() -> str:
    """Return the text of `grants.sql`."""
    return queries.bundled("grants.sql").read_text(encoding="utf-8")


def _mark(statement: Statement) -> str:
    return hashlib.sha256(statement.text.encode()).hexdigest()


def _after(current: record.Record, done: set[str]) -> record.Record:
    """Return the record of a tenant that has these versions."""
    return replace(current, schema=max(done, default=None), applied=digest(done), failed=None)
