"""What can be checked of the Dockerfiles without an engine."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
INSTRUCTIONS = set(["FROM", "ARG", "ENV", "WORKDIR", "COPY", "RUN", "VOLUME", "USER", "ENTRYPOINT", "CMD"])


def parse(path: Path) -> list[tuple[str, str]]:
    text = re.sub(r"\\\n\s*", " ", path.read_text(encoding="utf-8"))
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return [(line.split(maxsplit=1)[0], line.split(maxsplit=1)[1]) for line in lines]


@pytest.mark.parametrize("name", ["Dockerfile.cpu", "Dockerfile.cuda"])
def test_dockerfile(name: str) -> None:
    steps = parse(ROOT / "docker" / name)
    assert {keyword for keyword, _ in steps} <= INSTRUCTIONS
    assert steps[0][0] == "FROM"
    last = dict(steps)
    assert last["ENTRYPOINT"] == '["slidescreen"]'
    assert re.fullmatch(r"\d+:\d+", last["USER"])
    assert last["USER"] != "0:0"
    assert last["WORKDIR"] == "/out"
    assert last["VOLUME"] == '["/out"]'
    for keyword, value in steps:
        if keyword == "COPY":
            *sources, _ = value.split()
            for source in sources:
                assert (ROOT / source).exists(), source
    installs = " ".join(value for keyword, value in steps if keyword == "RUN")
    assert "pip install ." in installs
    assert "a+rX" in installs


def test_the_build_sees_no_local_leftovers() -> None:
    ignored = (ROOT / ".dockerignore").read_text().split()
    assert {".git", ".venv", "slidescreen-out", "demo-out"} <= set(ignored)


@pytest.mark.parametrize("name", ["slurm.sbatch", "kubernetes-job.yaml", "kuberay-job.yaml"])
def test_samples_for_clusters_use_options_that_exist(name: str) -> None:
    import typer

    from slidescreen.cli import app

    text = (ROOT / "docker" / name).read_text(encoding="utf-8")
    used = set(re.findall(r" (--[a-z-]+)", " ".join(re.findall(r"slidescreen run [^#]*?(?=\n\s*\w+:|$)", text, re.S))))
    known = {option for param in typer.main.get_command(app).commands["run"].params for option in param.opts}  # type: ignore[attr-defined]
    assert used >= {"--timeout-per-slide"}
    assert used <= known
