"""What looking at a cell in eight orientations gains and costs, and what their disagreement tells."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from slidescreen.classify import softmax
from slidescreen.training.classifier.judged import measure
from slidescreen.training.classifier.material import Material, chosen
from slidescreen.training.classifier.outputs import Looks, cut, named
from slidescreen.training.classifier.tables import Table, number

AGREEMENTS = (0.5, 0.75, 1.0)


@dataclass(frozen=True, slots=True)
class Turned:
    """Tables, and by how much balanced accuracy rises."""

    tables: tuple[Table, ...]
    balanced_gain: float


def measure_turns(
    looks: Looks, material: Material, rows: NDArray[np.int64], temperature: float, classes: Sequence[str]
) -> Turned:
    """Look at some unseen images, `rows` of them, in all eight orientations; 1 and 8 are compared on the same images."""
    images, labels = [material.images[i] for i in rows.tolist()], material.labels[rows]
    names = named(images)
    began = time.monotonic()
    turned = [looks.at("turned", names, cut(images), k).logits for k in range(1, 8)]
    seconds = time.monotonic() - began
    upright = chosen(material.unseen.outputs, rows).logits
    every = [softmax(logits / np.float32(temperature)) for logits in (upright, *turned)]
    mean = np.asarray(np.mean(every, axis=0), np.float32)
    one, eight = (measure(images, labels, p, classes) for p in (every[0], mean))
    lines = [
        (f"{n}", number(m.accuracy), *(number(v[0], 3, v[1]) for v in (m.balanced, m.blast, m.atypical)))
        for n, m in ((1, one), (8, eight))
    ]
    columns = ("orientations", "accuracy", "balanced accuracy", "blast AUC", "atypical AUC")
    note = f"{len(images)} unseen images. Eight cost eight times the network's time."
    log_s = f" The seven more took {1000 * seconds / 7 / len(images):.0f} ms an image each." if seconds > 1 else ""
    gain = Table("Eight orientations (`--tta 8`)", note + log_s, columns, tuple(lines))
    return Turned((gain, _agreement(every, mean, labels)), eight.balanced[0] - one.balanced[0])


def _agreement(every: Sequence[NDArray[np.float32]], mean: NDArray[np.float32], labels: NDArray[np.int64]) -> Table:
    best = mean.argmax(1)
    agreement = np.mean([p.argmax(1) == best for p in every], axis=0)
    rows = []
    for limit in AGREEMENTS:
        unsure = agreement < limit
        wrong = [f"{100 * (best != labels)[part].mean():.1f}" if part.any() else "\N{EN DASH}" for part in (unsure, ~unsure)]
        rows.append((f"{limit:g}", f"{100 * unsure.mean():.1f}", *wrong))
    columns = ("agreement below", "unsure, %", "wrong among unsure, %", "wrong among the others, %")
    note = "Agreement: the share of the orientations whose best class is that of their average."
    return Table("Disagreement over orientations", note, columns, tuple(rows))
