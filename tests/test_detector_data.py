"""What the detector learns from: boxes that are doubted, cells that a border cuts, parts that do not mix."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from slidescreen.demo import PaintedCell, paint_smear
from slidescreen.geometry import Box, Size
from slidescreen.training.detector import augment, data, fit
from slidescreen.training.detector.data import LabelledBox, LabelledField, field_sample

UM_PER_PX = 0.2
SIZE = Size(900, 600)


@pytest.fixture(scope="module")
def painted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[PaintedCell]]:
    image, cells = paint_smear(SIZE, UM_PER_PX, leukocytes={"NGS": 3, "MYO": 3}, seed=3)
    path = tmp_path_factory.mktemp("fields") / "field.png"
    Image.fromarray(image).save(path)
    return path, cells


def _box(cell: PaintedCell, more: int = 0) -> LabelledBox:
    return LabelledBox("WBC", cell.box.x - more, cell.box.y, cell.box.right, cell.box.bottom)


def test_a_second_box_and_a_box_without_nucleus_are_not_learned_from(painted: tuple[Path, list[PaintedCell]]) -> None:
    path, cells = painted
    ground = LabelledBox("WBC", 5, 5, 25, 25)
    assert not any(c.box.x < 40 and c.box.y < 40 for c in cells)
    boxes = [_box(c) for c in cells]
    sample = field_sample(LabelledField(path, "bccd", UM_PER_PX, (*boxes, _box(cells[0], more=12), ground)))
    assert len(sample.targets) == len(cells)
    middles = {(round((b.xmin + b.xmax) / 2), round((b.ymin + b.ymax) / 2)) for b in boxes}
    assert {(round(t.x), round(t.y)) for t in sample.targets} == middles
    assert sample.centres_known[15, 15] == 0
    assert sample.bodies[15, 15] == data.IGNORED
    assert sample.centres_known[round(sample.targets[0].y), round(sample.targets[0].x)] == 1


def test_boxes_are_believed_where_no_stain_is_seen_at_all(tmp_path: Path) -> None:
    Image.fromarray(np.full((200, 200, 3), 220, np.uint8)).save(tmp_path / "pale.png")
    sample = field_sample(LabelledField(tmp_path / "pale.png", "raabin", UM_PER_PX, (LabelledBox("WBC", 60, 60, 120, 120),)))
    assert len(sample.targets) == 1


def test_a_cell_cut_by_the_border_is_drawn_as_half_of_one() -> None:
    whole = data._axis(100, 160, 100, 160, 600, 600, UM_PER_PX)
    assert whole == (130, 30)
    assert data._axis(0, 20, 100, 160, 600, 600, UM_PER_PX) == (0, 20)
    assert data._axis(580, 600, 100, 160, 600, 600, UM_PER_PX) == (600, 20)
    assert data._axis(0, 50, 100, 160, 600, 600, UM_PER_PX) == (25, 25)  # hardly cut
    assert data._axis(0, 30, 0, 40, 600, 600, UM_PER_PX) == (0, 30)  # in a corner


def test_of_what_the_border_cuts_and_nobody_labelled_nothing_is_known(
    painted: tuple[Path, list[PaintedCell]], tmp_path: Path
) -> None:
    """A field that begins in the middle of a cell: with a box it is learned, without one nothing is said of it."""
    path, cells = painted
    cell = max(cells, key=lambda c: c.box.x)
    left = cell.box.x + cell.box.width // 2
    with Image.open(path) as whole:
        whole.crop((left, 0, *whole.size)).save(tmp_path / "cut.png")
    row, width = cell.box.y + cell.box.height // 2, cell.box.right - left
    for boxes in ((), (LabelledBox("WBC", 0, cell.box.y, width, cell.box.bottom),)):
        sample = field_sample(LabelledField(tmp_path / "cut.png", "bccd", UM_PER_PX, boxes))
        seen = sample.bodies[row, 3], sample.centres_known[row, 3]
        assert seen == ((1, 1) if boxes else (data.IGNORED, 0))
        far = np.s_[:, width + 40 :]
        assert (sample.centres_known[far] == 1).all()
        assert (sample.bodies[far] == 0).all()


@pytest.mark.parametrize("seed", range(8))
def test_a_cell_is_moved_until_the_border_leaves_little_of_it(seed: int) -> None:
    rng = np.random.default_rng(seed)
    centre, radius = np.array([50.0, 70.0]), 22.0
    at = centre + augment._cut(rng, Box(3, 5, 110, 112), centre, radius)
    (axis,) = np.flatnonzero(at != centre)
    low, high = at[axis] + radius - (3, 5)[axis], (113, 117)[axis] - (at[axis] - radius)
    seen = 0.3 * min(low, high)
    assert augment.SEEN_UM[0] <= seen <= augment.SEEN_UM[1]


def test_the_target_of_a_cut_body_lies_in_what_is_seen() -> None:
    side = augment.SCENE_PX
    body = np.zeros((side, side), bool)
    body[40:60, :8] = True
    whole = Box(0, 0, side, side)
    seen = augment._as_seen(data.Target(-6.0, 50.0, data.LEUKOCYTE, 12.0), body, whole)
    assert seen is not None
    assert (seen.x, seen.y) == (4.0, 50.0)
    body[:] = False
    body[40:44, :4] = True  # 1.4 um^2: nobody can tell
    assert augment._as_seen(data.Target(-6.0, 42.0, data.LEUKOCYTE, 12.0), body, whole) is None
    inside = data.Target(50.0, 50.0, data.LEUKOCYTE, 12.0)
    body[:] = False
    body[45:55, 45:55] = True
    assert augment._as_seen(inside, body, whole) is inside


def test_the_target_of_a_body_cut_by_white_beyond_the_scan_lies_in_what_is_seen() -> None:
    side = augment.SCENE_PX
    body = np.zeros((side, side), bool)
    body[40:60, 112:118] = True
    target = data.Target(120.0, 50.0, data.LEUKOCYTE, 12.0)
    seen = augment._as_seen(target, body, Box(0, 0, 118, side))
    assert seen is not None
    assert (seen.x, seen.y) == (115.0, 50.0)
    assert augment._as_seen(target, np.zeros_like(body), Box(0, 0, 118, side)) is None


def test_beyond_the_scan_all_is_white_and_known_to_be_empty() -> None:
    shape = (augment.SCENE_PX, augment.SCENE_PX)
    full = np.full(shape, data.IGNORED, np.uint8)
    scene = augment.Scene(np.zeros((*shape, 3), np.float32), full, full.copy(), full * 0, [], Box(0, 4, 120, 124))
    image = np.full((*shape, 3), 90, np.uint8)
    augment._end(scene, image)
    beyond = np.ones(shape, bool)
    beyond[4:, :120] = False
    assert (image[beyond] == 255).all()
    assert not scene.bodies[beyond].any()
    assert not scene.nuclei[beyond].any()
    assert scene.centres_known[beyond].all()
    for untouched, value in ((image, 90), (scene.bodies, 255), (scene.nuclei, 255), (scene.centres_known, 0)):
        assert (untouched[~beyond] == value).all()


def test_scenes_often_end_before_their_image_does_at_every_side() -> None:
    grey = np.full((900, 900, 3), 120, np.uint8)
    sample = data.Sample(grey, *(np.zeros((900, 900), np.uint8) for _ in range(3)), ())
    ends = np.zeros(4)
    for seed in range(100):
        image = augment.make_scene(np.random.default_rng(seed), {"bccd": [sample]}, {"bccd": 1.0}).image
        ends += [(side == 255).all() for side in (image[:, 0], image[:, -1], image[:, :, 0], image[:, :, -1])]
    assert (ends > 25).all()
    assert (ends < 60).all()


def test_parts_do_not_mix(tmp_path: Path) -> None:
    rows = "".join(f"m{i:03}.png,n{i:03}.png,1\n" for i in range(100))
    (tmp_path / "masks.csv").write_text("file,mask,set\n" + rows, encoding="utf-8")
    lines = "".join(f"c{i:03}.png,LYT,Lymphocyte,pbc,0.1\n" for i in range(50))
    giants = "".join(f"{n}.webp,-,Giant thrombocyte,deepapl,0.1\n" for n in data.GIANT_PLATELETS)
    (tmp_path / "cells.csv").write_text("file,label,source_label,source,um_per_px\n" + lines + giants, encoding="utf-8")
    parts = {p: {m[0].name for m in data.list_masks(tmp_path, p)} for p in ("learn", "tune", "held back")}
    assert {k: len(v) for k, v in parts.items()} == {"learn": 70, "tune": 10, "held back": 20}
    assert sum(len(p) for p in parts.values()) == len(set().union(*parts.values()))
    learned, kept = ({c.path for c in data.list_cells(tmp_path, p)} for p in ("learn", "held back"))
    assert learned
    assert kept
    assert not learned & kept
    assert len(data.list_giants(tmp_path)) == len(data.GIANT_PLATELETS)
    assert not any("GT" in path.name for path in learned | kept)


def test_no_samples_make_no_empty_group(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("list_fields", "list_masks", "list_cells"):
        monkeypatch.setattr(fit, name, lambda *_: [])
    monkeypatch.setattr(fit, "split_tuning", lambda fields: (fields, fields))
    assert fit.load_sources(tmp_path, tmp_path, tmp_path) == {}


def _platelet(folder: Path, radius_px: int, away_px: int = 0) -> data.SingleCell:
    image = np.full((360, 360, 3), (250, 225, 200), np.uint8)
    cv2.circle(image, (290, 180), 40, (225, 180, 175), -1)  # a red cell
    cv2.circle(image, (180 + away_px, 180), radius_px, (120, 70, 150), -1)
    Image.fromarray(image).save(folder / "platelet.png")
    return data.SingleCell(folder / "platelet.png", "pbc", data.PLATELET, 0.1, alone=True)


def test_a_platelet_is_cut_out_where_its_stain_ends(tmp_path: Path) -> None:
    sample = data.platelet_sample(_platelet(tmp_path, 30))
    assert sample is not None
    assert sample.targets[0].diameter_um == pytest.approx(6.0, rel=0.05)
    assert (sample.targets[0].x, sample.targets[0].y) == pytest.approx((90.25, 90.25), abs=0.3)
    assert sample.bodies.sum() * 0.04 == pytest.approx(np.pi * 9, rel=0.08)
    assert not sample.nuclei.any()


@pytest.mark.parametrize(("radius", "away"), [(50, 0), (5, 0), (20, 40), (1, 70)])
def test_what_is_too_large_too_small_or_elsewhere_is_not_cut_out(tmp_path: Path, radius: int, away: int) -> None:
    assert data.platelet_sample(_platelet(tmp_path, radius, away)) is None


def test_cut_out_platelets_are_only_pasted() -> None:
    blank = np.zeros((8, 8), np.uint8)
    sample = data.Sample(np.zeros((8, 8, 3), np.uint8), blank, blank, blank, ())
    shares = fit.source_shares({"bccd": [sample], "platelets": [sample], augment.CUT_OUT: [sample]})
    assert set(shares) == {"bccd", "platelets"}


def test_pasted_platelets_are_enlarged_and_have_no_nucleus(tmp_path: Path) -> None:
    platelet = data.platelet_sample(_platelet(tmp_path, 25))
    assert platelet is not None
    side = augment.SCENE_PX
    largest = []
    for seed in range(40):
        blank = np.zeros((side, side), np.uint8)
        scene = augment.Scene(
            np.full((side, side, 3), 230, np.float32), blank, blank.copy(), blank + 1, [], Box(0, 0, side, side)
        )
        augment._paste_cell(np.random.default_rng(seed), scene, platelet)
        assert {t.kind for t in scene.targets} == {data.PLATELET}
        assert not scene.nuclei.any()
        largest.append(scene.targets[0].diameter_um)
    assert 5.0 * 0.7 * 0.9 < min(largest) < 5.0
    assert 8.0 < max(largest) < 5.0 * 1.4 * 1.8 * 1.15


@pytest.mark.parametrize("glass", [(240, 240, 245), (230, 205, 180), (150, 160, 190)])
def test_the_dark_part_of_each_cell_is_its_nucleus_in_any_light(tmp_path: Path, glass: tuple[int, int, int]) -> None:
    rows, columns = np.ogrid[:160, :160]
    away = np.hypot(rows - 80, columns - 80)
    shade = np.where(away < 16, 0.35, np.where(away < 36, 0.75, 1.0))[..., None] * (0.9, 0.8, 1.0)
    noise = np.random.default_rng(0).normal(0, 3, (160, 160, 3))
    Image.fromarray((np.array(glass) * shade + noise).clip(0, 255).astype(np.uint8)).save(tmp_path / "cell.png")
    box = LabelledBox("WBC", 44, 44, 116, 116)
    sample = field_sample(LabelledField(tmp_path / "cell.png", "bccd", UM_PER_PX, (box,)))
    assert set(np.unique(sample.nuclei[away < 14])) == {1}
    assert set(np.unique(sample.nuclei[(away > 18) & (away < 32)])) == {0}
    assert (sample.bodies[away < 28] == 1).all()


def test_of_a_cell_of_one_shade_no_nucleus_is_known(tmp_path: Path) -> None:
    rows, columns = np.ogrid[:160, :160]
    away = np.hypot(rows - 80, columns - 80)
    image = np.where(away < 36, 110, 240)[..., None] + np.random.default_rng(0).normal(0, 8, (160, 160, 3))
    Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(tmp_path / "cell.png")
    sample = field_sample(LabelledField(tmp_path / "cell.png", "bccd", UM_PER_PX, (LabelledBox("WBC", 44, 44, 116, 116),)))
    assert (sample.nuclei[away < 36] == data.IGNORED).all()
