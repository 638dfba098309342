"""A dry run and a reading command write nothing: no row, no role, no transaction id, no byte of WAL."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from support.commands import LEAVES
from support.runner import Posduif
from support.servers import PgServer, private, programs
from support.sources import UP
from support.waiting import sessions, until

CATALOGS = ("pg_database", "pg_authid", "pg_auth_members", "pg_shdescription", "pg_db_role_setting", "pg_shdepend")
# What is asked of a tenant, by the command's path; several of one command where it asks differently.
READS = {
    "tenant list": ["", "--sizes"],
    "tenant show": ["acme --sizes"],
    "tenant verify": ["acme", "--all"],
    "tenant engine-config": ["acme"],
    "migrate status": ["--all", "--all --verify", "acme --sample 1"],
    "migrate list": ["acme"],
    "user list": ["acme"],
    "user show": ["acme desk"],
    "token list": ["acme"],
    "token show": ["acme {token}"],
    "device list": ["acme"],
    "device show": ["acme phone-1"],
    "message inbox": ["acme mia"],
    "message list": ["acme"],
    "message show": ["acme {message}"],
    "message unread": ["acme mia"],
    "message pending": ["acme --device phone-1"],
    "health": ["", "acme"],
    "backup create": ["acme --config {folder}/config.yaml"],
    "server list": [""],
    "server init": ["--print-sql"],
    "doctor": [""],
    "config show": ["--origin"],
}
DRY = {
    "tenant create": ["other --dry-run --web-user desk", "--from {folder}/more.csv --dry-run"],
    "tenant adopt": ["theirs --dry-run", "acme --dry-run", "theirs --dry-run --config {folder}/config.yaml"],
    "tenant suspend": ["acme --dry-run"],
    "tenant resume": ["asleep --dry-run"],
    "tenant drop": ["acme --dry-run"],
    "migrate up": ["--all --dry-run --config {folder}/config.yaml"],
    "migrate down": ["acme --dry-run --steps 1"],
    "migrate abandon": ["acme 1000 --dry-run"],
    "user delete": ["acme mia --dry-run"],
    "token purge": ["acme --dry-run --older-than 1m"],
    "backup restore": [
        "acme --as third --dry-run --config {folder}/config.yaml",
        "acme --dry-run --config {folder}/config.yaml",
        "--all --latest --dry-run --config {folder}/config.yaml",
    ],
    "backup discard": ["acme --dry-run"],
    "backup prune": ["--dry-run --config {folder}/config.yaml"],
}
# They change what they are asked to change and have no --dry-run.
CHANGES = {"tenant set", "tenant rotate-password", "user create", "token create", "token revoke", "message send",
           "message mark", "message test", "device remove", "enroll complete"}  # fmt: skip
# They work on files, on this machine, or on an embedded server.
ELSEWHERE = {"quickstart", "migrate new", "server start", "server stop", "server status",
             "server remove", "config init", "version",
             "backup list", "backup show", "backup verify", "backup drill", "backup remove", "backup unpin",
             "completion show", "completion install", "completion uninstall"}  # fmt: skip
# `migrate verify` makes and drops a scratch database where there are tenants, and says so in its help.
EMPTY = [("tenant list", ""), ("tenant verify", "--all"), ("migrate status", "--all"), ("migrate verify", "--all"),
         ("health", ""), ("server list", ""), ("server init", "--print-sql"), ("doctor", ""),
         ("tenant create", "other --dry-run"), ("tenant adopt", "theirs --dry-run"),
         ("tenant adopt", "theirs --dry-run --config {folder}/config.yaml"),
         ("migrate up", "--all --dry-run"), ("migrate down", "--all --dry-run --steps 1"),
         ("token purge", "--all --dry-run")]  # fmt: skip


@pytest.fixture(params=["embedded", "system"])
def quiet(request: pytest.FixtureRequest) -> Iterator[PgServer]:
    """A server that writes nothing by itself, with a plain login `ops` that may make roles, and mallory's database."""
    # Without replicas there are no snapshots of running transactions for them in the WAL.
    still = {"autovacuum": "off", "wal_level": "minimal", "max_wal_senders": "0", "checkpoint_timeout": "1d"}
    with private(programs(request), **still) as server:
        server.sql("CREATE ROLE ops LOGIN CREATEDB CREATEROLE; CREATE ROLE mallory; GRANT mallory TO ops")
        server.sql("CREATE DATABASE theirs OWNER mallory")
        server.sql(f"SET ROLE mallory; {UP[0]} CREATE TABLE invoices (id serial)", database="theirs")
        yield server


def databases(server: PgServer) -> list[str]:
    return [name for (name,) in server.sql("SELECT datname::text FROM pg_database WHERE datallowconn ORDER BY 1")]


def settle(server: PgServer) -> None:
    """Wait until no session of a command is left: each reports what it wrote when it ends."""
    until(lambda: not sessions(server), "the command's sessions are gone", 20)


