"""Scenes for the detector: a field, or four single cells, turned, scaled, restained, spoilt; with what lies where.

Every scene is a function of the samples and one random generator.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import cv2
import numpy as np
from numpy.typing import NDArray

from slidescreen.detector_model import COARSE, FINE, NETWORK_UM_PER_PX, OFFSET_UM, STRIDE
from slidescreen.geometry import Box, Point
from slidescreen.training.detector.data import (
    ARTEFACT,
    IGNORED,
    LEUKOCYTE,
    PLATELET,
    SAMPLE_UM_PER_PX,
    Sample,
    Target,
)

SCENE_PX: Final = 128
SCALES: Final = (0.7, 1.4)
SINGLES: Final = ("masks 1", "cells", "platelets")
"""Groups of samples that hold one cell each and are shown four at a time."""
OUTLINED: Final = ("masks 1", "masks 2")
"""Groups of expertly outlined cells, which are also pasted beside others."""
CUT_OUT: Final = "cut out platelets"
"""Group of outlined platelets, which are only pasted beside others, enlarged to giant ones."""
GIANT: Final = (1.0, 1.8)
GRAIN_PX: Final = (0.5, 1.1)
"""How much noise is blurred to make the grains of a pasted platelet, ..."""
GRAIN_COLOUR: Final = np.array([1.0, 1.2, 0.6])
"""... and their optical density per channel, in units of red light's."""
BEYOND: Final = 0.4
"""How often a scene ends before its image does, at each side: what lies beyond a scan is white, up to the network's stride."""
BARE: Final = 0.04
"""Share of scenes that show glass and dirt only."""
FLUSH: Final = 0.45
"""How often a field is moved so that it ends where the scene does, in each direction."""
CUT: Final = 0.35
"""How often a field is moved so that the scene's border cuts a leukocyte, ..."""
SEEN_UM: Final = (2.0, 7.0)
"""... of which so much is seen."""
SEEN_PX: Final = 22
"""Of a body that the scene's border cuts, 2 um^2 are seen, or nothing is said of it."""
HIDDEN: Final = -1e3
"""Where targets are put that the scene does not show any more."""

Canvas = NDArray[np.float32]
Bytes = NDArray[np.uint8]


@dataclass(slots=True, eq=False)
class Scene:
    """A scene in the making, at the network's scale. `image` (s, s, 3) float32 in [0, 255]; the label maps as in `Sample`;
    `targets` in px of the scene; `shown`: the part that is no strip of white beyond the scan."""

    image: Canvas
    bodies: Bytes
    nuclei: Bytes
    centres_known: Bytes
    targets: list[Target]
    shown: Box


@dataclass(frozen=True, slots=True, eq=False)
class Truth:
    """What the network should say of one scene; 255 (or a weight of 0) where that is unknown.

    `image` (3, s, s) uint8. `centre` (s/4, s/4) float32 in [0, 1], `centre_weight` the same shape. `kind` (s/4, s/4) int64.
    `offset` (2, s/4, s/4) float32. `masks` (2, s/2, s/2) uint8: how many of the 2 x 2 px are body, and nucleus.
    """

    image: Bytes
    centre: NDArray[np.float32]
    centre_weight: NDArray[np.float32]
    kind: NDArray[np.int64]
    offset: NDArray[np.float32]
    masks: Bytes


def make_scene(rng: np.random.Generator, sources: Mapping[str, Sequence[Sample]], shares: Mapping[str, float]) -> Truth:
    """One scene from `sources`, groups of samples by name, drawn with the chances `shares`."""
    names = list(shares)
    name = names[int(rng.choice(len(names), p=np.array([shares[n] for n in names]) / sum(shares.values())))]
    scene = Scene(
        np.empty((SCENE_PX, SCENE_PX, 3), np.float32),
        np.full((SCENE_PX, SCENE_PX), IGNORED, np.uint8),
        np.full((SCENE_PX, SCENE_PX), IGNORED, np.uint8),
        np.zeros((SCENE_PX, SCENE_PX), np.uint8),
        [],
        Box(0, 0, SCENE_PX, SCENE_PX) if name in SINGLES else _shown(rng),
    )
    if rng.random() < BARE:
        return _bare_glass(rng, scene)
    first = _drawn(rng, sources[name])
    scene.image[:] = (_glass(first.image), 255.0, rng.uniform(0, 255))[int(rng.choice(3, p=(0.5, 0.3, 0.2)))]
    if name in SINGLES:
        half = SCENE_PX // 2
        for y in (0, half):
            for x in (0, half):
                _show(rng, scene, _drawn(rng, sources[name]), x, y, half)
    else:
        _show(rng, scene, first, 0, 0, SCENE_PX)
        outlined = [group for group in (*OUTLINED, CUT_OUT) if sources.get(group)]
        if outlined and rng.random() < 0.45:
            for _ in range(int(rng.integers(1, 4))):
                _paste_cell(rng, scene, _drawn(rng, sources[outlined[int(rng.integers(len(outlined)))]]))
    if rng.random() < 0.4:
        for _ in range(int(rng.integers(1, 4))):
            _add_dirt(rng, scene)
    return _finished(rng, scene)


