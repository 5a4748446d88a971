"""`metrics.jsonl`: appended, sent to stores, mended after half a write. Not covered: an S3 server
that fails (benchmarks.checkpoints trains a run in one)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from cluster.rows import FILE_NAME, RowsFile, read_rows
from cluster.storage import RunFolder

ROWS = [{"kind": "step", "step": step, "reward": step / 4} for step in range(6)]


@pytest.fixture(params=["disk", "store", "s3"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[RunFolder]:
    """An empty run on a local disk and on stores that cannot append."""
    if request.param == "s3":
        yield RunFolder(f"{request.getfixturevalue('s3_bucket')}/run")
        return
    yield RunFolder(str(tmp_path / "run") if request.param == "disk" else "memory://rows-test/run")
    if request.param == "store":
        fsspec.filesystem("memory").rm("/rows-test", recursive=True)


def test_rows_are_read_back_as_they_were_added(folder: RunFolder) -> None:
    file = RowsFile(folder, ROWS[:2])
    assert read_rows(folder) == []
    file.write()
    assert read_rows(folder) == ROWS[:2]
    for row in ROWS[2:]:
        file.add(row)
    assert list(file.rows()) == ROWS
    assert read_rows(folder) == ROWS[:2]
    file.write()
    assert list(file.rows()) == read_rows(folder) == ROWS
    again = RowsFile(folder, ROWS[:3])
    again.add(ROWS[5])
    again.write()
    assert read_rows(folder) == [*ROWS[:3], ROWS[5]]


def test_a_run_without_rows_has_an_empty_file(folder: RunFolder) -> None:
    RowsFile(folder, ()).write()
    assert folder.read_text(FILE_NAME) == ""
    assert read_rows(folder) == []


def test_an_append_does_not_touch_what_is_there(tmp_path: Path) -> None:
    file, path = RowsFile(RunFolder(str(tmp_path)), ROWS[:3]), tmp_path / FILE_NAME
    file.write()
    before = path.stat().st_ino
    file.add(ROWS[3])
    file.write()
    assert path.stat().st_ino == before
    assert path.read_text() == "".join(json.dumps(row, sort_keys=True) + "\n" for row in ROWS[:4])


def test_half_a_row_is_no_row_and_is_overwritten(tmp_path: Path) -> None:
    folder = RunFolder(str(tmp_path))
    file = RowsFile(folder, ROWS[:2])
    file.write()
    with (tmp_path / FILE_NAME).open("a") as torn:  # as a full disk, or a kill, leaves it
        torn.write('{"kind": "step", "st')
    assert read_rows(folder) == ROWS[:2]
    assert list(file.rows()) == ROWS[:2]
    file.add(ROWS[2])
    file.write()
    assert read_rows(folder) == ROWS[:3]
    (tmp_path / FILE_NAME).write_text('{"kind"\n{"kind": "step"}\n')
    with pytest.raises(ValueError, match="delimiter"):
        read_rows(folder)


@pytest.mark.parametrize("folder", ["disk", "store"], indirect=True)
def test_what_a_failed_write_missed_is_in_the_next(folder: RunFolder, tmp_path: Path) -> None:
    file = RowsFile(folder, ROWS[:1])
    file.write()
    if folder.is_local:  # a directory in the file's place refuses to be opened
        hidden = Path(folder.path(FILE_NAME)).rename(tmp_path / "hidden")
        Path(folder.path(FILE_NAME)).mkdir()
    else:  # nothing lies below a file
        hidden, folder.root = Path(folder.root), folder.path(FILE_NAME)
    file.add(ROWS[1])
    with pytest.raises(OSError, match=FILE_NAME):
        file.write()
    file.add(ROWS[2])
    if folder.is_local:
        Path(folder.path(FILE_NAME)).rmdir()
        hidden.rename(folder.path(FILE_NAME))
    else:
        folder.root = str(hidden)
    file.write()
    assert list(file.rows()) == read_rows(folder) == ROWS[:3]
