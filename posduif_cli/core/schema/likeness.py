"""Likeness: tenants whose catalogs have the same rows have the same schema, and one of them need be looked at."""

import hashlib
import re
from collections.abc import Collection, Iterator, Sequence
from typing import Any

from posduif_cli.core.schema import inventory
from posduif_cli.core.schema.inventory import Thing
from posduif_cli.db import queries
from posduif_cli.db.session import Session

_OID = re.compile(r"(?<![0-9A-Za-z])[1-9][0-9]{4,9}(?![0-9A-Za-z])")  # also within a name, as of a constraint's trigger


def catalogs(conn: Session) -> tuple[list[int], str]:
    """Return the rows of a tenant's catalogs: the OIDs of its own objects, and all rows as text."""
    return of_answer(conn, conn.tuples(queries.load("schema/inventory")["read_catalogs"]))


def of_answer(conn: Session, rows: Sequence[tuple[Any, ...]]) -> tuple[list[int], str]:
    """Return the same from the answer to `read_catalogs`, which says whether there is more to be asked for."""
    oids, text, more = rows[0]
    if not more:
        return oids, text
    further, rest = conn.tuples(queries.load("schema/inventory")["read_rare_catalogs"])[0]
    return oids + (further or []), f"{text}\n{rest}"


def marks(conn: Session, oids: Sequence[int], text: str, applied: Collection[str] = ()) -> Iterator[str]:
    """Yield two hashes of a tenant's catalogs and versions, and of its server, whose roles the rows refer to.

    The second has the ranks of the tenant's own OIDs in their place: they differ where each ran its migrations.
    """

    def digest_of(rows: str) -> str:
        return hashlib.sha256("\n".join([conn.server.name, *sorted(applied), rows]).encode()).hexdigest()

    yield digest_of(text)
    ranks = {str(oid): f"#{rank}" for rank, oid in enumerate(oids)}
    yield digest_of(_OID.sub(lambda oid: ranks.get(oid[0], oid[0]), text))


def shape(things: tuple[Thing, ...]) -> str:
    """Condense a schema without owners and rights."""
    return inventory.digest(thing for thing in things if thing.kind not in ("grant", "owner"))
