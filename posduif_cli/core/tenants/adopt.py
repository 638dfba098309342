"""Adoptions: take in a database that other people made, without losing anything of it.

Its schema is compared, object by object, with what the migrations make. What is missing is added, what is
different is refused with the SQL that repairs it, what is its own is left alone. Migrations of the operator's own
whose effect is not there are applied afterwards. All else happens in one transaction, so that a kill at any moment
leaves the database as it was. Until then other people own the database: none of its triggers, rules or functions may
run with an administrator's rights. What would run them later on, when posduif writes to the tables, is refused unless
it is accepted by name.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, LiteralString

from posduif_cli.core import folders, names
from posduif_cli.core.fleet.fleet import Fleet, Traces, naming, origin, wrong_state
from posduif_cli.core.fleet.placement import Placements
from posduif_cli.core.fleet.run import who_is
from posduif_cli.core.fleet.steps import Deed, perform, plan, scripts
from posduif_cli.core.schema import apply, files, grants, inventory, parse, strangers
from posduif_cli.core.schema.files import File
from posduif_cli.core.schema.inventory import Thing
from posduif_cli.core.schema.strangers import ACCEPTED, BOOKKEEPING, Stranger
from posduif_cli.core.tenants import differences, settings, takeover, times
from posduif_cli.core.tenants.differences import Judgement, Objection
from posduif_cli.core.tenants.times import Choice
from posduif_cli.db import admin, connect, queries, record
from posduif_cli.db.admin import ENGINE_GROUP, engine_role
from posduif_cli.db.patience import Patience
from posduif_cli.db.quoting import literal, quoted
from posduif_cli.db.record import Intent, Record
from posduif_cli.db.session import ADMIN_ROLE, Session
from posduif_cli.errors import (
    AccessDenied,
    Blocked,
    Busy,
    ChecksumDiffers,
    Conflict,
    MigrationFailed,
    NotOurs,
    QueryFailed,
    Run,
    SuperuserSession,
    TenantNotFound,
)
from posduif_cli.models.runs import Plan, Step
from posduif_cli.models.servers import Server
from posduif_cli.models.tenants import Adoption, Engine, State, Tenant
from posduif_cli.notation import counted

VERSIONS = BOOKKEEPING[0]
UNDECIDED = Choice()
MAY_ACT: LiteralString = "SELECT pg_has_role(session_user, %(owner)s, 'USAGE')"
# Rows or names conflict with a statement: integrity constraints, and names that are taken.
CONFLICTS = ("23", "42P07", "42710", "42701", "42P16", "42804", "42830")


@dataclass(frozen=True)
class _Candidate:
    """A database that may be taken in: what is under its name, and what `find_database` says of it."""

    powerful: bool
    trusted: bool
    template: bool
    may_own: bool
    path: str | None
    there: Traces

    @property
    def kept(self) -> Record | None:
        """The record that the database has already; None where an ordinary role could have written it."""
        return record.parse(self.there.comment) if self.trusted else None


@dataclass(frozen=True)
class _Work:
    """What an adoption does: statements as the login, then as posduif_admin, and the record.

    *intent* is that on an engine's role that is there, *before* are versions noted already, *files* those to be noted
    and *rest* those to be run, *accepted* the names of other people's code that is taken in, *others* who still reaches
    the database. *told* are steps without SQL, for a dry run alone.
    """

    name: str
    intent: Intent | None
    take: Sequence[Step]
    make: Sequence[Step]
    times: Sequence[Step]
    before: Mapping[str, str | None]
    files: Sequence[File]
    rest: Sequence[File]
    record: Record
    own: Sequence[str]
    changes: Sequence[str]
    accepted: Sequence[str]
    others: Sequence[str]
    told: Sequence[Step]


@dataclass(frozen=True)
class _Wanted:
    """What a schema is compared with: what all files make, or what *some* versions make, where the rest is to be run.

    *sure* is False where that is not known without writing; then differences are told, not refused.
    """

    whole: Sequence[Thing]
    some: Sequence[Thing]
    versions: frozenset[str]
    sure: bool = True


@dataclass(frozen=True)
class Adopting:
    """A database to take in as a tenant; *accept* names other people's code to take in too, as the refusal does.

    *times* says what becomes of times that were written in another zone than UTC.
    """

    fleet: Fleet
    database: str
    url: str | None = None
    accept: Sequence[str] = ()
    ignore_unreachable: bool = False
    times: Choice = UNDECIDED

    def run(self) -> Adoption:
        """Take the database in, and apply the migrations of further folders whose effect it has not.

        Raises MigrationFailed for one of these, when the database is a tenant already. Raises InvalidName,
        TenantNotFound, Conflict with every difference and the SQL that repairs it, TenantExists as `create.create`,
        NotOurs, WrongState, AccessDenied, SuperuserSession, Busy.
        """
        fleet, database = self.fleet, names.tenant(self.database)
        server = fleet.server_for_new()
        with fleet.maintenance(server) as session:
            found = self._find(session)
            if isinstance(found, Tenant):
                return _result(found, None)
            _require_plain(session, found.there)
            admin.ensure_roles(session)
            with session.lock(database):
                found = self._find(session)
                if isinstance(found, Tenant):
                    return _result(found, None)
                self._require_possible(session, found)
                with (
                    connect.connect(server, database, command=fleet.command) as conn,
                    conn.lock(database),
                    ExitStack() as held,
                ):
                    wanted = self._wanted(conn)
                    with self._inside(conn):
                        self._prepare(conn, found, wanted)
                    Patience("adoption").until_none(lambda: _users(conn, wanted))
                    with _naming_users(conn, wanted), self._inside(conn, wanted):
                        if others := _await_others(conn, fleet.folders.lock_timeout):
                            raise Busy(
                                f"database {database} is being changed",
                                why=[
                                    f"a transaction {one} is open; what it makes cannot be seen yet" for one in others
                                ],
                                hint="try again when that is done",
                            )
                        work = self._prepare(conn, found, wanted)
                        perform(self._deeds(work), conn)
                        # Last, for others wait to choose; until the commit, after which they see it.
                        wish = work.record.port, work.record.url or origin(server, database)
                        port = held.enter_context(settings.port(session, database, kept=wish[0], url=wish[1]))
                        work = replace(work, record=_with_port(work.record, server, database, port))
                        perform([_noting(work)], conn)
                    work = _look_again(conn, wanted.whole, work)
                if work.rest:
                    self._migrate(server)
            adopted = fleet.look(session, database).tenant
            assert adopted is not None
            return _result(adopted, work)

    def plan(self) -> Plan:
        """Return the steps of `run`, having read only; raises as it does.

        What further folders' migrations make can be known only by running them. So the database is compared with what
        the bundled ones make, and each difference is a step "compare" in place of an error; each of those files is a
        step "migrate".
        """
        fleet, database = self.fleet, names.tenant(self.database)
        server = fleet.server_for_new()
        with fleet.maintenance(server) as session:
            found = self._find(session)
            if isinstance(found, Tenant):
                return Plan(())
            _require_plain(session, found.there)
            if session.member is not None or session.standby:  # raises as `admin.ensure_roles`, but makes no role
                session.require_admin()
            making = admin.role_statements(session, admin.missing_roles(session))
            roles = [Step("make", "posduif's roles", sql) for sql in making]
            self._require_possible(session, found)
            bundled, versions = inventory.snapshot(), frozenset(fleet.folders.bundled)
            wanted = _Wanted(bundled, bundled, versions, sure=not fleet.folders.further)
            with connect.connect(server, database, command=fleet.command) as conn:
                with self._inside(conn):
                    work = self._prepare(conn, found, wanted)
                return plan([Deed(admin.ensure_roles, roles), *self._deeds(work), _noting(work)])

    def spell(self) -> str:
        """Return the SQL that a superuser runs, once, so that this login may take the database in; nothing is changed.

        Object by object: PostgreSQL refuses REASSIGN OWNED for what the bootstrap superuser owns. Raises as `run`.
        """
        fleet, database = self.fleet, names.tenant(self.database)
        with fleet.maintenance(server := fleet.server_for_new()) as session:
            found = self._find(session)
            if isinstance(found, Tenant):
                return f"-- {database} is a tenant already"
            _require_plain(session, found.there)
            login, owner = quoted(session.login), found.there.owner or ""
            lines = [f"{sql};" for sql in admin.role_statements(session, admin.missing_roles(session))]
            lines += [] if found.may_own else [f"ALTER ROLE {login} CREATEDB;"]
            if owner != ADMIN_ROLE and not session.value(MAY_ACT, owner=owner):
                # Not to posduif_admin: with it a record that an ordinary role wrote would be believed.
                lines.append(f"ALTER DATABASE {quoted(database)} OWNER TO {login};")
            expected = inventory.snapshot()
            with (
                connect.connect(server, database, command=fleet.command) as conn,
                self._inside(conn),
            ):
                present = inventory.inventory(conn)
                owners = takeover.owners(conn, ADMIN_ROLE, present)
                own = differences.judge(expected, present).own
                inside = takeover.out_of_reach(conn, owners, expected, present, own)
            lines += [f"\\connect {quoted(database)}"] * bool(inside) + [f"{step.sql};" for step in inside]
        head = f"-- What a superuser runs once, by psql in database postgres, so that {login} may adopt {database}:"
        return "\n".join([head, *lines] if lines else [f"-- {login} may adopt {database} as it is"])

    @property
    def _again(self) -> tuple[str, ...]:
        """The command once more, with its options."""
        given = [("--url", self.url), ("--times-from", self.times.zone), *(("--accept", name) for name in self.accept)]
        words = [word for option, value in given if value for word in (option, value)]
        return ("tenant", "adopt", self.database, *words, *["--keep-times"] * self.times.kept)

    def _wanted(self, conn: Session) -> _Wanted:
        """Return what to compare with; what other tools noted as applied counts as run."""
        fleet, server = self.fleet, conn.server
        bundled = frozenset(fleet.folders.bundled)
        if not fleet.folders.further:
            return _Wanted(inventory.snapshot(), inventory.snapshot(), bundled)
        named = queries.load("tenants/adopt")
        with self._inside(conn):
            there = conn.tuples(named["find_tables"], tables=[VERSIONS])
            noted = {version for version, _ in conn.tuples(named["list_noted"])} if there else set()
        some = bundled | (noted & set(fleet.folders.paths))
        return _Wanted(
            inventory.reference(fleet, server),
            inventory.snapshot() if some == bundled else inventory.reference(fleet, server, some),
            some,
        )

    def _migrate(self, server: Server) -> None:
        """Apply the migrations that were not noted."""
        with self.fleet.enter(server, self.database) as conn:
            try:
                apply.up(conn, folders=self.fleet.folders)
            except MigrationFailed as error:
                then = Run("migrate", "up", self.database, lead=f"{self.database} is a tenant now; then")
                error.hints = (*error.hints, then)
                raise

    def _find(self, session: Session) -> _Candidate | Tenant:
        """Return the database to adopt, or the active tenant that it is already."""
        name, there = self.database, self.fleet.look(session, self.database)
        tenant, owner = there.tenant, there.owner
        if tenant is not None and tenant.state is State.ACTIVE:
            return tenant
        if owner is None:
            raise TenantNotFound(
                f'there is no database "{name}" on server {session.server.name}',
                hint=Run("tenant", "create", name),
            )
        # Of a tenant that was being dropped only the role is left, once the database is not posduif's.
        dropped = tenant is not None and tenant.state is State.DROPPING and there.record is None
        if tenant is not None and tenant.state is not State.LOST and not dropped:
            raise wrong_state(tenant)
        found = _Candidate(there=there, **session.dicts(queries.load("tenants/adopt")["find_database"], name=name)[0])
        typing = f"{owner} types: ALTER DATABASE {quoted(name)}"
        if found.template:
            raise Conflict(f"database {name} is a template", hint=f"{typing} IS_TEMPLATE false;")
        if not there.open:
            raise Conflict(f"database {name} accepts no connections", hint=f"{typing} ALLOW_CONNECTIONS true;")
        if found.path is not None:
            raise Conflict(
                f"database {name} sets {found.path}",
                why="functions of its own would run in place of PostgreSQL's, with an administrator's rights",
                hint=f"{typing} RESET search_path;",
            )
        return found

    def _require_possible(self, session: Session, found: _Candidate) -> None:
        """Raise unless name, rights and role allow the adoption."""
        with Placements(self.fleet, ignore_unreachable=self.ignore_unreachable) as placements:
            placements.require_unique(session.server, found.there.name)
        _require_rights(session, found)
        _require_role(found.there)

    @contextmanager
    def _inside(self, conn: Session, wanted: _Wanted | None = None) -> Iterator[None]:
        """Run the block in one transaction as the login itself; it only reads where no *wanted* tables are locked."""
        limits = self.fleet.folders
        with conn.transaction(
            read_only=wanted is None, lock_timeout=limits.lock_timeout, statement_timeout=limits.statement_timeout
        ):
            conn.execute("SET LOCAL ROLE NONE")
            conn.execute("SET LOCAL search_path = pg_catalog")
            if wanted is not None:
                _lock(conn, _tables(wanted), "EXCLUSIVE")
            yield

    def _prepare(self, conn: Session, found: _Candidate, wanted: _Wanted) -> _Work:
        """Compare, refuse what is against the adoption, and work out what it takes."""
        present, sure = inventory.inventory(conn), wanted.sure
        expected, versions = wanted.whole, {*self.fleet.folders.paths}
        judged = differences.judge(expected, present)
        if not sure or not _has_all(wanted, judged):
            expected, versions = wanted.some, {*wanted.versions}
            judged = differences.judge(expected, present)
        code = _strangers(conn, expected, present)
        acceptable = {*self.accept, *(strangers.accepted(found.kept.extra) if found.kept else ())}
        taken = [stranger for stranger in code if stranger.name in acceptable and stranger.acceptable]
        owners = takeover.owners(conn, found.there.owner or "", present)
        functions = list(dict.fromkeys(function for stranger in taken for function in stranger.takeable))
        take, keep, changes = takeover.plan(conn, owners, expected, present, judged.own, functions)
        noted = _lock(conn, [VERSIONS], "SHARE")
        refused = [stranger for stranger in code if stranger not in taken]
        if objections := _objections(conn, judged.objections if sure else (), refused):
            raise _refusal(conn, owners, objections, self._again)
        tables = [thing.name for thing in expected if thing.kind == "table" and thing.name not in BOOKKEEPING]
        there = [thing.name for thing in present if thing.kind == "table" and thing.name in tables]
        moments = times.judge(conn, self.times, present, there, self._again)
        before: dict[str, str | None] = dict(conn.tuples(queries.load("tenants/adopt")["list_noted"])) if noted else {}
        chosen = [file for file in files.of(self.fleet.folders).all if file.version in versions]
        unrun = list(self._unrun(before, chosen))
        others = list(takeover.remaining(conn, engine_role(self.database)))
        rest = [file for file in files.of(self.fleet.folders).all if file.version not in {*versions, *before}]
        own = [f"{thing.kind} {thing.name}" for thing in differences.outermost(judged.own)]
        accepted = [stranger.name for stranger in taken]
        told = [
            *(Step("leave alone", thing) for thing in own),
            *(Step("mind", what) for what in unrun),
            *(Step("accept", name) for name in accepted),
            *(Step("tell", what) for what in moments.changes),
            *(Step("look after", who) for who in others),
            *(Step("migrate", f"{file.version}_{file.name}", file.up.text.strip()) for file in rest),
        ]
        if not sure:
            unless = "unless a migration of your own makes it so"
            told += [Step("compare", f"{objection.what}, {unless}") for objection in judged.objections]
        return _Work(
            name=self.database,
            intent=found.there.intent,
            take=take,
            make=[
                *judged.adjusted,
                *judged.renames,
                *(Step("make", f"{t.kind} {t.name}", t.ddl) for t in judged.missing),
                *keep,
            ],
            times=moments.steps,
            before=before,
            files=chosen,
            rest=rest,
            record=self._record(conn, found, {*before, *versions}, accepted),
            own=own,
            changes=[
                *(_adjusted(step) for step in judged.adjusted),
                *changes,
                *moments.changes,
                *unrun,
                *(f"migration {file.version}_{file.name} was applied" for file in rest),
            ],
            accepted=accepted,
            others=others,
            told=told,
        )

    def _unrun(self, before: Mapping[str, str | None], chosen: Sequence[File]) -> Iterator[str]:
        """Yield what *chosen* files would do to data and have not; raises ChecksumDiffers for a file that changed."""
        for file in files.of(self.fleet.folders).all:
            if before.get(file.version) not in (None, file.checksum):
                raise ChecksumDiffers(
                    f"{file.path} changed after it was applied to {self.database}",
                    hint="restore the file and put the change into a new migration",
                )
        for file in chosen:
            lines = [s.line for s in file.up.statements if parse.touches_data(s)]
            if file.version not in before and lines:
                where = f"line{'s' if len(lines) > 1 else ''} {', '.join(map(str, lines))}"
                noted = f"migration {file.version}_{file.name} is noted as applied and was not run"
                yield f"{noted}: what it does to data, in {where}, is not done"

    def _deeds(self, work: _Work) -> Iterator[Deed]:
        """Yield everything that an adoption does, in its order, for one transaction in the database."""
        name, engine = self.database, engine_role(self.database)
        database, role = takeover.name(name), takeover.name(engine)
        yield scripts(work.take)
        yield Deed(lambda conn: _make(conn, work.make), work.make)
        yield scripts(work.times)
        named = queries.load("schema/history")
        bookkeeping = "\n".join((named["create_table"], named["complete_table"]))
        yield Deed(lambda conn: conn.script(bookkeeping), [Step("make", f"table {VERSIONS}", bookkeeping)])
        noting = f"INSERT INTO {VERSIONS} (version, checksum) VALUES ({{}}, '{{}}')"  # noqa: S608
        noted = [
            Step("note as applied", file.version, noting.format(literal(file.version).as_string(None), file.checksum))
            for file in work.files
            if file.version not in work.before
        ]
        yield Deed(lambda conn: _note(conn, work), noted)
        making = Step("create role", engine, f"CREATE ROLE {role} LOGIN")
        yield Deed(lambda conn: _make_role(conn, work.intent), [making])
        joining = Step("join group", engine, f"GRANT {ENGINE_GROUP} TO {role}; GRANT {role} TO {ADMIN_ROLE}")
        yield Deed(lambda conn: admin.join_groups(conn, name), [joining])
        limit = f"ALTER ROLE {role} CONNECTION LIMIT {admin.engine_limit(work.record.given)}"
        yield scripts(
            [
                Step("limit connections", engine, limit),
                Step("close to public", name, f"REVOKE ALL ON DATABASE {database} FROM PUBLIC"),
                Step("open to engine", name, f"GRANT CONNECT ON DATABASE {database} TO {role}"),
                # The former owner must not decide which role a statement is run by.
                Step("reset", name, f"ALTER DATABASE {database} RESET role"),
                Step("reset", name, f"ALTER DATABASE {database} RESET session_authorization"),
                Step("set time zone", name, f"ALTER DATABASE {database} SET timezone = 'UTC'"),
                Step("set time zone", engine, f"ALTER ROLE {role} IN DATABASE {database} SET timezone = 'UTC'"),
            ]
        )
        granting = Step("grant", "sql/grants.sql", queries.bundled("grants.sql").read_text(encoding="utf-8"))
        yield Deed(grants.run, [granting])

    def _record(self, conn: Session, found: _Candidate, versions: set[str], accepted: Sequence[str]) -> Record:
        """Return the record of the new tenant; what the database's own record says is kept where it is trusted."""
        comment, kept = found.there.comment, found.kept or Record(State.ACTIVE)
        earlier = record.parse(comment)
        extra = {key: value for key, value in kept.extra.items() if key != ACCEPTED}
        given, usual = admin.decided(conn, conn.database, found.kept), admin.configured(conn.server)
        given = replace(given, redis_db=usual.redis_db if given.redis_db is None else given.redis_db)
        return Record(
            State.ACTIVE,
            schema=max(versions, default=None),
            applied=folders.digest(versions),
            url=self.url or kept.url,
            created=kept.created or found.there.at,
            note=earlier.note if earlier else comment,
            extra=extra | ({ACCEPTED: [*accepted]} if accepted else {}),
            engine=kept.engine,
        ).giving(given)


