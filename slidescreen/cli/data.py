"""Commands that look at labelled images."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from slidescreen.cli.app import app, log
from slidescreen.cli.options import VerboseOption, start_log

if TYPE_CHECKING:
    from slidescreen.training.classifier.check import DataReport

SHOWN: Final = 20
"""Lines of each list that are printed; with -v all."""

data_app = typer.Typer(help="Look at labelled images before they are learned from.", no_args_is_help=True)
app.add_typer(data_app, name="data")


@data_app.command("check")
def check(
    data: Annotated[
        Path,
        typer.Argument(metavar="DATA", help="AML-Cytomorphology_LMU, a folder per class, or a CSV: file,label,um_per_px,..."),
    ],
    um_per_px: Annotated[float | None, typer.Option("--um-per-px", help="Of images in a folder per class.")] = None,
    verbose: VerboseOption = False,
) -> None:
    """Read every image: counts, sizes, what cannot be read, duplicates; exit 1 when training would stumble over something."""
    start_log(verbose, False)
    from slidescreen.training.classifier.check import check_images
    from slidescreen.training.classifier.images import list_images

    images = list_images(data, um_per_px)

    def progress(done: int) -> None:
        if done % 2000 == 0:
            log.info("%d of %d images read", done, len(images))

    report = check_images(images, progress)
    for line in _lines(report, len(images) if verbose else SHOWN):
        typer.echo(line)
    if not report.sound:
        raise typer.Exit(1)


def _lines(report: DataReport, most: int) -> Iterator[str]:
    images = report.images
    yield f"{len(images)} images, {len({(i.source, i.patient) for i in images if i.patient})} patients"
    yield from _by_class(report)
    for source, n in sorted(Counter(i.source or "(unnamed)" for i in images).items()):
        yield f"source {source}: {n}"
    again = [sum(bool(i.reannotation_1) for i in images), sum(bool(i.reannotation_2) for i in images)]
    if any(again):
        yield f"re-annotated: {again[0]} once, {again[1]} twice"
    per_patient = Counter(f"{i.source}/{i.patient}" if i.source else i.patient for i in images if i.patient)
    yield from _some([f"patient {name}: {n}" for name, n in sorted(per_patient.items())], most, "patients")
    sizes = sorted(report.sizes.items(), key=lambda item: -item[1])
    yield from _some([f"size {w} x {h} px: {n}" for (w, h), n in sizes], most, "sizes")
    yield f"unreadable: {len(report.unreadable)}"
    yield from _some([f"  {i.path}: {reason}" for i, reason in report.unreadable], most, "unreadable files")
    yield f"duplicates (same px): {len(report.duplicates)} groups, {len(report.contradictions)} of them with two labels"
    groups = [*report.contradictions, *(g for g in report.duplicates if g not in report.contradictions)]
    yield from _some(["  " + " = ".join(f"{i.file} ({i.label})" for i in group) for group in groups], most, "groups")
    yield f"near-duplicates across labels: {len(report.near)} pairs"
    pairs = [f"  {p.first.file} ({p.first.label}) ~ {p.second.file} ({p.second.label}), {p.bits} bits" for p in report.near]
    yield from _some(pairs, most, "pairs")


def _by_class(report: DataReport) -> Iterator[str]:
    from slidescreen.taxonomy import BY_CODE, CLASS_OF, CODES, LEAVES, NOT_A_LEUKOCYTE, RARE, merge_rare

    counts = report.annotations
    merged = merge_rare(counts)
    for code in CODES:
        own = {leaf: n for leaf, n in counts.items() if CLASS_OF.get(leaf) == code}
        finer = {leaf: n for leaf, n in own.items() if leaf != code}
        total = sum(own.values())
        note = f", fewer than {RARE}: too few to learn or to measure" if 0 < total < RARE else ""
        kinds = {merged[leaf] for leaf in finer if leaf in LEAVES}
        told = ", ".join(f"{leaf} {n}" for leaf, n in sorted(finer.items()))
        by_source = Counter(i.source or "(unnamed)" for i in report.images if i.label == code)
        note += f" ({', '.join(f'{source} {n}' for source, n in sorted(by_source.items()))})" if len(by_source) > 1 else ""
        note += f" (of them {told}{'; merged' if kinds == {code} else ''})" if finer else ""
        yield f"class {code} {BY_CODE[code].name}: {total}{note}"
    if NOT_A_LEUKOCYTE in counts:
        yield f"class {NOT_A_LEUKOCYTE} no leukocyte of the 15 classes: {counts[NOT_A_LEUKOCYTE]}, left out of training"


def _some(lines: list[str], most: int, what: str) -> Iterator[str]:
    yield from lines[:most]
    if len(lines) > most:
        yield f"  ... and {len(lines) - most} more {what}; -v lists them"
