"""Options that commands share, and what they become."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, cast

import typer

from slidescreen.errors import UsageError

if TYPE_CHECKING:
    from slidescreen.classify import Classifier
    from slidescreen.config import Settings
    from slidescreen.slide import ReadSettings

ModelOption = Annotated[str, typer.Option("--model", help="Name of a model (see: model list), or a model folder.")]
ReaderOption = Annotated[str, typer.Option("--reader", help="Read scans with this reader only; auto: what suits each.")]
IccOption = Annotated[str, typer.Option("--icc", help="apply: colours to sRGB by the file's profile; ignore (default).")]
DeviceOption = Annotated[str, typer.Option("--device", help="auto, cpu, cuda or cuda:0,1.")]
EngineOption = Annotated[
    str, typer.Option("--engine", help="What runs the network: auto, torch, openvino, onnxruntime or tensorrt.")
]
DeterministicOption = Annotated[
    bool, typer.Option("--deterministic", help="Type by torch in float32, with the same bits each time.")
]
BatchOption = Annotated[int, typer.Option("--batch-size", min=0, help="Cells typed at once; 0 chooses.")]
TtaOption = Annotated[
    int, typer.Option("--tta", min=0, help="8: look at each cell in four turns and their mirror images; 0: the settings'.")
]
PLACES: Final = ("local", "ray")
"""Where slides are screened."""
VerboseOption = Annotated[bool, typer.Option("-v", "--verbose", help="More log lines; tracebacks of failures.")]


def wanted_scale(text: str) -> float | Literal["auto"] | None:
    """What --um-per-px says: um/px, auto, or nothing. Raises UsageError."""
    if text in ("", "auto"):
        return "auto" if text else None
    try:
        return plausible(float(text))
    except ValueError:
        raise UsageError(f"--um-per-px {text}: must be a number, for instance 0.0725, or auto") from None


def plausible(um_per_px: float) -> float:
    """The scale, when it is one that a scan can have. Raises UsageError."""
    from slidescreen.scale import MAX_UM_PER_PX, MIN_UM_PER_PX

    if not MIN_UM_PER_PX <= um_per_px <= MAX_UM_PER_PX:
        raise UsageError(f"--um-per-px {um_per_px:g}: must lie in {MIN_UM_PER_PX}-{MAX_UM_PER_PX}")
    return um_per_px


def effective_settings(
    path: Path | None,
    device: str,
    batch_size: int,
    aoi: str,
    trust_scale: bool = False,
    tta: int = 0,
    engine: str = "",
    deterministic: bool = False,
) -> Settings:
    """Settings of the file, with the options of the command line on top."""
    import dataclasses

    from slidescreen.config import Settings, load_settings
    from slidescreen.monolayer import with_aoi

    base = load_settings(path) if path else Settings()
    changes: dict[str, Any] = {}
    if device:
        changes["device"] = device
    if batch_size:
        changes["batch_size"] = batch_size
    if tta:
        changes["tta"] = tta
    if engine:
        changes["engine"] = network_engine(engine)
    if deterministic:
        changes["deterministic"] = True
    scale = dataclasses.replace(base.scale, trust=trust_scale or base.scale.trust)
    monolayer = with_aoi(base.monolayer, aoi or base.monolayer.aoi)
    return dataclasses.replace(base, scale=scale, monolayer=monolayer, classify=dataclasses.replace(base.classify, **changes))


def network_engine(name: str) -> str:
    """An engine's name, when there is such a one. Raises UsageError."""
    from slidescreen.engines import ENGINES

    if name not in ENGINES:
        raise UsageError(f"--engine {name}: unknown; use {', '.join(ENGINES)}")
    return name


def split_engines(names: Sequence[str]) -> tuple[str, str]:
    """What the --engine options of `run` say: where slides are screened ("local", "ray") and what runs the network, "" for what
    is not said. Raises UsageError for two of one kind, or a name that is none."""
    from slidescreen.engines import ENGINES

    places = [name for name in names if name in PLACES]
    engines = [name for name in names if name in ENGINES]
    for name in names:
        if name not in (*PLACES, *ENGINES):
            raise UsageError(f"--engine {name}: unknown; use {', '.join(PLACES)} (where), {', '.join(ENGINES)} (with what)")
    for kind in (places, engines):
        if len(kind) > 1:
            raise UsageError(f"--engine {' --engine '.join(kind)}: name one of them")
    return (places or ["local"])[0], (engines or [""])[0]


def reading_settings(base: ReadSettings, reader: str, icc: str) -> ReadSettings:
    """How scans are read, with the options of the command line on top. Raises UsageError."""
    import dataclasses

    if icc not in ("", "apply", "ignore"):
        raise UsageError(f"--icc {icc}: must be apply or ignore")
    return dataclasses.replace(base, reader=reader or base.reader, icc=cast(Any, icc or base.icc))


def batch_settings(settings: Settings, workers: int, timeout_s: float) -> Settings:
    """Settings with the options of a batch on top."""
    import dataclasses

    changes: dict[str, Any] = {}
    if workers:
        changes["workers"] = workers
    if timeout_s:
        changes["timeout_per_slide_s"] = timeout_s
    return dataclasses.replace(settings, batch=dataclasses.replace(settings.batch, **changes))


def open_classifier(model: str, settings: Settings) -> Classifier:
    """The model that was asked for, or the default one. Raises ModelError."""
    from slidescreen.classify import load_classifier
    from slidescreen.model import DEFAULT_MODEL, find_model

    return load_classifier(find_model(model or DEFAULT_MODEL), settings.classify)


def start_log(verbose: bool, as_json: bool) -> None:
    """Log to standard error, as lines for people or as JSON."""
    from slidescreen import logs

    logs.start_log(verbose=verbose, as_json=as_json)
