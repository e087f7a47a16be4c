import hashlib
import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import StandIn
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from slidescreen.classify import (
    Classifier,
    ClassifySettings,
    choose_device,
    choose_devices,
    classify,
    gather,
    load_classifier,
    softmax,
    turned,
)
from slidescreen.differential import DifferentialSettings, screen_cells
from slidescreen.engines import Outputs
from slidescreen.errors import ModelError, UsageError
from slidescreen.geometry import Box, Point
from slidescreen.model import CARD, DEFAULT_MODEL, REJECTION, find_model
from slidescreen.records import Cell, Patch
from slidescreen.rejection import Rejection, save_rejection
from slidescreen.taxonomy import CODES

CELL = Cell(Point(0, 0), Box(0, 0, 1, 1), 30.0)


def patches(kinds: list[str]) -> Iterator[Patch]:
    for i, kind in enumerate(kinds):
        cell = replace(CELL, nucleus_um2=float(i), edge=kind == "edge", refusal="clump" if kind == "refused" else "")
        yield Patch(cell, np.full((400, 400, 3), i % 256, np.uint8))


@given(st.lists(st.sampled_from(["ok", "edge", "refused"]), max_size=40), st.integers(1, 9))
def test_order_is_kept_and_only_countable_cells_are_asked(kinds: list[str], batch_size: int) -> None:
    stand_in = StandIn(batch_size)
    predictions = list(classify(gather(patches(kinds), batch_size), stand_in))
    assert [p.cell.nucleus_um2 for p in predictions] == list(range(len(kinds)))
    assert [p.probabilities is not None for p in predictions] == [k == "ok" for k in kinds]
    assert sum(stand_in.batches) == kinds.count("ok")
    assert max(stand_in.batches, default=0) <= batch_size


def test_memory_is_bounded_whatever_comes() -> None:
    alive = 0

    def endless() -> Iterator[Patch]:
        nonlocal alive
        for patch in patches(["edge"] * 1000):
            alive += 1
            yield patch

    stream = classify(gather(endless(), 4), StandIn(4))
    next(stream)
    assert alive <= 16


@pytest.fixture(scope="module")
def real() -> Classifier:
    return load_classifier(find_model(DEFAULT_MODEL), ClassifySettings("cpu", engine="torch"))


def some_patches(n: int) -> NDArray[np.uint8]:
    return np.random.default_rng(1).integers(0, 256, (n, 400, 400, 3)).astype(np.uint8)


def test_probabilities_sum_to_one(real: Classifier) -> None:
    found = real.probabilities(some_patches(5))
    assert found.shape == (5, 15)
    assert found.dtype == np.float32
    assert np.allclose(found.sum(1), 1, atol=1e-5)


