"""Take-overs: posduif_admin becomes the owner of a database and of what a tenant has; other roles keep their rights."""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from posduif_cli.core.schema.inventory import Thing
from posduif_cli.core.schema.strangers import BOOKKEEPING
from posduif_cli.core.tenants import times
from posduif_cli.db import queries
from posduif_cli.db.admin import ENGINE_GROUP, engine_role
from posduif_cli.db.quoting import identifier, quoted
from posduif_cli.db.session import ADMIN_ROLE, Session
from posduif_cli.errors import AccessDenied, Run
from posduif_cli.models.runs import Step

Subject = tuple[str, str]  # kind, as ALTER wants it, and qualified name


@dataclass(frozen=True)
class _Role:
    """A role with what it may do in the database and its schema public before the adoption.

    *powerful* is a superuser, a member of one, or a role of PostgreSQL's own: no login is advised to join it.
    """

    role: str
    super: bool
    powerful: bool
    may: bool
    database: list[str]
    schema: list[str]


def owners(conn: Session, owner: str, present: Sequence[Thing]) -> dict[Subject, str]:
    """Return who owns what, beside posduif_admin; *owner* is the database's."""
    found = {("database", conn.database): owner} if owner != ADMIN_ROLE else {}
    found |= {(thing.table or "", thing.bare or ""): thing.definition for thing in present if thing.kind == "owner"}
    tables = conn.tuples(queries.load("tenants/adopt")["list_bookkeeping"], admin=ADMIN_ROLE)
    return found | {("table", table): role for table, role in tables}


def plan(
    conn: Session,
    owned: Mapping[Subject, str],
    expected: Sequence[Thing],
    present: Sequence[Thing],
    own: Sequence[Thing],
    functions: Collection[str] = (),
) -> tuple[list[Step], list[Step], list[str]]:
    """Return (statements to run as the login, then as posduif_admin, what they change for other roles, in words).

    *owned* are the `owners`, *own* is what is left alone. posduif_admin takes what the migrations make, and
    *functions*. Raises AccessDenied, with what would help, when the login may not act for every owner.
    """
    name_of, owner = conn.database, owned.get(("database", conn.database), ADMIN_ROLE)
    roles, taken = _roles(conn, owned), _taken(conn, owned, expected, present, functions)
    tables = {f"table {thing.name}" for thing in expected if thing.kind == "table"}
    take = list(_take(owned, taken, present, own))
    _require_reach(conn, roles, take)
    kept = list(_keep_rights(name_of, owner, conn.login, roles, taken, present, tables))
    changes = [change for _, change in kept] + [
        f"function {function} goes on to run, for posduif, too; it belongs to {ADMIN_ROLE} now, what it calls does not"
        for function in functions
    ]
    return [step for step, _ in take], [step for step, _ in kept if step is not None], changes


def out_of_reach(
    conn: Session,
    owned: Mapping[Subject, str],
    expected: Sequence[Thing],
    present: Sequence[Thing],
    own: Sequence[Thing],
) -> list[Step]:
    """Return the statements of a take-over that this login may not run: it may not act for who owns the things."""
    roles, taken = _roles(conn, owned), _taken(conn, owned, expected, present)
    away = {role.role for role in roles if not role.may}
    return [step for step, role in _take(owned, taken, present, own) if role in away]


