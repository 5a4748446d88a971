"""Calls that others answer: how long one is waited for, and what the error says that it brings."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from typing import Any

Call = asyncio.Future[Any]
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")

SETTLING_TURNS = 5
"""Turns of the event loop in which an answer that has arrived is noticed. Where something held the
loop up, a time limit that ran out meanwhile is seen before the answers that came meanwhile."""


class LearnedLimit:
    """How long a call of one kind may take: `MANY` times the slowest so far, which may have warmed
    up as well, and `AT_LEAST_S`; the limit it was made with until `ENOUGH` were answered, and never
    more than that."""

    MANY, ENOUGH, AT_LEAST_S = 5.0, 16, 300.0

    def __init__(self, at_most_s: float | None) -> None:
        self._at_most_s = at_most_s
        self._answers, self._slowest_s = 0, 0.0

    @property
    def seconds(self) -> float | None:
        """The limit of a call that begins now."""
        if self._at_most_s is None or self._answers < self.ENOUGH:
            return self._at_most_s
        return min(self._at_most_s, max(self.AT_LEAST_S, self.MANY * self._slowest_s))

    def answered(self, seconds: float) -> None:
        """Learn from a call that took so long."""
        self._answers += 1
        self._slowest_s = max(self._slowest_s, seconds)


async def within(call: Call, timeout_s: float | None) -> Any:
    """What a call answers or raises; TimeoutError where it is silent. It goes on in any case."""
    await asyncio.wait([call], timeout=timeout_s)
    await settle([call])
    if not call.done():
        raise TimeoutError
    return call.result()


async def settle(calls: Sequence[Call]) -> None:
    """Let answers that have arrived be noticed."""
    for _ in range(SETTLING_TURNS):
        if all(call.done() for call in calls):
            return
        await asyncio.sleep(0)


def first_line(error: BaseException) -> str:
    """Ray's first sentence, whom it speaks of (class, process and node of the actor), and why.

    Ray writes the reason last: the exception of a constructor ends its traceback, that of a death
    follows the table of the actor's properties.
    """
    text = _COLOUR.sub("", str(error))
    whom = dict(re.findall(r"^\s*(class_name|pid|ip): (\S+)", text, re.MULTILINE))
    lines = [line for line in text.splitlines() if line.strip()] or [type(error).__name__]
    said = lines[0].partition(", ray::")[0]
    if whom:
        who = f"{whom.get('class_name', 'actor')}, pid {whom.get('pid', 'unknown')}"
        said += f" ({who}, node {whom.get('ip', 'unknown')})"
    reason = _reason(lines[1:])
    return f"{said}: {reason}" if reason else said


def _reason(lines: Sequence[str]) -> str:
    """Of the lines after the first: the end of a traceback, or what follows a table."""
    if any(line.lstrip().startswith(("File ", "ray::")) for line in lines):
        return lines[-1].strip()
    table = [index for index, line in enumerate(lines) if line.startswith("\t")]
    after = lines[table[-1] + 1 :] if table else []
    return after[0].strip() if after else ""
