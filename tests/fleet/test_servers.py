"""Several servers: whose name is whose, what is left when one is away; `server list` and `server init`."""

import shutil
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from posduif_cli.db import connect, embedded, queries
from posduif_cli.models.servers import Server
from support.findings import levels
from support.runner import Posduif
from support.servers import PgServer, scratch, start

pytestmark = pytest.mark.one_server


@dataclass
class Three:
    """Three servers of one configuration, and a way to stop and start each."""

    folder: Path
    servers: dict[str, PgServer]
    config: Path

    def stop(self, name: str) -> None:
        embedded.stop(self.folder / name)

    def start(self, name: str) -> None:
        start(self.folder / name)

    def configure(self, **settings: str) -> str:
        lines = ["servers:"]
        for name, server in self.servers.items():
            lines += [f"  {name}:", f'    dsn: "{server.dsn} connect_timeout=2"']
        self.config.write_text("\n".join([*lines, *(f"{key}: {value}" for key, value in settings.items())]) + "\n")
        return str(self.config)

    def forget(self) -> None:
        """Leave no tenant of a test behind."""
        for name, server in self.servers.items():
            self.start(name)
            for (database,) in server.sql("SELECT datname FROM pg_database WHERE datname !~ '^(postgres|template)'"):
                server.sql(f"DROP DATABASE {database} WITH (FORCE)")
            for (role,) in server.sql("SELECT rolname FROM pg_roles WHERE rolname LIKE '%%\\_engine'"):
                if role != "posduif_engine":
                    server.sql(f"DROP ROLE {role}")


@pytest.fixture(scope="module")
def running() -> Iterator[Three]:
    folder = scratch()
    names = ("eu1", "eu2", "us1")
    try:
        servers = {name: start(folder / name) for name in names}
        yield Three(folder, servers, folder / "config.yaml")
    finally:
        for name in names:
            embedded.stop(folder / name)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def three(running: Three, run_on: Callable[..., Posduif], clean_environ: pytest.MonkeyPatch) -> Iterator[Three]:
    clean_environ.setenv("POSDUIF_CONFIG", running.configure())
    yield running
    running.forget()


@pytest.fixture
def posduif(three: Three, capfd: pytest.CaptureFixture[str]) -> Posduif:
    return Posduif(capfd, {})


def test_without_a_default_the_choice_is_open(posduif: Posduif) -> None:
    result = posduif("tenant", "create", "acme", "-o", "json", code=3)
    assert result.error["code"] == "no_server"
    assert "eu1, eu2, us1" in result.error["why"]


def test_a_name_exists_once_in_the_fleet(posduif: Posduif, three: Three) -> None:
    posduif("tenant", "create", "acme", "--server", "eu1")
    result = posduif("tenant", "create", "acme", "--server", "eu2", "-o", "json", code=5)
    assert (result.error["code"], "eu1" in result.error["message"]) == ("tenant_exists", True)
    posduif("tenant", "create", "acme", "--server", "eu2", "--dry-run", code=5)
    # Nothing of the try is left, and the tenant is found where it is, without --server.
    assert three.servers["eu2"].sql("SELECT 1 FROM pg_roles WHERE rolname = 'acme_engine'") == []
    assert posduif.json("tenant", "create", "acme", "--if-not-exists")["server"] == "eu1"
    assert posduif.json("tenant", "show", "acme")["server"] == "eu1"
    posduif("tenant", "create", "acme", "--server", "eu2", "--if-not-exists", code=5)


def test_adopting_takes_no_name_that_another_server_has(posduif: Posduif, three: Three) -> None:
    posduif("tenant", "create", "acme", "--server", "eu1")
    posduif("server", "init", "--server", "eu2")
    eu2 = three.servers["eu2"]
    eu2.sql("CREATE ROLE adopter LOGIN CREATEDB; GRANT posduif_admin TO adopter")
    three.config.write_text(three.config.read_text().replace(eu2.dsn, eu2.dsn_for(user="adopter")))
    eu2.sql("CREATE DATABASE acme OWNER adopter")
    result = posduif("tenant", "adopt", "acme", "--server", "eu2", "-o", "json", code=5)
    assert result.error["code"] == "tenant_exists"
    assert three.servers["eu2"].sql("SELECT 1 FROM pg_roles WHERE rolname = 'acme_engine'") == []
    three.stop("us1")
    eu2.sql("CREATE DATABASE globex OWNER adopter")
    posduif("tenant", "adopt", "globex", "--server", "eu2", code=6)
    posduif("tenant", "adopt", "globex", "--server", "eu2", "--ignore-unreachable")


