"""What a batch is about to do: its inputs, its plan, and what is done already."""

from dataclasses import replace
from pathlib import Path

import pytest
from conftest import StandIn, result_folders
from jobs import MODEL, files, job

from slidescreen.batch import RunOptions, SlideFailure, run_slide
from slidescreen.batch.events import SlideSkipped, SlideTask
from slidescreen.batch.inputs import Input, read_inputs
from slidescreen.batch.ledger import Entry, known_failure, read_entry, write_entry
from slidescreen.batch.lock import Shard
from slidescreen.batch.output import open_output
from slidescreen.batch.plan import Resume, describe, make_plan, with_defaults
from slidescreen.config import BatchSettings, Settings
from slidescreen.errors import UsageError


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


def test_storage_that_cannot_be_reached_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(_: Path) -> str:
        raise RuntimeError("Unable to locate\ncredentials")

    monkeypatch.setattr("slidescreen.batch.plan.fingerprint", refused)
    inputs = read_inputs(["s3://bucket/x.tif"], None)
    plan = make_plan(inputs, job(tmp_path / "out"), open_output(str(tmp_path / "out")))
    (failed,) = (planned.action for planned in plan.slides)
    assert isinstance(failed, SlideFailure)
    assert failed.transient
    assert "cannot be reached (Unable to locate credentials)" in str(failed)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file\na.svs\n", "needs a column named path; its first line says file; add one"),
        ("path;um_per_px\na.svs;0.1\n", "save it with commas between the fields"),
        ("", "its first line says nothing"),
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
