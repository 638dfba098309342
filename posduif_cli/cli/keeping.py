"""Where the passwords of engines go: into files, or once onto the terminal; and what is wrong with such a file."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from posduif_cli.cli.context import App
from posduif_cli.cli.runs import SHOWN
from posduif_cli.errors import ConfigurationError, Run, TenantExists
from posduif_cli.notation import listed


class Keeper:
    """Takes an engine's new password before its role gets it: into a file, or to be shown once afterwards."""

    def __init__(self, tenant: str, file: Path | None) -> None:
        self.file = file
        self.password: str | None = None
        self.kept = False
        self.no_port = False
        self.stale: list[str] = []
        if file:
            from posduif_cli.render import engine_config

            engine_config.check(file, tenant)

    def __call__(self, password: str, settings: dict[str, Any]) -> None:
        """Keep the password; raises FileExists or ConfigurationError."""
        self.kept = True
        if self.file is None:
            self.password = password
            return
        from posduif_cli.render import engine_config

        self.stale = engine_config.write(self.file, settings)
        self.no_port = settings["sse"]["port"] is None

    def tell(self, app: App, tenant: str) -> None:
        """Say where the password is, or show it this once; and what is known to be wrong with the file."""
        if self.file is not None:
            app.out.say(f"engine configuration with the password: {self.file}")
            if self.stale:
                lead = f"of an existing file only the password was changed; {', '.join(self.stale)} in it differ"
                app.out.say(refresh(tenant, self.file, lead))
            elif self.no_port:
                warn_of_port(app, [tenant], refresh(tenant, self.file, lead="then"))
        elif self.password is not None:
            app.out.say(f"password of {tenant}_engine, shown this once: {self.password}")


def keeper(app: App, tenant: str, file: Path | None) -> Keeper | None:
    """Return what takes the password; None where it could only go into a pipe or JSON."""
    import sys

    shown = app.out.format == "table" and not app.out.quiet and sys.stdout.isatty() and sys.stderr.isatty()
    return Keeper(tenant, file) if file or shown else None


def warn_of_port(app: App, tenants: Sequence[str], then: Run) -> None:
    """Warn that no port was chosen for the engines of some tenants, whose files have the engine's default."""
    from posduif_cli.models.tenants import ENGINE_PORT

    app.out.warn(
        f"no port was chosen for the engine of {listed(tenants, SHOWN)}, so the file says {ENGINE_PORT}: "
        "on one host only one engine starts with that. Set engine.ports in the configuration"
    )
    app.out.say(then)


def refresh(tenant: str, file: Path | str, lead: str = "") -> Run:
    """Return the command that brings an engine's file up to date."""
    return Run("tenant", "engine-config", tenant, "--refresh", str(file), lead=lead)


class Folder:
    """Takes the passwords of many tenants, one file each in *folder*; none without a folder.

    Raises ConfigurationError where the folder cannot be made.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self.keepers: dict[str, Keeper] = {}
        if folder is None:
            return
        try:
            folder.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise ConfigurationError(f"{folder} cannot be made", why=error.strerror) from None

    def __call__(self, tenant: str, exists: bool) -> Keeper | None:
        """Return what takes one password; raises TenantExists where that of an old tenant was never kept."""
        if self.folder is None:
            return None
        file = self.folder / f"{tenant}.yaml"
        if exists and not file.exists():
            raise never_kept(tenant, file)
        self.keepers[tenant] = Keeper(tenant, file)
        return self.keepers[tenant]

    def tell(self, app: App) -> None:
        """Say what is known to be wrong with the files that were written."""
        then = Run("tenant", "engine-config", "--all", str(self.folder), lead="then")
        stale = [tenant for tenant, keeper in self.keepers.items() if keeper.stale]
        if stale:
            app.out.say(f"of existing files only the passwords were changed; outdated: {listed(stale, SHOWN)}")
            app.out.say(then)
        if no_port := [tenant for tenant, keeper in self.keepers.items() if keeper.no_port]:
            warn_of_port(app, no_port, then)


def never_kept(tenant: str, file: Path) -> TenantExists:
    """Return the error that an existing tenant's password cannot be written into a new file."""
    message = f"tenant {tenant} exists, and its engine's password cannot be read again for {file}"
    return TenantExists(message, hint=rotate(tenant, file=str(file)))


def rotate(tenant: str, lead: str = "", *, file: str = "FILE") -> Run:
    """Return the command that gives a tenant's engine a password."""
    return Run("tenant", "rotate-password", tenant, "--engine-config", file, lead=lead)


class Refreshed:
    """Brings engines' files up to date, and says what was changed in each, without the values: some are secrets."""

    def __init__(self) -> None:
        self.changed: dict[Path, list[str]] = {}
        self.no_port: dict[Path, str] = {}

    def __call__(self, file: Path, settings: dict[str, Any]) -> bool:
        """Bring one file up to date; return whether that changed it."""
        from posduif_cli.render import engine_config

        self.changed[file] = engine_config.refresh(file, settings)
        if settings["sse"]["port"] is None:
            self.no_port[file] = settings["postgres"]["db"]
        return bool(self.changed[file])

    def tell(self, app: App, file: Path) -> None:
        """Say what was changed in a file, and what the engine needs then."""
        if keys := self.changed.get(file):
            app.out.say(f"{file}: {', '.join(keys)} changed; restart the engine with it")
        if file in self.no_port:
            warn_of_port(app, [self.no_port[file]], refresh(self.no_port[file], file, lead="then"))