def test_a_half_made_tenant_is_finished_where_it_was_begun(posduif: Posduif, three: Three) -> None:
    three.configure(default_server="eu1")
    posduif("tenant", "create", "other", "--server", "us1")
    three.servers["us1"].sql("SET ROLE posduif_admin; CREATE ROLE acme_engine LOGIN")
    three.servers["us1"].sql(
        """COMMENT ON ROLE acme_engine IS 'posduif {"v":1,"tenant":"acme","state":"provisioning","nonce":1000001}'"""
    )
    posduif("tenant", "create", "acme", "--server", "eu2", code=5)
    assert posduif.json("tenant", "create", "acme")["server"] == "us1"
    posduif("tenant", "verify", "acme")


def test_while_a_server_is_away_a_name_may_be_taken_there(posduif: Posduif, three: Three) -> None:
    three.configure(default_server="eu1")
    three.stop("us1")
    for argv in (("acme",), ("acme", "--server", "eu1"), ("acme", "--dry-run")):
        result = posduif("tenant", "create", *argv, "-o", "json", code=6)
        assert "--ignore-unreachable" in " ".join(result.error["try"]), argv
        assert "us1" in result.error["message"], argv
    assert three.servers["eu1"].sql("SELECT 1 FROM pg_roles WHERE rolname = 'acme_engine'") == []
    assert posduif.json("tenant", "create", "acme", "--ignore-unreachable")["server"] == "eu1"
    # The whole fleet's answers lack it, and say so; a tenant that is not found may be there.
    assert "us1" in posduif("tenant", "list", code=8).err
    posduif("tenant", "show", "nobody", code=6)
    assert posduif.json("tenant", "show", "acme")["server"] == "eu1"


def test_a_list_is_spread_over_the_emptiest_servers(posduif: Posduif, three: Three, tmp_path: Path) -> None:
    three.configure(default_server="emptiest")
    posduif("tenant", "create", "first", "--server", "eu1")
    posduif("tenant", "create", "second", "--server", "eu1")
    assert posduif.json("tenant", "create", "third")["server"] == "eu2"
    file = tmp_path / "tenants.csv"
    rows = ["first,", *(f"t{number}," for number in range(9)), "pinned,us1"]
    file.write_text("name,server\n" + "\n".join(rows) + "\n")
    outcomes = posduif.json("tenant", "create", "--from", str(file))
    assert [outcome["status"] for outcome in outcomes] == ["unchanged", *["created"] * 10]
    per_server = {name: sum(o["server"] == name for o in outcomes if o["changed"]) for name in three.servers}
    assert per_server == {"eu1": 2, "eu2": 3, "us1": 5}
    assert {o["tenant"]: o["server"] for o in outcomes}["pinned"] == "us1"
    again = posduif.json("tenant", "create", "--from", str(file))
    assert [o["server"] for o in again] == [o["server"] for o in outcomes]
    assert not any(o["changed"] for o in again)
    file.write_text("name,server\nfirst,eu2\n")
    posduif("tenant", "create", "--from", str(file), code=5)


def test_a_list_with_a_server_away_does_the_rest(posduif: Posduif, three: Three, tmp_path: Path) -> None:
    posduif("tenant", "create", "old", "--server", "eu1")
    three.stop("us1")
    file = tmp_path / "tenants.csv"
    file.write_text("name,server\nold,\na1,eu1\na2,us1\n")
    result = posduif("tenant", "create", "--from", str(file), "-o", "json", code=8)
    assert [(o["tenant"], o["status"]) for o in result.json] == [
        ("old", "unchanged"),
        ("a1", "failed"),
        ("a2", "failed"),
    ]
    result = posduif("tenant", "create", "--from", str(file), "--ignore-unreachable", "-o", "json", code=8)
    assert [o["status"] for o in result.json] == ["unchanged", "created", "failed"]
    three.start("us1")
    outcomes = posduif.json("tenant", "create", "--from", str(file))
    assert [o["status"] for o in outcomes] == ["unchanged", "unchanged", "created"]


