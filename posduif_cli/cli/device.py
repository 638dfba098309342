"""`posduif device`: the phones that enrolled."""

from typing import Annotated

import typer

from posduif_cli.cli import options
from posduif_cli.cli.context import Noun, app_of
from posduif_cli.errors import Run

app = Noun(help="The phones that enrolled.")


@app.verb("list", example="posduif device list acme")
def list_(ctx: typer.Context, tenant: options.Tenant, limit: options.Limit = 1000, offset: options.Offset = 0) -> None:
    """List the devices of a tenant by user, with what waits for each."""
    from posduif_cli.core.desk import devices
    from posduif_cli.models.desk import Device

    app = app_of(ctx)
    with app.fleet.open(tenant) as place:
        found = devices.find_all(place.session, limit=limit, offset=offset)
    app.out.list(found, Device, empty=Run("token", "create", tenant, lead="no devices"))


@app.verb("show", example="posduif device show acme phone-1")
def show(
    ctx: typer.Context,
    tenant: options.Tenant,
    device: Annotated[str, typer.Argument(metavar="DEVICE", help="Id of the device.", show_default=False)],
) -> None:
    """Show one device."""
    from posduif_cli.core.desk import devices

    app = app_of(ctx)
    with app.fleet.open(tenant) as place:
        found = devices.find(place.session, device=device)
    app.out.show(found)
