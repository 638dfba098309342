"""The engine of a tenant: asking its url as a phone would, and the check that judges the answer.

A GET of the list of users with a device id of posduif's own: it proves that the process runs, that it is the engine,
and that it reaches its database. The status line and the headers are read, and the body never: it holds texts.
"""

import http.client
import socket
import ssl
import threading
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlsplit

from posduif_cli.core.checks.check import Verdict, check
from posduif_cli.core.checks.facts import Answer, TenantFacts
from posduif_cli.errors import Run
from posduif_cli.models.checks import Level
from posduif_cli.models.tenants import State
from posduif_cli.notation import counted

LIMIT = timedelta(seconds=3)  # for all of one answer, the name's resolution included
PATH, DEVICE = "/api/users", "posduif-probe"
ENDING_WARNING, ENDING_CRITICAL = 14, 3  # days until a certificate ends; fewer are a warning, or critical
FAILED = 500  # what an engine says whose query failed
GATE = (401, 403, 407, 429)  # of something that asks who comes, before the engine
GATEWAY = (502, 503, 504)  # what a balancer says of an engine that does not answer


def ask(url: str) -> Answer:
    """Return what a tenant's url answers within LIMIT; nothing is raised."""
    answers: list[Answer] = []
    reached = ["name"]

    def work() -> None:
        answers.append(_ask(url, reached))
        # An engine notices only by a failed query that the server ended a session: the second one has a new session.
        if answers[0].status == FAILED:
            answers.append(_ask(url, reached))

    # A thread of its own: no limit ends the resolution of a name.
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(LIMIT.total_seconds())
    return answers[-1] if answers else _late(url, reached)


def _late(url: str, reached: Sequence[str]) -> Answer:
    step = "silence" if reached[-1] == "http" else reached[-1]
    return Answer(url, step=step, why=f"no answer within {LIMIT.total_seconds():.0f} s")


