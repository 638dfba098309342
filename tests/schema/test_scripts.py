"""Migration files: splitting as psql does, what is refused, what is warned of."""

import ast
import json
import os
import re
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import psycopg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from posduif_cli.core.folders import Folders, Standing, digest
from posduif_cli.core.schema import files, lint, parse
from posduif_cli.core.schema.parse import Name, Section, Target
from posduif_cli.errors import ConfigurationError
from support.servers import PgServer
from support.sources import REPO

Make = Callable[..., Path]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    def put(content: str | bytes, name: str = "1000_a.sql") -> Path:
        path = tmp_path / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return put


def found(path: Path, level: str | None = None) -> list[tuple[int, str]]:
    problems = files.check(path, path.name.partition("_")[0])
    assert all(problem.path == path for problem in problems)
    return [(problem.line, problem.rule) for problem in problems if level in (None, problem.level)]


def texts(sql: str) -> list[str]:
    return [statement.text for statement in parse.split(sql)]


# --- splitting

WHOLE = [
    "SELECT 'it''s; fine'",
    r"SELECT E'it\'s; \\'",
    "SELECT E'a'\n  'b\\';c'",
    "SELECT E'a' -- why\n  'b\\';c'",
    r"SELECT 'c:\'",
    "SELECT U&'d\\0061;'",
    'SELECT 1 AS "a;""b;"',
    "SELECT $$a;b$$, $t$ $$;$$ $u$; $t$",
    "SELECT 1 AS a$b$",
    "SELECT 1 AS é$x$, 2 AS b",
    "SELECT 1 /* a; /* b; */ c; */ + 1",
    "SELECT 1 -- a; b'\n + 1",
    "SELECT /**/ 1 + /* ' */ 1",
    "SELECT (1) + (2)",
    "SELECT 3 - -4, '--;', 5",
    "CREATE RULE r AS ON UPDATE TO pairs DO ALSO (SELECT 1; SELECT 2)",
    "CREATE FUNCTION f1() RETURNS int LANGUAGE sql BEGIN ATOMIC SELECT 1; SELECT 2; END",
    "CREATE OR REPLACE FUNCTION f2(x int) RETURNS int LANGUAGE sql BEGIN ATOMIC"
    " SELECT 0; SELECT CASE WHEN x > 0 THEN CASE x WHEN 1 THEN 2 ELSE 3 END ELSE 4 END; END",
    "CREATE FUNCTION f3() RETURNS int LANGUAGE sql BEGIN ATOMIC SELECT 1 AS end; SELECT 2; END",
    "CREATE PROCEDURE p1() LANGUAGE sql BEGIN ATOMIC INSERT INTO pairs VALUES (1, 2);"
    " INSERT INTO pairs VALUES (3, 4); END",
    "DO $do$ BEGIN PERFORM 1; IF true THEN PERFORM 2; END IF; END $do$",
    "PREPARE q (int) AS SELECT $1; DEALLOCATE q".partition(";")[0],
    "INSERT INTO pairs SELECT 7, CASE WHEN true THEN 8 END",
]


@pytest.mark.parametrize("sql", WHOLE)
def test_a_statement_stays_whole(sql: str) -> None:
    assert texts(sql) == [sql]
    assert texts(f" ;{sql};\n-- end; of it\n; SELECT 1") == [sql, "SELECT 1"]


def test_lines_and_offsets_are_those_of_the_first_token() -> None:
    text = "-- a\n/* b;\n */ SELECT\n 1;\n\n;; SELECT 2 -- x\n"
    one, two = parse.split(text, line=10)
    assert (one.text, one.line, one.offset) == ("SELECT\n 1", 12, text.index("SELECT"))
    assert (two.text, two.line, two.offset) == ("SELECT 2", 15, text.index("SELECT 2"))
    assert parse.split("-- nothing\n/* ; */ ;;\n") == ()


piece = st.one_of(
    st.sampled_from(WHOLE),
    st.sampled_from(["'a;b'", '"x;y"', "$$;$$", "$a$;$b$;$a$", "(1; 2)", "E'\\';'", "/* ; */ 1", "-- ;\n1", "é", "$1"]),
)


