"""`posduif quickstart`: a whole tenant on an embedded server, from nothing, step by step as the single commands do."""

import shlex
from contextlib import suppress
from dataclasses import replace
from typing import Annotated, Any

import typer

from posduif_cli.cli.context import App, Noun, app_of
from posduif_cli.errors import DeviceNotFound, Run, TenantNotFound, UsageError

app = Noun()

TENANT = "demo"
WEB_USER = "desk"
PHONE = "demo-phone"
MOBILE_USER = "Joe the Mobile User"
TEXT = "Hello from posduif"


class Walk:
    """Tells the steps: the command that does the same, and its result."""

    def __init__(self, app: App) -> None:
        self.app = app
        self.steps: list[dict[str, Any]] = []
        # Another server is configured: without its name the pasted commands would go there.
        elsewhere = {"server": "embedded"} if app.config.servers else {}
        self.out = replace(app.out, options={**app.following, **elsewhere})

    def line(self, command: str) -> str:
        """Spell a command as it runs when pasted."""
        return self.out.spell(Run(*shlex.split(command)))

    def step(self, command: str, *, changed: bool, told: str) -> None:
        """Tell one step."""
        self.steps.append({"command": self.line(command), "changed": changed})
        self.tell(f"\n$ {self.line(command)}\n{told}")

    def tell(self, text: str) -> None:
        """Tell something, unless JSON is asked for, which is one object at the end."""
        if not self.app.out.machine:
            self.app.out.text(text)


@app.verb("quickstart", example="posduif quickstart")
def quickstart(
    ctx: typer.Context,
    remove: Annotated[bool, typer.Option("--remove", help="Remove what an earlier quickstart made.")] = False,
) -> None:
    """Set up a whole tenant on an embedded PostgreSQL server, from nothing, showing every command on the way.

    The server keeps running for further commands of this user. Run again, it says what is
    there and sends another message.
    """
    app = app_of(ctx)
    for option in ("server", "dsn"):
        if app.options.get(option, "embedded") != "embedded":
            raise UsageError(f"--{option} does not go with quickstart", why="it always uses the embedded server")
    if remove:
        _remove(app)
        return
    from posduif_cli.core import quickstart

    walk = Walk(app)
    data_dir = app.config.data_dir
    started = quickstart.start(data_dir, app.config.bin_dir)
    walk.step("server start", changed=started, told="started" if started else "it runs already")
    app.use_embedded()
    _tenant(app, walk)
    _phone(app, walk)
    _message(app, walk)
    _health(app, walk)
    _farewell(app, walk)


def _tenant(app: App, walk: Walk) -> None:
    from posduif_cli.core import quickstart
    from posduif_cli.core.tenants import create

    with suppress(TenantNotFound):
        if app.fleet.find(TENANT).tenant.state == "active":
            walk.step(f"tenant show {TENANT}", changed=False, told=f"tenant {TENANT} is there already")
            return
    quickstart.note(app.config.data_dir, f"tenant {TENANT}")
    wanted = create.Wanted(TENANT, web_user=WEB_USER)
    tenant, changed = create.create(app.fleet, wanted, if_not_exists=True)
    told = f"tenant {TENANT} created: database {TENANT} at schema {tenant.schema_version}, web user {WEB_USER}"
    walk.step(f"tenant create {TENANT} --web-user {WEB_USER}", changed=changed, told=told)


def _phone(app: App, walk: Walk) -> None:
    from posduif_cli.cli.token import present
    from posduif_cli.core.desk import devices, enrollments, tokens
    from posduif_cli.models.codes import Style

    with app.fleet.open(TENANT) as place:
        conn = place.session
        try:
            device = devices.find(conn, device=PHONE)
        except DeviceNotFound:
            issued = tokens.create(place, by=WEB_USER, label=MOBILE_USER)
            walk.step(
                f"token create {TENANT} --by {WEB_USER} --for {shlex.quote(MOBILE_USER)}",
                changed=True,
                told="a phone scans this to enroll; no sync engine answers behind it yet:",
            )
            if not app.out.machine:
                present(app, issued, Style.AUTO)
            enrollments.complete(conn, token=str(issued.token), device=PHONE, username=MOBILE_USER)
            walk.step(
                f"enroll complete {TENANT} {issued.token} --device {PHONE} --username {shlex.quote(MOBILE_USER)}",
                changed=True,
                told=f"{MOBILE_USER} enrolled, as the phone would have done; the token is spent",
            )
        else:
            told = f"the phone is enrolled already, by {device.username}"
            walk.step(f"device show {TENANT} {PHONE}", changed=False, told=told)


def _message(app: App, walk: Walk) -> None:
    from posduif_cli.core.desk import devices, messages, users

    with app.fleet.open(TENANT) as place:
        recipient = str(devices.find(place.session, device=PHONE).username)
        user, _ = users.create_if_missing(place.session, username=WEB_USER, user_type="web")
        message = messages.send(place, sender=user.username, recipient=recipient, text=TEXT)
    walk.step(
        f"message send {TENANT} --from {shlex.quote(user.username)} --to {shlex.quote(recipient)} {shlex.quote(TEXT)}",
        changed=True,
        told=f"message {message.id} waits for the phone ({message.status})",
    )


def _health(app: App, walk: Walk) -> None:
    from posduif_cli.core.checks import health
    from posduif_cli.render import report

    result = health.report(app.fleet, tenants=[TENANT])
    walk.step(f"health {TENANT}", changed=False, told="")
    if not app.out.machine:
        report.show(replace(app.out, format="table"), result)


def _farewell(app: App, walk: Walk) -> None:
    if app.out.machine:
        app.out.show({"tenant": TENANT, "data_dir": str(app.config.data_dir), "steps": walk.steps})
        return
    line = walk.line
    walk.tell(
        f"""
Try next:
  {line("tenant list")}
  {line(f"token create {TENANT}")}
  {line(f"message pending {TENANT} --device {PHONE}")}
  {line("tenant create acme --web-user desk --url https://acme.example.com")}
  {line("--help")}

The embedded server keeps running, with its data in {app.config.data_dir}.
  stop it      {line("server stop")}
  remove all   {line("quickstart --remove")}"""
    )


def _remove(app: App) -> None:
    from posduif_cli.core import quickstart

    if not quickstart.made(app.config.data_dir):
        app.out.say("nothing to remove: no quickstart was made here")
        app.out.show({"removed": [], "changed": False}) if app.out.machine else None
        return
    app.use_embedded()
    removed = quickstart.remove(app.fleet, app.config.data_dir, tenant=TENANT)
    if app.out.machine:
        app.out.show({"removed": removed, "changed": bool(removed)})
    else:
        app.out.text("removed: " + (", ".join(removed) or "nothing"))
        if not any("server" in thing for thing in removed):
            app.out.say(
                Run("server", "stop", lead="kept: the embedded server, which holds other tenants or was there before")
            )
