"""The importer against the same network built in Keras, and against files that do not fit."""

import csv
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from keras_model import KerasNetwork
from numpy.typing import NDArray
from PIL import Image

from slidescreen.classify import ClassifySettings, load_classifier
from slidescreen.demo import PaintedCell
from slidescreen.errors import ModelError, OutputError, UsageError
from slidescreen.keras_import import creation_order, import_keras, read_keras
from slidescreen.model import CARD, WEIGHTS, load_card, load_network, prepare, write_model
from slidescreen.taxonomy import CODES

REAL_PATCHES = 20
PAINTED_PATCHES = 6
TRACED = 2


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Keras calls thousands of small operations, whose threads would wait for one another on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def patches(request: pytest.FixtureRequest, smear: tuple[NDArray[np.uint8], list[PaintedCell]]) -> NDArray[np.uint8]:
    """20 real patches of as many classes as there are, or six painted ones, each in less light, where there are no real images."""
    try:
        folder: Path = request.getfixturevalue("real_images") / "cells"
    except pytest.skip.Exception:
        image, cells = smear
        corners = [(int(c.box.centre.x) - 200, int(c.box.centre.y) - 200) for c in cells]
        inside = [(min(max(x, 0), image.shape[1] - 400), min(max(y, 0), image.shape[0] - 400)) for x, y in corners]
        light = np.linspace(1.0, 0.3, PAINTED_PATCHES)  # painted cells are too alike to be told apart by random weights
        cut = [image[y : y + 400, x : x + 400] for x, y in inside[:PAINTED_PATCHES]]
        return np.stack([(share * patch).astype(np.uint8) for share, patch in zip(light, cut, strict=True)])
    by_label: dict[str, list[str]] = {}
    with (folder / "cells.csv").open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            if row["source"] == "lmu":
                by_label.setdefault(row["label"], []).append(row["file"])
    names = [name for turn in zip(*by_label.values(), strict=False) for name in turn][:REAL_PATCHES]
    return np.stack([np.asarray(Image.open(folder / name).convert("RGB")) for name in names])


@pytest.fixture(scope="module")
def keras_network(tmp_path_factory: pytest.TempPathFactory, patches: NDArray[np.uint8]) -> KerasNetwork:
    network = KerasNetwork(tmp_path_factory.mktemp("keras"))
    network.randomise(seed=5, x=patches[-2:].astype(np.float32) / 255)
    return network


