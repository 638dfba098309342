"""`posduif health` on real servers: what is wrong is found, what is fine is not cried about."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest

from posduif_cli.core.checks import cluster, health
from posduif_cli.core.checks.facts import ServerFacts
from posduif_cli.core.checks.visits import Depth
from posduif_cli.core.fleet import run
from posduif_cli.core.fleet.fleet import Fleet
from posduif_cli.db import connect
from posduif_cli.db.session import Session
from posduif_cli.errors import TenantNotFound
from posduif_cli.models.checks import Level
from posduif_cli.models.servers import Server
from posduif_cli.models.tenants import Tenant
from support.findings import about, deep
from support.runner import Posduif
from support.servers import PgServer, private
from support.sources import LATEST
from support.tenants import user

REPORT = {"status", "checked_at", "servers", "tenants", "coverage", "findings"}
FINDING = {"check", "scope", "subject", "level", "value", "unit", "threshold", "message", "fix", "affected"}


def test_a_fresh_tenant_is_fine(posduif: Posduif, server: PgServer, tenant: str) -> None:
    report = posduif.json("health", tenant)
    assert set(report) >= REPORT
    assert (report["status"], report["findings"]) == ("ok", [])
    age = datetime.now(UTC) - datetime.fromisoformat(report["checked_at"])
    assert timedelta(seconds=-5) < age < timedelta(minutes=1)
    covered = report["coverage"]
    assert (covered["servers"], covered["tenants"], covered["visited"], covered["failed"]) == (1, 1, 1, 0)
    assert covered["checks"] > 25
    assert (covered["checks_failed"], covered["checks_skipped"]) == (0, len(report["skipped"]))
    [row] = report["servers"]
    assert row["reachable"] is True
    assert row["version"].startswith(str(server.version))
    assert 0 < row["connections"] < row["max_connections"]
    [row] = report["tenants"]
    assert (row["tenant"], row["state"], row["schema_version"], row["pending_migrations"]) == (
        tenant,
        "active",
        LATEST,
        0,
    )
    assert row["size_bytes"] > 1_000_000
    assert {table["table"] for table in row["tables"]} == {
        "users",
        "messages",
        "sync_metadata",
        "enrollment_tokens",
        "schema_migrations",
    }
    assert "idx_sync_metadata_lsn" in {index["index"] for index in row["indexes"]}
    assert all(index["scans"] >= 0 and index["size_bytes"] >= 0 for index in row["indexes"])


def test_the_figures_are_right_as_soon_as_the_rows_are_there(posduif: Posduif, server: PgServer, tenant: str) -> None:
    [row] = posduif.json("health", tenant)["tenants"]
    assert (row["users"], row["messages"], row["pending_sync"], row["sync_errors"]) == (1, 0, 0, 0)
    phone = user(server, tenant, device_id="d1")
    server.sql(
        """INSERT INTO messages (sender_id, recipient_id, content, status)
           SELECT id, id, n::text, (ARRAY['pending_sync', 'synced', 'read'])[n %% 3 + 1]
           FROM generate_series(0, 9) n, (SELECT %s::uuid AS id) u""",
        phone,
        database=tenant,
    )
    server.sql(
        "INSERT INTO sync_metadata (device_id, sync_status) VALUES ('d1', 'error'), ('d2', 'syncing')", database=tenant
    )
    report = posduif.json("health", tenant)
    [row] = report["tenants"]
    assert (row["users"], row["messages"], row["pending_sync"], row["sync_errors"]) == (2, 10, 4, 1)
    [finding] = about(report, "sync.failed", tenant)
    assert set(finding) == FINDING
    assert (finding["level"], finding["value"], report["status"]) == ("warning", 1, "warning")
    assert (finding["scope"], finding["affected"]) == ("tenant", [tenant])
    assert finding["fix"] == f"posduif device list {tenant}"
    server.sql("UPDATE sync_metadata SET sync_status = 'idle'", database=tenant)
    assert posduif.json("health", tenant)["status"] == "ok"


def test_a_device_that_fetches_around_a_message_is_stuck_one_that_is_off_is_not(
    posduif: Posduif, server: PgServer, tenant: str
) -> None:
    stuck, off, busy = (user(server, tenant, device_id=device) for device in ("stuck", "off", "busy"))
    add = """INSERT INTO messages (sender_id, recipient_id, content, updated_at, status, synced_at)
             VALUES (%s, %s, 'm', (now() AT TIME ZONE 'UTC') - %s::interval, %s,
                     (now() AT TIME ZONE 'UTC') - %s::interval)"""
    for recipient, age, status, synced in (
        (off, "9 days", "pending_sync", None),  # a phone that lies in a drawer
        (busy, "2 minutes", "pending_sync", None),  # fetched just before this one came
        (busy, "10 minutes", "synced", "1 minute"),
        (stuck, "10 minutes", "pending_sync", None),
        (stuck, "9 minutes", "pending_sync", None),
        (stuck, "8 minutes", "synced", "1 minute"),
    ):
        server.sql(add, recipient, recipient, age, status, synced, database=tenant)
    report = posduif.json("health", tenant)
    [found] = report["findings"]
    assert (found["check"], found["level"], found["value"], found["unit"]) == ("sync.stuck", "warning", 2, "messages")
    assert "stuck" in found["message"]
    # The fix is a command that works.
    command = found["fix"].replace("'", "").split()
    assert command[0] == "posduif"
    assert len(posduif.json(*command[1:])) == 2


def test_an_invalid_index_is_critical_until_it_is_rebuilt(posduif: Posduif, server: PgServer, tenant: str) -> None:
    for _ in range(2):
        server.sql(
            "INSERT INTO sync_metadata (device_id, sync_status) VALUES (gen_random_uuid(), 'idle')", database=tenant
        )
    with pytest.raises(psycopg.errors.UniqueViolation):
        server.sql('CREATE UNIQUE INDEX CONCURRENTLY "Broken one" ON sync_metadata (sync_status)', database=tenant)
    report = posduif.json("health", tenant, code=1)
    [finding] = about(report, "index.invalid", tenant)
    assert (finding["level"], report["status"]) == ("critical", "critical")
    assert report["findings"][0] == finding, "the worst comes first"
    assert "Broken one" in finding["message"]
    server.sql("DELETE FROM sync_metadata", database=tenant)
    server.sql(finding["fix"], database=tenant)  # the fix is SQL that works
    assert about(posduif.json("health", tenant), "index.invalid", tenant) == []


@pytest.fixture
def logical(run_on: Callable[[PgServer], Posduif]) -> Any:
    """A server with wal_level=logical, for this test alone."""
    with private(wal_level="logical", max_slot_wal_keep_size="-1") as server:
        yield server


def test_a_slot_and_a_whole_server_show(logical: PgServer, run_on: Callable[[PgServer], Posduif]) -> None:
    posduif = run_on(logical)
    assert posduif.json("health", code=None)["status"] in ("ok", "info")
    posduif("tenant", "create", "acme")
    logical.sql("SELECT pg_create_logical_replication_slot('posduif_sync_acme', 'pgoutput')", database="acme")
    report = posduif.json("health")
    [finding] = about(report, "slots.unread")
    assert "posduif_sync_acme" in finding["subject"]
    assert (finding["level"], finding["affected"]) == ("warning", ["acme"])
    assert (finding["unit"], finding["value"] >= 0) == ("bytes", True)
    assert report["servers"][0]["slots"] == 1
    before = finding["value"]
    logical.sql("SELECT pg_logical_emit_message(true, 'x', repeat('x', 3000000))", database="acme")
    assert about(posduif.json("health"), "slots.unread")[0]["value"] >= before + 3_000_000
    logical.sql(finding["fix"])
    assert posduif.json("health")["findings"] == []


def test_pending_and_failed_migrations(posduif: Posduif, server: PgServer, tenant: str, tmp_path: Path) -> None:
    more = tmp_path / "more"
    more.mkdir()
    config = tmp_path / "c.yaml"
    config.write_text(f"migrations: {{paths: ['{more}']}}\n")
    (more / "1000_a.sql").write_text("-- migrate:up\nSELECT 1/0;\n")
    options = ("--config", str(config))
    report = posduif.json("health", tenant, *options)
    [finding] = about(report, "schema.*", tenant)
    assert (finding["level"], finding["value"], report["status"]) == ("warning", 1, "warning")
    assert finding["check"] == "schema.behind"
    assert finding["message"] == "1 migration pending"
    assert finding["fix"] == f"posduif migrate up {tenant} --config {config}"
    posduif("migrate", "up", tenant, *options, code=7)
    report = posduif.json("health", tenant, *options, code=1)
    [finding] = about(report, "schema.*", tenant)
    assert finding["check"] == "schema.failed"
    assert (finding["level"], report["status"]) == ("critical", "critical")
    assert "1000" in finding["message"]
    assert "22012" in finding["message"]
    (more / "1000_a.sql").write_text("-- migrate:up\nSELECT 1;\n")
    posduif("migrate", "up", tenant, *options)
    assert posduif.json("health", tenant, *options)["status"] == "ok"


def test_a_lost_server_is_critical_and_the_rest_is_reported(
    posduif: Posduif, server: PgServer, tenant: str, tmp_path: Path, clean_environ: pytest.MonkeyPatch
) -> None:
    clean_environ.delenv("POSDUIF_DSN")
    config = tmp_path / "c.yaml"
    servers = {"up1": {"dsn": server.dsn}, "down1": {"dsn": f"host={tmp_path}/nobody user=x"}}
    config.write_text(json.dumps({"servers": servers}))
    report = deep(posduif, "--config", str(config), "-o", "json").json
    [finding] = about(report, "*.reach", "down1")
    assert (finding["level"], finding["scope"], report["status"]) == ("critical", "server", "critical")
    assert {row["server"]: row["reachable"] for row in report["servers"]} == {"up1": True, "down1": False}
    assert report["coverage"]["servers"] == 1
    assert report["tenants"]["active"] >= 1
    assert report["coverage"]["visited"] >= 1
    # A tenant by name is asked for where it is; the lost server has no part in it.
    assert posduif.json("health", tenant, "--config", str(config))["status"] == "ok"
    config.write_text(json.dumps({"servers": {"down1": servers["down1"]}}))
    report = posduif.json("health", "--config", str(config), code=1)
    assert (report["status"], report["tenants"], report["coverage"]["servers"]) == ("critical", {}, 0)


def test_an_unknown_tenant_is_not_found(posduif: Posduif, name: str) -> None:
    assert posduif("health", name, "-o", "json", code=4).error["code"] == "tenant_not_found"
    assert posduif("health", "Not A Name", "-o", "json", code=2).out == ""


@dataclass(frozen=True)
class Slippery(Fleet):
    """A fleet of which a tenant is dropped right after it was listed."""

    victim: tuple[PgServer, Posduif, str] | None = None

    def list_on(self, session: Session, *, name: str | None = None, sizes: bool = False) -> list[Tenant]:
        found = super().list_on(session, name=name, sizes=sizes)
        assert self.victim is not None
        server, posduif, victim = self.victim
        if server.sql("SELECT 1 FROM pg_database WHERE datname = %s", victim):
            posduif("tenant", "drop", victim, "--confirm", victim)
        return [tenant for tenant in found if tenant.tenant == victim]


@pytest.mark.parametrize("named", [False, True])
def test_a_tenant_dropped_in_between_is_no_finding(
    posduif: Posduif, server: PgServer, tenant: str, named: bool
) -> None:
    # With a share of one connection a deep report takes no lock, which another worker's may have.
    alone = Server("one", server.dsn, max_connections=1)
    fleet = Slippery((alone,), "health", victim=(server, posduif, tenant))
    if named:
        with pytest.raises(TenantNotFound):
            health.report(fleet, tenants=[tenant])
    else:
        report = health.report(fleet, depth=Depth(deep=True))
        assert [finding for finding in report.findings if finding.scope == "tenant"] == []
        assert report.tenants == ()
        assert report.coverage["tenants"] == report.coverage["visited"] == 0


@pytest.mark.one_server
def test_a_table_that_is_locked_does_not_hold_the_report_up(posduif: Posduif, server: PgServer, tenant: str) -> None:
    with server.connect(tenant) as conn, conn.transaction():
        conn.execute("LOCK TABLE messages IN ACCESS EXCLUSIVE MODE")
        started = datetime.now(UTC)
        report = posduif.json("health", tenant)
        assert datetime.now(UTC) - started < timedelta(seconds=30)
        pid = conn.info.backend_pid
    [finding] = about(report, "*.reach", tenant)
    assert finding["level"] == "unknown"
    assert f"no answer about messages: locked by pid {pid} (" in finding["message"]
    assert report["status"] == "unknown", "unknown is never shown as fine"
    assert (report["coverage"]["visited"], report["coverage"]["failed"]) == (0, 1)
    [row] = report["tenants"]
    assert (row["messages"], row["users"]) == (None, 1)
    assert report["findings"] == [finding]


STATES = {
    "suspended": ("ok", None),
    "provisioning": ("warning", "posduif tenant create {t}"),
    "moving": ("warning", "posduif tenant show {t}"),
    "moved": ("warning", "posduif tenant show {t}"),
    "restoring": ("warning", "posduif tenant show {t}"),
    "dropping": ("warning", "posduif tenant drop {t} --confirm {t}"),
}


@pytest.mark.parametrize("state", STATES)
def test_states_that_are_wrong_and_one_that_is_not(posduif: Posduif, server: PgServer, tenant: str, state: str) -> None:
    """What another command has under way is never advised to be dropped."""
    level, fix = STATES[state]
    [(comment,)] = server.sql(
        "SELECT shobj_description(oid, 'pg_database') FROM pg_database WHERE datname = %s", tenant
    )
    changed = comment.replace('"active"', f'"{state}"')
    assert changed != comment
    server.sql(f"COMMENT ON DATABASE {tenant} IS '{changed}'")
    report = posduif.json("health", tenant)
    assert report["status"] == level
    assert report["tenants"][0]["state"] == state
    assert [row["state"] for row in posduif.json("tenant", "list") if row["tenant"] == tenant] == [state]
    told = [finding["fix"] for finding in about(report, "tenant.state", tenant)]
    assert told == ([fix.format(t=tenant)] if fix else [])
    if state == "suspended":
        return
    refused = posduif("user", "create", tenant, "x", "--type", "web", "-o", "json", code=5).error
    assert refused["try"] == told, "errors, health and verify say the same"
    halves = [f["fix"] for f in posduif.json("tenant", "verify", "--all", code=None) if f["subject"] == tenant]
    assert halves == ([] if state == "moved" else told)
    if state in ("moving", "moved", "restoring"):
        posduif(*told[0].split()[1:])


def test_a_lost_tenant_is_to_be_rescued_first(posduif: Posduif, server: PgServer, tenant: str) -> None:
    server.sql(f"DROP DATABASE {tenant}")
    report = posduif.json("health", tenant, code=1)
    [finding] = about(report, "tenant.state", tenant)
    assert (finding["level"], report["tenants"][0]["state"]) == ("critical", "lost")
    refused = posduif("user", "list", tenant, "-o", "json", code=5).error["try"]
    assert finding["fix"] == refused[0]
    assert "drop" not in refused[0]
    words, _, command = finding["fix"].partition(": ")
    assert words == f"restore its database {tenant}, then"
    server.sql(f"CREATE DATABASE {tenant}")
    posduif(*command.split()[1:])
    assert posduif.json("health", tenant)["status"] == "ok"


def test_a_fix_names_its_server_where_there_are_several(
    posduif: Posduif, server: PgServer, tenant: str, own_server: PgServer, tmp_path: Path,
    clean_environ: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    clean_environ.delenv("POSDUIF_DSN")
    config = tmp_path / "c.yaml"
    servers = {"first": {"dsn": own_server.dsn}, "far": {"dsn": server.dsn}}
    config.write_text(json.dumps({"servers": servers, "default_server": "first"}))
    clean_environ.setenv("POSDUIF_CONFIG", str(config))
    server.sql(f"ALTER DATABASE {tenant} OWNER TO postgres")
    [fix] = [f["fix"] for f in posduif.json("tenant", "verify", "--all", code=None) if f["subject"] == tenant]
    [finding] = about(posduif.json("health", code=1), "tenant.state", tenant)
    assert finding["fix"] == fix == f"posduif tenant adopt {tenant} --server far"
    posduif(*fix.split()[1:])
    server.sql("DELETE FROM schema_migrations WHERE version = '0003'", database=tenant)
    found = [f for f in posduif.json("tenant", "verify", tenant, code=1) if f["level"] == "critical"]
    assert {f["fix"] for f in found} == {f"posduif tenant verify {tenant} --repair --server far"}
    found = [f for f in posduif.json("migrate", "verify", tenant, code=None) if f["check"] == "files.differ"]
    posduif(*found[0]["fix"].split()[1:]) if found[0]["fix"] else None
    posduif(*f"tenant verify {tenant} --repair --server far".split())
    [finding] = about(posduif.json("health", tenant), "schema.behind", tenant)
    assert finding["fix"] == f"posduif migrate up {tenant} --server far"
    posduif(*finding["fix"].split()[1:], code=None)
    # SQL and machines take no such option.
    server.sql(f"GRANT CONNECT ON DATABASE {tenant} TO posduif_engine")
    found = [f for f in posduif.json("tenant", "verify", tenant, code=1) if "posduif_engine" in f["message"]]
    assert found[0]["fix"] == f"REVOKE ALL ON DATABASE {tenant} FROM posduif_engine;"


def test_connections_in_reserve_are_not_free(run_on: Callable[[PgServer], Posduif]) -> None:
    with private(max_connections="100", reserved_connections="60", superuser_reserved_connections="5") as server:
        posduif = run_on(server)
        report = posduif.json("health")
        [row] = report["servers"]
        assert row["max_connections"] == 35
        with connect.connect(Server("one", server.dsn), "postgres", command="test") as session:
            used = session.value("SELECT sum(numbackends)::int FROM pg_stat_database")
            assert run.free_connections(session) == 35 - used
        [room] = [f for f in posduif.json("server", "init", code=None) if f["check"] == "server.connections"]
        assert "75 in reserve" in room["message"]
        assert posduif.json("server", "list")[0]["max_connections"] == 100, "the setting"


def test_each_format_says_the_same(posduif: Posduif, server: PgServer, tenant: str) -> None:
    server.sql("INSERT INTO sync_metadata (device_id, sync_status) VALUES ('d1', 'error')", database=tenant)
    tsv = posduif("health", tenant, "-o", "tsv").out.splitlines()
    assert set(tsv[0].split("\t")) == FINDING
    assert len(tsv) - 1 == len(posduif.json("health", tenant)["findings"])
    table = posduif("health", tenant, "-o", "table").out
    assert "warning" in table
    assert tenant in table
    assert "1 of 1 tenant was visited" in table
    assert "idx_sync_metadata_lsn" not in table
    assert "idx_sync_metadata_lsn" in posduif("health", tenant, "-o", "table", "--verbose").out
    [line] = posduif("health", tenant, "-o", "jsonl").out.splitlines()
    assert (json.loads(line)["check"], set(json.loads(line))) == ("sync.failed", FINDING)


def test_a_report_changes_nothing(posduif: Posduif, server: PgServer, tenant: str) -> None:
    """A login that may only read still gets its report, and the record stays as it is."""
    before = server.sql("SELECT shobj_description(oid, 'pg_database') FROM pg_database WHERE datname = %s", tenant)
    server.sql(f"ALTER DATABASE {tenant} SET default_transaction_read_only = on")
    assert posduif.json("health", tenant)["status"] == "ok"
    after = server.sql("SELECT shobj_description(oid, 'pg_database') FROM pg_database WHERE datname = %s", tenant)
    assert after == before


@pytest.mark.parametrize(("share", "level"), [(0.5, "ok"), (0.75, "warning"), (0.9, "critical")])
def test_connections_have_two_thresholds(share: float, level: str) -> None:
    from posduif_cli.models.checks import ServerHealth

    figures = ServerHealth("s", True, "18", int(share * 100), 100, 0, 0, None)
    nothing = ServerFacts(ServerHealth("s", True))
    assert list(cluster.connections(nothing)) == [], "what was not answered is not judged"
    [finding] = cluster.connections(ServerFacts(figures))
    assert finding.level == Level(level)
    slots: Sequence[dict[str, Any]] = [
        {"slot": "a", "database": "acme", "active": True, "logical": True, "lost": False, "retained_bytes": kept}
        for kept in (None, 1024**3 - 1, 1024**3, 5 * 1024**3)
    ]
    found = [finding.level.value for finding in cluster.slots(ServerFacts(figures, {"list_slots": slots}))]
    assert found == ["ok", "ok", "warning", "critical"]
    limited = {"list_slots": slots[1:3], "slot_limit": [{"mib": 1200}]}
    worst = [f.level.value for f in cluster.slots(ServerFacts(figures, limited)) if f.level is not Level.OK]
    assert worst == ["critical", "warning", "critical"]


def test_checks_are_listed_explained_and_chosen(posduif: Posduif, server: PgServer, tenant: str) -> None:
    listed = {each["check"]: each for each in posduif.json("health", "--list-checks")}
    assert {"connections.full", "schema.behind", "backup.old", "copies.aside", "engine.answer"} <= set(listed)
    assert listed["connections.full"]["threshold"] == "0.75 / 0.9"
    assert listed["connections.full"]["origin"] == "default"
    assert posduif.json("health", "--explain", "slots.retained")["explanation"].startswith("A slot keeps")
    assert {each["check"][:7] for each in posduif.json("health", "--explain", "backup")} == {"backup."}
    server.sql("INSERT INTO sync_metadata (device_id, sync_status) VALUES ('d1', 'error')", database=tenant)
    server.sql(
        "UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'idx_messages_status'::regclass", database=tenant
    )

    def found(*options: str) -> list[str]:
        return sorted(each["check"] for each in posduif.json("health", tenant, *options)["findings"])

    assert found() == ["index.invalid", "sync.failed"]
    assert found("--only", "sync", "--only", "connections.full") == ["sync.failed"]
    assert found("--skip", "sync") == ["index.invalid"]
    assert found("--only", "index", "--skip", "index.invalid") == []
    for option in ("--only", "--skip", "--explain"):
        error = posduif("health", option, "nosuch", "-o", "json", code=2).error
        assert "connections.full" in error["why"]


def test_what_is_a_failure_is_chosen(posduif: Posduif, server: PgServer, tenant: str) -> None:
    posduif("health", tenant, "--fail-on", "unknown")
    server.sql(f"""DO $$BEGIN EXECUTE format('COMMENT ON DATABASE {tenant} IS %L',
        replace(shobj_description((SELECT oid FROM pg_database WHERE datname = '{tenant}'), 'pg_database'),
                '"active"', '"moving"')); END$$""")
    posduif("health", tenant)
    posduif("health", tenant, "--fail-on", "warning", code=1)
    posduif("health", tenant, "--fail-on", "unknown")
    posduif("health", tenant, "--fail-on", "never", code=2)
