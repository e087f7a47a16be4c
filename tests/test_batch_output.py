"""Where results go that is no folder, and where none can go."""

from pathlib import Path

import fsspec
import pytest

from slidescreen.batch.lock import RunLock
from slidescreen.batch.output import RemoteOutput, open_output
from slidescreen.errors import UsageError


@pytest.fixture
def remote(tmp_path: Path) -> RemoteOutput:
    """Storage that is not a folder to slidescreen, kept in one."""
    output = open_output(f"dir::file://{tmp_path}/bucket")
    assert isinstance(output, RemoteOutput)
    return output


@pytest.mark.parametrize("place", ["dir", "memory"])
def test_storage_behind_a_url(place: str, tmp_path: Path) -> None:
    output = open_output(f"dir::file://{tmp_path}/bucket" if place == "dir" else "memory://bucket/night")
    assert output.folder is None
    output.prepare()
    made = tmp_path / "scratch" / "a-1"
    (made / "patches.zarr" / "c").mkdir(parents=True)
    for name, content in {"summary.json": "{}", "report.html": "first", "patches.zarr/c/0": "x"}.items():
        (made / name).write_text(content)
    output.publish(made)
    assert output.results() == ["a-1"]
    (made / "report.html").write_text("second")
    output.publish(made)
    assert output.read("a-1/report.html") == b"second"
    with output.fetch("a-1") as folder:
        assert sorted(p.name for p in folder.iterdir()) == ["patches.zarr", "report.html", "summary.json"]
    output.write("logs/a-1.json", b"{}")
    assert output.files("logs") == ["a-1.json"]
    assert 0 <= output.age_s("logs/a-1.json") < 60
    with RunLock(output), pytest.raises(UsageError, match="in use"), RunLock(output):
        pass
    assert output.files("") == []
    if place == "memory":
        fsspec.filesystem("memory").rm("/bucket", recursive=True)


def test_an_upload_that_was_cut_off_is_finished_or_forgotten(remote: RemoteOutput) -> None:
    remote.write("a-1/summary.json", b"old")
    remote.write("a-1/report.html", b"old")
    remote.write(".a-1.new/report.html", b"half")
    assert remote.sweep({"a-1"}) == 1
    assert (remote.read("a-1/report.html"), remote.results()) == (b"old", ["a-1"])
    remote.write(".a-1.new/report.html", b"new")
    remote.write(".a-1.new/summary.json", b"new")  # written last: the upload is whole
    remote.remove("a-1/summary.json")  # the old one was being replaced
    assert remote.sweep(None) == 1
    assert (remote.read("a-1/report.html"), remote.results()) == (b"new", ["a-1"])


def test_an_unknown_storage_is_wrong_use() -> None:
    with pytest.raises(UsageError, match="no storage of this kind"):
        open_output("nonesuch://bucket/night")


def test_an_output_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for place in (tmp_path / "file", tmp_path / "file" / "sub", Path("/proc/slidescreen")):
        with pytest.raises(UsageError, match="results cannot be written there"):
            open_output(str(place)).prepare()
