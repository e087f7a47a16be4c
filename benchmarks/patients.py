"""The blast fraction that slidescreen reports of a patient's scan, beside that of the human who labelled its cells.

python benchmarks/patients.py --compose MAKE_SLIDE.py --run RUN [--fold 1 2 3 4 5] [--model NAME|DIR] [--cells 100]
    [--decision decision.json] -o OUT

Patients are those of the folds, each screened by its fold's model, which has not seen them. Of each a scan is composed of
images of its labelled cells, drawn by lot (MAKE_SLIDE.py patient SCAN.tif --patient NAME --cols N --rows N writes it, and its
truth beside it), and screened as any scan is: cells are found, also unlabelled ones near the borders of the images. `reported`
is what the report says, over all cells found; `labelled only` is over those that lie where a labelled cell does. The human's
fraction is over the labelled leukocytes. `--decision`, of `folds.py`: a cell is a blast from the P(blast) on that the other
folds of its patient would choose. OUT gets patients.json, patients.svg and patients.png; what is composed and screened
stays there and is not done again.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy import stats

from slidescreen.evaluation.figures import ACCENT, LOOK, SOFT
from slidescreen.model import find_model, load_card
from slidescreen.taxonomy import BLAST, NOT_A_LEUKOCYTE, NOT_LEUKOCYTE

SETTINGS = "[explain]\ntop = 0\n"


@dataclass(frozen=True, slots=True)
class Patient:
    """A patient's scan: blasts of leukocytes as the human says of the labelled cells, as reported, and of what was found where
    a labelled cell lies."""

    name: str
    human: tuple[int, int]
    reported: tuple[int, int]
    labelled: tuple[int, int]
    found: int
    labelled_cells: int


def percent(count: tuple[int, int]) -> float:
    """Blasts per 100 leukocytes; nan of none."""
    return 100 * count[0] / count[1] if count[1] else math.nan


def patients_of(run: Path, folds: Sequence[int]) -> dict[str, int]:
    """Patients that are tested in these folds -> how many images each has."""
    with (run / "folds.csv").open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if int(row["fold"]) in folds and row["patient"]]
    names = [row["patient"] for row in rows]
    return {name: names.count(name) for name in sorted(set(names))}


def place(options: argparse.Namespace) -> Path:
    """Where scans composed in this way lie, and below it their results."""
    folder: Path = options.out / f"scans-{options.cells}-{options.seed}"
    return folder


def compose(name: str, images: int, options: argparse.Namespace) -> Path:
    """The patient's scan, which may be there already."""
    scan = place(options) / f"{name}.tif"
    if not scan.with_suffix(".json").is_file():  # written last
        side = max(1, math.isqrt(min(images, options.cells)))
        shape = ["--cols", str(side), "--rows", str(side), "--seed", str(options.seed)]
        subprocess.run(
            [sys.executable, options.compose, "patient", scan, "--patient", name, *shape], check=True, stdout=subprocess.DEVNULL
        )
    return scan


def screen(scans: Sequence[Path], model: str, threshold: float, out: Path) -> None:
    """Screen them as a user would, `threshold` 0: the model's; what is current is skipped."""
    settings = out / "settings.toml"
    settings.write_text(f"{SETTINGS}[differential]\nblast_threshold = {threshold}\n")
    command = [sys.executable, "-m", "slidescreen", "run", *map(str, scans), "-o", str(out / "results"), "--model", model]
    with (out / "screening.log").open("a") as log:
        options = ["--aoi", "all", "--no-patches", "--settings", str(settings)]
        code = subprocess.run([*command, *options], check=False, stdout=log, stderr=log).returncode
    if code not in (0, 1):
        raise SystemExit(f"screening did not start; see {out / 'screening.log'}")


def result_of(scan: Path, sha256: str, results: Path) -> Path | None:
    """The folder of its result by this model; None where it failed."""
    for folder in sorted(results.glob(f"{scan.stem}-*/summary.json")):
        if json.loads(folder.read_text(encoding="utf-8"))["model"]["sha256"] == sha256:
            return folder.parent
    return None


