"""Files that hold secrets: only their owner may read them, and they are on the disk before anything relies on it.

The folder may be one that everyone writes to, /tmp first of all: what others put in the way there, a link or a pipe,
is refused. Every step of a path is taken by its own system call, so that nothing is swapped between look and use.
"""

import errno
import os
import stat
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from posduif_cli.errors import ConfigurationError, FileExists

LINKS = 40  # as many as Linux follows
FOLDER = os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
PASSING = FOLDER | getattr(os, "O_PATH", os.O_RDONLY)  # what can be passed through need not be readable


@dataclass(frozen=True)
class _Place:
    """Where a path leads: *name* in the open folder *folder*; *mode* is that of what is there, None for nothing."""

    folder: int
    name: str
    mode: int | None

    @property
    def device(self) -> bool:
        """Whether it is a terminal, /dev/null or the like: it cannot be replaced, and keeps nothing."""
        return self.mode is not None and stat.S_ISCHR(self.mode)


def check(path: Path, *, new: bool = False) -> None:
    """Raise ConfigurationError or FileExists where `write_private` would; nothing is changed."""
    with _place(path) as place:
        if new and place.mode is not None and not place.device:
            raise _taken(path)


def _taken(path: Path) -> FileExists:
    return FileExists(f"{path} exists", why="it was left as it is", hint="name another file, or add --force")


def read(path: Path) -> str | None:
    """Return the text of a file, None where there is none; raises ConfigurationError as `write_private`."""
    with _place(path) as place:
        if place.mode is None or place.device:
            return None
        descriptor = os.open(place.name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=place.folder)
        with open(descriptor, encoding="utf-8", errors="surrogateescape") as file:
            return file.read()


def add_passwords(path: Path, lines: Sequence[str]) -> None:
    """Add lines to a passfile, in place of those for the same host, port, database and user.

    Raises ConfigurationError as `write_private`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    present = (read(path) or "").splitlines()
    replaced = tuple(line.rpartition(":")[0] + ":" for line in lines)
    kept = [line for line in present if not line.startswith(replaced)]
    # The first line that fits is the one that counts.
    write_private(path, "".join(f"{line}\n" for line in [*lines, *kept]).encode(errors="surrogateescape"))


def write_public(path: Path, content: bytes) -> None:
    """Replace *path* by *content* as `write_private`, for everyone to read: mode 0644."""
    write_private(path, content, mode=0o644)


def write_private(path: Path, content: bytes, *, new: bool = False, mode: int = 0o600) -> None:
    """Replace *path* by *content*, whole or not at all: mode 0600, fsynced, and so is its folder.

    With *new* a file that is there is left as it is, and FileExists raised. Raises ConfigurationError when that cannot
    be done, or others could get hold of it: for a pipe or socket, a link that is neither ours nor root's, and a folder
    in which everyone may replace files.
    """
    with _place(path) as place:
        if place.device:
            flags = os.O_WRONLY | os.O_NOFOLLOW | os.O_NOCTTY | os.O_CLOEXEC
            with open(os.open(place.name, flags, dir_fd=place.folder), "wb") as file:
                file.write(content)
            return
        # One name for all tries, so that a kill leaves at most one such file behind, which the next try removes.
        temporary = f".{place.name}.tmp"
        with suppress(FileNotFoundError):
            os.unlink(temporary, dir_fd=place.folder)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(temporary, flags, 0o600, dir_fd=place.folder)
        try:
            with open(descriptor, "wb") as file:
                file.write(content)
                file.flush()
                os.fchmod(descriptor, mode)
                os.fsync(descriptor)
            if new:
                os.link(temporary, place.name, src_dir_fd=place.folder, dst_dir_fd=place.folder)
                os.unlink(temporary, dir_fd=place.folder)
            else:
                os.replace(temporary, place.name, src_dir_fd=place.folder, dst_dir_fd=place.folder)
        except FileExistsError:
            os.unlink(temporary, dir_fd=place.folder)
            raise _taken(path) from None
        except BaseException:
            with suppress(FileNotFoundError):
                os.unlink(temporary, dir_fd=place.folder)
            raise
        folder = os.open(".", FOLDER | os.O_RDONLY, dir_fd=place.folder)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


@contextmanager
def _place(path: Path) -> Iterator[_Place]:
    """Go where *path* leads, for a block that raises OSError of its own; raises ConfigurationError."""
    try:
        folder, name = _walk(path)
        try:
            yield _judged(path, folder, name)
        finally:
            os.close(folder)
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be written", why=error.strerror) from None


def _walk(path: Path) -> tuple[int, str]:
    """Return an open folder and a name in it, which is no link; the path's own links are followed where trusted."""
    parts = deque(path.absolute().parts)
    folder, name, links = _root(), parts.popleft(), 0
    try:
        while parts:
            name = parts.popleft()
            try:
                found = os.stat(name, dir_fd=folder, follow_symlinks=False)
            except FileNotFoundError:
                if parts:
                    raise
                break
            if stat.S_ISLNK(found.st_mode):
                links += 1
                if links > LINKS:
                    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
                if not _trusted(found.st_uid):
                    raise ConfigurationError(
                        f"{path} is not written",
                        why=f"the link {name} in it belongs to another user, who chose where it leads",
                        hint="name a file in a folder of your own",
                    )
                target, name = Path(os.readlink(name, dir_fd=folder)), "."
                parts.extendleft(reversed(target.parts))
                if target.is_absolute():
                    os.close(folder)
                    folder, _ = _root(), parts.popleft()
            elif parts:
                inner = os.open(name, PASSING, dir_fd=folder)
                os.close(folder)
                folder = inner
    except BaseException:
        os.close(folder)
        raise
    return folder, name


def _root() -> int:
    return os.open("/", PASSING)


def _judged(path: Path, folder: int, name: str) -> _Place:
    """Look at what a path leads to; raises ConfigurationError for what must not get a secret."""
    where = os.fstat(folder)
    public = bool(where.st_mode & stat.S_IWOTH)
    try:
        found = os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        found = None
    reason = None
    if found is not None and stat.S_ISDIR(found.st_mode):
        reason = "it is a folder"
    elif found is not None and not stat.S_ISREG(found.st_mode) and not stat.S_ISCHR(found.st_mode):
        reason = "it is a pipe, a socket or a disk: the program that reads it would get the secret"
    elif found is not None and stat.S_ISCHR(found.st_mode):
        pass
    elif public and not where.st_mode & stat.S_ISVTX:
        reason = "everyone may replace files in its folder"
    elif found is not None and not _trusted(found.st_uid):
        reason = "it belongs to another user"
    if reason is not None:
        raise ConfigurationError(f"{path} is not written", why=reason, hint="name a file in a folder of your own")
    return _Place(folder, name, found and found.st_mode)


def _trusted(owner: int) -> bool:
    return owner in (0, os.geteuid())
