"""The fleet: all tenants on all configured servers; find one, open one, ask many."""

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from math import inf
from typing import Any, TypeVar

from posduif_cli.core import names
from posduif_cli.core.fleet.crew import Crew, Share
from posduif_cli.core.folders import Folders, bundled_in
from posduif_cli.db import admin, connect, queries, record
from posduif_cli.db.connect import MAINTENANCE
from posduif_cli.db.record import Intent, Record
from posduif_cli.db.session import ADMIN_ROLE, QUESTION_TIMEOUT, Footing
from posduif_cli.db.session import Session as Session
from posduif_cli.errors import (
    AccessDenied,
    AmbiguousTenant,
    NoServer,
    PosduifError,
    Run,
    ServerUnreachable,
    TenantNotFound,
    WrongState,
)
from posduif_cli.models.checks import Finding
from posduif_cli.models.servers import Server
from posduif_cli.models.tenants import ENGINE_PORT, State, Tenant

T = TypeVar("T")
Errors = dict[str, PosduifError]  # by the name of a server or a tenant
Survey = tuple[Mapping[str, Tenant], AccessDenied | None]  # a server's tenants by name, why none may be entered
SURVEYED = 2.0  # seconds for which an answer about a server's tenants explains why they cannot be entered
SIZES_TIMEOUT = timedelta(minutes=2)  # a server's file system is walked for them
EMPTIEST = "emptiest"  # as default_server: the server with the fewest tenants

# What takes a tenant out of each state. A tenant that another command works on is only shown, and what can still be
# rescued is not dropped.
NEXT_STEP: Mapping[State, Callable[[str], Sequence[Run]]] = {
    State.PROVISIONING: lambda name: (Run("tenant", "create", name),),
    State.SUSPENDED: lambda name: (Run("tenant", "resume", name),),
    **dict.fromkeys(
        (State.ACTIVE, State.MOVING, State.MOVED, State.RESTORING), lambda name: (Run("tenant", "show", name),)
    ),
    State.DROPPING: lambda name: (Run("tenant", "drop", name, "--confirm", name),),
    State.LOST: lambda name: (
        Run("tenant", "adopt", name, lead=f"restore its database {name}, then"),
        Run("tenant", "drop", name, "--confirm", name, lead="or give it up"),
    ),
}


@dataclass(frozen=True)
class Traces:
    """What is under a tenant's name on one server, whether it is posduif's or not.

    *comment* is the database's; `record` trusts it. *intent* is None unless posduif made the engine's role for this
    tenant. *tenant* is what the marks mean together, None where they are not posduif's. *at* is the server's clock.
    """

    name: str
    owner: str | None = None
    comment: str | None = None
    open: bool | None = None
    connection_limit: int | None = None
    has_role: bool = False
    intent: Intent | None = None
    tenant: Tenant | None = None
    at: datetime | None = None

    @property
    def record(self) -> Record | None:
        """The database's record; None where posduif_admin does not own the database."""
        return record.parse(self.comment) if self.owner == ADMIN_ROLE else None


@dataclass(frozen=True)
class Found:
    """A tenant, the server that has it, and its record, all from the answer to one question."""

    server: Server
    tenant: Tenant
    record: Record | None

    def require(self, *states: State) -> None:
        """Raise WrongState unless the tenant is in one of *states*."""
        if self.tenant.state not in states:
            raise wrong_state(self.tenant)


@dataclass(frozen=True)
class Place(Found):
    """A tenant that is worked on: what `Found` says, and a session in its database."""

    session: Session


