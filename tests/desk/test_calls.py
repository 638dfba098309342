"""The calls that a support desk gets, answered by a login that is in posduif_support and in nothing else."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from support.camera import read, svg_pixels
from support.runner import Posduif
from support.servers import PgServer
from support.tenants import forget, record

RunOn = Callable[..., Posduif]


@pytest.fixture
def sam(server: PgServer, tenant: str) -> Iterator[str]:
    login = f"{tenant}_sam"
    server.sql(f"CREATE ROLE {login} LOGIN IN ROLE posduif_support")
    yield login
    server.sql(f"DROP ROLE {login}")


@pytest.fixture
def desk(sam: str, server: PgServer, run_on: RunOn, posduif: Posduif, tenant: str) -> Posduif:
    """The runner of a support login; Mia has phone-1 and two messages, one of them fetched."""
    url = posduif("token", "create", tenant, "--for", "Mia").out.strip()
    posduif("enroll", "complete", url, "--device", "phone-1", "--username", "Mia")
    for text in ("first", "second"):
        posduif("message", "send", tenant, "--from", "desk", "--to", "Mia", text)
    server.sql("UPDATE messages SET status = 'synced' WHERE content = 'first'", database=tenant)
    return run_on(server, user=sam)


def new_token(desk: Posduif, tenant: str) -> str:
    return str(desk.json("token", "create", tenant)["token"])


def test_a_lost_phone(desk: Posduif, server: PgServer, tenant: str) -> None:
    before = server.sql("SELECT content, status FROM messages ORDER BY 1", database=tenant)
    gone = desk("device", "remove", tenant, "Mia", "-o", "json").json
    assert (gone["username"], gone["device_id"], gone["changed"]) == ("Mia", None, True)
    assert desk.json("device", "list", tenant) == []
    assert server.sql("SELECT count(*) FROM sync_metadata", database=tenant) == [(0,)]
    again = desk("device", "remove", tenant, "Mia", "-o", "json").json
    assert again["changed"] is False
    # The user exists, so that the new phone takes the word that says so.
    argv = ("enroll", "complete", tenant, new_token(desk, tenant), "--device", "phone-2", "--username", "Mia")
    refused = desk(*argv, "-o", "json", code=5).error
    assert "--replace-device" in refused["try"][1]
    done = desk.json(*argv, "--replace-device")
    assert (done["username"], done["device_id"], done["changed"]) == ("Mia", "phone-2", True)
    assert server.sql("SELECT content, status FROM messages ORDER BY 1", database=tenant) == before
    [device] = desk.json("device", "list", tenant)
    assert (device["device_id"], device["username"], device["pending"], device["tenant"]) == (
        "phone-2",
        "Mia",
        1,
        tenant,
    )


def test_a_new_phone_at_once(desk: Posduif, server: PgServer, tenant: str) -> None:
    """Without `device remove` before: the old phone's row goes with it."""
    desk("enroll", "complete", tenant, new_token(desk, tenant), "--device", "phone-2", "--username", "Mia",
         "--replace-device")  # fmt: skip
    assert server.sql("SELECT device_id FROM sync_metadata", database=tenant) == [("phone-2",)]
    assert [row["status"] for row in desk.json("token", "list", tenant)] == ["used", "used"]


def test_the_same_phone_again(desk: Posduif, tenant: str) -> None:
    before = desk.json("user", "show", tenant, "Mia")
    again = ("enroll", "complete", tenant, new_token(desk, tenant), "--device", "phone-1", "--re-enroll")
    assert desk(*again, "--username", "Ann", "-o", "json", code=5).error["code"] == "conflict"
    done = desk.json(*again)
    assert (done["username"], done["user_id"], done["device_id"]) == ("Mia", before["id"], "phone-1")
    assert desk.json("user", "show", tenant, "Mia")["enrolled_at"] >= before["enrolled_at"]


