"""Labelled sets in each of their forms, and what is wrong with the wrong ones."""

from pathlib import Path

import numpy as np
import pytest
from cell_images import paint_cell, write_published, write_rows, write_table
from PIL import Image

from slidescreen.errors import UsageError
from slidescreen.taxonomy import CLASS_OF, CODES, LEAVES, merge_rare
from slidescreen.training.classifier.check import NEAR_BITS, check_images
from slidescreen.training.classifier.images import LabelledImage, list_images


def test_the_published_set(tmp_path: Path) -> None:
    images = list_images(write_published(tmp_path / "set"))
    assert len(images) == 15
    first = images[0]
    assert (first.file, first.label, first.um_per_px, first.patient) == ("MYO/MYO_0001.tiff", "MYO", 0.0725, "")
    assert (first.reannotation_1, first.reannotation_2) == ("MYO", "LYT")
    assert (images[1].reannotation_1, images[1].reannotation_2) == ("", "")


def test_the_published_set_without_reannotations(tmp_path: Path) -> None:
    folder = write_published(tmp_path / "set")
    lines = (folder / "annotations.dat").read_text().splitlines()
    (folder / "annotations.dat").write_text("\n".join(" ".join(line.split()[:2]) for line in lines))
    assert {(i.reannotation_1, i.reannotation_2) for i in list_images(folder)} == {("", "")}


def test_a_folder_per_class_needs_the_scale(tmp_path: Path) -> None:
    folder = write_published(tmp_path / "set")
    (folder / "annotations.dat").unlink()
    with pytest.raises(UsageError, match="give --um-per-px"):
        list_images(folder)
    images = list_images(folder, 0.0725)
    assert len(images) == 15
    assert {i.label for i in images} == {"MYO", "LYT", "NGS"}
    assert all(i.source == "set" and i.path.is_file() for i in images)


def test_a_table(tmp_path: Path) -> None:
    folder = write_table(tmp_path / "t", reannotation_1="PMO-F", reannotation_2="nan")
    for given in (folder, folder / "cells.csv"):
        images = list_images(given)
        assert len(images) == 18
        assert {i.patient for i in images} == {"P0", "P1", "P2"}
        assert {(i.reannotation_1, i.reannotation_2) for i in images} == {("PMO", "")}


def test_finer_labels_become_their_class(tmp_path: Path) -> None:
    images = list_images(write_table(tmp_path / "t", label="MYO-A"))
    assert {(i.annotation, i.label) for i in images} == {("MYO-A", "MYO")}


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"label": "XYZ"}, r"cells.csv, line 2: class 'XYZ' is unknown; use one of NGS"),
        ({"um_per_px": "many"}, "um_per_px many must lie in 0-1"),
        ({"um_per_px": "nan"}, "um_per_px nan must lie in 0-1"),
        ({"um_per_px": ""}, "um_per_px is missing"),
        ({"reannotation_1": "blast"}, "class 'blast' is unknown"),
        ({"file": "same.png"}, "same.png is listed twice"),
        ({"file": ""}, "names no file"),
    ],
)
def test_wrong_tables(tmp_path: Path, columns: dict[str, str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        list_images(write_table(tmp_path / "t", **columns))


def test_missing_columns_and_other_wrong_inputs(tmp_path: Path) -> None:
    write_rows(tmp_path / "a.csv", [{"file": "a.png", "type": "MYO"}])
    with pytest.raises(UsageError, match="column label, um_per_px is missing"):
        list_images(tmp_path / "a.csv")
    (tmp_path / "b.csv").write_text("file,label,um_per_px\n")
    with pytest.raises(UsageError, match="lists no images"):
        list_images(tmp_path / "b.csv")
    (tmp_path / "c.csv").write_bytes(b"\xff\xfe\x00file")
    with pytest.raises(UsageError, match="not a CSV file"):
        list_images(tmp_path / "c.csv")
    with pytest.raises(UsageError, match="no such data"):
        list_images(tmp_path / "nowhere")
    with pytest.raises(UsageError, match="no folders named by class"):
        list_images(tmp_path)
    folder = write_published(tmp_path / "set", extra=["MYO/MYO_0009.tiff"])
    with pytest.raises(UsageError, match="line 16: needs a file and a class"):
        list_images(folder)


def test_eighteen_leaves_merge_into_the_fifteen_classes() -> None:
    assert len(LEAVES) == 18
    assert set(CLASS_OF) == set(LEAVES) | set(CODES)
    published = dict.fromkeys(LEAVES, 100) | {"MYO-A": 9, "PMO-A": 3, "PMO-F": 0}
    assert set(merge_rare(published).values()) == set(CODES)
    assert all(merge_rare(published)[leaf] == CLASS_OF[leaf] for leaf in LEAVES)


def test_the_rule_merges_only_what_is_rare() -> None:
    merged = merge_rare(dict.fromkeys(LEAVES, 100) | {"MYO-A": 9})
    assert (merged["MYO-A"], merged["MYO-N"]) == ("MYO", "MYO")
    assert (merged["PMO-A"], merged["PMO-F"]) == ("PMO-A", "PMO-F")
    assert merge_rare(dict.fromkeys(LEAVES, 10)) == {leaf: leaf for leaf in LEAVES}
    assert merge_rare(dict.fromkeys(LEAVES, 9))["LYA"] == "LYA"


def test_check_finds_what_training_would_stumble_over(tmp_path: Path) -> None:
    folder = write_published(tmp_path / "set", extra=["LYT/again.tiff LYT", "NGS/bright.png NGS", "LYT/torn.tiff LYT"])
    twin = (folder / "MYO" / "MYO_0002.tiff").read_bytes()
    (folder / "LYT" / "again.tiff").write_bytes(twin)
    (folder / "LYT" / "torn.tiff").write_bytes(twin[:900])
    bright = np.clip(paint_cell("MYO", 3) * 1.05, 0, 255).astype(np.uint8)
    Image.fromarray(bright).save(folder / "NGS" / "bright.png")
    report = check_images(list_images(folder))
    assert [(i.file, bool(reason)) for i, reason in report.unreadable] == [("LYT/torn.tiff", True)]
    assert [[i.file for i in group] for group in report.duplicates] == [["MYO/MYO_0002.tiff", "LYT/again.tiff"]]
    assert report.contradictions == list(report.duplicates)
    pairs = {(p.first.file, p.second.file): p.bits for p in report.near}
    assert pairs[("MYO/MYO_0003.tiff", "NGS/bright.png")] <= NEAR_BITS
    assert dict(report.sizes) == {(400, 400): 17}
    assert not report.sound


def test_check_of_a_sound_set(tmp_path: Path) -> None:
    report = check_images(list_images(write_table(tmp_path / "t", each=2)))
    assert report.sound
    assert report.annotations == {"MYO": 2, "LYT": 2, "NGS": 2}


def test_a_missing_file_is_named_by_its_reason(tmp_path: Path) -> None:
    report = check_images([LabelledImage(tmp_path / "gone.png", "gone.png", "MYO", 0.1)])
    assert [reason for _, reason in report.unreadable] == ["No such file or directory"]
