"""Migrations of one tenant: apply what is pending, and take back what was applied."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import NamedTuple

from posduif_cli.core.fleet.run import who_is
from posduif_cli.core.folders import Folders, newest_bundled
from posduif_cli.core.schema import files, half, history, parse
from posduif_cli.core.schema.files import File
from posduif_cli.core.schema.runner import Hooks, Runner, patience, reached, wait_for
from posduif_cli.core.schema.stepwise import Stepwise
from posduif_cli.db import queries, record
from posduif_cli.db.pipeline import Answer
from posduif_cli.db.quoting import Query, compose, identifier, literal
from posduif_cli.db.session import Session
from posduif_cli.errors import (
    AccessDenied,
    Blocked,
    ChecksumDiffers,
    Conflict,
    Interrupted,
    QueryFailed,
    Refused,
    Run,
    UsageError,
    WrongState,
)
from posduif_cli.models.schema import Migration
from posduif_cli.models.tenants import State

COUNTING = timedelta(seconds=10)  # for each count of what would be lost
PEOPLE = ("users", "devices", "messages", "tokens")


class Applied(NamedTuple):
    """What was done to one tenant: its version before and after, and the versions applied or taken back."""

    before: str | None
    after: str | None
    versions: tuple[str, ...]


@dataclass(frozen=True)
class _Known:
    """What is known of a tenant under its lock; its version table is *complete* when it has all of our columns."""

    current: record.Record
    rows: dict[str, history.Row]
    half: dict[str, int]
    complete: bool


def _ask(conn: Session, folders: Folders, versions: str, *, recalled: bool) -> list[Answer]:
    """Take the tenant's lock for the life of the session, and ask about the tenant in the same round trip.

    Returns the answers to the named query *versions*, to `has_progress` and, unless it is *recalled*, to the question
    for the record; none where one cannot be answered. Raises Busy, and Blocked when the version table stays locked.
    """
    named = queries.load("schema/history")
    tries = patience(conn)
    limit = compose("SET LOCAL lock_timeout = {ms}", ms=literal(round(folders.lock_timeout.total_seconds() * 1000)))
    while True:
        pipeline = conn.pipeline()
        taken = conn.try_lock(pipeline, conn.database)
        pipeline.execute(limit)
        answers = [pipeline.execute(named[versions]), pipeline.execute(named["has_progress"])]
        if not recalled:
            answers.append(pipeline.execute(record.QUESTION, database=conn.database))
        try:
            pipeline.send()
        except Blocked as error:
            holders = conn.tuples(named["find_holders"])
            if not tries.again(needed=folders.lock_timeout):
                raise Blocked(
                    f"the version table of {conn.database} is locked",
                    why=wait_for("; ".join(who_is(*holder) for holder in holders), error),
                    hint=Run("migrate", "up", conn.database),
                ) from error
            continue
        except (QueryFailed, AccessDenied):
            answers = []
        if taken.value:
            return answers
        with conn.lock(conn.database, keep=True):  # waits for its holder; what was asked before is asked again
            pass


def _lock(conn: Session, folders: Folders, states: Sequence[State], hooks: Hooks, *, down: bool = False) -> _Known:
    """Take the tenant's lock for the life of the session, and return what is known of the tenant.

    Raises as `_ask`, WrongState, and Conflict for a half-applied file that has to be finished or abandoned first.
    """
    new = State.PROVISIONING in states
    answers = _ask(conn, folders, "has_table" if new else "list_checksums", recalled=hooks.recall is not None)
    if hooks.recall is not None:
        current = hooks.recall(conn)
    else:
        current = record.judge(conn.database, answers[2].rows) if answers else record.read(conn)
    if current.state not in states:
        raise WrongState(f"tenant {conn.database} is {current.state}", hint=Run("tenant", "show", conn.database))
    begun = history.half_done(conn) if not answers or answers[1].value else {}
    half.require_none(conn.database, begun, folders, down=down)
    if not answers or (new and answers[0].value):
        rows, complete = history.table(conn)
    else:
        listed = () if new else answers[0].rows
        rows = {str(version): history.Row(str(version), mark, None, None, None) for version, mark in listed}
        complete = not new
    return _Known(current, rows, begun, complete)


def up(
    conn: Session, *, folders: Folders, states: Sequence[State] = (State.ACTIVE,), hooks: Hooks | None = None
) -> Applied:
    """Apply a tenant's pending migrations, each with its version row and the record in one transaction.

    The tenant's lock is kept until the session ends. Raises Busy when another session works on the tenant, Blocked
    when locks stay held, WrongState via the record, ChecksumDiffers when an applied file changed,
    ConfigurationError, before anything is changed, when a pending file is faulty, MigrationFailed with file and line
    when SQL fails; then a transactional migration left nothing, and of another the statements that were done are
    kept and not run again.
    """
    hooks = hooks or Hooks()
    known = _lock(conn, folders, states, hooks)
    pending = _pending(conn.database, history.of(known.rows, known.half, folders), folders)
    if not pending and known.current != (right := reached(known.current, set(known.rows))):
        with conn.transaction(lock_timeout=folders.lock_timeout):
            record.write(conn, right)
    if pending and hooks.before is not None:
        hooks.before(conn)
    return _perform(conn, known, pending, folders, hooks, taking_back=False)


def _perform(
    conn: Session, known: _Known, chosen: Sequence[File], folders: Folders, hooks: Hooks, *, taking_back: bool
) -> Applied:
    """Apply files in their order, or take them back; raises Interrupted between two."""
    done, current, complete = set(known.rows), known.current, known.complete
    before = max(done, default=None)
    for number, file in enumerate(chosen):
        if number:  # with the session as it was before the last
            if conn.cancelled:
                raise Interrupted("interrupted")
            conn.restore()
        section = file.down if taking_back else file.up
        assert section is not None
        done = done - {file.version} if taking_back else done | {file.version}
        kind = Runner if section.transactional else Stepwise
        kind(conn, file, section, folders, hooks, current, done, complete, taking_back, first=not number).apply()
        complete, current = True, reached(current, done)
    conn.bundled = newest_bundled(done)
    return Applied(before, max(done, default=None), tuple(file.version for file in chosen))


def to_apply(conn: Session, *, folders: Folders) -> list[File]:
    """Return the files that `up` would apply, in their order; raises as it for changed, half and faulty files."""
    half.require_none(conn.database, history.half_done(conn), folders, down=False)
    return _pending(conn.database, history.read(conn, folders=folders), folders)


def _pending(tenant: str, migrations: Sequence[Migration], folders: Folders) -> list[File]:
    changed = next((migration.version for migration in migrations if migration.state == "changed"), None)
    if changed is not None:
        done = [migration.version for migration in migrations if migration.state != "pending"]
        before = max((version for version in done if version < changed), default="0")
        own = any(version > before and version in folders.bundled for version in done)
        raise ChecksumDiffers(
            f"{folders.paths[changed]} changed after it was applied to {tenant}",
            why="an applied migration is history: other tenants would get another schema from it",
            hint=[
                "restore the file and put the change into a new migration",
                "or apply it anew, which loses what it made; the next command takes it back",
                Run("migrate", "down", tenant, "--to", before, *["--bundled"] * own),
            ],
        )
    pending = [m.version for m in migrations if m.state in ("pending", "half")]
    if pending and folders.misnamed:  # which would have to be run, or come first, cannot be told
        raise next(iter(folders.misnamed.values()))
    return [files.of(folders).one(version) for version in pending]


def down(
    conn: Session,
    *,
    folders: Folders,
    to: str | None = None,
    steps: int | None = None,
    bundled: bool = False,
    planned: Sequence[str] | None = None,
    hooks: Hooks | None = None,
) -> Applied:
    """Take back a tenant's newest migrations, down to version *to* (which stays) or *steps* of them.

    Raises as `up` and, before anything is changed, as `to_take_back`; and Conflict when they are not those that
    were *planned*, and so confirmed.
    """
    hooks = hooks or Hooks()
    known = _lock(conn, folders, (State.ACTIVE,), hooks, down=True)
    chosen = to_take_back(conn, folders=folders, to=to, steps=steps, bundled=bundled)
    versions = tuple(file.version for file in chosen)
    if planned is not None and versions != tuple(planned):
        raise Conflict(
            f"{conn.database} changed since it was asked what to take back",
            why=f"that was {', '.join(planned)}; by now it would be {', '.join(versions) or 'nothing'}",
            hint=Run("migrate", "list", conn.database),
        )
    return _perform(conn, known, chosen, folders, hooks, taking_back=True)


def to_take_back(
    conn: Session, *, folders: Folders, to: str | None, steps: int | None, bundled: bool = False
) -> list[File]:
    """Return the files that `down` would take back, the newest first.

    Raises Conflict where one has no down section or no file, ConfigurationError where its file is faulty, Refused
    where one is posduif's own and *bundled* does not say so, UsageError for a version *to* that neither a file nor
    the tenant has; 0 means all of them.
    """
    done = sorted(history.applied(conn), reverse=True)
    if to is not None and to.strip("0") and to not in {*done, *folders.paths}:
        raise UsageError(
            f"there is no migration {to} to go back to",
            why="neither a file nor the tenant has it; versions are compared as they are written, zeros included",
            hint=Run("migrate", "list", conn.database),
        )
    chosen = [version for version in done if to is None or version > to][: steps if to is None else None]
    own = next((version for version in chosen if version in folders.bundled), None)
    if own is not None and not bundled:
        raise Refused(
            f"migration {own} of {conn.database} is posduif's own and is not taken back without --bundled",
            why="nothing was taken back; posduif's commands and the sync engine need its tables and columns",
            hint=["take back fewer, with --steps or --to", "or add --bundled, and lose the data in them"],
        )
    for version in chosen:
        if version in folders.paths and files.of(folders).one(version).down is not None:
            continue
        path = folders.paths.get(version)
        raise Conflict(
            f"migration {version} of {conn.database} cannot be taken back",
            why=f"{path} has no `-- migrate:down` section" if path else "its file is gone",
            hint=Run("migrate", "list", conn.database),
        )
    return [files.of(folders).one(version) for version in chosen]


def count_rows(conn: Session, files: Sequence[File], *, folders: Folders) -> dict[str, int | None]:
    """Count what taking *files* back would destroy, by a name for each kind of thing, None for what is not counted.

    Of bundled files those are users, devices, messages and tokens, of others the rows of the tables that a down
    section drops or truncates by name; a section that does more is not counted.
    """
    counts: dict[str, int | None] = {}
    if any(file.version in folders.bundled for file in files):
        counts |= _counted(conn, queries.load("schema/history")["count_people"]) or dict.fromkeys(PEOPLE)
    for file in files:
        if file.version in folders.bundled or file.down is None:
            continue
        for statement in file.down.statements:
            names = parse.emptied(statement)
            for name in names:
                table = identifier(name.schema or "public", name.name)
                found = _counted(conn, compose("SELECT count(*) FROM {table}", table=table)) or {}
                counts[f"rows of {'.'.join(filter(None, (name.schema, name.name)))}"] = found.get("count")
            if not names and not parse.keeps_rows(statement):
                counts[f"rows in {file.path.name}"] = None
    return counts


def _counted(conn: Session, question: Query) -> dict[str, int] | None:
    """Count, but for no longer than COUNTING; None for a table that is missing, locked, or too large for that."""
    try:
        with conn.transaction(lock_timeout=COUNTING, statement_timeout=COUNTING):
            return conn.dicts(question)[0]
    except (QueryFailed, Blocked, AccessDenied):
        return None
