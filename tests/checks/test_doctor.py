"""`doctor`: a fault made by hand is found together with its repair; a machine without faults has no finding."""

import os
import stat
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from posduif_cli.core.checks import server as checks
from posduif_cli.core.checks.facts import Setup
from posduif_cli.db import embedded
from posduif_cli.models.checks import Level
from posduif_cli.models.servers import Server
from support.findings import by_check, levels
from support.runner import Posduif
from support.servers import PgServer

pytestmark = pytest.mark.one_server
Environ = pytest.MonkeyPatch


@pytest.fixture
def tool(tmp_path: Path, clean_environ: Environ) -> Callable[[str, str], None]:
    """Puts a program on PATH, in front of any other."""
    folder = tmp_path / "bin"
    folder.mkdir()
    clean_environ.setenv("PATH", f"{folder}:{os.environ['PATH']}")

    def put(name: str, text: str) -> None:
        path = folder / name
        path.write_text(f"#!/bin/sh\necho '{text}'\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)

    return put


def test_a_machine_without_faults(
    own_server: PgServer, run_on: Callable[..., Posduif], tool: Callable[[str, str], None], clean_environ: Environ
) -> None:
    clean_environ.setenv("LC_ALL", "C.UTF-8")
    clean_environ.setenv("SHELL", "/bin/bash")
    tool("pg_dump", f"pg_dump (PostgreSQL) {own_server.version}.1")
    own_server.sql("CREATE ROLE alice LOGIN CREATEDB CREATEROLE")
    run_on(own_server)("server", "init", "--close")
    own_server.sql("GRANT posduif_admin TO alice")
    posduif = run_on(own_server, user="alice")
    posduif("completion", "install")
    findings = posduif.json("doctor")
    assert {f["check"] for f in findings if f["level"] != "ok"} <= {"machine.terminal", "config.file"}
    machine = {"machine.python", "machine.utf8", "machine.completion", "machine.pg_dump"}
    assert machine | {"server.version", "server.roles", "server.tls"} <= set(by_check(findings))


@pytest.mark.one_server
def test_the_pg_dump_beside_the_embedded_server_will_do(
    server: PgServer, posduif: Posduif, tool: Callable[[str, str], None]
) -> None:
    tool("pg_dump", "pg_dump (PostgreSQL) 14.9")
    finding = by_check(posduif("doctor", "-o", "json", code=None).json)["machine.pg_dump"]
    assert (finding["level"], str(embedded.locate(None).bin_dir) in finding["message"]) == ("ok", True)


def test_faults_of_the_machine(
    server: PgServer, posduif: Posduif, tool: Callable[[str, str], None], clean_environ: Environ, tmp_path: Path
) -> None:
    clean_environ.setenv("LC_ALL", "C")
    clean_environ.setenv("SHELL", "/bin/zsh")
    tool("pg_dump", "pg_dump (PostgreSQL) 14.9")
    beside = embedded.locate
    clean_environ.setattr(embedded, "locate", lambda bin_dir: replace(beside(bin_dir), bin_dir=tmp_path))
    passfile = tmp_path / ".pgpass"
    passfile.write_text("*:*:*:*:secret\n")
    passfile.chmod(0o644)
    result = posduif("doctor", "-o", "json", code=1)
    told = by_check(result.json)
    assert (told["machine.pg_dump"]["level"], "client programs" in told["machine.pg_dump"]["fix"]) == ("warning", True)
    assert (told["config.passfile"]["level"], told["config.passfile"]["fix"]) == ("warning", f"chmod 600 {passfile}")
    assert (told["machine.utf8"]["level"], told["machine.utf8"]["fix"]) == ("info", "export LC_ALL=C.UTF-8")
    assert told["machine.completion"]["fix"] == "posduif completion install zsh"
    assert "secret" not in result.out + result.err
    passfile.chmod(0o600)
    tool("pg_dump", "pg_dump (PostgreSQL) 99.1")
    assert {"config.passfile", "machine.pg_dump"} & {
        f["check"] for f in posduif.json("doctor", code=None) if f["level"] == "warning"
    } == set()
    tool("pg_dump", "something else")
    assert levels(posduif("doctor", "-o", "json", code=1).json)["machine.pg_dump"] == "warning"


def test_faults_of_the_configuration(server: PgServer, posduif: Posduif, tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    argv = ("doctor", "--config", str(config), "-o", "json")
    config.write_text("servers:\n  eu1:\n    dns: x\n")
    config.chmod(0o600)
    told = by_check(posduif(*argv, code=1).json)
    assert told["config.file"]["level"] == "critical"
    assert f"{config}:3" in told["config.file"]["message"]
    assert "dsn" in told["config.file"]["fix"]
    config.write_text("migrations: {paths: [/nowhere]}\n")
    assert levels(posduif(*argv, code=1).json)["config.migrations"] == "critical"
    for words, secret in (
        (f'dsn: "{server.dsn}"', False),
        (f'dsn: "{server.dsn} password=x"', True),
        (f'dsn: "{server.dsn}", engine: {{jwt_secret: x}}', True),
        (f'dsn: "{server.dsn}", engine: {{redis: {{password: x}}}}', True),
    ):
        config.write_text(f"servers:\n  eu1: {{{words}}}\n")
        config.chmod(0o644)
        told = by_check(posduif(*argv, code=None).json)
        if secret:
            assert (told["config.mode"]["level"], told["config.mode"]["fix"]) == ("warning", f"chmod 600 {config}")
        else:
            assert "config.mode" not in told
    assert posduif("doctor", "--config", "/nowhere.yaml", "-o", "json", code=1).json


def test_faults_of_servers(
    server: PgServer, posduif: Posduif, clean_environ: Environ, tmp_path: Path, tool: Callable[[str, str], None]
) -> None:
    config = tmp_path / "config.yaml"
    lines = [f'  a: {{dsn: "{server.dsn}"}}', '  gone: {dsn: "host=127.0.0.1 port=1 user=x"}']
    config.write_text("\n".join(["servers:", *lines]) + "\n")
    clean_environ.delenv("POSDUIF_DSN")
    result = posduif("doctor", "--config", str(config), "-o", "json", code=1)
    by_server = {(f["subject"], f["check"]): f["level"] for f in result.json}
    assert by_server["a", "server.version"] == "ok"
    assert by_server["gone", "server.reach"] == "critical"
    assert by_server["a", "server.public"] == "info"


def test_no_server_at_all(posduif: Posduif, clean_environ: Environ) -> None:
    clean_environ.delenv("POSDUIF_DSN")
    told = by_check(posduif("doctor", "-o", "json", code=1).json)
    assert told["config.servers"]["level"] == "critical"
    assert "posduif" in told["config.servers"]["fix"]


def test_versions_are_compared_by_number() -> None:
    """What a server calls its version need not be a number: "19beta1", "18rc1"."""
    facts = Setup(Server("eu1", ""), version="19beta1", version_number=190000, role="alice")
    [finding] = checks.version(facts)
    assert (finding.level, finding.message) == (Level.WARNING, "PostgreSQL 19beta1 was not tried")
    [finding] = checks.version(replace(facts, version="18rc1", version_number=180000))
    assert finding.level is Level.OK


def test_the_number_of_a_version_is_the_server_s_own(server: PgServer, posduif: Posduif) -> None:
    [row] = posduif.json("server", "list")
    assert row["version_number"] // 10000 == server.version
    assert row["version_number"] == int(server.sql("SHOW server_version_num")[0][0])


def test_nobody_is_told_to_do_what_his_login_may_not(own_server: PgServer, run_on: Callable[..., Posduif]) -> None:
    own_server.sql("CREATE ROLE alice LOGIN CREATEDB CREATEROLE")
    run_on(own_server)("server", "init")
    own_server.sql("GRANT posduif_admin TO alice")
    alice, postgres = run_on(own_server, user="alice"), "posduif server init --close"
    told = [finding for finding in alice.json("doctor", code=None) if "PUBLIC may connect" in finding["message"]]
    assert [(finding["level"], finding["fix"]) for finding in told] == [("info", None)]
    assert "its owner can end that" in told[0]["message"]
    [finding] = [f for f in alice.json("server", "init", code=None) if f["check"] == "server.open"]
    who, _, statements = finding["fix"].partition(": ")
    assert who == "a superuser types"
    [row] = run_on(own_server).json("server", "list")
    assert any(warning.endswith(postgres) for warning in row["warnings"]), "who may is told the command"
    own_server.sql(statements)
    told = run_on(own_server, user="alice").json("doctor", code=None)
    assert not any("PUBLIC may connect" in finding["message"] for finding in told)
