"""Several administrators, none a superuser, on one server; and what they meet that is not theirs."""

import re
import shutil
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml

from posduif_cli.db import embedded
from posduif_cli.db.session import LOCK_CLASS, Session
from support.kills import Case, kill
from support.runner import As, Result
from support.servers import PgServer, start
from support.tenants import matches

GRANT = "GRANT posduif_admin TO bob"


def refused(result: Result) -> str:
    """The command that a refusal tells someone else to type."""
    return str(re.findall(r"types(?:, in \w+)?: (.+;)", " ".join(result.error["try"]))[0])


def test_two_administrators_share_every_tenant(fresh: PgServer, as_: As, tmp_path: Path) -> None:
    half, whole, file = ("tenant", "create", "half"), ("tenant", "create", "whole"), tmp_path / "half.yaml"
    assert "CREATEDB" in refused(as_("carol")(*half, "-o", "json", code=6))
    assert fresh.sql("SELECT 1 FROM pg_roles WHERE rolname ~ '^posduif|half'") == []

    as_("alice")(*whole)
    kill("before core.schema.grants.text 2", *half)
    assert fresh.sql("SELECT DISTINCT pg_get_userbyid(datdba)::text FROM pg_database WHERE datname ~ 'half|whole'") == [
        ("posduif_admin",)
    ]

    for argv in (
        half,
        ("tenant", "create", "third"),
        ("tenant", "set", "whole", "--url", "https://x.example.com"),
        ("tenant", "rotate-password", "whole", "--engine-config", str(tmp_path / "no.yaml")),
        ("tenant", "drop", "whole", "--confirm", "whole"),
        ("migrate", "up", "whole"),
    ):
        fix = refused(as_("bob")(*argv, "-o", "json", code=6))
        assert fix.startswith(GRANT), argv
    assert not (tmp_path / "no.yaml").exists()
    assert fresh.sql("SELECT 1 FROM pg_database WHERE datname = 'third'") == []
    assert {row["tenant"]: row["state"] for row in as_("bob").json("tenant", "list")} == {
        "half": "provisioning",
        "whole": "active",
    }

    # The hint, typed by the other administrator, is all that it takes.
    fresh.sql(fix, user="alice")
    bob = as_("bob")
    assert bob.json(*half, "--engine-config", str(file))["state"] == "active"
    more = tmp_path / "more"
    more.mkdir()
    (more / "1000_more.sql").write_text("-- migrate:up\nALTER TABLE users ADD COLUMN more int;\n")
    (tmp_path / "config.yaml").write_text(f"migrations: {{paths: [{more}]}}\n")
    bob("migrate", "up", "half", "whole", "--config", str(tmp_path / "config.yaml"))
    bob("tenant", "set", "whole", "--url", "https://x.example.com")
    bob("tenant", "rotate-password", "half", "--engine-config", str(file))
    verifier = fresh.sql("SELECT rolpassword FROM pg_authid WHERE rolname = 'half_engine'")[0][0]
    assert matches(verifier, yaml.safe_load(file.read_text())["postgres"]["password"])
    bob("user", "create", "whole", "desk", "--type", "web")
    assert bob.json("tenant", "create", "third")["state"] == "active"

    as_("alice")("tenant", "rotate-password", "third", "--engine-config", str(tmp_path / "third.yaml"))
    kill("after core.tenants.drop._announce_drop 1", "tenant", "drop", "third", "--confirm", "third")
    bob = as_("bob")
    with fresh.connect("whole", user="whole_engine"):
        for name in ("third", "half", "whole"):
            bob("tenant", "drop", name, "--confirm", name)
    assert fresh.sql("SELECT rolname::text FROM pg_roles WHERE rolname ~ '_engine$' ORDER BY 1") == [
        ("posduif_engine",)
    ]


def test_a_session_that_may_not_be_ended_is_named(fresh: PgServer, as_: As) -> None:
    alice = as_("alice")
    alice("tenant", "create", "acme")
    drop = ("tenant", "drop", "acme", "--confirm", "acme")
    with fresh.connect("acme", application_name="psql of the DBA") as dba:
        error = alice(*drop, "-o", "json", code=10).error
        assert str(dba.info.backend_pid) in error["why"]
        assert "psql of the DBA" in error["why"]
    alice(*drop)
    alice("tenant", "show", "acme", code=4)


def test_foreign_databases_and_roles_are_left_alone(fresh: PgServer, as_: As) -> None:
    fresh.sql("CREATE DATABASE taken OWNER bob")
    fresh.sql("CREATE ROLE named_engine LOGIN PASSWORD 'theirs'; COMMENT ON ROLE named_engine IS 'the other engine'")
    seen = """SELECT d.*::text, r.*::text, shobj_description(r.oid, 'pg_authid')
              FROM pg_database d, pg_authid r WHERE datname = 'taken' AND rolname = 'named_engine'"""
    before = fresh.sql(seen)
    alice = as_("alice")
    for name in ("taken", "named"):
        for extra in ((), ("--if-not-exists",), ("--dry-run",)):
            assert alice("tenant", "create", name, *extra, "-o", "json", code=5).error["code"] == "not_ours"
        alice("tenant", "drop", name, "--confirm", name, code=4)
        alice("tenant", "show", name, code=4)
    assert alice.json("tenant", "list") == []
    assert fresh.sql(seen) == before
    assert fresh.sql("SELECT datname::text FROM pg_database WHERE datname ~ 'taken|named'") == [("taken",)]
    assert fresh.sql("SELECT rolname::text FROM pg_roles WHERE rolname ~ 'taken|named'") == [("named_engine",)]


