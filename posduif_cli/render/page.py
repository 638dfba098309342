"""A health report as one page of HTML that needs nothing beside itself: no network, no script, no font, no image.

Its style is in the page and is all that its Content-Security-Policy allows. A word accompanies every colour.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from html import escape

from posduif_cli.models.checks import Finding, Health, Level, TenantHealth
from posduif_cli.models.tenants import State
from posduif_cli.notation import counted, listed, moment
from posduif_cli.render.monitoring import LARGEST, TOLD, largest, told
from posduif_cli.render.tables import size, visible

FEW = 6  # tenants that a finding names at once
MOST_FINDINGS = 300  # in full; with the limits below it keeps the page of a large fleet below 2 MB
MOST_NAMES = 10_000  # of affected tenants, in all findings together
MOST_ROWS = 200  # tenants of the heat map that have a row
MOST_CELLS = 10_000  # tenants of the heat map that have a cell
Place = tuple[str, str]  # server, tenant
Heat = Mapping[Place, Mapping[str, tuple[Level, int]]]  # by check: the worst level, and the index of that finding

STYLE = """
:root{color-scheme:light dark;--paper:#fff;--ink:#1c2430;--soft:#566070;--line:#dde2e9;--box:#f5f7f9;--bar:#4a7ab5;
--on:#fff}
.critical{--level:#c5281c}.unknown{--level:#7a4fd0}.warning{--level:#f2b11b;--on:#1d1300}.info{--level:#2c6bd8}
.ok{--level:#15804d}
.word,.heat td,.cells i,article>i{background:var(--level);color:var(--on)}
@media screen and (prefers-color-scheme:dark){:root{--paper:#14181f;--ink:#e4e8ee;--soft:#9aa5b4;--line:#303845;
--box:#1c222b;--bar:#6b9bd6}}
*{box-sizing:border-box}
body{margin:0 auto;max-width:72rem;padding:1.5rem 1rem 4rem;background:var(--paper);color:var(--ink);
font:1rem/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",sans-serif;
-webkit-print-color-adjust:exact;print-color-adjust:exact}
h1{font-size:1.7rem;line-height:1.3;margin:0 0 .4rem}
h2{font-size:1.2rem;margin:2.4rem 0 .7rem;padding-top:.7rem;border-top:1px solid var(--line)}
h3{font-size:1rem;margin:1.4rem 0 .5rem}
p{margin:.3rem 0}
.soft,small{color:var(--soft);font-size:.85rem;font-weight:normal}
.word{display:inline-block;padding:0 .5em;border-radius:.3em;white-space:nowrap}
dl{display:flex;flex-wrap:wrap;gap:.6rem;margin:1rem 0 0}
dl div{display:flex;flex-direction:column-reverse;justify-content:flex-end;flex:1 1 7rem;background:var(--box);
border-radius:.5rem;padding:.5rem .8rem}
dd{margin:0;font-size:1.25rem;font-weight:600}
dt{color:var(--soft);font-size:.85rem}
article{position:relative;background:var(--box);border-radius:.4rem;padding:.7rem 1rem .7rem 1.3rem;margin:.6rem 0;
overflow:hidden;overflow-wrap:anywhere;break-inside:avoid}
article>i{position:absolute;left:0;top:0;bottom:0;width:.4rem}
article:target{outline:2px solid var(--bar)}
code{display:block;margin-top:.4rem;padding:.35rem .6rem;background:var(--paper);border:1px solid var(--line);
border-radius:.3rem;font:.85rem/1.5 ui-monospace,Menlo,Consolas,"DejaVu Sans Mono",monospace;white-space:pre;
overflow-x:auto}
small{display:inline-block}
summary{cursor:pointer;color:var(--soft)}
.scroll{overflow-x:auto}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
th,td{text-align:left;vertical-align:top;padding:.35rem .8rem .35rem 0;border-bottom:1px solid var(--line)}
thead th{color:var(--soft);font-size:.85rem;font-weight:normal;vertical-align:bottom}
tbody th{font-weight:normal;overflow-wrap:break-word;min-width:6rem}
.servers th,.servers td{white-space:nowrap}
.servers tbody th{font-weight:600}
tr{break-inside:avoid}
.pair{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,26rem),1fr));gap:0 3rem}
.pair th,.pair td{padding-top:.15rem;padding-bottom:.15rem}
.pair td{white-space:nowrap}
.pair td+td{width:30%;padding-right:0}
.pair tbody th{overflow-wrap:anywhere;min-width:8.5rem}
.bar{display:block;min-width:3rem;height:.6rem;margin:.45rem 0;background:var(--line);border-radius:.3rem;
overflow:hidden}
.bar b{display:block;height:100%;background:var(--bar)}
.heat{width:auto}
.heat td{padding:.15rem .5rem;border:1px solid var(--paper);text-align:center;vertical-align:middle;
font-size:.75rem;min-width:4.6rem}
.heat td.none{background:var(--box);color:var(--soft)}
.heat td a{color:inherit;text-decoration:none}
.heat tbody th{padding:.1rem .8rem .1rem 0;border:0;font-size:.85rem;min-width:8rem;overflow-wrap:anywhere;
position:sticky;left:0;background:var(--paper)}
.heat thead th+th{writing-mode:vertical-rl;transform:rotate(180deg);padding:.5rem 0 0;border:0;
vertical-align:middle;line-height:4.6rem;white-space:nowrap}
.heat thead th{border:0}
.cells{display:flex;flex-wrap:wrap;gap:2px;margin:.3rem 0 1rem}
.cells i{width:9px;height:9px;border-radius:2px}
@media print{html{font-size:12px}body{max-width:none;padding:0}.scroll{overflow:visible}code{white-space:pre-wrap}
h2,h3{break-after:avoid}
.heat tbody th{position:static}.cells i{width:7px;height:7px}}
"""


def html(health: Health) -> str:
    """Return a report as a page: how all is, the findings, the servers, the tenants, and what was skipped."""
    heat = _heat(health.findings)
    title = f"Posduif health: {_text(health.status)}"
    sections = (
        ("Findings", _findings(health)), ("Servers", _servers(health)), ("Tenants", _tenants(health, heat)),
        ("Sizes and backups", _pair(health)), ("Skipped", _skipped(health)),
    )  # fmt: skip
    return "".join((
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">\n',
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n",
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n',
        f"<title>{title}</title><style>{STYLE}</style></head>\n<body>\n",
        _headline(health),
        *(f"<section><h2>{name}</h2>\n{body}</section>\n" for name, body in sections if body),
        "</body></html>\n",
    ))  # fmt: skip


def _text(value: object) -> str:
    """Return a text from outside as HTML; a line break stays, other control characters become visible."""
    return escape("\n".join(map(visible, str(value).splitlines())))


def _word(level: Level, text: str = "") -> str:
    return f'<span class="word {level}">{_text(text or level)}</span>'


def _table(kind: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table of cells that are HTML already; the first cell of a row is its heading."""
    head = "".join(f'<th scope="col">{column}</th>' for column in columns)
    body = "".join(f'<tr><th scope="row">{row[0]}</th>{"".join(map(_cell, row[1:]))}</tr>\n' for row in rows)
    return (
        f'<div class="scroll"><table class="{kind}"><thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table></div>'
    )


def _cell(content: str) -> str:
    return content if content.startswith("<td") else f"<td>{content}</td>"


def _bar(part: float, whole: float) -> str:
    """Return a bar, which a text beside it explains."""
    share = min(100.0, 100 * part / whole) if whole else 0.0
    return f'<span class="bar" aria-hidden="true"><b style="width:{share:.1f}%"></b></span>'


def _place(health: Health, server: str, tenant: str) -> str:
    """Return a tenant's name, with its server's where there are several."""
    return _text(tenant) + (f" <small>{_text(server)}</small>" if len(health.servers) > 1 and server else "")


def _headline(health: Health) -> str:
    """Return the status, in a word and a sentence, when it was found, and what was covered."""
    counts = Counter(finding.level for finding in health.findings)
    levels = ", ".join(f"{counts[level]} {level}" for level in TOLD if counts[level])
    sentence = f"{counted(sum(counts.values()), 'finding')}: {levels}." if levels else "Nothing needs attention."
    found = {key: f"{number:,}" for key, number in health.coverage.items()}
    always = (
        (f"{found['servers']} of {len(health.servers):,}", "servers answered in full"), (found["tenants"], "tenants"),
        (f"{found['visited']} of {found['tenants']}", "tenants looked into"), (found["checks"], "checks judged"),
    )  # fmt: skip
    others = (
        (found["failed"], "tenants could not be looked into"), (found["left_out"], "tenants left out by the budget"),
        (found["probed"], "engines asked"),
        (found["checks_failed"], "checks could not judge"), (found["checks_skipped"], "checks skipped"),
    )  # fmt: skip
    shown = (*always, *(figure for figure in others if figure[0] != "0"))
    tiles = "".join(f"<div><dt>{what}</dt><dd>{number}</dd></div>" for number, what in shown)
    return (
        f"<header><h1>Posduif health: {_word(Level(health.status))}</h1>\n<p>{sentence}</p>\n"
        f'<p class="soft">{moment(health.checked_at)}, made in {health.seconds:.1f} s</p>\n<dl>{tiles}</dl></header>\n'
    )


def _findings(health: Health) -> str:
    """Return the findings by level, the worst first."""
    shown = list(enumerate(health.findings[:MOST_FINDINGS]))
    names = MOST_NAMES // max(1, len(shown))
    counts = Counter(finding.level for finding in health.findings)
    parts: list[str] = []
    for level in TOLD:
        of_level = [_finding(health, number, finding, names) for number, finding in shown if finding.level is level]
        if of_level:
            parts.append(f"<h3>{_word(level)} {counted(counts[level], 'finding')}</h3>\n{''.join(of_level)}")
    if len(health.findings) > MOST_FINDINGS:
        parts.append(f"<p>{len(health.findings) - MOST_FINDINGS:,} more are left out here; -o jsonl lists all.</p>")
    return "".join(parts)


def _finding(health: Health, number: int, finding: Finding, names: int) -> str:
    """Return one finding, and at most *names* of the tenants that it is about."""
    message = told(health, finding)
    unit = "" if finding.unit in (None, "bytes") else f" {finding.unit}"
    limits = f"warning / critical from {finding.threshold}{unit}" if finding.threshold else ""
    affected, rest = finding.affected, len(finding.affected) - FEW
    named = set(affected) <= {finding.subject, *re.split(r"[^a-z0-9_]+", message)}
    tenants = "" if named else f"{_tenant_count(len(affected))}: {_text(', '.join(affected[:FEW]))}"
    if rest > 0 and not named:
        more = listed(affected[FEW:], max(1, names - FEW))
        tenants += f"<details><summary>and {rest:,} more</summary>{_text(more)}</details>"
    return "".join((
        f'<article id="f{number}"><i class="{finding.level}"></i>',
        f'<p class="soft"><b>{finding.level}</b> {_text(finding.check)}</p>\n<p>{_text(message)}</p>\n',
        f'<p class="soft">{_text(limits)}</p>\n' if limits else "",
        f'<div class="soft">{tenants}</div>\n' if tenants else "",
        f"<code>{_text(finding.fix)}</code>" if finding.fix else "",
        "</article>\n",
    ))  # fmt: skip


def _servers(health: Health) -> str:
    """Return the servers with their figures, and how many findings are about each itself."""
    tenants = Counter(row.server for row in health.tenants)
    own: defaultdict[str, Counter[Level]] = defaultdict(Counter)
    for finding in health.findings:
        if finding.scope == "server":
            own[finding.server][finding.level] += 1
    rows: list[Sequence[str]] = []
    for row in health.servers:
        words = [_word(level, f"{own[row.server][level]} {level}") for level in TOLD if own[row.server][level]]
        calm = _word(Level.OK, "no finding") if row.reachable else _word(Level.UNKNOWN)
        used, allowed = row.connections, row.max_connections
        full = "" if used is None else f"{used:,}"
        if used is not None and allowed:
            full = f"{used:,} of {allowed:,} ({100 * used / allowed:.0f} %){_bar(used, allowed)}"
        lag = f" <small>{size(row.replication_lag_bytes)} behind</small>" if row.replication_lag_bytes else ""
        rows.append((
            _text(row.server), " ".join(words) or calm,
            _text(row.version or "?") if row.reachable else "unreachable", full or "?", _known(row.slots),
            _known(row.replicas) + lag, f"{tenants[row.server]:,}" if row.reachable else "?",
        ))  # fmt: skip
    return _table("servers", ("server", "findings", "version", "connections", "slots", "replicas", "tenants"), rows)


def _known(number: int | None) -> str:
    return "?" if number is None else f"{number:,}"


def _heat(findings: Sequence[Finding]) -> Heat:
    """Return what each check found in each tenant that a finding is about."""
    heat: defaultdict[Place, dict[str, tuple[Level, int]]] = defaultdict(dict)
    for number, finding in enumerate(findings):
        for tenant in finding.affected if finding.level in TOLD else ():
            of_tenant = heat[finding.server, tenant]
            if finding.check not in of_tenant or finding.level.rank > of_tenant[finding.check][0].rank:
                of_tenant[finding.check] = (finding.level, number)
    return heat


def _tenants(health: Health, heat: Heat) -> str:
    """Return the heat map: a row per tenant with a finding, a column per check with one, a cell per other tenant."""
    states = {(row.server, row.tenant): row.state for row in health.tenants}
    worst = {place: max((level for level, _ in of.values()), key=lambda one: one.rank) for place, of in heat.items()}
    bad = sorted(heat, key=lambda place: (-worst[place].rank, -len(heat[place]), place))
    others: defaultdict[Level, list[Place]] = defaultdict(list)
    for place in (*bad[MOST_ROWS:], *sorted(states.keys() - heat.keys())):
        others[worst.get(place, Level.OK)].append(place)
    columns = list(dict.fromkeys(finding.check for finding in health.findings if finding.affected))
    rows = [
        (_state(health, place, states.get(place)), *(_judged(health, place, check, heat) for check in columns))
        for place in bad[:MOST_ROWS]
    ]
    table = _table("heat", ("tenant", *map(_text, columns)), rows) if rows else ""
    if 'class="none"' in table:
        table += '<p class="soft">A dot means that nothing was found, a dash that the check did not judge there.</p>\n'
    return table + _cells(health, others) or "<p>No tenant is known.</p>"


def _cells(health: Health, others: Mapping[Level, Sequence[Place]]) -> str:
    """Return one small cell per tenant without a row, by level; it shows the tenant's name to a mouse."""
    parts: list[str] = []
    left = MOST_CELLS
    for level in (level for level in (*TOLD, Level.OK) if others.get(level)):
        drawn = others[level][:left]
        left -= len(drawn)
        word, more = ("no finding", "") if level is Level.OK else (level, ", without a row of their own")
        more += f", {len(drawn):,} of them drawn" if len(drawn) < len(others[level]) else ""
        cells = "".join(f'<i title="{_text(_title(health, place))}"></i>' for place in drawn)
        parts.append(f"<h3>{_word(level, word)} {_tenant_count(len(others[level]))}{more}</h3>\n")
        parts.append(f'<div class="cells {level}" role="img" aria-label="one cell per tenant">{cells}</div>\n')
    return "".join(parts)


def _tenant_count(number: int) -> str:
    return f"{number:,} tenant" + ("" if number == 1 else "s")


def _title(health: Health, place: Place) -> str:
    return f"{place[1]} on {place[0]}" if len(health.servers) > 1 else place[1]


def _state(health: Health, place: Place, state: State | None) -> str:
    """Return a tenant's heading, with its state where that is not the usual one."""
    return _place(health, *place) + (f" <small>{state}</small>" if state and state is not State.ACTIVE else "")


def _judged(health: Health, place: Place, check: str, heat: Heat) -> str:
    """Return the cell of a tenant and a check; it leads to the finding, where that is shown."""
    if check not in heat[place]:
        return f'<td class="none">{"·" if check in health.ran.get(place[0], ()) else "–"}</td>'
    level, number = heat[place][check]
    word = f'<a href="#f{number}">{level}</a>' if number < MOST_FINDINGS else f"{level}"
    return f'<td class="{level}" title="{_text(check)}">{word}</td>'


def _pair(health: Health) -> str:
    """Return the largest tenants beside the oldest backups, as far as sizes and backups are known."""
    parts = _sizes(health) + _backups(health)
    return f'<div class="pair">{parts}</div>' if parts else ""


def _sizes(health: Health) -> str:
    rows = largest(health)
    most = rows[0].size_bytes or 0 if rows else 0
    bars = [(_place(health, r.server, r.tenant), size(r.size_bytes), _bar(r.size_bytes or 0, most)) for r in rows]
    return f"<div><h3>Largest tenants</h3>\n{_table('bars', ('tenant', 'size', ''), bars)}</div>" if rows else ""


def _backups(health: Health) -> str:
    """Return the tenants with the oldest newest backups, and how many have none; nothing where none is known."""
    ages = [((health.checked_at - row.backup_at).total_seconds(), row) for row in health.tenants if row.backup_at]
    if not ages:
        return ""
    ages.sort(key=lambda pair: (-pair[0], pair[1].server, pair[1].tenant))
    without = len(health.tenants) - len(ages)
    note = f"<p>{_tenant_count(without)} without a backup.</p>\n" if without else ""
    bars = [_aged(health, age, ages[0][0], row) for age, row in ages[:LARGEST]]
    return f"<div><h3>Oldest backups</h3>\n{note}{_table('bars', ('tenant', 'newest backup', ''), bars)}</div>"


def _aged(health: Health, age: float, oldest: float, row: TenantHealth) -> Sequence[str]:
    days, hours = divmod(round(max(0.0, age) / 3600), 24)
    ago = f"{days} d {hours} h ago" if days else f"{hours} h ago"
    return _place(health, row.server, row.tenant), ago, _bar(max(0.0, age), oldest)


def _skipped(health: Health) -> str:
    """Return which checks were skipped, by the reason, and how many tenants were."""
    reasons: defaultdict[str, list[str]] = defaultdict(list)
    for check, reason in health.skipped.items():
        reasons[reason].append(check)
    table = _table("skipped", ("reason", "checks"), [(_text(r), _text(", ".join(ids))) for r, ids in reasons.items()])
    number = health.coverage["skipped"]
    note = f"<p>Not looked into: {_tenant_count(number)}, judged by what the server tells of them.</p>\n"
    return (note if number else "") + (table if reasons else "")
