"""Every check: `health`, `tenant verify`, `migrate verify`, `doctor` and `server init` are selections of this list."""

from collections.abc import Sequence
from typing import Any

from posduif_cli.core.checks import backups, cluster, inside, machine, probe, rights, schema, server, tenant
from posduif_cli.core.checks.check import Check
from posduif_cli.errors import UsageError
from posduif_cli.models.checks import Finding

LIST: tuple[Check, ...] = tuple(
    check
    for room in (server, cluster, tenant, inside, probe, backups, schema, rights, machine)
    for check in vars(room).values()
    if type(check) is Check
)


def select(command: str, scope: str) -> list[Check]:
    """Return the checks of a scope that a command selects, in the order of the list."""
    return [check for check in LIST if command in check.commands and check.scope == scope]


def judge(command: str, scope: str, facts: Any) -> list[Finding]:
    """Return what the checks of a command find in the facts of one subject."""
    return [finding for check in select(command, scope) for finding in check(facts)]


def of(command: str) -> list[Check]:
    """Return the checks of a command."""
    return [check for check in LIST if command in check.commands]


def choose(command: str, only: Sequence[str], skip: Sequence[str]) -> list[Check]:
    """Return a command's checks, of *only* some and without those to *skip*; a prefix stands for all below.

    Raises UsageError for what is no check of that command.
    """
    ids = [check.id for check in of(command)]
    left = _all_of(ids, only or ids) - _all_of(ids, skip)
    return [check for check in of(command) if check.id in left]


def _all_of(ids: Sequence[str], wanted: Sequence[str]) -> set[str]:
    found: set[str] = set()
    for text in wanted:
        group = text.rstrip(".")
        here = {id for id in ids if id == group or id.startswith(f"{group}.")}
        if not here:
            several = " (for several the option is repeated)" if "," in text else ""
            raise UsageError(f'there is no check "{text}"{several}', why=f"valid are: {', '.join(ids)}")
        found |= here
    return found
