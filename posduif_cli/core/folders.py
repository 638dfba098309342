"""The folders that migrations come from: which versions there are, without reading a file."""

import hashlib
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from functools import cached_property
from pathlib import Path

from posduif_cli.db import queries
from posduif_cli.errors import ConfigurationError, Run

FILE_NAME = re.compile(r"(\d+)_(\w+)\.sql", re.ASCII)
BAD_NAME = "the name is not of the form NNNN_name.sql"

_DIGEST = re.compile(r"[0-9a-f]{16}-([0-9]{1,9})-([0-9]*)")
RESERVED = 1000  # versions below are the bundled folder's


@dataclass(frozen=True)
class Standing:
    """How many of the files a tenant lacks, and how many migrations it has that are no files here."""

    pending: int
    ahead: int


@dataclass(frozen=True)
class Folders:
    """The folders that migrations come from, and how patient to be with locks; the bundled folder is first."""

    further: tuple[Path, ...] = ()
    lock_timeout: timedelta = timedelta(seconds=2)
    statement_timeout: timedelta = timedelta(minutes=5)
    files_read: object | None = field(default=None, init=False, compare=False, repr=False)  # kept by schema.files

    @cached_property
    def listing(self) -> tuple[tuple[Path, ...], ...]:
        """Every `.sql` file, folder by folder; raises ConfigurationError for a folder that is not there."""
        folders = (queries.bundled("migrations"), *self.further)
        for folder in folders:
            if not folder.is_dir():
                raise ConfigurationError(
                    f"migrations.paths: {folder} is not a folder", hint=Run("config", "show", "--origin")
                )
        return tuple(tuple(sorted(folder.glob("*.sql"))) for folder in folders)

    @cached_property
    def _names(self) -> "tuple[dict[str, Path], dict[str, ConfigurationError]]":
        """Return the files by version and, by version or file name, what is wrong with the names of some."""
        found: dict[str, Path] = {}
        wrong: dict[str, ConfigurationError] = {}
        for path in (path for folder in self.listing for path in folder):
            match = FILE_NAME.fullmatch(path.name)
            if match is None:
                wrong[path.name] = ConfigurationError(f"{path}: {BAD_NAME}", hint="rename the file")
            elif match[1] in found:
                message = f"{path}: version {match[1]} is also {found[match[1]]}"
                wrong[match[1]] = ConfigurationError(message, hint="renumber the newer file")
            else:
                found[match[1]] = path
        return dict(sorted(found.items())), wrong

    @property
    def paths(self) -> Mapping[str, Path]:
        """Every migration file by its version, in the order of versions; only the folders are read.

        A file whose name has no version is not among them, and of two with one version only the first; `faults`
        has both. Raises ConfigurationError for a folder that is not there.
        """
        return self._names[0]

    @cached_property
    def bundled(self) -> tuple[str, ...]:
        """The versions of the bundled folder, in their order."""
        found = (FILE_NAME.fullmatch(path.name) for path in self.listing[0])
        return tuple(sorted(match[1] for match in found if match))

    @property
    def misnamed(self) -> Mapping[str, ConfigurationError]:
        """The files whose place in the order cannot be told: without a version, or with one that another file has."""
        return self._names[1]

    @cached_property
    def latest(self) -> str | None:
        """The highest version, or None without migrations."""
        return max(self.paths, default=None)

    @cached_property
    def _prefixes(self) -> dict[str, int]:
        versions = list(self.paths)
        return {hash_in(digest(versions[:count])): count for count in range(len(versions) + 1)}

    def standing(self, schema: str | None, applied: str | None) -> Standing:
        """Compare the files with what a record says of a tenant.

        *schema* is the highest applied version, *applied* the digest of the applied set. Of a set that is not the
        first so many of ours the numbers are the least that there must be.
        """
        prefix = self._prefixes.get(hash_in(applied or digest(())))
        if prefix is not None:
            return Standing(len(self.paths) - prefix, 0)
        top = schema or ""
        ours = sum(version <= top for version in self.paths)
        later = len(self.paths) - ours
        foreign = int(schema is not None and schema not in self.paths)
        size = sized(applied)
        if size is None:
            return Standing(later or 1 - foreign, foreign)
        # As many as ours, and yet others: the tenant lacks one of ours, and has one that is not.
        ahead = max(size - ours, foreign, int(size == ours))
        return Standing(later + max(ours + ahead - size, 0), ahead)

    def pending(self, schema: str | None, applied: str | None) -> int:
        """Count the migrations that a record says are missing; what the record leaves open counts as missing."""
        return self.standing(schema, applied).pending


def digest(versions: Collection[str]) -> str:
    """Condense a set of versions, so that a hole in it shows: a hash, how many there are, the newest bundled one.

    >>> digest(["0001", "0002", "1000"])
    '83224538d67c0f9c-3-0002'
    """
    condensed = hashlib.sha256("\n".join(sorted(versions)).encode()).hexdigest()[:16]
    return f"{condensed}-{len(versions)}-{newest_bundled(versions)}"


def hash_in(applied: str | None) -> str:
    """Return the hash of a digest, which is all that there was to it once: what tells two sets apart."""
    return (applied or "").partition("-")[0]


def sized(applied: str | None) -> int | None:
    """Return how many versions a digest is of; None for a text that is not a digest."""
    found = _DIGEST.fullmatch(applied or "")
    return int(found[1]) if found else None


def bundled_in(applied: str | None) -> str | None:
    """Return the newest bundled version of a digest, "" without any; None for a text that is not a digest."""
    found = _DIGEST.fullmatch(applied or digest(()))
    return found[2] if found else None


def newest_bundled(versions: Iterable[str]) -> str:
    """Return the newest of some versions that is a bundled one, of this posduif or of another; "" without any."""
    return max((version for version in versions if version.isdecimal() and int(version) < RESERVED), default="")