def everything(server: PgServer) -> dict[str, Any]:
    """Everything that a write anywhere on the server would change, but for the end of the WAL."""
    settle(server)
    found: dict[str, Any] = {
        "next transaction": server.sql("SELECT pg_snapshot_xmax(pg_current_snapshot())::text"),
        "counters": server.sql("SELECT datname::text, tup_inserted, tup_updated, tup_deleted, temp_files "
                               "FROM pg_stat_database ORDER BY 1"),
        "databases": databases(server),
    }  # fmt: skip
    for catalog in CATALOGS:
        found[catalog] = server.sql(f"SELECT xmin::text, xmax::text, t::text FROM {catalog} t ORDER BY 1, 2, 3")
    for name in databases(server):
        rights = "SELECT oid::text, relacl::text FROM pg_class UNION SELECT oid::text, nspacl::text FROM pg_namespace"
        found[f"rights in {name}"] = server.sql(f"{rights} ORDER BY 1, 2", database=name)
    return found


def wal(server: PgServer) -> Any:
    settle(server)
    return server.sql("SELECT pg_current_wal_insert_lsn()::text")


def check(posduif: Posduif, server: PgServer, argv: list[str], codes: tuple[int, ...]) -> None:
    before = everything(server)
    result = posduif(*argv, code=None)
    assert result.code in (*codes, *([9] if argv[1:2] == ["down"] else [])), (argv, result)  # refused, as the deed is
    after = everything(server)
    assert {key: value for key, value in after.items() if value != before[key]} == {}, argv
    # What was read the first time may have been marked as visible to all; now all is.
    end = wal(server)
    assert posduif(*argv, code=None).code == result.code
    assert wal(server) == end, argv


@pytest.fixture
def words(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "1000_more.sql").write_text("-- migrate:up\nALTER TABLE users ADD COLUMN more int;\n")
    (tmp_path / "config.yaml").write_text(
        f"migrations: {{paths: ['{tmp_path}/more']}}\nbackup: {{dir: '{tmp_path}/store'}}\n"
    )
    (tmp_path / "more.csv").write_text("name\nother\nthird\n")
    return {"folder": str(tmp_path)}


def test_every_command_is_one_that_reads_or_one_that_changes() -> None:
    assert {*READS, *DRY, *CHANGES, *ELSEWHERE, "migrate verify"} == set(LEAVES)
    dry = {path for path, leaf in LEAVES.items() if any(param.name == "dry_run" for param in leaf.params)}
    assert dry == set(DRY)


def test_nothing_is_written_on_a_server_without_roles(
    quiet: PgServer, run_on: Callable[..., Posduif], words: dict[str, str]
) -> None:
    posduif = run_on(quiet, user="ops")
    for path, rest in EMPTY:
        codes = (0,) if "--dry-run" in rest else (0, 1)
        check(posduif, quiet, [*path.split(), *rest.format(**words).split()], codes)
    assert quiet.sql("SELECT 1 FROM pg_roles WHERE rolname ~ '^posduif'") == []
    steps = posduif.json("tenant", "adopt", "theirs", "-n")["steps"]
    assert 'CREATE ROLE "posduif_admin" NOLOGIN CREATEDB CREATEROLE' in [step["sql"] for step in steps]
    superuser = run_on(quiet)
    check(superuser, quiet, ["tenant", "adopt", "theirs", "--dry-run"], (9,))


def test_nothing_is_written_on_a_server_with_tenants(
    quiet: PgServer, run_on: Callable[..., Posduif], words: dict[str, str]
) -> None:
    posduif = run_on(quiet, user="ops")
    posduif("tenant", "create", "acme", "--web-user", "desk", "--url", "https://acme.example.com")
    posduif("tenant", "create", "asleep")
    posduif("tenant", "suspend", "asleep")
    url = posduif("token", "create", "acme").out.strip()
    posduif("enroll", "complete", "acme", url.rpartition("/")[2], "--device", "phone-1", "--username", "mia")
    words["message"] = posduif.json("message", "send", "acme", "--from", "desk", "--to", "mia", "hello")["id"]
    words["token"] = posduif.json("token", "list", "acme")[0]["id"]
    # Whatever else is amiss, these rights are looked at as well.
    quiet.sql("REVOKE INSERT ON messages FROM posduif_engine; GRANT SELECT ON users TO PUBLIC", database="acme")
    for name in databases(quiet):
        quiet.sql("VACUUM FREEZE", database=name)
    for commands, codes in ((READS, (0, 1)), (DRY, (0,))):
        for path, variants in commands.items():
            for rest in variants:
                check(posduif, quiet, [*path.split(), *rest.format(**words).split()], codes)
    (grants,) = [f for f in posduif.json("tenant", "verify", "acme", code=1) if f["check"] == "grants.differ"]
    assert "GRANT INSERT ON public.messages TO posduif_engine is missing" in grants["message"]
    assert "what REVOKE ALL ON public.users FROM PUBLIC takes away is too much" in grants["message"]


def test_a_dry_run_says_what_it_could_not_compare(
    quiet: PgServer, run_on: Callable[..., Posduif], words: dict[str, str]
) -> None:
    """What a migration of one's own makes is known only once it is run."""
    quiet.sql("ALTER TABLE users ALTER user_type TYPE text", database="theirs")
    posduif = run_on(quiet, user="ops")
    posduif("tenant", "adopt", "theirs", "-n", code=5)
    steps = posduif.json("tenant", "adopt", "theirs", "-n", "--config", f"{words['folder']}/config.yaml")["steps"]
    (told,) = [step["subject"] for step in steps if step["action"] == "compare"]
    assert told.startswith("column public.users.user_type is text")
    assert told.endswith("unless a migration of your own makes it so")
