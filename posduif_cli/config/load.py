"""One Config from flags, environment, YAML file and defaults, in this order; the only reader of the environment."""

import difflib
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

from posduif_cli.config import file
from posduif_cli.errors import ConfigurationError, InvalidDsn, NoServer, Run, UsageError, scrub
from posduif_cli.models.servers import Server, Setting
from posduif_cli.notation import spell

FORMATS = ("table", "tsv", "json", "jsonl")
MONITORING = ("nagios", "prometheus", "html")  # further formats, of health alone
SYSTEM_FILE = Path("/etc/posduif/config.yaml")


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
    servers: tuple[Server, ...]
    neighbours: tuple[Server, ...]
    default_server: str | None
    enrollment_ttl: timedelta
    enrollment_max_ttl: timedelta
    migration_paths: tuple[Path, ...]
    lock_timeout: timedelta
    statement_timeout: timedelta
    data_dir: Path
    bin_dir: Path | None
    backup_dir: Path | str | None
    backup_recipients: tuple[str, ...]
    backup_identity: Path | None
    backup_jobs: int
    backup_keep: Mapping[str, int]
    checks: Mapping[str, Mapping[str, Any]]
    output: str | None
    terminal: Terminal
    settings: tuple[Setting, ...]

    @property
    def secret(self) -> bool:
        """Whether the file holds a password or key, or a DSN that cannot be read and may hold one."""
        shown = [entry.value for entry in self.settings if entry.key.startswith("servers.")]
        return any("****" in value or value == MALFORMED for value in shown)


DEFAULTS: dict[str, Any] = {
    "default_server": None,
    "enrollment.ttl": timedelta(hours=1),
    "enrollment.max_ttl": timedelta(days=7),
    "migrations.paths": (),
    "migrations.lock_timeout": timedelta(seconds=2),
    "migrations.statement_timeout": timedelta(minutes=5),
    "embedded.data_dir": None,
    "embedded.bin_dir": None,
    "backup.dir": None,
    "backup.encrypt_to": (),
    "backup.identity_file": None,
    "backup.jobs": 2,
    "backup.keep.last": 0,
    "backup.keep.daily": 7,
    "backup.keep.weekly": 4,
    "backup.keep.monthly": 12,
}
# What libpq takes for a connection string of words; in any other text a password could be anywhere.
WORDS = re.compile(r"\s*(?:\w+\s*=\s*(?:'(?:[^'\\]|\\.)*'|(?:[^\s'\\]|\\.)(?:[^\s\\]|\\.)*)?(?:\s+|$))*", re.DOTALL)
KEYS = re.compile(r"(\w+)\s*=")
# libpq's words, up to PostgreSQL 18: what another word holds may be the rest of a password with a blank in it.
_LIBPQ = """
    application_name channel_binding client_encoding connect_timeout dbname fallback_application_name gssdelegation
    gssencmode gsslib host hostaddr keepalives keepalives_count keepalives_idle keepalives_interval krbsrvname
    load_balance_hosts max_protocol_version min_protocol_version oauth_client_id oauth_client_secret oauth_issuer
    oauth_scope options passfile password port replication require_auth requirepeer scram_client_key scram_server_key
    service servicefile ssl_max_protocol_version ssl_min_protocol_version sslcert sslcertmode sslcompression sslcrl
    sslcrldir sslkey sslkeylogfile sslmode sslnegotiation sslpassword sslrootcert sslsni target_session_attrs
    tcp_user_timeout user
"""
SECRET_KEYS = ("password", "jwt_secret")
MALFORMED = "malformed, and not shown: it may hold a password"


def _anchor(values: dict[str, Any], folder: Path) -> None:
    """Have relative paths start from the file's own folder, not from wherever cron runs the command."""
    for key in ("embedded.data_dir", "embedded.bin_dir", "backup.dir", "backup.identity_file"):
        if isinstance(values.get(key), Path):
            values[key] = folder / values[key]
    for key in values:
        if re.fullmatch(r"servers\.[^.]+\.engine\.secret_file", key) and values[key]:
            values[key] = folder / values[key]
    if "migrations.paths" in values:
        values["migrations.paths"] = tuple(folder / path for path in values["migrations.paths"])