@given(
    st.lists(st.lists(piece, min_size=1, max_size=3).map(" ".join), max_size=6), st.sampled_from([";", ";\n", " ; ;\n"])
)
@settings(max_examples=150, deadline=None)
def test_splitting_loses_nothing(parts: list[str], between: str) -> None:
    parts = [part for part in parts if "ATOMIC" not in part or part in WHOLE]  # a body only counts in its statement
    text = between.join(parts)
    statements = parse.split(text)
    assert len(statements) == len(parts)
    for statement, part in zip(statements, parts, strict=True):
        assert part.endswith(statement.text)
        assert text[statement.offset :].startswith(statement.text)
        assert statement.line == text.count("\n", 0, statement.offset) + 1


@given(st.text(alphabet="aE'\"$;()/*-\\\n\r é1", max_size=40))
@settings(max_examples=400, deadline=None)
def test_whatever_the_text_each_part_is_in_it_in_order(text: str) -> None:
    end = 0
    for statement in parse.split(text):
        assert text.startswith(statement.text, statement.offset)
        assert statement.offset >= end
        end = statement.offset + len(statement.text)


def made_of(conn: "psycopg.Connection[tuple[object, ...]]") -> list[object]:
    functions = conn.execute(
        "SELECT proname, md5(pg_get_functiondef(oid)) FROM pg_proc WHERE proname ~ '^[fp][0-9]$' ORDER BY 1"
    )
    return [
        *functions.fetchall(),
        *conn.execute("TABLE pairs").fetchall(),
        *conn.execute("SELECT count(*) FROM pg_rules").fetchall(),
    ]


@pytest.fixture
def database(server: PgServer) -> Iterator[str]:
    name = f"s{uuid.uuid4().hex[:12]}"
    server.sql(f"CREATE DATABASE {name}")
    yield name
    server.sql(f"DROP DATABASE {name} WITH (FORCE)")


def test_the_server_agrees_on_where_statements_end(server: PgServer, database: str) -> None:
    everything = ";\n".join(["CREATE TABLE pairs (a int, b int)", *WHOLE])
    with server.connect(database) as conn:
        conn.execute("BEGIN")
        conn.execute(everything.encode())
        whole = made_of(conn)
        conn.execute("ROLLBACK; DEALLOCATE ALL")
        for statement in parse.split(everything):
            # The extended protocol takes one statement only: the server itself says whether it is one.
            conn.execute(statement.text.encode().replace(b"%", b"%%"), (), prepare=False, binary=True)
        assert made_of(conn) == whole


# --- files


def test_a_file_has_its_parts_and_their_lines(make: Make) -> None:
    file = files.read(
        "1000", make("-- why\n\n-- migrate:up transaction:false\n\nSELECT 1;\n--migrate:down\nSELECT 2;\n")
    )
    assert (file.version, file.name, file.up.transactional) == ("1000", "a", False)
    assert (file.up.text, file.up.line, file.up.statements[0].line) == ("\nSELECT 1;\n", 4, 5)
    assert file.down is not None
    assert (file.down.text, file.down.transactional, file.down.statements[0].line) == ("SELECT 2;\n", True, 7)
    assert files.read("1000", make("-- migrate:up transaction:true\nSELECT 1")).down is None


def test_crlf_is_read_as_lf_and_warned_of(make: Make) -> None:
    text = "-- migrate:up\n\nSELECT 'a\nb';\n-- migrate:down\nDROP TABLE x;\n"
    plain = files.read("1000", make(text))
    path = make(text.replace("\n", "\r\n"))
    dos = files.read("1000", path)
    assert (dos.checksum, dos.up, dos.down) == (plain.checksum, plain.up, plain.down)
    assert found(path) == [(1, "line-ends")]
    assert found(make("-- migrate:up\r\n-- c\r\nSELECT 1;\r\n\r\nCOMMIT;\r\n"), "error") == [(5, "transaction-nesting")]


