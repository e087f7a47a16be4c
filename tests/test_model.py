import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from slidescreen.errors import ModelError
from slidescreen.model import CARD, DEFAULT_MODEL, WEIGHTS, find_model, load_card, load_network, prepare
from slidescreen.records import Thresholds


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return Path(shutil.copytree(find_model(DEFAULT_MODEL), tmp_path / "model"))


def change_card(folder: Path, **changes: object) -> None:
    card = json.loads((folder / CARD).read_text())
    for key, value in changes.items():
        if value is None:
            del card[key]
        else:
            card[key] = value
    (folder / CARD).write_text(json.dumps(card))


def test_the_default_model_is_whole_and_says_what_it_is() -> None:
    folder = find_model(DEFAULT_MODEL)
    card = load_card(folder)
    assert (card.input_px, card.patch_um, len(card.classes)) == (160, 29.0, 15)
    assert card.measured["blast AUC"] == 0.955
    assert card.info.measured == "images 1286, balanced accuracy 0.731, blast AUC 0.955, atypical AUC 0.96, ECE 0.035"
    assert all(text in card.training_data for text in ("lmu", "pbc", "deepapl"))
    network = load_network(folder, card)
    assert not network.training
    assert next(network.parameters()).dtype == torch.float32


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"classes": ["BAS"] * 15}, "missing: EBO"),
        ({"classes": ["BAS", "EBO"]}, "each once"),
        ({"mean": None}, "field 'mean' is missing"),
        ({"std": [0.2, 0.0, 0.2]}, "std must be three positive numbers"),
        ({"input_px": 5}, "input_px 5"),
        ({"architecture": "vgg"}, "architecture 'vgg' is not known"),
        ({"patch_um": 20}, "patch_um 20"),
        ({"input_px": "many"}, "invalid literal"),
        ({"calibration": {"temperature": 0.0}}, "temperature 0.0 must lie in"),
        ({"calibration": {}}, "field 'temperature' is missing"),
        ({"decision": {"blast": 0.0, "atypical": 0.5}}, "must lie above 0"),
        ({"decision": {"blast": 0.5, "atypical": 1.5}}, "not above 1"),
        ({"decision": {"blast": float("nan"), "atypical": 0.5}}, "must lie above 0"),
        ({"decision": {"blast": 0.5}}, "field 'atypical' is missing"),
        ({"rejection": {"sha256": "00"}}, "field 'threshold' is missing"),
        ({"rejection": {"sha256": "00", "threshold": "high"}}, "could not convert"),
    ],
)
def test_a_wrong_card_is_refused(model: Path, changes: dict[str, object], message: str) -> None:
    change_card(model, **changes)
    with pytest.raises(ModelError, match=message) as caught:
        load_card(model)
    assert CARD in str(caught.value)


def test_a_card_that_is_no_json_is_refused(model: Path) -> None:
    (model / CARD).write_text("{")
    with pytest.raises(ModelError, match=r"cannot be read as a model card"):
        load_card(model)


def test_altered_weights_are_refused(model: Path) -> None:
    with (model / WEIGHTS).open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x55")
    with pytest.raises(ModelError, match="sha256 .* is not the card's"):
        load_network(model, load_card(model))


@pytest.mark.parametrize("name", ["weights.pt", "model.pkl", "x.bin", "y.CKPT"])
def test_a_pickle_in_the_folder_is_refused(model: Path, name: str) -> None:
    (model / name).write_bytes(b"\x80\x04.")
    with pytest.raises(ModelError, match="a pickle that can run code"):
        load_network(model, load_card(model))


def replace_weights(folder: Path, content: bytes) -> None:
    (folder / WEIGHTS).write_bytes(content)
    change_card(folder, sha256=hashlib.sha256(content).hexdigest())


def test_a_pickle_named_safetensors_is_refused_and_not_run(model: Path, tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(3)}, tmp_path / "p.pt")
    replace_weights(model, (tmp_path / "p.pt").read_bytes())
    with pytest.raises(ModelError, match="not a safetensors file"):
        load_network(model, load_card(model))


def test_weights_of_another_network_are_refused_by_layer(model: Path, tmp_path: Path) -> None:
    save_file({"features.0.weight": torch.zeros(3, 3)}, tmp_path / "w.safetensors")
    replace_weights(model, (tmp_path / "w.safetensors").read_bytes())
    with pytest.raises(ModelError, match=r"layer features\.0\.weight has shape \(3, 3\)"):
        load_network(model, load_card(model))


def test_unknown_models_are_refused_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=rf"no such model; .*{DEFAULT_MODEL}"):
        find_model("nonesuch")
    with pytest.raises(ModelError, match=r"card\.json is missing"):
        find_model(str(tmp_path))


def test_preparation_obeys_the_card() -> None:
    card = load_card(find_model(DEFAULT_MODEL))
    white = prepare(torch.full((2, 400, 400, 3), 255, dtype=torch.uint8), card)
    assert white.shape == (2, 3, 160, 160)
    assert white.dtype == torch.float32
    assert torch.allclose(white, torch.tensor((1 - 0.5) / 0.25))
    patches = torch.zeros((1, 400, 400, 3), dtype=torch.uint8)
    patches[..., 0] = 255
    red = prepare(patches, card)
    assert np.allclose(red.mean((0, 2, 3)).numpy(), [2, -2, -2], atol=1e-5)


def test_the_identity_of_a_model_is_all_on_which_its_answers_depend(model: Path) -> None:
    change_card(model, calibration={"temperature": 1.0}, rejection={"sha256": "0", "threshold": 0.0})
    change_card(model, rejection=None)
    plain = load_card(model)
    change_card(model, measured={"blast AUC": 0.5}, limits="none")
    assert load_card(model).identity == plain.identity
    seen = {plain.identity}
    for changes in (
        {"calibration": {"temperature": 1.5}},
        {"input_px": 224},
        {"rejection": {"sha256": "1", "threshold": 1.0}},
        {"decision": {"blast": 0.3, "atypical": 0.5}},
    ):
        change_card(model, **changes)
        seen.add(load_card(model).identity)
    assert len(seen) == 5
    assert load_card(model).thresholds == Thresholds(0.3, 0.5)
    assert not plain.info.rejects
    assert load_card(model).info.rejects
    assert load_card(model).info.temperature == 1.5
