from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import StandIn
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from slidescreen.classify import Classifier, ClassifySettings, choose_device, choose_devices, classify, gather, load_classifier
from slidescreen.errors import UsageError
from slidescreen.geometry import Box, Point
from slidescreen.model import DEFAULT_MODEL, find_model
from slidescreen.records import Cell, Patch

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