def _has_all(wanted: _Wanted, judged: Judgement) -> bool:
    """Return whether the effect of further folders' migrations is there, though nothing notes that they were run."""
    ours = {(thing.kind, thing.name) for thing in wanted.some}
    return not judged.objections and all((thing.kind, thing.name) in ours for thing in judged.missing)


def _with_port(noted: Record, server: Server, database: str, port: int | None) -> Record:
    """Return the record with the engine's port, and a url that may need it."""
    engine = {key: value for key, value in noted.engine.items() if key != "port"}
    url = noted.url or origin(server, database, port)
    return replace(noted, engine=engine, url=url).giving(Engine(port=port))


def _noting(work: _Work) -> Deed:
    """Return what writes the record, after all else."""
    comment = literal(record.dump(work.record)).as_string(None)
    writing = Step("write record", work.name, f"COMMENT ON DATABASE {takeover.name(work.name)} IS {comment}")
    return Deed(lambda conn: record.write(conn, work.record), [writing, *work.told])


def _adjusted(step: Step) -> str:
    dropped = step.subject.startswith("index ")
    return f"{step.subject} {'was dropped: another took its place' if dropped else 'is now as the migrations make it'}"


def _note(conn: Session, work: _Work) -> None:
    """Note versions as applied, with their checksums."""
    add, complete = queries.load("schema/history")["add_applied"], queries.load("tenants/adopt")["complete_noted"]
    for file in work.files:
        if file.version in work.before:
            conn.execute(complete, version=file.version, checksum=file.checksum)
        else:
            conn.execute(add, version=file.version, checksum=file.checksum, duration_ms=None, applied_by=conn.login)


