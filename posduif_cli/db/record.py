"""The record: what posduif notes about a tenant in the server's shared catalog.

It is the comment on the tenant's database, `posduif {JSON}`. Every role of the server can read it, so it holds
no secret and no error text; it names neither its tenant nor a role, so that a copy of it is valid on a copy of
the database. The comment on the engine's role is its twin: the intent, which outlives the database.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, LiteralString

from posduif_cli.db.pipeline import Pipeline
from posduif_cli.db.quoting import compose, identifier, literal
from posduif_cli.db.session import ADMIN_ROLE, Session
from posduif_cli.errors import OperationFailed, Run, WrongState
from posduif_cli.models.tenants import Engine, Failure, State

PREFIX = "posduif "
UNDEFINED_DATABASE = "3D000"
KNOWN = frozenset({"v", "state", "schema", "set", "url", "created", "failed", "note", "engine", "desk"})
MOST_CONNECTIONS = 99_999
_decode = json.JSONDecoder().raw_decode  # in place: `loads` takes twice the time for a text this short
_STATES = {state.value: state for state in State}  # State(...) is slow, and a fleet has many records


@dataclass(frozen=True)
class Record:
    """The parsed record.

    *applied* is the digest of the set of applied versions, *note* a comment that the database had before posduif took
    it in, *engine* what the tenant's engine was given, *desk* the id of the web user who creates tokens, *extra* what a
    newer posduif put there.
    """

    state: State
    schema: str | None = None
    applied: str | None = None
    url: str | None = None
    created: datetime | None = None
    failed: Failure | None = None
    note: str | None = None
    engine: Mapping[str, Any] = field(default_factory=dict)
    desk: str | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def port(self) -> int | None:
        """Where the tenant's engine was told to listen; None where no port was chosen."""
        return _number(self.engine.get("port"), 1, 65_535)

    @property
    def pool(self) -> int | None:
        """How many connections the tenant's engine was given; None where that is not noted."""
        return _number(self.engine.get("pool"), 1, MOST_CONNECTIONS)

    @property
    def given(self) -> Engine:
        """What the tenant's engine was given, as far as the record says it in a form that posduif writes."""
        redis = _text(self.engine.get("redis"))
        return Engine(
            pool=self.pool,
            web_pool=_number(self.engine.get("web_pool"), 0, MOST_CONNECTIONS),
            port=self.port,
            redis=redis if redis and re.fullmatch(r"[^\s:]+:[0-9]{1,5}|\[[0-9A-Fa-f:.]+\]:[0-9]{1,5}", redis) else None,
            redis_db=_number(self.engine.get("redis_db"), 0, MOST_CONNECTIONS),
        )

    def giving(self, given: Engine) -> "Record":
        """Return the record with what the engine is given; what is None stays as it was noted."""
        changed = {key: value for key, value in vars(given).items() if value is not None}
        return replace(self, engine={**self.engine, **changed})


@dataclass(frozen=True)
class Intent:
    """The comment on an engine's role; *nonce* marks the database that `create` is about to make.

    *port* is where the engine is to listen. It is chosen before there is a record, and known when `create` goes on.
    """

    tenant: str
    state: State
    nonce: int
    port: int | None = None


def instant(text: object) -> datetime | None:
    """Read an RFC 3339 time, or None for what is none.

    >>> instant("2026-01-02T03:04:05Z")
    datetime.datetime(2026, 1, 2, 3, 4, 5, tzinfo=datetime.timezone.utc)
    """
    try:
        moment = datetime.fromisoformat(str(text))
        return moment.astimezone(UTC) if moment.tzinfo else None
    except (ValueError, OverflowError):
        return None


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _number(value: object, least: int, most: int) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and least <= value <= most else None


def _payload(comment: str | None) -> dict[str, Any] | None:
    if comment is None or not comment.startswith(PREFIX + "{"):
        return None
    try:
        payload, end = _decode(comment, len(PREFIX))
    except (ValueError, RecursionError):
        return None
    return payload if isinstance(payload, dict) and not comment[end:].strip() else None


def _state(payload: Mapping[str, Any]) -> State | None:
    state = payload.get("state")
    return _STATES.get(state) if isinstance(state, str) else None


def parse(comment: str | None) -> Record | None:
    """Read a database's comment; None when it is not a record."""
    payload = _payload(comment)
    if payload is None or payload.get("v") != 1 or (state := _state(payload)) is None:
        return None
    failed = payload.get("failed")
    return Record(
        state=state,
        schema=_text(payload.get("schema")),
        applied=_text(payload.get("set")),
        url=_text(payload.get("url")),
        created=instant(payload.get("created")),
        failed=_failure(failed) if isinstance(failed, dict) else None,
        note=_text(payload.get("note")),
        engine=engine if isinstance(engine := payload.get("engine"), dict) else {},
        desk=_text(payload.get("desk")),
        extra={key: value for key, value in payload.items() if key not in KNOWN},
    )


