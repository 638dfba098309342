"""The checks of a server: whether it answers, has room, is set up for its tenants; and asking it how it is set up."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

from posduif_cli.core.checks.check import Hides, Verdict, check, failure
from posduif_cli.core.checks.facts import ServerFacts, Setup
from posduif_cli.core.fleet import proof
from posduif_cli.core.fleet.fleet import Fleet, Session, naming
from posduif_cli.db import admin, queries
from posduif_cli.db.quoting import quoted
from posduif_cli.db.session import ADMIN_ROLE
from posduif_cli.errors import Busy, NotEnough, Run
from posduif_cli.models.checks import Level

SUPPORTED = range(15, 19)  # major versions of PostgreSQL
SPARE_CONNECTIONS = 10  # for people, backups and monitoring
BACKUP_WAL_SENDERS = 2  # what pg_basebackup takes
LOOPBACK = ("", "localhost", "127.0.0.1", "::1")

doctor = partial(check, "server", ("doctor",))
listing = partial(check, "server", ("server list", "doctor"))
init = partial(check, "server", ("server init", "doctor"))


def describe(session: Session) -> Setup:
    """Return how a server is set up, without its tenants' sizes and without what administrators alone are asked."""
    fleet = queries.load("fleet/fleet")
    limits = session.dicts(fleet["measure_connections"])[0]
    return Setup(
        session.server, database=session.database, member=session.member, heir=session.heir,
        connections=limits["used"], max_connections=limits["max_connections"], reserved=limits["reserved"],
        tenants=session.value(fleet["count_tenants"], sizes=False),
        **session.dicts(queries.load("checks/server")["describe_server"])[0],
    )  # fmt: skip


def examine(session: Session, engines: int | None = None) -> Setup:
    """Return how a server is set up, with what administrators are asked; for a number of engines, or one per tenant.

    Raises NotOurs for a role of posduif's name that is not posduif's.
    """
    named = queries.load("checks/server")
    return replace(
        describe(session),
        missing=admin.missing_roles(session),
        members=session.tuples(named["list_members"], roles=list(admin.ROLE_COMMENTS)),
        unadministered=[role for (role,) in session.tuples(named["find_unadministered"])],
        unmonitored=session.value(named["find_unmonitored"]),
        engines=engines,
    )


def prove(fleet: Fleet, session: Session) -> Setup:
    """Return how a server is set up and whether it does what posduif relies on, as far as nothing has to be written."""
    lack = None
    try:
        proof.require_locks(fleet, session)
    except NotEnough as error:
        lack = error
    return replace(examine(session) if session.member else describe(session), unproved=lack)


@check("server", ("health", "doctor"), "server.reach", "The server answers",
    "A server that cannot be reached serves no tenant. "
    "A question may go unanswered for lack of a right, or because it takes too long.",
    hides=Hides(("tenant", "engine.answer"), whole=True))  # fmt: skip
def reach(facts: ServerFacts | Setup) -> Iterator[Verdict]:
    """Judge a server that could not be asked, and questions without an answer."""
    if facts.error is not None:
        # Another command may hold what was waited for, and then nothing is known.
        level = Level.UNKNOWN if isinstance(facts.error, Busy) else Level.CRITICAL
        yield replace(failure(facts.error, level, fix=Run("server", "list")), affected=facts.affected)
    yield from facts.unanswered


@doctor("server.version", "The PostgreSQL version is supported",
    "posduif is tested with PostgreSQL 15 to 18.")  # fmt: skip
def version(facts: Setup) -> Iterator[Verdict]:
    """Judge the version by its number; its text need not be one, as "19beta1"."""
    if facts.version_number is not None:
        if facts.version_number // 10000 in SUPPORTED:
            yield Verdict(Level.OK, f"PostgreSQL {facts.version}, as {facts.role}")
        else:
            yield Verdict(Level.WARNING, f"PostgreSQL {facts.version} was not tried", fix="use PostgreSQL 15 to 18")


@check("server", ("server list", "server init", "doctor"), "server.superuser", "The login is no superuser",
    "Code in a tenant's database can go back to the login of the session that runs it, "
    "and make its author one.")  # fmt: skip
