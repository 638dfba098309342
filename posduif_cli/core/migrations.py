"""Migrations: read the files, tell what is applied, apply what is pending."""

import hashlib
import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import cached_property
from pathlib import Path

from posduif_cli.db import admin, queries, record
from posduif_cli.db.connect import Session
from posduif_cli.errors import (
    AccessDenied,
    Busy,
    ChecksumDiffers,
    ConfigurationError,
    MigrationFailed,
    QueryFailed,
    WrongState,
)
from posduif_cli.models import Failure, Migration, State

_FILE = re.compile(r"(\d+)_(\w+)\.sql")
_MARKER = re.compile(r"^--[ \t]*migrate:(up|down)\b(.*)$", re.MULTILINE)
_TOKEN = re.compile(
    r"""(?P<space> \s+ | --[^\n]*)
      | (?P<comment> /\*)
      | [eE]'(?: [^'\\] | \\. | '' )*' | '[^']*' | "[^"]*" | \$(?P<tag> (?:[^\W\d]\w*)? )\$ .*? \$(?P=tag)\$
      | (?P<word> [^\W\d][\w$]*)
      | .""",
    re.VERBOSE | re.DOTALL,
)
_COMMENT_EDGE = re.compile(r"/\*|\*/")
_TRANSACTION_CONTROL = ("begin", "start", "commit", "end", "abort", "rollback")


@dataclass(frozen=True)
class File:
    """One migration file; *up_line* is the line on which its up section starts, counted from 1."""

    version: str
    name: str
    path: Path
    up: str
    down: str | None
    up_line: int
    checksum: str


@dataclass(frozen=True)
class Folders:
    """The folders that migrations come from, and how patient to be with locks; the bundled folder is first."""

    further: tuple[Path, ...] = ()
    lock_timeout: timedelta = timedelta(seconds=2)
    statement_timeout: timedelta = timedelta(minutes=5)

    @cached_property
    def paths(self) -> Mapping[str, Path]:
        """Every migration file by its version, in the order of versions; only the folders are read.

        Raises ConfigurationError for a folder that is not there, a file name without a version, or a version
        that two files bear.
        """
        found: dict[str, Path] = {}
        for folder in (queries.bundled("migrations"), *self.further):
            if not folder.is_dir():
                raise ConfigurationError(
                    f"migrations.paths: {folder} is not a folder", hint="posduif config show --origin"
                )
            for path in sorted(folder.glob("*.sql")):
                match = _FILE.fullmatch(path.name)
                if match is None:
                    raise ConfigurationError(f"{path}: the name is not of the form NNNN_name.sql")
                if match[1] in found:
                    raise ConfigurationError(f"{path}: version {match[1]} is also {found[match[1]]}")
                found[match[1]] = path
        return dict(sorted(found.items()))

    @cached_property
    def files(self) -> tuple[File, ...]:
        """Every migration, read and checked; raises ConfigurationError as `read`."""
        return tuple(read(version, path) for version, path in self.paths.items())

    @property
    def latest(self) -> str | None:
        """The highest version, or None without migrations."""
        return max(self.paths, default=None)

    @cached_property
    def _prefixes(self) -> dict[str, int]:
        versions = list(self.paths)
        return {digest(versions[:count]): count for count in range(len(versions) + 1)}

    def pending(self, schema: str | None, applied: str | None) -> int:
        """Count the migrations that a record says are missing; what the record leaves open counts as missing.

        *schema* is the highest applied version, *applied* the digest of the applied set.
        """
        count = self._prefixes.get(applied or digest(()))
        if count is not None:
            return len(self.paths) - count
        later = sum(version > (schema or "") for version in self.paths)
        return later or int(schema is not None and schema in self.paths)


def digest(versions: Iterable[str]) -> str:
    """Condense a set of versions into 16 hexadecimal digits, so that a hole in it shows."""
    return hashlib.sha256("\n".join(sorted(versions)).encode()).hexdigest()[:16]


