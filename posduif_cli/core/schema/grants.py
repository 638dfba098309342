"""Who may do what inside a tenant: running `grants.sql`, and what is known to leave it nothing to do."""

from dataclasses import dataclass
from functools import cache

from posduif_cli.core.schema import parse
from posduif_cli.db import admin, queries
from posduif_cli.db.session import Answer, Session


@dataclass(frozen=True)
class Effect:
    """What a section did to the catalogs that hold rights: how many rows PostgreSQL counted, kind by kind.

    Where `grants.sql` found nothing to do after a section with this effect on one tenant of a server, it would find
    nothing after the same section with the same effect on another.
    """

    server: str
    section: str
    counts: tuple[int, ...]

    @classmethod
    def of(cls, server: str, section: str, before: Answer, after: Answer) -> "Effect":
        """Return the effect between two answers to `count_changes` in one transaction."""
        rows = zip(before.rows, after.rows, strict=True)  # none where the server does not count
        return cls(server, section, tuple(b - a for row in rows for a, b in zip(*row, strict=True)))

    @property
    def complete(self) -> bool:
        """Whether the counts tell all: `grants.sql` always writes to the catalogs of the first, as it may have to."""
        return bool(self.counts) and self.counts[0] == 0


def run(conn: Session) -> bool:
    """Run `grants.sql` in the transaction under way; return whether it found nothing to do to relations and functions.

    Raises UnsafeServer when it had not all of its effect.
    """
    named = queries.load("schema/history")
    pipeline = conn.pipeline()
    pipeline.execute("SET LOCAL ROLE posduif_admin")
    before = pipeline.execute(named["count_changes"])
    pipeline.script(*(statement.text for statement in parse.split(text())))
    after = pipeline.execute(named["count_changes"])
    rights = pipeline.execute(named["look_at_rights"])
    pipeline.send()
    hold, is_open = rights.rows[0]
    admin.require_rights(conn.database, hold=hold is not False, is_open=is_open)
    return [row[1:] for row in before.rows] == [row[1:] for row in after.rows]


@cache
def text() -> str:
    """Return the text of `grants.sql`."""
    return queries.bundled("grants.sql").read_text(encoding="utf-8")
