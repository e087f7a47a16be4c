"""Evaluation -> one HTML page that loads nothing from anywhere. Numbers become words here; the template places them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

import jinja2

from slidescreen import __version__
from slidescreen.evaluation import published, tables
from slidescreen.evaluation.bootstrap import FEWEST_UNITS
from slidescreen.evaluation.figures import PAGE_COLOURS, plus_minus
from slidescreen.evaluation.metrics import CALIBRATION_BINS
from slidescreen.evaluation.result import (
    ClassResult,
    Decision,
    Estimate,
    Evaluation,
    Group,
    Interval,
    Rate,
    SensSpec,
    SourceResult,
)
from slidescreen.report import wording
from slidescreen.report.tables import Line
from slidescreen.report.wording import DASH
from slidescreen.taxonomy import BY_CODE

DECISION_NAMES: Final = {"blast": "Blast character", "atypical": "Atypical cells"}
LONGEST_VALUE: Final = 300
"""Letters of a value of run.json that are shown."""


def render(evaluation: Evaluation, figures: Mapping[str, str], created: str) -> str:
    """The page. `figures`: name -> SVG as `figures.draw` makes it; a name that is missing was not drawn."""
    context = {
        "e": evaluation,
        "created": created,
        "version": __version__,
        "figures": {name: inline(name, svg) for name, svg in figures.items()},
        "groups": [
            ("Mature leukocytes", _class_rows(evaluation, published.MATURE)),
            ("Immature leukocytes and smudge cells", _class_rows(evaluation, published.IMMATURE)),
        ],
        "decisions": [_decision(evaluation, decision) for decision in evaluation.decisions],
        "kappas": _kappas(evaluation),
        "sources": [_source(each) for each in evaluation.sources],
        "patients": [_group(g) for g in evaluation.by_patient],
        "run": [Line(name, value) for name, value in _flat(evaluation.run, "")],
        "colours": BY_CODE,
        "dash": DASH,
        "bins": CALIBRATION_BINS,
        "fewest_units": FEWEST_UNITS,
        "published_images": sum(each.images for each in published.TABLE_1.values()),
    }
    return _environment().get_template("evaluation.html.j2").render(context)


def inline(name: str, svg: str) -> str:
    """An SVG file as part of the page: own names for what it refers to, the page's colours, no size of its own."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", svg, flags=re.S)
    svg = re.sub(r' (?:width|height)="[\d.]+pt"', "", svg, count=2)
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = re.sub(r'(href="|url\()#', rf"\1#{name}-", svg)
    for colour, variable in PAGE_COLOURS.items():
        svg = svg.replace(colour, f"var({variable})")
    return svg.replace("<svg", '<svg aria-hidden="true"', 1)


def span(interval: Interval | None, decimals: int) -> str:
    """An interval as "0.93-0.95", with an en dash."""
    return wording.limits(interval, decimals)


def in_folds(estimate: Estimate) -> str:
    """ "3 of 5 folds" where it is not defined in all, else nothing."""
    if not estimate.defined or estimate.defined == len(estimate.folds):
        return ""
    return f"{estimate.defined} of {len(estimate.folds)} folds"


@dataclass(frozen=True, slots=True)
class Score:
    """One score of a class in words: mean +- sd, in how many folds, its interval, and what is published."""

    name: str
    value: str
    folds: str
    interval: str
    paper: str


@dataclass(frozen=True, slots=True)
class ClassRow:
    """One line of the page's Table 1."""

    code: str
    name: str
    images: int
    scores: tuple[Score, ...]
    published_images: int


def _class_rows(evaluation: Evaluation, paper: Mapping[str, published.PublishedClass]) -> list[ClassRow]:
    by_code = {each.code: each for each in evaluation.classes}
    return [_class_row(by_code[code], line) for code, line in paper.items()]


def _class_row(found: ClassResult, paper: published.PublishedClass) -> ClassRow:
    shown = found.images > 0

    def score(name: str, estimate: Estimate, printed: str, decimals: int = 2) -> Score:
        if not shown:
            return Score(name, DASH, "", DASH, printed)
        return Score(name, plus_minus(estimate, decimals), in_folds(estimate), span(estimate.ci95, decimals), printed)

    return ClassRow(
        code=found.code,
        name=BY_CODE[found.code].name,
        images=found.images,
        scores=(
            score("precision", found.precision, _paper(paper.precision, 2)),
            score("sensitivity", found.sensitivity, _paper(paper.sensitivity, 2)),
            score("specificity", found.specificity, "", decimals=3),
        ),
        published_images=paper.images,
    )


def _paper(value: published.MeanSd, decimals: int) -> str:
    return f"{value.mean:.{decimals}f} ± {value.sd:.{decimals}f}"


@dataclass(frozen=True, slots=True)
class Answerer:
    """Who answered one of the two questions, on which images, and how well; `paper` is what is published of the same."""

    name: str
    images: int
    sensitivity: str
    sensitivity_limits: str
    specificity: str
    specificity_limits: str
    paper: str


@dataclass(frozen=True, slots=True)
class DecisionPart:
    """One question, as the page shows it."""

    key: str
    name: str
    codes: str
    positives: int
    negatives: int
    auc: str
    interval: str
    folds: str
    paper: str
    paper_patients: str
    undefined: str
    answerers: tuple[Answerer, ...]


