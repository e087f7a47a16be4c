"""Slide, tiles -> Iterator[Cell]: every stained nucleus once, whatever the tiling.

The seam is `Detector`: an image of known scale in, bodies with a centre out. `look_at_tiles` brings tiles to it, `find_cells`
decides which tile owns a body: the one whose core holds its centre.

The detector here knows colours only. Optical densities are taken relative to the slide's own glass and red cells, so that
white balance and stain strength drop out; of each px the part that red cells cannot explain is nuclear stain (colour
deconvolution in the spirit of Ruifrok and Johnston 2001, with the red cells as the measured second stain). Nuclear stain above
a threshold is a nucleus; lobes are joined, touching nuclei split at the waist (watershed on the distance to the border),
platelets and precipitate refused by size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, Literal, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from slidescreen.geometry import Box, Point, um_to_px
from slidescreen.records import AreaMap, Cell, Outline, RgbImage, Scale, Tile
from slidescreen.slide import Grid, PixelState, Slide, choose_grid, read_grid

WORK_UM_PER_PX: Final = 0.3
HALO_UM: Final = 37.0
"""Half of the largest leukocyte (15 um) and as far as the network looks (22 um); 128 px, one step of the lattice, at the
0.29 um/px at which scans of 0.0725 um/px are searched."""

RED_CELL_OD: Final = np.array([0.20, 0.45, 0.32])
"""Optical density of a red cell, for images that hold too few to measure it."""

LATTICE_PX: Final = 128
"""Tiles start on multiples of this many px of the grid, so that a network's strides fall on the same px in all of them."""
SAMPLES: Final = 48
SAMPLE_PX: Final = 192
CENTRE_STEPS: Final = 8
DEPTH_STEPS: Final = 16

Labels = NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class DetectSettings:
    """`method`: "network" finds cells with the learned detector, "stain" by the colour rules below. Lengths in um.

    Of the network, areas in um^2 of the whole cell. `min_cell_um2`, `max_cell_um2`: leukocytes smaller or larger are refused.
    `giant_platelet_um2`: larger platelets are named giant or aggregated. `bare_um2`: a leukocyte has more nucleus than this.
    `neutral`: more neutral bodies (see `stain.neutrality`) are dust or ink. `candidate_um2`, of both methods: smaller bodies
    are no candidates at all.

    Of the colour rules, areas in um^2 of stained nucleus. `min_nucleus_um2`: smaller bodies are refused as platelet or
    precipitate. `max_nucleus_um2`: larger ones as clumps. `stain_floor`, `stain_ceiling`: the threshold on nuclear stain (see
    `Stain.nuclear`) is Otsu's, measured on the slide, held between these. `join_lobes_um`: gaps up to twice this are closed.
    `split_um`: least distance between the deepest points of two nuclei. `lobe_um2`: a smaller part is a lobe of its neighbour.
    `waist`: two parts are one nucleus when their border is deeper than this share of the shallower part. `margin_um`: added
    around the nucleus to make the cell's box.
    """

    method: Literal["network", "stain"] = "network"
    min_cell_um2: float = 15.0
    max_cell_um2: float = 900.0
    giant_platelet_um2: float = 20.0
    bare_um2: float = 5.0
    neutral: float = 0.75
    min_nucleus_um2: float = 20.0
    max_nucleus_um2: float = 500.0
    candidate_um2: float = 10.0
    stain_floor: float = 0.4
    stain_ceiling: float = 0.6
    join_lobes_um: float = 1.6
    split_um: float = 3.0
    lobe_um2: float = 40.0
    waist: float = 0.8
    margin_um: float = 2.0


@dataclass(frozen=True, slots=True)
class Body:
    """A stained body in an image. `centre`, `box` and outlines in px of that image; `box` encloses what is outlined: the cell,
    or the nucleus for a detector that knows no outlines. `nucleus`: one outline per lobe, where asked for. `score`: how sure,
    0-1. The others as in `Cell`."""

    centre: Point
    box: Box
    nucleus_um2: float
    refusal: str = ""
    outline: Outline = ()
    nucleus: tuple[Outline, ...] = ()
    area_um2: float | None = None
    eccentricity: float | None = None
    focus: float | None = None
    score: float = 1.0


