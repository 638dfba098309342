"""A bucket as the place of backups, on a stand-in of S3's protocol that runs in this process."""

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from posduif_cli.core.copies import stores
from support.copies import configure, exposed, holdings
from support.kills import kill
from support.runner import Posduif
from support.servers import PgServer

pytestmark = pytest.mark.one_server
SECRET = "a-very-secret-key-of-the-store"


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(endpoint: str, store: Path, name: str, tmp_path: Path, clean_environ: pytest.MonkeyPatch) -> str:
    """The configured place of backups; its keys are in the environment."""
    import boto3  # type: ignore[import-untyped]

    for variable in ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION"):
        clean_environ.delenv(variable, raising=False)
    clean_environ.setenv("AWS_ENDPOINT_URL", endpoint)
    clean_environ.setenv("AWS_ACCESS_KEY_ID", "testing")
    clean_environ.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    clean_environ.setenv("AWS_REGION", "us-east-1")
    boto3.client("s3", region_name="us-east-1").create_bucket(Bucket=f"posduif-{name}")
    place = f"s3://posduif-{name}/some/prefix"
    configure(tmp_path, dir=place)
    return place


def objects(bucket: str) -> dict[str, bytes]:
    import boto3

    client = boto3.client("s3", region_name="us-east-1")
    name = bucket.removeprefix("s3://").partition("/")[0]
    listed = client.list_objects_v2(Bucket=name).get("Contents", [])
    return {each["Key"]: client.get_object(Bucket=name, Key=each["Key"])["Body"].read() for each in listed}


def test_a_bucket_does_what_a_folder_does(
    posduif: Posduif, server: PgServer, name: str, bucket: str, store: Path
) -> None:
    posduif("backup", "list", code=3)
    (made,) = posduif.json("backup", "create", name, "--pin", "why")
    assert made["location"] == f"{bucket}/{name}/{made['backup']}"
    (second,) = posduif.json("backup", "create", name)
    assert [b["pinned"] for b in posduif.json("backup", "list", name)] == ["why", None]
    assert [p["verdict"] for p in posduif.json("backup", "verify", name)] == ["proved"]
    assert posduif.json("backup", "show", second["backup"])["verified"] == "proved"
    (proof,) = posduif.json("backup", "verify", second["backup"])
    lines = objects(bucket)[f"some/prefix/{name}/{second['backup']}/proof.jsonl"].splitlines()
    assert [json.loads(line)["verdict"] for line in lines] == ["proved", proof["verdict"]]
    posduif("backup", "restore", made["backup"], "--as", f"{name}_new")
    assert holdings(server, f"{name}_new") == holdings(server, name)
    posduif("backup", "create", name)
    posduif("backup", "create", name)
    posduif("backup", "prune")
    kept = posduif.json("backup", "list", name)
    assert [b["backup"] for b in kept][:2] == [made["backup"], second["backup"]], "pinned, and proved"
    assert len(kept) == 3
    assert posduif.json("backup", "unpin", made["backup"])["changed"] is True
    posduif("backup", "remove", made["backup"], "--confirm", made["backup"])
    assert not [key for key in objects(bucket) if made["backup"] in key]
    posduif("tenant", "drop", name, "--confirm", name)
    posduif("backup", "restore", name)
    assert posduif.json("tenant", "show", name)["state"] == "active"
    assert not store.exists()


def test_a_damaged_object_is_found(posduif: Posduif, name: str, bucket: str) -> None:
    import boto3

    (made,) = posduif.json("backup", "create", name)
    key = f"some/prefix/{name}/{made['backup']}/{made['file']}"
    data = objects(bucket)[key]
    client = boto3.client("s3", region_name="us-east-1")
    client.put_object(Bucket=f"posduif-{name}", Key=key, Body=data[:-1])
    (proof,) = posduif.json("backup", "verify", name, code=1)
    assert proof["verdict"] == "failed"
    client.delete_object(Bucket=f"posduif-{name}", Key=key)
    (proof,) = posduif.json("backup", "verify", name, code=None)
    assert proof["verdict"] != "proved"


@pytest.mark.parametrize(
    "point",
    [
        "after core.copies.streams.pack 1",
        "before core.copies.stores:Bucket.write 1",
    ],
)
def test_a_killed_upload_is_in_no_list_and_swept(
    posduif: Posduif, name: str, bucket: str, point: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    posduif("backup", "create", name)
    known = posduif.json("backup", "list")
    kill(point, "backup", "create", name)
    listed = posduif.json("backup", "list")
    assert listed[: len(known)] == known
    assert {p["verdict"] for p in posduif.json("backup", "verify", *(b["backup"] for b in listed))} == {"proved"}
    store = stores.open_store(bucket)
    store.storage.sweep(time.time() + 60)
    assert {key.rsplit("/", 2)[1] for key in objects(bucket) if name in key} == {b["backup"] for b in listed}


def test_half_an_upload_is_swept(name: str, posduif: Posduif, bucket: str) -> None:
    import boto3

    (made,) = posduif.json("backup", "create", name)
    key = f"some/prefix/{name}/20260101T000000Z-0000/data.dump.zst"
    boto3.client("s3", region_name="us-east-1").put_object(Bucket=f"posduif-{name}", Key=key, Body=b"half")
    assert [b["backup"] for b in posduif.json("backup", "list")] == [made["backup"]]
    stores.open_store(bucket).storage.sweep(time.time() - 60)
    assert key in objects(bucket), "it may be one that is being made"
    stores.open_store(bucket).storage.sweep(time.time() + 60)
    assert key not in objects(bucket)
    assert [b["backup"] for b in posduif.json("backup", "list")] == [made["backup"]]


def test_what_is_wrong_with_a_store_is_said(
    posduif: Posduif, name: str, bucket: str, tmp_path: Path, clean_environ: pytest.MonkeyPatch
) -> None:
    posduif("backup", "create", name)
    configure(tmp_path, dir="s3://posduif-nosuch-bucket/x")
    for argv in (("backup", "create", name), ("backup", "list")):
        told = posduif(*argv, "-o", "json", code=None)
        assert told.code in (3, 6), told
        assert "s3://posduif-nosuch-bucket" in told.error["message"]
        assert SECRET not in told.err
    found = {f["check"]: f["level"] for f in posduif.json("health", name)["findings"]}
    assert found["backup.store"] == "unknown"
    configure(tmp_path, dir=bucket)
    clean_environ.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    told = posduif("backup", "list", "-o", "json", code=6)
    assert "cannot be reached" in told.error["message"]
    assert SECRET not in told.err
    clean_environ.setitem(sys.modules, "obstore", None)
    assert posduif("backup", "list", "-o", "json", code=3).error["try"] == ["pip install 'posduif[s3]'"]


def test_the_store_s_key_is_in_nothing_that_others_see(posduif: Posduif, name: str, bucket: str) -> None:
    assert SECRET.encode() not in exposed(b"pg_dump", b"PGHOST=", "backup", "create", name)
    assert not [key for key, content in objects(bucket).items() if SECRET.encode() in content]
