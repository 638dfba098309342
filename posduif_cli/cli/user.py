"""`posduif user`: the web and mobile users of a tenant."""

from enum import StrEnum
from typing import Annotated

import typer

from posduif_cli.cli import options
from posduif_cli.cli.context import Noun, app_of, counted
from posduif_cli.errors import Run

app = Noun(help="The web and mobile users of a tenant.")


class Type(StrEnum):
    """Kinds of users."""

    WEB = "web"
    MOBILE = "mobile"


Username = Annotated[str, typer.Argument(metavar="USER", help="Name or id of the user.", show_default=False)]


@app.verb("create", example="posduif user create acme desk --type web --if-not-exists")
def create(
    ctx: typer.Context,
    tenant: options.Tenant,
    username: Annotated[str, typer.Argument(metavar="NAME", help="Name of the user.", show_default=False)],
    type_: Annotated[Type, typer.Option("--type", help="Web users work at a desk and create tokens.")],
    if_not_exists: options.IfNotExists = False,
) -> None:
    """Create a user. Mobile users usually come by enrollment."""
    from posduif_cli.core.desk import users
    from posduif_cli.models.desk import User

    app = app_of(ctx)
    app.out.expect(User)
    make = users.create_if_missing if if_not_exists else lambda *a, **k: (users.create(*a, **k), True)
    with app.fleet.open(tenant) as place:
        user, changed = make(place.session, username=username, user_type=type_.value)
    app.out.say(f"user {user.username} {'created' if changed else 'exists, unchanged'}")
    app.out.show(user, changed=changed)


@app.verb("list", example="posduif user list acme --type mobile")
def list_(
    ctx: typer.Context,
    tenant: options.Tenant,
    type_: Annotated[Type | None, typer.Option("--type", help="Only this type.")] = None,
    limit: options.Limit = 1000,
    offset: options.Offset = 0,
) -> None:
    """List the users of a tenant by name."""
    from posduif_cli.core.desk import users
    from posduif_cli.models.desk import User

    app = app_of(ctx)
    with app.fleet.open(tenant) as place:
        found = users.find_all(place.session, user_type=type_.value if type_ else None, limit=limit, offset=offset)
        app.out.list(found, User, empty=Run("user", "create", tenant, "NAME", "--type", "web", lead="no users"))


@app.verb("show", example="posduif user show acme desk")
def show(ctx: typer.Context, tenant: options.Tenant, username: Username) -> None:
    """Show one user."""
    from posduif_cli.core.desk import users

    app = app_of(ctx)
    with app.fleet.open(tenant) as place:
        user = users.find(place.session, username)
    app.out.show(user)


@app.verb("delete", example="posduif user delete acme desk --confirm desk")
def delete(
    ctx: typer.Context,
    tenant: options.Tenant,
    username: Username,
    confirm: options.Confirm = None,
    dry_run: options.DryRun = False,
) -> None:
    """Delete a user with all messages from and to it."""
    from posduif_cli.core.desk import users
    from posduif_cli.models.desk import User
    from posduif_cli.models.runs import Plan, Step

    app = app_of(ctx)
    if not dry_run:
        app.out.expect(User)
    with app.fleet.open(tenant) as place:
        user = users.find(place.session, username)
        users.require_unused(place.session, user=user)
        count = users.loss(place.session, user=user.id)
        if dry_run:
            app.show_plan(Plan((Step("delete messages", f"{count}"), Step("delete user", user.username))))
            return
        app.confirm(
            user.username, confirm, f"delete user {user.username} of tenant {tenant} with {counted(count, 'message')}"
        )
        users.delete(place.session, user=user)
    app.out.say(f"user {user.username} deleted with {counted(count, 'message')}")
    app.out.show(user, changed=True)
