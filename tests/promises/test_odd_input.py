"""Input and output at their edges: nested too deeply, not UTF-8, a million of them, a pipe that closes, a full disk."""

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from posduif_cli.config import load
from posduif_cli.errors import scrub
from support.runner import Posduif, shell
from support.servers import PgServer

pytestmark = pytest.mark.one_server


@pytest.mark.parametrize("depth", [1000, 20_000])
def test_yaml_that_is_nested_too_deeply(posduif: Posduif, tmp_path: Path, depth: int) -> None:
    deep = tmp_path / "deep.yaml"
    for text in ("servers: " + "[" * depth + "]" * depth, "servers: " + "{a: " * depth + "}" * depth):
        deep.write_text(text)
        assert "nested too deeply" in posduif("tenant", "list", "--config", str(deep), code=3).err
    deep.write_text("- " + "[" * depth + "]" * depth)
    error = posduif("tenant", "create", "--from", str(deep), "-o", "json", code=2).error
    assert (error["code"], error["why"]) == ("usage_error", "it is nested too deeply")


def test_scrubbing_takes_a_time_in_proportion() -> None:
    """A generous deadline: what was quadratic took minutes."""
    started = time.monotonic()
    for text in ("://a:", "://", "scram_", "password", "password = ", "password='", "://a:b@", "@", "'"):
        scrub(text * (2_000_000 // len(text)))
    assert time.monotonic() - started < 60
    assert scrub("://a:b@c@d e\n://u:p") == "://a:****@d e\n://u:p"
    assert scrub("postgresql://alice:s3cret@db1/x and postgresql://bob:pw@db2") == "postgresql://alice:****@db2"


@pytest.mark.parametrize("verb", ["show", "revoke"])
def test_a_token_on_stdin_that_is_no_text(posduif: Posduif, tenant: str, verb: str) -> None:
    for locale in ("C.UTF-8", "C"):
        line = f"printf '\\xff\\n' | posduif token {verb} {tenant} - -o json"
        code, out, err = shell(line, PYTHONIOENCODING="utf-8:strict", LC_ALL=locale)
        assert (code, out) == (2, "")
        assert json.loads(err)["error"]["why"] == "stdin is not UTF-8"
    made = posduif.json("token", "create", tenant)
    code, out, _ = shell(f"echo {made['token']} | posduif token {verb} {tenant} - -o json")
    assert (code, json.loads(out)["id"]) == (0, made["id"])
    assert shell(f"posduif token {verb} {tenant} - < /dev/null")[0] == 2


def test_the_version_goes_where_all_output_goes(clean_environ: pytest.MonkeyPatch) -> None:
    for argv in ("version", "--version", "-V", "version -o json"):
        assert shell(f"posduif {argv} | head -c 0; echo ${{PIPESTATUS[0]}}") == (0, "0\n", ""), argv
        assert shell(f"posduif {argv} >&-")[0] == 0, argv
        code, _, err = shell(f"posduif {argv} >/dev/full")
        assert code == 7, argv
        assert "could not be written" in err, argv
        assert "No space left on device" in err, argv
    assert shell("posduif version")[1].startswith("posduif ")


@pytest.mark.parametrize("argv", [[], ["tenant"], ["token"]])
def test_no_command_is_an_error_in_json(posduif: Posduif, argv: list[str]) -> None:
    for form in ("json", "jsonl"):
        result = posduif.process(*argv, POSDUIF_OUTPUT=form)
        assert (result.code, result.out) == (2, "")
        assert (result.error["code"], result.error["exit"]) == ("usage_error", 2)
        assert " ".join(["posduif", *argv, "--help"]) in result.error["try"][0]
    assert "Commands:" in posduif.process(*argv).err


@pytest.mark.parametrize(
    "argv",
    [
        "tenant list -qo json --config /nowhere.yaml",
        "tenant list -qojson --nosuch",
        "tenant list --nosuch --output=json",
        "-q -o json nosuch",
        "tenant list -o table -qo json --nosuch",
        "tenant list --nosuch -xqo jsonl",
    ],
)
def test_the_format_that_was_asked_for_is_that_of_errors(posduif: Posduif, argv: str) -> None:
    result = posduif(*argv.split(), code=None)
    assert result.code in (2, 3)
    assert result.error["exit"] == result.code
    assert posduif("tenant", "list", "-o", "json", "-o", "table", "--nosuch", code=2).err.startswith("error:")
    assert posduif("tenant", "list", "--nosuch", "--", "-o", "json", code=2).err.startswith("error:")


def test_a_url_while_a_server_is_away_is_not_called_unknown(posduif: Posduif, tenant: str, tmp_path: Path) -> None:
    made = posduif.json("token", "create", tenant)
    own, elsewhere = made["enrollment_url"], f"https://elsewhere.example.com/api/enrollment/{made['token']}"
    file = tmp_path / "two.yaml"
    file.write_text(
        f"servers:\n  here: {{dsn: {json.dumps(os.environ['POSDUIF_DSN'])}}}\n"
        f"  away: {{dsn: 'host=127.0.0.1 port=1 user=nobody'}}\n"
    )
    both = {"POSDUIF_DSN": "", "POSDUIF_CONFIG": str(file)}
    assert posduif.process("token", "show", own, **both).code == 0
    for verb in ("show", "revoke"):
        result = posduif.process("token", verb, elsewhere, "-o", "json", **both)
        assert (result.code, result.error["code"]) == (6, "server_unreachable")
    assert posduif("token", "show", elsewhere, "-o", "json", code=4).error["code"] == "tenant_not_found"


def test_a_header_in_capitals(posduif: Posduif, tmp_path: Path) -> None:
    file = tmp_path / "tenants.csv"
    for header in ("Name,URL,Web User", "NAME,Url,web-user", "name,url,web_user"):
        file.write_text(f"{header}\nalpha,https://a.example.com,desk\n")
        steps = posduif.json("tenant", "create", "--from", str(file), "-n")["steps"]
        assert "create web user" in [step["action"] for step in steps], header
    for header in ("name,Name", "Web User,name,web_user"):
        file.write_text(f"{header}\nalpha,beta,gamma\n".replace(",gamma", "" if "User" not in header else ",gamma"))
        assert "a column appears twice" in posduif("tenant", "create", "--from", str(file), "-n", code=2).err
    (tmp_path / "t.yaml").write_text("- {name: alpha, Name: beta}\n")
    assert "each key once" in posduif("tenant", "create", "--from", str(tmp_path / "t.yaml"), "-n", code=2).err
    file.write_text("Url,Customer\nhttps://a.example.com,alpha\n")
    error = posduif("tenant", "create", "--from", str(file), "-o", "json", code=2).error
    assert (error["message"], error["why"]) == (f"{file}:1: the column name is missing", "Url,Customer")


def test_a_doctor_survives_a_broken_file_of_the_system(
    posduif: Posduif, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(load, "SYSTEM_FILE", tmp_path / "config.yaml")
    (tmp_path / "config.yaml").write_text("servers: [")
    findings = posduif.json("doctor", code=1)
    [broken] = [finding for finding in findings if finding["level"] == "critical"]
    assert "config.yaml:1: not valid YAML" in broken["message"]
    assert {"machine.python", "config.file"} <= {finding["check"] for finding in findings}


@pytest.fixture
def crowd(own_server: PgServer, run_on: Any) -> Posduif:
    """A tenant with 80,000 tokens."""
    cli: Posduif = run_on(own_server)
    cli("tenant", "create", "crowd", "--web-user", "desk", "--url", "https://crowd.example.com")
    own_server.sql(
        "INSERT INTO enrollment_tokens (created_by, tenant_id, expires_at, created_at, label) "
        "SELECT id, 'crowd', now(), now() - n * interval '1 s', 'phone ' || n FROM users, generate_series(1, 80000) n",
        database="crowd",
    )
    return cli


def test_a_long_list_takes_little_memory(crowd: Posduif) -> None:
    """What it takes must not grow with the list: 80,000 tokens took some 340 MB."""
    script = "ulimit -v {}; posduif token list crowd --limit 1000000 -o {} | sha256sum; exit ${{PIPESTATUS[0]}}"
    limit = 400_000  # KiB of addresses, of which the interpreter with its libraries takes most
    for form in ("jsonl", "tsv", "json", "table"):
        code, _, err = shell(script.format(limit, form))
        assert (code, err) == (0, ""), form
    rows = crowd.json("token", "list", "crowd", "--limit", "1000000")
    assert len(rows) == len({row["id"] for row in rows}) == 80_000
    assert [row["label"] for row in rows[:2]] == ["phone 1", "phone 2"]
    lines = crowd("token", "list", "crowd", "--limit", "2500", "--offset", "1000", "-o", "jsonl").out.splitlines()
    assert [json.loads(line) for line in lines] == rows[1000:3500]
    tsv = crowd("token", "list", "crowd", "--limit", "1000000", "-o", "tsv").out.splitlines()
    assert len(tsv) == 80_001
    assert shell("posduif token list crowd --limit 1000000 -o jsonl | head -1 | wc -l; echo ${PIPESTATUS[0]}") == (
        0,
        "1\n0\n",
        "",
    )


def test_a_long_list_of_tenants_is_planned_by_few_questions(own_server: PgServer, run_on: Any, tmp_path: Path) -> None:
    """100,000 names that nobody has: each of them was asked for twice."""
    cli: Posduif = run_on(own_server)
    cli("tenant", "create", "n7", "--web-user", "desk")
    own_server.sql("CREATE DATABASE n8")
    own_server.sql("CREATE ROLE n9_engine")
    (tmp_path / "many.csv").write_text("name,web_user\n" + "".join(f"n{n},desk\n" for n in range(100_000)))
    asked = "SELECT xact_commit FROM pg_stat_database WHERE datname = 'postgres'"
    before = own_server.sql(asked)[0][0]
    result = cli("tenant", "create", "--from", str(tmp_path / "many.csv"), "-n", "-o", "json", code=8)
    time.sleep(1.5)  # until the statistics are there
    assert own_server.sql(asked)[0][0] - before < 1000
    steps = result.json["steps"]
    assert {len(step["tenants"]) for step in steps} == {100_000 - 3}
    assert "2 failed" in result.error["message"]
