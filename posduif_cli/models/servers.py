"""Servers, and the configuration that names them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from posduif_cli.errors import Hint
from posduif_cli.models.values import Value


@dataclass(frozen=True, eq=False, repr=False)
class Server(Value):
    """A PostgreSQL server that holds tenants, as the configuration describes it.

    *url* is the origin that phones reach a tenant by, with `{tenant}` in it; *max_connections* is how many
    connections posduif may hold there at once; *origin* says where the DSN
    came from; *engine* is what `engine-config` fills in. *embedded* is the embedded server, whose DSN is known once it
    runs. *checks* holds what is configured of the checks of health there, by their ids. *named* says whether
    `--server NAME` means this server: one that was given by its DSN has no name there.
    """

    name: str
    dsn: str = field(repr=False)
    origin: str = ""
    url: str | None = None
    max_connections: int = 8
    protected: bool = False
    engine: Mapping[str, Any] = field(default_factory=dict)
    embedded: bool = False
    named: bool = True
    checks: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True, eq=False, repr=False)
class ServerInfo(Value):
    """One configured server; *error* says why it could not be asked.

    *size_bytes* is what its tenants take, None where that would have taken too long; *role* is the login,
    *record_owner* the role whose databases' records are trusted, None where there is none yet; *version_number* is
    PostgreSQL's `server_version_num`: 180006 for 18.6, 190000 for a beta of 19.
    """

    server: str
    reachable: bool
    source: str
    version: str | None = None
    tenants: int | None = None
    size_bytes: int | None = None
    connections: int | None = None
    max_connections: int | None = None
    role: str | None = None
    record_owner: str | None = None
    warnings: tuple[Hint, ...] = ()
    error: str | None = None
    version_number: int | None = None


@dataclass(frozen=True, eq=False, repr=False)
class EmbeddedStatus(Value):
    """Whether the embedded server runs; *listen* is the address that local programs reach it by, if there is one."""

    running: bool
    pid: int | None
    version: str | None
    data_dir: Path
    dsn: str | None
    listen: str | None = None
    changed: bool | None = None


@dataclass(frozen=True, eq=False, repr=False)
class Setting(Value):
    """One configuration value and where it came from; secrets masked."""

    key: str
    value: str
    origin: str
