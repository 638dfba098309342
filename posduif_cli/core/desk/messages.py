"""Messages: send, list and mark them, as the sync engine and the phones would."""

from posduif_cli.core import names
from posduif_cli.core.desk import devices, users
from posduif_cli.db import queries
from posduif_cli.db.session import Session
from posduif_cli.errors import Conflict, MessageNotFound, UsageError
from posduif_cli.models.desk import Message, Unread


def send(conn: Session, *, sender: str, recipient: str, text: str) -> Message:
    """Send a message between two users; raises UserNotFound, UsageError for text that is empty or cannot be stored."""
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
        sender=origin.username,
        recipient=target.username,
        content=text,
        synced_at=None,
        read_at=None,
        sender_id=origin.id,
        recipient_id=target.id,
        **made,
    )


def inbox(conn: Session, *, user: str, limit: int, offset: int) -> list[Message]:
    """Return what a user received, the newest first; raises UserNotFound."""
    found = users.find(conn, user)
    return conn.rows(Message, queries.load("desk/messages")["list_inbox"], user=found.id, limit=limit, offset=offset)


def unread(conn: Session, *, user: str) -> Unread:
    """Count what a user has not read; raises UserNotFound."""
    found = users.find(conn, user)
    return Unread(found.username, int(conn.value(queries.load("desk/messages")["count_unread"], user=found.id)))


def pending(conn: Session, *, device: str, limit: int, offset: int) -> list[Message]:
    """Return what waits for a device, the oldest first; raises DeviceNotFound."""
    found = devices.find(conn, device=device)
    question = queries.load("desk/messages")["list_pending"]
    return conn.rows(Message, question, device=found.device_id, limit=limit, offset=offset)


def mark(conn: Session, *, message: str, status: str) -> tuple[Message, bool]:
    """Mark a message as synced or read; return it and whether that changed anything.

    Raises InvalidId, MessageNotFound, and Conflict for a message that is further already.
    """
    wanted = names.uuid(message, kind="message")
    named = queries.load("desk/messages")
    changed = conn.execute(named["mark_message"], id=wanted, status=status) > 0
    found = conn.row(Message, named["get_message"], id=wanted)
    if found is None:
        raise MessageNotFound(f"message {wanted} not found in tenant {conn.database}")
    if not changed and found.status != status:
        raise Conflict(f"message {wanted} is {found.status}", why=f"a message does not go back to {status}")
    return found, changed
