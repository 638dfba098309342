"""Who may do what inside a tenant: running `grants.sql`, and whether a section left it something to do."""

from functools import cache

from posduif_cli.core.schema import parse
from posduif_cli.db import admin, queries
from posduif_cli.db.pipeline import Answer
from posduif_cli.db.session import Session

# What a section did to the catalogs that hold rights: the server, the section's key, and how many rows PostgreSQL
# counted, kind by kind. Where `grants.sql` had nothing to do afterwards in one tenant, it would have nothing to do in
# another of the same server after the same section with the same effect.
Effect = tuple[str, str, tuple[int, ...]]


def changes(before: Answer | None, after: Answer) -> tuple[int, ...]:
    """Return how many rows changed until *after*, an answer to `count_changes`; none where the server does not count.

    They are counted since *before*, another answer, or since the session began.
    """
    begun = before.rows if before is not None else [(0,) * len(row) for row in after.rows]
    return tuple(b - a for old, new in zip(begun, after.rows, strict=True) for a, b in zip(old, new, strict=True))


def run(conn: Session) -> bool:
    """Run `grants.sql` in the transaction under way; return whether it left relations and functions as they were.

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
    return not any(changes(before, after)[1:])


@cache
def text() -> str:
    """Return the text of `grants.sql`."""
    return queries.bundled("grants.sql").read_text(encoding="utf-8")
