"""Migrations of one tenant: apply what is pending, take back what was applied, abandon what is half done."""

import hashlib
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import partial
from typing import TypeVar

from posduif_cli.core.fleet.run import who_is
from posduif_cli.core.folders import Folders, digest, newest_bundled
from posduif_cli.core.schema import files, grants, history, parse
from posduif_cli.core.schema.files import File
from posduif_cli.core.schema.parse import Name, Section, Statement, Target
from posduif_cli.db import queries, record
from posduif_cli.db.patience import LIMITS
from posduif_cli.db.quoting import compose, identifier
from posduif_cli.db.session import Row, Session
from posduif_cli.errors import (
    AccessDenied,
    Blocked,
    ChecksumDiffers,
    Conflict,
    Interrupted,
    MigrationFailed,
    MigrationNotFound,
    OperationFailed,
    QueryFailed,
    Refused,
    Run,
    StandbyServer,
    UsageError,
    WrongState,
)
from posduif_cli.models.schema import Migration
from posduif_cli.models.tenants import Failure, State

T = TypeVar("T")

COUNTING = timedelta(seconds=10)  # for each count of what would be lost
CONCURRENT_FACTOR = 12  # an index build outside a transaction may take this many times the statement_timeout

CANNOT_RUN_IN_TRANSACTION = "25001"
READ_ONLY = "25006"


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


def _answered(stack: ExitStack, conn: Session, folders: Folders, asking: Sequence[str]) -> list[list[Row]] | None:
    """Take the tenant's lock with some questions, again while they find the version table locked; raises Blocked."""
    deadline, pause = time.monotonic() + LIMITS["blocked"].total_seconds(), 0.25
    while True:
        try:
            lock = conn.lock(conn.database, asking=asking, lock_timeout=folders.lock_timeout, keep=True)
            return stack.enter_context(lock)
        except Blocked as error:
            holders = conn.tuples(queries.load("schema/history")["find_holders"])
            if time.monotonic() + pause + folders.lock_timeout.total_seconds() > deadline:
                who = "; ".join(who_is(*holder) for holder in holders)
                raise Blocked(
                    f"the version table of {conn.database} is locked",
                    why=_wait_for(who, error),
                    hint=Run("migrate", "up", conn.database),
                ) from error
        if conn.cancelled:
            raise Interrupted("interrupted")
        time.sleep(pause)
        pause = min(pause * 2, 5)


def _wait_for(who: str, error: Blocked) -> str:
    """Say who holds a lock, or what the server said where nobody is seen, and when to try again."""
    return f"{f'blocked by {who}' if who else error.why}; run the command again when that is done"


@contextmanager
def _locked(
    conn: Session, folders: Folders, states: Sequence[State], hooks: Hooks, *, down: bool = False
) -> Iterator[tuple[record.Record, dict[str, history.Row], dict[str, int], bool]]:
    """Take the tenant's lock, and give the block what is known of the tenant, from as few messages as can be.

    That is its record, the rows of its version table, what `half_done` returns, and whether the table has all of
    our columns. Raises Conflict for a half-applied file that has to be finished or abandoned first.
    """
    named = queries.load("schema/history")
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
            raise WrongState(f"tenant {conn.database} is {current.state}", hint=Run("tenant", "show", conn.database))
        half = history.half_done(conn) if answers is None or answers[1] == [("t",)] else {}
        for key, done in half.items():
            if key.endswith(history.DOWN) is not down or key.removesuffix(history.DOWN) not in folders.paths:
                raise _by_half(conn.database, key, done, folders)
        if new and answers is not None and answers[0] == [("f",)]:
            yield current, {}, half, False
        elif new or answers is None:
            rows, complete = history.table(conn)
            yield current, rows, half, complete
        else:
            rows = {
                str(version): history.Row(str(version), checksum, None, None, None) for version, checksum in answers[0]
            }
            yield current, rows, half, True


