"""Models come in as files of which nothing is trusted, whole or not at all."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import socket
import stat
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from slidescreen.cli import app
from slidescreen.cli.model_card import card_view, models_table
from slidescreen.detector_card import DEFAULT_DETECTOR
from slidescreen.errors import ModelError, SlidescreenError, UsageError
from slidescreen.installed import archive
from slidescreen.installed.archive import pack
from slidescreen.installed.check import check_model
from slidescreen.installed.install import LOCK, install_model
from slidescreen.installed.listing import InstalledModel, describe, list_models
from slidescreen.model import CARD, DEFAULT_MODEL, REJECTION, WEIGHTS, find_model, user_models_folder, write_model
from slidescreen.networks import build_network
from slidescreen.rejection import Rejection
from slidescreen.taxonomy import CODES

CARD_FIELDS: dict[str, Any] = {
    "name": "tiny",
    "architecture": "sequential",
    "classes": list(CODES),
    "patch_um": 29.0,
    "input_px": 32,
    "mean": [0.5] * 3,
    "std": [0.25] * 3,
    "training_data": "none",
    "licence": "none",
    "measured": {"blast AUC": 0.5},
    "calibration": {"temperature": 1.25, "ece": {"before": 0.06, "after": 0.02}},
}


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small network with random weights, as a model folder."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("made") / "tiny"
    write_model(folder, build_network("sequential"), CARD_FIELDS)
    (folder / "README.md").write_text("# tiny\n")
    return folder


@pytest.fixture(autouse=True)
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's folder of models, which is not there yet."""
    monkeypatch.setenv("SLIDESCREEN_MODELS", str(tmp_path / "mine"))
    return tmp_path / "mine"


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def zipped(tiny: Path, out: Path) -> Path:
    pack(tiny, out)
    return out


def tarred(tiny: Path, out: Path) -> Path:
    with tarfile.open(out, "w:gz", compresslevel=1) as file:
        file.add(tiny, ".")
    return out


@pytest.mark.parametrize("form", ["zip", "tar", "folder"])
def test_a_model_is_installed_and_found_by_its_name(
    form: str, tiny: Path, mine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("no network at run time")

    monkeypatch.setattr(socket, "socket", refuse)
    file = {"zip": zipped, "tar": tarred}[form](tiny, tmp_path / f"m.{form}") if form != "folder" else tiny
    model, said = install_model(file)
    assert (model.name, model.kind, model.shipped, model.folder) == ("tiny", "classifier", False, mine / "tiny")
    assert "a painted myeloblast is" in said
    assert files_of(mine / "tiny") == files_of(tiny)
    assert find_model("tiny") == mine / "tiny"
    assert sorted(p.name for p in mine.iterdir()) == sorted([LOCK, "tiny"])
    assert [m.name for m in list_models()] == [
        *(DEFAULT_MODEL, DEFAULT_DETECTOR),
        *("resnext50-192", "resnext50-seed", "tiny"),
    ]


def add(name: str, content: bytes = b"x") -> Callable[[zipfile.ZipFile], None]:
    return lambda file: file.writestr(name, content)


def link(file: zipfile.ZipFile) -> None:
    entry = zipfile.ZipInfo("tiny/README.txt")
    entry.external_attr = (stat.S_IFLNK | 0o777) << 16
    file.writestr(entry, "/etc/passwd")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (add("tiny/model.pt"), "a pickle that can run code"),
        (add("tiny/data.PKL"), "a pickle that can run code"),
        (add("../../evil.txt"), "would not lie in the model's folder"),
        (add("/evil.txt"), "would not lie in the model's folder"),
        (add("tiny/..\\evil.txt"), "would not lie in the model's folder"),
        (add("C:evil.txt"), "would not lie in the model's folder"),
        (add("tiny/\x1b[2J.txt"), "would not lie in the model's folder"),
        (add("tiny/.bashrc.txt"), "hidden or too deep"),
        (add("tiny/a/b/c/d.txt"), "hidden or too deep"),
        (add("tiny/run.sh"), "no part of a model"),
        (add("tiny/README.MD"), "twice"),
        (add("other/README.md"), "outside the model's folder"),
        (add("other/card.json", b"{}"), "needs one card.json"),
        (add("tiny/figure.svg", bytes(2**24 + 1)), "larger than a model's file can be"),
        (link, "a link or no plain file"),
    ],
)
def test_a_zip_that_cannot_be_trusted_is_refused(
    change: Callable[[zipfile.ZipFile], None], message: str, tiny: Path, mine: Path, tmp_path: Path
) -> None:
    with zipfile.ZipFile(zipped(tiny, tmp_path / "m.zip"), "a", zipfile.ZIP_DEFLATED) as file:
        change(file)
    with pytest.raises(ModelError, match=message) as caught:
        install_model(tmp_path / "m.zip")
    assert str(caught.value).isprintable()
    assert [p.name for p in mine.iterdir()] == [LOCK]
    assert not list(tmp_path.parent.rglob("evil.txt"))