def _decision(evaluation: Evaluation, decision: Decision) -> DecisionPart:
    paper = published.DECISIONS[decision.key]
    kind = "positive" if not decision.positives else "negative" if not decision.negatives else ""
    no_fold = f"there is no {kind} image" if kind else "no fold holds both positive and negative images"
    return DecisionPart(
        key=decision.key,
        name=DECISION_NAMES[decision.key],
        codes=", ".join(decision.codes),
        positives=decision.positives,
        negatives=decision.negatives,
        auc=plus_minus(decision.auc, 3),
        interval=span(decision.auc.ci95, 3),
        folds=in_folds(decision.auc),
        paper=_paper(paper.auc, 3),
        paper_patients=f"{paper.auc_patient_split:.3f}",
        undefined=f"AUC undefined: {no_fold}." if decision.auc.value is None else "",
        answerers=tuple(_answerer(by, said, paper) for by, said in tables.who(evaluation, decision)),
    )


def _answerer(by: str, said: SensSpec, paper: published.PublishedDecision) -> Answerer:
    ordinal = {"1": "first", "2": "second"}.get(by[-1], "")
    names = {"reannotation": f"Human, {ordinal} re-annotation", "network_on_reannotated": "Network, the same images"}
    printed = ""
    if by.startswith("reannotation"):
        sensitivity, specificity = paper.reannotations[int(by[-1]) - 1]
        printed = f"{100 * sensitivity:.1f} % / {100 * specificity:.1f} %"
    return Answerer(
        name=names.get(by.rstrip("_12"), "Network, all images"),
        images=said.sensitivity.total + said.specificity.total,
        sensitivity=_percent(said.sensitivity),
        sensitivity_limits=_percent_limits(said.sensitivity),
        specificity=_percent(said.specificity),
        specificity_limits=_percent_limits(said.specificity),
        paper=printed,
    )


def _percent(rate: Rate) -> str:
    return DASH if rate.value is None else f"{100 * rate.value:.1f} %"


def _percent_limits(rate: Rate) -> str:
    return span(wording.limits_as_percent(rate.limits), 1)


@dataclass(frozen=True, slots=True)
class Kappa:
    """An agreement in words."""

    what: str
    images: int
    value: str
    interval: str
    folds: str
    paper: str


def _kappas(evaluation: Evaluation) -> list[Kappa]:
    rows = []
    for each in evaluation.reannotations:
        ordinal = ("First", "Second")[each.number - 1]
        paper = f"{published.KAPPA[each.number - 1]:.2f}"
        rows.append(_kappa(f"{ordinal} re-annotation and gold standard", each.images, each.kappa_human, paper))
        rows.append(_kappa("Network and gold standard, the same images", each.images, each.kappa_network, ""))
        if each.kappa_first is not None:
            rows.append(_kappa("Second and first re-annotation", each.both, each.kappa_first, ""))
    return rows


def _kappa(what: str, images: int, estimate: Estimate, paper: str) -> Kappa:
    value = wording.number(estimate.value, 3)
    return Kappa(what, images, value, span(estimate.ci95, 3), plus_minus(estimate, 3), paper)


@dataclass(frozen=True, slots=True)
class SourceRow:
    """A source in words; measures with their interval."""

    source: str
    images: int
    patients: str
    classes: int
    balanced_accuracy: str
    frequent: str
    blast_auc: str
    atypical_auc: str
    gold: str
    network: str


def _source(found: SourceResult) -> SourceRow:
    often = len(found.frequent_classes)
    return SourceRow(
        source=found.source or DASH,
        images=found.images,
        patients=str(found.patients or DASH),
        classes=found.classes,
        balanced_accuracy=with_interval(found.balanced_accuracy),
        frequent=f"{with_interval(found.frequent_balanced_accuracy)} of {often}" if often else DASH,
        blast_auc=with_interval(found.blast_auc),
        atypical_auc=with_interval(found.atypical_auc),
        gold=f"{100 * found.blasts_gold / found.images:.1f} %",
        network=f"{100 * found.blasts_network / found.images:.1f} %",
    )


def with_interval(estimate: Estimate) -> str:
    """ "0.902 (0.822–0.959)", the value alone where there is no interval."""
    value = wording.number(estimate.value, 3)
    return f"{value} ({span(estimate.ci95, 3)})" if estimate.ci95 else value


@dataclass(frozen=True, slots=True)
class GroupRow:
    """A patient in words."""

    source: str
    patient: str
    images: int
    classes: int
    balanced_accuracy: str
    blast_auc: str
    atypical_auc: str
    gold: str
    network: str


def _group(group: Group) -> GroupRow:
    return GroupRow(
        source=group.source or DASH,
        patient=group.patient,
        images=group.images,
        classes=group.classes,
        balanced_accuracy=wording.number(group.balanced_accuracy, 3),
        blast_auc=wording.number(group.blast_auc, 3),
        atypical_auc=wording.number(group.atypical_auc, 3),
        gold=f"{100 * group.blasts_gold / group.images:.1f} %",
        network=f"{100 * group.blasts_network / group.images:.1f} %",
    )


def _flat(values: Mapping[str, Any], prefix: str) -> list[tuple[str, str]]:
    flat = []
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat += _flat(value, f"{prefix}{key}.")
        else:
            said = DASH if value is None else str(value)
            flat.append((f"{prefix}{key}", said if len(said) <= LONGEST_VALUE else f"{said[:LONGEST_VALUE]} …"))
    return flat


@cache
def _environment() -> jinja2.Environment:
    """Templates of this package, and the report's under "report/": both pages have one look."""
    looks = jinja2.PrefixLoader({"report": jinja2.PackageLoader("slidescreen", "report")})
    environment = jinja2.Environment(
        loader=jinja2.ChoiceLoader([jinja2.PackageLoader("slidescreen", "evaluation"), looks]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals |= {"plus_minus": plus_minus, "span": span, "in_folds": in_folds, "number": wording.number}
    return environment
