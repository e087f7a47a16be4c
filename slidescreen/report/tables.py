"""The report's tables: the differential with its bars, quality control, provenance."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from slidescreen.geometry import area_mm2
from slidescreen.records import Differential, Fraction, ScaleCheck, SlideResult
from slidescreen.report import wording
from slidescreen.report.wording import DASH
from slidescreen.taxonomy import BY_CODE, DISPLAY_ORDER, ERYTHROBLAST, SMUDGE

TIMES: Final = "\N{MULTIPLICATION SIGN}"

TICK_STEPS: Final = {5: 1, 10: 2, 20: 5, 40: 10, 60: 20, 80: 20, 100: 20}
"""End of the bar plot's axis in percent -> distance of its ticks."""


@dataclass(frozen=True, slots=True)
class ClassRow:
    """One class of the differential. `bar` is (value, lower limit, upper limit) in percent of the axis length."""

    code: str
    name: str
    colour: str
    count: int
    percent: str
    limits: str
    bar: tuple[float, float, float] | None


@dataclass(frozen=True, slots=True)
class Tick:
    """A mark on the axis of the bar plot: its label and its place in percent of the axis length."""

    label: str
    place: float


@dataclass(frozen=True, slots=True)
class Headline:
    """A fraction in words: the percentage, its limits, and what was counted."""

    percent: str
    limits: str
    count: int
    total: int
    threshold: str
    mean: str


@dataclass(frozen=True, slots=True)
class Line:
    """A name, a value and what the value means."""

    name: str
    value: str
    note: str = ""


def headline(fraction: Fraction) -> Headline:
    """The words for one of the two questions."""
    decimals = wording.decimals_for(fraction.total)
    return Headline(
        percent=wording.number(wording.as_percent(fraction.fraction), decimals),
        limits=wording.limits(wording.limits_as_percent(fraction.ci95), decimals),
        count=fraction.count,
        total=fraction.total,
        threshold=f"{fraction.threshold:.2f}",
        mean=wording.number(fraction.mean_probability, 3),
    )


def differential(counted: Differential) -> tuple[list[ClassRow], list[Tick]]:
    """The rows in the order of a differential, and the axis of their bars."""
    highest = max((ci[1] for ci in counted.percent_ci95.values() if ci is not None), default=100.0)
    end = next((end for end in TICK_STEPS if highest <= end), 100)
    decimals = wording.decimals_for(counted.leukocytes)
    rows = []
    for code in DISPLAY_ORDER:
        percent, ci = counted.percent.get(code), counted.percent_ci95.get(code)
        bar = None if percent is None or ci is None else (100 * percent / end, 100 * ci[0] / end, 100 * ci[1] / end)
        rows.append(
            ClassRow(
                code=code,
                name=BY_CODE[code].name,
                colour=BY_CODE[code].colour,
                count=counted.counts.get(code, 0),
                percent=wording.number(percent, decimals),
                limits=wording.limits(ci, decimals),
                bar=bar,
            )
        )
    return rows, [Tick(str(at), 100 * at / end) for at in range(0, end + 1, TICK_STEPS[end])]


@dataclass(frozen=True, slots=True)
class SumRow:
    """A line below the differential: machine-readable key, name, count, value with its unit, explanation."""

    key: str
    name: str
    count: int
    value: str
    unit: str
    note: str


def sums(counted: Differential) -> list[SumRow]:
    """Sums over classes, and the two classes outside the denominator."""
    decimals = wording.decimals_for(counted.leukocytes)

    def pooled(key: str, name: str, codes: tuple[str, str], note: str) -> SumRow:
        count = sum(counted.counts.get(code, 0) for code in codes)
        percent = 100 * count / counted.leukocytes if counted.leukocytes else None
        return SumRow(key, name, count, wording.number(percent, decimals), "% of leukocytes", note)

    def ratio(key: str, name: str, code: str, value: float | None, note: str) -> SumRow:
        return SumRow(key, name, counted.counts.get(code, 0), wording.number(value, 1), "per 100 WBC", note)

    blasts = "counted by label; the headline counts cells by P(blast) instead"
    promyelocytes = "possible APL line; not added to the blasts"
    outside = "not part of the differential"
    return [
        pooled("blasts", "Blasts, MYO + MOB", ("MYO", "MOB"), blasts),
        pooled("promyelocytes", "Promyelocytes, PMO + PMB", ("PMO", "PMB"), promyelocytes),
        ratio("nrbc", "Erythroblasts (NRBC), EBO", ERYTHROBLAST, counted.nrbc_per_100_wbc, outside),
        ratio("smudge", "Smudge cells, KSC", SMUDGE, counted.smudge_per_100_wbc, outside),
    ]


def areas(result: SlideResult) -> list[Line]:
    """Where the scan was looked at, in mm^2 and in percent of what was scanned."""
    scanned = result.area_mm2.get("scanned")
    meanings = (
        ("scanned", "Scanned", ""),
        ("screened", "Screened", "searched for leukocytes"),
        ("not_screened", "Not screened", ""),
        ("monolayer", "Monolayer", "red cells side by side, in focus"),
        ("too_thick", "Too thick", "red cells on top of each other"),
        ("too_thin", "Too thin", "feathered edge: few red cells, flat"),
        ("out_of_focus", "Out of focus", "blurred beyond reading"),
        ("ink", "Ink", "opaque marks"),
        ("empty", "Empty", "glass without stain"),
        ("unreadable", "Unreadable", "could not be decoded"),
        ("unscanned", "Unscanned", "inside the frame of the file, outside the scanned area"),
    )
    lines = []
    for key, name, meaning in meanings:
        area = result.area_mm2.get(key)
        if area is None:
            continue
        part = f"{100 * area / scanned:.1f} % of the scanned area" if scanned else ""
        note = ", ".join(filter(None, (meaning, part if key not in ("scanned", "unscanned") else "")))
        lines.append(Line(name, f"{wording.number(area, 2)} mm²", note))
    return lines


