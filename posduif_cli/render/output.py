"""The streams: results on stdout in the format that was asked for, everything else on stderr."""

import io
import json
import os
import re
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from textwrap import wrap
from typing import Any, TextIO

from posduif_cli.errors import Hint, OperationFailed, PosduifError, Run, UsageError
from posduif_cli.models.checks import Health
from posduif_cli.models.servers import ServerInfo
from posduif_cli.render import layout, tables
from posduif_cli.render.tables import Changed, visible

BATCH = 1000  # rows that are written at once
PAGE = 10_000  # rows of one table: its widths come from all of them

_COLORS = re.compile(r"\x1b\[[0-9;]*m")
LEVELED = frozenset(("level", "status", "state"))  # the columns whose words say how good something is
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

    *program* is how this program was called; *options* are those by name that every command that is hinted at needs
    to ask the same server.

    *format* is table, tsv, json or jsonl; *fields* the columns that were picked; *color* auto, always or never.
    """

    format: str
    fields: tuple[str, ...] = ()
    quiet: bool = False
    color: str = "auto"
    program: str = "posduif"
    options: Mapping[str, str] = field(default_factory=dict)

    def spell(self, hint: Hint) -> str:
        """Return a hint as text. A command runs when it is pasted, and asks the same server; text is left as it is.

        >>> out = Output("table", options={"server": "eu1"})
        >>> out.spell(Run("tenant", "create", "NAME", lead="none yet")), out.spell("free some space")
        ('none yet: posduif tenant create NAME --server eu1', 'free some space')
        """
        return hint.spelled(self.program, self._following(hint.words)) if isinstance(hint, Run) else hint

    def _following(self, words: Sequence[str]) -> str:
        """Return the options that a command lacks to ask the same server."""
        named = {word.partition("=")[0] for word in words}
        # A command that names its own server means that one; quickstart has no other than its own.
        elsewhere = words[0] == "quickstart" or not named.isdisjoint(("--server", "--dsn"))
        return "".join(
            f" --{name} {shlex.quote(value)}"
            for name, value in self.options.items()
            if f"--{name}" not in named and not (elsewhere and name in ("server", "dsn"))
        )

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
        value = self.spelled(value)
        subject = Changed(value, changed) if changed is not None else value
        data = self._pick(tables.row(subject), type(value))
        if self.format == "json":
            write(json.dumps(data, indent=2) + "\n", own=True)
        elif self.format == "jsonl":
            write(json.dumps(data) + "\n", own=True)
        elif self.format == "tsv":
            write("".join(_tsv([data], list(data))), own=True)
        else:
            write(self._card(subject, list(data)), own=True)

    def list(
        self,
        values: Iterable[Any],
        model: type,
        *,
        empty: Hint = "",
        changed: bool | Callable[[Any], bool] | None = None,
    ) -> None:
        """Show several things of one kind; *empty* is said on stderr when there are none.

        They are written as they come, a batch at a time: there may be a million of them.
        """
        picked = self._checked(model, changes=changed is not None)
        subjects: Iterator[Any] = iter(values)
        if changed is not None:
            subjects = (Changed(value, changed(value) if callable(changed) else changed) for value in values)
        first = list(islice(subjects, 1))
        subjects = chain(first, subjects)
        rows = (self._pick(tables.row(self.spelled(subject)), model) for subject in subjects)
        if self.format == "json":
            _write_all(_array(rows))
        elif self.format == "jsonl":
            _write_all(json.dumps(row) + "\n" for row in rows)
        elif self.format == "tsv":
            columns = list(picked) or list(tables.row(first[0]) if first else tables.keys(model))
            _write_all(_tsv(rows, columns))
        elif first:
            while page := list(islice(subjects, PAGE)):
                self.table(list(picked) or tables.terminal_columns(model, page), page, model=model)
        elif empty:
            self.say(empty)

    @contextmanager
    def held(self) -> Iterator[io.StringIO]:
        """Keep what the block writes as a result, and give it the text instead of stdout."""
        real, held = sys.stdout, _Held(sys.stdout)
        sys.stdout = held
        try:
            yield held
        finally:
            sys.stdout = real

    @contextmanager
    def screenful(self, last: str) -> Iterator[None]:
        """Clear the terminal, and show what the block writes, as far as there is room, and a *last* line."""
        with self.held() as held:
            yield
        lines = held.getvalue().rstrip("\n").split("\n")
        try:
            room = os.get_terminal_size(sys.stdout.fileno()).lines - 2
        except (OSError, ValueError):
            room = len(lines)
        if len(lines) > room > 0:
            lines = [*lines[: room - 1], f"... and {len(lines) - room + 1} more lines"]
        write("\x1b[2J\x1b[H" + "\n".join([*lines, "", visible(last)]) + "\n", own=True)

    def spelled(self, value: Any) -> Any:
        """Return a value with the commands in it as they are pasted."""
        if isinstance(value, Changed):
            return replace(value, value=self.spelled(value.value))
        if isinstance(getattr(value, "fix", None), Run):
            return replace(value, fix=self.spell(value.fix))
        if isinstance(value, Health):
            return replace(value, findings=tuple(map(self.spelled, value.findings)))
        if isinstance(value, ServerInfo):
            return replace(value, warnings=tuple(map(self.spell, value.warnings)))
        return value

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
        lines = self._lines(list(values), [visible(tables.cell(value, name=name)) for name, value in values.items()],
                            present=[value is not None for value in values.values()])  # fmt: skip
        return "\n".join(lines) + "\n"

    def table(self, columns: Sequence[str], values: Iterable[Any], *, model: type | None = None) -> None:
        """Show a table of some values of a model; in one that is too wide for the terminal see `tables.column`."""
        shown = [self.spelled(value) for value in values]
        name = (
            (model or (type(shown[0].value if isinstance(shown[0], Changed) else shown[0]))).__name__ if shown else ""
        )
        self._grid([tables.column(name, field, [_get(value, field) for value in shown], columns) for field in columns])

    def grid(self, headers: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Show rows of text below headers; the last of them are left out where the terminal is too narrow."""
        self._grid(
            [
                layout.Column(header, [layout.Cell(row[at], row[at]) for row in rows], rank=-at if at else None)
                for at, header in enumerate(headers)
            ],
            elsewhere="-o json has them",
        )

    def _grid(self, columns: Sequence[layout.Column], elsewhere: str = "-o tsv and --fields have them") -> None:
        safe = [
            replace(c, cells=[layout.Cell(visible(cell.text), visible(cell.short)) for cell in c.cells])
            for c in columns
        ]
        unicode = _unicode(sys.stdout)
        room = columns_of(sys.stdout)
        laid = layout.fit(safe, room, ellipsis="\u2026" if unicode else "...")
        rule = "\u2500" if unicode else "-"
        titles = [name.replace("_", " ").upper() for name in laid.columns]
        lines = [_joined(titles, laid.widths), rule * (sum(laid.widths) + len(layout.GAP) * (len(laid.widths) - 1))]
        for parts, below in zip(laid.rows, laid.below, strict=True):
            for texts in parts:
                lines.append(_joined([self.paint(t, c) for t, c in zip(texts, laid.columns, strict=True)], laid.widths))
            lines += [f"  {name.replace('_', ' ')}{layout.GAP}{text}" for name, text in below]
        if laid.left_out:
            names = ", ".join(name.replace("_", " ") for name in laid.left_out)
            lines += wrap(f"left out on {room} columns: {names} ({elsewhere})", max(room, 20))
        write("\n".join(lines) + "\n", own=True)

    def _lines(
        self, headers: Sequence[str], row: Sequence[str], present: Sequence[object] | None = None
    ) -> Iterator[str]:
        """Yield a line for each text that is *present*, or not empty, behind its header."""
        width = max(map(len, headers), default=0)
        for header, text, wanted in zip(headers, row, present or row, strict=True):
            if wanted:
                yield f"{header.replace('_', ' '):<{width}}  {self.paint(text, header)}".rstrip()

    def paint(self, text: str, column: str) -> str:
        """Colour a word of a column that says how good something is; elsewhere it may be anybody's name."""
        code = LEVEL_COLORS.get(text) if column in LEVELED and self.colored(sys.stdout) else None
        return f"\x1b[{code}m{text}\x1b[0m" if code else text

    def colored(self, stream: TextIO) -> bool:
        """Whether *stream* gets colours."""
        return self.color == "always" or (self.color == "auto" and stream.isatty())

    def text(self, text: str, *, own: bool = False) -> None:
        """Write a result that is text already; *own* as for `write`."""
        write(text if text.endswith("\n") else text + "\n", own=own)

    def say(self, text: Hint) -> None:
        """Write one line to stderr, unless -q or JSON asks for silence."""
        if not self.quiet and not self.machine:
            write(visible(self.spell(text)) + "\n", sys.stderr)

    def warn(self, text: str) -> None:
        """Warn in one line on stderr; -q does not silence it, JSON does."""
        if not self.machine:
            write(f"warning: {visible(text)}\n", sys.stderr)

    def ask(self, text: str, question: str) -> str | None:
        """Say something on the terminal, and return the line that is typed after a question; None at its end."""
        write(f"{visible(text)}\n{visible(question)} ", sys.stderr)
        answer = sys.stdin.readline()
        if not answer:
            write("\n", sys.stderr)
        return answer.rstrip("\r\n") or None

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
            write(json.dumps({"error": payload}) + "\n", sys.stderr, own=True)
            return
        label = "\x1b[1;31merror:\x1b[0m" if self.colored(sys.stderr) else "error:"
        lines = [f"{label} {visible(' '.join(error.message.split()))}"]
        for number, reason in enumerate(error.reasons):
            lines.append(f"  {'why' if number == 0 else '   '}   {visible(' '.join(reason.split()))}")
        for number, hint in enumerate(error.hints):
            lines.append(f"  {'try' if number == 0 else '   '}   {visible(self.spell(hint))}")
        write("\n".join(lines) + "\n", sys.stderr, own=True)


