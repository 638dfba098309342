"""Every check: `health`, `tenant verify`, `migrate verify`, `doctor` and `server init` are selections of this list."""

from collections.abc import Collection, Sequence
from typing import Any

from posduif_cli.core.checks import backups, machine, rights, schema, server, tenant
from posduif_cli.core.checks.check import Check
from posduif_cli.errors import UsageError
from posduif_cli.models.checks import CheckInfo, Finding

LIST: tuple[Check, ...] = tuple(
    check
    for room in (server, tenant, backups, schema, rights, machine)
    for check in vars(room).values()
    if type(check) is Check
)


def select(command: str, scope: str) -> list[Check]:
    """Return the checks of a scope that a command selects, in the order of the list."""
    return [check for check in LIST if command in check.commands and check.scope == scope]


def judge(command: str, scope: str, facts: Any, chosen: Collection[str] | None = None) -> list[Finding]:
    """Return what the checks of a command, or those *chosen* of them, find in the facts of one subject."""
    checks = [check for check in select(command, scope) if chosen is None or check.id in chosen]
    return [finding for check in checks for finding in check(facts)]


def choose(command: str, only: Sequence[str], skip: Sequence[str]) -> set[str]:
    """Return the ids of a command's checks, of *only* some and without those to *skip*; a prefix stands for all below.

    Raises UsageError for what is no check of that command.
    """
    ids = [check.id for check in LIST if command in check.commands]
    return _all_of(ids, only or ids) - _all_of(ids, skip)


def explain(command: str, id: str) -> list[CheckInfo]:
    """Return what is known of a command's checks of an id, or of all of a prefix; raises UsageError."""
    return [info for info in infos(command) if info.check in choose(command, [id], [])]


def infos(command: str) -> list[CheckInfo]:
    """Return what is known of all checks of a command."""
    return [
        CheckInfo(check.id, check.scope, check.title, str(check.threshold or "") or None, check.explanation)
        for check in LIST
        if command in check.commands
    ]


def _all_of(ids: Sequence[str], wanted: Sequence[str]) -> set[str]:
    found: set[str] = set()
    for text in wanted:
        here = {id for id in ids if id == text or id.startswith(f"{text}.")}
        if not here:
            raise UsageError(f'there is no check "{text}"', why=f"valid are: {', '.join(ids)}")
        found |= here
    return found
