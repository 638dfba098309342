"""A real PostgreSQL for every test: the embedded one and, where it is installed, the system's, or --dsn."""

import os
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from posduif_cli.db import embedded

ROOT = os.geteuid() == 0
as_root = pytest.mark.skipif(not ROOT, reason="only root can become another user, or make what belongs to one")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--dsn", help="run against this server in place of the embedded one (a superuser's DSN)")


def system_bin() -> Path | None:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda path: int(path.parts[4]))
    return found[-1].parent if found else None


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "server" in metafunc.fixturenames:
        kinds = ["dsn"] if metafunc.config.getoption("dsn") else ["embedded", "system"]
        if metafunc.definition.get_closest_marker("one_server"):
            kinds = kinds[:1]
        metafunc.parametrize("server", kinds, indirect=True, scope="session")


def scratch() -> Path:
    """A short folder that a server run by another user can reach, on a RAM disk where there is room."""
    shm = Path("/dev/shm")
    roomy = shm.is_dir() and os.access(shm, os.W_OK) and shutil.disk_usage(shm).free > 4 * 1024**3
    folder = Path(tempfile.mkdtemp(prefix="pd-", dir=shm if roomy else None))
    folder.chmod(0o755)
    return folder


@dataclass(frozen=True)
class PgServer:
    """A server under test, with a superuser's DSN."""

    dsn: str
    version: int
    data_dir: Path | None = None
    bin_dir: Path | None = None

    def connect(self, database: str = "postgres", **parts: Any) -> psycopg.Connection[Any]:
        return psycopg.connect(make_conninfo(self.dsn, dbname=database, **parts), autocommit=True)

    def sql(self, query: str, *params: Any, database: str = "postgres", **parts: Any) -> list[tuple[Any, ...]]:
        with self.connect(database, **parts) as conn:
            cursor = conn.execute(query.encode(), params or None)
            return cursor.fetchall() if cursor.description else []

    def dsn_for(self, **parts: Any) -> str:
        return make_conninfo(self.dsn, **parts)


def start(data_dir: Path, bin_dir: Path | None = None, **settings: str) -> PgServer:
    chosen = {
        "max_connections": "200",
        "max_prepared_transactions": "2",
        **settings,
    }
    _, started = embedded.start(data_dir, bin_dir=bin_dir, settings=chosen)
    dsn = embedded.dsn(data_dir, user=embedded.SUPERUSER)
    with psycopg.connect(dsn, autocommit=True) as conn:
        if started and conn.execute("SELECT to_regrole('posduif_engine')").fetchone() == (None,):
            # A server like anyone's, not like the one of this machine's commands.
            conn.execute("DROP ROLE IF EXISTS posduif_local, posduif_admin")
            (data_dir / "posduif-login").unlink()
        return PgServer(dsn, conn.info.server_version // 10000, data_dir, bin_dir)


def shared(config: pytest.Config) -> Path:
    """The folder of this run's servers, the same for all xdist workers; the controller made it."""
    worker = getattr(config, "workerinput", None)
    return Path(worker["posduif"] if worker else config.stash[SHARED])


SHARED: pytest.StashKey[str] = pytest.StashKey()


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "one_server: once is enough; what is tested has no part in PostgreSQL's version")
    # In the background of a script all that the tests start would ignore ctrl-C; a handler is not inherited.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if not hasattr(config, "workerinput"):
        config.stash[SHARED] = str(scratch())


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    node.workerinput["posduif"] = node.config.stash[SHARED]


def pytest_unconfigure(config: pytest.Config) -> None:
    if hasattr(config, "workerinput") or SHARED not in config.stash:
        return
    folder = Path(config.stash[SHARED])
    for data_dir in folder.iterdir():
        embedded.stop(data_dir)
    shutil.rmtree(folder, ignore_errors=True)


def pytest_report_header(config: pytest.Config) -> str:
    system = system_bin()
    return f"postgresql: {config.getoption('dsn') or 'embedded'}, system: {system or 'none installed'}"


@pytest.fixture(scope="session")
def server(request: pytest.FixtureRequest) -> PgServer:
    """Each PostgreSQL there is; a test that takes it runs once on each."""
    return server_of(request, request.param)


def server_of(request: pytest.FixtureRequest, folder: str) -> PgServer:
    """Start the server that a test's parameter names, in a folder of the run's."""
    dsn = request.config.getoption("dsn")
    if dsn:
        with psycopg.connect(dsn) as conn:
            return PgServer(dsn, conn.info.server_version // 10000)
    return start(shared(request.config) / folder, programs(request))


def programs(request: pytest.FixtureRequest) -> Path | None:
    """Return where the programs of the PostgreSQL are that a parameter names, None for the embedded one's."""
    if request.param != "system":
        return None
    found = system_bin()
    if found is None:
        pytest.skip("no PostgreSQL is installed on this system beside the embedded one")
    return found


@contextmanager
def private(bin_dir: Path | None = None, **settings: str) -> Iterator[PgServer]:
    """Start a server in a new folder, without any posduif role, and remove both at the end."""
    folder = scratch()
    try:
        yield start(folder / "own", bin_dir, **settings)
    finally:
        embedded.stop(folder / "own")
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def own_server() -> Iterator[PgServer]:
    """A server for this test alone, without any posduif role yet."""
    with private() as server:
        yield server


@pytest.fixture(params=["embedded", "system"])
def fresh(request: pytest.FixtureRequest) -> Iterator[PgServer]:
    """A server without posduif's roles, with the logins alice and bob (who may) and carol (who may not)."""
    with private(programs(request)) as server:
        server.sql("CREATE ROLE alice LOGIN CREATEDB CREATEROLE; CREATE ROLE bob LOGIN CREATEDB CREATEROLE")
        server.sql("CREATE ROLE carol LOGIN CREATEROLE")
        yield server


def dump(server: PgServer, database: str, *options: str) -> str:
    """Dump a database with the server's own pg_dump, without what is random in it."""
    program = embedded.locate(server.bin_dir).bin_dir / "pg_dump"
    done = subprocess.run(
        [program, *options, server.dsn_for(dbname=database)], capture_output=True, text=True, check=True
    )
    return "\n".join(line for line in done.stdout.splitlines() if not line.startswith(("\\restrict", "\\unrestrict")))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
