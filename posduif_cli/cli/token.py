"""`posduif token`: enrollment tokens and their QR codes."""

import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from posduif_cli.cli import options
from posduif_cli.cli.context import App, Noun, app_of
from posduif_cli.errors import Run, UsageError
from posduif_cli.notation import duration

if TYPE_CHECKING:
    from posduif_cli.models.desk import IssuedToken

app = Noun(help="Enrollment tokens and their QR codes.")


LONGEST_LINE = 10_000  # bytes, of a token or an enrollment URL on stdin


class Qr(StrEnum):
    """How to draw the QR code."""

    AUTO = "auto"
    COMPACT = "compact"
    LARGE = "large"
    ALWAYS = "always"
    NEVER = "never"
    PLAIN = "plain"
    PLAIN_INVERTED = "plain-inverted"


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
    qr: Annotated[Qr, typer.Option("--qr", help="How to draw the code.")] = Qr.AUTO,
    qr_file: Annotated[
        Path | None, typer.Option("--qr-file", metavar="FILE", help="Write the code to FILE.png or FILE.svg.")
    ] = None,
) -> None:
    """Create an enrollment token and show its QR code; into a pipe, the bare enrollment URL."""
    from posduif_cli.core.desk import tokens
    from posduif_cli.models.desk import IssuedToken

    app = app_of(ctx)
    app.out.expect(IssuedToken)
    if qr_file is not None:
        check_qr_file(qr_file)
    longest = app.config.enrollment_max_ttl
    lifetime = min(app.config.enrollment_ttl, longest) if ttl is None else duration(ttl)
    with app.fleet.open(tenant) as place:
        issued = tokens.create(place, by=by, label=label, ttl=lifetime, max_ttl=longest)
    try:
        if qr_file is not None:
            write_qr(app, issued, qr_file)
    finally:
        # The token is made, and its secret cannot be shown again.
        present(app, issued, qr)


def check_qr_file(path: Path) -> None:
    """Raise UsageError or ConfigurationError before a token is made that could not be written."""
    if path.suffix not in (".png", ".svg"):
        raise UsageError(f"{path} is neither .png nor .svg", hint="--qr-file token.png")
    from posduif_cli.render import files

    files.check(path)


def write_qr(app: App, issued: "IssuedToken", path: Path) -> None:
    """Write the code as a picture that only its owner can read: it is a credential."""
    from posduif_cli.render import files, qr

    picture = qr.png(issued.enrollment_url) if path.suffix == ".png" else qr.svg(issued.enrollment_url).encode()
    files.write_private(path, picture)
    app.out.say(f"QR code: {path}")


def present(app: App, issued: "IssuedToken", style: Qr, *, note: str | None = None) -> None:
    """Show a new token: the code and the facts on a terminal, the bare URL into a pipe, JSON if asked."""
    from posduif_cli.render import tables

    out = app.out
    if out.machine or (out.format == "tsv" and app.config.output == "tsv") or out.fields:
        out.show(issued, changed=True)
        return
    drawn = (out.format == "table" and sys.stdout.isatty()) or style is Qr.ALWAYS
    if not drawn:
        out.text(issued.enrollment_url)
        return
    from posduif_cli.render import qr

    terminal = app.config.terminal
    screen = qr.screen_of(sys.stdout, term=terminal.term, utf8_locale=terminal.utf8)
    picture = qr.picture(issued.enrollment_url, screen, qr.Style(style.value))
    token = issued.details
    out.say(f"token {token.id} of tenant {token.tenant}" + (f" for {token.label}" if token.label else ""))
    out.say(f"created by {token.created_by}, expires {tables.cell(token.expires_at)}")
    if note:
        out.say(note)
    if picture.text:
        out.text(picture.text, own=True)
    out.text(issued.enrollment_url)
    if picture.advice:
        out.say(picture.advice)
    elif picture.text and style in (Qr.AUTO, Qr.COMPACT):
        out.say("does not scan?  --qr large  or  --qr-file FILE.png")


@app.verb("list", example="posduif token list acme")
def list_(ctx: typer.Context, tenant: options.Tenant, limit: options.Limit = 1000, offset: options.Offset = 0) -> None:
    """List the tokens of a tenant, the newest first; never their secrets."""
    from posduif_cli.core.desk import tokens
    from posduif_cli.models.desk import Token

    app = app_of(ctx)
    with app.fleet.open(tenant) as place:
        found = tokens.find_all(place.session, limit=limit, offset=offset)
        app.out.list(found, Token, empty=Run("token", "create", tenant, lead="no tokens"))


@app.verb("show", example="posduif token show acme 5f3759df-0000-4000-8000-000000000000")
def show(ctx: typer.Context, tenant: options.TokenTenant, token: options.TokenText = None) -> None:
    """Show one token, by its id or by what the phone's owner has; never its secret."""
    from posduif_cli.core.desk import tokens

    app = app_of(ctx)
    name, secret = which(app, tenant, token)
    with app.fleet.open(name) as place:
        found = tokens.find(place.session, token=secret)
    app.out.show(found)


def which(app: App, tenant: str, token: str | None) -> tuple[str, str]:
    """Return tenant and token as given, either of them `-` for stdin; a whole enrollment URL is both."""
    from posduif_cli.core.desk import tokens

    given = [_line() if text == "-" else text for text in (tenant, token) if text is not None]
    if len(given) == 2:
        return given[0], given[1]
    if "/" not in given[0]:
        raise UsageError("the token is missing", hint="give TENANT and TOKEN, or the whole enrollment URL")
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