def _finished(rng: np.random.Generator, scene: Scene) -> Truth:
    image = _spoil(rng, _restain(rng, scene.image))
    _end(scene, image)
    return _truth(scene, image)


def _shown(rng: np.random.Generator) -> Box:
    """What is left of a scene that may end at any side before its image does."""
    left, top, right, bottom = np.where(rng.random(4) < BEYOND, rng.integers(1, STRIDE, 4), 0).tolist()
    return Box(left, top, SCENE_PX - left - right, SCENE_PX - top - bottom)


def _end(scene: Scene, image: Bytes) -> None:
    """White and nothing else beyond what is shown."""
    beyond = np.ones((SCENE_PX, SCENE_PX), bool)
    beyond[scene.shown.y : scene.shown.bottom, scene.shown.x : scene.shown.right] = False
    image[beyond] = 255
    scene.bodies[beyond] = scene.nuclei[beyond] = 0
    scene.centres_known[beyond] = 1


def _bare_glass(rng: np.random.Generator, scene: Scene) -> Truth:
    """Dirt on glass without a cell."""
    scene.image[:] = rng.uniform(150, 255) * (1 - rng.uniform(0, 0.15, 3))
    scene.bodies[:] = scene.nuclei[:] = 0
    scene.centres_known[:] = 1
    for _ in range(int(rng.integers(1, 5))):
        _add_dirt(rng, scene)
    return _finished(rng, scene)


def _drawn(rng: np.random.Generator, samples: Sequence[Sample]) -> Sample:
    return samples[int(rng.integers(len(samples)))]


def _turn(rng: np.random.Generator, squeeze: float = 0.08) -> NDArray[np.float64]:
    """(2, 2): sample px -> scene px; scale, slight squeeze, quarter turns, mirror, sometimes any angle."""
    scale = SAMPLE_UM_PER_PX / NETWORK_UM_PER_PX * np.exp(rng.uniform(*np.log(SCALES)))
    stretch = np.diag([scale * np.exp(rng.normal(0, squeeze)), scale * (-1) ** rng.integers(2)])
    angle = (rng.integers(4) * np.pi / 2) + (rng.uniform(-0.8, 0.8) if rng.random() < 0.3 else 0.0)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return np.asarray(turn @ stretch)


