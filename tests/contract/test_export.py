"""`tunesmith export` and `push`: what is written answers in its consumer's library as the run does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import tiny
import tunesmith
from conftest import labelled_rows, write_jsonl
from tunesmith import runs
from tunesmith.cli.main import run as cli
from tunesmith.compression import gguf_file, llama_cpp
from tunesmith.compression.export import export_run
from tunesmith.compression.push import push
from tunesmith.errors import NotFoundError, ResourceError, UsageError
from tunesmith.events import Notice, nobody
from tunesmith.models.load import load_model


@pytest.fixture(scope="session")
def classifier(tiny_encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> runs.Run:
    folder = tmp_path_factory.mktemp("exported-classifier")
    write_jsonl(folder / "rows.jsonl", labelled_rows(80))
    return tunesmith.tune(
        str(folder / "rows.jsonl"), task="text-classification", model=str(tiny_encoder), method="full",
        run_dir=folder / "run", on_event=nobody, training={"max_steps": 4}, precision="fp32",
        evaluate={"baselines": []},
    )  # fmt: skip


@pytest.fixture(scope="session")
def writer(tiny_decoder: Path, tmp_path_factory: pytest.TempPathFactory) -> runs.Run:
    folder = tmp_path_factory.mktemp("exported-writer")
    write_jsonl(folder / "rows.jsonl", tiny.question_rows(40))
    return tunesmith.tune(
        str(folder / "rows.jsonl"), task="text-generation", model=str(tiny_decoder), method="peft",
        run_dir=folder / "run", on_event=nobody, training={"max_steps": 6, "learning_rate": 1e-2}, precision="fp32",
        evaluate={"baselines": [], "limit": 10, "generation": {"max_new_tokens": 2}},
    )  # fmt: skip


def by_transformers(made: dict[str, Any]) -> dict[str, Any]:
    return next(one for one in made["verified"] if one["by"] in ("transformers", "peft", "onnxruntime"))


def test_the_command_prints_the_difference_and_keeps_it(
    writer: runs.Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "whole"
    assert cli(["export", str(writer.path), "--to", "safetensors", "--dir", str(target), "--rows", "3", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["verified"][0]["largest_difference"] < 1e-5 and told["verified"][0]["same_choice"] == 1.0
    kept = json.loads((target / "verification.json").read_text())
    assert kept[0]["rows"] == 3 and kept[0]["by"] == "transformers"
    card = (target / "README.md").read_text()
    assert "Verified" in card and "licence" in card and "Intended use" in card
    assert not (target / "adapter_config.json").exists()


@pytest.mark.parametrize("outtype", ["f32", "f16", "q8_0", "q4_0"])
def test_gguf_is_read_back_with_the_same_scores(writer: runs.Run, tmp_path: Path, outtype: str) -> None:
    made = export_run(writer, "gguf", target=tmp_path / outtype, outtype=outtype, rows=3)
    found = by_transformers(made)
    limit = {"f32": 1e-5, "f16": 2e-3, "q8_0": 2e-2, "q4_0": 0.3}[outtype]
    assert found["largest_difference"] < limit * found["largest_score"] + 1e-6
    if outtype in ("f32", "f16"):
        assert found["same_choice"] == 1.0
    modelfile = (tmp_path / outtype / "Modelfile").read_text()
    assert f"FROM ./model-{outtype}.gguf" in modelfile and 'PARAMETER stop "<|im_end|>"' in modelfile
    assert "TEMPLATE" in modelfile  # ChatML, in Ollama's own language


def test_gguf_holds_tokenizer_and_chat_template(writer: runs.Run, tmp_path: Path) -> None:
    from gguf import GGUFReader
    from transformers import AutoTokenizer

    export_run(writer, "gguf", target=tmp_path / "out", rows=1)
    file = tmp_path / "out" / "model-f16.gguf"
    reader = GGUFReader(file)
    tokenizer = AutoTokenizer.from_pretrained(writer.model_folder)
    assert reader.get_field("tokenizer.chat_template").contents() == tokenizer.chat_template  # type: ignore[union-attr]
    assert reader.get_field("tokenizer.ggml.eos_token_id").contents() == tokenizer.eos_token_id  # type: ignore[union-attr]
    assert reader.get_field("tokenizer.ggml.pre").contents() == "gpt-2"  # type: ignore[union-attr]
    again = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    text = "what is the capital of spain please"
    assert again(text)["input_ids"] == tokenizer(text)["input_ids"]


@pytest.mark.skipif(not llama_cpp.installed(), reason="needs the extra `llama-cpp`")
def test_llama_cpp_writes_the_same_tokens(writer: runs.Run, tmp_path: Path) -> None:
    made = export_run(writer, "gguf", target=tmp_path / "out", outtype="f16", rows=2)
    assert made["verified"][1]["same_choice"] == 1.0


@pytest.mark.parametrize("kind", ["qwen2", "qwen3"])
def test_other_architectures_are_read_back_too(kind: str, tiny_decoder: Path, tmp_path: Path) -> None:
    import transformers

    from tunesmith.compression import verify

    config = transformers.AutoConfig.for_model(
        kind, vocab_size=500, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=128, tie_word_embeddings=False,
        head_dim={"qwen3": 128}.get(kind, 8),  # transformers reads no other width of qwen3 from GGUF
    )  # fmt: skip
    torch.manual_seed(0)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny_decoder)
    config.vocab_size = len(tokenizer)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    model = load_model(tmp_path / "model", name=kind)
    gguf_file.refuse_unknown(model, "f32")
    gguf_file.write_gguf(model, tmp_path / "model.gguf", "f32", name=kind, licence=None)
    ids = tokenizer("what is the capital of france please")["input_ids"]
    found = verify.compare(
        "transformers", verify.in_transformers(model, tmp_path, "model.gguf"), verify.own_scores(model), [ids]
    )
    assert found.largest_difference is not None and found.largest_difference < 1e-5


def test_an_adapter_goes_alone(writer: runs.Run, classifier: runs.Run, tmp_path: Path) -> None:
    made = export_run(writer, "adapter", target=tmp_path / "adapter", rows=2)
    assert by_transformers(made)["by"] == "peft" and by_transformers(made)["largest_difference"] < 1e-5
    assert "adapter_model.safetensors" in made["files"] and "model.safetensors" not in made["files"]
    with pytest.raises(UsageError, match="trained no adapter"):
        export_run(classifier, "adapter", target=tmp_path / "none")


def test_an_encoder_becomes_a_graph_that_takes_texts_of_any_length(classifier: runs.Run, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    made = export_run(classifier, "onnx", target=tmp_path / "graph", rows=4)
    assert by_transformers(made)["largest_difference"] < 1e-4
    assert json.loads((tmp_path / "graph" / "labels.json").read_text()) == ["negative", "positive"]


def test_a_decoder_becomes_a_graph_that_takes_padded_texts(writer: runs.Run, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    from tunesmith.compression.onnx_model import OnnxNetwork

    made = export_run(writer, "onnx", target=tmp_path / "graph", rows=3)
    found = by_transformers(made)
    assert found["largest_difference"] < 1e-4 and found["same_choice"] == 1.0
    assert not (tmp_path / "graph" / "labels.json").exists()
    graph, mask = OnnxNetwork(tmp_path / "graph" / "model.onnx"), torch.tensor([[1] * 7, [1] * 4 + [0] * 3])
    ids = torch.tensor([[5, 6, 7, 8, 9, 10, 11], [5, 6, 7, 8, 0, 0, 0]])
    padded = graph(ids, mask).logits
    alone = graph(ids[1:, :4], mask[1:, :4]).logits
    torch.testing.assert_close(padded[1, :4], alone[0], rtol=1e-4, atol=1e-5)


def test_a_graph_that_is_too_large_for_its_format_is_refused(
    writer: runs.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnxscript")
    from tunesmith.compression import onnx_model

    monkeypatch.setattr(onnx_model, "LARGEST", 1000)
    with pytest.raises(UsageError, match="ONNX files hold 2 GB"):
        export_run(writer, "onnx", target=tmp_path / "out", rows=1)
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_written_is_refused_and_leaves_nothing(
    writer: runs.Run, classifier: runs.Run, tmp_path: Path
) -> None:
    for run, to, keys, said in (
        (classifier, "gguf", {}, "GGUF is for models that write"),
        (writer, "gguf", {"outtype": "q4_k_m"}, "llama.cpp's own tool"),
        (writer, "gguf", {"outtype": "q9"}, "unknown format 'q9'"),
        (writer, "tflite", {}, "unknown format 'tflite'"),
    ):
        with pytest.raises(UsageError, match=said):
            export_run(run, to, target=tmp_path / "out", **keys)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_an_architecture_that_gguf_would_get_wrong_is_refused(writer: runs.Run, tmp_path: Path) -> None:
    from tunesmith.compression.quantize import load_original

    model: Any = load_original(writer)
    model.transformer().config.model_type = "mamba9"
    with pytest.raises(UsageError, match="the architecture `mamba9`"):
        gguf_file.refuse_unknown(model, "f16")


@pytest.mark.parametrize("to", ["safetensors", "adapter", "gguf", "onnx"])
def test_a_disk_that_fills_in_mid_export_leaves_nothing(writer: runs.Run, tmp_path: Path, to: Any) -> None:
    """Files may not grow beyond some size, which fails in the middle of one as a full disk does."""
    resource = pytest.importorskip("resource")
    if to == "onnx":
        pytest.importorskip("onnxscript")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4000, before[1]))
    try:
        with pytest.raises(ResourceError, match=r"cannot write|File too large|cannot export"):
            export_run(writer, to, target=tmp_path / "out", rows=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(tmp_path.iterdir()) == []


class Hub:
    """What the hub's API would have been told."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error
        self.made: dict[str, Any] = {}
        self.files: dict[str, str] = {}
        self.ignored: list[str] = []

    def create_repo(self, repo_id: str, *, private: bool, exist_ok: bool) -> None:
        if self.error:
            raise self.error
        self.made = {"repo": repo_id, "private": private}

    def upload_folder(self, *, repo_id: str, folder_path: str, ignore_patterns: list[str], commit_message: str) -> None:
        self.ignored = ignore_patterns

    def upload_file(self, *, path_or_fileobj: bytes, path_in_repo: str, repo_id: str) -> None:
        self.files[path_in_repo] = path_or_fileobj.decode()


