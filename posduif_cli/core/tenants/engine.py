"""A tenant's engine: its file, its password, its sessions, and what keeps it from being in the way."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from datetime import timedelta
from typing import Any, TypeVar

from posduif_cli.core.desk import users
from posduif_cli.core.fleet.fleet import Fleet, Found
from posduif_cli.core.fleet.run import who_is
from posduif_cli.core.fleet.steps import Deed, carry_out
from posduif_cli.core.tenants import settings, traces
from posduif_cli.db import admin, queries, record
from posduif_cli.db.patience import Patience
from posduif_cli.db.record import Record
from posduif_cli.db.session import Session
from posduif_cli.errors import AccessDenied, Blocked, Busy, Conflict, PosduifError, Run
from posduif_cli.models.tenants import Engine, State, Tenant

T = TypeVar("T")
Keep = Callable[[str, dict[str, Any]], None]
SESSION_END = 2000  # milliseconds that a session has to end


def engine_config(fleet: Fleet, *, name: str) -> dict[str, Any]:
    """Return the settings of a tenant's sync engine, with a placeholder for the password."""
    with fleet.open(name) as place:
        given = admin.decided(place.session, name, place.record)
        return settings.settings(place.session, name, settings.PLACEHOLDER, given, place.tenant.url)


def keep_password(session: Session, name: str, keep: Keep | None, given: Engine, url: str | None) -> str | None:
    """Make a password and have it kept; None without *keep*."""
    if keep is None:
        return None
    password = admin.new_password()
    keep(password, settings.settings(session, name, password, given, url))
    return password


def rotate_password(fleet: Fleet, found: Found, *, keep: Keep, now: bool = False) -> Tenant:
    """Give the engine's role a new password; *keep* is called with it and the settings first. Return the tenant.

    With *now* the engine's sessions are ended, which the old password opened; raises Busy, naming those that
    would not end.
    """
    found.require(State.ACTIVE, State.SUSPENDED)
    name = found.tenant.tenant

    def change(shut: bool) -> None:
        with traces.changing(fleet, found, State.ACTIVE, State.SUSPENDED) as (conn, current):
            given = admin.decided(conn, name, current)
            if password := keep_password(conn, name, keep, given, current.url or found.tenant.url):
                admin.set_password(conn, name, password)
            if shut and current.state is State.ACTIVE:
                admin.let_in(conn, name)

    def rotate(session: Session) -> None:
        despite_engine(session, name, change, reopen=True)
        if now:
            end_sessions(session, name)

    return carry_out(fleet, found, [Deed(rotate)])[0]


def refresh(fleet: Fleet, found: Found, *, write: Callable[[dict[str, Any]], bool]) -> tuple[Tenant, bool]:
    """Give a tenant's engine what this machine's configuration says: into its record, its role's limit and its file.

    *write* is called with the settings, with a placeholder for the password, and returns whether it changed the file. A
    port that the engine has stays, as does a Redis server that was asked for by name. Returns the tenant, and whether
    anything was changed.
    """
    found.require(State.ACTIVE, State.SUSPENDED)
    name, port = found.tenant.tenant, found.tenant.engine_port
    with ExitStack() as stack:
        session = stack.enter_context(fleet.maintenance(found.server))
        if port is None:
            port = stack.enter_context(settings.port(session, name, url=found.tenant.url))
        conn, current = stack.enter_context(traces.changing(fleet, found, State.ACTIVE, State.SUSPENDED))
        changed = _give(conn, name, current, port)
        wrote = write(
            settings.settings(conn, name, settings.PLACEHOLDER, changed.given, changed.url or found.tenant.url)
        )
    return replace(found.tenant, engine_port=port), wrote or changed != current


def _give(conn: Session, name: str, current: Record, port: int | None) -> Record:
    """Note what the configuration gives an engine, and set its role's limit; return the record."""
    usual, noted = admin.configured(conn.server), current.given
    redis_db = noted.redis_db if noted.redis else usual.redis_db
    kept = {key: value for key, value in current.engine.items() if key != "web_pool"}
    wanted = replace(current, engine=kept).giving(replace(usual, port=port, redis_db=redis_db))
    if wanted != current:
        record.write(conn, wanted)
    if conn.value(queries.load("db/admin")["read_limit"], role=admin.engine_role(name)) != admin.engine_limit(
        wanted.given
    ):
        admin.limit_connections(conn, name, wanted.given)
    return wanted


