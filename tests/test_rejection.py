"""What is no leukocyte: the score, its parameters as a file, and how it is fitted."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from slidescreen.engines import Outputs
from slidescreen.errors import ModelError
from slidescreen.rejection import NAMES, Rejection, read_rejection, save_rejection
from slidescreen.training.classifier.rejecting import METHODS, OURS, Lesson, fit_rejection, threshold_of

D, CLASSES = 48, 4


def features(seed: int, n: int, shift: float = 0.0, spread: float = 1.0) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Positive features of n pictures of four classes, each in a plane of eight directions of its own."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(7).uniform(0.5, 3, (CLASSES, D))
    plane = np.random.default_rng(8).normal(0, 0.4, (8, D))
    labels = rng.integers(0, CLASSES, n)
    x = centres[labels] + rng.normal(0, spread, (n, 8)) @ plane + rng.normal(0, 0.05, (n, D))
    x[:, :6] += shift
    return np.maximum(x, 0).astype(np.float32), labels


def outputs(x: NDArray[np.float32]) -> Outputs:
    return Outputs(x[:, :CLASSES], x)


@pytest.fixture(scope="module")
def lesson() -> Lesson:
    known, labels = features(1, 400)
    nothing = outputs(np.zeros((0, D), np.float32))
    return Lesson(
        outputs(known), labels, outputs(features(2, 300)[0]), nothing, {"platelets": outputs(features(3, 60, 2.0)[0])}
    )


@pytest.fixture(scope="module")
def fitted(lesson: Lesson) -> tuple[Rejection, float]:
    rejection = fit_rejection(lesson)
    return rejection, threshold_of(rejection.scores(lesson.unseen.features))


def test_strangers_are_refused_and_leukocytes_kept(fitted: tuple[Rejection, float]) -> None:
    rejection, threshold = fitted
    assert (rejection.scores(features(4, 2000)[0]) > threshold).mean() < 0.05
    assert (rejection.scores(features(5, 200, 2.0)[0]) > threshold).mean() > 0.95


def test_strangers_of_a_kind_never_seen_are_refused_by_their_distance(fitted: tuple[Rejection, float]) -> None:
    rejection, threshold = fitted
    unknown = np.random.default_rng(9).uniform(0, 3, (200, D)).astype(np.float32)
    assert (rejection.scores(unknown) > threshold).mean() > 0.95
    blind = replace(rejection, basis=np.eye(D, dtype=np.float32))  # a subspace of everything: no distance from it
    assert (blind.scores(unknown) > threshold).mean() < 0.9


def test_without_strangers_the_distance_is_all_there_is(lesson: Lesson) -> None:
    rejection = fit_rejection(replace(lesson, strangers={}))
    assert not rejection.weight.any()
    assert np.isfinite(rejection.scores(lesson.unseen.features)).all()


@pytest.mark.parametrize("method", METHODS)
def test_every_score_that_is_compared_can_be_fitted(lesson: Lesson, method: str) -> None:
    score = METHODS[method](lesson)
    said = score(lesson.unseen)
    assert said.shape == (300,)
    assert np.isfinite(said).all()
    if method in (OURS, "logistic regression"):
        assert score(outputs(features(5, 100, 2.0)[0])).mean() > np.quantile(said, 0.95)


def test_a_score_does_not_depend_on_company(fitted: tuple[Rejection, float]) -> None:
    x = features(6, 5)[0]
    alone = np.concatenate([fitted[0].scores(x[i : i + 1]) for i in range(5)])
    assert fitted[0].scores(x) == pytest.approx(alone, abs=1e-4)
    assert fitted[0].scores(x[:0]).shape == (0,)
    assert fitted[0].scores(np.zeros((0, 0), np.float32)).shape == (0,)  # as engines give them for no patches
    assert np.isfinite(fitted[0].scores(np.zeros((1, D), np.float32))).all()


def test_parameters_come_back_as_they_were(fitted: tuple[Rejection, float], tmp_path: Path) -> None:
    save_rejection(tmp_path / "r.safetensors", fitted[0])
    again = read_rejection(tmp_path / "r.safetensors")
    assert all(np.array_equal(getattr(again, name), getattr(fitted[0], name)) for name in NAMES)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mean": np.zeros(D - 1, np.float32)}, "mean is not of shape"),
        ({"weight": np.full(D, np.nan, np.float32)}, "weight is not of shape .* or holds what is no number"),
        ({"tail": np.zeros(2, np.float32), "middle": np.ones(2, np.float32)}, "tail must lie above middle"),
    ],
)
def test_parameters_that_do_not_fit_are_refused(
    fitted: tuple[Rejection, float], tmp_path: Path, changes: dict[str, NDArray[np.float32]], message: str
) -> None:
    save_rejection(tmp_path / "r.safetensors", replace(fitted[0], **changes))
    with pytest.raises(ModelError, match=message):
        read_rejection(tmp_path / "r.safetensors")


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "r.safetensors").write_bytes(b"\x80\x04.")
    with pytest.raises(ModelError, match="not a safetensors file"):
        read_rejection(tmp_path / "r.safetensors")
