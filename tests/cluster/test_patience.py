"""A store that fails for a while: what waits, what is missed, what is not forgiven."""

from __future__ import annotations

import asyncio

import pytest

from cluster.patience import missing_is_fine, patiently


def test_work_is_repeated_until_the_store_lets_it_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cluster.patience.FIRST_PAUSE_S", 0.001)
    said: list[str] = []
    failures = 3

    async def work() -> str:
        nonlocal failures
        failures -= 1
        if failures >= 0:
            raise OSError("503 slow down")
        return "done"

    assert asyncio.run(patiently("the evaluation", work, said.append)) == "done"
    assert len(said) == 3
    assert said[0] == "the evaluation failed: OSError: 503 slow down; trying again in 0.001 s"
    assert said[2].endswith("in 0.004 s")


def test_what_waiting_does_not_mend_is_raised() -> None:
    async def work() -> None:
        raise FileNotFoundError("no such bucket")

    with pytest.raises(FileNotFoundError):
        asyncio.run(patiently("the evaluation", work, print))
    with pytest.raises(ValueError, match="a bug"), missing_is_fine("a row", print):
        raise ValueError("a bug")


def test_what_may_be_missed_is_said() -> None:
    said: list[str] = []
    with missing_is_fine("metrics.jsonl", said.append):
        raise ConnectionResetError
    assert said == ["metrics.jsonl could not be written: ConnectionResetError: no reason given"]
