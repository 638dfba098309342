"""Backups, and what was found out about them."""

from dataclasses import dataclass
from datetime import datetime

from posduif_cli.models.values import Value

# How a restore of a backup ends.
PROVED, FAILED, UNJUDGED = VERDICTS = ("proved", "failed", "could_not_verify")


@dataclass(frozen=True, eq=False, repr=False)
class Backup(Value):
    """One dump of one tenant with its manifest; *backup* is its id, *file* the dump, *seconds* how long it took.

    *verified* is how the last restore of it ended, proved, failed or could_not_verify, at *verified_at*; None without
    one; *restore_seconds* is how long it took where it was proved. *pinned* says why the backup is kept, None where it
    is not, *dropped* that its tenant was dropped and not restored since. *trigger* is the command that made it, and
    *incarnation* tells a tenant from one that had its name before.
    """

    backup: str
    tenant: str
    server: str
    created_at: datetime
    seconds: float
    size_bytes: int
    plain_bytes: int
    rows: int
    schema_version: str | None
    server_version: str
    file: str
    checksum: str
    trigger: str
    verified_at: datetime | None
    verified: str | None
    restore_seconds: float | None
    pinned: str | None
    dropped: bool
    encrypted: bool
    incarnation: str
    location: str


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


@dataclass(frozen=True, eq=False, repr=False)
class Drill(Value):
    """What a drill came to, in numbers of tenants: *left* were not reached, *without* have no backup at all.

    *oldest_proof* is the time of the oldest last proof among the newest backups, None while one of them has none.
    *slowest_tenant* took longest to restore, *slowest_seconds*.
    """

    proved: int
    failed: int
    could_not_verify: int
    left: int
    without: tuple[str, ...]
    oldest_proof: datetime | None
    slowest_tenant: str | None
    slowest_seconds: float | None
    proofs: tuple[Proof, ...]


@dataclass(frozen=True, eq=False, repr=False)
class Aside(Value):
    """A database that a restore set aside: *until* says when a prune may drop it, *backup* what was restored instead.

    *slots* are its replication slots, which went with it; *busy* says that a session is in it.
    """

    tenant: str
    server: str
    database: str
    backup: str | None
    since: datetime | None
    until: datetime | None
    size_bytes: int | None = None
    slots: tuple[str, ...] = ()
    busy: bool = False
