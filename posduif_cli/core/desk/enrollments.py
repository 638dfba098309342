"""Enrollment: a phone spends a token and becomes a mobile user."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from posduif_cli.core import names
from posduif_cli.core.desk import devices, users
from posduif_cli.db import queries
from posduif_cli.db.session import DESK_CLASS, Session
from posduif_cli.errors import (
    Conflict,
    DeviceExists,
    DeviceNotFound,
    QueryFailed,
    Run,
    TokenExpired,
    TokenNotFound,
    TokenRevoked,
    TokenUsed,
    UserExists,
)
from posduif_cli.models.desk import Enrollment, User
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


def complete(
    conn: Session,
    *,
    token: str,
    device: str,
    username: str | None,
    replace_device: bool = False,
    re_enroll: bool = False,
) -> Enrollment:
    """Spend a token, make the mobile user and its synchronisation row, all or nothing.

    With *replace_device* the user exists and gets this device in place of its own; with *re_enroll* the device is
    enrolled and stays with its user. Raises TokenNotFound, TokenUsed, TokenRevoked or TokenExpired; UserExists,
    DeviceExists, UserNotFound, DeviceNotFound or Conflict, and then the token stays good.
    """
    secret = names.secret(token)
    names.device(device)
    if username is not None:
        names.username(username)
    named = queries.load("desk/enrollments")
    with conn.transaction():
        spendable = _spendable(conn, conn.row(_LockedToken, named["lock_token"], token=secret), secret)
        conn.execute(named["lock_device"], **{"class": DESK_CLASS, "device": device})
        owner = next(iter(conn.tuples(named["find_device_owner"], device=device)), None)
        given = {"device": device, "token": spendable.id}
        if re_enroll:
            user = _owner(conn, device, owner, username)
            devices.release(conn, device=device)  # or it would look as two phones that send one id
            made = conn.tuples(named["give_device"], user=user.id, **given)
        elif owner is not None:
            raise DeviceExists(
                f'device "{device}" is enrolled already, as user "{owner[1]}"',
                why="an enrollment never takes a device over; the token stays good",
                hint=[Run("device", "show", conn.database, device), "add --re-enroll if it is the same phone"],
            )
        elif replace_device:
            assert username is not None
            user = users.find(conn, username)
            _require_mobile(user)
            [(held, _)] = conn.tuples(queries.load("desk/devices")["lock_user"], id=user.id)
            if held is not None:
                devices.release(conn, device=held)
            made = conn.tuples(named["give_device"], user=user.id, **given)
        else:
            assert username is not None
            made = _add(conn, username, given)
        conn.execute(named["add_sync_metadata"], device=device)
        conn.execute(named["spend_token"], id=spendable.id, device=device)
    [(user_id, enrolled_at)] = made
    name = username if username is not None and not re_enroll else user.username
    return Enrollment(conn.database, user_id, name, device, spendable.id, enrolled_at)


def _add(conn: Session, username: str, given: Mapping[str, Any]) -> list[tuple[Any, ...]]:
    try:
        return conn.tuples(queries.load("desk/enrollments")["add_mobile_user"], username=username, **given)
    except QueryFailed as error:
        if error.sqlstate != users.UNIQUE_VIOLATION:
            raise
        raise UserExists(
            f'user "{username}" exists in tenant {conn.database}',
            why="an enrollment takes no user over by itself; the token stays good",
            hint=["choose another --username", "or add --replace-device if it is this user's new phone"],
        ) from error


def _owner(conn: Session, device: str, owner: tuple[Any, ...] | None, username: str | None) -> User:
    """Return the user who enrolls its device again; raises DeviceNotFound, Conflict."""
    if owner is None:
        raise DeviceNotFound(
            f'device "{device}" is not enrolled in tenant {conn.database}',
            why="so there is nothing to enroll again; the token stays good",
            hint=Run("device", "list", conn.database),
        )
    if username is not None and username != owner[1]:
        raise Conflict(
            f'device "{device}" belongs to user "{owner[1]}", not "{username}"',
            why="--re-enroll keeps the device's user; the token stays good",
            hint=Run("device", "remove", conn.database, device),
        )
    user = users.find(conn, str(owner[0]))
    _require_mobile(user)
    return user


def _require_mobile(user: User) -> None:
    if user.user_type != "mobile":
        raise Conflict(f'user "{user.username}" is a {user.user_type} user', why="only mobile users enroll a phone")


def _spendable(conn: Session, token: _LockedToken | None, secret: UUID) -> _LockedToken:
    """Return a token that may be spent; raises TokenNotFound, TokenUsed, TokenRevoked or TokenExpired."""
    another = Run("token", "create", conn.database)
    if token is None and conn.value(queries.load("desk/enrollments")["is_id"], id=secret):
        raise TokenNotFound(
            "this is the id of a token, not the token",
            why="the token is the last part of the enrollment URL, and only who created it was shown it",
            hint=another,
        )
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
