"""The record: what it may hold, whom it may be believed from, and that it is as transactional as its change."""

import json
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from posduif_cli.db import connect, record
from posduif_cli.db.record import KNOWN, PREFIX, Intent, Record
from posduif_cli.db.session import Session
from posduif_cli.errors import OperationFailed, WrongState
from posduif_cli.models.servers import Server
from posduif_cli.models.tenants import Failure, State
from support.runner import Posduif
from support.servers import PgServer
from support.tenants import comment, forget

words = st.text(max_size=40)
moments = st.datetimes(timezones=st.just(UTC)).map(lambda moment: moment.replace(microsecond=0))
states = st.sampled_from(State)
values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | words,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3),
    max_leaves=6,
)
maybe = st.none() | words
failures = st.builds(Failure, version=words, sqlstate=maybe, file=maybe, line=st.none() | st.integers(1), time=moments)
records = st.builds(
    Record,
    state=states,
    schema=maybe,
    applied=maybe,
    url=maybe,
    created=st.none() | moments,
    failed=st.none() | failures,
    note=maybe,
    engine=st.dictionaries(words, values, max_size=3) | st.builds(dict, pool=st.integers(1, 99_999)),
    extra=st.dictionaries(words.filter(lambda key: key not in KNOWN), values, max_size=4),
)
intents = st.builds(Intent, tenant=words, state=states, nonce=st.integers())
strange = ["0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59-23:59", "2026-01-01", "", 7, None, [], {"a": 1}]
payloads = st.dictionaries(
    st.sampled_from([*KNOWN, "tenant", "nonce"]) | words, values | st.sampled_from(strange) | st.just("active")
).map(lambda payload: {"v": 1, "state": "active", **payload})


@given(records)
def test_a_record_survives_being_written(noted: Record) -> None:
    text = record.dump(noted)
    assert record.parse(text) == noted
    assert text.startswith(PREFIX + "{")
    assert text.isascii()
    assert text.isprintable()


@given(payloads.map(lambda payload: {key: value for key, value in payload.items() if key not in ("v", "state")}))
def test_unknown_keys_are_kept_by_a_change(payload: dict[str, Any]) -> None:
    unknown = {key: value for key, value in payload.items() if key not in KNOWN}
    noted = record.parse(PREFIX + json.dumps({"v": 1, "state": "active", **unknown}))
    assert noted is not None
    again = json.loads(record.dump(noted).removeprefix(PREFIX))
    assert again == {"v": 1, "state": "active", **unknown}


@given(st.dictionaries(words.filter(lambda key: key != "pool"), values, max_size=3), st.integers(1, 99_999))
def test_what_an_engine_was_given_is_read_and_its_unknown_keys_are_kept(more: dict[str, Any], pool: int) -> None:
    payload = {"v": 1, "state": "active", "engine": {**more, "pool": pool}}
    noted = record.parse(PREFIX + json.dumps(payload))
    assert noted is not None
    assert noted.given.pool == pool
    assert json.loads(record.dump(noted).removeprefix(PREFIX)) == payload


@pytest.mark.parametrize("engine", [None, 5, "pool", [], {}, {"pool": None}, {"pool": "5"}, {"pool": True},
                                    {"pool": 0}, {"pool": -1}, {"pool": 10**9}, {"pool": 5.0}])  # fmt: skip
def test_a_pool_that_is_none_is_not_taken_for_one(engine: Any) -> None:
    noted = record.parse(PREFIX + json.dumps({"v": 1, "state": "active", "engine": engine}))
    assert noted is not None
    assert noted.given.pool is None


@given(intents)
def test_an_intent_survives_being_written(intent: Intent) -> None:
    text = record.dump_intent(intent)
    assert record.parse_intent(text) == intent
    assert text.isascii()


@given(st.none() | st.text() | payloads.map(lambda payload: PREFIX + json.dumps(payload)))
@example(PREFIX + "[" * 100_000)
@example(PREFIX + '{"a":' * 100_000)
@example(PREFIX + '{"v":1,"state":"active","n":' + "9" * 5000 + "}")
@example(PREFIX + '{"v":1,"state":["active"]}')
@example(PREFIX + '{"v":1,"state":"active","created":"0001-01-01T00:00:00+23:59"}')
@example(PREFIX + '{"v":1,"state":"active","failed":{"version":"1","time":"9999-12-31T23:59:59-23:59"}}')
def test_junk_never_raises(text: str | None) -> None:
    noted = record.parse(text)
    record.parse_intent(text)
    if noted is not None:
        assert record.parse(record.dump(noted)) == noted


