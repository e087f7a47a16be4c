"""A batch from its plan to its account. Executors do the work; what they tell is entered in the books and passed on."""

from __future__ import annotations

import logging
import platform
import socket
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from slidescreen.batch import ledger
from slidescreen.batch.events import Event, Finished, Job, SlideSkipped, SlideTask, Stop
from slidescreen.batch.ledger import Account, Entry
from slidescreen.batch.lock import RunLock, Shard, suffix
from slidescreen.batch.output import Output, utc_now
from slidescreen.batch.plan import Plan, Planned
from slidescreen.batch.slides import SlideFailure
from slidescreen.errors import SlidescreenError
from slidescreen.model import load_card
from slidescreen.pipeline import VERSION
from slidescreen.store import SCHEMA

log = logging.getLogger(__name__)


class Executor(Protocol):
    """Screens slides, here or elsewhere. Results do not depend on the executor or on the order of the slides; with another
    number of threads per worker probabilities may differ by some 1e-6."""

    def screen(self, tasks: Sequence[SlideTask], stop: Stop) -> Iterator[Event]:
        """Tell what happens, until every task has ended in Finished or, once asked to stop, in GivenUp or not at all."""
        ...


@dataclass(frozen=True, slots=True)
class Report:
    """How a batch ended. `entries`: one per slide listed."""

    account: Account
    entries: tuple[Entry, ...]
    interrupted: bool

    @property
    def exit_code(self) -> int:
        """0 when every slide has a result, else 1."""
        return int(bool(self.account.failed or self.account.not_reached))


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What `run.json` tells of how a batch is run."""

    engine: str
    devices: tuple[str, ...]
    shard: Shard | None = None


def run_plan(
    plan: Plan, job: Job, output: Output, executor: Executor, lock: RunLock, stop: Stop, around: Surroundings
) -> Iterator[Event | Report]:
    """Carry out a plan; the last thing told is the report.

    Every outcome is in the books before it is told. Raises OutputError when the books cannot be kept, AuditError when they do
    not add up.
    """
    began, clock = utc_now(), time.monotonic()
    entries = [entry for entry in map(_settled, plan.slides) if entry is not None]
    columns = {str(p.input.path): p.input.columns for p in plan.slides}
    _write_head(plan, job, output, around, began, entries, columns)
    try:
        for event in executor.screen(plan.tasks, _Checked(stop, lock)):  # type: ignore[arg-type]
            if isinstance(event, Finished):
                entry = _entry(event)
                entries.append(entry)
                _book(output, entry, entries, columns, around)
            yield event
    finally:
        output.sweep(None if around.shard is None else {t.name for t in plan.tasks})
    lock.require()
    whole, account = ledger.reconcile([p.input for p in plan.slides], entries, output)
    report = Report(account, tuple(whole), bool(stop.urgency))
    ledger.write_failures(output, report.entries, suffix(around.shard))
    times = {"ended": utc_now(), "seconds": round(time.monotonic() - clock, 1)}
    ledger.write_run(output, _head(job, around, began) | times | _tail(report), suffix(around.shard))
    yield report


class _Checked:
    """A `Stop` that also stops, at once, when the output folder has gone: nothing more could be stored."""

    EVERY_S = 5.0

    def __init__(self, stop: Stop, lock: RunLock) -> None:
        self._stop, self._lock = stop, lock
        self._looked = time.monotonic()

    @property
    def urgency(self) -> int:
        if time.monotonic() - self._looked > self.EVERY_S:
            self._looked = time.monotonic()
            self._lock.require()
        return self._stop.urgency


def _settled(planned: Planned) -> Entry | None:
    """The entry of a slide that needs no work."""
    action, path = planned.action, str(planned.input.path)
    if isinstance(action, SlideSkipped):
        return Entry(path, action.name, "skipped", reason=action.reason)
    if isinstance(action, SlideFailure):
        return Entry(path, ledger.path_name(planned.input.path), "failed", failure=action)
    return None


def _entry(event: Finished) -> Entry:
    task, outcome = event.task, event.outcome
    said = {"worker": event.worker, "seconds": round(event.seconds, 3)}
    if isinstance(outcome, SlideFailure):
        return Entry(str(task.path), task.name, "failed", task.key, failure=outcome, **said)  # type: ignore[arg-type]
    name = outcome.folder.name
    timings = {k: round(v, 3) for k, v in outcome.timings_s.items()}
    return Entry(str(task.path), name, "done", task.key, timings_s=timings, **said)  # type: ignore[arg-type]


def _write_head(
    plan: Plan,
    job: Job,
    output: Output,
    around: Surroundings,
    began: str,
    entries: Sequence[Entry],
    columns: Mapping[str, Mapping[str, str]],
) -> None:
    """The books as they stand before the first slide is started."""
    ledger.write_run(output, _head(job, around, began) | {"listed": len(plan.slides)}, suffix(around.shard))
    ledger.write_failures(output, entries, suffix(around.shard))
    for entry in entries:
        if entry.failure is not None and entry.failure.stage == "plan":
            ledger.write_entry(output, entry, columns[entry.path])
        elif entry.reason == "current":
            ledger.keep_columns(output, entry.name, entry.path, columns[entry.path])
            ledger.supersede(output, entry.path, entry.name)


def _book(
    output: Output,
    entry: Entry,
    entries: Sequence[Entry],
    columns: Mapping[str, Mapping[str, str]],
    around: Surroundings,
) -> None:
    try:
        ledger.write_entry(output, entry, columns[entry.path])
        ledger.supersede(output, entry.path, entry.name)
        if entry.failure is not None:
            ledger.write_failures(output, entries, suffix(around.shard))
    except SlidescreenError as error:  # a full disk: the account at the end is still made from what was told
        log.warning("%s", error)


def _head(job: Job, around: Surroundings, began: str) -> dict[str, Any]:
    card = load_card(job.model)
    return {
        "version": VERSION,
        "schema": SCHEMA,
        "model": {"name": card.name, "sha256": card.sha256},
        "settings": job.settings.result_settings() | {"classify": asdict(job.settings.classify)},
        "patches": job.patches,
        "timeout_s": job.timeout_s,
        "engine": around.engine,
        "devices": list(around.devices),
        "threads": job.threads,
        "shard": [around.shard.index, around.shard.count] if around.shard else None,
        "host": socket.gethostname(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "command": sys.argv[1:],
        "started": began,
    }


def _tail(report: Report) -> dict[str, Any]:
    stages: dict[str, float] = {}
    for entry in report.entries:
        for stage, seconds in (entry.timings_s or {}).items():
            stages[stage] = round(stages.get(stage, 0.0) + seconds, 3)
    return {
        **asdict(report.account),
        "interrupted": report.interrupted,
        "exit_code": report.exit_code,
        "stage_seconds": stages,
        "slides": [_line(entry) for entry in report.entries],
    }


def _line(entry: Entry) -> dict[str, Any]:
    content = {k: v for k, v in asdict(entry).items() if k != "failure"}
    if entry.failure is not None:
        content["failure"] = {
            "stage": entry.failure.stage,
            "error_class": entry.failure.error_class,
            "message": entry.failure.message,
            "next_step": entry.failure.next_step,
        }
    return content
