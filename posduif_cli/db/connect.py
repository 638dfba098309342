"""The only place that connects to PostgreSQL, and what libpq says when that fails."""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any, LiteralString

import psycopg
from psycopg.conninfo import conninfo_to_dict

from posduif_cli.db import planted
from posduif_cli.db.connection import READING, Connection
from posduif_cli.db.quoting import quoted
from posduif_cli.db.session import Footing, Session
from posduif_cli.errors import (
    AccessDenied,
    InvalidDsn,
    Run,
    ServerError,
    ServerFull,
    ServerUnreachable,
    TlsFailed,
    scrub,
)
from posduif_cli.models.servers import Server

MAINTENANCE = "postgres"
CONNECT_TIMEOUT = 10
# A peer that is gone without a word is noticed by the kernel: seconds, and for the last one milliseconds.
KEEPALIVES = {
    "keepalives_idle": 15,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 30_000,
}
SECRETS = ("password", "sslpassword", "oauth_client_secret", "scram_client_key", "scram_server_key")


def parse(server: Server) -> dict[str, Any]:
    """Return the parts of a server's DSN; raises InvalidDsn without ever echoing it."""
    try:
        return dict(_parts(server.dsn))
    except psycopg.ProgrammingError as error:
        raise InvalidDsn(
            f"the connection string of server {server.name} cannot be parsed{_typo(str(error))}",
            why=f"it comes from {server.origin}; it is not shown, because it may hold a password",
            hint=["host=db1.internal user=alice", "postgresql://alice@db1.internal:5432"],
        ) from None


def _typo(message: str) -> str:
    """Return which word of a connection string is misspelled; "" where it might be a part of a password."""
    found = re.search(r'(?:option|parameter): ?"(\w+)"|option "(\w+)"', message)
    known = [option.keyword.decode() for option in psycopg.pq.Conninfo.get_defaults()]
    near = get_close_matches(found[1] or found[2], known, 1, 0.75) if found else []
    return f': "{found[1] or found[2]}" is unknown; did you mean "{near[0]}"?' if found and near else ""


_parts = cache(conninfo_to_dict)  # libpq goes through all that it knows, which takes long in a fleet


def connect(
    server: Server,
    database: str,
    *,
    command: str,
    footing: Footing | None = None,
    path: LiteralString = "pg_catalog",
    limit: timedelta | None = None,
) -> Session:
    """Open a session; *command* shows in the server's `application_name`, the rest is as for Session.

    Raises InvalidDsn, ServerUnreachable, AccessDenied, PlantedRole or PoolerInBetween.
    """
    parts = parse(server)
    if server.origin == "--dsn" and any(parts.get(key) for key in SECRETS):
        raise InvalidDsn(
            "--dsn holds a password or key",
            why="every user of this machine can read command lines",
            hint=["put the password into ~/.pgpass", "or set POSDUIF_DSN", "or use a service file"],
        )
    parts |= {"dbname": database, "application_name": f"posduif {command}".strip(), "client_encoding": "UTF8"}
    parts = {"connect_timeout": CONNECT_TIMEOUT, **KEEPALIVES, **parts}
    if footing is not None:
        parts["options"] = footing.startup(path)
    try:
        # Prepared statements would be gone where a migration says DEALLOCATE ALL.
        threshold = None if path == "public" else 5
        raw = Connection.connect(**parts, autocommit=True, context=READING, prepare_threshold=threshold)
    except psycopg.Error as error:
        raise _refused(error, server, database) from None
    try:
        session = Session(raw, server=server, database=database, footing=footing, path=path, limit=limit)
        if footing is None and session.superuser and session.version >= 160000:
            planted.refuse(session)
        return session
    except BaseException:
        raw.close()
        raise


# What libpq says of a value that it cannot use, before it connects anywhere.
_MALFORMED = re.compile(r"^(bad value for|invalid (\w+ )*value|invalid port number|definition of service)")
# The messages of SQLSTATE 53300; libpq does not pass the code on for a connection that was never made.
_FULL = ("too many clients", "remaining connection slots are reserved", "too many connections for")
# What a server says that is there but refuses this login, in the languages that its messages were seen in; a server
# whose disk or memory is full is FATAL, too.
_DENIED = re.compile(
    r"""(?ix) passw | mot\ de\ passe | contrase | senha | authent | auth?entifi | SCRAM | pg_hba | pg_ident
      | permission\ denied\ for | not\ permitted | does\ not\ exist | existiert\ nicht | n'existe\ pas | no\ existe
      | role\b | certificate
    """
)
# What PostgreSQL says of a database that an ALTER DATABASE has closed, and what opens it again.
_CLOSED: Mapping[str, LiteralString] = {
    "not currently accepting connections": "ALLOW_CONNECTIONS true",
    "too many connections for database": "CONNECTION LIMIT -1",
}
# What libpq says when TLS fails, and what would help; it has no codes for it.
_TLS: Mapping[str, Sequence[str]] = {
    "does not support SSL": (),
    "root certificate file": ("put the CA's certificate there", "or name it in the dsn: sslrootcert=FILE"),
    "certificate verify failed": ("name the CA that signed the server's certificate in the dsn: sslrootcert=FILE",),
    "does not match host name": ("connect by the name that stands in the server's certificate",),
}


