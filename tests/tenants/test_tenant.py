"""`posduif tenant` on real servers."""

from support.runner import Posduif
from support.servers import PgServer
from support.sources import LATEST


def test_a_tenant_from_creation_to_removal(posduif: Posduif, server: PgServer, name: str) -> None:
    created = posduif.json("tenant", "create", name, "--url", f"https://{name}.example.com")
    assert created["tenant"] == name
    assert (created["state"], created["schema_version"], created["pending"]) == ("active", LATEST, 0)
    assert created["changed"] is True
    assert name in [row["tenant"] for row in posduif.json("tenant", "list")]
    assert posduif.json("tenant", "show", name)["url"] == f"https://{name}.example.com"

    assert posduif("tenant", "drop", name, code=9).out == ""
    posduif("tenant", "drop", name, "--confirm", name)
    assert posduif("tenant", "show", name, "-o", "json", code=4).error["code"] == "tenant_not_found"
    left = "SELECT 1 FROM pg_roles WHERE rolname = %s UNION SELECT 1 FROM pg_database WHERE datname = %s"
    assert server.sql(left, f"{name}_engine", name) == []
