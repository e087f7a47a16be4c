"""What the tests of batches ask for: jobs, files that stand for scans, tasks."""

from pathlib import Path

from slidescreen.batch.events import Job, SlideTask
from slidescreen.batch.inputs import Input
from slidescreen.config import Settings
from slidescreen.model import DEFAULT_MODEL, find_model

MODEL = find_model(DEFAULT_MODEL)


def job(out: Path | str, **options: object) -> Job:
    return Job(str(out), MODEL, Settings(), **options)  # type: ignore[arg-type]


def files(folder: Path, *names: str, content: str = "") -> list[Input]:
    folder.mkdir(exist_ok=True)
    for name in names:
        (folder / name).write_text(content or name)
    return [Input(folder / name) for name in names]


def tasks(*names: str) -> list[SlideTask]:
    return [SlideTask(Path(f"/scans/{n}.svs"), n, n, n) for n in names]
