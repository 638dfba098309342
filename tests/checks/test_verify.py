"""`tenant verify`, `migrate verify` and `migrate status --verify`: differences are found, and only --repair writes."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import pytest

from posduif_cli.core.checks import schema, verify
from posduif_cli.core.checks.facts import Clusters
from posduif_cli.core.fleet import fleet as fleet_module
from posduif_cli.core.fleet.fleet import Fleet
from posduif_cli.core.folders import Folders, digest
from posduif_cli.core.schema import history
from posduif_cli.core.schema.inventory import Thing
from posduif_cli.db import embedded
from posduif_cli.db.session import Session
from posduif_cli.models.checks import Finding, Level
from posduif_cli.models.servers import Server
from posduif_cli.models.tenants import State, Tenant
from support.folder import Folder
from support.kills import kill
from support.runner import Posduif
from support.servers import PgServer, private
from support.sources import BUNDLED, LATEST, REPO
from support.tenants import forget, note, record, versions
from support.terminal import on_terminal
from support.waiting import held, sessions, until

sys.path.insert(0, str(REPO / "tests" / "bench"))

OLDER = {"schema": "0001", "set": digest(["0001"])}
NEWER = {"schema": "9000", "set": digest([*BUNDLED, "9000"])}
OTHER = {"set": digest(["0001", "0003"])}
NONE = {"schema": None, "set": None}
SPOILT: list[dict[str, Any]] = [OLDER, NEWER, OTHER, NONE]


@contextmanager
def more(posduif: Posduif, server: PgServer, tenant: str, count: int) -> Iterator[list[str]]:
    names = [f"{tenant}_{number}" for number in range(count)]
    try:
        for name in names:
            posduif("tenant", "create", name)
        yield names
    finally:
        for name in names:
            forget(server, name)


def scratches(server: PgServer) -> list[Any]:
    return server.sql("SELECT datname FROM pg_database WHERE datname LIKE 'posduif_reference_%'")


@pytest.mark.parametrize("state", ["active", "suspended"])
def test_a_record_edited_by_hand_is_found_and_mended_only_by_repair(
    posduif: Posduif, server: PgServer, tenant: str, state: str
) -> None:
    if state == "suspended":
        posduif("tenant", "suspend", tenant)
    good = note(server, tenant, from_the_future=[1, {"a": "b"}])
    assert [f["level"] for f in posduif.json("tenant", "verify", tenant)] == ["ok"]
    [fine] = posduif.json("tenant", "verify", tenant, "--repair")
    assert (fine["level"], fine["changed"]) == ("ok", False)
    for spoilt in SPOILT:
        noted = note(server, tenant, **spoilt)
        [finding] = posduif.json("tenant", "verify", tenant, code=1)
        assert (finding["check"], finding["subject"], finding["level"]) == ("record.differs", tenant, "critical")
        assert (finding["changed"], finding["fix"]) == (False, f"posduif tenant verify {tenant} --repair")
        for options in ("--verify", "--sample=1"):
            assert f"warning: {tenant}: " in posduif("migrate", "status", tenant, options, code=1).err
        assert record(server, tenant) == noted, "only --repair writes"
        done = posduif("tenant", "verify", tenant, "--repair", "-o", "tsv")
        assert done.err == "1 finding repaired\n"
        assert record(server, tenant) == good, "the table wins, and what is not ours is kept"
        posduif("migrate", "status", tenant, "--verify")


def test_rows_that_others_took_or_gave_win_over_the_record(posduif: Posduif, server: PgServer, tenant: str) -> None:
    for sql in (
        f"DELETE FROM schema_migrations WHERE version = '{LATEST}'",
        f"INSERT INTO schema_migrations (version) VALUES ('{LATEST}'), ('0900')",  # as dbmate does
        "DELETE FROM schema_migrations WHERE version = '0002'",
        "DELETE FROM schema_migrations",
        "DROP TABLE schema_migrations",
        "SET ROLE posduif_admin; CREATE TABLE schema_migrations (version varchar PRIMARY KEY);"
        " INSERT INTO schema_migrations VALUES ('0907')",
    ):
        server.sql(sql, database=tenant)
        told = sql.startswith("DROP")  # no table says what an empty one says
        posduif("tenant", "verify", tenant, code=0 if told else 1)
        posduif("tenant", "verify", tenant, "--repair")
        posduif("tenant", "verify", tenant)
        if told:
            continue
        done, noted = versions(server, tenant), record(server, tenant)
        assert (noted.get("schema"), noted["set"]) == (max(done, default=None), digest(done)), sql


@pytest.mark.one_server
def test_repair_works_under_the_tenant_s_lock(
    posduif: Posduif, server: PgServer, tenant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = Session.lock.__wrapped__  # type: ignore[attr-defined]
    monkeypatch.setitem(lock.__kwdefaults__, "wait", timedelta(seconds=0.3))
    noted = note(server, tenant, **OLDER)
    with held(server, tenant, f"SELECT pg_advisory_xact_lock({0x706F7364}, hashtext('{tenant}'))"):
        posduif("tenant", "verify", tenant, code=1)
        busy = posduif("tenant", "verify", tenant, "--repair", "-o", "json", code=10)
        assert "the holder" in busy.error["why"]
    assert record(server, tenant) == noted


def test_several_by_name_report_every_one(posduif: Posduif, server: PgServer, tenant: str) -> None:
    note(server, tenant, **OLDER)
    half, nobody = f"{tenant}_half", f"{tenant}_x"
    posduif("tenant", "create", half)
    try:
        note(server, half, state="provisioning")
        posduif("tenant", "verify", half, code=5)
        posduif("tenant", "verify", nobody, code=4)
        posduif("tenant", "verify", code=2)
        done = posduif("tenant", "verify", tenant, nobody, half, "-o", "tsv", code=8)
        assert done.out.count("critical") == 2, "its record, and the state of the half one"
        assert f'tenant "{nobody}" not found' in done.err
        assert f"tenant {half} is provisioning" in done.err
        posduif("migrate", "verify", tenant, nobody, code=8)
    finally:
        forget(server, half)


def test_status_needs_no_connection_to_the_tenant_but_verify_does(
    posduif: Posduif, server: PgServer, tenant: str
) -> None:
    server.sql(f"ALTER DATABASE {tenant} ALLOW_CONNECTIONS false")
    try:
        [row] = posduif.json("migrate", "status", tenant, "--check")
        assert (row["schema_version"], row["pending"]) == (LATEST, 0)
        for command in (("migrate", "status", tenant, "--verify"), ("migrate", "verify", tenant)):
            assert posduif(*command, code=6).err
        assert posduif("tenant", "verify", tenant, "--repair", code=6).err
    finally:
        server.sql(f"ALTER DATABASE {tenant} ALLOW_CONNECTIONS true")


def test_sample_visits_no_more_than_it_says(posduif: Posduif, server: PgServer, tenant: str) -> None:
    with more(posduif, server, tenant, 3) as names:
        for name in names:
            note(server, name, **OLDER)
        said = posduif("migrate", "status", *names, "--sample", "2", code=1).err
        assert said.count("the record says 0001") == 2
        said = posduif("migrate", "status", *names, "--verify", code=1).err
        assert said.count("the record says 0001") == 3


def test_fresh_tenants_verify_without_a_warning_and_nothing_stays_behind(
    posduif: Posduif, server: PgServer, tenant: str, folder: Folder
) -> None:
    folder.raw("1000_i.sql", "-- migrate:up transaction:false\nCREATE INDEX CONCURRENTLY m_i ON messages (status);\n")
    with more(posduif, server, tenant, 2) as names:
        posduif("migrate", "up", tenant, *names, *folder.option)
        found = posduif.json("migrate", "verify", tenant, *names, *folder.option)
        assert {finding["level"] for finding in found} == {"ok"}
        [drift] = [finding for finding in found if finding["check"] == "schema.drift"]
        assert drift["affected"] == sorted([tenant, *names])
        assert "that the migrations make in 3 of 3" in drift["message"]
        assert posduif("migrate", "verify", tenant, *names, *folder.option, "-o", "table").out == ""
    until(lambda: not scratches(server), "the scratch databases are gone")


def test_odd_ones_are_shown_with_what_sets_them_apart(posduif: Posduif, server: PgServer, tenant: str) -> None:
    """Most of the tenants drifted alike: they differ from the migrations, the other one from them as well."""
    with more(posduif, server, tenant, 3) as names:
        for name in names[:2]:
            server.sql("CREATE TABLE public.extra (id int)", database=name)
        server.sql("DROP INDEX idx_sync_metadata_lsn", database=names[2])
        found = posduif.json("migrate", "verify", tenant, *names, code=1)
        drift = {tuple(f["affected"]): f for f in found if f["check"] == "schema.drift"}
        assert set(drift) == {tuple(names[:2]), (names[2],), (tenant,)}
        crowd, odd = drift[tuple(names[:2])], drift[names[2],]
        assert (drift[tenant,]["level"], crowd["level"], odd["level"]) == ("ok", "warning", "warning")
        assert "differs from what the migrations make: " in crowd["message"]
        assert "table public.extra" in crowd["message"]
        assert "majority" not in crowd["message"]
        made, _, majority = odd["message"].partition("differs from the majority: ")
        assert "idx_sync_metadata_lsn" in made
        assert "extra" not in made
        assert "table public.extra: missing" in majority
        shown = posduif("migrate", "verify", tenant, *names, "-o", "table", code=1).out
        assert names[2] in shown
    until(lambda: not scratches(server), "the scratch databases are gone")


def test_tenants_that_are_behind_are_compared_with_each_other(
    posduif: Posduif, server: PgServer, tenant: str, folder: Folder
) -> None:
    folder.put("1000_new.sql", "CREATE TABLE new (id int);")
    with more(posduif, server, tenant, 2) as names:
        server.sql("CREATE TABLE public.extra (id int)", database=names[1])
        found = posduif.json("migrate", "verify", tenant, *names, *folder.option, code=1)
        drift = [f for f in found if f["check"] == "schema.drift"]
        assert [(f["level"], len(f["affected"])) for f in drift] == [("ok", 2), ("warning", 1)]
        assert drift[1]["message"].startswith("differs from the majority: ")
        assert not any("that the migrations make" in f["message"] for f in drift), "nobody made that"


def test_files_that_changed_vanished_or_came_late(
    posduif: Posduif, server: PgServer, tenant: str, folder: Folder
) -> None:
    folder.put("1000_a.sql", "CREATE TABLE a (id int);")
    gone = folder.put("1001_b.sql", "CREATE TABLE b (id int);")
    folder.put("1003_d.sql", "CREATE TABLE d (id int);")
    posduif("migrate", "up", tenant, *folder.option)
    before = record(server, tenant)
    posduif("migrate", "verify", tenant, *folder.option)
    folder.put("1000_a.sql", "CREATE TABLE a (id bigint);")
    gone.unlink()
    folder.put("1002_c.sql", "CREATE TABLE c (id int);")
    folder.put("1004_e.sql", "CREATE TABLE e (id int);")  # merely pending
    found = posduif.json("migrate", "verify", tenant, *folder.option, code=1)
    files = {(f["value"], f["level"]) for f in found if f["check"] == "files.differ"}
    assert files == {("1000", "critical"), ("1001", "warning"), ("1002", "warning")}
    assert record(server, tenant) == before


KILLED = [
    ("before db.admin.create_database 1", 0),
    ("after db.admin.create_database 1", 1),
    ("before core.schema.inventory._run 2", 1),
    ("before core.schema.inventory._drop 2", 1),  # the first is the sweep of what the last kill left
    ("after core.schema.inventory._drop 2", 0),
]


def test_a_killed_verify_s_scratch_database_is_no_tenant_and_is_swept(own_server: PgServer, run_on: Any) -> None:
    posduif = run_on(own_server)
    posduif("tenant", "create", "acme")
    for point, count in KILLED:
        kill(point, "migrate", "verify", "--all")
        # What an earlier kill left may still be swept at the same moment.
        until(lambda count=count: len(scratches(own_server)) == count, point)  # type: ignore[misc]
        assert [row["tenant"] for row in posduif.json("tenant", "list")] == ["acme"]
        until(lambda: not sessions(own_server), "the killed one's sessions are gone")
    posduif("migrate", "verify", "--all")
    assert scratches(own_server) == []


def shown_by(*argv: str) -> str:
    return on_terminal(*argv, apart=True, environ={"NO_COLOR": "1"}).out


def test_a_terminal_shows_versions_by_server_and_the_stragglers(own_server: PgServer, run_on: Any) -> None:
    posduif = run_on(own_server)
    for name in ("anna", "bert", "carl"):
        posduif("tenant", "create", name)
    shown = shown_by("migrate", "status", "--all")
    assert "no tenant is behind" in shown
    own_server.sql(f"DELETE FROM schema_migrations WHERE version = '{LATEST}'", database="bert")
    posduif("tenant", "verify", "bert", "--repair")
    shown = shown_by("migrate", "status", "--all")
    assert posduif("migrate", "status", "--all", "-o", "table").out.split() == shown.split()
    lines = [line.split() for line in shown.splitlines()]
    assert lines[0][0] == "VERSION"
    assert lines[0][-1] == "ALL"
    assert [line for line in lines[1:] if line and line[0][:1] == "0"] == [[LATEST, "2", "2"], [BUNDLED[-2], "1", "1"]]
    stragglers = shown.partition("TENANT")[2]
    assert "bert" in stragglers
    assert "anna" not in stragglers
    assert "carl" not in stragglers
    assert "anna" in shown_by("migrate", "status", "--all", "--list")


def test_drift_is_told_without_a_server() -> None:
    """The majority of a tie is the same every time, and long lists are cut short."""
    clusters = {"m1": [f"t{n}" for n in range(7)], "m2": ["x"]}
    kept: dict[str, Any] = {"m1": (), "m2": tuple(Thing("table", f"public.t{n}", "") for n in range(8))}
    fine, odd = schema.drift(Clusters("s", clusters, kept))
    assert (fine.level, odd.level) == (Level.OK, Level.WARNING)
    assert odd.message.endswith("and 3 more")
    assert isinstance(odd, Finding)


def test_a_hundred_thousand_records_are_judged_in_a_moment() -> None:
    from registry import fleet, rows

    many = rows(100_000)
    simulated: Fleet = fleet(Folders())
    server: Server = simulated.servers[0]
    started = time.process_time()
    tenants = [tenant for row in many if (tenant := simulated.judge(row, server)) is not None]
    behind = [tenant for tenant in tenants if history.behind(tenant)]
    spent = time.process_time() - started
    print(f"{spent:.2f} s for {len(many)} records")
    assert len(tenants) == 100_000
    assert len(behind) == sum(1 for n in range(100_000) if n % 100 == 0)
    assert {tenant.pending for tenant in behind} == {1}
    assert tenants[7] == Tenant(
        "tenant000007", "eu1", State.ACTIVE, LATEST, LATEST, 0, "https://tenant000007.example.com",
        tenants[7].created_at, None, 0, engine_may_log_in=True,
    )  # fmt: skip
    assert tenants[7].created_at is not None
    assert spent < 10


def test_what_is_no_whole_tenant_is_told_from_one_answer(posduif: Posduif, server: PgServer, tenant: str) -> None:
    """The servers are asked once: one that goes away in between takes no answer with it."""
    note(server, tenant, state="provisioning")
    asked = 0

    class Counting(Fleet):
        def ask(self, question: Any, **limits: Any) -> dict[str, Any]:
            nonlocal asked
            asked += 1
            assert asked == 1, "the server went away after its first answer"
            return super().ask(question, **limits)

    fleet = Counting((Server("s", server.dsn),), "test")
    findings, errors = verify.reality(fleet, tenants=None)
    # Tenants of other tests may be dropped in this moment.
    assert not {"s", tenant} & set(errors)
    [found] = [finding for finding in findings if finding.subject == tenant]
    assert (found.check, str(found.fix)) == ("tenant.state", f"posduif tenant create {tenant}")


def test_a_server_that_goes_away_is_told_once(run_on: Any) -> None:
    with private() as dying:
        assert dying.data_dir is not None
        posduif, folder = run_on(dying), dying.data_dir
        for name in ("anna", "bert", "carl"):
            posduif("tenant", "create", name)

        class Dying(Fleet):
            def ask(self, question: Any, **limits: Any) -> dict[str, Any]:
                answers = super().ask(question, **limits)
                embedded.stop(folder)
                return answers

        findings, errors = verify.reality(Dying((Server("eu1", dying.dsn),), "test"), tenants=None)
        assert findings == []
        assert [(name, error.exit_code) for name, error in errors.items()] == [("server eu1", 6)]


@pytest.mark.parametrize("state", ["provisioning", "dropping", "moving", "restoring"])
def test_a_half_made_tenant_by_name_has_the_finding_that_all_has(
    posduif: Posduif, server: PgServer, tenant: str, state: str
) -> None:
    note(server, tenant, state=state)
    [named] = posduif("tenant", "verify", tenant, "-o", "json", code=5).json
    [among] = [f for f in posduif("tenant", "verify", "--all", "-o", "json", code=None).json if f["subject"] == tenant]
    assert named == among
    assert named["value"] is None
    assert named["fix"] == str(fleet_module.NEXT_STEP[State(state)](tenant)[0])
    assert ("drop" in named["fix"]) is (state == "dropping")
