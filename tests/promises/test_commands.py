"""The command tree: every command that there is, by what each of them promises. A new command is in it by itself."""

import json
import re
import shlex
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from posduif_cli.cli import tree
from posduif_cli.db import embedded
from support.commands import LEAVES
from support.runner import Posduif, shell
from support.servers import PgServer, private, scratch
from support.sources import BUNDLED
from support.tenants import forget

ZERO = "5f3759df-0000-4000-8000-000000000000"
BACKUP = "20261126T014941Z-7f3a"
pytestmark = pytest.mark.one_server


EXAMPLES = {path: leaf.epilog.removeprefix("Example: ") for path, leaf in LEAVES.items()}
# They work on the embedded server of this user, or install files at home: a home of their own, in place of a DSN.
AT_HOME = {path for path in LEAVES if path.split()[0] in ("quickstart", "completion")} | {
    "server start",
    "server stop",
    "server status",
    "config init",
}
# What they answer depends on this machine.
JUDGES = {"doctor", "message test"}
# What they print is a program or a page, not a result with fields.
TEXT = {path for path in LEAVES if path.startswith("completion")}


@pytest.fixture(scope="module")
def alone() -> Iterator[PgServer]:
    """A server of this worker alone, where a tenant may be called acme."""
    with private() as server:
        yield server


@pytest.fixture
def home() -> Iterator[Path]:
    """A folder for an embedded server that another user can reach."""
    folder = scratch()
    yield folder
    embedded.stop(folder / "data")
    shutil.rmtree(folder, ignore_errors=True)


Prepare = Callable[[str], list[str]]


@pytest.fixture
def prepare(
    alone: PgServer,
    run_on: Callable[[PgServer], Posduif],
    home: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Prepare]:
    """Make what a command's example needs, and return the example's words."""
    posduif = run_on(alone)
    monkeypatch.chdir(tmp_path)

    def make(path: str) -> list[str]:
        words = shlex.split(EXAMPLES[path])
        assert words[0] == "posduif"
        (tmp_path / "migrations").mkdir(exist_ok=True)
        if path in AT_HOME:
            monkeypatch.delenv("POSDUIF_DSN")
            monkeypatch.setenv("POSDUIF_DATA_DIR", str(home / "data"))
            monkeypatch.setenv("SHELL", "/bin/bash")
            if path in ("server stop", "server status"):
                posduif("server", "start")
            return words[1:]
        if ("acme" in words and path != "tenant create") or "--all" in words:
            posduif("tenant", "create", "acme", "--url", "https://acme.example.com")
        if path == "migrate down":  # of a tenant with a migration of its own; posduif's are not taken back so
            (tmp_path / "migrations" / "1000_t.sql").write_text(
                "-- migrate:up\nCREATE TABLE t (id int);\n-- migrate:down\nDROP TABLE t;\n"
            )
            (tmp_path / "own.yaml").write_text(f"migrations: {{paths: ['{tmp_path}/migrations']}}\n")
            monkeypatch.setenv("POSDUIF_CONFIG", str(tmp_path / "own.yaml"))
            posduif("migrate", "up", "acme")
        if path.split()[0] in ("user", "token", "enroll", "device", "message") and path not in (
            "user create",
            "token purge",
        ):
            posduif("user", "create", "acme", "desk", "--type", "web")
        if path.startswith("backup"):
            (tmp_path / "own.yaml").write_text(f"backup: {{dir: '{tmp_path}/store'}}\n")
            monkeypatch.setenv("POSDUIF_CONFIG", str(tmp_path / "own.yaml"))
            alone.sql("DO $$ BEGIN CREATE ROLE olga LOGIN; EXCEPTION WHEN duplicate_object THEN NULL; END $$")
            posduif("tenant", "create", "acme", "--if-not-exists")
            alone.sql("GRANT posduif_admin TO olga; ALTER ROLE olga CREATEDB CREATEROLE")
            made = posduif.json("backup", "create", "acme")[0]["backup"]
            monkeypatch.setenv("POSDUIF_DSN", alone.dsn_for(user="olga"))  # a superuser restores nothing
            words = [made if word == BACKUP else word for word in words]
        if path.split()[0] in ("device", "message"):
            token = posduif.json("token", "create", "acme")["token"]
            posduif("enroll", "complete", "acme", token, "--device", "phone-1", "--username", "Mia")
        if ZERO in words:
            if path.startswith("message"):
                made = posduif.json("message", "send", "acme", "--from", "desk", "--to", "Mia", "text")["id"]
            else:
                made = posduif.json("token", "create", "acme")["token"]
            words[words.index(ZERO)] = made
        return words[1:]

    yield make
    forget(alone, "acme")
    forget(alone, "acme_before")