class Detector(Protocol):
    """Finds leukocytes in an image of known scale."""

    def find(self, image: RgbImage, um_per_px: float) -> list[Body]:
        """Bodies in (h, w, 3) uint8 RGB. A body whose surroundings lie inside the image for `HALO_UM` is found the same
        wherever it lies in it, in all images whose origins lie on a lattice of `LATTICE_PX`."""
        ...

    def look(self, image: RgbImage, um_per_px: float) -> Callable[[], list[Body]]:
        """`find` in two steps, so that two images can be in work at once: a network looks, calling the result draws bodies."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Stain:
    """What a slide's colours are measured to be. `glass` (3,) RGB of the ground; `red_cell` (3,) optical density of a typical
    red cell per channel; `threshold`: nuclear stain above which a px is nucleus."""

    glass: NDArray[np.float64]
    red_cell: NDArray[np.float64]
    threshold: float

    def nuclear(self, image: RgbImage) -> NDArray[np.uint8]:
        """Nuclear stain x 100, (h, w) uint8, saturated to 0-255; a function of each px alone.

        Optical densities in units of the slide's red cell, (R + G) / 2 - B: nil for glass and for red cells however many lie on
        each other, positive for what absorbs red and green more than blue.
        """
        levels = np.arange(256)
        stain = np.zeros(image.shape[:2], np.float32)
        for channel, weight in enumerate((0.5, 0.5, -1.0)):
            density = -np.log((levels + 1) / (self.glass[channel] + 1)) / self.red_cell[channel]
            stain += (100 * weight * density).astype(np.float32)[image[..., channel]]
        return np.clip(np.rint(stain), 0, 255).astype(np.uint8)


def measure_stain(pixels: NDArray[np.uint8], settings: DetectSettings) -> Stain:
    """The stain of a slide from (n, 3) uint8 RGB px drawn from it at about 0.3 um/px.

    Glass: median colour around the brightest frequent lightness. Red cell: see `_red_cell`. Threshold: Otsu's over px with
    some nuclear stain.
    """
    from skimage.filters import threshold_otsu  # scipy and skimage are slow to load, and only this method needs them

    values = pixels.astype(np.float64)
    glass = _glass(values)
    density = -np.log((values + 1) / (glass + 1))
    stained = density[(density.sum(1) > 0.25) & (density.min(1) > 0.02)]
    red_cell = _red_cell(stained) if len(stained) >= 50 else RED_CELL_OD
    stain = Stain(glass, red_cell, 1.0)
    nuclear = stain.nuclear(pixels[None])[0] / 100
    some = np.clip(nuclear[nuclear > 0.25], 0, 2)
    otsu = float(threshold_otsu(some)) if len(some) > 50 and some.min() < some.max() else settings.stain_ceiling
    return Stain(glass, red_cell, float(np.clip(otsu, settings.stain_floor, settings.stain_ceiling)))


def _glass(values: NDArray[np.float64]) -> NDArray[np.float64]:
    from scipy import ndimage

    lightness = values.sum(1)
    counts, edges = np.histogram(lightness, bins=96, range=(0, 765))
    smooth = ndimage.gaussian_filter1d(counts.astype(float), 1.5)
    top = _peaks(smooth)[-1]
    near = values[np.abs(lightness - (edges[top] + edges[top + 1]) / 2) < 12]
    return np.asarray(np.median(near if len(near) else values, axis=0))


def _red_cell(density: NDArray[np.float64]) -> NDArray[np.float64]:
    """(n, 3) optical density of what is stained -> (3,) of a typical red cell.

    Haemoglobin absorbs blue and hardly any red, nuclei the reverse: of the frequent colours the red cells' is the one with the
    smallest share of red, also where nuclei cover more of the sample than red cells do.
    """
    from scipy import ndimage

    share = density[:, 0] / (density[:, 0] + density[:, 2])
    counts, edges = np.histogram(share, bins=50, range=(0, 1))
    peak = _peaks(ndimage.gaussian_filter1d(counts.astype(float), 1.5))[0]
    near = np.abs(share - (edges[peak] + edges[peak + 1]) / 2) < 0.05
    return np.asarray(np.median(density[near], axis=0))


def _peaks(smooth: NDArray[np.float64]) -> list[int]:
    """Places of the maxima that reach 15 % of the highest, in order; the highest alone where it lies at an end."""
    inner = smooth[1:-1]
    found = np.flatnonzero((inner >= smooth[:-2]) & (inner > smooth[2:]) & (inner > 0.15 * smooth.max())) + 1
    return [int(i) for i in found] or [int(smooth.argmax())]


@dataclass(frozen=True, slots=True, eq=False)
class StainDetector:
    """Detector by colour, with the stain measured on the slide."""

    stain: Stain
    settings: DetectSettings

    def look(self, image: RgbImage, um_per_px: float) -> Callable[[], list[Body]]:
        """See `Detector`. There is no network: all is in the second step."""
        return partial(self.find, image, um_per_px)

    def find(self, image: RgbImage, um_per_px: float) -> list[Body]:
        """See `Detector`. Blurs and thresholds are in whole numbers, so that a body's outline does not depend on its place."""
        from skimage.measure import regionprops

        s = self.settings
        nuclear = cv2.GaussianBlur(self.stain.nuclear(image), (0, 0), max(0.3, 0.35 / um_per_px))
        stained = (nuclear > 100 * self.stain.threshold).astype(np.uint8)
        cross = cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))
        stained = np.asarray(cv2.morphologyEx(stained, cv2.MORPH_OPEN, cross), np.uint8)
        if not stained.any():
            return []
        joined = _join(stained, s.join_lobes_um / um_per_px)
        labels = _split(stained, joined, um_per_px, s)
        bodies = []
        for region in regionprops(labels):
            y0, x0, y1, x1 = region.bbox
            area = int(stained[y0:y1, x0:x1][region.image].sum()) * um_per_px**2
            if area >= s.candidate_um2:
                bodies.append(_body(region, area, s))
        return bodies


