"""Right answers whose example is longer than a model reads: the prompt gives way, and nothing crashes."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tiny
from conftest import sentences, write_jsonl
from tunesmith import pipeline
from tunesmith.data.render import ConversationRenderer, Rendered
from tunesmith.errors import DataError
from tunesmith.prediction import answering, preferences
from tunesmith.prediction.references import UNCUT, answer_nats
from tunesmith.prediction.setting import Setting
from tunesmith.recipe import Generation
from tunesmith.recipe_file import parse
from tunesmith.runs import read_answers, read_events
from tunesmith.tasks import TASKS


def setting(task: Any) -> Setting:
    return Setting(TASKS[task], None, None, Generation(max_new_tokens=8))


def test_what_is_too_long_is_scored_behind_the_end_of_its_prompt(tiny_decoder: Path) -> None:
    model = tiny.build(tiny_decoder, "generate")
    long, short = list(range(5, 35)), [7, 8, 9]
    examples = [
        Rendered([*long, 3, 4], [0.0] * 30 + [1.0] * 2),  # 12 tokens: ten of the prompt, and the answer
        Rendered([*short, *long], [0.0] * 3 + [1.0] * 30),  # one token of the prompt, and as much as fits
    ]
    nats, sizes = answer_nats(model, examples, 12)
    cut = [Rendered([*long[-10:], 3, 4], [0.0] * 10 + [1.0] * 2), Rendered([9, *long[:11]], [0.0] + [1.0] * 11)]
    same, _ = answer_nats(model, cut, UNCUT)
    assert sizes.tolist() == [2, 11]
    np.testing.assert_allclose(nats, same)


def test_examples_that_leave_no_room_do_not_end_the_evaluation(tiny_decoder: Path) -> None:
    model = tiny.build(tiny_decoder, "generate")
    rows = tiny.rows_of([{"prompt": "what is it", "completion": "good"}, {"prompt": "why", "completion": "bad film"}])
    shown = tiny.rows_of([{"prompt": text, "completion": "good"} for text in sentences(60)])
    outputs = answering.answer(model, rows, setting("text-generation"), lambda row: shown)
    assert outputs.nats is not None and np.isfinite(outputs.nats).all() and (outputs.nats > 0).all()
    assert outputs.reference_bytes is not None and outputs.reference_bytes.tolist() == [4, 8]


def test_an_answer_longer_than_the_context_counts_with_the_part_that_was_scored(tiny_decoder: Path) -> None:
    model = tiny.build(tiny_decoder, "generate")
    answer = " ".join(sentences(90))
    rows = tiny.rows_of([{"prompt": "what", "completion": answer}])
    outputs = answering.answer(model, rows, setting("text-generation"))
    [size] = outputs.reference_bytes if outputs.reference_bytes is not None else [0.0]
    rendered = ConversationRenderer(model.tokenizer, UNCUT, model.eos_ids)(
        [{"role": "user", "content": "what"}, {"role": "assistant", "content": answer}]
    )
    scored, all_of_it = answering.prompt_limit(model) - 1, sum(w > 0 for w in rendered.loss_weights or [])
    assert size == pytest.approx(len(answer.encode()) * scored / all_of_it)


def test_pairs_behind_a_long_prompt_are_judged(tiny_decoder: Path) -> None:
    model = replace(tiny.build(tiny_decoder, "generate"), max_length=40)
    row = {"prompt": " ".join(sentences(30)), "chosen": "the film is good", "rejected": "the film is bad"}
    outputs = preferences.judge(model, tiny.rows_of([row]), setting("preference"))
    assert outputs.gaps is not None and np.isfinite(outputs.gaps).all() and outputs.gaps[0] != 0


@pytest.mark.parametrize("part", ["train", "test"])
def test_a_row_that_the_template_refuses_is_found_before_training(
    part: str, tiny_decoder: Path, tmp_path: Path
) -> None:
    """The folder then takes the next try, whose log is its own."""
    rows = [
        {"messages": [{"role": "user", "content": f"what {n}"}, {"role": "assistant", "content": f"good {n}"}]}
        for n in range(40)
    ]
    bad = {"messages": [{"role": "user", "content": "FORBIDDEN"}, {"role": "assistant", "content": "good"}]}
    model = shutil.copytree(tiny_decoder, tmp_path / "model")
    template = (model / "chat_template.jinja").read_text(encoding="utf-8")
    refusal = "{% if 'FORBIDDEN' in messages | map(attribute='content') %}{{ raise_exception('not this') }}{% endif %}"
    (model / "chat_template.jinja").write_text(refusal + template, encoding="utf-8")
    parts = {"train": rows[:30], "test": rows[30:]}
    parts[part] = [bad, *parts[part]]
    files = {name: str(write_jsonl(tmp_path / f"{name}.jsonl", some)) for name, some in parts.items()}
    tree: dict[str, Any] = {
        "task": "chat",
        "model": str(model),
        "data": {**files, "validation": 0.0},
        "training": {"max_steps": 2},
        "evaluate": {"baselines": [{"few-shot": 31}], "general": None, "limit": 10},
    }
    with pytest.raises(DataError) as raised:
        pipeline.run(parse(tree), run_dir=tmp_path / "run")
    assert f"{part}.jsonl:1" in str(raised.value) and "template refuses" in str(raised.value)
    assert not list(tmp_path.glob("run/stages/*/checkpoints/*"))
    tree["data"]["drop_bad"] = True
    run = pipeline.run(parse(tree), run_dir=tmp_path / "run")
    assert len(read_answers(run)) == 10
    assert [event["type"] for event in read_events(run.path)].count("run_started") == 1
    assert ("few-shot-31-random" in run.baselines) == (part == "test")  # it may not be shown either
