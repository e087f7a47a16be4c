"""What runs a network: one small Protocol, a file per engine."""

from slidescreen.engines.choose import open_engine
from slidescreen.engines.engine import Engine, Outputs
from slidescreen.engines.settings import DEVICE, ClassifySettings, choose_device, choose_devices

__all__ = ["DEVICE", "ClassifySettings", "Engine", "Outputs", "choose_device", "choose_devices", "open_engine"]