def compare(scan: Path, result: Path) -> Patient:
    """The result beside the truth."""
    truth = json.loads(scan.with_suffix(".json").read_text(encoding="utf-8"))["cells"]
    blast = json.loads((result / "summary.json").read_text(encoding="utf-8"))["blast"]
    with (result / "cells.csv").open(encoding="utf-8", newline="") as file:
        typed = [row for row in csv.DictReader(file) if row["status"] == "typed"]
    leukocytes = [cell["label"] for cell in truth if cell["label"] not in NOT_LEUKOCYTE and cell["label"] != NOT_A_LEUKOCYTE]
    here = [row for cell in truth if (row := _nearest(cell, typed)) is not None]
    counted = [float(row["p_blast"]) >= blast["threshold"] for row in here if row["label"] not in NOT_LEUKOCYTE]
    return Patient(
        name=scan.stem,
        human=(sum(label in BLAST for label in leukocytes), len(leukocytes)),
        reported=(blast["count"], blast["of"]),
        labelled=(sum(counted), len(counted)),
        found=len(typed),
        labelled_cells=len(truth),
    )


def _nearest(cell: dict[str, Any], rows: Sequence[dict[str, str]]) -> dict[str, str] | None:
    """The typed cell nearest to the middle of a labelled cell's box, if one lies in the box."""
    x, y = (cell["xmin"] + cell["xmax"]) / 2, (cell["ymin"] + cell["ymax"]) / 2
    far = [(max(abs(float(r["x_px"]) - x), abs(float(r["y_px"]) - y)), i) for i, r in enumerate(rows)]
    nearest = min(far, default=(math.inf, 0))
    return rows[nearest[1]] if nearest[0] <= (cell["xmax"] - cell["xmin"]) / 2 else None


def agreement(human: Sequence[float], said: Sequence[float]) -> dict[str, Any]:
    """Pearson's r with its 95 % interval (Fisher), bias (mean of said - human, points) with its interval (t), and the 95 %
    limits of agreement (Bland and Altman 1986)."""
    difference = np.array(said) - np.array(human)
    n, sd = len(difference), float(difference.std(ddof=1))
    r = stats.pearsonr(human, said)
    bias, half = float(difference.mean()), float(stats.t.ppf(0.975, n - 1)) * sd / math.sqrt(n)
    return {
        "patients": n,
        "r": {"value": float(r.statistic), "ci95": [float(v) for v in r.confidence_interval()]},
        "bias, points": {"value": bias, "ci95": [bias - half, bias + half]},
        "limits of agreement, points": [bias - 1.96 * sd, bias + 1.96 * sd],
        "mean absolute difference, points": float(np.abs(difference).mean()),
    }


def draw(patients: Sequence[Patient], found: dict[str, Any], name: str, out: Path) -> None:
    """Scatter and Bland-Altman plot side by side."""
    human, said = ([percent(p.human) for p in patients], [percent(p.reported) for p in patients])
    with matplotlib.style.context(["default", LOOK]):
        figure = Figure((9, 4.2), layout="constrained")
        scatter, difference = figure.subplots(1, 2)
        _scatter(
            scatter, human, said, f"{name}: {found['patients']} patients not seen in training, r = {found['r']['value']:.3f}"
        )
        _bland_altman(difference, np.array(human), np.array(said), found)
        for suffix in ("svg", "png"):
            figure.savefig(out / f"patients.{suffix}", dpi=150, metadata={"Date": None} if suffix == "svg" else None)


def _scatter(axes: Axes, human: Sequence[float], said: Sequence[float], title: str) -> None:
    axes.plot([0, 100], [0, 100], "--", color=SOFT, linewidth=1)
    axes.plot(human, said, "o", color=ACCENT, alpha=0.8)
    axes.set(xlim=(-2, 102), ylim=(-2, 102), aspect="equal", xlabel="Blasts by the human, %", ylabel="Blasts reported, %")
    axes.set_title(title, fontsize=9, loc="left")


def _bland_altman(axes: Axes, human: np.ndarray[Any, Any], said: np.ndarray[Any, Any], found: dict[str, Any]) -> None:
    low, high = found["limits of agreement, points"]
    axes.axhspan(-3, 3, color=SOFT, alpha=0.12, linewidth=0)
    axes.plot((human + said) / 2, said - human, "o", color=ACCENT, alpha=0.8)
    for value, style in ((found["bias, points"]["value"], "-"), (low, "--"), (high, "--")):
        axes.axhline(value, color=SOFT, linestyle=style, linewidth=1)
        axes.annotate(
            f"{value:+.1f}", (1, value), xycoords=("axes fraction", "data"), ha="right", va="bottom", fontsize=8, color=SOFT
        )
    axes.set(xlim=(-2, 102), xlabel="Mean of both, %", ylabel="Reported - human, points")
    axes.set_title("Bias and 95 % limits of agreement; shaded: 3 points", fontsize=9, loc="left")


