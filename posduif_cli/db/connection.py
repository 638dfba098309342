"""A connection of psycopg's that never waits for ever, and how it reads text and times."""

import logging
import math
import time
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, ClassVar, TypeVar, cast

import psycopg
from psycopg import waiting
from psycopg.abc import Buffer, PQGen
from psycopg.pq import TransactionStatus

T = TypeVar("T")
LETTING_GO = 0.4  # seconds that a cancelled statement has to end, before its connection is given up
CLEARING_UP = 2.0  # seconds that a server has for each step of what is cleared up after ctrl-C
INTERRUPTED = 20.0  # seconds for which that holds
# psycopg tells of failed cancellations there, on stderr, which belongs to our own messages.
logging.getLogger("psycopg").setLevel(logging.CRITICAL)


class _Text(psycopg.adapt.Loader):
    """Reads text whose bytes need not be UTF-8: comments keep the encoding of the database they were made in."""

    def load(self, data: Buffer) -> str:
        return str(data, "utf-8", "replace")


class _Instant(psycopg.adapt.Loader):
    """Reads a time, or leaves it as PostgreSQL's text where Python has none such: infinity, BC, beyond 9999."""

    def load(self, data: Buffer) -> datetime | str:
        text = str(data, "ascii")
        try:
            return datetime.fromisoformat(text).astimezone(UTC)
        except (OverflowError, ValueError):
            return text.replace("+00", "")


class _Reading:
    """How every session reads: psycopg's own way, but for text and for times."""

    adapters = psycopg.adapt.AdaptersMap(psycopg.adapters)
    connection = None


READING = _Reading()
_Reading.adapters.register_loader("text", _Text)
_Reading.adapters.register_loader("timestamptz", _Instant)


class Connection(psycopg.Connection[Any]):
    """A connection that waits for its server no longer than *limit* seconds, and for what was cancelled a moment.

    *limit* is None when no end is known beforehand; *let_go* is when a cancelled statement is given up.
    """

    limit: float | None = None
    let_go: float | None = None
    interrupted_at: ClassVar[float] = -math.inf  # of any connection: what is cleared up then is often on another

    def wait(self, gen: PQGen[T], interval: float = 0.1, timeout: float | None = None) -> T:
        """Wait as psycopg does; the connection is closed, and OperationalError raised, once the time is over."""
        try:
            return waiting.wait(self._watched(gen), self.pgconn.socket, interval=interval)
        except KeyboardInterrupt:
            Connection.interrupted_at = time.monotonic()
            if self.info.transaction_status is TransactionStatus.ACTIVE:
                self.cancel_soon()
                with suppress(psycopg.Error):
                    waiting.wait(self._watched(gen, begun=True), self.pgconn.socket, interval=interval)
                if self.info.transaction_status is TransactionStatus.ACTIVE:
                    self.pgconn.finish()
            raise

    def give_up(self) -> None:
        """Wait no longer than a moment for the server, from now on."""
        self.let_go = self.let_go or time.monotonic() + LETTING_GO

    def cancel_soon(self) -> None:
        """Ask the server to cancel what it does, and wait for it a moment only."""
        self.give_up()
        with suppress(psycopg.Error, OSError):
            self.cancel_safe(timeout=LETTING_GO)

    def _watched(self, gen: PQGen[T], *, begun: bool = False) -> PQGen[T]:
        started = time.monotonic()
        ready: int | None = waiting.Ready.NONE if begun else None
        try:
            while True:
                # At every step: a server that sends notices without end never lets the wait run out.
                ready = yield gen.send(cast(waiting.Ready, ready))
                self._require_time(time.monotonic(), started)
        except StopIteration as end:
            return cast(T, end.value)

    def _require_time(self, now: float, started: float) -> None:
        if self.limit is not None and now - started > self.limit:
            self.pgconn.finish()
            raise psycopg.OperationalError(f"the server has said nothing for {now - started:.0f} s")
        if self.let_go is not None and now > max(self.let_go, started + LETTING_GO):
            self.pgconn.finish()
            raise psycopg.OperationalError("interrupted")
        since = now - Connection.interrupted_at
        if since < INTERRUPTED and min(since, now - started) > CLEARING_UP:
            self.pgconn.finish()
            raise psycopg.OperationalError("interrupted")
