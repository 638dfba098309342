"""Commands that are killed at a point, and what must hold of a tenant that one was killed over."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from posduif_cli.db import record
from posduif_cli.db.pipeline import Pipeline
from posduif_cli.db.record import Intent
from posduif_cli.db.session import Session
from posduif_cli.models.tenants import State
from support.runner import Posduif
from support.servers import PgServer
from support.sources import BUNDLED, LATEST
from support.tenants import matches, state

# Runs posduif with one of its functions replaced by one that dies, or loses its server process, before or
# after the original does its work: `before core.fleet.fleet:Fleet.enter 2` is the second call of that function. A
# number of seconds in place of `before` kills that long after the call began, wherever the process then is.
RUNNER = """
import os, pkgutil, signal, sys, threading
import psycopg
from posduif_cli import main

deed, when, path, nth = sys.argv[1].split()
owner, _, name = (path if path.startswith("psycopg") else f"posduif_cli.{path}").rpartition(".")
owner = pkgutil.resolve_name(owner)
original, calls = getattr(owner, name), 0

def strike(args):
    if deed == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    with psycopg.connect(os.environ["POSDUIF_DSN"]) as conn:
        conn.execute("SELECT pg_terminate_backend(%s, 5000)", [getattr(args[0], "session", args[0]).pid])

def struck(*args, **named):
    global calls
    calls += 1
    if calls == int(nth) and when == "before":
        strike(args)
    elif calls == int(nth) and when != "after":
        threading.Timer(float(when), strike, [args]).start()
    result = original(*args, **named)
    if calls == int(nth) and when == "after":
        strike(args)
    return result

setattr(owner, name, struck)
sys.exit(main.run(sys.argv[2:]))
"""


def strike(point: str, *argv: str) -> int:
    """Run a command that is struck at a point; return its exit code, negative for a signal."""
    done = subprocess.run(
        [sys.executable, "-c", RUNNER, point, *argv],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=60,
    )
    return done.returncode


def kill(point: str, *argv: str) -> None:
    """Kill a command at a point such as `before db.admin.drop_role 1`."""
    assert strike(f"kill {point}", *argv) == -signal.SIGKILL, f"{point} was never reached"


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def killed(work: Callable[[], Any], when: str, nth: int) -> tuple[bool, str]:
    """Run *work* in a child that is killed before or after its nth call of SQL.

    Returns whether it was reached, and the call's name.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        try:
            calls = 0

            def struck(original: Callable[..., Any]) -> Callable[..., Any]:
                def call(*args: Any, **named: Any) -> Any:
                    nonlocal calls
                    calls += 1
                    if calls == nth:
                        os.write(writer, original.__name__.encode())
                        if when == "before":
                            die()
                    mine = calls
                    try:
                        return original(*args, **named)
                    finally:
                        if mine == nth:
                            die()

                return call

            for owner, name in ((Session, "script"), (Session, "execute"), (Pipeline, "send")):
                setattr(owner, name, struck(getattr(owner, name)))
            work()
            os._exit(0)
        finally:
            os._exit(1)
    os.close(writer)
    _, status = os.waitpid(child, 0)
    with os.fdopen(reader) as pipe:
        name = pipe.read()
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, "the child failed by itself"
    return os.WIFSIGNALED(status), name


def assert_whole(posduif: Posduif, server: PgServer, name: str, file: Path) -> None:
    """An active tenant in which nothing is missing and nothing is there twice."""
    shown = posduif.json("tenant", "show", name)
    assert (shown["state"], shown["schema_version"], shown["pending"]) == ("active", LATEST, 0)
    assert [row["state"] for row in posduif.json("migrate", "list", name)] == ["applied"] * len(BUNDLED)
    assert [user["username"] for user in posduif.json("user", "list", name)] == ["desk"]
    assert server.sql(
        """SELECT pg_get_userbyid(datdba)::text, datallowconn, datconnlimit,
                  has_database_privilege(%s, oid, 'CONNECT'), shobj_description(oid, 'pg_database') LIKE '%%"active"%%'
           FROM pg_database WHERE datname = %s""",
        f"{name}_engine",
        name,
    ) == [("posduif_admin", True, -1, True, True)]
    verifier, noted, login = server.sql(
        "SELECT rolpassword, shobj_description(oid, 'pg_authid'), rolcanlogin FROM pg_authid WHERE rolname = %s",
        f"{name}_engine",
    )[0]
    intent = record.parse_intent(noted)
    assert (login, intent and intent.state) == (True, State.ACTIVE)
    assert matches(verifier, yaml.safe_load(file.read_text())["postgres"]["password"])
    assert file.stat().st_mode & 0o777 == 0o600


def assert_gone(posduif: Posduif, server: PgServer, name: str) -> None:
    assert state(posduif, name) is None
    left = "SELECT 1 FROM pg_roles WHERE rolname = %s UNION ALL SELECT 1 FROM pg_database WHERE datname = %s"
    assert server.sql(left, f"{name}_engine", name) == []


class Case:
    """A tenant under attack, with the commands that make and drop it."""

    def __init__(self, posduif: Posduif, server: PgServer, name: str, file: Path) -> None:
        self.posduif, self.server, self.name, self.file = posduif, server, name, file
        self.create = ("tenant", "create", name, "--web-user", "desk", "--engine-config", str(file))
        self.drop = ("tenant", "drop", name, "--confirm", name)

    def whole(self) -> None:
        assert_whole(self.posduif, self.server, self.name, self.file)

    def state(self) -> str | None:
        return state(self.posduif, self.name)

    def database(self) -> list[tuple[Any, ...]]:
        return self.server.sql(
            """SELECT oid, datallowconn, datconnlimit, shobj_description(oid, 'pg_database')
               FROM pg_database WHERE datname = %s""",
            self.name,
        )

    def intent(self) -> Intent | None:
        noted = "SELECT shobj_description(oid, 'pg_authid') FROM pg_roles WHERE rolname = %s"
        found = self.server.sql(noted, f"{self.name}_engine")
        return record.parse_intent(found[0][0]) if found else None
