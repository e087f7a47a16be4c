"""Which engine runs a model."""

from __future__ import annotations

from pathlib import Path

from slidescreen.engines.engine import Engine
from slidescreen.engines.settings import ClassifySettings
from slidescreen.model import load_card


def open_engine(folder: Path, settings: ClassifySettings) -> Engine:
    """The engine for the model in `folder`. Raises ModelError, UsageError."""
    from slidescreen.engines.torch_engine import TorchEngine

    return TorchEngine(folder, load_card(folder), settings)
