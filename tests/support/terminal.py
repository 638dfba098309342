"""A terminal for a command to write on, and what stands on it."""

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import sys
import tempfile
import termios
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from types import MappingProxyType

from support.runner import Result


def on_terminal(
    *argv: str,
    columns: int = 80,
    rows: int = 24,
    answer: str | None = None,
    apart: bool = False,
    seconds: float = 90,
    watch: Callable[[str, "subprocess.Popen[bytes]"], None] = lambda shown, process: None,
    environ: Mapping[str, str] = MappingProxyType({}),
) -> Result:
    """Run a command on a terminal; return its exit code, what the terminal got, and stderr.

    *answer* is typed; with None stdin is no terminal. With *apart* stderr is no terminal either, else it is empty in
    the result. *watch* is told all that the terminal got, each time it got more.
    """
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    with tempfile.TemporaryFile() as err:
        process = subprocess.Popen(
            [sys.executable, "-m", "posduif_cli", *argv],
            stdin=subprocess.DEVNULL if answer is None else theirs,
            stdout=theirs,
            stderr=err if apart else theirs,
            env={**os.environ, **environ},
            start_new_session=True,
        )
        os.close(theirs)
        if answer:
            os.write(ours, answer.encode())
        seen, deadline = b"", time.monotonic() + seconds
        with suppress(OSError):  # what Linux makes of the end
            while time.monotonic() < deadline:
                if select.select([ours], [], [], 0.1)[0]:
                    part = os.read(ours, 65536)
                    if not part:
                        break
                    seen += part
                    watch(_text(seen), process)
        os.close(ours)
        code = process.wait(30)
        err.seek(0)
        return Result(code, _text(seen).replace("\r\n", "\n"), err.read().decode())


def _text(seen: bytes) -> str:
    return seen.decode(errors="surrogateescape")


def standing(text: str) -> list[str]:
    """What stands on a wide terminal after *text*."""
    lines, column = [""], 0
    for part in re.findall(r"\x1b\[[0-9;?]*[A-Za-z]|\r|\n|[^\x1b\r\n]+", text):
        if part == "\r":
            column = 0
        elif part == "\n":
            lines.append("")
            column = 0
        elif part == "\x1b[K":
            lines[-1] = lines[-1][:column]
        elif not part.startswith("\x1b"):
            lines[-1] = lines[-1][:column] + part + lines[-1][column + len(part) :]
            column += len(part)
    return [line.rstrip() for line in lines]