def _show(rng: np.random.Generator, scene: Scene, sample: Sample, x: int, y: int, side: int) -> None:
    """Fill the square of the scene with the part of the sample around one of its targets, or around any point of it."""
    turn = _turn(rng)
    height, width = sample.image.shape[:2]
    if sample.targets and (side < SCENE_PX or rng.random() < 0.4):
        target = sample.targets[int(rng.integers(len(sample.targets)))]
        look, reach = np.array([target.x, target.y]), 0.3
    else:
        look, reach = np.array([width / 2, height / 2]), 0.25
    shift = np.array([side, side]) * (0.5 + rng.uniform(-reach, reach, 2)) - turn @ look
    size = float(np.sqrt(abs(np.linalg.det(turn)))) * NETWORK_UM_PER_PX / SAMPLE_UM_PER_PX
    if side == SCENE_PX:
        shift += _flush(rng, scene.shown, turn @ np.array([[0, width, 0, width], [0, 0, height, height]]) + shift[:, None])
        leukocytes = [t for t in sample.targets if t.kind == LEUKOCYTE]
        if leukocytes and rng.random() < CUT:
            target = leukocytes[int(rng.integers(len(leukocytes)))]
            radius = 0.5 * size * target.diameter_um / NETWORK_UM_PER_PX
            shift += _cut(rng, scene.shown, turn @ np.array([target.x, target.y]) + shift, radius)
    matrix = np.hstack([turn, shift[:, None]])
    here = np.s_[y : y + side, x : x + side]
    inside = _warp(np.ones((height, width), np.uint8), matrix, side) > 0
    np.copyto(scene.image[here], _warp(sample.image, matrix, side, smooth=True), where=inside[..., None])
    bodies = _warp(sample.bodies, matrix, side)
    bodies[(bodies > 0) & (bodies < IGNORED)] += len(scene.targets)
    np.copyto(scene.bodies[here], bodies, where=inside)
    np.copyto(scene.nuclei[here], _warp(sample.nuclei, matrix, side), where=inside)
    np.copyto(scene.centres_known[here], _warp(sample.centres_known, matrix, side), where=inside)
    for target in sample.targets:
        at = turn @ np.array([target.x, target.y]) + shift + np.array([x, y])
        scene.targets.append(Target(float(at[0]), float(at[1]), target.kind, target.diameter_um * size))


def _flush(rng: np.random.Generator, shown: Box, corners: NDArray[np.float64]) -> NDArray[np.float64]:
    """A move after which the field with these corners (2, 4) sometimes begins or ends where the scene does."""
    low, high = (shown.x, shown.y) - corners.min(1), (shown.right, shown.bottom) - corners.max(1)
    return np.where(rng.random(2) < FLUSH, np.where(rng.random(2) < 0.5, low, high), 0.0)


def _cut(rng: np.random.Generator, shown: Box, centre: NDArray[np.float64], radius: float) -> NDArray[np.float64]:
    """A move after which the scene's border leaves little to be seen of a cell with this centre and radius, px."""
    axis, beyond = int(rng.integers(2)), radius - rng.uniform(*SEEN_UM) / NETWORK_UM_PER_PX
    low, high = ((shown.x, shown.right), (shown.y, shown.bottom))[axis]
    move = np.zeros(2)
    move[axis] = (low - beyond if rng.random() < 0.5 else high + beyond) - centre[axis]
    return move


def _warp(image: Bytes, matrix: NDArray[np.float64], side: int, *, smooth: bool = False) -> Bytes:
    """Moved by `matrix`, continuous coordinates: px i covers [i, i + 1)."""
    shifted = matrix.copy()
    shifted[:, 2] += matrix[:, :2] @ (0.5, 0.5) - 0.5
    method = cv2.INTER_LINEAR if smooth else cv2.INTER_NEAREST
    border = cv2.BORDER_REPLICATE if smooth else cv2.BORDER_CONSTANT
    return np.asarray(cv2.warpAffine(image, shifted, (side, side), flags=method, borderMode=border), np.uint8)


def _paste_cell(rng: np.random.Generator, scene: Scene, sample: Sample) -> None:
    """Put an outlined body into the scene, tinted as the scene's glass, often so that it touches another."""
    target = sample.targets[0]
    turn = _turn(rng) * (rng.uniform(*GIANT) if target.kind == PLATELET else 1.0)
    side = SCENE_PX
    others = [t for t in scene.targets if t.kind == LEUKOCYTE and 0 <= t.x < side and 0 <= t.y < side]
    size = float(np.sqrt(abs(np.linalg.det(turn)))) * NETWORK_UM_PER_PX / SAMPLE_UM_PER_PX
    diameter = target.diameter_um * size
    if others and rng.random() < 0.7:
        other = others[int(rng.integers(len(others)))]
        apart = rng.uniform(0.45, 0.62) * (other.diameter_um + diameter) / NETWORK_UM_PER_PX
        angle = rng.uniform(0, 2 * np.pi)
        at = np.array([other.x + apart * np.cos(angle), other.y + apart * np.sin(angle)])
    else:
        at = rng.uniform(0, side, 2)
    if not (0 <= at[0] < side and 0 <= at[1] < side) or len(scene.targets) > 200:
        return
    matrix = np.hstack([turn, (at - turn @ np.array([target.x, target.y]))[:, None]])
    body = _warp(sample.bodies, matrix, side) == 1
    if _hides(scene, body):
        return
    cell = _warp(sample.image, matrix, side, smooth=True).astype(np.float32)
    if target.kind == PLATELET:
        cell = _granular(rng, cell)
    gain = (np.percentile(scene.image[::4, ::4].reshape(-1, 3), 85, axis=0) + 8) / (_glass(sample.image) + 8)
    weight = cv2.GaussianBlur(body.astype(np.float32), (0, 0), 0.8)[..., None]
    scene.image[:] = (1 - weight) * scene.image + weight * np.clip(cell * gain, 0, 255)
    scene.targets.append(Target(float(at[0]), float(at[1]), target.kind, diameter))
    scene.bodies[body] = len(scene.targets)
    scene.nuclei[body] = _warp(sample.nuclei, matrix, side)[body]
    scene.centres_known[body] = 1


