"""Measures against cases computed by hand and against scikit-learn."""

import numpy as np
import pytest
from predicted import SMALL_COUNTS, rows, write_csv, write_run
from scipy.stats import binomtest
from sklearn import metrics as reference

from slidescreen.evaluation import metrics
from slidescreen.evaluation.bootstrap import group_units, interval, resample
from slidescreen.evaluation.evaluate import evaluate, rate
from slidescreen.evaluation.predictions import Predictions, is_member, read_predictions
from slidescreen.evaluation.published import DECISIONS, TABLE_1
from slidescreen.taxonomy import ATYPICAL, BLAST, CODES


@pytest.fixture(scope="module")
def predictions(tmp_path_factory: pytest.TempPathFactory) -> Predictions:
    return read_predictions(write_run(tmp_path_factory.mktemp("run"), rows()))


def ones(n: int) -> metrics.Floats:
    return np.ones((1, n))


def test_scores_of_a_case_by_hand() -> None:
    gold, label = np.array([0, 0, 0, 1, 1, 2]), np.array([0, 0, 1, 1, 0, 0])
    confusion = metrics.crosstab(gold, label, 4, ones(6))
    assert confusion[0].tolist() == [[2, 1, 0, 0], [1, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]]
    scores = metrics.class_scores(confusion)
    np.testing.assert_allclose(scores.precision[0], [2 / 4, 1 / 2, np.nan, np.nan])
    np.testing.assert_allclose(scores.sensitivity[0], [2 / 3, 1 / 2, 0, np.nan])
    np.testing.assert_allclose(scores.specificity[0], [1 / 3, 3 / 4, 1, 1])
    assert metrics.accuracy(confusion)[0] == 1 / 2
    # Observed 3/6; by chance (3*4 + 2*2 + 1*0) / 36 = 16/36.
    assert metrics.cohen_kappa(confusion)[0] == pytest.approx((1 / 2 - 4 / 9) / (1 - 4 / 9))


def test_auc_by_hand_with_ties_and_with_one_kind_only() -> None:
    scores, positive = np.array([0.1, 0.4, 0.4, 0.8]), np.array([False, True, False, True])
    assert metrics.auc(scores, positive, ones(4))[0] == 3.5 / 4  # one tie of four pairs
    assert np.isnan(metrics.auc(scores, np.ones(4, bool), ones(4))[0])
    assert metrics.roc_curve(scores, np.zeros(4, bool)) is None


def test_scores_equal_scikit_learn(predictions: Predictions) -> None:
    gold, label, n = predictions.gold, predictions.label, len(predictions)
    confusion = metrics.crosstab(gold, label, 15, ones(n))
    np.testing.assert_array_equal(confusion[0], reference.confusion_matrix(gold, label, labels=range(15)))
    scores = metrics.class_scores(confusion)
    with np.errstate(invalid="ignore"):
        precision, sensitivity, _, _ = reference.precision_recall_fscore_support(
            gold, label, labels=range(15), zero_division=np.nan
        )
    np.testing.assert_allclose(scores.precision[0], precision)
    np.testing.assert_allclose(scores.sensitivity[0], sensitivity)
    for k in range(15):
        specificity = reference.recall_score(gold != k, label != k)
        assert scores.specificity[0, k] == pytest.approx(specificity)
    present = np.isin(label, gold)  # scikit-learn warns of predicted classes without images
    balanced = metrics.nan_mean(
        metrics.class_scores(metrics.crosstab(gold[present], label[present], 15, ones(present.sum()))).sensitivity, 1
    )
    assert balanced[0] == pytest.approx(reference.balanced_accuracy_score(gold[present], label[present]))
    assert metrics.accuracy(confusion)[0] == pytest.approx(reference.accuracy_score(gold, label))
    assert metrics.cohen_kappa(confusion)[0] == pytest.approx(reference.cohen_kappa_score(gold, label))


