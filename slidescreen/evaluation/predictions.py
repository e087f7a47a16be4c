"""Reads predictions on images whose class is known, and refuses what cannot be evaluated."""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from slidescreen.errors import UsageError
from slidescreen.taxonomy import ATYPICAL, BLAST, CODES

RUN_FILE: Final = "run.json"
FOLDS_FILE: Final = "folds.csv"
PREDICTIONS_FILE: Final = "predictions.csv"
PROBABILITY_COLUMNS: Final = tuple(f"p_{code}" for code in CODES)

NO_LEUKOCYTE: Final = "-"
UNKNOWN: Final = -1
NONE_OF_THEM: Final = len(CODES)
"""What a re-annotation is where the human saw no leukocyte of the 15 classes."""

SUM_TOLERANCE: Final = 0.01
"""How far the 15 probabilities may be from adding up to 1."""
ROUNDING: Final = 0.001
"""Largest difference that rounding of 15 printed probabilities explains."""

_INDEX: Final = {code: i for i, code in enumerate(CODES)}


@dataclass(frozen=True, slots=True)
class InputFile:
    """A file that was read, and the sha256 of its content."""

    path: str
    sha256: str


@dataclass(frozen=True, slots=True, eq=False)
class Predictions:
    """One entry per image whose gold standard is one of the 15 classes; each image once.

    `gold` and `label`: (n,) indices into `taxonomy.CODES`. `probabilities`: (n, 15) float64 in that order. `fold`: (n,), from
    1; each fold's images were predicted by a model that was not trained on them. `source`, `patient`: (n,) str, "" where
    unknown. `reannotations`: (n, 2) indices of what a human said when shown the image again, `UNKNOWN` where not shown,
    `NONE_OF_THEM` where no leukocyte was seen. `left_out`: rows without a leukocyte by gold standard, not among the n.
    `run`: what run.json says, empty where there is none. `shared`: patients whose images were tested in one fold and learned
    from in it too, by the run's own list of all images; None where there is none.
    """

    inputs: tuple[InputFile, ...]
    run: Mapping[str, Any]
    left_out: int
    gold: NDArray[np.int64]
    label: NDArray[np.int64]
    probabilities: NDArray[np.float64]
    fold: NDArray[np.int64]
    source: NDArray[np.str_]
    patient: NDArray[np.str_]
    reannotations: NDArray[np.int64]
    shared: int | None = None

    def __len__(self) -> int:
        return len(self.gold)

    @property
    def folds(self) -> tuple[int, ...]:
        """Numbers of the folds that hold images, ascending."""
        return tuple(int(k) for k in np.unique(self.fold))

    def only(self, rows: NDArray[np.bool_]) -> Predictions:
        """The images that `rows`, (n,) bool, picks out."""
        names = ("gold", "label", "probabilities", "fold", "source", "patient", "reannotations")
        return dataclasses.replace(self, **{name: getattr(self, name)[rows] for name in names})

    def probability(self, members: frozenset[str]) -> NDArray[np.float64]:
        """(n,) sum of the probabilities over the classes in `members`."""
        summed: NDArray[np.float64] = self.probabilities[:, [_INDEX[code] for code in CODES if code in members]].sum(axis=1)
        return summed


def is_member(classes: NDArray[np.int64], members: frozenset[str]) -> NDArray[np.bool_]:
    """Whether each index is that of a class in `members`."""
    return np.isin(classes, [_INDEX[code] for code in members])


def read_predictions(path: Path) -> Predictions:
    """Predictions of a run folder (`fold-K/predictions.csv` of every finished fold, `run.json`) or of one CSV file.

    Columns: `gold` and the 15 `p_CODE` must be there; `file`, `fold`, `label`, `source`, `patient`, `reannotation_1`,
    `reannotation_2`, `p_blast`, `p_atypical` may be. Raises UsageError that says which line is wrong and why.
    """
    if path.is_dir():
        run = _read_run(path / RUN_FILE)
        found = ((int(p.name.removeprefix("fold-")), p / PREDICTIONS_FILE) for p in path.iterdir() if _is_fold(p))
        files: list[tuple[int | None, Path]] = [(k, file) for k, file in sorted(found) if file.is_file()]
        if not files:
            raise UsageError(f"{path}: no finished fold (fold-K/{PREDICTIONS_FILE}); is this the folder of a training run?")
    elif path.is_file():
        run, files = {}, [(None, path)]
    else:
        raise UsageError(f"{path}: no such file or folder; give the folder of a training run or a CSV file of predictions")
    parsed = [row for fold, file in files for row in _read_rows(file, fold)]
    predictions = _assemble(path, parsed, tuple(_input(file) for _, file in files), run)
    predictions = dataclasses.replace(predictions, shared=_shared_by_list(path / FOLDS_FILE))
    _check_split(path, predictions)
    return predictions


