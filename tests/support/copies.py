"""What a tenant holds, how a backup is read, how backups are configured, and what others see of a running command."""

import json
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

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


def configure(tmp_path: Path, **backup: Any) -> None:
    """Change settings of backups in the configuration in a folder."""
    path = tmp_path / "config.yaml"
    config = yaml.safe_load(path.read_text())
    config["backup"] |= backup
    path.write_text(yaml.safe_dump(config))


def exposed(program: bytes, wanted: bytes, *argv: str) -> bytes:
    """Return the command lines and environments that *program* has while a command of posduif runs it.

    It may end between two looks: the command is run again until *wanted* was seen.
    """
    seen = b""
    for _ in range(10):
        process = subprocess.Popen([sys.executable, "-m", "posduif_cli", *argv, "-q"], stdout=subprocess.DEVNULL)
        while process.poll() is None:
            for child in Path("/proc").glob("[0-9]*"):
                with suppress(OSError):
                    words = (child / "cmdline").read_bytes()
                    if program in words.partition(b"\0")[0]:
                        seen += words + (child / "environ").read_bytes()
        assert process.returncode == 0
        if wanted in seen:
            return seen
    raise AssertionError(f"{program!r} was never seen with {wanted!r}")
