"""TLS: a certificate made here, a server that shows it, and what a connection string that wants it makes of it."""

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import trustme

from posduif_cli.core.fleet.fleet import Fleet
from posduif_cli.db import embedded
from posduif_cli.models.servers import Server
from support.runner import Posduif
from support.servers import PgServer, free_port, private, scratch, start, system_bin

pytestmark = pytest.mark.one_server


@dataclass(frozen=True)
class Tls:
    """A server that takes TLS and nothing else over TCP, with the CA that its clients are to trust."""

    server: PgServer
    ca: Path
    port: int

    def dsn(self, mode: str, host: str = "localhost", ca: Path | None = None) -> str:
        return f"host={host} port={self.port} user=tls password=wonder sslmode={mode} sslrootcert={ca or self.ca}"


@pytest.fixture(scope="module")
def tls() -> Iterator[Tls]:
    bin_dir = system_bin()
    if bin_dir is None:
        pytest.skip("no PostgreSQL with TLS is installed: the embedded one is built without")
    folder = scratch()
    data_dir, port = folder / "tls", free_port()
    try:
        server = start(data_dir, bin_dir)
        pgdata = Path(server.sql("SHOW data_directory")[0][0])
        server.sql("CREATE ROLE tls LOGIN CREATEDB CREATEROLE PASSWORD 'wonder'")
        authority = trustme.CA()
        ca = folder / "ca.pem"
        authority.cert_pem.write_to_path(ca)
        certificate = authority.issue_cert("localhost")
        certificate.private_key_pem.write_to_path(pgdata / "server.key")
        certificate.cert_chain_pems[0].write_to_path(pgdata / "server.crt")
        (pgdata / "server.key").chmod(0o600)
        for name in ("server.key", "server.crt"):
            shutil.chown(pgdata / name, pgdata.stat().st_uid, pgdata.stat().st_gid)
        embedded.stop(data_dir)
        listening = {"listen_addresses": "127.0.0.1", "port": str(port)}
        yield Tls(start(data_dir, bin_dir, ssl="on", **listening), ca, port)
    finally:
        embedded.stop(data_dir)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def wanting(clean_environ: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[[str], Posduif]:
    """Makes a runner of commands that use a DSN."""

    def make(dsn: str) -> Posduif:
        clean_environ.setenv("POSDUIF_DSN", dsn)
        return Posduif(capfd, {})

    return make


def test_a_tenant_over_verified_tls(tls: Tls, wanting: Callable[[str], Posduif], tmp_path: Path) -> None:
    posduif = wanting(tls.dsn("verify-full"))
    file = tmp_path / "acme.yaml"
    posduif("tenant", "create", "acme", "--web-user", "desk", "--engine-config", str(file))
    manifest = tmp_path / "list.csv"
    manifest.write_text("name\n" + "\n".join(f"t{number}" for number in range(8)) + "\n")
    posduif("tenant", "create", "--from", str(manifest))
    posduif("tenant", "verify", "--all")
    posduif("migrate", "status", "--all", "--check")
    fleet = Fleet((Server("here", tls.dsn("verify-full")),), "test")
    with fleet.maintenance(fleet.servers[0]) as session:
        assert session.raw.pgconn.ssl_in_use
    findings = {f["check"]: f for f in posduif.json("server", "init", code=None)}
    assert findings["server.tls"]["value"] == "on"
    for name in ("acme", *(f"t{number}" for number in range(8))):
        posduif("tenant", "drop", name, "--confirm", name)


@pytest.mark.parametrize(
    ("mode", "host", "words", "hint"),
    [
        ("verify-full", "127.0.0.1", "does not match host name", "the name that stands in"),
        ("verify-full", "localhost", "certificate verify failed", "sslrootcert=FILE"),
        ("verify-ca", "localhost", "certificate verify failed", "sslrootcert=FILE"),
        ("verify-full", "localhost", "does not exist", "sslrootcert=FILE"),
    ],
)
def test_a_server_that_cannot_be_trusted(
    tls: Tls, wanting: Callable[[str], Posduif], tmp_path: Path, mode: str, host: str, words: str, hint: str
) -> None:
    ca = tls.ca
    if words == "certificate verify failed":
        ca = tmp_path / "other.pem"
        trustme.CA().cert_pem.write_to_path(ca)
    if words == "does not exist":
        ca = tmp_path / "nothing.pem"
    result = wanting(tls.dsn(mode, host, ca))("tenant", "list", "-o", "json", code=6)
    assert result.error["code"] == "tls_failed"
    assert words in result.error["why"]
    assert hint in " ".join(result.error["try"])
    assert "wonder" not in result.err


@pytest.mark.parametrize("mode", ["require", "verify-ca", "verify-full"])
def test_a_server_without_tls(
    server: PgServer, wanting: Callable[[str], Posduif], tls: Tls, own_tcp: PgServer, mode: str
) -> None:
    port = own_tcp.sql("SHOW port")[0][0]
    dsn = f"host=localhost port={port} user=postgres sslmode={mode} sslrootcert={tls.ca}"
    result = wanting(dsn)("tenant", "list", "-o", "json", code=6)
    assert result.error["code"] == "tls_failed"
    assert "offers no TLS" in result.error["message"]
    assert "ssl = on" in " ".join(result.error["try"])
    # Never the advice to do without.
    assert "disable" not in result.err


@pytest.fixture
def own_tcp() -> Iterator[PgServer]:
    """A server that listens on TCP and has no certificate."""
    with private(listen_addresses="127.0.0.1", port=str(free_port())) as server:
        yield server
