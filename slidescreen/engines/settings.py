"""What can be set about typing, and the devices there are."""

from __future__ import annotations

import ctypes
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, get_args

from slidescreen.errors import UsageError

EngineName = Literal["auto", "torch", "openvino", "onnxruntime", "tensorrt"]
ENGINES: Final = get_args(EngineName)
ORIENTATIONS: Final = (1, 8)
DEVICE: Final = re.compile(r"auto|cpu|cuda(:\d+(,\d+)*)?")


@dataclass(frozen=True, slots=True)
class ClassifySettings:
    """How cells are typed.

    `device`: auto (CUDA where there is one), cpu, cuda, or cuda:1; several, "cuda:0,1", are shared out between the workers of a
    batch, and where there are fewer slides than devices, between the patches of a slide. `batch_size`: patches handed over at
    once, 0 chooses; no result depends on it. `tta`: orientations in which each cell is looked at, 1 or 8. `engine`: auto takes
    torch on CUDA and openvino, where it is installed, on CPUs. `precision`: auto is bfloat16 where the hardware computes in it
    and the network bears it (`choose.IN_FLOAT32`; torch on CPUs: float32). `calibration`: for int8, a result folder whose cells
    the ranges are taken from. `deterministic`: torch in float32, with algorithms that give the same bits each time on the same
    machine. `cascade`: a cheaper model that is asked first; what it calls a mature class with a probability of
    `cascade_threshold` or more is not shown to the full one.
    """

    device: str = "auto"
    batch_size: int = 0
    tta: int = 1
    engine: EngineName = "auto"
    precision: Literal["auto", "float32", "bfloat16", "int8"] = "auto"
    calibration: str = ""
    deterministic: bool = False
    cascade: str = ""
    cascade_threshold: float = 0.98


def check_settings(settings: ClassifySettings) -> None:
    """Raise UsageError for what contradicts itself or cannot be."""
    if not DEVICE.fullmatch(settings.device):
        raise UsageError(f"device {settings.device!r}: must be auto, cpu, cuda or cuda:0,1")
    if settings.batch_size < 0:
        raise UsageError(f"batch size {settings.batch_size}: must be positive, or 0 to choose")
    if settings.tta not in ORIENTATIONS:
        raise UsageError(f"--tta {settings.tta}: must be 1, or 8 for four turns and their mirror images")
    if settings.deterministic and (settings.engine not in ("auto", "torch") or settings.precision not in ("auto", "float32")):
        raise UsageError(
            f"deterministic typing is torch in float32, not {settings.engine} in {settings.precision}; leave one of them out"
        )
    if (settings.precision == "int8") != bool(settings.calibration):
        raise UsageError(
            "precision int8 and calibration belong together; name a result folder whose cells the ranges are taken from"
        )
    if not 0.5 < settings.cascade_threshold <= 1:
        raise UsageError(f"setting classify.cascade_threshold = {settings.cascade_threshold:g}: must lie in 0.5-1")


def choose_device(wanted: str) -> str:
    """The torch device for auto, cpu, cuda or cuda:1; of several the first. Raises UsageError when there is none such."""
    return choose_devices(wanted)[0]


def choose_devices(wanted: str) -> list[str]:
    """The torch devices for auto, cpu, cuda or "cuda:0,1". Raises UsageError when there is none such."""
    if wanted == "cpu":
        return ["cpu"]
    if not DEVICE.fullmatch(wanted):
        raise UsageError(f"--device {wanted}: unknown; use auto, cpu, cuda or cuda:0,1")
    if wanted == "auto" and not _gpu_driver():
        return ["cpu"]
    import torch

    if wanted == "auto":
        return ["cuda" if torch.cuda.is_available() else "cpu"]
    if not torch.cuda.is_available():
        raise UsageError(
            f"--device {wanted}: no CUDA device is usable here; use --device auto, or check the driver with nvidia-smi"
        )
    numbers = [int(n) for n in wanted[5:].split(",") if n]
    missing = [n for n in numbers if n >= torch.cuda.device_count()]
    if missing or len(set(numbers)) < len(numbers):
        raise UsageError(
            f"--device {wanted}: there are {torch.cuda.device_count()} CUDA devices, counted from 0; name each once"
        )
    return [f"cuda:{n}" for n in numbers] or ["cuda"]


def _gpu_driver() -> bool:
    """Whether there may be a GPU: its driver is there. Where it is not, torch, which is slow to load, need not be asked."""
    if Path("/dev/kfd").exists():
        return True
    try:
        ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return False
    return True
