"""`posduif token` on real servers: who may make one, how long it lives, and that its secret goes nowhere else."""

import re
import stat
import time
import uuid
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from support.camera import THEMES, png_pixels, raster, read, svg_pixels
from support.runner import Posduif
from support.servers import PgServer
from support.tenants import record
from support.terminal import on_terminal

URL = r"https://{}\.example\.com/api/enrollment/[0-9a-f]{{8}}(-[0-9a-f]{{4}}){{3}}-[0-9a-f]{{12}}"


def seconds(token: dict[str, Any]) -> float:
    return (datetime.fromisoformat(token["expires_at"]) - datetime.fromisoformat(token["created_at"])).total_seconds()


def shift(server: PgServer, tenant: str, token: str, column: str, offset: str) -> None:
    query = f"UPDATE enrollment_tokens SET {column} = (now() AT TIME ZONE 'UTC') + %s::interval WHERE id = %s"
    server.sql(query, offset, token, database=tenant)


# Create.


def test_a_created_token_has_the_promised_fields(posduif: Posduif, tenant: str) -> None:
    made = posduif.json("token", "create", tenant, "--for", "Mia, phone 2")
    listed = {"id", "tenant", "label", "status", "created_by", "created_at", "expires_at", "used_at", "device_id"}
    assert listed | {"token", "enrollment_url", "changed"} <= set(made)
    assert (made["tenant"], made["label"], made["status"]) == (tenant, "Mia, phone 2", "active")
    assert (made["created_by"], made["changed"], made["used_at"]) == ("desk", True, None)
    assert made["enrollment_url"] == f"https://{tenant}.example.com/api/enrollment/{made['token']}"
    assert made["token"] != made["id"]
    assert seconds(made) == 3600


def test_a_pipe_gets_the_bare_url(posduif: Posduif, tenant: str) -> None:
    result = posduif("token", "create", tenant)
    assert re.fullmatch(URL.format(tenant) + "\n", result.out)
    assert result.err == ""
    assert re.fullmatch(URL.format(tenant) + "\n", posduif("token", "create", tenant, "-o", "table").out)
    header, row = posduif("token", "create", tenant, "-o", "tsv").out.splitlines()
    assert dict(zip(header.split("\t"), row.split("\t"), strict=True))["enrollment_url"].startswith("https://")
    picked = posduif("token", "create", tenant, "--fields", "token,status").out.splitlines()
    assert picked[0] == "token\tstatus"
    assert picked[1].endswith("\tactive")


def test_a_wrong_field_makes_no_token(posduif: Posduif, tenant: str) -> None:
    for form in ("table", "tsv", "json", "jsonl"):
        refused = posduif("token", "create", tenant, "-o", form, "--fields", "url", code=2)
        assert "enrollment_url" in refused.err
    assert posduif.json("token", "list", tenant) == []


def test_who_makes_it(posduif: Posduif, server: PgServer, name: str) -> None:
    tenant = name
    posduif("tenant", "create", tenant, "--url", "https://x.example.com")
    posduif("user", "create", tenant, "desk", "--type", "web")
    assert posduif.json("token", "create", tenant)["created_by"] == "desk"
    for username in ("bert", "O'Neil"):
        posduif("user", "create", tenant, username, "--type", "web")
    posduif("user", "create", tenant, "Mia", "--type", "mobile")
    several = posduif("token", "create", tenant, "-o", "json", code=2).error
    assert several["why"] == "O'Neil, bert, desk"
    assert "--by" in several["try"][0]
    assert posduif.json("token", "create", tenant, "--by", "O'Neil")["created_by"] == "O'Neil"
    bert = posduif.json("user", "show", tenant, "bert")["id"]
    assert posduif.json("token", "create", tenant, "--by", bert)["created_by"] == "bert"
    assert "mobile" in posduif("token", "create", tenant, "--by", "Mia", code=5).err
    assert posduif("token", "create", tenant, "--by", "brt", "-o", "json", code=4).error["code"] == "user_not_found"
    assert server.sql("SELECT count(*) FROM enrollment_tokens", database=tenant) == [(3,)]


