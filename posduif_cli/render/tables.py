"""What each model shows: its columns on a terminal, all of its fields everywhere else."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from datetime import UTC, datetime, timedelta
from enum import Enum
from pathlib import Path
from typing import Any
from uuid import UUID

from posduif_cli.errors import MigrationFailed, PosduifError
from posduif_cli.notation import listed
from posduif_cli.render import layout

Row = dict[str, Any]
PLAIN = frozenset((str, int, float, bool, type(None)))  # the types that JSON has, too: most values are of them

# The columns that a terminal shows of each model, by its name, so that no model is loaded for it; every other format
# has all fields.
COLUMNS: Mapping[str, tuple[str, ...]] = {
    "Tenant": ("tenant", "server", "state", "schema_version", "pending", "url", "engine_sessions", "size_bytes"),
    "Migration": ("version", "name", "state", "applied_at", "duration_ms"),
    "Outcome": ("tenant", "server", "status", "from", "to", "seconds", "error"),
    "User": ("username", "user_type", "device_id", "enrolled_at", "id"),
    "Token": ("id", "label", "status", "created_by", "expires_at", "username"),
    "Device": ("device_id", "username", "enrolled_at", "last_activity", "sync_status", "pending", "note"),
    "Message": ("sender", "recipient", "content", "status", "created_at", "id"),
    "ServerInfo": (
        "server",
        "reachable",
        "version",
        "tenants",
        "size_bytes",
        "connections",
        "role",
        "warnings",
        "error",
    ),
    "Purged": ("tenant", "server", "deleted"),
    "Setting": ("key", "value", "origin"),
    "Step": ("action", "subject", "tenants"),
    "Adoption": ("tenant", "server", "state", "schema_version", "url", "changed"),
    "Finding": ("level", "check", "subject", "message", "fix"),
    "CheckInfo": ("check", "title", "threshold", "asked"),
    "Backup": ("backup", "tenant", "created_at", "size_bytes", "rows", "verified", "restore_seconds", "pinned"),
    "Aside": ("tenant", "server", "database", "backup", "since", "until", "size_bytes"),
    "Drill": (
        "proved",
        "failed",
        "could_not_verify",
        "left",
        "without",
        "oldest_proof",
        "slowest_tenant",
        "slowest_seconds",
    ),
    "Proof": ("backup", "tenant", "verdict", "rows", "seconds", "reason"),
    "Pruned": ("backup", "tenant", "created_at", "size_bytes", "action", "kept"),
}
# What becomes of a column's texts where the table is too wide for the terminal: they end in an ellipsis, go on in the
# next line, or get a line of their own below the row, so that a command can be copied. Others are shown whole.
CUT = (
    "url",
    "label",
    "username",
    "created_by",
    "subject",
    "name",
    "origin",
    "device_id",
    "sender",
    "recipient",
    "role",
)
FOLDED = (
    "title",
    "asked",
    "key",
    "note",
    "reason",
    "kept",
    "content",
    "message",
    "error",
    "value",
    "warnings",
    "tenants",
)
BELOW = ("fix",)
KINDS: Mapping[str, str] = {
    **dict.fromkeys(CUT, "cut"), **dict.fromkeys(FOLDED, "folded"), **dict.fromkeys(BELOW, "below")
}  # fmt: skip
# The columns of each model that are left out where even that is too wide, the least important first.
LEFT_OUT: Mapping[str, tuple[str, ...]] = {
    "Tenant": ("engine_sessions", "url", "latest_version", "ahead", "error", "server", "size_bytes", "schema_version"),
    "Migration": ("duration_ms", "applied_at"),
    "Outcome": ("seconds", "from", "server", "to"),
    "User": ("enrolled_at", "device_id", "user_type"),
    "Token": ("created_by", "username", "expires_at"),
    "Device": ("enrolled_at", "sync_status", "last_activity", "pending"),
    "Message": ("created_at", "sender", "recipient"),
    "ServerInfo": ("role", "size_bytes", "connections", "version", "tenants"),
    "Setting": ("origin",),
    "Step": ("tenants",),
    "Adoption": ("changed", "url", "schema_version", "server"),
    "Finding": ("subject", "check"),
    "CheckInfo": ("asked", "threshold"),
    "Backup": ("restore_seconds", "rows", "pinned", "size_bytes", "created_at"),
    "Aside": ("backup", "size_bytes", "since", "server", "until"),
    "Proof": ("seconds", "rows"),
    "Pruned": ("size_bytes", "created_at"),
}
ON_REQUEST = frozenset(("size_bytes", "note"))  # shown only where a row has it
RENAMED = {"from_": "from", "bytes": "size_bytes"}
UNWRAPPED: Mapping[str, Callable[[Any], Row]] = {
    "IssuedToken": lambda issued: {
        **row(issued.details),
        "token": str(issued.token),
        "enrollment_url": issued.enrollment_url,
    },
    "Plan": lambda plan: {"dry_run": True, "steps": [row(step) for step in plan.steps]},
    "Health": lambda health: _health(health),
}


@dataclass(frozen=True)
class Changed:
    """A value and whether the command changed anything about it."""

    value: Any
    changed: bool


def plain(value: Any) -> Any:
    """Make a value of JSON's kinds: times in RFC 3339 UTC, sizes and counts as numbers."""
    if type(value) in PLAIN:
        return value
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat(timespec="microseconds" if value.microsecond else "seconds")[:-6] + "Z"
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, UUID | Path):
        return str(value)
    if isinstance(value, timedelta):
        return value.total_seconds()
    if is_dataclass(value) and not isinstance(value, type):
        return row(value)
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, PosduifError):
        from posduif_cli.models.runs import reason

        failed = value if isinstance(value, MigrationFailed) else None
        return {
            "message": reason(value),
            "sqlstate": failed and failed.sqlstate,
            "file": failed and failed.file,
            "line": failed and failed.line,
            "statement": failed and failed.excerpt,
        }
    return value


