"""Command that draws pages from stored results: report."""

from __future__ import annotations

from typing import Annotated

import typer

from slidescreen.cli.app import app
from slidescreen.cli.options import VerboseOption, start_log


@app.command()
def report(
    out: Annotated[str, typer.Argument(metavar="OUT", help="Folder (or s3://, gs://) of results.")],
    verbose: VerboseOption = False,
) -> None:
    """Draw every report and the page of the batch anew from stored results; scans are not touched."""
    start_log(verbose, False)
    from slidescreen.batch.output import open_output
    from slidescreen.cohort import build_cohort, rebuild_reports
    from slidescreen.errors import UsageError

    output = open_output(out)
    if not output.results():
        raise UsageError(f"{out}: holds no results; name the folder that slidescreen run wrote to (-o)")
    drawn, kept = rebuild_reports(output)
    typer.echo(f"{drawn} reports drawn{f', {kept} left as they are' if kept else ''}; cohort -> {build_cohort(output)}")
