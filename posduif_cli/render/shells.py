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

    The same tree always makes the same text. For names the script runs `posduif __complete`.
    """
    return {"bash": bash, "zsh": zsh, "fish": fish}[name](nodes, common)


def _names(options: Iterable[Word]) -> list[str]:
    return [name for option in options for name in option.names]


def bash(nodes: Sequence[Node], common: Sequence[Word]) -> str:
    """Write the completion for bash."""
    options = [*common, *(option for node in nodes for option in node.options)]
    valued = sorted(set(_names(option for option in options if option.takes_value)))
    choices = {f'*" {name}"': option.choices for option in common if option.choices for name in option.names}
    choices |= {
        f'" {" ".join((*node.path, name))}"': option.choices
        for node in nodes
        for option in node.options
        if option.choices
        for name in option.names
    }
    known = [f'" {" ".join(node.path)}"' for node in nodes if node.path]
    return "\n".join(
        [
            NOTE.format("bash"),
            "_posduif_ask() {",
            "    local IFS=$'\\n' name",
            "    local posduif=${COMP_WORDS[0]/#\\~/$HOME}",
            '    for name in $("$posduif" __complete "${COMP_WORDS[@]:1:COMP_CWORD-1}" 2>/dev/null); do',
            '        [[ $name == "$cur"* ]] && COMPREPLY+=("$(printf %q "$name")")',
            "    done",
            "}",
            "_posduif() {",
            "    local cur prev path word skip candidates options files",
            "    cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD-1]} COMPREPLY=()",
            "    path= skip= files=",
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
            '    if [ -n "$skip" ]; then',
            '        case "$path $prev" in',
            *(
                f"""        {name}) COMPREPLY=($(compgen -W '{" ".join(values)}' -- "$cur")) ;;"""
                for name, values in sorted(choices.items())
            ),
            '        *" --fields")',
            '            local before=${cur%"${cur##*,}"} cur=${cur##*,}',
            "            _posduif_ask; compopt -o nospace 2>/dev/null",
            '            COMPREPLY=("${COMPREPLY[@]/#/$before}") ;;',
            f'        *) case " $files {" ".join(_paths(common))} " in',
            '           *" $prev "*) compopt -o filenames 2>/dev/null; COMPREPLY=($(compgen -f -- "$cur")) ;;',
            "           *) _posduif_ask ;;",
            "           esac ;;",
            "        esac",
            "        return",
            "    fi",
            f'    [[ $cur == -* ]] && candidates="$options {" ".join(_names(common))}"',
            '    COMPREPLY=($(compgen -W "$candidates" -- "$cur"))',
            "    [[ $cur == -* || -n $COMPREPLY ]] || _posduif_ask",
            "}",
            "complete -F _posduif posduif",
            "",
        ]
    )


def _paths(options: Iterable[Word]) -> list[str]:
    return _names(option for option in options if option.is_path)


def _bash_case(node: Node) -> str:
    pattern = f'" {" ".join(node.path)}"' if node.path else '""'
    words = [name for name, _ in node.commands] or node.arguments
    files = f" files='{' '.join(_paths(node.options))}'" if _paths(node.options) else ""
    return f"    {pattern}) candidates='{' '.join(words)}' options='{' '.join(_names(node.options))}'{files} ;;"


def _zsh_text(text: str) -> str:
    return re.sub(r"([\[\]:'\\`$])", lambda m: "'\\''" if m[1] == "'" else "\\" + m[1], text)


def _zsh_option(option: Word) -> list[str]:
    value = ""
    if option.choices:
        value = f":value:({' '.join(option.choices)})"
    elif option.takes_value:
        value = ":file:_files" if option.is_path else ":value:_posduif_ask"
    exclusive = f"({' '.join(option.names)})" if len(option.names) > 1 else ""
    return [f"'{exclusive}{name}[{_zsh_text(option.help)}]{value}'" for name in option.names]


def zsh(nodes: Sequence[Node], common: Sequence[Word]) -> str:
    """Write the completion for zsh."""
    lines = ["#compdef posduif", NOTE.format("zsh"), "", "typeset -ga _posduif_common=("]
    lines += [f"    {spec}" for option in common for spec in _zsh_option(option)]
    lines += [")", ""]
    # The words of the whole line: within a command's own function zsh shows only those behind it.
    lines += [
        "_posduif_ask() {",
        "    local -a names",
        '    names=("${(@f)$(_call_program names ${(q)_posduif_line[@]} 2>/dev/null)}")',
        "    compadd -a names",
        "}",
        "",
    ]
    for node in nodes:
        lines += [f"{_zsh_function(node.path)}() {{", *(f"    {line}" for line in _zsh_body(node)), "}", ""]
    started = "typeset -ga _posduif_line=($words[1] __complete ${words[2,CURRENT-1]})"
    return "\n".join([*lines, started, '_posduif "$@"', ""])


def _zsh_function(path: Sequence[str]) -> str:
    return "_".join(["_posduif", *(re.sub(r"\W", "_", word) for word in path)])


def _zsh_body(node: Node) -> Iterator[str]:
    specs = [spec for option in node.options for spec in _zsh_option(option)]
    if not node.commands:
        words = f"({' '.join(node.arguments)})" if node.arguments else "_posduif_ask"
        specs.append(f"'*:argument:{words}'")
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
    valued = sorted(set(_names(o for o in (*common, *(o for node in nodes for o in node.options)) if o.takes_value)))
    lines = [
        NOTE.format("fish"),
        "function __posduif_words",
        "    set -l words (commandline -opc)",
        "    set -l skip 0",
        "    for word in $words[2..-1]",
        "        if test $skip = 1",
        "            set skip 0",
        f"        else if contains -- $word {' '.join(valued)}",
        "            set skip 1",
        "        else if not string match -q -- '-*' $word",
        "            echo $word",
        "        end",
        "    end",
        "end",
        "function __posduif_is",
        "    set -l words (__posduif_words)",
        '    test (count $words) -ge (count $argv); and test "$words[1..(count $argv)]" = "$argv"',
        "end",
        "function __posduif_ends",
        '    test "$(__posduif_words)" = "$(string join \\n -- $argv)"',
        "end",
        "function __posduif_ask",
        "    set -l words (commandline -opc)",
        "    $words[1] __complete $words[2..-1] 2>/dev/null",
        "end",
        "complete -c posduif -f",
    ]
    lines += [f"complete -c posduif {_fish_option(option)}" for option in common]
    for node in nodes:
        path = " ".join(node.path)
        if node.commands:
            test = f"__posduif_ends {path}".rstrip()
            lines += [
                f"complete -c posduif -n '{test}' -a {name} -d {_fish_text(text)}" for name, text in node.commands
            ]
            continue
        words = " ".join(node.arguments) or "(__posduif_ask)"
        lines.append(f"complete -c posduif -n '__posduif_is {path}' -a '{words}'")
        lines += [f"complete -c posduif -n '__posduif_is {path}' {_fish_option(option)}" for option in node.options]
    return "\n".join([*lines, ""])


def _fish_option(option: Word) -> str:
    parts = [f"-l {name[2:]}" if name.startswith("--") else f"-s {name[1:]}" for name in option.names]
    if option.choices:
        parts += ["-x", f"-a '{' '.join(option.choices)}'"]
    elif option.takes_value:
        parts.append("-r -F" if option.is_path else "-x -a '(__posduif_ask)'")
    return " ".join([*parts, f"-d {_fish_text(option.help)}"])
