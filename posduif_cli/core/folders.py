"""The folders that migrations come from: which versions there are, without reading a file."""

import hashlib
import re
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from posduif_cli.db import queries
from posduif_cli.errors import ConfigurationError, InvalidName

if TYPE_CHECKING:
    from posduif_cli.core.scripts import File

FILE_NAME = re.compile(r"(\d+)_(\w+)\.sql", re.ASCII)
BAD_NAME = "the name is not of the form NNNN_name.sql"
TEMPLATE = "-- migrate:up\n\n\n-- migrate:down\n"
RESERVED = 1000  # versions below are the bundled folder's


@dataclass(frozen=True)
class Folders:
    """The folders that migrations come from, and how patient to be with locks; the bundled folder is first."""

    further: tuple[Path, ...] = ()
    lock_timeout: timedelta = timedelta(seconds=2)
    statement_timeout: timedelta = timedelta(minutes=5)

    @cached_property
    def listing(self) -> tuple[tuple[Path, ...], ...]:
        """Every `.sql` file, folder by folder; raises ConfigurationError for a folder that is not there."""
        folders = (queries.bundled("migrations"), *self.further)
        for folder in folders:
            if not folder.is_dir():
                raise ConfigurationError(
                    f"migrations.paths: {folder} is not a folder", hint="posduif config show --origin"
                )
        return tuple(tuple(sorted(folder.glob("*.sql"))) for folder in folders)

    @cached_property
    def paths(self) -> Mapping[str, Path]:
        """Every migration file by its version, in the order of versions; only the folders are read.

        Raises ConfigurationError for a folder that is not there, a file name without a version, or a version
        that two files bear.
        """
        found: dict[str, Path] = {}
        for path in (path for folder in self.listing for path in folder):
            match = FILE_NAME.fullmatch(path.name)
            if match is None:
                raise ConfigurationError(f"{path}: {BAD_NAME}")
            if match[1] in found:
                raise ConfigurationError(f"{path}: version {match[1]} is also {found[match[1]]}")
            found[match[1]] = path
        return dict(sorted(found.items()))

    @cached_property
    def files(self) -> "tuple[File, ...]":
        """Every migration, read and checked; raises ConfigurationError as `scripts.read`."""
        from posduif_cli.core.scripts import read

        return tuple(read(version, path) for version, path in self.paths.items())

    @cached_property
    def latest(self) -> str | None:
        """The highest version, or None without migrations."""
        return max(self.paths, default=None)

    @cached_property
    def _prefixes(self) -> dict[str, int]:
        versions = list(self.paths)
        return {digest(versions[:count]): count for count in range(len(versions) + 1)}

    def pending(self, schema: str | None, applied: str | None) -> int:
        """Count the migrations that a record says are missing; what the record leaves open counts as missing.

        *schema* is the highest applied version, *applied* the digest of the applied set.
        """
        count = self._prefixes.get(applied or digest(()))
        if count is not None:
            return len(self.paths) - count
        later = sum(version > (schema or "") for version in self.paths)
        return later or int(schema is not None and schema in self.paths)


def new(folders: Folders, *, name: str, folder: Path | None) -> Path:
    """Make the next migration file in *folder*, or in the first configured one, and return its path.

    The version is the next number where the folder counts, else the time in UTC. Raises InvalidName,
    ConfigurationError without a folder or where the file cannot be made.
    """
    if not re.fullmatch(r"[a-z0-9_]{1,100}", name):
        raise InvalidName(f'"{name}" cannot be the name of a migration', why="it takes a-z, 0-9 and _")
    target = folder or next(iter(folders.further), None)
    if target is None:
        raise ConfigurationError(
            "there is no folder for migrations of your own",
            why="the bundled folder belongs to posduif",
            hint=["add --dir DIR", "set migrations.paths in the configuration"],
        )
    versions = [match[1] for path in target.glob("*.sql") if (match := FILE_NAME.fullmatch(path.name))]
    newest = max(versions, default=None)
    counts = newest is not None and len(newest) < 14
    moment = datetime.now(UTC)
    while f"{moment:%Y%m%d%H%M%S}" in versions:  # two files within one second
        moment += timedelta(seconds=1)
    version = f"{moment:%Y%m%d%H%M%S}"
    if newest is not None and counts:
        following = f"{int(newest) + 1:04}"
        # Versions are compared as text, so behind 9999 comes 99990001.
        version = following if following > newest else f"{newest}0001"
    path = target / f"{version}_{name}.sql"
    try:
        with open(path, "x", encoding="utf-8") as file:
            file.write(TEMPLATE)
    except OSError as error:
        hint = f"mkdir -p {shlex.quote(str(target))}" if isinstance(error, FileNotFoundError) else ()
        raise ConfigurationError(f"{path} cannot be made", why=error.strerror, hint=hint) from None
    return path


def digest(versions: Iterable[str]) -> str:
    """Condense a set of versions into 16 hexadecimal digits, so that a hole in it shows."""
    return hashlib.sha256("\n".join(sorted(versions)).encode()).hexdigest()[:16]
