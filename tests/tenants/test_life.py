"""The life of a tenant: suspend, resume, rotate the password, and `tenant verify` against what is."""

import json
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import psycopg
import pytest
import yaml

from posduif_cli.core.fleet.fleet import Fleet, Found
from posduif_cli.core.fleet.steps import Deed, carry_out
from posduif_cli.core.tenants import engine, suspend
from posduif_cli.db.session import LOCK_CLASS
from posduif_cli.models.servers import Server
from support.faults import FAULTS
from support.folder import Folder
from support.kills import killed
from support.runner import Posduif
from support.servers import PgServer
from support.sources import LATEST
from support.tenants import forget, record


def role(server: PgServer, tenant: str) -> tuple[bool, bool, str, int]:
    """Whether the engine's role may log in and connect, what its comment says, and its limit."""
    return server.sql(
        """SELECT rolcanlogin, has_database_privilege(oid, %s, 'CONNECT'),
                  shobj_description(oid, 'pg_authid')::text, rolconnlimit
           FROM pg_roles WHERE rolname = %s""",
        tenant,
        f"{tenant}_engine",
    )[0]


def test_suspend_shuts_the_engine_out_and_leaves_the_data(
    posduif: Posduif, server: PgServer, tenant: str, engine: psycopg.Connection[Any]
) -> None:
    done = posduif.json("tenant", "suspend", tenant)
    assert (done["state"], done["changed"], done["engine_sessions"]) == ("suspended", True, 0)
    with pytest.raises(psycopg.OperationalError):
        engine.execute("SELECT 1")
    with pytest.raises(psycopg.OperationalError, match="not permitted to log in"):
        server.connect(tenant, user=f"{tenant}_engine")
    assert record(server, tenant)["state"] == "suspended"
    may_login, may_connect, comment, _ = role(server, tenant)
    assert (may_login, may_connect) == (False, False)
    assert '"state":"suspended"' in comment
    assert posduif.json("tenant", "suspend", tenant)["changed"] is False
    # Everything but the engine still works: people's commands, and the session a backup would use.
    assert posduif.json("user", "list", tenant)[0]["username"] == "desk"
    assert server.sql("SELECT count(*) FROM users", database=tenant) == [(1,)]
    assert posduif.json("tenant", "verify", tenant)[0]["level"] == "ok"


@pytest.mark.one_server
def test_resume_migrates_first(own_server: PgServer, run_on: Callable[..., Posduif], folder: Folder) -> None:
    # A server of its own: a run over all tenants would reach those of the tests beside this one.
    server, posduif, tenant = own_server, run_on(own_server), "acme"
    posduif("tenant", "create", tenant)
    posduif("tenant", "suspend", tenant)
    folder.put("9000_more.sql", "CREATE TABLE more ();", "DROP TABLE more;")
    assert posduif.json("migrate", "up", "--all", "--list", *folder.option)
    assert record(server, tenant)["schema"] == LATEST, "a suspended tenant is skipped by the fleet"
    steps = posduif.json("tenant", "resume", tenant, "--dry-run", *folder.option)["steps"]
    assert [step["action"] for step in steps] == ["migrate", "let in", "let in"]
    assert record(server, tenant)["state"] == "suspended"
    done = posduif.json("tenant", "resume", tenant, *folder.option)
    assert (done["state"], done["schema_version"], done["pending"], done["changed"]) == ("active", "9000", 0, True)
    with server.connect(tenant, user=f"{tenant}_engine") as conn:
        conn.execute("SELECT count(*) FROM users")
    assert posduif.json("tenant", "resume", tenant)["changed"] is False


def test_a_migration_that_fails_keeps_the_tenant_suspended(
    posduif: Posduif, server: PgServer, tenant: str, folder: Folder
) -> None:
    posduif("tenant", "suspend", tenant)
    folder.put("9000_bad.sql", "CREATE TABLE users ();", "DROP TABLE users;")
    refused = posduif("tenant", "resume", tenant, *folder.option, code=7)
    assert "9000" in refused.err
    assert role(server, tenant)[:2] == (False, False)
    assert record(server, tenant)["state"] == "suspended"


