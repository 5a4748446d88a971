"""What a run may lose on its way: workers, whole pools, the learner's ranks, large objects."""

from __future__ import annotations

from cluster.config import RunStopped


class WorkerLost(RunStopped):
    """A worker died more often than a call is retried."""

    advice = (
        "read in the worker's log why it died (Ray's dashboard, or `ray logs`; often memory), then "
        "start the same command again: it goes on from the newest checkpoint"
    )


class PoolLost(WorkerLost):
    """No worker of a pool is left, and none that was asked for comes."""


class LearnerLost(RunStopped):
    """A rank died, froze or lost touch with the others: all of them have to be replaced."""


class LearnerTooLarge(LearnerLost):
    """A rank ran out of GPU memory: of too much, or of pieces too small, which fresh ranks mend."""

    advice = (
        "give a rank less to hold: more learner.ranks, learner.micro_batch=1, "
        "learner.activation_checkpointing=true; `worldr1 plan` says what fits"
    )


MAX_LOSSES = 3
"""Times that the same objects may be lost and made again."""


class ObjectGone(RuntimeError):
    """An object that a ref names was lost with its node, or evicted; it has to be made again."""
