"""What may be a name, an id, a token: checked before anything is asked of a server."""

import difflib
import re
from collections.abc import Iterable
from uuid import UUID

from posduif_cli.errors import InvalidId, InvalidName

RESERVED = re.compile(r"postgres|template.*|pg_.*|posduif.*")


def tenant(name: str) -> str:
    """Check a tenant's id, which is also the name of its database, and return it.

    Raises InvalidName. The engine's replication slot is named after the database, and longer or other names
    collide there.
    """
    if not re.fullmatch(r"[a-z][a-z0-9_]{0,49}", name):
        shown = name if len(name) <= 60 and name.isprintable() else ascii(name[:60])
        raise InvalidName(
            f'"{shown}" cannot be the name of a tenant',
            why="a tenant's name is its database's name: a-z first, then a-z, 0-9 and _, at most 50 characters",
            hint=_suggest(name),
        )
    if RESERVED.fullmatch(name):
        raise InvalidName(
            f'"{name}" is reserved',
            why="postgres, template*, pg_* and posduif* belong to PostgreSQL and posduif",
        )
    return name


def _suggest(name: str) -> tuple[str, ...]:
    cleaned = re.sub(r"[^a-z0-9_]+", "_", name.lower()).strip("_")[:50]
    fits = re.fullmatch(r"[a-z][a-z0-9_]*", cleaned) and not RESERVED.fullmatch(cleaned)
    return (f"for instance: {cleaned}",) if fits else ()


def username(name: str) -> str:
    """Check a username and return it; raises InvalidName.

    The column takes 255 characters; the engine answers an empty name with an internal error.
    """
    if not name.strip() or len(name) > 255 or not name.isprintable():
        raise InvalidName(
            f"{name[:40]!a} cannot be a username",
            why="a username has 1 to 255 printable characters, not only spaces",
        )
    return name


def device(name: str) -> str:
    """Check a device id and return it; raises InvalidName."""
    if not name.strip() or len(name) > 255 or not name.isprintable():
        raise InvalidName(f"{name[:40]!a} cannot be a device id", why="a device id has 1 to 255 printable characters")
    return name


def label(text: str) -> str:
    """Check what a token is for and return it; raises InvalidName."""
    if len(text) > 255 or not text.isprintable():
        raise InvalidName(f"{text[:40]!a} cannot be a label", why="a label has at most 255 printable characters")
    return text


def uuid(text: str, *, kind: str) -> UUID:
    """Read a UUID in its usual form, in upper or lower case; raises InvalidId naming *kind*.

    >>> str(uuid("5F3759DF-0000-4000-8000-000000000000", kind="token"))
    '5f3759df-0000-4000-8000-000000000000'
    """
    if not re.fullmatch(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}", text):
        shown = text if len(text) <= 60 and text.isprintable() else ascii(text[:60])
        raise InvalidId(
            f'"{shown}" is not the id of a {kind}',
            why="an id is a UUID, such as 5f3759df-0000-4000-8000-000000000000",
        )
    return UUID(text)


def ids(text: str) -> tuple[UUID, UUID] | None:
    """Return the first and the last id that begin as *text* does: a UUID, or 8 or more of its digits; else None.

    >>> [str(one)[:13] for one in ids("5F3759DF") or ()]
    ['5f3759df-0000', '5f3759df-ffff']
    """
    digits = text.replace("-", "")
    whole = str(UUID(digits.ljust(32, "0"))) if re.fullmatch(r"[0-9a-fA-F]{8,32}", digits) else ""
    if not whole or not (whole.startswith(text.lower()) or text == digits):
        return None
    return UUID(digits.ljust(32, "0")), UUID(digits.ljust(32, "f"))


def secret(text: str) -> UUID:
    """Read an enrollment token from what a person pastes: the token itself or the whole enrollment URL.

    Raises InvalidId, which does not repeat the text.
    """
    # As it is pasted: broken over two lines, in angle brackets, with a full stop behind it.
    whole = re.sub(r"\s+", "", text).strip("<>\"'.,;")
    candidate = whole.rstrip("/").rpartition("/")[2]
    try:
        return uuid(candidate, kind="token")
    except InvalidId:
        raise InvalidId(
            "this is not an enrollment token",
            why="a token is a UUID; it is the last part of the enrollment URL",
            hint="paste the whole URL that is printed below the QR code",
        ) from None


def nearest(name: str, known: Iterable[str]) -> str | None:
    """Return the known name that *name* was probably meant to be.

    >>> nearest("amce", ["acme", "zeta"])
    'acme'
    """
    return next(iter(difflib.get_close_matches(name, list(known), 1, 0.6)), None)
