"""Dumps: one snapshot of a tenant as a file of pg_dump, with a manifest of what is in it."""

import json
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import IO, Any, Generic, NamedTuple, TypeVar

from posduif_cli import __version__
from posduif_cli.core.copies import clients, stores, streams, sums
from posduif_cli.core.copies.streams import NO_KEYS, Keys
from posduif_cli.core.fleet.fleet import Fleet, split
from posduif_cli.core.store import DATA, MAKING, Store, usual
from posduif_cli.db import queries, record
from posduif_cli.db.record import Record
from posduif_cli.db.session import ADMIN_ROLE, Session
from posduif_cli.errors import Busy, OperationFailed, PosduifError
from posduif_cli.models.copies import FAILED, Backup
from posduif_cli.models.tenants import State, Tenant

T = TypeVar("T")
LOCK_WAIT = timedelta(seconds=30)  # for a migration that is under way
SUMMING = timedelta(hours=12)
SNAPSHOT = "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ"
WHOLE = (State.ACTIVE, State.SUSPENDED)
COMPRESSED = 4  # a dump is rarely larger than this part of its database
LARGE = 32 * 1024**2  # bytes from which on a tenant is summed up while it is dumped
TURN = 1.0  # seconds that a tenant waits with its snapshot until others are dumped
LOCKED = "lock timeout"  # in what pg_dump says


class Taken(NamedTuple):
    """One dump: what was in its snapshot, the plain and the written stream, and the seconds that summing up took."""

    opened: sums.Opened
    held: sums.Held
    plain: streams.Sums
    packed: streams.Sums
    summing: float