@pytest.mark.parametrize(
    "text",
    [
        'posduif {"v":2,"state":"active"}',
        'posduif {"v":1}',
        'posduif {"v":1,"state":"asleep"}',
        'posduif  {"v":1,"state":"active"}',
        'our posduif {"v":1,"state":"active"}',
        '{"v":1,"state":"active"}',
        "posduif []",
        "posduif",
        "",
    ],
)
def test_what_is_not_a_record(text: str) -> None:
    assert record.parse(text) is None


def session(server: PgServer, database: str) -> Session:
    return connect.connect(Server("test", server.dsn), database, command="test")


def test_a_record_shares_the_fate_of_its_transaction(server: PgServer, tenant: str) -> None:
    before = comment(server, tenant)
    with session(server, tenant) as conn:
        noted = record.read(conn)
        with conn.transaction(rollback=True):
            record.write(conn, Record(State.SUSPENDED))
            assert record.read(conn).state is State.SUSPENDED
        assert record.read(conn) == noted
    assert comment(server, tenant) == before


def test_a_record_of_a_database_that_is_gone_cannot_be_written(server: PgServer, tenant: str) -> None:
    with session(server, "postgres") as conn, pytest.raises(OperationFailed):
        record.put(conn, f"{tenant}_gone", Record(State.ACTIVE))
    with session(server, "postgres") as conn, conn.transaction(rollback=True):
        conn.script("SET client_min_messages = error")  # as SQL of other people may, and PostgreSQL only warns
        with pytest.raises(OperationFailed):
            record.put(conn, f"{tenant}_gone", Record(State.ACTIVE))
        record.put(conn, tenant, Record(State.ACTIVE))
    with session(server, "postgres") as conn, pytest.raises(WrongState):
        record.read(conn)


def test_a_record_names_neither_tenant_nor_role_and_holds_no_error_text(
    posduif: Posduif, server: PgServer, name: str, tmp_path: Path
) -> None:
    file = tmp_path / "engine.yaml"
    posduif("tenant", "create", name, "--web-user", "s3cret_row", "--engine-config", str(file))
    (tmp_path / "more").mkdir()
    bad = tmp_path / "more" / "1000_count.sql"
    bad.write_text("-- migrate:up\nCREATE TABLE half ();\nSELECT username::int FROM users;\n")
    (tmp_path / "config.yaml").write_text(f"migrations: {{paths: [{tmp_path / 'more'}]}}\n")
    config = ("--config", str(tmp_path / "config.yaml"))

    assert "s3cret_row" in posduif("migrate", "up", name, *config, code=7).err
    noted = comment(server, name)
    assert "22P02" in noted
    assert "1000_count.sql" in noted
    password = next(line.split()[1] for line in file.read_text().splitlines() if "password:" in line)
    for secret in ("s3cret_row", "invalid input", "SCRAM", password, name, "_engine", "posduif_"):
        assert secret not in noted
    intent = server.sql("SELECT shobj_description(oid, 'pg_authid') FROM pg_roles WHERE rolname = %s", f"{name}_engine")
    assert "s3cret_row" not in intent[0][0]
    assert password not in intent[0][0]
    shown = posduif.json("tenant", "show", name, *config)
    assert (shown["error"]["sqlstate"], shown["error"]["version"], shown["state"]) == ("22P02", "1000", "active")
    assert server.sql("SELECT to_regclass('half')", database=name) == [(None,)]

    bad.write_text("-- migrate:up\nCREATE TABLE half ();\n")
    posduif("migrate", "up", name, *config)
    assert posduif.json("tenant", "show", name, *config)["error"] is None
    assert "22P02" not in comment(server, name)


def sessions_ever(server: PgServer, database: str) -> int:
    return int(server.sql("SELECT sessions FROM pg_stat_database WHERE datname = %s", database)[0][0])


