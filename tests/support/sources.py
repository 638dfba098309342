"""What the repository holds: its folder and the bundled migrations."""

import re
from pathlib import Path

REPO = Path(__file__).parent.parent.parent
MIGRATIONS = sorted((REPO / "sql" / "migrations").glob("*.sql"))
# Their versions; a new one must not break a test that is about something else.
BUNDLED = [path.name.partition("_")[0] for path in MIGRATIONS]
LATEST = BUNDLED[-1]
# What each of them runs on the way up.
UP = [re.split(r"-- migrate:(?:up|down)\n", path.read_text())[1] for path in MIGRATIONS]
