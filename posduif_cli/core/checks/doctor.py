"""What `doctor` asks: this machine, its configuration and each server, all judged by the registered checks."""

import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from functools import partial

from posduif_cli.core.checks import registry, server
from posduif_cli.core.checks.facts import Configuration, Machine, Setup
from posduif_cli.core.fleet.fleet import Fleet
from posduif_cli.db import embedded
from posduif_cli.errors import ConfigurationError, PosduifError
from posduif_cli.models.checks import Finding


def examine(machine: Machine, configuration: Configuration, fleet: Fleet | None) -> list[Finding]:
    """Return what the checks find; *fleet* is None where no server is named."""
    answers = fleet.ask(partial(server.prove, fleet)) if fleet else {}
    setups = [
        Setup(known, error=answer) if isinstance(answer := answers[known.name], PosduifError) else answer
        for known in (fleet.servers if fleet else ())
    ]
    newest = max(((setup.version_number or 0) // 10000 for setup in setups), default=0)
    machine = replace(machine, newest=newest, pg_dumps={path: _major(path) for path in _pg_dumps()})
    facts = [("machine", machine), ("configuration", configuration), *(("server", setup) for setup in setups)]
    return [finding for scope, found in facts for finding in registry.judge("doctor", scope, found)]


def _pg_dumps() -> Iterator[str]:
    """Find pg_dump on PATH and beside the embedded server."""
    if (found := shutil.which("pg_dump")) is not None:
        yield found
    with suppress(ConfigurationError):
        beside = embedded.locate(None).bin_dir / "pg_dump"
        if beside.is_file():
            yield str(beside)


def _major(pg_dump: str) -> int:
    """Return the major version that a pg_dump says, or 0."""
    try:
        said = subprocess.run([pg_dump, "--version"], capture_output=True, text=True, timeout=10).stdout
    except (OSError, subprocess.TimeoutExpired):
        said = ""
    match = re.search(r"\) (\d+)", said)
    return int(match[1]) if match else 0
