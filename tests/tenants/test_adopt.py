"""`posduif tenant adopt`: databases that other hands made come in whole, or not at all."""

import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from posduif_cli.db import record
from support.hints import obey
from support.kills import kill
from support.runner import Posduif
from support.servers import PgServer, dump
from support.sources import BUNDLED, MIGRATIONS, UP
from support.tenants import comment, forget

# As the sync engine's own script makes it: foreign keys under other names, one column of 0002, a trigger more.
ENGINE = (
    UP[0].replace("fk_messages_", "of_messages_").replace("users_enrollment_token_id_fkey", "fk_users_token")
    + """ALTER TABLE users ADD last_message_sent text;
    CREATE FUNCTION note_message() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        UPDATE users SET last_message_sent = NEW.content WHERE id = NEW.sender_id; RETURN NEW; END $$;
    CREATE TRIGGER note_message AFTER INSERT ON messages FOR EACH ROW EXECUTE FUNCTION note_message();"""
)
# As the document has it: foreign keys in the columns, and again by name.
DOCUMENT = UP[0] + "".join(
    f"ALTER TABLE messages ADD CONSTRAINT messages_{who}_id_fkey FOREIGN KEY ({who}_id) REFERENCES users;"
    for who in ("sender", "recipient")
)
DBMATE = "CREATE TABLE schema_migrations (version varchar(128) PRIMARY KEY);" + "".join(
    f"{up} INSERT INTO schema_migrations VALUES ('{file.name[:4]}');"
    for file, up in zip(MIGRATIONS[:2], UP, strict=False)
)
ROWS = """
INSERT INTO users (username, user_type) VALUES ('desk', 'web'), ('it''s', 'mobile');
INSERT INTO messages (sender_id, recipient_id, content)
SELECT a.id, b.id, 'hello' FROM users a, users b WHERE a.username = 'desk' AND b.username <> 'desk';
"""
ACCEPT = ("--accept", "trigger public.messages.note_message")  # of ENGINE
Make = Callable[..., None]


@pytest.fixture
def posduif(ops: Posduif) -> Posduif:
    return ops


@pytest.fixture
def make(server: PgServer, name: str, posduif: Posduif) -> Iterator[Make]:
    """Makes a database as other people would: NAME_boss owns it, NAME_app uses it."""

    def made(text: str, *, comment: str | None = None) -> None:
        server.sql(f"CREATE ROLE {name}_boss LOGIN; GRANT {name}_boss TO {name}_ops")
        server.sql(f"CREATE ROLE {name}_app LOGIN")
        server.sql(f"CREATE DATABASE {name} OWNER {name}_boss")
        with server.connect(name) as conn:
            conn.execute(f"SET ROLE {name}_boss".encode())
            conn.execute(text.encode())
            conn.execute(f"GRANT ALL ON ALL TABLES IN SCHEMA public TO {name}_app".encode())
        if comment is not None:
            server.sql(f"COMMENT ON DATABASE {name} IS '{comment}'")

    yield made
    forget(server, name)
    for role in ("boss", "app", "helper"):
        server.sql(f"DROP ROLE IF EXISTS {name}_{role}")


def contents(server: PgServer, name: str) -> dict[str, Any]:
    """All rows, without the columns that an adoption adds."""
    rows = {}
    for table in ("users", "messages", "sync_metadata", "enrollment_tokens"):
        found = server.sql(f"SELECT to_jsonb(x) FROM {table} x ORDER BY id", database=name)
        added = {"last_message_sent", "last_synced_lsn", "revoked_at", "label", "replaces"}
        rows[table] = [{key: value for key, value in row.items() if key not in added} for (row,) in found]
    return rows


def noted(server: PgServer, name: str) -> record.Record | None:
    return record.parse(comment(server, name))


