"""Requests are a pure function of a few integers; counts and noise of a collection add up."""

from __future__ import annotations

import asyncio

import pytest

from actors.config import RolloutConfig
from cluster.collect import RequestSource, gather_or_cancel
from prompts.dataset import load_prompts

ROLLOUT = RolloutConfig(sampling_steps=10, window_high=4, height=64, width=96, frames=9)
PROMPTS = {"train": load_prompts("toy_train"), "dynamic": load_prompts("toy_dynamic")}


def source(next_group: int = 0, **cursors: int) -> RequestSource:
    return RequestSource(3, ROLLOUT, PROMPTS, next_group, cursors)


def test_a_source_continues_from_its_integers() -> None:
    whole = source()
    requests = [whole.draw("main") for _ in range(5)] + [whole.draw("dynamic") for _ in range(2)]
    again = source()
    first = [again.draw("main") for _ in range(3)]
    resumed = source(again.next_group, **again.cursors)
    rest = [resumed.draw("main") for _ in range(2)] + [resumed.draw("dynamic") for _ in range(2)]
    assert first + rest == requests
    assert [request.group for request in requests] == list(range(7))
    assert resumed.cursors == {"train": 5, "dynamic": 2}


def test_phases_draw_from_their_own_set() -> None:
    requests = source()
    for _ in range(30):
        assert not requests.draw("main").prompt.is_dynamic
        assert requests.draw("dynamic").prompt.is_dynamic


def test_reissued_prompt_gets_new_noise_and_a_window_in_range() -> None:
    requests = source()
    first = requests.draw("main")
    again = requests.issue(first.prompt)
    assert again.prompt == first.prompt
    assert again.group == first.group + 1
    starts = {requests.issue(first.prompt).window_start for _ in range(60)}
    assert starts == {1, 2, 3}
    assert requests.cursors["train"] == 1


def test_first_error_is_raised_as_itself_and_cancels_the_rest() -> None:
    cancelled = []

    async def fails() -> None:
        await asyncio.sleep(0)
        raise LookupError("this one")

    async def waits() -> None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.append(True)
            raise

    with pytest.raises(LookupError, match="this one"):
        asyncio.run(gather_or_cancel([waits(), fails(), waits()]))
    assert cancelled == [True, True]
