"""An evaluation drawn: confusion matrix, ROC curves, reliability, patients. The same numbers give the same bytes.

Colours that depend on the page's light or dark look are drawn as the exact values of `PAGE_COLOURS`, so that the page can put
its own in their place; letters are outlines, so that no font is needed to see them.
"""

from __future__ import annotations

import io
from collections.abc import Iterable
from typing import Final

import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, LogLocator

from slidescreen.evaluation.metrics import CALIBRATION_BINS
from slidescreen.evaluation.published import MATURE, TABLE_1
from slidescreen.evaluation.result import Decision, Estimate, Evaluation, Rate, Reannotation
from slidescreen.report.wording import DASH
from slidescreen.taxonomy import BY_CODE, CODES

INK: Final = "#1c2530"
SOFT: Final = "#5a6675"
LINE: Final = "#dde2e8"
GROUND: Final = "#ffffff"
ACCENT: Final = "#0b5c8a"
HUMAN: Final = "#d9480f"

PAGE_COLOURS: Final = {INK: "--text", SOFT: "--soft", LINE: "--line", GROUND: "--ground", ACCENT: "--accent"}
"""Colour in the files -> the page's variable of the same meaning (report/style.css)."""

NAMES: Final = ("confusion", "roc_blast", "roc_atypical", "reliability", "patients")
"""All that can be drawn; a figure without anything to show is not."""

PNG_DPI: Final = 200
ZOOM_FROM_AUC: Final = 0.95
"""From this AUC on the corner of the curve is enlarged."""
ZOOM: Final = 0.2
"""Side of the enlarged corner."""
COUNTS: Final = FuncFormatter(lambda n, _: f"{n / 1000:g}k" if n >= 1000 else f"{n:g}")
READABLE_SHARE: Final = 0.005
"""Smaller shares would print as 0.00 and are left blank."""

LOOK: Final = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "text.color": INK,
    "axes.edgecolor": SOFT,
    "axes.labelcolor": INK,
    "axes.facecolor": "none",
    "axes.grid": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "legend.frameon": False,
    "figure.facecolor": GROUND,
    "savefig.facecolor": GROUND,
    "svg.fonttype": "path",
    "svg.hashsalt": "slidescreen",
}
_MARKS: Final = {1: "x", 2: "+"}
"""The paper's marks of the first and second re-annotation."""


def draw(evaluation: Evaluation) -> dict[str, tuple[bytes, bytes]]:
    """Name of each figure that is drawn -> (SVG, PNG)."""
    with matplotlib.style.context(["default", LOOK]):
        figures = {"confusion": _confusion(evaluation)}
        for decision in evaluation.decisions:
            if decision.mean_curve is not None:
                figures[f"roc_{decision.key}"] = _roc(decision, evaluation.reannotations)
        figures["reliability"] = _reliability(evaluation)
        if evaluation.by_patient:
            figures["patients"] = _patients(evaluation)
        return {name: (_saved(figure, "svg"), _saved(figure, "png")) for name, figure in figures.items()}


def _saved(figure: Figure, kind: str) -> bytes:
    buffer = io.BytesIO()
    nothing = {"Date": None, "Creator": None} if kind == "svg" else {"Software": None}
    figure.savefig(buffer, format=kind, dpi=PNG_DPI, metadata=nothing)
    return buffer.getvalue()


