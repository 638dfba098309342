"""One Config from flags, environment, YAML file and defaults, in this order; the only reader of the environment."""

import difflib
import os
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

from posduif_cli.errors import ConfigurationError, InvalidDsn, InvalidDuration, NoServer, Run, UsageError
from posduif_cli.notation import duration, origin, spell

FORMATS = ("table", "tsv", "json", "jsonl")
SYSTEM_FILE = Path("/etc/posduif/config.yaml")


@dataclass(frozen=True, eq=False, repr=False)
class ServerSettings:
    """One entry of `servers:`; *engine* holds what `engine-config` fills in."""

    name: str
    dsn: str = field(repr=False)
    origin: str
    url: str | None = None
    max_connections: int = 8
    protected: bool = False
    engine: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False, repr=False)
class Entry:
    """One setting, for `config show`."""

    key: str
    value: str
    origin: str


@dataclass(frozen=True, eq=False, repr=False)
class Terminal:
    """What the environment says about the terminal."""

    color: str
    term: str
    utf8: bool
    shell: str


@dataclass(frozen=True, eq=False, repr=False)
class Config:
    """Everything that is configured; *servers* is empty when no server was named anywhere.

    *neighbours* are the configured servers that --server left out.
    """

    path: Path | None
    servers: tuple[ServerSettings, ...]
    neighbours: tuple[ServerSettings, ...]
    default_server: str | None
    enrollment_ttl: timedelta
    enrollment_max_ttl: timedelta
    migration_paths: tuple[Path, ...]
    lock_timeout: timedelta
    statement_timeout: timedelta
    data_dir: Path
    bin_dir: Path | None
    output: str | None
    terminal: Terminal
    entries: tuple[Entry, ...]

    @property
    def secret(self) -> bool:
        """Whether the file holds a password or key, or a DSN that cannot be read and may hold one."""
        shown = [entry.value for entry in self.entries if entry.key.startswith("servers.")]
        return any("****" in value or value == MALFORMED for value in shown)


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


def _path(value: Any) -> Path | None:
    return None if value is None else Path(_text(value)).expanduser()


def _paths(value: Any) -> tuple[Path, ...]:
    if not isinstance(value, list):
        raise ValueError("must be a list of folders")
    return tuple(Path(_text(item)).expanduser() for item in value)


SCHEMA: dict[str, Reader] = {
    "servers.*.dsn": _text,
    "servers.*.url": _origin,
    "servers.*.max_connections": _count,
    "servers.*.protected": _flag,
    "servers.*.engine.host": _text,
    "servers.*.engine.port": _count,
    "servers.*.engine.ssl_mode": _text,
    "servers.*.engine.max_connections": _count,
    "servers.*.engine.sse_port": _count,
    "servers.*.engine.jwt_secret": _text,
    "servers.*.engine.redis.host": _text,
    "servers.*.engine.redis.port": _count,
    "servers.*.engine.redis.password": _text,
    "servers.*.engine.redis.db": _number,
    "default_server": _text,
    "enrollment.ttl": _span,
    "enrollment.max_ttl": _span,
    "migrations.paths": _paths,
    "migrations.lock_timeout": _span,
    "migrations.statement_timeout": _span,
    "embedded.data_dir": _path,
    "embedded.bin_dir": _path,
}
DEFAULTS: dict[str, Any] = {
    "default_server": None,
    "enrollment.ttl": timedelta(hours=1),
    "enrollment.max_ttl": timedelta(days=7),
    "migrations.paths": (),
    "migrations.lock_timeout": timedelta(seconds=2),
    "migrations.statement_timeout": timedelta(minutes=5),
    "embedded.data_dir": None,
    "embedded.bin_dir": None,
}
# What libpq takes for a connection string of words; in anything else a password could stand anywhere.
WORDS = re.compile(r"\s*(?:\w+\s*=\s*(?:'(?:[^'\\]|\\.)*'|(?:[^\s'\\]|\\.)(?:[^\s\\]|\\.)*)?(?:\s+|$))*", re.DOTALL)
SECRET_KEYS = ("password", "jwt_secret")
MALFORMED = "malformed, and not shown: it may hold a password"


def _anchor(values: dict[str, Any], folder: Path) -> None:
    """Have relative paths start from the file's own folder, not from wherever cron runs the command."""
    for key in ("embedded.data_dir", "embedded.bin_dir"):
        if values.get(key):
            values[key] = folder / values[key]
    if "migrations.paths" in values:
        values["migrations.paths"] = tuple(folder / path for path in values["migrations.paths"])


