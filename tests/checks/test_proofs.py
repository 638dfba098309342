"""A server proves that it is PostgreSQL enough, and its administrators get a login that is no superuser."""

import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from posduif_cli.db import embedded
from support.relay import Relay
from support.runner import As, Posduif
from support.servers import PgServer, scratch, start

UNLIKE = {
    "roll back": (b"ROLLBACK", b"COMMIT  "),
    "closed": (b"ALLOW_CONNECTIONS false", b"ALLOW_CONNECTIONS true "),
    "SCRAM": (b"PASSWORD 'SCRAM", b"PASSWERD 'SCRAM"),
    "second session": (b"pg_try_advisory_lock(", b"              int4ne("),
}


@pytest.mark.parametrize("missing", UNLIKE)
def test_what_a_server_lacks_is_named(fresh: PgServer, run_on: Any, missing: str) -> None:
    with Relay(fresh, instead=UNLIKE[missing]) as relay:
        posduif = run_on(fresh)
        error = posduif("server", "init", "--dsn", relay.dsn(), "-o", "json", code=3).error
        assert error["code"] == "not_enough"
        assert missing in error["why"], error
        if missing == "second session":
            assert fresh.sql("SELECT 1 FROM pg_roles WHERE rolname ~ '^posduif'") == [], "nothing was made before"
            assert "keep a second session out" in posduif("doctor", "--dsn", relay.dsn(), code=1).out
            posduif("tenant", "create", "acme", "--dsn", relay.dsn(), code=3)
            assert fresh.sql("SELECT 1 FROM pg_roles WHERE rolname ~ '^posduif|^acme'") == []
        if missing == "closed":
            assert (
                missing in posduif("tenant", "create", "acme", "--dsn", relay.dsn(), "-o", "json", code=3).error["why"]
            )
    assert fresh.sql("SELECT datname FROM pg_database WHERE datname ~ 'proof'") == []
    assert fresh.sql("SELECT rolname FROM pg_roles WHERE rolname ~ 'proof'") == []


def test_postgresql_is_enough_and_nothing_stays(fresh: PgServer, as_: As) -> None:
    fresh.sql("CREATE ROLE posduif_proof_theirs")
    alice = as_("alice")
    alice("server", "init")
    fresh.sql("CREATE DATABASE posduif_proof_dead OWNER posduif_admin")
    alice("server", "init")
    assert fresh.sql("SELECT datname FROM pg_database WHERE datname ~ 'proof'") == []


@pytest.fixture
def by_tcp(tmp_path: Path) -> Iterator[PgServer]:
    """A server whose superuser `root` comes by TCP with a password, and has a passfile for it."""
    folder = scratch()
    try:
        server = start(folder / "own")
        embedded.stop(folder / "own")
        port = 20000 + hash(str(folder)) % 20000
        embedded.start(folder / "own", listen=("127.0.0.1", port))
        dsn = embedded.dsn(folder / "own", user=embedded.SUPERUSER)
        with psycopg.connect(dsn, autocommit=True) as conn:
            conn.execute("CREATE ROLE root_ LOGIN SUPERUSER PASSWORD 'first:secret'")
        yield PgServer(f"host=127.0.0.1 port={port} user=root_ dbname=postgres", server.version, folder / "own")
    finally:
        embedded.stop(folder / "own")
        shutil.rmtree(folder, ignore_errors=True)


