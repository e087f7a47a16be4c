"""The learned detector: its size, its training, its weights, and what it finds on painted smears."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional

from slidescreen.demo import PaintedCell, paint_smear
from slidescreen.detect import HALO_UM, LATTICE_PX, Body, DetectSettings
from slidescreen.detector_card import DEFAULT_DETECTOR, load_detector_card
from slidescreen.detector_model import (
    KINDS,
    LeukocyteNet,
    _unshuffled,
    flops_per_px,
    load_detector_network,
    move_borders,
    split_maps,
)
from slidescreen.detector_network import NetworkDetector, load_detector, refusal
from slidescreen.errors import ModelError
from slidescreen.geometry import Box, Point, Size
from slidescreen.model import find_model
from slidescreen.monolayer import cut_tiles
from slidescreen.outlines import Shape, measure_focus
from slidescreen.records import Area, AreaMap, Overview, RgbImage, Scale
from slidescreen.slide import Grid, read_image
from slidescreen.training.detector import fit as training
from slidescreen.training.detector.augment import SCENE_PX, make_scene
from slidescreen.training.detector.data import LEUKOCYTE, Sample, Target
from slidescreen.training.detector.measure import (
    LabelledBox,
    LabelledField,
    Tally,
    choose_score,
    draw,
    judge,
    of_whole_cells,
    tally_cut,
)

UM_PER_PX = 0.3
SMEAR = Size(1024, 768)
Smear = tuple[RgbImage, list[PaintedCell]]


@pytest.fixture(scope="module")
def smear() -> Smear:
    return paint_smear(SMEAR, UM_PER_PX, leukocytes={"NGS": 8, "LYT": 5, "MON": 3, "EOS": 2, "MYO": 5}, seed=1)


@pytest.fixture(scope="module")
def detector() -> NetworkDetector:
    return load_detector(find_model(DEFAULT_DETECTOR), DetectSettings())


@pytest.fixture(scope="module")
def bodies(smear: Smear, detector: NetworkDetector) -> list[Body]:
    return detector.find(smear[0], UM_PER_PX)


@pytest.fixture(scope="module")
def sample(smear: Smear) -> Sample:
    """A painted piece as a training sample, its leukocytes as discs."""
    image = np.ascontiguousarray(smear[0][:400, :400])
    targets = [Target(c.centre.x, c.centre.y, LEUKOCYTE, 12.0) for c in smear[1] if max(c.box.right, c.box.bottom) < 400]
    bodies = np.zeros(image.shape[:2], np.uint8)
    rows, columns = np.ogrid[:400, :400]
    for k, t in enumerate(targets, 1):
        bodies[np.hypot(columns - t.x, rows - t.y) < 20] = k
    return Sample(image, bodies, (bodies > 0).astype(np.uint8), np.ones_like(bodies), tuple(targets))


def test_costs_at_most_5_kflop_per_px() -> None:
    assert 1000 < flops_per_px() <= 5000


def test_maps_have_the_documented_shapes() -> None:
    with torch.inference_mode():
        maps = split_maps(LeukocyteNet().eval()(torch.zeros(2, 3, 64, 96)))
    assert maps.centre.shape == (2, 1, 16, 24)
    assert maps.kind.shape == (2, len(KINDS), 16, 24)
    assert maps.offset.shape == (2, 2, 16, 24)
    assert maps.masks.shape == (2, 2, 32, 48)


def test_a_convolution_and_its_unshuffling_are_one() -> None:
    torch.manual_seed(0)
    weight, image = torch.randn(2, 5, 3, 3, dtype=torch.float64), torch.randn(1, 5, 16, 12, dtype=torch.float64)
    in_two = functional.pixel_unshuffle(functional.conv2d(image, weight, padding=1), 2)
    assert torch.allclose(functional.conv2d(image, _unshuffled(weight), stride=2, padding=1), in_two, atol=1e-12)


def test_borders_are_moved_and_nothing_else() -> None:
    torch.manual_seed(0)
    network, image = LeukocyteNet().eval(), torch.rand(1, 3, 64, 64)
    with torch.inference_mode():
        before, after = split_maps(network(image)), split_maps(move_borders(network, 0.5, -1.0)(image))
    assert torch.allclose(after.masks - before.masks, torch.tensor([0.5, -1.0])[:, None, None].expand(2, 32, 32), atol=1e-5)
    assert all(torch.equal(getattr(before, k), getattr(after, k)) for k in ("centre", "kind", "offset"))


def test_scenes_are_repeatable_and_name_what_they_hold(sample: Sample) -> None:
    sources, shares = {"painted": [sample]}, {"painted": 1.0}
    first, again = (make_scene(np.random.default_rng(5), sources, shares) for _ in range(2))
    assert np.array_equal(first.image, again.image)
    assert first.image.shape == (3, SCENE_PX, SCENE_PX)
    assert first.centre.max() <= 1
    truths = [make_scene(np.random.default_rng(i), sources, shares) for i in range(8)]
    assert any((t.centre == 1).any() for t in truths)
    assert all(set(np.unique(t.masks)) <= {0, 1, 2, 3, 4, 255} for t in truths)


def _settings(**changes: int) -> training.TrainSettings:
    return dataclasses.replace(training.TrainSettings(steps=4, batch=2, workers=0), **changes)


def test_training_is_repeatable_and_resumes_as_if_uninterrupted(
    sample: Sample, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources = {"painted": [sample]}
    whole = training.train(sources, _settings(), tmp_path / "whole").state_dict()
    monkeypatch.setattr(training, "SAVE_EVERY", 2)
    calls, follow = iter(range(9)), training.follow

    def stopped(*arguments: object) -> None:
        if next(calls) == 3:
            raise KeyboardInterrupt
        follow(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(training, "follow", stopped)
    with pytest.raises(KeyboardInterrupt):
        training.train(sources, _settings(), tmp_path / "parts")
    monkeypatch.setattr(training, "follow", follow)
    parts = training.train(sources, _settings(), tmp_path / "parts").state_dict()
    assert all(torch.equal(whole[k], parts[k]) for k in whole)
    with pytest.raises(ModelError, match="other settings"):
        training.train(sources, _settings(seed=1), tmp_path / "parts")


def test_weights_that_were_altered_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "altered"
    shutil.copytree(find_model(DEFAULT_DETECTOR), folder)
    card = load_detector_card(folder)
    load_detector_network(folder, card)
    weights = folder / "weights.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(ModelError, match="sha256"):
        load_detector_network(folder, card)


def test_a_card_of_another_model_is_refused() -> None:
    with pytest.raises(ModelError, match="give a detector's folder"):
        load_detector_card(find_model("resnext50-seed"))


def test_the_card_tells_its_sources_licences_and_measures() -> None:
    card = load_detector_card(find_model(DEFAULT_DETECTOR))
    assert "GPL-3" in card.licence
    assert "val fields" in card.measured


def test_every_painted_leukocyte_is_found_once(smear: Smear, bodies: list[Body]) -> None:
    found = [b for b in bodies if not b.refusal]
    for cell in smear[1]:
        assert sum(cell.box.contains(b.centre) for b in found) == 1, cell
    assert len(found) == len(smear[1])


def test_touching_cells_are_split(smear: Smear, detector: NetworkDetector) -> None:
    cell = next(c for c in smear[1] if c.label == "MYO")
    own = cell.box.expanded(1)
    piece = smear[0][own.y : own.bottom, own.x : own.right]
    image = np.full((160, 192, 3), np.percentile(smear[0], 90, axis=(0, 1)).astype(np.uint8), np.uint8)
    for x in (60, 60 + own.width - 4):
        place = image[60 : 60 + own.height, x : x + own.width]
        place[:] = np.minimum(place, piece)
    found = [b for b in detector.find(image, UM_PER_PX) if not b.refusal]
    assert len(found) == 2
    assert abs(found[0].centre.x - found[1].centre.x) > 0.8 * own.width


def test_outlines_and_measures_agree(smear: Smear, bodies: list[Body]) -> None:
    for cell in smear[1]:
        body = next(b for b in bodies if not b.refusal and cell.box.contains(b.centre))
        assert body.area_um2 is not None
        drawn = draw(smear[0].shape[:2], [body.outline]).sum() * UM_PER_PX**2
        assert drawn == pytest.approx(body.area_um2, rel=0.05)
        assert 0.6 < body.area_um2 / (cell.box.width * cell.box.height * UM_PER_PX**2 * np.pi / 4) < 1.4
        assert 5 < body.nucleus_um2 <= body.area_um2
        assert body.eccentricity is not None
        assert 0 <= body.eccentricity < 1
        assert all(body.box.x <= p.x <= body.box.right and body.box.y <= p.y <= body.box.bottom for p in body.outline)


@pytest.mark.parametrize("um_per_px", [0.26, 0.3, 0.36, 0.41])
def test_bodies_do_not_depend_on_where_the_image_begins(smear: Smear, detector: NetworkDetector, um_per_px: float) -> None:
    x, y, halo = LATTICE_PX, LATTICE_PX, round(HALO_UM / um_per_px)
    whole = detector.find(smear[0], um_per_px)
    part = detector.find(np.ascontiguousarray(smear[0][y:, x:]), um_per_px)

    def inner(found: list[Body], dx: int, dy: int) -> list[tuple[float, ...]]:
        places = [(b.centre.x - dx, b.centre.y - dy, b.area_um2 or 0.0, b.nucleus_um2, b.focus or 0.0) for b in found]
        return sorted(p for p in places if p[0] > halo and p[1] > halo)

    assert len(inner(whole, x, y)) > 3
    assert np.allclose(inner(whole, x, y), inner(part, 0, 0), rtol=1e-9, atol=1e-9)


def test_tiles_start_on_the_lattice() -> None:
    grid = Grid(0, 1, Size(3000, 2000), 1.0)
    blank = np.zeros((1, 1, 3), np.uint8)
    codes = np.full((20, 30), Area.MONOLAYER, np.uint8)
    area = AreaMap(codes, codes == Area.MONOLAYER, 100.0, {}, Overview(blank, blank[..., 0], np.ones((1, 1), bool), 3000.0))
    for tile in cut_tiles(grid, area, HALO_UM, Scale(0.3, "test"), shift=37, lattice=LATTICE_PX):
        assert tile.window.x % LATTICE_PX == tile.window.y % LATTICE_PX == 0
        assert tile.core.x - tile.window.x >= HALO_UM / 0.3 or tile.window.x == 0
        assert tile.window.right >= min(3000, tile.core.right + HALO_UM / 0.3)


def test_ink_and_dust_are_no_leukocytes(detector: NetworkDetector) -> None:
    image = np.full((512, 512, 3), 240, np.uint8)
    image[100:130, 50:450] = (25, 30, 110)
    image[300:312, 200:212] = 15
    image[400:404, 300:330] = 40
    assert not [b for b in detector.find(image, UM_PER_PX) if not b.refusal]


@pytest.mark.parametrize("side", [14, 17, 25, 40])
@pytest.mark.parametrize("glass", [(240, 240, 240), (235, 215, 180), (190, 200, 220)])
def test_neutral_dust_is_no_leukocyte(detector: NetworkDetector, side: int, glass: tuple[int, int, int]) -> None:
    image = np.full((512, 512, 3), glass, np.uint8)
    image[300 : 300 + side, 200 : 200 + side] = np.uint8(15)
    image[100 : 100 + side, 200 : 200 + side] = np.array(glass) // 4
    assert not [b for b in detector.find(image, UM_PER_PX) if not b.refusal]


@pytest.mark.parametrize("radius", [8, 14, 22, 35])
def test_bubbles_and_precipitate_are_no_leukocytes(detector: NetworkDetector, radius: int) -> None:
    """On glass: a dark refracting ring, bright inside, and a swarm of purple grains."""
    image = np.full((512, 512, 3), 240, np.uint8)
    cv2.circle(image, (150, 150), radius, (250, 250, 250), -1, cv2.LINE_AA)
    cv2.circle(image, (150, 150), radius, (60, 60, 65), 2, cv2.LINE_AA)
    for x, y in np.random.default_rng(radius).normal(360, radius / 2, (40, 2)).astype(int).tolist():
        cv2.circle(image, (x, y), 1, (75, 30, 105), -1, cv2.LINE_AA)
    assert not [b for b in detector.find(image, UM_PER_PX) if not b.refusal]


def test_empty_glass_holds_nothing(detector: NetworkDetector) -> None:
    assert detector.find(np.full((100, 90, 3), 235, np.uint8), UM_PER_PX) == []


@pytest.mark.parametrize(
    ("kind", "area", "reason"),
    [
        ("leukocyte", 120.0, ""),
        ("leukocyte", 11.0, "too small (platelet or precipitate)"),
        ("leukocyte", 2000.0, "too large (clump)"),
        ("platelet", 12.0, "platelet"),
        ("platelet", 60.0, "giant or aggregated platelets"),
        ("artefact", 60.0, "artefact (precipitate, dust or ink)"),
    ],
)
def test_refusals_are_named(kind: str, area: float, reason: str) -> None:
    nucleus = area / 2 if kind == "leukocyte" else area / 10
    shape = Shape(Point(5, 5), Box(0, 0, 10, 10), (), (), area, nucleus, 0.3, 0.6, kind, 0.9)
    assert refusal(shape, DetectSettings()) == reason


def test_a_platelet_with_a_nucleus_is_a_leukocyte() -> None:
    shape = Shape(Point(5, 5), Box(0, 0, 10, 10), (), (), 60.0, 11.0, 0.3, 0.6, "platelet", 0.9)
    assert refusal(shape, DetectSettings()) == "giant or aggregated platelets"
    assert not refusal(dataclasses.replace(shape, nucleus_um2=16.0), DetectSettings())


def test_what_is_of_no_colour_is_refused() -> None:
    shape = Shape(Point(5, 5), Box(0, 0, 10, 10), (), (), 60.0, 30.0, 0.3, 0.6, "leukocyte", 0.9, neutrality=0.7)
    assert not refusal(shape, DetectSettings())
    assert refusal(dataclasses.replace(shape, neutrality=0.8), DetectSettings()) == "artefact (precipitate, dust or ink)"


def test_what_a_border_cuts_is_not_refused_for_being_small() -> None:
    shape = Shape(Point(5, 5), Box(0, 0, 10, 10), (), (), 11.0, 3.0, 0.3, 0.6, "leukocyte", 0.9)
    assert refusal(shape, DetectSettings())
    assert not refusal(shape, DetectSettings(), cut=True)
    assert refusal(dataclasses.replace(shape, kind="platelet", nucleus_um2=2.0), DetectSettings(), cut=True) == "platelet"
    assert refusal(dataclasses.replace(shape, nucleus_um2=2.0), DetectSettings(), cut=True) == "no nucleus"


@pytest.mark.parametrize("side", ["left", "top", "right", "bottom"])
def test_a_cell_cut_to_less_than_half_is_found(smear: Smear, detector: NetworkDetector, side: str) -> None:
    """At every side: the detector fills up the right and the bottom with white."""
    whole, found = Box(0, 0, SMEAR.width, SMEAR.height), 0
    cells = [c for c in smear[1] if c.label == "NGS" and whole.intersect(c.box.expanded(100)) == c.box.expanded(100)]
    for cell in cells:
        box, seen = cell.box, round(0.35 * cell.box.width)
        shown = {
            "left": Box(box.right - seen, 0, SMEAR.width, SMEAR.height),
            "top": Box(0, box.bottom - seen, SMEAR.width, SMEAR.height),
            "right": Box(0, 0, box.x + seen, SMEAR.height),
            "bottom": Box(0, 0, SMEAR.width, box.y + seen),
        }[side].intersect(whole)
        image = np.ascontiguousarray(smear[0][shown.y : shown.bottom, shown.x : shown.right])
        centres = (b.centre for b in detector.find(image, UM_PER_PX) if not b.refusal)
        found += any(box.contains(Point(c.x + shown.x, c.y + shown.y)) for c in centres)
    assert found >= 0.8 * len(cells)
    assert len(cells) > 3


@pytest.mark.parametrize("first", [True, False])
def test_leukocytes_of_which_little_is_seen_are_found_at_every_border(
    real_images: Path, detector: NetworkDetector, first: bool
) -> None:
    """Of real ones, on training fields that were not learned from: 4 um of each at the beginning of its field, or at its end."""
    fields = [f for f in training.tuning_fields(real_images / "fields") if f.camera == "cellavision"]
    tally = sum((tally_cut(f, read_image(f.path), detector, 4.0, first=first) for f in fields), Tally())
    assert tally.labelled > 80
    assert tally.recall > 0.85


def test_focus_does_not_depend_on_where_the_image_lies(smear: Smear) -> None:
    grey = np.ascontiguousarray(smear[0].mean(2).astype(np.uint8)[:60, :70])
    found = set()
    for offset in range(33):
        memory = np.zeros(grey.size + 64, np.uint8)
        moved = memory[offset : offset + grey.size].reshape(grey.shape)
        moved[:] = grey
        found.add(measure_focus(moved, Box(3, 2, 61, 50), UM_PER_PX))
    assert len(found) == 1


def test_focus_falls_with_blur(smear: Smear) -> None:
    import cv2

    grey = cv2.cvtColor(smear[0], cv2.COLOR_RGB2GRAY)
    box = smear[1][0].box
    blurred = cv2.GaussianBlur(grey, (0, 0), 3.0)
    assert measure_focus(blurred, box, UM_PER_PX) < 0.6 * measure_focus(grey, box, UM_PER_PX)


def test_judging_counts_each_leukocyte_once() -> None:
    boxes = (LabelledBox("WBC", 0, 0, 40, 40), LabelledBox("WBC", 100, 0, 140, 40), LabelledBox("RBC", 50, 50, 60, 60))
    field = LabelledField(Path("none"), "bccd", 0.1, boxes)
    at = [Body(Point(x, 20), Box(x, 20, 1, 1), 30.0) for x in (20, 22, 70)]
    judged = judge(field, [*at, Body(Point(120, 20), Box(120, 20, 1, 1), 30.0, "platelet")])
    assert (judged.tally.labelled, judged.tally.found, judged.tally.false) == (2, 1, 2)


def test_of_centre_scores_the_one_that_misses_less_is_chosen(tmp_path: Path) -> None:
    Image.new("RGB", (200, 100)).save(tmp_path / "field.png")
    boxes = (LabelledBox("WBC", 0, 0, 40, 40), LabelledBox("WBC", 100, 0, 140, 40))
    field = LabelledField(tmp_path / "field.png", "bccd", UM_PER_PX, boxes)
    at = {(20, 20): 0.9, (120, 20): 0.32, (60, 80): 0.34, (80, 80): 0.34, (160, 80): 0.34}
    bodies = [Body(Point(x, y), Box(x, y, 1, 1), 20.0, score=score) for (x, y), score in at.items()]
    assert choose_score([field], lambda _: _Finds(bodies)) == 0.25


@dataclasses.dataclass(frozen=True)
class _Finds:
    bodies: list[Body]

    def find(self, image: RgbImage, um_per_px: float) -> list[Body]:
        return self.bodies

    def look(self, image: RgbImage, um_per_px: float) -> Callable[[], list[Body]]:
        return lambda: self.bodies


def test_cells_that_the_border_cuts_are_left_out_found_or_not(tmp_path: Path) -> None:
    Image.new("RGB", (200, 100)).save(tmp_path / "field.png")
    boxes = [LabelledBox("WBC", 0, 10, 20, 40), LabelledBox("WBC", 60, 20, 90, 50), LabelledBox("WBC", 170, 60, 199, 99)]
    boxes += [LabelledBox("WBC", 120, 20, 150, 50), LabelledBox("RBC", 0, 60, 20, 80)]
    field = LabelledField(tmp_path / "field.png", "bccd", UM_PER_PX, tuple(boxes))
    found = [Body(Point(x, y), Box(int(x), int(y), 1, 1), 20.0) for x, y in ((10.0, 20.0), (75.0, 35.0), (40.0, 80.0))]
    judged = judge(field, found)
    assert (judged.tally.labelled, judged.tally.found, judged.tally.false) == (4, 2, 1)
    whole = of_whole_cells(judged)
    assert (whole.tally.labelled, whole.tally.found, whole.tally.false) == (2, 1, 1)
    assert whole.missed == (boxes[3],)