def _ask(url: str, reached: list[str]) -> Answer:
    """Ask once; each step that is *reached* is noted: "name", "connect" and, once connected, "http"."""
    reached.append("name")
    try:
        status, ends = _get(url, reached)
    except ssl.SSLCertVerificationError as error:
        return Answer(url, step="certificate", why=error.verify_message.rstrip("."))
    except TimeoutError:
        return _late(url, reached)
    except ssl.SSLError as error:
        return Answer(url, step="http", why=f"no TLS is spoken there: {error.reason}")
    except UnicodeError:
        return Answer(url, step="name", why="it is not the name of a host")
    except (http.client.HTTPException, OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or str(error) or type(error).__name__
        return Answer(url, step=reached[-1], why=" ".join(why.split())[:100])  # which may be what a stranger said
    return Answer(url, status, ends=ends)


def _get(url: str, reached: list[str]) -> tuple[int, datetime | None]:
    """Return the HTTP status of an answer, and when the certificate ends; no redirect is followed, no proxy used."""
    parts, seconds = urlsplit(url), LIMIT.total_seconds()
    host, context = parts.hostname or "", ssl.create_default_context() if parts.scheme == "https" else None
    port = parts.port or (443 if context else 80)
    made: http.client.HTTPConnection
    if context:
        made = http.client.HTTPSConnection(host, port, timeout=seconds, context=context)
    else:
        made = http.client.HTTPConnection(host, port, timeout=seconds)
    try:
        socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        reached.append("connect")
        http.client.HTTPConnection.connect(made)
        reached.append("http")
        if context:
            made.sock = context.wrap_socket(made.sock, server_hostname=host)
        ends = _ends(made.sock)
        made.request("GET", PATH, headers={"X-Device-ID": DEVICE, "Connection": "close"})
        found = made.getresponse()
        if found.status == 200 and found.getheader("Content-Type", "").startswith("text/html"):
            raise http.client.HTTPException("it shows a web page")  # an engine answers with JSON
        return found.status, ends
    finally:
        made.close()


def _ends(sock: Any) -> datetime | None:
    found = sock.getpeercert() if isinstance(sock, ssl.SSLSocket) else None
    return datetime.fromtimestamp(ssl.cert_time_to_seconds(str(found["notAfter"])), UTC) if found else None


def _otherwise(facts: TenantFacts) -> str:
    """Say that the engine was told another port than its url has, where the url is the engine's own."""
    parts, port = urlsplit(facts.tenant.url or ""), facts.tenant.engine_port
    if parts.scheme == "http" and port is not None and (parts.port or 80) != port:
        return f"; the url has port {parts.port or 80}, and the engine was given {port}"
    return ""


def _at_the_database(facts: TenantFacts) -> tuple[str, str, Run | str]:
    """Return what is wrong behind an engine that runs, for one tenant and for several, and what repairs it."""
    name = facts.subject
    if facts.full:
        fix = Run("tenant", "verify", name, lead="look for engines that run twice, then")
        return "its role has all the connections that it may have", "their roles have all their connections", fix
    if facts.tenant.engine_sessions:
        fix = Run("tenant", "verify", name)
        return "it is connected to its database, and its query fails", "their queries fail in the database", fix
    fix = Run("tenant", "rotate-password", name, "--engine-config", "FILE", lead="if it has another password")
    what = "it cannot log in to its database: its password or its address of the server is wrong"
    return what, "they cannot log in to their databases", fix


@check("tenant", ("health",), "engine.answer", "The engine answers at the tenant's url",
    "With --probe the url is asked as a phone would: process, port, certificate, password and database are told apart. "
    "The answer itself is not read.", tier="probed", asks=("list_engine_sessions",))  # fmt: skip
def answers(facts: TenantFacts) -> Iterator[Verdict]:
    """Judge what the tenant's url answered."""
    tenant, answer = facts.tenant, facts.answer
    if answer is None:
        if tenant.state is State.ACTIVE and not tenant.url:
            yield Verdict(Level.SKIPPED, "a tenant has no url")
        return
    config = Run("tenant", "engine-config", facts.subject, lead="start the engine, whose configuration is")
    url = answer.url
    if answer.status == 200:
        yield from _certificate(answer, facts.now)
        return
    fix: Run | str = config
    level = Level.CRITICAL
    if answer.step == "name":
        text, several = f"the name of {url} cannot be resolved: {answer.why}", "their urls' names cannot be resolved"
        fix = Run("tenant", "set", facts.subject, "--url", "ORIGIN", lead="correct DNS, or the url")
    elif answer.step == "connect":
        text = f"nothing answers at {url}: {answer.why}{_otherwise(facts)}"
        several = "nothing answers at their urls"
        if _otherwise(facts):
            fix = Run("tenant", "set", facts.subject, "--url", "ORIGIN", lead="correct the url, or the engine's port")
    elif answer.step == "certificate":
        text, several = f"the certificate of {url} is not valid: {answer.why}", "their certificates are not valid"
        fix = "renew the certificate, for the name in the url"
    elif answer.step == "silence":
        text, several = f"{url} takes connections and does not answer: {answer.why}", "their engines do not answer"
    elif answer.step is not None:
        text = f"what listens at {url} is no engine: {answer.why}{_otherwise(facts)}"
        several = "what listens at their urls is no engine"
    elif answer.status in GATEWAY:
        text = f"the balancer at {url} gets no answer from the engine behind it (HTTP {answer.status})"
        several = "their balancer gets no answer from the engines behind it"
    elif answer.status == FAILED:
        what, several, fix = _at_the_database(facts)
        text = f"the engine at {url} runs, but {what} (HTTP 500)"
        several = f"the engines run, but {several}"
    elif answer.status in GATE:
        level = Level.UNKNOWN
        text = f"what guards {url} lets no probe through (HTTP {answer.status})"
        several = f"what guards their urls lets no probe through (HTTP {answer.status})"
        fix = f"let GET {PATH} with X-Device-ID: {DEVICE} through from here, or leave --probe out"
    else:
        text = f"what listens at {url} is no engine: HTTP {answer.status}{_otherwise(facts)}"
        several = f"what listens at their urls is no engine: HTTP {answer.status}"
        fix = Run("tenant", "set", facts.subject, "--url", "ORIGIN", lead="correct the url")
    yield Verdict(level, text, answer.status or answer.step, fix=fix, several=several)


def _certificate(answer: Answer, now: datetime) -> Iterator[Verdict]:
    """Judge how many days a certificate has left."""
    if answer.ends is not None:
        days = (answer.ends - now).days
        if days < ENDING_WARNING:
            level = Level.CRITICAL if days < ENDING_CRITICAL else Level.WARNING
            text = f"the certificate of {answer.url} ends in {counted(days, 'day')}"
            fix = "renew the certificate"
            yield Verdict(level, text, days, "days", fix=fix, several="certificates end soon")
