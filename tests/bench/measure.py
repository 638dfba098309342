"""Timing in pairs: the machine is shared and noisy, so the median ratio to a baseline of the same run is the figure."""

import compileall
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import posduif_cli
from support.servers import PgServer as PgServer
from support.servers import scratch as scratch
from support.servers import start as start

PYTHON = sys.executable
POSDUIF = (PYTHON, "-m", "posduif_cli")
# pip does so for what it installs, and the baselines' modules are installed; a checkout's may be not.
compileall.compile_dir(Path(posduif_cli.__file__).parent, quiet=1)


def seconds(work: Callable[[], object]) -> float:
    """Time one call, in seconds."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def process(*argv: str, codes: Sequence[int] = (0,), **environ: str) -> Callable[[], None]:
    """Make a call that runs one whole process; it must exit with one of *codes*."""

    def run() -> None:
        done = subprocess.run(argv, env={**os.environ, **environ}, capture_output=True, stdin=subprocess.DEVNULL)
        assert done.returncode in codes, (argv, done.returncode, done.stderr[-500:])

    return run


def pairs(
    name: str,
    work: Callable[[], object],
    baseline: Callable[[], object],
    *,
    rounds: int = 7,
    afterwards: Callable[[], object] = lambda: None,
) -> float:
    """Run both in turn and print the median of their ratios, and both medians; *afterwards* is not timed."""
    timed: list[tuple[float, float]] = []
    for _ in range(rounds + 1):
        timed.append((seconds(work), seconds(baseline)))
        afterwards()
    del timed[0]  # what is read from the disk for the first time
    ratio = statistics.median(a / b for a, b in timed)
    ours, theirs = (statistics.median(column) for column in zip(*timed, strict=True))
    print(f"{name}: {ratio:.2f} x the baseline (medians {ours * 1000:.1f} ms and {theirs * 1000:.1f} ms, n={rounds})")
    return ratio
