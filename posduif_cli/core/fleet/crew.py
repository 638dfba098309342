"""Crews: threads that work through queues, what they do while a server is full, and how ctrl-C ends them."""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar

from posduif_cli.db.patience import Patience
from posduif_cli.db.session import Session
from posduif_cli.errors import Interrupted, PosduifError, ServerFull, ServerUnreachable, bug
from posduif_cli.models.servers import Server

T = TypeVar("T")
R = TypeVar("R")
INTERRUPTED = "interrupted"
FIRST_PAUSE, LAST_PAUSE = timedelta(milliseconds=250), timedelta(seconds=5)  # between two tries


class Crew:
    """The threads of one run. *stop* ends it before the next item; *interrupted* is True after ctrl-C."""

    def __init__(self) -> None:
        self.stop = threading.Event()
        self.interrupted = False
        self._lock = threading.Lock()
        self._sessions: dict[int, Session] = {}

    @contextmanager
    def watch(self, session: Session) -> Iterator[None]:
        """Let ctrl-C cancel what *session* does inside the block."""
        with self._lock:
            self._sessions[id(session)] = session
        try:
            yield
        finally:
            with self._lock:
                del self._sessions[id(session)]

    def run(
        self,
        queues: Iterable[tuple[int, Iterable[T]]],
        work: Callable[[T], R],
        done: Callable[[T, R | PosduifError, float], None],
    ) -> None:
        """Call *work* for the items of each queue, of which the first value says how many are worked on at once.

        *done* gets each item, what `attempt` returned for it, and the seconds that it took, from the thread that
        did the work. Raises KeyboardInterrupt on ctrl-C, after what was under way has been cancelled.
        """
        threads: list[threading.Thread] = []

        def serve(queue: "deque[T]") -> None:
            while queue and not self.stop.is_set():
                try:
                    item = queue.popleft()
                except IndexError:  # another thread took the last one
                    return
                started = time.monotonic()
                found = self.attempt(work, item)
                done(item, found, round(time.monotonic() - started, 3))

        try:
            for number, items in queues:
                queue = deque(items)
                for _ in range(min(number, len(queue))):
                    threads.append(threading.Thread(target=serve, args=(queue,), daemon=True))
            for thread in threads:
                thread.start()
            for thread in threads:
                while thread.is_alive():
                    thread.join(0.2)
        except KeyboardInterrupt:
            self.interrupted = True
            self.stop.set()
            self._end([thread for thread in threads if thread.ident])
            raise

    def attempt(self, work: Callable[[T], R], item: T) -> R | PosduifError:
        """Return what *work* returns for one item, or its error; a bug is an error of that item alone."""
        try:
            return work(item)
        except PosduifError as error:
            return Interrupted(INTERRUPTED) if self.interrupted else error
        except Exception as error:
            return bug(error)

    def ask(self, servers: Sequence[Server], question: Callable[[Server], R]) -> dict[str, R | PosduifError]:
        """Return what `attempt` returns for each server, by name, in the order of the servers; 16 are asked at once."""
        if len(servers) <= 1:
            return {server.name: self.attempt(question, server) for server in servers}  # ctrl-C reaches this thread
        answers: dict[str, R | PosduifError] = {}
        self.run([(16, servers)], question, lambda server, answer, seconds: answers.update({server.name: answer}))
        return {server.name: answers[server.name] for server in servers}

    def _end(self, threads: Sequence[threading.Thread]) -> None:
        """Cancel what is under way, more than once: a session may be between two statements, or not be there yet."""
        patience = Patience("cancelling", pause=timedelta(milliseconds=50))
        while any(thread.is_alive() for thread in threads):
            with self._lock:
                sessions = list(self._sessions.values())
            for session in sessions:  # all of them first: to cancel one takes a while where its server is silent
                session.give_up()
            for session in sessions:
                if not patience.over():
                    session.cancel()
            if not patience.again():
                return


class Share:
    """How the threads of a run connect to one server while it is full or away: they wait for it together.

    A thread that was refused tries again while it has the turn. So of two threads that each hold one of the last
    connections and want another, one gives way. *awaits* is the error that is waited for.
    """

    def __init__(self, stop: threading.Event, *, awaits: type[ServerUnreachable] = ServerFull) -> None:
        self._stop, self._awaits = stop, awaits
        self._turn = threading.Lock()
        self._missing: Patience | None = None  # since the first refusal after the last success
        self._lost: ServerUnreachable | None = None

    def renew(self) -> None:
        """Try a server again, once, that was given up."""
        self._lost = None

    def connect(self, attempt: Callable[[], T]) -> T:
        """Return what *attempt* returns; it is tried again until the server has been waited for long enough.

        A server that is away after that is given up: the error is raised for every further attempt, without a try.
        Raises Interrupted when the run is stopped meanwhile.
        """
        if self._lost is not None:
            raise self._lost.with_traceback(None)
        try:
            found = attempt()
        except self._awaits as error:
            found = self._again(attempt, error)
        self._missing = None
        return found

    def _again(self, attempt: Callable[[], T], error: ServerUnreachable) -> T:
        with self._turn:
            while True:
                if self._lost is not None:
                    raise self._lost.with_traceback(None)
                self._missing = patience = self._missing or Patience(
                    "server", pause=FIRST_PAUSE, longest=LAST_PAUSE, stop=self._stop
                )
                if not patience.again():
                    self._lost = None if isinstance(error, ServerFull) else error
                    raise error
                try:
                    return attempt()
                except self._awaits as refused:
                    error = refused
