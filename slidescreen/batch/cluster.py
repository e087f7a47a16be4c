"""Workers on the nodes of a Ray cluster, one task a slide.

On its node a task hands the slide to a worker process of its own (`local`), which outlives the task and keeps its model, so
that a crash or a hang is told as on one machine. Ray finds the node, and another one when the node is lost.
"""

from __future__ import annotations

import atexit
import logging
import os
import socket
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final

from slidescreen.batch.events import Event, Finished, GivenUp, Job, Said, SlideTask, Started, Stop
from slidescreen.batch.local import GRACE_S, LocalExecutor
from slidescreen.batch.slides import SlideFailure, failure
from slidescreen.errors import SlidescreenError, UsageError

if TYPE_CHECKING:
    from slidescreen.config import BatchSettings

POLL_S: Final = 0.2

_here: dict[Job, LocalExecutor] = {}
"""The worker of this Ray process, with the job it serves."""


class RayExecutor:
    """`address`: "auto", "HOST:PORT" or "ray://HOST:10001"; "" is what RAY_ADDRESS says, else a cluster of this machine. Raises
    UsageError when Ray is not installed or the cluster does not answer."""

    def __init__(self, job: Job, settings: BatchSettings, address: str = "") -> None:
        self._job = job
        self._settings = settings
        self._ray = _import_ray()
        wanted = address or os.environ.get("RAY_ADDRESS") or "local"  # never one that happens to run here
        if not self._ray.is_initialized():
            try:
                self._ray.init(address=wanted, log_to_driver=False, logging_level=logging.ERROR, include_dashboard=False)
            except (ConnectionError, RuntimeError, ValueError, TimeoutError) as error:
                said = " ".join(str(error).split())
                raise UsageError(
                    f"--ray-address {address}: no Ray cluster answers ({said}); start one with ray start"
                ) from error

    def screen(self, tasks: Sequence[SlideTask], stop: Stop) -> Iterator[Event]:
        """See `conduct.Executor`. Ray does not tell when a node takes a task: slides are told as started once finished."""
        ray = self._ray
        s = self._settings
        remote = ray.remote(num_cpus=s.cpus_per_slide, num_gpus=s.gpus_per_slide, max_retries=s.node_losses)(screen_here)
        waiting = {remote.remote(self._job, task): task for task in tasks}
        while waiting and not stop.urgency:
            ready, _ = ray.wait(list(waiting), num_returns=1, timeout=POLL_S)
            for reference in ready:
                task = waiting.pop(reference)
                yield Started(task, "ray")
                yield from self._taken(reference, task)
        for reference in waiting:
            ray.cancel(reference, force=True)
        if waiting and stop.urgency == 1:
            ray.wait(list(waiting), num_returns=len(waiting), timeout=GRACE_S)
        for task in waiting.values():
            yield GivenUp(task)

    def _taken(self, reference: Any, task: SlideTask) -> Iterator[Event]:
        try:
            events: list[Event] = self._ray.get(reference)
        except self._ray.exceptions.RayError as error:
            lost = SlidescreenError(
                f"{task.path}: its node or its Ray worker was lost {self._settings.node_losses + 1} times "
                f"({type(error).__name__}); see the logs of Ray, and run again with --retry-failed"
            )
            lost.__cause__ = error
            yield Finished(task, _lost(task, lost), "ray", 0.0)
            return
        yield from events


def _lost(task: SlideTask, error: SlidescreenError) -> SlideFailure:
    told = failure(task.path, error, "run")
    return SlideFailure(told.path, told.stage, "NodeLost", told.message, told.next_step, told.trace, transient=True)


def _import_ray() -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent anywhere
    try:
        import ray
    except ImportError as error:
        raise UsageError("--engine ray: Ray is not installed; pip install 'slidescreen[cluster]'") from error
    return ray


def screen_here(job: Job, task: SlideTask) -> list[Event]:
    """What a Ray task does on its node: all that was told of one slide but its progress."""
    executor = _executor(job)
    host, began = socket.gethostname(), time.monotonic()
    told: list[Event] = []
    try:
        for event in executor.screen([task], Stop()):
            if isinstance(event, Finished):
                event = Finished(task, event.outcome, f"{host} {event.worker}", event.seconds)
            if isinstance(event, Finished | Said):
                told.append(event)
    except SlidescreenError as error:
        told.append(Finished(task, failure(task.path, error, "start"), host, time.monotonic() - began))
    return told


def _executor(job: Job) -> LocalExecutor:
    if job not in _here:
        for other in _here.values():
            other.close()
        _here.clear()
        _here[job] = LocalExecutor(job, [job.settings.classify.device])
        atexit.register(_here[job].close)
    return _here[job]
