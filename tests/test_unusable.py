"""Scans that hold nothing to count: a status and a report, no percentage out of nothing; and the scale's way to the result."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from smears import GROUND, UM_PER_PX, monolayer, write_rgba

from slidescreen.batch import RunOptions, run_slide
from slidescreen.classify import Judgement
from slidescreen.config import Settings, load_settings
from slidescreen.errors import ScaleError, UsageError
from slidescreen.model import ModelCard
from slidescreen.scale import ScaleSettings
from slidescreen.taxonomy import CODES


class Coin:
    """A classifier that calls every cell the first class."""

    card = ModelCard("coin", "none", CODES, 29.0, 224, (0.5,) * 3, (0.5,) * 3, "00" * 32, "none", "none", {})
    device = "cpu"
    told = "cpu, coin"
    batch_size = 8
    caution = ""

    def probabilities(self, patches: NDArray[np.uint8]) -> NDArray[np.float32]:
        rows = np.zeros((len(patches), len(CODES)), np.float32)
        rows[:, 0] = 1
        return rows

    def judge(self, patches: NDArray[np.uint8]) -> Judgement:
        return Judgement(self.probabilities(patches))


def screened(path: Path, out: Path, settings: Settings | None = None, um_per_px: Any = None) -> tuple[dict[str, Any], str]:
    """summary.json and the report."""
    out.mkdir(exist_ok=True)
    done = run_slide(path, Coin(), settings or Settings(), RunOptions(out, um_per_px, False), lambda *_: None)
    summary = json.loads((done.folder / "summary.json").read_text(encoding="utf-8"))
    return summary, (done.folder / "report.html").read_text(encoding="utf-8")


def glass() -> NDArray[np.uint8]:
    return np.full((1000, 1200, 3), GROUND, np.float32).astype(np.uint8)


def ink() -> NDArray[np.uint8]:
    return cv2.rectangle(glass(), (300, 200), (900, 800), (40, 35, 110), -1)


def precipitate() -> NDArray[np.uint8]:
    rng, image = np.random.default_rng(0), glass()
    for x, y in rng.integers(0, 1000, (300, 2)).tolist():
        cv2.circle(image, (x, y), int(rng.integers(1, 5)), (90, 40, 120), -1, cv2.LINE_AA)
    return image


def blurred() -> NDArray[np.uint8]:
    return np.asarray(cv2.GaussianBlur(monolayer(1200, 1000, 3, 6), (0, 0), 1.8 / UM_PER_PX), np.uint8)


NOTHING = {
    "black": lambda: np.zeros((1000, 1200, 3), np.uint8),
    "white": lambda: np.full((1000, 1200, 3), 255, np.uint8),
    "one colour": lambda: np.full((1000, 1200, 3), 150, np.uint8),
    "glass": glass,
    "ink": ink,
    "precipitate": precipitate,
    "blurred": blurred,
    "one px wide": lambda: np.full((3000, 1, 3), 220, np.uint8),
    "one px": lambda: np.full((1, 1, 3), 220, np.uint8),
    "red cells only": lambda: monolayer(1200, 1000, 4),
}


@pytest.mark.parametrize("name", list(NOTHING))
def test_nothing_to_count_gives_a_report_without_percentages(tmp_path: Path, name: str) -> None:
    write_rgba(tmp_path / "scan.tif", NOTHING[name](), UM_PER_PX)
    summary, html = screened(tmp_path / "scan.tif", tmp_path / "out")
    assert summary["status"] == ("no_leukocytes" if name == "red cells only" else "no_usable_area")
    assert summary["leukocytes"] == 0
    assert summary["blast"]["fraction"] is None
    assert set(summary["differential_percent"].values()) == {None}
    assert 'id="no-leukocytes"' in html
    assert ('id="no-usable-area"' in html) == (summary["status"] == "no_usable_area")


@pytest.fixture(scope="module")
def untagged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("scale") / "untagged.tif"
    write_rgba(path, monolayer(1600, 1200, 9, 4), None)
    return path


@pytest.fixture(scope="module")
def doubled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("scale") / "doubled.tif"
    write_rgba(path, monolayer(1600, 1200, 9, 4), 2 * UM_PER_PX)
    return path


def test_wrong_tag_fails_the_slide_unless_overruled(doubled: Path, tmp_path: Path) -> None:
    with pytest.raises(ScaleError, match="2 times too large"):
        screened(doubled, tmp_path)
    trusted, html = screened(doubled, tmp_path / "trusted", Settings(scale=ScaleSettings(trust=True)))
    assert trusted["scale_check"]["status"] == "overridden"
    assert "the red cells disagree; kept on request" in html
    given, html = screened(doubled, tmp_path / "given", um_per_px=UM_PER_PX)
    assert given["scale_check"]["status"] == "verified"
    assert given["slide"]["um_per_px_source"] == "--um-per-px"
    assert "scale verified" in html


def test_untagged_scan_is_screened_at_the_estimate_only_on_request(untagged: Path, tmp_path: Path) -> None:
    with pytest.raises(ScaleError, match="--um-per-px auto"):
        screened(untagged, tmp_path)
    summary, html = screened(untagged, tmp_path, um_per_px="auto")
    check = summary["scale_check"]
    assert check["status"] == "estimated"
    assert check["ruler_um_per_px"] == pytest.approx(UM_PER_PX, rel=0.12)
    assert check["interval"][0] < check["ruler_um_per_px"] < check["interval"][1]
    assert check["cells"] >= 30
    assert "red cells" in summary["slide"]["um_per_px_source"]
    assert "SCALE ESTIMATED FROM RED CELLS" in html
    done = run_slide(untagged, Coin(), Settings(), RunOptions(tmp_path, "auto", False), lambda *_: None)
    assert done.skipped


def test_settings_of_area_and_trust_come_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "settings.toml"
    path.write_text('[scale]\ntrust = true\n[monolayer]\naoi = "0,0,100,100"\n')
    settings = load_settings(path)
    assert settings.scale.trust
    assert settings.monolayer.aoi == "0,0,100,100"
    for wrong in ("[scale]\ntrust = 1\n", "[monolayer]\naoi = 3\n", "[monolayer]\npolygons = []\n"):
        path.write_text(wrong)
        with pytest.raises(UsageError):
            load_settings(path)
