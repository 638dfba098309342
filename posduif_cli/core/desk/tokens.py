"""Enrollment tokens: create, list, revoke, purge. Only `create` ever returns a secret."""

from collections.abc import Iterator, Sequence
from datetime import timedelta

from posduif_cli.core import names
from posduif_cli.core.desk import users
from posduif_cli.core.fleet.fleet import Fleet, all_unreachable
from posduif_cli.db import queries, record
from posduif_cli.db.session import Session
from posduif_cli.errors import (
    Conflict,
    InvalidDuration,
    PosduifError,
    Run,
    TenantNotFound,
    TokenNotFound,
    TokenUsed,
    UrlMissing,
    UsageError,
    UserNotFound,
)
from posduif_cli.models.desk import IssuedToken, Purged, Token, User
from posduif_cli.models.tenants import State
from posduif_cli.notation import moment

PURGE_BATCH = 1000


def create(
    conn: Session,
    *,
    by: str | None = None,
    label: str | None = None,
    ttl: timedelta = timedelta(hours=1),
    max_ttl: timedelta = timedelta(days=7),
) -> IssuedToken:
    """Create a token that lives for *ttl* from now, and return it with its secret.

    The payload of the QR code is the plain enrollment URL: the phone takes the last part of its path as the
    token and its origin as the server. Raises InvalidDuration beyond *max_ttl*, UrlMissing for a tenant
    without an origin, UserNotFound or UsageError when *by* is needed.
    """
    if ttl > max_ttl:
        raise InvalidDuration(
            f"a token may live for {max_ttl.total_seconds() / 3600:g} hours at most",
            hint=["give a smaller --ttl", "or raise enrollment.max_ttl in the configuration"],
        )
    if label is not None:
        names.label(label)
    current = record.read(conn)
    origin = current.url or (conn.server.url and conn.server.url.replace("{tenant}", conn.database))
    if origin is None:
        raise UrlMissing(
            f"tenant {conn.database} has no url",
            why="a phone must know where its sync engine answers",
            hint=[
                Run("tenant", "set", conn.database, "--url", f"https://{conn.database}.example.com"),
                "or set servers.NAME.url in the configuration",
            ],
        )
    if current.state is not State.ACTIVE:
        raise Conflict(f"tenant {conn.database} is {current.state}", why="a token would be of no use")
    creator = _creator(conn, by)
    row = conn.tuples(
        queries.load("desk/tokens")["add_token"],
        created_by=creator.id,
        label=label or None,
        seconds=ttl.total_seconds(),
    )[0]
    return IssuedToken(
        details=find(conn, token=str(row[0])),
        token=row[1],
        enrollment_url=f"{origin}/api/enrollment/{row[1]}",
        lifetime=ttl,
    )


def _creator(conn: Session, by: str | None) -> User:
    if by is not None:
        user = users.find(conn, by)
        if user.user_type != "web":
            raise Conflict(f'user "{user.username}" is a {user.user_type} user', why="tokens are made by web users")
        return user
    found = [name for (name,) in conn.tuples(queries.load("desk/tokens")["list_creators"])]
    if not found:
        raise UserNotFound(
            f"tenant {conn.database} has no web user who could create the token",
            hint=Run("user", "create", conn.database, "desk", "--type", "web"),
        )
    if len(found) > 1:
        raise UsageError(
            f"tenant {conn.database} has several web users: say who creates the token",
            why=", ".join(found[:10]) + (" and more" if len(found) > 10 else ""),
            hint=Run("token", "create", conn.database, "--by", found[0]),
        )
    return users.find(conn, found[0])


def find_all(conn: Session, *, limit: int = 1000, offset: int = 0) -> Iterator[Token]:
    """Yield tokens, the newest first, without their secrets, as they are fetched."""
    return conn.stream(
        Token, queries.load("desk/tokens")["list_tokens"], id=None, token=None, limit=limit, offset=offset
    )


def find(conn: Session, *, token: str) -> Token:
    """Return a token by its id, or by the secret or enrollment URL that someone holds.

    Raises InvalidId for text that is neither, TokenNotFound otherwise.
    """
    wanted = names.secret(token)
    named = queries.load("desk/tokens")["list_tokens"]
    found = conn.row(Token, named, id=wanted, token=None, limit=1, offset=0) or conn.row(
        Token, named, id=None, token=wanted, limit=1, offset=0
    )
    if found is None:
        raise TokenNotFound(
            f"tenant {conn.database} has no such enrollment token",
            why="it may have been purged, or belong to another tenant",
            hint=Run("token", "list", conn.database),
        )
    return found


def revoke(conn: Session, *, token: str) -> tuple[Token, bool]:
    """End a token at once; return it and whether that changed anything.

    Raises TokenNotFound, and TokenUsed when a phone enrolled with it already.
    """
    found = find(conn, token=token)
    changed = conn.execute(queries.load("desk/tokens")["revoke_token"], id=found.id) > 0
    found = find(conn, token=str(found.id))
    if found.status == "used":
        raise TokenUsed(
            f"token {found.id} was used already",
            why=f'device "{found.device_id}" enrolled with it at {found.used_at and moment(found.used_at)}',
            hint=Run("device", "list", conn.database),
        )
    return found, changed


def tenant_of(fleet: Fleet, *, url: str) -> str:
    """Return the tenant that an enrollment URL belongs to, by its origin.

    Raises InvalidId for what is no enrollment URL, TenantNotFound, UsageError where several tenants share the
    origin, and what a server that could not be asked said, where no other has such a tenant.
    """
    names.secret(url)
    origin = url.strip().partition("/api/enrollment/")[0]
    known, errors = fleet.tenants()
    found = [tenant.tenant for tenant in known if tenant.url == origin]
    if len(found) > 1:
        raise UsageError(
            f"several tenants have the url {origin}", why=", ".join(found[:10]), hint="name the tenant before the URL"
        )
    if not found and errors:  # one of them may have it
        raise all_unreachable(errors)
    if not found:
        raise TenantNotFound(f"no tenant has the url {origin}", hint=Run("tenant", "list"))
    return found[0]


def purge(conn: Session, *, older_than: timedelta, dry_run: bool = False) -> int:
    """Delete unused tokens that expired or were revoked at least *older_than* ago; return how many.

    In batches of 1,000 rows, each a transaction of its own, so that nobody waits long.
    """
    if dry_run:
        return int(conn.value(queries.load("desk/tokens")["count_purgeable"], seconds=older_than.total_seconds()))
    total = 0
    while deleted := conn.execute(
        queries.load("desk/tokens")["purge_tokens"], seconds=older_than.total_seconds(), batch=PURGE_BATCH
    ):
        total += deleted
    return total


def purge_fleet(
    fleet: Fleet, *, tenants: Sequence[str] | None, older_than: timedelta, dry_run: bool = False
) -> tuple[list[Purged], dict[str, PosduifError]]:
    """Purge the named tenants, or all that are active or suspended.

    Returns the tenants where there was something to delete, and the tenants and servers that failed.
    """
    chosen, errors = fleet.choose(tenants)
    live = [tenant for tenant in chosen if tenant.state in (State.ACTIVE, State.SUSPENDED)]
    results = fleet.each(live, lambda conn: purge(conn, older_than=older_than, dry_run=dry_run))
    failed = {f"server {name}" if tenants is None else name: error for name, error in errors.items()}
    failed |= {tenant.tenant: result for tenant, result in results if isinstance(result, PosduifError)}
    purged = [
        Purged(tenant.tenant, tenant.server, result, changed=not dry_run)
        for tenant, result in results
        if not isinstance(result, PosduifError) and result
    ]
    return purged, failed
