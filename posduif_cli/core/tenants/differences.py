"""How a schema that other people made differs: what to make, rename, leave alone, or refuse."""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from posduif_cli.core.schema.inventory import Difference, Thing, flat
from posduif_cli.models.runs import Step

# The order in which missing things are made, so that each finds what it needs.
MADE = (
    "schema", "extension", "type", "sequence", "function", "table", "column", "constraint", "index", "view", "trigger"
)  # fmt: skip
ASIDE = "SET SCHEMA before_posduif"  # where relations are moved to: nothing that may hold rows is ever dropped
SHOWN = 80


@dataclass(frozen=True)
class Objection:
    """A point against an adoption: the fact, and the SQL that removes it, without a semicolon at its end, or None.

    *owner* runs it; None is the owner of *subject*, which is posduif_admin where no other role owns it. *accept* is the
    name by which `tenant adopt --accept` takes it in all the same.
    """

    what: str
    fix: str | None
    subject: str | None = None
    owner: str | None = None
    accept: str | None = None


@dataclass(frozen=True)
class Judgement:
    """The differences from what is wanted, sorted by what to do about them.

    *adjusted* are those of the sync engine's own script, which mean nothing or are known to do no good.
    """

    renames: tuple[Step, ...]
    adjusted: tuple[Step, ...]
    missing: tuple[Thing, ...]
    own: tuple[Thing, ...]
    objections: tuple[Objection, ...]


def judge(expected: Sequence[Thing], present: Sequence[Thing]) -> Judgement:
    """Compare a schema with what it should be; owners and grants are not looked at."""
    objections: list[Objection] = []
    wanted = {(t.kind, t.name): t for t in expected if t.kind not in ("grant", "owner")}
    there = {(t.kind, t.name): t for t in present if t.kind not in ("grant", "owner")}
    tables = {thing.name for thing in wanted.values() if thing.kind == "table"}
    spare = {key: thing for key, thing in there.items() if key not in wanted}
    renames: list[Step] = []
    adjusted: list[Step] = []
    missing: list[Thing] = []
    for key, thing in wanted.items():
        alike = (
            t for t in spare.values() if (t.kind, t.table, t.definition) == (thing.kind, thing.table, thing.definition)
        )
        if key in there:
            if there[key].definition == thing.definition:
                continue
            if (step := _adjustment(thing, there[key])) is not None:
                adjusted.append(step)
            else:
                objections.append(_objection(thing, there[key]))
        elif thing.kind == "column" and thing.table in tables and ("table", thing.table) not in there:
            continue  # comes with its table
        elif thing.kind == "constraint" and (twin := next(alike, None)):
            del spare[twin.kind, twin.name]
            renaming = f"ALTER TABLE {twin.table} RENAME CONSTRAINT {twin.bare} TO {thing.bare}"
            renames.append(Step("rename", f"constraint {twin.name}", renaming))
        elif thing.ddl is None or thing.kind not in MADE:
            objections.append(Objection(f"{thing.kind} {thing.name} is missing: its migration makes it", None))
        else:
            missing.append(thing)
    for thing in [thing for thing in spare.values() if thing.definition in _RETIRED and thing.kind == "index"]:
        del spare[thing.kind, thing.name]
        adjusted.append(Step("adjust", f"index {thing.name}", f"DROP INDEX {thing.name}"))
    for thing in spare.values():
        if thing.table in tables and (reason := _breaks(thing, wanted.values())):
            objections.append(reason)
    missing.sort(key=lambda t: (MADE.index(t.kind), t.definition.startswith("FOREIGN"), t.name))
    return Judgement(tuple(renames), tuple(adjusted), tuple(missing), tuple(sorted(spare.values())), tuple(objections))


# What the sync engine's own script does otherwise: a test of a column that is never null, and a rule that deletes the
# tokens of a web user who is deleted, used ones included, which users refer to.
_NEVER_NULL = re.compile(r"(\()?OLD\.status IS NULL OR (OLD\.status (?:!=|<>) '\w+')(?(1)\))")
# What an older bundled migration made and a later one drops, as PostgreSQL prints it.
_RETIRED = {"CREATE INDEX idx_messages_recipient ON public.messages USING btree (recipient_id)"}
_ENGINE_FUNCTIONS = ("public.update_synced_at()", "public.update_read_at()")


def _adjustment(expected: Thing, found: Thing) -> Step | None:
    """Return what makes a thing of the sync engine's own script as expected; None for any other difference."""
    if expected.name in _ENGINE_FUNCTIONS and _NEVER_NULL.sub(r"\2", found.definition) == expected.definition:
        return Step("adjust", f"function {expected.name}", expected.ddl)
    key = expected.table == "public.enrollment_tokens" and expected.definition.startswith("FOREIGN KEY (created_by) ")
    if key and found.definition == f"{expected.definition} ON DELETE CASCADE":
        table, bare = expected.table, expected.bare
        sql = f"ALTER TABLE {table} DROP CONSTRAINT {bare}, ADD CONSTRAINT {bare} {expected.definition}"
        return Step("adjust", f"constraint {expected.name}", sql)
    return None


def outermost(things: Sequence[Thing]) -> list[Thing]:
    """Return things without those that are part of a table that is listed itself."""
    tables = {thing.name for thing in things if thing.kind == "table"}
    return [
        thing
        for thing in things
        if thing.table not in tables and not any(f"OWNED BY {table}." in thing.definition for table in tables)
    ]


