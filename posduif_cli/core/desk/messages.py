"""Messages: send, list and mark them, as the sync engine and the phones would."""

from dataclasses import replace

from posduif_cli.core import names
from posduif_cli.core.desk import devices, users
from posduif_cli.core.fleet.fleet import Place
from posduif_cli.db import queries
from posduif_cli.db.session import Session
from posduif_cli.errors import Conflict, MessageNotFound, Run, UsageError
from posduif_cli.models.desk import Message, Unread
from posduif_cli.models.tenants import State


def send(place: Place, *, sender: str, recipient: str, text: str) -> Message:
    """Send a message between two users.

    Raises UserNotFound, UsageError for text that is empty or cannot be stored, WrongState for a tenant that is not
    active: nobody could fetch it.
    """
    place.require(State.ACTIVE)
    conn = place.session
    if not text.strip():
        raise UsageError("the message is empty", hint="give the text as the last argument, or - to read it from stdin")
    if "\x00" in text or any("\ud800" <= character <= "\udfff" for character in text):
        raise UsageError("the message is not text", why="it holds bytes that no UTF-8 text has")
    named = queries.load("desk/messages")
    origin, target = users.find(conn, sender), users.find(conn, recipient)
    with conn.transaction():
        made = conn.dicts(named["add_message"], sender=origin.id, recipient=target.id, content=text)[0]
        conn.execute(named["note_last_message"], sender=origin.id, content=text)
    # Not read back: people at the support desk may send a message, but read none.
    return Message(
        tenant=conn.database,
        sender=origin.username,
        recipient=target.username,
        content=text,
        synced_at=None,
        read_at=None,
        sender_id=origin.id,
        recipient_id=target.id,
        **made,
    )


def find(conn: Session, *, message: str) -> Message:
    """Return one message by its id, or by the first 8 or more digits of it; raises InvalidId, MessageNotFound."""
    between = names.ids(message)
    if between is None:
        names.uuid(message, kind="message")
    first, last = between or (None, None)
    found = conn.rows(Message, queries.load("desk/messages")["get_message"], first=first, last=last)
    if len(found) > 1:
        raise UsageError(f"several messages of tenant {conn.database} have an id that begins with {message}")
    if not found:
        raise MessageNotFound(
            f"message {message} not found in tenant {conn.database}", hint=Run("message", "list", conn.database)
        )
    return _with_texts(conn, found)[0]


def find_all(
    conn: Session,
    *,
    sender: str | None = None,
    recipient: str | None = None,
    device: str | None = None,
    status: str | None = None,
    oldest_first: bool = False,
    limit: int,
    offset: int,
) -> list[Message]:
    """Return messages, the newest first, of users, for a device, of a status, or all; raises UserNotFound.

    `content` is None where the login may not read it.
    """
    found = conn.rows(
        Message,
        queries.load("desk/messages")["list_messages"],
        sender=users.find(conn, sender).id if sender is not None else None,
        recipient=users.find(conn, recipient).id if recipient is not None else None,
        device=device,
        status=status,
        oldest_first=oldest_first,
        limit=limit,
        offset=offset,
    )
    return _with_texts(conn, found)


def _with_texts(conn: Session, found: list[Message]) -> list[Message]:
    named = queries.load("desk/messages")
    if not found or not conn.value(named["may_read_texts"]):
        return found
    texts = dict(conn.tuples(named["read_texts"], ids=[message.id for message in found]))
    return [replace(message, content=texts.get(message.id)) for message in found]


def unread(conn: Session, *, user: str) -> Unread:
    """Count what a user has not read; raises UserNotFound."""
    found = users.find(conn, user)
    return Unread(found.username, int(conn.value(queries.load("desk/messages")["count_unread"], user=found.id)))


def pending(conn: Session, *, device: str | None = None, limit: int, offset: int) -> list[Message]:
    """Return what waits for a device, or for any, the oldest first; raises DeviceNotFound."""
    waits_for = devices.find(conn, device=device).device_id if device is not None else None
    return find_all(conn, device=waits_for, status="pending_sync", oldest_first=True, limit=limit, offset=offset)


def mark(conn: Session, *, message: str, status: str) -> tuple[Message, bool]:
    """Mark a message as synced or read; return it and whether that changed anything.

    Raises InvalidId, MessageNotFound, and Conflict for a message that is further already.
    """
    wanted = find(conn, message=message).id
    changed = conn.execute(queries.load("desk/messages")["mark_message"], id=wanted, status=status) > 0
    found = find(conn, message=str(wanted))
    if not changed and found.status != status:
        raise Conflict(f"message {wanted} is {found.status}", why=f"a message does not go back to {status}")
    return found, changed
