"""Roles and databases: the statements that PostgreSQL wants composed, because names cannot be parameters."""

import secrets
import string
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, LiteralString

from psycopg.sql import Composed

from posduif_cli.db import queries
from posduif_cli.db.connect import MAINTENANCE
from posduif_cli.db.pipeline import Pipeline
from posduif_cli.db.quoting import compose, identifier, literal
from posduif_cli.db.record import Intent, Record, put_intent
from posduif_cli.db.session import ADMIN_ROLE, Session
from posduif_cli.errors import AccessDenied, NotOurs, Run, UnsafeServer
from posduif_cli.models.servers import Server
from posduif_cli.models.tenants import Engine

ENGINE_GROUP = "posduif_engine"
SUPPORT_GROUP = "posduif_support"
HEALTH_GROUP = "posduif_health"
CRON_GROUP = "posduif_cron"
BACKUP_GROUP = "posduif_backup"
# Logins of people and programs, in every tenant's database.
PEOPLE = (SUPPORT_GROUP, HEALTH_GROUP, CRON_GROUP, BACKUP_GROUP)
ROLE_COMMENTS = {
    ADMIN_ROLE: "posduif: owns every tenant database and its objects",
    ENGINE_GROUP: "posduif: what a sync engine may do inside its tenant's database",
    SUPPORT_GROUP: "posduif: what people at the support desk may do inside every tenant's database",
    HEALTH_GROUP: "posduif: what monitoring may read inside every tenant's database",
    CRON_GROUP: "posduif: what nightly jobs may do inside every tenant's database: health, and the purge of tokens",
    BACKUP_GROUP: "posduif: reads everything in every tenant's database, for backups",
}
LOGIN_COMMENT = "posduif: a login for administrators of tenants"
ENGINE_POOL = 5  # connections of an engine whose configuration says nothing else
WEB_POOL = 16  # connections of the web-api beside an engine: it opens one per processor core, on most hosts fewer
PASSWORD_ALPHABET = string.ascii_letters + string.digits + "_-"


def engine_role(tenant: str) -> str:
    """Name the login role of a tenant's sync engine."""
    return f"{tenant}_engine"


def new_password() -> str:
    """Make an engine's password: 32 characters that the engine's unquoted connection string survives."""
    return "".join(secrets.choice(PASSWORD_ALPHABET) for _ in range(32))


def new_nonce() -> int:
    """Make the connection limit that marks a database under construction as ours."""
    return 1_000_000 + secrets.randbelow(2_000_000_000)


def ensure_roles(session: Session) -> None:
    """Make `posduif_admin` and the groups where they do not exist, and become the former.

    Raises AccessDenied when the login may not, StandbyServer on a standby, NotOurs for a role of that name
    without our comment.
    """
    if session.member is None and not session.standby:
        _make_admin(session)
    session.require_admin()
    if missing_roles(session):
        with session.lock(ENGINE_GROUP), session.transaction():
            for statement in _role_statements(session, missing_roles(session)):
                session.execute(statement)


def role_statements(session: Session, missing: Sequence[str]) -> list[str]:
    """Spell the statements that make the missing roles, for a superuser to run.

    The groups are made as `posduif_admin`, or since PostgreSQL 16 it could not give them to anyone.
    """
    groups = [role for role in missing if role != ADMIN_ROLE]
    texts = [session.text(part) for part in _role_statements(session, [role for role in missing if role == ADMIN_ROLE])]
    if groups:
        inner = [session.text(part) for part in _role_statements(session, groups)]
        texts += [f"SET ROLE {ADMIN_ROLE}", *inner, "RESET ROLE"]
    return texts


def closing_statements() -> list[str]:
    """Return the statements that close the maintenance database to all but those who work with tenants."""
    people = ", ".join((ADMIN_ROLE, *PEOPLE))
    return [
        f"GRANT CONNECT ON DATABASE {MAINTENANCE} TO {people}",
        f"REVOKE CONNECT ON DATABASE {MAINTENANCE} FROM PUBLIC",
    ]