def test_the_desk_that_the_record_names_makes_it(posduif: Posduif, server: PgServer, tenant: str) -> None:
    """`tenant create --web-user` and `tenant set --desk` write its id: names would be readable by every role."""
    posduif("user", "create", tenant, "anna", "--type", "web")
    posduif("user", "create", tenant, "Mia", "--type", "mobile")
    assert posduif.json("token", "create", tenant)["created_by"] == "desk"
    assert record(server, tenant)["desk"] == posduif.json("user", "show", tenant, "desk")["id"]
    assert posduif.json("tenant", "set", tenant, "--desk", "anna")["changed"] is True
    assert posduif.json("tenant", "set", tenant, "--desk", "anna")["changed"] is False
    assert posduif.json("token", "create", tenant)["created_by"] == "anna"
    assert posduif.json("token", "create", tenant, "--by", "desk")["created_by"] == "desk"
    assert record(server, tenant)["desk"] == posduif.json("user", "show", tenant, "anna")["id"], "unchanged by --by"
    assert "mobile" in posduif("tenant", "set", tenant, "--desk", "Mia", code=5).err
    posduif("tenant", "set", tenant, "--desk", "nosuch", code=4)
    posduif("tenant", "set", tenant, code=2)
    # One that is gone decides nothing.
    server.sql("DELETE FROM enrollment_tokens; DELETE FROM users WHERE username = 'anna'", database=tenant)
    assert posduif.json("token", "create", tenant)["created_by"] == "desk"


def test_nobody_could_make_it(posduif: Posduif, name: str) -> None:
    posduif("tenant", "create", name, "--url", "https://x.example.com")
    posduif("user", "create", name, "Mia", "--type", "mobile")
    error = posduif("token", "create", name, "-o", "json", code=4).error
    assert error["try"] == [f"posduif user create {name} desk --type web"]


def test_without_a_url_the_error_holds_the_fix(posduif: Posduif, name: str) -> None:
    import shlex

    posduif("tenant", "create", name, "--web-user", "desk")
    error = posduif("token", "create", name, "-o", "json", code=3).error
    assert error["code"] == "url_missing"
    posduif(*shlex.split(error["try"][0])[1:])
    assert posduif("token", "create", name).out.startswith(f"https://{name}.example.com/api/enrollment/")


@pytest.mark.one_server
@pytest.mark.parametrize("ttl", ["0", "0s", "-1h", "1y2", "", "1", "h", "1.5h", "1h30m", "8d", "9999999999w", "١h"])
def test_a_wrong_ttl_makes_no_token(posduif: Posduif, tenant: str, ttl: str) -> None:
    refused = posduif("token", "create", tenant, f"--ttl={ttl}", "-o", "json", code=2).error
    assert refused["code"] == "invalid_duration"
    assert posduif.json("token", "list", tenant) == []


