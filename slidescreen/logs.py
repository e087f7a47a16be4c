"""Log lines: plain for people, JSON for machines, both on standard error."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from pathlib import Path


def _one_line(record: logging.LogRecord) -> str:
    """The message on one line, unless it is a traceback (extra={"lines": True})."""
    text = record.getMessage()
    return text if getattr(record, "lines", False) else "".join(c if c.isprintable() else " " for c in text)


class _PlainLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return _one_line(record)


class _JsonLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        when = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        return json.dumps({"time": when, "level": record.levelname.lower(), "message": _one_line(record)}, ensure_ascii=False)


class _File(logging.FileHandler):
    def handleError(self, record: logging.LogRecord) -> None:
        """A full disk must not stop the batch, nor fill the terminal; lines on standard error go on."""


def log_file(path: Path) -> logging.Handler:
    """Add the package's log lines to a file, as JSON, until `end_log_file`. Raises OSError when it cannot be opened."""
    handler = _File(path, encoding="utf-8", errors="replace")
    handler.setFormatter(_JsonLines())
    logging.getLogger("slidescreen").addHandler(handler)
    return handler


def end_log_file(handler: logging.Handler) -> None:
    """Stop what `log_file` began."""
    logging.getLogger("slidescreen").removeHandler(handler)
    handler.close()


def start_log(*, verbose: bool, as_json: bool) -> None:
    """Send the package's log lines to standard error; debug lines too when `verbose`."""
    root = logging.getLogger("slidescreen")
    root.handlers.clear()
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonLines() if as_json else _PlainLines())
    root.addHandler(handler)
    root.setLevel(logging.DEBUG if verbose else logging.INFO)
    root.propagate = False
    for library in ("tifffile", "pydicom", "py.warnings"):  # what matters of theirs comes back as an error or a count
        foreign = logging.getLogger(library)
        foreign.handlers = [handler if verbose else logging.NullHandler()]
        foreign.propagate = False
    logging.captureWarnings(True)
