from pathlib import Path

import numpy as np
import pytest
from conftest import StandIn, read_summary
from PIL import Image

from slidescreen.batch import (
    ImagePrediction,
    RunOptions,
    SlideDone,
    SlideFailure,
    classify_images,
    list_images,
    list_scans,
    run_batch,
    type_cells_at,
)
from slidescreen.config import Settings
from slidescreen.demo import PaintedCell
from slidescreen.differential import DifferentialSettings
from slidescreen.errors import UsageError
from slidescreen.records import RgbImage


def run(paths: list[Path], out: Path, **options: object) -> list[SlideDone | SlideFailure]:
    return list(run_batch(paths, StandIn(), Settings(), RunOptions(out, **options)))  # type: ignore[arg-type]


def test_one_failure_does_not_stop_the_rest(scan: Path, empty_scan: Path, tmp_path: Path) -> None:
    photo = tmp_path / "photo.jpg"
    Image.new("RGB", (640, 480), "white").save(photo)
    broken = tmp_path / "broken.tif"
    broken.write_bytes(b"II*\0 broken")
    paths = [broken, tmp_path / "missing.svs", scan, photo, empty_scan]
    outcomes = run(paths, tmp_path / "out")
    assert [o.path for o in outcomes] == paths
    assert [type(o) for o in outcomes] == [SlideFailure, SlideFailure, SlideDone, SlideFailure, SlideDone]
    failures = [o for o in outcomes if isinstance(o, SlideFailure)]
    assert [f.error_class for f in failures] == ["OpenError", "OpenError", "ScaleError"]
    assert [f.stage for f in failures] == ["open", "open", "scale"]
    assert "--um-per-px" in failures[2].next_step
    assert not any(f.transient for f in failures)
    results = [o.folder for o in outcomes if isinstance(o, SlideDone)]
    assert [read_summary(r)["status"] for r in results] == ["ok", "no_usable_area"]
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == sorted(r.name for r in results)


def test_current_results_are_skipped_changed_ones_redone(scan: Path, tmp_path: Path) -> None:
    (first,) = run([scan], tmp_path)
    (second,) = run([scan], tmp_path)
    assert isinstance(first, SlideDone)
    assert isinstance(second, SlideDone)
    assert (first.skipped, second.skipped) == (False, True)
    (again,) = run([scan], tmp_path, overwrite=True)
    (rescaled,) = run([scan], tmp_path, um_per_px=0.08)
    changed = Settings(differential=DifferentialSettings(blast_threshold=0.9))
    (other,) = run_batch([scan], StandIn(), changed, RunOptions(tmp_path))
    for outcome in (again, rescaled, other):
        assert isinstance(outcome, SlideDone)
        assert not outcome.skipped
    assert [p.name for p in tmp_path.iterdir()] == [first.folder.name]


def test_unforeseen_errors_are_isolated_and_kept(scan: Path, empty_scan: Path, tmp_path: Path) -> None:
    class Broken(StandIn):
        def probabilities(self, patches: object) -> object:  # type: ignore[override]
            raise ZeroDivisionError("a defect")

    outcomes = list(run_batch([scan, empty_scan], Broken(), Settings(), RunOptions(tmp_path)))
    assert isinstance(outcomes[0], SlideFailure)
    assert outcomes[0].error_class == "ZeroDivisionError"
    assert outcomes[0].stage == "screen"
    assert "a defect" in outcomes[0].message
    assert "ZeroDivisionError: a defect" in outcomes[0].trace
    assert isinstance(outcomes[1], SlideDone)
    assert len(list(tmp_path.iterdir())) == 1


def test_a_full_disk_is_named(scan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device", "cells.csv")

    monkeypatch.setattr("slidescreen.store._write_tables", full)
    (outcome,) = run([scan], tmp_path)
    assert isinstance(outcome, SlideFailure)
    assert outcome.error_class == "OutputError"
    assert outcome.transient
    assert "No space left" in outcome.message
    assert "free space" in outcome.next_step
    assert list(tmp_path.iterdir()) == []


def test_listing(tmp_path: Path) -> None:
    for name in ("a/1.svs", "a/deep/2.TIF", "a/notes.txt", "a/.hidden/3.tif", "a/out/4.tif", "b/5.ndpi"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    out = tmp_path / "a" / "out"
    found = list_scans([str(tmp_path / "a"), str(tmp_path / "b" / "*.ndpi"), str(tmp_path / "a" / "1.svs"), "none.tif"], out)
    assert [p.name for p in found] == ["1.svs", "2.TIF", "5.ndpi", "none.tif"]
    with pytest.raises(UsageError, match="no file matches"):
        list_scans([str(tmp_path / "b" / "*.svs")], out)
    (tmp_path / "c").mkdir()
    with pytest.raises(UsageError, match="no scans in this folder"):
        list_scans([str(tmp_path / "c")], out)
    beside = list_scans([str(tmp_path / "c"), str(tmp_path / "b" / "*.svs"), str(tmp_path / "a" / "1.svs")], out)
    assert [p.name for p in beside] == ["c", "*.svs", "1.svs"]  # the first two fail by name, the third is screened


def test_names_with_brackets_are_files_first(tmp_path: Path) -> None:
    path = tmp_path / "scan [1].tif"
    path.touch()
    assert list_scans([str(path)], tmp_path / "out") == [path]


def test_an_empty_path_is_refused_and_results_are_no_scans(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="an empty path was given"):
        list_scans([""], tmp_path / "out")
    result = tmp_path / "earlier" / "a-1"
    (result / "patches.zarr").mkdir(parents=True)
    (result / "patches.zarr" / "zarr.json").write_text("{}")
    (tmp_path / "a.svs").touch()
    assert len(list_scans([str(tmp_path)], tmp_path / "out")) == 2
    for name in ("summary.json", "cells.csv", "report.html"):
        (result / name).touch()
    assert list_scans([str(tmp_path)], tmp_path / "out") == [tmp_path / "a.svs"]


def test_images_of_cells(tmp_path: Path) -> None:
    for i in range(5):
        Image.new("RGB", (400, 400), (40 * i, 0, 0)).save(tmp_path / f"{i}.png")
    (tmp_path / "bad.png").write_bytes(b"no image")
    outcomes = list(classify_images(list_images([str(tmp_path)]), 0.0725, StandIn(2)))
    failures = [o for o in outcomes if isinstance(o, SlideFailure)]
    typed = [o for o in outcomes if isinstance(o, ImagePrediction)]
    assert [o.path.name for o in failures] == ["bad.png"]
    assert [o.path.name for o in typed] == [f"{i}.png" for i in range(5)]
    assert all(o.probabilities.shape == (15,) for o in typed)
    with pytest.raises(UsageError, match="no images found"):
        list_images([str(tmp_path / "none")] if (tmp_path / "none").mkdir() is None else [])


def test_cells_at_given_places(scan: Path, smear: tuple[RgbImage, list[PaintedCell]]) -> None:
    labels = type_cells_at(scan, [c.box for c in smear[1]], StandIn())
    assert len(labels) == len(smear[1])
    assert set(labels) <= {"MYO", "LYT"}
    assert np.unique(labels).size >= 1
