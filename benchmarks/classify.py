"""Cells a second by engine, against the plain torch loop (float32, one patch after the other), as ratios in one run.

    python benchmarks/classify.py [--input-px 400] [--cells 48] [--rounds 3] [--engines ...] [--json classify.json]

Patches are painted cells; speed does not depend on what they show. Contestants take turns, so that other load on the machine
meets all alike; medians are told. With `--device cuda` (`--engines "torch bfloat16" "torch float32"`) it also tells the share
of the GPU's matrix throughput, measured in the same run.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from agreement import KINDS, with_input, write_patches
from numpy.typing import NDArray
from telling import tell

from slidescreen.demo import paint_smear
from slidescreen.engines import ClassifySettings, open_engine
from slidescreen.geometry import Size
from slidescreen.model import DEFAULT_MODEL, find_model, load_card, load_network, prepare

PLAIN = "plain torch loop"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=DEFAULT_MODEL)
    parser.add_argument("--input-px", type=int, default=0)
    parser.add_argument("--cells", type=int, default=48)
    parser.add_argument("--plain-cells", type=int, default=12, help="for the plain loop, which is slow")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--engines", nargs="+", default=["openvino bfloat16", "openvino float32", "openvino int8", "torch float32"]
    )
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    cells = painted(max(asked.cells, 128))
    with tempfile.TemporaryDirectory() as folder:
        model = with_input(find_model(asked.model), asked.input_px, Path(folder))
        write_patches(cells[:128], Path(folder) / "cells")
        runs = {PLAIN: plain_loop(model, asked.device, cells[: asked.plain_cells])}
        for name in asked.engines:
            kind: dict[str, Any] = KINDS.get(name) or {"engine": name.split()[0], "precision": name.split()[1]}
            kind = kind | ({"calibration": str(Path(folder) / "cells")} if "int8" in name else {})
            engine = open_engine(model, dataclasses.replace(ClassifySettings(asked.device), **kind))
            runs[name] = lambda engine=engine: timed(lambda: engine.run(cells[: asked.cells]), asked.cells)  # type: ignore[misc]
        seconds: dict[str, list[float]] = {name: [] for name in runs}
        for i in range(asked.rounds + 1):
            for name, run in runs.items():
                took = run()
                if i:  # the first is to warm up
                    seconds[name].append(took)
    px = load_card(find_model(asked.model)).input_px if not asked.input_px else asked.input_px
    told: dict[str, Any] = {"input_px": px, "rounds": asked.rounds, "engines": table(seconds)}
    if asked.device.startswith("cuda"):
        told["gpu"] = gpu_share(told["engines"], flop_of(load_network(model, load_card(model)), px))
    tell(told, asked.json)


def painted(n: int) -> NDArray[np.uint8]:
    """(n, 400, 400, 3) painted patches."""
    image, _ = paint_smear(Size(2400, 2000), leukocytes={"NGS": 8, "MYO": 8}, seed=1)
    rng = np.random.default_rng(0)
    corners = [(int(rng.integers(2000)), int(rng.integers(1600))) for _ in range(n)]
    return np.stack([image[y : y + 400, x : x + 400] for x, y in corners])


def plain_loop(model: Path, device: str, cells: NDArray[np.uint8]) -> Callable[[], float]:
    """Seconds a cell of what one would write first."""
    card = load_card(model)
    network = load_network(model, card).to(device)

    def loop() -> None:
        with torch.inference_mode():
            for cell in cells:
                torch.softmax(network(prepare(torch.from_numpy(cell[None]).to(device), card)), 1).cpu()

    return lambda: timed(loop, len(cells))


def timed(work: Callable[[], object], n: int) -> float:
    began = time.perf_counter()
    work()
    return (time.perf_counter() - began) / n


def table(seconds: dict[str, list[float]]) -> list[dict[str, Any]]:
    """The median of the ratios of each round, not the ratio of medians: a round's contestants met the same load."""
    return [
        {
            "engine": name,
            "ms_per_cell": round(1e3 * statistics.median(each), 1),
            "cells_per_s": round(1 / statistics.median(each), 1),
            "to_plain": round(statistics.median(p / s for p, s in zip(seconds[PLAIN], each, strict=True)), 2),
        }
        for name, each in seconds.items()
    ]


def flop_of(network: torch.nn.Module, px: int) -> float:
    """Floating point operations of the convolutions and dense layers for one cell; a multiply-add is two."""
    total = 0

    def count(layer: torch.nn.Module, _: Any, output: torch.Tensor) -> None:
        nonlocal total
        if isinstance(layer, torch.nn.Conv2d | torch.nn.Linear):
            total += 2 * layer.weight[0].numel() * output.numel()

    hooks = [layer.register_forward_hook(count) for layer in network.modules()]
    with torch.inference_mode():
        network(torch.zeros(1, 3, px, px))
    for hook in hooks:
        hook.remove()
    return float(total)


def gpu_share(rows: list[dict[str, Any]], flop: float) -> dict[str, Any]:
    """What a large matrix product reaches in bfloat16, and which share of that each engine does, at `flop` a cell."""
    a = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
    for _ in range(3):
        a @ a
    torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(20):
        a @ a
    torch.cuda.synchronize()
    peak = 20 * 2 * 8192**3 / (time.perf_counter() - began)
    return {
        "name": torch.cuda.get_device_name(),
        "matrix_tflops": round(peak / 1e12, 1),
        "share": {row["engine"]: round(row["cells_per_s"] * flop / peak, 3) for row in rows},
    }


if __name__ == "__main__":
    main()
