"""Hints: each is a command that runs when it is pasted, on the same server, or words that nothing is added to."""

import ast
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from posduif_cli.errors import PosduifError, Run
from posduif_cli.render.output import Output
from support.commands import LEAVES
from support.hints import complaint
from support.runner import Posduif
from support.servers import PgServer

PACKAGE = Path(__file__).parent.parent.parent / "posduif_cli"
pytestmark = pytest.mark.one_server


def calls(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield the line and the words of each command that a file makes as a hint; acme stands for what is filled in."""
    made = [node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)]
    for node in made:
        named = isinstance(node.func, ast.Name) and node.func.id == "Run"
        if named and not any(isinstance(word, ast.Starred) for word in node.args):
            yield node.lineno, [str(w.value) if isinstance(w, ast.Constant) else "acme" for w in node.args]


def texts(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the texts of a file that are neither documentation nor the example of a command, each with its line."""
    code = ast.parse(path.read_text(encoding="utf-8"))
    left_out: set[int] = set()
    for node in ast.walk(code):
        if isinstance(node, ast.Expr) or (isinstance(node, ast.keyword) and node.arg == "example"):
            left_out.add(id(node.value))
        elif isinstance(node, ast.JoinedStr):
            left_out |= {id(part) for part in node.values}
    for node in ast.walk(code):
        if id(node) in left_out:
            continue
        if isinstance(node, ast.JoinedStr):
            yield (
                node.lineno,
                "".join(str(part.value) if isinstance(part, ast.Constant) else "x" for part in node.values),
            )
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.lineno, node.value


FILES = sorted(PACKAGE.rglob("*.py"))
RUNS = [pytest.param(words, id=f"{path.relative_to(PACKAGE)}:{line}") for path in FILES for line, words in calls(path)]
NOUNS = {path.split()[0] for path in LEAVES}
# What names a command and is none to be typed: the head of a generated file, and the root's help.
NAMED = ("Generated from the command tree by `posduif", "Start with: posduif", "-- posduif server init, for")


@pytest.mark.parametrize("words", RUNS)
def test_each_hint_of_the_package_is_a_command(words: list[str]) -> None:
    error = complaint(tuple(words))
    assert error is None or "acme" in error, error  # which we filled in


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_text_holds_a_command(path: Path) -> None:
    """A command in a text would be shown without the server, the data folder and the program's path."""
    for line, text in texts(path):
        noun = re.search(r"posduif (\w+) [a-z-]", text)
        if noun and noun[1] in NOUNS and not any(known in text for known in NAMED):
            pytest.fail(f"{path.name}:{line}: {text}")


def test_a_command_is_spelled_once_and_safely() -> None:
    out = Output("table", program="/x/posduif", options={"server": "eu1", "config": "/a b.yaml"})
    spell = out.spell
    assert spell(Run("user", "show", "acme", "'; rm -rf ~ '")).startswith("/x/posduif user show acme ''\"'\"'; rm -rf")
    assert shlex.split(spell(Run("user", "show", "acme", "it's\n")))[-5:-4] == ["it's\n"]
    assert spell(Run("tenant", "show", "a", "--server", "local")) == (
        "/x/posduif tenant show a --server local --config '/a b.yaml'"
    )
    assert (
        spell(Run("config", "init", "--config", "x", lead="or")) == "or: /x/posduif config init --config x --server eu1"
    )
    assert (
        spell("restore its database, or posduif tenant drop acme")
        == "restore its database, or posduif tenant drop acme"
    )
    assert spell(Run("quickstart")) == "/x/posduif quickstart --config '/a b.yaml'"
    error = PosduifError("no", hint=Run("tenant", "list", "--dsn", "host=h password=hunter2"))
    assert "hunter2" not in spell(error.hints[0])


def pasted(line: str) -> "subprocess.CompletedProcess[str]":
    """Run a hint as it was shown, without anything in the environment that says which server is meant."""
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
    by, _ = run("token", "create", name, code=2)
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
    [finding] = [finding for finding in findings if finding["check"] == "database.timezone"]
    lines = posduif("tenant", "verify", name, *options, "-o", "tsv", "--fields", "check,fix", code=1).out.splitlines()
    assert f"database.timezone\t{finding['fix']}" in lines
    done = pasted(finding["fix"])
    assert done.returncode == 0, done.stderr
    posduif("tenant", "verify", name, *options)
    fixes = [finding["fix"] for finding in posduif("health", name, *options, "-o", "json", code=None).json["findings"]]
    assert all(fix is None or fix.startswith("posduif ") is ("--data-dir" in fix) for fix in fixes)
