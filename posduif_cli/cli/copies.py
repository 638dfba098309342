"""What commands about backups share: the configured store, its keys, and how backups are made and named."""

from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from posduif_cli.cli.context import App
from posduif_cli.cli.runs import SHOWN
from posduif_cli.errors import PartialFailure, PosduifError, Run
from posduif_cli.notation import counted, listed

if TYPE_CHECKING:
    from posduif_cli.core.copies.dump import Dumping
    from posduif_cli.core.copies.load import Loading
    from posduif_cli.core.copies.streams import Keys
    from posduif_cli.core.store import Store, Stored


def store_of(app: App, *, make: bool = False) -> "Store":
    """Return the store that is configured; raises ConfigurationError."""
    from posduif_cli.core.copies import stores

    return stores.open_store(app.config.backup_dir, make=make)


def keys_of(app: App) -> "Keys":
    """Return whom backups are encrypted to, and where the key is."""
    from posduif_cli.core.copies.streams import Keys

    return Keys(app.config.backup_recipients, app.config.backup_identity)


def find(app: App, text: str) -> "Stored":
    """Return the backup with an id, in a file's place, or the newest good one of a tenant; raises BackupNotFound."""
    from posduif_cli.core import store

    return store.at(Path(text)) if "/" in text else store_of(app).find(text)


def loading(app: App, stored: "Stored") -> "Loading":
    """Return a backup that is to be restored."""
    from posduif_cli.core.copies.load import Loading

    return Loading(stored, keys_of(app), app.config.bin_dir)


def dumping(app: App, trigger: str, *, pin: str | None = None, since: datetime | None = None) -> "Dumping":
    """Return how backups are made for the command *trigger*; an empty place becomes a store."""
    from posduif_cli.core.copies import stores
    from posduif_cli.core.copies.dump import Dumping

    store, keys = store_of(app, make=True), keys_of(app)
    if not keys.recipients and stores.has_canary(store):
        app.out.warn("backups there were encrypted, and these will not be: backup.encrypt_to is empty")
    return Dumping(store, keys, pin, trigger, app.config.bin_dir, since)


def maybe(app: App, trigger: str, wanted: bool) -> "Dumping | None":
    """Return how a last backup is made before something is destroyed; None where none is wanted or configured."""
    if not wanted or app.config.backup_dir is None:
        return None
    try:
        return dumping(app, trigger)
    except PosduifError as error:
        error.reasons = (*error.reasons, "so no last backup can be made, and nothing was changed")
        error.hints = (*error.hints, "or add --no-backup")
        raise


def tell_left(app: App, left: list[str]) -> None:
    """Name the tenants that a run left out because they are not whole."""
    if left:
        app.out.say(f"not backed up, for a command works on it or was interrupted: {listed(left, SHOWN)}")


def tell_unread(app: App, unread: list[PosduifError]) -> None:
    """Name the backups that cannot be read, and raise PartialFailure if there are any."""
    for error in unread:
        app.out.warn(error.sentence)
    if unread:
        raise PartialFailure(f"{counted(len(unread), 'backup')} could not be read", hint=Run("backup", "list"))


def of_servers(errors: dict[str, PosduifError], names: list[str] | None) -> dict[str, PosduifError]:
    """Return the errors of servers, which a run over all has, under names that say so."""
    return {f"server {name}" if names is None else name: error for name, error in errors.items()}