def test_all_servers_away(posduif: Posduif, three: Three, tmp_path: Path) -> None:
    three.configure(default_server="emptiest")
    for name in three.servers:
        three.stop(name)
    file = tmp_path / "tenants.csv"
    file.write_text("name\na1\na2\n")
    posduif("tenant", "create", "--from", str(file), code=6)
    posduif("tenant", "create", "acme", code=6)
    posduif("tenant", "create", "acme", "--ignore-unreachable", code=6)
    posduif("migrate", "up", "--all", code=6)
    posduif("server", "list", code=6)


def test_a_server_that_stops_within_a_fleet_command_fails_its_own_tenants(
    posduif: Posduif, three: Three, tmp_path: Path
) -> None:
    three.configure(default_server="emptiest")
    file = tmp_path / "tenants.csv"
    file.write_text("name\n" + "\n".join(f"t{number:02}" for number in range(12)) + "\n")
    created = posduif.json("tenant", "create", "--from", str(file))
    homes = {o["tenant"]: o["server"] for o in created}
    folder = tmp_path / "own"
    folder.mkdir()
    (folder / "1000_slow.sql").write_text("-- migrate:up\nSELECT pg_sleep(1);\n-- migrate:down\nSELECT 1;\n")
    three.configure(default_server="emptiest", migrations=f"{{paths: [{folder}]}}")
    stopper = threading.Timer(2.0, three.stop, ["eu2"])
    stopper.start()
    # A server that is away is waited for; here nobody starts it again.
    result = posduif.process("migrate", "up", "--all", "--jobs", "1", "-o", "json", "--list")
    stopper.join()
    assert result.code == 8, result
    statuses = {outcome["tenant"]: outcome["status"] for outcome in result.json}
    assert set(statuses) == set(homes)
    assert {statuses[name] for name in homes if homes[name] != "eu2"} == {"ok"}
    assert "failed" in {statuses[name] for name in homes if homes[name] == "eu2"}
    three.start("eu2")
    rest = posduif.json("migrate", "up", "--all")
    assert {outcome["status"] for outcome in rest} == {"ok"}
    assert {outcome["server"] for outcome in rest} == {"eu2"}
    posduif("migrate", "status", "--all", "--check")
    posduif("tenant", "verify", "--all")


def test_ctrl_c_while_several_servers_are_asked(posduif: Posduif, three: Three) -> None:
    import signal

    posduif("tenant", "create", "acme", "--server", "eu1")
    # The catalog is locked: the question waits inside the server.
    with three.servers["eu1"].connect() as conn, conn.transaction():
        conn.execute("LOCK TABLE pg_catalog.pg_shdescription IN ACCESS EXCLUSIVE MODE")
        process = posduif.popen("tenant", "list")
        time.sleep(2)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
    assert process.returncode == 130, err
    assert b"Traceback" not in err


def test_server_list_tells_what_to_mind(posduif: Posduif, three: Three) -> None:
    posduif("tenant", "create", "acme", "--server", "eu1")
    three.stop("us1")
    result = posduif("server", "list", "-o", "json", code=8)
    eu1, _, us1 = result.json
    assert (eu1["server"], eu1["reachable"], eu1["tenants"], eu1["role"]) == ("eu1", True, 1, "postgres")
    assert (eu1["record_owner"], us1["record_owner"]) == ("posduif_admin", None)
    assert eu1["size_bytes"] > 1_000_000
    assert any("superuser" in warning for warning in eu1["warnings"])
    assert any("PUBLIC may connect to postgres" in warning for warning in eu1["warnings"])
    assert (us1["reachable"], us1["size_bytes"]) == (False, None)
    assert us1["error"]


