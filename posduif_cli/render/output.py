"""The streams: results on stdout in the format that was asked for, everything else on stderr."""

import json
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import Any, TextIO

from posduif_cli.errors import OperationFailed, PosduifError, UsageError
from posduif_cli.render import tables
from posduif_cli.render.tables import Changed

GAP = "   "
NARROWEST = 16  # cells: a folding column gets no narrower

LEVEL_COLORS = {
    "ok": "32",
    "active": "32",
    "applied": "32",
    "unchanged": "2",
    "warning": "33",
    "pending": "33",
    "provisioning": "33",
    "suspended": "33",
    "expired": "33",
    "unknown": "33",
    "skipped": "2",
    "critical": "31",
    "failed": "31",
    "changed": "31",
    "missing": "31",
    "lost": "31",
    "revoked": "31",
}


@dataclass(frozen=True)
class Output:
    """Where and how a command shows things.

    *program* is how this program was called; *options* follow every command that is hinted at, so that it asks
    the same server.

    *format* is table, tsv, json or jsonl; *fields* the columns that were picked; *color* auto, always or never.
    """

    format: str
    fields: tuple[str, ...] = ()
    quiet: bool = False
    color: str = "auto"
    program: str = "posduif"
    options: str = ""

    def spell(self, text: str) -> str:
        """Spell the command that a hint is, or ends with, so that it runs when pasted and asks the same server.

        >>> Output("table", options=" --server eu1").spell("none yet: posduif tenant create NAME")
        'none yet: posduif tenant create NAME --server eu1'
        """
        found = re.search(r"(?:^|: )(posduif) (?=[a-z])", text)
        return f"{text[: found.start(1)]}{self.program}{text[found.end(1) :]}{self.options}" if found else text

    @property
    def machine(self) -> bool:
        """Whether the format is JSON, so that stderr holds nothing but an error."""
        return self.format in ("json", "jsonl")

    def expect(self, model: type) -> None:
        """Raise UsageError for a picked field that *model* lacks, before a command has changed anything."""
        self._checked(model, changes=True)

    def only(self, *fields: str) -> "Output":
        """Return the same with these fields picked."""
        return replace(self, fields=fields)

    def show(self, value: Any, *, changed: bool | None = None) -> None:
        """Show one thing."""
        subject = Changed(value, changed) if changed is not None else value
        data = self._pick(tables.row(subject), type(value))
        if self.format == "json":
            write(json.dumps(data, indent=2) + "\n")
        elif self.format == "jsonl":
            write(json.dumps(data) + "\n")
        elif self.format == "tsv":
            write(_tsv([data], list(data)))
        else:
            write(self._card(subject, list(data)))

    def list(
        self,
        values: Sequence[Any],
        model: type,
        *,
        empty: str = "",
        changed: bool | Callable[[Any], bool] | None = None,
    ) -> None:
        """Show several things of one kind; *empty* is said on stderr when there are none."""
        subjects = values
        if changed is not None:
            subjects = [Changed(value, changed(value) if callable(changed) else changed) for value in values]
        picked = self._checked(model, changes=changed is not None)
        rows = [self._pick(tables.row(subject), model) for subject in subjects]
        if self.format == "json":
            write(json.dumps(rows, indent=2) + "\n")
        elif self.format == "jsonl":
            write("".join(json.dumps(row) + "\n" for row in rows))
        elif self.format == "tsv":
            columns = list(picked) or (list(rows[0]) if rows else list(tables.keys(model)))
            write(_tsv(rows, columns))
        elif rows:
            self.table(list(picked) or list(tables.terminal_columns(model)), values)
        elif empty:
            self.say(empty)

    def _checked(self, model: type, *, changes: bool) -> tuple[str, ...]:
        keys = tables.keys(model)
        valid = (*keys, "changed") if changes and keys and "changed" not in keys else keys or self.fields
        for name in self.fields:
            if name not in valid:
                raise UsageError(f'there is no field "{name}"', why=f"valid are: {', '.join(valid)}")
        return self.fields

    def _pick(self, row: tables.Row, model: type) -> tables.Row:
        for name in self.fields:
            if name not in row:
                raise UsageError(f'there is no field "{name}"', why=f"valid are: {', '.join(row)}")
        return {name: row[name] for name in self.fields} if self.fields else row

    def _card(self, subject: Any, columns: Sequence[str]) -> str:
        values = {name: _get(subject, name) for name in columns}
        width = max((len(name) for name in values), default=0)
        lines = [
            f"{name.replace('_', ' '):<{width}}  {self.paint(tables.cell(value, name=name))}".rstrip()
            for name, value in values.items()
            if value is not None
        ]
        return "\n".join(lines) + "\n"

    def table(self, columns: Sequence[str], values: Iterable[Any]) -> None:
        """Show a table; where the terminal is too narrow for one, a block of lines for each row."""
        cells = [[tables.cell(_get(value, name), name=name) for name in columns] for value in values]
        self.grid(columns, cells, folding=[n for n, name in enumerate(columns) if name in tables.FOLDING])

    def grid(self, headers: Sequence[str], rows: Sequence[Sequence[str]], *, folding: Sequence[int] = ()) -> None:
        """Show rows of text below headers; only the columns in *folding* may become narrower than their text."""
        titles = [header.replace("_", " ").upper() for header in headers]
        widths = [max(map(_width, column)) for column in zip(titles, *rows, strict=True)]
        room = columns_of(sys.stdout) - len(GAP) * (len(widths) - 1)
        while sum(widths) > room and (wide := max(folding, key=widths.__getitem__, default=None)) is not None:
            if widths[wide] <= NARROWEST:
                break
            widths[wide] = max(NARROWEST, widths[wide] - (sum(widths) - room))
        if sum(widths) > room:
            blocks = ("\n".join(self._lines(headers, row)) for row in rows)
            return write("\n\n".join(blocks) + "\n")
        rule = "\u2500" if _unicode(sys.stdout) else "-"
        lines = [_joined(titles, widths), rule * (sum(widths) + len(GAP) * (len(widths) - 1))]
        for row in rows:
            folded = [_fold(text, width) for text, width in zip(row, widths, strict=True)]
            for parts in zip_longest(*folded, fillvalue=""):
                lines.append(_joined([self.paint(part) for part in parts], widths))
        write("\n".join(lines) + "\n")

    def _lines(self, headers: Sequence[str], row: Sequence[str]) -> Iterator[str]:
        width = max(map(len, headers), default=0)
        for header, text in zip(headers, row, strict=True):
            if text:
                yield f"{header.replace('_', ' '):<{width}}  {self.paint(text)}"

    def paint(self, text: str) -> str:
        """Colour a word that says how good something is."""
        code = LEVEL_COLORS.get(text) if self.colored(sys.stdout) else None
        return f"\x1b[{code}m{text}\x1b[0m" if code else text

    def colored(self, stream: TextIO) -> bool:
        """Whether *stream* gets colours."""
        return self.color == "always" or (self.color == "auto" and stream.isatty())

    def text(self, text: str) -> None:
        """Write a result that is text already."""
        write(text if text.endswith("\n") else text + "\n")

    def say(self, text: str) -> None:
        """Tell the person something on stderr, unless -q or JSON asks for silence."""
        if not self.quiet and not self.machine:
            write(self.spell(text) + "\n", sys.stderr)

    def warn(self, text: str) -> None:
        """Warn on stderr; -q does not silence it, JSON does."""
        if not self.machine:
            write(f"warning: {text}\n", sys.stderr)

    def error(self, error: PosduifError) -> None:
        """Show an error on stderr: what happened, why, and what to type next."""
        if self.machine:
            payload = {
                "code": error.code,
                "exit": error.exit_code,
                "message": error.message,
                "why": error.why,
                "try": [self.spell(hint) for hint in error.hints],
            }
            write(json.dumps({"error": payload}) + "\n", sys.stderr)
            return
        label = "\x1b[1;31merror:\x1b[0m" if self.colored(sys.stderr) else "error:"
        lines = [f"{label} {tables.visible(' '.join(error.message.split()))}"]
        for number, reason in enumerate(error.reasons):
            lines.append(f"  {'why' if number == 0 else '   '}   {tables.visible(' '.join(reason.split()))}")
        for number, hint in enumerate(error.hints):
            lines.append(f"  {'try' if number == 0 else '   '}   {tables.visible(self.spell(hint))}")
        write("\n".join(lines) + "\n", sys.stderr)


