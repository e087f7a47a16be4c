"""The whole way through one scan, with the default model, against a golden result."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tifffile
from conftest import StandIn
from numpy.typing import NDArray

from slidescreen.batch import identify
from slidescreen.classify import ClassifySettings, Judgement, load_classifier
from slidescreen.config import Settings
from slidescreen.demo import PaintedCell
from slidescreen.detect import find_cells
from slidescreen.errors import AuditError, ReadError
from slidescreen.model import DEFAULT_MODEL, find_model
from slidescreen.pipeline import screen_slide
from slidescreen.records import Area, RgbImage, SlideResult
from slidescreen.slide import open_slide

GOLDEN = Path(__file__).parent / "golden" / "painted_smear.json"


def screen(path: Path, classifier: object, settings: Settings | None = None, um_per_px: float | None = None) -> SlideResult:
    with open_slide(path) as slide:
        info = identify(slide, um_per_px)
        return screen_slide(slide, info, classifier, settings or Settings(), iter, lambda *_: None)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def result(scan: Path) -> SlideResult:
    return screen(scan, load_classifier(find_model(DEFAULT_MODEL), ClassifySettings("cpu", engine="torch")))


def golden(result: SlideResult) -> dict[str, object]:
    return {
        "cells": [
            [round(c.cell.centre.x), round(c.cell.centre.y), c.status, c.label, round(c.p_blast or 0, 2)] for c in result.cells
        ],
        "counts": {k: v for k, v in result.differential.counts.items() if v},
        "blast": [result.differential.blast.count, result.differential.blast.total],
        "atypical": [result.differential.atypical.count, result.differential.atypical.total],
    }


def test_golden_painted_scan(result: SlideResult) -> None:
    """To renew after a change that is meant: print json.dumps(golden(result)) into the file, and say why in the commit."""
    expected, found = json.loads(GOLDEN.read_text()), golden(result)
    assert found["counts"] == expected["counts"]
    assert found["blast"] == expected["blast"]
    assert found["atypical"] == expected["atypical"]
    assert len(result.cells) == len(expected["cells"])
    for a, b in zip(found["cells"], expected["cells"], strict=True):  # type: ignore[call-overload]
        assert a[2:4] == b[2:4]
        assert np.allclose(a[:2], b[:2], atol=4)
        assert a[4] == pytest.approx(b[4], abs=0.05)


def test_most_painted_cells_are_found_and_named(result: SlideResult, smear: tuple[RgbImage, list[PaintedCell]]) -> None:
    right = 0
    for painted in smear[1]:
        near = [c for c in result.cells if painted.box.contains(c.cell.centre)]
        assert near
        right += any(c.label == painted.label for c in near)
    assert right >= 0.7 * len(smear[1])


def test_provenance_is_complete(result: SlideResult) -> None:
    assert result.model.name == DEFAULT_MODEL
    assert result.slide.scale.um_per_px == pytest.approx(0.0725, rel=1e-4)
    assert set(result.timings_s) == {"area", "search", "find", "cut", "classify", "total"}
    assert all(v >= 0 for v in result.timings_s.values())
    assert set(result.waiting_s) == {"search", "find", "cut", "classify"}
    assert all(v >= 0 for v in result.waiting_s.values())
    assert result.device == "cpu, torch float32"
    assert result.settings["differential"]["blast_threshold"] == 0.0
    assert result.differential.blast.threshold == 0.4  # of the default model
    assert result.differential.atypical.threshold == 0.5


def test_a_scan_without_cells_has_no_percentages(empty_scan: Path) -> None:
    result = screen(empty_scan, StandIn())
    assert result.cells == ()
    assert result.differential.blast.fraction is None
    assert any("nothing was screened" in w for w in result.warnings)


def test_a_scale_that_contradicts_the_file_is_warned_of(scan: Path) -> None:
    result = screen(scan, StandIn(), um_per_px=0.08)
    assert result.slide.scale.source == "--um-per-px"
    assert any("the file states 0.0725 um/px" in w for w in result.warnings)


def test_what_may_be_no_smear_is_warned_of_first(scan: Path) -> None:
    class Refuses(StandIn):
        def judge(self, patches: NDArray[np.uint8]) -> Judgement:
            return Judgement(self.probabilities(patches), np.ones(len(patches), np.float32))

    assert not any("no blood smear" in w for w in screen(scan, StandIn()).warnings)
    assert screen(scan, Refuses()).warnings[0].startswith("This may be no blood smear")


def test_a_precision_that_the_network_does_not_bear_is_warned_of(scan: Path) -> None:
    classifier = StandIn()
    assert "Typed in int8 all the same." not in screen(scan, classifier).warnings
    classifier.caution = "Typed in int8 all the same."
    assert "Typed in int8 all the same." in screen(scan, classifier).warnings


def test_batch_size_does_not_change_the_result(scan: Path) -> None:
    one, many = (screen(scan, StandIn(n)) for n in (1, 64))
    assert [(c.cell, c.status, c.label, c.p_blast) for c in one.cells] == [
        (c.cell, c.status, c.label, c.p_blast) for c in many.cells
    ]


def test_an_error_in_the_classifier_ends_the_slide(scan: Path) -> None:
    class Broken(StandIn):
        def probabilities(self, patches: object) -> object:  # type: ignore[override]
            raise RuntimeError("no more")

    with pytest.raises(RuntimeError, match="no more"):
        screen(scan, Broken())


def test_a_scan_whose_fine_level_is_lost_fails(tmp_path: Path, smear: tuple[RgbImage, list[PaintedCell]]) -> None:
    """The low level can be read, the cells cannot: the slide fails rather than losing its cells in silence."""
    path = tmp_path / "lost.tif"
    with tifffile.TiffWriter(path) as tiff:
        options = {"tile": (256, 256), "photometric": "rgb", "compression": "jpeg", "resolutionunit": 3}
        tiff.write(smear[0], resolution=(1e4 / 0.0725,) * 2, **options)
        tiff.write(smear[0][::4, ::4], subfiletype=1, resolution=(1e4 / 0.29,) * 2, **options)
    with tifffile.TiffFile(path) as tiff:
        page = tiff.pages[0]
        spans = list(zip(page.dataoffsets, page.databytecounts, strict=True))  # type: ignore[union-attr]
    with path.open("r+b") as file:
        for offset, length in spans:
            file.seek(offset)
            file.write(bytes(length))
    settings = replace(Settings())
    with pytest.raises(ReadError, match="cannot be decoded"):
        screen(path, StandIn(), settings)


def test_every_body_is_accounted_for(result: SlideResult) -> None:
    audit = result.audit
    assert audit.bodies == audit.duplicates + audit.outside + audit.cells
    assert audit.cells == len(result.cells) == result.cell_counts["found"]
    assert sum(result.cell_counts.values()) == 2 * audit.cells
    classes = sum(result.area_mm2[kind.key] for kind in Area)
    assert classes == pytest.approx(3072 * 2048 * result.slide.scale.um_per_px**2 * 1e-6, rel=1e-6)
    assert result.area_mm2["screened"] + result.area_mm2["not_screened"] == pytest.approx(result.area_mm2["scanned"])


def test_an_account_that_does_not_close_fails_the_slide(scan: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def lossy(*arguments: object) -> object:
        cells = list(find_cells(*arguments))  # type: ignore[arg-type]
        return iter(cells[1:])

    monkeypatch.setattr("slidescreen.pipeline.find_cells", lossy)
    with pytest.raises(AuditError, match="the cells do not add up"):
        screen(scan, StandIn())


def test_unreadable_area_is_counted_once(tmp_path: Path, smear: tuple[RgbImage, list[PaintedCell]]) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(
        path, smear[0], tile=(256, 256), photometric="rgb", compression="jpeg", resolution=(1e4 / 0.0725,) * 2, resolutionunit=3
    )
    with tifffile.TiffFile(path) as tiff:
        page = tiff.pages[0]
        offset, length = page.dataoffsets[30], page.databytecounts[30]  # type: ignore[union-attr]
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(bytes(length))
    result = screen(path, StandIn())
    assert result.area_mm2["unreadable"] == pytest.approx(256 * 256 * 0.0725**2 * 1e-6, rel=0.05)
