"""Inspections: whether a tenant's database, rights and engine role are what posduif made them, and mending that."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

from posduif_cli.core.fleet.fleet import Session
from posduif_cli.core.folders import Folders
from posduif_cli.core.schema import grants, history, inventory, strangers
from posduif_cli.core.schema.strangers import Stranger
from posduif_cli.db import admin, queries, record
from posduif_cli.db.quoting import compose, identifier, literal
from posduif_cli.db.session import ADMIN_ROLE
from posduif_cli.errors import Hint, PosduifError, Run
from posduif_cli.models.checks import Finding, Level
from posduif_cli.models.tenants import State
from posduif_cli.notation import counted, listed

SHOWN = 5
EXECUTE = "EXECUTE command;"  # as grants.sql writes it
NOTE = (
    "PERFORM set_config('posduif.grants', concat_ws(E'\\n', current_setting('posduif.grants', true), command), true);"
)
LOCK_TIMEOUT = timedelta(seconds=10)  # of what mends
OURS = frozenset({"users", "messages", "sync_metadata", "enrollment_tokens", "schema_migrations"})


@dataclass(frozen=True)
class _Facts:
    """A tenant's database and its engine's role as the server has them."""

    database_limit: int
    public: bool
    strangers: list[str] | None
    database_utc: bool
    role_utc: bool
    steering: list[str] | None
    has_role: bool
    may_log_in: bool | None
    role_limit: int | None
    powers: list[str] | None
    intent: str | None
    memberships: list[str]
    administered: bool
    may_connect: bool
    may_create: bool
    creators: list[str] | None
    readers: list[str] | None


@dataclass(frozen=True)
class _Fault:
    """Something that is not as it should be; *mend* is None where it is not posduif's to mend.

    *then* is what is left to do by hand once it is mended.
    """

    check: str
    message: str
    mend: Callable[[], object] | None
    fix: Hint
    level: Level = Level.CRITICAL
    then: str | None = None


def inspect(conn: Session, *, folders: Folders, repair: bool = False) -> list[Finding]:
    """Return what is wrong with a tenant, beside its version; with *repair* mend what is posduif's to mend.

    *folders* say what the migrations make; without *repair* nothing is written.

    Each fault is mended in a transaction of its own, under the tenant's lock; one that cannot be is reported as
    it stands, with the server's reason.
    """
    if not repair:
        return [_finding(conn, fault) for fault in _faults(conn, record.read(conn), folders)]
    findings = []
    with conn.lock(conn.database):
        faults = _faults(conn, record.read(conn), folders)
        why = {fault.message: _mend(conn, fault) for fault in faults}
        # What was tried need not have worked: a right may come by another road, and one may have hidden another.
        left = {fault.message: fault for fault in _faults(conn, record.read(conn), folders)}
        for fault in faults:
            finding = _finding(conn, fault)
            if left.pop(fault.message, None) is None:
                finding = replace(finding, level=Level.INFO, message=f"repaired: {fault.message}", fix=fault.then)
            else:
                finding = replace(finding, message=fault.message + why[fault.message])
            findings.append(finding)
        findings += [_finding(conn, fault) for fault in left.values()]
    return findings


def _mend(conn: Session, fault: _Fault) -> str:
    """Try to mend a fault, and return what is to be said if it is still there afterwards."""
    if fault.mend is None:
        return ""
    try:
        with conn.transaction(lock_timeout=LOCK_TIMEOUT):
            fault.mend()
    except PosduifError as error:
        return f"; not repaired: {error.message}"
    return "; to mend it changed nothing"


def _finding(conn: Session, fault: _Fault) -> Finding:
    return Finding(fault.check, "tenant", conn.database, fault.level, fault.message, fix=fault.fix)


def _faults(conn: Session, current: record.Record, folders: Folders) -> list[_Fault]:
    named, name = queries.load("checks/rights"), conn.database
    facts = conn.row(_Facts, named["inspect_tenant"])
    assert facts is not None
    role = admin.engine_role(name)
    mend = Run("tenant", "verify", name, "--repair")
    faults = []

    def fault(check: str, message: str, how: Callable[[], object] | None, fix: Hint = mend, **more: Any) -> None:
        faults.append(_Fault(check, message, how, fix, **more))

    def run(template: str, **parts: object) -> Callable[[], object]:
        words = {"name": identifier(name), "role": identifier(role)} | {
            key: literal(value) if isinstance(value, int) else identifier(str(value)) for key, value in parts.items()
        }
        return lambda: conn.execute(compose(template, **words))

    if facts.public:
        fault("rights", f"PUBLIC has rights on database {name}", run("REVOKE ALL ON DATABASE {name} FROM PUBLIC"))
    for stranger in facts.strangers or ():
        fault(
            "rights",
            f"role {stranger} has rights on database {name}",
            None,
            f"REVOKE ALL ON DATABASE {name} FROM {stranger};",
            level=Level.WARNING,
        )
    if facts.database_limit != -1:
        fault(
            "limit",
            f"database {name} has a connection limit of {facts.database_limit}",
            run("ALTER DATABASE {name} CONNECTION LIMIT -1"),
        )
    if not facts.database_utc:
        fault("time zone", f"database {name} is not pinned to UTC", run("ALTER DATABASE {name} SET timezone = 'UTC'"))
    for setting in facts.steering or ():
        fault(
            "rights",
            f"database {name} sets {setting} for every session in it",
            run(f"ALTER DATABASE {{name}} RESET {setting}"),
        )
    if facts.may_create:
        fault(
            "rights",
            f"{role} may create objects in schema public",
            run("REVOKE CREATE ON SCHEMA public FROM PUBLIC, {role}"),
        )
    if not facts.has_role:
        fault(
            "role",
            f"role {role} is missing, and with it the engine's password",
            lambda: _make_role(conn, current),
            then=Run("tenant", "rotate-password", name, "--engine-config", "FILE"),
        )
    else:
        _role_faults(conn, current, facts, fault, run)
    if current.pool is None:
        fault("record", f"the record does not say how many connections {role} was given",
              lambda: _note_pool(conn), level=Level.WARNING)  # fmt: skip
    for creator in facts.creators or ():
        fault(
            "rights",
            f"role {creator} may create objects in schema public, which would pass for PostgreSQL's",
            run("REVOKE CREATE ON SCHEMA public FROM {creator}", creator=creator),
        )
    ours = {f.name: f.ddl for f in inventory.snapshot() if f.kind == "function" and f.ddl}
    for found in _strangers(conn, folders):
        if found.name not in strangers.accepted(current.extra):
            who = f"a member of {ADMIN_ROLE}" if found.owner == ADMIN_ROLE else "a superuser"
            sql = next((inventory.flat(ours[run]) for run in found.runs if run in ours), found.fix)
            by_hand = f"{who} types, in {name}: {sql};" if sql else f"look at {found.name} in {name}"
            fault("code", f"{found.name} {found.why}, with the rights of whoever writes there", None, by_hand)
    missing = _rights(conn)
    if missing:
        shown = listed(missing, SHOWN, "; ")
        fault("grants", f"the grants differ from grants.sql: {shown}", lambda: grants.run(conn))
    for reader in facts.readers or ():
        group, _, column = reader.partition(" ")
        table, _, attribute = column.partition(".")
        revoke = f"REVOKE SELECT ({attribute}) ON {table} FROM {group};"  # noqa: S608
        by_hand = f"a superuser types, in {name}: {revoke} and takes it out of other roles that may"
        fault("grants", f"{group} may read texts: {column}", None, by_hand)
    for kind, thing, owner in conn.tuples(named["find_foreign_objects"]):
        message, fix = f"{kind} {thing} of {owner} is not posduif's; it was not touched", "move it elsewhere"
        if kind == "relation" and thing in OURS:
            message = f"table {thing} belongs to {owner}, not to {ADMIN_ROLE}"
            fix = f"a superuser types, in {name}: ALTER TABLE {thing} OWNER TO {ADMIN_ROLE};"
        fault("foreign", message, None, fix, level=Level.WARNING)
    return faults


def _role_faults(
    conn: Session,
    current: record.Record,
    facts: _Facts,
    fault: Callable[..., None],
    run: Callable[..., Callable[[], object]],
) -> None:
    """Find what is wrong with the engine's role."""
    name, role = conn.database, admin.engine_role(conn.database)
    active = current.state is State.ACTIVE
    if not facts.role_utc:
        fault("time zone", f"{role} is not pinned to UTC",
              run("ALTER ROLE {role} IN DATABASE {name} SET timezone = 'UTC'"))  # fmt: skip
    if active and not (facts.may_log_in and facts.may_connect):
        fault("role", f"{name} is active, but {role} cannot connect", lambda: admin.let_in(conn, name))
    if not active and (facts.may_log_in or facts.may_connect):
        fault("role", f"{name} is {current.state}, but {role} can connect", lambda: admin.shut_out(conn, name))
    for power in facts.powers or ():
        fault("role", f"{role} has {power}", run(f"ALTER ROLE {{role}} NO{power}"),
              f"a superuser types: ALTER ROLE {role} NO{power};")  # fmt: skip
    if admin.ENGINE_GROUP not in facts.memberships or not facts.administered:
        fault("role", f"{role} is not tied to posduif's groups", lambda: admin.join_groups(conn, name))
    for group in facts.memberships:
        if group != admin.ENGINE_GROUP:
            fault("role", f"{role} is a member of {group}", run("REVOKE {group} FROM {role}", group=group.strip('"')),
                  f"a superuser types: REVOKE {group} FROM {role};")  # fmt: skip
    # By what was decided for this engine: another machine's configuration knows nothing of it.
    pool = admin.decided_pool(conn, name, current)
    limit, found = admin.engine_limit(pool), facts.role_limit
    if found != limit:
        # More than was decided is told only: an engine may live on it by now.
        less = found is not None and -1 < found < limit
        fault("limit", f"{role} may have {_limit(found)}; a pool of {pool} takes {limit}",
              (lambda: admin.limit_connections(conn, name, pool)) if less else None,
              *(() if less else (f"ALTER ROLE {role} CONNECTION LIMIT {limit};",)), level=Level.WARNING)  # fmt: skip
    intent = record.parse_intent(facts.intent)
    if intent is None or intent.tenant != name or intent.state is not current.state:
        fault("record", f"the comment on {role} does not say that {name} is {current.state}",
              lambda: record.put_intent(conn, role, record.Intent(name, current.state, admin.new_nonce())))  # fmt: skip


