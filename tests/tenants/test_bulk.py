"""`tenant create --from`: a list of tenants as they should be; once, again, wrongly, killed, by two at once."""

import json
import os
import signal
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import yaml

from posduif_cli.db import embedded
from support.outcomes import statuses
from support.runner import Posduif
from support.servers import PgServer
from support.tenants import forget
from support.waiting import until

Entries = list[dict[str, str]]


@pytest.fixture
def names(server: PgServer) -> Iterator[list[str]]:
    """Names that nobody has, and what they name is removed afterwards."""
    prefix = f"t{uuid.uuid4().hex[:10]}"
    chosen = [f"{prefix}_{number:02}" for number in range(12)]
    yield chosen
    for name in chosen:
        forget(server, name)


@pytest.fixture
def listed(tmp_path: Path) -> Callable[..., str]:
    """Writes entries into a file and returns its path."""

    def write(*entries: dict[str, str], suffix: str = "yaml") -> str:
        path = tmp_path / f"tenants.{suffix}"
        path.write_text(yaml.safe_dump(list(entries)) if suffix == "yaml" else json.dumps(entries))
        return str(path)

    return write


def assert_verified(posduif: Posduif, names: list[str]) -> None:
    findings = posduif.json("tenant", "verify", *names)
    assert {finding["level"] for finding in findings} == {"ok"}, findings
    assert {finding["subject"] for finding in findings} == set(names)


@pytest.mark.parametrize("number", [3, 12], ids=["without a template", "from a template"])
def test_a_list_is_created_and_the_second_time_unchanged(
    posduif: Posduif, server: PgServer, names: list[str], listed: Callable[..., str], number: int
) -> None:
    chosen = names[:number]
    file = listed(*({"name": name, "url": f"https://{name}.example.com"} for name in chosen))
    first = posduif.json("tenant", "create", "--from", file)
    assert [(o["tenant"], o["status"], o["changed"], o["from"]) for o in first] == [
        (name, "created", True, None) for name in chosen
    ]
    assert_verified(posduif, chosen)
    shown = {tenant["tenant"]: tenant for tenant in posduif.json("tenant", "list")}
    assert all(shown[name]["url"] == f"https://{name}.example.com" for name in chosen)
    assert all((shown[name]["pending"], shown[name]["state"]) == (0, "active") for name in chosen)
    before = server.sql("SELECT oid, datname FROM pg_database WHERE datname LIKE %s ORDER BY 1", f"{names[0][:11]}%")

    again = posduif.json("tenant", "create", "--from", file)
    assert statuses(again) == dict.fromkeys(chosen, "unchanged")
    assert not any(outcome["changed"] for outcome in again)
    assert before == server.sql(
        "SELECT oid, datname FROM pg_database WHERE datname LIKE %s ORDER BY 1", f"{names[0][:11]}%"
    )


def test_a_copy_is_as_good_as_a_tenant_created_alone(
    posduif: Posduif, server: PgServer, names: list[str], listed: Callable[..., str], name: str
) -> None:
    posduif("tenant", "create", "--from", listed(*({"name": n} for n in names[:-1])))
    # Where a template is, it serves a single creation, too; a web user makes that go through the tenant's database.
    posduif("tenant", "create", names[-1], "--web-user", "desk")
    templates = server.sql("SELECT datname FROM pg_database WHERE datname LIKE 'posduif\\_template\\_%%'")
    with server.connect() as conn:
        for (template,) in templates:
            conn.execute(f"DROP DATABASE {template}".encode())
    posduif("tenant", "create", name)
    assert_verified(posduif, [*names, name])
    assert {f["level"] for f in posduif.json("migrate", "verify", *names, name)} == {"ok"}
    facts = """SELECT d.datacl::text, d.datconnlimit, d.datallowconn, r.rolconnlimit, r.rolcanlogin,
                      (SELECT array_agg(setconfig::text ORDER BY setrole = 0) FROM pg_db_role_setting
                       WHERE setdatabase = d.oid),
                      (SELECT array_agg(g.rolname ORDER BY 1) FROM pg_auth_members m JOIN pg_roles g ON g.oid = m.roleid
                       WHERE m.member = r.oid)
               FROM pg_database d JOIN pg_roles r ON r.rolname = d.datname || '_engine' WHERE d.datname = %s"""

    def plain(of: str) -> str:
        return str(server.sql(facts, of)).replace(of, "NAME")

    assert plain(names[0]) == plain(names[-1]) == plain(name)


