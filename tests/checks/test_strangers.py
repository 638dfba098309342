"""Strangers' code: by no road does the owner of an adopted database become a superuser."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from posduif_cli.core.checks import rights
from posduif_cli.core.schema import grants
from posduif_cli.db import queries
from support.hints import by_psql, obey, typed
from support.runner import Posduif
from support.servers import PgServer
from support.sources import UP
from support.tenants import forget

# Takes on the role of the login, which SET ROLE does not take away, and makes its author a superuser.
PWN = """
CREATE FUNCTION pwn() RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN
    BEGIN
        EXECUTE 'SET ROLE ' || quote_ident(session_user);
        ALTER ROLE {mallory} SUPERUSER;
    EXCEPTION WHEN OTHERS THEN NULL; END;
    RETURN true;
END $$;
CREATE FUNCTION pwn(text) RETURNS text IMMUTABLE LANGUAGE sql AS 'SELECT CASE WHEN public.pwn() THEN $1 END';
CREATE FUNCTION pwn_row() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    PERFORM public.pwn(); RETURN coalesce(NEW, OLD);
END $$;
"""
CAST = "CREATE TYPE mood AS ENUM ('ok'); CREATE FUNCTION cast_mood(mood) RETURNS json LANGUAGE sql AS "
CAST += "'SELECT to_json(public.pwn())'; CREATE CAST (mood AS json) WITH FUNCTION cast_mood(mood); "
COMPARE = (
    "CREATE FUNCTION same(varchar, varchar) RETURNS boolean LANGUAGE sql AS 'SELECT pwn() AND $1::text = $2::text'; "
)
# What mallory makes, and what is refused.
ROADS = {
    "trigger": (
        "CREATE TRIGGER x BEFORE INSERT ON users FOR EACH ROW EXECUTE FUNCTION pwn_row()",
        "trigger public.users.x",
    ),
    "constraint trigger": (
        "CREATE CONSTRAINT TRIGGER x AFTER INSERT ON users DEFERRABLE INITIALLY DEFERRED "
        "FOR EACH ROW EXECUTE FUNCTION pwn_row()",
        "trigger public.users.x",
    ),
    "when of a trigger": (
        "CREATE TRIGGER x BEFORE INSERT ON users FOR EACH ROW WHEN (pwn()) EXECUTE FUNCTION update_updated_at_column()",
        "trigger public.users.x",
    ),
    "check": ("ALTER TABLE users ADD CONSTRAINT x CHECK (pwn())", "constraint public.users.x"),
    "ts_rewrite": (
        "ALTER TABLE users ADD CONSTRAINT x CHECK (ts_rewrite('a'::tsquery, 'select ''a''::tsquery, "
        "public.pwn()::text::tsquery') IS NOT NULL)",
        "constraint public.users.x",
    ),
    "query_to_xml": (
        "ALTER TABLE users ADD x text DEFAULT query_to_xml('select public.pwn()', true, true, '')::text",
        "column public.users.x",
    ),
    "table_to_xml": (
        "CREATE VIEW evil AS SELECT pwn(); "
        "ALTER TABLE users ADD x text DEFAULT table_to_xml('evil', true, true, '')::text",
        "column public.users.x",
    ),
    "default": ("ALTER TABLE users ADD x boolean DEFAULT pwn()", "column public.users.x"),
    "generated": ("ALTER TABLE users ADD x text GENERATED ALWAYS AS (pwn(username)) STORED", "column public.users.x"),
    "index": ("CREATE INDEX x ON users (pwn(username))", "index public.x"),
    "predicate": ("CREATE INDEX x ON users (id) WHERE pwn(username) = username", "index public.x"),
    "statistics": ("CREATE STATISTICS x ON id, (pwn(username)) FROM users", "statistics public.x"),
    "exclusion": (
        "ALTER TABLE users ADD CONSTRAINT x EXCLUDE USING btree ((pwn(username)) WITH =)",
        "constraint public.users.x",
    ),
    "policy": ("CREATE POLICY x ON users USING (pwn())", "policy public.users.x"),
    "rule": ("CREATE RULE x AS ON INSERT TO users DO ALSO SELECT pwn()", "rule public.users.x"),
    "view": ("CREATE VIEW x AS SELECT pwn() FROM users", "view public.x"),
    "domain": ("CREATE DOMAIN d AS text CHECK (pwn()); ALTER TABLE users ADD x d", "column public.users.x"),
    "domain over a domain that stays another's": (
        "CREATE DOMAIN d0 AS text; CREATE DOMAIN d AS d0; ALTER TABLE users ADD x d",
        "column public.users.x",
    ),
    "cast to a domain that stays another's": (
        "CREATE DOMAIN d0 AS text; CREATE INDEX i ON users ((username::d0))",
        "index public.i",
    ),
    "array of a domain": (
        "CREATE DOMAIN d AS text CHECK (pwn()); ALTER TABLE users ADD x d[]",
        "column public.users.x",
    ),
    "default of a domain": (
        "CREATE DOMAIN d AS boolean DEFAULT pwn(); ALTER TABLE users ADD x d",
        "column public.users.x",
    ),
    "cast to a domain": (
        "CREATE DOMAIN d AS text CHECK (pwn()); ALTER TABLE users ADD CONSTRAINT x CHECK (username::d IS NOT NULL)",
        "constraint public.users.x",
    ),
    "composite": ("CREATE TYPE c AS (n int); ALTER TABLE users ADD x c", "column public.users.x"),
    "cast of an enum": (
        CAST + "ALTER TABLE users ADD x mood DEFAULT 'ok', ADD CONSTRAINT x CHECK (to_jsonb(x) IS NOT NULL)",
        "constraint public.users.x",
    ),
    "operator": (
        COMPARE + "CREATE OPERATOR <<<>>> (FUNCTION = same, LEFTARG = varchar, RIGHTARG = varchar); "
        "ALTER TABLE users ADD CONSTRAINT x CHECK (username <<<>>> username)",
        "constraint public.users.x",
    ),
    "operator that passes for PostgreSQL's": (
        COMPARE + "CREATE OPERATOR = (FUNCTION = same, LEFTARG = varchar, RIGHTARG = varchar)",
        "operator public.=(character varying,character varying)",
    ),
    "function that passes for PostgreSQL's": (
        "CREATE FUNCTION lower(varchar) RETURNS text LANGUAGE sql AS 'SELECT pwn($1::text)'",
        "function public.lower(character varying)",
    ),
    "child": (
        "CREATE TABLE x () INHERITS (users); "
        "CREATE TRIGGER x BEFORE DELETE ON x FOR EACH ROW EXECUTE FUNCTION pwn_row()",
        "table public.x",
    ),
    "cascade": (
        "CREATE TABLE x (u uuid CONSTRAINT x REFERENCES users ON DELETE CASCADE); "
        "CREATE TRIGGER x AFTER DELETE ON x FOR EACH ROW EXECUTE FUNCTION pwn_row()",
        "constraint public.x.x",
    ),
    "foreign key of ours": (
        "CREATE TABLE x (id int PRIMARY KEY); ALTER TABLE users ADD x int CONSTRAINT x REFERENCES x",
        "constraint public.users.x",
    ),
    "progress": (
        "CREATE TABLE posduif_migration_progress (version text); CREATE TRIGGER x BEFORE INSERT ON "
        "posduif_migration_progress FOR EACH ROW EXECUTE FUNCTION pwn_row()",
        "trigger public.posduif_migration_progress.x",
    ),
    "versions": (
        "CREATE TABLE schema_migrations (version text); ALTER TABLE schema_migrations ADD CONSTRAINT x CHECK (pwn())",
        "constraint public.schema_migrations.x",
    ),
}  # fmt: skip
HARMLESS = {
    "check": "ALTER TABLE users ADD CHECK (length(username) > 1 AND username NOT LIKE 'a%')",
    "default": "ALTER TABLE users ADD x timestamptz DEFAULT now(), ADD y uuid DEFAULT gen_random_uuid(), ADD z serial, "
    "ADD t timestamptz DEFAULT clock_timestamp(), ADD i int GENERATED ALWAYS AS IDENTITY",
    "generated": "ALTER TABLE users ADD x text GENERATED ALWAYS AS (lower(username) || '!') STORED",
    "index": "CREATE INDEX x ON messages (lower(content)) WHERE status IN ('read', 'synced')",
    "statistics": "CREATE STATISTICS x ON user_type, (lower(username)) FROM users",
    "enum": "CREATE TYPE mood AS ENUM ('ok', 'sad'); "
    "ALTER TABLE users ADD mood mood DEFAULT 'ok' CHECK (mood <> 'sad')",
    "domain": "CREATE DOMAIN short AS text CHECK (length(VALUE) < 90); ALTER TABLE users ADD x short DEFAULT '-'",
    "another trigger": "CREATE TRIGGER x BEFORE UPDATE ON users FOR EACH ROW "
    "WHEN (OLD.username <> NEW.username) EXECUTE FUNCTION update_updated_at_column()",
    "view": "CREATE VIEW x AS SELECT lower(username), count(*) OVER () FROM users",
    "functions": "CREATE FUNCTION public.mine(int) RETURNS int LANGUAGE sql AS 'SELECT 1'",
}
Mallory = Callable[[str], None]


@pytest.fixture
def posduif(ops: Posduif) -> Posduif:
    return ops


@pytest.fixture
def mallory(server: PgServer, posduif: Posduif, name: str) -> Iterator[Mallory]:
    """Makes mallory's database, in the schema of the first migration; mallory has CREATEDB and nothing else."""
    role = f"{name}_mallory"

    def make(text: str) -> None:
        server.sql(f"CREATE ROLE {role} CREATEDB; GRANT {role} TO {name}_ops")
        with server.connect("postgres") as conn:
            conn.execute(f"SET SESSION AUTHORIZATION {role}".encode())
            conn.execute(f"CREATE DATABASE {name}".encode())
        with server.connect(name) as conn:
            conn.execute(f"SET SESSION AUTHORIZATION {role}".encode())
            conn.execute((UP[0] + PWN.replace("{mallory}", role) + text).encode())

    yield make
    forget(server, name)
    server.sql(f"DROP ROLE IF EXISTS {role}")


