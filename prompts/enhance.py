"""The second route to prompts: any OpenAI-compatible endpoint writes what the grammar does not.

Each source prompt is given to the model, which must answer with JSON `{"text": …}`: the same place
and camera command as an enhanced prompt. An answer is kept only if it passes what the shipped files
pass (length, the very motions that were asked for, no names, readability, no near duplicate).
Accepted prompts are appended to a .jsonl at once, so that a broken run is continued by the same
command.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import openai
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from prompts.motions import detect_segments
from prompts.prompt_files import read_prompt_file
from prompts.quality import NEAR_DUPLICATE_JACCARD, Entry, single_problems
from prompts.schema import MAX_ID, Prompt
from prompts.taxonomy import taxonomy_of
from prompts.text_measures import jaccard, word_ngrams

SUFFIX = "-enhanced"
"""Of the ids of enhanced prompts."""
INSTRUCTIONS = """\
You write prompts for a video model. You are given one prompt. Rewrite it as 70 to 110 words of \
plain English. Keep its place, and keep its camera command word for word at the beginning; name no \
other camera motion. Say what stands near, in the middle and far away, what things are made of, \
where the light comes from, and what the camera finds on its way. No persons' names, no brands. \
Answer with JSON: {"text": "the prompt"}."""


class EndpointRefused(RuntimeError):
    """The endpoint does not serve this request at all: another try would not help."""


class EndpointConfig(BaseModel):
    """An OpenAI-compatible endpoint and how much may be asked of it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    url: str = Field(pattern=r"^https?://")
    """Base URL, for example http://127.0.0.1:8000/v1."""
    model: str = Field(min_length=1)
    """Name of the served model."""
    key_variable: str = "OPENAI_API_KEY"
    """Environment variable that holds the key; it is read there and nowhere else."""
    attempts: int = Field(4, ge=1, le=100)
    """Tries per prompt, whatever went wrong."""
    budget_tokens: int = Field(1_000_000, ge=1)
    """Tokens, as the endpoint counts them, after which nothing more is asked."""
    max_tokens: int = Field(400, ge=1)
    """Longest answer."""
    concurrency: int = Field(4, ge=1, le=256)
    """Requests at once."""
    timeout_s: float = Field(60.0, gt=0)
    """For one request."""
    backoff_s: float = Field(0.5, ge=0)
    """Pause before the second try of a failed request; doubled for each further one."""
    seed: int = Field(0, ge=0)
    """Sent with every request and written into the prompts."""


class Answer(BaseModel):
    """What the model must answer."""

    model_config = ConfigDict(extra="forbid")

    text: str = Field(min_length=1)
    """The enhanced prompt."""


@dataclass(slots=True)
class Tally:
    """What a run asked for and got."""

    kept: int = 0
    already: int = 0
    """Prompts that an earlier run had written."""
    refused: int = 0
    """Answers that did not pass."""
    errors: int = 0
    """Requests without a usable response."""
    failed: int = 0
    """Prompts given up after `attempts` tries."""
    left: int = 0
    """Prompts not finished because the budget was spent."""
    tokens: int = 0
    last_reason: str = ""

    def __str__(self) -> str:
        text = (
            f"{self.kept} prompts written, {self.already} were there; {self.refused} answers "
            f"refused, {self.errors} requests failed, {self.failed} prompts given up, "
            f"{self.left} left for lack of budget; {self.tokens} tokens"
        )
        return f"{text}; last reason: {self.last_reason}" if self.last_reason else text


