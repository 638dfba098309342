"""`posduif token`: enrollment tokens and their QR codes."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from posduif_cli.cli import options
from posduif_cli.cli.context import App, Noun, app_of
from posduif_cli.errors import PosduifError, Run, TokenNotFound, UsageError
from posduif_cli.models.codes import Style
from posduif_cli.notation import duration

if TYPE_CHECKING:
    from posduif_cli.models.desk import IssuedToken

app = Noun(help="Enrollment tokens and their QR codes.")


LONGEST_LINE = 10_000  # bytes, of a token or an enrollment URL on stdin


class Status(StrEnum):
    """Where a token is in its life."""

    ACTIVE = "active"
    USED = "used"
    EXPIRED = "expired"
    REVOKED = "revoked"


HOW = (
    "compact (small), large (scans from farther away), plain or plain-inverted (no colours), always (into a pipe too), "
    "never, or auto: what fits the terminal."
)
QrFile = Annotated[
    Path | None, typer.Option("--qr-file", metavar="FILE", help="Write the code to FILE.png or FILE.svg.")
]
Force = Annotated[bool, typer.Option("--force", help="Replace the file of --qr-file.")]


@app.verb("create", example="posduif token create acme --for 'Mia, phone 2' --ttl 30m")
def create(
    ctx: typer.Context,
    tenant: options.Tenant,
    by: Annotated[
        str | None,
        typer.Option("--by", metavar="USER", help="Web user who creates it; needed if there are several."),
    ] = None,
    label: Annotated[str | None, typer.Option("--for", metavar="LABEL", help="Whose phone it is for.")] = None,
    ttl: Annotated[
        str | None, typer.Option("--ttl", metavar="DURATION", help="How long it lives: 30m, 1h, 7d.")
    ] = None,
    qr: Annotated[Style, typer.Option("--qr", metavar="HOW", help=HOW)] = Style.AUTO,
    qr_file: QrFile = None,
    force: Force = False,
) -> None:
    """Create an enrollment token and show its QR code; into a pipe, the bare enrollment URL."""
    from posduif_cli.core.desk import tokens
    from posduif_cli.models.desk import IssuedToken

    app = app_of(ctx)
    app.out.expect(IssuedToken)
    if qr_file is not None:
        check_qr_file(qr_file, force=force)
    longest = app.config.enrollment_max_ttl
    lifetime = min(app.config.enrollment_ttl, longest) if ttl is None else duration(ttl)
    with app.fleet.open(tenant) as place:
        issued = tokens.create(place, by=by, label=label, ttl=lifetime, max_ttl=longest)
        taken = tokens.are_names_taken(place.session)
    if taken:
        app.out.warn(
            f"{' and '.join(tokens.OFFERED)} both have a phone. The public app offers no other names: "
            "a further phone takes one of them over, with its messages"
        )
    try:
        if qr_file is not None:
            write_qr(app, issued, qr_file, force=force)
    finally:
        # The token is made, and this is the only time that its secret is shown.
        present(app, issued, qr, drawn_elsewhere=qr_file is not None)


def check_qr_file(path: Path, *, force: bool) -> None:
    """Raise UsageError, FileExists or ConfigurationError before a token is made that could not be written."""
    if path.suffix not in (".png", ".svg"):
        raise UsageError(f"{path} is neither .png nor .svg", hint="--qr-file token.png")
    from posduif_cli.render import files

    files.check(path, new=not force)


def write_qr(app: App, issued: "IssuedToken", path: Path, *, force: bool) -> None:
    """Write the code as a picture that only its owner can read: it is a credential."""
    from posduif_cli.render import files, qr

    picture = qr.png(issued.enrollment_url) if path.suffix == ".png" else qr.svg(issued.enrollment_url).encode()
    files.write_private(path, picture, new=not force)
    app.out.say(f"QR code: {path}")


def present(
    app: App,
    issued: "IssuedToken",
    style: Style,
    *,
    note: str | None = None,
    drawn_elsewhere: bool = False,
    changed: bool = True,
) -> None:
    """Show a token with its secret: the code and the facts on a terminal, the bare URL into a pipe, JSON if asked.

    The facts are below the code, where they are still on the screen.
    """
    from posduif_cli.render import tables

    out = app.out
    if out.machine or (out.format == "tsv" and app.config.output == "tsv") or out.fields:
        out.show(issued, changed=changed)
        return
    drawn = (out.format == "table" and sys.stdout.isatty()) or style is Style.ALWAYS
    if not drawn:
        out.text(issued.enrollment_url)
        return
    from posduif_cli.render import qr

    terminal = app.config.terminal
    screen = qr.screen_of(sys.stdout, term=terminal.term, utf8_locale=terminal.utf8)
    picture = qr.picture(issued.enrollment_url, screen, style)
    token = issued.details
    whose = f" for {token.label}" if token.label else ""
    caption = f"enrollment{whose} (id {str(token.id)[:8]}), {token.tenant}, expires {tables.short(token.expires_at)}"
    said = [caption, *([note] if note else [])]
    lines = [*([] if out.quiet else said), issued.enrollment_url]
    rows = sum(max(1, -(-len(line) // screen.columns)) for line in lines)
    # Below the code, where they are still on the screen, unless the top of the code would scroll away for them.
    left = picture.spare + 1 - rows
    if picture.text and left >= 0:
        out.text(picture.text, own=True)
    for line in said:
        out.say(line)
    out.text(issued.enrollment_url)
    if picture.text and left < 0:
        out.text(picture.text, own=True)
    if picture.advice:
        out.say(picture.advice)
    elif left > 0 and not drawn_elsewhere and not picture.large:
        larger = qr.picture(issued.enrollment_url, screen, Style.LARGE).advice is None
        how = ("--qr", "large") if larger else ("--qr-file", "code.png")
        out.say(Run("token", "show", "URL", *how, lead="does not scan? the same code again"))


@app.verb("list", example="posduif token list acme --status active")
def list_(
    ctx: typer.Context,
    tenant: options.Tenant,
    label: Annotated[str | None, typer.Option("--for", metavar="LABEL", help="Only those for this phone.")] = None,
    status: Annotated[
        Status | None,
        typer.Option("--status", metavar="STATUS", help="Only these: active, used, expired or revoked."),
    ] = None,
    limit: options.Limit = 1000,
    offset: options.Offset = 0,
) -> None:
    """List the tokens of a tenant, the newest first; never their secrets."""
    from posduif_cli.core.desk import tokens
    from posduif_cli.models.desk import Token

    app = app_of(ctx)
    with app.fleet.open(tenant) as place:
        found = tokens.find_all(
            place.session, label=label, status=status.value if status else None, limit=limit, offset=offset
        )
        app.out.list(found, Token, empty=Run("token", "create", tenant, lead="no tokens"))


@app.verb("show", example="posduif token show acme 5f3759df-0000-4000-8000-000000000000")
def show(
    ctx: typer.Context,
    tenant: options.TokenTenant,
    token: options.TokenText = None,
    drawn: Annotated[
        Style | None,
        typer.Option("--qr", metavar="[HOW]", help=f"Draw the code of an enrollment URL again: {HOW}"),
    ] = None,
    qr_file: QrFile = None,
    force: Force = False,
) -> None:
    """Show one token, by its id, its label or by what the phone's owner has; never its secret, but with --qr."""
    from posduif_cli.core.desk import tokens

    app = app_of(ctx)
    if qr_file is not None:
        check_qr_file(qr_file, force=force)
    name, secret = which(app, tenant, token)
    with app.fleet.open(name) as place, _told_of_others(app, name, secret):
        if drawn is None and qr_file is None:
            app.out.show(tokens.find(place.session, token=secret))
            return
        issued = tokens.again(place, token=secret)
    if qr_file is not None:
        write_qr(app, issued, qr_file, force=force)
    if drawn is not None:
        present(app, issued, drawn, drawn_elsewhere=qr_file is not None, changed=False)


