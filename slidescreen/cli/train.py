"""Commands that train."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from slidescreen.cli.app import stopped, train_app
from slidescreen.cli.options import DeviceOption, VerboseOption, start_log
from slidescreen.cli.training_bar import TrainingBar
from slidescreen.errors import UsageError

if TYPE_CHECKING:
    from slidescreen.training.classifier.run import FoldDone


@train_app.command("detector")
def train_detector(
    fields: Annotated[Path, typer.Option("--fields", help="Folder with fields.csv: smear fields with boxes.")],
    masks: Annotated[Path, typer.Option("--masks", help="Folder with masks.csv: cells with expert outlines.")],
    cells: Annotated[Path | None, typer.Option("--cells", help="Folder with cells.csv: images of single cells.")] = None,
    out: Annotated[Path, typer.Option("-o", "--out", help="Model folder to write; must not exist.")] = Path(
        "build/leukocyte-detector/model"
    ),
    work: Annotated[Path, typer.Option("--work", help="Folder of checkpoints; the same command goes on from them.")] = Path(
        "build/leukocyte-detector"
    ),
    steps: Annotated[int, typer.Option("--steps", min=1)] = 16000,
    seed: Annotated[int, typer.Option("--seed", min=0)] = 0,
    leave_out: Annotated[str, typer.Option("--leave-out", help="A camera whose fields are not learned from.")] = "",
    verbose: VerboseOption = False,
) -> None:
    """Train the leukocyte detector on the CPU; see benchmarks/detection.py for how it is measured."""
    start_log(verbose, False)
    if out.exists():
        raise UsageError(f"{out}: exists already; name another folder with -o, or remove it")
    from slidescreen.training.detector.fit import TrainSettings
    from slidescreen.training.detector.release import train_detector, write_detector

    def tell(_: int) -> None:
        if stopped.is_set():
            raise KeyboardInterrupt

    settings = TrainSettings(steps=steps, seed=seed, left_out=leave_out)
    network, score = train_detector(fields, masks, cells, settings, work, tell)
    write_detector(out, network, score, settings)
    typer.echo(f"Detector after {steps} steps, centre score {score:g} -> {out}")


@train_app.command("classifier")
def train_classifier(
    data: Annotated[Path, typer.Option("--data", help="Labelled images; see slidescreen data check.")],
    recipe: Annotated[str, typer.Option("--recipe", help="paper, fast or a TOML file.")] = "paper",
    arch: Annotated[str, typer.Option("--arch", help="resnext50_32x4d, efficientnet_lite0, matek2019 or sequential.")] = "",
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder of the run.")] = Path("build/classifier"),
    folds: Annotated[int, typer.Option("--folds", min=2)] = 5,
    fold: Annotated[list[int] | None, typer.Option("--fold", help="Train this fold only; may be repeated.")] = None,
    split: Annotated[
        str, typer.Option("--split", help="stratified (by image), patient, source (leave one out), or a CSV file: file,fold.")
    ] = "stratified",
    epochs: Annotated[int, typer.Option("--epochs", min=0, help="0: the recipe's.")] = 0,
    per_class: Annotated[int, typer.Option("--per-class", min=0, help="Images of a class in an epoch; 0: the recipe's.")] = 0,
    input_px: Annotated[int, typer.Option("--input-px", min=0, help="Side of the network's input; 0: the recipe's.")] = 0,
    batch_size: Annotated[int, typer.Option("--batch-size", min=0, help="0: the recipe's.")] = 0,
    seed: Annotated[int, typer.Option("--seed", min=-1, help="-1: the recipe's.")] = -1,
    start: Annotated[str, typer.Option("--start", help="A model, or ImageNet weights (safetensors), to start from.")] = "",
    um_per_px: Annotated[float | None, typer.Option("--um-per-px", help="Of images in a folder per class.")] = None,
    packed: Annotated[Path | None, typer.Option("--packed", help="Where packed images are kept; default: in the run.")] = None,
    device: DeviceOption = "auto",
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in this folder.")] = False,
    verbose: VerboseOption = False,
) -> None:
    """Train the classifier fold by fold; every fold gives a model and its predictions of images it has not seen."""
    start_log(verbose, False)
    import dataclasses

    from slidescreen.classify import choose_device
    from slidescreen.training.classifier.images import list_images
    from slidescreen.training.classifier.recipe import load_recipe
    from slidescreen.training.classifier.run import RunSettings, starter, train_folds, usable_images

    asked = {
        "architecture": arch,
        "epochs": epochs,
        "per_class": per_class,
        "input_px": input_px,
        "batch_size": batch_size,
        "start": start,
    }
    changes: dict[str, Any] = {k: v for k, v in asked.items() if v} | ({"seed": seed} if seed >= 0 else {})
    effective = dataclasses.replace(load_recipe(recipe), **changes)
    images = usable_images(list_images(data, um_per_px))
    only = tuple(dict.fromkeys(fold or ()))
    settings = RunSettings(out, packed or out / "packed", choose_device(device), split, folds, only, resume)
    with TrainingBar() as bar:
        for done in train_folds(images, effective, settings, starter(effective), bar.tell):
            bar.print_line(_said(done))
    typer.echo(f"Now: slidescreen evaluate {out}")


@train_app.command("release")
def train_release(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a training run.")],
    data: Annotated[Path, typer.Option("--data", help="The labelled images that the run was trained on.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="Model folder to write.")],
    fold: Annotated[int, typer.Option("--fold", min=1, help="The fold to release; its images were not learned from.")] = 1,
    fields: Annotated[
        Path | None, typer.Option("--fields", help="Folder with fields.csv: red cells, ground, cells of other cameras.")
    ] = None,
    evidence: Annotated[
        list[Path] | None,
        typer.Option("--evidence", help="JSON or picture of a benchmark, for card and README; may be repeated."),
    ] = None,
    decision: Annotated[
        Path | None, typer.Option("--decision", help="JSON of benchmarks/folds.py: from which P on a cell is a blast.")
    ] = None,
    float32: Annotated[bool, typer.Option("--float32", help="Weights in float32, twice as large.")] = False,
    turned: Annotated[int, typer.Option("--turned", min=1, help="Unseen images to look at in eight orientations.")] = 600,
    um_per_px: Annotated[float | None, typer.Option("--um-per-px", help="Of images in a folder per class.")] = None,
    device: DeviceOption = "auto",
    verbose: VerboseOption = False,
) -> None:
    """Make a model of a fold: calibrate it, fit rejection, measure both, and write card, recipe and README."""
    start_log(verbose, False)
    from slidescreen.model import load_card
    from slidescreen.training.classifier.release import ReleaseSettings, release

    settings = ReleaseSettings(out, fold, data, fields, um_per_px, not float32, tuple(evidence or ()), decision, turned, device)
    folder = release(run, settings)
    typer.echo(f"{load_card(folder).info.measured} -> {folder}")


def _said(done: FoldDone) -> str:
    measured = ", ".join(f"{k} {'undefined' if v is None else format(v, '.3f')}" for k, v in done.measured.items())
    return f"fold {done.fold}: {done.images} images not seen in training: {measured} -> {done.folder}"
