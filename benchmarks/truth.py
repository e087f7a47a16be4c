"""A stored result beside the truth of a composed or painted scan.

    python benchmarks/truth.py RESULT_FOLDER TRUTH.json

TRUTH.json: {"um_per_px", "width", "height", "cells": [{"label", "xmin", "ymin", "xmax", "ymax"}]}, level-0 px; label WBC
where the class is unknown, - where the cell is no leukocyte. A cell is found when an accepted one has its centre in its box.
"""

from __future__ import annotations

import argparse
import csv
import json
from collections import Counter
from pathlib import Path

from slidescreen.taxonomy import ATYPICAL, BLAST, NOT_LEUKOCYTE


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("result", type=Path)
    parser.add_argument("truth", type=Path)
    args = parser.parse_args()
    truth = json.loads(args.truth.read_text())["cells"]
    with (args.result / "cells.csv").open(newline="") as file:
        found = [row for row in csv.DictReader(file) if row["status"] != "rejected"]
    pairs, used = [], set()
    for cell in truth:
        middle = ((cell["xmin"] + cell["xmax"]) / 2, (cell["ymin"] + cell["ymax"]) / 2)
        inside = [
            (abs(float(r["x_px"]) - middle[0]) + abs(float(r["y_px"]) - middle[1]), i)
            for i, r in enumerate(found)
            if i not in used
            and cell["xmin"] <= float(r["x_px"]) <= cell["xmax"]
            and cell["ymin"] <= float(r["y_px"]) <= cell["ymax"]
        ]
        if inside:
            index = min(inside)[1]
            used.add(index)
            pairs.append((cell["label"], found[index]))
    print(f"cells in the truth {len(truth)}, accepted {len(found)}, found {len(pairs)}")
    print(f"recall {len(pairs) / len(truth):.3f}; accepted cells that the truth lists {len(pairs) / len(found):.3f}")
    named = [(label, row) for label, row in pairs if label not in ("WBC", "-") and row["status"] == "typed"]
    if named:
        right = sum(label == row["label"] for label, row in named)
        print(f"labels: {right} of {len(named)} as in the truth ({100 * right / len(named):.0f} %)")
        leukocytes = [label for label, _ in named if label not in NOT_LEUKOCYTE]
        typed = [row for _, row in named if row["label"] not in NOT_LEUKOCYTE]
        blasts = share([float(r["p_blast"]) >= 0.5 for r in typed])
        print(f"blasts among them: truth {share([x in BLAST for x in leukocytes])}, here {blasts}")
        print(
            f"atypical among them: truth {share([x in ATYPICAL for x, _ in named if x != 'KSC'])}, "
            f"here {share([float(r['p_atypical']) >= 0.5 for _, r in named if r['label'] != 'KSC'])}"
        )
        for (a, b), n in Counter((label, row["label"]) for label, row in named).most_common(20):
            print(f"  {n:4} {a} -> {b}")


def share(flags: list[bool]) -> str:
    """How many of how many, in percent."""
    return f"{sum(flags)} of {len(flags)} ({100 * sum(flags) / len(flags):.1f} %)" if flags else "none"


if __name__ == "__main__":
    main()
