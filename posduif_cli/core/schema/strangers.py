"""Strangers' code: expressions on a tenant's tables that would run other roles' functions in our sessions.

SET ROLE does not fence in a superuser's session: code that a statement of posduif runs may go back to the login's own
role. So every expression on the tables is taken apart, as the catalog stores it, down to each function, operator and
type. pg_depend is not enough: it leaves out everything that comes with PostgreSQL, and some of that runs SQL or reads
relations that an argument names. An expression that cannot be judged is refused.
"""

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from posduif_cli.core.schema.inventory import Thing
from posduif_cli.db import queries
from posduif_cli.db.session import ADMIN_ROLE, Session

BUILTIN = 16384  # objects below were made with the cluster, by initdb
ACCEPTED = "accepted"  # the record's key for the names of what an adoption took in
HARMLESS = frozenset({"now", "clock_timestamp", "gen_random_uuid", "nextval"})
BOOKKEEPING = ("public.schema_migrations", "public.posduif_migration_progress")
# The nodes of an expression that can be judged by the functions, operators and types in it; up to PostgreSQL 15 some
# have shorter names. Subqueries, XML and JSON constructors and nodes of later versions are not among them.
_JUDGED = re.compile(
    r"VAR|CONST|FUNCEXPR|OPEXPR|DISTINCTEXPR|NULLIFEXPR|SCALARARRAYOPEXPR|BOOLEXPR|RELABELTYPE|COERCEVIAIO"
    r"|ARRAYCOERCEEXPR|COLLATE(EXPR)?|CASE(EXPR)?|(CASE)?WHEN|CASETESTEXPR|ARRAY(EXPR)?|COALESCE(EXPR)?|MINMAX(EXPR)?"
    r"|SQLVALUEFUNCTION|NULLTEST|BOOLEANTEST|COERCETODOMAIN(VALUE)?|SUBSCRIPTINGREF|NAMEDARGEXPR"
)
_NODE = re.compile(r"(?<!\\)\{(\w+)")
_CALLED = re.compile(r":(?:funcid|aggfnoid|winfnoid) ([1-9]\d*)")
_FUNCTION = re.compile(r":(?:opfuncid|hashfuncid|negfuncid) (\d+)")
_OPERATOR = re.compile(r":opno (\d+)")
_TYPE = re.compile(r":\w*type(?:id|Id)? (\d+)")


@dataclass(frozen=True)
class Stranger:
    """Something that may run code which comes neither with PostgreSQL nor with posduif.

    *name* is what `tenant adopt --accept` takes, *why* says what it does. *fix* is SQL without a semicolon, or None
    where no statement would help. *owner* may run it. *runs* are the functions that it runs, without PostgreSQL's own;
    *takeable* are those of them that posduif_admin could own without running them with its rights for every role.
    """

    name: str
    why: str
    fix: str | None
    owner: str
    runs: tuple[str, ...] = ()
    takeable: tuple[str, ...] = ()

    @property
    def acceptable(self) -> bool:
        """Whether it may be accepted by name; posduif's own tables must be plain ones that no table inherits from."""
        return not self.name.startswith("table ")


@dataclass(frozen=True)
class _Carrier:
    kind: str
    name: str
    bare: str
    owner: str
    tree: str | None
    functions: list[int]
    operators: list[int]
    types: list[int]
    others: list[int]
    reason: str | None
    fix: str | None


@dataclass(frozen=True)
class _Described:
    """What the catalog says of a function, an operator or a type."""

    oid: int
    name: str


@dataclass(frozen=True)
class _Function(_Described):
    bare: str
    builtin: bool
    volatility: str
    by_name: bool
    definer: bool
    owner: str
    member: bool


D = TypeVar("D", bound=_Described)


@dataclass(frozen=True)
class _Operator(_Described):
    function: int


@dataclass(frozen=True)
class _Type(_Described):
    owner: str
    kind: str
    element: int
    base: int
    tree: str


@dataclass
class _Code:
    """An expression taken apart: reasons against it that are certain, reasons that are not, and all its functions."""

    foreign: list[str] = field(default_factory=list)
    unsure: list[str] = field(default_factory=list)
    functions: Sequence[_Function] = ()


