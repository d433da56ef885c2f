"""Near and exact duplicates against their definitions, computed the slow way."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.data import duplicates, near_duplicates
from tunesmith.data.duplicates import find_repeats
from tunesmith.data.ledger import Ledger, hash64, normalised
from tunesmith.data.near_duplicates import PERMUTATIONS, SHINGLE, THRESHOLD, NearIndex, clusters, signatures
from tunesmith.data.rows import Origin, content_key


def shingles(text: str) -> set[str]:
    return {text[n : n + SHINGLE] for n in range(len(text) - SHINGLE + 1)}


def jaccard(a: str, b: str) -> float:
    return len(shingles(a) & shingles(b)) / len(shingles(a) | shingles(b))


def words(generator: random.Random, count: int) -> list[str]:
    return ["".join(generator.choices("etaoinshrdlu", k=generator.randint(2, 9))) for _ in range(count)]


def test_signatures_estimate_the_jaccard_similarity() -> None:
    generator = random.Random(0)
    pairs = []
    for changed in range(0, 60, 3):
        base = words(generator, 60)
        other = base[changed:] + words(generator, changed)
        pairs.append((" ".join(base), " ".join(other)))
    left, right = (signatures([pair[side] for pair in pairs]) for side in (0, 1))
    estimated = (left == right).mean(axis=1)
    exact = np.array([jaccard(a, b) for a, b in pairs])
    assert np.abs(estimated - exact).max() < 4 * 0.5 / PERMUTATIONS**0.5  # four standard errors at their widest
    assert np.abs(estimated - exact).mean() < 0.04
    assert exact.min() < 0.2 < 0.8 < exact.max()


def test_signature_does_not_depend_on_the_batch() -> None:
    generator = random.Random(1)
    texts = [" ".join(words(generator, generator.randint(2, 30))) + "ünï ☃ 𝄞" for _ in range(40)]
    together = signatures(texts)
    assert all((signatures([text])[0] == together[n]).all() for n, text in enumerate(texts))


def test_index_finds_the_near_pairs_and_no_others() -> None:
    generator = random.Random(2)
    texts = [" ".join(words(generator, 50)) for _ in range(300)]
    texts += [text[:-10] + "and the end" for text in texts[:50]]
    index = NearIndex()
    for position, text in enumerate(texts):
        index.add(text, hash64(text.encode()), position, 0)
    near = index.pairs()
    assert sorted(map(tuple, near.positions.tolist())) == [(n, 300 + n) for n in range(50)]
    assert all(jaccard(texts[a], texts[b]) > THRESHOLD - 0.1 for a, b in near.positions.tolist())


def test_large_sets_are_sampled_by_content_and_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(near_duplicates, "SAMPLE", {"train": 100, "validation": 100, "test": 100})
    generator = random.Random(3)
    texts = [" ".join(words(generator, 8)) for _ in range(1000)]
    kept = []
    for order in (texts, texts[::-1]):
        index = NearIndex()
        for position, text in enumerate(order):
            index.add(text, hash64(text.encode()), position, 0)
        inputs = index._samples[0].finish()[0]
        kept.append(set(inputs.tolist()))
        assert index.pairs().sampled == {"train": (len(inputs), 1000)}
    assert kept[0] == kept[1]
    assert 20 < len(kept[0]) <= 100


def test_clusters_join_chains_and_leave_large_ones_untied() -> None:
    chain = np.array([[1, 2], [2, 3], [10, 11], *([100 + n, 101 + n] for n in range(20))], np.uint64)
    tied, untied = clusters(chain, largest=5)
    assert tied == {1: 1, 2: 1, 3: 1, 10: 10, 11: 10}
    assert untied == 21


def filled(rows: list[tuple[int, int, int]]) -> Ledger:
    ledger = Ledger()
    for number, (text, target, part) in enumerate(rows):
        ledger.add((text, target, 0, 0, 0, 0, 0, 0, 0, part), Origin("f", number + 1))
    return ledger


@settings(max_examples=60)
@given(
    st.lists(st.tuples(st.integers(0, 6), st.integers(0, 2), st.integers(0, 2)), max_size=40),
    st.sampled_from([7, 10**6]),
)
def test_repeats_agree_with_their_definitions(rows: list[tuple[int, int, int]], at_once: int) -> None:
    before, duplicates._ROWS_AT_ONCE = duplicates._ROWS_AT_ONCE, at_once
    try:
        found = find_repeats(filled(rows))
    finally:
        duplicates._ROWS_AT_ONCE = before
    again, against = [], []
    leaks: dict[tuple[int, int], list[int]] = {}
    for n, (text, target, part) in enumerate(rows):
        earlier = [(t, m) for m, (x, t, p) in enumerate(rows[:n]) if (x, p) == (text, part)]
        again += [n for t, _ in earlier if t == target][:1]
        against += [n for t, _ in earlier[:1] if t != target]
        for other in range(part):
            if any((x, p) == (text, other) for x, _, p in rows):
                leaks.setdefault((other, part), []).append(n)
    assert (found.duplicates.count, [n for n, _ in found.duplicates.first]) == (len(again), again[:10])
    assert (found.contradictions.count, [n for n, _ in found.contradictions.first]) == (len(against), against[:10])
    assert {pair: pairs.count for pair, pairs in found.leaks.items()} == {pair: len(n) for pair, n in leaks.items()}
    for pair, pairs in found.leaks.items():
        assert [n for n, _ in pairs.first] == leaks[pair][:10]
        assert all(rows[a][0] == rows[b][0] and rows[b][2] == pair[0] for a, b in pairs.first)


def test_ledger_gives_back_what_went_in() -> None:
    ledger = filled([(n, n % 3, 0) for n in range(70_000)])
    chunks = list(ledger.chunks())
    assert [first for first, _ in chunks] == [0, 65_536]
    assert np.concatenate([chunk["input"] for _, chunk in chunks]).tolist() == list(range(70_000))
    assert ledger.origin(69_999) == Origin("f", 70_000)


def test_hash_is_that_of_row_keys() -> None:
    assert f"{hash64('ünï'.encode()):016x}" == content_key("ünï")


def test_normalised_text() -> None:
    assert normalised("  Straße\n ISN'T\u00a0cafe\u0301 ") == "strasse isn't caf\u00e9"
