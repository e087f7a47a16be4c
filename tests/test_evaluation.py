"""From predictions to the folder: what is read, what is refused, what is written, what the page says."""

import csv
import json
import re
import shutil
import subprocess
import sys
import time
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from predicted import PUBLISHED_COUNTS, SMALL_COUNTS, Row, rows, write_csv, write_run
from sklearn import metrics as reference

from slidescreen.errors import OutputError, UsageError
from slidescreen.evaluation import folder
from slidescreen.evaluation.evaluate import evaluate
from slidescreen.evaluation.figures import NAMES, PAGE_COLOURS, draw
from slidescreen.evaluation.folder import evaluate_into
from slidescreen.evaluation.predictions import read_predictions
from slidescreen.taxonomy import CODES


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = rows()
    made[0]["gold"] = "-"
    return write_run(
        tmp_path_factory.mktemp("evaluation") / "run <1>",
        made,
        recipe={"name": "paper & more", "epochs": 15},
        notes=["no <b> in fold 2"],
    )


@pytest.fixture(scope="module")
def out(run_dir: Path) -> Path:
    out = run_dir.parent / "out"
    evaluate_into(run_dir, out)
    return out


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures cost most of the time and are looked at elsewhere."""
    monkeypatch.setattr(folder, "draw", lambda _: {})


def read_json(out: Path) -> dict[str, object]:
    content = json.loads((out / "evaluation.json").read_text())
    assert isinstance(content, dict)
    return content


def read_table(path: Path) -> list[Row]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def refused(path: Path) -> str:
    with pytest.raises(UsageError) as caught:
        read_predictions(path)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    ("column", "value", "said"),
    [
        ("gold", "XYZ", r"line 4: gold 'XYZ' is no class code"),
        ("gold", "", r"line 4: gold '' is no class code"),
        ("label", "BLAST", r"line 4: label 'BLAST' is no class code"),
        ("reannotation_1", "MYX", r"line 4: reannotation_1 'MYX' is no class code"),
        ("p_BAS", "nan", r"line 4: p_BAS nan is no probability"),
        ("p_BAS", "-0.1", r"line 4: p_BAS -0.1 is no probability"),
        ("p_BAS", "1.5", r"line 4: p_BAS 1.5 is no probability"),
        ("p_BAS", "", r"line 4: p_BAS '' is no number"),
        ("p_BAS", "0.9", r"line 4: the 15 probabilities add up to 1\.\d+, not to 1"),
        ("p_blast", "0.77", r"line 4: p_blast is 0.77, but its classes add up to"),
        ("p_atypical", "nan", r"line 4: p_atypical is nan, but"),
        ("fold", "0", r"line 4: fold '0' is no fold"),
        ("fold", "2.5", r"line 4: fold '2.5' is no fold"),
    ],
)
def test_a_wrong_field_is_refused_with_its_line(tmp_path: Path, column: str, value: str, said: str) -> None:
    made = rows({"NGS": 3, "MYO": 3})
    made[2][column] = value
    assert re.search(said, refused(write_csv(tmp_path / "p.csv", made)))


def test_a_label_that_is_not_the_likeliest_is_refused(tmp_path: Path) -> None:
    made = rows({"NGS": 3, "MYO": 3})
    made[2]["label"] = "KSC" if made[2]["label"] != "KSC" else "BAS"
    assert "has the highest probability" in refused(write_csv(tmp_path / "p.csv", made))


def test_files_that_cannot_be_evaluated_are_refused(tmp_path: Path) -> None:
    made = rows({"NGS": 4, "MYO": 4})
    without = [{k: v for k, v in row.items() if k not in ("gold", "p_NGB")} for row in made]
    assert "column(s) missing: gold, p_NGB" in refused(write_csv(tmp_path / "missing.csv", without))
    assert "all 4 images are MYO: nothing can be evaluated with one class only" in refused(
        write_csv(tmp_path / "one.csv", [row for row in made if row["gold"] == "MYO"])
    )
    assert "only images without a leukocyte (8)" in refused(
        write_csv(tmp_path / "no.csv", [row | {"gold": "-"} for row in made])
    )
    (tmp_path / "empty.csv").write_text("")
    assert "empty" in refused(tmp_path / "empty.csv")
    header = (tmp_path / "one.csv").read_text().splitlines()[0]
    (tmp_path / "header.csv").write_text(header + "\n")
    assert "no predictions below the header" in refused(tmp_path / "header.csv")
    (tmp_path / "short.csv").write_text(f"{header}\nx.tiff,MYO,1\n")
    assert "line 2: more or fewer fields" in refused(tmp_path / "short.csv")
    (tmp_path / "binary.csv").write_bytes(b"\xff\xfe\x00gold")
    assert "not readable as CSV" in refused(tmp_path / "binary.csv")
    assert "no such file or folder" in refused(tmp_path / "absent.csv")
    assert "no finished fold" in refused(tmp_path)


def test_an_image_in_two_folds_is_refused(tmp_path: Path) -> None:
    made = rows({"NGS": 4, "MYO": 4}, folds=2)
    again = made[0] | {"fold": "2" if made[0]["fold"] == "1" else "1"}
    assert re.search(r"is listed in folds \d and \d", refused(write_run(tmp_path / "run", [*made, again])))
    assert "is listed twice" in refused(write_csv(tmp_path / "p.csv", [*made, made[0]]))


def test_a_run_that_contradicts_itself_is_refused(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", rows(), split="patient")
    assert re.search(r"says split by patient, but patient P\d\d of \w+ and \d+ more has images in several folds", refused(run))
    shutil.move(run / "fold-2", run / "fold-7")
    assert "says fold 2, but lies in the folder of fold 7" in refused(run)
    (run / "run.json").write_text("{")
    assert "not readable as JSON" in refused(run)


def test_the_split_is_told_in_words(tmp_path: Path) -> None:
    def said(run: Path) -> tuple[str, bool]:
        split = evaluate(read_predictions(run), "x", resamples=0).split
        return f"{split.title}: {split.text}", split.caution

    by_image, caution = said(write_run(tmp_path / "image", rows(), split="stratified"))
    assert "Split by image: Images of one patient may lie in training and in test" in by_image and "optimistic" in by_image
    assert "25 patients have images in more than one fold" in by_image and caution
    made = rows(by_patient=True)
    by_patient, caution = said(write_run(tmp_path / "patient", made, split="patient"))
    assert "Split by patient: No patient is in two folds" in by_patient
    assert re.search(r"For \d+ of 447 images no patient is given", by_patient) and caution
    known, caution = said(write_run(tmp_path / "known", [row for row in made if row["patient"]], split="patient"))
    assert "cannot be checked" not in known and not caution
    stated, caution = said(write_csv(tmp_path / "p.csv", made))
    assert stated.startswith("Split not stated") and caution


def test_numbers_in_the_files_equal_scikit_learn(run_dir: Path, out: Path) -> None:
    """From the CSV files of the run to the files of the evaluation, with none of the project's own reading between."""
    made = [row for path in sorted(run_dir.glob("fold-*/*.csv")) for row in read_table(path)]
    made = [row for row in made if row["gold"] != "-"]
    gold, label = [row["gold"] for row in made], [row["label"] for row in made]
    content = read_json(out)
    assert content["images"] == len(made) and content["left_out"] == 1
    assert content["accuracy"]["value"] == pytest.approx(reference.accuracy_score(gold, label))  # type: ignore[index]
    shown = [row for row in made if row["reannotation_1"]]
    kappa = reference.cohen_kappa_score([r["gold"] for r in shown], [r["reannotation_1"] for r in shown])
    network = reference.cohen_kappa_score([r["gold"] for r in shown], [r["label"] for r in shown])
    both = [row for row in shown if row["reannotation_2"]]
    between = reference.cohen_kappa_score([r["reannotation_1"] for r in both], [r["reannotation_2"] for r in both])
    measures = {(row["measure"], row["class"]): row for row in read_table(out / "measures.csv")}
    assert float(measures["kappa_reannotation_1", ""]["value"]) == pytest.approx(kappa, rel=1e-4)
    of_folds = [[row for row in shown if row["fold"] == k] for k in "12345"]
    kappas = [reference.cohen_kappa_score([r["gold"] for r in own], [r["reannotation_1"] for r in own]) for own in of_folds]
    assert [float(measures["kappa_reannotation_1", ""][f"fold_{k}"]) for k in "12345"] == pytest.approx(kappas, rel=1e-4)
    assert (
        float(measures["kappa_reannotation_1", ""]["ci95_low"])
        < kappa
        < float(measures["kappa_reannotation_1", ""]["ci95_high"])
    )
    assert float(measures["kappa_network_on_reannotated_1", ""]["value"]) == pytest.approx(network, rel=1e-4)
    assert float(measures["kappa_reannotation_2_to_1", ""]["value"]) == pytest.approx(between, rel=1e-4)
    for key, codes in (("blast", {"MYO", "MOB"}), ("atypical", {"MYO", "MOB", "PMO", "EBO", "MYB", "MMZ", "PMB", "LYA"})):
        areas, sensitivities = [], []
        for k in "12345":
            own = [row for row in made if row["fold"] == k]
            positive, p = [row["gold"] in codes for row in own], [float(row[f"p_{key}"]) for row in own]
            areas.append(reference.roc_auc_score(positive, p))
            sensitivities.append(reference.recall_score(positive, [q >= 0.5 for q in p]))
        row = measures[f"{key}_auc", ""]
        assert [float(row[f"fold_{k}"]) for k in "12345"] == pytest.approx(areas, rel=1e-5)
        assert float(row["mean"]) == pytest.approx(np.mean(areas), rel=1e-5)
        assert float(row["sd"]) == pytest.approx(np.std(areas), rel=1e-4)
        assert float(row["ci95_low"]) < float(row["value"]) < float(row["ci95_high"])
        assert float(measures[f"{key}_sensitivity", ""]["mean"]) == pytest.approx(np.mean(sensitivities), rel=1e-5)
        human = next(r for r in read_table(out / "decisions.csv") if r["decision"] == key and r["by"] == "reannotation_1")
        yes, said = [r["gold"] in codes for r in shown], [r["reannotation_1"] in codes for r in shown]
        assert float(human["sensitivity_value"]) == pytest.approx(reference.recall_score(yes, said), rel=1e-5)
        assert float(human["specificity_value"]) == pytest.approx(reference.recall_score(yes, said, pos_label=False), rel=1e-5)
    confusion = [[int(row[code]) for code in CODES] for row in read_table(out / "confusion.csv")]
    np.testing.assert_array_equal(confusion, reference.confusion_matrix(gold, label, labels=CODES))


