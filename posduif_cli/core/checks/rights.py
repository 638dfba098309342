"""The checks of a tenant's database, rights and engine role: what posduif made of them, and what repairs that."""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cache, partial
from types import SimpleNamespace

from posduif_cli.core.checks.check import Check, Repair, Verdict, check
from posduif_cli.core.checks.facts import Inspection, TenantFacts
from posduif_cli.core.fleet.fleet import Session
from posduif_cli.core.folders import Folders
from posduif_cli.core.schema import grants, history, inventory, strangers
from posduif_cli.core.schema.strangers import Stranger
from posduif_cli.db import admin, queries, record
from posduif_cli.db.quoting import compose, identifier, quoted
from posduif_cli.db.session import ADMIN_ROLE
from posduif_cli.errors import Run
from posduif_cli.models.checks import Level
from posduif_cli.models.tenants import State
from posduif_cli.notation import counted, listed

SHOWN = 5
EXECUTE = "EXECUTE command;"  # as grants.sql writes it
NOTE = (
    "PERFORM set_config('posduif.grants', concat_ws(E'\\n', current_setting('posduif.grants', true), command), true);"
)
OURS = frozenset({"users", "messages", "sync_metadata", "enrollment_tokens", "schema_migrations"})

verified = partial(check, "tenant", ("tenant verify",))


def outside(session: Session, tenants: Sequence[str]) -> dict[str, SimpleNamespace]:
    """Return what the shared catalogs say of tenants, by name; *session* may be in any database of their server."""
    found = session.rows(SimpleNamespace, queries.load("checks/rights")["describe_tenants"], tenants=[*tenants])
    return {each.tenant: each for each in found}


def inspect(conn: Session, folders: Folders) -> Inspection:
    """Return all that `tenant verify` judges of the tenant that *conn* is in; nothing is written."""
    noted, done = history.look(conn)
    name, named = conn.database, queries.load("checks/rights")
    return Inspection(
        subject=name, folders=folders, record=noted, applied=done, half=history.half_done(conn), server=conn.server,
        outside=outside(conn, [name])[name],
        **conn.dicts(named["find_creators"], role=admin.engine_role(name))[0],
        readers=conn.tuples(named["find_readers"]),
        foreign=conn.tuples(named["find_foreign_objects"]),
        missing=missing_grants(conn),
        secured=conn.tuples(named["find_row_security"]),
        strangers=_strangers(conn, folders, done),
    )  # fmt: skip


def missing_grants(conn: Session) -> list[str]:
    """Return the commands that grants.sql would run; an administrator's session is asked.

    Its block asks the catalogs what is to be done and does it; here it notes it in a setting of the transaction.
    """
    text = grants.text()
    block = text[text.index("DO $$") :].replace(EXECUTE, NOTE)
    # One snapshot: what a migration grants meanwhile is no difference.
    with conn.transaction(read_only=True, prelude=["SET TRANSACTION ISOLATION LEVEL REPEATABLE READ"]):
        conn.script(f"SET LOCAL ROLE posduif_admin; {block}")
        return sorted(command for (command,) in conn.tuples(queries.load("checks/rights")["list_missing_grants"]))


def _strangers(conn: Session, folders: Folders, done: frozenset[str]) -> Sequence[Stranger]:
    """Return what on the tenant's tables may run code that no migration made.

    What posduif_admin owns and a migration of further folders mentions is known. A tenant that this machine has not all
    files of, or that lacks some, is compared with nothing but its owners.
    """
    with conn.transaction(read_only=True):
        expected = inventory.snapshot()
        things = strangers.same(expected, inventory.inventory(conn))
        whole = done == set(folders.paths)
        texts = "\n".join(path.read_text("utf-8", "replace") for files in folders.listing[1:] for path in files)

        def known(name: str, owner: str) -> bool:
            return owner == ADMIN_ROLE and (not whole or re.search(rf"\b{re.escape(name)}\b", texts) is not None)

        tables = [*(thing.name for thing in expected if thing.kind == "table"), *strangers.BOOKKEEPING]
        return strangers.find(conn, tables, strangers.Trust(things, known))


def sql(template: str) -> Repair:
    """Return the repair by one statement: {name}, {role} and {thing} are identifiers in it, {word} is a keyword."""

    def repair(conn: Session, facts: Inspection, thing: str) -> None:
        names = {"name": facts.subject, "role": facts.role, "thing": thing}
        parts = {key: identifier(value) for key, value in names.items()}
        conn.execute(compose(template.replace("{word}", thing), **parts))

    return repair


