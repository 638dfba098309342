"""The entry: answers `version` without building the command tree, else hands argv to it."""

import gc
import os
import sys
from contextlib import suppress
from typing import NoReturn


def entry() -> NoReturn:
    """Be the process: run `main`, and end without taking apart first what ends with the process anyway.

    Together with a garbage collector that waits for more than a start leaves, this takes a fifth off a short command.
    """
    gc.set_threshold(50_000)
    code: object = 70
    try:
        main()
    except SystemExit as end:
        code = end.code
    for stream in (sys.stdout, sys.stderr):
        with suppress(AttributeError, OSError, ValueError):  # closed, or its reader is gone
            stream.flush()
    os._exit(code if isinstance(code, int) else 0)


def main() -> None:
    """Run posduif on `sys.argv` and exit with its code."""
    try:
        code = run(sys.argv[1:])
    except KeyboardInterrupt:  # before the command tree stood, which answers it otherwise
        code = 130
    sys.exit(code)


def run(argv: list[str]) -> int:
    """Run one command and return its exit code."""
    if argv in (["version"], ["--version"], ["-V"]):
        from posduif_cli import __version__

        with suppress(OSError, AttributeError):  # a full disk, a closed pipe: the command itself knows what to do
            sys.stdout.write(f"posduif {__version__}\n")
            sys.stdout.flush()
            return 0
        argv = ["version"]
    if argv[:1] == ["__complete"]:
        from posduif_cli.cli import candidates

        return candidates.run(argv[1:])
    from posduif_cli.cli import tree

    return tree.run(argv)