def local_login_statements(conn: Any, login: str) -> Iterator[Composed]:
    """Yield what makes the embedded server's own login, as far as it is missing, for its superuser to run."""
    version = conn.info.server_version
    options: LiteralString = " WITH INHERIT TRUE, SET TRUE" if version >= 160000 else ""
    found = {role for (role,) in conn.execute("SELECT rolname::text FROM pg_roles").fetchall()}
    if ADMIN_ROLE not in found:
        yield from _making(ADMIN_ROLE)
    if login not in found:
        yield compose("CREATE ROLE {login} LOGIN", login=identifier(login))
        text = literal("posduif: the login of this machine's commands")
        yield compose("COMMENT ON ROLE {login} IS {text}", login=identifier(login), text=text)
    wanted: tuple[tuple[str, str, LiteralString], ...] = (
        (ADMIN_ROLE, login, options),
        ("pg_monitor", login, ""),
        ("pg_monitor", ADMIN_ROLE, ""),
        *(("pg_monitor", role, "") for role in found & {HEALTH_GROUP}),
    )
    for group, role, how in wanted:
        is_member = "SELECT 1 FROM pg_auth_members WHERE roleid = to_regrole(%s) AND member = to_regrole(%s)"
        if conn.execute(is_member, [group, role]).fetchone() is None:
            yield compose("GRANT {group} TO {role}" + how, group=identifier(group), role=identifier(role))


def _making(role: str) -> Iterator[Composed]:
    powers: LiteralString = " CREATEDB CREATEROLE" if role == ADMIN_ROLE else ""
    yield compose("CREATE ROLE {role} NOLOGIN" + powers, role=identifier(role))
    yield compose("COMMENT ON ROLE {role} IS {text}", role=identifier(role), text=literal(ROLE_COMMENTS[role]))


def _role_statements(session: Session, roles: Sequence[str]) -> Iterator[Composed]:
    for role in roles:
        yield from _making(role)
        if role == ADMIN_ROLE:
            options: LiteralString = " WITH INHERIT TRUE, SET TRUE" if session.version >= 160000 else ""
            names = {"role": identifier(role), "login": identifier(session.login)}
            yield compose("GRANT {role} TO {login}" + options, **names)


def missing_roles(session: Session) -> list[str]:
    """Return which of our roles the server lacks; raises NotOurs for one that lacks posduif's comment."""
    found = session.tuples(queries.load("db/admin")["list_roles"], roles=list(ROLE_COMMENTS))
    for role, comment, may_log_in in found:
        if comment != ROLE_COMMENTS[role]:
            raise NotOurs(
                f"role {role} exists on server {session.server.name} and is not posduif's",
                why="it lacks posduif's comment, and its members would get what tenants hold",
                hint=f"a superuser drops it, or types: COMMENT ON ROLE {role} IS '{_quoted(ROLE_COMMENTS[role])}';",
            )
        if may_log_in:
            raise NotOurs(
                f"role {role} may log in on server {session.server.name}, which no role of posduif's may",
                why="a login that knows its password needs no membership",
                hint=f"a superuser types: ALTER ROLE {role} NOLOGIN PASSWORD NULL;",
            )
    return [role for role in ROLE_COMMENTS if role not in {name for name, *_ in found}]


def _quoted(text: str) -> str:
    return text.replace("'", "''")


def _make_admin(session: Session) -> None:
    named = queries.load("db/admin")
    if not session.value(named["may_create"]):
        raise AccessDenied(
            f"{session.login} may not create databases and roles on server {session.server.name}",
            why=f"{ADMIN_ROLE} does not exist there yet, and making it takes CREATEDB and CREATEROLE",
            hint=f"a superuser types: ALTER ROLE {session.login} CREATEDB CREATEROLE;",
        )
    with session.lock(ADMIN_ROLE), session.transaction():
        if not session.tuples(named["list_roles"], roles=[ADMIN_ROLE]):
            for statement in _role_statements(session, [ADMIN_ROLE]):
                session.execute(statement)
    session.member = session.become_admin()
    session.heir = session.value(named["does_inherit"], role=ADMIN_ROLE)


def create_login(session: Session, name: str, password: str | None) -> None:
    """Make a login that is a member of posduif_admin and nothing else; without *password* it has none."""
    parts = {"name": identifier(name), "admin": identifier(ADMIN_ROLE), "text": literal(LOGIN_COMMENT)}
    options: LiteralString = " WITH INHERIT TRUE, SET TRUE" if session.version >= 160000 else ""
    with session.transaction(prelude=["SET LOCAL ROLE none"]):  # posduif_admin cannot give itself away
        session.execute(compose("CREATE ROLE {name} LOGIN", **parts))
        session.execute(compose("COMMENT ON ROLE {name} IS {text}", **parts))
        session.execute(compose("GRANT {admin} TO {name}" + options, **parts))
        if password:
            verifier = literal(session.scram(password, name))
            session.execute(compose("ALTER ROLE {name} PASSWORD {verifier}", verifier=verifier, **parts))


