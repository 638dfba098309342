"""Our own pixels, decoded by a reader that refuses inverted codes, as many phones do."""

import io
import os
import pty
import random
import re
import struct
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from qrcode.constants import ERROR_CORRECT_M
from qrcode.main import QRCode

from posduif_cli.errors import UsageError
from posduif_cli.models.codes import Style
from posduif_cli.render import qr
from posduif_cli.render.qr import Matrix, Screen
from support.camera import THEMES, photo, png_pixels, raster, read, svg_pixels

Draw = Callable[[Matrix], str]

HOSTS = (
    "a.io",
    "sync.example.com",
    "acme.sync.example.com",
    "10.0.0.7:8443",
    "t" * 20 + ".sync.example.com:8443",
)
URL = "https://sync.example.com/api/enrollment/3f0c9a52-7a1b-4a0e-9d3f-5b8f2c6d1e04"
WIDE = Screen(200, 100, "utf-8", "xterm-256color", True)
DRAWINGS: dict[str, Draw] = {"compact": qr.compact, "large": qr.large}


def urls(per_host: int, seed: int = 1) -> list[str]:
    rng = random.Random(seed)
    hexes = [f"{rng.getrandbits(128):032x}" for _ in range(len(HOSTS) * per_host)]
    return [
        f"https://{HOSTS[i % len(HOSTS)]}/api/enrollment/{h[:8]}-{h[8:12]}-{h[12:16]}-{h[16:20]}-{h[20:]}"
        for i, h in enumerate(hexes)
    ]


def matrix(text: str, border: int = 2) -> list[list[bool]]:
    code = QRCode(error_correction=ERROR_CORRECT_M, border=border)
    code.add_data(text, optimize=0)
    code.make(fit=True)
    return [[bool(dark) for dark in row] for row in code.get_matrix()]


# The terminal: cells 8 pixels wide; glyphs are 16 pixels high, and the line may be higher than that.


def drawn(text: str, screen: Screen = WIDE, style: Style = Style.AUTO) -> str:
    result = qr.picture(text, screen, style)
    assert result.text is not None
    return result.text


# It decodes.


@pytest.mark.parametrize("style", [Style.COMPACT, Style.LARGE])
@pytest.mark.parametrize("theme", THEMES)
def test_decodes_in_every_theme(style: Style, theme: str) -> None:
    for url in urls(per_host=4):
        assert read(raster(drawn(url, style=style), THEMES[theme], columns=120)) == [url]


@pytest.mark.parametrize("style", [Style.COMPACT, Style.LARGE])
@pytest.mark.parametrize("height", [16, 17, 18, 19, 20])
def test_decodes_off_a_photo_at_every_line_spacing(style: Style, height: int) -> None:
    for seed, url in enumerate(urls(per_host=1)):
        for theme in ("dark", "light"):
            image = raster(drawn(url, style=style), THEMES[theme], height=height, columns=120)
            assert read(photo(image, 8 if style is Style.COMPACT else 16, seed)) == [url]


@pytest.mark.parametrize(("style", "theme"), [(Style.PLAIN, "dark"), (Style.PLAIN_INVERTED, "light")])
def test_plain_decodes_in_its_theme(style: Style, theme: str) -> None:
    assert read(raster(drawn(URL, style=style), THEMES[theme])) == [URL]


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=12, max_size=132))
def test_any_url_comes_back_exactly(rest: str) -> None:
    for style in (Style.COMPACT, Style.LARGE):
        url = "https://" + rest
        assert read(raster(drawn(url, style=style), THEMES["dark"], columns=120)) == [url]


@pytest.mark.parametrize("style", [Style.COMPACT, Style.LARGE])
def test_another_reader_agrees(style: Style) -> None:
    images = [(url, raster(drawn(url, style=style), t, columns=120)) for url in urls(4) for t in THEMES.values()]
    correct = sum(cv2.QRCodeDetector().detectAndDecode(image)[0] == url for url, image in images)
    assert correct >= len(images) * 0.95


