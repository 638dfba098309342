"""Hints: what a refusal tells people to type, typed; and whether each command that is advised parses."""

import re
from collections.abc import Iterator
from functools import cache

import pytest
import typer

from posduif_cli.cli import tree
from posduif_cli.cli.context import App
from posduif_cli.errors import Run
from support.commands import LEAVES
from support.servers import PgServer

_made: list[tuple[str, ...]] = []


@cache
def complaint(words: tuple[str, ...]) -> str | None:
    """Have a command line parsed as if it were to be run, without running it; return what is wrong with it."""
    if words[-1:] == ("--help",):  # parsing it would show the help
        path = " ".join(words[:-1])
        return None if path in {"", *tree.NOUNS, *LEAVES} else f"there is no {path}"
    try:
        context = tree.root().make_context("posduif", list(words), obj=App())
        while (name := getattr(context, "_protected_args", None)) or context.args:
            rest = [*(name or []), *context.args]
            command = context.command
            if not hasattr(command, "resolve_command"):
                return None
            _, sub, rest = command.resolve_command(context, rest)
            context = sub.make_context(sub.name, rest, parent=context)
    except typer.TyperException as error:
        return error.format_message()
    return None


@pytest.fixture(autouse=True)
def hints_are_commands(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Parse every hint that a test makes: it fails with what is wrong with one."""
    plain = Run.__init__

    def noted(self: Run, *words: str, lead: str = "") -> None:
        _made.append(words)
        plain(self, *words, lead=lead)

    monkeypatch.setattr(Run, "__init__", noted)
    _made.clear()
    yield
    wrong = {words: complaint(words) for words in dict.fromkeys(_made) if complaint(words)}
    assert not wrong, wrong


def typed(hint: str) -> tuple[str, str, str]:
    """Take a hint apart: who types what, in which database; the first two are empty where it is no such hint."""
    found = re.fullmatch(r"(\w[\w ]*) types(?:, in (\w+))?: (.+;)", hint, re.DOTALL)
    return (found[1], found[2] or "postgres", found[3]) if found else ("", "", hint)


def obey(server: PgServer, tries: list[str]) -> int:
    """Have everyone type what the hints of a refusal tell them to; return how many hints there were."""
    hints = [typed(hint) for hint in tries if typed(hint)[0]]
    for who, database, sql in hints:
        assert "\n" not in sql
        with server.connect(database) as conn:
            if who != "a superuser":
                conn.execute(f"SET SESSION AUTHORIZATION {who.removeprefix('a member of ')}".encode())
            conn.execute(sql.encode())
    return len(hints)


def by_psql(server: PgServer, script: str) -> None:
    """Run a script as psql does, as a superuser: one session until \\connect."""
    for number, part in enumerate(re.split(r"^\\connect ", script, flags=re.MULTILINE)):
        database, _, text = part.partition("\n") if number else ("postgres", "", part)
        with server.connect(database.strip('"')) as conn:
            conn.execute(text.encode())
