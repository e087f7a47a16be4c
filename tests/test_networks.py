import math
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional
from torchvision.models import resnext50_32x4d

from slidescreen.errors import ModelError
from slidescreen.model import models_folder
from slidescreen.networks import NETWORKS, Matek2019, SameConv2d, _same_padding, build_network, start_from_imagenet


@pytest.mark.parametrize("name", list(NETWORKS))
def test_every_network_types_patches_of_several_sizes_into_15_classes(name: str) -> None:
    torch.manual_seed(0)
    network = build_network(name).eval()
    with torch.inference_mode():
        for side in (64, 97):
            logits = network(torch.rand(2, 3, side, side))
            assert logits.shape == (2, 15)
            assert torch.isfinite(logits).all()
            assert not torch.allclose(logits[0], logits[1])


def test_the_number_of_classes_is_free() -> None:
    with torch.inference_mode():
        assert build_network("matek2019", 5).eval()(torch.rand(1, 3, 32, 32)).shape == (1, 5)
        assert build_network("sequential", 5).eval()(torch.rand(1, 3, 32, 32)).shape == (1, 5)


def test_an_unknown_architecture_is_refused_with_the_known_ones() -> None:
    with pytest.raises(
        ModelError, match=r"'vgg' is not known \(known: resnext50_32x4d, efficientnet_lite0, matek2019, sequential\)"
    ):
        build_network("vgg")


def test_key_names_of_resnext50_are_torchvisions() -> None:
    theirs = resnext50_32x4d(weights=None).state_dict()
    ours = build_network("resnext50_32x4d").state_dict()
    assert list(ours) == list(theirs)
    assert [k for k in ours if ours[k].shape != theirs[k].shape] == ["fc.weight", "fc.bias"]


def test_same_padding_is_tensorflows() -> None:
    """400 -> 200 with a 7 x 7 kernel pads 2 before and 3 after; 3 x 3 with stride 2 on an even size pads 0 and 1, on an odd 1 and 1."""
    for size, kernel, stride, before, after in (
        (400, 7, 2, 2, 3),
        (200, 3, 2, 0, 1),
        (25, 3, 2, 1, 1),
        (25, 3, 1, 1, 1),
        (50, 1, 2, 0, 0),
    ):
        padded = _same_padding(torch.ones(1, 1, size, size), kernel, stride)
        expected = np.pad(np.ones((size, size), np.float32), (before, after))
        assert np.array_equal(padded[0, 0].numpy(), expected), (size, kernel, stride)
    convolution = SameConv2d(1, 1, 3, 2)
    nn.init.ones_(convolution.weight)
    assert convolution(torch.ones(1, 1, 4, 4)).detach().int().tolist() == [[[[9, 6], [6, 4]]]]


def test_the_published_variant_is_as_published() -> None:
    network = build_network("matek2019")
    assert isinstance(network, Matek2019)
    convolutions = [m for m in network.modules() if isinstance(m, nn.Conv2d)]
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    assert sum(m.groups for m in convolutions) == 549
    assert len(norms) == 53
    assert all(m.bias is not None and not m.bias.any() for m in convolutions)
    assert {(m.eps, m.momentum) for m in norms} == {(1e-3, 0.01)}
    assert {m.groups for m in convolutions} == {1, 32}
    assert [len(b.conv2.stride) and b.conv2.stride[0] for b in network.blocks] == [1] * 3 + [2, 1, 1, 1] + [2] + [1] * 5 + [
        2,
        1,
        1,
    ]
    assert [i for i, b in enumerate(network.blocks) if b.shortcut] == [0, 3, 7, 13]
    assert network.dense.weight.shape == (16, 2048)


def test_two_kinds_of_erythroblast_become_the_sum_of_their_probabilities() -> None:
    network = build_network("matek2019").eval()
    raw: list[torch.Tensor] = []
    network.dense.register_forward_hook(lambda _m, _i, output: raw.append(output))
    with torch.inference_mode():
        merged = functional.softmax(network(torch.rand(3, 3, 64, 64)), 1)
        sixteen = functional.softmax(raw[0], 1)
    expected = torch.cat((sixteen[:, :1], sixteen[:, 1:2] + sixteen[:, 2:3], sixteen[:, 3:]), 1)
    assert torch.allclose(merged, expected, atol=1e-6)