def load(flags: Mapping[str, Any], environ: Mapping[str, str] | None = None, *, search: bool = True) -> Config:
    """Build the Config for one command.

    *flags* holds the global options that were given, by their names; without *search* no file is looked for in the
    usual places. Raises ConfigurationError for a
    malformed or missing file, NoServer for a server that is not configured, UsageError for options that
    fight.
    """
    env = os.environ if environ is None else environ
    given = {key: (value, f"--{key.replace('_', '-')}") for key, value in flags.items() if value is not None}
    for value, source in given.values():
        # As a script's unset variable makes it: to go on with the next place would be someone else's server.
        if value == "":
            raise UsageError(f"{source} is empty")
    for key in ("config", "server", "dsn", "output", "color", "data_dir"):
        name = f"POSDUIF_{key.upper()}"
        if key not in given and env.get(name):
            given[key] = (env[name], name)
    _check_choice(given, "output", FORMATS)
    _check_choice(given, "color", ("auto", "always", "never"))

    path = _file(given, env) if search or "config" in given else None
    values, lines = read(path) if path else ({}, {})
    if path:
        _anchor(values, path.parent)
    configured = _servers(values, path)
    servers = _choose(given, configured, env)
    narrowed = any(server.name in configured for server in servers)
    if "config" in given:
        lines["config"] = given["config"][1]
    for server in servers:
        if server.name == "libpq":
            values["server"], lines["server"] = server.name, server.origin
    for key in ("server", "dsn", "output", "color"):
        if key in given:
            values[key], lines[key] = given[key]
    if "data_dir" in given:
        values["embedded.data_dir"] = Path(given["data_dir"][0])
        lines["embedded.data_dir"] = given["data_dir"][1]
    get = {**DEFAULTS, **values}.__getitem__
    data_dir = get("embedded.data_dir") or _default_data_dir(env)
    return Config(
        path=path,
        servers=servers,
        neighbours=tuple(s for s in configured.values() if s not in servers) if narrowed else (),
        default_server=_default_server(get("default_server"), values, path),
        enrollment_ttl=get("enrollment.ttl"),
        enrollment_max_ttl=get("enrollment.max_ttl"),
        migration_paths=get("migrations.paths"),
        lock_timeout=get("migrations.lock_timeout"),
        statement_timeout=get("migrations.statement_timeout"),
        data_dir=data_dir.absolute(),
        bin_dir=get("embedded.bin_dir"),
        output=given.get("output", (None,))[0],
        terminal=terminal(given.get("color", ("auto",))[0], env),
        entries=_entries({**DEFAULTS, **values, "embedded.data_dir": data_dir}, lines, path),
    )


def without_file(terminal: Terminal, output: str | None) -> Config:
    """Make the Config of a command that has to tell of a file that cannot be used."""
    return replace(load({"output": output}, {}, search=False), terminal=terminal)


def terminal(color: str, environ: Mapping[str, str] | None = None) -> Terminal:
    """Judge the terminal; colour follows NO_COLOR and CLICOLOR_FORCE unless *color* decides it."""
    env = os.environ if environ is None else environ
    if color == "auto" and env.get("NO_COLOR"):
        color = "never"
    elif color == "auto" and env.get("CLICOLOR_FORCE", "0") != "0":
        color = "always"
    locale = env.get("LC_ALL") or env.get("LC_CTYPE") or env.get("LANG") or ""
    return Terminal(
        color=color,
        term=env.get("TERM", ""),
        utf8=bool(re.search(r"utf-?8", locale, re.IGNORECASE)),
        shell=Path(env.get("SHELL", "")).name,
    )


def environment_output() -> str:
    """Return what POSDUIF_OUTPUT asks for, for errors that arise before there is a Config."""
    return os.environ.get("POSDUIF_OUTPUT", "")


def _check_dsn(dsn: str, source: str) -> str:
    """Refuse a URI whose password holds a bare @ or /: libpq takes the rest for a host, and errors would show it."""
    match = re.match(r"postgres(?:ql)?://(.*)", dsn, re.DOTALL)
    if match:
        head, at, tail = match[1].partition("@")
        place = re.split(r"[/?]", tail)[0]
        if at and ("/" in head or "@" in place or "@" in tail.partition("?")[0]):
            raise InvalidDsn(
                "a connection URI holds a bare @ or / in user or password",
                why=f"it comes from {source}; it is not shown, because it may hold a password",
                hint="write %40 for @ and %2F for /",
            )
    return dsn


