"""The README's sessions, typed: each command of a console block, and what it prints, with holes for what differs."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from posduif_cli.db import embedded
from support.runner import Posduif
from support.servers import PgServer, scratch
from support.sources import REPO
from support.terminal import on_terminal, standing

pytestmark = pytest.mark.one_server
README = (REPO / "README.md").read_text(encoding="utf-8")
# What a terminal shows of a code: these lines, and the colours.
DRAWN = re.compile(r"[\u2580\u2584\u2588]")
HOLES = (
    (r"\x1b\[[0-9;]*m", ""),
    (r"^using the embedded server in .*$", "using the embedded server in FOLDER"),
    (r"\(id [0-9a-f]{8}\)", "(id ID)"),
    (r"\d{4}-\d\d-\d\d \d\d:\d\d UTC( \(\d+ s ago\))?", "TIME"),
    (r"(shown this once: )\S{32}$", r"\1PASSWORD"),
    (r"\b0\.\d\d\b", "0.00"),
    (r"\b[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\b", "UUID"),
    (r"\b\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z", "TIME"),
)


def blocks() -> list[tuple[str, str]]:
    """Return the commands of all console blocks, each with what it is to print."""
    found: list[tuple[str, str]] = []
    for block in re.findall(r"^```console\n(.*?)^```$", README, re.MULTILINE | re.DOTALL):
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            command, _, printed = part.partition("\n")
            found.append((command, printed))
    return found


def masked(text: str) -> str:
    for pattern, hole in HOLES:
        text = re.sub(pattern, hole, text, flags=re.MULTILINE)
    return "".join(line.rstrip() + "\n" for line in text.splitlines())


def test_the_sessions_of_the_readme(tmp_path: Path) -> None:
    """One shell types them all, on an embedded server of its own."""
    folder = scratch()
    binaries = embedded.locate(None).bin_dir
    (tmp_path / "posduif").write_text(f'#!/bin/sh\nexec {sys.executable} -m posduif_cli "$@"\n')
    (tmp_path / "posduif").chmod(0o755)
    environ = {key: value for key, value in os.environ.items() if not key.startswith(("POSDUIF_", "PG", "XDG_"))}
    environ |= {"PATH": f"{tmp_path}:{binaries}:{os.environ['PATH']}", "HOME": str(tmp_path), "TZ": "UTC",
                "POSDUIF_DATA_DIR": str(folder / "data")}  # fmt: skip
    mark = "--- end of command ---"
    typed = "".join(f"{command}\necho '{mark}'; echo '{mark}' >&2\n" for command, _ in blocks())
    try:
        subprocess.run(["posduif", "server", "start", "-q"], env=environ, check=True, capture_output=True)
        done = subprocess.run(
            ["bash", "-c", typed], env=environ, cwd=tmp_path, capture_output=True, text=True, timeout=300
        )
    finally:
        embedded.remove(folder / "data")
        shutil.rmtree(folder, ignore_errors=True)
    assert len(blocks()) > 15
    outs, errs = done.stdout.split(f"{mark}\n"), done.stderr.split(f"{mark}\n")
    for (command, printed), out, err in zip(blocks(), outs, errs, strict=False):
        shown = re.sub(r"^using the embedded server in .*\n", "", err, flags=re.MULTILINE)
        assert masked(shown + out) == masked(printed), (command, out, err)


@pytest.mark.parametrize("heading", ["A first session", "Migrations for a fleet", "The health of a fleet"])
def test_what_the_readme_shows_of_a_terminal(heading: str, tmp_path: Path) -> None:
    folder = scratch()
    (tmp_path / "1000_more.sql").write_text("-- migrate:up\nALTER TABLE users ADD COLUMN more int;\n")
    config = tmp_path / "config.yaml"
    environ = {"POSDUIF_DATA_DIR": str(folder / "data"), "HOME": str(tmp_path), "TZ": "UTC", "LC_ALL": "C.UTF-8",
               "TERM": "xterm-256color"}  # fmt: skip
    first = heading == "A first session"

    def typed(command: str) -> str:
        shown = on_terminal(*shlex.split(command)[1:], columns=110, rows=35, environ=environ).out
        return "\n".join(standing(shown))

    try:
        if first:
            typed("posduif quickstart")
        else:
            typed("posduif server start")
            for name in ("acme", "bolt", "cora"):
                typed(f"posduif tenant create {name}")
            config.write_text(f"migrations: {{paths: ['{tmp_path}']}}\n")
            environ["POSDUIF_CONFIG"] = str(config)
        section = README[README.index(f"## {heading}\n") :]
        sessions = re.findall(r"^```\n(\$ .*?)^```$", section.partition("\n## ")[0], re.MULTILINE | re.DOTALL)
        pairs = [part.partition("\n") for each in sessions for part in re.split(r"^\$ ", each, flags=re.MULTILINE)[1:]]
        assert len(pairs) == (5 if first else 1)
        for command, _, printed in pairs:
            shown = typed(command.removesuffix(" < /dev/null"))
            assert drawn(shown) == drawn(printed), command
    finally:
        embedded.remove(folder / "data")
        shutil.rmtree(folder, ignore_errors=True)


def drawn(text: str) -> list[str]:
    """Return the lines of *text* with its holes, without the drawing of a code and empty lines."""
    return [line for line in masked(text).splitlines() if line and not DRAWN.search(line)]


def block(language: str, after: str) -> str:
    """Return the first block of a language behind a heading."""
    found = re.search(rf"^### {after}\n.*?^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    assert found, after
    return found[1]


def test_the_logins_of_the_readme(own_server: PgServer, run_on: Callable[..., Posduif], tmp_path: Path) -> None:
    """The SQL as it is printed, and the file with the server's address in it: each login does its work and no other."""
    posduif = run_on(own_server)
    posduif("server", "init")
    posduif("tenant", "create", "nordbank", "--web-user", "desk", "--url", "https://nordbank.example.com")
    for statement in filter(str.strip, block("sql", "Logins for people and jobs").split(";")):
        own_server.sql(statement)
    file = tmp_path / "config.yaml"
    yaml = block("yaml", "Logins for people and jobs")
    assert "host=db1.internal user=sam sslmode=verify-full" in yaml
    logins = {
        "sam": (["token", "create", "nordbank"], ["token", "purge", "nordbank"]),
        "nightly": (["token", "purge", "--all", "--older-than", "7d", "-q"], ["token", "create", "nordbank"]),
        "olga": (["tenant", "create", "suedbank"], None),
    }
    for login, (may, may_not) in logins.items():
        file.write_text(yaml.replace("host=db1.internal user=sam sslmode=verify-full", own_server.dsn_for(user=login)))
        assert posduif.process(*may, "--config", str(file), POSDUIF_DSN="").code == 0, login
        if may_not:
            assert posduif.process(*may_not, "--config", str(file), POSDUIF_DSN="").code == 6, login


def test_the_jobs_of_the_readme_are_commands_that_work(
    own_server: PgServer, run_on: Callable[..., Posduif], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lines of crontabs and of systemd's units, one after the other."""
    section = README[README.index("### Back up, prove, restore") : README.index("### The bad day")]
    lines = re.findall(r"^(?:ExecStart=\S*/|[\d*/]+(?: [\d*/]+){4} +)(posduif .*)$", section, re.MULTILINE)
    commands = [command.strip() for line in lines for command in line.split(";")]
    assert len(commands) == 6
    own_server.sql("CREATE ROLE ops LOGIN CREATEDB CREATEROLE")
    (tmp_path / "config.yaml").write_text(f"backup: {{dir: {tmp_path}/store}}\n")
    monkeypatch.setenv("POSDUIF_CONFIG", str(tmp_path / "config.yaml"))
    posduif = run_on(own_server, user="ops")
    posduif("tenant", "create", "acme")
    for command in commands:
        posduif(*shlex.split(command)[1:])
    assert {backup["verified"] for backup in posduif.json("backup", "list")} == {"proved"}
