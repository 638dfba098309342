"""A health report for monitoring: one plugin's answer for Nagios, and metrics for Prometheus' textfile collector.

Sources: the monitoring plugins' guidelines (one line, `|`, performance data), and Prometheus' text format 0.0.4.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

from posduif_cli.models.checks import Finding, Health, Level, TenantHealth
from posduif_cli.models.tenants import State
from posduif_cli.notation import counted
from posduif_cli.render.tables import visible

LARGEST = 20  # tenants whose size is told
EXITS: Mapping[Level, int] = {
    Level.OK: 0, Level.SKIPPED: 0, Level.INFO: 0, Level.WARNING: 1, Level.CRITICAL: 2, Level.UNKNOWN: 3
}  # fmt: skip
TOLD = (Level.CRITICAL, Level.UNKNOWN, Level.WARNING, Level.INFO)
Sample = tuple[Mapping[str, str], float]  # labels, value


def largest(health: Health) -> list[TenantHealth]:
    """Return the tenants of known size with the largest databases."""
    known = [row for row in health.tenants if row.size_bytes is not None]
    return sorted(known, key=lambda row: (-(row.size_bytes or 0), row.tenant))[:LARGEST]


def nagios(health: Health) -> str:
    """Return the answer of a plugin: the status and performance data in the first line, then one line per finding."""
    counts = Counter(finding.level for finding in health.findings)
    word = ("OK", "WARNING", "CRITICAL", "UNKNOWN")[EXITS[Level(health.status)]]
    servers, tenants = counted(len(health.servers), "server"), counted(health.coverage["tenants"], "tenant")
    bad = ", ".join(f"{counts[level]} {level}" for level in TOLD[:3] if counts[level])
    first = f"POSDUIF {word} - {bad + ' in ' if bad else ''}{servers} and {tenants}"
    if health.coverage["left_out"]:
        first += f", {health.coverage['left_out']} left out by the budget"
    lines = [f"[{finding.level.upper()}] {_plain(_line(health, finding))}" for finding in health.findings]
    return "\n".join([f"{first} | {' '.join(_performance(health, counts))}", *lines]) + "\n"


def told(health: Health, finding: Finding) -> str:
    """Return what a finding says in a report, with the tenant or the server that it is about."""
    parts = [finding.server] if len(health.servers) > 1 and finding.server not in finding.message else []
    if finding.scope == "tenant" and len(finding.affected) == 1 and finding.subject not in finding.message:
        parts.append(finding.subject)
    return ": ".join([*parts, finding.message])


def _line(health: Health, finding: Finding) -> str:
    return f"{finding.check}: {told(health, finding)}" + (f" -> {finding.fix}" if finding.fix else "")


def _plain(text: str) -> str:
    """Return a text in one line, without what separates performance data from it."""
    return " ".join(map(visible, text.replace("|", "/").split()))


def _performance(health: Health, counts: Mapping[Level, int]) -> Iterator[str]:
    """Yield performance data: label, value, warning, critical, least and most, in base units."""
    yield f"tenants={health.coverage['tenants']};;;0"
    for level in TOLD[:3]:
        yield f"{level}={counts[level]};;;0"
    for row in health.servers:
        if row.connections is not None and row.max_connections is not None:
            yield f"'{row.server} connections'={row.connections};;;0;{row.max_connections}"
        if row.replication_lag_bytes is not None:
            yield f"'{row.server} replication lag'={row.replication_lag_bytes}B;;;0"
    yield f"time={health.seconds:.3f}s;;;0"


def prometheus(health: Health) -> str:
    """Return the report as metrics; every family is there, and every check that judged has its series, also at 0."""
    by_state = Counter((row.server, row.state) for row in health.tenants)
    findings, tenants = _counted(health)
    places = [(server, check, level) for server, checks in health.ran.items() for check in checks for level in TOLD]
    servers = health.servers
    ages = _backup_ages(health)
    families: Sequence[tuple[str, str, Iterable[Sample]]] = (
        ("posduif_up", "Whether the server answered.", (({"server": s.server}, s.reachable) for s in servers)),
        ("posduif_tenants", "Tenants by their state.", (
            ({"server": s.server, "state": state}, by_state[s.server, state])
            for s in servers if s.reachable for state in State)),
        ("posduif_findings", "Findings of the last report, one per cause.", (
            ({"server": server, "check": check, "level": level}, findings[server, check, level])
            for server, check, level in places)),
        ("posduif_affected_tenants", "Tenants that findings are about.", (
            ({"server": server, "check": check, "level": level}, tenants[server, check, level])
            for server, check, level in places)),
        ("posduif_connections", "Connections in use, and those that ordinary roles may use.", (
            ({"server": s.server, "what": what}, value) for s in servers
            for what, value in (("used", s.connections), ("allowed", s.max_connections)) if value is not None)),
        ("posduif_replication_slots", "Replication slots.", (
            ({"server": s.server}, s.slots) for s in servers if s.slots is not None)),
        ("posduif_replication_lag_bytes", "How far the slowest replica is behind.", (
            ({"server": s.server}, s.replication_lag_bytes) for s in servers if s.replication_lag_bytes is not None)),
        ("posduif_tenant_size_bytes", f"The databases of the {LARGEST} largest tenants.", (
            ({"server": row.server, "tenant": row.tenant}, row.size_bytes or 0) for row in largest(health))),
        ("posduif_oldest_backup_age_seconds", "The age of the newest backup of the tenant whose is the oldest.", (
            ({"server": server}, age) for server, age in ages.items())),
        ("posduif_status", "1 for the level of the whole report.", (
            ({"level": level}, health.status == level) for level in Level if level is not Level.SKIPPED)),
        ("posduif_checks", "Checks that judged, were skipped, or could not judge.", (
            ({"what": what}, health.coverage[key])
            for what, key in (("judged", "checks"), ("skipped", "checks_skipped"), ("failed", "checks_failed")))),
        ("posduif_visited_tenants", "Tenants whose databases were looked into.", (({}, health.coverage["visited"]),)),
        ("posduif_run_seconds", "How long the report took.", (({}, health.seconds),)),
        ("posduif_last_run_timestamp_seconds", "When the report was made.", (({}, health.checked_at.timestamp()),)),
    )  # fmt: skip
    return "".join(line for name, text, samples in families for line in _family(name, text, samples))


def _counted(health: Health) -> tuple[Counter[tuple[str, str, Level]], Counter[tuple[str, str, Level]]]:
    """Return the numbers of findings and of their tenants, by server, check and level."""
    findings: Counter[tuple[str, str, Level]] = Counter()
    tenants: dict[tuple[str, str, Level], set[str]] = {}
    for finding in health.findings:
        place = (finding.server, finding.check, finding.level)
        findings[place] += 1
        tenants.setdefault(place, set()).update(finding.affected)
    return findings, Counter({place: len(names) for place, names in tenants.items()})


def _backup_ages(health: Health) -> dict[str, float]:
    ages: dict[str, float] = {}
    for row in health.tenants:
        if row.backup_at is not None:
            age = (health.checked_at - row.backup_at).total_seconds()
            ages[row.server] = max(age, ages.get(row.server, 0.0))
    return ages


def _family(name: str, text: str, samples: Iterable[Sample]) -> Iterator[str]:
    yield f"# HELP {name} {text}\n# TYPE {name} gauge\n"
    for labels, value in samples:
        spelled = ",".join(f'{key}="{_escaped(word)}"' for key, word in labels.items())
        yield f"{name}{{{spelled}}} {float(value):.15g}\n" if labels else f"{name} {float(value):.15g}\n"


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
