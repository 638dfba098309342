"""What one session sees of a server and of all its tenants: asking it, and the checks that judge it."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import timedelta
from functools import partial
from math import inf
from typing import Any

from posduif_cli.core.checks.check import Check, Hides, Threshold, Verdict, check
from posduif_cli.core.checks.facts import ServerFacts
from posduif_cli.core.checks.questions import Questions
from posduif_cli.core.fleet.asides import asides
from posduif_cli.core.fleet.fleet import SIZES_TIMEOUT, Fleet, Session
from posduif_cli.core.fleet.run import who_is
from posduif_cli.db import queries
from posduif_cli.db.admin import CRON_GROUP, HEALTH_GROUP
from posduif_cli.db.quoting import compose, identifier, quoted, quoted_text
from posduif_cli.db.session import ADMIN_ROLE
from posduif_cli.errors import Run
from posduif_cli.models.checks import Level, ServerHealth
from posduif_cli.models.tenants import State
from posduif_cli.notation import counted, listed, spell

MIB = 1024**2
WRAPAROUND = 2**31 - 3_000_000  # transaction ids, from which on PostgreSQL takes none any more
ARCHIVE_CRITICAL = timedelta(minutes=15)
SLOT_CRITICAL = 1024 * MIB  # of WAL that a slot without a reader keeps
CALLS, SHARE = 5, 0.05  # of a statement: fewer calls, or less of the time of all, say nothing
TEXT = 70  # characters of a statement
FULL = Threshold(0.75, 0.9, "ratio")
LIMITED = Threshold(0.5, 0.8, "ratio")  # of max_slot_wal_keep_size

# Which words tell a person what was asked.
SUBJECTS = {
    "measure_replication": "replicas",
    "list_slots": "slots", "list_engine_sessions": "sessions of engines", "list_transactions": "transactions",
    "list_blocked": "blocked sessions", "read_archiver": "WAL archiving", "list_ages": "transaction ids",
    "list_horizons": "old transactions", "list_checksum_failures": "checksums", "list_unsafe_settings": "settings",
    "list_invalid_databases": "databases", "list_statements": "statements", "list_shut_out": "logins of engines",
}  # fmt: skip
# The statements of tenants by the text that they have in common, in milliseconds. What posduif itself sends is left
# out, and so are commands that are no queries: their texts may hold a password.
STATEMENTS = r"""
WITH s AS (
    SELECT s.queryid, min(s.query) AS query, sum(s.calls)::bigint AS calls, sum(s.total_exec_time) AS total,
           array_agg(DISTINCT d.datname::text) AS databases
    FROM {schema}.pg_stat_statements s JOIN pg_catalog.pg_database d ON d.oid = s.dbid
    WHERE d.datname = ANY (%(tenants)s) AND s.userid IS DISTINCT FROM pg_catalog.to_regrole('posduif_admin')::oid
      AND NOT EXISTS (SELECT FROM pg_catalog.pg_auth_members m JOIN pg_catalog.pg_roles g ON g.oid = m.roleid
                      WHERE m.member = s.userid
                        AND g.rolname IN ('posduif_health', 'posduif_cron', 'posduif_backup'))
    GROUP BY s.queryid
)
SELECT query, calls, total / calls AS mean, total / nullif(sum(total) OVER (), 0) AS share, databases,
       (SELECT dealloc FROM {schema}.pg_stat_statements_info) AS dropped
