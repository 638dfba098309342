"""The tenant schema, as the catalog tells it and as it behaves, against what its owner specified."""

import re
import uuid
from typing import Any

import psycopg
import pytest

from support.servers import PgServer

TIMESTAMP = "timestamp without time zone"
NAME = "character varying(255)"
WORD = "character varying(50)"

# table -> column -> type, may be null, default
COLUMNS: dict[str, dict[str, tuple[str, bool, str | None]]] = {
    "users": {
        "id": ("uuid", False, "gen_random_uuid()"),
        "username": (NAME, False, None),
        "user_type": (WORD, False, None),
        "device_id": (NAME, True, None),
        "online_status": ("boolean", True, "false"),
        "last_seen": (TIMESTAMP, True, None),
        "enrolled_at": (TIMESTAMP, True, None),
        "enrollment_token_id": ("uuid", True, None),
        "created_at": (TIMESTAMP, True, "now()"),
        "updated_at": (TIMESTAMP, True, "now()"),
        "last_message_sent": ("text", True, None),
    },
    "messages": {
        "id": ("uuid", False, "gen_random_uuid()"),
        "sender_id": ("uuid", False, None),
        "recipient_id": ("uuid", False, None),
        "content": ("text", False, None),
        "status": (WORD, False, "'pending_sync'::character varying"),
        "created_at": (TIMESTAMP, True, "now()"),
        "updated_at": (TIMESTAMP, True, "now()"),
        "synced_at": (TIMESTAMP, True, None),
        "read_at": (TIMESTAMP, True, None),
    },
    "sync_metadata": {
        "id": ("uuid", False, "gen_random_uuid()"),
        "device_id": (NAME, False, None),
        "last_sync_timestamp": (TIMESTAMP, True, None),
        "pending_outgoing_count": ("integer", True, "0"),
        "sync_status": (WORD, True, "'idle'::character varying"),
        "created_at": (TIMESTAMP, True, "now()"),
        "updated_at": (TIMESTAMP, True, "now()"),
        "last_synced_lsn": ("pg_lsn", True, None),
    },
    "enrollment_tokens": {
        "id": ("uuid", False, "gen_random_uuid()"),
        "token": ("uuid", False, "gen_random_uuid()"),
        "created_by": ("uuid", False, None),
        "tenant_id": (NAME, False, None),
        "expires_at": (TIMESTAMP, False, None),
        "used_at": (TIMESTAMP, True, None),
        "device_id": (NAME, True, None),
        "created_at": (TIMESTAMP, True, "now()"),
        "updated_at": (TIMESTAMP, True, "now()"),
        "revoked_at": (TIMESTAMP, True, None),
        "label": ("text", True, None),
        "replaces": ("uuid", True, None),
    },
    "schema_migrations": {
        "version": ("text", False, None),
        "checksum": ("text", True, None),
        "applied_at": ("timestamp with time zone", True, "now()"),
        "duration_ms": ("integer", True, None),
        "applied_by": ("text", True, "SESSION_USER"),
    },
}

# The constraints, as (table, name): definition.
CONSTRAINTS = {
    ("users", "users_pkey"): "PRIMARY KEY (id)",
    ("users", "users_username_key"): "UNIQUE (username)",
    ("users", "chk_user_type"): "CHECK user_type web mobile",
    ("users", "users_enrollment_token_id_fkey"): "FOREIGN KEY (enrollment_token_id) REFERENCES enrollment_tokens(id)",
    ("messages", "messages_pkey"): "PRIMARY KEY (id)",
    ("messages", "chk_status"): "CHECK status pending_sync synced read",
    ("messages", "fk_messages_sender"): "FOREIGN KEY (sender_id) REFERENCES users(id) ON DELETE CASCADE",
    ("messages", "fk_messages_recipient"): "FOREIGN KEY (recipient_id) REFERENCES users(id) ON DELETE CASCADE",
    ("sync_metadata", "sync_metadata_pkey"): "PRIMARY KEY (id)",
    ("sync_metadata", "sync_metadata_device_id_key"): "UNIQUE (device_id)",
    ("sync_metadata", "chk_sync_status"): "CHECK sync_status idle syncing error",
    ("enrollment_tokens", "enrollment_tokens_pkey"): "PRIMARY KEY (id)",
    ("enrollment_tokens", "enrollment_tokens_token_key"): "UNIQUE (token)",
    ("enrollment_tokens", "enrollment_tokens_created_by_fkey"): "FOREIGN KEY (created_by) REFERENCES users(id)",
    ("schema_migrations", "schema_migrations_pkey"): "PRIMARY KEY (version)",
}

