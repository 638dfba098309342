"""A health report without names, to be shown to others: what is wrong, where numbers stand for servers and tenants."""

from dataclasses import replace

from posduif_cli.core.checks import registry
from posduif_cli.errors import Run
from posduif_cli.models.checks import Finding, Health


def redacted(health: Health) -> Health:
    """Return a report in which no text is left that a server, a tenant or a session could have put there.

    Servers and tenants are numbered in the order of their names. Messages are replaced by the titles of the checks, and
    of a fix that is a command of posduif its first two words are left.
    """
    servers = _numbered("server", [row.server for row in health.servers] + [f.server for f in health.findings])
    affected = [(f.server, name) for f in health.findings for name in f.affected]
    known = sorted({*((row.server, row.tenant) for row in health.tenants), *affected})
    tenants = {place: f"tenant-{number:04}" for number, place in enumerate(known, 1)}
    titles = {check.id: check.title for check in registry.of("health")}

    def hide(finding: Finding) -> Finding:
        places = [(finding.server, name) for name in finding.affected]
        names = tuple(tenants[place] for place in places)
        number = isinstance(finding.value, int | float)
        return replace(
            finding, subject=names[0] if finding.scope == "tenant" and names else servers[finding.server],
            message=f"not so: {titles[finding.check]}" + (f", in {len(names)} tenants" if len(names) > 1 else ""),
            value=finding.value if number else None, fix=_plain(finding), affected=names,
            server=servers[finding.server],
        )  # fmt: skip

    return replace(
        health,
        servers=tuple(replace(row, server=servers[row.server]) for row in health.servers),
        tenants=tuple(
            replace(row, tenant=tenants[row.server, row.tenant], server=servers[row.server], tables=(), indexes=())
            for row in health.tenants
        ),
        findings=tuple(map(hide, health.findings)),
        skipped=dict.fromkeys(health.skipped, "it could not be judged"),
        ran={servers[name]: ids for name, ids in health.ran.items()},
    )  # fmt: skip


def _numbered(word: str, names: list[str]) -> dict[str, str]:
    return {name: f"{word}-{number}" for number, name in enumerate(sorted(set(names)), 1)}


def _plain(finding: Finding) -> str | None:
    """Return the command that repairs it, without the names behind it; what else repairs it may hold some."""
    return f"with the command {' '.join(finding.fix.words[:2])}" if isinstance(finding.fix, Run) else None
