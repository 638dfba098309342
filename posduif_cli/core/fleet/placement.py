"""Placements: which server a new tenant goes to; no other server may have a tenant of its name."""

import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import TypeVar

from posduif_cli.core.fleet.crew import Crew
from posduif_cli.core.fleet.fleet import EMPTIEST, Errors, Fleet, Session, all_unreachable, ambiguous, live, split
from posduif_cli.db import queries
from posduif_cli.db.session import QUESTION_TIMEOUT
from posduif_cli.errors import PosduifError, Run, ServerUnreachable, TenantExists
from posduif_cli.models.servers import Server
from posduif_cli.models.tenants import State, Tenant

T = TypeVar("T")


class Placements(ExitStack):
    """Decides for one command. A session on each server that was asked stays open for the next question.

    With *ignore_unreachable* a server that cannot be reached counts as one that has no such tenant.
    """

    def __init__(self, fleet: Fleet, *, ignore_unreachable: bool = False) -> None:
        super().__init__()
        self.fleet = fleet
        self.ignore_unreachable = ignore_unreachable
        self._sessions: dict[str, Session] = {}
        self._away: Errors = {}
        self._locks = {server.name: threading.Lock() for server in fleet.everyone}

    def place(self, name: str) -> Server:
        """Return the server that has the tenant, whole or half made; otherwise the server to create it on.

        Raises ServerUnreachable when a server that might have it cannot be asked, AmbiguousTenant, NoServer.
        """
        if len(self.fleet.servers) == 1:
            return self.fleet.servers[0]
        count = queries.load("fleet/fleet")["count_tenants"]
        told, errors = self._ask(
            self.fleet.servers,
            lambda session: (session.value(count, sizes=False), self.fleet.look(session, name).tenant),
        )
        known = [tenant for _, tenant in told.values() if tenant is not None]
        return self.choose(name, known, errors, {server: number for server, (number, _) in told.items()})

    def choose(
        self, name: str, known: Sequence[Tenant], errors: Mapping[str, PosduifError], counts: Mapping[str, int]
    ) -> Server:
        """Choose as `place`, by answers: the tenants *known* by that name, and how many each server has in all."""
        found = live([tenant for tenant in known if tenant.state is not State.MOVED])
        if len(found) > 1:
            raise ambiguous(name, found)
        if found:
            return self.fleet.server(found[0].server)
        if errors and not self.ignore_unreachable:
            raise self._unasked(name, errors)
        if len(self.fleet.servers) == 1:
            return self.fleet.servers[0]
        if self.fleet.default_server == EMPTIEST:
            if not counts:
                raise all_unreachable(errors)
            return min((s for s in self.fleet.servers if s.name in counts), key=lambda server: counts[server.name])
        return self.fleet.server_for_new()

    def require_unique(self, server: Server, name: str) -> None:
        """Raise TenantExists when another configured server has a tenant of this name, or ServerUnreachable.

        To be called when the intent to make it is on *server*: of two administrators at least one sees the other.
        """
        others = [other for other in self.fleet.everyone if other.name != server.name]
        told, errors = self._ask(others, lambda session: self.fleet.look(session, name).tenant)
        for other, answer in told.items():
            if answer is not None and answer.state is not State.MOVED:
                raise TenantExists(
                    f"tenant {name} exists on server {other}",
                    why=f"a name exists once in the fleet; there it is {answer.state}",
                    hint=[Run("tenant", "show", name, "--server", other), "choose another name for the tenant"],
                )
        if errors and not self.ignore_unreachable:
            raise self._unasked(name, errors)

    def _ask(self, servers: Sequence[Server], question: Callable[[Session], T]) -> tuple[dict[str, T], Errors]:
        """Run *question* on some servers in parallel; return the answers and the errors, by server."""
        crew = Crew()

        def one(server: Server) -> T:
            with self._locks[server.name]:
                if server.name in self._away:
                    raise self._away[server.name].with_traceback(None)
                try:
                    if server.name not in self._sessions:
                        self._sessions[server.name] = self.fleet.maintenance(server, limit=QUESTION_TIMEOUT)
                        self.callback(self._sessions[server.name].close)
                    with crew.watch(self._sessions[server.name]):
                        return question(self._sessions[server.name])
                except PosduifError as error:
                    # Not asked again: a bulk creation would wait for it once per tenant.
                    self._away[server.name] = error
                    raise

        return split(crew.ask(servers, one))

    @staticmethod
    def _unasked(name: str, errors: Mapping[str, PosduifError]) -> PosduifError:
        error = all_unreachable(errors)
        if not isinstance(error, ServerUnreachable):
            return error
        return ServerUnreachable(
            error.message,
            why=f"{error.why}; it may have a tenant {name}, and a name exists once in the fleet",
            hint=[*error.hints, "add --ignore-unreachable if you know that it has none"],
        )
