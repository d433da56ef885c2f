"""What is saved is what others load: plain transformers and PEFT give the same logits, and so do we."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import tiny
from conftest import labelled_rows, sentences
from tunesmith import catalog
from tunesmith.catalog import cache
from tunesmith.errors import NotFoundError, ResourceError
from tunesmith.models import inference
from tunesmith.models.bases import KEYS, find_base, renamed
from tunesmith.models.model import Model
from tunesmith.models.saving import load_artefact, read_notes, save_artefact
from tunesmith.recipe import Full, Layers, LoRA, Parameters

TEXTS = sentences(6, seed=8)


def trained(folder: Path, form: Any, parameters: Parameters, place: Path, dtype: torch.dtype = torch.float32) -> Model:
    """A model after a few updates that are large enough to be seen in every logit."""
    values: list[dict[str, Any]] = labelled_rows(24) if form == "classify" else [*tiny.question_rows(24)]
    model = tiny.build(folder, form, parameters, dtype=dtype)
    tiny.trainer(
        model, values, place / "training", kind=parameters.kind, batch_size=8, max_steps=6, learning_rate=1e-2
    ).run()
    model.network.eval()
    return model


def saved(model: Model, place: Path) -> Path:
    task = "text-classification" if model.form == "classify" else "text-generation"
    save_artefact(model, place / "model", task=task, system_prompt=None)
    return place / "model"


def logits(network: Any, tokenizer: Any) -> torch.Tensor:
    """The logits that plain code gets: one text at a time, with the tokenizer's own call."""
    network.eval()
    with torch.no_grad():
        outputs = [network(**tokenizer(text, return_tensors="pt")).logits for text in TEXTS]
    return torch.cat([output.reshape(-1, output.shape[-1]) for output in outputs])


