"""Who is tested where."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slidescreen.errors import UsageError
from slidescreen.training.classifier.folds import split_images
from slidescreen.training.classifier.images import LabelledImage, list_images


def images(spec: list[tuple[str, str]]) -> list[LabelledImage]:
    """(label, patient) -> images."""
    return [LabelledImage(Path(f"{i}.png"), f"{i}.png", label, 0.1, "here", who) for i, (label, who) in enumerate(spec)]


def test_stratified_folds_hold_a_fifth_of_each_class() -> None:
    listed = images([("MYO", "")] * 50 + [("LYT", "")] * 103)
    split = split_images(listed, "stratified", 5, 0)
    for fold in range(1, 6):
        counts = Counter(listed[i].label for i in split.test(fold))
        assert counts["MYO"] == 10
        assert counts["LYT"] in (20, 21)
        assert set(split.test(fold)).isdisjoint(split.train(fold))
    assert sorted(np.concatenate([split.test(k) for k in range(1, 6)])) == list(range(153))
    assert split.notes == ()


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["MYO", "LYT", "NGS"]), st.sampled_from("ABCDEFGH")), min_size=60, max_size=120))
def test_no_patient_is_in_two_folds(spec: list[tuple[str, str]]) -> None:
    if len({who for _, who in spec}) < 4 or len({label for label, _ in spec}) < 2:
        return
    split = split_images(images(spec), "patient", 4, 1)
    folds: dict[str, set[int]] = {}
    for (_, who), fold in zip(spec, split.fold.tolist(), strict=True):
        folds.setdefault(who, set()).add(fold)
    assert all(len(found) == 1 for found in folds.values())


def test_patients_who_share_an_image_stay_together_and_few_without_a_patient_are_dealt_out() -> None:
    spec = [("MYO" if i % 2 else "LYT", f"P{i // 10}") for i in range(100)] + [("MYO", ""), ("LYT", ""), ("NGS", "")]
    split = split_images(images(spec), "patient", 5, 0, {55: 5, 101: 7})
    assert len({int(split.fold[i]) for i in (*range(10), *range(50, 60), 101)}) == 1
    assert all(len(set(split.fold[10 * p : 10 * p + 10].tolist())) == 1 for p in range(10))
    assert split.fold.min() == 1


def test_a_split_by_source_keeps_its_folds_and_tells_of_twins() -> None:
    listed = [replace(im, source="ab"[i % 2]) for i, im in enumerate(images([("MYO", ""), ("LYT", "")] * 10))]
    split = split_images(listed, "source", 5, 0, {3: 2, 5: 1})
    assert split.fold.tolist() == [1, 2] * 10
    assert any(note.startswith("1 images show the same") for note in split.notes)


def test_the_split_says_where_it_is_not_even() -> None:
    spec = [("MYO", f"P{i % 5}") for i in range(50)] + [("LYT", "P0")] * 40 + [("NGS", "")] * 10
    split = split_images(images(spec), "patient", 5, 0)
    assert any("10 images name no patient" in note for note in split.notes)
    uneven = [note for note in split.notes if note.startswith("LYT is uneven")]
    assert len(uneven) == 1
    assert "40" in uneven[0]


def test_by_source_each_source_is_tested_by_a_model_that_never_saw_it() -> None:
    listed = [replace(im, source="abc"[i % 3]) for i, im in enumerate(images([("MYO", "P"), ("LYT", "")] * 9))]
    split = split_images(listed, "source", 5, 0)
    assert (split.kind, split.folds) == ("source", 3)
    assert [{listed[i].source for i in split.test(k)} for k in (1, 2, 3)] == [{"a"}, {"b"}, {"c"}]
    assert {listed[i].source for i in split.train(2)} == {"a", "c"}
    with pytest.raises(UsageError, match="two sources or more"):
        split_images(listed[::3], "source", 5, 0)


def test_folds_from_a_file(tmp_path: Path) -> None:
    listed, path = images([("MYO", ""), ("LYT", "")] * 4), tmp_path / "split.csv"
    path.write_text("file,fold\n1.png,1\n5.png,1\n2.png,2\n")
    split = split_images(listed, str(path), 5, 0)
    assert (split.kind, split.folds) == ("file", 2)
    assert split.fold.tolist() == [0, 1, 2, 0, 0, 1, 0, 0]
    assert split.train(1).tolist() == [0, 2, 3, 4, 6, 7]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file,fold\n9.png,1\n", "names 9.png, which is not among the images"),
        ("file,fold\n1.png,one\n", "is not a split"),
        ("file\n1.png\n", "is not a split"),
        ("file,fold\n1.png,-1\n", "counted from 1"),
        ("file,fold\n", "at least one image needs one"),
    ],
)
def test_files_that_are_no_split(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "split.csv").write_text(text)
    with pytest.raises(UsageError, match=message):
        split_images(images([("MYO", ""), ("LYT", "")] * 4), str(tmp_path / "split.csv"), 5, 0)
    with pytest.raises(UsageError, match="use one of stratified, patient, source"):
        split_images(images([("MYO", ""), ("LYT", "")] * 4), "patients", 5, 0)


def test_folds_of_a_file_have_no_gap(tmp_path: Path) -> None:
    (tmp_path / "split.csv").write_text("file,fold\n0.png,1\n1.png,3\n")
    with pytest.raises(UsageError, match="no image is tested in fold 2"):
        split_images(images([("MYO", ""), ("LYT", ""), ("LYT", "")]), str(tmp_path / "split.csv"), 2, 0)


def test_the_same_seed_deals_alike() -> None:
    listed = images([("MYO", ""), ("LYT", "")] * 20)
    first, again, other = (split_images(listed, "stratified", 4, seed).fold for seed in (3, 3, 4))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize(
    ("spec", "kind", "folds", "message"),
    [
        ([("MYO", "A")] * 9, "stratified", 3, "all 9 images are of class MYO"),
        ([("MYO", "A"), ("LYT", "B")] * 9, "patient", 3, "2 patients cannot be dealt out to 3 folds"),
        ([("MYO", ""), ("LYT", "")] * 9, "patient", 2, "0 patients"),
        ([("MYO", ""), ("LYT", "")], "stratified", 3, "use fewer folds"),
        ([("MYO", ""), ("LYT", "")] * 2, "stratified", 3, "use fewer folds"),
        ([("MYO", ""), ("LYT", "")], "stratified", 1, "at least 2"),
    ],
)
def test_what_cannot_be_split(spec: list[tuple[str, str]], kind: str, folds: int, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        split_images(images(spec), kind, folds, 0)  # type: ignore[arg-type]


def test_real_patients_stay_together(real_images: Path) -> None:
    listed = [i for i in list_images(real_images / "cells") if i.label != "-"]
    split = split_images(listed, "patient", 5, 0)
    folds: dict[str, set[int]] = {}
    for image, fold in zip(listed, split.fold.tolist(), strict=True):
        if image.patient:
            folds.setdefault(image.patient, set()).add(fold)
    assert len(folds) == 73
    assert all(len(found) == 1 for found in folds.values())
    for fold in range(1, 6):
        blasts = sum(listed[i].label == "MYO" and listed[i].source == "deepapl" for i in split.test(fold))
        assert 200 < blasts < 500
