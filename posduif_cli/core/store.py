"""Where backups lie: a folder per tenant, in it a folder per backup, and what makes one whole.

    ROOT/posduif-backups.json     marks the place as one of backups
    ROOT/TENANT/ID/               a backup: its name is there when all of it is on the disk
        data.dump.zst[.age]       the dump
        manifest.json             what is in it
        proof.jsonl               one line per verification
        pin.json                  why it is to be kept
    ROOT/TENANT/.making .reading  held while a backup of the tenant is made, and while one is read or removed
    ROOT/.part-ID/                what is being made or removed

`Storage` is what such a place must be able to do. A folder does it here; `copies.stores` has object stores.
"""

import fcntl
import json
import os
import re
import secrets
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import IO, Any, Protocol

from posduif_cli.db.patience import Patience
from posduif_cli.errors import (
    BackupNotFound,
    Busy,
    ConfigurationError,
    DamagedBackup,
    OperationFailed,
    PosduifError,
    Run,
)
from posduif_cli.models.copies import FAILED, PROVED, UNJUDGED, Backup

MARKER, DATA, MANIFEST, PROOFS, PIN, MAKING, READING = (
    "posduif-backups.json", "data.dump.zst", "manifest.json", "proof.jsonl", "pin.json", ".making", ".reading"
)  # fmt: skip
MARK = '{"format": 1}'
DROP = "tenant drop"  # the command that makes the last backup of a tenant
REPLACE = "backup restore"  # the command that makes one of what it replaces
MIGRATE = "migrate up"  # the command that makes one of what it migrates
CANARY = "canary-{}.age"
ID = re.compile(r"\d{8}T\d{6}Z-[0-9a-f]{4}")
PART = ".part-"
DAY = 86_400.0  # seconds
SPARE = 16 * 1024**2  # bytes that a backup leaves free


class Draft(Protocol):
    """A backup that is being made: nobody sees it until it is published."""

    def open(self, name: str) -> AbstractContextManager[IO[bytes]]:
        """Lend a file to write to; it is on the disk when the block ends."""

    def publish(self, manifest: bytes, pin: bytes | None) -> None:
        """Write the manifest, and give the whole backup its name."""


class Storage(Protocol):
    """A place for backups; a *path* is `TENANT/ID/FILE`, a *key* `TENANT/ID`. Methods raise what `Store` names."""

    place: str

    def listing(self) -> Mapping[str, Iterable[str]]:
        """Return the names of the files of every whole backup, by its key."""

    def read(self, path: str) -> bytes | None:
        """Return the content of a small file; None where there is none."""

    def has(self, pattern: str) -> bool:
        """Whether there is a file of such a name at the top."""

    def read_all(self, paths: Sequence[str]) -> list[bytes | None]:
        """Return the contents of many small files."""

    def write(self, path: str, content: bytes) -> None:
        """Write a small file, whole or not at all."""

    def append(self, path: str, line: bytes) -> None:
        """Add a line to a small file."""

    def delete(self, path: str) -> None:
        """Delete a small file, if it is there."""

    def draft(self, key: str) -> AbstractContextManager[Draft]:
        """Begin a backup; what is not published when the block ends is removed."""

    def fetch(self, path: str) -> AbstractContextManager[IO[bytes]]:
        """Lend a large file, open, from its beginning; it can be read more than once."""

    def remove(self, key: str) -> None:
        """Remove a backup; killed midway it is in no listing."""

    def sweep(self, before: float) -> None:
        """Remove what was begun before a time, in seconds of the epoch, and never became a backup."""

    def lock(self, path: str, *, shared: bool = False) -> AbstractContextManager[None]:
        """Hold the lock of a file; raises Busy."""

    def free(self) -> int | None:
        """Return how many bytes are free; None where there is no such limit."""

    def location(self, key: str) -> str:
        """Return where a backup is, for people."""