def _granular(rng: np.random.Generator, cell: Canvas) -> Canvas:
    """With purple grains: enlarged platelets have lost theirs, giant ones are full of them."""
    grains = np.asarray(cv2.GaussianBlur(rng.standard_normal(cell.shape[:2], np.float32), (0, 0), rng.uniform(*GRAIN_PX)))
    density = rng.uniform(0, 0.15) + rng.uniform(0, 0.35) * grains / grains.std()
    return np.asarray(cell * np.exp(-density[..., None] * GRAIN_COLOUR), np.float32)


def _hides(scene: Scene, body: NDArray[np.bool_]) -> bool:
    """Whether the body would cover more than a fifth of another one, or its middle."""
    labels = scene.bodies[body]
    for k in np.unique(labels[(labels > 0) & (labels < IGNORED)]):
        target = scene.targets[k - 1]
        centre = body[min(SCENE_PX - 1, max(0, int(target.y))), min(SCENE_PX - 1, max(0, int(target.x)))]
        if centre or (labels == k).sum() > 0.2 * (scene.bodies == k).sum():
            return True
    return False


def _glass(image: Bytes) -> NDArray[np.float64]:
    return np.asarray(np.percentile(image[::3, ::3].reshape(-1, 3), 90, axis=0))


def _add_dirt(rng: np.random.Generator, scene: Scene) -> None:
    """Dust, ink, precipitate or a bubble. What is of a cell's size becomes a target of its own kind, larger things ground."""
    side = SCENE_PX
    x, y = rng.uniform(8, side - 8, 2)
    shade = np.zeros((side, side), np.float32)
    dirt = int(rng.choice(5, p=(0.36, 0.16, 0.16, 0.16, 0.16)))
    if dirt == 0:
        colour = rng.uniform(0, 110) * np.ones(3) + (rng.uniform(-8, 8, 3) if rng.random() < 0.7 else rng.uniform(-60, 60, 3))
    else:
        colour = np.array([70.0, 30.0, 100.0]) + rng.uniform(-30, 40, 3)
    target_um = 0.0
    if dirt == 0:  # dust: a dark angular grain, or a fibre
        radius = rng.uniform(3, 16)
        angles = np.sort(rng.uniform(0, 2 * np.pi, int(rng.integers(4, 9))))
        reach = radius * rng.uniform(rng.uniform(0.4, 0.95), 1.0, len(angles))
        points = np.stack([x + reach * np.cos(angles), y + reach * np.sin(angles)], 1)
        cv2.fillPoly(shade, [np.round(points * 8).astype(np.int32)], 1.0, cv2.LINE_AA, 3)
        target_um = 2 * radius * NETWORK_UM_PER_PX
    elif dirt in (1, 2):  # precipitate: a swarm of fine grains
        spread = rng.uniform(3, 14)
        for _ in range(int(rng.integers(6, 45))):
            px, py = rng.normal((x, y), spread)
            cv2.circle(shade, (round(px * 8), round(py * 8)), round(8 * rng.uniform(0.5, 1.8)), 1.0, -1, cv2.LINE_AA, 3)
        target_um = 3.5 * spread * NETWORK_UM_PER_PX
    elif dirt == 3:  # ink: a broad stroke
        ends = rng.uniform(-0.3 * side, 1.3 * side, (3, 2))
        cv2.polylines(shade, [ends.astype(np.int32)], False, 1.0, int(rng.integers(4, 40)), cv2.LINE_AA)
        colour = np.array([(30, 40, 110), (20, 20, 25), (20, 90, 50), (130, 25, 35)][int(rng.integers(4))], float)
    else:  # bubble or droplet: a dark refracting ring
        radius = rng.uniform(10, 70)
        cv2.circle(shade, (round(x), round(y)), round(radius), 1.0, int(rng.integers(1, 6)), cv2.LINE_AA)
        colour = rng.uniform(20, 120) * np.ones(3)
    mark = shade > 0.5
    if target_um > 4 and _hides(scene, mark):
        return
    if rng.random() < 0.7:
        shade = np.asarray(cv2.GaussianBlur(shade, (0, 0), rng.uniform(0.4, 1.2)), np.float32)
    shade *= np.float32(rng.uniform(0.6, 1.0))
    scene.image[:] = scene.image * (1 - shade[..., None]) + shade[..., None] * colour
    if target_um > 4 and len(scene.targets) < 250:
        scene.targets.append(Target(float(x), float(y), ARTEFACT, target_um))
        solid = cv2.morphologyEx(mark.astype(np.uint8), cv2.MORPH_CLOSE, np.ones((7, 7), np.uint8)) > 0
        scene.bodies[solid & (scene.bodies == 0)] = len(scene.targets)
        scene.nuclei[solid & (scene.bodies == len(scene.targets))] = 0
        scene.centres_known[solid] = 1
    elif dirt == 3:
        covered = shade > 0.6
        scene.bodies[covered] = scene.nuclei[covered] = IGNORED
        scene.bodies[covered & (cv2.erode(mark.astype(np.uint8), np.ones((5, 5), np.uint8)) > 0)] = 0
        scene.targets[:] = [
            t
            if not (0 <= t.x < side and 0 <= t.y < side and covered[int(t.y), int(t.x)])
            else Target(HIDDEN, HIDDEN, t.kind, 1.0)
            for t in scene.targets
        ]