def test_groups_add_up(run_dir: Path, out: Path) -> None:
    made = [row for path in sorted(run_dir.glob("fold-*/*.csv")) for row in read_table(path) if row["gold"] != "-"]
    sources, patients = read_table(out / "sources.csv"), read_table(out / "patients.csv")
    assert [row["source"] for row in sources] == ["alone", "basel", "munich"]
    assert sum(int(row["images"]) for row in sources) == len(made)
    assert len(patients) == 25
    own = [row for row in made if row["patient"] == patients[0]["patient"] and row["source"] == patients[0]["source"]]
    assert int(patients[0]["images"]) == len(own)
    assert int(patients[0]["blasts_gold"]) == sum(row["gold"] in ("MYO", "MOB") for row in own)
    assert int(patients[0]["blasts_network"]) == sum(float(row["p_blast"]) >= 0.5 for row in own)


def test_each_source_is_evaluated_by_itself_with_intervals(run_dir: Path, out: Path) -> None:
    made = [row for path in sorted(run_dir.glob("fold-*/*.csv")) for row in read_table(path) if row["gold"] != "-"]
    page = (out / "evaluation.html").read_text()
    measures = ("balanced_accuracy", "frequent_balanced_accuracy", "blast_auc", "atypical_auc")
    for row in read_table(out / "sources.csv"):
        own = [each for each in made if each["source"] == row["source"]]
        gold, label = [r["gold"] for r in own], [r["label"] for r in own]
        recall = reference.recall_score(gold, label, labels=sorted(set(gold)), average=None)
        assert float(row["balanced_accuracy"]) == pytest.approx(np.mean(recall), rel=1e-5)
        often = [code for code in CODES if gold.count(code) >= 30]
        assert row["frequent_classes"].split() == often
        if often:
            recall = reference.recall_score(gold, label, labels=often, average=None)
            assert float(row["frequent_balanced_accuracy"]) == pytest.approx(np.mean(recall), rel=1e-5)
        areas = []
        for fold in "12345":
            in_fold = [r for r in own if r["fold"] == fold]
            areas.append(
                reference.roc_auc_score([r["gold"] in ("MYO", "MOB") for r in in_fold], [float(r["p_blast"]) for r in in_fold])
            )
        assert float(row["blast_auc"]) == pytest.approx(np.mean(areas), rel=1e-4)
        with_interval = [name for name in measures if row[f"{name}_ci95_low"]]
        assert {"balanced_accuracy", "blast_auc", "atypical_auc"} <= {*with_interval} or row["source"] != "munich"
        for name in with_interval:
            low, value, high = (float(row[key]) for key in (f"{name}_ci95_low", name, f"{name}_ci95_high"))
            assert low < value < high
            assert re.search(rf"{value:.3f} \({low:.3f}.{high:.3f}\)", page)
        assert int(row["patients"]) == len({r["patient"] for r in own} - {""})
    assert any(row["frequent_classes"] for row in read_table(out / "sources.csv"))


