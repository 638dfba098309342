"""Times that the engine may write and RFC 3339 cannot say: shown as PostgreSQL's text, and never fatal."""

import json

import pytest

from support.runner import Posduif
from support.servers import PgServer

ODD = {
    "infinity": "infinity",
    "-infinity": "-infinity",
    "0044-03-15 00:00:00 BC": "0044-03-15 00:00:00 BC",
    "0001-01-01 00:00:00 BC": "0001-01-01 00:00:00 BC",  # Go's year 0000
    "20260-01-02 03:04:05": "20260-01-02 03:04:05",
    "9999-12-31 23:59:59": "9999-12-31T23:59:59Z",
    "0001-01-01 00:00:00": "0001-01-01T00:00:00Z",
}


@pytest.mark.parametrize(
    ("written", "zone"),
    [*((written, "Pacific/Kiritimati") for written in ODD), ("0001-01-01 00:00:00", "America/New_York")],
)
def test_odd_times_are_shown(
    posduif: Posduif, server: PgServer, tenant: str, written: str, zone: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TZ", zone)
    url = posduif("token", "create", tenant).out.strip()
    posduif("enroll", "complete", url, "--device", "d1", "--username", "mia")
    posduif("message", "send", tenant, "--from", "desk", "--to", "mia", "hello")
    posduif("token", "create", tenant, "--for", "spare")
    for table in ("users", "messages", "enrollment_tokens", "sync_metadata"):
        server.sql(f"ALTER TABLE {table} DISABLE TRIGGER USER", database=tenant)
        columns = server.sql(
            """SELECT attname::text FROM pg_attribute WHERE attrelid = to_regclass(%s) AND attnum > 0
               AND atttypid = 'timestamp'::regtype AND attname <> 'used_at'""",
            table,
            database=tenant,
        )
        server.sql(f"UPDATE {table} SET " + ", ".join(f"{name} = '{written}'" for (name,) in columns), database=tenant)
    shown = ODD[written]
    mia = ("message", "inbox", tenant, "mia")
    for argv, field in (
        (("user", "list", tenant), "created_at"),
        (("user", "show", tenant, "mia"), "enrolled_at"),
        (("device", "list", tenant), "last_activity"),
        (("device", "show", tenant, "d1"), "enrolled_at"),
        (("token", "list", tenant), "expires_at"),
        (mia, "created_at"),
        (("message", "pending", tenant, "--device", "d1"), "created_at"),
    ):
        for form in ("table", "tsv", "jsonl"):
            posduif(*argv, "-o", form)
        rows = posduif.json(*argv)
        for row in rows if isinstance(rows, list) else [rows]:
            assert row[field] == shown, (argv, row)
    refused = posduif("enroll", "complete", url, "--device", "d2", "--username", "other", code=5)
    assert "used already" in refused.err
    posduif("token", "revoke", tenant, url, code=5)
    posduif("health")
    posduif("tenant", "list")
    posduif("token", "purge", tenant)
    assert posduif("tenant", "drop", tenant, code=9).err.count("last activity") == 1
    dropped = posduif.json("tenant", "drop", tenant, "--confirm", tenant)
    assert dropped["last_activity"] == shown
    assert json.dumps(dropped)
