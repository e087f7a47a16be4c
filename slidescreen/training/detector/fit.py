"""Trains the leukocyte detector. The loop is visible here; the same seed gives the same losses, resumed or not."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import cv2
import numpy as np
import torch
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset

from slidescreen.detector_model import FINE, LeukocyteNet, split_maps
from slidescreen.overlap import usable_cores
from slidescreen.training.checkpoint import follow, load_checkpoint, save_checkpoint
from slidescreen.training.detector.augment import CUT_OUT, OUTLINED, SINGLES, Truth, make_scene
from slidescreen.training.detector.data import (
    IGNORED,
    LEUKOCYTE,
    PLATELET,
    LabelledField,
    Sample,
    cell_sample,
    field_sample,
    list_cells,
    list_fields,
    list_masks,
    mask_sample,
    platelet_sample,
    split_tuning,
)

log = logging.getLogger(__name__)

KIND_SHARES: Final = (0.5, 0.12, 0.15)
"""What leukocytes, platelets and artefacts count in the loss of kinds, however many px they have."""
LAST: Final = "checkpoint.safetensors"
SAVE_EVERY: Final = 250


@dataclass(frozen=True, slots=True)
class TrainSettings:
    """`steps` of `batch` scenes. `decay`: of the moving average of the weights, which is what is kept. `left_out`: a camera
    whose fields are not learned from. `workers`: processes that draw scenes beside the one that learns."""

    steps: int = 16000
    batch: int = 16
    learning_rate: float = 4e-3
    weight_decay: float = 1e-4
    decay: float = 0.997
    seed: int = 0
    left_out: str = ""
    workers: int = 1


Sources = dict[str, list[Sample]]


def load_sources(fields: Path, masks: Path, cells: Path | None, left_out: str = "") -> Sources:
    """The samples to learn from, by group: by camera, by set of masks, single cells where their folder is given."""
    learn, _ = split_tuning(list_fields(fields, "train"))
    sources: Sources = {}
    for labelled in learn:
        if labelled.camera != left_out:
            sources.setdefault(labelled.camera, []).append(field_sample(labelled))
    for path, mask, um_per_px in list_masks(masks, "learn"):
        group = next(name for name in OUTLINED if path.name.startswith(f"set{name[-1]}_"))
        sources.setdefault(group, []).append(mask_sample(path, mask, um_per_px))
    if cells is not None:
        for cell in list_cells(cells, "learn"):
            sources.setdefault("cells" if cell.kind == LEUKOCYTE else "platelets", []).append(cell_sample(cell))
            if cell.kind == PLATELET and (cut_out := platelet_sample(cell)) is not None:
                sources.setdefault(CUT_OUT, []).append(cut_out)
    return sources


def tuning_fields(fields: Path) -> list[LabelledField]:
    """The training fields that are not learned from."""
    return split_tuning(list_fields(fields, "train"))[1]


def source_shares(sources: Sources) -> dict[str, float]:
    """How often each group is shown: fields 52 % (cameras alike), masks 28 % (sets alike), single cells 15 %, platelets 5 %;
    platelets that were cut out are only pasted into others."""
    cameras = [n for n in sources if n not in (*SINGLES, *OUTLINED, CUT_OUT)]
    shares = {name: 0.52 / len(cameras) for name in cameras} | dict.fromkeys(OUTLINED, 0.14)
    shares |= {"cells": 0.15, "platelets": 0.05}
    return {name: shares[name] for name in sources if name != CUT_OUT}


class Scenes(Dataset[tuple[torch.Tensor, ...]]):
    """Scene i is drawn by a generator seeded with (seed, i), whoever draws it."""

    def __init__(self, sources: Sources, seed: int, first: int, last: int) -> None:
        self.sources, self.shares = sources, source_shares(sources)
        self.seed, self.first, self.last = seed, first, last

    def __len__(self) -> int:
        return self.last - self.first

    def __getitem__(self, index: int) -> tuple[torch.Tensor, ...]:
        rng = np.random.default_rng([self.seed, self.first + index])
        t: Truth = make_scene(rng, self.sources, self.shares)
        parts = (t.image, t.centre, t.centre_weight, t.kind, t.offset, t.masks)
        return tuple(torch.from_numpy(part) for part in parts)


def loss_of(heads: torch.Tensor, truth: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
    """The parts of the loss, each a mean over what is known; their sum is minimised.

    Centres: the focal loss of CenterNet (Zhou et al. 2019). Masks: cross entropy, and soft Dice scene by scene.
    """
    _, centre, weight, kind, offset, masks = truth
    maps = split_maps(heads)
    p = torch.sigmoid(maps.centre[:, 0]).clamp(1e-4, 1 - 1e-4)
    peak = centre == 1.0
    hit = -((1 - p) ** 2) * torch.log(p) * peak
    miss = -((1 - centre) ** 4) * p**2 * torch.log(1 - p) * ~peak * weight
    known = (masks != IGNORED).float()
    target = masks.float() / FINE**2 * known
    cross = functional.binary_cross_entropy_with_logits(maps.masks, target, reduction="none")
    each = (cross * known).sum((0, 2, 3)) / known.sum((0, 2, 3)).clamp(min=1)
    q = torch.sigmoid(maps.masks) * known
    overlap, size = (q * target).sum((2, 3)), (q + target).sum((2, 3))
    body = kind != IGNORED
    per_px = functional.cross_entropy(maps.kind, kind.where(body, torch.zeros_like(kind)), reduction="none")
    shares = sum(((kind == k) * (w / (kind == k).sum().clamp(min=1)) for k, w in enumerate(KIND_SHARES)), torch.zeros(()))
    away = (maps.offset - offset).abs().sum(1)
    return {
        "centre": (hit + miss).sum() / peak.sum().clamp(min=1),
        "masks": 3 * each[0] + 5 * each[1] + (1 - (2 * overlap + 10) / (size + 10)).mean(),
        "kind": (per_px * shares).sum(),
        "offset": 0.5 * (away * body).sum() / body.sum().clamp(min=1),
    }


def train(
    sources: Sources, settings: TrainSettings, folder: Path, tell: Callable[[int], None] = lambda step: None
) -> LeukocyteNet:
    """Train, or go on where `folder` holds a checkpoint of the same settings. `tell` is called after each step; what it raises
    ends the training. The averaged network, in evaluation mode."""
    torch.manual_seed(settings.seed)
    torch.set_num_threads(max(1, usable_cores() - settings.workers))
    network = LeukocyteNet().to(memory_format=torch.channels_last)
    average = LeukocyteNet()
    average.load_state_dict(network.state_dict())
    optimizer = torch.optim.AdamW(network.parameters(), settings.learning_rate, weight_decay=settings.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, settings.learning_rate, settings.steps, pct_start=0.05)
    modules: dict[str, torch.nn.Module] = {"network": network, "average": average}
    kept = load_checkpoint(folder / LAST, modules, optimizer, asdict(settings))
    start = int(kept.get("step", 0))
    if kept:
        schedule.load_state_dict(kept["schedule"])
        log.info("going on after step %d", start)
    told: dict[str, float] = {}
    for step, losses in _steps(network, optimizer, schedule, sources, settings, start):
        follow(average, network, min(settings.decay, step / (step + 20)))
        told = {k: 0.95 * told.get(k, v) + 0.05 * v for k, v in losses.items()}
        if step % 50 == 0 or step == settings.steps:
            log.info("step %d of %d: %s", step, settings.steps, ", ".join(f"{k} {v:.3f}" for k, v in told.items()))
        if step % SAVE_EVERY == 0 or step == settings.steps:
            state = {"step": step, "schedule": schedule.state_dict()}
            save_checkpoint(folder / LAST, state, asdict(settings), modules, optimizer)
        tell(step)
    return average.eval()


def _steps(
    network: LeukocyteNet,
    optimizer: torch.optim.Optimizer,
    schedule: Any,
    sources: Sources,
    settings: TrainSettings,
    start: int,
) -> Iterator[tuple[int, dict[str, float]]]:
    """(step from 1 on, losses) after each step of the optimizer."""
    scenes = Scenes(sources, settings.seed, start * settings.batch, settings.steps * settings.batch)
    network.train()
    loader = DataLoader(scenes, settings.batch, num_workers=settings.workers, worker_init_fn=_quiet)
    for step, truth in enumerate(loader, start + 1):
        image = truth[0].float().div_(255).contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16):
            heads = network(image)
        losses = loss_of(heads.float(), truth)
        optimizer.zero_grad()
        torch.stack(list(losses.values())).sum().backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(network.parameters(), 5.0)
        optimizer.step()
        schedule.step()
        yield step, {k: float(v.detach()) for k, v in losses.items()}


def _quiet(_: int) -> None:
    cv2.setNumThreads(0)
