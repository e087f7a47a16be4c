"""One batch at a time in a folder."""

import json
import os
import socket
import time
from pathlib import Path

import pytest

from slidescreen.batch.lock import RunLock, Shard
from slidescreen.batch.output import open_output
from slidescreen.errors import OutputError, UsageError


def test_the_second_run_on_a_folder_refuses_and_says_who_holds_it(tmp_path: Path) -> None:
    output = open_output(str(tmp_path))
    with RunLock(output):
        with (
            pytest.raises(UsageError, match=f"in use by process {os.getpid()} on {socket.gethostname()} since 20"),
            RunLock(output),
        ):
            pass
        with pytest.raises(UsageError, match="in use"), RunLock(output, Shard(1, 2)):
            pass
    with RunLock(output, Shard(1, 2)), RunLock(output, Shard(2, 2)):
        for other in (Shard(1, 2), Shard(1, 3), None):
            with pytest.raises(UsageError, match="in use"), RunLock(output, other):
                pass
    assert [p.name for p in tmp_path.iterdir()] in ([], [".slidescreen.lock"])


@pytest.mark.parametrize(
    ("change", "stale"),
    [
        ({}, False),
        ({"pid": 2**22 + 1}, True),
        ({"started": "1"}, True),  # the number is in use again, by another process
        ({"boot": "before the power cut"}, True),
        ({"host": "another"}, False),
        ({"host": "another", "touched": -600}, True),
        ({"host": "another", "touched": 86400}, False),  # touched in the future: a clock was set back
    ],
)
def test_a_stale_lock_is_recognised_by_process_or_by_silence(tmp_path: Path, change: dict[str, object], stale: bool) -> None:
    output = open_output(str(tmp_path))
    note = tmp_path / ".run.lock.json"
    with RunLock(output):
        content = json.loads(note.read_text())
    touched = int(str(change.get("touched", 0)))
    note.write_text(json.dumps(content | {k: v for k, v in change.items() if k != "touched"}))
    os.utime(note, (time.time() + touched,) * 2)
    if not stale:
        with pytest.raises(UsageError, match="in use"), RunLock(output):
            pass
        return
    with RunLock(output) as lock:
        assert len(lock.stale) == 1
    assert not note.exists()


def test_a_folder_that_has_gone_is_noticed(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    output = open_output(str(out))
    with RunLock(output) as lock:
        lock.require()
        out.rename(tmp_path / "away")
        with pytest.raises(OutputError, match="has gone"):
            lock.require()
        with pytest.raises(OutputError, match="has gone"), output.scratch():
            pass
        with pytest.raises(FileNotFoundError):
            output.write("run.json", b"{}")
        (tmp_path / "away").rename(out)
