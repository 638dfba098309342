"""`posduif message`: send, read and mark messages."""

import sys
from collections.abc import Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from posduif_cli.cli import options
from posduif_cli.cli.context import App, Noun, app_of
from posduif_cli.errors import UsageError

if TYPE_CHECKING:
    from posduif_cli.models.desk import Message

app = Noun(help="Send, read and mark messages.")

User = Annotated[str, typer.Argument(metavar="USER", help="Name or id of the user.", show_default=False)]


class State(StrEnum):
    """How far a message is."""

    PENDING_SYNC = "pending_sync"
    SYNCED = "synced"
    READ = "read"


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
        message = messages.send(place, sender=sender, recipient=recipient, text=content)
    app.out.say(f"message {message.id} sent to {message.recipient}")
    app.out.show(message, changed=True)


def show_all(app: App, found: Sequence["Message"], *, empty: str) -> None:
    """Show messages, and say where the login may not read their texts."""
    from posduif_cli.models.desk import Message

    if any(message.content is None for message in found):
        app.out.say("texts are left out: this login may not read them")
    app.out.list(found, Message, empty=empty)


@app.verb("list", example="posduif message list acme --to Mia --status pending_sync")
def list_(
    ctx: typer.Context,
    tenant: options.Tenant,
    sender: Annotated[str | None, typer.Option("--from", metavar="USER", help="Only of this sender.")] = None,
    recipient: Annotated[str | None, typer.Option("--to", metavar="USER", help="Only to this recipient.")] = None,
    status: Annotated[
        State | None,
        typer.Option("--status", metavar="STATUS", help="Only these: pending_sync, synced or read."),
    ] = None,
    limit: options.Limit = 50,
    offset: options.Offset = 0,
) -> None:
    """List messages of a tenant, the newest first: whether one was fetched, and when it was read."""
    from posduif_cli.core.desk import messages

    app = app_of(ctx)
    with app.fleet.open(tenant) as place:
        found = messages.find_all(
            place.session,
            sender=sender,
            recipient=recipient,
            status=status.value if status else None,
            limit=limit,
            offset=offset,
        )
    show_all(app, found, empty="no messages")


@app.verb("show", example="posduif message show acme 5f3759df-0000-4000-8000-000000000000")
def show(
    ctx: typer.Context,
    tenant: options.Tenant,
    message: Annotated[str, typer.Argument(metavar="ID", help="Id of the message.", show_default=False)],
) -> None:
    """Show one message: whether it was fetched and read, and when."""
    from posduif_cli.core.desk import messages

    app = app_of(ctx)
    with app.fleet.open(tenant) as place:
        found = messages.find(place.session, message=message)
    if found.content is None:
        app.out.say("the text is left out: this login may not read it")
    app.out.show(found)


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

    app = app_of(ctx)
    with app.fleet.open(tenant) as place:
        found = messages.find_all(place.session, recipient=user, limit=limit, offset=offset)
    show_all(app, found, empty="no messages")


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
    device: Annotated[
        str | None, typer.Option("--device", metavar="ID", help="Only for this device; else for all users.")
    ] = None,
    limit: options.Limit = 50,
    offset: options.Offset = 0,
) -> None:
    """List what waits to be fetched by a phone, the oldest first."""
    from posduif_cli.core.desk import messages

    app = app_of(ctx)
    with app.fleet.open(tenant) as place:
        found = messages.pending(place.session, device=device, limit=limit, offset=offset)
    show_all(app, found, empty="nothing waits for this device" if device else "nothing waits")


@app.verb("mark", example="posduif message mark acme 5f3759df-0000-4000-8000-000000000000 read")
def mark(
    ctx: typer.Context,
    tenant: options.Tenant,
    message: Annotated[str, typer.Argument(metavar="ID", help="Id of the message.", show_default=False)],
    status: Annotated[
        Status, typer.Argument(metavar="STATUS", help="What it is now: synced or read.", show_default=False)
    ],
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


@app.verb("test", example="posduif message test acme --to Mia --wait 2s")
def try_out(
    ctx: typer.Context,
    tenant: options.Tenant,
    recipient: Annotated[
        str | None, typer.Option("--to", metavar="USER", help="User whose phone is to fetch it; else the only phone.")
    ] = None,
    sender: Annotated[
        str | None, typer.Option("--from", metavar="USER", help="Web user who sends it; else the desk's user.")
    ] = None,
    wait: Annotated[str, typer.Option("--wait", metavar="DURATION", help="How long to follow it: 30s, 5m.")] = "60s",
) -> None:
    """Send a test message to a phone and follow it: sent, fetched, read. Exits with 1 if it is not fetched in time.

    The message stays. If it is not fetched, it says where it stopped.
    """
    from posduif_cli.core.desk import trial
    from posduif_cli.models.desk import Trial
    from posduif_cli.notation import duration, moment

    app = app_of(ctx)
    app.out.expect(Trial)
    limit = duration(wait)
    with app.fleet.open(tenant) as place:
        begun, before = trial.begin(place, recipient=recipient, sender=sender)
        app.out.say(f"message {begun.id} for {begun.recipient} is pending, sent {moment(begun.sent_at)}")

        def tell(reached: Trial) -> None:
            at = reached.read_at if reached.stage == "read" else reached.fetched_at
            app.out.say(f"{reached.stage} {moment(at) if at else ''}".rstrip())

        done = trial.follow(place.session, begun, before=before, wait=limit, tell=tell)
    if done.stopped and done.fix:
        app.out.warn(f"not fetched within {wait}: {done.stopped}")
        app.out.say(done.fix)
    app.out.show(done, changed=True)
    if done.stopped:
        raise typer.Exit(1)
