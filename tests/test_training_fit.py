"""The loop: repeatable, resumable, honest about what goes wrong; what is drawn and how images are changed."""

import json
import math
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from cell_images import COLOURS, paint_cell, write_table
from safetensors.torch import load_file
from torch import nn

from slidescreen.errors import ModelError, OutputError, TrainingError, UsageError
from slidescreen.model import models_folder
from slidescreen.records import PATCH_PX, PATCH_UM
from slidescreen.taxonomy import CODES
from slidescreen.training.classifier import fit as loop
from slidescreen.training.classifier.augment import Changes, change, draw_changes
from slidescreen.training.classifier.images import list_images
from slidescreen.training.classifier.packed import PackedImages, central_square, pack_images
from slidescreen.training.classifier.recipe import Recipe, load_recipe
from slidescreen.training.classifier.run import starter

EVERYTHING = {"label_smoothing": 0.1, "average": 0.9, "mixup": 0.2, "scale": 0.2, "colour": 0.2, "stain": 0.2, "blur": 0.5}
EVERYTHING |= {"grey": 0.5, "source_prior": 1.0}


def tiny() -> nn.Module:
    """A network with all that a large one has: convolution, normalisation, drop-out."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 2),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Dropout(0.1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 15),
    )


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> PackedImages:
    folder = tmp_path_factory.mktemp("cells")
    return pack_images(list_images(write_table(folder / "set", each=6)), 32, folder / "packed")


@pytest.fixture
def lesson(packed: PackedImages) -> loop.Lesson:
    labels = np.repeat([CODES.index(code) for code in COLOURS], 6)
    return loop.Lesson(packed, labels, np.arange(18) % 2, np.arange(18))


RECIPE = Recipe(input_px=32, epochs=3, per_class=16, batch_size=8, learning_rate=0.01, precision="float32", patience=0)


def losses(folder: Path) -> list[float]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


def same(first: nn.Module, second: nn.Module) -> bool:
    a, b = first.state_dict(), second.state_dict()
    return all(torch.equal(a[k], b[k]) for k in a)


def test_the_first_losses_are_what_they_always_were(
    lesson: loop.Lesson, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "TELL_EVERY", 1)
    loop.fit(tiny(), lesson, replace(RECIPE, epochs=1), tmp_path, "cpu")
    assert losses(tmp_path)[:5] == pytest.approx(GOLDEN, rel=1e-3)


@pytest.mark.parametrize("changes", [{}, EVERYTHING | {"schedule": "cosine", "optimizer": "sgd"}])
def test_a_killed_run_ends_as_an_uninterrupted_one(
    lesson: loop.Lesson, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, object]
) -> None:
    recipe = replace(RECIPE, **changes)
    monkeypatch.setattr(loop, "TELL_EVERY", 2)
    whole = loop.fit(tiny(), lesson, recipe, tmp_path / "whole", "cpu")
    monkeypatch.setattr(loop, "SAVE_EVERY_S", 0.0)
    for killed_at in (3, 8, 13):

        def blow(told: loop.Step, at: int = killed_at) -> None:
            if told.step >= at:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            loop.fit(tiny(), lesson, recipe, tmp_path / "parts", "cpu", blow)
    parts = loop.fit(tiny(), lesson, recipe, tmp_path / "parts", "cpu")
    assert same(whole, parts)
    assert losses(tmp_path / "whole") == losses(tmp_path / "parts")


def test_another_seed_is_another_training_and_another_checkpoint(lesson: loop.Lesson, tmp_path: Path) -> None:
    first = loop.fit(tiny(), lesson, RECIPE, tmp_path / "a", "cpu")
    assert same(first, loop.fit(tiny(), lesson, RECIPE, tmp_path / "b", "cpu"))
    assert not same(first, loop.fit(tiny(), lesson, replace(RECIPE, seed=1), tmp_path / "c", "cpu"))
    with pytest.raises(ModelError, match="checkpoint of other settings"):
        loop.fit(tiny(), lesson, replace(RECIPE, seed=1), tmp_path / "a", "cpu")


def test_it_learns_what_can_be_learned(lesson: loop.Lesson, tmp_path: Path) -> None:
    told: list[loop.Step] = []
    network = loop.fit(tiny(), lesson, replace(RECIPE, epochs=20), tmp_path, "cpu", told.append)
    assert told[-1].step == told[-1].total == 20 * 6
    assert told[-1].loss < 0.5 < 2 < told[0].loss
    assert not network.training


def test_a_loss_that_is_no_number_ends_the_training_and_keeps_the_checkpoint(
    lesson: loop.Lesson, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learn = loop._learn

    def spoilt(*arguments: object) -> torch.Tensor:
        loss = learn(*arguments)  # type: ignore[arg-type]
        return loss * math.nan if arguments[4] == 8 else loss  # the step

    monkeypatch.setattr(loop, "_learn", spoilt)
    with pytest.raises(TrainingError, match=r"loss is nan at step 12; .* lower learning_rate"):
        loop.fit(tiny(), lesson, RECIPE, tmp_path, "cpu")
    monkeypatch.setattr(loop, "_learn", learn)
    kept = loop.fit(tiny(), lesson, RECIPE, tmp_path, "cpu")  # goes on from the epoch before
    assert all(torch.isfinite(v).all() for v in kept.state_dict().values())


def test_a_full_disk_is_named_and_the_checkpoint_before_it_kept(
    lesson: loop.Lesson, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop.fit(tiny(), lesson, RECIPE, tmp_path, "cpu")
    before = (tmp_path / loop.LAST).read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    (tmp_path / loop.LAST).rename(tmp_path / "kept")
    loop.fit(tiny(), lesson, replace(RECIPE, epochs=1), tmp_path, "cpu")
    first = (tmp_path / loop.LAST).read_bytes()
    (tmp_path / "kept").unlink()
    monkeypatch.setattr("slidescreen.training.checkpoint.save_file", full)
    with pytest.raises(OutputError, match="No space left on device.*the checkpoint before it is kept"):
        loop.fit(tiny(), lesson, RECIPE, tmp_path / "other", "cpu")
    assert not (tmp_path / "other" / loop.LAST).exists()
    assert (tmp_path / loop.LAST).read_bytes() == first != before
    assert not [p for p in (tmp_path / "other").iterdir() if p.name.startswith(".")]


def test_a_damaged_checkpoint_is_named(lesson: loop.Lesson, tmp_path: Path) -> None:
    (tmp_path / loop.LAST).write_bytes(b"no checkpoint")
    with pytest.raises(ModelError, match="cannot be read as a checkpoint"):
        loop.fit(tiny(), lesson, RECIPE, tmp_path, "cpu")


def test_training_stops_when_the_loss_stalls() -> None:
    assert not loop.stalled([3, 2, 1], 2)
    assert not loop.stalled([3, 2, 1.99, 1.9], 2)
    assert loop.stalled([3, 2, 1.99, 1.99], 2)
    assert loop.stalled([1, 2, 2], 2)
    assert not loop.stalled([1, 2, 2], 0)
    assert not loop.stalled([1, 1], 2)


def test_every_class_is_shown_equally_often(lesson: loop.Lesson) -> None:
    few = replace_rows(lesson, [0, 1, 2, 6, 12, 13])  # three MYO, one LYT, two NGS
    rows = loop.draw_epoch(few, replace(RECIPE, per_class=30), 0)
    counts = Counter(rows.tolist())
    assert counts == {0: 10, 1: 10, 2: 10, 6: 30, 12: 15, 13: 15}
    assert np.array_equal(rows, loop.draw_epoch(few, replace(RECIPE, per_class=30), 0))
    assert not np.array_equal(rows, loop.draw_epoch(few, replace(RECIPE, per_class=30), 1))
    by_source = Counter(loop.draw_epoch(few, replace(RECIPE, per_class=30, source_balance=1.0), 0).tolist())
    assert by_source[1] == 15
    assert by_source[0] + by_source[2] == 15


def test_classes_and_sources_share_an_epoch_by_their_exponents(lesson: loop.Lesson) -> None:
    few = replace_rows(lesson, [0, 1, 2, 3, 6, 12, 13, 14, 15])  # four MYO, one LYT, four NGS
    half = Counter(loop.draw_epoch(few, replace(RECIPE, per_class=50, class_balance=0.5), 0).tolist())
    assert half[6] == 30  # 150 shared as 2 : 1 : 2
    assert sum(half[i] for i in range(4)) == 60
    as_they_come = Counter(loop.draw_epoch(few, replace(RECIPE, per_class=30, class_balance=0.0), 0).tolist())
    assert set(as_they_come.values()) == {10}
    groups = replace(few, groups=np.array([0, 1, 1, 1] + [0] * 14))
    tempered = Counter(loop.draw_epoch(groups, replace(RECIPE, per_class=40, source_balance=0.5), 0).tolist())
    assert tempered[0] in (14, 15)  # 40 shared as 1 : sqrt 3


def test_what_a_source_says_of_the_class_is_given_away(lesson: loop.Lesson) -> None:
    few = replace_rows(lesson, [0, 1, 2, 3, 6, 7, 12, 13])  # MYO 0-3, LYT 6 and 7, NGS 12 and 13
    groups = replace(few, groups=np.array([0] * 6 + [0] + [1] * 11))  # the first source: all MYO and one LYT
    priors = loop.source_priors(groups, replace(RECIPE, per_class=40, source_prior=1.0))
    myo, lyt, ngs = (int(lesson.labels[i]) for i in (0, 6, 12))
    assert np.allclose(np.exp(priors[0, [myo, lyt]]), (40 / 60, 20 / 60))
    assert np.allclose(np.exp(priors[1, [myo, lyt, ngs]]), (loop.SELDOM, 20 / 60, 40 / 60))
    assert np.allclose(loop.source_priors(groups, replace(RECIPE, per_class=40, source_prior=0.5)), priors / 2)
    assert not loop.source_priors(groups, RECIPE).any()


def test_a_network_that_can_tell_only_the_source_learns_nothing_from_it(lesson: loop.Lesson) -> None:
    """All MYO of one source, all others of another: with the prior the loss starts at its floor and pushes nowhere."""
    groups = replace(lesson, groups=(lesson.labels != lesson.labels[0]).astype(np.int64))
    own = groups.labels[0]
    priors = torch.from_numpy(loop.source_priors(groups, replace(RECIPE, source_prior=1.0)))[:1]
    logits = torch.zeros(1, 15, requires_grad=True)
    plain = torch.zeros(1, 15, requires_grad=True)
    for x, added in ((logits, priors), (plain, torch.zeros_like(priors))):
        torch.nn.functional.cross_entropy(x + added, torch.tensor([own])).backward()
    assert logits.grad is not None
    assert plain.grad is not None
    assert logits.grad.abs().max() < 0.02 < 0.9 < plain.grad.abs().max()


def test_the_first_steps_see_coarser_images(lesson: loop.Lesson, tmp_path: Path) -> None:
    recipe = replace(RECIPE, input_px=48, first_px=32, first_share=0.5)
    assert [loop.side_at(step, 10, recipe) for step in range(10)] == [32] * 5 + [48] * 5
    assert loop.side_at(0, 10, RECIPE) == 32
    seen: list[int] = []
    network = tiny()
    network.register_forward_pre_hook(lambda _network, x: seen.append(x[0].shape[-1]))
    loop.fit(network, lesson, replace(recipe, epochs=2), tmp_path, "cpu")
    assert seen == [32] * 6 + [48] * 6
    with pytest.raises(UsageError, match="between 32 and input_px"):
        replace(RECIPE, first_px=64, first_share=0.5)


def replace_rows(lesson: loop.Lesson, rows: list[int]) -> loop.Lesson:
    return replace(lesson, rows=np.array(rows))


def test_the_learning_rate_rises_and_falls() -> None:
    recipe = replace(RECIPE, schedule="cosine", learning_rate=1.0)
    rates = [loop.learning_rate(step, 1000, recipe) for step in range(1000)]
    assert rates[0] == pytest.approx(0.01)
    assert max(rates) == rates[100] == 1.0
    assert rates[-1] < 1e-4
    assert loop.learning_rate(999, 1000, replace(recipe, schedule="constant")) == 1.0


def image_with_a_mark(side: int) -> torch.Tensor:
    """White, with a dark square to the right of the middle."""
    image = np.full((side, side, 3), 255, np.uint8)
    middle = side // 2
    image[middle - 4 : middle + 4, middle + 10 : middle + 18] = 0
    return torch.from_numpy(image)[None]


def centre_of_mark(x: torch.Tensor) -> tuple[float, float]:
    dark = 1 - x[0].mean(0).numpy()
    row, column = (float((dark.sum(axis) * np.arange(dark.shape[0])).sum() / dark.sum()) for axis in (1, 0))
    return column - (dark.shape[0] - 1) / 2, row - (dark.shape[0] - 1) / 2


def turned(matrix: list[list[float]]) -> tuple[float, float]:
    plain = Changes(np.array([matrix], np.float32), None, None, None, None, None)
    return centre_of_mark(change(image_with_a_mark(80), plain, 64))


def test_turning_flipping_and_scaling_move_a_mark_where_they_should() -> None:
    share = 64 / 80
    assert turned([[share, 0, 0], [0, share, 0]]) == pytest.approx((14, 0), abs=0.6)  # the central 64 px as they are
    assert turned([[-share, 0, 0], [0, share, 0]]) == pytest.approx((-14, 0), abs=0.6)
    assert turned([[0, share, 0], [-share, 0, 0]]) == pytest.approx((0, 14), abs=0.6)
    assert turned([[share / 1.5, 0, 0], [0, share / 1.5, 0]]) == pytest.approx((21, 0), abs=0.6)


def test_drawn_changes_turn_to_all_sides_and_keep_the_size() -> None:
    drawn = draw_changes(np.random.default_rng(0), 400, Recipe(), 0.8).matrix
    angle = np.degrees(np.arctan2(drawn[:, 1, 0], drawn[:, 0, 0]))
    assert np.histogram(angle, 8, (-180, 180))[0].min() > 20
    determinant = drawn[:, 0, 0] * drawn[:, 1, 1] - drawn[:, 0, 1] * drawn[:, 1, 0]
    assert np.abs(determinant) == pytest.approx(0.64, rel=1e-4)
    assert 100 < (determinant < 0).sum() < 300  # mirrored


def test_a_share_of_the_images_is_shown_without_colour() -> None:
    images = torch.from_numpy(np.stack([paint_cell("MYO", i, 48) for i in range(40)]))
    drawn = draw_changes(np.random.default_rng(1), 40, Recipe(input_px=32, grey=0.5), 32 / 48)
    assert drawn.grey is not None
    x = change(images, drawn, 32)
    colourless = (x.amax(1) - x.amin(1)).amax((1, 2)) < 1e-6
    assert np.array_equal(colourless.numpy(), drawn.grey)
    assert 8 < drawn.grey.sum() < 32


def test_colour_changes_stay_in_range_and_are_off_by_default() -> None:
    images = torch.from_numpy(np.stack([paint_cell("MYO", i, 48) for i in range(8)]))
    rng = np.random.default_rng(1)
    plain = draw_changes(rng, 8, Recipe(input_px=32), 32 / 48)
    assert plain.light is plain.gain is plain.density is plain.blur is plain.grey is None
    strong = draw_changes(rng, 8, Recipe(input_px=32, colour=1.0, stain=1.0, blur=1.0), 32 / 48)
    x = change(images, strong, 32)
    assert x.shape == (8, 3, 32, 32)
    assert 0 <= float(x.min()) <= float(x.max()) <= 1
    assert float((x - change(images, replace_matrix(plain, strong), 32)).abs().mean()) > 0.02


def replace_matrix(changes: Changes, other: Changes) -> Changes:
    return replace(changes, matrix=other.matrix)


def test_images_are_packed_at_one_scale_and_mirrored_out() -> None:
    image = paint_cell("MYO", 0, 400)
    assert np.array_equal(central_square(image, PATCH_UM / PATCH_PX, PATCH_PX, 400), image)
    wide = central_square(image, PATCH_UM / PATCH_PX, PATCH_PX, 440)
    assert np.array_equal(wide[20:-20, 20:-20], image)
    assert np.array_equal(wide[:20], wide[21:41][::-1])
    small = central_square(image, PATCH_UM / PATCH_PX, 100, 100)
    assert small.shape == (100, 100, 3)
    assert abs(float(small.mean()) - float(image.mean())) < 0.5
    doubled = central_square(image[100:300, 100:300], 2 * PATCH_UM / PATCH_PX, PATCH_PX, 400)
    assert doubled.shape == (400, 400, 3)


def test_the_packed_store(tmp_path: Path, packed: PackedImages) -> None:
    images = list_images(write_table(tmp_path / "set", each=6))
    again = pack_images(images, 32, tmp_path / "packed")
    assert len(again) == 18
    assert again.sha256 == packed.sha256
    assert again.shape[1] == math.floor(120 * 0.29 * 32 / PATCH_UM)
    rows = again.rows([17, 0, 17])
    assert np.array_equal(rows[0], rows[2])
    assert not np.array_equal(rows[0], rows[1])
    stamp = (tmp_path / "packed" / "key.json").stat().st_mtime_ns
    pack_images(images, 32, tmp_path / "packed")
    assert (tmp_path / "packed" / "key.json").stat().st_mtime_ns == stamp  # taken as it is
    images[1].path.write_bytes(images[0].path.read_bytes())
    other = pack_images(images, 32, tmp_path / "packed")
    assert other.sha256 != packed.sha256
    assert other.twin_of == {1: 0}


def test_an_image_that_cannot_be_read_stops_the_packing_and_leaves_nothing(tmp_path: Path) -> None:
    images = list_images(write_table(tmp_path / "set"))
    images[3].path.write_bytes(b"nothing")
    with pytest.raises(UsageError, match=r"MYO_3.png: not an image that can be read"):
        pack_images(images, 32, tmp_path / "packed")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["set"]


def test_recipes_that_come_along() -> None:
    paper, fast = load_recipe("paper"), load_recipe("fast")
    assert (paper.architecture, paper.input_px, paper.epochs, paper.per_class) == ("matek2019", 400, 15, 10_000)
    beyond = (
        "label_smoothing",
        "average",
        "mixup",
        "scale",
        "colour",
        "stain",
        "blur",
        "grey",
        "source_balance",
        "source_prior",
        "start",
        "first_share",
    )
    assert not any(getattr(paper, name) for name in beyond)
    assert any(getattr(fast, name) for name in beyond)
    begun, given = starter(fast)().state_dict(), load_file(models_folder() / fast.start)
    assert torch.equal(begun["features.0.weight"], given["features.0.weight"].float())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epoch = 3", "did you mean epochs"),
        ("epochs = 0", r"r\.toml: epochs = 0: must be at least 1"),
        ("epochs = 1.5", "must be a whole number"),
        ('architecture = "vgg"', "use one of resnext50_32x4d"),
        ("mixup = 2.0", "mixup = 2: must lie in 0-1"),
        ("input_px = 8", "must lie in 32-1024"),
        ("batch_size = 1", "needs company"),
        ("epochs = ", "not valid TOML"),
    ],
)
def test_wrong_recipes(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "r.toml").write_text(text)
    with pytest.raises(UsageError, match=message):
        load_recipe(str(tmp_path / "r.toml"))


def test_an_unknown_recipe_is_named() -> None:
    with pytest.raises(UsageError, match="use one of fast, paper"):
        load_recipe("quick")


GOLDEN = [2.74068, 2.64559, 2.62832, 2.55047, 2.46758]
"""Of the recipe above, on a CPU in float32."""
