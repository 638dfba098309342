"""Templates: a server's database with the bundled migrations applied, which new tenants are copied from.

It holds nothing but these: files of further folders may seed what has to differ from tenant to tenant.
"""

import hashlib
from dataclasses import dataclass, replace

from posduif_cli.core.fleet.fleet import Fleet, Session
from posduif_cli.core.folders import Folders
from posduif_cli.core.schema import apply
from posduif_cli.db import admin, connect, queries, record
from posduif_cli.db.record import Record
from posduif_cli.errors import PosduifError
from posduif_cli.models.tenants import State

PREFIX = "posduif_template_"
WORTHWHILE = 4  # tenants per server; to make a template takes as long as one or two tenants, and saves a third of each


@dataclass(frozen=True)
class Template:
    """A database to copy; *schema* and *applied* are what its record says of the migrations in it."""

    name: str
    schema: str | None
    applied: str | None


def ready(session: Session, folders: Folders) -> Template | None:
    """Return the server's template, if it has one that is whole and as new as this posduif."""
    wanted = _name(folders)
    found = _list(session).get(wanted)
    return Template(wanted, found.schema, found.applied) if found and found.state is State.ACTIVE else None


def provide(session: Session, fleet: Fleet, *, coming: int) -> Template | None:
    """Return the server's template, made if need be; None for fewer than WORTHWHILE tenants with those *coming*."""
    found = ready(session, fleet.folders)
    count = queries.load("fleet/fleet")["count_tenants"]
    if found is None and session.value(count, sizes=False) + coming >= WORTHWHILE:
        return _make(session, fleet)
    return found


def _make(session: Session, fleet: Fleet) -> Template | None:
    """Make the server's template and drop those of other versions; None where it cannot be made, which does no harm."""
    wanted = _name(fleet.folders)
    try:
        with session.lock(PREFIX):
            if (found := ready(session, fleet.folders)) is not None:
                return found
            for name in _list(session):
                admin.drop_database(session, name)
            admin.create_template(session, wanted)
            record.put(session, wanted, Record(State.PROVISIONING))
            with connect.connect(session.server, wanted, command=fleet.command, path="public") as conn:
                apply.up(conn, folders=replace(fleet.folders, further=()), states=(State.PROVISIONING,))
                with conn.transaction():
                    record.write(conn, replace(record.read(conn), state=State.ACTIVE))
            return ready(session, fleet.folders)
    except PosduifError:
        return None


def _list(session: Session) -> dict[str, Record | None]:
    rows = session.tuples(queries.load("tenants/template")["list_templates"], prefix=PREFIX)
    return {name: record.parse(comment) for name, comment in rows}


def _name(folders: Folders) -> str:
    """Return a name made of what is in the template, so that another version of posduif never uses it."""
    content = hashlib.sha256()
    for path in (*folders.listing[0], queries.bundled("grants.sql")):
        content.update(path.read_bytes())
    return PREFIX + content.hexdigest()[:16]
