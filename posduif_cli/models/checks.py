"""What was checked, and found."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from posduif_cli.errors import Hint
from posduif_cli.models.tenants import State
from posduif_cli.models.values import Value


class Level(StrEnum):
    """How bad a finding is, from good to bad; unknown is never shown as good."""

    OK = "ok"
    INFO = "info"
    SKIPPED = "skipped"
    UNKNOWN = "unknown"
    WARNING = "warning"
    CRITICAL = "critical"


@dataclass(frozen=True, eq=False, repr=False)
class Finding(Value):
    """One thing that a check found; *scope* is server or tenant, *fix* a command or SQL."""

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


@dataclass(frozen=True, eq=False, repr=False)
class CheckInfo(Value):
    """What a check looks at; *threshold* says from which value on it warns, and from which it is critical."""

    check: str
    scope: str
    title: str
    threshold: str | None
    explanation: str


class Repaired(Finding):
    """A finding whose cause was repaired."""


@dataclass(frozen=True, eq=False, repr=False)
class TenantHealth(Value):
    """The figures of one tenant in a health report; sizes in bytes."""

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
    """A health report; *coverage* says how many tenants were known and how many were visited."""

    status: str
    checked_at: datetime
    servers: tuple[ServerHealth, ...]
    tenants: tuple[TenantHealth, ...]
    coverage: Mapping[str, int]
    findings: tuple[Finding, ...]
