"""What can be wrong with a backup, layer by layer: found and named, also where its checksums were made anew."""

import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Collection
from pathlib import Path

import pytest
import zstandard

from posduif_cli.core.copies import clients
from support.runner import Posduif
from support.servers import PgServer

pytestmark = pytest.mark.one_server
Damage = Callable[[Path, bytes, "Kept"], bytes]


class Kept:
    """A backup, and the tenant and the server that it is of."""

    def __init__(self, server: PgServer, name: str, folder: Path, other: Path) -> None:
        self.server, self.name, self.folder, self.other = server, name, folder, other

    def dump(self, *options: str) -> bytes:
        """A dump of the tenant by pg_dump, as it ought not to be made."""
        program = clients.found(None)[18][0] / "pg_dump"
        argv = [str(program), "-Fc", "-Z0", *options, "-d", self.server.dsn_for(dbname=self.name)]
        return subprocess.run(argv, capture_output=True, check=True).stdout


def flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def zeroed(data: bytes) -> bytes:
    at = len(data) // 2
    return data[:at] + bytes(4096) + data[at + 4096 :]


def text(data: bytes, old: bytes, new: bytes) -> bytes:
    assert data.count(old) >= 1
    assert len(old) == len(new)
    return data.replace(old, new, 1)


# What is done to the plain dump, and what is said of it where the file's checksums were made anew afterwards.
DEEP: dict[str, tuple[Damage, str]] = {
    "a value edited": (
        lambda p, d, c: text(d, b"hello 77", b"hello 78"),
        "table public.messages has 500 rows, and what they hold differs",
    ),
    "a bit flipped in the rows": (
        lambda p, d, c: flipped(d, d.index(b"hello 300")),
        "table public.messages has 500 rows, and what they hold differs",
    ),
    "a bit flipped in the table of contents": (
        lambda p, d, c: text(d, b"CREATE TABLE public.odd", b"CREATE TABLE public.ode"),
        "",
    ),
    "cut by a byte": (lambda p, d, c: d[:-1], ""),
    "cut by half": (lambda p, d, c: d[: len(d) // 2], ""),
    "4 KiB zeroed": (lambda p, d, c: zeroed(d), ""),
    "an empty file": (lambda p, d, c: b"", ""),
    "a table left out": (lambda p, d, c: c.dump("-T", "odd"), "table public.odd is missing"),
    "its rows left out": (
        lambda p, d, c: c.dump("--exclude-table-data=messages"),
        "table public.messages has 0 rows, not 500",
    ),
    "the dump of another day": (lambda p, d, c: plain(c.other), "table public.messages has 501 rows, not 500"),
    "an index left out": (
        lambda p, d, c: text(d, b"CREATE INDEX idx_messages_status", b"SELECT 1 ------- messages_status"),
        "the schema's fingerprint",
    ),
}  # fmt: skip


def plain(folder: Path) -> bytes:
    return zstandard.ZstdDecompressor().decompressobj().decompress((folder / "data.dump.zst").read_bytes())


def rewrite(folder: Path, content: bytes) -> None:
    """Put another dump in a backup's place, with all checksums right."""
    packed = zstandard.ZstdCompressor(write_checksum=True).compress(content)
    (folder / "data.dump.zst").write_bytes(packed)
    noted = json.loads((folder / "manifest.json").read_text())
    noted["files"][0] |= {
        "bytes": len(packed), "sha256": hashlib.sha256(packed).hexdigest(),
        "plain_bytes": len(content), "plain_sha256": hashlib.sha256(content).hexdigest(),
    }  # fmt: skip
    (folder / "manifest.json").write_text(json.dumps(noted))


@pytest.fixture
def case(posduif: Posduif, server: PgServer, store: Path, name: str) -> Kept:
    (made,) = posduif.json("backup", "create", name)
    posduif("message", "send", name, "--from", "desk", "--to", "mia", "of another day")
    (other,) = posduif.json("backup", "create", name)
    server.sql("DELETE FROM messages WHERE content = 'of another day'", database=name)
    return Kept(server, name, Path(made["location"]), Path(other["location"]))


def copies(case: Kept, kinds: Collection[str]) -> dict[str, Path]:
    """A copy of a backup for each kind of damage, under an id of its own."""
    found = {}
    for number, kind in enumerate(kinds):
        found[kind] = case.folder.with_name(f"20200101T000000Z-{number:04x}")
        shutil.copytree(case.folder, found[kind])
        noted = json.loads((found[kind] / "manifest.json").read_text()) | {"id": found[kind].name}
        (found[kind] / "manifest.json").write_text(json.dumps(noted))
    return found


def test_what_was_wrong_when_it_was_dumped_is_found(posduif: Posduif, case: Kept) -> None:
    """The checksum says nothing here: it is that of the damaged file. Only a restore and the sums do."""
    damaged = copies(case, DEEP)
    for kind, folder in damaged.items():
        rewrite(folder, DEEP[kind][0](folder, plain(folder), case))
    told = posduif("backup", "verify", *(folder.name for folder in damaged.values()), "-o", "json", code=1).json
    proofs = {proof["backup"]: proof for proof in told}
    for kind, folder in damaged.items():
        proof, words = proofs[folder.name], DEEP[kind][1]
        assert proof["verdict"] == "failed" if words else proof["verdict"] != "proved", (kind, proof)
        assert words in proof["reason"], kind


@pytest.mark.parametrize("kind", ["a value edited", "cut by half", "a table left out"])
def test_nothing_becomes_a_tenant_of_it(posduif: Posduif, case: Kept, kind: str) -> None:
    rewrite(case.folder, DEEP[kind][0](case.folder, plain(case.folder), case))
    assert posduif("backup", "restore", case.folder.name, "--as", f"{case.name}_new", code=None).code in (5, 7)
    posduif("tenant", "show", f"{case.name}_new", code=4)


SHALLOW: dict[str, Callable[[bytes], bytes]] = {
    "a bit flipped": lambda d: flipped(d, len(d) // 2),
    "cut by a byte": lambda d: d[:-1],
    "cut by half": lambda d: d[: len(d) // 2],
    "4 KiB zeroed": lambda d: d[:1000] + bytes(4096) + d[5096:],
    "bytes appended": lambda d: d + b"more",
    "an empty file": lambda d: b"",
}


def test_what_changed_afterwards_is_found_by_its_checksum(posduif: Posduif, case: Kept) -> None:
    damaged = copies(case, SHALLOW)
    for kind, folder in damaged.items():
        file = folder / "data.dump.zst"
        file.write_bytes(SHALLOW[kind](file.read_bytes()))
    told = posduif("backup", "verify", *(folder.name for folder in damaged.values()), "-o", "json", code=1).json
    assert {(proof["verdict"], proof["reason"]) for proof in told} == {
        ("failed", "its SHA-256 is not that of the manifest")
    }
    assert len(told) == len(SHALLOW)
    error = posduif("backup", "restore", folder.name, "--as", f"{case.name}_new", "-o", "json", code=5).error
    assert str(folder) in error["message"]


def test_the_right_file_under_another_name_is_found(posduif: Posduif, case: Kept, store: Path, name: str) -> None:
    """Of another tenant, and of another day, with its manifest."""
    wrong = store / name / "20200101T000000Z-0000"
    shutil.copytree(case.folder, wrong)
    (proof,) = posduif.json("backup", "verify", f"{wrong}/", code=1)
    assert f"its manifest is that of {name}/{case.folder.name}" in proof["reason"]
    shutil.rmtree(wrong)
    (store / "other").mkdir()
    shutil.copytree(case.folder, store / "other" / case.folder.name)
    (proof,) = posduif.json("backup", "verify", f"{store}/other/{case.folder.name}", code=1)
    assert f"its manifest is that of {name}/" in proof["reason"]
    shutil.copyfile(case.other / "data.dump.zst", case.folder / "data.dump.zst")
    (proof,) = posduif.json("backup", "verify", f"{case.folder}/data.dump.zst", code=1)
    assert "SHA-256" in proof["reason"]


def test_a_copy_is_restored_from_wherever_it_lies(
    posduif: Posduif, case: Kept, name: str, tmp_path: Path, clean_environ: pytest.MonkeyPatch, server: PgServer
) -> None:
    """On a machine without a configuration."""
    stick = tmp_path / "stick" / case.folder.name
    shutil.copytree(case.folder, stick)
    clean_environ.setenv("POSDUIF_CONFIG", "")
    clean_environ.delenv("POSDUIF_CONFIG")
    clean_environ.setenv("HOME", str(tmp_path / "nobody"))
    clean_environ.setenv("XDG_CONFIG_HOME", str(tmp_path / "none"))
    clean_environ.setenv("POSDUIF_DSN", server.dsn_for(user=f"{name}_ops"))
    posduif("backup", "restore", f"{stick}/manifest.json", "--as", f"{name}_new")
    assert server.sql("SELECT count(*) FROM messages", database=f"{name}_new") == [(500,)]
    posduif("backup", "restore", f"{tmp_path}/nothing/here", "--as", f"{name}_other", code=4)


def test_a_manifest_that_names_another_file_is_none(posduif: Posduif, case: Kept) -> None:
    noted = json.loads((case.folder / "manifest.json").read_text())
    noted["files"][0]["name"] = "../../../config.yaml"
    (case.folder / "manifest.json").write_text(json.dumps(noted))
    error = posduif("backup", "restore", case.folder.name, "--as", f"{case.name}_new", "-o", "json", code=5).error
    assert "is no dump" in error["why"]


@pytest.mark.parametrize("content", ["{", '{"format": 2}', '{"format": 1}'])
def test_a_manifest_that_cannot_be_read_hides_no_other(posduif: Posduif, case: Kept, content: str, store: Path) -> None:
    (case.folder / "manifest.json").write_text(content, encoding="latin-1")
    listed = posduif("backup", "list", "-o", "json", code=8)
    assert [backup["backup"] for backup in listed.json] == [case.other.name]
    assert str(case.folder) in posduif("backup", "list", code=8).err
    posduif("backup", "list", "--check-age", "1h", code=1)
    posduif("backup", "verify", case.folder.name, code=1)
    posduif("backup", "restore", case.folder.name, "--as", f"{case.name}_new", code=5)
    posduif("backup", "create", case.name)
    assert case.folder.name not in posduif("backup", "prune", "--confirm", store.name, code=8).out
    assert case.folder.exists(), "what cannot be read is not deleted"
    shutil.rmtree(case.other, ignore_errors=True)  # prune may have taken it
    for path in case.folder.parent.glob("2*"):
        (path / "manifest.json").write_text("{")
    assert (
        "cannot be read" in posduif("backup", "restore", case.name, "--as", "x", "-o", "json", code=5).error["message"]
    )
    posduif("backup", "drill", code=8)


def test_a_full_disk_leaves_nothing_and_says_so(
    posduif: Posduif, server: PgServer, store: Path, name: str, tmp_path: Path
) -> None:
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("only root may mount a small file system")
    small = tmp_path / "small"
    small.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24M", "none", small], capture_output=True)
    if done.returncode:
        pytest.skip("no file system can be mounted here")
    try:
        config = (tmp_path / "config.yaml").read_text().replace(str(store), str(small / "store"))
        (tmp_path / "config.yaml").write_text(config)
        posduif("backup", "create", name)
        (known,) = posduif.json("backup", "list")
        large = "string_agg(md5(random()::text), '') FROM users, generate_series(1, 900000) GROUP BY id"
        server.sql(f"INSERT INTO messages (sender_id, recipient_id, content) SELECT id, id, {large}", database=name)
        filler = small / "filler"
        filler.write_bytes(bytes(500_000))
        # Room for one like the last, and some more: it is full in the middle of the dump.
        error = posduif("backup", "create", name, "-o", "json", code=7).error
        assert "room" in error["message"] + error["why"] or "space" in error["why"]
        filler.unlink()
        with (small / "filler").open("wb") as file:
            file.write(bytes(23_000_000))
        error = posduif("backup", "create", name, "-o", "json", code=7).error
        assert "there is no room for the backup" in error["message"]
        assert posduif.json("backup", "list") == [known]
        assert not list((small / "store").glob(".part-*"))
    finally:
        subprocess.run(["umount", small], check=True)


def test_a_full_scratch_is_no_judgement(
    posduif: Posduif, store: Path, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from posduif_cli.core.copies import load

    posduif("backup", "create", name)
    monkeypatch.setattr(load, "GROWS", 10**9)  # as if the backup were that much larger
    (proof,) = posduif.json("backup", "verify", name, code=7)
    assert (proof["verdict"], "there is no room" in proof["reason"]) == ("could_not_verify", True)
    posduif("backup", "list", "--check-age", "1h")
