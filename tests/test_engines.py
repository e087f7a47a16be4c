"""Every engine that can run here, against torch in float32."""

import csv
import logging
import multiprocessing
import os
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
import zarr
from numpy.typing import NDArray

from slidescreen.classify import Classifier, ClassifySettings, First, Judgement, load_classifier, softmax
from slidescreen.demo import PaintedCell
from slidescreen.engines import Engine, Outputs, caution, check_settings, open_engine, torch_engine
from slidescreen.engines.cache import SUFFIX, cache_folder, compiled
from slidescreen.engines.calibration import calibration_patches
from slidescreen.engines.choose import choose_engine
from slidescreen.engines.network import WithFeatures, in_bfloat16
from slidescreen.engines.openvino_engine import import_openvino
from slidescreen.engines.prepare import Preparation
from slidescreen.engines.shared import SharedEngine
from slidescreen.engines.torch_engine import TorchEngine
from slidescreen.errors import UsageError
from slidescreen.model import ARCHITECTURES, DEFAULT_MODEL, ModelCard, find_model, load_card, prepare, write_model
from slidescreen.networks import NETWORKS, build_network

SMALL_PX = 64
HERE = ("torch", "openvino", "onnxruntime")


@pytest.fixture(scope="module")
def cells(smear: tuple[NDArray[np.uint8], list[PaintedCell]]) -> NDArray[np.uint8]:
    """(n, 400, 400, 3): the painted leukocytes that lie whole in the smear."""
    image, painted = smear
    found = []
    for cell in painted:
        x, y = (int(v) - 200 for v in (cell.box.centre.x, cell.box.centre.y))
        if x >= 0 and y >= 0 and x + 400 <= image.shape[1] and y + 400 <= image.shape[0]:
            found.append(image[y : y + 400, x : x + 400])
    return np.stack(found)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that is quick to compile: random weights, 64 px, whose normalisation has seen something."""
    torch.manual_seed(3)
    network = build_network("sequential")
    with torch.no_grad():
        for _ in range(3):
            network(torch.randn(8, 3, SMALL_PX, SMALL_PX))
    card = {
        **{"name": "small", "architecture": "sequential", "classes": list(load_card(find_model(DEFAULT_MODEL)).classes)},
        **{"patch_um": 29.0, "input_px": SMALL_PX, "mean": [0.7, 0.6, 0.7], "std": [0.2, 0.3, 0.2]},
        **{"training_data": "none", "licence": "none", "measured": {}, "limits": "none"},
    }
    folder = tmp_path_factory.mktemp("model") / "small"
    write_model(folder, network.eval(), card)
    return folder


@pytest.fixture(params=HERE)
def engine(request: pytest.FixtureRequest, small: Path) -> Engine:
    return open_engine(small, ClassifySettings("cpu", engine=request.param))


def some(n: int) -> NDArray[np.uint8]:
    return np.random.default_rng(1).integers(0, 256, (n, 400, 400, 3)).astype(np.uint8)


def test_an_answer_depends_neither_on_how_many_come_nor_on_which(engine: Engine) -> None:
    images = some(11)
    together = engine.run(images)
    assert together.logits.shape == (11, 15)
    assert together.features.shape == (11, 512)
    assert together.logits.dtype == together.features.dtype == np.float32
    for rows in ([0], [10], [3, 4], [7, 0, 9, 2, 5], list(range(10, -1, -1))):
        other = engine.run(images[rows])
        assert np.array_equal(other.logits, together.logits[rows]), rows
        assert np.array_equal(other.features, together.features[rows]), rows
    assert engine.run(images[:0]).logits.shape == (0, 15)


def test_no_answer_depends_on_the_batch_size(small: Path) -> None:
    images = some(7)
    found = [open_engine(small, ClassifySettings("cpu", size, engine="torch")).run(images).logits for size in (0, 1, 5)]
    assert np.array_equal(found[0], found[1])
    assert np.array_equal(found[0], found[2])


@pytest.mark.parametrize("name", HERE)
def test_float32_agrees_with_torch(name: str, small: Path) -> None:
    images = some(4)
    expected = open_engine(small, ClassifySettings("cpu", engine="torch")).run(images)
    asked = cast(Any, ClassifySettings)("cpu", engine=name, precision="float32")
    found = open_engine(small, asked)
    assert found.name == ("torch" if name == "torch" else name) + " float32"
    assert np.allclose(found.run(images).logits, expected.logits, atol=2e-4)
    assert np.allclose(found.run(images).features, expected.features, atol=2e-4)


def test_the_default_engine_names_painted_cells_as_torch_does(cells: NDArray[np.uint8]) -> None:
    folder = find_model(DEFAULT_MODEL)
    expected = load_classifier(folder, ClassifySettings("cpu", engine="torch")).probabilities(cells)
    classifier = load_classifier(folder, ClassifySettings("cpu"))
    assert classifier.told.startswith("cpu, openvino float32")  # EfficientNet-Lite0 does not bear bfloat16
    found = classifier.probabilities(cells)
    assert len(cells) >= 10
    assert np.abs(found - expected).max() < 1e-4


@pytest.mark.parametrize("px", [32, 192, 400, 512])
def test_preparation_without_torch_is_that_of_the_model(px: int) -> None:
    card = replace(load_card(find_model(DEFAULT_MODEL)), input_px=px, mean=(0.5, 0.4, 0.6), std=(0.2, 0.25, 0.3))
    for image in some(2):
        expected = prepare(torch.from_numpy(image[None]), card).numpy()
        assert np.abs(Preparation(card)(image) - expected).max() < 5e-5


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_architecture_has_features_and_runs_in_bfloat16(architecture: str) -> None:
    torch.manual_seed(0)
    network = WithFeatures(build_network(architecture)).eval()
    x = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        logits, features = network(x)
        low, _ = in_bfloat16(network)(x.bfloat16())
        assert torch.equal(logits, network.network(x))
    assert logits.shape == (2, 15)
    assert features.shape[1] in (512, 1280, 2048)
    assert low.dtype == torch.float32
    assert (low - logits).abs().max() < 0.05 * max(1.0, float(logits.abs().max()))


def test_architectures_are_those_of_the_networks() -> None:
    assert tuple(NETWORKS) == ARCHITECTURES


class Doubler:
    """An engine that says of a patch its first px, slowly."""

    name, batch_size = "doubler", 3

    def __init__(self, device: str, wait: float) -> None:
        self.device, self.wait = device, wait
        self.seen = 0

    def run(self, patches: NDArray[np.uint8]) -> Outputs:
        self.seen += len(patches)
        time.sleep(self.wait)
        first = patches[:, 0, 0, :1].astype(np.float32)
        return Outputs(np.repeat(first, 15, 1), first)


def test_devices_share_out_patches_and_give_what_one_gives() -> None:
    images = some(40)
    fast, slow = Doubler("cuda:0", 0.002), Doubler("cuda:1", 0.02)
    shared = SharedEngine([fast, slow])
    assert (shared.device, shared.batch_size) == ("cuda:0,1", 6)
    found = shared.run(images)
    assert np.array_equal(found.logits, Doubler("cuda:0", 0).run(images).logits)
    assert fast.seen + slow.seen == 40
    assert fast.seen > slow.seen > 0
    assert shared.run(images[:0]).logits.shape == (0, 15)


def test_an_error_of_one_device_is_raised() -> None:
    class Broken(Doubler):
        def run(self, patches: NDArray[np.uint8]) -> Outputs:
            raise torch.OutOfMemoryError("no room")

    with pytest.raises(torch.OutOfMemoryError, match="no room"):
        SharedEngine([Doubler("cuda:0", 0.2), Broken("cuda:1", 0)]).run(some(9))


def test_two_lanes_take_turns_and_a_short_last_batch_is_filled_up(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What runs on two streams of a GPU, with two lanes on the CPU."""
    images = some(11)
    expected = open_engine(small, ClassifySettings("cpu", engine="torch")).run(images)
    cpu = torch_engine._CpuLane
    lanes: list[Any] = []

    def two(whole: Any, shape: int, _device: str) -> list[Any]:
        lanes.extend(cpu(whole, shape) for _ in range(2))
        return lanes

    monkeypatch.setattr(torch_engine, "open_lanes", two)
    found = open_engine(small, ClassifySettings("cpu", engine="torch")).run(images)
    assert np.array_equal(found.logits, expected.logits)
    assert len(lanes) == 2


