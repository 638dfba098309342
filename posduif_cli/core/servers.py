"""Servers: the embedded one, and what a server needs before it holds tenants."""

from collections.abc import Callable
from pathlib import Path

from posduif_cli.core.checks.server import judge, measure
from posduif_cli.core.fleet import proof
from posduif_cli.core.fleet.fleet import Fleet, Session
from posduif_cli.db import admin, connect, queries, quoting
from posduif_cli.db import embedded as starter
from posduif_cli.db.session import ADMIN_ROLE
from posduif_cli.errors import AccessDenied, InvalidName, NoServer, NotOurs
from posduif_cli.models.checks import Finding, Level
from posduif_cli.models.servers import EmbeddedStatus, Server

NAME = "embedded"


def embedded(data_dir: Path, bin_dir: Path | None) -> tuple[Server | None, bool]:
    """Return the embedded server, started if need be, and whether it was; None if none was ever made.

    Raises EmbeddedServerFailed.
    """
    if not starter.exists(data_dir):
        return None, False
    return start(data_dir, bin_dir)


def start(data_dir: Path, bin_dir: Path | None, listen: tuple[str, int] | None = None) -> tuple[Server, bool]:
    """Make the embedded server if there is none, start it, and return whether it had to be started.

    *listen* as in `db.embedded.start`. Raises WrongState, ConfigurationError without PostgreSQL binaries,
    EmbeddedServerFailed.
    """
    now, started = starter.start(data_dir, bin_dir=bin_dir, listen=listen)
    host, _, port = (now.listen or "").rpartition(":")
    engine = {"host": host, "port": int(port), "ssl_mode": "disable"} if now.listen else {}
    # No phone can reach an address of this machine alone, but a token needs one, and a try-out has no other.
    url = "http://localhost:8080"
    dsn = starter.dsn(data_dir)
    return Server(NAME, dsn, "the embedded server", url, engine=engine, embedded=True, named=False), started


def status(data_dir: Path, *, changed: bool | None = None) -> EmbeddedStatus:
    """Return how the embedded server stands."""
    found = starter.status(data_dir)
    return EmbeddedStatus(
        running=found.running,
        pid=found.pid,
        version=found.version,
        data_dir=data_dir,
        dsn=starter.dsn(data_dir) if found.running else None,
        listen=found.listen,
        changed=changed,
    )


def stop(data_dir: Path) -> bool:
    """Stop the embedded server; return whether it was running."""
    return starter.stop(data_dir)


def remove(data_dir: Path) -> bool:
    """Stop the embedded server and delete its data; return whether there was one."""
    return starter.remove(data_dir)


def prepare(fleet: Fleet, *, engines: int | None = None, close: bool = False) -> tuple[list[Finding], bool]:
    """Make posduif's roles on the one server, and check its settings for a number of engines.

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
        return list(judge(session, engines)), bool(missing) or closed or monitored


def make_login(fleet: Fleet, *, name: str, keep: Callable[[list[str]], None]) -> bool:
    """Make a login for administrators that is no superuser; return whether it had to be made.

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
                f"or a superuser types: GRANT {ADMIN_ROLE} TO {quoting.quoted(name)};",
            ],
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
        if close and measure(session).is_open:
            lines += [f"{statement};" for statement in admin.closing_statements()]
        for finding in judge(session, engines):
            if finding.level is not Level.OK and finding.fix:
                lines += [f"-- {finding.message}", f"-- {finding.fix}"]
        return "\n".join(lines)


def _close(session: Session) -> bool:
    """Close the maintenance database to PUBLIC, by the login's own rights; return whether it was open."""
    room = measure(session)
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


def _monitor(session: Session) -> bool:
    """Let administrators and monitoring see what other people's sessions do, where this login may; return whether."""
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