def is_superuser(server: PgServer, name: str) -> bool:
    return bool(server.sql("SELECT 1 FROM pg_roles WHERE rolname = %s AND rolsuper", f"{name}_mallory"))


def work(posduif: Posduif, name: str) -> None:
    """What administrators do with a tenant; each command writes to tables that mallory made."""
    posduif("user", "create", name, "desk", "--type", "web")
    posduif("token", "create", name, "--by", "desk")
    posduif("user", "create", name, "phone", "--type", "web")
    posduif("user", "delete", name, "phone", "--confirm", "phone")
    posduif("token", "purge", name)
    posduif("tenant", "verify", name, code=None)


@pytest.mark.parametrize(("text", "named"), ROADS.values(), ids=list(ROADS))
def test_no_road_leads_to_superuser(
    posduif: Posduif,
    run_on: Callable[..., Posduif],
    server: PgServer,
    mallory: Mallory,
    name: str,
    text: str,
    named: str,
) -> None:
    try:
        mallory(text)
    except psycopg.errors.FeatureNotSupported as missing:
        pytest.skip(str(missing))  # PostgreSQL may be built without XML
    dry = posduif("tenant", "adopt", name, "--url", "https://x.example.com", "-n", "-o", "json", code=5).error
    error = posduif("tenant", "adopt", name, "--url", "https://x.example.com", "-o", "json", code=5).error
    assert dry == error
    assert any(point.startswith(f"{named} ") for point in error["why"].split("; "))
    assert (f"--accept '{named}'" in " ".join(error["try"])) is not named.startswith("table ")
    assert "DROP TABLE" not in " ".join(error["try"])
    assert "DROP COLUMN" not in " ".join(error["try"])
    assert obey(server, error["try"]) >= 1
    assert not any("superuser" in typed(hint)[0] for hint in error["try"])
    posduif("tenant", "adopt", name, "--url", "https://x.example.com")
    work(run_on(server), name)  # with a superuser's session
    assert not is_superuser(server, name)


