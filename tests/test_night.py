"""A batch around its slides: inputs, plan, lock, ledger, storage, workers that die, and Ray."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path

import fsspec
import pytest
from conftest import StandIn, result_folders

from slidescreen.batch import RunOptions, SlideDone, SlideFailure, run_slide
from slidescreen.batch.conduct import Report, Surroundings, run_plan
from slidescreen.batch.events import Event, Finished, GivenUp, Job, SlideSkipped, SlideTask, Started, Stop
from slidescreen.batch.inputs import Input, read_inputs
from slidescreen.batch.ledger import Account, Entry, known_failure, read_entry, reconcile, write_entry
from slidescreen.batch.local import LocalExecutor
from slidescreen.batch.lock import RunLock, Shard
from slidescreen.batch.metrics import Metrics
from slidescreen.batch.output import RemoteOutput, open_output
from slidescreen.batch.plan import Resume, describe, make_plan, with_defaults
from slidescreen.batch.worker import HaltSlide, Outcome, Ready, Step
from slidescreen.cli.night import Wishes, _slots, run_night
from slidescreen.cli.options import split_engines
from slidescreen.cli.progress import Pace
from slidescreen.config import BatchSettings, Settings
from slidescreen.errors import AuditError, OutputError, UsageError
from slidescreen.model import DEFAULT_MODEL, find_model

MODEL = find_model(DEFAULT_MODEL)


def job(out: Path | str, **options: object) -> Job:
    return Job(str(out), MODEL, Settings(), **options)  # type: ignore[arg-type]


def files(folder: Path, *names: str, content: str = "") -> list[Input]:
    folder.mkdir(exist_ok=True)
    for name in names:
        (folder / name).write_text(content or name)
    return [Input(folder / name) for name in names]


# --- inputs


def test_a_csv_file_names_slides_and_what_belongs_to_each(tmp_path: Path) -> None:
    files(tmp_path, "a.svs", "b.svs", "c.svs")
    table = tmp_path / "night.csv"
    table.write_text("path,um_per_px,aoi,patient,truth_blast_fraction\na.svs,0.1,all,P1,0.25\nb.svs,,,P2,\n")
    a, b, c = read_inputs([str(table), str(tmp_path / "*.svs")], tmp_path / "out")
    assert (a.path, a.um_per_px, a.aoi) == (tmp_path / "a.svs", 0.1, "all")
    assert a.columns == {"patient": "P1", "truth_blast_fraction": "0.25"}
    assert (b.path, b.um_per_px, b.aoi) == (tmp_path / "b.svs", None, "")
    assert (c.path, c.columns) == (tmp_path / "c.svs", {})
    assert [i.um_per_px for i in with_defaults([a, b], "auto")] == [0.1, "auto"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file\na.svs\n", "needs a column named path"),
        ("path,um_per_px\na.svs,seven\n", "line 2: um_per_px 'seven' must be a number in 0.03-1"),
        ("path,truth_blast_fraction\na.svs,25\n", "line 2: truth_blast_fraction '25' must be a number in 0-1"),
        ("path,aoi\na.svs,1,2,3,4\n", "line 2: has another number of fields"),
        ("path,patient\n,P1\n", "line 2: path is empty"),
        ("path,aoi\na.svs,all\na.svs,auto\n", "named by two rows with other values"),
        ("path\n", "no rows"),
    ],
)
def test_a_wrong_csv_file_is_refused_by_line(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "night.csv").write_text(text)
    with pytest.raises(UsageError, match=message):
        read_inputs([str(tmp_path / "night.csv")], None)


# --- plan


def test_the_plan_names_duplicates_equal_names_and_what_is_missing(tmp_path: Path) -> None:
    inputs = files(tmp_path / "x", "a.svs", "b.svs") + files(tmp_path / "y", "a.svs", content="other")
    inputs += [Input(tmp_path / "none.svs"), Input(tmp_path / "x")]
    copy = tmp_path / "y" / "c.svs"
    copy.write_text("b.svs")
    output = open_output(str(tmp_path / "out"))
    plan = make_plan([*inputs, Input(copy)], job(tmp_path / "out"), output)
    kinds = [type(p.action) for p in plan.slides]
    assert kinds == [SlideTask, SlideTask, SlideTask, SlideFailure, SlideFailure, SlideSkipped]
    assert len({t.name for t in plan.tasks}) == 3  # two called a.svs, told apart by content
    lines = list(describe(plan, True))
    assert any("2 slides are called a" in line for line in lines)
    assert any("none.svs: no such file" in line for line in lines)
    assert any(f"the same content as {tmp_path / 'x' / 'b.svs'}" in line for line in lines)
    assert any("GB free, about" in line for line in lines)
    assert lines[-1] == "6 slide(s) listed: 3 to screen, 1 to skip, 2 cannot be screened"
    assert not (tmp_path / "out").exists()


def test_one_scan_with_two_areas_does_not_overwrite_itself(tmp_path: Path) -> None:
    (first,) = files(tmp_path / "x", "a.svs")
    (second,) = files(tmp_path / "y", "a.svs")
    plan = make_plan([first, replace(second, aoi="all")], job(tmp_path), open_output(str(tmp_path)))
    assert [type(p.action) for p in plan.slides] == [SlideTask, SlideFailure]
    assert "would be stored as a-" in str(plan.slides[1].action)


def test_shards_share_out_every_slide_once(tmp_path: Path) -> None:
    inputs = files(tmp_path, *(f"{i}.svs" for i in range(7)))
    parts = [make_plan(inputs, job(tmp_path), open_output(str(tmp_path)), shard=Shard(i, 3)) for i in (1, 2, 3)]
    assert sorted(t.path.name for p in parts for t in p.tasks) == [f"{i}.svs" for i in range(7)]
    for wrong in ("0/3", "4/3", "3", "a/b"):
        with pytest.raises(UsageError, match="--shard"):
            Shard.parse(wrong)


@pytest.fixture(scope="module")
def screened(scan: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of results with one that the default model would have made."""
    out = tmp_path_factory.mktemp("night")
    classifier = StandIn()
    plan = make_plan([Input(scan)], job(out), open_output(str(out)))
    from slidescreen.model import load_card

    classifier.card = load_card(MODEL)
    run_slide(scan, classifier, Settings(), RunOptions(out), lambda *_: None)
    assert plan.tasks[0].name == result_folders(out)[0].name
    return out


