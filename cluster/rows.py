"""`metrics.jsonl`: rows that only grow, appended on a local disk and sent whole to a store.

No row stays in memory: a run of weeks has tens of megabytes of them, which are read back from the
disk when somebody asks.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import weakref
from collections.abc import Iterable, Iterator
from pathlib import Path

from cluster.storage import Row, RunFolder

FILE_NAME = "metrics.jsonl"


def read_rows(folder: RunFolder) -> list[Row]:
    """Every whole row of a run's `metrics.jsonl`; none where there is no file.

    What a killed writer left of its last line, or a living one has not finished, is no row. Raises
    ValueError for any other line that is no JSON.
    """
    if not folder.exists(FILE_NAME):
        return []
    return [json.loads(line) for line in _whole_lines(folder.read_text(FILE_NAME))]


def rows_before(folder: RunFolder, step: int) -> list[Row]:
    """Rows of an earlier start that stay valid when the run goes on from `step`."""
    rows = read_rows(folder) if step else []
    return [row for row in rows if row["step"] + (row["kind"] == "step") <= step]


class RowsFile:
    """The one writer of a run's rows.

    On a local disk rows are appended. Object stores cannot append: there the rows lie in a file of
    this process, which is sent whole. What a failing write misses is in the next one.
    """

    def __init__(self, folder: RunFolder, rows: Iterable[Row]) -> None:
        """Begins with `rows`, in place of what the file holds, at the first `write`."""
        self.folder = folder
        self._path = Path(folder.root if folder.is_local else _own_folder(self), FILE_NAME)
        self._size = 0
        """Bytes of the file at `_path` that hold whole rows; what follows is overwritten."""
        self._waiting = b"".join(map(_line, rows))
        self._sent = False

    def add(self, row: Row) -> None:
        """Take a row; it is on the disk after the next `write` that does not raise."""
        self._waiting += _line(row)

    def write(self) -> None:
        """Bring all rows to the disk or store. OSError and the store's own errors."""
        self.append()
        self.send()

    def append(self) -> None:
        """Bring all rows to the local file. OSError."""
        if self._waiting or not self._size:
            self._append()
            self._sent = self.folder.is_local

    def send(self) -> None:
        """Copy the whole rows of the local file to the store; others may come meanwhile."""
        if not self._sent:
            self._sent = True
            try:
                with self._path.open("rb") as file:
                    self.folder.write_bytes(FILE_NAME, file.read(self._size))
            except BaseException:
                self._sent = False
                raise

    def rows(self) -> Iterator[Row]:
        """All rows so far, ascending, those too that wait for a write."""
        if self._size:
            with self._path.open("rb") as file:
                left = self._size
                while left:
                    line = file.readline()
                    left -= len(line)
                    yield json.loads(line)
        for line in self._waiting.splitlines():
            yield json.loads(line)

    def _append(self) -> None:
        data = self._waiting
        if self._size:
            with self._path.open("r+b") as file:
                file.truncate(self._size)  # half a row of a write that failed
                file.seek(0, os.SEEK_END)
                file.write(data)
        else:  # by rename: a kill leaves the rows of before or these
            RunFolder(str(self._path.parent)).write_bytes(FILE_NAME, data)
        self._size, self._waiting = self._size + len(data), b""


def _own_folder(owner: RowsFile) -> str:
    folder = tempfile.mkdtemp(prefix="worldr1-rows-")
    weakref.finalize(owner, shutil.rmtree, folder, ignore_errors=True)
    return folder


def _line(row: Row) -> bytes:
    return f"{json.dumps(row, sort_keys=True)}\n".encode()


def _whole_lines(text: str) -> list[str]:
    return text[: text.rfind("\n") + 1].splitlines()