@pytest.mark.parametrize("decimals", [6, 1])
def test_roc_equals_scikit_learn_with_and_without_ties(predictions: Predictions, decimals: int) -> None:
    scores, positive = np.round(predictions.probability(ATYPICAL), decimals), is_member(predictions.gold, ATYPICAL)
    curve = metrics.roc_curve(scores, positive)
    assert curve is not None
    fpr, tpr, thresholds = reference.roc_curve(positive, scores)
    np.testing.assert_allclose(curve.fpr, fpr)
    np.testing.assert_allclose(curve.tpr, tpr)
    np.testing.assert_allclose(curve.threshold, thresholds)
    area = metrics.auc(scores, positive, ones(len(scores)))[0]
    assert area == pytest.approx(reference.roc_auc_score(positive, scores), abs=1e-12)


def test_weights_count_images_as_often_as_they_say(predictions: Predictions) -> None:
    """Every measure of weighted images equals the measure of a list in which they are repeated."""
    weights = np.random.default_rng(1).integers(0, 4, (1, len(predictions))).astype(float)
    repeated = np.repeat(np.arange(len(predictions)), weights[0].astype(int))
    gold, label, p, positive = (
        predictions.gold,
        predictions.label,
        predictions.probability(BLAST),
        is_member(predictions.gold, BLAST),
    )
    confidence, right = predictions.probabilities.max(axis=1), label == gold
    np.testing.assert_array_equal(
        metrics.crosstab(gold, label, 15, weights)[0],
        reference.confusion_matrix(gold[repeated], label[repeated], labels=range(15)),
    )
    assert metrics.auc(p, positive, weights)[0] == pytest.approx(reference.roc_auc_score(positive[repeated], p[repeated]))
    sensitivity, specificity = metrics.hits(p >= 0.5, positive, weights)
    assert sensitivity[0] == pytest.approx(reference.recall_score(positive[repeated], p[repeated] >= 0.5))
    assert specificity[0] == pytest.approx(reference.recall_score(~positive[repeated], p[repeated] < 0.5))
    again = metrics.calibration(confidence[repeated], right[repeated], ones(len(repeated)))
    assert metrics.calibration(confidence, right, weights).ece[0] == pytest.approx(again.ece[0])


def test_calibration_by_hand() -> None:
    """Two images at 0.9 of which one is right, one at 2/15, the upper end of its bin, that is right."""
    found = metrics.calibration(np.array([0.9, 0.9, 2 / 15]), np.array([True, False, True]), ones(3))
    assert found.images[0].tolist() == [0, 1] + [0] * 11 + [2, 0]
    assert found.confidence[0, 13] == pytest.approx(0.9)
    assert found.right[0, 13] == 0.5
    assert np.isnan(found.right[0, 0])
    assert found.ece[0] == pytest.approx((2 * 0.4 + 13 / 15) / 3)


def test_mean_curve_lies_on_the_curves_of_the_folds(predictions: Predictions) -> None:
    decision = evaluate(predictions, "made up", resamples=0).decisions[0]
    assert decision.mean_curve is not None and decision.mean_curve.sd is not None
    at = int(np.searchsorted(decision.mean_curve.fpr, 0.1))
    by_fold = []
    for k in predictions.folds:
        rows_ = predictions.fold == k
        fpr, tpr, _ = reference.roc_curve(is_member(predictions.gold, BLAST)[rows_], predictions.probability(BLAST)[rows_])
        by_fold.append(np.interp(0.1, fpr, tpr))
    assert decision.mean_curve.tpr[at] == pytest.approx(np.mean(by_fold))
    assert decision.mean_curve.sd[at] == pytest.approx(np.std(by_fold))
    assert decision.mean_curve.tpr[0] == 0 and decision.mean_curve.tpr[-1] == 1


def test_rates_have_exact_limits() -> None:
    found = rate(np.array([True] * 7 + [False] * 3), np.ones(10, bool))
    exact = binomtest(7, 10).proportion_ci(0.95, "exact")
    assert (found.count, found.total, found.value) == (7, 10, 0.7)
    assert found.limits == pytest.approx((exact.low, exact.high))
    nothing = rate(np.ones(3, bool), np.zeros(3, bool))
    assert nothing.value is None and nothing.limits is None


