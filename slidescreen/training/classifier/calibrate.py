"""The temperature by which a network's logits are divided, so that its probabilities say how often it is right.

One number for all classes (Guo et al. 2017): it changes neither the order of the classes nor, as a scale per class would, the
share of each class to that of the validation images, which no slide has.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import logsumexp

from slidescreen.classify import softmax
from slidescreen.evaluation.metrics import calibration
from slidescreen.training.classifier.halves import Halves

LOWEST, HIGHEST = 0.05, 20.0


def fit_temperature(logits: NDArray[np.float32], labels: NDArray[np.int64]) -> float:
    """The temperature of least negative log-likelihood, for (n, k) logits and (n,) columns of the true classes."""
    true = logits[np.arange(len(labels)), labels].astype(np.float64)

    def loss(log_t: float) -> float:
        t = np.exp(log_t)
        return float(np.mean(logsumexp(logits / t, axis=1) - true / t))

    found = minimize_scalar(loss, bounds=(np.log(LOWEST), np.log(HIGHEST)), method="bounded")
    return float(np.exp(found.x))


def cross_calibrated(logits: NDArray[np.float32], labels: NDArray[np.int64], halves: Halves) -> NDArray[np.float32]:
    """(n, k) probabilities of each half, by the temperature that was fitted on the other."""
    probabilities = np.zeros(logits.shape, np.float32)
    for fit, rest in halves.both():
        probabilities[rest] = softmax(logits[rest] / np.float32(fit_temperature(logits[fit], labels[fit])))
    return probabilities


def ece(probabilities: NDArray[np.float32], labels: NDArray[np.int64]) -> float:
    """Expected calibration error of the predicted class, 15 bins; nan for no images."""
    if not len(labels):
        return float("nan")
    best = probabilities.argmax(1)
    sure = probabilities.max(1).astype(np.float64)
    return float(calibration(sure, best == labels, np.ones((1, len(labels)))).ece[0])