@contextmanager
def _told_of_others(app: App, name: str, token: str) -> Iterator[None]:
    """Name in TokenNotFound the tenant whose enrollment URL was given with another tenant's name."""
    from posduif_cli.core.desk import tokens

    try:
        yield
    except TokenNotFound:
        owner = name
        with suppress(PosduifError):
            owner = tokens.tenant_of(app.fleet, url=token) if "/" in token else name
        if owner == name:
            raise
        raise TokenNotFound(
            f"this enrollment URL belongs to tenant {owner}, not {name}",
            hint=Run("token", "show", "URL", lead="the URL names its tenant by itself"),
        ) from None


def which(app: App, tenant: str, token: str | None) -> tuple[str, str]:
    """Return tenant and token as given, either of them `-` for stdin; a whole enrollment URL is both."""
    from posduif_cli.core.desk import tokens
    from posduif_cli.core.names import ids

    given = [_line() if text == "-" else text for text in (tenant, token) if text is not None]
    if len(given) == 2:
        return given[0], given[1]
    if "/" not in given[0]:
        lacks = "tenant" if ids(given[0]) else "token"
        raise UsageError(f"the {lacks} is missing", hint="give TENANT and TOKEN, or the whole enrollment URL")
    return tokens.tenant_of(app.fleet, url=given[0]), given[0]


def _line() -> str:
    """Read a line of stdin; raises UsageError for what is not UTF-8."""
    try:
        return sys.stdin.buffer.readline(LONGEST_LINE).decode("utf-8").strip()
    except UnicodeDecodeError:
        raise UsageError("the token is not text", why="stdin is not UTF-8") from None


@app.verb("revoke", example="posduif token revoke acme 5f3759df-0000-4000-8000-000000000000")
def revoke(ctx: typer.Context, tenant: options.TokenTenant, token: options.TokenText = None) -> None:
    """End a token at once."""
    from posduif_cli.core.desk import tokens
    from posduif_cli.models.desk import Token

    app = app_of(ctx)
    app.out.expect(Token)
    name, secret = which(app, tenant, token)
    with app.fleet.open(name) as place:
        found, changed = tokens.revoke(place.session, token=secret)
    app.out.say(f"token {found.id} {'revoked' if changed else 'was revoked already'}")
    app.out.show(found, changed=changed)


@app.verb("purge", example="posduif token purge --all --older-than 7d")
def purge(
    ctx: typer.Context,
    tenant: options.Tenants = None,
    everyone: options.All = False,
    older_than: Annotated[
        str,
        typer.Option("--older-than", metavar="DURATION", help="Expired or revoked at least this long ago; 0s: all."),
    ] = "7d",
    dry_run: options.DryRun = False,
) -> None:
    """Delete unused tokens that expired or were revoked a while ago; used ones stay. Made for cron."""
    from posduif_cli.core.desk import tokens
    from posduif_cli.models.desk import Purged
    from posduif_cli.models.runs import Plan, Step

    app = app_of(ctx)
    if not dry_run:
        app.out.expect(Purged)
    names = options.targets(tenant, everyone, "token purge")
    age = duration(older_than, zero=True)
    results, errors = tokens.purge_fleet(app.fleet, tenants=names, older_than=age, dry_run=dry_run)
    if dry_run:
        app.show_plan(Plan(tuple(Step(f"delete {row.deleted} tokens", row.tenant) for row in results)))
    elif results or app.out.machine:
        app.out.list(results, Purged)
    app.report_failed(errors, among=names)
