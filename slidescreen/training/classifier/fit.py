"""The training loop of the classifier. The same seed gives the same losses; a resumed run ends as an uninterrupted one."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from threading import Event
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from slidescreen.errors import TrainingError
from slidescreen.overlap import Ahead
from slidescreen.training.checkpoint import follow, load_checkpoint, save_checkpoint
from slidescreen.training.classifier.augment import Changes, change, draw_changes, normalise
from slidescreen.training.classifier.metrics_log import MetricsLog
from slidescreen.training.classifier.packed import PackedImages
from slidescreen.training.classifier.recipe import Recipe

log = logging.getLogger(__name__)

LAST: Final = "checkpoint.safetensors"
SAVE_EVERY_S: Final = 300.0
TELL_EVERY: Final = 20
"""Steps between looks at the loss: each look waits for the GPU."""
BATCHES_AHEAD: Final = 3
GPU_SHARE: Final = 0.5
"""Of the free memory of a GPU that images may take; the rest is for training."""
WARM_UP_STEPS: Final = 200
STALLED: Final = 0.99
"""The loss of an epoch that is no lower than this share of the best one has not fallen."""
COMPILE_FROM: Final = 5000
"""Steps from which compiling, a minute or two, pays on a GPU."""

SELDOM: Final = 1e-3
"""The least share of a source's images that a class is taken to have: its logarithm stays finite where there are none."""

Batch = tuple[torch.Tensor, torch.Tensor, torch.Tensor, Changes]
"""Images (n, side, side, 3) uint8, labels (n,) int64, what is added to the logits (n, 15) float32, all on the device, and what
is done to the images."""


@dataclass(frozen=True, slots=True, eq=False)
class Lesson:
    """What is learned from: `images`, their `labels` (class numbers) and `groups` (their sources, for `source_balance` and
    `source_prior`), and the rows of them that belong to this fold."""

    images: PackedImages
    labels: NDArray[np.int64]
    groups: NDArray[np.int64]
    rows: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Step:
    """What is told after some steps: `step` of `total`, the epoch from 1, the mean loss since last told, images per second and
    the share of the time that was spent waiting for images."""

    step: int
    total: int
    epoch: int
    loss: float
    images_per_s: float
    waiting: float


@dataclass(slots=True)
class _State:
    """Where the training stands; what a checkpoint tells."""

    step: int = 0
    losses: list[float] = field(default_factory=list)
    """Mean loss of each finished epoch."""
    loss_sum: float = 0.0
    """Of the epoch in progress."""


def draw_epoch(lesson: Lesson, recipe: Recipe, epoch: int) -> NDArray[np.int64]:
    """The rows shown in an epoch, in order: the classes, and within a class the sources, as often as `Recipe` says, the images
    of each as evenly as can be."""
    rng = np.random.default_rng([recipe.seed, 1, epoch])
    classes = [lesson.rows[lesson.labels[lesson.rows] == label] for label in np.unique(lesson.labels[lesson.rows])]
    shown = []
    for own, n in zip(classes, _shares(recipe.per_class * len(classes), classes, recipe.class_balance, rng), strict=True):
        parts = [own[lesson.groups[own] == g] for g in np.unique(lesson.groups[own])] if recipe.source_balance else [own]
        for part, m in zip(parts, _shares(n, parts, recipe.source_balance, rng), strict=True):
            rounds = [rng.permutation(part) for _ in range(math.ceil(m / len(part)))]
            shown.append(np.concatenate([*rounds, part[:0]])[:m])
    return rng.permutation(np.concatenate(shown))


def _shares(total: int, parts: Sequence[NDArray[np.int64]], balance: float, rng: np.random.Generator) -> list[int]:
    """`total` in whole shares that go as n ** (1 - balance) of the parts' sizes n; what rounding leaves over goes to some of
    them at random."""
    weights = np.array([len(part) for part in parts], float) ** (1 - balance)
    shares = np.floor(total * weights / weights.sum() + 1e-9).astype(int)
    if left := total - shares.sum():
        shares[rng.permutation(len(parts))[:left]] += 1
    return [int(n) for n in shares]


def source_priors(lesson: Lesson, recipe: Recipe) -> NDArray[np.float32]:
    """(groups, 15): what is added to the logits of images of each group, see `Recipe.source_prior`."""
    rows = draw_epoch(lesson, recipe, 0)
    shown = np.zeros((lesson.groups.max() + 1, 15))
    np.add.at(shown, (lesson.groups[rows], lesson.labels[rows]), 1)
    share = np.maximum(shown / np.maximum(shown.sum(1, keepdims=True), 1), SELDOM)
    return np.asarray(recipe.source_prior * np.log(share), np.float32)


