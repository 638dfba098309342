"""The configuration file: its keys and what each may hold, reading it with the place of each value, making it."""

import difflib
import os
import re
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

from posduif_cli.errors import ConfigurationError, Hint, InvalidDuration, Run, UsageError
from posduif_cli.notation import LAST_PORT, duration, origin, ports

Reader = Callable[[Any], Any]


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError("must be text")
    return value


def _count(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < 100_000:
        raise ValueError("must be a whole number above 0")
    return value


def _number(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 100_000:
        raise ValueError("must be a whole number")
    return value


def _port(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= LAST_PORT:
        raise ValueError(f"must be a TCP port, 1 to {LAST_PORT}")
    return value


def _ports(value: Any) -> str:
    try:
        ports(str(value) if isinstance(value, int) and not isinstance(value, bool) else _text(value))
    except UsageError as error:
        raise ValueError(f"{error.message} (18080-18999)") from None
    return str(value)


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError("must be true or false")
    return value


def _span(value: Any) -> timedelta:
    try:
        return duration(_text(value))
    except InvalidDuration as error:
        raise ValueError(f"{error.message} (300ms 90s 30m 1h 7d 2w)") from None


def _origin(value: Any) -> str:
    if isinstance(value, str) and (odd := set(re.findall(r"{([^}]*)}?", value)) - {"tenant"}):
        raise ValueError(f"{{{odd.pop()}}} is not known; the placeholder is {{tenant}}")
    try:
        return origin(_text(value))
    except UsageError as error:
        raise ValueError(error.message) from None


def _origins(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise ValueError("must be a list of origins")
    return tuple(item if item == "*" else _origin(item) for item in value)


def _path(value: Any) -> Path | None:
    return None if value is None else Path(_text(value)).expanduser()


def _place(value: Any) -> Path | str | None:
    return value if isinstance(value, str) and value.startswith("s3://") else _path(value)


def _texts(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise ValueError("must be a list of texts")
    return tuple(_text(item) for item in value)


def _paths(value: Any) -> tuple[Path, ...]:
    if not isinstance(value, list):
        raise ValueError("must be a list of folders")
    return tuple(Path(_text(item)).expanduser() for item in value)


def _bound(value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, int | float | str) or value == "":
        raise ValueError("must be a number, or text such as 80%, 64MiB, 30m")
    return value


CHECK: dict[str, Reader] = {"warning": _bound, "critical": _bound, "off": _flag}  # of one check
SCHEMA: dict[str, Reader] = {
    **{f"servers.*.checks.*.{key}": reader for key, reader in CHECK.items()},
    **{f"checks.*.{key}": reader for key, reader in CHECK.items()},
    "servers.*.dsn": _text,
    "servers.*.embedded": _flag,
    "servers.*.url": _origin,
    "servers.*.max_connections": _count,
    "servers.*.protected": _flag,
    "servers.*.engine.host": _text,
    "servers.*.engine.port": _port,
    "servers.*.engine.ssl_mode": _text,
    "servers.*.engine.max_connections": _count,
    "servers.*.engine.web_pool": _number,
    "servers.*.engine.ports": _ports,
    "servers.*.engine.sse_port": _port,
    "servers.*.engine.secret_file": _path,
    "servers.*.engine.jwt_secret": _text,  # known, so that it is refused with the reason
    "servers.*.engine.cors": _origins,
    "servers.*.engine.redis.host": _text,
    "servers.*.engine.redis.port": _port,
    "servers.*.engine.redis.password": _text,
    "servers.*.engine.redis.db": _number,
    "default_server": _text,
    "enrollment.ttl": _span,
    "enrollment.max_ttl": _span,
    "migrations.paths": _paths,
    "migrations.lock_timeout": _span,
    "migrations.statement_timeout": _span,
    "backup.dir": _place,
    "backup.encrypt_to": _texts,
    "backup.identity_file": _path,
    "backup.jobs": _count,
    "backup.keep.last": _number,
    "backup.keep.daily": _number,
    "backup.keep.weekly": _number,
    "backup.keep.monthly": _number,
    "embedded.data_dir": _path,
    "embedded.bin_dir": _path,
}


def read(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """Read a configuration file into dotted keys with their values and their places.

    Raises ConfigurationError naming file, line, key and reason.
    """
    import yaml

    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ConfigurationError(f"{path}: cannot be read", why=reason) from None
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        values: dict[str, Any] = {}
        lines: dict[str, str] = {}
        if node is not None:
            _walk(node, "", path, loader, values, lines)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = mark.line if mark else text.count("\n", 0, getattr(error, "position", 0))
        reason = getattr(error, "problem", None) or getattr(error, "reason", None)
        raise ConfigurationError(f"{path}:{line + 1}: not valid YAML", why=reason or "it cannot be parsed") from None
    except RecursionError:
        raise ConfigurationError(f"{path}: not a configuration", why="it is nested too deeply") from None
    return values, lines


def _walk(node: Any, prefix: str, path: Path, loader: Any, values: dict[str, Any], lines: dict[str, str]) -> None:
    import yaml

    def fail(at: Any, key: str, reason: str, hint: Hint | tuple[()] = ()) -> ConfigurationError:
        return ConfigurationError(f"{path}:{at.start_mark.line + 1}: {key}: {reason}", hint=hint)

    if not isinstance(node, yaml.MappingNode):
        raise fail(node, prefix.rstrip(".") or "the file", "must hold `key: value` lines")
    seen: set[str] = set()
    for key_node, value_node in node.value:
        name = str(key_node.value)
        key = prefix + name
        if name in seen:
            raise fail(key_node, key, "is given twice")
        seen.add(name)
        if prefix == "servers." and not re.fullmatch(r"[a-z0-9][a-z0-9_-]{0,62}", name):
            raise fail(key_node, key, "a server's name is made of a-z, 0-9, _ and -")
        pattern = re.sub(r"^servers\.[^.]+", "servers.*", key)
        pattern = re.sub(r"^((?:servers\.\*\.)?checks)\.[a-z]+\.[a-z_]+", r"\1.*", pattern)  # a check's id has a dot
        if pattern in SCHEMA:
            lines[key] = f"{path}:{key_node.start_mark.line + 1}"
            try:
                values[key] = SCHEMA[pattern](loader.construct_object(value_node, deep=True))
            except (ValueError, KeyError, IndexError, AttributeError, TypeError, yaml.YAMLError) as error:
                raise fail(value_node, key, str(error) or "cannot be read") from None
        elif pattern == "servers.*" and not getattr(value_node, "value", None):
            raise fail(value_node, f"{key}.dsn", "is missing", 'dsn: "host=... user=..."')
        elif pattern == "servers" or any(known.startswith(f"{pattern}.") for known in SCHEMA):
            if value_node.tag != "tag:yaml.org,2002:null":
                _walk(value_node, f"{key}.", path, loader, values, lines)
        else:
            siblings = {known[len(prefix_of) :].split(".")[0] for prefix_of, known in _siblings(pattern)}
            near = difflib.get_close_matches(name, siblings, 1)
            known = Run("health", "--list-checks") if prefix.endswith("checks.") else ()
            raise fail(key_node, key, "unknown key", f'did you mean "{near[0]}"?' if near else known)


def _siblings(pattern: str) -> list[tuple[str, str]]:
    prefix = pattern.rpartition(".")[0]
    prefix = f"{prefix}." if prefix else ""
    return [(prefix, known) for known in SCHEMA if known.startswith(prefix)]


TEMPLATE = """\
# Configuration of posduif. Every key is optional; what is commented out here is the default or an example.

# The PostgreSQL servers that hold tenants. Passwords belong into ~/.pgpass or a service file.
servers:
{servers}
# Where `tenant create` puts a tenant when there are several servers.
# default_server: eu1

# enrollment:
#   ttl: 1h
#   max_ttl: 7d

# migrations:
#   paths: []                 # further folders; relative ones start from this file's
#   lock_timeout: 2s
#   statement_timeout: 5m

# backup:
#   dir: /srv/backups         # it has no default; or s3://BUCKET/PREFIX
#   encrypt_to: []            # recipients of age, who can decrypt backups: age1...; name two
#   identity_file: null       # the file of an age identity, where backups are to be verified and restored
#   jobs: 2
#   keep: {{daily: 7, weekly: 4, monthly: 12}}

# checks:                       # of health, by their ids; also below a server
#   connections.full: {{warning: 80%, critical: 95%}}
#   settings.unsafe: {{off: true}}

# embedded:
#   data_dir: null
#   bin_dir: null
"""
EXAMPLE_SERVER = """\
#   eu1:
#     dsn: "host=db1.internal user=alice sslmode=verify-full"
#     url: "https://{tenant}.sync.example.com"
#     max_connections: 8
#     protected: true
#     engine:                     # what goes into the files of the tenants' sync engines
#       host: db1.internal        # where engines reach PostgreSQL; also port and ssl_mode
#       max_connections: 5        # an engine's pool
#       web_pool: 16              # connections for the web-api beside it
#       ports: 18080-18999        # each new tenant gets the next free one, on which its engine listens
#       redis: {host: redis1}     # also port, password and db
#       secret_file: jwt.key      # from it comes each tenant's jwt_secret; without it that is random
#       cors: []                  # origins of browser apps; the tenant's own url unless given
#   local: {embedded: true}     # the embedded server beside the others
"""


def init(path: Path) -> None:
    """Write a commented configuration file (mode 0600).

    Raises ConfigurationError when it exists or cannot be written.
    """
    try:
        with suppress(FileExistsError):  # a file in its place is met by the next line
            path.parent.mkdir(parents=True, exist_ok=True)
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
            file.write(TEMPLATE.format(servers=EXAMPLE_SERVER))
    except FileExistsError:
        raise ConfigurationError(f"{path} exists", why="it is left as it is", hint=Run("config", "show")) from None
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be written", why=error.strerror) from None
