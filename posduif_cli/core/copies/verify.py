"""Proofs: a backup is restored on a scratch server and compared with its manifest, and what came of it is noted."""

import getpass
import os
import re
import secrets
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

from posduif_cli import __version__
from posduif_cli.core.copies import load
from posduif_cli.core.copies.load import Loading
from posduif_cli.core.copies.streams import NO_KEYS, Keys
from posduif_cli.core.copies.sums import Layouts
from posduif_cli.core.fleet.crew import Crew
from posduif_cli.core.fleet.fleet import Fleet
from posduif_cli.core.schema import inventory
from posduif_cli.core.store import REPLACE, Stored
from posduif_cli.db import admin, connect, embedded
from posduif_cli.db.quoting import compose, identifier
from posduif_cli.db.session import ADMIN_ROLE, Session
from posduif_cli.errors import DamagedBackup, PosduifError
from posduif_cli.models.copies import FAILED, PROVED, UNJUDGED, VERDICTS, Drill, Proof
from posduif_cli.models.servers import Server

PREFIX, PID = "posduif-scratch-", "pid"
USUAL, MEMORY = (Path("/tmp"), Path("/var/tmp"), Path("/usr/tmp")), Path("/dev/shm")  # noqa: S108
SERVER = 512 * 1024**2  # bytes that a scratch server takes beside what it restores
COMMAND = "backup verify"
# It is thrown away: nothing of it has to survive a crash.
SETTINGS = {
    "fsync": "off", "full_page_writes": "off", "synchronous_commit": "off", "wal_level": "minimal",
    "max_wal_senders": "0", "autovacuum": "off", "max_wal_size": "128MB",
}  # fmt: skip


def longest_unproved(stored: Sequence[Stored]) -> list[Stored]:
    """Return the newest of each tenant, of backups in their order: first those never judged, or longest ago."""
    wanted = [each for each in stored if each.backup.trigger != REPLACE] or stored
    newest = {each.backup.tenant: each for each in wanted}.values()
    return sorted(
        newest,
        key=lambda each: (each.backup.verified_at is not None, each.backup.verified_at or each.backup.created_at),
    )


def place(wanted: int) -> Path:
    """Return where a scratch server goes that takes so many bytes: into memory where there is plenty.

    A TMPDIR that is set decides it.
    """
    folder = Path(tempfile.gettempdir())
    if folder not in USUAL or not os.access(MEMORY, os.W_OK | os.X_OK):
        return folder
    return MEMORY if min(shutil.disk_usage(MEMORY).free, _available()) > 2 * wanted else folder


def _available() -> int:
    """Return how many bytes of memory are there for programs that are started now; 0 where that is not known."""
    with suppress(OSError):
        if found := re.search(r"^MemAvailable: +(\d+) kB$", Path("/proc/meminfo").read_text(), re.MULTILINE):
            return int(found[1]) * 1024
    return 0


@contextmanager
def scratch(bin_dir: Path | None, wanted: int) -> Iterator[tuple[Server, Path]]:
    """Lend a server of its own, without fsync, with its folder, which is removed afterwards.

    It is to hold *wanted* bytes.

    Its login is no superuser: code in a dump could use a superuser's rights.
    """
    _sweep()
    folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=place(wanted)))
    folder.chmod(0o755)  # another user may run the server
    (folder / PID).write_text(str(os.getpid()))
    data = folder / "server"
    try:
        embedded.start(data, bin_dir=bin_dir, settings=SETTINGS)
        yield Server("scratch", embedded.dsn(data), "a scratch server", embedded=True, named=False), folder
    finally:
        embedded.remove(data)
        shutil.rmtree(folder, ignore_errors=True)


def _sweep() -> None:
    """Stop and remove the scratch servers of verifications that were killed."""
    for root in (Path(tempfile.gettempdir()), MEMORY):
        for folder in root.glob(f"{PREFIX}*"):
            with suppress(OSError, ValueError, PosduifError):  # another user's, or just begun
                pid = int((folder / PID).read_text())
                try:
                    os.kill(pid, 0)
                except ProcessLookupError:
                    embedded.remove(folder / "server")
                    shutil.rmtree(folder, ignore_errors=True)