# The statements of the specification word for word, the one that the engine wants beside them, and for the first
# index on the recipient alone the one that has the inbox in its order.
INDEXES = """
CREATE INDEX idx_users_user_type ON users(user_type);
CREATE INDEX idx_users_device_id ON users(device_id) WHERE device_id IS NOT NULL;
CREATE INDEX idx_users_enrollment_token ON users(enrollment_token_id) WHERE enrollment_token_id IS NOT NULL;
CREATE INDEX idx_messages_sender ON messages(sender_id);
CREATE INDEX idx_messages_inbox ON messages(recipient_id, created_at DESC);
CREATE INDEX idx_messages_recipient_status ON messages(recipient_id, status);
CREATE INDEX idx_messages_status ON messages(status);
CREATE INDEX idx_messages_created_at ON messages(created_at DESC);
CREATE INDEX idx_sync_metadata_device ON sync_metadata(device_id);
CREATE INDEX idx_sync_metadata_status ON sync_metadata(sync_status);
CREATE INDEX idx_enrollment_tokens_token ON enrollment_tokens(token);
CREATE INDEX idx_enrollment_tokens_created_by ON enrollment_tokens(created_by);
CREATE INDEX idx_enrollment_tokens_expires_at ON enrollment_tokens(expires_at);
CREATE INDEX idx_enrollment_tokens_used_at ON enrollment_tokens(used_at) WHERE used_at IS NULL;
CREATE INDEX idx_sync_metadata_lsn ON sync_metadata(last_synced_lsn) WHERE last_synced_lsn IS NOT NULL;
"""

TRIGGERS = """
CREATE TRIGGER update_users_updated_at BEFORE UPDATE ON users
    FOR EACH ROW EXECUTE FUNCTION update_updated_at_column();
CREATE TRIGGER update_messages_updated_at BEFORE UPDATE ON messages
    FOR EACH ROW EXECUTE FUNCTION update_updated_at_column();
CREATE TRIGGER update_messages_synced_at BEFORE UPDATE ON messages
    FOR EACH ROW EXECUTE FUNCTION update_synced_at();
CREATE TRIGGER update_messages_read_at BEFORE UPDATE ON messages
    FOR EACH ROW EXECUTE FUNCTION update_read_at();
CREATE TRIGGER update_sync_metadata_updated_at BEFORE UPDATE ON sync_metadata
    FOR EACH ROW EXECUTE FUNCTION update_updated_at_column();
CREATE TRIGGER update_enrollment_tokens_updated_at BEFORE UPDATE ON enrollment_tokens
    FOR EACH ROW EXECUTE FUNCTION update_updated_at_column();
"""


def test_every_column_has_its_type_nullability_and_default(server: PgServer, tenant: str) -> None:
    found: dict[str, dict[str, tuple[str, bool, str | None]]] = {}
    for table, column, kind, nullable, default in server.sql(
        """SELECT c.relname, a.attname, format_type(a.atttypid, a.atttypmod), NOT a.attnotnull,
                  pg_get_expr(d.adbin, d.adrelid)
           FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid
           LEFT JOIN pg_attrdef d ON d.adrelid = c.oid AND d.adnum = a.attnum
           WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p', 'v', 'm', 'f', 'S')
             AND a.attnum > 0 AND NOT a.attisdropped""",
        database=tenant,
    ):
        found.setdefault(table, {})[column] = (kind, nullable, default)
    assert found == COLUMNS


