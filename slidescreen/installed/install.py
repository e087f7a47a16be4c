"""Puts a model into the user's folder, verified, or nothing."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from filelock import FileLock, Timeout

from slidescreen.atomic import making_folder
from slidescreen.errors import ModelError, OutputError, UsageError
from slidescreen.installed.archive import unpack
from slidescreen.installed.check import check_model
from slidescreen.installed.listing import InstalledModel, describe
from slidescreen.model import CARD, models_folder, read_card, user_models_folder

NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
LEFT_OVER: Final = re.compile(r"\.(?P<name>.+)\.(?P<what>partial|old)-\d+")
LOCK: Final = ".lock"


def install_model(source: Path, *, replace: bool = False) -> tuple[InstalledModel, str]:
    """The model of a zip, a tar or a folder, put into the user's folder under the name of its card, and what it said of a
    painted cell.

    It is unpacked beside its place and used once before it gets there. Raises ModelError when it cannot be trusted or does not
    work, UsageError when its name is taken (`replace` puts it in the place of the user's own), OutputError.
    """
    if not source.exists():
        raise UsageError(f"{source}: no such file or folder; give a model as a zip, a tar or a folder")
    models = user_models_folder()
    with _alone(models):
        staging = models / f".unpacked.partial-{os.getpid()}"
        try:
            staging.mkdir()
            root = unpack(source, staging)
            said = _works(source, root)
            name = _free_name(source, root, models, replace=replace)
            with making_folder(models / name, replace=replace) as partial:
                partial.rmdir()
                root.rename(partial)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
    return describe(models / name), said


def _free_name(source: Path, root: Path, models: Path, *, replace: bool) -> str:
    name = read_card(root).get("name")
    if not isinstance(name, str) or not NAME.fullmatch(name):
        said = ascii(name)[:80]
        raise ModelError(f"{source}: {CARD} names it {said}; a name has up to 64 letters, digits, and . _ -")
    if (models_folder() / name).exists():
        raise UsageError(f"{source}: {name} is a model that comes with slidescreen; change the name in its {CARD}")
    if (models / name).exists() and not replace:
        raise UsageError(f"{source}: {name} is installed already ({models / name}); --replace puts this one in its place")
    return name


def _works(source: Path, root: Path) -> str:
    try:
        return check_model(root)
    except ModelError as error:
        told = str(error).replace(f"{root}{os.sep}", "").replace(f"{root}: ", "")
        raise ModelError(f"{source}: {told}; nothing was installed") from error


@contextmanager
def _alone(models: Path) -> Iterator[None]:
    """The user's folder, made where it is missing, for this process only. What a killed one left half is removed; a model that
    it had moved aside is put back."""
    try:
        models.mkdir(parents=True, exist_ok=True)
        lock = FileLock(models / LOCK, timeout=0)
        with lock:
            for path in sorted(models.iterdir()):
                left = LEFT_OVER.fullmatch(path.name)
                if left and left["what"] == "old" and not (models / left["name"]).exists():
                    path.rename(models / left["name"])
                elif left:
                    shutil.rmtree(path, ignore_errors=True)
            yield
    except Timeout:
        raise UsageError(f"{models}: another installation is under way; wait for it") from None
    except OSError as error:
        reason = error.strerror or error
        raise OutputError(f"{models}: cannot be written ({reason}); set SLIDESCREEN_MODELS to another folder") from error