@pytest.mark.parametrize("parameters", [Full(), Layers(layers="last 1")], ids=lambda p: p.kind)
def test_a_decoder_loads_with_plain_transformers(parameters: Parameters, tiny_decoder: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = trained(tiny_decoder, "generate", parameters, tmp_path)
    folder = saved(model, tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.chat_template == model.tokenizer.chat_template
    theirs = logits(AutoModelForCausalLM.from_pretrained(folder), tokenizer)
    torch.testing.assert_close(theirs, logits(model.network, model.tokenizer), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(theirs, logits(AutoModelForCausalLM.from_pretrained(tiny_decoder), tokenizer), atol=1e-3)


def test_an_adapter_loads_with_plain_peft(tiny_decoder: Path, tmp_path: Path) -> None:
    import peft
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = trained(tiny_decoder, "generate", LoRA(rank=4), tmp_path)
    folder = saved(model, tmp_path)
    assert (folder / "adapter_model.safetensors").is_file() and not (folder / "model.safetensors").exists()
    base = AutoModelForCausalLM.from_pretrained(tiny_decoder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    untuned = logits(base, tokenizer)
    theirs = logits(peft.PeftModel.from_pretrained(base, folder), tokenizer)
    torch.testing.assert_close(theirs, logits(model.network, model.tokenizer), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(theirs, untuned, atol=1e-3)
    found = peft.AutoPeftModelForCausalLM.from_pretrained(folder)  # the base is found by its name in the adapter
    torch.testing.assert_close(logits(found, tokenizer), theirs)


def test_a_stock_classifier_loads_with_plain_transformers(tiny_bert: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model = trained(tiny_bert, "classify", Full(), tmp_path)
    folder = saved(model, tmp_path)
    theirs = AutoModelForSequenceClassification.from_pretrained(folder)
    assert theirs.config.id2label == {0: "negative", 1: "positive"}
    found = logits(theirs, AutoTokenizer.from_pretrained(folder))
    torch.testing.assert_close(found, logits(model.network, model.tokenizer), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("base", ["tiny_bert", "tiny_decoder"])
def test_a_classifying_adapter_loads_with_plain_peft(base: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    import peft
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    folder_of_base = request.getfixturevalue(base)
    model = trained(folder_of_base, "classify", LoRA(rank=4), tmp_path)
    folder = saved(model, tmp_path)
    plain = AutoModelForSequenceClassification.from_pretrained(folder_of_base, num_labels=2)
    theirs = logits(peft.PeftModel.from_pretrained(plain, folder), AutoTokenizer.from_pretrained(folder))
    torch.testing.assert_close(theirs, logits(model.network, model.tokenizer), rtol=1e-5, atol=1e-5)


def sentence_logits(encoder: nn.Module, tokenizer: Any, head: dict[str, torch.Tensor]) -> torch.Tensor:
    """Mean of the real tokens' last hidden states, then the Dense module: written out."""
    encoder.eval()
    with torch.no_grad():
        means = [encoder(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].mean(0) for text in TEXTS]
    return torch.stack(means) @ head["linear.weight"].T + head["linear.bias"]


def our_logits(model: Model) -> np.ndarray:
    examples = [model.tokenizer(text)["input_ids"] for text in TEXTS]
    return inference.class_probabilities(model, examples)


@pytest.mark.parametrize("parameters", [Full(), LoRA(rank=4)], ids=lambda p: p.kind)
def test_a_sentence_classifier_is_encoder_pooling_and_dense(
    parameters: Parameters, tiny_encoder: Path, tmp_path: Path
) -> None:
    from transformers import AutoModel, AutoTokenizer

    model = trained(tiny_encoder, "classify", parameters, tmp_path)
    folder = saved(model, tmp_path)
    if parameters.kind == "lora":
        import peft

        encoder: Any = peft.PeftModel.from_pretrained(AutoModel.from_pretrained(tiny_encoder), folder)
    else:
        encoder = AutoModel.from_pretrained(folder)
    head = load_file(folder / "2_Dense" / "model.safetensors")
    theirs = sentence_logits(encoder, AutoTokenizer.from_pretrained(folder), head)
    np.testing.assert_allclose(torch.softmax(theirs.double(), -1).numpy(), our_logits(model), rtol=1e-4)


@pytest.mark.skipif(
    importlib.util.find_spec("sentence_transformers") is None, reason="sentence-transformers is not installed"
)
def test_sentence_transformers_gives_the_logits(tiny_encoder: Path, tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer

    model = trained(tiny_encoder, "classify", Full(), tmp_path)
    theirs = SentenceTransformer(str(saved(model, tmp_path)), device="cpu").encode(TEXTS)
    found = torch.softmax(torch.as_tensor(theirs, dtype=torch.float64), -1)
    np.testing.assert_allclose(found.numpy(), our_logits(model), rtol=1e-4)


CASES = [
    ("tiny_encoder", "classify"),
    ("tiny_bert", "classify"),
    ("tiny_decoder", "classify"),
    ("tiny_decoder", "generate"),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("parameters", [Full(), LoRA(rank=4)], ids=lambda p: p.kind)
@pytest.mark.parametrize(("base", "form"), CASES)
def test_we_read_back_what_we_wrote(
    base: str, form: str, parameters: Parameters, dtype: torch.dtype, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """Bit for bit, in the precision in which it was measured."""
    model = trained(request.getfixturevalue(base), form, parameters, tmp_path, dtype)
    again, notes = load_artefact(saved(model, tmp_path))
    assert again.dtype == dtype and notes.form == form and notes.adapter == (parameters.kind == "lora")
    assert again.eos_ids == model.eos_ids and again.max_length == model.max_length
    if form == "classify":
        assert again.labels == tiny.LABELS
        assert np.array_equal(our_logits(model), our_logits(again))
    else:
        assert torch.equal(logits(model.network, model.tokenizer), logits(again.network, again.tokenizer))


def test_a_folder_without_a_model_is_no_artefact(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no tuned model here") as caught:
        read_notes(tmp_path)
    assert caught.value.where == str(tmp_path) and caught.value.fix


def test_an_adapter_whose_base_is_gone_says_so(tiny_decoder: Path, tmp_path: Path) -> None:
    import shutil

    base = Path(shutil.copytree(tiny_decoder, tmp_path / "base"))
    folder = saved(tiny.build(base, "generate", LoRA(rank=4)), tmp_path)
    shutil.rmtree(base)
    with pytest.raises(ResourceError, match="base model of this adapter") as caught:
        load_artefact(folder)
    assert str(base) in caught.value.what and "base_folder" in str(caught.value.fix)


def test_a_full_disk_is_told(tiny_decoder: Path, tmp_path: Path) -> None:
    model = tiny.build(tiny_decoder, "generate")
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ResourceError, match="cannot write the model"):
        save_artefact(model, tmp_path / "file", task="text-generation", system_prompt=None)


def test_an_adapter_finds_its_base_where_its_notes_say(tiny_decoder: Path, tmp_path: Path) -> None:
    import shutil

    base = Path(shutil.copytree(tiny_decoder, tmp_path / "base"))
    folder = saved(tiny.build(base, "generate", LoRA(rank=4)), tmp_path)
    base.rename(tmp_path / "moved")
    notes = json.loads((folder / "tunesmith.json").read_text(encoding="utf-8"))
    (folder / "tunesmith.json").write_text(json.dumps(notes | {"base_folder": str(tmp_path / "moved")}))
    assert load_artefact(folder)[0].folder == tmp_path / "moved"


def test_an_adapter_on_a_model_of_the_catalog_finds_it_in_another_cache(
    tiny_decoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    name = "smollm2-135m-instruct"
    for place in ("here", "there"):
        monkeypatch.setenv("TUNESMITH_CACHE", str(tmp_path / place))
        cache.ensure(
            cache.root() / "model" / name,
            lambda staging: shutil.copytree(tiny_decoder, staging, dirs_exist_ok=True) and {},
            key=catalog._key(catalog.ENTRIES[name]),
        )
    monkeypatch.setenv("TUNESMITH_CACHE", str(tmp_path / "here"))
    base = catalog.model_folder(name)
    model = trained(base, "generate", LoRA(rank=4), tmp_path)
    folder = saved(model, tmp_path)
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    assert config["base_model_name_or_path"] == str(base)  # PEFT knows no catalog
    monkeypatch.setenv("TUNESMITH_CACHE", str(tmp_path / "there"))
    shutil.rmtree(tmp_path / "here")
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).mkdir()  # a folder of that name here is another model
    again, notes = load_artefact(folder)
    assert again.folder == tmp_path / "there" / "model" / name and notes.base_name == name
    assert torch.equal(logits(model.network, model.tokenizer), logits(again.network, again.tokenizer))
    shutil.rmtree(tmp_path / "there" / "model" / name)
    with pytest.raises(ResourceError, match=f"{name}, is not on this machine"):
        find_base(notes, folder, fetch=False)


def test_an_adapter_on_a_model_of_the_hub_names_its_id(
    tiny_decoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    import huggingface_hub.constants
    import peft

    commit = "a" * 40
    snapshot = Path("models--somebody--small") / "snapshots" / commit
    base = Path(shutil.copytree(tiny_decoder, tmp_path / "here" / snapshot))
    model = trained(base, "generate", LoRA(rank=4), tmp_path)
    folder = saved(model, tmp_path)
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    assert (config["base_model_name_or_path"], config["revision"]) == ("somebody/small", commit)

    (tmp_path / "here").rename(tmp_path / "there")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "there"))
    again, notes = load_artefact(folder)
    assert again.folder == tmp_path / "there" / snapshot
    assert (notes.base_name, notes.base_revision) == ("somebody/small", commit)
    expected = logits(model.network, model.tokenizer)
    assert torch.equal(expected, logits(again.network, again.tokenizer))
    plain = peft.AutoPeftModelForCausalLM.from_pretrained(
        folder, cache_dir=str(tmp_path / "there"), local_files_only=True
    )
    torch.testing.assert_close(logits(plain, model.tokenizer), expected, rtol=1e-5, atol=1e-5)

    values = json.loads((folder / "tunesmith.json").read_text(encoding="utf-8"))
    older = {key: value for key, value in values.items() if key not in ("base_name", "base_revision")}
    (folder / "tunesmith.json").write_text(json.dumps(older), encoding="utf-8")
    assert read_notes(folder) == notes


def test_every_key_that_names_the_base_is_renamed() -> None:
    path = "/home/me/models/base"
    found = renamed({key: path for key in KEYS} | {"tokenizer_name_or_path": None, "r": 4}, "base")
    assert found == dict.fromkeys(KEYS, "base") | {"tokenizer_name_or_path": None, "r": 4}
    assert renamed({"tokenizer_name_or_path": path}, "base") == {"tokenizer_name_or_path": "base"}