def test_every_constraint_stands_once_under_its_name(server: PgServer, tenant: str) -> None:
    rows = server.sql(
        """SELECT conrelid::regclass::text, conname, contype::text, pg_get_constraintdef(oid),
                  convalidated, condeferrable
           FROM pg_constraint WHERE connamespace = 'public'::regnamespace AND contype <> 'n'""",
        database=tenant,
    )
    found = {}
    for table, constraint, kind, definition, validated, deferrable in rows:
        assert (validated, deferrable) == (True, False), constraint
        if kind == "c":
            # IN deparses as = ANY with casts that differ between versions: the words are what counts.
            column = re.findall(r"\((\w+)\)::text", definition)
            definition = " ".join(["CHECK", column[0], *re.findall(r"'(\w+)'", definition)])
        found[table, constraint] = definition
    assert found == CONSTRAINTS
    assert len(rows) == len(CONSTRAINTS)


def test_every_index_has_its_columns_order_and_predicate(server: PgServer, tenant: str) -> None:
    expected = {}
    for name, table, columns, predicate in re.findall(
        r"CREATE INDEX (\w+) ON (\w+)\(([^)]*)\)(?: WHERE ([^;]+))?;", INDEXES
    ):
        expected[name] = (table, [column.strip() for column in columns.split(",")], predicate or None)
    assert len(expected) == INDEXES.count("CREATE INDEX") == 15

    found = {}
    for name, table, columns, predicate, *flags in server.sql(
        """SELECT c.relname, i.indrelid::regclass::text,
                  array(SELECT pg_get_indexdef(i.indexrelid, n, true)
                               || CASE i.indoption[n - 1] WHEN 0 THEN '' WHEN 3 THEN ' DESC' ELSE ' ?' END
                        FROM generate_series(1, i.indnkeyatts) n),
                  pg_get_expr(i.indpred, i.indrelid), i.indisvalid AND i.indisready, i.indisunique, am.amname,
                  i.indnatts = i.indnkeyatts
           FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid JOIN pg_am am ON am.oid = c.relam
           WHERE c.relnamespace = 'public'::regnamespace
             AND NOT EXISTS (SELECT 1 FROM pg_constraint k
                             WHERE k.conindid = i.indexrelid AND k.contype IN ('p', 'u'))""",
        database=tenant,
    ):
        found[name] = (table, columns, predicate and predicate.strip("()"))
        assert flags == [True, False, "btree", True], name
    assert found == expected


def test_every_trigger_is_there_and_enabled(server: PgServer, tenant: str) -> None:
    expected = {" ".join(text.split()) for text in TRIGGERS.split(";") if text.strip()}
    found = server.sql(
        """SELECT replace(pg_get_triggerdef(oid), ' ON public.', ' ON '), tgenabled::text
           FROM pg_trigger WHERE NOT tgisinternal""",
        database=tenant,
    )
    assert {re.sub(r"FUNCTION public\.", "FUNCTION ", text) for text, _ in found} == expected
    assert {enabled for _, enabled in found} == {"O"}
    assert len(found) == len(expected) == 6


def test_everything_belongs_to_posduif_admin_and_nothing_is_for_the_public(server: PgServer, tenant: str) -> None:
    owners = server.sql(
        """SELECT 'class', relname::text, relowner::regrole::text FROM pg_class
           WHERE relnamespace = 'public'::regnamespace
           UNION ALL SELECT 'proc', proname::text, proowner::regrole::text FROM pg_proc
           WHERE pronamespace = 'public'::regnamespace
           UNION ALL SELECT 'database', datname::text, datdba::regrole::text FROM pg_database
           WHERE datname = current_database()""",
        database=tenant,
    )
    assert {owner for _, _, owner in owners} == {"posduif_admin"}
    assert {name for kind, name, _ in owners if kind == "proc"} == {
        "update_updated_at_column",
        "update_synced_at",
        "update_read_at",
    }
    for_all = server.sql(
        """SELECT relname FROM pg_class, aclexplode(relacl) a
           WHERE relnamespace = 'public'::regnamespace AND a.grantee = 0
           UNION SELECT proname FROM pg_proc, aclexplode(coalesce(proacl, acldefault('f', proowner))) a
           WHERE pronamespace = 'public'::regnamespace AND a.grantee = 0
           UNION SELECT nspname FROM pg_namespace, aclexplode(nspacl) a WHERE nspname = 'public' AND a.grantee = 0""",
        database=tenant,
    )
    assert for_all == []


