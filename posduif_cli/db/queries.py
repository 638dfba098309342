"""The named SQL of `sql/queries/`, a folder per wing of the core."""

import re
from functools import cache
from pathlib import Path
from typing import LiteralString, cast

from posduif_cli.errors import PosduifError

_PACKAGED = Path(__file__).parent.parent / "sql"
ROOT = _PACKAGED if _PACKAGED.is_dir() else _PACKAGED.parent.parent / "sql"
_NEEDS = re.compile(r"-- needs: (nothing|\d+)\n\n")
_BLOCK = re.compile(r"^-- name: (\w+)\n((?:-- .*\n)+)", re.MULTILINE)


class Named(str):
    """A named query; *needs* is the oldest bundled migration that it can be sent after, "" where any will do."""

    needs: str = ""


@cache
def load(module: str) -> dict[str, LiteralString]:
    """Read `sql/queries/<module>.sql`, such as "desk/tokens", into statements by name.

    The file's first line says what its queries need of a tenant's schema: `-- needs: 0003`, or `nothing`. Each
    block starts with `-- name: verb_noun` and a comment that says what it is for. A block without that comment is
    not found, which a test turns into a failure.
    """
    text = (ROOT / "queries" / f"{module}.sql").read_text(encoding="utf-8")
    needs = _NEEDS.match(text)
    found: dict[str, LiteralString] = {}
    parts = _BLOCK.split(text)
    for name, body in zip(parts[1::3], parts[3::3], strict=True):
        query = Named(body.strip())
        query.needs = needs[1] if needs and needs[1] != "nothing" else ""
        found[name] = cast(LiteralString, query)
    return found


def bundled(*parts: str) -> Path:
    """Return the path of a file or folder below `sql/`.

    Raises PosduifError when the installation is incomplete.
    """
    path = ROOT.joinpath(*parts)
    if not path.exists():
        raise PosduifError(f"{path} is missing", why="the installation is incomplete", hint="install posduif again")
    return path