def change(fleet: Fleet, found: Found, *, url: str | None = None, desk: str | None = None) -> tuple[Tenant, bool]:
    """Set the origin that phones reach the tenant by, and the web user who creates tokens, of those that are given.

    Returns the tenant, and whether that changed it. Raises UserNotFound, and Conflict for a user that is no web user.
    """
    found.require(State.ACTIVE, State.SUSPENDED)
    with traces.changing(fleet, found, State.ACTIVE, State.SUSPENDED) as (conn, current):
        wanted = current if url is None else replace(current, url=url)
        if desk is not None:
            user = users.find(conn, desk)
            if user.user_type != "web":
                raise Conflict(f'user "{user.username}" is a {user.user_type} user', why="tokens are made by web users")
            wanted = replace(wanted, desk=str(user.id))
        if wanted != current:
            record.write(conn, wanted)
    return replace(found.tenant, state=current.state, url=wanted.url or found.tenant.url), wanted != current


def despite_engine(session: Session, name: str, change: Callable[[bool], T], *, reopen: bool) -> T:
    """Make a change that the tenant's engine must not prevent, whatever its sessions have locked.

    Where *change*, called with False, raises Blocked, and not for other roles' locks alone, the maintenance *session*
    closes the engine's role and ends its sessions, and *change* is called with True. With *reopen* the role is opened
    again where that fails, too. A kill in between leaves an active tenant whose engine cannot log in: `resume` and
    `suspend` finish that.
    """
    role = admin.engine_role(name)
    try:
        return change(False)
    except Blocked as error:
        if error.roles and role not in error.roles:
            raise
        session.require_admin()
        end_sessions(session, name, shut=True)
        session.ended.append(f"the sessions of {role}: they held locks that were in the way")
        try:
            return change(True)
        except PosduifError:
            if reopen:
                admin.open_role(session, name)
            raise


def end_sessions(session: Session, name: str, *, shut: bool = False) -> None:
    """End all sessions of a tenant's engine by a maintenance session; with *shut* close its role first.

    Raises Busy, naming those that would not end, or Blocked where the engine is faster all the time.
    """
    role = admin.engine_role(name)
    question = queries.load("tenants/tenants")["end_role"]
    patience = Patience("engine", pause=timedelta(0))
    try:
        while True:
            # Together and without waiting: an engine that lost its session is back in milliseconds, but behind us in
            # the queue for what it had locked.
            pipeline = session.pipeline()
            pipeline.execute(question, role=role, wait=0 if shut else SESSION_END)
            if shut:
                pipeline.execute("SET LOCAL lock_timeout = '500ms'")
                admin.close_role(pipeline, name)
            try:
                pipeline.send()
                break
            except Blocked:
                if not patience.again():
                    raise
        # Those who came in between, and those whose log-in had begun by then.
        patience = Patience("engine", pause=timedelta(milliseconds=50))
        while shut and session.value(question, role=role, wait=SESSION_END) and patience.again():
            pass
    except AccessDenied as error:
        raise in_use(session, name, error) from error
    left = session.dicts(queries.load("tenants/tenants")["find_sessions"], database=name, role=role)
    if left := [found for found in left if found["role"] == role]:
        raise Busy(
            f"the engine of tenant {name} is still connected",
            why=named(left),
            hint="type the same command again",
        )


def in_use(session: Session, name: str, error: PosduifError) -> PosduifError:
    """Name the sessions that keep a database from being dropped; return *error* itself without any."""
    found = session.dicts(queries.load("tenants/tenants")["find_sessions"], database=name, role=admin.engine_role(name))
    if not found:
        return error
    return Busy(
        f"database {name} is in use by sessions that posduif may not end",
        why=named(found),
        hint=["ask their owners to disconnect", Run("tenant", "drop", name, "--confirm", name)],
    )


def named(sessions: Sequence[Mapping[str, Any]]) -> str:
    """Return sessions by pid, role, application and state, for a sentence."""
    return ", ".join(who_is(found["pid"], found["role"], found["application"], found["state"]) for found in sessions)
