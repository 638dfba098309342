"""Adoptions: take in a database that other people made, without losing anything of it.

Its schema is compared, object by object, with what the migrations make. What is missing is added, what is
different is refused with the SQL that repairs it, what is its own is left alone. All of it happens in one
transaction, so that a kill at any moment leaves the database as it was. The database is a stranger's until
then: none of its triggers, rules or functions may run with an administrator's rights, and what would run them
later on, when posduif writes to the tables, is refused unless it is accepted by name.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from posduif_cli.core import folders, names
from posduif_cli.core.fleet.fleet import Fleet, naming, wrong_state
from posduif_cli.core.fleet.placement import Placements
from posduif_cli.core.schema import files, grants, inventory, parse, strangers
from posduif_cli.core.schema.inventory import Thing
from posduif_cli.core.schema.strangers import ACCEPTED, BOOKKEEPING, Stranger
from posduif_cli.core.tenants import differences, takeover
from posduif_cli.core.tenants.differences import Objection
from posduif_cli.db import admin, connect, queries, record
from posduif_cli.db.admin import ENGINE_GROUP, engine_role
from posduif_cli.db.quoting import literal, quoted
from posduif_cli.db.record import Intent, Record
from posduif_cli.db.session import ADMIN_ROLE, Session
from posduif_cli.errors import (
    AccessDenied,
    Busy,
    ChecksumDiffers,
    Conflict,
    NotOurs,
    QueryFailed,
    Run,
    SuperuserSession,
    TenantNotFound,
)
from posduif_cli.models.runs import Plan, Step
from posduif_cli.models.servers import Server
from posduif_cli.models.tenants import Adoption, State, Tenant

VERSIONS = BOOKKEEPING[0]
SUPERUSER = "a superuser"
PATIENCE = timedelta(seconds=10)  # with transactions that were open while the database was taken in
# Rows or names conflict with a statement: integrity constraints, and names that are taken.
STANDS_AGAINST = ("23", "42P07", "42710", "42701", "42P16", "42804", "42830")


@dataclass(frozen=True)
class _Database:
    owner: str
    powerful: bool
    trusted: bool
    open: bool
    template: bool
    comment: str | None
    may_own: bool
    path: str | None


@dataclass(frozen=True)
class _Work:
    """What an adoption does: statements as the login, then as posduif_admin.

    *before* are versions noted already, *accepted* the names of strangers' code that is taken in, *pool* is how many
    connections the tenant's engine was given, or is.
    """

    found: _Database
    accepted: tuple[str, ...]
    take: tuple[Step, ...]
    make: tuple[Step, ...]
    before: dict[str, str | None]
    own: tuple[str, ...]
    changes: tuple[str, ...]
    unrun: tuple[str, ...]
    unsure: tuple[str, ...]
    pool: int
    at: datetime


def adopt(
    fleet: Fleet,
    *,
    database: str,
    url: str | None = None,
    accept: Sequence[str] = (),
    ignore_unreachable: bool = False,
) -> Adoption:
    """Take in a database as a tenant.

    *accept* names strangers' code to take in all the same, as the refusal prints it. Raises InvalidName,
    TenantNotFound, Conflict with every difference and the SQL that repairs it, TenantExists as `tenants.create`,
    NotOurs, WrongState, AccessDenied, SuperuserSession, Busy.
    """
    names.tenant(database)
    server = fleet.server_for_new()
    with fleet.maintenance(server) as session:
        found = _find(fleet, session, database)
        if isinstance(found, Tenant):
            return _result(found, None)
        _require_plain(session, server, database, found)
        admin.ensure_roles(session)
        with session.lock(database):
            found = _find(fleet, session, database)
            if isinstance(found, Tenant):
                return _result(found, None)
            intent = _require_possible(fleet, session, server, database, found, ignore_unreachable)
            expected = inventory.snapshot() if not fleet.folders.further else inventory.reference(fleet, server)
            with connect.connect(server, database, command=fleet.command) as conn, conn.lock(database):
                with _inside(fleet, conn, expected, read_only=True):
                    _prepare(conn, fleet, found, expected, accept)
                with _inside(fleet, conn, expected):
                    if others := _await_others(conn, fleet.folders.lock_timeout):
                        raise Busy(
                            f"database {database} is being changed",
                            why=[
                                f"a transaction {other} is open; what it makes cannot be seen yet" for other in others
                            ],
                            hint="try again when that is done",
                        )
                    work = _prepare(conn, fleet, found, expected, accept)
                    _carry_out(conn, fleet, work, intent)
                    grants.run(conn)
                    record.write(conn, _record(fleet, conn.server, conn.database, work, url))
                work = _look_again(conn, expected, work)
        adopted = fleet.look(session, database)
        assert adopted is not None
        return _result(adopted, work)


def _await_others(conn: Session, patience: timedelta) -> list[str]:
    """Wait for other people's transactions in the database; return those that are open when *patience* is over."""
    deadline = time.monotonic() + patience.total_seconds()
    while others := [other for (other,) in conn.tuples(queries.load("tenants/adopt")["list_open_transactions"])]:
        if time.monotonic() > deadline:
            return others
        time.sleep(0.1)
    return []


