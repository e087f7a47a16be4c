"""Commands for models."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from slidescreen.cli.app import log, model_app
from slidescreen.cli.options import VerboseOption, start_log


@model_app.command("list")
def list_(verbose: VerboseOption = False) -> None:
    """List the models there are."""
    start_log(verbose, False)
    from rich.console import Console

    from slidescreen.cli.model_card import models_table
    from slidescreen.installed.listing import list_models

    models = list_models()
    titles = {"classifier": "Classifiers (--model NAME)", "detector": "Detectors", "unknown": "Of no use"}
    for kind, title in titles.items():
        if those := [model for model in models if model.kind == kind]:
            Console().print(models_table(title, those))


@model_app.command("show")
def show(
    model: Annotated[str, typer.Argument(metavar="NAME", help="Name of a model, or a model folder.")],
    verbose: VerboseOption = False,
) -> None:
    """Show the card of a model: what it is, what it was trained on, what it is good for and what not."""
    start_log(verbose, False)
    from rich.console import Console

    from slidescreen.cli.model_card import card_view
    from slidescreen.installed.listing import describe
    from slidescreen.model import find_model, read_card

    folder = find_model(model)
    read_card(folder)  # what cannot be read is said
    Console().print(card_view(describe(folder)))


@model_app.command("check")
def check(
    model: Annotated[str, typer.Argument(metavar="[NAME]", help="Name of a model, or a model folder; all without.")] = "",
    verbose: VerboseOption = False,
) -> None:
    """Check that models are whole and work: weights by sha256, and what they say of a painted cell."""
    start_log(verbose, False)
    from slidescreen.errors import ModelError
    from slidescreen.installed.check import check_model
    from slidescreen.model import find_model, model_folders

    sound = True
    for folder in [find_model(model)] if model else model_folders():
        try:
            typer.echo(f"ok   {folder.resolve().name}: {check_model(folder)}")
        except ModelError as error:
            sound = False
            log.error("%s", error)
    if not sound:
        raise typer.Exit(1)


@model_app.command("install")
def install(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A model as a zip, a tar or a folder, on this machine.")],
    replace: Annotated[bool, typer.Option("--replace", help="In the place of an installed one of this name.")] = False,
    verbose: VerboseOption = False,
) -> None:
    """Install a model from a file. It is verified first; nothing is downloaded, nothing in it is run."""
    start_log(verbose, False)
    from slidescreen.installed.install import install_model

    model, said = install_model(file, replace=replace)
    typer.echo(f"{file} -> {model.folder} ({said}); screen with it: --model {model.name}")


@model_app.command("pack")
def pack(
    model: Annotated[str, typer.Argument(metavar="NAME", help="Name of a model, or a model folder.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="zip file to write.")],
    verbose: VerboseOption = False,
) -> None:
    """Write a model as one file that `model install` takes."""
    start_log(verbose, False)
    from slidescreen.installed.archive import pack
    from slidescreen.installed.check import check_model
    from slidescreen.model import find_model

    folder = find_model(model)
    check_model(folder)
    pack(folder, out)
    typer.echo(f"{model} -> {out}")


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
