"""Enrollment tokens: create, list, revoke, purge. Only `create` ever returns a secret."""

from collections.abc import Iterator, Sequence
from datetime import timedelta

from posduif_cli.core import names
from posduif_cli.core.desk import users
from posduif_cli.core.fleet.fleet import Fleet, Place, all_unreachable
from posduif_cli.db import queries
from posduif_cli.db.session import Session
from posduif_cli.errors import (
    Conflict,
    InvalidDuration,
    InvalidId,
    PosduifError,
    Run,
    TenantNotFound,
    TokenNotFound,
    TokenUsed,
    UrlMissing,
    UsageError,
)
from posduif_cli.models.desk import IssuedToken, Purged, Token
from posduif_cli.models.tenants import State
from posduif_cli.notation import counted, moment, spell

PURGE_BATCH = 1000  # rows per transaction: other sessions never wait long
SHOWN = 10  # users or tenants that an error names
OFFERED = ("Joe the Mobile User", "Sally the Mobile User")  # by the public phone app, which has no others


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
            f"a token may live for {_days(max_ttl)} at most",
            hint=["give a smaller --ttl", "or raise enrollment.max_ttl in the configuration"],
        )
    if label is not None:
        names.label(label)
    tenant = place.tenant
    if tenant.url is None:
        raise _without_url(tenant.tenant, place.session.groups)
    if tenant.state is not State.ACTIVE:
        raise Conflict(f"tenant {tenant.tenant} is {tenant.state}", why="a token would be of no use")
    desk = place.record.desk if place.record else None
    command = ("token", "create")
    creator = users.at_desk(place.session, by, desk, deed="create the token", command=command, option="--by")
    made = place.session.dicts(
        queries.load("desk/tokens")["add_token"],
        created_by=creator.id,
        label=label or None,
        seconds=ttl.total_seconds(),
    )[0]
    secret = made.pop("token")
    details = Token(**made, created_by=creator.username)
    return IssuedToken(details, secret, enrollment_url=f"{tenant.url}/api/enrollment/{secret}")


def are_names_taken(conn: Session) -> bool:
    """Return whether each of the names that the public phone app offers has a phone: a third one takes one over."""
    return bool(conn.value(queries.load("desk/tokens")["count_offered"], names=list(OFFERED)) == len(OFFERED))


def _days(span: timedelta) -> str:
    return counted(span.days, "day") if span.days and not span % timedelta(days=1) else spell(span)


def _without_url(tenant: str, groups: Sequence[str] = ()) -> UrlMissing:
    lead = "an administrator types" if groups else ""
    return UrlMissing(
        f"tenant {tenant} has no url",
        why="a phone must know where its sync engine answers",
        hint=[
            Run("tenant", "set", tenant, "--url", f"https://{tenant}.example.com", lead=lead),
            "or set servers.NAME.url in the configuration",
        ],
    )


def find_all(
    conn: Session, *, label: str | None = None, status: str | None = None, limit: int = 1000, offset: int = 0
) -> Iterator[Token]:
    """Yield tokens, the newest first, without their secrets, as they are fetched; of a label, of a status, or all."""
    asked = _ASKED | {"label": label, "status": status, "limit": limit, "offset": offset}
    return conn.stream(Token, queries.load("desk/tokens")["list_tokens"], **asked)


def find(conn: Session, *, token: str) -> Token:
    """Return a token by what a person has of it.

    That is the secret, the enrollment URL, the id, the first 8 or more digits of id or secret, or a label that one
    token has, or one active token. Raises InvalidId for a text that is none of these, TokenNotFound, and UsageError
    for several.
    """
    text = token.strip()
    if "/" in text:
        found = _get(conn, token=names.secret(text))
    elif (between := names.ids(text)) is not None:
        first, last = between
        found = _get(conn, first=first, last=last) or _get(conn, token=first, token_last=last)
    else:
        found = _get(conn, label=text)
        if not found:
            raise _no_label(conn, text)
    if not found:
        raise TokenNotFound(
            f"tenant {conn.database} has no such enrollment token",
            why="it may have been purged, or belong to another tenant",
            hint=Run("token", "list", conn.database),
        )
    active = [one for one in found if one.status == "active"]
    if len(found) > 1 and len(active) != 1:
        raise UsageError(
            f"several tokens of tenant {conn.database} fit {text}",
            why=", ".join(f"{str(one.id)[:8]} {one.status}" for one in found[:SHOWN]),
            hint=Run("token", "list", conn.database, "--for", text),
        )
    return active[0] if len(found) > 1 else found[0]


def _no_label(conn: Session, text: str) -> InvalidId:
    near = names.nearest(text, [label for (label,) in conn.tuples(queries.load("desk/tokens")["list_labels"])])
    return InvalidId(
        f'"{text}" is no token, id, label or enrollment URL' if len(text) <= 60 else "this is no enrollment token",
        why="the first 8 characters of a token or id are enough" + (f'; the nearest label is "{near}"' if near else ""),
        hint=Run("token", "show", conn.database, near) if near else Run("token", "list", conn.database),
    )


_ASKED = dict.fromkeys(("first", "last", "token", "token_last", "label", "status")) | {"limit": SHOWN + 1, "offset": 0}


def _get(conn: Session, **asked: object) -> list[Token]:
    return conn.rows(Token, queries.load("desk/tokens")["list_tokens"], **_ASKED | asked)


def again(place: Place, *, token: str) -> IssuedToken:
    """Return an active token with the secret that *token*, an enrollment URL or the secret itself, holds.

    Raises Conflict for an id or a label, of which no secret can be had, and for a token that is not active.
    """
    conn = place.session
    found = find(conn, token=token)
    secret = names.ids(token.strip().rstrip("/").rpartition("/")[2])
    if secret is None or not _get(conn, token=secret[0]):
        raise Conflict(
            "a QR code cannot be drawn from the id or the label of a token",
            why="only the enrollment URL holds the token; it is not kept where it could be read again",
            hint=Run("token", "create", conn.database, lead="a new one"),
        )
    if found.status != "active":
        raise Conflict(
            f"the token is {found.status}, and no phone could use its code",
            hint=Run("token", "create", conn.database, lead="a new one"),
        )
    if place.tenant.url is None:
        raise _without_url(place.tenant.tenant, conn.groups)
    return IssuedToken(found, secret[0], f"{place.tenant.url}/api/enrollment/{secret[0]}")


def revoke(conn: Session, *, token: str) -> tuple[Token, bool]:
    """End a token at once; return it and whether that changed it; raises TokenNotFound, TokenUsed."""
    found = find(conn, token=token)
    changed = conn.execute(queries.load("desk/tokens")["revoke_token"], id=found.id) > 0
    found = next(iter(_get(conn, first=found.id, last=found.id)), found)
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
    origin = _host(url)
    known, errors = fleet.tenants()
    found = [tenant.tenant for tenant in known if tenant.url and _host(tenant.url) == origin]
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


def _host(url: str) -> str:
    """Return what is compared of an origin or an enrollment URL: neither its scheme nor its capitals."""
    return "".join(url.split()).lower().lstrip("<\"'").partition("/api/enrollment/")[0].rpartition("://")[2].rstrip("/")


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
