"""`posduif tenant adopt`: databases that other hands made come in whole, or not at all."""

import re
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
import yaml

from posduif_cli.db import record
from posduif_cli.db.patience import LIMITS
from support.engine import Engine, Redis, ask
from support.hints import by_psql, obey
from support.kills import kill
from support.runner import Posduif
from support.servers import PgServer, dump, free_port, private, programs
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


SEED = "-- migrate:up\nCREATE TABLE plan (name text);\nINSERT INTO plan VALUES ('free');\nSELECT 1;\n"
MORE = "-- migrate:up\nALTER TABLE plan ADD COLUMN price int;\nALTER TABLE users ALTER username TYPE text;\n"


@pytest.fixture
def own(tmp_path: Path) -> tuple[str, str]:
    """The option for a machine with migrations of its own."""
    (tmp_path / "1000_seed.sql").write_text(SEED)
    (tmp_path / "1001_more.sql").write_text(MORE)
    (tmp_path / "config.yaml").write_text(f"migrations: {{paths: ['{tmp_path}']}}\n")
    return ("--config", str(tmp_path / "config.yaml"))


@pytest.mark.one_server
def test_it_is_adopted_at_the_bundled_version_and_own_migrations_are_run(
    posduif: Posduif, server: PgServer, make: Make, name: str, own: tuple[str, str]
) -> None:
    make(UP[0])
    steps = posduif.json("tenant", "adopt", name, "-n", *own)["steps"]
    assert [step["subject"] for step in steps if step["action"] == "migrate"] == ["1000_seed", "1001_more"]
    done = posduif.json("tenant", "adopt", name, *own)
    assert done["schema_version"] == "1001"
    assert "migration 1001_more was applied" in done["changes"]
    assert server.sql("SELECT * FROM plan", database=name) == [("free", None)], "run, not copied"
    assert posduif.json("tenant", "adopt", name, *own)["changed"] is False


@pytest.mark.one_server
def test_own_migrations_that_another_tool_noted_are_not_run_again(
    posduif: Posduif, server: PgServer, make: Make, name: str, own: tuple[str, str]
) -> None:
    seed = SEED.removeprefix("-- migrate:up\n")
    make(f"{DBMATE}; {seed}; INSERT INTO schema_migrations VALUES ('1000')")
    posduif("tenant", "adopt", name, *own)
    assert server.sql("SELECT * FROM plan", database=name) == [("free", None)]
    states = {row["version"]: row["state"] for row in posduif.json("migrate", "list", name, *own)}
    assert set(states.values()) == {"applied"}


@pytest.mark.one_server
def test_data_that_a_migration_would_have_made_is_named(
    posduif: Posduif, server: PgServer, make: Make, name: str, own: tuple[str, str]
) -> None:
    """Somebody made by hand what the migrations make: they cannot be run any more."""
    make(UP[0] + "CREATE TABLE plan (name text, price int); ALTER TABLE users ALTER username TYPE text")
    changes = posduif.json("tenant", "adopt", name, *own)["changes"]
    (mind,) = [change for change in changes if "1000_seed is noted as applied and was not run" in change]
    assert "in lines 3, 4" in mind
    assert server.sql("SELECT count(*) FROM plan", database=name) == [(0,)]
    assert posduif.json("tenant", "show", name, *own)["pending"] == 0


@pytest.mark.one_server
def test_an_own_migration_that_fails_leaves_a_tenant_that_can_be_migrated(
    posduif: Posduif, server: PgServer, make: Make, name: str, own: tuple[str, str], tmp_path: Path
) -> None:
    (tmp_path / "1002_bad.sql").write_text("-- migrate:up\nCREATE TABLE invoices (id text);\n")
    make(UP[0] + "CREATE TABLE invoices (id int)")
    error = posduif("tenant", "adopt", name, *own, "-o", "json", code=7).error
    assert f"posduif migrate up {name}" in error["try"][-1]
    assert posduif.json("tenant", "show", name, *own)["schema_version"] == "1001"
    (tmp_path / "1002_bad.sql").unlink()
    posduif("migrate", "up", name, *own)


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
    assert done["own"] == ["table public.invoices"]
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
    odd = "OLD.read_at IS NULL OR OLD.status !="
    make(UP[0].replace("OLD.status !=", odd) + "CREATE VIEW x AS SELECT random() FROM users")
    lines = posduif("tenant", "adopt", name, code=5).err.splitlines()
    assert lines[0] == f"error: database {name} cannot be adopted as it is, for 3 reasons"
    more = "has `OLD.read_at IS NULL OR` more than the migrations'"
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


