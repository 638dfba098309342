"""The command tree: every command that there is."""

from collections.abc import Iterator
from typing import Any

from posduif_cli.cli import tree


def leaves() -> Iterator[tuple[str, Any]]:
    for noun in tree.NOUNS:
        command = tree.load(noun)
        verbs = getattr(command, "commands", None)
        if verbs:
            yield from ((f"{noun} {verb}", leaf) for verb, leaf in verbs.items())
        else:
            yield noun, command


# Each command by its words.
LEAVES = dict(leaves())