def read(version: str, path: Path) -> File:
    """Read one migration file in dbmate's format.

    Raises ConfigurationError, with the line, for text that is not UTF-8, missing or misplaced markers, an
    empty up section, `transaction:false`, SQL before the up section, and what cannot be part of the
    migration's own transaction: COMMIT and its kin, COPY from the client.
    """
    try:
        content = path.read_bytes()
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise ConfigurationError(f"{path}:{line}: not UTF-8 text") from None
    except OSError as error:
        raise ConfigurationError(f"{path}: cannot be read", why=error.strerror) from None
    markers = list(_MARKER.finditer(text))
    lines = [text.count("\n", 0, marker.start()) + 1 for marker in markers]
    if [marker[1] for marker in markers] not in (["up"], ["up", "down"]):
        kinds = [marker[1] for marker in markers]
        line = next((at for n, at in enumerate(lines) if kinds[: n + 1] != ["up", "down"][: n + 1]), 1)
        raise ConfigurationError(
            f"{path}:{line}: a migration has one `-- migrate:up` and after it at most one `-- migrate:down`"
        )
    for marker, line in zip(markers, lines, strict=True):
        if marker[2].strip():
            raise ConfigurationError(
                f"{path}:{line}: option `{marker[2].strip()}` is not supported",
                why="every migration runs in one transaction",
            )
    end = markers[1].start() if len(markers) > 1 else len(text)
    up = text[markers[0].end() : end]
    if not any(_statements(up)):
        raise ConfigurationError(f"{path}:{lines[0]}: the up section is empty")
    for offset, _, _ in _statements(text[: markers[0].start()]):
        raise ConfigurationError(f"{path}:{_line(text, offset)}: SQL stands before `-- migrate:up`")
    for section in ((markers[0].end(), end), *((marker.end(), len(text)) for marker in markers[1:])):
        for offset, _, words in _statements(text[slice(*section)]):
            if (reason := _unfit(words)) is not None:
                raise ConfigurationError(f"{path}:{_line(text, section[0] + offset)}: {reason}")
    match = _FILE.fullmatch(path.name)
    return File(
        version=version,
        name=match[2] if match else path.stem,
        path=path,
        up=up,
        down=text[markers[1].end() :] if len(markers) > 1 else None,
        up_line=lines[0],
        checksum=hashlib.sha256(content.replace(b"\r\n", b"\n")).hexdigest(),
    )


def _line(text: str, offset: int) -> int:
    return text.count("\n", 0, offset) + 1


def _unfit(words: Sequence[str]) -> str | None:
    """Say why a statement cannot be part of a migration, or None."""
    first = words[0] if words else ""
    if first in _TRANSACTION_CONTROL and "to" not in words[1:3]:  # ROLLBACK TO a savepoint is fine
        return f"{first.upper()} would end the migration's own transaction; leave it out"
    if words[:2] == ["prepare", "transaction"]:
        return "PREPARE TRANSACTION would end the migration's own transaction; leave it out"
    if first == "copy" and {"stdin", "stdout"} & {*words}:
        return "COPY cannot read from or write to the client here; use INSERT"
    return None


def _statements(text: str) -> Iterator[tuple[int, str, list[str]]]:
    """Split SQL as psql does: offset, text and lower-case words outside parentheses of each statement.

    A semicolon counts outside quotes, comments, parentheses and the body of a function in SQL's own form.
    """
    start, position, depth, bodies = -1, 0, 0, 0
    words: list[str] = []
    while position < len(text):
        token = _TOKEN.match(text, position)
        assert token is not None
        begun, position = position, token.end()
        if token["space"]:
            continue
        if token["comment"]:
            nested = 1
            while nested and (edge := _COMMENT_EDGE.search(text, position)):
                position = edge.end()
                nested += 1 if edge[0] == "/*" else -1
            position = len(text) if nested else position
            continue
        if token[0] == ";" and depth <= 0 and not bodies:
            if start >= 0:
                yield start, text[start:begun], words
            start, depth, words = -1, 0, []
            continue
        start = begun if start < 0 else start
        depth += (token[0] == "(") - (token[0] == ")")
        if token["word"] and depth <= 0:
            word = token[0].lower()
            words.append(word)
            if words[0] == "create" and {"function", "procedure"} & {*words[1:4]}:
                opens = (word == "atomic" and words[-2] == "begin") or (word == "case" and bodies > 0)
                bodies += opens - (word == "end" and bodies > 0)
    if start >= 0:
        yield start, text[start:], words


@dataclass(frozen=True)
class _Applied:
    version: str
    checksum: str | None
    applied_at: datetime | None
    duration_ms: int | None


def _applied(conn: Session) -> dict[str, _Applied]:
    named = queries.load("migrations")
    if not conn.value("SELECT to_regclass('public.schema_migrations') IS NOT NULL"):
        return {}
    if not conn.value(named["has_table"]):
        bare = conn.tuples("SELECT version::text FROM public.schema_migrations ORDER BY version")
        return {version: _Applied(version, None, None, None) for (version,) in bare}
    return {row.version: row for row in conn.rows(_Applied, named["list_applied"])}


def history(conn: Session, *, folders: Folders) -> tuple[Migration, ...]:
    """Return every migration of a tenant, applied or not, in the order of versions."""
    applied = _applied(conn)
    known = {file.version: file for file in folders.files}
    return tuple(_compare(version, known.get(version), applied.get(version)) for version in sorted({*known, *applied}))


def _compare(version: str, file: File | None, row: _Applied | None) -> Migration:
    if file is None:
        state = "missing"
    elif row is None:
        state = "pending"
    else:
        state = "changed" if row.checksum and row.checksum != file.checksum else "applied"
    return Migration(
        version=version,
        name=file.name if file else "",
        state=state,
        checksum=row.checksum if row else file.checksum if file else None,
        applied_at=row.applied_at if row else None,
        duration_ms=row.duration_ms if row else None,
    )


