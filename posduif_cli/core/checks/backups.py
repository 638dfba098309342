"""The checks of backups: that each tenant has one, that it is new, that it was proved, and what restores left."""

from collections.abc import Iterator, Sequence
from datetime import timedelta
from functools import partial

from posduif_cli.core.checks.check import Threshold, Verdict, check, failure
from posduif_cli.core.checks.facts import Configuration, ServerFacts, TenantFacts
from posduif_cli.core.checks.machine import secret
from posduif_cli.core.checks.tenant import VISITED
from posduif_cli.core.store import usual
from posduif_cli.errors import Run
from posduif_cli.models.checks import Level
from posduif_cli.models.copies import FAILED, PROVED, Backup

HOUR = timedelta(hours=1)
DUE = timedelta(hours=26)  # a nightly backup, and some time for it
SHRANK = 0.5  # of the median of the last seven
LAST = 7

health = partial(check, "tenant", ("health",), tier="stored")
server = partial(check, "server", ("health",))
config = partial(check, "configuration", ("doctor",))


def of_tenant(facts: TenantFacts) -> Sequence[Backup]:
    """Return the backups of this very tenant: one that had its name before is another."""
    created = facts.tenant.created_at
    return [
        backup
        for backup in facts.backups or ()
        if created is None or backup.incarnation.rpartition("/")[2] in (str(None), created.isoformat())
    ]


def _judged(facts: TenantFacts) -> bool:
    return facts.backups is not None and facts.tenant.state in VISITED and facts.tenant.schema_version is not None


@health("backup.missing", "Every tenant has a backup",
    "Judged where backup.dir is configured, of tenants that are older than a day.",
    together=("backup", "create"))  # fmt: skip
def missing(facts: TenantFacts) -> Iterator[Verdict]:
    """Tell a tenant that has no backup and is old enough to have one."""
    created = facts.tenant.created_at
    if _judged(facts) and not of_tenant(facts) and (created is None or facts.now - created > DUE):
        fix = Run("backup", "create", facts.subject)
        yield Verdict(Level.WARNING, f"tenant {facts.subject} has no backup", fix=fix, several="no backup")


@health("backup.old", "The newest backup is of the last day",
    "A nightly backup is at most 24 hours old, and may take some time.",
    threshold=Threshold(26, 168, "hours"), together=("backup", "create"))  # fmt: skip
def old(facts: TenantFacts) -> Iterator[Verdict]:
    """Judge the age of the newest backup."""
    if _judged(facts) and (known := of_tenant(facts)):
        hours = round((facts.now - known[-1].created_at) / HOUR, 1)
        fix = Run("backup", "create", facts.subject)
        yield Verdict(None, f"the newest backup is {hours:g} h old", hours, fix=fix, several="the newest backup is old")


@health("backup.unproven", "A backup was proved by restoring it",
    "A backup that was never restored is a hope. Judged two weeks after the first backup, "
    "or as soon as a verification failed.", threshold=Threshold(14, 90, "days"))  # fmt: skip
def unproven(facts: TenantFacts) -> Iterator[Verdict]:
    """Judge when a backup was proved last, and whether the newest failed."""
    known = of_tenant(facts) if _judged(facts) else ()
    if not known:
        return
    if (newest := known[-1]).verified == FAILED:
        text = f"backup {newest.backup} failed its verification"
        fix = Run("backup", "create", facts.subject)
        yield Verdict(Level.CRITICAL, text, newest.backup, fix=fix, several="the newest backup failed its verification")
        return
    proofs = [backup.verified_at for backup in known if backup.verified == PROVED and backup.verified_at]
    days = (facts.now - max(proofs, default=known[0].created_at)).days
    text = f"no backup was proved for {days} days"
    yield Verdict(
        None, text, days, fix=Run("backup", "verify", facts.subject), several="no backup was proved for long"
    )  # fmt: skip