def test_creates_at_once_on_a_new_server(own_server: PgServer, run_on: Any) -> None:
    """The roles, too, are made once; of the same name exactly one is created."""
    posduif = run_on(own_server)
    wanted = ["same"] * 3 + ["one", "two"]
    running = [posduif.popen("tenant", "create", name, "-o", "json") for name in wanted]
    said = [process.communicate(timeout=60) for process in running]
    codes = [process.returncode for process in running]
    assert sorted(codes[:3]) == [0, 5, 5], said
    assert codes[3:] == [0, 0], said
    assert [b"tenant_exists" in err for _, err in said[:3]].count(True) == 2
    assert {row["tenant"]: row["state"] for row in posduif.json("tenant", "list")} == dict.fromkeys(wanted, "active")
    running = [posduif.popen("tenant", "create", "more", "--if-not-exists", "-o", "json") for _ in range(3)]
    said = [process.communicate(timeout=60) for process in running]
    assert [process.returncode for process in running] == [0, 0, 0], said
    assert [b'"changed": true' in out for out, _ in said].count(True) == 1


def test_a_held_lock_names_its_holder(
    fresh: PgServer, as_: As, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    alice = as_("alice")
    alice("tenant", "create", "acme")
    patience: Any = Session.lock
    monkeypatch.setitem(patience.__wrapped__.__kwdefaults__, "wait", timedelta(0))
    lock = "SELECT pg_advisory_lock(%s, hashtext('acme'))"
    with fresh.connect("postgres", application_name="posduif tenant move") as first:
        first.execute(lock, (LOCK_CLASS,))
        for argv in (("tenant", "create", "acme"), ("tenant", "drop", "acme", "--confirm", "acme")):
            why = alice(*argv, "-o", "json", code=10).error["why"]
            assert f"posduif tenant move of postgres (pid {first.info.backend_pid}" in why
            assert "None" not in why, why
    with fresh.connect("acme", application_name="posduif migrate up") as second:
        second.execute(lock, (LOCK_CLASS,))
        for argv in (
            ("tenant", "drop", "acme", "--confirm", "acme"),
            ("tenant", "set", "acme", "--url", "https://x.example.com"),
            ("tenant", "rotate-password", "acme", "--engine-config", str(tmp_path / "acme.yaml")),
            ("migrate", "up", "acme"),
        ):
            why = alice(*argv, "-o", "json", code=10).error["why"]
            assert f"posduif migrate up of postgres (pid {second.info.backend_pid}" in why
    assert not (tmp_path / "acme.yaml").exists()
    assert alice.json("tenant", "show", "acme")["state"] == "active"
    assert alice.json("tenant", "set", "acme", "--url", "https://x.example.com")["changed"] is True


def test_an_open_schema_public_is_refused_until_the_hint_is_followed(fresh: PgServer, as_: As, tmp_path: Path) -> None:
    """As on a cluster that was upgraded from before PostgreSQL 15: public is another's, and open to all."""
    alice = as_("alice")
    case = Case(alice, fresh, "acme", tmp_path / "engine.yaml")
    kill("before core.schema.apply.up 1", *case.create)
    opened = "ALTER SCHEMA public OWNER TO postgres; GRANT ALL ON SCHEMA public TO PUBLIC"
    fresh.sql(opened, database="acme")
    refusal = alice(*case.create, "-o", "json", code=9)
    assert refusal.error["code"] == "unsafe_server"
    assert case.state() == "provisioning"
    assert fresh.sql("SELECT to_regclass('users'), to_regclass('schema_migrations')", database="acme") == [(None, None)]
    fresh.sql(refused(refusal), database="acme")
    alice(*case.create)
    case.whole()


def test_a_standby_takes_no_changes(own_server: PgServer, run_on: Any, tmp_path: Path) -> None:
    posduif = run_on(own_server)
    file = tmp_path / "engine.yaml"
    posduif("tenant", "create", "acme", "--web-user", "desk", "--url", "https://acme.example.com")
    kill("after db.admin.create_database 1", "tenant", "create", "half")
    assert own_server.data_dir is not None
    with ExitStack() as stack:
        embedded.stop(own_server.data_dir)
        signal = own_server.data_dir / "data" / "standby.signal"
        signal.touch()
        owner = signal.parent.stat()
        shutil.chown(signal, owner.st_uid, owner.st_gid)
        stack.callback(signal.unlink)
        start(own_server.data_dir)
        assert own_server.sql("SELECT pg_is_in_recovery()") == [(True,)]
        for argv in (
            ("tenant", "create", "other"),
            ("tenant", "create", "half"),
            ("tenant", "drop", "acme", "--confirm", "acme"),
            ("tenant", "set", "acme", "--url", "https://x.example.com"),
            ("tenant", "rotate-password", "acme", "--engine-config", str(file)),
            ("migrate", "up", "acme"),
            ("token", "create", "acme"),
            ("user", "create", "acme", "phone", "--type", "web"),
        ):
            error = posduif(*argv, "-o", "json", code=6).error
            assert error["code"] == "standby_server", (argv, error)
        assert not file.exists()
        assert {row["tenant"] for row in posduif.json("tenant", "list")} == {"acme", "half"}
        assert [user["username"] for user in posduif.json("user", "list", "acme")] == ["desk"]
        posduif("migrate", "list", "acme")