def test_a_forged_record_is_never_believed(posduif: Posduif, server: PgServer, tenant: str) -> None:
    forged, mallory = f"{tenant}_forged", f"{tenant}_mallory"
    true = comment(server, tenant)
    server.sql(f"CREATE ROLE {mallory} LOGIN CREATEDB")
    try:
        server.sql(f"CREATE DATABASE {forged}", user=mallory)
        server.sql(f"COMMENT ON DATABASE {forged} IS '{true}'", user=mallory)
        trap = """CREATE TABLE public.schema_migrations (version text PRIMARY KEY);
                  CREATE TABLE caught (who text);
                  CREATE FUNCTION trap() RETURNS trigger LANGUAGE plpgsql AS
                  'BEGIN INSERT INTO caught VALUES (session_user); RETURN NEW; END';
                  CREATE TRIGGER trap BEFORE INSERT ON schema_migrations FOR EACH ROW EXECUTE FUNCTION trap()"""
        server.sql(trap, database=forged, user=mallory)
        deadline = time.monotonic() + 10
        while (before := sessions_ever(server, forged)) < 1 and time.monotonic() < deadline:
            time.sleep(0.05)

        assert forged not in posduif("tenant", "list").out
        assert forged not in posduif("migrate", "status", "--all").out
        assert f'"{forged}"' not in posduif("health", "-o", "json", code=None).out
        for argv in (
            ("tenant", "show", forged),
            ("tenant", "set", forged, "--url", "https://x.example.com"),
            ("tenant", "drop", forged, "--confirm", forged),
            ("migrate", "up", forged),
            ("migrate", "list", forged),
            ("health", forged),
            ("user", "list", forged),
            ("token", "create", forged),
        ):
            assert posduif(*argv, "-o", "json", code=4).error["code"] == "tenant_not_found"
        for extra in ((), ("--if-not-exists",), ("--dry-run",)):
            assert posduif("tenant", "create", forged, *extra, "-o", "json", code=5).error["code"] == "not_ours"
        assert server.sql("SELECT 1 FROM pg_roles WHERE rolname = %s", f"{forged}_engine") == []
        assert comment(server, forged) == true

        # The count of sessions is complete once this last one shows in it.
        assert server.sql("SELECT * FROM caught", database=forged) == []
        while sessions_ever(server, forged) <= before and time.monotonic() < deadline + 10:
            time.sleep(0.05)
        assert sessions_ever(server, forged) == before + 1
    finally:
        forget(server, forged)
        server.sql(f"DROP ROLE {mallory}")


@pytest.mark.parametrize("owner", ["postgres", "posduif_admin"])
def test_comments_in_another_encoding_break_nothing(
    posduif: Posduif, server: PgServer, tenant: str, owner: str
) -> None:
    latin = f"{tenant}_latin"
    locale = "ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C' LOCALE_PROVIDER libc"
    server.sql(f"CREATE DATABASE {latin} OWNER {owner} TEMPLATE template0 {locale}")
    try:
        text = 'posduif {"v":1,"state":"active","note":"caf\u00e9"}'
        with server.connect(latin, client_encoding="UTF8") as conn:
            conn.execute(f"COMMENT ON DATABASE {latin} IS '{text}'".encode())
            conn.execute(f"CREATE ROLE {latin}_engine; COMMENT ON ROLE {latin}_engine IS '{text}'".encode())
        with pytest.raises(UnicodeDecodeError):
            comment(server, latin)
        listed = {row["tenant"]: row["state"] for row in posduif.json("tenant", "list")}
        assert listed[tenant] == "active"
        # A real owner's record with a foreign byte in a text still is one; a stranger's is not.
        assert listed.get(latin) == ("active" if owner == "posduif_admin" else None)
        posduif("tenant", "create", latin, code=5)
    finally:
        forget(server, latin)


def test_garbage_in_the_comment_of_an_own_database_makes_it_not_ours(
    posduif: Posduif, server: PgServer, tenant: str
) -> None:
    for garbage in ('posduif {"v":1,', 'posduif {"v":1,"state":7}', "hello"):
        server.sql(f"COMMENT ON DATABASE {tenant} IS '{garbage}'")
        assert posduif.json("tenant", "show", tenant)["state"] == "lost"
        assert posduif("migrate", "up", tenant, "-o", "json").json[0]["status"] == "skipped"
        posduif("user", "list", tenant, code=5)


def test_a_maintenance_database_in_sql_ascii_serves(own_server: PgServer, run_on: Any) -> None:
    own_server.sql("DROP DATABASE postgres", database="template1")
    encoding = "ENCODING 'SQL_ASCII' LC_COLLATE 'C' LC_CTYPE 'C' LOCALE_PROVIDER libc"
    own_server.sql(f"CREATE DATABASE postgres TEMPLATE template0 {encoding}", database="template1")
    posduif = run_on(own_server)
    posduif("tenant", "create", "acme", "--web-user", "J\u00fcrgen")
    assert posduif.json("tenant", "show", "acme")["state"] == "active"
    assert posduif.json("user", "list", "acme")[0]["username"] == "J\u00fcrgen"


def test_the_clients_encoding_is_not_the_environments(
    posduif: Posduif, tenant: str, clean_environ: pytest.MonkeyPatch
) -> None:
    clean_environ.setenv("PGCLIENTENCODING", "LATIN1")
    posduif("user", "create", tenant, "\u017bo\u0142\u0105d\u017a", "--type", "web")
    assert "\u017bo\u0142\u0105d\u017a" in [user["username"] for user in posduif.json("user", "list", tenant)]


def test_created_is_the_time_of_creation(posduif: Posduif, server: PgServer, tenant: str) -> None:
    noted = record.parse(comment(server, tenant))
    assert noted is not None
    assert noted.created is not None
    assert abs(datetime.now(UTC) - noted.created) < timedelta(minutes=2)
