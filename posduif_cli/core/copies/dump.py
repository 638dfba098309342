"""Dumps: one snapshot of a tenant as a file of pg_dump, with a manifest of what is in it."""

import json
import os
import shutil
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from posduif_cli import __version__
from posduif_cli.core import store
from posduif_cli.core.copies import clients, streams, sums
from posduif_cli.core.schema import history, inventory
from posduif_cli.core.schema.inventory import Thing
from posduif_cli.core.store import Store
from posduif_cli.db import queries, record
from posduif_cli.db.session import ADMIN_ROLE, Session
from posduif_cli.errors import OperationFailed
from posduif_cli.models.copies import Backup

LOCK_WAIT = "30s"  # for a migration that is under way
SNAPSHOT = "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ"


@dataclass(frozen=True)
class Dumping:
    """What all dumps of a run have in common; *pin* says why they are to be kept, *bin_dir* where programs may be."""

    store: Store
    pin: str | None = None
    bin_dir: Path | None = None

    def dump(self, conn: Session) -> Backup:
        """Back up the tenant that *conn* is in; raises OperationFailed, ConfigurationError, Blocked.

        The transaction of the sums is the snapshot that pg_dump dumps: what is written meanwhile is in neither.
        """
        begun, named = time.monotonic(), queries.load("copies/copies")
        with conn.transaction(read_only=True, prelude=[SNAPSHOT]):
            snapshot = conn.value(named["export_snapshot"])
            told = conn.dicts(named["describe_database"])[0]
            tables, sequences = sums.tables(conn), sums.sequences(conn)
            noted, schema = record.parse(told["comment"]), shape(inventory.inventory(conn))
            versions = sorted(history.applied(conn))
            summed = time.monotonic()
            program = clients.program("pg_dump", told["version_number"] // 10000, self.bin_dir)
            id_, part = self.store.begin(told["at"])
            try:
                plain, packed = self._stream(conn, program, snapshot, part / store.DATA)
                manifest = {
                    "format": 1,
                    "id": id_,
                    "tenant": conn.database,
                    "server": conn.server.name,
                    "incarnation": {"database_oid": told["oid"], "created": _spelled(noted.created if noted else None)},
                    "snapshot_at": _spelled(told["at"]),
                    "seconds": round(time.monotonic() - begun, 3),
                    "seconds_of": {"sums": round(summed - begun, 3)},
                    "postgres": {"server": told["version"], "server_num": told["version_number"],
                                 "client": clients.major(program)},
                    "tool": {"posduif": __version__, "rowsum": sums.ALGORITHM},
                    "record": told["comment"],
                    "schema": {"version": noted.schema if noted else None, "fingerprint": schema,
                               "migrations": versions},
                    "tables": tables,
                    "sequences": sequences,
                    "files": [{"name": store.DATA, "bytes": packed.bytes, "sha256": packed.sha256,
                               "plain_bytes": plain.bytes, "plain_sha256": plain.sha256}],
                    "compression": "zstd",
                }  # fmt: skip
                if self.pin is not None:
                    store.write(part / store.PIN, json.dumps({"why": self.pin}).encode())
                store.write(part / store.MANIFEST, json.dumps(manifest, indent=1, sort_keys=True).encode())
                return self.store.publish(part, conn.database, id_)
            except OSError as error:
                shutil.rmtree(part, ignore_errors=True)
                raise OperationFailed(f"the backup of {conn.database} failed", why=error.strerror) from error
            except BaseException:
                shutil.rmtree(part, ignore_errors=True)
                raise

    def _stream(self, conn: Session, program: Path, snapshot: str, target: Path) -> tuple[streams.Sums, streams.Sums]:
        argv: list[str | Path] = [
            program, "--format=custom", "--compress=0", f"--role={ADMIN_ROLE}", f"--snapshot={snapshot}",
            f"--lock-wait-timeout={LOCK_WAIT}", "--no-password",
        ]  # fmt: skip
        descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with open(descriptor, "wb") as file, clients.running(argv, conn.server, conn.database) as process:
            assert process.stdout is not None
            written = streams.compress(process.stdout, file)
            file.flush()
            os.fsync(descriptor)
        return written


def _spelled(moment: datetime | None) -> str | None:
    return moment.astimezone(UTC).isoformat() if moment else None


def shape(things: tuple[Thing, ...]) -> str:
    """Return the fingerprint of a schema without owners and rights, which a copy gets anew."""
    return inventory.digest(thing for thing in things if thing.kind not in ("grant", "owner"))


def newest_since(found: list[Backup], limit: datetime) -> set[str]:
    """Return the tenants that have a backup since a time."""
    return {backup.tenant for backup in found if backup.created_at >= limit}
