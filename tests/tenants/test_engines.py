"""Engines' files: every one starts, unchanged; what an engine was given is in the record, and reaches role and file."""

import base64
import hashlib
import hmac
import json
import threading
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import yaml

from support.engine import Engine, Redis, ask
from support.runner import Posduif
from support.servers import PgServer, free_port
from support.tenants import forget, record

Machine = Callable[..., None]


@pytest.fixture
def machine(server: PgServer, tmp_path: Path, clean_environ: pytest.MonkeyPatch) -> Machine:
    """Makes this machine one with such keys below `engine`, and others of the server."""

    def become(engine: dict[str, Any], **keys: Any) -> None:
        entry = {"dsn": server.dsn_for(), "engine": engine, **keys}
        (tmp_path / "config.yaml").write_text(yaml.safe_dump({"servers": {"main": entry}}))
        clean_environ.delenv("POSDUIF_DSN", raising=False)
        clean_environ.setenv("POSDUIF_CONFIG", str(tmp_path / "config.yaml"))

    return become


def span(count: int) -> str:
    """A range of ports in which so many are free."""
    first = free_port()
    return f"{first}-{min(first + count * 3, 65_535)}"


def limit(server: PgServer, name: str) -> int:
    return int(server.sql("SELECT rolconnlimit FROM pg_roles WHERE rolname = %s", f"{name}_engine")[0][0])


def test_twenty_engines_start_from_twenty_files_and_serve_their_tenants(
    posduif: Posduif, server: PgServer, name: str, machine: Machine, tmp_path: Path
) -> None:
    names = [f"{name}_{number:02}" for number in range(20)]
    (tmp_path / "list.csv").write_text("name,web_user\n" + "".join(f"{each},desk\n" for each in names))
    folder = tmp_path / "engines"
    try:
        with Redis() as redis, ExitStack() as stack:
            machine({"ports": span(20), "redis": {"host": "127.0.0.1", "port": redis.port}})
            posduif("tenant", "create", "--from", str(tmp_path / "list.csv"), "--engine-config", str(folder))
            engines = [stack.enter_context(Engine(folder / f"{each}.yaml")) for each in names]
            assert len({engine.port for engine in engines}) == 20
            assert len({engine.settings["auth"]["jwt_secret"] for engine in engines}) == 20
            for each, engine in zip(names, engines, strict=True):
                assert record(server, each)["engine"] == {"pool": 5, "port": engine.port, "redis_db": 0}
                assert [user[1] for user in ask(engine.port, "/api/users", device="d")[1]] == ["desk"]
            listed = {t["tenant"]: t["engine_port"] for t in posduif.json("tenant", "list", name)}
            assert listed == {each: engine.port for each, engine in zip(names, engines, strict=True)}
    finally:
        for each in names:
            forget(server, each)


def test_two_commands_at_once_choose_different_ports(
    posduif: Posduif, server: PgServer, name: str, machine: Machine
) -> None:
    machine({"ports": "20100-20199"})
    names = [f"{name}_{letter}" for letter in "abcdef"]
    try:
        commands = [threading.Thread(target=posduif.process, args=("tenant", "create", each)) for each in names]
        for command in commands:
            command.start()
        for command in commands:
            command.join()
        assert len({record(server, each)["engine"]["port"] for each in names}) == 6
    finally:
        for each in names:
            forget(server, each)


def test_a_port_that_was_asked_for_is_given_once(
    posduif: Posduif, server: PgServer, name: str, machine: Machine, tmp_path: Path
) -> None:
    machine({"ports": "20300-20301"})
    other, third, fourth = f"{name}_b", f"{name}_c", f"{name}_d"
    try:
        posduif("tenant", "create", name, "--engine-port", "20300", "--redis", "redis9:6380/7")
        assert record(server, name)["engine"] == {"pool": 5, "port": 20300, "redis_db": 7, "redis": "redis9:6380"}
        told = yaml.safe_load(posduif("tenant", "engine-config", name).out)
        assert (told["sse"]["port"], told["redis"]["host"], told["redis"]["port"], told["redis"]["db"]) == (
            20300, "redis9", 6380, 7
        )  # fmt: skip
        error = posduif("tenant", "create", other, "--engine-port", "20300", "-o", "json", code=5).error
        assert f"tenant {name}" in error["message"]
        assert "--engine-port 20301" in error["try"]
        assert not server.sql("SELECT FROM pg_roles WHERE rolname = %s", f"{other}_engine"), "nothing was begun"
        posduif("tenant", "create", third)
        assert record(server, third)["engine"]["port"] == 20301, "the next that is free"
        error = posduif("tenant", "create", fourth, "-o", "json", code=3).error
        assert "no port of engine.ports is free" in error["message"]
        differs = posduif(
            "tenant", "create", name, "--engine-port", "20305", "--if-not-exists", "-o", "json", code=5
        ).error
        assert "its engine's port is 20300, not 20305" in differs["why"]
        posduif("tenant", "create", name, "--engine-port", "20300", "--if-not-exists")
    finally:
        for each in (name, other, third, fourth):
            forget(server, each)


