"""The completion scripts of bash, zsh and fish, generated from the command tree."""

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

NOTE = "# Generated from the command tree by `posduif completion show {0}`; a test keeps it fresh."


@dataclass(frozen=True)
class Word:
    """One option: its spellings, its help, what follows it, and the values that may."""

    names: tuple[str, ...]
    help: str
    takes_value: bool
    choices: tuple[str, ...] = ()
    is_path: bool = False


@dataclass(frozen=True)
class Node:
    """One command or group, by the words that lead to it."""

    path: tuple[str, ...]
    help: str
    commands: tuple[tuple[str, str], ...]
    options: tuple[Word, ...]
    arguments: tuple[str, ...] = ()


def script(name: str, nodes: Sequence[Node], common: Sequence[Word]) -> str:
    """Write the script for one shell; *common* are the options that every command takes.

    The same tree always makes the same text, and the script itself runs no program.
    """
    return {"bash": bash, "zsh": zsh, "fish": fish}[name](nodes, common)


def _names(options: Iterable[Word]) -> list[str]:
    return [name for option in options for name in option.names]


def bash(nodes: Sequence[Node], common: Sequence[Word]) -> str:
    """Write the completion for bash."""
    options = [*common, *(option for node in nodes for option in node.options)]
    valued = sorted(set(_names(option for option in options if option.takes_value)))
    paths = sorted(set(_names(option for option in options if option.is_path)))
    choices = {name: option.choices for option in options if option.choices for name in option.names}
    silent = [name for name in valued if name not in (*choices, *paths)]
    known = [f'" {" ".join(node.path)}"' for node in nodes if node.path]
    return "\n".join(
        [
            NOTE.format("bash"),
            "_posduif() {",
            "    local cur prev path word skip candidates options",
            "    cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD-1]} COMPREPLY=()",
            "    case $prev in",
            *(
                f"""    {name}) COMPREPLY=($(compgen -W '{" ".join(values)}' -- "$cur")); return ;;"""
                for name, values in sorted(choices.items())
            ),
            f'    {"|".join(paths)}) compopt -o filenames 2>/dev/null; COMPREPLY=($(compgen -f -- "$cur")); return ;;',
            f"    {'|'.join(silent)}) return ;;",
            "    esac",
            "    path= skip=",
            '    for word in "${COMP_WORDS[@]:1:COMP_CWORD-1}"; do',
            '        if [ -n "$skip" ]; then skip=; continue; fi',
            "        case $word in",
            f"        {'|'.join(valued)}) skip=1 ;;",
            "        -*) ;;",
            '        *) case "$path $word" in',
            f'           {"|".join(known)}) path="$path $word" ;;',
            "           esac ;;",
            "        esac",
            "    done",
            "    case $path in",
            *(_bash_case(node) for node in nodes),
            "    esac",
            f'    [[ $cur == -* ]] && candidates="$options {" ".join(_names(common))}"',
            '    COMPREPLY=($(compgen -W "$candidates" -- "$cur"))',
            "}",
            "complete -F _posduif posduif",
            "",
        ]
    )


def _bash_case(node: Node) -> str:
    pattern = f'" {" ".join(node.path)}"' if node.path else '""'
    words = [name for name, _ in node.commands] or node.arguments
    return f"    {pattern}) candidates='{' '.join(words)}' options='{' '.join(_names(node.options))}' ;;"


def _zsh_text(text: str) -> str:
    return re.sub(r"([\[\]:'\\`$])", lambda m: "'\\''" if m[1] == "'" else "\\" + m[1], text)


def _zsh_option(option: Word) -> list[str]:
    value = ""
    if option.choices:
        value = f":value:({' '.join(option.choices)})"
    elif option.takes_value:
        value = ":file:_files" if option.is_path else ":value: "
    exclusive = f"({' '.join(option.names)})" if len(option.names) > 1 else ""
    return [f"'{exclusive}{name}[{_zsh_text(option.help)}]{value}'" for name in option.names]


def zsh(nodes: Sequence[Node], common: Sequence[Word]) -> str:
    """Write the completion for zsh."""
    lines = ["#compdef posduif", NOTE.format("zsh"), "", "typeset -ga _posduif_common=("]
    lines += [f"    {spec}" for option in common for spec in _zsh_option(option)]
    lines += [")", ""]
    for node in nodes:
        lines += [f"{_zsh_function(node.path)}() {{", *(f"    {line}" for line in _zsh_body(node)), "}", ""]
    return "\n".join([*lines, '_posduif "$@"', ""])


def _zsh_function(path: Sequence[str]) -> str:
    return "_".join(["_posduif", *(re.sub(r"\W", "_", word) for word in path)])


def _zsh_body(node: Node) -> Iterator[str]:
    specs = [spec for option in node.options for spec in _zsh_option(option)]
    if not node.commands:
        if node.arguments:
            specs.append(f"'*:argument:({' '.join(node.arguments)})'")
        yield " ".join(["_arguments", "$_posduif_common", *specs])
        return
    yield "local curcontext=$curcontext state line"
    yield "typeset -A opt_args"
    yield " ".join(["_arguments -C", "$_posduif_common", *specs, "'1: :->command'", "'*:: :->argument'"])
    yield "case $state in"
    yield "command)"
    yield "    local -a commands=("
    yield from (f"        '{name}:{_zsh_text(help)}'" for name, help in node.commands)
    yield "    )"
    yield "    _describe command commands ;;"
    yield "argument)"
    yield "    case $line[1] in"
    yield from (f"    {name}) {_zsh_function((*node.path, name))} ;;" for name, _ in node.commands)
    yield "    esac ;;"
    yield "esac"


def _fish_text(text: str) -> str:
    return json.dumps(text, ensure_ascii=False).replace("$", "\\$")


def fish(nodes: Sequence[Node], common: Sequence[Word]) -> str:
    """Write the completion for fish."""
    lines = [NOTE.format("fish"), "complete -c posduif -f"]
    lines += [f"complete -c posduif {_fish_option(option)}" for option in common]
    for node in nodes:
        seen = [f"__fish_seen_subcommand_from {word}" for word in node.path]
        if node.commands:
            words = " ".join(name for name, _ in node.commands)
            test = "; and ".join([*seen, f"not __fish_seen_subcommand_from {words}"])
            lines += [
                f"complete -c posduif -n '{test}' -a {name} -d {_fish_text(text)}" for name, text in node.commands
            ]
            continue
        test = "; and ".join(seen)
        if node.arguments:
            lines.append(f"complete -c posduif -n '{test}' -a '{' '.join(node.arguments)}'")
        lines += [f"complete -c posduif -n '{test}' {_fish_option(option)}" for option in node.options]
    return "\n".join([*lines, ""])


def _fish_option(option: Word) -> str:
    parts = [f"-l {name[2:]}" if name.startswith("--") else f"-s {name[1:]}" for name in option.names]
    if option.choices:
        parts += ["-x", f"-a '{' '.join(option.choices)}'"]
    elif option.takes_value:
        parts.append("-r -F" if option.is_path else "-x")
    return " ".join([*parts, f"-d {_fish_text(option.help)}"])
