"""`posduif health`: report what is wrong with servers and tenants."""

from typing import TYPE_CHECKING

import typer

from posduif_cli.cli import copies, options
from posduif_cli.cli.context import App, Noun, app_of
from posduif_cli.errors import PosduifError

if TYPE_CHECKING:
    from posduif_cli.models.copies import Backup

app = Noun()


@app.verb("health", example="posduif health")
def health(ctx: typer.Context, tenant: options.Tenants = None) -> None:
    """Report what is wrong with the named tenants, or with all, and with their servers.

    Exits with 1 when something is critical; a server that cannot be reached is.
    """
    from posduif_cli.core.checks import health as core
    from posduif_cli.render import report

    app = app_of(ctx)
    result = core.report(app.fleet, tenants=tenant or (), backups=_backups(app))
    report.show(app.out, result)
    if result.status == "critical":
        raise typer.Exit(1)


def _backups(app: App) -> "list[Backup] | PosduifError | None":
    """Return all backups, or why they cannot be read; None where none are configured."""
    if app.config.backup_dir is None:
        return None
    try:
        return copies.store_of(app).backups()
    except PosduifError as error:
        return error
