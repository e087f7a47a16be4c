"""Compiled networks, kept between runs: a file each, with its own checksum.

A file is written beside its place and renamed, so that runs side by side at worst compile twice. What is damaged, or cannot be
used or written, is no error: it is compiled again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import platform
import time
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final, TypeVar

log = logging.getLogger(__name__)

T = TypeVar("T")
VARIABLE: Final = "SLIDESCREEN_CACHE"
SUFFIX: Final = ".compiled"
DIGEST: Final = hashlib.sha256().digest_size
KEPT: Final = 12
"""Files; those that were not used for longest go. One is about as large as the model, 0.1 GB."""
LEFT_S: Final = 24 * 3600
"""Age from which a half-written file is nobody's."""


def cache_folder() -> Path:
    """Where compiled networks are kept: $SLIDESCREEN_CACHE, else slidescreen/ in the user's cache."""
    if os.environ.get(VARIABLE):
        return Path(os.environ[VARIABLE])
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "slidescreen"


def compiled(key: Mapping[str, str], make: Callable[[], bytes], use: Callable[[bytes], T]) -> T:
    """`use` of what `make` gives, which is kept for the next time that the same `key` is asked for.

    `key`: everything that the bytes depend on. `use` raises RuntimeError for bytes that it cannot use after all.
    """
    path = cache_folder() / f"{_digest(key)}{SUFFIX}"
    kept = _read(path)
    if kept is not None:
        try:
            return use(kept)
        except RuntimeError as error:
            log.info("%s: cannot be used (%s); compiled again", path, " ".join(str(error).split())[:200])
    made = make()
    _write(path, made)
    return use(made)


def processor() -> str:
    """The kind of this machine's processor, as far as it can be told without a library."""
    model = ""
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        model = " ".join(sorted({line for line in lines if line.startswith(("model", "flags", "Features", "CPU part"))}))
    return f"{platform.system()} {platform.machine()} {platform.processor()} {model}"


def _digest(key: Mapping[str, str]) -> str:
    return hashlib.sha256(json.dumps(dict(key), sort_keys=True).encode()).hexdigest()[:32]


def _read(path: Path) -> bytes | None:
    try:
        content = path.read_bytes()
    except OSError:
        return None
    with suppress(OSError):  # a cache that cannot be written is good to read
        os.utime(path)
    digest, kept = content[:DIGEST], content[DIGEST:]
    if hashlib.sha256(kept).digest() != digest:
        log.info("%s: is damaged; compiled again", path)
        return None
    return kept


def _write(path: Path, content: bytes) -> None:
    partial = path.with_name(f".{path.name}.{os.getpid()}-{uuid.uuid4().hex[:8]}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            file.write(hashlib.sha256(content).digest())
            file.write(content)
        partial.replace(path)
        with suppress(OSError):  # another process may have removed or renamed one meanwhile
            _prune(path.parent)
    except OSError as error:
        log.info("%s: cannot be written (%s); the network is compiled anew each time", path, error.strerror)
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)


def _prune(folder: Path) -> None:
    files = sorted(folder.glob(f"*{SUFFIX}"), key=lambda p: p.stat().st_mtime, reverse=True)
    left = [path for path in folder.glob(f".*{SUFFIX}.*") if time.time() - path.stat().st_mtime > LEFT_S]  # of killed processes
    for path in (*files[KEPT:], *left):
        path.unlink(missing_ok=True)
