"""Enrollment tokens: create, list, revoke, purge. Only `create` ever returns a secret."""

from collections.abc import Iterator, Sequence
from datetime import timedelta
from uuid import UUID

from posduif_cli.core import names
from posduif_cli.core.desk import users
from posduif_cli.core.fleet.fleet import Fleet, Place, all_unreachable
from posduif_cli.db import queries
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

PURGE_BATCH = 1000  # rows per transaction: other sessions never wait long
SHOWN = 10  # users or tenants that an error names


def create(
    place: Place,
    *,
    by: str | None = None,
    label: str | None = None,
    ttl: timedelta = timedelta(hours=1),
    max_ttl: timedelta = timedelta(days=7),
) -> IssuedToken:
    """Create a token that lives for *ttl* from now, and return it with its secret.

    The payload of the QR code is the plain enrollment URL: the phone takes the last part of its path as the
    token and its origin as the server. Raises InvalidDuration beyond *max_ttl*, UrlMissing for a tenant
    without an origin, Conflict for one that is suspended, UserNotFound or UsageError when *by* is needed.
    """
    if ttl > max_ttl:
        raise InvalidDuration(
            f"a token may live for {max_ttl.total_seconds() / 3600:g} hours at most",
            hint=["give a smaller --ttl", "or raise enrollment.max_ttl in the configuration"],
        )
    if label is not None:
        names.label(label)
    tenant = place.tenant
    if tenant.url is None:
        raise UrlMissing(
            f"tenant {tenant.tenant} has no url",
            why="a phone must know where its sync engine answers",
            hint=[
                Run("tenant", "set", tenant.tenant, "--url", f"https://{tenant.tenant}.example.com"),
                "or set servers.NAME.url in the configuration",
            ],
        )
    if tenant.state is not State.ACTIVE:
        raise Conflict(f"tenant {tenant.tenant} is {tenant.state}", why="a token would be of no use")
    creator = _creator(place.session, by)
    add = queries.load("desk/tokens")["add_token"]
    values = {"created_by": creator.id, "label": label or None, "seconds": ttl.total_seconds()}
    made = place.session.dicts(add, **values)[0]
    secret = made.pop("token")
    details = Token(**made, created_by=creator.username)
    return IssuedToken(details, secret, enrollment_url=f"{tenant.url}/api/enrollment/{secret}")


def _creator(conn: Session, by: str | None) -> User:
    if by is not None:
        user = users.find(conn, by)
        if user.user_type != "web":
            raise Conflict(f'user "{user.username}" is a {user.user_type} user', why="tokens are made by web users")
        return user
    found = conn.rows(User, queries.load("desk/users")["list_users"], type="web", limit=SHOWN + 1, offset=0)
    if not found:
        raise UserNotFound(
            f"tenant {conn.database} has no web user who could create the token",
            hint=Run("user", "create", conn.database, "desk", "--type", "web"),
        )
    if len(found) > 1:
        raise UsageError(
            f"tenant {conn.database} has several web users: say who creates the token",
            why=", ".join(user.username for user in found[:SHOWN]) + (" and more" if len(found) > SHOWN else ""),
            hint=Run("token", "create", conn.database, "--by", found[0].username),
        )
    return found[0]


def find_all(conn: Session, *, limit: int = 1000, offset: int = 0) -> Iterator[Token]:
    """Yield tokens, the newest first, without their secrets, as they are fetched."""
    question = queries.load("desk/tokens")["list_tokens"]
    return conn.stream(Token, question, id=None, token=None, limit=limit, offset=offset)


def find(conn: Session, *, token: str) -> Token:
    """Return a token by its id, its secret or its enrollment URL; raises InvalidId for other text, TokenNotFound."""
    wanted = names.secret(token)
    found = _get(conn, id=wanted) or _get(conn, token=wanted)
    if found is None:
        raise TokenNotFound(
            f"tenant {conn.database} has no such enrollment token",
            why="it may have been purged, or belong to another tenant",
            hint=Run("token", "list", conn.database),
        )
    return found


def _get(conn: Session, *, id: UUID | None = None, token: UUID | None = None) -> Token | None:
    return conn.row(Token, queries.load("desk/tokens")["list_tokens"], id=id, token=token, limit=1, offset=0)


def revoke(conn: Session, *, token: str) -> tuple[Token, bool]:
    """End a token at once; return it and whether that changed it; raises TokenNotFound, TokenUsed."""
    found = find(conn, token=token)
    changed = conn.execute(queries.load("desk/tokens")["revoke_token"], id=found.id) > 0
    found = _get(conn, id=found.id) or found
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
            f"several tenants have the url {origin}",
            why=", ".join(found[:SHOWN]),
            hint="name the tenant before the URL",
        )
    if not found and errors:  # one of them may have it
        raise all_unreachable(errors)
    if not found:
        raise TenantNotFound(f"no tenant has the url {origin}", hint=Run("tenant", "list"))
    return found[0]


def purge(conn: Session, *, older_than: timedelta, dry_run: bool = False) -> int:
    """Delete unused tokens that expired or were revoked at least *older_than* ago; return how many."""
    if dry_run:
        return int(conn.value(queries.load("desk/tokens")["count_purgeable"], seconds=older_than.total_seconds()))
    total, question = 0, queries.load("desk/tokens")["purge_tokens"]
    while deleted := conn.execute(question, seconds=older_than.total_seconds(), batch=PURGE_BATCH):
        total += deleted
    return total


def purge_fleet(
    fleet: Fleet, *, tenants: Sequence[str] | None, older_than: timedelta, dry_run: bool = False
) -> tuple[list[Purged], dict[str, PosduifError]]:
    """Purge active and suspended tenants, the named ones or all; return those that had something, and the errors."""
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
