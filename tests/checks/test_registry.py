"""The list of checks: each can be explained, has an id of its own, and belongs to a command."""

import re
from dataclasses import replace

import pytest

from posduif_cli.core.checks import registry
from posduif_cli.core.checks.check import Check, Threshold, Verdict
from posduif_cli.models.checks import Finding, Level
from support.checks import unregistered
from support.sources import REPO

SCOPES = {
    "health": ["server", "tenant"],
    "tenant verify": ["tenant"],
    "migrate status": ["tenant"],
    "migrate verify": ["file", "server", "tenant"],
    "doctor": ["configuration", "machine", "server"],
    "server init": ["server"],
    "server list": ["server"],
}
MIB = 1024**2


@pytest.mark.parametrize("check", registry.LIST, ids=lambda check: check.id)
def test_a_check_can_be_explained(check: Check) -> None:
    assert re.fullmatch(r"[a-z]+\.[a-z_0-9]+", check.id)
    assert re.fullmatch(r"[A-Zp].{10,80}[^.]", check.title), "a statement of what is right"
    assert re.fullmatch(r"\S.{20,240}\.", check.explanation)
    assert check.explanation.count(". ") <= 1, "one or two sentences"
    assert (check.judge.__doc__ or "").startswith(("Judge", "Tell", "Compare", "Warn"))
    assert check.commands
    assert {check.scope} <= {scope for command in check.commands for scope in SCOPES[command]}


def test_ids_are_unique_and_told_in_the_changelog() -> None:
    ids = [check.id for check in registry.LIST]
    assert len(ids) == len(set(ids))
    changelog = (REPO / "CHANGELOG.md").read_text(encoding="utf-8")
    assert [id for id in ids if f"`{id}`" not in changelog] == []


def test_each_command_selects_checks_of_its_scopes() -> None:
    for command, scopes in SCOPES.items():
        selected = {check.scope for check in registry.LIST if command in check.commands}
        assert sorted(selected) == scopes, command
        for scope in scopes:
            assert registry.select(command, scope)
    assert registry.select("health", "machine") == []


@pytest.mark.parametrize(
    ("value", "level"), [(0, "ok"), (63 * MIB, "ok"), (64 * MIB, "warning"), (1024 * MIB, "critical")]
)
def test_a_threshold_is_written_as_it_is_judged(value: int, level: str) -> None:
    threshold = Threshold(64 * MIB, 1024 * MIB, "bytes")
    assert (threshold.level(value), str(threshold)) == (Level(level), "64 MiB / 1 GiB")


def test_a_finding_has_its_check_s_data_and_no_fix_where_all_is_well() -> None:
    [check] = [check for check in registry.LIST if check.id == "slots.retained"]
    bad = Verdict(Level.WARNING, "slot s", 5, fix="drop it")
    found = check.finding("eu1", bad)
    assert (found.check, found.scope, found.subject, found.unit) == ("slots.retained", "server", "eu1", "bytes")
    assert (found.threshold, found.fix) == ("1 GiB / 5 GiB", "drop it")
    assert check.finding("eu1", replace(bad, level=Level.OK)).fix is None


def test_a_finding_of_no_registered_check_is_noted() -> None:
    Finding("slots.retained", "server", "eu1", Level.OK, "fine")
    assert unregistered() == set()
    Finding("slots", "server", "eu1", Level.OK, "fine")
    Finding("slots.retained", "tenant", "eu1", Level.OK, "fine")
    assert unregistered() == {("slots", "server"), ("slots.retained", "tenant")}
