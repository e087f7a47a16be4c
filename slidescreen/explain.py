"""Which pixels a network's answer is sensitive to: one map per patch.

Maps lie in the frame of the patch, 400 x 400 px = 29 um, whatever the network's input is. Each is scaled by itself: 1 is its
99.5th percentile, above which it is cut. They compare places within one cell, never cells with each other.

A map shows where a small change of the picture would change the score most. It does not say why, nor that the answer is
right: wrong answers have maps as tidy as right ones (Matek et al. 2019 saw the same).

saliency: as in Matek et al. 2019, after Simonyan et al. 2013 (arXiv:1312.6034): the absolute gradient of the loss with respect
to each pixel of the network's input, its maximum over the colour channels. Fine, and noisy; of EfficientNet-Lite0 it lies on
plain ground rather than on cells (`benchmarks/explaining.py`: the brightest px lie on the cell in 8 %, by chance 17 %; of a
ResNeXt in 61 %), so that it is not what is made unless asked for.
gradcam: Selvaraju et al. 2017 (arXiv:1610.02391), by captum, at the network's last feature map: smooth, but one px of the
default model's map is 5.8 um wide. Strided convolutions shift it by up to half of that to the lower right; the mean with the
map of the patch turned by 180 degrees has no such shift.
Both stay what they are where a network computes in bfloat16, rank correlation of px 0.99 on real pictures: one grey level
more or less in every px of the picture changes a map more. On cells planted on plain ground they change more, saliency to 0.93
and single Grad-CAM maps to 0.3 (`benchmarks/README.md`). The default model computes in float32.
Integrated gradients are not offered: they are multiplied by how far a pixel is from the background, so that a network of
random weights seems to look at the cell as well (Adebayo et al. 2018, arXiv:1810.03292).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from slidescreen.errors import ModelError
from slidescreen.model import ModelCard, prepare
from slidescreen.records import PATCH_PX, Explanations, ScreenedCell
from slidescreen.taxonomy import BLAST

if TYPE_CHECKING:
    import torch
    from torch import nn

CUDA_BATCH: Final = 32
HELD_ON_CPU: Final = 8
"""Patches at 192 px: what is kept for the gradient takes some 0.1 GB each in float32, and grows with the area."""
TOP_PERCENTILE: Final = 99.5
MOST_CELLS: Final = 48
"""As many as the report's gallery of likely blasts shows."""


@dataclass(frozen=True, slots=True)
class ExplainSettings:
    """Maps in the report. `top`: of how many of the likeliest blasts, 0 for none. `method`: see the module. `target`: the score
    that is explained, that of the class the cell was given, or P(blast)."""

    top: int = 24
    method: Literal["saliency", "gradcam"] = "gradcam"
    target: Literal["class", "blast"] = "class"


@runtime_checkable
class Differentiable(Protocol):
    """A classifier whose torch network is at hand. One of another kind (compiled, without gradients) has no maps."""

    @property
    def card(self) -> ModelCard: ...

    @property
    def device(self) -> str: ...

    @property
    def network(self) -> nn.Module:
        """(n, 3, s, s) float32 as `model.prepare` makes it -> (n, 15) logits; in evaluation mode, on `device`, for several
        threads at once."""
        ...


def top_blasts(cells: Sequence[ScreenedCell], most: int) -> list[int]:
    """Rows of the typed and unsure cells with the highest P(blast), highest first, by number where equal."""
    asked = [(-c.p_blast, c.id, row) for row, c in enumerate(cells) if c.label and c.p_blast is not None]
    return [row for _, _, row in sorted(asked)[:most]]


def explain_top(
    cells: Sequence[ScreenedCell], patches: Any, classifier: object, settings: ExplainSettings
) -> Explanations | None:
    """The maps of the likeliest blasts; `patches[row]` is the picture of `cells[row]`. None where none were asked for or the
    classifier has no gradients."""
    if not settings.top or not isinstance(classifier, Differentiable):
        return None
    rows = top_blasts(cells, settings.top)
    if not rows:
        return Explanations(settings.method, settings.target, {})
    found = np.round(255 * explain(np.stack([np.asarray(patches[row]) for row in rows]), classifier, settings))
    return Explanations(settings.method, settings.target, dict(zip(rows, found.astype(np.uint8), strict=True)))


