"""The checks of a tenant that its record answers: its state, and the state of its schema."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

from posduif_cli.core.checks.check import Hides, Verdict, check, failure
from posduif_cli.core.checks.facts import TenantFacts
from posduif_cli.core.fleet.fleet import wrong_state
from posduif_cli.errors import Run
from posduif_cli.models.checks import Level
from posduif_cli.models.tenants import State
from posduif_cli.notation import counted

VISITED = (State.ACTIVE, State.SUSPENDED)

health = partial(check, "tenant", ("health",))


@health("tenant.reach", "The tenant's database answers",
    "A question may go unanswered because a table is locked, a right or a table is missing, "
    "or it took too long.", tier="visited")  # fmt: skip
def reach(facts: TenantFacts) -> Iterator[Verdict]:
    """Tell what was not answered."""
    yield from facts.unanswered


@health("tenant.state", "The tenant is active or suspended",
    "Any other state is that of a command that is at work or was interrupted, "
    "or of a tenant whose database is lost.",
    asks=("list_shut_out",), hides=Hides(("engine.answer",), Level.WARNING))  # fmt: skip
def state(facts: TenantFacts) -> Iterator[Verdict]:
    """Judge the state, and whether the engine of an active tenant may log in."""
    tenant = facts.tenant
    if tenant.state is State.ACTIVE and tenant.engine_may_log_in is False:
        what = "is active, but its engine may not log in: a suspend was interrupted"
        yield Verdict(
            Level.CRITICAL, f"tenant {tenant.tenant} {what}", tenant.state.value,
            fix=Run("tenant", "resume", tenant.tenant), several=what,
        )  # fmt: skip
    elif tenant.state is State.ACTIVE and facts.shut_out is not None:
        why, fix = facts.shut_out
        what = f"is active, but its engine cannot log in: {why}"
        yield Verdict(Level.CRITICAL, f"tenant {tenant.tenant} {what}", tenant.state.value, fix=fix, several=what)
    if tenant.state not in VISITED:
        level = Level.CRITICAL if tenant.state is State.LOST else Level.WARNING
        error = wrong_state(tenant)
        what = f"{tenant.state}" + (f": {error.why}" if error.why else "")
        yield replace(failure(error, level), value=tenant.state.value, several=what)


@health("schema.failed", "The last migration succeeded",
    "The record keeps the last migration that failed, until the next one succeeds.",
    together=("migrate", "up"))  # fmt: skip
def failed(facts: TenantFacts) -> Iterator[Verdict]:
    """Judge an active tenant's last migration."""
    tenant, error = facts.tenant, facts.tenant.error
    if tenant.state is State.ACTIVE and error is not None:
        where = f"{error.file}:{error.line}" if error.file and error.line else error.file or error.version
        text = f"migration {error.version} failed at {where} (SQLSTATE {error.sqlstate or 'unknown'})"
        yield Verdict(Level.CRITICAL, text, tenant.schema_version, fix=Run("migrate", "up", tenant.tenant))


@health("schema.ahead", "This machine has the files of all applied migrations",
    "Another machine applied migrations whose files are not here, or files were removed.")  # fmt: skip
def ahead(facts: TenantFacts) -> Iterator[Verdict]:
    """Judge whether an active tenant has migrations that this machine has no file for."""
    tenant = facts.tenant
    if tenant.state is State.ACTIVE and tenant.error is None and tenant.schema_version and tenant.ahead:
        number = counted(tenant.ahead, "applied migration")
        text = f"the tenant is ahead: this machine has no file for {number}"
        yield Verdict(Level.WARNING, text, tenant.ahead, "migrations", fix=Run("migrate", "list", tenant.tenant))


@health("schema.behind", "No migration is pending",
    "A pending migration is one that this machine has a file for and the tenant has not applied.",
    together=("migrate", "up"), hides=Hides(("grants.differ",), Level.WARNING))  # fmt: skip
def behind(facts: TenantFacts) -> Iterator[Verdict]:
    """Judge what an active tenant lacks, unless its last migration failed or it is ahead."""
    tenant, up = facts.tenant, Run("migrate", "up", facts.subject)
    if tenant.state is not State.ACTIVE or tenant.error is not None or (tenant.schema_version and tenant.ahead):
        return
    level, text = Level.OK, f"the schema is at {tenant.schema_version}"
    if tenant.schema_version is None:
        level, text = Level.CRITICAL, "the tenant is at no schema: it has none of posduif's tables"
    elif tenant.pending:
        level, text = Level.WARNING, f"{counted(tenant.pending, 'migration')} pending"
    yield Verdict(level, text, tenant.pending, "migrations", fix=up)
