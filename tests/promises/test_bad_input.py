"""What people type and servers answer on bad days: the right exit code, no traceback, no secret."""

import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from posduif_cli import notation
from posduif_cli.config import file as config_file
from posduif_cli.core import names
from posduif_cli.errors import ConfigurationError, InvalidDuration, InvalidId, InvalidName, scrub
from posduif_cli.render import tables
from support.runner import Posduif
from support.servers import PgServer

DEAD = "host=127.0.0.1 port=1 user=nobody"
ID = "5f3759df-0000-4000-8000-000000000000"
SECRET = "hunter2x"
FORMS = ("table", "tsv", "json", "jsonl")


@pytest.fixture
def dead(cli: Posduif, monkeypatch: pytest.MonkeyPatch) -> Posduif:
    """A runner whose server is a port where nobody listens."""
    monkeypatch.setenv("POSDUIF_DSN", DEAD)
    return cli


# Names.

BAD_NAMES = [
    *("", "a" * 51, "Acme", 'ac"me', "ac'me", "x; drop", "acmé", "愛", "acme\n", "a\nb", "a b", "1a", "_a", "a-b"),
    *("postgres", "template0", "template1", "templates", "pg_x", "posduif", "posduif_x", "a\x1b[31m", "a\\b", "../a"),
]
TENANT_COMMANDS = [
    "tenant create {}",
    "tenant show {}",
    "tenant set {} --url https://a.example.com",
    "tenant engine-config {}",
    "tenant rotate-password {} --engine-config none.yaml",
    "tenant drop {} --confirm {}",
    "migrate up {}",
    "migrate list {}",
    "migrate status {}",
    "user create {} desk --type web",
    "user list {}",
    "token create {}",
    "token list {}",
    f"token revoke {{}} {ID}",
    "token purge {}",
    f"enroll complete {{}} {ID} --device p --username u",
    "device list {}",
    "message send {} text --from a --to b",
    "health {}",
]


@pytest.mark.parametrize("name", BAD_NAMES, ids=ascii)
def test_a_bad_name_is_refused_before_any_connection(dead: Posduif, name: str) -> None:
    for command in TENANT_COMMANDS:
        argv = [word.replace("{}", name) for word in command.split()]
        error = dead(*argv, "-o", "json", code=2).error
        assert error["code"] == "invalid_name", command
        assert "\x1b" not in dead(*argv, "-o", "table", code=2).err


@pytest.mark.parametrize(("typed", "meant"), [("Acme", "acme"), ("acme-eu", "acme_eu"), ("A Corp!", "a_corp")])
def test_a_bad_name_is_answered_with_a_good_one(dead: Posduif, typed: str, meant: str) -> None:
    assert dead("tenant", "create", typed, "-o", "json", code=2).error["try"] == [f"for instance: {meant}"]


def test_the_nearest_tenant(posduif: Posduif, tenant: str) -> None:
    typo = tenant[:-2] + tenant[-1] + tenant[-2] if tenant[-1] != tenant[-2] else tenant[:-1]
    for command in ("tenant show", "user list", "migrate up", "token purge"):
        error = posduif(*command.split(), typo, "-o", "json", code=4).error
        assert error["code"] == "tenant_not_found"
        assert tenant in error["why"]
        assert error["try"] == [f"posduif tenant show {tenant}"]


@pytest.mark.one_server
def test_a_database_of_others_is_no_tenant(posduif: Posduif, server: PgServer, name: str) -> None:
    server.sql(f"CREATE DATABASE {name}")
    server.sql(f"""COMMENT ON DATABASE {name} IS 'posduif {{"v":1,"state":"active","schema":"0003"}}'""")
    assert posduif("user", "list", name, "-o", "json", code=4).error["code"] == "tenant_not_found"
    assert posduif("tenant", "drop", name, "--confirm", name, code=4).out == ""
    assert posduif("tenant", "create", name, "-o", "json", code=5).error["code"] == "not_ours"
    assert server.sql("SELECT 1 FROM pg_database WHERE datname = %s", name) == [(1,)]


# Servers that cannot be used.


def test_a_server_that_is_down(dead: Posduif) -> None:
    for command in ("tenant list", "tenant show acme", "user list acme", "token purge --all", "migrate status --all"):
        error = dead(*command.split(), "-o", "json", code=6).error
        assert error["code"] == "server_unreachable", command
        assert "cannot be reached" in error["message"]
    assert dead("server", "list", code=6).out.count("\n") == 2
    assert dead("health", code=1).err == ""