def _refused(error: psycopg.Error, server: Server, database: str) -> ServerError | InvalidDsn:
    """Tell a server that cannot be reached from one that says no; its words come in the server's language."""
    reasons = [line.strip() for line in str(error).splitlines() if line.strip()]
    # libpq's later lines are advice ("Is the server running ...?"); a FATAL of the server says most.
    said = [line for line in reasons if "FATAL" in line] or reasons[:1] or ["no reason given"]
    reason = scrub(said[-1].removeprefix("connection failed: ").removeprefix("connection is bad: "))
    if _MALFORMED.search(reason):
        return InvalidDsn(
            f"the connection string of server {server.name} is not right",
            why=f"{reason}; it comes from {server.origin or 'the configuration'}",
            hint=Run("config", "show", "--origin"),
        )
    if (words := next((words for words in _TLS if words in reason), None)) is not None:
        return TlsFailed(
            f"server {server.name} cannot be trusted" if _TLS[words] else f"server {server.name} offers no TLS",
            why=reason,
            hint=_TLS[words] or "an administrator of the server sets ssl = on there, with a certificate",
        )
    full = any(words in reason for words in _FULL)
    if (option := next((option for words, option in _CLOSED.items() if words in reason), None)) is not None:
        return (ServerFull if full else AccessDenied)(
            f"database {database} on server {server.name} takes no connections",
            why=reason,
            hint=f"an administrator who finds that this was set by hand types: "
            f"ALTER DATABASE {quoted(database)} {option};",
        )
    if _DENIED.search(reason) and not full:
        return AccessDenied(
            f"server {server.name} refuses the connection to database {database}",
            why=reason,
            hint=["check user and password (~/.pgpass)", Run("config", "show")],
        )
    return (ServerFull if full else ServerUnreachable)(
        f"server {server.name} cannot be reached",
        why=reason,
        hint=[
            Run("server", "start") if server.embedded else Run("server", "list"),
            Run("config", "show", "--origin"),
        ],
    )


def passfile_lines(session: Session, user: str, password: str) -> list[str]:
    """Return the lines of a passfile that let *user* in wherever the server's DSN may lead, one per host."""
    parts = parse(session.server)
    info = session.raw.info
    hosts = str(parts.get("host") or parts.get("hostaddr") or info.host or "localhost").split(",")
    ports = str(parts.get("port") or info.port).split(",")
    ports = ports if len(ports) == len(hosts) else ports[:1] * len(hosts)
    places = list(zip(hosts, ports, strict=True))
    # libpq looks for `localhost` where it takes the socket folder that it was built with.
    places += [("localhost", port) for host, port in places if host.startswith(("/", "@"))]
    return [":".join((_escaped(host), port, "*", _escaped(user), password)) for host, port in dict.fromkeys(places)]


def _escaped(word: str) -> str:
    """Write a word as a passfile wants it: colons and backslashes behind a backslash.

    >>> print(_escaped("a:b"))
    a\\:b
    """
    return re.sub(r"([:\\])", r"\\\1", word)


@contextmanager
def child_environment(server: Server, database: str) -> Iterator[tuple[dict[str, str], tuple[int, ...]]]:
    """Lend the environment for a program of PostgreSQL's, by the server's DSN and by what libpq would find itself.

    A password goes into a file: environments can be seen by others. The descriptors of such a file, which the program
    has to inherit, come with it. Nothing else of this process's environment is in it, but the places where libpq looks
    for files.
    """
    known = {option.keyword.decode(): option for option in psycopg.pq.Conninfo.get_defaults()}
    parts = {key: str(value) for key, value in parse(server).items() if value is not None}
    for keyword, option in known.items():
        if keyword not in parts and option.val is not None and option.envvar is not None:
            parts[keyword] = option.val.decode()  # of the environment, or the default
    parts |= {"dbname": database, "application_name": "posduif backup"}
    passwords = {key: parts.pop(key) for key in SECRETS if key in parts}
    found = {"PATH": "/usr/bin:/bin", "LC_ALL": "C", "TZ": "UTC", "HOME": str(Path.home())}
    for keyword, value in parts.items():
        variable = known[keyword].envvar if keyword in known else None
        if variable is not None and value:
            found[variable.decode()] = value
    found.pop("PGOPTIONS", None)
    if "password" not in passwords:
        yield found, ()
        return
    line = f"*:*:*:*:{_escaped(passwords['password'])}\n".encode()
    if hasattr(os, "memfd_create"):  # without a name: a kill leaves nothing of it
        with open(os.memfd_create("passfile", os.MFD_CLOEXEC), "wb", buffering=0) as memory:
            os.fchmod(memory.fileno(), 0o600)
            memory.write(line)
            yield {**found, "PGPASSFILE": f"/proc/self/fd/{memory.fileno()}"}, (memory.fileno(),)
        return
    with NamedTemporaryFile(prefix="posduif-") as file:  # mode 0600
        file.write(line)
        file.flush()
        yield {**found, "PGPASSFILE": file.name}, ()


def address(session: Session) -> tuple[str, int]:
    """Return host (or socket folder) and port of the server that *session* talks to."""
    return session.raw.info.host or "localhost", session.raw.info.port
