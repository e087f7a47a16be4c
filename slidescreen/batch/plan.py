"""What there is to do: the inputs, checked, before anything is started."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

from slidescreen.batch.events import Job, SlideSkipped, SlideTask
from slidescreen.batch.inputs import Input
from slidescreen.batch.ledger import known_failure, read_entry
from slidescreen.batch.lock import Shard
from slidescreen.batch.output import Output, read_json
from slidescreen.batch.slides import SlideFailure, failure
from slidescreen.config import Settings
from slidescreen.detector_card import DEFAULT_DETECTOR, load_detector_card
from slidescreen.errors import OpenError, UsageError
from slidescreen.model import check_weights, find_model, load_card, load_rejection
from slidescreen.monolayer import with_aoi
from slidescreen.slide import SCAN_SUFFIXES, is_remote, scans_under
from slidescreen.slide.fingerprint import fingerprint, slide_id
from slidescreen.store import SCHEMA, SUMMARY
from slidescreen.stored import same_request

READERS: Final = 8
"""Files looked at side by side: network shares answer slowly."""
WITH_PATCHES: Final = 300_000_000
WITHOUT_PATCHES: Final = 30_000_000
"""Bytes a result is taken to need where none is stored yet: 1,000 patches and a page; a page."""
SAMPLED: Final = 10


@dataclass(frozen=True, slots=True)
class Planned:
    """An input and what is to be done about it. `note`: why it is to be screened."""

    input: Input
    action: SlideTask | SlideSkipped | SlideFailure
    note: str = ""


@dataclass(frozen=True, slots=True)
class Plan:
    """Every input of this run, in order, with its action. `remarks`: what a user should know before it starts."""

    slides: tuple[Planned, ...]
    remarks: tuple[str, ...] = ()

    @property
    def tasks(self) -> list[SlideTask]:
        """The slides to be screened, in order."""
        return [p.action for p in self.slides if isinstance(p.action, SlideTask)]

    def count(self, kind: type) -> int:
        """How many slides have this kind of action."""
        return sum(isinstance(p.action, kind) for p in self.slides)


@dataclass(frozen=True, slots=True)
class Resume:
    """What is done about what is there already. `overwrite`: screen again what is current. `retry_failed`: try again what
    failed for a reason that lies in the slide."""

    overwrite: bool = False
    retry_failed: bool = False


@dataclass(slots=True)
class _Seen:
    """What was met so far: first path by content and request, content and request by name."""

    paths: dict[tuple[str, str], Path] = field(default_factory=dict)
    names: dict[str, tuple[str, str]] = field(default_factory=dict)


def slide_settings(settings: Settings, aoi: str) -> Settings:
    """The settings of a slide whose row names an area of its own. Raises UsageError."""
    return dataclasses.replace(settings, monolayer=with_aoi(settings.monolayer, aoi)) if aoi else settings


def check_models(folder: Path, settings: Settings) -> None:
    """Raise ModelError when a model that will be needed cannot be used: every slide would fail with it."""
    for each in (folder, *([find_model(settings.classify.cascade)] if settings.classify.cascade else [])):
        card = load_card(each)
        check_weights(each, card.sha256)
        load_rejection(each, card)
    if settings.detect.method == "network":
        detector = find_model(DEFAULT_DETECTOR)
        check_weights(detector, load_detector_card(detector).sha256)


def make_plan(
    inputs: Sequence[Input],
    job: Job,
    output: Output,
    resume: Resume = Resume(),
    shard: Shard | None = None,
) -> Plan:
    """Check every input, and decide what is to be done. Reads files, opens none as a scan, writes nothing.

    Raises ModelError for a model without a sound card, UsageError for an area that cannot be used.
    """
    request = _requests(job.settings, load_card(job.model).identity)
    with ThreadPoolExecutor(READERS) as pool:
        prints = list(pool.map(_fingerprint, [each.path for each in inputs]))
    seen = _Seen()
    slides = []
    for each, print_ in zip(inputs, prints, strict=True):
        planned = (
            Planned(each, print_) if isinstance(print_, SlideFailure) else _decide(each, print_, request, output, resume, seen)
        )
        slides.append(planned)
    if shard is not None:
        slides = slides[shard.index - 1 :: shard.count]
    plan = Plan(tuple(slides))
    return Plan(plan.slides, tuple(_remarks(plan, job, output)))


def _fingerprint(path: Path) -> str | SlideFailure:
    try:
        if not is_remote(path) and path.is_dir() and scans_under(path) != [path]:
            raise IsADirectoryError
        return fingerprint(path)
    except OSError as error:
        unreadable = OpenError(f"{path}: {_reason(error)}")
        unreadable.__cause__ = error
        return dataclasses.replace(failure(path, unreadable, "plan"), transient=True)
    except Exception as error:  # storage behind a URL has errors of its own
        if not is_remote(path):
            raise
        said = " ".join(str(error).split()) or type(error).__name__
        unreachable = OpenError(f"{path}: cannot be reached ({said}); check the address and the credentials")
        unreachable.__cause__ = error
        return dataclasses.replace(failure(path, unreachable, "plan"), transient=True)


def _reason(error: OSError) -> str:
    if isinstance(error, FileNotFoundError):
        return "no such file; check the path"
    if isinstance(error, PermissionError):
        return "no permission to read it; change its permissions or run as another user"
    if isinstance(error, IsADirectoryError):
        return f"no scans in this folder (looked for {', '.join(sorted(SCAN_SUFFIXES))}); name the scans"
    return f"cannot be read ({error.strerror}); check the disk or the network share"


Request = Callable[[Input, str], tuple[str, Mapping[str, Any]]]


def _requests(settings: Settings, model: str) -> Request:
    """Gives the key of an input with its content, and what its result must have been made with."""
    by_aoi: dict[str, Any] = {}

    def request(each: Input, print_: str) -> tuple[str, Mapping[str, Any]]:
        if each.aoi not in by_aoi:
            try:
                by_aoi[each.aoi] = slide_settings(settings, each.aoi).result_settings()
            except UsageError as error:
                raise UsageError(f"{each.path}: {error}") from None
        wanted = {"wanted_scale": each.um_per_px, "model": model, "settings": by_aoi[each.aoi], "fingerprint": print_}
        text = json.dumps(wanted | {"schema": SCHEMA}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16], wanted

    return request


def _decide(each: Input, print_: str, request: Request, output: Output, resume: Resume, seen: _Seen) -> Planned:
    name = slide_id(each.path, print_)
    key, wanted = request(each, print_)
    twin = seen.paths.setdefault((print_, key), each.path)
    if twin != each.path:
        first = slide_id(twin, print_)
        return Planned(each, SlideSkipped(each.path, first, output.where(first), f"the same content as {twin}"))
    if seen.names.setdefault(name, (print_, key)) != (print_, key):
        clash = OpenError(
            f"{each.path}: another slide of this batch would be stored as {name} too; screen it into another output folder"
        )
        return Planned(each, failure(each.path, clash, "plan"))
    task = SlideTask(each.path, name, print_, key, each.um_per_px, each.aoi)
    found = read_json(output, f"{name}/{SUMMARY}")
    if resume.overwrite:
        return Planned(each, task, "--overwrite")
    if found is not None and same_request(found, **wanted):
        return Planned(each, SlideSkipped(each.path, name, output.where(name), "current"))
    known = known_failure(read_entry(output, name), key)
    if known is not None and not resume.retry_failed:
        told = dataclasses.replace(
            known, path=each.path, next_step=f"{known.next_step} (failed before; --retry-failed tries again)"
        )
        return Planned(each, told)
    return Planned(each, task, "failed before" if known else "new" if found is None else _changed(found, wanted))


def _changed(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    """In which way a stored result is not the one wanted."""
    try:
        differs = {
            "schema": found.get("schema") != SCHEMA,
            "scale": found["slide"].get("um_per_px_wanted") != wanted["wanted_scale"],
            "model": found["model"].get("identity") != wanted["model"],
            "settings": found["settings"] != json.loads(json.dumps(wanted["settings"])),
        }
    except (KeyError, TypeError):
        return "stored result is damaged"
    return f"other {', '.join(k for k, v in differs.items() if v) or 'content'} than the stored result"


def _remarks(plan: Plan, job: Job, output: Output) -> Iterator[str]:
    stems = Counter(p.input.path.stem for p in plan.slides)
    for stem, number in stems.items():
        if number > 1:
            yield f"{number} slides are called {stem}: the 8 digits in the names of their results tell them apart"
    if output.folder is not None and plan.tasks:
        nearest = next(p for p in (output.folder, *output.folder.absolute().parents) if p.exists())
        free = shutil.disk_usage(nearest).free
        need = len(plan.tasks) * _bytes_each(output.folder, job.patches)
        yield f"disk: {free / 1e9:.1f} GB free, about {need / 1e9:.1f} GB needed"
        if need > free:
            yield f"the disk of {output.place} will probably be full before the end; free space, or use --no-patches"


def _bytes_each(folder: Path, patches: bool) -> int:
    """Mean size of some results that are there, else a guess."""
    stored = sorted(folder.glob(f"*/{SUMMARY}"))[:SAMPLED] if folder.is_dir() else []
    sizes = [sum(p.stat().st_size for p in s.parent.rglob("*") if p.is_file()) for s in stored]
    return sum(sizes) // len(sizes) if sizes else WITH_PATCHES if patches else WITHOUT_PATCHES


def describe(plan: Plan, everything: bool) -> Iterator[str]:
    """The plan as lines: every slide, or only those that are not told of later anyway, then the sums."""
    for p in plan.slides:
        action = p.action
        if isinstance(action, SlideFailure) and everything:
            yield f"fail    {action}"
        elif isinstance(action, SlideSkipped) and (everything or action.reason != "current"):
            yield f"skip    {p.input.path} ({action.reason})"
        elif isinstance(action, SlideTask) and (everything or p.note != "new"):
            yield f"screen  {p.input.path} ({p.note})"
    yield from plan.remarks
    sums = (
        f"{plan.count(SlideTask)} to screen, {plan.count(SlideSkipped)} to skip, {plan.count(SlideFailure)} cannot be screened"
    )
    yield f"{len(plan.slides)} slide(s) listed: {sums}"


WantedScale = float | Literal["auto"] | None


def with_defaults(inputs: Sequence[Input], um_per_px: WantedScale) -> list[Input]:
    """The scale of the command line for every slide whose row names none."""
    return [dataclasses.replace(each, um_per_px=um_per_px) if each.um_per_px is None else each for each in inputs]
