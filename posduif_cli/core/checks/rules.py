"""Which checks of `health` judge, and by which thresholds: what was chosen, and what the configuration says."""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from posduif_cli.core.checks import registry
from posduif_cli.core.checks.check import Check, Limits, Threshold
from posduif_cli.errors import ConfigurationError, PosduifError, Run
from posduif_cli.models.checks import CheckInfo
from posduif_cli.models.servers import Server

COMMAND = "health"
# Nothing is fine where it could not be asked: these are judged whenever a check of their tier is, by id.
ALWAYS = {"listed": "server.reach", "visited": "tenant.reach", "stored": "backup.store"}
ASKED = {  # by a check's tier
    "listed": "always", "stored": "where backup.dir is configured",
    "visited": "with --deep, or of a named tenant", "probed": "with --probe",
}  # fmt: skip
Settings = Mapping[str, Mapping[str, Any]]  # warning, critical and off, by the id of a check


@dataclass(frozen=True)
class Rules:
    """The checks that were *chosen*, and the *settings* of checks, everywhere and of some *servers*, as configured.

    *origins* says where each key of the configuration comes from. Raises ConfigurationError for a check that does not
    exist, or a threshold that it cannot have.
    """

    chosen: Sequence[Check] = field(default_factory=lambda: registry.of(COMMAND))
    settings: Settings = field(default_factory=dict)
    servers: Mapping[str, Settings] = field(default_factory=dict)
    origins: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for id, given in self.settings.items():
            self._require(f"checks.{id}", id, given, given)
        for name, settings in self.servers.items():
            for id, given in settings.items():
                self._require(f"servers.{name}.checks.{id}", id, given, self._given(name, id))

    def _require(self, key: str, id: str, given: Mapping[str, Any], merged: Mapping[str, Any]) -> None:
        found = next((check for check in registry.of(COMMAND) if check.id == id), None)
        where = self.origins.get(f"{key}.{next(iter(given), '')}", "the configuration")
        if found is None:
            near = difflib.get_close_matches(id, [check.id for check in registry.of(COMMAND)], 1)
            hint = f'did you mean "{near[0]}"?' if near else Run("health", "--list-checks")
            raise ConfigurationError(f'{where}: {key}: there is no check "{id}"', hint=hint)
        if found.threshold is None and {"warning", "critical"} & set(given):
            raise ConfigurationError(f"{where}: {key}: this check has no threshold", hint="off: true")
        try:
            _limit(found, merged)
        except PosduifError as error:
            raise ConfigurationError(f"{where}: {key}: {error.message}", why=error.why) from None

    def _given(self, server: str, id: str) -> Mapping[str, Any]:
        return {**self.settings.get(id, {}), **self.servers.get(server, {}).get(id, {})}

    def checks(self, server: str) -> list[Check]:
        """Return the chosen checks that are not switched off on a server, and those that tell what was not answered."""
        chosen = [check for check in self.chosen if not self._given(server, check.id).get("off")]
        tiers = {"listed", *(check.tier for check in chosen)}
        always = {ALWAYS[tier] for tier in tiers if tier in ALWAYS}
        return [check for check in registry.of(COMMAND) if check in chosen or check.id in always]

    def limits(self, server: str) -> Limits:
        """Return the thresholds of a server's checks, by id, as far as the configuration changes them."""
        found = {check.id: _limit(check, self._given(server, check.id)) for check in self.chosen}
        return {id: limit for id, limit in found.items() if limit is not None}

    def infos(self, servers: Sequence[Server]) -> list[CheckInfo]:
        """Return what is known of the chosen checks, and where their thresholds come from."""
        return [
            CheckInfo(
                check.id, check.scope, check.title, str(limit) if (limit := self._everywhere(check)) else None,
                check.explanation, limit.unit if limit else None, self._origin(check, servers), ASKED[check.tier],
            )
            for check in self.chosen
        ]  # fmt: skip

    def _everywhere(self, check: Check) -> Threshold | None:
        return _limit(check, self.settings.get(check.id, {})) or check.threshold

    def _origin(self, check: Check, servers: Sequence[Server]) -> str:
        parts = [self._where("checks", check, self.settings.get(check.id, {})) or "default"]
        for server in servers:
            given = self.servers.get(server.name, {}).get(check.id, {})
            if said := self._where(f"servers.{server.name}.checks", check, given):
                limit = _limit(check, self._given(server.name, check.id))
                parts.append(f"on {server.name} {limit or ''}".rstrip() + f" by {said}")
        return "; ".join(parts)

    def _where(self, prefix: str, check: Check, given: Mapping[str, Any]) -> str:
        keys = [f"{prefix}.{check.id}.{key}" for key in given]
        off = ", switched off" if given.get("off") else ""
        return (
            ", ".join(dict.fromkeys(self.origins.get(key, "the configuration") for key in keys)) + off if keys else ""
        )


def _limit(check: Check, given: Mapping[str, Any]) -> Threshold | None:
    """Return a check's threshold with what is configured in it; None where nothing is. Raises PosduifError."""
    limit = check.threshold
    if limit is None or not {"warning", "critical"} & set(given):
        return None
    warning = limit.read(given["warning"]) if "warning" in given else limit.warning
    critical = limit.read(given["critical"]) if "critical" in given else limit.critical
    if warning > critical:
        made = Threshold(warning, critical, limit.unit)
        raise PosduifError(f"the warning comes after what is critical: {made}")
    return Threshold(warning, critical, limit.unit)
