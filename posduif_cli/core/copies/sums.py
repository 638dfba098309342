"""Sums: what a tenant holds, table by table, in a form that is equal on every PostgreSQL that holds the same rows."""

from posduif_cli.db import queries
from posduif_cli.db.session import Session

ALGORITHM = "rowsum-1"
# The text of a row depends on these; facts of PostgreSQL 15 to 18, tried with 21 types.
SETTINGS = (
    "SET LOCAL timezone='UTC'; SET LOCAL datestyle='ISO, YMD'; SET LOCAL intervalstyle='iso_8601'; "
    "SET LOCAL extra_float_digits=1; SET LOCAL bytea_output='hex'; SET LOCAL lc_monetary='C'; "
    "SET LOCAL row_security=off"
)
Tables = dict[str, list[int | str]]  # by qualified name: rows, sum


def tables(conn: Session) -> Tables:
    """Return rows and sum of each table, in the transaction under way."""
    conn.script(SETTINGS)
    parts = [text for (text,) in conn.tuples(queries.load("copies/copies")["list_sums"])]
    rows = conn.tuples(" UNION ALL ".join(parts)) if parts else []
    return {name: [count, total] for name, count, total in rows}


def sequences(conn: Session) -> dict[str, int | None]:
    """Return where each sequence is."""
    return dict(conn.tuples(queries.load("copies/copies")["list_sequences"]))


def difference(expected: Tables, found: Tables) -> str | None:
    """Return the first difference between two tenants' tables, in words; None where there is none."""
    for name in sorted({*expected, *found}):
        if name not in found:
            return f"table {name} is missing"
        if name not in expected:
            return f"table {name} is not in the manifest"
        (rows, total), (has, sums) = expected[name], found[name]
        if rows != has:
            return f"table {name} has {has} rows, not {rows}"
        if str(total) != str(sums):
            return f"table {name} has {rows} rows, and what they hold differs"
    return None