def test_an_operator_class_of_mallory_s_is_refused(
    posduif: Posduif, run_on: Callable[..., Posduif], server: PgServer, mallory: Mallory, name: str
) -> None:
    mallory("CREATE FUNCTION compare(text, text) RETURNS int IMMUTABLE LANGUAGE sql AS "
            "'SELECT CASE WHEN public.pwn() THEN bttextcmp($1, $2) END'")  # fmt: skip
    # Only a superuser may make one; then it is anyone's.
    server.sql("CREATE OPERATOR CLASS public.evil FOR TYPE text USING btree AS OPERATOR 1 <, OPERATOR 2 <=, "
               "OPERATOR 3 =, OPERATOR 4 >=, OPERATOR 5 >, FUNCTION 1 public.compare(text, text)",
               database=name)  # fmt: skip
    with server.connect(name) as conn:
        conn.execute(f"SET SESSION AUTHORIZATION {name}_mallory".encode())
        conn.execute("CREATE INDEX x ON users ((username::text) public.evil)")
    error = posduif("tenant", "adopt", name, "-o", "json", code=5).error
    assert "index public.x sorts by an operator class" in error["why"]
    obey(server, error["try"])
    posduif("tenant", "adopt", name, "--url", "https://x.example.com")
    work(run_on(server), name)
    assert not is_superuser(server, name)