# As the sync engine's own script makes a database, where it differs from the migrations: a test of a column that is
# never null, tokens that go with the web user who made them, foreign keys in the columns, an extension.
CREATED_BY = "created_by UUID NOT NULL REFERENCES users (id)"
SCRIPT = """DO $$ BEGIN
    IF EXISTS (SELECT FROM pg_available_extensions WHERE name = 'uuid-ossp') THEN CREATE EXTENSION "uuid-ossp"; END IF;
END $$;""" + (
    UP[0]
    .replace("OLD.status != 'synced'", "(OLD.status IS NULL OR OLD.status != 'synced')")
    .replace("OLD.status != 'read'", "(OLD.status IS NULL OR OLD.status != 'read')")
    .replace(CREATED_BY, f"{CREATED_BY} ON DELETE CASCADE")
    .replace("fk_messages_sender", "messages_sender_id_fkey")
    .replace("fk_messages_recipient", "messages_recipient_id_fkey")
    .replace("users_enrollment_token_id_fkey", "fk_users_enrollment_token")
)
FURTHER = {
    "type": ("ALTER TABLE users ALTER device_id TYPE text", "column public.users.device_id"),
    "not null": ("ALTER TABLE messages ALTER content DROP NOT NULL", "column public.messages.content"),
    "default": ("ALTER TABLE messages ALTER status SET DEFAULT 'synced'", "column public.messages.status"),
    "check": (
        "ALTER TABLE messages DROP CONSTRAINT chk_status, ADD CONSTRAINT chk_status CHECK (status IN "
        "('pending_sync', 'synced', 'read', 'lost'))",
        "constraint public.messages.chk_status",
    ),
    "foreign key": (
        "ALTER TABLE messages DROP CONSTRAINT messages_sender_id_fkey, ADD CONSTRAINT fk_messages_sender "
        "FOREIGN KEY (sender_id) REFERENCES users (id)",
        "constraint public.messages.fk_messages_sender",
    ),
    "function": (
        "CREATE OR REPLACE FUNCTION update_updated_at_column() RETURNS trigger LANGUAGE plpgsql AS "
        "'BEGIN RETURN NEW; END'",
        "function public.update_updated_at_column()",
    ),
    "trigger": ("ALTER TABLE messages DISABLE TRIGGER update_messages_read_at", "trigger public.messages."),
    "index": ("DROP INDEX idx_users_device_id; CREATE INDEX idx_users_device_id ON users (username)",
              "index public.idx_users_device_id"),
    "security": ("ALTER TABLE users ENABLE ROW LEVEL SECURITY", "table public.users"),
    "unlogged": ("ALTER TABLE sync_metadata SET UNLOGGED", "table public.sync_metadata"),
}  # fmt: skip


def test_a_database_of_the_engine_s_own_script_comes_in_by_one_command(
    posduif: Posduif, server: PgServer, make: Make, name: str
) -> None:
    make(SCRIPT + ROWS)
    steps = posduif.json("tenant", "adopt", name, "-n")["steps"]
    adjusted = [
        "constraint public.enrollment_tokens.enrollment_tokens_created_by_fkey",
        "function public.update_read_at()",
        "function public.update_synced_at()",
        "index public.idx_messages_recipient",
    ]
    assert sorted(step["subject"] for step in steps if step["action"] == "adjust") == adjusted
    changes = posduif.json("tenant", "adopt", name)["changes"]
    assert sorted(change for change in changes if "as the migrations make it" in change) == [
        f"{subject} is now as the migrations make it" for subject in adjusted[:3]
    ]
    found = {f["level"] for f in posduif.json("tenant", "verify", name, code=None)}
    assert "critical" not in found
    drift = [f["message"] for f in posduif.json("migrate", "verify", name, code=None)]
    assert not [text for text in drift if re.search("update_|created_by|idx_", text)], drift