UP = "-- migrate:up\n"
ERRORS = [
    (b"", 1, "markers"),
    ("SELECT 1;\n", 1, "markers"),
    (UP + "SELECT 1;\n" + UP + "SELECT 2;\n", 3, "markers"),
    ("-- migrate:down\nSELECT 1;\n" + UP + "SELECT 1;\n", 1, "markers"),
    (UP + "SELECT 1;\n-- migrate:down\n\n-- migrate:down\n", 5, "markers"),
    (UP + "SELECT 1;\n  -- migrate:down\nDROP TABLE x;\n", 3, "markers"),
    (UP + "SELECT 1;\n-- Migrate:Down\nDROP TABLE x;\n", 3, "markers"),
    ("-- migrate:up transaction:maybe\nSELECT 1;\n", 1, "markers"),
    ("\nSELECT 1;\n" + UP + "SELECT 1;\n", 2, "markers"),
    ("/* a\n" + UP + "SELECT 1;\n*/", 1, "markers"),
    ("\n" + UP + "-- only; this\n/* ; */ ;\n", 2, "empty-up"),
    (b"-- migrate:up\n\nSELECT 'caf\xe9';\n", 3, "encoding"),
    (b"\xef\xbb\xbf-- migrate:up\nSELECT 1;\n", 1, "encoding"),
    (b"-- migrate:up\nSELECT 1;\n--\0\n", 3, "encoding"),
    (UP + "SELECT 1;\n\\i other.sql\n", 3, "psql-command"),
    (UP + "COPY t FROM STDIN;\n1\n\\.\n", 2, "copy-stdin"),
    (UP + "SELECT 1;\n\nCOPY (SELECT 1) TO STDOUT;\n", 4, "copy-stdin"),
    *((UP + f"SELECT 1;\n{sql};\n", 3, "transaction-nesting") for sql in (
        "BEGIN", "START TRANSACTION", "/* x */ COMMIT", "End", "ROLLBACK", "ABORT", "SAVEPOINT a", "RELEASE a",
        "ROLLBACK TO a", "PREPARE TRANSACTION 'x'",
    )),
    *((UP + f"{sql};\n", 2, "role-change") for sql in (
        "SET ROLE x", "SET LOCAL ROLE x", "RESET ROLE", "SET SESSION AUTHORIZATION x", "RESET SESSION AUTHORIZATION",
        "set session role to x", "SET role = x",
    )),
    *((UP + f"{sql};\n", 2, "client-encoding") for sql in (
        "SET client_encoding = 'LATIN1'", "SET LOCAL client_encoding TO win1252", "SET NAMES 'latin1'",
    )),
    (UP + "SELECT pg_advisory_unlock_all();\n", 2, "advisory-unlock"),
    *(("-- migrate:up transaction:false\nSELECT 1;\n" + f"{sql};\n", 3, "session-state") for sql in (
        "CREATE TEMP TABLE a ()", "create local temporary view a as select 1", "PREPARE p AS SELECT 1", "LISTEN x",
    )),
    (UP + "SELECT 1;\nSELECT 'a;\n\n", 3, "unclosed"),
    (UP + "SELECT 1;\n\n/* a /* b */\n", 4, "unclosed"),
    (UP + "SELECT\n$a$ b $b$;\n", 3, "unclosed"),
    (UP + 'SELECT "a;\n', 2, "unclosed"),
    (UP + "SELECT E'a\\';\n", 2, "unclosed"),
    ("-- migrate:up transaction:false\nCREATE INDEX CONCURRENTLY ON t (a);\n", 2, "unnamed-index"),
    ("-- migrate:up transaction:false\nCREATE UNIQUE INDEX CONCURRENTLY ON ONLY t (a);\n", 2, "unnamed-index"),
]  # fmt: skip


@pytest.mark.parametrize(("content", "line", "rule"), ERRORS)
def test_errors_have_their_line(make: Make, content: str | bytes, line: int, rule: str) -> None:
    path = make(content)
    assert found(path, "error")[0] == (line, rule)
    with pytest.raises(ConfigurationError, match=re.escape(f"{path}:{line}: ")):
        files.read("1000", path)


