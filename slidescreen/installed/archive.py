"""The files of a model that comes as a zip, a tar or a folder. Nothing in it is trusted: not its names, not its sizes.

Files are read one by one and written under names that were checked; no archive is ever extracted by its own word.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, Any, Final

from slidescreen.atomic import replacing
from slidescreen.errors import ModelError, OutputError
from slidescreen.model import CARD, PICKLE_SUFFIXES, WEIGHTS

MOST_BYTES: Final = 2**30
"""Of all files together, unpacked. The largest network that a card can name has 0.1 GB."""
MOST_TEXT_BYTES: Final = 2**24
"""Of any one file of text or a picture."""
MOST_FILES: Final = 100
DEEPEST: Final = 4
LONGEST_NAME: Final = 100
CHUNK: Final = 2**20
SUFFIXES: Final = frozenset({".json", ".safetensors", ".md", ".txt", ".toml", ".csv", ".png", ".jpg", ".svg"})
BARE_NAMES: Final = frozenset({"LICENSE", "NOTICE"})
COMPRESSED: Final[dict[bytes, Callable[[Any], Any]]] = {
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ\x00": lzma.open,
}
DAMAGED: Final = (
    *(zipfile.BadZipFile, tarfile.TarError, gzip.BadGzipFile, lzma.LZMAError, zlib.error, struct.error),
    *(EOFError, RuntimeError, NotImplementedError, ValueError, OverflowError),
)
"""What the readers of archives raise for a damaged or encrypted one."""

Member = tuple[str, IO[bytes]]


class _Refused(Exception):
    """What is wrong with an archive, without its name."""


def unpack(source: Path, folder: Path) -> Path:
    """Write the model's files below the empty `folder`, and return the folder in it that holds `card.json`.

    Raises ModelError for what is no model, or holds a pickle, a link, a name that leads elsewhere, or too much; OutputError
    where the disk refuses.
    """
    try:
        sizes: dict[str, int] = {}
        with _opened(source) as members:
            for name, stream in members:
                path = _checked(name, sizes)
                most = MOST_BYTES if path.suffix == Path(WEIGHTS).suffix else MOST_TEXT_BYTES
                sizes[str(path)] = _copy(stream, folder / path, min(most, MOST_BYTES - sum(sizes.values())), name)
        return _root(folder, sizes)
    except _Refused as error:
        raise ModelError(f"{source}: {error}; nothing was installed") from None
    except DAMAGED as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ModelError(f"{source}: cannot be unpacked ({reason}); get the file again; nothing was installed") from error
    except OSError as error:
        raise ModelError(f"{source}: cannot be read ({error.strerror or error}); nothing was installed") from error


def pack(folder: Path, out: Path) -> None:
    """Write the files of a model folder as one zip file, whole or not at all, that `unpack` takes. Raises OutputError."""
    with replacing(out) as partial, zipfile.ZipFile(partial, "w", zipfile.ZIP_STORED) as file:
        for path in sorted(p for p in folder.rglob("*") if p.is_file()):
            file.write(path, f"{folder.resolve().name}/{path.relative_to(folder).as_posix()}")


def _checked(name: str, before: dict[str, int]) -> PurePosixPath:
    """The name of a file as a relative path that is safe to write to."""
    path = PurePosixPath(name)
    said = ascii(name[:LONGEST_NAME])[1:-1]
    if PurePosixPath(name).suffix.lower() in PICKLE_SUFFIXES:
        raise _Refused(f"holds {said}, a pickle that can run code")
    strange = "\\" in name or ":" in name or not name.isprintable() or len(name) > LONGEST_NAME
    if strange or path.is_absolute() or ".." in path.parts or not path.parts:
        raise _Refused(f"holds a file that would not lie in the model's folder ({said})")
    if len(path.parts) > DEEPEST or any(part.startswith(".") for part in path.parts):
        raise _Refused(f"holds {said}, which is hidden or too deep")
    if path.suffix.lower() not in SUFFIXES and path.name not in BARE_NAMES:
        raise _Refused(f"holds {said}, which is no part of a model ({CARD}, {WEIGHTS}, texts and pictures are)")
    if str(path).lower() in {each.lower() for each in before}:
        raise _Refused(f"holds {said} twice")
    if len(before) >= MOST_FILES:
        raise _Refused(f"holds more than {MOST_FILES} files")
    return path


def _copy(stream: IO[bytes], path: Path, most: int, name: str) -> int:
    """Write a file, counting what really comes; returns the bytes."""
    written = 0
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("xb")
    except OSError as error:
        raise _unwritable(path, error) from error
    with file:
        while chunk := stream.read(CHUNK):
            written += len(chunk)
            if written > most:
                raise _Refused(f"{name} is larger than a model's file can be")
            try:
                file.write(chunk)
            except OSError as error:
                raise _unwritable(path, error) from error
    return written


def _unwritable(path: Path, error: OSError) -> OutputError:
    return OutputError(f"{path}: cannot be written ({error.strerror}); free space, or set SLIDESCREEN_MODELS to another folder")


def _root(folder: Path, files: dict[str, int]) -> Path:
    """Where the card lies: at the top or in the one folder that everything is in."""
    cards = [PurePosixPath(file) for file in files if PurePosixPath(file).name == CARD]
    if len(cards) != 1 or len(cards[0].parts) > 2:
        raise _Refused(f"is no model: needs one {CARD}, at the top or in the only folder there, and holds {len(cards)}")
    root = cards[0].parent
    if str(root / WEIGHTS) not in files:
        raise _Refused(f"is no model: {WEIGHTS} is missing beside {CARD}")
    beside = next((file for file in files if not PurePosixPath(file).is_relative_to(root)), "")
    if beside:
        raise _Refused(f"holds {beside} outside the model's folder")
    return folder / root


@contextmanager
def _opened(source: Path) -> Iterator[Iterator[Member]]:
    """The files of a folder, zip or tar, one at a time, as (name, stream)."""
    if source.is_dir():
        yield _of_folder(source)
        return
    with ExitStack() as stack:
        file = stack.enter_context(source.open("rb"))
        if zipfile.is_zipfile(file):
            yield _of_zip(stack.enter_context(zipfile.ZipFile(file)))
            return
        file.seek(0)
        begin = file.read(6)
        file.seek(0)
        reader = next((kind for magic, kind in COMPRESSED.items() if begin.startswith(magic)), None)
        plain: Any = _Frugal(stack.enter_context(reader(file)) if reader else file)
        try:
            tar = stack.enter_context(tarfile.open(fileobj=plain, mode="r:"))
        except tarfile.ReadError:
            raise _Refused("is neither a zip nor a tar file nor a folder") from None
        yield _of_tar(tar)


class _Frugal:
    """A file to read from that refuses to hand out much at once: a tar's headers may claim any length."""

    def __init__(self, file: Any) -> None:
        self._file = file
        self.seek, self.tell = file.seek, file.tell

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= 4 * CHUNK:
            raise _Refused("has a header of absurd length")
        content: bytes = self._file.read(size)
        return content


def _of_folder(folder: Path) -> Iterator[Member]:
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        mode = path.lstat().st_mode
        if stat.S_ISDIR(mode):
            continue
        if not stat.S_ISREG(mode):
            raise _Refused(f"holds {name}, a link or no plain file")
        with path.open("rb") as stream:
            yield name, stream


def _of_zip(file: zipfile.ZipFile) -> Iterator[Member]:
    for member in file.infolist():
        if member.is_dir():
            continue
        kind = stat.S_IFMT(member.external_attr >> 16)
        if kind not in (0, stat.S_IFREG):
            raise _Refused(f"holds {ascii(member.filename)[1:-1]}, a link or no plain file")
        with file.open(member) as stream:
            yield member.filename, stream


def _of_tar(file: tarfile.TarFile) -> Iterator[Member]:
    for number, member in enumerate(file):
        if number > 10 * MOST_FILES:
            raise _Refused("holds too many entries")
        if member.isdir():
            continue
        stream = file.extractfile(member) if member.isreg() and not member.issparse() else None
        if stream is None:
            raise _Refused(f"holds {ascii(member.name)[1:-1]}, a link or no plain file")
        with stream:
            yield member.name, stream
