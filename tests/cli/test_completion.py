"""Completion of bash, zsh and fish: fresh, installed in the right place, and right in a real shell."""

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from posduif_cli.cli import candidates, completion
from posduif_cli.cli.completion import Shell, generate
from support.commands import LEAVES
from support.runner import Posduif, Result
from support.servers import PgServer
from support.sources import REPO

FILES = {Shell.BASH: "posduif.bash", Shell.ZSH: "_posduif", Shell.FISH: "posduif.fish"}


@pytest.fixture
def offline(run_on: Callable[[PgServer], Posduif]) -> Posduif:
    """A runner whose server nobody must ask."""
    return run_on(PgServer("host=127.0.0.1 port=1", 0))


@pytest.mark.parametrize("shell", list(Shell))
def test_the_generated_files_are_fresh(shell: Shell) -> None:
    stored = (REPO / "completions" / FILES[shell]).read_text(encoding="utf-8")
    assert stored == generate(shell), f"posduif completion show {shell.value} > completions/{FILES[shell]}"


def complete_in_bash(*words: str, program: str = "posduif") -> set[str]:
    script = (
        f'source "{REPO / "completions" / "posduif.bash"}"; COMP_WORDS=({program} "$@"); COMP_CWORD=$#; '
        '_posduif; printf "%s\\n" "${COMPREPLY[@]}"'
    )
    done = subprocess.run(["bash", "-c", script, "bash", *words], capture_output=True, text=True, timeout=30)
    assert done.stderr == ""
    return set(done.stdout.splitlines()) - {""}


def test_bash_completes_commands_options_and_values() -> None:
    assert {"tenant", "token"} <= complete_in_bash("t")
    assert "create" in complete_in_bash("tenant", "")
    assert complete_in_bash("tenant", "create", "--web") == {"--web-user"}
    assert "--server" in complete_in_bash("tenant", "create", "acme", "-")
    assert complete_in_bash("-o", "j") == {"json", "jsonl"}
    assert "create" in complete_in_bash("--server", "tenant", "token", "")
    assert complete_in_bash("message", "mark", "acme", "x", "r") == {"read"}


@pytest.fixture
def program(tmp_path: Path) -> str:
    """The path of a program that is this posduif."""
    path = tmp_path / "posduif"
    path.write_text(f'#!/bin/sh\nexec {sys.executable} -m posduif_cli "$@"\n')
    path.chmod(0o755)
    return str(path)


@pytest.mark.one_server
def test_bash_completes_names_and_fields(posduif: Posduif, tenant: str, program: str) -> None:
    posduif("user", "create", tenant, "Anna Berg", "--type", "web")

    def complete(*words: str) -> set[str]:
        return complete_in_bash(*words, program=program)

    assert complete("tenant", "show", tenant[:-2]) == {tenant}
    assert tenant in complete("migrate", "up", "another", "")
    assert complete("token", "create", tenant, "--by", "An") == {r"Anna\ Berg"}
    assert complete("-o", "json", "user", "show", tenant, "") == {r"Anna\ Berg", "desk"}
    assert complete("--dsn", "host=/nowhere", "user", "show", tenant, "") == set(), "of that server"
    assert complete("token", "list", tenant, "--fields", "la") == {"label"}
    assert complete("token", "list", tenant, "--fields", "id,exp") == {"id,expires_at"}
    assert complete("user", "create", tenant, "") == set(), "a new name"
    assert complete("tenant", "create", tenant[:-2]) == set(), "a new name"
    for kept in (Path(os.environ["HOME"]) / ".cache" / "posduif").iterdir():
        assert (kept.suffix, kept.stat().st_mode & 0o777) == (".json", 0o600)


@pytest.mark.one_server
def test_an_answer_is_kept_for_seconds_only(posduif: Posduif, tenant: str) -> None:
    def asked() -> set[str]:
        return set(posduif("__complete", "user", "show", tenant).out.splitlines())

    assert asked() == {"desk"}
    posduif("user", "create", tenant, "other", "--type", "web")
    assert asked() == {"desk"}, "from the cache"
    for file in (Path(os.environ["HOME"]) / ".cache" / "posduif").glob("*.json"):
        os.utime(file, (0, 0))
    assert asked() == {"desk", "other"}


