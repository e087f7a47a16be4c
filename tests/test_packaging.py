"""What travels in the wheel, and what must not be in the sources."""

import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    folder = tmp_path_factory.mktemp("wheel")
    done = subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    (path,) = folder.glob("*.whl")
    return set(zipfile.ZipFile(path).namelist())


def test_model_and_templates_travel_in_the_wheel(wheel: set[str]) -> None:
    needed = ["models/resnext50-seed/card.json", "models/resnext50-seed/weights.safetensors", "py.typed"]
    needed += [f"models/leukocyte-detector/{n}" for n in ("card.json", "weights.safetensors")]
    needed += [f"evaluation/evaluation.{kind}" for kind in ("html.j2", "css")]
    for page in ("report", "cohort"):
        needed += [f"{page}/{p.name}" for p in (ROOT / "slidescreen" / page).iterdir() if p.suffix in (".j2", ".css", ".js")]
    assert {f"slidescreen/{n}" for n in needed} <= wheel
    assert not [n for n in wheel if n.startswith("tests/") or n.endswith((".pyc", ".tif"))]


def test_dependencies_are_bounded_below_only() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for requirement in project["dependencies"]:
        assert not re.search(r"==|~=|<(?!=?\d*$)", requirement.split(";")[0]), requirement
    assert project["requires-python"] == ">=3.11"
    assert project["scripts"] == {"slidescreen": "slidescreen.cli:main"}


def test_no_pickle_and_no_network_in_the_package() -> None:
    for path in (ROOT / "slidescreen").rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"^\s*(import|from) (pickle|requests|urllib|http|socketserver|joblib|dill)\b", text, re.M), path
        assert "torch.load(" not in text, path


def test_ci_calls_make_test_only() -> None:
    lines = [line for line in (ROOT / ".ci" / "run").read_text().splitlines() if line and not line.startswith("#")]
    assert lines == ["set -euo pipefail", 'cd "$(dirname "$0")/.."', "make test"]
