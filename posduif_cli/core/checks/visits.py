"""The visits of a health report: a session per tenant, a question to each engine, in time and one report at a time."""

import random
import threading
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial

from posduif_cli.core.checks import inside, probe
from posduif_cli.core.checks.check import Check
from posduif_cli.core.checks.facts import Answer, TenantFacts
from posduif_cli.core.checks.tenant import VISITED
from posduif_cli.core.checks.verify import visit
from posduif_cli.core.fleet.crew import Crew
from posduif_cli.core.fleet.fleet import Fleet
from posduif_cli.core.fleet.run import DEFAULT_JOBS
from posduif_cli.db import queries
from posduif_cli.db.session import HEALTH_CLASS
from posduif_cli.errors import Busy, PosduifError, ServerUnreachable
from posduif_cli.models.checks import ServerHealth
from posduif_cli.models.tenants import State, Tenant

SHARE = 10  # of a server's free connections a report takes at most one in so many
TURN = "health --deep"  # of which one runs at a time on each server


@dataclass(frozen=True)
class Depth:
    """How far a report looks: *deep* visits all tenants, *probe* asks their engines, *sizes* measures their databases.

    *jobs* is how many tenants of a server, and how many urls, are asked at once. Once *budget* has passed since
    *started*, by the monotonic clock, no visit and no question to an engine begins.
    """

    deep: bool = False
    probe: bool = False
    sizes: bool = False
    jobs: int = DEFAULT_JOBS
    budget: timedelta | None = None
    started: float = field(default_factory=time.monotonic)

    @contextmanager
    def within_budget(self) -> Iterator[Crew]:
        """Give the block a crew that begins nothing more once the budget is spent."""
        crew = Crew()
        if self.budget is None:
            yield crew
            return
        left = max(0.0, self.started + self.budget.total_seconds() - time.monotonic())
        timer = threading.Timer(left, crew.stop.set)
        timer.daemon = True
        timer.start()
        try:
            yield crew
        finally:
            timer.cancel()


@contextmanager
def turn(fleet: Fleet, servers: Collection[str]) -> Iterator[None]:
    """Hold the lock of deep reports on some servers; raises Busy, naming who has it."""
    which = {"class": HEALTH_CLASS, "subject": TURN}
    with ExitStack() as held:
        for server in map(fleet.server, servers):
            if server.max_connections == 1:
                continue  # the only connection is needed for the visits
            try:
                session = held.enter_context(fleet.maintenance(server))
            except ServerUnreachable:
                continue  # the visits say so
            if not session.value(queries.load("db/session")["try_lock"], **which):
                who = ", ".join(session.holders(which).values())
                raise Busy(
                    f"another deep report is under way on server {server.name}",
                    why=f"its lock is held by {who}" if who else None,
                    hint="try again when that is done",
                )
        yield


def visits(
    fleet: Fleet,
    tenants: Sequence[Tenant],
    checks: Mapping[str, Collection[Check]],
    servers: Mapping[str, ServerHealth],
    depth: Depth,
    *,
    named: bool,
) -> tuple[dict[Tenant, TenantFacts | PosduifError], Mapping[str, PosduifError]]:
    """Ask the databases of tenants for what *checks*, by server, judge; return the answers, and the servers that left.

    A server's free connections by its figures in *servers* say how many at once: a report is never what takes the last
    ones. Tenants that were *named* are asked for their figures, too.
    """
    here = [tenant for tenant in tenants if visitable(tenant) and checks[tenant.server]]
    if depth.budget is not None:
        random.shuffle(here)  # so that the tenants that are left out are others each time
    jobs = {}
    for server in map(fleet.server, {tenant.server for tenant in here}):
        figures = servers[server.name]
        free = (figures.max_connections or 0) - (figures.connections or 0)
        jobs[server.name] = max(1, min(depth.jobs, server.max_connections - depth.deep, free // SHARE))
    by_place = {(tenant.server, tenant.tenant): tenant for tenant in here}
    with depth.within_budget() as crew:
        answers, gone = visit(fleet, here, partial(inside.look, by_place, checks, named, set()), jobs=jobs, crew=crew)
    return dict(answers), gone


def visitable(tenant: Tenant) -> bool:
    """Whether a tenant's database can be looked into."""
    return tenant.state in VISITED and tenant.schema_version is not None


def probable(tenant: Tenant) -> bool:
    """Whether a tenant's engine is to answer at a url that is known."""
    return tenant.state is State.ACTIVE and bool(tenant.url)


def probes(tenants: Sequence[Tenant], depth: Depth) -> dict[Tenant, Answer]:
    """Ask the urls of the active ones of some tenants, and return what they answered."""
    answers: dict[Tenant, Answer] = {}

    def note(tenant: Tenant, answer: Answer | PosduifError, seconds: float) -> None:
        url = tenant.url or ""
        answers[tenant] = answer if isinstance(answer, Answer) else Answer(url, step="http", why=answer.sentence)

    asked = [tenant for tenant in tenants if probable(tenant)]
    with depth.within_budget() as crew:
        crew.run([(depth.jobs, asked)], lambda tenant: probe.ask(tenant.url or ""), note)
    return answers