def test_outcomes_tell_what_became_of_each(
    posduif: Posduif, server: PgServer, names: list[str], listed: Callable[..., str]
) -> None:
    same, other, userless, suspended, foreign, new = names[:6]
    for tenant in (same, other, userless, suspended):
        posduif("tenant", "create", tenant, "--url", "https://a.example.com")
    posduif("tenant", "suspend", suspended)
    server.sql(f"CREATE DATABASE {foreign}")
    file = listed(
        {"name": same, "url": "https://a.example.com"},
        {"name": other, "url": "https://b.example.com"},
        {"name": userless, "web_user": "desk"},
        {"name": suspended},
        {"name": foreign},
        {"name": new, "web_user": "desk"},
    )
    result = posduif("tenant", "create", "--from", file, "-o", "json", code=8)
    expected = {
        same: "unchanged",
        other: "differs",
        userless: "differs",
        suspended: "differs",
        foreign: "failed",
        new: "created",
    }
    assert statuses(result.json) == expected
    reasons = {outcome["tenant"]: (outcome["error"] or {}).get("message", "") for outcome in result.json}
    assert "https://b.example.com" in reasons[other]
    assert "desk" in reasons[userless]
    assert "is suspended" in reasons[suspended]
    assert "not posduif's" in reasons[foreign]
    assert [user["username"] for user in posduif.json("user", "list", new)] == ["desk"]
    # A single entry that cannot be had gives its own exit code.
    assert posduif("tenant", "create", "--from", listed({"name": other, "url": "https://b.example.com"}), code=5)
    assert posduif("tenant", "create", "--from", listed({"name": foreign}), code=5)


def test_a_dry_run_groups_the_steps_and_changes_nothing(
    posduif: Posduif, server: PgServer, names: list[str], listed: Callable[..., str]
) -> None:
    posduif("tenant", "create", names[0])
    ours = (
        "SELECT oid FROM pg_database WHERE starts_with(datname, %s) UNION"
        " SELECT oid FROM pg_authid WHERE starts_with(rolname, %s) ORDER BY 1"
    )
    prefix = names[0][:11]
    before = server.sql(ours, prefix, prefix)
    file = listed({"name": names[0]}, *({"name": name} for name in names[1:]))
    plan = posduif.json("tenant", "create", "--from", file, "--dry-run")
    assert plan["dry_run"] is True
    assert {tuple(step["tenants"]) for step in plan["steps"]} == {tuple(names[1:])}
    assert [step["action"] for step in plan["steps"]][:3] == ["create role", "create database", "close to public"]
    assert before == server.sql(ours, prefix, prefix)
    assert len(before) == 2
    assert posduif("tenant", "create", "--from", listed({"name": names[0], "url": "https://x"}), "-n", code=5)


CSV = "name,url,web user\n\n# a remark\n{a},https://{a}.example.com,desk\n{b},,\n"
YAML = "- name: {a}\n  url: https://{a}.example.com\n  web_user: desk\n- name: {b}\n  url: null\n"
JSON = '[{{"name": "{a}", "url": "https://{a}.example.com", "web_user": "desk"}}, {{"name": "{b}", "url": null}}]'


@pytest.mark.one_server
@pytest.mark.parametrize("text", [CSV, YAML, JSON], ids=["csv", "yaml", "json"])
def test_stdin_takes_each_format(posduif: Posduif, names: list[str], text: str) -> None:
    a, b = names[:2]
    done = posduif.process("tenant", "create", "--from", "-", "-o", "json", stdin=text.format(a=a, b=b))
    assert done.code == 0, done
    assert statuses(done.json) == {a: "created", b: "created"}
    assert posduif.json("tenant", "show", a)["url"] == f"https://{a}.example.com"
    assert posduif.json("tenant", "show", b)["url"] is None


WRONG = [
    ("name\nA B\npostgres\nok\nok\n", ["line 2", "line 3", "line 5", "already"]),
    ("name,colour\nacme,red\n", ["colour"]),
    ("url\nhttps://a.example.com\n", ["the column name is missing"]),
    ("nme\n", ["the column name is missing"]),
    ("- url: https://a.example.com\n", ["the name is missing"]),
    ("name,server\nacme,eu9\n", ["eu9"]),
    ("name,url\nacme,https://a.example.com/path\n", ["not an origin"]),
    ("name,url\nacme,https://a,b\n", ["more values"]),
    ("- name: acme\n- [a]\n", ["key: value"]),
    ("- name: acme\n  name: other\n", ["each key once"]),
    ("- name: {a: b}\n", ["key: value"]),
    ("- name: [\n", ["not valid YAML"]),
    ('name\n"acme\n', ["not valid CSV"]),
    ("name,name\nacme,acme\n", ["twice"]),
    ("- name: on\n- name: 007\n", ["007"]),
]


