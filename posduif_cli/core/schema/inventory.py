"""Fingerprints: what a tenant's schema is, object by object, whatever server, dump or order it came from.

Left out or evened out, because they differ between PostgreSQL 15 and 18, before and after a pg_dump, or between
orders of migrations, and mean nothing: OIDs, the order of columns, NOT NULL as a constraint of its own, the
privilege MAINTAIN, what an owner may do, text casts and the parentheses around them.
"""

import hashlib
import json
import re
import secrets
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import timedelta
from functools import cache

from posduif_cli.core.fleet.fleet import Fleet
from posduif_cli.core.schema import files, grants
from posduif_cli.core.schema.parse import Section
from posduif_cli.db import admin, connect, queries
from posduif_cli.db.quoting import compose, identifier
from posduif_cli.db.record import Intent
from posduif_cli.db.session import ADMIN_ROLE, Session
from posduif_cli.errors import PosduifError
from posduif_cli.models.servers import Server
from posduif_cli.models.tenants import State

SCRATCH = "posduif_reference_"
_TEXT_CAST = re.compile(r"::(?:text|character varying(?:\(\d+\))?)(?:\[\])?(?!\w)")
_WRAPPED = re.compile(
    r"(?<![\w\"])(?<!KEY )(?<!UNIQUE )(?<!btree )\((\x00\d+\x00|\(?[\w.\"]+\)?|ARRAY\[[^()\[\]]*\])\)"
)
_LITERAL = re.compile(r"'(?:[^']|'')*'")
_EXPRESSIONS = {"column", "constraint", "index", "view", "policy", "type", "rule", "trigger"}


@dataclass(frozen=True, order=True)
class Thing:
    """One object of a database.

    *name* is qualified and quoted where SQL wants it (`public.users.username`), *definition* is evened out for
    comparing, *ddl* is the statement that makes the thing, or None when no single one does. *table* and *bare* are the
    two parts of the name of what is on a table, *bare* None where it has no name of its own; of a grant its object and
    its role; of an owner the object's kind and name.
    """

    kind: str
    name: str
    definition: str
    ddl: str | None = field(default=None, compare=False, repr=False)
    table: str | None = field(default=None, compare=False, repr=False)
    bare: str | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True)
class Difference:
    """One object that is not as expected; *expected* or *found* is None where it is absent."""

    kind: str
    name: str
    expected: str | None
    found: str | None

    def __str__(self) -> str:
        """Say in one line what differs."""
        if self.found is None:
            return f"{self.kind} {self.name} is missing"
        if self.expected is None:
            return f"{self.kind} {self.name} is not expected"
        return f"{self.kind} {self.name} is {_brief(self.found)}, not {_brief(self.expected)}"


def _brief(definition: str) -> str:
    line = " ".join(definition.split())
    return (line if len(line) <= 200 else line[:200] + " ...") or "plain"


def inventory(conn: Session) -> tuple[Thing, ...]:
    """Return every object of the database that *conn* is in, sorted; a few milliseconds, and nothing is changed."""
    # Rolled back, because a search_path set in a savepoint would outlive it; pg_catalog alone keeps other
    # people's operators out of the query and makes PostgreSQL qualify every name it prints.
    with conn.transaction(rollback=True):
        conn.execute("SELECT set_config('search_path', 'pg_catalog', true), set_config('jit', 'off', true)")
        found = conn.rows(Thing, queries.load("schema/inventory")["list_things"], owner=ADMIN_ROLE)
    return tuple(sorted(replace(thing, definition=_even(thing.kind, thing.definition)) for thing in found))


@cache
def _even(kind: str, text: str) -> str:
    """Take out of a definition what PostgreSQL prints differently without a difference in meaning."""
    if kind == "function":
        return flat(text)
    if kind not in _EXPRESSIONS:
        return text
    text, literals = _hide(text)
    text = _TEXT_CAST.sub("", text)
    while (bare := _WRAPPED.sub(r"\1", text)) != text:
        text = bare
    # What names an array needs its parentheses after ANY and ALL only as PostgreSQL prints them.
    text = re.sub(r"\b(ANY|ALL) \((ARRAY\[[^()\[\]]*\])\)", r"\1 \2", text)
    return _show(" ".join(text.split()), literals)


