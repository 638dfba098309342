"""Findings of health, doctor and server init, taken apart."""

import time
from fnmatch import fnmatch
from typing import Any

from support.runner import Posduif, Result

BUSY = 10


def deep(posduif: Posduif, *options: str) -> Result:
    """Make a deep report on a server that another worker's tests share: one of these runs at a time."""
    deadline = time.monotonic() + 60
    while True:
        done = posduif("health", "--deep", *options, code=None)
        if (done.code != BUSY and "another deep report" not in done.out) or time.monotonic() > deadline:
            return done
        time.sleep(0.05)


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
