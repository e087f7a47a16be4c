"""Commands that train."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from slidescreen.cli.app import train_app
from slidescreen.cli.options import VerboseOption, start_log


@train_app.command("detector")
def train_detector(
    fields: Annotated[Path, typer.Option("--fields", help="Folder with fields.csv: smear fields with boxes.")],
    masks: Annotated[Path, typer.Option("--masks", help="Folder with masks.csv: cells with expert outlines.")],
    cells: Annotated[Path | None, typer.Option("--cells", help="Folder with cells.csv: images of single cells.")] = None,
    out: Annotated[Path, typer.Option("-o", "--out", help="Model folder to write.")] = Path("models/leukocyte-detector"),
    work: Annotated[Path, typer.Option("--work", help="Folder of checkpoints; the same command goes on from them.")] = Path(
        "build/leukocyte-detector"
    ),
    steps: Annotated[int, typer.Option("--steps", min=1)] = 5000,
    seed: Annotated[int, typer.Option("--seed", min=0)] = 0,
    leave_out: Annotated[str, typer.Option("--leave-out", help="A camera whose fields are not learned from.")] = "",
    verbose: VerboseOption = False,
) -> None:
    """Train the leukocyte detector on the CPU; see benchmarks/detection.py for how it is measured."""
    start_log(verbose, False)
    from slidescreen.training.detector.fit import TrainSettings
    from slidescreen.training.detector.release import train_detector, write_detector

    settings = TrainSettings(steps=steps, seed=seed, left_out=leave_out)
    network, score = train_detector(fields, masks, cells, settings, work)
    write_detector(out, network, score, settings)
    typer.echo(f"Detector after {steps} steps, centre score {score:g} -> {out}")