def _look_again(conn: Session, expected: Sequence[Thing], work: _Work) -> _Work:
    """Look for strangers' code that was committed while the database was taken in, by rights that are gone since.

    Raises Conflict, though the database is a tenant now, with what to type; tells of transactions that are open still.
    """
    others = _await_others(conn, PATIENCE)
    present = inventory.inventory(conn)
    code = _strangers(conn, expected, present)
    if late := [stranger for stranger in code if stranger.name not in work.accepted]:
        raise Conflict(
            f"database {conn.database} was adopted, and in this moment someone gave it code",
            why=[f"{stranger.name} {stranger.why}" for stranger in late],
            hint=[
                *(f"a superuser types, in {conn.database}: {stranger.fix};" for stranger in late if stranger.fix),
                Run("tenant", "verify", conn.database),
            ],
        )
    told = [
        str(Run("tenant", "verify", conn.database, lead=f"a transaction {other} is open still; when it is over, type"))
        for other in others
    ]
    return replace(work, changes=(*work.changes, *told))


def _strangers(conn: Session, expected: Sequence[Thing], present: Sequence[Thing]) -> tuple[Stranger, ...]:
    tables = [*(thing.name for thing in expected if thing.kind == "table"), *BOOKKEEPING]
    # A function that differs is refused as such, not once more for each trigger that runs it.
    known = strangers.same(expected, present) | {(t.kind, t.name) for t in expected if t.kind == "function"}
    return strangers.find(conn, tables, strangers.Trust(known))


def plan(
    fleet: Fleet,
    *,
    database: str,
    url: str | None = None,
    accept: Sequence[str] = (),
    ignore_unreachable: bool = False,
) -> Plan:
    """Say what `adopt` would do, and read only; raises as it does.

    What further folders' migrations make can be known only by running them. So the database is compared with what the
    bundled ones make, and each difference is a step "compare" in place of an error.
    """
    names.tenant(database)
    server = fleet.server_for_new()
    with fleet.maintenance(server) as session:
        found = _find(fleet, session, database)
        if isinstance(found, Tenant):
            return Plan(())
        _require_plain(session, server, database, found)
        roles = _missing_roles(session)
        _require_possible(fleet, session, server, database, found, ignore_unreachable)
        expected = inventory.snapshot()
        with connect.connect(server, database, command=fleet.command) as conn:
            with _inside(fleet, conn, expected, read_only=True):
                work = _prepare(conn, fleet, found, expected, accept, sure=not fleet.folders.further)
            return Plan((*roles, *_steps(work, fleet, database, server, url)))


def _missing_roles(session: Session) -> tuple[Step, ...]:
    """Return the steps that make posduif's roles; raises as `admin.ensure_roles` does, but makes none."""
    if session.member is not None or session.standby:
        session.require_admin()
    missing = admin.missing_roles(session)
    return tuple(Step("make", "posduif's roles", sql) for sql in admin.role_statements(session, missing))


