"""What checks judge: the answers about a server, a tenant, this machine and its configuration.

Each is gathered once, by one session where a server is asked. What was not asked, or not answered, is None or empty.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property, partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from posduif_cli.core.checks.check import Verdict
from posduif_cli.core.folders import Folders
from posduif_cli.core.schema.inventory import Thing
from posduif_cli.core.schema.strangers import Stranger
from posduif_cli.db import admin
from posduif_cli.db.record import Record
from posduif_cli.errors import Hint, PosduifError
from posduif_cli.models.checks import ServerHealth, TenantHealth
from posduif_cli.models.copies import Aside, Backup
from posduif_cli.models.schema import Migration
from posduif_cli.models.servers import Server
from posduif_cli.models.tenants import Engine, State, Tenant

Rows = Sequence[Mapping[str, Any]]  # what a query answered, columns by name


@dataclass(frozen=True)
class ServerFacts:
    """What one session saw of a server; *affected* names the tenants that an *error* keeps from being asked for.

    *seen* holds the rows of each query that was answered, by its name. *tenants* is None where it did not list them.
    *login* is the role that asked, *member* that it is an administrator, *monitor* that it may see what other roles'
    sessions do. *named* says that tenants were asked about by name. *asides* are databases that restores set aside,
    *store_error* is why the backups could not be read.
    """

    figures: ServerHealth
    seen: Mapping[str, Rows] = field(default_factory=dict)
    unanswered: Sequence[Verdict] = ()
    error: PosduifError | None = None
    affected: tuple[str, ...] = ()
    tenants: Sequence[Tenant] | None = None
    sizes: Mapping[str, int] = field(default_factory=dict)
    login: str = ""
    member: bool = False
    monitor: bool = True
    named: bool = False
    asides: Sequence[Aside] = ()
    store_error: PosduifError | None = None
    now: datetime = field(default_factory=partial(datetime.now, UTC))

    @property
    def subject(self) -> str:
        """The server's name."""
        return self.figures.server

    def rows(self, query: str) -> Rows:
        """Return what a query answered; nothing where it was not asked or not answered."""
        return self.seen.get(query, ())

    def names(self, databases: Iterable[str]) -> tuple[str, ...]:
        """Return those of some databases that are tenants."""
        return tuple(dict.fromkeys(name for name in databases if name in self._known))

    @cached_property
    def _known(self) -> frozenset[str]:
        return frozenset(tenant.tenant for tenant in self.tenants or ())


@dataclass(frozen=True)
class Answer:
    """What a tenant's url answered: the HTTP *status*, or at which *step* it failed, and why.

    *step* is "name", "connect", "certificate", "silence" or "http". *ends* is when the certificate ends.
    """

    url: str
    status: int | None = None
    step: str | None = None
    why: str = ""
    ends: datetime | None = None


@dataclass(frozen=True)
class TenantFacts:
    """What the fleet knows of a tenant; *measured* are the figures of its database.

    *visited* is what a session in its database saw: the rows of each query that was answered, by its name. *missing*
    are the commands that grants.sql would run, None where that was not asked. *backups* are those of its name, the
    oldest first; None where none are looked at. *answer* is what its engine answered, *full* that the engine's role has
    all its connections. *shut_out* says what else than NOLOGIN keeps the engine from logging in, and what ends it.
    """

    tenant: Tenant
    measured: Mapping[str, Any] = field(default_factory=dict)
    visited: Mapping[str, Rows] = field(default_factory=dict)
    unanswered: Sequence[Verdict] = ()
    missing: Sequence[str] | None = None
    backups: Sequence[Backup] | None = None
    answer: Answer | None = None
    full: bool = False
    shut_out: tuple[str, Hint | None] | None = None
    now: datetime = field(default_factory=partial(datetime.now, UTC))

    @property
    def subject(self) -> str:
        """The tenant's name."""
        return self.tenant.tenant

    def rows(self, query: str) -> Rows:
        """Return what a query answered; nothing where it was not asked or not answered."""
        return self.visited.get(query, ())

    @property
    def figures(self) -> TenantHealth:
        """The figures of a health report."""
        t = self.tenant
        return TenantHealth(t.tenant, t.server, t.state, t.schema_version, t.pending, **self.measured)


@dataclass(frozen=True)
class VisitedServer:
    """The tenants of one server that were visited."""

    subject: str
    tenants: Sequence[TenantFacts]


