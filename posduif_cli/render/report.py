"""The health report: worst first, then the figures."""

from collections import Counter
from collections.abc import Sequence

from posduif_cli.errors import Run
from posduif_cli.models.checks import Finding, Health, Level
from posduif_cli.models.tenants import State, Tenant
from posduif_cli.notation import counted
from posduif_cli.render.output import Output
from posduif_cli.render.tables import size

STRAGGLERS = 20


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


def show(out: Output, health: Health) -> None:
    """Show a report: tables for a person, rows of findings for a pipe, one object as JSON."""
    if out.machine:
        out.show(health)
        return
    if out.format == "tsv" or out.fields:
        out.list(health.findings, Finding)
        return
    bad = [finding for finding in health.findings if finding.level is not Level.OK]
    if bad:
        out.table(("level", "check", "subject", "message", "fix"), bad)
        out.text("")
    out.grid(
        ("server", "version", "connections", "slots", "replicas"),
        [
            [
                row.server,
                row.version or ("?" if row.reachable else "unreachable"),
                " of ".join(map(_known, (row.connections, row.max_connections))) if row.reachable else "",
                _known(row.slots) if row.reachable else "",
                _known(row.replicas) if row.reachable else "",
            ]
            for row in health.servers
        ],
    )
    if health.tenants:
        out.text("")
        out.grid(
            ("tenant", "state", "schema", "users", "messages", "pending sync", "sync errors", "size"),
            [
                [
                    row.tenant,
                    row.state.value,
                    (row.schema_version or "none")
                    + (f" (+{row.pending_migrations})" if row.pending_migrations else ""),
                    *map(_known, (row.users, row.messages, row.pending_sync, row.sync_errors)),
                    size(row.size_bytes),
                ]
                for row in health.tenants
            ],
        )
    if len(health.tenants) == 1 and health.tenants[0].tables:
        only = health.tenants[0]
        out.text("")
        out.grid(("table", "rows (estimate)", "size"), [[t.table, str(t.rows), size(t.bytes)] for t in only.tables])
        out.text("")
        out.grid(
            ("index", "table", "scans", "size"),
            [[index.index, index.table, str(index.scans), size(index.bytes)] for index in only.indexes],
        )
    checks, tenants = len(health.findings), health.coverage["tenants"]
    out.text(
        f"\n{out.paint(health.status, 'status')}: {checks - len(bad)} of {counted(checks, 'check')} "
        f"{'is' if checks == 1 else 'are'} fine; {health.coverage['visited']} of {counted(tenants, 'tenant')} "
        f"{'was' if tenants == 1 else 'were'} visited",
        own=True,
    )


def _known(number: int | None) -> str:
    return "?" if number is None else str(number)
