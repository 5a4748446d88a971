"""Win rates of a blind study, with intervals that respect who answered and about what.

Answers of one person are alike, and so are answers about one pair. So participants and pairs are
both drawn again (the pigeonhole bootstrap, Owen 2007), which is wider than an interval that takes
every answer for a person of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from scipy.stats import norm

from cluster.config import ConfigError
from cluster.study import QUESTIONS, StudyKey

F64 = NDArray[np.float64]
T = TypeVar("T", bound=BaseModel)

RESAMPLES = 10_000
SAME = "same"
"""The answer of who sees no difference; half a win for each side."""


class Answer(BaseModel):
    """One participant's answers about one pair."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    pair: str
    """Token of the pair."""
    left: str
    """Token of the video that was on the left."""
    right: str
    """Token of the video on the right."""
    choices: dict[str, str]
    """Token of the preferred video, or "same", by question."""
    seconds: float = Field(ge=0, allow_inf_nan=False)
    """Time that the pair was on the screen, coming back to it included."""


class Answers(BaseModel):
    """A participant's file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    study: str
    """`StudyKey.study`."""
    participant: str = Field(min_length=1)
    """Random name that the browser drew."""
    answers: tuple[Answer, ...]
    """By place in the participant's own order."""


@dataclass(frozen=True, slots=True)
class WinRate:
    """How often B was preferred to A."""

    question: str
    rate: float
    """Share of answers for B, ties counted half."""
    lower: float
    """Lower end of the two-sided 95 % interval."""
    upper: float
    """Upper end."""
    wins: int
    ties: int
    losses: int
    left: float
    """Share of the answers with a preference that chose the left video: far from 0.5, people
    clicked without looking."""


def tally(key_file: Path, files: Sequence[Path]) -> tuple[StudyKey, list[WinRate]]:
    """Win rates of B by question; ConfigError, naming the file, for what does not answer the
    study."""
    key = _read(key_file, StudyKey)
    given = [(file, _read(file, Answers)) for file in files]
    seen: dict[str, Path] = {}
    for file, answers in given:
        _require_valid(file, answers, key)
        if answers.participant in seen:
            raise ConfigError(f"{file} and {seen[answers.participant]} are of one participant")
        seen[answers.participant] = file
    people = [answers for _, answers in given]
    rates = [_win_rate(question, people, key) for question in QUESTIONS]
    return key, [rate for rate in rates if rate is not None]


def tally_table(key: StudyKey, rates: Sequence[WinRate], participants: int) -> str:
    """Aligned text table."""
    lines = [
        f"{'':<10}{'B preferred':>12}{'95 %':>18}{'wins':>7}{'same':>7}{'losses':>8}{'left':>7}"
    ]
    for r in rates:
        interval = f"{r.lower:.1%} to {r.upper:.1%}"
        lines.append(
            f"{r.question:<10}{r.rate:>12.1%}{interval:>18}{r.wins:>7}{r.ties:>7}{r.losses:>8}"
            f"{r.left:>7.0%}"
        )
    lines.append(f"{participants} participants, {len(key.pairs)} pairs; same counts half")
    if participants == 1:
        lines.append("one participant: the intervals are about pairs, not about other people")
    return "\n".join([f"A = {key.a}", f"B = {key.b}", *lines])


def _win_rate(question: str, people: Sequence[Answers], key: StudyKey) -> WinRate | None:
    """None where nobody was asked."""
    b = {pair.id: pair.b for pair in key.pairs}
    places = {pair.id: i for i, pair in enumerate(key.pairs)}
    scores = np.full((len(people), len(places)), np.nan)
    left = []
    for row, answers in enumerate(people):
        for answer in answers.answers:
            choice = answer.choices.get(question)
            if choice is not None:
                score = 0.5 if choice == SAME else float(choice == b[answer.pair])
                scores[row, places[answer.pair]] = score
                left += [choice == answer.left] if choice != SAME else []
    known = ~np.isnan(scores)
    if not known.any():
        return None
    lower, upper = _interval(np.nan_to_num(scores), known.astype(np.float64))
    return WinRate(
        question=question,
        rate=float(scores[known].mean()),
        lower=lower,
        upper=upper,
        wins=int((scores[known] == 1).sum()),
        ties=int((scores[known] == 0.5).sum()),
        losses=int((scores[known] == 0).sum()),
        left=float(np.mean(left)) if left else float("nan"),
    )


def _interval(scores: F64, known: F64) -> tuple[float, float]:
    """Two-sided 95 % percentile interval of the mean of `scores` [people, pairs] where `known`;
    one participant alone, or one pair, is not resampled. Where all answer alike, nothing varies
    that could be drawn: Wilson's interval of as many answers as people gave some or pairs got some,
    whichever are fewer."""
    given = scores[known > 0]
    if given.min() == given.max():
        counts = [int((known > 0).any(axis=axis).sum()) for axis in (0, 1)]
        return _wilson(float(given[0]), min([n for n in counts if n > 1], default=1))
    rng = np.random.default_rng(0)
    people, pairs = (_times_drawn(rng, count) for count in scores.shape)
    weight = np.einsum("rp,pq,rq->r", people, known, pairs, optimize=True)
    total = np.einsum("rp,pq,rq->r", people, scores, pairs, optimize=True)
    means = total[weight > 0] / weight[weight > 0]
    lower, upper = np.quantile(means, (0.025, 0.975))
    return float(lower), float(upper)


def _wilson(rate: float, count: int) -> tuple[float, float]:
    """95 % score interval of a share of `count` answers (Wilson 1927)."""
    z = float(norm.ppf(0.975))
    middle = (rate + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z / (1 + z**2 / count) * np.sqrt(rate * (1 - rate) / count + z**2 / (4 * count**2))
    return middle - float(half), middle + float(half)


def _times_drawn(rng: np.random.Generator, count: int) -> F64:
    """How often each of `count` things is in each resample, [RESAMPLES, count]."""
    drawn: F64 = rng.multinomial(count, [1 / count] * count, size=RESAMPLES).astype(np.float64)
    return drawn


def _require_valid(file: Path, answers: Answers, key: StudyKey) -> None:
    if answers.study != key.study:
        raise ConfigError(f"{file} belongs to another study ({answers.study}, not {key.study})")
    pairs = {pair.id: pair for pair in key.pairs}
    if len({answer.pair for answer in answers.answers}) < len(answers.answers):
        raise ConfigError(f"{file} answers a pair twice")
    for answer in answers.answers:
        pair = pairs.get(answer.pair)
        sides = {answer.left, answer.right}
        if pair is None or sides != {pair.a, pair.b}:
            raise ConfigError(f"{file} names a pair or video that is not in the study")
        if not set(answer.choices.values()) <= {*sides, SAME}:
            raise ConfigError(f"{file} chooses a video that was not shown")
        if set(answer.choices) != set(pair.questions):
            raise ConfigError(f"{file} does not answer what was asked about pair {pair.id}")


def _read(file: Path, kind: type[T]) -> T:
    try:
        return kind.model_validate_json(file.read_bytes())
    except OSError as error:
        raise ConfigError(f"{file} cannot be read: {error.strerror}") from None
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "the whole file"
        raise ConfigError(f"{file} is no {kind.__name__} file: {place}: {first['msg']}") from None