def test_first_weights_of_the_published_variant_are_keras_ones() -> None:
    """Glorot uniform of each of the 32 convolutions by itself: 4 channels in, 4 out."""
    torch.manual_seed(0)
    weight = build_network("matek2019").blocks[0].conv2.weight
    limit = math.sqrt(6 / (9 * 4 + 9 * 4))
    assert 0.99 * limit < weight.abs().max() <= limit


def imagenet(path: Path, **changes: torch.Tensor | None) -> Path:
    torch.manual_seed(1)
    state = resnext50_32x4d(weights=None).state_dict()
    for key, value in changes.items():
        if value is None:
            del state[key]
        else:
            state[key] = value
    save_file(state, path)
    return path


def test_imagenet_weights_start_a_resnext50_and_their_head_is_dropped(tmp_path: Path) -> None:
    path = imagenet(tmp_path / "imagenet.safetensors")
    network = start_from_imagenet(path)
    torch.manual_seed(1)
    theirs = resnext50_32x4d(weights=None).state_dict()
    state = network.state_dict()
    assert state["fc.weight"].shape == (15, 2048)
    assert all(torch.equal(state[k], v) for k, v in theirs.items() if not k.startswith("fc."))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"layer1.0.conv2.weight": torch.zeros(128, 8, 3, 3)},
            r"layer layer1\.0\.conv2\.weight has shape \(128, 8, 3, 3\) in place of \(128, 4, 3, 3\)",
        ),
        ({"layer2.1.bn1.bias": None}, r"layer layer2\.1\.bn1\.bias is missing"),
        ({"extra.weight": torch.zeros(2)}, r"layer extra\.weight is unknown"),
    ],
)
def test_imagenet_weights_that_do_not_fit_are_refused_by_layer(
    tmp_path: Path, changes: dict[str, torch.Tensor | None], message: str
) -> None:
    with pytest.raises(ModelError, match=message):
        start_from_imagenet(imagenet(tmp_path / "w.safetensors", **changes))


def test_the_imagenet_weights_that_come_along_start_an_efficientnet() -> None:
    path = models_folder() / "imagenet" / "efficientnet_lite0.safetensors"
    network = start_from_imagenet(path, 15, "efficientnet_lite0").eval()
    assert torch.equal(network.state_dict()["features.0.weight"], load_file(path)["features.0.weight"].float())
    assert network.state_dict()["fc.weight"].shape == (15, 1280)
    with torch.inference_mode():  # features that mean something differ between a dark disc on light ground and its negative
        y, x = torch.meshgrid(torch.linspace(-1, 1, 96), torch.linspace(-1, 1, 96), indexing="ij")
        disc = (2 * (x**2 + y**2 > 0.25).float() - 1).expand(2, 3, 96, 96).clone()
        disc[1] *= -1
        features = network.get_submodule("features")(disc)
    assert features.shape == (2, 1280)
    assert features.min() >= 0
    assert features.max() <= 6
    assert not torch.allclose(features[0], features[1], atol=0.1)


def test_an_efficientnet_learns_in_bfloat16_what_plain_convolutions_would_teach_it(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    network = start_from_imagenet(models_folder() / "imagenet" / "efficientnet_lite0.safetensors", 15, "efficientnet_lite0")
    network.get_submodule("dropout").eval()
    x, label = torch.rand(4, 3, 64, 64), torch.arange(4)
    taken, found = 0, []

    def plain(x: torch.Tensor, weight: torch.Tensor, stride: int) -> torch.Tensor:
        nonlocal taken
        taken += 1
        return functional.conv2d(x, weight, stride=stride, groups=weight.shape[0])

    for _ in "ab":
        network.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            logits = network(x)
        functional.cross_entropy(logits.float(), label).backward()
        found.append(torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None]))
        monkeypatch.setattr("slidescreen.networks.depthwise", plain)
    assert taken == 16  # blocks
    assert torch.cosine_similarity(found[0], found[1], 0) > 0.999


def test_a_pickle_is_refused_as_imagenet_weights(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(3)}, tmp_path / "resnext50.pth")
    with pytest.raises(ModelError, match="is not a safetensors file"):
        start_from_imagenet(tmp_path / "resnext50.pth")