def _check_choice(given: Mapping[str, tuple[Any, str]], key: str, choices: tuple[str, ...]) -> None:
    value, source = given.get(key, (choices[0], ""))
    if value not in choices:
        raise UsageError(f'{source}: "{value}" is not one of {", ".join(choices)}')


def _file(given: Mapping[str, tuple[Any, str]], env: Mapping[str, str]) -> Path | None:
    if "config" in given:
        value, source = given["config"]
        path = Path(value).expanduser()
        if path.exists() and not path.is_file():
            raise ConfigurationError(f"{path} is not a regular file", why=f"{source} names it")
        if not path.is_file():
            raise ConfigurationError(
                f"configuration file {path} does not exist",
                why=f"{source} names it",
                hint=Run("config", "init", "--config", str(path)),
            )
        return path
    places = (user_file(env), SYSTEM_FILE)
    return next((place for place in places if place.is_file()), None)


def user_file(environ: Mapping[str, str] | None = None) -> Path:
    """Where `config init` puts the file: `$XDG_CONFIG_HOME/posduif/config.yaml`."""
    env = os.environ if environ is None else environ
    return _base(env, "XDG_CONFIG_HOME", ".config") / "posduif" / "config.yaml"


def file_to_make(given: str | None) -> Path:
    """Where `config init` writes: what --config or POSDUIF_CONFIG names, else the user's place."""
    named = given or os.environ.get("POSDUIF_CONFIG")
    return Path(named).expanduser() if named else user_file()


def user_data_home(environ: Mapping[str, str] | None = None) -> Path:
    """Where this user's programs keep data: `$XDG_DATA_HOME`."""
    return _base(os.environ if environ is None else environ, "XDG_DATA_HOME", ".local/share")


def user_config_home() -> Path:
    """Where this user's programs keep their configuration: `$XDG_CONFIG_HOME`."""
    return _base(os.environ, "XDG_CONFIG_HOME", ".config")


def drop_session_variables() -> None:
    """Remove what libpq would send as start-up values of a session, which RESET goes back to: zone and styles."""
    for name in ("PGTZ", "PGDATESTYLE", "PGGEQO"):
        os.environ.pop(name, None)


def passfile() -> Path:
    """Where libpq looks for passwords."""
    return Path(os.environ.get("PGPASSFILE") or Path(os.environ.get("HOME") or Path.home()) / ".pgpass")


def _base(env: Mapping[str, str], variable: str, fallback: str) -> Path:
    value = env.get(variable, "")
    return Path(value) if value.startswith("/") else Path(env.get("HOME") or Path.home()) / fallback


def _default_data_dir(env: Mapping[str, str]) -> Path:
    return Path("/var/lib/posduif") if os.geteuid() == 0 else user_data_home(env) / "posduif"


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

    def fail(at: Any, key: str, reason: str, hint: str | tuple[()] = ()) -> ConfigurationError:
        return ConfigurationError(f"{path}:{at.start_mark.line + 1}: {key}: {reason}", hint=hint)

    if not isinstance(node, yaml.MappingNode):
        raise fail(node, prefix.rstrip(".") or "the file", "must hold `key: value` lines")
    seen: set[str] = set()
    for key_node, value_node in node.value:
        name = str(key_node.value)
        key = prefix + name
        if name in seen:
            raise fail(key_node, key, "stands here a second time")
        seen.add(name)
        if prefix == "servers." and not re.fullmatch(r"[a-z0-9][a-z0-9_-]{0,62}", name):
            raise fail(key_node, key, "a server's name is made of a-z, 0-9, _ and -")
        pattern = re.sub(r"^servers\.[^.]+", "servers.*", key)
        if pattern in SCHEMA:
            lines[key] = f"{path}:{key_node.start_mark.line + 1}"
            try:
                values[key] = SCHEMA[pattern](loader.construct_object(value_node, deep=True))
            except (ValueError, KeyError, IndexError, AttributeError, TypeError, yaml.YAMLError) as error:
                raise fail(value_node, key, str(error) or "is no such value") from None
        elif pattern == "servers.*" and not getattr(value_node, "value", None):
            raise fail(value_node, f"{key}.dsn", "is missing", 'dsn: "host=... user=..."')
        elif pattern == "servers" or any(known.startswith(f"{pattern}.") for known in SCHEMA):
            if value_node.tag != "tag:yaml.org,2002:null":
                _walk(value_node, f"{key}.", path, loader, values, lines)
        else:
            siblings = {known[len(prefix_of) :].split(".")[0] for prefix_of, known in _siblings(pattern)}
            near = difflib.get_close_matches(name, siblings, 1)
            raise fail(key_node, key, "unknown key", f'did you mean "{near[0]}"?' if near else ())