def test_a_type_s_name_in_a_text_is_no_way_round(
    posduif: Posduif, server: PgServer, mallory: Mallory, name: str
) -> None:
    if server.version < 16:
        pytest.skip("pg_input_is_valid() came with PostgreSQL 16")
    mallory("CREATE DOMAIN d AS text CHECK (pwn()); "
            "ALTER TABLE users ADD CONSTRAINT x CHECK (pg_input_is_valid('x', 'public.d'))")  # fmt: skip
    error = posduif("tenant", "adopt", name, "-o", "json", code=5).error
    assert (
        "constraint public.users.x runs pg_input_is_valid(text,text), which works on what an argument names"
        in error["why"]
    )


@pytest.mark.parametrize("text", HARMLESS.values(), ids=list(HARMLESS))
def test_what_runs_only_postgresql_s_own_code_comes_in(
    posduif: Posduif, server: PgServer, mallory: Mallory, name: str, text: str
) -> None:
    mallory(text)
    assert posduif.json("tenant", "adopt", name)["changed"] is True
    code = [f for f in posduif.json("tenant", "verify", name, code=None) if f["check"] == "code.foreign"]
    assert code == []
    # Its owner could give the type code later on.
    owner = "SELECT DISTINCT pg_get_userbyid(typowner)::text FROM pg_type WHERE typname IN ('mood', 'short')"
    types = server.sql(owner, database=name)
    assert types in ([], [("posduif_admin",)])


def test_what_is_accepted_runs(
    posduif: Posduif, run_on: Callable[..., Posduif], server: PgServer, mallory: Mallory, name: str
) -> None:
    """That the roads are roads: accepted by name, one of them leads to superuser."""
    mallory("ALTER TABLE users ADD CONSTRAINT x CHECK (pwn()), ADD CONSTRAINT y CHECK (pwn())")
    x, y = ("--accept", "constraint public.users.x"), ("--accept", "constraint public.users.y")
    error = posduif("tenant", "adopt", name, *x, "-o", "json", code=5).error
    assert "constraint public.users.y runs public.pwn()" in error["why"]
    assert "constraint public.users.x" not in error["why"]
    steps = posduif.json("tenant", "adopt", name, *x, *y, "-n")["steps"]
    assert [s["subject"] for s in steps if s["action"] == "accept"] == [x[1], y[1]]
    done = posduif.json("tenant", "adopt", name, *x, *y)
    assert "function public.pwn() goes on to run, for posduif, too" in " ".join(done["changes"])
    owner = "SELECT pg_get_userbyid(proowner)::text FROM pg_proc WHERE oid = 'pwn()'::regprocedure"
    assert server.sql(owner, database=name) == [("posduif_admin",)]
    assert [f for f in posduif.json("tenant", "verify", name, code=None) if f["check"] == "code.foreign"] == []
    run_on(server)("user", "create", name, "desk", "--type", "web")
    assert is_superuser(server, name)
    server.sql(f"ALTER ROLE {name}_mallory NOSUPERUSER")


def test_a_function_with_its_owner_s_rights_is_never_taken_over(
    posduif: Posduif, server: PgServer, mallory: Mallory, name: str
) -> None:
    mallory("ALTER FUNCTION pwn() SECURITY DEFINER; ALTER TABLE users ADD CONSTRAINT x CHECK (pwn())")
    posduif("tenant", "adopt", name, "--accept", "constraint public.users.x")
    owner = "SELECT pg_get_userbyid(proowner)::text FROM pg_proc WHERE oid = 'pwn()'::regprocedure"
    assert server.sql(owner, database=name) == [(f"{name}_mallory",)]