def side_at(step: int, total: int, recipe: Recipe) -> int:
    """Side in px of the network's input at a step (from 0)."""
    return recipe.first_px if step < recipe.first_share * total else recipe.input_px


def learning_rate(step: int, total: int, recipe: Recipe) -> float:
    """Of step `step` (from 0): a linear start, then constant, or a cosine down to nothing."""
    warm = min(WARM_UP_STEPS, total // 10)
    if step < warm:
        return recipe.learning_rate * (step + 1) / warm
    if recipe.schedule == "constant":
        return recipe.learning_rate
    return recipe.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, total - warm)))


def fit(
    network: nn.Module,
    lesson: Lesson,
    recipe: Recipe,
    folder: Path,
    device: str,
    tell: Callable[[Step], None] = lambda _step: None,
) -> nn.Module:
    """Train `network` as the recipe says, or go on where `folder` holds a checkpoint; the network to keep, in evaluation mode.

    Raises TrainingError when the loss is no number any more, OutputError when a checkpoint cannot be written; the last good
    checkpoint is kept in both cases.
    """
    torch.manual_seed(recipe.seed)
    network = network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    average = copy.deepcopy(network) if recipe.average else network
    modules = {"network": network} | ({"average": average} if recipe.average else {})
    optimizer = make_optimizer(network, recipe, device)
    settings = recipe.plain() | {"images": lesson.images.sha256, "rows": hashlib.sha256(lesson.rows.tobytes()).hexdigest()}
    state = _State(**load_checkpoint(folder / LAST, modules, optimizer, settings))
    per_epoch = max(1, len(draw_epoch(lesson, recipe, 0)) // recipe.batch_size)
    total = per_epoch * recipe.epochs
    forward = torch.compile(network) if device.startswith("cuda") and total >= COMPILE_FROM else network
    pace, saved = _Pace(recipe.batch_size), time.monotonic()
    with MetricsLog(folder, state.step) as metrics, _batches(lesson, recipe, state.step, total, per_epoch, device) as batches:
        while state.step < total and not stalled(state.losses, recipe.patience):
            with pace.waiting():
                batch = next(batches)
            rate = learning_rate(state.step, total, recipe)
            pace.add(_learn(forward, optimizer, batch, recipe, state.step, rate, side_at(state.step, total, recipe)))
            state.step += 1
            if recipe.average:
                follow(average, network, min(recipe.average, state.step / (state.step + 20)))
            epoch, ends = (state.step - 1) // per_epoch + 1, state.step % per_epoch == 0
            if state.step % TELL_EVERY and not ends:
                continue
            told = pace.told(state.step, total, epoch, folder)
            state.loss_sum += told.loss * pace.steps_told
            metrics.step(told, rate)
            tell(told)
            if ends:
                state.losses, state.loss_sum = [*state.losses, state.loss_sum / per_epoch], 0.0
                metrics.epoch(epoch, state.step, state.losses[-1])
            if ends or time.monotonic() - saved > SAVE_EVERY_S:
                save_checkpoint(folder / LAST, asdict(state), settings, modules, optimizer)
                saved = time.monotonic()
    return average.eval()


def stalled(losses: Sequence[float], patience: int) -> bool:
    """Whether the loss of the last `patience` epochs did not fall below that of the best one before; never with patience 0."""
    if not patience or len(losses) <= patience:
        return False
    return min(losses[-patience:]) > STALLED * min(losses[:-patience])


def make_optimizer(network: nn.Module, recipe: Recipe, device: str) -> torch.optim.Optimizer:
    """The recipe's optimizer, fused where the device has it; biases and normalisation do not decay."""
    decays = [p for p in network.parameters() if p.ndim > 1]
    others = [p for p in network.parameters() if p.ndim <= 1]
    groups = [{"params": decays, "weight_decay": recipe.weight_decay}, {"params": others, "weight_decay": 0.0}]
    fused = device.startswith(("cuda", "cpu"))
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=recipe.learning_rate, momentum=0.9, nesterov=True, fused=fused)
    return torch.optim.AdamW(groups, lr=recipe.learning_rate, fused=fused)


