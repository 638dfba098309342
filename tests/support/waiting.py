"""Waiting for what must come, and sessions that others wait for."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psycopg

from support.servers import PgServer


def until(true: Callable[[], Any], what: str, seconds: float = 15, *, every: float = 0.02) -> None:
    """Wait until *true* says so; how often it is asked is *every*, in seconds."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, f"waited in vain: {what}"
        time.sleep(every)


@contextmanager
def held(
    server: PgServer, tenant: str, *statements: str, name: str = "the holder"
) -> Iterator[psycopg.Connection[Any]]:
    """Keep open a transaction in which another session ran these statements, to hold their locks."""
    with server.connect(tenant, application_name=name) as conn, conn.transaction():
        for statement in statements:
            conn.execute(statement.encode())
        yield conn


def sleepers(server: PgServer, tenant: str) -> list[int]:
    found = server.sql(
        "SELECT pid FROM pg_stat_activity WHERE datname = %s AND wait_event = 'PgSleep' AND pid <> pg_backend_pid()",
        tenant,
    )
    return [pid for (pid,) in found]


def sessions(server: PgServer, condition: str = "true") -> list[int]:
    """Return the process ids of posduif's sessions that meet a condition on pg_stat_activity."""
    query = f"SELECT pid FROM pg_stat_activity WHERE application_name LIKE 'posduif%' AND {condition}"
    return [pid for (pid,) in server.sql(query)]
