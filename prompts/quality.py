"""The dataset's quality gates: what `worldr1 prompts check` refuses besides broken lines.

Gates apply to prompts of the text dataset's five domains; others (toy sets, users' own files) are
read and parsed only.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from prompts.generator import DOMAINS, ENHANCED_WORDS, MAX_READABILITY, SHORT_WORDS
from prompts.generator_words import word_list
from prompts.prompt_files import Problem, PromptFile
from prompts.schema import Prompt
from prompts.taxonomy import COMMANDS, taxonomy_of
from prompts.text_measures import (
    near_duplicates,
    ngram_document_counts,
    readability,
    sampled_distinct_n,
    word_ngrams,
    wording,
    words,
)

NEAR_DUPLICATE_JACCARD = 0.8
MAX_NEAR_DUPLICATES = 0.01
"""Largest share of prompts that nearly repeat an earlier one."""
MAX_EIGHT_GRAM = 0.005
"""Largest share of prompts that one sequence of eight words may be in ..."""
EIGHT_GRAM_FLOOR = 8
"""... or so many prompts, where that is more: in small files half a per cent is none."""
MIN_DISTINCT_2 = 0.25
"""Distinct word pairs over all word pairs, in samples of 300 prompts of a domain."""
MAX_WORD_SHARE = 0.2
"""Largest share of prompts that one word of the picture may be in."""
BALANCED_FROM = 100
"""Prompts from which a file must be balanced over domains and taxonomies."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A prompt of the text dataset and where it stands."""

    prompt: Prompt
    file: str
    line: int

    @property
    def held_out(self) -> bool:
        return PurePosixPath(self.file).stem.startswith(("test", "eval"))

    def problem(self, message: str) -> Problem:
        return Problem(self.file, f"{self.prompt.id}: {message}", self.line)


def text_dataset(files: Sequence[PromptFile]) -> list[Entry]:
    """The prompts that the gates are for, in the order of the files."""
    return [
        Entry(prompt, file.file, line)
        for file in files
        for prompt, line in zip(file.prompts, file.lines, strict=True)
        if prompt.domain in DOMAINS
    ]


def check_quality(files: Sequence[PromptFile]) -> list[Problem]:
    """Every gate that the prompts of `files` together do not pass."""
    entries = text_dataset(files)
    if not entries:
        return []
    problems = [problem for entry in entries for problem in single_problems(entry)]
    for gate in (_duplicates, _repeated_phrases, _overused_words, _diversity, _held_out, _balance):
        problems.extend(gate(entries))
    return problems


def single_problems(entry: Entry, enhanced: bool = False) -> Iterator[Problem]:
    """Gates that one prompt passes or fails alone; `enhanced` allows no short one."""
    prompt = entry.prompt
    count = len(words(prompt.text))
    ranges = (ENHANCED_WORDS,) if enhanced else (SHORT_WORDS, ENHANCED_WORDS)
    if not any(low <= count <= high for low, high in ranges):
        allowed = " or ".join(f"{low}-{high}" for low, high in ranges)
        yield entry.problem(f"has {count} words; allowed: {allowed}")
    expected = taxonomy_of(prompt.motions)
    if prompt.taxonomy != expected:
        yield entry.problem(f"taxonomy is {prompt.taxonomy!r}; its motions make it {expected!r}")
    index = readability(prompt.text)
    if index > MAX_READABILITY:
        yield entry.problem(f"readability index is {index:.1f}; allowed: {MAX_READABILITY}")
    names = proper_names(prompt.text)
    if names:
        yield entry.problem(f"names {', '.join(map(repr, names))}; allowed: no persons, no brands")


def proper_names(text: str) -> list[str]:
    """Words that look like names of persons or brands: capitals inside a sentence, or listed."""
    listed, allowed = word_list("refused"), word_list("allowed")
    starts = re.compile(r"(?:^|[.!?:]\s+)$")
    found = []
    for match in re.finditer(r"[^\W\d_][\w'’-]*", text):
        word = match.group()
        inside = not starts.search(text[: match.start()])
        if word.lower() in listed or (inside and word[0].isupper() and word not in allowed):
            found.append(word)
    return found


