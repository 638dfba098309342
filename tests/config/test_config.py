"""The configuration: what wins over what, and that `config show` says so without showing secrets."""

import os
import re
import stat
from pathlib import Path
from typing import Any

import pytest

from support.runner import Posduif
from support.servers import PgServer

pytestmark = pytest.mark.one_server

FILE = """\
servers:
  eu1:
    dsn: "host=file user=alice password=topsecret1"
    url: "https://{tenant}.example.com"
    protected: true
    engine: {host: db1, jwt_secret: topsecret2, redis: {host: r, password: topsecret3}}
  eu2:
    dsn: postgresql://bob:topsecret4@file2/x
default_server: eu2
enrollment:
  ttl: 90m
embedded: {data_dir: /srv/file}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "posduif.yaml"
    path.write_text(FILE)
    return path


def settings(cli: Posduif, *argv: str) -> dict[str, tuple[str, str]]:
    return {row["key"]: (row["value"], row["origin"]) for row in cli.json("config", "show", "--origin", *argv)}


def servers(cli: Posduif, *argv: str) -> list[tuple[str, str]]:
    """The servers in force, and why: asked of a command that uses them."""
    rows = cli("-o", "json", "server", "list", *argv, code=None).json
    return [(row["server"], row["source"]) for row in rows]


DEAD = "host=127.0.0.1 port=1 user=u"


def test_the_server_in_force(cli: Posduif, clean_environ: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "two.yaml"
    path.write_text(f'servers: {{eu1: {{dsn: "{DEAD}"}}, eu2: {{dsn: "{DEAD}"}}}}\n')
    assert "no PostgreSQL server is configured" in cli("server", "list", code=3).err
    clean_environ.setenv("PGHOST", "127.0.0.1")
    clean_environ.setenv("PGPORT", "1")
    assert servers(cli) == [("libpq", "PGHOST")]
    clean_environ.setenv("POSDUIF_CONFIG", str(path))
    assert servers(cli) == [("eu1", str(path)), ("eu2", str(path))]
    clean_environ.setenv("POSDUIF_SERVER", "eu2")
    assert servers(cli) == [("eu2", str(path))]
    assert servers(cli, "--server", "eu1") == [("eu1", str(path))]
    assert servers(cli, "--dsn", DEAD) == [("127.0.0.1", "--dsn")]
    clean_environ.delenv("POSDUIF_SERVER")
    clean_environ.setenv("POSDUIF_DSN", DEAD)
    assert servers(cli) == [("127.0.0.1", "POSDUIF_DSN")]
    assert servers(cli, "--server", "eu1") == [("eu1", str(path))]
    assert servers(cli, "--dsn", DEAD) == [("127.0.0.1", "--dsn")]


def test_two_at_once_is_usage(cli: Posduif, clean_environ: pytest.MonkeyPatch, file: Path) -> None:
    cli("tenant", "list", "--config", str(file), "--server", "eu1", "--dsn", DEAD, code=2)
    clean_environ.setenv("POSDUIF_SERVER", "eu1")
    clean_environ.setenv("POSDUIF_DSN", DEAD)
    assert "both name a server" in cli("tenant", "list", "--config", str(file), code=2).err


def test_the_file_in_force(cli: Posduif, clean_environ: pytest.MonkeyPatch, file: Path, tmp_path: Path) -> None:
    def used(*argv: str) -> str:
        return settings(cli, *argv)["config"][0]

    assert used() == ("/etc/posduif/config.yaml" if Path("/etc/posduif/config.yaml").exists() else "")
    home = tmp_path / ".config" / "posduif" / "config.yaml"
    home.parent.mkdir(parents=True)
    home.write_text("")
    assert used() == str(home)
    xdg = tmp_path / "xdg"
    (xdg / "posduif").mkdir(parents=True)
    (xdg / "posduif" / "config.yaml").write_text("# nothing\n")
    clean_environ.setenv("XDG_CONFIG_HOME", str(xdg))
    assert used() == str(xdg / "posduif" / "config.yaml")
    other = tmp_path / "other.yaml"
    other.write_text("")
    clean_environ.setenv("POSDUIF_CONFIG", str(other))
    assert used() == str(other)
    assert used("--config", str(file)) == str(file)


def test_the_output_in_force(cli: Posduif, clean_environ: pytest.MonkeyPatch) -> None:
    assert cli("config", "show").out.startswith("key\tvalue\n")
    clean_environ.setenv("POSDUIF_OUTPUT", "json")
    assert cli("config", "show").json[0]["key"] == "config"
    assert cli("config", "show", "-o", "tsv").out.startswith("key\tvalue\n")
    clean_environ.setenv("POSDUIF_OUTPUT", "xml")
    assert "POSDUIF_OUTPUT" in cli("config", "show", code=2).err
    assert cli("config", "show", "-o", "tsv").out.startswith("key\tvalue\n")


def test_the_data_dir_in_force(cli: Posduif, clean_environ: pytest.MonkeyPatch, file: Path, tmp_path: Path) -> None:
    clean_environ.delenv("POSDUIF_DATA_DIR")
    key = "embedded.data_dir"
    root = os.geteuid() == 0
    assert settings(cli)[key] == (
        "/var/lib/posduif" if root else str(tmp_path / ".local/share/posduif"),
        "default",
    )
    assert settings(cli, "--config", str(file))[key] == ("/srv/file", f"{file}:12")
    clean_environ.setenv("POSDUIF_DATA_DIR", "/srv/env")
    assert settings(cli, "--config", str(file))[key] == ("/srv/env", "POSDUIF_DATA_DIR")
    assert settings(cli, "--config", str(file), "--data-dir", "/srv/flag")[key] == ("/srv/flag", "--data-dir")
    assert cli.json("server", "status", "--data-dir", str(tmp_path / "x"), code=1)["data_dir"] == str(tmp_path / "x")


def test_show_says_where_each_value_is_from(cli: Posduif, clean_environ: pytest.MonkeyPatch, file: Path) -> None:
    clean_environ.setenv("POSDUIF_OUTPUT", "json")
    shown = settings(cli, "--config", str(file), "--color", "never", "--server", "eu1")
    assert shown["config"][0] == str(file)
    assert shown["enrollment.ttl"] == ("90m", f"{file}:11")
    assert shown["enrollment.max_ttl"] == ("1w", "default")
    assert shown["default_server"] == ("eu2", f"{file}:9")
    assert shown["servers.eu1.protected"] == ("true", f"{file}:5")
    assert shown["output"] == ("json", "--output")
    assert shown["color"] == ("never", "--color")
    assert shown["server"] == ("eu1", "--server")


@pytest.mark.parametrize("form", ["table", "tsv", "json", "jsonl"])
def test_show_masks_secrets(cli: Posduif, clean_environ: pytest.MonkeyPatch, file: Path, form: str) -> None:
    shown = cli("config", "show", "--origin", "--config", str(file), "-o", form, "--debug").out
    assert "topsecret" not in shown
    assert "****" in shown
    assert "alice" in shown
    for dsn in ("host=x password=topsecret5", "postgresql://u:topsecret5@h", "host=x sslpassword = 'top secret5'"):
        clean_environ.setenv("POSDUIF_DSN", dsn)
        result = cli("config", "show", "--origin", "-o", form)
        assert "secret5" not in result.out + result.err
        clean_environ.delenv("POSDUIF_DSN")
        result = cli("config", "show", "--origin", "-o", form, "--dsn", dsn, code=None)
        assert "secret5" not in result.out + result.err


@pytest.mark.parametrize("way", ["flag", "environment", "home"])
def test_init_writes_a_file_that_loads(
    cli: Posduif, clean_environ: pytest.MonkeyPatch, tmp_path: Path, way: str
) -> None:
    path = tmp_path / "new" / "c.yaml"
    argv = ["config", "init"]
    if way == "flag":
        argv += ["--config", str(path)]
    elif way == "environment":
        clean_environ.setenv("POSDUIF_CONFIG", str(path))
    else:
        path = tmp_path / ".config" / "posduif" / "config.yaml"
    old = os.umask(0)
    try:
        made: Any = cli.json(*argv)
    finally:
        os.umask(old)
    assert made == {"path": str(path), "changed": True}
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    text = path.read_text()
    assert settings(cli, "--config", str(path))["config"][0] == str(path)
    error = cli(*argv, "-o", "json", code=3).error
    assert "exists" in error["message"]
    assert path.read_text() == text
    # What it shows commented out is right too.
    path.write_text(re.sub(r"(?m)^# ?(?=  |[a-z_]+:)", "", text))
    shown = settings(cli, "--config", str(path))
    assert shown["servers.eu1.engine.redis.host"][0] == "redis1"
    assert shown["migrations.lock_timeout"][0] == "2s"


def test_init_where_nothing_can_be_written(cli: Posduif, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert "cannot be written" in cli("config", "init", "--config", str(tmp_path / "file" / "c.yaml"), code=3).err


def test_libpq_variables_alone_are_enough(cli: Posduif, clean_environ: pytest.MonkeyPatch, server: PgServer) -> None:
    from psycopg.conninfo import conninfo_to_dict

    parts = conninfo_to_dict(server.dsn)
    for name, key in (("PGHOST", "host"), ("PGPORT", "port"), ("PGUSER", "user"), ("PGPASSWORD", "password")):
        if parts.get(key):
            clean_environ.setenv(name, str(parts[key]))
    assert [(row["server"], row["reachable"]) for row in cli.json("server", "list")] == [("libpq", True)]


def test_a_service_file_is_enough(
    cli: Posduif, clean_environ: pytest.MonkeyPatch, server: PgServer, tmp_path: Path
) -> None:
    from psycopg.conninfo import conninfo_to_dict

    service = "".join(f"{key}={value}\n" for key, value in conninfo_to_dict(server.dsn).items())
    (tmp_path / "services").write_text(f"[mine]\n{service}")
    clean_environ.setenv("PGSERVICEFILE", str(tmp_path / "services"))
    clean_environ.setenv("PGSERVICE", "mine")
    assert cli.json("server", "list")[0]["source"] == "PGSERVICE"


def test_the_embedded_server_is_used_only_where_it_was_made(cli: Posduif, own_server: PgServer, tmp_path: Path) -> None:
    assert cli("tenant", "list", "--data-dir", str(tmp_path / "none"), code=3).out == ""
    assert not (tmp_path / "none").exists()
    found = cli("tenant", "list", "--data-dir", str(own_server.data_dir))
    assert "the embedded server" in found.err
    assert cli("tenant", "list", "--data-dir", str(own_server.data_dir), "-q").err == ""
    assert cli.json("server", "list", "--data-dir", str(own_server.data_dir))[0]["server"] == "embedded"
