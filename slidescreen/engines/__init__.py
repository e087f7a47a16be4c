"""What runs a network: one small Protocol, a file per engine."""

from slidescreen.engines.choose import caution, open_engine
from slidescreen.engines.engine import Engine, Outputs
from slidescreen.engines.settings import (
    DEVICE,
    ENGINES,
    ORIENTATIONS,
    ClassifySettings,
    check_settings,
    choose_device,
    choose_devices,
)

__all__ = [
    "DEVICE",
    "ENGINES",
    "ORIENTATIONS",
    "ClassifySettings",
    "Engine",
    "Outputs",
    "caution",
    "check_settings",
    "choose_device",
    "choose_devices",
    "open_engine",
]
