"""Several engines that share out patches: a GPU each."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from queue import Empty, SimpleQueue

import numpy as np
from numpy.typing import NDArray

from slidescreen.engines.engine import Engine, Outputs, joined


class SharedEngine:
    """See `Engine`. Each of its engines, all of one kind, takes the next patches as soon as it has done with the last ones."""

    def __init__(self, engines: Sequence[Engine]) -> None:
        self._engines = list(engines)
        self._share = min(engine.batch_size for engine in engines)
        self._pool = ThreadPoolExecutor(len(self._engines), "engine")
        self.name = engines[0].name
        self.device = ",".join([engines[0].device, *(engine.device.removeprefix("cuda:") for engine in engines[1:])])
        self.batch_size = self._share * len(self._engines)

    def run(self, patches: NDArray[np.uint8]) -> Outputs:
        """See `Engine`."""
        waiting: SimpleQueue[int] = SimpleQueue()
        for start in range(0, len(patches), self._share):
            waiting.put(start)
        found: dict[int, Outputs] = {}

        def take(engine: Engine) -> None:
            while True:
                try:
                    start = waiting.get_nowait()
                except Empty:
                    return
                found[start] = engine.run(patches[start : start + self._share])

        for done in [self._pool.submit(take, engine) for engine in self._engines]:
            done.result()
        return joined([found[start] for start in sorted(found)])
