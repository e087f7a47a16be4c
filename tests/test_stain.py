"""What the colours of a body say of its nucleus, and whether it is stained."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from slidescreen.stain import by_colour, neutrality

CYTOPLASM, NUCLEUS = (190, 170, 210), (90, 50, 140)


def _cell(seed: int = 0) -> tuple[NDArray[np.uint8], NDArray[np.bool_], NDArray[np.bool_], NDArray[np.float32]]:
    """A cell's image, its body, its nucleus, and the logits of a network that draws the nucleus 3 px too wide."""
    rows, columns = np.ogrid[:60, :60]
    away = np.hypot(rows - 30, columns - 30)
    body, nucleus = away < 25, away < 12
    image = np.where(nucleus[..., None], NUCLEUS, CYTOPLASM) + np.random.default_rng(seed).normal(0, 6, (60, 60, 3))
    return image.clip(0, 255).astype(np.uint8), body, nucleus, np.asarray((15 - away) / 2, np.float32)


def _dice(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> float:
    return float(2 * (a & b).sum() / (a.sum() + b.sum()))


@pytest.mark.parametrize("gain", [(1.0, 1.0, 1.0), (1.0, 0.8, 0.5), (0.6, 0.7, 0.8)])
def test_colours_correct_a_nucleus_drawn_too_wide_in_any_light(gain: tuple[float, ...]) -> None:
    image, body, nucleus, logits = _cell()
    lit = (image * gain).astype(np.uint8)
    assert _dice((logits > 0) & body, nucleus) < 0.82
    assert _dice((by_colour(logits, body, lit) > 0) & body, nucleus) > 0.98


def test_where_only_one_of_the_two_is_seen_the_network_is_believed() -> None:
    image, body, nucleus, logits = _cell()
    assert by_colour(logits, nucleus, image) is logits
    assert by_colour(np.full_like(logits, -3), body, image).max() == -3


def test_cells_painted_in_one_colour_divide_by_nothing() -> None:
    _, body, nucleus, logits = _cell()
    image = np.where(nucleus[..., None], NUCLEUS, CYTOPLASM).astype(np.uint8)
    said = by_colour(logits, body, image)
    assert np.isfinite(said).all()
    assert _dice((said > 0) & body, nucleus) > 0.98


def test_sums_do_not_depend_on_the_order_of_px() -> None:
    image, body, _, logits = _cell()
    turned = tuple(np.ascontiguousarray(a[::-1, ::-1]) for a in (logits, body, image))
    assert np.array_equal(by_colour(*turned)[::-1, ::-1], by_colour(logits, body, image))


def _px(colours: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """(n, 3) as an image all of which is body."""
    return colours[None], np.ones((1, len(colours)), np.bool_)


@pytest.mark.parametrize("glass", [(240, 240, 240), (240, 215, 170), (150, 160, 190)])
def test_shadows_are_neutral_and_nuclei_are_not_on_any_glass(glass: tuple[int, int, int]) -> None:
    around = np.random.default_rng(0).normal(glass, 3, (500, 3)).clip(0, 255).astype(np.uint8)
    shadow = np.tile((np.array(glass) * 0.3).astype(np.uint8), (50, 1))
    stained = np.tile((np.array(glass) * (0.35, 0.2, 0.6)).astype(np.uint8), (50, 1))
    assert neutrality(*_px(shadow), around) > 0.9
    assert neutrality(*_px(stained), around) < 0.5


def test_only_the_body_is_asked_for_its_colour() -> None:
    image, body, nucleus, _ = _cell()
    glass = np.full((50, 3), 235, np.uint8)
    grey = np.where(body[..., None], image, 20).astype(np.uint8)
    assert neutrality(grey, nucleus, glass) < 0.5
    assert neutrality(grey, ~body, glass) > 0.9


def test_what_is_hardly_seen_has_no_colour() -> None:
    glass = np.full((100, 3), 240, np.uint8)
    assert neutrality(*_px(glass[:5]), glass) == 0.0
    assert neutrality(*_px(glass[:0]), glass) == 0.0
    assert neutrality(*_px(glass), glass[:0]) == 0.0
