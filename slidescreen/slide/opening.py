"""Which reader opens a scan, why, and what to say where none does."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from slidescreen.errors import OpenError, UsageError
from slidescreen.slide.guards import tiff_fault
from slidescreen.slide.key_files import key_file_fault
from slidescreen.slide.location import is_remote
from slidescreen.slide.probe import openslide_fault
from slidescreen.slide.reader import Reader
from slidescreen.slide.readers import READERS, ImageReader, OpenSlideReader, TiledTiffReader
from slidescreen.slide.slide import Slide
from slidescreen.slide.steady import Patience, SteadyReader

PLAIN: Final = ("generic-tiff", "unknown", "ome", "precipoint")
"""Vendors whose files several readers open; of a vendor's own format the first that knows it is taken."""
NATIVE: Final = (TiledTiffReader, OpenSlideReader)
"""Readers that call OpenSlide."""
SLOW_PX: Final = 50_000_000
NO_LOW_LEVELS: Final = (
    "no reduced levels, so that the whole image is decoded for its overview; "
    "convert it: vips tiffsave IN OUT.tif --tile --pyramid --bigtiff --compression jpeg --Q 90"
)
DETECTION_S: Final = 20
DETECTION: Final = re.compile(r"(?:OpenSlide-Message: [\d:.]+: )([a-z-]+): (.+)")
NOTHING: Final = ("Is a TIFF file", "Not a TIFF file", "Unrecognized filename")
OBJECT: Final = re.compile(r"<_io\.[^>]*>")


@dataclass(frozen=True, slots=True)
class ReadSettings:
    """`reader`: the one to use, or "auto". `icc`: "apply" turns colours to sRGB by the file's profile; "ignore" takes them as
    they are, as the images were on which the models were trained."""

    reader: str = "auto"
    icc: Literal["apply", "ignore"] = "ignore"

    def __post_init__(self) -> None:
        if self.reader not in reader_names():
            raise UsageError(f"reader {self.reader!r}: must be one of {', '.join(reader_names())}")


def reader_names() -> list[str]:
    """What `--reader` may be."""
    return ["auto", *(reader.name for reader in READERS)]


def open_slide(
    path: Path,
    readers: Sequence[type[Reader]] = READERS,
    settings: ReadSettings = ReadSettings(),  # frozen
    patience: Patience | None = None,
) -> Slide:
    """Open a scan with the first reader that sees all there is: a vendor's format, or a pyramid with its scale. Of plain TIFFs
    in which none sees both, the reader that sees a pyramid is taken, then the one that finds a scale, then the first.

    Raises OpenError in one line: the file, each reader's own reason, the next step.
    """
    _require_file(path)
    _require_sound(path)
    if settings.reader != "auto":
        readers = [reader for reader in readers if reader.name == settings.reader]
    if any(reader in NATIVE for reader in readers) and path.is_file() and not is_remote(path):
        fault = openslide_fault(path)
        if fault is not None:
            raise OpenError(f"{path}: damaged or hostile: {fault}; copy it again from the scanner")
    waits, icc = patience or Patience(), settings.icc == "apply"

    def steady(reader: type[Reader]) -> SteadyReader:
        return SteadyReader(reader, path, waits, icc=icc)

    reasons: list[str] = []
    best: tuple[type[Reader], SteadyReader] | None = None
    for reader in readers:
        if best is not None and (_sees_all(best[1]) or reader is ImageReader):
            break
        try:
            handle = steady(reader)
        except (MemoryError, KeyboardInterrupt):
            raise
        except Exception as error:  # foreign readers raise anything on foreign files
            reasons.append(f"{reader.name}: {one_line(error)}")
            continue
        if best is None or _merit(handle) > _merit(best[1]):
            best, handle = (reader, handle), best[1] if best else handle
        if handle is not best[1]:
            handle.close()
    if best is None:
        raise OpenError(_refusal(path, reasons))
    chosen = best[0]
    why = "asked for" if settings.reader != "auto" else _why(best[1], reasons)
    slide = Slide(path, lambda _path: steady(chosen), best[1], why=why, notes=_notes(best[1], icc))
    if slide.details.icc_profile:
        slide.icc = "applied" if icc else "ignored"
    return slide


