"""Restoring a backup as a new tenant, so that a kill at any moment leaves what the same command finishes.

The tenant is `restoring` until all of it is there and compared: no engine gets in, and no other command takes it for
whole. A restore that was interrupted begins again.
"""

from dataclasses import dataclass, replace
from pathlib import Path

from posduif_cli.core import names, store
from posduif_cli.core.copies import load
from posduif_cli.core.fleet.fleet import Fleet, Traces
from posduif_cli.core.fleet.placement import Placements
from posduif_cli.core.schema import apply, grants
from posduif_cli.core.schema.runner import reached
from posduif_cli.core.tenants import drop, engine, settings, traces
from posduif_cli.db import admin, queries, record
from posduif_cli.db.record import Intent, Record
from posduif_cli.db.session import Session
from posduif_cli.errors import Run, SuperuserSession, TenantExists
from posduif_cli.models.copies import Backup
from posduif_cli.models.servers import Server
from posduif_cli.models.tenants import State, Tenant

RESTORED = "restored"  # the record's key for the id of the backup


@dataclass(frozen=True)
class Restoring:
    """A backup that becomes tenant *name*; its url is empty unless one is given, for the old tenant may have it."""

    fleet: Fleet
    backup: Backup
    name: str
    url: str | None = None
    bin_dir: Path | None = None
    keep: engine.Keep | None = None
    ignore_unreachable: bool = False

    def run(self) -> Tenant:
        """Restore; raises InvalidName, TenantExists, DamagedBackup, WrongState, SuperuserSession, OperationFailed."""
        name = names.tenant(self.name)
        with (
            Placements(self.fleet, ignore_unreachable=self.ignore_unreachable) as placements,
            self.fleet.maintenance(placements.place(name)) as session,
        ):
            load.require_target(self.backup, session.version)
            if session.superuser:
                raise SuperuserSession(
                    "a superuser's session restores no backup",
                    why="code in a dump could use a superuser's rights",
                    hint=Run("server", "init", "--login", "NAME"),
                )
            admin.ensure_roles(session)
            if self.keep is not None:
                settings.secret(session.server, name)
            with session.lock(name):
                self._clear(session, self.fleet.look(session, name))
                placements.require_unique(session.server, name)
                self._make(session, name)
                self._fill(session, name)
                found = self.fleet.look(session, name).tenant
        assert found is not None
        return found

    def _clear(self, session: Session, there: Traces) -> None:
        """Remove what an interrupted restore of this name left; raises TenantExists, NotOurs for all else."""
        begun = there.intent is not None and there.intent.state is State.RESTORING
        if there.tenant is not None and not begun:
            raise TenantExists(
                f"tenant {there.name} exists",
                hint=[
                    Run("backup", "restore", self.backup.backup, "--as", "NEW"),
                    Run("tenant", "drop", there.name, "--confirm", there.name, lead="or first"),
                ],
            )
        if not begun:
            traces.require_free(there)
            return
        if there.owner is not None and traces.is_ours(there):
            drop.drop_database(session, there.name)
        admin.drop_role(session, there.name)

    def _make(self, session: Session, name: str) -> None:
        """Make the role with the intent, and an empty database that no engine gets into."""
        with settings.port(session, name, url=self.url) as port:
            intent = Intent(name, State.RESTORING, admin.new_nonce(), port)
            admin.create_engine_role(session, intent)
        admin.create_database(session, intent)
        given = settings.given(session.server, port, None)
        noted = Record(
            State.RESTORING, url=self.url, created=session.value("SELECT clock_timestamp()"),
            extra={RESTORED: self.backup.backup},
        ).giving(given)  # fmt: skip
        with session.transaction():
            admin.equip_role(session, name, given)
            admin.open_database(session, name)
            admin.shut_out(session, name)
            record.put(session, name, noted)

    def _fill(self, session: Session, name: str) -> None:
        """Load, compare, bring to the newest schema, and make the tenant active, by one transaction at the end."""
        server: Server = session.server
        load.load(self.backup, server, name, session.version, self.bin_dir)
        with self.fleet.enter(server, name) as conn:
            conn.require_admin()
            load.require_same(conn, self.backup)
            noted = store.manifest(self.backup.location)["schema"]
            with conn.lock(name), conn.transaction():
                grants.run(conn)
                versions = set(noted["migrations"])
                record.write(conn, reached(record.read(conn), versions))
            apply.up(conn, folders=self.fleet.folders, states=(State.RESTORING,))
            given = admin.decided(conn, name, record.read(conn))
            password = engine.keep_password(conn, name, self.keep, given, self.url)
            with conn.transaction():
                current, intent = record.read(conn), self.fleet.look(session, name).intent
                conn.execute(queries.load("copies/copies")["expire_tokens"])
                if password:
                    admin.set_password(conn, name, password)
                admin.let_in(conn, name)
                traces.write_both(conn, replace(current, state=State.ACTIVE), intent)
