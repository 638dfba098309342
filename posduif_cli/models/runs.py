"""What a command would do to many tenants, or did."""

from dataclasses import dataclass

from posduif_cli.errors import MigrationFailed, PosduifError
from posduif_cli.models.values import Value


@dataclass(frozen=True, eq=False, repr=False)
class Step(Value):
    """One step of a dry run; *sql* holds no secret, *tenants* are those that share the step."""

    action: str
    subject: str
    sql: str | None = None
    tenants: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False, repr=False)
class Plan(Value):
    """What a command would do."""

    steps: tuple[Step, ...]
    dry_run: bool = True


STATUSES = ("ok", "created", "unchanged", "skipped", "differs", "failed")  # of outcomes, as summaries count them


@dataclass(frozen=True, eq=False, repr=False)
class Outcome(Value):
    """What a fleet command did to one tenant; *seconds* is wall time, *error* why it failed or was skipped."""

    tenant: str
    server: str
    status: str
    changed: bool
    from_: str | None
    to: str | None
    seconds: float
    error: PosduifError | None = None


def reason(error: PosduifError) -> str:
    """Return why a tenant failed in one line; of a migration the message alone, the rest has fields of its own."""
    return error.message if isinstance(error, MigrationFailed) else error.sentence
