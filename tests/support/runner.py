"""Running posduif: in this process, in one of its own, or in a line of bash."""

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from posduif_cli import main
from support.servers import PgServer
from support.sources import REPO


@dataclass(frozen=True)
class Result:
    """What a command answered."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:

        return json.loads(self.out)

    @property
    def error(self) -> Any:

        return json.loads(self.err)["error"]


class Posduif:
    """Runs commands against one server, in this process or in one of its own."""

    def __init__(self, capfd: pytest.CaptureFixture[str], environ: dict[str, str]) -> None:
        self.capfd = capfd
        self.environ = environ

    def __call__(self, *argv: str, code: int | None = 0) -> Result:
        self.capfd.readouterr()
        exit_code = main.run(list(argv))
        captured = self.capfd.readouterr()
        result = Result(exit_code, captured.out, captured.err)
        assert code is None or result.code == code, (argv, result)
        return result

    def json(self, *argv: str, code: int | None = 0) -> Any:
        return self(*argv, "-o", "json", code=code).json

    def process(self, *argv: str, stdin: str | None = None, **environ: str) -> Result:
        done = subprocess.run(
            [sys.executable, "-m", "posduif_cli", *argv],
            env={**os.environ, **environ},
            input=stdin,
            stdin=subprocess.DEVNULL if stdin is None else None,
            capture_output=True,
            text=True,
            timeout=120,
        )
        return Result(done.returncode, done.stdout, done.stderr)

    def popen(self, *argv: str, **environ: str) -> "subprocess.Popen[bytes]":
        return subprocess.Popen(
            [sys.executable, "-m", "posduif_cli", *argv],
            env={**os.environ, **environ},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )


As = Callable[[str], Posduif]


def shell(line: str, **environ: str) -> tuple[int, str, str]:
    """Run a line of bash in which `posduif` is this program."""
    done = subprocess.run(
        ["bash", "-c", line.replace("posduif ", f"{shlex.quote(sys.executable)} -m posduif_cli ")],
        env={**os.environ, **environ},
        capture_output=True,
        text=True,
        timeout=120,
        cwd=REPO,
    )
    return done.returncode, done.stdout, done.stderr


@pytest.fixture
def clean_environ(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    """No configuration, no libpq variables, a home of its own."""
    for name in list(os.environ):
        if name.startswith(("POSDUIF_", "PG", "XDG_")) or name in ("NO_COLOR", "CLICOLOR_FORCE"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("POSDUIF_DATA_DIR", str(tmp_path / "none"))
    return monkeypatch


@pytest.fixture
def run_on(clean_environ: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[[PgServer], Posduif]:
    """Makes a runner of commands against a server that the test chooses."""

    def make(server: PgServer, **parts: Any) -> Posduif:
        clean_environ.setenv("POSDUIF_DSN", server.dsn_for(**parts) if parts else server.dsn)
        return Posduif(capfd, {})

    return make


@pytest.fixture
def posduif(server: PgServer, run_on: Callable[[PgServer], Posduif]) -> Posduif:
    """Runs commands against the server under test."""
    return run_on(server)


@pytest.fixture
def as_(fresh: PgServer, run_on: Any) -> As:
    """Makes the runner of one login's commands; only the one made last may be used."""
    return lambda login: run_on(fresh, user=login)


@pytest.fixture
def cli(clean_environ: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Posduif:
    """A runner that has no server at all."""
    return Posduif(capfd, {})


@pytest.fixture
def ops(server: PgServer, run_on: Callable[..., Posduif], name: str) -> Iterator[Posduif]:
    """Runs commands as NAME_ops, who administers tenants and is no superuser."""
    run_on(server)("server", "init")
    server.sql(f"CREATE ROLE {name}_ops LOGIN CREATEDB PASSWORD 'x'; GRANT posduif_admin TO {name}_ops")
    yield run_on(server, user=f"{name}_ops", password="x")
    server.sql(f"DROP ROLE {name}_ops")
