"""Tokens, prices, estimates and break-even: exact, dated, and never silent about what is not known."""

from __future__ import annotations

import json
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from conftest import write_jsonl
from tunesmith import recipe_file
from tunesmith.errors import NotFoundError, ResourceError, UsageError
from tunesmith.hosted import check, estimate, table, tokens
from tunesmith.hosted.break_even import break_even, break_even_calls
from tunesmith.hosted.table import Rate

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "tokens.json").read_text(encoding="utf-8"))
TODAY = date(2026, 11, 27)


@pytest.mark.parametrize("name", ["o200k_base", "cl100k_base"])
def test_tokens_are_tiktokens(name: str) -> None:
    count = tokens.counter(name)
    assert [count(text) for text in GOLDEN["strings"]] == GOLDEN[name]


def test_a_text_without_a_space_takes_no_hours() -> None:
    assert tokens.counter("o200k_base")("a" * 400_000) == 50_000


def test_a_changed_vocabulary_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(tokens.SHA256, "o200k_base", "0" * 64)
    tokens.counter.cache_clear()
    with pytest.raises(ResourceError, match="not the one that OpenAI publishes"):
        tokens.counter("o200k_base")


def test_a_conversation_is_counted_as_in_the_cookbook() -> None:
    messages = [{"role": "system", "content": "be brief"}, {"role": "user", "name": "ann", "content": "hello world"}]
    count = tokens.counter("o200k_base")
    by_hand = (3 + 1 + count("be brief")) + (3 + 1 + count("hello world") + 1 + count("ann")) + 3
    assert tokens.count_messages(messages, count) == by_hand
    parts = [{"role": "user", "content": [{"type": "text", "text": "hello"}, {"type": "text", "text": " world"}]}]
    assert tokens.count_messages(parts, count) == 3 + 1 + count("hello world") + 3
    pair = {"input": {"messages": messages}, "preferred_output": parts, "non_preferred_output": messages[:1]}
    first, second = [*messages, *parts], [*messages, *messages[:1]]
    assert tokens.count_row(pair, count) == tokens.count_messages(first, count) + tokens.count_messages(second, count)


@pytest.mark.parametrize(
    ("model", "vocabulary"),
    [
        ("gpt-4.1-mini", "o200k_base"),
        ("ft:gpt-4.1-mini-2025-04-14:acme:support:7p4lURel", "o200k_base"),  # tiktoken says cl100k_base
        ("ft:gpt-4o:acme::x", "o200k_base"),
        ("gpt-4-0613", "cl100k_base"),
        ("ft:gpt-3.5-turbo-0125:acme::x", "cl100k_base"),
        ("gpt-6-luna", "o200k_base"),
        ("meta-llama/Llama-3.1-8B", None),
    ],
)
def test_the_vocabulary_of_a_model(model: str, vocabulary: str | None) -> None:
    assert table.load().vocabulary(model) == vocabulary


def hosted(data: Path, model: str = "gpt-4.1-mini", **more: Any) -> Any:
    tree = {
        "task": "chat",
        "model": model,
        "method": "hosted",
        "data": {"train": [str(data)], "validation": 0.0, "test": 0.0},
    }
    return recipe_file.parse(recipe_file.merged(tree, more)).resolved()


def rows(count: int, words: int = 20) -> list[dict[str, Any]]:
    return [
        {
            "messages": [
                {"role": "user", "content": f"question {n} " + "word " * words},
                {"role": "assistant", "content": f"answer {n}"},
            ]
        }
        for n in range(count)
    ]


def estimated(recipe: Any, prices: Path | None = None) -> estimate.Estimate:
    known = table.load(prices)
    return estimate.estimate(check.check(recipe, known, today=TODAY), recipe, known, today=TODAY)


def test_the_cost_of_a_worked_example(tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "train.jsonl", rows(50))
    count = tokens.counter("o200k_base")
    by_hand = sum(tokens.count_messages(row["messages"], count) for row in rows(50))
    found = estimated(hosted(data))
    assert (found.rows, found.tokens, found.epochs) == (50, by_hand, 3)
    assert found.billed_tokens == 3 * by_hand
    assert found.training_cost_usd == pytest.approx(3 * by_hand * 5 / 1e6)
    assert found.price_date == "2025-12-31"
    prompt = sum(tokens.count_messages(row["messages"][:1], count) for row in rows(50))
    answer = sum(count(row["messages"][1]["content"]) for row in rows(50))
    assert found.tuned_usd_per_1000_calls == pytest.approx(1000 * (0.8 * prompt + 3.2 * answer) / 1e6 / 50)
    assert found.base_usd_per_1000_calls == pytest.approx(1000 * (0.4 * prompt + 1.6 * answer) / 1e6 / 50)
    assert any("331 days ago" in warning for warning in found.warnings)
    assert any("shut down on 2027-01-14" in warning for warning in found.warnings)
    assert estimated(hosted(data, hosted={"epochs": 7})).billed_tokens == 7 * by_hand


@pytest.mark.parametrize(
    ("model", "dollars"), [("gpt-4.1", 75.0), ("gpt-4.1-mini", 15.0), ("gpt-4o-mini", 9.0), ("gpt-4o-2024-08-06", 75.0)]
)
def test_a_million_tokens_three_times(model: str, dollars: float) -> None:
    """The table's prices, as OpenAI would bill them."""
    known = table.load()
    line = table.known_model(known.provider("openai"), model)[1]
    assert line.training is not None and 3 * 1_000_000 * line.training / 1e6 == dollars


@pytest.mark.parametrize(("count", "epochs"), [(10, 10), (3, 25), (33, 3), (34, 3), (8333, 3), (8334, 2), (30000, 1)])
def test_auto_epochs_are_openais(count: int, epochs: int) -> None:
    recipe = hosted(Path("x.jsonl"))
    assert estimate.epochs_of(recipe, table.load().provider("openai"), count) == epochs


