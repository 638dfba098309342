"""Adoptions: take in a database that other hands made, without losing anything of it.

Its schema is compared, object by object, with what the migrations make. What is missing is added, what is
different is refused with the SQL that mends it, what is its own is left alone. All of it happens in one
transaction, so that a kill at any moment leaves the database as it was. The database is a stranger's until
then: none of its triggers, rules or functions may run with an administrator's rights.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from posduif_cli.core import fingerprints, folders, judgements, migrations, names, ownerships, scripts
from posduif_cli.core.fingerprints import Thing
from posduif_cli.core.fleet import Fleet, wrong_state
from posduif_cli.core.placements import Placements
from posduif_cli.db import admin, connect, queries, record
from posduif_cli.db.admin import ENGINE_GROUP, engine_role
from posduif_cli.db.connect import ADMIN_ROLE, Session, literal, quoted
from posduif_cli.db.record import Intent, Record
from posduif_cli.errors import AccessDenied, ChecksumDiffers, Conflict, NotOurs, QueryFailed, TenantNotFound
from posduif_cli.models import Adoption, Plan, Server, State, Step, Tenant

BOOKKEEPING = "public.schema_migrations"
# Somebody's data or names stand against a statement: integrity constraints, and names that are taken.
STANDS_AGAINST = ("23", "42P07", "42710", "42701", "42P16", "42804", "42830")


@dataclass(frozen=True)
class _Database:
    oid: int
    owner: str
    trusted: bool
    open: bool
    template: bool
    comment: str | None
    may_own: bool
    path: str | None


@dataclass(frozen=True)
class _Work:
    """What an adoption does: statements as the login, then as posduif_admin; *before* are versions noted already.

    *pool* is how many connections the tenant's engine was given, or is.
    """

    found: _Database
    take: tuple[Step, ...]
    make: tuple[Step, ...]
    before: dict[str, str | None]
    own: tuple[str, ...]
    changes: tuple[str, ...]
    unrun: tuple[str, ...]
    pool: int


def adopt(
    fleet: Fleet,
    *,
    database: str,
    url: str | None = None,
    ignore_unreachable: bool = False,
    dry_run: bool = False,
) -> Adoption | Plan:
    """Take in a database as a tenant, or say in a Plan what that would do.

    A dry run reads only; like the real thing it has the migrations run in a scratch database of the server,
    and makes posduif's group roles where they are missing. Raises InvalidName, TenantNotFound, Conflict with
    every difference and the SQL that mends it, TenantExists as `tenants.create`, NotOurs, WrongState,
    AccessDenied, Busy.
    """
    names.tenant(database)
    server = fleet.server_for_new()
    with fleet.maintenance(server) as session:
        found = _find(fleet, session, database)
        if isinstance(found, Tenant):
            return Plan(()) if dry_run else _result(found, None)
        admin.ensure_roles(session)
        with session.lock(database):
            found = _find(fleet, session, database)
            if isinstance(found, Tenant):
                return Plan(()) if dry_run else _result(found, None)
            with Placements(fleet, ignore_unreachable=ignore_unreachable) as placements:
                placements.require_unique(server, database)
            _require_rights(session, database, found)
            intent = _intent(session, database)
            expected = fingerprints.reference(fleet, server)
            with connect.connect(server, database, command=fleet.command) as conn, conn.lock(database):
                with _inside(fleet, conn, expected, read_only=True):
                    work = _prepare(conn, fleet, found, expected)
                if dry_run:
                    return Plan(_steps(work, fleet, database, server, url))
                with _inside(fleet, conn, expected):
                    work = _prepare(conn, fleet, found, expected)
                    _carry_out(conn, fleet, work, intent)
                    migrations.grant(conn)
                    record.write(conn, _record(fleet, conn.server, conn.database, work, url))
        adopted = fleet.look(session, database)
        assert adopted is not None
        return _result(adopted, work)


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
    found = session.row(_Database, queries.load("adoptions")["find_database"], name=name)
    if found is None:
        raise TenantNotFound(
            f'there is no database "{name}" on server {session.server.name}',
            hint=f"posduif tenant create {name}",
        )
    # Of a tenant that was being dropped nothing is left but its role, once the database is not posduif's.
    dropped = found.owner != ADMIN_ROLE or record.parse(found.comment) is None
    if tenant is not None and tenant.state is not State.LOST and not (tenant.state is State.DROPPING and dropped):
        raise wrong_state(tenant)
    if found.template or not found.open:
        raise Conflict(
            f"database {name} {'is a template' if found.template else 'accepts no connections'}",
            hint=f"ALTER DATABASE {name} {'IS_TEMPLATE false' if found.template else 'ALLOW_CONNECTIONS true'};",
        )
    if found.path is not None:
        raise Conflict(
            f"database {name} sets {found.path}",
            why="functions of its own would run in place of PostgreSQL's, with an administrator's rights",
            hint=f"ALTER DATABASE {name} RESET search_path;",
        )
    return found


def _require_rights(session: Session, name: str, found: _Database) -> None:
    """Raise AccessDenied unless the login may make posduif_admin the owner of the database."""
    if found.owner == ADMIN_ROLE:
        return
    fixes = [] if found.may_own else [f"ALTER ROLE {quoted(session.login)} CREATEDB;"]
    if not session.value("SELECT pg_has_role(session_user, %(owner)s, 'USAGE')", owner=found.owner):
        if session.value("SELECT rolsuper FROM pg_roles WHERE rolname = %(owner)s", owner=found.owner):
            fixes.append(f"ALTER DATABASE {quoted(name)} OWNER TO {ADMIN_ROLE};")
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
    rows = session.tuples(
        "SELECT shobj_description(oid, 'pg_authid') FROM pg_roles WHERE rolname = %(name)s", name=role
    )
    intent = record.parse_intent(rows[0][0]) if rows else None
    if rows and (intent is None or intent.tenant != name):
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
            _lock(conn, [*(thing.name for thing in expected if thing.kind == "table"), BOOKKEEPING], "EXCLUSIVE")
        yield


def _lock(conn: Session, tables: Sequence[str], mode: str) -> list[str]:
    """Lock those of some tables that exist, so that nobody makes them something else meanwhile."""
    found = [table for (table,) in conn.tuples(queries.load("adoptions")["find_tables"], tables=tables)]
    for table in found:
        conn.script(f"LOCK TABLE {table} IN ACCESS {mode} MODE")
    return found


def _prepare(conn: Session, fleet: Fleet, found: _Database, expected: Sequence[Thing]) -> _Work:
    """Compare, refuse what stands against the adoption, and work out what it takes."""
    named = queries.load("adoptions")
    present = fingerprints.inventory(conn)
    judged = judgements.judge(expected, present)
    takeover = ownerships.plan(conn, found.owner, expected, present, judged.own)
    noted = _lock(conn, [BOOKKEEPING], "SHARE")
    if objections := [*conn.tuples(named["list_obstacles"], admin=ADMIN_ROLE), *judged.objections]:
        count = len(objections)
        raise Conflict(
            f"database {conn.database} stands against adoption in {count} point{'s' if count > 1 else ''}",
            why="; ".join([*(what for what, _ in objections), "nothing was changed"]),
            hint=[*dict.fromkeys(fix for _, fix in objections), f"posduif tenant adopt {conn.database}"],
        )
    before: dict[str, str | None] = dict(conn.tuples(named["list_noted"])) if noted else {}
    for file in fleet.folders.files:
        if before.get(file.version) not in (None, file.checksum):
            raise ChecksumDiffers(
                f"{file.path} changed after it was applied to {conn.database}",
                hint="restore the file and put the change into a new migration",
            )
    unrun = [
        f"migration {file.version}_{file.name} is noted as applied and was not run: "
        f"what it does to data, in line{'s' if len(lines) > 1 else ''} {', '.join(map(str, lines))}, is not done"
        for file in fleet.folders.files
        if file.version not in before and (lines := [s.line for s in file.up.statements if scripts.touches_data(s)])
    ]
    make = [*judged.renames, *(Step("make", f"{thing.kind} {thing.name}", thing.ddl) for thing in judged.missing)]
    return _Work(
        found=found,
        take=takeover.take,
        make=(*make, *takeover.keep),
        before=before,
        own=tuple(f"{thing.kind} {thing.name}" for thing in judgements.outermost(judged.own)),
        changes=(*takeover.changes, *unrun),
        unrun=tuple(unrun),
        pool=admin.decided_pool(conn, conn.database, _trusted(found)),
    )


def _trusted(found: _Database) -> Record | None:
    """Return the record that the database has already, unless a stranger could have written it."""
    return record.parse(found.comment) if found.trusted else None


def _close(name: str, pool: int) -> tuple[Step, ...]:
    """Close the database to PUBLIC and open it to its engine, in UTC."""
    database, role = ownerships.name(name), ownerships.name(engine_role(name))
    limit = admin.engine_limit(pool)
    return (
        Step("limit connections", engine_role(name), f"ALTER ROLE {role} CONNECTION LIMIT {limit}"),
        Step("close to public", name, f"REVOKE ALL ON DATABASE {database} FROM PUBLIC"),
        Step("open to engine", name, f"GRANT CONNECT ON DATABASE {database} TO {role}"),
        Step("set time zone", name, f"ALTER DATABASE {database} SET timezone = 'UTC'"),
        Step("set time zone", engine_role(name), f"ALTER ROLE {role} IN DATABASE {database} SET timezone = 'UTC'"),
    )


def _carry_out(conn: Session, fleet: Fleet, work: _Work, intent: Intent | None) -> None:
    """Take over, make what is missing, note every version as applied, make the engine's role."""
    name, bookkeeping = conn.database, queries.load("migrations")
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
                hint=["remove what stands against it:", f"{step.sql};"],
            ) from error
    conn.script(bookkeeping["create_table"])
    for file in fleet.folders.files:
        if file.version in work.before:
            complete = queries.load("adoptions")["complete_noted"]
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
        conn.script(f"ALTER ROLE {ownerships.name(engine_role(name))} LOGIN")
        record.put_intent(conn, engine_role(name), replace(intent, state=State.ACTIVE))
    admin.join_groups(conn, name)
    for step in _close(name, work.pool):
        conn.script(step.sql or "")


