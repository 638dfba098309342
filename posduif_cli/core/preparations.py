"""Preparations: what a server needs before it holds tenants, made or spelled out for a DBA to run."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from posduif_cli.core import proofs
from posduif_cli.core.fleet import Fleet, Session
from posduif_cli.db import admin, connect, queries
from posduif_cli.errors import AccessDenied, InvalidName, NoServer, NotOurs
from posduif_cli.models import Finding, Level, Server

UNNAMED = ("dsn", "libpq", "embedded")  # what servers are called that no configuration names

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


def prepare(fleet: Fleet, *, engines: int | None = None, close: bool = False) -> tuple[list[Finding], bool]:
    """Make posduif's roles on the one server, and check its settings for a number of engines.

    *close* also closes the maintenance database to PUBLIC. Returns the findings, and whether anything was changed.
    Raises NoServer unless one server is chosen, AccessDenied, NotOurs, StandbyServer.
    """
    with fleet.maintenance(_only(fleet)) as session:
        missing = admin.missing_roles(session)
        proofs.require_locks(fleet, session)
        admin.ensure_roles(session)
        proofs.require_all(fleet, session)
        closed = close and _close(session)
        monitored = _monitor(session)
        return list(judge(session, engines)), bool(missing) or closed or monitored


def make_login(fleet: Fleet, *, name: str, keep: Callable[[list[str]], None]) -> bool:
    """Make a login for administrators that is no superuser; return whether it had to be made.

    *keep* is called with the lines of a passfile before the login gets the password; where this session was let in
    without a password, none is made. Raises InvalidName, NotOurs for a role of that name which is not such a login,
    AccessDenied where this login may not make it, and as `prepare`.
    """
    if name.startswith("pg_") or name in admin.ROLE_COMMENTS or name.endswith("_engine") or not 0 < len(name) < 64:
        raise InvalidName(
            f'"{name}" cannot be the name of a login', why="PostgreSQL or posduif has it for something else"
        )
    with fleet.maintenance(_only(fleet)) as session:
        admin.ensure_roles(session)
        rows = session.dicts(queries.load("preparations")["find_login"], name=name)
        if rows:
            if (rows[0]["comment"], rows[0]["may_log_in"], rows[0]["super"], rows[0]["member"]) == (
                admin.LOGIN_COMMENT,
                True,
                False,
                True,
            ):
                return False
            raise NotOurs(
                f"role {name} exists on server {session.server.name} and is no login that posduif made",
                why="it was not touched",
                hint=[
                    "choose another name",
                    f"or a superuser types: GRANT {connect.ADMIN_ROLE} TO {connect.quoted(name)};",
                ],
            )
        password = admin.new_password() if session.raw.pgconn.used_password else None
        if password:
            keep(connect.passfile_lines(session, name, password))
        admin.create_login(session, name, password)
        return True


def _monitor(session: Session) -> bool:
    """Let administrators and monitoring see what other people's sessions do, where this login may; return whether."""
    roles, may = session.tuples(queries.load("preparations")["find_unmonitored"])[0]
    if not roles or not may:
        return False
    session.script("SET ROLE none")
    session.script(f"GRANT pg_monitor TO {', '.join(roles)}")
    session.script(f"SET ROLE {connect.ADMIN_ROLE}")
    return True


def spell(fleet: Fleet, *, engines: int | None = None, close: bool = False) -> str:
    """Return the SQL that a DBA runs as a superuser in the maintenance database, so that `prepare` finds all done."""
    with fleet.maintenance(_only(fleet)) as session:
        lines = [f"-- posduif server init, for the login {session.login} on server {session.server.name}"]
        lines += [f"{statement};" for statement in admin.role_statements(session, admin.missing_roles(session))]
        lines += [f"GRANT pg_monitor TO {connect.ADMIN_ROLE}, {admin.HEALTH_GROUP};"]
        if close and _room(session).is_open:
            lines += [f"{statement};" for statement in admin.closing_statements()]
        for finding in judge(session, engines):
            if finding.level is not Level.OK and finding.fix:
                lines += [f"-- {finding.message}", f"-- {finding.fix}"]
        return "\n".join(lines)