@pytest.mark.one_server
def test_the_configuration_sets_default_and_maximum(posduif: Posduif, tenant: str, tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("enrollment: {ttl: 20m, max_ttl: 30d}\n")
    assert seconds(posduif.json("token", "create", tenant, "--config", str(file))) == 1200
    assert seconds(posduif.json("token", "create", tenant, "--config", str(file), "--ttl", "30d")) == 30 * 86400
    # A maximum below the default must not make every plain `token create` fail.
    file.write_text("enrollment: {max_ttl: 10m}\n")
    assert seconds(posduif.json("token", "create", tenant, "--config", str(file))) == 600
    posduif("token", "create", tenant, "--config", str(file), "--ttl", "601s", code=2)


# Its life.


@pytest.mark.parametrize(
    ("database", "client", "shell"),
    [
        ("Asia/Tokyo", "America/New_York", "Pacific/Kiritimati"),
        ("America/St_Johns", "Asia/Kathmandu", "UTC"),
        ("Pacific/Marquesas", "Pacific/Chatham", "Europe/Berlin"),
    ],
)
def test_a_life_is_right_in_every_zone(
    posduif: Posduif, server: PgServer, tenant: str, database: str, client: str, shell: str
) -> None:
    # By hand, over our own pin to UTC: what a setting is worth that somebody may change.
    server.sql(f"ALTER DATABASE {tenant} SET timezone = '{database}'")
    for role in (f"{tenant}_engine", "postgres"):
        server.sql(f"ALTER ROLE {role} IN DATABASE {tenant} SET timezone = '{database}'")
    zones = {"PGTZ": client, "TZ": shell}
    result = posduif.process("token", "create", tenant, "--ttl", "90s", "-o", "json", **zones)
    assert result.code == 0, result
    made = result.json
    assert seconds(made) == 90
    left = "SELECT extract(epoch FROM expires_at - (clock_timestamp() AT TIME ZONE 'UTC')) FROM enrollment_tokens"
    assert 30 < server.sql(left, database=tenant)[0][0] <= 90
    shift(server, tenant, made["id"], "expires_at", "-2 s")
    assert posduif.process("token", "show", tenant, made["id"], "-o", "json", **zones).json["status"] == "expired"
    shift(server, tenant, made["id"], "expires_at", "50 s")
    enroll = ("enroll", "complete", tenant, made["token"], "--device", "p", "--username", "Mia", "-o", "json")
    done = posduif.process(*enroll, **zones)
    assert done.code == 0, done
    fresh = """SELECT bool_and(abs(extract(epoch FROM (now() AT TIME ZONE 'UTC') - t)) < 50)
               FROM (SELECT used_at FROM enrollment_tokens UNION ALL SELECT enrolled_at FROM users WHERE device_id = 'p'
                     UNION ALL SELECT created_at FROM users WHERE device_id = 'p') x (t)"""
    assert server.sql(fresh, database=tenant) == [(True,)]


def test_a_life_ends_on_the_second(posduif: Posduif, server: PgServer, tenant: str) -> None:
    made = posduif.json("token", "create", tenant)
    passed = "SELECT expires_at <= (clock_timestamp() AT TIME ZONE 'UTC') FROM enrollment_tokens"
    for _ in range(10):
        shift(server, tenant, made["id"], "expires_at", "2 s")
        shown = posduif.json("token", "show", tenant, made["id"])["status"]
        if server.sql(passed, database=tenant) == [(False,)]:
            break
    else:
        pytest.fail("this machine is too slow to show a token within two seconds")
    assert shown == "active"
    while server.sql(passed, database=tenant) == [(False,)]:
        time.sleep(0.05)
    assert posduif.json("token", "show", tenant, made["id"])["status"] == "expired"
    enroll = ("enroll", "complete", tenant, made["token"], "--device", "p", "--username", "Mia", "-o", "json")
    assert posduif(*enroll, code=5).error["code"] == "token_expired"


@pytest.mark.one_server
def test_a_life_is_right_on_a_server_in_another_zone(own_server: PgServer, run_on: Any) -> None:
    own_server.sql("ALTER SYSTEM SET timezone = 'Asia/Kolkata'")
    own_server.sql("SELECT pg_reload_conf()")
    posduif = run_on(own_server)
    posduif("tenant", "create", "acme", "--web-user", "desk", "--url", "https://a.example.com")
    made = posduif.json("token", "create", "acme", "--ttl", "1h")
    assert seconds(made) == 3600
    left = "SELECT extract(epoch FROM expires_at - (clock_timestamp() AT TIME ZONE 'UTC')) FROM enrollment_tokens"
    assert 3500 < own_server.sql(left, database="acme")[0][0] <= 3600


# The code.


@pytest.mark.one_server
@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_a_code_in_a_file(posduif: Posduif, tenant: str, tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"code.{suffix}"
    file.write_text("old")
    file.chmod(0o644)
    refused = posduif("token", "create", tenant, "--qr-file", str(file), "-o", "json", code=5).error
    assert (refused["code"], file.read_text()) == ("file_exists", "old")
    assert posduif.json("token", "list", tenant) == []
    url = posduif("token", "create", tenant, "--qr-file", str(file), "--force").out.strip()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith((".", "code"))] == [file.name]
    pixels = png_pixels(file.read_bytes()) if suffix == "png" else svg_pixels(file.read_text())
    assert read(pixels.repeat(8, axis=0).repeat(8, axis=1)) == [url]


@pytest.mark.one_server
def test_a_file_that_cannot_be_written_makes_no_token(posduif: Posduif, tenant: str, tmp_path: Path) -> None:
    (tmp_path / "folder.png").mkdir()
    for file, code in (("code.gif", 2), ("code", 2), ("none/code.png", 3), ("folder.png", 3)):
        posduif("token", "create", tenant, "--qr-file", str(tmp_path / file), code=code)
    assert posduif.json("token", "list", tenant) == []


@pytest.mark.one_server
def test_a_file_that_fails_late_does_not_lose_the_token(posduif: Posduif, tenant: str, tmp_path: Path) -> None:
    (tmp_path / "code.png").symlink_to("/dev/full")
    result = posduif("token", "create", tenant, "--qr-file", str(tmp_path / "code.png"), code=3)
    assert "cannot be written" in result.err
    assert posduif.json("token", "show", tenant, result.out.strip())["status"] == "active"


def shown_at(*argv: str, **environ: str) -> tuple[int, str, str]:
    """Run on a terminal of 120 x 80; stderr goes elsewhere."""
    environ = {"TERM": "xterm-256color", "LANG": "C.UTF-8", **environ}
    shown = on_terminal(*argv, columns=120, rows=80, answer="", apart=True, environ=environ)
    return shown.code, shown.out, shown.err


@pytest.mark.one_server
@pytest.mark.parametrize("theme", ["dark", "light"])
@pytest.mark.parametrize("environ", [{}, {"NO_COLOR": "1"}, {"PYTHONIOENCODING": "ascii", "LANG": "C"}], ids=str)
def test_a_terminal_shows_a_code_that_scans(posduif: Posduif, tenant: str, theme: str, environ: dict[str, str]) -> None:
    code, out, err = shown_at("token", "create", tenant, "--for", "Mia", **environ)
    assert code == 0
    drawn, url = out.removesuffix("\n").rsplit("\n", 1)
    assert re.fullmatch(URL.format(tenant), url)
    assert read(raster(drawn + "\n", THEMES[theme], columns=120)) == [url]
    assert "for Mia" in err
    assert "expires" in err
    assert url.rsplit("/", 1)[1] not in err


@pytest.mark.one_server
def test_no_code_where_none_belongs(posduif: Posduif, tenant: str) -> None:
    for qr in ("auto", "compact", "large", "never", "plain", "plain-inverted"):
        assert posduif("token", "create", tenant, "--qr", qr).out.count("\n") == 1
    assert posduif("token", "create", tenant, "--qr", "always").out.count("\n") > 10
    assert "\x1b" not in posduif("token", "create", tenant, "--qr", "always", "-o", "json").out
    _, out, err = shown_at("token", "create", tenant, "-o", "json")
    assert out.startswith("{")
    assert "\x1b" not in out
    assert err == ""


# The secret.


def test_the_secret_shows_once(posduif: Posduif, tenant: str) -> None:
    made = posduif.json("token", "create", tenant, "--for", "Mia")
    secret = made["token"]
    posduif("token", "revoke", tenant, secret)
    shows = (
        ("token", "list", tenant),
        ("token", "show", tenant, secret),
        ("token", "show", tenant, made["enrollment_url"]),
        ("token", "show", tenant, made["id"]),
        ("token", "revoke", tenant, made["id"]),
        ("health", tenant),
        ("user", "list", tenant),
    )
    for argv in shows:
        for form in ("table", "tsv", "json", "jsonl"):
            result = posduif(*argv, "-o", form, "--debug", code=None)
            assert secret not in result.out + result.err, argv
            assert secret.replace("-", "") not in result.out + result.err, argv
    assert posduif("token", "list", tenant, "--fields", "token", code=2).out == ""


def test_an_error_does_not_repeat_what_was_pasted(posduif: Posduif, tenant: str) -> None:
    secret = str(uuid.uuid4())
    url = f"https://{tenant}.example.com/api/enrollment/{secret}"
    for text in (secret, url, url + "?x=1", url + "x"):
        for argv in (("token", "show", tenant, text), ("token", "revoke", tenant, text)):
            result = posduif(*argv, "--debug", code=None)
            assert result.code in (2, 4)
            assert secret not in result.err


# Revoke.


def test_revoke_ends_a_token_for_the_engine_too(posduif: Posduif, server: PgServer, tenant: str) -> None:
    made = posduif.json("token", "create", tenant)
    done = posduif.json("token", "revoke", tenant, made["enrollment_url"])
    assert (done["status"], done["changed"]) == ("revoked", True)
    # The engine knows nothing of revoked_at: this is what it asks.
    engine = "SELECT count(*) FROM enrollment_tokens WHERE used_at IS NULL AND expires_at > (now() AT TIME ZONE 'UTC')"
    assert server.sql(engine, database=tenant) == [(0,)]
    again = posduif.json("token", "revoke", tenant, made["id"])
    assert again == {**done, "changed": False}
    assert posduif.json("token", "show", tenant, made["id"])["status"] == "revoked"


def test_revoke_of_an_expired_token_does_not_revive_it(posduif: Posduif, server: PgServer, tenant: str) -> None:
    made = posduif.json("token", "create", tenant)
    shift(server, tenant, made["id"], "expires_at", "-1 day")
    before = posduif.json("token", "show", tenant, made["id"])["expires_at"]
    assert posduif.json("token", "revoke", tenant, made["id"])["expires_at"] == before


def test_a_used_token_cannot_be_revoked(posduif: Posduif, tenant: str) -> None:
    made = posduif.json("token", "create", tenant)
    posduif("enroll", "complete", tenant, made["token"], "--device", "phone-1", "--username", "Mia")
    error = posduif("token", "revoke", tenant, made["id"], "-o", "json", code=5).error
    assert error["code"] == "token_used"
    assert "phone-1" in error["why"]
    shown = posduif.json("token", "show", tenant, made["id"])
    assert (shown["status"], shown["revoked_at"]) == ("used", None)
    assert posduif("token", "revoke", tenant, str(uuid.uuid4()), "-o", "json", code=4).error["code"] == (
        "token_not_found"
    )


# Purge.


def test_purge_deletes_only_old_unused_tokens(posduif: Posduif, server: PgServer, tenant: str) -> None:
    tokens = {what: posduif.json("token", "create", tenant) for what in ("live", "used", "old", "new", "ended", "cut")}
    ids = {what: made["id"] for what, made in tokens.items()}
    posduif("enroll", "complete", tenant, tokens["used"]["token"], "--device", "p", "--username", "Mia")
    shift(server, tenant, ids["used"], "expires_at", "-30 days")
    shift(server, tenant, ids["old"], "expires_at", "-7 days -2 s")
    shift(server, tenant, ids["new"], "expires_at", "-7 days 20 s")
    posduif("token", "revoke", tenant, ids["ended"])
    posduif("token", "revoke", tenant, ids["cut"])
    shift(server, tenant, ids["cut"], "revoked_at", "-8 days")

    purge = ("token", "purge", tenant)
    planned = posduif.json(*purge, "--dry-run")
    assert planned == {
        "dry_run": True,
        "steps": [{"action": "delete 2 tokens", "subject": tenant, "sql": None, "tenants": []}],
    }
    assert len(posduif.json("token", "list", tenant)) == 6
    (row,) = posduif.json(*purge)
    assert (row["tenant"], row["deleted"], row["changed"]) == (tenant, 2, True)
    left = {token["id"] for token in posduif.json("token", "list", tenant)}
    assert left == {ids[what] for what in ("live", "used", "new", "ended")}
    assert posduif.json(*purge) == []


def test_purge_of_all_that_are_expired(posduif: Posduif, server: PgServer, tenant: str) -> None:
    tokens = {what: posduif.json("token", "create", tenant) for what in ("live", "used", "old", "new", "ended")}
    posduif("enroll", "complete", tenant, tokens["used"]["token"], "--device", "p", "--username", "Mia")
    shift(server, tenant, tokens["used"]["id"], "expires_at", "-30 days")
    shift(server, tenant, tokens["old"]["id"], "expires_at", "-7 days")
    shift(server, tenant, tokens["new"]["id"], "expires_at", "0 s")
    posduif("token", "revoke", tenant, tokens["ended"]["id"])
    for zero in ("0s", "0d"):
        planned = posduif.json("token", "purge", tenant, "--older-than", zero, "-n")
        assert [step["action"] for step in planned["steps"]] == ["delete 3 tokens"]
    assert [row["deleted"] for row in posduif.json("token", "purge", tenant, "--older-than", "0s")] == [3]
    left = {token["id"] for token in posduif.json("token", "list", tenant)}
    assert left == {tokens[what]["id"] for what in ("live", "used")}
    posduif("token", "create", tenant, "--ttl", "0s", code=2)


def test_a_token_that_is_used_while_it_is_purged_stays(posduif: Posduif, server: PgServer, tenant: str) -> None:
    made = posduif.json("token", "create", tenant)
    shift(server, tenant, made["id"], "expires_at", "-8 days")
    with server.connect(tenant) as conn, conn.transaction():
        conn.execute("UPDATE enrollment_tokens SET used_at = now() WHERE id = %s", (made["id"],))
        purge = posduif.popen("token", "purge", tenant)
        waits = "SELECT 1 FROM pg_stat_activity WHERE datname = %s AND wait_event_type = 'Lock'"
        until = time.monotonic() + 30
        while purge.poll() is None and not server.sql(waits, tenant) and time.monotonic() < until:
            time.sleep(0.05)
    out, err = purge.communicate(timeout=60)
    assert (purge.returncode, out, err) == (0, b"", b"")
    assert [token["status"] for token in posduif.json("token", "list", tenant)] == ["used"]


def test_purge_has_nothing_to_say_to_cron(posduif: Posduif, tenant: str) -> None:
    posduif("token", "create", tenant)
    for options in ([], ["-q"], ["-o", "tsv"], ["-o", "jsonl"], ["-o", "table"]):
        result = posduif("token", "purge", tenant, *options)
        assert (result.out, result.err) == ("", "")


@pytest.mark.one_server
def test_purge_wants_targets(posduif: Posduif, tenant: str) -> None:
    assert posduif("token", "purge", "-o", "json", code=2).error["code"] == "no_targets"
    posduif("token", "purge", tenant, "--all", code=2)
    for age in ("", "x", "0", "-7d", "-0s"):
        posduif("token", "purge", tenant, f"--older-than={age}", code=2)


def test_purge_of_thousands(posduif: Posduif, server: PgServer, tenant: str) -> None:
    many = """INSERT INTO enrollment_tokens (created_by, tenant_id, expires_at)
              SELECT id, current_database(), now() - interval '9 days' FROM users, generate_series(1, 2600)"""
    server.sql(many, database=tenant)
    assert [row["deleted"] for row in posduif.json("token", "purge", tenant)] == [2600]
    assert server.sql("SELECT count(*) FROM enrollment_tokens", database=tenant) == [(0,)]


@pytest.mark.one_server
def test_purge_all(own_server: PgServer, run_on: Any) -> None:
    posduif = run_on(own_server)
    assert posduif("token", "purge", "--all").out == ""
    for name in ("a", "b", "c"):
        posduif("tenant", "create", name, "--web-user", "desk", "--url", "https://x.example.com")
        made = posduif.json("token", "create", name)
        if name != "b":
            shift(own_server, name, made["id"], "expires_at", "-8 days")
    before = {row["subject"] for row in posduif.json("token", "purge", "--all", "-n")["steps"]}
    assert before == {"a", "c"}
    assert [row["tenant"] for row in posduif.json("token", "purge", "--all")] == ["a", "c"]
    assert posduif.json("token", "purge", "--all") == []
    assert posduif.json("token", "purge", "--all", "--older-than", "300ms") == []


# List.


def test_listing_newest_first(posduif: Posduif, tenant: str) -> None:
    made = [posduif.json("token", "create", tenant)["id"] for _ in range(3)]
    assert [token["id"] for token in posduif.json("token", "list", tenant)] == made[::-1]
    assert [t["id"] for t in posduif.json("token", "list", tenant, "--limit", "1", "--offset", "1")] == [made[1]]