# The rig must be able to fail, or it proves nothing.


def inverted(text: str) -> str:
    return text.replace("231", "x").replace("232", "231").replace("x", "232")


@pytest.mark.parametrize("draw", DRAWINGS.values(), ids=DRAWINGS)
def test_an_inverted_code_does_not_decode(draw: Draw) -> None:
    for theme in THEMES.values():
        assert read(raster(inverted(draw(matrix(URL))), theme)) == []


@pytest.mark.parametrize("draw", DRAWINGS.values(), ids=DRAWINGS)
def test_a_code_without_border_does_not_decode_on_dark(draw: Draw) -> None:
    assert read(raster(draw(matrix(URL, border=0)), THEMES["dark"])) == []


def test_a_wrapped_code_does_not_decode() -> None:
    for theme in THEMES.values():
        assert read(raster(qr.compact(matrix(URL)), theme, columns=41)) == [URL]
        assert read(raster(qr.compact(matrix(URL)), theme, columns=40)) == []


def test_plain_does_not_decode_in_the_other_theme() -> None:
    assert read(raster(qr.plain(matrix(URL), False), THEMES["light"])) == []
    assert read(raster(qr.plain(matrix(URL), True), THEMES["dark"])) == []


def lower_blocks_only(code: Matrix) -> str:
    """What most tools print: the lower half always as a glyph."""
    papers = {False: "\x1b[48;5;231m", True: "\x1b[48;5;232m"}
    inks = {False: "\x1b[38;5;231m", True: "\x1b[38;5;232m"}
    pairs = list(zip(code[::2], [*code[1::2], [False] * len(code)], strict=True))
    return "".join(
        "".join(papers[upper] + inks[lower] + "\u2584" for upper, lower in zip(*pair, strict=True)) + "\x1b[0m\n"
        for pair in pairs
    )


def test_spaced_lines_break_a_code_that_does_not_mind_the_gap() -> None:
    def readable(draw: Draw, height: int) -> int:
        return sum(
            read(photo(raster(draw(matrix(url)), THEMES["light"], height=height), 8, seed)) == [url]
            for seed, url in enumerate(urls(per_host=2))
        )

    assert readable(lower_blocks_only, 16) == 10
    assert readable(lower_blocks_only, 19) < 5
    assert readable(qr.compact, 19) == 10


# What the text is made of.