def test_a_dry_run_of_suspend_changes_nothing(posduif: Posduif, server: PgServer, tenant: str) -> None:
    plan = posduif.json("tenant", "suspend", tenant, "--dry-run")
    assert plan["dry_run"] is True
    assert [step["action"] for step in plan["steps"]] == ["shut out", "shut out", "end sessions"]
    assert role(server, tenant)[:2] == (True, True)
    posduif("tenant", "suspend", tenant)
    assert posduif.json("tenant", "suspend", tenant, "--dry-run")["steps"] == []


def test_the_wrong_state_is_a_conflict(posduif: Posduif, server: PgServer, tenant: str) -> None:
    server.sql(f"DROP DATABASE {tenant}")
    for verb in ("suspend", "resume"):
        refused = posduif("tenant", verb, tenant, "-o", "json", code=5)
        assert refused.error["try"] == [
            f"restore its database {tenant}, then: posduif tenant adopt {tenant}",
            f"or give it up: posduif tenant drop {tenant} --confirm {tenant}",
        ]
        assert posduif("tenant", verb, f"{tenant}x", code=4)


def test_a_suspended_tenant_is_dropped_like_another(posduif: Posduif, server: PgServer, tenant: str) -> None:
    posduif("tenant", "suspend", tenant)
    posduif("tenant", "drop", tenant, "--confirm", tenant)
    assert server.sql("SELECT 1 FROM pg_database WHERE datname = %s", tenant) == []
    assert server.sql("SELECT 1 FROM pg_roles WHERE rolname = %s", f"{tenant}_engine") == []


def test_rotating_ends_sessions_only_when_asked(
    posduif: Posduif, server: PgServer, tenant: str, tmp_path: Path, engine: psycopg.Connection[Any]
) -> None:
    file = tmp_path / "engine.yaml"
    posduif("tenant", "rotate-password", tenant, "--engine-config", str(file))
    assert engine.execute("SELECT 1").fetchone() == (1,)
    first = yaml.safe_load(file.read_text())["postgres"]["password"]
    posduif("tenant", "rotate-password", tenant, "--engine-config", str(file), "--now")
    with pytest.raises(psycopg.OperationalError):
        engine.execute("SELECT 1")
    assert yaml.safe_load(file.read_text())["postgres"]["password"] != first
    assert role(server, tenant)[:2] == (True, True)


def test_a_protected_server_wants_a_word(
    posduif: Posduif, server: PgServer, tenant: str, tmp_path: Path, clean_environ: pytest.MonkeyPatch
) -> None:
    settings = {"servers": {"main": {"dsn": server.dsn, "protected": True}}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(settings))
    clean_environ.delenv("POSDUIF_DSN")
    clean_environ.setenv("POSDUIF_CONFIG", str(tmp_path / "config.yaml"))
    rotate = ("tenant", "rotate-password", tenant, "--engine-config", str(tmp_path / "engine.yaml"))
    for command in (("tenant", "suspend", tenant), rotate):
        assert "protected server main" in posduif(*command, code=9).err
        assert posduif(*command, "--confirm", "other", code=9)
        posduif(*command, "--confirm", tenant)
    assert (tmp_path / "engine.yaml").exists()


def carried_out(fleet: Fleet, verb: Callable[[Fleet, Found], Iterable[Deed]], name: str) -> bool:
    """Do what a verb comes to; return whether that changed the tenant."""
    found = fleet.find(name)
    return carry_out(fleet, found, verb(fleet, found))[1]


