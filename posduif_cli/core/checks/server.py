"""What a server is, and whether its roles and settings suit its tenants."""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from posduif_cli.core.fleet.fleet import Fleet, Session, naming
from posduif_cli.db import admin, queries, quoting
from posduif_cli.db.session import ADMIN_ROLE
from posduif_cli.errors import Hint, PosduifError, QueryFailed, Run
from posduif_cli.models.checks import Finding, Level
from posduif_cli.models.servers import Server, ServerInfo

SPARE_CONNECTIONS = 10  # for people, backups and monitoring
BACKUP_WAL_SENDERS = 2  # what pg_basebackup takes
LOOPBACK = ("", "localhost", "127.0.0.1", "::1")


@dataclass(frozen=True)
class _Room:
    """The settings that bear on how many engines there is room for."""

    max_connections: int
    reserved: int
    wal_senders: int
    ssl: bool
    listen_addresses: str
    tenants: int
    is_open: bool
    is_superuser: bool
    owns: bool

    @property
    def may_close(self) -> bool:
        """Whether the login may close the maintenance database to PUBLIC."""
        return self.is_superuser or self.owns


def measure(session: Session) -> _Room:
    """Return the settings of a server that decide how many engines there is room for."""
    named, count = queries.load("checks/server"), queries.load("fleet/fleet")["count_tenants"]
    limits = session.dicts(queries.load("fleet/fleet")["measure_connections"])[0]
    return _Room(
        max_connections=limits["max_connections"],
        reserved=limits["reserved"],
        tenants=session.value(count, sizes=False),
        **session.dicts(named["find_room"])[0],
    )


def judge(session: Session, engines: int | None = None) -> Iterator[Finding]:
    """Check a server's roles and settings for a number of engines, by default one a tenant."""
    room, server = measure(session), session.server
    number = max(room.tenants, 1) if engines is None else engines
    missing = admin.missing_roles(session)
    yield _finding(
        server,
        "roles",
        Level.CRITICAL if missing else Level.OK,
        f"missing: {', '.join(missing)}" if missing else f"{', '.join(admin.ROLE_COMMENTS)} are there",
        fix=Run("server", "init", *naming(server)) if missing else None,
    )
    yield from _people(session)
    pool = admin.engine_limit(admin.configured_pool(server))
    wanted = number * pool + server.max_connections + room.reserved + SPARE_CONNECTIONS
    short = room.max_connections < wanted
    yield _finding(
        server,
        "max_connections",
        Level.WARNING if short else Level.OK,
        f"{number} engine{'s' if number > 1 else ''} of up to {pool} connections, posduif and "
        f"{room.reserved + SPARE_CONNECTIONS} in reserve want {wanted}; the server allows {room.max_connections}",
        value=room.max_connections,
        fix=f"ALTER SYSTEM SET max_connections = {wanted}; -- and restart the server" if short else None,
    )
    few = room.wal_senders < BACKUP_WAL_SENDERS
    yield _finding(
        server,
        "max_wal_senders",
        Level.WARNING if few else Level.OK,
        f"engines take none, for WAL mode stays off; a base backup takes {BACKUP_WAL_SENDERS}, each standby one; "
        f"the server allows {room.wal_senders}",
        value=room.wal_senders,
        fix=f"ALTER SYSTEM SET max_wal_senders = {BACKUP_WAL_SENDERS * 5}; -- and restart the server" if few else None,
    )
    local = all(address.strip() in LOOPBACK for address in room.listen_addresses.split(","))
    exposed = not room.ssl and not local
    yield _finding(
        server,
        "ssl",
        Level.WARNING if exposed else Level.OK,
        "TLS is offered"
        if room.ssl
        else "no TLS is offered, and the server listens on this machine alone"
        if local
        else f"no TLS is offered, and the server listens on {room.listen_addresses}: all crosses the network in clear",
        value="on" if room.ssl else "off",
        fix="ALTER SYSTEM SET ssl = on; -- with ssl_cert_file and ssl_key_file, then SELECT pg_reload_conf()"
        if exposed
        else None,
    )
    yield _finding(
        server,
        "open_database",
        Level.INFO if room.is_open else Level.OK,
        f"every role may connect to database {session.database} and read the records there: names, versions, urls"
        if room.is_open
        else f"database {session.database} is closed to PUBLIC",
        fix=None
        if not room.is_open
        else Run("server", "init", "--close", *naming(server))
        if room.may_close
        else f"a superuser types: {'; '.join(admin.closing_statements())};",
    )


