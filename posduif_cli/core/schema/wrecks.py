"""Indexes that are made or dropped outside a transaction: what a kill left of one, by the catalog."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta

from posduif_cli.core.fleet.run import who_is
from posduif_cli.core.schema.parse import Name, Target
from posduif_cli.db import queries
from posduif_cli.db.patience import Patience
from posduif_cli.db.quoting import compose, identifier
from posduif_cli.db.session import Session
from posduif_cli.errors import Blocked


@dataclass(frozen=True)
class Wrecks:
    """The indexes of one tenant that the file named *file* works on; *limit* is how long a build may take."""

    conn: Session
    file: str
    tell: Callable[[str], None]
    limit: timedelta

    def clear(self, what: Target) -> bool:
        """Drop the invalid indexes that an earlier try of a statement left; return whether its work is done."""
        if what.kind == "create_index_concurrently":
            state = self._settled(what.names[0])
            if state == "invalid":
                self._drop(what.names[0])
            return state == "valid"
        if what.kind == "drop_index_concurrently":
            return all(self._settled(name) is None for name in what.names)
        if what.kind == "reindex_concurrently":
            for found in self.conn.tuples(queries.load("schema/history")["find_reindex_wrecks"]):
                if self._settled(Name(*found)) == "invalid":
                    self._drop(Name(*found))
        return False

    def _settled(self, index: Name) -> str | None:
        """Return an index's state once no session works on it: a backend whose client died may still build it.

        That is valid or invalid, None where there is no such index. Raises Blocked when the limit is over.
        """
        pause, told = timedelta(seconds=0.2), False
        patience = Patience("index", limit=self.limit, pause=pause, interrupted=lambda: self.conn.cancelled)
        while (state := self._state(index)) == "building":
            if not told:
                self.tell(f"{self.conn.database}: another session works on index {index.name}; waiting for it")
                told = True
            if not patience.again():
                raise Blocked(f"index {index.name} of {self.conn.database} is still being built by another session")
        return state

    def _state(self, index: Name) -> str | None:
        question = queries.load("schema/history")["find_index_state"]
        found = self.conn.value(question, schema=index.schema or "public", index=index.name)
        return None if found is None else str(found)

    def _drop(self, index: Name) -> None:
        self.tell(f"{self.conn.database}: dropping the invalid index {index.name}, to build it again")
        self.tell_of_waiting()
        whole = identifier(index.schema or "public", index.name)
        self.conn.execute(compose("DROP INDEX CONCURRENTLY IF EXISTS {name}", name=whole))

    def tell_of_waiting(self) -> None:
        """Name the sessions whose transactions a concurrent build waits for."""
        if waiting := self.conn.tuples(queries.load("schema/history")["find_open_transactions"]):
            who = ", ".join(who_is(pid, role, app or "no name") for pid, role, app in waiting)
            self.tell(f"{self.conn.database}: {self.file} waits for the transactions of {who}")