def _restain(rng: np.random.Generator, image: Canvas) -> Canvas:
    """Other stain strength, other glass, other white balance."""
    x = np.clip(image, 0, 255) * np.float32(1 / 255)
    if rng.random() < 0.85:
        glass = np.clip(np.percentile(x[::4, ::4].reshape(-1, 3), 90, axis=0), 0.2, 1.0)
        density = -np.log((x + np.float32(0.004)) / _single(glass + 0.004))
        strength = np.diag(np.exp(rng.normal(0, 0.25)) * np.exp(rng.normal(0, 0.12, 3)))
        if rng.random() < 0.5:  # each dye another hue: bluish or brownish red cells
            strength = strength @ (np.eye(3) + rng.normal(0, 0.09, (3, 3)))
        density = density @ _single(strength)
        new = rng.uniform(0.55, 1.0) * np.array([1.0, 1.0, 1.0]) if rng.random() < 0.5 else glass
        tint = np.exp(-np.abs(rng.normal(0, 0.12, 3)))
        if rng.random() < 0.2:
            tint *= np.array([1.0, rng.uniform(0.8, 1.0), rng.uniform(0.45, 0.9)])  # yellow to brown light
        x = _single(new * tint) * np.exp(-density)
    if rng.random() < 0.5:
        x = np.clip(x, 0, 1) ** np.float32(np.exp(rng.normal(0, 0.2)))
    if rng.random() < 0.3:
        grey = x.mean(2, keepdims=True)
        x = grey + (x - grey) * np.float32(rng.uniform(0.5, 1.4))
    if rng.random() < 0.4:
        ramp = np.linspace(-1, 1, x.shape[0], dtype=np.float32)
        down, across = _single(rng.normal(0, 0.08, 2))
        x = x * (1 + down * ramp[:, None, None] + across * ramp[None, :, None])
    return np.asarray(np.clip(255 * x, 0, 255), np.float32)


def _single(values: NDArray[np.float64]) -> NDArray[np.float32]:
    return np.asarray(values, np.float32)


