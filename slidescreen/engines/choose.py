"""Which engine runs a model."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from typing import Final

from slidescreen.engines.engine import Engine
from slidescreen.engines.settings import ClassifySettings, EngineName, choose_devices
from slidescreen.engines.shared import SharedEngine
from slidescreen.errors import UsageError
from slidescreen.model import load_card
from slidescreen.overlap import usable_cores

log = logging.getLogger(__name__)

PRECISIONS: Final = {
    "torch": ("auto", "float32", "bfloat16"),
    "openvino": ("auto", "float32", "bfloat16", "int8"),
    "onnxruntime": ("auto", "float32"),
    "tensorrt": ("auto", "float32", "bfloat16"),
}

IN_FLOAT32: Final[Mapping[str, Mapping[str, tuple[float, float]]]] = MappingProxyType(
    {"efficientnet_lite0": {"bfloat16": (0.7, 0.10), "int8": (4.8, 0.47)}}
)
"""Architectures that auto runs in float32 everywhere, for they are cheap and do not bear less: of 3,727 real cells, the % that
got another label than in float32, and by how much P(blast) moved at most (`benchmarks/agreement.py`). Of a ResNeXt bfloat16
gives 0.08 % another label, and moves it by 0.007."""


def choose_engine(settings: ClassifySettings, device: str) -> EngineName:
    """The engine for a device: the one asked for; for auto torch on CUDA, and on a CPU openvino where it is installed.

    Raises UsageError where the one asked for cannot do what is asked.
    """
    name = settings.engine
    if name == "auto":
        fast = device == "cpu" and not settings.deterministic and find_spec("openvino") is not None
        name = "openvino" if fast else "torch"
    if settings.precision not in PRECISIONS[name]:
        raise UsageError(
            f"--engine {name}: does not compute in {settings.precision}; it does in {', '.join(PRECISIONS[name][1:])}"
        )
    if name == "openvino" and device != "cpu":
        raise UsageError(f"--engine openvino: runs on the CPU, not on {device}; use --device cpu, or --engine torch")
    return name


def caution(architecture: str, told: str) -> str:
    """What a reader must know of answers that an engine of the name `told` computed, in full sentences; empty for nothing."""
    for precision, (share, most) in IN_FLOAT32.get(architecture, {}).items():
        if precision in told:
            return (
                f"Typed in {precision}, as was asked for: of 3,727 real cells {share:g} % got another label than in float32, "
                f"and P(blast) moved by up to {most:.2f}. Leave the precision to auto."
            )
    return ""


def require_engine(name: EngineName, device: str) -> None:
    """Raise UsageError where an engine cannot run on a device, or lacks a package."""
    choose_engine(ClassifySettings(engine=name), device)
    if name == "openvino":
        from slidescreen.engines.openvino_engine import import_openvino

        import_openvino()
    elif name == "onnxruntime":
        from slidescreen.engines.onnx_engine import NEEDED, require

        require(NEEDED, "--engine onnxruntime", "onnx")
    elif name == "tensorrt":
        from slidescreen.engines.tensorrt_engine import require_tensorrt

        require_tensorrt(device)


def open_engine(folder: Path, settings: ClassifySettings, threads: int = 0) -> Engine:
    """The engine for the model in `folder`, on one device or shared out between several. `threads`: processor cores that it may
    use; 0 for all that the process has. Raises ModelError, and UsageError for what is not there."""
    engines = [_open(folder, settings, device, threads or usable_cores()) for device in choose_devices(settings.device)]
    return engines[0] if len(engines) == 1 else SharedEngine(engines)


def _open(folder: Path, settings: ClassifySettings, device: str, threads: int) -> Engine:
    name, card = choose_engine(settings, device), load_card(folder)
    if settings.precision == "auto" and card.architecture in IN_FLOAT32:
        settings = replace(settings, precision="float32")
    if name == "openvino":
        from slidescreen.engines.openvino_engine import OpenVinoEngine, import_openvino

        try:
            import_openvino()
        except UsageError as error:
            if settings.engine != "auto":
                raise
            name = choose_engine(replace(settings, engine="torch"), device)
            log.warning("%s: torch is used", error)
        else:
            return OpenVinoEngine(folder, card, settings, threads)
    if name == "onnxruntime":
        from slidescreen.engines.onnx_engine import OnnxEngine

        return OnnxEngine(folder, card, device, settings, threads)
    if name == "tensorrt":
        from slidescreen.engines.tensorrt_engine import TensorRtEngine

        return TensorRtEngine(folder, card, device, settings)
    from slidescreen.engines.network import load_with_features
    from slidescreen.engines.torch_engine import TorchEngine

    return TorchEngine(load_with_features(folder, card), card, device, settings)
