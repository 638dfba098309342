"""Time limits: nothing waits for ever, and ctrl-C ends what waits."""

import json
import signal
import time
from datetime import timedelta
from pathlib import Path

import pytest

from posduif_cli.core.fleet.fleet import Fleet
from posduif_cli.db import connect
from posduif_cli.db import session as sessions
from posduif_cli.db.session import Session
from posduif_cli.errors import PosduifError, QueryFailed, ServerUnreachable
from posduif_cli.models.servers import Server
from support.relay import Relay
from support.runner import Posduif
from support.servers import PgServer
from support.waiting import held, until

LOCK = "LOCK TABLE users IN ACCESS EXCLUSIVE MODE"
TALK = b"has_database"  # what the question for tenants has in it


@pytest.mark.parametrize(
    "argv",
    [
        ("user", "list", "{t}"),
        ("token", "list", "{t}"),
        ("token", "create", "{t}"),
        ("message", "unread", "{t}", "desk"),
        ("device", "list", "{t}"),
        ("tenant", "drop", "{t}", "--dry-run"),
    ],
    ids=lambda argv: " ".join(argv[:2]),
)
def test_a_locked_table_is_named_with_its_holder(
    posduif: Posduif, server: PgServer, tenant: str, argv: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sessions.WATCHFUL, "lock_timeout", "300ms")
    with held(server, tenant, LOCK, name="a stuck ALTER") as holder:
        pid = holder.info.backend_pid
        done = posduif(*(word.format(t=tenant) for word in argv), "-o", "json", code=None)
        if argv[1] == "drop":
            assert done.code == 0, "a plan needs no rows"
            return
        assert done.code == 10, done
        assert f"pid {pid} (postgres, a stuck ALTER, on " in done.error["why"], done.error


def test_the_limits_of_a_session(server: PgServer, posduif: Posduif, tenant: str) -> None:
    here = Server("s", server.dsn)

    def limits(session: Session) -> tuple[str, str]:
        return session.value("SHOW lock_timeout"), session.value("SHOW statement_timeout")

    with (
        connect.connect(here, tenant, command="test") as first,
        connect.connect(here, tenant, command="test", footing=first.footing, path="public") as second,
    ):
        for session in (first, second):
            assert limits(session) == ("10s", "5min")
            with session.limited(lock_timeout=timedelta(0), statement_timeout=timedelta(hours=1)):
                assert limits(session) == ("0", "1h")
            assert limits(session) == ("10s", "5min")
    with connect.connect(here, tenant, command="test", limit=timedelta(seconds=7)) as asked:
        assert asked.value("SHOW statement_timeout") == "7s"
        assert asked.footing is not None
        assert asked.footing.settings["statement_timeout"] == sessions.SETTINGS["statement_timeout"]
    with (
        connect.connect(here, tenant, command="test", limit=timedelta(milliseconds=1000)) as short,
        pytest.raises(QueryFailed, match="statement timeout"),
    ):
        short.value("SELECT pg_sleep(30)")


def test_a_silent_server_is_given_up(server: PgServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "SILENCE", 0.5)
    with (
        Relay(server) as relay,
        connect.connect(Server("s", relay.dsn()), "postgres", command="test", limit=timedelta(seconds=1)) as session,
    ):
        assert session.value("SELECT 1") == 1
        relay.mute()
        begun = time.monotonic()
        with pytest.raises(ServerUnreachable, match="broke") as broken:
            session.value("SELECT 1")
        assert "said nothing" in str(broken.value.why)
        assert time.monotonic() - begun < 20


def test_a_silent_server_does_not_hide_the_others(
    server: PgServer, posduif: Posduif, tenant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sessions, "SILENCE", 0.5)
    with Relay(server, until=TALK) as relay:
        both = Fleet((Server("good", server.dsn), Server("mute", relay.dsn())), "test")
        answers = both.ask(lambda session: both.list_on(session), limit=timedelta(seconds=1))
        assert isinstance(answers["mute"], ServerUnreachable), answers["mute"]
        assert not isinstance(answers["good"], PosduifError)
        assert tenant in [found.tenant for found in answers["good"]]


