"""QR codes that phones can scan off any terminal, and as PNG and SVG files.

Many phones refuse a light code on a dark ground, so a code must never take its colours from the theme. It is
drawn dark on light in 231 and 232 of the 256 colours: themes redefine 0 to 15, some 16 to 21, none the greys.
These two are the picture and no decoration: NO_COLOR does not concern them.
"""

import os
import struct
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TextIO

from qrcode.constants import ERROR_CORRECT_L, ERROR_CORRECT_M
from qrcode.exceptions import DataOverflowError
from qrcode.main import QRCode

from posduif_cli.errors import UsageError
from posduif_cli.models.codes import Style

Matrix = Sequence[Sequence[bool]]
"""Rows of modules, the quiet zone included; True is dark."""

SCREEN_BORDER = 2  # modules; 0 is never read on a dark theme, and 4 is read no better than 2
FILE_BORDER = 4  # modules, as the standard asks: paper and chat windows are not ours to know
MOST_DIGITS = 7089  # of any code; the encoder would spend minutes on megabytes before it gives up
SPARE_ROWS = 2  # for the URL and the prompt below the code

_DARK_INK = "\x1b[0;38;5;232;48;5;231m"
_LIGHT_INK = "\x1b[0;38;5;231;48;5;232m"
# Before the newline: a colour that is still on there bleeds to the right margin.
_END_OF_LINE = "\x1b[0m\n"
_NO_COLOURS = "TERM names no terminal that can draw a QR code: use --qr-file FILE"
_NO_BLOCKS = "the output's encoding has no block characters: use --qr=large or --qr-file FILE"
_LOWER, _UPPER, _FULL = "\u2584", "\u2580", "\u2588"


@dataclass(frozen=True)
class Screen:
    """What is known of the terminal: its size in characters, the stream's encoding, TERM and the locale."""

    columns: int
    rows: int
    encoding: str
    term: str
    utf8_locale: bool


@dataclass(frozen=True)
class Picture:
    """A drawn code, or why there is none."""

    text: str | None
    """Ready to be written as it is, newline included; None when no code can be shown."""
    advice: str | None
    """One line for stderr: why there is no code, or that it scrolls, and what to do."""
    large: bool = False
    """Whether it was drawn as large as it can be."""
    spare: int = 0
    """How many rows of the terminal are left below code, URL and prompt."""