@pytest.fixture
def cli(alone: PgServer, run_on: Callable[[PgServer], Posduif]) -> Posduif:
    return run_on(alone)


# What every command promises.


def test_the_tree_is_there() -> None:
    assert len(LEAVES) > 30
    assert {"tenant create", "token create", "enroll complete", "health", "version"} <= set(LEAVES)


@pytest.mark.parametrize("path", LEAVES)
def test_help(cli: Posduif, path: str) -> None:
    result = cli(*path.split(), "--help")
    assert result.err == ""
    assert "\n  Example: posduif " + path in result.out or "\nExample: posduif " + path in result.out
    assert "Global options" in result.out
    usage = result.out.split("\n\n")[0]
    assert not set("{<") & set(usage), "no template that was left unfilled"
    assert "range>" not in result.out
    # What an option is for belongs to it.
    for parameter in LEAVES[path].params:
        assert getattr(parameter, "help", None), (path, parameter.name)
    assert cli(*path.split(), "-h").out == result.out


@pytest.mark.parametrize("path", LEAVES)
def test_the_example_runs(cli: Posduif, prepare: Prepare, path: str) -> None:
    cli(*prepare(path), code=None if path in JUDGES else 0)


@pytest.mark.parametrize("path", [path for path in LEAVES if path not in TEXT])
def test_json_is_json(cli: Posduif, prepare: Prepare, path: str, tmp_path: Path) -> None:
    words = prepare(path)
    result = cli(*words, "-o", "json", code=None if path in JUDGES else 0)
    assert isinstance(json.loads(result.out), dict | list)
    assert "\x1b" not in result.out
    assert result.err == ""


@pytest.mark.parametrize("path", [path for path in LEAVES if path not in AT_HOME and path.split()[0] != "version"])
def test_a_narrow_ascii_pipe(cli: Posduif, prepare: Prepare, path: str) -> None:
    words = prepare(path)
    plain = {"NO_COLOR": "1", "LANG": "C", "LC_ALL": "C", "COLUMNS": "40", "PYTHONIOENCODING": "ascii"}
    result = cli.process(*words, **plain)
    assert result.code == 0 or (path in JUDGES and result.code == 1), result
    assert "Traceback" not in result.err
    assert "\x1b" not in result.out + result.err
    assert result.out.isascii()


@pytest.mark.parametrize("path", LEAVES)
def test_an_unknown_option_is_usage(cli: Posduif, path: str) -> None:
    result = cli(*path.split(), "--no-such-thing", "-o", "json", code=2)
    assert result.error["code"] == "usage_error"
    assert result.error["try"] == [f"posduif {path} --help"]
    assert result.out == ""


@pytest.mark.parametrize("path", [path for path in LEAVES if path not in TEXT])
def test_an_unknown_output_is_usage(cli: Posduif, path: str) -> None:
    words = [word for word in shlex.split(EXAMPLES[path])[1:] if word != "acme"]
    result = cli(*path.split(), *["acme"] * (len(words) > 9), "-o", "xml", code=2)
    assert "Traceback" not in result.err


# Mistakes, and where options may stand.


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("tokn list acme", "token"),
        ("tenants list", "tenant"),
        ("token lst acme", "list"),
        ("message sned acme", "send"),
        ("token list acme --limt 3", "--limit"),
        ("token create acme --tll 3h", "--ttl"),
    ],
)
def test_a_typo_is_answered_with_the_nearest(cli: Posduif, typed: str, meant: str) -> None:
    result = cli(*typed.split(), code=2)
    assert meant in result.err
    assert result.out == ""
    assert cli(*typed.split(), "-o", "json", code=2).error["exit"] == 2


