"""Kills of process groups at random moments, seeded: the same command goes on, and nothing was lost or doubled."""

import os
import random
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import yaml

from posduif_cli import main
from support.runner import Posduif
from support.servers import PgServer, scratch
from support.tenants import forget
from support.waiting import until

ALWAYS, BY_HAND = 6, 100  # kills on each of two servers


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where scratch servers are made, and nothing else is."""
    path = scratch()
    monkeypatch.setattr(tempfile, "tempdir", str(path))
    yield path
    shutil.rmtree(path, ignore_errors=True)


class Kills:
    """One tenant that is backed up, restored, replaced and dropped by commands that are killed and typed again."""

    def __init__(self, posduif: Posduif, server: PgServer, store: Path, name: str, seed: int) -> None:
        self.posduif, self.server, self.store, self.name = posduif, server, store, name
        self.random = random.Random(seed)
        self.took: dict[str, float] = {}
        self.killed = 0
        self.backed_up: dict[str, int] = {}  # by id: how many messages it has
        self.before: list[int] = []  # what an undo brings back

    def run(self, *argv: str) -> "int | None":
        """Kill a command at a random moment of the time that it takes; return its code where it was faster."""
        started, verb = time.monotonic(), " ".join(argv[:2]) + (" over" if "--confirm" in argv else "")
        pid = os.fork()
        if not pid:
            os.setpgid(0, 0)
            null = os.open(os.devnull, os.O_RDWR)
            for descriptor in (0, 1, 2):
                os.dup2(null, descriptor)
            os._exit(main.run([*argv]))
        if verb not in self.took:
            code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            self.took[verb] = time.monotonic() - started
            return code
        with suppress(OSError):  # it was faster
            os.setpgid(pid, pid)
        time.sleep(self.random.uniform(0, self.took[verb] * 1.05))
        os.killpg(pid, signal.SIGKILL)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        self.killed += code == -signal.SIGKILL
        return None if code == -signal.SIGKILL else code

    def messages(self, name: str | None = None) -> int:
        return int(self.server.sql("SELECT count(*) FROM messages", database=name or self.name)[0][0])

    def write(self) -> None:
        self.server.sql("INSERT INTO messages (sender_id, recipient_id, content) SELECT id, id, 'x' FROM users LIMIT 1",
                        database=self.name)  # fmt: skip

    def known(self) -> dict[str, int]:
        """The listed backups of the tenant; each new one is of the tenant as it is."""
        listed = [backup["backup"] for backup in self.posduif.json("backup", "list", self.name)]
        for id_ in listed:
            self.backed_up.setdefault(id_, self.messages())
        self.backed_up = {id_: self.backed_up[id_] for id_ in listed}
        return self.backed_up

    def states(self) -> list[str]:
        return [t["state"] for t in self.posduif.json("tenant", "list") if t["tenant"] == self.name]

    def create(self) -> None:
        self.write()
        if self.run("backup", "create", self.name) is None:
            self.known()
            assert self.posduif("backup", "create", self.name).code == 0
        self.known()

    def verify(self) -> None:
        if self.run("backup", "verify", self.name) is None:
            assert self.posduif.json("backup", "verify", self.name)[0]["verdict"] == "proved"

    def prune(self) -> None:
        before = set(self.known())
        argv = ("backup", "prune", "--confirm", self.store.name)
        if self.run(*argv) is None:
            self.posduif(*argv)
        assert set(self.known()) <= before
        assert self.backed_up, "one stays"

    def restore(self) -> None:
        new, id_ = f"{self.name}_new", self.random.choice(sorted(self.known()))
        if self.run("backup", "restore", id_, "--as", new) is None:
            shown = [t["state"] for t in self.posduif.json("tenant", "list") if t["tenant"] == new]
            assert len(shown) <= 1
            done = self.posduif("backup", "restore", id_, "--as", new, code=None)
            assert done.code == (5 if shown == ["active"] else 0), done
        assert self.messages(new) == self.backed_up[id_]
        self.posduif("tenant", "drop", new, "--confirm", new, "--no-backup")

    def replace(self) -> None:
        id_, had = self.random.choice(sorted(self.known())), self.messages()
        argv = ("backup", "restore", id_, "--confirm", self.name)
        if self.run(*argv) is None:
            (state,) = self.states()
            swapped = state == "active" and self.messages() == self.backed_up[id_] != had
            if state == "restoring" and self.random.random() < 0.5:
                self.posduif("backup", "restore", "--undo", "--confirm", self.name)
                assert (self.states(), self.messages()) == (["active"], had)
                self.note(had)
                return
            if not swapped:
                self.posduif(*argv)
        assert (self.states(), self.messages()) == (["active"], self.backed_up[id_])
        self.note(had)
        self.before.append(had)

    def note(self, had: int) -> None:
        """The last backup of the one that was replaced, if one was made, has what that had."""
        for backup in self.posduif.json("backup", "list", self.name):
            self.backed_up.setdefault(backup["backup"], had)

    def undo(self) -> None:
        if not self.before:
            return
        had, wanted = self.messages(), self.before.pop()
        argv = ("backup", "restore", "--undo", "--confirm", self.name)
        if (self.run(*argv) is None and self.states() == ["restoring"]) or had == self.messages() != wanted:
            self.posduif(*argv)
        assert (self.states(), self.messages()) == (["active"], wanted)
        self.before = []

    def drop(self) -> None:
        had = self.messages()
        argv = ("tenant", "drop", self.name, "--confirm", self.name)
        if self.run(*argv) is None and self.states():
            self.posduif(*argv)
        assert self.states() == []
        self.note(had)
        newest = self.posduif.json("backup", "list", self.name)[-1]
        assert newest["trigger"] == "tenant drop"
        self.posduif("backup", "restore", newest["backup"])
        assert (self.states(), self.messages()) == (["active"], had)
        self.before = []

    def check_remains(self, folder: Path) -> None:
        """What is left is what was set aside on purpose, and no session and no server works for the dead."""
        ours = "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'posduif%%' AND datname <> 'postgres'"
        until(lambda: self.server.sql(ours) == [(0,)], "no session is left", 20)
        left = self.server.sql("SELECT datname::text, shobj_description(oid, 'pg_database') FROM pg_database")
        copies = [database for database, noted in left if f'"of":"{self.name}"' in (noted or "")]
        assert [database for database in copies if not database.startswith("posduif_aside_")] == []
        self.posduif("backup", "discard", self.name, "--confirm", self.name)
        self.posduif("tenant", "verify", self.name)
        ids = list(self.known())
        proofs = self.posduif.json("backup", "verify", *ids)
        assert {proof["verdict"] for proof in proofs} == {"proved"}, "nothing is listed that does not restore"
        for proof in proofs:
            assert proof["rows"] >= self.backed_up[proof["backup"]]
        assert list(folder.iterdir()) == [], "no scratch server is left"
        for part in self.store.glob(".part-*"):
            os.utime(part, (0, 0))
        self.posduif("backup", "prune", "--confirm", self.store.name)
        assert list(self.store.glob(".part-*")) == []


def attack(posduif: Posduif, server: PgServer, store: Path, name: str, folder: Path, seed: int, number: int) -> None:
    config = Path(os.environ["POSDUIF_CONFIG"])
    told = yaml.safe_load(config.read_text())
    told["backup"]["keep"] = {"last": 4, "daily": 0, "weekly": 0, "monthly": 0}
    config.write_text(yaml.safe_dump(told))
    kills = Kills(posduif, server, store, name, seed)
    deeds: tuple[Callable[[], None], ...] = (
        kills.create, kills.verify, kills.prune, kills.restore, kills.replace, kills.undo, kills.drop,
    )  # fmt: skip
    try:
        for deed in (kills.create, *deeds, kills.create):
            deed()
        while kills.killed < number:
            kills.random.choice(deeds)()
        kills.check_remains(folder)
    finally:
        forget(server, f"{name}_new")


@pytest.mark.parametrize("seed", [1])
def test_some_kills(posduif: Posduif, server: PgServer, store: Path, name: str, folder: Path, seed: int) -> None:
    attack(posduif, server, store, name, folder, seed, ALWAYS)


@pytest.mark.slow(by_hand=True)
@pytest.mark.parametrize("seed", [11, 12])
def test_two_hundred_kills(posduif: Posduif, server: PgServer, store: Path, name: str, folder: Path, seed: int) -> None:
    attack(posduif, server, store, name, folder, seed, BY_HAND // 2)
