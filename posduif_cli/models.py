"""The values that cross layers: frozen, and free of behaviour that needs another layer."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from datetime import datetime, timedelta
from enum import StrEnum
from pathlib import Path
from typing import Any
from uuid import UUID

from posduif_cli.errors import Hint

# A time of the database: its text where RFC 3339 has no words for it, such as infinity or a year before Christ.
Instant = datetime | str


class Value:
    """What the dataclasses below share; made anew for each, it would cost every command 0.3 ms a class."""

    def __repr__(self) -> str:
        """Show the fields, without those that hold secrets."""
        shown = (f for f in fields(self) if f.repr)  # type: ignore[arg-type]
        return f"{type(self).__name__}({', '.join(f'{f.name}={getattr(self, f.name)!r}' for f in shown)})"

    def __eq__(self, other: object) -> bool:
        """Compare by value."""
        return vars(self) == vars(other) if type(self) is type(other) else NotImplemented

    def __hash__(self) -> int:
        """Hash by value."""
        return hash(tuple(vars(self).values()))


@dataclass(frozen=True, eq=False, repr=False)
class Server(Value):
    """A PostgreSQL server that holds tenants, as the configuration describes it.

    *url* is the origin that phones reach a tenant by, with `{tenant}` in it; *max_connections* is how many
    connections posduif may hold there at once; *origin* says where the DSN
    came from; *engine* is what `engine-config` fills in.
    """

    name: str
    dsn: str = field(repr=False)
    origin: str = ""
    url: str | None = None
    max_connections: int = 8
    protected: bool = False
    engine: Mapping[str, Any] = field(default_factory=dict)


class State(StrEnum):
    """Where a tenant is in its life."""

    PROVISIONING = "provisioning"
    ACTIVE = "active"
    SUSPENDED = "suspended"
    MOVING = "moving"
    MOVED = "moved"
    RESTORING = "restoring"
    DROPPING = "dropping"
    LOST = "lost"


@dataclass(frozen=True, eq=False, repr=False)
class Failure(Value):
    """The last failed migration of a tenant: never an error's text, which may quote rows."""

    version: str
    sqlstate: str | None
    file: str | None
    line: int | None
    time: datetime


@dataclass(frozen=True, eq=False, repr=False)
class Tenant(Value):
    """One customer's database.

    *pending* counts the migrations that it lacks, *ahead* those that it has and this machine has no files for, as far
    as the record tells; *engine_sessions* counts those of the engine's role, and 0 do not mean that the engine is off:
    an idle one keeps none; *engine_may_log_in* is None without that role; *size_bytes* is None unless it was asked for;
    *has_database* tells, of a lost tenant only, whether its database is there, with another owner or without its
    record, or gone.
    """

    tenant: str
    server: str
    state: State
    schema_version: str | None
    latest_version: str | None
    pending: int
    url: str | None
    created_at: datetime | None
    error: Failure | None
    engine_sessions: int
    size_bytes: int | None = None
    has_database: bool | None = None
    ahead: int = 0
    engine_may_log_in: bool | None = None


@dataclass(frozen=True, eq=False, repr=False)
class CreatedTenant(Value):
    """A tenant just made; *password* is the engine's, and None when it has none yet or it went to a file."""

    tenant: Tenant
    changed: bool
    password: str | None = field(default=None, repr=False)


@dataclass(frozen=True, eq=False, repr=False)
class Loss(Value):
    """What dropping a tenant would destroy; None for what is no whole tenant, or for the reason in *uncounted*."""

    tenant: str
    server: str
    users: int | None
    devices: int | None
    messages: int | None
    last_activity: Instant | None
    uncounted: str | None = None


@dataclass(frozen=True, eq=False, repr=False)
class Step(Value):
    """One step of a dry run; *sql* holds no secret, *tenants* are those that share the step."""

    action: str
    subject: str
    sql: str | None = None
    tenants: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False, repr=False)
class Plan(Value):
    """What a command would do."""

    steps: tuple[Step, ...]
    dry_run: bool = True


@dataclass(frozen=True, eq=False, repr=False)
class Migration(Value):
    """One migration as one tenant sees it; *state* is applied, pending, half, missing or changed."""

    version: str
    name: str
    state: str
    checksum: str | None
    applied_at: Instant | None
    duration_ms: int | None


@dataclass(frozen=True, eq=False, repr=False)
class SchemaStatus(Value):
    """Where one tenant's schema stands, from the record alone."""

    tenant: str
    server: str
    state: State
    schema_version: str | None
    latest_version: str | None
    pending: int
    error: Failure | None
    ahead: int = 0


