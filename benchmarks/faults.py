"""What a night can do to a batch, done to it on purpose: is anything lost, double, or different afterwards?

    python benchmarks/faults.py SCANS [--trials kill worker disk vanish replaced clock readonly many] [--kills 50] [--many 2000]

SCANS: a folder with a few small scans. Every trial is compared, in everything but times, with an uninterrupted run. `disk` and
`readonly` mount file systems and are skipped where that is not allowed. Prints a table as Markdown.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import hashlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from slidescreen import cli

COMMAND = [sys.executable, "-m", "slidescreen"]
CHEAP = '[detect]\nmethod = "stain"\n'
OURS = {".slidescreen.lock"}
CLOCK_BACK = "import time; t = time.time; time.time = lambda: t() - 400 * 86400\nfrom slidescreen.cli import main; main()"


def run(scans: Path, out: Path, *more: str, command: list[str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(arguments(scans, out, *more, command=command), capture_output=True, text=True)


def arguments(scans: Path, out: Path, *more: str, command: list[str] | None = None) -> list[str]:
    return [*(command or COMMAND), "run", str(scans), "-o", str(out), "--settings", str(settings(out)), *more]


def settings(out: Path) -> Path:
    path = out.parent / "cheap.toml"
    if not path.exists():
        path.write_text(CHEAP)
    return path


def content(folder: Path) -> dict[str, str]:
    """Hash of every file of a result, times left out."""
    found = {}
    summary = json.loads((folder / "summary.json").read_text())
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        data = path.read_bytes()
        if path.name == "summary.json":
            data = json.dumps({k: v for k, v in summary.items() if k not in ("created", "timings_s", "waiting_s")}).encode()
        if path.name == "report.html":
            text = data.decode().replace(summary["created"], "")
            data = re.sub(r"<caption>Time per stage.*?</table>", "", text, flags=re.S).encode()
        found[path.relative_to(folder).as_posix()] = hashlib.sha256(data).hexdigest()
    return found


def results(out: Path) -> dict[str, dict[str, str]]:
    return {p.parent.name: content(p.parent) for p in sorted(out.glob("*/summary.json")) if not p.parent.name.startswith(".")}


def differences(out: Path, reference: dict[str, dict[str, str]]) -> list[str]:
    """What is lost, double, different or left over."""
    found = results(out)
    wrong = [f"lost {n}" for n in reference.keys() - found.keys()] + [f"extra {n}" for n in found.keys() - reference.keys()]
    for name in reference.keys() & found.keys():
        files = reference[name].keys() | found[name].keys()
        wrong += [f"{name}/{f} differs" for f in sorted(files) if reference[name].get(f) != found[name].get(f)]
    wrong += [f"left over {p.name}" for p in out.iterdir() if p.name.startswith(".") and p.name not in OURS]
    account = json.loads((out / "run.json").read_text())
    if account["done"] + account["skipped"] != account["listed"] or account["failed"]:
        wrong.append(f"account {account['done']}+{account['skipped']}+{account['failed']} of {account['listed']}")
    return wrong


def half_results(out: Path) -> set[str]:
    """Names of the folders in which results are being made; the last part is the process."""
    return {p.name for p in out.glob(".*.partial-*") if p.is_dir()}


def session(pid: int) -> list[int]:
    """Living processes of a session."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = path.read_text().rpartition(")")[2].split()
            if fields[0] != "Z" and int(fields[3]) == pid:
                found.append(int(path.parent.name))
    return found


