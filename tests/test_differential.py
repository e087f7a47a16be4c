from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from slidescreen.differential import DifferentialSettings, clopper_pearson, count_cells, screen_cells
from slidescreen.geometry import Box, Point
from slidescreen.records import Cell, Differential, Prediction, ScreenedCell, Thresholds
from slidescreen.taxonomy import ATYPICAL, BLAST, CODES, DISPLAY_ORDER

CELL = Cell(Point(0, 0), Box(0, 0, 1, 1), 30.0)


def prediction(**p: float) -> Prediction:
    values = np.zeros(15, np.float32)
    for code, value in p.items():
        values[CODES.index(code)] = value
    return Prediction(CELL, values)


def screened(predictions: list[Prediction], **options: float) -> tuple[list[ScreenedCell], Differential]:
    chosen = DifferentialSettings(**options)
    cells = list(screen_cells(predictions, CODES, chosen))
    return cells, count_cells(cells, chosen, Thresholds())


def test_the_models_thresholds_decide_where_none_is_set() -> None:
    settings = DifferentialSettings()
    cells = list(screen_cells([prediction(MYO=0.45, NGS=0.55), prediction(NGS=1.0)], CODES, settings))
    assert count_cells(cells, settings, Thresholds()).blast.count == 0
    counted = count_cells(cells, settings, Thresholds(blast=0.4))
    assert (counted.blast.count, counted.blast.total, counted.blast.threshold) == (1, 2, 0.4)
    assert (counted.atypical.count, counted.atypical.threshold) == (0, 0.5)
    assert count_cells(cells, DifferentialSettings(blast_threshold=0.6), Thresholds(blast=0.4)).blast.count == 0


@pytest.mark.parametrize(
    ("count", "total", "low", "high"),
    [
        (0, 100, 0, 3.6),
        (0, 3000, 0, 0.12),
        (2, 200, 0.12, 3.6),
        (5, 100, 1.6, 11.3),
        (40, 400, 7.2, 13.4),
        (200, 1000, 17.6, 22.6),
    ],
)
def test_limits_are_ruemkes_table(count: int, total: int, low: float, high: float) -> None:
    found = clopper_pearson(count, total)
    assert 100 * found[0] == pytest.approx(low, abs=0.06)
    assert 100 * found[1] == pytest.approx(high, abs=0.06)


