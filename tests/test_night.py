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
from slidescreen.cli.night import Wishes, run_night
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
    assert run_night(job(tmp_path / "out"), wishes(scan, none), dry_run=True, verbose=False, plain=True) == 0
    said = capsys.readouterr().out
    assert f"screen  {scan} (new)" in said
    assert f"fail    {none}: no such file" in said
    assert not (tmp_path / "out").exists()
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="results cannot be written there"):
        run_night(job(tmp_path / "file" / "out"), wishes(scan), dry_run=True, verbose=False, plain=True)
    with pytest.raises(UsageError, match="--engine slurm: unknown; use local or ray"):
        run_night(job(tmp_path), wishes(scan, engine="slurm"), dry_run=True, verbose=False, plain=True)


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
