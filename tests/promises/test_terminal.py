"""What reaches a terminal: none of what phones, engines and rows hold may drive it, and colours mean what they say."""

import re
from pathlib import Path

import pytest

from posduif_cli.render import output, tables
from support.runner import Posduif
from support.servers import PgServer
from support.terminal import on_terminal

EVIL = "Joe\x1b[2J\x1b]0;owned\x07\x9b31m\u202eeoJ\u2066\u200b"
CLIPBOARD = "\x1b]52;c;Y3VybCBldmlsfHNo\x07\x1b[2Jhello"
OUR_COLOURS = re.compile(r"\x1b\[[0-9;]*m|\r\x1b\[K")
UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2066-\u2069]")


def screen(*argv: str, answer: str = "", **environ: str) -> str:
    """Run a command with all three streams on one terminal; return what it shows."""
    return on_terminal(*argv, answer=answer, environ=environ).out


def unsafe(shown: str) -> list[str]:
    """Return what could drive a terminal beyond our own colours and the progress line."""
    return UNSAFE.findall(OUR_COLOURS.sub("", shown))


@pytest.fixture
def haunted(posduif: Posduif, server: PgServer, tenant: str) -> str:
    """A tenant whose phone chose its user's name, device and messages to harm whoever looks."""
    token = posduif.json("token", "create", tenant)["token"]
    posduif("enroll", "complete", tenant, token, "--device", "p", "--username", "Mia")
    server.sql("UPDATE sync_metadata SET device_id = %s", EVIL, database=tenant)
    server.sql("UPDATE users SET username = %s, device_id = %s WHERE username = 'Mia'", EVIL, EVIL, database=tenant)
    server.sql("UPDATE enrollment_tokens SET label = %s, device_id = %s", EVIL, EVIL, database=tenant)
    server.sql(
        "INSERT INTO messages (sender_id, recipient_id, content) SELECT a.id, b.id, %s FROM users a, users b",
        CLIPBOARD,
        database=tenant,
    )
    return tenant


def test_no_command_lets_stored_text_drive_a_terminal(posduif: Posduif, server: PgServer, haunted: str) -> None:
    [token] = server.sql("SELECT id::text FROM enrollment_tokens", database=haunted)[0]
    [user] = server.sql("SELECT id::text FROM users WHERE user_type = 'mobile'", database=haunted)[0]
    commands = [
        ("user", "list", haunted),
        ("user", "show", haunted, user),
        ("user", "show", haunted, "Joe"),
        ("user", "create", haunted, EVIL, "--type", "mobile", "--if-not-exists"),
        ("user", "create", haunted, EVIL, "--type", "web", "--if-not-exists"),
        ("token", "list", haunted),
        ("token", "show", haunted, token),
        ("token", "revoke", haunted, token),
        ("token", "create", haunted, "--by", EVIL),
        ("device", "list", haunted),
        ("device", "show", haunted, EVIL),
        ("message", "send", haunted, "--from", user, "--to", "desk", "hello"),
        ("message", "send", haunted, "--from", "desk", "--to", user, CLIPBOARD),
        ("message", "inbox", haunted, "desk"),
        ("message", "pending", haunted, "--device", EVIL),
        ("message", "unread", haunted, user),
        ("health", haunted),
        ("tenant", "verify", haunted),
        ("user", "delete", haunted, EVIL, "-n"),
        ("user", "delete", haunted, "desk", "--confirm", "desk"),
        ("user", "delete", haunted, user, "--confirm", EVIL),
    ]
    for argv in commands:
        for form in ("table", "tsv", "json", "jsonl"):
            if argv[1] != "delete" or form == "table" or "-n" in argv:
                result = posduif(*argv, "-o", form, code=None)
                assert not unsafe(result.out + result.err), (argv, form, result)
    assert server.sql("SELECT count(*) FROM users WHERE id = %s", user, database=haunted) == [(0,)], "it was deleted"


