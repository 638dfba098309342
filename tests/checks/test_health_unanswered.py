"""`posduif health` where something does not answer: it says so within its limits, and says everything else."""

import json
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from posduif_cli.core.checks import health, questions
from posduif_cli.core.checks.visits import Depth
from posduif_cli.core.fleet.fleet import Fleet
from posduif_cli.db import embedded, queries
from posduif_cli.db.session import Session
from posduif_cli.models.servers import Server
from support.findings import about, deep
from support.runner import Posduif
from support.servers import PgServer, private
from support.tenants import forget, user

WAITING, MESSAGES = 20_000, 200_000
DEADLINE = timedelta(seconds=60)  # the square of the above takes minutes
ENDS = 5.0  # seconds after ctrl-C


def flood(server: PgServer, tenant: str) -> None:
    """Give one phone messages that it fetched around, with statistics from before they came."""
    phone = user(server, tenant, device_id="busy-phone")
    server.sql("ANALYZE", database=tenant)
    server.sql(
        """INSERT INTO messages (sender_id, recipient_id, content, status, updated_at, synced_at)
           SELECT %(u)s, %(u)s, 'm', CASE WHEN n <= %(waiting)s THEN 'pending_sync' ELSE 'synced' END,
                  (now() AT TIME ZONE 'UTC') - interval '1 hour',
                  CASE WHEN n > %(waiting)s THEN (now() AT TIME ZONE 'UTC') END
           FROM generate_series(1, %(all)s) n""".replace("%(u)s", f"'{phone}'")
        .replace("%(waiting)s", str(WAITING))
        .replace("%(all)s", str(MESSAGES)),
        database=tenant,
    )


def test_one_busy_phone_does_not_hold_the_report_up(posduif: Posduif, server: PgServer, tenant: str) -> None:
    flood(server, tenant)
    started = time.monotonic()
    report = posduif.process("health", tenant, "-o", "json").json
    assert timedelta(seconds=time.monotonic() - started) < DEADLINE
    [row] = report["tenants"]
    assert (row["messages"], row["pending_sync"]) == (MESSAGES, WAITING)
    [found] = about(report, "sync.*")
    assert (found["value"], "busy-phone" in found["message"]) == (WAITING, True)


@pytest.mark.parametrize("analyzed", [True, False])
def test_no_query_of_a_tenant_is_asked_again_for_each_row(
    posduif: Posduif, server: PgServer, tenant: str, analyzed: bool
) -> None:
    user(server, tenant, device_id="d1")
    if analyzed:
        server.sql("ANALYZE", database=tenant)
    named = queries.load("checks/inside")
    for name in ("judge_messages", "measure_enrollments", "count_users", "count_errors"):
        query = named[name].replace("%(silent)s", "1")
        plan = "\n".join(line for (line,) in server.sql(f"EXPLAIN {query}", database=tenant))
        assert "SubPlan" not in plan, plan
        assert plan.count("on messages") <= 1, plan


def test_odd_times_of_messages_are_no_obstacle(posduif: Posduif, server: PgServer, tenant: str) -> None:
    phone = user(server, tenant, device_id="d1")
    times = ("infinity", "-infinity", "4713-11-24 00:00:00 BC", "294276-12-31 23:59:59", "2020-01-01 00:00:00")
    for created in times:
        for synced in (*times, None):
            server.sql(
                """INSERT INTO messages (sender_id, recipient_id, content, status, created_at, synced_at)
                   VALUES (%s, %s, 'm', %s, %s, %s)""",
                phone,
                phone,
                "synced" if synced else "pending_sync",
                created,
                synced,
                database=tenant,
            )
    report = posduif.json("health", tenant)
    assert about(report, "*.reach") == []
    assert {finding["check"] for finding in report["findings"]} <= {"sync.stuck", "device.silent", "clock.skew"}


def sleep(server: PgServer, tenant: str) -> None:
    """Make every query of the tenant's messages sleep for ten minutes."""
    phone = user(server, tenant, device_id="d1")
    server.sql(
        "INSERT INTO messages (sender_id, recipient_id, content) VALUES (%s, %s, 'm')", phone, phone, database=tenant
    )
    server.sql(
        """SET ROLE posduif_admin; ALTER TABLE messages RENAME TO kept;
           CREATE VIEW messages AS SELECT * FROM kept WHERE pg_sleep(600) IS NOT NULL""",
        database=tenant,
    )