@dataclass(frozen=True)
class Dumping:
    """What all dumps of a run have in common.

    *pin* says why they are to be kept, *trigger* which command makes them, *bin_dir* where programs may be. A tenant
    that has a backup *since* a time gets none.
    """

    store: Store
    keys: Keys = NO_KEYS
    pin: str | None = None
    trigger: str = "backup create"
    bin_dir: Path | None = None
    since: datetime | None = None
    _readers: list[Any] = field(default_factory=list, init=False, repr=False)
    _layouts: sums.Layouts = field(default_factory=sums.Layouts, init=False, repr=False)
    _described: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict, init=False, repr=False)
    _turns: dict[str, threading.Semaphore] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        """Read the recipients: a wrong one is known before anything is dumped."""
        if self.keys.recipients:
            self._readers.extend(self.keys.readers())
            stores.keep_canary(self.store, self.keys)

    def foresee(self, fleet: Fleet, tenants: Sequence[Tenant], jobs: int) -> dict[str, int]:
        """Ask each server once about its tenants that are to be dumped; return how many to work on at once on each.

        So many *jobs* are dumped at once, each by two connections, and one more is begun or finished.
        """
        names = [tenant.tenant for tenant in tenants]
        told, _ = split(fleet.ask(lambda session: describe(session, names)))
        self._described.update({(server, name): row for server, rows in told.items() for name, row in rows.items()})
        found = {}
        for name in {tenant.server for tenant in tenants}:
            at_once = max(1, min(jobs, (fleet.server(name).max_connections - 1) // 2))
            self._turns[name] = threading.Semaphore(at_once)
            found[name] = at_once + 1
        return found

    def dump(self, conn: Session) -> Backup:
        """Back up the tenant that *conn* is in; raises OperationFailed, ConfigurationError, Busy."""
        made = self.dump_stale(conn)
        return made or self.store.backups(conn.database)[-1]

    def dump_stale(self, conn: Session) -> Backup | None:
        """Back up as `dump`; None where there is a backup since the time that was given."""
        with self.store.storage.lock(f"{conn.database}/{MAKING}"):
            known = self.store.backups(conn.database)
            if self.since is not None and any(_since(backup, self.since) for backup in known):
                return None
            try:
                return self._dump(conn, known)
            except OperationFailed as error:
                if any(LOCKED in reason for reason in error.reasons):
                    raise Busy(
                        f"tables of {conn.database} are locked by someone else",
                        why=f"pg_dump waited for {LOCK_WAIT.seconds} s",
                        hint="type the same command again",
                    ) from None
                raise

    def _dump(self, conn: Session, known: Sequence[Backup]) -> Backup:
        begun, begun_at = time.monotonic(), datetime.now(UTC)
        told = self._described.get((conn.server.name, conn.database)) or describe(conn, [conn.database])[conn.database]
        program = clients.dumper(told["version_number"] // 10000, self.bin_dir, conn.server)
        file = f"{DATA}.age" if self._readers else DATA
        with self.store.draft(conn.database, begun_at) as (id_, draft):
            with draft.open(file) as target:
                taken = self._take(conn, program, target, known)
                seconds = time.monotonic() - begun
            _, at, lsn, comment = taken.opened.opening
            noted = record.parse(comment)
            manifest = {
                "format": 1,
                "id": id_,
                "status": "complete",
                "trigger": self.trigger,
                "tenant": conn.database,
                "server": conn.server.name,
                "started_at": _spelled(begun_at),
                "snapshot_at": _spelled(at),
                "finished_at": _spelled(datetime.now(UTC)),
                "seconds": {
                    "sums": round(taken.summing, 3),
                    "dump": round(seconds - taken.summing, 3),
                    "all": round(seconds, 3),
                },
                "pinned": None if self.pin is None else {"why": self.pin},
                "lsn": lsn,
                "record": comment,
                **_where(told, noted, program),
                **_what(told, noted, taken),
                "files": [{"name": file, "bytes": taken.packed.count, "sha256": taken.packed.sha256,
                           "plain_bytes": taken.plain.count, "plain_sha256": taken.plain.sha256}],
                "compression": "zstd",
                "encryption": {"tool": "age" if self._readers else None, "recipients": list(self.keys.recipients)},
            }  # fmt: skip
            pin = None if self.pin is None else json.dumps({"why": self.pin}).encode()
            draft.publish(json.dumps(manifest, sort_keys=True, default=str).encode(), pin)
        return self.store.noted(f"{conn.database}/{id_}", manifest, self.pin)

    def _take(self, conn: Session, program: Path, target: IO[bytes], known: Sequence[Backup]) -> Taken:
        """Sum up and dump in one snapshot, when it is the tenant's turn.

        It is summed up while others have theirs. But a snapshot keeps migrations and vacuum waiting: where the turn
        does not come soon, it is waited for without one, and the sums are made anew.
        """
        turn = self._turns.get(conn.server.name)
        if (taken := self._try(conn, program, target, known, turn)) is None:
            assert turn is not None
            with turn:
                taken = self._try(conn, program, target, known, None)
        assert taken is not None
        return taken

    def _try(
        self, conn: Session, program: Path, target: IO[bytes], known: Sequence[Backup], turn: threading.Semaphore | None
    ) -> Taken | None:
        """Sum up and dump within one transaction: its snapshot is pg_dump's, so later writes are in neither."""
        with conn.transaction(read_only=True, lock_timeout=LOCK_WAIT, statement_timeout=SUMMING, prelude=[SNAPSHOT]):
            begun = time.monotonic()
            opened = self._layouts.open(conn, "open_snapshot")
            held = None if self._is_large(conn, known) else opened.sum_up(conn)
            summing = time.monotonic() - begun
            if turn is not None and not turn.acquire(timeout=TURN):
                return None
            try:
                with clients.running(_argv(conn, program, opened), conn.server, conn.database) as process:
                    assert process.stdout is not None
                    work = partial(streams.pack, process.stdout, target, self._readers)
                    if held is not None:
                        return Taken(opened, held, *work(), summing)
                    packing = Beside(work)  # the sums are made by another process of the server
                    begun = time.monotonic()
                    held = opened.sum_up(conn)
                    summing = time.monotonic() - begun
                    return Taken(opened, held, *packing.result(), summing)
            finally:
                if turn is not None:
                    turn.release()

    def _is_large(self, conn: Session, known: Sequence[Backup]) -> bool:
        """Whether a tenant takes long to sum up; raises OperationFailed where there is no room for its backup."""
        if known:
            size, expected = known[-1].plain_bytes, usual(known, lambda backup: backup.size_bytes)
        else:
            size = conn.value(queries.load("copies/copies")["measure_database"])
            expected = size / COMPRESSED
        self.store.require_room(int(expected or 0))
        return bool(size > LARGE)


def _since(backup: Backup, limit: datetime) -> bool:
    """Whether a backup is new enough for another one to be left out: not one that is known to be bad."""
    return backup.created_at >= limit and backup.verified != FAILED


def _argv(conn: Session, program: Path, opened: sums.Opened) -> list[str | Path]:
    """Return the command of a dump. What no restore brings back, for it takes more rights, is not looked for."""
    role = [f"--role={ADMIN_ROLE}"] if conn.member else []
    return [
        program, "--format=custom", "--compress=0", f"--snapshot={opened.opening[0]}",
        "--no-publications", "--no-subscriptions", "--no-security-labels",
        f"--lock-wait-timeout={LOCK_WAIT.seconds}s", "--no-password", *role,
    ]  # fmt: skip


class Beside(Generic[T]):
    """Work that goes on in a thread of its own."""

    def __init__(self, work: Callable[[], T]) -> None:
        self._found: list[T] = []
        self._errors: list[BaseException] = []

        def run() -> None:
            try:
                self._found.append(work())
            except BaseException as error:
                self._errors.append(error)

        self._thread = threading.Thread(target=run, daemon=True)
        self._thread.start()

    def result(self) -> T:
        """Wait for what the work returns, or raise what it raised."""
        self._thread.join()
        if self._errors:
            raise self._errors[0]
        return self._found[0]


def describe(session: Session, tenants: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return what a dump does not carry of databases on the server of *session*, by name."""
    rows = session.dicts(queries.load("copies/copies")["describe_databases"], names=[*tenants])
    return {row["tenant"]: row for row in rows}


def _where(told: Mapping[str, Any], noted: Record | None, program: Path) -> dict[str, Any]:
    """Return which database was dumped, and with what."""
    kept = ("encoding", "locale_provider", "collate", "ctype", "collversion", "data_checksums")
    return {
        "incarnation": {
            "system_identifier": told["system_identifier"],
            "database_oid": told["oid"],
            "created": _spelled(noted.created if noted else None),
        },
        "timeline": told["timeline"],
        "postgres": {
            "server": told["version"],
            "server_num": told["version_number"],
            "client": (client := clients.major(program)),
            "archive": clients.ARCHIVES.get(client or 0),
            "min_client": min(client or 0, 17),
            **{key: told[key] for key in kept},
        },
        "tool": {"posduif": __version__, "rowsum": sums.ALGORITHM},
    }


def _what(told: Mapping[str, Any], noted: Record | None, taken: Taken) -> dict[str, Any]:
    """Return what the database holds."""
    held, layout = taken.held, taken.opened.layout
    return {
        "tables": held.tables,
        "sequences": held.sequences,
        "database": {
            **{key: told[key] for key in ("settings", "role_settings", "grants")},
            "extensions": layout.extensions,
            "large_objects": held.large_objects,
        },
        "schema": {
            "version": noted.schema if noted else None,
            "set": noted.applied if noted else None,
            "fingerprint": layout.fingerprint,
            "migrations": held.versions,
        },
    }


def _spelled(moment: datetime | None) -> str | None:
    return moment.astimezone(UTC).isoformat() if moment else None


@dataclass(frozen=True)
class Made:
    """What a run made: *failed* by tenant, *left* out because they are not whole, *newer* because they had one."""

    backups: list[Backup]
    failed: dict[str, PosduifError]
    left: list[str]
    newer: list[str]


Done = Callable[[Tenant, Backup | PosduifError | None, float], None]


def dump_all(
    fleet: Fleet,
    tenants: Sequence[Tenant],
    dumping: Dumping,
    *,
    jobs: int,
    done: Done = lambda tenant, found, seconds: None,
) -> Made:
    """Back up tenants, several at once on each server; *done* gets each with its backup or error and its seconds."""
    begun = whole = [tenant for tenant in tenants if tenant.state in WHOLE]
    if dumping.since is not None:
        recent = {backup.tenant for backup in dumping.store.backups() if _since(backup, dumping.since)}
        begun = [tenant for tenant in whole if tenant.tenant not in recent]
    limits = dumping.foresee(fleet, begun, jobs) if begun else {}
    results = fleet.each(begun, dumping.dump_stale, jobs=limits, done=done)
    made = [found for _, found in results if isinstance(found, Backup)]
    failed = {tenant.tenant: found for tenant, found in results if isinstance(found, PosduifError)}
    reached = {backup.tenant for backup in made} | set(failed)
    return Made(
        made,
        failed,
        [tenant.tenant for tenant in tenants if tenant.state not in WHOLE],
        [tenant.tenant for tenant in whole if tenant.tenant not in reached],
    )