@health("backup.shrank", "The newest backup is as large as the last seven",
    "Less than half of the rows or the bytes of the median: something was lost, or deleted on purpose.")  # fmt: skip
def shrank(facts: TenantFacts) -> Iterator[Verdict]:
    """Compare the newest backup with those before."""
    known = of_tenant(facts) if _judged(facts) else ()
    if len(known) < 2:
        return
    newest, before = known[-1], known[:-1]
    for what, size, median in (
        ("rows", newest.rows, usual(before, lambda backup: backup.rows, LAST)),
        ("bytes", newest.size_bytes, usual(before, lambda backup: backup.size_bytes, LAST)),
    ):
        if median and size < SHRANK * median:
            text = f"backup {newest.backup} has {size} {what}, those before had {median:g}"
            yield Verdict(
                Level.WARNING, text, size, what, fix=Run("backup", "list", facts.subject),
                several="the newest backup has less than half of those before",
            )  # fmt: skip
            return


@server("backup.store", "The place of backups can be read",
    "A store that cannot be read says nothing of the backups in it.", tier="stored")  # fmt: skip
def store(facts: ServerFacts) -> Iterator[Verdict]:
    """Tell why no backup was seen."""
    if facts.store_error is not None:
        yield failure(facts.store_error, Level.UNKNOWN, fix=Run("backup", "list"))


@server("copies.aside", "No database that a restore set aside is forgotten",
    "A restore over a tenant keeps the old database for a week; prune drops it then.")  # fmt: skip
def aside(facts: ServerFacts) -> Iterator[Verdict]:
    """Tell what is set aside, and warn of what should be gone."""
    for copy in facts.asides:
        over = copy.until is None or copy.until < facts.now
        if copy.since is None:
            text = f"{copy.database} is what an unfinished restore of tenant {copy.tenant} made"
            fix = Run("backup", "restore", "--undo", "--confirm", copy.tenant, lead="type that restore again, or")
        else:
            text = f"{copy.database} is set aside, once tenant {copy.tenant}"
            fix = Run("backup", "discard", copy.tenant, "--confirm", copy.tenant)
        yield Verdict(
            Level.WARNING if over and not copy.busy else Level.INFO, text, copy.database, fix=fix,
            affected=(copy.tenant,),
        )  # fmt: skip


@config("backup.place", "Backups can be read where backup.dir says",
    "A disk that is not mounted, or a right that is missing, is better known before the bad day.")  # fmt: skip
def place(facts: Configuration) -> Iterator[Verdict]:
    """Judge the place of backups."""
    if facts.place_error is not None:
        yield failure(facts.place_error, Level.WARNING, fix="correct backup.dir in the configuration")
    elif facts.place is not None:
        yield Verdict(Level.OK, facts.place)


@config("backup.key", "Encrypted backups can be decrypted",
    "A text is encrypted to backup.encrypt_to and decrypted by backup.identity_file, and so is one that the first "
    "encrypted backup left in the store: a key that nobody finds is a lost backup.")  # fmt: skip
def key(facts: Configuration) -> Iterator[Verdict]:
    """Judge what decrypting came to."""
    if facts.key_file is not None:
        yield from secret(facts.key_file, "it decrypts the backups")
    if facts.key_error is not None:
        yield failure(
            facts.key_error, fix="set backup.identity_file to the identity of another one in backup.encrypt_to"
        )
    elif facts.key is not None:
        level = Level.OK if facts.key else Level.INFO
        text = "what is encrypted to backup.encrypt_to can be decrypted here"
        yield Verdict(
            level, text if facts.key else "backup.identity_file is not set: backups can be proved elsewhere only"
        )


def numbered(backups: Sequence[Backup]) -> dict[str, list[Backup]]:
    """Return backups by their tenant's name."""
    found: dict[str, list[Backup]] = {}
    for backup in backups:
        found.setdefault(backup.tenant, []).append(backup)
    return found