@pytest.mark.one_server
def test_the_port_of_an_http_url_is_the_engine_s_and_that_of_https_is_not(
    posduif: Posduif, server: PgServer, name: str, machine: Machine, tmp_path: Path
) -> None:
    machine({})
    file, other = tmp_path / "engine.yaml", f"{name}_b"
    try:
        posduif("tenant", "create", name, "--url", "http://10.0.0.5:18333")
        assert record(server, name)["engine"]["port"] == 18333
        made = posduif("tenant", "create", other, "--url", "https://acme.test:8443", "--engine-config", str(file))
        assert "port" not in record(server, other)["engine"]
        assert yaml.safe_load(file.read_text())["sse"]["port"] == 8080
        assert "warning: no port was chosen" in made.err
        assert f"tenant engine-config {other} --refresh {file}" in made.err
        assert yaml.safe_load(file.read_text())["cors"]["allowed_origins"] == ["https://acme.test:8443"]
    finally:
        forget(server, other)


@pytest.mark.parametrize("port", ["0", "65536", "x"])
def test_what_is_no_port_is_refused(posduif: Posduif, port: str) -> None:
    posduif("tenant", "create", "acme", "--engine-port", port, code=2)


@pytest.mark.parametrize("redis", ["", "host:", "host:0", "host:70000", "host/x", "a b", "redis://host"])
def test_what_names_no_redis_server_is_refused(posduif: Posduif, redis: str) -> None:
    posduif("tenant", "create", "acme", "--redis", redis, code=2)


@pytest.mark.one_server
def test_each_tenant_has_a_secret_of_its_own_that_every_machine_knows(
    posduif: Posduif, server: PgServer, name: str, machine: Machine, tmp_path: Path
) -> None:
    key = tmp_path / "jwt.key"
    machine({"secret_file": "jwt.key"})
    error = posduif("tenant", "engine-config", name, "-o", "json", code=4).error  # the tenant comes first
    other, folder = f"{name}_b", tmp_path / "engines"
    try:
        error = posduif(
            "tenant", "create", name, "--engine-config", str(tmp_path / "x.yaml"), "-o", "json", code=3
        ).error
        assert str(key) in error["message"]
        key.write_bytes(b"not for others\n")
        key.chmod(0o644)
        assert "others may read" in posduif("tenant", "create", name, "--engine-config", str(tmp_path / "x.yaml"),
                                            "-o", "json", code=3).error["message"]  # fmt: skip
        key.chmod(0o600)
        (tmp_path / "list.csv").write_text(f"name\n{name}\n{other}\n")
        posduif("tenant", "create", name, "--engine-config", str(tmp_path / "x.yaml"))
        posduif("tenant", "create", other)
        posduif("tenant", "rotate-password", "--from", str(tmp_path / "list.csv"), "--engine-config", str(folder))
        secrets = {
            each: yaml.safe_load((folder / f"{each}.yaml").read_text())["auth"]["jwt_secret"] for each in (name, other)
        }
        for each, secret in secrets.items():
            digest = hmac.new(b"not for others\n", each.encode(), hashlib.sha256).digest()
            assert base64.urlsafe_b64decode(secret + "=") == digest
        told = yaml.safe_load(posduif("tenant", "engine-config", name).out)
        assert told["auth"]["jwt_secret"] == secrets[name], "the same each time"
    finally:
        forget(server, other)


@pytest.mark.one_server
def test_one_secret_for_all_tenants_is_refused_with_the_reason(
    posduif: Posduif, tenant: str, machine: Machine, tmp_path: Path
) -> None:
    machine({"jwt_secret": "hunter2hunter2"})
    file = tmp_path / "engine.yaml"
    for command in (
        ("tenant", "engine-config", tenant),
        ("tenant", "rotate-password", tenant, "--engine-config", str(file)),
    ):
        result = posduif(*command, "-o", "json", code=3)
        assert "one secret for all tenants is refused" in result.error["message"]
        assert "hunter2" not in result.err
    assert not file.exists()
    assert "hunter2" not in posduif("config", "show").out