LIVES: dict[str, tuple[Callable[[Fleet, str], Any], str]] = {
    "suspend": (lambda fleet, name: carried_out(fleet, suspend.suspend, name), "suspended"),
    "resume": (lambda fleet, name: carried_out(fleet, suspend.resume, name), "active"),
    "rotate": (
        lambda fleet, name: engine.rotate_password(fleet, fleet.find(name), keep=lambda *_: None, now=True),
        "active",
    ),
}


@pytest.mark.parametrize("verb", LIVES)
def test_a_kill_at_any_step_is_finished_by_the_same_command(
    posduif: Posduif, server: PgServer, tenant: str, verb: str
) -> None:
    fleet = Fleet((Server("dsn", server.dsn),), "test")
    work, state = LIVES[verb]
    for when in ("before", "after"):
        nth = 0
        while True:
            nth += 1
            carried_out(fleet, suspend.suspend if verb == "resume" else suspend.resume, tenant)
            struck, call = killed(lambda: work(fleet, tenant), when, nth)
            may_login, may_connect, comment, _ = role(server, tenant)
            noted = record(server, tenant)["state"]
            assert may_login is may_connect is (noted == "active"), (when, nth, call)
            assert f'"state":"{noted}"' in comment
            work(fleet, tenant)
            assert record(server, tenant)["state"] == state
            assert posduif.json("tenant", "verify", tenant)[0]["level"] == "ok"
            if not struck:
                break
        assert nth >= 4, "the command was struck at each of its steps"


def test_two_administrators_at_once(posduif: Posduif, server: PgServer, tenant: str) -> None:
    fleet = Fleet((Server("dsn", server.dsn),), "test")
    for verb in (suspend.suspend, suspend.resume):
        changed: list[bool] = []

        def once() -> None:
            changed.append(carried_out(fleet, verb, tenant))  # noqa: B023

        both = [threading.Thread(target=once) for _ in range(2)]
        for one in both:
            one.start()
        for one in both:
            one.join(60)
        assert sorted(changed) == [False, True]
        assert posduif.json("tenant", "verify", tenant)[0]["level"] == "ok"


BY_HAND = {
    "texts": "REVOKE SELECT (content) ON messages FROM posduif_support",
    "row security": "ALTER TABLE users DISABLE ROW LEVEL SECURITY",
    "row security of the owner, too": "ALTER TABLE messages DISABLE ROW LEVEL SECURITY, NO FORCE ROW LEVEL SECURITY",
    "row security with a policy": "DROP POLICY p ON messages; ALTER TABLE messages DISABLE ROW LEVEL SECURITY",
}


PASSWORDS = {
    "plain": ("password: old", True),
    "quoted": ("password: 'old'", True),
    "empty": ("password:", True),
    "block": ("password: |\n    old", None),
    "anchor": ("password: &p old\n  again: *p", None),
    "twice": ("password: older\n  password: old", True),
}


@pytest.mark.one_server
@pytest.mark.parametrize("form", PASSWORDS)
def test_a_file_by_hand_gets_the_password_or_stays_as_it_is(
    posduif: Posduif, tenant: str, tmp_path: Path, form: str
) -> None:
    line, done = PASSWORDS[form]
    file = tmp_path / "engine.yaml"
    text = f"# by hand\npostgres:\n  {line}\n  db: {tenant}  # ours\nsse: {{port: 99}}\n"
    file.write_text(text)
    before = yaml.safe_load(text)
    rotated = posduif("tenant", "rotate-password", tenant, "--engine-config", str(file), "-o", "json", code=None)
    after = yaml.safe_load(file.read_text())
    if rotated.code:
        assert (file.read_text(), done, rotated.error["exit"]) == (text, None, 3)
        return
    assert len(after["postgres"]["password"]) == 32
    before["postgres"]["password"] = after["postgres"]["password"]
    assert after == before
    assert "# by hand" in file.read_text()


