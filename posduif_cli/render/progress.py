"""Progress of a run over many tenants, on stderr: a live line on a terminal, plain lines elsewhere."""

import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from posduif_cli.errors import ServerError
from posduif_cli.models.runs import STATUSES, Outcome, reason
from posduif_cli.render.output import Output, columns_of, write
from posduif_cli.render.tables import visible


@dataclass(frozen=True)
class Watcher:
    """What a run calls while it goes on."""

    on_outcome: Callable[[Outcome], None]
    tell: Callable[[str], None]


@contextmanager
def watch(out: Output) -> Iterator[Watcher]:
    """Show the run under way; -q and JSON show nothing."""
    told: set[tuple[str, type]] = set()

    def told_already(outcome: Outcome) -> bool:
        """Whether the trouble of a whole server was told with another of its tenants; the summary counts them."""
        if not isinstance(outcome.error, ServerError):
            return False
        trouble = outcome.server, type(outcome.error)
        known = trouble in told
        told.add(trouble)
        return known

    if out.quiet or out.machine:
        yield Watcher(lambda outcome: None, lambda text: None)
    elif sys.stderr.isatty():
        yield from _live(out, told_already)
    else:
        yield Watcher(lambda outcome: None if told_already(outcome) else _line(out, outcome), out.say)


@contextmanager
def line(out: Output) -> Iterator[Callable[[str], None]]:
    """Lend a line at the bottom of a terminal that shows how far something is; elsewhere nothing is shown."""
    if out.quiet or out.machine or not sys.stderr.isatty():
        yield lambda text: None
        return
    lock = threading.Lock()

    def show(text: str) -> None:
        with lock:
            write(f"\r\x1b[K{text[: columns_of(sys.stderr) - 1]}", sys.stderr, own=True)

    try:
        yield show
    finally:
        show("")


def _line(out: Output, outcome: Outcome) -> None:
    if outcome.status not in ("unchanged", "skipped"):
        what = reason(outcome.error) if outcome.error else f"{outcome.from_ or 'none'} -> {outcome.to or 'none'}"
        told = f": {what}" if outcome.error or outcome.from_ != outcome.to else ""
        out.say(f"{outcome.status}: {outcome.tenant}{told} ({outcome.seconds:.2f} s)")


def _live(out: Output, told_already: Callable[[Outcome], bool]) -> Iterator[Watcher]:
    """Keep one line with the counts at the bottom; failures and remarks scroll above it."""
    lock = threading.Lock()
    counts: Counter[str] = Counter()
    over = False

    def redraw(above: str = "") -> None:
        if over:
            return  # a thread that outlived the run
        words = ", ".join(f"{counts[word]} {word}" for word in STATUSES if counts[word])
        line = f"{words or 'starting'} ..."[: columns_of(sys.stderr) - 1]
        scrolled = visible(above) + "\n" if above else ""
        write(f"\r\x1b[K{scrolled}{line}", sys.stderr, own=True)

    def on_outcome(outcome: Outcome) -> None:
        with lock:
            counts[outcome.status] += 1
            bad = outcome.error if outcome.status in ("failed", "differs") and not told_already(outcome) else None
            redraw(f"{outcome.status}: {outcome.tenant}: {reason(bad)}" if bad else "")

    def tell(text: str) -> None:
        with lock:
            redraw(text)

    redraw()
    try:
        yield Watcher(on_outcome, tell)
    finally:
        with lock:
            over = True
        write("\r\x1b[K", sys.stderr, own=True)
