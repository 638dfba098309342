"""A further folder of migrations, beside the bundled one."""

from pathlib import Path

import pytest


class Folder:
    """A further folder of migrations, and the configuration that names it."""

    def __init__(self, path: Path) -> None:
        self.path = path / "more"
        self.path.mkdir()
        self.config = path / "config.yaml"
        self.configure()

    def configure(self, more: str = "", lock_timeout: str = "300ms") -> None:
        self.config.write_text(f"migrations: {{paths: ['{self.path}'], lock_timeout: {lock_timeout}}}\n{more}")

    def raw(self, name: str, text: str) -> Path:
        (self.path / name).write_text(text)
        return self.path / name

    def put(self, name: str, up: str, down: str | None = None) -> Path:
        return self.raw(name, f"-- migrate:up\n{up}\n" + (f"-- migrate:down\n{down}\n" if down else ""))

    def counted(self, version: str, more: str = "", *, down: bool = True, before: str = "") -> Path:
        """Write a file that leaves the table tVERSION and a row in `runs`, so that each run of it is counted."""
        return self.raw(
            f"{version}_x.sql",
            f"-- migrate:up\n{before}INSERT INTO runs VALUES ('{version}');\nCREATE TABLE t{version} (id int);\n"
            f"{more}\n" + (f"-- migrate:down\nDROP TABLE t{version};\n" if down else ""),
        )

    @property
    def option(self) -> tuple[str, str]:
        return ("--config", str(self.config))


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)