def test_devices() -> None:
    assert choose_device("cpu") == "cpu"
    assert choose_device("auto") == ("cuda" if torch.cuda.is_available() else "cpu")
    with pytest.raises(UsageError, match="unknown; use auto, cpu, cuda or cuda:0,1"):
        choose_device("tpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_cuda_without_a_gpu_is_refused() -> None:
    with pytest.raises(UsageError, match="no CUDA device"):
        choose_device("cuda")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_cuda_gives_the_same_answers(real: Classifier) -> None:
    images = some_patches(16)
    cuda = load_classifier(find_model(DEFAULT_MODEL), ClassifySettings("cuda")).probabilities(images)
    assert np.abs(cuda - real.probabilities(images)).max() < 0.05


def test_several_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert choose_devices("cuda:0,1") == ["cuda:0", "cuda:1"]
    assert choose_devices("cuda") == ["cuda"]
    assert choose_device("cuda:1") == "cuda:1"
    for wrong, message in {"cuda:0,2": "there are 2 CUDA devices", "cuda:1,1": "name each once", "cuda:": "unknown"}.items():
        with pytest.raises(UsageError, match=message):
            choose_devices(wrong)


class Corner:
    """An engine whose logits hang on one corner of the patch, so that every orientation has an answer of its own."""

    name, device, batch_size = "corner", "cpu", 8

    def run(self, patches: NDArray[np.uint8]) -> Outputs:
        logits = np.zeros((len(patches), 15), np.float32)
        logits[:, 0] = patches[:, :50, 100:200].mean((1, 2, 3)) / 32
        logits[:, 1] = 4
        return Outputs(logits, np.abs(logits[:, :4]))


def judging_model(folder: Path, **card: object) -> Path:
    """The default model, neither calibrated nor with rejection but for what `card` says."""
    shutil.copytree(find_model(DEFAULT_MODEL), folder)
    told = {k: v for k, v in json.loads((folder / CARD).read_text()).items() if k not in ("calibration", "rejection")}
    (folder / CARD).write_text(json.dumps(told | card))
    return folder


def test_probabilities_are_calibrated_by_the_card(tmp_path: Path) -> None:
    plain = Classifier(judging_model(tmp_path / "p"), Corner())
    warm = Classifier(judging_model(tmp_path / "m", calibration={"temperature": 2.0}), Corner())
    images = some_patches(3)
    logits = Corner().run(images).logits
    assert plain.card.temperature == 1
    assert plain.probabilities(images) == pytest.approx(softmax(logits))
    assert warm.probabilities(images) == pytest.approx(softmax(logits / 2))
    assert warm.card.identity != plain.card.identity
    assert warm.card.sha256 == plain.card.sha256


def test_eight_orientations_are_averaged_and_do_not_hang_on_how_the_cell_lies(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    images = rng.integers(0, 256, (3, 400, 400, 3)).astype(np.uint8)
    images[:, :200] //= 2
    folder = judging_model(tmp_path / "m")
    one, eight = (Classifier(folder, Corner(), tta) for tta in (1, 8))
    assert one.judge(images).agreement is None
    found = eight.judge(images)
    assert found.probabilities == pytest.approx(np.mean([one.probabilities(turned(images, k)) for k in range(8)], axis=0))
    assert found.agreement is not None
    assert set((8 * found.agreement).tolist()) <= set(range(9))
    for k in range(8):
        assert eight.judge(turned(images, k)).probabilities == pytest.approx(found.probabilities, abs=1e-6)
    assert np.abs(one.probabilities(turned(images, 2)) - one.probabilities(images)).max() > 0.01


def test_the_eight_orientations_differ_and_undo_each_other() -> None:
    image = np.arange(4 * 4 * 3, dtype=np.uint8).reshape(1, 4, 4, 3)
    assert len({turned(image, k).tobytes() for k in range(8)}) == 8
    assert np.array_equal(turned(turned(image, 1), 3), image)
    assert np.array_equal(turned(image, 0), image)


def test_a_model_with_rejection_scores_each_cell(tmp_path: Path) -> None:
    rejection = Rejection(*(np.array(v, np.float32) for v in ([1, 0, 0, 0], [0] * 4, np.eye(4), [0, 0], [1, 1])))
    folder = judging_model(tmp_path / "m")
    save_rejection(folder / REJECTION, rejection)
    sha256 = hashlib.sha256((folder / REJECTION).read_bytes()).hexdigest()
    told = json.loads((folder / CARD).read_text())
    (folder / CARD).write_text(json.dumps(told | {"rejection": {"sha256": sha256, "threshold": 1.0}}))
    images = np.zeros((2, 400, 400, 3), np.uint8)
    images[1] = 255
    classifier = Classifier(folder, Corner())
    outlier = classifier.judge(images).outlier
    assert outlier is not None
    assert outlier == pytest.approx([-1, np.sqrt(255 / 32) - 1], abs=1e-5)  # the root of the feature, less the threshold
    cells = [Patch(CELL, image) for image in images]
    statuses = [c.status for c in screen_cells(classify(gather(cells, 8), classifier), CODES, DifferentialSettings())]
    assert statuses == ["typed", "rejected"]
    (folder / REJECTION).write_bytes(b"altered")
    with pytest.raises(ModelError, match="the parameters of rejection were altered or damaged"):
        Classifier(folder, Corner())
    (folder / REJECTION).unlink()
    with pytest.raises(ModelError, match=r"rejection\.safetensors: cannot be read"):
        Classifier(folder, Corner())
