import csv
import json
import multiprocessing
import os
import socket
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import zarr
from conftest import StandIn

from slidescreen.batch import identify
from slidescreen.config import Settings
from slidescreen.errors import OutputError
from slidescreen.pipeline import screen_slide
from slidescreen.records import Explanations, SlideResult, Thresholds
from slidescreen.slide import open_slide
from slidescreen.slide.fingerprint import slide_id
from slidescreen.store import COLUMNS, ResultFolder, Typed, summary, write_predictions
from slidescreen.stored import clean_up, is_current, load_result, sweep
from slidescreen.taxonomy import CODES


def store(scan: Path, out: Path, *, patches: bool = True) -> tuple[SlideResult, Path]:
    settings = Settings()
    with open_slide(scan) as slide:
        info = identify(slide, None)
        with ResultFolder(out, info.id) as folder:
            result = screen_slide(slide, info, StandIn(), settings, folder.keep_patches, lambda *_: None)
            folder.write(result, lambda f: f"report of {len(load_result(f).cells)}", patches=patches)
            return result, folder.commit()


@pytest.fixture(scope="module")
def stored(scan: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[SlideResult, Path]:
    return store(scan, tmp_path_factory.mktemp("out"))


def test_the_folder_holds_the_contract(stored: tuple[SlideResult, Path]) -> None:
    result, folder = stored
    names = {p.name for p in folder.iterdir()}
    assert names >= {"summary.json", "cells.csv", "cells.parquet", "cells.geojson", "patches.zarr", "report.html"}
    assert not [p for p in folder.parent.iterdir() if p.name.startswith(".")]
    assert folder.name == result.slide.id == f"smear-{result.slide.fingerprint[:8]}"


def test_summary_has_the_keys_of_the_contract(stored: tuple[SlideResult, Path]) -> None:
    content = json.loads((stored[1] / "summary.json").read_text())
    keys = ["path", "id", "vendor", "width_px", "height_px", "um_per_px", "um_per_px_source", "fingerprint"]
    assert set(content["slide"]) >= set(keys)
    assert set(content["model"]) >= {"name", "sha256"}
    assert set(content["area_mm2"]) >= {"scanned", "screened", "empty", "unscanned", "unreadable"}
    assert set(content["cells"]) == {"found", "typed", "unsure", "edge", "rejected"}
    assert set(content["counts"]) == set(CODES)
    for key in ("blast", "atypical"):
        assert set(content[key]) >= {"count", "fraction", "ci95", "threshold", "mean_probability"}
    for key in [
        "differential_percent",
        "nrbc_per_100_wbc",
        "smudge_per_100_wbc",
        "settings",
        "version",
        "timings_s",
        "waiting_s",
        "warnings",
    ]:
        assert key in content
    cells = content["cells"]
    assert cells["found"] == cells["typed"] + cells["unsure"] + cells["edge"] + cells["rejected"] > 0
    area = content["area_mm2"]
    assert area["scanned"] == pytest.approx(area["screened"] + area["empty"] + area["unreadable"])


def test_tables_and_patches_have_the_same_rows(stored: tuple[SlideResult, Path], scan: Path) -> None:
    result, folder = stored
    with (folder / "cells.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == COLUMNS
    assert [int(r["cell_id"]) for r in rows] == list(range(1, len(result.cells) + 1))
    table = pq.read_table(folder / "cells.parquet").to_pylist()
    assert [t["cell_id"] for t in table] == [int(r["cell_id"]) for r in rows]
    assert [t["p_blast"] for t in table] == [float(r["p_blast"]) if r["p_blast"] else None for r in rows]
    patches = zarr.open_array(folder / "patches.zarr", mode="r")
    assert (patches.shape, patches.chunks, patches.dtype) == ((len(rows), 400, 400, 3), (1, 400, 400, 3), np.uint8)
    with open_slide(scan) as slide:
        for i in (0, len(rows) - 1):
            cell = result.cells[i].cell
            from slidescreen.patches import cut_patches

            (patch,) = cut_patches(slide, [cell], result.slide.scale)
            assert np.array_equal(np.asarray(patches[i]), patch.pixels)


def test_geojson_is_what_qupath_imports(stored: tuple[SlideResult, Path]) -> None:
    result, folder = stored
    content = json.loads((folder / "cells.geojson").read_text())
    assert content["type"] == "FeatureCollection"
    assert len(content["features"]) == len(result.cells)
    ids = set()
    for feature, cell in zip(content["features"], result.cells, strict=True):
        assert feature["type"] == "Feature"
        ids.add(feature["id"])
        (ring,) = feature["geometry"]["coordinates"]
        assert feature["geometry"]["type"] == "Polygon"
        assert ring[0] == ring[-1]
        assert len(ring) > 6
        assert cell.cell.box.x <= min(p[0] for p in ring) < cell.cell.box.x + 8
        kind = feature["properties"]["classification"]
        assert kind["name"]
        assert len(kind["color"]) == 3
        assert all(isinstance(v, float | int) for v in feature["properties"]["measurements"].values())
    assert len(ids) == len(result.cells)


def test_without_patches(scan: Path, tmp_path: Path) -> None:
    result, folder = store(scan, tmp_path, patches=False)
    assert not (folder / "patches.zarr").exists()
    assert (folder / "report.html").read_text() == f"report of {len(result.cells)}"


def test_current_means_same_scan_scale_model_settings_schema(stored: tuple[SlideResult, Path]) -> None:
    result, folder = stored
    same = {
        "fingerprint": result.slide.fingerprint,
        "wanted_scale": None,
        "model": result.model.identity,
        "settings": dict(result.settings),
    }
    assert is_current(folder, **same)  # type: ignore[arg-type]
    other = {"fingerprint": "x", "wanted_scale": 0.1, "model": "y", "settings": {}}
    for key, value in other.items():
        assert not is_current(folder, **(same | {key: value}))  # type: ignore[arg-type]
    assert not is_current(folder.with_name("none"), **same)  # type: ignore[arg-type]
    old = json.loads((folder / "summary.json").read_text())
    aside = folder.with_name("older")
    aside.mkdir()
    (aside / "report.html").touch()
    (aside / "summary.json").write_text(json.dumps(old))
    assert is_current(aside, **same)  # type: ignore[arg-type]
    (aside / "summary.json").write_text(json.dumps(old | {"schema": old["schema"] - 1}))
    assert not is_current(aside, **same)  # type: ignore[arg-type]


def test_the_old_result_stays_until_the_new_one_is_whole(scan: Path, tmp_path: Path) -> None:
    _, folder = store(scan, tmp_path)
    (folder / "report.html").write_text("old")
    with pytest.raises(RuntimeError), ResultFolder(tmp_path, folder.name):
        raise RuntimeError("screening failed")
    assert (folder / "report.html").read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == [folder.name]
    store(scan, tmp_path)
    assert (folder / "report.html").read_text() != "old"
    assert [p.name for p in tmp_path.iterdir()] == [folder.name]


def gone_process() -> int:
    process = multiprocessing.get_context("spawn").Process(target=os.getpid)
    process.start()
    process.join()
    assert process.pid is not None
    return process.pid


def test_what_a_killed_run_left_is_cleaned_up(tmp_path: Path) -> None:
    dead = tmp_path / f".a-1-x.partial-{socket.gethostname()}-{gone_process()}"
    alive = tmp_path / f".a-1-x.partial-{socket.gethostname()}-{os.getppid()}"
    elsewhere = tmp_path / ".a-1-x.partial-another.host-1"
    other = tmp_path / ".a-1-xy.partial-nohost-1"
    aside = tmp_path / ".a-1-x.old"
    for folder in (dead, alive, elsewhere, other, aside):
        folder.mkdir()
    clean_up(tmp_path, "a-1-x")
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([alive.name, elsewhere.name, other.name, "a-1-x"])


def test_who_holds_the_lock_sweeps_up_after_everybody(tmp_path: Path) -> None:
    for name in (
        ".a-1.partial-another.host-1",
        f".b-1.partial-{socket.gethostname()}-{os.getpid()}",
        ".c-1.old",
        ".d-1.old",
        "d-1",
    ):
        (tmp_path / name).mkdir()
    (tmp_path / ".run.json.partial-another.host-1").touch()
    (tmp_path / ".kept").touch()
    assert sweep(tmp_path, {"a-1"}) == 1
    assert sweep(tmp_path) == 4
    assert sorted(p.name for p in tmp_path.iterdir()) == [".kept", "c-1", "d-1"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("scan.tif", "scan-01234567"),
        ("a.b.svs", "a.b-01234567"),
        (".hidden.tif", "hidden-01234567"),
        ("ü ñ.tif", "ü ñ-01234567"),
    ],
)
def test_slide_id(name: str, expected: str) -> None:
    assert slide_id(Path("/some/where") / name, "0123456789abcdef") == expected
    assert len(slide_id(Path("x" * 250 + ".tif"), "0" * 64).encode()) <= 140


def test_nothing_found_is_null_in_the_summary(stored: tuple[SlideResult, Path]) -> None:
    from slidescreen.differential import DifferentialSettings, count_cells

    result = replace(stored[0], cells=(), differential=count_cells([], DifferentialSettings(), Thresholds()))
    content = summary(result)
    assert content["status"] == "no_leukocytes"
    assert content["blast"]["fraction"] is None
    assert set(content["differential_percent"].values()) == {None}
    json.dumps(content, allow_nan=False)


def test_predictions_are_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "new" / "predictions.csv"
    p = {c: 1 / 15 for c in CODES}
    assert write_predictions(path, [Typed("a.png", "BAS", p, 0.1, 0.2, "unsure", "a tie", -0.25)]) == 1
    head, line = path.read_text().splitlines()
    judged = "p_blast,p_atypical,status,reason,outlier,agreement"
    assert head == "file,label," + ",".join(f"p_{c}" for c in CODES) + f",{judged}"
    assert line.endswith(",0.100000,0.200000,unsure,a tie,-0.25,")

    def broken() -> object:
        yield Typed("a.png", "BAS", p, 0.1, 0.2)
        raise RuntimeError

    before = path.read_text()
    with pytest.raises(RuntimeError):
        write_predictions(path, broken())  # type: ignore[arg-type]
    assert path.read_text() == before
    assert [q.name for q in path.parent.iterdir()] == ["predictions.csv"]


def test_a_place_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot be written"), ResultFolder(tmp_path / "file", "a"):
        pass


def test_an_output_folder_that_has_gone_is_not_made_anew(scan: Path, tmp_path: Path) -> None:
    out, away = tmp_path / "out", tmp_path / "away"
    with pytest.raises(OutputError, match="cannot be written"), ResultFolder(out, "a"):
        pass
    assert not out.exists()
    out.mkdir()
    settings = Settings()
    with open_slide(scan) as slide, ResultFolder(out, "a") as folder:
        info = identify(slide, None)
        result = screen_slide(slide, info, StandIn(), settings, folder.keep_patches, lambda *_: None)
        out.rename(away)
        for write in (
            folder.finish_patches,
            lambda: folder.keep_explanations(Explanations("saliency", "blast", {0: np.zeros((400, 400), np.uint8)})),
            lambda: folder.write(result, lambda _: "", patches=True),
        ):
            with pytest.raises(OutputError, match="cannot be written"):
                write()
    assert not out.exists()


def test_an_interrupt_while_the_folder_is_made_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(path: Path) -> None:
        path.mkdir()
        raise KeyboardInterrupt

    monkeypatch.setattr("slidescreen.store.PatchWriter", interrupted)
    with pytest.raises(KeyboardInterrupt), ResultFolder(tmp_path, "a"):
        pass
    assert list(tmp_path.iterdir()) == []
