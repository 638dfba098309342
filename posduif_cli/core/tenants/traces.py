"""What is under a tenant's name on a server, ours or not, and changing its record under the lock."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from posduif_cli.core.fleet.fleet import Fleet, wrong_state
from posduif_cli.db import admin, queries, record
from posduif_cli.db.record import Intent, Record
from posduif_cli.db.session import ADMIN_ROLE, Session
from posduif_cli.errors import (
    NotOurs,
)
from posduif_cli.models.tenants import State

# A tenant's own tables and roles are locked for moments only, save by an engine that means to be in the way.
BRIEFLY = timedelta(seconds=2)


@dataclass(frozen=True)
class Traces:
    """What stands under a tenant's name on one server."""

    owner: str | None
    record: str | None
    open: bool | None
    connection_limit: int | None
    has_role: bool | None
    intent: str | None
    at: datetime


def find(session: Session, name: str) -> Traces:
    """Return what is under a tenant's name on the server of *session*."""
    found = session.row(Traces, queries.load("tenants/tenants")["find_traces"], name=name, role=admin.engine_role(name))
    assert found is not None
    return found


def intent_of(traces: Traces, name: str) -> Intent | None:
    """Return the intent on a tenant's engine role; None when there is none, or it is a copy of another's."""
    intent = record.parse_intent(traces.intent)
    return intent if intent is not None and intent.tenant == name else None


def is_ours(traces: Traces, intent: Intent | None) -> bool:
    """Whether the database is posduif's to drop: it is recorded, half made, or half dropped."""
    marks = (-2, intent.nonce if intent else -2)
    return traces.owner == ADMIN_ROLE and (record.parse(traces.record) is not None or traces.connection_limit in marks)


def require_free(traces: Traces, name: str, intent: Intent | None) -> None:
    """Raise NotOurs when a database or role of this name is someone else's."""
    role = admin.engine_role(name)
    if traces.has_role and intent is None and record.parse_intent(traces.intent) is None:
        raise NotOurs(
            f"role {role} exists and is not posduif's",
            why="it lacks posduif's comment, or a login that is no superuser may administer it; it was left alone",
            hint=f"choose another name for the tenant, or a superuser types: DROP ROLE {role};",
        )
    made_by_us = (
        intent is not None
        and traces.owner == ADMIN_ROLE
        and (traces.connection_limit == intent.nonce or record.parse(traces.record) is not None)
    )
    if traces.owner is not None and not made_by_us:
        raise NotOurs(
            f"database {name} exists and is not posduif's",
            why=f"it belongs to {traces.owner} and has no record; it was not touched",
            hint="choose another name for the tenant",
        )


def write_both(conn: Session, changed: Record) -> None:
    """Write record and intent, in the transaction under way, from the tenant's own database."""
    record.write(conn, changed)
    traces = find(conn, conn.database)
    intent = record.parse_intent(traces.intent)
    if intent is not None:
        record.put_intent(conn, admin.engine_role(conn.database), replace(intent, state=changed.state))


@contextmanager
def changing(fleet: Fleet, name: str, *states: State) -> Iterator[tuple[Session, Record]]:
    """Hold a tenant's lock in one transaction for a change of its record; raises WrongState, Busy."""
    server, tenant = fleet.find(name)
    if tenant.state not in states:
        raise wrong_state(tenant)
    with fleet.enter(server, name) as conn:
        conn.require_admin()
        with conn.lock(name), conn.transaction(lock_timeout=BRIEFLY):
            current = record.read(conn)
            if current.state not in states:
                raise wrong_state(replace(tenant, state=current.state))
            yield conn, current
