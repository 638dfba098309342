"""Backups beside other commands: at drop, before migrations, of a lost server, by cron, and what health says."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml

from posduif_cli.core.checks import backups as checks
from posduif_cli.core.checks.facts import TenantFacts
from posduif_cli.models.copies import Backup
from posduif_cli.models.tenants import State, Tenant
from support.copies import holdings, manifest
from support.kills import kill
from support.runner import Posduif
from support.servers import PgServer, private


@pytest.mark.one_server
def test_a_dropped_tenant_has_a_last_backup(posduif: Posduif, server: PgServer, store: Path, name: str) -> None:
    before = holdings(server, name)
    told = posduif("tenant", "drop", name, "--dry-run", "-o", "json").json
    assert "back up" in [step["action"] for step in told["steps"]]
    done = posduif("tenant", "drop", name, "--confirm", name)
    (last,) = posduif.json("backup", "list", name)
    assert last["trigger"] == "tenant drop"
    assert last["pinned"]
    assert f"posduif backup restore {last['backup']}" in done.err
    posduif("backup", "restore", last["backup"])
    assert holdings(server, name) == before
    assert "no last backup" in posduif("tenant", "drop", name, "--confirm", name, "--no-backup").err
    assert len(posduif.json("backup", "list", name)) == 1


@pytest.mark.one_server
def test_without_a_last_backup_nothing_is_dropped(posduif: Posduif, server: PgServer, store: Path, name: str) -> None:
    posduif("backup", "create", name)
    store.rename(store.with_name("away"))
    store.write_text("a file is in its place")
    error = posduif("tenant", "drop", name, "--confirm", name, "-o", "json", code=3).error
    assert "--no-backup" in " ".join(error["try"])
    assert "nothing was changed" in error["why"]
    store.unlink()
    store.with_name("away").rename(store)
    hidden = """CREATE TABLE hidden (); ALTER TABLE hidden ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
                CREATE POLICY p ON hidden USING (false); ALTER TABLE hidden OWNER TO posduif_admin"""
    server.sql(hidden, database=name)
    error = posduif("tenant", "drop", name, "--confirm", name, "-o", "json", code=6).error
    assert "--no-backup" in " ".join(error["try"])
    assert "row-level security" in error["message"] + error["why"]
    assert posduif.json("tenant", "show", name)["state"] == "active"
    assert server.sql("SELECT rolcanlogin FROM pg_roles WHERE rolname = %s", f"{name}_engine") == [(True,)]
    posduif("message", "send", name, "--from", "desk", "--to", "mia", "goes on")


@pytest.mark.parametrize("point", ["after core.copies.dump:Dumping.dump 1", "before core.copies.streams.pack 1"])
@pytest.mark.one_server
def test_a_drop_killed_at_its_last_backup_is_finished(
    posduif: Posduif, server: PgServer, store: Path, name: str, point: str
) -> None:
    kill(point, "tenant", "drop", name, "--confirm", name)
    assert posduif.json("tenant", "show", name)["state"] == "dropping"
    posduif("tenant", "drop", name, "--confirm", name)
    assert {proof["verdict"] for proof in posduif.json("backup", "verify", name)} == {"proved"}
    posduif("tenant", "show", name, code=4)


@pytest.mark.one_server
def test_migrate_up_backs_up_who_gets_something(
    posduif: Posduif, server: PgServer, store: Path, name: str, tmp_path: Path
) -> None:
    posduif("migrate", "up", name, "--backup")
    assert posduif.json("backup", "list") == [], "nothing was pending"
    config = yaml.safe_load((tmp_path / "config.yaml").read_text())
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "1000_more.sql").write_text("-- migrate:up\nDELETE FROM messages;\n")
    config["migrations"] = {"paths": ["more"]}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    before = holdings(server, name)
    posduif("migrate", "up", name, "--backup")
    (made,) = posduif.json("backup", "list")
    assert (made["trigger"], made["pinned"]) == ("migrate up", "before migrate up")
    assert server.sql("SELECT count(*) FROM messages", database=name) == [(0,)]
    del config["migrations"]
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    posduif("backup", "restore", made["backup"], "--confirm", name)
    assert holdings(server, name) == before


@pytest.mark.one_server
def test_two_at_once_make_whole_backups(posduif: Posduif, store: Path, name: str) -> None:
    def create(*more: str) -> "subprocess.Popen[bytes]":
        return subprocess.Popen([sys.executable, "-m", "posduif_cli", "backup", "create", name, "-q", *more],
                                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # fmt: skip

    both = [create(), create()]
    assert [each.wait(60) for each in both] == [0, 0]
    assert len(posduif.json("backup", "list", name)) == 2
    both = [create("--since", "1s"), create("--since", "1h")]
    assert [each.wait(60) for each in both] == [0, 0]
    found = [backup["backup"] for backup in posduif.json("backup", "list", name)]
    assert {proof["verdict"] for proof in posduif.json("backup", "verify", *found)} == {"proved"}


@pytest.mark.one_server
def test_a_lost_server_s_tenants_come_back_on_another(
    run_on: Callable[..., Posduif], tmp_path: Path, clean_environ: pytest.MonkeyPatch
) -> None:
    with private(max_connections="30") as old, private(max_connections="30") as new:
        for each in (old, new):
            each.sql("CREATE ROLE alice LOGIN CREATEDB CREATEROLE")
        servers = {"old": {"dsn": old.dsn_for(user="alice")}, "new": {"dsn": new.dsn_for(user="alice")}}
        file = tmp_path / "config.yaml"
        file.write_text(yaml.safe_dump({"servers": servers, "backup": {"dir": str(tmp_path / "store")}}))
        posduif = run_on(old)
        clean_environ.delenv("POSDUIF_DSN", raising=False)
        clean_environ.setenv("POSDUIF_CONFIG", str(file))
        for name in ("acme", "bolt", "crux", "gone"):
            posduif("tenant", "create", name, "--server", "old", "--web-user", "desk", "--url", f"https://{name}.test")
        posduif("tenant", "suspend", "bolt")
        posduif("backup", "create", "--all")
        posduif("tenant", "drop", "gone", "--confirm", "gone")
        servers["old"] = {"dsn": "host=127.0.0.1 port=1 user=alice"}
        file.write_text(yaml.safe_dump({"servers": servers, "backup": {"dir": str(tmp_path / "store")}}))
        argv = [
            "backup",
            "restore",
            "--all",
            "--latest",
            "--server",
            "new",
            "--engine-config",
            str(tmp_path / "engines"),
        ]
        posduif("backup", "restore", "--all", code=2)
        assert len(posduif.json(*argv, "--dry-run")["steps"]) == 12
        posduif(*argv, code=8)  # the old server may have them
        argv.append("--ignore-unreachable")
        kill("after core.copies.load:Loading.load 2", *argv)
        outcomes = posduif.json(*argv)
        assert {row["tenant"] for row in outcomes} == {"acme", "bolt", "crux"}
        assert {row["status"] for row in outcomes} <= {"ok", "unchanged"}
        listed = {t["tenant"]: t for t in posduif.json("tenant", "list", "--server", "new")}
        assert {name: (t["state"], t["url"]) for name, t in listed.items()} == {
            "acme": ("active", "https://acme.test"),
            "bolt": ("suspended", "https://bolt.test"),
            "crux": ("active", "https://crux.test"),
        }
        for name in ("acme", "crux"):
            told = yaml.safe_load((tmp_path / "engines" / f"{name}.yaml").read_text())["postgres"]
            with new.connect(name, user=told["user"], password=told["password"]) as engine:
                assert engine.execute("SELECT count(*) FROM users").fetchone() == (1,)
        assert {row["status"] for row in posduif.json(*argv)} == {"unchanged"}
        assert [f["level"] for f in posduif.json("tenant", "verify", "--all", "--server", "new")] == ["ok"] * 3


@pytest.mark.one_server
def test_a_drill_has_every_tenant_s_turn(posduif: Posduif, server: PgServer, store: Path, name: str) -> None:
    posduif("tenant", "create", f"{name}_new")
    posduif("backup", "create", name)
    told = posduif.json("backup", "drill", code=None)
    assert (told["proved"], told["failed"], told["left"]) == (1, 0, 0)
    assert f"{name}_new" in told["without"]
    assert told["slowest_tenant"] == name
    assert told["oldest_proof"]
    posduif("backup", "create", f"{name}_new")
    told = posduif.json("backup", "drill", "--budget", "300ms", "--jobs", "1", code=None)
    assert [proof["tenant"] for proof in told["proofs"]][:1] in ([f"{name}_new"], []), "never proved comes first"
    before = {b["tenant"]: b["verified"] for b in posduif.json("backup", "list")}
    posduif("backup", "verify", "--older-than", "1h")
    assert {b["verified"] for b in posduif.json("backup", "list")} == {"proved"}, before
    assert posduif.json("backup", "verify", "--older-than", "1h") == []
    (made,) = posduif.json("backup", "list", name)
    (Path(made["location"]) / made["file"]).write_bytes(b"")
    told = posduif.json("backup", "drill", code=1)
    assert told["failed"] == 1


@pytest.mark.one_server
def test_verify_on_a_named_server(
    posduif: Posduif, server: PgServer, store: Path, name: str, run_on: Callable[..., Posduif], tmp_path: Path
) -> None:
    posduif("backup", "create", name)
    (proof,) = posduif.json("backup", "verify", name, "--on", "main")
    assert proof["verdict"] == "proved"
    databases = [database for (database,) in server.sql("SELECT datname::text FROM pg_database")]
    assert not [database for database in databases if database.startswith("posduif_reference_")]
    config = yaml.safe_load((tmp_path / "config.yaml").read_text())
    config["servers"]["root"] = {"dsn": server.dsn_for(user="postgres")}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    posduif("backup", "verify", name, "--on", "root", code=9)
    posduif("backup", "verify", name, "--on", "nosuch", code=3)


@pytest.mark.one_server
def test_who_may_only_make_backups_makes_them(
    posduif: Posduif, server: PgServer, store: Path, name: str, tmp_path: Path
) -> None:
    server.sql("CREATE SCHEMA more; CREATE TABLE more.things (id serial PRIMARY KEY, v text); "
               "ALTER SCHEMA more OWNER TO posduif_admin; ALTER TABLE more.things OWNER TO posduif_admin; "
               "SELECT lo_unlink(oid) FROM pg_largeobject_metadata", database=name)  # fmt: skip
    posduif("tenant", "verify", name, code=1)
    posduif("tenant", "verify", name, "--repair")
    server.sql(f"CREATE ROLE {name}_saver LOGIN IN ROLE posduif_backup")
    try:
        config = yaml.safe_load((tmp_path / "config.yaml").read_text())
        config["servers"]["main"] = {"dsn": server.dsn_for(user=f"{name}_saver")}
        (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
        (made,) = posduif.json("backup", "create", name)
        assert {"more.things"} <= {f"{t['schema']}.{t['name']}" for t in manifest(made["location"])["tables"]}
        assert [proof["verdict"] for proof in posduif.json("backup", "verify", name)] == ["proved"]
        posduif("message", "send", name, "--from", "desk", "--to", "mia", "x", code=6)
        posduif("backup", "restore", name, "--as", f"{name}_new", code=6)
    finally:
        server.sql(f"DROP ROLE {name}_saver")


NOW = datetime(2026, 3, 1, tzinfo=UTC)


def saved(*ages: float, **odd: Any) -> list[Backup]:
    """Backups of acme, hours old."""
    made = {"verified": None, "verified_at": None, "rows": 100, "size_bytes": 10_000, "plain_bytes": 1, **odd}
    created = NOW - timedelta(days=400)
    return [
        Backup(
            backup=f"{number}",
            tenant="acme",
            server="s",
            created_at=NOW - timedelta(hours=age),
            seconds=0.1,
            schema_version="0004",
            server_version="18",
            file="f",
            checksum="c",
            trigger="backup create",
            restore_seconds=None,
            pinned=None,
            dropped=False,
            encrypted=False,
            incarnation=f"1/1/{created.isoformat()}",
            location="",
            **made,
        )
        for number, age in enumerate(ages)
    ]


def judged(backups: list[Backup] | None, **odd: Any) -> dict[str, str]:
    known: dict[str, Any] = {"created_at": NOW - timedelta(days=400), "state": State.ACTIVE, **odd}
    tenant = Tenant(
        tenant="acme", server="s", schema_version="0004", latest_version="0004", pending=0, ahead=0, url=None,
        error=None, engine_sessions=0, **known,
    )  # fmt: skip
    facts = TenantFacts(tenant, backups=backups, now=NOW)
    found = [f for check in (checks.missing, checks.old, checks.unproven, checks.shrank) for f in check(facts)]
    return {finding.check: finding.level.value for finding in found if finding.level.value != "ok"}


def test_what_health_says_of_backups() -> None:
    proved = {"verified": "proved", "verified_at": NOW - timedelta(days=1)}
    assert judged(None) == {}
    assert judged([]) == {"backup.missing": "warning"}
    assert judged([], created_at=NOW - timedelta(hours=20)) == {}
    assert judged([], state=State.DROPPING) == {}
    assert judged(saved(20, **proved)) == {}
    assert judged(saved(20)) == {}, "it had no time to be proved"
    assert judged(saved(30, **proved)) == {"backup.old": "warning"}
    assert judged(saved(24 * 8, **proved)) == {"backup.old": "critical"}
    assert judged(saved(24 * 15, 2)) == {"backup.unproven": "warning"}
    assert judged(saved(24 * 100, 2)) == {"backup.unproven": "critical"}
    assert judged([*saved(24 * 100, **proved), *saved(2, verified="failed", verified_at=NOW)]) == {
        "backup.unproven": "critical"
    }
    assert judged([*saved(72, 48, **proved), *saved(2, rows=49)]) == {"backup.shrank": "warning"}
    assert judged([*saved(72, 48, **proved), *saved(2, size_bytes=4000)]) == {"backup.shrank": "warning"}
    assert judged([*saved(72, 48, **proved), *saved(2, rows=60)]) == {}
    assert judged(saved(20, **proved), created_at=NOW - timedelta(days=3)) == {"backup.missing": "warning"}


@pytest.mark.one_server
def test_health_reads_the_store(posduif: Posduif, server: PgServer, store: Path, name: str) -> None:
    (made,) = posduif.json("backup", "create", name)
    assert posduif.json("health", name)["status"] == "ok"
    (Path(made["location"]) / made["file"]).write_bytes(b"")
    posduif("backup", "verify", name, code=1)
    report = posduif("health", name, "-o", "json", code=1).json
    assert [f["check"] for f in report["findings"] if f["level"] == "critical"] == ["backup.unproven"]
    noted = Path(made["location"]) / "manifest.json"
    told = json.loads(noted.read_text())
    told["snapshot_at"] = (datetime.now(UTC) - timedelta(days=3)).isoformat()
    noted.write_text(json.dumps(told))
    found = {f["check"]: f["level"] for f in posduif("health", name, "-o", "json", code=1).json["findings"]}
    assert found["backup.old"] == "warning"
    shutil.rmtree(store)
    found = {f["check"]: f["level"] for f in posduif.json("health", name)["findings"]}
    assert found["backup.store"] == "unknown"
