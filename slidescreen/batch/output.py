"""Where results go: a folder, or any storage that fsspec knows (s3://, gs://, ...)."""

from __future__ import annotations

import json
import os
import socket
import tempfile
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import fsspec

from slidescreen.errors import OutputError, UsageError
from slidescreen.store import REPORT, SUMMARY
from slidescreen.stored import sweep


class Output(Protocol):
    """Names are relative to the place, with "/" between folders. Errors of the storage come as OSError."""

    @property
    def place(self) -> str:
        """As the user named it."""
        ...

    @property
    def folder(self) -> Path | None:
        """The folder, where it is one."""
        ...

    def prepare(self) -> None:
        """Make the place. Raises UsageError when results cannot be written there."""
        ...

    def check(self) -> None:
        """Raise UsageError when it is plain, without writing, that results cannot be written there."""
        ...

    def read(self, name: str) -> bytes | None:
        """The content, or None where there is none."""
        ...

    def write(self, name: str, content: bytes) -> None:
        """Write the whole file or nothing."""
        ...

    def touch(self, name: str) -> None:
        """Make the file's time now, by the storage's clock."""
        ...

    def age_s(self, name: str) -> float:
        """Seconds since the file was touched, by the storage's clock; OSError where it is not there."""
        ...

    def remove(self, name: str) -> None:
        """Remove the file, if there is one."""
        ...

    def files(self, folder: str) -> list[str]:
        """Names of the files in a folder of the place, "" for the place itself; sorted."""
        ...

    def results(self) -> list[str]:
        """Names of the folders that hold a whole result; sorted."""
        ...

    def sweep(self, names: Collection[str] | None) -> int:
        """Undo what killed runs left of these slides, or of all; for who holds the lock. Returns how many."""
        ...

    def scratch(self) -> Any:
        """Context: a folder in which results are made."""
        ...

    def publish(self, made: Path) -> str:
        """Put a result made in the scratch folder in its place; returns where it is."""
        ...

    def fetch(self, name: str) -> Any:
        """Context: a folder with the result's files, to be read."""
        ...

    def where(self, name: str) -> str:
        """The file as a user would name it."""
        ...


def open_output(place: str) -> Output:
    """A folder, or storage behind a URL. Raises UsageError when nothing knows the URL."""
    if "://" not in place and "::" not in place:
        return FolderOutput(place)
    try:
        fs, root = fsspec.core.url_to_fs(place)
    except (ValueError, ImportError) as error:
        raise UsageError(f"{place}: no storage of this kind is installed ({error}); pip install s3fs or gcsfs") from error
    if isinstance(fs, fsspec.implementations.local.LocalFileSystem):
        return FolderOutput(root)
    return RemoteOutput(place, fs, root.rstrip("/"))


class FolderOutput:
    """A local or shared folder; results are made beside their place and renamed."""

    def __init__(self, place: str) -> None:
        self.place = place
        self.folder: Path = Path(place)

    def prepare(self) -> None:
        probe = self.folder / f".write-test.partial-{socket.gethostname()}-{os.getpid()}"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise _not_writable(self.place, error.strerror or str(error)) from error

    def check(self) -> None:
        nearest = next(p for p in (self.folder, *self.folder.absolute().parents) if p.exists())
        if not nearest.is_dir():
            raise _not_writable(self.place, f"{nearest} is a file")
        if not os.access(nearest, os.W_OK | os.X_OK):
            raise _not_writable(self.place, f"no permission in {nearest}")

    def read(self, name: str) -> bytes | None:
        try:
            return (self.folder / name).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None

    def write(self, name: str, content: bytes) -> None:
        path = self.folder / name
        if path.parent != self.folder:  # which, if it has gone, is not made anew
            path.parent.mkdir(exist_ok=True)
        partial = path.with_name(f".{path.name}.partial-{socket.gethostname()}-{os.getpid()}")
        try:
            partial.write_bytes(content)
            partial.replace(path)
        except OSError:
            partial.unlink(missing_ok=True)
            raise

    def touch(self, name: str) -> None:
        os.utime(self.folder / name)

    def age_s(self, name: str) -> float:
        then = (self.folder / name).stat().st_mtime
        with tempfile.NamedTemporaryFile(dir=self.folder, prefix=".clock.partial-") as probe:
            return os.fstat(probe.fileno()).st_mtime - then

    def remove(self, name: str) -> None:
        (self.folder / name).unlink(missing_ok=True)

    def files(self, folder: str) -> list[str]:
        inside = self.folder / folder
        return sorted(p.name for p in inside.iterdir() if p.is_file()) if inside.is_dir() else []

    def results(self) -> list[str]:
        found = self.folder.glob(f"*/{SUMMARY}")
        return sorted(p.parent.name for p in found if not p.parent.name.startswith(".") and (p.parent / REPORT).is_file())

    def sweep(self, names: Collection[str] | None) -> int:
        return sweep(self.folder, names) + (sweep(self.folder / "logs") if names is None else 0)

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        if not self.folder.is_dir():
            raise OutputError(f"{self.folder}: the output folder has gone; see that the disk is mounted and run again")
        yield self.folder

    def publish(self, made: Path) -> str:
        return str(made)

    @contextmanager
    def fetch(self, name: str) -> Iterator[Path]:
        yield self.folder / name

    def where(self, name: str) -> str:
        return str(self.folder / name)


