"""Which backup a command takes, and what it leaves alone: what a stranger tried and was surprised by."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path

import pytest
import yaml

from posduif_cli.core.copies import dump
from support.copies import holdings
from support.runner import Posduif
from support.servers import PgServer

pytestmark = pytest.mark.one_server


def damage(server: PgServer, name: str) -> None:
    server.sql("DELETE FROM messages", database=name)


def test_the_same_restore_again_brings_back_the_same(
    posduif: Posduif, server: PgServer, store: Path, name: str
) -> None:
    before = holdings(server, name)
    (made,) = posduif.json("backup", "create", name)
    damage(server, name)
    for _ in range(2):
        posduif("backup", "restore", name, "--confirm", name)
        assert holdings(server, name) == before
    plan = {row["backup"]: row for row in posduif.json("backup", "prune", "--dry-run")}
    assert plan[made["backup"]]["action"] == "keep"
    refused = posduif("backup", "restore", name, "-o", "json", code=9).error["message"]
    assert made["backup"] in refused
    posduif("backup", "discard", name, "--confirm", name)
    assert {row["kept"][:7] for id_, row in plan.items() if id_ != made["backup"]} == {"pinned:"}


def test_a_newest_one_that_failed_is_not_taken(posduif: Posduif, server: PgServer, store: Path, name: str) -> None:
    (good,) = posduif.json("backup", "create", name)
    posduif("backup", "verify", name)
    (bad,) = posduif.json("backup", "create", name)
    (Path(bad["location"]) / bad["file"]).unlink()
    posduif("backup", "verify", bad["backup"], code=1)
    assert posduif.json("backup", "show", name)["backup"] == good["backup"]
    assert posduif.json("backup", "create", name, "--since", "1h") == [], "the good one is new enough"
    told = posduif("backup", "restore", bad["backup"], "--as", f"{name}_new", "-o", "json", code=5).error
    assert f"posduif backup restore {good['backup']} --as NEW" in " ".join(told["try"])
    shutil.rmtree(good["location"])
    assert len(posduif.json("backup", "create", name, "--since", "1h")) == 1, "a bad one is none"


def test_ctrl_c_in_a_verification_judges_nothing(posduif: Posduif, server: PgServer, store: Path, name: str) -> None:
    (made,) = posduif.json("backup", "create", name)
    posduif("backup", "verify", name)
    proofs = Path(made["location"]) / "proof.jsonl"
    known = proofs.read_text()
    for delay in (0.5, 0.8, 1.1):
        argv = [sys.executable, "-m", "posduif_cli", "backup", "verify", name, "-q"]
        process = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env={**os.environ})
        time.sleep(delay)
        process.send_signal(signal.SIGINT)
        assert process.wait(30) in (0, 130)
    added = [json.loads(line)["verdict"] for line in proofs.read_text().removeprefix(known).splitlines()]
    assert set(added) <= {"proved"}
    assert posduif.json("backup", "show", name)["verified"] == "proved"


def test_a_backup_from_before_a_migration_is_not_migrated(
    posduif: Posduif, server: PgServer, store: Path, name: str, tmp_path: Path
) -> None:
    (old,) = posduif.json("backup", "create", name)
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "1000_more.sql").write_text("-- migrate:up\nDELETE FROM messages;\n")
    config = yaml.safe_load((tmp_path / "config.yaml").read_text()) | {"migrations": {"paths": ["more"]}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    posduif("migrate", "up", name, "--backup")
    shown = posduif.json("backup", "restore", name, "--confirm", name)
    assert (shown["schema_version"], shown["pending"]) == (old["schema_version"], 1)
    assert server.sql("SELECT count(*) FROM messages", database=name) == [(500,)]
    told = posduif("backup", "restore", old["backup"], "--as", f"{name}_new")
    assert "then migrated from" in told.err
    assert server.sql("SELECT count(*) FROM messages", database=f"{name}_new") == [(0,)]
    posduif("tenant", "drop", f"{name}_new", "--confirm", f"{name}_new", "--no-backup")
    shown = posduif.json("backup", "restore", old["backup"], "--as", f"{name}_new", "--no-migrate")
    assert (shown["state"], shown["pending"]) == ("active", 1)
    posduif("backup", "discard", name, "--confirm", name)


def test_a_tenant_without_a_backup_is_too_old(posduif: Posduif, store: Path, name: str) -> None:
    posduif("backup", "create", name)
    posduif("backup", "list", name, "--check-age", "1h")
    posduif("tenant", "create", f"{name}_new")
    time.sleep(1.5)
    told = posduif("backup", "list", "--check-age", "1s", code=1)
    assert f"{name}_new" in told.err
    posduif("backup", "list", f"{name}_new", "--check-age", "1h", code=1)


def test_a_lost_marker_is_told_with_what_puts_it_back(posduif: Posduif, store: Path, name: str) -> None:
    (made,) = posduif.json("backup", "create", name)
    (store / "posduif-backups.json").unlink()
    for argv in (("backup", "list"), ("backup", "create", name)):
        error = posduif(*argv, "-o", "json", code=3).error
        assert "lost its posduif-backups.json" in error["message"]
    (store / "posduif-backups.json").write_text('{"format": 1}')
    assert [b["backup"] for b in posduif.json("backup", "list")] == [made["backup"]]


def test_a_disk_that_is_not_mounted_is_not_written_to(posduif: Posduif, store: Path, name: str, tmp_path: Path) -> None:
    config = yaml.safe_load((tmp_path / "config.yaml").read_text())
    config["backup"]["dir"] = str(tmp_path / "not" / "mounted")
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    for argv in (("backup", "create", name), ("backup", "list"), ("tenant", "drop", name, "--confirm", name)):
        posduif(*argv, code=3)
    assert not (tmp_path / "not").exists()
    assert "backup.place" in {f["check"] for f in posduif("doctor", "-o", "json", code=1).json if f["level"] != "ok"}


def test_no_hint_destroys_another_tenant(posduif: Posduif, store: Path, name: str) -> None:
    posduif("tenant", "create", f"{name}_new")
    (made,) = posduif.json("backup", "create", name)
    for wanted in (name, f"{name}_new"):
        error = posduif("backup", "restore", made["backup"], "--as", wanted, "-o", "json", code=5).error
        assert "drop" not in " ".join(error["try"])


def test_a_copy_s_tokens_are_its_own(posduif: Posduif, server: PgServer, store: Path, name: str) -> None:
    posduif("token", "create", name)
    posduif("backup", "create", name)
    posduif("backup", "restore", name, "--as", f"{name}_new")
    assert [token["tenant"] for token in posduif.json("token", "list", f"{name}_new")] == [f"{name}_new"]
    posduif("backup", "discard", "nosuch", "--confirm", "nosuch", code=4)
    posduif("backup", "create", name, "--pin", " ", code=2)


def test_a_tenant_that_is_locked_is_waited_for_and_named(
    posduif: Posduif, server: PgServer, store: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dump, "LOCK_WAIT", timedelta(seconds=1))
    posduif("tenant", "create", f"{name}_new")
    with server.connect(name) as conn:
        conn.execute("BEGIN; LOCK TABLE messages")
        posduif("backup", "create", name, code=10)
        done = posduif("backup", "create", name, f"{name}_new", "-o", "json", code=8)
        assert [backup["tenant"] for backup in done.json] == [f"{name}_new"]
        posduif("tenant", "drop", name, "--confirm", name, code=10)
    assert posduif.json("tenant", "show", name)["state"] == "active"
    assert len(posduif.json("backup", "create", name)) == 1
    assert not list(store.glob(".part-*"))


def test_a_superuser_s_session_makes_backups_and_restores_none(
    posduif: Posduif, server: PgServer, store: Path, name: str, tmp_path: Path
) -> None:
    config = yaml.safe_load((tmp_path / "config.yaml").read_text())
    config["servers"]["main"] = {"dsn": server.dsn_for(user="postgres")}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    posduif("backup", "create", name)
    before = holdings(server, name)
    for argv in (("--as", f"{name}_new"), ("--confirm", name)):
        error = posduif("backup", "restore", name, *argv, "-o", "json", code=9).error
        assert "server init --login" in " ".join(error["try"])
    assert holdings(server, name) == before
    assert posduif.json("tenant", "show", name)["state"] == "active"
    assert [proof["verdict"] for proof in posduif.json("backup", "verify", name)] == ["proved"], "on a scratch server"