def test_more_bytes_than_a_model_has_are_never_written(
    tiny: Path, mine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archive, "MOST_BYTES", 2**22)  # the weights are larger
    with pytest.raises(ModelError, match="larger than a model's file can be"):
        install_model(zipped(tiny, tmp_path / "m.zip"))
    monkeypatch.setattr(archive, "MOST_FILES", 2)
    with pytest.raises(ModelError, match="more than 2 files|larger than"):
        install_model(tarred(tiny, tmp_path / "m.tar"))
    assert [p.name for p in mine.iterdir()] == [LOCK]


def tar_with(path: Path, entry: tarfile.TarInfo, content: bytes = b"") -> Path:
    with tarfile.open(path, "w") as file:
        file.addfile(entry, io.BytesIO(content))
    return path


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_what_is_no_plain_file_in_a_tar_is_refused(kind: bytes, mine: Path, tmp_path: Path) -> None:
    entry = tarfile.TarInfo("tiny/README.md")
    entry.type, entry.linkname = kind, "/etc/passwd"
    with pytest.raises(ModelError, match="a link or no plain file"):
        install_model(tar_with(tmp_path / "m.tar", entry))
    assert [p.name for p in mine.iterdir()] == [LOCK]


def test_a_header_that_claims_gigabytes_is_not_believed(tmp_path: Path) -> None:
    entry = tarfile.TarInfo("tiny/README.md")
    entry.type, entry.size = tarfile.XHDTYPE, 2**32
    (tmp_path / "m.tar").write_bytes(entry.tobuf(tarfile.USTAR_FORMAT) + bytes(10_000))
    with pytest.raises(ModelError, match="header of absurd length"):
        install_model(tmp_path / "m.tar")


