"""`message test`, and what the engine's take-overs leave behind: with an engine and phones as the contract has them."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import pytest
import yaml

from support.engine import Engine, Redis, ask
from support.runner import Posduif
from support.servers import PgServer, free_port
from support.tenants import forget

JOE, SALLY = "Joe the Mobile User", "Sally the Mobile User"


@pytest.fixture
def served(
    posduif: Posduif, server: PgServer, name: str, tmp_path: Path, clean_environ: pytest.MonkeyPatch
) -> Iterator[Engine]:
    """The running engine of a tenant with the web user desk."""
    with Redis() as redis:
        engine = {"ports": str(free_port()), "redis": {"host": "127.0.0.1", "port": redis.port}}
        entry = {"dsn": server.dsn_for(), "url": "http://localhost:1", "engine": engine}
        (tmp_path / "config.yaml").write_text(yaml.safe_dump({"servers": {"main": entry}}))
        clean_environ.delenv("POSDUIF_DSN", raising=False)
        clean_environ.setenv("POSDUIF_CONFIG", str(tmp_path / "config.yaml"))
        file = tmp_path / "engine.yaml"
        posduif("tenant", "create", name, "--web-user", "desk", "--engine-config", str(file))
        with Engine(file) as running:
            yield running
        forget(server, name)


def enroll(posduif: Posduif, engine: Engine, tenant: str, device: str, username: str) -> None:
    """Have a phone scan a code and type a name, by the engine."""
    token = posduif("token", "create", tenant).out.strip().rpartition("/")[2]
    assert ask(engine.port, f"/api/enrollment/{token}")[0] == 200
    done = ask(engine.port, "/api/enrollment/complete", method="POST", token=token, device_id=device, username=username)
    assert done[0] == 200


@contextmanager
def phone(engine: Engine, device: str, *, reads: bool) -> Iterator[None]:
    """A phone that asks all the time, and whose owner reads what it fetched, or does not."""
    stop = threading.Event()

    def poll() -> None:
        while not stop.wait(0.1):
            _, answer = ask(engine.port, "/api/sync/incoming", device=device)
            for message, *_ in answer["messages"] if reads else ():
                ask(engine.port, f"/api/messages/{message}/read", method="PUT", device=device)

    thread = threading.Thread(target=poll, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def test_a_test_message_is_followed_until_it_is_read(posduif: Posduif, served: Engine, name: str) -> None:
    enroll(posduif, served, name, "dev-1", JOE)
    with phone(served, "dev-1", reads=True):
        result = posduif("message", "test", name, "--wait", "60s", "-o", "json")
    done = result.json
    assert (done["stage"], done["recipient"], done["device_id"], done["sender"]) == ("read", JOE, "dev-1", "desk")
    assert done["sent_at"] <= done["fetched_at"] <= done["read_at"]
    assert done["text"].startswith("posduif test message of 20")
    assert done["stopped"] is None
    assert posduif.json("message", "show", name, done["id"])["content"] == done["text"], "it stays, and is named"


@pytest.mark.one_server
def test_fetched_in_time_is_enough(posduif: Posduif, served: Engine, name: str) -> None:
    enroll(posduif, served, name, "dev-1", JOE)
    with phone(served, "dev-1", reads=False):
        result = posduif("message", "test", name, "--to", JOE, "--wait", "4s")
    assert "fetched 20" in result.err
    assert "not fetched" not in result.err


@pytest.mark.one_server
def test_where_a_message_stops_is_said(posduif: Posduif, server: PgServer, served: Engine, name: str) -> None:
    enroll(posduif, served, name, "dev-1", JOE)
    quiet = posduif("message", "test", name, "--wait", "1s", code=1)
    assert "the engine is connected, but phone dev-1 has not asked for messages yet" in quiet.err
    assert f"posduif device list {name}" in quiet.err
    served.rest()
    while server.sql("SELECT FROM pg_stat_activity WHERE usename = %s", f"{name}_engine"):
        time.sleep(0.05)
    gone = posduif.json("message", "test", name, "--wait", "1s", code=1)
    assert gone["stage"] == "pending"
    assert gone["stopped"].startswith(f"no engine: no session of {name}_engine was seen")
    assert f"posduif tenant verify {name}" in gone["fix"]


@pytest.mark.one_server
def test_whom_it_is_for_must_be_clear(posduif: Posduif, served: Engine, name: str) -> None:
    error = posduif("message", "test", name, "-o", "json", code=4).error
    assert f"posduif token create {name}" in error["try"]
    enroll(posduif, served, name, "dev-1", JOE)
    enroll(posduif, served, name, "dev-2", SALLY)
    assert "several phones" in posduif("message", "test", name, "-o", "json", code=2).error["message"]
    posduif("message", "test", name, "--to", "desk", code=4)
    posduif("message", "test", name, "--to", "nobody", code=4)
    posduif("message", "test", name, "--to", JOE, "--from", JOE, code=5)
    posduif("message", "test", name, "--to", JOE, "--wait", "soon", code=2)
    posduif("user", "create", name, "second", "--type", "web")
    posduif("message", "test", name, "--to", JOE, "--wait", "300ms", code=1)  # the record names the desk
    posduif("tenant", "suspend", name)
    assert posduif("message", "test", name, "--to", JOE, "-o", "json", code=5).error["try"] == [
        f"posduif tenant resume {name}"
    ]


def test_a_third_phone_is_warned_of_and_leaves_a_trace(posduif: Posduif, served: Engine, name: str) -> None:
    enroll(posduif, served, name, "dev-joe", JOE)
    assert "warning" not in posduif("token", "create", name).err
    enroll(posduif, served, name, "dev-sally", SALLY)
    warned = posduif("token", "create", name, "--qr", "never")
    assert "both have a phone" in warned.err
    assert "takes one of them over" in warned.err
    enroll(posduif, served, name, "dev-new", JOE)
    found = {device["device_id"]: device for device in posduif.json("device", "list", name)}
    assert (found["dev-new"]["username"], found["dev-new"]["state"]) == (JOE, "enrolled")
    assert (found["dev-joe"]["username"], found["dev-joe"]["state"]) == (None, "displaced")
    assert found["dev-joe"]["note"] == f"device dev-new has its user {JOE} now"
    error = posduif("device", "show", name, "dev-joe", "-o", "json", code=4).error
    assert f"device dev-new has its user {JOE} now" in error["why"]


def test_a_web_user_that_a_phone_took_over_is_named(posduif: Posduif, served: Engine, name: str) -> None:
    enroll(posduif, served, name, "dev-4", "desk")
    (device,) = posduif.json("device", "list", name)
    assert (device["username"], device["user_type"]) == ("desk", "web")
    assert "took over a web user" in device["note"]


@pytest.mark.one_server
def test_two_phones_with_one_id_are_told(posduif: Posduif, served: Engine, name: str) -> None:
    enroll(posduif, served, name, "same-model", JOE)
    enroll(posduif, served, name, "same-model", SALLY)
    (device,) = posduif.json("device", "list", name)
    assert (device["username"], device["note"]) == (
        SALLY, "enrolled 2 times: two phones of one model send the same id"
    )  # fmt: skip


@pytest.mark.one_server
def test_what_the_desk_let_go_is_not_displaced(posduif: Posduif, served: Engine, name: str) -> None:
    enroll(posduif, served, name, "lost", JOE)
    posduif("device", "remove", name, JOE)
    assert posduif.json("device", "list", name) == []
    enroll(posduif, served, name, "new", JOE)
    token = posduif("token", "create", name).out.strip().rpartition("/")[2]
    posduif("enroll", "complete", name, token, "--device", "newest", "--username", JOE, "--replace-device")
    assert [device["device_id"] for device in posduif.json("device", "list", name)] == ["newest"]
    assert {token["status"] for token in posduif.json("token", "list", name)} == {"used"}


def test_an_engine_is_shut_out_and_comes_back_by_itself(
    posduif: Posduif, served: Engine, name: str, tmp_path: Path
) -> None:
    def users() -> int:
        return ask(served.port, "/api/users", device="d")[0]

    assert users() == 200
    suspended = posduif("tenant", "suspend", name)
    assert "leave its engine running" in suspended.err
    assert users() == 500
    assert "its engine works again by itself" in posduif("tenant", "resume", name).err
    assert users() in (200, 500)  # a session that was ended is noticed once
    assert users() == 200
    file = tmp_path / "engine.yaml"
    rotated = posduif("tenant", "rotate-password", name, "--engine-config", str(file), "--now")
    assert f"restart it with {file}" in rotated.err
    with Engine(file, port=free_port()) as again:
        assert ask(again.port, "/api/users", device="d")[0] == 200
    assert "stop its engine" in posduif("tenant", "drop", name, "--confirm", name).err


@pytest.mark.parametrize("ahead", [-5, 0, 9])
def test_tokens_live_as_long_as_they_say_whatever_zone_the_engine_has(
    posduif: Posduif, served: Engine, name: str, tmp_path: Path, ahead: int
) -> None:
    with Engine(tmp_path / "engine.yaml", ahead=timedelta(hours=ahead), port=free_port()) as abroad:
        token = posduif("token", "create", name, "--ttl", "10m").out.strip().rpartition("/")[2]
        assert ask(abroad.port, f"/api/enrollment/{token}")[0] == 200
        short = posduif("token", "create", name, "--ttl", "300ms").out.strip().rpartition("/")[2]
        time.sleep(0.5)
        assert ask(abroad.port, f"/api/enrollment/{short}")[0] == 400
        answer = ask(abroad.port, "/api/enrollment/complete", method="POST", token=token, device_id="d", username="Ann")
        assert answer[0] == 200


def test_an_old_login_that_may_still_connect_is_named_by_suspend(
    posduif: Posduif, server: PgServer, tenant: str, request: pytest.FixtureRequest
) -> None:
    server.sql(f"CREATE ROLE {tenant}_old LOGIN")
    request.addfinalizer(lambda: server.sql(f"DROP ROLE {tenant}_old"))
    server.sql(f"GRANT CONNECT ON DATABASE {tenant} TO {tenant}_old")
    told = posduif("tenant", "suspend", tenant).err
    assert f"{tenant}_old may still connect" in told
    assert f"REVOKE ALL ON DATABASE {tenant} FROM {tenant}_old;" in told
    server.sql(f"SET ROLE posduif_admin; REVOKE ALL ON DATABASE {tenant} FROM {tenant}_old")
    assert "may still connect" not in posduif("tenant", "suspend", tenant).err


def test_support_may_send_a_test_message(
    posduif: Posduif, server: PgServer, served: Engine, name: str, run_on: Callable[..., Posduif],
    request: pytest.FixtureRequest,
) -> None:  # fmt: skip
    enroll(posduif, served, name, "dev-1", JOE)
    server.sql(f"CREATE ROLE {name}_sam LOGIN PASSWORD 'x' IN ROLE posduif_support")
    request.addfinalizer(lambda: server.sql(f"DROP ROLE {name}_sam"))
    sam = run_on(server, user=f"{name}_sam", password="x")
    with phone(served, "dev-1", reads=False):
        done = sam.json("message", "test", name, "--wait", "3s")
    assert done["stage"] == "fetched"


@pytest.mark.one_server
def test_two_users_with_one_phone_are_told_apart(posduif: Posduif, server: PgServer, served: Engine, name: str) -> None:
    enroll(posduif, served, name, "ph", JOE)
    server.sql("INSERT INTO users (username, user_type, device_id) VALUES ('Ann', 'mobile', 'ph')", database=name)
    sent = posduif.json("message", "test", name, "--to", JOE, "--wait", "300ms", code=1)
    assert sent["recipient"] == JOE
    assert {device["note"] for device in posduif.json("device", "list", name)} == {
        "another user has this device id, too"
    }


@pytest.mark.one_server
def test_the_same_phone_again_is_one_phone(posduif: Posduif, served: Engine, name: str) -> None:
    enroll(posduif, served, name, "ph", JOE)
    token = posduif("token", "create", name).out.strip().rpartition("/")[2]
    posduif("enroll", "complete", name, token, "--device", "ph", "--re-enroll")
    (device,) = posduif.json("device", "list", name)
    assert (device["device_id"], device["note"]) == ("ph", None)
