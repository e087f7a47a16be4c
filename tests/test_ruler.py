"""The scale by red cells: measured on painted smears of any scale, silent where there are none, and heeded by the pipeline."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from smears import GROUND, monolayer, write_rgba

from slidescreen.cli.options import wanted_scale
from slidescreen.demo import paint_smear, write_pyramid
from slidescreen.errors import ScaleError, UsageError
from slidescreen.geometry import Size
from slidescreen.records import RulerReading, Scale
from slidescreen.ruler import _middle, measure_scale
from slidescreen.scale import check_scale, settle_scale
from slidescreen.slide import StatedScale, open_slide

PATH = Path("in/a.svs")
READING = RulerReading(0.0725, 0.067, 0.078, 300)


def reading_of(path: Path) -> RulerReading | None:
    with open_slide(path) as slide:
        return measure_scale(slide)


@pytest.mark.parametrize("um_per_px", [0.08, 0.15, 0.5])
def test_painted_smears_are_measured_within_12_percent(tmp_path: Path, um_per_px: float) -> None:
    side = round(260 / um_per_px)
    image = paint_smear(Size(side, side * 3 // 4), um_per_px, leukocytes={"NGS": 4, "MYO": 4}, seed=2)[0]
    write_pyramid(tmp_path / "smear.tif", image, None)
    reading = reading_of(tmp_path / "smear.tif")
    assert reading is not None
    assert reading.um_per_px == pytest.approx(um_per_px, rel=0.12)
    assert reading.low < reading.um_per_px < reading.high
    assert reading.cells >= 30


def test_a_scan_without_pyramid_is_measured_too(tmp_path: Path) -> None:
    write_rgba(tmp_path / "flat.tif", monolayer(1400, 1100, 8), None)
    reading = reading_of(tmp_path / "flat.tif")
    assert reading is not None
    assert reading.um_per_px == pytest.approx(0.25, rel=0.12)


def test_nothing_is_measured_where_no_red_cells_are(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    specks = np.full((1000, 1200, 3), GROUND, np.float32).astype(np.uint8)
    for x, y in rng.integers(0, 1000, (400, 2)).tolist():
        cv2.circle(specks, (x, y), int(rng.integers(1, 5)), (90, 40, 120), -1, cv2.LINE_AA)
    images = {
        "black": np.zeros((600, 800, 3), np.uint8),
        "white": np.full((600, 800, 3), 255, np.uint8),
        "noise": rng.normal(230, 2, (600, 800, 3)).astype(np.uint8),
        "narrow": np.full((3000, 1, 3), 200, np.uint8),
        "precipitate": specks,
    }
    for name, image in images.items():
        write_pyramid(tmp_path / f"{name}.tif", image, 0.25)
        assert reading_of(tmp_path / f"{name}.tif") is None, name


@pytest.mark.parametrize("um_per_px", [0.0725, 0.06, 0.09])
def test_agreement_verifies(um_per_px: float) -> None:
    check = check_scale(PATH, Scale(um_per_px, "tag"), READING, trusted=False, estimated=False)
    assert (check.status, check.reading) == ("verified", READING)


@pytest.mark.parametrize(
    ("factor", "cause"),
    [(0.1, "10 times too small"), (0.5, "2 times too small"), (2, "2 times too large"), (10, "10 times too")],
)
def test_wrong_tags_fail_with_the_likely_cause(factor: float, cause: str) -> None:
    stated = StatedScale(0.0725 * factor, 0.0725 * factor, "tag")
    with pytest.raises(ScaleError, match=cause) as caught:
        check_scale(PATH, settle_scale(PATH, stated, None, lambda: READING), READING, trusted=False, estimated=False)
    assert "--um-per-px 0.0725" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_users_word_overrides() -> None:
    check = check_scale(PATH, Scale(0.145, "--um-per-px"), READING, trusted=True, estimated=False)
    assert check.status == "overridden"


def test_too_few_cells_never_fail_a_slide() -> None:
    assert check_scale(PATH, Scale(0.9, "tag"), None, trusted=False, estimated=False).status == "not_measurable"


def test_without_metadata_the_estimate_is_proposed_and_not_used() -> None:
    with pytest.raises(ScaleError, match=r"states no um/px.*300 red cells say 0\.0725.*--um-per-px auto"):
        settle_scale(PATH, None, None, lambda: READING)
    with pytest.raises(ScaleError, match="states no um/px"):
        settle_scale(PATH, None, None, lambda: None)


def test_auto_uses_the_estimate() -> None:
    scale = settle_scale(PATH, None, "auto", lambda: READING)
    assert (scale.um_per_px, scale.source) == (0.0725, "estimated from 300 red cells")
    assert check_scale(PATH, scale, READING, trusted=True, estimated=True).status == "estimated"
    with pytest.raises(ScaleError, match="too few isolated red cells"):
        settle_scale(PATH, None, "auto", lambda: None)


def test_the_ruler_is_asked_only_where_needed() -> None:
    def never() -> RulerReading | None:
        raise AssertionError("measured")

    assert settle_scale(PATH, StatedScale(0.1, 0.1, "tag"), None, never) == Scale(0.1, "tag")
    assert settle_scale(PATH, None, 0.2, never).um_per_px == 0.2


@pytest.mark.parametrize(("text", "wanted"), [("", None), ("auto", "auto"), ("0.0725", 0.0725)])
def test_option(text: str, wanted: object) -> None:
    assert wanted_scale(text) == wanted


def test_option_that_is_no_number() -> None:
    with pytest.raises(UsageError, match="--um-per-px fine: must be a number"):
        wanted_scale("fine")


@given(st.lists(st.floats(0, 5, width=32), min_size=2, max_size=40))
def test_the_middle_is_the_median(values: list[float]) -> None:
    some = np.array(values, np.float32)
    assert _middle(some) == pytest.approx(float(np.median(some)), rel=1e-6)
