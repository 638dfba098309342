"""Tenants: create, show, change and drop them, so that a kill at any moment leaves what a re-run finishes.

The order of steps is the protocol: the intent (a comment on the engine's role) comes before CREATE DATABASE,
which cannot join a transaction, and outlives DROP DATABASE, which cannot either.
"""

import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, TypeVar

from posduif_cli.core import migrations, names, proofs, templates, users
from posduif_cli.core.fleet import Fleet, wrong_state
from posduif_cli.core.placements import Placements
from posduif_cli.core.templates import Template
from posduif_cli.db import admin, connect, queries, record
from posduif_cli.db.connect import ADMIN_ROLE, Session
from posduif_cli.db.record import Intent, Record
from posduif_cli.errors import (
    AccessDenied,
    Blocked,
    Busy,
    Conflict,
    NotOurs,
    PosduifError,
    QueryFailed,
    TenantExists,
)
from posduif_cli.models import CreatedTenant, Loss, Plan, Server, State, Step, Tenant

T = TypeVar("T")
Keep = Callable[[str, dict[str, Any]], None]
PLACEHOLDER = "REPLACE_ME"
PATIENCE = 2.0  # seconds; a server notices within 500 ms that a client was killed
# A tenant's own tables and roles are locked for moments only, save by an engine that means to be in the way.
BRIEFLY = timedelta(seconds=2)
COUNTING = timedelta(seconds=30)
DROPPING = timedelta(hours=1)  # the files of a large database are many
SESSION_END = 2000  # milliseconds that a session has to end
ENDING = 10.0  # seconds to shut out an engine that keeps coming back
DUPLICATE_DATABASE = ("42P04", "23505")
DEPENDED_ON = "2BP01"
QUERY_CANCELED = "57014"  # what a statement_timeout ends with


@dataclass(frozen=True)
class _Traces:
    """What stands under a tenant's name on one server."""

    owner: str | None
    record: str | None
    open: bool | None
    connection_limit: int | None
    has_role: bool | None
    intent: str | None
    at: datetime


def _traces(session: Session, name: str) -> _Traces:
    found = session.row(_Traces, queries.load("tenants")["find_traces"], name=name, role=admin.engine_role(name))
    assert found is not None
    return found


@dataclass(frozen=True)
class Wanted:
    """A tenant as it is asked for: *url* is an origin, *web_user* the first of its users."""

    name: str
    url: str | None = None
    web_user: str | None = None

    def check(self) -> None:
        """Raise InvalidName."""
        names.tenant(self.name)
        if self.web_user is not None:
            names.username(self.web_user)


def create(
    fleet: Fleet,
    *,
    name: str,
    url: str | None = None,
    web_user: str | None = None,
    if_not_exists: bool = False,
    ignore_unreachable: bool = False,
    keep: Keep | None = None,
) -> CreatedTenant:
    """Create a tenant, or finish one whose creation was interrupted.

    *keep* is called with the engine's new password and settings before the role gets that password; without
    it the role has none. Raises InvalidName, TenantExists, NotOurs, Busy, or the server's error; whatever was
    begun is finished by the same call. Another server that cannot be asked for the name is an error, too, unless
    *ignore_unreachable*. Raises ConfigurationError, having made nothing, while a migration file is faulty.
    """
    wanted = Wanted(name, url, web_user)
    wanted.check()
    _ = fleet.folders.files
    with (
        Placements(fleet, ignore_unreachable=ignore_unreachable) as placements,
        fleet.maintenance(placements.place(name)) as session,
    ):
        if session.member is None:
            proofs.require_locks(fleet, session)  # nothing of posduif is here yet
        admin.ensure_roles(session)
        maker = Maker(fleet, placements, if_not_exists, templates.provide(session, fleet, coming=1))
        return maker.create(session, wanted, keep)


