"""Tenants: create, show, change and drop them, so that a kill at any moment leaves what a re-run finishes.

The order of steps is the protocol: the intent (a comment on the engine's role) comes before CREATE DATABASE,
which cannot join a transaction, and outlives DROP DATABASE, which cannot either.
"""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace

from posduif_cli.core import names
from posduif_cli.core.desk import users
from posduif_cli.core.fleet import proof
from posduif_cli.core.fleet.fleet import Fleet, wrong_state
from posduif_cli.core.fleet.placement import Placements
from posduif_cli.core.schema import apply, files
from posduif_cli.core.tenants import engine, template, traces
from posduif_cli.core.tenants.template import Template
from posduif_cli.db import admin, record
from posduif_cli.db.record import Intent, Record
from posduif_cli.db.session import ADMIN_ROLE, Session
from posduif_cli.errors import Busy, PosduifError, QueryFailed, Run, TenantExists
from posduif_cli.models.runs import Plan, Step
from posduif_cli.models.servers import Server
from posduif_cli.models.tenants import CreatedTenant, State, Tenant

DUPLICATE_DATABASE = ("42P04", "23505")


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
    keep: engine.Keep | None = None,
) -> CreatedTenant:
    """Create a tenant, or finish one whose creation was interrupted.

    *keep* is called with the engine's new password and settings before the role gets that password; without
    it the role has none. Raises InvalidName, TenantExists, NotOurs, Busy, or the server's error; whatever was
    begun is finished by the same call. Another server that cannot be asked for the name is an error, too, unless
    *ignore_unreachable*. Raises ConfigurationError, having made nothing, while a migration file is faulty.
    """
    wanted = Wanted(name, url, web_user)
    wanted.check()
    _ = files.of(fleet.folders).all
    with (
        Placements(fleet, ignore_unreachable=ignore_unreachable) as placements,
        fleet.maintenance(placements.place(name)) as session,
    ):
        if session.member is None:
            proof.require_locks(fleet, session)  # nothing of posduif is here yet
        admin.ensure_roles(session)
        maker = Maker(fleet, placements, if_not_exists, template.provide(session, fleet, coming=1))
        return maker.create(session, wanted, keep)


@dataclass(frozen=True)
class Maker:
    """Creates tenants on one server, which has posduif's roles already; *template* is what they are copied from."""

    fleet: Fleet
    placements: Placements
    if_not_exists: bool
    template: Template | None

    def create(self, session: Session, wanted: Wanted, keep: engine.Keep | None) -> CreatedTenant:
        """Create one as the function of that name, by a maintenance session."""
        try:
            return self._create(session, wanted, keep)
        except QueryFailed as error:
            error.hints = (*error.hints, "run the same command again: it finishes what was begun")
            raise

    def _create(self, session: Session, wanted: Wanted, keep: engine.Keep | None) -> CreatedTenant:
        fleet, server, name = self.fleet, session.server, wanted.name
        with session.lock(name):
            existing = _whole(fleet, session, wanted, if_not_exists=self.if_not_exists)
            if existing is not None:
                return CreatedTenant(existing, changed=False)
            if not self._provision(session, wanted, keep):
                with fleet.enter(server, name) as inside:
                    _fill(inside, fleet, wanted, keep)
            created = fleet.look(session, name)
            if created is None or created.state is not State.ACTIVE:
                raise proof.missing(session, [proof.TOGETHER])
            return CreatedTenant(created, changed=True)

    def _provision(self, session: Session, wanted: Wanted, keep: engine.Keep | None) -> bool:
        """Bring role and database up to a record, from wherever an earlier try stopped.

        Returns whether the tenant is active by that, being a copy that lacks nothing; else it is `provisioning`.
        """
        name = wanted.name
        there = traces.find(session, name)
        known = traces.intent_of(there, name)
        traces.require_free(there, name, known)
        intent = known or Intent(name, State.PROVISIONING, admin.new_nonce())
        if known is None:
            admin.create_engine_role(session, intent)
        copy = None
        if there.owner is None:
            self._require_unique(session, name, new=known is None)
            copy = self._make_database(session, intent)
        elif record.parse(there.record) is not None:
            return False
        url = wanted.url or (session.server.url and session.server.url.replace("{tenant}", name))
        pool = admin.configured_pool(session.server)
        noted = Record(State.PROVISIONING, url=url, created=there.at, engine={"pool": pool})
        if copy and wanted.web_user is None and not self.fleet.folders.pending(copy.schema, copy.applied):
            noted = replace(noted, state=State.ACTIVE, schema=copy.schema, applied=copy.applied)
        password = engine.keep_password(session, name, keep, pool) if noted.state is State.ACTIVE else None
        pipeline = session.pipeline()
        with session.transaction(first=pipeline):
            admin.equip_role(pipeline, name, pool)
            admin.open_database(pipeline, name)
            if noted.state is State.ACTIVE:
                record.put_intent(pipeline, admin.engine_role(name), replace(intent, state=State.ACTIVE))
            pipeline.send()
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
            traces.require_free(traces.find(session, intent.tenant), intent.tenant, intent)
        return None

    @staticmethod
    def _require_closed(session: Session, intent: Intent) -> None:
        """Raise NotEnough unless the new database is as it was asked for: by that a half-made one is known as ours."""
        made = traces.find(session, intent.tenant)
        if (made.open, made.connection_limit) != (False, intent.nonce):
            raise proof.missing(session, [proof.CLOSED])


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
    _ = files.of(fleet.folders).all
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
    if _whole(fleet, session, wanted, if_not_exists=if_not_exists) is not None:
        return True
    there = traces.find(session, name)
    traces.require_free(there, name, traces.intent_of(there, name))
    if there.owner is None:
        placements.require_unique(session.server, name)
    return False