def test_a_push_is_private_and_names_no_folder_of_this_machine(writer: runs.Run) -> None:
    hub = Hub()
    assert push(writer, "me/model", api=hub) == "https://huggingface.co/me/model"
    assert hub.made == {"repo": "me/model", "private": True}
    assert {"tunesmith.json", "adapter_config.json", "README.md"} == set(hub.files) == set(hub.ignored)
    assert not any(str(Path(writer.recipe.model).parent) in text for text in hub.files.values())
    assert not any(str(writer.path) in text for text in hub.files.values())


def test_what_the_hub_refuses_is_said_without_the_token(writer: runs.Run) -> None:
    with pytest.raises(ResourceError, match="did not take the upload") as caught:
        push(writer, "me/model", api=Hub(RuntimeError("401 for Bearer hf_planted_secret")))
    assert "hf_planted_secret" not in str(caught.value)
    with pytest.raises(UsageError, match="is no repository"):
        push(writer, "model", api=Hub())
    with pytest.raises(NotFoundError, match="has no export"):
        push(writer, "me/model", export="gguf-f16", api=Hub())


@pytest.fixture(scope="module")
def tagger(tiny_encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> runs.Run:
    folder = tmp_path_factory.mktemp("exported-tagger")
    write_jsonl(folder / "rows.jsonl", tiny.tagged_rows(60))
    return tunesmith.tune(
        str(folder / "rows.jsonl"), task="token-classification", model=str(tiny_encoder), method="peft",
        run_dir=folder / "run", on_event=nobody, training={"max_steps": 6, "learning_rate": 1e-2}, precision="fp32",
        evaluate={"baselines": []},
    )  # fmt: skip


def test_the_adapter_of_a_tagger_goes_alone_and_its_card_says_how_it_is_loaded(
    tagger: runs.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = export_run(tagger, "adapter", target=tmp_path / "adapter", rows=2)
    assert by_transformers(made)["largest_difference"] < 1e-5
    card = (tmp_path / "adapter" / "README.md").read_text(encoding="utf-8")
    code = card.split("Or without Tunesmith")[1].split("```python")[1].split("```")[0]
    monkeypatch.chdir(tmp_path / "adapter")
    loaded: dict[str, Any] = {}
    exec(code, loaded)  # as a reader of the card would
    assert loaded["model"].get_base_model().config.num_labels == 5


def test_the_columns_of_a_taggers_graph_are_named(tagger: runs.Run, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    export_run(tagger, "onnx", target=tmp_path / "graph", rows=2)
    names = json.loads((tmp_path / "graph" / "labels.json").read_text())
    assert names == ["O", "B-city", "I-city", "B-good", "I-good"]


def test_a_head_that_other_programs_do_not_read_is_said_to_be_so(tiny_encoder: Path, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "rows.jsonl", labelled_rows(60))
    run = tunesmith.tune(
        str(tmp_path / "rows.jsonl"), task="text-classification", model=str(tiny_encoder), method="features",
        parameters={"head": "knn"}, run_dir=tmp_path / "run", on_event=nobody, precision="fp32",
        evaluate={"baselines": []},
    )  # fmt: skip
    events = tiny.Events()
    made = export_run(run, "safetensors", target=tmp_path / "out", rows=2, on_event=events)
    assert made["verified"] == [] and any("not its head" in notice.message for notice in events.of(Notice))
    assert "and not its head" in (run.path / "model" / "README.md").read_text(encoding="utf-8")


def test_scores_that_are_no_numbers_are_no_agreement() -> None:
    from tunesmith.compression import verify

    with pytest.raises(ResourceError, match="no finite numbers"):
        verify.compare("torch", lambda ids: torch.tensor([float("nan"), 1.0]), lambda ids: torch.ones(2), [[1, 2]])


@pytest.mark.parametrize("given", [None, 'say "no"', 'three """ quotes'])
def test_ollama_gets_the_system_turn_that_was_trained_with(given: str | None, tiny_decoder: Path) -> None:
    model = load_model(tiny_decoder, name="tiny")
    own = "{{ '<|im_start|>system\\nYou are tiny.<|im_end|>\\n' }}" + str(model.tokenizer.chat_template)
    model.tokenizer.chat_template = own
    text = gguf_file.modelfile("m.gguf", model, given)
    [line] = [line for line in text.splitlines() if line.startswith("SYSTEM ")]
    wanted = {None: '"""You are tiny."""', 'say "no"': '"""say "no""""'}
    assert line == "SYSTEM " + wanted.get(given, json.dumps(given))
