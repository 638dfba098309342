"""Restoring over a tenant: beside it, and then both change names in one transaction; the old one is set aside.

    step                                                    a kill after it leaves           the same command then
    shut      record `restoring` with the id of this        the tenant shut, data untouched  goes on
              restore; the engine shut out, and ended
    keep      a last backup of the old one, pinned          a whole backup, or none          finds it by that id
    build     posduif_restore_ID: loaded, compared,         a half database, or a whole      makes a half one anew
              migrated; its record says how far             one
    close     both databases, sessions ended                both closed                      again
    swap      one transaction: names, records, rights       all of it, or nothing            is done

Until the swap `undo` gives the restore up; after it, it swaps back, by the same steps but for the first two of the
new database. What an error, not a kill, ends before the swap is given up at once.
"""

import secrets
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import partial
from typing import IO, Any

from posduif_cli.core.copies.dump import Dumping
from posduif_cli.core.copies.load import Loading
from posduif_cli.core.copies.restore import RESTORED, clear, end_own, fill
from posduif_cli.core.fleet.asides import COPY, asides, copied
from posduif_cli.core.fleet.fleet import Fleet, Found
from posduif_cli.core.fleet.run import who_is
from posduif_cli.core.store import REPLACE, Stored
from posduif_cli.core.tenants import create, drop, engine, traces
from posduif_cli.db import admin, queries, record
from posduif_cli.db.patience import Patience
from posduif_cli.db.quoting import compose, identifier
from posduif_cli.db.record import Intent, Record
from posduif_cli.db.session import ADMIN_ROLE, Session
from posduif_cli.errors import Busy, Conflict, Interrupted, PosduifError, Run, WrongState
from posduif_cli.models.copies import Aside
from posduif_cli.models.runs import Step
from posduif_cli.models.tenants import State, Tenant

# Keys of the record: what a tenant's restore is at, and the id of the database set aside.
RESTORE, ASIDE = "restore", "aside"
BUILT, OLD = "posduif_restore_{}", "posduif_aside_{}"
LOADING, LOADED, KEPT = "loading", "loaded", "aside"