def up(
    conn: Session, *, folders: Folders, states: Sequence[State] = (State.ACTIVE,), hooks: Hooks | None = None
) -> Applied:
    """Apply a tenant's pending migrations, each with its version row and the record in one transaction.

    The tenant's lock is kept until the session ends. Raises Busy when another session works on the tenant, Blocked
    after waiting for locks, WrongState via the record, ChecksumDiffers when an applied file changed,
    ConfigurationError, before anything is changed, when a pending file is faulty, MigrationFailed with file and line
    when SQL fails; then a transactional migration left nothing, and of another the statements that were done are
    kept and not run again.
    """
    hooks = hooks or Hooks()
    with _locked(conn, folders, states, hooks) as (current, rows, half, complete):
        pending = _pending(conn.database, history.of(rows, half, folders), folders)
        done = set(rows)
        before = max(done, default=None)
        for number, file in enumerate(pending):
            if number:
                _next(conn)
            done.add(file.version)
            _Run(conn, file, file.up, folders, hooks, current, done, complete, taking_back=False).apply()
            complete, current = True, _after(current, done)
        if not pending and current != (right := _after(current, done)):
            with conn.transaction(lock_timeout=folders.lock_timeout):
                record.write(conn, right)
        conn.bundled = newest_bundled(done)
        return Applied(before, max(done, default=None), tuple(file.version for file in pending))


def to_apply(conn: Session, *, folders: Folders) -> list[File]:
    """Return the files that `up` would apply, in their order; raises as it for changed, half and faulty files."""
    for key, done in history.half_done(conn).items():
        if key.endswith(history.DOWN) or key not in folders.paths:
            raise _by_half(conn.database, key, done, folders)
    return _pending(conn.database, history.read(conn, folders=folders), folders)


def _pending(tenant: str, migrations: Sequence[Migration], folders: Folders) -> list[File]:
    refuse_changed(tenant, migrations, folders)
    pending = [m.version for m in migrations if m.state in ("pending", "half")]
    if pending and folders.misnamed:  # which would have to be run, or come first, cannot be told
        raise next(iter(folders.misnamed.values()))
    return [files.of(folders).one(version) for version in pending]


