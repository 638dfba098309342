"""Proofs: a backup is restored on a scratch server and compared with its manifest, and what came of it is noted."""

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from posduif_cli.core import store
from posduif_cli.core.copies import load
from posduif_cli.core.fleet.fleet import Fleet
from posduif_cli.core.schema import inventory
from posduif_cli.db import admin, connect, embedded
from posduif_cli.db.session import Session
from posduif_cli.errors import DamagedBackup, OperationFailed, PosduifError
from posduif_cli.models.copies import Backup, Proof
from posduif_cli.models.servers import Server

PREFIX, PID = "posduif-scratch-", "pid"
COMMAND = "backup verify"


def longest_unproved(backups: Iterable[Backup]) -> list[Backup]:
    """Return the newest backup of each tenant, of backups in their order: first those never judged, or longest ago."""
    newest = {backup.tenant: backup for backup in backups}.values()
    return sorted(newest, key=lambda each: (each.verified_at is not None, each.verified_at or each.created_at))


@contextmanager
def scratch(bin_dir: Path | None) -> Iterator[Server]:
    """Lend a server of its own, without fsync, in a folder that is removed afterwards.

    Its login is no superuser: code in a dump could use a superuser's rights.
    """
    _sweep()
    folder = Path(tempfile.mkdtemp(prefix=PREFIX))
    folder.chmod(0o755)  # another user may run the server
    (folder / PID).write_text(str(os.getpid()))
    data = folder / "server"
    try:
        embedded.start(data, bin_dir=bin_dir, settings={"fsync": "off", "full_page_writes": "off"})
        yield Server("scratch", embedded.dsn(data), "a scratch server", embedded=True, named=False)
    finally:
        embedded.remove(data)
        shutil.rmtree(folder, ignore_errors=True)


def _sweep() -> None:
    """Stop and remove the scratch servers of verifications that were killed."""
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        with suppress(OSError, ValueError, PosduifError):  # another user's, or just begun
            pid = int((folder / PID).read_text())
            try:
                os.kill(pid, 0)
            except ProcessLookupError:
                embedded.remove(folder / "server")
                shutil.rmtree(folder, ignore_errors=True)


def verify(
    backups: Sequence[Backup],
    bin_dir: Path | None,
    *,
    until: float | None = None,
    done: Callable[[Proof], None] = lambda proof: None,
) -> list[Proof]:
    """Restore backups on a scratch server, compare each with its manifest, and append what was found to its proofs.

    After *until*, by the monotonic clock, none is begun.
    """
    if not backups:
        return []
    proofs = []
    with scratch(bin_dir) as server:
        fleet = Fleet((server,), COMMAND)
        with fleet.maintenance(server) as session:
            admin.ensure_roles(session)
        for backup in backups:
            if until is not None and time.monotonic() > until:
                break
            proof = _prove(fleet, server, backup, bin_dir)
            noted = {
                "verdict": proof.verdict, "reason": proof.reason, "rows": proof.rows, "seconds": proof.seconds,
                "at": proof.at.isoformat(), "server": proof.server_version, "sha256": backup.checksum,
            }  # fmt: skip
            store.prove(backup.location, noted)
            proofs.append(proof)
            done(proof)
    return proofs


def _prove(fleet: Fleet, server: Server, backup: Backup, bin_dir: Path | None) -> Proof:
    begun, at, version = time.monotonic(), datetime.now(UTC), None

    def judged(verdict: str, reason: str | None = None, rows: int = 0) -> Proof:
        seconds = round(time.monotonic() - begun, 3)
        return Proof(backup.backup, backup.tenant, verdict, reason, rows, seconds, at, version)

    try:
        with fleet.maintenance(server) as session, inventory.scratch(session) as name:
            version = str(session.value("SELECT current_setting('server_version')"))
            load.require_target(backup, session.version)
            load.load(backup, server, name, session.version, bin_dir)
            with _inside(server, name) as conn:
                return judged("proved", rows=load.require_same(conn, backup))
    except DamagedBackup as error:
        return judged("failed", error.why or error.message)
    except OperationFailed as error:
        # What pg_restore refuses may be the scratch server's lack: it is not called good, and not called bad.
        return judged("could_not_verify", error.sentence)
    except PosduifError as error:
        return judged("could_not_verify", error.sentence)


def _inside(server: Server, name: str) -> Session:
    return connect.connect(server, name, command=COMMAND, path="public")
