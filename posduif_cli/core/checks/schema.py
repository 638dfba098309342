"""The checks of schemas: the record and the files against what was applied, and tenants against each other."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from posduif_cli.core.checks.check import Verdict, check, failure
from posduif_cli.core.checks.facts import Applied, Clusters, Files, Recorded
from posduif_cli.core.folders import digest
from posduif_cli.core.schema import history, inventory
from posduif_cli.core.schema.half import ways_out
from posduif_cli.core.schema.inventory import Thing
from posduif_cli.db import record
from posduif_cli.db.session import Session
from posduif_cli.errors import Run
from posduif_cli.models.checks import Level
from posduif_cli.notation import listed

SHOWN = 5


def _correct(conn: Session, _: Recorded, __: str) -> None:
    """Write into the record what the tenant's own table says by now."""
    current, done = record.read(conn), history.applied(conn)
    record.write(conn, replace(current, schema=max(done, default=None), applied=digest(done)))


@check("tenant", ("tenant verify", "migrate status"), "record.differs", "The record says what is applied",
    "The record is a copy of the tenant's own version table, and the table wins.", repair=_correct)  # fmt: skip
def differs(facts: Recorded) -> Iterator[Verdict]:
    """Compare the record with the version table."""
    found, what = max(facts.applied, default=None), history.disagreement(facts.record, facts.applied)
    if what is None:
        yield Verdict(Level.OK, f"the record says {found}, and so does the tenant")
    else:
        yield Verdict(Level.CRITICAL, what, found)


@check("tenant", ("tenant verify", "migrate verify"), "migration.half", "No migration is half applied",
    "A file with transaction:false is applied statement by statement and can stop in between.")  # fmt: skip
def half(facts: Applied) -> Iterator[Verdict]:
    """Tell each half-applied file, with the command that finishes or abandons it."""
    for key, done in facts.half.items():
        version = key.removesuffix(history.DOWN)
        text = f"migration {version} is {'taken back' if key != version else 'applied'} by half, "
        text += f"with {done} of its statements" + ("" if version in facts.folders.paths else "; its file is gone")
        yield Verdict(Level.WARNING, text, version, fix=ways_out(facts.subject, key, facts.folders)[0], thing=key)


@check("tenant", ("migrate verify",), "files.differ", "Applied migrations are those of the files",
    "A file that was changed, removed or added out of order after it was applied makes tenants differ.")  # fmt: skip
def files_differ(facts: Applied) -> Iterator[Verdict]:
    """Compare the version table with the files; a half-applied file is told by a check of its own."""
    if facts.half:
        return
    known = facts.migrations
    newest = max((m.version for m in known if m.state != "pending"), default="")
    late = [m for m in known if m.state == "pending" and m.version < newest]
    told = {
        "changed": (Level.CRITICAL, "changed after it was applied"),
        "missing": (Level.WARNING, "is applied, but its file is gone"),
        "pending": (Level.WARNING, f"is pending, but {newest} is applied"),
    }
    wrong = [m for state in ("changed", "missing") for m in known if m.state == state] + late
    for m in wrong:
        level, text = told[m.state]
        fix = Run("migrate", "list", facts.subject)
        yield Verdict(level, f"migration {m.version} {text}", m.version, fix=fix, thing=m.version)
    if not wrong:
        pending = sum(m.state == "pending" for m in known)
        text = f"{len(known) - pending} applied migrations fit their files"
        yield Verdict(Level.OK, text + f", {pending} pending" * bool(pending))


@check("file", ("migrate verify",), "files.faulty", "Every migration file can be run",
    "A file that cannot be read or is not in the format of a migration stops what would run it.")  # fmt: skip
def faulty(facts: Files) -> Iterator[Verdict]:
    """Tell each faulty file."""
    for name, fault in facts.faults.items():
        yield replace(failure(fault), subject=name)


@check("server", ("migrate verify",), "schema.drift", "Tenants with the same migrations have the same schema",
    "A schema was changed by hand, or a migration worked differently. "
    "The next migration may fail there.")  # fmt: skip
def drift(facts: Clusters) -> Iterator[Verdict]:
    """Compare the tenants of one set of migrations with what the migrations make, or else with the majority."""
    ordered = sorted(facts.clusters, key=lambda mark: (-len(facts.clusters[mark]), mark))
    majority, reference = ordered[0], facts.reference
    made = majority if reference is None else inventory.digest(reference)
    meant = "the same schema" if reference is None else "the schema that the migrations make"
    total = sum(map(len, facts.clusters.values()))
    for mark in ordered:
        names = tuple(sorted(facts.clusters[mark]))
        if mark == made:
            text = f"server {facts.subject}: {meant} in {len(names)} of {total} tenants"
            yield Verdict(Level.OK, text, len(names), "tenants", affected=names)
            continue
        parts = []
        if reference is not None:
            parts.append(_differences("from what the migrations make", reference, facts.kept[mark]))
        if mark != majority:
            parts.append(_differences("from the majority", facts.kept[majority], facts.kept[mark]))
        text, fix = "; ".join(filter(None, parts)), "repair it by a migration, or by hand"
        yield Verdict(Level.WARNING, text, len(names), "tenants", fix, listed(names, SHOWN), names)


def _differences(against: str, expected: Sequence[Thing], found: Sequence[Thing]) -> str:
    words = [
        f"{d.kind} {d.name}: {d.found or 'missing'}" + (f" (not {d.expected})" if d.found and d.expected else "")
        for d in inventory.compare(expected, found)
    ]
    return f"differs {against}: {listed(words, SHOWN, '; ')}" if words else ""