@pytest.mark.parametrize("text", [ENGINE, DBMATE, "SELECT 1", UP[0]], ids=["engine", "dbmate", "empty", "first"])
def test_a_database_comes_in_whole_and_works(
    posduif: Posduif, server: PgServer, make: Make, name: str, text: str
) -> None:
    rows = "" if text == "SELECT 1" else ROWS
    make(text + ";" + rows, comment="ours since 2019")
    before = contents(server, name) if rows else {}

    accept = ACCEPT if text == ENGINE else ()
    done = posduif.json("tenant", "adopt", name, "--url", "https://adopted.example.com", *accept)
    assert (done["tenant"], done["changed"], done["state"]) == (name, True, "active")
    assert done["schema_version"] == MIGRATIONS[-1].name[:4]
    assert any(f"{name}_boss no longer owns database {name}" in change for change in done["changes"])
    if rows:
        assert contents(server, name) == before
    if text == ENGINE:
        assert "constraint public.messages.of_messages_sender" in done["made"]
        assert "index public.idx_sync_metadata_lsn" in done["made"]
        assert done["own"] == [
            "function public.note_message()",
            "index public.idx_messages_recipient",
            "trigger public.messages.note_message",
        ]

    again = posduif.json("tenant", "adopt", name)
    assert (again["changed"], again["made"]) == (False, [])
    kept = noted(server, name)
    assert kept is not None
    assert kept.extra == ({"accepted": ["trigger public.messages.note_message"]} if accept else {})
    assert (kept.note, kept.url) == ("ours since 2019", "https://adopted.example.com")
    assert name in [row["tenant"] for row in posduif.json("tenant", "list")]
    assert {row["state"] for row in posduif.json("migrate", "list", name)} == {"applied"}
    posduif("migrate", "up", name)
    assert posduif.json("tenant", "show", name)["pending"] == 0

    if not rows:
        posduif("user", "create", name, "desk", "--type", "web")
    url = posduif("token", "create", name).out.strip()
    posduif("enroll", "complete", name, url.rpartition("/")[2], "--device", "phone-1", "--username", "carol")
    as_engine(server, name)
    posduif("tenant", "drop", name, "--confirm", name)
    assert server.sql("SELECT 1 FROM pg_database WHERE datname = %s", name) == []


@pytest.mark.parametrize("text", [UP[0], DBMATE, "SELECT 1"], ids=["first", "dbmate", "empty"])
def test_what_is_adopted_is_as_it_should_be(
    posduif: Posduif, server: PgServer, make: Make, name: str, text: str
) -> None:
    everyone = ";GRANT ALL ON ALL TABLES IN SCHEMA public TO PUBLIC"
    make(text + everyone)
    server.sql(f"DROP OWNED BY {name}_app", database=name)
    posduif("tenant", "adopt", name)
    findings = posduif.json("tenant", "verify", name, code=None)
    strangers = [f for f in findings if f["level"] != "ok" and f["check"] != "database.rights"]
    assert strangers == []
    as_engine(server, name) if text != "SELECT 1" else None


@pytest.mark.one_server
def test_data_that_a_migration_would_have_made_is_named(
    posduif: Posduif, server: PgServer, make: Make, name: str, tmp_path: Path
) -> None:
    (tmp_path / "1000_seed.sql").write_text(
        "-- migrate:up\nCREATE TABLE plan (name text);\nINSERT INTO plan VALUES ('free');\nSELECT 1;\n"
    )
    (tmp_path / "1001_more.sql").write_text("-- migrate:up\nALTER TABLE plan ADD COLUMN price int;\n")
    (tmp_path / "config.yaml").write_text(f"migrations: {{paths: ['{tmp_path}']}}\n")
    option = ("--config", str(tmp_path / "config.yaml"))
    make(UP[0])
    steps = posduif.json("tenant", "adopt", name, "-n", *option)["steps"]
    (mind,) = [step["subject"] for step in steps if step["action"] == "mind"]
    assert "1000_seed is noted as applied and was not run" in mind
    assert "in lines 3, 4" in mind
    assert mind in posduif.json("tenant", "adopt", name, *option)["changes"]
    assert server.sql("SELECT count(*) FROM plan", database=name) == [(0,)]


