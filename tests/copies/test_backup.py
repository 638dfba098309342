"""`posduif backup`: what is dumped comes back whole, what is damaged is found, and a kill leaves nothing half."""

import json
import os
import random
import shutil
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import yaml

from posduif_cli.core.copies import retention
from posduif_cli.models.copies import Backup
from support.copies import exposed, holdings
from support.kills import kill
from support.runner import Posduif
from support.servers import PgServer, private, programs, scratch
from support.tenants import record


def test_what_is_backed_up_is_proved_and_comes_back(posduif: Posduif, server: PgServer, store: Path, name: str) -> None:
    token = posduif("token", "create", name).out.strip()
    (made,) = posduif.json("backup", "create", name)
    assert (made["tenant"], made["verified"], made["changed"]) == (name, None, True)
    assert made == {**posduif.json("backup", "show", name), "changed": True}
    (proof,) = posduif.json("backup", "verify", name)
    assert (proof["verdict"], proof["reason"], proof["rows"]) == ("proved", None, 2 + 500 + 2 + 4 + 1)
    assert posduif.json("backup", "show", made["backup"])["verified"] == "proved"
    restored = posduif.json("backup", "restore", name, "--as", f"{name}_new")
    assert (restored["state"], restored["pending"], restored["url"]) == ("active", 0, None)
    assert holdings(server, f"{name}_new") == holdings(server, name)
    assert [t["status"] for t in posduif.json("token", "list", f"{name}_new")] == ["expired"]
    assert [t["status"] for t in posduif.json("token", "list", name)] == ["active"]
    assert token
    assert [f["level"] for f in posduif.json("tenant", "verify", f"{name}_new")] == ["ok"]
    assert record(server, f"{name}_new")["restored"] == made["backup"]
    posduif("backup", "restore", name, "--as", f"{name}_new", code=5)
    posduif("backup", "restore", name, code=9)


@pytest.mark.one_server
def test_a_tenant_that_was_dropped_comes_back_under_its_name(
    posduif: Posduif, server: PgServer, store: Path, name: str, tmp_path: Path
) -> None:
    before = holdings(server, name)
    posduif("backup", "create", name)
    posduif("tenant", "drop", name, "--confirm", name)
    file = tmp_path / "engine.yaml"
    posduif("backup", "restore", name, "--url", "https://one.test", "--engine-config", str(file))
    assert holdings(server, name) == before
    told = yaml.safe_load(file.read_text())["postgres"]
    with server.connect(name, user=told["user"], password=told["password"]) as engine:
        assert engine.execute("SELECT count(*) FROM messages").fetchone() == (500,)


def states_of(posduif: Posduif, name: str) -> set[str]:
    return {tenant["state"] for tenant in posduif.json("tenant", "list") if tenant["tenant"] == name}


@pytest.mark.one_server
def test_a_tenant_whose_database_is_lost_comes_back(posduif: Posduif, server: PgServer, store: Path, name: str) -> None:
    before = holdings(server, name)
    posduif("backup", "create", name)
    server.sql(f"DROP DATABASE {name}")
    assert posduif.json("tenant", "show", name)["state"] == "lost"
    posduif("backup", "restore", name)
    assert holdings(server, name) == before
    assert posduif.json("tenant", "show", name)["state"] == "active"


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def change_row(path: Path) -> None:
    noted = json.loads(path.with_name("manifest.json").read_text())
    next(table for table in noted["tables"] if table["name"] == "messages")["sum"] = "1"
    path.with_name("manifest.json").write_text(json.dumps(noted))


def lose_table(path: Path) -> None:
    noted = json.loads(path.with_name("manifest.json").read_text())
    noted["tables"].append({"schema": "public", "name": "lost", "columns": [], "rows": 3, "sum": "1"})
    path.with_name("manifest.json").write_text(json.dumps(noted))


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "a flipped bit": (flip, "SHA-256"),
    "cut": (lambda path: os.truncate(path, path.stat().st_size - 100), "SHA-256"),
    "empty": (lambda path: os.truncate(path, 0), "SHA-256"),
    "more at its end": (lambda path: path.write_bytes(path.read_bytes() + b"x"), "SHA-256"),
    "gone": (lambda path: path.unlink(), "cannot be read"),
    "other rows": (change_row, "table public.messages has 500 rows, and what they hold differs"),
    "a table that is not there": (lose_table, "table public.lost is missing"),
}