def _duplicates(entries: Sequence[Entry]) -> Iterator[Problem]:
    texts = [entry.prompt.text for entry in entries]
    pairs = near_duplicates(texts, NEAR_DUPLICATE_JACCARD)
    repeated = {j for _, j, _ in pairs}
    exact = [(i, j) for i, j, similarity in pairs if similarity == 1 and texts[i] == texts[j]]
    for i, j in exact:
        yield entries[j].problem(f"has the text of {entries[i].prompt.id}")
    if len(repeated) > MAX_NEAR_DUPLICATES * len(entries):
        first, second, similarity = pairs[0]
        yield Problem(
            "all files",
            f"{len(repeated) / len(entries):.1%} of the prompts nearly repeat another (Jaccard "
            f"{NEAR_DUPLICATE_JACCARD} on word 5-grams); allowed: {MAX_NEAR_DUPLICATES:.0%}; "
            f"such as {entries[first].prompt.id} and {entries[second].prompt.id}: {similarity:.2f}",
        )


def _repeated_phrases(entries: Sequence[Entry]) -> Iterator[Problem]:
    limit = max(EIGHT_GRAM_FLOOR, MAX_EIGHT_GRAM * len(entries))
    counts = ngram_document_counts((entry.prompt.text for entry in entries), 8)
    for gram, count in counts.most_common(5):
        if count > limit:
            yield Problem(
                "all files", f"{' '.join(gram)!r} is in {count} prompts; allowed: {limit:.0f}"
            )


def _overused_words(entries: Sequence[Entry]) -> Iterator[Problem]:
    if len(entries) < BALANCED_FROM:
        return
    for word, count in picture_words(entries).most_common(5):
        if count > MAX_WORD_SHARE * len(entries):
            share = count / len(entries)
            yield Problem(
                "all files", f"{word!r} is in {share:.0%} of prompts; allowed: {MAX_WORD_SHARE:.0%}"
            )


def picture_words(entries: Sequence[Entry]) -> Counter[str]:
    """In how many prompts each word that is neither grammar nor framing occurs."""
    ignored = word_list("framing")
    counts: Counter[str] = Counter()
    for entry in entries:
        counts.update(set(words(wording(entry.prompt.text))) - ignored)
    return counts


def _diversity(entries: Sequence[Entry]) -> Iterator[Problem]:
    for domain in DOMAINS:
        texts = [entry.prompt.text for entry in entries if entry.prompt.domain == domain]
        if len(texts) < BALANCED_FROM:
            continue
        value = sampled_distinct_n(texts, 2)
        if value < MIN_DISTINCT_2:
            yield Problem(
                "all files", f"distinct-2 of {domain} is {value:.2f}; allowed: {MIN_DISTINCT_2}"
            )


def _held_out(entries: Sequence[Entry]) -> Iterator[Problem]:
    """Test and evaluation prompts share neither scenes nor eight words with the trained ones."""
    trained = [entry for entry in entries if not entry.held_out]
    scenes = {e.prompt.source for e in trained if e.prompt.source.startswith("grammar/")}
    eights = set().union(*(word_ngrams(wording(e.prompt.text), 8) for e in trained))
    for entry in entries:
        if not entry.held_out:
            continue
        if entry.prompt.source in scenes:
            yield entry.problem(f"is of {entry.prompt.source}, which is trained on")
        shared = word_ngrams(wording(entry.prompt.text), 8) & eights
        if shared:
            yield entry.problem(
                f"shares {' '.join(min(shared))!r} with a prompt that is trained on"
            )


def _balance(entries: Sequence[Entry]) -> Iterator[Problem]:
    for file in sorted({entry.file for entry in entries}):
        prompts = [entry.prompt for entry in entries if entry.file == file]
        if len(prompts) < BALANCED_FROM:
            continue
        domains = Counter(prompt.domain for prompt in prompts)
        cells = {(prompt.domain, prompt.taxonomy) for prompt in prompts}
        for domain in DOMAINS:
            share = domains[domain] / len(prompts)
            if abs(share - 1 / len(DOMAINS)) > 0.05:
                yield Problem(file, f"{share:.0%} of its prompts are {domain}; allowed: 15-25%")
            for taxonomy in COMMANDS:
                if (domain, taxonomy) not in cells:
                    yield Problem(file, f"has no {taxonomy} prompt of {domain}")
        if len(prompts) >= 10 * BALANCED_FROM:
            yield from _motion_cells(file, prompts)


def _motion_cells(file: str, prompts: Sequence[Prompt]) -> Iterator[Problem]:
    """In a large file every domain has every single motion."""
    cells = {
        (prompt.domain, prompt.motions[0].value) for prompt in prompts if len(prompt.motions) == 1
    }
    for domain in DOMAINS:
        for taxonomy in ("intra-scene", "inter-scene", "static"):
            for (phrase,) in COMMANDS[taxonomy]:
                if (domain, phrase) not in cells:
                    yield Problem(file, f"has no {phrase!r} prompt of {domain}")