def scan(result: SlideResult) -> list[Line]:
    """Scale, size, and how densely leukocytes lie."""
    slide, screened = result.slide, result.area_mm2.get("screened", 0.0)
    um = slide.scale.um_per_px
    density = f"{result.differential.leukocytes / screened:.1f} per mm²" if screened else DASH
    size_mm = f"{slide.size.width * um / 1000:.2f} {TIMES} {slide.size.height * um / 1000:.2f} mm"
    return [
        Line("Scale", f"{um:.4f} µm/px", f"read from {slide.scale.source}"),
        _scale_check(result.scale_check),
        Line("Size of the scan", f"{slide.size.width} {TIMES} {slide.size.height} px", size_mm),
        Line("Frame of the scan", f"{area_mm2(slide.size.area, um):.2f} mm²"),
        Line("Leukocytes in the screened area", density),
    ]


def _scale_check(check: ScaleCheck) -> Line:
    said = {
        "verified": "scale verified",
        "overridden": "the red cells disagree; kept on request",
        "estimated": "the scale in use",
        "not_measurable": "scale not verified: too few isolated red cells",
    }[check.status]
    red = check.reading
    if red is None:
        return Line("Scale by red cells", DASH, said)
    limits = f"{red.low:.3g}{DASH}{red.high:.3g} µm/px for red cells of 7{DASH}8 µm; {red.cells} measured"
    return Line("Scale by red cells", f"{red.um_per_px:.4f} µm/px", f"{said}; {limits}")


def fates(result: SlideResult) -> list[Line]:
    """What became of every stained body that was found."""
    counts, leukocytes = result.cell_counts, result.differential.leukocytes
    beside = counts["typed"] - leukocytes
    audit = result.audit
    return [
        Line("Seen in all tiles", str(audit.bodies), "stained bodies, those in the overlap of tiles more than once"),
        Line("Duplicates removed", str(audit.duplicates), "counted by the one tile that holds their centre"),
        Line("Outside the screened area", str(audit.outside)),
        Line("Found", str(counts["found"]), "stained bodies, each once"),
        Line("Typed", str(counts["typed"]), f"{leukocytes} leukocytes; {beside} smudge cells and erythroblasts"),
        Line("Unsure", str(counts["unsure"]), "which class cannot be told; not counted"),
        Line("Edge", str(counts["edge"]), "cut by the border of the scan; not counted"),
        Line("Rejected", str(counts["rejected"]), "no leukocyte of the 15 classes, or pixels unreadable; not counted"),
    ]


def by_reason(reasons: Mapping[str, int]) -> list[Line]:
    """Cells by the reason why they were not counted, the most frequent first."""
    ordered = sorted(reasons.items(), key=lambda item: (-item[1], item[0]))
    return [Line(reason or "no reason given", str(count)) for reason, count in ordered]


def rejects(result: SlideResult) -> str:
    """Whether what is no leukocyte of the 15 classes was looked for, in a sentence."""
    if not result.model.rejects:
        return "This model cannot tell what is no leukocyte of its 15 classes: every cell that was found got a class."
    if not result.settings.get("differential", {}).get("reject", True):
        return "The refusal of what is no leukocyte of the 15 classes was switched off (differential.reject)."
    return "The model refuses what looks like no leukocyte of its 15 classes; how well it does is in its README."


def provenance(result: SlideResult) -> list[Line]:
    """What was screened, by what, when."""
    slide, model = result.slide, result.model
    return [
        Line("File", slide.path),
        Line("Slide", slide.id),
        Line("Fingerprint of the content", slide.fingerprint),
        Line("Scanner", slide.vendor or "not stated"),
        Line("Read with", slide.reader),
        Line("ICC colour profile", {"none": "none in the file"}.get(slide.icc, slide.icc)),
        Line("Model", model.name),
        Line("Model weights, SHA-256", model.sha256),
        Line("Model as measured", model.measured),
        Line("Calibration", f"temperature {model.temperature:g}" if model.temperature != 1 else "none"),
        Line("Version of slidescreen", result.version),
        Line("Created", result.created),
        Line("Device", result.device),
    ]


def timings(result: SlideResult) -> list[Line]:
    """Seconds per stage in the order given, and how long it waited for the others: the stage that waits least holds the rest
    up."""
    waits = {stage: f"waited {wording.duration(seconds)}" for stage, seconds in result.waiting_s.items()}
    return [Line(stage, wording.duration(seconds), waits.get(stage, "")) for stage, seconds in result.timings_s.items()]


def settings(result: SlideResult) -> list[Line]:
    """The effective settings, nested ones by dotted name."""
    return [Line(name, value) for name, value in _flat(result.settings, "")]


def _flat(settings: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, str]]:
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", DASH if value is None else str(value)