def explain(patches: NDArray[np.uint8], classifier: Differentiable, settings: ExplainSettings) -> NDArray[np.float32]:
    """(n, 400, 400, 3) uint8 RGB -> (n, 400, 400) float32 in [0, 1], see the module; all 0 where nothing matters.

    Does not depend on which patches come together. On a CPU as many saliency maps are made side by side as torch has threads,
    each on one: threads that wait for each other in every layer are several times as slow where others compute too. Captum's
    hooks would hear the other threads. Raises ModelError where the network has no feature map for Grad-CAM.
    """
    if not len(patches):
        return np.zeros((0, PATCH_PX, PATCH_PX), np.float32)
    cuda = classifier.device.startswith("cuda")
    size = CUDA_BATCH if cuda else 1
    parts = [patches[i : i + size] for i in range(0, len(patches), size)]
    if cuda or settings.method == "gradcam":
        return np.concatenate([_maps(some, classifier, settings) for some in parts])
    classifier.network  # noqa: B018  # loaded before threads ask for it
    held = max(1, round(HELD_ON_CPU * 192**2 / classifier.card.input_px**2))
    with _alone() as cores, ThreadPoolExecutor(min(cores, held)) as pool:
        return np.concatenate(list(pool.map(lambda some: _maps(some, classifier, settings), parts)))


@contextmanager
def _alone() -> Iterator[int]:
    """While threads that begin here compute in torch by themselves. Gives the number of threads that torch used so far."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield before
    finally:
        torch.set_num_threads(before)


def _maps(patches: NDArray[np.uint8], classifier: Differentiable, settings: ExplainSettings) -> NDArray[np.float32]:
    return _scaled(_raw(patches, classifier, settings))


def _raw(patches: NDArray[np.uint8], classifier: Differentiable, settings: ExplainSettings) -> torch.Tensor:
    """(n, h, w) float32, not negative, at the resolution of the method."""
    import torch

    network, card = classifier.network, classifier.card
    x = prepare(torch.from_numpy(np.ascontiguousarray(patches)).to(classifier.device), card).detach().requires_grad_()
    with torch.enable_grad():
        if settings.method == "saliency":
            (gradient,) = torch.autograd.grad(_score(network(x), card, settings.target).sum(), x)
            return gradient.abs().amax(1)
        from captum.attr import LayerGradCam

        cam = LayerGradCam(lambda batch: _score(network(batch), card, settings.target), last_feature_map(network, x[:1]))
        upright: torch.Tensor = cam.attribute(x, relu_attributions=True)
        turned: torch.Tensor = cam.attribute(x.detach().flip(2, 3).requires_grad_(), relu_attributions=True)
        return _full(upright.detach()[:, 0]) + _full(turned.detach()[:, 0].flip(1, 2))


def _score(logits: torch.Tensor, card: ModelCard, target: str) -> torch.Tensor:
    """(n, 15) -> (n,) log P of the likeliest class, which is minus the loss with that class as label, or log P(blast).

    In float64: the gradient of a sure answer is the small difference of numbers near 1.
    """
    import torch

    log_p = torch.log_softmax(logits.double(), 1)
    if target == "class":
        return log_p.amax(1)
    return torch.logsumexp(log_p[:, [i for i, code in enumerate(card.classes) if code in BLAST]], 1)


def last_feature_map(network: nn.Module, x: torch.Tensor) -> nn.Module:
    """The last module to finish whose output (n, c, h, w) is still a map, more than one px: what the global pool is given.

    Found by running `x`, so that it does not hang on the names of one architecture. Raises ModelError where there is none.
    """
    import torch

    found: list[nn.Module] = []

    def note(module: nn.Module, _inputs: object, output: object) -> None:
        if isinstance(output, torch.Tensor) and output.ndim == 4 and min(output.shape[2:]) > 1:
            found.append(module)

    hooks = [module.register_forward_hook(note) for module in network.modules() if module is not network]
    try:
        with torch.no_grad():
            network(x)
    finally:
        for hook in hooks:
            hook.remove()
    if not found:
        raise ModelError("the network has no feature map that Grad-CAM could use; use the method saliency")
    return found[-1]


def _full(raw: torch.Tensor) -> torch.Tensor:
    """(n, h, w) -> (n, 400, 400) float32."""
    from torch.nn import functional

    return functional.interpolate(raw[:, None].float(), (PATCH_PX, PATCH_PX), mode="bilinear")[:, 0]


def _scaled(raw: torch.Tensor) -> NDArray[np.float32]:
    """(n, h, w) -> (n, 400, 400) in [0, 1]."""
    full = _full(raw).cpu().numpy()
    top = np.percentile(full, TOP_PERCENTILE, axis=(1, 2), keepdims=True)
    top = np.where(top > 0, top, full.max(axis=(1, 2), keepdims=True))
    return np.asarray(np.clip(full / np.where(top > 0, top, 1), 0, 1), np.float32)