@dataclass(frozen=True)
class Maker:
    """Creates tenants on one server, which has posduif's roles already; *template* is what they are copied from."""

    fleet: Fleet
    placements: Placements
    if_not_exists: bool
    template: Template | None

    def create(self, session: Session, wanted: Wanted, keep: Keep | None) -> CreatedTenant:
        """Create one as the function of that name, by a maintenance session."""
        try:
            return self._create(session, wanted, keep)
        except QueryFailed as error:
            error.hints = (*error.hints, "run the same command again: it finishes what was begun")
            raise

    def _create(self, session: Session, wanted: Wanted, keep: Keep | None) -> CreatedTenant:
        fleet, server, name = self.fleet, session.server, wanted.name
        with session.lock(name):
            existing = fleet.look(session, name)
            if existing is not None and existing.state is not State.PROVISIONING:
                require_same(existing, wanted.url, if_not_exists=self.if_not_exists)
                _require_web_user(fleet, server, name, wanted.web_user)
                return CreatedTenant(existing, changed=False)
            if not self._provision(session, wanted, keep):
                with fleet.enter(server, name) as inside:
                    _fill(inside, fleet, wanted, keep)
            created = fleet.look(session, name)
            if created is None or created.state is not State.ACTIVE:
                raise proofs.missing(session, [proofs.TOGETHER])
            return CreatedTenant(created, changed=True)

    def _provision(self, session: Session, wanted: Wanted, keep: Keep | None) -> bool:
        """Bring role and database up to a record, from wherever an earlier try stopped.

        Returns whether the tenant is active by that, being a copy that lacks nothing; else it is `provisioning`.
        """
        name = wanted.name
        traces = _traces(session, name)
        known = _intent_of(traces, name)
        _require_free(traces, name, known)
        intent = known or Intent(name, State.PROVISIONING, admin.new_nonce())
        if known is None:
            admin.create_engine_role(session, intent)
        copy = None
        if traces.owner is None:
            self._require_unique(session, name, new=known is None)
            copy = self._make_database(session, intent)
        elif record.parse(traces.record) is not None:
            return False
        url = wanted.url or (session.server.url and session.server.url.replace("{tenant}", name))
        pool = admin.configured_pool(session.server)
        noted = Record(State.PROVISIONING, url=url, created=traces.at, engine={"pool": pool})
        if copy and wanted.web_user is None and not self.fleet.folders.pending(copy.schema, copy.applied):
            noted = replace(noted, state=State.ACTIVE, schema=copy.schema, applied=copy.applied)
        password = _kept(session, name, keep, pool) if noted.state is State.ACTIVE else None
        with session.transaction(at_once=True):
            with session.together():
                admin.equip_role(session, name, pool)
                admin.open_database(session, name)
                if noted.state is State.ACTIVE:
                    record.put_intent(session, admin.engine_role(name), replace(intent, state=State.ACTIVE))
                if password:
                    admin.set_password(session, name, password)
            record.put(session, name, noted)
        return noted.state is State.ACTIVE

    def _require_unique(self, session: Session, name: str, *, new: bool) -> None:
        """Raise as `Placements.require_unique`, having taken back an intent that is *new*."""
        try:
            self.placements.require_unique(session.server, name)
        except PosduifError:
            if new:  # behind an older one, someone's CREATE DATABASE may still be under way
                admin.drop_role(session, name)
            raise

    def _make_database(self, session: Session, intent: Intent) -> Template | None:
        """Make the database, and return the template that it is a copy of, if it is one."""
        if self.template is not None:
            with suppress(QueryFailed, Busy):  # dropped, in use, or damaged: it only saves time
                admin.create_database(session, intent, self.template.name)
                self._require_closed(session, intent)
                return self.template
        try:
            admin.create_database(session, intent)
            self._require_closed(session, intent)
        except QueryFailed as error:
            # An orphan of an earlier try may have finished its CREATE DATABASE in this moment, or someone else theirs.
            if error.sqlstate not in DUPLICATE_DATABASE:
                raise
            _require_free(_traces(session, intent.tenant), intent.tenant, intent)
        return None

    @staticmethod
    def _require_closed(session: Session, intent: Intent) -> None:
        """Raise NotEnough unless the new database is as it was asked for: by that a half-made one is known as ours."""
        made = _traces(session, intent.tenant)
        if (made.open, made.connection_limit) != (False, intent.nonce):
            raise proofs.missing(session, [proofs.CLOSED])


