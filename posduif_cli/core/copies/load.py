"""Loading a dump into an empty database, and comparing what came with the manifest."""

import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from posduif_cli.core.copies import clients, streams, sums
from posduif_cli.core.copies.dump import SUMMING
from posduif_cli.core.copies.streams import NO_KEYS, Keys
from posduif_cli.core.copies.sums import Layouts
from posduif_cli.core.store import Stored
from posduif_cli.db.session import ADMIN_ROLE, Session
from posduif_cli.errors import DamagedBackup, Hint, OperationFailed, Run, SuperuserSession, WrongState
from posduif_cli.models.copies import PROVED, Backup

GROWS = 4  # a database takes up to so many times the space of its plain dump


@dataclass(frozen=True)
class Loading:
    """A backup on its way into databases: by whom it can be decrypted, and where programs may be."""

    stored: Stored
    keys: Keys = NO_KEYS
    bin_dir: Path | None = None

    @property
    def backup(self) -> Backup:
        """What is loaded."""
        return self.stored.backup

    def require_target(self, session: Session) -> dict[str, Any]:
        """Raise unless the server of *session* can take the backup; return its manifest.

        Raises WrongState for a server that is older than the one that was dumped, SuperuserSession, DamagedBackup for a
        manifest that is another's, ConfigurationError where a key is missing.
        """
        noted = self.stored.manifest
        if noted["postgres"]["server_num"] // 10000 > session.version // 10000:
            raise WrongState(
                f"backup {self.backup.backup} is of PostgreSQL {self.backup.server_version}, and the server is older",
                hint="restore it on a server of that major version or a newer one",
            )
        require_no_superuser(session, Run("server", "init", "--login", "NAME"))
        if self.backup.encrypted:
            self.keys.identities()
        return noted

    @contextmanager
    def fetched(self) -> Iterator[IO[bytes]]:
        """Lend the dump as a file; raises DamagedBackup before a byte of a changed one is used."""
        with ExitStack() as stack:
            try:
                stack.enter_context(self.stored.reading())
                file = stack.enter_context(self.stored.fetch())
                streams.require_whole(file, self.backup.checksum, self.backup.location)
            except DamagedBackup as error:
                error.hints = tuple(self._others())
                raise
            if self.backup.encrypted:
                streams.require_key(file, self.keys)
            yield file

    def _others(self) -> Iterator[Run]:
        """Yield what to type where this one is damaged."""
        known = [each for each in self.stored.store.all(self.backup.tenant) if each.key != self.stored.key]
        proved = [each.backup.backup for each in known if each.backup.verified == PROVED]
        if proved:
            yield Run("backup", "restore", proved[-1], "--as", "NEW", lead="the newest that was proved")
        yield Run("backup", "list", self.backup.tenant)

    def load(self, noted: Mapping[str, Any], file: IO[bytes], session: Session, database: str) -> None:
        """Restore a fetched dump into an empty database of posduif_admin, on the server of *session*.

        By pg_restore into the database, never by psql: a script could run commands on this machine. Owners and rights
        are left out, for they name roles of another server; so are publications and subscriptions, which take more
        rights than posduif has.
        """
        program = clients.restorer(session.version // 10000, noted["postgres"]["client"], self.bin_dir, session.server)
        argv: list[str | Path] = [
            program, "--no-owner", "--no-acl", "--no-publications", "--no-subscriptions", "--exit-on-error",
            f"--role={ADMIN_ROLE}", "--no-password", f"--dbname={database}",
        ]  # fmt: skip
        identities = self.keys.identities() if self.backup.encrypted else []
        with clients.running(argv, session.server, database, stdin=True) as process:
            assert process.stdin is not None
            streams.unpack(file, process.stdin, identities, noted["files"][0]["plain_sha256"], self.backup.location)

    def require_same(self, conn: Session, noted: Mapping[str, Any], layouts: Layouts | None = None) -> int:
        """Raise DamagedBackup unless a restored database holds what the manifest says; return how many rows it has."""
        found, rows = compare(conn, noted, layouts or Layouts())
        if found is not None:
            raise DamagedBackup(f"what was restored from backup {self.backup.backup} differs", why=found)
        return rows


def require_no_superuser(session: Session, hint: Hint) -> None:
    """Raise SuperuserSession, with a *hint* at what to do, where *session* is a superuser's."""
    if session.superuser:
        raise SuperuserSession(
            "a superuser's session restores no backup",
            why="code in a dump could use a superuser's rights",
            hint=hint,
        )


def compare(conn: Session, noted: Mapping[str, Any], layouts: Layouts) -> tuple[str | None, int]:
    """Return the first difference between a restored database and its manifest, None without one, and the rows."""
    with conn.transaction(read_only=True, statement_timeout=SUMMING):
        opened = layouts.open(conn)
        held = opened.sum_up(conn)
    large, wanted = held.large_objects, noted["database"]["large_objects"]
    found = sums.difference(noted["tables"], held.tables) or sums.shifted(noted["sequences"], held.sequences)
    if found is None and large != wanted:
        found = f"{large['count']} large objects, not {wanted['count']}, or they differ"
    if found is None and opened.layout.fingerprint != noted["schema"]["fingerprint"]:
        found = "the schema's fingerprint is not that of the manifest"
    return found, held.rows


def require_room(noted: Mapping[str, Any], folder: Path) -> None:
    """Raise OperationFailed unless a file system of this machine has room for a restored database."""
    wanted, free = noted["files"][0]["plain_bytes"] * GROWS, shutil.disk_usage(folder).free
    if free < wanted + (64 << 20):
        raise OperationFailed(
            f"there is no room to restore the backup in {folder}",
            why=f"{free >> 20} MiB are free, and it may take {wanted >> 20}",
            hint="set TMPDIR to a folder with more room, or name a server with --on",
        )
