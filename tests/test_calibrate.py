import numpy as np
import pytest
from numpy.typing import NDArray

from slidescreen.classify import softmax
from slidescreen.training.classifier.calibrate import cross_calibrated, ece, fit_temperature
from slidescreen.training.classifier.halves import Halves, halve


def overconfident(n: int, factor: float) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Labels drawn from softmax(logits), and the logits `factor` times too large."""
    rng = np.random.default_rng(3)
    logits = rng.normal(0, 1.5, (n, 5))
    p = softmax(logits.astype(np.float32))
    labels = np.array([rng.choice(5, p=row / row.sum()) for row in p.astype(np.float64)])
    return (factor * logits).astype(np.float32), labels


@pytest.mark.parametrize("factor", [0.5, 1.0, 3.0])
def test_the_temperature_undoes_a_factor(factor: float) -> None:
    logits, labels = overconfident(4000, factor)
    assert fit_temperature(logits, labels) == pytest.approx(factor, rel=0.08)


def test_calibration_error_falls_and_the_best_class_stays() -> None:
    logits, labels = overconfident(4000, 3.0)
    halves = halve([str(i) for i in range(4000)])
    p = cross_calibrated(logits, labels, halves)
    assert ece(softmax(logits), labels) > 0.15
    assert ece(p, labels) < 0.03
    assert np.array_equal(p.argmax(1), logits.argmax(1))


def test_each_half_gets_the_temperature_of_the_other() -> None:
    logits, labels = overconfident(2000, 2.0)
    halves = Halves(np.arange(2000) >= 1000)
    logits[1000:] *= 4  # twofold in the first half, eightfold in the second
    p = cross_calibrated(logits, labels, halves)
    assert p[:1000] == pytest.approx(softmax(logits[:1000] / np.float32(fit_temperature(logits[1000:], labels[1000:]))))
    assert p[:1000].max(1).mean() < p[1000:].max(1).mean()


def test_halves_keep_groups_together_and_are_about_equal() -> None:
    rng = np.random.default_rng(0)
    groups = [f"patient {i}" for i in rng.integers(0, 20, 500)] + [f"image {i}" for i in range(100)]
    halves = halve(groups)
    assert abs(int(halves.second.sum()) - 300) < 20
    for name in set(groups):
        own = halves.second[[g == name for g in groups]]
        assert own.all() or not own.any()
    assert np.array_equal(halve(groups).second, halves.second)
    (a, b), (c, d) = halves.both()
    assert np.array_equal(a, d)
    assert np.array_equal(b, c)
    assert not (a & b).any()


def test_nothing_to_measure_is_undefined() -> None:
    assert np.isnan(ece(np.zeros((0, 5), np.float32), np.zeros(0, np.int64)))
