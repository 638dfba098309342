"""One section of one migration file on one tenant: run it, try again while locks are held, blame what failed."""

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import timedelta

from posduif_cli.core.fleet.crew import FIRST_PAUSE, LAST_PAUSE
from posduif_cli.core.folders import Folders, digest
from posduif_cli.core.schema import grants, half, history, parse
from posduif_cli.core.schema.files import File
from posduif_cli.core.schema.parse import Section, Statement
from posduif_cli.db import queries, record
from posduif_cli.db.patience import LIMITS, Patience
from posduif_cli.db.pipeline import Answer, Pipeline
from posduif_cli.db.session import Session
from posduif_cli.errors import (
    AccessDenied,
    Blocked,
    Interrupted,
    MigrationFailed,
    OperationFailed,
    PosduifError,
    QueryFailed,
    StandbyServer,
)
from posduif_cli.models.tenants import Failure

READ_ONLY = "25006"


@dataclass(frozen=True)
class Hooks:
    """What a run over tenants lends to the run of each: who blocks a session, a way to tell, a way to read a record.

    *recall* reads the record of a session's tenant from elsewhere: a new session's first look into the shared
    catalogs takes many times as long. It is None where no other session could read it. *harmless* has what leaves
    `grants.sql` nothing to do. *before* is called with a session in a tenant before anything is applied to it.
    """

    blockers: Callable[[int], tuple[str, ...]] = lambda pid: ()
    tell: Callable[[str], None] = lambda text: None
    recall: Callable[[Session], record.Record] | None = None
    harmless: set[grants.Effect] = field(default_factory=set)
    before: Callable[[Session], object] | None = None


def patience(conn: Session) -> Patience:
    """Return the patience of a session with locks that other sessions hold on its tenant's tables."""
    return Patience("blocked", pause=FIRST_PAUSE, longest=LAST_PAUSE, interrupted=lambda: conn.cancelled)


def wait_for(who: str, error: Blocked) -> str:
    """Return who holds a lock, or what the server said where no session is seen, and when to try again."""
    return f"{f'blocked by {who}' if who else error.why}; run the command again when that is done"


def reached(current: record.Record, versions: set[str]) -> record.Record:
    """Return the record of a tenant that has these versions, and no failure since."""
    return replace(current, schema=max(versions, default=None), applied=digest(versions), failed=None)


