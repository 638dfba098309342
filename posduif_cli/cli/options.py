"""Arguments and options that several commands share."""

from pathlib import Path
from typing import Annotated

import typer

from posduif_cli import notation
from posduif_cli.errors import NoTargets, Run, UsageError

Tenant = Annotated[str, typer.Argument(metavar="TENANT", help="Name of the tenant.", show_default=False)]
MaybeTenant = Annotated[str | None, typer.Argument(metavar="[TENANT]", help="Name of the tenant.")]
Tenants = Annotated[
    list[str] | None, typer.Argument(metavar="[TENANT]...", help="Names of tenants.", show_default=False)
]
All = Annotated[bool, typer.Option("--all", help="Every tenant of the configured servers.")]
DryRun = Annotated[bool, typer.Option("-n", "--dry-run", help="Show what would be done; change nothing.")]
Confirm = Annotated[
    str | None,
    typer.Option("--confirm", metavar="NAME", help="The name of what is changed or destroyed, to confirm it."),
]
IfNotExists = Annotated[bool, typer.Option("--if-not-exists", help="Succeed when it exists and does not differ.")]
EngineFiles = Annotated[
    Path | None,
    typer.Option(
        "--engine-config",
        metavar="FILE|DIR",
        help="Write the sync engine's configuration here (mode 0600); of several tenants, DIR/TENANT.yaml of each.",
    ),
]
Out = Annotated[Path | None, typer.Option("--out", metavar="FILE", help="Write to this file instead of stdout.")]
Url = Annotated[
    str | None,
    typer.Option("--url", metavar="ORIGIN", help="Origin that phones reach the tenant by: https://host[:port]."),
]
EnginePort = Annotated[
    int | None,
    typer.Option(
        "--engine-port", metavar="PORT", min=1, max=65_535, help="TCP port that the tenant's engine listens on."
    ),
]
Redis = Annotated[
    str | None,
    typer.Option("--redis", metavar="HOST[:PORT][/DB]", help="Redis server that the tenant's engine uses."),
]
ListAll = Annotated[bool, typer.Option("--list", help="List every tenant, the unchanged ones too.")]
Jobs = Annotated[
    int, typer.Option("--jobs", metavar="N", min=1, max=64, help="At once on each server, within its share.")
]
IgnoreUnreachable = Annotated[
    bool,
    typer.Option("--ignore-unreachable", help="Take a server that cannot be reached for one without this name."),
]
Limit = Annotated[int, typer.Option("--limit", metavar="N", min=1, max=1_000_000, help="At most this many.")]
Offset = Annotated[int, typer.Option("--offset", metavar="N", min=0, help="Skip this many.")]
TokenTenant = Annotated[
    str,
    typer.Argument(
        metavar="TENANT", help="Name of the tenant, or the enrollment URL in place of both.", show_default=False
    ),
]
TokenSecret = Annotated[
    str | None,
    typer.Argument(
        metavar="[TOKEN]", help="The token, the last part of the enrollment URL; - reads it.", show_default=False
    ),
]
TokenText = Annotated[
    str | None,
    typer.Argument(
        metavar="[TOKEN]", help="The token, its id or label, or the enrollment URL; - reads it.", show_default=False
    ),
]


def url(text: str | None) -> str | None:
    """Check an --url; raises UsageError."""
    if text is not None and "{" in text:
        raise UsageError(f'"{text}" is not an origin', hint="https://acme.example.com")
    return None if text is None else notation.origin(text.rstrip("/"))


def targets(tenants: list[str] | None, everyone: bool, command: str) -> list[str] | None:
    """Return the named tenants, or None for --all; raises NoTargets or UsageError."""
    if tenants and everyone:
        raise UsageError("--all and tenants by name exclude each other", hint=Run(*command.split(), "--all"))
    if not tenants and not everyone:
        raise NoTargets(
            "no tenants are named", hint=[Run(*command.split(), "TENANT..."), Run(*command.split(), "--all")]
        )
    return list(dict.fromkeys(tenants)) if tenants else None
