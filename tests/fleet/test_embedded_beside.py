"""The embedded server beside others: in one configuration with them, and told of where it is left out."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from posduif_cli.db import embedded
from support.runner import Posduif
from support.servers import PgServer, private, scratch

pytestmark = pytest.mark.one_server


@pytest.fixture
def elsewhere() -> Iterator[PgServer]:
    with private() as server:
        yield server


@pytest.fixture
def data(clean_environ: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where this test's embedded server is to be made."""
    folder = scratch()
    clean_environ.setenv("POSDUIF_DATA_DIR", str(folder / "data"))
    yield folder / "data"
    embedded.remove(folder / "data")


def write(tmp_path: Path, *lines: str) -> str:
    file = tmp_path / "config.yaml"
    file.write_text("\n".join(["servers:", *lines]) + "\n")
    return str(file)


def test_it_is_one_of_the_servers(cli: Posduif, elsewhere: PgServer, data: Path, tmp_path: Path) -> None:
    both = ("--config", write(tmp_path, f'  eu1: {{dsn: "{elsewhere.dsn}"}}', "  local: {embedded: true}"))
    # Not made yet it is a server that cannot be reached; the other one is asked all the same.
    told = cli("tenant", "list", *both, code=8)
    assert "server local could not be asked" in told.err
    cli("tenant", "create", "early", "--server", "eu1", *both)
    assert [t["tenant"] for t in cli.json("tenant", "list", "--server", "eu1", *both)] == ["early"]
    alone = cli("tenant", "list", "--server", "local", *both, "-o", "json", code=6).error
    assert "server start" in str(alone["try"])
    cli("tenant", "drop", "early", "--confirm", "early", "--server", "eu1", *both)
    cli("server", "start")
    cli("tenant", "create", "here", "--server", "local", *both)
    cli("tenant", "create", "there", "--server", "eu1", *both)
    found = cli.json("tenant", "list", *both)
    assert [(t["tenant"], t["server"]) for t in found] == [("here", "local"), ("there", "eu1")]
    assert "exists on server local" in cli("tenant", "create", "here", "--server", "eu1", *both, code=5).err
    embedded.stop(data)
    started = cli("tenant", "show", "here", *both)
    assert f"started the embedded server in {data}" in started.err
    assert cli("tenant", "show", "here", *both).err == ""


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (["  a: {embedded: true}", "  b: {embedded: true}"], "a and b are both the embedded server"),
        (["  a: {embedded: true, dsn: host=x}"], "has both dsn and embedded"),
        (["  a: {embedded: false}"], "servers.a.dsn: is missing"),
        (["  a: {embedded: perhaps}"], "must be true or false"),
    ],
)
def test_what_cannot_be_meant(cli: Posduif, tmp_path: Path, lines: list[str], said: str) -> None:
    assert said in cli("tenant", "list", "--config", write(tmp_path, *lines), code=3).err


def test_an_empty_list_tells_of_tenants_that_the_configuration_leaves_out(
    cli: Posduif, elsewhere: PgServer, data: Path, tmp_path: Path
) -> None:
    only = ("--config", write(tmp_path, f'  eu1: {{dsn: "{elsewhere.dsn}"}}'))
    assert "embedded" not in cli("tenant", "list", *only).err, "there is none"
    cli("server", "start")
    assert "embedded" not in cli("tenant", "list", *only).err, "it has no tenants"
    cli("tenant", "create", "here")
    told = cli("tenant", "list", *only)
    assert (len(told.out.splitlines()), len(told.err.splitlines())) == (1, 2)
    assert "has 1 tenant: posduif tenant list --server embedded" in told.err
    assert "local: {embedded: true}" in told.err
    assert cli("tenant", "list", *only, "-q").err == ""
    assert [t["tenant"] for t in cli.json("tenant", "list", *only, "--server", "embedded")] == ["here"]
    cli("tenant", "create", "there", *only)
    assert cli("tenant", "list", *only).err == ""


@pytest.mark.parametrize(
    ("dsn", "name"),
    [
        ("host=127.0.0.1 port=1 user=x", "127.0.0.1"),
        ("postgresql://sam@127.0.0.1:1/postgres?connect_timeout=2", "127.0.0.1"),
        ("host='127.0.0.1,127.0.0.2' port=1 user=x", "127.0.0.1"),
        ("host=/nowhere user=x", "dsn"),
    ],
)
def test_a_server_given_by_its_dsn_is_called_by_its_host(
    cli: Posduif, clean_environ: pytest.MonkeyPatch, dsn: str, name: str
) -> None:
    clean_environ.setenv("POSDUIF_DSN", dsn)
    assert f"server {name} cannot be reached" in cli("tenant", "show", "acme", code=6).err
    assert [row["server"] for row in cli("server", "list", "-o", "json", code=None).json] == [name]


def test_the_embedded_server_is_removed_after_its_name_was_typed(cli: Posduif, data: Path) -> None:
    nothing = cli.json("server", "remove")
    assert (nothing["changed"], nothing["running"]) == (False, False)
    cli("server", "start")
    cli("tenant", "create", "here")
    for given in ((), ("--confirm", "here")):
        refused = cli("server", "remove", *given, "-o", "json", code=9).error
        assert f"the embedded server in {data} with 1 tenant: here" in refused["message"]
        assert refused["try"] == ["add --confirm embedded"]
    cli("server", "stop")
    assert "1 tenant: here" in cli("server", "remove", code=9).err, "it is started to be asked"
    assert cli.json("server", "remove", "--confirm", "embedded")["changed"] is True
    assert not (data / "data").exists()
    assert cli.json("server", "remove", "--confirm", "embedded")["changed"] is False


def test_after_a_removal_all_begins_anew(cli: Posduif, data: Path) -> None:
    cli("quickstart")
    cli("server", "remove", "--confirm", "embedded")
    cli("quickstart")
    cli("quickstart", "--remove")
    assert cli.json("server", "status", code=1)["running"] is False


def test_a_folder_of_other_files_is_not_removed(cli: Posduif, data: Path) -> None:
    data.mkdir(parents=True)
    (data / "mine").write_text("mine")
    assert "not made by posduif" in cli("server", "remove", "--confirm", "embedded", code=5).err
    assert (data / "mine").read_text() == "mine"
    (data / "mine").unlink()
