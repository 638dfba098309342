"""How QR codes are drawn: what a command line chooses and the drawing does."""

from enum import StrEnum


class Style(StrEnum):
    """How to draw a code on the terminal."""

    AUTO = "auto"
    COMPACT = "compact"
    """Half blocks: two modules per character."""
    LARGE = "large"
    """Two coloured spaces per module: pure ASCII, and scans from farther away."""
    ALWAYS = "always"
    """Compact, whatever the output is, for example a pipe into `less -R`."""
    NEVER = "never"
    PLAIN = "plain"
    """No colours, for light text on a dark ground."""
    PLAIN_INVERTED = "plain-inverted"
    """No colours, for dark text on a light ground."""
