"""Dropping a tenant after a last backup of it, which is pinned: what brings it back."""

from collections.abc import Callable
from dataclasses import replace

from posduif_cli.core.copies.dump import Dumping
from posduif_cli.core.fleet.fleet import Fleet, Found
from posduif_cli.core.tenants import drop as tenants
from posduif_cli.db.session import Session
from posduif_cli.models.copies import Backup
from posduif_cli.models.tenants import Loss

WHY = "the last one before its tenant was dropped"


def drop(
    fleet: Fleet,
    found: Found,
    dumping: Dumping | None,
    *,
    confirmed: bool = False,
    confirm: Callable[[Loss], None] = lambda loss: None,
) -> tuple[Loss, bool, Backup | None]:
    """Drop a tenant as `tenants.drop` does, and make a last backup when its engine is shut out; return that, too.

    Without *dumping* none is made.
    """
    made: list[Backup] = []

    def last(conn: Session) -> None:
        assert dumping is not None
        made.append(replace(dumping, pin=WHY).dump(conn))

    loss, changed = tenants.drop(fleet, found, confirmed=confirmed, confirm=confirm, last=last if dumping else None)
    return loss, changed, made[0] if made else None
