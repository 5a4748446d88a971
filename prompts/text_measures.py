"""What can be counted in texts: n-grams, near duplicates, diversity, readability (pure)."""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Iterable, Sequence

from prompts.motions import detect_motions

_WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")


def words(text: str) -> list[str]:
    """Lower-case words; hyphenated and apostrophised ones are one word."""
    return _WORD.findall(text.lower())


def word_ngrams(text: str, n: int) -> set[tuple[str, ...]]:
    """The distinct sequences of `n` words; of a shorter text, the text itself as the only one."""
    found = words(text)
    if len(found) < n:
        return {tuple(found)}
    return {tuple(found[i : i + n]) for i in range(len(found) - n + 1)}


def wording(text: str) -> str:
    """The text without its camera command: without the phrases between stops that name motions."""
    phrases = re.split(r"(?<=[.,:;!?])\s+", text)
    return " ".join(phrase for phrase in phrases if not detect_motions(phrase))


def jaccard(a: set[tuple[str, ...]], b: set[tuple[str, ...]]) -> float:
    """|a ∩ b| / |a ∪ b|; 1 for two empty sets."""
    union = len(a | b)
    return len(a & b) / union if union else 1.0


def near_duplicates(
    texts: Sequence[str], threshold: float = 0.8, n: int = 5
) -> list[tuple[int, int, float]]:
    """Pairs (i, j, Jaccard) with i < j whose sets of word n-grams overlap by `threshold` or more.

    MinHash with locality-sensitive hashing proposes pairs, at a lower threshold so that few are
    missed; the exact Jaccard index decides.
    """
    from datasketch import MinHash, MinHashLSH

    sets = [word_ngrams(text, n) for text in texts]
    lsh = MinHashLSH(threshold=max(0.1, threshold - 0.2), num_perm=64)
    pairs = []
    encoded = ([" ".join(gram).encode() for gram in grams] for grams in sets)
    for j, sketch in enumerate(MinHash.generator(encoded, num_perm=64, seed=1)):
        for i in sorted(int(key) for key in lsh.query(sketch)):
            similarity = jaccard(sets[i], sets[j])
            if similarity >= threshold:
                pairs.append((i, j, similarity))
        lsh.insert(str(j), sketch)
    return pairs


def ngram_document_counts(texts: Iterable[str], n: int) -> Counter[tuple[str, ...]]:
    """In how many texts each sequence of `n` words occurs."""
    counts: Counter[tuple[str, ...]] = Counter()
    for text in texts:
        found = words(text)
        counts.update({tuple(found[i : i + n]) for i in range(len(found) - n + 1)})
    return counts


def distinct_n(texts: Iterable[str], n: int) -> float:
    """Distinct n-grams over all n-grams (Li et al. 2016, "distinct-n"); 0 where there are none."""
    total, distinct = 0, set()
    for text in texts:
        found = words(text)
        grams = [tuple(found[i : i + n]) for i in range(len(found) - n + 1)]
        total += len(grams)
        distinct.update(grams)
    return len(distinct) / total if total else 0.0


def sampled_distinct_n(texts: Sequence[str], n: int, sample: int = 300, seed: int = 0) -> float:
    """`distinct_n` of a random sample: the measure falls with size, so sizes must be equal."""
    if len(texts) > sample:
        texts = random.Random(seed).sample(list(texts), sample)
    return distinct_n(texts, n)


def readability(text: str) -> float:
    """Automated readability index (Smith and Senter 1967): about the school grade that reads it.

    4.71 · characters/words + 0.5 · words/sentences - 21.43, characters being letters and digits.
    """
    found = words(text)
    if not found:
        return 0.0
    sentences = max(1, len(re.findall(r"[.!?](?=\s|$)", text)))
    characters = sum(sum(c.isalnum() for c in word) for word in found)
    return 4.71 * characters / len(found) + 0.5 * len(found) / sentences - 21.43
