"""PostgreSQL's errors made ours."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

import psycopg

from posduif_cli.db.quoting import quoted
from posduif_cli.errors import (
    AccessDenied,
    Blocked,
    Busy,
    Interrupted,
    PosduifError,
    QueryFailed,
    Run,
    ServerUnreachable,
    StandbyServer,
)
from posduif_cli.models.servers import Server

# What the groups of people may not do; each may do what a lower one of `sql/grants.sql` gives it.
MAY_NOT = {
    "posduif_backup": "may read everything, for backups, and change nothing",
    "posduif_cron": "may purge tokens and report health, and nothing else",
    "posduif_health": "may report health, and nothing else",
    "posduif_support": "may neither read texts, nor mark messages, nor delete users, messages or tokens, "
    "nor change a tenant or its schema",
}
ASK = "ask an administrator, a member of posduif_admin, to run this command"
PROTOCOL_VIOLATION = "08P01"  # such as a statement with a parameter that has no value: the connection is whole


class Asked(Protocol):
    """What an error tells of the session that it came from."""

    server: Server
    database: str
    login: str
    member: bool | None
    groups: tuple[str, ...]
    cancelled: bool
    bundled: str | None


@contextmanager
def translated(session: Asked) -> Iterator[None]:
    """Turn psycopg's errors inside the block into posduif's."""
    try:
        yield
    except psycopg.Error as error:
        raise translate(error, session) from error


def in_groups(session: Asked) -> str:
    """Return which of posduif's groups the login is in, and what these may not do."""
    return f"{session.login} is in " + "; and in ".join(f"{group}, which {MAY_NOT[group]}" for group in session.groups)


def translate(error: psycopg.Error, session: Asked) -> PosduifError:
    """Return the PosduifError for a psycopg error, without PostgreSQL's DETAIL: it quotes rows, which hold secrets."""
    state = error.sqlstate
    message = error.diag.message_primary or str(error).strip() or type(error).__name__
    where = f"server {session.server.name}, database {session.database}"
    if session.cancelled and (state is None or state == "57014"):
        return Interrupted("interrupted")
    broken = (state or "").startswith(("08", "57P")) and state != PROTOCOL_VIOLATION
    if broken or (state is None and isinstance(error, psycopg.OperationalError)):
        return ServerUnreachable(
            f"the connection to {where} broke",
            why=message,
            hint="run the same command again: it goes on where this one stopped",
        )
    if state == "42501" and "row-level security" in message:
        return AccessDenied(
            f"{where}: {message}",
            why="row-level security was switched on there, and it hides rows from this login or refuses them",
            hint=Run("tenant", "verify", session.database),
        )
    if state == "42501" and session.groups:
        return AccessDenied(f"{where}: {message}", why=in_groups(session), hint=ASK)
    if state == "42501":
        login = quoted(session.login)
        return AccessDenied(
            f"{where}: {message}",
            hint=Run("tenant", "verify", session.database)
            if session.member
            else f"a superuser or another administrator types: GRANT posduif_admin TO {login}; "
            "(posduif_support or posduif_health where that is enough)",
        )
    if state == "25006":
        return StandbyServer(f"{where} takes no changes", why=message)
    if state in ("55P03", "55006", "40P01"):
        kind = Busy if state == "55006" else Blocked
        blocked = kind(f"{where}: {message}", why=f"SQLSTATE {state}", hint="try again when the other work is done")
        if isinstance(blocked, Blocked):
            blocked.anonymous = True
        return blocked
    # What a record promises and the database does not have: the record was not written by who changed the schema.
    lacking = state in ("42P01", "42703") and session.bundled is not None
    return QueryFailed(
        f"{where}: {message}",
        hint=Run("tenant", "verify", session.database) if lacking else (),
        why=f"SQLSTATE {state}" + (f"; {error.diag.message_hint}" if error.diag.message_hint else ""),
        sqlstate=state,
        constraint=error.diag.constraint_name,
        position=int(error.diag.statement_position) if error.diag.statement_position else None,
    )
