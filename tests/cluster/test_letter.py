"""A run that stops in its middle says what was lost and what to do."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from ray.core.generated.common_pb2 import ActorDiedErrorContext
from ray.exceptions import ActorDiedError, RayTaskError

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
def test_lost_are_counted(tmp_path: Path, steps: int, durable: tuple[int, ...], words: str) -> None:
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


def test_a_dead_actor_is_named_with_its_process_and_node_and_the_reason() -> None:
    """As Ray's own classes write it: a system's death, and a constructor that raises."""
    died = ActorDiedErrorContext(
        class_name="LearnerRank",
        actor_id=b"\x01" * 16,
        pid=77,
        node_ip_address="10.0.0.3",
        error_message="The node ran out of memory.\nMore about it.",
    )
    assert first_line(ActorDiedError(died)) == (
        "The actor died unexpectedly before finishing this task. (LearnerRank, pid 77, "
        "node 10.0.0.3): The node ran out of memory."
    )
    raised = RayTaskError(
        "RolloutWorker.__init__",
        'ray::RolloutWorker.__init__() (pid=7, ip=10.0.0.4)\n  File "policy.py", line 1, in load\n'
        "ValueError: policy.model: /models/wan has no readable config\n",
        ValueError("policy.model"),
        pid=7,
        ip="10.0.0.4",
    )
    assert first_line(ActorDiedError(raised)) == (
        "The actor died because of an error raised in its creation task: ValueError: policy.model: "
        "/models/wan has no readable config"
    )
    assert first_line(ValueError("plain\nmore")) == "plain"
    assert first_line(TimeoutError()) == "TimeoutError"


class Silent(RunFolder):
    """A store whose credentials have expired."""

    def sizes(self, below: str) -> dict[str, int]:
        raise PermissionError("The provided token has expired.")

    def exists(self, name: str) -> bool:
        raise PermissionError("The provided token has expired.")


def test_a_store_that_does_not_answer_costs_no_advice(tmp_path: Path) -> None:
    error = RunStopped("it broke")
    explain(error, Silent(str(tmp_path)))
    letter = "\n".join(error.__notes__)
    assert "lost          unknown" in letter
    assert "PermissionError: The provided token has expired." in letter
    assert error.advice in letter
