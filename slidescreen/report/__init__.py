"""SlideResult -> one self-contained HTML file, readable on paper, in dark rooms and without JavaScript.

`render` returns text and touches no file. Pictures are embedded within a byte budget, so that the report of 1,000 cells
stays below 10 MB; the page loads nothing from anywhere.
"""

from __future__ import annotations

from functools import cache
from pathlib import PurePath
from typing import Any, Final

import jinja2

from slidescreen.records import PATCH_UM, Explanations, SlideResult
from slidescreen.report import gallery, images, overview, tables, wording
from slidescreen.report.explained import ExplainedCell, page_pictures
from slidescreen.report.images import PatchSource
from slidescreen.taxonomy import BY_CODE, CLASSES

__all__ = ["render", "render_explained"]

TILE_BAR_UM: Final = 5.0
"""Length of the size bar on every picture of a cell."""


def render(result: SlideResult, patches: PatchSource, explanations: Explanations | None = None) -> str:
    """The report of one slide as HTML.

    `patches[i]` is the (400, 400, 3) uint8 RGB picture of `result.cells[i]`; only those shown are read, one at a time.
    `explanations`: the maps laid over the likeliest blasts; None where there are none.
    """
    galleries = gallery.choose(result)
    shown = {tile.index for each in galleries for tile in each.tiles}
    top = next((each for each in galleries if each.key == "top"), None)
    likeliest = frozenset(tile.index for tile in top.tiles) if top else frozenset[int]()
    small, large = images.thumbnails(patches, shown, likeliest)
    context = {
        "top": top,
        "galleries": [each for each in galleries if each.key != "top"],
        "thumbnails": small,
        "enlarged": {**small, **large},
        "overlays": images.overlays(patches, explanations.maps, likeliest) if explanations else {},
        "overlay_meaning": wording.overlay_meaning(explanations) if explanations else "",
        "map": overview.draw(result, shown),
        **_tables(result),
        **_constants(result),
    }
    return _environment().get_template("report.html.j2").render(context)


def render_explained(title: str, model: str, cells: list[ExplainedCell], method: str, target: str) -> str:
    """The page of `slidescreen explain` as HTML, self-contained."""
    return (
        _environment()
        .get_template("explained.html.j2")
        .render(
            title=title,
            model=model,
            cells=cells,
            pictures=page_pictures(cells),
            meaning=wording.overlay_meaning(Explanations(method, target, {})),
            by_code=BY_CODE,
            classes=CLASSES,
        )
    )


def _tables(result: SlideResult) -> dict[str, Any]:
    rows, ticks = tables.differential(result.differential)
    return {
        "blast": tables.headline(result.differential.blast),
        "atypical": tables.headline(result.differential.atypical),
        "rows": rows,
        "ticks": ticks,
        "sums": tables.sums(result.differential),
        "scan": tables.scan(result),
        "areas": tables.areas(result),
        "fates": tables.fates(result),
        "refusals": tables.by_reason(result.refusals),
        "doubts": tables.by_reason(result.doubts),
        "rejects": tables.rejects(result),
        "provenance": tables.provenance(result),
        "timings": tables.timings(result),
        "settings": tables.settings(result),
    }


def _constants(result: SlideResult) -> dict[str, Any]:
    found = {cell.label for cell in result.cells if cell.status == "typed"}
    return {
        "result": result,
        "file_name": PurePath(result.slide.path).name or result.slide.id,
        "counts": result.cell_counts,
        "leukocytes": result.differential.leukocytes,
        "classes": CLASSES,
        "by_code": BY_CODE,
        "order": gallery.GALLERY_ORDER,
        "absent": [BY_CODE[code].name for code in gallery.GALLERY_ORDER if code not in found],
        "tile_bar_um": TILE_BAR_UM,
        "tile_bar_percent": 100 * TILE_BAR_UM / PATCH_UM,
        "dash": wording.DASH,
    }


@cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("slidescreen", "report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals["number"] = wording.number
    environment.globals["cells"] = wording.cells
    return environment