@pytest.fixture
def login(server: PgServer, name: str) -> Iterator[str]:
    """A superuser with a password; on the embedded servers only a name with a password goes by TCP."""
    role = f"{name}_admin"
    server.sql(f"CREATE ROLE {role} LOGIN SUPERUSER PASSWORD '{SECRET}-right'")
    yield role
    server.sql(f"DROP ROLE {role}")


@pytest.mark.one_server
@pytest.mark.parametrize("form", FORMS)
def test_a_login_that_is_refused(
    server: PgServer, cli: Posduif, login: str, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    monkeypatch.setenv("POSDUIF_DSN", server.dsn_for(user=login + "_not", password=SECRET))
    result = cli("tenant", "list", "--debug", "-o", form, code=6)
    assert SECRET not in result.out + result.err
    assert "refuses the connection" in result.err


@pytest.mark.one_server
def test_a_wrong_password(own_server: PgServer, run_on: Callable[..., Posduif]) -> None:
    own_server.sql(f"CREATE ROLE alice LOGIN SUPERUSER PASSWORD '{SECRET}-right'")
    assert own_server.data_dir is not None
    (hba,) = own_server.sql("SHOW hba_file")[0]
    text = Path(hba).read_text()
    Path(hba).write_text("local all alice scram-sha-256\n" + text)
    own_server.sql("SELECT pg_reload_conf()")
    time.sleep(0.3)
    posduif = run_on(own_server, user="alice", password=f"{SECRET}-wrong")
    for form in FORMS:
        result = posduif("tenant", "list", "--debug", "-o", form, code=6)
        assert SECRET not in result.out + result.err
        assert "password authentication failed" in result.err
    assert posduif("tenant", "show", "acme", "-o", "json", code=6).error["code"] == "access_denied"
    posduif = run_on(own_server, user="alice", password=f"{SECRET}-right")
    assert posduif.json("tenant", "list") == []


def test_a_tenant_that_is_gone_in_between(posduif: Posduif, server: PgServer, tenant: str) -> None:
    """Its record still says active, but nobody may connect any more: unknown is never shown as fine."""
    server.sql(f"ALTER DATABASE {tenant} RENAME TO {tenant}x")
    try:
        error = posduif("user", "list", tenant, "-o", "json", code=5).error
        assert error["code"] == "wrong_state"
        assert "lost" in error["message"]
    finally:
        server.sql(f"ALTER DATABASE {tenant}x RENAME TO {tenant}")
    server.sql(f"ALTER DATABASE {tenant} ALLOW_CONNECTIONS false")
    assert posduif("user", "list", tenant, "-o", "json", code=6).error["exit"] == 6


# Servers that are not configured, or wrongly.


def test_no_server_at_all_lists_every_way(cli: Posduif) -> None:
    for command in ("tenant list", "user list acme", "health", "token purge --all"):
        error = cli(*command.split(), "-o", "json", code=3).error
        assert error["code"] == "no_server"
        for way in ("--server", "--dsn", "POSDUIF_SERVER", "POSDUIF_DSN", "PGHOST", "PGSERVICE", "configuration file"):
            assert way in error["why"], way
        assert "posduif quickstart" in error["try"]


MALFORMED = [
    f"host=x password={SECRET} nonsense",
    f"host=x pass word={SECRET}",
    f"password='{SECRET}",
    f"postgresql://u:{SECRET}@h/x?bogus=1",
    f"postgresql://u:{SECRET}@[::1/x",
    f"postgresql://u:{SECRET}%zz@h/x",
    f"postgresql://u:p@{SECRET}@127.0.0.1:1/x",
    f"postgresql://u:p/{SECRET}@127.0.0.1:1/x",
    f"postgres://u:{SECRET}/p@127.0.0.1:1/x",
    f"postgres://{SECRET}@{SECRET}@127.0.0.1",
]


@pytest.mark.parametrize("dsn", MALFORMED)
def test_a_malformed_dsn_is_never_shown(
    cli: Posduif, monkeypatch: pytest.MonkeyPatch, dsn: str, tmp_path: Path
) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(f'servers:\n  eu1:\n    dsn: "{dsn}"\n')
    monkeypatch.setenv("POSDUIF_DSN", dsn)
    for form in FORMS:
        for command in ("tenant list", "user list acme", "config show --origin"):
            result = cli(*command.split(), "--debug", "-o", form, code=None)
            assert SECRET not in result.out + result.err
            assert result.code == 3 or command.startswith("config")
    monkeypatch.delenv("POSDUIF_DSN")
    for command in ("tenant list", "user list acme", "config show --origin"):
        result = cli(*command.split(), "--debug", "--config", str(file), code=None)
        assert SECRET not in result.out + result.err
        assert result.code == 3 or command.startswith("config")


@pytest.mark.parametrize(
    "dsn", ["postgresql://alice@127.0.0.1:1/x", "postgresql://a%40b:c%2Fd@127.0.0.1:1/x?sslmode=disable"]
)
def test_a_uri_that_is_right_is_taken(cli: Posduif, monkeypatch: pytest.MonkeyPatch, dsn: str) -> None:
    monkeypatch.setenv("POSDUIF_DSN", dsn)
    assert "cannot be reached" in cli("tenant", "list", code=6).err


@pytest.mark.parametrize(
    "dsn", [f"host=x {key}={SECRET}" for key in ("password", "sslpassword")] + [f"postgresql://u:{SECRET}@h/x"]
)
def test_a_password_on_the_command_line_is_refused(cli: Posduif, dsn: str) -> None:
    for command in ("tenant list", "user list acme"):
        result = cli(*command.split(), "--dsn", dsn, "--debug", code=3)
        assert "--dsn holds a password" in result.err
        assert SECRET not in result.err


def test_an_unknown_server(cli: Posduif, tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("servers: {eu1: {dsn: host=a}, eu2: {dsn: host=b}}\n")
    error = cli("tenant", "list", "--server", "eu3", "--config", str(file), "-o", "json", code=3).error
    assert (error["code"], "eu1, eu2" in error["why"]) == ("no_server", True)


@pytest.mark.parametrize("option", ["--server", "--dsn", "--data-dir", "--config", "--output"])
def test_an_empty_option_is_not_the_next_best(dead: Posduif, option: str) -> None:
    assert "is empty" in dead("tenant", "list", f"{option}=", code=2).err


@pytest.mark.parametrize(
    ("text", "where", "key"),
    [
        ("servers:\n  eu1:\n    dns: host=a\n", 3, 'servers.eu1.dns: unknown key|did you mean "dsn"?'),
        ("enrolment: {ttl: 1h}\n", 1, 'enrolment: unknown key|did you mean "enrollment"?'),
        ("enrollment:\n  ttl: 3\n", 2, "enrollment.ttl: must be text"),
        ("enrollment:\n  ttl: 1y2\n", 2, "enrollment.ttl|1y2"),
        ("enrollment: 5\n", 1, "enrollment: must hold"),
        ("- a\n", 1, "must hold"),
        ("servers:\n  eu1: {dsn: host=a, max_connections: many}\n", 2, "servers.eu1.max_connections: must be"),
        ("servers:\n  eu1: {dsn: host=a, max_connections: true}\n", 2, "servers.eu1.max_connections: must be"),
        ("servers:\n  eu1: {dsn: host=a, protected: 1}\n", 2, "servers.eu1.protected: must be true or false"),
        ("servers:\n  eu1: {dsn: host=a, url: https://a/b}\n", 2, "servers.eu1.url|is not an origin"),
        ("servers:\n  EU 1: {dsn: host=a}\n", 2, "servers.EU 1|a server's name"),
        ("servers:\n  eu1: {dsn: host=a}\n  eu1: {dsn: host=b}\n", 3, "servers.eu1: is given twice"),
        ("servers:\n  eu1: {dsn: a, dsn: b}\n", 2, "servers.eu1.dsn: is given twice"),
        ("servers:\n  eu1: {dsn: 2026-13-45}\n", 2, "servers.eu1.dsn"),
        ("servers:\n  eu1: {\n", 3, "not valid YAML"),
        ("a: b: c\n", 1, "not valid YAML"),
        ("servers:\n\tx: 1\n", 2, "not valid YAML"),
        ("a: 1\n---\nb: 1\n", 2, "not valid YAML"),
        ("\n\nservers: \x01\n", 3, "not valid YAML"),
        ("x: &a [*a]\n", 1, "x: unknown key"),
        ("? [1, 2]\n: 3\n", 1, "unknown key"),
        ("migrations: {paths: folder}\n", 1, "migrations.paths: must be a list"),
        ("servers: !!python/object/apply:os.system ['true']\n", 1, ""),
    ],
)
def test_a_wrong_file_is_answered_with_line_and_key(
    cli: Posduif, tmp_path: Path, text: str, where: int, key: str
) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(text)
    for command in ("tenant list", "config show", "server list"):
        result = cli(*command.split(), "--config", str(file), code=3)
        assert result.out == ""
        assert f"{file}:{where}: " in result.err
        for part in key.split("|"):
            assert part in result.err
    assert cli("tenant", "list", "--config", str(file), "-o", "json", code=3).error["exit"] == 3


def test_a_file_that_cannot_be_read(cli: Posduif, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "latin1.yaml").write_bytes(b"# \xff\n")
    for name, reason in (("none.yaml", "does not exist"), ("latin1.yaml", "not UTF-8"), (".", "not a regular file")):
        assert reason in cli("tenant", "list", "--config", str(tmp_path / name), code=3).err
    monkeypatch.setenv("POSDUIF_CONFIG", str(tmp_path / "none.yaml"))
    assert "POSDUIF_CONFIG names it" in cli("tenant", "list", code=3).err


@pytest.mark.parametrize("form", ["json", "jsonl"])
def test_errors_are_json_where_json_was_asked_for(
    dead: Posduif, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, form: str
) -> None:
    (tmp_path / "wrong.yaml").write_text("nonsense: 1\n")
    failing = [
        (2, "tenant show Acme"),
        (2, "tenant sohw acme"),
        (2, "token purge"),
        (3, f"tenant list --config {tmp_path}/none"),
        (3, f"tenant list --config {tmp_path}/wrong.yaml"),
        (6, "tenant list"),
    ]

    def check(argv: list[str], code: int) -> None:
        error = dead(*argv, code=code).error
        assert set(error) == {"code", "exit", "message", "why", "try"}
        assert error["exit"] == code
        assert re.fullmatch("[a-z_]+", error["code"])
        assert isinstance(error["try"], list)

    for code, command in failing:
        argv = command.split()
        check([*argv, "-o", form], code)
        check([*argv, f"--output={form}"], code)
        check(["-o" + form, *argv], code)
        monkeypatch.setenv("POSDUIF_OUTPUT", form)
        check(argv, code)
        assert dead(*argv, "-o", "tsv", code=code).err.startswith("error: ")
        monkeypatch.delenv("POSDUIF_OUTPUT")


# Servers that answer with an error, or go away in the middle.

RAISE = """CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN RAISE EXCEPTION 'the server says no' USING ERRCODE = '{}', DETAIL = 'a row with {}'; END $$;
CREATE TRIGGER fail BEFORE INSERT ON messages FOR EACH ROW EXECUTE FUNCTION fail()"""
SEND = ("message", "send", "{}", "text", "--from", "desk", "--to", "desk")


def send(tenant: str) -> list[str]:
    return [word.format(tenant) for word in SEND]


@pytest.mark.parametrize(
    ("state", "code", "kind"),
    [
        ("53100", 7, "query_failed"),
        ("53200", 7, "query_failed"),
        ("58030", 7, "query_failed"),
        ("XX000", 7, "query_failed"),
        ("23514", 7, "query_failed"),
        ("42501", 6, "access_denied"),
        ("25006", 6, "standby_server"),
        ("57P01", 6, "server_unreachable"),
        ("55P03", 10, "blocked"),
        ("57014", 7, "query_failed"),
    ],
)
@pytest.mark.one_server
def test_each_refusal_of_a_server_has_its_code(
    posduif: Posduif, server: PgServer, tenant: str, state: str, code: int, kind: str
) -> None:
    server.sql(RAISE.format(state, SECRET), database=tenant)
    result = posduif(*send(tenant), "-o", "json", code=code)
    assert (result.error["code"], "the server says no" in result.err) == (kind, True)
    assert SECRET not in posduif(*send(tenant), code=code).err
    # Unasked for, PostgreSQL's DETAIL stays out; and nothing was kept.
    assert server.sql("SELECT last_message_sent FROM users", database=tenant) == [(None,)]


@pytest.mark.one_server
def test_a_right_that_is_missing(posduif: Posduif, server: PgServer, tenant: str) -> None:
    posduif("user", "list", tenant)
    server.sql("REVOKE INSERT ON messages FROM posduif_admin, posduif_engine", database=tenant)
    assert posduif(*send(tenant), "-o", "json", code=6).error["code"] == "access_denied"


def blocked(server: PgServer, tenant: str) -> int:
    """Wait until a posduif session waits for a lock in the tenant's database, and return its process id."""
    query = """SELECT pid FROM pg_stat_activity
               WHERE datname = %s AND application_name LIKE 'posduif %%' AND wait_event_type = 'Lock'"""
    for _ in range(200):
        found = server.sql(query, tenant)
        if found:
            return int(found[0][0])
        time.sleep(0.05)
    raise AssertionError("nobody waits")


def test_ctrl_c_while_waiting(posduif: Posduif, server: PgServer, tenant: str) -> None:
    with server.connect(tenant) as conn, conn.transaction():
        conn.execute("LOCK TABLE messages")
        process = posduif.popen(*send(tenant), "-o", "json")
        blocked(server, tenant)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=20)
    assert process.returncode == 130
    assert out == b""
    assert b"Traceback" not in err
    assert b'"code": "interrupted"' in err
    assert server.sql("SELECT count(*) FROM messages", database=tenant) == [(0,)]


def test_a_session_that_is_ended(posduif: Posduif, server: PgServer, tenant: str) -> None:
    with server.connect(tenant) as conn, conn.transaction():
        conn.execute("LOCK TABLE messages")
        process = posduif.popen(*send(tenant), "-o", "json")
        server.sql("SELECT pg_terminate_backend(%s)", blocked(server, tenant))
        out, err = process.communicate(timeout=20)
    assert process.returncode == 6, err
    assert out == b""
    assert b"Traceback" not in err
    assert b'"code": "server_unreachable"' in err
    assert server.sql("SELECT count(*) FROM messages", database=tenant) == [(0,)]


@pytest.mark.one_server
def test_a_server_that_hangs_up(cli: Posduif, monkeypatch: pytest.MonkeyPatch) -> None:
    """Something listens, but it is no PostgreSQL."""
    import socket

    with socket.create_server(("127.0.0.1", 0)) as listener:
        answers = [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n", os.urandom(64), b"E\0\0\0\x05\0", b"\xff" * 9]

        def serve() -> None:
            for answer in answers:
                peer, _ = listener.accept()
                with peer:
                    peer.recv(1024)
                    peer.sendall(answer)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        port = listener.getsockname()[1]
        monkeypatch.setenv("POSDUIF_DSN", f"host=127.0.0.1 port={port} sslmode=disable gssencmode=disable user=u")
        for _ in answers:
            result = cli("tenant", "list", code=6)
            assert "Traceback" not in result.err
        thread.join(5)


# Readers of what people type, on anything at all.

TEXT = st.text(max_size=80)
PASSWORDS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=8, max_size=40)


@given(st.one_of(TEXT, st.from_regex(r"[0-9]{1,13}(ms|s|m|h|d|w|y)?", fullmatch=True)))
def test_a_duration_is_read_or_refused(text: str) -> None:
    try:
        span = notation.duration(text)
    except InvalidDuration:
        return
    assert timedelta(0) < span <= notation.LONGEST
    assert re.fullmatch(r"[0-9]+(ms|s|m|h|d|w)", text)
    assert notation.duration(notation.spell(span)) == span


@given(st.integers(1, 3650 * 86400 * 1000))
def test_a_spelt_duration_is_read_again(milliseconds: int) -> None:
    span = timedelta(milliseconds=milliseconds)
    assert notation.duration(notation.spell(span)) == span


@given(st.one_of(TEXT, st.from_regex(r"[a-z][a-z0-9_]{0,55}\n?", fullmatch=True)))
def test_a_tenant_name_is_safe_or_refused(text: str) -> None:
    try:
        name = names.tenant(text)
    except InvalidName as refused:
        error = refused
    else:
        assert name == text
        assert re.match(r"[a-z][a-z0-9_]{0,49}\Z", name)
        assert not name.startswith(("pg_", "template", "posduif"))
        assert name != "postgres"
        assert len(f"{name}_engine") <= 63
        return
    assert error.message.isprintable()
    for hint in error.hints:
        assert names.tenant(str(hint).removeprefix("for instance: "))


@given(
    st.uuids(), st.sampled_from(["{}", "https://h/api/enrollment/{}", "{}/", "  {}\n", "http://h:1/{}"]), st.booleans()
)
def test_a_token_is_found_in_what_is_pasted(token: Any, shape: str, upper: bool) -> None:
    text = str(token).upper() if upper else str(token)
    assert names.secret(shape.format(text)) == token


@given(st.one_of(TEXT, st.uuids().map(lambda u: str(u) + "x"), st.uuids().map(lambda u: f"https://h/{u}?a=b")))
def test_a_wrong_token_is_not_repeated(text: str) -> None:
    assume(names.ids(text) is None)  # among the texts that hypothesis likes to try is a whole UUID
    with pytest.raises(InvalidId) as caught:
        names.secret(text)
    words = " ".join([caught.value.message, caught.value.why or "", *map(str, caught.value.hints)])
    assert len(text.strip()) < 12 or text.strip() not in words


def libpq_quoted(value: str) -> str:
    return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"


def libpq_bare(value: str) -> str:
    return re.sub(r"([\s\\'])", r"\\\1", value)


KEYS = ["password", "PASSWORD", "password ", "sslpassword", "PGPASSWORD"]


@given(PASSWORDS, st.sampled_from(KEYS), st.sampled_from([libpq_quoted, libpq_bare]))
def test_no_password_survives_the_scrubbing(password: str, key: str, quote: Callable[[str], str]) -> None:
    mark = "\uee00"  # stands at both ends of the password, nowhere else
    text = f"error at host=db1 {key}={quote(mark + password + mark)} user=alice: no"
    assert mark not in scrub(text)
    assert scrub(text).startswith("error at host=db1 ")
    assert scrub(scrub(text)) == scrub(text)


@given(st.text(st.characters(exclude_categories=["Z", "C"]), max_size=20))
def test_no_password_of_a_uri_survives_the_scrubbing(password: str) -> None:
    mark = "\uee00"
    text = f"cannot use postgresql://alice:{mark}{password}{mark}@db1:5432/x today"
    assert mark not in scrub(text)
    assert "@db1:5432/x today" in scrub(text)


@given(TEXT)
def test_an_error_is_printable(text: str) -> None:
    shown = tables.visible(text)
    assert shown.isprintable()
    assert tables.visible(shown) == shown
    if text.isprintable():
        assert shown == text


@given(TEXT)
def test_a_configuration_is_read_or_refused(text: str) -> None:
    import tempfile

    with tempfile.NamedTemporaryFile("w", encoding="utf-8", errors="surrogatepass", suffix=".yaml") as file:
        file.write(text)
        file.flush()
        try:
            values, lines = config_file.read(Path(file.name))
        except ConfigurationError as refused:
            message = refused.message
        else:
            assert set(values) == set(lines)
            return
    assert file.name in message


@pytest.mark.parametrize("dsn", ["port=abc", "host=127.0.0.1 connect_timeout=abc", "sslmode=sometimes"])
def test_a_dsn_value_that_libpq_refuses_is_a_configuration_error(
    clean_environ: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], dsn: str
) -> None:
    clean_environ.setenv("POSDUIF_DSN", dsn)
    error = Posduif(capfd, {})("tenant", "list", "-o", "json", code=3).error
    assert error["code"] == "invalid_dsn"
    assert "POSDUIF_DSN" in error["why"]


def test_an_unreachable_server_says_why(clean_environ: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    clean_environ.setenv("POSDUIF_DSN", "host=127.0.0.1 port=1")
    assert "refused" in Posduif(capfd, {})("tenant", "list", "-o", "json", code=6).error["why"].lower()


def test_an_engine_config_cannot_be_had_from_a_tenant_that_exists(
    posduif: Posduif, tenant: str, tmp_path: Path
) -> None:
    file = tmp_path / "engine.yaml"
    error = posduif(
        "tenant", "create", tenant, "--if-not-exists", "--engine-config", str(file), "-o", "json", code=5
    ).error
    assert "rotate-password" in error["try"][0]
    assert not file.exists()