def plan_create(
    fleet: Fleet,
    *,
    name: str,
    url: str | None = None,
    web_user: str | None = None,
    if_not_exists: bool = False,
    ignore_unreachable: bool = False,
) -> Plan:
    """Say what `create` would do, having asked the server and changed nothing; raises as `create`."""
    wanted = Wanted(name, url, web_user)
    wanted.check()
    _ = fleet.folders.files
    with (
        Placements(fleet, ignore_unreachable=ignore_unreachable) as placements,
        fleet.maintenance(placements.place(name)) as session,
    ):
        if require_possible(fleet, placements, session, wanted, if_not_exists=if_not_exists):
            return Plan(())
    return Plan(tuple(steps(fleet, wanted)))


def require_possible(
    fleet: Fleet, placements: Placements, session: Session, wanted: Wanted, *, if_not_exists: bool
) -> bool:
    """Raise what `create` would raise before it changes anything; return whether there is nothing to do."""
    name = wanted.name
    existing = fleet.look(session, name)
    if existing is not None and existing.state is not State.PROVISIONING:
        require_same(existing, wanted.url, if_not_exists=if_not_exists)
        _require_web_user(fleet, session.server, name, wanted.web_user)
        return True
    traces = _traces(session, name)
    _require_free(traces, name, _intent_of(traces, name))
    if traces.owner is None:
        placements.require_unique(session.server, name)
    return False


def steps(fleet: Fleet, wanted: Wanted) -> Iterator[Step]:
    """Yield what creating a tenant comes to."""
    name, role = wanted.name, admin.engine_role(wanted.name)
    yield Step("create role", role, f"CREATE ROLE {role} LOGIN")
    yield Step("create database", name, f"CREATE DATABASE {name} OWNER {ADMIN_ROLE} TEMPLATE template0 ENCODING 'UTF8'")
    yield Step("close to public", name, f"REVOKE ALL ON DATABASE {name} FROM PUBLIC")
    for file in fleet.folders.files:
        yield Step("migrate", f"{file.version}_{file.name}", file.up.text.strip())
    if wanted.web_user:
        yield Step("create web user", wanted.web_user)


def require_same(existing: Tenant, url: str | None, *, if_not_exists: bool) -> None:
    """Judge a tenant that exists; raises TenantExists unless it is as it was asked for."""
    name = existing.tenant
    if existing.state is not State.ACTIVE:
        raise wrong_state(existing)
    if not if_not_exists:
        raise TenantExists(
            f"tenant {name} exists on server {existing.server}",
            hint=[f"posduif tenant show {name}", "add --if-not-exists to take it as it is"],
        )
    if url is not None and url != existing.url:
        raise TenantExists(
            f"tenant {name} exists and differs",
            why=f"its url is {existing.url or 'not set'}, not {url}",
            hint=f"posduif tenant set {name} --url {url}",
        )


def _require_web_user(fleet: Fleet, server: Server, name: str, web_user: str | None) -> None:
    """Raise TenantExists when an existing tenant lacks the web user that was asked for."""
    if web_user is None:
        return
    with fleet.enter(server, name) as conn:
        found = users.look(conn, web_user)
    if found is None or found.user_type != "web":
        raise TenantExists(
            f"tenant {name} exists and differs",
            why=f'it has no web user "{web_user}"',
            hint=f"posduif user create {name} {web_user} --type web",
        )


def _intent_of(traces: _Traces, name: str) -> Intent | None:
    """Return the intent on a tenant's engine role; None when there is none, or it is a copy of another's."""
    intent = record.parse_intent(traces.intent)
    return intent if intent is not None and intent.tenant == name else None


