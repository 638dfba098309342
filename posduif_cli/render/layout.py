"""The layout of a table: as wide as it needs to be, and made to fit a terminal that is narrower.

First ids, times and long texts get shorter, then the least important columns go; it stays a table.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest

GAP = "   "
LEAST = 12  # cells: a text gets no shorter than this, unless it was


@dataclass(frozen=True)
class Cell:
    """One text of a table, and its short form: what says enough where there is no room."""

    text: str
    short: str


@dataclass(frozen=True)
class Column:
    """A column of a table.

    *kind* says what becomes of texts that are too long: `kept` they are shown whole, `cut` they end in an ellipsis,
    `folded` they go on in the next line, `below` they get a line of their own below their row. *rank* is the order in
    which columns are left out, the lowest first; those without one stay. Columns without any text go before them.
    """

    name: str
    cells: Sequence[Cell]
    kind: str = "kept"
    rank: int | None = None

    @property
    def title(self) -> str:
        """The header, in capitals."""
        return self.name.replace("_", " ").upper()


@dataclass(frozen=True)
class Layout:
    """The rows of a table as they are written: for each the lines, for each line the text of each column.

    *below* holds for each row the texts that are written below it, each with its column's name.
    """

    columns: tuple[str, ...]
    widths: tuple[int, ...]
    rows: Sequence[Sequence[Sequence[str]]]
    below: Sequence[Sequence[tuple[str, str]]]
    left_out: tuple[str, ...]


def fit(columns: Sequence[Column], room: int, *, ellipsis: str = "\u2026") -> Layout:
    """Lay out a table in *room* cells of width; one that cannot be made to fit stays wider."""
    whole = {column.name: [cell.text for cell in column.cells] for column in columns}
    if _total([_needed(column, whole) for column in columns]) <= room:
        return _layout(columns, whole, {column.name: _needed(column, whole) for column in columns}, (), ellipsis)
    short = {column.name: [cell.short for cell in column.cells] for column in columns}
    left, left_out = list(columns), list[str]()
    while True:
        beside = [column for column in left if column.kind != "below"]
        widths = _shrunk(beside, {column.name: _needed(column, short) for column in beside}, room)
        empty = [column for column in left[1:] if not any(short[column.name])]
        dispensable = empty or [column for column in left if column.rank is not None]
        if _total(list(widths.values())) <= room or not dispensable:
            return _layout(left, short, widths, tuple(left_out), ellipsis)
        least = min(dispensable, key=lambda column: column.rank or 0)
        left.remove(least)
        left_out += [least.name] * (least not in empty)


def _needed(column: Column, texts: Mapping[str, Sequence[str]]) -> int:
    return max(width(column.title), *map(width, texts[column.name]), 0)


def _total(widths: Sequence[int]) -> int:
    return sum(widths) + len(GAP) * (len(widths) - 1)


def _shrunk(columns: Sequence[Column], needed: Mapping[str, int], room: int) -> dict[str, int]:
    """Return the widths of columns; the longest texts among them are made narrower, all to one width, to fit."""
    floor = {c.name: min(needed[c.name], max(LEAST, width(c.title))) for c in columns if c.kind in ("cut", "folded")}
    cap = max((needed[name] for name in floor), default=0)
    widths = dict(needed)
    while _total(list(widths.values())) > room and any(widths[name] > least for name, least in floor.items()):
        cap -= 1
        widths |= {name: min(needed[name], max(cap, least)) for name, least in floor.items()}
    return widths


def _layout(
    columns: Sequence[Column],
    texts: Mapping[str, Sequence[str]],
    widths: Mapping[str, int],
    left_out: tuple[str, ...],
    ellipsis: str,
) -> Layout:
    beside = [column for column in columns if column.name in widths]
    rows, below = [], []
    for number in range(len(columns[0].cells) if columns else 0):
        parts = [_parts(texts[column.name][number], widths[column.name], column.kind, ellipsis) for column in beside]
        rows.append([list(line) for line in zip_longest(*parts, fillvalue="")])
        under = [column for column in columns if column.name not in widths]
        below.append([(c.name, c.cells[number].text) for c in under if c.cells[number].text])
    names = tuple(column.name for column in beside)
    return Layout(names, tuple(widths[name] for name in names), rows, below, left_out)


def _parts(text: str, room: int, kind: str, ellipsis: str) -> Sequence[str]:
    """Return the lines that a text takes in *room* cells."""
    if width(text) <= room or kind == "kept":
        return [text]
    if kind == "cut":
        from rich.cells import set_cell_size

        return [set_cell_size(text, room - width(ellipsis)).rstrip() + ellipsis]
    from rich.console import Console
    from rich.text import Text

    return [line.plain.rstrip() for line in Text(text).wrap(Console(width=room), room, overflow="fold")]


def width(text: str) -> int:
    """Return how many cells of a terminal a text takes."""
    from rich.cells import cell_len

    return cell_len(text)
