"""`health --probe`: what a tenant's url answers, each fault beside its healthy twin; and what enrolled phones leave."""

import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import trustme
import yaml

from support.engine import Engine, Listener, Redis, Talk, ask
from support.findings import about
from support.runner import Posduif
from support.servers import PgServer, dump, free_port, private, programs
from support.tenants import forget, note
from support.waiting import until

JOE, SALLY = "Joe the Mobile User", "Sally the Mobile User"
ASKED = ("GET", "/api/users", "posduif-probe")
SOON = 15  # seconds; far more than the limit of 3 s, for a busy machine


@dataclass(frozen=True)
class Site:
    """A tenant whose url is the port that its engine was given, on this machine."""

    posduif: Posduif
    server: PgServer
    name: str
    port: int
    file: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def report(self, *options: str) -> Any:
        return self.posduif.json("health", self.name, "--probe", *options, code=None)

    def told(self, *options: str) -> dict[str, Any]:
        """Return the one finding about the engine's answer."""
        [found] = about(self.report(*options), "engine.answer", self.name)
        return dict(found)

    def quiet(self) -> bool:
        """Whether the url answers, and nothing that is about this tenant is worse than information."""
        report = self.report()
        assert (report["coverage"]["probed"], about(report, "engine.*")) == (1, [])
        wrong = [f for f in worse(report) if self.name in [f["subject"], *f["affected"]]]
        assert wrong == []
        return True

    def enroll(self, engine: Engine, device: str, username: str) -> None:
        """Have a phone scan a code and type a name, by the engine."""
        token = self.posduif("token", "create", self.name).out.strip().rpartition("/")[2]
        path = f"/api/enrollment/{token}/complete"
        assert ask(engine.port, path, method="POST", token=token, device_id=device, username=username)[0] == 200

    def sql(self, query: str, *params: Any) -> list[tuple[Any, ...]]:
        """Run a statement in the tenant's database; its triggers do not fire."""
        return self.server.sql(query, *params, database=self.name, options="-c session_replication_role=replica")

    def sessions(self) -> int:
        query = "SELECT count(*) FROM pg_stat_activity WHERE usename = %s"
        return int(self.server.sql(query, f"{self.name}_engine")[0][0])


def worse(report: Any) -> list[dict[str, Any]]:
    """Return the findings that are more than information."""
    return [found for found in report["findings"] if found["level"] != "info"]


def build(
    runner: Posduif, server: PgServer, name: str, folder: Path, redis: Redis, environ: pytest.MonkeyPatch
) -> Site:
    """Create a tenant with the web user desk, on a machine whose configuration names its engine's port."""
    port, file = free_port(), folder / "engine.yaml"
    engine = {"ports": str(port), "redis": {"host": "127.0.0.1", "port": redis.port}}
    entry = {"dsn": server.dsn_for(), "engine": engine}
    (folder / "config.yaml").write_text(yaml.safe_dump({"servers": {"main": entry}}))
    environ.delenv("POSDUIF_DSN", raising=False)
    environ.setenv("POSDUIF_CONFIG", str(folder / "config.yaml"))
    url = f"http://127.0.0.1:{port}"
    runner("tenant", "create", name, "--web-user", "desk", "--url", url, "--engine-config", str(file))
    return Site(runner, server, name, port, file)


@pytest.fixture
def redis() -> Iterator[Redis]:
    with Redis() as running:
        yield running


@pytest.fixture
def site(
    posduif: Posduif, server: PgServer, name: str, tmp_path: Path, redis: Redis, clean_environ: pytest.MonkeyPatch
) -> Site:
    """A tenant on each PostgreSQL there is; its engine is not started yet."""
    return build(posduif, server, name, tmp_path, redis, clean_environ)


@pytest.fixture
def lone(
    fresh: PgServer, run_on: Callable[..., Posduif], tmp_path: Path, redis: Redis, clean_environ: pytest.MonkeyPatch
) -> Site:
    """The only tenant of a server: what is found there is about it."""
    return build(run_on(fresh), fresh, "acme", tmp_path, redis, clean_environ)


