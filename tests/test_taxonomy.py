import re

import numpy as np
import pytest

from slidescreen.taxonomy import ATYPICAL, BLAST, BY_CODE, CLASSES, CODES, DISPLAY_ORDER, NOT_LEUKOCYTE, probability_of


def test_fifteen_classes_in_the_published_order() -> None:
    assert (
        tuple(["BAS", "EBO", "EOS", "KSC", "LYA", "LYT", "MMZ", "MOB", "MON", "MYB", "MYO", "NGB", "NGS", "PMB", "PMO"])
        == CODES
    )
    assert all(re.fullmatch(r"#[0-9a-f]{6}", c.colour) for c in CLASSES)
    assert len({c.colour for c in CLASSES}) == len({c.name for c in CLASSES}) == 15


def test_the_sets_are_the_papers() -> None:
    assert {"MYO", "MOB"} == BLAST
    assert BLAST | {"MYB", "MMZ", "PMO", "PMB", "EBO", "LYA"} == ATYPICAL
    assert set(DISPLAY_ORDER) == set(BY_CODE) - NOT_LEUKOCYTE


def test_probability_of_a_set_is_the_sum_over_its_members() -> None:
    p = np.zeros(15, np.float32)
    p[CODES.index("MYO")], p[CODES.index("MOB")], p[CODES.index("LYT")] = 0.5, 0.25, 0.25
    assert probability_of(BLAST, p, CODES) == pytest.approx(0.75)
    assert probability_of(ATYPICAL, p, CODES[::-1]) == pytest.approx(
        sum(v for v, c in zip(p, CODES[::-1], strict=True) if c in ATYPICAL)
    )
