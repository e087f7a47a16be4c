"""Many scans: a plan, workers, a ledger; and images of single cells."""

from slidescreen.batch.images import ImagePrediction, classify_images, list_images, type_cells_at
from slidescreen.batch.slides import (
    RunOptions,
    SlideDone,
    SlideFailure,
    attempt,
    identify,
    list_scans,
    run_batch,
    run_slide,
)

__all__ = [
    "ImagePrediction",
    "RunOptions",
    "SlideDone",
    "SlideFailure",
    "attempt",
    "classify_images",
    "identify",
    "list_images",
    "list_scans",
    "run_batch",
    "run_slide",
    "type_cells_at",
]