@pytest.mark.one_server
@pytest.mark.parametrize(("text", "words"), WRONG, ids=[str(number) for number in range(len(WRONG))])
def test_a_faulty_list_is_refused_before_anything_is_done(
    posduif: Posduif, server: PgServer, text: str, words: list[str]
) -> None:
    before = server.sql("SELECT count(*) FROM pg_authid WHERE rolname IN ('acme_engine', 'ok_engine', 'on_engine')")
    done = posduif.process("tenant", "create", "--from", "-", "-o", "json", stdin=text)
    assert done.code == 2, done
    said = done.error["message"] + done.error["why"] if done.error["why"] else done.error["message"]
    assert all(word in said + str(done.error["try"]) for word in words), said
    assert before == server.sql(
        "SELECT count(*) FROM pg_authid WHERE rolname IN ('acme_engine', 'ok_engine', 'on_engine')"
    )


@pytest.mark.one_server
@pytest.mark.parametrize(
    "argv", [(), ("acme", "--from", "x.csv"), ("--from", "x.csv", "--url", "https://x"), ("--from", "/nowhere.csv")]
)
def test_usage(posduif: Posduif, argv: tuple[str, ...]) -> None:
    posduif("tenant", "create", *argv, code=2)


@pytest.mark.one_server
def test_an_empty_list_is_nothing_to_do(posduif: Posduif, listed: Callable[..., str]) -> None:
    assert posduif.json("tenant", "create", "--from", listed()) == []


@pytest.mark.one_server
def test_each_tenant_gets_a_file_with_its_password(
    posduif: Posduif, server: PgServer, names: list[str], listed: Callable[..., str], tmp_path: Path
) -> None:
    folder = tmp_path / "engines"
    file = listed(*({"name": name} for name in names[:10]))
    posduif("tenant", "create", "--from", file, "--engine-config", str(folder))
    assert {path.name for path in folder.iterdir()} == {f"{name}.yaml" for name in names[:10]}
    assert folder.stat().st_mode & 0o777 == 0o700
    for name in names[:10]:
        path = folder / f"{name}.yaml"
        assert path.stat().st_mode & 0o777 == 0o600
        settings = yaml.safe_load(path.read_text())["postgres"]
        assert (settings["user"], settings["db"]) == (f"{name}_engine", name)
        verifier = server.sql("SELECT rolpassword FROM pg_authid WHERE rolname = %s", f"{name}_engine")[0][0]
        assert verifier.startswith("SCRAM-SHA-256$")
    contents = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert posduif("tenant", "create", "--from", file, "--engine-config", str(folder))
    assert contents == {path.name: path.read_bytes() for path in folder.iterdir()}
    (folder / f"{names[0]}.yaml").unlink()
    result = posduif("tenant", "create", "--from", file, "--engine-config", str(folder), "-o", "json", code=8)
    assert statuses(result.json)[names[0]] == "differs"
    # Someone else's file is not written into, and its tenant is not begun.
    (folder / f"{names[11]}.yaml").write_text("mine: true\n")
    taken = listed({"name": names[11]})
    posduif("tenant", "create", "--from", taken, "--engine-config", str(folder), code=5)
    assert posduif("tenant", "show", names[11], code=4)


def test_killed_anywhere_the_same_command_finishes(
    posduif: Posduif, server: PgServer, names: list[str], listed: Callable[..., str], tmp_path: Path
) -> None:
    file = listed(*({"name": name} for name in names))
    folder = str(tmp_path / "engines")
    for wanted in (1, 5, 9):
        process = posduif.popen("tenant", "create", "--from", file, "--engine-config", folder, "--jobs", "3")
        deadline = time.monotonic() + 60
        count = "SELECT count(*) FROM pg_authid WHERE rolname LIKE %s"
        while process.poll() is None and time.monotonic() < deadline:
            if server.sql(count, f"{names[0][:11]}%")[0][0] >= wanted:
                break
            time.sleep(0.01)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    posduif("tenant", "create", "--from", file, "--engine-config", folder)
    assert_verified(posduif, names)
    for name in names:
        posduif("tenant", "drop", name, "--confirm", name)
    left = (
        "SELECT datname FROM pg_database WHERE datname LIKE %s UNION SELECT rolname FROM pg_roles WHERE rolname LIKE %s"
    )
    assert server.sql(left, f"{names[0][:11]}%", f"{names[0][:11]}%") == []