@pytest.mark.one_server
def test_a_listing_names_a_silent_server(server: PgServer, posduif: Posduif, tenant: str, tmp_path: Path) -> None:
    with Relay(server, until=TALK) as relay:
        config = tmp_path / "config.yaml"
        config.write_text(
            f"servers:\n  good: {{dsn: {json.dumps(server.dsn)}}}\n  mute: {{dsn: {json.dumps(relay.dsn())}}}\n"
        )
        done = posduif.process("tenant", "list", "--config", str(config), POSDUIF_DSN="")
        assert done.code == 8, done
        assert tenant in done.out
        assert "server mute could not be asked" in done.err


@pytest.mark.one_server
@pytest.mark.parametrize("argv", [("tenant", "list"), ("health",), ("user", "list", "{t}"), ("tenant", "show", "{t}")])
def test_ctrl_c_ends_what_waits_for_a_silent_server(
    server: PgServer, posduif: Posduif, tenant: str, argv: tuple[str, ...], tmp_path: Path
) -> None:
    with Relay(server, until=TALK) as relay:
        config = tmp_path / "config.yaml"
        config.write_text(
            f"servers:\n  a: {{dsn: {json.dumps(relay.dsn())}}}\n  b: {{dsn: {json.dumps(relay.dsn())}}}\n"
        )
        process = posduif.popen(
            *(word.format(t=tenant) for word in argv), "-o", "json", "--config", str(config), POSDUIF_DSN=""
        )
        until(lambda: len(relay.sockets) >= 4, "its sessions", 30)
        time.sleep(0.5)  # let it ask
        process.send_signal(signal.SIGINT)
        begun = time.monotonic()
        _, err = process.communicate(timeout=20)
        assert process.returncode == 130, err
        assert time.monotonic() - begun < 6
        assert json.loads(err)["error"]["exit"] == 130


def test_ctrl_c_ends_a_query_that_runs(server: PgServer, posduif: Posduif, tenant: str) -> None:
    with held(server, tenant, LOCK, name="a stuck ALTER"):
        process = posduif.popen("user", "list", tenant)
        until(
            lambda: bool(
                server.sql("SELECT 1 FROM pg_stat_activity WHERE datname = %s AND wait_event_type = 'Lock'", tenant)
            ),
            "the query waits for the lock",
            30,
        )
        process.send_signal(signal.SIGINT)
        begun = time.monotonic()
        _, err = process.communicate(timeout=20)
        assert process.returncode == 130, err
        assert time.monotonic() - begun < 6
        assert b"cancellation" not in err
        until(
            lambda: (
                not server.sql("SELECT 1 FROM pg_stat_activity WHERE datname = %s AND wait_event_type = 'Lock'", tenant)
            ),
            "nothing waits for the lock",
            30,
        )


def test_a_server_in_trouble_is_told_from_a_wrong_password(posduif: Posduif, server: PgServer, tenant: str) -> None:
    """What a full disk does to a server's own files: it is FATAL, and no password is wrong."""
    if server.data_dir is None:
        pytest.skip("the files of a server elsewhere are not ours to break")
    oid = server.sql("SELECT oid::int FROM pg_database WHERE datname = %s", tenant)[0][0]
    version = server.data_dir / "data" / "base" / str(oid) / "PG_VERSION"
    mode = version.stat().st_mode
    version.chmod(0)
    try:
        error = posduif("user", "list", tenant, "-o", "json", code=6).error
        assert error["code"] == "server_unreachable"
        assert "could not open file" in error["why"]
        assert "password" not in json.dumps(error)
        run = posduif("migrate", "up", "--all", "-o", "json", code=None)
        assert run.code in (0, 8), "the tenant is not behind"
    finally:
        version.chmod(mode)
    posduif("user", "list", tenant)
