"""Prompt files, local or by URL: .jsonl with every field, or .txt with one prompt per line."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePosixPath

import fsspec
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from prompts.motions import detect_motions
from prompts.schema import Prompt, id_of
from prompts.taxonomy import taxonomy_of

SUFFIXES = (".jsonl", ".txt")
MAX_BYTES = 256 * 1024**2
"""Largest file that is read: a URL may answer anything."""


@dataclass(frozen=True, slots=True)
class Problem:
    """Something wrong with a file, or with one of its lines."""

    file: str
    message: str
    line: int = 0
    """Counted from 1; 0: the file as a whole."""

    def __str__(self) -> str:
        place = f"{self.file}, line {self.line}" if self.line else self.file
        return f"{place}: {self.message}"


@dataclass(frozen=True, slots=True)
class PromptFile:
    """What a file holds: its good prompts with their lines, and every problem."""

    file: str
    prompts: tuple[Prompt, ...]
    lines: tuple[int, ...]
    """Line of each of `prompts`."""
    problems: tuple[Problem, ...]


def read_prompt_file(path: str) -> PromptFile:
    """Read a .jsonl or .txt file or URL to its end, whatever is wrong with single lines."""
    suffix = PurePosixPath(path.partition("?")[0]).suffix
    if suffix not in SUFFIXES:
        problem = Problem(path, f"has the ending {suffix!r}; allowed: {', '.join(SUFFIXES)}")
        return PromptFile(path, (), (), (problem,))
    try:
        with fsspec.open(path, "rb") as file:
            data = file.read(MAX_BYTES + 1)
    except Exception as error:  # each of fsspec's file systems has its own errors
        return PromptFile(path, (), (), (Problem(path, f"cannot be read: {error}"),))
    if len(data) > MAX_BYTES:
        return PromptFile(path, (), (), (Problem(path, f"is larger than {MAX_BYTES} bytes"),))
    return _parse_lines(path, data.removeprefix(b"\xef\xbb\xbf").split(b"\n"), suffix)


def _parse_lines(path: str, lines: list[bytes], suffix: str) -> PromptFile:
    good: dict[str, tuple[int, Prompt]] = {}
    problems: list[Problem] = []
    stem = PurePosixPath(path.partition("?")[0]).stem
    for number, raw in enumerate(lines, start=1):
        if not raw.strip():
            continue
        try:
            text = raw.decode("utf-8").rstrip("\r")
            prompt = _from_json(text) if suffix == ".jsonl" else _from_text(text, stem, number)
        except UnicodeDecodeError as error:
            problems.append(Problem(path, f"is not UTF-8 text: {error.reason}", number))
        except ValidationError as error:
            problems.extend(Problem(path, _sentence(e), number) for e in error.errors())
        except ValueError as error:  # an amount of a motion that cannot be
            problems.append(Problem(path, f"prompt: {error}", number))
        else:
            if prompt.id in good:
                message = f"id {prompt.id!r} is that of line {good[prompt.id][0]}"
                problems.append(Problem(path, message, number))
            else:
                good[prompt.id] = (number, prompt)
    if not good and not problems:
        problems.append(Problem(path, "holds no prompts; allowed: one or more lines"))
    return PromptFile(
        path,
        tuple(prompt for _, prompt in good.values()),
        tuple(line for line, _ in good.values()),
        tuple(problems),
    )


def _from_json(text: str) -> Prompt:
    return Prompt.model_validate_json(text)


def _from_text(text: str, stem: str, number: int) -> Prompt:
    motions = detect_motions(text)
    return Prompt(
        id=f"{id_of(stem)}-{number:05d}",
        text=text.strip(),
        motions=motions,
        taxonomy=taxonomy_of(motions),
        source=f"{stem}.txt",
    )


def _sentence(error: ErrorDetails) -> str:
    where = ".".join(str(part) for part in error["loc"]) or "line"
    message = error["msg"].removeprefix("Value error, ")
    # The value helps where a single one is wrong; a whole line would only repeat the file.
    short = isinstance(error["input"], str) and len(error["input"]) <= 40 and error["loc"]
    return f"{where}: {message}" + (f"; it is {error['input']!r}" if short else "")