def test_the_engine_may_what_it_needs_and_no_more(server: PgServer, tenant: str) -> None:
    rights = server.sql(
        """SELECT relname::text, right_ FROM pg_class,
                  unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE', 'TRUNCATE', 'REFERENCES', 'TRIGGER']) right_
           WHERE relnamespace = 'public'::regnamespace AND relkind = 'r' AND has_table_privilege(%s, oid, right_)""",
        f"{tenant}_engine",
        database=tenant,
    )
    tables = ("users", "messages", "sync_metadata", "enrollment_tokens")
    assert sorted(rights) == sorted(
        [(table, "SELECT") for table in tables] + [(table, "INSERT") for table in tables if table != "users"]
    )
    columns = server.sql(
        """SELECT kind, attrelid::regclass::text, string_agg(attname, ' ' ORDER BY attnum)
           FROM pg_attribute, unnest(ARRAY['INSERT', 'UPDATE']) kind
           WHERE attrelid = ANY (%s::regclass[]) AND attnum > 0 AND NOT attisdropped
             AND has_column_privilege(%s, attrelid, attnum, kind) AND NOT has_table_privilege(%s, attrelid, kind)
           GROUP BY 1, 2 ORDER BY 1, 2""",
        [f"public.{table}" for table in tables],
        f"{tenant}_engine",
        f"{tenant}_engine",
        database=tenant,
    )
    assert columns == [
        ("INSERT", "users", "id username user_type device_id online_status enrolled_at enrollment_token_id created_at "
                            "updated_at"),
        ("UPDATE", "enrollment_tokens", "used_at device_id updated_at"),
        ("UPDATE", "messages", "status updated_at synced_at read_at"),
        ("UPDATE", "sync_metadata", "last_sync_timestamp pending_outgoing_count sync_status updated_at "
                                    "last_synced_lsn"),
        ("UPDATE", "users", "username user_type device_id online_status last_seen enrolled_at enrollment_token_id "
                            "updated_at last_message_sent"),
    ]  # fmt: skip


def test_who_steals_an_engine_s_password_rewrites_no_message_and_prolongs_no_token(
    server: PgServer, tenant: str
) -> None:
    server.sql(f"ALTER ROLE {tenant}_engine PASSWORD 'stolen'")
    server.sql(
        """INSERT INTO users (username, user_type) VALUES ('clerk', 'web');
           INSERT INTO messages (sender_id, recipient_id, content) SELECT id, id, 'as it was' FROM users;
           INSERT INTO enrollment_tokens (created_by, tenant_id, expires_at) SELECT id, 'x', now() FROM users""",
        database=tenant,
    )
    with server.connect(tenant, user=f"{tenant}_engine", password="stolen") as conn:
        for statement in (
            "UPDATE messages SET content = 'forged'",
            "UPDATE messages SET sender_id = recipient_id",
            "UPDATE messages SET created_at = now()",
            "UPDATE enrollment_tokens SET expires_at = expires_at + interval '1 year'",
            "UPDATE enrollment_tokens SET token = gen_random_uuid()",
            "UPDATE enrollment_tokens SET revoked_at = NULL",
            "UPDATE users SET id = gen_random_uuid()",
        ):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                conn.execute(statement.encode())
        conn.execute("UPDATE messages SET status = 'synced', synced_at = NOW(), updated_at = NOW()")
        conn.execute("UPDATE enrollment_tokens SET used_at = NOW(), device_id = 'd', updated_at = NOW()")


