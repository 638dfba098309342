"""`posduif quickstart`: from nothing, twice, and away again."""

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from posduif_cli.db import embedded
from support.runner import Posduif
from support.servers import scratch


@pytest.fixture
def home(clean_environ: pytest.MonkeyPatch) -> Iterator[Path]:
    folder = scratch()
    clean_environ.setenv("POSDUIF_DATA_DIR", str(folder / "posduif"))
    try:
        yield folder / "posduif"
    finally:
        embedded.stop(folder / "posduif")
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def run(home: Path, capfd: pytest.CaptureFixture[str]) -> Posduif:
    return Posduif(capfd, {})


def test_from_nothing_twice_and_away(run: Posduif, home: Path) -> None:
    first = run("quickstart")
    for word in ("tenant demo created", "/api/enrollment/", "enrolled", "waits for the phone", "checks are fine"):
        assert word in first.out
    second = run("quickstart")
    assert "tenant demo is there already" in second.out
    assert "the phone is enrolled already" in second.out
    assert [row["tenant"] for row in run.json("tenant", "list")] == ["demo"]
    assert [row["username"] for row in run.json("device", "list", "demo")] == ["Joe the Mobile User"]
    assert len(run.json("message", "pending", "demo", "--device", "demo-phone")) == 2

    assert "tenant demo" in run("quickstart", "--remove").out
    assert not home.exists()
    assert run("tenant", "list", "-o", "json", code=3).error["code"] == "no_server"
    assert run("quickstart", "--remove").out == ""


def test_its_commands_run_when_pasted(run: Posduif, monkeypatch: pytest.MonkeyPatch) -> None:
    program = Path(sys.executable).parent / "posduif"
    monkeypatch.setattr(sys, "argv", [str(program), "quickstart"])
    commands = [step["command"] for step in run.json("quickstart")["steps"]]
    assert [command.split()[0] for command in commands] == [str(program)] * 6
    again = [command for command in commands if "enroll complete" not in command]
    for command in [*again, f"{program} server stop"]:
        done = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=60)
        expected = 5 if "tenant create" in command else 0
        assert done.returncode == expected, (command, done)


def test_remove_keeps_what_it_did_not_make(run: Posduif, home: Path) -> None:
    run("server", "start")
    run("tenant", "create", "mine")
    run("quickstart")
    assert run.json("quickstart", "--remove")["removed"] == ["tenant demo"]
    assert [row["tenant"] for row in run.json("tenant", "list")] == ["mine"]


def test_a_tenant_called_demo_of_someone_else_stays(run: Posduif) -> None:
    run("server", "start")
    run("tenant", "create", "demo", "--web-user", "desk")
    run("quickstart")
    run("quickstart", "--remove")
    assert [row["tenant"] for row in run.json("tenant", "list")] == ["demo"]


def test_with_another_server_configured_it_uses_the_embedded_one(run: Posduif, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POSDUIF_DSN", "host=127.0.0.1 port=1")
    out = run("quickstart").out
    assert "--server embedded" in out
    monkeypatch.delenv("POSDUIF_DSN")
    assert [row["tenant"] for row in run.json("tenant", "list", "--server", "embedded")] == ["demo"]