def _is_ours(traces: _Traces, intent: Intent | None) -> bool:
    """Whether the database is posduif's to drop: it is recorded, half made, or half dropped."""
    marks = (-2, intent.nonce if intent else -2)
    return traces.owner == ADMIN_ROLE and (record.parse(traces.record) is not None or traces.connection_limit in marks)


def _require_free(traces: _Traces, name: str, intent: Intent | None) -> None:
    """Raise NotOurs when a database or role of this name is someone else's."""
    role = admin.engine_role(name)
    if traces.has_role and intent is None and record.parse_intent(traces.intent) is None:
        raise NotOurs(
            f"role {role} exists and is not posduif's",
            why="it lacks posduif's comment, or a login that is no superuser may administer it; it was left alone",
            hint=f"choose another name for the tenant, or a superuser types: DROP ROLE {role};",
        )
    made_by_us = (
        intent is not None
        and traces.owner == ADMIN_ROLE
        and (traces.connection_limit == intent.nonce or record.parse(traces.record) is not None)
    )
    if traces.owner is not None and not made_by_us:
        raise NotOurs(
            f"database {name} exists and is not posduif's",
            why=f"it belongs to {traces.owner} and has no record; it was not touched",
            hint="choose another name for the tenant",
        )


def _fill(conn: Session, fleet: Fleet, wanted: Wanted, keep: Keep | None) -> None:
    """Migrate a provisioned database and make it active, all that `active` promises in one transaction."""
    name = conn.database
    migrations.up(conn, folders=fleet.folders, states=(State.PROVISIONING,))
    with conn.lock(name):
        password = _kept(conn, name, keep, admin.decided_pool(conn, name, record.read(conn)))
        with conn.transaction():
            current = record.read(conn)
            if wanted.web_user is not None:
                users.ensure_web(conn, username=wanted.web_user)
            if password:
                admin.set_password(conn, name, password)
            write_both(conn, replace(current, state=State.ACTIVE, url=wanted.url or current.url))


def _kept(session: Session, name: str, keep: Keep | None, pool: int) -> str | None:
    """Make a password and have it kept; None where nobody keeps it."""
    if keep is None:
        return None
    password = admin.new_password()
    keep(password, engine_settings(session, name, password, pool))
    return password


def write_both(conn: Session, changed: Record) -> None:
    """Write record and intent, in the transaction under way, from the tenant's own database."""
    record.write(conn, changed)
    traces = _traces(conn, conn.database)
    intent = record.parse_intent(traces.intent)
    if intent is not None:
        record.put_intent(conn, admin.engine_role(conn.database), replace(intent, state=changed.state))


@contextmanager
def changing(fleet: Fleet, name: str, *states: State) -> Iterator[tuple[Session, Record]]:
    """Hold a tenant's lock in one transaction for a change of its record; raises WrongState, Busy."""
    server, tenant = fleet.find(name)
    if tenant.state not in states:
        raise wrong_state(tenant)
    with fleet.enter(server, name) as conn:
        conn.require_admin()
        with conn.lock(name), conn.transaction(lock_timeout=BRIEFLY):
            current = record.read(conn)
            if current.state not in states:
                raise wrong_state(replace(tenant, state=current.state))
            yield conn, current


def despite_engine(fleet: Fleet, name: str, change: Callable[[bool], T], *, reopen: bool) -> T:
    """Make a change that the tenant's engine must not keep from happening, whatever its sessions have locked.

    Where *change*, called with False, raises Blocked, and not for other roles' locks alone, the engine's role is
    closed, its sessions are ended, and it is called with True. With *reopen* the role is opened again where that
    fails, too. A kill in between leaves an active tenant whose engine cannot log in: `resume` and `suspend` finish
    that.
    """
    role = admin.engine_role(name)
    try:
        return change(False)
    except Blocked as error:
        if error.roles and role not in error.roles:
            raise
        server, _ = fleet.find(name)
        with fleet.maintenance(server) as session:
            session.require_admin()
            end_sessions(session, name, shut=True)
            fleet.ended.append(f"the sessions of {role}: they held locks that were in the way")
            try:
                return change(True)
            except PosduifError:
                if reopen:
                    admin.open_role(session, name)
                raise