def test_a_run_that_left_sources_out(tmp_path: Path, undrawn: None) -> None:
    made = [row | {"fold": {"alone": "1", "basel": "2", "munich": "3"}[row["source"]]} for row in rows()]
    run = write_run(tmp_path / "run", made, split="source", folds=3)
    evaluate_into(run, tmp_path / "out")
    assert [row["source"] for row in read_table(tmp_path / "out" / "sources.csv")] == ["alone", "basel", "munich"]
    assert "no image of its source" in (tmp_path / "out" / "evaluation.html").read_text()
    made[0]["fold"] = "2" if made[0]["fold"] == "1" else "1"
    message = refused(write_run(tmp_path / "mixed", made, split="source", folds=3))
    assert f"{made[0]['source']} are in several folds" in message


def test_a_run_whose_test_images_a_file_named(tmp_path: Path) -> None:
    made = [row | {"fold": "1"} for row in rows() if row["source"] == "munich"]
    run = write_run(tmp_path / "run", made, split="file", folds=1)
    assert evaluate(read_predictions(run), "run", resamples=0).split.title == "Split not stated"
    listed = [{**row, "label": row["gold"]} for row in made] + [
        row | {"fold": "0"} for row in rows() if row["source"] != "munich"
    ]
    write_csv(run / "folds.csv", listed)
    split = evaluate(read_predictions(run), "run", resamples=0).split
    assert split.title == "Split by a file" and "none of their patients" in split.text and not split.caution
    write_csv(run / "folds.csv", [*listed, listed[0] | {"fold": "0"}])
    split = evaluate(read_predictions(run), "run", resamples=0).split
    assert split.caution and "1 patient has images among those learned from" in split.text