def flat(source: str) -> str:
    """Put a function on one line, its literals as they are; its lines stay where they could hold a comment."""
    if "--" in source or "/*" in source:
        return "\n".join(line.strip() for line in source.splitlines() if line.strip())
    text, literals = _hide(source)
    return _show(" ".join(text.split()), literals)


def _hide(text: str) -> tuple[str, list[str]]:
    literals = _LITERAL.findall(text)
    numbers = iter(range(len(literals)))
    return _LITERAL.sub(lambda _: f"\0{next(numbers)}\0", text), literals


def _show(text: str, literals: list[str]) -> str:
    return re.sub(r"\0(\d+)\0", lambda match: literals[int(match[1])], text)


def digest(things: Iterable[Thing]) -> str:
    """Condense a schema into 16 hexadecimal digits."""
    lines = "\n".join(repr((thing.kind, thing.name, thing.definition)) for thing in sorted(things))
    return hashlib.sha256(lines.encode()).hexdigest()[:16]


def compare(expected: Iterable[Thing], found: Iterable[Thing]) -> tuple[Difference, ...]:
    """Return what differs, by kind and name: missing, changed, or there without being expected."""
    before = {(thing.kind, thing.name): thing.definition for thing in expected}
    after = {(thing.kind, thing.name): thing.definition for thing in found}
    return tuple(
        Difference(*key, before.get(key), after.get(key))
        for key in sorted({*before, *after})
        if before.get(key) != after.get(key)
    )


@cache
def snapshot() -> tuple[Thing, ...]:
    """Return what the bundled migrations make, without owners and grants, on any PostgreSQL; no server is asked."""
    rows = json.loads(queries.bundled("schema.json").read_text(encoding="utf-8"))
    return tuple(Thing(**row) for row in rows)


def reference(fleet: Fleet, server: Server, versions: Collection[str] | None = None) -> tuple[Thing, ...]:
    """Return what the migrations, or those of some *versions*, make on this server, by making it in a scratch database.

    Raises AccessDenied where posduif's roles are missing, ServerError, or QueryFailed when a migration fails there.
    The scratch database is dropped afterwards, and so are those of runs that were killed.
    """
    with fleet.maintenance(server) as session:
        session.require_admin()
        _sweep(session)
        with scratch(session) as name, connect.connect(server, name, command=fleet.command, path="public") as conn:
            for file in files.of(fleet.folders).all:
                if versions is None or file.version in versions:
                    _run(conn, file.up)
            return inventory(conn)


def _run(conn: Session, section: Section) -> None:
    """Run a section as on a tenant, without a lock, a version row and a record: whole, or statement by statement."""
    conn.restore()
    texts = [statement.text for statement in section.statements]
    for text in texts if not section.transactional else ():
        conn.script(text)
    pipeline = conn.pipeline()
    with conn.transaction(first=pipeline):
        pipeline.script(*(texts if section.transactional else ()))
        pipeline.send()
        grants.run(conn)


@contextmanager
def scratch(session: Session) -> Iterator[str]:
    """Make an empty database, closed to PUBLIC, for as long as the block runs."""
    name = f"{SCRATCH}{secrets.token_hex(6)}"
    quoted = identifier(name)
    with session.lock(name):
        try:
            admin.create_database(session, Intent(name, State.PROVISIONING, admin.new_nonce()))
            with session.transaction():
                session.execute(compose("REVOKE ALL ON DATABASE {name} FROM PUBLIC", name=quoted))
                session.execute(
                    compose("ALTER DATABASE {name} ALLOW_CONNECTIONS true CONNECTION LIMIT -1", name=quoted)
                )
            yield name
        finally:
            _drop(session, name)


def _drop(session: Session, name: str) -> None:
    # Without FORCE, which must not end a superuser's session: our own may take a moment to be gone, and DROP waits.
    session.execute(compose("DROP DATABASE IF EXISTS {name}", name=identifier(name)))


def _sweep(session: Session) -> None:
    """Drop the scratch databases of runs that were killed: those whose lock no session holds."""
    found = session.tuples(queries.load("schema/inventory")["list_scratch"], prefix=SCRATCH, owner=ADMIN_ROLE)
    for (name,) in found:
        # Its run goes on, another command swept it at the same moment, or a session looks into it.
        with suppress(PosduifError), session.lock(name, wait=timedelta(0)):
            _drop(session, name)