@pytest.mark.parametrize("how", ["COMMENT ON DATABASE {name} IS NULL", "ALTER DATABASE {name} OWNER TO postgres"])
def test_a_lost_tenant_whose_database_is_there_is_led_back(
    posduif: Posduif, run_on: Callable[..., Posduif], server: PgServer, tenant: str, how: str
) -> None:
    server.sql(how.format(name=tenant))
    shown = posduif.json("tenant", "show", tenant)
    assert (shown["state"], shown["has_database"]) == ("lost", True)
    adopt = f"posduif tenant adopt {tenant}"
    [state] = [f for f in posduif.json("health", tenant, code=None)["findings"] if f["check"] == "tenant.state"]
    assert state["fix"] == adopt
    for argv in (
        ("tenant", "drop", tenant, "--dry-run"),
        ("tenant", "verify", tenant),
        ("user", "list", tenant),
        ("tenant", "create", tenant, "--if-not-exists"),
        ("tenant", "drop", tenant, "--confirm", tenant),
    ):
        assert posduif(*argv, "-o", "json", code=5).error["try"] == [adopt], argv
    assert posduif.json("tenant", "show", tenant)["state"] == "lost", "a drop that was refused changed nothing"
    refused = posduif("tenant", "drop", tenant, "-o", "json", code=9).error
    assert "what is left of tenant" in refused["message"]
    before = server.sql("SELECT rolpassword FROM pg_authid WHERE rolname = %s", f"{tenant}_engine")
    # A superuser's session may, too: it was posduif that made the database.
    posduif = run_on(server)
    adopted = posduif("tenant", "adopt", tenant, "-o", "table")
    assert "has no password yet" not in adopted.err
    assert server.sql("SELECT rolpassword FROM pg_authid WHERE rolname = %s", f"{tenant}_engine") == before
    assert [user["username"] for user in posduif.json("user", "list", tenant)] == ["desk"]
    assert posduif.json("tenant", "verify", tenant)[0]["level"] == "ok"


@pytest.mark.parametrize("stranger", [False, True])
def test_a_url_is_taken_back_only_from_whom_nobody_else_could_have_had_it(
    posduif: Posduif, run_on: Callable[..., Posduif], server: PgServer, tenant: str, stranger: bool
) -> None:
    posduif("tenant", "set", tenant, "--url", "https://acme.example.com")
    before = posduif.json("tenant", "show", tenant)
    owner = f"{tenant}_stranger" if stranger else "postgres"
    if stranger:
        server.sql(f"CREATE ROLE {owner} CREATEDB; GRANT {owner} TO {tenant}_ops")
    try:
        server.sql(f"ALTER DATABASE {tenant} OWNER TO {owner}")
        lost = {row["subject"]: row for row in posduif.json("tenant", "verify", "--all", code=None)}[tenant]
        assert (lost["fix"], "its database is there" in lost["message"]) == (f"posduif tenant adopt {tenant}", True)
        if stranger:
            run_on(server)("tenant", "adopt", tenant, code=9)
            run_on(server, user=f"{tenant}_ops", password="x")
        else:
            posduif = run_on(server)
        adopted = posduif.json("tenant", "adopt", tenant)
        assert (adopted["url"] == "https://acme.example.com") is not stranger
        if not stranger:
            assert posduif.json("tenant", "show", tenant)["created_at"] == before["created_at"]
    finally:
        if stranger:
            server.sql(f"REASSIGN OWNED BY {owner} TO posduif_admin; DROP OWNED BY {owner}", database=tenant)
            server.sql(f"DROP ROLE {owner}")


def as_engine(server: PgServer, name: str) -> None:
    """Do as the engine's role what an engine does."""
    server.sql(f"ALTER ROLE {name}_engine PASSWORD 'x'")
    assert server.sql("SELECT has_database_privilege(%s, %s, 'CONNECT')", f"{name}_engine", name) == [(True,)]
    with server.connect(name) as conn:
        conn.execute(f"SET SESSION AUTHORIZATION {name}_engine".encode())
        conn.execute("SET TimeZone = 'UTC'")
        conn.execute("UPDATE users SET last_message_sent = 'x'")
        conn.execute("INSERT INTO sync_metadata (device_id, sync_status) VALUES ('phone-9', 'idle')")
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            conn.execute("CREATE TABLE x ()")


