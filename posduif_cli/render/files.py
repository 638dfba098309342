"""Files that hold secrets: only their owner may read them, and they are on the disk before anything relies on it."""

import os
from collections.abc import Sequence
from pathlib import Path

from posduif_cli.errors import ConfigurationError


def add_passwords(path: Path, lines: Sequence[str]) -> None:
    """Add lines to a passfile, in place of those for the same host, port, database and user.

    Raises ConfigurationError when that cannot be done, or the file is no text.
    """
    try:
        present = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path} cannot be read", why=getattr(error, "strerror", None)) from None
    replaced = tuple(line.rpartition(":")[0] + ":" for line in lines)
    kept = [line for line in present if not line.startswith(replaced)]
    path.parent.mkdir(parents=True, exist_ok=True)
    # The first line that fits is the one that counts.
    write_private(path, "".join(f"{line}\n" for line in [*lines, *kept]).encode())


def write_private(path: Path, content: bytes) -> None:
    """Replace *path* by *content*, whole or not at all: mode 0600, fsynced, and so is its folder.

    Raises ConfigurationError when that cannot be done.
    """
    try:
        if path.exists() and not path.is_file():
            # A device such as /dev/stdout cannot be replaced, and what is written there is not kept anyway.
            path.write_bytes(content)
            return
        target = path.resolve()
        # One name for all tries, so that a kill leaves at most one such file behind, which the next try removes.
        temporary = target.with_name(f".{target.name}.tmp")
        temporary.unlink(missing_ok=True)
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with open(descriptor, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(descriptor)
            os.replace(temporary, target)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        folder = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be written", why=error.strerror) from None