def _join(stained: NDArray[np.uint8], reach: float) -> NDArray[np.bool_]:
    """Close gaps between lobes of up to 2 x `reach` px and fill holes."""
    from scipy import ndimage

    r = max(1, round(reach))
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * r + 1, 2 * r + 1))
    padded = cv2.copyMakeBorder(stained, r, r, r, r, cv2.BORDER_CONSTANT, value=0)
    closed = cv2.morphologyEx(padded, cv2.MORPH_CLOSE, disc)[r:-r, r:-r]
    return np.asarray(ndimage.binary_fill_holes(closed))


def _split(stained: NDArray[np.uint8], joined: NDArray[np.bool_], um_per_px: float, s: DetectSettings) -> Labels:
    """Labels (h, w), one per nucleus. Watershed from the points deepest inside the stain, then parts are put together again
    that are no nuclei of their own: lobes smaller than `lobe_um2`, and parts whose border is nearly as deep as they are."""
    from scipy import ndimage
    from skimage.feature import peak_local_max
    from skimage.segmentation import watershed

    filled = ndimage.binary_fill_holes(stained).astype(np.uint8)
    padded = cv2.copyMakeBorder(filled, 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
    inside = cv2.distanceTransform(padded, cv2.DIST_L2, 5)[1:-1, 1:-1] * um_per_px
    depth = cv2.GaussianBlur(np.clip(np.rint(DEPTH_STEPS * inside), 0, 255).astype(np.uint8), (0, 0), max(0.3, 0.5 / um_per_px))
    parts, _ = ndimage.label(joined)
    seeds = peak_local_max(depth, min_distance=max(1, round(s.split_um / um_per_px)), labels=parts, exclude_border=False)
    markers = np.zeros(joined.shape, np.int32)
    markers[tuple(seeds.T)] = np.arange(1, len(seeds) + 1)
    labels = np.asarray(watershed(-depth.astype(np.int32), markers, mask=joined), np.int32)
    return _merge(labels, filled, depth, um_per_px, s)


def _merge(labels: Labels, filled: NDArray[np.uint8], depth: NDArray[np.uint8], um_per_px: float, s: DetectSettings) -> Labels:
    """Undo the splits that separate no nuclei, the deepest border first."""
    count = int(labels.max())
    area = np.bincount(labels.ravel(), filled.ravel(), minlength=count + 1) * um_per_px**2
    peak = np.zeros(count + 1, np.int64)
    np.maximum.at(peak, labels.ravel(), depth.ravel())
    root = np.arange(count + 1)

    def find(i: int) -> int:
        while root[i] != i:
            i = int(root[i])
        return i

    for saddle, first, second in _borders(labels, depth):
        a, b = find(first), find(second)
        small = min(area[a], area[b]) < s.lobe_um2 and area[a] + area[b] < s.max_nucleus_um2
        if a != b and (small or saddle > s.waist * min(peak[a], peak[b])):
            root[max(a, b)] = min(a, b)
            area[min(a, b)] += area[max(a, b)]
            peak[min(a, b)] = max(peak[a], peak[b])
    return np.asarray(np.array([find(i) for i in range(count + 1)], np.int32)[labels])


def _borders(labels: Labels, depth: NDArray[np.uint8]) -> list[tuple[int, int, int]]:
    """(deepest point of the common border, label, label) of neighbouring parts, deepest first."""
    saddles: dict[tuple[int, int], int] = {}
    for here, there in (
        (np.s_[:, :-1], np.s_[:, 1:]),
        (np.s_[:-1], np.s_[1:]),
    ):
        a, b = labels[here], labels[there]
        met = (a != b) & (a > 0) & (b > 0)
        level = np.minimum(depth[here], depth[there])[met]
        for i, j, d in zip(a[met].tolist(), b[met].tolist(), level.tolist(), strict=True):
            key = (min(i, j), max(i, j))
            saddles[key] = max(saddles.get(key, 0), d)
    return sorted(((d, i, j) for (i, j), d in saddles.items()), key=lambda t: (-t[0], t[1], t[2]))


def _body(region: Any, area_um2: float, settings: DetectSettings) -> Body:
    y, x = region.centroid
    y0, x0, y1, x1 = region.bbox
    refusal = ""
    if area_um2 < settings.min_nucleus_um2:
        refusal = "too small (platelet or precipitate)"
    elif area_um2 > settings.max_nucleus_um2:
        refusal = "too large (clump)"
    return Body(Point(x + 0.5, y + 0.5), Box(x0, y0, x1 - x0, y1 - y0), area_um2, refusal)


def working_grid(slide: Slide, scale: Scale) -> Grid:
    """The grid nearest 0.3 um/px."""
    return choose_grid(slide, WORK_UM_PER_PX / scale.um_per_px)


def fit_detector(slide: Slide, grid: Grid, area: AreaMap, settings: DetectSettings) -> StainDetector:
    """Measure the stain on at most 48 samples spread evenly over the screened area; the same for the same scan."""
    rows, columns = np.nonzero(area.screened_blocks)
    chosen = np.unique(np.linspace(0, len(rows) - 1, min(SAMPLES, len(rows))).round().astype(int))
    per_block = area.block_px / grid.downsample
    whole = Box(0, 0, grid.size.width, grid.size.height)
    pixels = [np.zeros((0, 3), np.uint8)]
    for i in chosen:
        centre = Point((columns[i] + 0.5) * per_block, (rows[i] + 0.5) * per_block)
        sample = read_grid(slide, grid, Box.around(centre, SAMPLE_PX).intersect(whole))
        pixels.append(sample.rgb[sample.state == PixelState.SCANNED][::3])
    drawn = np.concatenate(pixels)
    if not len(drawn):
        return StainDetector(Stain(np.full(3, 255.0), RED_CELL_OD, settings.stain_ceiling), settings)
    return StainDetector(measure_stain(drawn, settings), settings)


@dataclass(slots=True)
class FindTally:
    """What `find_cells` learns beside the cells. `unreadable_px`: level-0 px of screened area that could not be decoded.
    `bodies`, `duplicates`, `outside`: see `records.Audit`."""

    tiles: int = 0
    unreadable_px: float = 0.0
    bodies: int = 0
    duplicates: int = 0
    outside: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class SeenTile:
    """A tile that was read and looked at. `state`: of its window's px, see `PixelState`. `bodies` draws what is in it."""

    tile: Tile
    state: NDArray[np.uint8]
    bodies: Callable[[], list[Body]]


def look_at_tiles(slide: Slide, grid: Grid, tiles: Iterable[Tile], scale: Scale, detector: Detector) -> Iterator[SeenTile]:
    """Read the tiles and look at each."""
    for tile in tiles:
        pixels = read_grid(slide, grid, tile.window)
        yield SeenTile(tile, pixels.state, detector.look(pixels.rgb, scale.um_per_px * grid.downsample))


def find_cells(
    seen: Iterable[SeenTile], grid: Grid, area: AreaMap, scale: Scale, settings: DetectSettings, tally: FindTally
) -> Iterator[Cell]:
    """Cells of the screened area, tile by tile, top to bottom and left to right within a tile; each once."""
    for one in seen:
        tile, state = one.tile, one.state
        tally.unreadable_px += _newly_lost(state, tile, grid, area)
        cells = []
        for body in one.bodies():
            centre = Point(_step(body.centre.x) + tile.window.x, _step(body.centre.y) + tile.window.y)
            level0 = Point(centre.x * grid.downsample, centre.y * grid.downsample)
            tally.bodies += 1
            if not tile.core.contains(centre):
                tally.duplicates += 1
            elif not area.screened(level0.x, level0.y):
                tally.outside += 1
            else:
                cells.append(_cell(body, level0, tile, grid, scale, state, settings))
        tally.tiles += 1
        yield from sorted(cells, key=lambda c: (c.centre.y // 400, c.centre.x))


def _step(value: float) -> float:
    """Rounded to an eighth of a px, so that the last bit of a sum cannot move a centre over a tile's border."""
    return round(value * CENTRE_STEPS) / CENTRE_STEPS


def _newly_lost(state: NDArray[np.uint8], tile: Tile, grid: Grid, area: AreaMap) -> float:
    """Level-0 px of the core that cannot be decoded at this level and were taken for screened at the low one."""
    y, x = tile.core.y - tile.window.y, tile.core.x - tile.window.x
    lost = np.argwhere(state[y : y + tile.core.height, x : x + tile.core.width] == PixelState.UNREADABLE)
    if not len(lost):
        return 0.0
    scale = grid.downsample / area.overview.downsample
    places = ((lost + np.array([tile.core.y + 0.5, tile.core.x + 0.5])) * scale).astype(int)
    rows, columns = np.minimum(places, np.array(area.overview.screened.shape) - 1).T
    return float(np.count_nonzero(area.overview.screened[rows, columns]) * grid.downsample**2)


def _cell(
    body: Body, centre: Point, tile: Tile, grid: Grid, scale: Scale, state: NDArray[np.uint8], settings: DetectSettings
) -> Cell:
    nucleus = body.box
    reach = max(1, round(1.0 / (scale.um_per_px * grid.downsample)))
    around = nucleus.expanded(reach)
    inside = around.intersect(Box(0, 0, tile.window.width, tile.window.height))
    near = state[inside.y : inside.bottom, inside.x : inside.right]
    at = Box(around.x + tile.window.x, around.y + tile.window.y, around.width, around.height)
    edge = at.x < 0 or at.y < 0 or at.right > grid.size.width or at.bottom > grid.size.height
    edge = edge or bool((near == PixelState.UNSCANNED).any())
    refusal = body.refusal
    if not refusal and bool((near == PixelState.UNREADABLE).any()):
        refusal = "unreadable pixels"
    d, margin = grid.downsample, 0.0 if body.outline else um_to_px(settings.margin_um, scale.um_per_px)
    x0, y0 = (nucleus.x + tile.window.x) * d - margin, (nucleus.y + tile.window.y) * d - margin
    box = Box(round(x0), round(y0), round(nucleus.width * d + 2 * margin), round(nucleus.height * d + 2 * margin))
    return Cell(
        centre,
        box,
        body.nucleus_um2,
        edge and not refusal,
        refusal,
        outline=tuple(Point((p.x + tile.window.x) * d, (p.y + tile.window.y) * d) for p in body.outline),
        area_um2=body.area_um2,
        eccentricity=body.eccentricity,
        focus=body.focus,
    )
