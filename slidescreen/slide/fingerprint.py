"""A scan's identity by content."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Final

HEAD: Final = 1 << 20
SAMPLE: Final = 1 << 16
SAMPLES: Final = 64
METADATA: Final = ("zarr.json", ".zgroup", ".zattrs", ".zarray", ".zmetadata")
STEM_BYTES: Final = 120
HIDDEN: Final = (".DS_Store", "._")


def fingerprint(path: Path) -> str:
    """64 hex digits that depend on the file's content only: sha256 over its length, its first and last MiB and 64 samples
    of 64 KiB spread evenly between, so that a scan of many GB is identified in milliseconds.

    A folder (OME-Zarr, DICOM) is identified by the names and lengths of its files, the content of those that hold no pixels and
    64 of the others spread evenly.

    Scans that keep their pixels in a folder beside the file (MIRAX, VMS) are identified by the file named.
    Raises OSError when the file cannot be read.
    """
    if path.is_dir():
        return _folder(path)
    length = path.stat().st_size
    digest = hashlib.sha256(str(length).encode())
    with path.open("rb") as file:
        if length <= 2 * HEAD + SAMPLES * SAMPLE:
            digest.update(file.read())
            return digest.hexdigest()
        digest.update(file.read(HEAD))
        span = length - 2 * HEAD - SAMPLE
        for i in range(SAMPLES):
            file.seek(HEAD + span * i // (SAMPLES - 1))
            digest.update(file.read(SAMPLE))
        file.seek(length - HEAD)
        digest.update(file.read(HEAD))
    return digest.hexdigest()


def _folder(path: Path) -> str:
    root = path.as_posix()  # not relative_to: of URLs it keeps the protocol
    files = sorted(
        (p.as_posix().removeprefix(root), p) for p in path.rglob("*") if p.is_file() and not p.name.startswith(HIDDEN)
    )
    sizes = {name: file.stat().st_size for name, file in files}
    digest = hashlib.sha256("\n".join(f"{name} {size}" for name, size in sizes.items()).encode())
    chunks = [file for name, file in files if file.name not in METADATA]
    chosen = {chunks[len(chunks) * i // SAMPLES] for i in range(SAMPLES)} if chunks else set[Path]()
    for name, file in files:
        if file.name in METADATA or file in chosen:
            digest.update(f"{name} {fingerprint(file)}".encode())
    return digest.hexdigest()


def slide_id(path: Path, fingerprint: str) -> str:
    """File stem, cut to 120 bytes, plus 8 hex digits of the fingerprint."""
    stem = os.fsencode(path.stem)[:STEM_BYTES].decode("utf-8", "ignore").strip() or "slide"
    stem = "".join(c if c.isprintable() else "_" for c in stem)
    return f"{stem.lstrip('.') or 'slide'}-{fingerprint[:8]}"
