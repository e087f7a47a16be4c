"""Seconds until a command has said what it has to say.

    python benchmarks/startup.py SCAN IMAGE [--rounds 5] [--json startup.json]

--help, `info SCAN`, and the first typed image (`classify IMAGE`): with nothing compiled yet, and with what the first run kept.
Medians; the first run of each command, which reads from the disk, is left out.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from telling import tell


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scan", type=Path)
    parser.add_argument("image", type=Path, help="of a single cell, 0.0725 um/px")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {"SLIDESCREEN_CACHE": f"{folder}/cache"}
        typing = ["classify", str(asked.image), "--um-per-px", "0.0725", "-o", f"{folder}/p.csv"]
        commands = {"help": ["--help"], "info": ["info", str(asked.scan)], "classify, compiling": typing, "classify": typing}
        told: dict[str, object] = {}
        for name, command in commands.items():
            rounds = 1 if "compiling" in name else asked.rounds + 1
            seconds = [once(command, environment) for _ in range(rounds)]
            told[name] = round(statistics.median(seconds[1:] or seconds), 2)
    tell(told, asked.json)


def once(command: list[str], environment: dict[str, str]) -> float:
    began = time.perf_counter()
    subprocess.run([sys.executable, "-m", "slidescreen", *command], check=True, capture_output=True, env=environment)
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
