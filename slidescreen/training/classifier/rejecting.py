"""Fits the score by which a cell is refused as no leukocyte of the 15 classes, and others to compare it with."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import eigh
from scipy.special import logsumexp
from sklearn.linear_model import LogisticRegression

from slidescreen.classify import softmax
from slidescreen.engines import Outputs
from slidescreen.rejection import Rejection, distance, roots, unit

Floats = NDArray[np.float32]
Score = Callable[[Outputs], Floats]
"""Outputs of n patches -> (n,); the larger, the less it looks like a leukocyte."""

COMPONENTS: Final = 256
"""Principal components that the logistic regression sees, each brought to deviation 1 ..."""
STRENGTH: Final = 0.003
"""... and the inverse of its L2 penalty: a strong one, for some hundred strangers and as many directions."""
SUBSPACE: Final = 32
"""Dimensions of the subspace of leukocytes."""
MIDDLE, TAIL = 0.5, 0.995
"""Quantiles of the leukocytes that become 0 and 1 of either score."""
OTHERS_TAIL: Final = 0.98
"""Quantile of the leukocytes of other cameras that must not lie beyond 1 of either score."""
KEPT: Final = 0.99
"""Share of the leukocytes that the threshold keeps, at least ..."""
LEAST: Final = 1.0
"""... for it is never lower than this, where the leukocytes of other cameras lie."""
NEIGHBOUR: Final = 10


@dataclass(frozen=True, slots=True, eq=False)
class Lesson:
    """What rejection is fitted on. `known`: leukocytes of the network's training, `labels` (n,) their classes. `unseen`:
    leukocytes that it has not learned from, by which scales are set. `others`: leukocytes of other cameras,
    of unknown class, without which a stranger would be told by the ground it lies on. `strangers`: what is no leukocyte, by
    kind; a kind weighs as the root of its number, and all of them as much as the leukocytes."""

    known: Outputs
    labels: NDArray[np.int64]
    unseen: Outputs
    others: Outputs
    strangers: Mapping[str, Outputs]


@lru_cache(maxsize=8)
def fit_rejection(lesson: Lesson) -> Rejection:
    """The score that is used, see `rejection`. The last few are remembered: parts of it are compared with the whole."""
    known, labels = lesson.known, lesson.labels
    rooted = roots(np.concatenate([known.features, lesson.others.features]))
    weight = _logistic(rooted, [roots(s.features) for s in lesson.strangers.values() if len(s.features)])
    others = roots(lesson.others.features)
    mean, basis = _subspace(unit(np.concatenate([_balanced(roots(known.features), labels), others])), SUBSPACE)

    def both(rooted: Floats) -> Floats:
        return np.stack([rooted @ weight, distance(unit(rooted), mean, basis)], axis=1)

    unseen = both(roots(lesson.unseen.features))
    middle, tail = (np.quantile(unseen, q, axis=0).astype(np.float32) for q in (MIDDLE, TAIL))
    if len(others):  # another camera alone must not make a cell a stranger, however few pictures of it there are
        tail = np.maximum(tail, np.quantile(both(others), OTHERS_TAIL, axis=0).astype(np.float32))
    return Rejection(weight, mean, basis, middle, np.maximum(tail, middle + np.float32(1e-6)))


def threshold_of(scores: Floats, kept: float = KEPT, least: float = -math.inf) -> float:
    """The score that the share `kept` of the leukocytes stays below, or `least` where that is higher."""
    return max(float(np.quantile(scores, kept)), least)


def _logistic(leukocytes: Floats, strangers: list[Floats]) -> Floats:
    """(d,) weights of a logistic regression; zeros where there are no strangers. Its constant is left out: `middle` has it."""
    if not strangers:
        return np.zeros(leukocytes.shape[1], np.float32)
    x = np.concatenate([leukocytes, *strangers])
    mean, basis = _subspace(x, COMPONENTS)
    seen = (x - mean) @ basis
    scale = np.maximum(seen.std(0), 1e-6)
    strange = np.arange(len(x)) >= len(leukocytes)
    shares = np.sqrt([len(s) for s in strangers])
    each = [np.full(len(s), share / shares.sum() / len(s)) for s, share in zip(strangers, shares, strict=True)]
    weights = np.concatenate([np.full(len(leukocytes), 1 / len(leukocytes)), *each])
    model = LogisticRegression(C=STRENGTH, max_iter=1000)
    model.fit(seen / scale, strange, weights * len(x) / 2)
    return np.asarray(basis @ (model.coef_[0] / scale), np.float32)


def _subspace(x: Floats, most: int) -> tuple[Floats, Floats]:
    """Mean (d,) and the first principal components (d, k) of the rows of x, as many as there can be up to `most`."""
    mean = x.mean(0)
    d = x.shape[1]
    covariance = np.cov(x.T.astype(np.float64))
    values, vectors = eigh(covariance, subset_by_index=(max(0, d - most), d - 1))
    k = max(1, int((values > 1e-8 * values[-1]).sum()))
    return np.asarray(mean, np.float32), np.ascontiguousarray(vectors[:, ::-1][:, :k], np.float32)


def _balanced(x: Floats, labels: NDArray[np.int64]) -> Floats:
    """Rows of x, of each class at most three times as many as of the median class, evenly spread."""
    counts = np.bincount(labels)
    most = int(3 * np.median(counts[counts > 0]))
    rows = [np.flatnonzero(labels == c) for c in np.flatnonzero(counts)]
    return np.asarray(x[np.concatenate([own[:: -(-len(own) // most)] for own in rows])], np.float32)


def _ours(lesson: Lesson) -> Score:
    rejection = fit_rejection(lesson)
    return lambda outputs: rejection.scores(outputs.features)


def _logistic_only(lesson: Lesson) -> Score:
    weight = fit_rejection(lesson).weight
    return lambda outputs: roots(outputs.features) @ weight


def _distance_only(lesson: Lesson) -> Score:
    fitted = fit_rejection(lesson)
    return lambda outputs: distance(unit(roots(outputs.features)), fitted.mean, fitted.basis)


def _mahalanobis(lesson: Lesson, relative: bool) -> Score:
    """Lee et al. 2018, on 64 principal components of unit length; relative: Ren et al. 2021."""
    x, labels = unit(roots(lesson.known.features)), lesson.labels
    mean, basis = _subspace(x, 64)
    seen = (x - mean) @ basis
    present = np.unique(labels)
    centres = np.stack([seen[labels == c].mean(0) for c in present])
    within = seen - centres[np.searchsorted(present, labels)]
    tight, wide = (np.linalg.cholesky(np.linalg.inv(np.cov(z.T) + 1e-9 * np.eye(z.shape[1]))) for z in (within, seen))

    def score(outputs: Outputs) -> Floats:
        z = (unit(roots(outputs.features)) - mean) @ basis
        nearest = (((z @ tight)[:, None] - centres @ tight) ** 2).sum(2).min(1)
        return np.asarray(nearest - ((z @ wide) ** 2).sum(1) if relative else nearest, np.float32)

    return score


def _neighbours(lesson: Lesson) -> Score:
    """Distance to the tenth nearest leukocyte, features of unit length (Sun et al. 2022)."""
    known = unit(lesson.known.features)

    def score(outputs: Outputs) -> Floats:
        near = unit(outputs.features) @ known.T
        return np.asarray(-np.partition(near, -NEIGHBOUR, axis=1)[:, -NEIGHBOUR], np.float32)

    return score


def _plain(score: Score) -> Callable[[Lesson], Score]:
    return lambda _lesson: score


OURS: Final = "logistic regression and distance"
METHODS: Final[Mapping[str, Callable[[Lesson], Score]]] = MappingProxyType(
    {
        "probability of the best class": _plain(lambda o: -softmax(o.logits).max(1)),
        "energy of the logits": _plain(lambda o: np.asarray(-logsumexp(o.logits, axis=1), np.float32)),
        "Mahalanobis distance": lambda lesson: _mahalanobis(lesson, relative=False),
        "relative Mahalanobis distance": lambda lesson: _mahalanobis(lesson, relative=True),
        "tenth nearest neighbour": _neighbours,
        "distance from the subspace of leukocytes": _distance_only,
        "logistic regression": _logistic_only,
        OURS: _ours,
    }
)
"""By name, what fits a score. The last is the one that is used."""
