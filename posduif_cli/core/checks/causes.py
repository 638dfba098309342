"""From verdicts to findings: one per cause, without the symptoms of a server's cause, the worst first."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from posduif_cli.core.checks.check import Check, Limits, Verdict
from posduif_cli.core.fleet.fleet import Fleet
from posduif_cli.errors import Run
from posduif_cli.models.checks import Finding, Level
from posduif_cli.notation import listed

SHOWN = 3  # names in a message
FIRST = "for each, as for the first"
NAMED = 5  # tenants that a command is given by name; for more it is given --all


@dataclass(frozen=True)
class Judged:
    """What a check said of one subject of a server, by the thresholds that hold there."""

    check: Check
    server: str
    subject: str
    verdict: Verdict
    limits: Limits

    @property
    def level(self) -> Level:
        """How bad it is."""
        assert self.verdict.level is not None
        return self.verdict.level

    @property
    def tenants(self) -> tuple[str, ...]:
        """The tenants that it is about."""
        return self.verdict.affected or ((self.subject,) if self.check.scope == "tenant" else ())


def findings(fleet: Fleet, judged: Sequence[Judged], totals: Mapping[str, int]) -> list[Finding]:
    """Return one finding per cause, the worst first; *totals* is how many tenants were asked about on each server."""
    groups: dict[tuple[str, str, Level, str], list[Judged]] = {}
    for each in _causes(judged):
        what = each.verdict.several or each.verdict.message
        groups.setdefault((each.server, each.check.id, each.level, what), []).append(each)
    found = [
        replace(fleet.locate(_finding(group, totals.get(server, 0)), server), server=server)
        for (server, *_), group in groups.items()
    ]
    return sorted(found, key=lambda finding: (-finding.level.rank, -len(finding.affected)))


def _causes(judged: Sequence[Judged]) -> Iterator[Judged]:
    """Yield what is not ok and no symptom of what is wrong with its whole server, or with its tenant."""
    ids = {each.check.id for each in judged}
    servers: dict[tuple[str, str], int] = {}  # how bad what hides a check everywhere on a server is
    places: dict[tuple[str, str], set[str]] = {}  # the tenants in which it is
    for cause in judged:
        hides = cause.check.hides
        if hides is None or cause.level.rank < hides.at.rank:
            continue
        for id_ in (id_ for id_ in ids - {cause.check.id} if _below(id_, hides.checks)):
            if hides.whole:
                servers[cause.server, id_] = max(cause.level.rank, servers.get((cause.server, id_), 0))
            else:
                places.setdefault((cause.server, id_), set()).update(cause.tenants)
    for each in judged:
        place = (each.server, each.check.id)
        hidden = each.level.rank <= servers.get(place, -1)  # what is worse has a cause of its own
        hidden = hidden or (bool(each.tenants) and set(each.tenants) <= places.get(place, set()))
        if each.level.rank > Level.SKIPPED.rank and not hidden:
            yield each


def _below(id_: str, prefixes: Sequence[str]) -> bool:
    return any(id_ == prefix or id_.startswith(f"{prefix}.") for prefix in prefixes)


def _finding(group: Sequence[Judged], total: int) -> Finding:
    """Return the finding that reports a cause; of several values it has the worst."""
    numbers = [each for each in group if isinstance(each.verdict.value, int | float)]
    worst = max(numbers, key=lambda each: float(each.verdict.value or 0)) if numbers else group[0]
    tenants = tuple(dict.fromkeys(name for each in group for name in each.tenants))
    found = worst.check.finding(worst.subject, worst.verdict, worst.limits)
    if len(group) == 1:
        return replace(found, affected=tenants)
    if worst.check.scope == "server":
        others = ", ".join(_name(each) for each in group if each is not worst)
        return replace(found, subject=worst.server, message=f"{found.message} (and {others})", affected=tenants)
    if len(tenants) == 1:
        return replace(found, message=f"{found.message} (and {len(group) - 1} more)", affected=tenants)
    what = worst.verdict.several or worst.verdict.message
    return replace(
        found, subject=tenants[0], affected=tenants, fix=_together(group[0], tenants),
        message=f"{len(tenants)} of {total} tenants: {what} ({listed(tenants, SHOWN)})",
    )  # fmt: skip


def _name(each: Judged) -> str:
    """Return what a verdict on a server is about."""
    value = each.verdict.value
    subject = (each.verdict.subject or "").rpartition("/")[2]
    return each.verdict.thing or subject or (value if isinstance(value, str) else each.verdict.message)


def _together(first: Judged, tenants: Sequence[str]) -> Run | str | None:
    """Return the command that repairs all the tenants of a finding, or else what repairs the first of them."""
    if not first.check.together:
        fix = first.check.finding(first.subject, first.verdict, first.limits).fix
        if isinstance(fix, Run):
            return Run(*fix.words, lead=fix.lead or FIRST)
        return fix and f"{FIRST}: {fix}"
    words = first.check.together
    return Run(*words[:2], *(tenants if len(tenants) <= NAMED else ["--all"]), *words[2:])
