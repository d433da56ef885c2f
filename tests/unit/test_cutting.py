"""A smaller model cut from a larger one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from tunesmith.errors import RecipeError
from tunesmith.models.cutting import cut, fingerprint, kept_layers
from tunesmith.models.load import load_model
from tunesmith.models.settings import Student


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNESMITH_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize(
    ("total", "kept", "expected"),
    [(6, 3, [0, 3, 5]), (6, 6, [0, 1, 2, 3, 4, 5]), (6, 1, [0]), (30, 2, [0, 29]), (12, 6, [0, 2, 4, 7, 9, 11])],
)
def test_layers_are_evenly_spaced_with_the_first_and_the_last(total: int, kept: int, expected: list[int]) -> None:
    assert kept_layers(total, kept) == expected


@pytest.mark.parametrize("fixture", ["tiny_encoder", "tiny_bert", "tiny_decoder"])
def test_what_is_kept_has_the_weights_it_had(fixture: str, request: pytest.FixtureRequest) -> None:
    source = request.getfixturevalue(fixture)
    found = cut(source, Student(layers=1))
    whole, student = (load_model(folder, name="tiny").network.state_dict() for folder in (source, found))
    shared = {name for name in student if "layer" not in name or ".0." in name}
    assert shared == set(student)
    for name in shared - {"classifier.weight", "classifier.bias"}:  # a head that neither had
        assert torch.equal(student[name], whole[name]), name
    assert (found / "tokenizer.json").is_file()
    assert (found / "1_Pooling").is_dir() == (source / "1_Pooling").is_dir()


@pytest.mark.parametrize("fixture", ["tiny_encoder", "tiny_decoder"])
def test_silent_neurons_go_first(fixture: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """With half of the neurons silenced, the narrower model gives what the whole one gives."""
    from transformers import AutoModel, AutoModelForCausalLM

    kind = AutoModelForCausalLM if fixture == "tiny_decoder" else AutoModel
    source = shutil.copytree(request.getfixturevalue(fixture), tmp_path / "source")
    network = kind.from_pretrained(source)
    silent = torch.randperm(64, generator=torch.Generator().manual_seed(0))[:32]
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, torch.nn.Linear) and module.out_features == 64:
                module.weight[silent] = 0
                if module.bias is not None:
                    module.bias[silent] = 0
            elif isinstance(module, torch.nn.Linear) and module.in_features == 64:
                module.weight[:, silent] = 0
    network.save_pretrained(source)
    narrow = kind.from_pretrained(cut(source, Student(neurons=0.5)))
    assert narrow.config.intermediate_size == 32
    ids = torch.tensor([[5, 6, 7, 8]])
    for one, other in zip(network(ids)[:1], narrow(ids)[:1], strict=True):
        torch.testing.assert_close(one, other)


def test_a_cut_model_is_made_once_and_again_when_its_source_changes(tiny_decoder: Path, tmp_path: Path) -> None:
    source = shutil.copytree(tiny_decoder, tmp_path / "source")
    first = cut(source, Student(layers=1))
    made = (first / "model.safetensors").stat().st_mtime_ns
    assert cut(source, Student(layers=1)) == first
    assert (first / "model.safetensors").stat().st_mtime_ns == made
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    (source / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 1e-4}), encoding="utf-8")
    assert cut(source, Student(layers=1)) != first
    assert fingerprint(source) != fingerprint(tiny_decoder)


def test_what_the_configuration_says_of_each_layer_is_cut_too(tmp_path: Path) -> None:
    from transformers import Qwen3Config, Qwen3ForCausalLM

    config = Qwen3Config(
        vocab_size=50, hidden_size=16, intermediate_size=24, num_hidden_layers=4, num_attention_heads=2,
        num_key_value_heads=2, head_dim=8, use_sliding_window=True, sliding_window=8, max_window_layers=2,
    )  # fmt: skip
    kinds = list(config.layer_types)
    Qwen3ForCausalLM(config).save_pretrained(tmp_path / "source")
    found = cut(tmp_path / "source", Student(layers=2))
    written = json.loads((found / "config.json").read_text(encoding="utf-8"))
    assert written["layer_types"] == [kinds[0], kinds[3]] and kinds[0] != kinds[3]
    Qwen3ForCausalLM.from_pretrained(found)(torch.tensor([[1, 2, 3]]))


def test_an_encoder_decoder_is_refused(tiny_t5: Path) -> None:
    with pytest.raises(RecipeError, match="encoder-decoder"):
        cut(tiny_t5, Student(layers=1))
