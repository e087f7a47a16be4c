"""The ONNX file, run by onnxruntime, against torch."""

import hashlib
import importlib.util
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray

from slidescreen.classify import ClassifySettings, load_classifier
from slidescreen.demo import PaintedCell
from slidescreen.errors import ModelError, OutputError, UsageError
from slidescreen.keras_import import CARD as MATEK_CARD
from slidescreen.model import DEFAULT_MODEL, WEIGHTS, find_model, write_model
from slidescreen.networks import build_network
from slidescreen.onnx_export import export_onnx
from slidescreen.taxonomy import CODES


@pytest.fixture(scope="module")
def patches(smear: tuple[NDArray[np.uint8], list[PaintedCell]]) -> NDArray[np.uint8]:
    """Three patches of a painted smear, the last turned into noise."""
    found = np.stack([smear[0][y : y + 400, x : x + 400] for x, y in ((100, 100), (900, 700), (2000, 1500))])
    found[2] = np.random.default_rng(0).integers(0, 256, found[2].shape)
    return found


@pytest.fixture(scope="module")
def published_variant(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """matek2019 with random weights, at 64 px so that it is quick."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("model") / "matek2019"
    network = build_network("matek2019").eval()
    network.dense.weight.data *= 20  # so that probabilities differ from patch to patch
    write_model(folder, network, MATEK_CARD | {"input_px": 64})
    return folder


def test_onnxruntime_gives_what_torch_gives(published_variant: Path, patches: NDArray[np.uint8], tmp_path: Path) -> None:
    """Through the command, whose warnings are errors here."""
    folder, out = published_variant, tmp_path / "made" / "model.onnx"
    command = [sys.executable, "-W", "error", "-m", "slidescreen", "model", "export", folder, "--onnx", out]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    assert (done.stdout, done.stderr) == (f"{folder} -> {out}\n", "")
    assert [p.name for p in out.parent.iterdir()] == ["model.onnx"]
    session = onnxruntime.InferenceSession(out, providers=["CPUExecutionProvider"])
    (given,), (taken,) = session.get_outputs(), session.get_inputs()
    assert (taken.name, taken.type, taken.shape[1:]) == ("patches", "tensor(uint8)", [400, 400, 3])
    assert (given.name, given.type, given.shape[1:]) == ("probabilities", "tensor(float)", [15])
    expected = load_classifier(folder, ClassifySettings("cpu", 3, engine="torch")).probabilities(patches)
    for n in (1, 3):  # any number of patches
        assert np.abs(session.run(None, {"patches": patches[:n]})[0] - expected[:n]).max() <= 1e-5
    assert np.ptp(expected, axis=0).max() > 0.05
    told = session.get_modelmeta().custom_metadata_map
    assert tuple(told["classes"].split()) == CODES
    assert told["weights_sha256"] == hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest()
    assert "29 um" in told["input"] and "research use" in told["made_by"]


def test_what_cannot_be_exported_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ModelError, match=r"card\.json: cannot be read"):
        export_onnx(tmp_path, tmp_path / "m.onnx")
    monkeypatch.setattr(
        "slidescreen.onnx_export.find_spec", lambda name: None if name == "onnxscript" else importlib.util.find_spec(name)
    )
    with pytest.raises(UsageError, match=r"needs onnxscript: pip install 'slidescreen\[onnx\]'"):
        export_onnx(find_model(DEFAULT_MODEL), tmp_path / "m.onnx")
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be written"):
        export_onnx(find_model(DEFAULT_MODEL), tmp_path / "file" / "m.onnx")