def _failure(payload: Mapping[str, Any]) -> Failure | None:
    version, time, line = _text(payload.get("version")), instant(payload.get("time")), payload.get("line")
    if version is None or time is None:
        return None
    return Failure(
        version=version,
        sqlstate=_text(payload.get("sqlstate")),
        file=_text(payload.get("file")),
        line=line if isinstance(line, int) else None,
        time=time,
    )


def _rfc3339(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def dump(record: Record) -> str:
    """Write a record as the comment it is stored in: ASCII, without those of our own keys that are empty."""
    failed = record.failed and {
        "version": record.failed.version,
        "sqlstate": record.failed.sqlstate,
        "file": record.failed.file,
        "line": record.failed.line,
        "time": _rfc3339(record.failed.time),
    }
    payload = {
        "v": 1,
        "state": record.state.value,
        "schema": record.schema,
        "set": record.applied,
        "url": record.url,
        "created": _rfc3339(record.created) if record.created else None,
        "failed": failed,
        "note": record.note,
        "engine": dict(record.engine) or None,
        "desk": record.desk,
    }
    kept = {key: value for key, value in payload.items() if value is not None} | dict(record.extra)
    return PREFIX + json.dumps(kept, ensure_ascii=True, separators=(",", ":"))


def parse_intent(comment: str | None) -> Intent | None:
    """Read an engine role's comment; None when it is not ours."""
    payload = _payload(comment)
    if payload is None or (state := _state(payload)) is None:
        return None
    tenant, nonce, port = payload.get("tenant"), payload.get("nonce"), _number(payload.get("port"), 1, 65_535)
    return Intent(tenant, state, nonce, port) if isinstance(tenant, str) and isinstance(nonce, int) else None


def dump_intent(intent: Intent) -> str:
    """Write an intent as the comment on the engine's role."""
    payload = {"v": 1, "tenant": intent.tenant, "state": intent.state.value, "nonce": intent.nonce}
    payload |= {"port": intent.port} if intent.port is not None else {}
    return PREFIX + json.dumps(payload, ensure_ascii=True, separators=(",", ":"))


def read(session: Session) -> Record:
    """Read the record of the database that *session* is in.

    Raises WrongState when the database is not ours: its owner is not `posduif_admin`, or it has no record.
    """
    return judge(session.database, session.tuples(QUESTION, database=session.database))


# Any session of the server may ask it.
# 1262 is pg_database: shobj_description() would look it up by name, in catalogs a new session has not read.
QUESTION: LiteralString = """
    SELECT pg_get_userbyid(d.datdba)::text, (SELECT c.description FROM pg_shdescription c
                                             WHERE c.objoid = d.oid AND c.classoid = 1262)
    FROM pg_database d WHERE d.datname = %(database)s"""


def judge(database: str, found: Sequence[tuple[str | None, ...]]) -> Record:
    """Return the record in the answer to QUESTION; raises as `read`."""
    record = parse(found[0][1]) if found and found[0][0] == ADMIN_ROLE else None
    if record is None:
        raise WrongState(
            f"database {database} is not a tenant any more",
            why=f"it has no record, or {ADMIN_ROLE} does not own it",
            hint=Run("tenant", "list"),
        )
    return record


def write(session: Session, record: Record) -> None:
    """Store the record of the database that *session* is in, as part of the transaction under way.

    The caller holds the tenant's lock and has read the record since.
    """
    put(session, session.database, record)


def put(session: Session, database: str, record: Record) -> None:
    """Store the record of *database* from any session of the same server; else as `write`."""
    storing(pipeline := session.pipeline(), database, record)
    pipeline.send()
    require_stored(pipeline, database)


def storing(pipeline: Pipeline, database: str, record: Record) -> None:
    """Queue what stores the record of *database* in a transaction; `require_stored` says whether it did."""
    if database != pipeline.session.database:  # a session's own cannot go
        pipeline.execute("SET LOCAL client_min_messages = warning")
    pipeline.execute(
        compose(
            "COMMENT ON DATABASE {database} IS {comment}",
            database=identifier(database),
            comment=literal(dump(record)),
        )
    )


def require_stored(pipeline: Pipeline, database: str) -> None:
    """Raise OperationFailed unless a pipeline that was sent stored the record of *database*.

    A comment on a database that is gone is a mere warning to PostgreSQL.
    """
    if UNDEFINED_DATABASE in pipeline.warnings:
        raise OperationFailed(
            f"the record of {database} could not be written",
            why="the database was dropped or renamed at the same moment",
            hint=Run("tenant", "list"),
        )


def put_intent(session: Session | Pipeline, role: str, intent: Intent) -> None:
    """Store the intent in the comment on the engine's role, as part of the transaction under way."""
    session.execute(
        compose("COMMENT ON ROLE {role} IS {comment}", role=identifier(role), comment=literal(dump_intent(intent)))
    )
