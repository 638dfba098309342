"""A real PostgreSQL for every test: the embedded one and, where it is installed, the system's, or --dsn."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from posduif_cli import main
from posduif_cli.db import embedded

REPO = Path(__file__).parent.parent
# The versions of the bundled migrations; a new one must not break a test that is about something else.
BUNDLED = sorted(path.name.partition("_")[0] for path in (REPO / "sql" / "migrations").glob("*.sql"))
LATEST = BUNDLED[-1]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--dsn", help="run against this server in place of the embedded one (a superuser's DSN)")


def _system_bin() -> Path | None:
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
    chosen = {"fsync": "off", "full_page_writes": "off", "max_connections": "200", **settings}
    _, started = embedded.start(data_dir, bin_dir=bin_dir, settings=chosen)
    dsn = embedded.dsn(data_dir, user=embedded.SUPERUSER)
    with psycopg.connect(dsn, autocommit=True) as conn:
        if started and conn.execute("SELECT to_regrole('posduif_engine')").fetchone() == (None,):
            # A server like anyone's, not like the one of this machine's commands.
            conn.execute("DROP ROLE IF EXISTS posduif_local, posduif_admin")
            (data_dir / "posduif-login").unlink()
        return PgServer(dsn, conn.info.server_version // 10000, data_dir, bin_dir)


def _shared(config: pytest.Config) -> Path:
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
    system = _system_bin()
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
    bin_dir = None
    if request.param == "system" and (bin_dir := _system_bin()) is None:
        pytest.skip("no PostgreSQL is installed on this system beside the embedded one")
    return start(_shared(request.config) / folder, bin_dir)


@pytest.fixture
def own_server() -> Iterator[PgServer]:
    """A server for this test alone, without any posduif role yet."""
    folder = scratch()
    try:
        yield start(folder / "own")
    finally:
        embedded.stop(folder / "own")
        shutil.rmtree(folder, ignore_errors=True)


@dataclass(frozen=True)
class Result:
    """What a command answered."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        import json

        return json.loads(self.out)

    @property
    def error(self) -> Any:
        import json

        return json.loads(self.err)["error"]


class Posduif:
    """Runs commands against one server, in this process or in one of its own."""

    def __init__(self, capfd: pytest.CaptureFixture[str], environ: dict[str, str]) -> None:
        self.capfd = capfd
        self.environ = environ

    def __call__(self, *argv: str, code: int | None = 0) -> Result:
        self.capfd.readouterr()
        exit_code = main.run(list(argv))
        captured = self.capfd.readouterr()
        result = Result(exit_code, captured.out, captured.err)
        assert code is None or result.code == code, (argv, result)
        return result

    def json(self, *argv: str, code: int | None = 0) -> Any:
        return self(*argv, "-o", "json", code=code).json

    def process(self, *argv: str, stdin: str | None = None, **environ: str) -> Result:
        done = subprocess.run(
            [sys.executable, "-m", "posduif_cli", *argv],
            env={**os.environ, **environ},
            input=stdin,
            stdin=subprocess.DEVNULL if stdin is None else None,
            capture_output=True,
            text=True,
            timeout=120,
        )
        return Result(done.returncode, done.stdout, done.stderr)

    def popen(self, *argv: str, **environ: str) -> "subprocess.Popen[bytes]":
        return subprocess.Popen(
            [sys.executable, "-m", "posduif_cli", *argv],
            env={**os.environ, **environ},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )


@pytest.fixture
def clean_environ(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    """No configuration, no libpq variables, a home of its own."""
    for name in list(os.environ):
        if name.startswith(("POSDUIF_", "PG", "XDG_")) or name in ("NO_COLOR", "CLICOLOR_FORCE"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("POSDUIF_DATA_DIR", str(tmp_path / "none"))
    return monkeypatch


@pytest.fixture
def run_on(clean_environ: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[[PgServer], Posduif]:
    """Makes a runner of commands against a server that the test chooses."""

    def make(server: PgServer, **parts: Any) -> Posduif:
        clean_environ.setenv("POSDUIF_DSN", server.dsn_for(**parts) if parts else server.dsn)
        return Posduif(capfd, {})

    return make


@pytest.fixture
def posduif(server: PgServer, run_on: Callable[[PgServer], Posduif]) -> Posduif:
    """Runs commands against the server under test."""
    return run_on(server)


def forget(server: PgServer, name: str) -> None:
    """Remove everything under a tenant's name, whatever state it is in."""
    server.sql(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
    server.sql(f"DROP ROLE IF EXISTS {name}_engine")


@pytest.fixture
def name(server: PgServer) -> Iterator[str]:
    """A tenant's name that nobody has; what it names is removed afterwards."""
    chosen = f"t{uuid.uuid4().hex[:12]}"
    yield chosen
    forget(server, chosen)


@pytest.fixture
def tenant(posduif: Posduif, name: str) -> str:
    """A tenant with a web user `desk` and a url."""
    posduif("tenant", "create", name, "--web-user", "desk", "--url", f"https://{name}.example.com")
    return name


@pytest.fixture
def bystander(server: PgServer, name: str) -> Iterator[Callable[[], None]]:
    """A database and a role of other people with a name much like ours, and a check that they were left alone."""
    other = f"{name}_x"
    server.sql(f"CREATE ROLE {other}_engine")
    server.sql(f"CREATE DATABASE {other} OWNER {other}_engine CONNECTION LIMIT 7")

    def fingerprint() -> list[tuple[Any, ...]]:
        return server.sql(
            """SELECT d.*::text, r.*::text, shobj_description(d.oid, 'pg_database'),
                      shobj_description(r.oid, 'pg_authid')
               FROM pg_database d, pg_authid r WHERE datname = %s AND rolname = %s""",
            other,
            f"{other}_engine",
        )

    before = fingerprint()

    def untouched() -> None:
        assert len(before) == 1
        assert fingerprint() == before

    yield untouched
    forget(server, other)


As = Callable[[str], Posduif]


@pytest.fixture(params=["embedded", "system"])
def fresh(request: pytest.FixtureRequest) -> Iterator[PgServer]:
    """A server without posduif's roles, with the logins alice and bob (who may) and carol (who may not)."""
    system = _system_bin()
    if request.param == "system" and system is None:
        pytest.skip("no PostgreSQL is installed on this system beside the embedded one")
    folder = scratch()
    try:
        server = start(folder / "own", system if request.param == "system" else None)
        server.sql("CREATE ROLE alice LOGIN CREATEDB CREATEROLE; CREATE ROLE bob LOGIN CREATEDB CREATEROLE")
        server.sql("CREATE ROLE carol LOGIN CREATEROLE")
        yield server
    finally:
        embedded.stop(folder / "own")
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def as_(fresh: PgServer, run_on: Any) -> As:
    """Makes the runner of one login's commands; only the one made last may be used."""
    return lambda login: run_on(fresh, user=login)