def load(
    flags: Mapping[str, Any],
    environ: Mapping[str, str] | None = None,
    *,
    search: bool = True,
    formats: Sequence[str] = FORMATS,
) -> Config:
    """Build the Config for one command.

    *flags* holds the global options that were given, by their names; without *search* no file is looked for in the
    usual places; *formats* are those of the command. Raises ConfigurationError for a
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
    _check_choice(given, "output", formats)
    _check_choice(given, "color", ("auto", "always", "never"))

    path = _file(given, env) if search or "config" in given else None
    values, lines = file.read(path) if path else ({}, {})
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
        backup_dir=get("backup.dir"),
        backup_recipients=get("backup.encrypt_to"),
        backup_identity=get("backup.identity_file"),
        backup_jobs=get("backup.jobs"),
        backup_keep={rule: get(f"backup.keep.{rule}") for rule in ("last", "daily", "weekly", "monthly")},
        checks=_checks({key: value for key, value in values.items() if key.startswith("checks.")}),
        output=given.get("output", (None,))[0],
        terminal=terminal(given.get("color", ("auto",))[0], env),
        settings=_settings({**DEFAULTS, **values, "embedded.data_dir": data_dir}, lines, path),
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


def _check_choice(given: Mapping[str, tuple[Any, str]], key: str, choices: Sequence[str]) -> None:
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


def user_cache_home() -> Path:
    """Where this user's programs keep what may be deleted at any time: `$XDG_CACHE_HOME`."""
    return _base(os.environ, "XDG_CACHE_HOME", ".cache")


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


def _servers(values: Mapping[str, Any], path: Path | None) -> dict[str, Server]:
    found: dict[str, dict[str, Any]] = {}
    for key, value in values.items():
        if key.startswith("servers."):
            name, _, rest = key.removeprefix("servers.").partition(".")
            where = found.setdefault(name, {})
            if rest.startswith("checks."):
                where.setdefault("checks", {})[rest] = value
                continue
            *groups, leaf = rest.split(".")
            for group in groups:
                where = where.setdefault(group, {})
            where[leaf] = value
    for name, settings in found.items():
        if settings.get("embedded"):
            if "dsn" in settings:
                raise ConfigurationError(
                    f"{path}: servers.{name}: has both dsn and embedded", hint="give one of the two"
                )
            settings["dsn"] = ""
        elif "dsn" not in settings:
            raise ConfigurationError(
                f"{path}: servers.{name}.dsn: is missing",
                hint=f'add  dsn: "host=... user=..."  below servers.{name}, or  embedded: true',
            )
        _check_dsn(settings["dsn"], f"{path}, servers.{name}.dsn")
    if len(several := [name for name, settings in found.items() if settings.get("embedded")]) > 1:
        raise ConfigurationError(f"{path}: {' and '.join(several)} are both the embedded server")
    for settings in found.values():
        settings["checks"] = _checks(settings.get("checks", {}))
    return {name: Server(name=name, origin=str(path), **found[name]) for name in found}


def _checks(values: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return what `checks.ID.KEY` says by the id of the check, which has a dot in it.

    >>> _checks({"checks.connections.full.warning": "80%"})
    {'connections.full': {'warning': '80%'}}
    """
    found: dict[str, dict[str, Any]] = {}
    for key, value in values.items():
        id_, _, leaf = key.removeprefix("checks.").rpartition(".")
        found.setdefault(id_, {})[leaf] = value
    return found


def _choose(
    given: Mapping[str, tuple[Any, str]], configured: Mapping[str, Server], env: Mapping[str, str]
) -> tuple[Server, ...]:
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
        return (Server(_host(_check_dsn(dsn, dsn_source)), dsn, origin=dsn_source, named=False),)
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
    return (Server(name="libpq", dsn="", origin=named[0], named=False),) if named else ()


def _host(dsn: str) -> str:
    """Return what the server of a DSN is called: its host, or `dsn` where it has none but a socket.

    >>> _host("host=db1.internal user=alice"), _host("postgresql://alice@[::1]:5433/x"), _host("host=/run user=x")
    ('db1.internal', '::1', 'dsn')
    """
    uri = re.match(r"postgres(?:ql)?://(?:[^/?]*@)?(\[[^]/?]*\]|[^:/?,]*)", dsn)
    words = re.search(r"(?:^|\s)host(?:addr)?\s*=\s*'?([^\s',]+)", dsn)
    host = uri[1].strip("[]") if uri else words[1] if words else ""
    return host if re.fullmatch(r"[\w.:-]+", host) else "dsn"


def _default_server(name: str | None, values: Mapping[str, Any], path: Path | None) -> str | None:
    known = {key.split(".")[1] for key in values if key.startswith("servers.")}
    if name in (None, "emptiest") or name in known:
        return name
    near = difflib.get_close_matches(name, known, 1)
    raise ConfigurationError(
        f'{path}: default_server: no server is called "{name}"', hint=f'did you mean "{near[0]}"?' if near else ()
    )


def _settings(values: Mapping[str, Any], lines: Mapping[str, str], path: Path | None) -> tuple[Setting, ...]:
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
        if key.endswith("dsn") and "://" not in value and not set(KEYS.findall(value)) <= set(_LIBPQ.split()):
            return MALFORMED
        return scrub(str(value))

    settings = [Setting(key, show(key, value), lines.get(key, "default")) for key, value in values.items()]
    where = lines.get("config", "found there") if path else "no file found"
    return (Setting("config", str(path or ""), where), *settings)
