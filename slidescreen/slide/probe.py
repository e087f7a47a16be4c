"""OpenSlide tried in a process of its own, so that a vendor file on which it crashes or hangs costs a scan and not the run.

Its readers of vendors' formats follow what the files say of themselves; on a damaged one they can end the process or never
return. Aperio's and generic TIFFs are spared: their geometry is the TIFF's own, which `guards` has looked at.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from typing import Final

import openslide

PROBE_S: Final = 60.0
SPARED: Final = (None, "aperio", "generic-tiff")
SCRIPT: Final = """
import sys
import openslide
try:
    import resource
    resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))
except (ImportError, ValueError, OSError):
    pass
slide = openslide.OpenSlide(sys.argv[1])
width, height = slide.dimensions
for level in range(slide.level_count):
    for corner in ((0, 0), (width // 2, height // 2), (width - 1, height - 1)):
        slide.read_region(corner, level, (64, 64))
"""
"""Errors that OpenSlide raises end it with code 1: they are the reader's to tell."""


def openslide_fault(path: Path, seconds: float = PROBE_S, script: str = SCRIPT) -> str | None:
    """How OpenSlide fails on a local file beyond raising an error; None where it does not."""
    if openslide.OpenSlide.detect_format(path) in SPARED:
        return None
    try:
        done = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, timeout=seconds, check=False)
    except subprocess.TimeoutExpired:
        return f"OpenSlide does not come back from it within {seconds:g} s"
    if done.returncode >= 0:
        return None
    try:
        name = signal.Signals(-done.returncode).name
    except ValueError:
        name = f"signal {-done.returncode}"
    return f"OpenSlide crashes on it ({name})"