FINE = [
    "SELECT '\\i x', $$\nCOMMIT;\n\\i x\n$$; -- \\i\n/* \\c */",
    "CREATE FUNCTION f() RETURNS int LANGUAGE sql BEGIN ATOMIC SELECT 1; END",
    "SET search_path = x; SET LOCAL lock_timeout = 0; RESET search_path; SET roles.x = 1",
    "SET client_encoding = 'UTF8'; SET NAMES 'unicode'; SET client_encoding TO DEFAULT; RESET client_encoding",
    "COPY t FROM '/stdin'; COPY t FROM PROGRAM 'stdin'",
    "PREPARE begin_it AS SELECT 1; EXECUTE begin_it",
    "REFRESH MATERIALIZED VIEW CONCURRENTLY v; ANALYZE; CLUSTER t USING i",
    "SELECT 1 AS \"commit;\"; COMMENT ON TABLE t IS 'VACUUM'",
    "-- to migrate: see the wiki\nSELECT 1",
]


@pytest.mark.parametrize("sql", FINE)
def test_what_is_no_error(make: Make, sql: str) -> None:
    assert found(make(f"-- first\n{UP}{sql};\n")) == []


ALONE = [
    "CREATE INDEX CONCURRENTLY i ON pairs (a)",
    "CREATE UNIQUE INDEX CONCURRENTLY IF NOT EXISTS i ON pairs (a)",
    "DROP INDEX CONCURRENTLY IF EXISTS j",
    "REINDEX TABLE CONCURRENTLY pairs",
    "REINDEX (VERBOSE, CONCURRENTLY) TABLE pairs",
    "REINDEX (CONCURRENTLY) INDEX j",
    "REINDEX SCHEMA public",
    "VACUUM (ANALYZE) pairs",
    "CREATE DATABASE never",
    "DROP DATABASE IF EXISTS never",
    "ALTER SYSTEM SET work_mem = 64",
    "CREATE TABLESPACE never LOCATION '/never'",
    "DROP TABLESPACE never",
    "ALTER DATABASE postgres SET TABLESPACE never",
    "ALTER TABLE parted DETACH PARTITION part CONCURRENTLY",
    "CLUSTER",
    "DISCARD ALL",
]


@pytest.mark.parametrize("sql", ALONE)
def test_what_cannot_run_in_a_transaction_says_what_to_write(make: Make, sql: str) -> None:
    (problem,) = files.check(make(f"{UP}\n{sql};\n"), "1000")
    assert (problem.line, problem.level, problem.rule) == (3, "error", "ban-in-transaction")
    assert problem.fix == "write `-- migrate:up transaction:false`"
    assert found(make(f"-- migrate:up transaction:false\n{sql};\n"), "error") == []
    assert found(make(f"{UP}SELECT 1;\n-- migrate:down\n{sql};\n")) == [(4, "ban-in-transaction")]


def test_the_server_agrees_on_what_cannot_run_in_a_transaction(server: PgServer, database: str) -> None:
    setup = (
        "CREATE TABLE pairs (a int); CREATE INDEX j ON pairs (a); CREATE TABLE parted (a int) PARTITION BY LIST (a);"
    )
    server.sql(setup + "CREATE TABLE part PARTITION OF parted FOR VALUES IN (1)", database=database)
    for sql in ALONE:
        with server.connect(database) as conn:
            conn.execute("BEGIN")
            with pytest.raises(psycopg.Error) as failed:
                conn.execute(sql.encode())
            assert failed.value.sqlstate == "25001", sql


# --- names


