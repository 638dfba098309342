"""What a tenant's engine is given: its port, its Redis, its secret; and the settings in the file that it reads."""

import base64
import hashlib
import hmac
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from posduif_cli.db import admin, connect, queries
from posduif_cli.db.session import Session
from posduif_cli.errors import ConfigurationError, Conflict
from posduif_cli.models.servers import Server
from posduif_cli.models.tenants import ENGINE_PORT, Engine
from posduif_cli.notation import LAST_PORT, ports

PLACEHOLDER = "REPLACE_ME"
METHODS = ("GET", "POST", "PUT", "DELETE", "OPTIONS")
HEADERS = ("Content-Type", "Authorization", "X-Device-ID")


@contextmanager
def port(
    session: Session, tenant: str, *, url: str | None, asked: int | None = None, kept: int | None = None
) -> Iterator[int | None]:
    """Yield the port for a tenant's engine; no other session chooses one before the block is over.

    *session* is in the maintenance database, *asked* is the port that was asked for, *url* the origin that was; the
    port *kept* is one that the engine had and gets again if it is free. None is for the engine's own default, where
    nothing says more. Raises Conflict where another tenant has the port that was
    asked for, ConfigurationError where none of the configured ones is free.
    """
    server, named = session.server, queries.load("tenants/engine")
    if not (asked or kept or _candidates(server, url) or "ports" in server.engine or server.embedded):
        yield None
        return
    session.execute(named["lock_ports"])
    try:
        taken = dict(session.tuples(named["list_ports"], tenant=tenant))
        yield kept if kept is not None and kept not in taken else _choose(server, asked, url, taken)
    finally:
        if not session.broken:  # the lock ends with its session
            session.execute(named["unlock_ports"])


def _choose(server: Server, asked: int | None, url: str | None, taken: Mapping[int, str]) -> int | None:
    configured = server.engine.get("ports")
    if asked is not None:
        if asked in taken:
            free = next((str(port) for port in range(asked + 1, LAST_PORT + 1) if port not in taken), "PORT")
            raise Conflict(
                f"port {asked} was given to the engine of tenant {taken[asked]} on server {server.name}",
                why="of two engines on one host the second does not start",
                hint=f"--engine-port {free}",
            )
        return asked
    if configured is not None:
        for port in ports(configured):
            if port not in taken:
                return port
        raise ConfigurationError(
            f"no port of engine.ports is free on server {server.name}",
            why=f"all of {configured} were given to tenants' engines",
            hint=f"give servers.{server.name}.engine.ports a larger range",
        )
    further = range(ENGINE_PORT, LAST_PORT + 1) if server.embedded else ()  # nothing else says where its engines are
    return next((port for port in (*_candidates(server, url), *further) if port not in taken), None)


def _candidates(server: Server, url: str | None) -> list[int]:
    """Return the ports that an engine may have where none was asked for: one for all, and that of an http url.

    The port of an https url is that of the balancer before the engine.
    """
    found = re.fullmatch(r"http://.+:([0-9]{1,5})", url or "")
    return [int(port) for port in (server.engine.get("sse_port"), found and found[1]) if port]


def given(server: Server, port: int | None, redis: tuple[str, int | None] | None) -> Engine:
    """Return what a new engine is given: by this machine's configuration, and by what was asked for."""
    usual, (address, db) = admin.configured(server), redis or (None, None)
    return replace(usual, port=port, redis=address, redis_db=usual.redis_db if db is None else db)


def settings(conn: Session, name: str, password: str, given: Engine, url: str | None) -> dict[str, Any]:
    """Return what the sync engine reads from its file, by what it was *given* and the server's configuration.

    The port and the secret are None where nothing decides them: then a file that exists keeps its own.

    WAL mode stays off: the engine's is a stub that delivers nothing and whose slot pins the server's WAL. Raises
    ConfigurationError where the file for the secrets cannot be used.
    """
    configured = conn.server.engine
    redis = {"host": "localhost", "port": 6379, **configured.get("redis", {})}
    if given.redis is not None:
        redis["host"], _, number = given.redis.rpartition(":")
        redis["port"] = int(number)
    if given.redis_db is not None:
        redis["db"] = given.redis_db
    host, port = connect.address(conn)
    return {
        "postgres": {
            "host": configured.get("host", host),
            "port": configured.get("port", port),
            "user": admin.engine_role(name),
            "password": password,
            "db": name,
            "ssl_mode": configured.get("ssl_mode", "disable" if host.startswith("/") else "prefer"),
            "max_connections": given.pool or admin.configured(conn.server).pool,
        },
        "redis": {**redis, "db": redis.get("db", 0), "streams": {"enabled": True, "max_length": 10000}},
        "sse": {"port": given.port},
        "sync": {"wal": {"enabled": False}},
        "auth": {"jwt_secret": secret(conn.server, name), "jwt_expiration": 3600},
        "cors": {
            "allowed_origins": list(configured.get("cors") or ([url] if url else [])),
            "allowed_methods": list(METHODS),
            "allowed_headers": list(HEADERS),
        },
    }


def secret(server: Server, name: str) -> str | None:
    """Return the tenant's own secret by `engine.secret_file`, the same on every machine that has the file; else None.

    Raises ConfigurationError where the file cannot be read, is empty or open to others, and for one secret for all.
    """
    where, path = f"servers.{server.name}.engine", server.engine.get("secret_file")
    if "jwt_secret" in server.engine:
        raise ConfigurationError(
            f"{where}.jwt_secret: one secret for all tenants is refused",
            why="who signs in at one tenant could read every other",
            hint=f"remove it; {where}.secret_file names a file from which each tenant gets a secret of its own",
        )
    if path is None:
        return None
    try:
        key, mode = path.read_bytes(), path.stat().st_mode
    except OSError as error:
        raise ConfigurationError(
            f"{where}.secret_file: {path} cannot be read",
            why=error.strerror,
            hint=f"make it: (umask 077; head -c 48 /dev/urandom | base64 > {path})",
        ) from None
    if mode & 0o077:
        raise ConfigurationError(
            f"{where}.secret_file: others may read {path}",
            why="with it they could sign in at every tenant's engine",
            hint=f"chmod 600 {path}",
        )
    if not key.strip():
        raise ConfigurationError(
            f"{where}.secret_file: {path} is empty",
            hint=f"make it: (umask 077; head -c 48 /dev/urandom | base64 > {path})",
        )
    digest = hmac.new(key, name.encode(), hashlib.sha256).digest()
    return base64.urlsafe_b64encode(digest).decode().rstrip("=")
