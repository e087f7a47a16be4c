"""A slide whose classifier refuses some cells and doubts others, from screening to the report and back from the folder."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import StandIn
from numpy.typing import NDArray

from slidescreen.batch import RunOptions, run_slide
from slidescreen.classify import Judgement
from slidescreen.config import Settings
from slidescreen.differential import NO_LEUKOCYTE, TURNS_DISAGREE
from slidescreen.explain import top_blasts
from slidescreen.explain_cells import cells_of_result
from slidescreen.model import RejectionCard
from slidescreen.stored import load_result


class Doubter(StandIn):
    """Refuses every third cell and doubts every fifth; all are sure blasts."""

    def __init__(self) -> None:
        super().__init__()
        self.card = replace(self.card, rejection=RejectionCard("ab" * 32, 1.0), temperature=1.5)
        self.asked = 0

    def judge(self, patches: NDArray[np.uint8]) -> Judgement:
        numbers = np.arange(self.asked, self.asked + len(patches))
        self.asked += len(patches)
        p = np.full((len(patches), 15), 0.1 / 14, np.float32)
        p[:, self.card.classes.index("MYO")] = 0.9
        outlier = np.where(numbers % 3 == 0, 0.5, -0.5).astype(np.float32)
        return Judgement(p, outlier, np.where(numbers % 5 == 0, 0.25, 1).astype(np.float32))


@pytest.fixture(scope="module")
def folder(scan: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("judged")
    return run_slide(scan, Doubter(), Settings(), RunOptions(out), lambda *_: None).folder  # type: ignore[arg-type]


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "cells.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_refused_and_doubted_cells_are_told_with_reasons_and_not_counted(folder: Path) -> None:
    told = json.loads((folder / "summary.json").read_text())
    cells = rows(folder)
    refused = [r for r in cells if r["reason"] == NO_LEUKOCYTE]
    doubted = [r for r in cells if r["reason"] == TURNS_DISAGREE]
    typed = [r for r in cells if r["status"] == "typed"]
    assert len(refused) >= 3
    assert doubted
    assert told["rejected_because"][NO_LEUKOCYTE] == len(refused)
    assert told["unsure_because"] == {TURNS_DISAGREE: len(doubted)}
    assert told["leukocytes"] == told["blast"]["count"] == len(typed)
    assert sum(told["cells"][k] for k in ("typed", "unsure", "edge", "rejected")) == told["audit"]["cells"] == len(cells)
    assert (told["model"]["rejects"], told["model"]["temperature"]) == (True, 1.5)
    for row in refused:
        assert (row["status"], row["label"], float(row["p_blast"])) == ("rejected", "", pytest.approx(0.9, abs=0.01))
        assert float(row["outlier"]) == 0.5
    assert [w for w in told["warnings"] if "P(blast)" in w and "not counted" in w] == [
        f"Cells that were not counted, refused or unsure, and reach P(blast) 0.4: {len(refused) + len(doubted)}. "
        "Look at them, they may be blasts."
    ]
    assert {r["label"] for r in doubted} == {"MYO"}
    assert {float(r["agreement"]) for r in doubted} == {0.25}


def test_it_comes_back_from_the_folder_as_it_was(folder: Path) -> None:
    result = load_result(folder)
    told = json.loads((folder / "summary.json").read_text())
    assert result.refusals == told["rejected_because"]
    assert result.doubts == told["unsure_because"]
    for cell, row in zip(result.cells, rows(folder), strict=True):
        assert (cell.status, cell.reason, cell.label) == (row["status"], row["reason"], row["label"])
        assert (cell.cell.refusal != "") == (cell.status == "rejected" and cell.probabilities is None)
        assert cell.cell.edge == (cell.status == "edge")
        assert (cell.outlier is None) == (row["outlier"] == "")
    assert result.model.rejects


def test_the_likeliest_blasts_are_never_refused_cells(folder: Path) -> None:
    result = load_result(folder)
    top = [result.cells[row] for row in top_blasts(result.cells, 48)]
    assert top
    assert {c.status for c in top} == {"typed", "unsure"}
    shown = cells_of_result(folder, "top", result.model.identity)
    assert {number for number, _ in shown} == {c.id for c in top}


def test_the_report_tells_them(folder: Path) -> None:
    html = (folder / "report.html").read_text()
    assert NO_LEUKOCYTE in html
    assert TURNS_DISAGREE in html
    assert "The model refuses what looks like no leukocyte" in html
    assert "temperature 1.5" in html


def test_a_model_that_cannot_tell_says_so(scan: Path, tmp_path: Path) -> None:
    done = run_slide(scan, StandIn(), Settings(), RunOptions(tmp_path), lambda *_: None)  # type: ignore[arg-type]
    assert "This model cannot tell what is no leukocyte" in (done.folder / "report.html").read_text()
    told = json.loads((done.folder / "summary.json").read_text())
    assert told["model"]["rejects"] is False
    assert {r["outlier"] for r in rows(done.folder)} == {""}


def test_a_card_that_changes_makes_a_result_stale(scan: Path, tmp_path: Path) -> None:
    options = RunOptions(tmp_path)
    first = run_slide(scan, StandIn(), Settings(), options, lambda *_: None)  # type: ignore[arg-type]
    assert not first.skipped
    again = run_slide(scan, StandIn(), Settings(), options, lambda *_: None)  # type: ignore[arg-type]
    assert again.skipped
    warmer = StandIn()
    warmer.card = replace(warmer.card, temperature=1.2)
    assert not run_slide(scan, warmer, Settings(), options, lambda *_: None).skipped  # type: ignore[arg-type]
    turned = replace(Settings(), classify=replace(Settings().classify, tta=8))
    assert turned.result_settings() != Settings().result_settings()
