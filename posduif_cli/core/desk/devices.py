"""Devices: the phones that enrolled."""

from posduif_cli.db import queries
from posduif_cli.db.session import Session
from posduif_cli.errors import DeviceNotFound, Run
from posduif_cli.models.desk import Device


def find_all(conn: Session, *, limit: int = 1000, offset: int = 0) -> list[Device]:
    """Return the devices of a tenant, by the names of their users."""
    return conn.rows(Device, queries.load("desk/devices")["list_devices"], device=None, limit=limit, offset=offset)


def find(conn: Session, *, device: str) -> Device:
    """Return one device, by its id or the name of its user; raises DeviceNotFound."""
    found = conn.row(Device, queries.load("desk/devices")["list_devices"], device=device, limit=1, offset=0)
    if found is None:
        raise DeviceNotFound(
            f'device "{device}" is not enrolled in tenant {conn.database}',
            hint=Run("device", "list", conn.database),
        )
    return found
