"""How durations, origins, ports, times, counts and lists are read and written."""

import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from posduif_cli.errors import InvalidDuration, UsageError

UNITS = {"ms": 1e-3, "s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
LONGEST = timedelta(days=3650)
LAST_PORT = 65_535


def duration(text: str, *, zero: bool = False) -> timedelta:
    """Read a duration such as `300ms 90s 30m 1h 7d 2w`.

    Raises InvalidDuration unless it is one number and one unit, above zero (or zero, with *zero*) and at most ten
    years.

    >>> duration("90s")
    datetime.timedelta(seconds=90)
    """
    match = re.fullmatch(r"([0-9]{1,12})(ms|s|m|h|d|w)", text)
    if match is None:
        raise InvalidDuration(
            f'"{text}" is not a duration',
            why="a duration is a number and a unit",
            hint="300ms 90s 30m 1h 7d 2w",
        )
    seconds = int(match[1]) * UNITS[match[2]]
    if seconds > LONGEST.total_seconds() or (not seconds and not zero):
        least = "it must be" if zero else "it must be above 0 and"
        raise InvalidDuration(f'the duration "{text}" is out of range', why=f"{least} at most 3650d")
    return timedelta(seconds=seconds)


def spell(span: timedelta) -> str:
    """Write a duration in its largest whole unit, so that `duration` reads it again.

    >>> spell(timedelta(hours=36))
    '36h'
    """
    milliseconds = round(span.total_seconds() * 1000)
    for unit, seconds in reversed(UNITS.items()):
        if milliseconds % round(seconds * 1000) == 0:
            return f"{milliseconds // round(seconds * 1000)}{unit}"
    raise AssertionError("every whole number of milliseconds has a unit")


def origin(text: str) -> str:
    """Check that *text* is an origin, `https://host[:port]` without a path, and return it.

    Raises UsageError. The phone keeps the origin of what it scans and nothing behind it.
    """
    found = re.fullmatch(r"https?://(?:[A-Za-z0-9._{}-]+|\[[0-9A-Fa-f:.]+\])(?::([0-9]{1,5}))?", text)
    if found and (found[1] is None or 0 < int(found[1]) <= LAST_PORT):
        return text
    raise UsageError(
        f'"{text}" is not an origin',
        why="phones use the scheme, host and port of what they scan, and no path",
        hint="https://acme.example.com or https://acme.example.com:8443",
    )


def ports(text: str) -> range:
    """Read the TCP ports of `18080-18999`, or of one number. Raises UsageError.

    >>> ports("18080-18999"), ports("8080")
    (range(18080, 19000), range(8080, 8081))
    """
    match = re.fullmatch(r"([0-9]{1,5})(?:-([0-9]{1,5}))?", text.strip())
    first, last = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
    if not 0 < first <= last <= LAST_PORT:
        raise UsageError(f'"{text}" is no range of TCP ports', hint="18080-18999")
    return range(first, last + 1)


def redis(text: str) -> tuple[str, int | None]:
    """Read `HOST[:PORT][/DB]`; return `HOST:PORT`, and the number of the database where it is given. Raises UsageError.

    >>> redis("redis1"), redis("redis1:6380/3"), redis("[::1]/0")
    (('redis1:6379', None), ('redis1:6380', 3), ('[::1]:6379', 0))
    """
    match = re.fullmatch(r"([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::([0-9]{1,5}))?(?:/([0-9]{1,5}))?", text)
    port = int(match[2] or 6379) if match else 0
    if match is None or not 0 < port <= LAST_PORT:
        raise UsageError(f'"{text}" does not name a Redis server', hint="redis1, redis1:6379 or redis1:6379/3")
    return f"{match[1]}:{port}", None if match[3] is None else int(match[3])


def moment(when: datetime | str) -> str:
    """Write a time in UTC, to the second; what Python has no time for is PostgreSQL's text already.

    >>> moment(datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)), moment("infinity")
    ('2026-01-02 03:04:05 UTC', 'infinity')
    """
    return when if isinstance(when, str) else f"{when.astimezone(UTC):%Y-%m-%d %H:%M:%S UTC}"


def listed(items: Sequence[str], most: int, separator: str = ", ") -> str:
    """Join the first of some items, and say how many more there are.

    >>> listed(["a", "b", "c"], 2), listed(["a", "b"], 2, "; ")
    ('a, b and 1 more', 'a; b')
    """
    return separator.join(items[:most]) + (f" and {len(items) - most} more" if len(items) > most else "")


def counted(number: int, noun: str) -> str:
    """Say a number of things.

    >>> counted(1, "user"), counted(2, "user")
    ('1 user', '2 users')
    """
    return f"{number} {noun}" + ("" if number == 1 else "s")
