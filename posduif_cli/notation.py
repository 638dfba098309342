"""How times are written in sentences."""

from datetime import UTC, datetime


def moment(when: datetime | str) -> str:
    """Write a time in UTC, to the second; what Python has no time for is PostgreSQL's text already.

    >>> moment(datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)), moment("infinity")
    ('2026-01-02 03:04:05 UTC', 'infinity')
    """
    return when if isinstance(when, str) else f"{when.astimezone(UTC):%Y-%m-%d %H:%M:%S UTC}"
