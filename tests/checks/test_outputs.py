"""What `posduif health` says to monitoring: exit codes, metrics, files, and reports without names."""

import json
import os
import re
import signal
import stat
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from support.runner import Posduif
from support.servers import PgServer
from support.sources import REPO
from support.tenants import forget, user
from support.terminal import on_terminal

FAULTS = {
    "warning": "INSERT INTO sync_metadata (device_id, sync_status) VALUES ('d1', 'error')",
    "critical": "UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'users_pkey'::regclass",
    "unknown": None,
}


@pytest.fixture
def eye(server: PgServer, tenant: str, run_on: Callable[..., Posduif]) -> Iterator[Callable[[], Posduif]]:
    """Makes the runner of a login that may not look into tenants."""
    server.sql(f"CREATE ROLE {tenant}_eye LOGIN; GRANT pg_monitor TO {tenant}_eye")
    yield lambda: run_on(server, user=f"{tenant}_eye")
    server.sql(f"DROP ROLE {tenant}_eye")


def report(posduif: Posduif, tenant: str, form: str, *options: str, code: int | None = None) -> tuple[int, str]:
    done = posduif("health", tenant, "-o", form, *options, code=code)
    assert done.err == ""
    return done.code, done.out


@pytest.mark.parametrize(("level", "code", "word"), [("warning", 1, "WARNING"), ("critical", 2, "CRITICAL")])
def test_nagios_gets_its_exit_codes(
    posduif: Posduif, server: PgServer, tenant: str, level: str, code: int, word: str, eye: Callable[[], Posduif]
) -> None:
    ok, out = report(posduif, tenant, "nagios")
    assert (ok, out.count("\n")) == (0, 1)
    assert out.startswith("POSDUIF OK - 1 server and 1 tenant | ")
    server.sql(FAULTS[level] or "", database=tenant)
    found, out = report(posduif, tenant, "nagios")
    first, *lines = out.splitlines()
    assert (found, first.split(" | ")[0]) == (code, f"POSDUIF {word} - 1 {level} in 1 server and 1 tenant")
    assert [line.split("]")[0] for line in lines] == [f"[{level.upper()}"]
    assert " -> " in lines[0]
    for item in re.findall(r"(?:'[^'=]+'|[^ '=]+)=\S+", first.split(" | ")[1]):
        assert re.search(r"=[0-9.]+(B|s)?;[0-9.]*;[0-9.]*;[0-9.]*(;[0-9.]*)?$", item), item
    found, out = report(eye(), tenant, "nagios")
    assert (found, out.split(" - ")[0]) == (3, "POSDUIF UNKNOWN")


@pytest.mark.one_server
def test_what_is_wrong_with_the_command_is_unknown_to_nagios(posduif: Posduif, cli: Posduif, name: str) -> None:
    for words in (
        ("health", "-o", "nagios", "--nosuch"),
        ("-o", "nagios", "health", "--nosuch"),
        ("health", "-o", "nagios", name),
        ("health", "-o", "nagios", "--only", "nosuch"),
        ("health", "-o", "nagios", "--config", "/nowhere.yaml"),
        ("health", "-o", "nagios", "Not A Name"),
        ("health", "-o", "nagios", "--budget", "soon"),
    ):
        done = posduif(*words, code=3)
        assert re.fullmatch(r"POSDUIF UNKNOWN - [^\n]+\n", done.out), words
    for words in (("tenant", "list", "-o", "nagios"), ("tenant", "show", "health", "-o", "prometheus")):
        assert "is not one of table, tsv, json, jsonl" in posduif(*words, code=2).err
    assert posduif.process("health", "--nosuch", POSDUIF_OUTPUT="nagios").code == 3
    assert posduif.process("tenant", "list", POSDUIF_OUTPUT="nagios").code == 2


def test_a_server_that_is_away_is_critical_to_nagios(cli: Posduif, tmp_path: Path) -> None:
    done = cli("health", "-o", "nagios", "--dsn", f"host={tmp_path} user=x", code=2)
    assert done.out.startswith("POSDUIF CRITICAL - 1 critical in 1 server and 0 tenants | ")


@pytest.mark.one_server
def test_nothing_that_was_not_judged_is_shown_as_fine(
    cli: Posduif, posduif: Posduif, tenant: str, tmp_path: Path
) -> None:
    away = ("--dsn", f"host={tmp_path} user=x")
    for chosen in (("--only", "connections"), ("--skip", "server.reach"), ("--only", "schema", tenant)):
        done = posduif("health", *chosen, *away, "-o", "nagios", code=2)
        assert done.out.startswith("POSDUIF CRITICAL"), chosen
    (tmp_path / "c.yaml").write_text("checks: {server.reach: {off: true}}\n")
    posduif("health", *away, "--config", str(tmp_path / "c.yaml"), "-o", "nagios", code=2)
    for words in ("--only index", "--only engine.answer", "--only index --skip index"):
        posduif("health", *words.split(), "-o", "nagios", code=3)
        posduif("health", *words.split(), code=2)
    assert posduif("health", "--only", "backup", "-o", "nagios", code=3).out.startswith("POSDUIF UNKNOWN")
    assert posduif.json("health", tenant, "--only", "index")["status"] == "ok"
    for dsn in ("rubbish", "host=/tmp password=x"):
        assert posduif("health", "--dsn", dsn, "-o", "nagios", code=3).out.startswith("POSDUIF UNKNOWN")


