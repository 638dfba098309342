"""Judging a schema that other hands made: what to make, what to rename, what to leave alone, what to refuse."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from posduif_cli.core.fingerprints import Difference, Thing, flat
from posduif_cli.models import Step

# The order in which missing things are made, so that each finds what it needs.
MADE = (
    "schema",
    "extension",
    "type",
    "sequence",
    "function",
    "table",
    "column",
    "constraint",
    "index",
    "view",
    "trigger",
)


@dataclass(frozen=True)
class Judgement:
    """The differences from what is wanted, sorted by what to do about them; *objections* are fact and remedy."""

    renames: tuple[Step, ...]
    missing: tuple[Thing, ...]
    own: tuple[Thing, ...]
    objections: tuple[tuple[str, str], ...]


def judge(expected: Sequence[Thing], present: Sequence[Thing]) -> Judgement:
    """Compare a schema with what it should be; owners and grants are not looked at."""
    objections: list[tuple[str, str]] = []
    wanted = {(t.kind, t.name): t for t in expected if t.kind not in ("grant", "owner")}
    there = {(t.kind, t.name): t for t in present if t.kind not in ("grant", "owner")}
    tables = [thing.name for thing in wanted.values() if thing.kind == "table"]
    spare = {key: thing for key, thing in there.items() if key not in wanted}
    renames: list[Step] = []
    missing: list[Thing] = []
    for key, thing in wanted.items():
        if key in there:
            if there[key].definition != thing.definition:
                difference = Difference(*key, thing.definition, there[key].definition)
                objections.append((str(difference), _mend(thing, there[key])))
        elif thing.kind == "column" and any(
            thing.name.startswith(f"{table}.") and ("table", table) not in there for table in tables
        ):
            continue  # comes with its table
        elif thing.kind == "constraint" and (twin := _twin(thing, spare.values())):
            del spare[twin.kind, twin.name]
            table, old = _place(twin)
            renaming = f"ALTER TABLE {table} RENAME CONSTRAINT {old} TO {_place(thing)[1]}"
            renames.append(Step("rename", f"constraint {twin.name}", renaming))
        elif thing.ddl is None or thing.kind not in MADE:
            objections.append((f"{thing.kind} {thing.name} is missing", "make it as the migration that makes it does"))
        else:
            missing.append(thing)
    for thing in spare.values():
        if any(thing.name.startswith(f"{table}.") for table in tables) and (reason := _breaks(thing, wanted.values())):
            objections.append(reason)
    missing.sort(key=lambda t: (MADE.index(t.kind), t.definition.startswith("FOREIGN"), t.name))
    return Judgement(tuple(renames), tuple(missing), tuple(sorted(spare.values())), tuple(objections))


def ours(expected: Sequence[Thing], present: Sequence[Thing]) -> set[str]:
    """Name what posduif_admin comes to own: what the migrations make, and what triggers on it run."""
    owned = {thing.name for thing in expected if thing.kind in ("table", "view", "sequence", "function", "type")}
    for thing in present:
        if thing.kind == "trigger" and (run := re.search(r"EXECUTE FUNCTION ([^(]+)\(", thing.definition)):
            owned |= {f"{run[1]}()"} if any(thing.name.startswith(f"{name}.") for name in owned) else set()
    return owned


def outermost(things: Sequence[Thing]) -> list[Thing]:
    """Leave out what is part of a table that is listed itself."""
    tables = [thing.name for thing in things if thing.kind == "table"]
    return [
        thing
        for thing in things
        if not any(thing.name.startswith(f"{table}.") or f" ON {table} " in thing.definition for table in tables)
        and not any(f"OWNED BY {table}." in thing.definition for table in tables)
    ]


def _twin(thing: Thing, spare: Iterable[Thing]) -> Thing | None:
    """Find a constraint that means the same under another name."""
    for other in spare:
        same = other.kind == "constraint" and other.definition == thing.definition
        if same and _place(other)[0] == _place(thing)[0]:
            return other
    return None


def _breaks(thing: Thing, wanted: Iterable[Thing]) -> tuple[str, str] | None:
    """Say why something of the database's own on one of our tables would make the tables behave otherwise."""
    if thing.kind == "constraint" and thing.definition.startswith("FOREIGN KEY"):
        table, bare = _place(thing)
        for other in wanted:
            same = other.kind == "constraint" and _place(other)[0] == table
            if same and other.definition.partition(" ON ")[0] == thing.definition.partition(" ON ")[0]:
                return (
                    f"constraint {thing.name} is {thing.definition} beside {other.name} with {other.definition}: "
                    "the two act differently when a row is deleted",
                    f"ALTER TABLE {table} DROP CONSTRAINT {bare};",
                )
    table, _, bare = thing.name.rpartition(".")
    if (
        thing.kind == "column"
        and thing.definition.endswith("NOT NULL")
        and not re.search("DEFAULT|GENERATED", thing.definition)
    ):
        filled = f"column {thing.name} must be filled, which nobody does"
        return filled, f"ALTER TABLE {table} ALTER {bare} DROP NOT NULL;"
    if thing.kind == "rule":
        return f"rule {thing.name} rewrites statements", f"DROP RULE {bare} ON {table};"
    if thing.kind == "trigger" and thing.definition == "DISABLED":
        return f"trigger {thing.name} is disabled", f"ALTER TABLE {table} ENABLE TRIGGER ALL;"
    return None


