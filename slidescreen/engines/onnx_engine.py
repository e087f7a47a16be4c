"""ONNX Runtime: float32 on CPUs, or on a GPU where its package for that is installed."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from slidescreen.engines.cache import compiled
from slidescreen.engines.engine import Outputs, joined
from slidescreen.engines.prepare import Preparation
from slidescreen.engines.settings import ClassifySettings
from slidescreen.errors import UsageError
from slidescreen.model import ModelCard, check_weights

NEEDED: Final = ("onnx", "onnxscript", "onnxruntime")


class OnnxEngine:
    """See `Engine`. Patch by patch, each on all of its `threads`."""

    def __init__(self, folder: Path, card: ModelCard, device: str, settings: ClassifySettings, threads: int) -> None:
        require(NEEDED, "--engine onnxruntime", "onnx")
        import onnxruntime

        provider = "CUDAExecutionProvider" if device.startswith("cuda") else "CPUExecutionProvider"
        if provider not in onnxruntime.get_available_providers():
            raise UsageError(
                f"--engine onnxruntime: this onnxruntime has no {provider}; install onnxruntime-gpu, or --device cpu"
            )
        self.name, self.device = "onnxruntime float32", device
        self.batch_size = settings.batch_size or 16
        self._prepare = Preparation(card)
        check_weights(folder, card.sha256)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        where = [(provider, {"device_id": device[5:] or "0"} if device.startswith("cuda") else {})]

        def use(content: bytes) -> Any:
            try:
                return onnxruntime.InferenceSession(content, options, providers=where)
            except onnxruntime.capi.onnxruntime_pybind11_state.InvalidProtobuf as error:
                raise RuntimeError(str(error)) from error

        self._session = compiled(onnx_key(card), lambda: onnx_bytes(folder, card), use)
        self._input = self._session.get_inputs()[0].name

    def run(self, patches: NDArray[np.uint8]) -> Outputs:
        """See `Engine`."""
        return joined([Outputs(*self._session.run(None, {self._input: self._prepare(patch)})) for patch in patches])


def require(packages: tuple[str, ...], option: str, extra: str) -> None:
    """Raise UsageError for the first package that is not installed."""
    for package in packages:
        if find_spec(package) is None:
            raise UsageError(f"{option} needs {package}; pip install 'slidescreen[{extra}]'")


def onnx_key(card: ModelCard) -> dict[str, str]:
    """What the ONNX form of a network depends on."""
    import torch

    return {
        "engine": "onnx",
        "version": torch.__version__,
        "weights": card.sha256,
        "card": f"{card.architecture} {card.input_px}",
    }


def onnx_bytes(folder: Path, card: ModelCard, batch: int = 1) -> bytes:
    """The network, (batch, 3, s, s) float32 prepared patches -> logits, features, as an ONNX file."""
    import torch

    from slidescreen.engines.network import load_with_features

    program = torch.onnx.export(
        load_with_features(folder, card),
        (torch.zeros(batch, 3, card.input_px, card.input_px),),
        input_names=["patches"],
        output_names=["logits", "features"],
        dynamo=True,
        external_data=False,
        verbose=False,
    )
    assert program is not None
    content: bytes = program.model_proto.SerializeToString()
    return content
