"""One run at a time on a folder of results, or one run per shard of it."""

from __future__ import annotations

import os
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

import filelock

from slidescreen.batch.output import Output, read_json, utc_now, write_json
from slidescreen.errors import OutputError, UsageError

BEAT_S: Final = 30.0
STALE_S: Final = 150.0
"""A note of another machine that was not touched for so long is of a run that ended without a word."""
MUTEX: Final = ".slidescreen.lock"
NOTE: Final = re.compile(r"\.run(?:-(\d+)-of-(\d+))?\.lock\.json")


@dataclass(frozen=True, slots=True)
class Shard:
    """Part `index` (from 1) of `count` equal parts of a batch."""

    index: int
    count: int

    @classmethod
    def parse(cls, text: str) -> Shard:
        """ "3/16". Raises UsageError."""
        found = re.fullmatch(r"(\d+)/(\d+)", text)
        shard = cls(int(found[1]), int(found[2])) if found else cls(0, 0)
        if not 1 <= shard.index <= shard.count:
            raise UsageError(f"--shard {text}: must be part/parts with 1 <= part <= parts, for instance 3/16")
        return shard

    @property
    def suffix(self) -> str:
        """ "-3-of-16", for names of files."""
        return f"-{self.index}-of-{self.count}"


def suffix(shard: Shard | None) -> str:
    """What tells the files of this shard from those of others."""
    return shard.suffix if shard else ""


class RunLock:
    """Held while a run writes. A note beside the results says who holds it: host, process, time; it is touched every 30 s.

    A note of this machine is stale when its process has ended, one of another machine when nobody touched it for 150 s by the
    storage's own clock. Entering raises UsageError when another run holds the folder or the shard.
    """

    def __init__(self, output: Output, shard: Shard | None = None) -> None:
        self._output = output
        self._shard = shard
        self._name = f".run{suffix(shard)}.lock.json"
        self._ended = threading.Event()
        self.stale: list[str] = []

    def __enter__(self) -> Self:
        with _mutex(self._output):
            for name in self._output.files(""):
                if NOTE.fullmatch(name) and self._clashes(name):
                    self._refuse_or_forget(name)
            self._note = _who() | {"time": utc_now()}
            write_json(self._output, self._name, self._note)
        self._thread = threading.Thread(target=self._beat, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        try:
            if self._is_ours():
                self._output.remove(self._name)
        except OSError:
            pass  # the folder has gone; there is nothing to release

    def require(self) -> None:
        """Raise OutputError when the folder has gone or another run took it over."""
        if not self._is_ours():
            raise OutputError(
                f"{self._output.place}: the output folder has gone, or another run took it over; see that the disk is mounted, "
                "then run the same command again"
            )

    def _is_ours(self) -> bool:
        try:
            return read_json(self._output, self._name) == self._note
        except OSError:
            return False

    def _beat(self) -> None:
        while not self._ended.wait(BEAT_S):
            try:
                self._output.touch(self._name)
            except OSError:
                continue  # `require` tells

    def _clashes(self, name: str) -> bool:
        found = NOTE.fullmatch(name)
        if self._shard is None or found is None or found[1] is None:
            return True
        return int(found[2]) != self._shard.count or int(found[1]) == self._shard.index

    def _refuse_or_forget(self, name: str) -> None:
        note = read_json(self._output, name) or {}
        if _lives(note, self._output, name):
            raise UsageError(
                f"{self._output.place}: in use by process {note.get('pid', '?')} on {note.get('host', '?')} since "
                f"{note.get('time', '?')}; wait for it, stop it, or use another folder "
                f"(if that run is surely gone, remove {self._output.where(name)})"
            )
        self.stale.append(f"process {note.get('pid', '?')} on {note.get('host', '?')}, {note.get('time', '?')}")
        self._output.remove(name)


def _who() -> dict[str, Any]:
    return {"host": socket.gethostname(), "pid": os.getpid(), "boot": _boot(), "started": _started(os.getpid())}


def _boot() -> str:
    """Identity of this start of this machine, "" where the system does not tell."""
    path = Path("/proc/sys/kernel/random/boot_id")
    return path.read_text().strip() if path.is_file() else ""


def _started(pid: int) -> str:
    """When the process started, in ticks since the machine did, whatever the clock says; "" where the system does not tell."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""


def _lives(note: dict[str, Any], output: Output, name: str) -> bool:
    if note.get("host") == socket.gethostname():
        return note.get("boot") == _boot() and _exists(note.get("pid")) and note.get("started") == _started(note["pid"])
    return output.age_s(name) < STALE_S


def _exists(pid: object) -> bool:
    if not isinstance(pid, int):
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _mutex(output: Output) -> AbstractContextManager[Any]:
    """Held for the moment in which the notes are read and written; storage behind a URL has none."""
    return nullcontext() if output.folder is None else _file_mutex(output.folder / MUTEX)


@contextmanager
def _file_mutex(path: Path) -> Iterator[None]:
    try:
        lock = filelock.FileLock(path, timeout=10)
        lock.acquire()
    except filelock.Timeout as error:
        raise UsageError(f"{path.parent}: another run is just starting there; try again") from error
    except (NotImplementedError, OSError):
        yield  # a file system without locks: only two starts at the same moment could both go on
        return
    try:
        yield
    finally:
        lock.release()