def test_classes_without_images_have_no_numbers(out: Path) -> None:
    table = {row["code"]: row for row in read_table(out / "classes.csv")}
    absent = [code for code in CODES if code not in SMALL_COUNTS]
    for code in absent:
        assert table[code]["images"] == "0" and table[code]["sensitivity_mean"] == "" == table[code]["sensitivity_pooled"]
    page = (out / "evaluation.html").read_text()
    for code in absent:
        line = re.search(rf'<tr data-code="{code}".*?</tr>', page, re.S)
        assert line and re.findall(r'value start \w+">([^<]+)<', line[0]) == ["–", "–", "–"]


def test_an_auc_of_one_kind_is_undefined_and_says_so(tmp_path: Path) -> None:
    made = rows({"NGS": 30, "LYT": 30})
    evaluate_into(write_csv(tmp_path / "p.csv", made), tmp_path / "out")
    decision = read_json(tmp_path / "out")["decisions"][0]  # type: ignore[index]
    assert decision["auc"]["value"] is None and decision["network"]["sensitivity"]["value"] is None
    page = (tmp_path / "out" / "evaluation.html").read_text()
    assert page.count("AUC undefined: there is no positive image.") == 4  # two cards, two sections
    assert sorted(p.name for p in (tmp_path / "out" / "figures").glob("roc*")) == []


def test_the_threshold_decides(run_dir: Path) -> None:
    predictions = read_predictions(run_dir)
    found = [evaluate(predictions, "x", threshold=t, resamples=0) for t in (0.05, 0.95)]
    for low, high in ([e.decisions[0].network for e in found], [e.reannotations[0].network["blast"] for e in found]):
        assert low.sensitivity.count > high.sensitivity.count and low.specificity.count < high.specificity.count
    for wrong in (-0.1, 1.1, float("nan")):
        with pytest.raises(UsageError, match="must lie in 0-1"):
            evaluate(predictions, "x", threshold=wrong)


def test_the_same_predictions_give_the_same_numbers_and_pictures(run_dir: Path, out: Path) -> None:
    predictions = read_predictions(run_dir)
    again = draw(evaluate(predictions, run_dir.name))
    assert set(again) == set(NAMES)
    for name, (svg, png) in again.items():
        assert svg == (out / "figures" / f"{name}.svg").read_bytes()
        assert png == (out / "figures" / f"{name}.png").read_bytes()
        assert png.startswith(b"\x89PNG")
        assert b"<text" not in svg and b"dc:date" not in svg


