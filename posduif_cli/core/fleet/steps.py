"""Steps: what a command does, as a list that is either performed or shown by a dry run."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from posduif_cli.db.session import Session
from posduif_cli.models.runs import Plan, Step


@dataclass(frozen=True)
class Deed:
    """What a command does at once, and the steps by which a dry run shows it; these are made only when they are shown.

    *do* is given a session on the server, and says whether it changed something; None counts as a change.
    """

    do: Callable[[Session], bool | None]
    steps: Iterable[Step] = ()


def perform(deeds: Iterable[Deed], session: Session) -> bool:
    """Do one deed after the other; return whether any of them changed something."""
    changed = False
    for deed in deeds:
        changed = deed.do(session) is not False or changed
    return changed


def plan(deeds: Iterable[Deed]) -> Plan:
    """Return the steps of all deeds; nothing is done."""
    return Plan(tuple(step for deed in deeds for step in deed.steps))


def scripts(steps: Iterable[Step]) -> Callable[[Session], None]:
    """Return what runs the SQL of some steps, each as it is shown."""

    def do(session: Session) -> None:
        for step in steps:
            session.script(step.sql or "")

    return do