@pytest.mark.one_server
@pytest.mark.parametrize(
    ("argv", "code"),
    [
        (("--device", "phone-2", "--username", "Nobody", "--replace-device"), 4),
        (("--device", "phone-1", "--username", "Mia", "--replace-device"), 5),  # it is enrolled: --re-enroll
        (("--device", "phone-2", "--username", "desk", "--replace-device"), 5),  # a web user
        (("--device", "phone-9", "--re-enroll"), 4),
        (("--device", "phone-1", "--username", "Mia", "--replace-device", "--re-enroll"), 2),
        (("--device", "phone-2"), 2),
    ],
)
def test_a_token_stays_good_after_a_refusal(desk: Posduif, tenant: str, argv: tuple[str, ...], code: int) -> None:
    token = new_token(desk, tenant)
    desk("enroll", "complete", tenant, token, *argv, code=code)
    assert desk.json("token", "show", tenant, token)["status"] == "active"
    assert desk.json("user", "show", tenant, "Mia")["device_id"] == "phone-1"


@pytest.mark.one_server
def test_only_a_mobile_user_s_device_is_removed(desk: Posduif, tenant: str) -> None:
    desk("device", "remove", tenant, "desk", code=5)
    assert desk("device", "remove", tenant, "Mai", "-o", "json", code=4).error["code"] == "user_not_found"
    assert desk.json("device", "remove", tenant, "phone-1")["username"] == "Mia"


def test_did_my_message_arrive(desk: Posduif, posduif: Posduif, tenant: str) -> None:
    found = desk("message", "list", tenant, "--to", "Mia", "-o", "json").json
    assert [(m["status"], m["content"], m["tenant"]) for m in found] == [
        ("pending_sync", None, tenant),
        ("synced", None, tenant),
    ]
    told = desk("message", "list", tenant)
    assert "this login may not read them" in told.err
    assert [m["status"] for m in desk.json("message", "list", tenant, "--status", "synced")] == ["synced"]
    assert desk.json("message", "list", tenant, "--from", "Mia") == []
    assert len(desk.json("message", "list", tenant, "--limit", "1")) == 1
    one = desk.json("message", "show", tenant, found[1]["id"])
    assert (one["synced_at"] is not None, one["read_at"], one["content"]) == (True, None, None)
    assert desk.json("message", "show", tenant, found[0]["id"][:8])["id"] == found[0]["id"]
    assert [m["status"] for m in desk.json("message", "inbox", tenant, "Mia")] == ["pending_sync", "synced"]
    assert [m["id"] for m in desk.json("message", "pending", tenant)] == [found[0]["id"]]
    assert desk.json("message", "pending", tenant, "--device", "phone-1")[0]["content"] is None
    desk("message", "list", tenant, "--to", "Mai", code=4)
    desk("message", "list", tenant, "--status", "lost", code=2)
    desk("message", "show", tenant, "5f3759df-0000-4000-8000-000000000000", code=4)
    desk("message", "show", tenant, "nonsense", code=2)


def test_an_administrator_reads_the_texts(posduif: Posduif, tenant: str) -> None:
    posduif("user", "create", tenant, "Mia", "--type", "mobile")
    sent = posduif.json("message", "send", tenant, "--from", "desk", "--to", "Mia", "hello")
    assert posduif.json("message", "show", tenant, sent["id"])["content"] == "hello"
    listed = posduif("message", "list", tenant, "-o", "json")
    assert ([m["content"] for m in listed.json], listed.err) == (["hello"], "")


@pytest.mark.one_server
def test_what_a_caller_has_of_a_token(desk: Posduif, tenant: str) -> None:
    made = desk.json("token", "create", tenant, "--for", "Anna Berg")
    url, token = made["enrollment_url"], made["id"]
    host = url.removeprefix("https://")
    for text in (token, token[:8], token[:8].upper(), made["token"], made["token"][:8], "Anna Berg",
                 url, url.upper(), host, f"<{url}>.", f"{url[:50]}\n{url[50:]}"):  # fmt: skip
        assert desk.json("token", "show", tenant, text)["id"] == token, text
    for text in (url, url.upper(), host):
        assert desk.json("token", "show", text)["id"] == token, text
    assert "the tenant is missing" in desk("token", "show", token, code=2).err
    assert "the token is missing" in desk("token", "show", tenant, code=2).err
    wrong = desk("token", "show", tenant, "Ana Berg", "-o", "json", code=2).error
    assert 'the nearest label is "Anna Berg"' in wrong["why"]
    # Of several with one label the active one is meant, if there is only one.
    second = desk.json("token", "create", tenant, "--for", "Anna Berg")
    assert "several tokens" in desk("token", "show", tenant, "Anna Berg", code=2).err
    desk("token", "revoke", tenant, token)
    assert desk.json("token", "show", tenant, "Anna Berg")["id"] == second["id"]
    assert [t["id"] for t in desk.json("token", "list", tenant, "--for", "Anna Berg", "--status", "active")] == [
        second["id"]
    ]
    assert [t["label"] for t in desk.json("token", "list", tenant, "--status", "used")] == ["Mia"]
    desk("token", "list", tenant, "--status", "lost", code=2)