def test_damaged_files_are_refused(tiny: Path, mine: Path, tmp_path: Path) -> None:
    whole = zipped(tiny, tmp_path / "m.zip").read_bytes()
    gz = tarred(tiny, tmp_path / "m.tar").read_bytes()
    for content in (
        b"",
        b"PK",
        b"\x80\x04.",
        whole[: len(whole) // 2],
        gz[: len(gz) // 2],
        whole[:5000] + b"\xff" * 9 + whole[5009:],
    ):
        (tmp_path / "bad").write_bytes(content)
        with pytest.raises(ModelError, match=r"bad: .*nothing was installed"):
            install_model(tmp_path / "bad")
    with pytest.raises(UsageError, match="no such file"):
        install_model(tmp_path / "none.zip")
    assert [p.name for p in mine.iterdir()] == [LOCK]


def altered(tiny: Path, to: Path, *, weights: Callable[[Any], Any] | None = None, **card: Any) -> Path:
    """A copy with other weights, their sha256 in the card, and other fields."""
    shutil.copytree(tiny, to)
    if weights:
        save_file({k: weights(v) for k, v in load_file(to / WEIGHTS).items()}, to / WEIGHTS)
        card = {"sha256": hashlib.sha256((to / WEIGHTS).read_bytes()).hexdigest()} | card
    (to / CARD).write_text(json.dumps(json.loads((to / CARD).read_text()) | card))
    return to


def test_a_model_that_does_not_work_is_refused(tiny: Path, mine: Path, tmp_path: Path) -> None:
    def nan(values: torch.Tensor) -> torch.Tensor:
        return values * float("nan") if values.is_floating_point() else values

    broken: dict[str, tuple[dict[str, Any], type[SlidescreenError]]] = {
        "sha256 .* is not the card's": ({"sha256": "0" * 64}, ModelError),
        "not finite": ({"weights": nan}, ModelError),
        "layer .* is missing": ({"architecture": "matek2019"}, ModelError),
        "classes must be the 15 codes": ({"classes": ["BAS"]}, ModelError),
        "a name has up to 64": ({"name": "../tiny"}, ModelError),
        "comes with slidescreen": ({"name": DEFAULT_MODEL}, UsageError),
    }
    for number, (message, (changes, kind)) in enumerate(broken.items()):
        with pytest.raises(kind, match=message) as caught:
            install_model(altered(tiny, tmp_path / f"broken-{number}", **changes))
        assert str(mine) not in str(caught.value)
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / CARD).symlink_to(tiny / CARD)
    with pytest.raises(ModelError, match="a link"):
        install_model(tmp_path / "linked")
    assert [p.name for p in mine.iterdir()] == [LOCK]


def test_the_parameters_of_rejection_come_along_and_are_checked(tiny: Path, mine: Path, tmp_path: Path) -> None:
    def made(name: str, d: int) -> Path:
        ones = np.ones(d, np.float32)
        parts = Rejection(ones, ones, np.zeros((d, 1), np.float32), np.zeros(2, np.float32), np.ones(2, np.float32))
        torch.manual_seed(0)
        write_model(tmp_path / name, build_network("sequential"), CARD_FIELDS | {"rejection": {"threshold": 1.5}}, parts)
        return tmp_path / name

    whole = made("whole", 512)
    with pytest.raises(ModelError, match="is for another network .7 features in place of 512"):
        install_model(made("other", 7))
    model, said = install_model(zipped(whole, tmp_path / "m.zip"))
    assert "refused above 1.50" in said
    assert sorted(files_of(model.folder)) == sorted([CARD, WEIGHTS, REJECTION])
    (model.folder / REJECTION).write_bytes(b"x")
    with pytest.raises(ModelError, match=f"{REJECTION}: sha256"):
        check_model(model.folder)


def test_a_name_that_is_taken_stays_unless_it_is_to_be_replaced(tiny: Path, mine: Path, tmp_path: Path) -> None:
    install_model(tiny)
    other = altered(tiny, tmp_path / "other", licence="another")
    with pytest.raises(UsageError, match="is installed already .*--replace"):
        install_model(other)
    with pytest.raises(ModelError):
        install_model(altered(tiny, tmp_path / "bad", sha256="0" * 64), replace=True)
    assert files_of(mine / "tiny") == files_of(tiny)
    install_model(other, replace=True)
    assert files_of(mine / "tiny") == files_of(other)
    (mine / "tiny").rename(mine / ".tiny.old-1")  # killed between the two renames
    (mine / ".tiny.partial-1").mkdir()
    with pytest.raises(UsageError, match="is installed already"):
        install_model(tiny)
    assert sorted(p.name for p in mine.iterdir()) == sorted([LOCK, "tiny"])
    assert files_of(mine / "tiny") == files_of(other)


def test_where_the_users_models_lie(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("SLIDESCREEN_MODELS")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert user_models_folder() == tmp_path / "slidescreen" / "models"
    monkeypatch.setenv("XDG_DATA_HOME", "relative/is/ignored")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert user_models_folder() == tmp_path / "home" / ".local" / "share" / "slidescreen" / "models"
    with pytest.raises(ModelError) as caught:
        find_model("nonesuch")
    assert DEFAULT_MODEL in str(caught.value) and DEFAULT_DETECTOR not in str(caught.value)


def test_the_commands(tiny: Path, mine: Path, tmp_path: Path) -> None:
    run = CliRunner()
    altered(tiny, mine / "broken", sha256="0" * 64)
    (mine / "odd").mkdir()
    (mine / "odd" / CARD).write_text("{")
    listed = run.invoke(app, ["model", "list"], env={"COLUMNS": "200"}).stdout
    for text in (
        "Classifiers",
        f"{DEFAULT_MODEL} (default)",
        "Detectors",
        f"{DEFAULT_DETECTOR} (default)",
        "Of no use",
        str(mine),
    ):
        assert text in listed
    assert listed.index(DEFAULT_MODEL) < listed.index("Detectors") < listed.index(DEFAULT_DETECTOR) < listed.index("Of no use")
    checked = run.invoke(app, ["model", "check", "broken"])
    assert (checked.exit_code, checked.stdout) == (1, "")
    assert len(checked.stderr.splitlines()) == 1 and "sha256" in checked.stderr
    assert run.invoke(app, ["model", "check", str(tiny)]).exit_code == 0
    packed = run.invoke(app, ["model", "pack", str(tiny), "-o", str(tmp_path / "t.zip")])
    done = run.invoke(app, ["model", "install", str(tmp_path / "t.zip")])
    assert (packed.exit_code, done.exit_code) == (0, 0)
    assert "screen with it: --model tiny" in done.stdout
    shown = run.invoke(app, ["model", "show", "tiny"], env={"COLUMNS": "100"}).stdout
    for text in ("sequential", "Calibration", "temperature", "1.25", "before", "0.06", "Licences", os.fspath(mine)):
        assert text in shown


def test_a_card_of_any_form_is_shown_and_cannot_write_to_the_terminal() -> None:
    card = {
        "architecture": "sequential",
        "measured": {
            "per source": {"lmu": {"n": 3, "blast AUC": 0.97}, "pbc": {"n": 4, "blast AUC": None}},
            "deep": {"a": {"b": {"c": 1}}},
            "confusion": [[1, 2], [3, 4]],
        },
        "tables": [
            {"title": "By source", "note": "Unseen.", "columns": ["source", "AUC"], "rows": [["lmu", "0.912"], ["x", "y", "z"]]}
        ],
        "evidence": {"controls": {"results": [{"condition": "whole", "blast AUC": {"value": 0.91, "ci95": [0.9, 0.92]}}, {}]}},
        "limits": "[red]not markup[/red] \x1b[2Jgone\nnext",
        "\x1b]0;title\x07": {"[bold]": True},
        "rejection": [],
        "unheard_of": 7,
    }
    model = InstalledModel("tiny", Path("/m/tiny"), "classifier", False, False, card)
    console = Console(width=120, file=io.StringIO())
    console.print(card_view(model), models_table("Classifiers", [model]))
    assert isinstance(console.file, io.StringIO)
    said = console.file.getvalue()
    assert all(c.isprintable() or c == "\n" for c in said)
    for text in (
        "[red]not markup[/red]",
        "[bold]",
        "Unheard of",
        "blast AUC 0.970",
        "see card.json",
        "0.912",
        "0.91 (0.9 to 0.92)",
    ):
        assert text in said


def test_the_detector_is_checked_as_a_detector(tmp_path: Path) -> None:
    folder = find_model(DEFAULT_DETECTOR)
    assert describe(folder).kind == "detector"
    assert "a painted cell is found" in check_model(folder)
    blind = altered(folder, tmp_path / "blind", weights=torch.zeros_like)
    with pytest.raises(ModelError, match="does not find a painted cell"):
        check_model(blind)
