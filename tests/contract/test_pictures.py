"""Pictures: found, read, refused by path, turned into vectors once, and learned from through the whole pipeline."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import tunesmith
from tunesmith import pipeline
from tunesmith.cli import main
from tunesmith.data.pictures import read_picture
from tunesmith.data.prepare import check
from tunesmith.errors import DataError, RecipeError, UsageError
from tunesmith.models import vision
from tunesmith.models.efficientnet import EfficientNetLite0, SameConv2d
from tunesmith.recipe_file import parse


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random EfficientNet-Lite0 in the catalog's layout, for small pictures."""
    folder = tmp_path_factory.mktemp("vision")
    torch.manual_seed(0)
    save_file(EfficientNetLite0().state_dict(), folder / "model.safetensors")
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


def test_unreadable_pictures_are_named_by_their_path(model: Path, tmp_path: Path) -> None:
    pictures = draw(tmp_path / "pictures", 24)
    whole = (pictures / "flat" / "0.png").read_bytes()
    (pictures / "flat" / "half.png").write_bytes(whole[: len(whole) // 2])
    (pictures / "flat" / "text.jpg").write_text("no picture")
    report = check(recipe(model, pictures))
    places = {str(place) for problem in report.errors for place in problem.where}
    assert places == {str(pictures / "flat" / "half.png"), str(pictures / "flat" / "text.jpg")}
    assert all(problem.code == "unreadable-picture" for problem in report.errors)


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
    with pytest.raises(RecipeError, match="method: features"):
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
