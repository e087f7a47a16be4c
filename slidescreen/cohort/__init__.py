"""The batch as a whole: one row a slide, what stands out among them, and how well they agree with the truth."""

from __future__ import annotations

import logging

from slidescreen.batch.output import Output, write
from slidescreen.batch.slides import draw_report
from slidescreen.cohort.agreement import agreements
from slidescreen.cohort.outliers import find_outliers
from slidescreen.cohort.page import render
from slidescreen.cohort.rows import gather
from slidescreen.cohort.table import as_csv, as_parquet
from slidescreen.errors import OutputError, ResultError
from slidescreen.store import REPORT

__all__ = ["build_cohort", "rebuild_reports"]

log = logging.getLogger(__name__)

PAGE = "cohort.html"


def build_cohort(output: Output) -> str:
    """Write `cohort.html`, `cohort.csv` and `cohort.parquet` from the stored results; returns where the page is.

    Raises OutputError when they cannot be written.
    """
    cohort = gather(output)
    outliers = find_outliers(cohort.rows)
    write(output, "cohort.csv", as_csv(cohort, outliers))
    write(output, "cohort.parquet", as_parquet(cohort, outliers))
    page = render(cohort, outliers, agreements(cohort.rows))
    write(output, PAGE, page.encode("utf-8", "replace"))
    return output.where(PAGE)


def rebuild_reports(output: Output) -> tuple[int, int]:
    """Draw the page of every stored result anew, without its scan; returns how many, and how many had to stay as they are.

    A result of another schema, or without pictures of its cells, keeps its page; the log says so.
    """
    drawn = kept = 0
    for name in output.results():
        try:
            with output.fetch(name) as folder:
                page = draw_report(folder)
            write(output, f"{name}/{REPORT}", page.encode("utf-8", "replace"))
            drawn += 1
        except ResultError as error:
            log.warning("%s", error)
            kept += 1
        except OSError as error:
            raise OutputError(f"{output.where(name)}: {error.strerror or error}; check the disk") from error
    return drawn, kept
