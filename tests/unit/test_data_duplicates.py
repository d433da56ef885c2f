"""Near and exact duplicates against their definitions, computed the slow way."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.data import duplicates, near_duplicates
from tunesmith.data.duplicates import find_repeats
from tunesmith.data.ledger import Ledger, hash64, normalised
from tunesmith.data.near_duplicates import (
    PERMUTATIONS,
    SHINGLE,
    THRESHOLD,
    NearIndex,
    NearPairs,
    clusters,
    signatures,
)
from tunesmith.data.prepare import check, prepare
from tunesmith.data.rows import Origin, content_key
from tunesmith.data.twins import Twins
from tunesmith.events import Notice
from tunesmith.recipe import Recipe
from tunesmith.recipe_file import parse


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


def filled(rows: list[tuple[int, int, int]], contents: list[int] | None = None) -> Ledger:
    ledger = Ledger()
    for number, (text, target, part) in enumerate(rows):
        ledger.add((text, target, contents[number] if contents else 0, 0, 0, 0, 0, 0, 0, part), Origin("f", number + 1))
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


def marked(rows: list[tuple[int, int, int]], at_once: int, contents: list[int] | None = None) -> list[int | None]:
    before, duplicates._ROWS_AT_ONCE = duplicates._ROWS_AT_ONCE, at_once
    ledger, twins = filled(rows, contents), Twins(len(rows), "content" if contents else "target")
    try:
        find_repeats(ledger, twins)
    finally:
        duplicates._ROWS_AT_ONCE = before
    assert twins.leave(0, len(rows)).tolist() == [twins.of(n) is not None for n in range(len(rows))]
    assert twins.exact == sum(twins.leave(0, len(rows)))
    return [twins.of(n) for n in range(len(rows))]


@settings(max_examples=60)
@given(
    st.lists(st.tuples(st.integers(0, 6), st.integers(0, 2), st.integers(0, 2)), max_size=40),
    st.sampled_from([7, 10**6]),
)
def test_each_row_but_the_first_of_a_group_knows_its_twin(rows: list[tuple[int, int, int]], at_once: int) -> None:
    expected = []
    for n, row in enumerate(rows):
        first = rows.index(row)
        expected.append(first if first < n and row[2] == 0 else None)
    assert marked(rows, at_once) == expected


@settings(max_examples=60)
@given(
    st.lists(st.tuples(st.integers(0, 6), st.integers(0, 1), st.integers(0, 1), st.integers(0, 2)), max_size=40),
    st.sampled_from([7, 10**6]),
)
def test_rows_with_a_twin_have_all_of_its_content(rows: list[tuple[int, int, int, int]], at_once: int) -> None:
    expected = [rows.index(row) if row in rows[:n] and row[2] == 0 else None for n, row in enumerate(rows)]
    contents = [1 + other * 2 + target for _, target, _, other in rows]  # the target is a part of it
    assert marked([row[:3] for row in rows], at_once, contents) == expected


def test_near_twins_leave_rows_of_which_no_two_are_near() -> None:
    pairs = [(0, 1), (1, 2), (3, 4), (0, 5), (4, 5), (6, 7)]  # 2 is near to 1 alone, which goes
    pairs.sort(key=lambda pair: pair[::-1])
    positions = np.array(pairs)
    parts = np.zeros_like(positions)
    parts[pairs.index((6, 7))] = (0, 1)  # of the validation data
    twins = Twins(8)
    twins.mark_near(NearPairs(positions, positions.astype(np.uint64), parts, {}))
    assert [twins.of(n) for n in range(8)] == [None, 0, None, None, 3, 0, None, None]
    assert twins.near == 3


def corpus(folder: Path, texts: list[str]) -> str:
    path = folder / "corpus.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return str(path)


def with_duplicates(train: str, task: str = "language-modeling", **data: Any) -> Recipe:
    tree = {"train": train, "validation": 0.0, "test": 0.0, "duplicates": "drop", **data}
    return parse({"task": task, "model": "none", "data": tree})


@pytest.fixture
def texts() -> list[str]:
    """30 texts, of which the first comes back twice, once in capitals, and the second nearly."""
    generator = random.Random(4)
    different = [" ".join(words(generator, 40)) for _ in range(30)]
    return [*different, different[0].upper(), different[0], different[1] + " and more"]


def test_one_of_each_group_is_left_and_the_others_are_kept_in_a_file(tmp_path: Path, texts: list[str]) -> None:
    recipe, heard = with_duplicates(corpus(tmp_path, texts)), list[Any]()
    data = prepare(recipe, dropped_to=tmp_path / "dropped.jsonl", on_event=heard.append)
    assert [row.origin.line for row in data.train] == list(range(1, 31))
    lines = [json.loads(line) for line in (tmp_path / "dropped.jsonl").read_text().splitlines()]
    file = recipe.data.train[0]
    assert [(line["line"], line["reasons"]) for line in lines] == [
        (31, [f"duplicate: it repeats {file}:1"]),
        (32, [f"duplicate: it repeats {file}:1"]),
        (33, [f"near-duplicate: it is nearly the same as {file}:2"]),
    ]
    assert json.loads(lines[1]["row"]) == {"text": texts[0]}
    said = [event.message for event in heard if isinstance(event, Notice)]
    assert f"3 rows are not used (duplicates), written to {tmp_path / 'dropped.jsonl'}" in said


def test_a_check_shows_what_would_be_left_out(tmp_path: Path, texts: list[str]) -> None:
    path = corpus(tmp_path, texts)
    report = check(with_duplicates(path))
    assert report.rows_left_out == {"duplicates": 3} and report.rows["train"] == 30
    problems = {problem.code: problem for problem in report.problems}
    assert problems["duplicate"].dropped == 2 and problems["near-duplicate"].dropped == 1
    kept = check(with_duplicates(path, duplicates="keep"))
    assert not kept.rows_left_out and kept.rows["train"] == 33
    fixes = [problem.fix for problem in kept.problems if problem.code == "duplicate"]
    assert "`data.duplicates: drop`" in str(fixes)


def test_other_tasks_lose_equal_rows_alone_and_other_parts_none(tmp_path: Path, texts: list[str]) -> None:
    rows = [{"text": text, "label": "ab"[n % 2]} for n, text in enumerate([*texts, texts[1]])]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    data = prepare(with_duplicates(str(path), "text-classification"))
    assert [row.origin.line for row in data.train] == [*range(1, 34)], "31 is in capitals, 32 has another label"
    other = tmp_path / "test.jsonl"
    other.write_text('{"text": "seen twice", "label": "a"}\n' * 2, encoding="utf-8")
    assert len(prepare(with_duplicates(str(path), "text-classification", test=[str(other)])).test) == 2


TOOL = {"type": "function", "function": {"name": "look", "description": "Look.", "parameters": {"type": "object"}}}
ASKED = {"role": "user", "content": "Who?"}
CALL = {"id": "1", "type": "function", "function": {"name": "look", "arguments": "{}"}}
LONG = [ASKED, {"role": "assistant", "content": "I."}, ASKED, {"role": "assistant", "content": "He."}]
WEIGHED = [ASKED, {"role": "assistant", "content": "I.", "weight": 0}, *LONG[2:]]
CALLED = {"role": "assistant", "content": "He.", "tool_calls": [CALL]}


@pytest.mark.parametrize(
    ("task", "one", "other"),
    [
        ("preference", {"prompt": "a", "chosen": "b", "rejected": "c"}, {"rejected": "d"}),
        ("preference", {"prompt": "a", "chosen": "b", "rejected": "c", "margin": 1}, {"margin": 2}),
        ("feedback", {"prompt": "a", "completion": "b", "label": True}, {"label": False}),
        ("text-generation", {"messages": LONG}, {"tools": [TOOL]}),
        ("text-generation", {"messages": LONG}, {"messages": WEIGHED}),
        ("text-generation", {"messages": LONG, "tools": [TOOL]}, {"messages": [*LONG[:-1], CALLED]}),
        ("text-classification", {"text": "It is", "label": "a"}, {"text": "it is"}),
    ],
)
def test_a_row_goes_only_if_all_that_is_learned_from_it_is_equal(
    task: str, one: dict[str, Any], other: dict[str, Any], tmp_path: Path
) -> None:
    path = tmp_path / "rows.jsonl"
    rows = [{**one, "id": 1}, {**one, **other, "id": 2}, {**one, "id": 3}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    data = prepare(with_duplicates(str(path), task), stop_on_errors=False)
    assert [row.origin.line for row in data.train] == [1, 2]
    assert data.report.rows_left_out == {"duplicates": 1}


def test_equal_pictures_of_two_names_go_but_not_with_two_labels(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    for label, shades in {"cat": [9, 9, 200], "dog": [9]}.items():
        for number, shade in enumerate(shades):
            (tmp_path / label).mkdir(exist_ok=True)
            image.new("RGB", (8, 8), (shade, 0, 0)).save(tmp_path / label / f"{number}.png")
    data = prepare(with_duplicates(str(tmp_path), "image-classification"), stop_on_errors=False)
    kept = ["/".join(Path(row.fields["image"]).parts[-2:]) for row in data.train]
    assert sorted(kept) == ["cat/0.png", "cat/2.png", "dog/0.png"]


def test_max_rows_are_chosen_among_the_rows_that_are_left(tmp_path: Path, texts: list[str]) -> None:
    report = check(with_duplicates(corpus(tmp_path, texts), max_rows=30))
    assert report.rows["train"] == 30 and report.rows_left_out == {"duplicates": 3}
    report = check(with_duplicates(corpus(tmp_path, texts), max_rows=25))
    assert report.rows["train"] == 25 and report.rows_left_out == {"duplicates": 3, "max_rows": 5}