def remaining(conn: Session, role: str) -> Iterator[str]:
    """Say which other logins still reach a database after its adoption, and what its slots keep; with what to type.

    *role* is the engine's, by which posduif lets in and shuts out.
    """
    named, database = queries.load("tenants/adopt"), conn.database
    found = conn.tuples(named["list_logins"])
    zones = dict(conn.tuples(named["list_own_zones"], logins=[login for login, *_ in found]))
    for login, is_super, pids in found:
        who = f"login {login}{', a superuser,' * is_super} still reaches the database"
        who += f" and is connected (pid {', '.join(map(str, pids))})" if pids else ""
        if (zone := zones.get(login)) is not None and zone.lower() not in times.UTC:
            setting = f"ALTER ROLE {quoted(login)} IN DATABASE {quoted(database)} SET timezone = 'UTC';"
            goes_on = (
                f"login {login} has the time zone {zone} of its own, and new sessions of it go on writing times in it"
            )
            yield f"{goes_on}; sessions that are connected do, too. A superuser types: {setting}"
        if is_super:
            typed = f"a superuser types: ALTER ROLE {quoted(login)} NOLOGIN;"
            yield f"{who}; `suspend` does not shut it out. Once it is not needed, {typed}"
        else:
            revoking = f"REVOKE ALL ON DATABASE {quoted(database)} FROM {quoted(login)};"
            yield f"{who}. Once {role} works, a member of {ADMIN_ROLE} types: {revoking}"
    for slot, pid in conn.tuples(queries.load("tenants/tenants")["find_slots"], database=database):
        first = f"pid {pid} reads it; once that is stopped, " if pid else ""
        dropping = f"SELECT pg_drop_replication_slot('{slot}');"
        yield f"replication slot {slot} keeps WAL, and no engine will read it: {first}a superuser types: {dropping}"


def _roles(conn: Session, owned: Mapping[Subject, str]) -> list[_Role]:
    ours = [ADMIN_ROLE, ENGINE_GROUP, engine_role(conn.database)]
    return conn.rows(_Role, queries.load("tenants/adopt")["list_roles"], ours=ours, owners=list(owned.values()))


def _taken(
    conn: Session,
    owned: Mapping[Subject, str],
    expected: Sequence[Thing],
    present: Sequence[Thing],
    functions: Collection[str] = (),
) -> dict[Subject, str]:
    """Return what posduif_admin takes, with its owner."""
    wanted = {thing.name for thing in expected if thing.kind in ("table", "view", "sequence", "function", "type")}
    wanted |= {*functions, *_types(expected, present)}
    always = {("database", conn.database), ("schema", "public"), *(("table", table) for table in BOOKKEEPING)}
    return {
        subject: role
        for subject, role in owned.items()
        if subject in always or (subject[0] not in ("database", "schema") and subject[1] in wanted)
    }


def printing(database: str) -> Run:
    """Return the command that prints what a superuser types where a superuser owns a database, or things in it."""
    return Run("tenant", "adopt", database, "--print-sql", lead="a superuser runs what this prints, once")


def _types(expected: Sequence[Thing], present: Sequence[Thing]) -> set[str]:
    """Return other people's types that our tables' columns have: their owner could give them code later on."""
    tables = {thing.name for thing in expected if thing.kind == "table"}
    columns = [thing.definition for thing in present if thing.kind == "column" and thing.table in tables]
    types = [thing.name for thing in present if thing.kind == "type"]
    return {name for name in types if any(re.match(re.escape(name) + r"(?![\w\"$])", column) for column in columns)}


def _require_reach(conn: Session, roles: Sequence[_Role], take: Sequence[tuple[Step, str]]) -> None:
    """Raise AccessDenied unless the login may act for every owner; never advise to become a member of a superuser."""
    needed = {role for _, role in take}
    if away := {role.role: role.powerful for role in roles if role.role in needed and not role.may}:
        login = quoted(conn.login)
        raise AccessDenied(
            f"{conn.login} may not act for {', '.join(away)}, who own objects in {conn.database}",
            hint=[
                *(f"a superuser types: GRANT {quoted(role)} TO {login};" for role in away if not away[role]),
                *([printing(conn.database)] if any(away.values()) else ()),
                Run("tenant", "adopt", conn.database),
            ],
        )


