"""What a check is: an id, what it looks at, thresholds, an explanation, a judgement of facts, perhaps a repair."""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import timedelta
from math import inf
from typing import Any

from posduif_cli.db.session import Session
from posduif_cli.errors import Hint, PosduifError, Run
from posduif_cli.models.checks import Finding, Level
from posduif_cli.notation import duration

SIZES = {"TiB": 1024**4, "GiB": 1024**3, "MiB": 1024**2}
EXAMPLES = {"ratio": "80%, ", "bytes": "64MiB, "}  # of how a value is written, by unit
SPANS = {"days": timedelta(days=1), "hours": timedelta(hours=1), "seconds": timedelta(seconds=1)}


@dataclass(frozen=True)
class Threshold:
    """From which value on a finding is a warning, and from which it is critical; *unit* is that of both."""

    warning: float
    critical: float
    unit: str

    def level(self, value: float) -> Level:
        """Return the level of a value."""
        return Level.CRITICAL if value >= self.critical else Level.WARNING if value >= self.warning else Level.OK

    def read(self, text: Any) -> float:
        """Return a value in the threshold's unit: a number, or text such as 80%, 64MiB, 30m. Raises PosduifError.

        >>> Threshold(0.75, 0.9, "ratio").read("80%"), Threshold(26, 168, "hours").read("2d")
        (0.8, 48.0)
        """
        if self.unit == "ratio" and isinstance(text, int | float) and text > 1:
            raise PosduifError(f"{text} is more than all", why="a share is written as 80% or 0.8")
        if isinstance(text, int | float) and not isinstance(text, bool) and 0 <= text < inf:
            return text
        if text == "never":
            return inf
        found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?) ?(%|[TGM]iB|)", str(text))
        if found and self.unit == "ratio" and found[2] in ("%", ""):
            return float(found[1]) / (100 if found[2] else 1)
        if found and self.unit == "bytes" and found[2] in (*SIZES, ""):
            return float(found[1]) * SIZES.get(found[2], 1)
        if self.unit in SPANS:
            return duration(str(text), zero=True) / SPANS[self.unit]
        raise PosduifError(
            f'"{text}" is no value in {self.unit}', why=f"it is a number, {EXAMPLES.get(self.unit, '')}or never"
        )

    def __str__(self) -> str:
        """Return both values with their unit.

        >>> str(Threshold(0.75, 0.9, "ratio")), str(Threshold(64 * 1024**2, inf, "bytes"))
        ('0.75 / 0.9', '64 MiB / never')
        """
        return f"{self.spelled(self.warning)} / {self.spelled(self.critical)}"

    def spelled(self, value: float) -> str:
        """Return a value as it is shown, without its unit where that is not bytes."""
        units = SIZES.items() if self.unit == "bytes" else ()
        plain = "never" if value == inf else f"{value:.12g}"
        return next((f"{value / size:g} {unit}" for unit, size in units if inf > value >= size), plain)


@dataclass(frozen=True)
class Verdict:
    """What a check says of one thing; a good verdict's *fix* is not reported.

    *level* is None where the threshold decides it by *value*, up to *most*. *thing* tells verdicts of one check on one
    subject apart. *several* is what is said of several subjects at once, *message* where it is None. *repairable* is
    False where the check's repair must not be tried. *then* is what is left to do by hand after the repair. *subject*
    replaces that of the facts. What cannot be judged is SKIPPED, and *message* is the reason.
    """

    level: Level | None
    message: str
    value: float | int | str | None = None
    unit: str | None = None
    fix: Hint | None = None
    subject: str | None = None
    affected: tuple[str, ...] = ()
    thing: str = ""
    several: str | None = None
    most: Level = Level.CRITICAL
    repairable: bool = True
    then: Hint | None = None


def failure(error: PosduifError, level: Level = Level.CRITICAL, *, fix: Hint | None = None) -> Verdict:
    """Return the verdict that an error amounts to; *fix* is for one without a hint."""
    return Verdict(level, error.sentence, fix=next(iter(error.hints), fix))


Judge = Callable[[Any], Iterator[Verdict]]
Repair = Callable[[Session, Any, str], object]
Limits = Mapping[str, Threshold]  # by the id of a check


@dataclass(frozen=True)
class Hides:
    """The checks, by id or prefix, whose findings are symptoms of what a check found.

    It hides them from the level *at* on: in the tenants that it is about, or with *whole* on the whole server.
    """

    checks: tuple[str, ...]
    at: Level = Level.CRITICAL
    whole: bool = False


@dataclass(frozen=True)
class Check:
    """One check. *commands* select it; *judge* is a pure function of the facts of its *scope*.

    *repair* is called in a transaction under the tenant's lock with the session, the facts and the verdict's thing.
    *tier* says what has to be asked for it: nothing but the server ("listed"), the tenant's database ("visited"), its
    engine ("probed") or the backups ("stored"). *asks* names the queries that it needs the answers of, *monitor* that
    these take the rights of pg_monitor. *together* are noun, verb and options of the command that repairs several
    tenants. *hides* says which other findings are symptoms of this one's.
    """

    scope: str
    commands: tuple[str, ...]
    id: str
    title: str
    explanation: str
    judge: Judge
    threshold: Threshold | None = None
    repair: Repair | None = None
    tier: str = "listed"
    asks: tuple[str, ...] = ()
    monitor: bool = False
    together: tuple[str, ...] = ()
    hides: Hides | None = None

    def __call__(self, facts: Any) -> Iterator[Finding]:
        """Yield the findings on some facts, which have a `subject`, by the check's own threshold."""
        return (self.finding(facts.subject, verdict) for verdict in self.verdicts(facts, {}))

    def limit(self, limits: Limits) -> Threshold | None:
        """Return the threshold: that of *limits*, which are configured, or the check's own."""
        return limits.get(self.id, self.threshold)

    def verdicts(self, facts: Any, limits: Limits) -> Iterator[Verdict]:
        """Yield the verdicts on some facts, each with its level."""
        limit = self.limit(limits)
        for verdict in self.judge(facts):
            if verdict.level is None:
                assert limit is not None
                assert isinstance(verdict.value, int | float)
                level = min(limit.level(verdict.value), verdict.most, key=lambda level: level.rank)
                verdict = replace(verdict, level=level)
            yield verdict

    def repair_of(self, verdict: Verdict) -> Repair | None:
        """Return what repairs the cause of a verdict, None where nothing may."""
        return self.repair if verdict.level is not Level.OK and verdict.repairable else None

    def finding(self, subject: str, verdict: Verdict, limits: Limits | None = None) -> Finding:
        """Return the finding that reports a verdict."""
        limit, fix = self.limit(limits or {}), verdict.fix
        if fix is None and self.repair_of(verdict):
            fix = Run("tenant", "verify", subject, "--repair")
        assert verdict.level is not None
        if limit is not None and verdict.unit not in (None, limit.unit):
            limit = None  # what is told beside what the threshold is about
        return Finding(
            self.id, self.scope, verdict.subject or subject, verdict.level, verdict.message, verdict.value,
            unit=verdict.unit or (limit.unit if limit else None), threshold=str(limit) if limit else None,
            fix=None if verdict.level is Level.OK else fix, affected=verdict.affected,
        )  # fmt: skip


def check(
    scope: str, commands: tuple[str, ...], id: str, title: str, explanation: str, **more: Any
) -> Callable[[Judge], Check]:
    """Make a check of the function that judges its facts; *more* are the further fields of `Check`."""
    return lambda judge: Check(scope, commands, id, title, explanation, judge, **more)
