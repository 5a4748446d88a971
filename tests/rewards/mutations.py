"""Wrong answers of a judge, made from a right one: each is no distribution over ten digits."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable, Iterator
from typing import Any

from tests.rewards.judge_endpoint import Reply, completion

LOG_PROBABILITIES = [-3.2, -2.9, -2.5, -2.2, -2.0, -1.9, -1.7, -2.1, -2.8, -3.5]
NO_NUMBERS: tuple[Any, ...] = (
    None, "-1.5", "", [], {}, True, [-1.5], {"value": -1}, float("nan"), float("inf"),
    -float("inf"), 0.5, 7, 1e300, -1e300, 10**400, "token",
)  # fmt: skip
PROSE = (
    "", " ", "seven", "The place is solid, 7.", "7/10", "10", "-1", "7.5", "a", "\u0667", "\uff17",
    "7 7", "\ud83d\ude00", None, 7, 7.0, True, ["7"], {"text": "7"},
)  # fmt: skip
BODIES = (
    b"", b"null", b"[]", b"{}", b"7", b'"7"', b"true", b"<html>502 Bad Gateway</html>",
    b"\x00\xff\xfe", b"[" * 100_000, b'{"choices": ' * 5_000, b"data: {}\n\ndata: [DONE]\n",
    b'{"error": {"message": "out of memory"}}', b"NaN", b"1" * 10_000,
)  # fmt: skip
STATUSES = (201, 204, 301, 400, 401, 403, 404, 405, 413, 418, 422, 429, 500, 502, 503, 504)


def mutations(seed: int) -> Iterator[Reply]:
    """Endless replies, of every kind in turn."""
    random_ = random.Random(seed)
    kinds: tuple[Callable[[random.Random], Reply], ...] = (
        _other_number, _other_number, _lost_part, _other_type, _digit_gone, _digit_twice,
        _other_ids, _prose, _contradiction, _no_mass, _too_much_mass, _cut, _body, _status,
    )  # fmt: skip
    while True:
        for kind in kinds:
            yield kind(random_)


def _right() -> dict[str, Any]:
    return completion(LOG_PROBABILITIES)


def _top(answer: dict[str, Any]) -> list[dict[str, Any]]:
    return answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]


def _reply(answer: Any) -> Reply:
    return Reply(json.dumps(answer).encode())


def _other_number(random_: random.Random) -> Reply:
    answer = _right()
    _top(answer)[random_.randrange(10)]["logprob"] = random_.choice(NO_NUMBERS)
    return _reply(answer)


def _places(answer: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Ways to every part that the reader needs, as keys and indices."""
    needed = {"choices", "message", "content", "logprobs", "top_logprobs", "token", "logprob"}
    if isinstance(answer, dict):
        for key in answer:
            if key in needed and not (key in ("token", "logprob") and "top_logprobs" in answer):
                yield (*path, key)
                yield from _places(answer[key], (*path, key))
    if isinstance(answer, list):
        for index in range(len(answer)):
            yield from _places(answer[index], (*path, index))


def _at_a_place(random_: random.Random, change: Callable[[Any, Any], None]) -> Reply:
    answer = _right()
    *way, last = random_.choice(list(_places(answer)))
    part: Any = answer
    for key in way:
        part = part[key]
    change(part, last)
    return _reply(answer)


def _lost_part(random_: random.Random) -> Reply:
    return _at_a_place(random_, lambda part, key: part.pop(key))


def _other_type(random_: random.Random) -> Reply:
    value = random_.choice([None, 3, 2.5, False, "", "text", [], {}, [[]], [None], {"a": 1}])
    return _at_a_place(random_, lambda part, key: part.__setitem__(key, copy.copy(value)))


def _digit_gone(random_: random.Random) -> Reply:
    answer = _right()
    top = _top(answer)
    del top[: random_.randrange(1, 10)]
    return _reply(answer)


def _digit_twice(random_: random.Random) -> Reply:
    answer = _right()
    top = _top(answer)
    top.append(dict(random_.choice(top)))
    return _reply(answer)


def _other_ids(random_: random.Random) -> Reply:
    """Tokens by text, by other ids, or by ids in another spelling."""
    answer = _right()
    spell = random_.choice(
        [lambda i: str(i), lambda i: f"token_id:{i + 100}", lambda i: f"token_id: {i + 15}"]
    )
    for index, entry in enumerate(_top(answer)):
        entry["token"] = spell(index)
    return _reply(answer)


def _prose(random_: random.Random) -> Reply:
    answer = _right()
    answer["choices"][0]["message"]["content"] = random_.choice(PROSE)
    return _reply(answer)


def _contradiction(random_: random.Random) -> Reply:
    answer = _right()
    answer["choices"][0]["message"]["content"] = random_.choice("012345789")
    return _reply(answer)


def _no_mass(random_: random.Random) -> Reply:
    answer = _right()
    for entry in _top(answer):
        entry["logprob"] = -9999.0 - random_.random()
    return _reply(answer)


def _too_much_mass(random_: random.Random) -> Reply:
    answer = _right()
    for entry in _top(answer):
        entry["logprob"] = -random_.random()
    return _reply(answer)


def _cut(random_: random.Random) -> Reply:
    body = json.dumps(_right()).encode()
    return Reply(body[: random_.randrange(len(body) - 1)])


def _body(random_: random.Random) -> Reply:
    kind = random_.choice(["application/json", "text/html", "text/event-stream", ""])
    return Reply(random_.choice(BODIES), kind=kind)


def _status(random_: random.Random) -> Reply:
    """A right answer under a status that says it is none, or an error's own body."""
    status = random_.choice(STATUSES)
    body = b"" if status in (201, 204) else json.dumps(_right()).encode()
    return Reply(body if random_.random() < 0.5 else b'{"error": "no"}', status)