def superuser(facts: Setup) -> Iterator[Verdict]:
    """Warn of a superuser's login."""
    if facts.is_superuser:
        text = f"{facts.role} is a superuser, and code in a tenant's database could make its author one"
        yield Verdict(Level.WARNING, text, fix=Run("server", "init", "--login", "NAME", *naming(facts.server)))


@listing("server.public", "Not every role may connect to the maintenance database",
    "Every role that may connect can read the records of the tenants: names, versions, urls.")  # fmt: skip
def public(facts: Setup) -> Iterator[Verdict]:
    """Tell that PUBLIC may connect, and the command that ends it to the login that may run it."""
    if facts.is_open:
        text, close = f"PUBLIC may connect to {facts.database}", Run("server", "init", "--close", *naming(facts.server))
        may = facts.may_close
        yield Verdict(Level.INFO, text if may else f"{text}; its owner can end that", fix=close if may else None)


@listing("server.standby", "The server takes changes",
    "A standby repeats what its primary does and takes no changes of its own.")  # fmt: skip
def standby(facts: Setup) -> Iterator[Verdict]:
    """Tell that the server is a standby."""
    if facts.is_standby:
        yield Verdict(Level.INFO, "it is a standby and takes no changes")


@listing("server.access", "The login may change tenants",
    "A login changes tenants as a member of posduif_admin, "
    "and enters them if it inherits the rights of that role.")  # fmt: skip
def access(facts: Setup) -> Iterator[Verdict]:
    """Tell what keeps the login from changing tenants, on a server that takes changes."""
    if facts.version is None or facts.is_standby:
        return
    if facts.record_owner is None:
        yield Verdict(Level.INFO, "it has no posduif roles yet", fix=Run("server", "init", *naming(facts.server)))
    elif not facts.member:
        yield Verdict(Level.INFO, f"{facts.role} is no member of {facts.record_owner} and cannot change tenants")
    elif facts.heir is False:
        text = f"{facts.role} does not inherit the rights of {facts.record_owner} and cannot enter tenants"
        yield Verdict(Level.INFO, text)


@doctor("server.proof", "The server behaves as PostgreSQL does",
    "posduif relies on what PostgreSQL does with locks and transactions. "
    "What speaks its protocol may do otherwise.")  # fmt: skip
def proved(facts: Setup) -> Iterator[Verdict]:
    """Judge the proof that was tried."""
    if facts.unproved is not None:
        yield failure(facts.unproved)


@init("server.roles", "posduif's roles exist",
    "posduif_admin owns all tenants; "
    "the groups have the rights of engines, of people and of nightly jobs.")  # fmt: skip
def roles(facts: Setup) -> Iterator[Verdict]:
    """Judge which roles are missing."""
    if facts.missing:
        fix = Run("server", "init", *naming(facts.server))
        yield Verdict(Level.CRITICAL, f"missing: {', '.join(facts.missing)}", fix=fix)
    elif facts.missing is not None:
        yield Verdict(Level.OK, f"{', '.join(admin.ROLE_COMMENTS)} are there")


@init("server.members", "Who has the rights of posduif's roles",
    "A member has the rights of the role. A role with ADMIN OPTION may make others members.")  # fmt: skip
def members(facts: Setup) -> Iterator[Verdict]:
    """Tell the members of each role, and which other roles may add some."""
    for role, holders, names in facts.members:
        if names or holders:
            odd = holders and role in (ADMIN_ROLE, admin.ENGINE_GROUP)
            text = f"members of {role}: {names or 'none'}" + (f"; may add members: {holders}" if holders else "")
            yield Verdict(Level.INFO if odd else Level.OK, text, role)


@init("server.engines", "posduif may alter the engines' roles",
    "Since PostgreSQL 16 a role is altered by those with ADMIN OPTION on it. "
    "A server upgraded from 15 lacks that.")  # fmt: skip
def engine_roles(facts: Setup) -> Iterator[Verdict]:
    """Warn of each engine's role that posduif_admin may not alter."""
    for role in facts.unadministered:
        text = f"{ADMIN_ROLE} may not alter {role}: the server was upgraded from PostgreSQL 15"
        grant = f"GRANT {quoted(role)} TO {ADMIN_ROLE} WITH ADMIN OPTION;"
        yield Verdict(Level.WARNING, text, fix=f"a superuser types: {grant}")


