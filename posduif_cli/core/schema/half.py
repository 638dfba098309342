"""A migration that is applied or taken back by half: how it goes on, and abandoning it."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from posduif_cli.core.folders import Folders
from posduif_cli.core.schema import files, history
from posduif_cli.core.schema.parse import Statement
from posduif_cli.db import queries, record
from posduif_cli.db.session import Session
from posduif_cli.errors import Conflict, MigrationNotFound, Run, WrongState
from posduif_cli.models.tenants import State
from posduif_cli.notation import counted


def require_none(tenant: str, half: Mapping[str, int], folders: Folders, *, down: bool) -> None:
    """Raise Conflict where a file of `half_done` is to be finished or abandoned before `up`, or *down*, may run."""
    for key, done in half.items():
        version, taken_back = key.removesuffix(history.DOWN), key.endswith(history.DOWN)
        path = folders.paths.get(version)
        if path is None or taken_back is not down:
            raise Conflict(
                f"migration {version} of {tenant} is {'taken back' if taken_back else 'applied'} by half",
                why=f"{counted(done, 'statement')} of it ran" + ("" if path else ", and its file is gone"),
                hint=[
                    f"fix what stopped {path}, and finish it"
                    if path
                    else "bring its file back and finish it, or abandon it",
                    *ways_out(tenant, key, folders),
                ],
            )


def ways_out(tenant: str, key: str, folders: Folders) -> list[Run]:
    """Return the commands that finish or abandon a half-applied file, by its key in `half_done`."""
    version = key.removesuffix(history.DOWN)
    abandoning = Run("migrate", "abandon", tenant, version, "--confirm", tenant)
    return [*([again(tenant, key)] if version in folders.paths else []), abandoning]


def again(tenant: str, key: str) -> Run:
    """Return the command that goes on with a file, by its key in `half_done`."""
    if key.endswith(history.DOWN):
        return Run("migrate", "down", tenant, "--steps", "1")
    return Run("migrate", "up", tenant)


def mark(statement: Statement) -> str:
    """Return what a statement's text is known by in the progress table."""
    return hashlib.sha256(statement.text.encode()).hexdigest()


@dataclass(frozen=True)
class Begun:
    """A statement of a half-applied file: its number, whether it was run to its end, and its text where known."""

    number: int
    done: bool
    text: str | None


def abandoning(conn: Session, version: str, *, folders: Folders) -> tuple[Begun, ...]:
    """Return the statements of a half-applied file that stay as they are when it is abandoned.

    Without any half-applied file there are none. Raises MigrationNotFound when the tenant has others, but not this.
    """
    half = history.half_done(conn)
    key = next((key for key in half if key.removesuffix(history.DOWN) == version), None)
    if key is None:
        if not half:
            return ()
        raise MigrationNotFound(
            f"migration {version} of {conn.database} is not half applied",
            why=f"what is: {', '.join(sorted({key.removesuffix(history.DOWN) for key in half}))}",
            hint=Run("migrate", "list", conn.database),
        )
    file = files.of(folders).sound.get(version)
    section = (file.down if key.endswith(history.DOWN) else file.up) if file else None
    texts = dict(enumerate(section.statements if section else (), 1))
    return tuple(
        Begun(number, done, texts[number].text if number in texts and mark(texts[number]) == noted else None)
        for number, done, noted in conn.tuples(queries.load("schema/history")["list_begun"], version=key)
    )


def abandon(conn: Session, version: str, *, folders: Folders, planned: Sequence[Begun]) -> bool:
    """Forget the progress of a half-applied file, running nothing of it; return whether there was any.

    The record's note of its failure goes with it. Raises Busy, WrongState via the record, and Conflict when what
    stays is not what was *planned*, and so confirmed.
    """
    conn.require_admin()
    with conn.lock(conn.database):
        current = record.read(conn)
        if current.state is not State.ACTIVE:
            raise WrongState(f"tenant {conn.database} is {current.state}", hint=Run("tenant", "show", conn.database))
        begun = abandoning(conn, version, folders=folders)
        if not begun:
            return False
        if begun != tuple(planned):
            raise Conflict(
                f"migration {version} of {conn.database} went on since it was asked whether to abandon it",
                hint=Run("migrate", "list", conn.database),
            )
        with conn.transaction(lock_timeout=folders.lock_timeout):
            for key in (version, version + history.DOWN):
                conn.execute(queries.load("schema/history")["delete_progress"], version=key)
            if current.failed is not None and current.failed.version == version:
                record.write(conn, replace(current, failed=None))
    return True