def _tables(wanted: _Wanted) -> list[str]:
    return [*(thing.name for thing in wanted.whole if thing.kind == "table"), VERSIONS]


def _users(conn: Session, wanted: _Wanted) -> list[tuple[Any, ...]]:
    """Return the other sessions that have a lock on one of the tables."""
    return conn.tuples(queries.load("tenants/adopt")["find_users"], tables=_tables(wanted))


@contextmanager
def _naming_users(conn: Session, wanted: _Wanted) -> Iterator[None]:
    """Say in a Blocked that the block raises which sessions have the tables."""
    try:
        yield
    except Blocked as error:
        if found := _users(conn, wanted):
            error.reasons = (f"in the way: {', '.join(who_is(*row) for row in found)}", *error.reasons)
        raise


def _await_others(conn: Session, limit: timedelta | None = None) -> list[str]:
    """Wait for other people's transactions in the database; return those that are open when the time is over."""
    question = queries.load("tenants/adopt")["list_open_transactions"]
    return [other for (other,) in Patience("adoption", limit=limit).until_none(lambda: conn.tuples(question))]


def _look_again(conn: Session, expected: Sequence[Thing], work: _Work) -> _Work:
    """Look for other people's code that was committed meanwhile, by rights that the adoption has taken since.

    Raises Conflict, though the database is a tenant now, with what to type; names transactions that are still open.
    """
    others = _await_others(conn)
    present = inventory.inventory(conn)
    code = _strangers(conn, expected, present)
    if late := [stranger for stranger in code if stranger.name not in work.accepted]:
        raise Conflict(
            f"database {conn.database} was adopted, and in this moment another session gave it code",
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
    return replace(work, changes=[*work.changes, *told])


def _strangers(conn: Session, expected: Sequence[Thing], present: Sequence[Thing]) -> tuple[Stranger, ...]:
    tables = [*(thing.name for thing in expected if thing.kind == "table"), *BOOKKEEPING]
    # A function that differs is refused as such, not once more for each trigger that runs it.
    known = strangers.same(expected, present) | {(t.kind, t.name) for t in expected if t.kind == "function"}
    return strangers.find(conn, tables, strangers.Trust(known))


def _require_plain(session: Session, there: Traces) -> None:
    """Raise SuperuserSession where a superuser's session would enter a database that posduif did not make.

    SET ROLE is no fence for it: code in the database could take on the login's own role. What posduif made, and what
    lost its record or its owner since, has an engine's role that posduif_admin made, which says so, and nothing in it
    belongs to another role than posduif_admin and superusers. No other login can make either so.
    """
    name = there.name
    if not session.value("SELECT rolsuper FROM pg_roles WHERE rolname = session_user"):
        return
    if session.value(queries.load("tenants/adopt")["was_made_by_posduif"], name=name):
        _require_role(there)
        if there.intent is not None:
            return
    host, port = connect.address(session)
    raise SuperuserSession(
        f"a superuser's session does not adopt database {name}, which posduif did not make",
        why=[f"{session.login} is a superuser", "code in the database could use a superuser's rights"],
        hint=[
            Run("server", "init", "--login", "NAME", *naming(session.server)),
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
        own=tuple(work.own) if work else (),
        changes=tuple(work.changes) if work else _pending(tenant),
        others=tuple(work.others) if work else (),
    )


def _pending(tenant: Tenant) -> tuple[str, ...]:
    """Say that migrations are left, as when an adoption was killed before it ran the operator's own."""
    if not tenant.pending:
        return ()
    return (str(Run("migrate", "up", tenant.tenant, lead=f"{counted(tenant.pending, 'migration')} pending")),)


def _require_rights(session: Session, found: _Candidate) -> None:
    """Raise AccessDenied unless the login may make posduif_admin the owner of the database."""
    name, owner = found.there.name, found.there.owner or ""
    if owner == ADMIN_ROLE:
        return
    fixes = [] if found.may_own else [f"ALTER ROLE {quoted(session.login)} CREATEDB;"]
    away = not session.value(MAY_ACT, owner=owner)
    if away and not found.powerful:
        fixes.append(f"GRANT {quoted(owner)} TO {quoted(session.login)};")
    if away and found.powerful:
        raise AccessDenied(
            f"{session.login} may not take over database {name}, which belongs to {owner}",
            why=f"{owner} has a superuser's rights, and nobody should become a member of that",
            hint=[takeover.printing(name), Run("tenant", "adopt", name, lead="then")],
        )
    if fixes:
        raise AccessDenied(
            f"{session.login} may not take over database {name}, which belongs to {owner}",
            why=f"that takes a superuser, or CREATEDB and membership in {owner} and {ADMIN_ROLE}",
            hint=[f"a superuser types: {fix}" for fix in fixes],
        )


def _require_role(there: Traces) -> None:
    """Raise NotOurs where the engine's role is there and not posduif's."""
    role = engine_role(there.name)
    if there.has_role and there.intent is None:
        raise NotOurs(
            f"role {role} exists and is not posduif's",
            why="the tenant's engine would get its password and rights",
            hint=f"a superuser types: ALTER ROLE {role} RENAME TO {role}_before;",
        )


def _lock(conn: Session, tables: Sequence[str], mode: str) -> list[str]:
    """Lock those of some tables that exist, so that no session makes them something else meanwhile; return them."""
    found = [table for (table,) in conn.tuples(queries.load("tenants/adopt")["find_tables"], tables=tables)]
    for table in found:
        conn.script(f"LOCK TABLE {table} IN ACCESS {mode} MODE")
    return found


def _objections(conn: Session, judged: Sequence[Objection], refused: Sequence[Stranger]) -> list[Objection]:
    """Return what is against an adoption: only the relations that go aside, if any, as what is on them goes along."""
    named = queries.load("tenants/adopt")
    objections = [
        *(Objection(what, fix, owner="a superuser") for what, fix in conn.tuples(named["list_event_triggers"])),
        *(Objection(what, fix, VERSIONS) for what, fix in conn.tuples(named["list_obstacles"])),
        *judged,
        *(
            Objection(f"{s.name} {s.why}", s.fix, owner=s.owner, accept=s.name if s.acceptable else None)
            for s in refused
        ),
    ]
    return [objection for objection in objections if differences.ASIDE in (objection.fix or "")] or objections


def _refusal(
    conn: Session, owners: Mapping[tuple[str, str], str], objections: Sequence[Objection], again: Sequence[str]
) -> Conflict:
    """Say what is against an adoption, one point per line, and who types what in which database to remove each."""
    name, count = conn.database, len(objections)
    by_name = {bare: role for (_, bare), role in owners.items()}
    hints = []
    for objection in objections:
        owner = objection.owner or by_name.get(objection.subject or "", ADMIN_ROLE)
        who = f"a member of {owner}" if owner == ADMIN_ROLE else owner
        if objection.fix:
            hints.append(f"{who} types, in {name}: {objection.fix};")
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


def _make(conn: Session, make: Sequence[Step]) -> None:
    """Make what is missing, from now on as posduif_admin; raises Conflict where rows or names are in the way."""
    conn.execute("SET LOCAL ROLE posduif_admin")
    conn.execute("SET LOCAL check_function_bodies = off")
    for step in make:
        try:
            conn.script(step.sql or "")
        except QueryFailed as error:
            if not (error.sqlstate or "").startswith(CONFLICTS):
                raise
            raise Conflict(
                f"{step.subject} cannot be made in {conn.database}; the database was not changed",
                why=error.message.partition(": ")[2],
                hint=[
                    f"remove what conflicts with it, in {conn.database}, with: {step.sql};",
                    Run("tenant", "adopt", conn.database),
                ],
            ) from error


def _make_role(conn: Session, intent: Intent | None) -> None:
    """Make the engine's role with its intent, or have the one that is there log in again."""
    name = conn.database
    if intent is None:
        admin.create_engine_role(conn, Intent(name, State.ACTIVE, admin.new_nonce()))
    else:
        admin.open_role(conn, name)
        record.put_intent(conn, engine_role(name), replace(intent, state=State.ACTIVE))