@pytest.mark.one_server
def test_a_question_without_an_answer_is_told_whatever_is_chosen(
    posduif: Posduif, server: PgServer, tenant: str, tmp_path: Path, clean_environ: pytest.MonkeyPatch
) -> None:
    with server.connect(tenant) as conn, conn.transaction():
        conn.execute("LOCK TABLE messages")
        for options in (("--only", "sync"), ("--skip", "tenant.reach")):
            report = posduif.json("health", tenant, *options)
            assert (report["status"], report["findings"][0]["check"]) == ("unknown", "tenant.reach"), options
    config = tmp_path / "c.yaml"
    config.write_text(json.dumps({"backup": {"dir": str(tmp_path / "gone" / "away")}}))
    for options in (("--only", "backup.old"), ("--skip", "backup.store")):
        report = posduif.json("health", tenant, "--config", str(config), *options)
        assert [f["check"] for f in report["findings"]] == ["backup.store"], options
        assert report["coverage"]["checks_failed"] >= 1
        metrics = posduif("health", tenant, "--config", str(config), *options, "-o", "prometheus").out
        assert 'check="backup.old"' not in metrics


def families(text: str) -> dict[str, Any]:
    return {family.name: family for family in text_string_to_metric_families(text)}


def test_prometheus_can_read_every_family_and_each_check_has_a_series(
    posduif: Posduif, server: PgServer, tenant: str
) -> None:
    server.sql(FAULTS["warning"] or "", database=tenant)
    for trigger in ("synced_at", "read_at"):
        server.sql(f"ALTER TABLE messages DISABLE TRIGGER update_messages_{trigger}", database=tenant)
    _, out = report(posduif, tenant, "prometheus", "--probe")
    found = families(out)
    readme = (REPO / "README.md").read_text(encoding="utf-8")
    section = readme.partition("### For monitoring")[2].partition("\n## ")[0]
    assert list(found) == re.findall(r"^- `(posduif_\w+)", section, re.MULTILINE), "as the README lists them"
    assert all(family.type == "gauge" and family.documentation for family in found.values())
    assert all(sample.timestamp is None for family in found.values() for sample in family.samples)

    def value(family: str, **labels: str) -> float:
        [sample] = [s for s in found[family].samples if labels.items() <= s.labels.items()]
        return float(sample.value)

    assert value("posduif_up") == 1
    assert value("posduif_tenants", state="active") == 1
    assert value("posduif_tenants", state="lost") == 0
    assert value("posduif_findings", check="sync.failed", level="warning") == 1
    assert value("posduif_affected_tenants", check="sync.failed", level="warning") == 1
    assert value("posduif_findings", check="schema.behind", level="warning") == 0
    assert value("posduif_findings", check="trigger.disabled", level="warning") == 2
    assert value("posduif_affected_tenants", check="trigger.disabled", level="warning") == 1
    assert value("posduif_tenant_size_bytes", tenant=tenant) > 1_000_000
    assert value("posduif_connections", what="used") < value("posduif_connections", what="allowed")
    assert value("posduif_status", level="critical") == 1, "no engine answers at its url"
    judged = {s.labels["check"] for s in found["posduif_findings"].samples}
    assert {"engine.answer", "connections.full", "index.invalid"} <= judged
    assert "backup.old" not in judged, "what was skipped has no series that says 0"
    assert len(out.encode()) < 40_000


def test_prometheus_of_a_server_that_is_away_has_all_families(cli: Posduif, tmp_path: Path) -> None:
    done = cli("health", "-o", "prometheus", "--dsn", f"host={tmp_path} user=x", code=1)
    found = families(done.out)
    assert [sample.value for sample in found["posduif_up"].samples] == [0]
    assert found["posduif_tenants"].samples == []
    assert {"posduif_connections", "posduif_tenant_size_bytes", "posduif_oldest_backup_age_seconds"} <= set(found)
    critical = [s for s in found["posduif_findings"].samples if s.value and s.labels["level"] == "critical"]
    assert [s.labels["check"] for s in critical] == ["server.reach"]


