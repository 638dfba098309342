"""Statements that go to the server together, in one round trip, by PostgreSQL's pipeline mode."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import psycopg
from psycopg.pq import DiagnosticField
from psycopg.rows import args_row

from posduif_cli.db.connection import Connection
from posduif_cli.db.quoting import Query
from posduif_cli.db.translate import Asked, translated
from posduif_cli.errors import PosduifError, QueryFailed, ServerUnreachable

STUCK = "cannot exit pipeline mode"  # libpq says so of a session that is there; psycopg takes it for a broken one


class Sending(Asked, Protocol):
    """The session that a pipeline is sent by."""

    raw: Connection
    version: int

    def require_schema(self, query: Query) -> None:
        """Raise SchemaBehind for a query that needs a newer schema than the tenant has."""

    def silence(self, statements: int) -> float | None:
        """Return the seconds after which a message of so many statements is given up."""


@dataclass(eq=False)
class Answer:
    """The rows that a queued statement returned, once its pipeline was sent."""

    rows: list[tuple[Any, ...]] = field(default_factory=list)

    @property
    def value(self) -> Any:
        """The first column of the first row, or None."""
        return self.rows[0][0] if self.rows else None


class Pipeline:
    """Statements that go to the server together and are run in their order, up to the first that fails.

    Outside a transaction they are one of their own. *failed* is the answer of the statement that `send` raised for,
    *warnings* has the SQLSTATEs of the notices and warnings of what was sent last. After COPY, and after a deferred
    constraint that fails at the end of a transaction of their own, psycopg cannot leave the pipeline: `send` ends the
    session.
    """

    def __init__(self, session: Sending) -> None:
        self.version = session.version
        self.failed: Answer | None = None
        self.warnings: frozenset[str | None] = frozenset()
        self.session = session
        self._queued: list[tuple[Query | bytes, Mapping[str, Any], Answer]] = []

    def execute(self, query: Query, **params: Any) -> Answer:
        """Queue one statement; the answer is empty until `send` returns."""
        self.session.require_schema(query)
        return self._queue(query, params)

    def script(self, *statements: str) -> list[Answer]:
        """Queue texts as they are, each one statement."""
        return [self._queue(statement.encode(), {}) for statement in statements]

    def _queue(self, query: Query | bytes, params: Mapping[str, Any]) -> Answer:
        answer = Answer()
        self._queued.append((query, params, answer))
        return answer

    def send(self, *, limited: bool = True) -> None:
        """Run what is queued, in one round trip; a position in an error counts from 1 within its statement.

        Without *limited* the server may take as long as it wants: a statement may set a limit of its own.
        """
        queued, self._queued, session = self._queued, [], self.session
        raw, cursors, notices = session.raw, list[psycopg.Cursor[Any]](), list[str | None]()

        def noted(notice: psycopg.errors.Diagnostic) -> None:
            notices.append(notice.sqlstate)

        raw.add_notice_handler(noted)
        raw.limit = session.silence(len(queued)) if limited else None
        try:
            with translated(session), raw.pipeline():
                for query, params, _ in queued:
                    cursors.append(raw.cursor(row_factory=args_row(bare)))
                    cursors[-1].execute(query, params or None, prepare=False)
        except (PosduifError, IndexError) as error:  # psycopg's own, of a result that it did not expect
            done = sum(cursor.pgresult is not None for cursor in cursors)
            self.failed = queued[done][2] if done < len(queued) else None
            if isinstance(error, IndexError) or (not raw.closed and raw.pgconn.pipeline_status):
                raw.close()
                if (ended := _ended(cursors)) is not None:
                    raise ServerUnreachable(
                        f"the connection to server {session.server.name}, database {session.database} broke",
                        why=ended,
                        hint="run the same command again: it goes on where this one stopped",
                    ) from error
                if isinstance(error, ServerUnreachable) and STUCK not in (error.why or ""):
                    raise
                why = "neither COPY nor a constraint that fails at the end of a transaction can be used here"
                raise QueryFailed("the session ended amid its statements", why=why) from error
            raise
        finally:
            raw.remove_notice_handler(noted)
            raw.limit = session.silence(1)
            self.warnings = frozenset(notices)
            for cursor, (_, _, answer) in zip(cursors, queued, strict=False):
                answer.rows = cursor.fetchall() if cursor.description else []


def _ended(cursors: Sequence[psycopg.Cursor[Any]]) -> str | None:
    """Return what the server said where it ended the session between two of its answers, as when it is shut down."""
    for result in (cursor.pgresult for cursor in cursors if cursor.pgresult is not None):
        state = result.error_field(DiagnosticField.SQLSTATE)
        if state is not None and state.startswith((b"57P", b"08")):
            return result.get_error_message()
    return None


def bare(*values: Any) -> tuple[Any, ...]:
    """Return a row as a tuple, for `args_row`."""
    return values
