"""What a tenant holds, and how a backup is read and changed."""

import json
from pathlib import Path
from typing import Any

from support.servers import PgServer


def holdings(server: PgServer, name: str) -> dict[str, Any]:
    found = {}
    for table in ("users", "messages", "odd", "schema_migrations"):
        found[table] = server.sql(f"SELECT t::text FROM {table} t ORDER BY 1", database=name)
    found["sequence"] = server.sql("SELECT last_value FROM numbers", database=name)
    found["large"] = server.sql("SELECT convert_from(lo_get(oid), 'UTF8') FROM pg_largeobject_metadata", database=name)
    return found


def manifest(folder: str | Path) -> dict[str, Any]:
    return dict(json.loads((Path(folder) / "manifest.json").read_text()))
