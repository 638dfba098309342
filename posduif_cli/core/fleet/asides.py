"""Databases that restores over a tenant made or set aside: their records say of whom they are copies."""

from typing import Any

from posduif_cli.db import queries, record
from posduif_cli.db.record import Record
from posduif_cli.db.session import Session
from posduif_cli.models.copies import Aside

COPY = "copy"  # the record's key


def copied(noted: Record) -> dict[str, Any]:
    """Return what a record says of the tenant that its database is a copy of; {} where it is none."""
    copy = noted.extra.get(COPY)
    return copy if isinstance(copy, dict) else {}


def asides(session: Session, tenant: str | None = None) -> list[Aside]:
    """Return the databases on a server that restores made or set aside, of one tenant or of all."""
    found = []
    for row in session.dicts(queries.load("fleet/fleet")["list_asides"]):
        noted = record.parse(row["record"])
        copy = copied(noted) if noted else {}
        of = copy.get("of")
        if isinstance(of, str) and tenant in (None, of):
            since, until = record.instant(copy.get("since")), record.instant(copy.get("until"))
            backup = copy.get("backup") if isinstance(copy.get("backup"), str) else None
            found.append(
                Aside(
                    of, session.server.name, row["database"], backup, since, until, row["size_bytes"], (), row["busy"]
                )
            )
    return found
