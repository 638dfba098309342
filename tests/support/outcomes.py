"""Outcomes of a command over many tenants."""

from collections.abc import Sequence
from typing import Any

FIELDS = {"tenant", "server", "status", "changed", "from", "to", "seconds", "error"}


def statuses(outcomes: Sequence[dict[str, Any]]) -> dict[str, str]:
    """Return each tenant's status; assert that there is one outcome per tenant, with all its fields."""
    assert len({outcome["tenant"] for outcome in outcomes}) == len(outcomes), "more than one outcome per tenant"
    assert all(set(outcome) == FIELDS for outcome in outcomes), outcomes
    return {outcome["tenant"]: outcome["status"] for outcome in outcomes}