def _record(fleet: Fleet, server: Server, name: str, work: _Work, url: str | None) -> Record:
    versions = {*work.before, *fleet.folders.paths}
    earlier = record.parse(work.found.comment)
    kept = _trusted(work.found)  # phones enroll at the url
    return Record(
        State.ACTIVE,
        schema=max(versions, default=None),
        applied=folders.digest(versions),
        url=url or (kept and kept.url) or (server.url and server.url.replace("{tenant}", name)),
        created=(kept and kept.created) or datetime.now(UTC),
        note=earlier.note if earlier else work.found.comment,
        engine={**(kept.engine if kept else {}), "pool": work.pool},
    )


def _steps(work: _Work, fleet: Fleet, name: str, server: Server, url: str | None) -> tuple[Step, ...]:
    """List everything that an adoption does, in its order."""
    role = ownerships.name(engine_role(name))
    noted = [
        Step(
            "note as applied",
            file.version,
            f"INSERT INTO {BOOKKEEPING} (version, checksum) "  # noqa: S608
            f"VALUES ({literal(file.version).as_string(None)}, '{file.checksum}')",
        )
        for file in fleet.folders.files
        if file.version not in work.before
    ]
    comment = record.dump(_record(fleet, server, name, work, url))
    return (
        *work.take,
        *work.make,
        Step("make", f"table {BOOKKEEPING}", queries.load("migrations")["create_table"]),
        *noted,
        Step("create role", engine_role(name), f"CREATE ROLE {role} LOGIN"),
        Step("join group", engine_role(name), f"GRANT {ENGINE_GROUP} TO {role}; GRANT {role} TO {ADMIN_ROLE}"),
        *_close(name, work.pool),
        Step("grant", "sql/grants.sql", queries.bundled("grants.sql").read_text(encoding="utf-8")),
        Step(
            "write record", name, f"COMMENT ON DATABASE {ownerships.name(name)} IS {literal(comment).as_string(None)}"
        ),
        *(Step("leave alone", subject) for subject in work.own),
        *(Step("mind", remark) for remark in work.unrun),
    )
