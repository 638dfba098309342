"""Crews: threads that work through queues, and how ctrl-C ends what they are doing."""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

from posduif_cli.db.session import Session

T = TypeVar("T")
R = TypeVar("R")
PATIENCE = 1.0  # seconds that ctrl-C waits for what it cancelled; what still connects then ends with the process


class Crew:
    """The threads of one run. *stop* ends it before the next item; *interrupted* says that ctrl-C did."""

    def __init__(self) -> None:
        self.stop = threading.Event()
        self.interrupted = False
        self._lock = threading.Lock()
        self._sessions: dict[int, Session] = {}

    @contextmanager
    def watch(self, session: Session) -> Iterator[None]:
        """Have ctrl-C cancel what *session* does inside the block."""
        with self._lock:
            self._sessions[id(session)] = session
        try:
            yield
        finally:
            with self._lock:
                del self._sessions[id(session)]

    def take(self, queue: "deque[T]") -> Iterator[T]:
        """Take one item after the other, until none is left or the run is stopped."""
        while not self.stop.is_set():
            try:
                item = queue.popleft()
            except IndexError:
                return
            yield item

    def run(self, tasks: Sequence[tuple[Callable[[], None], int]]) -> None:
        """Do each task in as many threads as it says, and wait for all of them.

        Raises KeyboardInterrupt after what was under way has been cancelled.
        """
        threads: list[threading.Thread] = []
        try:
            for task, number in tasks:
                for _ in range(number):
                    thread = threading.Thread(target=task, daemon=True)
                    thread.start()
                    threads.append(thread)
            for thread in threads:
                while thread.is_alive():
                    thread.join(0.2)
        except KeyboardInterrupt:
            self.interrupted = True
            self.stop.set()
            self._end(threads)
            raise

    def map(self, items: Sequence[T], work: Callable[[T], R], *, jobs: int) -> list[R]:
        """Do *work* for each item, several at once, and return the results in the order of the items."""
        if len(items) <= 1:
            return [work(item) for item in items]  # ctrl-C reaches this thread by itself
        queue = deque(enumerate(items))
        results: dict[int, R] = {}
        bugs: list[BaseException] = []

        def serve() -> None:
            for number, item in self.take(queue):
                try:
                    results[number] = work(item)
                except BaseException as bug:
                    bugs.append(bug)
                    self.stop.set()

        self.run([(serve, min(jobs, len(items)))])
        if bugs:
            raise bugs[0]
        return [results[number] for number in range(len(items))]

    def _end(self, threads: Sequence[threading.Thread]) -> None:
        """Cancel what is under way, more than once: a session may be between two statements, or not be there yet."""
        deadline = time.monotonic() + PATIENCE
        while any(thread.is_alive() for thread in threads) and time.monotonic() < deadline:
            with self._lock:
                sessions = list(self._sessions.values())
            for session in sessions:  # first all, for to cancel one takes a while where its server is silent
                session.give_up()
            for session in sessions:
                if time.monotonic() < deadline:
                    session.cancel()
            time.sleep(0.05)