def end_sessions(session: Session, name: str, *, shut: bool = False) -> None:
    """End all sessions of a tenant's engine by a maintenance session; with *shut* close its role first.

    Raises Busy, naming those that would not end, or Blocked where the engine is faster for ENDING seconds.
    """
    role = admin.engine_role(name)
    question = queries.load("tenants")["end_role"]
    end, end_at_once = (session.text(question, role=role, wait=wait) for wait in (SESSION_END, 0))
    deadline = time.monotonic() + ENDING
    try:
        while True:
            # In one message and without waiting: an engine that lost its session is back in milliseconds, but behind
            # us in the queue for what it had locked.
            _, failure = session.batch([end_at_once, *admin.closing(session, name)] if shut else [end])
            if failure is None:
                break
            if not isinstance(failure[1], Blocked) or time.monotonic() > deadline:
                raise failure[1]
        if shut:
            session.batch([end])  # those who came in between
    except AccessDenied as error:
        raise _in_use(session, name, error) from error
    left = session.dicts(queries.load("tenants")["find_sessions"], database=name, role=role)
    if left := [found for found in left if found["role"] == role]:
        raise Busy(
            f"the engine of tenant {name} is still connected",
            why=_named(left),
            hint="type the same command again",
        )


def set_url(fleet: Fleet, *, name: str, url: str) -> bool:
    """Set the origin that phones reach the tenant by; return whether that changed anything."""
    with changing(fleet, name, State.ACTIVE, State.SUSPENDED) as (conn, current):
        if current.url == url:
            return False
        record.write(conn, replace(current, url=url))
        return True


def rotate_password(fleet: Fleet, *, name: str, keep: Keep, now: bool = False) -> None:
    """Give the engine's role a new password; *keep* is called with it and the settings first.

    With *now* the engine's sessions are ended, which the old password opened; raises Busy, naming those that
    would not end.
    """

    def change(shut: bool) -> None:
        with changing(fleet, name, State.ACTIVE, State.SUSPENDED) as (conn, current):
            if password := _kept(conn, name, keep, admin.decided_pool(conn, name, current)):
                admin.set_password(conn, name, password)
            if shut and current.state is State.ACTIVE:
                admin.let_in(conn, name)

    despite_engine(fleet, name, change, reopen=True)
    if now:
        end_engine(fleet, name=name)


def end_engine(fleet: Fleet, *, name: str) -> None:
    """End the sessions of a tenant's engine; raises Busy, naming those that did not end."""
    server, _ = fleet.find(name)
    with fleet.maintenance(server) as session:
        session.require_admin()
        end_sessions(session, name)


def engine_config(fleet: Fleet, *, name: str) -> dict[str, Any]:
    """Return the settings of a tenant's sync engine, with a placeholder for the password."""
    with fleet.open(name) as conn:
        return engine_settings(conn, name, PLACEHOLDER, admin.decided_pool(conn, name, record.read(conn)))


def engine_settings(conn: Session, name: str, password: str, pool: int) -> dict[str, Any]:
    """Fill in what the sync engine reads, from the server's configuration where it says so, with its *pool*.

    WAL mode stays off: the engine's is a stub that delivers nothing and whose slot pins the server's WAL.
    """
    configured = conn.server.engine
    redis = {"host": "localhost", "port": 6379, "db": 0, **configured.get("redis", {})}
    host, port = connect.address(conn)
    return {
        "postgres": {
            "host": configured.get("host", host),
            "port": configured.get("port", port),
            "user": admin.engine_role(name),
            "password": password,
            "db": name,
            "ssl_mode": configured.get("ssl_mode", "disable" if host.startswith("/") else "prefer"),
            "max_connections": pool,
        },
        "redis": {**redis, "streams": {"enabled": True, "max_length": 10000}},
        "sse": {"port": configured.get("sse_port", 8080)},
        "sync": {"wal": {"enabled": False}},
        "auth": {
            "jwt_secret": configured.get("jwt_secret") or secrets.token_urlsafe(32),
            "jwt_expiration": 3600,
        },
    }