def _take(
    owned: Mapping[Subject, str], taken: Mapping[Subject, str], present: Sequence[Thing], own: Sequence[Thing]
) -> Iterator[tuple[Step, str]]:
    """Yield what makes posduif_admin the owner, and lets it read the rest for backups; each with the role that may."""
    for subject in sorted(taken, key=lambda subject: (subject[0] not in ("database", "schema"), subject)):
        word, bare = subject
        bare = name(bare) if word == "database" else bare
        step = Step("own", " ".join(subject), f"ALTER {word.upper()} {bare} OWNER TO {ADMIN_ROLE}")
        yield step, taken[subject]
    granted = {thing.table: thing.definition for thing in present if thing.kind == "grant" and thing.bare == ADMIN_ROLE}
    for (word, bare), role in owned.items():
        if word == "schema" and (word, bare) not in taken and "USAGE" not in granted.get(f"schema {bare}", ""):
            yield Step("read", f"schema {bare}", f"GRANT USAGE ON SCHEMA {bare} TO {ADMIN_ROLE}"), role
    for thing in (thing for thing in own if thing.kind in ("table", "view", "sequence")):
        word = "SEQUENCE" if thing.kind == "sequence" else "TABLE"
        reader = _owner(thing, owned, taken)
        if reader is not None and "SELECT" not in granted.get(f"{word.lower()} {thing.name}", ""):
            sql = f"GRANT SELECT ON {word} {thing.name} TO {ADMIN_ROLE}"
            yield Step("read", f"{thing.kind} {thing.name}", sql), reader


def _owner(thing: Thing, owned: Mapping[Subject, str], taken: Mapping[Subject, str]) -> str | None:
    """Return the owner of a relation, or of the table that a sequence belongs to; None where it is posduif_admin."""
    for (word, bare), role in owned.items():
        relation = word not in ("database", "schema", "function", "procedure", "type")
        if relation and (bare == thing.name or f"OWNED BY {bare}." in thing.definition):
            return None if (word, bare) in taken else role
    return None


def _keep_rights(
    database: str,
    owner: str,
    login: str,
    roles: Sequence[_Role],
    taken: Mapping[Subject, str],
    present: Sequence[Thing],
    tables: set[str],
) -> Iterator[tuple[Step | None, str]]:
    """Yield what gives roles by name what they had by ownership or by PUBLIC: (step, what changes by it, in words).

    This *login* keeps its rights as a member of posduif_admin.
    TRIGGER and REFERENCES are not given: with them a role could run its own code in the session of every login that
    writes, and from now on that may be an administrator. Nor is CREATE on schema public: functions there could pass
    for PostgreSQL's own.
    """
    for role in (role for role in roles if not role.super and role.role != login):
        owned = role.role == owner
        rights = {
            ("database", database): ["ALL"] if owned else role.database,
            ("schema", "public"): ["USAGE"] if owned else [word for word in role.schema if word != "CREATE"],
        }
        if owned or "CREATE" in role.schema:
            sql = f"REVOKE CREATE ON SCHEMA public FROM {name(role.role)}"
            yield Step("revoke", f"{role.role} on schema public", sql), f"{role.role} lost CREATE on schema public"
        for (word, bare), before in taken.items():
            if before == role.role and word in ("table", "view"):
                rights["table", bare] = ["SELECT", "INSERT", "UPDATE", "DELETE", *(["TRUNCATE"] * (word == "table"))]
                yield None, f"{role.role} no longer owns {word} {bare}: it may read and write it, not alter it"
            elif before == role.role:
                yield None, f"{role.role} no longer owns {word} {bare}"
        for (word, bare), words in rights.items():
            if words:
                target = name(bare) if word == "database" else bare
                sql = f"GRANT {', '.join(words)} ON {word.upper()} {target} TO {name(role.role)}"
                change = f"{role.role} has {', '.join(words)} on {word} {bare} by name now"
                yield Step("grant", f"{role.role} on {word} {bare}", sql), change
    for thing in (thing for thing in present if thing.kind == "grant" and thing.table in tables):
        risky = ", ".join(word for word in ("TRIGGER", "REFERENCES") if word in thing.definition)
        if thing.bare == "public":
            yield None, f"PUBLIC lost {thing.definition} on {thing.table}"
        elif risky:
            sql = f"REVOKE {risky} ON {(thing.table or '').removeprefix('table ')} FROM {thing.bare} CASCADE"
            yield Step("revoke", thing.name, sql), f"{thing.bare} lost {risky} on {thing.table}"
    yield None, f"PUBLIC may no longer connect to {database} nor use its schema public"
    yield None, f"new sessions in {database} use UTC"


def name(name: str) -> str:
    """Quote an identifier as text."""
    return identifier(name).as_string(None)