@pytest.mark.parametrize("odd", ["<<: *base", "x: !!bool foo\n  password: old", "x: !!timestamp foo\n  password: old"])
@pytest.mark.one_server
def test_a_file_that_cannot_be_understood_is_left(posduif: Posduif, tenant: str, tmp_path: Path, odd: str) -> None:
    file = tmp_path / "engine.yaml"
    file.write_text(text := f"base: &base {{password: old}}\npostgres:\n  {odd}\n  db: {tenant}\n")
    posduif("tenant", "rotate-password", tenant, "--engine-config", str(file), code=5)
    assert file.read_text() == text


def test_a_role_that_is_tied_elsewhere_is_named_before_anything_is_dropped(
    posduif: Posduif, server: PgServer, tenant: str
) -> None:
    server.sql(f"CREATE DATABASE {tenant}_tie")
    try:
        server.sql(f"CREATE TABLE tie (id int); GRANT SELECT ON tie TO {tenant}_engine", database=f"{tenant}_tie")
        refused = posduif("tenant", "drop", tenant, "--confirm", tenant, "-o", "json", code=5).error
        assert refused["why"].startswith(f"in {tenant}_tie;")
        assert refused["try"] == [f"a superuser types, in {tenant}_tie: DROP OWNED BY {tenant}_engine;"]
        assert posduif.json("tenant", "show", tenant)["state"] == "active"
        server.sql(f"DROP OWNED BY {tenant}_engine", database=f"{tenant}_tie")
        posduif("tenant", "drop", tenant, "--confirm", tenant)
    finally:
        server.sql(f"DROP DATABASE {tenant}_tie")


def test_a_prepared_transaction_that_holds_the_lock_is_named(
    own_server: PgServer, run_on: Callable[..., Posduif]
) -> None:
    own = run_on(own_server)
    own("tenant", "create", "acme")
    with own_server.connect("acme") as conn:
        conn.execute(f"BEGIN; SELECT pg_advisory_xact_lock({LOCK_CLASS}, hashtext('acme'))".encode())
        conn.execute("PREPARE TRANSACTION 'forgotten'")
    error = own("tenant", "suspend", "acme", "-o", "json", code=10).error
    assert "forgotten" in error["why"]
    [end] = [hint.partition(": ")[2] for hint in error["try"] if "ROLLBACK PREPARED" in hint]
    own_server.sql(end, database="acme")
    own("tenant", "suspend", "acme")


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_broken_by_hand_is_found_and_mended(
    posduif: Posduif, server: PgServer, tenant: str, fault: str
) -> None:
    broken, check, words = (text.format(t=tenant) for text in FAULTS[fault])
    server.sql(broken, database=tenant)
    findings = posduif.json("tenant", "verify", tenant, code=1)
    mine = [f for f in findings if f["check"] == check]
    assert any(words in f["message"] for f in mine), findings
    assert all(f["fix"] for f in mine if f["level"] != "ok")
    again = posduif.json("tenant", "verify", tenant, code=1)
    assert again == findings, "only --repair writes"
    mended = posduif.json("tenant", "verify", tenant, "--repair", code=1 if fault in BY_HAND else 0)
    if fault in BY_HAND:
        server.sql(BY_HAND[fault], database=tenant)
        posduif("tenant", "verify", tenant, "--repair")  # a REVOKE on a table takes the rights on its columns along
    else:
        assert any(f["changed"] and f["check"] == check for f in mended), mended
        (left,) = {f["fix"] for f in mended if f["changed"]}
        rotate = f"posduif tenant rotate-password {tenant} --engine-config FILE"
        assert left == (rotate if fault == "no role" else None), "a new role has no password"
    assert [f["level"] for f in posduif.json("tenant", "verify", tenant)] == ["ok"]
    with server.connect(tenant, user=f"{tenant}_engine") as conn:
        conn.execute("SELECT count(*) FROM messages")
    server.sql(f"DROP ROLE IF EXISTS {tenant}_x")


