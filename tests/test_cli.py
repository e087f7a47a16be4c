"""The command line as users meet it, in processes of its own: exit codes, one clear line, nothing half written."""

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import read_summary, result_folders
from PIL import Image

from slidescreen.demo import PaintedCell
from slidescreen.model import DEFAULT_MODEL, find_model
from slidescreen.records import RgbImage

COMMAND = [sys.executable, "-W", "error", "-m", "slidescreen"]


def call(*arguments: object, cwd: Path | None = None, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [*COMMAND, *map(str, arguments)], capture_output=True, text=True, timeout=280, cwd=cwd, env=(os.environ | (env or {}))
    )
    assert "Traceback" not in done.stderr + done.stdout or "-v" in arguments
    return done


@pytest.fixture(scope="module")
def screened(scan: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[subprocess.CompletedProcess[str], Path]:
    out = tmp_path_factory.mktemp("cli")
    return call("run", scan, "-o", out), out


def test_run_stores_a_result_and_says_where(screened: tuple[subprocess.CompletedProcess[str], Path]) -> None:
    done, out = screened
    assert done.returncode == 0, done.stderr
    (folder,) = result_folders(out)
    assert str(folder / "report.html") in done.stdout
    assert re.search(r"16 leukocytes, blasts 25\.0 % \(7\.3-52\.4\)", done.stdout)
    assert "1 done, 0 skipped, 0 failed of 1 listed" in done.stderr
    assert read_summary(folder)["leukocytes"] == 16


def test_run_again_skips(screened: tuple[subprocess.CompletedProcess[str], Path], scan: Path) -> None:
    done = call("run", scan, "-o", screened[1], "--json-log")
    assert done.returncode == 0
    assert "already current" in done.stdout
    assert all(json.loads(line)["level"] for line in done.stderr.splitlines())


def test_the_report_opens_in_a_browser(screened: tuple[subprocess.CompletedProcess[str], Path], tmp_path: Path) -> None:
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no Chromium here")
    (folder,) = result_folders(screened[1])
    flags = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    flags += " --disable-component-update --disable-sync --virtual-time-budget=5000"
    done = subprocess.run(
        [browser, *flags.split(), f"--user-data-dir={tmp_path}", "--dump-dom", (folder / "report.html").as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
    )
    page, summary = done.stdout, read_summary(folder)
    blast, cells = summary["blast"], summary["cells"]
    assert isinstance(blast, dict)
    assert isinstance(cells, dict)

    def number(name: str) -> float:
        found = re.search(rf'id="{name}"[^>]*>\s*([\d.]+)', page)
        assert found, name
        return float(found[1])

    assert number("leukocytes") == summary["leukocytes"]
    assert number("blast-percent") == pytest.approx(100 * blast["fraction"], abs=0.06)
    assert number("edge") == cells["edge"]
    assert len(set(re.findall(r'<figure[^>]*id="c(\d+)"', page))) == cells["found"]
    assert "needs review by a morphologist" in page


def bad(folder: Path) -> dict[str, Path]:
    files = {n: folder / f"{n}.tif" for n in ("empty", "zeros", "text")}
    files["empty"].touch()
    files["zeros"].write_bytes(bytes(10_000))
    files["text"].write_text("not a scan")
    files["photo"] = folder / "photo.png"
    Image.new("RGB", (200, 100), "red").save(files["photo"])
    files["missing"] = folder / "missing.svs"
    return files


def test_bad_scans_fail_by_name_and_the_good_one_is_saved(scan: Path, tmp_path: Path) -> None:
    files = bad(tmp_path)
    done = call("run", *files.values(), scan, "-o", tmp_path / "out", "--no-patches")
    assert done.returncode == 1
    lines = [line for line in done.stderr.splitlines() if line.startswith("FAILED")]
    assert len(lines) == len(files)
    for name, path in files.items():
        (line,) = [text for text in lines if str(path) in text]
        expected = {"empty": "empty", "photo": "--um-per-px", "missing": "no such file"}.get(name, "not a scan")
        assert expected in line
    (folder,) = result_folders(tmp_path / "out")
    assert (folder / "report.html").is_file()
    assert not (folder / "patches.zarr").exists()
    with (tmp_path / "out" / "failures.csv").open(newline="") as file:
        rows = {Path(row["path"]).stem: row for row in csv.DictReader(file)}
    assert rows.keys() == files.keys()
    assert (rows["photo"]["stage"], rows["photo"]["error_class"]) == ("scale", "ScaleError")
    assert (rows["missing"]["stage"], rows["missing"]["next_step"]) == ("plan", "check the path")
    (log,) = (tmp_path / "out" / "logs").glob("zeros-*.log")
    assert "Traceback" in log.read_text()
    events = [json.loads(line) for line in (tmp_path / "out" / "run.jsonl").read_text().splitlines()]
    assert any("not a scan" in event["message"] for event in events)
    assert "zeros.tif" in (tmp_path / "out" / "cohort.html").read_text()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_no_permission(scan: Path, tmp_path: Path) -> None:
    path = Path(shutil.copy(scan, tmp_path / "locked.tif"))
    path.chmod(0)
    done = call("run", path, "-o", tmp_path / "out")
    assert done.returncode == 1
    assert "no permission" in done.stderr


def test_wrong_use_is_exit_code_2(scan: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "none").mkdir()
    (tmp_path / "s.toml").write_text("[detect]\nspeed = 1")
    model = shutil.copytree(find_model(DEFAULT_MODEL), tmp_path / "altered")
    with (model / "weights.safetensors").open("ab") as file:
        file.write(b"x")
    out = ("-o", tmp_path / "out")
    wrong = {
        ("run",): "Missing argument",
        ("run", scan, "-o", tmp_path / "file"): "results cannot be written there",
        ("run", scan, *out, "--model", "nonesuch"): "no such model",
        ("run", scan, *out, "--model", model): "altered or damaged",
        ("run", scan, *out, "--settings", tmp_path / "s.toml"): "unknown setting detect.speed",
        ("run", scan, *out, "--aoi", "some"): "use auto, all, x,y,w,h or a GeoJSON file",
        ("run", tmp_path / "*.svs", *out): "no file matches",
        ("run", scan, *out, "--um-per-px", "nan"): "--um-per-px nan: must lie in 0.03-1.0",
        ("run", scan, *out, "--um-per-px", "wide"): "must be a number",
        ("classify", tmp_path / "none", "--um-per-px", "0.07"): "no images found",
        ("classify", scan): "Missing option",
    }
    for arguments, message in wrong.items():
        done = call(*arguments, env={"COLUMNS": "200"})
        assert done.returncode == 2, arguments
        assert message in done.stderr, (arguments, done.stderr)
    assert not list((tmp_path / "out").glob("*")) if (tmp_path / "out").exists() else True


def test_classify_writes_predictions(tmp_path: Path, smear: tuple[RgbImage, list[PaintedCell]]) -> None:
    image, truth = smear
    inside = [c for c in truth if 200 < c.centre.x < 2800 and 200 < c.centre.y < 1800]
    for i, cell in enumerate(inside):
        x, y = int(cell.centre.x), int(cell.centre.y)
        Image.fromarray(image[y - 200 : y + 200, x - 200 : x + 200]).save(tmp_path / f"{i:02}_{cell.label}.png")
    (tmp_path / "broken.png").write_bytes(b"x")
    done = call("classify", tmp_path, "--um-per-px", "0.0725", "-o", tmp_path / "p.csv")
    assert done.returncode == 1
    assert "broken.png" in done.stderr
    with (tmp_path / "p.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(inside)
    assert list(rows[0])[:3] == ["file", "label", "p_BAS"]
    right = sum(r["label"] == Path(r["file"]).stem[3:] for r in rows)
    assert right >= 0.7 * len(rows)
    for r in rows:
        assert float(r["p_blast"]) == pytest.approx(float(r["p_MYO"]) + float(r["p_MOB"]), abs=1e-5)


def test_classify_keeps_what_is_there_when_no_image_can_be_typed(tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"x")
    (tmp_path / "p.csv").write_text("older")
    done = call("classify", tmp_path, "--um-per-px", "0.0725", "-o", tmp_path / "p.csv")
    assert done.returncode == 2
    assert "none of 1 images could be typed" in done.stderr
    assert (tmp_path / "p.csv").read_text() == "older"


def test_info_tells_what_was_read(scan: Path, tmp_path: Path) -> None:
    done = call("info", scan)
    assert done.returncode == 0
    assert "3072 x 2048" in done.stdout
    assert "0.0725 (from TIFF XResolution tag)" in done.stdout
    photo = bad(tmp_path)["photo"]
    done = call("info", photo)
    assert done.returncode == 0
    assert "unknown" in done.stdout
    assert "--um-per-px" in done.stdout
    assert call("info", tmp_path / "empty.tif").returncode == 1


def test_doctor_is_content() -> None:
    done = call("doctor")
    assert done.returncode == 0, done.stdout
    assert "FAIL" not in done.stdout
    assert DEFAULT_MODEL in done.stdout


def start(*arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*COMMAND, *map(str, arguments)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def until_half_written(out: Path, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if any(out.glob(".*.partial-*/patches.zarr")):
            return
        time.sleep(0.01)
    raise AssertionError("the run never began to write")


@pytest.mark.parametrize("blow", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_says_so_and_leaves_nothing_half(scan: Path, tmp_path: Path, blow: signal.Signals) -> None:
    process = start("run", scan, "-o", tmp_path)
    until_half_written(tmp_path, process)
    process.send_signal(blow)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "interrupted: what was finished is kept" in errors
    assert "Traceback" not in errors
    assert result_folders(tmp_path) == []
    assert not list(tmp_path.glob(".*.partial-*"))
    account = json.loads((tmp_path / "run.json").read_text())
    assert (account["listed"], account["not_reached"], account["interrupted"]) == (1, 1, True)


def test_killed_leaves_no_result_and_the_next_run_cleans_up(scan: Path, tmp_path: Path) -> None:
    process = start("run", scan, "-o", tmp_path)
    until_half_written(tmp_path, process)
    process.kill()
    process.communicate()
    assert list(tmp_path.glob(".*.partial-*"))
    done = call("run", scan, "-o", tmp_path)
    assert done.returncode == 0
    assert "the lock of a run that ended without a word was taken over" in done.stderr
    assert "1 half result(s) of a killed run cleaned up" in done.stderr
    assert not list(tmp_path.glob(".*.partial-*"))
    (folder,) = result_folders(tmp_path)
    assert folder.name.startswith("smear-")
    assert (folder / "report.html").is_file()


def test_the_batch_goes_on_when_nobody_reads_its_output(scan: Path, empty_scan: Path, tmp_path: Path) -> None:
    process = start("run", scan, empty_scan, "-o", tmp_path)
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    errors = process.stderr.read()
    process.stderr.close()
    assert process.wait(timeout=120) == 0, errors
    assert "Traceback" not in errors
    assert len(result_folders(tmp_path)) == 2


def test_odd_names_stay_on_one_line(scan: Path, tmp_path: Path) -> None:
    names = [b"new\nline.tif", b"bad\xff\xe9.tif", "ü [1] ñ.tif".encode()]
    paths = [tmp_path / os.fsdecode(name) for name in names]
    for i, path in enumerate(paths):
        path.write_bytes(scan.read_bytes() + bytes(i))
    done = subprocess.run(
        [*COMMAND, "run", *paths, "-o", tmp_path / "out", "--no-patches"], capture_output=True, timeout=200, check=False
    )
    assert done.returncode == 0, done.stderr
    assert b"Traceback" not in done.stderr
    assert len(result_folders(tmp_path / "out")) == 3
    assert len(done.stdout.splitlines()) == 4


def test_help_needs_no_heavy_import() -> None:
    code = "import sys; sys.argv = ['slidescreen', '--help']\nfrom slidescreen.cli import main\ntry:\n    main()\nfinally:\n"
    code += "    assert not {'torch', 'numpy', 'cv2', 'openslide'} & set(sys.modules), 'heavy'"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "Screens the leukocytes" in done.stdout
