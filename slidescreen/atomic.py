"""Files and folders that are written whole or not at all: beside their place, then renamed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from slidescreen.errors import OutputError


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A hidden name beside `path` to write to; it takes its place when the block ends well, and is removed when not.

    Folders are made. Raises OutputError for what the disk refuses.
    """
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        partial.replace(path)
    except OSError as error:
        raise _refused(path, error) from error
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def making_folder(path: Path, *, replace: bool = False) -> Iterator[Path]:
    """A hidden folder beside `path` to fill; it takes its place when the block ends well, and is removed when not.

    Where there is a folder with something in it already, `replace` puts the new one in its place: the old one stays whole
    until that moment, and is back when that fails. Raises OutputError for what the disk refuses, such a folder without
    `replace` among it.
    """
    partial, old = (path.with_name(f".{path.name}.{what}-{os.getpid()}") for what in ("partial", "old"))
    try:
        partial.mkdir(parents=True)
        yield partial
        if replace and path.exists():
            path.rename(old)
        partial.rename(path)
    except OSError as error:
        raise _refused(path, error) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        if old.exists() and not path.exists():
            old.rename(path)
        shutil.rmtree(old, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8, whole or not at all. Raises OutputError."""
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")


def _refused(path: Path, error: OSError) -> OutputError:
    reason = error.strerror or error
    return OutputError(f"{path}: cannot be written ({reason}); check free disk space and permissions")
