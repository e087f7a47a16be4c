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
    from slidescreen.evaluation.page import with_interval
    from slidescreen.report.wording import cells, number

    found = evaluate_into(predictions, out, threshold=threshold)
    log.info("%s: %s", found.split.title, found.split.text)
    for warning in found.warnings:
        log.warning("%s", warning)
    aucs = ", ".join(f"{decision.key} AUC {number(decision.auc.value, 3)}" for decision in found.decisions)
    balanced = number(found.balanced_accuracy.value, 3)
    folds = cells(len(found.folds), "fold")
    for source in found.sources if len(found.sources) > 1 else ():
        measures = {
            "balanced accuracy": source.balanced_accuracy,
            "blast AUC": source.blast_auc,
            "atypical AUC": source.atypical_auc,
        }
        told = ", ".join(f"{name} {with_interval(each)}" for name, each in measures.items() if each.value is not None)
        typer.echo(f"{source.source or 'source unknown'}: {source.images} images, {told}")
    typer.echo(f"{found.images} images, {folds}: balanced accuracy {balanced}, {aucs} -> {out / PAGE}")
