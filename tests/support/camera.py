"""Codes as a phone sees them: a terminal's text and files as pixels, and a reader of those."""

import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import zxingcpp
from numpy.typing import NDArray

Image = NDArray[np.uint8]


# The terminal: cells 8 pixels wide; glyphs are 16 pixels high, and the line may be higher than that.


@dataclass(frozen=True)
class Theme:
    ink: int
    paper: int
    colours: dict[int, int] = field(default_factory=dict)  # what the theme redefines, as grey

    def grey(self, index: int) -> int:
        if index in self.colours:
            return self.colours[index]
        if index >= 232:
            return 8 + 10 * (index - 232)
        steps = (0, 95, 135, 175, 215, 255)
        red, green, blue = (steps[(index - 16) // n % 6] for n in (36, 6, 1))
        return (299 * red + 587 * green + 114 * blue) // 1000


THEMES = {
    "dark": Theme(204, 0),
    "light": Theme(30, 255),
    "solarized-dark": Theme(140, 38),
    "solarized-light": Theme(115, 245),
    "selenized-light": Theme(92, 240),
    "base16-shell": Theme(200, 24, {16: 150, 17: 110, 18: 56, 19: 80, 20: 160, 21: 230}),
}
TOKENS = re.compile(r"\x1b\[([0-9;]*)m|(\n)|([^\x1b])")
INKED = {" ": (0, 0), "\u2580": (0, 8), "\u2584": (8, 16), "\u2588": (0, 16), "$": (6, 10)}


def cells(text: str, theme: Theme, columns: int) -> Iterator[list[tuple[str, int, int]]]:
    """Lines of (glyph, ink, paper), wrapped like a terminal of *columns* would."""
    ink, paper = theme.ink, theme.paper
    line: list[tuple[str, int, int]] = []
    for sgr, newline, glyph in TOKENS.findall(text):
        if newline:
            yield line
            line = []
        elif glyph:
            if len(line) == columns:
                yield line
                line = []
            line.append((glyph, ink, paper))
        else:
            codes = [int(code or 0) for code in sgr.split(";")]
            while codes:
                match codes:
                    case [0, *codes]:
                        ink, paper = theme.ink, theme.paper
                    case [38, 5, index, *codes]:
                        ink = theme.grey(index)
                    case [48, 5, index, *codes]:
                        paper = theme.grey(index)
                    case _:
                        raise AssertionError(f"unknown SGR {sgr}")
    if line:
        yield line


def raster(text: str, theme: Theme, *, height: int = 16, columns: int = 100) -> Image:
    """The screen's pixels, with prompt lines above and below the code."""
    prompt = "$ $$$$$$ $$ $$$$$\n"
    lines = list(cells(prompt * 2 + text + prompt * 2, theme, columns))
    image = np.full((len(lines) * height, columns * 8), theme.paper, np.uint8)
    leading = (height - 16) // 2
    for row, line in enumerate(lines):
        for column, (glyph, ink, paper) in enumerate(line):
            cell = image[row * height : (row + 1) * height, column * 8 : (column + 1) * 8]
            cell[:] = paper
            top, bottom = INKED[glyph]
            cell[leading + top : leading + bottom] = ink
    return image


def photo(image: Image, module: float, seed: int) -> Image:
    """A phone's view of it: turned, tilted, 4 pixels per module, blurred, unevenly lit, noisy."""
    rng = np.random.default_rng(seed)
    zoom = module / 4
    high, wide = (int(side / zoom * 1.2) for side in image.shape)
    y, x = np.mgrid[0:high, 0:wide].astype(float)
    y, x = y - high / 2, x - wide / 2
    angle = np.radians(rng.uniform(-8, 8))
    depth = 1 + 0.04 * rng.uniform(-1, 1) * x / wide + 0.04 * rng.uniform(-1, 1) * y / high
    u = (x * np.cos(angle) - y * np.sin(angle)) / depth * zoom + image.shape[1] / 2
    v = (x * np.sin(angle) + y * np.cos(angle)) / depth * zoom + image.shape[0] / 2
    seen = np.zeros((high, wide))
    around = np.linspace(-0.75, 0.75, 5) * zoom  # the lens and the sensor's pixel, in screen pixels
    for dy in around:
        for dx in around:
            rows = np.clip(v + dy, 0, image.shape[0] - 1).astype(int)
            seen += image[rows, np.clip(u + dx, 0, image.shape[1] - 1).astype(int)]
    seen = 20 + seen / 25 * (0.7 + 0.2 * x / wide) + rng.normal(0, 6, seen.shape)
    pixels: Image = np.clip(seen, 0, 255).astype(np.uint8)
    return pixels


def read(image: Image) -> list[str]:
    return [code.text for code in zxingcpp.read_barcodes(image, try_invert=False)]


def png_pixels(data: bytes) -> Image:
    """Decode a 1-bit grey PNG with unfiltered rows, checking every checksum."""
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    chunks, at = {}, 8
    while at < len(data):
        (length,) = struct.unpack_from(">I", data, at)
        kind, body = data[at + 4 : at + 8], data[at + 8 : at + 8 + length]
        assert struct.unpack_from(">I", data, at + 8 + length) == (zlib.crc32(kind + body),)
        chunks[kind] = body
        at += 12 + length
    assert list(chunks) == [b"IHDR", b"IDAT", b"IEND"]
    width, height, *rest = struct.unpack(">IIBBBBB", chunks[b"IHDR"])
    assert rest == [1, 0, 0, 0, 0]
    rows = np.frombuffer(zlib.decompress(chunks[b"IDAT"]), np.uint8).reshape(height, 1 + (width + 7) // 8)
    assert not rows[:, 0].any()
    return np.unpackbits(rows[:, 1:], axis=1)[:, :width] * np.uint8(255)


def svg_pixels(text: str) -> Image:
    side = re.search(r'viewBox="0 0 (\d+) (\d+)"', text)
    path = re.search(r'<path fill="#000" d="([^"]+)"/>', text)
    assert side
    assert path
    assert side[1] == side[2]
    assert f'<rect width="{side[1]}" height="{side[1]}" fill="#fff"/>' in text
    assert re.fullmatch(r"(M\d+ \d+h1v1h-1z)+", path[1])
    image = np.full((int(side[1]), int(side[1])), 255, np.uint8)
    for x, y in re.findall(r"M(\d+) (\d+)", path[1]):
        image[int(y), int(x)] = 0
    return image
