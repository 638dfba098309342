"""`posduif enroll` on real servers: once, whole, and never over anyone else."""

import threading
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from posduif_cli.core.desk import enrollments
from posduif_cli.db import connect
from posduif_cli.errors import PosduifError
from posduif_cli.models.servers import Server
from support.runner import Posduif
from support.servers import PgServer
from support.tenants import forget

STATE = """SELECT (SELECT array_agg(username || coalesce('@' || device_id, '') ORDER BY username) FROM users),
                  (SELECT array_agg(device_id ORDER BY device_id) FROM sync_metadata),
                  (SELECT count(*) FROM enrollment_tokens WHERE used_at IS NOT NULL)"""


@pytest.fixture
def enroll(posduif: Posduif, tenant: str) -> Callable[..., Any]:
    def run(token: str, device: str = "phone-1", username: str = "Mia", code: int = 0) -> Any:
        argv = ("enroll", "complete", tenant, token, "--device", device, "--username", username, "-o", "json")
        result = posduif(*argv, code=code)
        return result.error if code else result.json

    return run


@pytest.fixture
def token(posduif: Posduif, tenant: str) -> str:
    return str(posduif.json("token", "create", tenant)["token"])


def test_a_phone_enrolls(
    posduif: Posduif, server: PgServer, tenant: str, token: str, enroll: Callable[..., Any]
) -> None:
    done = enroll(token)
    assert (done["tenant"], done["username"], done["device_id"], done["changed"]) == (tenant, "Mia", "phone-1", True)
    assert server.sql(STATE, database=tenant) == [(["Mia@phone-1", "desk"], ["phone-1"], 1)]
    user = posduif.json("user", "show", tenant, "Mia")
    assert (user["id"], user["user_type"], user["device_id"]) == (done["user_id"], "mobile", "phone-1")
    shown = posduif.json("token", "show", tenant, done["token_id"])
    assert (shown["status"], shown["device_id"], shown["username"]) == ("used", "phone-1", "Mia")
    assert shown["used_at"] == done["enrolled_at"]


@pytest.mark.parametrize("shape", ["{url}", "{url}/", " {url}\n", "{token}", "{upper}"])
def test_a_token_as_it_is_pasted(posduif: Posduif, tenant: str, enroll: Callable[..., Any], shape: str) -> None:
    made = posduif.json("token", "create", tenant)
    enroll(shape.format(url=made["enrollment_url"], token=made["token"], upper=made["token"].upper()))


def test_each_refusal_has_its_own_code(
    posduif: Posduif, server: PgServer, tenant: str, token: str, enroll: Callable[..., Any]
) -> None:
    assert enroll(str(uuid.uuid4()), code=4)["code"] == "token_not_found"
    # The id names a token in listings that everyone may read; it must not open anything.
    assert enroll(posduif.json("token", "show", tenant, token)["id"], code=4)["code"] == "token_not_found"
    assert enroll("no token", code=2)["code"] == "invalid_id"
    revoked = posduif.json("token", "create", tenant)["token"]
    posduif("token", "revoke", tenant, revoked)
    assert enroll(revoked, code=5)["code"] == "token_revoked"
    expired = posduif.json("token", "create", tenant)["token"]
    ended = "UPDATE enrollment_tokens SET expires_at = (now() AT TIME ZONE 'UTC') - interval '2 s' WHERE token = %s"
    server.sql(ended, expired, database=tenant)
    assert enroll(expired, code=5)["code"] == "token_expired"
    assert server.sql(STATE, database=tenant) == [(["desk"], None, 0)]
    enroll(token)
    used = enroll(token, "phone-2", "Ada", code=5)
    assert (used["code"], "phone-1" in used["why"]) == ("token_used", True)
    assert server.sql(STATE, database=tenant) == [(["Mia@phone-1", "desk"], ["phone-1"], 1)]


@pytest.mark.parametrize(
    ("device", "username", "code"),
    [("phone-2", "Mia", "user_exists"), ("phone-2", "desk", "user_exists"), ("phone-1", "Ada", "device_exists")],
)
def test_nobody_is_taken_over(
    posduif: Posduif,
    server: PgServer,
    tenant: str,
    token: str,
    enroll: Callable[..., Any],
    device: str,
    username: str,
    code: str,
) -> None:
    enroll(token)
    before = server.sql("SELECT * FROM users ORDER BY id", database=tenant)
    other = posduif.json("token", "create", tenant)["token"]
    error = enroll(other, device, username, code=5)
    assert error["code"] == code
    assert "stays good" in error["why"]
    assert server.sql("SELECT * FROM users ORDER BY id", database=tenant) == before
    assert server.sql(STATE, database=tenant) == [(["Mia@phone-1", "desk"], ["phone-1"], 1)]
    enroll(other, "phone-3", "Eve")


