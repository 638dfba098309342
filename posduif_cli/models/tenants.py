"""Tenants, and what becomes of them."""

from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

from posduif_cli.models.values import HIDDEN, Instant, Value

ENGINE_PORT = 8080  # where an engine listens whose file names no port


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


@dataclass(frozen=True)
class Engine:
    """What a tenant's engine was given; None for what is not noted.

    *pool* is how many connections it opens at most, *web_pool* how many the web-api beside it opens; *port* is where it
    listens; *redis* is `HOST:PORT` where that is not the configured one, *redis_db* the number of its Redis database.
    """

    pool: int | None = None
    web_pool: int | None = None
    port: int | None = None
    redis: str | None = None
    redis_db: int | None = None


@dataclass(frozen=True, eq=False, repr=False)
class Tenant(Value):
    """One customer's database.

    *pending* counts the migrations that it lacks, *ahead* those that it has and this machine has no files for, as far
    as the record tells; *engine_sessions* counts those of the engine's role, and 0 do not mean that the engine is off:
    an idle one keeps none; *engine_may_log_in* is None without that role; *engine_port* is where the engine was told
    to listen, None where posduif chose nothing, *engine_pool* how many connections it was given; *size_bytes* is None
    unless it was asked for; *has_database* tells, of a lost tenant only, whether its database is there, with another
    owner or without its record, or gone.
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
    engine_port: int | None = None
    engine_pool: int | None = field(default=None, metadata=HIDDEN)


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
class Adoption(Value):
    """A database taken in as a tenant.

    *made* is what was added to its schema, *own* what it has beyond a tenant's and keeps, *changes* says in words what
    its roles gained and lost, *others* who else still reaches it and what keeps WAL for it, with what to type.
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
    others: tuple[str, ...] = ()
