"""Made-up predictions on made-up images, as a training run leaves them: Dirichlet probabilities, seeded."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from slidescreen.evaluation.published import TABLE_1
from slidescreen.taxonomy import ATYPICAL, BLAST, CODES

PUBLISHED_COUNTS = {code: line.images for code, line in TABLE_1.items()}
SMALL_COUNTS = {"NGS": 160, "LYT": 80, "MON": 50, "MYO": 90, "MOB": 20, "PMO": 15, "EBO": 20, "EOS": 12}
Row = dict[str, str]


def rows(counts: Mapping[str, int] = SMALL_COUNTS, *, folds: int = 5, by_patient: bool = False, seed: int = 0) -> list[Row]:
    """One row per image. Every sixth image was shown to a human again; the images of source "alone" have no patient."""
    rng = np.random.default_rng(seed)
    gold = rng.permutation(np.repeat([CODES.index(code) for code in counts], list(counts.values())))
    n = len(gold)
    alpha = np.full((n, 15), 0.05)
    alpha[np.arange(n), gold] += rng.gamma(1.5, 1.5, n)
    p = np.round(rng.gamma(alpha) + 1e-9, 12)
    p /= p.sum(axis=1, keepdims=True)
    patient = rng.integers(0, 30, n)
    fold = patient % folds if by_patient else rng.integers(0, folds, n)
    human = np.where(rng.random((n, 2)) < 0.9, gold[:, None], rng.choice(gold, (n, 2)))
    made = []
    for i in range(n):
        known = patient[i] < 25
        shown = i % 6 == 0
        sums = {
            f"p_{k}": sum(q for q, code in zip(p[i], CODES, strict=True) if code in m)
            for k, m in (("blast", BLAST), ("atypical", ATYPICAL))
        }
        made.append(
            {
                "file": f"{CODES[gold[i]]}/image_{i:05}.tiff",
                "gold": CODES[gold[i]],
                "fold": str(fold[i] + 1),
                "source": ("munich", "basel")[patient[i] % 2] if known else "alone",
                "patient": f"P{patient[i]:02}" if known else "",
                "reannotation_1": CODES[human[i, 0]] if shown else "",
                "reannotation_2": CODES[human[i, 1]] if shown and i % 12 == 0 else "",
                "label": CODES[int(p[i].argmax())],
                **{f"p_{code}": f"{q:.6f}" for code, q in zip(CODES, p[i], strict=True)},
                **{name: f"{q:.6f}" for name, q in sums.items()},
            }
        )
    return made


def write_csv(path: Path, made: list[Row]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(made[0]))
        writer.writeheader()
        writer.writerows(made)
    return path


def write_run(folder: Path, made: list[Row], **run: object) -> Path:
    """A run folder: fold-K/predictions.csv and run.json with `run` in it."""
    for fold in sorted({row["fold"] for row in made}):
        write_csv(folder / f"fold-{fold}" / "predictions.csv", [row for row in made if row["fold"] == fold])
    (folder / "run.json").write_text(json.dumps({"name": "made up", "split": "stratified", "folds": 5} | run))
    return folder
