"""Encrypted backups: who has a key reads them, nobody else does, and a key that is missing is known in time."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyrage  # type: ignore[import-untyped]
import pytest
import yaml

from posduif_cli.core.copies import streams
from posduif_cli.core.copies.streams import Keys
from posduif_cli.errors import DamagedBackup
from support.copies import configure, exposed, holdings
from support.runner import Posduif
from support.servers import PgServer
from support.sources import REPO

pytestmark = pytest.mark.one_server
README = (REPO / "README.md").read_text(encoding="utf-8")


@pytest.fixture
def keys(store: Path, tmp_path: Path) -> tuple[str, str]:
    """Two identities; the configuration is that of the README, with their recipients."""
    first, second = pyrage.x25519.Identity.generate(), pyrage.x25519.Identity.generate()
    (block,) = [b for b in re.findall(r"^```yaml\n(.*?)^```$", README, re.MULTILINE | re.DOTALL) if "encrypt_to" in b]
    told = yaml.safe_load(block)["backup"]
    assert (told["encrypt_to"], told["identity_file"]) == (["age1ops...", "age1offline..."], "ops.key")
    (tmp_path / "ops.key").write_text(f"# the key of ops\n{first}\n")
    told |= {"dir": str(store), "encrypt_to": [str(first.to_public()), str(second.to_public())]}
    configure(tmp_path, **told)
    return str(first), str(second)


def test_any_one_key_reads_what_no_one_else_can(
    posduif: Posduif, server: PgServer, store: Path, name: str, keys: tuple[str, str], tmp_path: Path
) -> None:
    (made,) = posduif.json("backup", "create", name)
    assert made["encrypted"] is True
    data = (Path(made["location"]) / made["file"]).read_bytes()
    assert data.startswith(b"age-encryption.org/v1")
    written = b"".join(path.read_bytes() for path in store.rglob("*") if path.is_file())
    assert b"hello 1" not in written
    assert b"CREATE TABLE" not in written
    assert keys[0].encode() not in written
    assert [p["verdict"] for p in posduif.json("backup", "verify", name)] == ["proved"]
    assert "backup.key" in {f["check"] for f in posduif("doctor", "-o", "json", code=None).json if f["level"] == "ok"}
    (tmp_path / "second.key").write_text(keys[1])
    configure(tmp_path, identity_file="second.key")
    posduif("backup", "restore", name, "--as", f"{name}_new")
    assert holdings(server, f"{name}_new") == holdings(server, name)
    # The program age reads it, too, where it is installed; here its library does.
    plain = pyrage.decrypt(data, [pyrage.x25519.Identity.from_str(keys[1])])
    assert plain[:4] == b"\x28\xb5\x2f\xfd", "a frame of zstd"


def test_without_a_key_nothing_is_judged_and_nothing_restored(
    posduif: Posduif, store: Path, name: str, keys: tuple[str, str], tmp_path: Path
) -> None:
    configure(tmp_path, identity_file=None)
    posduif("backup", "create", name)
    (proof,) = posduif.json("backup", "verify", name, code=7)
    assert proof["verdict"] == "could_not_verify"
    assert "no key is configured here" in proof["reason"]
    posduif("backup", "restore", name, "--as", f"{name}_new", code=3)
    posduif("backup", "restore", name, "--confirm", name, code=3)
    assert posduif.json("tenant", "show", name)["state"] == "active"
    assert [f["level"] for f in posduif("doctor", "-o", "json", code=None).json if f["check"] == "backup.key"] == [
        "info"
    ]
    (tmp_path / "other.key").write_text(str(pyrage.x25519.Identity.generate()))
    configure(tmp_path, identity_file="other.key")
    (proof,) = posduif.json("backup", "verify", name, code=7)
    assert (proof["verdict"], "cannot decrypt" in proof["reason"]) == ("could_not_verify", True)
    told = posduif("doctor", "-o", "json", code=1).json
    found = [f for f in told if f["check"] == "backup.key" and "cannot decrypt" in f["message"]]
    assert [f["level"] for f in found] == ["critical"]
    posduif("backup", "restore", name, "--as", f"{name}_new", code=3)
    posduif("tenant", "show", f"{name}_new", code=4)
    (tmp_path / "other.key").chmod(0o644)
    told = posduif("doctor", "-o", "json", code=1).json
    assert f"chmod 600 {tmp_path}/other.key" in [finding["fix"] for finding in told]


def test_what_could_not_be_judged_takes_no_judgement_away(
    posduif: Posduif, store: Path, name: str, keys: tuple[str, str], tmp_path: Path
) -> None:
    posduif("backup", "create", name)
    posduif("backup", "verify", name)
    (tmp_path / "ops.key").unlink()
    posduif("backup", "verify", name, code=7)
    assert posduif.json("backup", "show", name)["verified"] == "proved"


def test_backups_that_are_not_encrypted_any_more_are_told(
    posduif: Posduif, store: Path, name: str, keys: tuple[str, str], tmp_path: Path
) -> None:
    posduif("backup", "create", name)
    configure(tmp_path, encrypt_to=[])
    assert "will not be" in posduif("backup", "create", name).err


@pytest.mark.parametrize(
    ("text", "code"), [("", 3), ("rubbish", 3), ("AGE-SECRET-KEY-1NONSENSE", 3), (None, 3), ("\x00\xff", 3)]
)
def test_what_is_no_key_is_said_and_never_shown(
    posduif: Posduif, store: Path, name: str, keys: tuple[str, str], tmp_path: Path, text: str | None, code: int
) -> None:
    posduif("backup", "create", name)
    path = tmp_path / "ops.key"
    path.unlink() if text is None else path.write_text(text, encoding="latin-1")
    told = posduif("backup", "restore", name, "--as", f"{name}_new", "-o", "json", code=code)
    assert "ops.key" in told.error["message"]
    assert not text or text not in told.err


def test_a_recipient_that_is_none_is_known_before_anything_is_dumped(
    posduif: Posduif, store: Path, name: str, keys: tuple[str, str], tmp_path: Path
) -> None:
    configure(tmp_path, encrypt_to=["age1nonsense"])
    error = posduif("backup", "create", name, "-o", "json", code=3).error
    assert "backup.encrypt_to" in error["message"]
    assert posduif.json("backup", "list") == []


def test_an_ssh_key_is_a_key(posduif: Posduif, store: Path, name: str, keys: tuple[str, str], tmp_path: Path) -> None:
    if shutil.which("ssh-keygen") is None:
        pytest.skip("ssh-keygen is not installed")
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / "ssh"], check=True)
    configure(tmp_path, encrypt_to=[(tmp_path / "ssh.pub").read_text().strip()], identity_file="ssh")
    posduif("backup", "create", name)
    assert [p["verdict"] for p in posduif.json("backup", "verify", name)] == ["proved"]


def test_no_key_is_in_what_others_can_see(
    posduif: Posduif, store: Path, name: str, keys: tuple[str, str], tmp_path: Path
) -> None:
    posduif("backup", "create", name)
    assert keys[0].encode() not in exposed(b"pg_restore", b"PGHOST=", "backup", "verify", name)


@pytest.mark.parametrize("cut", [5, 100, 40_000, 64 * 1024])
def test_what_was_cut_or_changed_is_no_content(tmp_path: Path, cut: int) -> None:
    """Also where a file's checksum was made anew: encryption finds it itself, and so does the compression's."""
    one = pyrage.x25519.Identity.generate()
    (tmp_path / "key").write_text(str(one))
    content = os.urandom(300_000)
    (tmp_path / "plain").write_bytes(content)
    for readers in ([], Keys((str(one.to_public()),)).readers()):
        path, identities = tmp_path / "packed", Keys((), tmp_path / "key").identities() if readers else []
        with (tmp_path / "plain").open("rb") as source, path.open("wb") as target:
            plain, packed = streams.pack(source, target, readers)
        assert (plain.count, packed.count) == (300_000, path.stat().st_size)

        def unpacked(path: Path = path, identities: Any = identities, checksum: str = plain.sha256) -> bytes:
            with path.open("rb") as source, (tmp_path / "again").open("wb") as target:
                streams.unpack(source, target, identities, checksum, "here")
            return (tmp_path / "again").read_bytes()

        assert unpacked() == content
        whole = path.read_bytes()
        for damaged in (whole[:-cut], whole[:100] + bytes([whole[100] ^ 1]) + whole[101:], whole[:-1] + b"x", b""):
            path.write_bytes(damaged)
            with pytest.raises(DamagedBackup):
                unpacked()


def test_without_the_package_it_is_said_how_to_get_it(
    posduif: Posduif, store: Path, name: str, keys: tuple[str, str], clean_environ: pytest.MonkeyPatch
) -> None:
    clean_environ.setitem(sys.modules, "pyrage", None)
    error = posduif("backup", "create", name, "-o", "json", code=3).error
    assert error["try"] == ["pip install 'posduif[age]'"]