def _require_possible(
    fleet: Fleet, session: Session, server: Server, name: str, found: _Database, ignore_unreachable: bool
) -> Intent | None:
    """Raise unless name, rights and role allow the adoption; return the intent on an engine's role that is there."""
    with Placements(fleet, ignore_unreachable=ignore_unreachable) as placements:
        placements.require_unique(server, name)
    _require_rights(session, name, found)
    return _intent(session, name)


def _require_plain(session: Session, server: Server, name: str, found: _Database) -> None:
    """Raise SuperuserSession where a superuser's session would enter a database that posduif did not make.

    SET ROLE is no fence for it: code in the database could take on the login's own role. What posduif made, and what
    lost its record or its owner since, has an engine's role that posduif_admin made, which says so, and holds nothing
    that belongs to anyone but posduif_admin and superusers. No stranger can make either so.
    """
    if not session.value("SELECT rolsuper FROM pg_roles WHERE rolname = session_user"):
        return
    if session.value(queries.load("tenants/adopt")["was_made_by_posduif"], name=name) and _intent(session, name):
        return
    host, port = connect.address(session)
    raise SuperuserSession(
        f"a superuser's session does not adopt database {name}, which posduif did not make",
        why=[f"{session.login} is a superuser", "code in the database could use a superuser's rights"],
        hint=[
            Run("server", "init", "--login", "NAME", *naming(server)),
            Run("tenant", "adopt", name, "--dsn", f"host={host} port={port} user=NAME", lead="then"),
        ],
    )


def _result(tenant: Tenant, work: _Work | None) -> Adoption:
    return Adoption(
        tenant=tenant.tenant,
        server=tenant.server,
        state=tenant.state,
        schema_version=tenant.schema_version,
        url=tenant.url,
        changed=work is not None,
        made=tuple(step.subject for step in work.make if step.action in ("make", "rename")) if work else (),
        own=work.own if work else (),
        changes=work.changes if work else (),
    )


def _find(fleet: Fleet, session: Session, name: str) -> _Database | Tenant:
    """Return the database to adopt, or the active tenant that it is already."""
    tenant = fleet.look(session, name)
    if tenant is not None and tenant.state is State.ACTIVE:
        return tenant
    found = session.row(_Database, queries.load("tenants/adopt")["find_database"], name=name)
    if found is None:
        raise TenantNotFound(
            f'there is no database "{name}" on server {session.server.name}',
            hint=Run("tenant", "create", name),
        )
    # Of a tenant that was being dropped nothing is left but its role, once the database is not posduif's.
    dropped = found.owner != ADMIN_ROLE or record.parse(found.comment) is None
    if tenant is not None and tenant.state is not State.LOST and not (tenant.state is State.DROPPING and dropped):
        raise wrong_state(tenant)
    if found.template or not found.open:
        raise Conflict(
            f"database {name} {'is a template' if found.template else 'accepts no connections'}",
            hint=f"{found.owner} types: ALTER DATABASE {quoted(name)} "
            f"{'IS_TEMPLATE false' if found.template else 'ALLOW_CONNECTIONS true'};",
        )
    if found.path is not None:
        raise Conflict(
            f"database {name} sets {found.path}",
            why="functions of its own would run in place of PostgreSQL's, with an administrator's rights",
            hint=f"{found.owner} types: ALTER DATABASE {quoted(name)} RESET search_path;",
        )
    return found


def _require_rights(session: Session, name: str, found: _Database) -> None:
    """Raise AccessDenied unless the login may make posduif_admin the owner of the database."""
    if found.owner == ADMIN_ROLE:
        return
    fixes = [] if found.may_own else [f"ALTER ROLE {quoted(session.login)} CREATEDB;"]
    if not session.value("SELECT pg_has_role(session_user, %(owner)s, 'USAGE')", owner=found.owner):
        if found.powerful:
            # Not to posduif_admin: with it a record that a stranger wrote would be believed.
            fixes.append(f"ALTER DATABASE {quoted(name)} OWNER TO {quoted(session.login)};")
        else:
            fixes.append(f"GRANT {quoted(found.owner)} TO {quoted(session.login)};")
    if fixes:
        raise AccessDenied(
            f"{session.login} may not take over database {name}, which belongs to {found.owner}",
            why=f"that takes a superuser, or CREATEDB and membership in {found.owner} and {ADMIN_ROLE}",
            hint=[f"a superuser types: {fix}" for fix in fixes],
        )


