"""What a shell asks while a command is typed: names of tenants, servers, users and devices, and fields.

It is asked by `posduif __complete WORDS`, which is no command of the tree, and answers within LIMIT, or nothing.
"""

import hashlib
import importlib
import json
import os
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from posduif_cli.cli import tree
from posduif_cli.cli.context import App, global_options
from posduif_cli.config import load as config

LIMIT = 1.5  # seconds; a person is typing
KEPT = 10.0  # seconds for which an answer is kept: a shell asks anew for each key
MOST = 500  # names
KINDS = {"TENANT": "tenants", "USER": "users", "DEVICE": "devices"}
# The models that commands show, by the file in models/: their fields may follow --fields.
SHOWN = {
    "tenant create": "tenants.Tenant",
    "tenant list": "tenants.Tenant",
    "tenant show": "tenants.Tenant",
    "tenant adopt": "tenants.Adoption",
    "tenant verify": "checks.Finding",
    "tenant drop": "tenants.Loss",
    "migrate list": "schema.Migration",
    "migrate up": "runs.Outcome",
    "migrate down": "runs.Outcome",
    "migrate verify": "checks.Finding",
    "user list": "desk.User",
    "user show": "desk.User",
    "token list": "desk.Token",
    "token show": "desk.Token",
    "token create": "desk.IssuedToken",
    "token purge": "desk.Purged",
    "enroll complete": "desk.Enrollment",
    "device list": "desk.Device",
    "device show": "desk.Device",
    "message send": "desk.Message",
    "message inbox": "desk.Message",
    "message pending": "desk.Message",
    "backup create": "copies.Backup",
    "backup list": "copies.Backup",
    "backup show": "copies.Backup",
    "backup verify": "copies.Proof",
    "backup prune": "copies.Pruned",
    "health": "checks.Finding",
    "doctor": "checks.Finding",
    "server list": "servers.ServerInfo",
    "server init": "checks.Finding",
    "server status": "servers.EmbeddedStatus",
    "config show": "servers.Setting",
}


def run(words: Sequence[str]) -> int:
    """Write what may follow *words*, which were typed behind `posduif`, one per line; always returns 0."""
    found: list[str] = []
    asking = threading.Thread(target=lambda: found.extend(_quietly(words)), daemon=True)
    asking.start()
    asking.join(LIMIT)
    from posduif_cli.render.output import write

    # What has a line end in it cannot be told from two names, and what begins with - would be an option.
    names = [name for name in found if name.isprintable() and not name.startswith("-")]
    write("".join(f"{name}\n" for name in names[:MOST]))
    return 0


def _quietly(words: Sequence[str]) -> list[str]:
    with suppress(Exception, SystemExit):  # an error would be written into the line that is being typed
        return list(candidates(words))
    return []


def candidates(words: Sequence[str]) -> Sequence[str]:
    """Return what may follow *words*; nothing where that is free text."""
    path, command, free = _place(words)
    options = {name: p for p in (*global_options(), *getattr(command, "params", ())) for name in getattr(p, "opts", ())}
    last = options.get(words[-1]) if words and words[-1].startswith("-") else None
    if last is not None and not last.is_flag:
        if last.name == "fields":
            return _fields(path)
        kind = "servers" if last.name == "server" else KINDS.get(last.metavar or "", "")
    else:
        arguments = [p for p in getattr(command, "params", ()) if p.param_type_name == "argument"]
        at = min(len(free), len(arguments) - 1)
        fits = at == len(free) or (at >= 0 and arguments[at].nargs == -1)
        kind = KINDS.get((arguments[at].metavar or "").strip("[]."), "") if fits and at >= 0 else ""
    if not kind or (path == "tenant create" and kind == "tenants"):
        return []
    app = App()
    app.options |= tree.tolerantly(list(words))
    app.command = "__complete"
    if kind == "servers":
        return [server.name for server in (*app.config.servers, *app.config.neighbours)]
    tenant = free[0] if free and kind != "tenants" else ""
    return _kept(app, kind, tenant, lambda: _asked(app, kind, tenant))


def _place(words: Sequence[str]) -> tuple[str, Any, list[str]]:
    """Return the command that *words* lead to, its path and the arguments behind it; None where there is none yet."""
    valued = {name for option in global_options() if not option.is_flag for name in option.opts}
    command: Any = None
    path: list[str] = []
    free: list[str] = []
    skip = False
    for word in words:
        if skip or word.startswith("-"):
            skip = not skip and word in valued
        elif not path and word in tree.NOUNS:
            path, command = [word], tree.load(word)
        elif path and word in getattr(command, "commands", {}):
            path, command = [*path, word], command.commands[word]
        else:
            free.append(word)
        if command is not None:
            valued |= {name for p in command.params if not getattr(p, "is_flag", True) for name in p.opts}
    return " ".join(path), command, free


def _fields(path: str) -> Sequence[str]:
    from posduif_cli.render.tables import keys

    module, _, name = SHOWN.get(path, "").partition(".")
    return keys(getattr(importlib.import_module(f"posduif_cli.models.{module}"), name)) if module else []


def _asked(app: App, kind: str, tenant: str) -> list[str]:
    from posduif_cli.core import servers
    from posduif_cli.models.servers import Server

    chosen = app.config.servers or (Server(servers.NAME, "", embedded=True),)
    if any(server.embedded for server in chosen):
        dsn = servers.status(app.config.data_dir).dsn  # one that is not running is not started for a name
        chosen = tuple(replace(s, dsn=dsn or "") if s.embedded else s for s in chosen if dsn or not s.embedded)
    app.fleet = app.fleet_of(chosen)
    if kind == "tenants":
        return [found.tenant for found in app.fleet.tenants()[0]]
    from posduif_cli.core.desk import devices, users

    with app.fleet.open(tenant) as place:
        if kind == "users":
            return [user.username for user in users.find_all(place.session, limit=MOST)]
        found = devices.find_all(place.session, limit=MOST)
        return [name for device in found if device.username for name in (device.device_id, device.username)]


def _kept(app: App, kind: str, tenant: str, ask: Callable[[], list[str]]) -> list[str]:
    """Return a fresh enough answer from the cache, else ask and keep it; what cannot be kept does no harm."""
    places = [(server.name, server.dsn) for server in app.config.servers] or [("", str(app.config.data_dir))]
    asked = json.dumps([places, kind, tenant])
    file = config.user_cache_home() / "posduif" / f"{hashlib.sha256(asked.encode()).hexdigest()[:16]}.json"
    with suppress(OSError, ValueError):
        if 0 <= time.time() - file.stat().st_mtime < KEPT and file.stat().st_uid == os.geteuid():
            return [str(name) for name in json.loads(file.read_text("utf-8"))]
    found = ask()
    with suppress(OSError):
        _write(file, json.dumps(found))
    return found


def _write(file: Path, text: str) -> None:
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    new = file.with_suffix(f".{os.getpid()}")
    with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as stream:
        stream.write(text)
    new.replace(file)
    for old in file.parent.glob("*.json"):  # names of tenants lie about no longer than they are of use
        if time.time() - old.stat().st_mtime > 60 * KEPT:
            old.unlink(missing_ok=True)