@pytest.mark.one_server
@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_found_and_named(posduif: Posduif, server: PgServer, store: Path, name: str, kind: str) -> None:
    (made,) = posduif.json("backup", "create", name)
    damage, words = DAMAGE[kind]
    damage(Path(made["location"]) / made["file"])
    (proof,) = posduif.json("backup", "verify", name, code=1)
    assert proof["verdict"] == "failed"
    assert words in proof["reason"] or "No such file" in proof["reason"]
    assert posduif.json("backup", "show", name)["verified"] == "failed"
    posduif("backup", "restore", name, "--as", f"{name}_new", code=5)
    assert "active" not in states_of(posduif, f"{name}_new"), "never a tenant of what differs"


@pytest.mark.one_server
@pytest.mark.parametrize(
    "point", ["before core.store.write 1", "after core.copies.streams.pack 1", "before core.store.sync 1"]
)
def test_a_killed_backup_is_in_no_list(posduif: Posduif, store: Path, name: str, point: str) -> None:
    posduif("backup", "create", name)
    known = posduif.json("backup", "list")
    kill(point, "backup", "create", name)
    assert posduif.json("backup", "list") == known
    posduif("backup", "create", name)
    assert len(posduif.json("backup", "list")) == len(known) + 1
    assert {proof["verdict"] for proof in posduif.json("backup", "verify", "--all")} == {"proved"}
    part = next(store.glob(".part-*"))
    os.utime(part, (0, 0))
    posduif("backup", "prune")
    assert not list(store.glob(".part-*"))


@pytest.mark.one_server
@pytest.mark.parametrize(
    "point",
    [
        "after db.admin.create_engine_role 1",
        "after db.admin.create_database 1",
        "before core.copies.load:Loading.load 1",
        "after core.copies.load:Loading.load 1",
        "before core.schema.apply.up 1",
        "before db.admin.let_in 1",
        "after db.admin.let_in 1",
    ],
)
def test_a_killed_restore_is_begun_again_and_never_shown_as_whole(
    posduif: Posduif, server: PgServer, store: Path, name: str, point: str
) -> None:
    new = f"{name}_new"
    posduif("backup", "create", name)
    kill(point, "backup", "restore", name, "--as", new)
    states = {tenant["tenant"]: tenant["state"] for tenant in posduif.json("tenant", "list")}
    assert states.get(new) != "active"
    posduif("tenant", "create", new, code=5)
    posduif("backup", "restore", name, "--as", new)
    assert holdings(server, new) == holdings(server, name)
    assert [f["level"] for f in posduif.json("tenant", "verify", new)] == ["ok"]


@pytest.mark.one_server
def test_rows_that_are_written_meanwhile_are_in_neither(
    posduif: Posduif, server: PgServer, store: Path, name: str
) -> None:
    stop = threading.Event()

    def write() -> None:
        with server.connect(name) as conn:
            while not stop.is_set():
                conn.execute("INSERT INTO messages (sender_id, recipient_id, content) SELECT id, id, 'x' FROM users")

    writer = threading.Thread(target=write)
    writer.start()
    try:
        posduif("backup", "create", name)
    finally:
        stop.set()
        writer.join()
    assert [proof["verdict"] for proof in posduif.json("backup", "verify", name)] == ["proved"]


@pytest.mark.one_server
def test_a_fleet_is_backed_up_and_what_cannot_be_is_named(
    posduif: Posduif, server: PgServer, store: Path, name: str
) -> None:
    posduif("tenant", "create", f"{name}_new")
    posduif("tenant", "suspend", f"{name}_new")
    made = posduif.json("backup", "create", name, f"{name}_new")
    assert {backup["tenant"] for backup in made} == {name, f"{name}_new"}
    assert posduif.json("backup", "create", name, "--since", "1h") == []
    posduif("backup", "create", name, "nosuch", code=8)
    posduif("backup", "list", "--check-age", "1h")
    time.sleep(0.5)
    posduif("backup", "list", "--check-age", "300ms", code=1)
    posduif("backup", "create", code=2)
    posduif("backup", "show", "nosuch", code=4)
    posduif("backup", "verify", code=2)