@dataclass(frozen=True)
class Trust:
    """What may run: *things* that are as the migrations make them, by kind and name; *known* decides about the rest.

    *known* is asked for the bare name and the owner of a function or carrier.
    """

    things: Collection[tuple[str, str]]
    known: Callable[[str, str], bool] = lambda name, owner: False

    def has(self, kind: str, name: str, bare: str, owner: str) -> bool:
        """Return whether something is known."""
        return (kind, name) in self.things or self.known(bare, owner)


def accepted(extra: Mapping[str, object]) -> frozenset[str]:
    """Return the names in a record of what an adoption accepted; *extra* are the record's further keys."""
    names = extra.get(ACCEPTED)
    return frozenset(name for name in names if isinstance(name, str)) if isinstance(names, list) else frozenset()


def same(expected: Iterable[Thing], present: Iterable[Thing]) -> set[tuple[str, str]]:
    """Return kind and name of what is exactly as expected."""
    return {(t.kind, t.name) for t in {*expected} & {*present}}


def find(conn: Session, tables: Sequence[str], trust: Trust) -> tuple[Stranger, ...]:
    """Return what on *tables* may run strangers' code, ordered by name; *tables* are qualified and quoted names.

    Only catalogs are read. Further tables of posduif_admin count as posduif's own.
    """
    with conn.transaction(rollback=True):
        conn.execute("SELECT set_config('search_path', 'pg_catalog', true), set_config('jit', 'off', true)")
        named = queries.load("schema/strangers")
        carriers = conn.rows(_Carrier, named["list_carriers"], tables=[*tables], admin=ADMIN_ROLE)
        judge = _Judge(conn, trust, {oid for carrier in carriers for oid in carrier.types})
        found: dict[str, Stranger] = {}
        for carrier in carriers:
            if stranger := judge.judge(carrier):
                # `--accept` takes a column's default and its type by one name.
                found[stranger.name] = _joined(found.get(stranger.name, stranger), stranger)
    return tuple(found[name] for name in sorted(found))


def _joined(one: Stranger, other: Stranger) -> Stranger:
    return replace(
        one,
        why=" and ".join(dict.fromkeys([one.why, other.why])),
        fix="; ".join(dict.fromkeys(fix for fix in (one.fix, other.fix) if fix)) or None,
        runs=tuple(dict.fromkeys([*one.runs, *other.runs])),
        takeable=tuple(dict.fromkeys([*one.takeable, *other.takeable])),
    )


