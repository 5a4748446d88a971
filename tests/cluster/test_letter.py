"""A run that stops in its middle says what was lost and what to do."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from ray.exceptions import ActorDiedError

from cluster.calls import first_line
from cluster.config import RunStopped
from cluster.letter import explain
from cluster.loop import DivergedError
from cluster.storage import RunFolder


@pytest.mark.parametrize(
    ("steps", "durable", "words"),
    [
        (0, (), "nothing: no step"),
        (4, (2, 4), "nothing: the checkpoint of step 4 holds"),
        (7, (2, 4), "3 of 7 steps: the newest checkpoint is of step 4"),
        (3, (), "3 steps: there was no checkpoint yet"),
    ],
)
def test_losses_are_counted(
    tmp_path: Path, steps: int, durable: tuple[int, ...], words: str
) -> None:
    folder = RunFolder(str(tmp_path))
    rows = [{"kind": "eval", "step": 0}, *({"kind": "step", "step": i} for i in range(steps))]
    folder.write_text("metrics.jsonl", "".join(f"{json.dumps(row)}\n" for row in rows))
    for step in durable:
        folder.write_text(f"checkpoints/step_{step:06d}/manifest.json", "{}")
    folder.write_text("checkpoints/step_000099/learner/shard", "an interrupted save is none")
    for error in (RunStopped("it broke"), DivergedError("it broke")):
        explain(error, folder)
        letter = "\n".join(error.__notes__)
        assert words in letter
        assert error.advice in letter
        assert str(error) == "it broke"
        assert len(error.__notes__) == 4


def test_every_kind_of_stop_says_what_to_do() -> None:
    """All of them, found by import; one clause each, and its own where a repeat would not help."""
    import cluster.layout
    import cluster.pools
    import cluster.ray_pool
    import cluster.startup  # noqa: F401  for their subclasses

    kinds = RunStopped.__subclasses__()
    assert {kind.__name__ for kind in kinds} >= {"DivergedError", "WorkerLost", "SaveFailed"}
    for kind in kinds:
        assert len(kind.advice.split()) > 5, kind
        assert not kind.advice.endswith("."), kind
        if kind.__name__ != "LearnerLost":
            assert kind.advice != RunStopped.advice, kind


def test_dead_actor_is_named_with_its_process_and_node() -> None:
    error = ActorDiedError()
    error.args = ("The actor died.\n\tclass_name: LearnerRank\n\tpid: 77\n\tip: 10.0.0.3\nmore",)
    error.error_msg = error.args[0]
    assert first_line(error) == "The actor died. (LearnerRank, pid 77, node 10.0.0.3)"
    assert first_line(ValueError("plain\nmore")) == "plain"