def test_strangers_and_foreign_objects_are_named_and_left(posduif: Posduif, server: PgServer, tenant: str) -> None:
    stranger = f"{tenant}_stranger"
    server.sql(f"CREATE ROLE {stranger} LOGIN")
    try:
        server.sql(f"GRANT CONNECT ON DATABASE {tenant} TO {stranger}")
        server.sql("CREATE TABLE theirs (); CREATE EXTENSION IF NOT EXISTS plpgsql", database=tenant)
        found = posduif.json("tenant", "verify", tenant, "--repair", code=1)
        assert {f["check"] for f in found if f["level"] == "warning"} == {"database.rights", "objects.foreign"}
        assert any("relation theirs of postgres" in f["message"] for f in found)
        assert any(f["fix"] == f"REVOKE ALL ON DATABASE {tenant} FROM {stranger};" for f in found)
        assert server.sql("SELECT to_regclass('theirs')::text", database=tenant) == [("theirs",)]
        server.sql(f"REVOKE ALL ON DATABASE {tenant} FROM {stranger}")
        server.sql("DROP TABLE theirs", database=tenant)
        assert posduif.json("tenant", "verify", tenant)[0]["level"] == "ok"
    finally:
        server.sql(f"DROP OWNED BY {stranger}; DROP ROLE {stranger}")


def test_an_administrator_who_is_no_superuser_repairs_or_says_who_can(
    posduif: Posduif, server: PgServer, tenant: str, run_on: Callable[..., Posduif]
) -> None:
    login = f"{tenant}_ops"
    server.sql(f"CREATE ROLE {login} LOGIN CREATEDB CREATEROLE IN ROLE posduif_admin")
    try:
        ops = run_on(server, user=login)
        server.sql(f"ALTER ROLE {tenant}_engine NOLOGIN; GRANT CONNECT ON DATABASE {tenant} TO PUBLIC")
        ops("tenant", "verify", tenant, "--repair")
        assert ops.json("tenant", "verify", tenant)[0]["level"] == "ok"
        server.sql(f"ALTER ROLE {tenant}_engine BYPASSRLS")
        found = ops.json("tenant", "verify", tenant, "--repair", code=1)
        (stuck,) = [f for f in found if f["level"] == "critical"]
        assert "not repaired" in stuck["message"]
        assert stuck["fix"] == f"a superuser types: ALTER ROLE {tenant}_engine NOBYPASSRLS;"
        server.sql(f"ALTER ROLE {tenant}_engine NOBYPASSRLS")
    finally:
        server.sql(f"DROP OWNED BY {login}; DROP ROLE {login}")


def test_halves_are_reported_with_what_finishes_them(posduif: Posduif, server: PgServer, tenant: str) -> None:
    lost = f"{tenant}_lost"
    posduif("tenant", "create", lost)
    server.sql(f"DROP DATABASE {lost}")
    try:
        found = posduif.json("tenant", "verify", "--all", code=None)  # of other tests, too
        (half,) = [f for f in found if f["subject"] == lost]
        assert (half["check"], half["level"]) == ("tenant.state", "critical")
        assert half["fix"] == f"restore its database {lost}, then: posduif tenant adopt {lost}"
    finally:
        forget(server, lost)


@pytest.fixture
def machine(server: PgServer, tmp_path: Path, clean_environ: pytest.MonkeyPatch) -> Callable[..., None]:
    """Makes this machine one whose configuration gives an engine so many connections, or does not say how many."""

    def become(pool: int | None, **parts: str) -> None:
        engine = {} if pool is None else {"engine": {"max_connections": pool}}
        (tmp_path / "config.yaml").write_text(
            yaml.safe_dump({"servers": {"main": {"dsn": server.dsn_for(**parts), **engine}}})
        )
        clean_environ.delenv("POSDUIF_DSN", raising=False)
        clean_environ.setenv("POSDUIF_CONFIG", str(tmp_path / "config.yaml"))

    return become