@dataclass(frozen=True)
class Runner:
    """One section of one file on one tenant; a transactional section is run as a whole.

    *current* is the record as it was read under the tenant's lock, *done* the set of versions once the section is
    through; *complete* says that the version table has our columns, *first* that it is the session's first file.
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
    first: bool

    @property
    def key(self) -> str:
        """What the file goes by in the progress table."""
        return self.file.version + (history.DOWN if self.taking_back else "")

    def apply(self) -> None:
        """Run the section, or note in the record what failed, and raise it."""
        try:
            self.run()
        except MigrationFailed as error:
            if self.conn.cancelled:
                raise Interrupted("interrupted") from error
            if not self.conn.broken:
                self.conn.restore()
                time = self.conn.value("SELECT clock_timestamp()")
                failure = Failure(self.file.version, error.sqlstate, self.file.path.name, error.line, time)
                # A comment that another session holds must not hide what failed.
                with suppress(Blocked), self.conn.transaction(lock_timeout=self.folders.lock_timeout):
                    record.write(self.conn, replace(self.current, failed=failure))
            raise

    def run(self) -> None:
        """Run the whole section in one transaction; raises MigrationFailed or Blocked."""
        self.patiently(self._whole)

    def _whole(self) -> None:
        count = queries.load("schema/history")["count_changes"]
        with self.transaction() as pipeline:
            # A session that has run no file yet has changed no catalog either.
            before = None if self.first else pipeline.execute(count)
            ran = {pipeline.script(statement.text)[0]: statement for statement in self.section.statements}
            after = pipeline.execute(count)
            self.finish(pipeline, ran)
            changes = grants.changes(before, after)
            effect = self.conn.server.name, self.key, changes
            if effect not in self.hooks.harmless:
                with self.blamed():
                    idle = grants.run(self.conn)
                # To the catalogs of the first count `grants.sql` always writes, so that it cannot tell what it found.
                # Code may do another thing in each tenant, which counts alike.
                if idle and changes[:1] == (0,) and all(map(parse.declares, self.section.statements)):
                    self.hooks.harmless.add(effect)

    @contextmanager
    def transaction(self) -> Iterator[Pipeline]:
        """Run the block in one transaction, which begins with the pipeline that the block gets."""
        limits, pipeline = self.folders, self.conn.pipeline()
        with (
            self.blamed(),
            self.conn.transaction(
                lock_timeout=limits.lock_timeout, statement_timeout=limits.statement_timeout, first=pipeline
            ),
        ):
            yield pipeline

    def send(self, pipeline: Pipeline, ran: Mapping[Answer, Statement]) -> None:
        """Send what is queued; *ran* are the statements of the file in it, which get the blame for their errors."""
        try:
            # A migration that sets a limit of its own may take longer than ours.
            pipeline.send(limited=not any("statement_timeout" in statement.text for statement in ran.values()))
        except PosduifError as error:
            with self.blamed(ran.get(pipeline.failed) if pipeline.failed else None):
                raise error

    def finish(self, pipeline: Pipeline, ran: Mapping[Answer, Statement], *, spent: timedelta = timedelta(0)) -> None:
        """Send what is queued and what ends the last transaction of every migration: the version row, the record.

        *spent* is the time that the file took before this transaction.
        """
        conn, named = self.conn, queries.load("schema/history")
        pipeline.execute("SET LOCAL ROLE posduif_admin")
        if not self.complete:
            pipeline.execute(named["create_table"])
            pipeline.execute(named["complete_table"])
        row = pipeline.execute(
            named["delete_applied" if self.taking_back else "add_applied"],
            version=self.file.version,
            checksum=self.file.checksum,
            duration_ms=round(spent.total_seconds() * 1000),
            applied_by=conn.login,
        )
        record.storing(pipeline, conn.database, reached(self.current, self.done))
        self.send(pipeline, ran)
        if not row.rows:
            raise OperationFailed(
                f"the version table of {conn.database} did not take the row of migration {self.file.version}",
                why="a trigger or rule on schema_migrations prevents it; nothing of this migration was kept",
                hint=f"a superuser looks, in {conn.database}: \\d public.schema_migrations",
            )
        record.require_stored(pipeline, conn.database)

    def patiently(self, attempt: Callable[[], None]) -> None:
        """Try again while locks cannot be obtained, until the patience is over; then name who held them."""
        limit = self.folders.lock_timeout
        tries = patience(self.conn)
        blockers: tuple[str, ...] = ()
        # A thread costs more than most migrations do, so no blocker is looked for before a first try has failed.
        watched = limit * 2 > LIMITS["blocked"]
        while True:
            seen: list[tuple[str, ...]] = []
            watch = threading.Timer(limit.total_seconds() * 0.7, self._look, [seen])
            watch.daemon = True
            if watched:
                watch.start()
            try:
                return attempt()
            except Blocked as error:
                blockers = (seen[-1] if seen else ()) or blockers
                if self.section.transactional:
                    self.conn.script("DEALLOCATE ALL")  # what the file prepared outlived its transaction
                if not tries.again(needed=limit):
                    raise Blocked(
                        f"migration {self.file.path.name} got no lock in {self.conn.database}",
                        why=wait_for("; ".join(blockers), error),
                        hint=half.again(self.conn.database, self.key),
                    ) from error
            finally:
                watch.cancel()
            watched = True

    def _look(self, seen: list[tuple[str, ...]]) -> None:
        seen.append(self.hooks.blockers(self.conn.pid))

    @contextmanager
    def blamed(self, statement: Statement | None = None) -> Iterator[None]:
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
                    half.again(self.conn.database, self.key),
                ],
                sqlstate=sqlstate,
                file=self.file.path.name,
                line=line,
                excerpt=excerpt,
            ) from error
