"""What TIFFs state beside their pixels: scale, objective, colour profile. Read with tifffile; nothing is inferred."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from slidescreen.slide.markup import local_name, parse_json, parse_xml
from slidescreen.slide.reader import StatedScale, number, scale_of

UM_PER_UNIT: Final[Mapping[str, float]] = {
    **{"nm": 1e-3, "µm": 1.0, "μm": 1.0, "um": 1.0, "micron": 1.0, "mm": 1e3, "cm": 1e4, "m": 1e6},
    "\u00c5": 1e-4,
}
UM_PER_RESOLUTION_UNIT: Final[Mapping[int, float]] = {2: 25_400.0, 3: 10_000.0}
MICROSCOPIC: Final = (0.01, 10.0)
"""um/px: beyond it a resolution tag speaks of paper or screens (10 um/px are 2540 dpi), not of the microscope."""
ICC_TAG: Final = 34675


@dataclass(frozen=True, slots=True)
class TiffStatements:
    """`scales`: each one the file states, the most specific first. `vendor`: where the description names it, else ""."""

    scales: tuple[StatedScale, ...]
    objective_power: float | None
    icc_profile: bytes | None
    vendor: str


def read_statements(tiff: Any) -> TiffStatements:
    """What an open tifffile.TiffFile states of itself: OME-XML, Aperio's and PreciPoint's descriptions, resolution tags."""
    page = tiff.pages.first
    found: list[StatedScale | None] = []
    power, vendor = None, ""
    text = str(page.description or "")
    if tiff.is_ome:
        scale, power = _ome(text, page)
        found.append(scale)
        vendor = "ome"
    elif text.startswith("{"):
        scale, power = _precipoint(text)
        found.append(scale)
        vendor = "precipoint" if scale or power else ""
    elif text.startswith("Aperio"):
        values = dict(part.split("=", 1) for part in text.split("|") if "=" in part)
        named = {key.strip().lower(): value for key, value in values.items()}
        found.append(scale_of(named.get("mpp"), named.get("mpp"), "Aperio MPP"))
        power, vendor = number(named.get("appmag")), "aperio"
    scales = [scale for scale in found if scale is not None]
    tag = _resolution_tag(page)
    if tag is not None and (not scales or all(MICROSCOPIC[0] <= side <= MICROSCOPIC[1] for side in (tag.x, tag.y))):
        scales.append(tag)
    return TiffStatements(tuple(scales), power, _profile(page), vendor)


def _ome(text: str, page: Any) -> tuple[StatedScale | None, float | None]:
    try:
        root = parse_xml(text)
    except ValueError:
        return None, None
    powers = [number(e.get("NominalMagnification")) for e in root.iter() if local_name(e) == "Objective"]
    pixels = [e for e in root.iter() if local_name(e) == "Pixels"]
    mine = [e for e in pixels if (e.get("SizeX"), e.get("SizeY")) == (str(page.imagewidth), str(page.imagelength))]
    for element in (mine or pixels)[:1]:
        factors = [UM_PER_UNIT.get(element.get(f"PhysicalSize{axis}Unit", "µm")) for axis in "XY"]
        x, y = factors
        if x is not None and y is not None:
            sides = [number(element.get(f"PhysicalSize{axis}")) for axis in "XY"]
            if None not in sides:
                scale = scale_of((sides[0] or 0) * x, (sides[1] or 0) * y, "OME-XML PhysicalSizeX")
                return scale, powers[0] if powers else None
    return None, powers[0] if powers else None


def _precipoint(text: str) -> tuple[StatedScale | None, float | None]:
    """PreciPoint's GTIF: JSON with "mpp", "objective-power" and "magnification"."""
    try:
        named = {str(key).lower(): value for key, value in parse_json(text).items()}
    except ValueError:
        return None, None
    power = number(named.get("objective-power"))
    power = power if power is not None else number(named.get("magnification"))
    return scale_of(named.get("mpp"), named.get("mpp"), "GTIF ImageDescription mpp"), power


def _resolution_tag(page: Any) -> StatedScale | None:
    tags = page.tags
    try:
        unit = UM_PER_RESOLUTION_UNIT.get(int(tags["ResolutionUnit"].value) if "ResolutionUnit" in tags else 2)
        if unit is None or "XResolution" not in tags or "YResolution" not in tags:
            return None
        sides = []
        for axis in "XY":
            numerator, denominator = tags[f"{axis}Resolution"].value
            sides.append(unit * denominator / numerator)
    except (TypeError, ValueError, ZeroDivisionError):
        return None
    return scale_of(sides[0], sides[1], "TIFF XResolution tag")


def _profile(page: Any) -> bytes | None:
    value = page.tags.valueof(ICC_TAG)
    return bytes(value) if isinstance(value, bytes | bytearray) and value else None