def test_a_superuser_s_session_takes_in_nothing_that_posduif_did_not_make(
    posduif: Posduif, run_on: Callable[..., Posduif], server: PgServer, mallory: Mallory, name: str
) -> None:
    mallory("COMMENT ON SCHEMA public IS 'mine'")
    forged = 'posduif {"v":1,"tenant":"NAME","state":"active","nonce":1234567}'.replace("NAME", name)
    superuser = run_on(server)
    for trick in (
        "SELECT 1",
        # What mallory may do with CREATEROLE, and a superuser who follows the advice of others.
        f"CREATE ROLE {name}_engine; COMMENT ON ROLE {name}_engine IS '{forged}'",
        f"ALTER DATABASE {name} OWNER TO posduif_admin",
        f"ALTER DATABASE {name} OWNER TO postgres",
    ):
        server.sql(trick)
        for dry in ((), ("-n",)):
            error = superuser("tenant", "adopt", name, *dry, "-o", "json", code=9).error
            assert error["code"] == "superuser_session"
            login, then = error["try"]
            assert login.startswith("posduif server init --login NAME")
            assert "user=NAME" in then
            assert "posduif tenant adopt" in then
    assert server.sql("SELECT shobj_description(oid, 'pg_database') FROM pg_database WHERE datname = %s", name) == [
        (None,)
    ]


def test_nobody_is_advised_to_become_a_superuser(
    posduif: Posduif, server: PgServer, mallory: Mallory, name: str
) -> None:
    """As in a database that the engine's own script made with a superuser's login."""
    mallory("CREATE TABLE invoices (id serial); CREATE SCHEMA more; CREATE VIEW more.v AS SELECT 1 AS one")
    boss = f"{name}_boss"
    server.sql(f"CREATE ROLE {boss} SUPERUSER; CREATE ROLE {name}_deputy IN ROLE {boss}")
    try:
        server.sql(f"REASSIGN OWNED BY {name}_mallory TO {boss}", database=name)
        server.sql(f"ALTER TABLE invoices OWNER TO {name}_deputy; ALTER DATABASE {name} OWNER TO {boss}", database=name)
        for _ in range(4):
            result = posduif("tenant", "adopt", name, "-o", "json", code=None)
            if result.code == 0:
                break
            assert result.code == 6
            tries = result.error["try"]
            assert "GRANT " + boss not in " ".join(tries)
            assert "GRANT " + f"{name}_deputy" not in " ".join(tries)
            assert {typed(hint)[0] for hint in tries} <= {"a superuser", ""}
            if "--print-sql" in " ".join(tries):
                by_psql(server, posduif("tenant", "adopt", name, "--print-sql").out)
            else:
                assert obey(server, tries)
        assert result.code == 0
        posduif("user", "create", name, "desk", "--type", "web")
        assert server.sql("SELECT has_table_privilege('posduif_admin', 'invoices', 'SELECT')", database=name) == [
            (True,)
        ]
    finally:
        forget(server, name)
        server.sql(f"DROP ROLE {boss}, {name}_deputy")


EVIL = COMPARE + "CREATE OPERATOR = (FUNCTION = same, LEFTARG = varchar, RIGHTARG = varchar)"


def test_a_transaction_that_is_open_could_bring_code_afterwards(
    posduif: Posduif, server: PgServer, mallory: Mallory, name: str
) -> None:
    mallory("SELECT 1")
    with server.connect(name) as conn:
        conn.execute(f"SET SESSION AUTHORIZATION {name}_mallory".encode())
        with conn.transaction():
            conn.execute(EVIL.encode())
            error = posduif("tenant", "adopt", name, "-o", "json", code=10).error
            assert f"(pid {conn.info.backend_pid}) is open" in error["why"]
    assert "operator public.=" in posduif("tenant", "adopt", name, "-o", "json", code=5).error["why"]