def _note_pool(conn: Session) -> None:
    """Write into the record what was decided for the engine, which is what its role has."""
    current = record.read(conn)
    pool = admin.decided_pool(conn, conn.database, current)
    record.write(conn, replace(current, engine={**current.engine, "pool": pool}))


def _limit(limit: int | None) -> str:
    return "any number of connections" if limit == -1 else counted(limit or 0, "connection")


def _make_role(conn: Session, current: record.Record) -> None:
    name = conn.database
    pool = admin.decided_pool(conn, name, current)
    admin.create_engine_role(conn, record.Intent(name, current.state, admin.new_nonce()))
    admin.equip_role(conn, name, pool)
    if current.state is State.ACTIVE:
        admin.let_in(conn, name)
    else:
        admin.shut_out(conn, name)


def _rights(conn: Session) -> list[str]:
    """Return how the rights differ from what grants.sql makes: what it would run, if it ran.

    Its block asks the catalogs what is to be done and does it; here it notes it in a setting of the transaction.
    """
    text = grants.text()
    block = text[text.index("DO $$") :].replace(EXECUTE, NOTE)
    # One snapshot: what a migration grants meanwhile is no difference.
    with conn.transaction(read_only=True, prelude=["SET TRANSACTION ISOLATION LEVEL REPEATABLE READ"]):
        conn.script(f"SET LOCAL ROLE posduif_admin; {block}")
        commands = [command for (command,) in conn.tuples(queries.load("checks/rights")["list_missing_grants"])]
    return [
        f"what {command} takes away is too much" if command.startswith("REVOKE") else f"{command} is missing"
        for command in sorted(commands)
    ]


def _strangers(conn: Session, folders: Folders) -> Sequence[Stranger]:
    """Return what on the tenant's tables may run code that no migration made; only catalogs are read.

    What posduif_admin owns and a migration of further folders mentions is known. A tenant that this machine has not all
    files of, or that lacks some, is compared with nothing but its owners.
    """
    with conn.transaction(read_only=True):
        expected = inventory.snapshot()
        things = strangers.same(expected, inventory.inventory(conn))
        whole = set(history.applied(conn)) == set(folders.paths)
        texts = "\n".join(path.read_text("utf-8", "replace") for files in folders.listing[1:] for path in files)

        def known(name: str, owner: str) -> bool:
            return owner == ADMIN_ROLE and (not whole or re.search(rf"\b{re.escape(name)}\b", texts) is not None)

        tables = [*(thing.name for thing in expected if thing.kind == "table"), *strangers.BOOKKEEPING]
        return strangers.find(conn, tables, strangers.Trust(things, known))
