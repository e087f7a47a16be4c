"""A night of slides from the command: what it says beforehand, how long it will take, and on a Ray cluster."""

import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import result_folders
from jobs import job

from slidescreen.batch.plan import Resume
from slidescreen.cli.night import Wishes, _slots, run_night
from slidescreen.cli.options import split_engines
from slidescreen.cli.progress import Pace
from slidescreen.errors import UsageError


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


def wishes(*scans: Path, engine: str = "local") -> Wishes:
    return Wishes([str(s) for s in scans], None, Resume(), "", engine, "", None)


def test_a_dry_run_writes_nothing(scan: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    none = tmp_path / "none.svs"
    assert run_night(job(tmp_path / "out"), wishes(scan, none), dry_run=True, verbose=False, plain=True) == 1
    said = capsys.readouterr().out
    assert f"screen  {scan} (new)" in said
    assert f"fail    {none}: no such file" in said
    assert not (tmp_path / "out").exists()
    assert run_night(job(tmp_path / "out"), wishes(scan), dry_run=True, verbose=False, plain=True) == 0
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="results cannot be written there"):
        run_night(job(tmp_path / "file" / "out"), wishes(scan), dry_run=True, verbose=False, plain=True)


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
