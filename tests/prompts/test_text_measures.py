"""Measures against hand-computed values."""

from __future__ import annotations

import pytest

from prompts.text_measures import (
    distinct_n,
    jaccard,
    near_duplicates,
    ngram_document_counts,
    readability,
    sampled_distinct_n,
    word_ngrams,
    wording,
    words,
)


def test_words_are_lower_case_and_hyphens_and_apostrophes_hold_them_together() -> None:
    assert words("A wind-cut Arch; the dragon's ribs, 2 m high.") == [
        *("a", "wind-cut", "arch", "the", "dragon's", "ribs", "2", "m", "high")
    ]


def test_ngrams_of_a_short_text_are_the_text_itself() -> None:
    assert word_ngrams("a b c a b", 2) == {("a", "b"), ("b", "c"), ("c", "a")}
    assert word_ngrams("one two", 5) == {("one", "two")}


def test_jaccard_is_shared_over_all() -> None:
    a, b = word_ngrams("a b c d", 2), word_ngrams("b c d e", 2)
    assert jaccard(a, b) == 2 / 4
    assert jaccard(set(), set()) == 1


def test_near_duplicates_are_the_pairs_that_exact_jaccard_confirms() -> None:
    base = [f"w{i}" for i in range(60)]
    texts = [
        " ".join(base),
        # One word in the middle changed: 5 of 56 five-grams differ, 51 / 61 = 0.836.
        " ".join([*base[:30], "x", *base[31:]]),
        # Two changed, far apart: 46 / 66 = 0.697.
        " ".join([*base[:15], "x", *base[16:45], "y", *base[46:]]),
        "something else altogether stands in this text",
    ]
    pairs = near_duplicates(texts, 0.8)
    assert [(i, j) for i, j, _ in pairs] == [(0, 1)]
    assert pairs[0][2] == pytest.approx(51 / 61)
    assert [(i, j) for i, j, _ in near_duplicates(texts, 0.65)] == [(0, 1), (0, 2)]


def test_near_duplicates_agree_with_all_pairs() -> None:
    texts = [" ".join(f"w{(i * k) % 37}" for k in range(30)) for i in range(1, 60)]
    sets = [word_ngrams(text, 5) for text in texts]
    expected = [
        (i, j) for j in range(len(texts)) for i in range(j) if jaccard(sets[i], sets[j]) >= 0.8
    ]
    assert expected
    assert [(i, j) for i, j, _ in near_duplicates(texts)] == expected


def test_document_counts_count_a_text_once() -> None:
    counts = ngram_document_counts(["a b a b", "a b", "c"], 2)
    assert counts == {("a", "b"): 2, ("b", "a"): 1}


def test_distinct_n_and_its_sample() -> None:
    assert distinct_n(["a b a b"], 2) == 2 / 3
    assert distinct_n(["a"], 2) == 0
    # Twice the same 300 texts: a sample of 300 repeats less than all 600 do.
    texts = [f"u{i} v{i}" for i in range(300)] * 2
    assert distinct_n(texts, 2) == 0.5
    assert 0.5 < sampled_distinct_n(texts, 2) <= 1
    assert sampled_distinct_n(texts, 2) == sampled_distinct_n(texts, 2)


def test_readability_is_the_automated_index() -> None:
    # 10 words, 30 characters, 2 sentences: 4.71 * 3 + 0.5 * 5 - 21.43.
    assert readability("Red box and hut. Old oak, sky, sea, sun fog.") == pytest.approx(
        4.71 * 3.0 + 0.5 * 5 - 21.43
    )
    assert readability("") == 0


def test_wording_leaves_the_camera_command_out() -> None:
    assert wording("Camera push in, then pan left. A box. Near, a ball.") == "A box. Near, a ball."
    assert wording("A box. Slow push in: the ball grows.") == "A box. the ball grows."
