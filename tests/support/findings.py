"""Findings of health, doctor and server init, taken apart."""

from fnmatch import fnmatch
from typing import Any


def about(report: Any, check: str, subject: str | None = None) -> list[dict[str, Any]]:
    """Return the findings of a check, or of several by a pattern such as `sync.*`."""
    return [
        finding
        for finding in report["findings"]
        if fnmatch(finding["check"], check) and (subject is None or subject in finding["subject"])
    ]


def by_check(findings: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {finding["check"]: finding for finding in findings}


def levels(findings: list[dict[str, Any]]) -> dict[str, str]:
    return {check: finding["level"] for check, finding in by_check(findings).items()}