@pytest.mark.one_server
def test_a_changed_configuration_reaches_record_role_and_file_by_refresh_alone(
    posduif: Posduif, server: PgServer, name: str, machine: Machine, tmp_path: Path
) -> None:
    file = tmp_path / "engine.yaml"
    machine({"max_connections": 7, "redis": {"host": "r1", "db": 2}})
    posduif("tenant", "create", name, "--engine-config", str(file))
    before = yaml.safe_load(file.read_text())
    assert (record(server, name)["engine"], limit(server, name)) == ({"pool": 7, "redis_db": 2}, 30)
    file.write_text(file.read_text() + "logging: {level: debug}\n")
    machine({"max_connections": 9, "web_pool": 4, "ports": "20500-20510", "redis": {"host": "r2", "db": 3}})
    rotated = posduif("tenant", "rotate-password", name, "--engine-config", str(file))
    assert "only the password was changed" in rotated.err
    assert "redis.host" in rotated.err
    assert f"tenant engine-config {name} --refresh {file}" in rotated.err
    assert (record(server, name)["engine"], limit(server, name)) == ({"pool": 7, "redis_db": 2}, 30)
    password = yaml.safe_load(file.read_text())["postgres"]["password"]
    assert password != before["postgres"]["password"]
    done = posduif("tenant", "engine-config", name, "--refresh", str(file), "-o", "json")
    assert done.json["changed"] is True
    engine = {"pool": 9, "web_pool": 4, "port": 20500, "redis_db": 3}
    assert (record(server, name)["engine"], limit(server, name)) == (engine, 22)
    after = yaml.safe_load(file.read_text())
    assert after["postgres"] == {**before["postgres"], "password": password, "max_connections": 9}
    assert (after["redis"]["host"], after["redis"]["db"], after["sse"]["port"]) == ("r2", 3, 20500)
    assert after["auth"]["jwt_secret"] == before["auth"]["jwt_secret"], "web sessions go on"
    assert after["logging"] == {"level": "debug"}
    assert file.stat().st_mode & 0o777 == 0o600
    stamp = file.stat().st_mtime_ns
    again = posduif.json("tenant", "engine-config", name, "--refresh", str(file))
    assert (again["changed"], file.stat().st_mtime_ns) == (False, stamp)
    assert [f["level"] for f in posduif.json("tenant", "verify", name)] == ["ok"]
    machine({})
    assert [f["level"] for f in posduif.json("tenant", "verify", name)] == ["ok"], "another machine decides nothing"


@pytest.mark.one_server
def test_a_file_of_another_tenant_and_no_file_are_not_refreshed(
    posduif: Posduif, server: PgServer, tenant: str, tmp_path: Path
) -> None:
    file = tmp_path / "engine.yaml"
    error = posduif("tenant", "engine-config", tenant, "--refresh", str(file), "-o", "json", code=3).error
    assert f"or make it anew: posduif tenant rotate-password {tenant} --engine-config {file}" in error["try"]
    file.write_text("postgres: {db: other, password: x}\n")
    posduif("tenant", "engine-config", tenant, "--refresh", str(file), code=5)
    assert file.read_text() == "postgres: {db: other, password: x}\n"


@pytest.mark.one_server
def test_the_files_of_a_fleet_are_refreshed_and_get_new_passwords(
    posduif: Posduif, server: PgServer, name: str, machine: Machine, tmp_path: Path
) -> None:
    names, folder = [f"{name}_{letter}" for letter in "abc"], tmp_path / "engines"
    machine({"ports": "20600-20699"})
    try:
        for each in names:
            posduif("tenant", "create", each)
        (tmp_path / "list.txt").write_text("name\n" + "".join(f"{each}\n" for each in names[:2]))
        rotate = ("tenant", "rotate-password", "--from", str(tmp_path / "list.txt"), "--engine-config", str(folder))
        outcomes = posduif.json(*rotate)
        assert Counter(o["status"] for o in outcomes) == {"ok": 2}
        assert sorted(path.name for path in folder.iterdir()) == [f"{each}.yaml" for each in names[:2]]
        for each in names[:2]:
            told = yaml.safe_load((folder / f"{each}.yaml").read_text())["postgres"]
            server.connect(each, user=told["user"], password=told["password"]).close()
        posduif("tenant", "suspend", names[1])
        machine({"ports": "20600-20699", "max_connections": 6})
        outcomes = {o["tenant"]: o for o in posduif.json("tenant", "engine-config", "--all", str(folder))}
        assert {each: outcomes[each]["status"] for each in names} == {
            names[0]: "ok", names[1]: "ok", names[2]: "skipped"
        }  # fmt: skip
        assert [limit(server, each) for each in names] == [28, 28, 26]
        assert not server.sql("SELECT FROM pg_roles WHERE rolname = %s AND rolcanlogin", f"{names[1]}_engine")
        posduif("tenant", "rotate-password", "--all", code=2)
        posduif("tenant", "rotate-password", names[0], "--all", "--engine-config", str(folder), code=2)
        posduif("tenant", "rotate-password", "--engine-config", str(folder), code=2)
    finally:
        for each in names:
            forget(server, each)


