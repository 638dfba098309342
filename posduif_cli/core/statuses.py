"""Where the schemas of a fleet stand, from the records alone, and what became of a run over it."""

import re
from collections import Counter
from collections.abc import Sequence

from posduif_cli.core.fleet import Fleet
from posduif_cli.errors import PosduifError
from posduif_cli.models import Outcome, SchemaStatus, State, Tenant


def status(fleet: Fleet, *, tenants: Sequence[str] | None) -> tuple[list[SchemaStatus], dict[str, PosduifError]]:
    """Return where the schemas stand, from the records alone, and the servers that could not be asked."""
    chosen, errors = fleet.choose(tenants)
    return [
        SchemaStatus(t.tenant, t.server, t.state, t.schema_version, t.latest_version, t.pending, t.error)
        for t in chosen
    ], errors


def behind(tenant: Tenant) -> bool:
    """Whether a run over all tenants must look at this one: migrations are pending, or it needs a word."""
    return tenant.state is not State.ACTIVE or tenant.pending > 0 or tenant.error is not None


def causes(outcomes: Sequence[Outcome]) -> list[tuple[str, list[str]]]:
    """Group the failed outcomes by cause, the most frequent first: the cause, and the tenants."""
    groups: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        if outcome.status in ("failed", "differs") and outcome.error is not None:
            error = outcome.error
            cause = error.message.replace(outcome.tenant, "")
            groups.setdefault(f"{error.sqlstate} {error.file} {error.line} {cause}", []).append(outcome)
    found = []
    for group in groups.values():
        first = group[0].error
        assert first is not None
        cause = first.message
        if len(group) > 1:
            cause = re.sub(rf" (?:in|to|of) {re.escape(group[0].tenant)}(?!\w)", "", cause)
        cause += f" (SQLSTATE {first.sqlstate})" if first.sqlstate else ""
        cause += f" [{first.statement}]" if first.statement else ""
        found.append((cause, sorted(outcome.tenant for outcome in group)))
    return sorted(found, key=lambda group: (-len(group[1]), group[0]))


def tally(outcomes: Sequence[Outcome]) -> Counter[str]:
    """Count the outcomes by status."""
    return Counter(outcome.status for outcome in outcomes)
