"""The report: numbers, wording, escaping, size, and a look through a real browser where there is one."""

from __future__ import annotations

import re
import shutil
import subprocess
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from slidescreen.geometry import Box, Point, Size
from slidescreen.records import (
    Area,
    Cell,
    Differential,
    Explanations,
    Fraction,
    ModelInfo,
    Overview,
    Scale,
    ScreenedCell,
    SlideInfo,
    SlideResult,
)
from slidescreen.report import gallery, overview, render, tables
from slidescreen.taxonomy import (
    ATYPICAL,
    BLAST,
    CODES,
    DISPLAY_ORDER,
    ERYTHROBLAST,
    NOT_LEUKOCYTE,
    SMUDGE,
    probability_of,
)

DASH = "\N{EN DASH}"
EVIL = "<script>alert(1)</script>\"'&"


def painted_cells(count: int) -> NDArray[np.uint8]:
    """(count, 400, 400, 3) uint8: a purple blob on a pale ground among pink discs, with mild camera noise."""
    rng = np.random.default_rng(0)
    grain = rng.normal(0, 3, (400, 400, 3)).astype(np.float32)
    texture = cv2.GaussianBlur(rng.normal(0, 1, (400, 400)).astype(np.float32), (0, 0), 4) * 120
    pictures = np.empty((count, 400, 400, 3), np.uint8)
    for picture in pictures:
        canvas = np.full((400, 400, 3), (236, 228, 224), np.uint8)
        for x, y in rng.integers(0, 400, (9, 2)).tolist():
            cv2.circle(canvas, (x, y), 50, (214, 170, 176), -1, cv2.LINE_AA)
        cv2.circle(canvas, (200, 200), 95, (170, 160, 205), -1, cv2.LINE_AA)
        cv2.ellipse(canvas, (200, 205), (75, 62), float(rng.integers(180)), 0, 360, (92, 52, 140), -1, cv2.LINE_AA)
        rough = np.roll(texture, rng.integers(400), 0)[..., None] * (canvas[..., :1] < 120)
        picture[:] = np.clip(cv2.GaussianBlur(canvas, (0, 0), 1.5) + rough + grain, 0, 255)
    return pictures