def _spoil(rng: np.random.Generator, image: Canvas) -> Bytes:
    """Colour fringes, blur, sharpening, noise, JPEG."""
    if rng.random() < 0.2:
        for channel, way in ((0, 1.0), (2, -1.0)):
            dx, dy = way * rng.uniform(-1, 1, 2)
            move = np.array([[1, 0, dx], [0, 1, dy]])
            image[..., channel] = cv2.warpAffine(
                image[..., channel], move, (SCENE_PX, SCENE_PX), borderMode=cv2.BORDER_REPLICATE
            )
    chance = rng.random()
    if chance < 0.5:
        image = np.asarray(cv2.GaussianBlur(image, (0, 0), rng.uniform(0.3, 2.0)), np.float32)
    elif chance < 0.65:
        image = image + rng.uniform(0.3, 1.2) * (image - np.asarray(cv2.GaussianBlur(image, (0, 0), 1.0)))
    if rng.random() < 0.1:
        small = cv2.resize(image, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
        image = np.asarray(cv2.resize(small, image.shape[1::-1], interpolation=cv2.INTER_LINEAR), np.float32)
    if rng.random() < 0.5:
        image = image + np.float32(rng.uniform(0.5, 7)) * rng.standard_normal(image.shape, np.float32)
    pixels = np.clip(np.rint(image), 0, 255).astype(np.uint8)
    if rng.random() < 0.5:
        _, coded = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(30, 96))])
        pixels = np.asarray(cv2.imdecode(coded, cv2.IMREAD_COLOR), np.uint8)
    return pixels


def _truth(scene: Scene, image: Bytes) -> Truth:
    coarse = SCENE_PX // COARSE
    middle = COARSE * (np.arange(coarse) + 0.5)
    centre, known = np.zeros((coarse, coarse), np.float32), scene.centres_known[COARSE // 2 :: COARSE, COARSE // 2 :: COARSE]
    offset = np.zeros((2, coarse, coarse), np.float32)
    kind = np.full((coarse, coarse), IGNORED, np.int64)
    body = scene.bodies[COARSE // 2 :: COARSE, COARSE // 2 :: COARSE]
    for k, whole in enumerate(scene.targets, 1):
        target = _as_seen(whole, scene.bodies == k, scene.shown)
        if target is None:
            known = known * (body != k)
            body = np.where(body == k, IGNORED, body)
            continue
        dx, dy = target.x - middle[None, :], target.y - middle[:, None]
        spread = max(3.0, 0.13 * target.diameter_um / NETWORK_UM_PER_PX)
        bump = np.exp(-(dx**2 + dy**2) / (2 * spread**2)).astype(np.float32)
        row, column = int(target.y // COARSE), int(target.x // COARSE)
        bump[row, column] = 1.0
        np.maximum(centre, bump, out=centre)
        own = body == k
        own[row, column] = True
        scaled = np.stack(np.broadcast_arrays(dx, dy)) * (NETWORK_UM_PER_PX / OFFSET_UM)
        offset[:, own] = scaled[:, own]
        kind[own] = target.kind
    masks = np.stack([_covered(np.where(scene.bodies == IGNORED, IGNORED, scene.bodies > 0)), _covered(scene.nuclei)])
    return Truth(
        np.ascontiguousarray(image.transpose(2, 0, 1)),
        centre,
        np.maximum(known, (centre == 1.0)).astype(np.float32),
        kind,
        offset,
        masks,
    )


def _as_seen(target: Target, body: NDArray[np.bool_], shown: Box) -> Target | None:
    """The target; of a body that the scene's border cuts, moved to the middle of what is seen; None if too little is."""
    seen = body[shown.y : shown.bottom, shown.x : shown.right]
    cut = seen[0].any() or seen[-1].any() or seen[:, 0].any() or seen[:, -1].any()
    if target.x == HIDDEN or not (cut or shown.contains(Point(target.x, target.y))):
        return None
    if not cut:
        return target
    if np.count_nonzero(seen) < SEEN_PX:
        return None
    y, x = (float(v.mean()) + 0.5 for v in np.nonzero(body))
    return Target(x, y, target.kind, target.diameter_um)


def _covered(labels: NDArray[Any]) -> Bytes:
    """(s, s) of 0, 1 or 255 -> (s/2, s/2): px of 2 x 2 that are 1; 255 where one is unknown."""
    side = labels.shape[0] // FINE
    blocks = labels.reshape(side, FINE, side, FINE).astype(np.uint16).sum((1, 3))
    return np.asarray(np.minimum(blocks, IGNORED), np.uint8)
