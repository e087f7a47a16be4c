"""Settings: those of the stages, composed; read from TOML."""

from __future__ import annotations

import dataclasses
import json
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from slidescreen.detect import DetectSettings
from slidescreen.detector_card import DEFAULT_DETECTOR, load_detector_card
from slidescreen.differential import DifferentialSettings
from slidescreen.engines import ClassifySettings, check_settings
from slidescreen.errors import UsageError
from slidescreen.explain import MOST_CELLS, ExplainSettings
from slidescreen.model import find_model, load_card
from slidescreen.monolayer import MonolayerSettings
from slidescreen.scale import ScaleSettings
from slidescreen.settings_file import from_table, known, read_toml
from slidescreen.slide import ReadSettings

ORDERED: Final = (
    ("stain_floor", "stain_ceiling"),
    ("candidate_um2", "min_nucleus_um2"),
    ("min_nucleus_um2", "max_nucleus_um2"),
)
"""Settings of the finder of which the first must not lie above the second."""


@dataclass(frozen=True, slots=True)
class BatchSettings:
    """How many slides are screened side by side. With another number of threads per worker the network's sums are rounded
    otherwise: probabilities may differ by some 1e-6. `workers`: processes on this machine, 0 chooses
    one per GPU or one per 4 cores. `timeout_per_slide_s`: 0 for none. `cpus_per_slide`, `gpus_per_slide`: what a Ray task asks
    of its node. `node_losses`: how often a slide is tried again when its node is lost."""

    workers: int = 0
    timeout_per_slide_s: float = 0.0
    cpus_per_slide: float = 2.0
    gpus_per_slide: float = 0.0
    node_losses: int = 3


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything that can be set, one table of the TOML file per stage."""

    reading: ReadSettings = field(default_factory=ReadSettings)
    scale: ScaleSettings = field(default_factory=ScaleSettings)
    monolayer: MonolayerSettings = field(default_factory=MonolayerSettings)
    detect: DetectSettings = field(default_factory=DetectSettings)
    classify: ClassifySettings = field(default_factory=ClassifySettings)
    differential: DifferentialSettings = field(default_factory=DifferentialSettings)
    explain: ExplainSettings = field(default_factory=ExplainSettings)
    batch: BatchSettings = field(default_factory=BatchSettings)

    def __post_init__(self) -> None:
        shares = [(f"differential.{name}", value) for name, value in dataclasses.asdict(self.differential).items()]
        shares.append(("monolayer.max_unreadable", self.monolayer.max_unreadable))
        for name, value in shares:
            if not 0 <= value <= 1:
                raise UsageError(f"setting {name} = {value:g}: must lie in 0-1")
        for name, value in dataclasses.asdict(self.detect).items():
            if not isinstance(value, str) and not value > 0:
                raise UsageError(f"setting detect.{name} = {value:g}: must be positive")
        for low, high in ORDERED:
            if getattr(self.detect, low) > getattr(self.detect, high):
                raise UsageError(f"setting detect.{low} lies above detect.{high}")
        if not 0 <= self.explain.top <= MOST_CELLS:
            raise UsageError(f"setting explain.top = {self.explain.top}: must lie in 0-{MOST_CELLS}")
        for name, value in dataclasses.asdict(self.batch).items():
            if value < 0:
                raise UsageError(f"setting batch.{name} = {value:g}: must not be negative")
        check_settings(self.classify)

    def result_settings(self) -> dict[str, Any]:
        """The settings on which results depend, as plain values: without device, batch size and workers, with the
        detector's weights. Of the engine, what was asked for: auto stays auto, whatever it finds on the machine."""
        values = {k: v for k, v in dataclasses.asdict(self).items() if k not in ("classify", "batch")}
        values["classify"] = _typing(self.classify)
        if self.detect.method == "network":
            card = load_detector_card(find_model(DEFAULT_DETECTOR))
            values["detector"] = {"sha256": card.sha256, "um_per_px": card.um_per_px, "centre_score": card.centre_score}
        plain: dict[str, Any] = json.loads(json.dumps(values))  # lists for tuples: as they come back from a stored result
        return plain


def _typing(classify: ClassifySettings) -> dict[str, Any]:
    """Of the settings of typing those on which results depend."""
    values: dict[str, Any] = {"tta": classify.tta, "engine": classify.engine, "precision": classify.precision}
    if classify.deterministic:
        values["deterministic"] = True
    if classify.calibration:
        values["calibration"] = classify.calibration
    if classify.cascade:
        values["cascade"] = {
            "identity": load_card(find_model(classify.cascade)).identity,
            "threshold": classify.cascade_threshold,
        }
    return values


def load_settings(path: Path) -> Settings:
    """Settings from a TOML file; what it does not name keeps its default.

    Raises UsageError naming the key that is unknown or of the wrong kind.
    """
    content = read_toml(path)
    stages = {f.name: f.default_factory for f in dataclasses.fields(Settings)}
    parts: dict[str, Any] = {}
    for name, table in content.items():
        known(path, name, stages)
        if not isinstance(table, dict):
            raise UsageError(f"{path}: {name} must be a table, [{name}]")
        parts[name] = from_table(path, name, typing.cast(Any, stages[name]), table)
    try:
        return Settings(**parts)
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from None