def trial_kill(scans: Path, work: Path, reference: dict[str, dict[str, str]], kills: int, seconds: float, until: float) -> str:
    """Batches are killed and resumed until they are through; then the next one begins."""
    rng = random.Random(0)
    wrong: list[str] = []
    done = orphans = halves = batches = 0
    while done < kills and time.monotonic() < until:
        out = work / f"kill-{batches}"
        batches += 1
        whole: set[str] = set()
        while (
            (pid := begin(scans, out)) and not ended(pid, rng.uniform(0, seconds)) and done < kills and time.monotonic() < until
        ):
            (os.killpg if done % 2 else os.kill)(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            done += 1
            halves += bool(half_results(out))
            orphans += len(outlive(pid))
            here = results(out)
            wrong += [f"kill {done}: {n} differs" for n, c in here.items() if c != reference.get(n)]
            wrong += [f"kill {done}: {n} has gone" for n in whole - here.keys()]
            whole = set(here)
            print(
                f"kill {done}: {len(whole)} whole results, {halves} half ones so far, {len(wrong)} wrong",
                file=sys.stderr,
                flush=True,
            )
        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        resumed = run(scans, out)
        wrong += [f"batch {batches}: {d}" for d in differences(out, reference)]
        wrong += [f"batch {batches}: ended with {resumed.returncode}"] if resumed.returncode else []
        shutil.rmtree(out)
    told = (
        f"{done} kills in {batches} batches, each at a random moment within {seconds:.0f} s of a start (every other one of the "
    )
    return f"{told}whole process group); {halves} left a half result; {orphans} orphans after 5 s; " + verdict(wrong)


def begin(scans: Path, out: Path) -> int:
    """The command in a process of its own, without the seconds it takes to import it."""
    line = arguments(scans, out)[len(COMMAND) :]
    pid = os.fork()
    if pid:
        return pid
    os.setsid()
    null = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(null, stream)
    sys.argv[1:] = line
    try:
        cli.main()
    except SystemExit as end:
        os._exit(int(end.code or 0))
    finally:
        os._exit(1)


def ended(pid: int, seconds: float) -> bool:
    """Whether the process ends within so many seconds."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if os.waitpid(pid, os.WNOHANG)[0]:
            return True
        time.sleep(0.01)
    return False


def outlive(pid: int) -> list[int]:
    """What still lives of a session 5 s after its leader was killed."""
    until = time.monotonic() + 5
    while (left := session(pid)) and time.monotonic() < until:
        time.sleep(0.05)
    return left


def verdict(wrong: list[str]) -> str:
    return "nothing lost, double, different or left over" if not wrong else "WRONG: " + "; ".join(wrong[:6])


@contextlib.contextmanager
def mounted(target: Path, *options: str) -> Iterator[bool]:
    target.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(["mount", *options, str(target)], capture_output=True)
    try:
        yield done.returncode == 0
    finally:
        if done.returncode == 0:
            subprocess.run(["umount", "-l", str(target)], check=False)


def trial_disk(scans: Path, work: Path, reference: dict[str, dict[str, str]]) -> str:
    need = sum(p.stat().st_size for p in (work / "reference").rglob("*") if p.is_file())
    target = work / "small"
    with mounted(target, "-t", "tmpfs", "-o", f"size={int(0.6 * need) // 1024}k", "tmpfs") as allowed:
        if not allowed:
            return "skipped: mounting is not allowed here"
        out = target / "out"
        settings(out)
        first = run(scans, out)
        with (out / "failures.csv").open() as file:
            failures = list(csv.DictReader(file))
        whole = len(results(out))
        subprocess.run(["mount", "-o", f"remount,size={4 * need}", str(target)], check=True)
        second = run(scans, out)
        wrong = [] if second.returncode == 0 else [second.stderr[-300:]]
        named = sum("No space" in f["message"] for f in failures)
        told = f"exit {first.returncode}, {whole} whole results, {len(failures)} failures ({named} name the full disk); "
        return f"{told}after making room: " + verdict(wrong + differences(out, reference))


def trial_worker(scans: Path, work: Path, reference: dict[str, dict[str, str]]) -> str:
    """A worker dies in its first slide, its successor hangs in the next."""
    out = work / "worker"
    process = subprocess.Popen(arguments(scans, out, "--workers", "1", "--timeout-per-slide", "60"), stdout=-3, stderr=-3)
    for blow in (signal.SIGKILL, signal.SIGSTOP):
        known = half_results(out)
        while process.poll() is None and not (fresh := half_results(out) - known):
            time.sleep(0.005)
        os.kill(int(fresh.pop().rpartition("-")[2]), blow)
    process.wait()
    with (out / "failures.csv").open() as file:
        kinds = [row["error_class"] for row in csv.DictReader(file)]
    account = json.loads((out / "run.json").read_text())
    again = run(scans, out)
    told = f"exit {process.returncode}, {account['done']} done, failed as {' and '.join(kinds)}; the same again: "
    told += f"exit {again.returncode}; "
    third = run(scans, out, "--retry-failed")
    wrong = [] if third.returncode == 0 else [third.stderr[-300:]]
    return f"{told}with --retry-failed: " + verdict(wrong + differences(out, reference))


def trial_vanish(scans: Path, work: Path, reference: dict[str, dict[str, str]]) -> str:
    out, away = work / "vanish", work / "away"
    process = subprocess.Popen(arguments(scans, out), stdout=-3, stderr=subprocess.PIPE, text=True)
    while process.poll() is None and not list(out.glob("[!.]*/summary.json")):
        time.sleep(0.02)
    out.rename(away)
    errors = process.communicate()[1]
    named = "has gone" in errors
    came_back = out.exists()
    shutil.rmtree(out, ignore_errors=True)
    away.rename(out)
    second = run(scans, out)
    wrong = ([] if named else ["not named"]) + (["the folder was made anew"] if came_back else [])
    wrong += [] if second.returncode == 0 else [second.stderr[-300:]]
    return f"exit {process.returncode}, named: {named}; folder back and run again: " + verdict(
        wrong + differences(out, reference)
    )


def trial_replaced(scans: Path, work: Path, reference: dict[str, dict[str, str]]) -> str:
    copy, out = work / "copy", work / "replaced"
    shutil.copytree(scans, copy)
    run(copy, out)
    first, *_, last = sorted(p for p in copy.iterdir() if p.is_file())
    data = bytearray(last.read_bytes())
    first.write_bytes(data + b"\0")  # another scan under the old name
    second = run(copy, out)
    account = json.loads((out / "run.json").read_text())
    entries = [json.loads(p.read_text()) for p in (out / "logs").glob(f"{first.stem}-*.json")]
    marked = [e for e in entries if e.get("superseded_by")]
    told = (
        f"exit {second.returncode}, {account['done']} done, {account['skipped']} skipped; the old result is kept and marked: "
    )
    shutil.rmtree(copy)
    return told + f"{len(marked) == 1 and len(results(out)) == len(reference) + 1}"


def trial_clock(scans: Path, work: Path, reference: dict[str, dict[str, str]]) -> str:
    out = work / "clock"
    process = subprocess.Popen(arguments(scans, out), stdout=-3, stderr=-3, start_new_session=True)
    while process.poll() is None and not list(out.glob("[!.]*/summary.json")):
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    back = run(scans, out, command=[sys.executable, "-c", CLOCK_BACK])
    wrong = [] if back.returncode == 0 else [back.stderr[-300:]]
    wrong += differences(out, reference)
    again = run(scans, out)
    skipped = json.loads((out / "run.json").read_text())["skipped"]
    wrong += [] if again.returncode == 0 and skipped == len(reference) else [f"only {skipped} skipped afterwards"]
    return "killed, then resumed with the clock 400 days back, then with the right clock: " + verdict(wrong)


def trial_readonly(scans: Path, work: Path, reference: dict[str, dict[str, str]]) -> str:
    target = work / "ro"
    with mounted(target, "--bind", str(scans)) as allowed:
        if not allowed or subprocess.run(["mount", "-o", "remount,ro,bind", str(target)], capture_output=True).returncode:
            return "skipped: mounting is not allowed here"
        done = run(target, work / "readonly")
        found, expected = results(work / "readonly"), reference
        drop = ("summary.json", "report.html")  # both name the path of the scan
        same = {n: {f: h for f, h in c.items() if f not in drop} for n, c in found.items()} == {
            n: {f: h for f, h in c.items() if f not in drop} for n, c in expected.items()
        }
        return f"exit {done.returncode}, results the same: {same}"


def trial_many(scans: Path, work: Path, number: int, until: float) -> str:
    many, out = work / "tiny", work / "many"
    many.mkdir()
    source = min((p for p in scans.iterdir() if p.suffix == ".tif"), key=lambda p: p.stat().st_size)
    tiny(source, many, number)
    process = subprocess.Popen(
        arguments(many, out, "--workers", "2", "--no-patches"), stdout=-3, stderr=-3, start_new_session=True
    )
    samples: list[tuple[int, dict[str, tuple[int, int]]]] = []
    step = max(1, number // 40)
    while process.poll() is None:
        done = len(list((out / "logs").glob("*.json"))) if (out / "logs").is_dir() else 0
        if done >= (samples[-1][0] + step if samples else step):
            samples.append((done, {name: usage(pid) for pid, name in members(process.pid)}))
            print(f"{done} of {number}: {samples[-1][1]}", file=sys.stderr, flush=True)
        if time.monotonic() > until:
            process.terminate()
            process.wait()
        time.sleep(0.5)
    account = json.loads((out / "run.json").read_text())
    points = [samples[0], samples[len(samples) // 2], samples[-1]] if samples else []
    lines = [
        f"after {done}: " + ", ".join(f"{name} {fds} descriptors {rss} MB" for name, (fds, rss) in sorted(use.items()))
        for done, use in points
    ]
    told = (
        f"exit {process.returncode}, {account['done']} done of {account['listed']} in {account['seconds']:.0f} s; "
        + "; ".join(lines)
    )
    print(f"cohort.html {(out / 'cohort.html').stat().st_size / 1e6:.2f} MB", file=sys.stderr)
    return told


def tiny(source: Path, many: Path, number: int) -> None:
    """Small crops of a scan, no two alike."""
    import numpy as np
    import tifffile

    image = tifffile.imread(source, level=0)
    rng = np.random.default_rng(0)
    height, width = image.shape[:2]
    for i in range(number):
        y, x = int(rng.integers(height - 384)), int(rng.integers(width - 512))
        crop = image[y : y + 384, x : x + 512].copy()
        crop[0, 0] = (i % 256, i // 256, 0)
        options = {"photometric": "rgb", "tile": (256, 256), "compression": "deflate", "metadata": None}
        tifffile.imwrite(many / f"t{i:04}.tif", crop, resolution=(1e4 / 0.0725,) * 2, resolutionunit="CENTIMETER", **options)


def members(pid: int) -> list[tuple[int, str]]:
    found = []
    for member in session(pid):
        with contextlib.suppress(OSError):
            line = Path(f"/proc/{member}/cmdline").read_bytes().decode()
            if "resource_tracker" not in line:
                found.append((member, "parent" if member == pid else "worker"))
    return found


def usage(pid: int) -> tuple[int, int]:
    """Open descriptors and resident MB."""
    with contextlib.suppress(OSError):
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        return len(list(Path(f"/proc/{pid}/fd").iterdir())), pages * os.sysconf("SC_PAGE_SIZE") // 1_000_000
    return 0, 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scans", type=Path)
    trials = ["kill", "worker", "disk", "vanish", "replaced", "clock", "readonly", "many"]
    parser.add_argument("--trials", nargs="+", choices=trials, default=trials)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--many", type=int, default=2000)
    parser.add_argument("--minutes", type=float, default=240, help="longest time for each of kill and many")
    wishes = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        work = Path(folder)
        done = run(wishes.scans, work / "reference")
        assert done.returncode == 0, done.stderr
        began = time.monotonic()
        assert os.waitpid(begin(wishes.scans, work / "again"), 0)[1] == 0
        seconds = time.monotonic() - began
        assert results(work / "again") == results(work / "reference")
        reference = results(work / "reference")
        print(f"{len(reference)} scans, uninterrupted in {seconds:.0f} s\n\n| fault | outcome |\n| --- | --- |", flush=True)
        for trial in wishes.trials:
            call = globals()[f"trial_{trial}"]
            if trial == "kill":
                told = call(wishes.scans, work, reference, wishes.kills, seconds, time.monotonic() + 60 * wishes.minutes)
            elif trial == "many":
                told = call(wishes.scans, work, wishes.many, time.monotonic() + 60 * wishes.minutes)
            else:
                told = call(wishes.scans, work, reference)
            print(f"| {trial} | {told} |", flush=True)


if __name__ == "__main__":
    main()
