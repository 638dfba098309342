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


@app.verb("remove", example="posduif device remove acme Mia")
def remove(
    ctx: typer.Context,
    tenant: options.Tenant,
    device: Annotated[
        str, typer.Argument(metavar="DEVICE", help="Id of the device, or name or id of its user.", show_default=False)
    ],
) -> None:
    """Take a lost phone from its user; the user and its messages stay, and a new phone can be enrolled.

    The lost phone is not shut out by this: the sync engine serves every device id. A phone that lost its user to
    another one is noted as gone.
    """
    from posduif_cli.core.desk import devices
    from posduif_cli.models.desk import Device, User

    app = app_of(ctx)
    app.out.expect(User)
    with app.fleet.open(tenant) as place:
        user, changed = devices.remove(place.session, device=device)
    if isinstance(user, Device):
        app.out.say(f"device {user.device_id} of tenant {tenant} has no user; it is noted as gone")
        app.out.show(user, changed=changed)
        return
    app.out.say(f"user {user.username} of tenant {tenant} {'has no device now' if changed else 'had no device'}")
    app.out.say(Run("token", "create", tenant, "--for", user.username, lead="a code for the new phone"))
    app.out.show(user, changed=changed)
