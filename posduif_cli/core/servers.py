"""Servers: the embedded one, how each configured one is, and what one needs before it holds tenants."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

from posduif_cli.core.checks import registry
from posduif_cli.core.checks.facts import Setup
from posduif_cli.core.checks.server import describe, examine
from posduif_cli.core.fleet import proof
from posduif_cli.core.fleet.fleet import Fleet, Session
from posduif_cli.db import admin, connect, queries, quoting
from posduif_cli.db import embedded as starter
from posduif_cli.db.embedded import remove as remove
from posduif_cli.db.embedded import stop as stop
from posduif_cli.db.session import ADMIN_ROLE
from posduif_cli.errors import AccessDenied, Hint, InvalidName, NoServer, NotOurs, PosduifError, QueryFailed, Run
from posduif_cli.models.checks import Finding, Level
from posduif_cli.models.servers import EmbeddedStatus, Server, ServerInfo

NAME = "embedded"
SIZES_LIMIT = timedelta(seconds=5)  # how long a server may walk its files for the size of its tenants


def address(data_dir: Path) -> str:
    """Return the DSN of the embedded server, also where there is none yet."""
    return starter.dsn(data_dir)


def embedded(data_dir: Path, bin_dir: Path | None) -> tuple[Server | None, bool]:
    """Return the embedded server, started if it does not run, and whether it was started; None if there is none.

    Raises EmbeddedServerFailed.
    """
    return start(data_dir, bin_dir) if starter.exists(data_dir) else (None, False)


def start(data_dir: Path, bin_dir: Path | None, listen: tuple[str, int] | None = None) -> tuple[Server, bool]:
    """Create the embedded server if there is none, start it, and return whether it had to be started.

    *listen* as in `db.embedded.start`. Raises WrongState, ConfigurationError without PostgreSQL binaries,
    EmbeddedServerFailed.
    """
    now, started = starter.start(data_dir, bin_dir=bin_dir, listen=listen)
    host, _, port = (now.listen or "").rpartition(":")
    engine = {"host": host, "port": int(port), "ssl_mode": "disable"} if now.listen else {}
    # No phone can reach an address of this machine alone, but a token needs one, and a try-out has no other.
    url = "http://localhost:{port}"
    dsn = starter.dsn(data_dir)
    return Server(NAME, dsn, "the embedded server", url, engine=engine, embedded=True, named=False), started


def status(data_dir: Path, *, changed: bool | None = None) -> EmbeddedStatus:
    """Return whether the embedded server runs, and where."""
    found = starter.status(data_dir)
    dsn = starter.dsn(data_dir) if found.running else None
    return EmbeddedStatus(found.running, found.pid, found.version, data_dir, dsn, found.listen, changed)


def list_all(fleet: Fleet) -> list[ServerInfo]:
    """Return how every server is; one that cannot be asked is in the list with its error."""

    def ask(session: Session) -> Setup:
        found, count = describe(session), queries.load("fleet/fleet")["count_tenants"]
        with suppress(QueryFailed), session.transaction(statement_timeout=SIZES_LIMIT):
            return replace(found, **session.dicts(count, sizes=True)[0])
        return found

    answers = fleet.ask(ask)
    return [_info(server, answers[server.name]) for server in fleet.servers]


def _info(server: Server, found: Setup | PosduifError) -> ServerInfo:
    if isinstance(found, PosduifError):
        return ServerInfo(server.name, False, server.origin, error=found.sentence)
    warnings: list[Hint] = []
    for finding in registry.judge("server list", "server", found):
        fix = finding.fix
        warnings.append(Run(*fix.words, lead=finding.message) if isinstance(fix, Run) else finding.message)
    return ServerInfo(
        server.name, True, server.origin, found.version, found.tenants, found.size_bytes, found.connections,
        found.max_connections, found.role, found.record_owner, tuple(warnings), version_number=found.version_number,
    )  # fmt: skip


def prepare(fleet: Fleet, *, engines: int | None = None, close: bool = False) -> tuple[list[Finding], bool]:
    """Create posduif's roles on the one server, and check its settings for a number of engines.

    *close* also closes the maintenance database to PUBLIC. Returns the findings, and whether anything was changed.
    Raises NoServer unless one server is chosen, AccessDenied, NotOurs, StandbyServer.
    """
    with fleet.maintenance(_only(fleet)) as session:
        missing = admin.missing_roles(session)
        proof.require_locks(fleet, session)
        admin.ensure_roles(session)
        proof.require_all(fleet, session)
        closed = close and _close(session)
        monitored = _monitor(session)
        findings = registry.judge("server init", "server", examine(session, engines))
        return findings, bool(missing) or closed or monitored


def make_login(fleet: Fleet, *, name: str, keep: Callable[[list[str]], None]) -> bool:
    """Create a login for administrators that is no superuser; return whether it had to be created.

    *keep* is called with the lines of a passfile before the login gets the password; where this session was let in
    without a password, none is made. Raises InvalidName, NotOurs for a role of that name which is not such a login,
    AccessDenied where this login may not make it, and as `prepare`.
    """
    if name.startswith(("pg_", "posduif")) or name.endswith("_engine") or not 0 < len(name.encode()) < 64:
        raise InvalidName(
            f'"{name}" cannot be the name of a login', why="PostgreSQL or posduif has it for something else"
        )
    with fleet.maintenance(_only(fleet)) as session:
        admin.ensure_roles(session)
        with session.lock(name):
            return _make_login(session, name, keep)


def _make_login(session: Session, name: str, keep: Callable[[list[str]], None]) -> bool:
    rows = session.dicts(queries.load("checks/server")["find_login"], name=name)
    if rows == [{"comment": admin.LOGIN_COMMENT, "may_log_in": True, "super": False, "member": True}]:
        return False
    if rows:
        raise NotOurs(
            f"role {name} exists on server {session.server.name} and is no login that posduif made",
            why="it was not touched",
            hint=["choose another name", f"or a superuser types: GRANT {ADMIN_ROLE} TO {quoting.quoted(name)};"],
        )
    password = admin.new_password() if session.raw.pgconn.used_password else None
    if password:
        keep(connect.passfile_lines(session, name, password))
    admin.create_login(session, name, password)
    return True


def spell(fleet: Fleet, *, engines: int | None = None, close: bool = False) -> str:
    """Return the SQL that a DBA runs as a superuser in the maintenance database, so that `prepare` finds all done."""
    with fleet.maintenance(_only(fleet)) as session:
        lines = [f"-- posduif server init, for the login {session.login} on server {session.server.name}"]
        lines += [f"{statement};" for statement in admin.role_statements(session, admin.missing_roles(session))]
        lines += [f"GRANT pg_monitor TO {ADMIN_ROLE}, {admin.HEALTH_GROUP};"]
        setup = examine(session, engines)
        if close and setup.is_open:
            lines += [f"{statement};" for statement in admin.closing_statements()]
        for finding in registry.judge("server init", "server", setup):
            if finding.level is not Level.OK and finding.fix:
                lines += [f"-- {finding.message}", f"-- {finding.fix}"]
        return "\n".join(lines)


def _close(session: Session) -> bool:
    """Close the maintenance database to PUBLIC, by the login's own rights; return whether it was open."""
    setup = describe(session)
    if not setup.is_open:
        return False
    statements = admin.closing_statements()
    if not setup.may_close:
        raise AccessDenied(
            f"{session.login} may not close database {session.database} of server {session.server.name}",
            why="it belongs to another role",
            hint=[f"a superuser types: {statement};" for statement in statements],
        )
    session.script("SET ROLE none")
    with session.transaction():
        session.script("; ".join(statements))
    return True


def _monitor(session: Session) -> bool:
    """Give administrators and monitoring pg_monitor where this login may; return whether it was given."""
    roles, may = session.tuples(queries.load("checks/server")["find_unmonitored"])[0]
    if not roles or not may:
        return False
    session.script("SET ROLE none")
    session.script(f"GRANT pg_monitor TO {', '.join(roles)}")
    session.script(f"SET ROLE {ADMIN_ROLE}")
    return True


def _only(fleet: Fleet) -> Server:
    if len(fleet.servers) == 1:
        return fleet.servers[0]
    raise NoServer(
        "several servers are configured",
        why=f"configured are: {', '.join(server.name for server in fleet.servers)}",
        hint="add --server NAME",
    )