@init("server.monitoring", "posduif sees other roles' sessions",
    "Without pg_monitor PostgreSQL hides what other roles' sessions do, and a blocker cannot be named.")  # fmt: skip
def monitoring(facts: Setup) -> Iterator[Verdict]:
    """Tell which roles lack pg_monitor."""
    if facts.unmonitored:
        text = f"{' and '.join(facts.unmonitored)} cannot see what other roles' sessions do"
        yield Verdict(Level.INFO, text, fix=f"a superuser types: GRANT pg_monitor TO {', '.join(facts.unmonitored)};")


@init("server.connections", "There are connections for all engines",
    "Each engine opens its pool; posduif and people need some connections, too.")  # fmt: skip
def room(facts: Setup) -> Iterator[Verdict]:
    """Judge max_connections by the number of engines."""
    if facts.missing is None:
        return
    number = max(facts.tenants, 1) if facts.engines is None else facts.engines
    pool = admin.configured(facts.server).pool or 1
    spare = facts.reserved + SPARE_CONNECTIONS
    wanted = number * pool + facts.server.max_connections + spare
    yield Verdict(
        Level.WARNING if facts.max_connections < wanted else Level.OK,
        f"{number} engine{'s' if number > 1 else ''} of up to {pool} connections, posduif and "
        f"{spare} in reserve want {wanted}; the server allows {facts.max_connections}",
        facts.max_connections,
        fix=f"ALTER SYSTEM SET max_connections = {wanted}; -- and restart the server",
    )


@init("server.wal_senders", "There are WAL senders for backups",
    "pg_basebackup takes two WAL senders and each standby one. "
    "Engines take none, for their WAL mode stays off.")  # fmt: skip
def wal_senders(facts: Setup) -> Iterator[Verdict]:
    """Judge max_wal_senders."""
    if facts.missing is not None:
        yield Verdict(
            Level.WARNING if facts.wal_senders < BACKUP_WAL_SENDERS else Level.OK,
            f"engines take none, for WAL mode stays off; a base backup takes {BACKUP_WAL_SENDERS}, each standby one; "
            f"the server allows {facts.wal_senders}",
            facts.wal_senders,
            fix=f"ALTER SYSTEM SET max_wal_senders = {BACKUP_WAL_SENDERS * 5}; -- and restart the server",
        )


@init("server.tls", "Connections are encrypted",
    "Without TLS messages, tokens and passwords' proofs cross the network in clear.")  # fmt: skip
def tls(facts: Setup) -> Iterator[Verdict]:
    """Judge whether TLS is offered where the server listens on a network."""
    if facts.missing is None:
        return
    level, text = Level.OK, "TLS is offered"
    if not facts.ssl:
        text = "no TLS is offered, and the server listens on this machine alone"
        if not all(address.strip() in LOOPBACK for address in facts.listen_addresses.split(",")):
            level, where = Level.WARNING, facts.listen_addresses
            text = f"no TLS is offered, and the server listens on {where}: all crosses the network in clear"
    fix = "ALTER SYSTEM SET ssl = on; -- with ssl_cert_file and ssl_key_file, then SELECT pg_reload_conf()"
    yield Verdict(level, text, "on" if facts.ssl else "off", fix=fix)


@check("server", ("server init",), "server.open", "The maintenance database is closed to PUBLIC",
    "Every role that may connect to it can read the records of the tenants: names, versions, urls.")  # fmt: skip
def open_database(facts: Setup) -> Iterator[Verdict]:
    """Judge whether every role may connect, with the command or the SQL that ends it."""
    if not facts.is_open:
        yield Verdict(Level.OK, f"database {facts.database} is closed to PUBLIC")
        return
    close = Run("server", "init", "--close", *naming(facts.server))
    by_hand = f"a superuser types: {'; '.join(admin.closing_statements())};"
    text = f"every role may connect to database {facts.database} and read the records there: names, versions, urls"
    yield Verdict(Level.INFO, text, fix=close if facts.may_close else by_hand)
