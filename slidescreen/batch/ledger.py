"""The books of a batch: an entry per slide under `logs/`, `failures.csv`, `run.json`, and the account at the end."""

from __future__ import annotations

import csv
import hashlib
import io
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Literal

from slidescreen.batch.inputs import Input
from slidescreen.batch.output import Output, read_json, utc_now, write, write_json
from slidescreen.batch.slides import SlideFailure
from slidescreen.errors import AuditError
from slidescreen.slide.fingerprint import slide_id

LOGS: Final = "logs"
COLUMNS: Final = ("path", "stage", "error_class", "message", "next_step")

Status = Literal["done", "skipped", "failed", "not reached"]


@dataclass(frozen=True, slots=True)
class Entry:
    """What became of one slide. `name`: of its result and log. `key`: hash of what the result depends on. `reason`: why it was
    skipped."""

    path: str
    name: str
    status: Status
    key: str = ""
    reason: str = ""
    worker: str = ""
    seconds: float = 0.0
    timings_s: Mapping[str, float] | None = None
    failure: SlideFailure | None = None


@dataclass(frozen=True, slots=True)
class Account:
    """How many slides were listed, and what became of them. Raises AuditError when that does not add up."""

    listed: int
    done: int
    skipped: int
    failed: int
    not_reached: int

    def __post_init__(self) -> None:
        if self.listed != self.done + self.skipped + self.failed + self.not_reached:
            raise AuditError(f"the slides do not add up ({self}); please report this")


def reconcile(inputs: Sequence[Input], entries: Iterable[Entry], output: Output) -> tuple[list[Entry], Account]:
    """One entry per input, in the order of the inputs, and their account.

    A result that is said to be there and is not makes its slide a failure; an input without an entry was not reached.
    Raises AuditError when a slide has two entries or was never listed.
    """
    found: dict[str, Entry] = {}
    there = _there(output)
    for entry in entries:
        if entry.path in found:
            raise AuditError(f"{entry.path}: has two outcomes; please report this")
        found[entry.path] = entry if entry.status == "failed" or entry.name in there else _lost(entry, output)
    paths = [str(each.path) for each in inputs]
    if set(found) - set(paths):
        raise AuditError(f"{', '.join(sorted(set(found) - set(paths)))}: never listed; please report this")
    whole = [found.get(path) or Entry(path, "", "not reached") for path in paths]
    count = [entry.status for entry in whole].count
    return whole, Account(len(paths), count("done"), count("skipped"), count("failed"), count("not reached"))


def _there(output: Output) -> set[str]:
    try:
        return set(output.results())
    except OSError:
        return set()


def _lost(entry: Entry, output: Output) -> Entry:
    failure = SlideFailure(
        Path(entry.path),
        "write",
        "ResultGone",
        f"{entry.path}: its result in {output.where(entry.name)} has gone since it was written",
        "see that the disk is mounted and that nobody removes results, then run again",
        transient=True,
    )
    return Entry(entry.path, entry.name, "failed", entry.key, failure=failure)


def write_entry(output: Output, entry: Entry, columns: Mapping[str, str]) -> None:
    """Keep what became of a slide, with the columns of its row in the CSV file. Raises OutputError."""
    content = _plain(asdict(entry)) | {"columns": dict(columns), "time": utc_now()}
    write_json(output, f"{LOGS}/{entry.name}.json", content)


def keep_columns(output: Output, name: str, path: str, columns: Mapping[str, str]) -> None:
    """Renew the path and the columns of a slide that is skipped; the rest of its entry stays. Raises OutputError."""
    found = read_entry(output, name) or asdict(Entry(path, name, "skipped"))
    if found.get("columns") != dict(columns) or found.get("path") != path or found.get("superseded_by"):
        write_json(output, f"{LOGS}/{name}.json", found | {"path": path, "columns": dict(columns), "superseded_by": ""})


def supersede(output: Output, path: str, name: str) -> None:
    """Mark entries of this path under other names: the file had other content then. Raises OutputError."""
    stem = name.rpartition("-")[0]
    for file in output.files(LOGS):
        other = file.removesuffix(".json")
        if file.endswith(".json") and other != name and other.rpartition("-")[0] == stem:
            found = read_entry(output, other)
            if found and found.get("path") == path and found.get("superseded_by") != name:
                write_json(output, f"{LOGS}/{file}", found | {"superseded_by": name})


def path_name(path: Path) -> str:
    """Name of the entry of a file that cannot be read, and so has no fingerprint."""
    return slide_id(path, hashlib.sha256(os.fsencode(path)).hexdigest())


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    return str(value) if isinstance(value, Path) else value


def read_entry(output: Output, name: str) -> dict[str, Any] | None:
    """An entry as it was kept, as plain values."""
    return read_json(output, f"{LOGS}/{name}.json")


def known_failure(entry: Mapping[str, Any] | None, key: str) -> SlideFailure | None:
    """The failure of an entry, when the same request failed before for a reason that lies in the slide."""
    if not entry or entry.get("key") != key or not entry.get("failure") or entry["failure"].get("transient", True):
        return None
    return SlideFailure(**(entry["failure"] | {"path": Path(entry["failure"]["path"])}))


def write_failures(output: Output, entries: Iterable[Entry], suffix: str) -> None:
    """`failures.csv`: a line per slide without a result; only its head where there is none. Raises OutputError."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n", extrasaction="ignore")
    writer.writeheader()
    for entry in entries:
        if entry.failure is not None:
            writer.writerow({k: " ".join(str(v).split()) for k, v in asdict(entry.failure).items()} | {"path": entry.path})
    write(output, f"failures{suffix}.csv", text.getvalue().encode("utf-8", "replace"))


def write_run(output: Output, content: Mapping[str, Any], suffix: str) -> None:
    """`run.json`. Raises OutputError."""
    write_json(output, f"run{suffix}.json", dict(content))
