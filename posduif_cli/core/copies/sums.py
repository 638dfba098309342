"""Sums: what a tenant holds, table by table, in a form that is equal on every PostgreSQL that holds the same rows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from posduif_cli.core.schema import history, inventory, likeness
from posduif_cli.db import queries
from posduif_cli.db.session import Session

ALGORITHM = "rowsum-1"  # tried on PostgreSQL 15 to 18, with 21 types
Table = Mapping[str, Any]  # schema, name, columns, rows, sum


@dataclass(frozen=True)
class Layout:
    """What tenants with the same catalogs have in common: *tables* with the statements that sum them up."""

    tables: Sequence[tuple[str, str, list[str], str]]
    has_sequences: bool
    extensions: Sequence[Mapping[str, str]]
    fingerprint: str


@dataclass(frozen=True)
class Opened:
    """A database that is about to be summed up; *opening* is the answer to the query asked first, () without one."""

    opening: tuple[Any, ...]
    layout: Layout
    versioned: bool  # has a version table that can be asked without a try

    def sum_up(self, conn: Session) -> "Held":
        """Return what the database holds, in the transaction under way."""
        named, pipeline = queries.load("copies/copies"), conn.pipeline()
        texts = [text for *_, text in self.layout.tables]
        summed = pipeline.execute(" UNION ALL ".join(texts) or "SELECT WHERE false")
        large = pipeline.execute(named["sum_large_objects"])
        placed = pipeline.execute(named["list_sequences"]) if self.layout.has_sequences else None
        versions = pipeline.execute(queries.load("schema/history")["list_bare"]) if self.versioned else None
        pipeline.send(limited=False)
        told = {(schema, name): (count, total) for schema, name, count, total in summed.rows}
        return Held(
            [
                {"schema": schema, "name": name, "columns": columns, "rows": told[schema, name][0],
                 "sum": told[schema, name][1]}
                for schema, name, columns, _ in self.layout.tables
            ],
            [{"schema": schema, "name": name, "last_value": at}
             for schema, name, at in (placed.rows if placed else ())],
            {"count": large.rows[0][0], "sum": large.rows[0][1]},
            sorted(version for (version,) in versions.rows) if versions else sorted(history.applied(conn)),
        )  # fmt: skip


@dataclass(frozen=True)
class Held:
    """What a database holds: its tables with their rows and sums, where its sequences are, its large objects.

    *versions* are the applied migrations.
    """

    tables: list[dict[str, Any]]
    sequences: list[dict[str, Any]]
    large_objects: dict[str, Any]
    versions: list[str]

    @property
    def rows(self) -> int:
        """How many rows there are in all tables."""
        return sum(int(table["rows"]) for table in self.tables)


class Layouts:
    """The layouts that a run has seen. Most tenants of a fleet have one and the same, and are asked less."""

    def __init__(self) -> None:
        self._known: dict[str, Layout] = {}

    def open(self, conn: Session, opening: str | None = None) -> Opened:
        """Look at the database that *conn* is in, in the transaction under way, and pin the styles of its values.

        The query *opening* is asked first.
        """
        pipeline, named = conn.pipeline(), queries.load("copies/copies")
        opened = pipeline.execute(named[opening]) if opening else None
        pipeline.execute(named["pin_styles"])
        catalogs = pipeline.execute(queries.load("schema/inventory")["read_catalogs"])
        pipeline.send()
        return Opened(opened.rows[0] if opened else (), *self._layout(conn, catalogs.rows))

    def _layout(self, conn: Session, rows: Sequence[tuple[Any, ...]]) -> tuple[Layout, bool]:
        """Return the layout, and whether it was known."""
        mine: list[str] = []
        for mark in likeness.marks(conn, *likeness.of_answer(conn, rows)):
            mine.append(mark)
            if found := self._known.get(mark):
                self._known.update(dict.fromkeys(mine, found))
                return found, ("public", "schema_migrations") in {table[:2] for table in found.tables}
        named = queries.load("copies/copies")
        found = Layout(
            conn.tuples(named["list_sums"]),
            bool(conn.tuples(named["list_sequences"])),
            [{"name": name, "version": version} for name, version in conn.tuples(named["list_extensions"])],
            likeness.shape(inventory.inventory(conn)),
        )
        self._known.update(dict.fromkeys(mine, found))
        return found, False


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
