"""Bulk creation: a list of tenants as they should be, and what it takes to have them; a second run changes nothing."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import timedelta
from functools import partial

from posduif_cli import notation
from posduif_cli.core.fleet.crew import Share
from posduif_cli.core.fleet.fleet import Errors, Fleet, split
from posduif_cli.core.fleet.placement import Placements
from posduif_cli.core.fleet.run import DEFAULT_JOBS, Pace, Run
from posduif_cli.core.schema import files
from posduif_cli.core.tenants import create, template
from posduif_cli.core.tenants.create import Maker, Wanted
from posduif_cli.core.tenants.engine import Keep
from posduif_cli.db import admin, queries
from posduif_cli.db.patience import Patience
from posduif_cli.db.session import Session
from posduif_cli.errors import (
    AmbiguousTenant,
    Interrupted,
    InvalidName,
    PosduifError,
    ServerFull,
    ServerUnreachable,
    TenantExists,
    UsageError,
    WrongState,
)
from posduif_cli.models.runs import Outcome, Plan, Step
from posduif_cli.models.servers import Server
from posduif_cli.models.tenants import State, Tenant

COLUMNS = ("name", "url", "web_user", "server", "engine_port", "redis")
PAUSE = timedelta(milliseconds=500)  # between two questions to a server that is full


@dataclass(frozen=True)
class Entry:
    """One tenant of the list; *server* is a name, or None where it does not matter."""

    wanted: Wanted
    server: str | None = None


def read(
    fleet: Fleet,
    rows: Sequence[tuple[int, Mapping[str, str | None]]],
    source: str,
    *,
    check_url: Callable[[str | None], str | None],
) -> list[Entry]:
    """Return the entries of a list. *rows* are (line, values); *check_url* returns an origin as it is stored.

    Raises UsageError, which names all that is wrong. No server is asked.
    """
    entries: list[Entry] = []
    wrong: list[str] = []
    seen: dict[str, int] = {}
    unknown = dict.fromkeys(key for _, row in rows for key in row if key not in COLUMNS)
    wrong += [f'"{key}" is none of {", ".join(COLUMNS)}' for key in unknown]
    for line, row in rows:
        try:
            entry = _entry(fleet, row, check_url)
            for taken in _unique(entry):
                if taken in seen:
                    raise UsageError(f"{taken} is in line {seen[taken]} already")
        except (UsageError, InvalidName) as error:
            wrong.append("; ".join(map(str, (f"line {line}: {error.sentence}", *error.hints))))
        else:
            seen |= dict.fromkeys(_unique(entry), line)
            entries.append(entry)
    if wrong:
        raise UsageError(
            f"{source} holds {len(wrong)} faulty entr{'y' if len(wrong) == 1 else 'ies'}; nothing was done",
            why=wrong,
            hint=f"columns: {', '.join(COLUMNS)}; only the name is needed",
        )
    return entries


def _unique(entry: Entry) -> list[str]:
    """Return what no other entry may have; none of these texts is like another kind's."""
    port = entry.wanted.port and f"port {entry.wanted.port}{f' on server {entry.server}' if entry.server else ''}"
    return [text for text in (entry.wanted.name, entry.wanted.url, port) if text]


def _entry(fleet: Fleet, row: Mapping[str, str | None], check_url: Callable[[str | None], str | None]) -> Entry:
    name, url, web_user, server, port, redis = (row.get(key) for key in COLUMNS)
    if name is None:
        raise UsageError("the name is missing")
    engine = notation.ports(port)[0] if port else None, notation.redis(redis) if redis else None
    wanted = Wanted(name, check_url(url), web_user, *engine)
    wanted.check()
    configured = [known.name for known in fleet.servers]
    if server is not None and server not in configured:
        raise UsageError(f'server "{server}" is not among {", ".join(configured)}')
    return Entry(wanted, server)


Keeper = Callable[[str, bool], Keep | None]
Job = tuple[Entry, bool]  # and whether the tenant exists, so that only its web user may be missing


