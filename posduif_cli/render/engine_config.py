"""The YAML file that a tenant's sync engine reads."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from posduif_cli.errors import ConfigurationError, FileExists
from posduif_cli.render import files

HEADER = """\
# Configuration of the sync engine of tenant {tenant}, made by posduif.
# Run the engine with TZ=UTC in its environment, or the tokens it makes itself are off by its host's offset.
# Give every tenant a Redis database number of its own: the engine's streams have no tenant prefix.
# WAL mode stays off: it delivers nothing, and its slot keeps the server from recycling WAL.
"""


def text(settings: Mapping[str, Any]) -> str:
    """Write the settings as the file that the engine reads."""
    body = yaml.safe_dump(dict(settings), sort_keys=False, default_flow_style=False)
    return HEADER.format(tenant=settings["postgres"]["db"]) + body


def check(path: Path, tenant: str) -> None:
    """Raise unless *path* may hold this tenant's file: FileExists for another's, ConfigurationError."""
    content = files.read(path)
    if content is not None:
        _password(path, content, tenant)


def write(path: Path, settings: Mapping[str, Any]) -> None:
    """Write the file with mode 0600 and fsync it; of an existing one only `postgres.password` is changed.

    Raises FileExists when the file is not the configuration of this tenant's engine, ConfigurationError when
    it cannot be written.
    """
    postgres = settings["postgres"]
    content = files.read(path)
    if content is None:
        files.write_private(path, text(settings).encode())
        return
    node = _password(path, content, postgres["db"])
    start, end = node.start_mark.index, node.end_mark.index
    quoted = yaml.safe_dump(postgres["password"], default_flow_style=True).split("\n")[0]
    changed = content[:start] + ("" if content[:start].endswith((" ", "\n")) else " ") + quoted + content[end:]
    wanted = yaml.safe_load(content)
    wanted["postgres"]["password"] = postgres["password"]
    try:
        same = yaml.safe_load(changed) == wanted
    except yaml.YAMLError:
        same = False
    if not same:
        raise ConfigurationError(
            f"the password in {path} cannot be replaced",
            why="it is written in a way that leaves more than a plain value to change; the file was left as it is",
            hint=f"write `password: old` there, each on a line of its own, or move {path} away",
        )
    files.write_private(path, changed.encode())


def _password(path: Path, content: str, tenant: str) -> Any:
    """Return the node of the password in a file's text; raises FileExists."""
    foreign = FileExists(
        f"{path} exists and is not the engine configuration of tenant {tenant}",
        why="it was left as it is",
        hint="give another file",
    )
    try:
        document = yaml.safe_load(content)
        root: Any = yaml.compose(content, yaml.SafeLoader)
    except (ValueError, KeyError, IndexError, AttributeError, TypeError, RecursionError, yaml.YAMLError):
        raise foreign from None
    if not isinstance(document, dict) or not isinstance(document.get("postgres"), dict):
        raise foreign
    if document["postgres"].get("db") != tenant or "password" not in document["postgres"]:
        raise foreign
    nodes = [node for key, node in root.value if key.value == "postgres" and isinstance(node, yaml.MappingNode)]
    passwords = [node for key, node in nodes[-1].value if key.value == "password"] if nodes else []
    if not passwords:  # it comes by way of an anchor
        raise foreign
    return passwords[-1]
