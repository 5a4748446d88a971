"""Calls that others answer: how long one is waited for, and what the error says that it brings."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from typing import Any

Call = asyncio.Future[Any]

SETTLING_TURNS = 5
"""Turns of the event loop in which an answer that has arrived is noticed. Where something held the
loop up, a time limit that ran out meanwhile is seen before the answers that came meanwhile."""


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
    """Ray's first sentence, and whom it speaks of: class, process and node of the actor."""
    text = str(error)
    whom = dict(re.findall(r"^\s*(class_name|pid|ip): (\S+)", text, re.MULTILINE))
    lines = text.splitlines()
    first = lines[0] if lines else type(error).__name__
    if not whom:
        return first
    who = f"{whom.get('class_name', 'actor')}, pid {whom.get('pid', 'unknown')}"
    return f"{first} ({who}, node {whom.get('ip', 'unknown')})"