@dataclass(frozen=True)
class Replacing:
    """A tenant whose database is replaced by a backup, or, without *loading*, by the one that was set aside.

    *final* makes the last backup of the old one, None if none is wanted; the database set aside is kept for *keep*.
    With *migrate* the new one is brought to the newest schema.
    """

    fleet: Fleet
    found: Found
    loading: Loading | None
    final: Dumping | None = None
    keep: timedelta = timedelta(days=7)
    migrate: bool = True

    @property
    def name(self) -> str:
        """The tenant's name."""
        return self.found.tenant.tenant

    def run(self) -> tuple[Tenant, Aside]:
        """Replace the database; raises DamagedBackup, WrongState, SuperuserSession, Busy, OperationFailed.

        Raises Conflict where nothing was set aside that could come back.
        """
        with self.fleet.maintenance(self.found.server) as session:
            session.require_admin()
            admin.ensure_roles(session)  # which the new database is opened to
            if self.loading is None:
                return self._swapped(session, None, None)
            noted = self.loading.require_target(session)
            with self.loading.fetched() as file:  # checked before anything is touched
                return self._swapped(session, noted, file)

    def _swapped(self, session: Session, noted: dict[str, Any] | None, file: IO[bytes] | None) -> tuple[Tenant, Aside]:
        with session.lock(self.name):
            plan = self._begun(session) or self._shut(session)
            engine.end_sessions(session, self.name)
            try:
                self._keep(session, plan)
                if noted is not None and file is not None:
                    self._build(session, plan, noted, file)
                self._close(session, plan)
                aside = self._swap(session, plan)
            except Busy:
                raise
            except KeyboardInterrupt:
                raise Interrupted(
                    "interrupted",
                    why=f"tenant {self.name} is restoring, and its engine shut out",
                    hint=["type the same command again: it goes on", undoing(self.name, "or give the restore up")],
                ) from None
            except PosduifError:
                with suppress(PosduifError):  # of a server that went away; the same command goes on then
                    give_up(self.fleet, session, self.name)
                raise
            tenant = self.fleet.look(session, self.name).tenant
        assert tenant is not None
        return tenant, aside

    def _begun(self, session: Session) -> dict[str, Any] | None:
        """Return the plan of this very restore, if it was interrupted; raises WrongState for another's."""
        noted = self.fleet.look(session, self.name).record
        if noted is None or noted.state is not State.RESTORING:
            return None
        plan = noted.extra.get(RESTORE)
        if not isinstance(plan, dict) or plan.get("backup") != self._backup:
            raise being_restored(self.name, plan)
        with session.transaction():
            set_open(session, self.name, True)
        return plan

    @property
    def _backup(self) -> str | None:
        return self.loading.backup.backup if self.loading else None

    def _shut(self, session: Session) -> dict[str, Any]:
        """Write into the record what is going on, and shut the engine out; return the plan that was written."""

        def change(shut: bool) -> dict[str, Any]:
            with traces.changing(self.fleet, self.found, State.ACTIVE, State.SUSPENDED) as (conn, current):
                incoming = BUILT.format(rid := secrets.token_hex(4))
                if self._backup is None:
                    incoming = OLD.format(current.extra.get(ASIDE))
                    self._require_kept(session, incoming)
                plan = {"rid": rid, "backup": self._backup, "was": current.state.value, "incoming": incoming}
                record.write(conn, replace(current, state=State.RESTORING, extra={**current.extra, RESTORE: plan}))
                admin.shut_out(conn, self.name)
                return plan

        return engine.despite_engine(session, self.name, change, reopen=False)

    def _require_kept(self, session: Session, database: str) -> None:
        if not any(aside.database == database for aside in asides(session, self.name)):
            raise Conflict(
                f"there is nothing to undo for tenant {self.name}",
                why="no database of it is set aside",
                hint=Run("backup", "list", self.name),
            )

    def _keep(self, session: Session, plan: dict[str, Any]) -> None:
        """Make the last backup of the old database, unless an interrupted restore has made it."""
        if self.final is None or self.loading is None:
            return
        why = f"before restore {plan['rid']}"
        if any(backup.pinned == why for backup in self.final.store.backups(self.name)):
            return
        with self.fleet.enter(session.server, self.name) as conn:
            try:
                replace(self.final, pin=why, trigger=REPLACE).dump(conn)
            except PosduifError as error:
                error.hints = (*error.hints, "or add --no-backup: the old database is set aside in any case")
                raise

    def _build(self, session: Session, plan: dict[str, Any], noted: dict[str, Any], file: IO[bytes]) -> None:
        """Make the new database, unless an interrupted restore has made it whole."""
        assert self.loading is not None
        name, copy = plan["incoming"], {"of": self.name, "rid": plan["rid"], "backup": plan["backup"]}
        known = _comment(session, name)
        if known is not None and copied(known).get("stage") == LOADED:
            return
        _drop_copy(session, name, self.name)
        admin.create_database(session, Intent(name, State.RESTORING, admin.new_nonce()))
        with session.transaction():
            session.execute(compose("REVOKE ALL ON DATABASE {name} FROM PUBLIC", name=identifier(name)))
            session.execute(compose("ALTER DATABASE {name} SET timezone = 'UTC'", name=identifier(name)))
            set_open(session, name, True)
            record.put(session, name, Record(State.RESTORING, extra={COPY: {**copy, "stage": LOADING}}))
        fill(self.fleet, session, self.loading, noted, file, name, migrate=self.migrate)
        with session.transaction():
            known = _comment(session, name)
            assert known is not None
            record.put(session, name, replace(known, extra={COPY: {**copy, "stage": LOADED}}))

    def _close(self, session: Session, plan: dict[str, Any]) -> None:
        """Close both databases and end the sessions in them; raises Busy, naming those that posduif may not end."""
        for name in (plan["incoming"], self.name):
            with session.transaction():
                set_open(session, name, False)
            end_own(session, name)
        engine.end_sessions(session, self.name)
        question = queries.load("copies/copies")["find_others"]
        for name in (plan["incoming"], self.name):
            ask = partial(session.tuples, question, database=name, pids=[])
            if left := Patience("killed").until_none(ask):
                raise Busy(
                    f"database {name} is in use by sessions that posduif may not end",
                    why=", ".join(who_is(*row) for row in left),
                    hint=[
                        *(f"a superuser types: SELECT pg_terminate_backend({pid});" for pid, *_ in left),
                        "then type the same command again: it goes on",
                        undoing(self.name, "or give the restore up"),
                    ],
                )

    def _swap(self, session: Session, plan: dict[str, Any]) -> Aside:
        """Change the names, the records and the rights of both databases in one transaction."""
        name, incoming, outgoing = self.name, plan["incoming"], OLD.format(plan["rid"])
        old, new = record.judge(name, session.tuples(record.QUESTION, database=name)), _comment(session, incoming)
        assert new is not None
        now: datetime = session.value("SELECT clock_timestamp()")
        until, state = now + self.keep, State(plan["was"])
        kept = {key: value for key, value in old.extra.items() if key != RESTORE}
        marked = {"of": name, "rid": plan["rid"], "stage": KEPT, "backup": plan["backup"],
                  "since": now.isoformat(timespec="seconds"), "until": until.isoformat(timespec="seconds")}  # fmt: skip
        carried = {key: value for key, value in new.extra.items() if key != COPY} | {ASIDE: plan["rid"]}
        if plan["backup"] is not None:
            carried |= {RESTORED: plan["backup"]}
        given = admin.decided(session, name, old)
        grantees = session.tuples(queries.load("copies/copies")["list_grantees"], database=name)
        with session.transaction():
            session.execute(_renaming(name, outgoing))
            session.execute(_renaming(incoming, name))
            for (grantee,) in grantees:
                _revoke(session, outgoing, grantee)
            set_open(session, outgoing, True)
            admin.open_database(session, name)
            admin.equip_role(session, name, given)
            if state is State.ACTIVE:
                admin.let_in(session, name)
            else:
                admin.shut_out(session, name)
            record.put(session, outgoing, replace(old, state=state, extra={**kept, COPY: marked}))
            record.put(
                session,
                name,
                replace(new, state=state, url=old.url, created=old.created, engine=old.engine, extra=carried,
                        desk=new.desk if plan["backup"] is None else self._desk(new)),
            )  # fmt: skip
        slots = session.tuples(queries.load("copies/copies")["list_slots"], database=outgoing)
        left = tuple(slot for (slot,) in slots)
        return Aside(name, session.server.name, outgoing, plan["backup"], now, until, slots=left)

    def _desk(self, new: Record) -> str | None:
        before = record.parse(self.loading.stored.manifest["record"]) if self.loading else None
        return before.desk if before else new.desk


