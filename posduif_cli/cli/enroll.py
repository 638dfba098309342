"""`posduif enroll`: complete an enrollment, as a phone would."""

from typing import Annotated

import typer

from posduif_cli.cli import options
from posduif_cli.cli.context import Noun, app_of
from posduif_cli.cli.token import which

app = Noun(help="Complete an enrollment, as a phone would.")


@app.callback()
def enroll() -> None:
    """Complete an enrollment, as a phone would."""


@app.verb(
    "complete",
    example="posduif enroll complete acme 5f3759df-0000-4000-8000-000000000000 --device phone-1 --username Mia",
)
def complete(
    ctx: typer.Context,
    tenant: options.TokenTenant,
    device: Annotated[str, typer.Option("--device", metavar="ID", help="Id of the phone.")],
    username: Annotated[str, typer.Option("--username", metavar="NAME", help="Name of the new mobile user.")],
    token: options.TokenText = None,
) -> None:
    """Spend a token and make the mobile user, all or nothing; never takes a user or a device over."""
    from posduif_cli.core.desk import enrollments
    from posduif_cli.models.desk import Enrollment

    app = app_of(ctx)
    app.out.expect(Enrollment)
    name, secret = which(app, tenant, token)
    with app.fleet.open(name) as place:
        enrollment = enrollments.complete(place.session, token=secret, device=device, username=username)
    app.out.say(f"{username} enrolled device {device} in tenant {name}")
    app.out.show(enrollment, changed=True)
