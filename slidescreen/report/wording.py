"""Numbers as the report prints them. A value that does not exist is an en dash, never a zero."""

from __future__ import annotations

from typing import Final

from slidescreen.records import Explanations

DASH: Final = "\N{EN DASH}"

MANY_CELLS: Final = 2000
"""From this many cells on a second decimal of a percentage carries information."""


def decimals_for(total: int) -> int:
    """Decimals worth printing of a percentage of `total` cells."""
    return 2 if total >= MANY_CELLS else 1


def number(value: float | None, decimals: int) -> str:
    """A plain number with fixed decimals."""
    return DASH if value is None else f"{value:.{decimals}f}"


def limits(low_high: tuple[float, float] | None, decimals: int) -> str:
    """Two limits in the unit they come in: "1.6 to 11.3", with an en dash."""
    return DASH if low_high is None else f"{low_high[0]:.{decimals}f}{DASH}{low_high[1]:.{decimals}f}"


def as_percent(fraction: float | None) -> float | None:
    """[0, 1] -> percent."""
    return None if fraction is None else 100 * fraction


def limits_as_percent(low_high: tuple[float, float] | None) -> tuple[float, float] | None:
    """[0, 1] -> percent."""
    return None if low_high is None else (100 * low_high[0], 100 * low_high[1])


def cells(count: int, noun: str = "cell") -> str:
    """ "1 cell", "2 cells"."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def duration(seconds: float) -> str:
    """Seconds as people read them: "4.2 s", "3 min 05 s"."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s"


def length(um: float) -> str:
    """A round length for a scale bar: "500 µm", "2 mm"."""
    return f"{um / 1000:g} mm" if um >= 1000 else f"{um:g} µm"


def overlay_meaning(explanations: Explanations) -> str:
    """One sentence on what the colours over a cell mean, and one on what they do not."""
    score = "P(blast)" if explanations.target == "blast" else "the score of the class given"
    how = "saliency: the gradient of the loss" if explanations.method == "saliency" else "Grad-CAM"
    return (
        f"Yellow marks where a small change of the picture would change {score} most ({how}; each map scaled by itself). "
        "It shows what the network is sensitive to, not why, and not whether the answer is right."
    )