class _Judge:
    """Judges carriers of code. It keeps what the catalog said of functions, operators and types."""

    def __init__(self, conn: Session, trust: Trust, taken: Collection[int]) -> None:
        self._conn = conn
        self._trust = trust
        self._taken = taken
        self._known: dict[str, dict[int, Any]] = {}
        self._types: dict[int, tuple[str | None, str | None]] = {}
        self._queries = queries.load("schema/strangers")

    def judge(self, carrier: _Carrier) -> Stranger | None:
        """Return why a carrier is refused, or None."""
        # posduif runs no view, so not every node of one has to be known.
        code = self._code(carrier.tree or "", carrier.functions, carrier.operators, whole=carrier.kind != "view")
        reasons = list(code.foreign)
        if not self._trust.has(carrier.kind, carrier.name, carrier.bare, carrier.owner):
            reasons += [*([carrier.reason] if carrier.reason else []), *code.unsure]
        reasons += [f"is of type {reason}" for oid in carrier.types if (reason := self._type(oid)[0])]
        if any(oid >= BUILTIN for oid in carrier.others):
            reasons.append("sorts by an operator class or a collation that PostgreSQL does not bring")
        if not reasons:
            return None
        runs = [found for found in code.functions if not found.builtin]
        return Stranger(
            name=f"{carrier.kind} {carrier.name}",
            why=" and ".join(dict.fromkeys(reasons)),
            fix=carrier.fix,
            owner=carrier.owner,
            runs=tuple(found.name for found in runs),
            takeable=tuple(found.name for found in runs if not (found.definer or found.member)),
        )

    def _code(self, tree: str, functions: Sequence[int], operators: Sequence[int], *, whole: bool = True) -> _Code:
        """Take an expression apart; with *whole* each node in it must be one that can be judged."""
        code = _Code()
        called, used = _ids(_CALLED, tree), {*operators, *_ids(_OPERATOR, tree)}
        wanted = {*functions, *called, *_ids(_FUNCTION, tree)}
        for operator in self._described(_Operator, "list_operators", used):
            wanted.add(operator.function)
            if operator.oid >= BUILTIN:
                code.foreign.append(f"uses operator {operator.name}")
        code.functions = self._described(_Function, "list_functions", wanted)
        for found in code.functions:
            if not found.builtin and not self._trust.has("function", found.name, found.bare, found.owner):
                code.foreign.append(f"runs {found.name} of {found.owner}")
            elif found.builtin and found.volatility == "v" and found.bare not in HARMLESS:
                code.unsure.append(f"runs {found.name}, which is volatile")
            elif found.by_name:
                code.unsure.append(f"runs {found.name}, which works on what an argument names")
        for oid in sorted(_ids(_TYPE, tree)):
            reason, castable = self._type(oid)
            reason = reason or self._alterable(oid)
            if reason or (called and castable):
                code.foreign.append(f"uses type {reason}" if reason else f"hands {castable} to a function")
        nodes = dict.fromkeys(_NODE.findall(tree)) if whole else ()
        code.unsure += [f"holds {node}, which cannot be judged" for node in nodes if not _JUDGED.fullmatch(node)]
        return code

    def _type(self, oid: int) -> tuple[str | None, str | None]:
        """Return (why a type is refused, the enum that it is or holds), None for each that is not so.

        The owner of an enum may define a cast of it, and functions such as to_jsonb() look for one.
        """
        if oid < BUILTIN:
            return None, None
        if oid not in self._types:
            self._types[oid] = f"{oid}, which is made of itself", None
            self._types[oid] = self._type_of(self._look_up(oid))
        return self._types[oid]

    def _look_up(self, oid: int) -> _Type:
        return self._described(_Type, "list_types", [oid])[0]

    def _alterable(self, oid: int) -> str | None:
        """Return why a type is refused that is, or holds, a domain which an adoption leaves to its owner.

        The types of columns are taken over. The owner of any other domain may add a constraint to it at any time.
        """
        if oid < BUILTIN or oid in self._taken:
            return None
        found = self._look_up(oid)
        if found.element:
            return self._alterable(found.element)
        if found.kind != "d" or found.owner == ADMIN_ROLE or self._trusted(found):
            return None
        return f"{found.name}, to which {found.owner} may give constraints"

    def _trusted(self, found: _Type) -> bool:
        return self._trust.has("type", found.name, found.name.rpartition(".")[2], found.owner)

    def _type_of(self, found: _Type) -> tuple[str | None, str | None]:
        if self._trusted(found):
            return None, None
        if found.element:
            reason, castable = self._type(found.element)
            return reason or self._alterable(found.element), castable
        if found.kind == "e":
            return None, found.name
        if found.kind != "d":
            return f"{found.name}, which PostgreSQL does not bring", None
        code = self._code(found.tree, (), ())
        if reasons := [*code.foreign, *code.unsure]:
            return f"{found.name}, which {reasons[0]}", None
        reason, castable = self._type(found.base)
        return reason or self._alterable(found.base), castable

    def _described(self, model: type[D], query: str, wanted: Iterable[int]) -> list[D]:
        """Return what the catalog says of some OIDs, asked once for each; 0 means none."""
        oids, known = {*wanted} - {0}, self._known.setdefault(query, {})
        if missing := sorted(oids - known.keys()):
            known |= {row.oid: row for row in self._conn.rows(model, self._queries[query], oids=missing)}
        return [known[oid] for oid in sorted(oids)]


def _ids(pattern: re.Pattern[str], tree: str) -> set[int]:
    return {int(oid) for oid in pattern.findall(tree)}