@pytest.mark.one_server
def test_a_prompt_shows_a_name_for_what_it_is(haunted: str, server: PgServer) -> None:
    [user] = server.sql("SELECT id::text FROM users WHERE user_type = 'mobile'", database=haunted)[0]
    shown = screen("user", "delete", haunted, user, answer="no\n")
    assert "Type Joe\\x1b[2J" in shown
    assert not unsafe(shown)
    for argv in (("message", "inbox", haunted, "desk"), ("user", "list", haunted), ("device", "list", haunted)):
        for colour in ("always", "never"):
            shown = screen(*argv, "--color", colour)
            assert "\\x1b" in shown
            assert not unsafe(shown), argv


@pytest.mark.one_server
def test_a_migration_that_quotes_a_row_is_told_safely(
    posduif: Posduif, server: PgServer, haunted: str, tmp_path: Path
) -> None:
    (tmp_path / "1000_quotes.sql").write_text("-- migrate:up\nSELECT content::int FROM messages;\n")
    (tmp_path / "c.yaml").write_text(f"migrations: {{paths: ['{tmp_path}']}}\n")
    argv = ("migrate", "up", haunted, "--config", str(tmp_path / "c.yaml"))
    shown = screen(*argv)
    assert "\\x1b]52" in shown
    assert not unsafe(shown)
    for form in ("table", "tsv", "json"):
        result = posduif.process(*argv, "-o", form)
        assert result.code == 7
        assert "x1b]52" in (result.out + result.err).replace("u00", "x")
        assert not unsafe(result.out + result.err), form


def test_text_is_written_by_one_door(capfd: pytest.CaptureFixture[str]) -> None:
    output.write(f"{EVIL}\tcolumn\nline\n")
    shown = capfd.readouterr().out
    assert not unsafe(shown)
    assert shown.endswith("\tcolumn\nline\n")
    out = output.Output("table")
    for tell in (out.say, out.warn, out.text):
        tell(EVIL)
    captured = capfd.readouterr()
    assert not unsafe(captured.out + captured.err)
    assert captured.out.count("\n") == 1
    assert captured.err.count("\n") == 2
    for ours in "Zoë ☃ 山田太郎 👍":
        assert tables.visible(ours) == ours


@pytest.mark.one_server
def test_only_words_of_their_column_are_coloured(posduif: Posduif, tenant: str) -> None:
    """A user who is called critical is no alarm."""
    posduif("user", "create", tenant, "critical", "--type", "web")
    assert "\x1b" not in posduif("user", "list", tenant, "-o", "table", "--color", "always").out
    assert "\x1b" not in posduif("user", "show", tenant, "critical", "-o", "table", "--color", "always").out
    for argv in (("tenant", "list"), ("tenant", "show", tenant)):
        assert "\x1b[32mactive\x1b[0m" in posduif(*argv, "-o", "table", "--color", "always").out


@pytest.mark.one_server
def test_sizes_are_in_the_table_that_was_asked_for_them(posduif: Posduif, tenant: str) -> None:
    for argv in (("tenant", "list"), ("tenant", "show", tenant)):
        assert re.search(r"\d MiB", posduif(*argv, "--sizes", "-o", "table").out), argv
    assert "size" not in posduif("tenant", "list", "-o", "table").out.lower()


@pytest.mark.one_server
def test_whether_a_finding_changed_something_is_in_the_table(posduif: Posduif, server: PgServer, tenant: str) -> None:
    server.sql(f"ALTER DATABASE {tenant} RESET timezone")
    for options, word in (((), "no"), (("--repair",), "yes")):
        argv = ("tenant", "verify", tenant, *options, "-o", "table", "--fields", "level,check,changed")
        table = posduif(*argv, code=None).out.splitlines()
        assert ["database.timezone", word] in [line.split()[1:] for line in table], table


@pytest.mark.one_server
def test_fields_of_a_health_report_are_checked_in_every_format(posduif: Posduif, server: PgServer, tenant: str) -> None:
    server.sql("INSERT INTO sync_metadata (device_id, sync_status) VALUES ('d1', 'error')", database=tenant)
    for form in ("table", "tsv", "json"):
        assert "nonsense" in posduif("health", tenant, "-o", form, "--fields", "nonsense", code=2).err, form
    shown = posduif("health", tenant, "-o", "table", "--fields", "check,level").out.splitlines()
    assert shown[0].split() == ["CHECK", "LEVEL"]
    assert ["sync.failed", "warning"] in [line.split() for line in shown]