@pytest.mark.one_server
def test_a_folder_of_other_things_and_none_are_refused(
    posduif: Posduif, store: Path, name: str, tmp_path: Path
) -> None:
    posduif("backup", "list", code=3)
    store.mkdir()
    (store / "mine").write_text("x")
    error = posduif("backup", "create", name, "-o", "json", code=3).error
    assert "holds other things than backups" in error["message"]
    config = yaml.safe_load((tmp_path / "config.yaml").read_text())
    del config["backup"]
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    assert "no place for backups" in posduif("backup", "create", name, "-o", "json", code=3).error["message"]


@pytest.mark.one_server
def test_pinned_and_newest_ones_stay_and_more_than_half_wants_a_word(posduif: Posduif, store: Path, name: str) -> None:
    (pinned,) = posduif.json("backup", "create", name, "--pin", "before the move")
    for _ in range(3):
        posduif("backup", "create", name)
    listed = [backup["backup"] for backup in posduif.json("backup", "list")]
    plan = {row["backup"]: row for row in posduif.json("backup", "prune", "--dry-run")}
    assert {id_: row["action"] for id_, row in plan.items()} == {
        listed[0]: "keep", listed[1]: "delete", listed[2]: "delete", listed[3]: "keep"
    }  # fmt: skip
    assert plan[pinned["backup"]]["kept"] == "pinned: before the move"
    assert len(posduif.json("backup", "list")) == 4
    posduif("backup", "prune")
    assert [backup["backup"] for backup in posduif.json("backup", "list")] == [listed[0], listed[3]]
    assert posduif.json("backup", "unpin", listed[0])["changed"] is True
    posduif("backup", "remove", listed[3], code=9)
    posduif("backup", "remove", listed[3], "--confirm", listed[3])
    assert [backup["backup"] for backup in posduif.json("backup", "list")] == [listed[0]]


@pytest.mark.one_server
def test_no_secret_is_in_what_others_can_see(
    server: PgServer, posduif: Posduif, store: Path, name: str, tmp_path: Path
) -> None:
    """The programs' command lines and environments, while they run, and all that is written."""
    server.sql(f"ALTER ROLE {name}_ops PASSWORD 'hunter2hunter2'")
    entry = {"dsn": server.dsn_for(user=f"{name}_ops", password="hunter2hunter2")}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"servers": {"main": entry}, "backup": {"dir": str(store)}}))
    assert b"hunter2" not in exposed(b"pg_dump", b"PGPASSFILE=", "backup", "create", name)
    posduif("backup", "create", name)
    written = b"".join(path.read_bytes() for path in store.rglob("*") if path.is_file())
    assert b"hunter2" not in written
    assert {path.stat().st_mode & 0o077 for path in store.rglob("*")} == {0}


