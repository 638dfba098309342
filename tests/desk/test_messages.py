"""`posduif message` on real servers."""

import io
import sys
import uuid

import pytest

from support.runner import Posduif
from support.servers import PgServer


@pytest.fixture
def pair(posduif: Posduif, tenant: str) -> str:
    """A tenant with desk and Mia, who has phone-1."""
    token = posduif.json("token", "create", tenant)["token"]
    posduif("enroll", "complete", tenant, token, "--device", "phone-1", "--username", "Mia")
    return tenant


def send(posduif: Posduif, tenant: str, text: str) -> str:
    return str(posduif("-o", "json", "message", "send", tenant, "--from", "desk", "--to", "Mia", "--", text).json["id"])


def type_in(monkeypatch: pytest.MonkeyPatch, data: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data), "utf-8"))


def test_a_message_has_the_promised_fields(posduif: Posduif, server: PgServer, pair: str) -> None:
    desk = posduif.json("user", "show", pair, "desk")["id"]
    sent = posduif.json("message", "send", pair, "--from", desk, "--to", "Mia", "Hello, Mia")
    promised = {"id", "sender", "recipient", "content", "status", "created_at", "synced_at", "read_at", "changed"}
    assert promised <= set(sent)
    assert (sent["sender"], sent["recipient"], sent["content"]) == ("desk", "Mia", "Hello, Mia")
    assert (sent["status"], sent["synced_at"], sent["read_at"], sent["changed"]) == ("pending_sync", None, None, True)
    assert server.sql("SELECT last_message_sent FROM users WHERE username = 'desk'", database=pair) == [("Hello, Mia",)]
    age = "SELECT abs(extract(epoch FROM (now() AT TIME ZONE 'UTC') - created_at)) < 30 FROM messages"
    assert server.sql(age, database=pair) == [(True,)]


@pytest.mark.parametrize(
    "text", ["愛 ☃ 👍 e\u0301", "'; DROP TABLE messages; --", "%s %(content)s", "a\nb\tc\\n", "-q"]
)
def test_any_text_comes_back_exactly(posduif: Posduif, pair: str, text: str) -> None:
    send(posduif, pair, text)
    assert [m["content"] for m in posduif.json("message", "inbox", pair, "Mia")] == [text]


@pytest.mark.one_server
@pytest.mark.parametrize("text", ["", " \n\t", "a\0b"])
def test_what_is_no_text_is_refused(posduif: Posduif, server: PgServer, pair: str, text: str) -> None:
    posduif("message", "send", pair, "--from", "desk", "--to", "Mia", text, code=2)
    assert server.sql("SELECT count(*) FROM messages", database=pair) == [(0,)]


@pytest.mark.one_server
def test_stdin(posduif: Posduif, server: PgServer, pair: str, monkeypatch: pytest.MonkeyPatch) -> None:
    to_mia = ("message", "send", pair, "--from", "desk", "--to", "Mia", "-")
    type_in(monkeypatch, "zwei\nZeilen ☃\n".encode())
    assert posduif.json(*to_mia)["content"] == "zwei\nZeilen ☃"
    for nothing in (b"", b"\n", b"a\0b", b"\xff\xfe"):
        type_in(monkeypatch, nothing)
        posduif(*to_mia, code=2)
    assert server.sql("SELECT count(*) FROM messages", database=pair) == [(1,)]
    big = "x" * 3_000_000
    type_in(monkeypatch, big.encode())
    assert posduif.json(*to_mia)["content"] == big


@pytest.mark.one_server
def test_stdin_of_a_process_that_is_closed(posduif: Posduif, pair: str) -> None:
    done = posduif.process("message", "send", pair, "--from", "desk", "--to", "Mia", "-")
    assert (done.code, done.out) == (2, "")
    assert "the message is empty" in done.err


