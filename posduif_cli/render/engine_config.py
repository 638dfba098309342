"""The YAML file that a tenant's sync engine reads."""

import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from posduif_cli.errors import ConfigurationError, FileExists, Run
from posduif_cli.models.tenants import ENGINE_PORT
from posduif_cli.render import files

HEADER = """\
# Configuration of the sync engine of tenant {tenant}, made by posduif.
# Run the engine with TZ=UTC in its environment, or the tokens it makes itself are off by its host's offset.
# WAL mode stays off: it delivers nothing, and its slot keeps the server from recycling WAL.
"""


def complete(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings with a secret and a port where they hold none."""
    return _merged(settings, _DEFAULTS | {"auth": {"jwt_secret": secrets.token_urlsafe(32)}})


_DEFAULTS: dict[str, Any] = {"sse": {"port": ENGINE_PORT}}


def text(settings: Mapping[str, Any]) -> str:
    """Write the settings as the file that the engine reads."""
    body = yaml.safe_dump(complete(settings), sort_keys=False, default_flow_style=False)
    return HEADER.format(tenant=settings["postgres"]["db"]) + body


def _merged(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    """Return what *first* says, and what *second* says where that has no value; mappings are merged."""
    found = {**first}
    for key, value in second.items():
        if isinstance(found.get(key), Mapping) and isinstance(value, Mapping):
            found[key] = _merged(found[key], value)
        elif found.get(key) is None:
            found[key] = value
    return found


def _differing(settings: Mapping[str, Any], document: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Return the keys of *settings*, dotted, whose value a file's *document* has not."""
    found = []
    for key, value in settings.items():
        there = document.get(key)
        if isinstance(value, Mapping):
            found += _differing(value, there if isinstance(there, Mapping) else {}, f"{prefix}{key}.")
        elif value is not None and value != there:
            found.append(prefix + key)
    return found


def refresh(path: Path, settings: Mapping[str, Any]) -> list[str]:
    """Bring a file to the *settings* but for the password, and return the keys that were changed.

    The file keeps its password, keys that posduif does not write, and its secret and port where *settings* hold none.
    Raises FileExists for another tenant's file, ConfigurationError where there is none or it cannot be written.
    """
    tenant, content = settings["postgres"]["db"], files.read(path)
    if content is None:
        raise ConfigurationError(
            f"there is no file {path} to refresh",
            why="a new file takes a new password, which the engine that runs does not know",
            hint=[
                "look at the file's name",
                Run("tenant", "rotate-password", tenant, "--engine-config", str(path), lead="or make it anew"),
            ],
        )
    _password(path, content, tenant)
    document = yaml.safe_load(content)
    wanted = {**settings, "postgres": {**settings["postgres"], "password": document["postgres"]["password"]}}
    changed = _differing(wanted, document)
    if changed:
        files.write_private(path, text(_merged(wanted, document)).encode())
    return changed


def check(path: Path, tenant: str) -> None:
    """Raise unless *path* may hold this tenant's file: FileExists for another's, ConfigurationError."""
    files.check(path)
    content = files.read(path)
    if content is not None:
        _password(path, content, tenant)


def write(path: Path, settings: Mapping[str, Any]) -> list[str]:
    """Write the file with mode 0600 and fsync it; of an existing one only `postgres.password` is changed.

    Return the keys, dotted, in which an existing file differs from the *settings* and stays as it was. Raises
    FileExists when the file is not the configuration of this tenant's engine, ConfigurationError when it cannot be
    written.
    """
    postgres = settings["postgres"]
    content = files.read(path)
    if content is None:
        files.write_private(path, text(settings).encode())
        return []
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
    return _differing(settings, wanted)


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
