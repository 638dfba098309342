"""`tenant verify --all` examines one tenant of each kind; what is wrong with another one is found all the same."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from posduif_cli.core.checks import rights
from posduif_cli.core.checks.facts import Inspection
from posduif_cli.core.checks.verify import Inspector
from posduif_cli.core.fleet.fleet import Fleet
from posduif_cli.core.folders import Folders
from posduif_cli.db.session import Session
from posduif_cli.models.checks import Finding, Level
from posduif_cli.models.servers import Server
from support.faults import FAULTS
from support.runner import Posduif
from support.servers import PgServer
from support.tenants import forget, note

NOTHING = "LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END'"
CODE = {
    "a trigger": f"CREATE FUNCTION f() RETURNS trigger {NOTHING}; "
    "CREATE TRIGGER x BEFORE INSERT ON users FOR EACH ROW EXECUTE FUNCTION f()",
    "a body": f"CREATE OR REPLACE FUNCTION update_updated_at_column() RETURNS trigger {NOTHING}",
    "an owner of a function": "ALTER FUNCTION update_read_at() OWNER TO postgres",
    "a check": "ALTER TABLE messages ADD CONSTRAINT x CHECK (content <> query_to_xml('x', true, true, '')::text)",
    "a default": "ALTER TABLE users ALTER username SET DEFAULT pg_read_file('x')",
    "a generated column": "CREATE FUNCTION g(text) RETURNS text IMMUTABLE RETURN $1; "
    "ALTER TABLE users ADD x text GENERATED ALWAYS AS (g(username)) STORED",
    "an index": "CREATE FUNCTION g(text) RETURNS text IMMUTABLE RETURN $1; CREATE INDEX x ON users (g(username))",
    "statistics": "CREATE FUNCTION g(text) RETURNS text IMMUTABLE RETURN $1; "
    "CREATE STATISTICS x ON g(username), id FROM users",
    "a policy": "CREATE FUNCTION p() RETURNS bool IMMUTABLE RETURN true; CREATE POLICY x ON users USING (p())",
    "a rule": "CREATE RULE x AS ON DELETE TO users DO ALSO NOTHING",
    "a view": "CREATE FUNCTION p() RETURNS int IMMUTABLE RETURN 1; CREATE VIEW v AS SELECT p() FROM users",
    "a foreign key": "CREATE TABLE theirs (id uuid REFERENCES users)",
    "an heir": "CREATE TABLE theirs () INHERITS (users)",
    "a type": "CREATE FUNCTION ok(text) RETURNS bool IMMUTABLE RETURN true; CREATE DOMAIN d AS text CHECK (ok(VALUE)); "
    "ALTER TABLE users ADD x d",
    "an operator": "CREATE FUNCTION eq(text, text) RETURNS bool IMMUTABLE RETURN true; "
    "CREATE OPERATOR = (FUNCTION = eq, LEFTARG = text, RIGHTARG = text)",
    "a table of another owner": "CREATE TABLE theirs ()",
    "a sequence of another owner": "CREATE SEQUENCE theirs",
    "a function of another owner": "CREATE FUNCTION f() RETURNS int RETURN 1",
    "a schema of another owner": "CREATE SCHEMA theirs",
    "our table of another owner": "ALTER TABLE users OWNER TO postgres",
    "a right on a column": "GRANT SELECT (last_message_sent) ON users TO posduif_cron",
    "a right on a function": "GRANT EXECUTE ON FUNCTION update_synced_at() TO PUBLIC",
    "rights by default": "SET ROLE posduif_admin; ALTER DEFAULT PRIVILEGES GRANT EXECUTE ON FUNCTIONS TO PUBLIC",
    "a schema that everyone uses": "GRANT USAGE ON SCHEMA public TO PUBLIC",
    "people who cannot connect": "REVOKE CONNECT ON DATABASE {t} FROM posduif_support",
    "a version": "DELETE FROM schema_migrations WHERE version = '0002'",
    "a half": "SET ROLE posduif_admin; CREATE TABLE posduif_migration_progress "
    "(version text, statement int, checksum text, done_at timestamptz); "
    "INSERT INTO posduif_migration_progress VALUES ('1000', 1, 'x', now())",
}
ALL = CODE | {name: broken for name, (broken, _, _) in FAULTS.items()}


class Visits:
    """Visits tenants one after the other, as one run, and notes those that were examined."""

    def __init__(self, server: PgServer, monkeypatch: pytest.MonkeyPatch) -> None:
        self.fleet = Fleet((Server("s", server.dsn),), "test")
        self.examined: list[str] = []
        plain = rights.inspect

        def noted(conn: Session, folders: Folders) -> Inspection:
            self.examined.append(conn.database)
            return plain(conn, folders)

        monkeypatch.setattr(rights, "inspect", noted)

    def __call__(self, *names: str, repair: bool = False) -> list[list[Finding]]:
        [server] = self.fleet.servers
        with self.fleet.maintenance(server) as session:
            known = {("s", name): each for name, each in rights.outside(session, names).items()}
        inspector = Inspector(self.fleet.folders, known, repair=repair)
        self.examined.clear()
        findings = []
        for name in names:
            with self.fleet.enter(server, name) as conn:
                findings.append(inspector.visit(conn))
        return findings


@pytest.fixture
def visits(server: PgServer, monkeypatch: pytest.MonkeyPatch) -> Visits:
    return Visits(server, monkeypatch)


@pytest.fixture
def clean(posduif: Posduif, server: PgServer, name: str) -> Iterator[str]:
    """A tenant beside the one under test."""
    posduif("tenant", "create", f"{name}_clean")
    yield f"{name}_clean"
    forget(server, f"{name}_clean")


@pytest.mark.parametrize("fault", ALL)
def test_a_fault_is_found_behind_a_clean_tenant(
    server: PgServer, visits: Visits, tenant: str, clean: str, fault: str
) -> None:
    server.sql(ALL[fault].format(t=tenant), database=tenant)
    try:
        [alone] = visits(tenant)
        fine, behind = visits(clean, tenant)
        assert visits.examined == [clean, tenant]
        assert [finding.level for finding in fine] == [Level.OK]
        assert behind == alone
        assert any(finding.level is not Level.OK for finding in behind)
    finally:
        server.sql(f"DROP ROLE IF EXISTS {tenant}_x") if fault != "creators" else server.sql(
            f"DROP OWNED BY {tenant}_x; DROP ROLE {tenant}_x", database=tenant
        )


def test_tenants_of_one_kind_are_examined_once(
    server: PgServer, posduif: Posduif, visits: Visits, tenant: str, clean: str, tmp_path: Path
) -> None:
    # The first tenants of a server run the migrations themselves, later ones are copies: their OIDs may differ or not.
    _, second = visits(clean, tenant)
    assert visits.examined == [clean]
    assert [(finding.check, finding.level) for finding in second] == [("record.differs", Level.OK)]
    assert second[0].subject == tenant
    visits(clean, tenant, repair=True)
    assert visits.examined == [clean], "nothing is to be repaired"
    (tmp_path / "1000_more.sql").write_text("-- migrate:up\nCREATE TABLE more (id int);\n")
    config = tmp_path / "config.yaml"
    config.write_text(f"migrations: {{paths: ['{tmp_path}']}}\n")
    posduif("migrate", "up", tenant, "--config", str(config))
    visits(clean, tenant)
    assert visits.examined == [clean, tenant], "one that has another schema is another kind"


def test_what_one_adoption_accepted_is_accepted_for_no_other(
    server: PgServer, visits: Visits, tenant: str, clean: str
) -> None:
    for name in (tenant, clean):
        server.sql(CODE["a rule"], database=name)
    note(server, clean, accepted=["rule public.users.x"])
    fine, behind = visits(clean, tenant)
    assert {finding.level for finding in fine} == {Level.OK}
    assert [finding.check for finding in behind if finding.level is not Level.OK] == ["code.foreign"]
