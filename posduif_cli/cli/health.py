"""`posduif health`: report what is wrong with servers and tenants."""

import typer

from posduif_cli.cli import options
from posduif_cli.cli.context import Noun, app_of

app = Noun()


@app.verb("health", example="posduif health")
def health(ctx: typer.Context, tenant: options.Tenants = None) -> None:
    """Report what is wrong with the named tenants, or with all, and with their servers.

    Exits with 1 when something is critical; a server that cannot be reached is.
    """
    from posduif_cli.core.checks import health as core
    from posduif_cli.render import report

    app = app_of(ctx)
    result = core.report(app.fleet, tenants=tenant or ())
    report.show(app.out, result)
    if result.status == "critical":
        raise typer.Exit(1)