def _learn(
    forward: Any,
    optimizer: torch.optim.Optimizer,
    batch: Batch,
    recipe: Recipe,
    step: int,
    rate: float,
    side: int,
) -> torch.Tensor:
    """One step: the loss, not yet waited for."""
    images, labels, priors, changes = batch
    torch.manual_seed(recipe.seed * 1_000_003 + step)  # of drop-out, so that a resumed run draws the same
    x = normalise(change(images, changes, side), recipe).contiguous(memory_format=torch.channels_last)
    target = functional.one_hot(labels, 15).float()
    if recipe.mixup:
        share = float(np.random.default_rng([recipe.seed, 3, step]).beta(recipe.mixup, recipe.mixup))
        x, target = share * x + (1 - share) * x.flip(0), share * target + (1 - share) * target.flip(0)
        priors = share * priors + (1 - share) * priors.flip(0)
    with torch.autocast(x.device.type, torch.bfloat16, enabled=uses_bfloat16(recipe, x.device.type)):
        logits = forward(x)
    loss = functional.cross_entropy(logits.float() + priors, target, label_smoothing=recipe.label_smoothing)
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    return loss.detach()


def uses_bfloat16(recipe: Recipe, device: str) -> bool:
    """auto: on CUDA, and on CPUs with instructions for it."""
    if recipe.precision != "auto":
        return recipe.precision == "bfloat16"
    return device == "cuda" or bool(getattr(torch.cpu, "_is_avx512_bf16_supported", bool)())


@contextlib.contextmanager
def _batches(lesson: Lesson, recipe: Recipe, start: int, total: int, per_epoch: int, device: str) -> Iterator[Iterator[Batch]]:
    """Batches from step `start` on, made ahead in a thread."""
    show = _shower(lesson, device)
    side, patch_px = lesson.images.shape[1], lesson.images.patch_px
    priors = source_priors(lesson, recipe)

    def made() -> Iterator[Batch]:
        order, drawn = np.zeros(0, np.int64), -1
        for step in range(start, total):
            if step // per_epoch != drawn:
                drawn = step // per_epoch
                order = draw_epoch(lesson, recipe, drawn)
            rows = order[step % per_epoch * recipe.batch_size :][: recipe.batch_size]
            changes = draw_changes(np.random.default_rng([recipe.seed, 2, step]), len(rows), recipe, patch_px / side)
            labels, added = (torch.from_numpy(a).to(device) for a in (lesson.labels[rows], priors[lesson.groups[rows]]))
            yield show(rows), labels, added, changes

    with contextlib.closing(Ahead(made(), BATCHES_AHEAD, Event())) as ahead:
        yield ahead


def _shower(lesson: Lesson, device: str) -> Callable[[NDArray[np.int64]], torch.Tensor]:
    """Rows -> their images on the device: from its own memory where all of them fit there, else copied batch by batch."""
    if not device.startswith("cuda"):
        return lambda rows: torch.from_numpy(lesson.images.rows(rows))
    free, _ = torch.cuda.mem_get_info(device)
    if lesson.images.nbytes > GPU_SHARE * free:
        log.info("%.1f GB of images stay on the host, %.1f GB are free on %s", lesson.images.nbytes / 1e9, free / 1e9, device)
        return lambda rows: torch.from_numpy(lesson.images.rows(rows)).pin_memory().to(device, non_blocking=True)
    held = torch.empty(lesson.images.shape, dtype=torch.uint8, device=device)
    for i in range(0, len(held), 256):
        held[i : i + 256] = torch.from_numpy(lesson.images.rows(range(i, min(i + 256, len(held))))).to(device)
    return lambda rows: held[torch.from_numpy(rows).to(device)]


class _Pace:
    """Losses and seconds between two tellings."""

    def __init__(self, batch: int) -> None:
        self._batch, self._losses = batch, list[torch.Tensor]()
        self._since, self._waited = time.perf_counter(), 0.0
        self.steps_told = 0

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self._waited += time.perf_counter() - start

    def add(self, loss: torch.Tensor) -> None:
        self._losses.append(loss)

    def told(self, step: int, total: int, epoch: int, folder: Path) -> Step:
        loss = float(torch.stack(self._losses).mean())
        if not math.isfinite(loss):
            raise TrainingError(
                f"{folder}: the loss is {loss} at step {step}; the checkpoint before it is kept: lower learning_rate, or set "
                "precision = 'float32', and start in another folder"
            )
        seconds, self.steps_told = time.perf_counter() - self._since, len(self._losses)
        result = Step(step, total, epoch, loss, self.steps_told * self._batch / seconds, self._waited / seconds)
        self._losses, self._since, self._waited = [], time.perf_counter(), 0.0
        return result
