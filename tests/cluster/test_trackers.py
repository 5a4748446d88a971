"""TensorBoard files: which scalars, in one curve after a resume; what a missing package says."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import math
import struct
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from cluster.cli import main
from cluster.config import ConfigError
from cluster.storage import RunFolder
from cluster.trackers import open_tracker, require_tracker, scalars
from tests.cluster.made_run import step_row


def test_every_finite_number_of_a_row_is_a_scalar() -> None:
    row = {
        "kind": "step",
        "step": 3,
        "time": 1.0,
        "phase": "main",
        "loss": math.nan,
        "update_skipped": True,
        "parts": {"recon": {"mean": 0.5, "n": 2}},
        "bottleneck": "judge",
    }
    assert scalars(row) == {
        "step/update_skipped": 1.0,
        "step/parts/recon/mean": 0.5,
        "step/parts/recon/n": 2.0,
    }


def curve(folder: Path, name: str) -> list[tuple[int, float]]:
    events = EventAccumulator(str(folder))
    events.Reload()
    return [(event.step, round(event.value, 6)) for event in events.Scalars(name)]


def test_resumed_run_goes_on_in_the_same_curve(tmp_path: Path) -> None:
    """Steps 2 and 3 of the first start were lost with it: the second start replaces them."""
    folder = RunFolder(str(tmp_path))
    first = open_tracker("tensorboard", folder, 0, None, {})
    for step in range(4):
        first.log({**step_row(step, "main"), "loss": float(step)})
    first.log({"kind": "eval", "step": 4, "reward": {"mean": 2.5}})
    first.close()
    second = open_tracker("tensorboard", folder, 2, first.run_id, {})
    second.log({**step_row(2, "main"), "loss": 20.0})
    second.close()
    board = tmp_path / "tensorboard"
    assert curve(board, "step/loss") == [(1, 0.0), (2, 1.0), (3, 20.0)]
    assert len(list(board.iterdir())) == 2


def test_events_reach_a_store_that_is_no_disk() -> None:
    folder = RunFolder("memory://trackers/run")
    tracker = open_tracker("tensorboard", folder, 0, None, {})
    tracker.log({**step_row(0, "main"), "loss": 1.0})
    tracker.close()
    (name,) = folder.find("tensorboard", "events.out.tfevents.*")
    assert len(folder.read_bytes(name)) > 200


def test_events_that_a_store_refuses_end_no_run(caplog: pytest.LogCaptureFixture) -> None:
    """Neither in a step nor at the end of a run that is durable; the next copy is whole."""

    class Expired(RunFolder):
        expired = True

        def write_bytes(self, name: str, data: bytes) -> None:
            if self.expired:
                raise PermissionError("the token has expired")
            super().write_bytes(name, data)

    folder = Expired("memory://trackers/expired")
    first = open_tracker("tensorboard", folder, 0, None, {})
    first.log({**step_row(0, "main"), "loss": 1.0})
    first.close()
    assert "the token has expired" in caplog.text
    assert folder.find("tensorboard", "*") == []
    folder.expired = False
    second = open_tracker("tensorboard", folder, 0, None, {})
    second.close()
    assert len(folder.find("tensorboard", "events.out.tfevents.*")) == 1


@pytest.mark.hand
@pytest.mark.skipif(importlib.util.find_spec("wandb") is None, reason="wandb is not installed")
def test_offline_runs_of_wandb_share_an_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A start and its resume: two offline folders of one id, whose steps follow one another."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    folder = RunFolder(str(tmp_path))
    first = open_tracker("wandb", folder, 0, None, {"steps": 3})
    for step in range(2):
        first.log({**step_row(step, "main"), "loss": float(step)})
    first.close()
    second = open_tracker("wandb", folder, 2, first.run_id, {"steps": 3})
    second.log({**step_row(2, "main"), "loss": 2.0})
    second.close()
    assert second.run_id == first.run_id
    files = sorted((tmp_path / "wandb").glob(f"offline-run-*-{first.run_id}*/*.wandb"))
    assert [wandb_steps(file) for file in files] == [[1, 2], [3]]


def wandb_steps(file: Path) -> list[int]:
    """`optimizer_step` of every logged row of an offline run: records in LevelDB's log format,
    7 bytes of file header, then (checksum, length, kind) and the bytes, all within one block."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, place, steps = file.read_bytes(), 7, []
    while place < len(data):
        _, length, kind = struct.unpack_from("<IHB", data, place)
        assert kind == 1
        record = Record()
        record.ParseFromString(data[place + 7 : place + 7 + length])
        place += 7 + length
        for item in record.history.item:
            if "optimizer_step" in (item.key, *item.nested_key):
                steps.append(int(float(item.value_json)))
    return steps


def test_a_service_that_lets_nobody_in_costs_no_worker(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights & Biases asks for a login when a run opens; the package here is a stand-in."""

    class Refused(Exception):
        pass

    def refuse(**_: object) -> None:
        raise Refused("api_key not configured (no-tty)")

    wandb = ModuleType("wandb")
    wandb.__spec__ = importlib.machinery.ModuleSpec("wandb", None)
    vars(wandb).update(init=refuse, errors=SimpleNamespace(Error=Refused))
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    run = str(tmp_path / "run")
    assert main(["train", "toy", "metrics.tracker=wandb", "--local", "--run", run]) == 2
    said = capsys.readouterr()
    assert "metrics.tracker = 'wandb' cannot start: api_key not configured" in said.err
    assert "workers are up" not in said.out


@pytest.mark.skipif(importlib.util.find_spec("wandb") is not None, reason="wandb is installed")
def test_missing_package_is_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ConfigError, match="not installed"):
        require_tracker("wandb")
    run = str(tmp_path / "run")
    assert main(["train", "toy", "metrics.tracker=wandb", "--local", "--run", run]) == 2
    assert "metrics.tracker" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
