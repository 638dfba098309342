"""Retention: which backups are kept, each with the reasons, and which may go."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from posduif_cli.core.store import REPLACE, Store, Stored, unfinished
from posduif_cli.errors import PosduifError
from posduif_cli.models.copies import FAILED, PROVED, Backup, Pruned

RULES: Mapping[str, str] = {
    "last": "%Y%m%dT%H%M%S%f", "daily": "%Y-%m-%d", "weekly": "%G-W%V", "monthly": "%Y-%m"
}  # fmt: skip
AHEAD = timedelta(minutes=5)  # that a clock may be wrong by


def judge(backups: Sequence[Backup], keep: Mapping[str, int], now: datetime) -> dict[str, list[str]]:
    """Return, by the id of each backup of one tenant, why it is kept; no reason means that it may go.

    As restic has it: of each day, week or month in UTC the newest backup counts, and so many days, weeks or months that
    have one are kept. What a restore replaced counts only where there is nothing else, one that failed its verification
    not at all, and one from the future is kept. The newest, the newest that was proved, and pinned ones always are.
    """
    reasons: dict[str, list[str]] = {backup.backup: [] for backup in backups}
    newest_first = sorted(backups, key=lambda backup: (backup.created_at, backup.backup), reverse=True)
    good: list[Backup] = []
    replaced: list[Backup] = []
    for backup in newest_first:
        if backup.pinned is not None:
            reasons[backup.backup].append(f"pinned: {backup.pinned}")
        if backup.created_at > now + AHEAD:
            reasons[backup.backup].append("from the future")
        elif backup.verified != FAILED:
            (replaced if backup.trigger == REPLACE else good).append(backup)
    good = good or replaced
    if good:
        reasons[good[0].backup].append("newest")
    if proved := next((backup for backup in good if backup.verified == PROVED), None):
        reasons[proved.backup].append("newest proved")
    for rule, bucket in RULES.items():
        seen: set[str] = set()
        for backup in good:
            name = backup.created_at.astimezone(UTC).strftime(bucket)
            if name not in seen and len(seen) < keep.get(rule, 0):
                seen.add(name)
                reasons[backup.backup].append(f"{rule} {len(seen)} of {keep[rule]}")
    return reasons


def plan(
    store: Store, keep: Mapping[str, int], now: datetime, unread: list[PosduifError] | None = None
) -> list[tuple[Stored, Pruned]]:
    """Return for each backup whether it is kept, and why; nothing is deleted. *unread* is as for `Store.all`."""
    found = []
    for group in store.incarnations(unread):
        reasons = judge([stored.backup for stored in group], keep, now)
        for stored in group:
            backup = stored.backup
            kept = ", ".join(reasons[backup.backup])
            action = "keep" if kept else "delete"
            row = Pruned(
                backup.backup, backup.tenant, backup.created_at, backup.size_bytes, action, kept, changed=False
            )
            found.append((stored, row))
    return found


def carry_out(store: Store, planned: Sequence[tuple[Stored, Pruned]]) -> list[Pruned]:
    """Delete what a plan says, and what unfinished backups left; return the plan with what was changed."""
    for stored, row in planned:
        if not row.kept:
            stored.remove()
    store.storage.sweep(unfinished())
    return [replace(row, changed=not row.kept) for _, row in planned]