class Page(HTMLParser):
    """What a page refers to, and its ids."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.references: list[str] = []
        self.tags: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        for name, value in attributes:
            if name == "id":
                self.ids.append(str(value))
            if name in ("href", "xlink:href", "src"):
                self.references.append(str(value))


def test_the_page_stands_alone(out: Path) -> None:
    text = (out / "evaluation.html").read_text()
    page = Page(text)
    assert len(page.ids) == len(set(page.ids))
    assert page.references and all(reference.startswith("#") for reference in page.references)
    assert {reference[1:] for reference in page.references} | set(re.findall(r"url\(#([^)]+)\)", text)) <= set(page.ids)
    assert "script" not in page.tags and "img" not in page.tags
    assert not [colour for colour in PAGE_COLOURS if f": {colour}" in text.split("</style>", 1)[1]]
    assert "run &lt;1&gt;" in text and "run <1>" not in text
    assert "paper &amp; more" in text
    assert "Research use" in text and "needs review by a morphologist" in text
    assert text.count("<svg") == len(NAMES)
    assert "1 image without a leukocyte" in text and "<li>No &lt;b&gt; in fold 2.</li>" in text


@pytest.mark.usefixtures("undrawn")
def test_an_older_evaluation_is_replaced_and_nothing_else(run_dir: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    evaluate_into(run_dir, out)
    evaluate_into(run_dir, out, threshold=0.25)
    assert read_json(out)["threshold"] == 0.25
    (out / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match=r"files besides an evaluation \(notes.txt\)"):
        evaluate_into(run_dir, out)
    assert (out / "notes.txt").read_text() == "mine" and read_json(out)["threshold"] == 0.25
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "evaluation.json").write_text("{}")
    with pytest.raises(UsageError, match="something else than an evaluation"):
        evaluate_into(run_dir, tmp_path / "other")
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UsageError, match="is a file"):
        evaluate_into(run_dir, tmp_path / "file")
    with pytest.raises(UsageError, match="something else"):
        evaluate_into(run_dir, run_dir)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "other", "out"]


@pytest.mark.usefixtures("undrawn")
def test_a_failure_leaves_the_older_evaluation(
    run_dir: Path, out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = shutil.copytree(out, tmp_path / "out")
    before = (mine / "evaluation.json").read_text()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(folder, "_write_json", full)
    with pytest.raises(OutputError, match="cannot be written .No space left on device"):
        evaluate_into(run_dir, mine)
    assert [p.name for p in tmp_path.iterdir()] == ["out"] and (mine / "evaluation.json").read_text() == before
    with pytest.raises(OutputError):
        evaluate_into(run_dir, tmp_path / "new")
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_an_older_evaluation_comes_back_when_the_new_one_cannot_take_its_place(
    out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine, new = shutil.copytree(out, tmp_path / "out"), tmp_path / "new"
    rename = Path.rename

    def refuse(self: Path, target: Path) -> Path:
        if self == new:
            raise OSError(13, "Permission denied")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refuse)
    new.mkdir()
    with pytest.raises(OSError, match="Permission denied"):
        folder._put(new, tmp_path / "old", mine)
    assert (mine / "evaluation.json").exists() and not (tmp_path / "old").exists()


@pytest.mark.usefixtures("undrawn")
def test_what_a_killed_evaluation_left_is_undone(run_dir: Path, out: Path, tmp_path: Path) -> None:
    """Killed between the two renames: the older evaluation lies aside, the new one is complete but not in its place."""
    shutil.copytree(out, tmp_path / ".out.slidescreen-old")
    shutil.copytree(out, tmp_path / ".out.slidescreen-partial")
    evaluate_into(run_dir, tmp_path / "out", threshold=0.25)
    assert [p.name for p in tmp_path.iterdir()] == ["out"] and read_json(tmp_path / "out")["threshold"] == 0.25


def test_the_command(run_dir: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-W", "error", "-m", "slidescreen", "evaluate"]
    done = subprocess.run([*command, run_dir, "-o", tmp_path / "out"], capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    assert re.search(
        r"446 images, 5 folds: balanced accuracy 0\.\d{3}, blast AUC 0\.\d{3}, atypical AUC 0\.\d{3} -> ", done.stdout
    )
    assert re.search(r"munich: \d+ images, balanced accuracy 0\.\d{3} \(0\.\d{3}.0\.\d{3}\), blast AUC 0", done.stdout)
    assert "Split by image" in done.stderr and "left out" in done.stderr
    done = subprocess.run([*command, tmp_path / "none.csv", "-o", tmp_path / "x"], capture_output=True, text=True, timeout=280)
    assert done.returncode == 2 and "no such file or folder" in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "x").exists()


def test_the_papers_size_takes_seconds(tmp_path: Path) -> None:
    """18,365 images, 1,000 resamples; the limit is loose for busy machines (1.5 s of one core where it was written)."""
    path = write_csv(tmp_path / "p.csv", rows(PUBLISHED_COUNTS))
    predictions = read_predictions(path)
    start = time.process_time()
    found = evaluate(predictions, "large")
    assert time.process_time() - start < 15
    assert found.images == 18365 and found.resampling.resamples == 1000 and found.balanced_accuracy.ci95 is not None
