"""The page of a batch, its tables, what stands out, agreement with the truth; and pages drawn anew from stored results."""

import csv
import io
import json
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from conftest import StandIn

from slidescreen.batch import RunOptions, run_slide
from slidescreen.batch.output import open_output
from slidescreen.cohort import build_cohort, rebuild_reports
from slidescreen.cohort.agreement import Pair, agreements, roc
from slidescreen.cohort.outliers import find_outliers
from slidescreen.cohort.plots import axis, distributions, ticks
from slidescreen.cohort.rows import Cohort, SlideRow, gather, worst_first
from slidescreen.config import Settings
from slidescreen.errors import ResultError
from slidescreen.records import Fraction
from slidescreen.store import summary
from slidescreen.stored import load_patches, load_result
from slidescreen.taxonomy import CODES

EVIL = "<script>alert(1)</script>\"'&"


@pytest.fixture(scope="module")
def stored(scan: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("stored")
    return run_slide(scan, StandIn(), Settings(), RunOptions(out), lambda *_: None).folder


def fraction(count: int, total: int, low: float, high: float) -> Fraction:
    return Fraction(count, total, 0.5, count / total if total else None, (low, high) if total else None, 0.1)


def slide(name: str, **changes: object) -> SlideRow:
    row = SlideRow(
        id=f"{name}-1",
        path=f"/scans/{name}.svs",
        status="ok",
        leukocytes=500,
        blast=fraction(10, 500, 0.01, 0.03),
        atypical=fraction(20, 500, 0.02, 0.06),
        counts=dict.fromkeys(CODES, 0),
        cells={"found": 600, "typed": 500, "unsure": 1, "edge": 2, "rejected": 97},
        screened_mm2=20.0,
        um_per_px=0.0725,
        focus=0.6,
        stain=0.25,
        tint=0.8,
        warnings=(),
        model="m",
        version="1",
        created="2026-01-01T00:00:00+00:00",
        columns={},
    )
    return replace(row, **changes)  # type: ignore[arg-type]


# --- stored results come back


def test_a_stored_result_comes_back_as_it_was(stored: Path) -> None:
    result = load_result(stored)
    kept = json.loads((stored / "summary.json").read_text())
    assert json.loads(json.dumps(summary(result))) == kept
    assert len(result.cells) == kept["cells"]["found"] > 0
    typed = next(c for c in result.cells if c.status == "typed")
    assert typed.probabilities is not None
    assert float(typed.probabilities.sum()) == pytest.approx(1, abs=1e-4)
    assert len(typed.cell.outline) > 3
    assert all(typed.cell.box.x - 2 <= p.x <= typed.cell.box.right + 2 for p in typed.cell.outline)
    assert result.overview.screened.shape == result.overview.area.shape == result.overview.image.shape[:2]
    assert result.overview.screened.any()
    assert load_patches(stored).shape == (len(result.cells), 400, 400, 3)


def test_pages_are_drawn_anew_without_the_scan(stored: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(stored, tmp_path / stored.name))
    path = copy / "summary.json"
    path.write_text(path.read_text().replace("smear.tif", "sweep.tif"))
    before = (copy / "report.html").read_text()
    (copy / "report.html").write_text("an old page")
    assert rebuild_reports(open_output(str(tmp_path))) == (1, 0)
    after = (copy / "report.html").read_text()

    assert after == before.replace("smear.tif", "sweep.tif")
    shutil.rmtree(copy / "patches.zarr")
    assert rebuild_reports(open_output(str(tmp_path))) == (0, 1)
    assert (copy / "report.html").read_text() == after


def test_a_result_that_cannot_be_read_back_says_so(stored: Path, tmp_path: Path) -> None:
    for name in ("summary.json", "cells.parquet", "overview.jpg", "areas.png", "cells.geojson"):
        copy = Path(shutil.copytree(stored, tmp_path / name, ignore=shutil.ignore_patterns("patches.zarr")))
        (copy / name).write_bytes(b"")
        with pytest.raises(ResultError, match="screen the slide again"):
            load_result(copy)
    old = tmp_path / "summary.json" / "summary.json"
    old.write_text(json.dumps(json.loads((stored / "summary.json").read_text()) | {"schema": 1}))
    with pytest.raises(ResultError, match="another version"):
        load_result(old.parent)


# --- rows


def test_worst_first_means_what_is_sure() -> None:
    few = slide("few", leukocytes=3, blast=fraction(1, 3, 0.008, 0.906))
    many = slide("many", blast=fraction(100, 500, 0.166, 0.238))
    none = slide("none", leukocytes=0, blast=fraction(0, 0, 0, 0), atypical=fraction(0, 0, 0, 0))
    assert [r.file for r in sorted([none, few, many], key=worst_first)] == ["many.svs", "few.svs", "none.svs"]


def test_outliers_by_median_and_only_in_real_batches() -> None:
    batch = [slide(str(i), focus=0.6 + 0.01 * (i % 3), screened_mm2=20 + 0.1 * i) for i in range(10)]
    assert find_outliers(batch) == {}
    odd = [
        slide("blurred", focus=0.2),
        slide("coarse", um_per_px=0.145),
        slide("dense", leukocytes=8000),
        slide("blank", focus=None),
    ]
    found = find_outliers([*batch, *odd])
    assert {name: [o.measure.key for o in each] for name, each in found.items()} == {
        "blurred-1": ["focus"],
        "coarse-1": ["scale"],
        "dense-1": ["density"],
    }
    assert found["blurred-1"][0].said == "Focus low: 0.2, median of the batch 0.6"
    assert find_outliers([*batch[:3], *odd]) == {}  # too few to tell


# --- agreement


def pair(truth: float, found: float) -> Pair:
    return Pair("a", "a", truth, found, found, found)


def test_roc_counts_ties_half() -> None:
    assert roc([pair(0.5, 0.9), pair(0.0, 0.1)]).auc == 1.0  # type: ignore[union-attr]
    mixed = roc([pair(0.5, 0.3), pair(0.2, 0.1), pair(0.1, 0.3), pair(0.0, 0.0)])
    assert mixed is not None
    assert mixed.auc == pytest.approx((0.5 + 1 + 0 + 1) / 4)
    assert mixed.points == ((0.0, 0.0), (0.5, 0.5), (0.5, 1.0), (1.0, 1.0))
    assert roc([pair(0.5, 0.9)]) is None


def test_agreement_of_fractions_with_truth() -> None:
    rows = [
        slide(str(i), blast=fraction(10 * i, 100, 0, 1), columns={"truth_blast_fraction": str(0.1 * i - 0.02 * (i % 2))})
        for i in range(5)
    ]
    empty = slide("none", blast=fraction(0, 0, 0, 0), columns={"truth_blast_fraction": "0.5"})
    (found,) = agreements([*rows, empty, slide("untold")])
    assert (found.column, len(found.pairs), found.without) == ("truth_blast_fraction", 5, 1)
    differences = np.array([0, 0.02, 0, 0.02, 0])
    assert found.bias == pytest.approx(differences.mean())
    assert found.limits[1] - found.bias == pytest.approx(1.96 * differences.std(ddof=1))
    assert found.roc is not None
    assert (found.roc.positives, found.roc.negatives, found.roc.auc) == (3, 2, 1.0)
    assert agreements(rows[:2]) == []


def test_axes_are_round() -> None:
    assert axis(0, 83) == (0, 100, 50) or axis(0, 83)[2] in (20, 50)
    assert axis(5, 5)[0] < axis(5, 5)[1]
    assert [t.label for t in ticks(0, 0.4, 0.2)] == ["0.0", "0.2", "0.4"]
    histogram = next(
        h for h in distributions(Cohort((slide("a"), slide("b", leukocytes=900)), (), 0, 0)) if "counted" in h.title
    )
    assert sum(int(b.said.split()[0]) for b in histogram.bars) == 2


# --- the page


@pytest.fixture(scope="module")
def batch(stored: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten slides, one of them with a name meant to do harm, one replaced, one failed."""
    out = tmp_path_factory.mktemp("batch")
    content = json.loads((stored / "summary.json").read_text())
    (out / "logs").mkdir()
    for i in range(10):
        name = f"s{i}-0000000{i}"
        path = f"/scans/{EVIL}.svs" if i == 0 else f"/scans/s{i}.svs"
        blasts = {
            "count": i,
            "of": 100,
            "fraction": i / 100,
            "ci95": [i / 200, i / 50],
            "threshold": 0.5,
            "mean_probability": 0.1,
        }
        changes = {
            "slide": content["slide"] | {"id": name, "path": path},
            "blast": blasts,
            "warnings": [EVIL] if i == 1 else [],
        }
        (out / name).mkdir()
        (out / name / "summary.json").write_text(json.dumps(content | changes))
        (out / name / "report.html").touch()
        entry = {"path": path, "columns": {"patient": f"P{i}", "truth_blast_fraction": str(i / 100), "path": EVIL}}
        (out / "logs" / f"{name}.json").write_text(json.dumps(entry | ({"superseded_by": "s2-00000002"} if i == 3 else {})))
    failure = {"path": "/scans/b.svs", "stage": "open", "error_class": "OpenError", "message": f"/scans/b.svs: {EVIL}"}
    failed = {"path": "/scans/b.svs", "failure": failure | {"next_step": "mend it", "trace": "", "transient": False}}
    (out / "logs" / "b-1.json").write_text(json.dumps(failed | {"columns": {"patient": "P11"}}))
    build_cohort(open_output(str(out)))
    return out


def test_the_page_holds_every_slide_once_and_runs_no_strangers(batch: Path) -> None:
    page = (batch / "cohort.html").read_text()
    assert re.findall(r'<tr id="s-s(\d)-', page) == ["9", "8", "7", "6", "5", "4", "2", "1", "0"]
    assert EVIL not in page
    assert "&lt;script&gt;" in page
    assert not re.search(r'(src|href)="(?!#|data:|[\w%.-]+/report\.html|logs/)', page)
    assert "1 older left out" in page
    assert "mend it" in page
    assert "needs review by a morphologist" in page
    assert "percentage points" in page


def test_the_tables_hold_the_numbers_of_the_page(batch: Path) -> None:
    rows = list(csv.DictReader(io.StringIO((batch / "cohort.csv").read_text())))
    assert [r["slide_id"] for r in rows] == [f"s{i}-0000000{i}" for i in (9, 8, 7, 6, 5, 4, 2, 1, 0)] + ["b-1"]
    assert rows[0]["blast_fraction"] == "0.09"
    assert rows[0]["patient"] == "P9"
    assert rows[0]["input_path"] == EVIL
    assert (rows[-1]["status"], rows[-1]["blast_fraction"], rows[-1]["next_step"]) == ("failed", "", "mend it")
    table = pq.read_table(batch / "cohort.parquet").to_pylist()
    assert [t["slide_id"] for t in table] == [r["slide_id"] for r in rows]
    assert table[0]["blast_fraction"] == 0.09
    assert table[-1]["blast_fraction"] is None


def test_results_of_another_schema_are_counted_not_compared(batch: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(batch, tmp_path / "copy"))
    path = copy / "s9-00000009" / "summary.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"schema": 1}))
    assert gather(open_output(str(copy))).outdated == 1
    build_cohort(open_output(str(copy)))
    assert "1 of another version left out" in (copy / "cohort.html").read_text()


def test_sorting_and_filtering_in_a_browser(batch: Path, tmp_path: Path) -> None:
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no Chromium here")
    script = (
        "<script>document.querySelector('#slides thead button').click();"
        "const f = document.getElementById('f-blast'); f.value = 4; f.dispatchEvent(new Event('input'));</script></body>"
    )
    page = tmp_path / "page.html"
    page.write_text((batch / "cohort.html").read_text().replace("</body>", script))
    flags = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    flags += " --disable-component-update --disable-sync --virtual-time-budget=3000"
    done = subprocess.run(
        [browser, *flags.split(), f"--user-data-dir={tmp_path}", "--dump-dom", page.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
    )
    shown = re.findall(r'<tr id="s-s(\d)-[^>]*?(hidden="")?>', done.stdout)
    assert [n for n, hidden in shown if not hidden] == ["4", "5", "6", "7", "8", "9"]
    assert "6 of 9 slides" in done.stdout