def test_those_who_worked_there_go_on(posduif: Posduif, server: PgServer, make: Make, name: str) -> None:
    make(
        UP[0]
        + ROWS
        + "CREATE TABLE invoices (id serial PRIMARY KEY, owed int); INSERT INTO invoices (owed) VALUES (7);"
    )
    done = posduif.json("tenant", "adopt", name)
    assert done["own"] == ["index public.idx_messages_recipient", "table public.invoices"]
    for role in ("app", "boss"):
        with server.connect(name) as conn:
            conn.execute(f"SET SESSION AUTHORIZATION {name}_{role}".encode())
            conn.execute("INSERT INTO users (username, user_type) VALUES (current_user, 'web')")
            assert conn.execute("SELECT count(*) FROM messages").fetchone() == (1,)
            assert conn.execute("SELECT owed FROM invoices").fetchone() == (7,)
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                conn.execute("CREATE TRIGGER x BEFORE INSERT ON users EXECUTE FUNCTION update_read_at()")
    rights = server.sql(
        "SELECT has_database_privilege(%s, %s, 'CONNECT'), has_database_privilege(%s, %s, 'CONNECT,CREATE'), "
        "has_database_privilege('public', %s, 'CONNECT')",
        f"{name}_app",
        name,
        f"{name}_boss",
        name,
        name,
    )
    assert rights == [(True, True, False)]
    with server.connect(name) as conn:
        conn.execute(f"SET ROLE {name}_boss".encode())
        conn.execute("ALTER TABLE invoices ADD paid boolean")
        conn.execute("CREATE SCHEMA boss CREATE TABLE more ()")
        # A function there could pass for one of PostgreSQL's in an administrator's session.
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            conn.execute("CREATE FUNCTION public.hashtext(name) RETURNS int LANGUAGE sql AS 'SELECT 1'")
    owners = (
        "SELECT relname::text, pg_get_userbyid(relowner)::text FROM pg_class WHERE relkind = 'r' AND relname = ANY(%s)"
    )
    assert dict(server.sql(owners, ["users", "invoices"], database=name)) == {
        "users": "posduif_admin",
        "invoices": f"{name}_boss",
    }
    dump(server, name, "--role=posduif_admin", "--table=invoices")
    text = " ".join(done["changes"])
    assert f"{name}_app has CONNECT, TEMPORARY on database {name} by name now" in text
    assert f"{name}_app lost TRIGGER, REFERENCES on table public.users" in text
    assert f"{name}_boss lost CREATE on schema public" in text


CONFLICTS = {
    "zoned": (UP[0].replace("read_at TIMESTAMP", "read_at TIMESTAMPTZ"), "column public.messages.read_at"),
    "check": (UP[0].replace("('web', 'mobile')", "('web', 'mobile', 'robot')"), "public.users.chk_user_type"),
    "index": (UP[0].replace("ON messages (status)", "ON messages (status, id)"), "public.idx_messages_status"),
    "function": (UP[0].replace("OLD.status != 'read'", "true"), "function public.update_read_at()"),
    "default": (UP[0].replace("DEFAULT false", "DEFAULT true"), "column public.users.online_status"),
    "not null": (UP[0].replace("content TEXT NOT NULL", "content TEXT"), "column public.messages.content"),
    "twins": (DOCUMENT, "constraint public.messages.messages_sender_id_fkey"),
    "disabled": (UP[0] + "ALTER TABLE users DISABLE TRIGGER USER", "update_users_updated_at"),
    "row security": (UP[0] + "ALTER TABLE users ENABLE ROW LEVEL SECURITY", "table public.users"),
    "must be filled": (UP[0] + "ALTER TABLE users ADD x int NOT NULL", "column public.users.x must be filled"),
    "dotted": (UP[0] + 'ALTER TABLE users ADD "ext.id" int NOT NULL', 'column public.users."ext.id" must be filled'),
    "generated": (
        UP[0] + "ALTER TABLE users DROP online_status, ADD online_status boolean GENERATED ALWAYS AS (true) STORED",
        "column public.users.online_status",
    ),
    "type": ("CREATE TABLE users (id int)", "column public.users.id is integer"),
    "rule": (UP[0] + "CREATE RULE r AS ON UPDATE TO users DO ALSO SELECT 1", "rule public.users.r"),
    "version trigger": (
        DBMATE
        + """CREATE FUNCTION trap() RETURNS trigger LANGUAGE plpgsql AS
        $$ BEGIN EXECUTE 'ALTER ROLE ' || session_user || ' CONNECTION LIMIT 7'; RETURN NEW; END $$;
        CREATE TRIGGER trap BEFORE INSERT ON schema_migrations FOR EACH ROW EXECUTE FUNCTION trap()""",
        "trigger public.schema_migrations.trap runs public.trap()",
    ),
    "other tool": (UP[0] + "CREATE TABLE schema_migrations (version bigint, dirty boolean)", "another tool"),
    "version view": (UP[0] + "CREATE VIEW schema_migrations AS SELECT '1'::text AS version", "no plain table"),
}


