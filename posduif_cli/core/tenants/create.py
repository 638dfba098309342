"""Create a tenant, so that a kill at any moment leaves what the same command finishes.

There is one road to `active`. What is found under the name says how far an earlier try came, and that says what is
done next: `ROAD` has it as a table. The intent (a comment on the engine's role) comes before CREATE DATABASE, which
cannot join a transaction.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from enum import IntEnum

from posduif_cli.core import names
from posduif_cli.core.desk import users
from posduif_cli.core.fleet import proof
from posduif_cli.core.fleet.fleet import Fleet, Traces, origin, wrong_state
from posduif_cli.core.fleet.placement import Placements
from posduif_cli.core.schema import apply, files
from posduif_cli.core.schema.files import File
from posduif_cli.core.tenants import engine, settings, template, traces
from posduif_cli.core.tenants.template import Template
from posduif_cli.db import admin, record
from posduif_cli.db.record import Intent, Record
from posduif_cli.db.session import ADMIN_ROLE, Session
from posduif_cli.errors import Busy, PosduifError, QueryFailed, Run, TenantExists
from posduif_cli.models.runs import Plan, Step
from posduif_cli.models.tenants import Engine, State, Tenant

DUPLICATE_DATABASE = ("42P04", "23505")
MAKING = f"CREATE DATABASE {{name}} OWNER {ADMIN_ROLE} TEMPLATE template0 ENCODING 'UTF8'"
CLOSING = "REVOKE ALL ON DATABASE {name} FROM PUBLIC"


@dataclass(frozen=True)
class Wanted:
    """A tenant as it is asked for: *url* is an origin, *web_user* the first of its users.

    *port* is where its engine is to listen, *redis* the `HOST:PORT` and the database that the engine is to use.
    """

    name: str
    url: str | None = None
    web_user: str | None = None
    port: int | None = None
    redis: tuple[str, int | None] | None = None

    @property
    def role(self) -> str:
        """The engine's role."""
        return admin.engine_role(self.name)

    def check(self) -> None:
        """Raise InvalidName."""
        names.tenant(self.name)
        if self.web_user is not None:
            names.username(self.web_user)


class Progress(IntEnum):
    """How far the creation of a tenant came, by what is under its name."""

    NOTHING = 0  # neither role nor database
    ANNOUNCED = 1  # the engine's role with the intent, no database
    MADE = 2  # a database that is closed, with the intent's nonce as its connection limit
    RECORDED = 3  # a record that says `provisioning`
    WHOLE = 4


def progress(there: Traces) -> Progress:
    """Return how far the creation came; raises NotOurs where the database or the role is not posduif's."""
    traces.require_free(there)
    if there.record is not None:
        return Progress.RECORDED if there.record.state is State.PROVISIONING else Progress.WHOLE
    if there.owner is not None:
        return Progress.MADE
    return Progress.NOTHING if there.intent is None else Progress.ANNOUNCED


def create(
    fleet: Fleet,
    wanted: Wanted,
    *,
    if_not_exists: bool = False,
    ignore_unreachable: bool = False,
    keep: engine.Keep | None = None,
) -> tuple[Tenant, bool]:
    """Create a tenant, or finish one whose creation was interrupted; return it, and whether that changed anything.

    *keep* is called with the engine's new password and settings before the role gets that password; without
    it the role has none. Raises InvalidName, TenantExists, NotOurs, Busy, or the server's error; whatever was
    begun is finished by the same call. Another server that cannot be asked for the name is an error, too, unless
    *ignore_unreachable*. Raises ConfigurationError, having made nothing, while a migration file is faulty.
    """
    with _placed(fleet, wanted, ignore_unreachable) as (placements, session):
        if session.member is None:
            proof.require_locks(fleet, session)  # nothing of posduif is here yet
        admin.ensure_roles(session)
        maker = Maker(fleet, placements, if_not_exists, template.provide(session, fleet, coming=1))
        return maker.create(session, wanted, keep)


def creating(fleet: Fleet, wanted: Wanted, *, if_not_exists: bool = False, ignore_unreachable: bool = False) -> Plan:
    """Return the steps of `create`, having asked the server and changed nothing; raises as `create`."""
    with _placed(fleet, wanted, ignore_unreachable) as (placements, session):
        since = Maker(fleet, placements, if_not_exists).require_possible(session, wanted)
    return Plan(tuple(steps(fleet, wanted, since)))


@contextmanager
def _placed(fleet: Fleet, wanted: Wanted, ignore_unreachable: bool) -> Iterator[tuple[Placements, Session]]:
    """Yield the placements, and a maintenance session on the server that the tenant is on, or is to be on."""
    wanted.check()
    files.of(fleet.folders).require_sound()
    with (
        Placements(fleet, ignore_unreachable=ignore_unreachable) as placements,
        fleet.maintenance(placements.place(wanted.name)) as session,
    ):
        yield placements, session