def noted_pool(server: PgServer, tenant: str) -> Any:
    return record(server, tenant).get("engine", {}).get("pool")


def test_another_machine_s_configuration_changes_no_engine(
    posduif: Posduif, server: PgServer, name: str, tmp_path: Path, machine: Callable[[int | None], None]
) -> None:
    """The limit was decided on the machine that made the tenant; the record says so to all others."""
    machine(50)
    posduif("tenant", "create", name, "--web-user", "desk")
    assert (noted_pool(server, name), role(server, name)[3]) == (50, 116)
    for other in (None, 5, 90):
        machine(other)
        assert [f["level"] for f in posduif.json("tenant", "verify", name)] == ["ok"]
        posduif("tenant", "verify", name, "--repair")
        posduif("tenant", "suspend", name)
        posduif("tenant", "resume", name)
        file = tmp_path / f"{other}.yaml"
        posduif("tenant", "rotate-password", name, "--engine-config", str(file))
        assert yaml.safe_load(file.read_text())["postgres"]["max_connections"] == 50
        told = yaml.safe_load(posduif("tenant", "engine-config", name).out)
        assert told["postgres"]["max_connections"] == 50
        assert (noted_pool(server, name), role(server, name)[3]) == (50, 116)
    server.sql(f"DROP OWNED BY {name}_engine; DROP ROLE {name}_engine", database=name)
    posduif("tenant", "verify", name, "--repair")
    assert role(server, name)[3] == 116, "a new role gets what was decided for the old one"


def test_an_interrupted_creation_is_finished_with_what_was_begun(
    posduif: Posduif, server: PgServer, name: str, tmp_path: Path, machine: Callable[[int | None], None]
) -> None:
    machine(50)
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "1000_x.sql").write_text("-- migrate:up\nSELECT 1/0;\n")
    config = tmp_path / "config.yaml"
    config.write_text(config.read_text() + f"migrations: {{paths: ['{tmp_path / 'more'}']}}\n")
    posduif("tenant", "create", name, code=7)
    assert record(server, name)["state"] == "provisioning"
    machine(None)
    file = tmp_path / "engine.yaml"
    posduif("tenant", "create", name, "--engine-config", str(file))
    assert yaml.safe_load(file.read_text())["postgres"]["max_connections"] == 50
    assert (noted_pool(server, name), role(server, name)[3]) == (50, 116)


def test_a_record_from_before_takes_the_role_s_limit_for_what_was_decided(
    posduif: Posduif, server: PgServer, tenant: str, machine: Callable[[int | None], None]
) -> None:
    machine(5)
    for limit in (116, 40, -1):
        payload = record(server, tenant)
        payload["engine"] = {"port": 18080}
        server.sql(f"COMMENT ON DATABASE {tenant} IS 'posduif {json.dumps(payload)}'")
        server.sql(f"ALTER ROLE {tenant}_engine CONNECTION LIMIT {limit}")
        found = [f for f in posduif.json("tenant", "verify", tenant, code=1) if f["level"] != "ok"]
        assert (found[0]["check"], found[0]["level"]) == ("record.pool" if limit > 0 else "engine.limit", "warning")
        posduif("tenant", "verify", tenant, "--repair", code=0 if limit > 0 else 1)
        assert role(server, tenant)[3] == limit, "never lowered"
        engine = {116: {"pool": 50}, 40: {"pool": 12}, -1: {"pool": 5}}[limit]
        assert record(server, tenant)["engine"] == {"port": 18080, **engine}, "2 pools and 16 for a web-api"


