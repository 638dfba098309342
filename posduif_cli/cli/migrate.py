"""`posduif migrate`: bring tenants to the newest schema, and see who is where."""

from typing import Annotated

import typer

from posduif_cli.cli import options
from posduif_cli.cli.context import Noun, app_of

app = Noun(help="Bring tenants to the newest schema, and see who is where.")


@app.verb("status", example="posduif migrate status --all")
def status(
    ctx: typer.Context,
    tenant: options.Tenants = None,
    everyone: options.All = False,
    check: Annotated[bool, typer.Option("--check", help="Exit 1 if an active tenant is behind.")] = False,
) -> None:
    """Show where the schemas stand, a row a tenant, from one query a server."""
    from posduif_cli.core import rollouts
    from posduif_cli.models import SchemaStatus, State

    app = app_of(ctx)
    found, errors = rollouts.status(app.fleet, tenants=options.targets(tenant, everyone, "migrate status"))
    app.out.list(found, SchemaStatus, empty="no tenants yet: posduif tenant create NAME")
    app.report_missing(errors)
    if check and any(row.pending or row.error for row in found if row.state is State.ACTIVE):
        raise typer.Exit(1)


@app.verb("list", example="posduif migrate list acme")
def list_(ctx: typer.Context, tenant: options.Tenant) -> None:
    """List a tenant's migrations: applied, pending, missing (its file is gone) or changed since."""
    from posduif_cli.core import migrations
    from posduif_cli.models import Migration

    app = app_of(ctx)
    with app.tenant(tenant) as conn:
        found = migrations.history(conn, folders=app.fleet.folders)
    app.out.list(found, Migration)


@app.verb("up", example="posduif migrate up acme")
def up(
    ctx: typer.Context,
    tenant: Annotated[list[str], typer.Argument(metavar="TENANT...", help="Names of tenants.", show_default=False)],
) -> None:
    """Apply the pending migrations of tenants, each migration in one transaction."""
    from posduif_cli.core import rollouts
    from posduif_cli.models import Outcome

    app = app_of(ctx)
    names = list(dict.fromkeys(tenant))
    outcomes, errors = rollouts.up(app.fleet, tenants=names)
    app.out.list(outcomes, Outcome)
    app.report_failed(errors, among=names)