@pytest.mark.one_server
@pytest.mark.parametrize("difference", FURTHER)
def test_any_further_difference_is_refused_and_named(
    posduif: Posduif, server: PgServer, make: Make, name: str, difference: str
) -> None:
    sql, thing = FURTHER[difference]
    make(f"{SCRIPT}; {sql}")
    before = dump(server, name, "-C")
    error = posduif("tenant", "adopt", name, "-o", "json", code=5).error
    assert error["message"].endswith("for 1 reason"), error
    assert thing in error["why"]
    assert any(f"in {name}:" in hint for hint in error["try"]), "who types it, and where"
    assert dump(server, name, "-C") == before
    obey(server, error["try"])
    posduif("tenant", "adopt", name)


TIMES = """
INSERT INTO users (username, user_type) VALUES ('desk', 'web'), ('phone', 'mobile');
INSERT INTO enrollment_tokens (created_by, tenant_id, expires_at) SELECT id, 'x', now() - interval '2 hours' FROM users
    WHERE username = 'desk';
INSERT INTO enrollment_tokens (created_by, tenant_id, expires_at) SELECT id, 'x', now() + interval '1 hour' FROM users
    WHERE username = 'desk';
INSERT INTO messages (sender_id, recipient_id, content) SELECT a.id, b.id, 'hello ' || n
    FROM users a, users b, generate_series(1, 200) n WHERE a.username = 'desk' AND b.username = 'phone';
"""


def moments(server: PgServer, name: str, zone: str | None) -> list[Any]:
    """All times of the tenant's tables as instants, read as local ones of a zone."""
    found = []
    for table, column in (("users", "created_at"), ("users", "updated_at"), ("messages", "created_at"),
                          ("messages", "updated_at"), ("enrollment_tokens", "expires_at")):  # fmt: skip
        question = f"SELECT {column} AT TIME ZONE '{zone or 'UTC'}' FROM {table} ORDER BY id"
        found.append(server.sql(question, database=name))
    return found


@pytest.mark.parametrize("zone", ["Asia/Tokyo", "America/New_York"])
def test_times_of_another_zone_are_converted_or_kept_as_it_is_decided(
    posduif: Posduif, server: PgServer, make: Make, name: str, zone: str
) -> None:
    make(SCRIPT)
    server.sql(f"ALTER DATABASE {name} SET timezone = '{zone}'")
    server.sql(TIMES, database=name)
    before = moments(server, name, zone)
    error = posduif("tenant", "adopt", name, "-o", "json", code=5).error
    assert zone in error["why"]
    assert error["why"].count(" becomes ") == 3
    assert error["try"] == [
        f"to convert them: posduif tenant adopt {name} --times-from {zone}",
        f"to have them count as UTC as they are: posduif tenant adopt {name} --keep-times",
    ]
    plan = posduif.json("tenant", "adopt", name, "-n", "--times-from", zone)["steps"]
    assert {step["subject"] for step in plan if step["action"] == "convert times"} == {
        "public.users", "public.messages", "public.enrollment_tokens", "public.sync_metadata"
    }  # fmt: skip
    assert moments(server, name, zone) == before
    done = posduif.json("tenant", "adopt", name, "--times-from", zone.lower())
    assert moments(server, name, None) == before, "the same instants, open tokens included"
    assert sum(" becomes " in change for change in done["changes"]) == 3
    triggers = "SELECT tgname::text, tgenabled::text FROM pg_trigger WHERE NOT tgisinternal"
    assert {state for _, state in server.sql(triggers, database=name)} == {"O"}
    states = sorted(token["status"] for token in posduif.json("token", "list", name))
    assert states == ["active", "expired"], "a token that had expired stays so"


@pytest.mark.one_server
def test_kept_times_count_as_utc_and_open_tokens_are_listed(
    posduif: Posduif, server: PgServer, make: Make, name: str
) -> None:
    make(SCRIPT)
    server.sql(f"ALTER DATABASE {name} SET timezone = 'Asia/Tokyo'")
    server.sql(TIMES, database=name)
    before = moments(server, name, None)
    posduif("tenant", "adopt", name, "--keep-times", "--times-from", "UTC", code=2)
    done = posduif.json("tenant", "adopt", name, "--keep-times")
    assert moments(server, name, None) == before
    assert sum("is open and expires at" in change for change in done["changes"]) == 2