@pytest.mark.one_server
def test_a_rolling_restart_and_the_web_api_fit_into_the_role_s_limit(
    posduif: Posduif, server: PgServer, name: str, machine: Machine, tmp_path: Path
) -> None:
    file = tmp_path / "engine.yaml"
    with Redis() as redis:
        machine({"ports": span(2), "redis": {"host": "127.0.0.1", "port": redis.port}})
        posduif("tenant", "create", name, "--web-user", "desk", "--engine-config", str(file))
        answers: list[int] = []
        with Engine(file) as old, Engine(file, port=free_port()) as new, ExitStack() as web:
            told = yaml.safe_load(file.read_text())["postgres"]
            for _ in range(16):  # the pool of a web-api on a host with 16 cores
                web.enter_context(server.connect(name, user=told["user"], password=told["password"]))

            def hammer(port: int) -> None:
                answers.extend(ask(port, "/api/users", device="d")[0] for _ in range(20))

            crowd = [threading.Thread(target=hammer, args=(port,)) for port in (old.port, new.port) for _ in range(10)]
            for each in crowd:
                each.start()
            for each in crowd:
                each.join()
        assert Counter(answers) == {200: 400}


@pytest.mark.one_server
def test_server_init_compares_the_pools_with_the_server_s_connections(
    posduif: Posduif, server: PgServer, machine: Machine
) -> None:
    machine({"max_connections": 5, "web_pool": 50})
    (found,) = [f for f in posduif.json("server", "init", "--engines", "30", code=None)
                if f["check"] == "server.connections"]  # fmt: skip
    assert "30 engines of up to 5 connections" in found["message"]
    wanted = 30 * 5 + 8 + 13
    assert f"want {wanted}" in found["message"]


@pytest.mark.one_server
def test_the_record_names_no_secret(posduif: Posduif, server: PgServer, name: str, machine: Machine) -> None:
    machine({"redis": {"host": "r1", "password": "topsecret"}, "cors": ["https://app.test", "*"]})
    posduif("tenant", "create", name)
    assert "topsecret" not in json.dumps(record(server, name))
    told = yaml.safe_load(posduif("tenant", "engine-config", name).out)
    assert told["redis"]["password"] == "topsecret"
    assert told["cors"]["allowed_origins"] == ["https://app.test", "*"]


@pytest.mark.one_server
def test_what_keeps_a_file_from_being_written_is_known_before_anything_is_made(
    posduif: Posduif, server: PgServer, name: str, machine: Machine, tmp_path: Path
) -> None:
    file = str(tmp_path / "engine.yaml")
    for engine in ({"jwt_secret": "one for all of them"}, {"secret_file": "nowhere.key"}):
        machine(engine)
        posduif("tenant", "create", name, "--engine-config", file, code=3)
    machine({})
    posduif("tenant", "create", name, "--engine-config", str(tmp_path / "nofolder" / "x.yaml"), code=3)
    (tmp_path / "empty.key").write_text("\n")
    (tmp_path / "empty.key").chmod(0o600)
    machine({"secret_file": "empty.key"})
    posduif("tenant", "create", name, "--engine-config", file, code=3)
    assert not server.sql("SELECT FROM pg_roles WHERE rolname = %s", f"{name}_engine")


@pytest.mark.one_server
def test_another_redis_server_than_the_engine_s_is_told(
    posduif: Posduif, server: PgServer, name: str, machine: Machine, tmp_path: Path
) -> None:
    machine({})
    posduif("tenant", "create", name, "--redis", "redis2/3")
    posduif("tenant", "create", name, "--redis", "redis2/3", "--if-not-exists")
    error = posduif("tenant", "create", name, "--redis", "other", "--if-not-exists", "-o", "json", code=5).error
    assert "its engine's Redis is redis2:6379/3, not other:6379" in error["why"]
    (tmp_path / "list.csv").write_text(f"name,redis\n{name},other\n")
    (outcome,) = posduif.json("tenant", "create", "--from", str(tmp_path / "list.csv"), code=5)
    assert outcome["status"] == "differs"
    (tmp_path / "list.csv").write_text(f"name,engine_port\n{name}_a,18700\n{name}_b,18700\n")
    error = posduif("tenant", "create", "--from", str(tmp_path / "list.csv"), "-o", "json", code=2).error
    assert "port 18700 is in line 2 already" in error["why"]


@pytest.mark.one_server
def test_a_mistyped_folder_or_file_is_not_filled_with_new_passwords(
    posduif: Posduif, tenant: str, tmp_path: Path
) -> None:
    error = posduif("tenant", "engine-config", "--all", str(tmp_path / "typo"), "-o", "json", code=3).error
    assert "rotate" not in str(error)
    error = posduif("tenant", "engine-config", tenant, "--refresh", str(tmp_path / "typo"), "-o", "json", code=3).error
    assert error["try"][0] == "look at the file's name"
