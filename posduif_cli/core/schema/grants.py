"""Who may do what inside a tenant: whether `grants.sql` has something to do, and running it."""

import re
from functools import cache

from posduif_cli.db import admin, queries
from posduif_cli.db.session import Session

# Statements that leave the rights on our tables as they are, but for a column that ADD brings again.
_KEEPS_RIGHTS = re.compile(
    r"(?:create (?:unique )?index|comment on)\b"
    r"|alter table (?:if exists )?(?:only )?\S+ (?:\. \S+ )?add\b(?!.*\b(?:alter|drop|rename|owner|inherit)\b)"
)
_ADDED = re.compile(r"\badd (?:column )?(?:if not exists )?(\S+)")


@cache
def kept_by(shape: str) -> bool:
    """Whether a statement leaves `grants.sql` nothing to do; where this is not certain it is run, which takes time."""
    if _KEEPS_RIGHTS.match(shape) is None:
        return False
    added = _ADDED.findall(shape) if shape.startswith("alter") else []
    return not any(name == '""' or re.search(rf"\b{re.escape(name)}\b", text()) for name in added)


def run(conn: Session) -> None:
    """Run `grants.sql` in the transaction under way; raises UnsafeServer when it had not all of its effect."""
    look = queries.load("schema/history")["look_at_rights"]
    rows, failure = conn.batch(["SET LOCAL ROLE posduif_admin", text(), look])
    if failure is not None:
        raise failure[1]
    hold, is_open = rows[-1]
    admin.require_rights(conn.database, hold=hold != "f", is_open=is_open == "t")


@cache
def text() -> str:
    """Return the text of `grants.sql`."""
    return queries.bundled("grants.sql").read_text(encoding="utf-8")