class _Held(io.StringIO):
    """What is written to a terminal later: it looks like that terminal."""

    def __init__(self, terminal: TextIO) -> None:
        super().__init__()
        self._terminal = terminal

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """The terminal's."""
        return self._terminal.encoding

    def fileno(self) -> int:
        """Return the terminal's."""
        return self._terminal.fileno()

    def isatty(self) -> bool:
        """Return whether it is one."""
        return self._terminal.isatty()


def _joined(parts: Sequence[str], widths: Sequence[int]) -> str:
    padded = (
        part + " " * (wide - layout.width(_COLORS.sub("", part))) for part, wide in zip(parts, widths, strict=True)
    )
    return layout.GAP.join(padded).rstrip()


def _get(subject: Any, name: str) -> Any:
    """Fetch a field by the name that JSON uses, unconverted where the model has it."""
    if isinstance(subject, Changed):
        return subject.changed if name == "changed" else _get(subject.value, name)
    attribute = {shown: stored for stored, shown in tables.RENAMED.items()}.get(name, name)
    if hasattr(subject, attribute) and type(subject).__name__ not in tables.UNWRAPPED:
        return getattr(subject, attribute)
    return tables.row(subject).get(name)


def _tsv(rows: Iterable[tables.Row], columns: Sequence[str]) -> Iterator[str]:
    yield "\t".join(columns) + "\n"
    for row in rows:
        yield "\t".join(_field(row.get(name)) for name in columns) + "\n"


