"""What can be set about typing, and the devices there are."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from slidescreen.errors import UsageError

DEVICE: Final = re.compile(r"auto|cpu|cuda(:\d+(,\d+)*)?")


@dataclass(frozen=True, slots=True)
class ClassifySettings:
    """`device`: auto (CUDA where there is one), cpu, cuda, or cuda:1; several, "cuda:0,1", are shared out between the workers
    of a batch. `batch_size` in patches; 0 chooses 16 on a CPU, 256 on CUDA."""

    device: str = "auto"
    batch_size: int = 0


def choose_device(wanted: str) -> str:
    """The torch device for auto, cpu, cuda or cuda:1; of several the first. Raises UsageError when there is none such."""
    return choose_devices(wanted)[0]


def choose_devices(wanted: str) -> list[str]:
    """The torch devices for auto, cpu, cuda or "cuda:0,1". Raises UsageError when there is none such."""
    if wanted == "cpu":
        return ["cpu"]
    if not DEVICE.fullmatch(wanted):
        raise UsageError(f"--device {wanted}: unknown; use auto, cpu, cuda or cuda:0,1")
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
