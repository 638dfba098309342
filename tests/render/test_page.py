"""The health report as a page: whole in itself, safe with any text, small with any number of tenants."""

import re
import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from pathlib import Path

import cv2
import numpy as np
import pytest

from posduif_cli.core.checks import registry
from posduif_cli.models.checks import Finding, Health, Level, ServerHealth, TenantHealth
from posduif_cli.models.tenants import State
from posduif_cli.render import page

NOW = datetime(2026, 3, 4, 5, 6, 7, tzinfo=UTC)
VOID = ("meta",)  # the only elements of the page without an end
SEVERE = "<script>alert(\"1\")</script> & 'more'"
# What judges a tenant, and is found in the tests.
CHECKS = ("schema.failed", "tenant.reach", "schema.behind", "backup.old", "rows.dead", "sync.failed")


@dataclass
class Element:
    tag: str
    attributes: dict[str, str | None]
    parts: list["Element | str"] = field(default_factory=list)

    def all(self, tag: str, kind: str | None = None) -> list["Element"]:
        found = [self] if self.tag == tag and (kind is None or kind in self.kinds) else []
        return found + [one for part in self.parts if isinstance(part, Element)
                        for one in part.all(tag, kind)]  # fmt: skip

    @property
    def kinds(self) -> list[str]:
        return (self.attributes.get("class") or "").split()

    @property
    def own(self) -> str:
        return "".join(part for part in self.parts if isinstance(part, str)).strip()

    @property
    def whole(self) -> str:
        return "".join(part if isinstance(part, str) else part.whole for part in self.parts)


