"""Patience: how long a command goes on trying, by the name of what it waits for. The only loop of tries."""

import threading
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import TypeVar

from posduif_cli.errors import Interrupted

T = TypeVar("T")
# How long each thing is waited for in all. A limit that is configured is given by the caller.
LIMITS: dict[str, timedelta] = {
    "lock": timedelta(seconds=10),  # an advisory lock that another command holds
    "engine": timedelta(seconds=10),  # until an engine that keeps coming back is shut out
    "killed": timedelta(seconds=2),  # until a server has ended the session of a killed command: it looks every 500 ms
    "adoption": timedelta(seconds=10),  # transactions that were open while a database was taken in
    "embedded": timedelta(seconds=60),  # the embedded server: recovery after a crash, or initdb on a slow disk
    "blocked": timedelta(seconds=30),  # locks on a tenant's tables that other sessions hold
    "server": timedelta(seconds=30),  # a server without a free connection or, in a migration, away
    "cancelling": timedelta(seconds=1),  # what ctrl-C cancelled; what still connects then ends with the process
}


class Patience:
    """One wait for one thing: a deadline, and the pauses between the tries.

    The pauses begin with *pause*, double with each try and get no longer than *longest*; without *longest* they stay
    as they are. *stop* is set, or *interrupted* returns True, when the command is to end at once.
    """

    def __init__(
        self,
        name: str,
        *,
        limit: timedelta | None = None,
        pause: timedelta = timedelta(milliseconds=100),
        longest: timedelta | None = None,
        stop: threading.Event | None = None,
        interrupted: Callable[[], bool] = lambda: False,
    ) -> None:
        self._limit = (LIMITS[name] if limit is None else limit).total_seconds()
        self._pause, self._longest = pause.total_seconds(), (longest or pause).total_seconds()
        self._stop, self._interrupted = stop, interrupted
        self.restart()

    def restart(self) -> None:
        """Count from now: something was achieved."""
        self._deadline = time.monotonic() + self._limit

    def over(self, *, needed: timedelta = timedelta(0)) -> bool:
        """Whether no further try fits into the limit; *needed* is how long one may take. Raises Interrupted."""
        if self._interrupted() or (self._stop is not None and self._stop.is_set()):
            raise Interrupted("interrupted")
        return time.monotonic() + needed.total_seconds() > self._deadline

    def until_none(self, ask: Callable[[], Sequence[T]]) -> Sequence[T]:
        """Ask who is in the way until nobody is, or the time is over; return the last answer."""
        while (found := ask()) and self.again():
            pass
        return found

    def again(self, *, needed: timedelta = timedelta(0)) -> bool:
        """Pause before the next try and return True, or return False without a pause: as `over`.

        Raises Interrupted as soon as *stop* is set, in the middle of a pause too.
        """
        if self.over(needed=timedelta(seconds=self._pause) + needed):
            return False
        if self._stop is not None:
            self._stop.wait(self._pause)
        else:
            time.sleep(self._pause)
        self._pause = min(self._pause * 2, max(self._longest, self._pause))
        self.over()  # raises Interrupted
        return True