def test_code_that_comes_while_a_database_is_taken_in_is_told(
    posduif: Posduif, server: PgServer, mallory: Mallory, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    mallory("SELECT 1")
    grant = grants.run

    def meanwhile(session: Any) -> None:
        with server.connect(name) as conn:
            conn.execute(f"SET SESSION AUTHORIZATION {name}_mallory".encode())
            conn.execute(EVIL.encode())
        grant(session)

    monkeypatch.setattr(grants, "run", meanwhile)
    error = posduif("tenant", "adopt", name, "-o", "json", code=5).error
    assert "was adopted" in error["message"]
    assert error["why"].startswith("operator public.=(character varying,character varying) could pass for PostgreSQL's")
    (found,) = [f for f in posduif.json("tenant", "verify", name, code=1) if f["check"] == "code.foreign"]
    obey(server, error["try"])
    assert found["fix"] in error["try"]
    assert [f for f in posduif.json("tenant", "verify", name, code=None) if f["check"] == "code.foreign"] == []


LATER = {
    "a superuser's": (
        "CREATE FUNCTION f() RETURNS boolean LANGUAGE sql AS 'SELECT true'; "
        "ALTER TABLE users ADD CONSTRAINT x CHECK (f())",
        "constraint public.users.x runs public.f()",
    ),
    "an administrator's": (
        "SET ROLE posduif_admin; CREATE FUNCTION f() RETURNS boolean LANGUAGE sql AS 'SELECT true'; "
        "ALTER TABLE users ADD CONSTRAINT x CHECK (f())",
        "constraint public.users.x runs public.f()",
    ),
    "PostgreSQL's": (
        "ALTER TABLE messages ALTER content SET DEFAULT query_to_xml('select 1', true, true, '')::text",
        "column public.messages.content runs query_to_xml(text,boolean,boolean,text)",
    ),
    "a function": (
        "CREATE OR REPLACE FUNCTION update_read_at() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END'",
        "trigger public.messages.update_messages_read_at runs public.update_read_at()",
    ),
    "a trigger": (
        "CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END'; "
        "CREATE TRIGGER x BEFORE INSERT ON enrollment_tokens FOR EACH ROW EXECUTE FUNCTION f()",
        "trigger public.enrollment_tokens.x runs public.f()",
    ),
}


@pytest.mark.parametrize(("text", "named"), LATER.values(), ids=list(LATER))
def test_what_comes_later_is_found_and_never_repaired(
    posduif: Posduif, server: PgServer, tenant: str, text: str, named: str
) -> None:
    server.sql(text, database=tenant)
    for repair in ((), ("--repair",), ()):
        (found,) = [
            f for f in posduif.json("tenant", "verify", tenant, *repair, code=1) if f["check"] == "code.foreign"
        ]
        assert found["message"].startswith(named)
        assert (found["level"], found["changed"]) == ("critical", False)
        assert typed(found["fix"])[1] == tenant
    obey(server, [found["fix"]])
    assert [f for f in posduif.json("tenant", "verify", tenant, code=None) if f["check"] == "code.foreign"] == []


def test_what_a_migration_of_one_s_own_makes_is_known(posduif: Posduif, tenant: str, tmp_path: Path) -> None:
    (tmp_path / "1000_mine.sql").write_text(
        "-- migrate:up\nCREATE FUNCTION mine() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';\n"
        "CREATE TRIGGER mine BEFORE INSERT ON users FOR EACH ROW EXECUTE FUNCTION mine();\n"
        "CREATE TABLE plan (id int PRIMARY KEY, jitter float DEFAULT random());\n"
        "ALTER TABLE users ADD nonce float DEFAULT random(), ADD plan int REFERENCES plan;\n"
    )
    config = tmp_path / "config.yaml"
    config.write_text(f"migrations: {{paths: ['{tmp_path}']}}\n")
    posduif("migrate", "up", tenant, "--config", str(config))
    found = posduif.json("tenant", "verify", tenant, "--config", str(config))
    assert [f["level"] for f in found] == ["ok"]
    # Another machine, without the folder, takes what posduif_admin owns for a migration's.
    assert [f["level"] for f in posduif.json("tenant", "verify", tenant)] == ["ok"]


def test_grants_sql_does_all_its_work_in_its_block() -> None:
    """`tenant verify` has the block say what it would do; the rest it asks the catalogs for, statement by statement."""
    before, _, block = grants.text().partition("DO $$")
    assert block.count("EXECUTE command") == block.count(rights.EXECUTE) == block.count("FOR command IN") == 2
    assert block.rstrip().endswith("$$;")
    statements = [line.removesuffix(";") for line in before.splitlines() if line and not line.startswith("--")]
    asked = queries.load("checks/rights")["list_missing_grants"]
    assert [statement for statement in statements if statement not in asked] == []
    assert len(statements) == 3