def test_units_are_patients_of_their_source_and_single_images() -> None:
    source, patient = np.array(["a", "a", "b", "b", "b"]), np.array(["1", "1", "1", "", ""])
    units = group_units(source, patient)
    assert len(units) == 4
    assert units.patients == 2
    assert units.unit[0] == units.unit[1] != units.unit[2]
    assert len(set(units.unit[2:].tolist())) == 3
    for weights in resample(units, 120, seed=1):
        np.testing.assert_array_equal(weights[:, 0], weights[:, 1])  # one patient, drawn as a whole
        assert (weights[:, 0] == 1).all()  # the only patient of its source is in every resample
        assert (weights[:, 3] + weights[:, 4] == 2).all()


def test_bootstrap_of_single_images_agrees_with_the_binomial() -> None:
    right = np.arange(400) < 300
    units = group_units(np.full(400, "a"), np.full(400, ""))
    low_high = interval(np.concatenate([w @ right / 400 for w in resample(units, 4000)]))
    assert low_high == pytest.approx(
        (0.75 - 1.96 * np.sqrt(0.75 * 0.25 / 400), 0.75 + 1.96 * np.sqrt(0.75 * 0.25 / 400)), abs=0.005
    )


def test_whole_patients_make_wider_intervals_than_single_images() -> None:
    """Ten patients whose images are all right or all wrong: 400 images that say no more than ten."""
    right = np.repeat(np.arange(10) < 5, 40)

    def width(patient: np.ndarray) -> float:
        found = interval(np.concatenate([w @ right / 400 for w in resample(group_units(np.full(400, "a"), patient), 1000)]))
        assert found is not None
        return found[1] - found[0]

    single, whole = width(np.full(400, "")), width(np.repeat([f"P{i}" for i in range(10)], 40))
    assert whole > 4 * single


def test_intervals_that_would_mislead_are_not_given() -> None:
    assert interval(np.full(100, 0.5)) is None  # every resample the same
    assert interval(np.append(np.full(20, np.nan), np.linspace(0, 1, 80))) is None  # undefined in a fifth
    assert interval(np.linspace(0, 1, 1001)) == pytest.approx((0.025, 0.975))
    assert interval(np.array([])) is None


def test_published_numbers_add_up_to_the_paper() -> None:
    assert set(TABLE_1) == set(CODES)
    assert sum(line.images for line in TABLE_1.values()) == 18365
    assert TABLE_1["LYA"].precision.mean == 0.20 and TABLE_1["LYA"].precision.sd == 0.40
    # The published sd divides by five: one of three images found in one fold of five is 0.07 +- 0.13, not +- 0.15.
    assert np.std([1 / 3, 0, 0, 0, 0]).round(2) == TABLE_1["LYA"].sensitivity.sd
    assert DECISIONS["blast"].reannotations[0] == (0.957, 0.911)


def test_a_file_of_its_own_gives_one_fold_and_no_sd(predictions: Predictions, tmp_path_factory: pytest.TempPathFactory) -> None:
    keep = ["gold", *(f"p_{code}" for code in CODES)]
    bare = [{name: row[name] for name in keep} for row in rows()]
    path = write_csv(tmp_path_factory.mktemp("bare") / "p.csv", bare)
    found = evaluate(read_predictions(path), "bare", resamples=0)
    assert found.images == sum(SMALL_COUNTS.values())
    assert len(found.folds) == 1 and found.balanced_accuracy.sd is None
    assert not found.sources and not found.by_patient and not found.reannotations
    whole = evaluate(predictions, "run", resamples=0)
    assert found.balanced_accuracy.value == pytest.approx(whole.balanced_accuracy.value)
    np.testing.assert_array_equal(found.confusion, whole.confusion)
