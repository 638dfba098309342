"""What commands over many tenants share: progress while they run, then outcomes, summary and exit code."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from posduif_cli.cli.context import App, counted
from posduif_cli.errors import PartialFailure, PosduifError, ServerError
from posduif_cli.notation import listed

if TYPE_CHECKING:
    from posduif_cli.core.fleet.run import Pace, Run

SHOWN = 5


@contextmanager
def watched(app: App, pace: "Pace") -> "Iterator[Run]":
    """Give the block a run whose progress is shown on stderr."""
    from posduif_cli.core.fleet.run import Run
    from posduif_cli.render import progress

    fleet = app.fleet  # says which server is used before the progress line begins
    with progress.watch(app.out) as watcher:
        yield Run(fleet, pace, on_outcome=watcher.on_outcome, tell=watcher.tell)


def conclude(
    app: App,
    run: "Run",
    errors: Mapping[str, PosduifError],
    names: Sequence[str] | None,
    *,
    every: bool,
    list_all: bool = False,
) -> None:
    """Show the outcomes, *every* one or those that changed or failed, and the summary; failures are the exit code.

    *errors* are of servers that could not be asked. What failed or was skipped is told by its cause: a table has no
    row for it unless *list_all*.
    """
    from posduif_cli.core.fleet.run import causes, kept_files
    from posduif_cli.models.runs import STATUSES, Outcome

    order = {name: number for number, name in enumerate(names or ())}
    shown = sorted(run.outcomes, key=lambda outcome: (order.get(outcome.tenant, 0), outcome.tenant, outcome.server))
    by_cause = app.out.format == "table" and not list_all
    app.out.list([o for o in shown if (every or o.status != "unchanged") and not (by_cause and o.error)], Outcome)
    counts = Counter(outcome.status for outcome in run.outcomes)
    summary = ", ".join(f"{counts[word]} {word}" for word in STATUSES if counts[word])
    covered = ", ".join(server.name for server in app.fleet.servers if server.name not in errors)
    app.out.say(f"{summary or 'nothing to do'}; servers: {covered}")
    for name, error in errors.items():
        app.out.warn(f"server {name} could not be asked: {error.why or error.message}")
    for cause, tenants in causes((o.tenant, o.error) for o in run.outcomes if o.status == "skipped" and o.error):
        app.out.say(f"  {counted(len(tenants), 'tenant')} skipped ({listed(tenants, SHOWN)}): {cause}")
    failed = [(o.tenant, o.error) for o in run.outcomes if o.status in ("failed", "differs") and o.error]
    bad = dict(failed)
    if names and len(names) == 1:
        for error in (*errors.values(), *bad.values()):
            raise error
    found = causes(failed)
    away = [bad[name] for name in names or () if isinstance(bad.get(name), ServerError)]
    if names and len(away) == len(names) and len(found) == 1:
        raise away[0]
    for cause, tenants in found:
        app.out.say(f"  {counted(len(tenants), 'tenant')} failed ({listed(tenants, SHOWN)}): {cause}")
    if names and len(away) == len(names):
        raise away[0]
    if bad or errors or run.stopped_by:
        number = counts["failed"] + counts["differs"]
        parts = [f"{counted(number, 'tenant')} failed"] if number else []
        parts += [f"{counted(len(errors), 'server')} could not be asked"] if errors else []
        kept = kept_files(run.outcomes, app.folders)
        again = "then run the same command again: it goes on with the rest"
        raise PartialFailure(
            ", ".join(parts) or "the run was stopped",
            why=[*(cause for cause, _ in found[:1]), run.stopped_by]
            if found or run.stopped_by
            else "the outcome of every tenant that was asked is above",
            hint=f"fix the tenants, not {', '.join(kept)}, which other tenants have by now; {again}"
            if kept
            else f"fix the cause, {again}",
        )
