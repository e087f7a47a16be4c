"""The books of a batch: every slide has one outcome, and all of them add up."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import result_folders
from jobs import files, job

from slidescreen.batch import SlideDone, SlideFailure
from slidescreen.batch.conduct import Report, Surroundings, run_plan
from slidescreen.batch.events import Event, Finished, SlideTask, Started, Stop
from slidescreen.batch.inputs import Input
from slidescreen.batch.ledger import Account, Entry, read_entry, reconcile
from slidescreen.batch.lock import RunLock
from slidescreen.batch.metrics import Metrics
from slidescreen.batch.output import open_output
from slidescreen.batch.plan import make_plan
from slidescreen.errors import AuditError


def test_the_account_must_close(tmp_path: Path) -> None:
    with pytest.raises(AuditError, match="do not add up"):
        Account(listed=3, done=1, skipped=1, failed=0, not_reached=0)
    inputs = [Input(Path(n)) for n in "abcd"]
    (tmp_path / "b-1").mkdir()
    (tmp_path / "b-1" / "summary.json").touch()
    (tmp_path / "b-1" / "report.html").touch()
    output = open_output(str(tmp_path))
    fault = SlideFailure(Path("c"), "open", "OpenError", "c: bad", "mend it")
    entries = [Entry("b", "b-1", "done"), Entry("a", "a-1", "done"), Entry("c", "c-1", "failed", failure=fault)]
    whole, account = reconcile(inputs, entries, output)
    assert account == Account(listed=4, done=1, skipped=0, failed=2, not_reached=1)
    assert [e.path for e in whole] == list("abcd")
    assert whole[0].failure is not None
    assert whole[0].failure.error_class == "ResultGone"
    with pytest.raises(AuditError, match="two outcomes"):
        reconcile(inputs, [*entries, entries[0]], output)
    with pytest.raises(AuditError, match="never listed"):
        reconcile(inputs[1:], entries, output)


class Scripted:
    """An executor that tells what it was given to tell."""

    def __init__(self, *outcomes: SlideDone | SlideFailure) -> None:
        self._outcomes = outcomes

    def screen(self, given: list[SlideTask], stop: Stop) -> Iterator[Event]:
        for task, outcome in zip(given, self._outcomes, strict=False):
            yield Started(task, "cpu")
            yield Finished(task, outcome, "cpu", 1.5)


def test_books_are_kept_and_balanced(tmp_path: Path) -> None:
    out = tmp_path / "out"
    inputs = [*files(tmp_path / "in", "a.svs", "b.svs", "c.svs"), Input(tmp_path / "none.svs", columns={"patient": "P9"})]
    output = open_output(str(out))
    output.prepare()
    plan = make_plan(inputs, job(out), output)
    a, b, _ = plan.tasks
    for name in ("summary.json", "report.html"):
        (out / a.name).mkdir(exist_ok=True)
        (out / a.name / name).write_text("{}")
    fault = SlideFailure(b.path, "screen", "ReadError", f"{b.path}: truncated", "copy it again")
    done = SlideDone(a.path, out / a.name, False, None, timings_s={"find": 1.0})
    metrics = Metrics(tmp_path / "night.prom", plan)
    with RunLock(output) as lock:
        events = list(run_plan(plan, job(out), output, Scripted(done, fault), lock, Stop(), Surroundings("local", ("cpu",))))
    for event in events[:-1]:
        metrics.see(event)  # type: ignore[arg-type]
    metrics.end()
    report = events[-1]
    assert isinstance(report, Report)
    assert report.account == Account(listed=4, done=1, skipped=0, failed=2, not_reached=1)
    assert report.exit_code == 1
    failures = (out / "failures.csv").read_text().splitlines()
    assert failures[0] == "path,stage,error_class,message,next_step"
    assert failures[1] == f"{b.path},screen,ReadError,{b.path}: truncated,copy it again"
    assert failures[2].startswith(f"{tmp_path}/none.svs,plan,OpenError")
    run = json.loads((out / "run.json").read_text())
    assert (run["listed"], run["done"], run["failed"], run["stage_seconds"]) == (4, 1, 2, {"find": 1.0})
    assert {"version", "settings", "model", "host", "devices", "started", "ended"} <= set(run)
    assert read_entry(output, a.name)["timings_s"] == {"find": 1.0}  # type: ignore[index]
    text = (tmp_path / "night.prom").read_text()
    for line in (
        'slidescreen_slides{state="failed"} 2.0',
        'slidescreen_stage_seconds_total{stage="find"} 1.0',
        "slidescreen_ended 1.0",
    ):
        assert line in text


def test_a_file_with_other_content_keeps_its_old_result_marked(tmp_path: Path) -> None:
    out = tmp_path / "out"
    output = open_output(str(out))
    output.prepare()
    for content in ("one", "two"):
        inputs = files(tmp_path / "in", "a.svs", content=content)
        plan = make_plan(inputs, job(out), output)
        (task,) = plan.tasks
        (out / task.name).mkdir()
        for name in ("summary.json", "report.html"):
            (out / task.name / name).write_text("{}")
        with RunLock(output) as lock:
            around = Surroundings("local", ("cpu",))
            list(
                run_plan(
                    plan, job(out), output, Scripted(SlideDone(task.path, out / task.name, False, None)), lock, Stop(), around
                )
            )
    marks = [json.loads(p.read_text()).get("superseded_by", "") for p in sorted((out / "logs").glob("*.json"))]
    assert sorted(marks) == ["", task.name]
    assert len(result_folders(out)) == 2