def _intent(session: Session, name: str) -> Intent | None:
    """Return the intent on an engine's role that outlived the record; raises NotOurs for a stranger's role."""
    role = engine_role(name)
    traces = session.dicts(queries.load("tenants/tenants")["find_traces"], name=name, role=role)[0]
    intent = record.parse_intent(traces["intent"])
    if traces["has_role"] and (intent is None or intent.tenant != name):
        raise NotOurs(
            f"role {role} exists and is not posduif's",
            why="the tenant's engine would get its password and rights",
            hint=f"a superuser types: ALTER ROLE {role} RENAME TO {role}_before;",
        )
    return intent


@contextmanager
def _inside(fleet: Fleet, conn: Session, expected: Sequence[Thing], *, read_only: bool = False) -> Iterator[None]:
    """Run the block in one transaction as the login itself, with the tenant's tables as they are."""
    folders = fleet.folders
    with conn.transaction(
        read_only=read_only, lock_timeout=folders.lock_timeout, statement_timeout=folders.statement_timeout
    ):
        conn.execute("SET LOCAL ROLE NONE")
        conn.execute("SET LOCAL search_path = pg_catalog")
        if not read_only:
            _lock(conn, [*(thing.name for thing in expected if thing.kind == "table"), VERSIONS], "EXCLUSIVE")
        yield


def _lock(conn: Session, tables: Sequence[str], mode: str) -> list[str]:
    """Lock those of some tables that exist, so that nobody makes them something else meanwhile."""
    found = [table for (table,) in conn.tuples(queries.load("tenants/adopt")["find_tables"], tables=tables)]
    for table in found:
        conn.script(f"LOCK TABLE {table} IN ACCESS {mode} MODE")
    return found


def _prepare(
    conn: Session,
    fleet: Fleet,
    found: _Database,
    expected: Sequence[Thing],
    accept: Sequence[str],
    *,
    sure: bool = True,
) -> _Work:
    """Compare, refuse what is against the adoption, and work out what it takes.

    Where *expected* is not all that the migrations make, *sure* is False, and differences are told, not refused.
    """
    named = queries.load("tenants/adopt")
    present = inventory.inventory(conn)
    judged = differences.judge(expected, present)
    code = _strangers(conn, expected, present)
    earlier = record.parse(found.comment) if found.trusted else None
    accepted = {*accept, *(strangers.accepted(earlier.extra) if earlier else ())}
    taken = [stranger for stranger in code if stranger.name in accepted and stranger.acceptable]
    owners = takeover.owners(conn, found.owner, present)
    functions = list(dict.fromkeys(function for stranger in taken for function in stranger.takeable))
    taking = takeover.plan(conn, owners, expected, present, judged.own, functions)
    noted = _lock(conn, [VERSIONS], "SHARE")
    refused = [stranger for stranger in code if stranger not in taken]
    objections = [
        *(Objection(what, fix, owner=SUPERUSER) for what, fix in conn.tuples(named["list_event_triggers"])),
        *(Objection(what, fix, VERSIONS) for what, fix in conn.tuples(named["list_obstacles"])),
        *(judged.objections if sure else ()),
        *(
            Objection(f"{s.name} {s.why}", s.fix, owner=s.owner, accept=s.name if s.acceptable else None)
            for s in refused
        ),
    ]
    # What is on a relation that has to go aside goes with it.
    if aside := [objection for objection in objections if differences.ASIDE in (objection.fix or "")]:
        objections = aside
    if objections:
        raise _refusal(conn, owners, objections)
    before: dict[str, str | None] = dict(conn.tuples(named["list_noted"])) if noted else {}
    for file in files.of(fleet.folders).all:
        if before.get(file.version) not in (None, file.checksum):
            raise ChecksumDiffers(
                f"{file.path} changed after it was applied to {conn.database}",
                hint="restore the file and put the change into a new migration",
            )
    unrun = [
        f"migration {file.version}_{file.name} is noted as applied and was not run: "
        f"what it does to data, in line{'s' if len(lines) > 1 else ''} {', '.join(map(str, lines))}, is not done"
        for file in files.of(fleet.folders).all
        if file.version not in before and (lines := [s.line for s in file.up.statements if parse.touches_data(s)])
    ]
    make = [*judged.renames, *(Step("make", f"{thing.kind} {thing.name}", thing.ddl) for thing in judged.missing)]
    return _Work(
        found=found,
        accepted=tuple(stranger.name for stranger in taken),
        take=taking.take,
        make=(*make, *taking.keep),
        before=before,
        own=tuple(f"{thing.kind} {thing.name}" for thing in differences.outermost(judged.own)),
        changes=(*taking.changes, *unrun),
        unrun=tuple(unrun),
        unsure=tuple(objection.what for objection in judged.objections) if not sure else (),
        pool=admin.decided_pool(conn, conn.database, _trusted(found)),
        at=conn.value("SELECT clock_timestamp()"),
    )


