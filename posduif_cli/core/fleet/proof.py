"""Proofs: whether a server behaves as PostgreSQL does where posduif relies on that; its version says too little."""

import secrets
from collections.abc import Iterator
from contextlib import suppress

from posduif_cli.core.fleet.fleet import Fleet, Session
from posduif_cli.db import admin, connect, queries, record
from posduif_cli.db.quoting import compose, identifier, literal
from posduif_cli.db.record import Intent
from posduif_cli.db.session import LOCK_CLASS
from posduif_cli.errors import AccessDenied, Busy, NotEnough, PosduifError
from posduif_cli.models.tenants import State

PREFIX = "posduif_proof_"
LOCKS = "an advisory lock does not keep a second session out"
CLOSED = "a new database does not stay closed with the connection limit that it was given"
TOGETHER = "DDL and the comment on its database do not roll back together"
SCRAM = "it takes no SCRAM verifier as a password"


def require_locks(fleet: Fleet, session: Session) -> None:
    """Raise NotEnough unless a lock that *session* holds keeps a second session out; nothing is written.

    That the server's process is the connection's own is proved whenever a session begins.
    """
    subject = PREFIX + secrets.token_hex(6)
    with session.lock(subject), fleet.maintenance(session.server) as second:
        if second.value(queries.load("fleet/proof")["try_lock"], **{"class": LOCK_CLASS, "subject": subject}):
            raise missing(session, [LOCKS])


def require_all(fleet: Fleet, session: Session) -> None:
    """Raise NotEnough, naming all that is missing, having tried it with a scratch database and role.

    They are dropped afterwards, and so are those of runs that were killed. The server has posduif's roles.
    """
    require_locks(fleet, session)
    with session.lock(PREFIX):
        _sweep(session)
        try:
            if lacks := list(_try(fleet, session, PREFIX + secrets.token_hex(6))):
                raise missing(session, lacks)
        finally:
            with suppress(PosduifError):
                _sweep(session)


def _try(fleet: Fleet, session: Session, name: str) -> Iterator[str]:
    named = queries.load("fleet/proof")
    intent = Intent(name, State.PROVISIONING, admin.new_nonce())
    role = identifier(name)
    verifier = literal(session.scram("proof", name))
    try:
        session.execute(compose("CREATE ROLE {role}", role=role))
        session.execute(compose("ALTER ROLE {role} PASSWORD {verifier}", role=role, verifier=verifier))
    except PosduifError:
        yield SCRAM
    admin.create_database(session, intent)
    found = session.dicts(named["look_at_scratch"], name=name)[0]
    if (found["open"], found["connection_limit"]) != (False, intent.nonce):
        yield CLOSED
    session.execute(compose("ALTER DATABASE {name} ALLOW_CONNECTIONS true CONNECTION LIMIT -1", name=role))
    with connect.connect(session.server, name, command=fleet.command) as inside:
        comment = compose("COMMENT ON DATABASE {name} IS {text}", name=role, text=literal(record.PREFIX))
        with suppress(PosduifError), inside.transaction(rollback=True):
            inside.execute("CREATE TABLE public.proof ()")
            inside.execute(comment)
        left = inside.value("SELECT to_regclass('public.proof') IS NOT NULL")
    if left or session.dicts(named["look_at_scratch"], name=name)[0]["comment"] is not None:
        yield TOGETHER


def _sweep(session: Session) -> None:
    """Drop what is left of proofs, except what other people gave such a name."""
    for name, is_database in session.tuples(queries.load("fleet/proof")["list_scratch"], prefix=PREFIX):
        kind = "DATABASE" if is_database else "ROLE"
        with suppress(AccessDenied, Busy):
            session.script(session.text(compose(f"DROP {kind} IF EXISTS {{name}}", name=identifier(name))))


def missing(session: Session, lacks: list[str]) -> NotEnough:
    """Return the error that says what a server lacks."""
    return NotEnough(
        f"server {session.server.name} is not PostgreSQL enough",
        why="; ".join(lacks),
        hint="use PostgreSQL 15 to 18 itself; what only speaks its protocol does not keep tenants safe",
    )