def _whole(fleet: Fleet, session: Session, wanted: Wanted, *, if_not_exists: bool) -> Tenant | None:
    """Return the tenant that is there already, as it was asked for; None where it is still to be made or finished.

    Raises as `require_same`.
    """
    existing = fleet.look(session, wanted.name)
    if existing is None or existing.state is State.PROVISIONING:
        return None
    require_same(existing, wanted.url, if_not_exists=if_not_exists)
    _require_web_user(fleet, session.server, wanted.name, wanted.web_user)
    return existing


def steps(fleet: Fleet, wanted: Wanted) -> Iterator[Step]:
    """Yield what creating a tenant comes to."""
    name, role = wanted.name, admin.engine_role(wanted.name)
    yield Step("create role", role, f"CREATE ROLE {role} LOGIN")
    yield Step("create database", name, f"CREATE DATABASE {name} OWNER {ADMIN_ROLE} TEMPLATE template0 ENCODING 'UTF8'")
    yield Step("close to public", name, f"REVOKE ALL ON DATABASE {name} FROM PUBLIC")
    for file in files.of(fleet.folders).all:
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
            hint=[Run("tenant", "show", name), "add --if-not-exists to take it as it is"],
        )
    if url is not None and url != existing.url:
        raise TenantExists(
            f"tenant {name} exists and differs",
            why=f"its url is {existing.url or 'not set'}, not {url}",
            hint=Run("tenant", "set", name, "--url", url),
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
            hint=Run("user", "create", name, web_user, "--type", "web"),
        )


def _fill(conn: Session, fleet: Fleet, wanted: Wanted, keep: engine.Keep | None) -> None:
    """Migrate a provisioned database and make it active, all that `active` promises in one transaction."""
    name = conn.database
    apply.up(conn, folders=fleet.folders, states=(State.PROVISIONING,))
    with conn.lock(name):
        password = engine.keep_password(conn, name, keep, admin.decided_pool(conn, name, record.read(conn)))
        with conn.transaction():
            current = record.read(conn)
            if wanted.web_user is not None:
                users.ensure_web(conn, username=wanted.web_user)
            if password:
                admin.set_password(conn, name, password)
            traces.write_both(conn, replace(current, state=State.ACTIVE, url=wanted.url or current.url))