def test_server_init_makes_what_is_missing_and_says_what_does_not_suit(
    own_server: PgServer, run_on: Callable[..., Posduif]
) -> None:
    own_server.sql("CREATE ROLE alice LOGIN CREATEDB CREATEROLE")
    posduif = run_on(own_server, user="alice")
    roles = "SELECT rolname FROM pg_roles WHERE rolname LIKE 'posduif%%' ORDER BY 1"
    printed = posduif("server", "init", "--print-sql").out
    assert own_server.sql(roles) == []
    assert "CREATE ROLE" in printed
    first = posduif("server", "init", "-o", "json")
    assert levels(first.json) == {
        "server.roles": "ok",
        "server.connections": "ok",
        "server.wal_senders": "ok",
        "server.tls": "ok",
        "server.open": "info",
        "server.members": "info",  # alice may give posduif_admin away
        "server.monitoring": "info",
    }
    assert [row[0] for row in own_server.sql(roles)] == [
        "posduif_admin",
        "posduif_backup",
        "posduif_cron",
        "posduif_engine",
        "posduif_health",
        "posduif_support",
    ]
    assert [f["changed"] for f in first.json if f["check"] == "server.roles"] == [True]
    again = posduif("server", "init", "--engines", "500", "-o", "json", code=1)
    assert levels(again.json)["server.connections"] == "warning"
    assert not any(finding["changed"] for finding in again.json)
    fix = next(f["fix"] for f in again.json if f["check"] == "server.connections")
    assert fix.startswith("ALTER SYSTEM SET max_connections = ")
    # alice does not own the database postgres.
    denied = posduif("server", "init", "--close", "-o", "json", code=6)
    assert "REVOKE CONNECT ON DATABASE postgres FROM PUBLIC" in " ".join(denied.error["try"])
    own_server.sql("REVOKE ADMIN OPTION FOR posduif_admin FROM alice CASCADE; GRANT posduif_admin TO alice")
    own_server.sql("GRANT posduif_admin TO alice WITH INHERIT TRUE, SET TRUE")
    super_posduif = run_on(own_server)
    super_posduif("server", "init", "--close")
    assert levels(super_posduif.json("server", "init"))["server.open"] == "ok"
    own_server.sql("CREATE ROLE mallory LOGIN")
    run_on(own_server, user="mallory")("tenant", "list", code=6)
    run_on(own_server, user="alice")("tenant", "create", "acme")


@pytest.mark.parametrize("login", ["alice", "postgres"])
def test_what_a_dba_runs_by_hand_leaves_nothing_to_do(
    own_server: PgServer, run_on: Callable[..., Posduif], login: str
) -> None:
    own_server.sql("CREATE ROLE alice LOGIN")
    posduif = run_on(own_server, user=login)
    sql = posduif("server", "init", "--close", "--print-sql").out
    with own_server.connect() as conn:
        conn.execute(sql.encode())
    findings = posduif.json("server", "init")
    assert {level for check, level in levels(findings).items() if check != "server.superuser"} == {"ok"}
    assert not any(finding["changed"] for finding in findings)
    posduif("tenant", "create", "acme", "--web-user", "desk")
    posduif("tenant", "verify", "acme")
    own_server.sql("CREATE ROLE helper LOGIN; GRANT posduif_support TO helper")
    run_on(own_server, user="helper")("token", "create", "acme", "--url", "https://acme.example.com", code=None)
    run_on(own_server, user="helper")("user", "list", "acme")


def test_server_init_wants_one_server(posduif: Posduif) -> None:
    posduif("server", "init", code=3)
    posduif("server", "init", "--server", "eu1")


def test_all_count_tenants_alike(own_server: PgServer, run_on: Callable[..., Posduif]) -> None:
    """A database of posduif_admin's without a record is no tenant, whoever counts."""
    posduif = run_on(own_server)
    posduif("tenant", "create", "acme")
    own_server.sql("CREATE DATABASE other OWNER posduif_admin")
    own_server.sql("CREATE DATABASE posduif_other OWNER posduif_admin")
    assert [row["tenant"] for row in posduif.json("tenant", "list")] == ["acme"]
    [row] = posduif.json("server", "list")
    assert row["tenants"] == 1
    assert row["size_bytes"] == own_server.sql("SELECT pg_database_size('acme')")[0][0]
    [room] = [f for f in posduif.json("server", "init", code=None) if f["check"] == "server.connections"]
    assert room["message"].startswith("1 engine of ")
    with connect.connect(Server("one", own_server.dsn), "postgres", command="test") as session:
        assert session.value(queries.load("fleet/fleet")["count_tenants"], sizes=False) == 1
