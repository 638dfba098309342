"""Times without a zone in a database that other people made: which zone they were written in, and making them UTC."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from posduif_cli.core.schema.inventory import Thing
from posduif_cli.db import queries
from posduif_cli.db.quoting import literal
from posduif_cli.db.session import Session
from posduif_cli.errors import Conflict, Run, UsageError
from posduif_cli.models.runs import Step
from posduif_cli.notation import counted

UTC = frozenset({"utc", "etc/utc", "gmt", "etc/gmt", "zulu", "etc/zulu", "uct", "etc/uct", "universal", "greenwich"})
SHOWN = (("messages", "created_at"), ("enrollment_tokens", "expires_at"), ("users", "created_at"))
SAMPLE = 3  # rows that are shown before and after


@dataclass(frozen=True)
class Choice:
    """What becomes of the times: those written in *zone* are converted, or they are *kept*; neither is no choice."""

    zone: str | None = None
    kept: bool = False


@dataclass(frozen=True)
class Times:
    """What an adoption does to times: *steps* that convert them, and *changes* in words."""

    steps: Sequence[Step] = ()
    changes: Sequence[str] = ()


def judge(
    conn: Session, choice: Choice, present: Sequence[Thing], tables: Sequence[str], again: Sequence[str]
) -> Times:
    """Return what becomes of the times in *tables*, which are qualified and quoted; *again* is the command once more.

    Raises Conflict, with three rows as they are and as they would be, where rows were written in another zone than UTC
    and nothing was chosen, or where rows would be from the future; UsageError for a zone that PostgreSQL does not know.
    """
    columns = {table: found for table in tables if (found := _columns(present, table))}
    zones = _zones(conn)
    told = [f"its sessions used {', '.join(zones)}"] if not _all_utc(zones) else []
    if choice.zone is not None:
        zone = _known(conn, choice.zone)
        if ahead := _from_the_future(conn, columns, zone):
            raise Conflict(
                f"times of database {conn.database} that are from {zone} would be in the future",
                why=[ahead, "nothing was changed"],
                hint="--times-from with the zone that the database's sessions used",
            )
        return Times(list(_convert(conn, columns, zone)), [*told, *_converted(conn, columns, zone)])
    if (choice.kept or _all_utc(zones)) and (ahead := _from_the_future(conn, columns, "UTC")):
        told.append(f"{ahead}: were they written in another zone than UTC?")
    if choice.kept:
        return Times(changes=[*told, *_kept(conn)])
    if _all_utc(zones) or not _has_rows(conn, columns):
        return Times(changes=told)
    zone = next(zone for zone in (text.partition(" (")[0] for text in zones) if zone.lower() not in UTC)
    raise Conflict(
        f"the times in database {conn.database} were not written in UTC, as far as its settings tell",
        why=[
            f"sessions there use {', '.join(zones)}; the columns hold no zone, and the engine will take them for UTC",
            *(f"{row}, if they are from {zone}" for row in _sample(conn, columns, zone)),
            "nothing was changed",
        ],
        hint=[
            Run(*again, "--times-from", zone, lead="to convert them"),
            Run(*again, "--keep-times", lead="to have them count as UTC as they are"),
        ],
    )


def _columns(present: Sequence[Thing], table: str) -> list[str]:
    """Return the names, as SQL writes them, of a table's columns with a time and no zone that can be written to."""
    return [
        thing.bare
        for thing in present
        if thing.kind == "column"
        and thing.table == table
        and thing.bare is not None
        and thing.definition.startswith("timestamp without time zone")
        and "GENERATED" not in thing.definition
    ]


def _zones(conn: Session) -> list[str]:
    """Return the time zones of sessions in the database, with the login where it has one of its own."""
    rows = conn.tuples(queries.load("tenants/adopt")["list_zones"])
    return [f"{zone} ({login})" if login else str(zone) for login, zone in rows] or ["an unknown time zone"]


def _all_utc(zones: Sequence[str]) -> bool:
    return all(zone.partition(" (")[0].lower() in UTC for zone in zones)


def _known(conn: Session, zone: str) -> str:
    """Return a zone as PostgreSQL spells it; other texts it would read as offsets with the sign turned round."""
    for (name,) in conn.tuples(queries.load("tenants/adopt")["find_zone"], zone=zone):
        return str(name)
    raise UsageError(f'"{zone}" is not a time zone', hint="--times-from Asia/Tokyo")


