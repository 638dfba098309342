"""Kills at random moments, seeded: the same command finishes, and nothing else was touched.

A hundred run always, two hundred with `-m slow`.
"""

import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from posduif_cli import main
from support.runner import Posduif
from support.servers import PgServer
from support.tenants import matches

pytestmark = pytest.mark.one_server

KILLS = 50


def forked(argv: list[str]) -> int:
    """Start a command in a copy of this process, which has everything imported already."""
    pid = os.fork()
    if pid:
        return pid
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    os._exit(main.run(argv))


def finish(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


class Kills:
    """One run of random commands on tenants of one prefix, each killed once and typed again."""

    def __init__(self, posduif: Posduif, server: PgServer, folder: Path, seed: int) -> None:
        self.posduif, self.server, self.folder = posduif, server, folder
        self.random = random.Random(seed)
        self.prefix = f"k{seed}x{os.getpid()}"
        self.numbers = iter(range(100_000))
        self.states: dict[str, str] = {}
        self.took: dict[str, float] = {}
        self.killed = 0

    def name(self) -> str:
        return f"{self.prefix}n{next(self.numbers)}"

    def file(self, name: str) -> str:
        return str(self.folder / f"{name}.yaml")

    def kill(self, verb: str, *argv: str) -> None:
        """Kill the command at a random moment of the time that it takes, up to a little beyond it."""
        started = time.monotonic()
        pid = forked([*argv])
        if verb not in self.took:
            assert finish(pid) == 0, argv
            self.took[verb] = time.monotonic() - started
            return
        time.sleep(self.random.uniform(0, self.took[verb] * 1.1))
        os.kill(pid, signal.SIGKILL)
        self.killed += finish(pid) == -signal.SIGKILL

    def check_claims(self, *names: str) -> None:
        """Whatever is called active after the kill is whole."""
        shown = {tenant["tenant"]: tenant for tenant in self.posduif.json("tenant", "list")}
        whole = [name for name in names if name in shown and shown[name]["state"] in ("active", "suspended")]
        if whole:
            self.posduif("tenant", "verify", *whole)
        for name in names:
            # What has left traces is listed, so that someone can finish it.
            if self.server.sql("SELECT 1 FROM pg_database WHERE datname = %s", name):
                assert name in shown

    def create(self) -> None:
        name = self.name()
        argv = ("tenant", "create", name, "--engine-config", self.file(name))
        self.kill("create", *argv)
        self.check_claims(name)
        self.posduif(*argv, "--if-not-exists")
        self.states[name] = "active"
        self.check_password(name)

    def bulk(self) -> None:
        names = [self.name() for _ in range(3)]
        manifest = self.folder / "list.csv"
        manifest.write_text("name,web_user\n" + "".join(f"{name},{'desk' * (i % 2)}\n" for i, name in enumerate(names)))
        argv = ("tenant", "create", "--from", str(manifest), "--engine-config", str(self.folder), "--jobs", "2")
        self.kill("bulk", *argv)
        self.check_claims(*names)
        self.posduif(*argv)
        for name in names:
            self.states[name] = "active"
            self.check_password(name)

    def drop(self) -> None:
        name = self.any()
        self.kill("drop", "tenant", "drop", name, "--confirm", name)
        self.check_claims(name)
        again = self.posduif("tenant", "drop", name, "--confirm", name, code=None)
        assert again.code in (0, 4), again
        del self.states[name]
        assert self.server.sql("SELECT 1 FROM pg_database WHERE datname = %s", name) == []
        assert self.server.sql("SELECT 1 FROM pg_roles WHERE rolname = %s", f"{name}_engine") == []

    def suspend(self) -> None:
        name = self.any()
        verb = "resume" if self.states[name] == "suspended" else "suspend"
        self.kill(verb, "tenant", verb, name)
        self.check_claims(name)
        self.posduif("tenant", verb, name)
        self.states[name] = "suspended" if verb == "suspend" else "active"
        may_log_in = self.server.sql("SELECT rolcanlogin FROM pg_roles WHERE rolname = %s", f"{name}_engine")
        assert may_log_in == [(self.states[name] == "active",)]

    def rotate(self) -> None:
        name = self.any()
        argv = ("tenant", "rotate-password", name, "--engine-config", self.file(name))
        self.kill("rotate", *argv)
        self.check_claims(name)
        self.posduif(*argv)
        self.check_password(name)

    def any(self) -> str:
        if not self.states:
            self.create()
        return self.random.choice(sorted(self.states))

    def check_password(self, name: str) -> None:
        settings = yaml.safe_load(Path(self.file(name)).read_text())
        verifier = self.server.sql("SELECT rolpassword FROM pg_authid WHERE rolname = %s", f"{name}_engine")[0][0]
        assert matches(verifier, settings["postgres"]["password"])


BY_HAND = pytest.mark.slow(by_hand=True)


@pytest.mark.parametrize("seed", [1, 2, *(pytest.param(seed, marks=BY_HAND) for seed in (3, 4, 5, 6))])
def test_killed_at_random(
    posduif: Posduif, server: PgServer, tmp_path: Path, seed: int, bystander: Callable[[], None], name: str
) -> None:
    kills = Kills(posduif, server, tmp_path, seed)
    while kills.killed < KILLS:
        verb = kills.random.choice((kills.create, kills.create, kills.bulk, kills.drop, kills.suspend, kills.rotate))
        verb()
    shown = {t["tenant"]: t["state"] for t in posduif.json("tenant", "list") if t["tenant"].startswith(kills.prefix)}
    assert shown == kills.states
    posduif("tenant", "verify", *kills.states)
    databases = server.sql("SELECT datname FROM pg_database WHERE starts_with(datname, %s)", kills.prefix)
    roles = server.sql("SELECT rolname FROM pg_roles WHERE starts_with(rolname, %s)", kills.prefix)
    assert {row[0] for row in databases} == set(kills.states)
    assert {row[0] for row in roles} == {f"{tenant}_engine" for tenant in kills.states}
    assert server.sql("SELECT 1 FROM pg_replication_slots WHERE starts_with(database, %s)", kills.prefix) == []
    for tenant in kills.states:
        posduif("tenant", "drop", tenant, "--confirm", tenant)
    bystander()
