"""The application that the commands are added to, its groups, and the sign to stop."""

from __future__ import annotations

import logging
import threading
from typing import Final

import typer

log = logging.getLogger("slidescreen")

app = typer.Typer(
    name="slidescreen",
    help="Screens the leukocytes of scanned blood smears for blasts and atypical cells. Research use; "
    "needs review by a morphologist.",
    no_args_is_help=True,
    rich_markup_mode=None,
    add_completion=False,
    pretty_exceptions_enable=False,
)

train_app = typer.Typer(help="Train the models that come with slidescreen.", no_args_is_help=True)
app.add_typer(train_app, name="train")

model_app = typer.Typer(help="List, show, check, install, import and export models.", no_args_is_help=True)
app.add_typer(model_app, name="model")

stopped: Final = threading.Event()
"""Set by SIGINT and SIGTERM. An exception raised by a signal can be lost where Python ignores errors (in a destructor); the
event is looked at after every cell."""
