"""`posduif user` and `posduif device` on real servers."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from posduif_cli.errors import PosduifError
from support.runner import Posduif
from support.servers import PgServer


def test_a_user_has_the_promised_fields(posduif: Posduif, tenant: str) -> None:
    made = posduif.json("user", "create", tenant, "Mia", "--type", "mobile")
    assert {"id", "username", "user_type", "device_id", "enrolled_at", "created_at", "changed"} <= set(made)
    assert (made["username"], made["user_type"], made["changed"]) == ("Mia", "mobile", True)
    shown = posduif.json("user", "show", tenant, made["id"].upper())
    assert shown == posduif.json("user", "show", tenant, "Mia")
    assert made == {**shown, "changed": True}


@pytest.mark.parametrize(
    "username", ["ü" * 255, "O'Brien", '"; DROP', "'; drop table users; --", "%s %(x)s {x}", "back\\slash", "愛", "-x"]
)
def test_odd_names_are_only_names(posduif: Posduif, tenant: str, username: str) -> None:
    assert posduif("-o", "json", "user", "create", tenant, "--type", "web", "--", username).json["username"] == username
    assert posduif("-o", "json", "user", "show", tenant, "--", username).json["username"] == username
    assert len(posduif.json("user", "list", tenant)) == 2
    posduif("user", "delete", tenant, "--confirm", username, "--", username)
    assert [user["username"] for user in posduif.json("user", "list", tenant)] == ["desk"]


@pytest.mark.one_server
@pytest.mark.parametrize("username", ["", " ", "x" * 256, "a\nb", "a\x1b[31m", "a\tb", "\u202eabc", "\x7f"])
def test_impossible_names_are_refused(posduif: Posduif, tenant: str, username: str) -> None:
    refused = posduif("user", "create", tenant, username, "--type", "web", "-o", "json", code=2)
    assert refused.error["code"] == "invalid_name"
    assert refused.out == ""
    assert len(posduif.json("user", "list", tenant)) == 1


def test_create_twice(posduif: Posduif, tenant: str) -> None:
    again = ("user", "create", tenant, "desk", "--type")
    assert posduif(*again, "web", "-o", "json", code=5).error["code"] == "user_exists"
    assert posduif.json(*again, "web", "--if-not-exists")["changed"] is False
    differs = posduif(*again, "mobile", "--if-not-exists", "-o", "json", code=5).error
    assert "web" in differs["why"]
    assert "mobile" in differs["why"]


@pytest.mark.one_server
def test_a_wrong_type_is_usage(posduif: Posduif, tenant: str) -> None:
    assert "web" in posduif("user", "create", tenant, "x", "--type", "root", code=2).err
    posduif("user", "create", tenant, "x", code=2)
    posduif("user", "list", tenant, "--type", "root", code=2)


def test_the_nearest_name_is_suggested(posduif: Posduif, tenant: str) -> None:
    error = posduif("user", "show", tenant, "dsek", "-o", "json", code=4).error
    assert error["code"] == "user_not_found"
    assert '"desk"' in error["why"]


def test_listing_by_type_limit_and_offset(posduif: Posduif, tenant: str) -> None:
    for username, kind in (("b", "mobile"), ("a", "mobile"), ("c", "web")):
        posduif("user", "create", tenant, username, "--type", kind)

    def names(*options: str) -> list[str]:
        return [user["username"] for user in posduif.json("user", "list", tenant, *options)]

    assert names() == ["a", "b", "c", "desk"]
    assert names("--type", "mobile") == ["a", "b"]
    assert names("--limit", "2", "--offset", "1") == ["b", "c"]
    assert names("--offset", "9") == []
    posduif("user", "list", tenant, "--limit", "0", code=2)
    posduif("user", "list", tenant, "--offset", "-1", code=2)


def test_delete_says_what_goes_and_wants_the_name(posduif: Posduif, server: PgServer, tenant: str) -> None:
    posduif("user", "create", tenant, "Mia", "--type", "mobile")
    for sender, recipient in (("desk", "Mia"), ("Mia", "desk"), ("desk", "desk")):
        posduif("message", "send", tenant, "--from", sender, "--to", recipient, "text")
    count = "SELECT (SELECT count(*) FROM users), (SELECT count(*) FROM messages)"
    delete = ("user", "delete", tenant, "Mia")

    refused = posduif(*delete, code=9)
    assert "2 messages" in refused.err
    assert "--confirm Mia" in refused.err
    posduif(*delete, "--confirm", "mia", code=9)
    planned = posduif.json(*delete, "--dry-run")
    assert planned["dry_run"] is True
    assert [step["subject"] for step in planned["steps"]] == ["2", "Mia"]
    assert server.sql(count, database=tenant) == [(2, 3)]

    done = posduif.json(*delete, "--confirm", "Mia")
    assert (done["username"], done["changed"]) == ("Mia", True)
    assert server.sql(count, database=tenant) == [(1, 1)]
    posduif(*delete, "--confirm", "Mia", code=4)


def test_a_user_with_tokens_stays(posduif: Posduif, tenant: str) -> None:
    posduif("token", "create", tenant)
    error = posduif("user", "delete", tenant, "desk", "--confirm", "desk", "-o", "json", code=5).error
    assert error["code"] == "user_in_use"
    assert "1 enrollment token" in error["message"]
    posduif("user", "delete", tenant, "desk", "--dry-run", code=5)
    assert posduif.json("user", "show", tenant, "desk")["username"] == "desk"


def test_one_of_many_makes_the_user(posduif: Posduif, server: PgServer, tenant: str) -> None:
    from posduif_cli.core.desk import users
    from posduif_cli.db import connect
    from posduif_cli.models.servers import Server

    start = threading.Barrier(8)

    def create(_: int) -> object:
        with connect.connect(Server("s", server.dsn), tenant, command="test") as conn:
            start.wait()
            try:
                return users.create_if_missing(conn, username="Mia", user_type="web")[1]
            except PosduifError as error:
                return error

    with ThreadPoolExecutor(8) as pool:
        assert sorted(map(str, pool.map(create, range(8)))) == ["False"] * 7 + ["True"]


def test_devices(posduif: Posduif, server: PgServer, tenant: str) -> None:
    assert posduif.json("device", "list", tenant) == []
    token = posduif.json("token", "create", tenant)["token"]
    posduif("enroll", "complete", tenant, token, "--device", "phone-1", "--username", "Mia")
    posduif("message", "send", tenant, "--from", "desk", "--to", "Mia", "one")
    posduif("message", "send", tenant, "--from", "desk", "--to", "Mia", "two")
    server.sql("UPDATE messages SET status = 'synced' WHERE content = 'one'", database=tenant)
    (device,) = posduif.json("device", "list", tenant)
    promised = {
        "device_id",
        "user_id",
        "username",
        "enrolled_at",
        "last_activity",
        "sync_status",
        "pending",
    }
    assert promised <= set(device)
    assert (device["device_id"], device["username"], device["pending"]) == ("phone-1", "Mia", 1)
    assert device["sync_status"] == "idle"
    assert device["last_activity"].endswith("Z")
    assert posduif.json("device", "show", tenant, "phone-1") == device
    assert posduif("device", "show", tenant, "phone-2", "-o", "json", code=4).error["code"] == "device_not_found"