def test_out_of_memory_halves_the_batch_and_says_so(
    small: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    images = some(5)
    expected = open_engine(small, ClassifySettings("cpu", engine="torch")).run(images)
    whole_lanes = torch_engine.open_lanes

    def short_of_memory(whole: Any, shape: int, device: str) -> list[Any]:
        if shape > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return list(whole_lanes(whole, shape, device))

    monkeypatch.setattr(torch_engine, "open_lanes", short_of_memory)
    monkeypatch.setattr(logging.getLogger("slidescreen"), "propagate", True)
    with caplog.at_level(logging.WARNING):
        engine = cast(TorchEngine, open_engine(small, ClassifySettings("cpu", engine="torch")))
    assert engine.shape == 1
    assert "halved to 2" in caplog.text
    assert "halved to 1" in caplog.text
    assert np.allclose(engine.run(images).logits, expected.logits, atol=1e-4)


def test_int8_is_calibrated_on_the_cells_of_a_result(small: Path, tmp_path: Path) -> None:
    array = zarr.create_array(
        store=str(tmp_path / "patches.zarr"), shape=(120, 400, 400, 3), chunks=(1, 400, 400, 3), dtype="uint8"
    )
    array[:] = some(120)
    asked = ClassifySettings("cpu", engine="openvino", precision="int8", calibration=str(tmp_path))
    engine = open_engine(small, asked)
    assert engine.name == "openvino int8"
    images = some(6)
    expected = softmax(open_engine(small, ClassifySettings("cpu", engine="torch")).run(images).logits)
    found = softmax(engine.run(images).logits)
    assert np.abs(found - expected).max() < 0.1
    assert not np.array_equal(found, expected)
    with pytest.raises(UsageError, match="has no patches.zarr"):
        calibration_patches(str(tmp_path / "none"))


def test_openvino_does_not_report() -> None:
    import_openvino()
    assert sys.modules["openvino_telemetry"] is None
    telemetry = sys.modules["openvino.tools.ovc"].telemetry
    assert type(telemetry).__module__ == "openvino.tools.ovc.telemetry_stub"


# What can be asked for


def test_a_precision_that_a_network_does_not_bear_is_told(small: Path) -> None:
    assert "Typed in int8, as was asked for: of 3,727 real cells 4.8 %" in caution("efficientnet_lite0", "openvino int8")
    assert "0.7 % got another label" in caution("efficientnet_lite0", "torch bfloat16")
    assert caution("efficientnet_lite0", "openvino float32") == caution("resnext50_32x4d", "openvino int8") == ""
    engine = open_engine(small, ClassifySettings("cpu", engine="torch", precision="bfloat16"))
    cheap = Classifier(find_model(DEFAULT_MODEL), engine)
    assert "Typed in bfloat16" in cheap.caution
    assert Classifier(small, engine).caution == ""
    assert Classifier(small, engine, 1, First(cheap, 0.98)).caution == cheap.caution


@pytest.mark.parametrize(
    ("asked", "device", "message"),
    [
        ({"engine": "openvino"}, "cuda", "runs on the CPU, not on cuda"),
        ({"engine": "torch", "precision": "int8"}, "cpu", "does not compute in int8"),
        ({"engine": "onnxruntime", "precision": "bfloat16"}, "cpu", "does not compute in bfloat16; it does in float32"),
    ],
)
def test_what_an_engine_cannot_do_is_refused(asked: dict[str, Any], device: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        choose_engine(ClassifySettings(**asked), device)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"deterministic": True, "engine": "openvino"}, "deterministic typing is torch in float32"),
        ({"deterministic": True, "precision": "bfloat16"}, "deterministic typing is torch in float32"),
        ({"precision": "int8"}, "belong together"),
        ({"calibration": "somewhere"}, "belong together"),
        ({"cascade_threshold": 0.4}, "must lie in 0.5-1"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(asked: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        check_settings(ClassifySettings(**asked))


def test_auto() -> None:
    assert choose_engine(ClassifySettings(), "cpu") == "openvino"
    assert choose_engine(ClassifySettings(), "cuda:1") == "torch"
    assert choose_engine(ClassifySettings(deterministic=True), "cpu") == "torch"


def test_auto_does_without_openvino(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    assert open_engine(small, ClassifySettings("cpu")).name == "torch float32"
    with pytest.raises(UsageError, match="pip install openvino"):
        open_engine(small, ClassifySettings("cpu", engine="openvino"))


def test_auto_says_where_openvino_does_not_load(
    small: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken() -> Any:
        raise UsageError("--engine openvino: it cannot be used here (its libraries are too new)")

    monkeypatch.setattr("slidescreen.engines.openvino_engine.import_openvino", broken)
    monkeypatch.setattr(logging.getLogger("slidescreen"), "propagate", True)
    assert open_engine(small, ClassifySettings("cpu")).name == "torch float32"
    assert "too new): torch is used" in caplog.text
    with pytest.raises(UsageError, match="does not compute in int8"):
        open_engine(small, ClassifySettings("cpu", precision="int8", calibration="somewhere"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_tensorrt_without_a_gpu_is_refused(small: Path) -> None:
    with pytest.raises(UsageError, match="needs an NVIDIA GPU"):
        open_engine(small, ClassifySettings("cpu", engine="tensorrt"))


def test_deterministic(small: Path) -> None:
    images = some(5)
    found = [open_engine(small, ClassifySettings("cpu", deterministic=True)) for _ in range(2)]
    assert found[0].name == "torch float32, deterministic"
    assert np.array_equal(found[0].run(images).logits, found[1].run(images).logits)


# The cache of what was compiled


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SLIDESCREEN_CACHE", str(tmp_path / "cache"))
    assert cache_folder() == tmp_path / "cache"
    return tmp_path / "cache"


def never() -> bytes:
    raise AssertionError("it was kept")


def kept_as(content: bytes) -> Callable[[], bytes]:
    return lambda: content


def test_what_was_compiled_is_kept(cache: Path) -> None:
    assert compiled({"weights": "a"}, kept_as(b"one"), bytes.decode) == "one"
    assert compiled({"weights": "a"}, never, bytes.decode) == "one"
    assert compiled({"weights": "b"}, kept_as(b"two"), bytes.decode) == "two"
    assert len(list(cache.iterdir())) == 2


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty"])
def test_damage_is_no_error(cache: Path, damage: str) -> None:
    compiled({"weights": "a"}, kept_as(bytes(1000)), len)
    (path,) = cache.glob(f"*{SUFFIX}")
    whole = path.read_bytes()
    path.write_bytes({"cut": whole[:500], "flipped": whole[:-1] + b"x", "empty": b""}[damage])
    assert compiled({"weights": "a"}, kept_as(b"anew"), len) == 4
    assert compiled({"weights": "a"}, never, len) == 4


def test_what_cannot_be_used_is_compiled_again(cache: Path) -> None:
    def use(content: bytes) -> bytes:
        if content == b"old":
            raise RuntimeError("made by another version")
        return content

    compiled({"weights": "a"}, kept_as(b"old"), bytes)
    assert compiled({"weights": "a"}, kept_as(b"new"), use) == b"new"


def test_a_cache_that_cannot_be_written_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("SLIDESCREEN_CACHE", str(tmp_path / "file" / "cache"))
    assert compiled({"weights": "a"}, kept_as(b"one"), bytes) == b"one"


def test_a_cache_that_can_only_be_read_is_used(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled({"weights": "a"}, kept_as(b"one"), bytes)

    def refused(_: Path) -> None:
        raise PermissionError

    monkeypatch.setattr("os.utime", refused)
    assert compiled({"weights": "a"}, never, bytes) == b"one"


def test_what_a_killed_process_left_goes_after_a_day(cache: Path) -> None:
    compiled({"weights": "a"}, kept_as(b"one"), bytes)
    old, new = (cache / f".x{SUFFIX}.{pid}-0" for pid in (1, 2))
    for path in (old, new):
        path.write_bytes(b"half")
    os.utime(old, (0, 0))
    compiled({"weights": "b"}, kept_as(b"two"), bytes)
    assert not old.exists()
    assert new.exists()


def test_files_that_were_not_used_for_longest_go(cache: Path) -> None:
    for i in range(20):
        compiled({"weights": str(i)}, kept_as(b"%d" % i), bytes)
    assert len(list(cache.iterdir())) == 12


def _compile_often(number: int, gate: Any, results: Any) -> None:
    gate.wait()
    found = {
        compiled({"weights": str(i % 3)}, kept_as(bytes([i % 3]) * 300_000), bytes) == bytes([i % 3]) * 300_000
        for i in range(60)
    }
    results.put((number, found))


def test_processes_side_by_side(cache: Path) -> None:
    context = multiprocessing.get_context("fork")
    gate, results = context.Barrier(3), context.Queue()
    processes = [context.Process(target=_compile_often, args=(i, gate, results)) for i in range(3)]
    for process in processes:
        process.start()
    told = [results.get(timeout=60) for _ in processes]
    for process in processes:
        process.join()
    assert all(found == {True} for _, found in told)
    assert len(list(cache.iterdir())) == 3


# A cheaper model first


def test_the_cheaper_model_settles_mature_cells_only(small: Path) -> None:
    card = load_card(find_model(DEFAULT_MODEL))

    class Said:
        """Says the class whose number is in the first px, surely where the second px is 255."""

        name, device, batch_size = "said", "cpu", 4

        def __init__(self, card: ModelCard, extra: float) -> None:
            self.card, self.extra, self.seen = card, extra, 0

        def run(self, patches: NDArray[np.uint8]) -> Outputs:
            self.seen += len(patches)
            logits = np.zeros((len(patches), 15), np.float32)
            logits[np.arange(len(patches)), patches[:, 0, 0, 0]] = np.where(patches[:, 0, 1, 0] == 255, 9, 2) + self.extra
            return Outputs(logits, np.zeros((len(patches), 2), np.float32))

    kinds = [("NGS", 255), ("MYO", 255), ("NGS", 0), ("LYT", 255), ("LYA", 255)]
    patches = np.zeros((5, 400, 400, 3), np.uint8)
    for patch, (code, sure) in zip(patches, kinds, strict=True):
        patch[0, 0, 0], patch[0, 1, 0] = card.classes.index(code), sure
    cheap, full = Said(card, 0.0), Said(card, 1.0)
    classifier = Classifier(small, full, first=First(Classifier(small, cheap), 0.98))
    found = classifier.judge(patches)
    assert (cheap.seen, full.seen) == (5, 3)
    early, late = (softmax(engine.run(patches).logits) for engine in (cheap, full))
    assert np.array_equal(found.probabilities[[0, 3]], early[[0, 3]])
    assert np.array_equal(found.probabilities[[1, 2, 4]], late[[1, 2, 4]])
    assert classifier.told == "cpu, said, after small"
    only = classifier.judge(patches[[0, 3]])
    assert np.array_equal(only.probabilities, early[[0, 3]])
    assert full.seen == 3 + 5


def test_what_the_cheaper_model_finds_foreign_is_shown_to_the_full_one() -> None:
    classifier = load_card(find_model(DEFAULT_MODEL))
    p = np.zeros((2, 15), np.float32)
    p[:, classifier.classes.index("NGS")] = 1
    first = First(cast(Any, type("Stub", (), {"card": classifier})()), 0.98)
    assert first.settles(Judgement(p, np.array([-0.1, 0.1], np.float32))).tolist() == [True, False]


def test_agreement_on_real_cells(real_images: Path) -> None:
    """OpenVINO on 16 real cells of the target domain; all of them, and 2,000 others, and the other engines are measured by `benchmarks/agreement.py`."""
    from slidescreen.patches import patch_of_image
    from slidescreen.slide import read_image

    with (real_images / "cells" / "cells.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["source"] == "lmu"][::120][:16]
    cells = np.stack([patch_of_image(read_image(real_images / "cells" / row["file"]), float(row["um_per_px"])) for row in rows])
    folder = find_model(DEFAULT_MODEL)
    expected = load_classifier(folder, ClassifySettings("cpu", engine="torch")).probabilities(cells)
    found = load_classifier(folder, ClassifySettings("cpu", engine="openvino")).probabilities(cells)
    blast = [load_card(folder).classes.index(code) for code in ("MYO", "MOB")]
    assert (found.argmax(1) == expected.argmax(1)).mean() >= 0.9
    assert np.abs(found[:, blast].sum(1) - expected[:, blast].sum(1)).max() <= 0.03
