"""Images per second of the training loop, beside the loop that one would write first; both in one run, taking turns.

python benchmarks/training.py --data CELLS [--px 400] [--steps 8] [--rounds 3] [--device auto] [--architecture resnext50_32x4d]

The plain loop reads and turns image files in a DataLoader and trains in float32. Projected is the paper's whole training: five
folds, 15 epochs, 150,000 images an epoch. Prints a table and, with --json FILE, writes the numbers.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset

from slidescreen.classify import choose_device
from slidescreen.networks import build_network
from slidescreen.overlap import usable_cores
from slidescreen.patches import patch_of_image
from slidescreen.slide import read_image
from slidescreen.taxonomy import CODES
from slidescreen.training.classifier.fit import Lesson, fit, uses_bfloat16
from slidescreen.training.classifier.images import LabelledImage, list_images
from slidescreen.training.classifier.packed import pack_images
from slidescreen.training.classifier.recipe import load_recipe
from slidescreen.training.classifier.run import usable_images

PAPER_IMAGES = 5 * 15 * 150_000
IMAGES = 1024


class Files(Dataset[tuple[torch.Tensor, int]]):
    """Image files, read, cut to 29 um, turned and mirrored one by one."""

    def __init__(self, images: list[LabelledImage], px: int, n: int) -> None:
        self.images, self.px, self.n = images, px, n

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, i: int) -> tuple[torch.Tensor, int]:
        rng = np.random.default_rng(i)
        labelled = self.images[int(rng.integers(len(self.images)))]
        image = Image.fromarray(patch_of_image(read_image(labelled.path), labelled.um_per_px))
        image = image.rotate(rng.uniform(0, 360), Image.Resampling.BILINEAR, fillcolor=(255, 255, 255))
        if rng.random() < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        x = torch.from_numpy(np.asarray(image.resize((self.px, self.px), Image.Resampling.BILINEAR)).copy())
        return (x.permute(2, 0, 1).float() / 255 - 0.5) / 0.25, CODES.index(labelled.label)


def plain(images: list[LabelledImage], architecture: str, px: int, batch: int, steps: int, device: str) -> float:
    """Images per second, without the first step."""
    network = build_network(architecture).to(device)
    optimizer = torch.optim.AdamW(network.parameters(), 1e-3)
    loader = DataLoader(Files(images, px, batch * (steps + 1)), batch, num_workers=usable_cores())
    began = 0.0
    for step, (x, y) in enumerate(loader):
        loss = functional.cross_entropy(network(x.to(device)), y.to(device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        loss.item()
        began = began if step else time.perf_counter()
    return batch * steps / (time.perf_counter() - began)


def ours(lesson: Lesson, architecture: str, px: int, batch: int, steps: int, device: str) -> tuple[float, float]:
    """Images per second and the share of the time spent waiting for images, without the first 20 steps on a GPU, where
    kernels are chosen, and without the first on a CPU."""
    warm = 20 if device.startswith("cuda") else 1
    classes = len(np.unique(lesson.labels))
    recipe = replace(
        load_recipe("paper"), architecture=architecture, input_px=px, batch_size=batch, epochs=2, per_class=1, patience=0
    )
    with tempfile.TemporaryDirectory() as folder:
        told = []
        for n, name in ((warm, "warm"), (steps, "timed")):
            each = replace(recipe, epochs=1, per_class=-(-batch * n // classes))
            fit(build_network(architecture), lesson, each, Path(folder) / name, device, told.append)
    timed = [t for t in told if t.total == told[-1].total]
    return statistics.median(t.images_per_s for t in timed), statistics.median(t.waiting for t in timed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--px", type=int, default=400)
    parser.add_argument("--batch", type=int, default=0)
    parser.add_argument("--steps", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--architecture", default="resnext50_32x4d")
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    device = choose_device(asked.device)
    cuda = device.startswith("cuda")
    batch, steps = asked.batch or (64 if cuda else 16), asked.steps or (100 if cuda else 4)
    images = usable_images(list_images(asked.data))
    images = [images[i] for i in np.random.default_rng(0).permutation(len(images))[:IMAGES]]
    labels = np.array([CODES.index(image.label) for image in images])
    recipe = load_recipe("paper")
    rates: list[tuple[float, float, float]] = []
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        packed = pack_images(images, asked.px, Path(folder) / "packed")
        packing = len(images) / (time.perf_counter() - began)
        lesson = Lesson(packed, labels, np.zeros(len(images), np.int64), np.arange(len(images)))
        for _ in range(asked.rounds):
            slow = plain(images, asked.architecture, asked.px, batch, steps, device)
            rates.append((slow, *ours(lesson, asked.architecture, asked.px, batch, steps, device)))
    slow, fast, waiting = (statistics.median(column) for column in zip(*rates, strict=True))
    told = {
        "device": torch.cuda.get_device_name() if cuda else f"{torch.get_num_threads()} CPU threads",
        "architecture": asked.architecture,
        "px": asked.px,
        "batch": batch,
        "bfloat16": uses_bfloat16(recipe, "cuda" if cuda else "cpu"),
        "packing_images_per_s": round(packing, 1),
        "plain_images_per_s": round(slow, 2),
        "images_per_s": round(fast, 2),
        "ratio": round(statistics.median(f / s for s, f, _ in rates), 2),
        "waiting_for_images": round(waiting, 4),
        "projected_hours_five_folds": round(PAPER_IMAGES / fast / 3600, 2),
    }
    for name, value in told.items():
        print(f"{name:28} {value}")
    if asked.json:
        asked.json.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
