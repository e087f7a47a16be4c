"""Log lines: plain for people, JSON for machines, both on standard error."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime


class _JsonLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        when = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        return json.dumps({"time": when, "level": record.levelname.lower(), "message": record.getMessage()}, ensure_ascii=False)


def start_log(*, verbose: bool, as_json: bool) -> None:
    """Send the package's log lines to standard error; debug lines too when `verbose`."""
    root = logging.getLogger("slidescreen")
    root.handlers.clear()
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonLines() if as_json else logging.Formatter("%(message)s"))
    root.addHandler(handler)
    root.setLevel(logging.DEBUG if verbose else logging.INFO)
    root.propagate = False
