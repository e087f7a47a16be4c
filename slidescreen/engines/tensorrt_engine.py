"""TensorRT, on NVIDIA GPUs. Written to its documentation; it has not been run on a GPU by the authors."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from slidescreen.engines.cache import compiled
from slidescreen.engines.engine import Outputs, joined
from slidescreen.engines.onnx_engine import onnx_bytes, onnx_key, require
from slidescreen.engines.settings import ClassifySettings
from slidescreen.errors import UsageError
from slidescreen.model import ModelCard, check_weights
from slidescreen.records import PATCH_PX

SHAPE: Final = 128


def require_tensorrt(device: str) -> None:
    """Raise UsageError where there is no GPU or a package is missing."""
    if not device.startswith("cuda"):
        raise UsageError("--engine tensorrt: needs an NVIDIA GPU; use --engine auto")
    require(("tensorrt", "onnx", "onnxscript"), "--engine tensorrt", "tensorrt")


class TensorRtEngine:
    """See `Engine`. Batches of one shape, filled up; bfloat16 unless float32 is asked for."""

    def __init__(self, folder: Path, card: ModelCard, device: str, settings: ClassifySettings) -> None:
        require_tensorrt(device)
        import tensorrt
        import torch

        check_weights(folder, card.sha256)
        low = settings.precision != "float32"
        self.name, self.device = f"tensorrt {'bfloat16' if low else 'float32'}", device
        self.batch_size = settings.batch_size or 2 * SHAPE
        self._card, self._torch = card, torch
        self._log = tensorrt.Logger(tensorrt.Logger.ERROR)
        key = onnx_key(card) | {
            "engine": "tensorrt",
            "compiler": tensorrt.__version__,
            "precision": self.name,
            "hardware": torch.cuda.get_device_name(device),
            "shape": str(SHAPE),
        }
        with torch.cuda.device(device):
            self._engine = compiled(key, lambda: self._built(tensorrt, onnx_bytes(folder, card, SHAPE), low), self._loaded)
            self._context = self._engine.create_execution_context()
        self._patches = torch.zeros((SHAPE, PATCH_PX, PATCH_PX, 3), dtype=torch.uint8, pin_memory=True)

    def _built(self, tensorrt: Any, onnx: bytes, low: bool) -> bytes:
        builder = tensorrt.Builder(self._log)
        network = builder.create_network(0)
        parser = tensorrt.OnnxParser(network, self._log)
        config = builder.create_builder_config()
        if low:
            config.set_flag(tensorrt.BuilderFlag.BF16)
        plan = builder.build_serialized_network(network, config) if parser.parse(onnx) else None
        if plan is None:
            raise UsageError("--engine tensorrt: it cannot compile this network; use --engine torch")
        return bytes(plan)

    def _loaded(self, plan: bytes) -> Any:
        import tensorrt

        engine = tensorrt.Runtime(self._log).deserialize_cuda_engine(plan)
        if engine is None:
            raise RuntimeError("not an engine for this GPU")
        return engine

    def run(self, patches: NDArray[np.uint8]) -> Outputs:
        """See `Engine`."""
        return joined([self._batch(patches[i : i + SHAPE]) for i in range(0, len(patches), SHAPE)])

    def _batch(self, patches: NDArray[np.uint8]) -> Outputs:
        from slidescreen.model import prepare

        torch = self._torch
        self._patches[: len(patches)] = torch.from_numpy(patches)
        with torch.cuda.device(self.device), torch.inference_mode():
            x = prepare(self._patches.to(self.device, non_blocking=True), self._card).contiguous()
            found = [
                torch.empty(tuple(self._engine.get_tensor_shape(name)), dtype=torch.float32, device=self.device)
                for name in ("logits", "features")
            ]
            for name, tensor in zip(("patches", "logits", "features"), (x, *found), strict=True):
                self._context.set_tensor_address(name, tensor.data_ptr())
            stream = torch.cuda.current_stream()
            self._context.execute_async_v3(stream.cuda_stream)
            stream.synchronize()
            return Outputs(*(tensor[: len(patches)].cpu().numpy() for tensor in found))