@dataclass(frozen=True)
class Fleet:
    """The servers that a command works on; *command* shows in `application_name`.

    *neighbours* are those that --server left out: they are asked only whether they have a tenant of a new one's name.
    *ended* names the sessions of engines that posduif ended because they held its own locks.
    """

    servers: tuple[Server, ...]
    command: str
    folders: Folders = field(default_factory=Folders)
    default_server: str | None = None
    neighbours: tuple[Server, ...] = ()
    ended: list[str] = field(default_factory=list, init=False, repr=False)
    _footings: dict[str, Footing | None] = field(default_factory=dict, init=False, repr=False)
    _bundled: dict[tuple[str, str], str | None] = field(default_factory=dict, init=False, repr=False)
    _surveys: "dict[str, tuple[float, Survey]]" = field(default_factory=dict, init=False, repr=False)
    _surveying: threading.Lock = field(default_factory=threading.Lock, init=False, repr=False, compare=False)

    @property
    def everyone(self) -> tuple[Server, ...]:
        """All configured servers."""
        return (*self.servers, *self.neighbours)

    def maintenance(self, server: Server, *, limit: timedelta | None = None) -> Session:
        """Open a session in the server's maintenance database; *limit* is how long a statement may take there."""
        session = connect.connect(server, MAINTENANCE, command=self.command, limit=limit)
        session.ended = self.ended
        self._footings[server.name] = session.footing
        return session

    def ask(
        self, question: Callable[[Session], T], *, limit: timedelta = QUESTION_TIMEOUT
    ) -> dict[str, T | PosduifError]:
        """Run *question* on every server in parallel. Return {server name: result or PosduifError}.

        A server that says nothing for longer than *limit* is an error, so that it does not hide what others answer.
        """
        crew = Crew()

        def one(server: Server) -> T:
            with self.maintenance(server, limit=limit) as session, crew.watch(session):
                return question(session)

        return crew.ask(self.servers, one)

    def tenants(self, *, sizes: bool = False) -> tuple[list[Tenant], Errors]:
        """Return all tenants, by name, and the errors of servers; raises what these said when none answered."""
        limit = SIZES_TIMEOUT if sizes else QUESTION_TIMEOUT
        told, errors = split(self.ask(lambda session: self.list_on(session, sizes=sizes), limit=limit))
        if errors and not told:
            raise all_unreachable(errors)
        found = [tenant for tenants in told.values() for tenant in tenants]
        return sorted(found, key=lambda tenant: (tenant.tenant, tenant.server)), errors

    def list_on(self, session: Session, *, name: str | None = None, sizes: bool = False) -> list[Tenant]:
        """Return the tenants of the server that *session* is on, by name; all of them, or the one called *name*."""
        rows = self._rows(session, name, sizes=sizes)
        return [tenant for row in rows if (tenant := self.judge(row, session.server)) is not None]

    def _rows(self, session: Session, name: str | None, *, sizes: bool) -> list[dict[str, Any]]:
        question = queries.load("fleet/fleet")["list_tenants"]
        return session.dicts(question, name=name, role=name and admin.engine_role(name), sizes=sizes)

    def judge(self, row: Mapping[str, Any], server: Server) -> Tenant | None:
        """Return the Tenant that a row of `list_tenants` describes; None when it is not posduif's."""
        name = row["tenant"]
        noted = record.parse(row["record"]) if row["ours"] else None
        if noted is not None:
            state = State.DROPPING if row["connection_limit"] == -2 else noted.state
        elif (intent := record.parse_intent(row["intent"])) is not None and intent.tenant == name:
            state = intent.state if intent.state in (State.PROVISIONING, State.DROPPING) else State.LOST
        else:
            return None
        schema, applied = (noted.schema, noted.applied) if noted else (None, None)
        standing = self.folders.standing(schema, applied)
        port = noted.port if noted else None
        self._bundled[server.name, name] = bundled_in(applied) if noted else None
        return Tenant(
            tenant=name,
            server=server.name,
            state=state,
            schema_version=schema,
            latest_version=self.folders.latest,
            pending=standing.pending,
            ahead=standing.ahead,
            url=noted.url if noted and noted.url else origin(server, name, port),
            created_at=noted.created if noted else None,
            error=noted.failed if noted else None,
            engine_sessions=row["engine_sessions"],
            engine_may_log_in=row["may_log_in"],
            engine_port=port,
            engine_pool=noted.pool if noted else None,
            size_bytes=row["size_bytes"],
            has_database=row["has_database"] if state is State.LOST else None,
        )

    def look(self, session: Session, name: str, *, sizes: bool = False) -> Traces:
        """Return what is under a tenant's name on the server that *session* is on."""
        row = next(iter(self._rows(session, name, sizes=sizes)), None)
        if row is None:
            return Traces(name)
        intent = record.parse_intent(row["intent"])
        return Traces(
            name=name,
            owner=row["owner"],
            comment=row["record"],
            open=row["open"],
            connection_limit=row["connection_limit"],
            has_role=row["has_role"],
            intent=intent if intent is not None and intent.tenant == name else None,
            tenant=self.judge(row, session.server),
            at=row["at"],
        )

    def find(self, name: str, *, sizes: bool = False) -> Found:
        """Find a tenant on whichever server has it.

        Raises InvalidName, TenantNotFound with the nearest name, AmbiguousTenant, or the error of a server
        that could not be asked when no other has the tenant.
        """
        names.tenant(name)
        limit = SIZES_TIMEOUT if sizes else QUESTION_TIMEOUT
        told, errors = split(self.ask(lambda session: self.look(session, name, sizes=sizes), limit=limit))
        whole = live([traces.tenant for traces in told.values() if traces.tenant is not None])
        if len(whole) > 1:
            raise ambiguous(name, whole)
        if whole:
            return Found(self.server(whole[0].server), whole[0], told[whole[0].server].record)
        if errors:
            raise all_unreachable(errors)
        raise self._not_found(name, self.tenants()[0])

    def _not_found(self, name: str, known: Sequence[Tenant]) -> TenantNotFound:
        near = names.nearest(name, [tenant.tenant for tenant in known])
        where = ", ".join(server.name for server in self.servers)
        return TenantNotFound(
            f'tenant "{name}" not found on server{"s" if len(self.servers) > 1 else ""} {where}',
            why="no tenant has this id" + (f'; the nearest is "{near}"' if near else ""),
            hint=Run("tenant", "show", near) if near else Run("tenant", "list"),
        )

    def choose(self, wanted: Sequence[str] | None) -> tuple[list[Tenant], Errors]:
        """Return the tenants of the given names, or all, from one query per server, with what went wrong.

        For names the errors are theirs, else those of the servers that could not be asked. Raises InvalidName,
        and as `find` for a single name.
        """
        if wanted is None:
            return self.tenants()
        if len(wanted) == 1:
            return [self.find(wanted[0]).tenant], {}
        for name in wanted:
            names.tenant(name)
        known, unasked = self.tenants()
        chosen: list[Tenant] = []
        errors: Errors = {}
        for name in wanted:
            found = live([t for t in known if t.tenant == name])
            if len(found) == 1:
                chosen += found
            elif found:
                errors[name] = ambiguous(name, found)
            else:
                errors[name] = all_unreachable(unasked) if unasked else self._not_found(name, known)
        return chosen, errors

    def each(
        self,
        tenants: Sequence[Tenant],
        work: Callable[[Session], T],
        *,
        jobs: int | Mapping[str, int] = 4,
        enter: Callable[[Server, str], Session] | None = None,
        crew: Crew | None = None,
        done: Callable[[Tenant, T | PosduifError, float], None] = lambda tenant, found, seconds: None,
    ) -> list[tuple[Tenant, T | PosduifError]]:
        """Do something in the database of each tenant; return (tenant, result or error) in the order of *tenants*.

        *jobs* is how many tenants of each server are worked on at once, at most its max_connections, or says so for
        each server by name. A server without a free connection is waited for, unless *enter* connects in place of
        the method of that name. *done* gets each result with its seconds as it comes. A tenant that was not begun
        because *crew* was stopped has no result. On ctrl-C what is under way is cancelled.
        """
        team = crew or Crew()
        queues: dict[str, list[Tenant]] = {}
        for tenant in tenants:
            queues.setdefault(tenant.server, []).append(tenant)
        servers = {name: self.server(name) for name in queues}
        shares = {name: Share(team.stop) for name in queues}
        results: dict[int, T | PosduifError] = {}

        def visit(tenant: Tenant) -> T:
            server = servers[tenant.server]
            if enter is not None:
                session = enter(server, tenant.tenant)
            else:
                session = shares[server.name].connect(lambda: self.enter(server, tenant.tenant))
            with session, team.watch(session):
                return work(session)

        def note(tenant: Tenant, found: T | PosduifError, seconds: float) -> None:
            results[id(tenant)] = found
            done(tenant, found, seconds)

        limits = {s.name: min(jobs, s.max_connections) for s in servers.values()} if isinstance(jobs, int) else jobs
        team.run([(limits[name], queue) for name, queue in queues.items()], visit, note)
        return [(tenant, results[id(tenant)]) for tenant in tenants if id(tenant) in results]

    def locate(self, finding: Finding, server: str) -> Finding:
        """Return a finding whose command names *server*, where several servers are configured."""
        fix = finding.fix
        if len(self.everyone) == 1 or not isinstance(fix, Run) or "--server" in fix.words:
            return finding
        return replace(finding, fix=Run(*fix.words, "--server", server, lead=fix.lead))

    def server(self, name: str) -> Server:
        """Return a server by name; raises NoServer."""
        for server in self.servers:
            if server.name == name:
                return server
        raise NoServer(f'server "{name}" is not configured', hint=Run("config", "show"))

    def server_for_new(self) -> Server:
        """Return the server that a new tenant goes to; raises NoServer when the choice is open."""
        if len(self.servers) == 1:
            return self.servers[0]
        if self.default_server and self.default_server != EMPTIEST:
            return self.server(self.default_server)
        raise NoServer(
            "several servers are configured and none is the default for this",
            why=f"configured are: {', '.join(server.name for server in self.servers)}",
            hint=["add --server NAME", "set default_server in the configuration"],
        )

    @contextmanager
    def open(self, name: str, *, states: Sequence[State] = (State.ACTIVE, State.SUSPENDED)) -> Iterator[Place]:
        """Yield a tenant with a session in its database; raises as `find`, and WrongState unless in *states*."""
        found = self.find(name)
        found.require(*states)
        with self.enter(found.server, name) as session:
            yield Place(found.server, found.tenant, found.record, session)

    def enter(self, server: Server, name: str) -> Session:
        """Connect to a tenant's database; TenantNotFound or WrongState when it was dropped since it was found.

        Raises AccessDenied, with what would help, for a login that is no administrator.
        """
        try:
            footing = self._footings.get(server.name)
            session = connect.connect(server, name, command=self.command, footing=footing, path="public")
        except AccessDenied as error:
            known, refusal = self._survey(server)
            if name not in known:
                raise self._not_found(name, list(known.values())) from None
            if known[name].state in (State.DROPPING, State.LOST, State.MOVED):
                raise wrong_state(known[name]) from None
            raise refusal or error from None
        session.ended = self.ended
        session.bundled = self._bundled.get((server.name, name))
        return session

    def _survey(self, server: Server) -> "Survey":
        """Return the tenants of one server by name, and why its login may not enter them, if it may not.

        A run may be refused by hundreds of tenants one after the other: they share an answer for SURVEYED seconds.
        """
        with self._surveying:
            until, answer = self._surveys.get(server.name, (-inf, ({}, None)))
            if time.monotonic() > until:
                until, refusal = time.monotonic() + SURVEYED, None
                with self.maintenance(server) as session:
                    known = {tenant.tenant: tenant for tenant in self.list_on(session)}
                    try:
                        session.require_member()
                    except AccessDenied as error:
                        refusal = error
                self._surveys[server.name] = until, (answer := (known, refusal))
            return answer


