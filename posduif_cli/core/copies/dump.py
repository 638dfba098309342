"""Dumps: one snapshot of a tenant as a file of pg_dump, with a manifest of what is in it."""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from posduif_cli import __version__
from posduif_cli.core.copies import clients, stores, streams, sums
from posduif_cli.core.copies.streams import NO_KEYS, Keys
from posduif_cli.core.fleet.fleet import Fleet
from posduif_cli.core.schema import history, inventory
from posduif_cli.core.schema.inventory import Thing
from posduif_cli.core.store import DATA, MAKING, Draft, Store, usual
from posduif_cli.db import queries, record
from posduif_cli.db.session import ADMIN_ROLE, Session
from posduif_cli.errors import Busy, OperationFailed, PosduifError
from posduif_cli.models.copies import Backup
from posduif_cli.models.tenants import State, Tenant

LOCK_WAIT = timedelta(seconds=30)  # for a migration that is under way
SUMMING = timedelta(hours=12)
SNAPSHOT = "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ"
WHOLE = (State.ACTIVE, State.SUSPENDED)
COMPRESSED = 4  # a dump is rarely larger than this part of its database
LOCKED = "lock timeout"  # in what pg_dump says


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

    def __post_init__(self) -> None:
        """Read the recipients: a wrong one is known before anything is dumped."""
        if self.keys.recipients:
            self._readers.extend(self.keys.readers())
            stores.keep_canary(self.store, self.keys)

    def dump(self, conn: Session) -> Backup:
        """Back up the tenant that *conn* is in; raises OperationFailed, ConfigurationError, Busy."""
        made = self.dump_stale(conn)
        assert made is not None or self.since is not None
        return made or self.store.backups(conn.database)[-1]

    def dump_stale(self, conn: Session) -> Backup | None:
        """Back up as `dump`; None where there is a backup since the time that was given."""
        with self.store.storage.lock(f"{conn.database}/{MAKING}"):
            known = self.store.backups(conn.database)
            if self.since is not None and any(backup.created_at >= self.since for backup in known):
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
        """Dump within the transaction of the sums: its snapshot is pg_dump's, so later writes are in neither."""
        begun, named = time.monotonic(), queries.load("copies/copies")
        with conn.transaction(read_only=True, lock_timeout=LOCK_WAIT, statement_timeout=SUMMING, prelude=[SNAPSHOT]):
            snapshot = conn.value(named["export_snapshot"])
            told = conn.dicts(named["describe_database"])[0]
            expected = usual(known, lambda backup: backup.size_bytes)
            self.store.require_room(int(expected or told["size_bytes"] / COMPRESSED))
            held = self._held(conn)
            summed = time.monotonic()
            program = clients.dumper(told["version_number"] // 10000, self.bin_dir, conn.server)
            with self.store.draft(conn.database, told["at"]) as (id_, draft):
                file = f"{DATA}.age" if self._readers else DATA
                plain, packed = self._stream(conn, program, snapshot, draft, file)
                ended = time.monotonic()
                manifest = {
                    "format": 1,
                    "id": id_,
                    "status": "complete",
                    "trigger": self.trigger,
                    **_where(conn, told, program),
                    **held,
                    "finished_at": _spelled(datetime.now(UTC)),
                    "seconds": round(ended - begun, 3),
                    "seconds_of": {"sums": round(summed - begun, 3), "dump": round(ended - summed, 3)},
                    "files": [{"name": file, "bytes": packed.count, "sha256": packed.sha256,
                               "plain_bytes": plain.count, "plain_sha256": plain.sha256}],
                    "compression": "zstd",
                    "encryption": {"tool": "age" if self._readers else None, "recipients": list(self.keys.recipients)},
                }  # fmt: skip
                pin = None if self.pin is None else json.dumps({"why": self.pin}).encode()
                draft.publish(json.dumps(manifest, indent=1, sort_keys=True, default=str).encode(), pin)
        return self.store.read(f"{conn.database}/{id_}").backup

    def _held(self, conn: Session) -> dict[str, Any]:
        """Return what the database holds, for the manifest, in the transaction under way."""
        tables, sequences, large = sums.tables(conn), sums.sequences(conn), sums.large_objects(conn)
        settings = conn.dicts(queries.load("copies/copies")["describe_settings"])[0]
        noted = record.read(conn)
        return {
            "tables": tables,
            "sequences": sequences,
            "database": {**settings, "large_objects": large},
            "schema": {
                "version": noted.schema,
                "set": noted.applied,
                "fingerprint": shape(inventory.inventory(conn)),
                "migrations": sorted(history.applied(conn)),
            },
        }

    def _stream(
        self, conn: Session, program: Path, snapshot: str, draft: Draft, file: str
    ) -> tuple[streams.Sums, streams.Sums]:
        argv: list[str | Path] = [
            program, "--format=custom", "--compress=0", f"--snapshot={snapshot}",
            f"--lock-wait-timeout={LOCK_WAIT.seconds}s", "--no-password",
        ]  # fmt: skip
        if conn.member:
            argv.append(f"--role={ADMIN_ROLE}")
        with draft.open(file) as target, clients.running(argv, conn.server, conn.database) as process:
            assert process.stdout is not None
            return streams.pack(process.stdout, target, self._readers)


def _where(conn: Session, told: Mapping[str, Any], program: Path) -> dict[str, Any]:
    """Return which database on which server was dumped, and with what."""
    noted = record.parse(told["comment"])
    kept = ("encoding", "locale_provider", "collate", "ctype", "collversion", "data_checksums")
    return {
        "tenant": conn.database,
        "server": conn.server.name,
        "incarnation": {
            "system_identifier": told["system_identifier"],
            "database_oid": told["oid"],
            "created": _spelled(noted.created if noted else None),
        },
        "snapshot_at": _spelled(told["at"]),
        "lsn": told["lsn"],
        "timeline": told["timeline"],
        "postgres": {
            "server": told["version"],
            "server_num": told["version_number"],
            "client": clients.major(program),
            **{key: told[key] for key in kept},
        },
        "tool": {"posduif": __version__, "rowsum": sums.ALGORITHM},
        "record": told["comment"],
    }


def _spelled(moment: datetime | None) -> str | None:
    return moment.astimezone(UTC).isoformat() if moment else None


def shape(things: tuple[Thing, ...]) -> str:
    """Return the fingerprint of a schema without owners and rights, which a copy gets anew."""
    return inventory.digest(thing for thing in things if thing.kind not in ("grant", "owner"))


@dataclass(frozen=True)
class Made:
    """What a run made: *failed* by tenant, *left* out because they are not whole, *newer* because they had one."""

    backups: list[Backup]
    failed: dict[str, PosduifError]
    left: list[str]
    newer: list[str]


def dump_all(fleet: Fleet, tenants: Sequence[Tenant], dumping: Dumping, *, jobs: int, done: Any = None) -> Made:
    """Back up tenants, several at once on each server; *done* gets each with its backup or error and its seconds."""
    whole = [tenant for tenant in tenants if tenant.state in WHOLE]
    if dumping.since is not None:
        recent = {backup.tenant for backup in dumping.store.backups() if backup.created_at >= dumping.since}
        begun = [tenant for tenant in whole if tenant.tenant not in recent]
    else:
        begun = whole
    more = {} if done is None else {"done": done}
    results = fleet.each(begun, dumping.dump_stale, jobs=jobs, **more)
    made = [found for _, found in results if isinstance(found, Backup)]
    failed = {tenant.tenant: found for tenant, found in results if isinstance(found, PosduifError)}
    reached = {backup.tenant for backup in made} | set(failed)
    return Made(
        made,
        failed,
        [tenant.tenant for tenant in tenants if tenant.state not in WHOLE],
        [tenant.tenant for tenant in whole if tenant.tenant not in reached],
    )
