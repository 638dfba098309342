"""Sums: what a tenant holds, table by table, in a form that is equal on every PostgreSQL that holds the same rows."""

from collections.abc import Mapping, Sequence
from typing import Any

from posduif_cli.db import queries
from posduif_cli.db.session import Session

ALGORITHM = "rowsum-1"
# The text of a row depends on these; facts of PostgreSQL 15 to 18, tried with 21 types.
SETTINGS = (
    "SET LOCAL timezone='UTC'; SET LOCAL datestyle='ISO, YMD'; SET LOCAL intervalstyle='iso_8601'; "
    "SET LOCAL extra_float_digits=1; SET LOCAL bytea_output='hex'; SET LOCAL lc_monetary='C'; "
    "SET LOCAL row_security=off"
)
Table = Mapping[str, Any]  # schema, name, columns, rows, sum


def tables(conn: Session) -> list[dict[str, Any]]:
    """Return each table with its rows and their sum, in the transaction under way."""
    conn.script(SETTINGS)
    parts = conn.tuples(queries.load("copies/copies")["list_sums"])
    rows = conn.tuples(" UNION ALL ".join(text for *_, text in parts)) if parts else []
    told = {(schema, name): (count, total) for schema, name, count, total in rows}
    return [
        {
            "schema": schema,
            "name": name,
            "columns": columns,
            "rows": told[schema, name][0],
            "sum": told[schema, name][1],
        }
        for schema, name, columns, _ in parts
    ]


def sequences(conn: Session) -> list[dict[str, Any]]:
    """Return where each sequence is."""
    found = conn.tuples(queries.load("copies/copies")["list_sequences"])
    return [{"schema": schema, "name": name, "last_value": value} for schema, name, value in found]


def large_objects(conn: Session) -> dict[str, Any]:
    """Return how many large objects there are, and their sum; after `tables`, in the same transaction."""
    ((count, total),) = conn.tuples(queries.load("copies/copies")["sum_large_objects"])
    return {"count": count, "sum": total}


def difference(expected: Sequence[Table], found: Sequence[Table]) -> str | None:
    """Return the first difference between two tenants' tables, in words; None where there is none."""
    before, after = ({f"{table['schema']}.{table['name']}": table for table in side} for side in (expected, found))
    for name in sorted({*before, *after}):
        if name not in after:
            return f"table {name} is missing"
        if name not in before:
            return f"table {name} is not in the manifest"
        if before[name]["rows"] != after[name]["rows"]:
            return f"table {name} has {after[name]['rows']} rows, not {before[name]['rows']}"
        if before[name]["sum"] != after[name]["sum"]:
            return f"table {name} has {before[name]['rows']} rows, and what they hold differs"
    return None


def shifted(expected: Sequence[Mapping[str, Any]], found: Sequence[Mapping[str, Any]]) -> str | None:
    """Return the first sequence that is behind, in words; None where there is none.

    Sequences know no snapshot: a dump that was made after they were read has them as they were, or further on.
    """
    before, after = ({f"{s['schema']}.{s['name']}": s["last_value"] for s in side} for side in (expected, found))
    for name in sorted({*before, *after}):
        if name not in after or name not in before:
            return f"sequence {name} is {'missing' if name in before else 'not in the manifest'}"
        was, now = before[name], after[name]
        if was is not None and (now is None or 0 < now < was or was < now < 0):
            return f"sequence {name} is at {now}, not at {was}"
    return None