def loss(fleet: Fleet, *, name: str, confirmed: bool = False) -> Loss:
    """Count what dropping a tenant would destroy; `uncounted` says why where that is not known.

    Where the engine's locks are in the way of a drop that was *confirmed* already, its sessions are ended.
    Raises as Fleet.find.
    """
    server, tenant = fleet.find(name)
    if tenant.state in (State.PROVISIONING, State.DROPPING, State.LOST) or tenant.schema_version is None:
        return Loss(name, server.name, None, None, None, None)

    def count(shut: bool) -> Loss:
        with (
            fleet.enter(server, name) as conn,
            conn.transaction(read_only=True, lock_timeout=BRIEFLY, statement_timeout=COUNTING),
        ):
            return Loss(name, server.name, **conn.dicts(queries.load("tenants")["count_loss"])[0])

    try:
        return despite_engine(fleet, name, count, reopen=True) if confirmed else count(False)
    except (QueryFailed, Blocked) as error:
        if isinstance(error, QueryFailed) and error.sqlstate in migrations.NO_SUCH_TABLE_OR_COLUMN:
            return Loss(name, server.name, None, None, None, None)
        if isinstance(error, Blocked) or error.sqlstate == QUERY_CANCELED:
            return Loss(name, server.name, None, None, None, None, uncounted=error.sentence)
        raise


def plan_drop(fleet: Fleet, *, name: str) -> Plan:
    """Say what `drop` would do; changes nothing and raises as `drop`."""
    server, tenant = fleet.find(name)
    role = admin.engine_role(name)
    with fleet.maintenance(server) as session:
        traces = _traces(session, name)
        if _is_replaced(tenant, traces, name):
            if _ties(session, role, elsewhere_than=""):
                raise _its_own(name, traces)
            return Plan((Step("drop role", role, f"DROP ROLE {role}"),))
        _require_untied(session, name)
    return Plan(
        (
            Step(
                "end sessions",
                name,
                f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'",  # noqa: S608
            ),
            Step("drop database", name, f"DROP DATABASE {name} WITH (FORCE)"),
            Step("drop role", role, f"DROP ROLE {role}"),
        )
    )


def drop(fleet: Fleet, *, name: str) -> bool:
    """Drop a tenant's database, slots and role, or finish a drop that was interrupted.

    Returns False when someone else dropped it in the meantime.

    Of a lost tenant only the role is dropped: a database that took its place is someone else's. Raises as
    Fleet.find; Busy, naming the sessions that posduif may not end; Conflict for a lost tenant whose role has rights in
    the database of its name, which then may be its own.
    """
    server, _ = fleet.find(name)
    with fleet.maintenance(server) as session:
        session.require_admin()
        with session.lock(name):
            tenant = fleet.look(session, name)
            if tenant is None:
                return False
            traces = _traces(session, name)
            ours = _is_ours(traces, _intent_of(traces, name))
            if _is_replaced(tenant, traces, name):
                _drop_lost_role(session, name, traces)
                return True
            _require_untied(session, name)
            try:
                _announce_drop(session, fleet, server, tenant, traces)
            except Blocked as error:
                session.name_blockers(error)
                if error.roles and admin.engine_role(name) not in error.roles:
                    raise
                end_sessions(session, name, shut=True)
                _announce_drop(session, fleet, server, tenant, traces)
            if ours:
                try:
                    _end_sessions(session, name)
                except AccessDenied as error:
                    raise _in_use(session, name, error) from error
                _drop_database(session, name)
            if _intent_of(_traces(session, name), name) is not None:
                admin.drop_role(session, name)
            return True


def _require_untied(session: Session, name: str) -> None:
    """Raise Conflict, with nothing dropped yet, where the engine's role could not be dropped afterwards."""
    role = admin.engine_role(name)
    if ties := _ties(session, role, elsewhere_than=name):
        raise Conflict(
            f"tenant {name} was not dropped: its role {role} owns something elsewhere, or was granted it",
            why=f"in {', '.join(ties)}; without that the role could not be dropped, and its name stayed taken",
            hint=[f"a superuser types, in {place}: DROP OWNED BY {role};" for place in ties],
        )