def _width(text: str) -> int:
    from rich.cells import cell_len

    return cell_len(re.sub(r"\x1b\[[0-9;]*m", "", text))


def _joined(parts: Sequence[str], widths: Sequence[int]) -> str:
    padded = (part + " " * (width - _width(part)) for part, width in zip(parts, widths, strict=True))
    return GAP.join(padded).rstrip()


def _fold(text: str, width: int) -> Sequence[str]:
    """Break a text into lines of at most *width* cells, at blanks where it has them."""
    from rich.console import Console
    from rich.text import Text

    if _width(text) <= width:
        return [text]
    return [line.plain.rstrip() for line in Text(text).wrap(Console(width=width), width, overflow="fold")]


def _get(subject: Any, name: str) -> Any:
    """Fetch a field by the name that JSON uses, unconverted where the model has it."""
    if isinstance(subject, Changed):
        return subject.changed if name == "changed" else _get(subject.value, name)
    attribute = {shown: stored for stored, shown in tables.RENAMED.items()}.get(name, name)
    if hasattr(subject, attribute) and type(subject) not in tables.UNWRAPPED:
        return getattr(subject, attribute)
    return tables.row(subject).get(name)


def _tsv(rows: Sequence[tables.Row], columns: Sequence[str]) -> str:
    lines = ["\t".join(columns), *("\t".join(_field(row.get(name)) for name in columns) for row in rows)]
    return "\n".join(lines) + "\n"