def give_up(fleet: Fleet, session: Session, name: str) -> bool:
    """Bring a tenant back whose restore was not finished; return False where none was under way.

    A tenant that is to be a new one is removed.
    """
    there = fleet.look(session, name)
    noted = there.record
    if noted is None or noted.state is not State.RESTORING:
        return False
    plan = noted.extra.get(RESTORE)
    if not isinstance(plan, dict):
        clear(session, there)
        return True
    if plan.get("backup") is not None:  # else it is the database that was set aside
        _drop_copy(session, plan["incoming"], name)
    else:
        with session.transaction():
            set_open(session, plan["incoming"], True)
    was = State(plan["was"])
    with session.transaction():
        set_open(session, name, True)
        if was is State.ACTIVE:
            admin.let_in(session, name)
        kept = {key: value for key, value in noted.extra.items() if key != RESTORE}
        record.put(session, name, replace(noted, state=was, extra=kept))
    return True


def undo(fleet: Fleet, found: Found, keep: timedelta) -> tuple[Tenant | None, Aside | None, datetime | None]:
    """Give up a restore that was not finished, or swap back one that was.

    Return the tenant, what is set aside, and since when what came back was set aside; None where nothing was. Raises
    Conflict where there is nothing to undo.
    """
    name = found.tenant.tenant
    if found.tenant.state is State.RESTORING and not _is_undoing(found.record):
        with fleet.maintenance(found.server) as session:
            session.require_admin()
            with session.lock(name):
                give_up(fleet, session, name)
                return fleet.look(session, name).tenant, None, None
    with fleet.maintenance(found.server) as session:
        known = {aside.database: aside.since for aside in asides(session, name)}
    tenant, aside = Replacing(fleet, found, None, keep=keep).run()
    return tenant, aside, known.get(OLD.format(found.record.extra.get(ASIDE) if found.record else ""))


