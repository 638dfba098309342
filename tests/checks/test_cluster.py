"""What one session sees of a server: each fault is made on a real one and found, on each PostgreSQL there is."""

import json
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest

from posduif_cli.db import embedded
from support.runner import Posduif
from support.servers import PgServer, private, programs
from support.waiting import until

MIB = 1024**2
Thresholds = Callable[..., Posduif]


@pytest.fixture(scope="module", params=["embedded", "system"])
def there(request: pytest.FixtureRequest) -> Iterator[PgServer]:
    """A server of this module, with the tenant acme and what its tests take."""
    settings = {"wal_level": "logical", "max_connections": "40", "max_prepared_transactions": "2"}
    with private(programs(request), **settings) as server:
        yield server


@pytest.fixture
def posduif(there: PgServer, run_on: Callable[..., Posduif]) -> Posduif:
    """Runs commands against that server, which has the tenants acme and bolt."""
    runner = run_on(there)
    for name in ("acme", "bolt"):
        runner("tenant", "create", name, "--if-not-exists")
    return runner


@pytest.fixture
def thresholds(posduif: Posduif, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Thresholds:
    """Configures checks, so that no test has to wait for minutes: `idle={"warning": "1s"}` of `transactions.idle`."""

    def configure(**checks: dict[str, Any]) -> Posduif:
        named = {key.replace("_", ".", 1): {"critical": 10**9, **given} for key, given in checks.items()}
        (tmp_path / "c.yaml").write_text(json.dumps({"checks": named}))
        monkeypatch.setenv("POSDUIF_CONFIG", str(tmp_path / "c.yaml"))
        return posduif

    return configure


def findings(posduif: Posduif, *options: str, code: int | None = None) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = posduif.json("health", *options, code=code)["findings"]
    return found


def only(posduif: Posduif, check: str, level: str, *options: str) -> dict[str, Any]:
    """Return the one finding of a report, which is of this check and level."""
    [finding] = findings(posduif, *options)
    assert (finding["check"], finding["level"], finding["scope"]) == (check, level, "server")
    return finding


@contextmanager
def keeping(
    server: PgServer, *statements: str, database: str = "acme", **parts: Any
) -> Iterator[psycopg.Connection[Any]]:
    """Hold a session that has run some statements."""
    with server.connect(database, **parts) as conn:
        for statement in statements:
            conn.execute(statement)
        try:
            yield conn
        finally:
            conn.close()


def eventually(true: Callable[[], bool]) -> None:
    until(true, "what the report is about", 30, every=0.1)


def gone(server: PgServer, pid: int) -> bool:
    return not server.sql("SELECT 1 FROM pg_stat_activity WHERE pid = %s", pid)


def test_a_fresh_fleet_gives_no_finding(posduif: Posduif) -> None:
    report = posduif.json("health", "--deep")
    assert (report["status"], report["findings"], report["tenants"]) == ("ok", [], {"active": 2})


def test_connections_that_are_nearly_used_up(there: PgServer, posduif: Posduif) -> None:
    with ExitStack() as stack:
        for _ in range(28):
            stack.enter_context(keeping(there, database="postgres"))
        finding = only(posduif, "connections.full", "warning")
        assert finding["message"].endswith(" of 37 connections are in use")
        assert (finding["threshold"], finding["value"] >= 0.75) == ("0.75 / 0.9", True)
    eventually(lambda: findings(posduif) == [])


def test_pools_that_are_larger_than_the_server_are_told(there: PgServer, posduif: Posduif) -> None:
    there.sql(
        """DO $$BEGIN EXECUTE format('COMMENT ON DATABASE bolt IS %L', replace(shobj_description(
           (SELECT oid FROM pg_database WHERE datname = 'bolt'), 'pg_database'), '"pool":5', '"pool":50')); END$$"""
    )
    assert only(posduif, "connections.full", "info")["value"] == 55
    there.sql(
        """DO $$BEGIN EXECUTE format('COMMENT ON DATABASE bolt IS %L', replace(shobj_description(
           (SELECT oid FROM pg_database WHERE datname = 'bolt'), 'pg_database'), '"pool":50', '"pool":5')); END$$"""
    )
    assert findings(posduif) == []


def test_an_engine_at_its_limit(there: PgServer, posduif: Posduif) -> None:
    there.sql("ALTER ROLE acme_engine CONNECTION LIMIT 4")
    try:
        with keeping(there, user="acme_engine"), keeping(there, user="acme_engine"):
            assert findings(posduif) == []
            with keeping(there, user="acme_engine"):
                finding = only(posduif, "connections.role", "warning")
                assert (finding["affected"], finding["value"]) == (["acme"], 0.75)
                assert "3 of the 4" in finding["message"]
                with keeping(there, user="acme_engine"):
                    assert only(posduif, "connections.role", "critical")["value"] == 1
        eventually(lambda: findings(posduif) == [])
    finally:
        there.sql("ALTER ROLE acme_engine CONNECTION LIMIT 26")


def test_a_session_that_is_idle_in_a_transaction(there: PgServer, thresholds: Thresholds) -> None:
    posduif = thresholds(transactions_idle={"warning": "100ms"})
    with keeping(there, "SET application_name = 'batch'", "BEGIN", "SELECT 1") as conn:
        eventually(lambda: findings(posduif) != [])
        finding = only(posduif, "transactions.idle", "warning")
        assert f"pid {conn.info.backend_pid} (postgres, batch, acme) has been idle" in finding["message"]
        assert finding["affected"] == ["acme"]
        with keeping(there, "BEGIN", "SELECT 1", database="bolt"):
            eventually(lambda: findings(posduif)[0]["affected"] == ["acme", "bolt"])
            assert re.search(r"idle in a transaction for .* \(and pid \d+\)$", findings(posduif)[0]["message"])
        eventually(lambda: findings(posduif)[0]["affected"] == ["acme"])
        there.sql(finding["fix"])
        eventually(lambda: gone(there, conn.info.backend_pid))
    assert findings(posduif) == []


def test_a_transaction_that_takes_long_but_not_a_backup_s(there: PgServer, thresholds: Thresholds) -> None:
    posduif = thresholds(transactions_long={"warning": "100ms"})
    conns = [there.connect("acme", application_name=name) for name in ("report", "pg_dump")]

    def sleep(conn: psycopg.Connection[Any]) -> None:
        with conn, pytest.raises(psycopg.Error):
            conn.execute("SELECT pg_sleep(60)")

    threads = [threading.Thread(target=sleep, args=(conn,)) for conn in conns]
    for thread in threads:
        thread.start()
    pid = conns[0].info.backend_pid
    eventually(lambda: [f["message"] for f in findings(posduif) if f"pid {pid} (" in f["message"]] != [])
    finding = only(posduif, "transactions.long", "warning")
    assert "report" in finding["message"]
    there.sql(finding["fix"])
    eventually(lambda: findings(posduif) == [])
    there.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'pg_dump'")
    for thread in threads:
        thread.join(30)


def test_the_root_of_a_queue_of_locks_is_named(there: PgServer, thresholds: Thresholds) -> None:
    posduif = thresholds(sessions_blocked={"warning": "100ms"})
    with keeping(there, "BEGIN", "LOCK TABLE users IN ROW EXCLUSIVE MODE", application_name="the root") as root:
        waiting = [there.connect("acme"), there.connect("acme")]

        def wait(conn: psycopg.Connection[Any], mode: str) -> None:
            with conn:
                conn.execute(f"BEGIN; LOCK TABLE users IN {mode} MODE; COMMIT".encode())

        threads = [threading.Thread(target=wait, args=(waiting[0], "ACCESS EXCLUSIVE"))]
        threads[0].start()
        query = "SELECT 1 FROM pg_locks WHERE NOT granted AND pid = %s"
        eventually(lambda: there.sql(query, waiting[0].info.backend_pid) != [])
        threads.append(threading.Thread(target=wait, args=(waiting[1], "ACCESS SHARE")))
        threads[1].start()
        eventually(lambda: there.sql(query, waiting[1].info.backend_pid) != [])
        eventually(lambda: findings(posduif) != [])
        finding = only(posduif, "sessions.blocked", "warning")
        pid = root.info.backend_pid
        assert f"pid {pid} (postgres, the root, acme) blocks 2 sessions" in finding["message"]
        assert finding["affected"] == ["acme"]
        there.sql(finding["fix"])
        for thread in threads:
            thread.join(30)
        eventually(lambda: findings(posduif) == [])


def test_slots_that_keep_wal(there: PgServer, thresholds: Thresholds) -> None:
    posduif = thresholds(slots_retained={"warning": "1MiB"})
    there.sql("SELECT pg_create_physical_replication_slot('replica', true)")
    there.sql("SELECT pg_create_logical_replication_slot('posduif_sync_acme', 'pgoutput')", database="acme")
    there.sql("SELECT pg_logical_emit_message(true, 'x', repeat('x', 3000000))")
    found = {finding["check"]: finding for finding in findings(posduif)}
    assert {check: f["level"] for check, f in found.items()} == {"slots.retained": "warning", "slots.unread": "warning"}
    assert (found["slots.retained"]["subject"], found["slots.retained"]["value"] > 3 * MIB // 2) == (
        "dsn/replica",
        True,
    )
    assert found["slots.unread"]["affected"] == ["acme"]
    for finding in found.values():
        there.sql(finding["fix"])
    assert findings(posduif) == []


def test_a_slot_that_was_lost_is_not_fine(run_on: Callable[..., Posduif]) -> None:
    with private(max_slot_wal_keep_size="1", min_wal_size="32MB", max_wal_size="32MB") as server:
        posduif = run_on(server)
        posduif("tenant", "create", "acme")
        server.sql("SELECT pg_create_physical_replication_slot('replica', true)")
        for _ in range(3):
            server.sql(
                "SELECT pg_logical_emit_message(true, 'x', repeat('x', 1000)); SELECT pg_switch_wal(); CHECKPOINT"
            )
        until(lambda: "lost" in str(server.sql("SELECT wal_status FROM pg_replication_slots; ")), "it is lost", 30)
        finding = only(posduif, "slots.retained", "critical")
        assert "slot replica of the server is lost" in finding["message"]
        server.sql(finding["fix"])
        assert findings(posduif) == []


def test_what_holds_back_vacuum_is_named(there: PgServer, thresholds: Thresholds) -> None:
    posduif = thresholds(horizon_old={"warning": 20})
    assert findings(posduif) == []
    with keeping(there, "SET application_name = 'old'", "BEGIN", "SELECT pg_current_xact_id()") as conn:
        _burn(there, 30)
        finding = only(posduif, "horizon.old", "warning")
        assert f"pid {conn.info.backend_pid} (postgres, old, acme) holds back VACUUM" in finding["message"]
        there.sql(finding["fix"])
        eventually(lambda: gone(there, conn.info.backend_pid))
    assert findings(posduif) == []
    there.sql("BEGIN; SELECT pg_current_xact_id(); PREPARE TRANSACTION 'forgotten'", database="bolt")
    _burn(there, 30)
    finding = only(posduif, "horizon.old", "warning")
    assert "prepared transaction forgotten" in finding["message"]
    there.sql(finding["fix"], database="bolt")
    assert findings(posduif) == []


def _burn(server: PgServer, number: int) -> None:
    with server.connect() as conn:
        for _ in range(number):
            conn.execute("SELECT pg_current_xact_id()")


def test_unsafe_settings_and_those_that_wait_for_a_restart(there: PgServer, posduif: Posduif) -> None:
    # A setting that is taken out of the file stays pending: it is set to what runs.
    for name, value, before in (("full_page_writes", "off", "on"), ("max_worker_processes", "9", "8")):
        there.sql(f"ALTER SYSTEM SET {name} = {value}")
        there.sql("SELECT pg_reload_conf()")
        try:
            eventually(lambda: findings(posduif) != [])
            finding = only(posduif, "settings.unsafe", "warning")
            assert finding["value"] == name
        finally:
            there.sql(f"ALTER SYSTEM SET {name} = {before}")
            there.sql("SELECT pg_reload_conf()")
        eventually(lambda: findings(posduif) == [])


def test_databases_that_take_no_connections(there: PgServer, posduif: Posduif) -> None:
    posduif("tenant", "create", "cora")
    there.sql("ALTER DATABASE cora ALLOW_CONNECTIONS false")
    finding = only(posduif, "database.invalid", "critical", "--deep")
    assert (finding["affected"], finding["message"]) == (["cora"], "database cora takes no connections")
    there.sql(finding["fix"])
    assert findings(posduif, "--deep") == []
    there.sql("UPDATE pg_database SET datconnlimit = -2 WHERE datname = 'cora'")
    finding = only(posduif, "database.invalid", "critical", "--deep")
    assert "half dropped" in finding["message"]
    posduif(*finding["fix"].split()[1:])
    assert findings(posduif, "--deep") == []
    for name in ("one_of_two", "two_of_two"):
        there.sql(f"CREATE DATABASE {name} ALLOW_CONNECTIONS false")
    message = only(posduif, "database.invalid", "critical")["message"]
    assert ("one_of_two" in message, "two_of_two" in message) == (True, True), "no name is lost in a group"
    for name in ("one_of_two", "two_of_two"):
        there.sql(f"DROP DATABASE {name}")
    there.sql("CREATE DATABASE strange")
    there.sql("UPDATE pg_database SET datconnlimit = -2 WHERE datname = 'strange'")
    finding = only(posduif, "database.invalid", "critical")
    assert (finding["affected"], finding["fix"]) == ([], "DROP DATABASE strange;")
    there.sql(finding["fix"])
    assert findings(posduif) == []


def test_archiving_that_fails(run_on: Callable[..., Posduif], request: pytest.FixtureRequest) -> None:
    with private(archive_mode="on", archive_command="false") as server:
        posduif = run_on(server)
        posduif("tenant", "create", "acme")
        server.sql("SELECT pg_switch_wal()")
        eventually(lambda: server.sql("SELECT failed_count FROM pg_stat_archiver")[0][0] > 0)
        finding = only(posduif, "archive.failing", "warning")
        assert "archive_command" in finding["fix"]
        server.sql("ALTER SYSTEM SET archive_command = 'true'")
        server.sql("SELECT pg_reload_conf()")
        # What the server's command line says wins, so the server is asked to start anew without it.
        assert server.data_dir is not None
        embedded.stop(server.data_dir)
        embedded.start(server.data_dir, settings={"archive_mode": "on", "archive_command": "true"})
        eventually(lambda: server.sql("SELECT archived_count FROM pg_stat_archiver")[0][0] > 0)
        assert [f for f in findings(posduif) if f["check"] == "archive.failing"] == []


def _folder(server: PgServer) -> Path:
    [(folder,)] = server.sql("SHOW data_directory")
    return Path(folder)


def _as_server(*argv: str | Path) -> None:
    done = embedded._run(list(argv), embedded._server_user())
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("kind", ["embedded", "system"])
def test_a_page_with_a_wrong_checksum(
    kind: str, run_on: Callable[..., Posduif], request: pytest.FixtureRequest
) -> None:
    request.param = kind
    bin_dir = programs(request)
    with private(bin_dir) as server:
        posduif, tools, data = run_on(server), embedded.locate(bin_dir).bin_dir, _folder(server)
        posduif("tenant", "create", "acme")
        server.sql("CREATE TABLE torn AS SELECT n FROM generate_series(1, 1000) n", database="acme")
        [(path,)] = server.sql("SELECT pg_relation_filepath('torn')", database="acme")
        [(on,)] = server.sql("SHOW data_checksums")
        assert server.data_dir is not None
        embedded.stop(server.data_dir)
        if on == "off":
            _as_server(tools / "pg_checksums", "--enable", "-D", data)
        with open(data / path, "r+b") as file:
            file.seek(5000)
            file.write(b"\xff\x00\xff")
        embedded.start(server.data_dir, bin_dir=bin_dir)
        assert findings(posduif) == []
        with pytest.raises(psycopg.errors.DataCorrupted):
            server.sql("SELECT count(*) FROM torn", database="acme")
        eventually(lambda: findings(posduif) != [])
        finding = only(posduif, "checksums.failed", "critical")
        assert (finding["affected"], "database acme" in finding["message"]) == (["acme"], True)


@pytest.mark.parametrize("kind", ["embedded", "system"])
def test_transaction_ids_that_run_out(
    kind: str, run_on: Callable[..., Posduif], request: pytest.FixtureRequest
) -> None:
    request.param = kind
    bin_dir = programs(request)
    far = {"autovacuum_freeze_max_age": "2000000000"}  # or the server would freeze before it is asked
    with private(bin_dir, **far) as server:
        posduif, tools, data = run_on(server), embedded.locate(bin_dir).bin_dir, _folder(server)
        posduif("tenant", "create", "acme")
        assert findings(posduif) == []
        assert server.data_dir is not None
        embedded.stop(server.data_dir)
        # 1.2 billion ids later; the file of the status of its transactions has to be there.
        _as_server(tools / "pg_resetwal", "-f", "-x", "1200000000", data)
        page = data / "pg_xact" / f"{1_200_000_000 // (8192 * 4 * 32):04X}"
        page.write_bytes(bytes(262_144))
        owner = (data / "PG_VERSION").stat()
        shutil.chown(page, owner.st_uid, owner.st_gid)
        embedded.start(server.data_dir, bin_dir=bin_dir, settings=far)
        finding = only(posduif, "wraparound.near", "warning")
        assert finding["value"] == pytest.approx(0.56, abs=0.01)
        assert "56% of the transaction ids" in finding["message"]


@pytest.mark.parametrize("kind", ["embedded", "system"])
def test_slow_statements_of_all_tenants(
    kind: str, run_on: Callable[..., Posduif], request: pytest.FixtureRequest
) -> None:
    request.param = kind
    with private(programs(request), shared_preload_libraries="pg_stat_statements") as server:
        posduif = run_on(server)
        for name in ("acme", "bolt"):
            posduif("tenant", "create", name)
        report = posduif.json("health")
        assert "pg_stat_statements is not installed" in report["skipped"]["queries.slow"]
        server.sql("CREATE SCHEMA stats; CREATE EXTENSION pg_stat_statements SCHEMA stats")
        report = posduif.json("health")
        assert (report["findings"], "queries.slow" in report["skipped"]) == ([], False)
        for name in ("acme", "bolt"):
            for _ in range(3):
                server.sql("SELECT pg_sleep(0.12), %s::text /* secret */", "the secret", database=name)
        server.sql("ALTER ROLE acme_engine PASSWORD 'hunter2hunter2'")
        [finding] = [f for f in findings(posduif) if f["level"] != "info"]
        assert (finding["check"], finding["level"], sorted(finding["affected"])) == (
            "queries.slow", "warning", ["acme", "bolt"]
        )  # fmt: skip
        assert 100 <= finding["value"] < 10_000
        assert "in 2 tenants: SELECT pg_sleep" in finding["message"]
        assert "hunter2" not in json.dumps(findings(posduif))


@contextmanager
def standby(server: PgServer, bin_dir: Path | None, folder: Path) -> Iterator[None]:
    """Run a replica of a server that receives WAL and does not replay it."""
    tools, data = embedded.locate(bin_dir).bin_dir, folder / "replica"
    assert server.data_dir is not None
    access = Path(server.sql("SHOW hba_file")[0][0])
    access.write_text(f"local replication all trust\n{access.read_text()}")
    server.sql("SELECT pg_reload_conf()")
    _as_server(tools / "pg_basebackup", "-D", data, "-X", "stream", "-c", "fast", "-R", "-d", server.dsn)
    place = folder / "socket"
    place.mkdir()
    owner = data.stat()
    shutil.chown(place, owner.st_uid, owner.st_gid)
    options = f"-c listen_addresses='' -c unix_socket_directories={place} -c recovery_min_apply_delay=1h"
    options += " -c max_connections=200 -c max_prepared_transactions=2"  # no fewer than its primary
    _as_server(tools / "pg_ctl", "-D", data, "-o", options, "-l", folder / "log", "-w", "start")
    try:
        yield
    finally:
        _as_server(tools / "pg_ctl", "-D", data, "-m", "immediate", "-w", "stop")


@pytest.mark.parametrize("kind", ["embedded", "system"])
def test_a_replica_that_falls_behind(
    kind: str, run_on: Callable[..., Posduif], request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    request.param = kind
    bin_dir = programs(request)
    with private(bin_dir) as server:
        posduif = run_on(server)
        posduif("tenant", "create", "acme")
        assert server.data_dir is not None
        folder = server.data_dir.parent / "second"
        folder.mkdir()
        owner = _folder(server).stat()
        shutil.chown(folder, owner.st_uid, owner.st_gid)
        with standby(server, bin_dir, folder):
            eventually(lambda: posduif.json("health")["servers"][0]["replicas"] == 1)
            assert findings(posduif) == []
            with server.connect() as conn:
                for _ in range(6):
                    conn.execute("SELECT pg_logical_emit_message(true, 'x', repeat('x', 15000000))")
            eventually(lambda: findings(posduif) != [])
            finding = only(posduif, "replication.lag", "warning")
            assert finding["value"] > 50 * MIB
            assert posduif.json("health")["servers"][0]["replication_lag_bytes"] > 50 * MIB


def test_a_server_killed_while_it_is_asked_is_one_finding(run_on: Callable[..., Posduif]) -> None:
    """The process of the session itself is killed, and with it, as PostgreSQL does, all others."""
    with private() as server:
        posduif = run_on(server)
        for name in ("acme", "bolt", "cora"):
            posduif("tenant", "create", name)
        stop = threading.Event()

        def kill() -> None:
            with server.connect() as conn:
                while not stop.is_set():
                    asked = "SELECT pid FROM pg_stat_activity WHERE application_name = 'posduif health'"
                    found = conn.execute(asked).fetchall()
                    for (pid,) in found:
                        conn.execute("SELECT pg_terminate_backend(%s)", [pid])
                    time.sleep(0.001)

        thread = threading.Thread(target=kill)
        thread.start()
        try:
            reports = [posduif("health", "--deep", "-o", "json", code=None) for _ in range(5)]
        finally:
            stop.set()
            thread.join(30)
        for result in reports:
            assert result.code in (0, 1), result
            levels = {finding["level"] for finding in result.json["findings"]}
            assert levels <= {"critical", "unknown"}, result.json["findings"]
            assert result.code == (1 if "critical" in levels else 0)
        assert any(result.code == 1 for result in reports)
        assert findings(posduif, "--deep") == []
