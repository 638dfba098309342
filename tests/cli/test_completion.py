"""Completion of bash, zsh and fish: fresh, installed in the right place, and right in a real shell."""

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from posduif_cli.cli.completion import Shell, generate
from support.runner import Posduif
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


def complete_in_bash(*words: str) -> set[str]:
    script = (
        f'source "{REPO / "completions" / "posduif.bash"}"; COMP_WORDS=(posduif "$@"); COMP_CWORD=$#; '
        '_posduif; printf "%s\\n" "${COMPREPLY[@]}"'
    )
    done = subprocess.run(["bash", "-c", script, "bash", *words], capture_output=True, text=True, timeout=30)
    assert done.stderr == ""
    return set(done.stdout.split())


def test_bash_completes_commands_options_and_values() -> None:
    assert {"tenant", "token"} <= complete_in_bash("t")
    assert "create" in complete_in_bash("tenant", "")
    assert complete_in_bash("tenant", "create", "--web") == {"--web-user"}
    assert "--server" in complete_in_bash("tenant", "create", "acme", "-")
    assert complete_in_bash("-o", "j") == {"json", "jsonl"}
    assert "create" in complete_in_bash("--server", "tenant", "token", "")
    assert complete_in_bash("message", "mark", "acme", "x", "r") == {"read"}


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


def test_a_file_of_someone_else_is_left_alone(offline: Posduif) -> None:
    path = Path(offline.json("completion", "install", "bash")["path"])
    path.write_text("# mine\n", encoding="utf-8")
    for verb in ("install", "uninstall"):
        assert offline("completion", verb, "bash", "-o", "json", code=5).error["code"] == "file_exists"
    assert path.read_text(encoding="utf-8") == "# mine\n"


def test_an_unknown_shell_is_a_usage_error(offline: Posduif, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHELL", "/bin/tcsh")
    assert "tcsh" in offline("completion", "show", code=2).err