def _confusion(evaluation: Evaluation) -> Figure:
    order = [CODES.index(code) for code in TABLE_1]
    counts = evaluation.confusion[np.ix_(order, order)]
    images = counts.sum(1)
    figure = Figure(figsize=(9.6, 6.6), layout="constrained")
    matrix, bars = figure.subplots(1, 2, sharey=True, width_ratios=[4, 1])
    for row, column in np.argwhere(counts > 0):
        _share(matrix, int(row), int(column), float(counts[row, column] / images[row]))
    for row in np.flatnonzero(images == 0):
        matrix.text(7, row, f"{DASH} no images {DASH}", ha="center", va="center", color=SOFT, fontsize=8)
    matrix.set_xlim(-0.5, 14.5)
    matrix.set_ylim(14.5, -0.5)
    matrix.set_xticks(range(15), list(TABLE_1))
    matrix.tick_params(axis="x", rotation=90)
    matrix.set_yticks(range(15), [f"{BY_CODE[code].name}  {code}" for code in TABLE_1])
    matrix.set_xlabel("Network's class")
    matrix.set_ylabel("Gold standard")
    matrix.hlines(np.arange(0.5, 14), -0.5, 14.5, color=LINE, lw=0.6, zorder=0)
    matrix.vlines(np.arange(0.5, 14), -0.5, 14.5, color=LINE, lw=0.6, zorder=0)
    for line in (matrix.axhline, matrix.axvline):
        line(len(MATURE) - 0.5, color=SOFT, lw=1, zorder=0)
    matrix.tick_params(length=0, labelcolor=INK)
    bars.barh(range(15), images, color=ACCENT, height=0.6)
    bars.set_xscale("log")
    bars.set_xlim(0.8, images.max() * 8)  # room for the numbers
    for row, n in enumerate(images):
        bars.text(max(n, 0.8) * 1.25, row, f"{n:,.0f}", va="center", fontsize=8)
    bars.set_xlabel("Images (log scale)")
    bars.xaxis.set_major_locator(LogLocator(numticks=9))
    bars.xaxis.set_major_formatter(COUNTS)
    bars.tick_params(axis="y", length=0)
    bars.minorticks_off()
    return figure


def _share(matrix: Axes, row: int, column: int, share: float) -> None:
    """One entry of the row-normalised matrix; the tint is the share, the number on it in the colour that can be read."""
    matrix.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, facecolor=ACCENT, edgecolor="none", alpha=share))
    if share >= READABLE_SHARE:
        colour = GROUND if share > 0.5 else INK
        matrix.text(column, row, f"{share:.2f}", ha="center", va="center", fontsize=7, color=colour)


def _roc(decision: Decision, reannotations: Iterable[Reannotation]) -> Figure:
    figure = Figure(figsize=(5.6, 6.2), layout="constrained")
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color=LINE, lw=1, zorder=1)
    _curves(axes, decision, reannotations)
    axes.set_xlim(-0.01, 1.01)
    axes.set_ylim(-0.01, 1.01)
    axes.set_aspect("equal")
    axes.set_xlabel("1 \N{MINUS SIGN} specificity")
    axes.set_ylabel("Sensitivity")
    auc = decision.auc.value
    if auc is not None and auc >= ZOOM_FROM_AUC:
        corner = axes.inset_axes((0.40, 0.14, 0.56, 0.56))
        corner.set_facecolor(GROUND)
        _curves(corner, decision, reannotations)
        corner.set_xlim(-0.004, ZOOM)
        corner.set_ylim(1 - ZOOM, 1.004)
        corner.tick_params(labelsize=7)
        corner.set_title("upper left corner, enlarged", fontsize=7.5, color=SOFT)
        corner.spines[["top", "right"]].set_visible(True)
    figure.legend(handles=_legend(decision, reannotations), loc="outside lower center", ncols=1, fontsize=8.5)
    return figure


def _curves(axes: Axes, decision: Decision, reannotations: Iterable[Reannotation]) -> None:
    mean = decision.mean_curve
    assert mean is not None  # figures without a curve are not drawn
    if mean.sd is not None:
        for curve in decision.curves.values():
            axes.plot(curve.fpr, curve.tpr, color=ACCENT, lw=0.5, alpha=0.35)
        low, high = np.clip(mean.tpr - mean.sd, 0, 1), np.clip(mean.tpr + mean.sd, 0, 1)
        axes.fill_between(mean.fpr, low, high, color=ACCENT, alpha=0.2, lw=0)
        axes.plot(mean.fpr, mean.tpr, color=ACCENT, lw=1.8)
    else:  # one curve needs no averaging
        (curve,) = decision.curves.values()
        axes.plot(curve.fpr, curve.tpr, color=ACCENT, lw=1.8)
    _point(axes, decision.network.sensitivity, decision.network.specificity, "o", ACCENT)
    for each in reannotations:
        said = each.human[decision.key]
        _point(axes, said.sensitivity, said.specificity, _MARKS[each.number], HUMAN)