def split(answers: Mapping[str, T | PosduifError]) -> tuple[dict[str, T], Errors]:
    """Split what servers said into answers and errors, by name."""
    errors = {name: answer for name, answer in answers.items() if isinstance(answer, PosduifError)}
    return {name: answer for name, answer in answers.items() if not isinstance(answer, PosduifError)}, errors


def live(found: Sequence[Tenant]) -> Sequence[Tenant]:
    """Return the tenants of one name without lost and moved ones, unless there are no others."""
    return [tenant for tenant in found if tenant.state not in (State.LOST, State.MOVED)] or found


def ambiguous(name: str, found: Sequence[Tenant]) -> AmbiguousTenant:
    """Return the error that several servers have a tenant of one name."""
    return AmbiguousTenant(
        f'tenant "{name}" exists on servers {", ".join(tenant.server for tenant in found)}',
        hint=f"add --server {found[0].server}",
    )


def all_unreachable(errors: Mapping[str, PosduifError]) -> PosduifError:
    """Return one error for the errors of several servers."""
    if len(errors) == 1:
        return next(iter(errors.values()))
    return ServerUnreachable(
        f"servers {', '.join(errors)} could not be asked",
        why="; ".join(error.why or error.message for error in errors.values()),
        hint=Run("config", "show", "--origin"),
    )