@pytest.mark.one_server
def test_a_zone_is_known_by_its_name_alone(posduif: Posduif, server: PgServer, make: Make, name: str) -> None:
    make(SCRIPT + ROWS)
    for wrong in ("Nowhere/City", "UTC+9", "+09:00", "'; DROP TABLE users; --"):
        error = posduif("tenant", "adopt", name, "--times-from", wrong, "-o", "json", code=2).error
        assert "is not a time zone" in error["message"]


@pytest.mark.one_server
def test_times_that_occur_twice_or_never_are_counted(posduif: Posduif, server: PgServer, make: Make, name: str) -> None:
    make(
        SCRIPT + "INSERT INTO users (username, user_type, last_seen) VALUES ('twice', 'web', '2025-10-26 02:30'), "
        "('never', 'web', '2025-03-30 02:30'), ('plain', 'web', '2025-07-01 12:00'), ('ever', 'web', 'infinity')"
    )
    changes = posduif.json("tenant", "adopt", name, "--times-from", "Europe/Berlin")["changes"]
    assert [change for change in changes if "of public.users with a time" in change] == [
        "1 row of public.users with a time that occurs twice in Europe/Berlin: the later one was taken",
        "1 row of public.users with a time that Europe/Berlin skips: PostgreSQL reads an hour later",
    ]
    seen = dict(server.sql("SELECT username::text, last_seen::text FROM users", database=name))
    assert seen == {"twice": "2025-10-26 01:30:00", "never": "2025-03-30 01:30:00", "plain": "2025-07-01 10:00:00",
                    "ever": "infinity"}  # fmt: skip


@pytest.mark.one_server
def test_an_empty_database_and_one_in_utc_are_asked_nothing(
    posduif: Posduif, server: PgServer, make: Make, name: str
) -> None:
    make(SCRIPT)
    server.sql(f"ALTER DATABASE {name} SET timezone = 'Asia/Tokyo'")
    done = posduif.json("tenant", "adopt", name)
    assert "its sessions used Asia/Tokyo" in done["changes"]


@pytest.mark.one_server
def test_a_login_with_a_zone_of_its_own_is_named(posduif: Posduif, server: PgServer, make: Make, name: str) -> None:
    make(SCRIPT + ROWS)
    server.sql(f"ALTER DATABASE {name} SET timezone = 'UTC'; ALTER ROLE {name}_app SET timezone = 'Asia/Tokyo'")
    error = posduif("tenant", "adopt", name, "-o", "json", code=5).error
    assert f"UTC, Asia/Tokyo ({name}_app)" in error["why"]


def test_a_killed_conversion_is_not_done_twice(posduif: Posduif, server: PgServer, make: Make, name: str) -> None:
    make(SCRIPT)
    server.sql(f"ALTER DATABASE {name} SET timezone = 'Asia/Tokyo'")
    server.sql(TIMES, database=name)
    before, instants = dump(server, name, "-C"), moments(server, name, "Asia/Tokyo")
    command = ("tenant", "adopt", name, "--times-from", "Asia/Tokyo")
    kill("before db.record.write 1", *command)
    assert dump(server, name, "-C") == before
    posduif(*command)
    assert posduif.json(*command)["changed"] is False
    assert moments(server, name, None) == instants


