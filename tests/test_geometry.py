import pytest
from hypothesis import given
from hypothesis import strategies as st

from slidescreen.geometry import Box, Point, Size, area_mm2, um_to_px

whole = st.integers(-10_000, 10_000)
side = st.integers(0, 5_000)
boxes = st.builds(Box, whole, whole, side, side)


@given(boxes, boxes)
def test_intersection_lies_in_both_and_commutes(a: Box, b: Box) -> None:
    common = a.intersect(b)
    assert (common.width * common.height) == (b.intersect(a).width * b.intersect(a).height)
    if common.width and common.height:
        assert a.x <= common.x and common.right <= a.right and b.y <= common.y and common.bottom <= b.bottom
        assert a.contains(Point(common.x, common.y)) and b.contains(Point(common.x, common.y))


@given(boxes, st.integers(0, 500))
def test_expanding_keeps_the_centre(box: Box, margin: int) -> None:
    grown = box.expanded(margin)
    assert grown.centre == box.centre
    assert (grown.width, grown.height) == (box.width + 2 * margin, box.height + 2 * margin)


@given(st.floats(-1e5, 1e5), st.floats(-1e5, 1e5), st.integers(1, 800))
def test_box_around_is_centred_to_half_a_pixel(x: float, y: float, length: int) -> None:
    box = Box.around(Point(x, y), length)
    assert box.width == box.height == length
    assert abs(box.centre.x - x) <= 0.5 + 1e-6
    assert abs(box.centre.y - y) <= 0.5 + 1e-6


@given(st.floats(0, 999), st.floats(0, 999), st.integers(1, 400))
def test_boxes_that_tile_own_each_point_once(x: float, y: float, step: int) -> None:
    tiles = (
        [Box(i, j, step, step) for i in range(0, 1000, step) for j in range(0, 1000, step)]
        if step > 40
        else [Box(0, 0, 1000, 1000)]
    )
    assert sum(tile.contains(Point(x, y)) for tile in tiles) == 1


def test_sizes_and_boxes_refuse_nonsense() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        Size(0, 5)
    with pytest.raises(ValueError, match="negative"):
        Box(0, 0, -1, 5)


def test_units() -> None:
    assert um_to_px(29.0, 0.0725) == pytest.approx(400)
    assert area_mm2(62_080 * 62_400, 0.0725) == pytest.approx(20.36, abs=0.01)