class _Output:
    """The growing file; knows what it holds, so that nothing is written twice."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.ids: set[str] = set()
        self.fives: list[set[tuple[str, ...]]] = []
        if path.exists() and path.stat().st_size:
            self._drop_torn_line()
            found = read_prompt_file(str(path))
            if found.problems and path.stat().st_size:
                raise ValueError(f"{found.problems[0]}: mend or remove the file to go on")
            for prompt in found.prompts:
                self._remember(prompt)

    def _drop_torn_line(self) -> None:
        """A run that was killed while writing leaves half a line: it is written again."""
        data = self.path.read_bytes()
        if not data.endswith(b"\n"):
            self.path.write_bytes(data[: data.rfind(b"\n") + 1])

    def repeats(self, text: str) -> bool:
        fives = word_ngrams(text, 5)
        return any(jaccard(fives, other) >= NEAR_DUPLICATE_JACCARD for other in self.fives)

    def write(self, prompt: Prompt) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(prompt.model_dump_json(by_alias=True) + "\n")
        self._remember(prompt)

    def _remember(self, prompt: Prompt) -> None:
        self.ids.add(prompt.id)
        self.fives.append(word_ngrams(prompt.text, 5))


async def enhance_prompts(prompts: Sequence[Prompt], out: Path, config: EndpointConfig) -> Tally:
    """Enhance every prompt that `out` does not hold yet.

    Raises EndpointRefused where the endpoint rejects key, model or request, ValueError where `out`
    is no prompt file.
    """
    if out.suffix != ".jsonl":
        raise ValueError(f"--out {str(out)!r} does not end in .jsonl")
    output, tally = _Output(out), Tally()
    # A server on this machine asks for no key, but the client insists on a text.
    key = os.environ.get(config.key_variable, "none")
    async with openai.AsyncOpenAI(
        api_key=key, base_url=config.url, timeout=config.timeout_s, max_retries=0
    ) as client:
        waiting = [prompt for prompt in prompts if _id(prompt) not in output.ids]
        tally.already = len(prompts) - len(waiting)
        turns = iter(waiting)

        async def work() -> None:
            for prompt in turns:
                await _enhance(prompt, client, output, tally, config)

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(config.concurrency):
                    group.create_task(work())
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None
    return tally


async def _enhance(
    prompt: Prompt,
    client: openai.AsyncOpenAI,
    output: _Output,
    tally: Tally,
    config: EndpointConfig,
) -> None:
    """Ask until an answer passes, the tries are used up or the budget is spent."""
    for attempt in range(config.attempts):
        if tally.tokens >= config.budget_tokens:
            tally.left += 1
            return
        try:
            text = await _ask(prompt, client, tally, config, attempt)
        # ValueError: a response whose body is not the JSON that its header promises.
        except (openai.APIError, ValueError) as error:
            _raise_if_final(error, config, tally)
            tally.errors += 1
            tally.last_reason = type(error).__name__
            await asyncio.sleep(config.backoff_s * 2**attempt)
            continue
        enhanced, reason = judge_answer(text, prompt, config)
        if enhanced is not None and output.repeats(enhanced.text):
            enhanced, reason = None, "it nearly repeats an earlier prompt"
        if enhanced is None:
            tally.refused += 1
            tally.last_reason = reason
            continue
        output.write(enhanced)
        tally.kept += 1
        return
    tally.failed += 1


async def _ask(
    prompt: Prompt,
    client: openai.AsyncOpenAI,
    tally: Tally,
    config: EndpointConfig,
    attempt: int,
) -> str:
    """One answer's content, "" where there is none; its tokens are counted."""
    response = await client.chat.completions.create(
        model=config.model,
        messages=[
            {"role": "system", "content": INSTRUCTIONS},
            {"role": "user", "content": prompt.text},
        ],
        max_tokens=config.max_tokens,
        temperature=0.9,
        # Another seed per try: the same one would draw the refused answer again.
        seed=config.seed + attempt,
        response_format={
            "type": "json_schema",
            "json_schema": {"name": "prompt", "schema": Answer.model_json_schema()},
        },
    )
    # The client does not validate what it received: any part may be missing or of another type.
    try:
        tally.tokens += int(response.usage.total_tokens)  # type: ignore[union-attr]
    except (AttributeError, TypeError, ValueError):
        tally.tokens += config.max_tokens  # the most that a silent endpoint may have used
    try:
        return str(response.choices[0].message.content or "")
    except (AttributeError, IndexError, TypeError):
        return ""


def _raise_if_final(error: Exception, config: EndpointConfig, tally: Tally) -> None:
    """Errors that every further request would meet, too. A request that is refused after others
    were answered may be a prompt that the endpoint's filter dislikes."""
    final = {401, 403, 404} | ({400, 422} if tally.kept + tally.refused == 0 else set())
    if isinstance(error, openai.APIStatusError) and error.status_code in final:
        raise EndpointRefused(
            f"{config.url} answers {error.status_code} for model {config.model!r} (key from "
            f"{config.key_variable}); nothing more was asked"
        ) from None


def judge_answer(content: str, source: Prompt, config: EndpointConfig) -> tuple[Prompt | None, str]:
    """The enhanced prompt, or None and why the answer is refused."""
    try:
        text = " ".join(Answer.model_validate_json(content).text.split())
        segments = detect_segments(text)
        motions = tuple(segment.motion for segment in segments)
        prompt = Prompt(
            id=_id(source),
            text=text,
            motions=motions,
            taxonomy=taxonomy_of(motions),
            domain=source.domain,
            is_dynamic=source.is_dynamic,
            source=f"endpoint/{config.model}",
            seed=config.seed,
            c2w=source.c2w,
        )
    except ValidationError as error:
        return None, error.errors()[0]["msg"]
    except ValueError as error:  # an amount of a motion that cannot be
        return None, str(error)
    wanted = detect_segments(source.text)
    if segments != wanted:
        asked, named = ([str(segment) for segment in each] for each in (wanted, segments))
        return None, f"it names the motions {json.dumps(named)}, asked were {json.dumps(asked)}"
    for problem in single_problems(Entry(prompt, "answer", 0), enhanced=True):
        return None, problem.message
    return prompt, ""


def _id(source: Prompt) -> str:
    return f"{source.id[: MAX_ID - len(SUFFIX)]}{SUFFIX}"
