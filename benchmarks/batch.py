"""Slides an hour with one and two workers, what starting them costs, and what Ray costs per slide; as ratios in one run.

    python benchmarks/batch.py SCANS [--rounds 3]

SCANS: a folder with some scans, all alike. Every executor first screens them once (its start: import, model), then `--rounds`
times more, in turns, so that other load on the machine meets all alike; medians are told. Prints a table as Markdown.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from slidescreen.batch.cluster import RayExecutor
from slidescreen.batch.conduct import Executor
from slidescreen.batch.events import Finished, Job, SlideTask, Stop
from slidescreen.batch.inputs import read_inputs
from slidescreen.batch.local import LocalExecutor
from slidescreen.batch.output import open_output
from slidescreen.batch.plan import make_plan
from slidescreen.batch.slides import SlideDone
from slidescreen.config import BatchSettings, Settings
from slidescreen.model import DEFAULT_MODEL, find_model


def once(executor: Executor, tasks: Sequence[SlideTask]) -> tuple[float, float]:
    """Wall seconds, and seconds of the slides on their workers."""
    began = time.monotonic()
    finished = [e for e in executor.screen(tasks, Stop()) if isinstance(e, Finished)]
    assert all(isinstance(e.outcome, SlideDone) for e in finished), finished
    assert len(finished) == len(tasks)
    return time.monotonic() - began, sum(e.seconds for e in finished)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scans", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    wishes = parser.parse_args()
    cores = len(os.sched_getaffinity(0))
    os.environ.setdefault(
        "RAY_worker_niceness", "0"
    )  # as the others: Ray's default lets its workers stand back on a busy machine
    with tempfile.TemporaryDirectory(prefix="batch-") as folder:
        settings = Settings(batch=BatchSettings(cpus_per_slide=cores))
        job = Job(folder, find_model(DEFAULT_MODEL), settings, overwrite=True, threads=cores)
        tasks = make_plan(read_inputs([str(wishes.scans)], None), job, open_output(folder)).tasks
        two = Job(folder, job.model, settings, overwrite=True, threads=max(1, cores // 2))
        executors: dict[str, Executor] = {
            "1 worker": LocalExecutor(job, ["cpu"]),
            "2 workers": LocalExecutor(two, ["cpu", "cpu"]),
            "Ray, 1 slide at once": RayExecutor(job, settings.batch),
        }
        first = {name: once(executor, tasks)[0] for name, executor in executors.items()}
        later: dict[str, list[tuple[float, float]]] = {name: [] for name in executors}
        for _ in range(wishes.rounds):
            for name, executor in executors.items():
                later[name].append(once(executor, tasks))
        for executor in executors.values():
            if isinstance(executor, LocalExecutor):
                executor.close()
    wall = {name: statistics.median(w for w, _ in each) for name, each in later.items()}
    idle = {name: statistics.median(w - s for w, s in each) / len(tasks) for name, each in later.items()}
    print(f"{len(tasks)} slides, {cores} cores, {wishes.rounds} rounds\n")
    print("| executor | slides an hour | to 1 worker | start, s | besides the slide, s per slide |\n" + "| --- " * 5 + "|")
    for name, seconds in wall.items():
        beside = "-" if name.startswith("2") else f"{idle[name]:.3f}"
        speed, ratio = 3600 * len(tasks) / seconds, wall["1 worker"] / seconds
        print(f"| {name} | {speed:.0f} | {ratio:.2f} | {max(0.0, first[name] - seconds):.1f} | {beside} |")


if __name__ == "__main__":
    main()