FROM s WHERE calls > 0 AND query ~* '^\s*(select|insert|update|delete|merge|with)\y' ORDER BY total DESC LIMIT 100
"""

health = partial(check, "server", ("health",))


def look(
    fleet: Fleet, wanted: Sequence[str], checks: Mapping[str, Collection[Check]], sizes: bool, session: Session
) -> ServerFacts:
    """Ask a server for its tenants, those *wanted* or all, and what its *checks*, by the server's name, judge.

    With *sizes* the file system is walked for those of the tenants.
    """
    named, questions, chosen = queries.load("checks/cluster"), Questions(session), checks[session.server.name]
    tenants = questions.ask(
        "tenants", lambda: [t for name in wanted or (None,) for t in fleet.list_on(session, name=name)]
    )
    copies = questions.ask("databases set aside", lambda: asides(session)) or ()
    measured: Mapping[str, int] = {}
    if sizes:
        with session.limited(statement_timeout=SIZES_TIMEOUT):
            rows = questions.ask("sizes", lambda: session.tuples(named["measure_sizes"]))
        measured = dict(rows or ())
    limits = questions.query("connections", "connections", queries.load("fleet/fleet")["measure_connections"])
    described = dict(next(iter(questions.query("described", "version", named["describe_cluster"])), {}))
    monitor, login_monitors = described.pop("monitor", False), described.pop("login_monitors", False)
    questions.seen["slot_limit"] = [{"mib": described.pop("slot_limit", None)}]
    if login_monitors and not monitor:
        session.script("SET ROLE none")  # what follows reads the server's views alone
        monitor = True
    if described and not monitor and any(each.monitor for each in chosen):
        _tell_of_monitor(session, questions)
    for name in dict.fromkeys(name for each in chosen for name in each.asks if monitor or not each.monitor):
        if name == "list_statements":
            _statements(session, questions, [tenant.tenant for tenant in tenants or ()])
        else:
            questions.query(name, SUBJECTS[name], named[name])
    used = next(iter(limits), {})
    described |= next(iter(questions.seen.get("measure_replication", ())), {})
    figures = ServerHealth(
        session.server.name, True, connections=used.get("used"), max_connections=used.get("allowed"), **described
    )
    return ServerFacts(
        figures, questions.seen, questions.unanswered(), tenants=tenants, sizes=measured, login=session.login,
        member=bool(session.member), monitor=monitor, named=bool(wanted),
        asides=[copy for copy in copies if not wanted or copy.tenant in wanted],
    )  # fmt: skip


def _tell_of_monitor(session: Session, questions: Questions) -> None:
    """Note that other roles' sessions are hidden, and what ends that."""
    groups = [group for group in (HEALTH_GROUP, CRON_GROUP) if group in session.groups]
    role = ADMIN_ROLE if session.member else (*groups, quoted(session.login))[0]
    fix = f"a superuser types: GRANT pg_monitor TO {role};"
    questions.lacks("what other roles' sessions do", f"{role} lacks the rights of pg_monitor", fix)


def _statements(session: Session, questions: Questions, tenants: Sequence[str]) -> None:
    """Ask for the statements of some databases, where the server collects them."""
    found = questions.query("find_statements", "statements", queries.load("checks/cluster")["find_statements"])
    if "find_statements" in questions.seen and not found:
        questions.seen["list_statements"] = ()
    for row in found:
        statement = compose(STATEMENTS, schema=identifier(row["nspname"]))
        questions.query("list_statements", "statements", statement, tenants=tenants)


