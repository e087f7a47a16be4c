"""What `slidescreen run` does: plan, lock, screen, account, and the page of the batch."""

from __future__ import annotations

import dataclasses
import signal
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from slidescreen import logs
from slidescreen.batch.conduct import Executor, Report, Surroundings, run_plan
from slidescreen.batch.events import Job, Stop
from slidescreen.batch.inputs import read_inputs
from slidescreen.batch.local import LocalExecutor
from slidescreen.batch.lock import RunLock, Shard, suffix
from slidescreen.batch.metrics import Metrics
from slidescreen.batch.output import Output, open_output
from slidescreen.batch.plan import Plan, Resume, check_models, describe, make_plan, with_defaults
from slidescreen.batch.slides import SlideFailure
from slidescreen.classify import choose_devices
from slidescreen.cli.app import log, stopped
from slidescreen.cli.progress import View, print_line
from slidescreen.cohort import build_cohort
from slidescreen.errors import SlidescreenError, UsageError
from slidescreen.overlap import usable_cores

CORES_PER_WORKER = 4
"""A slide keeps about three cores busy: reading, cutting and typing run side by side."""


@dataclass(frozen=True, slots=True)
class Wishes:
    """What the user asks of a batch beside its job."""

    scans: list[str]
    um_per_px: float | Literal["auto"] | None
    resume: Resume
    shard: str
    engine: str
    ray_address: str
    metrics: Path | None


def run_night(job: Job, wishes: Wishes, *, dry_run: bool, verbose: bool, plain: bool) -> int:
    """Run a batch; returns the exit code. Raises UsageError when it cannot be started."""
    shard = Shard.parse(wishes.shard) if wishes.shard else None
    output = open_output(job.out)
    inputs = with_defaults(read_inputs(wishes.scans, output.folder), wishes.um_per_px)
    check_models(job.model, job.settings)
    wanted = job.settings.classify.device  # for Ray, of the nodes: this machine need not have it
    devices = choose_devices(wanted) if wishes.engine == "local" else [wanted]
    if dry_run:
        output.check()
        plan = make_plan(inputs, job, output, wishes.resume, shard)
        for line in describe(plan, True):
            print_line(line)
        return 1 if any(isinstance(planned.action, SlideFailure) for planned in plan.slides) else 0
    output.prepare()
    with RunLock(output, shard) as lock:
        for stale in lock.stale:
            log.warning("%s: the lock of a run that ended without a word was taken over (%s)", job.out, stale)
        left = output.sweep(None) if shard is None else 0
        plan = make_plan(inputs, job, output, wishes.resume, shard)
        left += output.sweep({t.name for t in plan.tasks}) if shard is not None else 0
        if left:
            log.info("%d half result(s) of a killed run cleaned up", left)
        with _log_beside(output, shard):
            return _run(plan, job, wishes, output, lock, devices, verbose=verbose, plain=plain)


def _run(
    plan: Plan, job: Job, wishes: Wishes, output: Output, lock: RunLock, devices: list[str], *, verbose: bool, plain: bool
) -> int:
    for line in describe(plan, False):
        log.info("%s", line)
    shard = Shard.parse(wishes.shard) if wishes.shard else None
    slots = _slots(job, devices, len(plan.tasks)) if wishes.engine == "local" else devices
    cores = usable_cores() // len(slots) if wishes.engine == "local" else int(job.settings.batch.cpus_per_slide)
    job = dataclasses.replace(job, threads=max(1, cores))
    around = Surroundings(wishes.engine, tuple(slots), shard)
    metrics = Metrics(wishes.metrics, plan) if wishes.metrics else None
    report: Report | None = None
    with ExitStack() as stack:
        stop = stack.enter_context(_stop_on_signals())
        executor: Executor
        if wishes.engine == "ray":
            from slidescreen.batch.cluster import RayExecutor

            executor = RayExecutor(job, job.settings.batch, wishes.ray_address)
        else:
            executor = stack.enter_context(LocalExecutor(job, slots))
        view = stack.enter_context(View(plan, plain=plain, verbose=verbose))
        for event in run_plan(plan, job, output, executor, lock, stop, around):
            if isinstance(event, Report):
                report = event
            else:
                view.show(event)
                if metrics:
                    metrics.see(event)
    if metrics:
        metrics.end()
    assert report is not None
    return _ending(report, output)


def _ending(report: Report, output: Output) -> int:
    a = report.account
    left = f", {a.not_reached} not reached" if a.not_reached else ""
    log.info("%d done, %d skipped, %d failed%s of %d listed", a.done, a.skipped, a.failed, left, a.listed)
    try:
        print_line(f"cohort -> {build_cohort(output)}")
    except SlidescreenError as error:
        log.error("%s", error)
        return 1
    if report.interrupted:
        stopped.set()
        raise KeyboardInterrupt
    return report.exit_code


def _slots(job: Job, devices: list[str], tasks: int) -> list[str]:
    """The device of each worker; of several devices and fewer workers, several: they share out the patches of its slide."""
    chosen = job.settings.batch.workers or max(len(devices), usable_cores() // CORES_PER_WORKER if devices == ["cpu"] else 1)
    workers = max(1, min(chosen, tasks))
    if workers >= len(devices):
        return [devices[i % len(devices)] for i in range(workers)]
    return ["cuda:" + ",".join(d.removeprefix("cuda:") for d in devices[i::workers]) for i in range(workers)]


@contextmanager
def _stop_on_signals() -> Iterator[Stop]:
    """While inside, Ctrl-C and SIGTERM ask the batch to stop; a second one stops it at once."""
    stop = Stop()

    def ask(_signal: int, _frame: object) -> None:
        stop.ask()

    before = {blow: signal.signal(blow, ask) for blow in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for blow, handler in before.items():
            signal.signal(blow, handler)


@contextmanager
def _log_beside(output: Output, shard: Shard | None) -> Iterator[None]:
    """`run.jsonl` beside the results takes every line of the log; later runs add to it."""
    name = f"run{suffix(shard)}.jsonl"
    with tempfile.TemporaryDirectory(prefix="slidescreen-") as aside:
        path = (output.folder or Path(aside)) / name
        try:
            handler = logs.log_file(path)
        except OSError as error:
            raise UsageError(f"{path}: cannot be written ({error.strerror}); choose another folder with -o") from error
        try:
            yield
        finally:
            logs.end_log_file(handler)
            if output.folder is None:
                output.write(name, (output.read(name) or b"") + path.read_bytes())