def critical(message: str, fix: str | None = None, thing: str = "") -> Verdict:
    """Return a critical verdict."""
    return Verdict(Level.CRITICAL, message, fix=fix, thing=thing)


def rule(
    id: str,
    title: str,
    explanation: str,
    wrong: Callable[[Inspection], bool | Sequence[str] | None],
    message: str,
    *,
    level: Level = Level.CRITICAL,
    fix: str | None = None,
    repair: Repair | None = None,
) -> Check:
    """Make a check of a condition that is wrong, or of things that are: each is {thing} in *message*.

    *message* and *fix* may use {facts}. In *fix*, as in `sql`, {thing} is an SQL identifier and {word} is as it is.
    """

    def judge(facts: Inspection) -> Iterator[Verdict]:
        """Tell what is wrong."""
        found = wrong(facts)
        for thing in ("",) if found is True else found or ():
            by_hand = fix and fix.format(facts=facts, thing=quoted(thing), word=thing)
            yield Verdict(level, message.format(facts=facts, thing=thing), fix=by_hand, thing=thing)

    return verified(id, title, explanation, repair=repair)(judge)


public = rule("database.public", "PUBLIC has no rights on the database",
    "With them every role of the server could connect to the tenant's database.",
    lambda facts: facts.outside.public, "PUBLIC has rights on database {facts.subject}",
    repair=sql("REVOKE ALL ON DATABASE {name} FROM PUBLIC"))  # fmt: skip
others = rule("database.rights", "Only the engine and posduif's groups have rights on the database",
    "posduif did not give these rights and does not take them away.",
    lambda facts: facts.outside.others, "role {thing} has rights on database {facts.subject}",
    level=Level.WARNING, fix="REVOKE ALL ON DATABASE {facts.subject} FROM {word};")  # fmt: skip
database_limit = rule("database.limit", "The database has no connection limit",
    "The engine's role has the limit. One of the database would shut out backups and administrators, too.",
    lambda facts: facts.outside.database_limit != -1,
    "database {facts.subject} has a connection limit of {facts.outside.database_limit}",
    repair=sql("ALTER DATABASE {name} CONNECTION LIMIT -1"))  # fmt: skip
database_timezone = rule("database.timezone", "The database is pinned to UTC",
    "The tables hold times without a zone, and the engine takes them for UTC.",
    lambda facts: not facts.outside.database_utc, "database {facts.subject} is not pinned to UTC",
    repair=sql("ALTER DATABASE {name} SET timezone = 'UTC'"))  # fmt: skip
steering = rule("database.settings", "The database does not steer sessions",
    "Such a setting gives every session another role, or other tables and functions under known names.",
    lambda facts: facts.outside.steering, "database {facts.subject} sets {thing} for every session in it",
    repair=sql("ALTER DATABASE {name} RESET {word}"))  # fmt: skip
creates = rule("engine.creates", "The engine's role creates no objects",
    "An engine needs no objects of its own, and its functions could pass for PostgreSQL's.",
    lambda facts: facts.may_create, "{facts.role} may create objects in schema public",
    repair=sql("REVOKE CREATE ON SCHEMA public FROM PUBLIC, {role}"))  # fmt: skip


def _make_role(conn: Session, facts: Inspection, _: str) -> None:
    name, state = facts.subject, facts.record.state
    admin.create_engine_role(conn, record.Intent(name, state, admin.new_nonce()))
    admin.equip_role(conn, name, facts.given)
    (admin.let_in if state is State.ACTIVE else admin.shut_out)(conn, name)


@verified("engine.missing", "The engine's role exists",
    "The engine logs in as this role. A new one has no password.", repair=_make_role)  # fmt: skip
def missing_role(facts: Inspection) -> Iterator[Verdict]:
    """Judge whether the engine's role exists."""
    if not facts.outside.has_role:
        then = Run("tenant", "rotate-password", facts.subject, "--engine-config", "FILE")
        yield replace(critical(f"role {facts.role} is missing, and with it the engine's password"), then=then)


role_timezone = rule("engine.timezone", "The engine's role is pinned to UTC",
    "The tables hold times without a zone, and the engine takes them for UTC.",
    lambda facts: facts.outside.has_role and not facts.outside.role_utc, "{facts.role} is not pinned to UTC",
    repair=sql("ALTER ROLE {role} IN DATABASE {name} SET timezone = 'UTC'"))  # fmt: skip


