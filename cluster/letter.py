"""What is told when a run stops in its middle: what happened, what was lost, what to do."""

from __future__ import annotations

from cluster.config import RunStopped
from cluster.rows import read_rows
from cluster.storage import RunFolder


def explain(error: RunStopped, folder: RunFolder) -> None:
    """Add to an error, as notes, what a person needs who was not watching."""
    try:
        what = _lost(_steps_done(folder), _durable_step(folder))
    except Exception as silent:  # the store itself may be what went wrong
        what = f"unknown, {folder.url} does not answer: {type(silent).__name__}: {silent}"
    error.add_note(f"  lost          {what}")
    error.add_note("  done          all workers were ended; metrics, report and checkpoints stay")
    error.add_note(f"  you can       {error.advice}")
    error.add_note(f"  look at       {folder.url}/report/index.html, {folder.url}/metrics.jsonl")


def _lost(done: int, durable: int) -> str:
    lost = done - durable
    if not done:
        return "nothing: no step had been done"
    if lost <= 0:
        return f"nothing: the checkpoint of step {durable} holds all that was done"
    if durable:
        return (
            f"{lost} of {done} steps: the newest checkpoint is of step {durable}; they are "
            "repeated from the same prompts and noises"
        )
    return f"{done} steps: there was no checkpoint yet; they are repeated"


def _steps_done(folder: RunFolder) -> int:
    return max((row["step"] + 1 for row in read_rows(folder) if row["kind"] == "step"), default=0)


def _durable_step(folder: RunFolder) -> int:
    names = folder.find("checkpoints", "manifest.json")
    return max((int(name.split("/")[-2].removeprefix("step_")) for name in names), default=0)