@pytest.mark.parametrize("noun", [noun for noun in tree.NOUNS if any(path.startswith(f"{noun} ") for path in LEAVES)])
def test_a_noun_alone_shows_its_help(cli: Posduif, noun: str) -> None:
    result = cli(noun, code=2)
    assert result.out == ""
    assert "Commands:" in result.err


@pytest.mark.parametrize(
    "argv",
    [
        "-o json --fields tenant,state tenant list",
        "tenant -o json --fields tenant,state list",
        "tenant list -o json --fields tenant,state",
        "tenant list --output=json --fields=tenant,state",
        "-o tsv tenant --fields tenant list -o json --fields tenant,state",
    ],
)
def test_options_stand_anywhere(cli: Posduif, prepare: Prepare, argv: str) -> None:
    prepare("tenant show")
    assert cli(*argv.split()).json == [{"tenant": "acme", "state": "active"}]


def test_a_group_of_one_verb_takes_options_too(cli: Posduif, prepare: Prepare) -> None:
    words = prepare("enroll complete")
    assert cli("enroll", "-o", "json", *words[1:]).json["changed"] is True


def test_nothing_at_all_shows_the_tree(cli: Posduif) -> None:
    result = cli(code=2)
    assert result.out == ""
    for noun in tree.NOUNS:
        assert noun in result.err
    assert cli("--help").out.strip() == result.err.strip()


# Listings.

LISTINGS = {
    "tenant list": ("tenant", 1),
    "user list acme": ("username", 1),
    "token list acme": ("id", 0),
    "device list acme": ("device_id", 0),
    "message inbox acme desk": ("id", 0),
    "migrate list acme": ("version", len(BUNDLED)),
    "migrate status --all": ("tenant", 1),
}


def fill(posduif: Posduif, count: int) -> None:
    for number in range(count):
        token = posduif.json("token", "create", "acme", "--by", "desk")["token"]
        user = f"user {number}\t☃"[: 8 + number]
        posduif("user", "create", "acme", f"u{number}", "--type", "web")
        posduif("enroll", "complete", "acme", token, "--device", f"p{number}", "--username", user.replace("\t", " "))
        posduif("message", "send", "acme", "--from", f"u{number}", "--to", "desk", f"line {number}\n\tnext \\ ☃")


@pytest.mark.parametrize("count", [0, 1, 3])
def test_listings_of_none_one_and_many(own_listing: tuple[Posduif, Callable[[int], None]], count: int) -> None:
    posduif, fill_to = own_listing
    fill_to(count)
    for command, (key, base) in LISTINGS.items():
        expected = base + (count * 2 if command.startswith("user") else count if base == 0 else 0)
        argv = command.split()
        rows = posduif(*argv, "-o", "json").json
        assert len(rows) == expected, command
        lines = posduif(*argv, "-o", "jsonl").out.splitlines()
        assert [json.loads(line) for line in lines] == rows

        tsv = posduif(*argv, "-o", "tsv")
        header, *body = [line.split("\t") for line in tsv.out.splitlines()]
        assert key in header
        assert all(len(line) == len(header) for line in body)
        assert [line[header.index(key)] for line in body] == [str(row[key]) for row in rows]
        assert posduif(*argv).out == tsv.out
        if rows:
            assert header == list(rows[0])

        table = posduif(*argv, "-o", "table")
        if rows:
            assert len(table.out.splitlines()) >= 2 + len(rows)
            assert max(map(len, table.out.splitlines())) <= 80
            assert table.err == ""
        else:
            assert table.out == ""
            assert table.err.startswith("no ")
            assert posduif(*argv, "-o", "table", "-q").err == ""

        picked = posduif(*argv, "-o", "jsonl", "--fields", key).out.splitlines()
        assert [json.loads(line) for line in picked] == [{key: row[key]} for row in rows]
        assert posduif(*argv, "-o", "tsv", "--fields", f" {key} ").out.splitlines()[0] == key
        for form in ("table", "tsv", "json", "jsonl"):
            refused = posduif(*argv, "-o", form, "--fields", f"{key},nope", code=2)
            assert "nope" in refused.err
            assert key in refused.err
            assert refused.out == ""