@verified("engine.login", "The engine can connect exactly while the tenant is active",
    "An active tenant's engine has to log in. A suspended tenant's engine must not.",
    repair=lambda conn, facts, _: (admin.let_in if facts.active else admin.shut_out)(conn, facts.subject))  # fmt: skip
def login(facts: Inspection) -> Iterator[Verdict]:
    """Judge whether the engine's role may log in and connect."""
    found, name = facts.outside, facts.subject
    if not found.has_role:
        return
    if facts.active and not (found.may_log_in and found.may_connect):
        yield critical(f"{name} is active, but {facts.role} cannot connect")
    if not facts.active and (found.may_log_in or found.may_connect):
        yield critical(f"{name} is {facts.record.state}, but {facts.role} can connect")


powers = rule("engine.powers", "The engine's role has no powers over the server",
    "With such an attribute an engine reaches beyond its own tenant.",
    lambda facts: facts.outside.powers, "{facts.role} has {thing}",
    fix="a superuser types: ALTER ROLE {facts.role} NO{word};",
    repair=sql("ALTER ROLE {role} NO{word}"))  # fmt: skip
groups = rule("engine.groups", "The engine's role is tied to posduif's groups",
    "posduif_engine gives it the rights on the tables. "
    "posduif_admin has to be able to alter it and end its sessions.",
    lambda facts: (found := facts.outside).has_role
    and not (admin.ENGINE_GROUP in found.memberships and found.administered),
    "{facts.role} is not tied to posduif's groups",
    repair=lambda conn, facts, _: admin.join_groups(conn, facts.subject))  # fmt: skip
memberships = rule("engine.member", "The engine's role is in no other group",
    "A further group gives the engine rights that posduif did not.",
    lambda facts: [group for group in facts.outside.memberships if group != admin.ENGINE_GROUP],
    "{facts.role} is a member of {thing}", fix="a superuser types: REVOKE {thing} FROM {facts.role};",
    repair=sql("REVOKE {thing} FROM {role}"))  # fmt: skip


@verified("engine.limit", "The engine's role may have the connections of its pools",
    "The limit keeps one engine from taking all connections, with room for a rolling restart and the web-api. "
    "The record says which pools were decided for this engine.",
    repair=lambda conn, facts, _: admin.limit_connections(conn, facts.subject, facts.given))  # fmt: skip
def limit(facts: Inspection) -> Iterator[Verdict]:
    """Judge the role's connection limit; more than was decided is told only, for an engine may live on it by now."""
    found, wanted = facts.outside.role_limit, admin.engine_limit(facts.given)
    if facts.outside.has_role and found is not None and found != wanted:
        spelled = "any number of connections" if found == -1 else counted(found, "connection")
        pools = f"two engines with a pool of {facts.given.pool} and their web-api"
        text, less = f"{facts.role} may have {spelled}; {pools} take {wanted}", -1 < found < wanted
        by_hand = None if less else f"ALTER ROLE {facts.role} CONNECTION LIMIT {wanted};"
        yield Verdict(Level.WARNING, text, fix=by_hand, repairable=less)


@verified("engine.intent", "The comment on the engine's role names the tenant and its state",
    "The comment outlives the database: it tells what an interrupted command was about.",
    repair=lambda conn, facts, _: record.put_intent(
        conn, facts.role, record.Intent(facts.subject, facts.record.state, admin.new_nonce())
    ))  # fmt: skip
def intent(facts: Inspection) -> Iterator[Verdict]:
    """Compare the comment on the role with the record."""
    found = record.parse_intent(facts.outside.intent)
    right = found is not None and (found.tenant, found.state) == (facts.subject, facts.record.state)
    if facts.outside.has_role and not right:
        yield critical(f"the comment on {facts.role} does not say that {facts.subject} is {facts.record.state}")


def _note_pool(conn: Session, facts: Inspection, _: str) -> None:
    current = record.read(conn)
    record.write(conn, current.giving(facts.given))


noted_pool = rule("record.pool", "The record says which pool the engine was given",
    "Otherwise the limit of the engine's role is taken for what was decided.",
    lambda facts: facts.record.given.pool is None,
    "the record does not say how many connections {facts.role} was given",
    level=Level.WARNING, repair=_note_pool)  # fmt: skip
creators = rule("objects.creators", "Only posduif creates objects in the schema public",
    "A function in it could pass for one of PostgreSQL's in an administrator's session.",
    lambda facts: facts.creators,
    "role {thing} may create objects in schema public, which would pass for PostgreSQL's",
    repair=sql("REVOKE CREATE ON SCHEMA public FROM {thing}"))  # fmt: skip


