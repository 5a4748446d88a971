"""What happened to every sample: a Parquet row each, flushed with the checkpoint that covers it.

    RUN/ledger/step_000120.<lineage>.parquet     rows whose fate was decided in steps 110..119

A file names the one before it and its SHA-256, and the checkpoint's `state.json` names the newest:
from a checkpoint, the chain leads through exactly the rows that led to its weights. A file that a
crash left behind is on no chain. Names are never used twice, so that nothing is overwritten.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Literal

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict

from cluster.storage import RunFolder

Status = Literal["trained", "skipped", "unscored", "dropped"]
"""trained: its gradient is in the weights of `step` + 1. skipped: it was in the batch of `step`,
whose update was not applied. unscored: its group trained without it. dropped: its whole group was,
for `reason`."""


@dataclass(frozen=True, slots=True)
class SampleRow:
    """The life of one sample, written when its fate is decided."""

    group: int
    """Serial number of the group."""
    member: int
    prompt_id: str
    phase: str
    seed: int
    window_start: int
    status: Status
    reason: str
    """Why, in one sentence; empty for a trained sample."""
    step: int
    """The step that consumed it, or the next step when it was dropped."""
    version_step: int | None = None
    """Step of the weights it was drawn from; None where it was never drawn."""
    version_lineage: str = ""
    version_checksum: str = ""
    total: float | None = None
    """Combined reward."""
    advantage: float | None = None
    """What multiplied its log-ratio, in the batch that consumed it."""
    parts: Mapping[str, float] | None = None
    """Sub-scores by reward part."""
    scorers: Mapping[str, str] | None = None
    """Version of the scorer of each kind of reward worker."""
    attempts: int = 0
    """Scoring attempts of the kind that needed most."""
    worker: str = ""
    """Rollout worker, as host:process."""
    rollout_s: float = 0.0
    """Latency of its group's rollout, waiting for a worker included."""
    score_s: float = 0.0
    """Latency of its scoring, waiting for workers included."""


class LedgerHead(BaseModel):
    """The newest file of a chain."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    """File name inside `RUN/ledger`."""
    sha256: str
    """Hex digest of its content."""


SCHEMA = pa.schema(
    [
        ("group", pa.int64()),
        ("member", pa.int32()),
        ("prompt_id", pa.string()),
        ("phase", pa.string()),
        ("seed", pa.int64()),
        ("window_start", pa.int32()),
        ("status", pa.string()),
        ("reason", pa.string()),
        ("step", pa.int64()),
        ("version_step", pa.int64()),
        ("version_lineage", pa.string()),
        ("version_checksum", pa.string()),
        ("total", pa.float64()),
        ("advantage", pa.float64()),
        ("parts", pa.map_(pa.string(), pa.float64())),
        ("scorers", pa.map_(pa.string(), pa.string())),
        ("attempts", pa.int32()),
        ("worker", pa.string()),
        ("rollout_s", pa.float64()),
        ("score_s", pa.float64()),
    ]
)


class LedgerDamage(ValueError):
    """A file of the chain is missing or is not what the next one says it is."""


class Ledger:
    """Collects rows and flushes them; the coordinator's."""

    def __init__(self, folder: RunFolder, head: LedgerHead | None = None) -> None:
        """Continue the chain that ends at `head`."""
        self.folder = folder
        self.head = head
        self._rows: list[SampleRow] = []
        self._decisions: list[str] = []

    def add(self, rows: Iterable[SampleRow]) -> None:
        """Note the fates of some samples."""
        self._rows += rows

    def decide(self, line: str) -> None:
        """Note a decision about the pools, one line of JSON."""
        self._decisions.append(line)

    def pending(self) -> tuple[tuple[SampleRow, ...], tuple[str, ...]]:
        """Rows and decisions that no durable file holds."""
        return tuple(self._rows), tuple(self._decisions)

    def write(
        self,
        step: int,
        lineage: str,
        pending: tuple[Sequence[SampleRow], Sequence[str]],
    ) -> LedgerHead:
        """Write a file of pending rows; it counts when a checkpoint names it (`flushed`)."""
        rows, decisions = pending
        name = f"step_{step:06d}.{lineage}.parquet"
        data = to_parquet(rows, decisions, self.head)
        self.folder.write_bytes(f"ledger/{name}", data)
        return LedgerHead(name=name, sha256=hashlib.sha256(data).hexdigest())

    def flushed(self, head: LedgerHead, pending: tuple[Sequence[SampleRow], Sequence[str]]) -> None:
        """A durable checkpoint names `head`, which holds the oldest rows that were pending."""
        rows, decisions = pending
        del self._rows[: len(rows)]
        del self._decisions[: len(decisions)]
        self.head = head


def to_parquet(
    rows: Sequence[SampleRow], decisions: Sequence[str], previous: LedgerHead | None
) -> bytes:
    """A file's bytes, sorted by (group, member); the link and the decisions are metadata."""
    ordered = sorted(rows, key=lambda row: (row.group, row.member))
    metadata = {
        "previous": previous.model_dump_json() if previous else "",
        "decisions": "\n".join(decisions),
    }
    table = pa.Table.from_pylist([asdict(row) for row in ordered], schema=SCHEMA)
    sink = io.BytesIO()
    pq.write_table(table.replace_schema_metadata(metadata), sink, compression="zstd")
    return sink.getvalue()


def from_parquet(data: bytes) -> tuple[list[SampleRow], list[str], LedgerHead | None]:
    """What `to_parquet` was given."""
    table = pq.read_table(io.BytesIO(data))
    metadata = {key.decode(): value.decode() for key, value in table.schema.metadata.items()}
    names = [field.name for field in fields(SampleRow)]
    rows = []
    for record in table.to_pylist():
        for name in ("parts", "scorers"):
            record[name] = None if record[name] is None else dict(record[name])
        rows.append(SampleRow(**{name: record[name] for name in names}))
    previous = metadata["previous"]
    return (
        rows,
        [line for line in metadata["decisions"].split("\n") if line],
        LedgerHead.model_validate_json(previous) if previous else None,
    )


def read_chain(folder: RunFolder, head: LedgerHead | None) -> tuple[list[SampleRow], list[str]]:
    """All rows and decisions that lead to `head`, oldest file first. LedgerDamage where the chain
    is broken."""
    files: list[tuple[list[SampleRow], list[str]]] = []
    while head is not None:
        try:
            data = folder.read_bytes(f"ledger/{head.name}")
        except FileNotFoundError:
            raise LedgerDamage(f"ledger/{head.name} is missing") from None
        if hashlib.sha256(data).hexdigest() != head.sha256:
            raise LedgerDamage(f"the content of ledger/{head.name} does not match its SHA-256")
        rows, decisions, head = from_parquet(data)
        files.append((rows, decisions))
    files.reverse()
    return [row for rows, _ in files for row in rows], [d for _, ds in files for d in ds]


def decided(rows: Iterable[SampleRow], status: Status, reason: str, step: int) -> list[SampleRow]:
    """The same samples under another fate."""
    return [replace(row, status=status, reason=reason, step=step) for row in rows]