# What would end a field or a line, or drive the terminal that `-o tsv` may go to.
_UNSAFE = re.compile(r"[\\\x00-\x1f\x7f-\x9f]")
_ESCAPES = {"\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r"}


def _field(value: Any) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        return json.dumps(value)  # it holds no tab, no line end, and escapes of its own
    text = value
    return _UNSAFE.sub(lambda m: _ESCAPES.get(m[0]) or f"\\x{ord(m[0]):02x}", text)


def _unicode(stream: TextIO) -> bool:
    try:
        "\u2500\u2501".encode(stream.encoding or "ascii")
    except UnicodeEncodeError:
        return False
    return True


def columns_of(stream: TextIO) -> int:
    """Return a terminal's width in columns, 80 where it is not known."""
    try:
        return os.get_terminal_size(stream.fileno()).columns or 80
    except (OSError, ValueError):
        return 80


def write(text: str, stream: TextIO | None = None) -> None:
    """Write text at once; what the stream's encoding lacks is escaped. Raises OperationFailed on a full disk."""
    stream = stream or sys.stdout
    try:
        try:
            stream.write(text)
        except UnicodeEncodeError:
            encoding = stream.encoding or "ascii"
            stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
        with suppress(ValueError):
            stream.flush()
    except BrokenPipeError:
        # The reader went away, as `head` does: nothing is wrong with us, and typer would make exit code 1 of it.
        if stream is sys.stdout:
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    except OSError as error:
        if stream is sys.stdout:
            # Its buffer would be written once more at exit, and fail once more.
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115
        raise OperationFailed(
            "the result could not be written",
            why=error.strerror,
            hint="the command itself was carried out; list or show what it was about",
        ) from None
