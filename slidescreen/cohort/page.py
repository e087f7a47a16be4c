"""The cohort as one HTML file that loads nothing from anywhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, Final

import jinja2

from slidescreen.cohort import plots
from slidescreen.cohort.agreement import POSITIVE, Agreement
from slidescreen.cohort.outliers import MIN_SLIDES, Outlier
from slidescreen.cohort.rows import Cohort, SlideRow
from slidescreen.records import Fraction
from slidescreen.report import wording

FEW: Final = 200
"""Leukocytes below which the limits are wide: a manual differential counts as many."""


def render(cohort: Cohort, outliers: Mapping[str, Sequence[Outlier]], agreements: Sequence[Agreement]) -> str:
    """The page; the slides in the order of the cohort."""
    rows = cohort.rows
    context = {
        "cohort": cohort,
        "rows": [_row(row, outliers.get(row.id, ())) for row in rows],
        "worst": rows[0] if rows and rows[0].blast.ci95 else None,
        "worst_text": _percent(rows[0].blast) if rows else "",
        "worst_limits": _limits(rows[0].blast) if rows else "",
        "above": sum(1 for r in rows if r.blast.ci95 and r.blast.ci95[0] >= POSITIVE),
        "positive": POSITIVE,
        "uncounted": [r for r in rows if not r.leukocytes],
        "few": FEW,
        "with_warnings": sum(bool(r.warnings) for r in rows),
        "apart": [(row, outliers[row.id]) for row in rows if row.id in outliers],
        "min_slides": MIN_SLIDES,
        "patients": any(r.patient for r in rows),
        "histograms": plots.distributions(cohort),
        "agreements": [plots.agreement_plots(each) for each in agreements],
        "models": sorted({f"{r.model}, slidescreen {r.version}" for r in rows}),
        "newest": max((r.created for r in rows), default=""),
        "dash": wording.DASH,
    }
    return _environment().get_template("cohort.html.j2").render(context)


def _row(row: SlideRow, apart: Sequence[Outlier]) -> dict[str, Any]:
    return {
        "slide": row,
        "blast": _percent(row.blast),
        "blast_limits": _limits(row.blast),
        "blast_sort": _sort(row.blast.fraction),
        "least": _sort(row.blast.ci95[0] if row.blast.ci95 else None),
        "bar": plots.blast_bar(row),
        "atypical": _percent(row.atypical),
        "atypical_limits": _limits(row.atypical),
        "atypical_sort": _sort(row.atypical.fraction),
        "per_mm2": wording.number(row.per_mm2, 1),
        "per_mm2_sort": _sort(row.per_mm2),
        "apart": apart,
        "search": " ".join((row.file, row.patient, row.id)).lower(),
    }


def _percent(fraction: Fraction) -> str:
    return wording.number(wording.as_percent(fraction.fraction), 1)


def _limits(fraction: Fraction) -> str:
    return wording.limits(wording.limits_as_percent(fraction.ci95), 1)


def _sort(value: float | None) -> str:
    return "-1" if value is None else f"{value:.6g}"


@cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.ChoiceLoader(
            [jinja2.PackageLoader("slidescreen", "cohort"), jinja2.PackageLoader("slidescreen", "report")]
        ),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals["slides"] = lambda n: wording.cells(n, "slide")
    return environment
