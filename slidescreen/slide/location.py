"""Where scans lie: local paths, and URLs that fsspec knows (http://, s3://, memory://), in one type."""

from __future__ import annotations

from pathlib import Path
from typing import Final, cast

from slidescreen.errors import UsageError

SCHEME: Final = "://"


def location(text: str) -> Path:
    """A path, or for a URL its like (universal_pathlib). Raises UsageError where what the URL needs is not installed."""
    if SCHEME not in text:
        return Path(text)
    try:
        from upath import UPath

        return cast(Path, UPath(text))
    except (ImportError, ValueError) as error:
        raise UsageError(f"{text}: URLs need more packages ({error}); pip install 'slidescreen[remote]'") from error


def is_remote(path: Path) -> bool:
    """Whether `location` made it of a URL."""
    return SCHEME in str(path)


def require_local(path: Path) -> None:
    """Raise ValueError for URLs."""
    if is_remote(path):
        raise ValueError("reads local files only")