def test_resume_compares_content_model_settings_scale_and_schema(
    screened: Path, scan: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = open_output(str(screened))

    def action(each: Input, resume: Resume = Resume(), settings: Settings = Settings()) -> str:  # noqa: B008  # frozen
        (planned,) = make_plan([each], replace(job(screened), settings=settings), output, resume).slides
        skipped = isinstance(planned.action, SlideSkipped)
        return planned.action.reason if skipped else planned.note  # type: ignore[union-attr]

    assert action(Input(scan)) == "current"
    assert action(Input(scan), Resume(overwrite=True)) == "--overwrite"
    assert action(Input(scan, um_per_px=0.08)) == "other scale than the stored result"
    assert action(Input(scan, aoi="all")) == "other settings than the stored result"
    assert action(Input(scan), settings=Settings(batch=BatchSettings(workers=2))) == "current"
    monkeypatch.setattr("slidescreen.stored.SCHEMA", 99)
    monkeypatch.setattr("slidescreen.batch.plan.SCHEMA", 99)
    assert action(Input(scan)) == "other schema than the stored result"


def test_a_slide_that_failed_by_its_own_fault_is_tried_again_only_on_request(tmp_path: Path) -> None:
    (each,) = files(tmp_path / "in", "a.svs")
    output = open_output(str(tmp_path))
    (task,) = make_plan([each], job(tmp_path), output).tasks
    fault = SlideFailure(each.path, "open", "OpenError", f"{each.path}: not a scan", "mend it")
    entry = Entry(str(each.path), task.name, "failed", task.key, failure=fault)
    write_entry(output, entry, {"patient": "P1"})
    assert known_failure(read_entry(output, task.name), task.key) == fault
    (planned,) = make_plan([each], job(tmp_path), output).slides
    assert "mend it (failed before; --retry-failed tries again)" in str(planned.action)
    (planned,) = make_plan([each], job(tmp_path), output, Resume(retry_failed=True)).slides
    assert (type(planned.action), planned.note) == (SlideTask, "failed before")
    write_entry(output, replace(entry, failure=replace(fault, transient=True)), {})
    assert len(make_plan([each], job(tmp_path), output).tasks) == 1  # a full disk is nobody's fault
    write_entry(output, replace(entry, key="other settings"), {})
    assert len(make_plan([each], job(tmp_path), output).tasks) == 1


# --- lock


def test_the_second_run_on_a_folder_refuses_and_says_who_holds_it(tmp_path: Path) -> None:
    output = open_output(str(tmp_path))
    with RunLock(output):
        with (
            pytest.raises(UsageError, match=f"in use by process {os.getpid()} on {socket.gethostname()} since 20"),
            RunLock(output),
        ):
            pass
        with pytest.raises(UsageError, match="in use"), RunLock(output, Shard(1, 2)):
            pass
    with RunLock(output, Shard(1, 2)), RunLock(output, Shard(2, 2)):
        for other in (Shard(1, 2), Shard(1, 3), None):
            with pytest.raises(UsageError, match="in use"), RunLock(output, other):
                pass
    assert [p.name for p in tmp_path.iterdir()] in ([], [".slidescreen.lock"])


@pytest.mark.parametrize(
    ("change", "stale"),
    [
        ({}, False),
        ({"pid": 2**22 + 1}, True),
        ({"started": "1"}, True),  # the number is in use again, by another process
        ({"boot": "before the power cut"}, True),
        ({"host": "another"}, False),
        ({"host": "another", "touched": -600}, True),
        ({"host": "another", "touched": 86400}, False),  # touched in the future: a clock was set back
    ],
)
def test_a_stale_lock_is_recognised_by_process_or_by_silence(tmp_path: Path, change: dict[str, object], stale: bool) -> None:
    output = open_output(str(tmp_path))
    note = tmp_path / ".run.lock.json"
    with RunLock(output):
        content = json.loads(note.read_text())
    touched = int(str(change.get("touched", 0)))
    note.write_text(json.dumps(content | {k: v for k, v in change.items() if k != "touched"}))
    os.utime(note, (time.time() + touched,) * 2)
    if not stale:
        with pytest.raises(UsageError, match="in use"), RunLock(output):
            pass
        return
    with RunLock(output) as lock:
        assert len(lock.stale) == 1
    assert not note.exists()


def test_a_folder_that_has_gone_is_noticed(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    output = open_output(str(out))
    with RunLock(output) as lock:
        lock.require()
        out.rename(tmp_path / "away")
        with pytest.raises(OutputError, match="has gone"):
            lock.require()
        with pytest.raises(OutputError, match="has gone"), output.scratch():
            pass
        with pytest.raises(FileNotFoundError):
            output.write("run.json", b"{}")
        (tmp_path / "away").rename(out)


# --- ledger


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


# --- storage


@pytest.fixture
def remote(tmp_path: Path) -> RemoteOutput:
    """Storage that is not a folder to slidescreen, kept in one."""
    output = open_output(f"dir::file://{tmp_path}/bucket")
    assert isinstance(output, RemoteOutput)
    return output


@pytest.mark.parametrize("place", ["dir", "memory"])
def test_storage_behind_a_url(place: str, tmp_path: Path) -> None:
    output = open_output(f"dir::file://{tmp_path}/bucket" if place == "dir" else "memory://bucket/night")
    assert output.folder is None
    output.prepare()
    made = tmp_path / "scratch" / "a-1"
    (made / "patches.zarr" / "c").mkdir(parents=True)
    for name, content in {"summary.json": "{}", "report.html": "first", "patches.zarr/c/0": "x"}.items():
        (made / name).write_text(content)
    output.publish(made)
    assert output.results() == ["a-1"]
    (made / "report.html").write_text("second")
    output.publish(made)
    assert output.read("a-1/report.html") == b"second"
    with output.fetch("a-1") as folder:
        assert sorted(p.name for p in folder.iterdir()) == ["patches.zarr", "report.html", "summary.json"]
    output.write("logs/a-1.json", b"{}")
    assert output.files("logs") == ["a-1.json"]
    assert 0 <= output.age_s("logs/a-1.json") < 60
    with RunLock(output), pytest.raises(UsageError, match="in use"), RunLock(output):
        pass
    assert output.files("") == []
    if place == "memory":
        fsspec.filesystem("memory").rm("/bucket", recursive=True)


def test_an_upload_that_was_cut_off_is_finished_or_forgotten(remote: RemoteOutput) -> None:
    remote.write("a-1/summary.json", b"old")
    remote.write("a-1/report.html", b"old")
    remote.write(".a-1.new/report.html", b"half")
    assert remote.sweep({"a-1"}) == 1
    assert (remote.read("a-1/report.html"), remote.results()) == (b"old", ["a-1"])
    remote.write(".a-1.new/report.html", b"new")
    remote.write(".a-1.new/summary.json", b"new")  # written last: the upload is whole
    remote.remove("a-1/summary.json")  # the old one was being replaced
    assert remote.sweep(None) == 1
    assert (remote.read("a-1/report.html"), remote.results()) == (b"new", ["a-1"])


def test_an_unknown_storage_is_wrong_use() -> None:
    with pytest.raises(UsageError, match="no storage of this kind"):
        open_output("nonesuch://bucket/night")


# --- workers


def fake_worker(pipe: Connection, job: Job) -> None:
    """Behaves as the name of the slide says."""
    signal.signal(signal.SIGABRT, signal.SIG_DFL)
    pipe.send(Ready("cpu"))
    while (task := pipe.recv()) is not None:
        if isinstance(task, HaltSlide):
            continue
        pipe.send(Step("screen", 1, 2, 3))
        if "crash" in task.name:
            os.kill(os.getpid(), signal.SIGSEGV)
        if "hang" in task.name:
            time.sleep(600)
        if "slow" in task.name and isinstance(pipe.recv(), HaltSlide):
            pipe.send(Outcome(None, 0.1))
            continue
        half = Path(job.out) / f".{task.name}.partial-{socket.gethostname()}-{os.getpid()}"
        pipe.send(Outcome(SlideDone(task.path, half.with_name(task.name), False, None), 0.1))


def tasks(*names: str) -> list[SlideTask]:
    return [SlideTask(Path(f"/scans/{n}.svs"), n, n, n) for n in names]


def test_a_crash_and_a_hang_cost_one_slide_each(tmp_path: Path) -> None:
    (tmp_path / ".crash.partial-elsewhere-1").mkdir()
    with LocalExecutor(job(tmp_path, timeout_s=2.0), ["cpu"], fake_worker) as executor:
        events = list(executor.screen(tasks("crash", "a", "hang"), Stop()))
    finished = {e.task.name: e.outcome for e in events if isinstance(e, Finished)}
    assert list(finished) == ["crash", "a", "hang"]
    crash, hang = finished["crash"], finished["hang"]
    assert isinstance(finished["a"], SlideDone)
    assert isinstance(crash, SlideFailure)
    assert (crash.error_class, crash.stage, crash.transient) == ("WorkerDied", "screen", False)
    assert "SIGSEGV (native code crashed" in crash.message
    assert isinstance(hang, SlideFailure)
    assert hang.error_class == "TimedOut"
    assert "took longer than 2 s at stage screen" in hang.message
    assert not list(tmp_path.glob(".*.partial-*"))


def test_the_first_request_lets_slides_be_given_up_the_second_does_not_wait(tmp_path: Path) -> None:
    with LocalExecutor(job(tmp_path), ["cpu"], fake_worker) as executor:
        for urgency, name in ((1, "slow"), (2, "hang")):
            stop = Stop()
            given_up: list[str] = []
            began = time.monotonic()
            for event in executor.screen(tasks(name, "never"), stop):
                if isinstance(event, Started):
                    began = time.monotonic()
                    for _ in range(urgency):
                        stop.ask()
                assert not isinstance(event, Finished)
                given_up += [event.task.name] if isinstance(event, GivenUp) else []
            assert given_up == [name]
            assert time.monotonic() - began < 8


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


def test_pace_tells_how_long_it_will_take(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    pace = Pace(10)
    assert pace.left() == ""
    now[0], pace.finished = 400.0, 1
    assert pace.left() == "45 min left"
    now[0], pace.finished = 100 + 8 * 3600.0, 4
    assert pace.left() == "12 h 00 min left"
    pace.finished = 10
    assert pace.left() == ""


# --- the command


def wishes(*scans: Path, engine: str = "local") -> Wishes:
    return Wishes([str(s) for s in scans], None, Resume(), "", engine, "", None)


def test_a_dry_run_writes_nothing(scan: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    none = tmp_path / "none.svs"
    assert run_night(job(tmp_path / "out"), wishes(scan, none), dry_run=True, verbose=False, plain=True) == 0
    said = capsys.readouterr().out
    assert f"screen  {scan} (new)" in said
    assert f"fail    {none}: no such file" in said
    assert not (tmp_path / "out").exists()
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="results cannot be written there"):
        run_night(job(tmp_path / "file" / "out"), wishes(scan), dry_run=True, verbose=False, plain=True)


def test_an_output_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for place in (tmp_path / "file", tmp_path / "file" / "sub", Path("/proc/slidescreen")):
        with pytest.raises(UsageError, match="results cannot be written there"):
            open_output(str(place)).prepare()


def test_ray_screens_in_other_processes(empty_scan: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    (tmp_path / "s.toml").write_text('[detect]\nmethod = "stain"\n[batch]\ncpus_per_slide = 1\n')
    command = [sys.executable, "-m", "slidescreen", "run", str(empty_scan), "-o", f"dir::file://{tmp_path}/bucket"]
    options = ["--engine", "ray", "--settings", str(tmp_path / "s.toml"), "--no-patches"]
    done = subprocess.run([*command, *options], capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    assert "1 done, 0 skipped, 0 failed of 1 listed" in done.stderr
    (page,) = (tmp_path / "bucket").rglob("cohort.html")
    assert len(result_folders(page.parent)) == 1
    run = json.loads((page.parent / "run.json").read_text())
    assert run["slides"][0]["worker"].startswith(socket.gethostname())


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ([], ("local", "")),
        (["ray"], ("ray", "")),
        (["openvino"], ("local", "openvino")),
        (["torch", "ray"], ("ray", "torch")),
        (["local", "auto"], ("local", "auto")),
    ],
)
def test_engine_says_where_and_with_what(names: list[str], said: tuple[str, str]) -> None:
    assert split_engines(names) == said


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["slurm"], "--engine slurm: unknown; use local, ray .where., auto, torch, openvino"),
        (["local", "ray"], "--engine local --engine ray: name one of them"),
        (["torch", "ray", "openvino"], "--engine torch --engine openvino: name one of them"),
    ],
)
def test_engines_that_contradict_each_other_are_refused(names: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        split_engines(names)


def test_devices_are_shared_out_between_workers_or_within_a_slide(tmp_path: Path) -> None:
    devices = [f"cuda:{i}" for i in range(4)]
    assert _slots(job(tmp_path), devices, 9) == devices
    assert _slots(job(tmp_path), devices, 1) == ["cuda:0,1,2,3"]
    assert _slots(job(tmp_path), devices, 2) == ["cuda:0,2", "cuda:1,3"]
    assert _slots(job(tmp_path), devices, 3) == ["cuda:0,3", "cuda:1", "cuda:2"]
    assert _slots(job(tmp_path), ["cuda"], 3) == ["cuda"]
