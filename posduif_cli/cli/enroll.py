"""`posduif enroll`: complete an enrollment, as a phone would."""

from typing import Annotated

import typer

from posduif_cli.cli import options
from posduif_cli.cli.context import Noun, app_of
from posduif_cli.cli.token import which
from posduif_cli.errors import Run, UsageError

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
    username: Annotated[
        str | None, typer.Option("--username", metavar="NAME", help="Name of the mobile user; a new one.")
    ] = None,
    token: options.TokenSecret = None,
    replace_device: Annotated[
        bool, typer.Option("--replace-device", help="The user exists: give it this phone in place of its own.")
    ] = False,
    re_enroll: Annotated[
        bool, typer.Option("--re-enroll", help="The phone is enrolled: it stays with its user.")
    ] = False,
) -> None:
    """Spend a token and make the mobile user, all or nothing.

    A user or a device that exists is taken over only with --replace-device or --re-enroll.
    """
    from posduif_cli.core.desk import enrollments
    from posduif_cli.models.desk import Enrollment

    app = app_of(ctx)
    app.out.expect(Enrollment)
    if replace_device and re_enroll:
        raise UsageError("--replace-device and --re-enroll exclude each other")
    if username is None and not re_enroll:
        raise UsageError("--username is missing", hint=Run("enroll", "complete", "--help"))
    name, secret = which(app, tenant, token)
    with app.fleet.open(name) as place:
        enrollment = enrollments.complete(
            place.session,
            token=secret,
            device=device,
            username=username,
            replace_device=replace_device,
            re_enroll=re_enroll,
        )
    app.out.say(f"{enrollment.username} enrolled device {device} in tenant {name}")
    app.out.show(enrollment, changed=True)
