"""Cut a changing command before any message that it sends to PostgreSQL, type it again: it is finished, all is clean.

A message is a Query or a Sync. The client is killed, or the server's process is ended, before the n-th of them passes,
for n = 1, 2, ... until the command ends by itself. A few cuts of each command run always; `pytest -m slow` cuts all.
"""

import json
import os
import random
import re
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest
import yaml

from posduif_cli.db import connect
from posduif_cli.errors import ServerUnreachable
from posduif_cli.models.servers import Server
from support.relay import Cutter
from support.runner import Result
from support.servers import PgServer, scratch, server_of
from support.sources import LATEST, REPO
from support.tenants import matches

# Runs each command in a child of a process that has imported all of posduif: a start would take longer than the rest.
HOST = """
import importlib, json, os, pkgutil, sys
import posduif_cli.main
for module in pkgutil.walk_packages(posduif_cli.__path__, "posduif_cli."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
for line in sys.stdin:
    ask = json.loads(line)
    child = os.fork()
    if not child:
        try:
            os.environ.clear()
            os.environ.update(ask["environ"])
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            for number, path in ((1, ask["out"]), (2, ask["err"])):
                os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), number)
            sys.argv = ["posduif", *ask["argv"]]
            posduif_cli.main.entry()
        finally:
            os._exit(99)
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""
PATIENCE = 90.0  # seconds; who takes longer hangs
DEEDS = ("client", "backend")
GROUPS = {"posduif_admin", "posduif_engine", "posduif_support", "posduif_health", "posduif_cron", "posduif_backup"}
FIRST = (REPO / "sql" / "migrations" / "0001_initial_schema.sql").read_text()


class Host:
    """Runs commands in processes of their own, without the time that their start takes."""

    def __init__(self) -> None:
        self.folder = scratch()
        self.process = subprocess.Popen(
            [sys.executable, "-c", HOST], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
        )
        self.pid = 0

    def run(self, *argv: str) -> Result:
        """Run a command to its end, in this process's environment; one that hangs is killed, and fails the test."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        out, err = self.folder / "out", self.folder / "err"
        self.pid = 0
        ask = {"argv": argv, "environ": dict(os.environ), "out": str(out), "err": str(err)}
        self.process.stdin.write(json.dumps(ask).encode() + b"\n")
        self.pid = self._read()
        if not select.select([self.process.stdout], [], [], PATIENCE)[0]:
            self.kill()
            self._read()
            pytest.fail(f"posduif {' '.join(argv)} hangs: {err.read_text()}")
        return Result(self._read(), out.read_text(), err.read_text())

    def _read(self) -> int:
        assert self.process.stdout is not None
        return int(self.process.stdout.readline())

    def kill(self) -> None:
        """Kill the command that runs, and return when it is dead."""
        while not self.pid:  # it is not read yet
            time.sleep(0.001)
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
            while True:
                os.kill(self.pid, 0)
                time.sleep(0.001)

    def close(self) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait(10)
        self.process.stdout.close()
        shutil.rmtree(self.folder)


