"""What commands over many tenants share: progress while they run, then outcomes, summary and exit code."""

from typing import Any

from posduif_cli.cli.context import App, counted
from posduif_cli.errors import PartialFailure, PosduifError, ServerError
from posduif_cli.notation import listed

WORDS = ("ok", "created", "unchanged", "skipped", "differs", "failed")


def watched(app: App) -> Any:
    """Show progress on stderr while a run goes on."""
    from posduif_cli.render import progress

    return progress.watch(app.out)


def conclude(app: App, run: Any, errors: dict[str, PosduifError], names: list[str] | None, *, every: bool) -> None:
    """Show the outcomes, *every* one or those that changed or failed, and the summary; failures are the exit code."""
    from posduif_cli.core.fleet import run as outcomes
    from posduif_cli.models.runs import Outcome

    order = {name: number for number, name in enumerate(names or ())}
    ordered = sorted(run.outcomes, key=lambda outcome: (order.get(outcome.tenant, 0), outcome.tenant, outcome.server))
    shown = ordered if every else [o for o in ordered if o.status != "unchanged"]
    app.out.list(shown, Outcome)
    counts = outcomes.tally(run.outcomes)
    summary = ", ".join(f"{counts[word]} {word}" for word in WORDS if counts[word])
    app.out.say(
        f"{summary or 'nothing to do'}; servers: {', '.join(s.name for s in app.fleet.servers if s.name not in errors)}"
    )
    for name, error in errors.items():
        app.out.warn(f"server {name} could not be asked: {error.why or error.message}")
    for cause, tenants in outcomes.causes(run.outcomes):
        app.out.say(f"  {counted(len(tenants), 'tenant')} failed ({listed(tenants, 5)}): {cause}")
    failures = {**{f"server {name}": error for name, error in errors.items()}, **run.errors}
    if names and len(names) == 1 and failures:
        raise next(iter(failures.values()))
    if names and all(isinstance(run.errors.get(name), ServerError) for name in names):
        raise run.errors[names[0]]
    if failures or run.stopped_by:
        number = counts["failed"] + counts["differs"]
        parts = [f"{counted(number, 'tenant')} failed"] if number else []
        parts += [f"{counted(len(errors), 'server')} could not be asked"] if errors else []
        reasons = [cause for cause, _ in outcomes.causes(run.outcomes)[:1]]
        again = "then run the same command again: it goes on with the rest"
        kept = _kept_files(run)
        raise PartialFailure(
            ", ".join(parts) or "the run was stopped",
            why="; ".join(filter(None, (*reasons, run.stopped_by)))
            or "the outcome of every tenant that was asked is above",
            hint=f"fix the tenants, not {', '.join(kept)}, which other tenants have by now; {again}"
            if kept
            else f"fix the cause, {again}",
        )


def _kept_files(run: Any) -> list[str]:
    """Return the migration files that failed in some tenants and are applied in others: they are history."""
    reached = max((o.to or "" for o in run.outcomes if o.status in ("ok", "unchanged")), default="")
    failed = {o.error.file for o in run.outcomes if o.status == "failed" and o.error and o.error.file}
    return sorted(file for file in failed if file.partition("_")[0] <= reached)