def _ties(session: Session, role: str, *, elsewhere_than: str) -> list[str]:
    named = queries.load("tenants")
    return [place for (place,) in session.tuples(named["find_ties"], name=elsewhere_than, role=role)]


def _is_replaced(tenant: Tenant, traces: _Traces, name: str) -> bool:
    """Whether a lost tenant's name is that of a database which is not, or not any more, posduif's."""
    return tenant.state is State.LOST and traces.owner is not None and not _is_ours(traces, _intent_of(traces, name))


def _drop_lost_role(session: Session, name: str, traces: _Traces) -> None:
    """Drop the role that is left of a tenant, unless the database of its name knows it."""
    try:
        admin.drop_role(session, name)
    except QueryFailed as error:
        if error.sqlstate != DEPENDED_ON:
            raise
        raise _its_own(name, traces) from error


def _its_own(name: str, traces: _Traces) -> Conflict:
    return Conflict(
        f"{admin.engine_role(name)} has rights in database {name}, so that may be the tenant's own",
        why=f"it belongs to {traces.owner}" + ("" if traces.record else " and has no record") + "; it was not touched",
        hint=f"posduif tenant adopt {name}",
    )


def _announce_drop(session: Session, fleet: Fleet, server: Server, tenant: Tenant, traces: _Traces) -> None:
    """Write `dropping` into both comments and shut the engine out, once no other command works on the tenant."""
    name = tenant.tenant
    with ExitStack() as stack:
        noted = record.parse(traces.record) if traces.owner == ADMIN_ROLE else None
        if noted is not None and traces.open and traces.connection_limit != -2:
            inside = stack.enter_context(fleet.enter(server, name))
            stack.enter_context(inside.lock(name))
        intent = _intent_of(traces, name)
        stack.enter_context(session.transaction(lock_timeout=BRIEFLY))
        if noted is not None and traces.connection_limit != -2:
            record.put(session, name, replace(noted, state=State.DROPPING))
        if intent is not None:
            record.put_intent(session, admin.engine_role(name), replace(intent, state=State.DROPPING))
            admin.close_role(session, name)


def _end_sessions(session: Session, name: str) -> None:
    """End the tenant's sessions; a slot's reader first, or it keeps DROP DATABASE from working."""
    named = queries.load("tenants")
    for slot in session.dicts(named["find_slots"], database=name):
        if slot["pid"] is not None:
            session.value(named["end_session"], pid=slot["pid"])
    session.value(named["end_role"], role=admin.engine_role(name), wait=SESSION_END)


def _drop_database(session: Session, name: str) -> None:
    """Drop the database; a session that posduif may not end gets a moment, it may be a killed command's."""
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            with session.limited(lock_timeout=BRIEFLY, statement_timeout=DROPPING):
                admin.drop_database(session, name)
            return
        except AccessDenied as error:
            if time.monotonic() > deadline:
                raise _in_use(session, name, error) from error
            time.sleep(0.1)
        except (Busy, QueryFailed) as error:
            raise _in_use(session, name, error) from error


def _in_use(session: Session, name: str, error: PosduifError) -> PosduifError:
    """Name the sessions that keep a database from being dropped; without any, the error stands."""
    found = session.dicts(queries.load("tenants")["find_sessions"], database=name, role=admin.engine_role(name))
    if not found:
        return error
    return Busy(
        f"database {name} is in use by sessions that posduif may not end",
        why=_named(found),
        hint=["ask their owners to disconnect", f"posduif tenant drop {name} --confirm {name}"],
    )


def _named(sessions: Sequence[Mapping[str, Any]]) -> str:
    return ", ".join(f"pid {s['pid']} ({s['role']}, {s['application'] or 'no name'}, {s['state']})" for s in sessions)