@pytest.mark.one_server
@pytest.mark.parametrize(("text", "named"), CONFLICTS.values(), ids=list(CONFLICTS))
def test_what_differs_is_refused_and_its_remedy_helps(
    posduif: Posduif, server: PgServer, make: Make, name: str, text: str, named: str
) -> None:
    make(text)
    before = dump(server, name, "-C")
    error = posduif("tenant", "adopt", name, "-o", "json", code=5).error
    assert named in error["why"]
    assert dump(server, name, "-C") == before
    assert server.sql("SELECT 1 FROM pg_roles WHERE rolname = %s", f"{name}_engine") == []
    assert server.sql("SELECT rolconnlimit FROM pg_roles WHERE rolname = session_user") == [(-1,)]
    assert obey(server, error["try"]) == len({hint for hint in error["try"] if "posduif tenant" not in hint})
    assert posduif.json("tenant", "adopt", name)["changed"] is True


PARTITIONED = """
DROP TABLE messages; CREATE TABLE messages (id uuid NOT NULL DEFAULT gen_random_uuid(), sender_id uuid NOT NULL,
    recipient_id uuid NOT NULL, content text NOT NULL, status varchar(50) NOT NULL DEFAULT 'pending_sync',
    created_at timestamp DEFAULT now(), updated_at timestamp DEFAULT now(), synced_at timestamp, read_at timestamp,
    CONSTRAINT fk_messages_sender FOREIGN KEY (sender_id) REFERENCES users ON DELETE CASCADE)
    PARTITION BY RANGE (created_at);
CREATE TABLE messages_1 PARTITION OF messages DEFAULT;
INSERT INTO users (username, user_type) VALUES ('desk', 'web');
INSERT INTO messages (sender_id, recipient_id, content) SELECT id, id, 'kept' FROM users;
"""
ROOM = {
    "partitioned": (PARTITIONED, "SELECT content FROM before_posduif.messages", "kept"),
    "foreign": (
        "DROP TABLE sync_metadata; CREATE FOREIGN TABLE sync_metadata (id uuid) SERVER nowhere;",
        "SELECT relkind::text FROM pg_class WHERE oid = 'before_posduif.sync_metadata'::regclass",
        "f",
    ),
    "view": (
        "CREATE SCHEMA old; ALTER TABLE sync_metadata SET SCHEMA old; "
        "CREATE VIEW sync_metadata AS SELECT * FROM old.sync_metadata;",
        "SELECT count(*)::text FROM before_posduif.sync_metadata",
        "0",
    ),
    "heir": (
        "CREATE TABLE people (name text); INSERT INTO people VALUES ('kept'); ALTER TABLE users ADD name text; "
        "ALTER TABLE users INHERIT people;",
        "SELECT name FROM people",
        "kept",
    ),
}


@pytest.mark.one_server
@pytest.mark.parametrize(("text", "query", "kept"), ROOM.values(), ids=list(ROOM))
def test_no_hint_drops_what_may_hold_rows(
    posduif: Posduif, server: PgServer, make: Make, name: str, text: str, query: str, kept: str
) -> None:
    make(UP[0])
    server.sql("CREATE FOREIGN DATA WRAPPER none; CREATE SERVER nowhere FOREIGN DATA WRAPPER none", database=name)
    server.sql(f"GRANT USAGE ON FOREIGN SERVER nowhere TO {name}_boss", database=name)
    server.sql(f"SET ROLE {name}_boss; {text}", database=name)
    for _ in range(5):
        result = posduif("tenant", "adopt", name, "-o", "json", code=None)
        if result.code == 0:
            break
        assert result.code == 5
        assert not re.search("DROP (TABLE|VIEW|MATERIALIZED|SEQUENCE|COLUMN|SCHEMA|TYPE|EXTENSION)|TRUNCATE|CASCADE",
                             "; ".join(result.error["try"]))  # fmt: skip
        assert obey(server, result.error["try"])
    assert result.code == 0
    assert server.sql(query, database=name) == [(kept,)]


