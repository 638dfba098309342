"""What a session in a tenant's database sees: each fault is made in a real one and found, and is gone when repaired."""

import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest

from support.findings import deep
from support.runner import Posduif
from support.servers import PgServer
from support.tenants import forget, note, user

NOW = "(now() AT TIME ZONE 'UTC')"


def findings(posduif: Posduif, tenant: str, *options: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = posduif.json("health", tenant, *options, code=None)["findings"]
    return found


def only(posduif: Posduif, tenant: str, check: str, level: str) -> dict[str, Any]:
    """Return the one finding on a tenant, which is of this check and level."""
    [finding] = findings(posduif, tenant)
    assert (finding["check"], finding["level"], finding["affected"]) == (check, level, [tenant])
    return finding


def run(posduif: Posduif, command: str) -> None:
    """Run a fix as it is pasted."""
    assert command.startswith("posduif ")
    posduif(*command.replace("'", "").split()[1:])


@pytest.mark.parametrize(("unique", "level"), [("UNIQUE", "critical"), ("", "warning")])
def test_an_invalid_index(posduif: Posduif, server: PgServer, tenant: str, unique: str, level: str) -> None:
    server.sql(
        "INSERT INTO sync_metadata (device_id, sync_status) VALUES ('a', 'idle'), ('b', 'idle')", database=tenant
    )
    # Both are left invalid, each by an error that comes after the index was made.
    column = "sync_status" if unique else "(1 / (length(device_id) - 1))"
    with pytest.raises(psycopg.Error):
        server.sql(f"CREATE {unique} INDEX CONCURRENTLY broken ON sync_metadata ({column})", database=tenant)
    finding = only(posduif, tenant, "index.invalid", level)
    assert finding["message"] == "index broken is invalid"
    server.sql("DELETE FROM sync_metadata", database=tenant)
    server.sql(finding["fix"], database=tenant)
    assert findings(posduif, tenant) == []


def test_dead_rows_that_nothing_removes(posduif: Posduif, server: PgServer, tenant: str) -> None:
    who = user(server, tenant, device_id="d1")
    server.sql("ALTER TABLE messages SET (autovacuum_enabled = false)", database=tenant)
    server.sql(
        f"""INSERT INTO messages (sender_id, recipient_id, content)
            SELECT '{who}', '{who}', 'm' FROM generate_series(1, 11000)""",
        database=tenant,
    )
    server.sql("DELETE FROM messages", database=tenant)
    with server.connect(tenant) as conn:
        conn.execute("SELECT pg_stat_force_next_flush()")
    server.sql("ALTER TABLE messages RESET (autovacuum_enabled)", database=tenant)
    found = findings(posduif, tenant)
    assert [f["level"] for f in found if f["check"] == "rows.dead"] in (["warning"], []), "autovacuum is on its way"
    if not found:  # it was there already
        return
    server.sql("ALTER TABLE messages SET (autovacuum_enabled = false)", database=tenant)
    finding = only(posduif, tenant, "rows.dead", "critical")
    assert "table messages has 11000 dead rows" in finding["message"]
    with server.connect(tenant) as conn, conn.transaction():
        conn.execute("LOCK TABLE messages IN SHARE UPDATE EXCLUSIVE MODE")  # as VACUUM holds it
        assert findings(posduif, tenant) == []
    server.sql(finding["fix"], database=tenant)
    assert findings(posduif, tenant) == []


def test_a_trigger_and_a_foreign_key_that_are_switched_off(posduif: Posduif, server: PgServer, tenant: str) -> None:
    server.sql("ALTER TABLE messages DISABLE TRIGGER update_messages_synced_at", database=tenant)
    finding = only(posduif, tenant, "trigger.disabled", "warning")
    assert finding["message"] == "trigger update_messages_synced_at of table messages is switched off"
    server.sql(finding["fix"], database=tenant)
    assert findings(posduif, tenant) == []
    server.sql("ALTER TABLE messages DISABLE TRIGGER ALL", database=tenant)
    finding = only(posduif, tenant, "trigger.disabled", "warning")
    assert finding["message"].startswith("foreign keys of table messages are not checked")
    server.sql(finding["fix"].partition(": ")[2], database=tenant)
    assert findings(posduif, tenant) == []
    server.sql(
        """CREATE FUNCTION theirs() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';
           CREATE TRIGGER theirs BEFORE UPDATE ON users FOR EACH ROW EXECUTE FUNCTION theirs();
           ALTER TABLE users DISABLE TRIGGER theirs""",
        database=tenant,
    )
    finding = only(posduif, tenant, "trigger.disabled", "warning")
    assert finding["fix"].endswith(f": posduif tenant verify {tenant}"), "foreign code is not advised to be run"


def test_rights_that_differ(posduif: Posduif, server: PgServer, tenant: str) -> None:
    server.sql("REVOKE SELECT ON messages FROM posduif_engine", database=tenant)
    finding = only(posduif, tenant, "grants.differ", "critical")
    run(posduif, finding["fix"])
    assert findings(posduif, tenant) == []


def test_rights_of_a_tenant_that_is_behind_are_told_by_its_version(
    posduif: Posduif, server: PgServer, tenant: str
) -> None:
    posduif("migrate", "down", tenant, "--to", "0003", "--bundled", "--confirm", tenant)
    server.sql("REVOKE SELECT (updated_at) ON messages FROM posduif_health", database=tenant)
    finding = only(posduif, tenant, "schema.behind", "warning")
    run(posduif, finding["fix"])
    assert findings(posduif, tenant) == []


@pytest.mark.parametrize("version", ["0001", "0002"])
def test_a_tenant_of_an_older_schema_is_asked_what_it_can_answer(
    posduif: Posduif, server: PgServer, tenant: str, version: str
) -> None:
    posduif("migrate", "down", tenant, "--to", version, "--bundled", "--confirm", tenant)
    server.sql("INSERT INTO sync_metadata (device_id, sync_status) VALUES ('d1', 'error')", database=tenant)
    assert {f["check"] for f in findings(posduif, tenant)} == {"schema.behind", "sync.failed"}


def send(server: PgServer, tenant: str, recipient: Any, **columns: str) -> None:
    """Write a message as an engine does; a column's value is SQL."""
    names = ", ".join(columns)
    server.sql(
        f"""INSERT INTO messages (sender_id, recipient_id, content, {names})
            VALUES ('{recipient}', '{recipient}', 'm', {", ".join(columns.values())})""",
        database=tenant,
    )


def test_a_phone_that_has_fetched_nothing_for_long(posduif: Posduif, server: PgServer, tenant: str) -> None:
    phone, off = user(server, tenant, device_id="silent"), user(server, tenant, device_id="off")
    send(server, tenant, phone, updated_at=f"{NOW} - interval '20 days'")
    send(server, tenant, phone, updated_at=f"{NOW} - interval '1 hour'")
    send(server, tenant, off, updated_at=f"{NOW} - interval '13 days'")
    finding = only(posduif, tenant, "device.silent", "info")
    assert (finding["value"], finding["unit"]) == (20, "days")
    assert "device silent has fetched nothing for 20 days; 2 messages wait for it" in finding["message"]
    run(posduif, finding["fix"])
    assert posduif.json("health", tenant)["status"] == "info"
    server.sql("UPDATE messages SET status = 'synced' WHERE recipient_id = %s", phone, database=tenant)
    assert findings(posduif, tenant) == []


@pytest.mark.parametrize(
    ("column", "level"), [("created_at", "info"), ("updated_at", "warning")], ids=["a sender's", "the server's"]
)
def test_times_in_the_future(posduif: Posduif, server: PgServer, tenant: str, column: str, level: str) -> None:
    desk = server.sql("SELECT id FROM users WHERE username = 'desk'", database=tenant)[0][0]
    send(server, tenant, desk, **{column: f"{NOW} + interval '4 minutes'"})
    assert findings(posduif, tenant) == []
    send(server, tenant, desk, **{column: f"{NOW} + interval '9 hours'"})
    finding = only(posduif, tenant, "clock.skew", level)
    assert finding["message"].endswith((": 540 min", ": 539 min"))
    server.sql("DELETE FROM messages", database=tenant)
    assert findings(posduif, tenant) == []


@pytest.mark.one_server
def test_messages_to_web_users_are_no_backlog(posduif: Posduif, server: PgServer, tenant: str) -> None:
    desk = server.sql("SELECT id FROM users WHERE username = 'desk'", database=tenant)[0][0]
    send(server, tenant, desk, updated_at=f"{NOW} - interval '90 days'")
    [row] = posduif.json("health", tenant)["tenants"]
    assert (row["messages"], row["pending_sync"]) == (1, 0)
    assert findings(posduif, tenant) == []


def test_tokens_that_nothing_purges(posduif: Posduif, server: PgServer, tenant: str) -> None:
    posduif("token", "create", tenant, "-o", "json")
    server.sql(f"UPDATE enrollment_tokens SET expires_at = {NOW} - interval '29 days'", database=tenant)
    assert findings(posduif, tenant) == []
    server.sql(f"UPDATE enrollment_tokens SET expires_at = {NOW} - interval '40 days'", database=tenant)
    finding = only(posduif, tenant, "tokens.overdue", "warning")
    assert (finding["value"], finding["unit"], finding["threshold"]) == (40, "days", "30 / never")
    run(posduif, finding["fix"])
    assert findings(posduif, tenant) == []


@pytest.mark.parametrize(("offset", "level"), [("9 hours", "critical"), ("-5 minutes", "warning"), ("2 seconds", None)])
def test_an_engine_s_clock(posduif: Posduif, server: PgServer, tenant: str, offset: str, level: str | None) -> None:
    issued = posduif.json("token", "create", tenant)
    posduif("enroll", "complete", tenant, issued["token"], "--device", "d1", "--username", "Ann")
    assert findings(posduif, tenant) == []
    server.sql(
        f"UPDATE users SET enrolled_at = enrolled_at + interval '{offset}' WHERE device_id = 'd1'", database=tenant
    )
    if level is None:
        assert findings(posduif, tenant) == []
    else:
        finding = only(posduif, tenant, "engine.clock", level)
        assert {"9 hours": "9.0 h ahead", "-5 minutes": "300 s behind"}[offset] in finding["message"]


def test_a_phone_that_lost_its_user_and_a_web_user_with_a_phone(
    posduif: Posduif, server: PgServer, tenant: str
) -> None:
    for device in ("first", "second"):
        issued = posduif.json("token", "create", tenant)
        posduif("enroll", "complete", tenant, issued["token"], "--device", device, "--username", f"Joe {device}")
    # The engine gives a user whose name is typed again to the new phone.
    server.sql("DELETE FROM users WHERE device_id = 'second'", database=tenant)
    server.sql("UPDATE users SET device_id = 'second' WHERE device_id = 'first'", database=tenant)
    finding = only(posduif, tenant, "device.displaced", "warning")
    assert finding["message"] == "device first has lost its user to another phone"
    server.sql("UPDATE users SET device_id = 'third' WHERE username = 'desk'", database=tenant)
    [finding] = findings(posduif, tenant)
    assert finding["message"].endswith("(and 1 more)"), "one finding per cause"
    server.sql("UPDATE users SET device_id = NULL WHERE username = 'desk'", database=tenant)
    posduif("device", "remove", tenant, "second")
    [finding] = findings(posduif, tenant)
    assert finding["message"] == "device first has lost its user to another phone"
    run(posduif, finding["fix"].partition(": ")[2])
    assert findings(posduif, tenant) == []
    assert [row["device_id"] for row in posduif.json("device", "list", tenant)] == []


def test_a_phone_that_is_replaced_on_purpose_is_no_finding(posduif: Posduif, server: PgServer, tenant: str) -> None:
    for device, more in (("old", ()), ("new", ("--replace-device",))):
        issued = posduif.json("token", "create", tenant)
        posduif("enroll", "complete", tenant, issued["token"], "--device", device, "--username", "Ann", *more)
    posduif("device", "remove", tenant, "new")
    assert findings(posduif, tenant) == []


@pytest.fixture
def fleet(posduif: Posduif, server: PgServer, name: str) -> Iterator[list[str]]:
    """Three tenants, whose names only this test knows."""
    names = [f"{name}_{letter}" for letter in "abc"]
    for each in names:
        posduif("tenant", "create", each)
    yield names
    for each in names:
        forget(server, each)


def test_an_index_that_repeats_another_is_told_once_for_all(
    posduif: Posduif, server: PgServer, fleet: list[str]
) -> None:
    index = "CREATE INDEX mine ON messages (sender_id, id); CREATE INDEX mine_too ON messages (sender_id, id)"
    server.sql(index, database=fleet[0])
    assert posduif.json("health", *fleet)["findings"] == [], "of one tenant it is no matter of the schema"
    for each in fleet[1:]:
        server.sql(index, database=each)
    [finding] = posduif.json("health", *fleet)["findings"]
    assert (finding["check"], finding["level"], finding["affected"]) == ("index.redundant", "info", fleet)
    assert finding["message"].startswith("index mine_too of table messages repeats mine, in ")
    assert finding["scope"] == "server"
    for each in fleet:
        server.sql("DROP INDEX mine_too", database=each)
    assert posduif.json("health", *fleet)["findings"] == []


def test_an_index_that_no_tenant_uses(posduif: Posduif, server: PgServer, fleet: list[str]) -> None:
    for each in fleet:
        who = user(server, each, device_id="d1")
        server.sql("CREATE INDEX mine ON messages (content, id, sender_id, created_at)", database=each)
        server.sql(
            f"""INSERT INTO messages (sender_id, recipient_id, content, status)
                SELECT '{who}', '{who}',
                       (SELECT string_agg(md5(n::text || i), '') FROM generate_series(1, 20) i), 'synced'
                FROM generate_series(1, 6000) n""",
            database=each,
        )
        server.sql("VACUUM (ANALYZE) messages", database=each)
    assert posduif.json("health", *fleet)["findings"] == [], "tenants of today say nothing of an index"
    long_ago = (datetime.now(UTC) - timedelta(days=40)).isoformat()
    for each in fleet:
        note(server, each, created=long_ago)
    [finding] = posduif.json("health", *fleet)["findings"]
    assert (finding["check"], finding["level"], finding["affected"]) == ("index.unused", "info", fleet)
    assert "index mine of table messages" in finding["message"]
    assert finding["value"] >= 10 * 1024**2
    server.sql("SET enable_seqscan = off; SELECT 1 FROM messages WHERE content = 'x'", database=fleet[0])
    with server.connect(fleet[0]) as conn:
        conn.execute("SELECT pg_stat_force_next_flush()")
    assert posduif.json("health", *fleet)["findings"] == [], "one tenant of three is more than a twentieth"


def test_the_same_in_many_tenants_is_one_finding_with_one_command(
    posduif: Posduif, server: PgServer, fleet: list[str]
) -> None:
    for number, each in enumerate(fleet):
        posduif("migrate", "down", each, "--to", "0003", "--bundled", "--confirm", each)
        for device in range(number + 1):
            server.sql(
                "INSERT INTO sync_metadata (device_id, sync_status) VALUES (%s, 'error')", str(device), database=each
            )
    found = {f["check"]: f for f in posduif.json("health", *fleet)["findings"]}
    assert set(found) == {"schema.behind", "sync.failed"}
    behind, failed = found["schema.behind"], found["sync.failed"]
    listed = ", ".join(fleet)
    assert behind["message"] == f"3 of 3 tenants: 1 migration pending ({listed})"
    assert (behind["subject"], behind["affected"]) == (fleet[0], fleet)
    assert failed["message"] == f"3 of 3 tenants: devices with a synchronisation error ({listed})"
    assert failed["value"] == 3, "the worst"
    run(posduif, behind["fix"])
    assert {f["check"] for f in posduif.json("health", *fleet)["findings"]} == {"sync.failed"}


@pytest.mark.one_server
def test_thresholds_and_switches_of_the_configuration(
    posduif: Posduif, server: PgServer, tenant: str, tmp_path: Any, clean_environ: pytest.MonkeyPatch
) -> None:
    posduif("token", "create", tenant, "-o", "json")
    server.sql(f"UPDATE enrollment_tokens SET expires_at = {NOW} - interval '40 days'", database=tenant)
    config = tmp_path / "c.yaml"

    def levels(checks: dict[str, Any], here: dict[str, Any] | None = None) -> list[tuple[str, str]]:
        servers = {"one": {"dsn": server.dsn, "checks": here or {}}}
        config.write_text(json.dumps({"servers": servers, "checks": checks}))
        report = posduif.json("health", tenant, "--config", str(config), code=None)
        return [(f["check"], f["level"]) for f in report["findings"]]

    clean_environ.delenv("POSDUIF_DSN")
    check = "tokens.overdue"
    assert levels({}) == [(check, "warning")]
    assert levels({check: {"warning": "50d"}}) == []
    assert levels({check: {"critical": "40d"}}) == [(check, "critical")]
    assert levels({check: {"critical": "40d"}}, {check: {"critical": "41d"}}) == [(check, "warning")]
    assert levels({check: {"off": True}}) == []
    assert levels({check: {"off": True}}, {check: {"off": False}}) == [(check, "warning")]
    assert levels({}, {check: {"off": True}}) == []
    report = posduif.json("health", tenant, "--config", str(config))
    assert report["skipped"][check] == "it is switched off in the configuration"


@pytest.mark.one_server
def test_a_threshold_of_a_server_is_judged_with_that_of_all(
    posduif: Posduif, server: PgServer, tmp_path: Any, clean_environ: pytest.MonkeyPatch
) -> None:
    clean_environ.delenv("POSDUIF_DSN")
    config, check = tmp_path / "c.yaml", "connections.full"
    servers = {"one": {"dsn": server.dsn, "checks": {check: {"warning": "90%"}}}}
    config.write_text(json.dumps({"servers": servers, "checks": {check: {"warning": "1%", "critical": "2%"}}}))
    error = posduif("health", "--config", str(config), "-o", "json", code=3).error
    assert "the warning comes after what is critical: 0.9 / 0.02" in error["message"]
    assert f"{config}:1" in error["message"]


@pytest.mark.parametrize(
    ("fault", "why"),
    [
        ("REVOKE CONNECT ON DATABASE {t} FROM {t}_engine", "has no right to connect"),
        ("ALTER ROLE {t}_engine CONNECTION LIMIT 0", "may have no connection"),
        ("ALTER ROLE {t}_engine VALID UNTIL '2020-01-01'", "password is no longer valid"),
        ("SET ROLE posduif_admin; REVOKE posduif_engine FROM {t}_engine", "is not in posduif_engine"),
        ("DROP OWNED BY {t}_engine; DROP ROLE {t}_engine", "is missing"),
    ],
)
def test_an_engine_that_is_kept_out(posduif: Posduif, server: PgServer, tenant: str, fault: str, why: str) -> None:
    server.sql(fault.format(t=tenant))
    finding = only(posduif, tenant, "tenant.state", "critical")
    assert why in finding["message"]
    if finding["fix"].startswith("posduif"):
        run(posduif, finding["fix"])
    else:
        server.sql(finding["fix"])
    assert findings(posduif, tenant) == []


WRONG = {
    "connections.ful": ({"warning": 1}, 'did you mean "connections.full"?'),
    "settings.unsafe": ({"warning": 1}, "off: true"),
    "connections.full": ({"warning": "99%"}, None),
    "backup.old": ({"warning": "3GiB"}, None),
    "slots.retained": ({"warning": True}, None),
    "connections.role": ({"warning": 80, "critical": 95}, None),
    "nonsense": ({"warning": 1}, "posduif health --list-checks"),
}


@pytest.mark.parametrize("check", WRONG)
@pytest.mark.one_server
def test_a_wrong_threshold_is_refused_with_its_line(
    posduif: Posduif, tmp_path: Any, check: str, clean_environ: pytest.MonkeyPatch
) -> None:
    given, hint = WRONG[check]
    config = tmp_path / "c.yaml"
    config.write_text(f"checks:\n  {check}: {json.dumps(given)}\n")
    error = posduif("health", "--config", str(config), "-o", "json", code=3).error
    assert f"{config}:2" in error["message"]
    assert hint is None or error["try"][0].startswith(hint)


@pytest.mark.one_server
def test_the_origin_of_a_threshold_is_told(
    posduif: Posduif, server: PgServer, tmp_path: Any, clean_environ: pytest.MonkeyPatch
) -> None:
    clean_environ.delenv("POSDUIF_DSN")
    config = tmp_path / "c.yaml"
    config.write_text(
        f"servers:\n  one:\n    dsn: {server.dsn!r}\n    checks:\n      connections.full: {{warning: 50%}}\n"
        "checks:\n  connections.full:\n    critical: 0.95\n"
    )
    told = posduif.json("health", "--explain", "connections.full", "--config", str(config))
    assert (told["threshold"], told["unit"]) == ("0.75 / 0.95", "ratio")
    assert told["origin"] == f"{config}:8; on one 0.5 / 0.95 by {config}:5"


def test_a_deep_report_visits_all_and_one_at_a_time_runs(posduif: Posduif, server: PgServer, fleet: list[str]) -> None:
    server.sql("INSERT INTO sync_metadata (device_id, sync_status) VALUES ('d1', 'error')", database=fleet[2])
    assert fleet[2] not in posduif("health", code=None).out, "the default report visits none"
    report = deep(posduif, "-o", "json").json
    [affected] = [f["affected"] for f in report["findings"] if f["check"] == "sync.failed"]
    assert (fleet[2] in affected, fleet[1] in affected) == (True, False)
    assert report["coverage"]["visited"] >= 3
    with server.connect() as conn:
        from posduif_cli.db.session import HEALTH_CLASS

        conn.execute("SELECT pg_advisory_lock(%s, hashtext('health --deep'))", [HEALTH_CLASS])
        error = posduif("health", "--deep", "-o", "json", code=10).error
        assert f"pid {conn.info.backend_pid}" in error["why"]
        assert posduif("health", "--deep", "-o", "nagios", code=3).out.startswith(
            "POSDUIF UNKNOWN - another deep report"
        )
        posduif("health", code=None)
        posduif("health", fleet[0])


@pytest.mark.one_server
def test_a_budget_leaves_tenants_out_and_says_so(posduif: Posduif, server: PgServer, fleet: list[str]) -> None:
    covered = deep(posduif, "--probe", "--budget", "1ms", "-o", "json").json["coverage"]
    assert covered["tenants"] >= 3
    assert covered["skipped"] >= covered["tenants"] - 4, "those under way are finished"
    assert covered["visited"] + covered["skipped"] + covered["failed"] == covered["tenants"]
    assert covered["left_out"] >= 3
    for form in ("table", "nagios", "html"):
        assert "left out by the budget" in deep(posduif, "--budget", "1ms", "-o", form).out
    posduif("health", "--budget", "0s", code=2)


def test_a_login_of_health_finds_the_same_but_for_what_an_administrator_compares(
    posduif: Posduif, server: PgServer, tenant: str, run_on: Callable[..., Posduif]
) -> None:
    login = f"{tenant}_eye"
    server.sql(f"CREATE ROLE {login} LOGIN; GRANT posduif_health, pg_monitor TO {login}")
    try:
        phone = user(server, tenant, device_id="d1")
        server.sql("UPDATE users SET device_id = 'd2' WHERE username = 'desk'", database=tenant)
        server.sql("INSERT INTO sync_metadata (device_id, sync_status) VALUES ('d1', 'error')", database=tenant)
        send(server, tenant, phone, updated_at=f"{NOW} - interval '20 days'")
        server.sql("ALTER TABLE messages DISABLE TRIGGER update_messages_read_at", database=tenant)
        ours = findings(posduif, tenant)
        assert {f["check"] for f in ours} == {"device.silent", "device.displaced", "sync.failed", "trigger.disabled"}
        assert findings(run_on(server, user=login), tenant) == ours
    finally:
        server.sql(f"DROP OWNED BY {login}; DROP ROLE {login}")