def _refusal(conn: Session, owners: Mapping[tuple[str, str], str], objections: Sequence[Objection]) -> Conflict:
    """Say what is against an adoption, a point a line, and who types what in which database to remove each point."""
    name, count = conn.database, len(objections)
    by_name = {bare: role for (_, bare), role in owners.items()}
    hints = []
    for objection in objections:
        owner = objection.owner or by_name.get(objection.subject or "", ADMIN_ROLE)
        who = f"a member of {owner}" if owner == ADMIN_ROLE else owner
        if objection.fix:
            hints.append(f"{who} types, in {name}: {objection.fix};")
    again = ("tenant", "adopt", name)
    options = [word for objection in objections if objection.accept for word in ("--accept", objection.accept)]
    accepting = [Run(*again, *options)] if options else []
    return Conflict(
        f"database {name} cannot be adopted as it is, for {count} reason{'s' if count > 1 else ''}",
        why=[
            *(objection.what for objection in objections),
            *["--accept takes in what may have an administrator's rights"] * len(accepting),
            "nothing was changed",
        ],
        hint=[*dict.fromkeys(hints), Run(*again), *accepting],
    )


def _trusted(found: _Database) -> Record | None:
    """Return the record that the database has already, unless a stranger could have written it."""
    return record.parse(found.comment) if found.trusted else None


def _close(name: str, pool: int) -> tuple[Step, ...]:
    """Close the database to PUBLIC and open it to its engine, in UTC."""
    database, role = takeover.name(name), takeover.name(engine_role(name))
    limit = admin.engine_limit(pool)
    return (
        Step("limit connections", engine_role(name), f"ALTER ROLE {role} CONNECTION LIMIT {limit}"),
        Step("close to public", name, f"REVOKE ALL ON DATABASE {database} FROM PUBLIC"),
        Step("open to engine", name, f"GRANT CONNECT ON DATABASE {database} TO {role}"),
        # Whose statement it is, and which table it means, is not the former owner's to say.
        *(Step("reset", name, f"ALTER DATABASE {database} RESET {key}") for key in ("role", "session_authorization")),
        Step("set time zone", name, f"ALTER DATABASE {database} SET timezone = 'UTC'"),
        Step("set time zone", engine_role(name), f"ALTER ROLE {role} IN DATABASE {database} SET timezone = 'UTC'"),
    )