@pytest.mark.one_server
def test_a_refusal_is_read_line_by_line(posduif: Posduif, server: PgServer, make: Make, name: str) -> None:
    """The engine's own script: its functions differ in a test that means nothing."""
    odd = "OLD.status IS NULL OR OLD.status !="
    make(UP[0].replace("OLD.status !=", odd) + "CREATE VIEW x AS SELECT random() FROM users")
    lines = posduif("tenant", "adopt", name, code=5).err.splitlines()
    assert lines[0] == f"error: database {name} cannot be adopted as it is, for 3 reasons"
    more = "has `IS NULL OR OLD.status` more than the migrations'"
    assert lines[1:6] == [
        f"  why   function public.update_read_at() {more}",
        f"        function public.update_synced_at() {more}",
        "        view public.x runs random(), which is volatile",
        "        --accept takes in what may have an administrator's rights",
        "        nothing was changed",
    ]
    replace = f"{name}_boss types, in {name}: CREATE OR REPLACE FUNCTION"
    assert lines[6].startswith(f"  try   {replace} public.update_read_at()")
    assert lines[7].startswith(f"        {replace} public.update_synced_at()")
    assert lines[8:] == [
        f"        {name}_boss types, in {name}: DROP VIEW public.x;",
        f"        posduif tenant adopt {name}",
        f"        posduif tenant adopt {name} --accept 'view public.x'",
    ]
    obey(server, posduif("tenant", "adopt", name, "-o", "json", code=5).error["try"])
    posduif("tenant", "adopt", name)


@pytest.mark.one_server
def test_data_that_stands_against_a_constraint_is_named(
    posduif: Posduif, server: PgServer, make: Make, name: str
) -> None:
    make(
        UP[0]
        + "ALTER TABLE users DROP CONSTRAINT chk_user_type; INSERT INTO users (username, user_type) VALUES ('r2', 'r')"
    )
    before = dump(server, name, "-C")
    error = posduif("tenant", "adopt", name, "-o", "json", code=5).error
    assert "chk_user_type" in error["message"]
    assert dump(server, name, "-C") == before


@pytest.mark.one_server
def test_an_event_trigger_or_a_search_path_is_refused(
    posduif: Posduif, server: PgServer, make: Make, name: str
) -> None:
    make(UP[0])
    server.sql("CREATE FUNCTION trap() RETURNS event_trigger LANGUAGE plpgsql AS 'BEGIN END'", database=name)
    server.sql("CREATE EVENT TRIGGER trap ON ddl_command_start EXECUTE FUNCTION trap()", database=name)
    assert "event trigger trap" in posduif("tenant", "adopt", name, "-o", "json", code=5).error["why"]
    server.sql("DROP EVENT TRIGGER trap", database=name)
    server.sql(f"ALTER DATABASE {name} SET search_path = public, pg_catalog")
    assert "search_path" in posduif("tenant", "adopt", name, "-o", "json", code=5).error["message"]
    server.sql(f"ALTER DATABASE {name} RESET search_path")
    posduif("tenant", "adopt", name)


def test_a_dry_run_shows_the_sql_and_changes_nothing(posduif: Posduif, server: PgServer, make: Make, name: str) -> None:
    make(ENGINE + ROWS + "CREATE TABLE invoices (id int)", comment="ours")
    before = dump(server, name, "-C")
    plan = posduif.json("tenant", "adopt", name, "-n", *ACCEPT)
    assert dump(server, name, "-C") == before
    assert server.sql("SELECT 1 FROM pg_roles WHERE rolname = %s", f"{name}_engine") == []
    assert plan["dry_run"] is True
    sql = [step["sql"] for step in plan["steps"]]
    assert f'ALTER DATABASE "{name}" OWNER TO posduif_admin' in sql
    assert "ALTER TABLE public.messages RENAME CONSTRAINT of_messages_sender TO fk_messages_sender" in sql
    assert "ALTER TABLE public.sync_metadata ADD COLUMN last_synced_lsn pg_lsn" in sql
    assert ("leave alone", "table public.invoices") in [(step["action"], step["subject"]) for step in plan["steps"]]
    made = [step["subject"] for step in plan["steps"] if step["action"] in ("make", "rename")]
    assert posduif.json("tenant", "adopt", name, *ACCEPT)["made"] == [m for m in made if "schema_migrations" not in m]
    assert posduif.json("tenant", "adopt", name, "-n")["steps"] == []


