"""`posduif health`: report what is wrong with servers and tenants."""

import sys
import time
from collections.abc import Callable
from datetime import timedelta
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from posduif_cli.cli import copies, options
from posduif_cli.cli.context import App, Noun, app_of
from posduif_cli.config.load import FORMATS, MONITORING
from posduif_cli.errors import PosduifError, UsageError
from posduif_cli.notation import duration

if TYPE_CHECKING:
    from posduif_cli.core.checks.rules import Rules
    from posduif_cli.models.checks import Health
    from posduif_cli.models.copies import Backup

app = Noun()


class FailOn(StrEnum):
    """From which level on a report is a failure."""

    CRITICAL = "critical"
    UNKNOWN = "unknown"
    WARNING = "warning"


Only = Annotated[
    list[str] | None,
    typer.Option("--only", metavar="CHECK", help="Only this check, or all of a group such as backup; repeatable."),
]
Skip = Annotated[
    list[str] | None, typer.Option("--skip", metavar="CHECK", help="Not this check, or none of a group; repeatable.")
]


@app.verb("health", example="posduif health")
def health(
    ctx: typer.Context,
    tenant: options.Tenants = None,
    deep: Annotated[bool, typer.Option("--deep", help="Look into every tenant's database, too.")] = False,
    probe: Annotated[bool, typer.Option("--probe", help="Ask each tenant's url, as a phone would.")] = False,
    only: Only = None,
    skip: Skip = None,
    list_checks: Annotated[bool, typer.Option("--list-checks", help="List the checks; ask no server.")] = False,
    explain: Annotated[
        str | None, typer.Option("--explain", metavar="CHECK", help="Say what a check looks at, and why.")
    ] = None,
    fail_on: Annotated[
        FailOn, typer.Option("--fail-on", help="Exit with 1 from this level on: warning, unknown, critical.")
    ] = FailOn.CRITICAL,
    budget: Annotated[
        str | None,
        typer.Option("--budget", metavar="DURATION", help="Visit and probe no further tenant after this time: 60s."),
    ] = None,
    jobs: options.Jobs = 4,
    verbose: Annotated[
        bool, typer.Option("--verbose", help="Also the largest tenants, what was skipped, tables and indexes.")
    ] = False,
    redact: Annotated[bool, typer.Option("--redact", help="Put numbers in the place of all names.")] = False,
    out: options.Out = None,
    watch: Annotated[
        str | None, typer.Option("--watch", metavar="DURATION", help="Show it again and again on a terminal: 5s.")
    ] = None,
) -> None:
    """Report what is wrong with the named tenants, or with all, and with their servers.

    One connection per server sees all its tenants. Named tenants are looked into, and all are with --deep.
    Exits with 1 when something is critical; a server that cannot be reached is. `-o` is also nagios (exits with 0, 1, 2
    or 3), prometheus or html.
    """
    from posduif_cli.core.checks import health as core
    from posduif_cli.core.checks import redact as hiding
    from posduif_cli.core.checks.visits import Depth
    from posduif_cli.models.checks import CheckInfo, Level
    from posduif_cli.render import report

    app = app_of(ctx)
    app.formats = (*FORMATS, *MONITORING)
    until, pause = _span(budget), _span(watch)
    if list_checks or explain:
        found = rules_of(app, [explain] if explain else (), ()).infos(app.config.servers)
        if explain and len(found) == 1:
            app.out.show(found[0])
        else:
            app.out.list(found, CheckInfo)
        return
    if out is not None and app.out.format == "table":
        raise UsageError("a table is not written to a file", hint="add -o html, prometheus, json, jsonl or tsv")
    if pause is not None and (app.out.format != "table" or out is not None or not sys.stdout.isatty()):
        raise UsageError("--watch needs a terminal", hint="leave it out, and run the command by cron")
    rules = rules_of(app, only or (), skip or ())
    _require_reach(rules, visits=deep or bool(tenant), probes=probe)
    sizes = verbose or app.out.format in ("prometheus", "html")

    def made() -> "Health":
        depth = Depth(deep, probe, sizes, jobs, until)
        backups = _backups(app) if any(check.tier == "stored" for check in rules.chosen) else None
        result = core.report(app.fleet, tenants=tenant or (), backups=backups, rules=rules, depth=depth)
        return hiding.redacted(result) if redact else result

    def bad(result: "Health") -> bool:
        return Level(result.status).rank >= Level(fail_on.value).rank

    if pause is not None:
        raise typer.Exit(_watch(app, made, pause, bad))
    result = made()
    report.show(app.out, result, verbose=verbose, to=None if str(out) == "-" else out)
    if app.out.format == "nagios":
        raise typer.Exit(report.NAGIOS[Level(result.status)])
    if bad(result):
        raise typer.Exit(1)


def _require_reach(rules: "Rules", *, visits: bool, probes: bool) -> None:
    """Raise UsageError where no chosen check would judge anything: a report on nothing looks like a good one."""
    lacking = {"visited": ("--deep", visits), "probed": ("--probe", probes)}
    tiers = {check.tier for check in rules.chosen}
    if not tiers:
        raise UsageError("no check is left", hint="choose others by --only and --skip")
    if all(tier in lacking and not lacking[tier][1] for tier in tiers):
        raise UsageError(
            "these checks look further than this report", hint=[f"add {lacking[t][0]}" for t in sorted(tiers)]
        )


def rules_of(app: App, only: "list[str] | tuple[str, ...]", skip: "list[str] | tuple[str, ...]") -> "Rules":
    """Return which checks judge, by the configuration; raises ConfigurationError or UsageError."""
    from posduif_cli.core.checks import registry
    from posduif_cli.core.checks.rules import Rules

    config = app.config
    origins = {setting.key: setting.origin for setting in config.settings}
    everyone = (*config.servers, *config.neighbours)
    of_servers = {server.name: server.checks for server in everyone}
    return Rules(registry.choose("health", only, skip), config.checks, of_servers, origins)


def _watch(app: App, made: "Callable[[], Health]", pause: timedelta, bad: "Callable[[Health], bool]") -> int:
    """Show the report again and again, until ctrl-C; return the exit code of the last one."""
    from posduif_cli.errors import Interrupted
    from posduif_cli.render import report

    last = None
    try:
        while True:
            last = made()
            report.again(app.out, last, pause)
            time.sleep(pause.total_seconds())
    except (KeyboardInterrupt, Interrupted):
        return int(last is not None and bad(last))


def _span(text: str | None) -> timedelta | None:
    return None if text is None else duration(text)


def _backups(app: App) -> "list[Backup] | PosduifError | None":
    """Return all backups, or why they cannot be read; None where none are configured."""
    if app.config.backup_dir is None:
        return None
    try:
        return copies.store_of(app).backups()
    except PosduifError as error:
        return error
