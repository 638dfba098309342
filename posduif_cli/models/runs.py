"""What a command would do to many tenants, or did."""

from dataclasses import dataclass

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


@dataclass(frozen=True, eq=False, repr=False)
class Outcome(Value):
    """What a fleet command did to one tenant; *seconds* is wall time."""

    tenant: str
    server: str
    status: str
    changed: bool
    from_: str | None
    to: str | None
    seconds: float
    error: "OutcomeError | None" = None


@dataclass(frozen=True, eq=False, repr=False)
class OutcomeError(Value):
    """Why one tenant of a fleet failed or was skipped."""

    message: str
    sqlstate: str | None = None
    file: str | None = None
    line: int | None = None
    statement: str | None = None