@dataclass(frozen=True)
class Maker:
    """Creates tenants on one server, which has posduif's roles already; *template* is what they are copied from."""

    fleet: Fleet
    placements: Placements
    if_not_exists: bool
    template: Template | None = None

    def create(self, session: Session, wanted: Wanted, keep: engine.Keep | None) -> tuple[Tenant, bool]:
        """Create one as the function of that name, by a maintenance session."""
        if keep is not None:
            settings.secret(session.server, wanted.name)  # what is wrong with it is known before anything is made
        try:
            with session.lock(wanted.name):
                there = self.fleet.look(session, wanted.name)
                existing = self._whole(session, there, wanted)
                return (existing, False) if existing else (_Creation(self, session, wanted, keep).finish(there), True)
        except QueryFailed as error:
            error.hints = (*error.hints, "run the same command again: it finishes what was begun")
            raise

    def require_possible(self, session: Session, wanted: Wanted) -> Progress:
        """Raise what `create` would raise before it changes anything; return how far an earlier try came."""
        there = self.fleet.look(session, wanted.name)
        if self._whole(session, there, wanted) is not None:
            return Progress.WHOLE
        found = progress(there)
        if found < Progress.MADE:
            self.placements.require_unique(session.server, wanted.name)
        return found

    def _whole(self, session: Session, there: Traces, wanted: Wanted) -> Tenant | None:
        """Return the tenant that is there already, as it was asked for; None where it is still to be made or finished.

        Raises as `require_same`, and TenantExists where it lacks the web user.
        """
        existing, web_user = there.tenant, wanted.web_user
        if existing is None or existing.state is State.PROVISIONING:
            return None
        require_same(existing, wanted.url, wanted.port, if_not_exists=self.if_not_exists)
        _require_redis(there, wanted)
        if web_user is not None:
            with self.fleet.enter(session.server, wanted.name) as conn:
                found = users.look(conn, web_user)
            if found is None or found.user_type != "web":
                raise TenantExists(
                    f"tenant {wanted.name} exists and differs",
                    why=f'it has no web user "{web_user}"',
                    hint=Run("user", "create", wanted.name, web_user, "--type", "web"),
                )
        return existing


@dataclass
class _Creation:
    """One tenant on its way, under its lock in the maintenance database, which *session* is in.

    *new* says that this command wrote the intent, *copy* is the template that the database is a copy of.
    """

    maker: Maker
    session: Session
    wanted: Wanted
    keep: engine.Keep | None
    new: bool = False
    copy: Template | None = None

    def finish(self, there: Traces) -> Tenant:
        """Do what is next, until the tenant is active; return it."""
        while (before := progress(there)) is not Progress.WHOLE:
            there = ROAD[before][0](self, there)
            if progress(there) <= before:
                break
        if there.tenant is None or there.tenant.state is not State.ACTIVE:
            raise proof.missing(self.session, [proof.TOGETHER])
        return there.tenant

    def _look(self) -> Traces:
        return self.maker.fleet.look(self.session, self.wanted.name)

    def announce(self, there: Traces) -> Traces:
        """Make the engine's role with the intent, and choose the engine's port."""
        url = self.wanted.url or origin(self.session.server, there.name)
        with settings.port(self.session, there.name, asked=self.wanted.port, url=url) as port:
            intent = Intent(there.name, State.PROVISIONING, admin.new_nonce(), port)
            admin.create_engine_role(self.session, intent)
        self.new = True
        return replace(there, has_role=True, intent=intent)

    def make(self, there: Traces) -> Traces:
        """Make the database, once no other server has a tenant of this name; from the template where there is one."""
        intent = there.intent
        assert intent is not None
        try:
            self.maker.placements.require_unique(self.session.server, there.name)
        except PosduifError:
            if self.new:  # behind an older intent a CREATE DATABASE of another session may still be under way
                admin.drop_role(self.session, there.name)
            raise
        if self.maker.template is not None:
            with suppress(QueryFailed, Busy):  # dropped, in use, or damaged: it only saves time
                admin.create_database(self.session, intent, self.maker.template.name)
                self.copy = self.maker.template
        if self.copy is None:
            try:
                admin.create_database(self.session, intent)
            except QueryFailed as error:
                # An orphan of an earlier try, or another login, may have finished its CREATE DATABASE in this moment.
                if error.sqlstate not in DUPLICATE_DATABASE:
                    raise
                return self._look()
        made = self._look()
        if (made.open, made.connection_limit) != (False, intent.nonce):
            raise proof.missing(self.session, [proof.CLOSED])
        return made

    def open(self, there: Traces) -> Traces:
        """In one transaction equip the role, open the database and write its record: a whole copy is active by that."""
        session, name, copy = self.session, there.name, self.copy
        port = there.intent.port if there.intent else None
        given = settings.given(session.server, port, self.wanted.redis)
        url = self.wanted.url or origin(session.server, name, port)
        noted = Record(State.PROVISIONING, url=url, created=there.at).giving(given)
        folders = self.maker.fleet.folders
        if copy and self.wanted.web_user is None and not folders.pending(copy.schema, copy.applied):
            noted = replace(noted, state=State.ACTIVE, schema=copy.schema, applied=copy.applied)
        password = None
        if noted.state is State.ACTIVE:
            password = engine.keep_password(session, name, self.keep, given, url)
        pipeline = session.pipeline()
        with session.transaction(first=pipeline):
            admin.equip_role(pipeline, name, given)
            admin.open_database(pipeline, name)
            if noted.state is State.ACTIVE and there.intent is not None:
                record.put_intent(pipeline, admin.engine_role(name), replace(there.intent, state=State.ACTIVE))
            pipeline.send()
            if password:
                admin.set_password(session, name, password)
            record.put(session, name, noted)
        return self._look()

    def fill(self, there: Traces) -> Traces:
        """Migrate the database and make the tenant active, with all that `active` promises in one transaction."""
        fleet, name, wanted = self.maker.fleet, there.name, self.wanted
        with fleet.enter(self.session.server, name) as conn:
            apply.up(conn, folders=fleet.folders, states=(State.PROVISIONING,))
            given, noted = admin.decided(conn, name, there.record), there.record
            url = wanted.url or (noted.url if noted else None)
            password = engine.keep_password(conn, name, self.keep, given, url)
            with conn.transaction():
                current = record.read(conn)
                if wanted.web_user is not None:
                    desk, _ = users.create_if_missing(conn, username=wanted.web_user, user_type="web")
                    current = replace(current, desk=str(desk.id))
                if password:
                    admin.set_password(conn, name, password)
                active = replace(current, state=State.ACTIVE, url=wanted.url or current.url)
                traces.write_both(conn, active, there.intent)
        return self._look()


