"""Findings are those of registered checks: a test that makes another one fails."""

from collections.abc import Iterator
from typing import Any

import pytest

from posduif_cli.core.checks import registry
from posduif_cli.models.checks import Finding

_KNOWN = {(check.id, check.scope) for check in registry.LIST}
_made: set[tuple[str, str]] = set()


@pytest.fixture(autouse=True)
def findings_are_of_registered_checks(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Note the id and the scope of each finding that a test makes, and look them up in the list."""
    plain = Finding.__init__

    def noted(self: Finding, check: str, scope: str, *rest: Any, **more: Any) -> None:
        _made.add((check, scope))
        plain(self, check, scope, *rest, **more)

    monkeypatch.setattr(Finding, "__init__", noted)
    _made.clear()
    yield
    assert not unregistered()


def unregistered() -> set[tuple[str, str]]:
    """Return id and scope of the test's findings so far that no registered check has, and forget all."""
    found = _made - _KNOWN
    _made.clear()
    return found
