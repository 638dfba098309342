"""What a check is: an id, what it looks at, thresholds, an explanation, a judgement of facts, perhaps a repair."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from posduif_cli.db.session import Session
from posduif_cli.errors import Hint, PosduifError, Run
from posduif_cli.models.checks import Finding, Level

SIZES = {"TiB": 1024**4, "GiB": 1024**3, "MiB": 1024**2}


@dataclass(frozen=True)
class Threshold:
    """From which value on a finding is a warning, and from which it is critical; *unit* is that of both."""

    warning: float
    critical: float
    unit: str

    def level(self, value: float) -> Level:
        """Return the level of a value."""
        return Level.CRITICAL if value >= self.critical else Level.WARNING if value >= self.warning else Level.OK

    def __str__(self) -> str:
        """Return both values with their unit.

        >>> str(Threshold(0.75, 0.9, "ratio")), str(Threshold(64 * 1024**2, 1024**3, "bytes"))
        ('0.75 / 0.9', '64 MiB / 1 GiB')
        """
        return f"{self._spelled(self.warning)} / {self._spelled(self.critical)}"

    def _spelled(self, value: float) -> str:
        units = SIZES.items() if self.unit == "bytes" else ()
        return next((f"{value / size:g} {unit}" for unit, size in units if value >= size), f"{value:g}")


@dataclass(frozen=True)
class Verdict:
    """What a check says of one thing; a good verdict's *fix* is not reported.

    *thing* tells verdicts of one check on one subject apart. *repairable* is False where the check's repair must not
    be tried. *then* is what is left to do by hand after the repair. *subject* replaces that of the facts.
    """

    level: Level
    message: str
    value: float | int | str | None = None
    unit: str | None = None
    fix: Hint | None = None
    subject: str | None = None
    affected: tuple[str, ...] = ()
    thing: str = ""
    repairable: bool = True
    then: Hint | None = None


def failure(error: PosduifError, level: Level = Level.CRITICAL, *, fix: Hint | None = None) -> Verdict:
    """Return the verdict that an error amounts to; *fix* is for one without a hint."""
    return Verdict(level, error.sentence, fix=next(iter(error.hints), fix))


Judge = Callable[[Any], Iterator[Verdict]]
Repair = Callable[[Session, Any, str], object]


@dataclass(frozen=True)
class Check:
    """One check. *commands* select it; *judge* is a pure function of the facts of its *scope*.

    *repair* is called in a transaction under the tenant's lock with the session, the facts and the verdict's thing.
    """

    scope: str
    commands: tuple[str, ...]
    id: str
    title: str
    explanation: str
    judge: Judge
    threshold: Threshold | None = None
    repair: Repair | None = None

    def __call__(self, facts: Any) -> Iterator[Finding]:
        """Yield the findings on some facts, which have a `subject`."""
        return (self.finding(facts.subject, verdict) for verdict in self.judge(facts))

    def repair_of(self, verdict: Verdict) -> Repair | None:
        """Return what repairs the cause of a verdict, None where nothing may."""
        return self.repair if verdict.level is not Level.OK and verdict.repairable else None

    def finding(self, subject: str, verdict: Verdict) -> Finding:
        """Return the finding that reports a verdict."""
        limit, fix = self.threshold, verdict.fix
        if fix is None and self.repair_of(verdict):
            fix = Run("tenant", "verify", subject, "--repair")
        return Finding(
            self.id, self.scope, verdict.subject or subject, verdict.level, verdict.message, verdict.value,
            unit=verdict.unit or (limit.unit if limit else None), threshold=str(limit) if limit else None,
            fix=None if verdict.level is Level.OK else fix, affected=verdict.affected,
        )  # fmt: skip


def check(
    scope: str, commands: tuple[str, ...], id: str, title: str, explanation: str, **more: Any
) -> Callable[[Judge], Check]:
    """Make a check of the function that judges its facts; *more* is its threshold and its repair."""
    return lambda judge: Check(scope, commands, id, title, explanation, judge, **more)
