"""What a session in a tenant's database sees: asking it, and the checks that judge it, alone and over all tenants."""

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from datetime import timedelta
from functools import cache, partial
from math import inf
from typing import Any

from posduif_cli.core.checks.check import Check, Threshold, Verdict, check
from posduif_cli.core.checks.facts import TenantFacts, VisitedServer
from posduif_cli.core.checks.questions import Questions
from posduif_cli.core.checks.rights import missing_grants
from posduif_cli.core.fleet.fleet import Session
from posduif_cli.core.schema import inventory
from posduif_cli.db import queries
from posduif_cli.db.quoting import quoted, quoted_text
from posduif_cli.errors import Run
from posduif_cli.models.checks import IndexUse, Level, TableSize
from posduif_cli.models.tenants import Tenant
from posduif_cli.notation import counted, listed

MIB = 1024**2
SILENT = timedelta(days=14)
AHEAD = timedelta(minutes=5)  # how far a clock may be ahead
DEAD = 10_000  # rows; fewer do no harm, whatever their share is
NEARLY_ALL = 0.95  # of the tenants of a server, from which on an index is a matter of the schema
UNUSED_DAYS, UNUSED_BYTES = 30, 10 * MIB  # since when an index was not used, and what it takes in all tenants

# Which words tell a person what was asked.
SUBJECTS = {
    "list_tables": "tables", "list_indexes": "indexes", "measure_statistics": "statistics",
    "list_disabled_triggers": "triggers", "judge_messages": "messages", "count_errors": "synchronisation errors",
    "measure_enrollments": "enrollments", "list_displaced": "displaced devices",
    "measure_tenant": "size, connections", "count_users": "users",
}  # fmt: skip
FIGURES = ("measure_tenant", "count_users", "count_errors", "judge_messages", "list_tables", "list_indexes")

health = partial(check, "tenant", ("health",), tier="visited")
together = partial(check, "server", ("health",), tier="visited")


def look(
    tenants: Mapping[tuple[str, str], Tenant],
    checks: Mapping[str, Collection[Check]],
    named: bool,
    fine: set[tuple[str, str]],
    session: Session,
) -> TenantFacts:
    """Ask the one of the *tenants*, by server and name, that the session is in, for what its *checks* judge.

    One that was *named* is asked for its figures, too. *fine* has servers and rights, condensed, to which grants.sql
    had nothing to add in another tenant.
    """
    texts, questions, chosen = _texts(), Questions(session), checks[session.server.name]
    wanted = [*(FIGURES if named else ()), *(name for each in chosen for name in each.asks)]
    for name in dict.fromkeys(wanted):
        params = {"silent": SILENT.total_seconds()} if name == "judge_messages" else {}
        questions.query(name, SUBJECTS[name], texts[name], **params)
    missing: Sequence[str] | None = None
    if session.member and any(each.id == "grants.differ" for each in chosen):
        rights = next((row["rights"] for row in questions.query("rights", "rights", texts["condense_rights"])), "")
        place = (session.server.name, rights)
        missing = () if place in fine else questions.ask("rights", lambda: missing_grants(session))
        if rights and missing is not None and not missing:
            fine.add(place)
    tenant = tenants[session.server.name, session.database]
    measured = _figures(questions.seen) if named else {}
    return TenantFacts(tenant, measured, questions.seen, questions.unanswered(), missing)


@cache
def _texts() -> dict[str, Any]:
    return {**queries.load("checks/inside"), **queries.load("checks/enrolled")}


