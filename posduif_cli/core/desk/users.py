"""Users of a tenant: web users who work at a desk, mobile users who enrolled a phone."""

from collections.abc import Iterator
from uuid import UUID

from posduif_cli.core import names
from posduif_cli.db import queries
from posduif_cli.db.session import Session
from posduif_cli.errors import Conflict, QueryFailed, Run, UsageError, UserExists, UserInUse, UserNotFound
from posduif_cli.models.desk import User

UNIQUE_VIOLATION = "23505"
FOREIGN_KEY_VIOLATION = "23503"
SHOWN = 10  # users that an error names


def find_all(conn: Session, *, user_type: str | None = None, limit: int = 1000, offset: int = 0) -> Iterator[User]:
    """Yield users by name, of one type or all, as they are fetched."""
    return conn.stream(User, queries.load("desk/users")["list_users"], type=user_type, limit=limit, offset=offset)


def look(conn: Session, who: str) -> User | None:
    """Return a user by name, id, or the first 8 or more digits of an id, or None.

    Raises UsageError where several ids begin so.
    """
    first, last = names.ids(who) or (None, None)
    found = conn.rows(User, queries.load("desk/users")["find_user"], who=who, first=first, last=last)
    if len(found) > 1 and found[0].username != who:
        raise UsageError(f"several users of tenant {conn.database} have an id that begins with {who}")
    return found[0] if found else None


def find(conn: Session, who: str) -> User:
    """Return a user by name or id; raises UserNotFound with the nearest name."""
    user = look(conn, who)
    if user is not None:
        return user
    near = names.nearest(who, [name for (name,) in conn.tuples(queries.load("desk/users")["list_names"])])
    raise UserNotFound(
        f'user "{who}" not found in tenant {conn.database}',
        why="no user has this name or id" + (f'; the nearest is "{near}"' if near else ""),
        hint=Run("user", "list", conn.database),
    )


def create(conn: Session, *, username: str, user_type: str) -> User:
    """Create a user; raises InvalidName, UserExists, or QueryFailed for a type the schema refuses."""
    names.username(username)
    try:
        made = conn.row(User, queries.load("desk/users")["add_user"], username=username, type=user_type)
    except QueryFailed as error:
        if error.sqlstate != UNIQUE_VIOLATION:
            raise
        raise UserExists(
            f'user "{username}" exists in tenant {conn.database}',
            hint=Run("user", "show", conn.database, username),
        ) from error
    assert made is not None
    return made


def create_if_missing(conn: Session, *, username: str, user_type: str) -> tuple[User, bool]:
    """Return the user, made if it does not exist, and whether it was made; raises UserExists when its type differs."""
    try:
        with conn.transaction():
            return create(conn, username=username, user_type=user_type), True
    except UserExists:
        user = find(conn, username)
    if user.user_type != user_type:
        raise UserExists(
            f'user "{username}" exists in tenant {conn.database} and differs',
            why=f"its type is {user.user_type}, not {user_type}",
        )
    return user, False


def loss(conn: Session, *, user: UUID) -> int:
    """Count the messages that deleting a user would delete."""
    return int(conn.value(queries.load("desk/users")["count_messages"], id=user))


def require_unused(conn: Session, *, user: User) -> None:
    """Raise UserInUse while tokens name the user as creator."""
    count = conn.value(queries.load("desk/users")["count_tokens"], id=user.id)
    if count:
        raise UserInUse(
            f'user "{user.username}" of tenant {conn.database} created {count} enrollment tokens',
            why="a token keeps the user who made it",
            hint=[
                Run("token", "purge", conn.database, "--older-than", "0s"),
                "a used one says who enrolled which phone: its creator stays",
            ],
        )


def delete(conn: Session, *, user: User) -> None:
    """Delete a user and all messages from and to it; raises UserInUse while tokens name it as creator."""
    try:
        with conn.transaction():
            if user.device_id is not None:
                conn.execute(queries.load("desk/tokens")["release_device"], device=user.device_id)
            conn.execute(queries.load("desk/users")["delete_user"], id=user.id)
    except QueryFailed as error:
        if error.sqlstate != FOREIGN_KEY_VIOLATION:
            raise
        require_unused(conn, user=user)
        raise


def at_desk(
    conn: Session, named: str | None, noted: str | None, *, deed: str, command: tuple[str, str], option: str
) -> User:
    """Return the web user that is *named*, else the one *noted* in the record, else the only one.

    *deed* says in an error what for, *option* of *command* how to name one. Raises UserNotFound, Conflict for a user
    that is no web user, and UsageError where there are several.
    """
    if named is not None:
        user = find(conn, named)
        if user.user_type != "web":
            raise Conflict(f'user "{user.username}" is a {user.user_type} user', why=f"only a web user can {deed}")
        return user
    if noted is not None and (known := look(conn, noted)) is not None and known.user_type == "web":
        return known
    found = conn.rows(User, queries.load("desk/users")["list_users"], type="web", limit=SHOWN + 1, offset=0)
    if not found:
        raise UserNotFound(
            f"tenant {conn.database} has no web user who could {deed}",
            hint=Run("user", "create", conn.database, "desk", "--type", "web"),
        )
    if len(found) > 1:
        raise UsageError(
            f"tenant {conn.database} has several web users: say who is to {deed}",
            why=", ".join(user.username for user in found[:SHOWN]) + (" and more" if len(found) > SHOWN else ""),
            hint=[
                Run(*command, conn.database, option, found[0].username),
                Run("tenant", "set", conn.database, "--desk", found[0].username, lead="or once, as administrator"),
            ],
        )
    return found[0]
