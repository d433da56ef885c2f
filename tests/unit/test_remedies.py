"""Remedies against forgetting: what replay and holding add to a loss; a killed run with them resumes exactly."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import tiny
import tunesmith
from conftest import labelled_rows, sentences, write_jsonl
from tunesmith import objectives, pipeline
from tunesmith.cli.main import run as cli
from tunesmith.data.batches import TokenFile, collate
from tunesmith.errors import RecipeError, UsageError
from tunesmith.events import Phase, Step, nobody
from tunesmith.models.combining import combine, refuse_own_heads
from tunesmith.models.heads import SentenceClassifier
from tunesmith.models.model import Model, decoder_of
from tunesmith.models.saving import load_artefact, save_artefact
from tunesmith.objectives.held import Held, added, fisher, trained_body
from tunesmith.objectives.replay import Memory, Replay
from tunesmith.recipe import Layers, LoRA, Prompt, Training
from tunesmith.recipe_file import parse
from tunesmith.training.remedies import share_body

needs_torchao = pytest.mark.skipif(importlib.util.find_spec("torchao") is None, reason="needs the extra `quantization`")


def taught(folder: Path, seed: int) -> Model:
    return tiny.build(folder, "classify", training=Training(seed=seed, dropout=0.0))


@pytest.fixture
def pair(tiny_encoder: Path, tmp_path: Path) -> tuple[Model, TokenFile, Memory]:
    """A model that learns, its data, and an earlier task whose head stands on the same body."""
    model, kept = taught(tiny_encoder, 0), taught(tiny_encoder, 1)
    own = tiny.tokens(model, labelled_rows(24), tmp_path / "own")
    earlier = tiny.tokens(kept, labelled_rows(10, seed=5), tmp_path / "earlier")
    share_body(kept, model)
    return model, own, Memory(objectives.make("classify", Training()), kept, earlier)


def replay_of(memory: Memory, own: TokenFile, model: Model, folder: Path, share: float = 0.5) -> Replay:
    replay = Replay(objectives.make("classify", Training()), [memory], share, seed=3)
    replay.start(model, [own, own], folder, nobody)
    return replay


def test_replay_adds_the_loss_of_the_rows_drawn(pair: tuple[Model, TokenFile, Memory], tmp_path: Path) -> None:
    model, own, memory = pair
    replay = replay_of(memory, own, model, tmp_path)
    batch = collate(own, range(24), model.pad_id, epoch=0)
    ((_, rows),) = replay._drawn(batch.rows, 0)
    assert 4 <= len(rows) <= 20
    plain = objectives.make("classify", Training())
    again = plain.loss(memory.model, collate(memory.data, rows, model.pad_id))
    found, alone = replay.loss(model, batch), plain.loss(model, batch)
    torch.testing.assert_close(found.total, alone.total + again.total)
    assert found.weight == 24 + len(rows)
    sums = {name: float(value) for name, value in found.metrics.items()}
    assert replay.metrics(sums, found.weight) == {"accuracy": float(alone.metrics["accuracy"]) / 24}


def test_an_earlier_example_counts_as_much_as_one_of_this_stage(
    pair: tuple[Model, TokenFile, Memory], tmp_path: Path
) -> None:
    model, own, memory = pair
    weighted = objectives.make("classify", Training(class_weights={"positive": 5.0}))
    weighted.restart(memory.model, memory.data)
    counts = [memory.data.label(row) for row in range(len(memory.data))]
    mean = sum(5.0 if (memory.model.labels or [])[label] == "positive" else 1.0 for label in counts) / len(counts)
    replay = replay_of(Memory(weighted, memory.model, memory.data), own, model, tmp_path)
    batch = collate(own, range(24), model.pad_id, epoch=0)
    ((_, rows),) = replay._drawn(batch.rows, 0)
    again = weighted.loss(memory.model, collate(memory.data, rows, model.pad_id))
    alone = objectives.make("classify", Training()).loss(model, batch)
    found = replay.loss(model, batch)
    torch.testing.assert_close(found.total, alone.total + again.total / mean)
    assert found.weight == pytest.approx(24 + again.weight / mean)


def test_nothing_is_held_before_anything_but_the_head_trains(tiny_encoder: Path, tmp_path: Path) -> None:
    """As in the first epochs of gradual unfreezing."""
    model = taught(tiny_encoder, 0)
    data = tiny.tokens(model, labelled_rows(4), tmp_path)
    held = Held(objectives.make("classify", Training()), 2.0)
    held.start(model, [data, data], tmp_path, nobody)
    decoder_of(model.transformer()).requires_grad_(False)
    assert float(held.penalty(model)) == 0.0


def test_the_penalty_beside_replay_is_for_the_replayed_rows_too(
    pair: tuple[Model, TokenFile, Memory], tmp_path: Path
) -> None:
    model, own, memory = pair
    held = Held(replay_of(memory, own, model, tmp_path), 2.0)
    held.start(model, [own, own], tmp_path, nobody)
    with torch.no_grad():
        for parameter in trained_body(model).values():
            parameter += 0.01
    batch = collate(own, range(24), model.pad_id, epoch=0)
    found, without = held.loss(model, batch), held.inner.loss(model, batch)
    assert found.weight == without.weight > 24
    penalty = (found.total - without.total) / found.weight
    torch.testing.assert_close(penalty, held.penalty(model).to(penalty.dtype))


def test_what_is_drawn_depends_on_epoch_and_row_alone(pair: tuple[Model, TokenFile, Memory], tmp_path: Path) -> None:
    model, own, memory = pair
    replay = replay_of(memory, own, model, tmp_path)
    whole = replay.loss(model, collate(own, range(24), model.pad_id, epoch=1))
    parts = [replay.loss(model, collate(own, range(n, n + 6), model.pad_id, epoch=1)) for n in range(0, 24, 6)]
    torch.testing.assert_close(whole.total, torch.stack([part.total for part in parts]).sum())
    assert whole.weight == sum(part.weight for part in parts)
    assert replay._drawn(range(24), 1) != replay._drawn(range(24), 2)
    measured = replay.loss(model, collate(own, range(24), model.pad_id))
    assert measured.weight == 24, "validation brings nothing along"


def test_an_earlier_head_stays_and_the_body_learns(pair: tuple[Model, TokenFile, Memory]) -> None:
    model, _, memory = pair
    assert isinstance(memory.model.network, SentenceClassifier)
    assert decoder_of(memory.model.transformer()) is decoder_of(model.transformer())
    again = memory.objective.loss(memory.model, collate(memory.data, range(10), model.pad_id))
    again.total.backward()
    assert memory.model.network.classifier.weight.grad is None
    assert all(parameter.grad is not None for parameter in memory.model.blocks()[0].parameters())


def test_the_penalty_is_the_papers(tiny_encoder: Path, tmp_path: Path) -> None:
    model = taught(tiny_encoder, 0)
    data = tiny.tokens(model, labelled_rows(8), tmp_path / "own")
    plain = objectives.make("classify", Training())
    importance = {name: torch.rand_like(p) for name, p in trained_body(model).items()}
    held = Held(plain, 3.0, importance)
    held.start(model, [data, data], tmp_path, nobody)
    batch = collate(data, range(8), model.pad_id, epoch=0)
    torch.testing.assert_close(held.loss(model, batch).total, plain.loss(model, batch).total)
    with torch.no_grad():
        for parameter in trained_body(model).values():
            parameter += 0.1
    expected = 3.0 / 2 * sum(float(f.sum()) for f in importance.values()) * 0.01
    assert held.penalty(model).item() == pytest.approx(expected, rel=1e-4)
    gained = held.loss(model, batch).total - plain.loss(model, batch).total
    assert gained.item() == pytest.approx(8 * expected, rel=1e-4), "the loop divides by the weight, which is 8"


def test_fisher_is_the_mean_of_squared_gradients(tiny_encoder: Path, tmp_path: Path) -> None:
    model = taught(tiny_encoder, 0)
    data = tiny.tokens(model, labelled_rows(6), tmp_path / "own")
    plain = objectives.make("classify", Training())
    found = fisher(model, plain, data, seed=0)
    name, parameter = next(iter(trained_body(model).items()))
    expected = torch.zeros_like(parameter)
    for row in range(6):
        model.network.zero_grad()
        plain.loss(model, collate(data, [row], model.pad_id)).total.backward()
        assert parameter.grad is not None
        expected += parameter.grad.square() / 6
    torch.testing.assert_close(found[name], expected.float())


def test_what_did_not_train_is_needed_as_well(tiny_encoder: Path, tmp_path: Path) -> None:
    model = tiny.build(tiny_encoder, "classify", Layers(layers="last 1"), Training(dropout=0.0))
    data = tiny.tokens(model, labelled_rows(6), tmp_path / "own")
    plain = objectives.make("classify", Training())
    trains = [name for name, _ in model.trainable()]
    part, whole = (fisher(model, plain, data, seed=0, whole=whole) for whole in (False, True))
    assert [name for name, _ in model.trainable()] == trains, "it is left as it was"
    for name, tensor in part.items():
        torch.testing.assert_close(whole[name], tensor)
    assert float(whole["embeddings.word_embeddings.weight"].sum()) > 0


def test_importance_is_added_up_over_tasks_that_have_not_all_the_same_weights() -> None:
    one = {"table": torch.ones(2, 3), "pooler": torch.full((2,), 5.0)}
    other = {"table": torch.full((4, 3), 2.0), "layer": torch.ones(1)}
    total = added(one, other)
    assert torch.equal(total["table"], torch.tensor([[3.0] * 3] * 2 + [[2.0] * 3] * 2)), "two tokens are new"
    assert torch.equal(total["pooler"], one["pooler"]) and torch.equal(total["layer"], other["layer"])


def two_tasks(model: Path, folder: Path, **keys: Any) -> dict[str, Any]:
    """A recipe of two tasks with labels, which trains very little."""
    first = write_jsonl(folder / "first.jsonl", labelled_rows(40))
    second = write_jsonl(folder / "second.jsonl", labelled_rows(40, seed=4))
    return {
        "task": "text-classification", "model": str(model), "method": "sequential", "precision": "fp32",
        "stages": [{"name": "one", "data": {"train": str(first)}}, {"name": "two", "data": {"train": str(second)}}],
        "training": {"max_steps": 2, "batch_size": 8}, "evaluate": {"baselines": [], "resamples": 100}, **keys,
    }  # fmt: skip


def test_scores_are_replayed_and_held_in_the_units_in_which_they_were_learned(
    tiny_encoder: Path, tmp_path: Path
) -> None:
    """Scores of a thousand beside labels: neither the squares nor their Fisher information drown the other task."""
    recipe = two_tasks(tiny_encoder, tmp_path, sequence={"replay": 1.0, "hold": "ewc"})
    scores = [{"text": text, "score": 1000.0 * (n % 5)} for n, text in enumerate(sentences(40))]
    recipe["stages"][0] |= {
        "task": "text-regression", "data": {"train": str(write_jsonl(tmp_path / "scores.jsonl", scores))}
    }  # fmt: skip
    events = tiny.Events()
    run = pipeline.run(parse(recipe), run_dir=tmp_path / "run", on_event=events)
    losses = [step.loss for step in events.of(Step) if step.stage == "two"]
    assert losses and all(loss < 10 for loss in losses)
    found = load_file(run.path / "stages" / "1-one" / "fisher.safetensors")
    assert max(float(tensor.max()) for tensor in found.values()) < 1e3


def test_what_has_no_right_answer_is_not_replayed(tmp_path: Path) -> None:
    stages = [
        {"name": "liked", "task": "preference", "data": {"train": "a.jsonl"}},
        {"name": "chat", "data": {"train": "b.jsonl"}},
    ]
    recipe = {"task": "chat", "model": "m", "method": "sequential", "stages": stages}
    with pytest.raises(RecipeError, match="learns right answers again"):
        parse(recipe | {"sequence": {"replay": 0.1}})
    parse(recipe | {"stages": stages[::-1], "sequence": {"replay": 0.1}})


def test_a_text_stage_with_an_adapter_of_its_own_is_measured(tiny_decoder: Path, tmp_path: Path) -> None:
    texts = write_jsonl(tmp_path / "texts.jsonl", [{"text": text} for text in sentences(60)])
    questions = write_jsonl(tmp_path / "questions.jsonl", tiny.question_rows(40))
    recipe = {
        "task": "text-generation", "model": str(tiny_decoder), "method": "sequential", "precision": "fp32",
        "parameters": {"kind": "lora", "rank": 2}, "sequence": {"adapters": "separate"},
        "stages": [
            {"name": "corpus", "task": "language-modeling", "data": {"train": str(texts)}},
            {"name": "answers", "data": {"train": str(questions)}},
        ],
        "training": {"max_steps": 2, "batch_size": 8},
        "evaluate": {"baselines": [], "resamples": 100, "generation": {"max_new_tokens": 4}},
    }  # fmt: skip
    run = pipeline.run(parse(recipe), run_dir=tmp_path / "run")
    (gain,) = run.summary()["stages"]
    assert gain["stage"] == "corpus" and gain["after"]["value"] > 0
    assert "without the domain stage" not in (run.path / "report.html").read_text(encoding="utf-8")


def test_remedies_are_compared_in_what_was_forgotten(
    tiny_encoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    named: dict[str, Any] = {"none": {}, "replay": {"replay": 1.0}, "again": {}}
    recipes = {name: two_tasks(tiny_encoder, tmp_path, sequence=remedy) for name, remedy in named.items()}
    runs = [pipeline.run(parse(recipe), run_dir=tmp_path / name) for name, recipe in recipes.items()]
    found = tunesmith.compare(*runs).as_dict()
    assert [one["name"] for one in found["sequence"]] == ["average", "backward_transfer", "forgetting"]
    summaries = [run.summary()["sequence"] for run in runs]
    for one in found["sequence"]:
        values = [summary[one["name"]]["value"] for summary in summaries]
        assert [interval["value"] for interval in one["values"]] == values
        assert one["differences"][0] is None
        assert one["differences"][1]["value"] == pytest.approx(values[1] - values[0])
        assert one["differences"][2] == {"value": 0.0, "low": 0.0, "high": 0.0}, "the same run: paired, not by chance"
    assert cli(["compare", *(str(run.path) for run in runs[:2])]) == 0
    assert "tasks in turn" in capsys.readouterr().out
    more = recipes["none"] | {"evaluate": recipes["none"]["evaluate"] | {"resamples": 200}}
    resampled = pipeline.run(parse(more), run_dir=tmp_path / "more")
    assert "sequence" not in tunesmith.compare(runs[0], resampled).as_dict(), "nothing is paired with other resamples"
    recipes["none"]["stages"][0]["data"]["seed"] = 9  # other test rows of the first task alone
    elsewhere = pipeline.run(parse(recipes["none"]), run_dir=tmp_path / "elsewhere")
    assert "sequence" not in tunesmith.compare(runs[0], elsewhere).as_dict()


def test_weights_that_an_earlier_stage_froze_are_held(tiny_encoder: Path, tmp_path: Path) -> None:
    recipe = two_tasks(tiny_encoder, tmp_path, sequence={"hold": "ewc"})
    recipe["stages"][0]["parameters"] = {"kind": "layers", "layers": "last 1"}
    run = pipeline.run(parse(recipe), run_dir=tmp_path / "run")
    found = load_file(run.path / "stages" / "1-one" / "fisher.safetensors")
    assert float(found["embeddings.word_embeddings.weight"].sum()) > 0


@pytest.mark.parametrize(("model", "kind"), [
    ("tiny_encoder", "lora"), pytest.param("tiny_encoder", "qlora", marks=needs_torchao), ("tiny_encoder", "ia3"),
    ("tiny_bert", "lora"), ("tiny_decoder", "lora"),
])  # fmt: skip
def test_labels_are_replayed_beside_adapters(
    model: str, kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    base = request.getfixturevalue(model)
    run = pipeline.run(
        parse(two_tasks(base, tmp_path, objective="classify", parameters=kind, sequence={"replay": 1.0})),
        run_dir=tmp_path / "run",
    )
    assert load_artefact(run.model_folder)[0].has_adapters
    assert run.summary()["sequence"]["matrix"][1][0] is not None


def test_an_earlier_head_reads_through_virtual_tokens(tiny_encoder: Path, tmp_path: Path) -> None:
    kept = taught(tiny_encoder, 1)
    model = tiny.build(tiny_encoder, "classify", Prompt(kind="prompt-tuning", tokens=3))
    data = tiny.tokens(kept, labelled_rows(6), tmp_path / "own")
    share_body(kept, model)
    objectives.make("classify", Training()).loss(kept, collate(data, range(6), kept.pad_id)).total.backward()
    learned = [p for _, p in model.trainable() if p.shape[0] == 3]
    assert learned and all(p.grad is not None and p.grad.abs().sum() > 0 for p in learned)


SPANS = {"name": "spans", "task": "token-classification"}
TEXT = {"name": "text", "task": "language-modeling", "parameters": "lora"}


@pytest.mark.parametrize(("model", "sequence", "stage", "match"), [
    ("tiny_encoder", {"adapters": "ties"}, SPANS, "heads of their tasks"),
    ("tiny_encoder_with_words", {"adapters": "ties"}, TEXT, "different networks"),
    ("tiny_bert", {"replay": 0.5}, SPANS, "pooling layer of its own"),
])  # fmt: skip
def test_what_a_sequence_cannot_give_is_refused_before_anything_trains(
    model: str, sequence: dict[str, Any], stage: dict[str, Any], match: str, request: pytest.FixtureRequest,
    tmp_path: Path,
) -> None:  # fmt: skip
    recipe = two_tasks(request.getfixturevalue(model), tmp_path, parameters="lora", sequence=sequence)
    rows = tiny.tagged_rows(40) if stage is SPANS else [{"text": text} for text in sentences(40)]
    recipe["stages"][1] = {**stage, "data": {"train": str(write_jsonl(tmp_path / "other.jsonl", rows))}}
    events = tiny.Events()
    with pytest.raises(UsageError, match=match):
        pipeline.run(parse(recipe), run_dir=tmp_path / "run", on_event=events)
    assert not events.of(Step) and not [phase for phase in events.of(Phase) if phase.step == "tune"]


@pytest.fixture
def tiny_encoder_with_words(tiny_encoder: Path, tmp_path: Path) -> Path:
    """The sentence encoder with a vocabulary head."""
    from transformers import BertForMaskedLM

    folder = Path(shutil.copytree(tiny_encoder, tmp_path / "with-words"))
    BertForMaskedLM.from_pretrained(tiny_encoder).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(("model", "sequence"), [("tiny_encoder", {"replay": 0.5}), ("tiny_decoder", {"replay": 0.5}),
                                                 ("tiny_encoder", {"hold": "ewc"})])  # fmt: skip
def test_a_killed_run_with_remedies_ends_with_the_same_bytes(
    model: str, sequence: dict[str, Any], request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    first = write_jsonl(tmp_path / "first.jsonl", labelled_rows(60))
    second = write_jsonl(tmp_path / "second.jsonl", labelled_rows(60, seed=4))
    recipe = {
        "task": "text-classification", "model": str(request.getfixturevalue(model)), "method": "sequential",
        "precision": "fp32", "sequence": sequence,
        "stages": [{"name": "one", "data": {"train": str(first)}}, {"name": "two", "data": {"train": str(second)}}],
        "training": {"epochs": 2, "learning_rate": 3e-3, "batch_size": 8, "checkpoint_steps": 2, "dropout": 0.1,
                     "keep_checkpoints": 9},
        "evaluate": {"baselines": [], "resamples": 100},
    }  # fmt: skip
    run = pipeline.run(parse(recipe), run_dir=tmp_path / "run")
    assert (run.path / "stages" / "1-one" / "fisher.safetensors").is_file() is (sequence.get("hold") == "ewc")
    before = tiny.sha256s(run.path / "model")
    known = run.summary()["sequence"]
    checkpoints = sorted((run.path / "stages" / "2-two" / "checkpoints").glob("step-*"))
    for folder in (*checkpoints[1:], run.path / "model", run.path / "sequence"):
        shutil.rmtree(folder)
    (run.path / "events.jsonl").write_text("")
    again = pipeline.resume(run.path)
    assert tiny.sha256s(again.model_folder) == before
    assert again.summary()["sequence"] == known


@pytest.mark.parametrize("said", [{"parameters": "lora"}, {}], ids=["said", "filled in by the method"])
def test_adapters_are_not_held(said: dict[str, Any]) -> None:
    with pytest.raises(RecipeError, match="holds the weights"):
        parse({
            "task": "chat", "model": "m", "method": "sequential", "sequence": {"hold": "l2"}, **said,
            "stages": [{"name": "a", "data": {"train": "a.jsonl"}}, {"name": "b", "data": {"train": "b.jsonl"}}],
        })  # fmt: skip


@pytest.mark.parametrize(("how", "init", "precision"), [("separate", "default", "fp32"), ("linear", "pissa", "fp32"),
                         *((how, "default", precision) for how in ("linear", "ties", "dare")
                           for precision in ("fp32", "bf16"))])  # fmt: skip
def test_an_adapter_a_stage(how: str, init: str, precision: str, tiny_encoder: Path, tmp_path: Path) -> None:
    first = write_jsonl(tmp_path / "first.jsonl", labelled_rows(60))
    second = write_jsonl(tmp_path / "second.jsonl", labelled_rows(60, seed=4))
    recipe = {
        "task": "text-classification", "model": str(tiny_encoder), "method": "sequential", "precision": precision,
        "sequence": {"adapters": how}, "parameters": {"kind": "lora", "rank": 2, "init": init},
        "stages": [{"name": "one", "data": {"train": str(first)}}, {"name": "two", "data": {"train": str(second)}}],
        "training": {"max_steps": 6, "learning_rate": 1e-2, "batch_size": 8},
        "evaluate": {"baselines": [], "resamples": 100},
    }  # fmt: skip
    run = pipeline.run(parse(recipe), run_dir=tmp_path / "run")
    parts = [load_file(run.path / "stages" / stage / "adapter" / "adapter_model.safetensors")
             for stage in ("1-one", "2-two")]  # fmt: skip
    final = load_file(run.model_folder / "adapter_model.safetensors")
    matrix = run.summary()["sequence"]["matrix"]
    if how == "separate":
        assert matrix[1][0] == matrix[0][0], "nothing is forgotten where nothing is shared"
        assert all(torch.equal(final[name], parts[1][name]) for name in final)
        return
    assert final.keys() == parts[0].keys()
    rank = 8 if init == "pissa" else 4  # PiSSA is saved as plain LoRA of twice the rank
    assert all(final[name].shape[0 if "lora_A" in name else 1] == rank for name in final), "ranks add up"
    for name in (name for name in final if "lora_A" in name and how == "linear"):
        sums = [part[name.replace("lora_A", "lora_B")] @ part[name] for part in parts]  # each of them times 2 / 2
        close = {"rtol": 1e-4, "atol": 1e-5} if precision == "fp32" else {"rtol": 0.05, "atol": 1e-3}
        torch.testing.assert_close(final[name.replace("lora_A", "lora_B")] @ final[name], sum(sums), **close)
    model, _ = load_artefact(run.model_folder)
    assert model.has_adapters
    assert matrix[1][1]["value"] == run.metrics["accuracy"].value, "what is measured is what was saved"


@pytest.mark.parametrize("beside", [{"dora": True}, {"bias": "all"}, {"modules_to_save": ["x"]}, {"new_tokens": ["x"]}],
                         ids=lambda beside: next(iter(beside)))  # fmt: skip
def test_what_is_more_than_a_product_is_not_merged(beside: dict[str, Any], tmp_path: Path) -> None:
    recipe = two_tasks(Path("m"), tmp_path, parameters={"kind": "lora", **beside}, sequence={"adapters": "linear"})
    with pytest.raises(RecipeError, match="more than the low-rank products"):
        parse(recipe)
    parse(recipe | {"sequence": {"adapters": "separate"}})


def test_the_mean_of_equal_adapters_is_each_of_them(tiny_decoder: Path, tmp_path: Path) -> None:
    model = tiny.build(tiny_decoder, "generate", LoRA(rank=2), dtype=torch.float32)
    with torch.no_grad():
        for _, parameter in model.trainable():
            parameter.normal_(generator=torch.Generator().manual_seed(1))
    save_artefact(model, tmp_path / "one", task="chat", system_prompt=None)
    loaded, _ = load_artefact(tmp_path / "one")
    ids = torch.tensor([loaded.tokenizer("the film was great")["input_ids"]])
    networks: list[Any] = [loaded.network]
    with torch.no_grad():
        before = networks[0](ids).logits
        combine(loaded, [tmp_path / "one", tmp_path / "one"], "linear", seed=0)
        networks.append(loaded.network)
        torch.testing.assert_close(networks[1](ids).logits, before, rtol=1e-4, atol=1e-5)


def test_adapters_with_heads_of_their_own_are_not_merged(tiny_bert: Path) -> None:
    model = tiny.build(tiny_bert, "classify", LoRA(rank=2))
    with pytest.raises(UsageError, match="heads of their tasks"):
        refuse_own_heads(model)