def test_a_superuser_s_database_comes_in_by_two_steps(
    posduif: Posduif, server: PgServer, name: str, request: pytest.FixtureRequest
) -> None:
    """As the engine's own set-up makes it: its login is a superuser and owns all."""
    server.sql(f"CREATE ROLE {name}_boss LOGIN SUPERUSER PASSWORD 'secret'")
    request.addfinalizer(lambda: server.sql(f"DROP ROLE {name}_boss"))
    server.sql(f"CREATE DATABASE {name} OWNER {name}_boss")
    request.addfinalizer(lambda: forget(server, name))
    server.sql(f"SET ROLE {name}_boss; {SCRIPT} {ROWS}; CREATE TABLE invoices (id int)", database=name)
    with server.connect(name, user=f"{name}_boss", application_name="old engine") as old:
        error = posduif("tenant", "adopt", name, "-o", "json", code=6).error
        assert f"GRANT {name}_boss" not in str(error), "never the advice to become a member of a superuser"
        assert f"posduif tenant adopt {name} --print-sql" in error["try"][0]
        before = dump(server, name, "-C")
        printed = posduif("tenant", "adopt", name, "--print-sql").out
        assert dump(server, name, "-C") == before
        by_psql(server, printed)
        done = posduif.json("tenant", "adopt", name)
        (other,) = [text for text in done["others"] if f"login {name}_boss, a superuser," in text]
        assert f"is connected (pid {old.info.backend_pid})" in other
        assert f"ALTER ROLE {name}_boss NOLOGIN;" in other
        suspended = posduif("tenant", "suspend", name, "-o", "json", code=10).error
        assert f"pid {old.info.backend_pid} ({name}_boss, old engine)" in suspended["why"]
        posduif("tenant", "resume", name)
    assert posduif("tenant", "adopt", name, "--print-sql").out == f"-- {name} is a tenant already\n"
    found = {f["level"] for f in posduif.json("tenant", "verify", name, code=None)}
    assert "critical" not in found


@pytest.mark.one_server
def test_an_old_login_and_its_slot_are_named_with_what_ends_them(
    posduif: Posduif, server: PgServer, make: Make, name: str
) -> None:
    make(SCRIPT)
    if server.sql("SHOW wal_level") != [("logical",)]:
        slot = None
    else:
        slot = f"posduif_sync_{name}"
        server.sql("SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", slot, database=name)
    with server.connect(name, user=f"{name}_app") as old:
        others = posduif.json("tenant", "adopt", name)["others"]
        (login,) = [text for text in others if f"login {name}_app" in text]
        assert f"(pid {old.info.backend_pid})" in login
        assert f"REVOKE ALL ON DATABASE {name} FROM {name}_app;" in login
    assert any(f"pg_drop_replication_slot('{slot}')" in text for text in others) is (slot is not None)
    assert obey(server, [login[login.index("a member of") :]]) == 1
    with pytest.raises(psycopg.OperationalError):
        server.connect(name, user=f"{name}_app")


def test_fifty_thousand_messages_come_in_while_an_engine_reads(
    posduif: Posduif, server: PgServer, make: Make, name: str
) -> None:
    make(SCRIPT)
    server.sql(f"ALTER DATABASE {name} SET timezone = 'Asia/Tokyo'")
    server.sql(TIMES.replace("200", "50000"), database=name)
    instants = moments(server, name, "Asia/Tokyo")
    with server.connect(name, user=f"{name}_app") as old:
        posduif("tenant", "adopt", name, "--times-from", "Asia/Tokyo")
        assert old.execute("SELECT count(*) FROM messages").fetchone() == (50_000,)
    assert moments(server, name, None) == instants


@pytest.fixture(params=["embedded", "system"])
def tokyo(request: pytest.FixtureRequest) -> Iterator[PgServer]:
    """A server as the engine's own set-up leaves it: its zone is Tokyo's, its login a superuser who owns all."""
    with private(programs(request), timezone="Asia/Tokyo") as server:
        server.sql("CREATE ROLE posduif LOGIN SUPERUSER; CREATE ROLE alice LOGIN CREATEDB CREATEROLE")
        server.sql("CREATE DATABASE tenant_1 OWNER posduif")
        server.sql(f"{SCRIPT} {TIMES}", database="tenant_1", user="posduif")
        yield server