@dataclass(frozen=True)
class Store:
    """The backups in a storage, which has posduif's marker."""

    storage: Storage

    @property
    def place(self) -> str:
        """Where it is, as the configuration says it."""
        return self.storage.place

    @classmethod
    def open(cls, storage: Storage, *, make: bool = False, empty: Callable[[], bool] = lambda: True) -> "Store":
        """Return the store in a storage; with *make* one that is *empty* becomes one. Raises ConfigurationError."""
        if storage.read(MARKER) is None:
            if any(storage.listing()):
                raise ConfigurationError(
                    f"{storage.place} has backups, and lost its {MARKER}",
                    why="without that file nothing tells it from a folder of someone else's",
                    hint=f"if it is the right place, put it back: a file with {MARK}",
                )
            if make and not empty():
                raise ConfigurationError(
                    f"{storage.place} holds other things than backups",
                    why=f"it is not empty and has no {MARKER}",
                    hint="set backup.dir to an empty place, or to one that does not exist",
                )
            if not make:
                raise ConfigurationError(
                    f"{storage.place} is no place of backups",
                    why=f"it has no {MARKER}",
                    hint=[
                        Run("backup", "create", "--all", lead="if it is new"),
                        "else mount it, or correct backup.dir",
                    ],
                )
            storage.write(MARKER, MARK.encode())
        return cls(storage)

    @contextmanager
    def draft(self, tenant: str, at: datetime) -> Iterator[tuple[str, Draft]]:
        """Begin a backup of a snapshot of the time *at*; yield its id."""
        id_ = f"{at.astimezone(UTC):%Y%m%dT%H%M%SZ}-{secrets.token_hex(2)}"
        with self.storage.draft(f"{tenant}/{id_}") as draft:
            yield id_, draft

    def require_room(self, wanted: int) -> None:
        """Raise OperationFailed unless so many bytes are free, and some more."""
        free = self.storage.free()
        if free is not None and free < wanted + SPARE:
            raise OperationFailed(
                f"there is no room for the backup in {self.place}",
                why=f"{free >> 20} MiB are free; it takes about {-(-wanted >> 20)}, and {SPARE >> 20} are left free",
                hint=[Run("backup", "prune", "--dry-run"), "make room there"],
            )

    def all(self, tenant: str | None = None, unread: list[PosduifError] | None = None) -> "list[Stored]":
        """Return all backups, or those of a tenant, the oldest first; why others cannot be read goes into *unread*."""
        keys = {key: set(names) for key, names in self.storage.listing().items() if _of(key, tenant)}
        wanted = [f"{key}/{name}" for key, names in keys.items() for name in (MANIFEST, PROOFS, PIN) if name in names]
        told = dict(zip(wanted, self.storage.read_all(wanted), strict=True))
        found = []
        for key in keys:
            try:
                found.append(self._stored(key, told))
            except DamagedBackup as error:
                if unread is not None:
                    unread.append(error)
        return sorted(found, key=lambda stored: (stored.backup.created_at, stored.backup.backup))

    def _stored(self, key: str, told: "Mapping[str, bytes | None]") -> "Stored":
        place = self.storage.location(key)
        noted = _manifest(told[f"{key}/{MANIFEST}"], place)
        if noted is None:
            raise BackupNotFound(f"there is no backup in {place}", hint=Run("backup", "list"))
        try:
            return Stored(self, key, _backup(place, noted, *_notes(told, key)))
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise _unreadable(place, f"{type(error).__name__}: {error}") from None

    def backups(self, tenant: str | None = None, unread: list[PosduifError] | None = None) -> list[Backup]:
        """Return what `all` returns, without where they are."""
        return [stored.backup for stored in self.all(tenant, unread)]

    def find(self, text: str) -> "Stored":
        """Return the backup with an id, or the `preferred` one of a tenant; raises BackupNotFound, DamagedBackup."""
        unread: list[PosduifError] = []
        if text[:1].isdigit():
            for key in self.storage.listing():
                if key.endswith(f"/{text}"):
                    return self.read(key)
        elif found := self.all(text, unread):
            return preferred(found)
        if unread:
            raise unread[0]
        raise BackupNotFound(f"there is no backup {text} in {self.place}", hint=Run("backup", "list"))

    def read(self, key: str) -> "Stored":
        """Return one backup by its key; raises BackupNotFound, and DamagedBackup for a manifest that is none."""
        paths = [f"{key}/{name}" for name in (MANIFEST, PROOFS, PIN)]
        return self._stored(key, dict(zip(paths, self.storage.read_all(paths), strict=True)))

    def noted(self, key: str, manifest: Mapping[str, Any], pin: str | None) -> Backup:
        """Return what a backup is, by the manifest that it was just given."""
        return _backup(self.storage.location(key), manifest, {}, {} if pin is None else {"why": pin})

    def incarnations(self, unread: list[PosduifError] | None = None) -> "list[list[Stored]]":
        """Return all backups by what they are of: a tenant that was dropped and made again is another."""
        groups: dict[tuple[str, str], list[Stored]] = {}
        for stored in self.all(None, unread):
            groups.setdefault((stored.backup.tenant, stored.backup.incarnation), []).append(stored)
        return list(groups.values())