def _array(rows: Iterable[tables.Row]) -> Iterator[str]:
    """Yield a JSON array in pieces."""
    lead = "["
    for row in rows:
        yield lead + "\n  " + json.dumps(row, indent=2).replace("\n", "\n  ")
        lead = ","
    yield "[]\n" if lead == "[" else "\n]\n"


def _write_all(pieces: Iterable[str]) -> None:
    pieces = iter(pieces)
    while batch := "".join(islice(pieces, BATCH)):
        write(batch, own=True)


# What would end a field or a line, drive the terminal that `-o tsv` may go to, or turn the order of its text.
_UNSAFE = re.compile("[\\\\\x00-\x1f\x7f-\x9f\u200b\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff]")
_ESCAPES = {"\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r"}


def _field(value: Any) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        return json.dumps(value)  # it holds no tab, no line end, and escapes of its own
    text = value
    return _UNSAFE.sub(lambda m: _ESCAPES.get(m[0]) or ascii(m[0])[1:-1], text)


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


def write(text: str, stream: TextIO | None = None, *, own: bool = False) -> None:
    """Write text at once; what the stream's encoding lacks is escaped. Raises OperationFailed on a full disk.

    This is the only way to a terminal. What would drive it is escaped, line by line, unless the text is our *own*:
    colours and the like, around data that has been escaped.
    """
    stream = stream or sys.stdout
    if not own:
        text = re.sub(r"[^\n\t]+", lambda found: visible(found[0]), text)
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
