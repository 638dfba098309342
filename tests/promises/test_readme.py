"""The README's sessions, typed: each command of a console block, and what it prints, with holes for what differs."""

import os
import re
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

pytestmark = pytest.mark.one_server
README = (REPO / "README.md").read_text(encoding="utf-8")
HOLES = (
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
        text = re.sub(pattern, hole, text)
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