def create_engine_role(session: Session, intent: Intent) -> None:
    """Make a tenant's engine role together with its intent, in one transaction.

    It is not waited for on the disk: whatever comes after it in the WAL, CREATE DATABASE first of all, takes it along.
    """
    role = engine_role(intent.tenant)
    pipeline = session.pipeline()
    with session.transaction(prelude=["SET LOCAL synchronous_commit = off"], first=pipeline):
        pipeline.execute(compose("CREATE ROLE {role} LOGIN", role=identifier(role)))
        put_intent(pipeline, role, intent)
        pipeline.send()


def equip_role(session: Session | Pipeline, tenant: str, given: Engine) -> None:
    """Give the engine's role what it has for life: its groups, its time zone, and its connection limit."""
    join_groups(session, tenant)
    name, role = identifier(tenant), identifier(engine_role(tenant))
    session.execute(compose("ALTER ROLE {role} IN DATABASE {name} SET timezone = 'UTC'", role=role, name=name))
    limit_connections(session, tenant, given)


def join_groups(session: Session | Pipeline, tenant: str) -> None:
    """Let the engine's role use its group's rights, and posduif see and end the engine's sessions."""
    role = identifier(engine_role(tenant))
    options = " WITH INHERIT TRUE, SET FALSE" if session.version >= 160000 else ""
    session.execute(compose("GRANT {group} TO {role}", group=identifier(ENGINE_GROUP), role=role))
    session.execute(compose("GRANT {role} TO {admin}" + options, role=role, admin=identifier(ADMIN_ROLE)))


def create_database(session: Session, intent: Intent, template: str = "template0") -> None:
    """Create a tenant's database as a copy of *template*, closed and marked with the intent's nonce."""
    session.execute(
        compose(
            """CREATE DATABASE {name} OWNER {owner} TEMPLATE {source} ENCODING 'UTF8'
               ALLOW_CONNECTIONS false CONNECTION LIMIT {nonce}""",
            name=identifier(intent.tenant),
            owner=identifier(ADMIN_ROLE),
            source=identifier(template),
            nonce=literal(intent.nonce),
        )
    )


def create_template(session: Session, name: str) -> None:
    """Create a database that tenants are copied from, closed to PUBLIC from its first moment.

    What another role wrote into it would be in every tenant. It stays open to administrators: pg_upgrade refuses a
    server with a database that takes no connections.
    """
    session.execute(
        compose(
            "CREATE DATABASE {name} OWNER {owner} TEMPLATE template0 ENCODING 'UTF8' ALLOW_CONNECTIONS false",
            name=identifier(name),
            owner=identifier(ADMIN_ROLE),
        )
    )
    with session.transaction():
        session.execute(compose("REVOKE ALL ON DATABASE {name} FROM PUBLIC", name=identifier(name)))
        session.execute(compose("ALTER DATABASE {name} ALLOW_CONNECTIONS true", name=identifier(name)))


def open_database(session: Session | Pipeline, tenant: str) -> None:
    """Close a new database to PUBLIC, pin it to UTC, open it to its engine and to people; part of a transaction.

    `grants.sql` opens it to people, too, but only with a migration, and a copy of a template may need none.
    """
    name, role = identifier(tenant), identifier(engine_role(tenant))
    session.execute(compose("REVOKE ALL ON DATABASE {name} FROM PUBLIC", name=name))
    people = {group: identifier(group) for group in PEOPLE}
    names: LiteralString = ", ".join("{" + group + "}" for group in PEOPLE)
    session.execute(compose("GRANT CONNECT ON DATABASE {name} TO {role}, " + names, name=name, role=role, **people))
    session.execute(compose("ALTER DATABASE {name} SET timezone = 'UTC'", name=name))
    session.execute(compose("ALTER DATABASE {name} WITH ALLOW_CONNECTIONS true CONNECTION LIMIT -1", name=name))


def require_rights(tenant: str, *, hold: bool, is_open: bool) -> None:
    """Raise UnsafeServer when `grants.sql` had not all of its effect.

    A non-superuser's GRANT or REVOKE on what another role owns is a mere warning: schema `public` does not belong to
    posduif_admin in clusters that were upgraded from before PostgreSQL 15.
    """
    if not hold:
        raise UnsafeServer(
            f"the engine's rights in {tenant} could not be given",
            why=f"{ENGINE_GROUP} lacks rights on tables that {ADMIN_ROLE} does not own",
            hint=Run("tenant", "verify", tenant),
        )
    if is_open:
        raise UnsafeServer(
            f"in database {tenant} every role may create objects",
            why="schema public still grants CREATE to PUBLIC, and posduif_admin does not own it",
            hint=f"a superuser types, in {tenant}: ALTER SCHEMA public OWNER TO pg_database_owner;",
        )