def test_unknown_people_are_not_found(posduif: Posduif, pair: str) -> None:
    send_ = ("message", "send", pair, "text", "-o", "json")
    assert '"Mia"' in posduif(*send_, "--from", "desk", "--to", "Mai", code=4).error["why"]
    assert posduif(*send_, "--from", "x", "--to", "Mia", code=4).error["code"] == "user_not_found"
    posduif("message", "inbox", pair, "nobody", code=4)
    posduif("message", "unread", pair, "nobody", code=4)
    assert posduif("message", "pending", pair, "--device", "x", "-o", "json", code=4).error["code"] == (
        "device_not_found"
    )


def test_order_limit_and_offset(posduif: Posduif, server: PgServer, pair: str) -> None:
    sent = [send(posduif, pair, str(number)) for number in range(5)]
    # Equal times must not make the order a matter of luck.
    server.sql("UPDATE messages SET created_at = '2026-01-01' WHERE content IN ('0', '1')", database=pair)
    ties = sorted(sent[:2])

    def inbox(*options: str) -> list[str]:
        return [m["id"] for m in posduif.json("message", "inbox", pair, "Mia", *options)]

    assert inbox() == [sent[4], sent[3], sent[2], *ties]
    assert inbox("--limit", "2") == [sent[4], sent[3]]
    assert inbox("--limit", "2", "--offset", "3") == ties
    assert inbox("--offset", "5") == []
    waiting = posduif.json("message", "pending", pair, "--device", "phone-1", "--limit", "3")
    assert [m["id"] for m in waiting] == [*ties, sent[2]]


def test_marks_go_forward_only(posduif: Posduif, server: PgServer, pair: str) -> None:
    first, second = send(posduif, pair, "one"), send(posduif, pair, "two")
    assert posduif.json("message", "unread", pair, "Mia") == {"user": "Mia", "unread": 2}

    synced = posduif.json("message", "mark", pair, first, "synced")
    assert (synced["status"], synced["changed"], synced["read_at"]) == ("synced", True, None)
    assert synced["synced_at"].endswith("Z")
    assert posduif.json("message", "mark", pair, first, "synced") == {**synced, "changed": False}
    assert [m["id"] for m in posduif.json("message", "pending", pair, "--device", "phone-1")] == [second]

    read = posduif.json("message", "mark", pair, first, "read")
    assert (read["status"], read["synced_at"]) == ("read", synced["synced_at"])
    assert read["read_at"] is not None
    assert posduif("message", "mark", pair, first, "synced", "-o", "json", code=5).error["code"] == "conflict"
    assert posduif.json("message", "mark", pair, first.upper(), "read") == {**read, "changed": False}
    assert posduif.json("message", "mark", pair, second, "read")["changed"] is True
    assert posduif.json("message", "unread", pair, "Mia")["unread"] == 0
    late = "SELECT bool_and(abs(extract(epoch FROM (now() AT TIME ZONE 'UTC') - read_at)) < 30) FROM messages"
    assert server.sql(late, database=pair) == [(True,)]


@pytest.mark.one_server
def test_marks_of_nothing(posduif: Posduif, pair: str) -> None:
    assert posduif("message", "mark", pair, str(uuid.uuid4()), "read", "-o", "json", code=4).error["code"] == (
        "message_not_found"
    )
    assert posduif("message", "mark", pair, "x; drop", "read", "-o", "json", code=2).error["code"] == "invalid_id"
    posduif("message", "mark", pair, str(uuid.uuid4()), "pending_sync", code=2)


@pytest.mark.one_server
def test_stored_text_does_not_drive_the_terminal(posduif: Posduif, pair: str) -> None:
    send(posduif, pair, "\x1b]0;owned\x07\x9b31m\u2028end")
    for form in ("table", "tsv", "json", "jsonl"):
        out = posduif("message", "inbox", pair, "Mia", "-o", form).out
        assert "owned" in out
        assert not {"\x1b", "\x07", "\x9b"} & set(out), form
