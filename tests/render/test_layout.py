"""Tables on narrow terminals: shorter first, then without the least important columns, and always a table."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from posduif_cli.render.layout import Cell, Column, fit
from support.runner import Posduif
from support.servers import PgServer
from support.terminal import on_terminal


def columns(*settings: tuple[str, str, int | None, str]) -> list[Column]:
    return [Column(name, [Cell(text, text[:8])], kind, rank) for name, kind, rank, text in settings]


def test_what_fits_is_shown_whole() -> None:
    laid = fit(columns(("id", "kept", None, "0123456789")), 10)
    assert (laid.rows, laid.widths, laid.left_out) == ([[["0123456789"]]], (10,), ())


def test_short_forms_come_first_then_the_longest_text_then_columns_go() -> None:
    table = columns(("id", "kept", None, "0123456789"), ("text", "cut", 0, "x" * 40), ("more", "cut", 1, "y" * 20))
    assert fit(table, 76).rows == [[["0123456789", "x" * 40, "y" * 20]]]
    assert fit(table, 75).widths == (8, 8, 8), "short forms"
    long = [Column(column.name, [Cell(column.cells[0].text, column.cells[0].text)], column.kind, column.rank)
            for column in table]  # fmt: skip
    assert fit(long, 60).widths == (10, 24, 20), "the longest first"
    assert fit(long, 46).widths == (10, 15, 15), "then both alike"
    assert fit(long, 40).widths == (10, 12, 12)
    assert fit(long, 39).left_out == ("text",)
    assert fit(long, 25).widths == (10, 12)
    assert fit(long, 24).left_out == ("text", "more")
    assert fit(long, 3).widths == (10,), "what cannot fit stays as it is"


def test_a_cut_text_says_so_and_a_folded_one_loses_nothing() -> None:
    text = "https://a-long-one.example.com"
    whole = Column("message", [Cell(text, text)], "folded")
    [lines] = fit([whole], 12).rows
    assert "".join(line[0] for line in lines) == text
    [[[cut]]] = fit([Column("url", [Cell(text, text)], "cut")], 12, ellipsis="...").rows
    assert cut == text[:9] + "..."


def test_a_fix_gets_a_line_of_its_own() -> None:
    fix = Column("fix", [Cell("posduif tenant show acme", "posduif tenant show acme"), Cell("", "")], "below")
    message = Column("message", [Cell("a " * 20, "a " * 20), Cell("b", "b")], "folded")
    laid = fit([message, fix], 30)
    assert (laid.columns, laid.below) == (("message",), [[("fix", "posduif tenant show acme")], []])
    assert " ".join(line[0] for line in laid.rows[0]).split() == ["a"] * 20


COMMANDS = {
    "tenant list": ("TENANT", "STATE"),
    "token list {0}": ("ID", "LABEL", "STATUS"),
    "user list {0}": ("USERNAME", "ID"),
    "device list {0}": ("DEVICE ID", "USERNAME"),
    "message pending {0} --device the-phone-of-anna-berg": ("CONTENT", "ID"),
    "migrate status --all --list": ("TENANT", "PENDING"),
    "migrate list {0}": ("VERSION", "STATE"),
    "server list": ("SERVER", "REACHABLE"),
    "config show --origin": ("KEY", "VALUE"),
    "doctor": ("LEVEL", "MESSAGE"),
    "server init": ("LEVEL", "MESSAGE"),
    "health": ("LEVEL", "MESSAGE"),
}


@pytest.mark.one_server
def test_commands_at_every_width(own_server: PgServer, run_on: Callable[[PgServer], Posduif], tmp_path: Path) -> None:
    posduif = run_on(own_server)
    names = ("nordbank", "ostseewerft")
    (tmp_path / "20261126040001_archive.sql").write_text("-- migrate:up\nCREATE TABLE x (id int);\n")
    config = tmp_path / "config.yaml"
    config.write_text(f"migrations: {{paths: [{tmp_path}]}}\n")
    for name in names:
        posduif("tenant", "create", name, "--url", f"https://{name}.sync.example.com", "--web-user", "desk")
    url = posduif("token", "create", names[0], "--for", "Anna Berg, the second phone").out.strip()
    posduif("enroll", "complete", url, "--device", "the-phone-of-anna-berg", "--username", "Anna Berg")
    posduif("message", "send", names[0], "--from", "desk", "--to", "Anna Berg", "a text that is longer than a line is")
    posduif("migrate", "up", names[1], "--config", str(config))
    for command, kept in COMMANDS.items():
        argv = [*command.format(names[0]).split(), "--config", str(config), "--color", "never"]
        for room in (40, 60, 80, 110):
            shown = on_terminal(*argv, columns=room, apart=True)
            lines = shown.out.splitlines()
            assert shown.code in (0, 1), (command, room, shown)
            header = next(line for line in lines if re.match(r"[A-Z]", line))
            assert all(title in header for title in kept), (command, room, header)
            # A command to copy is never broken, however long it is; a sentence is broken by the terminal.
            wide = [ln for ln in lines if len(ln) > room and "   " in ln.strip() and not ln.startswith("  fix   ")]
            assert not wide, (command, room, wide)