def _place(thing: Thing) -> tuple[str, str]:
    """Return table and bare name of a constraint."""
    found = re.match(r"ALTER TABLE (.+?) ADD CONSTRAINT (\"[^\"]+\"|\S+) ", thing.ddl or "")
    assert found is not None
    return found[1], found[2]


def _mend(expected: Thing, found: Thing) -> str:
    """Return the SQL that makes a thing as expected, or removes it, so that adopting makes it anew."""
    place, _, bare = expected.name.rpartition(".")
    if expected.kind == "column":
        return _mend_column(place, bare, expected.definition, found.definition)
    if expected.kind == "constraint":
        return "ALTER TABLE {} DROP CONSTRAINT {};".format(*_place(expected))
    if expected.kind == "index" and found.definition.endswith(" INVALID"):
        return f"REINDEX INDEX {expected.name};"
    if expected.kind == "trigger" and found.definition.removesuffix(" DISABLED") == expected.definition:
        return f"ALTER TABLE {place} ENABLE TRIGGER {bare};"
    if expected.kind == "trigger":
        return f"DROP TRIGGER {bare} ON {place};"
    if expected.kind == "function" and expected.ddl:
        return flat(expected.ddl) + ";"
    if expected.kind == "table" and found.definition == "UNLOGGED":
        return f"ALTER TABLE {expected.name} SET LOGGED;"
    if expected.kind == "table" and found.definition.startswith("ROW LEVEL SECURITY"):
        return f"ALTER TABLE {expected.name} DISABLE ROW LEVEL SECURITY, NO FORCE ROW LEVEL SECURITY;"
    return f"DROP {expected.kind.upper()} {expected.name};"


_COLUMN = re.compile(r"(?P<type>.+?)(?: (?P<default>(?:DEFAULT|GENERATED) .+?))?(?P<required> NOT NULL)?")


def _mend_column(table: str, column: str, expected: str, found: str) -> str:
    want, have = _COLUMN.fullmatch(expected), _COLUMN.fullmatch(found)
    assert want is not None
    assert have is not None
    parts = []
    if want["type"] != have["type"]:
        zoned = have["type"] == "timestamp with time zone"
        value = f"{column} AT TIME ZONE 'UTC'" if zoned else f"{column}::text::{want['type']}"
        if have["default"]:
            parts.append(f"ALTER {column} DROP DEFAULT")  # it need not fit the new type
        parts.append(f"ALTER {column} TYPE {want['type']} USING {value}")
    if want["default"] and (parts or want["default"] != have["default"]):
        parts.append(f"ALTER {column} SET {want['default']}")
    elif have["default"] and not parts:
        parts.append(f"ALTER {column} DROP DEFAULT")
    if want["required"] != have["required"]:
        parts.append(f"ALTER {column} {'SET' if want['required'] else 'DROP'} NOT NULL")
    return f"ALTER TABLE {table} {', '.join(parts)};"
