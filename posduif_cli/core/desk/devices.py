"""Devices: the phones that enrolled."""

from posduif_cli.core.desk import users
from posduif_cli.db import queries
from posduif_cli.db.session import Session
from posduif_cli.errors import Conflict, DeviceNotFound, Run
from posduif_cli.models.desk import Device, User
from posduif_cli.notation import moment


def find_all(conn: Session, *, named: str | None = None, limit: int = 1000, offset: int = 0) -> list[Device]:
    """Return the devices of a tenant, by the names of their users; displaced ones after them.

    *named* is a device's id or a user's name, which several may have.
    """
    return conn.rows(Device, queries.load("desk/devices")["list_devices"], device=named, limit=limit, offset=offset)


def find(conn: Session, *, device: str) -> Device:
    """Return one device, by its id or its user's name; raises DeviceNotFound, which says why for a displaced one."""
    found = conn.row(Device, queries.load("desk/devices")["list_devices"], device=device, limit=1, offset=0)
    if found is None or found.user_id is None:
        raise DeviceNotFound(
            f'device "{device}" is not enrolled in tenant {conn.database}',
            why=f"it enrolled at {found.enrolled_at and moment(found.enrolled_at)}; {found.note}" if found else None,
            hint=Run("device", "list", conn.database),
        )
    return found


def remove(conn: Session, *, device: str) -> tuple[User | Device, bool]:
    """Take a device, named by its id or its user, from its user; return the user and whether it had one.

    The user and its messages stay. The phone is not shut out: the sync engine serves any device id. A displaced device,
    which has no user any more, is noted as let go and returned. Raises UserNotFound, and Conflict for a web user.
    """
    named = queries.load("desk/devices")
    known = conn.row(Device, named["list_devices"], device=device, limit=1, offset=0)
    if known is not None and known.user_id is None:
        with conn.transaction():
            release(conn, device=known.device_id)
        return known, True
    user = users.find(conn, str(known.user_id) if known and known.user_id else device)
    if user.user_type != "mobile":
        raise Conflict(
            f'user "{user.username}" is a {user.user_type} user', why="a device is taken from mobile users only"
        )
    with conn.transaction():
        [(held, _)] = conn.tuples(named["lock_user"], id=user.id)
        if held is not None:
            conn.execute(named["clear_device"], id=user.id)
            release(conn, device=held)
    return users.find(conn, str(user.id)), held is not None


def release(conn: Session, *, device: str) -> None:
    """Note that a device was let go on purpose, and delete its synchronisation row; part of a transaction."""
    conn.execute(queries.load("desk/devices")["delete_sync_metadata"], device=device)
    conn.execute(queries.load("desk/tokens")["release_device"], device=device)
