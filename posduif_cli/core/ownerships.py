"""Ownerships: hand a database and what a tenant consists of to posduif_admin, and leave the others their rights."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from posduif_cli.core.fingerprints import Thing
from posduif_cli.core.judgements import ours
from posduif_cli.db import queries
from posduif_cli.db.admin import ENGINE_GROUP, engine_role
from posduif_cli.db.connect import ADMIN_ROLE, Session, identifier, quoted
from posduif_cli.errors import AccessDenied
from posduif_cli.models import Step

BOOKKEEPING = ("table public.schema_migrations", "table public.posduif_migration_progress")


@dataclass(frozen=True)
class Takeover:
    """Statements to run as the login, then as posduif_admin, and in words what they change for others."""

    take: tuple[Step, ...]
    keep: tuple[Step, ...]
    changes: tuple[str, ...]


@dataclass(frozen=True)
class _Role:
    """A role with what it may do in the database and its schema public before the adoption."""

    role: str
    super: bool
    may: bool
    database: list[str]
    schema: list[str]


def plan(
    conn: Session, owner: str, expected: Sequence[Thing], present: Sequence[Thing], own: Sequence[Thing]
) -> Takeover:
    """Work out who loses what and is given what; *owner* is the database's, *own* what is left alone.

    Raises AccessDenied when the login may not act for everyone who owns something there.
    """
    named = queries.load("adoptions")
    database = f"database {conn.database}"
    owners = {database: owner} if owner != ADMIN_ROLE else {}
    owners |= {thing.name: thing.definition for thing in present if thing.kind == "owner"}
    owners |= {f"table {table}": role for table, role in conn.tuples(named["list_bookkeeping"], admin=ADMIN_ROLE)}
    roles = conn.rows(
        _Role,
        named["list_roles"],
        ours=[ADMIN_ROLE, ENGINE_GROUP, engine_role(conn.database)],
        owners=list(owners.values()),
    )
    if unreachable := [role.role for role in roles if role.role in owners.values() and not role.may]:
        raise AccessDenied(
            f"{conn.login} may not act for {', '.join(unreachable)}, who own objects in {conn.database}",
            hint=[f"a superuser types: GRANT {quoted(role)} TO {quoted(conn.login)};" for role in unreachable],
        )
    wanted = ours(expected, present)
    always = (database, "schema public", *BOOKKEEPING)
    taken = {
        subject: role
        for subject, role in owners.items()
        if subject in always or (not subject.startswith(("database", "schema")) and _split(subject)[1] in wanted)
    }
    tables = {f"table {thing.name}" for thing in expected if thing.kind == "table"}
    keep, changes = _keep_rights(conn.database, owner, roles, taken, present, tables)
    changes += [
        f"trigger {thing.name} goes on to run, also for posduif; its function belongs to {ADMIN_ROLE} now"
        for thing in own
        if thing.kind == "trigger" and thing.name.rpartition(".")[0] in wanted
    ]
    return Takeover(tuple(_take(owners, taken, own)), tuple(keep), tuple(changes))


def _take(owners: dict[str, str], taken: dict[str, str], own: Sequence[Thing]) -> Iterator[Step]:
    """Give database and objects to posduif_admin, and let it read the rest, for backups."""
    for subject in sorted(taken, key=lambda subject: (not subject.startswith(("database", "schema")), subject)):
        word, bare = _split(subject)
        bare = name(bare) if word == "database" else bare
        yield Step("own", subject, f"ALTER {word.upper()} {bare} OWNER TO {ADMIN_ROLE}")
    for subject in owners:
        if subject.startswith("schema ") and subject not in taken:
            yield Step("read", subject, f"GRANT USAGE ON {subject} TO {ADMIN_ROLE}")
    for thing in (thing for thing in own if thing.kind in ("table", "view", "sequence")):
        word = "SEQUENCE" if thing.kind == "sequence" else "TABLE"
        yield Step("read", f"{thing.kind} {thing.name}", f"GRANT SELECT ON {word} {thing.name} TO {ADMIN_ROLE}")


def _keep_rights(
    database: str, owner: str, roles: Sequence[_Role], taken: dict[str, str], present: Sequence[Thing], tables: set[str]
) -> tuple[list[Step], list[str]]:
    """Give by name what roles had by ownership or by way of PUBLIC; say what each gains and loses.

    TRIGGER and REFERENCES are not given: by them a role would have its own code run by whoever writes, which
    from now on is an administrator too. Nor is CREATE on schema public: functions there could pass for PostgreSQL's.
    """
    steps: list[Step] = []
    changes: list[str] = []
    for role in (role for role in roles if not role.super):
        owned = role.role == owner
        rights = {
            f"database {database}": ["ALL"] if owned else role.database,
            "schema public": ["USAGE"] if owned else [word for word in role.schema if word != "CREATE"],
        }
        if owned or "CREATE" in role.schema:
            sql = f"REVOKE CREATE ON SCHEMA public FROM {name(role.role)}"
            steps.append(Step("revoke", f"{role.role} on schema public", sql))
            changes.append(f"{role.role} lost CREATE on schema public")
        for subject, before in taken.items():
            word, bare = _split(subject)
            if before == role.role and word in ("table", "view"):
                rights[f"table {bare}"] = ["SELECT", "INSERT", "UPDATE", "DELETE", "TRUNCATE"][
                    : 5 if word == "table" else 4
                ]
                changes.append(f"{role.role} no longer owns {subject}: it may read and write it, not alter it")
            elif before == role.role:
                changes.append(f"{role.role} no longer owns {subject}")
        for target, words in rights.items():
            if words:
                kind, bare = _split(target)
                bare = name(bare) if kind == "database" else bare
                sql = f"GRANT {', '.join(words)} ON {kind.upper()} {bare} TO {name(role.role)}"
                steps.append(Step("grant", f"{role.role} on {target}", sql))
                changes.append(f"{role.role} has {', '.join(words)} on {target} by name now")
    for thing in present:
        role_name, _, subject = thing.name.partition(" on ")
        if thing.kind != "grant" or subject not in tables:
            continue
        risky = [word for word in ("TRIGGER", "REFERENCES") if word in thing.definition]
        if role_name == "public":
            changes.append(f"PUBLIC lost {thing.definition} on {subject}")
        elif risky:
            listed = ", ".join(risky)
            steps.append(Step("revoke", thing.name, f"REVOKE {listed} ON {subject[6:]} FROM {role_name} CASCADE"))
            changes.append(f"{role_name} lost {listed} on {subject}")
    return steps, [
        *changes,
        f"PUBLIC may no longer connect to {database} nor use its schema public",
        f"new sessions in {database} use UTC",
    ]


def _split(subject: str) -> tuple[str, str]:
    """Split what an owner owns into its kind, as ALTER wants it, and its name."""
    found = re.fullmatch(r"(materialized view|foreign table|\w+) (.*)", subject, re.DOTALL)
    assert found is not None
    return found[1], found[2]


def name(name: str) -> str:
    """Quote an identifier as text."""
    return identifier(name).as_string(None)