def _of(key: str, tenant: str | None) -> bool:
    return tenant is None or key.startswith(f"{tenant}/")


@dataclass(frozen=True)
class Stored:
    """One backup, and the store that it is in under *key*."""

    store: Store
    key: str
    backup: Backup

    @property
    def manifest(self) -> dict[str, Any]:
        """What the dump holds, as its manifest says; raises DamagedBackup for one that is none, or another's."""
        noted = _manifest(self.store.storage.read(f"{self.key}/{MANIFEST}"), self.backup.location)
        if noted is None:
            raise BackupNotFound(f"there is no backup in {self.backup.location}", hint=Run("backup", "list"))
        tenant, _, id_ = self.key.rpartition("/")
        if noted["id"] != id_ or (tenant and noted["tenant"] != tenant):
            raise DamagedBackup(
                f"{self.backup.location} is damaged", why=f"its manifest is that of {noted['tenant']}/{noted['id']}"
            )
        return noted

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Keep the backup from being removed inside the block; raises Busy."""
        with self.store.storage.lock(self._lock, shared=True):
            yield

    def fetch(self) -> AbstractContextManager[IO[bytes]]:
        """Lend the dump as a file."""
        return self.store.storage.fetch(f"{self.key}/{self.backup.file}")

    def prove(self, proof: Mapping[str, Any]) -> None:
        """Append what a verification found."""
        self.store.storage.append(f"{self.key}/{PROOFS}", json.dumps(proof).encode())

    def note_return(self) -> None:
        """Note that the tenant, which was dropped after this backup, is there again."""
        if self.backup.dropped:
            pin = {"why": self.backup.pinned, "returned": True} if self.backup.pinned else {"returned": True}
            self.store.storage.write(f"{self.key}/{PIN}", json.dumps(pin).encode())

    def unpin(self) -> bool:
        """Take back the note that the backup is to be kept; return whether there was one."""
        self.store.storage.delete(f"{self.key}/{PIN}")
        return self.backup.pinned is not None

    def remove(self) -> None:
        """Delete the backup; raises Busy."""
        with self.store.storage.lock(self._lock):
            self.store.storage.remove(self.key)

    @property
    def _lock(self) -> str:
        return f"{self.key.rpartition('/')[0]}/{READING}".lstrip("/")


def at(path: Path) -> Stored:
    """Return the backup in a place of files, wherever that is; raises BackupNotFound."""
    path = path.expanduser().absolute()
    folder = path if (path / MANIFEST).is_file() else path.parent
    if not (folder / MANIFEST).is_file():
        raise BackupNotFound(f"there is no backup in {path}", why=f"it has no {MANIFEST}", hint=Run("backup", "list"))
    tenant = folder.parent
    in_store = (tenant.parent / MARKER).is_file()
    storage, key = (
        (Folder(tenant.parent), f"{tenant.name}/{folder.name}") if in_store else (Folder(tenant), folder.name)
    )
    return Store(storage).read(key)


def _manifest(content: bytes | None, location: str) -> dict[str, Any] | None:
    if content is None:
        return None
    try:
        noted = json.loads(content)
        if noted["format"] != 1:
            raise ValueError("it is of a newer posduif")
        return dict(noted)
    except (ValueError, KeyError, TypeError) as error:
        raise _unreadable(location, str(error)) from None


def _unreadable(location: str, why: str) -> DamagedBackup:
    return DamagedBackup(f"the manifest in {location} cannot be read", why=why, hint=Run("backup", "list"))


def _notes(told: Mapping[str, bytes | None], key: str) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """Return the last proof and the note why a backup is kept; {} for what is not there."""
    proof: Mapping[str, Any] = {}
    for line in (told.get(f"{key}/{PROOFS}") or b"").splitlines():
        with suppress(ValueError):  # half a line, of a kill
            found = json.loads(line)
            if found["verdict"] != UNJUDGED or proof.get("verdict", UNJUDGED) == UNJUDGED:
                proof = found  # what could not judge a backup takes no judgement away
    try:
        pin = json.loads(told.get(f"{key}/{PIN}") or b"{}")
    except ValueError:
        pin = {}
    return proof, pin if isinstance(pin, dict) else {}


def _backup(location: str, noted: Mapping[str, Any], proof: Mapping[str, Any], pin: Mapping[str, Any]) -> Backup:
    data, of = noted["files"][0], noted["incarnation"]
    if not data["name"].startswith(DATA) or "/" in data["name"]:
        raise ValueError(f"{data['name']} is no dump")
    return Backup(
        backup=noted["id"],
        tenant=noted["tenant"],
        server=noted["server"],
        created_at=datetime.fromisoformat(noted["snapshot_at"]),
        seconds=noted["seconds"]["all"],
        size_bytes=data["bytes"],
        plain_bytes=data["plain_bytes"],
        rows=sum(table["rows"] for table in noted["tables"]),
        schema_version=noted["schema"]["version"],
        server_version=noted["postgres"]["server"],
        file=data["name"],
        checksum=data["sha256"],
        trigger=noted["trigger"],
        verified_at=datetime.fromisoformat(proof["at"]) if proof else None,
        verified=proof.get("verdict"),
        restore_seconds=proof.get("seconds") if proof.get("verdict") == PROVED else None,
        pinned=str(pin["why"]) if "why" in pin else None,
        dropped=noted["trigger"] == DROP and not pin.get("returned"),
        encrypted=bool(noted["encryption"]["recipients"]),
        incarnation=f"{of['system_identifier']}/{of['database_oid']}/{of['created']}",
        location=location,
    )


def preferred(stored: Sequence[Stored]) -> Stored:
    """Return the newest of a tenant's backups that is none of what a restore replaced, and did not fail; else the next.

    What was replaced was to be got rid of: the same restore, typed again, must not bring it back.
    """
    wanted = [each for each in stored if each.backup.trigger != REPLACE]
    good = [each for each in wanted if each.backup.verified != FAILED]
    return (good or wanted or list(stored))[-1]


def usual(backups: Sequence[Backup], measure: Callable[[Backup], float], last: int = 7) -> float | None:
    """Return the median of the last backups of a tenant; None without any."""
    return median(map(measure, backups[-last:])) if backups else None


class Folder:
    """A storage of files, each of which only their owner can read."""

    def __init__(self, root: Path) -> None:
        self.root, self.place = root, str(root)

    def listing(self) -> Mapping[str, Iterable[str]]:
        """Return the files of all backups by their keys."""
        found: dict[str, Iterable[str]] = {}
        if not self.root.exists():
            return found
        with _failing(self.place):
            for tenant in (entry for entry in os.scandir(self.root) if entry.is_dir() and entry.name[0] != "."):
                for backup in os.scandir(tenant):
                    if ID.fullmatch(backup.name) and MANIFEST in (names := os.listdir(backup)):
                        found[f"{tenant.name}/{backup.name}"] = names
        return found

    def read(self, path: str) -> bytes | None:
        """Return a file's content, None where it is not there."""
        with _failing(self.place):
            try:
                return (self.root / path).read_bytes()
            except (FileNotFoundError, NotADirectoryError):
                return None

    def has(self, pattern: str) -> bool:
        """Whether there is a file of such a name in the folder."""
        return any(True for _ in self.root.glob(pattern))

    def read_all(self, paths: Sequence[str]) -> list[bytes | None]:
        """Return the contents of many files; one that may not be read is as if it were empty."""
        found: list[bytes | None] = []
        for path in paths:
            try:
                found.append(self.read(path))
            except PosduifError:
                found.append(b"")
        return found

    def write(self, path: str, content: bytes) -> None:
        """Write a file, by a rename."""
        target = self.root / path
        with _failing(self.place):
            target.parent.mkdir(mode=0o700, exist_ok=True)  # not its parents: they may be a disk that is not mounted
            half = target.with_name(f".{target.name}.{secrets.token_hex(2)}")
            write(half, content)
            half.rename(target)
            sync(target.parent)

    def append(self, path: str, line: bytes) -> None:
        """Add a line, behind the half one that a kill may have left."""
        with _failing(self.place):
            descriptor = os.open(self.root / path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
            with open(descriptor, "r+b") as file:
                size = file.seek(0, os.SEEK_END)
                ended = size == 0 or os.pread(descriptor, 1, size - 1) == b"\n"
                file.write((b"" if ended else b"\n") + line + b"\n")
                file.flush()
                os.fsync(descriptor)

    def delete(self, path: str) -> None:
        """Delete a file."""
        with _failing(self.place):
            (self.root / path).unlink(missing_ok=True)
            sync((self.root / path).parent)

    @contextmanager
    def draft(self, key: str) -> "Iterator[_FolderDraft]":
        """Begin a backup in a folder that no listing shows."""
        part = self.root / f"{PART}{Path(key).name}"
        with _failing(self.place):
            part.mkdir(mode=0o700)
            try:
                yield _FolderDraft(part, self.root / key)
            finally:
                shutil.rmtree(part, ignore_errors=True)

    @contextmanager
    def fetch(self, path: str) -> Iterator[IO[bytes]]:
        """Lend the file itself."""
        try:
            file = (self.root / path).open("rb")
        except OSError as error:
            raise DamagedBackup(f"{self.root / path} cannot be read", why=f"{path}: {error.strerror}") from None
        with file:
            yield file

    def remove(self, key: str) -> None:
        """Delete a backup, by a rename first."""
        part = self.root / f"{PART}{Path(key).name}"
        with _failing(self.place):
            (self.root / key).rename(part)
            sync((self.root / key).parent)
            shutil.rmtree(part)

    def sweep(self, before: float) -> None:
        """Delete what unfinished and half deleted backups left."""
        for part in self.root.glob(f"{PART}*"):
            with suppress(OSError):
                if part.stat().st_mtime < before:
                    shutil.rmtree(part)

    @contextmanager
    def lock(self, path: str, *, shared: bool = False) -> Iterator[None]:
        """Hold a file's lock, which ends with this process; who only reads goes without where no file can be made."""
        file = self.root / path
        try:
            file.parent.mkdir(mode=0o700, exist_ok=True)
            descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            if shared:
                yield
                return
            raise ConfigurationError(f"{self.place} cannot be used for backups", why=error.strerror) from None
        try:
            patience = Patience("blocked")
            while True:
                try:
                    fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if not patience.again():
                        raise self._held(file, descriptor) from None
            if not shared:
                os.pwrite(descriptor, f"{os.getpid():<10}".encode(), 0)
            yield
        finally:
            os.close(descriptor)

    def _held(self, file: Path, descriptor: int) -> Busy:
        pid = os.pread(descriptor, 10, 0).decode("ascii", "replace").strip()
        return Busy(
            f"the backups in {file.parent} are being worked on by another command",
            why=f"{file} is locked" + (f", last by process {pid} of its machine" if pid else ""),
            hint="try again when that is done",
        )

    def free(self) -> int | None:
        """Return what the file system has for this user."""
        with _failing(self.place):
            found = os.statvfs(self.root)
            return found.f_bavail * found.f_frsize

    def location(self, key: str) -> str:
        """Return the folder of a backup."""
        return str(self.root / key)

    def empty(self) -> bool:
        """Whether there is nothing in the folder yet, or no folder."""
        with _failing(self.place):
            return not self.root.exists() or not any(self.root.iterdir())


class _FolderDraft:
    def __init__(self, part: Path, target: Path) -> None:
        self.part, self.target = part, target

    @contextmanager
    def open(self, name: str) -> Iterator[IO[bytes]]:
        descriptor = os.open(self.part / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with open(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(descriptor)

    def publish(self, manifest: bytes, pin: bytes | None) -> None:
        if pin is not None:
            write(self.part / PIN, pin)
        write(self.part / MANIFEST, manifest)
        sync(self.part)
        self.target.parent.mkdir(mode=0o700, exist_ok=True)
        self.part.rename(self.target)
        sync(self.target.parent)


@contextmanager
def _failing(place: str) -> Iterator[None]:
    """Make an error of the file system one that names the place."""
    try:
        yield
    except (PermissionError, FileNotFoundError, NotADirectoryError) as error:
        raise ConfigurationError(
            f"{place} cannot be used for backups",
            why=f"{error.strerror}: {error.filename}",
            hint="mount it, give this user the right, or correct backup.dir in the configuration",
        ) from None
    except OSError as error:
        raise OperationFailed(f"the backups in {place} could not be worked on", why=error.strerror) from error


def unfinished() -> float:
    """Return before which time something must have been begun to be taken for left behind, in seconds of the epoch."""
    return time.time() - DAY


def write(path: Path, content: bytes) -> None:
    """Write a new file that only its owner can read, onto the disk."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with open(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(descriptor)


def sync(folder: Path) -> None:
    """Have a folder's names on the disk."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
