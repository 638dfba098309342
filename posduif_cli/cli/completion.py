"""`posduif completion`: completion of commands by the shell."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from posduif_cli.cli.context import App, Noun, app_of, global_options, summary
from posduif_cli.config import load as config
from posduif_cli.errors import ConfigurationError, FileExists, Run, UsageError
from posduif_cli.render.shells import Node, Word

app = Noun(help="Completion of commands by the shell.")


class Shell(StrEnum):
    """The shells there are scripts for."""

    BASH = "bash"
    ZSH = "zsh"
    FISH = "fish"


Which = Annotated[
    Shell | None,
    typer.Argument(metavar="[SHELL]", help="bash, zsh or fish; by default the one of SHELL.", show_default=False),
]
# Where the package that loads users' completions has its own script, on Linux and macOS.
BASH_COMPLETION = (
    "/usr/share/bash-completion/bash_completion",
    "/etc/bash_completion",
    "/usr/local/share/bash-completion/bash_completion",
    "/opt/homebrew/share/bash-completion/bash_completion",
)
MARK = "Generated from the command tree by `posduif completion"


def nodes() -> list[Node]:
    """Describe the whole command tree."""
    from posduif_cli.cli import tree

    root = tree.root()
    found = [_node((), root, tuple(tree.NOUNS.items()))]
    for noun, help in tree.NOUNS.items():
        command = tree.load(noun)
        verbs: dict[str, Any] = getattr(command, "commands", {})
        found.append(_node((noun,), command, tuple((verb, summary(verbs[verb])) for verb in verbs), help))
        found += [_node((noun, verb), verbs[verb], ()) for verb in verbs]
    return found


def _node(path: tuple[str, ...], command: Any, commands: tuple[tuple[str, str], ...], help: str = "") -> Node:
    everywhere = {word.names for word in common()}
    options = tuple(
        word for p in command.params if p.param_type_name == "option" and (word := _word(p)).names not in everywhere
    )
    arguments = [choice for p in command.params if p.param_type_name == "argument" for choice in _choices(p)]
    return Node(path, help or summary(command), commands, options, tuple(arguments))


def common() -> list[Word]:
    """Describe the options that every command takes."""
    return [Word(("-h", "--help"), "Show this message and exit", False), *map(_word, global_options())]


CHOICES = {"output": ("table", "tsv", "json", "jsonl"), "color": ("auto", "always", "never")}


def _choices(parameter: Any) -> tuple[str, ...]:
    found: Any = CHOICES.get(parameter.name) or getattr(parameter.type, "choices", ())
    return tuple(str(getattr(choice, "value", choice)) for choice in found)


def _word(parameter: Any) -> Word:
    return Word(
        names=tuple(sorted(parameter.opts, key=len)),
        help=(parameter.help or "").rstrip("."),
        takes_value=not parameter.is_flag,
        choices=_choices(parameter),
        is_path=parameter.metavar in ("FILE", "DIR"),
    )


def generate(shell: Shell) -> str:
    """Return the script of a shell."""
    from posduif_cli.render import shells

    return shells.script(shell.value, nodes(), common())


def _shell(app: App, given: Shell | None) -> Shell:
    if given is not None:
        return given
    name = app.config.terminal.shell
    if name not in list(Shell):
        raise UsageError(
            f'there is no completion for the shell "{name}"',
            why="SHELL names it",
            hint=Run("completion", "show", "bash"),
        )
    return Shell(name)


def place(shell: Shell) -> Path:
    """Return where a shell looks for a user's completions."""
    return {
        Shell.BASH: config.user_data_home() / "bash-completion/completions/posduif",
        Shell.ZSH: config.user_data_home() / "zsh/site-functions/_posduif",
        Shell.FISH: config.user_config_home() / "fish/completions/posduif.fish",
    }[shell]


@app.verb("show", example="posduif completion show bash")
def show(ctx: typer.Context, shell: Which = None) -> None:
    """Print a shell's completion script."""
    app = app_of(ctx)
    app.out.text(generate(_shell(app, shell)))


@app.verb("install", example="posduif completion install bash")
def install(ctx: typer.Context, shell: Which = None) -> None:
    """Write the completion script where the shell looks for it; no start-up file is edited."""
    app = app_of(ctx)
    chosen = _shell(app, shell)
    path, text = place(chosen), generate(chosen)
    before = _ours(path)
    if before != text:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        except OSError as error:
            raise ConfigurationError(f"{path} cannot be written", why=error.strerror) from None
    app.out.show({"shell": chosen.value, "path": str(path), "changed": before != text})
    app.out.say("open a new shell to use it")
    if chosen is Shell.ZSH:
        app.out.say(f"zsh looks there if ~/.zshrc has, before compinit: fpath=({path.parent} $fpath)")
    if chosen is Shell.BASH and not any(Path(place).exists() for place in BASH_COMPLETION):
        app.out.say(f"the package bash-completion is not installed; without it, add to ~/.bashrc: source {path}")


@app.verb("uninstall", example="posduif completion uninstall bash")
def uninstall(ctx: typer.Context, shell: Which = None) -> None:
    """Remove the completion script that `completion install` wrote."""
    app = app_of(ctx)
    chosen = _shell(app, shell)
    path = place(chosen)
    changed = _ours(path) is not None
    if changed:
        try:
            path.unlink()
        except OSError as error:
            raise ConfigurationError(f"{path} cannot be removed", why=error.strerror) from None
    app.out.show({"shell": chosen.value, "path": str(path), "changed": changed})


def _ours(path: Path) -> str | None:
    """Return the text of a script that we wrote, None if there is none; raises FileExists for another's."""
    if not path.exists():
        return None
    text = path.read_text(encoding="utf-8", errors="replace")
    if MARK not in text:
        raise FileExists(f"{path} exists and was not made by posduif", why="it was left as it is")
    return text