def _spelled(seconds: float) -> str:
    """Write how long something has been so, in a unit that a person reads.

    >>> _spelled(42.3), _spelled(185), _spelled(9000)
    ('42s', '3m', '2h')
    """
    unit = 1 if seconds < 120 else 60 if seconds < 7200 else 3600 if seconds < 172_800 else 86400
    return spell(timedelta(seconds=int(seconds // unit * unit)))


def _who(row: Mapping[str, Any]) -> str:
    return who_is(int(row["pid"]), row["role"], row["application"] or None, row["database"] or None)


def _end(row: Mapping[str, Any]) -> str:
    return f"SELECT pg_terminate_backend({row['pid']}); -- as a superuser, or as {row['role']}"


def _session(facts: ServerFacts, row: Mapping[str, Any], seconds: float, what: str) -> Verdict:
    """Return the verdict that a session has been so for some seconds."""
    text, names = f"{_who(row)} {what} for {_spelled(seconds)}", facts.names([row["database"]])
    return Verdict(None, text, int(seconds), fix=_end(row), affected=names, several=what, thing=f"pid {row['pid']}")


@health("connections.full", "Connections are left",
    "All roles but superusers share the server's connections. Once none is left, engines and commands are refused.",
    threshold=FULL, hides=Hides(("tenant.reach", "engine.answer"), whole=True))  # fmt: skip
def connections(facts: ServerFacts) -> Iterator[Verdict]:
    """Judge the connections in use, and the pools of all engines, against what ordinary roles may use."""
    used, limit = facts.figures.connections, facts.figures.max_connections
    if used is None or limit is None:
        return
    share = used / max(limit, 1)
    fix = "lower the engines' max_connections, or raise the server's"
    yield Verdict(None, f"{used} of {limit} connections are in use", round(share, 3), fix=fix)
    pools = sum(tenant.engine_pool or 0 for tenant in facts.tenants or () if tenant.state is State.ACTIVE)
    if pools > limit:
        text = f"the engines' pools add up to {pools} connections, and the server has {limit} for all"
        yield Verdict(Level.INFO, text, pools, "connections", fix=fix)


@health("connections.role", "No engine is at its connection limit",
    "An engine that has all the connections of its role is refused further ones, and phones get errors.",
    threshold=FULL, asks=("list_engine_sessions",))  # fmt: skip
def roles(facts: ServerFacts) -> Iterator[Verdict]:
    """Judge the connections of each engine's role against its limit."""
    for row in facts.rows("list_engine_sessions"):
        name = facts.names([row["role"].removesuffix("_engine")])
        if name:
            text = f"{row['role']} has {row['used']} of the {row['allowed']} connections that it may have"
            fix = Run("tenant", "verify", *name, lead="look for engines that run twice, then")
            yield Verdict(
                None, text, round(row["used"] / row["allowed"], 3), fix=fix, affected=name,
                several="an engine is near its connection limit",
            )  # fmt: skip


@health("transactions.idle", "No session is idle in a transaction",
    "A transaction that is left open keeps its locks, and keeps dead rows of all tables.",
    threshold=Threshold(300, 900, "seconds"), asks=("list_transactions",), monitor=True)  # fmt: skip
def idle(facts: ServerFacts) -> Iterator[Verdict]:
    """Judge how long each session has been idle in a transaction."""
    for row in facts.rows("list_transactions"):
        if row["idle"] is not None:
            yield _session(facts, row, row["idle"], "has been idle in a transaction")


@health("transactions.long", "No transaction takes long",
    "A long transaction keeps dead rows of all tables. Backups are not meant, nor is one that waits for a lock.",
    threshold=Threshold(900, 3600, "seconds"), asks=("list_transactions",), monitor=True)  # fmt: skip
def long(facts: ServerFacts) -> Iterator[Verdict]:
    """Judge how long each transaction at work has been open."""
    for row in facts.rows("list_transactions"):
        if row["idle"] is None and not row["backup"] and not row["waits"]:
            yield _session(facts, row, row["age"], "has been in one transaction")


@health("sessions.blocked", "No session waits long for a lock",
    "One session that holds a lock can stop all others. The one that waits for none itself is the cause.",
    threshold=Threshold(30, 120, "seconds"), asks=("list_blocked",), monitor=True)  # fmt: skip
def blocked(facts: ServerFacts) -> Iterator[Verdict]:
    """Tell who blocks others and waits for no one, and how long the longest wait is."""
    known = {row["pid"]: row for row in facts.rows("list_blocked")}
    waits: dict[int, list[Mapping[str, Any]]] = {}  # the sessions that wait, by that which they wait for in the end
    for row in known.values():
        for root in _roots(row["pid"], known) if row["blockers"] else ():
            waits.setdefault(root, []).append(row)
    for root, behind in waits.items():
        who = _who(known[root]) if root in known else "a prepared transaction"
        longest = max(float(row["waited"] or 0) for row in behind)
        text = f"{who} blocks {counted(len(behind), 'session')}, the longest for {_spelled(longest)}"
        fix = _end(known[root]) if root in known else "look at pg_prepared_xacts, then ROLLBACK PREPARED"
        names = facts.names(row["database"] for row in behind)
        yield Verdict(None, text, int(longest), fix=fix, affected=names, several="blocked", thing=f"pid {root}")


def _roots(pid: int, known: Mapping[int, Mapping[str, Any]]) -> set[int]:
    """Return the sessions that *pid* waits for in the end, which wait for none themselves; 0 is no session."""
    found, seen, ahead = set(), {pid}, list(known[pid]["blockers"])
    while ahead:
        one = ahead.pop()
        if one in seen:
            continue
        seen.add(one)
        further = known[one]["blockers"] if one in known else None
        if further:
            ahead += further
        else:
            found.add(one)
    return found


def _unread(slot: Mapping[str, Any], facts: ServerFacts) -> bool:
    """Whether a slot was made by an engine, which reads none."""
    ours = slot["slot"].startswith("posduif_sync_") or facts.names([slot["database"]])
    return bool(slot["logical"] and not slot["active"] and ours)


@health("slots.unread", "No engine left a replication slot behind",
    "An engine in its WAL mode makes a slot that it never reads. "
    "The slot keeps WAL, and dead rows of all tenants' catalogs, for good.", asks=("list_slots",))  # fmt: skip
def unread(facts: ServerFacts) -> Iterator[Verdict]:
    """Tell each slot of an engine that has no reader, and how much WAL it keeps."""
    for slot in facts.rows("list_slots"):
        if _unread(slot, facts):
            kept = slot["retained_bytes"] or 0
            text = f"slot {slot['slot']} of {slot['database']} has no reader and keeps {kept / MIB:.1f} MiB of WAL"
            yield Verdict(
                Level.CRITICAL if kept >= SLOT_CRITICAL else Level.WARNING, text, kept, "bytes", _drop(slot),
                f"{facts.subject}/{slot['slot']}", facts.names([slot["database"]]), several="unread",
            )  # fmt: skip


def _drop(slot: Mapping[str, Any]) -> str:
    return f"SELECT pg_drop_replication_slot('{slot['slot']}'); -- if its reader is gone for good"


@health("slots.retained", "Replication slots keep little WAL",
    "A slot keeps the WAL that its reader has not confirmed, until the disk is full. "
    "Where max_slot_wal_keep_size is set, half of it is a warning and 80 % critical.",
    threshold=Threshold(1024 * MIB, 5 * 1024 * MIB, "bytes"), asks=("list_slots",))  # fmt: skip
def slots(facts: ServerFacts) -> Iterator[Verdict]:
    """Judge how much WAL each replication slot keeps from being recycled."""
    [limit] = [row["mib"] for row in facts.rows("slot_limit")] or [None]
    for slot in facts.rows("list_slots"):
        if _unread(slot, facts):
            continue
        kept, place, fix = slot["retained_bytes"] or 0, f"{facts.subject}/{slot['slot']}", _drop(slot)
        name = f"slot {slot['slot']} of {slot['database'] or 'the server'}"
        if slot["lost"]:
            text = f"{name} is lost: the WAL that its reader needs is gone, and it has to start anew"
            yield Verdict(Level.CRITICAL, text, slot["slot"], "slot", fix, place, several="lost")
            continue
        text = f"{name} keeps {kept / MIB:.1f} MiB of WAL"
        yield Verdict(None, text, kept, None, fix, place, several="retained")
        share = round(kept / (limit * MIB), 3) if limit and limit > 0 else 0.0
        if (level := LIMITED.level(share)) is not Level.OK:
            yield Verdict(level, f"{text}, and is lost at {limit} MiB", share, "ratio", fix, place, several="limited")


@health("replication.lag", "Replicas keep up",
    "A replica that is far behind loses that much if it has to take over.",
    threshold=Threshold(50 * MIB, 500 * MIB, "bytes"), asks=("measure_replication",), monitor=True)  # fmt: skip
def replication(facts: ServerFacts) -> Iterator[Verdict]:
    """Judge how far the slowest replica is behind."""
    for lag in (row["replication_lag_bytes"] or 0 for row in facts.rows("measure_replication")):
        text = f"the slowest replica is {lag / MIB:.1f} MiB behind"
        yield Verdict(None, text, lag, fix="look at the replica's network and disks")


@health("archive.failing", "WAL is archived",
    "While archiving fails there is no recovery to a point in time, and WAL fills the disk. "
    "Critical after 15 minutes without a success.", asks=("read_archiver",))  # fmt: skip
def archive(facts: ServerFacts) -> Iterator[Verdict]:
    """Judge whether the last try to archive a WAL file failed."""
    for row in facts.rows("read_archiver"):
        if row["unset"]:
            text = "archive_mode is on, and neither archive_command nor archive_library is set: WAL fills the disk"
            yield Verdict(Level.WARNING, text, fix="set archive_command, or switch archive_mode off")
        elif row["failing"]:
            level = Level.CRITICAL if row["age"] > ARCHIVE_CRITICAL.total_seconds() else Level.WARNING
            text = f"archiving of {row['wal']} fails; nothing was archived for {_spelled(row['age'])}"
            fix = "look for archive_command in the server's log"
            yield Verdict(level, text, round(row["age"]), "seconds", fix=fix)


@health("wraparound.near", "Transaction ids are far from their end",
    "PostgreSQL takes no writes any more once a database has used its two billion transaction ids. "
    "Autovacuum keeps that away unless something holds it up.",
    threshold=Threshold(0.4, 0.75, "ratio"), asks=("list_ages",))  # fmt: skip
def wraparound(facts: ServerFacts) -> Iterator[Verdict]:
    """Judge the oldest database, and whether autovacuum should have frozen it."""
    rows = facts.rows("list_ages")
    if not rows:
        return

    def age(row: Mapping[str, Any]) -> int:
        return int(max(row["xids"], row["multixacts"]))

    worst, names = rows[0], facts.names(row["database"] for row in rows if row["late"])
    share = round(age(worst) / WRAPAROUND, 3)
    text = f"database {worst['database']} has used {share:.0%} of the transaction ids"
    fix = f"VACUUM (FREEZE); -- in database {worst['database']}, once nothing holds old transaction ids"
    yield Verdict(None, text, share, fix=fix, affected=names)
    if worst["late"]:
        late = f"autovacuum is late in freezing database {worst['database']}, which is {age(worst)} transactions old"
        yield Verdict(Level.INFO, late, age(worst), "transactions", fix=fix, affected=names)


@health("horizon.old", "Nothing keeps dead rows from being removed",
    "VACUUM removes no row that an old transaction, slot, replica or prepared transaction may still see. "
    "Idle slots hold back the catalogs of all databases.",
    threshold=Threshold(50_000_000, 200_000_000, "transactions"), asks=("list_horizons",), monitor=True,
    hides=Hides(("rows.dead",), Level.WARNING, whole=True))  # fmt: skip
def horizon(facts: ServerFacts) -> Iterator[Verdict]:
    """Judge the oldest transaction id that is held, and tell who holds it."""
    for row in facts.rows("list_horizons")[:1]:
        kind, name = row["kind"], row["name"]
        who = f"{kind} {name}"
        fix = f"look at {kind} {name}"
        if kind == "session":
            session = {**row, "pid": name}
            who, fix = _who(session), _end(session)
        elif kind == "slot":
            fix = f"SELECT pg_drop_replication_slot('{name}');"
        elif kind == "prepared transaction":
            fix = f"ROLLBACK PREPARED {quoted_text(name)}; -- in database {row['database']}"
        text = f"{who} holds back VACUUM in all databases, by {row['age']} transactions"
        yield Verdict(None, text, row["age"], fix=fix, affected=facts.names([row["database"]]))


@health("checksums.failed", "No page has a wrong checksum",
    "A wrong checksum means that the disk or the memory changed data. Judged where checksums are on.",
    asks=("list_checksum_failures",))  # fmt: skip
def checksums(facts: ServerFacts) -> Iterator[Verdict]:
    """Tell the databases in which pages with a wrong checksum were read."""
    for row in facts.rows("list_checksum_failures"):
        where = f"database {row['database']}" if row["database"] else "the shared catalogs"
        text = f"{counted(row['failures'], 'page')} with a wrong checksum in {where}"
        fix = "test the disks, then restore from a backup"
        yield Verdict(
            Level.CRITICAL, text, row["failures"], "pages", fix, affected=facts.names([row["database"]]), several="sums"
        )


@health("settings.unsafe", "No setting loses data, and none waits for a restart",
    "Without fsync or full_page_writes a crash can destroy all databases. "
    "A setting that waits for a restart is not the one that runs.", asks=("list_unsafe_settings",))  # fmt: skip
def settings(facts: ServerFacts) -> Iterator[Verdict]:
    """Tell which settings are unsafe, and which wait for a restart."""
    rows = facts.rows("list_unsafe_settings")
    off = [row["name"] for row in rows if row["setting"] == "off" and not row["pending_restart"]]
    for name in off:
        fix = f"ALTER SYSTEM SET {name} = on; -- then SELECT pg_reload_conf()"
        yield Verdict(Level.WARNING, f"{name} is off: a crash can destroy all databases", name, fix=fix)
    waiting = [row["name"] for row in rows if row["pending_restart"]]
    if waiting:
        text = f"a restart would change {counted(len(waiting), 'setting')}: {listed(waiting, 5)}"
        yield Verdict(Level.WARNING, text, waiting[0], fix="restart the server, or take the change back")


@health("queries.slow", "No statement of the tenants takes long",
    "From pg_stat_statements, over all tenants: at least 5 calls and 5 % of the time of all statements. "
    "What a tenant's statements cost shows up in all of them.",
    threshold=Threshold(100, inf, "milliseconds"), asks=("list_statements",), monitor=True)  # fmt: skip
def statements(facts: ServerFacts) -> Iterator[Verdict]:
    """Judge the mean time of each statement that takes much of the time."""
    if "find_statements" in facts.seen and not facts.rows("find_statements"):
        yield Verdict(
            Level.SKIPPED, "the server does not collect them: pg_stat_statements is not installed in postgres"
        )
    for row in facts.rows("list_statements"):
        if row["calls"] >= CALLS and (row["share"] or 0) >= SHARE:
            words = " ".join(row["query"].split())
            shown = words if len(words) <= TEXT else f"{words[:TEXT]}..."
            partial = "; the statistics are partial" if row["dropped"] else ""
            text = (
                f"{row['mean']:.0f} ms per call, {row['share']:.0%} of all time, in "
                f"{counted(len(row['databases']), 'tenant')}: {shown}{partial}"
            )
            yield Verdict(
                None, text, round(row["mean"], 1), fix=f"EXPLAIN it in database {row['databases'][0]}",
                affected=facts.names(row["databases"]), thing=words,
            )  # fmt: skip


@health("database.invalid", "Every database can be entered",
    "A DROP DATABASE that was interrupted leaves a database that can only be dropped. "
    "One that takes no connections shuts out its engine and its backups.",
    asks=("list_invalid_databases",), hides=Hides(("tenant", "engine.answer")))  # fmt: skip
def databases(facts: ServerFacts) -> Iterator[Verdict]:
    """Tell databases that are half dropped or closed; one that posduif is making or dropping is told by its state."""
    known = {tenant.tenant: tenant for tenant in facts.tenants or ()}
    for row in facts.rows("list_invalid_databases"):
        name, tenant = row["database"], known.get(row["database"])
        if tenant is None and facts.named:
            continue  # it has no part in the tenants that were asked about
        if tenant is not None and not row["half_dropped"] and tenant.state not in (State.ACTIVE, State.SUSPENDED):
            continue
        text = f"database {name} takes no connections"
        fix: Run | str = f"ALTER DATABASE {quoted(name)} WITH ALLOW_CONNECTIONS true;"
        if row["half_dropped"]:
            text = f"database {name} is half dropped: DROP DATABASE was interrupted"
            fix = Run("tenant", "drop", name, "--confirm", name) if tenant else f"DROP DATABASE {quoted(name)};"
        yield Verdict(
            Level.CRITICAL, text, name, fix=fix, affected=facts.names([name]), several=text.partition(name)[2]
        )
