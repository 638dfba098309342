"""`posduif health`: report what is wrong with servers and tenants."""

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from posduif_cli.cli import copies, options
from posduif_cli.cli.context import App, Noun, app_of
from posduif_cli.errors import PosduifError

if TYPE_CHECKING:
    from posduif_cli.models.copies import Backup

app = Noun()


class FailOn(StrEnum):
    """From which level on a report is a failure."""

    CRITICAL = "critical"
    WARNING = "warning"
    UNKNOWN = "unknown"


Only = Annotated[
    list[str] | None, typer.Option("--only", metavar="CHECK", help="Only this check, or all below: backup.")
]
Skip = Annotated[list[str] | None, typer.Option("--skip", metavar="CHECK", help="Not this check, or none below.")]


@app.verb("health", example="posduif health")
def health(
    ctx: typer.Context,
    tenant: options.Tenants = None,
    only: Only = None,
    skip: Skip = None,
    fail_on: Annotated[
        FailOn, typer.Option("--fail-on", help="Exit with 1 from this level on: unknown, warning, critical.")
    ] = FailOn.CRITICAL,
    list_checks: Annotated[bool, typer.Option("--list-checks", help="List the checks; ask no server.")] = False,
    explain: Annotated[
        str | None, typer.Option("--explain", metavar="CHECK", help="Say what a check looks at, and why.")
    ] = None,
) -> None:
    """Report what is wrong with the named tenants, or with all, and with their servers.

    Exits with 1 when something is critical; a server that cannot be reached is.
    """
    from posduif_cli.core.checks import health as core
    from posduif_cli.core.checks import registry
    from posduif_cli.models.checks import CheckInfo, Level
    from posduif_cli.render import report

    app = app_of(ctx)
    if list_checks or explain:
        found = registry.explain("health", explain) if explain else registry.infos("health")
        if explain and len(found) == 1:
            app.out.show(found[0])
        else:
            app.out.list(found, CheckInfo)
        return
    chosen = registry.choose("health", only or (), skip or ())
    backups = _backups(app) if any(id.startswith("backup.") for id in chosen) else None
    result = core.report(app.fleet, tenants=tenant or (), backups=backups, checks=chosen)
    report.show(app.out, result)
    levels = list(Level)
    if levels.index(Level(result.status)) >= levels.index(Level(fail_on.value)):
        raise typer.Exit(1)


def _backups(app: App) -> "list[Backup] | PosduifError | None":
    """Return all backups, or why they cannot be read; None where none are configured."""
    if app.config.backup_dir is None:
        return None
    try:
        return copies.store_of(app).backups()
    except PosduifError as error:
        return error
