"""What all models share."""

from dataclasses import fields
from datetime import datetime

# A time of the database: its text where RFC 3339 has no words for it, such as infinity or a year before Christ.
Instant = datetime | str
HIDDEN = {"hidden": True}  # the metadata of a field that no output shows


class Value:
    """What the dataclasses below share; made anew for each, it would cost every command 0.3 ms a class."""

    def __repr__(self) -> str:
        """Show the fields, without those that hold secrets."""
        shown = (f for f in fields(self) if f.repr)  # type: ignore[arg-type]
        return f"{type(self).__name__}({', '.join(f'{f.name}={getattr(self, f.name)!r}' for f in shown)})"

    def __eq__(self, other: object) -> bool:
        """Compare by value."""
        return vars(self) == vars(other) if type(self) is type(other) else NotImplemented

    def __hash__(self) -> int:
        """Hash by value."""
        return hash(tuple(vars(self).values()))