def _is_fold(path: Path) -> bool:
    return re.fullmatch(r"fold-[1-9]\d*", path.name) is not None


def _read_run(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        run = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UsageError(f"{path}: not readable as JSON ({error}); repair or remove it") from error
    if not isinstance(run, dict):
        raise UsageError(f"{path}: must hold one JSON object; repair or remove it")
    return run


def _input(path: Path) -> InputFile:
    with path.open("rb") as file:
        return InputFile(str(path), hashlib.file_digest(file, "sha256").hexdigest())


@dataclass(frozen=True, slots=True)
class _Row:
    where: str
    file: str
    gold: str
    label: int
    probabilities: tuple[float, ...]
    fold: int
    source: str
    patient: str
    reannotations: tuple[int, int]


def _read_rows(path: Path, fold: int | None) -> list[_Row]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            columns = tuple(reader.fieldnames or ())
            if not columns:
                raise UsageError(f"{path}: empty; needs a header line and a line per image")
            missing = [name for name in ("gold", *PROBABILITY_COLUMNS) if name not in columns]
            if missing:
                raise UsageError(f"{path}: column(s) missing: {', '.join(missing)}; see README, Evaluating predictions")
            doubled = sorted({name for name in columns if columns.count(name) > 1})
            if doubled:
                raise UsageError(f"{path}: column(s) given twice: {', '.join(doubled)}")
            return [_row(f"{path}, line {reader.line_num}", fields, fold) for fields in reader]
    except (UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"{path}: not readable as CSV in UTF-8 ({error})") from error


def _row(where: str, fields: dict[str | None, str | None], fold: int | None) -> _Row:
    if None in fields or None in fields.values():
        raise UsageError(f"{where}: more or fewer fields than the header has")
    given = {str(name): (value or "").strip() for name, value in fields.items()}
    gold = given["gold"]
    if gold != NO_LEUKOCYTE:
        _code(where, "gold", gold)
    probabilities = _probabilities(where, given)
    return _Row(
        where=where,
        file=given.get("file", ""),
        gold=gold,
        label=_label(where, given.get("label", ""), probabilities),
        probabilities=probabilities,
        fold=_fold(where, given.get("fold", ""), fold),
        source=given.get("source", ""),
        patient=given.get("patient", ""),
        reannotations=(_human(where, given, "reannotation_1"), _human(where, given, "reannotation_2")),
    )


def _code(where: str, column: str, text: str) -> int:
    if text not in _INDEX:
        known = ", ".join(CODES)
        raise UsageError(f"{where}: {column} {text!r} is no class code; must be one of {known}")
    return _INDEX[text]


def _number(where: str, column: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise UsageError(f"{where}: {column} {text!r} is no number") from None


def _probability(where: str, column: str, text: str) -> float:
    value = _number(where, column, text)
    if not 0 <= value <= 1:
        raise UsageError(f"{where}: {column} {text} is no probability; must lie in 0-1")
    return value


def _probabilities(where: str, given: Mapping[str, str]) -> tuple[float, ...]:
    probabilities = tuple(_probability(where, name, given[name]) for name in PROBABILITY_COLUMNS)
    total = math.fsum(probabilities)
    if abs(total - 1) > SUM_TOLERANCE:
        raise UsageError(f"{where}: the 15 probabilities add up to {total:.4g}, not to 1")
    for column, members in (("p_blast", BLAST), ("p_atypical", ATYPICAL)):
        if given.get(column):
            said = _number(where, column, given[column])
            summed = sum(p for p, code in zip(probabilities, CODES, strict=True) if code in members)
            if not abs(said - summed) <= ROUNDING:
                raise UsageError(f"{where}: {column} is {said:.4g}, but its classes add up to {summed:.4g}")
    return probabilities


def _label(where: str, text: str, probabilities: tuple[float, ...]) -> int:
    """The class of highest probability; where the file names it, it must be that one up to rounding."""
    best = max(range(len(CODES)), key=probabilities.__getitem__)
    if not text:
        return best
    label = _code(where, "label", text)
    if probabilities[label] < probabilities[best] - ROUNDING:
        raise UsageError(f"{where}: label is {text}, but {CODES[best]} has the highest probability")
    return label


def _fold(where: str, text: str, fold: int | None) -> int:
    if text and not re.fullmatch(r"[1-9]\d{0,3}", text):
        raise UsageError(f"{where}: fold {text!r} is no fold; must be 1, 2, 3 ...")
    said = int(text) if text else None
    if fold is not None and said is not None and said != fold:
        raise UsageError(f"{where}: says fold {said}, but lies in the folder of fold {fold}")
    return fold or said or 1


def _human(where: str, given: Mapping[str, str], column: str) -> int:
    text = given.get(column, "")
    if text in ("", "nan"):  # "nan" is how AML-Cytomorphology_LMU writes that there is none
        return UNKNOWN
    return NONE_OF_THEM if text == NO_LEUKOCYTE else _code(where, column, text)


def _assemble(path: Path, rows: list[_Row], inputs: tuple[InputFile, ...], run: dict[str, Any]) -> Predictions:
    seen: dict[str, _Row] = {}
    for row in rows:
        first = seen.setdefault(row.file, row) if row.file else row
        if first is not row:
            said = "twice" if first.fold == row.fold else f"in folds {first.fold} and {row.fold}"
            raise UsageError(f"{row.where}: {row.file} is listed {said}, first at {first.where}; every image counts once")
    kept = [row for row in rows if row.gold != NO_LEUKOCYTE]
    if not kept:
        what = f"only images without a leukocyte ({len(rows)})" if rows else "no predictions below the header"
        raise UsageError(f"{path}: {what}: nothing can be evaluated")
    classes = {row.gold for row in kept}
    if len(classes) == 1:
        raise UsageError(f"{path}: all {len(kept)} images are {kept[0].gold}: nothing can be evaluated with one class only")
    return Predictions(
        inputs=inputs,
        run=run,
        left_out=len(rows) - len(kept),
        gold=np.array([_INDEX[row.gold] for row in kept]),
        label=np.array([row.label for row in kept]),
        probabilities=np.array([row.probabilities for row in kept]),
        fold=np.array([row.fold for row in kept]),
        source=np.array([row.source for row in kept]),
        patient=np.array([row.patient for row in kept]),
        reannotations=np.array([row.reannotations for row in kept]),
    )


def shared_patients(predictions: Predictions) -> list[tuple[str, str]]:
    """(source, patient) of every known patient with images in more than one fold. Ids count within their source."""
    folds: dict[tuple[str, str], set[int]] = {}
    for source, patient, fold in zip(predictions.source, predictions.patient, predictions.fold, strict=True):
        if patient:
            folds.setdefault((str(source), str(patient)), set()).add(int(fold))
    return sorted(who for who, among in folds.items() if len(among) > 1)


def _shared_by_list(path: Path) -> int | None:
    """Patients with images in more than one fold, 0 (never tested) among them, in a run's list of all its images."""
    if not path.is_file():
        return None
    folds: dict[tuple[str, str], set[str]] = {}
    try:
        with path.open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                if row["patient"]:
                    folds.setdefault((row["source"], row["patient"]), set()).add(row["fold"])
    except (UnicodeDecodeError, csv.Error, KeyError) as error:
        raise UsageError(f"{path}: cannot be read as a list of images and folds ({error}); repair or remove it") from error
    return sum(len(among) > 1 for among in folds.values())


def _check_split(path: Path, predictions: Predictions) -> None:
    shared = shared_patients(predictions)
    if predictions.run.get("split") == "patient" and shared:
        (source, patient), others = shared[0], len(shared) - 1
        more = f" and {others} more" if others else ""
        raise UsageError(
            f"{path}: {RUN_FILE} says split by patient, but patient {patient}{f' of {source}' if source else ''}{more} "
            f"has images in several folds; the run or its predictions are mixed up"
        )
    if predictions.run.get("split") == "source":
        for source in np.unique(predictions.source).tolist():
            if len(np.unique(predictions.fold[predictions.source == source])) > 1:
                raise UsageError(
                    f"{path}: {RUN_FILE} says split by source, but {source or 'images without a source'} are in several folds; "
                    f"the run or its predictions are mixed up"
                )
