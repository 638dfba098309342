"""Questions to one session, each within its own limits, so that one without an answer leaves all others theirs."""

from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, TypeVar

from posduif_cli.core.checks.check import Verdict
from posduif_cli.core.checks.facts import Rows
from posduif_cli.core.fleet import run
from posduif_cli.core.schema import history
from posduif_cli.db import queries
from posduif_cli.db.admin import HEALTH_GROUP
from posduif_cli.db.connect import MAINTENANCE
from posduif_cli.db.quoting import Query, quoted
from posduif_cli.db.session import Session
from posduif_cli.errors import AccessDenied, Busy, Hint, Interrupted, PosduifError, QueryFailed, Run, SchemaBehind
from posduif_cli.models.checks import Level

T = TypeVar("T")
LOCK_TIMEOUT = timedelta(milliseconds=500)  # a report that waits for a stuck ALTER TABLE reports nothing
LIMIT = timedelta(seconds=5)  # of one question; what a phone or an engine wrote must not keep monitoring busy
QUERY_CANCELED = "57014"


class Questions:
    """What is asked of one session, read-only, and what was answered: *seen* has the rows of each query by its name.

    Raises ServerUnreachable where the connection broke, Interrupted after ctrl-C.
    """

    def __init__(self, session: Session) -> None:
        self.session = session
        self.seen: dict[str, Rows] = {}
        self._failed: dict[tuple[Level, str, Hint | None], list[str]] = {}
        session.script("SET default_transaction_read_only = on")
        session.limit(lock_timeout=LOCK_TIMEOUT, statement_timeout=LIMIT)

    def ask(self, subject: str, question: Callable[[], T]) -> T | None:
        """Return the answer; None where there was none, and then `unanswered` says that of *subject*, and why.

        A tenant whose schema is too old for a question is not asked: that is the finding of another check.
        """
        try:
            return question()
        except SchemaBehind:
            return None
        except (Busy, AccessDenied, QueryFailed) as error:
            if self.session.cancelled:
                raise Interrupted("interrupted") from None
            self._failed.setdefault(self._reason(error), []).append(subject)
            return None

    def query(self, name: str, subject: str, query: Query, **params: Any) -> Rows:
        """Keep the rows of a query as the answer called *name*, and return them; () where there was no answer."""
        rows = self.ask(subject, lambda: self.session.dicts(query, **params))
        if rows is not None:
            self.seen[name] = rows
        return rows or ()

    def lacks(self, subject: str, why: str, fix: Hint | None) -> None:
        """Note that a question was not asked, because the session lacks what its answer takes."""
        self._failed.setdefault((Level.UNKNOWN, why, fix), []).append(subject)

    def unanswered(self) -> list[Verdict]:
        """Return what was not answered, one verdict per reason."""
        return [
            Verdict(level, f"no answer about {', '.join(asked)}: {why}", fix=fix)
            for (level, why, fix), asked in self._failed.items()
        ]

    def _reason(self, error: PosduifError) -> tuple[Level, str, Hint | None]:
        name = self.session.database
        if isinstance(error, Busy):
            who = "; ".join(self._lockers())
            return Level.UNKNOWN, f"locked by {who}" if who else error.sentence, next(iter(error.hints), None)
        if isinstance(error, AccessDenied):
            ours = self.session.member and name != MAINTENANCE
            return Level.UNKNOWN, error.message, Run("tenant", "verify", name) if ours else grant(self.session.login)
        state = error.sqlstate if isinstance(error, QueryFailed) else None
        if state == QUERY_CANCELED:
            return Level.UNKNOWN, f"it took longer than the limit of {LIMIT.total_seconds():.0f} s", None
        fix = Run("migrate", "verify", name) if state in history.NO_SUCH_TABLE_OR_COLUMN else None
        # Of a server it says nothing that one question of ours failed; in a tenant a table or a column is missing.
        return Level.UNKNOWN if name == MAINTENANCE else Level.CRITICAL, error.message, fix

    def _lockers(self) -> Sequence[str]:
        """Name the sessions that hold the lock, while they can be seen."""
        try:
            found = self.session.tuples(queries.load("checks/cluster")["find_lockers"])
        except PosduifError:
            return []
        return [run.who_is(*row) for row in found]


def grant(login: str) -> str:
    """Return what gives a login the rights of monitoring, in words."""
    return f"a superuser or an administrator types: GRANT {HEALTH_GROUP} TO {quoted(login)};"