@pytest.mark.one_server
def test_a_login_without_rights_creates_nothing(
    own_server: PgServer, run_on: Callable[..., Posduif], listed: Callable[..., str]
) -> None:
    own_server.sql("CREATE ROLE nobody LOGIN")
    file = listed({"name": "acme"}, {"name": "globex"})
    denied = run_on(own_server, user="nobody")("tenant", "create", "--from", file, "-o", "json", code=6)
    assert statuses(denied.json) == {"acme": "failed", "globex": "failed"}
    assert denied.error["code"] == "access_denied"
    run_on(own_server)("tenant", "create", "first")
    run_on(own_server, user="nobody")("tenant", "create", "--from", file, code=6)
    assert len(run_on(own_server).json("tenant", "list")) == 1


@pytest.mark.one_server
def test_a_full_server_is_waited_for(
    own_server: PgServer, run_on: Callable[..., Posduif], listed: Callable[..., str]
) -> None:
    own_server.sql("CREATE ROLE alice LOGIN CREATEDB CREATEROLE CONNECTION LIMIT 2")
    run_on(own_server)("server", "init")
    own_server.sql("GRANT posduif_admin TO alice")
    posduif = run_on(own_server, user="alice")
    names = [f"acme_{number}" for number in range(10)]
    # Two at once is all that alice gets, and a web user takes a second session in the tenant's database.
    file = listed(*({"name": name, "web_user": "desk"} for name in names))
    outcomes = posduif.json("tenant", "create", "--from", file, "--jobs", "8")
    assert statuses(outcomes) == dict.fromkeys(names, "created")
    assert_verified(run_on(own_server), names)
    posduif = run_on(own_server, user="alice")
    own_server.sql("ALTER ROLE alice CONNECTION LIMIT 1")
    held = own_server.connect(user="alice")
    threading.Timer(2.0, held.close).start()
    again = posduif.json("tenant", "create", "--from", listed(*({"name": name} for name in names)))
    assert statuses(again) == dict.fromkeys(names, "unchanged")


@pytest.mark.one_server
def test_a_server_that_dies_or_is_dead_is_told_in_one_line(
    own_server: PgServer, run_on: Callable[..., Posduif], listed: Callable[..., str], tmp_path: Path
) -> None:
    posduif = run_on(own_server)
    names = [f"acme_{number:02}" for number in range(12)]
    file = listed(*({"name": name, "web_user": "desk"} for name in names))

    def stop() -> None:
        until(lambda: own_server.sql("SELECT count(*) > 2 FROM pg_database WHERE datname ~ '^acme'")[0][0], "it works")
        assert own_server.data_dir is not None
        embedded.stop(own_server.data_dir)

    stopper = threading.Thread(target=stop)
    stopper.start()
    ran = posduif("tenant", "create", "--from", file, "--jobs", "2", "-o", "table", code=8)
    stopper.join()
    failed = [line for line in ran.err.splitlines() if "tenants failed (" in line]
    assert len(failed) == 1, ran.err
    assert " cannot be reached: " in failed[0]
    assert sum(line.startswith("failed: ") for line in ran.err.splitlines()) == 1, ran.err
    assert "acme_11" not in ran.out
    # Where it is dead from the beginning, there is nothing else to be told.
    dead = posduif("tenant", "create", "--from", file, "-o", "table", code=6)
    assert len([line for line in dead.err.splitlines() if "cannot be reached" in line]) == 2, dead.err
    assert "--ignore-unreachable" not in dead.err


def test_two_administrators_at_once(posduif: Posduif, names: list[str], listed: Callable[..., str]) -> None:
    file = listed(*({"name": name} for name in names))
    with ThreadPoolExecutor(2) as pool:
        runs = list(pool.map(lambda _: posduif.process("tenant", "create", "--from", file, "-o", "json"), range(2)))
    assert [run.code for run in runs] == [0, 0], runs
    for name in names:
        assert sorted(statuses(run.json)[name] for run in runs) == ["created", "unchanged"]
    assert_verified(posduif, names)


