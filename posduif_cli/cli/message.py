"""`posduif message`: send, read and mark messages."""

import sys
from enum import StrEnum
from typing import Annotated

import typer

from posduif_cli.cli import options
from posduif_cli.cli.context import Noun, app_of
from posduif_cli.errors import UsageError

app = Noun(help="Send, read and mark messages.")

User = Annotated[str, typer.Argument(metavar="USER", help="Name or id of the user.", show_default=False)]


class Status(StrEnum):
    """What a message can be marked as."""

    READ = "read"
    SYNCED = "synced"


def read_text(text: str) -> str:
    """Return the text of a message; `-` reads it from stdin. Raises UsageError for what is not UTF-8."""
    if text != "-":
        return text
    try:
        return sys.stdin.buffer.read().decode("utf-8").removesuffix("\n")
    except UnicodeDecodeError:
        raise UsageError("the message is not text", why="stdin is not UTF-8") from None


@app.verb("send", example="posduif message send acme --from desk --to Mia 'Hello, Mia'")
def send(
    ctx: typer.Context,
    tenant: options.Tenant,
    text: Annotated[str, typer.Argument(metavar="TEXT", help="The text; - reads stdin.", show_default=False)],
    sender: Annotated[str, typer.Option("--from", metavar="USER", help="Name or id of the sender.")],
    recipient: Annotated[str, typer.Option("--to", metavar="USER", help="Name or id of the recipient.")],
) -> None:
    """Send a message from one user to another."""
    from posduif_cli.core.desk import messages
    from posduif_cli.models.desk import Message

    app = app_of(ctx)
    app.out.expect(Message)
    content = read_text(text)
    with app.fleet.open(tenant) as place:
        message = messages.send(place.session, sender=sender, recipient=recipient, text=content)
    app.out.say(f"message {message.id} sent to {message.recipient}")
    app.out.show(message, changed=True)


@app.verb("inbox", example="posduif message inbox acme Mia --limit 20")
def inbox(
    ctx: typer.Context,
    tenant: options.Tenant,
    user: User,
    limit: options.Limit = 50,
    offset: options.Offset = 0,
) -> None:
    """List what a user received, the newest first."""
    from posduif_cli.core.desk import messages
    from posduif_cli.models.desk import Message

    app = app_of(ctx)
    with app.fleet.open(tenant) as place:
        found = messages.inbox(place.session, user=user, limit=limit, offset=offset)
    app.out.list(found, Message, empty="no messages")


@app.verb("unread", example="posduif message unread acme Mia")
def unread(ctx: typer.Context, tenant: options.Tenant, user: User) -> None:
    """Count what a user has not read."""
    from posduif_cli.core.desk import messages

    app = app_of(ctx)
    with app.fleet.open(tenant) as place:
        found = messages.unread(place.session, user=user)
    app.out.show(found)


@app.verb("pending", example="posduif message pending acme --device phone-1")
def pending(
    ctx: typer.Context,
    tenant: options.Tenant,
    device: Annotated[str, typer.Option("--device", metavar="ID", help="Id of the device.")],
    limit: options.Limit = 50,
    offset: options.Offset = 0,
) -> None:
    """List what waits for a device, the oldest first."""
    from posduif_cli.core.desk import messages
    from posduif_cli.models.desk import Message

    app = app_of(ctx)
    with app.fleet.open(tenant) as place:
        found = messages.pending(place.session, device=device, limit=limit, offset=offset)
    app.out.list(found, Message, empty="nothing waits for this device")


@app.verb("mark", example="posduif message mark acme 5f3759df-0000-4000-8000-000000000000 read")
def mark(
    ctx: typer.Context,
    tenant: options.Tenant,
    message: Annotated[str, typer.Argument(metavar="ID", help="Id of the message.", show_default=False)],
    status: Annotated[Status, typer.Argument(help="What it is now.", show_default=False)],
) -> None:
    """Mark a message as synced or read."""
    from posduif_cli.core.desk import messages
    from posduif_cli.models.desk import Message

    app = app_of(ctx)
    app.out.expect(Message)
    with app.fleet.open(tenant) as place:
        found, changed = messages.mark(place.session, message=message, status=status.value)
    app.out.say(f"message {found.id} {'is now' if changed else 'was already'} {found.status}")
    app.out.show(found, changed=changed)