def test_what_is_not_known_is_said_and_not_guessed(tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "train.jsonl", rows(12))
    found = estimated(hosted(data, "llama-8b", hosted={"provider": "nebius"}))
    assert found.epochs is None and found.billed_tokens is None and found.training_cost_usd is None
    text = " ".join(found.warnings)
    assert "vocabulary of llama-8b is not known" in text and "epochs" in text and "no price is known" in text
    assert estimated(hosted(data, "x", hosted={"provider": "tunesmith"})).training_cost_usd == 0.0
    with pytest.raises(NotFoundError, match="no model 'gpt-4\\.1-mimi'") as caught:
        estimated(hosted(data, "gpt-4.1-mimi"))
    assert "gpt-4.1-mini" in str(caught.value.fix)


def test_ones_own_prices_are_laid_over_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = tmp_path / "own.yaml"
    own.write_text("providers: {openai: {models: {gpt-4.1-mini: {training: 8, seen: 2026-11-20}}}}\n")
    data = write_jsonl(tmp_path / "train.jsonl", rows(10))
    found = estimated(hosted(data), own)
    assert found.billed_tokens is not None and found.training_cost_usd == pytest.approx(found.billed_tokens * 8 / 1e6)
    assert found.price_date == "2026-11-20" and not any("days ago" in warning for warning in found.warnings)
    monkeypatch.setenv(table.OVERRIDE, str(own))
    assert table.load().providers["openai"].models["gpt-4.1-mini"].training == 8


@pytest.mark.parametrize(
    ("text", "where", "what"),
    [
        ("providers:\n  openai:\n    models:\n      gpt-4.1-mini:\n        training: -5\n", 5, "is -5"),
        (
            "providers:\n  openai:\n    models:\n      gpt-4.1-mini:\n        tuned: {input: .nan, output: 1}\n",
            5,
            "finite",
        ),
        ("providers:\n  openai:\n    modles: {}\n", 3, "Extra inputs"),
        ("providers:\n  openai:\n    jobs_until: soon\n", 3, "is 'soon'"),
        ("stale_after_days: 0\n", 1, "is 0"),
        ("providers:\n  new:\n    what: x\n", 2, "`providers.new.protocol` is missing"),
        ("providers: [\n", 2, "not valid YAML"),
        ("- 1\n", None, "mapping"),
    ],
)
def test_a_wrong_table_is_refused_with_its_line(tmp_path: Path, text: str, where: int | None, what: str) -> None:
    own = tmp_path / "own.yaml"
    own.write_text(text)
    with pytest.raises(UsageError, match=what) as caught:
        table.load(own)
    assert caught.value.where == (f"{own}:{where}" if where else str(own)) and caught.value.fix


def test_a_table_that_is_not_there_is_told_in_plain_words(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot read the prices") as caught:
        table.load(tmp_path / "nope.yaml")
    assert caught.value.what == "cannot read the prices: No such file or directory"
    assert caught.value.where == str(tmp_path / "nope.yaml") and "--prices" in str(caught.value.fix)


def test_the_packaged_table_is_whole() -> None:
    known = table.load()
    assert set(known.providers) == {"openai", "azure", "nebius", "mistral", "together", "fireworks", "tunesmith"}
    for provider in known.providers.values():
        assert provider.source and provider.seen <= date.today()
        for line in provider.models.values():
            assert line.source and (line.tuned is None or line.training is not None)


def test_break_even_to_and_fro() -> None:
    assert break_even_calls(15.0, 0.001, 0.004) == pytest.approx(5000)
    assert break_even_calls(15.0, 0.004, 0.004) is None
    assert break_even_calls(15.0, 0.005, 0.004) is None
    assert break_even_calls(0.0, 0.001, 0.004) == 0
    calls = break_even_calls(15.0, 0.001, 0.004)
    assert calls is not None and 15.0 + calls * 0.001 == pytest.approx(calls * 0.004)


def test_cached_tokens_count_in_a_call() -> None:
    rate = Rate(input=2.0, output=8.0, cached=0.5)
    assert rate.cost(1000, 100, 600) == pytest.approx((400 * 2.0 + 600 * 0.5 + 100 * 8.0) / 1e6)
    assert Rate(input=2.0, output=8.0).cost(1000, 0, 600) == pytest.approx(1000 * 2.0 / 1e6)


@pytest.mark.parametrize(
    ("call", "shutdown", "a_month", "calls", "verdict"),
    [
        (0.001, None, None, 5000, "pays off against few-shot after 5,000 calls"),
        (0.005, None, None, None, "never: a call of tuned costs $0.005000"),
        (0.001, date(2027, 1, 14), None, 5000, "at least 104 a day until it is shut down on 2027-01-14"),
        (0.001, date(2027, 1, 14), 10_000, 5000, "that is 15 days at 10,000 calls a month"),
        (0.001, date(2027, 1, 14), 1_000, None, "never: tuned would pay off against few-shot after 5,000 calls"),
        (0.001, date(2026, 10, 23), 10**9, None, "never: tuned was shut down on 2026-10-23"),
    ],
)
def test_break_even_is_capped_by_the_shutdown(
    call: float, shutdown: date | None, a_month: float | None, calls: float | None, verdict: str
) -> None:
    found = break_even(
        "tuned",
        "few-shot",
        fixed=15.0,
        call=call,
        other_call=0.004,
        shutdown=shutdown,
        today=TODAY,
        calls_a_month=a_month,
    )
    assert found.calls == (None if calls is None else pytest.approx(calls))
    assert verdict in found.verdict