TARGETS = [
    ("CREATE INDEX CONCURRENTLY I ON T (a)", Target("create_index_concurrently", (Name(None, "i"),), Name(None, "t"))),
    (
        'CREATE UNIQUE INDEX CONCURRENTLY IF NOT EXISTS "I ""x" ON ONLY S."T" USING btree (a)',
        Target("create_index_concurrently", (Name("s", 'I "x'),), Name("s", "T")),
    ),
    (f"CREATE INDEX CONCURRENTLY {'é' * 40} ON t (a)",
     Target("create_index_concurrently", (Name(None, "é" * 31),), Name(None, "t"))),
    ("CREATE INDEX CONCURRENTLY ON a.b (c)", Target("create_index_concurrently", (), Name("a", "b"))),
    ('CREATE INDEX CONCURRENTLY U&"d\\0061" ON t (c)', Target("create_index_concurrently", (), Name(None, "t"))),
    ("CREATE INDEX i ON t (a)", Target("other", (Name(None, "i"),), Name(None, "t"))),
    (
        'DROP INDEX CONCURRENTLY IF EXISTS a, b."C" CASCADE',
        Target("drop_index_concurrently", (Name(None, "a"), Name("b", "C"))),
    ),
    ("REINDEX INDEX CONCURRENTLY a.i", Target("reindex_concurrently", (Name("a", "i"),))),
    ("REINDEX (VERBOSE, CONCURRENTLY) TABLE t", Target("reindex_concurrently", (Name(None, "t"),))),
    ("REINDEX (CONCURRENTLY off) TABLE t", Target("vacuum")),
    ("VACUUM FULL t", Target("vacuum")),
    ("ANALYZE", Target("vacuum")),
    ("SELECT 1", Target("other")),
]  # fmt: skip


@pytest.mark.parametrize(("sql", "expected"), TARGETS)
def test_the_target_of_a_statement(sql: str, expected: Target) -> None:
    (statement,) = parse.split(sql)
    assert parse.target(statement) == expected


# --- warnings

WARNED = [
    ("CREATE INDEX i ON t (a)", "require-concurrent-index-creation"),
    ('CREATE UNIQUE INDEX ON public."T" (a)', "require-concurrent-index-creation"),
    ("DROP INDEX IF EXISTS i, j", "require-concurrent-index-deletion"),
    ("ALTER TABLE t ADD COLUMN c int NOT NULL", "adding-required-field"),
    ("ALTER TABLE t ADD c numeric(4, 2) NOT NULL CHECK (c > 0)", "adding-required-field"),
    ("ALTER TABLE t ADD COLUMN c uuid DEFAULT gen_random_uuid()", "adding-field-with-default"),
    ("ALTER TABLE t ADD COLUMN c float NOT NULL DEFAULT (1 + random())", "adding-field-with-default"),
    ("ALTER TABLE t ADD COLUMN c bigserial NOT NULL", "adding-field-with-default"),
    ("ALTER TABLE t ADD COLUMN c int GENERATED ALWAYS AS (a * 2) STORED", "adding-field-with-default"),
    ("ALTER TABLE t ADD COLUMN c int NOT NULL GENERATED BY DEFAULT AS IDENTITY", "adding-field-with-default"),
    ("ALTER TABLE t ALTER COLUMN c TYPE bigint", "changing-column-type"),
    ("ALTER TABLE ONLY t ALTER c SET DATA TYPE bigint USING c::bigint", "changing-column-type"),
    ("ALTER TABLE t ALTER c SET NOT NULL", "adding-not-nullable-field"),
    ("ALTER TABLE t ADD CONSTRAINT k CHECK (a > 0)", "constraint-missing-not-valid"),
    ("ALTER TABLE t ADD FOREIGN KEY (a) REFERENCES u (a)", "constraint-missing-not-valid"),
    ("ALTER TABLE t ADD CONSTRAINT k UNIQUE (a)", "disallowed-unique-constraint"),
    ("ALTER TABLE t ADD PRIMARY KEY (a)", "disallowed-unique-constraint"),
    ("ALTER TABLE t ADD COLUMN c int UNIQUE", "disallowed-unique-constraint"),
    ("ALTER TABLE t RENAME COLUMN a TO b", "renaming-column"),
    ("ALTER TABLE t RENAME a TO b", "renaming-column"),
    ("ALTER TABLE IF EXISTS t RENAME TO u", "renaming-table"),
    ("ALTER TABLE t DROP COLUMN IF EXISTS a", "ban-drop-column"),
    ("DROP TABLE IF EXISTS s.t CASCADE", "ban-drop-table"),
    ("TRUNCATE t RESTART IDENTITY", "ban-truncate"),
    ("LOCK TABLE t IN SHARE MODE", "lock-table"),
]