@pytest.mark.one_server
def test_a_file_is_whole_at_every_moment_and_everyone_may_read_it(
    posduif: Posduif, tenant: str, tmp_path: Path
) -> None:
    before = os.umask(0o077)
    try:
        file = tmp_path / "posduif.prom"
        posduif("health", tenant, "-o", "prometheus", "--out", str(file))
        assert stat.S_IMODE(file.stat().st_mode) == 0o644
    finally:
        os.umask(before)
    broken: list[str] = []
    stop = threading.Event()

    def watch() -> None:
        while not stop.is_set():
            text = file.read_text()
            if not text.endswith("\n") or "posduif_last_run_timestamp_seconds" not in text:
                broken.append(text)

    watcher = threading.Thread(target=watch)
    watcher.start()
    for _ in range(5):
        posduif("health", tenant, "-o", "prometheus", "--out", str(file))
    stop.set()
    watcher.join()
    assert broken == []
    assert [path.name for path in tmp_path.iterdir() if path.suffix in (".prom", ".tmp")] == ["posduif.prom"]
    for form, begins in (("json", "{"), ("tsv", "check\t"), ("html", "<!DOCTYPE html>"), ("nagios", "POSDUIF OK")):
        posduif("health", tenant, "-o", form, "--out", str(tmp_path / form))
        assert (tmp_path / form).read_text().startswith(begins)
    error = posduif("health", tenant, "-o", "prometheus", "--out", str(tmp_path / "no" / "x"), code=3).err
    assert "cannot be written" in error
    assert "a table is not written" in posduif("health", "-o", "table", "--out", str(file), code=2).err


def test_a_report_on_all_tenants_is_small(posduif: Posduif, server: PgServer, tenant: str) -> None:
    done = posduif("health", "-o", "json", code=None)
    assert len(done.out) < 20_000
    assert isinstance(done.json["tenants"], dict)
    two = f"{tenant}_b"
    posduif("tenant", "create", two)
    try:
        rows = posduif.json("health", tenant, two)["tenants"]
        assert [(row["tenant"], row["state"], "tables" in row) for row in rows] == [
            (tenant, "active", False), (two, "active", False)
        ]  # fmt: skip
        assert "tables" in posduif.json("health", tenant)["tenants"][0]
    finally:
        forget(server, two)


@pytest.mark.parametrize("form", ["json", "jsonl", "html", "prometheus", "nagios", "tsv", "table"])
@pytest.mark.one_server
def test_a_redacted_report_has_no_names(posduif: Posduif, server: PgServer, tenant: str, form: str) -> None:
    secret = "a-very-telling-device"
    phone = user(server, tenant, device_id=secret)
    server.sql(
        """INSERT INTO messages (sender_id, recipient_id, content, updated_at)
           VALUES (%s, %s, 'm', (now() AT TIME ZONE 'UTC') - interval '20 days')""",
        phone,
        phone,
        database=tenant,
    )
    for fault in ("warning", "critical"):
        server.sql(FAULTS[fault] or "", database=tenant)
    server.sql("CREATE INDEX telling_index ON users (created_at, id)", database=tenant)
    server.sql("CREATE INDEX telling_too ON users (created_at, id)", database=tenant)
    plain = posduif("health", tenant, "--probe", "-o", form, code=None).out
    assert tenant in plain
    hidden = posduif("health", tenant, "--probe", "--redact", "--verbose", "-o", form, code=None).out
    for word in (tenant, secret, "telling", "example.com", "localhost", "users_pkey"):
        assert word not in hidden, word
    assert "tenant-0001" in hidden or form in ("nagios",)
    assert "server-1" in hidden or form in ("json", "jsonl", "tsv")


@pytest.mark.one_server
def test_watching_shows_the_report_again_until_ctrl_c(posduif: Posduif, server: PgServer, tenant: str) -> None:
    def interrupt(shown: str, process: "subprocess.Popen[bytes]") -> None:
        if shown.count("again every 100ms") >= 3:
            process.send_signal(signal.SIGINT)

    for fault, code in ((None, 0), (FAULTS["critical"], 1)):
        if fault is not None:
            server.sql(fault, database=tenant)
        shown = on_terminal("health", tenant, "--watch", "100ms", watch=interrupt)
        assert (shown.code, shown.out.count("\x1b[2J\x1b[H") >= 3) == (code, True), shown
        screens = shown.out.split("\x1b[2J\x1b[H")[1:]
        assert all(len(screen.splitlines()) <= 24 for screen in screens), "the worst does not scroll away"
        assert "interrupted" not in shown.out
    assert "--watch needs a terminal" in posduif("health", "--watch", "5s", code=2).err


@pytest.mark.one_server
def test_quickstart_s_report_fits_on_one_screen(posduif: Posduif, tenant: str) -> None:
    out = posduif("health", tenant, "-o", "table").out
    assert len(out.splitlines()) <= 12
    assert json.loads(posduif("health", tenant, "-o", "json").out)["status"] == "ok"
