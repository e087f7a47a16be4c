"""The command that evaluates: evaluate."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from slidescreen.cli.app import app, log
from slidescreen.cli.options import VerboseOption, start_log


@app.command()
def evaluate(
    predictions: Annotated[
        Path, typer.Argument(metavar="RUN_DIR|PREDICTIONS.csv", help="Folder of a training run, or predictions on known cells.")
    ],
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder to write; an older evaluation there is replaced.")],
    threshold: Annotated[float, typer.Option("--threshold", help="A cell is a blast (atypical) from this P on.")] = 0.5,
    verbose: VerboseOption = False,
) -> None:
    """Tell how well cells were named, as the paper does: scores, ROC, agreement, calibration, and a page of it all."""
    start_log(verbose, False)
    from slidescreen.evaluation.folder import PAGE, evaluate_into
    from slidescreen.report.wording import cells, number

    found = evaluate_into(predictions, out, threshold=threshold)
    log.info("%s: %s", found.split.title, found.split.text)
    for warning in found.warnings:
        log.warning("%s", warning)
    aucs = ", ".join(f"{decision.key} AUC {number(decision.auc.value, 3)}" for decision in found.decisions)
    balanced = number(found.balanced_accuracy.value, 3)
    folds = cells(len(found.folds), "fold")
    typer.echo(f"{found.images} images, {folds}: balanced accuracy {balanced}, {aucs} -> {out / PAGE}")
