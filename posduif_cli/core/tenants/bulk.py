"""Manifests: a list of tenants as they should be, and what it takes to have them; typed again, it takes nothing."""

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from posduif_cli.core.fleet.crew import Crew
from posduif_cli.core.fleet.fleet import Fleet, Session, split
from posduif_cli.core.fleet.placement import Placements
from posduif_cli.core.schema import files
from posduif_cli.core.tenants import create, template
from posduif_cli.core.tenants.create import Maker, Wanted
from posduif_cli.core.tenants.engine import Keep
from posduif_cli.core.tenants.template import Template
from posduif_cli.db import admin, queries
from posduif_cli.errors import (
    AmbiguousTenant,
    Interrupted,
    InvalidName,
    PosduifError,
    ServerFull,
    TenantExists,
    UsageError,
    WrongState,
)
from posduif_cli.models.runs import Outcome, OutcomeError, Plan, Step
from posduif_cli.models.servers import Server
from posduif_cli.models.tenants import State, Tenant

COLUMNS = ("name", "url", "web_user", "server")
SHOWN = 10
PATIENCE, PAUSE = 30.0, 0.5  # seconds to wait for a server that is full, and between two tries
DEFAULT_JOBS = 4
Errors = dict[str, PosduifError]


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
    """Make entries of rows, each with its line; *check_url* returns an origin as it is stored.

    Raises UsageError that names all of what is wrong; nothing has been asked of a server yet.
    """
    entries: list[Entry] = []
    wrong: list[str] = []
    seen: dict[str, int] = {}
    for line, row in rows:
        try:
            entry = _entry(fleet, row, check_url)
            if entry.wanted.name in seen:
                raise UsageError(f"{entry.wanted.name} stands in line {seen[entry.wanted.name]} already")
        except (UsageError, InvalidName) as error:
            wrong.append(f"line {line}: {error.message}")
        else:
            seen[entry.wanted.name] = line
            entries.append(entry)
    if wrong:
        more = f"; and {len(wrong) - SHOWN} more" if len(wrong) > SHOWN else ""
        raise UsageError(
            f"{source} holds {len(wrong)} faulty entr{'y' if len(wrong) == 1 else 'ies'}; nothing was done",
            why="; ".join(wrong[:SHOWN]) + more,
            hint=f"columns: {', '.join(COLUMNS)}; only the name is needed",
        )
    return entries


def _entry(fleet: Fleet, row: Mapping[str, str | None], check_url: Callable[[str | None], str | None]) -> Entry:
    if unknown := [key for key in row if key not in COLUMNS]:
        raise UsageError(f'"{unknown[0]}" is none of {", ".join(COLUMNS)}')
    name, url, web_user, server = (row.get(key) for key in COLUMNS)
    if name is None:
        raise UsageError("the name is missing")
    wanted = Wanted(name, check_url(url), web_user)
    wanted.check()
    if server is not None and server not in {known.name for known in fleet.servers}:
        raise UsageError(f'server "{server}" is not among {", ".join(known.name for known in fleet.servers)}')
    return Entry(wanted, server)


@dataclass
class Desk:
    """One server during a run: the entries to visit on it, each with whether it exists, and what they are made from."""

    server: Server
    queue: "deque[tuple[Entry, bool]]" = field(default_factory=deque)
    workers: int = 1
    template: Template | None = None


