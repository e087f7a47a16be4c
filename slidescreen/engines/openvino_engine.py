"""OpenVINO, for CPUs: bfloat16 where the processor computes in it, single patches side by side.

A request is one patch, so that no answer depends on its neighbours. Patches are prepared before the network and not in its
graph: in bfloat16 the graph would round them on the way, and its resizing takes longer. Torch is needed only to compile.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from slidescreen.engines.cache import compiled, processor
from slidescreen.engines.calibration import calibration_patches
from slidescreen.engines.engine import Outputs
from slidescreen.engines.prepare import Preparation
from slidescreen.engines.settings import ClassifySettings
from slidescreen.errors import UsageError
from slidescreen.model import ModelCard, check_weights

PER_STREAM: Final = 2
"""Requests per stream: one runs, one waits, so that a stream need not wait for Python."""
RANGES: Final = "widest"
"""How int8 chooses them; another word makes it compile what it keeps anew."""
HINTS: Final = {"float32": "f32", "bfloat16": "bf16", "int8": "bf16"}


class OpenVinoEngine:
    """See `Engine`. `threads`: processor cores it may use."""

    def __init__(self, folder: Path, card: ModelCard, settings: ClassifySettings, threads: int) -> None:
        ov = import_openvino()
        core = ov.Core()
        can = core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        precision = settings.precision
        if precision == "auto":
            precision = "bfloat16" if "BF16" in can else "float32"
        self.name, self.device = f"openvino {precision}", "cpu"
        self._prepare = Preparation(card)
        check_weights(folder, card.sha256)
        hint = HINTS[precision] if "BF16" in can else "f32"
        config = {"PERFORMANCE_HINT": "THROUGHPUT", "INFERENCE_PRECISION_HINT": hint, "INFERENCE_NUM_THREADS": threads}
        cells = calibration_patches(settings.calibration) if precision == "int8" else None
        key = {
            "engine": "openvino",
            "version": str(ov.__version__),
            "weights": card.sha256,
            "card": f"{card.architecture} {card.input_px} {card.mean} {card.std}",
            "precision": f"{precision} {hint}",
            "calibration": "" if cells is None else f"{RANGES} {hashlib.sha256(cells.tobytes()).hexdigest()}",
            "hardware": f"{core.get_property('CPU', 'FULL_DEVICE_NAME')} {sorted(can)} {processor()}",
        }

        def make() -> bytes:
            model = _converted(folder, card)
            if cells is not None:
                model = _quantised(model, cells, self._prepare)
            return _bytes(core.compile_model(model, "CPU", config).export_model())

        network = compiled(key, make, lambda blob: core.import_model(blob, "CPU", config))
        streams = int(network.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS"))
        self._queue = ov.AsyncInferQueue(network, streams * PER_STREAM)
        self.batch_size = settings.batch_size or max(16, 4 * streams)

    def run(self, patches: NDArray[np.uint8]) -> Outputs:
        """See `Engine`."""
        found: list[tuple[NDArray[np.float32], ...]] = [()] * len(patches)

        def note(request: Any, row: int) -> None:
            found[row] = tuple(request.get_output_tensor(i).data[0].copy() for i in range(2))

        self._queue.set_callback(note)
        for row, patch in enumerate(patches):
            self._queue.start_async({0: self._prepare(patch)}, row)
        self._queue.wait_all()
        if not found:
            return Outputs(np.zeros((0, 15), np.float32), np.zeros((0, 0), np.float32))
        return Outputs(*(np.stack(each) for each in zip(*found, strict=True)))


def import_openvino() -> Any:
    """The openvino package, which would tell its maker of being imported, were its reporting module not kept away from it.
    Raises UsageError where it is not installed."""
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # None: importing it fails
    try:
        import openvino
    except ImportError as error:
        raise UsageError(f"--engine openvino: it cannot be used here ({error}); pip install openvino") from error
    return openvino


def _converted(folder: Path, card: ModelCard) -> Any:
    """The network as an OpenVINO model of one prepared patch. `openvino.convert_model` is not used: it reports too."""
    import warnings

    import torch
    from openvino.frontend import FrontEndManager
    from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder

    from slidescreen.engines.network import load_with_features

    shape = (1, 3, card.input_px, card.input_px)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # of torch, about tracing
        traced = torch.jit.trace(load_with_features(folder, card), (torch.zeros(shape),), check_trace=False)  # type: ignore[no-untyped-call]
        decoder = TorchScriptPythonDecoder(traced)  # must outlive the conversion
        front = FrontEndManager().load_by_framework("pytorch")
        model = front.convert(front.load(decoder))
    model.reshape({0: list(shape)})
    return model


def _quantised(model: Any, cells: NDArray[np.uint8], prepare: Callable[[NDArray[np.uint8]], NDArray[np.float32]]) -> Any:
    """The network in int8, with ranges as wide as any of these cells needs: NNCF's own choice, the mean of the
    cells' upper ends, cuts off what is larger in cells unlike most."""
    try:
        import nncf
    except ImportError as error:
        raise UsageError(f"precision int8 needs NNCF ({error}); pip install 'slidescreen[int8]'") from error
    widest = nncf.quantization.range_estimator.RangeEstimatorParametersSet.MINMAX
    advanced = nncf.AdvancedQuantizationParameters(activations_range_estimator_params=widest)
    return nncf.quantize(model, nncf.Dataset(list(cells), prepare), subset_size=len(cells), advanced_parameters=advanced)


def _bytes(exported: Any) -> bytes:
    return exported if isinstance(exported, bytes) else bytes(exported.getvalue())