class _Shape(NamedTuple):
    draw: Callable[[Matrix], str]
    columns: int  # characters that a module is wide
    modules: int  # modules that a character is high

    def size(self, matrix: Matrix) -> tuple[int, int]:
        return len(matrix[0]) * self.columns, -(-len(matrix) // self.modules)


def picture(text: str, screen: Screen, style: Style = Style.AUTO) -> Picture:
    """Draw *text* as a code that does not wrap on *screen*; what cannot be drawn has an advice instead.

    The caller decides whether the output is a terminal at all.
    """
    if style is Style.NEVER:
        return Picture(None, None)
    try:
        if style is Style.ALWAYS:
            draw = compact if _encodes_blocks(screen.encoding) else large
            return Picture(draw(_matrix(text, border=SCREEN_BORDER)), None)
        if style in (Style.AUTO, Style.COMPACT, Style.LARGE) and screen.term in ("", "dumb", "unknown"):
            return Picture(None, _NO_COLOURS)
        shapes = _shapes(screen, style)
        return _fit(text, screen, shapes) if shapes else Picture(None, _NO_BLOCKS)
    except UsageError as error:
        return Picture(None, f"no QR code: {error.message}")


def compact(matrix: Matrix) -> str:
    """Draw two modules per character, in colours of its own.

    Many terminals leave a gap between lines of glyphs, but backgrounds fill their cell. So a glyph is drawn
    only where the two halves differ, and it is the one of two that leaves the gap in its neighbour's colour.
    """
    lines = []
    for y in range(0, len(matrix), 2):
        above, below, after = _row(matrix, y - 1), _row(matrix, y + 1), _row(matrix, y + 2)
        cells = []
        for x, upper in enumerate(matrix[y]):
            lower = below[x]
            if upper == lower:
                cells.append((upper, " "))
            elif after[x] == upper or above[x] != lower:
                cells.append((upper, _LOWER))
            else:
                cells.append((lower, _UPPER))
        lines.append(_line((_LIGHT_INK if dark else _DARK_INK, glyph) for dark, glyph in cells))
    return "".join(lines)


def large(matrix: Matrix) -> str:
    """Draw two spaces per module, in colours of its own; the text is ASCII."""
    colours = {True: "\x1b[0;48;5;232m", False: "\x1b[0;48;5;231m"}
    return "".join(_line((colours[dark], "  ") for dark in row) for row in matrix)


def plain(matrix: Matrix, inverted: bool) -> str:
    """Draw two modules per character without colours, for light text on dark, or *inverted* the reverse."""
    glyphs = {(False, False): " ", (True, False): _UPPER, (False, True): _LOWER, (True, True): _FULL}
    lines = []
    for y in range(0, len(matrix), 2):
        pairs = zip(matrix[y], _row(matrix, y + 1), strict=True)
        lines.append("".join(glyphs[upper == inverted, lower == inverted] for upper, lower in pairs) + "\n")
    return "".join(lines)


def png(text: str, *, scale: int = 8) -> bytes:
    """Make a 1-bit PNG of *text*, *scale* pixels per module; UsageError when no code can hold it."""
    if scale < 1:
        raise ValueError("scale must be at least 1")
    matrix = _matrix(text, border=FILE_BORDER)
    size = len(matrix) * scale
    packed = -(-size // 8)
    rows = []
    for row in matrix:
        bits = "".join(("0" if dark else "1") * scale for dark in row).ljust(packed * 8, "0")
        rows.append((b"\0" + int(bits, 2).to_bytes(packed, "big")) * scale)
    header = struct.pack(">IIBBBBB", size, size, 1, 0, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(b"".join(rows), 9)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )


def svg(text: str) -> str:
    """Make an SVG image of *text*, black on white; UsageError when no code can hold it."""
    matrix = _matrix(text, border=FILE_BORDER)
    size = len(matrix)
    path = "".join(f"M{x} {y}h1v1h-1z" for y, row in enumerate(matrix) for x, dark in enumerate(row) if dark)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {size} {size}" width="{size * 8}" '
        f'height="{size * 8}" shape-rendering="crispEdges"><rect width="{size}" height="{size}" fill="#fff"/>'
        f'<path fill="#000" d="{path}"/></svg>\n'
    )


def screen_of(stream: TextIO, *, term: str, utf8_locale: bool) -> Screen:
    """Measure the terminal behind *stream*; 80 x 24 where it cannot be known."""
    try:
        # Not shutil's function: it believes COLUMNS, which outlives a resize, before the terminal itself.
        columns, rows = os.get_terminal_size(stream.fileno())
    except (OSError, ValueError):
        columns, rows = 0, 0
    # A stream without an encoding, such as StringIO, takes every character.
    return Screen(columns or 80, rows or 24, stream.encoding or "utf-8", term, utf8_locale)


def _matrix(text: str, *, border: int, levels: Sequence[int] = (ERROR_CORRECT_M, ERROR_CORRECT_L)) -> Matrix:
    """Encode *text* at the first of the error correction *levels* that can hold it."""
    if not isinstance(text, str) or not text:
        raise UsageError("there is no text to encode")
    try:
        data = text.encode()
    except UnicodeEncodeError:
        raise UsageError("the text is not valid Unicode") from None
    for level in levels if len(data) <= MOST_DIGITS else ():
        code = QRCode(error_correction=level, border=border)
        # Unsplit, so that the size depends on the length alone and not on the digits of a token.
        code.add_data(data, optimize=0)
        try:
            code.make(fit=True)
        except (DataOverflowError, ValueError):  # a version 41 is a ValueError in qrcode 8
            continue
        return [[bool(dark) for dark in row] for row in code.get_matrix()]
    raise UsageError(f"the text is too long ({len(data)} bytes)")


def _shapes(screen: Screen, style: Style) -> Sequence[_Shape]:
    """List what may be drawn in this style, the best first."""
    halves, whole = _Shape(compact, 1, 2), _Shape(large, 2, 1)
    blocks = _encodes_blocks(screen.encoding)
    if style is Style.LARGE or (style is Style.AUTO and not blocks):
        return (whole,)
    if not blocks:
        return ()
    if style in (Style.PLAIN, Style.PLAIN_INVERTED):
        return (_Shape(lambda matrix: plain(matrix, style is Style.PLAIN_INVERTED), 1, 2),)
    if style is Style.AUTO and (not screen.utf8_locale or screen.term.startswith("linux")):
        # The terminal may well show half blocks, only nothing says so.
        return (whole, halves)
    return (halves,)


def _fit(text: str, screen: Screen, shapes: Sequence[_Shape]) -> Picture:
    """Draw the first that fits, else the lowest that does not wrap."""
    drawable = []
    needed = []
    for shape in shapes:
        for levels in ((ERROR_CORRECT_M, ERROR_CORRECT_L), (ERROR_CORRECT_L,)):
            matrix = _matrix(text, border=SCREEN_BORDER, levels=levels)
            columns, rows = shape.size(matrix)
            rows += SPARE_ROWS
            needed.append(columns)
            if columns <= screen.columns:
                if rows <= screen.rows:
                    return Picture(shape.draw(matrix), None, shape.draw is large, screen.rows - rows)
                drawable.append((rows, shape, matrix))
    if not drawable:
        have, need = f"the terminal is {screen.columns} columns wide", f"the code needs {min(needed)}"
        return Picture(None, f"{have} and {need}: widen it, or use --qr-file FILE")
    rows, shape, matrix = min(drawable, key=lambda candidate: candidate[0])
    have, need = f"the terminal has {screen.rows} rows", f"the code needs {rows}, so its top scrolls away"
    return Picture(shape.draw(matrix), f"{have} and {need}: enlarge it, or use --qr-file FILE")


def _encodes_blocks(encoding: str) -> bool:
    try:
        (_LOWER + _UPPER + _FULL).encode(encoding)
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def _row(matrix: Matrix, y: int) -> Sequence[bool]:
    """Give a row, light outside the matrix: its height is odd, so the last line of half blocks hangs over."""
    return matrix[y] if 0 <= y < len(matrix) else [False] * len(matrix[0])


def _line(cells: Iterable[tuple[str, str]]) -> str:
    """Join cells of colour and text, naming a colour only where it changes."""
    out, last = [], None
    for colour, text in cells:
        out.append(text if colour == last else colour + text)
        last = colour
    return "".join(out) + _END_OF_LINE
