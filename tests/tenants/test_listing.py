"""`tenant list`: by a part of the name, by state, sorted; and what a list of tenants refuses."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from support.runner import Posduif
from support.servers import PgServer, private
from support.terminal import on_terminal

pytestmark = pytest.mark.one_server


@pytest.fixture(scope="module")
def alone() -> Iterator[PgServer]:
    with private() as server:
        yield server


@pytest.fixture
def posduif(alone: PgServer, run_on: Callable[[PgServer], Posduif]) -> Posduif:
    """The runner of a server with acme, acorn (suspended) and bolt, of which bolt is the largest."""
    cli = run_on(alone)
    if not alone.sql("SELECT 1 FROM pg_database WHERE datname = 'acme'"):
        for name in ("acme", "acorn", "bolt"):
            cli("tenant", "create", name)
        cli("tenant", "suspend", "acorn")
        alone.sql("CREATE TABLE filler AS SELECT repeat('x', 100) FROM generate_series(1, 20000)", database="bolt")
    return cli


@pytest.mark.parametrize(
    ("argv", "names"),
    [
        ((), ["acme", "acorn", "bolt"]),
        (("ac",), ["acme", "acorn"]),
        (("AC*",), ["acme", "acorn"]),
        (("*n",), ["acorn"]),
        (("o",), ["acorn", "bolt"]),
        (("nosuch",), []),
        (("--state", "suspended"), ["acorn"]),
        (("--state", "suspended", "--state", "active"), ["acme", "acorn", "bolt"]),
        (("ac", "--state", "active"), ["acme"]),
        (("--sort", "server"), ["acme", "acorn", "bolt"]),
        (("--sort", "version"), ["acme", "acorn", "bolt"]),
    ],
)
def test_tenants_are_found(posduif: Posduif, argv: tuple[str, ...], names: list[str]) -> None:
    assert [tenant["tenant"] for tenant in posduif.json("tenant", "list", *argv)] == names


def test_the_largest_comes_first(posduif: Posduif) -> None:
    rows = posduif.json("tenant", "list", "--sort", "size")
    assert rows[0]["tenant"] == "bolt"
    sizes = [row["size_bytes"] for row in rows]
    assert sizes == sorted(sizes, reverse=True)


def test_wrong_words_are_usage(posduif: Posduif) -> None:
    assert "states are: provisioning, active" in posduif("tenant", "list", "--state", "activ", code=2).err
    posduif("tenant", "list", "--sort", "age", code=2)
    assert posduif("tenant", "list", "nosuch", "-o", "table").err == "no tenant fits\n"


def test_an_empty_list_of_a_server_that_is_away_says_nothing_of_none(
    posduif: Posduif, own_server: PgServer, tmp_path: Path, clean_environ: pytest.MonkeyPatch
) -> None:
    clean_environ.delenv("POSDUIF_DSN")
    file = tmp_path / "config.yaml"
    file.write_text(f"servers:\n  a: {{dsn: '{own_server.dsn}'}}\n  b: {{dsn: 'host=/nowhere user=x'}}\n")
    told = posduif("tenant", "list", "-o", "table", "--config", str(file), code=8)
    assert "no tenants yet" not in told.err


def test_each_fault_of_a_list_has_a_line_and_its_reason(posduif: Posduif, tmp_path: Path) -> None:
    file = tmp_path / "faulty.csv"
    rows = ["name,url", "Bad Name,", *(f"bad-{number}," for number in range(20)), "good,https://g.example.com",
            "twin,https://g.example.com"]  # fmt: skip
    file.write_text("\n".join(rows) + "\n")
    lines = posduif("tenant", "create", "--from", str(file), code=2).err.splitlines()
    faults = [line for line in lines if "line " in line]
    assert len(faults) == 22
    assert "a-z first, then a-z, 0-9 and _" in faults[0]
    assert "for instance: bad_name" in faults[0]
    assert faults[-1].endswith("line 24: https://g.example.com is in line 23 already")


def test_a_dry_run_of_thirty_fits_on_a_screen(posduif: Posduif, tmp_path: Path) -> None:
    file = tmp_path / "many.csv"
    file.write_text("name\n" + "".join(f"customer_number_{number:02}\n" for number in range(30)))
    shown = on_terminal("tenant", "create", "--from", str(file), "--dry-run", columns=80)
    lines = shown.out.splitlines()
    assert len(lines) <= 24
    assert max(map(len, lines)) <= 80
    assert "and 28 more" in shown.out
    plan = posduif.json("tenant", "create", "--from", str(file), "--dry-run")
    assert {len(step["tenants"]) for step in plan["steps"]} == {30}
