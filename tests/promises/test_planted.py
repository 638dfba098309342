"""Secrets in folders that everyone writes to: what others planted in the way is refused, as root and as anyone else."""

import json
import os
import pwd
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from posduif_cli.errors import ConfigurationError
from posduif_cli.render import files
from support.runner import Posduif
from support.servers import PgServer, as_root, scratch

pytestmark = pytest.mark.one_server


NOBODY = pwd.getpwnam("nobody").pw_uid
SECRET = b"secret"


@pytest.fixture
def public() -> Iterator[Path]:
    """A folder such as /tmp."""
    folder = scratch()
    folder.chmod(0o1777)
    yield folder
    subprocess.run(["rm", "-rf", str(folder)], check=True)


def write_as(uid: int, path: Path) -> tuple[str, str]:
    """Write a secret as another user; return the error's message and reason, empty for success."""
    script = """
import json, os, sys
from pathlib import Path
from posduif_cli.render import files
from posduif_cli.errors import PosduifError
os.setgroups([]); os.setgid(int(sys.argv[1])); os.setuid(int(sys.argv[1]))
os.umask(0)
try:
    files.write_private(Path(sys.argv[2]), b"secret")
    print(json.dumps(["", ""]))
except PosduifError as error:
    print(json.dumps([error.message, error.why]))
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(uid), str(path)], capture_output=True, text=True, timeout=30, check=True
    )
    message, why = json.loads(done.stdout)
    return message, why


def refused(path: Path) -> str:
    """Write a secret where that is refused; return the reason."""
    with pytest.raises(ConfigurationError):
        files.check(path)
    return refused_by_write(path)


def plant(path: Path, target: Path) -> None:
    """Make a link of nobody's."""
    path.symlink_to(target)
    os.lchown(path, NOBODY, NOBODY)


@as_root
def test_a_link_of_others_is_not_followed(public: Path, tmp_path: Path) -> None:
    own = tmp_path / "own"
    own.write_text("mine")
    plant(public / "to_file", own)
    plant(public / "dangling", tmp_path / "chosen_by_others")
    plant(public / "to_folder", tmp_path)
    plant(public / "to_device", Path("/dev/null"))
    (public / "mine").symlink_to(public / "to_file")
    for name in ("to_file", "dangling", "to_folder/file", "to_device", "mine"):
        assert "belongs to another user" in refused(public / name), name
    assert own.read_text() == "mine"
    assert list(tmp_path.iterdir()) == [own]


@as_root
def test_a_file_of_others_is_not_taken_for_ours(tmp_path: Path) -> None:
    file = tmp_path / "engine.yaml"
    file.write_text("postgres: {host: elsewhere}\n")
    os.chown(file, NOBODY, NOBODY)
    assert "belongs to another user" in refused(file)
    with pytest.raises(ConfigurationError):
        files.read(file)


@as_root
def test_an_ordinary_user_trusts_itself_and_root_alone(public: Path) -> None:
    shelf = public / "shelf"
    shelf.mkdir()
    os.chown(shelf, NOBODY, NOBODY)
    (public / "of_root").symlink_to(shelf / "by_root")
    plant(public / "of_nobody", shelf / "by_nobody")
    stranger = public / "of_stranger"
    stranger.symlink_to(shelf / "by_stranger")
    os.lchown(stranger, NOBODY - 1, NOBODY - 1)
    assert write_as(NOBODY, public / "of_root") == write_as(NOBODY, public / "of_nobody") == ("", "")
    assert "belongs to another user" in write_as(NOBODY, stranger)[1]
    assert {path.name for path in shelf.iterdir()} == {"by_root", "by_nobody"}
    for path in shelf.iterdir():
        assert (path.read_bytes(), stat.S_IMODE(path.stat().st_mode), path.stat().st_uid) == (SECRET, 0o600, NOBODY)
    plain = public / "plain"
    assert write_as(NOBODY, plain) == ("", "")
    assert "belongs to another user" in write_as(NOBODY - 1, plain)[1]


@as_root
def test_an_ordinary_user_may_pass_folders_that_it_cannot_read(public: Path) -> None:
    (public / "dark" / "shelf").mkdir(parents=True)
    os.chown(public / "dark" / "shelf", NOBODY, NOBODY)
    (public / "dark").chmod(0o711)
    assert write_as(NOBODY, public / "dark" / "shelf" / "file") == ("", "")