def _only(fleet: Fleet) -> Server:
    if len(fleet.servers) == 1:
        return fleet.servers[0]
    raise NoServer(
        "several servers are configured",
        why=f"configured are: {', '.join(server.name for server in fleet.servers)}",
        hint="add --server NAME",
    )


def _room(session: Session) -> _Room:
    named, count = queries.load("servers"), queries.load("tenants")["count_tenants"]
    limits = session.dicts(named["measure_connections"])[0]
    return _Room(
        max_connections=limits["max_connections"],
        reserved=limits["reserved"],
        tenants=session.value(count, sizes=False),
        **session.dicts(named["find_room"])[0],
    )


def _close(session: Session) -> bool:
    """Close the maintenance database to PUBLIC, by the login's own rights; return whether it was open."""
    room = _room(session)
    if not room.is_open:
        return False
    statements = admin.closing_statements()
    if not room.may_close:
        raise AccessDenied(
            f"{session.login} may not close database {session.database} of server {session.server.name}",
            why="it belongs to someone else",
            hint=[f"a superuser types: {statement};" for statement in statements],
        )
    session.script("SET ROLE none")
    with session.transaction():
        session.script("; ".join(statements))
    return True


def judge(session: Session, engines: int | None = None) -> Iterator[Finding]:
    """Check a server's roles and settings for a number of engines, by default one a tenant."""
    room, server = _room(session), session.server
    number = max(room.tenants, 1) if engines is None else engines
    missing = admin.missing_roles(session)
    yield _finding(
        server,
        "roles",
        Level.CRITICAL if missing else Level.OK,
        f"missing: {', '.join(missing)}" if missing else f"{', '.join(admin.ROLE_COMMENTS)} are there",
        fix=f"posduif server init{naming(server)}" if missing else None,
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
        else f"posduif server init --close{naming(server)}"
        if room.may_close
        else f"a superuser types: {'; '.join(admin.closing_statements())};",
    )


def _people(session: Session) -> Iterator[Finding]:
    """Check who may act for posduif, and what posduif may not do."""
    server, named = session.server, queries.load("preparations")
    if session.superuser:
        yield _finding(
            server,
            "superuser",
            Level.WARNING,
            f"{session.login} is a superuser: code in a tenant's database could make its author one",
            fix=f"posduif server init --login NAME{naming(server)}",
        )
    for role, holders, members in session.tuples(named["list_members"], roles=list(admin.ROLE_COMMENTS)):
        if members or holders:
            odd = holders and role in (connect.ADMIN_ROLE, admin.ENGINE_GROUP)
            text = f"members of {role}: {members or 'none'}" + (f"; may add members: {holders}" if holders else "")
            yield _finding(server, "members", Level.INFO if odd else Level.OK, text, value=role)
    for (role,) in session.tuples(named["find_unadministered"]):
        yield _finding(
            server,
            "engine_roles",
            Level.WARNING,
            f"{connect.ADMIN_ROLE} may not alter {role}: the server was upgraded from PostgreSQL 15",
            fix=f"a superuser types: GRANT {connect.quoted(role)} TO {connect.ADMIN_ROLE} WITH ADMIN OPTION;",
        )
    roles, _ = session.tuples(named["find_unmonitored"])[0]
    if roles:
        text = f"{' and '.join(roles)} cannot see what other people's sessions do"
        fix = f"a superuser types: GRANT pg_monitor TO {', '.join(roles)};"
        yield _finding(server, "monitoring", Level.INFO, text, fix=fix)


def naming(server: Server) -> str:
    """Return the option that names a server of the configuration; one that was given by its DSN has no name there."""
    return "" if server.name in UNNAMED else f" --server {server.name}"


def _finding(
    server: Server, check: str, level: Level, message: str, *, value: int | str | None = None, fix: str | None = None
) -> Finding:
    return Finding(check, "server", server.name, level, message, value=value, fix=fix)
