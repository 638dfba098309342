"""Users, tokens, devices, enrollments, messages."""

from dataclasses import dataclass, field
from uuid import UUID

from posduif_cli.errors import Hint
from posduif_cli.models.values import Instant, Value


@dataclass(frozen=True, eq=False, repr=False)
class User(Value):
    """A web or mobile user of a tenant."""

    id: UUID
    tenant: str
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
    used_at: Instant | None = None
    revoked_at: Instant | None = None
    device_id: str | None = None
    username: str | None = None


@dataclass(frozen=True, eq=False, repr=False)
class IssuedToken(Value):
    """A token just made, with its secret: the only value that shows one."""

    details: Token
    token: UUID = field(repr=False)
    enrollment_url: str = field(repr=False)


@dataclass(frozen=True, eq=False, repr=False)
class Purged(Value):
    """How many tokens a purge deleted from a tenant."""

    tenant: str
    server: str
    deleted: int
    changed: bool


@dataclass(frozen=True, eq=False, repr=False)
class Device(Value):
    """A phone; *last_activity* is when it last fetched messages, *pending* how many wait for it.

    *state* is `enrolled`, or `displaced` for one that enrolled and whose user has no or another device: it has no user.
    *note* says what is odd about it.
    """

    device_id: str
    tenant: str
    user_id: UUID | None
    username: str | None
    enrolled_at: Instant | None
    last_activity: Instant | None
    sync_status: str | None
    pending: int
    user_type: str | None = None
    state: str = "enrolled"
    note: str | None = None


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
    """A message between two users of a tenant; *content* is None where the login may not read it."""

    id: UUID
    tenant: str
    sender: str
    recipient: str
    content: str | None
    status: str
    created_at: Instant
    synced_at: Instant | None
    read_at: Instant | None
    sender_id: UUID
    recipient_id: UUID


@dataclass(frozen=True, eq=False, repr=False)
class Trial(Value):
    """A test message and how far it came: *stage* is pending, fetched or read.

    *stopped* says where one stopped that was not fetched, *fix* is the first thing to type then.
    """

    tenant: str
    id: UUID
    sender: str
    recipient: str
    device_id: str
    text: str
    stage: str
    sent_at: Instant
    fetched_at: Instant | None = None
    read_at: Instant | None = None
    stopped: str | None = None
    fix: Hint | None = None


@dataclass(frozen=True, eq=False, repr=False)
class Unread(Value):
    """How many messages a user has not read."""

    user: str
    unread: int
