"""Commands that tell or show: info, demo, doctor."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from slidescreen.cli.app import app
from slidescreen.cli.options import (
    ReaderOption,
    VerboseOption,
    effective_settings,
    open_classifier,
    reading_settings,
    start_log,
)


@app.command()
def info(
    scan: Annotated[str, typer.Argument(metavar="SCAN")],
    um_per_px: Annotated[float | None, typer.Option("--um-per-px", help="um per level-0 pixel.")] = None,
    reader: ReaderOption = "",
    compare: Annotated[bool, typer.Option("--compare", help="Compare tiles as each reader reads them.")] = False,
    verbose: VerboseOption = False,
) -> None:
    """Tell what is read from a scan, by which reader, and where its scale comes from."""
    start_log(verbose, False)
    from slidescreen.detect import working_grid
    from slidescreen.errors import ScaleError
    from slidescreen.scale import resolve_scale
    from slidescreen.slide import ReadSettings, location, open_slide
    from slidescreen.slide.fingerprint import slide_id

    path = location(scan)
    with open_slide(path, settings=reading_settings(ReadSettings(), reader, "")) as slide:
        details = slide.details
        try:
            scale = resolve_scale(path, slide.stated_scale, um_per_px, details.other_scales)
            said = f"{scale.um_per_px:.6g} (from {scale.source})"
            grid = working_grid(slide, scale)
            searched = (
                f"{scale.um_per_px * grid.downsample:.4g} um/px (level {grid.level}, averaged {grid.factor} x {grid.factor})"
            )
        except ScaleError as error:
            said, searched = f"unknown: {error}", "unknown"
        print_ = slide.fingerprint()
        lines = {
            "file": scan,
            "id": slide_id(path, print_),
            "reader": slide.reader,
            "why": slide.why,
            "vendor": slide.vendor,
            "size": f"{slide.size.width} x {slide.size.height} px",
            "um/px": said,
            "searched at": searched,
            "levels": ", ".join(f"{v.size.width} x {v.size.height} (1:{v.downsample:g})" for v in slide.levels),
            "objective": f"x{details.objective_power:g}" if details.objective_power else "not stated",
            "ICC profile": f"{len(details.icc_profile)} bytes" if details.icc_profile else "none",
            "other images": ", ".join(details.images) or "none",
            "fingerprint": print_,
            **{f"note {i}": note for i, note in enumerate(slide.notes, 1)},
        }
    if compare:
        from slidescreen.slide.known_answers import compare_readers

        lines |= {f"by {name}": said for name, said in compare_readers(path)}
    for name, value in lines.items():
        typer.echo(f"{name + ':':13} {value}")


@app.command()
def demo(
    out: Annotated[Path, typer.Argument(metavar="OUT.tif", help="Scan to paint; its truth goes to OUT.json.")],
    seed: Annotated[int, typer.Option("--seed", min=0)] = 0,
    verbose: VerboseOption = False,
) -> None:
    """Paint a synthetic smear with known truth, and tell how many of its cells the default model names right."""
    start_log(verbose, False)
    from slidescreen.demo import write_demo

    cells = write_demo(out, seed=seed)
    typer.echo(f"{len(cells)} leukocytes painted -> {out}, truth -> {out.with_suffix('.json')}")

    from slidescreen.batch import type_cells_at

    labels = type_cells_at(out, [c.box for c in cells], open_classifier("", effective_settings(None, "", 0, "")))
    right = sum(label == cell.label for label, cell in zip(labels, cells, strict=True))
    typer.echo(f"The default model names {right} of {len(cells)} painted cells as painted (says nothing of real cells).")


@app.command()
def doctor(verbose: VerboseOption = False) -> None:
    """Check the installation: versions, readers, device, default model."""
    start_log(verbose, False)
    from slidescreen.doctor import examine

    sound = True
    for check in examine():
        sound = sound and check.ok
        typer.echo(f"{'ok  ' if check.ok else 'FAIL'} {check.name + ':':18} {check.detail}")
    if not sound:
        raise typer.Exit(1)