class Ground:
    """A server of this worker alone, with one relay before it that all commands go through."""

    def __init__(self, server: PgServer, host: Host, relay: Cutter, folder: Path) -> None:
        self.server, self.host, self.relay, self.folder = server, host, relay, folder
        self.conn = server.connect()
        self.config: tuple[str, ...] = ()
        self.log_in()

    def log_in(self, **parts: str) -> None:
        """Let all further commands log in as someone else."""
        os.environ["POSDUIF_DSN"] = self.server.dsn_for(host=str(self.relay.folder), **parts)

    def __call__(self, *argv: str, code: int | None = 0) -> Result:
        done = self.host.run(*argv, *self.config)
        assert code in (None, done.code), (argv, done)
        return done

    def sql(self, query: str, *params: Any) -> list[tuple[Any, ...]]:
        cursor = self.conn.execute(query.encode(), params or None)
        return cursor.fetchall() if cursor.description else []

    def inside(self, query: str, *params: Any) -> list[tuple[Any, ...]]:
        """Ask the tenant's own database."""
        return self.server.sql(query, *params, database="acme")

    def forget(self, name: str = "acme") -> None:
        """Leave nothing of a tenant, whatever state it is in."""
        self.sql(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
        self.sql(f"DROP ROLE IF EXISTS {name}_engine")

    def wipe(self) -> None:
        """Leave nothing of posduif on the server."""
        own = "SELECT datname FROM pg_database WHERE datname NOT IN ('postgres', 'template0', 'template1')"
        for (name,) in self.sql(own):
            self.sql(f"DROP DATABASE {name} WITH (FORCE)")
        roles = [name for (name,) in self.sql("SELECT rolname FROM pg_roles WHERE oid >= 16384")]
        for name in roles:
            self.sql(f"DROP OWNED BY {name}")
        if roles:
            self.sql("DROP ROLE " + ", ".join(roles))

    def strike(self, argv: tuple[str, ...], nth: int, deed: str) -> tuple[Result, str]:
        """Run a command that is cut before its nth message; return what that was, "" if there were not so many."""

        def kill(pid: int) -> bool:
            self.host.kill()
            return False

        def end(pid: int) -> bool:
            assert self.sql("SELECT pg_terminate_backend(%s, 10000)", pid) == [(True,)]
            return True

        self.relay.arm(nth, kill if deed == "client" else end)
        done = self.host.run(*argv, *self.config)
        met = self.relay.met
        self.relay.arm()
        return done, met

    def messages(self, argv: tuple[str, ...]) -> int:
        """Run a command and count its messages."""
        self.relay.arm()
        self(*argv)
        return self.relay.count

    def comment(self, kind: str = "database") -> Any:
        """Return the tenant's record as it is written, or the intent on its role."""
        query = {
            "database": "SELECT shobj_description(oid, 'pg_database') FROM pg_database WHERE datname = 'acme'",
            "role": "SELECT shobj_description(oid, 'pg_authid') FROM pg_roles WHERE rolname = 'acme_engine'",
        }[kind]
        found = self.sql(query)
        return json.loads(found[0][0].removeprefix("posduif ")) if found and found[0][0] else {}

    def verifier(self, role: str = "acme_engine") -> str:
        found = self.sql("SELECT rolpassword FROM pg_authid WHERE rolname = %s", role)
        return found[0][0] or "" if found else ""

    def suspended(self) -> bool:
        """Whether a tenant is wholly suspended, or wholly not: anything in between fails."""
        login, connect = self.sql(
            "SELECT rolcanlogin, has_database_privilege(oid, 'acme', 'CONNECT') FROM pg_roles "
            "WHERE rolname = 'acme_engine'"
        )[0]
        states = {self.comment()["state"], self.comment("role")["state"]}
        assert (login, connect, states) in ((True, True, {"active"}), (False, False, {"suspended"}))
        return not login


class Command:
    """A command that changes something; `acme` is its tenant."""

    argv: tuple[str, ...] = ()
    again = 0  # what it answers when it had finished
    repeats = False  # whether it does the same once more when it had finished
    tenants: frozenset[str] = frozenset({"acme"})
    roles: frozenset[str] = frozenset()  # that the test made

    def __init__(self, ground: Ground) -> None:
        self.ground = ground
        self.file = ground.folder / "engine.yaml"

    def begin(self) -> None:
        """Make what all cuts have in common, on a server without anything of posduif."""
        self.ground("tenant", "create", "acme", "--web-user", "desk", "--url", "https://acme.example.com")

    def prepare(self, nth: int) -> None:
        """Make what the command needs to have something to do; *nth* may make a name."""

    def promise(self, times: int) -> None:
        """Fail unless what the command promises is there, done so many times if it repeats."""
        raise NotImplementedError

    def settle(self) -> None:
        """Do what the command leaves to people, who are to find nothing else."""

    def end(self) -> None:
        """Let go of what the test holds."""

    def kept(self) -> None:
        """Fail unless the file holds the password of the engine's role."""
        assert matches(self.ground.verifier(), yaml.safe_load(self.file.read_text())["postgres"]["password"])
        assert self.file.stat().st_mode & 0o777 == 0o600


COMMANDS: dict[str, type[Command]] = {}


def command(name: str) -> Callable[[type[Command]], type[Command]]:
    def note(kind: type[Command]) -> type[Command]:
        COMMANDS[name] = kind
        return kind

    return note


@command("tenant create on an empty server")
class Create(Command):
    again = 5

    def __init__(self, ground: Ground) -> None:
        super().__init__(ground)
        self.argv = ("tenant", "create", "acme", "--web-user", "desk", "--engine-config", str(self.file))

    def begin(self) -> None:
        pass

    def prepare(self, nth: int) -> None:
        self.ground.wipe()
        self.file.unlink(missing_ok=True)

    def promise(self, times: int) -> None:
        assert self.ground.comment().get("state") == "active"
        assert self.ground.comment()["schema"] == LATEST
        assert not self.ground.suspended()
        if "--web-user" in self.argv:
            assert self.ground.inside("SELECT username, user_type FROM users") == [("desk", "web")]
        database = "SELECT pg_get_userbyid(datdba)::text, datallowconn, datconnlimit FROM pg_database "
        assert self.ground.sql(database + "WHERE datname = 'acme'") == [("posduif_admin", True, -1)]
        self.kept()


@command("tenant create")
class CreateBesideRoles(Create):
    def begin(self) -> None:
        self.ground("server", "init")

    def prepare(self, nth: int) -> None:
        self.ground.forget()
        self.file.unlink(missing_ok=True)


@command("tenant create from the template")
class CreateByCopy(CreateBesideRoles):
    def begin(self) -> None:
        template(self.ground)


@command("tenant create from the template, no web user")
class CreateByCopyAlone(CreateByCopy):
    def __init__(self, ground: Ground) -> None:
        super().__init__(ground)
        self.argv = ("tenant", "create", "acme", "--engine-config", str(self.file))


@command("tenant create that makes the template")
class CreateTemplate(CreateByCopyAlone):
    tenants = frozenset({"acme", "one", "two", "three"})

    def begin(self) -> None:
        for name in sorted(self.tenants - {"acme"}):
            self.ground("tenant", "create", name)

    def prepare(self, nth: int) -> None:
        super().prepare(nth)
        for (name,) in self.ground.sql("SELECT datname FROM pg_database WHERE datname LIKE 'posduif%%'"):
            self.ground.sql(f"DROP DATABASE {name} WITH (FORCE)")


def template(ground: Ground) -> None:
    """Have a template made, and leave no tenant."""
    names = ("one", "two", "three", "four")
    for name in names:
        ground("tenant", "create", name)
    for name in names:
        ground.forget(name)
    assert ground.sql("SELECT count(*) FROM pg_database WHERE datname LIKE 'posduif_template_%%'") == [(1,)]


@command("tenant drop")
class Drop(Command):
    argv = ("tenant", "drop", "acme", "--confirm", "acme")
    again = 4
    tenants = frozenset()

    def begin(self) -> None:
        template(self.ground)

    def prepare(self, nth: int) -> None:
        self.ground.forget()
        self.ground("tenant", "create", "acme")

    def promise(self, times: int) -> None:
        left = "SELECT rolname FROM pg_roles WHERE rolname = 'acme_engine' UNION ALL "
        assert self.ground.sql(left + "SELECT datname FROM pg_database WHERE datname = 'acme'") == []


@command("tenant suspend")
class Suspend(Command):
    argv = ("tenant", "suspend", "acme")

    def prepare(self, nth: int) -> None:
        self.ground("tenant", "resume", "acme")

    def promise(self, times: int) -> None:
        assert self.ground.suspended()


@command("tenant resume")
class Resume(Command):
    argv = ("tenant", "resume", "acme")

    def prepare(self, nth: int) -> None:
        self.ground("tenant", "suspend", "acme")

    def promise(self, times: int) -> None:
        assert not self.ground.suspended()


@command("tenant rotate-password")
class Rotate(Command):
    def __init__(self, ground: Ground) -> None:
        super().__init__(ground)
        self.argv = ("tenant", "rotate-password", "acme", "--engine-config", str(self.file))
        self.before = ""

    def prepare(self, nth: int) -> None:
        self.before = self.ground.verifier()

    def promise(self, times: int) -> None:
        assert self.ground.verifier() != self.before
        self.kept()


@command("tenant rotate-password --now")
class RotateNow(Rotate):
    engine: psycopg.Connection[Any] | None = None

    def __init__(self, ground: Ground) -> None:
        super().__init__(ground)
        self.argv = (*self.argv, "--now")

    def prepare(self, nth: int) -> None:
        super().prepare(nth)
        self.end()
        self.engine = self.ground.server.connect("acme", user="acme_engine")

    def end(self) -> None:
        if self.engine is not None:
            self.engine.close()

    def promise(self, times: int) -> None:
        super().promise(times)
        assert self.ground.sql("SELECT 1 FROM pg_stat_activity WHERE usename = 'acme_engine'") == []


@command("tenant set")
class Set(Command):
    def prepare(self, nth: int) -> None:
        self.argv = ("tenant", "set", "acme", "--url", f"https://acme{nth}.example.com")
        self.ground("tenant", "set", "acme", "--url", "https://acme.example.com")

    def promise(self, times: int) -> None:
        assert self.ground.comment()["url"] == self.argv[-1]


@command("tenant adopt")
class Adopt(Command):
    argv: tuple[str, ...] = ("tenant", "adopt", "acme", "--url", "https://acme.example.com")
    roles = frozenset({"boss", "app", "ops"})

    def begin(self) -> None:
        self.ground("server", "init")
        self.ground.sql(
            "CREATE ROLE boss LOGIN; CREATE ROLE app LOGIN; CREATE ROLE ops LOGIN CREATEDB; "
            "GRANT posduif_admin, boss TO ops"
        )
        self.ground.log_in(user="ops")

    def prepare(self, nth: int) -> None:
        self.ground.forget()
        self.ground.sql("CREATE DATABASE acme OWNER boss")
        first = re.split(r"-- migrate:(?:up|down)\n", FIRST)[1]
        self.ground.inside(
            f"SET ROLE boss; {first}; "
            "INSERT INTO users (username, user_type) VALUES ('desk', 'web'), ('mia', 'mobile'); "
            "GRANT ALL ON ALL TABLES IN SCHEMA public TO app"
        )

    def promise(self, times: int) -> None:
        noted = self.ground.comment()
        assert (noted.get("state"), noted.get("schema"), noted.get("url")) == ("active", LATEST, self.argv[-1])
        assert not self.ground.suspended()
        assert self.ground.inside("SELECT username FROM users ORDER BY 1") == [("desk",), ("mia",)]
        owners = (
            "SELECT DISTINCT pg_get_userbyid(relowner)::text FROM pg_class WHERE relnamespace = 'public'::regnamespace"
        )
        assert self.ground.inside(owners) == [("posduif_admin",)]

    def settle(self) -> None:
        # Who had rights keeps them, by name; that is told, and whether it is to be is not posduif's to know.
        self.ground.sql("REVOKE ALL ON DATABASE acme FROM boss, app")


@command("tenant adopt --times-from")
class AdoptTimes(Adopt):
    def __init__(self, ground: Ground) -> None:
        super().__init__(ground)
        self.argv = ("tenant", "adopt", "acme", "--times-from", "Asia/Tokyo", "--url", "https://acme.example.com")

    def prepare(self, nth: int) -> None:
        super().prepare(nth)
        self.ground.inside("UPDATE users SET last_seen = '2026-01-02 12:00', updated_at = NULL")

    def promise(self, times: int) -> None:
        super().promise(times)
        seen = self.ground.inside("SELECT DISTINCT last_seen::text FROM users")
        assert seen == [("2026-01-02 03:00:00",)], "converted, and once"
        triggers = "SELECT DISTINCT tgenabled::text FROM pg_trigger WHERE NOT tgisinternal"
        assert self.ground.inside(triggers) == [("O",)]


@command("tenant create --engine-port")
class CreateWithPort(CreateByCopyAlone):
    def __init__(self, ground: Ground) -> None:
        super().__init__(ground)
        self.argv = (*self.argv, "--engine-port", "18080", "--redis", "redis1/3")

    def promise(self, times: int) -> None:
        super().promise(times)
        engine = {"pool": 5, "port": 18080, "redis_db": 3, "redis": "redis1:6379"}
        assert self.ground.comment()["engine"] == engine
        assert yaml.safe_load(self.file.read_text())["sse"]["port"] == 18080
        assert self.ground.sql("SELECT FROM pg_locks WHERE locktype = 'advisory'") == []


@command("tenant engine-config --refresh")
class Refresh(Rotate):
    def __init__(self, ground: Ground) -> None:
        super().__init__(ground)
        self.argv = ("tenant", "engine-config", "acme", "--refresh", str(self.file))

    def begin(self) -> None:
        super().begin()
        self.ground("tenant", "rotate-password", "acme", "--engine-config", str(self.file))

    def prepare(self, nth: int) -> None:
        noted = self.ground.comment() | {"engine": {"pool": 9, "web_pool": 1}}
        self.ground.sql(f"COMMENT ON DATABASE acme IS 'posduif {json.dumps(noted)}'")
        self.ground.sql("ALTER ROLE acme_engine CONNECTION LIMIT 19")
        self.file.write_text(self.file.read_text().replace("max_connections: 5", "max_connections: 9"))

    def promise(self, times: int) -> None:
        assert self.ground.comment()["engine"] == {"pool": 5, "redis_db": 0}
        limit = "SELECT rolconnlimit FROM pg_roles WHERE rolname = 'acme_engine'"
        assert self.ground.sql(limit) == [(26,)]
        assert yaml.safe_load(self.file.read_text())["postgres"]["max_connections"] == 5
        self.kept()


@command("tenant verify --repair")
class Repair(Command):
    argv = ("tenant", "verify", "acme", "--repair")

    def prepare(self, nth: int) -> None:
        noted = self.ground.comment() | {"schema": "0001"}
        self.ground.sql(f"COMMENT ON DATABASE acme IS 'posduif {json.dumps(noted)}'")
        self.ground.sql("REVOKE CONNECT ON DATABASE acme FROM acme_engine; ALTER ROLE acme_engine CONNECTION LIMIT 2")
        self.ground.inside("REVOKE ALL ON users, messages FROM posduif_engine, posduif_support")
        self.ground("tenant", "verify", "--all", code=1)

    def promise(self, times: int) -> None:
        assert self.ground.comment()["schema"] == LATEST
        rights = "SELECT has_table_privilege('acme_engine', 'users', 'SELECT'), rolconnlimit > 2, "
        rights += "has_database_privilege(oid, 'acme', 'CONNECT') FROM pg_roles WHERE rolname = 'acme_engine'"
        assert self.ground.inside(rights) == [(True, True, True)]


class Migrating(Command):
    """A command on files of the operator's own."""

    text = (
        "-- migrate:up\nCREATE TABLE work (id int);\nINSERT INTO work VALUES (1);\n-- migrate:down\nDROP TABLE work;\n"
    )

    def begin(self) -> None:
        super().begin()
        folder = self.ground.folder / "more"
        folder.mkdir(exist_ok=True)
        (folder / "1000_work.sql").write_text(self.text)
        config = self.ground.folder / "config.yaml"
        config.write_text(f"migrations: {{paths: ['{folder}'], lock_timeout: 2s}}\n")
        self.ground.config = ("--config", str(config))

    def up(self) -> None:
        self.ground("migrate", "up", "acme")

    def down(self) -> None:
        self.ground("migrate", "down", "acme", "--to", LATEST, "--confirm", "acme")

    def require_newest(self, version: str) -> None:
        newest = "SELECT max(version) FROM schema_migrations"
        assert (self.ground.comment()["schema"], *self.ground.inside(newest)[0]) == (version, version)
        progress = "SELECT to_regclass('posduif_migration_progress') IS NOT NULL"
        if self.ground.inside(progress) == [(True,)]:
            assert self.ground.inside("SELECT * FROM posduif_migration_progress") == []

    def indexes(self) -> list[tuple[Any, ...]]:
        named = "SELECT relname::text, indisvalid FROM pg_index JOIN pg_class c ON c.oid = indexrelid "
        return self.ground.inside(named + "WHERE relname LIKE 'work%%' ORDER BY 1")


UNTRANSACTIONAL = """-- migrate:up transaction:false
CREATE TABLE work (id int);
CREATE INDEX CONCURRENTLY work_id ON work (id);
INSERT INTO work VALUES (1);
-- migrate:down transaction:false
DROP INDEX CONCURRENTLY work_id;
ALTER TABLE work ADD gone int;
DROP TABLE work;
"""


@command("migrate up")
class Up(Migrating):
    argv = ("migrate", "up", "acme")

    def prepare(self, nth: int) -> None:
        self.down()

    def promise(self, times: int) -> None:
        self.require_newest("1000")
        assert self.ground.inside("SELECT id FROM work") == [(1,)]


@command("migrate up transaction:false")
class UpBare(Up):
    text = UNTRANSACTIONAL

    def promise(self, times: int) -> None:
        super().promise(times)
        assert self.indexes() == [("work_id", True)]


@command("migrate down")
class Down(Migrating):
    argv = ("migrate", "down", "acme", "--to", LATEST, "--confirm", "acme")

    def prepare(self, nth: int) -> None:
        self.up()

    def promise(self, times: int) -> None:
        self.require_newest(LATEST)
        assert self.ground.inside("SELECT to_regclass('work')::text") == [(None,)]


@command("migrate down transaction:false")
class DownBare(Down):
    text = UNTRANSACTIONAL


@command("migrate abandon")
class Abandon(Migrating):
    argv = ("migrate", "abandon", "acme", "1000", "--confirm", "acme")
    text = "-- migrate:up transaction:false\nCREATE TABLE work (id int);\nSELECT 1 / 0;\n"

    def prepare(self, nth: int) -> None:
        self.ground("migrate", "abandon", "acme", "1000", "--confirm", "acme")
        self.ground.inside("DROP TABLE IF EXISTS work")
        self.ground("migrate", "up", "acme", code=7)

    def promise(self, times: int) -> None:
        self.require_newest(LATEST)
        assert "failed" not in self.ground.comment()
        assert self.ground.inside("SELECT to_regclass('work')::text") == [("work",)]


class Tokens(Command):
    def token(self) -> str:
        """Make a token and return its secret."""
        return self.ground("token", "create", "acme").out.strip().rpartition("/")[2]


@command("token create")
class TokenCreate(Tokens):
    argv = ("token", "create", "acme", "--for", "Mia")
    repeats = True

    def prepare(self, nth: int) -> None:
        self.ground.inside("DELETE FROM enrollment_tokens")

    def promise(self, times: int) -> None:
        assert self.ground.inside("SELECT label FROM enrollment_tokens") == [("Mia",)] * times


@command("token revoke")
class TokenRevoke(Tokens):
    def prepare(self, nth: int) -> None:
        self.ground.inside("DELETE FROM enrollment_tokens")
        self.argv = ("token", "revoke", "acme", self.token())

    def promise(self, times: int) -> None:
        assert self.ground.inside("SELECT revoked_at IS NOT NULL FROM enrollment_tokens") == [(True,)]


@command("token purge")
class TokenPurge(Tokens):
    argv = ("token", "purge", "acme", "--older-than", "1d")

    def prepare(self, nth: int) -> None:
        self.ground.inside("DELETE FROM enrollment_tokens")
        old = (
            "INSERT INTO enrollment_tokens (created_by, tenant_id, expires_at) SELECT id, 'acme', now() - %s::interval "
        )
        for age in ("2 days", "3 days", "1 hour"):
            self.ground.inside(old + "FROM users WHERE username = 'desk'", age)

    def promise(self, times: int) -> None:
        assert self.ground.inside("SELECT count(*) FROM enrollment_tokens") == [(1,)]


@command("enroll complete")
class Enroll(Tokens):
    again = 5

    def prepare(self, nth: int) -> None:
        self.ground.inside("DELETE FROM users WHERE user_type = 'mobile'; DELETE FROM enrollment_tokens")
        self.argv = ("enroll", "complete", "acme", self.token(), "--device", "phone-1", "--username", "mia")

    def promise(self, times: int) -> None:
        assert self.ground.inside(
            """SELECT username, u.device_id, t.device_id, t.used_at IS NOT NULL, enrolled_at IS NOT NULL
               FROM users u JOIN enrollment_tokens t ON t.id = enrollment_token_id WHERE user_type = 'mobile'"""
        ) == [("mia", "phone-1", "phone-1", True, True)]


@command("user create")
class UserCreate(Command):
    argv = ("user", "create", "acme", "mia", "--type", "mobile")
    again = 5

    def prepare(self, nth: int) -> None:
        self.ground.inside("DELETE FROM users WHERE user_type = 'mobile'")

    def promise(self, times: int) -> None:
        assert self.ground.inside("SELECT username FROM users WHERE user_type = 'mobile'") == [("mia",)]


class Talking(Command):
    """A command on messages between `desk` and `mia`."""

    def begin(self) -> None:
        super().begin()
        self.ground("user", "create", "acme", "mia", "--type", "mobile")

    def prepare(self, nth: int) -> None:
        self.ground.inside("DELETE FROM messages")

    def say(self) -> str:
        """Send a message from `desk` to `mia` and return its id."""
        [(identity,)] = self.ground.inside(
            "INSERT INTO messages (sender_id, recipient_id, content) SELECT d.id, m.id, 'hello' FROM users d, users m "
            "WHERE d.username = 'desk' AND m.username = 'mia' RETURNING id::text"
        )
        return str(identity)


@command("user delete")
class UserDelete(Talking):
    argv = ("user", "delete", "acme", "mia", "--confirm", "mia")
    again = 4

    def prepare(self, nth: int) -> None:
        self.ground("user", "create", "acme", "mia", "--type", "mobile", "--if-not-exists")
        super().prepare(nth)
        self.say()

    def promise(self, times: int) -> None:
        left = "SELECT (SELECT count(*) FROM users WHERE username <> 'desk'), (SELECT count(*) FROM messages)"
        assert self.ground.inside(left) == [(0, 0)]


@command("message send")
class Send(Talking):
    argv = ("message", "send", "acme", "--from", "desk", "--to", "mia", "hello")
    repeats = True

    def promise(self, times: int) -> None:
        sent = self.ground.inside("SELECT content, status FROM messages")
        assert sent == [("hello", "pending_sync")] * times


@command("message mark")
class Mark(Talking):
    def prepare(self, nth: int) -> None:
        super().prepare(nth)
        self.argv = ("message", "mark", "acme", self.say(), "read")

    def promise(self, times: int) -> None:
        assert self.ground.inside("SELECT status, read_at IS NOT NULL FROM messages") == [("read", True)]


@command("server init")
class Init(Command):
    argv: tuple[str, ...] = ("server", "init")
    tenants = frozenset()

    def begin(self) -> None:
        pass

    def prepare(self, nth: int) -> None:
        self.ground.wipe()

    def promise(self, times: int) -> None:
        found = self.ground.sql("SELECT rolname::text FROM pg_roles WHERE rolname LIKE 'posduif%%'")
        assert {name for (name,) in found} == GROUPS
        assert self.ground.sql("SELECT pg_has_role('posduif_admin', 'pg_monitor', 'MEMBER')") == [(True,)]


@command("server init --login")
class InitLogin(Init):
    """By a superuser who comes with a password, so that the new login gets one, too."""

    argv = ("server", "init", "--login", "ops")
    roles = frozenset({"chief", "ops"})

    def prepare(self, nth: int) -> None:
        super().prepare(nth)
        self.ground.sql("CREATE ROLE chief SUPERUSER LOGIN PASSWORD 'chief-chief'")
        self.ground.log_in(user="chief", password="chief-chief")
        if nth % 2:  # or what an earlier cut left there
            (Path(os.environ["HOME"]) / ".pgpass").unlink(missing_ok=True)

    def promise(self, times: int) -> None:
        super().promise(times)
        assert self.ground.sql("SELECT pg_has_role('ops', 'posduif_admin', 'MEMBER')") == [(True,)]
        lines = (Path(os.environ["HOME"]) / ".pgpass").read_text().splitlines()
        [counts] = [line for line in lines if ":ops:" in line][:1]  # libpq takes the first
        assert matches(self.ground.verifier("ops"), counts.rpartition(":")[2])


class Copy(Command):
    """With a store, a login that is no superuser, and a backup of `acme` with one user and one message."""

    roles = frozenset({"ops"})
    backup = ""

    def begin(self) -> None:
        self.ground("server", "init")
        self.ground.sql("CREATE ROLE ops LOGIN CREATEDB; GRANT posduif_admin TO ops")
        self.ground.log_in(user="ops")
        config, folder = self.ground.folder / "config.yaml", self.ground.folder / "store"
        shutil.rmtree(folder, ignore_errors=True)
        config.write_text(f"backup: {{dir: {folder}}}\n")
        self.ground.config = ("--config", str(config))
        super().begin()
        self.write()
        self.backup = json.loads(self.ground("backup", "create", "acme", "-o", "json").out)[0]["backup"]

    def write(self) -> None:
        self.ground.inside("INSERT INTO messages (sender_id, recipient_id, content) SELECT id, id, 'x' FROM users")

    def messages(self, name: str = "acme") -> int:
        return int(self.ground.server.sql("SELECT count(*) FROM messages", database=name)[0][0])


@command("backup restore")
class Restore(Copy):
    again = 5
    tenants = frozenset({"acme", "copy"})

    def prepare(self, nth: int) -> None:
        self.ground.forget("copy")
        self.argv = ("backup", "restore", self.backup, "--as", "copy")

    def promise(self, times: int) -> None:
        shown = json.loads(self.ground("tenant", "show", "copy", "-o", "json").out)
        assert (shown["state"], self.messages("copy")) == ("active", 1)


@command("backup restore over a tenant")
class RestoreOver(Copy):
    def prepare(self, nth: int) -> None:
        self.settle()
        if self.messages() == 1:
            self.write()
        self.argv = ("backup", "restore", self.backup, "--confirm", "acme")

    def promise(self, times: int) -> None:
        assert (self.ground.comment().get("state"), self.messages()) == ("active", 1)
        assert not self.ground.suspended()

    def settle(self) -> None:
        self.ground("backup", "discard", "acme", "--confirm", "acme")


@command("backup restore --undo")
class Undo(Copy):
    argv = ("backup", "restore", "--undo", "--confirm", "acme")

    def prepare(self, nth: int) -> None:
        """One that was restored, and has less than what was set aside."""
        self.settle()
        if self.messages() == 1:
            self.write()
        self.ground("backup", "restore", self.backup, "--confirm", "acme", "--no-backup")

    def promise(self, times: int) -> None:
        assert (self.ground.comment().get("state"), self.messages()) == ("active", 1 if times == 2 else 2)
        assert not self.ground.suspended()

    repeats = True  # it swaps back and forth

    def settle(self) -> None:
        self.ground("backup", "discard", "acme", "--confirm", "acme")


@command("tenant drop with a last backup")
class DropSaved(Copy):
    argv = ("tenant", "drop", "acme", "--confirm", "acme")
    again = 4
    tenants = frozenset[str]()

    def prepare(self, nth: int) -> None:
        self.ground.forget()
        self.ground("backup", "restore", self.backup)

    def promise(self, times: int) -> None:
        assert self.ground.sql("SELECT 1 FROM pg_database WHERE datname = 'acme'") == []
        assert self.ground.sql("SELECT 1 FROM pg_roles WHERE rolname = 'acme_engine'") == []
        found = json.loads(self.ground("backup", "list", "acme", "-o", "json").out)
        assert found[-1]["trigger"] == "tenant drop"


@dataclass(frozen=True)
class Cut:
    """What became of a command that was cut before its nth message; *met* is the message, "" if there were fewer."""

    met: str
    code: int


def cut(ground: Ground, case: Command, nth: int, deed: str) -> Cut:
    """Cut a command, type it again, and fail unless it is whole then."""
    case.prepare(nth)
    first, met = ground.strike(case.argv, nth, deed)
    where = f"before message {nth} ({met}), {deed}: {first}"
    assert first.code in ((0,) if not met else (-signal.SIGKILL,) if deed == "client" else (0, 6, 7, 8)), where
    assert "Traceback" not in first.err, where
    finished = holds(case)
    assert finished or first.code, f"{where} says that it is done"
    if met:
        second = ground(*case.argv, code=None)
        assert second.code == (case.again if finished else 0), (where, finished, second)
        case.promise(2 if finished and case.repeats else 1)
    require_clean(ground, case)
    return Cut(met, first.code)


def holds(case: Command) -> bool:
    """Whether a command has kept its promise."""
    try:
        case.promise(1)
    except (AssertionError, LookupError, OSError, psycopg.Error):
        return False
    return True


def require_clean(ground: Ground, case: Command) -> None:
    """Fail unless all tenants are verified and nothing is left over on the server."""
    case.settle()
    ground("tenant", "verify", "--all")
    databases = ground.sql(
        "SELECT datname::text, shobj_description(oid, 'pg_database') FROM pg_database "
        "WHERE datname NOT IN ('postgres', 'template0', 'template1')"
    )
    templates = {name: comment for name, comment in databases if name.startswith("posduif_template_")}
    assert {name for name, _ in databases} - templates.keys() == case.tenants
    assert len(templates) <= 1, templates
    assert all('"active"' in comment for comment in templates.values()), templates
    roles = {name for (name,) in ground.sql("SELECT rolname::text FROM pg_roles WHERE oid >= 16384")}
    assert roles == GROUPS | case.roles | {f"{name}_engine" for name in case.tenants}


@pytest.fixture(scope="module")
def server(request: pytest.FixtureRequest) -> PgServer:
    """A server of this module and worker alone: each test begins by removing all that is there."""
    if request.config.getoption("dsn"):
        pytest.skip("everything on the server is removed, so it must be the tests' own")
    server = server_of(request, f"cut-{request.param}-{os.environ.get('PYTEST_XDIST_WORKER', 'alone')}")
    assert server.data_dir is not None
    access = server.data_dir / "pg_hba.conf"
    access.write_text("local all chief scram-sha-256\n" + access.read_text())
    server.sql("SELECT pg_reload_conf()")
    return server


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    made = Host()
    yield made
    made.close()


@pytest.fixture
def ground(server: PgServer, host: Host, clean_environ: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Ground]:
    clean_environ.setenv("POSDUIF_DSN", "")
    with Cutter(server) as relay:
        made = Ground(server, host, relay, tmp_path)
        with made.conn:
            yield made


@contextmanager
def begun(ground: Ground, name: str) -> Iterator[Command]:
    """Make the ground of one command, from nothing."""
    ground.config = ()
    ground.log_in()
    ground.wipe()
    case = COMMANDS[name](ground)
    try:
        case.begin()
        yield case
    finally:
        case.end()


@pytest.mark.parametrize("name", COMMANDS)
def test_some_messages(ground: Ground, name: str) -> None:
    with begun(ground, name) as case:
        case.prepare(0)
        count = ground.messages(case.argv)
        case.promise(1)
        assert count > 1
        chance = random.Random(name)
        some = {1, count, *chance.sample(range(1, count + 1), 2)}
        for turn, nth in enumerate(sorted(some), start=chance.randrange(2)):
            cut(ground, case, nth, DEEDS[turn % 2])


@pytest.mark.slow(by_hand=True)
@pytest.mark.parametrize("deed", DEEDS)
@pytest.mark.parametrize("name", COMMANDS)
def test_every_message(ground: Ground, name: str, deed: str) -> None:
    until, nth, met, wrong = time.monotonic() + 1800, 0, "begun", []
    while met:
        with begun(ground, name) as case:
            try:
                while met:
                    nth += 1
                    assert time.monotonic() < until, f"only {nth} messages in 30 minutes"
                    met = cut(ground, case, nth, deed).met
            except AssertionError as error:  # all that are wrong are worth knowing, not only the first
                wrong.append(f"{nth}: {error}")
                assert time.monotonic() < until, wrong
    print(f"{nth - 1} cuts")
    assert nth > 1
    assert not wrong, f"{len(wrong)} of {nth - 1} cuts: " + "\n".join(wrong)


def test_a_session_that_ends_while_a_role_is_taken_on(server: PgServer) -> None:
    with connect.connect(Server("one", server.dsn), "postgres", command="test") as session:
        server.sql("SELECT pg_terminate_backend(%s, 10000)", session.pid)
        with pytest.raises(ServerUnreachable):
            session.become_admin()
