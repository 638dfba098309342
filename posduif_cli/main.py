"""The entry: answers `version` without building the command tree, else hands argv to it."""

import sys


def main() -> None:
    """Run posduif on `sys.argv` and exit with its code."""
    try:
        code = run(sys.argv[1:])
    except KeyboardInterrupt:  # before the command tree stood, which answers it otherwise
        code = 130
    sys.exit(code)


def run(argv: list[str]) -> int:
    """Run one command and return its exit code."""
    if argv in (["version"], ["--version"], ["-V"]):
        from posduif_cli import __version__

        try:
            sys.stdout.write(f"posduif {__version__}\n")
            sys.stdout.flush()
        except (OSError, AttributeError):  # a full disk, or no standard output at all
            return 7
        return 0
    from posduif_cli.cli import tree

    return tree.run(argv)
