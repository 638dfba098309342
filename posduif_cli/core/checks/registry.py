"""Every check: `health`, `tenant verify`, `migrate verify`, `doctor` and `server init` are selections of this list."""

from typing import Any

from posduif_cli.core.checks import backups, machine, rights, schema, server, tenant
from posduif_cli.core.checks.check import Check
from posduif_cli.models.checks import Finding

LIST: tuple[Check, ...] = tuple(
    check
    for room in (server, tenant, backups, schema, rights, machine)
    for check in vars(room).values()
    if type(check) is Check
)


def select(command: str, scope: str) -> list[Check]:
    """Return the checks of a scope that a command selects, in the order of the list."""
    return [check for check in LIST if command in check.commands and check.scope == scope]


def judge(command: str, scope: str, facts: Any) -> list[Finding]:
    """Return what the checks of a command find in the facts of one server, tenant or other subject."""
    return [finding for check in select(command, scope) for finding in check(facts)]