def _breaks(thing: Thing, wanted: Iterable[Thing]) -> Objection | None:
    """Return why a thing of the database's own on one of our tables would change how they behave, or None."""
    assert thing.table is not None
    if thing.kind == "constraint" and thing.definition.startswith("FOREIGN KEY"):
        for other in wanted:
            same = other.kind == "constraint" and other.table == thing.table
            if same and other.definition.partition(" ON ")[0] == thing.definition.partition(" ON ")[0]:
                return Objection(
                    f"constraint {thing.name} is {thing.definition} beside {other.name} with {other.definition}: "
                    "the two act differently when a row is deleted",
                    f"ALTER TABLE {thing.table} DROP CONSTRAINT {thing.bare}",
                    thing.table,
                )
    filled = thing.kind == "column" and re.search("DEFAULT|GENERATED", thing.definition)
    if thing.kind == "column" and thing.definition.endswith("NOT NULL") and not filled:
        what = f"column {thing.name} must be filled, and neither the engine nor posduif fills it"
        return Objection(what, f"ALTER TABLE {thing.table} ALTER {thing.bare} DROP NOT NULL", thing.table)
    if thing.kind == "trigger" and thing.definition == "DISABLED":
        what = f"trigger {thing.name} is disabled"
        return Objection(what, f"ALTER TABLE {thing.table} ENABLE TRIGGER ALL", thing.table)
    return None


def _objection(expected: Thing, found: Thing) -> Objection:
    """Return how a thing differs from what is expected, with the SQL that repairs it or makes room for another."""
    what = str(Difference(expected.kind, expected.name, expected.definition, found.definition))
    if expected.kind == "function":
        what = f"function {expected.name} {_apart(expected.definition, found.definition)}"
    repair = _repair(expected, found)
    if expected.kind == "table" and repair and ASIDE in repair:
        what += "; its rows stay in it, and the new table is empty"
    return Objection(what, repair, found.table or found.name)


def _apart(expected: str, found: str) -> str:
    """Return in what two texts differ, without their common beginning and end."""
    want, have = expected.split(), found.split()
    while want and have and want[0] == have[0]:
        del want[0], have[0]
    while want and have and want[-1] == have[-1]:
        del want[-1], have[-1]
    has, misses = (" ".join(words) for words in (have, want))
    if len(has) > SHOWN or len(misses) > SHOWN:
        return "is not the migrations'"
    if has and misses:
        return f"has `{has}` in place of the migrations' `{misses}`"
    return f"has `{has}` more than the migrations'" if has else f"lacks the migrations' `{misses}`"


def _repair(expected: Thing, found: Thing) -> str | None:
    """Return the SQL that makes a thing as expected, or makes room for it; nothing that may hold rows is dropped.

    None for a table that inherits or is inherited from: `strangers` refuses it.
    """
    kind, name, table, bare = expected.kind, expected.name, expected.table, expected.bare
    if kind == "column":
        return f"ALTER TABLE {table} {', '.join(_repair_column(bare, expected.definition, found.definition))}"
    if kind == "constraint":
        return f"ALTER TABLE {table} DROP CONSTRAINT {bare}"
    if kind == "index":
        return f"REINDEX INDEX {name}" if found.definition.endswith(" INVALID") else f"DROP INDEX {name}"
    if kind == "trigger" and found.definition.removesuffix(" DISABLED") == expected.definition:
        return f"ALTER TABLE {table} ENABLE TRIGGER {bare}"
    if kind in ("trigger", "rule", "policy"):
        return f"DROP {kind.upper()} {bare} ON {table}"
    if kind == "function":
        return flat(expected.ddl) if expected.ddl else f"DROP ROUTINE {name}"
    if kind == "extension":
        return f"ALTER EXTENSION {name} SET {expected.definition}"
    if kind == "sequence":
        return f"ALTER SEQUENCE {name} {expected.definition}" + ("" if "CYCLE" in expected.definition else " NO CYCLE")
    if kind == "table" and found.definition == "UNLOGGED":
        return f"ALTER TABLE {name} SET LOGGED"
    if kind == "table" and found.definition.startswith("ROW LEVEL SECURITY"):
        return f"ALTER TABLE {name} DISABLE ROW LEVEL SECURITY, NO FORCE ROW LEVEL SECURITY"
    if kind == "table" and found.definition.startswith("INHERITS"):
        return None
    word = "TYPE" if kind == "type" else "TABLE"  # ALTER TABLE takes views, too
    return f"CREATE SCHEMA IF NOT EXISTS before_posduif; ALTER {word} {name} {ASIDE}"


_COLUMN = re.compile(r"(?P<type>.+?)(?: (?P<default>(?:DEFAULT|GENERATED) .+?))?(?P<required> NOT NULL)?")


def _repair_column(column: str | None, expected: str, found: str) -> Iterator[str]:
    """Yield the actions of ALTER TABLE that make a column as expected; what its default made of its rows stays."""
    want, have = _COLUMN.fullmatch(expected), _COLUMN.fullmatch(found)
    assert want is not None
    assert have is not None
    default, retyped = have["default"], want["type"] != have["type"]
    if default and (retyped or want["default"] != default):  # it need not fit the new type
        generated = "IDENTITY" if default.endswith("IDENTITY") else "EXPRESSION"
        yield f"ALTER {column} DROP {generated if default.startswith('GENERATED') else 'DEFAULT'}"
    if retyped:
        zoned = have["type"] == "timestamp with time zone"
        value = f"{column} AT TIME ZONE 'UTC'" if zoned else f"{column}::text::{want['type']}"
        yield f"ALTER {column} TYPE {want['type']} USING {value}"
    if want["default"] and (retyped or want["default"] != default):
        yield f"ALTER {column} SET {want['default']}"
    if want["required"] != have["required"]:
        yield f"ALTER {column} {'SET' if want['required'] else 'DROP'} NOT NULL"