def test_servers_come_from_the_configuration(
    offline: Posduif, tmp_path: Path, clean_environ: pytest.MonkeyPatch
) -> None:
    clean_environ.delenv("POSDUIF_DSN")
    file = tmp_path / "config.yaml"
    file.write_text("servers:\n  eu1: {dsn: host=127.0.0.1 port=1}\n  eu2: {dsn: host=127.0.0.1 port=1}\n")
    assert offline("__complete", "--config", str(file), "tenant", "list", "--server").out == "eu1\neu2\n"


def test_what_cannot_be_asked_is_silent_and_soon_over(offline: Posduif, silent: str) -> None:
    for words in (
        ("tenant", "show"),
        ("user", "show", "acme"),
        ("nosuch",),
        ("tenant", "show", "--config", "/nowhere"),
    ):
        assert offline("__complete", *words) == Result(0, "", "")
    started = time.monotonic()
    assert offline.process("__complete", "--dsn", silent, "tenant", "show") == Result(0, "", "")
    assert time.monotonic() - started < 20


@pytest.fixture
def silent() -> Iterator[str]:
    """A server that takes a connection and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"host=127.0.0.1 port={listener.getsockname()[1]} user=x"


@pytest.mark.parametrize("path", candidates.SHOWN)
def test_the_fields_of_a_command_are_those_it_shows(path: str) -> None:
    assert path in LEAVES
    assert candidates.candidates([*path.split(), "--fields"])


@pytest.mark.parametrize("shell", [Shell.ZSH, Shell.FISH])
def test_the_scripts_parse(shell: Shell) -> None:
    if shutil.which(shell.value) is None:
        pytest.skip(f"{shell.value} is not installed")
    path = REPO / "completions" / FILES[shell]
    done = subprocess.run([shell.value, "-n", str(path)], capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stderr) == (0, "")


def test_fish_completes() -> None:
    if shutil.which("fish") is None:
        pytest.skip("fish is not installed")
    script = f'source "{REPO / "completions" / "posduif.fish"}"; complete -C"posduif tenant "'
    done = subprocess.run(["fish", "-N", "-c", script], capture_output=True, text=True, timeout=30)
    assert {"create", "list", "drop"} <= {line.partition("\t")[0] for line in done.stdout.splitlines()}


@pytest.mark.parametrize("shell", list(Shell))
def test_install_and_uninstall(offline: Posduif, shell: Shell) -> None:
    first = offline.json("completion", "install", shell.value)
    assert first["changed"] is True
    assert Path(first["path"]).read_text(encoding="utf-8") == generate(shell)
    assert offline.json("completion", "install", shell.value)["changed"] is False
    assert offline.json("completion", "uninstall", shell.value)["changed"] is True
    assert not Path(first["path"]).exists()
    assert offline.json("completion", "uninstall", shell.value)["changed"] is False


def test_what_bash_lacks_is_said(offline: Posduif, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for places, said in (((), True), ((str(tmp_path),), False)):
        monkeypatch.setattr(completion, "BASH_COMPLETION", places)
        err = offline("completion", "install", "bash").err
        assert ("source " in err and "bash-completion is not installed" in err) is said


def test_a_file_of_someone_else_is_left_alone(offline: Posduif) -> None:
    path = Path(offline.json("completion", "install", "bash")["path"])
    path.write_text("# mine\n", encoding="utf-8")
    for verb in ("install", "uninstall"):
        assert offline("completion", verb, "bash", "-o", "json", code=5).error["code"] == "file_exists"
    assert path.read_text(encoding="utf-8") == "# mine\n"


def test_an_unknown_shell_is_a_usage_error(offline: Posduif, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHELL", "/bin/tcsh")
    assert "tcsh" in offline("completion", "show", code=2).err
