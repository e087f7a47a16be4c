"""What a benchmark tells: on which machine, when, and what; printed, and as a file where one is asked for."""

from __future__ import annotations

import json
import platform
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from slidescreen.overlap import usable_cores


def tell(told: dict[str, Any], path: Path | None) -> None:
    whole = json.dumps({"machine": machine(), "date": datetime.now(UTC).date().isoformat(), **told}, indent=1)
    print(whole)
    if path:
        path.write_text(whole)


def machine() -> str:
    """Processor and cores."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    name = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor())
    return f"{name}, {usable_cores()} cores"
