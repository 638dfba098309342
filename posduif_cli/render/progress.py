"""Progress of a run over many tenants, on stderr: a live line on a terminal, plain lines elsewhere."""

import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from posduif_cli.models.runs import Outcome
from posduif_cli.render.output import Output, columns_of, write
from posduif_cli.render.tables import visible

WORDS = ("ok", "created", "failed", "differs", "unchanged", "skipped")


@dataclass(frozen=True)
class Watcher:
    """What a run calls while it goes on."""

    on_outcome: Callable[[Outcome], None]
    tell: Callable[[str], None]

    @property
    def callbacks(self) -> dict[str, Any]:
        """Return the callbacks by the names that a run has for them."""
        return {"on_outcome": self.on_outcome, "tell": self.tell}


@contextmanager
def watch(out: Output) -> Iterator[Watcher]:
    """Show the run under way; -q and JSON show nothing."""
    if out.quiet or out.machine:
        yield Watcher(lambda outcome: None, lambda text: None)
    elif sys.stderr.isatty():
        yield from _live(out)
    else:
        yield Watcher(lambda outcome: _line(out, outcome), out.say)


def _line(out: Output, outcome: Outcome) -> None:
    if outcome.status not in ("unchanged", "skipped"):
        what = outcome.error.message if outcome.error else f"{outcome.from_ or 'none'} -> {outcome.to or 'none'}"
        out.say(f"{outcome.status}: {outcome.tenant}: {what} ({outcome.seconds:.2f} s)")


def _live(out: Output) -> Iterator[Watcher]:
    """Keep one line with the counts at the bottom; failures and remarks scroll above it."""
    lock = threading.Lock()
    counts: Counter[str] = Counter()
    over = False

    def redraw(above: str = "") -> None:
        if over:
            return  # a thread that outlived the run
        words = ", ".join(f"{counts[word]} {word}" for word in WORDS if counts[word])
        line = f"{words or 'starting'} ..."[: columns_of(sys.stderr) - 1]
        scrolled = visible(above) + "\n" if above else ""
        write(f"\r\x1b[K{scrolled}{line}", sys.stderr, own=True)

    def on_outcome(outcome: Outcome) -> None:
        with lock:
            counts[outcome.status] += 1
            bad = outcome.error if outcome.status in ("failed", "differs") else None
            redraw(f"{outcome.status}: {outcome.tenant}: {bad.message}" if bad else "")

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
