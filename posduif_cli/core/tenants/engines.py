"""The engines of many tenants: new passwords and new settings, an outcome per tenant."""

from collections.abc import Callable, Sequence

from posduif_cli.core.fleet.fleet import Found
from posduif_cli.core.fleet.run import Run, untouched
from posduif_cli.errors import Interrupted, PosduifError, WrongState
from posduif_cli.models.runs import Outcome
from posduif_cli.models.tenants import Tenant

CONNECTIONS = 2  # of one change: in the maintenance database, and in the tenant's


class Engines(Run):
    """One run over engines."""

    def change(self, tenants: Sequence[Tenant], work: Callable[[Found], bool]) -> None:
        """Do *work* for each tenant, which returns whether it changed something; each gets an outcome.

        Raises Interrupted on ctrl-C; what was under way is whole or not begun.
        """
        queues: dict[str, list[Tenant]] = {}
        for tenant in tenants:
            queues.setdefault(tenant.server, []).append(tenant)
        jobs = {
            name: max(1, min(self.pace.jobs, self.fleet.server(name).max_connections // CONNECTIONS)) for name in queues
        }

        def one(tenant: Tenant) -> bool:
            return work(Found(self.fleet.server(tenant.server), tenant, None))

        def note(tenant: Tenant, found: bool | PosduifError, seconds: float) -> None:
            version = tenant.schema_version
            if isinstance(found, WrongState):
                self.record(untouched(tenant, "skipped", found))
            elif isinstance(found, PosduifError):
                self.record(untouched(tenant, "failed", found))
            else:
                status = "ok" if found else "unchanged"
                self.record(Outcome(tenant.tenant, tenant.server, status, found, version, version, seconds))

        try:
            self.crew.run([(jobs[name], queue) for name, queue in queues.items()], one, note)
        except KeyboardInterrupt:
            raise Interrupted(
                f"interrupted; {sum(o.changed for o in self.outcomes)} of {len(tenants)} tenants had been changed",
                hint="run the same command again",
            ) from None