class Rows:
    """Puts rows into a tenant, as an owner of its tables."""

    def __init__(self, server: PgServer, tenant: str) -> None:
        self.server, self.tenant = server, tenant

    def sql(self, query: str, *params: Any) -> list[tuple[Any, ...]]:
        return self.server.sql(query, *params, database=self.tenant)

    def one(self, query: str, *params: Any) -> Any:
        [(value,)] = self.sql(query, *params)
        return value

    def user(self, username: str = "", **columns: Any) -> uuid.UUID:
        values = {"username": username or uuid.uuid4().hex, "user_type": "web", **columns}
        marks = ", ".join(["%s"] * len(values))
        return self.one(  # type: ignore[no-any-return]
            f"INSERT INTO users ({', '.join(values)}) VALUES ({marks}) RETURNING id", *values.values()
        )

    def message(self, sender: uuid.UUID, recipient: uuid.UUID, **columns: Any) -> uuid.UUID:
        values = {"sender_id": sender, "recipient_id": recipient, "content": "hello", **columns}
        marks = ", ".join(["%s"] * len(values))
        return self.one(  # type: ignore[no-any-return]
            f"INSERT INTO messages ({', '.join(values)}) VALUES ({marks}) RETURNING id", *values.values()
        )

    def token(self, creator: uuid.UUID) -> tuple[uuid.UUID, uuid.UUID]:
        [pair] = self.sql(
            """INSERT INTO enrollment_tokens (created_by, tenant_id, expires_at) VALUES (%s, 't', now())
               RETURNING id, token""",
            creator,
        )
        return pair


@pytest.fixture
def rows(server: PgServer, tenant: str) -> Rows:
    return Rows(server, tenant)


LONG_AGO = "2001-02-03 04:05:06"


def test_a_message_gets_the_times_of_its_states(rows: Rows) -> None:
    sender, recipient = rows.user(), rows.user()
    first = rows.message(sender, recipient)
    times = "SELECT status, synced_at IS NOT NULL, read_at IS NOT NULL FROM messages WHERE id = %s"
    assert rows.sql(times, first) == [("pending_sync", False, False)]
    rows.sql("UPDATE messages SET status = 'synced' WHERE id = %s", first)
    assert rows.sql(times, first) == [("synced", True, False)]
    rows.sql("UPDATE messages SET status = 'read' WHERE id = %s", first)
    assert rows.sql(times, first) == [("read", True, True)]
    rows.sql("UPDATE messages SET synced_at = %s, read_at = %s WHERE id = %s", LONG_AGO, LONG_AGO, first)
    rows.sql("UPDATE messages SET status = 'read' WHERE id = %s", first)
    kept = rows.sql("SELECT synced_at::text, read_at::text FROM messages WHERE id = %s", first)
    assert kept == [(LONG_AGO, LONG_AGO)], "a time that was noted is kept"
    # Straight to read: the phone may have been skipped.
    second = rows.message(sender, recipient)
    rows.sql("UPDATE messages SET status = 'read' WHERE id = %s", second)
    assert rows.sql(times, second) == [("read", False, True)]


def test_an_update_moves_updated_at_and_nothing_else(rows: Rows) -> None:
    user = rows.user()
    rows.message(user, user)
    rows.token(user)
    rows.sql("INSERT INTO sync_metadata (device_id) VALUES ('d')")
    for table in ("users", "messages", "sync_metadata", "enrollment_tokens"):
        rows.sql(f"ALTER TABLE {table} DISABLE TRIGGER USER")
        rows.sql(f"UPDATE {table} SET created_at = %s, updated_at = %s", LONG_AGO, LONG_AGO)
        rows.sql(f"ALTER TABLE {table} ENABLE TRIGGER USER")
        rows.sql(f"UPDATE {table} SET created_at = created_at")
        [(created, age)] = rows.sql(f"SELECT created_at::text, now()::timestamp - updated_at FROM {table} LIMIT 1")
        assert created == LONG_AGO, table
        assert 0 <= age.total_seconds() < 60, table