def test_a_limit_above_what_was_decided_is_told_and_not_lowered(
    posduif: Posduif, server: PgServer, tenant: str
) -> None:
    server.sql(f"ALTER ROLE {tenant}_engine CONNECTION LIMIT 100")
    for option in ((), ("--repair",)):
        (found,) = [
            f for f in posduif.json("tenant", "verify", tenant, *option, code=1) if f["check"] == "engine.limit"
        ]
        assert (found["level"], found["changed"]) == ("warning", False)
        assert "100 connections; two engines with a pool of 5 and their web-api take 26" in found["message"]
        assert role(server, tenant)[3] == 100
    server.sql(f"SET ROLE posduif_admin; {found['fix']}")
    assert [f["level"] for f in posduif.json("tenant", "verify", tenant)] == ["ok"]


def test_adopting_again_on_another_machine_keeps_what_the_engine_was_given(
    posduif: Posduif, server: PgServer, name: str, machine: Callable[..., None]
) -> None:
    machine(50)
    posduif("tenant", "create", name)
    ops, stranger = f"{name}_ops", f"{name}_b"
    server.sql(
        f"CREATE ROLE {name}_x CREATEDB; CREATE ROLE {ops} LOGIN CREATEDB; GRANT posduif_admin, {name}_x TO {ops}"
    )
    try:
        machine(None, user=ops)
        server.sql(f"ALTER DATABASE {name} OWNER TO {name}_x")  # its record is not trusted any more
        posduif("tenant", "adopt", name)
        assert (noted_pool(server, name), role(server, name)[3]) == (50, 116)
        server.sql(f"CREATE DATABASE {stranger} OWNER {name}_x")
        machine(20, user=ops)
        posduif("tenant", "adopt", stranger)
        assert (noted_pool(server, stranger), role(server, stranger)[3]) == (20, 56)
    finally:
        forget(server, stranger)
        server.sql(f"DROP OWNED BY {name}_x, {ops}", database=name)
        server.sql(f"DROP ROLE {name}_x, {ops}")


@pytest.mark.one_server
def test_ctrl_c_while_suspending_is_finished_by_typing_it_again(
    posduif: Posduif, server: PgServer, tenant: str
) -> None:
    with server.connect(tenant) as holder:
        holder.execute("SELECT pg_advisory_lock(%s, hashtext(%s))", (0x706F7364, tenant))
        child = posduif.popen("tenant", "suspend", tenant)
        for _ in range(200):
            query = "SELECT 1 FROM pg_stat_activity WHERE application_name = 'posduif tenant suspend' AND datname = %s"
            if server.sql(query, tenant):
                break
            threading.Event().wait(0.05)
        child.send_signal(2)
        _, err = child.communicate(timeout=30)
        assert (child.returncode, b"interrupted" in err) == (130, True)
    posduif("tenant", "suspend", tenant)
    assert record(server, tenant)["state"] == "suspended"


def test_a_tenant_that_lost_its_tables_can_be_dropped(posduif: Posduif, server: PgServer, tenant: str) -> None:
    server.sql("DROP TABLE messages CASCADE", database=tenant)
    refused = posduif("tenant", "drop", tenant, "-o", "json", code=9).error
    assert tenant in refused["message"]
    posduif("tenant", "drop", tenant, "--confirm", tenant)
    assert server.sql("SELECT 1 FROM pg_database WHERE datname = %s", tenant) == []


@pytest.mark.one_server
def test_a_drop_that_cannot_end_a_session_changes_nothing(
    ops: Posduif, server: PgServer, name: str, request: pytest.FixtureRequest
) -> None:
    ops("tenant", "create", name)
    with server.connect(name, application_name="a dump") as dump:
        error = ops("tenant", "drop", name, "--confirm", name, "-o", "json", code=10).error
        assert "nothing was changed" in error["message"]
        assert f"pid {dump.info.backend_pid} (postgres, a dump, idle)" in error["why"]
        assert record(server, name)["state"] == "active"
        assert server.sql("SELECT rolcanlogin FROM pg_roles WHERE rolname = %s", f"{name}_engine") == [(True,)]
    ops("tenant", "drop", name, "--confirm", name)