@pytest.mark.one_server
def test_ctrl_c_says_how_far_it_got(posduif: Posduif, server: PgServer, names: list[str], listed: Any) -> None:
    file = listed(*({"name": name} for name in names))
    with server.connect() as conn:
        # A session in template0 would not do: posduif's own template is what is copied.
        posduif("tenant", "create", "--from", listed(*({"name": n} for n in names[:8])))
        rows = conn.execute("SELECT datname FROM pg_database WHERE datname LIKE 'posduif\\_template\\_%'").fetchall()
        with server.connect(rows[0][0]):
            file = listed(*({"name": name} for name in names))
            process = posduif.popen("tenant", "create", "--from", file, "--jobs", "1")
            time.sleep(2)  # CREATE DATABASE waits five seconds for the session in its template to go
            process.send_signal(signal.SIGINT)
            _out, err = process.communicate(timeout=30)
    assert process.returncode == 130, err
    assert b"of 12 tenants had been created" in err
    assert b"Traceback" not in err
    posduif("tenant", "create", "--from", file)
    assert_verified(posduif, names)


@pytest.mark.one_server
def test_people_do_not_get_into_a_template(
    posduif: Posduif, server: PgServer, names: list[str], listed: Callable[..., str]
) -> None:
    posduif("tenant", "create", "--from", listed(*({"name": name} for name in names)))
    held = dict(
        server.sql(
            """SELECT datname::text, array[has_database_privilege('posduif_support', oid, 'CONNECT'),
                                           has_database_privilege('posduif_health', oid, 'CONNECT'),
                                           has_database_privilege('posduif_cron', oid, 'CONNECT'),
                                           has_database_privilege('public', oid, 'CONNECT')]
               FROM pg_database WHERE starts_with(datname, 'posduif_template') OR datname = ANY (%s)""",
            names,
        )
    )
    (template,) = held.keys() - set(names)
    assert held.pop(template) == [False, False, False, False]
    assert held == {name: [True, True, True, False] for name in names}


@pytest.mark.one_server
def test_a_template_in_use_only_costs_time(posduif: Posduif, server: PgServer, names: list[str], listed: Any) -> None:
    posduif("tenant", "create", "--from", listed(*({"name": n} for n in names[:8])))
    rows = server.sql("SELECT datname FROM pg_database WHERE datname LIKE 'posduif\\_template\\_%%'")
    with server.connect(rows[0][0]):
        posduif("tenant", "create", names[8])
    assert_verified(posduif, names[:9])


@pytest.mark.one_server
def test_a_half_made_or_outdated_template_is_made_anew(
    own_server: PgServer, run_on: Callable[..., Posduif], listed: Callable[..., str]
) -> None:
    posduif = run_on(own_server)
    names = [f"acme_{number}" for number in range(8)]
    posduif("tenant", "create", "first")
    own_server.sql("CREATE DATABASE posduif_template_0123456789abcdef OWNER posduif_admin")
    posduif("tenant", "create", "--from", listed(*({"name": n} for n in names)))
    templates = "SELECT datname FROM pg_database WHERE datname LIKE 'posduif%%' ORDER BY 1"
    ((current,),) = own_server.sql(templates)
    # As after a kill within its making: it is there, and says that it is not whole.
    own_server.sql(f"""COMMENT ON DATABASE {current} IS 'posduif {{"v":1,"state":"provisioning"}}'""")
    own_server.sql("DROP TABLE public.messages CASCADE", database=current)
    posduif("tenant", "create", "alone")
    posduif("tenant", "create", "--from", listed(*({"name": f"x{n}"} for n in range(8))))
    assert_verified(posduif, ["alone", *(f"x{n}" for n in range(8))])
    assert own_server.sql(templates) == [(current,)]
    # It is no tenant: not listed, not counted, not visited, not to be entered.
    assert len(posduif.json("tenant", "list")) == 18 == posduif.json("server", "list")[0]["tenants"]
    own_server.sql("CREATE ROLE stranger LOGIN")
    assert own_server.sql("SELECT has_database_privilege('stranger', %s, 'CONNECT')", current) == [(False,)]
    posduif("tenant", "drop", current, "--confirm", current, code=2)


def test_further_migrations_come_on_top_of_a_copy(
    posduif: Posduif, server: PgServer, names: list[str], listed: Callable[..., str], tmp_path: Path
) -> None:
    folder = tmp_path / "own"
    folder.mkdir()
    (folder / "1000_mark.sql").write_text(
        "-- migrate:up\nCREATE TABLE marks AS SELECT gen_random_uuid() AS mark;\n-- migrate:down\nDROP TABLE marks;\n"
    )
    config = tmp_path / "config.yaml"
    config.write_text(f"migrations:\n  paths: [{folder}]\n")
    outcomes = posduif.json(
        "tenant", "create", "--from", listed(*({"name": n} for n in names)), "--config", str(config)
    )
    assert {outcome["to"] for outcome in outcomes} == {"1000"}
    marks = {server.sql("SELECT mark FROM marks", database=name)[0][0] for name in names}
    assert len(marks) == len(names)
