from pathlib import Path

import pytest

from slidescreen.errors import ScaleError
from slidescreen.scale import resolve_scale
from slidescreen.slide import StatedScale

PATH = Path("A12.svs")


def test_the_users_word_wins() -> None:
    scale = resolve_scale(PATH, StatedScale(0.5, 0.5, "openslide.mpp-x"), 0.0725)
    assert (scale.um_per_px, scale.source) == (0.0725, "--um-per-px")


def test_metadata_serves_and_names_its_source() -> None:
    scale = resolve_scale(PATH, StatedScale(0.1, 0.1, "openslide.mpp-x"), None)
    assert scale.um_per_px == pytest.approx(0.1)
    assert scale.source == "openslide.mpp-x"


def test_no_scale_gives_the_option_to_add() -> None:
    with pytest.raises(ScaleError, match=r"A12\.svs: the file states no um/px; add --um-per-px"):
        resolve_scale(PATH, None, None)


@pytest.mark.parametrize("value", [0.0, 0.0299, 1.01, 1000.0, -1.0, float("nan"), float("inf")])
def test_outside_the_range_is_refused_with_what_was_read(value: float) -> None:
    with pytest.raises(
        ScaleError, match=r"A12\.svs: .* um/px read from TIFF XResolution tag is outside .* add the true --um-per-px"
    ):
        resolve_scale(PATH, StatedScale(value, value, "TIFF XResolution tag"), None)
    with pytest.raises(ScaleError, match="read from --um-per-px"):
        resolve_scale(PATH, None, value)


def test_axes_that_disagree_are_refused() -> None:
    with pytest.raises(ScaleError, match="differ by more than 5 %"):
        resolve_scale(PATH, StatedScale(0.1, 0.2, "x"), None)