def _figures(seen: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
    """Return the figures of a tenant that a report by its name shows."""
    found: dict[str, Any] = {}
    for name in ("measure_tenant", "count_users", "count_errors", "judge_messages"):
        found |= next(iter(seen.get(name, ())), {})
    kept = ("users", "messages", "pending_sync", "sync_errors", "connections", "size_bytes")
    tables = tuple(TableSize(row["table"], row["bytes"], row["rows"]) for row in seen.get("list_tables", ()))
    indexes = tuple(
        IndexUse(row["index"], row["table"], row["scans"], row["bytes"]) for row in seen.get("list_indexes", ())
    )
    return {**{key: found.get(key) for key in kept}, "tables": tables, "indexes": indexes}


@health("index.invalid", "Every index is valid",
    "An invalid index costs on every write and serves no query; a unique one lets duplicates in. "
    "CREATE INDEX CONCURRENTLY leaves one when it fails.", asks=("list_indexes",))  # fmt: skip
def invalid(facts: TenantFacts) -> Iterator[Verdict]:
    """Tell each invalid index."""
    for row in facts.rows("list_indexes"):
        if not row["valid"]:
            name = row["index"]
            fix = f"REINDEX INDEX CONCURRENTLY {quoted(name)}; -- in database {facts.subject}"
            if row["is_unique"]:
                fix += ", once its duplicates are gone"
            if re.search(r"_cc(new|old)\d*$", name):  # what a failed REINDEX left beside the index itself
                fix = f"DROP INDEX CONCURRENTLY {quoted(name)}; -- in database {facts.subject}"
            level = Level.CRITICAL if row["is_unique"] else Level.WARNING
            yield Verdict(level, f"index {name} is invalid", name, fix=fix, thing=name)


@health("rows.dead", "Autovacuum keeps up with dead rows",
    "In multiples of what autovacuum waits for, from 10,000 dead rows on; a table that is being vacuumed is left out. "
    "Critical only where autovacuum is switched off: it may be on its way.",
    threshold=Threshold(2, 10, "times"), asks=("list_tables",))  # fmt: skip
def dead(facts: TenantFacts) -> Iterator[Verdict]:
    """Judge the dead rows of each table by what autovacuum waits for; where it is on it may only not have come yet."""
    for row in facts.rows("list_tables"):
        if (row["dead"] or 0) > DEAD:
            table, times = row["table"], round(row["dead"] / max(row["due"], 1), 1)
            text = f"table {table} has {row['dead']} dead rows, {times:g} times what autovacuum waits for"
            fix = f"VACUUM (ANALYZE) {quoted(table)}; -- in database {facts.subject}"
            most = Level.WARNING if row["automatic"] else Level.CRITICAL
            several = f"table {table} has many dead rows"
            yield Verdict(None, text, times, fix=fix, thing=table, several=several, most=most)


@health("trigger.disabled", "No trigger is switched off",
    "The tables' triggers keep updated_at, synced_at and read_at, and the foreign keys. "
    "One that is disabled stays so until it is enabled again.", asks=("list_disabled_triggers",))  # fmt: skip
def triggers(facts: TenantFacts) -> Iterator[Verdict]:
    """Tell each trigger that does not fire, and each table whose foreign keys are not checked."""
    keys = {row["table"]: row["trigger"] for row in facts.rows("list_disabled_triggers") if row["internal"]}
    for table in keys:
        fix = f"a superuser types, in {facts.subject}: ALTER TABLE {quoted(table)} ENABLE TRIGGER ALL;"
        text = f"foreign keys of table {table} are not checked, and its triggers may be switched off"
        yield Verdict(Level.WARNING, text, keys[table], fix=fix, thing=table)
    for row in facts.rows("list_disabled_triggers"):
        table, name = row["table"], row["trigger"]
        if table in keys:
            continue
        by_hand: Run | str = (
            f"ALTER TABLE {quoted(table)} ENABLE TRIGGER {quoted(name)}; -- in database {facts.subject}"
        )
        if name not in _bundled("trigger"):  # it may be foreign code, which is better off
            by_hand = Run("tenant", "verify", facts.subject, lead="see whose it is, then enable or drop it")
        text = f"trigger {name} of table {table} is switched off"
        yield Verdict(Level.WARNING, text, name, fix=by_hand, thing=f"{table} {name}")


@health("sync.failed", "No device reports a failed synchronisation",
    "The engine notes for each device whether its last synchronisation failed.", asks=("count_errors",))  # fmt: skip
def errors(facts: TenantFacts) -> Iterator[Verdict]:
    """Judge the devices whose last synchronisation failed."""
    for row in facts.rows("count_errors"):
        found = row["sync_errors"]
        text, fix = f"{counted(found, 'device')} with a synchronisation error", Run("device", "list", facts.subject)
        level = Level.WARNING if found else Level.OK
        yield Verdict(level, text, found, "devices", fix=fix, several="devices with a synchronisation error")


def _devices(facts: TenantFacts) -> Sequence[Mapping[str, Any]]:
    return [device for row in facts.rows("judge_messages") for device in row["devices"]]


@health("sync.stuck", "Devices fetch all their messages",
    "A device that fetched messages, but not one that had arrived five minutes before, does not synchronise. "
    "A message that waits alone is no fault: a phone may be off.", asks=("judge_messages",))  # fmt: skip
def stuck(facts: TenantFacts) -> Iterator[Verdict]:
    """Tell each device that fetched around a message."""
    for row in _devices(facts):
        if row["stuck"]:
            text = f"device {row['device']} fetched messages, but not {counted(row['stuck'], 'older one')}"
            fix = Run("message", "pending", facts.subject, "--device", row["device"])
            yield Verdict(
                Level.WARNING, text, row["stuck"], "messages", fix=fix, several="devices leave messages behind",
                thing=row["device"],
            )  # fmt: skip


@health("device.silent", "Phones fetch what waits for them",
    "A phone that messages have been waiting for for two weeks, and that fetched none since. "
    "It may be switched off or lost; this is no fault of the service.", asks=("judge_messages",))  # fmt: skip
def silent(facts: TenantFacts) -> Iterator[Verdict]:
    """Tell each phone that has fetched nothing for long, with its queue."""
    for row in _devices(facts):
        days = int((row["silent"] or 0) // 86400)
        if days >= SILENT.days:
            text = f"device {row['device']} has fetched nothing for {days} days; {row['waiting']} messages wait for it"
            fix = Run("device", "show", facts.subject, *_word(row["device"]))
            yield Verdict(
                Level.INFO, text, days, "days", fix=fix, several="phones have fetched nothing for two weeks",
                thing=row["device"],
            )  # fmt: skip


@health("device.displaced", "Each phone has its user",
    "A phone that types the name of a user takes that user over, and the phone before gets no messages any more. "
    "The engine notes that nowhere; used tokens tell.", asks=("list_displaced",))  # fmt: skip
def displaced(facts: TenantFacts) -> Iterator[Verdict]:
    """Tell each phone that lost its user to another one, and each web user that a phone took over."""
    if facts.visited and not facts.unanswered and "list_displaced" not in facts.visited:
        yield Verdict(Level.SKIPPED, "the tenant's schema is older than 0003")
    for row in facts.rows("list_displaced"):
        device = row["device"]
        text = f"device {device} took over a web user"
        fix: Run | str = _free(facts, device)
        if not row["web"]:
            text = f"device {device} has lost its user to another phone"
            lead = "enroll that phone anew, or note that it is gone"
            fix = Run("device", "remove", facts.subject, *_word(device), lead=lead)
        yield Verdict(Level.WARNING, text, device, fix=fix, several="phones took over other users", thing=device)


def _word(text: str) -> tuple[str, ...]:
    """Return a text as the words of a command: one that begins as an option does comes after --."""
    return ("--", text) if text.startswith("-") else (text,)


def _free(facts: TenantFacts, device: str) -> str:
    """Return the SQL that takes a device from a web user, which no command touches."""
    columns = "device_id = NULL, enrolled_at = NULL, enrollment_token_id = NULL"
    where = f"user_type = 'web' AND device_id = {quoted_text(device)}"
    return f"UPDATE users SET {columns} WHERE {where}; -- in database {facts.subject}"  # noqa: S608 -- shown, not run


@health("tokens.overdue", "Expired tokens are purged",
    "The age of the oldest unused token that expired. They are deleted by a purge, best each night.",
    threshold=Threshold(30, inf, "days"), asks=("measure_enrollments",), together=("token", "purge"))  # fmt: skip
def overdue(facts: TenantFacts) -> Iterator[Verdict]:
    """Judge how long ago the oldest unused token expired."""
    for row in facts.rows("measure_enrollments"):
        if row["overdue"] is not None:
            days = int(row["overdue"] // 86400)
            text = f"an unused token expired {days} days ago and is still there"
            fix = Run("token", "purge", facts.subject)
            yield Verdict(None, text, days, fix=fix, several="unused tokens expired long ago and are still there")


@health("engine.clock", "The engine's clock is the server's",
    "An engine in another time zone than UTC gives tokens a wrong life and messages a wrong time. "
    "Measured at the last enrollment: the engine noted its own time, and the server its own.",
    threshold=Threshold(60, 600, "seconds"), asks=("measure_enrollments",))  # fmt: skip
def clock(facts: TenantFacts) -> Iterator[Verdict]:
    """Judge how far the engine's clock was from the server's at the last enrollment."""
    for row in facts.rows("measure_enrollments"):
        offset = row["offset_seconds"]
        if offset is not None:
            far = f"{abs(offset) / 3600:.1f} h" if abs(offset) >= 1800 else f"{abs(offset):.0f} s"
            where = f"{far} {'ahead' if offset > 0 else 'behind'}"
            yield Verdict(
                None, f"the engine's clock was {where} at the last enrollment", round(abs(offset)),
                fix="run the engine with TZ=UTC, and its host with a time service; the next enrollment is judged anew",
                several="the engine's clock is wrong",
            )  # fmt: skip


@health("clock.skew", "No time lies in the future",
    "Times of the server's own clock that lie ahead of it: the clock went back. "
    "Times of a sender are told only: a phone may send the time of its zone.", asks=("judge_messages",))  # fmt: skip
def skew(facts: TenantFacts) -> Iterator[Verdict]:
    """Judge times that lie ahead of the server's clock."""
    for row in facts.rows("judge_messages"):
        for ahead, level, what, fix in (
            (row["noted_ahead"], Level.WARNING, "the server noted times that are ahead of its clock by now",
             "look at the time service of the server's host"),
            (row["sent_ahead"], Level.INFO, "a message has a time in the future, from its sender's clock or zone",
             "look at the clocks of the phones and of the engine's host"),
        ):  # fmt: skip
            if (ahead or 0) > AHEAD.total_seconds():
                yield Verdict(level, f"{what}: {ahead / 60:.0f} min", round(ahead), "seconds", fix=fix, several=what)


@cache
def _bundled(kind: str) -> frozenset[str]:
    """Return the names of the indexes or triggers that the bundled migrations make."""
    return frozenset(thing.bare or "" for thing in inventory.snapshot() if thing.kind == kind)


def _everywhere(
    facts: VisitedServer, meant: Callable[[TenantFacts, Mapping[str, Any]], bool]
) -> Iterator[tuple[str, str, list[TenantFacts], int, Mapping[str, Any]]]:
    """Yield table and index with the tenants in which an index is *meant*, its bytes there and its last row.

    Only what is so in nearly all tenants is a matter of the schema; those with a pending migration are not asked.
    """
    having: dict[tuple[str, str], int] = {}
    found: dict[tuple[str, str], list[tuple[TenantFacts, Mapping[str, Any]]]] = {}
    asked = [each for each in facts.tenants if "list_indexes" in each.visited and not each.tenant.pending]
    for tenant in asked:
        for row in tenant.rows("list_indexes"):
            key = (row["table"], row["index"])
            having[key] = having.get(key, 0) + 1
            if row["valid"] and row["index"] not in _bundled("index") and meant(tenant, row):
                found.setdefault(key, []).append((tenant, row))
    for (table, index), rows in sorted(found.items()):
        if len(rows) >= NEARLY_ALL * max(having[table, index], NEARLY_ALL * len(asked)):
            yield table, index, [tenant for tenant, _ in rows], sum(row["bytes"] for _, row in rows), rows[-1][1]


@together("index.unused", "Indexes are used",
    "An index of at least 10 MiB in all, used in nearly no tenant for 30 days; constraints need theirs. "
    "Dropping it is a migration.", asks=("list_indexes", "measure_statistics"))  # fmt: skip
def unused(facts: VisitedServer) -> Iterator[Verdict]:
    """Tell the indexes that nearly no tenant has used."""

    def meant(tenant: TenantFacts, row: Mapping[str, Any]) -> bool:
        days = next((each["days"] for each in tenant.rows("measure_statistics")), None)
        created = tenant.tenant.created_at
        if days is None and created is not None:
            days = (tenant.now - created).days
        return row["scans"] == 0 and not row["needed"] and days is not None and days >= UNUSED_DAYS

    for table, index, tenants, size, _ in _everywhere(facts, meant):
        if size >= UNUSED_BYTES:
            names = tuple(tenant.subject for tenant in tenants)
            text = f"index {index} of table {table} was used in none of {counted(len(names), 'tenant')} for 30 days"
            fix = Run("migrate", "new", f"drop_{index}", lead=f"write a migration with DROP INDEX {quoted(index)}")
            yield Verdict(Level.INFO, text, size, "bytes", fix=fix, affected=names, thing=index)


@together("index.redundant", "No index repeats another one",
    "An index that begins another one costs on every write and serves no query that the other does not. "
    "Told where it is so in nearly all tenants, of indexes that posduif did not make.",
    asks=("list_indexes",))  # fmt: skip
def redundant(facts: VisitedServer) -> Iterator[Verdict]:
    """Tell the indexes whose queries another one serves."""
    for table, index, tenants, size, row in _everywhere(facts, lambda _, row: bool(row["covered"])):
        names = tuple(tenant.subject for tenant in tenants)
        text = f"index {index} of table {table} repeats {row['covered']}, in {listed(names, 3)}"
        fix = Run("migrate", "new", f"drop_{index}", lead=f"write a migration with DROP INDEX {quoted(index)}")
        yield Verdict(Level.INFO, text, size, "bytes", fix=fix, affected=names, thing=index)