class Recorder:
    """Patches of one grey each that remembers which were read."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.read: list[int] = []

    def __getitem__(self, index: int) -> NDArray[np.uint8]:
        assert isinstance(index, int)
        assert 0 <= index < self.count
        self.read.append(index)
        return np.full((400, 400, 3), index % 256, np.uint8)


def cell(number: int, label: str, probability: float = 0.9, status: str = "typed", reason: str = "") -> ScreenedCell:
    """A cell at a place that follows from its number; the rest of the probability is shared equally."""
    place = Point(100.0 + 37 * number % 9800, 50.0 + 91 * number % 7900)
    body = Cell(place, Box.around(place, 60), 60.0, status == "edge", reason)
    if not label:
        return ScreenedCell(number, body, status, "", None, None, None, reason)  # type: ignore[arg-type]
    p = np.full(15, (1 - probability) / 14, np.float32)
    p[CODES.index(label)] = probability
    blast, atypical = (probability_of(members, p, CODES) for members in (BLAST, ATYPICAL))
    return ScreenedCell(number, body, status, label, p, blast, atypical)  # type: ignore[arg-type]


def fraction(values: Sequence[float]) -> Fraction:
    """Made-up limits: 5 points to both sides."""
    if not values:
        return Fraction(0, 0, 0.5, None, None, None)
    count = sum(v >= 0.5 for v in values)
    share = count / len(values)
    limits = (max(0.0, share - 0.05), min(1.0, share + 0.05))
    return Fraction(count, len(values), 0.5, share, limits, sum(values) / len(values))


def counted(cells: Sequence[ScreenedCell]) -> Differential:
    """The count of `cells` with made-up limits."""
    typed = [c for c in cells if c.status == "typed"]
    counts = {code: sum(c.label == code for c in typed) for code in CODES}
    white = [c for c in typed if c.label not in NOT_LEUKOCYTE]
    nucleated = [c for c in typed if c.label != SMUDGE]
    n = len(white)
    percent = {code: 100 * counts[code] / n if n else None for code in DISPLAY_ORDER}
    return Differential(
        counts=counts,
        leukocytes=n,
        percent=percent,
        percent_ci95={k: None if v is None else (max(0.0, v - 2), min(100.0, v + 3)) for k, v in percent.items()},
        blast=fraction([c.p_blast for c in white if c.p_blast is not None]),
        atypical=fraction([c.p_atypical for c in nucleated if c.p_atypical is not None]),
        nrbc_per_100_wbc=100 * counts[ERYTHROBLAST] / n if n else None,
        smudge_per_100_wbc=100 * counts[SMUDGE] / n if n else None,
    )


def slide(cells: Sequence[ScreenedCell], **changes: Any) -> SlideResult:
    """A result around `cells`, its map one quarter each of unscanned, empty, screened and unreadable."""
    area = np.repeat(np.repeat(np.array([[0, 1], [3, 7]], np.uint8), 40, axis=0), 50, axis=1)
    image = np.full((80, 100, 3), 230, np.uint8)
    result = SlideResult(
        slide=SlideInfo("in/a.svs", "a", "Acme", Size(10000, 8000), Scale(0.25, "acme.MPP"), "f00d", "reader 1"),
        model=ModelInfo("tiny", "ab" * 32, CODES, "sensitivity 0.9 on 100 unseen images"),
        area_mm2={
            "scanned": 4.0,
            "screened": 3.0,
            "not_screened": 1.0,
            "monolayer": 3.0,
            "empty": 0.75,
            "unscanned": 1.0,
            "unreadable": 0.25,
        },
        cells=tuple(cells),
        differential=counted(cells),
        overview=Overview(image, area, area == Area.MONOLAYER, 100.0),
        settings={"detect": {"min_um2": 12.5}, "um_per_px": None},
        version="1.2.3",
        created="2030-01-02T03:04:05Z",
        device="cpu",
        timings_s={"detect": 12.3, "total": 125.0},
        warnings=("beware of the overlap",),
    )
    return replace(result, **changes)


def mixed() -> list[ScreenedCell]:
    """3 MYO, 1 MOB, 1 PMO, 5 NGS, 2 EBO, 1 KSC, one unsure, one edge, two rejected."""
    labels = ["MYO"] * 3 + ["MOB", "PMO"] + ["NGS"] * 5 + ["EBO"] * 2 + ["KSC"]
    cells = [cell(i, label) for i, label in enumerate(labels, 1)]
    cells.append(cell(14, "LYT", 0.3, "unsure"))
    cells.append(cell(15, "", status="edge"))
    return [*cells, *(cell(i, "", status="rejected", reason="too small") for i in (16, 17))]


def text_of(html: str, element_id: str) -> str:
    """The text of the element with this id, which holds no other element."""
    found = re.search(rf'id="{element_id}"[^>]*>([^<]*)<', html)
    assert found, element_id
    return found[1]


def row_of(html: str, code: str) -> list[str]:
    """The texts of one row of the differential: count, percent, limits."""
    row = re.search(rf'<tr data-code="{code}".*?</tr>', html, re.S)
    assert row, code
    return re.findall(r'class="num \w+">([^<]*)<', row[0])


def test_numbers_are_present_and_right() -> None:
    html = render(slide(mixed()), Recorder(17))
    assert text_of(html, "leukocytes") == "10"
    assert text_of(html, "blast-percent") == "40.0"
    assert text_of(html, "blast-limits") == f"35.0{DASH}45.0"
    assert text_of(html, "atypical-percent") == "58.3"
    assert [text_of(html, s) for s in ("unsure", "edge", "rejected")] == ["1", "1", "2"]
    assert row_of(html, "NGS") == ["5", "50.0", f"48.0{DASH}53.0"]
    assert row_of(html, "BAS") == ["0", "0.0", f"0.0{DASH}3.0"]
    codes = re.findall(r'<tr data-code="(\w+)"', html)
    assert tuple(codes) == DISPLAY_ORDER
    assert "4 of 10 leukocytes with P(blast)&nbsp;≥&nbsp;0.50" in html


def test_sums_and_ratios() -> None:
    sums = {row.key: (row.count, row.value) for row in tables.sums(counted(mixed()))}
    assert sums == {"blasts": (4, "40.0"), "promyelocytes": (1, "10.0"), "nrbc": (2, "20.0"), "smudge": (1, "10.0")}


def test_says_what_it_is_and_where_it_comes_from() -> None:
    html = render(slide(mixed()), Recorder(17))
    for words in (
        "Research use only.",
        "pre-classification",
        "needs review by a morphologist",
        "The limits cover counting error only, not classification error.",
        "sensitivity 0.9 on 100 unseen images",
        "beware of the overlap",
        *("in/a.svs", "f00d", "ab" * 32, "1.2.3", "2030-01-02T03:04:05Z", "acme.MPP", "0.2500 µm/px"),
        *("detect.min_um2", "12.5", "2 min 05 s", "too small", "3.00 mm²", "75.0 % of the scanned area"),
    ):
        assert words in html, words


def test_no_leukocytes_gives_dashes_and_no_zero_percent() -> None:
    html = render(slide([]), Recorder(0))
    assert "No leukocytes found: no percentages are given." in html
    assert text_of(html, "leukocytes") == "0"
    assert text_of(html, "blast-percent") == text_of(html, "atypical-percent") == DASH
    assert row_of(html, "MYO") == ["0", DASH, DASH]
    assert "0.0 %" not in html.split('id="sec-quality"')[0]
    assert all(row.value == DASH for row in tables.sums(counted([])))
    assert "<figure" not in html
    assert 'id="sec-cells"' not in html


def test_only_rejected_cells() -> None:
    html = render(slide([cell(1, "", status="rejected", reason="too pale")]), Recorder(1))
    assert html.count("<figure") == 1
    assert "showing 1 of 1" in html


def test_everything_from_outside_is_escaped() -> None:
    base = slide([cell(1, "MYO"), cell(2, "", status="rejected", reason=EVIL)])
    html = render(
        replace(
            base,
            slide=replace(base.slide, path=f"in/{EVIL}", id=EVIL, vendor=EVIL, fingerprint=EVIL, reader=EVIL),
            model=replace(base.model, name=EVIL, sha256=EVIL, measured=EVIL),
            settings={EVIL: {EVIL: EVIL}},
            timings_s={EVIL: 1.0},
            warnings=(EVIL,),
            version=EVIL,
            device=EVIL,
            created=EVIL,
        ),
        Recorder(2),
    )
    assert "alert(1)" in html
    assert "<script>alert" not in html
    assert html.count("<script") == 1
    assert 'data-reason="&lt;script&gt;alert(1)&lt;/script&gt;&#34;&#39;&amp;"' in html


def test_nothing_is_loaded_from_anywhere() -> None:
    html = render(slide(mixed()), Recorder(17))
    assert "http://" not in html
    assert "https://" not in html
    assert "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'" in html
    assert not re.search(r'(?:src|href)="(?!data:|#)', html)
    assert not re.search(r"@import|url\((?!#)", html)


def test_ids_are_unique_and_links_lead_somewhere() -> None:
    html = render(slide(mixed()), Recorder(17))
    ids = re.findall(r'\sid="([^"]+)"', html)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'href="#([^"]+)"', html)) <= set(ids)
    assert html.count('<a href="#c') == 4  # the blasts


def test_tile_tells_probability_and_position() -> None:
    html = render(slide(mixed()), Recorder(17))
    tile = re.search(r'<figure[^>]*id="c1".*?</figure>', html, re.S)
    assert tile
    assert 'data-p="0.9000"' in tile[0]
    assert "137, 141" in tile[0]
    assert "0.91" in tile[0]  # P(blast) = 0.9 + 0.1 / 14
    assert "width: 17.241%" in html  # 5 of 29 um


def test_only_shown_cells_are_read_once_each() -> None:
    cells = [cell(i, "NGS" if i % 3 else "MYO") for i in range(1, 3001)]
    patches = Recorder(3000)
    html = render(slide(cells), patches)
    assert len(patches.read) == len(set(patches.read)) == gallery.MOST_TILES
    assert patches.read == sorted(patches.read)
    assert html.count("<figure") == gallery.MOST_TILES + gallery.MOST_LIKELY
    assert "showing 500 of 2000; all cells are in cells.csv and patches.zarr" in html
    assert "showing 48 of 3000; all cells" in html


def test_galleries_start_with_the_most_blast_like_cells() -> None:
    cells = [cell(i, "MYO", 0.3 + 0.6 * (i * 7 % 50) / 50) for i in range(1, 51)]
    top, myeloblasts = gallery.choose(slide(cells))
    for each in (top, myeloblasts):
        p = [tile.p_blast for tile in each.tiles]
        assert p == sorted(p, key=lambda value: -float(value or 0))
    assert (len(top.tiles), top.total) == (gallery.MOST_LIKELY, 50)


@pytest.mark.parametrize(
    ("sizes", "budget", "expected"),
    [
        ([5, 5], 100, [5, 5]),
        ([1000, 3, 0], 100, [97, 3, 0]),
        ([500, 500, 10], 100, [45, 45, 10]),
        ([], 10, []),
    ],
)
def test_room_is_shared_fairly(sizes: list[int], budget: int, expected: list[int]) -> None:
    assert gallery.share(sizes, budget) == expected


def test_outline_follows_the_area() -> None:
    mask = np.zeros((40, 60), bool)
    mask[10:30, 20:50] = True
    path = overview.outline(mask, 600, 400)
    points = np.array(re.findall(r"(\d+) (\d+)", path), int)
    assert path.count("M") == 1
    assert np.abs(points.min(0) - (200, 100)).max() <= 5
    assert np.abs(points.max(0) - (500, 300)).max() <= 5
    assert overview.outline(np.zeros((4, 4), bool), 40, 40) == ""


def test_outline_of_a_ragged_area_stays_small() -> None:
    noise = np.random.default_rng(0).random((900, 1200)) > 0.5
    assert len(overview.outline(noise, 12000, 9000)) < 2 * overview.AREA_TEXT


@pytest.mark.parametrize(("um", "expected"), [(999.0, 500.0), (1000.0, 1000.0), (7.0, 5.0), (0.25, 0.2)])
def test_scale_bar_is_round(um: float, expected: float) -> None:
    assert overview.round_length(um) == pytest.approx(expected)


def test_thousand_cells_stay_below_ten_megabytes() -> None:
    labels = ("MYO", "NGS", "LYT", "MON", "EBO", "KSC")
    cells = [cell(i, labels[i % 6], 0.4 + i % 60 / 100) for i in range(1, 1001)]
    pictures = painted_cells(40)

    class Repeated:
        def __getitem__(self, index: int) -> NDArray[np.uint8]:
            return np.asarray(pictures[index % 40])

    rng = np.random.default_rng(1)
    rough = rng.integers(120, 255, (1200, 1600, 3), dtype=np.uint8)
    area = rng.integers(0, 8, (1200, 1600), dtype=np.uint8)
    noise = rng.integers(0, 256, (400, 400), dtype=np.uint8)
    maps = Explanations("saliency", "class", dict.fromkeys(range(1000), noise))
    html = render(slide(cells, overview=Overview(rough, area, area == Area.MONOLAYER, 6.25)), Repeated(), maps)
    assert html.count('class="over-map" src="data:') == gallery.MOST_LIKELY
    assert html.count("<figure") == 1048
    assert 3e6 < len(html.encode()) < 10e6


def test_maps_lie_over_the_likeliest_blasts_without_a_script() -> None:
    maps = {0: np.full((400, 400), 255, np.uint8), 3: np.zeros((400, 400), np.uint8)}
    html = render(slide(mixed()), Recorder(17), Explanations("gradcam", "blast", maps))
    top, rest = html.split('id="g-top"')[1].split("</details>", 1)
    assert top.count('class="over-map" src="data:image/jpeg') == 2
    assert 'class="over-map" src="data:' not in rest
    assert "would change P(blast) most (Grad-CAM" in top
    assert '<input type="checkbox" id="maps">' in top
    assert "#maps:checked ~ .tiles .over-map" in html
    assert 'id="no-maps"' not in html
    none = render(slide(mixed()), Recorder(17))
    assert 'id="no-maps"' in none
    assert 'id="maps"' not in none


def test_white_noise_stays_below_ten_megabytes() -> None:
    noise = np.random.default_rng(2).integers(0, 256, (400, 400, 3), dtype=np.uint8)
    cells = [cell(i, "NGS") for i in range(1, 381)]
    html = render(slide(cells), [noise] * 380)
    assert len(html.encode()) < 10e6


def test_fifteen_thousand_cells() -> None:
    cells = [cell(i, CODES[i % 15]) for i in range(1, 15001)]
    result = slide(cells)
    start = time.perf_counter()
    html = render(result, Recorder(15000))
    assert time.perf_counter() - start < 10
    assert len(html.encode()) < 12e6
    assert text_of(html, "leukocytes") == "13000"


@pytest.mark.skipif(shutil.which("chromium") is None, reason="no chromium on this machine")
def test_a_browser_reads_the_numbers_and_runs_the_script(tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    page.write_text(render(slide(mixed(), warnings=(EVIL,)), Recorder(17)), encoding="utf-8")
    command = [
        *("chromium", "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-dev-shm-usage"),
        *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
        *(f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=3000", "--dump-dom", page.as_uri()),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert text_of(done.stdout, "leukocytes") == "10"
    assert text_of(done.stdout, "blast-percent") == "40.0"
    assert text_of(done.stdout, "f-count") == "17 of 17 pictures"  # written by the script
    assert "&lt;script&gt;alert(1)" in done.stdout
