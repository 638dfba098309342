"""`posduif config`: show or make the configuration."""

from typing import Annotated

import typer

from posduif_cli.cli.context import Noun, app_of
from posduif_cli.config import file, load

app = Noun(help="Show or make the configuration.")


@app.verb("show", example="posduif config show --origin")
def show(
    ctx: typer.Context,
    origin: Annotated[bool, typer.Option("--origin", help="Say where each value came from.")] = False,
) -> None:
    """Print every setting in force; secrets are masked."""
    from posduif_cli.models.servers import Setting

    app = app_of(ctx)
    out = app.out
    if not origin and not out.fields:
        out = out.only("key", "value")
    out.list(app.config.settings, Setting)


@app.verb("init", example="posduif config init")
def init(ctx: typer.Context) -> None:
    """Write a commented configuration file, to --config or the user's usual place; never over one that exists."""
    app = app_of(ctx)
    path = load.file_to_make(app.options.pop("config", None))
    file.init(path)
    app.out.say(f"written: {path}")
    app.out.text(str(path)) if not app.out.machine else app.out.show({"path": str(path), "changed": True})