def _why(reader: Reader, reasons: list[str]) -> str:
    """Why this reader, in a few words."""
    before = f"; {'; '.join(reasons)}" if reasons else ""
    if reader.vendor not in PLAIN:
        return f"knows this format ({reader.vendor}){before}"
    levels, scale = _merit(reader)
    seen = {(True, True): "sees pyramid and scale", (True, False): "sees the pyramid", (False, True): "finds the scale"}
    return seen.get((levels, scale), "the first that reads it") + before


def _notes(reader: Reader, icc: bool) -> tuple[str, ...]:
    notes = reader.details.notes
    if icc and not reader.details.icc_profile:
        notes = (*notes, "no ICC profile in the file: colours are as stored")
    if len(reader.sizes) == 1 and reader.sizes[0].area > SLOW_PX:
        notes = (*notes, NO_LOW_LEVELS)
    return notes


def _require_sound(path: Path) -> None:
    if path.is_dir():
        return
    try:
        fault = tiff_fault(path)
        absurd = key_file_fault(path)
    except OSError as error:
        raise OpenError(f"{path}: cannot be read ({one_line(error)}); check the disk or the network share") from error
    if fault is not None and fault.truncated:
        raise OpenError(f"{path}: truncated: {fault.reason}; copy it again from the scanner")
    if fault is not None:
        raise OpenError(f"{path}: damaged or hostile TIFF: {fault.reason}; it is not opened")
    if absurd is not None:
        raise OpenError(f"{path}: damaged or hostile: {absurd}; it is not opened")


def _refusal(path: Path, reasons: list[str]) -> str:
    colours = [reason for reason in reasons if "not an 8-bit RGB image" in reason]
    if colours:
        return f"{path}: {colours[0].split(': ', 1)[1]}; export it from the scanner as 8-bit RGB"
    detected = [f"{reason}{_detection(path)}" if "Unsupported or missing" in reason else reason for reason in reasons]
    said = " | ".join(OBJECT.sub("it", each) for each in detected)
    return (
        f"{path}: not a scan that can be read ({said}); likely a truncated, damaged or foreign file: "
        "copy it again from the scanner, or convert it to a tiled pyramidal TIFF"
    )


def _detection(path: Path) -> str:
    """Why OpenSlide takes a file for none of its formats, one reason a format; "" where it does not tell.

    OpenSlide reads the variable once, when it is loaded: hence a process of its own.
    """
    if path.is_dir() or is_remote(path):
        return ""
    command = [sys.executable, "-c", "import sys, openslide; openslide.OpenSlide.detect_format(sys.argv[1])", str(path)]
    try:
        environment = {**os.environ, "OPENSLIDE_DEBUG": "detection"}
        done = subprocess.run(command, env=environment, capture_output=True, timeout=DETECTION_S, check=False)
    except (OSError, subprocess.SubprocessError):
        return ""
    said = DETECTION.findall(done.stderr.decode("utf-8", "replace"))
    told = [f"{name}: {reason.strip()}" for name, reason in said if reason.strip() not in NOTHING]
    return f" [{', '.join(told)}]" if told else ""


def _merit(reader: Reader) -> tuple[bool, bool]:
    return len(reader.sizes) > 1, reader.stated_scale is not None


def _sees_all(reader: Reader) -> bool:
    return all(_merit(reader)) or reader.vendor not in PLAIN


def _require_file(path: Path) -> None:
    try:
        if path.is_dir():
            if not any(path.iterdir()):
                raise OpenError(f"{path}: is a folder without scans")
            return
        with path.open("rb") as file:
            if not file.read(1):
                raise OpenError(f"{path}: the file is empty (0 bytes); copy it again from the scanner")
    except FileNotFoundError:
        raise OpenError(f"{path}: no such file; check the path") from None
    except PermissionError:
        raise OpenError(f"{path}: no permission to read it; ask its owner, or run chmod +r on it") from None
    except OSError as error:
        raise OpenError(f"{path}: cannot be read ({one_line(error)}); check the disk or the network share") from error


def one_line(error: BaseException) -> str:
    """An error's text, short and without line breaks; its type where it has none."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 160 else text[:157] + "..."
