"""`posduif doctor`: whether this machine, the configuration and the servers are fit for posduif."""

import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import cache, partial
from typing import TYPE_CHECKING

import typer

from posduif_cli.cli import completion, copies
from posduif_cli.cli.context import App, Noun, app_of, counted
from posduif_cli.config import load as config
from posduif_cli.errors import ConfigurationError, PosduifError

if TYPE_CHECKING:
    from posduif_cli.core.checks.facts import Machine
    from posduif_cli.core.store import Store
    from posduif_cli.models.checks import Finding

app = Noun()


@app.verb("doctor", example="posduif doctor")
def doctor(ctx: typer.Context) -> None:
    """Check this machine, the configuration and each server; every finding comes with what repairs it.

    Exits with 1 when something is wrong.
    """
    from posduif_cli.models.checks import Finding, Level

    app = app_of(ctx)
    findings = _examine(app)
    app.out.list(findings, Finding)
    wrong = sum(finding.level not in (Level.OK, Level.INFO) for finding in findings)
    app.out.say(f"{counted(wrong, 'finding')} to repair" if wrong else "nothing is wrong")
    if wrong:
        raise typer.Exit(1)


def _examine(app: App) -> "list[Finding]":
    from posduif_cli.core.checks import doctor
    from posduif_cli.core.checks.facts import Configuration

    passfile = config.passfile()
    try:
        settings = app.config
    except ConfigurationError as error:
        # What is wrong with it is the finding; the rest is told by what there is without a file.
        terminal = config.terminal(app.options.get("color") or "auto")
        app.config = config.without_file(terminal, app.options.get("output"))
        return doctor.examine(_machine(terminal), Configuration(passfile, error=error), None)
    fleet = unnamed = None
    try:
        fleet = app.fleet
    except ConfigurationError as error:
        unnamed = error
    key = key_error = None
    opened = cache(partial(copies.store_of, app))  # once: a bucket is asked for its marker
    if settings.backup_recipients:
        key, key_error = _try_key(app, opened)
    configuration = Configuration(
        passfile, settings.path, settings.secret, app.folders, unnamed=unnamed, key=key, key_error=key_error,
        key_file=settings.backup_identity,
    )  # fmt: skip
    if settings.backup_dir is not None:
        try:
            store = opened()
            place = f"{counted(len(store.storage.listing()), 'backup')} in {store.place}"
            configuration = replace(configuration, place=place)
        except PosduifError as error:
            configuration = replace(configuration, place_error=error)
    return doctor.examine(_machine(settings.terminal), configuration, fleet)


def _try_key(app: App, opened: "Callable[[], Store]") -> tuple[bool, PosduifError | None]:
    """Return whether encrypted backups could be decrypted here, and what is wrong if one could not."""
    from posduif_cli.core.copies import stores

    keys = copies.keys_of(app)
    try:
        if keys.identity_file is None:
            keys.readers()
            return False, None
        keys.open_canary(keys.canary())
        if app.config.backup_dir is not None:
            left = None
            with suppress(ConfigurationError):  # no backup was made yet
                left = stores.canary(opened(), keys)
            if left is not None:
                keys.open_canary(left)
    except PosduifError as error:
        return True, error
    return True, None


def _machine(terminal: config.Terminal) -> "Machine":
    from posduif_cli.core.checks.facts import Machine
    from posduif_cli.render.output import columns_of

    shell = terminal.shell
    return Machine(
        utf8=terminal.utf8,
        term=terminal.term,
        columns=columns_of(sys.stdout) if sys.stdout.isatty() else None,
        shell=shell,
        completion=completion.place(completion.Shell(shell)) if shell in list(completion.Shell) else None,
    )