@dataclass(frozen=True)
class Verifying:
    """How backups are proved: with whose keys, on the server *on* of the configuration or on a scratch server.

    After *until*, by the monotonic clock, none is begun; *jobs* are restored at once.
    """

    keys: Keys = NO_KEYS
    bin_dir: Path | None = None
    on: Server | None = None
    until: float | None = None
    jobs: int = 2
    _layouts: Layouts = field(default_factory=Layouts, init=False, repr=False)

    def verify(self, backups: Sequence[Stored], done: Callable[[Proof], None] = lambda proof: None) -> list[Proof]:
        """Restore backups, compare each with its manifest, and append what was found to its proofs; return these.

        Raises what the server says where none can be begun.
        """
        if not backups:
            return []
        if self.on is not None:
            return self._all(self.on, backups, done)
        largest = sorted(stored.backup.plain_bytes for stored in backups)[-self.jobs :]
        with scratch(self.bin_dir, SERVER + load.GROWS * sum(largest)) as (server, folder):
            return self._all(server, backups, done, folder)

    def _all(
        self, server: Server, backups: Sequence[Stored], done: Callable[[Proof], None], folder: Path | None = None
    ) -> list[Proof]:
        """Prove backups on a server; *folder* is where that is, if it is one of its own that is thrown away."""
        proofs: list[Proof] = []
        fleet, own, kept, crew = Fleet((server,), COMMAND), threading.local(), ExitStack(), Crew()
        with fleet.maintenance(server) as session:
            load.require_no_superuser(session, "leave --on out, or name a server whose login is no superuser")
            admin.ensure_roles(session)

        def one(stored: Stored) -> Proof | None:
            if self.until is not None and time.monotonic() > self.until:
                return None
            if getattr(own, "session", None) is None or own.session.broken:  # each thread has one
                own.session = kept.enter_context(fleet.maintenance(server))
            proof = self._prove(own.session, stored, folder)
            if crew.stop.is_set():  # by ctrl-C, in the middle
                return None
            try:
                stored.prove(_noted(proof, stored, server))
            except PosduifError as error:  # as on a disk that can only be read
                return replace(proof, reason=f"{proof.reason or 'it restores'}; not noted: {error.sentence}")
            return proof

        def note(stored: Stored, found: Proof | PosduifError | None, seconds: float) -> None:
            if isinstance(found, PosduifError):
                found = _judged(stored, UNJUDGED, found.sentence, seconds=seconds)
            if found is not None:
                proofs.append(found)
                done(found)

        with kept:
            crew.run([(min(self.jobs, server.max_connections // 2 or 1), list(backups))], one, note)
        order = {stored.backup.backup: number for number, stored in enumerate(backups)}
        return sorted(proofs, key=lambda proof: order[proof.backup])

    def _prove(self, session: Session, stored: Stored, folder: Path | None) -> Proof:
        """Restore one backup. What cannot be judged is not called good, and not called bad."""
        begun, version = time.monotonic(), None
        loading, verdict, reason, rows = Loading(stored, self.keys, self.bin_dir), UNJUDGED, None, 0
        try:
            version = str(session.value("SHOW server_version"))
            noted = loading.require_target(session)
            if folder is not None:
                load.require_room(noted, folder)
            with _database(session) if folder else inventory.scratch(session) as name:
                with loading.fetched() as file:
                    loading.load(noted, file, session, name)
                with connect.connect(
                    session.server, name, command=COMMAND, footing=session.footing, path="public"
                ) as conn:
                    rows, verdict = loading.require_same(conn, noted, self._layouts), PROVED
        except DamagedBackup as error:
            verdict, reason = FAILED, error.why or error.message
        except PosduifError as error:
            reason = error.sentence
        return _judged(stored, verdict, reason, rows, time.monotonic() - begun, version)


@contextmanager
def _database(session: Session) -> Iterator[str]:
    """Make a database on a server that nobody else knows, for as long as the block runs."""
    name = f"posduif_verify_{secrets.token_hex(6)}"
    parts = {"name": identifier(name), "owner": identifier(ADMIN_ROLE)}
    session.execute(compose("CREATE DATABASE {name} OWNER {owner} TEMPLATE template0 ENCODING 'UTF8'", **parts))
    try:
        yield name
    finally:
        session.execute(compose("DROP DATABASE {name}", **parts))


def _judged(
    stored: Stored, verdict: str, reason: str | None = None, rows: int = 0, seconds: float = 0.0,
    version: str | None = None,
) -> Proof:  # fmt: skip
    backup = stored.backup
    return Proof(backup.backup, backup.tenant, verdict, reason, rows, round(seconds, 3), datetime.now(UTC), version)


def _noted(proof: Proof, stored: Stored, server: Server) -> dict[str, object]:
    """Return the line that is kept of a proof; of a reason its beginning, for PostgreSQL may quote rows in the rest."""
    return {
        "backup": proof.backup, "tenant": proof.tenant, "verdict": proof.verdict, "at": proof.at.isoformat(),
        "reason": proof.reason if proof.verdict == FAILED else proof.reason and proof.reason.partition(": ")[0],
        "rows": proof.rows, "seconds": proof.seconds, "server": server.name, "server_version": proof.server_version,
        "sha256": stored.backup.checksum, "by": f"{_user()}@{socket.gethostname()}", "posduif": __version__,
    }  # fmt: skip


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return str(os.getuid())


def drilled(proofs: Sequence[Proof], newest: Sequence[Stored], tenants: Sequence[str]) -> Drill:
    """Return what a drill of the *newest* backups of some *tenants* came to; they are read again, with their proofs."""
    counts = {word: sum(proof.verdict == word for proof in proofs) for word in VERDICTS}
    times = [stored.store.read(stored.key).backup.verified_at for stored in newest]
    known = [at for at in times if at is not None]
    slowest = max((proof for proof in proofs if proof.verdict == PROVED), key=lambda proof: proof.seconds, default=None)
    have = {stored.backup.tenant for stored in newest}
    return Drill(
        counts[PROVED], counts[FAILED], counts[UNJUDGED],
        left=len(newest) - len(proofs),
        without=tuple(name for name in tenants if name not in have),
        oldest_proof=min(known) if known and len(known) == len(times) else None,
        slowest_tenant=slowest.tenant if slowest else None,
        slowest_seconds=slowest.seconds if slowest else None,
        proofs=tuple(proofs),
    )  # fmt: skip