def steps(found: Found, stored: Stored | None, *, last: bool) -> list[Step]:
    """Return the steps by which a tenant's database is replaced; without *stored* by the one that was set aside.

    *last* says that a backup of the old one is made first.
    """
    name, role = found.tenant.tenant, admin.engine_role(found.tenant.tenant)
    shut = [
        Step("shut out", role, f"ALTER ROLE {role} NOLOGIN"),
        Step("shut out", name, f"REVOKE CONNECT ON DATABASE {name} FROM {role}"),
        Step("end sessions", role),
    ]
    built = BUILT.format("...") if stored else OLD.format(found.record.extra.get(ASIDE) if found.record else "...")
    if stored is not None:
        shut += [Step("back up", name)] if last else []
        shut.append(Step("create database", built, create.MAKING.format(name=built)))
        shut.append(Step("restore", f"{stored.backup.backup} into {built}"))
    return [
        *shut,
        Step("set aside", name, f"ALTER DATABASE {name} RENAME TO {OLD.format('...')}"),
        Step("swap in", built, f"ALTER DATABASE {built} RENAME TO {name}"),
        Step("let in", role, f"GRANT CONNECT ON DATABASE {name} TO {role}"),
    ]


def is_over(found: Found) -> bool:
    """Whether a restore under this name would go over a tenant: not where one of a new tenant was interrupted."""
    if found.record is None or found.tenant.state not in (State.ACTIVE, State.SUSPENDED, State.RESTORING):
        return False
    return found.tenant.state is not State.RESTORING or RESTORE in found.record.extra


def _is_undoing(noted: Record | None) -> bool:
    plan = noted.extra.get(RESTORE) if noted else None
    return isinstance(plan, dict) and plan.get("backup") is None


def discard(fleet: Fleet, aside: Aside) -> None:
    """Drop a database that was set aside, or that a restore left; raises Busy, WrongState while a restore needs it."""
    with fleet.maintenance(fleet.server(aside.server)) as session:
        session.require_admin()
        with session.lock(aside.tenant):
            noted = record.parse(next((c for _, c in session.tuples(record.QUESTION, database=aside.tenant)), None))
            plan = noted.extra.get(RESTORE) if noted else None
            if isinstance(plan, dict) and plan.get("incoming") == aside.database:
                raise being_restored(aside.tenant, plan)
            _drop_copy(session, aside.database, aside.tenant)


def under_way(found: Found) -> str | None:
    """Return the id of the backup that an interrupted restore over a tenant goes on with."""
    plan = found.record.extra.get(RESTORE) if found.record else None
    backup = plan.get("backup") if isinstance(plan, dict) else None
    return backup if isinstance(backup, str) else None


def _drop_copy(session: Session, database: str, tenant: str) -> None:
    """Drop a copy of a tenant; who works in it is most likely what a killed restore left, which the server ends."""
    patience = Patience("lock", pause=timedelta(milliseconds=250))
    while True:
        end_own(session, database)
        try:
            drop.drop_database(session, database)
            return
        except Busy as error:
            if not patience.again():
                raise Busy(
                    f"{database}, a copy of tenant {tenant}, is still worked on",
                    why=error.why,
                    hint="perhaps by a restore that was killed: type the same command again in a moment",
                ) from None


def being_restored(name: str, plan: Any) -> WrongState:
    """Return the error that another restore of a tenant is under way."""
    backup = plan.get("backup") if isinstance(plan, dict) else None
    again: Sequence[Run] = (Run("backup", "restore", backup, "--confirm", name),) if backup else ()
    return WrongState(
        f"tenant {name} is being restored" + (f" from backup {backup}" if backup else ""),
        why="that was interrupted, or is under way",
        hint=[*again, undoing(name, "or give it up")],
    )


def undoing(name: str, lead: str = "") -> Run:
    """Return the command that takes a restore back."""
    return Run("backup", "restore", "--undo", "--confirm", name, lead=lead)


def _comment(session: Session, database: str) -> Record | None:
    """Return the record of a database of posduif_admin; None where there is none."""
    found = session.tuples(record.QUESTION, database=database)
    return record.parse(found[0][1]) if found and found[0][0] == ADMIN_ROLE else None


def set_open(session: Session, name: str, open_: bool) -> None:
    """Let sessions into a database, or none; part of a transaction."""
    if open_:
        session.execute(
            compose("ALTER DATABASE {name} WITH ALLOW_CONNECTIONS true CONNECTION LIMIT -1", name=identifier(name))
        )
    else:
        session.execute(compose("ALTER DATABASE {name} WITH ALLOW_CONNECTIONS false", name=identifier(name)))


def _renaming(old: str, new: str) -> Any:
    return compose("ALTER DATABASE {old} RENAME TO {new}", old=identifier(old), new=identifier(new))


def _revoke(session: Session, database: str, role: str | None) -> None:
    whom = compose("PUBLIC") if role is None else identifier(role)
    session.execute(compose("REVOKE ALL ON DATABASE {name} FROM {role}", name=identifier(database), role=whom))