def _has_rows(conn: Session, columns: Mapping[str, Sequence[str]]) -> bool:
    return any(
        conn.tuples(f"SELECT FROM {table} WHERE num_nonnulls({', '.join(names)}) > 0 LIMIT 1")
        for table, names in columns.items()
    )


def _utc(column: str, zone: str) -> str:
    return f"{column} AT TIME ZONE {_quoted(zone)} AT TIME ZONE 'UTC'"


def _quoted(text: str) -> str:
    return literal(text).as_string(None)


def _convert(conn: Session, columns: Mapping[str, Sequence[str]], zone: str) -> Iterator[Step]:
    """Yield what converts each table; its triggers rest meanwhile, or they would write the present time into rows."""
    for table, names in columns.items():
        setting = ", ".join(f"{name} = {_utc(name, zone)}" for name in names)
        resting = [f"ALTER TABLE {table} DISABLE TRIGGER USER", f"UPDATE {table} SET {setting}"]  # noqa: S608
        for trigger, how in conn.tuples(queries.load("tenants/adopt")["list_triggers"], table=table):
            resting.append(f"ALTER TABLE {table} ENABLE {how}TRIGGER {trigger}")
        yield Step("convert times", table, "; ".join(resting))


def _converted(conn: Session, columns: Mapping[str, Sequence[str]], zone: str) -> Iterator[str]:
    """Say what is converted, three rows of it, and how many rows hold times that occur twice there, or never."""
    yield f"all times were converted from {zone} to UTC"
    yield from _sample(conn, columns, zone)
    for table, names in columns.items():
        local = [f"({name} AT TIME ZONE {_quoted(zone)})" for name in names]
        back = [f"{at} AT TIME ZONE {_quoted(zone)}" for at in local]
        # Clocks are set back by an hour, in few places by half of one.
        earlier = [f"(isfinite({name}) AND ({at} - interval '{span}') AT TIME ZONE {_quoted(zone)} = {name})"
                   for name, at in zip(names, local, strict=True) for span in ("1 hour", "30 minutes")]  # fmt: skip
        never = " OR ".join(f"{name} <> {again}" for name, again in zip(names, back, strict=True))
        question = (
            f"SELECT count(*) FILTER (WHERE {' OR '.join(earlier)}), count(*) FILTER (WHERE {never}) FROM {table}"  # noqa: S608
        )
        ((twice, gone),) = conn.tuples(question)
        if twice:
            yield f"{counted(twice, 'row')} of {table} with a time that occurs twice in {zone}: the later one was taken"
        if gone:
            yield f"{counted(gone, 'row')} of {table} with a time that {zone} skips: PostgreSQL reads an hour later"


def _sample(conn: Session, columns: Mapping[str, Sequence[str]], zone: str) -> Iterator[str]:
    """Yield the newest rows of the first table that has some: as they are, and as they would be in UTC."""
    for table, column in SHOWN:
        if column not in columns.get(f"public.{table}", ()):
            continue
        rows = conn.tuples(
            f"SELECT left(id::text, 8), {column}::text, ({_utc(column, zone)})::text FROM public.{table} "  # noqa: S608
            f"WHERE {column} IS NOT NULL ORDER BY {column} DESC LIMIT {SAMPLE}"
        )
        for id_, before, after in rows:
            yield f"{column} {before} in {table} {id_} becomes {after} UTC"
        if rows:
            return


def _from_the_future(conn: Session, columns: Mapping[str, Sequence[str]], zone: str) -> str | None:
    """Return which rows the server itself would have written in the future, read as from *zone*; None where none.

    `updated_at` is set by triggers, so that no phone's clock has a part in it.
    """
    for table, names in columns.items():
        if "updated_at" in names:
            question = (
                f"SELECT count(*), max(updated_at)::text FROM {table} WHERE isfinite(updated_at) "  # noqa: S608
                f"AND updated_at AT TIME ZONE {_quoted(zone)} > now() + interval '5 minutes'"
            )
            ((number, latest),) = conn.tuples(question)
            if number:
                return f"{counted(number, 'row')} of {table}, the latest updated_at is {latest}"
    return None


def _kept(conn: Session) -> Iterator[str]:
    """Say that times stay, and which tokens are open from now on."""
    yield "all times stay as they are and count as UTC from now on"
    named = queries.load("tenants/adopt")
    if conn.tuples(named["find_tables"], tables=["public.enrollment_tokens"]):
        for id_, expires_at in conn.tuples(named["list_open_tokens"]):
            yield f"enrollment token {id_} is open and expires at {expires_at} UTC"