@pytest.mark.parametrize("url", urls(per_host=1))
def test_structure(url: str) -> None:
    code = matrix(url)
    for draw, columns, rows in (
        (qr.compact, len(code), len(code) // 2 + 1),
        (qr.large, 2 * len(code), len(code)),
    ):
        text = draw(code)
        lines = text.split("\n")
        assert lines.pop() == ""
        assert len(lines) == rows
        assert all(line.endswith("\x1b[0m") for line in lines)
        bare = [re.sub(r"\x1b\[[0-9;]*m", "", line) for line in lines]
        assert {len(line) for line in bare} == {columns}
        assert set("".join(bare)) <= ({" "} if draw is qr.large else {" ", "\u2580", "\u2584"})
        assert set(re.findall(r"[34]8;5;(\d+)", text)) == {"231", "232"}
        assert not re.search(r"8;2;|\x1b[^\[]|[^\x20-\x7e\n\x1b\u2580\u2584]", text)
    assert qr.large(code).isascii()
    # The height is odd: the half line that hangs over belongs to the quiet zone.
    assert qr.compact(code).splitlines()[-1] == "\x1b[0;38;5;232;48;5;231m" + " " * len(code) + "\x1b[0m"


def test_plain_has_no_escapes() -> None:
    code = matrix(URL)
    for invert in (False, True):
        lines = qr.plain(code, invert).splitlines()
        assert {len(line) for line in lines} == {len(code)}
        assert set("".join(lines)) == set(" \u2580\u2584\u2588")


# What is drawn where. For URL compact is 41 x 21 at level M and 37 x 19 at L, large 82 x 41 and 74 x 37.


def screen(
    columns: int = 100,
    rows: int = 30,
    *,
    encoding: str = "utf-8",
    term: str = "xterm",
    utf8_locale: bool = True,
) -> Screen:
    return Screen(columns, rows, encoding, term, utf8_locale)


def size(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    lines = re.sub(r"\x1b\[[0-9;]*m", "", text).splitlines()
    return len(lines[0]), len(lines)


M, L, LARGE_M, LARGE_L = (41, 21), (37, 19), (82, 41), (74, 37)
DECISIONS = [
    # the usual
    (screen(100, 30), Style.AUTO, M, None),
    (screen(60, 24), Style.AUTO, M, None),
    (screen(41, 23), Style.AUTO, M, None),
    # too narrow, too low
    (screen(40, 24), Style.AUTO, L, None),
    (screen(80, 22), Style.AUTO, L, None),
    (screen(37, 21), Style.AUTO, L, None),
    (screen(36, 24), Style.AUTO, None, "is 36 columns wide and the code needs 37"),
    (screen(1, 1), Style.AUTO, None, "--qr-file FILE"),
    (screen(80, 20), Style.AUTO, L, "has 20 rows and the code needs 21"),
    # no colours
    (screen(term="dumb"), Style.AUTO, None, "--qr-file FILE"),
    (screen(term=""), Style.AUTO, None, "--qr-file FILE"),
    (screen(term="dumb"), Style.LARGE, None, "--qr-file FILE"),
    (screen(term="dumb"), Style.PLAIN, M, None),
    (screen(term="dumb"), Style.ALWAYS, M, None),
    # no half blocks
    (screen(100, 50, encoding="ascii"), Style.AUTO, LARGE_M, None),
    (screen(100, 50, encoding="latin-1"), Style.AUTO, LARGE_M, None),
    (screen(80, 50, encoding="latin-1"), Style.AUTO, LARGE_L, None),
    (screen(80, 24, encoding="latin-1"), Style.AUTO, LARGE_L, "has 24 rows and the code needs 39"),
    (screen(73, 50, encoding="latin-1"), Style.AUTO, None, "is 73 columns wide and the code needs 74"),
    (screen(encoding="ascii"), Style.COMPACT, None, "--qr=large"),
    (screen(encoding="ascii"), Style.PLAIN, None, "--qr-file FILE"),
    (screen(encoding="no-such-codec"), Style.COMPACT, None, "--qr=large"),
    (screen(encoding="cp437"), Style.AUTO, M, None),
    # half blocks that nothing promises
    (screen(100, 50, utf8_locale=False), Style.AUTO, LARGE_M, None),
    (screen(80, 24, utf8_locale=False), Style.AUTO, M, None),
    (screen(100, 50, term="linux"), Style.AUTO, LARGE_M, None),
    (screen(80, 25, term="linux"), Style.AUTO, M, None),
    # as asked
    (screen(100, 50), Style.LARGE, LARGE_M, None),
    (screen(80, 50), Style.LARGE, LARGE_L, None),
    (screen(60, 50), Style.LARGE, None, "is 60 columns wide and the code needs 74"),
    (screen(36, 50), Style.COMPACT, None, "is 36 columns wide and the code needs 37"),
    (screen(36, 50), Style.PLAIN_INVERTED, None, "--qr-file FILE"),
    (screen(20, 5), Style.ALWAYS, M, None),
    (screen(20, 5, encoding="ascii"), Style.ALWAYS, LARGE_M, None),
    (screen(), Style.NEVER, None, None),
]


@pytest.mark.parametrize(("where", "style", "expected", "advice"), DECISIONS)
def test_decision(where: Screen, style: Style, expected: tuple[int, int] | None, advice: str | None) -> None:
    result = qr.picture(URL, where, style)
    assert size(result.text) == expected
    assert (result.advice is None) if advice is None else (advice in (result.advice or ""))
    assert "\n" not in (result.advice or "")
    assert URL not in (result.advice or "")
    if result.text and where.encoding != "no-such-codec":
        result.text.encode(where.encoding)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.integers(1, 120),
    st.integers(1, 60),
    st.sampled_from(["utf-8", "ascii", "cp1252", "gbk"]),
    st.sampled_from(["xterm", "linux", "dumb", ""]),
    st.booleans(),
    st.sampled_from([style for style in Style if style is not Style.ALWAYS]),
    st.integers(20, 140),
)
def test_never_wraps_and_never_silent(
    columns: int, rows: int, encoding: str, term: str, utf8: bool, style: Style, length: int
) -> None:
    result = qr.picture("u" * length, Screen(columns, rows, encoding, term, utf8), style)
    if result.text is not None:
        wide, high = size(result.text) or (0, 0)
        assert wide <= columns
        assert (high + 2 > rows) == (result.advice is not None)
        result.text.encode(encoding)
    else:
        assert (result.advice is None) == (style is Style.NEVER)


@pytest.mark.parametrize("text", ["x" * 2954, "x" * 100_000, "", "\ud800", None, b"bytes", 7])
@pytest.mark.parametrize("style", [Style.AUTO, Style.ALWAYS])
def test_what_no_code_can_hold_is_an_advice(text: Any, style: Style) -> None:
    result = qr.picture(text, WIDE, style)
    assert result.text is None
    assert result.advice
    for write in (qr.png, qr.svg):
        with pytest.raises(UsageError):
            write(text)


def test_a_long_text_falls_to_the_level_that_holds_it() -> None:
    assert qr.picture("x" * 2953, Screen(200, 100, "utf-8", "xterm", True)).text


# The terminal is measured, not believed.


@pytest.mark.parametrize(
    ("actual", "expected"),
    [((60, 24), (60, 24)), ((36, 50), (36, 50)), ((0, 0), (80, 24)), ((0, 50), (80, 50))],
)
def test_screen_of_a_terminal(
    actual: tuple[int, int], expected: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    fcntl, termios = pytest.importorskip("fcntl"), pytest.importorskip("termios")
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("LINES", "99")
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", actual[1], actual[0], 0, 0))
    try:
        with open(theirs, "w", encoding="latin-1") as stream:
            known = qr.screen_of(stream, term="xterm", utf8_locale=False)
    finally:
        os.close(ours)
    assert known == Screen(*expected, "latin-1", "xterm", False)


def test_screen_of_what_is_no_terminal() -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    with open(write_end, "w", encoding="ascii") as stream:
        assert qr.screen_of(stream, term="", utf8_locale=True) == Screen(80, 24, "ascii", "", True)
    assert qr.screen_of(io.StringIO(), term="", utf8_locale=True) == Screen(80, 24, "utf-8", "", True)


# Files.


@pytest.mark.parametrize("scale", [1, 3, 8])
@pytest.mark.parametrize("url", urls(per_host=1))
def test_png(url: str, scale: int) -> None:
    pixels = png_pixels(qr.png(url, scale=scale))
    code = np.array(matrix(url, border=4))
    assert (pixels == np.where(np.kron(code, np.ones((scale, scale))), 0, 255)).all()
    assert read(np.kron(pixels, np.ones((4, 4), np.uint8))) == [url]


def test_png_is_small_and_has_a_scale() -> None:
    assert len(qr.png(URL)) < 1000
    with pytest.raises(ValueError, match="scale"):
        qr.png(URL, scale=0)


@pytest.mark.parametrize("url", urls(per_host=1))
def test_svg(url: str) -> None:
    pixels = svg_pixels(qr.svg(url))
    assert (pixels == np.where(np.array(matrix(url, border=4)), 0, 255)).all()
    assert read(np.kron(pixels, np.ones((4, 4), np.uint8))) == [url]
