"""What was checked, and found."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

from posduif_cli.errors import Hint
from posduif_cli.models.tenants import State
from posduif_cli.models.values import HIDDEN, Value


class Level(StrEnum):
    """How bad a finding is, from good to bad; unknown is never shown as good, and skipped is no finding."""

    OK = "ok"
    SKIPPED = "skipped"
    INFO = "info"
    WARNING = "warning"
    UNKNOWN = "unknown"
    CRITICAL = "critical"

    @property
    def rank(self) -> int:
        """How bad it is, as a number; the higher, the worse."""
        return _RANKS[self]


_RANKS = {level: number for number, level in enumerate(Level)}


@dataclass(frozen=True, eq=False, repr=False)
class Finding(Value):
    """One thing that a check found; *scope* is server or tenant, *fix* a command or SQL.

    *affected* names the tenants that it is about. *server* is where it was found, for a report of several servers.
    """

    check: str
    scope: str
    subject: str
    level: Level
    message: str
    value: float | int | str | None = None
    unit: str | None = None
    threshold: str | None = None
    fix: Hint | None = None
    affected: tuple[str, ...] = ()
    server: str = field(default="", metadata=HIDDEN)


@dataclass(frozen=True, eq=False, repr=False)
class CheckInfo(Value):
    """What a check looks at; *threshold* says from which value on it warns, and from which it is critical.

    *unit* is that of the threshold and *origin* where it comes from. *asked* says when the check judges.
    """

    check: str
    scope: str
    title: str
    threshold: str | None
    explanation: str
    unit: str | None = None
    origin: str | None = None
    asked: str | None = None


class Repaired(Finding):
    """A finding whose cause was repaired."""


@dataclass(frozen=True, eq=False, repr=False)
class TenantHealth(Value):
    """The figures of one tenant in a health report; sizes in bytes. *pending_sync* are messages that wait for phones.

    *backup_at* is when its newest backup was made.
    """

    tenant: str
    server: str
    state: State
    schema_version: str | None
    pending_migrations: int
    users: int | None = None
    messages: int | None = None
    pending_sync: int | None = None
    sync_errors: int | None = None
    connections: int | None = None
    size_bytes: int | None = None
    backup_at: datetime | None = None
    tables: tuple["TableSize", ...] = ()
    indexes: tuple["IndexUse", ...] = ()


@dataclass(frozen=True, eq=False, repr=False)
class TableSize(Value):
    """Size of one table with its indexes and TOAST, in bytes; *rows* is PostgreSQL's estimate."""

    table: str
    bytes: int
    rows: int


@dataclass(frozen=True, eq=False, repr=False)
class IndexUse(Value):
    """How often an index was used since the statistics were reset."""

    index: str
    table: str
    scans: int
    bytes: int


@dataclass(frozen=True, eq=False, repr=False)
class ServerHealth(Value):
    """The figures of one server in a health report; lag in bytes."""

    server: str
    reachable: bool
    version: str | None = None
    connections: int | None = None
    max_connections: int | None = None
    slots: int | None = None
    replicas: int | None = None
    replication_lag_bytes: int | None = None


@dataclass(frozen=True, eq=False, repr=False)
class Health(Value):
    """A health report.

    *findings* are those that are not ok, one per cause, the worst first. *coverage* counts the servers that answered,
    the tenants asked about, those visited, skipped and failed, and the checks asked, skipped and failed. *skipped* says
    of each check that could not be judged yet why. *named* is True where tenants were asked for by name. *ran* holds
    the checks that judged on each server, *seconds* how long the report took.
    """

    status: str
    checked_at: datetime
    servers: tuple[ServerHealth, ...]
    tenants: tuple[TenantHealth, ...]
    coverage: Mapping[str, int]
    findings: tuple[Finding, ...]
    skipped: Mapping[str, str] = field(default_factory=dict)
    named: bool = field(default=False, metadata=HIDDEN)
    ran: Mapping[str, tuple[str, ...]] = field(default_factory=dict, metadata=HIDDEN)
    seconds: float = field(default=0.0, metadata=HIDDEN)
