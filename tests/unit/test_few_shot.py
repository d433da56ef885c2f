"""Learning from few examples: which are drawn, how they are grouped and shown, and what the losses say."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

import tiny
from conftest import labelled_rows, write_jsonl
from tunesmith import objectives
from tunesmith.data.batches import collate, write_tokens
from tunesmith.data.groups import draw_groups
from tunesmith.data.prepare import prepare
from tunesmith.data.shots import Shown
from tunesmith.errors import DataError, RecipeError
from tunesmith.objectives.contrastive import texts_of
from tunesmith.prediction import in_context
from tunesmith.recipe import InContext, Recipe, Training
from tunesmith.recipe_file import parse
from tunesmith.tasks import TASKS
from tunesmith.training.defaults import with_defaults
from tunesmith.training.loop import Trainer

TASK = TASKS["text-classification"]


def recipe_of(path: Path, **data: object) -> Recipe:
    tree = {"task": "text-classification", "model": "m", "method": "few-shot", "data": {"train": str(path), **data}}
    return parse(tree)


def test_shots_are_drawn_of_each_label_and_grow_by_addition(reviews: Path) -> None:
    drawn = {k: prepare(recipe_of(reviews, shots=k)) for k in (2, 4)}
    for k, data in drawn.items():
        labels = [row.fields["label"] for row in data.train]
        assert sorted(labels) == ["negative"] * k + ["positive"] * k
        assert not len(data.validation)
        assert data.report.rows["train"] == 2 * k and data.report.classes["train"] == {"negative": k, "positive": k}
        assert data.report.rows_left_out["shots"] > 0
    everything = prepare(recipe_of(reviews))
    assert [row.key for row in drawn[2].test] == [row.key for row in everything.test]
    assert {row.key for row in drawn[2].train} < {row.key for row in drawn[4].train}
    assert drawn[2].fingerprint != drawn[4].fingerprint != everything.fingerprint
    other = prepare(recipe_of(reviews, shots=4, shots_seed=1))
    assert [row.key for row in other.train] != [row.key for row in drawn[4].train]


def test_more_shots_than_examples_name_the_label(tmp_path: Path) -> None:
    rows = labelled_rows(60) + [{"text": f"a rare film {n}", "label": "rare"} for n in range(3)]
    with pytest.raises(DataError, match=r"'rare' has \d") as caught:
        prepare(recipe_of(write_jsonl(tmp_path / "rows.jsonl", rows), shots=5, validation=0, test=0))
    assert caught.value.where == "data.shots" and "shots: 3" in (caught.value.fix or "")


@pytest.mark.parametrize(("counts", "size"), [((8, 8), 8), ((5, 3, 1), 8), ((1, 1), 4), ((30,), 8), ((2,) * 20, 16)])
def test_each_round_groups_every_text_with_one_of_its_class(counts: tuple[int, ...], size: int) -> None:
    classes = np.repeat(np.arange(len(counts)), counts)
    groups = draw_groups(classes, size, 1, seed=0)
    assert set(np.concatenate(groups).tolist()) == set(range(len(classes)))
    assert all(len(group) <= size + 2 for group in groups)
    for group in groups:
        for text in group:
            alone = counts[classes[text]] == 1
            assert alone or (classes[group] == classes[text]).sum() >= 2
    again = draw_groups(classes, size, 1, seed=0)
    assert all((one == other).all() for one, other in zip(groups, again, strict=True))
    assert len(draw_groups(classes, size, 3, seed=0)) == 3 * len(groups)


def test_the_contrastive_loss_is_the_squared_error_of_all_cosines(tiny_encoder: Path, tmp_path: Path) -> None:
    model = tiny.build(tiny_encoder, "classify")
    model.network.eval()
    rows = tiny.rows_of(labelled_rows(7))
    objective = objectives.make("contrastive", Training(contrastive={"group_size": 4, "rounds": 1}))
    groups, render = objective.examples_of(rows, tiny.renderer(model))
    data = write_tokens(groups, render, tmp_path)
    batch = collate(data, list(range(len(data))), model.pad_id, 16)
    with torch.no_grad():
        found = objective.loss(model, batch)
    members = [group.fields["members"] for group in groups]
    batches = [model.tokenizer(rows[n].fields["text"], return_tensors="pt") for group in members for n in group]
    with torch.no_grad():
        vectors = [model.network.embed(b["input_ids"], b["attention_mask"])[0] for b in batches]
    pairs = []  # (same class, error), pair by pair
    start = 0
    for group in members:
        for i in range(len(group)):
            for j in range(i):
                same = rows[group[i]].fields["label"] == rows[group[j]].fields["label"]
                cosine = functional.cosine_similarity(vectors[start + i], vectors[start + j], dim=0)
                pairs.append((same, float((cosine - float(same)) ** 2)))
        start += len(group)
    alike = [error for same, error in pairs if same]
    apart = [error for same, error in pairs if not same]
    expected = sum(alike) + sum(apart) * len(alike) / len(apart)
    assert float(found.total) == pytest.approx(expected, rel=1e-6)
    assert found.weight == pytest.approx(2 * len(alike), rel=1e-6)


def test_a_single_validation_text_is_no_validation(tiny_encoder: Path, tmp_path: Path) -> None:
    """It has no pairs, and a loss over nothing is no number."""
    model = tiny.build(tiny_encoder, "classify")
    rows = tiny.rows_of(labelled_rows(9))
    settings = with_defaults(
        Training(max_steps=2), kind="full", form="classify", device=torch.device("cpu"), epoch_examples=8
    )
    objective = objectives.make("contrastive", settings)
    train, validation = (
        write_tokens(*objective.examples_of(some, tiny.renderer(model)), tmp_path / name)
        for name, some in (("train", rows[:8]), ("validation", rows[8:]))
    )
    objective.start(model, [train, validation], tmp_path, tiny.Events())
    result = Trainer(model, objective, train, validation, settings, tmp_path / "run").run()
    assert len(validation) == 0 and result.steps == 2


def test_the_texts_of_groups_come_apart_as_they_were(tiny_encoder: Path, tmp_path: Path) -> None:
    model = tiny.build(tiny_encoder, "classify")
    rows = tiny.rows_of(labelled_rows(9))
    objective = objectives.make("contrastive", Training())
    groups, render = objective.examples_of(rows, tiny.renderer(model))
    batch = collate(write_tokens(groups, render, tmp_path), [0, 1], model.pad_id, 16)
    texts = texts_of(batch, model.pad_id)
    expected = [tiny.renderer(model)(rows[n]).input_ids for group in groups[:2] for n in group.fields["members"]]
    assert [ids[mask].tolist() for ids, mask in zip(texts.input_ids, texts.attention_mask, strict=True)] == expected


def test_a_few_shot_recipe_has_two_stages_and_keeps_what_is_said() -> None:
    tree = {"task": "text-classification", "model": "m", "method": "few-shot"}
    first, second = parse(tree).resolved().stages
    assert (first.objective, first.parameters.kind, first.training.learning_rate) == ("contrastive", "full", 2e-5)
    assert second.parameters.kind == "none"
    said = parse({**tree, "training": {"learning_rate": 1e-3, "epochs": 2}, "parameters": "lora"}).resolved().stages[0]
    assert (said.parameters.kind, said.training.learning_rate, said.training.epochs) == ("lora", 1e-3, 2)
    assert said.training.batch_size == 1
    [only] = parse({**tree, "parameters": "in-context"}).resolved().stages
    assert only.parameters.kind == "in-context"


@pytest.mark.parametrize(
    ("tree", "says"),
    [
        ({"task": "text-generation", "method": "few-shot"}, "in-context"),
        ({"method": "few-shot", "parameters": "head", "objective": "contrastive"}, "no head"),
        ({"method": "few-shot", "parameters": "none"}, "belong together"),
        ({"method": "few-shot", "parameters": "in-context", "objective": "classify"}, "leave out"),
        ({"parameters": "in-context", "stages": [{"name": "a"}, {"name": "b"}]}, "without `stages`"),
    ],
)
def test_impossible_ways_to_learn_from_few_are_refused(tree: dict[str, object], says: str) -> None:
    with pytest.raises(RecipeError, match=says):
        parse({"task": "text-classification", "model": "m", **tree})


@pytest.mark.parametrize("choose", ["by-label", "random", "nearest"])
def test_examples_are_chosen_as_asked(choose: str, tmp_path: Path) -> None:
    train = tiny.rows_of(labelled_rows(40))
    settings = InContext(examples=4, choose=choose)
    shown = in_context.choose(train, settings, TASK, tiny.LABELS, 0)
    shown.save(tmp_path / "shown.json")
    again = Shown.load(tmp_path / "shown.json")
    assert again.settings == settings and [row.key for row in again.rows] == [row.key for row in shown.rows]
    asked = tiny.rows_of([{"text": train[7].fields["text"], "label": "positive"}])
    examples = list(in_context.shots_of(again, asked, TASK)(asked[0]))
    assert len(examples) == 4
    if choose == "by-label":
        assert sorted(row.fields["label"] for row in examples) == ["negative"] * 2 + ["positive"] * 2
    if choose == "nearest":
        assert examples[-1].key == train[7].key


@pytest.mark.parametrize(
    ("texts", "question", "nearest"),
    [
        (["这部电影很好看", "天气不错", "我喜欢狗", "火车晚点了"], "电影好看吗", 0),
        (["what a film", "rain again", "dogs run", "late trains"], "dogs", 2),
        (["2 + 3 =", "4 * 5 =", "1 - 1 =", "9 / 3 ="], "7 + 8 =", None),
        (["what a film", "rain again", "dogs run", "late trains"], "no word in common", None),
    ],
)
def test_the_nearest_examples_are_as_many_as_asked_for(texts: list[str], question: str, nearest: int | None) -> None:
    train = tiny.rows_of([{"text": text, "label": "positive"} for text in texts])
    asked = tiny.rows_of([{"text": question, "label": "positive"}])
    examples = list(in_context.nearest_shots(train, asked, 3, TASK)(asked[0]))
    assert len({example.key for example in examples}) == 3
    assert nearest is None or examples[-1].key == train[nearest].key


def test_calibration_takes_out_what_a_model_says_to_nothing() -> None:
    """By hand: after empty texts the model says (0.8, 0.2); (0.6, 0.4) becomes 0.75 : 2, so (3/11, 8/11)."""
    rows = tiny.rows_of(labelled_rows(3))
    asked: list[str] = []

    def ask(empty, shots):  # type: ignore[no-untyped-def]
        asked.extend(row.fields["text"] for row in empty)
        assert all(shots(row) == [rows[0]] for row in empty)
        return np.asarray([[0.9, 0.1], [0.8, 0.2], [0.7, 0.3]])

    found = in_context.calibrated(np.asarray([[0.6, 0.4]] * 3), rows, lambda row: [rows[0]], TASK, ask)
    np.testing.assert_allclose(found, [[3 / 11, 8 / 11]] * 3)
    assert asked == list(in_context.CONTENT_FREE)
