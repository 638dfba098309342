"""`posduif doctor`: whether this machine, the configuration and the servers are fit for posduif."""

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

import typer

from posduif_cli.cli import completion
from posduif_cli.cli.context import App, Noun, app_of, counted
from posduif_cli.config import load as config
from posduif_cli.errors import ConfigurationError

if TYPE_CHECKING:
    from posduif_cli.core.checks.machine import Machine
    from posduif_cli.models.checks import Finding

app = Noun()


@app.verb("doctor", example="posduif doctor")
def doctor(ctx: typer.Context) -> None:
    """Check this machine, the configuration and each server; every finding comes with its repair.

    Exits with 1 when something is wrong.
    """
    from posduif_cli.models.checks import Finding, Level

    app = app_of(ctx)
    findings = list(_examine(app))
    app.out.list(findings, Finding)
    wrong = sum(finding.level not in (Level.OK, Level.INFO) for finding in findings)
    app.out.say(f"{counted(wrong, 'finding')} to mend" if wrong else "nothing is wrong")
    if wrong:
        raise typer.Exit(1)


def _examine(app: App) -> "Iterator[Finding]":
    from posduif_cli.core.checks import machine

    try:
        settings = app.config
    except ConfigurationError as error:
        # What is wrong with it is the finding; the rest is told by what there is without a file.
        terminal = config.terminal(app.options.get("color") or "auto")
        app.config = config.without_file(terminal, app.options.get("output"))
        yield from machine.machine(_machine(terminal))
        yield machine.broken(error)
        return
    yield from machine.machine(_machine(settings.terminal))
    yield from machine.configuration(settings.path, app.folders, secret=settings.secret)
    try:
        fleet = app.fleet
    except ConfigurationError as error:
        yield machine.broken(error, "servers")
    else:
        yield from machine.fleet(fleet)


def _machine(terminal: config.Terminal) -> "Machine":
    from posduif_cli.core.checks.machine import Machine
    from posduif_cli.render.output import columns_of

    shell = terminal.shell
    return Machine(
        utf8=terminal.utf8,
        term=terminal.term,
        columns=columns_of(sys.stdout) if sys.stdout.isatty() else None,
        shell=shell,
        completion=completion.place(completion.Shell(shell)) if shell in list(completion.Shell) else None,
        passfile=config.passfile(),
    )