@dataclass(frozen=True)
class Setup:
    """How a server is set up, and what the login may there.

    *members* holds role, the roles that may add members, and the members, as text. It, *missing*, *unadministered* and
    *unmonitored* are asked as a member of the administrators alone. *unproved* says what the server does unlike
    PostgreSQL. *engines* is the number of engines to judge for; None is one per tenant.
    """

    server: Server
    error: PosduifError | None = None
    unanswered: Sequence[Verdict] = ()
    affected: tuple[str, ...] = ()
    database: str = ""
    member: bool | None = None
    heir: bool | None = None
    version: str | None = None
    version_number: int | None = None
    role: str | None = None
    record_owner: str | None = None
    is_superuser: bool = False
    is_standby: bool = False
    is_open: bool = False
    is_owner: bool = False
    wal_senders: int = 0
    ssl: bool = False
    listen_addresses: str = ""
    connections: int | None = None
    max_connections: int = 0
    reserved: int = 0
    tenants: int = 0
    size_bytes: int | None = None
    missing: Sequence[str] | None = None
    members: Sequence[tuple[str, str, str]] = ()
    unadministered: Sequence[str] = ()
    unmonitored: Sequence[str] = ()
    unproved: PosduifError | None = None
    engines: int | None = None

    @property
    def subject(self) -> str:
        """The server's name."""
        return self.server.name

    @property
    def may_close(self) -> bool:
        """Whether the login may close the maintenance database to PUBLIC."""
        return self.is_superuser or self.is_owner


@dataclass(frozen=True)
class Applied:
    """What is applied to a tenant.

    *half* are the files that were begun, with the number of statements done; *migrations* every file compared with the
    tenant's version table.
    """

    subject: str
    folders: Folders
    half: Mapping[str, int] = field(default_factory=dict)
    migrations: Sequence[Migration] = ()


@dataclass(frozen=True, kw_only=True)
class Recorded(Applied):
    """What is applied to a tenant by its record and by its version table, which has the versions *applied*."""

    record: Record
    applied: frozenset[str]


@dataclass(frozen=True, kw_only=True)
class Inspection(Recorded):
    """All that `tenant verify` judges of one tenant: its record, its database and role, and its own catalogs.

    *outside* is the row of `describe_tenants`: its database and its engine's role, as the shared catalogs have them.
    What follows is from its own catalogs; the default is what they should say. *creators* may create objects in the
    schema public. *readers* holds group, table and column of texts that people may read; *foreign* kind, name and owner
    of objects; *missing* the commands that grants.sql would run.
    """

    server: Server
    outside: SimpleNamespace
    may_create: bool = False
    creators: Sequence[str] = ()
    readers: Sequence[tuple[str, str, str]] = ()
    foreign: Sequence[tuple[str, str, str]] = ()
    missing: Sequence[str] = ()
    secured: Sequence[tuple[str, bool, bool]] = ()
    strangers: Sequence[Stranger] = ()

    @property
    def role(self) -> str:
        """The name of the engine's role."""
        return admin.engine_role(self.subject)

    @property
    def active(self) -> bool:
        """Whether the tenant is active by its record."""
        return self.record.state is State.ACTIVE

    @property
    def given(self) -> Engine:
        """What the engine was given: another machine's configuration does not decide that."""
        return admin.decided_by(self.server, self.record, self.outside.role_limit)


@dataclass(frozen=True)
class Files:
    """The migration files of this machine that cannot be run, by name, with what is wrong."""

    faults: Mapping[str, PosduifError]
    subject: str = "files"


@dataclass(frozen=True)
class Clusters:
    """The tenants of one server to which the same migrations were applied, by the digest of what they are made of.

    *kept* has the objects of each digest. *reference* is what the migrations make on that server.
    """

    subject: str
    clusters: Mapping[str, Sequence[str]]
    kept: Mapping[str, Sequence[Thing]]
    reference: Sequence[Thing] | None = None


@dataclass(frozen=True)
class Machine:
    """What is known of this machine.

    *columns* is the terminal's width, None without one; *completion* None for a shell that has none. *pg_dumps* are the
    major versions of those found, by path, 0 where one does not say it; *newest* is that of the servers.
    """

    utf8: bool
    term: str
    columns: int | None
    shell: str
    completion: Path | None
    pg_dumps: Mapping[str, int] = field(default_factory=dict)
    newest: int = 0
    subject: str = "this machine"


@dataclass(frozen=True)
class Configuration:
    """The configuration's file, None without one, and whether it holds a *secret*; *folders* are of migrations.

    *passfile* is libpq's. *error* is why the file could not be read, *unnamed* why no server is named. *key* says
    whether an identity for encrypted backups is configured, None where they are not encrypted; *key_error* is what is
    wrong with it. *place* says how many backups are where.
    """

    passfile: Path
    path: Path | None = None
    secret: bool = False
    folders: Folders | None = None
    error: PosduifError | None = None
    unnamed: PosduifError | None = None
    place: str | None = None
    place_error: PosduifError | None = None
    key: bool | None = None
    key_file: Path | None = None
    key_error: PosduifError | None = None
    subject: str = "configuration"