def test_a_login_for_administrators(by_tcp: PgServer, run_on: Any, tmp_path: Path, clean_environ: Any) -> None:
    passfile = tmp_path / ".pgpass"
    passfile.write_text("# mine\n127.0.0.1:*:*:root_:first\\:secret\n")
    passfile.chmod(0o600)
    posduif: Posduif = run_on(by_tcp)
    done = posduif("server", "init", "--login", "ops:x")
    assert "user=ops:x" in done.err
    lines = passfile.read_text().splitlines()
    assert stat.S_IMODE(passfile.stat().st_mode) == 0o600
    port = conninfo_to_dict(by_tcp.dsn)["port"]
    assert lines[0].startswith(f"127.0.0.1:{port}:*:ops\\:x:")
    assert lines[1:] == ["# mine", "127.0.0.1:*:*:root_:first\\:secret"]
    before = passfile.read_bytes()
    assert "unchanged" in posduif("server", "init", "--login", "ops:x").err
    assert passfile.read_bytes() == before

    ops: Posduif = run_on(by_tcp, user="ops:x")
    ops("tenant", "create", "acme", "--web-user", "desk")
    ops("tenant", "suspend", "acme")
    [listed] = ops.json("server", "list")
    assert not [warning for warning in listed["warnings"] if "superuser" in warning]
    root: Posduif = run_on(by_tcp)
    assert any("superuser" in warning for [row] in [root.json("server", "list")] for warning in row["warnings"])
    assert [row["level"] for row in root.json("server", "init") if row["check"] == "server.superuser"] == ["warning"]

    for taken, code in (("root_", 5), ("posduif_admin", 2), ("acme_engine", 2), ("pg_x", 2)):
        posduif("server", "init", "--login", taken, code=code)


def test_without_a_password_none_is_made(fresh: PgServer, as_: As, tmp_path: Path) -> None:
    alice = as_("alice")
    assert "without a password" in alice("server", "init", "--login", "ops").err
    assert not (tmp_path / ".pgpass").exists()
    assert fresh.sql("SELECT rolpassword, rolsuper, rolcreaterole FROM pg_authid WHERE rolname = 'ops'") == [
        (None, False, False)
    ]
    as_("ops")("tenant", "create", "acme")


def test_monitoring_is_let_in_where_the_login_may(fresh: PgServer, as_: As) -> None:
    alice = as_("alice")
    findings = {row["check"]: row for row in alice.json("server", "init")}
    fresh.sql("CREATE ROLE watcher IN ROLE posduif_health")
    findings |= {row["check"]: row for row in alice.json("server", "init")}
    if fresh.version >= 16:
        fresh.sql(findings["server.monitoring"]["fix"].partition("types: ")[2])
    assert fresh.sql(
        "SELECT pg_has_role(r, 'pg_monitor', 'USAGE') FROM unnest('{posduif_admin,posduif_health}'::text[]) r"
    ) == [
        (True,),
        (True,),
    ]
    assert "server.monitoring" not in {row["check"] for row in alice.json("server", "init")}
    assert "alice" in next(row["message"] for row in alice.json("server", "init") if row["value"] == "posduif_admin")


@pytest.mark.one_server
def test_the_embedded_server_is_administered_without_a_superuser(
    tmp_path: Path, run_on: Any, clean_environ: Any, own_server: PgServer
) -> None:
    assert own_server.data_dir is not None
    place = own_server.data_dir
    clean_environ.setenv("POSDUIF_DATA_DIR", str(place))
    posduif = Posduif(run_on(own_server).capfd, {})
    clean_environ.delenv("POSDUIF_DSN")
    # As an older posduif left it: no login, and a tenant.
    (place / "posduif-login").unlink(missing_ok=True)
    copied = own_server.dsn
    posduif("tenant", "create", "old", "--dsn", copied)
    posduif("tenant", "list")
    assert own_server.sql(
        "SELECT rolsuper, rolcreaterole, rolcreatedb FROM pg_roles WHERE rolname = 'posduif_local'"
    ) == [(False, False, False)]
    assert "user=posduif_local" in posduif.json("server", "status")["dsn"]
    posduif("tenant", "create", "new", "--web-user", "desk")
    posduif("user", "create", "old", "desk", "--type", "web")
    posduif("migrate", "up", "--all")
    posduif("tenant", "verify", "--all")
    posduif("health")
    [listed] = posduif.json("server", "list", "--dsn", copied)
    assert any("superuser" in warning for warning in listed["warnings"])

    # A start makes again what is missing.
    embedded.stop(place)
    posduif("server", "start")
    own_server.sql("REVOKE posduif_admin FROM posduif_local")
    embedded.stop(place)
    posduif("tenant", "list")


@pytest.mark.one_server
def test_the_superuser_keeps_to_the_socket(by_tcp: PgServer) -> None:
    with pytest.raises(psycopg.OperationalError, match="rejects"):
        psycopg.connect(by_tcp.dsn_for(user="postgres", password="any"))
