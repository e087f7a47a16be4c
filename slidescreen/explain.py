"""Which pixels a network's answer is sensitive to: one map per patch.

Maps lie in the frame of the patch, 400 x 400 px = 29 um, whatever the network's input is. Each is scaled by itself: 1 is its
99.5th percentile, above which it is cut. They compare places within one cell, never cells with each other.

A map shows where a small change of the picture would change the score most. It does not say why, nor that the answer is
right: wrong answers have maps as tidy as right ones (Matek et al. 2019 saw the same).

saliency: as in Matek et al. 2019, after Simonyan et al. 2013 (arXiv:1312.6034): the absolute gradient of the loss with respect
to each pixel of the network's input, its maximum over the colour channels. Fine, and noisy.
gradcam: Selvaraju et al. 2017 (arXiv:1610.02391), by captum, at the network's last feature map: smooth, but one px of the
default model's map is 4.8 um wide. Strided convolutions shift it by up to half of that to the lower right; the mean with the
map of the patch turned by 180 degrees has no such shift.
Integrated gradients are not offered: they are multiplied by how far a pixel is from the background, so that a network of
random weights seems to look at the cell as well (Adebayo et al. 2018, arXiv:1810.03292).
"""

from __future__ import annotations

from collections.abc import Sequence
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

CPU_BATCH: Final = 4
CUDA_BATCH: Final = 32
TOP_PERCENTILE: Final = 99.5
MOST_CELLS: Final = 48
"""As many as the report's gallery of likely blasts shows."""


@dataclass(frozen=True, slots=True)
class ExplainSettings:
    """Maps in the report. `top`: of how many of the likeliest blasts, 0 for none. `method`: see the module. `target`: the score
    that is explained, that of the class the cell was given, or P(blast)."""

    top: int = 24
    method: Literal["saliency", "gradcam"] = "saliency"
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
        """(n, 3, s, s) float32 as `model.prepare` makes it -> (n, 15) logits; in evaluation mode, on `device`."""
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
    maps: dict[int, NDArray[np.uint8]] = {}
    size = batch_size(classifier)
    for start in range(0, len(rows), size):
        some = rows[start : start + size]
        found = explain(np.stack([np.asarray(patches[row]) for row in some]), classifier, settings)
        maps |= {row: np.round(255 * each).astype(np.uint8) for row, each in zip(some, found, strict=True)}
    return Explanations(settings.method, settings.target, maps)


def batch_size(classifier: Differentiable) -> int:
    """Patches at once: what is kept for the gradient takes some 0.1 GB each at 192 px, and grows with the area."""
    if classifier.device.startswith("cuda"):
        return CUDA_BATCH
    return max(1, min(CPU_BATCH, CPU_BATCH * 192**2 // classifier.card.input_px**2))


def explain(patches: NDArray[np.uint8], classifier: Differentiable, settings: ExplainSettings) -> NDArray[np.float32]:
    """(n, 400, 400, 3) uint8 RGB -> (n, 400, 400) float32 in [0, 1], see the module; all 0 where nothing matters.

    Does not depend on which patches come together. Raises ModelError where the network has no feature map for Grad-CAM.
    """
    size = batch_size(classifier)
    parts = [_scaled(_raw(patches[i : i + size], classifier, settings)) for i in range(0, len(patches), size)]
    return np.concatenate(parts) if parts else np.zeros((0, PATCH_PX, PATCH_PX), np.float32)


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
