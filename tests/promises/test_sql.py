"""The SQL that posduif ships: every named query has a description and a user, and PREPAREs on a migrated tenant."""

import re
from pathlib import Path

import psycopg
import pytest

from posduif_cli.db import queries
from support.runner import Posduif
from support.servers import PgServer
from support.sources import REPO

QUERIES = REPO / "sql" / "queries"
FILES = sorted(QUERIES.rglob("*.sql"))


def module_of(path: Path) -> str:
    """Name a file as `queries.load` does: its wing and its own name."""
    return str(path.relative_to(QUERIES).with_suffix(""))


NAMED = [(module_of(path), name) for path in FILES for name in re.findall(r"^-- name: *(\S*)", path.read_text(), re.M)]
PARAMETER = re.compile(r"%\((\w+)\)s")


def numbered(query: str) -> str:
    """Turn psycopg's parameters into the server's."""
    names = list(dict.fromkeys(PARAMETER.findall(query)))
    text = PARAMETER.sub(lambda found: f"${names.index(found[1]) + 1}", query)
    if not names:  # psycopg leaves such a text alone
        return text
    assert "%" not in text.replace("%%", ""), f"a bare % in {text}"
    return text.replace("%%", "%")


def sources() -> dict[Path, str]:
    return {path: path.read_text() for path in (REPO / "posduif_cli").rglob("*.py")}


def test_there_are_queries() -> None:
    assert len(NAMED) > 30
    assert len(set(NAMED)) == len(NAMED), "a name is used twice in a file"


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_a_file_is_nothing_but_described_queries(path: Path) -> None:
    loaded = queries.load(module_of(path))
    assert list(loaded) == [name for module, name in NAMED if module == module_of(path)], (
        "a block lacks its description"
    )
    text = path.read_text()
    assert re.match(r"-- needs: (nothing|\d{4})\n\n-- name: ", text)
    for name, query in loaded.items():
        assert re.fullmatch(r"[a-z]+(_[a-z]+)+", name), f"{name} is not verb_noun"
        assert query.endswith(";"), name
        assert "\t" not in query, name
        description = re.search(rf"^-- name: {name}\n((?:-- .*\n)+)", text, re.M)
        assert description is not None
        assert description[1].strip().endswith("."), f"the description of {name} is no sentence"


@pytest.mark.parametrize(("module", "name"), NAMED)
def test_a_query_is_used_and_given_the_parameters_it_names(module: str, name: str) -> None:
    users = [text for text in sources().values() if f'"{name}"' in text]
    assert users, f"{name} is used nowhere"
    assert any(f'queries.load("{module}")' in text for text in users), f"{name} is never loaded from {module}"
    for parameter in set(PARAMETER.findall(queries.load(module)[name])):
        given = re.compile(rf"\b{parameter}=|\"{parameter}\":")
        assert any(given.search(text) for text in users), f"nobody gives {name} its {parameter}"


def test_every_query_that_is_asked_for_exists() -> None:
    known = {name for _, name in NAMED}
    asked = {name for text in sources().values() for name in re.findall(r'(?:named|load\("[\w/]+"\))\["(\w+)"\]', text)}
    assert asked <= known
    assert asked


def test_every_query_prepares_on_a_migrated_tenant(server: PgServer, tenant: str) -> None:
    with server.connect(tenant) as conn:
        conn.execute("SET ROLE posduif_admin")
        conn.execute(queries.load("schema/history")["create_progress"])
        for module, name in NAMED:
            if name in ("create_table", "create_progress"):
                continue  # DDL: test_migrations and every tenant run it
            # The protocol's own PREPARE takes one statement and no more.
            result = conn.pgconn.prepare(b"", numbered(queries.load(module)[name]).encode())
            assert result.status == psycopg.pq.ExecStatus.COMMAND_OK, (module, name, result.error_message)


def test_a_query_that_lost_a_column_does_not_prepare(server: PgServer, tenant: str) -> None:
    with server.connect(tenant) as conn:
        conn.execute("ALTER TABLE messages RENAME COLUMN synced_at TO was_synced_at")
        with pytest.raises(psycopg.errors.UndefinedColumn):
            conn.execute(f"PREPARE q AS {numbered(queries.load('desk/devices')['list_devices'])}".encode())


@pytest.mark.parametrize("path", sorted((REPO / "sql").rglob("*.sql")), ids=lambda path: path.name)
def test_sql_files_are_clean_text(path: Path) -> None:
    content = path.read_bytes()
    content.decode("ascii")
    assert content.endswith(b"\n")
    assert not content.endswith(b"\n\n")
    assert b"\r" not in content
    assert b"\t" not in content
    assert not re.search(rb"[ ]\n", content), "blanks at the end of a line"


def test_migrations_are_numbered_without_gaps_and_hide_no_difference() -> None:
    files = sorted((REPO / "sql" / "migrations").glob("*"))
    assert [path.name[:5] for path in files] == [f"{number:04}_" for number in range(1, len(files) + 1)]
    for path in files:
        text = path.read_text()
        assert re.fullmatch(r"\d{4}_[a-z_]+\.sql", path.name)
        assert re.search(r"^-- migrate:down( transaction:false)?$", text, re.M), path.name
        assert not re.search(r"IF (NOT )?EXISTS|OR REPLACE|CASCADE;", text, re.I), path.name


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_a_file_says_what_schema_its_queries_need(posduif: Posduif, server: PgServer, tenant: str, path: Path) -> None:
    """Each prepares at that schema, and one of them does not at the one before."""
    found = {query.needs for query in queries.load(module_of(path)).values() if isinstance(query, queries.Named)}
    [needs] = found
    if not needs:
        return
    posduif("migrate", "down", tenant, "--to", needs, "--bundled", "--confirm", tenant)

    def refused() -> list[str]:
        with server.connect(tenant) as conn:
            asked = {name: numbered(str(query)).encode() for name, query in queries.load(module_of(path)).items()}
            done = {name: conn.pgconn.prepare(b"", text).status for name, text in asked.items()}
        return [name for name, status in done.items() if status != psycopg.pq.ExecStatus.COMMAND_OK]

    assert refused() == []
    posduif("migrate", "down", tenant, "--steps", "1", "--bundled", "--confirm", tenant)
    assert refused()