@pytest.fixture(scope="module")
def keras_file(keras_network: KerasNetwork, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("published") / "weights.hdf5"
    keras_network.save(path)
    return path


@pytest.fixture(scope="module")
def imported(keras_file: Path) -> Path:
    """Through the command, whose warnings are errors here."""
    folder = keras_file.parent / "matek2019"
    command = [sys.executable, "-W", "error", "-m", "slidescreen", "model", "import-keras", keras_file, "-o", folder]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"--model {folder}" in done.stdout
    return folder


def merged(sixteen: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.concatenate((sixteen[:, :1], sixteen[:, 1:3].sum(1, keepdims=True), sixteen[:, 3:]), 1)


def traced(network: torch.nn.Module, x: torch.Tensor) -> dict[str, torch.Tensor]:
    """Every convolution's, normalisation's and block's output, and what the second and third convolutions of a block get."""
    found: dict[str, torch.Tensor] = {}

    def keep(name: str) -> None:
        layer = network.get_submodule(name)
        layer.register_forward_hook(lambda _m, _i, output: found.update({name: output.clone()}))
        if name.endswith(("conv2", "conv3")):
            layer.register_forward_pre_hook(lambda _m, inputs: found.update({f"{name} in": inputs[0].clone()}))

    for name, layer in network.named_modules():
        if isinstance(layer, torch.nn.Conv2d | torch.nn.BatchNorm2d) or (name.count(".") == 1 and name.startswith("blocks.")):
            keep(name)
    with torch.inference_mode():
        network(x)
    return found


def test_layers_and_probabilities_are_those_of_keras(
    keras_network: KerasNetwork, imported: Path, patches: NDArray[np.uint8]
) -> None:
    """Every layer on two patches, probabilities on all."""
    assert patches.shape[1:] == (400, 400, 3)
    x = patches.astype(np.float32) / 255
    theirs = keras_network.activations(x[:TRACED])
    card = load_card(imported)
    ours = traced(load_network(imported, card), prepare(torch.from_numpy(patches[:TRACED]), card))
    first = theirs.pop("probabilities").numpy()
    assert len(theirs) == 53 + 53 + 16 + 2 * 16
    assert set(ours) == set(theirs)
    for name, value in theirs.items():
        expected = value.permute(0, 3, 1, 2)
        assert ours[name].shape == expected.shape, name
        assert float((ours[name] - expected).abs().max()) <= 1e-4 * float(expected.abs().max()), name
        assert float(expected.std()) > 0.05, f"{name} does not tell anything apart"
    del ours, theirs
    rest = [keras_network.probabilities(x[i : i + 2]) for i in range(TRACED, len(patches), 2)]
    expected = merged(np.concatenate([first, *rest]))
    found = load_classifier(imported, ClassifySettings("cpu", 4, engine="torch")).probabilities(patches)
    assert found.shape == (len(patches), 15)
    assert np.abs(found - expected).max() <= 1e-4
    assert expected.max() < 0.99, "saturated probabilities would hide differences"
    assert np.ptp(expected, axis=0).max() > 0.1, "the patches are not told apart"


def test_the_model_folder_is_whole(imported: Path) -> None:
    card = load_card(imported)
    assert (card.name, card.architecture, card.input_px, card.patch_um) == ("matek2019", "matek2019", 400, 29.0)
    assert card.classes == CODES
    assert (card.mean, card.std) == ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    assert "not measured" in card.info.measured
    assert sorted(p.name for p in imported.iterdir()) == sorted([CARD, WEIGHTS])
    assert [p.name for p in imported.parent.iterdir() if p.name.startswith(".")] == []
    with pytest.raises(OutputError, match="is there already"):
        import_keras(imported.parent / "weights.hdf5", imported)


def write_layers(file: h5py.Group, layers: dict[str, dict[str, NDArray[np.generic]]], parts: int = 1) -> None:
    """A file as Keras 2 wrote it; `parts`: the list of layers as so many attributes."""
    names = [name.encode() for name in layers]
    for i in range(parts):
        file.attrs["layer_names" if parts == 1 else f"layer_names{i}"] = names[i::parts]
    for layer, weights in layers.items():
        group = file.create_group(layer)
        group.attrs["weight_names"] = [f"{layer}/{weight}:0".encode() for weight in weights]
        for weight, value in weights.items():
            group[f"{layer}/{weight}:0"] = value


def layers_of(keras_file: Path, first: int) -> dict[str, dict[str, NDArray[np.generic]]]:
    """All layers, numbered from `first`, in the order of the file."""
    found: dict[str, dict[str, NDArray[np.generic]]] = {}
    with h5py.File(keras_file) as file:
        for name in file.attrs["layer_names"]:
            kind, _, number = name.rpartition("_") if name.rsplit("_")[-1].isdigit() else (name, "", "0")
            weights = {w.split("/")[-1]: file[name][w][()] for w in file[name].attrs["weight_names"]}
            found[f"{kind}_{int(number) + first}"] = weights
    return found


def test_names_numbered_from_elsewhere_and_listed_in_another_order_make_the_same_network(
    keras_file: Path, imported: Path, tmp_path: Path
) -> None:
    """In the file of a whole model, its list of layers in three parts."""
    turned = dict(reversed(layers_of(keras_file, first=551).items()))
    with h5py.File(tmp_path / "old.hdf5", "w") as file:
        write_layers(file.create_group("model_weights"), turned, parts=3)
    ours = read_keras(tmp_path / "old.hdf5").state_dict()
    expected = load_network(imported, load_card(imported)).state_dict()
    assert all(torch.equal(ours[key], value) for key, value in expected.items())


def test_layers_are_put_in_the_order_of_creation() -> None:
    names = ["lambda_7", "conv2d_10", "conv2d_2", "conv2d", "dense_1", "conv2d_1", "conv2d_transpose_3"]
    assert creation_order(names, "conv2d") == ["conv2d", "conv2d_1", "conv2d_2", "conv2d_10"]
    assert creation_order(names, "batch_normalization") == []


def first_layers(count: int = 40) -> dict[str, dict[str, NDArray[np.generic]]]:
    """The beginning of a fitting file: the stem and the first block up to its grouped convolution, zeros."""
    shapes = {"conv2d_1": ((7, 7, 3, 64), (64,)), "conv2d_2": ((1, 1, 64, 128), (128,))}
    layers: dict[str, dict[str, NDArray[np.generic]]] = {}
    for i in range(1, count + 1):
        kernel, bias = shapes.get(f"conv2d_{i}", ((3, 3, 4, 4), (4,)))
        layers[f"conv2d_{i}"] = {"kernel": np.zeros(kernel, np.float32), "bias": np.zeros(bias, np.float32)}
    for i, channels in ((1, 64), (2, 128)):
        names = ("gamma", "beta", "moving_mean", "moving_variance")
        layers[f"batch_normalization_{i}"] = {n: np.ones(channels, np.float32) for n in names}
    return layers


def changed(kind: str) -> dict[str, dict[str, NDArray[np.generic]]]:
    layers = first_layers()
    match kind:
        case "kernel":
            layers["conv2d_2"]["kernel"] = np.zeros((3, 3, 64, 128), np.float32)
        case "group":
            layers["conv2d_7"]["kernel"] = np.zeros((3, 3, 8, 4), np.float32)
        case "no bias":
            del layers["conv2d_1"]["bias"]
        case "unknown weight":
            layers["conv2d_1"]["alpha"] = np.zeros(3, np.float32)
        case "norm":
            layers["batch_normalization_2"]["gamma"] = np.ones(64, np.float32)
        case "few":
            layers = first_layers(30)
        case "text":
            layers["conv2d_1"]["bias"] = np.array([b"x"] * 64, dtype=object)
        case "large":
            layers["conv2d_1"]["bias"] = np.full(64, 1e300)
        case "nan":
            layers["conv2d_1"]["bias"] = np.full(64, np.nan, np.float32)
        case "foreign":
            layers["separable_conv2d_1"] = {"kernel": np.zeros(3, np.float32)}
        case "none":
            layers = {}
    return layers


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("kernel", r"layer conv2d_2 \(blocks\.0\.conv1\): kernel has shape \(3, 3, 64, 128\) in place of \(1, 1, 64, 128\)"),
        (
            "group",
            r"layer conv2d_7 \(blocks\.0\.conv2, group 5 of 32\): kernel has shape \(3, 3, 8, 4\) in place of \(3, 3, 4, 4\)",
        ),
        ("no bias", r"layer conv2d_1 \(conv\) has no bias"),
        ("unknown weight", r"layer conv2d_1 \(conv\) has an unknown alpha"),
        ("norm", r"layer batch_normalization_2 \(blocks\.0\.bn1\): gamma has shape \(64,\) in place of \(128,\)"),
        ("few", r"holds 30 conv2d layers and has none left for blocks\.0\.conv2, group 29 of 32"),
        ("text", r"layer conv2d_1: bias holds object, not numbers"),
        ("nan", r"layer conv2d_1: bias is not finite"),
        ("large", r"layer conv2d_1: bias is not finite"),
        ("foreign", r"layer separable_conv2d_1 has weights and is none of conv2d"),
        ("none", r"lists no layers with weights"),
    ],
)
def test_a_file_that_does_not_fit_is_refused_with_the_first_layer_that_differs(tmp_path: Path, kind: str, message: str) -> None:
    path = tmp_path / "weights.hdf5"
    with h5py.File(path, "w") as file:
        write_layers(file, changed(kind))
    with pytest.raises(ModelError, match=message) as caught:
        import_keras(path, tmp_path / "model")
    assert str(path) in str(caught.value)
    assert [p.name for p in tmp_path.iterdir()] == ["weights.hdf5"]