class Reader(HTMLParser):
    """Reads a page, and refuses one whose elements do not end in the order in which they begin."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open = [Element("", {})]
        self.feed(text)
        self.close()
        assert len(self.open) == 1, f"<{self.open[-1].tag}> has no end"

    def handle_starttag(self, tag: str, attrs: Sequence[tuple[str, str | None]]) -> None:
        assert len({name for name, _ in attrs}) == len(attrs)
        element = Element(tag, dict(attrs))
        self.open[-1].parts.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop().tag == tag

    def handle_data(self, data: str) -> None:
        self.open[-1].parts.append(data)


def parsed(text: str) -> Element:
    return Reader(text).open[0]


def finding(check: str, level: Level, affected: Sequence[str] = (), server: str = "eu", **more: str) -> Finding:
    scope = "tenant" if affected else "server"
    of = Finding(check, scope, affected[0] if affected else server, level, f"{check} is bad", server=server)
    return replace(of, affected=tuple(affected), **more)  # type: ignore[arg-type]


def health(tenants: int, findings: Sequence[Finding] = (), servers: Sequence[str] = ("eu", "us")) -> Health:
    """Return a report on tenants t00000, t00001, ..., each on one of the servers by turns."""
    rows = [
        TenantHealth(f"t{n:05}", servers[n % len(servers)], State.SUSPENDED if n % 5 == 4 else State.ACTIVE, "0012", 0,
                     size_bytes=(n + 1) * 2**20, backup_at=None if n % 7 == 6 else NOW - timedelta(hours=n % 100))
        for n in range(tenants)
    ]  # fmt: skip
    counted = dict.fromkeys(("failed", "probed", "left_out", "checks_failed"), 0)
    return Health(
        status=max((one.level for one in findings), key=lambda level: level.rank, default=Level.OK).value,
        checked_at=NOW, tenants=tuple(rows), findings=tuple(sorted(findings, key=lambda one: -one.level.rank)),
        servers=tuple(ServerHealth(name, True, "18.6", 12, 97, 3, 1, 2048) for name in servers),
        coverage={"servers": len(servers), "tenants": tenants, "visited": tenants, "skipped": 0, "checks": 34,
                  "checks_skipped": 1, **counted},
        skipped={"queries.slow": "pg_stat_statements is not installed"}, ran=dict.fromkeys(servers, CHECKS),
        seconds=0.4,
    )  # fmt: skip


def ill(tenants: int, share: int = 20) -> Health:
    """Return a report in which one tenant of *share* has findings of several levels."""
    names = [f"t{n:05}" for n in range(0, max(1, tenants), 2)]  # those on eu
    some = names[: max(1, tenants // share)]
    return health(tenants, (
        finding("connections.full", Level.CRITICAL), finding("schema.failed", Level.CRITICAL, some[:1]),
        finding("tenant.reach", Level.UNKNOWN, names[-1:]), finding("rows.dead", Level.INFO, some),
        *(finding(check, Level.WARNING, some, fix=f"posduif fix {check}") for check in CHECKS[2:4]),
    ))  # fmt: skip


def heat(tree: Element) -> dict[tuple[str, str], Element]:
    """Return the cells of the heat map by tenant and check."""
    [table] = tree.all("table", "heat")
    checks = [one.whole for one in table.all("thead")[0].all("th")][1:]
    return {
        (row.all("th")[0].own, check): cell
        for row in table.all("tbody")[0].all("tr")
        for check, cell in zip(checks, row.all("td"), strict=True)
    }


@pytest.mark.parametrize("tenants", [0, 1, 40, 1_000, 10_000])
@pytest.mark.parametrize("make", [health, ill])
def test_it_is_whole_in_itself_and_small(tenants: int, make: Callable[[int], Health]) -> None:
    text = page.html(make(tenants))
    tree = parsed(text)
    assert len(text.encode()) < 30_000 + 200 * tenants
    assert len(text.encode()) < 2_000_000
    assert text.startswith("<!DOCTYPE html>")
    assert "://" not in text
    assert "url(" not in text
    assert "@import" not in text
    assert not [tag for tag in ("script", "link", "img", "iframe", "object", "base") if tree.all(tag)]
    policy = [one.attributes["content"] for one in tree.all("meta") if "http-equiv" in one.attributes]
    assert policy == ["default-src 'none'; style-src 'unsafe-inline'"]
    assert any(one.attributes.get("name") == "viewport" for one in tree.all("meta"))
    ids = {one.attributes["id"] for one in tree.all("article")}
    assert {(one.attributes["href"] or "")[1:] for one in tree.all("a")} <= ids, "links lead to the findings"


@pytest.mark.parametrize("tenants", [1, 40, 1_000, 10_000])
def test_every_tenant_is_drawn_once(tenants: int) -> None:
    tree = parsed(page.html(ill(tenants)))
    rows = {tenant for tenant, _ in heat(tree)}
    cells = [(one.attributes["title"] or "").split(" on ")[0] for group in tree.all("div", "cells")
             for one in group.all("i")]  # fmt: skip
    assert sorted([*rows, *cells]) == [f"t{n:05}" for n in range(tenants)]
    assert len(rows) <= page.MOST_ROWS


def test_what_goes_beyond_the_limits_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "MOST_ROWS", 2)
    monkeypatch.setattr(page, "MOST_CELLS", 5)
    monkeypatch.setattr(page, "MOST_FINDINGS", 3)
    monkeypatch.setattr(page, "MOST_NAMES", 30)
    names = [f"t{n:05}" for n in range(0, 40, 2)]
    tree = parsed(page.html(health(40, [finding(check, Level.WARNING, names) for check in CHECKS])))
    assert {tenant for tenant, _ in heat(tree)} == {"t00000", "t00002"}
    assert len([one for group in tree.all("div", "cells") for one in group.all("i")]) == 5
    assert "18 tenants, without a row of their own, 5 of them drawn" in tree.whole
    assert "20 tenants, 0 of them drawn" in tree.whole
    assert len(tree.all("article")) == 3
    assert "3 more are left out here" in tree.whole
    assert tree.all("details")[0].whole == "and 14 more" + ", ".join(names[6:10]) + " and 10 more"


def test_with_everything_wrong_everywhere_it_is_still_small() -> None:
    names = [f"{'t' * 44}{n:05}" for n in range(10_000)]
    checks = [check.id for check in registry.of("health") if check.scope == "tenant"]
    findings = [finding(check, Level.WARNING, names, message="m" * 300) for check in checks]
    bad = health(10_000, findings)
    bad = replace(bad, tenants=tuple(replace(row, tenant=name) for row, name in zip(bad.tenants, names, strict=True)))
    assert len(page.html(bad)) < 2_000_000


def test_a_cell_is_the_worst_of_its_check_in_its_tenant_on_its_server() -> None:
    report = health(4, (
        finding("schema.failed", Level.CRITICAL, ["t00002"]), finding("rows.dead", Level.UNKNOWN, ["t00001"], "us"),
        finding("schema.behind", Level.INFO, ["t00000", "t00002"]), finding("schema.behind", Level.WARNING, ["t00002"]),
        finding("settings.unsafe", Level.WARNING), finding("index.invalid", Level.WARNING, ["t00000"]),
    ))  # fmt: skip
    tree = parsed(page.html(report))
    words = {pair: cell.whole for pair, cell in heat(tree).items()}
    checks = ("schema.failed", "rows.dead", "schema.behind", "index.invalid")
    assert list(words) == [(tenant, check) for tenant in ("t00002", "t00001", "t00000") for check in checks]
    assert [words["t00002", check] for check in checks] == ["critical", "·", "warning", "–"]
    assert [words["t00001", check] for check in checks] == ["·", "unknown", "·", "–"]
    assert [words["t00000", check] for check in checks] == ["·", "·", "info", "warning"]
    for cell in heat(tree).values():
        assert cell.kinds == [cell.whole if cell.whole not in "·–" else "none"], "the colour is that of the word"
    [link] = heat(tree)["t00002", "schema.behind"].all("a")
    [goal] = [one for one in tree.all("article") if f"#{one.attributes['id']}" == link.attributes["href"]]
    assert "warning" in goal.whole
    assert "schema.behind" in goal.whole
    [eu, us] = tree.all("table", "servers")[0].all("tbody")[0].all("tr")
    assert eu.all("td")[0].whole == "1 warning", "that of settings.unsafe: the others are about tenants"
    assert us.all("td")[0].whole == "no finding"


def test_findings_are_grouped_by_level_with_their_fixes() -> None:
    tree = parsed(page.html(ill(400)))
    assert [one.whole for one in tree.all("h3")][:4] == [
        "critical 2 findings", "unknown 1 finding", "warning 2 findings", "info 1 finding"
    ]  # fmt: skip
    assert [one.all("b")[0].whole for one in tree.all("article")] == ["critical"] * 2 + ["unknown"] + [
        "warning"
    ] * 2 + ["info"]
    behind = next(one for one in tree.all("article") if "schema.behind" in one.whole)
    assert behind.all("code")[0].whole == "posduif fix schema.behind"
    assert "20 tenants: t00000, t00002, t00004, t00006, t00008, t00010" in behind.whole
    [more] = behind.all("details")
    assert more.whole.startswith("and 14 more")
    assert more.whole.endswith("t00038")


def test_a_calm_fleet_is_told_in_one_sentence() -> None:
    tree = parsed(page.html(health(40)))
    [header] = tree.all("header")
    assert [one.whole for one in header.all("h1")] == ["Posduif health: ok"]
    assert [one.whole for one in header.all("p")] == [
        "Nothing needs attention.",
        "2026-03-04 05:06:07 UTC, made in 0.4 s",
    ]
    assert not tree.all("article")
    assert not tree.all("table", "heat")
    assert "no finding 40 tenants" in tree.whole


def test_sizes_and_backups_of_the_twenty() -> None:
    sizes, backups = parsed(page.html(health(200))).all("table", "bars")
    assert [one.own for one in sizes.all("th")][3:] == [f"t{n:05}" for n in range(199, 179, -1)]
    assert sizes.all("td")[0].whole == "200.0 MiB"
    assert sizes.all("td")[1].all("b")[0].attributes["style"] == "width:100.0%"
    assert len(backups.all("tr")) == 21
    assert backups.all("td")[0].whole == "4 d 3 h ago"
    assert "28 tenants without a backup" in page.html(health(200))
    unknown = replace(health(3), tenants=tuple(replace(row, backup_at=None) for row in health(3).tenants))
    assert "Oldest backups" not in page.html(unknown)


def test_what_was_skipped_has_its_reason() -> None:
    report = health(3)
    report = replace(report, skipped={"backup.old": "no dir", "queries.slow": "no", "backup.missing": "no dir"},
                     coverage={**report.coverage, "skipped": 2})  # fmt: skip
    tree = parsed(page.html(report))
    rows = [row.whole.strip() for row in tree.all("table", "skipped")[0].all("tr")][1:]
    assert rows == ["no dirbackup.old, backup.missing", "noqueries.slow"]
    assert "Not looked into: 2 tenants" in tree.whole


def test_an_unreachable_server_has_a_word() -> None:
    report = health(0, [finding("server.reach", Level.CRITICAL)])
    report = replace(report, servers=(ServerHealth("eu", False), *report.servers[1:]))
    row = parsed(page.html(report)).all("table", "servers")[0].all("tbody")[0].all("tr")[0]
    assert [cell.whole for cell in row.all("td")] == ["1 critical", "unreachable", "?", "?", "?", "?"]


def test_no_text_becomes_markup() -> None:
    names = [f"{SEVERE}{n}" for n in range(20)]
    report = health(20, [
        finding("rows.dead", Level.WARNING, names, fix=SEVERE, message=SEVERE, threshold=SEVERE, unit=SEVERE,
                server=SEVERE),
        finding("settings.unsafe", Level.WARNING, fix="SELECT 1;\nSELECT 2;", message="a\x1b[31m\u202eb\x00"),
    ], servers=(SEVERE, "us"))  # fmt: skip
    report = replace(
        report, skipped={SEVERE: SEVERE}, ran={SEVERE: CHECKS},
        tenants=tuple(replace(row, tenant=name + "!") for row, name in zip(report.tenants, names, strict=True)),
        servers=tuple(replace(row, version=SEVERE) for row in report.servers),
    )  # fmt: skip
    text = page.html(report)
    tree = parsed(text)
    assert not tree.all("script")
    assert "<script" not in text
    assert re.findall("[\"'] & [\"']", text) == []
    assert text.count("&lt;script&gt;alert(&quot;1&quot;)&lt;/script&gt; &amp; &#x27;more&#x27;") > 50
    assert {tenant for tenant, _ in heat(tree)} == set(names)
    assert "a\\x1b[31m\\u202eb\\x00" in text
    assert [one.whole for one in tree.all("code")] == [SEVERE, "SELECT 1;\nSELECT 2;"]


def test_the_same_report_is_the_same_page() -> None:
    assert page.html(ill(1_000)) == page.html(ill(1_000))


def test_a_browser_shows_it(tmp_path: Path) -> None:
    names = ("chromium", "chromium-browser", "google-chrome", "headless_shell")
    browser = next(filter(None, map(shutil.which, names)), None)
    if browser is None:
        pytest.skip(f"none of {', '.join(names)} is installed")
    source, picture = tmp_path / "page.html", tmp_path / "page.png"
    source.write_text(page.html(ill(1_000)), encoding="utf-8")
    options = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--force-color-profile=srgb",
        f"--user-data-dir={tmp_path / 'profile'}",
    ]

    def run(*more: str) -> str:
        command = [browser, *options, *more, source.as_uri()]
        ran = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        assert ran.returncode == 0, ran.stderr
        return ran.stdout

    run("--window-size=1200,1600", f"--screenshot={picture}")
    pixels = cv2.imread(str(picture))
    assert pixels is not None
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 20, "the picture is blank"
    red = np.all(pixels == (0x1C, 0x28, 0xC5), axis=2)
    assert red.sum() > 500, "the word critical has no colour: the page's own style does not apply"
    [title] = parsed(run("--dump-dom")).all("h1")
    assert title.whole == "Posduif health: critical"