@given(st.integers(1, 5000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_limits_enclose_the_share(pair: tuple[int, int]) -> None:
    low, high = clopper_pearson(*pair)
    assert 0 <= low <= pair[0] / pair[1] <= high <= 1
    assert high > low


@pytest.mark.parametrize(("count", "total"), [(0, 0), (-1, 5), (6, 5)])
def test_no_limits_of_nonsense(count: int, total: int) -> None:
    with pytest.raises(ValueError, match="no proportion"):
        clopper_pearson(count, total)


def test_denominators_follow_the_conventions() -> None:
    cells, d = screened(
        [prediction(MYO=1.0)] * 2 + [prediction(NGS=1.0)] * 6 + [prediction(KSC=1.0)] * 4 + [prediction(EBO=1.0)] * 2
    )
    assert d.leukocytes == 8
    assert (d.blast.count, d.blast.total, d.blast.fraction) == (2, 8, 0.25)
    assert d.blast.ci95 == clopper_pearson(2, 8)
    assert (d.atypical.count, d.atypical.total) == (4, 10)
    assert (d.smudge_per_100_wbc, d.nrbc_per_100_wbc) == (50.0, 25.0)
    assert d.percent["MYO"] == 25
    assert "KSC" not in d.percent
    assert "EBO" not in d.percent
    assert [c.id for c in cells] == list(range(1, 15))


def test_a_blast_is_a_matter_of_the_sum_not_of_the_label() -> None:
    _, d = screened([prediction(MYO=0.3, MOB=0.3, MON=0.4)])
    assert d.counts["MON"] == 1
    assert d.blast.count == 1
    assert d.blast.mean_probability == pytest.approx(0.6)
    _, strict = screened([prediction(MYO=0.3, MOB=0.3, MON=0.4)], blast_threshold=0.7)
    assert strict.blast.count == 0


def test_an_erythroblast_is_no_blast_among_leukocytes() -> None:
    _, d = screened([prediction(EBO=0.4, MYO=0.3, MOB=0.3)])
    assert (d.blast.count, d.blast.total) == (0, 0)
    assert (d.atypical.count, d.atypical.total) == (1, 1)


def test_unsure_cells_are_shown_and_not_counted() -> None:
    cells, d = screened([prediction(MYO=0.4, NGS=0.35, LYT=0.25), prediction(NGS=0.9, MYO=0.1)], min_probability=0.5)
    assert [(c.status, c.label) for c in cells] == [("unsure", "MYO"), ("typed", "NGS")]
    assert d.leukocytes == 1
    assert d.counts["MYO"] == 0


def test_edge_and_rejected_cells_have_no_label() -> None:
    edge = Prediction(Cell(Point(0, 0), Box(0, 0, 1, 1), 30.0, edge=True), None)
    refused = Prediction(Cell(Point(0, 0), Box(0, 0, 1, 1), 5.0, refusal="too small"), None)
    cells, d = screened([edge, refused])
    assert [(c.status, c.label, c.p_blast) for c in cells] == [("edge", "", None), ("rejected", "", None)]
    assert d.leukocytes == 0


def test_nothing_gives_null_never_zero_percent() -> None:
    for predictions in ([], [prediction(KSC=1.0)]):
        _, d = screened(predictions)
        assert d.blast.fraction is None
        assert d.blast.ci95 is None
        assert d.blast.mean_probability is None
        assert set(d.percent.values()) == {None}
        assert d.smudge_per_100_wbc is None
        assert d.nrbc_per_100_wbc is None


probabilities = st.lists(st.floats(0.01, 1), min_size=15, max_size=15).map(
    lambda v: np.array(v, np.float32) / np.float32(sum(v))
)


@given(st.lists(probabilities, max_size=30), st.floats(0, 1), st.floats(0, 1))
def test_counts_add_up(rows: list[np.ndarray[tuple[int], np.dtype[np.float32]]], t: float, minimum: float) -> None:
    cells, d = screened([Prediction(CELL, p) for p in rows], blast_threshold=t, atypical_threshold=t, min_probability=minimum)
    typed = [c for c in cells if c.status == "typed"]
    assert sum(d.counts.values()) == len(typed) == len(cells) - sum(c.status == "unsure" for c in cells)
    assert d.leukocytes == sum(d.counts[c] for c in DISPLAY_ORDER)
    assert d.leukocytes + d.counts["EBO"] == d.atypical.total
    assert 0 <= d.blast.count <= d.blast.total == d.leukocytes
    for c in cells:
        assert c.p_blast is not None
        assert c.p_atypical is not None
        assert c.p_blast <= c.p_atypical + 1e-6
    if d.leukocytes:
        assert sum(v or 0 for v in d.percent.values()) == pytest.approx(100)
    assert BLAST < ATYPICAL


def judged(outlier: float | None = None, agreement: float | None = None, **p: float) -> Prediction:
    return replace(prediction(**p), outlier=outlier, agreement=agreement)


@pytest.mark.parametrize(
    ("given", "status", "reason"),
    [
        (judged(MYO=0.9, LYT=0.1), "typed", ""),
        (judged(outlier=-0.1, agreement=1.0, MYO=0.9, LYT=0.1), "typed", ""),
        (judged(outlier=0.1, MYO=0.9, LYT=0.1), "rejected", "looks like no leukocyte of the 15 classes"),
        (judged(MYO=0.51, LYT=0.49), "unsure", "two classes nearly equally likely"),
        (judged(agreement=0.375, MYO=0.9, LYT=0.1), "unsure", "turned and mirrored pictures disagree"),
        (judged(outlier=0.1, agreement=0.1, MYO=0.51, LYT=0.49), "rejected", "looks like no leukocyte of the 15 classes"),
    ],
)
def test_what_is_refused_and_what_is_unsure(given: Prediction, status: str, reason: str) -> None:
    (cell,), d = screened([given])
    assert (cell.status, cell.reason) == (status, reason)
    assert cell.label == ("" if status == "rejected" else "MYO")
    assert cell.p_blast == pytest.approx(given.probabilities[CODES.index("MYO")])  # type: ignore[index]
    assert d.leukocytes == (status == "typed")


def test_refusal_can_be_switched_off() -> None:
    (cell,), d = screened([judged(outlier=5.0, MYO=1.0)], reject=False)
    assert (cell.status, cell.label, cell.outlier, d.leukocytes) == ("typed", "MYO", 5.0, 1)


def test_a_cell_that_the_detector_refused_keeps_its_reason() -> None:
    refused = Prediction(Cell(Point(0, 0), Box(0, 0, 1, 1), 5.0, refusal="too small"), None)
    (cell,), _ = screened([refused])
    assert (cell.status, cell.reason, cell.probabilities) == ("rejected", "too small", None)
