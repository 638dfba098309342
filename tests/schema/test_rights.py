"""People's rights: what a member of support, health or cron can do by the commands, and cannot at all."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.errors import InsufficientPrivilege

from posduif_cli.core.schema import grants
from support.runner import Posduif
from support.servers import PgServer
from support.tenants import FORBIDDEN, forget

RunOn = Callable[..., Posduif]
TEXTS = "what the customer wrote"
ROLES = ("posduif_support", "posduif_health", "posduif_cron")
# Every column of the four tables that a role may read; a column that is not named here is closed.
READABLE = {
    "posduif_support": {
        "users": "id username user_type device_id online_status last_seen enrolled_at enrollment_token_id created_at "
        "updated_at",
        "messages": "id sender_id recipient_id status created_at updated_at synced_at read_at",
        "sync_metadata": "id device_id last_sync_timestamp pending_outgoing_count sync_status created_at updated_at "
        "last_synced_lsn",
        "enrollment_tokens": "id token created_by tenant_id expires_at used_at device_id created_at updated_at "
        "revoked_at label replaces",
    },
    "posduif_health": {
        "users": "id user_type device_id enrolled_at enrollment_token_id created_at",
        "messages": "id recipient_id status created_at updated_at synced_at read_at",
        "sync_metadata": "id device_id last_sync_timestamp pending_outgoing_count sync_status created_at updated_at "
        "last_synced_lsn",
        "enrollment_tokens": "id expires_at used_at device_id created_at revoked_at",
    },
}
READABLE["posduif_cron"] = READABLE["posduif_health"]
WRITABLE: dict[str, dict[str, set[str]]] = {
    "posduif_support": {
        "INSERT": {"users", "messages", "sync_metadata", "enrollment_tokens"},
        "UPDATE": {"users", "enrollment_tokens"},
        "DELETE": {"sync_metadata"},
    },
    "posduif_health": {"INSERT": set(), "UPDATE": set(), "DELETE": set()},
    "posduif_cron": {"INSERT": set(), "UPDATE": set(), "DELETE": {"enrollment_tokens"}},
}


@pytest.fixture
def member(server: PgServer, tenant: str) -> Iterator[Callable[[str], str]]:
    """Makes a login that is a member of one group and of nothing else; returns its name."""
    made: list[str] = []

    def make(group: str) -> str:
        login = f"{tenant}_{group.removeprefix('posduif_')}"
        server.sql(f"CREATE ROLE {login} LOGIN IN ROLE {group}")
        made.append(login)
        return login

    yield make
    for login in made:
        server.sql(f"DROP ROLE {login}")


@pytest.fixture
def talkative(posduif: Posduif, server: PgServer, tenant: str) -> str:
    """A tenant with a phone and a message between two users."""
    url = posduif.json("token", "create", tenant)["enrollment_url"]
    posduif("enroll", "complete", url, "--device", "phone-1", "--username", "Mia")
    posduif("message", "send", tenant, "--from", "desk", "--to", "Mia", TEXTS)
    server.sql("ANALYZE", database=tenant)
    return tenant


def test_the_support_desk_can_do_its_work(
    talkative: str, server: PgServer, run_on: RunOn, member: Callable[[str], str]
) -> None:
    desk = run_on(server, user=member("posduif_support"))
    assert [user["username"] for user in desk.json("user", "list", talkative)] == ["Mia", "desk"]
    assert desk.json("user", "show", talkative, "Mia")["device_id"] == "phone-1"
    made = desk.json("token", "create", talkative, "--for", "Ben's phone", "--by", "desk")
    assert "Ben's phone" in [token["label"] for token in desk.json("token", "list", talkative)]
    assert desk.json("token", "show", talkative, made["id"])["status"] == "active"
    assert desk.json("enroll", "complete", made["enrollment_url"], "--device", "phone-2", "--username", "Ben")
    spare = desk.json("token", "create", talkative)
    assert desk.json("token", "revoke", talkative, spare["id"])["changed"]
    sent = desk.json("message", "send", talkative, "--from", "desk", "--to", "Ben", "does it arrive?")
    assert (sent["content"], sent["status"]) == ("does it arrive?", "pending_sync")
    assert desk.json("message", "unread", talkative, "Ben")["unread"] == 1
    assert {device["device_id"] for device in desk.json("device", "list", talkative)} == {"phone-1", "phone-2"}
    assert talkative in {tenant["tenant"] for tenant in desk.json("tenant", "list")}
    assert desk.json("migrate", "status", talkative)


def test_monitoring_can_do_its_work(
    talkative: str, server: PgServer, run_on: RunOn, member: Callable[[str], str]
) -> None:
    server.sql("GRANT pg_monitor TO posduif_health")
    monitor = run_on(server, user=member("posduif_health"))
    report = monitor.json("health", talkative, code=None)
    assert report["coverage"]["visited"] == 1
    figures = {figure["tenant"]: figure for figure in report["tenants"]}[talkative]
    assert (figures["users"], figures["messages"], figures["pending_sync"]) == (2, 1, 1)
    assert not [finding for finding in report["findings"] if finding["level"] == "unknown"]
    assert TEXTS not in str(report)


@pytest.mark.one_server
def test_cron_can_do_its_work(own_server: PgServer, run_on: RunOn) -> None:
    """By a login that is in no other group, on a server that is closed to PUBLIC."""
    cli = run_on(own_server)
    cli("server", "init", "--close")
    own_server.sql("CREATE ROLE nightly LOGIN IN ROLE posduif_cron")
    for tenant in ("acme", "globex"):
        cli("tenant", "create", tenant, "--web-user", "desk", "--url", f"https://{tenant}.example.com")
        for _ in range(3):
            made = cli.json("token", "create", tenant)
        cli("enroll", "complete", tenant, made["token"], "--device", "phone-1", "--username", "Mia")
        own_server.sql("UPDATE enrollment_tokens SET expires_at = created_at - interval '8 days' WHERE id <> "
                       "(SELECT id FROM enrollment_tokens WHERE used_at IS NULL LIMIT 1)", database=tenant)  # fmt: skip
    cron = run_on(own_server, user="nightly")
    report = cron.json("health", "--deep")
    assert report["coverage"]["visited"] == report["coverage"]["tenants"] == 2
    [found] = report["findings"]
    assert (found["level"], found["fix"]) == ("unknown", "a superuser types: GRANT pg_monitor TO posduif_cron;")
    own_server.sql(found["fix"].partition(": ")[2])
    assert cron.json("health", "--deep")["findings"] == []
    planned = cron.json("token", "purge", "--all", "--dry-run")["steps"]
    assert [(step["action"], step["subject"]) for step in planned] == [
        ("delete 1 tokens", "acme"),
        ("delete 1 tokens", "globex"),
    ]
    assert [(row["tenant"], row["deleted"]) for row in cron.json("token", "purge", "--all")] == [
        ("acme", 1),
        ("globex", 1),
    ]
    nothing = cron("token", "purge", "--all")
    assert (nothing.out, nothing.err) == ("", "")
    assert {token["status"] for token in run_on(own_server).json("token", "list", "acme")} == {"active", "used"}
    run_on(own_server)("tenant", "verify", "--all")


def test_health_finds_the_same_as_cron(
    talkative: str, server: PgServer, run_on: RunOn, member: Callable[[str], str]
) -> None:
    server.sql("GRANT pg_monitor TO posduif_health, posduif_cron")
    reports = [run_on(server, user=member(role)).json("health", talkative, code=None) for role in ROLES[1:]]
    assert reports[0]["tenants"][0]["messages"] == reports[1]["tenants"][0]["messages"] == 1
    found = [{(f["check"], f["level"]) for f in report["findings"] if f["scope"] == "tenant"} for report in reports]
    assert found[0] == found[1]


@pytest.mark.parametrize("role", ROLES)
def test_texts_and_changes_are_refused_in_words(
    talkative: str, server: PgServer, run_on: RunOn, member: Callable[[str], str], role: str
) -> None:
    cli = run_on(server, user=member(role))
    listings = [("message", "inbox", talkative, "Mia"), ("message", "pending", talkative, "--device", "phone-1")]
    refused = [
        ("user", "delete", talkative, "Mia", "--confirm", "Mia"),
        ("tenant", "drop", talkative, "--confirm", talkative),
        ("tenant", "set", talkative, "--url", "https://other.example.com"),
        ("tenant", "create", f"{talkative}_b"),
        ("migrate", "up", talkative),
        ("migrate", "down", talkative, "--steps", "1", "--confirm", talkative),
    ]
    if role != "posduif_cron":
        refused += [("token", "purge", talkative, "--older-than", "1s")]
    if role != "posduif_support":
        refused += [
            ("token", "create", talkative, "--by", "desk"),
            ("message", "send", talkative, "--from", "desk", "--to", "Mia", "x"),
            ("user", "list", talkative),
            ("token", "list", talkative),
            *listings,
        ]
    else:
        for argv in listings:
            result = cli(*argv, "-o", "json", code=0)
            assert [message["content"] for message in json.loads(result.out)] == [None], argv
            assert TEXTS not in result.out + result.err, argv
            assert "texts are left out" in cli(*argv, code=0).err, argv
    for argv in refused:
        result = cli(*argv, code=6)
        assert "Traceback" not in result.err, argv
        assert TEXTS not in result.out + result.err, argv
        assert "try" in result.err, argv


def _login(server: PgServer, tenant: str, login: str) -> psycopg.Connection[Any]:
    return server.connect(tenant, user=login)


def _columns(server: PgServer, tenant: str) -> list[tuple[str, str]]:
    return server.sql(
        """SELECT c.relname, a.attname FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid
           WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'v', 'p', 'm', 'S', 'f')
             AND a.attnum > 0 AND NOT a.attisdropped""",
        database=tenant,
    )


@pytest.mark.parametrize("role", ROLES)
def test_no_other_column_is_readable(
    talkative: str, server: PgServer, member: Callable[[str], str], role: str, posduif: Posduif
) -> None:
    server.sql("SET ROLE posduif_admin; CREATE TABLE later (id int); ALTER TABLE messages ADD later text",
               database=talkative)  # fmt: skip
    with _login(server, talkative, member(role)) as conn:
        for table, column in _columns(server, talkative):
            may = column in READABLE[role].get(table, "").split()
            for query in (f"SELECT {column} FROM {table}", f"COPY (SELECT {column} FROM {table}) TO STDOUT"):
                try:
                    if query.startswith("COPY"):
                        with conn.cursor().copy(query.encode()) as copy:
                            list(copy)
                    else:
                        conn.execute(query.encode())
                    assert may, f"{role} may {query}"
                except InsufficientPrivilege:
                    assert not may, f"{role} may not {query}"
        assert conn.execute(
            "SELECT tablename, attname FROM pg_stats WHERE schemaname = 'public' "
            "AND (attname IN ('content', 'last_message_sent') OR tablename = 'schema_migrations')"
        ).fetchall() == []  # fmt: skip
        statistics = conn.execute("SELECT most_common_vals::text, histogram_bounds::text FROM pg_stats").fetchall()
        assert TEXTS not in str(statistics)
        for query in ("SELECT * FROM messages", "SELECT messages FROM messages", "TABLE users",
                      "UPDATE users SET last_message_sent = 'x' RETURNING last_message_sent",
                      "INSERT INTO messages (sender_id, recipient_id, content) SELECT id, id, 'x' FROM users "
                      "RETURNING content"):  # fmt: skip
            with pytest.raises(InsufficientPrivilege):
                conn.execute(query.encode())


@pytest.mark.parametrize("role", ROLES)
def test_nothing_else_may_be_changed(talkative: str, server: PgServer, member: Callable[[str], str], role: str) -> None:
    login = member(role)
    for table in ("users", "messages", "sync_metadata", "enrollment_tokens", "schema_migrations"):
        for kind in ("DELETE", "TRUNCATE", "REFERENCES", "TRIGGER"):
            held = "SELECT has_table_privilege(%s, %s, %s)"
            may = [(table in WRITABLE[role].get(kind, ()),)]
            assert server.sql(held, login, f"public.{table}", kind, database=talkative) == may, (table, kind)
        for kind in ("INSERT", "UPDATE"):
            may = server.sql("SELECT has_any_column_privilege(%s, %s, %s)", login, f"public.{table}", kind,
                             database=talkative)  # fmt: skip
            assert may == [(table in WRITABLE[role][kind],)], (table, kind)
    assert server.sql(
        """SELECT has_column_privilege(%(who)s, 'public.users', 'username', 'UPDATE'),
                  has_column_privilege(%(who)s, 'public.messages', 'content', 'UPDATE'),
                  has_column_privilege(%(who)s, 'public.messages', 'status', 'UPDATE'),
                  has_column_privilege(%(who)s, 'public.enrollment_tokens', 'token', 'INSERT'),
                  has_schema_privilege(%(who)s, 'public', 'CREATE'),
                  has_database_privilege(%(who)s, current_database(), 'TEMP, CREATE')""".replace(
            "%(who)s", f"'{login}'"
        ),
        database=talkative,
    ) == [(False,) * 6]
    with _login(server, talkative, login) as conn:
        for statement in FORBIDDEN:
            if statement.removeprefix("DELETE FROM ") in WRITABLE[role]["DELETE"]:
                continue
            try:
                conn.execute(statement.encode())
            except (InsufficientPrivilege, psycopg.errors.InvalidGrantOperation):
                continue
            pytest.fail(f"{role} may {statement}")


def test_engines_and_people_reach_nothing_that_is_not_theirs(
    talkative: str, posduif: Posduif, server: PgServer, member: Callable[[str], str]
) -> None:
    """Two tenants; each engine tries the other's database and rights, the groups each other's."""
    other, stranger = f"{talkative}_b", f"{talkative}_x"
    posduif("tenant", "create", other)
    server.sql(f"CREATE DATABASE {stranger}")
    server.sql(f"REVOKE ALL ON DATABASE {stranger} FROM PUBLIC")
    people = {member(role): role for role in ROLES}
    engines = {talkative: f"{talkative}_engine", other: f"{other}_engine"}
    try:
        for login in (*people, *engines.values()):
            with pytest.raises(psycopg.OperationalError, match="permission denied for database"):
                server.connect(stranger, user=login)
            reached = ["posduif_admin", "posduif_engine", *ROLES, *engines.values()]
            own = people.get(login, "posduif_engine")
            with server.connect(talkative if login != engines[other] else other, user=login) as conn:
                for role in reached:
                    if role in (own, login):
                        continue
                    with pytest.raises((InsufficientPrivilege, psycopg.errors.InvalidGrantOperation)):
                        conn.execute(f"SET ROLE {role}".encode())
                    with pytest.raises((InsufficientPrivilege, psycopg.errors.InvalidGrantOperation)):
                        conn.execute(f"GRANT {role} TO {login}".encode())
                for tenant, engine in engines.items():
                    for statement in (
                        f"DROP DATABASE {tenant}",
                        f"COMMENT ON DATABASE {tenant} IS 'posduif {{}}'",
                        f"ALTER DATABASE {tenant} SET timezone = 'Asia/Tokyo'",
                        f"GRANT CONNECT ON DATABASE {tenant} TO PUBLIC",
                        f"ALTER ROLE {engine} NOLOGIN",
                        f"COMMENT ON ROLE {engine} IS 'posduif {{}}'",
                        f"DROP ROLE {engine}",
                    ):
                        if login == engine and statement.startswith("GRANT"):
                            continue  # a mere warning for who has some right there; looked at below
                        try:
                            conn.execute(statement.encode())
                        except (InsufficientPrivilege, psycopg.errors.ObjectInUse):
                            continue
                        if not statement.startswith("GRANT"):
                            pytest.fail(f"{login} may {statement}")
        for tenant, engine in engines.items():
            assert server.sql("SELECT has_database_privilege('public', %s, 'CONNECT')", tenant) == [(False,)]
            for login in engines.values():
                held = server.sql("SELECT has_database_privilege(%s, %s, 'CONNECT')", login, tenant)
                assert held == [(login == engine,)], (login, tenant)
    finally:
        server.sql(f"DROP DATABASE {stranger}")
        forget(server, other)


@pytest.mark.one_server
def test_grants_mend_what_a_migration_made_anew(talkative: str, server: PgServer, member: Callable[[str], str]) -> None:
    login = member("posduif_support")
    server.sql("SET ROLE posduif_admin; ALTER TABLE messages DROP COLUMN read_at; "
               "ALTER TABLE messages ADD COLUMN read_at timestamp; REVOKE UPDATE ON users FROM posduif_engine",
               database=talkative)  # fmt: skip
    held = """SELECT has_column_privilege(%s, 'public.messages', 'read_at', 'SELECT'),
                     has_column_privilege(%s, 'public.users', 'username', 'UPDATE')"""
    assert server.sql(held, login, f"{talkative}_engine", database=talkative) == [(False, False)]
    server.sql(f"SET ROLE posduif_admin; {grants.text()}", database=talkative)
    assert server.sql(held, login, f"{talkative}_engine", database=talkative) == [(True, True)]


AFTERMATH = {
    "nothing to do with it": "ALTER TABLE users ADD COLUMN nickname text;",
    "a column again": "ALTER TABLE enrollment_tokens DROP COLUMN label, ADD COLUMN label text;",
    "a column under its old name": "ALTER TABLE enrollment_tokens RENAME label TO was; "
    "ALTER TABLE enrollment_tokens ADD COLUMN label text;",
    "a table again": "CREATE TABLE anew (LIKE sync_metadata INCLUDING ALL); DROP TABLE sync_metadata; "
    "ALTER TABLE anew RENAME TO sync_metadata;",
    "taken from the engine": "REVOKE INSERT ON messages FROM posduif_engine;",
    "taken from the desk": "REVOKE SELECT (label) ON enrollment_tokens FROM posduif_support;",
    "taken from cron": "REVOKE DELETE ON enrollment_tokens FROM posduif_cron;",
    "given to cron": "GRANT SELECT, DELETE ON enrollment_tokens TO posduif_cron; "
    "GRANT DELETE ON users TO posduif_cron;",
    "given to everyone": "GRANT SELECT ON users TO PUBLIC;",
    "a table again, for everyone": "CREATE TABLE anew (LIKE sync_metadata INCLUDING ALL); DROP TABLE sync_metadata; "
    "ALTER TABLE anew RENAME TO sync_metadata; GRANT SELECT, INSERT, UPDATE ON sync_metadata TO PUBLIC;",
    "a column for everyone": "GRANT SELECT (content) ON messages TO PUBLIC;",
    "by a function": "CREATE FUNCTION f() RETURNS void LANGUAGE sql AS 'GRANT SELECT ON users TO PUBLIC'; SELECT f();",
    "taken where it hardly shows": "DO $$BEGIN EXECUTE format('revoke all on %I from posduif_engine', 'users'); END$$;",
}


@pytest.mark.one_server
@pytest.mark.parametrize("mode", ["", " transaction:false"])
@pytest.mark.parametrize("sql", AFTERMATH.values(), ids=list(AFTERMATH))
def test_after_any_migration_rights_are_those_of_a_new_tenant(
    posduif: Posduif, server: PgServer, tenant: str, tmp_path: Path, sql: str, mode: str
) -> None:
    def held() -> dict[Any, tuple[Any, ...]]:
        rows = server.sql(
            """SELECT relname::text, attname::text, role, has_column_privilege(role, c.oid, attnum, 'SELECT'),
                      has_column_privilege(role, c.oid, attnum, 'INSERT'),
                      has_column_privilege(role, c.oid, attnum, 'UPDATE'),
                      has_table_privilege(role, c.oid, 'DELETE')
               FROM pg_class c JOIN pg_attribute ON attrelid = c.oid AND attnum > 0 AND NOT attisdropped
               CROSS JOIN unnest('{posduif_engine,posduif_support,posduif_health,posduif_cron,
                                        posduif_backup,public}'::text[]) AS role
               WHERE relname IN ('users', 'messages', 'sync_metadata', 'enrollment_tokens') AND relkind = 'r'""",
            database=tenant,
        )
        return {row[:3]: row[3:] for row in rows}

    before = held()
    (tmp_path / "1000_more.sql").write_text(f"-- migrate:up{mode}\n{sql}\n")
    (tmp_path / "config.yaml").write_text(f"migrations: {{paths: ['{tmp_path}']}}\n")
    posduif("migrate", "up", tenant, "--config", str(tmp_path / "config.yaml"))
    after = held()
    assert {key: after[key] for key in before} == before


@pytest.mark.one_server
def test_a_column_that_is_added_again_by_another_section_gets_its_rights(
    posduif: Posduif, server: PgServer, talkative: str, member: Callable[[str], str], tmp_path: Path
) -> None:
    login = member("posduif_support")
    config = tmp_path / "config.yaml"
    config.write_text(f"migrations: {{paths: ['{tmp_path}']}}\n")
    (tmp_path / "1000_drop.sql").write_text(
        "-- migrate:up\nALTER TABLE users DROP COLUMN last_seen;\n"
        "-- migrate:down\nALTER TABLE users ADD COLUMN last_seen timestamp;\n"
    )
    held = "SELECT has_column_privilege(%s, 'public.users', 'last_seen', 'SELECT')"
    posduif("migrate", "up", talkative, "--config", str(config))
    posduif("migrate", "down", talkative, "--steps", "1", "--confirm", talkative, "--config", str(config))
    assert server.sql(held, login, database=talkative) == [(True,)]
    (tmp_path / "1001_add.sql").write_text(
        '-- migrate:up\nALTER TABLE "users" ADD IF NOT EXISTS "last_seen" timestamp;\n'
    )
    posduif("migrate", "up", talkative, "--config", str(config))
    assert server.sql(held, login, database=talkative) == [(True,)]


@pytest.mark.one_server
def test_a_server_without_the_groups_gets_them(own_server: PgServer, run_on: RunOn) -> None:
    """A fleet of an older posduif: its migrations go on, and the next create makes the groups."""
    cli = run_on(own_server)
    cli("tenant", "create", "acme")
    for role in ROLES:
        own_server.sql(f"DROP OWNED BY {role}", database="acme")
        own_server.sql(f"REVOKE ALL ON DATABASE acme FROM {role}; DROP ROLE {role}")
    own_server.sql(f"SET ROLE posduif_admin; {grants.text()}", database="acme")
    cli("tenant", "create", "globex")
    assert own_server.sql("SELECT count(*) FROM pg_roles WHERE rolname = ANY (%s)", list(ROLES)) == [(3,)]


def _as_at_0003(cli: Posduif, server: PgServer, *tenants: str) -> None:
    """Take a server back to where it was before there was a posduif_cron."""
    for tenant in tenants:
        cli("migrate", "down", tenant, "--to", "0003", "--bundled", "--confirm", tenant)
        server.sql("DROP OWNED BY posduif_cron; REVOKE DELETE ON sync_metadata FROM posduif_support; "
                   "REVOKE UPDATE (device_id, enrolled_at, enrollment_token_id) ON users FROM posduif_support",
                   database=tenant)  # fmt: skip
    server.sql("DROP ROLE posduif_cron")


@pytest.mark.one_server
def test_a_tenant_at_0003_gets_the_newer_rights_by_migrate_up(own_server: PgServer, run_on: RunOn) -> None:
    cli = run_on(own_server)
    for tenant in ("acme", "globex"):
        cli("tenant", "create", tenant, "--web-user", "desk", "--url", f"https://{tenant}.example.com")
    _as_at_0003(cli, own_server, "acme", "globex")
    for command in (("server", "init", "--print-sql"), ("doctor", "-o", "json")):
        assert "posduif_cron" in cli(*command, code=None).out
    cli("migrate", "status", "--all", "--check", code=1)
    cli("migrate", "up", "acme")
    cli("tenant", "suspend", "globex")
    own_server.sql("DROP OWNED BY posduif_cron", database="acme")
    own_server.sql("DROP ROLE posduif_cron")
    cli("tenant", "resume", "globex")  # which makes the group, too
    cli("tenant", "verify", "globex")
    assert "posduif_cron" in cli("tenant", "verify", "acme", code=1).out
    cli("tenant", "verify", "acme", "--repair")
    own_server.sql("CREATE ROLE nightly LOGIN IN ROLE posduif_cron; CREATE ROLE sam LOGIN IN ROLE posduif_support")
    cron = run_on(own_server, user="nightly")
    cron("token", "purge", "--all", "--older-than", "0s")
    assert cron.json("health", "--deep")["coverage"]["visited"] == 2
    for tenant in ("acme", "globex"):
        with own_server.connect(tenant, user="sam") as conn:
            conn.execute("UPDATE users SET device_id = NULL, enrolled_at = NULL, enrollment_token_id = NULL")
            conn.execute("DELETE FROM sync_metadata WHERE device_id = 'phone-1'")


def test_an_inbox_has_an_index_of_its_own(posduif: Posduif, server: PgServer, talkative: str) -> None:
    found = "SELECT indexname::text FROM pg_indexes WHERE indexname IN ('idx_messages_inbox', 'idx_messages_recipient')"
    assert server.sql(found, database=talkative) == [("idx_messages_inbox",)]
    posduif("migrate", "down", talkative, "--to", "0003", "--bundled", "--confirm", talkative)
    assert server.sql(found, database=talkative) == [("idx_messages_recipient",)]
    posduif("migrate", "up", talkative)
    assert server.sql(found, database=talkative) == [("idx_messages_inbox",)]


@pytest.mark.one_server
def test_a_group_of_someone_else_is_a_conflict(own_server: PgServer, run_on: RunOn) -> None:
    own_server.sql("CREATE ROLE posduif_support LOGIN")
    result = run_on(own_server)("tenant", "create", "acme", code=5)
    assert "posduif_support exists" in result.err
    assert own_server.sql("SELECT count(*) FROM pg_database WHERE datname = 'acme'") == [(0,)]