def _siblings(pattern: str) -> list[tuple[str, str]]:
    prefix = pattern.rpartition(".")[0]
    prefix = f"{prefix}." if prefix else ""
    return [(prefix, known) for known in SCHEMA if known.startswith(prefix)]


def _servers(values: Mapping[str, Any], path: Path | None) -> dict[str, ServerSettings]:
    found: dict[str, dict[str, Any]] = {}
    for key, value in values.items():
        if key.startswith("servers."):
            name, _, rest = key.removeprefix("servers.").partition(".")
            where = found.setdefault(name, {})
            *groups, leaf = rest.split(".")
            for group in groups:
                where = where.setdefault(group, {})
            where[leaf] = value
    for name, settings in found.items():
        if "dsn" not in settings:
            raise ConfigurationError(
                f"{path}: servers.{name}.dsn: is missing",
                hint=f'add  dsn: "host=... user=..."  below servers.{name}',
            )
        _check_dsn(settings["dsn"], f"{path}, servers.{name}.dsn")
    return {name: ServerSettings(name=name, origin=str(path), **found[name]) for name in found}


def _choose(
    given: Mapping[str, tuple[Any, str]], configured: Mapping[str, ServerSettings], env: Mapping[str, str]
) -> tuple[ServerSettings, ...]:
    server, server_source = given.get("server", (None, ""))
    dsn, dsn_source = given.get("dsn", (None, ""))
    if server and dsn:
        if server_source.startswith("--") == dsn_source.startswith("--"):
            raise UsageError(f"{server_source} and {dsn_source} both name a server", hint="give one of the two")
        if dsn_source.startswith("--"):
            server = None
        else:
            dsn = None
    if dsn:
        return (ServerSettings(name="dsn", dsn=_check_dsn(dsn, dsn_source), origin=dsn_source),)
    if server == "embedded" and "embedded" not in configured:
        return ()
    if server and server not in configured:
        raise NoServer(
            f'server "{server}" is not configured',
            why=f"{server_source} names it; configured are: {', '.join(configured) or 'none'}",
            hint=Run("config", "init") if not configured else f"--server {next(iter(configured))}",
        )
    if server:
        return (configured[server],)
    if configured:
        return tuple(configured.values())
    named = [name for name in ("PGHOST", "PGHOSTADDR", "PGSERVICE") if env.get(name)]
    return (ServerSettings(name="libpq", dsn="", origin=named[0]),) if named else ()


def _default_server(name: str | None, values: Mapping[str, Any], path: Path | None) -> str | None:
    known = {key.split(".")[1] for key in values if key.startswith("servers.")}
    if name in (None, "emptiest") or name in known:
        return name
    near = difflib.get_close_matches(name, known, 1)
    raise ConfigurationError(
        f'{path}: default_server: no server is called "{name}"', hint=f'did you mean "{near[0]}"?' if near else ()
    )


def _entries(values: Mapping[str, Any], lines: Mapping[str, str], path: Path | None) -> tuple[Entry, ...]:
    from posduif_cli.errors import scrub

    def show(key: str, value: Any) -> str:
        if key.rsplit(".", 1)[-1] in SECRET_KEYS:
            return "****"
        if value is None:
            return ""
        if isinstance(value, bool):
            return str(value).lower()
        if isinstance(value, timedelta):
            return spell(value)
        if isinstance(value, tuple):
            return ", ".join(map(str, value))
        if key.endswith("dsn") and "://" not in value and not WORDS.fullmatch(value):
            return MALFORMED
        return scrub(str(value))

    entries = [Entry(key, show(key, value), lines.get(key, "default")) for key, value in values.items()]
    where = lines.get("config", "found there") if path else "no file found"
    return (Entry("config", str(path or ""), where), *entries)


TEMPLATE = """\
# Configuration of posduif. Every key is optional; what stands here commented out is the default or an example.

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
#     engine: {host: db1.internal, redis: {host: redis1}, max_connections: 5}
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
