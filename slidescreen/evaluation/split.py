"""How training and test images were kept apart, in words, and what else a reader must know before the numbers."""

from __future__ import annotations

from slidescreen.evaluation.predictions import Predictions, shared_patients
from slidescreen.evaluation.result import SplitWords
from slidescreen.taxonomy import CODES


def split_words(predictions: Predictions) -> SplitWords:
    """What run.json claims, held against the patients of the folds (`read_predictions` refuses a claim that they belie)."""
    claimed = predictions.run.get("split")
    shared = len(shared_patients(predictions))
    unknown = int((predictions.patient == "").sum())
    if claimed == "patient":
        text = "No patient is in two folds: each image was tested by a network that had seen no image of its patient."
        if unknown:
            text += f" For {unknown} of {len(predictions)} images no patient is given; for these it cannot be checked."
        return SplitWords("Split by patient", text, caution=bool(unknown))
    if claimed == "source":
        text = "No source is in two folds: each image was tested by a network that had seen no image of its source."
        return SplitWords("Split by source", text, caution=False)
    if claimed == "file" and predictions.shared == 0:
        text = "Which images are tested was given by a file; none of their patients has images among those learned from."
        if unknown:
            text += f" For {unknown} of {len(predictions)} images no patient is given; for these it cannot be checked."
        return SplitWords("Split by a file", text, caution=bool(unknown))
    if claimed == "file" and predictions.shared:
        text = f"Which images are tested was given by a file. {_patients_have(predictions.shared)} images among those learned"
        return SplitWords("Split by a file", f"{text} from as well: the numbers are optimistic for new patients.", caution=True)
    if claimed == "stratified":
        text = "Images of one patient may lie in training and in test: the numbers are optimistic for new patients."
        if shared:
            text += f" Here {_patients_have(shared)} images in more than one fold."
        return SplitWords("Split by image", text, caution=True)
    if shared:
        text = f"{_patients_have(shared)} images in more than one fold: the numbers are optimistic for new patients."
    elif len(predictions.folds) > 1 and not unknown:
        text = (
            "No patient is in two folds. Nothing given here says that each fold's network had not seen its images in training."
        )
    else:
        text = (
            "Nothing given here says that the network had not seen these images, or others of the same patients, in training."
        )
    return SplitWords("Split not stated", text, caution=True)


def _patients_have(count: int) -> str:
    return "1 patient has" if count == 1 else f"{count} patients have"


def warnings(predictions: Predictions) -> tuple[str, ...]:
    """What is missing or left out, one sentence each."""
    said = []
    if predictions.left_out:
        rows = f"{predictions.left_out} image{'s' if predictions.left_out > 1 else ''}"
        said.append(f'{rows} without a leukocyte of the 15 classes (gold standard "-") left out.')
    planned = predictions.run.get("folds")
    if isinstance(planned, int) and planned > len(predictions.folds):
        said.append(f"{len(predictions.folds)} of {planned} folds evaluated: the others are not finished.")
    notes = predictions.run.get("notes")  # what the split could not keep
    said += [f"{note[:1].upper()}{note[1:]}." for note in notes if isinstance(note, str)] if isinstance(notes, list) else []
    present = {CODES[i] for i in predictions.gold}
    absent = [code for code in CODES if code not in present]
    if absent:
        said.append(f"No images of {', '.join(absent)}: nothing is known of these classes.")
    return tuple(said)
