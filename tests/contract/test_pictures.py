"""Pictures: found, read, refused by path, turned into vectors once, and learned from through the whole pipeline."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import tunesmith
from tunesmith import pipeline, runs
from tunesmith.cli import main
from tunesmith.data import pictures as pictures_module
from tunesmith.data.pictures import read_picture
from tunesmith.data.prepare import check, prepare
from tunesmith.errors import DataError, InterruptedRun, RecipeError, ResourceError, UsageError
from tunesmith.models import vision
from tunesmith.models.efficientnet import EfficientNetLite0, SameConv2d
from tunesmith.recipe import Data
from tunesmith.recipe_file import parse


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random EfficientNet-Lite0 in the catalog's layout, for small pictures; its norms have seen a few."""
    folder = tmp_path_factory.mktemp("vision")
    torch.manual_seed(0)
    network = EfficientNetLite0().train()
    with torch.no_grad():
        for _ in range(20):
            network(torch.randn(8, 3, 64, 64))
    save_file(network.state_dict(), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"model_type": "efficientnet-lite0", "image_size": 64}))
    return folder


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNESMITH_CACHE", str(tmp_path / "cache"))


def draw(folder: Path, count: int, seed: int = 0) -> Path:
    """Pictures of two kinds: stripes that lie and stripes that stand."""
    random = np.random.default_rng(seed)
    for number in range(count):
        label = ("flat", "upright")[number % 2]
        stripes = (np.arange(80) // 8 % 2 * 200).astype(np.uint8)
        pixels = np.tile(
            stripes[:, None] if label == "flat" else stripes[None, :], (1, 80) if label == "flat" else (80, 1)
        )
        noisy = np.clip(pixels[..., None] + random.integers(0, 50, (80, 80, 3)), 0, 255).astype(np.uint8)
        (folder / label).mkdir(parents=True, exist_ok=True)
        Image.fromarray(noisy).save(folder / label / f"{number}.png")
    return folder


def recipe(model: Path, train: Path, **data: Any) -> Any:
    tree = {
        "task": "image-classification",
        "model": str(model),
        "method": "features",
        "data": {"train": str(train), "validation": 0.2, "test": 0.3, **data},
        "evaluate": {"baselines": ["majority"], "resamples": 200},
    }
    return parse(tree)


def test_folders_of_pictures_are_learned_reported_and_predicted(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures = draw(tmp_path / "pictures", 60)
    run = pipeline.run(recipe(model, pictures), run_dir=tmp_path / "run")
    assert run.metrics["accuracy"].value > 0.9 > run.baselines["majority"]["accuracy"].value
    path = pictures / "upright" / "1.png"
    [answer] = tunesmith.load(run.path).predict([str(path)])
    assert answer.answer == "upright"
    capsys.readouterr()
    assert main.run(["predict", str(run.path), str(pictures / "flat")]) == 0
    answers = [json.loads(line)["answer"] for line in capsys.readouterr().out.splitlines()]
    assert len(answers) == 30 and answers.count("flat") > 27
    monkeypatch.setattr(vision.ImageClassifier, "embed", None)  # every vector is in the cache by now
    assert tunesmith.load(run.path).predict([str(path)])[0].probabilities == answer.probabilities


def test_the_report_shows_what_was_wrong(model: Path, tmp_path: Path) -> None:
    pictures = draw(tmp_path / "pictures", 40)
    swapped = draw(tmp_path / "test", 8, seed=5)
    (swapped / "flat" / "0.png").rename(swapped / "upright" / "wrong.png")
    run = pipeline.run(recipe(model, pictures, test=[str(swapped)]), run_dir=tmp_path / "run")
    page = run.report().read_text(encoding="utf-8")
    assert "upright/wrong.png" in page and page.count("data:image/jpeg;base64,") >= 1


def test_a_table_names_pictures_from_its_own_folder(model: Path, tmp_path: Path) -> None:
    pictures = draw(tmp_path / "pictures", 12)
    lines = [f"{path.relative_to(pictures)},{path.parent.name}" for path in sorted(pictures.rglob("*.png"))]
    table = pictures / "table.csv"
    table.write_text("path,label\n" + "\n".join(lines) + "\n", encoding="utf-8")
    report = check(recipe(model, table, validation=0, test=0))
    assert not report.errors and report.rows["train"] == 12


def test_predict_reads_the_table_that_was_trained_on(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pictures = draw(tmp_path / "pictures", 40)
    paths = sorted(pictures.rglob("*.png"))
    lines = [f"{path.relative_to(pictures)},{path.parent.name}" for path in paths]
    table = pictures / "table.csv"
    table.write_text("path,label\n" + "\n".join(lines) + "\n", encoding="utf-8")
    run = pipeline.run(recipe(model, table), run_dir=tmp_path / "run")
    capsys.readouterr()
    assert main.run(["predict", str(run.path), str(table)]) == 0
    answers = [json.loads(line)["answer"] for line in capsys.readouterr().out.splitlines()]
    assert sum(answer == path.parent.name for answer, path in zip(answers, paths, strict=True)) > 36


def test_a_picture_is_the_same_wherever_it_lies(model: Path, tmp_path: Path) -> None:
    """So two runs on one set are compared, and a moved one goes on."""
    found = []
    for place in ("here", "there"):
        data = prepare(recipe(model, draw(tmp_path / place / "pictures", 40), max_rows=20))
        found.append((data.fingerprint, [row.key for part in (data.train, data.test) for row in part]))
    assert found[0] == found[1] and len(set(found[0][1])) == len(found[0][1])


def test_unreadable_pictures_are_named_by_their_path(model: Path, tmp_path: Path) -> None:
    pictures = draw(tmp_path / "pictures", 24)
    whole = (pictures / "flat" / "0.png").read_bytes()
    (pictures / "flat" / "half.png").write_bytes(whole[: len(whole) // 2])
    (pictures / "flat" / "text.jpg").write_text("no picture")
    report = check(recipe(model, pictures))
    places = {str(place) for problem in report.errors for place in problem.where}
    assert places == {str(pictures / "flat" / "half.png"), str(pictures / "flat" / "text.jpg")}
    assert all(problem.code == "unreadable-picture" for problem in report.errors)


def test_each_reason_why_pictures_cannot_be_read_is_told(model: Path, tmp_path: Path) -> None:
    pictures = draw(tmp_path / "pictures", 24)
    whole = (pictures / "flat" / "0.png").read_bytes()
    (pictures / "flat" / "half.png").write_bytes(whole[: len(whole) // 2])
    for name in ("a.jpg", "b.jpg"):
        (pictures / "flat" / name).write_text("no picture")
    found = {problem.message: problem for problem in check(recipe(model, pictures)).errors}
    unknown = found["cannot be read as a picture: its format is not known"]
    assert unknown.count == 2 and unknown.fix is not None and "data.drop_bad" in unknown.fix
    assert any("truncated" in message for message in found) and len(found) == 2


def test_predicting_goes_on_after_a_picture_that_cannot_be_read(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = pipeline.run(recipe(model, draw(tmp_path / "pictures", 40)), run_dir=tmp_path / "run")
    asked = draw(tmp_path / "asked", 6) / "flat"
    (asked / "1.jpg").write_text("no picture")
    capsys.readouterr()
    assert main.run(["predict", str(run.path), str(asked), "--batch", "2"]) == 3
    out, err = capsys.readouterr()
    answers = [json.loads(line) for line in out.splitlines()]
    assert ["error" in answer for answer in answers] == [False, True, False, False]
    assert answers[1]["error"]["where"] == str(asked / "1.jpg") in err
    assert [answer["image"] for answer in answers] == [str(path) for path in sorted(asked.iterdir())]
    assert "drop_bad" not in out + err, "predict has no such setting"
    table, lines = tmp_path / "asked" / "asked.csv", tmp_path / "asked" / "asked.txt"
    names = [str(path.relative_to(tmp_path / "asked")) for path in sorted(asked.iterdir()) if path.name != "1.jpg"]
    table.write_text("\n".join(["image", *names]) + "\n")
    lines.write_text("\n".join(names) + "\n")
    for file in (table, lines):
        assert main.run(["predict", str(run.path), str(file)]) == 0
        lines_out = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        assert [line["line"] for line in lines_out] == ([2, 3, 4] if file is table else [1, 2, 3])
        found = [line["probability"] for line in lines_out]
        assert found == pytest.approx([answer["probability"] for answer in answers[:1] + answers[2:]])


@pytest.mark.parametrize("task", ["text-classification", "chat", "language-modeling"])
def test_pictures_for_a_task_of_text_are_one_error(task: str, tmp_path: Path) -> None:
    pictures = draw(tmp_path / "pictures", 24)
    if task != "language-modeling":  # which would read it
        (pictures / "notes.txt").write_text("taken in May\n", encoding="utf-8")
    one = pictures / "flat" / "0.png"
    for place in (pictures, pictures / "flat", one):
        with pytest.raises(DataError) as caught:
            check(parse({"task": task, "model": "m", "data": {"train": str(place)}}))
        assert caught.value.where == str(place) and f"`{task}` reads text" in caught.value.what
        assert "task: image-classification" in (caught.value.fix or "")


def test_few_shot_on_pictures_names_what_learns_from_pictures(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="`method: few-shot` is for texts") as caught:
        parse({"task": "image-classification", "model": "m", "method": "few-shot"})
    assert "`method: features`" in str(caught.value.fix)


def test_the_same_picture_under_two_labels_is_found(model: Path, tmp_path: Path) -> None:
    pictures = draw(tmp_path / "pictures", 24)
    (pictures / "upright" / "copy.png").write_bytes((pictures / "flat" / "0.png").read_bytes())
    problems = check(recipe(model, pictures)).problems
    assert any(problem.code == "contradiction" for problem in problems)


def test_folders_without_labels_or_pictures_are_refused(model: Path, tmp_path: Path) -> None:
    bare = draw(tmp_path / "pictures", 4) / "flat"
    with pytest.raises(DataError, match="no labels"):
        check(recipe(model, bare))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no data files"):
        check(recipe(model, tmp_path / "empty"))


def test_models_and_methods_that_do_not_fit_are_refused(tiny_encoder: Path, model: Path, tmp_path: Path) -> None:
    pictures = draw(tmp_path / "pictures", 24)
    with pytest.raises(UsageError, match="reads no pictures"):
        pipeline.run(recipe(tiny_encoder, pictures), run_dir=tmp_path / "run")
    with pytest.raises(RecipeError, match="head or last layers"):
        parse({"task": "image-classification", "model": str(model), "method": "peft"})


def test_a_turned_photograph_is_read_upright(tmp_path: Path) -> None:
    photograph = Image.new("RGB", (20, 10), "white")
    exif = photograph.getexif()
    exif[0x0112] = 6  # the camera was held upright
    photograph.save(tmp_path / "photo.jpg", exif=exif)
    assert read_picture(tmp_path / "photo.jpg").size == (10, 20)


@pytest.mark.parametrize(("size", "kernel", "stride"), [(8, 3, 2), (7, 3, 2), (8, 5, 2), (9, 5, 1)])
def test_padding_is_that_of_tensorflow(size: int, kernel: int, stride: int) -> None:
    """By hand: the output has ceil(size / stride) places; missing columns go before and, one more, behind."""
    layer = SameConv2d(1, 1, kernel, stride, bias=False)
    torch.nn.init.ones_(layer.weight)
    pixels = torch.arange(float(size)).expand(1, 1, size, size) + 1
    missing = max(0, (-(-size // stride) - 1) * stride + kernel - size)
    row = [0.0] * (missing // 2) + [float(n + 1) for n in range(size)] + [0.0] * (missing - missing // 2)
    expected = [sum(row[start : start + kernel]) for start in range(0, len(row) - kernel + 1, stride)]
    middle = layer(pixels)[0, 0, layer(pixels).shape[2] // 2].tolist()
    assert len(middle) == -(-size // stride)
    np.testing.assert_allclose(np.asarray(middle) / middle[0] * expected[0], expected)


def test_a_model_of_transformers_gives_its_pooled_vector(tmp_path: Path) -> None:
    from transformers import ViTConfig, ViTImageProcessor, ViTModel

    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, image_size=32, patch_size=8
    )
    vit = ViTModel(config).eval()
    vit.save_pretrained(tmp_path / "vit")
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path / "vit")
    picture = draw(tmp_path / "pictures", 2) / "flat" / "0.png"
    network = vision.load_vision(tmp_path / "vit", name="vit", labels=["a", "b"])
    found = vision.vectors(network, tmp_path / "vit", [picture])
    with torch.no_grad():
        expected = vit(network.prepare(read_picture(picture))[None]).pooler_output
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-6)


@pytest.mark.download
@pytest.mark.shared_data
def test_broken_cookies_are_told_from_whole_ones(
    shared_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tunesmith import catalog

    monkeypatch.delenv("TUNESMITH_CACHE")
    if not catalog.is_cached("efficientnet-lite0"):
        pytest.skip("efficientnet-lite0 is not in the cache")
    folder = catalog.model_folder("efficientnet-lite0")
    monkeypatch.setenv("TUNESMITH_CACHE", str(tmp_path / "cache"))
    cookies = shared_data / "cookies"
    asked = recipe(folder, cookies / "train", test=[str(cookies / "test")], validation=0)
    run = pipeline.run(asked, run_dir=tmp_path / "run")
    assert run.metrics["accuracy"].value >= 0.95


# --- through the one loop -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random vision transformer of 3 layers, with its processor, for pictures of 32 pixels."""
    from transformers import ViTConfig, ViTImageProcessor, ViTModel

    folder = tmp_path_factory.mktemp("vit")
    torch.manual_seed(0)
    # Heads of 16, as real ones are at least: with 8 torch's attention gives other last bits in other batches.
    sizes = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 64}
    config = ViTConfig(**sizes, image_size=32, patch_size=8)
    ViTModel(config).save_pretrained(folder)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


def training_recipe(model: Path, train: Path, parameters: Any, **training: Any) -> Any:
    tree = {
        "task": "image-classification",
        "model": str(model),
        "method": "transfer",
        "parameters": parameters,
        "data": {"train": str(train), "validation": 0.2, "test": 0.3},
        "training": {"epochs": 2, "batch_size": 4, "compile": "off", **training},
        "evaluate": {"baselines": ["majority"], "resamples": 100},
    }
    return parse(tree)


def weights_of(run: tunesmith.Run) -> dict[str, torch.Tensor]:
    return load_file(run.model_folder / "model.safetensors")


@pytest.mark.parametrize(
    ("kind", "parameters"),
    [
        ("vit", "head"),
        ("vit", {"kind": "layers", "layers": "last 1"}),
        ("efficientnet", {"kind": "layers", "layers": "last 1"}),
        ("efficientnet", "full"),
    ],
)
def test_pictures_are_learned_by_the_loop_and_kept(
    kind: str, parameters: Any, model: Path, vit: Path, tmp_path: Path
) -> None:
    base = model if kind == "efficientnet" else vit
    pictures = draw(tmp_path / "pictures", 24)
    rate = 1e-3 if kind == "vit" else 1e-4
    asked = training_recipe(base, pictures, parameters, learning_rate=rate, batch_size=32, epochs=4, warmup=0)
    run = pipeline.run(asked, run_dir=tmp_path / "run")
    losses = [e["loss"] for e in runs.read_events(run.path) if e["type"] == "step"]
    assert len(losses) == 4 and losses[-1] < losses[0], "all pictures in each update, so it falls"
    before, after = load_file(base / "model.safetensors"), weights_of(run)
    changed = {name for name in after if not torch.equal(before[name], after[name])}
    frozen = [name for name in after if any(part in name for part in ("_blocks.0.", "_conv_stem", "layer.0.", "embed"))]
    statistics = [name for name in after if "running" in name or "num_batches" in name]
    assert frozen and not changed & set(statistics)
    assert (changed >= set(frozen) - set(statistics)) if parameters == "full" else not changed & set(frozen)
    assert bool(changed) == (parameters != "head")
    kept = {json.loads(line)["input"]: json.loads(line) for line in (run.path / "predictions.jsonl").open()}
    again = tunesmith.load(run.path).predict(list(kept))
    assert [answer.answer for answer in again] == [line["answer"] for line in kept.values()]
    assert run.summary()["tokens"] > 0


def test_a_transformers_encoder_that_trained_loads_there(vit: Path, tmp_path: Path) -> None:
    from transformers import AutoImageProcessor, AutoModel

    pictures = draw(tmp_path / "pictures", 24)
    run = pipeline.run(training_recipe(vit, pictures, "full"), run_dir=tmp_path / "run")
    encoder = AutoModel.from_pretrained(run.model_folder).eval()
    processor = AutoImageProcessor.from_pretrained(run.model_folder, backend="pil")
    head = load_file(run.model_folder / "head.safetensors")
    path = pictures / "flat" / "0.png"
    with torch.no_grad():
        vector = encoder(**processor(read_picture(path), return_tensors="pt")).pooler_output
        expected = torch.softmax(vector @ head["weight"].T + head["bias"], dim=-1)[0]
    found = tunesmith.load(run.path).predict([str(path)])[0].probabilities
    assert found is not None
    np.testing.assert_allclose(list(found.values()), expected.numpy(), atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "parameters"), [("vit", "head"), ("efficientnet", {"kind": "layers", "layers": "last 1"})]
)
def test_the_cache_of_frozen_layers_changes_nothing(
    kind: str, parameters: Any, model: Path, vit: Path, tmp_path: Path
) -> None:
    pictures = draw(tmp_path / "pictures", 20)
    found = []
    for cache in ("on", "off"):
        asked = training_recipe(model if kind == "efficientnet" else vit, pictures, parameters, cache=cache)
        run = pipeline.run(asked, run_dir=tmp_path / cache)
        said = [e["message"] for e in runs.read_events(run.path) if e["type"] == "notice"]
        assert any("are computed once" in message for message in said) == (cache == "on")
        found.append(weights_of(run) | load_file(run.model_folder / "head.safetensors"))
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_a_batch_of_pictures_may_be_split(model: Path, tmp_path: Path) -> None:
    """Batch norms keep their statistics, so what a picture gives does not depend on those beside it."""
    pictures = draw(tmp_path / "pictures", 12)
    found = []
    for tokens in (16, 4096):  # one picture of 64 x 64 pixels a pass, or all
        asked = training_recipe(model, pictures, "full", micro_tokens=tokens, epochs=1)
        run = pipeline.run(asked, run_dir=tmp_path / str(tokens))
        found.append([e["loss"] for e in runs.read_events(run.path) if e["type"] == "step"])
    np.testing.assert_allclose(found[0], found[1], rtol=1e-4)


def test_augmentation_follows_the_seed_and_hinders_the_cache(model: Path, tmp_path: Path) -> None:
    from tunesmith.data.picture_file import PictureFile
    from tunesmith.data.rows import CONTENT, Origin, Row

    pictures = draw(tmp_path / "pictures", 12)
    paths = sorted(pictures.rglob("*.png"))
    rows = [Row({"image": str(p), "label": p.parent.name, CONTENT: p.name}, Origin(str(p), 0)) for p in paths]
    prepare = vision.load_vision(model, name="tiny", labels=["flat", "upright"]).prepare
    files = [PictureFile(rows, ["flat", "upright"], prepare, augment=["flip", "crop"], seed=seed) for seed in (0, 0, 1)]
    shown = [[file.batch([3, 5], 0, 1, epoch).pixels for epoch in (0, 1, None)] for file in files]
    assert all(one is not None for line in shown for one in line)
    assert torch.equal(shown[0][0], shown[1][0]) and torch.equal(shown[0][1], shown[1][1])
    assert not torch.equal(shown[0][0], shown[0][1]) and not torch.equal(shown[0][0], shown[2][0])
    plain = PictureFile(rows, ["flat", "upright"], prepare).batch([3, 5], 0, 1, 0).pixels
    assert torch.equal(shown[0][2], plain), "pictures that are only measured on are shown as they are"
    with pytest.raises(RecipeError, match="cannot be cached"):
        asked = training_recipe(model, pictures, "head", cache="on", augment=["flip"])
        pipeline.run(asked, run_dir=tmp_path / "run")


def test_a_flip_mirrors_and_a_crop_keeps_half(tmp_path: Path) -> None:
    from tunesmith.data.picture_file import augmented

    columns = np.tile(np.arange(100, dtype=np.uint8)[None, :, None] * 2, (60, 1, 3))
    picture = Image.fromarray(columns)
    seen = {augmented(picture, ["flip"], np.random.default_rng(n)).getpixel((0, 0))[0] for n in range(12)}
    assert seen == {0, 198}
    for n in range(20):
        part = np.asarray(augmented(picture, ["crop"], np.random.default_rng(n)))
        assert part.shape == (60, 100, 3)
        share = (float(part[0, -1, 0]) - float(part[0, 0, 0])) / 198  # of the width; of the area half is left at least
        assert 0.55 < share <= 1.0


def test_a_run_on_pictures_that_was_stopped_goes_on_bit_for_bit(model: Path, tmp_path: Path) -> None:
    pictures = draw(tmp_path / "pictures", 24)
    asked = training_recipe(model, pictures, "full", augment=["flip", "crop"], checkpoint_steps=1)
    whole = pipeline.run(asked, run_dir=tmp_path / "whole")

    def stop(event: Any) -> None:
        if getattr(event, "step", None) == 3 and type(event).__name__ == "CheckpointSaved":
            raise KeyboardInterrupt

    with pytest.raises(InterruptedRun):
        pipeline.run(asked, run_dir=tmp_path / "stopped", on_event=stop)
    resumed = pipeline.resume(tmp_path / "stopped")
    first, second = weights_of(whole), weights_of(resumed)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_fit_may_come_before_the_loop(model: Path, tmp_path: Path) -> None:
    pictures = draw(tmp_path / "pictures", 24)
    tree = training_recipe(model, pictures, "full").model_dump(mode="json", exclude_unset=True)
    tree |= {
        "method": "supervised",
        "stages": [{"name": "probe", "parameters": {"kind": "none"}}, {"name": "tune", "parameters": {"kind": "full"}}],
    }
    tree["evaluate"]["baselines"] = [{"kind": "majority"}, {"kind": "features"}]
    run = pipeline.run(parse(tree), run_dir=tmp_path / "run")
    assert set(run.baselines) == {"majority", "features"}
    first = next(e for e in runs.read_events(run.path) if e["type"] == "step")
    assert first["loss"] < 0.5, "the second stage begins with the fitted head"


def test_the_plan_says_what_trains(model: Path, tmp_path: Path) -> None:
    from tunesmith.planning import plan

    pictures = draw(tmp_path / "pictures", 24)
    found = {kind: plan(training_recipe(model, pictures, kind)) for kind in ("head", "full")}
    assert found["head"].trainable_parameters == 2 * 1280 + 2
    assert found["full"].trainable_parameters == found["full"].total_parameters == found["head"].total_parameters
    assert found["full"].memory_bytes.expected > found["head"].memory_bytes.expected
    parts = {part.module: part.trainable for part in found["head"].stages[0].parts}
    assert sum(parts.values()) == 2 * 1280 + 2 and parts["classifier"] == 2 * 1280 + 2
    assert found["head"].steps == found["full"].steps > 0 < found["full"].seconds.low


def test_what_is_for_texts_alone_is_refused(model: Path, tmp_path: Path) -> None:
    pictures = draw(tmp_path / "pictures", 8)
    with pytest.raises(RecipeError, match="`head`, `layers` or `full`"):
        training_recipe(model, pictures, {"kind": "lora"})
    with pytest.raises(RecipeError, match="augment"):
        parse(
            {
                "task": "text-classification",
                "model": "minilm-l6",
                "data": {"train": "a.csv"},
                "training": {"augment": ["flip"]},
            }
        )
    with pytest.raises(RecipeError, match="16 layers"):
        pipeline.run(training_recipe(model, pictures, {"kind": "layers", "layers": "last 20"}), run_dir=tmp_path / "r")


def parquet(pictures: Path, path: Path, spoil: dict[int, Any] | None = None) -> Path:
    """Pictures inside a table, as the hub's library stores them; some rows with something else in their place."""
    import pyarrow
    import pyarrow.parquet

    files = sorted(pictures.rglob("*.png"))
    cells = [{"bytes": file.read_bytes(), "path": file.name} for file in files]
    for place, value in (spoil or {}).items():
        cells[place] = {"bytes": value, "path": None}
    kind = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    columns = {"image": pyarrow.array(cells, kind), "label": [file.parent.name for file in files]}
    pyarrow.parquet.write_table(pyarrow.table(columns), path)
    return path


def test_pictures_inside_a_table_are_learned(model: Path, tmp_path: Path) -> None:
    table = parquet(draw(tmp_path / "pictures", 60), tmp_path / "train.parquet")
    run = pipeline.run(recipe(model, table), run_dir=tmp_path / "run")
    by_files = pipeline.run(recipe(model, tmp_path / "pictures"), run_dir=tmp_path / "by-files")
    assert run.metrics["accuracy"].value > 0.9 and run.metrics == by_files.metrics
    kept = [path for path in (run.path / "pictures").rglob("*") if path.is_file()]
    assert len(kept) == 60
    [answer] = tunesmith.load(run.path).predict([{"image": {"bytes": kept[0].read_bytes(), "path": None}}])
    assert answer.answer in ("flat", "upright")


def test_broken_pictures_inside_a_table_are_named_by_row(model: Path, tmp_path: Path) -> None:
    pictures = draw(tmp_path / "pictures", 24)
    whole = (pictures / "flat" / "0.png").read_bytes()
    spoil = {3: whole[: len(whole) // 2], 7: b"no picture"}
    table = parquet(pictures, tmp_path / "train.parquet", spoil)
    report = check(recipe(model, table))
    assert {str(place) for problem in report.errors for place in problem.where} == {f"{table}:4", f"{table}:8"}
    assert {problem.code for problem in report.errors} == {"unreadable-picture"}
    dropped = tmp_path / "dropped.jsonl"
    data = prepare(recipe(model, table, drop_bad=True), dropped_to=dropped)
    assert sum(data.report.rows.values()) == 22
    lines = [json.loads(line) for line in dropped.read_text(encoding="utf-8").splitlines()]
    assert [line["line"] for line in lines] == [4, 8] and "<10 bytes>" in lines[1]["row"]


def test_pictures_of_the_hub_come_as_they_are(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    files = sorted(draw(tmp_path / "pictures", 24).rglob("*.png"))
    columns = {"image": [{"bytes": file.read_bytes(), "path": file.name} for file in files]}
    columns |= {"label": [file.parent.name for file in files]}
    rows = datasets.Dataset.from_dict(columns).cast_column("image", datasets.Image())
    monkeypatch.setattr("tunesmith.catalog.hub_dataset", lambda name: rows.to_iterable_dataset())
    report = check(
        recipe(model, Path("hub:somebody")).model_copy(update={"data": Data(train=["hub:somebody/stripes"])})
    )
    assert not report.errors and sum(report.rows.values()) == 24


def streamed(monkeypatch: pytest.MonkeyPatch, paths: list[str], labels: list[str]) -> Any:
    """A data set of the hub that names its pictures, `hub:somebody/stripes`, and a recipe for it."""
    import datasets

    cells = [{"bytes": None, "path": path} for path in paths]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("string")})
    rows = datasets.Dataset.from_dict({"image": cells, "label": labels}, features=features)
    monkeypatch.setattr("tunesmith.catalog.hub_dataset", lambda name: rows.to_iterable_dataset())
    asked = recipe(Path("none"), Path("none"))
    return asked.model_copy(update={"data": Data(train=["hub:somebody/stripes"])})


def test_hub_data_open_no_file_of_this_machine_and_none_of_other_repositories(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    private = draw(tmp_path / "private", 2) / "flat" / "0.png"
    monkeypatch.chdir(tmp_path)
    paths = [
        str(private),
        "private/flat/0.png",
        f"file://{private}",
        "https://example.com/a.png",
        "hf://datasets/somebody/else@0123/a.png",
        "hf://datasets/somebody/stripes@0123/../../else/a.png",
        f"hf://datasets/somebody/stripes@0123/a.png::file://{private}",
        f"file://{private}::hf://datasets/somebody/stripes@0123/a.png",
    ]
    opened: list[str] = []
    monkeypatch.setattr("datasets.utils.file_utils.xopen", lambda path, *_, **__: opened.append(path))
    report = check(streamed(monkeypatch, paths, ["flat", "upright"] * 4))
    found = [problem for problem in report.errors if problem.code == "unreadable-picture"]
    places = {str(place) for problem in found for place in problem.where}
    assert sum(problem.count for problem in found) == len(paths) and "hub:somebody/stripes:1" in places
    assert all("not in it" in problem.message and "hf download" in str(problem.fix) for problem in found)
    assert not opened


def test_pictures_that_lie_in_the_hubs_repository_are_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = sorted(draw(tmp_path / "pictures", 24).rglob("*.png"))
    home = "hf://datasets/somebody/stripes@0123abc"
    there = {f"{home}/{file.parent.name}/{file.name}": file for file in files[:12]}
    there |= {f"zip://{file.name}::{home}/data.zip": file for file in files[12:]}

    def xopen(path: str, mode: str, **options: Any) -> Any:
        if path not in there:
            raise FileNotFoundError(path)
        return there[path].open(mode)

    monkeypatch.setattr("datasets.utils.file_utils.xopen", xopen)
    labels = [file.parent.name for file in files]
    asked = streamed(monkeypatch, [*there, f"{home}/gone.png"], [*labels, "flat"])
    report = check(asked)
    assert [str(place) for problem in report.errors for place in problem.where] == ["hub:somebody/stripes:25"]

    def broken(path: str, mode: str, **options: Any) -> Any:
        raise ConnectionError("peer closed the connection")

    monkeypatch.setattr("datasets.utils.file_utils.xopen", broken)
    with pytest.raises(ResourceError, match="peer closed the connection") as caught:
        check(asked)
    assert caught.value.where == "hub:somebody/stripes:1"


def test_paths_inside_a_parquet_file_count_from_its_folder(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    pictures = draw(tmp_path / "pictures", 24)
    files = sorted(pictures.rglob("*.png"))
    cells = [{"bytes": None, "path": str(file.relative_to(pictures))} for file in files]
    kind = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    columns = {"image": pyarrow.array(cells, kind), "label": [file.parent.name for file in files]}
    pyarrow.parquet.write_table(pyarrow.table(columns), pictures / "train.parquet")
    report = check(recipe(Path("none"), pictures / "train.parquet"))
    assert not report.errors and sum(report.rows.values()) == 24


def test_only_a_run_keeps_the_pictures_of_a_table(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    table = parquet(draw(tmp_path / "pictures", 40), tmp_path / "train.parquet")
    run = pipeline.run(recipe(model, table), run_dir=tmp_path / "run")
    passing = tmp_path / "passing"
    passing.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(passing))
    seen: list[Path] = []
    unpack = pictures_module.unpacked
    monkeypatch.setattr("tunesmith.data.pictures.unpacked", lambda content: seen.append(unpack(content)) or seen[-1])
    monkeypatch.setattr("os.fsync", lambda descriptor: pytest.fail("waits for the disk"))
    assert not check(recipe(model, table)).errors
    assert main.run(["predict", str(run.path), str(table), "--batch", "16"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 40
    assert len(set(seen)) == 80 and all(path.is_relative_to(passing) for path in seen)
    assert not list(passing.rglob("tunesmith-pictures-*"))
    assert not (tmp_path / "cache" / "pictures").exists()


def test_a_picture_that_was_cut_short_is_unpacked_again(tmp_path: Path) -> None:
    with pictures_module.unpacked_into(tmp_path):
        path = pictures_module.unpacked(b"content")
        path.write_bytes(b"")
        with pictures_module.unpacked_for_now():
            assert pictures_module.unpacked(b"content") == path and path.read_bytes() == b"content"


def test_the_reason_for_pictures_without_a_path_is_told_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(source: Any) -> Any:
        raise OSError("None of the tiles is whole")

    monkeypatch.setattr("PIL.Image.open", refuse)
    with pytest.raises(DataError, match="cannot be read as a picture: None of the tiles is whole"):
        read_picture(b"content")