@pytest.fixture
def own_listing(cli: Posduif, alone: PgServer) -> Iterator[tuple[Posduif, Callable[[int], None]]]:
    cli("tenant", "create", "acme", "--url", "https://acme.example.com", "--web-user", "desk")
    yield cli, lambda count: fill(cli, count)
    forget(alone, "acme")


def test_no_tenants_yet(own_server: PgServer, run_on: Callable[[PgServer], Posduif]) -> None:
    posduif = run_on(own_server)
    for command in (["tenant", "list"], ["migrate", "status", "--all"]):
        assert posduif.json(*command) == []
        assert posduif(*command, "-o", "jsonl").out == ""
        assert posduif(*command).out.startswith("tenant\tserver\tstate")
        empty = posduif(*command, "-o", "table")
        assert (empty.out, "posduif tenant create" in empty.err) == ("", True)
    # Having looked leaves nothing behind.
    assert own_server.sql("SELECT count(*) FROM pg_roles WHERE rolname LIKE 'posduif%%'") == [(0,)]


def test_many_tenants_by_name(cli: Posduif, alone: PgServer) -> None:
    try:
        for name in ("b", "c", "a"):
            cli("tenant", "create", name)
        assert [row["tenant"] for row in cli.json("tenant", "list")] == ["a", "b", "c"]
        assert cli.json("tenant", "list")[0].keys() >= {
            *("tenant", "server", "state", "schema_version", "latest_version", "pending", "url", "created_at"),
            *("error", "engine_sessions", "size_bytes"),
        }
    finally:
        for name in ("a", "b", "c"):
            forget(alone, name)


# The streams.


def test_a_reader_that_goes_away(cli: Posduif) -> None:
    assert shell("posduif tenant list | head -c 0; echo ${PIPESTATUS[0]}") == (0, "0\n", "")


def test_closed_streams(cli: Posduif) -> None:
    assert shell("posduif tenant list >&-") == (0, "", "")
    assert shell("posduif tenant list 2>&- -o json") == (0, "[]\n", "")
    code, out, err = shell("posduif tenant show nope >&- <&-")
    assert (code, out) == (4, "")
    assert "Traceback" not in err


def test_a_full_disk_behind_stdout(cli: Posduif) -> None:
    for form in ("tsv", "json"):
        code, _, err = shell(f"posduif tenant list -o {form} > /dev/full")
        assert code == 7
        assert "could not be written" in err
        assert "Traceback" not in err
        assert "Exception ignored" not in err


def test_arguments_that_are_no_text(cli: Posduif, prepare: Prepare) -> None:
    prepare("user show")
    for words in ("user show acme", "device show acme", "token create acme --for", "tenant show"):
        code, out, err = shell(f"posduif {words} $'\\xff'")
        assert (code, out) == (2, "")
        assert "is not text" in err


def test_a_table_in_ascii(cli: Posduif, prepare: Prepare) -> None:
    prepare("user show")
    cli("user", "create", "acme", "Zoë ☃", "--type", "web")
    result = cli.process("user", "list", "acme", "-o", "table", PYTHONIOENCODING="ascii")
    assert result.code == 0
    assert "Zo\\xeb \\u2603" in result.out
    assert result.out.isascii()


def test_quiet_keeps_the_result(cli: Posduif, prepare: Prepare) -> None:
    words = prepare("message send")
    loud, quiet = cli(*words), cli(*words, "-q")
    assert loud.err != ""
    assert quiet.err == ""
    assert len(quiet.out.splitlines()) == len(loud.out.splitlines()) == 2


def test_times_are_rfc_3339_in_utc(cli: Posduif, prepare: Prepare) -> None:
    prepare("token show")
    token = cli.process("token", "list", "acme", "-o", "json", TZ="Asia/Tokyo", PGTZ="Asia/Tokyo").json[0]
    for field in ("created_at", "expires_at"):
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{6})?Z", token[field])
    table = cli.process("token", "show", "acme", token["id"], "-o", "table", TZ="Asia/Tokyo").out
    assert re.search(r"expires at +\d{4}-\d\d-\d\d \d\d:\d\d JST \(in \d+ min\)", table)
