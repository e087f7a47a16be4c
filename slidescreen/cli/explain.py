"""The command that shows what scores are sensitive to."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from slidescreen.cli.app import app, log
from slidescreen.cli.options import (
    DeviceOption,
    ModelOption,
    VerboseOption,
    effective_settings,
    open_classifier,
    plausible,
    start_log,
)
from slidescreen.errors import SlidescreenError, UsageError


class Method(StrEnum):
    """Of `slidescreen.explain`."""

    saliency = "saliency"
    gradcam = "gradcam"


class Target(StrEnum):
    """What is explained."""

    label = "class"
    blast = "blast"


@app.command()
def explain(
    inputs: Annotated[list[str], typer.Argument(metavar="RESULT_FOLDER|IMAGE...", help="A result folder, or images of cells.")],
    um_per_px: Annotated[float, typer.Option("--um-per-px", help="um per pixel of the images.")] = 0.0,
    method: Annotated[Method, typer.Option("--method", help="gradcam; saliency, as Matek et al.")] = Method.gradcam,
    target: Annotated[
        Target, typer.Option("--target", help="class: the score of the class given; blast: P(blast).")
    ] = Target.label,
    cells: Annotated[str, typer.Option("--cells", help="top: the 48 likeliest blasts; or cell numbers, such as 3,17.")] = "top",
    out: Annotated[Path, typer.Option("-o", "--out", help="New folder for the pictures and index.html.")] = Path("explained"),
    model: ModelOption = "",
    device: DeviceOption = "",
    verbose: VerboseOption = False,
) -> None:
    """Show which pixels the score of each cell is sensitive to: a picture a cell, and a page of them all."""
    start_log(verbose, False)
    from slidescreen.batch import list_images
    from slidescreen.explain import ExplainSettings
    from slidescreen.explain_cells import cells_of_result, is_result, patches_of_images, patches_of_result, write_explained

    folders = [Path(name) for name in inputs if is_result(Path(name))]
    if folders and len(inputs) > 1:
        raise UsageError(f"{folders[0]}: is a result folder; name one result folder, or images, not both")
    above = [Path(name) for name in inputs if any(map(is_result, Path(name).glob("*/")))]
    if above:
        raise UsageError(f"{above[0]}: holds results; name one of the folders in it")
    paths = [] if folders else list_images(inputs)
    if paths and not um_per_px:
        raise UsageError("images need their scale: give --um-per-px, for instance 0.0725")
    if paths and cells != "top":
        raise UsageError(f"--cells {cells}: chooses from a result folder; name the images themselves")
    if paths:
        plausible(um_per_px)
    classifier = open_classifier(model, effective_settings(None, device, 0, ""))
    failures: list[SlidescreenError] = []
    if folders:
        shown = cells_of_result(folders[0], cells, classifier.card.identity)
        patches, title = patches_of_result(folders[0], shown), folders[0].resolve().name
    else:
        patches, title = (
            patches_of_images(paths, um_per_px, failures),
            ", ".join(Path(name).name for name in inputs[:3]) + (", ..." if len(inputs) > 3 else ""),
        )
    written = write_explained(out, title, patches, classifier, ExplainSettings(0, method.value, target.value))
    for failure in failures:
        log.error("FAILED %s", failure)
    where = f" -> {out / 'index.html'}" if written else ": nothing was written"
    typer.echo(f"{written} cell{'s' * (written != 1)} explained{where}")
    if failures:
        raise typer.Exit(1)