@pytest.fixture(params=["embedded", "system"])
def guarded(
    request: pytest.FixtureRequest, run_on: Callable[..., Posduif], tmp_path: Path, redis: Redis,
    clean_environ: pytest.MonkeyPatch,
) -> Iterator[Site]:  # fmt: skip
    """A tenant of a server that asks engines for their passwords."""
    with private(programs(request)) as server:
        assert server.data_dir is not None
        access = server.data_dir / "pg_hba.conf"
        access.write_text("local all postgres trust\nlocal all +posduif_engine scram-sha-256\n" + access.read_text())
        server.sql("SELECT pg_reload_conf()")
        yield build(run_on(server), server, "acme", tmp_path, redis, clean_environ)


@dataclass(frozen=True)
class Pointed:
    """A tenant whose url a test chooses; only what it answers is judged."""

    posduif: Posduif
    name: str

    def told(self, url: str) -> dict[str, Any] | None:
        """Point the tenant to a url; return what is found about its answer."""
        self.posduif("tenant", "set", self.name, "--url", url)
        return self.again()

    def again(self, *options: str) -> dict[str, Any] | None:
        report = self.posduif.json("health", self.name, "--probe", "--only", "engine", *options, code=None)
        assert report["coverage"]["probed"] == 1
        found = about(report, "engine.answer")
        assert found == report["findings"]
        assert len(found) <= 1
        return dict(found[0]) if found else None


@pytest.fixture
def pointed(posduif: Posduif, tenant: str) -> Pointed:
    return Pointed(posduif, tenant)


def says(status: str, *headers: str, body: str = "[]") -> bytes:
    """Return a whole answer, such as `says("404 Not Found")`."""
    head = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join([*head, "", body]).encode()


FINE = says("200 OK")


def silent(sock: socket.socket, over: threading.Event) -> None:
    """Take the request, and never answer it."""
    over.wait()


def drip(sock: socket.socket, over: threading.Event) -> None:
    """Send an answer's head that never ends, a byte at a time."""
    sock.sendall(b"HTTP/1.1 200 OK\r\nX-Long: ")
    while not over.wait(0.5):
        sock.sendall(b"x")