@pytest.mark.parametrize(("sql", "rule"), WARNED)
def test_risks_on_a_table_that_was_there(make: Make, sql: str, rule: str) -> None:
    problems = files.check(make(f"{UP}SELECT 1;\n\n{sql};\n"), "1000")
    assert [(p.line, p.level, p.rule) for p in problems] == [(4, "warning", rule)]
    assert found(make(f"{UP}SELECT 1;\n-- posduif: allow {rule}\n-- for a reason\n{sql};\n")) == []
    assert found(make(f"{UP}SELECT 1;\n-- posduif: allow other\n{sql};\n")) == [(4, rule)]
    assert found(make(f"{UP}SELECT 1;\n-- migrate:down\n{sql};\n")) == [], "the way down may drop"


@pytest.mark.parametrize("sql", [sql for sql, _ in WARNED])
def test_no_risk_on_what_the_same_file_made(make: Make, sql: str) -> None:
    new = 'CREATE TABLE IF NOT EXISTS t (a int); CREATE TABLE s.t (); CREATE UNLOGGED TABLE "T" (a int);'
    assert found(make(f"{UP}{new}\nCREATE INDEX i ON public.t (a); CREATE INDEX j ON t (a);\n{sql};\n")) == []


UNWARNED = [
    "ALTER TABLE t ADD COLUMN c int",
    "ALTER TABLE t ADD COLUMN stored int NOT NULL DEFAULT 0, ADD COLUMN serial text, ADD d timestamp DEFAULT now()",
    "ALTER TABLE t ADD COLUMN c int CHECK (c IS NOT NULL)",
    "ALTER TABLE t ADD CONSTRAINT k CHECK (a > 0) NOT VALID, VALIDATE CONSTRAINT l",
    "ALTER TABLE t ADD CONSTRAINT k UNIQUE USING INDEX i, ADD PRIMARY KEY USING INDEX j",
    "ALTER TABLE t DROP CONSTRAINT k, ALTER a DROP NOT NULL, ALTER COLUMN type SET DEFAULT 1",
    "ALTER TABLE t RENAME CONSTRAINT a TO b",
    'ALTER TABLE t ADD COLUMN "not null" text, ADD "drop " int DEFAULT length(\'random()\')',
    "CREATE INDEX i ON ONLY parted (a)",
    "CREATE TEMP TABLE w AS SELECT 1 AS a; CREATE INDEX ON w (a); TRUNCATE w; DROP TABLE w",
    "CREATE TABLE v (a int); ALTER TABLE v RENAME TO w; CREATE INDEX ON w (a)",
    "UPDATE t SET a = 'DROP TABLE t'; SELECT lock FROM t",
]


@pytest.mark.parametrize("sql", UNWARNED)
def test_what_is_no_risk(make: Make, sql: str) -> None:
    assert found(make(f"{UP}{sql};\n")) == []


@pytest.mark.parametrize("rule", lint.RULES, ids=[rule.name for rule in lint.RULES])
def test_each_rule_finds_its_example_and_not_its_counter_example(make: Make, rule: lint.Rule) -> None:
    marker = UP if rule.transactional is not False else "-- migrate:up transaction:false\n"
    level = "warning" if rule in (*lint.RISKS, *lint.ACTIONS) else "error"
    assert found(make(f"{marker}{rule.example};\n"), level) == [(2, rule.name)]
    assert rule.name not in {name for _, name in found(make(f"{marker}{rule.counter_example};\n"))}


def test_rules_have_names_of_their_own() -> None:
    assert len({rule.name for rule in lint.RULES}) == len(lint.RULES)


def test_each_action_has_its_own_line(make: Make) -> None:
    path = make(
        f"{UP}ALTER TABLE public.t\n    ADD COLUMN a int,\n    -- why\n    DROP b,\n    ALTER c SET NOT NULL;\n"
    )
    assert found(path) == [(5, "ban-drop-column"), (6, "adding-not-nullable-field")]


# --- folders