@pytest.fixture
def twin(posduif: Posduif, server: PgServer, name: str) -> Iterator[str]:
    """A second tenant."""
    other = f"{name}_twin"
    posduif("tenant", "create", other)
    yield other
    forget(server, other)


@pytest.mark.one_server
def test_a_question_beyond_its_limit_is_unknown_and_the_others_are_answered(
    posduif: Posduif, server: PgServer, tenant: str, twin: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sleep(server, tenant)
    server.sql("INSERT INTO sync_metadata (device_id, sync_status) VALUES ('d1', 'error')", database=tenant)
    monkeypatch.setattr(questions, "LIMIT", timedelta(seconds=2))
    report = posduif.json("health", tenant, twin, "--skip", "grants.differ")
    [found] = about(report, "*.reach")
    assert (found["level"], found["scope"], found["subject"]) == ("unknown", "tenant", tenant)
    assert "no answer about messages" in found["message"]
    assert "the limit of 2 s" in found["message"]
    assert [f["affected"] for f in about(report, "sync.failed")] == [[tenant]]
    rows = {row["tenant"]: row for row in report["tenants"]}
    assert (rows[tenant]["users"], rows[tenant]["messages"], rows[tenant]["sync_errors"]) == (2, None, 1)
    assert (rows[twin]["users"], rows[twin]["messages"]) == (0, 0)
    covered = report["coverage"]
    assert (covered["servers"], covered["tenants"], covered["visited"], covered["failed"]) == (1, 2, 1, 1)


@pytest.fixture
def login(server: PgServer, tenant: str) -> Iterator[str]:
    """A login of nobody's groups."""
    server.sql(f"CREATE ROLE {tenant}_eye LOGIN")
    yield f"{tenant}_eye"
    server.sql(f"DROP ROLE {tenant}_eye")


def test_a_login_without_rights_is_told_what_gives_them(
    server: PgServer, tenant: str, login: str, run_on: Callable[..., Posduif]
) -> None:
    eye = run_on(server, user=login)
    report = eye.json("health", tenant)
    assert {(f["level"], f["check"]) for f in report["findings"]} == {
        ("unknown", "server.reach"),
        ("unknown", "tenant.reach"),
    }
    for found in report["findings"]:
        assert login in found["message"]
        words, _, grant = found["fix"].partition(": ")
        assert words.startswith("a superuser")
        server.sql(grant)
    assert eye.json("health", tenant)["status"] == "ok"
    server.sql("REVOKE SELECT (status) ON messages FROM posduif_health", database=tenant)
    report = eye.json("health", tenant)
    [found] = report["findings"]
    assert (found["check"], found["level"]) == ("tenant.reach", "unknown")
    assert "permission denied for table messages" in found["message"]
    assert report["tenants"][0]["users"] == 1


def test_a_table_that_is_missing_is_critical_and_no_more_is_lost_than_it_held(
    posduif: Posduif, server: PgServer, tenant: str
) -> None:
    server.sql("DROP TABLE sync_metadata", database=tenant)
    report = posduif.json("health", tenant, code=1)
    [found] = about(report, "*.reach")
    assert (found["level"], "sync_metadata" in found["message"]) == ("critical", True)
    assert found["fix"] == f"posduif migrate verify {tenant}"
    [row] = report["tenants"]
    assert (row["users"], row["messages"], row["sync_errors"]) == (1, 0, None)


@pytest.mark.parametrize("several", [False, True])
def test_ctrl_c_ends_it_while_a_tenant_does_not_answer(
    posduif: Posduif, server: PgServer, tenant: str, twin: str, several: bool
) -> None:
    sleep(server, tenant)
    runner = posduif.popen("health", tenant, *([twin] if several else []), "-o", "json")
    query = "SELECT 1 FROM pg_stat_activity WHERE datname = %s AND wait_event = 'PgSleep'"
    for _ in range(300):
        if server.sql(query, tenant):
            break
        time.sleep(0.05)
    started = time.monotonic()
    runner.send_signal(signal.SIGINT)
    try:
        out, err = runner.communicate(timeout=ENDS)
    finally:
        runner.kill()
    assert time.monotonic() - started < ENDS
    assert (runner.returncode, out) == (130, b"")
    assert json.loads(err)["error"]["code"] == "interrupted"


@pytest.mark.one_server
def test_whoever_is_in_the_way_is_named_to_monitoring_too(
    server: PgServer, tenant: str, login: str, run_on: Callable[..., Posduif]
) -> None:
    """A change of a table that itself waits is in the way of all who come after it."""
    server.sql(f"GRANT posduif_health TO {login}")
    eye = run_on(server, user=login)
    with server.connect(tenant) as reader, server.connect(tenant) as changer:
        pid = changer.info.backend_pid
        changer.execute("SET application_name = 'the changer'")
        thread = threading.Thread(target=lambda: changer.execute("ALTER TABLE users ADD COLUMN more int"))
        with reader.transaction():
            reader.execute("SELECT count(*) FROM users")
            thread.start()
            for _ in range(200):
                if server.sql("SELECT 1 FROM pg_locks WHERE pid = %s AND NOT granted", pid):
                    break
                time.sleep(0.05)
            report = eye.json("health", tenant)
        thread.join(60)
    [found] = about(report, "tenant.reach")
    assert found["level"] == "unknown"
    who = f"locked by pid {pid} (postgres, the changer, waiting)"
    assert f"users, messages, displaced devices, enrollments: {who}" in found["message"]
    assert report["tenants"][0]["sync_errors"] == 0


def configured(folder: Path, clean_environ: pytest.MonkeyPatch, **servers: str) -> None:
    """Have the commands use a configuration of these servers, the first being the default."""
    clean_environ.delenv("POSDUIF_DSN", raising=False)
    text = {"servers": {name: {"dsn": dsn} for name, dsn in servers.items()}, "default_server": next(iter(servers))}
    (folder / "c.yaml").write_text(json.dumps(text))
    clean_environ.setenv("POSDUIF_CONFIG", str(folder / "c.yaml"))


@pytest.mark.one_server
def test_a_server_that_does_not_list_its_tenants_hides_nobody_else_s(
    own_server: PgServer, server: PgServer, posduif: Posduif, tenant: str, tmp_path: Path,
    clean_environ: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    configured(tmp_path, clean_environ, good=server.dsn, stuck=own_server.dsn)
    posduif("tenant", "create", f"{tenant}_far", "--server", "stuck")
    with own_server.connect() as conn, conn.transaction():
        conn.execute("LOCK TABLE pg_shdescription")
        done = posduif.process("health", "-o", "json")
        named = posduif.process("health", f"{tenant}_far", "-o", "json")
        pid = conn.info.backend_pid
    report = done.json
    [found] = about(report, "*.reach", "stuck")
    assert (found["level"], found["scope"]) == ("unknown", "server")
    assert f"locked by pid {pid} " in found["message"]
    assert report["coverage"]["servers"] == 1
    assert report["tenants"]["active"] >= 1
    assert {row["server"]: row["reachable"] for row in report["servers"]} == {"good": True, "stuck": True}
    [row] = [row for row in report["servers"] if row["server"] == "stuck"]
    assert row["connections"] > 0, "what it did answer is told"
    assert (named.code, named.json["status"]) == (0, "unknown"), "never 4: the tenant may be there"


def test_a_server_without_its_figures_is_not_covered(own_server: PgServer, run_on: Callable[..., Posduif]) -> None:
    own_server.sql("CREATE ROLE alice LOGIN CREATEDB CREATEROLE")
    posduif = run_on(own_server, user="alice")
    posduif("tenant", "create", "acme")
    own_server.sql("GRANT pg_monitor TO posduif_admin")
    assert posduif.json("health")["coverage"]["servers"] == 1
    own_server.sql("REVOKE EXECUTE ON FUNCTION pg_get_replication_slots() FROM PUBLIC")
    report = posduif.json("health", "--deep")
    covered = report["coverage"]
    assert (covered["servers"], covered["tenants"], covered["visited"]) == (0, 1, 1)
    assert covered["checks_failed"] >= 2, "what could not judge is not counted as made"
    [found] = about(report, "*.reach")
    assert (found["scope"], found["level"]) == ("server", "unknown")
    assert "slots" in found["message"]


def test_without_pg_monitor_one_finding_names_the_right(own_server: PgServer, run_on: Callable[..., Posduif]) -> None:
    own_server.sql("CREATE ROLE alice LOGIN CREATEDB CREATEROLE")
    posduif = run_on(own_server, user="alice")
    posduif("tenant", "create", "acme")
    report = posduif("health", "-o", "json", "--fail-on", "unknown", code=1).json
    [found] = report["findings"]
    assert (found["check"], found["level"], report["status"]) == ("server.reach", "unknown", "unknown")
    assert "posduif_admin lacks the rights of pg_monitor" in found["message"]
    assert posduif("health", "-o", "nagios", code=3).out.startswith("POSDUIF UNKNOWN")
    metrics = posduif("health", "-o", "prometheus").out
    assert 'check="transactions.idle"' not in metrics, "what could not judge has no series that says 0"
    own_server.sql(found["fix"].partition(": ")[2])
    assert posduif.json("health")["findings"] == []


@dataclass(frozen=True)
class Dying(Fleet):
    """A fleet whose server goes away once its tenants are known."""

    last: Callable[[], object] = lambda: None

    def ask(self, question: Any, **limits: Any) -> Any:
        answers = super().ask(question, **limits)
        self.last()
        return answers


def test_a_server_that_goes_away_is_one_finding(
    run_on: Callable[..., Posduif], clean_environ: pytest.MonkeyPatch
) -> None:
    with private() as dying:
        assert dying.data_dir is not None
        posduif, folder = run_on(dying), dying.data_dir
        for name in ("anna", "bert", "carl"):
            posduif("tenant", "create", name)
        fleet = Dying((Server("eu1", dying.dsn),), "health", last=lambda: embedded.stop(folder))
        report = health.report(fleet, depth=Depth(deep=True))
        [found] = report.findings
        assert (found.check, found.level, found.scope, found.subject) == ("server.reach", "critical", "server", "eu1")
        assert found.affected == ("anna", "bert", "carl")
        covered = report.coverage
        assert (covered["servers"], covered["tenants"], covered["visited"], covered["failed"]) == (0, 3, 0, 3)


@dataclass(frozen=True)
class Counting(Fleet):
    """A fleet that counts the sessions in its servers' maintenance databases."""

    opened: Any = None

    def maintenance(self, server: Server, *, limit: timedelta | None = None) -> Session:
        self.opened.append(server.name)
        return super().maintenance(server, limit=limit)


def test_a_server_is_asked_in_one_session(server: PgServer, tenant: str) -> None:
    servers = (Server("a", server.dsn), Server("b", f"host=/nowhere-{tenant} user=x"))
    fleet = Counting(servers, "health", opened=[])
    named = health.report(fleet, tenants=[tenant, tenant])
    assert sorted(fleet.opened) == ["a", "b"]
    fleet.opened.clear()
    everything = health.report(fleet)
    assert sorted(fleet.opened) == ["a", "b"]
    assert [row.server for row in named.servers] == ["a"]
    assert [row.server for row in everything.servers] == ["a", "b"]


def test_a_named_tenant_whose_server_may_be_lost_is_critical_not_an_error(
    posduif: Posduif, server: PgServer, tenant: str, name: str, tmp_path: Path, clean_environ: pytest.MonkeyPatch
) -> None:
    away = f"host={tmp_path}/nobody user=x"
    configured(tmp_path, clean_environ, away=away)
    report = posduif.json("health", tenant, code=1)
    [found] = report["findings"]
    assert (found["level"], found["subject"], found["affected"]) == ("critical", "away", [tenant])
    assert (report["coverage"]["servers"], report["coverage"]["tenants"]) == (0, 1)
    configured(tmp_path, clean_environ, good=server.dsn, away=away)
    report = posduif.json("health", tenant, f"{tenant}_x", code=1)
    [found] = about(report, "*.reach")
    assert found["affected"] == [f"{tenant}_x"]
    covered = report["coverage"]
    assert (covered["servers"], covered["tenants"], covered["visited"]) == (1, 2, 1)
    configured(tmp_path, clean_environ, good=server.dsn)
    posduif("health", f"{tenant}_x", code=4)


def test_tenants_of_one_name_on_two_servers_are_both_told(
    own_server: PgServer, server: PgServer, posduif: Posduif, tenant: str, tmp_path: Path,
    clean_environ: pytest.MonkeyPatch, run_on: Callable[..., Posduif],
) -> None:  # fmt: skip
    run_on(own_server)("tenant", "create", tenant)
    user(own_server, tenant, device_id="d1")
    user(own_server, tenant, device_id="d2")
    configured(tmp_path, clean_environ, good=server.dsn, own=own_server.dsn)
    for device in ("d1", "d2"):
        own_server.sql(
            "INSERT INTO sync_metadata (device_id, sync_status) VALUES (%s, 'error')", device, database=tenant
        )
    [found] = about(deep(posduif, "-o", "json").json, "sync.failed")
    assert (found["value"], found["affected"]) == (2, [tenant])
    assert found["fix"] == f"posduif device list {tenant} --server own"
    posduif("health", tenant, code=5)