def _point(axes: Axes, sensitivity: Rate, specificity: Rate, mark: str, colour: str) -> None:
    if sensitivity.value is None or specificity.value is None or not sensitivity.limits or not specificity.limits:
        return
    x, y = 1 - specificity.value, sensitivity.value
    wide = np.abs([[specificity.limits[1] - specificity.value], [specificity.value - specificity.limits[0]]])
    high = np.abs([[y - sensitivity.limits[0]], [sensitivity.limits[1] - y]])
    axes.errorbar(x, y, xerr=wide, yerr=high, fmt="none", ecolor=colour, elinewidth=0.6, alpha=0.6)
    axes.plot([x], [y], mark, color=colour, ms=6, mew=1.8 if mark != "o" else 0.8, zorder=5)


def _legend(decision: Decision, reannotations: Iterable[Reannotation]) -> list[Line2D]:
    folds = len(decision.curves)
    what = "mean and sd of the folds" if folds > 1 else "one fold"
    said = f"AUC {plus_minus(decision.auc, 3)}"
    handles = [Line2D([], [], color=ACCENT, lw=1.8, label=f"Network, {what}: {said}")]
    at = f"Network at t = {decision.threshold:g}"
    handles.append(Line2D([], [], color=ACCENT, marker="o", ls="", label=at))
    for each in reannotations:
        said_by_human = each.human[decision.key]
        if said_by_human.sensitivity.value is None or said_by_human.specificity.value is None:
            continue  # no point to explain
        label = f"{('First', 'Second')[each.number - 1]} re-annotation, {each.images:,} images"
        handles.append(Line2D([], [], color=HUMAN, marker=_MARKS[each.number], mew=1.8, ls="", label=label))
    return handles


def plus_minus(estimate: Estimate, decimals: int) -> str:
    """Mean over the folds and its sd, "0.94 +- 0.01" with the sign; without sd where there is none."""
    if estimate.mean is None:
        return DASH
    mean = f"{estimate.mean:.{decimals}f}"
    return mean if estimate.sd is None else f"{mean} ± {estimate.sd:.{decimals}f}"


def _reliability(evaluation: Evaluation) -> Figure:
    calibration = evaluation.calibration
    images, right = calibration.images[0], calibration.right[0]
    low = np.arange(CALIBRATION_BINS) / CALIBRATION_BINS
    some = images > 0
    width = 1 / CALIBRATION_BINS
    figure = Figure(figsize=(5.2, 5.8), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3.2, 1])
    upper.plot([0, 1], [0, 1], color=SOFT, lw=1, ls="--", label="perfectly calibrated")
    upper.bar(low[some], right[some], width, align="edge", color=ACCENT, alpha=0.35, edgecolor=GROUND, label="named right")
    upper.plot(calibration.confidence[0][some], right[some], "o", color=ACCENT, ms=4, label="at the bin's mean probability")
    upper.set_ylim(0, 1.02)
    upper.set_xlim(0, 1)
    upper.set_ylabel("Share named right")
    upper.legend(loc="upper left", fontsize=8)
    ece = evaluation.ece.value
    if ece is not None:
        upper.text(0.98, 0.04, f"ECE {ece:.3f}", ha="right", transform=upper.transAxes)
    lower.bar(low[some], images[some], width, align="edge", color=ACCENT, edgecolor=GROUND)
    lower.set_yscale("log")
    lower.set_ylim(0.8, None)
    lower.minorticks_off()
    lower.yaxis.set_major_formatter(COUNTS)
    lower.set_ylabel("Images (log)")
    lower.set_xlabel("Probability of the predicted class")
    return figure


def _patients(evaluation: Evaluation) -> Figure:
    groups = evaluation.by_patient
    figure = Figure(figsize=(5.2, 5.2), layout="constrained")
    axes = figure.subplots()
    human = [100 * g.blasts_gold / g.images for g in groups]
    network = [100 * g.blasts_network / g.images for g in groups]
    axes.plot([0, 100], [0, 100], color=SOFT, lw=1, ls="--")
    axes.scatter(human, network, s=[16 + 6 * g.images**0.5 for g in groups], color=ACCENT, alpha=0.45, lw=0)
    axes.set_xlim(-3, 103)
    axes.set_ylim(-3, 103)
    axes.set_aspect("equal")
    axes.set_xlabel("Blasts by gold standard, % of the patient's images")
    axes.set_ylabel(f"Blasts by the network at t = {evaluation.threshold:g}, %")
    return figure