def test_names_versions_and_order(tmp_path: Path) -> None:
    names = "a/1000_x a/999_y a/note b/1000_z b/0002_z b/0000_q b/0500_q"
    for folder, name in (f"{name}.sql".split("/") for name in names.split()):
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / name).write_text(f"{UP}SELECT 1;\n")
    folders = Folders((tmp_path / "a", tmp_path / "b"))
    problems = [p for p in files.check_all(folders) if p.path.is_relative_to(tmp_path)]
    assert {(str(p.path.relative_to(tmp_path)), p.level, p.rule) for p in problems} == {
        ("a/999_y.sql", "warning", "mixed-widths"),
        ("a/999_y.sql", "warning", "out-of-order"),
        ("a/note.sql", "error", "file-name"),
        ("b/1000_z.sql", "error", "duplicate-version"),
        ("b/0002_z.sql", "error", "duplicate-version"),
        ("b/0000_q.sql", "warning", "out-of-order"),
        ("b/0500_q.sql", "warning", "out-of-order"),
    }
    assert any(str(tmp_path / "a" / "1000_x.sql") in p.message for p in problems if p.path.name == "1000_z.sql")
    assert {key: str(error).removeprefix(f"{tmp_path}/") for key, error in files.of(folders).faults.items()} == {
        "note.sql": "a/note.sql: the name is not of the form NNNN_name.sql",
        "1000": f"b/1000_z.sql: version 1000 is also {tmp_path}/a/1000_x.sql",
        "0002": f"b/0002_z.sql: version 0002 is also {folders.paths['0002']}",
    }
    with pytest.raises(ConfigurationError, match="NNNN_name"):
        _ = files.of(folders).all
    with pytest.raises(ConfigurationError, match="nowhere"):
        files.check_all(Folders((tmp_path / "nowhere",)))


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    assert [p.rule for p in files.check(tmp_path / "1000_a.sql", "1000")] == ["unreadable"]
    with pytest.raises(ConfigurationError, match="cannot be read"):
        files.read("1000", tmp_path)


def test_the_bundled_migrations_have_no_errors() -> None:
    problems = files.check_all(Folders())
    assert [problem for problem in problems if problem.level == "error"] == []
    assert {(p.path.name[:4], p.rule) for p in problems} <= {("0002", "require-concurrent-index-creation")}


def test_pending_is_counted_from_the_record(tmp_path: Path) -> None:
    for version in ("1000", "1001"):
        (tmp_path / f"{version}_x.sql").write_text(f"{UP}SELECT 1;\n")
    folders = Folders((tmp_path,))
    versions = list(folders.paths)
    assert (folders.latest, [file.version for file in files.of(folders).all]) == ("1001", versions)
    for count in range(len(versions) + 1):
        applied = versions[:count]
        assert folders.pending(max(applied, default=None), digest(applied)) == len(versions) - count
    assert folders.standing("1001", digest(["1001"])) == Standing(len(versions) - 1, 0)


def test_a_position_becomes_a_line_and_an_excerpt(make: Make) -> None:
    up = files.read("1000", make(f"-- é\n{UP}\nSELECT\n  1;\n\nSELECT 'é',\n   {'x, ' * 40} y;\n")).up
    assert parse.locate(up, up.text.index("1;") + 1) == (5, "SELECT 1")
    line, excerpt = parse.locate(up, up.text.index("x,") + 1)
    assert (line, len(excerpt), excerpt[:14]) == (8, 80, "SELECT 'é', x,")
    assert parse.locate(up, up.statements[1].offset + 1)[0] == 7
    assert parse.locate(up, 1) == (3, "SELECT 1")
    assert parse.locate(Section("", 1), 1) == (1, "")


def test_the_position_is_the_server_s(server: PgServer) -> None:
    section = Section("\nSELECT 'é€😀';\nSELECT 'é€😀',\n  nothing_here;\n", 5)
    with server.connect() as conn:
        for sql, offset in ((section.text, 0), (section.statements[1].text, section.statements[1].offset)):
            with pytest.raises(psycopg.Error) as failed:
                conn.execute(sql.encode())
            position = int(failed.value.diag.statement_position or 0) + offset
            assert parse.locate(section, position) == (8, "SELECT 'é€😀', nothing_here")


