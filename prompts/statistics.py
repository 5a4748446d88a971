"""Figures of the text dataset, as `worldr1 prompts stats` prints them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from statistics import mean

from prompts.generator import DOMAINS, ENHANCED_WORDS
from prompts.motions import Motion
from prompts.prompt_files import PromptFile
from prompts.quality import (
    NEAR_DUPLICATE_JACCARD,
    Entry,
    picture_words,
    text_dataset,
)
from prompts.taxonomy import TAXONOMIES
from prompts.text_measures import (
    near_duplicates,
    ngram_document_counts,
    readability,
    sampled_distinct_n,
    words,
)


def statistics_lines(files: Sequence[PromptFile]) -> Iterator[str]:
    """A line per file, then tables over domains and motions and the measures of the gates."""
    for file in files:
        dynamic = sum(prompt.is_dynamic for prompt in file.prompts)
        yield f"{file.file}: {len(file.prompts)} prompts, {dynamic} dynamic"
    entries = text_dataset(files)
    if not entries:
        yield "no prompt of the text dataset's domains: nothing more to measure"
        return
    yield ""
    yield from _lengths(entries)
    yield ""
    yield from _domains(entries)
    yield ""
    motions = Counter(m for entry in entries for m in entry.prompt.motions)
    yield "motions: " + ", ".join(f"{m.value} {motions[m]}" for m in Motion if motions[m])
    yield from _repetition(entries)


def _lengths(entries: Sequence[Entry]) -> Iterator[str]:
    counts = [len(words(entry.prompt.text)) for entry in entries]
    for name, chosen in (
        ("short", [n for n in counts if n < ENHANCED_WORDS[0]]),
        ("enhanced", [n for n in counts if n >= ENHANCED_WORDS[0]]),
    ):
        if chosen:
            low, middle, high = min(chosen), mean(chosen), max(chosen)
            yield f"{name}: {len(chosen)} prompts of {low} to {high} words, {middle:.1f} on average"


def _domains(entries: Sequence[Entry]) -> Iterator[str]:
    titles = [*TAXONOMIES, "distinct-1", "distinct-2", "readability"]
    yield f"{'domain':<24}" + "".join(f"{title:>13}" for title in titles)
    for domain in DOMAINS:
        prompts = [entry.prompt for entry in entries if entry.prompt.domain == domain]
        if not prompts:
            continue
        classes = Counter(prompt.taxonomy for prompt in prompts)
        texts = [prompt.text for prompt in prompts]
        cells = [f"{classes[taxonomy]:>13}" for taxonomy in TAXONOMIES]
        cells += [f"{sampled_distinct_n(texts, n):>13.3f}" for n in (1, 2)]
        cells += [f"{mean(map(readability, texts)):>13.1f}"]
        yield f"{domain:<24}" + "".join(cells)
    yield "distinct-n: distinct over all n-grams in a random sample of 300 prompts"


def _repetition(entries: Sequence[Entry]) -> Iterator[str]:
    texts = [entry.prompt.text for entry in entries]
    repeated = {j for _, j, _ in near_duplicates(texts, NEAR_DUPLICATE_JACCARD)}
    yield (
        f"near duplicates: {len(repeated)} of {len(entries)} prompts (Jaccard "
        f"{NEAR_DUPLICATE_JACCARD} on word 5-grams)"
    )
    (gram, count), *_ = ngram_document_counts(texts, 8).most_common(1)
    yield f"most repeated 8 words: {' '.join(gram)!r} in {count} prompts ({count / len(texts):.2%})"
    (word, count), *_ = picture_words(entries).most_common(1)
    yield f"most used word of the picture: {word!r} in {count / len(texts):.1%} of prompts"
