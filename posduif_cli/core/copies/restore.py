"""Restoring a backup as a new tenant, so that a kill at any moment leaves what the same command finishes.

The tenant is `restoring` until all of it is there and compared: no engine gets in, and no other command takes it for
whole. A restore that was interrupted begins again.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import IO, Any

from posduif_cli.core import names
from posduif_cli.core.copies.load import Loading
from posduif_cli.core.fleet.fleet import Fleet, Traces
from posduif_cli.core.fleet.placement import Placements
from posduif_cli.core.fleet.run import Run as Work
from posduif_cli.core.schema import apply, grants
from posduif_cli.core.schema.runner import reached
from posduif_cli.core.store import REPLACE, Stored
from posduif_cli.core.tenants import create, drop, engine, settings, traces
from posduif_cli.db import admin, queries, record
from posduif_cli.db.record import Intent, Record
from posduif_cli.db.session import Session
from posduif_cli.errors import PosduifError, Run, TenantExists
from posduif_cli.models.copies import FAILED
from posduif_cli.models.runs import Outcome, Step
from posduif_cli.models.tenants import State, Tenant

RESTORED = "restored"  # the record's key for the id of the backup
ANALYZING = timedelta(hours=1)


@dataclass(frozen=True)
class Restoring:
    """A backup that becomes tenant *name*.

    Its url is empty unless one is given, for the old tenant may have it; with *same* it is the old tenant's, which is
    lost. With *migrate* it is brought to the newest schema.
    """

    fleet: Fleet
    loading: Loading
    name: str
    url: str | None = None
    keep: engine.Keep | None = None
    ignore_unreachable: bool = False
    same: bool = False
    migrate: bool = True

    def run(self) -> Tenant:
        """Restore; raises InvalidName, TenantExists, DamagedBackup, WrongState, SuperuserSession, OperationFailed."""
        name = names.tenant(self.name)
        with (
            Placements(self.fleet, ignore_unreachable=self.ignore_unreachable) as placements,
            self.fleet.maintenance(placements.place(name)) as session,
        ):
            noted = self.loading.require_target(session)
            admin.ensure_roles(session)
            if self.keep is not None:
                settings.secret(session.server, name)
            with session.lock(name), self.loading.fetched() as file:
                clear(session, self.fleet.look(session, name), self.loading)
                placements.require_unique(session.server, name)
                before = record.parse(noted["record"])
                url = self.url or (_own_url(before) if self.same or self._returns(name) else None)
                try:
                    self._make(session, name, url)
                    fill(self.fleet, session, self.loading, noted, file, name, migrate=self.migrate)
                    suspended = before is not None and before.state is State.SUSPENDED and name == noted["tenant"]
                    self._let_in(session, name, url, State.SUSPENDED if suspended else State.ACTIVE, before)
                except PosduifError:
                    with suppress(PosduifError):  # of a server that went away; the same command begins again then
                        clear(session, self.fleet.look(session, name))
                    raise
                found = self.fleet.look(session, name).tenant
        if name == noted["tenant"]:
            with suppress(PosduifError):  # a store that can only be read
                self.loading.stored.note_return()
        assert found is not None
        return found

    def _returns(self, name: str) -> bool:
        """Whether a tenant that was dropped comes back."""
        return self.loading.backup.dropped and name == self.loading.backup.tenant

    def _make(self, session: Session, name: str, url: str | None) -> None:
        """Make the role with the intent, and an empty database that no engine gets into."""
        with settings.port(session, name, url=url) as port:
            intent = Intent(name, State.RESTORING, admin.new_nonce(), port)
            admin.create_engine_role(session, intent)
        admin.create_database(session, intent)
        given = settings.given(session.server, port, None)
        noted = Record(
            State.RESTORING, url=url, created=session.value("SELECT clock_timestamp()"),
            extra={RESTORED: self.loading.backup.backup},
        ).giving(given)  # fmt: skip
        with session.transaction():
            admin.equip_role(session, name, given)
            admin.open_database(session, name)
            admin.shut_out(session, name)
            record.put(session, name, noted)

    def _let_in(self, session: Session, name: str, url: str | None, state: State, before: Record | None) -> None:
        """Make the tenant what it was, active or suspended, by one transaction; its engine gets a password."""
        with self.fleet.enter(session.server, name) as conn:
            given = admin.decided(conn, name, record.read(conn))
            password = engine.keep_password(conn, name, self.keep, given, url)
            with conn.transaction():
                current, intent = record.read(conn), self.fleet.look(session, name).intent
                if password:
                    admin.set_password(conn, name, password)
                if state is State.ACTIVE:
                    admin.let_in(conn, name)
                desk = before.desk if before else None
                traces.write_both(conn, replace(current, state=state, desk=desk), intent)


def _own_url(before: Record | None) -> str | None:
    """Return the url that a tenant had; None for one that was made of its engine's port, which is another now."""
    if before is None or before.url is None:
        return None
    made = before.port is not None and before.url.startswith("http://") and before.url.endswith(f":{before.port}")
    return None if made else before.url