@pytest.mark.one_server
@pytest.mark.parametrize(("device", "username"), [("", "Mia"), ("x" * 256, "Mia"), ("p\n", "Mia"), ("p", " ")])
def test_rubbish_spends_nothing(
    server: PgServer, tenant: str, token: str, enroll: Callable[..., Any], device: str, username: str
) -> None:
    assert enroll(token, device, username, code=2)["code"] == "invalid_name"
    assert server.sql(STATE, database=tenant) == [(["desk"], None, 0)]


def test_the_engine_was_there_first(server: PgServer, tenant: str, token: str, enroll: Callable[..., Any]) -> None:
    server.sql("INSERT INTO sync_metadata (device_id, sync_status) VALUES ('phone-1', 'syncing')", database=tenant)
    enroll(token)
    assert server.sql("SELECT device_id, sync_status FROM sync_metadata", database=tenant) == [("phone-1", "syncing")]


def race(server: PgServer, tenant: str, tries: Sequence[tuple[str, str, str]]) -> list[str]:
    start = threading.Barrier(len(tries))

    def one(attempt: tuple[str, str, str]) -> str:
        token, device, username = attempt
        with connect.connect(Server("s", server.dsn), tenant, command="test") as conn:
            start.wait()
            try:
                enrollments.complete(conn, token=token, device=device, username=username)
                return "done"
            except PosduifError as error:
                return error.code

    with ThreadPoolExecutor(len(tries)) as pool:
        return sorted(pool.map(one, tries))


def test_one_token_makes_one_user(server: PgServer, tenant: str, token: str) -> None:
    outcomes = race(server, tenant, [(token, f"phone-{n}", f"user-{n}") for n in range(8)])
    assert outcomes == ["done"] + ["token_used"] * 7
    assert server.sql("SELECT count(*) FROM users WHERE user_type = 'mobile'", database=tenant) == [(1,)]
    assert server.sql("SELECT count(*) FROM sync_metadata", database=tenant) == [(1,)]


def test_one_device_belongs_to_one_user(posduif: Posduif, server: PgServer, tenant: str) -> None:
    tokens = [posduif.json("token", "create", tenant)["token"] for _ in range(2)]
    outcomes = race(server, tenant, [(token, "phone", f"user-{n}") for n, token in enumerate(tokens)])
    assert outcomes == ["device_exists", "done"]
    assert server.sql(STATE, database=tenant)[0][2] == 1


def test_one_name_belongs_to_one_user(posduif: Posduif, server: PgServer, tenant: str) -> None:
    tokens = [posduif.json("token", "create", tenant)["token"] for _ in range(4)]
    outcomes = race(server, tenant, [(token, f"phone-{n}", "Mia") for n, token in enumerate(tokens)])
    assert outcomes == ["done"] + ["user_exists"] * 3
    assert server.sql(STATE, database=tenant)[0][2] == 1


def test_a_whole_url_stands_for_tenant_and_token(posduif: Posduif, tenant: str) -> None:
    url = posduif("token", "create", tenant).out.strip()
    shown = posduif.json("token", "show", url)
    assert (shown["tenant"], shown["status"]) == (tenant, "active")
    done = posduif.json("enroll", "complete", url, "--device", "phone-url", "--username", "Url")
    assert (done["tenant"], done["device_id"]) == (tenant, "phone-url")
    assert posduif("token", "revoke", url, "-o", "json", code=5).error["code"] == "token_used"
    assert posduif.process("token", "show", "-", "-o", "json", stdin=url + "\n").json["status"] == "used"


def test_a_url_of_nobody_and_a_lone_tenant_are_told_apart(posduif: Posduif, tenant: str) -> None:
    url = "https://nobody.example.com/api/enrollment/5f3759df-0000-4000-8000-000000000000"
    assert posduif("token", "show", url, "-o", "json", code=4).error["code"] == "tenant_not_found"
    assert "token is missing" in posduif("token", "show", tenant, code=2).err
    assert posduif("token", "show", "https://nobody.example.com/", code=2).out == ""


def test_a_url_that_several_tenants_share_names_them(posduif: Posduif, server: PgServer, tenant: str) -> None:
    twin = f"{tenant}_b"
    posduif("tenant", "create", twin, "--url", f"https://{tenant}.example.com")
    try:
        url = posduif("token", "create", tenant).out.strip()
        error = posduif("token", "show", url, "-o", "json", code=2).error
        assert twin in error["why"]
        assert posduif.json("token", "show", tenant, url)["status"] == "active"
    finally:
        forget(server, twin)


def test_a_device_is_found_by_its_user_too(posduif: Posduif, tenant: str) -> None:
    url = posduif("token", "create", tenant).out.strip()
    posduif("enroll", "complete", url, "--device", "phone-7", "--username", "Mia")
    assert posduif.json("device", "show", tenant, "Mia")["device_id"] == "phone-7"
    assert posduif.json("message", "pending", tenant, "--device", "Mia") == []
