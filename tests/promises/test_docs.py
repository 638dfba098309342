"""The README names what there is, and nothing that is not."""

import re

from posduif_cli import errors
from posduif_cli.cli import tree
from support.sources import REPO

README = (REPO / "README.md").read_text(encoding="utf-8")


def verbs() -> dict[str, set[str]]:
    return {noun: set(getattr(tree.load(noun), "commands", {})) for noun in tree.NOUNS}


def test_the_command_table_is_complete_and_true() -> None:
    listed: dict[str, set[str]] = {}
    for row in re.findall(r"^\| `([a-z]+)((?: [a-z-]+)*)[^`]*` \|", README, re.MULTILINE):
        listed[row[0]] = set(row[1].split())
    assert listed == verbs()


def test_every_exit_code_is_explained() -> None:
    listed = {int(code) for code in re.findall(r"^\| (\d+) \|", README, re.MULTILINE)}
    raised = {kind.exit_code for kind in vars(errors).values() if isinstance(kind, type) and hasattr(kind, "exit_code")}
    assert listed == raised | {0, 1}


def test_every_command_that_the_readme_shows_exists() -> None:
    known = verbs()
    for noun, verb in re.findall(r"posduif ([a-z]+)(?: ([a-z][a-z-]*))?", README):
        if known.get(noun):
            assert verb in known[noun], f"posduif {noun} {verb}"


def test_the_two_commands_stand_in_the_readme_and_in_ci() -> None:
    test_line = "python3 -m venv .venv && .venv/bin/pip install -q -e '.[test]'"
    assert f"{test_line} && .venv/bin/pytest\n" in README
    assert "python3 -m venv .venv && .venv/bin/pip install -q '.[embedded]' && .venv/bin/posduif quickstart\n" in README
    assert test_line in (REPO / ".ci" / "run").read_text(encoding="utf-8")