def test_own_links_are_followed(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "folder").symlink_to("real")
    (tmp_path / "real" / "link").symlink_to("../real/./target")
    (tmp_path / "real" / "target").write_text("before")
    files.write_private(tmp_path / "folder" / "link", SECRET)
    assert (tmp_path / "real" / "target").read_bytes() == SECRET
    assert (tmp_path / "real" / "link").is_symlink()
    (tmp_path / "real" / "self").symlink_to("self")
    (tmp_path / "root").symlink_to("/")
    (tmp_path / "here").symlink_to(".")
    assert "symbolic links" in refused(tmp_path / "real" / "self")
    for name in ("root", "here", "real", "real/.."):
        assert "folder" in refused(tmp_path / name), name


def test_pipes_and_sockets_are_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
        for name in ("pipe", "socket"):
            assert "a pipe, a socket or a disk" in refused(tmp_path / name)
    files.write_private(Path("/dev/null"), SECRET)


def test_a_folder_in_which_everyone_replaces_files(tmp_path: Path) -> None:
    folder = tmp_path / "open"
    folder.mkdir()
    folder.chmod(0o777)
    assert refused(folder / "file") == "everyone may replace files in its folder"
    folder.chmod(0o1777)
    files.write_private(folder / "file", SECRET)
    assert list(folder.iterdir()) == [folder / "file"], "no temporary file is left"


def test_what_fails_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "file"
    file.write_text("before")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert refused_by_write(file) == "No space left on device"
    assert file.read_text() == "before"
    assert list(tmp_path.iterdir()) == [file]


def refused_by_write(path: Path) -> str:
    with pytest.raises(ConfigurationError) as caught:
        files.write_private(path, SECRET)
    return caught.value.why or ""


@as_root
def test_commands_that_write_secrets_refuse_before_they_do_anything(
    posduif: Posduif, server: PgServer, tenant: str, public: Path, tmp_path: Path
) -> None:
    target = tmp_path / "roots"
    target.write_text("mine")
    for name in ("code.png", "code.svg", "acme.yaml"):
        plant(public / name, target)
    plant(public / "dangling.yaml", tmp_path / "chosen")
    os.mkfifo(public / "pipe.png")
    os.mkfifo(public / "pipe.yaml")
    before = server.sql("SELECT rolpassword FROM pg_authid WHERE rolname = %s", f"{tenant}_engine")
    commands: list[tuple[str, ...]] = [
        ("token", "create", tenant, "--qr-file", str(public / name)) for name in ("code.png", "code.svg", "pipe.png")
    ]
    for name in ("acme.yaml", "dangling.yaml", "pipe.yaml"):
        commands.append(("tenant", "create", f"{tenant}_b", "--engine-config", str(public / name)))
        commands.append(("tenant", "rotate-password", tenant, "--engine-config", str(public / name)))
    for argv in commands:
        assert "file in a folder of your own" in posduif(*argv, code=3).err, argv
    for name in ("acme.yaml", "dangling.yaml", "pipe.yaml"):
        posduif("tenant", "engine-config", tenant, "--out", str(public / name), code=None)
    assert target.read_text() == "mine"
    assert not (tmp_path / "chosen").exists()
    assert posduif.json("token", "list", tenant) == []
    posduif("tenant", "show", f"{tenant}_b", code=4)
    assert server.sql("SELECT rolpassword FROM pg_authid WHERE rolname = %s", f"{tenant}_engine") == before

    (tmp_path / "l.csv").write_text(f"name\n{tenant}_b\n")
    plant(public / "configs", tmp_path)
    bulk = ("tenant", "create", "--from", str(tmp_path / "l.csv"), "--engine-config", str(public / "configs"))
    assert "belongs to another user" in posduif(*bulk, code=None).err
    assert not (tmp_path / f"{tenant}_b.yaml").exists()
    posduif("tenant", "show", f"{tenant}_b", code=4)


def test_the_engine_s_file_is_still_written(posduif: Posduif, tenant: str, public: Path) -> None:
    file = public / "acme.yaml"

    def rotate() -> None:
        posduif("tenant", "rotate-password", tenant, "--engine-config", str(file))

    rotate()
    first = yaml.safe_load(file.read_text())
    rotate()
    second = yaml.safe_load(file.read_text())
    assert first["postgres"].pop("password") != second["postgres"].pop("password")
    assert first == second
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert os.listdir(public) == ["acme.yaml"]