def clear(session: Session, there: Traces, loading: Loading | None = None) -> None:
    """Remove what an interrupted restore as a new tenant left, or the role of a tenant whose database is lost.

    Raises TenantExists, NotOurs for all else.
    """
    lost = there.tenant is not None and there.tenant.state is State.LOST and there.owner is None
    begun = lost or (there.intent is not None and there.intent.state is State.RESTORING)
    if there.tenant is not None and not begun:
        raise TenantExists(f"tenant {there.name} exists", hint=_instead(there.name, loading))
    if not begun:
        traces.require_free(there)
        return
    if there.owner is not None and traces.is_ours(there):
        end_own(session, there.name)
        drop.drop_database(session, there.name)
    admin.drop_role(session, there.name)


def _instead(name: str, loading: Loading | None) -> list[Run]:
    """Return what to type where a tenant of a name exists: never what destroys another one."""
    if loading is None:
        return []
    id_, of = loading.backup.backup, loading.backup.tenant
    over = [Run("backup", "restore", id_, "--confirm", of, lead="or over it")] if of == name else []
    return [Run("backup", "restore", id_, "--as", "NEW"), *over]


def fill(
    fleet: Fleet,
    session: Session,
    loading: Loading,
    noted: Mapping[str, Any],
    file: IO[bytes],
    database: str,
    *,
    migrate: bool = True,
) -> None:
    """Load a backup into an empty database that is `restoring`, and compare it.

    *migrate* brings it to the newest schema. Unused enrollment tokens are expired: the same are good, or were used
    since, in the tenant that was dumped.
    """
    loading.load(noted, file, session, database)
    with fleet.enter(session.server, database) as conn:
        conn.require_admin()
        loading.require_same(conn, noted)
        with conn.lock(database), conn.transaction():
            grants.run(conn)
            record.write(conn, reached(record.read(conn), set(noted["schema"]["migrations"])))
        if migrate:
            apply.up(conn, folders=fleet.folders, states=(State.RESTORING,))
        conn.execute(queries.load("copies/copies")["expire_tokens"])
        if database != noted["tenant"] and not database.startswith("posduif_"):
            conn.execute(queries.load("copies/copies")["rename_tokens"], old=noted["tenant"], new=database)
        with conn.limited(statement_timeout=ANALYZING):
            conn.execute("ANALYZE")  # dumps carry no statistics


def end_own(session: Session, database: str) -> None:
    """End the sessions of this very login in a database: those of a killed restore, which posduif_admin may not end."""
    with session.transaction(prelude=["SET LOCAL ROLE none"]):
        session.execute(queries.load("copies/copies")["end_own"], database=database)


def steps(stored: Stored, name: str) -> list[Step]:
    """Return the steps by which a backup becomes a new tenant."""
    role = admin.engine_role(name)
    return [
        Step("create role", role, f"CREATE ROLE {role} LOGIN"),
        Step("create database", name, create.MAKING.format(name=name)),
        Step("restore", f"{stored.backup.backup} into {name}"),
        Step("let in", role, f"GRANT CONNECT ON DATABASE {name} TO {role}"),
    ]


def newest(stored: Sequence[Stored]) -> tuple[list[Stored], list[str], list[str]]:
    """Return the newest good backup of each tenant, of backups in their order; who was dropped; who has no good one."""
    stored = [each for each in stored if each.backup.trigger != REPLACE]
    last = {each.backup.tenant: each for each in stored}
    good = {each.backup.tenant: each for each in stored if each.backup.verified != FAILED}
    dropped = [name for name, each in last.items() if each.backup.dropped]
    found = [each for name, each in good.items() if name not in dropped]
    return found, dropped, [name for name in last if name not in good and name not in dropped]


def restore_all(
    run: Work,
    loadings: Sequence[Loading],
    keeps: Callable[[str, bool], engine.Keep | None],
    *,
    ignore_unreachable: bool = False,
) -> None:
    """Bring tenants back, each under its own name and as it was; *run* gets an outcome for each.

    One that is there is unchanged. *keeps* returns what takes a tenant's password.
    """
    server = run.fleet.server_for_new()

    def one(loading: Loading) -> Tenant | None:
        name = loading.backup.tenant
        with run.fleet.maintenance(server) as session:
            there = run.fleet.look(session, name)
        if there.tenant is not None and there.tenant.state in (State.ACTIVE, State.SUSPENDED):
            return None
        return Restoring(
            run.fleet, loading, name, keep=keeps(name, False), ignore_unreachable=ignore_unreachable, same=True
        ).run()

    def note(loading: Loading, found: Tenant | PosduifError | None, seconds: float) -> None:
        backup = loading.backup
        error = found if isinstance(found, PosduifError) else None
        tenant = found if isinstance(found, Tenant) else None
        status = "failed" if error else "ok" if tenant else "unchanged"
        before, after = backup.schema_version, tenant.schema_version if tenant else None
        run.record(
            Outcome(backup.tenant, server.name, status, tenant is not None, before, after or before, seconds, error)
        )

    run.crew.run([(min(run.pace.jobs, server.max_connections // 2 or 1), list(loadings))], one, note)
