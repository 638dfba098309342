"""Steps: what a command does, as a list that is either performed or shown by a dry run."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from posduif_cli.core.fleet.fleet import Fleet, Found
from posduif_cli.db.session import Session
from posduif_cli.models.runs import Plan, Step
from posduif_cli.models.tenants import Tenant


@dataclass(frozen=True)
class Deed:
    """What a command does at once, and the steps by which a dry run shows it; these are made only when they are shown.

    *do* gets a session on the server, and returns True where it changed what the command is for.
    """

    do: Callable[[Session], object]
    steps: Iterable[Step] = ()


def plan(deeds: Iterable[Deed]) -> Plan:
    """Return the steps of all deeds; nothing is done."""
    return Plan(tuple(step for deed in deeds for step in deed.steps))


def perform(deeds: Iterable[Deed], session: Session) -> bool:
    """Do one deed after the other; return whether any of them changed something."""
    changed = False
    for deed in deeds:
        changed = deed.do(session) is True or changed
    return changed


def carry_out(fleet: Fleet, found: Found, deeds: Iterable[Deed]) -> tuple[Tenant, bool]:
    """Perform by a session in the maintenance database; return the tenant afterwards, and whether it was changed."""
    with fleet.maintenance(found.server) as session:
        session.require_admin()
        changed = perform(deeds, session)
        return fleet.look(session, found.tenant.tenant).tenant or found.tenant, changed


def scripts(steps: Iterable[Step]) -> Deed:
    """Return the deed that runs the SQL of some steps as it is shown."""

    def do(session: Session) -> None:
        for step in steps:
            session.script(step.sql or "")

    return Deed(do, steps)
