"""What a vision-language judge is asked and how its answer is read: pure, no network in here.

The judge answers with one digit. Its score is the expectation over the probabilities of the ten
digit tokens, so that it is finer than a digit and does not depend on sampling. An answer without
exactly these ten log-probabilities is no answer: servers that do not know a request's fields ignore
them with HTTP 200.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

DIGITS = tuple("0123456789")

INSTRUCTIONS = """\
You are an expert in 3D computer vision. From a video, 3D Gaussians were reconstructed; you are \
shown them from a camera position that the video never had. If the video showed one solid \
place, the picture still looks like that place. If it did not, the geometry is damaged. Look for:
- floaters: blobs, specks or fog that hang in free space and belong to no surface;
- billboards: things that should have volume but are flat like cut-out cardboard;
- stretched textures: patterns smeared or pulled along one direction;
- holes and tears: empty or black parts inside of what should be solid;
- doubles: the same edge or object seen twice, slightly shifted;
- missing things: what the description names and the picture does not show.
The border of the picture may be empty, because the video never saw what lies there: do not count \
that. Do not judge style, colours, sharpness or beauty.
Answer with a single digit and nothing else: 9 for a solid place without any damage, 7 for small \
faults that one has to look for, 5 for a place with clear damage, 2 for one that is hardly \
recognisable, 0 for no place at all."""

QUESTION = """\
The video was made for this description: {description}
How solid is the place in the picture? One digit from 0 to 9:"""

CONTRADICTION_NAT = 0.05
"""By how much the answered digit may be less probable than the most probable one: rounding."""
MASS_ROUNDING = 1e-2
LEAST_LOG_PROBABILITY = -1e5
"""vLLM writes -9999 for minus infinity."""


class JudgeAnswerError(RuntimeError):
    """A response that holds no distribution over the ten digits."""


@dataclass(frozen=True)
class DigitAnswer:
    """The judge's answer to one picture."""

    log_probabilities: tuple[float, ...]
    """Of the tokens "0" … "9". vLLM constrains the answer before it takes logarithms: there they
    are normalised among themselves."""
    digit: str
    """The digit that it wrote."""

    @property
    def probabilities(self) -> tuple[float, ...]:
        """Of the ten digits, renormalised."""
        top = max(self.log_probabilities)
        weights = [math.exp(value - top) for value in self.log_probabilities]
        return tuple(weight / math.fsum(weights) for weight in weights)


def rubric_hash() -> str:
    """Names the rubric in every score: other words are another judge."""
    return hashlib.sha256((INSTRUCTIONS + QUESTION).encode()).hexdigest()[:8]


def picture_url(picture: NDArray[np.uint8]) -> str:
    """A picture uint8 [H, W, 3] as a PNG in a data URL, without loss."""
    done, data = cv2.imencode(".png", np.ascontiguousarray(picture[..., ::-1]))
    if not done:
        raise ValueError(f"a picture of shape {picture.shape} cannot be written as PNG")
    return "data:image/png;base64," + base64.b64encode(data.tobytes()).decode()


def messages(picture: NDArray[np.uint8], description: str) -> list[dict[str, Any]]:
    """The conversation that asks about one picture uint8 [H, W, 3]."""
    return [
        {"role": "system", "content": INSTRUCTIONS},
        {
            "role": "user",
            "content": [
                {"type": "image_url", "image_url": {"url": picture_url(picture)}},
                {"type": "text", "text": QUESTION.format(description=description)},
            ],
        },
    ]


def sampling(digit_ids: Sequence[int]) -> dict[str, Any]:
    """Fields of a request that make vLLM answer with a digit and its ten log-probabilities."""
    return {
        "max_tokens": 1,
        "temperature": 0,
        "logprobs": True,
        "logprob_token_ids": list(digit_ids),
        "return_tokens_as_token_ids": True,
        "structured_outputs": {"choice": list(DIGITS)},
    }


def digit_token_ids(tokenize: Callable[[str], object]) -> tuple[int, ...]:
    """Ids of the ten digits in the tokenizer that answers. Raises JudgeAnswerError where a digit is
    not exactly one token of its own."""
    ids = []
    for digit in DIGITS:
        tokens = tokenize(digit)
        if not (isinstance(tokens, list) and len(tokens) == 1 and type(tokens[0]) is int):
            raise JudgeAnswerError(
                f"the served tokenizer makes {str(tokens)[:80]} of {digit!r}; needed is one token"
            )
        ids.append(tokens[0])
    if len(set(ids)) != len(DIGITS):
        raise JudgeAnswerError(f"the served tokenizer gives the digits the ids {ids}: not distinct")
    return tuple(ids)


def read_answer(body: str, digit_ids: Sequence[int]) -> DigitAnswer:
    """Read a chat completion. Raises JudgeAnswerError for whatever is not a digit with the ten
    log-probabilities that were asked for."""
    try:
        parsed = json.loads(body)
        choice = parsed["choices"][0]
        written = choice["message"]["content"]
        (position,) = choice["logprobs"]["content"]
        entries = [(entry["token"], entry["logprob"]) for entry in position["top_logprobs"]]
    except (ValueError, KeyError, IndexError, TypeError, RecursionError) as error:
        raise JudgeAnswerError(
            f"the response is no completion with the log-probabilities of one token "
            f"({type(error).__name__}): {_excerpt(body)}"
        ) from None
    digit = written.strip() if isinstance(written, str) else written
    if digit not in DIGITS:
        raise JudgeAnswerError(f"the judge answered {_excerpt(str(written))}, not with a digit")
    values = [_log_probability(entries, token) for token in digit_ids]
    answer = DigitAnswer(tuple(values), digit)
    _require_consistent(answer)
    return answer


def _log_probability(entries: Sequence[tuple[object, object]], token: int) -> float:
    found = [value for name, value in entries if name == f"token_id:{token}"]
    if len(found) != 1:
        raise JudgeAnswerError(
            f"the response holds {len(found)} log-probabilities of token {token}, needed is one; "
            f"the server may not know `logprob_token_ids`"
        )
    (value,) = found
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    # Compared as it is: an integer of 400 digits is no float.
    if not is_number or not LEAST_LOG_PROBABILITY <= value <= MASS_ROUNDING:  # type: ignore[operator]
        raise JudgeAnswerError(f"{_excerpt(repr(value))} is no log-probability of token {token}")
    return float(value)  # type: ignore[arg-type]


def _require_consistent(answer: DigitAnswer) -> None:
    values = answer.log_probabilities
    mass = math.fsum(math.exp(value) for value in values)
    if not 0 < mass <= 1 + MASS_ROUNDING:
        raise JudgeAnswerError(f"the ten digits have the probability {mass:g} together")
    if values[int(answer.digit)] < max(values) - CONTRADICTION_NAT:
        raise JudgeAnswerError(
            f"the judge wrote {answer.digit}, but its log-probabilities favour "
            f"{values.index(max(values))}"
        )


def _excerpt(text: str) -> str:
    return repr(text if len(text) <= 80 else text[:77] + "...")
