"""Test messages: send one to a phone and follow it until it is read, or until the time is over."""

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta

from posduif_cli.core.desk import devices, messages, users
from posduif_cli.core.fleet.fleet import Place
from posduif_cli.db import queries
from posduif_cli.db.admin import engine_role
from posduif_cli.db.patience import Patience
from posduif_cli.db.session import Session
from posduif_cli.errors import DeviceNotFound, Hint, Interrupted, Run, UsageError
from posduif_cli.models.desk import Device, Trial
from posduif_cli.models.tenants import State
from posduif_cli.models.values import Instant
from posduif_cli.notation import moment

TEXT = "posduif test message of {at}"
PAUSE = timedelta(milliseconds=250)  # between two looks
SHOWN = 10  # users that an error names


def begin(place: Place, *, recipient: str | None = None, sender: str | None = None) -> tuple[Trial, Instant | None]:
    """Send a marked message to a user's phone, to the only one without *recipient*; *sender* is else the desk's user.

    Return it, and when that phone was last active.

    Raises WrongState for a tenant that is not active, UserNotFound, DeviceNotFound for a user without a phone,
    UsageError where it is not clear who is meant.
    """
    tenant, conn = place.tenant, place.session
    place.require(State.ACTIVE)
    device = _device(conn, recipient)
    desk = place.record.desk if place.record else None
    author = users.at_desk(conn, sender, desk, deed="send the message", command=("message", "test"), option="--from")
    at = conn.value(queries.load("desk/messages")["read_clock"])
    text = TEXT.format(at=moment(at))
    sent = messages.send(place, sender=str(author.id), recipient=str(device.user_id), text=text)
    trial = Trial(
        tenant=tenant.tenant,
        id=sent.id,
        sender=author.username,
        recipient=sent.recipient,
        device_id=device.device_id,
        text=text,
        stage="pending",
        sent_at=sent.created_at,
    )
    return trial, device.last_activity


def _device(conn: Session, recipient: str | None) -> Device:
    """Return the phone that is to fetch the message."""
    if recipient is not None:
        user = users.find(conn, recipient)
        if user.device_id is None:
            raise DeviceNotFound(
                f'{user.user_type} user "{user.username}" of tenant {conn.database} has no phone',
                hint=Run("token", "create", conn.database, "--for", user.username)
                if user.user_type == "mobile"
                else Run("device", "list", conn.database),
            )
        return next(device for device in devices.find_all(conn, named=user.username) if device.user_id == user.id)
    found = [device for device in devices.find_all(conn, limit=SHOWN + 1) if device.username is not None]
    if not found:
        raise DeviceNotFound(f"tenant {conn.database} has no phone", hint=Run("token", "create", conn.database))
    if len(found) > 1:
        names = [str(device.username) for device in found]
        raise UsageError(
            f"tenant {conn.database} has several phones: say whose is meant",
            why=", ".join(names[:SHOWN]) + (" and more" if len(found) > SHOWN else ""),
            hint=Run("message", "test", conn.database, "--to", names[0]),
        )
    return found[0]


def follow(
    conn: Session, trial: Trial, *, before: Instant | None, wait: timedelta, tell: Callable[[Trial], None]
) -> Trial:
    """Watch a test message until it is read or *wait* is over; *tell* is called with each stage that it reaches.

    *before* is when the phone was last active.

    Return how far it came: `pending`, `fetched` or `read`. Of a pending one *stopped* says where it stopped.
    """
    question, seen = queries.load("desk/messages")["follow_message"], False
    patience = Patience("message", limit=wait, pause=PAUSE)
    try:
        while True:
            rows = conn.tuples(question, id=trial.id, role=engine_role(conn.database))
            if not rows:  # deleted with its user
                messages.find(conn, message=str(trial.id))
            [(status, fetched_at, read_at, sessions)] = rows
            seen = seen or sessions > 0
            stage = {"pending_sync": "pending", "synced": "fetched"}.get(status, "read")
            if stage != trial.stage:
                trial = replace(trial, stage=stage, fetched_at=fetched_at or read_at, read_at=read_at)
                tell(trial)
            if stage == "read" or not patience.again():
                break
    except KeyboardInterrupt:
        raise Interrupted(
            f"interrupted; message {trial.id} stays and is {trial.stage}",
            hint=Run("message", "show", trial.tenant, str(trial.id)),
        ) from None
    if trial.stage != "pending":
        return trial
    since = f"since {moment(before)}" if before else "for messages yet"
    role, name = engine_role(conn.database), trial.tenant
    fix: Hint
    if seen:
        stopped = f"the engine is connected, but phone {trial.device_id} has not asked {since}"
        fix = Run("device", "list", name, lead="open the app on the phone; if another phone has its user")
    else:
        stopped = f"no engine: no session of {role} was seen, and the phone has not asked {since}"
        fix = Run("tenant", "verify", name, lead="start the engine, or read its log; if it cannot log in")
    if conn.groups and not seen:
        return replace(trial, stopped=stopped, fix=f"ask an administrator to look after the engine of tenant {name}")
    return replace(trial, stopped=stopped, fix=fix)
