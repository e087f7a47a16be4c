"""A Ray cluster of three nodes on this machine; one is killed in the middle of a batch. Is every slide done once?

    python benchmarks/cluster.py SCANS

SCANS: a folder with a few small scans. Needs the extra `cluster`. Compares the results with those of one machine, and tells
what Ray costs per slide. Prints a table as Markdown.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import ray
from faults import differences, results
from ray.cluster_utils import Cluster

SETTINGS = '[detect]\nmethod = "stain"\n[batch]\ncpus_per_slide = 1\n'


def run(scans: Path, out: Path, *more: str) -> tuple[subprocess.CompletedProcess[str], float]:
    settings = out.parent / "settings.toml"
    settings.write_text(SETTINGS)
    began = time.monotonic()
    command = [sys.executable, "-m", "slidescreen", "run", str(scans), "-o", str(out), "--settings", str(settings), *more]
    return subprocess.run(command, capture_output=True, text=True), time.monotonic() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scans", type=Path)
    scans = parser.parse_args().scans
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    with tempfile.TemporaryDirectory(prefix="cluster-") as folder:
        work = Path(folder)
        done, _ = run(scans, work / "local")
        assert done.returncode == 0, done.stderr
        reference = results(work / "local")
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
        nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
        cluster.wait_for_nodes()
        killed: list[float] = []

        def kill() -> None:
            while not list((work / "ray").glob(".*.partial-*/patches.zarr")):
                time.sleep(0.02)
            cluster.remove_node(nodes[0], allow_graceful=False)
            killed.append(time.monotonic())

        threading.Thread(target=kill, daemon=True).start()
        done, seconds = run(scans, work / "ray", "--engine", "ray", "--ray-address", cluster.address)
        wrong = differences(work / "ray", reference)
        account = json.loads((work / "ray" / "run.json").read_text())
        workers = {entry["path"]: entry["worker"] for entry in account["slides"]}
        ray.shutdown()
        cluster.shutdown()
    print("| slides | nodes | killed | exit | done | failed | seconds | differences from one machine |\n" + "| --- " * 8 + "|")
    print(
        f"| {account['listed']} | 2 | {len(killed)} | {done.returncode} | {account['done']} | {account['failed']} "
        f"| {seconds:.0f} | {'; '.join(wrong) or 'none'} |"
    )
    print(done.stderr[-2000:] if done.returncode else workers, file=sys.stderr)


if __name__ == "__main__":
    main()