@verified("tables.security", "No table of posduif's hides rows",
    "posduif uses no row-level security: a tenant is a database, and its engine decides who reads what. "
    "Where it is on, roles without a policy see no rows, and no error says so.")  # fmt: skip
def row_security(facts: Inspection) -> Iterator[Verdict]:
    """Tell which tables have row-level security, and what that breaks."""
    for table, forced, for_engine in facts.secured:
        level, broken = Level.WARNING, "people at the desk and monitoring see no rows without a policy for them"
        if forced:
            level, broken = Level.CRITICAL, f"it binds {ADMIN_ROLE} too: backups fail, and counts lack rows"
        elif not for_engine and table != "schema_migrations":
            level, broken = Level.CRITICAL, "no policy is for the engine, which sees no rows and cannot add any"
        off = f"ALTER TABLE public.{table} DISABLE ROW LEVEL SECURITY, NO FORCE ROW LEVEL SECURITY;"
        yield Verdict(
            level,
            f"row-level security was switched on for {table}: {broken}",
            fix=f"a member of {ADMIN_ROLE} types, in {facts.subject}: {off}",
            thing=table,
        )


@verified("code.foreign", "Tables run no code that a migration did not make",
    "A trigger, constraint, default or index runs with the rights of the role that writes, "
    "administrators included.")  # fmt: skip
def code(facts: Inspection) -> Iterator[Verdict]:
    """Tell what may run foreign code and was not accepted at the adoption."""
    accepted = strangers.accepted(facts.record.extra)
    for found in facts.strangers:
        if found.name not in accepted:
            who = f"a member of {ADMIN_ROLE}" if found.owner == ADMIN_ROLE else "a superuser"
            ddl = next((inventory.flat(_functions()[run]) for run in found.runs if run in _functions()), found.fix)
            fix = f"{who} types, in {facts.subject}: {ddl};" if ddl else f"look at {found.name} in {facts.subject}"
            yield critical(f"{found.name} {found.why}, with the rights of the role that writes there", fix, found.name)


@cache
def _functions() -> dict[str, str]:
    """Return the statements that make the bundled functions, by name."""
    return {thing.name: thing.ddl for thing in inventory.snapshot() if thing.kind == "function" and thing.ddl}


@check("tenant", ("tenant verify", "health"), "grants.differ", "Rights inside the tenant are those of grants.sql",
    "grants.sql says what engines, people and nightly jobs may do with which table and column. "
    "Only an administrator's session can compare them.",
    repair=lambda conn, facts, _: grants.run(conn), tier="visited",
    together=("tenant", "verify", "--repair"))  # fmt: skip
def granted(facts: Inspection | TenantFacts) -> Iterator[Verdict]:
    """Tell what grants.sql would give or take away."""
    if facts.missing:
        words = [
            f"what {command} takes away is too much" if command.startswith("REVOKE") else f"{command} is missing"
            for command in facts.missing
        ]
        text = listed(words, SHOWN if isinstance(facts, Inspection) else 1, "; ")
        several = "the grants differ from grants.sql"
        yield replace(critical(f"the grants differ from grants.sql: {text}"), several=several)


@verified("texts.readable", "People's groups cannot read what customers write",
    "Support, monitoring and nightly jobs work without the texts of messages.")  # fmt: skip
def readers(facts: Inspection) -> Iterator[Verdict]:
    """Tell each group that may read texts."""
    for group, table, column in facts.readers:
        revoke = f"REVOKE SELECT ({column}) ON {table} FROM {group};"  # noqa: S608 -- shown, not run
        by_hand = f"a superuser types, in {facts.subject}: {revoke} and takes it out of other roles that may"
        yield critical(f"{group} may read texts: {table}.{column}", by_hand, f"{group} {table}.{column}")


@verified("objects.foreign", "All objects in the database are posduif's",
    "posduif touches no objects of other roles, and a migration may conflict with them.")  # fmt: skip
def foreign(facts: Inspection) -> Iterator[Verdict]:
    """Tell each object of another owner."""
    for kind, thing, owner in facts.foreign:
        text, fix = f"{kind} {thing} of {owner} is not posduif's; it was not touched", "move it elsewhere"
        if kind == "relation" and thing in OURS:
            text = f"table {thing} belongs to {owner}, not to {ADMIN_ROLE}"
            fix = f"a superuser types, in {facts.subject}: ALTER TABLE {thing} OWNER TO {ADMIN_ROLE};"
        yield Verdict(Level.WARNING, text, fix=fix, thing=f"{kind} {thing}")
