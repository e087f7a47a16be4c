"""The geometry of the cohort's plots; the template draws them. Places are in percent of the axes, y downwards."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from slidescreen.cohort.agreement import Agreement
from slidescreen.cohort.rows import Cohort, SlideRow
from slidescreen.report import wording

BINS: Final = 20
MAX_POINTS: Final = 3000
"""Of a scatter plot: more cannot be told apart."""


@dataclass(frozen=True, slots=True)
class Tick:
    """A mark on an axis."""

    at: float
    label: str


@dataclass(frozen=True, slots=True)
class Bar:
    """One bin: left edge, width and height in percent, and what it says."""

    x: float
    width: float
    height: float
    said: str


@dataclass(frozen=True, slots=True)
class Histogram:
    """How a number is distributed over the slides. `median`: its place; `said`: it in words."""

    title: str
    unit: str
    bars: tuple[Bar, ...]
    ticks: tuple[Tick, ...]
    most: int
    median: float
    said: str


@dataclass(frozen=True, slots=True)
class Dot:
    """A slide in a scatter plot; `low`, `high`: the ends of its limits on y."""

    id: str
    x: float
    y: float
    said: str
    low: float = 0.0
    high: float = 0.0


@dataclass(frozen=True, slots=True)
class Scatter:
    """Dots with axes; `lines`: (y, label) of horizontal ones."""

    dots: tuple[Dot, ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    lines: tuple[tuple[float, str], ...] = ()


@dataclass(frozen=True, slots=True)
class AgreementPlots:
    """The three plots of one column of truth; `curve`: SVG points of the ROC, "" where there is none."""

    about: Agreement
    scatter: Scatter
    differences: Scatter
    curve: str


def distributions(cohort: Cohort) -> list[Histogram]:
    """The histograms that have at least two slides to show."""
    percent = "%"
    wanted = (
        ("Blasts", percent, [100 * r.blast.fraction for r in cohort.rows if r.blast.fraction is not None]),
        ("Atypical cells", percent, [100 * r.atypical.fraction for r in cohort.rows if r.atypical.fraction is not None]),
        ("Leukocytes counted", "", [float(r.leukocytes) for r in cohort.rows]),
        ("Leukocytes per mm²", "", [r.per_mm2 for r in cohort.rows if r.per_mm2 is not None]),
        ("Focus", "", [r.focus for r in cohort.rows if r.focus is not None]),
        ("Stain density", "OD", [r.stain for r in cohort.rows if r.stain is not None]),
        ("Stain tint", "log2", [r.tint for r in cohort.rows if r.tint is not None]),
        ("Scale", "µm/px", [r.um_per_px for r in cohort.rows]),
    )
    return [_histogram(title, unit, values) for title, unit, values in wanted if len(values) > 1]


def _histogram(title: str, unit: str, values: Sequence[float]) -> Histogram:
    low, high, step = axis(min(values), max(values))
    width = (high - low) / BINS
    counts = [0] * BINS
    for value in values:
        counts[min(BINS - 1, int((value - low) / width))] += 1
    most = max(counts)

    def said(i: int) -> str:
        return (
            f"{wording.cells(counts[i], 'slide')}: {short(low + i * width)} to {short(low + (i + 1) * width)} {unit}".rstrip()
        )

    bars = tuple(Bar(100 * i / BINS, 100 / BINS, 100 * n / most, said(i)) for i, n in enumerate(counts) if n)
    middle = statistics.median(values)
    place = 100 * (middle - low) / (high - low)
    return Histogram(title, unit, bars, ticks(low, high, step), most, place, f"median {short(middle)} {unit}".rstrip())


def short(value: float) -> str:
    """Three digits, whole numbers from 100 on."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def axis(low: float, high: float) -> tuple[float, float, float]:
    """Round ends around two values, and the step of the ticks: 1, 2 or 5 times a power of ten."""
    span = high - low or abs(high) * 0.1 or 1.0
    power = 10.0 ** math.floor(math.log10(span / 4))
    step = next(s * power for s in (1, 2, 5, 10) if s * power >= span / 4)
    start = step * math.floor(low / step + 1e-9)
    end = step * math.ceil(high / step - 1e-9)
    return start, end if end > start else start + step, step


def ticks(low: float, high: float, step: float) -> tuple[Tick, ...]:
    """Marks from end to end."""
    number = round((high - low) / step)
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    return tuple(Tick(100 * i / number, f"{low + i * step:.{decimals}f}") for i in range(number + 1))


def agreement_plots(about: Agreement) -> AgreementPlots:
    """Scatter, Bland-Altman plot and ROC curve of one column of truth."""
    pairs = about.pairs[:MAX_POINTS]
    whole = ticks(0, 100, 20)
    dots = tuple(
        Dot(p.id, 100 * p.truth, 100 - 100 * p.found, _said(p.file, p.truth, p.found), 100 - 100 * p.low, 100 - 100 * p.high)
        for p in pairs
    )
    differences = [100 * (p.found - p.truth) for p in pairs]
    marks = [100 * value for value in (about.bias, *about.limits)]
    low, high, step = axis(min(*differences, *marks), max(*differences, *marks))

    def place(value: float) -> float:
        return 100 - 100 * (value - low) / (high - low)

    means = tuple(
        Dot(p.id, 50 * (p.truth + p.found), place(d), _said(p.file, p.truth, p.found))
        for p, d in zip(pairs, differences, strict=True)
    )
    names = ("bias", "−1.96 SD", "+1.96 SD")
    lines = tuple((place(m), f"{n} {m:+.1f}") for n, m in zip(names, marks, strict=True))
    upwards = tuple(Tick(100 - t.at, t.label) for t in ticks(low, high, step))
    curve = " ".join(f"{100 * x:.2f},{100 - 100 * y:.2f}" for x, y in about.roc.points) if about.roc else ""
    flipped = tuple(Tick(100 - t.at, t.label) for t in whole)
    return AgreementPlots(about, Scatter(dots, whole, flipped), Scatter(means, whole, upwards, lines), curve)


def _said(file: str, truth: float, found: float) -> str:
    return f"{file}: truth {100 * truth:.1f} %, found {100 * found:.1f} %"


def blast_bar(row: SlideRow) -> tuple[float, float, float] | None:
    """(value, lower, upper limit) in percent of a bar that ends at 100 %."""
    f = row.blast
    return None if f.fraction is None or f.ci95 is None else (100 * f.fraction, 100 * f.ci95[0], 100 * f.ci95[1])