@dataclass(frozen=True, eq=False, repr=False)
class Outcome(Value):
    """What a fleet command did to one tenant; *seconds* is wall time."""

    tenant: str
    server: str
    status: str
    changed: bool
    from_: str | None
    to: str | None
    seconds: float
    error: "OutcomeError | None" = None


@dataclass(frozen=True, eq=False, repr=False)
class OutcomeError(Value):
    """Why one tenant of a fleet failed or was skipped."""

    message: str
    sqlstate: str | None = None
    file: str | None = None
    line: int | None = None
    statement: str | None = None


@dataclass(frozen=True, eq=False, repr=False)
class User(Value):
    """A web or mobile user of a tenant."""

    id: UUID
    username: str
    user_type: str
    device_id: str | None
    enrolled_at: Instant | None
    created_at: Instant


@dataclass(frozen=True, eq=False, repr=False)
class Token(Value):
    """An enrollment token without its secret; *status* is active, used, expired or revoked."""

    id: UUID
    tenant: str
    label: str | None
    status: str
    created_by: str
    created_by_id: UUID
    created_at: Instant
    expires_at: Instant
    used_at: Instant | None
    revoked_at: Instant | None
    device_id: str | None
    username: str | None


@dataclass(frozen=True, eq=False, repr=False)
class IssuedToken(Value):
    """A token just made, with its secret: the only value that shows one."""

    details: Token
    token: UUID = field(repr=False)
    enrollment_url: str = field(repr=False)
    lifetime: timedelta = timedelta(0)


@dataclass(frozen=True, eq=False, repr=False)
class Purged(Value):
    """How many tokens a purge deleted from a tenant."""

    tenant: str
    server: str
    deleted: int
    changed: bool


@dataclass(frozen=True, eq=False, repr=False)
class Device(Value):
    """A phone; *last_activity* is when it last fetched messages, *pending* how many wait for it."""

    device_id: str
    user_id: UUID
    username: str
    enrolled_at: Instant | None
    last_activity: Instant | None
    sync_status: str | None
    pending: int


@dataclass(frozen=True, eq=False, repr=False)
class Enrollment(Value):
    """A completed enrollment."""

    tenant: str
    user_id: UUID
    username: str
    device_id: str
    token_id: UUID
    enrolled_at: Instant


@dataclass(frozen=True, eq=False, repr=False)
class Message(Value):
    """A message between two users of a tenant."""

    id: UUID
    sender: str
    recipient: str
    content: str
    status: str
    created_at: Instant
    synced_at: Instant | None
    read_at: Instant | None
    sender_id: UUID
    recipient_id: UUID


@dataclass(frozen=True, eq=False, repr=False)
class Unread(Value):
    """How many messages a user has not read."""

    user: str
    unread: int


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


@dataclass(frozen=True, eq=False, repr=False)
class ServerInfo(Value):
    """One configured server; *error* says why it could not be asked.

    *size_bytes* is what its tenants take, None where that would have taken too long; *role* is the login,
    *record_owner* the role whose databases' records are trusted, None where there is none yet; *version_number* is
    PostgreSQL's `server_version_num`: 180006 for 18.6, 190000 for a beta of 19.
    """

    server: str
    reachable: bool
    source: str
    version: str | None = None
    tenants: int | None = None
    size_bytes: int | None = None
    connections: int | None = None
    max_connections: int | None = None
    role: str | None = None
    record_owner: str | None = None
    warnings: tuple[str, ...] = ()
    error: str | None = None
    version_number: int | None = None


@dataclass(frozen=True, eq=False, repr=False)
class EmbeddedStatus(Value):
    """The embedded server as it stands; *listen* is the address that local programs reach it by, if there is one."""

    running: bool
    pid: int | None
    version: str | None
    data_dir: Path
    dsn: str | None
    listen: str | None = None
    changed: bool | None = None


@dataclass(frozen=True, eq=False, repr=False)
class Setting(Value):
    """One configuration value and where it came from; secrets masked."""

    key: str
    value: str
    origin: str


@dataclass(frozen=True, eq=False, repr=False)
class Adoption(Value):
    """A database taken in as a tenant.

    *made* is what was added to its schema, *own* what it has beyond a tenant's and keeps, *changes* says in
    words what its roles gained and lost.
    """

    tenant: str
    server: str
    state: State
    schema_version: str | None
    url: str | None
    changed: bool
    made: tuple[str, ...] = ()
    own: tuple[str, ...] = ()
    changes: tuple[str, ...] = ()
