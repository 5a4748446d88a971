"""A pool of workers as the loop sees it: all that differs between Ray and one process.

Small answers come back as values; everything large stays a `Ref` that is handed on unread. Over Ray
actors: `ray_pool.py` and `ray_ranks.py`; in one process: `local.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from cluster.clocks import Meter

Ref = Any
"""A large object where it was made: a Ray ObjectRef, or the object itself under --local."""


class Together(Protocol):
    """Workers of one class that are called all at once."""

    name: str
    meter: Meter

    @property
    def size(self) -> int:
        """Workers in the pool."""
        ...

    async def call_all(
        self,
        method: str,
        arguments: Sequence[tuple[Any, ...]],
        returns: int = 1,
        limit_s: float | None = None,
    ) -> list[Any]:
        """Run a method on every worker at once, each with its own arguments; answers in order.

        A worker that does not answer within `limit_s` counts as dead.
        """
        ...

    async def fetch(self, ref: Ref) -> Any:
        """The object behind a ref. Raises ObjectGone."""
        ...

    async def store(self, value: Any) -> Ref:
        """A ref to an object that lives as long as the coordinator."""
        ...


class Pool(Together, Protocol):
    """Workers of one class, any of which takes a call."""

    async def call(
        self, method: str, *args: Any, returns: int = 1, timeout_s: float | None = None
    ) -> Any:
        """Run a method on a free worker; waiting for one does not count towards `timeout_s`, and
        `Late` arguments are read after it.

        With `returns` > 1 the method returns a tuple of that length; the first element comes back
        as a value, the others as refs. Raises WorkerLost (PoolLost where nobody can take it),
        TimeoutError, ObjectGone for an argument
        that is lost, or what the method raised.
        """
        ...


class RankPool(Together, Protocol):
    """The learner's ranks, which are never called alone."""

    async def restart(self) -> None:
        """Replace every rank by one in its initial state."""
        ...


@dataclass(frozen=True, slots=True)
class Late:
    """An argument that is read when a worker is free for the call."""

    read: Callable[[], Any]


def bind(args: Sequence[Any]) -> tuple[Any, ...]:
    """Arguments with every `Late` one read, in their order."""
    return tuple(arg.read() if isinstance(arg, Late) else arg for arg in args)
