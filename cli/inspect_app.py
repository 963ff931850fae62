"""Looking inside: arguments in; see `inspect_commands.py`."""

import typer


def register(app: typer.Typer, debug: typer.Typer) -> None:
    """Add the commands."""
