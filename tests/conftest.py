"""Painted scans and stand-ins for slow parts, shared by the tests."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from slidescreen.classify import Judgement
from slidescreen.demo import PaintedCell, paint_smear, write_pyramid
from slidescreen.geometry import Size
from slidescreen.model import DEFAULT_MODEL, ModelCard, find_model, load_card

ROOT = Path(__file__).parent.parent
os.environ.setdefault("SLIDESCREEN_CACHE", str(ROOT / ".pytest_cache" / "engines"))  # compiled once, for all tests
SMEAR_SIZE = Size(3072, 2048)
SMEAR_CELLS = {"NGS": 6, "LYT": 4, "MON": 1, "EOS": 1, "MYO": 4}


@pytest.fixture(scope="session")
def smear() -> tuple[NDArray[np.uint8], list[PaintedCell]]:
    """A painted smear of 0.033 mm2 at 0.0725 um/px with 16 leukocytes, and their truth."""
    return paint_smear(SMEAR_SIZE, leukocytes=SMEAR_CELLS, seed=4)


@pytest.fixture(scope="session")
def scan(tmp_path_factory: pytest.TempPathFactory, smear: tuple[NDArray[np.uint8], list[PaintedCell]]) -> Path:
    """The painted smear as a pyramidal scan."""
    path = tmp_path_factory.mktemp("scan") / "smear.tif"
    write_pyramid(path, smear[0], 0.0725)
    return path


@pytest.fixture(scope="session")
def empty_scan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Glass with a little noise and no cells."""
    rng = np.random.default_rng(0)
    image = np.clip(rng.normal(240, 2, (1024, 1536, 3)), 0, 255).astype(np.uint8)
    path = tmp_path_factory.mktemp("empty") / "glass.tif"
    write_pyramid(path, image, 0.0725)
    return path


class StandIn:
    """A classifier that costs nothing: the darker the middle of a patch, the surer a myeloblast, else a lymphocyte."""

    def __init__(self, batch_size: int = 4) -> None:
        self.card: ModelCard = replace(
            load_card(find_model(DEFAULT_MODEL)), name="stand-in", sha256="0" * 64, temperature=1.0, rejection=None
        )
        self.device = "cpu"
        self.told = "cpu, stand-in"
        self.caution = ""
        self.batch_size = batch_size
        self.batches: list[int] = []

    def probabilities(self, patches: NDArray[np.uint8]) -> NDArray[np.float32]:
        self.batches.append(len(patches))
        dark = 1 - patches[:, 180:220, 180:220].mean((1, 2, 3)) / 255
        p = np.zeros((len(patches), 15), np.float32)
        p[:, self.card.classes.index("MYO")] = dark
        p[:, self.card.classes.index("LYT")] = 1 - dark
        return p

    def judge(self, patches: NDArray[np.uint8]) -> Judgement:
        return Judgement(self.probabilities(patches))


@pytest.fixture
def stand_in() -> StandIn:
    return StandIn()


def read_summary(folder: Path) -> dict[str, object]:
    content = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    assert isinstance(content, dict)
    return content


def result_folders(out: Path) -> list[Path]:
    """The folders of whole results in a folder of results, beside which the books of the batch lie."""
    return sorted(p.parent for p in out.glob("[!.]*/summary.json"))


@pytest.fixture(scope="session")
def real_images() -> Path:
    """The folder of real cells, fields, masks and slides. It is not part of the project; tests that need it are skipped without."""
    folder = Path(os.environ.get("SLIDESCREEN_TEST_DATA", ROOT.parent / "shared" / "data"))
    if not (folder / "cells" / "cells.csv").is_file():
        pytest.skip("no real images here; set SLIDESCREEN_TEST_DATA to their folder")
    return folder