def test_defaults_of_a_token_are_separate(rows: Rows) -> None:
    creator = rows.user()
    pairs = [rows.token(creator) for _ in range(3)]
    assert len({value for pair in pairs for value in pair}) == 6
    for column, value in zip(("id", "token"), pairs[0], strict=True):
        with pytest.raises(psycopg.errors.UniqueViolation):
            rows.sql(
                f"INSERT INTO enrollment_tokens ({column}, created_by, tenant_id, expires_at) "
                "VALUES (%s, %s, 't', now())",
                value,
                creator,
            )


BROKEN_RULES = [
    ("INSERT INTO users (username, user_type) VALUES ('x', 'admin')", "chk_user_type"),
    ("INSERT INTO users (username, user_type) VALUES ('x', 'WEB')", "chk_user_type"),
    ("INSERT INTO users (username, user_type) VALUES ('x', '')", "chk_user_type"),
    ("UPDATE messages SET status = 'delivered'", "chk_status"),
    ("INSERT INTO sync_metadata (device_id, sync_status) VALUES ('d', 'done')", "chk_sync_status"),
    ("INSERT INTO users (username, user_type) SELECT username, 'web' FROM users LIMIT 1", "users_username_key"),
    ("INSERT INTO sync_metadata (device_id) VALUES ('one'), ('one')", "sync_metadata_device_id_key"),
    ("UPDATE messages SET sender_id = gen_random_uuid()", "fk_messages_sender"),
    ("UPDATE messages SET recipient_id = gen_random_uuid()", "fk_messages_recipient"),
    ("UPDATE users SET enrollment_token_id = gen_random_uuid()", "users_enrollment_token_id_fkey"),
    (
        "INSERT INTO enrollment_tokens (created_by, tenant_id, expires_at) VALUES (gen_random_uuid(), 't', now())",
        "enrollment_tokens_created_by_fkey",
    ),
]


def test_rows_that_break_a_rule_are_refused(rows: Rows) -> None:
    user = rows.user()
    rows.message(user, user)
    for statement, constraint in BROKEN_RULES:
        with pytest.raises(psycopg.errors.IntegrityError) as refused:
            rows.sql(statement)
        assert refused.value.diag.constraint_name == constraint, statement


def test_not_null_columns_refuse_null(rows: Rows) -> None:
    user = rows.user()
    rows.message(user, user)
    rows.token(user)
    rows.sql("INSERT INTO sync_metadata (device_id) VALUES ('d')")
    for table, columns in COLUMNS.items():
        for column, (_, nullable, _) in columns.items():
            if not nullable:
                with pytest.raises(psycopg.errors.NotNullViolation):
                    rows.sql(f"UPDATE {table} SET {column} = NULL")


def test_a_deleted_user_takes_the_messages_along(rows: Rows) -> None:
    writer, reader, kept, other = rows.user(), rows.user(), rows.user(), rows.user()
    sent, received, stays = rows.message(writer, kept), rows.message(kept, reader), rows.message(kept, other)
    rows.sql("DELETE FROM users WHERE id = %s", writer)
    assert sorted(rows.sql("SELECT id FROM messages")) == sorted([(received,), (stays,)])
    rows.sql("DELETE FROM users WHERE id = %s", reader)
    assert rows.sql("SELECT id FROM messages") == [(stays,)]
    assert sent != stays


def test_the_circle_of_foreign_keys_holds_both_ways(rows: Rows) -> None:
    desk = rows.user()
    token, _ = rows.token(desk)
    phone = rows.user(user_type="mobile", device_id="d", enrollment_token_id=token)
    for statement, key, constraint in (
        ("DELETE FROM enrollment_tokens WHERE id = %s", token, "users_enrollment_token_id_fkey"),
        ("DELETE FROM users WHERE id = %s", desk, "enrollment_tokens_created_by_fkey"),
    ):
        with pytest.raises(psycopg.errors.ForeignKeyViolation) as refused:
            rows.sql(statement, key)
        assert refused.value.diag.constraint_name == constraint
    rows.sql("DELETE FROM users WHERE id = %s", phone)
    rows.sql("DELETE FROM enrollment_tokens WHERE id = %s", token)
    rows.sql("DELETE FROM users WHERE id = %s", desk)