class RemoteOutput:
    """Storage without renaming. A new result is uploaded to `.NAME.new/`, its summary last, then takes the place of the old
    one; a run killed in between is finished by `sweep`, so that one of the two is whole at any time."""

    folder = None

    def __init__(self, place: str, fs: Any, root: str) -> None:
        self.place = place
        self._fs = fs
        self._root = root

    def _at(self, name: str) -> str:
        return f"{self._root}/{name}" if name else self._root

    def prepare(self) -> None:
        name = f".write-test-{socket.gethostname()}-{os.getpid()}"
        try:
            self._fs.makedirs(self._root, exist_ok=True)
            self.write(name, b"")
            self.remove(name)
        except Exception as error:  # each storage has errors of its own
            raise _not_writable(self.place, " ".join(str(error).split())) from error

    def check(self) -> None:
        self.prepare()

    def read(self, name: str) -> bytes | None:
        try:
            content: bytes = self._fs.cat_file(self._at(name))
        except FileNotFoundError:
            return None
        return content

    def write(self, name: str, content: bytes) -> None:
        folder, _, _ = name.rpartition("/")
        if folder:
            self._fs.makedirs(self._at(folder), exist_ok=True)
        self._fs.pipe_file(self._at(name), content)

    def touch(self, name: str) -> None:
        self.write(name, self.read(name) or b"")

    def age_s(self, name: str) -> float:
        probe = f".clock-{socket.gethostname()}-{os.getpid()}"
        self._fs.invalidate_cache()
        then = self._fs.modified(self._at(name))
        self.write(probe, b"")
        now = self._fs.modified(self._at(probe))
        self.remove(probe)
        return float((now - then).total_seconds())

    def remove(self, name: str) -> None:
        if self._fs.exists(self._at(name)):
            self._fs.rm(self._at(name), recursive=True)

    def _names(self, folder: str, kind: str) -> list[str]:
        self._fs.invalidate_cache()
        try:
            found = self._fs.ls(self._at(folder), detail=True)
        except FileNotFoundError:
            return []
        return sorted(e["name"].rstrip("/").rsplit("/", 1)[-1] for e in found if e["type"] == kind)

    def files(self, folder: str) -> list[str]:
        return self._names(folder, "file")

    def results(self) -> list[str]:
        return [
            n for n in self._names("", "directory") if not n.startswith(".") and self._fs.exists(self._at(f"{n}/{SUMMARY}"))
        ]

    def sweep(self, names: Collection[str] | None) -> int:
        left = [n for n in self._names("", "directory") if n.startswith(".") and n.endswith(".new")]
        mine = [n for n in left if names is None or n[1:].removesuffix(".new") in names]
        for new in mine:
            if self._fs.exists(self._at(f"{new}/{SUMMARY}")):
                self._take_place(new[1:].removesuffix(".new"))
            else:
                self.remove(new)
        return len(mine)

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        with tempfile.TemporaryDirectory(prefix="slidescreen-") as folder:
            yield Path(folder)

    def publish(self, made: Path) -> str:
        new = f".{made.name}.new"
        self.remove(new)
        paths = sorted((p for p in made.rglob("*") if p.is_file()), key=lambda p: p.name == SUMMARY)
        for path in paths:
            inside = path.relative_to(made).as_posix()
            self._fs.makedirs(self._at(f"{new}/{inside}").rpartition("/")[0], exist_ok=True)
            self._fs.put_file(str(path), self._at(f"{new}/{inside}"))
        self._take_place(made.name)
        return self.where(made.name)

    def _take_place(self, name: str) -> None:
        """Copy the uploaded result over the old one, its summary last, then drop the upload."""
        new = f".{name}.new"
        self.remove(name)
        found = [str(f)[len(self._at(new)) + 1 :] for f in self._fs.find(self._at(new))]
        for inside in sorted(found, key=lambda n: n == SUMMARY):
            self._fs.makedirs(self._at(f"{name}/{inside}").rpartition("/")[0], exist_ok=True)
            self._fs.cp_file(self._at(f"{new}/{inside}"), self._at(f"{name}/{inside}"))
        self.remove(new)

    @contextmanager
    def fetch(self, name: str) -> Iterator[Path]:
        with tempfile.TemporaryDirectory(prefix="slidescreen-") as folder:
            self._fs.get(self._at(name), str(Path(folder) / name), recursive=True)
            yield Path(folder) / name

    def where(self, name: str) -> str:
        return f"{self.place.rstrip('/')}/{name}"


def read_json(output: Output, name: str) -> dict[str, Any] | None:
    """The object in a JSON file; None where there is none or it is damaged."""
    content = output.read(name)
    try:
        found = json.loads(content) if content is not None else None
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def write_json(output: Output, name: str, content: dict[str, Any]) -> None:
    """Write an object whole or not at all. Raises OutputError."""
    text = json.dumps(content, indent=2, allow_nan=False) + "\n"  # ASCII: names of files need not be text
    write(output, name, text.encode())


def write(output: Output, name: str, content: bytes) -> None:
    """Write a file of the batch whole or not at all. Raises OutputError."""
    try:
        output.write(name, content)
    except OSError as error:
        raise OutputError(
            f"{output.where(name)}: cannot be written ({error.strerror or error}); free space, or see that the disk is mounted"
        ) from error


def _not_writable(place: str, reason: str) -> UsageError:
    return UsageError(f"{place}: results cannot be written there ({reason}); choose another folder with -o")


def utc_now() -> str:
    """The time in UTC, to the second, for people; nothing is decided by it."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