@pytest.mark.parametrize("source", ["embedded", "system"], indirect=False)
def test_a_dump_goes_into_the_same_major_or_a_newer_one(
    source: str, run_on: Callable[..., Posduif], tmp_path: Path, request: pytest.FixtureRequest,
    clean_environ: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    request.param = "system"
    with private(programs(request), max_connections="30") as old, private(max_connections="30") as new:
        for each in (old, new):
            each.sql("CREATE ROLE alice LOGIN CREATEDB CREATEROLE")
        servers = {"old": {"dsn": old.dsn_for(user="alice")}, "new": {"dsn": new.dsn_for(user="alice")}}
        first = "old" if source == "system" else "new"
        second = "new" if first == "old" else "old"
        text = yaml.safe_dump({"servers": servers, "backup": {"dir": str(tmp_path / "store")}})
        (tmp_path / "config.yaml").write_text(text)
        posduif = run_on(old)
        clean_environ.delenv("POSDUIF_DSN", raising=False)
        clean_environ.setenv("POSDUIF_CONFIG", str(tmp_path / "config.yaml"))
        posduif("tenant", "create", "acme", "--server", first, "--web-user", "desk")
        posduif("backup", "create", "acme")
        assert [proof["verdict"] for proof in posduif.json("backup", "verify", "acme")] == ["proved"]
        code = 0 if first == "old" else 5
        done = posduif("backup", "restore", "acme", "--as", "other", "--server", second, "-o", "json", code=code)
        if code:
            assert "the server is older" in done.error["message"]
        else:
            assert [user["username"] for user in posduif.json("user", "list", "other")] == ["desk"]


def backups(*times: datetime, **odd: str | None) -> list[Backup]:
    return [
        Backup(
            f"{number:03}",
            "acme",
            "s",
            at,
            0.1,
            1,
            1,
            5,
            "0004",
            "18",
            "f",
            "c",
            "backup create",
            None,
            None,
            None,
            None,
            False,
            False,
            "1/1/x",
            "",
        )
        for number, at in enumerate(times)
    ]


def test_a_year_of_backups_keeps_what_the_rules_say() -> None:
    begin = datetime(2025, 1, 1, 2, tzinfo=UTC)
    made = backups(*(begin + timedelta(days=day, hours=part * 12) for day in range(400) for part in (0, 1)))
    keep = {"last": 3, "daily": 7, "weekly": 5, "monthly": 12}
    kept: list[Backup] = []
    for backup in made:
        kept = [*kept, backup]
        reasons = retention.judge(kept, keep, backup.created_at)
        kept = [each for each in kept if reasons[each.backup]]
        assert kept[-1] == backup
        assert len(kept) <= sum(keep.values())
    months = {each.created_at.strftime("%Y-%m") for each in kept}
    assert len(months) == 12
    # Sixty days without a backup: nothing more goes.
    reasons = retention.judge(kept, keep, made[-1].created_at + timedelta(days=60))
    assert all(reasons.values())


def test_a_year_with_failures_keeps_what_was_proved() -> None:
    """One in twenty is made but does not verify, and for a month none is proved at all."""
    begin, chance = datetime(2025, 1, 1, 2, tzinfo=UTC), random.Random(7)
    keep = {"last": 3, "daily": 7, "weekly": 5, "monthly": 12}
    kept: list[Backup] = []
    for day in range(400):
        (backup,) = backups(begin + timedelta(days=day))
        verdict = "failed" if chance.random() < 0.05 else None if 200 <= day < 230 else "proved"
        kept.append(replace(backup, backup=f"{day:03}", verified=verdict))
        proved = [each for each in kept if each.verified == "proved"]
        reasons = retention.judge(kept, keep, backup.created_at)
        kept = [each for each in kept if reasons[each.backup]]
        assert not proved or proved[-1] in kept, "the newest that was proved"
        good = [each for each in kept if each.verified != "failed"]
        assert good, "never without one"
        assert len(kept) <= sum(keep.values()) + 1


def test_what_failed_is_not_counted_and_the_future_is_kept() -> None:
    now = datetime(2026, 1, 10, tzinfo=UTC)
    old, newer, newest, ahead = backups(now - timedelta(days=3), now - timedelta(days=2), now, now + timedelta(days=1))
    proved = Backup(**{**vars(old), "verified": "proved"})
    failed = Backup(**{**vars(newest), "verified": "failed"})
    reasons = retention.judge([proved, newer, failed, ahead], {"daily": 1}, now)
    assert reasons == {
        "000": ["newest proved"], "001": ["newest", "daily 1 of 1"], "002": [], "003": ["from the future"]
    }  # fmt: skip


@pytest.mark.one_server
def test_the_scratch_server_of_a_killed_verification_is_removed_by_the_next(
    posduif: Posduif, store: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    posduif("backup", "create", name)
    tempfile.gettempdir()  # of this process it stays what it is
    folder = scratch()
    monkeypatch.setenv("TMPDIR", str(folder))
    try:
        kill("before core.copies.load:Loading.load 1", "backup", "verify", name)
        (left,) = folder.glob("posduif-scratch-*")
        assert (left / "server" / "data" / "postmaster.pid").exists()
        assert posduif.json("backup", "show", name)["verified"] is None
        assert posduif.process("backup", "verify", name).code == 0
        assert not list(folder.glob("posduif-scratch-*"))
    finally:
        shutil.rmtree(folder)
