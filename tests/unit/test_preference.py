"""Preferences: the shapes they come in, what is wrong with them, and pairs made of ratings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import tiny
from conftest import write_jsonl
from tunesmith.cli.main import run
from tunesmith.data.pairs import Rated, make_pairs, split
from tunesmith.data.prepare import check, prepare
from tunesmith.data.render import ConversationRenderer, prompt_renderer
from tunesmith.data.renderers import row_renderer
from tunesmith.errors import DataError
from tunesmith.models.load import load_tokenizer
from tunesmith.prediction import preferences
from tunesmith.recipe import Data
from tunesmith.recipe_file import parse
from tunesmith.tasks import TASKS
from tunesmith.tasks.preference import margin_of, turns_of

TASK = TASKS["preference"]


def user(text: Any) -> dict[str, Any]:
    return {"role": "user", "content": text}


def bot(text: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


def calling(name: str, arguments: str) -> dict[str, Any]:
    return {"role": "assistant", "tool_calls": [{"function": {"name": name, "arguments": arguments}}]}


def row(**fields: Any) -> Any:
    """A row as it is read from a file."""
    read, faults = read_row(**fields)
    assert not faults
    return read


def read_row(**fields: Any) -> Any:
    (given,) = tiny.rows_of([fields])
    convert = TASK.reading([given], Data()).convert
    return convert(given) if convert else (given, [])


def found_in(tmp_path: Path, fields: dict[str, Any]) -> list[Any]:
    data = {"train": str(write_jsonl(tmp_path / "pairs.jsonl", [fields])), "validation": 0, "test": 0}
    report = check(parse({"task": "preference", "model": "x", "data": data}))
    return [problem for problem in report.errors if problem.code != "no-rows"]


@pytest.mark.parametrize(
    "fields",
    [
        {"prompt": "q", "chosen": "a", "rejected": "b"},
        {"prompt": [user("q")], "chosen": [bot("a")], "rejected": [bot("b")]},
        {"chosen": [user("q"), bot("a")], "rejected": [user("q"), bot("b")]},
        {"prompt": "q", "chosen": [user("q"), bot("a")], "rejected": [user("q"), bot("b")]},
        {"input": {"messages": [user("q")]}, "preferred_output": [bot("a")], "non_preferred_output": [bot("b")]},
        {
            "prompt": [{"from": "human", "value": "q"}],
            "chosen": [{"from": "gpt", "value": "a"}],
            "rejected": [{"from": "gpt", "value": "b"}],
        },
        {
            "input": {"messages": [user([{"type": "text", "text": "q"}])], "tools": None},
            "preferred_output": [{"role": "assistant", "content": [{"type": "text", "text": "a"}], "name": None}],
            "non_preferred_output": [bot([{"type": "refusal", "refusal": "b"}])],
        },
    ],
    ids=["texts", "turns", "implicit prompt", "repeated prompt", "OpenAI", "ShareGPT", "content parts"],
)
def test_every_shape_says_the_same(fields: dict[str, Any]) -> None:
    assert turns_of(row(**fields)) == ([user("q")], [bot("a")], [bot("b")])
    assert not list(TASK.problems(row(**fields)))
    assert TASK.conversation(row(**fields), None, "be brief")[0]["role"] == "system"


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"prompt": "q", "chosen": "a", "rejected": "a"}, "identical-answers"),
        ({"prompt": "q", "chosen": " ", "rejected": "a"}, "empty-field"),
        ({"prompt": "q", "chosen": [user("a")], "rejected": "b"}, "last-role"),
        ({"prompt": "q", "chosen": [{"role": "robot", "content": "a"}], "rejected": "b"}, "unknown-role"),
        ({"prompt": "q", "chosen": 3, "rejected": "b"}, "messages-shape"),
        ({"prompt": {"role": "user", "content": "q"}, "chosen": "a", "rejected": "b"}, "messages-shape"),
        ({"prompt": "q", "chosen": [{"role": ["user"], "content": "a"}], "rejected": "b"}, "unknown-role"),
        ({"prompt": "q", "chosen": [bot([{"type": "image_url"}])], "rejected": "b"}, "image-content"),
        ({"prompt": "q", "chosen": [bot(5)], "rejected": "b"}, "messages-shape"),
        ({"prompt": "q", "chosen": [{"role": "assistant", "text": "a"}], "rejected": "b"}, "messages-shape"),
        ({"prompt": "q", "chosen": [calling("search", "{")], "rejected": "b"}, "tool-arguments"),
        (
            {
                "input": {"messages": [user("q")], "tools": "search"},
                "preferred_output": "a",
                "non_preferred_output": "b",
            },
            "messages-shape",
        ),
        *(
            ({"prompt": "q", "chosen": "a", "rejected": "b", "margin": margin}, "wrong-type")
            for margin in (-1, "-1", "much", [2], "inf", 10**400)
        ),
        ({"input": {}, "preferred_output": [bot("a")], "non_preferred_output": [bot("b")]}, "messages-shape"),
    ],
)
def test_what_is_wrong_is_named_with_its_remedy(fields: dict[str, Any], code: str, tmp_path: Path) -> None:
    (problem,) = found_in(tmp_path, fields)
    assert problem.code == code and problem.fix and str(problem.where[0]).endswith("pairs.jsonl:1")


def test_the_message_that_is_wrong_is_named_with_its_field(tmp_path: Path) -> None:
    fields = {"prompt": "q", "chosen": [bot("a")], "rejected": [bot("b"), {"role": "humman", "content": "c"}]}
    (problem,) = found_in(tmp_path, fields)
    assert problem.message.startswith("message 2 of `rejected` has the unknown role 'humman'")


def test_calls_are_read_as_in_conversations() -> None:
    """Arguments are objects, as templates want them; answers that differ in their calls alone differ."""
    asked = {"messages": [user("q")], "tools": [{"name": "search", "parameters": {}}]}
    chosen, rejected = calling("search", '{"for": "a"}'), calling("search", '{"for": "b"}')
    read = row(input=asked, preferred_output=[chosen], non_preferred_output=[rejected])
    (better,), (worse,) = turns_of(read)[1:]
    assert [turn["tool_calls"][0]["function"]["arguments"] for turn in (better, worse)] == [{"for": "a"}, {"for": "b"}]
    assert read.fields["input"]["tools"][0]["function"]["name"] == "search"
    assert TASK.target_text(read) == '{"name": "search", "arguments": {"for": "a"}}' and not list(TASK.problems(read))


def test_margins_of_a_csv_file_are_read(tmp_path: Path) -> None:
    path = tmp_path / "pairs.csv"
    path.write_text("prompt,chosen,rejected,margin\nq,a,b,0.5\nr,c,d, 2\ns,e,f,\n", encoding="utf-8")
    recipe = parse({"task": "preference", "model": "x", "data": {"train": str(path), "validation": 0, "test": 0}})
    rows = prepare(recipe).train
    assert [margin_of(row) for row in rows] == [0.5, 2.0, None]
    assert [TASK.reference(row) for row in rows] == [0.5, 2.0, 1.0]


def test_a_developer_speaks_as_the_system() -> None:
    """Templates of open models know no ``developer``, and leave out what such a turn says."""
    said = {"content": "answer in French"}
    shapes = [
        {"prompt": [{"role": "developer", **said}, user("q")], "chosen": "a", "rejected": "b"},
        {
            "input": {"messages": [{"role": "developer", **said}, user("q")]},
            "preferred_output": [bot("a")],
            "non_preferred_output": [bot("b")],
        },
        {
            "chosen": [{"role": "developer", **said}, user("q"), bot("a")],
            "rejected": [{"role": "developer", **said}, user("q"), bot("b")],
        },
    ]
    for fields in shapes:
        assert not list(TASK.problems(row(**fields)))
        assert turns_of(row(**fields))[0] == [{"role": "system", **said}, user("q")]
        turns = TASK.conversation(row(**fields), None, "be brief")
        assert [turn["role"] for turn in turns] == ["system", "user", "assistant"]
        assert turns[0]["content"] == said["content"]


@given(st.lists(st.tuples(st.text(max_size=3), st.integers(-4, 4)), min_size=2, max_size=40), st.integers(1, 4))
def test_pairs_are_far_enough_apart_and_none_comes_twice(items: list[tuple[str, int]], margin: int) -> None:
    rated = [Rated(text, rating) for text, rating in items]
    try:
        made = make_pairs(rated, margin=margin, per_text=3)
    except DataError:
        means = {t: [r for text, r in items if text == t] for t, _ in items}
        alone = [sum(v) / len(v) for v in means.values() if max(v) - min(v) < margin]
        assert not alone or max(alone) - min(alone) < margin
        return
    known = {(pair["chosen"], pair["rejected"]) for pair in made.pairs}
    assert len(known) == len(made.pairs)
    assert all(pair["margin"] >= margin for pair in made.pairs)
    assert not known & {(rejected, chosen) for chosen, rejected in known}


def test_only_texts_of_one_group_are_compared() -> None:
    made = make_pairs([Rated("a", 1, "x"), Rated("b", 5, "y"), Rated("c", 4, "x")], margin=1)
    assert made.pairs == [{"prompt": "x", "chosen": "c", "rejected": "a", "margin": 3.0}]
    assert made.unpaired == 1


def test_texts_are_divided_before_they_are_paired(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "ratings.csv"
    source.write_text("text,rating\n" + "".join(f"text {n},{n % 9 - 4}\n" for n in range(200)), encoding="utf-8")
    out, test = tmp_path / "pairs.jsonl", tmp_path / "test.jsonl"
    assert run(["pairs", str(source), "--out", str(out), "--test-out", str(test), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[1]["file"] == str(test)
    sides = []
    for path in (out, test):
        pairs = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        sides.append({pair[key] for pair in pairs for key in ("chosen", "rejected")})
    assert all(sides) and not sides[0] & sides[1]
    kept, held_back = split([Rated(f"text {n}", 0) for n in range(1000)], 0.2)
    assert 150 < len(held_back) < 250 and len(kept) + len(held_back) == 1000


def test_a_rating_that_is_no_number_has_its_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "ratings.csv"
    source.write_text("text,rating\na,1\nb,good\n", encoding="utf-8")
    assert run(["pairs", str(source), "--out", str(tmp_path / "x.jsonl")]) == 3
    assert "ratings.csv:3" in capsys.readouterr().err


def test_the_catalogs_pairs_share_no_text_between_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tunesmith import catalog
    from tunesmith.catalog import corpora

    snippets = [{"text": f"snippet {n}", "rating": float(n % 9 - 4)} for n in range(2000)]
    monkeypatch.setattr(corpora, "_rated_snippets", lambda entry, downloads: iter(snippets))
    entry = next(entry for entry in catalog.entries() if entry.name == "movie-preferences")
    corpora.rating_pairs(entry, [], tmp_path, lambda event: None)
    groups: dict[str, set[str]] = {}
    for line in (tmp_path / "pairs.jsonl").read_text(encoding="utf-8").splitlines():
        pair = json.loads(line)
        for key in ("chosen", "rejected"):
            groups.setdefault(pair[key], set()).add(pair["group"])
    assert len(groups) > 1900 and all(len(found) == 1 for found in groups.values())


def test_a_set_of_pairs_is_judged_as_a_whole(tmp_path: Path) -> None:
    rows = [{"chosen": f"a much longer text {n}", "rejected": f"text {n}"} for n in range(80)]
    rows[7] = {"chosen": rows[3]["rejected"], "rejected": rows[3]["chosen"]}
    held_out = [{"chosen": rows[5]["chosen"], "rejected": "quite another"}, {"chosen": "new", "rejected": "newer"}]
    files = {
        part: write_jsonl(tmp_path / f"{part}.jsonl", lines) for part, lines in (("train", rows), ("test", held_out))
    }
    data = {"train": str(files["train"]), "test": [str(files["test"])], "validation": 0.0}
    report = check(parse({"task": "preference", "model": "minilm-l6", "data": data}))
    found = {problem.code: problem for problem in report.problems}
    assert (found["contradiction"].count, str(found["contradiction"].where[0])) == (1, f"{files['train']}:8")
    assert f"{files['train']}:4" in found["contradiction"].message
    assert (found["shared-text"].count, str(found["shared-text"].where[0])) == (1, f"{files['test']}:1")
    assert "99% of the training pairs" in found["length-bias"].message
    assert any("characters on the average" in note for note in report.notes)


def test_pairs_of_even_lengths_and_new_texts_are_not_blamed(tmp_path: Path) -> None:
    rows = [
        {"prompt": f"q {n}", "chosen": "x" * (5 + n % 2), "rejected": "y" * (6 - n % 2), "margin": 1} for n in range(80)
    ]
    data = {"train": str(write_jsonl(tmp_path / "pairs.jsonl", rows)), "test": 0.3}
    report = check(parse({"task": "preference", "model": "minilm-l6", "data": data}))
    assert not {"contradiction", "shared-text", "length-bias"} & {problem.code for problem in report.problems}


def test_what_only_the_tokens_show_has_its_row(tiny_decoder: Path, tiny_encoder: Path) -> None:
    task, long = TASKS["preference"], "the film is great " * 40
    rows = [row(prompt="q", chosen=f"{long} a", rejected=f"{long} b")]
    for folder, form in ((tiny_decoder, "generate"), (tiny_encoder, "classify")):
        render = row_renderer(load_tokenizer(folder), task, form=form, labels=None, max_length=32)
        with pytest.raises(DataError, match="both answers are the same once they are cut") as caught:
            render(rows[0])
        assert str(caught.value.where) == "rows.jsonl:1"


def test_what_reads_bare_texts_tells_calls_apart_and_refuses_tools(tiny_encoder: Path) -> None:
    tokenizer = load_tokenizer(tiny_encoder)
    render = row_renderer(tokenizer, TASK, form="classify", labels=None, max_length=64)
    better, worse = calling("film", '{"a": "great"}'), calling("film", '{"a": "awful"}')
    rendered = render(row(prompt="q", chosen=[better], rejected=[worse]))
    read = [tokenizer.decode(ids) for ids in (rendered.input_ids, rendered.extra["rejected"])]
    assert "great" in read[0] and "awful" in read[1]
    calls = [row(prompt="q", chosen=[better], rejected="no")]
    gaps = preferences.longer(calls).gaps
    assert gaps is not None and gaps.tolist() == [len('{"name": "film", "arguments": {"a": "great"}}') - 2]
    asked = {"messages": [user("q")], "tools": [{"type": "function", "function": {"name": "film"}}]}
    with pytest.raises(DataError, match="would be left out") as caught:
        render(row(input=asked, preferred_output=[better], non_preferred_output=[worse]))
    assert caught.value.where == "rows.jsonl:1"
    with pytest.raises(DataError, match="the same tokens") as caught:  # and nothing was cut
        render(row(prompt="q", chosen="great", rejected="great "))
    assert "max_length" not in str(caught.value.fix)


@pytest.mark.parametrize("form", ["generate", "classify"])
def test_tools_stand_in_the_prompt_of_both_answers(form: Any, tiny_decoder: Path) -> None:
    """And a template that knows none refuses the row, as it does for chats."""
    asked = {"messages": [user("q")], "tools": [{"type": "function", "function": {"name": "search"}}]}
    pair = row(input=asked, preferred_output=[bot("a")], non_preferred_output=[bot("b")])
    tokenizer = load_tokenizer(tiny_decoder)
    with pytest.raises(DataError, match="knows no `tools`"):
        row_renderer(tokenizer, TASK, form=form, labels=None, max_length=64)(pair)
    tokenizer.chat_template = "{{ tools[0].function.name }}" + tokenizer.chat_template
    rendered = row_renderer(tokenizer, TASK, form=form, labels=None, max_length=64)(pair)
    texts = [rendered.input_ids, *([rendered.extra["rejected"]] if form == "classify" else [])]
    assert all("search" in tokenizer.decode(ids) for ids in texts)


def test_a_prompt_that_leaves_no_room_for_an_answer_has_its_row(tiny_decoder: Path) -> None:
    renderer = ConversationRenderer(load_tokenizer(tiny_decoder), 32)
    render = prompt_renderer(renderer, TASKS["text-generation"])
    with pytest.raises(DataError, match="leaves no room for an answer") as caught:
        render(row(prompt="what is the film " * 40, completion="good"))
    assert str(caught.value.where) == "rows.jsonl:1"
