"""Mutations of small files of every format, opened and read in worker processes with limits of time and memory.

    python benchmarks/fuzz.py [--per-format 110] [--formats aperio vmic] [--jobs 2] [--keep FOLDER]

Deterministic: format and number name a mutation. A worker handles many files and is started anew when it dies. Prints a table,
and exits 1 when a file crashed a worker, hung, or needed more than 2 GiB.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import re
import resource
import select
import shutil
import struct
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
LIMIT_S = 40.0
PROBE_S = 15.0
LIMIT_BYTES = 2 << 30
READ_PX = 1100
OUTCOMES = ("opened", "partly unreadable", "refused", "memory", "crashed", "hung")
BAD = ("memory", "crashed", "hung")
NUMBERS = (0, 1, 2, 3, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x10000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
DIGITS = re.compile(rb"\d+(?:\.\d+)?")
Files = dict[str, bytes]


@dataclass(frozen=True)
class Outcome:
    """What became of one mutation. `white`: whether more than 1 % of what was read as scanned is pure white, which none of the
    originals shows."""

    format: str
    number: int
    kind: str
    outcome: str
    detail: str
    white: bool = False


def originals(folder: Path, names: list[str]) -> dict[str, tuple[str, Files]]:
    """Format -> the name to open and the files of the scan."""
    sys.path.insert(0, str(ROOT / "tests"))
    from lookalikes import FORMATS

    found = {}
    for name in names or list(FORMATS):
        file, write = FORMATS[name]
        home = folder / name
        home.mkdir()
        write(home / file)
        found[name] = (file, {p.relative_to(home).as_posix(): p.read_bytes() for p in sorted(home.rglob("*")) if p.is_file()})
    return found


def mutate(files: Files, rng: random.Random) -> tuple[str, Files]:
    """One mutation of one of the files: its kind, and the files."""
    name = rng.choice(sorted(files))
    data = files[name]
    kinds = ["truncate", "flip", "zero", "ones", "delete", "repeat", "numbers"]
    kinds += ["tag", "tag", "tag", "link"] if _order(data) else []
    kinds += ["text", "text"] if DIGITS.search(data[:20_000]) else []
    kinds += ["lose"] if len(files) > 1 else []
    kind = rng.choice(kinds)
    if kind == "lose":
        return kind, {other: content for other, content in files.items() if other != name}
    return kind, {**files, name: bytes(MUTATIONS[kind](bytearray(data), rng))}


def _truncate(data: bytearray, rng: random.Random) -> bytearray:
    return data[: rng.randrange(len(data) + 1)]


def _flip(data: bytearray, rng: random.Random) -> bytearray:
    head = rng.random() < 0.5  # half of them where structure is densest
    for _ in range(rng.choice((1, 2, 8, 64))):
        data[rng.randrange(min(len(data), 4096) if head else len(data))] ^= 1 << rng.randrange(8)
    return data


def _run(value: int, data: bytearray, rng: random.Random) -> bytearray:
    at, length = rng.randrange(len(data)), rng.choice((1, 4, 64, 1024, 16384))
    data[at : at + length] = bytes([value]) * len(data[at : at + length])
    return data


def _delete(data: bytearray, rng: random.Random) -> bytearray:
    at = rng.randrange(len(data))
    del data[at : at + rng.choice((1, 2, 16, 512, 8192))]
    return data


def _repeat(data: bytearray, rng: random.Random) -> bytearray:
    at = rng.randrange(len(data))
    data[at:at] = data[at : at + rng.choice((1, 4, 256, 4096))] * rng.choice((1, 2, 50))
    return data


def _numbers(data: bytearray, rng: random.Random) -> bytearray:
    for _ in range(rng.choice((1, 3))):
        packed = struct.pack(rng.choice("<>") + rng.choice("HI"), rng.choice(NUMBERS) & 0xFFFF) if rng.random() < 0.3 else None
        packed = packed or struct.pack(rng.choice("<>") + "I", rng.choice(NUMBERS))
        at = rng.randrange(max(1, len(data) - len(packed)))
        data[at : at + len(packed)] = packed
    return data


def _text(data: bytearray, rng: random.Random) -> bytearray:
    found = list(DIGITS.finditer(data[:20_000]))
    match = rng.choice(found)
    new = rng.choice((b"0", b"-1", b"1", b"99999", b"2147483648", b"18446744073709551616", b"1e308", b"nan", b"", b"x"))
    return data[: match.start()] + new + data[match.end() :]


def _order(data: bytes) -> str | None:
    return {b"II*\0": "<", b"MM\0*": ">", b"II+\0": "<", b"MM\0+": ">"}.get(bytes(data[:4]))


def _directories(data: bytes) -> Iterator[tuple[int, int, int, int, int]]:
    """Of each directory of a sound TIFF: offset of its first entry, entries, bytes an entry, position and bytes of the link."""
    order = _order(data) or "<"
    big = data[2] in (43, 0) and 43 in data[2:4]
    link, size, count, entry = (8, 8, "Q", 20) if big else (4, 4, "I", 12)
    for _ in range(50):
        (offset,) = struct.unpack_from(order + count, data, link)
        if not offset:
            return
        (entries,) = struct.unpack_from(order + ("Q" if big else "H"), data, offset)
        first = offset + (8 if big else 2)
        link = first + entries * entry
        yield first, entries, entry, link, size


def _tag(data: bytearray, rng: random.Random) -> bytearray:
    order = _order(data) or "<"
    first, entries, size, _, _ = rng.choice(list(_directories(data)))
    at = first + rng.randrange(entries) * size
    where, code = rng.choice(((0, "H"), (2, "H"), (4, "I"), (size - (8 if size == 20 else 4), "I"), (size - 4, "I")))
    struct.pack_into(order + code, data, at + where, rng.choice(NUMBERS) & (0xFFFF if code == "H" else 0xFFFFFFFF))
    return data


def _link(data: bytearray, rng: random.Random) -> bytearray:
    order, found = _order(data) or "<", list(_directories(data))
    _, _, _, link, size = rng.choice(found)
    target = rng.choice((found[0][0] - (8 if size == 8 else 2), 8, len(data) - 1, 0xFFFFFFF0, rng.randrange(len(data))))
    struct.pack_into(order + ("Q" if size == 8 else "I"), data, link, target)
    return data


MUTATIONS = {
    "truncate": _truncate,
    "flip": _flip,
    "zero": lambda data, rng: _run(0, data, rng),
    "ones": lambda data, rng: _run(255, data, rng),
    "delete": _delete,
    "repeat": _repeat,
    "numbers": _numbers,
    "text": _text,
    "tag": _tag,
    "link": _link,
}


def work() -> None:
    """A worker: paths on standard input, a line of JSON each on standard output."""
    from slidescreen.errors import ScaleError, SlideError
    from slidescreen.geometry import Box
    from slidescreen.scale import resolve_scale
    from slidescreen.slide import PixelState, open_slide, opening, probe

    opening.DETECTION_S = 0  # a process of its own for each refusal: not what is tested here
    opening._detection = lambda path: ""
    opening.openslide_fault = lambda path: probe.openslide_fault(path, PROBE_S)
    base = int(re.findall(r"VmSize:\s+(\d+)", Path("/proc/self/status").read_text())[0]) << 10
    resource.setrlimit(resource.RLIMIT_AS, (base + LIMIT_BYTES, base + LIMIT_BYTES))
    print("ready", flush=True)
    for line in sys.stdin:
        path, white = Path(line.rstrip("\n")), False
        try:
            with open_slide(path) as slide:
                with contextlib.suppress(ScaleError):
                    resolve_scale(path, slide.stated_scale, None, slide.details.other_scales)
                lost = 0
                for level in {0, len(slide.levels) - 1}:
                    size = slide.levels[level].size
                    for box in (Box(0, 0, READ_PX, READ_PX), Box(size.width - 300, size.height - 300, 300, 300)):
                        pixels = slide.read_pixels(box, level)
                        lost += int((pixels.state == PixelState.UNREADABLE).sum())
                        scanned = pixels.state == PixelState.SCANNED
                        blank = int((scanned & (pixels.rgb.min(2) == 255)).sum())
                        white = white or blank > 0.01 * max(1, int(scanned.sum()))
            outcome, detail = ("partly unreadable" if lost else "opened"), f"{lost} px lost"
        except SlideError as error:
            outcome, detail = "refused", str(error)
        except MemoryError as error:
            outcome, detail = "memory", str(error)
        except BaseException as error:  # anything else is a defect, and told as one
            outcome, detail = "crashed", f"{type(error).__name__}: {error}"
        print(json.dumps([outcome, detail[-300:], white]), flush=True)


class Worker:
    """A process that opens files, started anew when it dies or hangs."""

    def __init__(self) -> None:
        self._start()

    def _start(self) -> None:
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        command = [sys.executable, "-W", "ignore", __file__, "--worker"]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment, text=True
        )
        self._line(120)

    def _line(self, seconds: float) -> str | None:
        assert self.process.stdout
        ready, _, _ = select.select([self.process.stdout], [], [], seconds)
        return self.process.stdout.readline() if ready else None

    def open(self, path: Path) -> tuple[str, str, bool]:
        assert self.process.stdin
        self.process.stdin.write(f"{path}\n")
        self.process.stdin.flush()
        line = self._line(LIMIT_S)
        if line:
            outcome, detail, white = json.loads(line)
            return outcome, detail, white
        self.process.kill()
        code = self.process.wait()
        self._let_go()
        self._start()
        return ("hung", f"more than {LIMIT_S:g} s", False) if line is None else ("crashed", f"signal {-code}", False)

    def close(self) -> None:
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait()
        self._let_go()

    def _let_go(self) -> None:
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe
            with contextlib.suppress(OSError):
                pipe.close()


def run(per_format: int, names: list[str], jobs: int, keep: Path | None = None, *, report: bool = False) -> list[Outcome]:
    """All outcomes, in order. `keep`: folder for the files that crashed, hung or looked white."""
    outcomes: list[Outcome] = []
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "originals").mkdir()
        scans = originals(Path(folder) / "originals", names)
        tasks = iter([(name, number) for number in range(per_format) for name in scans])
        lock = threading.Lock()

        def labour() -> None:
            worker = Worker()
            while True:
                with lock:
                    task = next(tasks, None)
                if task is None:
                    return worker.close()
                name, number = task
                file, files = scans[name]
                kind, mutated = mutate(files, random.Random(f"{name}-{number}"))
                home = Path(folder) / f"{name}-{number}"
                for relative, content in mutated.items():
                    (home / relative).parent.mkdir(parents=True, exist_ok=True)
                    (home / relative).write_bytes(content)
                outcome, detail, white = worker.open(home / file)
                if keep and (outcome in BAD or white):
                    shutil.copytree(home, keep / home.name, dirs_exist_ok=True)
                shutil.rmtree(home, ignore_errors=True)
                with lock:
                    outcomes.append(Outcome(name, number, kind, outcome, detail, white))
                    if report and (outcome in BAD or white):
                        print(f"{name}-{number} ({kind}): {outcome}{', white' if white else ''}: {detail}", flush=True)

        threads = [threading.Thread(target=labour) for _ in range(jobs)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    if len(outcomes) != per_format * len(scans):
        raise RuntimeError(f"{len(outcomes)} outcomes of {per_format * len(scans)} mutations")
    return sorted(outcomes, key=lambda o: (o.format, o.number))


def table(outcomes: list[Outcome]) -> str:
    head = ("format", "files", *OUTCOMES, "white")
    lines = [f"| {' | '.join(head)} |", f"| {' | '.join('---' for _ in head)} |"]
    for name in [*dict.fromkeys(o.format for o in outcomes), "all"]:
        mine = [o for o in outcomes if name in (o.format, "all")]
        counts = Counter(o.outcome for o in mine)
        cells = [name, len(mine), *(counts[kind] for kind in OUTCOMES), sum(o.white for o in mine)]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--per-format", type=int, default=110)
    parser.add_argument("--formats", nargs="*", default=[])
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--keep", type=Path)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        return work()
    outcomes = run(arguments.per_format, arguments.formats, arguments.jobs, arguments.keep, report=True)
    print(table(outcomes))
    if any(o.outcome in BAD for o in outcomes):
        sys.exit(1)


if __name__ == "__main__":
    main()