def _people(session: Session) -> Iterator[Finding]:
    """Check who may act for posduif, and what posduif may not do."""
    server, named = session.server, queries.load("checks/server")
    if session.superuser:
        yield _finding(
            server,
            "superuser",
            Level.WARNING,
            f"{session.login} is a superuser: code in a tenant's database could make its author one",
            fix=Run("server", "init", "--login", "NAME", *naming(server)),
        )
    for role, holders, members in session.tuples(named["list_members"], roles=list(admin.ROLE_COMMENTS)):
        if members or holders:
            odd = holders and role in (ADMIN_ROLE, admin.ENGINE_GROUP)
            text = f"members of {role}: {members or 'none'}" + (f"; may add members: {holders}" if holders else "")
            yield _finding(server, "members", Level.INFO if odd else Level.OK, text, value=role)
    for (role,) in session.tuples(named["find_unadministered"]):
        yield _finding(
            server,
            "engine_roles",
            Level.WARNING,
            f"{ADMIN_ROLE} may not alter {role}: the server was upgraded from PostgreSQL 15",
            fix=f"a superuser types: GRANT {quoting.quoted(role)} TO {ADMIN_ROLE} WITH ADMIN OPTION;",
        )
    roles, _ = session.tuples(named["find_unmonitored"])[0]
    if roles:
        text = f"{' and '.join(roles)} cannot see what other people's sessions do"
        fix = f"a superuser types: GRANT pg_monitor TO {', '.join(roles)};"
        yield _finding(server, "monitoring", Level.INFO, text, fix=fix)


def _finding(
    server: Server, check: str, level: Level, message: str, *, value: int | str | None = None, fix: Hint | None = None
) -> Finding:
    return Finding(check, "server", server.name, level, message, value=value, fix=fix)


SIZES_PATIENCE = timedelta(seconds=5)


def list_all(fleet: Fleet) -> list[ServerInfo]:
    """Ask every server how it is; one that cannot be asked is in the list with its error."""

    def describe(session: Session) -> dict[str, Any]:
        named, count = queries.load("checks/server"), queries.load("fleet/fleet")["count_tenants"]
        row = session.dicts(named["describe_server"])[0]
        row["warnings"] = tuple(_warnings(session, row))
        found = session.dicts(queries.load("fleet/fleet")["measure_connections"])[0]
        row |= {"connections": found["used"], "max_connections": found["max_connections"]}
        row |= session.dicts(count, sizes=False)[0]
        with suppress(QueryFailed), session.transaction(statement_timeout=SIZES_PATIENCE):
            row |= session.dicts(count, sizes=True)[0]
        return {key: row[key] for key in row if not key.startswith("is_")}

    answers = fleet.ask(describe)
    return [_info(server, answers[server.name]) for server in fleet.servers]


def _info(server: Server, answer: dict[str, Any] | PosduifError) -> ServerInfo:
    if isinstance(answer, PosduifError):
        return ServerInfo(server.name, False, server.origin, error=answer.sentence)
    return ServerInfo(server=server.name, reachable=True, source=server.origin, **answer)


def _warnings(session: Session, row: dict[str, Any]) -> Iterator[Hint]:
    option = naming(session.server)
    if row["is_superuser"]:
        text = f"{row['role']} is a superuser, and code in a tenant's database could make its author one"
        yield Run("server", "init", "--login", "NAME", *option, lead=text)
    if row["is_open"]:
        text = f"PUBLIC may connect to {session.database}"
        may_close = row["is_superuser"] or row["is_owner"]
        yield Run("server", "init", "--close", *option, lead=text) if may_close else f"{text}; its owner can end that"
    if row["is_standby"]:
        yield "it is a standby and takes no changes"
    elif row["record_owner"] is None:
        yield Run("server", "init", *option, lead="it has no posduif roles yet")
    elif not session.member:
        yield f"{row['role']} is no member of {row['record_owner']} and cannot change tenants"
    elif session.heir is False:
        yield f"{row['role']} does not inherit the rights of {row['record_owner']} and cannot enter tenants"