def test_a_file_ten_times_as_long_takes_about_ten_times_as_long() -> None:
    text = "INSERT INTO t VALUES (1, 'it''s; so', $$a;b$$);\n" * 2_000
    short, long = (min(_seconds(partial(parse.split, text * n)) for _ in range(3)) for n in (1, 10))
    assert long < 40 * short


def test_files_are_read_without_the_driver() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "import sys, posduif_cli.core.schema.files; print('psycopg' in sys.modules)"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.strip() == "False"


def _seconds(action: Callable[[], object]) -> float:
    started = time.process_time()
    action()
    return time.process_time() - started


# --- every Python that people have

E_STRINGS = [
    r"SELECT E'tab\there'",
    r"SELECT E'it\'s; x'",
    r"SELECT E'back\\slash'",
    r"SELECT e'a\'b' || 'c;d'",
    "SELECT E'a'\n  'b\\';c'",
    "SELECT E'a' -- it's\n-- and 'this';\n  'b\\';c'\n\t'd\\'; e'",
    "SELECT E'a\\\nb'",
    "SELECT E'' ';'",
    "SELECT E'a' /* ; */ || 'b\\'",
]
LEXER = """
import json, sys
sys.path.insert(0, sys.argv[1])
from posduif_cli.core.schema import files
from posduif_cli.core.schema import parse
assert not set(sys.modules) & {"psycopg", "typer", "rich", "yaml"}
json.dump([[s.text for s in parse.split(text)] for text in json.load(sys.stdin)], sys.stdout)
"""


def pythons() -> list[str]:
    """Every Python 3.11 or later on this machine, one of each version."""
    folders = [Path(folder) for folder in [*os.get_exec_path(), "/usr/bin", "/usr/local/bin"]]
    folders += [*Path.home().glob(".pyenv/versions/*/bin"), *Path.home().glob(".local/share/uv/python/*/bin")]
    found = {sys.version: sys.executable}
    for path in (path for folder in folders if folder.is_dir() for path in sorted(folder.glob("python3*"))):
        if re.fullmatch(r"python3(\.\d+)?", path.name):
            ask = "import sys; print(sys.version_info >= (3, 11)); print(sys.version, end='')"
            asked = subprocess.run([path, "-S", "-E", "-c", ask], capture_output=True, text=True)
            new, _, version = asked.stdout.partition("\n")
            if asked.returncode == 0 and new == "True":
                found.setdefault(version, str(path))
    return list(found.values())


@pytest.mark.parametrize("python", pythons())
def test_the_lexer_is_right_on_every_python_of_this_machine(python: str) -> None:
    statements = [*WHOLE, *E_STRINGS]
    asked = [*statements, ";\n".join([*statements, ""])]
    run = subprocess.run(
        [python, "-S", "-E", "-W", "error", "-c", LEXER, str(REPO)],
        input=json.dumps(asked),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout) == [*([each] for each in statements), statements]


def test_no_pattern_needs_what_older_pythons_get_wrong() -> None:
    for path in (REPO / "posduif_cli").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                text = re.sub(r"\\.|\[[^\]\n]*\]", "x", node.value)
                assert not re.search(r"[*+?}]\+|\+\+|\(\?>", text), f"{path}:{node.lineno}: {node.value}"


@pytest.mark.parametrize(
    "text",
    [
        "'" * 200_000,
        "E'" + "\\'" * 200_000,
        "E'a'\n" * 100_000,
        "E'a'" + "\n'b'" * 100_000,
        "E'a' --x" + "-- y" * 100_000 + "\n'b'",
        "E''" + " \n" * 200_000 + "x",
        "(" * 200_000,
        "/*" * 200_000,
        "--" * 200_000,
        "$a" * 200_000,
        "".join(f"$a{number}$" for number in range(100_000)),
        "$" + "a" * 200_000,
        '"' * 200_000,
    ],
    ids=lambda text: str(text)[:8],
)
def test_no_text_takes_more_than_linear_time(text: str) -> None:
    started = time.monotonic()
    parse.split(text)
    assert time.monotonic() - started < 20, "a quadratic lexer takes minutes for this"
