"""`server start --listen`: an engine on this machine reaches the embedded server by TCP, with its password only."""

import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
import yaml

from posduif_cli.db import embedded
from support.runner import Posduif
from support.servers import free_port, scratch

pytestmark = pytest.mark.one_server


@pytest.fixture
def posduif(clean_environ: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Iterator[Posduif]:
    folder = scratch()
    clean_environ.setenv("POSDUIF_DATA_DIR", str(folder / "own"))
    try:
        yield Posduif(capfd, {})
    finally:
        embedded.stop(folder / "own")
        shutil.rmtree(folder, ignore_errors=True)


def test_an_engine_gets_in_by_its_password_and_nobody_else(posduif: Posduif, tmp_path: Path) -> None:
    address = f"127.0.0.1:{free_port()}"
    assert posduif.json("server", "start", "--listen", address)["listen"] == address
    file = tmp_path / "acme.yaml"
    posduif("tenant", "create", "acme", "--engine-config", str(file))
    posduif("tenant", "create", "other")
    settings = yaml.safe_load(file.read_text())["postgres"]
    assert f"{settings['host']}:{settings['port']}" == address
    told = {"host": settings["host"], "port": settings["port"], "sslmode": settings["ssl_mode"]}
    with psycopg.connect(**told, user=settings["user"], password=settings["password"], dbname=settings["db"]) as conn:
        assert conn.execute("SELECT count(*) FROM users").fetchone() == (0,)
    with psycopg.connect(**told, user=settings["user"], password=settings["password"], dbname=settings["db"]):
        assert "the engines of acme were connected" in posduif("server", "stop").err
    posduif("server", "start")
    refused = [
        {"user": settings["user"], "password": "wrong", "dbname": "acme"},
        {"user": settings["user"], "password": settings["password"], "dbname": "other"},
        {"user": "postgres", "dbname": "postgres"},
        {"user": "postgres", "password": "", "dbname": "postgres"},
        {"user": "other_engine", "dbname": "other"},
    ]
    for parts in refused:
        with pytest.raises(psycopg.OperationalError):
            psycopg.connect(**told, **parts)


def test_a_file_with_an_address_of_before_is_told_and_refreshed(posduif: Posduif, tmp_path: Path) -> None:
    file, address = tmp_path / "acme.yaml", f"127.0.0.1:{free_port()}"
    posduif("server", "start")
    posduif("tenant", "create", "acme", "--engine-config", str(file))
    assert yaml.safe_load(file.read_text())["postgres"]["host"].startswith("/")
    posduif("server", "stop")
    posduif("server", "start", "--listen", address)
    rotated = posduif("tenant", "rotate-password", "acme", "--engine-config", str(file))
    assert "postgres.host, postgres.port" in rotated.err
    assert f"posduif tenant engine-config acme --refresh {file}" in rotated.err
    posduif("tenant", "engine-config", "acme", "--refresh", str(file))
    told = yaml.safe_load(file.read_text())["postgres"]
    assert f"{told['host']}:{told['port']}" == address
    psycopg.connect(host=told["host"], port=told["port"], user=told["user"], password=told["password"],
                    dbname=told["db"], sslmode=told["ssl_mode"]).close()  # fmt: skip


def test_it_is_kept_until_it_is_turned_off(posduif: Posduif) -> None:
    address = f"127.0.0.1:{free_port()}"
    assert posduif.json("server", "start")["listen"] is None
    # A server that runs takes no other address; it is not stopped behind people's backs.
    running = posduif("server", "start", "--listen", address, "-o", "json", code=5)
    assert "posduif server stop" in running.error["try"]
    posduif("server", "stop")
    posduif("server", "start", "--listen", address)
    posduif("server", "start", "--listen", address)
    posduif("server", "stop")
    posduif("tenant", "list")
    assert posduif.json("server", "status")["listen"] == address
    posduif("server", "start", "--listen", "off", code=5)
    posduif("server", "stop")
    assert posduif.json("server", "start", "--listen", "off")["listen"] is None
    posduif("server", "stop")
    assert posduif.json("server", "start")["listen"] is None


def test_a_port_that_is_taken_is_not_kept(posduif: Posduif) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        failed = posduif("server", "start", "--listen", address, "-o", "json", code=7)
        assert "posduif server start --listen off" in failed.error["try"]
        assert posduif.json("server", "start")["listen"] is None


@pytest.mark.parametrize(
    "text", ["0.0.0.0:5433", "10.1.2.3:5433", "127.0.0.1", "127.0.0.1:80", "db:5433", ":5433", "x"]
)
def test_nothing_beyond_this_machine(posduif: Posduif, text: str) -> None:
    assert "127.0.0.1:5433" in posduif("server", "start", "--listen", text, code=2).err
    posduif("server", "status", code=1)


def test_nothing_is_left_of_it_by_a_removal(posduif: Posduif) -> None:
    posduif("server", "start", "--listen", f"127.0.0.1:{free_port()}")
    posduif("server", "remove", "--confirm", "embedded")
    posduif("server", "start")
    assert posduif.json("server", "status")["listen"] is None
