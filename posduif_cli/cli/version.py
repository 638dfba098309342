"""`posduif version`, with options; without any, main answers before this is loaded."""

import typer

from posduif_cli import __version__
from posduif_cli.cli.context import Noun, app_of

app = Noun()


@app.verb("version", example="posduif version")
def version(ctx: typer.Context) -> None:
    """Print the version."""
    out = app_of(ctx).out
    if out.format == "table":
        out.text(f"posduif {__version__}")
    else:
        out.show({"version": __version__})