@dataclass
class Bench:
    """One server during a run: what is to be made on it, by what, and the sessions that wait for the next entry."""

    server: Server
    share: Share
    maker: Maker
    jobs: list[Job] = field(default_factory=list)
    workers: int = 1
    idle: list[Session] = field(default_factory=list)
    lost: ServerUnreachable | None = None

    @contextmanager
    def session(self) -> Iterator[Session]:
        """Lend a maintenance session; after an error all idle ones are ended, so that another connection is free."""
        try:
            session = self.idle.pop()
        except IndexError:  # also where another thread took the last one
            session = self._connect()
        try:
            yield session
        except BaseException:
            session.close()
            self.close()
            raise
        self.idle.append(session)

    def _connect(self) -> Session:
        if self.lost is not None:
            raise self.lost.with_traceback(None)
        try:
            return self.maker.fleet.maintenance(self.server)
        except ServerFull:
            raise
        except ServerUnreachable as error:
            self.lost = error  # it is not tried again for each of its tenants
            raise

    def close(self) -> None:
        """End the idle sessions."""
        with suppress(IndexError):
            while True:
                self.idle.pop().close()


class Creation(Run):
    """One run over a list.

    *keeper* returns, for a name and whether the tenant exists, what takes the password of a new one; it raises
    TenantExists where that of an old one was never kept.
    """

    def __init__(
        self,
        fleet: Fleet,
        entries: Sequence[Entry],
        *,
        jobs: int = DEFAULT_JOBS,
        ignore_unreachable: bool = False,
        keeper: Keeper = lambda name, exists: None,
        on_outcome: Callable[[Outcome], None] = lambda outcome: None,
    ) -> None:
        super().__init__(fleet, Pace(jobs), on_outcome=on_outcome)
        self.entries, self.ignore_unreachable, self.keeper = entries, ignore_unreachable, keeper

    def run(self) -> None:
        """Create what is missing, finish what was begun, and compare what exists; each entry gets an outcome.

        Raises Interrupted on ctrl-C; the same command finishes what was under way. Raises ConfigurationError,
        having made nothing, while a migration file is faulty.
        """
        files.of(self.fleet.folders).require_sound()
        with self._placements() as placements, ExitStack() as stack:
            benches = self._sort(placements)
            for bench in benches:
                stack.callback(bench.close)
                self._prepare(bench)

            def work(job: tuple[Bench, Entry, bool]) -> tuple[Tenant, bool]:
                bench = job[0]
                attempt = partial(self._create, *job)
                try:
                    return bench.share.connect(attempt)
                except ServerFull:
                    raise
                except ServerUnreachable:
                    return bench.share.connect(attempt)  # its session broke: once more, by a new one

            try:
                self.crew.run([(b.workers, [(b, *job) for job in b.jobs]) for b in benches], work, self._note)
            except KeyboardInterrupt:
                made = sum(outcome.changed for outcome in self.outcomes)
                raise Interrupted(
                    f"interrupted; {made} of {len(self.entries)} tenants had been created",
                    hint="run the same command again: it finishes what was begun, and goes on",
                ) from None

    def plan(self) -> tuple[Plan, Errors]:
        """Return what `run` would do, having changed nothing, and what prevents it, by the names of tenants."""
        new: dict[str | None, list[str]] = {}  # names by web user, on which alone the steps depend
        with self._placements() as placements:
            for bench in self._sort(placements):
                with self.fleet.maintenance(bench.server) as session:
                    used = {name for (name,) in session.tuples(queries.load("tenants/tenants")["list_used_names"])}
                    for entry, exists in bench.jobs:
                        wanted = entry.wanted
                        # Asked one by one only where something may be in the way: a list may hold very many.
                        plain = used.isdisjoint((wanted.name, admin.engine_role(wanted.name)))
                        try:
                            if not plain or len(self.fleet.everyone) > 1:
                                bench.maker.require_possible(session, wanted)
                        except PosduifError as error:
                            self._fail(entry, bench.server.name, error)
                            continue
                        if not exists:
                            new.setdefault(wanted.web_user, []).append(wanted.name)
        groups: dict[Step, list[str]] = {}
        for web_user, names in new.items():
            for step in create.steps(self.fleet, Wanted("{tenant}", web_user=web_user)):
                groups.setdefault(step, []).extend(names)
        errors = {outcome.tenant: outcome.error for outcome in self.outcomes if outcome.error}
        return Plan(tuple(replace(step, tenants=tuple(names)) for step, names in groups.items())), errors

    def _placements(self) -> Placements:
        return Placements(self.fleet, ignore_unreachable=self.ignore_unreachable)

    def _sort(self, placements: Placements) -> list[Bench]:
        """Give every entry to the server that has it or is to have it; an entry that needs no visit is settled."""
        told, away = split(self._ask())
        maker = Maker(self.fleet, placements, if_not_exists=True)
        benches = {s.name: Bench(s, Share(self.crew.stop), maker) for s in self.fleet.servers}
        counts = {name: len(answer) for name, answer in told.items()}
        known: dict[str, list[Tenant]] = {}
        for tenant in (tenant for answer in told.values() for tenant in answer):
            known.setdefault(tenant.tenant, []).append(tenant)
        only = self.fleet.servers[0].name if len(self.fleet.servers) == 1 else None
        for entry in self.entries:
            server, found = entry.server or only or "", known.get(entry.wanted.name, [])
            try:
                if server in away:
                    raise away[server].with_traceback(None)
                if entry.server is None:
                    server = placements.choose(entry.wanted.name, found, away, counts).name
                existing = next((tenant for tenant in found if tenant.server == server), None)
                exists = existing is not None and existing.state is not State.PROVISIONING
                if existing is not None and exists:
                    create.require_same(existing, entry.wanted.url, entry.wanted.port, if_not_exists=True)
                    self.keeper(entry.wanted.name, True)
                    if entry.wanted.web_user is None and entry.wanted.redis is None:
                        self._settle(existing, False, 0.0)
                        continue
            except PosduifError as error:
                self._fail(entry, server, error)
            else:
                benches[server].jobs.append((entry, exists))
                counts[server] = counts.get(server, 0) + (existing is None)
        return [bench for bench in benches.values() if bench.jobs]

    def _ask(self) -> dict[str, list[Tenant] | PosduifError]:
        """Ask the servers for their tenants; one that is full is asked again."""
        patience = Patience("server", pause=PAUSE)
        while True:
            answers = self.fleet.ask(self.fleet.list_on)
            if not any(isinstance(answer, ServerFull) for answer in answers.values()) or not patience.again():
                return answers

    def _prepare(self, bench: Bench) -> None:
        """Make roles and template once, and see how many tenants may be created at once."""

        def prepare() -> None:
            with bench.session() as session:
                admin.ensure_roles(session)
                coming = sum(not exists for _, exists in bench.jobs)
                bench.maker = replace(bench.maker, template=template.provide(session, self.fleet, coming=coming))

        try:
            bench.share.connect(prepare)
        except PosduifError as error:
            for entry, _ in bench.jobs:
                self._fail(entry, bench.server.name, error)
            bench.jobs.clear()
        # Each has a session in the maintenance database and, unless a copy is all there is to it, one in the tenant's.
        copy, folders = bench.maker.template, self.fleet.folders
        copied = copy is not None and not folders.pending(copy.schema, copy.applied)
        alone = copied and not any(entry.wanted.web_user or exists for entry, exists in bench.jobs)
        bench.workers = max(1, min(self.pace.jobs, bench.server.max_connections // (1 if alone else 2)))

    def _create(self, bench: Bench, entry: Entry, exists: bool) -> tuple[Tenant, bool]:
        with bench.session() as session, self.crew.watch(session):
            session.require_admin()
            return bench.maker.create(session, entry.wanted, self.keeper(entry.wanted.name, exists))

    def _note(self, job: tuple[Bench, Entry, bool], found: tuple[Tenant, bool] | PosduifError, seconds: float) -> None:
        bench, entry, _ = job
        if not isinstance(found, PosduifError):
            self._settle(*found, seconds)
        elif not self.crew.interrupted:
            self._fail(entry, bench.server.name, found, seconds)

    def _settle(self, tenant: Tenant, changed: bool, seconds: float) -> None:
        version = tenant.schema_version
        status, before = ("created", None) if changed else ("unchanged", version)
        self.record(Outcome(tenant.tenant, tenant.server, status, changed, before, version, seconds))

    def _fail(self, entry: Entry, server: str, error: PosduifError, seconds: float = 0.0) -> None:
        status = "differs" if isinstance(error, TenantExists | WrongState | AmbiguousTenant) else "failed"
        self.record(Outcome(entry.wanted.name, server, status, False, None, None, seconds, error))