def test_a_layer_too_many_is_refused(keras_file: Path, tmp_path: Path) -> None:
    path = Path(shutil.copy(keras_file, tmp_path))
    with h5py.File(path, "r+") as file:
        file.attrs["layer_names"] = [*file.attrs["layer_names"], "dense_1"]
        file["dense_1"] = file["dense"]
    with pytest.raises(ModelError, match="layer dense_1 is one too many: 2 dense layers"):
        read_keras(path)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("text", "is not a whole Keras HDF5 weights file"),
        ("cut off", "is not a whole Keras HDF5 weights file"),
        ("no group", "is not a whole Keras HDF5 weights file"),
        ("no list", "lists no layers with weights"),
    ],
)
def test_a_broken_file_is_refused_in_one_line(tmp_path: Path, kind: str, message: str) -> None:
    path = tmp_path / "weights.hdf5"
    with h5py.File(path, "w") as file:
        write_layers(file, first_layers())
        if kind == "no group":
            del file["conv2d_1"]
        if kind == "no list":
            del file.attrs["layer_names"]
    if kind == "text":
        path.write_text("weights\n")
    if kind == "cut off":
        path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(ModelError, match=message) as caught:
        read_keras(path)
    assert "\n" not in str(caught.value)


def test_a_missing_file_and_a_missing_package_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="no such file"):
        read_keras(tmp_path / "nowhere.hdf5")
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(UsageError, match=r"pip install 'slidescreen\[keras\]'"):
        read_keras(tmp_path / "nowhere.hdf5")


def test_a_full_disk_leaves_nothing(imported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    card = json.loads((imported / CARD).read_text())
    with pytest.raises(OutputError, match="No space left"):
        write_model(tmp_path / "model", torch.nn.Linear(2, 2), card)
    assert list(tmp_path.iterdir()) == []
