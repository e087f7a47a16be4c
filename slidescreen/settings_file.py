"""TOML files of settings: read, checked key by key, and made into frozen dataclasses."""

from __future__ import annotations

import difflib
import tomllib
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final, TypeVar

from slidescreen.errors import UsageError

T = TypeVar("T")
MAX_SETTING: Final = 100_000


def read_toml(path: Path) -> dict[str, Any]:
    """The content of a TOML file. Raises UsageError when it cannot be read or is not TOML."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise UsageError(f"{path}: settings cannot be read ({error.strerror}); check the path") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: not valid TOML ({error})") from error


def from_table(path: Path, name: str, kind: type[T], table: Mapping[str, Any]) -> T:
    """The frozen dataclass `kind` from the table `name` of a file; what it does not name keeps its default.

    Raises UsageError naming the key that is unknown or of the wrong kind.
    """
    hints = typing.get_type_hints(kind)
    values: dict[str, Any] = {}
    for key, value in table.items():
        known(path, key, hints, f"{name}." if name else "")
        values[key] = _checked(f"{path}: {name}.{key}" if name else f"{path}: {key}", hints[key], value)
    return kind(**values)


def _checked(what: str, hint: Any, value: Any) -> Any:
    if typing.get_origin(hint) is typing.Literal:
        if value not in typing.get_args(hint):
            raise UsageError(f"{what} = {value!r}: must be one of {', '.join(map(str, typing.get_args(hint)))}")
        return value
    if typing.get_origin(hint) is tuple:
        raise UsageError(f'{what}: cannot be set in a file; name the area by aoi = "FILE.geojson" or "x,y,w,h"')
    if hint is bool or hint is str:
        if not isinstance(value, hint):
            raise UsageError(f"{what} = {value!r}: must be {'true or false' if hint is bool else 'text'}")
        return value
    number = isinstance(value, int | float) and not isinstance(value, bool) and value == value
    if not number or (hint is int and not isinstance(value, int)):
        raise UsageError(f"{what} = {value!r}: must be a {'whole ' if hint is int else ''}number")
    if abs(value) > MAX_SETTING:
        raise UsageError(f"{what} = {value:.3g}: must lie below {MAX_SETTING}")
    return hint(value)


def known(path: Path, name: str, names: Iterable[str], prefix: str = "") -> None:
    """Raises UsageError, with the nearest name there is, when `name` is none of `names`."""
    names = list(names)
    if name not in names:
        near = difflib.get_close_matches(name, names, n=1)
        hint = f"did you mean {prefix}{near[0]}?" if near else f"known: {', '.join(names)}"
        raise UsageError(f"{path}: unknown setting {prefix}{name}; {hint}")
