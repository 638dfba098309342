"""Reports: where schemas stand, and the health report in each of its formats."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

from posduif_cli.errors import Run
from posduif_cli.models.checks import Finding, Health
from posduif_cli.models.tenants import State, Tenant
from posduif_cli.notation import counted, spell
from posduif_cli.render import files, monitoring, tables
from posduif_cli.render.output import Output
from posduif_cli.render.tables import size

STRAGGLERS = 20
NAGIOS = monitoring.EXITS


def skew(out: Output, rows: Sequence[Tenant]) -> None:
    """Summarise where schemas stand: version by server, then the stragglers by name."""
    servers = sorted({row.server for row in rows})
    versions = sorted({row.schema_version or "none" for row in rows}, reverse=True)
    if not rows:
        out.say(Run("tenant", "create", "NAME", lead="no tenants yet"))
        return
    counts = Counter((row.schema_version or "none", row.server) for row in rows)
    out.grid(
        ("version", *servers, "all"),
        [
            [
                version,
                *(str(counts[version, server]) for server in servers),
                str(sum(counts[version, s] for s in servers)),
            ]
            for version in versions
        ],
    )
    behind = [row for row in rows if row.pending or row.ahead or row.error or row.state is not State.ACTIVE]
    if behind:
        out.text("")
        out.table(("tenant", "server", "state", "schema_version", "pending", "ahead", "error"), behind[:STRAGGLERS])
        if len(behind) > STRAGGLERS:
            out.text(f"and {len(behind) - STRAGGLERS} more: --list")
    else:
        out.text("\nno tenant is behind or ahead")


def show(out: Output, health: Health, *, verbose: bool = False, to: Path | None = None) -> None:
    """Show a health report in the format that was asked for: tables for a person, one line per finding, an object, ...

    With *to* it is written to that file, whole or not at all, for everyone to read. Raises ConfigurationError.
    """
    if to is not None:
        with out.held() as held:
            show(out, health)
        files.write_public(to, held.getvalue().encode())
    elif out.format == "html":
        from posduif_cli.render import page

        out.text(page.html(out.spelled(health)), own=True)
    elif out.format == "nagios":
        out.text(monitoring.nagios(out.spelled(health)), own=True)
    elif out.format == "prometheus":
        out.text(monitoring.prometheus(out.spelled(health)), own=True)
    elif out.format == "json":
        out.show(health)
    elif out.format != "table" or out.fields:
        out.list(health.findings, Finding)
    else:
        _tables(out, health, verbose)


def again(out: Output, health: Health, pause: timedelta) -> None:
    """Show a report in the place of the one before, as much of it as the terminal has lines for."""
    with out.screenful(f"{tables.cell(health.checked_at)}, again every {spell(pause)}; ctrl-C ends it"):
        _tables(out, health, False)


def _tables(out: Output, health: Health, verbose: bool) -> None:
    bad = health.findings
    if not bad:
        out.text(_summary(out, health), own=True)
        out.text("")
    else:
        shown = [replace(finding, message=monitoring.told(health, finding)) for finding in bad]
        out.table(("level", "check", "message", "fix"), shown)
        out.text("")
    out.grid(
        ("server", "version", "tenants", "connections", "slots", "replicas"),
        [
            [
                row.server,
                row.version or ("?" if row.reachable else "unreachable"),
                _counted(health, row.server) if row.reachable else "?",
                " of ".join(map(_known, (row.connections, row.max_connections))) if row.reachable else "",
                _known(row.slots) if row.reachable else "",
                _known(row.replicas) if row.reachable else "",
            ]
            for row in health.servers
        ],
    )
    if health.named and health.tenants:
        _tenants(out, health, verbose)
    elif verbose:
        _sizes(out, health)
    if verbose:
        for check, reason in health.skipped.items():
            out.text(f"skipped: {check}: {reason}")
    if bad:
        out.text("\n" + _summary(out, health), own=True)


def _counted(health: Health, server: str) -> str:
    """Return how many tenants a server has, and how many of them are not active."""
    counts = Counter(row.state for row in health.tenants if row.server == server)
    others = [f"{number} {state}" for state, number in counts.items() if state is not State.ACTIVE]
    return str(counts.total()) + (f" ({', '.join(others)})" if others else "")


def _summary(out: Output, health: Health) -> str:
    """Say in one line how all is, and what was looked at."""
    found, bad = health.coverage, len({finding.check for finding in health.findings})
    asked, total = found["checks"] + found["checks_failed"], found["tenants"]
    fine = max(0, found["checks"] - bad)
    parts = [f"{fine} of {counted(asked, 'check')} {'is' if asked == 1 else 'are'} fine"]
    parts.append(f"{counted(len(health.servers), 'server')} with {counted(total, 'tenant')}")
    if health.named or found["visited"] or found["failed"]:
        parts[1] = f"{found['visited']} of {counted(total, 'tenant')} {'was' if total == 1 else 'were'} visited"
    if found["probed"]:
        parts.append(f"{counted(found['probed'], 'engine')} asked")
    if found["left_out"]:
        parts.append(f"{counted(found['left_out'], 'tenant')} left out by the budget")
    return f"{out.paint(health.status, 'status')}: {'; '.join(parts)}"


def _tenants(out: Output, health: Health, verbose: bool) -> None:
    out.text("")
    out.grid(
        ("tenant", "state", "schema", "users", "messages", "waiting", "errors", "size"),
        [
            [
                row.tenant,
                row.state.value,
                (row.schema_version or "none") + (f" (+{row.pending_migrations})" if row.pending_migrations else ""),
                *map(_known, (row.users, row.messages, row.pending_sync, row.sync_errors)),
                size(row.size_bytes),
            ]
            for row in health.tenants
        ],
    )
    if verbose and len(health.tenants) == 1 and health.tenants[0].tables:
        only = health.tenants[0]
        out.text("")
        out.grid(("table", "rows (estimate)", "size"), [[t.table, str(t.rows), size(t.bytes)] for t in only.tables])
        out.text("")
        out.grid(
            ("index", "table", "scans", "size"),
            [[index.index, index.table, str(index.scans), size(index.bytes)] for index in only.indexes],
        )


def _sizes(out: Output, health: Health) -> None:
    """Show the largest tenants."""
    largest = monitoring.largest(health)
    if largest:
        out.text("")
        out.grid(
            ("tenant", "server", "state", "size"),
            [[row.tenant, row.server, row.state.value, size(row.size_bytes)] for row in largest],
        )


def _known(number: int | None) -> str:
    return "?" if number is None else str(number)
