"""Whose the database and the role under a tenant's name are, and changing a tenant's record under its lock."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta

from posduif_cli.core.fleet.fleet import Fleet, Found, Traces
from posduif_cli.db import admin, record
from posduif_cli.db.record import Intent, Record
from posduif_cli.db.session import ADMIN_ROLE, Session
from posduif_cli.errors import NotOurs
from posduif_cli.models.tenants import State

# A tenant's own tables and roles are locked for moments only, except by an engine that means to be in the way.
BRIEFLY = timedelta(seconds=2)


def is_ours(there: Traces) -> bool:
    """Whether the database is posduif's to drop: it is recorded, half made, or half dropped."""
    marks = (-2, there.intent.nonce if there.intent else -2)
    return there.owner == ADMIN_ROLE and (there.record is not None or there.connection_limit in marks)


def require_free(there: Traces) -> None:
    """Raise NotOurs when a database or role of this name is not posduif's."""
    role = admin.engine_role(there.name)
    if there.has_role and there.intent is None:
        raise NotOurs(
            f"role {role} exists and is not posduif's",
            why="it lacks posduif's comment, or a login that is no superuser may administer it; it was left alone",
            hint=f"choose another name for the tenant, or a superuser types: DROP ROLE {role};",
        )
    half_made = there.intent is not None and there.connection_limit == there.intent.nonce
    recorded = there.intent is not None and there.record is not None
    if there.owner is not None and not (there.owner == ADMIN_ROLE and (half_made or recorded)):
        raise NotOurs(
            f"database {there.name} exists and is not posduif's",
            why=f"it belongs to {there.owner} and has no record; it was not touched",
            hint="choose another name for the tenant",
        )


def write_both(conn: Session, changed: Record, intent: Intent | None) -> None:
    """Write the record, and the state into the *intent*, in the transaction under way in the tenant's own database."""
    record.write(conn, changed)
    if intent is not None:
        record.put_intent(conn, admin.engine_role(conn.database), replace(intent, state=changed.state))


@contextmanager
def changing(fleet: Fleet, found: Found, *states: State) -> Iterator[tuple[Session, Record]]:
    """Hold a tenant's lock in one transaction for a change of its record; yield the session and the record.

    Raises WrongState unless the record, read again under the lock, has one of *states*; Busy.
    """
    name = found.tenant.tenant
    with fleet.enter(found.server, name) as conn:
        conn.require_admin()
        with conn.lock(name), conn.transaction(lock_timeout=BRIEFLY):
            current = record.read(conn)
            replace(found, tenant=replace(found.tenant, state=current.state)).require(*states)
            yield conn, current