def test_a_whole_deployment_comes_in_by_a_login_that_is_no_superuser(
    tokyo: PgServer, run_on: Callable[..., Posduif], tmp_path: Path
) -> None:
    alice = run_on(tokyo, user="alice")
    before = moments(tokyo, "tenant_1", "Asia/Tokyo")
    roles = tokyo.sql("SELECT rolname FROM pg_roles ORDER BY 1")
    error = alice("tenant", "adopt", "tenant_1", "--dry-run", "-o", "json", code=6).error
    assert tokyo.sql("SELECT rolname FROM pg_roles ORDER BY 1") == roles, "a dry run makes no role"
    assert "posduif tenant adopt tenant_1 --print-sql" in error["try"][0]
    by_psql(tokyo, alice("tenant", "adopt", "tenant_1", "--print-sql").out)
    error = alice("tenant", "adopt", "tenant_1", "-o", "json", code=5).error
    assert "sessions there use Asia/Tokyo" in error["why"], "of the server's own zone"
    done = alice.json("tenant", "adopt", "tenant_1", "--times-from", "Asia/Tokyo")
    assert done["changed"] is True
    assert moments(tokyo, "tenant_1", None) == before
    assert sorted(token["status"] for token in alice.json("token", "list", "tenant_1")) == ["active", "expired"]
    file = tmp_path / "tenant_1.yaml"
    with Redis() as redis:
        alice("tenant", "rotate-password", "tenant_1", "--engine-config", str(file))
        told = yaml.safe_load(file.read_text())
        told["redis"] |= {"host": "127.0.0.1", "port": redis.port}
        told["sse"]["port"] = free_port()
        file.write_text(yaml.safe_dump(told))
        with Engine(file) as engine:
            assert len(ask(engine.port, "/api/users", device="d")[1]) == 2
            for token, status in tokyo.sql(
                "SELECT token::text, expires_at > now() AT TIME ZONE 'UTC' FROM enrollment_tokens", database="tenant_1"
            ):
                assert ask(engine.port, f"/api/enrollment/{token}")[0] == (200 if status else 400)


@pytest.mark.one_server
def test_a_zone_by_which_rows_would_be_from_the_future_is_refused(
    posduif: Posduif, server: PgServer, make: Make, name: str
) -> None:
    make(SCRIPT + ROWS)  # written in UTC
    error = posduif("tenant", "adopt", name, "--times-from", "America/New_York", "-o", "json", code=5).error
    assert "would be in the future" in error["message"]
    server.sql("SET timezone = 'Asia/Tokyo'; UPDATE users SET username = username", database=name)
    changes = posduif.json("tenant", "adopt", name)["changes"]
    assert any("were they written in another zone than UTC?" in change for change in changes)
    again = posduif("tenant", "adopt", name, "--times-from", "Asia/Tokyo")
    assert "its times were left as they are" in again.err


@pytest.mark.one_server
def test_a_login_with_a_zone_of_its_own_is_told_to_lose_it(
    posduif: Posduif, server: PgServer, make: Make, name: str
) -> None:
    make(SCRIPT)
    server.sql(f"ALTER ROLE {name}_app SET timezone = 'Asia/Tokyo'")
    others = posduif.json("tenant", "adopt", name, "--url", "https://x.test", "--keep-times")["others"]
    (told,) = [text for text in others if "time zone Asia/Tokyo of its own" in text]
    server.sql(told.partition("types: ")[2])
    with server.connect(name, user=f"{name}_app") as app:
        assert app.execute("SHOW timezone").fetchone() == ("UTC",)


@pytest.mark.one_server
def test_who_reads_while_it_is_adopted_is_named(posduif: Posduif, server: PgServer, make: Make, name: str,
                                                monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    monkeypatch.setitem(LIMITS, "adoption", timedelta(milliseconds=200))
    make(SCRIPT)
    with server.connect(name, user=f"{name}_app") as reader, reader.transaction():
        reader.execute("SELECT count(*) FROM messages")
        error = posduif("tenant", "adopt", name, "-o", "json", code=10).error
        assert f"in the way: pid {reader.info.backend_pid} ({name}_app, idle in transaction)" in error["why"]
    posduif("tenant", "adopt", name)


@pytest.mark.one_server
def test_a_command_that_is_suggested_keeps_the_options(
    posduif: Posduif, server: PgServer, make: Make, name: str
) -> None:
    make(SCRIPT + "ALTER TABLE users ALTER device_id TYPE text;")
    error = posduif("tenant", "adopt", name, "--url", "https://x.test", "--keep-times", "-o", "json", code=5).error
    assert f"posduif tenant adopt {name} --url https://x.test --keep-times" in error["try"]