def endless(sock: socket.socket, over: threading.Event) -> None:
    """Announce a body that never comes."""
    sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n[")
    over.wait()


# The engine and its database


def test_an_engine_that_runs_is_no_finding_and_sees_no_trace_of_the_probe(site: Site) -> None:
    with Engine(site.file) as engine:
        before = dump(site.server, site.name)
        assert site.quiet()
        assert engine.heard == [ASKED]
        assert dump(site.server, site.name) == before, "no row was written"
        site.posduif("health", site.name, code=None)
        assert engine.heard == [ASKED], "only --probe asks"


def test_an_engine_that_was_killed_is_critical_until_it_runs_again(site: Site) -> None:
    with Engine(site.file):
        assert site.quiet()
    found = site.told()
    assert (found["level"], found["scope"], found["subject"]) == ("critical", "tenant", site.name)
    assert found["message"].startswith(f"nothing answers at {site.url}: Connection refused")
    assert found["fix"].endswith(f"posduif tenant engine-config {site.name}")
    site.posduif("health", site.name, "--probe", code=1)
    assert "CRITICAL" in site.posduif("health", site.name, "--probe", "-o", "nagios", code=2).out
    with Engine(site.file):
        assert site.quiet()


@pytest.mark.one_server
def test_a_url_with_another_port_than_the_engine_s_names_both(site: Site) -> None:
    with Engine(site.file), Listener(says("404 Not Found")) as other:
        dead = free_port()
        for port, words in ((dead, "nothing answers"), (other.port, "is no engine: HTTP 404")):
            site.posduif("tenant", "set", site.name, "--url", f"http://127.0.0.1:{port}")
            found = site.told()
            assert words in found["message"]
            assert f"the url has port {port}, and the engine was given {site.port}" in found["message"]
            assert f"posduif tenant set {site.name} --url" in found["fix"]
        site.posduif("tenant", "set", site.name, "--url", site.url)
        assert site.quiet()


def test_an_engine_with_an_old_password_is_told_as_locked_out(guarded: Site, tmp_path: Path) -> None:
    other = tmp_path / "other.yaml"
    with Engine(guarded.file):
        assert guarded.quiet()
        guarded.posduif("tenant", "rotate-password", guarded.name, "--engine-config", str(other), "--now")
        found = guarded.told()
        assert (found["level"], found["value"]) == ("critical", 500)
        assert "runs, but it cannot log in to its database: its password or its address" in found["message"]
        assert f"posduif tenant rotate-password {guarded.name} --engine-config" in found["fix"]
    with Engine(other):
        assert guarded.quiet()


def test_a_role_without_free_connections_is_told_as_such(site: Site) -> None:
    role = f"{site.name}_engine"
    with Engine(site.file) as engine:
        assert site.quiet()
        engine.rest()
        until(lambda: site.sessions() == 0, "the engine's sessions end")
        site.server.sql(f"ALTER ROLE {role} CONNECTION LIMIT 2")
        with ExitStack() as others:
            for _ in range(2):
                others.enter_context(site.server.connect(site.name, user=role))
            report = site.report()
            [found] = about(report, "engine.answer")
            assert "runs, but its role has all the connections that it may have (HTTP 500)" in found["message"]
            assert f"posduif tenant verify {site.name}" in found["fix"]
            [full] = about(report, "connections.role")
            assert f"{role} has 2 of the 2 connections" in full["message"]
        until(lambda: site.sessions() == 0, "the others leave")
        assert site.quiet()


@pytest.mark.parametrize(
    ("fault", "repair"),
    [
        ("ALTER TABLE users RENAME TO gone", "ALTER TABLE gone RENAME TO users"),
        ("REVOKE SELECT ON users FROM posduif_engine", "GRANT SELECT ON users TO posduif_engine"),
    ],
)
def test_a_query_that_fails_behind_a_connected_engine_is_told_as_that(site: Site, fault: str, repair: str) -> None:
    with Engine(site.file):
        assert site.quiet()
        assert site.sessions() == 1
        site.sql(f"SET ROLE posduif_admin; {fault}")
        found = site.told()
        assert "it is connected to its database, and its query fails (HTTP 500)" in found["message"]
        assert found["fix"] == f"posduif tenant verify {site.name}"
        site.sql(f"SET ROLE posduif_admin; {repair}")
        assert site.quiet()


def test_a_session_that_was_ended_is_noticed_once_and_is_no_fault(site: Site) -> None:
    with Engine(site.file) as engine:
        assert site.quiet()
        site.posduif("tenant", "suspend", site.name)
        assert site.report()["coverage"]["probed"] == 0
        site.posduif("tenant", "resume", site.name)
        engine.heard.clear()
        assert site.quiet()
        assert set(engine.heard) == {ASKED}


# Names, time and HTTP


@pytest.mark.one_server
@pytest.mark.parametrize("talk", [silent, drip])
def test_an_answer_that_does_not_come_in_time_is_critical(pointed: Pointed, talk: Talk) -> None:
    with Listener(talk) as slow:
        started = time.monotonic()
        found = pointed.told(f"http://127.0.0.1:{slow.port}")
        assert time.monotonic() - started < SOON
        assert found is not None
        assert (found["level"], found["value"]) == ("critical", "silence")
        assert "takes connections and does not answer: " in found["message"]
        assert "answer within 3 s" in found["message"]
        slow.talk = FINE
        assert pointed.again() is None


@pytest.mark.one_server
def test_a_name_without_an_address_is_told_as_that(pointed: Pointed) -> None:
    started = time.monotonic()
    found = pointed.told("http://nosuch.invalid")
    assert time.monotonic() - started < SOON
    assert found is not None
    assert found["value"] == "name"
    assert found["message"].startswith("the name of http://nosuch.invalid cannot be resolved: ")
    assert f"posduif tenant set {pointed.name} --url" in found["fix"]


@pytest.mark.one_server
def test_a_name_that_is_never_resolved_is_told_as_that(pointed: Pointed, monkeypatch: pytest.MonkeyPatch) -> None:
    over, plain = threading.Event(), socket.getaddrinfo

    def resolve(host: Any, *rest: Any, **more: Any) -> Any:
        return over.wait(60) and [] if host == "slow.invalid" else plain(host, *rest, **more)

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    started = time.monotonic()
    found = pointed.told("http://slow.invalid")
    over.set()
    assert time.monotonic() - started < SOON
    assert found is not None
    assert found["value"] == "name"


@pytest.mark.one_server
@pytest.mark.parametrize("url", ["http://127.0.0.1:99999", "http://[::1", "http://a b", "http://a..b", "http://"])
def test_a_record_with_what_is_no_url_is_a_finding(pointed: Pointed, server: PgServer, url: str) -> None:
    note(server, pointed.name, url=url)
    found = pointed.again()
    assert found is not None
    assert (found["level"], found["value"]) == ("critical", "name")
    assert f"posduif tenant set {pointed.name} --url" in found["fix"]


@pytest.mark.one_server
def test_the_body_is_never_read(pointed: Pointed) -> None:
    with Listener(endless) as texts:
        started = time.monotonic()
        assert pointed.told(f"http://127.0.0.1:{texts.port}") is None
        assert time.monotonic() - started < SOON
        [head] = texts.heard
        assert head.startswith(b"GET /api/users HTTP/1.1\r\n")
        assert b"\r\nX-Device-ID: posduif-probe\r\n" in head
        assert f"\r\nHost: 127.0.0.1:{texts.port}\r\n".encode() in head


@pytest.mark.one_server
def test_a_balancer_without_its_engine_and_what_is_no_engine_are_told_apart(pointed: Pointed) -> None:
    with Listener(b"") as target, Listener(b"") as there:
        elsewhere = f"Location: http://127.0.0.1:{target.port}/api/users"
        target.talk = FINE
        url = f"http://127.0.0.1:{there.port}"
        pointed.told(url)
        for talk, words in (
            (says("502 Bad Gateway"), "the balancer at {url} gets no answer from the engine behind it (HTTP 502)"),
            (says("503 Service Unavailable"), "gets no answer from the engine behind it (HTTP 503)"),
            (says("504 Gateway Timeout"), "gets no answer from the engine behind it (HTTP 504)"),
            (says("302 Found", elsewhere), "what listens at {url} is no engine: HTTP 302"),
            (says("404 Not Found"), "what listens at {url} is no engine: HTTP 404"),
            (says("200 OK", "Content-Type: text/html; charset=utf-8"), "no engine: it shows a web page"),
            (b"220 mail.example.com ESMTP\r\n", "what listens at {url} is no engine: 220 mail.example.com"),
            (b"HTTP/1.1 abc\r\n\r\n", "what listens at {url} is no engine: "),
            (b"", "what listens at {url} is no engine: "),
        ):
            there.talk = talk
            found = pointed.again()
            assert found is not None, talk
            assert found["level"] == "critical"
            assert words.format(url=url) in found["message"]
            assert "\n" not in found["message"]
        assert target.heard == [], "a redirect is not followed"
        for status in ("401 Unauthorized", "403 Forbidden", "429 Too Many Requests"):
            there.talk = says(status)
            found = pointed.again()
            assert found is not None, status
            assert (found["level"], f"(HTTP {status[:3]})" in found["message"]) == ("unknown", True), (
                "a gate is no fault"
            )
        there.talk = FINE
        assert pointed.again() is None


@pytest.mark.one_server
def test_proxies_of_the_environment_are_ignored(pointed: Pointed, monkeypatch: pytest.MonkeyPatch) -> None:
    with Listener(says("404 Not Found")) as proxy, Listener(FINE) as there:
        for name in ("http_proxy", "https_proxy", "all_proxy"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
            monkeypatch.setenv(name.upper(), f"http://127.0.0.1:{proxy.port}")
        assert pointed.told(f"http://127.0.0.1:{there.port}") is None
        assert (len(there.heard), proxy.heard) == (1, [])


# Certificates


@dataclass(frozen=True)
class Trust:
    """An authority for certificates whose file posduif is told to trust."""

    authority: trustme.CA
    file: Path

    def serving(self, *hosts: str, days: float = 365, authority: trustme.CA | None = None) -> Listener:
        """Return a healthy listener whose certificate is for these hosts, and ends in so many days."""
        now = datetime.now(UTC)
        made = (authority or self.authority).issue_cert(
            *hosts, not_before=now - timedelta(days=60), not_after=now + timedelta(days=days)
        )
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        made.configure_cert(context)
        return Listener(FINE, tls=context)


@pytest.fixture
def trust(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Trust:
    authority, file = trustme.CA(), tmp_path / "authority.pem"
    authority.cert_pem.write_to_path(str(file))
    monkeypatch.setenv("SSL_CERT_FILE", str(file))
    return Trust(authority, file)


@pytest.mark.one_server
@pytest.mark.parametrize(
    ("days", "level", "words"),
    [(365, None, ""), (10.5, "warning", "ends in 10 days"), (1.5, "critical", "ends in 1 day"),
     (0.5, "critical", "ends in 0 days")],
)  # fmt: skip
def test_a_certificate_is_told_before_it_ends(
    pointed: Pointed, trust: Trust, days: float, level: str | None, words: str
) -> None:
    with trust.serving("localhost", "127.0.0.1", days=days) as there:
        for host in ("localhost", "127.0.0.1"):
            found = pointed.told(f"https://{host}:{there.port}")
            if level is None:
                assert found is None
                continue
            assert found is not None
            assert (found["level"], found["value"], found["unit"]) == (level, int(days), "days")
            assert found["message"] == f"the certificate of https://{host}:{there.port} {words}"
            assert found["fix"] == "renew the certificate"


@pytest.mark.one_server
def test_certificates_that_phones_refuse_are_told_with_the_reason(pointed: Pointed, trust: Trust) -> None:
    for there, words in (
        (trust.serving("localhost", days=-1), "certificate has expired"),
        (trust.serving("other.example.com"), "Hostname mismatch, certificate is not valid for 'localhost'"),
        (trust.serving("localhost", authority=trustme.CA()), "unable to get local issuer certificate"),
    ):
        with there:
            found = pointed.told(f"https://localhost:{there.port}")
            assert found is not None
            assert (found["level"], found["value"]) == ("critical", "certificate")
            url = f"https://localhost:{there.port}"
            assert found["message"] == f"the certificate of {url} is not valid: {words}"
            assert found["fix"].startswith("renew the certificate")
            assert there.heard == [], "nothing was asked there"
    with trust.serving("localhost") as valid:
        assert pointed.told(f"https://localhost:{valid.port}") is None


@pytest.mark.one_server
def test_an_authority_that_the_machine_does_not_know_is_told(pointed: Pointed, trust: Trust) -> None:
    with trust.serving("localhost") as there:
        assert pointed.told(f"https://localhost:{there.port}") is None
        argv = ("health", pointed.name, "--probe", "--only", "engine", "-o", "json")
        refused = pointed.posduif.process(*argv, SSL_CERT_FILE="/dev/null")
        [found] = refused.json["findings"]
        assert (refused.code, found["value"]) == (1, "certificate")
        trusted = pointed.posduif.process(*argv, SSL_CERT_FILE=str(trust.file))
        assert (trusted.code, trusted.json["findings"]) == (0, [])


@pytest.mark.one_server
def test_plain_http_and_tls_where_the_other_is_expected_are_told(pointed: Pointed, trust: Trust) -> None:
    with Listener(says("400 Bad Request")) as plain:
        found = pointed.told(f"https://localhost:{plain.port}")
        assert found is not None
        assert "is no engine: no TLS is spoken there" in found["message"]
        plain.talk = FINE
        assert pointed.told(f"http://localhost:{plain.port}") is None
    with trust.serving("localhost") as secure:
        found = pointed.told(f"http://localhost:{secure.port}")
        assert found is not None
        assert "is no engine: " in found["message"]
        assert pointed.told(f"https://localhost:{secure.port}") is None


@pytest.mark.one_server
def test_a_handshake_that_never_ends_is_silence(pointed: Pointed) -> None:
    with Listener(silent) as there:
        found = pointed.told(f"https://localhost:{there.port}")
        assert found is not None
        assert found["value"] == "silence"
        assert "takes connections and does not answer" in found["message"]


# Which tenants are asked


@pytest.mark.one_server
def test_a_suspended_tenant_and_one_without_a_url_are_not_asked(
    posduif: Posduif, server: PgServer, tenant: str, name: str
) -> None:
    other = f"{name}_b"
    posduif("tenant", "set", tenant, "--url", f"http://127.0.0.1:{free_port()}")
    try:
        posduif("tenant", "create", other)
        report = posduif.json("health", other, "--probe", code=None)
        assert (report["coverage"]["probed"], about(report, "engine.*")) == (0, [])
        assert report["skipped"]["engine.answer"] == "a tenant has no url"
        report = posduif.json("health", tenant, other, "--probe", code=None)
        assert (report["coverage"]["probed"], about(report, "engine.*")[0]["affected"]) == (1, [tenant])
        assert "engine.answer" not in report["skipped"]
        posduif("tenant", "suspend", tenant)
        report = posduif.json("health", tenant, other, "--probe", code=None)
        assert (report["coverage"]["probed"], about(report, "engine.*")) == (0, [])
    finally:
        forget(server, other)


@pytest.mark.one_server
def test_many_tenants_with_one_fault_are_one_finding(
    posduif: Posduif, server: PgServer, name: str, tmp_path: Path
) -> None:
    names = [f"{name}_{number:02}" for number in range(6)]
    lock, now, most = threading.Lock(), 0, 0

    def slowly(sock: socket.socket, over: threading.Event) -> None:
        """Answer so late that several requests meet, and count how many do."""
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        over.wait(0.1)
        with lock:
            now -= 1
        sock.sendall(FINE)

    def probed(jobs: int) -> Any:
        return posduif.json("health", *names, "--probe", "--only", "engine", "--jobs", str(jobs), code=None)

    try:
        with ExitStack() as stack:
            engines = [stack.enter_context(Listener(slowly)) for _ in names]
            rows = [f"{each},http://127.0.0.1:{there.port}" for each, there in zip(names, engines, strict=True)]
            (tmp_path / "list.csv").write_text("\n".join(["name,url", *rows]))
            posduif("tenant", "create", "--from", str(tmp_path / "list.csv"))
            for jobs in (1, 3):
                most = 0
                report = probed(jobs)
                assert (report["findings"], report["coverage"]["probed"], most) == ([], 6, jobs)
            for there in engines:
                there.talk = silent
            started = time.monotonic()
            assert [len(found["affected"]) for found in probed(6)["findings"]] == [6]
            assert time.monotonic() - started < SOON, "all at once"
        report = posduif.json("health", *names, "--probe", code=1)
        [found] = about(report, "engine.answer")
        assert sorted(found["affected"]) == names
        assert found["message"].startswith("6 of 6 tenants: nothing answers at their urls (")
        assert (found["level"], report["coverage"]["probed"]) == ("critical", 6)
    finally:
        for each in names:
            forget(server, each)


# What enrolled phones leave in the tables


def test_the_clock_of_an_engine_in_another_zone_is_found_at_an_enrollment(site: Site) -> None:
    with Engine(site.file) as right:
        site.enroll(right, "dev-1", JOE)
        assert site.quiet()
    for hours, words in ((9, "9.0 h ahead"), (-5, "5.0 h behind")):
        with Engine(site.file, ahead=timedelta(hours=hours)) as abroad:
            site.enroll(abroad, f"dev{hours}", f"User {hours}")
            [found] = about(site.report(), "engine.clock")
            assert (found["level"], found["value"], found["unit"]) == ("critical", abs(hours) * 3600, "seconds")
            assert words in found["message"]
            assert "TZ=UTC" in found["fix"]
    with Engine(site.file) as right:
        site.enroll(right, "dev-2", SALLY)
        assert site.quiet()


def send(engine: Engine, sender: str, recipient: str, **columns: str) -> None:
    """Insert a message as the engine does for a phone that uploads; *columns* are expressions in SQL."""
    values = {"created_at": "now()", **columns}
    with engine.session() as conn:
        conn.execute(
            f"""INSERT INTO messages (sender_id, recipient_id, content, status, {", ".join(values)})
                SELECT s.id, r.id, 'from a phone', 'pending_sync', {", ".join(values.values())}
                FROM users s, users r WHERE s.username = %s AND r.username = %s""".encode(),
            [sender, recipient],
        )


def fetch(engine: Engine, device: str, *, read: bool = False) -> int:
    """Have a phone fetch what waits for it; return how many messages that were."""
    _, answer = ask(engine.port, "/api/sync/incoming", device=device)
    for message, *_ in answer["messages"] if read else ():
        assert ask(engine.port, f"/api/messages/{message}/read", method="PUT", device=device)[0] == 200
    return len(answer["messages"])


def test_a_busy_healthy_tenant_is_no_finding(lone: Site) -> None:
    name, people = lone.name, {"dev-ann": "Ann", "dev-bob": "Bob", "dev-cleo": "Cleo", "dev-off": "Dan"}
    with Engine(lone.file) as engine:
        lone.posduif("user", "create", name, "office", "--type", "web")
        for device, username in people.items():
            lone.enroll(engine, device, username)
            lone.posduif("message", "send", name, "Welcome", "--from", "desk", "--to", username)
        assert [fetch(engine, device, read=device != "dev-bob") for device in people] == [1, 1, 1, 1]
        # A phone that enrolled long ago and was switched off a week ago, with messages waiting.
        lone.sql("""UPDATE users SET enrolled_at = now() - interval '60 days' WHERE username = 'Dan'""")
        lone.sql("""UPDATE enrollment_tokens t SET used_at = u.enrolled_at
                    FROM users u WHERE u.enrollment_token_id = t.id AND u.username = 'Dan'""")
        lone.sql("""UPDATE messages m SET synced_at = now() - interval '8 days', read_at = now() - interval '8 days'
                    FROM users u WHERE u.id = m.recipient_id AND u.username = 'Dan'""")
        send(engine, "Ann", "Dan", created_at="now() - interval '7 days'", updated_at="now() - interval '7 days'")
        # Messages to a web user wait for ever: it has no phone.
        send(engine, "Ann", "desk", created_at="now() - interval '90 days'", updated_at="now() - interval '90 days'")
        send(engine, "Bob", "office")
        lone.posduif("message", "send", name, "Hello", "--from", "desk", "--to", "office")
        # One that was written two hours ago without a network arrives after its recipient fetched.
        assert fetch(engine, "dev-cleo") == 0
        send(engine, "Bob", "Cleo", created_at="now() - interval '2 hours'")
        lone.posduif("message", "send", name, "To Ann", "--from", "desk", "--to", "Ann")
        assert ask(engine.port, "/api/sync/status", device="dev-ann")[0] == 200
        assert lone.report()["status"] == "ok"
        # A phone in Tokyo sends the time of its zone.
        send(engine, "Cleo", "Ann", created_at="now() + interval '9 hours'")
        report = lone.report()
        assert (report["status"], [f["check"] for f in report["findings"]]) == ("info", ["clock.skew"])
        assert report["coverage"]["probed"] == 1
        # What the desk does on purpose is no finding, either.
        lone.posduif("device", "remove", name, "Bob")
        token = lone.posduif("token", "create", name).out.strip().rpartition("/")[2]
        replace = ("--device", "dev-new", "--username", "Ann", "--replace-device")
        lone.posduif("enroll", "complete", name, token, *replace)
        lone.posduif("user", "delete", name, "Dan", "--confirm", "Dan")
        assert fetch(engine, "dev-new") == 2
        assert worse(lone.report()) == []


def test_a_phone_that_took_a_user_over_is_told_until_the_old_one_is_let_go(site: Site) -> None:
    with Engine(site.file) as engine:
        site.enroll(engine, "dev-old", JOE)
        site.enroll(engine, "dev-other", SALLY)
        assert site.quiet()
        site.enroll(engine, "dev-new", JOE)
        [found] = about(site.report(), "device.displaced")
        assert (found["level"], found["value"]) == ("warning", "dev-old")
        assert found["message"] == "device dev-old has lost its user to another phone"
        assert found["fix"].endswith(f"posduif device remove {site.name} dev-old")
        site.posduif("device", "remove", site.name, "dev-old")
        assert site.quiet()
        # It takes its user back, and the other one then enrolls under a name of its own.
        site.enroll(engine, "dev-old", JOE)
        assert [f["value"] for f in about(site.report(), "device.displaced")] == ["dev-new"]
        site.enroll(engine, "dev-new", "New Joe")
        assert site.quiet()


def test_a_web_user_that_a_phone_took_over_is_told(site: Site) -> None:
    site.posduif("user", "create", site.name, "office", "--type", "web")
    with Engine(site.file) as engine:
        assert site.quiet()
        site.enroll(engine, "dev-1", "office")
        [found] = about(site.report(), "device.displaced")
        assert (found["level"], found["message"]) == ("warning", "device dev-1 took over a web user")


def test_a_phone_that_is_away_for_weeks_is_information_until_it_fetches(site: Site) -> None:
    with Engine(site.file) as engine:
        site.enroll(engine, "dev-1", JOE)
        site.sql("UPDATE users SET enrolled_at = now() - interval '60 days' WHERE username = %s", JOE)
        site.sql("UPDATE enrollment_tokens SET used_at = now() - interval '60 days'")
        site.sql("UPDATE users SET enrolled_at = t.used_at FROM enrollment_tokens t WHERE t.id = enrollment_token_id")
        send(engine, "desk", JOE, updated_at="now() - interval '1 day'")
        assert about(site.report(), "device.silent") == [], "what waits since yesterday says nothing"
        send(engine, "desk", JOE, updated_at="now() - interval '20 days'")
        assert site.quiet()
        [found] = about(site.report(), "device.silent")
        assert (found["level"], found["value"], found["unit"]) == ("info", 20, "days")
        assert "device dev-1 has fetched nothing for 20 days; 2 messages wait for it" in found["message"]
        assert fetch(engine, "dev-1") == 2
        assert about(site.report(), "device.silent") == []


def test_a_message_that_a_phone_leaves_behind_is_told_until_it_fetches_it(site: Site) -> None:
    with Engine(site.file) as engine:
        site.enroll(engine, "dev-1", JOE)
        send(engine, "desk", JOE)
        assert fetch(engine, "dev-1") == 1
        site.sql("UPDATE enrollment_tokens SET used_at = now() - interval '1 hour'")
        site.sql("UPDATE users SET enrolled_at = t.used_at FROM enrollment_tokens t WHERE t.id = enrollment_token_id")
        send(engine, "desk", JOE, updated_at="now() - interval '10 minutes'")
        [found] = about(site.report(), "sync.stuck")
        assert (found["level"], found["value"]) == ("warning", 1)
        assert found["message"] == "device dev-1 fetched messages, but not 1 older one"
        assert fetch(engine, "dev-1") == 1
        assert site.quiet()
