"""Visits to many tenants: a server that goes away in between is told once, and not asked again for each tenant."""

from collections.abc import Callable, Sequence
from typing import TypeVar

from posduif_cli.core.fleet.fleet import Fleet, Session
from posduif_cli.errors import PosduifError, ServerFull, ServerUnreachable
from posduif_cli.models.servers import Server
from posduif_cli.models.tenants import Tenant

T = TypeVar("T")


def visit(
    fleet: Fleet, tenants: Sequence[Tenant], work: Callable[[Session], T]
) -> tuple[list[tuple[Tenant, T | PosduifError]], dict[str, ServerUnreachable]]:
    """Do *work* in each tenant's database, several at once.

    Returns each tenant with the result or error, and the errors of the servers that went away, by name: all tenants of
    such a server that were not visited have that same error.
    """
    away: dict[str, ServerUnreachable] = {}

    def enter(server: Server, name: str) -> Session:
        if server.name in away:
            raise away[server.name]
        try:
            return fleet.enter(server, name)
        except ServerUnreachable:
            try:
                fleet.maintenance(server).close()
            except ServerUnreachable as error:
                if not isinstance(error, ServerFull):
                    raise away.setdefault(server.name, error) from None
            raise

    return fleet.each(tenants, work, enter=enter), away