@dataclass
class Application:
    """One run over a list; *on_outcome* is called once an entry.

    *keeper* gives, for a name and whether the tenant exists, who takes the password of a new one; it raises
    TenantExists where that of an old one was never kept.
    """

    fleet: Fleet
    entries: Sequence[Entry]
    jobs: int = DEFAULT_JOBS
    ignore_unreachable: bool = False
    keeper: Callable[[str, bool], Keep | None] = lambda name, exists: None
    on_outcome: Callable[[Outcome], None] = lambda outcome: None
    outcomes: list[Outcome] = field(default_factory=list)
    errors: Errors = field(default_factory=dict)
    stopped_by: str = ""

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._crew = Crew()

    def run(self) -> None:
        """Create what is missing, finish what was begun, and judge what exists; an outcome an entry.

        Raises Interrupted on ctrl-C; what was under way is finished by the same command. Raises ConfigurationError,
        having made nothing, while a migration file is faulty.
        """
        _ = files.of(self.fleet.folders).all
        with self._placements() as placements:
            desks = self._sort(placements)
            for desk in desks:
                self._prepare(desk)
            try:
                self._crew.run([(partial(self._serve, desk, placements), desk.workers) for desk in desks])
            except KeyboardInterrupt:
                made = sum(outcome.changed for outcome in self.outcomes)
                raise Interrupted(
                    f"interrupted; {made} of {len(self.entries)} tenants had been created",
                    hint="run the same command again: it finishes what was begun, and goes on",
                ) from None

    def plan(self) -> Plan:
        """Say what `run` would do, having changed nothing; what is in the way is among the errors."""
        new: dict[str | None, list[str]] = {}  # names by web user, on which alone the steps depend
        with self._placements() as placements:
            for desk in self._sort(placements):
                with self.fleet.maintenance(desk.server) as session:
                    used = {name for (name,) in session.tuples(queries.load("tenants/tenants")["list_used_names"])}
                    for entry, exists in desk.queue:
                        wanted = entry.wanted
                        # Asked one by one only where something may be in the way: a list may hold very many.
                        plain = used.isdisjoint((wanted.name, admin.engine_role(wanted.name)))
                        try:
                            if not plain or len(self.fleet.everyone) > 1:
                                create.require_possible(self.fleet, placements, session, wanted, if_not_exists=True)
                        except PosduifError as error:
                            self._fail(entry, desk.server.name, error)
                            continue
                        if not exists:
                            new.setdefault(wanted.web_user, []).append(wanted.name)
        groups: dict[Step, list[str]] = {}
        for web_user, names in new.items():
            for step in create.steps(self.fleet, Wanted("{tenant}", web_user=web_user)):
                groups.setdefault(step, []).extend(names)
        return Plan(tuple(replace(step, tenants=tuple(names)) for step, names in groups.items()))

    def _placements(self) -> Placements:
        return Placements(self.fleet, ignore_unreachable=self.ignore_unreachable)

    def _sort(self, placements: Placements) -> list[Desk]:
        """Give every entry to the server that has it or is to have it; what needs no visit has its outcome by that."""
        told, away = split(self._ask())
        desks = {server.name: Desk(server) for server in self.fleet.servers}
        counts = {name: len(answer) for name, answer in told.items()}
        known: dict[str, list[Tenant]] = {}
        for tenant in (tenant for answer in told.values() for tenant in answer):
            known.setdefault(tenant.tenant, []).append(tenant)
        for entry in self.entries:
            server, found = entry.server or "", known.get(entry.wanted.name, [])
            try:
                if entry.server is None:
                    server = placements.choose(entry.wanted.name, found, away, counts).name
                elif server in away:
                    raise away[server]
                existing = next((tenant for tenant in found if tenant.server == server), None)
                exists = existing is not None and existing.state is not State.PROVISIONING
                if existing is not None and exists:
                    create.require_same(existing, entry.wanted.url, if_not_exists=True)
                    self.keeper(entry.wanted.name, True)
                    if entry.wanted.web_user is None:
                        self._settle(existing, changed=False)
                        continue
            except PosduifError as error:
                self._fail(entry, server, error)
            else:
                desks[server].queue.append((entry, exists))
                counts[server] = counts.get(server, 0) + (existing is None)
        return [desk for desk in desks.values() if desk.queue]

    def _ask(self) -> dict[str, list[Tenant] | PosduifError]:
        """Ask the servers for their tenants; one that is full is asked again."""
        deadline = time.monotonic() + PATIENCE
        while True:
            answers = self.fleet.ask(lambda session: self.fleet.list_on(session))
            full = any(isinstance(answer, ServerFull) for answer in answers.values())
            if not full or time.monotonic() > deadline:
                return answers
            time.sleep(PAUSE)

    def _prepare(self, desk: Desk) -> None:
        """Make roles and template once, and see how many may work at once."""
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                with self.fleet.maintenance(desk.server) as session:
                    admin.ensure_roles(session)
                    coming = sum(not exists for _, exists in desk.queue)
                    desk.template = template.provide(session, self.fleet, coming=coming)
                break
            except PosduifError as error:
                if isinstance(error, ServerFull) and time.monotonic() < deadline:
                    time.sleep(PAUSE)
                    continue
                for entry, _ in desk.queue:
                    self._fail(entry, desk.server.name, error)
                desk.queue.clear()
                break
        # Each has a session in the maintenance database and, unless a copy is all there is to it, one in the tenant's.
        copy, folders = desk.template, self.fleet.folders
        copied = copy is not None and not folders.pending(copy.schema, copy.applied)
        alone = copied and not any(entry.wanted.web_user or exists for entry, exists in desk.queue)
        share = desk.server.max_connections // (1 if alone else 2)
        desk.workers = max(1, min(self.jobs, share, len(desk.queue)))

    def _serve(self, desk: Desk, placements: Placements) -> None:
        maker = Maker(self.fleet, placements, if_not_exists=True, template=desk.template)
        session: Session | None = None
        deadline = time.monotonic() + PATIENCE
        for entry, exists in self._crew.take(desk.queue):
            started = time.monotonic()
            try:
                if session is None or session.broken:
                    session = self.fleet.maintenance(desk.server)
                    session.require_admin()
                with self._crew.watch(session):
                    tenant, changed = maker.create(session, entry.wanted, self.keeper(entry.wanted.name, exists))
            except PosduifError as error:
                if self._crew.interrupted:
                    break
                if not isinstance(error, ServerFull) or time.monotonic() > deadline:
                    self._fail(entry, desk.server.name, error, started)
                    continue
                # Others go on with what this one held; the last of them waits.
                desk.queue.appendleft((entry, exists))
                if session is not None:
                    session.close()
                if self._leave(desk):
                    return
                self._crew.stop.wait(PAUSE)
            except Exception as bug:
                found = PosduifError(f"a bug in posduif: {type(bug).__name__}", why=str(bug)[:200])
                self._fail(entry, desk.server.name, found, started)
            else:
                self._settle(tenant, changed=changed, started=started)
                deadline = time.monotonic() + PATIENCE
        if session is not None:
            session.close()

    def _leave(self, desk: Desk) -> bool:
        """Have one worker less on a server that is full; False for the last one."""
        with self._lock:
            if desk.workers == 1:
                return False
            desk.workers -= 1
            return True

    def _settle(self, tenant: Tenant, *, changed: bool, started: float | None = None) -> None:
        version = tenant.schema_version
        status, before = ("created", None) if changed else ("unchanged", version)
        self._record(Outcome(tenant.tenant, tenant.server, status, changed, before, version, _since(started)))

    def _fail(self, entry: Entry, server: str, error: PosduifError, started: float | None = None) -> None:
        status = "differs" if isinstance(error, TenantExists | WrongState | AmbiguousTenant) else "failed"
        with self._lock:
            self.errors[entry.wanted.name] = error
        name = entry.wanted.name
        self._record(Outcome(name, server, status, False, None, None, _since(started), OutcomeError(error.sentence)))

    def _record(self, outcome: Outcome) -> None:
        with self._lock:
            self.outcomes.append(outcome)
            self.on_outcome(outcome)


def _since(started: float | None) -> float:
    """Return the seconds since then; what was settled from the first answer took none of its own."""
    return 0.0 if started is None else round(time.monotonic() - started, 3)
