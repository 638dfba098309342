"""Loading a dump into an empty database, and comparing what came with the manifest."""

from pathlib import Path
from typing import Any

from posduif_cli.core import store
from posduif_cli.core.copies import clients, streams, sums
from posduif_cli.core.copies.dump import shape
from posduif_cli.core.schema import inventory
from posduif_cli.db.session import ADMIN_ROLE, Session
from posduif_cli.errors import DamagedBackup, WrongState
from posduif_cli.models.copies import Backup
from posduif_cli.models.servers import Server


def require_target(backup: Backup, version_number: int) -> None:
    """Raise WrongState for a server that is older than the one that was dumped."""
    noted = store.manifest(backup.location)["postgres"]["server_num"]
    if noted // 10000 > version_number // 10000:
        raise WrongState(
            f"backup {backup.backup} is of PostgreSQL {backup.server_version}, and the server is older",
            hint="restore it on a server of that major version or a newer one",
        )


def load(backup: Backup, server: Server, database: str, version_number: int, bin_dir: Path | None) -> None:
    """Restore a dump into an empty database of posduif_admin; raises DamagedBackup before a byte of one is used.

    By pg_restore into the database, never by psql: a script could run commands on this machine. Owners and rights are
    left out, for they name roles of another server.
    """
    path = backup.location / backup.file
    streams.require_whole(path, backup.checksum)
    program = clients.program("pg_restore", version_number // 10000, bin_dir)
    argv: list[str | Path] = [
        program, "--no-owner", "--no-acl", "--exit-on-error", f"--role={ADMIN_ROLE}", "--no-password",
        f"--dbname={database}",
    ]  # fmt: skip
    with clients.running(argv, server, database, stdin=True) as process:
        assert process.stdin is not None
        streams.decompress(path, process.stdin.write)


def compare(conn: Session, manifest: dict[str, Any]) -> tuple[str | None, int]:
    """Return the first difference between a restored database and its manifest, None without one, and the rows."""
    with conn.transaction(read_only=True):
        tables = sums.tables(conn)
        rows = sum(int(count) for count, _ in tables.values())
        found = sums.difference(manifest["tables"], tables)
        if found is None and sums.sequences(conn) != manifest["sequences"]:
            found = "sequences stand elsewhere than in the manifest"
        if found is None and shape(inventory.inventory(conn)) != manifest["schema"]["fingerprint"]:
            found = "the schema's fingerprint is not that of the manifest"
    return found, rows


def require_same(conn: Session, backup: Backup) -> int:
    """Raise DamagedBackup unless a restored database holds what the manifest says; return how many rows it has."""
    found, rows = compare(conn, store.manifest(backup.location))
    if found is not None:
        raise DamagedBackup(f"what was restored from backup {backup.backup} differs", why=found)
    return rows