@pytest.mark.parametrize("point", ["before db.record.write 1", "before db.admin.join_groups 1"])
def test_killed_midway_it_leaves_the_database_as_it_was(
    posduif: Posduif, server: PgServer, make: Make, name: str, point: str
) -> None:
    make(ENGINE + ROWS)
    before = dump(server, name, "-C")
    kill(point, "tenant", "adopt", name, *ACCEPT)
    deadline = time.monotonic() + 10
    while server.sql("SELECT 1 FROM pg_stat_activity WHERE datname = %s", name) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert dump(server, name, "-C") == before
    assert server.sql("SELECT 1 FROM pg_roles WHERE rolname = %s", f"{name}_engine") == []
    assert posduif.json("tenant", "adopt", name, *ACCEPT)["changed"] is True


def test_a_tenant_that_lost_its_record_comes_back(posduif: Posduif, server: PgServer, tenant: str) -> None:
    posduif("user", "create", tenant, "second", "--type", "web")
    server.sql(f"COMMENT ON DATABASE {tenant} IS NULL")
    assert posduif.json("tenant", "show", tenant)["state"] == "lost"
    done = posduif.json("tenant", "adopt", tenant)
    assert (done["changed"], done["state"], done["made"]) == (True, "active", [])
    assert len(posduif.json("user", "list", tenant)) == 2
    assert {row["state"] for row in posduif.json("migrate", "list", tenant)} == {"applied"}
    assert posduif.json("tenant", "adopt", tenant)["changed"] is False


def test_who_may_not_take_it_over_hears_what_would_help(
    posduif: Posduif, run_on: Callable[..., Posduif], server: PgServer, make: Make, name: str
) -> None:
    make(UP[0])
    posduif("tenant", "adopt", name, "-n")
    server.sql(f"CREATE ROLE {name}_helper LOGIN CREATEROLE PASSWORD 'x'")
    server.sql(f"GRANT posduif_admin TO {name}_helper")
    helper = run_on(server, user=f"{name}_helper", password="x")
    error = helper("tenant", "adopt", name, "-o", "json", code=6).error
    remedies = [hint.partition("types: ")[2] for hint in error["try"]]
    assert remedies == [f"ALTER ROLE {name}_helper CREATEDB;", f"GRANT {name}_boss TO {name}_helper;"]
    for remedy in remedies:
        server.sql(remedy)
    assert helper.json("tenant", "adopt", name)["changed"] is True
    server.sql(f"REVOKE {name}_boss FROM {name}_helper")


@pytest.mark.one_server
def test_what_cannot_be_adopted(posduif: Posduif, server: PgServer, make: Make, name: str) -> None:
    assert posduif("tenant", "adopt", "postgres", "-o", "json", code=2).error["code"] == "invalid_name"
    assert posduif("tenant", "adopt", name, "-o", "json", code=4).error["code"] == "tenant_not_found"
    make(UP[0])
    server.sql(f"CREATE ROLE {name}_engine")
    error = posduif("tenant", "adopt", name, "-o", "json", code=5).error
    assert error["code"] == "not_ours"
    server.sql(f"DROP ROLE {name}_engine")
    server.sql(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
    assert "accepts no connections" in posduif("tenant", "adopt", name, "-o", "json", code=5).error["message"]


@pytest.mark.one_server
def test_a_forged_record_is_not_believed(posduif: Posduif, server: PgServer, make: Make, name: str) -> None:
    make(UP[0], comment='posduif {"v":1,"state":"active","url":"https://evil.example.com"}')
    done = posduif.json("tenant", "adopt", name)
    assert (done["changed"], done["url"]) == (True, None)


@pytest.mark.one_server
def test_versions_of_others_stay_noted(posduif: Posduif, server: PgServer, make: Make, name: str) -> None:
    make(DBMATE + "INSERT INTO schema_migrations VALUES ('20240101000000')")
    posduif("tenant", "adopt", name)
    states = {row["version"]: row["state"] for row in posduif.json("migrate", "list", name)}
    assert states == {**dict.fromkeys(BUNDLED, "applied"), "20240101000000": "missing"}
    assert server.sql("SELECT count(*) FROM schema_migrations WHERE checksum IS NULL", database=name) == [(1,)]
    assert posduif.json("tenant", "show", name)["pending"] == 0


@pytest.mark.one_server
def test_it_waits_for_nobody_for_long(posduif: Posduif, server: PgServer, make: Make, name: str) -> None:
    make(UP[0])
    with server.connect(name) as conn, conn.transaction():
        conn.execute("LOCK TABLE users IN ROW EXCLUSIVE MODE")
        posduif("tenant", "adopt", name, code=10)
    posduif("tenant", "adopt", name)