def wrong_state(tenant: Tenant) -> WrongState:
    """Return the error that a tenant's state forbids what was asked, with the command that changes the state."""
    hints, why = NEXT_STEP[tenant.state](tenant.tenant), None
    if tenant.state is State.PROVISIONING:
        why = "its creation was interrupted"
    elif tenant.state is State.DROPPING:
        why = "its removal was interrupted"
    elif tenant.state is State.RESTORING:
        why = "a restore is under way, or was interrupted: the same one goes on, and --undo gives it up"
    elif tenant.state is State.LOST and tenant.has_database:
        why = f"its database is there, but lost its record or does not belong to {ADMIN_ROLE}"
        hints = [Run("tenant", "adopt", tenant.tenant)]
    elif tenant.state is State.LOST:
        why = "its engine's role exists, but its database does not"
    return WrongState(f"tenant {tenant.tenant} is {tenant.state}", why=why, hint=hints)


def origin(server: Server, name: str, port: int | None = None) -> str | None:
    """Return the origin that phones reach a tenant by, as its server's `url` says it; None where that is not set.

    *port* is that of the tenant's engine, which the embedded server's url has.
    """
    return server.url and server.url.replace("{tenant}", name).replace("{port}", str(port or ENGINE_PORT))


def naming(server: Server) -> tuple[str, ...]:
    """Return the option that names a server of the configuration; () for one that was given by its DSN."""
    return ("--server", server.name) if server.named else ()