def table(patients: Sequence[Patient], results: dict[str, Any]) -> Iterator[str]:
    """The result in lines."""
    yield "| patient | labelled cells | human | typed cells | reported | labelled only |"
    yield "| --- | --- | --- | --- | --- | --- |"
    for p in patients:
        cells = (f"{percent(c):.1f} % ({c[0]} of {c[1]})" for c in (p.human, p.reported, p.labelled))
        human, reported, labelled = cells
        yield f"| {p.name} | {p.labelled_cells} | {human} | {p.found} | {reported} | {labelled} |"
    for name, found in results.items():
        r, bias = found["r"], found["bias, points"]
        yield f"{name}: {found['patients']} patients"
        yield f"  r {r['value']:.3f} (95 % {r['ci95'][0]:.3f} to {r['ci95'][1]:.3f})"
        yield f"  bias {bias['value']:+.1f} points (95 % {bias['ci95'][0]:+.1f} to {bias['ci95'][1]:+.1f})"
        low, high = found["limits of agreement, points"]
        yield f"  95 % of differences between {low:+.1f} and {high:+.1f} points"


def row_of(patient: Patient) -> dict[str, Any]:
    """Blasts, leukocytes and percent of a patient, flat."""
    row: dict[str, Any] = {"patient": patient.name}
    for name, count in (("human", patient.human), ("reported", patient.reported), ("labelled only", patient.labelled)):
        value = percent(count)
        row |= {f"{name} blasts": count[0], f"{name} leukocytes": count[1]}
        row[f"{name} %"] = None if math.isnan(value) else round(value, 1)
    return row | {"labelled cells": patient.labelled_cells, "typed cells": patient.found}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--compose", type=Path, required=True, help="the program that composes a patient's scan")
    parser.add_argument("--run", type=Path, required=True, help="training run, split by patient")
    parser.add_argument("--fold", type=int, nargs="+", default=[1])
    parser.add_argument("--model", default="", help="for a single fold; default: the fold's own")
    parser.add_argument("--decision", type=Path, help="thresholds chosen by folds.py; default: the model's")
    parser.add_argument("--cells", type=int, default=100, help="at most so many labelled cells a scan, a square number")
    parser.add_argument("--seed", type=int, default=0, help="of the lot by which cells are drawn")
    parser.add_argument("-o", "--out", type=Path, required=True)
    options = parser.parse_args()
    if options.model and len(options.fold) > 1:
        parser.error("--model goes with a single fold: of others it may have seen the patients")
    work = place(options)
    work.mkdir(parents=True, exist_ok=True)
    thresholds = json.loads(options.decision.read_text(encoding="utf-8"))["of_folds"] if options.decision else {}
    done: dict[Path, Path | None] = {}
    cards = []
    for fold in options.fold:
        folder = find_model(options.model or str(options.run / f"fold-{fold}" / "model"))
        cards.append(load_card(folder))
        scans = [compose(name, images, options) for name, images in patients_of(options.run, [fold]).items()]
        screen(scans, str(folder), thresholds.get(str(fold), 0.0), work)
        done |= {scan: result_of(scan, cards[-1].sha256, work / "results") for scan in scans}
    name = cards[0].name if len(cards) == 1 else f"{options.run.resolve().name}, {len(cards)} folds"
    failed = [scan.stem for scan, result in done.items() if result is None]
    patients = [compare(scan, result) for scan, result in done.items() if result is not None]
    usable = [p for p in patients if p.human[1] and p.reported[1] and p.labelled[1]]
    human = [percent(p.human) for p in usable]
    results = {
        "reported": agreement(human, [percent(p.reported) for p in usable]),
        "labelled only": agreement(human, [percent(p.labelled) for p in usable]),
    }
    draw(usable, results["reported"], name, options.out)
    told = {
        "model": name,
        "sha256": " ".join(card.sha256 for card in cards),
        "P(blast) of a blast": thresholds or "the model's",
        "labelled cells of a patient, at most": options.cells,
        "failed": failed,
        "agreement": results,
        "patients": [row_of(patient) for patient in patients],
    }
    (options.out / "patients.json").write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    print("\n".join(table(patients, results)))
    if failed:
        print(f"failed: {', '.join(failed)}; see {work / 'screening.log'}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