@pytest.mark.one_server
def test_an_id_is_no_token(desk: Posduif, tenant: str) -> None:
    made = desk.json("token", "create", tenant)
    wrong = desk("enroll", "complete", tenant, made["id"], "--device", "d", "--username", "U", "-o", "json", code=4)
    assert wrong.error["message"] == "this is the id of a token, not the token"
    assert desk.json("token", "show", tenant, made["id"])["status"] == "active"


@pytest.mark.one_server
def test_another_tenant_s_url_is_named(posduif: Posduif, server: PgServer, tenant: str) -> None:
    other = f"{tenant}_b"
    posduif("tenant", "create", other, "--url", f"https://{other}.example.com")
    try:
        url = posduif("token", "create", tenant).out.strip()
        for argv in (("token", "show"), ("token", "show", "--qr")):
            told = posduif(*argv[:2], other, url, *argv[2:], "-o", "json", code=4).error
            assert told["message"] == f"this enrollment URL belongs to tenant {tenant}, not {other}"
    finally:
        forget(server, other)


@pytest.mark.one_server
def test_the_code_again(desk: Posduif, tenant: str, tmp_path: Path) -> None:
    made = desk.json("token", "create", tenant)
    url, file = made["enrollment_url"], tmp_path / "code.svg"
    drawn = desk("token", "show", url, "--qr", "always").out
    assert url in drawn
    assert drawn.count("\n") > 10
    assert desk("token", "show", tenant, made["token"], "--qr").out.strip() == url, "the bare URL into a pipe"
    assert desk("token", "show", url, "--qr", "large").out.strip() == url
    assert desk.json("token", "show", url, "--qr")["changed"] is False
    desk("token", "show", url, "--qr-file", str(file))
    assert read(svg_pixels(file.read_text()).repeat(8, axis=0).repeat(8, axis=1)) == [url]
    assert desk("token", "show", url, "--qr-file", str(file), "-o", "json", code=5).error["code"] == "file_exists"
    desk("token", "show", url, "--qr-file", str(file), "--force")
    for text in (made["id"], made["id"][:8]):
        assert "cannot be drawn" in desk("token", "show", tenant, text, "--qr", code=5).err
    desk("token", "revoke", tenant, made["id"])
    assert "revoked" in desk("token", "show", url, "--qr", code=5).err
    assert len(desk.json("token", "list", tenant)) == 2, "none was made"


REFUSED: dict[str, tuple[str, ...]] = {
    "user delete": ("Mia", "--confirm", "Mia"),
    "message mark": ("{message}", "read"),
    "tenant set": ("--url", "https://x.example.com"),
    "tenant suspend": (),
    "migrate up": (),
    "token purge": (),
}


@pytest.mark.parametrize("command", REFUSED)
def test_what_support_may_not_do_is_said_and_no_right_is_advised(
    desk: Posduif, server: PgServer, sam: str, tenant: str, command: str
) -> None:
    message = desk.json("message", "list", tenant)[0]["id"]
    further = [word.format(message=message) for word in REFUSED[command]]
    refused = desk(*command.split(), tenant, *further, "-o", "json", code=6).error
    assert f"{sam} is in posduif_support, which may neither read texts" in refused["why"], refused
    assert refused["try"] == ["ask an administrator, a member of posduif_admin, to run this command"]
    assert "GRANT" not in str(refused)
    assert record(server, tenant)["state"] == "active"


def test_a_login_in_no_group_is_told_what_to_ask_for(
    desk: Posduif, server: PgServer, run_on: RunOn, tenant: str
) -> None:
    login = f"{tenant}_x"
    server.sql(f"CREATE ROLE {login} LOGIN; GRANT CONNECT ON DATABASE {tenant} TO {login}")
    try:
        refused: Any = run_on(server, user=login)("user", "list", tenant, "-o", "json", code=6).error
        assert "posduif_support" in str(refused["try"])
    finally:
        server.sql(f"REVOKE ALL ON DATABASE {tenant} FROM {login}; DROP ROLE {login}")
