"""Where the schemas of a fleet stand, from the records alone, and what became of a run over it."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence

from posduif_cli.core.fleet import Fleet
from posduif_cli.errors import PosduifError
from posduif_cli.models import Outcome, SchemaStatus, State, Tenant


def status(fleet: Fleet, *, tenants: Sequence[str] | None) -> tuple[list[SchemaStatus], dict[str, PosduifError]]:
    """Return where the schemas stand, from the records alone, and the servers that could not be asked."""
    chosen, errors = fleet.choose(tenants)
    return [
        SchemaStatus(t.tenant, t.server, t.state, t.schema_version, t.latest_version, t.pending, t.error, t.ahead)
        for t in chosen
    ], errors


def label(tenant: Tenant, errors: Mapping[str, object]) -> str:
    """Name a tenant among *errors* by tenant, which another server may have one of the same name for."""
    return tenant.tenant if tenant.tenant not in errors else f"{tenant.tenant} on server {tenant.server}"


def behind(tenant: Tenant) -> bool:
    """Whether a run over all tenants must look at this one: migrations are pending, or it needs a word."""
    return tenant.state is not State.ACTIVE or tenant.pending > 0 or tenant.error is not None


def causes(outcomes: Sequence[Outcome]) -> list[tuple[str, list[str]]]:
    """Group the failed outcomes by cause, the most frequent first: the cause, and the tenants."""
    groups: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        if outcome.status in ("failed", "differs") and outcome.error is not None:
            error = outcome.error
            groups.setdefault(f"{error.sqlstate} {error.file} {_cause(outcome)}", []).append(outcome)
    found = []
    for group in groups.values():
        first = group[0].error
        assert first is not None
        cause = first.message
        alike = {(outcome.error.line, outcome.error.statement) for outcome in group if outcome.error}
        if len(alike) > 1:
            cause = cause.replace(f"{first.file}:{first.line}", first.file or "")
        if len(group) > 1:
            cause = re.sub(rf" (?:in|to|of)(?: database)? {re.escape(group[0].tenant)}(?!\w)", "", cause)
        cause += f" (SQLSTATE {first.sqlstate})" if first.sqlstate else ""
        cause += f" [{first.statement}]" if first.statement and len(alike) == 1 else ""
        found.append((cause, sorted(outcome.tenant for outcome in group)))
    return sorted(found, key=lambda group: (-len(group[1]), group[0]))


def _cause(outcome: Outcome) -> str:
    """Return an outcome's error without what differs from tenant to tenant: its name, and the line of the file."""
    assert outcome.error is not None
    message = re.sub(rf"(?<!\w){re.escape(outcome.tenant)}(?!\w)", "", outcome.error.message)
    return message.replace(f"{outcome.error.file}:{outcome.error.line}", outcome.error.file or "")


def tally(outcomes: Sequence[Outcome]) -> Counter[str]:
    """Count the outcomes by status."""
    return Counter(outcome.status for outcome in outcomes)