@dataclass(frozen=True)
class Applied:
    """What `up` did to one tenant: the version before and after, and the versions applied in between."""

    before: str | None
    after: str | None
    versions: tuple[str, ...]


def up(conn: Session, *, folders: Folders, states: Sequence[State] = (State.ACTIVE,)) -> Applied:
    """Apply a tenant's pending migrations, each in one transaction with its version row and the record.

    Raises Busy when another session works on the tenant, WrongState via the record, ChecksumDiffers when an
    applied file changed, MigrationFailed with file and line when SQL fails; then that migration left nothing.
    """
    with conn.lock(conn.database):
        current = record.read(conn)
        if current.state not in states:
            raise WrongState(f"tenant {conn.database} is {current.state}", hint=f"posduif tenant show {conn.database}")
        migrations = history(conn, folders=folders)
        _refuse_changed(conn.database, migrations, folders)
        done = {m.version for m in migrations if m.state in ("applied", "missing")}
        before = max(done, default=None)
        pending = [file for file in folders.files if file.version not in done]
        for file in pending:
            _apply(conn, file, done, folders)
            done.add(file.version)
        if not pending and (current.schema, current.applied, current.failed) != (before, digest(done), None):
            with conn.transaction():
                _note(conn, done)
        return Applied(before, max(done, default=None), tuple(file.version for file in pending))


def _refuse_changed(tenant: str, migrations: Sequence[Migration], folders: Folders) -> None:
    for migration in migrations:
        if migration.state == "changed":
            raise ChecksumDiffers(
                f"{folders.paths[migration.version]} changed after it was applied to {tenant}",
                why="an applied migration is history: other tenants would get another schema from it",
                hint=[
                    "restore the file and put the change into a new migration",
                    f"posduif migrate list {tenant}",
                ],
            )


def _apply(conn: Session, file: File, done: set[str], folders: Folders) -> None:
    named = queries.load("migrations")
    try:
        with (
            _blamed(conn, file),
            conn.transaction(lock_timeout=folders.lock_timeout, statement_timeout=folders.statement_timeout),
        ):
            # An earlier file of the same run may have changed both for the session.
            conn.execute("SET LOCAL ROLE posduif_admin")
            conn.execute("SET LOCAL search_path = public")
            if not conn.value(named["has_table"]):
                conn.script(named["create_table"])
            started = time.monotonic()
            _run(conn, file)
            conn.execute("SET LOCAL ROLE posduif_admin")
            conn.script(queries.bundled("grants.sql").read_text(encoding="utf-8"))
            admin.require_private_schema(conn, conn.database)
            conn.execute(
                named["add_applied"],
                version=file.version,
                checksum=file.checksum,
                duration_ms=round((time.monotonic() - started) * 1000),
            )
            _note(conn, {*done, file.version})
    except MigrationFailed as error:
        with conn.transaction():
            failure = Failure(file.version, error.sqlstate, file.path.name, error.line, datetime.now(UTC))
            record.write(conn, replace(record.read(conn), failed=failure))
        raise


def _run(conn: Session, file: File) -> None:
    """Run a file's statements one by one, so that an error's line is known even where PostgreSQL gives none."""
    for offset, statement, _ in _statements(file.up):
        with _blamed(conn, file, offset):
            conn.script(statement)


@contextmanager
def _blamed(conn: Session, file: File, offset: int | None = None) -> Iterator[None]:
    """Turn an error of a migration's SQL into MigrationFailed; *offset* is where in it the statement starts."""
    try:
        yield
    except (QueryFailed, AccessDenied, Busy) as error:
        # A lock that was not to be had may be free next time; too slow a statement will be too slow again.
        if isinstance(error, Busy) and error.why != "SQLSTATE 57014":
            raise
        denied = "42501" if isinstance(error, AccessDenied) else "57014"
        sqlstate, position = (error.sqlstate, error.position) if isinstance(error, QueryFailed) else (denied, None)
        line = None if offset is None else file.up_line - 1 + _line(file.up, offset + (position or 1) - 1)
        where = f"{file.path.name}:{line}" if line else file.path.name
        raise MigrationFailed(
            f"migration {where} failed in {conn.database}: {error.message.partition(': ')[2]}",
            why=f"{error.why or f'SQLSTATE {sqlstate}'}; nothing of this migration was kept",
            hint=[f"mend {file.path}", f"posduif migrate up {conn.database}"],
            sqlstate=sqlstate,
            file=file.path.name,
            line=line,
        ) from error


def _note(conn: Session, done: set[str]) -> None:
    current = record.read(conn)
    record.write(conn, replace(current, schema=max(done, default=None), applied=digest(done), failed=None))