def set_password(session: Session, tenant: str, password: str) -> None:
    """Give the engine's role a password, sent as a SCRAM verifier; part of a transaction if one is open."""
    role = engine_role(tenant)
    session.execute(
        compose(
            "ALTER ROLE {role} PASSWORD {verifier}",
            role=identifier(role),
            verifier=literal(session.scram(password, role)),
        )
    )


def open_role(session: Session, tenant: str) -> None:
    """Let the engine's role log in again."""
    session.execute(compose("ALTER ROLE {role} LOGIN", role=identifier(engine_role(tenant))))


def close_role(session: Session | Pipeline, tenant: str) -> None:
    """Forbid the engine's role to log in; part of a transaction."""
    session.execute(compose("ALTER ROLE {role} NOLOGIN", role=identifier(engine_role(tenant))))


def shut_out(session: Session, tenant: str) -> None:
    """Forbid the engine's role to log in and to connect; part of a transaction."""
    close_role(session, tenant)
    name, role = identifier(tenant), identifier(engine_role(tenant))
    session.execute(compose("REVOKE CONNECT ON DATABASE {name} FROM {role}", name=name, role=role))


def let_in(session: Session, tenant: str) -> None:
    """Let the engine's role log in and connect; part of a transaction."""
    name, role = identifier(tenant), identifier(engine_role(tenant))
    session.execute(compose("ALTER ROLE {role} LOGIN", role=role))
    session.execute(compose("GRANT CONNECT ON DATABASE {name} TO {role}", name=name, role=role))


def configured(server: Server) -> Engine:
    """Return what this machine's configuration gives every new engine on *server*."""
    web_pool, redis = server.engine.get("web_pool", WEB_POOL), server.engine.get("redis", {})
    return Engine(
        pool=int(server.engine.get("max_connections", ENGINE_POOL)),
        web_pool=None if web_pool == WEB_POOL else int(web_pool),
        redis_db=int(redis.get("db", 0)),
    )


def decided(session: Session, tenant: str, noted: Record | None) -> Engine:
    """Return what a tenant's engine was given, with its pool, by the record *noted* if it says so.

    Else the limit of the engine's role tells; the configuration of this machine only where that has none either.
    """
    if noted is not None and (given := noted.given).pool is not None:
        return given
    limit = session.value(queries.load("db/admin")["read_limit"], role=engine_role(tenant))
    return decided_by(session.server, noted, limit)


def decided_by(server: Server, noted: Record | None, limit: int | None) -> Engine:
    """Return what an engine was given as `decided` does, by the connection *limit* of its role, None without a role.

    Where the record names no pool, the limit is what was decided: the pools returned are those that it is made of.
    """
    given = noted.given if noted is not None else Engine()
    if given.pool is not None:
        return given
    usual = configured(server)
    if limit is None or limit < 1:
        return replace(given, pool=usual.pool, web_pool=usual.web_pool)
    web_pool = WEB_POOL if usual.web_pool is None else usual.web_pool
    pool = max((limit - web_pool) // 2, min(usual.pool or 1, limit // 2), 1)
    rest = max(limit - 2 * pool, 0)
    return replace(given, pool=pool, web_pool=None if rest == WEB_POOL else rest)


def engine_limit(given: Engine) -> int:
    """Return how many connections a tenant's role may have.

    In a rolling restart two engines run side by side, each with its whole pool; the web-api logs in as the same role.
    """
    web_pool = WEB_POOL if given.web_pool is None else given.web_pool
    return 2 * (given.pool or ENGINE_POOL) + web_pool


def limit_connections(session: Session | Pipeline, tenant: str, given: Engine) -> None:
    """Give the engine's role the connection limit that its pools take; part of a transaction."""
    role, limit = identifier(engine_role(tenant)), literal(engine_limit(given))
    session.execute(compose("ALTER ROLE {role} CONNECTION LIMIT {limit}", role=role, limit=limit))


def drop_database(session: Session, tenant: str) -> None:
    """Drop a tenant's database with the sessions in it that posduif may end."""
    session.execute(compose("DROP DATABASE IF EXISTS {name} WITH (FORCE)", name=identifier(tenant)))


def drop_role(session: Session, tenant: str) -> None:
    """Drop the engine's role."""
    session.execute(compose("DROP ROLE IF EXISTS {role}", role=identifier(engine_role(tenant))))
