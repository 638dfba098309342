"""Enrollment: a phone spends a token and becomes a mobile user."""

from dataclasses import dataclass
from uuid import UUID

from posduif_cli.core import names
from posduif_cli.core.desk.users import UNIQUE_VIOLATION
from posduif_cli.db import queries
from posduif_cli.db.session import DESK_CLASS, Session
from posduif_cli.errors import (
    DeviceExists,
    QueryFailed,
    Run,
    TokenExpired,
    TokenNotFound,
    TokenRevoked,
    TokenUsed,
    UserExists,
)
from posduif_cli.models.desk import Enrollment
from posduif_cli.models.values import Instant
from posduif_cli.notation import moment


@dataclass(frozen=True)
class _LockedToken:
    id: UUID
    used_at: Instant | None
    revoked_at: Instant | None
    expires_at: Instant
    alive: bool
    device_id: str | None


def complete(conn: Session, *, token: str, device: str, username: str) -> Enrollment:
    """Spend a token, make the mobile user and its synchronisation row, all or nothing.

    Raises TokenNotFound, TokenUsed, TokenRevoked or TokenExpired; UserExists or DeviceExists, and then the
    token stays good: a name or a phone is never taken over.
    """
    secret = names.secret(token)
    names.device(device)
    names.username(username)
    named = queries.load("desk/enrollments")
    with conn.transaction():
        spendable = _spendable(conn, conn.row(_LockedToken, named["lock_token"], token=secret))
        conn.execute(named["lock_device"], **{"class": DESK_CLASS, "device": device})
        owner = conn.value(named["find_device_owner"], device=device)
        if owner is not None:
            raise DeviceExists(
                f'device "{device}" is enrolled already, as user "{owner}"',
                why="an enrollment never takes a device over; the token stays good",
                hint=Run("device", "show", conn.database, device),
            )
        try:
            made = conn.tuples(named["add_mobile_user"], username=username, device=device, token=spendable.id)
            user_id, enrolled_at = made[0]
        except QueryFailed as error:
            if error.sqlstate != UNIQUE_VIOLATION:
                raise
            raise UserExists(
                f'user "{username}" exists in tenant {conn.database}',
                why="an enrollment never takes a user over; the token stays good",
                hint="choose another --username",
            ) from error
        conn.execute(named["add_sync_metadata"], device=device)
        conn.execute(named["spend_token"], id=spendable.id, device=device)
    return Enrollment(conn.database, user_id, username, device, spendable.id, enrolled_at)


def _spendable(conn: Session, token: _LockedToken | None) -> _LockedToken:
    """Return a token that may be spent; raises TokenNotFound, TokenUsed, TokenRevoked or TokenExpired."""
    another = Run("token", "create", conn.database)
    if token is None:
        raise TokenNotFound(
            f"tenant {conn.database} does not know this enrollment token",
            why="it was mistyped, purged, or belongs to another tenant",
            hint=another,
        )
    if token.used_at is not None:
        raise TokenUsed(
            "this enrollment token was used already",
            why=f'device "{token.device_id}" enrolled with it at {moment(token.used_at)}',
            hint=another,
        )
    if token.revoked_at is not None:
        raise TokenRevoked("this enrollment token was revoked", why=f"at {moment(token.revoked_at)}", hint=another)
    if not token.alive:
        raise TokenExpired("this enrollment token has expired", why=f"at {moment(token.expires_at)}", hint=another)
    return token
