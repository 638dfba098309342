"""A section without a transaction: each statement by itself with its progress row, so that a kill loses no place."""

import time
from dataclasses import dataclass
from datetime import timedelta
from functools import partial

from posduif_cli.core.schema import grants, half, parse
from posduif_cli.core.schema.parse import Statement, Target
from posduif_cli.core.schema.runner import Runner
from posduif_cli.core.schema.wrecks import Wrecks
from posduif_cli.db import queries
from posduif_cli.errors import ChecksumDiffers, MigrationFailed

CONCURRENT_FACTOR = 12  # an index build outside a transaction may take this many times the statement_timeout
CANNOT_RUN_IN_TRANSACTION = "25001"
# An earlier statement may have changed both for the session; after a file it is restored.
OURS = ("SET LOCAL ROLE posduif_admin", "SET LOCAL search_path = public")


@dataclass(frozen=True)
class Stepwise(Runner):
    """One section that is run statement by statement; a statement that was done is not run again."""

    def run(self) -> None:
        """Run what is left of the section; raises ChecksumDiffers where a statement changed after it was run."""
        conn, named = self.conn, queries.load("schema/history")
        started = time.monotonic()
        statements = self.section.statements
        for statement in statements:
            if parse.alone(statement) and parse.target(statement).kind == "other":
                raise self._unjudged(statement)
        with self.transaction() as pipeline:
            pipeline.script(*OURS)
            pipeline.execute(named["create_progress"])
            listed = pipeline.execute(named["list_done"], version=self.key)
            pipeline.send()
        done = dict(listed.rows)
        # Statement by statement: what failed can be fixed in the file, what is done is history.
        marks = {number: half.mark(statement) for number, statement in enumerate(statements, 1)}
        if any(marks.get(number) != mark for number, mark in done.items()):
            raise ChecksumDiffers(
                f"{self.file.path} changed after {len(done)} of its statements were run in {conn.database}",
                why="it is half applied, and the other half would come from another file",
                hint="restore the statements that were run, and put the change behind them or into a new migration",
            )
        for number, statement in enumerate(statements, 1):
            if number in done:
                if parse.is_setting(statement):  # it went with the session that was interrupted
                    with self.blamed(statement):
                        conn.script(statement.text)
                continue
            step = {"version": self.key, "statement": number, "checksum": marks[number]}
            try:
                self.patiently(partial(self._one, statement, step))
            except MigrationFailed as error:
                if error.sqlstate != CANNOT_RUN_IN_TRANSACTION:
                    raise
                self._bare(statement, step)
        with self.transaction() as pipeline:
            pipeline.script(*OURS)
            pipeline.execute(named["delete_progress"], version=self.key)
            self.finish(pipeline, {}, spent=timedelta(seconds=time.monotonic() - started))
            with self.blamed():
                grants.run(conn)

    def _one(self, statement: Statement, step: dict[str, object]) -> None:
        """Run a statement and note it as done, in one transaction."""
        with self.transaction() as pipeline:
            pipeline.script(*OURS)
            [ran] = pipeline.script(statement.text)
            pipeline.execute("SET LOCAL ROLE posduif_admin")
            pipeline.execute(queries.load("schema/history")["mark_done"], **step)
            self.send(pipeline, {ran: statement})

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
            wrecks = Wrecks(conn, self.file.path.name, self.hooks.tell, long)
            if not self._was_done(wrecks, what, step):
                wrecks.tell_of_waiting()
                with self.blamed(statement):
                    conn.script(statement.text)
            conn.execute(named["mark_done"], **step)

    def _was_done(self, wrecks: Wrecks, what: Target, step: dict[str, object]) -> bool:
        """Clear away what an earlier try left; return whether that try did all of the statement's work.

        The intent is noted only where the statement has something to do: else an index that another session made,
        or a name that was never there, would pass for the work of an earlier try.
        """
        named = queries.load("schema/history")
        begun = bool(self.conn.value(named["is_begun"], **step))
        if wrecks.clear(what):
            return begun
        if not begun:
            self.conn.execute(named["mark_begun"], **step)
        return False

    def _unjudged(self, statement: Statement) -> MigrationFailed:
        return MigrationFailed(
            f"migration {self.file.path.name}:{statement.line} cannot be run in {self.conn.database}",
            why="after a kill nobody could tell whether this statement, which takes no transaction, was done",
            hint=f"run it by hand, and take it out of {self.file.path}",
            sqlstate=CANNOT_RUN_IN_TRANSACTION,
            file=self.file.path.name,
            line=statement.line,
        )
