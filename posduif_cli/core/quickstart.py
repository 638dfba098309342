"""What `quickstart` made, noted beside the embedded server, so that `--remove` takes away that and no more."""

from pathlib import Path

from posduif_cli.core import servers
from posduif_cli.core.fleet.fleet import Fleet
from posduif_cli.core.tenants import drop
from posduif_cli.db import embedded
from posduif_cli.errors import EmbeddedServerFailed

NOTE = "made-by-quickstart"


def made(data_dir: Path) -> set[str]:
    """Return what quickstart made there: `server`, or `tenant NAME`."""
    try:
        return set((data_dir / NOTE).read_text(encoding="utf-8").splitlines())
    except OSError:
        return set()


def note(data_dir: Path, thing: str) -> None:
    """Note that quickstart makes *thing*; raises EmbeddedServerFailed where that cannot be written."""
    try:
        lines = "\n".join(sorted(made(data_dir) | {thing}))
        (data_dir / NOTE).write_text(lines + "\n", encoding="utf-8")
    except OSError as error:
        raise EmbeddedServerFailed(f"{data_dir / NOTE} cannot be written", why=error.strerror) from None


def forget(data_dir: Path) -> None:
    """Forget what quickstart made there: the server is removed with everything in it."""
    (data_dir / NOTE).unlink(missing_ok=True)


def start(data_dir: Path, bin_dir: Path | None) -> bool:
    """Start the embedded server, noting it if it is new; return whether it had to be started."""
    new = not embedded.exists(data_dir)
    _, started = servers.start(data_dir, bin_dir)
    if new:
        note(data_dir, "server")
    return started


def remove(fleet: Fleet, data_dir: Path, *, tenant: str) -> list[str]:
    """Remove what quickstart made and return it in words; a server that holds anything else is kept."""
    removed: list[str] = []
    things = made(data_dir)
    found = {known.tenant for known in fleet.tenants()[0]}
    if f"tenant {tenant}" in things and tenant in found:
        drop.drop(fleet, fleet.find(tenant), confirmed=True)
        found.discard(tenant)
        removed.append(f"tenant {tenant}")
    if "server" in things and not found:
        (data_dir / NOTE).unlink(missing_ok=True)
        servers.remove(data_dir)
        removed.append(f"the embedded server in {data_dir}")
    return removed
