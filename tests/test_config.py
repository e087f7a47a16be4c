from pathlib import Path
from typing import Any

import pytest

from slidescreen.config import Settings, load_settings
from slidescreen.engines import ClassifySettings
from slidescreen.errors import UsageError
from slidescreen.model import DEFAULT_MODEL


def load(folder: Path, text: str) -> Settings:
    path = folder / "settings.toml"
    path.write_text(text, encoding="utf-8")
    return load_settings(path)


def test_what_is_not_named_keeps_its_default(tmp_path: Path) -> None:
    found = load(tmp_path, '[differential]\nblast_threshold = 0.7\n[monolayer]\naoi = "all"\n[classify]\nbatch_size = 8\n')
    assert found.differential.blast_threshold == 0.7
    assert found.differential.atypical_threshold == 0.0  # the model's
    assert found.monolayer.aoi == "all"
    assert found.classify.batch_size == 8
    assert load(tmp_path, "") == Settings()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[differental]\n", "unknown setting differental; did you mean differential"),
        ("[differential]\nblast_treshold = 0.5", "did you mean differential.blast_threshold"),
        ("[differential]\nblast_threshold = 1.5", "must lie in 0-1"),
        ("[differential]\nblast_threshold = 'high'", "must be a number"),
        ("[differential]\nblast_threshold = true", "must be a number"),
        ("[differential]\nblast_threshold = nan", "must be a number"),
        ("[classify]\nbatch_size = 2.5", "must be a whole number"),
        ("[classify]\nbatch_size = -2", "must be positive"),
        ("[detect]\nmin_nucleus_um2 = 600", "min_nucleus_um2 lies above detect.max_nucleus_um2"),
        ("[detect]\nsplit_um = 1e300", "must lie below"),
        ("[classify]\ndevice = 'tpu'", "must be auto, cpu, cuda or cuda:0,1"),
        ("[detect]\nsplit_um = 0", "must be positive"),
        ("[detect]\nstain_floor = 0.9", "stain_floor lies above"),
        ("detect = 3", r"must be a table, \[detect\]"),
        ("[detect\n", "not valid TOML"),
    ],
)
def test_wrong_settings_are_refused_by_name(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        load(tmp_path, text)


def test_messages_name_the_file_and_a_byte_order_mark_is_no_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"settings\.toml: setting detect\.split_um = -1"):
        load(tmp_path, "[detect]\nsplit_um = -1")
    assert load(tmp_path, "\ufeff[classify]\nbatch_size = 3").classify.batch_size == 3


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="settings cannot be read"):
        load_settings(tmp_path / "none.toml")


def test_results_do_not_depend_on_device_and_batch() -> None:
    assert set(Settings().result_settings()) == {
        "reading",
        "scale",
        "monolayer",
        "detect",
        "classify",
        "differential",
        "explain",
        "detector",
    }
    plain = Settings().result_settings()
    other = Settings(classify=ClassifySettings("cpu", 3)).result_settings()
    assert other == plain


@pytest.mark.parametrize(
    "asked",
    [
        {"engine": "torch"},
        {"precision": "float32"},
        {"deterministic": True},
        {"tta": 8},
        {"cascade": DEFAULT_MODEL},
        {"precision": "int8", "calibration": "there"},
    ],
)
def test_results_depend_on_the_engine_that_was_asked_for(asked: dict[str, Any]) -> None:
    assert Settings(classify=ClassifySettings(**asked)).result_settings() != Settings().result_settings()
