"""Backups, and what was found out about them."""

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from posduif_cli.models.values import Value


@dataclass(frozen=True, eq=False, repr=False)
class Backup(Value):
    """One dump of one tenant with its manifest; *backup* is its id, *file* the dump, *seconds* how long it took.

    *verified* is how the last restore of it ended, proved, failed or could_not_verify, at *verified_at*; None without
    one. *pinned* says why it is kept, None where it is not.
    """

    backup: str
    tenant: str
    server: str
    created_at: datetime
    seconds: float
    size_bytes: int
    schema_version: str | None
    server_version: str
    file: str
    checksum: str
    verified_at: datetime | None
    verified: str | None
    pinned: str | None
    encrypted: bool
    location: Path


@dataclass(frozen=True, eq=False, repr=False)
class Pruned(Value):
    """What a prune does with a backup: *kept* says why it stays, and is empty for one that goes."""

    backup: str
    tenant: str
    created_at: datetime
    size_bytes: int
    action: str
    kept: str
    changed: bool


@dataclass(frozen=True, eq=False, repr=False)
class Proof(Value):
    """What a restore of a backup found: *verdict* is proved, failed or could_not_verify, *reason* why not proved.

    *rows* is how many rows were compared, *seconds* how long fetching, restoring and comparing took.
    """

    backup: str
    tenant: str
    verdict: str
    reason: str | None
    rows: int
    seconds: float
    at: datetime
    server_version: str | None = None
