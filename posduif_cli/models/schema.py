"""Migrations, and which are applied where."""

from dataclasses import dataclass

from posduif_cli.models.values import Instant, Value


@dataclass(frozen=True, eq=False, repr=False)
class Migration(Value):
    """One migration as one tenant sees it; *state* is applied, pending, half, missing or changed."""

    version: str
    name: str
    state: str
    checksum: str | None
    applied_at: Instant | None
    duration_ms: int | None