def down(
    conn: Session,
    *,
    folders: Folders,
    to: str | None = None,
    steps: int | None = None,
    bundled: bool = False,
    planned: Sequence[str] | None = None,
    hooks: Hooks | None = None,
) -> Applied:
    """Take back a tenant's newest migrations, down to version *to* (which stays) or *steps* of them.

    Raises as `up` and, before anything is changed, as `to_take_back`; and Conflict when they are not those that
    were *planned*, and so confirmed.
    """
    hooks = hooks or Hooks()
    with _locked(conn, folders, (State.ACTIVE,), hooks, down=True) as (current, rows, _, complete):
        files = to_take_back(conn, folders=folders, to=to, steps=steps, bundled=bundled)
        versions = [file.version for file in files]
        if planned is not None and versions != list(planned):
            raise Conflict(
                f"{conn.database} changed since it was asked what to take back",
                why=f"that was {', '.join(planned)}; by now it would be {', '.join(versions) or 'nothing'}",
                hint=Run("migrate", "list", conn.database),
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
        conn.bundled = newest_bundled(done)
        return Applied(before, max(done, default=None), tuple(file.version for file in files))


def _by_half(tenant: str, key: str, done: int, folders: Folders) -> Conflict:
    """Say that a file without a transaction is to be finished or abandoned before anything else is run."""
    version, path = key.removesuffix(history.DOWN), folders.paths.get(key.removesuffix(history.DOWN))
    what = "taken back" if key.endswith(history.DOWN) else "applied"
    return Conflict(
        f"migration {version} of {tenant} is {what} by half",
        why=f"{done} statement{'' if done == 1 else 's'} of it ran" + ("" if path else ", and its file is gone"),
        hint=[
            f"fix what stopped {path}, and finish it" if path else "bring its file back and finish it, or abandon it",
            *half_steps(tenant, key, folders),
        ],
    )


def half_steps(tenant: str, key: str, folders: Folders) -> list[Run]:
    """Return the commands that finish or abandon a half-applied file, by its key in `half_done`."""
    version = key.removesuffix(history.DOWN)
    abandoning = Run("migrate", "abandon", tenant, version, "--confirm", tenant)
    return [*([_again(tenant, key)] if version in folders.paths else []), abandoning]


def _again(tenant: str, key: str) -> Run:
    if key.endswith(history.DOWN):
        return Run("migrate", "down", tenant, "--steps", "1")
    return Run("migrate", "up", tenant)


def _next(conn: Session) -> None:
    """Go on to a run's next file, with the session as it was before the last; raises Interrupted."""
    if conn.cancelled:
        raise Interrupted("interrupted")
    conn.restore()


def to_take_back(
    conn: Session, *, folders: Folders, to: str | None, steps: int | None, bundled: bool = False
) -> list[File]:
    """Return the files that `down` would take back, the newest first.

    Raises Conflict where one has no down section or no file, ConfigurationError where its file is faulty, Refused
    where one is posduif's own and *bundled* does not say so, UsageError for a version *to* that nobody knows; 0
    stands for all of them.
    """
    done = sorted(history.applied(conn), reverse=True)
    if to is not None and to.strip("0") and to not in {*done, *folders.paths}:
        raise UsageError(
            f"there is no migration {to} to go back to",
            why="neither a file nor the tenant has it; versions are compared as they are written, zeros included",
            hint=Run("migrate", "list", conn.database),
        )
    chosen = [version for version in done if to is None or version > to][: steps if to is None else None]
    own = next((version for version in chosen if version in folders.bundled), None)
    if own is not None and not bundled:
        raise Refused(
            f"migration {own} of {conn.database} is posduif's own and is not taken back without --bundled",
            why="nothing was taken back; posduif's commands and the sync engine need its tables and columns",
            hint=["take back fewer, with --steps or --to", "or add --bundled, and lose the data in them"],
        )
    for version in chosen:
        if version in folders.paths and files.of(folders).one(version).down is not None:
            continue
        path = folders.paths.get(version)
        raise Conflict(
            f"migration {version} of {conn.database} cannot be taken back",
            why=f"{path} has no `-- migrate:down` section" if path else "its file is gone",
            hint=Run("migrate", "list", conn.database),
        )
    return [files.of(folders).one(version) for version in chosen]


def count_rows(conn: Session, files: Sequence[File], *, folders: Folders) -> dict[str, int | None]:
    """Count what taking *files* back would destroy, by a name for each kind of thing; None where it is not counted.

    Of bundled files those are users, devices, messages and tokens, of others the rows of the tables that a down
    section drops or truncates by name; a section that does more is not counted.
    """
    counts: dict[str, int | None] = {}
    if any(file.version in folders.bundled for file in files):
        found = _counted(conn, lambda: conn.dicts(queries.load("schema/history")["count_people"])[0])
        counts |= found or dict.fromkeys(("users", "devices", "messages", "tokens"))
    for file in files:
        if file.version in folders.bundled or file.down is None:
            continue
        for statement in file.down.statements:
            names = parse.emptied(statement)
            for name in names:
                table = identifier(name.schema or "public", name.name)
                query = compose("SELECT count(*) FROM {table}", table=table)
                shown = f"rows of {'.'.join(filter(None, (name.schema, name.name)))}"
                counts[shown] = _counted(conn, lambda query=query: int(conn.value(query)))  # type: ignore[misc]
            if not names and not parse.keeps_rows(statement):
                counts[f"rows in {file.path.name}"] = None
    return counts


def _counted(conn: Session, count: Callable[[], T]) -> T | None:
    """Count, but for no longer than COUNTING; None where a table is not there, locked, or too large for that."""
    try:
        with conn.transaction(lock_timeout=COUNTING, statement_timeout=COUNTING):
            return count()
    except (QueryFailed, Blocked, AccessDenied):
        return None


@dataclass(frozen=True)
class Begun:
    """A statement of a half-applied file: its number, whether it was run to its end, and its text where known."""

    number: int
    done: bool
    text: str | None


def abandoning(conn: Session, version: str, *, folders: Folders) -> tuple[Begun, ...]:
    """Return the statements of a half-applied file that stay as they are when it is abandoned.

    None where the tenant has no half-applied file at all, so that there is nothing to do. Raises
    MigrationNotFound when it is not among those that the tenant has.
    """
    half = history.half_done(conn)
    key = next((key for key in half if key.removesuffix(history.DOWN) == version), None)
    if key is None:
        if not half:
            return ()
        raise MigrationNotFound(
            f"migration {version} of {conn.database} is not half applied",
            why=f"what is: {', '.join(sorted({key.removesuffix(history.DOWN) for key in half}))}",
            hint=Run("migrate", "list", conn.database),
        )
    file = files.of(folders).sound.get(version)
    section = (file.down if key.endswith(history.DOWN) else file.up) if file else None
    texts = dict(enumerate(section.statements if section else (), 1))
    return tuple(
        Begun(number, done, texts[number].text if number in texts and _mark(texts[number]) == mark else None)
        for number, done, mark in conn.tuples(queries.load("schema/history")["list_begun"], version=key)
    )


def abandon(conn: Session, version: str, *, folders: Folders, planned: Sequence[Begun]) -> bool:
    """Forget the progress of a half-applied file, running nothing of it; return whether there was any.

    The record's note of its failure goes with it. Raises Busy, WrongState via the record, and Conflict when what
    stays is not what was *planned*, and so confirmed.
    """
    conn.require_admin()
    with conn.lock(conn.database):
        current = record.read(conn)
        if current.state is not State.ACTIVE:
            raise WrongState(f"tenant {conn.database} is {current.state}", hint=Run("tenant", "show", conn.database))
        begun = abandoning(conn, version, folders=folders)
        if not begun:
            return False
        if begun != tuple(planned):
            raise Conflict(
                f"migration {version} of {conn.database} went on since it was asked whether to abandon it",
                hint=Run("migrate", "list", conn.database),
            )
        with conn.transaction(lock_timeout=folders.lock_timeout):
            for key in (version, version + history.DOWN):
                conn.execute(queries.load("schema/history")["delete_progress"], version=key)
            if current.failed is not None and current.failed.version == version:
                record.write(conn, replace(current, failed=None))
    return True


def refuse_changed(tenant: str, migrations: Sequence[Migration], folders: Folders) -> None:
    """Raise ChecksumDiffers when a file changed after it was applied."""
    for migration in migrations:
        if migration.state == "changed":
            done = [m.version for m in migrations if m.state != "pending"]
            before = max((version for version in done if version < migration.version), default="0")
            own = any(version > before and version in folders.bundled for version in done)
            raise ChecksumDiffers(
                f"{folders.paths[migration.version]} changed after it was applied to {tenant}",
                why="an applied migration is history: other tenants would get another schema from it",
                hint=[
                    "restore the file and put the change into a new migration",
                    "or apply it anew, which loses what it made; the next command takes it back",
                    Run("migrate", "down", tenant, "--to", before, *["--bundled"] * own),
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
        return self.file.version + (history.DOWN if self.taking_back else "")

    @property
    def _again(self) -> Run:
        return _again(self.conn.database, self._key)

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
                failure = Failure(
                    self.file.version,
                    error.sqlstate,
                    self.file.path.name,
                    error.line,
                    self.conn.value("SELECT clock_timestamp()"),
                )
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
        conn, named, after = self.conn, queries.load("schema/history"), _after(self.current, self.done)
        version: dict[str, object] = {"version": self.file.version}
        if not self.taking_back:
            duration = round((time.monotonic() - started) * 1000)
            version |= {"checksum": self.file.checksum, "duration_ms": duration, "applied_by": conn.login}
        if not all(grants.kept_by(statement.shape) for statement in self.section.statements):
            with self._blamed():
                grants.run(conn)
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
        """Try again while locks are not to be had, for as long as LIMITS says; then name who held them."""
        deadline = time.monotonic() + LIMITS["blocked"].total_seconds()
        pause, limit = 0.25, self.folders.lock_timeout.total_seconds()
        blockers: tuple[str, ...] = ()
        # A thread costs more than most migrations do, so nobody is looked for before a first try has failed.
        watched = limit * 2 > LIMITS["blocked"].total_seconds()
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
                        why=_wait_for("; ".join(blockers), error),
                        hint=self._again,
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
        conn, named = self.conn, queries.load("schema/history")
        started = time.monotonic()
        key, statements = self._key, self.section.statements
        for statement in statements:
            if parse.alone(statement) and parse.target(statement).kind == "other":
                raise self._unjudged(statement)
        with self._transaction():
            conn.script(named["create_progress"])
            done = dict(conn.tuples(named["list_done"], version=key))
        # Statement by statement: what failed can be fixed in the file, what is done is history.
        marks = {number: _mark(statement) for number, statement in enumerate(statements, 1)}
        if any(marks.get(number) != mark for number, mark in done.items()):
            raise ChecksumDiffers(
                f"{self.file.path} changed after {len(done)} of its statements were run in {conn.database}",
                why="it is half applied, and the other half would come from another file",
                hint="restore the statements that were run, and put the change behind them or into a new migration",
            )
        for number, statement in enumerate(statements, 1):
            if number in done:
                if parse.is_setting(statement):  # it went with the session that was interrupted
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
            self._finish(started, [conn.text(named["delete_progress"], version=key)])

    def _one(self, statement: Statement, step: dict[str, object]) -> None:
        with self._transaction():
            mark = self.conn.text(queries.load("schema/history")["mark_done"], **step)
            self._run([statement], ["SET LOCAL ROLE posduif_admin", mark])

    def _bare(self, statement: Statement, step: dict[str, object]) -> None:
        """Run a statement that PostgreSQL keeps out of transactions, judging by the catalog what a kill left."""
        conn, named = self.conn, queries.load("schema/history")
        what = parse.target(statement)
        if what.kind == "other":
            raise self._unjudged(statement)
        conn.script("SET ROLE posduif_admin; SET search_path = public")
        # A lock_timeout would leave an invalid index.
        long = self.folders.statement_timeout * CONCURRENT_FACTOR
        with conn.limited(lock_timeout=timedelta(0), statement_timeout=long):
            if not self._was_done(what, step):
                self._tell_of_waiting()
                with self._blamed(statement):
                    conn.script(statement.text)
            conn.execute(named["mark_done"], **step)

    def _tell_of_waiting(self) -> None:
        waiting = self.conn.tuples(queries.load("schema/history")["find_open_transactions"])
        if waiting:
            who = ", ".join(f"pid {pid} ({role}, {app or 'no name'})" for pid, role, app in waiting)
            self.hooks.tell(f"{self.conn.database}: {self.file.path.name} waits for the transactions of {who}")

    def _was_done(self, what: Target, step: dict[str, object]) -> bool:
        """Clear away what an earlier try left; True when it did all of the statement's work.

        The intent is noted only where the statement has something to do: else an index that someone else made,
        or a name that was never there, would pass for the work of an earlier try.
        """
        conn, named = self.conn, queries.load("schema/history")
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
            queries.load("schema/history")["find_index_state"], schema=name.schema or "public", index=name.name
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
                line, excerpt = parse.locate(self.section, statement.offset + position)
            where = f"{self.file.path.name}:{line}" if line else self.file.path.name
            kept = "nothing of this migration was kept"
            if not self.section.transactional:
                kept = "the statements before it are done and will not run again"
            raise MigrationFailed(
                f"migration {where} failed in {self.conn.database}: {error.message.partition(': ')[2] or error.why}",
                why=f"SQLSTATE {sqlstate}; {kept}",
                hint=[
                    f"fix what stops it in the tenant or, where no tenant has it yet, in {self.file.path}",
                    self._again,
                ],
                sqlstate=sqlstate,
                file=self.file.path.name,
                line=line,
                excerpt=excerpt,
            ) from error


def _mark(statement: Statement) -> str:
    return hashlib.sha256(statement.text.encode()).hexdigest()


def _after(current: record.Record, done: Collection[str]) -> record.Record:
    """Return the record of a tenant that has these versions, and no failure since."""
    return replace(current, schema=max(done, default=None), applied=digest(done), failed=None)
