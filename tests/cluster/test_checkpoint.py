"""Checkpoints exist or do not: local directories, memory and the S3 protocol behave alike.

Not covered: what the learner ranks write (tests/learner), and a store that loses data after it
acknowledged a write and before the checksum is read.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.core import url_to_fs
from fsspec.implementations.memory import MemoryFileSystem

from cluster.checkpoint import CheckpointStore, IncompatibleCheckpoint, InFlight, RunState
from cluster.config import flatten_tree
from cluster.ledger import LedgerHead
from cluster.versions import Lineages

CONFIG = {"policy": {"model": "tiny", "lora": {"rank": 4}}, "seed": 1}


@pytest.fixture(params=["local", "memory"])
def run_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "local":
        yield str(tmp_path / "run")
        return
    url = f"memory://run-{uuid.uuid4().hex}"
    yield url
    fsspec.filesystem("memory").rm(url, recursive=True)


def _state(step: int) -> RunState:
    return RunState(
        step=step,
        cursors={"train": 8 * step, "dynamic": 0},
        next_group=4 * step,
        in_flight=(InFlight(group=4 * step - 1, phase="main", prompt_id="toy-1"),),
        seed=1,
        lineages=Lineages(starts=(("a", 0), ("b", step))),
        account="d" * 64,
        ledger=LedgerHead(name="step_000001.a.parquet", sha256="e" * 64),
        weights_checksum="c" * 64,
        consecutive_bad_updates=1,
        tracker_run_id="t-1",
    )


def _save(store: CheckpointStore, step: int, config: dict[str, Any] = CONFIG) -> None:
    url = store.begin(step)
    fs, path = url_to_fs(url)
    fs.pipe_file(f"{path}/__0_0.distcp", b"tensors of step %d" % step)
    fs.pipe_file(f"{path}/.metadata", b"layout")
    store.commit(step, _state(step), config)


def _damage(store: CheckpointStore, step: int, name: str, content: bytes | None) -> None:
    fs, path = url_to_fs(f"{store.url(step)}/{name}")
    if content is None:
        fs.rm_file(path)
    else:
        fs.pipe_file(path, content)


def test_state_comes_back_equal(run_url: str) -> None:
    """What is committed is what is found, and the learner's URL holds the ranks' files."""
    store = CheckpointStore(run_url)
    assert store.newest_valid().checkpoint is None
    _save(store, 120)
    found = CheckpointStore(run_url).newest_valid(CONFIG)
    assert found.skipped == ()
    assert found.checkpoint is not None
    assert found.checkpoint.state == _state(120)
    assert found.checkpoint.url.endswith("checkpoints/step_000120")
    fs, path = url_to_fs(found.checkpoint.learner_url)
    assert fs.cat_file(f"{path}/__0_0.distcp") == b"tensors of step 120"


def test_manifest_covers_every_file_with_its_checksum(run_url: str) -> None:
    store = CheckpointStore(run_url)
    _save(store, 3)
    fs, path = url_to_fs(store.url(3))
    manifest = json.loads(fs.cat_file(f"{path}/manifest.json"))
    assert set(manifest["files"]) == {"learner/__0_0.distcp", "learner/.metadata", "state.json"}
    record = manifest["files"]["learner/.metadata"]
    assert record["size"] == 6
    assert record["sha256"] == hashlib.sha256(b"layout").hexdigest()


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("manifest.json", b'{"step": 2, "conf', "torn or malformed"),
        ("manifest.json", None, "no manifest"),
        ("learner/__0_0.distcp", None, "learner/__0_0.distcp is missing"),
        ("learner/__0_0.distcp", b"tensors of step X", "does not match its SHA-256"),
        ("learner/__0_0.distcp", b"short", "has 5 bytes; the manifest says 17"),
        ("state.json", b"{}", "state.json has 2 bytes"),
    ],
)
def test_damage_falls_back_to_the_one_before_and_says_why(
    run_url: str, name: str, content: bytes | None, reason: str
) -> None:
    store = CheckpointStore(run_url)
    _save(store, 1)
    _save(store, 2)
    _damage(store, 2, name, content)
    found = store.newest_valid(CONFIG)
    assert found.checkpoint is not None
    assert found.checkpoint.step == 1
    assert [s.step for s in found.skipped] == [2]
    assert reason in found.skipped[0].reason


def test_interrupted_save_is_skipped_and_can_be_repeated(run_url: str) -> None:
    """Ranks wrote, the coordinator died before the commit; the same step is saved again later."""
    store = CheckpointStore(run_url)
    _save(store, 1)
    fs, path = url_to_fs(store.begin(2))
    fs.pipe_file(f"{path}/stale.distcp", b"stale")
    found = store.newest_valid()
    assert found.checkpoint is not None
    assert found.checkpoint.step == 1
    _save(store, 2)
    found = store.newest_valid()
    assert found.checkpoint is not None
    assert found.checkpoint.step == 2
    assert not fs.exists(f"{path}/stale.distcp")


def test_retain_keeps_the_newest_and_spares_a_save_in_progress(run_url: str) -> None:
    store = CheckpointStore(run_url)
    for step in (1, 2, 3, 4):
        _save(store, step)
    _damage(store, 2, "manifest.json", None)
    fs, path = url_to_fs(store.begin(5))
    fs.pipe_file(f"{path}/__0_0.distcp", b"half")
    assert store.retain(2) == (1, 2)
    assert store.steps() == (3, 4, 5)
    assert store.retain(1, needed=(3, 4)) == ()
    assert store.retain(1) == (3,)
    assert store.steps() == (4, 5)


def test_another_configuration_is_refused_by_field_name(run_url: str) -> None:
    store = CheckpointStore(run_url)
    _save(store, 1)
    other = {"policy": {"model": "tiny", "lora": {"rank": 8}}, "seed": 1, "extra": (1, 2)}
    with pytest.raises(IncompatibleCheckpoint) as error:
        store.newest_valid(other)
    assert "policy.lora.rank (4 in the checkpoint, 8 now)" in str(error.value)
    assert "extra ('unset' in the checkpoint, [1, 2] now)" in str(error.value)
    assert "seed" not in str(error.value)


def test_a_key_that_came_later_had_its_default(run_url: str) -> None:
    store = CheckpointStore(run_url)
    _save(store, 1)
    assert store.newest_valid({**CONFIG, "max_staleness": 0}).checkpoint is not None
    with pytest.raises(IncompatibleCheckpoint, match=r"max_staleness \(0 in the checkpoint, 1 now"):
        store.newest_valid({**CONFIG, "max_staleness": 1})


def test_keys_that_have_become_free_refuse_no_older_checkpoint(run_url: str) -> None:
    store = CheckpointStore(run_url)
    _save(store, 1, {**CONFIG, "learner": {"micro_batch": 16}})
    assert store.newest_valid(CONFIG).checkpoint is not None


def test_flatten_gives_dotted_names() -> None:
    assert flatten_tree({"a": {"b": 1, "c": {"d": [2]}}, "e": None}) == {
        "a.b": 1,
        "a.c.d": [2],
        "e": None,
    }


def test_commit_without_the_ranks_part_is_refused(run_url: str) -> None:
    store = CheckpointStore(run_url)
    store.begin(1)
    with pytest.raises(ValueError, match="is empty; the ranks must save first"):
        store.commit(1, _state(1), CONFIG)
    with pytest.raises(ValueError, match=r"state\.step = 2 in the checkpoint of step 1"):
        store.commit(1, _state(2), CONFIG)


class _Flaky(MemoryFileSystem):
    """A memory store whose writes fail a few times with OSError, as a faulty network does."""

    protocol = "flaky"
    failures = 0

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return super()._strip_protocol(path.replace("flaky://", "memory://"))

    def pipe_file(self, path: str, value: bytes, **kwargs: Any) -> None:
        if type(self).failures > 0:
            type(self).failures -= 1
            raise OSError("connection reset")
        super().pipe_file(path, value, **kwargs)


def test_oserrors_are_retried_and_then_raised() -> None:
    fsspec.register_implementation("flaky", _Flaky, clobber=True)
    store = CheckpointStore(f"flaky://run-{uuid.uuid4().hex}", attempts=3, backoff_s=0.0)
    _save(store, 1)
    url = store.begin(2)
    fs, path = url_to_fs(url)
    fs.pipe_file(f"{path}/x", b"x")
    _Flaky.failures = 2
    store.commit(2, _state(2), CONFIG)
    found = store.newest_valid()
    assert found.checkpoint is not None
    assert found.checkpoint.step == 2
    _Flaky.failures = 3
    with pytest.raises(OSError, match="connection reset"):
        store.commit(2, _state(2), CONFIG)
    _Flaky.failures = 0


@pytest.mark.slow
def test_s3_protocol(s3_bucket: str) -> None:
    """The same life cycle against a server that speaks S3 on the loopback interface."""
    store = CheckpointStore(f"{s3_bucket}/runs/a")
    assert store.newest_valid().checkpoint is None
    for step in (1, 2, 3):
        _save(store, step)
    _damage(store, 3, "learner/__0_0.distcp", b"tensors of step X")
    found = store.newest_valid(CONFIG)
    assert found.checkpoint is not None
    assert found.checkpoint.state == _state(2)
    assert found.skipped[0].reason.endswith("does not match its SHA-256")
    assert store.retain(1) == (1, 2)
    assert store.steps() == (3,)