# The table of kill points: what a command that is typed again finds, what it does then, and how a dry run shows that.
ROAD: Mapping[Progress, tuple[Callable[[_Creation, Traces], Traces], Callable[[Fleet, Wanted], Iterable[Step]]]] = {
    Progress.NOTHING: (
        _Creation.announce,
        lambda _, new: [Step("create role", new.role, f"CREATE ROLE {new.role} LOGIN")],
    ),
    Progress.ANNOUNCED: (
        _Creation.make,
        lambda _, new: [Step("create database", new.name, MAKING.format(name=new.name))],
    ),
    Progress.MADE: (_Creation.open, lambda _, new: [Step("close to public", new.name, CLOSING.format(name=new.name))]),
    Progress.RECORDED: (
        _Creation.fill,
        lambda fleet, new: [
            *migrating(files.of(fleet.folders).all),
            *([Step("create web user", new.web_user)] if new.web_user else ()),
        ],
    ),
}


def steps(fleet: Fleet, wanted: Wanted, since: Progress = Progress.NOTHING) -> list[Step]:
    """Return the steps that creating a tenant takes where an earlier try came as far as *since*."""
    return [step for found, (_, show) in ROAD.items() if found >= since for step in show(fleet, wanted)]


def migrating(pending: Iterable[File]) -> list[Step]:
    """Return a step for each migration that is to be applied."""
    return [Step("migrate", f"{file.version}_{file.name}", file.up.text.strip()) for file in pending]


def _require_redis(there: Traces, wanted: Wanted) -> None:
    """Raise TenantExists unless the tenant's engine was given the Redis server that is asked for."""
    given = there.record.given if there.record else Engine()
    if wanted.redis is not None and wanted.redis not in ((given.redis, given.redis_db), (given.redis, None)):
        number = "" if given.redis_db is None else f"/{given.redis_db}"
        raise TenantExists(
            f"tenant {wanted.name} exists and differs",
            why=f"its engine's Redis is {given.redis or 'the configured one'}{number}, not {wanted.redis[0]}",
            hint="leave --redis out: it is given when a tenant is created",
        )


def require_same(existing: Tenant, url: str | None, port: int | None = None, *, if_not_exists: bool) -> None:
    """Judge a tenant that exists; raises WrongState, or TenantExists unless it is as it was asked for."""
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
    if port is not None and port != existing.engine_port:
        raise TenantExists(
            f"tenant {name} exists and differs",
            why=f"its engine's port is {existing.engine_port or 'not set'}, not {port}",
            hint="leave --engine-port out: a port is given when a tenant is created",
        )
