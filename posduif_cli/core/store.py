"""Where backups lie: a folder per tenant, a folder per backup, and what makes one whole.

A backup is written into `.part-ID` and renamed when all of it is on the disk, so that what has a name is whole.
"""

import json
import os
import re
import secrets
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from posduif_cli.errors import BackupNotFound, ConfigurationError, Run
from posduif_cli.models.copies import Backup

MARKER, DATA, MANIFEST, PROOFS, PIN = (
    "posduif-backups.json", "data.dump.zst", "manifest.json", "proof.jsonl", "pin.json"
)  # fmt: skip
ID = re.compile(r"\d{8}T\d{6}Z-[0-9a-f]{4}")
PART = ".part-"
DAY = 86_400.0  # seconds


@dataclass(frozen=True)
class Store:
    """A folder of backups, which has posduif's marker."""

    root: Path

    @classmethod
    def open(cls, root: Path | None, *, make: bool = False) -> "Store":
        """Return the store in *root*; with *make* an empty or missing folder becomes one. Raises ConfigurationError."""
        if root is None:
            raise ConfigurationError(
                "no folder for backups is configured", hint="set backup.dir in the configuration to a folder"
            )
        marker = root / MARKER
        try:
            if make and not marker.exists():
                root.mkdir(mode=0o700, parents=True, exist_ok=True)
                if any(root.iterdir()):
                    raise ConfigurationError(
                        f"{root} holds other things than backups",
                        why=f"it is not empty and has no {MARKER}",
                        hint="set backup.dir to an empty folder, or to one that does not exist",
                    )
                write(marker, json.dumps({"format": 1}).encode())
            if not marker.is_file():
                raise ConfigurationError(
                    f"{root} is no folder of backups", why=f"it has no {MARKER}", hint=Run("backup", "create", "--all")
                )
        except OSError as error:
            raise ConfigurationError(f"{root} cannot be used for backups", why=error.strerror) from None
        return cls(root)

    def begin(self, at: datetime) -> tuple[str, Path]:
        """Return the id of a new backup and an empty folder for it, which no listing shows."""
        id_ = f"{at.astimezone(UTC):%Y%m%dT%H%M%SZ}-{secrets.token_hex(2)}"
        part = self.root / f"{PART}{id_}"
        part.mkdir(mode=0o700)
        return id_, part

    def publish(self, part: Path, tenant: str, id_: str) -> Backup:
        """Give a whole backup its name."""
        folder = self.root / tenant
        folder.mkdir(mode=0o700, exist_ok=True)
        sync(part)
        part.rename(folder / id_)
        sync(folder)
        return self.read(folder / id_)

    def backups(self, tenant: str | None = None) -> list[Backup]:
        """Return all backups, or those of a tenant, the oldest first."""
        found = [path for path in self.root.glob(f"{tenant or '*'}/*/{MANIFEST}") if ID.fullmatch(path.parent.name)]
        return sorted((self.read(path.parent) for path in found), key=lambda backup: (backup.created_at, backup.backup))

    def find(self, text: str) -> Backup:
        """Return the backup with an id, in a file's place, or the newest of a tenant; raises BackupNotFound."""
        if "/" in text:
            path = Path(text).expanduser().absolute()
            folder = path.parent if path.name in (DATA, MANIFEST) else path
            if (folder / MANIFEST).is_file():
                return self.read(folder)
        elif text[:1].isdigit():
            for path in self.root.glob(f"*/{text}/{MANIFEST}"):
                return self.read(path.parent)
        elif found := self.backups(text):
            return found[-1]
        raise BackupNotFound(f"there is no backup {text} in {self.root}", hint=Run("backup", "list"))

    def read(self, folder: Path) -> Backup:
        """Return one backup by its folder; raises ConfigurationError for a manifest that cannot be read."""
        noted = manifest(folder)
        proofs = _proofs(folder)
        proof: Mapping[str, Any] = proofs[-1] if proofs else {}
        data = noted["files"][0]
        return Backup(
            backup=noted["id"],
            tenant=noted["tenant"],
            server=noted["server"],
            created_at=datetime.fromisoformat(noted["snapshot_at"]),
            seconds=noted["seconds"],
            size_bytes=data["bytes"],
            schema_version=noted["schema"]["version"],
            server_version=noted["postgres"]["server"],
            file=data["name"],
            checksum=data["sha256"],
            verified_at=datetime.fromisoformat(proof["at"]) if proof else None,
            verified=proof.get("verdict"),
            pinned=_pin(folder),
            encrypted=False,
            location=folder,
        )

    def unpin(self, backup: Backup) -> bool:
        """Take back the note that a backup is to be kept; return whether there was one."""
        pin = backup.location / PIN
        there = pin.exists()
        pin.unlink(missing_ok=True)
        sync(backup.location)
        return there

    def incarnations(self) -> list[list[Backup]]:
        """Return all backups by what they are of: a tenant that was dropped and made again is another."""
        groups: dict[str, list[Backup]] = {}
        for backup in self.backups():
            key = json.dumps([backup.tenant, manifest(backup.location).get("incarnation")], sort_keys=True)
            groups.setdefault(key, []).append(backup)
        return list(groups.values())

    def sweep(self, now: float) -> None:
        """Delete what unfinished and half deleted backups of a day ago left."""
        for part in self.root.glob(f"{PART}*"):
            with suppress(OSError):
                if now - part.stat().st_mtime > DAY:
                    shutil.rmtree(part)

    def remove(self, backup: Backup) -> None:
        """Delete a backup; killed midway it is in no listing."""
        part = self.root / f"{PART}{backup.backup}"
        backup.location.rename(part)
        sync(backup.location.parent)
        shutil.rmtree(part)


def manifest(folder: Path) -> dict[str, Any]:
    """Return what a backup's manifest says; raises ConfigurationError."""
    try:
        found = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        if found["format"] != 1:
            raise ConfigurationError(f"{folder / MANIFEST} is of a newer posduif", hint=Run("version"))
        return dict(found)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigurationError(f"{folder / MANIFEST} cannot be read", why=str(error)) from None


def _proofs(folder: Path) -> Sequence[Mapping[str, Any]]:
    try:
        lines = (folder / PROOFS).read_text(encoding="utf-8").splitlines()
    except OSError:
        return ()
    found = []
    for line in lines:
        try:
            found.append(json.loads(line))
        except ValueError:  # half a line, of a kill
            continue
    return found


def _pin(folder: Path) -> str | None:
    try:
        return str(json.loads((folder / PIN).read_text(encoding="utf-8"))["why"])
    except (OSError, ValueError, KeyError):
        return None


def prove(folder: Path, proof: Mapping[str, Any]) -> None:
    """Append what a verification found."""
    descriptor = os.open(folder / PROOFS, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    with open(descriptor, "ab") as file:
        file.write(b"\n" if file.tell() and not _ends(folder) else b"")
        file.write(json.dumps(proof).encode() + b"\n")
        file.flush()
        os.fsync(descriptor)


def _ends(folder: Path) -> bool:
    return (folder / PROOFS).read_bytes().endswith(b"\n")


def write(path: Path, content: bytes) -> None:
    """Write a file that only its owner can read, onto the disk."""
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
