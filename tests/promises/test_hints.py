"""Hints: each is a command that runs when it is pasted, on the same server, or words that nothing is added to."""

import ast
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer

from posduif_cli.cli import tree
from posduif_cli.cli.context import App
from posduif_cli.errors import PosduifError, Run
from posduif_cli.render.output import Output
from support.runner import Posduif
from support.servers import PgServer

PACKAGE = Path(__file__).parent.parent.parent / "posduif_cli"
pytestmark = pytest.mark.one_server


def literals(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the texts of a file with `posduif` in them, each with its line; {} stands for what is filled in."""
    code = ast.parse(path.read_text(encoding="utf-8"))
    inner = {id(part) for node in ast.walk(code) if isinstance(node, ast.JoinedStr) for part in node.values}
    for node in ast.walk(code):
        if isinstance(node, ast.JoinedStr):
            text = ""
            for part in node.values:  # what follows a letter is an option or nothing
                filled = "acme" if not text[-1:].isalnum() else ""
                text += str(part.value) if isinstance(part, ast.Constant) else filled
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in inner:
            text = node.value.replace("{name}", "acme")
        else:
            continue
        if "\n" not in text and "posduif " in text:
            yield node.lineno, text


def complaint(words: list[str]) -> str | None:
    """Have a command line parsed as if it were to be run, without running it; return what is wrong with it."""
    try:
        parse(words)
    except typer.TyperException as error:
        return error.format_message()
    return None


def parse(words: list[str]) -> None:
    """Parse a command line; raises typer.TyperException."""
    context = tree.root().make_context("posduif", list(words), obj=App())
    while (name := getattr(context, "_protected_args", None)) or context.args:
        rest = [*(name or []), *context.args]
        command = context.command
        if not hasattr(command, "resolve_command"):
            return
        _, sub, rest = command.resolve_command(context, rest)
        context = sub.make_context(sub.name, rest, parent=context)


TEXTS = [
    pytest.param(text, id=f"{path.relative_to(PACKAGE)}:{line}")
    for path in sorted(PACKAGE.rglob("*.py"))
    for line, text in literals(path)
]


@pytest.mark.parametrize("text", TEXTS)
def test_what_is_spelled_as_a_command_is_one(text: str) -> None:
    """Every text of the package: what gets a server's name appended must parse with it, and begin no prose."""
    spelled = Output("table", program="PROGRAM", options={"server": "eu1"}).spell(text)
    if spelled == text:
        return
    command = spelled.partition("PROGRAM ")[2]
    error = complaint(shlex.split(command))
    assert error is None or "acme" in error, error  # which we filled in


@pytest.mark.parametrize(
    "prose",
    [
        "posduif token purge acme --older-than 1m deletes those that were never used",
        "posduif migrate up acme, when that is done",
        "restore its database, or posduif tenant drop acme",
        "a superuser types: GRANT posduif_admin TO sam;",
        "check user and password (~/.pgpass)",
        "posduif user show acme 'it",
    ],
)
def test_nothing_is_added_to_prose(prose: str) -> None:
    assert Output("table", program="/x/posduif", options={"server": "eu1"}).spell(prose) == prose


def test_a_command_is_spelled_once_and_safely() -> None:
    out = Output("table", program="/x/posduif", options={"server": "eu1", "config": "/a b.yaml"})
    spell = out.spell
    assert spell(Run("user", "show", "acme", "'; rm -rf ~ '")).startswith("/x/posduif user show acme ''\"'\"'; rm -rf")
    assert shlex.split(spell(Run("user", "show", "acme", "it's\n")))[-5:-4] == ["it's\n"]
    assert spell(Run("tenant", "show", "a", "--server", "local")) == (
        "/x/posduif tenant show a --server local --config '/a b.yaml'"
    )
    assert spell("posduif tenant show a --server local") == spell(Run("tenant", "show", "a", "--server", "local"))
    assert spell("posduif config init --config x") == "/x/posduif config init --config x --server eu1"
    assert spell(Run("quickstart")) == "/x/posduif quickstart --config '/a b.yaml'"
    error = PosduifError("no", hint=Run("tenant", "list", "--dsn", "host=h password=hunter2"))
    assert "hunter2" not in spell(error.hints[0])


def pasted(line: str) -> "subprocess.CompletedProcess[str]":
    """Run a hint as it stands, without anything in the environment that says which server is meant."""
    environ = {key: value for key, value in os.environ.items() if not key.startswith("POSDUIF_")}
    assert line.startswith("posduif "), line
    line = f"{shlex.quote(sys.executable)} -m posduif_cli {line.removeprefix('posduif ')}"
    return subprocess.run(["bash", "-c", line], env=environ, capture_output=True, text=True, timeout=60)


@pytest.fixture(params=["--dsn", "--server", "--config", "in the file's default"])
def options(
    request: pytest.FixtureRequest, posduif: Posduif, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> list[str]:
    """What names the server, as options and not by the environment."""
    dsn = os.environ["POSDUIF_DSN"]
    monkeypatch.delenv("POSDUIF_DSN")
    monkeypatch.setattr(sys, "argv", ["posduif"])
    file = tmp_path / "it's a file.yaml"
    other = "  away: {dsn: 'host=127.0.0.1 port=1 user=nobody'}\n" if request.param == "--server" else ""
    file.write_text(f"servers:\n  here: {{dsn: {json.dumps(dsn)}}}\n{other}")
    named = {"--dsn": ["--dsn", dsn], "--server": ["--config", str(file), "--server", "here"]}
    return [*named.get(str(request.param), ["--config", str(file)]), "--data-dir", str(tmp_path / "none")]


def test_hints_run_when_they_are_pasted(posduif: Posduif, server: PgServer, name: str, options: list[str]) -> None:
    def run(*argv: str, code: int | None = 0) -> list[str]:
        result = posduif(*argv, *options, "-o", "json", code=code)
        return list(result.error["try"]) if result.err else []

    run("tenant", "create", name, "--ignore-unreachable")
    [set_url] = run("token", "create", name, code=3)[:1]
    assert pasted(set_url).returncode == 0
    [make_user] = run("token", "create", name, code=4)
    assert pasted(make_user).returncode == 0
    run("user", "create", name, "it's; me", "--type", "web")
    [by] = run("token", "create", name, code=2)
    made = pasted(f"{by} -o json")
    assert made.returncode == 0, made.stderr
    token = json.loads(made.stdout)
    for argv, code in (
        (("user", "show", name, "nobody"), 4),
        (("user", "create", name, "it's; me", "--type", "web"), 5),
        (("token", "show", name, "5f3759df-0000-4000-8000-000000000000"), 4),
        (("user", "delete", name, token["created_by"], "--confirm", token["created_by"]), 5),
        (("tenant", "show", f"{name}x"), 4),
        (("tenant", "create", name), 5),
        (("tenant", "list", "--nosuch"), 2),
        (("tenant",), 2),
    ):
        commands = [hint for hint in run(*argv, code=code) if hint.startswith("posduif ")]
        assert commands, argv
        for hint in commands:
            done = pasted(hint)
            assert done.returncode == 0, (argv, hint, done.stderr)

    # What people see says the same as what programs get.
    shown = posduif("user", "show", name, "nobody", *options, code=4).err
    assert f"  try   {run('user', 'show', name, 'nobody', code=4)[0]}\n" in shown


def test_the_fix_of_a_finding_is_spelled_as_a_hint(
    posduif: Posduif, server: PgServer, name: str, options: list[str]
) -> None:
    posduif("tenant", "create", name, "--ignore-unreachable", *options)
    server.sql(f"ALTER DATABASE {name} RESET timezone")
    findings = posduif("tenant", "verify", name, *options, "-o", "json", code=1).json
    [finding] = [finding for finding in findings if finding["check"] == "time zone"]
    lines = posduif("tenant", "verify", name, *options, "-o", "tsv", "--fields", "check,fix", code=1).out.splitlines()
    assert f"time zone\t{finding['fix']}" in lines
    done = pasted(finding["fix"])
    assert done.returncode == 0, done.stderr
    posduif("tenant", "verify", name, *options)
    fixes = [finding["fix"] for finding in posduif("health", name, *options, "-o", "json", code=None).json["findings"]]
    assert all(fix is None or fix.startswith("posduif ") is ("--data-dir" in fix) for fix in fixes)
