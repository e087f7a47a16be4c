"""Commands for models."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from slidescreen.cli.app import model_app
from slidescreen.cli.options import VerboseOption, start_log


@model_app.command("import-keras")
def import_keras(
    weights: Annotated[
        Path, typer.Argument(metavar="WEIGHTS.hdf5", help="Keras weights, as Matek et al. 2019 published them.")
    ],
    out: Annotated[Path, typer.Option("-o", "--out", help="Model folder to write.")] = Path("models/matek2019"),
    verbose: VerboseOption = False,
) -> None:
    """Make a model of the published network's weights."""
    start_log(verbose, False)
    from slidescreen.keras_import import import_keras
    from slidescreen.model import load_card

    import_keras(weights, out)
    typer.echo(f"{weights} -> {out} (sha256 {load_card(out).sha256[:12]}); screen with it: --model {out}")


@model_app.command("export")
def export(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Name of a model, or a model folder.")],
    onnx: Annotated[Path, typer.Option("--onnx", help="ONNX file to write: patches in, probabilities out.")],
    verbose: VerboseOption = False,
) -> None:
    """Write a model as one file that other programs can run."""
    start_log(verbose, False)
    from slidescreen.model import find_model
    from slidescreen.onnx_export import export_onnx

    export_onnx(find_model(model), onnx)
    typer.echo(f"{model} -> {onnx}")