def _carry_out(conn: Session, fleet: Fleet, work: _Work, intent: Intent | None) -> None:
    """Take over, make what is missing, note every version as applied, make the engine's role."""
    name, bookkeeping = conn.database, queries.load("schema/history")
    for step in work.take:
        conn.script(step.sql or "")
    conn.execute("SET LOCAL ROLE posduif_admin")
    conn.execute("SET LOCAL check_function_bodies = off")
    for step in work.make:
        try:
            conn.script(step.sql or "")
        except QueryFailed as error:
            if not (error.sqlstate or "").startswith(STANDS_AGAINST):
                raise
            raise Conflict(
                f"{step.subject} cannot be made in {name}; the database was not changed",
                why=error.message.partition(": ")[2],
                hint=[
                    f"remove what conflicts with it, in {name}, with: {step.sql};",
                    Run("tenant", "adopt", name),
                ],
            ) from error
    conn.execute(bookkeeping["create_table"])
    conn.execute(bookkeeping["complete_table"])
    for file in files.of(fleet.folders).all:
        if file.version in work.before:
            complete = queries.load("tenants/adopt")["complete_noted"]
            conn.execute(complete, version=file.version, checksum=file.checksum)
        else:
            conn.execute(
                bookkeeping["add_applied"],
                version=file.version,
                checksum=file.checksum,
                duration_ms=None,
                applied_by=conn.login,
            )
    if intent is None:
        admin.create_engine_role(conn, Intent(name, State.ACTIVE, admin.new_nonce()))
    else:
        conn.script(f"ALTER ROLE {takeover.name(engine_role(name))} LOGIN")
        record.put_intent(conn, engine_role(name), replace(intent, state=State.ACTIVE))
    admin.join_groups(conn, name)
    for step in _close(name, work.pool):
        conn.script(step.sql or "")


def _record(fleet: Fleet, server: Server, name: str, work: _Work, url: str | None) -> Record:
    versions = {*work.before, *fleet.folders.paths}
    earlier = record.parse(work.found.comment)
    kept = _trusted(work.found)  # phones enroll at the url: one that a stranger could have written is not taken over
    extra = {key: value for key, value in (kept.extra if kept else {}).items() if key != ACCEPTED}
    return Record(
        State.ACTIVE,
        schema=max(versions, default=None),
        applied=folders.digest(versions),
        url=url or (kept and kept.url) or (server.url and server.url.replace("{tenant}", name)),
        created=(kept and kept.created) or work.at,
        note=earlier.note if earlier else work.found.comment,
        extra=extra | ({ACCEPTED: [*work.accepted]} if work.accepted else {}),
        engine={**(kept.engine if kept else {}), "pool": work.pool},
    )


def _steps(work: _Work, fleet: Fleet, name: str, server: Server, url: str | None) -> tuple[Step, ...]:
    """List everything that an adoption does, in its order."""
    role = takeover.name(engine_role(name))
    noted = [
        Step(
            "note as applied",
            file.version,
            f"INSERT INTO {VERSIONS} (version, checksum) "  # noqa: S608
            f"VALUES ({literal(file.version).as_string(None)}, '{file.checksum}')",
        )
        for file in files.of(fleet.folders).all
        if file.version not in work.before
    ]
    comment = record.dump(_record(fleet, server, name, work, url))
    return (
        *work.take,
        *work.make,
        Step("make", f"table {VERSIONS}", queries.load("schema/history")["create_table"]),
        *noted,
        Step("create role", engine_role(name), f"CREATE ROLE {role} LOGIN"),
        Step("join group", engine_role(name), f"GRANT {ENGINE_GROUP} TO {role}; GRANT {role} TO {ADMIN_ROLE}"),
        *_close(name, work.pool),
        Step("grant", "sql/grants.sql", queries.bundled("grants.sql").read_text(encoding="utf-8")),
        Step("write record", name, f"COMMENT ON DATABASE {takeover.name(name)} IS {literal(comment).as_string(None)}"),
        *(Step("leave alone", subject) for subject in work.own),
        *(Step("mind", remark) for remark in work.unrun),
        *(Step("accept", accepted) for accepted in work.accepted),
        *(Step("compare", f"{what}, unless a migration of your own makes it so") for what in work.unsure),
    )
