"""What is applied to a tenant, by its own version table, and whether its record says the same."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from posduif_cli.core.folders import Folders, digest, hash_in
from posduif_cli.core.schema import files
from posduif_cli.db import queries, record
from posduif_cli.db.session import Session
from posduif_cli.errors import QueryFailed
from posduif_cli.models.schema import Migration
from posduif_cli.models.tenants import State, Tenant
from posduif_cli.models.values import Instant

NO_SUCH_TABLE_OR_COLUMN = ("42P01", "42703")
PROGRESS = "posduif_migration_progress"  # the table of files that were begun
DOWN = ":down"  # behind the version of a file that is being taken back, in the progress table


@dataclass(frozen=True)
class Row:
    """A row of the version table; what only posduif notes is None in a row of another tool."""

    version: str
    checksum: str | None
    applied_at: Instant | None
    duration_ms: int | None
    applied_by: str | None


def applied(conn: Session) -> dict[str, Row]:
    """Return the rows of the tenant's version table; none where there is no table, bare ones where dbmate made it."""
    return table(conn)[0]


def table(conn: Session) -> tuple[dict[str, Row], bool]:
    """Return the rows of the version table, and whether it has all of our columns."""
    named = queries.load("schema/history")
    try:
        with conn.savepoint():
            return {row.version: row for row in conn.rows(Row, named["list_applied"])}, True
    except QueryFailed as error:
        if error.sqlstate not in NO_SUCH_TABLE_OR_COLUMN:
            raise
    if not conn.value(named["has_table"]):
        return {}, False
    bare = conn.tuples(named["list_bare"])
    return {version: Row(version, None, None, None, None) for (version,) in bare}, False


def half_done(conn: Session) -> dict[str, int]:
    """Return the files without a transaction that were begun and are not through, with how many statements are done.

    One that is being taken back has `:down` behind its version.
    """
    if not conn.value(queries.load("schema/history")["has_progress"]):
        return {}
    return dict(conn.tuples(queries.load("schema/history")["list_half_done"]))


def read(conn: Session, *, folders: Folders) -> tuple[Migration, ...]:
    """Return every migration of a tenant, applied or not, in the order of versions."""
    return of(applied(conn), half_done(conn), folders)


def of(rows: Mapping[str, Row], half: Mapping[str, int], folders: Folders) -> tuple[Migration, ...]:
    """Return every migration by the *rows* of the version table and the files that are *half* done."""
    begun = {key.removesuffix(DOWN) for key in half}
    return tuple(
        _compare(version, rows.get(version), folders, half=version in begun)
        for version in sorted({*folders.paths, *rows, *begun})
    )


def _compare(version: str, row: Row | None, folders: Folders, *, half: bool) -> Migration:
    """Compare a file with the tenant's row; a faulty file has no checksum, so it differs from what was applied."""
    path, file = folders.paths.get(version), files.of(folders).sound.get(version)
    if half:
        state = "half"
    elif path is None:
        state = "missing"
    elif row is None:
        state = "pending"
    else:
        state = "changed" if file and row.checksum and row.checksum != file.checksum else "applied"
    return Migration(
        version=version,
        name=path.stem.partition("_")[2] if path else "",
        state=state,
        checksum=row.checksum if row else file.checksum if file else None,
        applied_at=row.applied_at if row else None,
        duration_ms=row.duration_ms if row else None,
    )


def behind(tenant: Tenant) -> bool:
    """Whether a run over all tenants must look at this one: migrations are pending, or it needs a word."""
    return tenant.state is not State.ACTIVE or tenant.pending > 0 or tenant.error is not None


def look(conn: Session) -> tuple[record.Record, frozenset[str]]:
    """Return a tenant's record and the versions in its own table, from one snapshot.

    A migration that ends between two reads would pass for a difference. Raises WrongState where there is no record.
    """
    with conn.transaction(read_only=True, prelude=["SET TRANSACTION ISOLATION LEVEL REPEATABLE READ"]):
        return record.read(conn), frozenset(applied(conn))


def disagreement(noted: record.Record, done: Collection[str]) -> str | None:
    """Say how a record differs from the versions that are *done*; None where it does not."""
    found = max(done, default=None)
    if noted.schema != found:
        return f"the record says {noted.schema or 'none'}, the tenant {found or 'none'}"
    if hash_in(noted.applied) != hash_in(digest(done)):
        return f"both say {found}, but the sets of applied migrations differ"
    return None


def problem(conn: Session, folders: Folders) -> str | None:
    """Say what is wrong with a tenant that was just migrated, or None; the gate between waves."""
    if (wrong_record := disagreement(*look(conn))) is not None:
        return wrong_record
    wrong = [m for m in read(conn, folders=folders) if m.state not in ("applied", "missing")]
    return f"migration {wrong[0].version} is {wrong[0].state}" if wrong else None