def row(value: Any) -> Row:
    """Make a model's JSON object."""
    if isinstance(value, Changed):
        return {**row(value.value), "changed": value.changed}
    if type(value).__name__ in UNWRAPPED:
        return UNWRAPPED[type(value).__name__](value)
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    return {RENAMED.get(f.name, f.name): plain(getattr(value, f.name)) for f in fields(value) if not f.metadata}


def _health(health: Any) -> Row:
    """Make the object of a health report: named tenants are listed, one with its tables; all are only counted."""
    found = {f.name: plain(getattr(health, f.name)) for f in fields(health) if not f.metadata and f.name != "tenants"}
    tenants: Any = [row(tenant) for tenant in health.tenants] if health.named else {}
    for tenant in health.tenants if not health.named else ():
        tenants[tenant.state.value] = tenants.get(tenant.state.value, 0) + 1
    for each in tenants if len(tenants) > 1 and health.named else ():
        del each["tables"], each["indexes"]
    return {**dict(list(found.items())[:3]), "tenants": tenants, **dict(list(found.items())[3:])}


def keys(model: type) -> tuple[str, ...]:
    """Return the field names of a model as JSON and TSV show them."""
    if model.__name__ == "IssuedToken":
        from posduif_cli.models.desk import Token

        return (*keys(Token), "token", "enrollment_url")
    shown = (f for f in fields(model) if not f.metadata) if is_dataclass(model) else ()
    return tuple(RENAMED.get(f.name, f.name) for f in shown)


def terminal_columns(model: type, values: Sequence[Any]) -> list[str]:
    """Return the columns that a terminal shows of some values of a model."""
    subjects = [value.value if isinstance(value, Changed) else value for value in values]
    return [
        name
        for name in COLUMNS.get(model.__name__, keys(model))
        if name not in ON_REQUEST or any(getattr(subject, name, None) is not None for subject in subjects)
    ]


def cell(value: Any, *, name: str = "", now: datetime | None = None) -> str:
    """Write one value for a person: local time with its zone, yes and no, sizes with their unit. It is not escaped.

    *name* is the field's: what ends in `bytes` is a size.
    """
    if value is None:
        return ""
    if name.endswith("bytes") and isinstance(value, int):
        return size(value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, datetime):
        seconds = round((value - (now or datetime.now(UTC))).total_seconds())
        try:
            local = value.astimezone()
        except OverflowError:  # the first and the last day of Python's calendar, in other zones
            local = value
        return f"{local:%Y-%m-%d %H:%M %Z}{relative(seconds)}"
    if isinstance(value, float):
        return f"{value:.2f}"
    if isinstance(value, PosduifError):
        return str(plain(value)["message"])
    if type(value).__name__ == "Failure":
        where = f" in {value.file}" + (f":{value.line}" if value.line else "") if value.file else ""
        return f"migration {value.version} failed{where} (SQLSTATE {value.sqlstate or 'unknown'})"
    if isinstance(value, tuple) and name == "tenants":
        return listed(value, 2)
    if isinstance(value, tuple):
        return "; ".join(cell(item) for item in value)
    return str(plain(value))


def short(value: Any, *, name: str = "") -> str:
    """Write one value as `cell` does where there is little room: an id by its first 8 characters, a time to the minute.

    >>> short(UUID("5f3759df-0000-4000-8000-000000000000")), short(None)
    ('5f3759df', '')
    """
    if isinstance(value, UUID):
        return str(value)[:8]
    text = cell(value, name=name)
    return text.partition(" (")[0] if isinstance(value, datetime) else text


def column(model: str, name: str, values: Sequence[Any], among: Sequence[str]) -> layout.Column:
    """Return a column of a table of values of a model; *among* are the table's columns, of which the first stays."""
    ranked = LEFT_OUT.get(model) or tuple(reversed(among[1:]))
    rank = ranked.index(name) if name in ranked else None
    cells = [layout.Cell(cell(value, name=name), short(value, name=name)) for value in values]
    return layout.Column(name, cells, KINDS.get(name, "kept"), rank)


def relative(seconds: int) -> str:
    """Say how far away a moment is, when that is nearer than two days.

    >>> relative(3540), relative(-7200), relative(10**6)
    (' (in 59 min)', ' (2 h ago)', '')
    """
    distance = abs(seconds)
    if distance >= 48 * 3600:
        return ""
    amount = (
        f"{distance} s" if distance < 120 else f"{distance // 60} min" if distance < 7200 else f"{distance // 3600} h"
    )
    return f" (in {amount})" if seconds > 0 else f" ({amount} ago)"


def visible(text: str) -> str:
    """Replace what would let stored text drive the terminal or pass for other text.

    That is control characters, C1 ones too, those that turn the order of text, those without a width, and all
    blanks but the plain one.

    >>> visible("a\\x1b[31mb\\u202e")
    'a\\\\x1b[31mb\\\\u202e'
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def size(count: int | None) -> str:
    """Write a number of bytes in a unit that a person reads.

    >>> size(7_800_000)
    '7.4 MiB'
    """
    if count is None:
        return ""
    amount = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if amount < 1024:
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1024
    return f"{amount:.1f} TiB"
