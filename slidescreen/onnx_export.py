"""A model folder as one ONNX file, preprocessing and softmax included: patches in, probabilities out."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Final

import torch
from torch import nn

from slidescreen import __version__
from slidescreen.atomic import replacing
from slidescreen.errors import OutputError, UsageError
from slidescreen.model import ModelCard, load_card, load_network, prepare
from slidescreen.records import PATCH_PX

INPUT: Final = "patches"
OUTPUT: Final = "probabilities"
NEEDED: Final = ("onnx", "onnxscript")


class _Screen(nn.Module):
    """(n, 400, 400, 3) uint8 RGB -> (n, 15) float32."""

    def __init__(self, network: nn.Module, card: ModelCard) -> None:
        super().__init__()
        self.network = network
        self.card = card

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        return torch.softmax(self.network(prepare(patches, self.card)) / self.card.temperature, dim=1)


def export_onnx(folder: Path, out: Path) -> None:
    """Write the model in `folder` to `out`, whole or not at all.

    The file takes `patches`, (n, 400, 400, 3) uint8 RGB of 29 um, any n, and gives `probabilities`, (n, 15) float32 in the
    order of the metadata `classes`. Raises UsageError where what ONNX needs is not installed, ModelError, OutputError.
    """
    for package in NEEDED:
        if find_spec(package) is None:
            raise UsageError(f"ONNX needs {package}: pip install 'slidescreen[onnx]'")
    card = load_card(folder)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{out}: cannot be written ({error.strerror}); choose another file with --onnx") from error
    program = torch.onnx.export(
        _Screen(load_network(folder, card), card).eval(),
        (torch.zeros(2, PATCH_PX, PATCH_PX, 3, dtype=torch.uint8),),
        input_names=[INPUT],
        output_names=[OUTPUT],
        dynamic_shapes=({0: torch.export.Dim("n", min=1)},),
        dynamo=True,
        external_data=False,
        verbose=False,
    )
    assert program is not None
    program.model.metadata_props.update(metadata(card))
    with replacing(out) as partial:
        program.save(partial, external_data=False)


def metadata(card: ModelCard) -> dict[str, str]:
    """What the file tells of itself, by name."""
    return {
        "name": card.name,
        "architecture": card.architecture,
        "classes": " ".join(card.classes),
        "weights_sha256": card.sha256,
        "input": f"{INPUT}: (n, {PATCH_PX}, {PATCH_PX}, 3) uint8 RGB, {card.patch_um:g} um wide",
        "preprocessing": f"in the graph: px / 255, to {card.input_px} px, minus {card.mean}, by {card.std}",
        "output": f"{OUTPUT}: (n, {len(card.classes)}) float32, in the order of classes",
        "licence": card.licence,
        "made_by": f"slidescreen {__version__}; research use, needs review by a morphologist",
    }
