"""Several adapters on one base: switching, combining, merging and taking out, against each model loaded alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import tiny
from tunesmith.adapter_set import AdapterSet
from tunesmith.errors import NotFoundError, UsageError
from tunesmith.models.merging import merge_artefact
from tunesmith.models.saving import load_artefact, save_artefact
from tunesmith.recipe import LoRA, Parameters, Prompt


def saved(
    base: Path,
    folder: Path,
    seed: int,
    choice: Parameters | None = None,
    form: Any = "generate",
    dtype: torch.dtype = torch.float32,
) -> Path:
    """An adapter with random weights, which stand for what it learned."""
    model = tiny.build(base, form, choice or LoRA(rank=2), dtype=dtype)
    torch.manual_seed(seed)
    with torch.no_grad():
        for _, parameter in model.trainable():
            parameter.normal_(std=0.3)
    save_artefact(model, folder, task="text-generation", system_prompt=None)
    return folder


@torch.no_grad()
def scores(model: Any) -> torch.Tensor:
    ids = torch.tensor([model.tokenizer("the film was very good")["input_ids"]])
    return model.transformer()(input_ids=ids).logits


@pytest.fixture
def folders(tiny_decoder: Path, tmp_path: Path) -> dict[str, Path]:
    return {name: saved(tiny_decoder, tmp_path / name, seed) for seed, name in enumerate(("law.v1", "code"))}


def test_switching_gives_each_run_its_own_answers(folders: dict[str, Path], tiny_decoder: Path) -> None:
    adapters = AdapterSet(folders)
    for name in ("code", "law.v1", "code"):
        adapters.use(name)
        assert torch.equal(scores(adapters.model), scores(load_artefact(folders[name])[0]))
    adapters.use(None)
    torch.testing.assert_close(
        scores(adapters.model), scores(tiny.build(tiny_decoder, "generate", dtype=torch.float32))
    )
    adapters.use("law.v1")
    assert len(adapters.predict(["the film"], max_new_tokens=2)) == 1


def test_merging_and_taking_out_again(folders: dict[str, Path]) -> None:
    adapters = AdapterSet(folders)
    before = scores(adapters.model)
    weight = dict(adapters.model.network.named_parameters())
    wide = next(p for name, p in weight.items() if name.endswith("q_proj.base_layer.weight"))
    start = wide.detach().clone()
    adapters.merge()
    assert not torch.equal(wide, start)
    torch.testing.assert_close(scores(adapters.model), before, rtol=1e-4, atol=1e-4)
    adapters.unmerge()
    torch.testing.assert_close(wide.detach(), start, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(scores(adapters.model), before, rtol=1e-4, atol=1e-4)


def test_a_linear_combination_is_the_weighted_sum_of_the_updates(folders: dict[str, Path]) -> None:
    adapters = AdapterSet(folders)
    layer: Any = adapters.model.blocks()[0].self_attn.q_proj
    parts = [layer.get_delta_weight(inner) for inner in ("default", "a1")]
    adapters.combine("one", {"code": 1.0}, how="linear")
    torch.testing.assert_close(layer.get_delta_weight("a2"), parts[1], rtol=1e-4, atol=1e-5)
    assert adapters.active == "one"
    adapters.combine("sum", {"law.v1": 0.7, "code": -0.2}, how="linear")
    torch.testing.assert_close(layer.get_delta_weight("a3"), 0.7 * parts[0] - 0.2 * parts[1], rtol=1e-4, atol=1e-5)
    for how in ("ties", "dare_linear", "dare_ties"):
        adapters.combine(f"both by {how}", {"law.v1": 0.5, "code": 0.5}, how=how)
        assert torch.isfinite(scores(adapters.model)).all()
    with pytest.raises(UsageError, match="already"):
        adapters.combine("code", {"law.v1": 1.0})
    with pytest.raises(NotFoundError, match="no adapter 'lore'"):
        adapters.use("lore")


@pytest.mark.filterwarnings("ignore:The density")
@pytest.mark.parametrize("how", ["linear", "ties", "dare_linear"])
@pytest.mark.parametrize("choice", [LoRA(rank=10), LoRA(rank=4, rslora=True), LoRA(rank=2, rank_pattern={"q_proj": 5})],
                         ids=["more rank than a layer is wide", "rslora", "pattern"])  # fmt: skip
def test_equal_adapters_of_any_rank_are_their_mean(choice: LoRA, how: Any, tiny_decoder: Path, tmp_path: Path) -> None:
    """With all values kept, also TIES and DARE give back what two equal adapters are."""
    one, other = (saved(tiny_decoder, tmp_path / name, 1, choice) for name in ("one", "other"))
    adapters = AdapterSet({"one": one, "other": other})
    before = scores(adapters.model)
    # TIES takes the mean of those that agree by itself.
    adapters.combine("both", dict.fromkeys(("one", "other"), 1.0 if how == "ties" else 0.5), how=how, density=1.0)
    torch.testing.assert_close(scores(adapters.model), before, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("how", ["linear", "ties", "dare_linear", "dare_ties"])
def test_adapters_on_a_narrow_base_combine_and_answer(how: Any, tiny_decoder: Path, tmp_path: Path) -> None:
    folders = {name: saved(tiny_decoder, tmp_path / name, seed, dtype=torch.bfloat16) for seed, name in enumerate("ab")}
    adapters = AdapterSet(folders)
    adapters.combine("both", {"a": 0.5, "b": 0.5}, how=how)
    assert {p.dtype for p in adapters.model.network.parameters()} == {torch.bfloat16}
    assert len(adapters.predict(["the film"], max_new_tokens=2)) == 1


def test_more_than_low_rank_products_are_not_combined(tiny_decoder: Path, tmp_path: Path) -> None:
    folders = {name: saved(tiny_decoder, tmp_path / name, 0, LoRA(rank=2, dora=True)) for name in "ab"}
    with pytest.raises(UsageError, match="low-rank"):
        AdapterSet(folders).combine("both", {"a": 0.5, "b": 0.5})


def test_what_cannot_share_a_base_is_refused(folders: dict[str, Path], tiny_encoder: Path, tmp_path: Path) -> None:
    base = folders["law.v1"]
    other = Path(load_artefact(base)[1].base_folder)
    with pytest.raises(UsageError, match="a head of its own"):
        AdapterSet({"a": saved(tiny_encoder, tmp_path / "head", 0, form="classify")})
    with pytest.raises(UsageError, match="virtual tokens"):
        AdapterSet({"a": saved(other, tmp_path / "prompt", 0, Prompt(kind="prompt-tuning", tokens=2))})
    with pytest.raises(UsageError, match="do not share a base"):
        quantized = saved(other, tmp_path / "narrow", 0, LoRA(rank=2, quantization="int4"))
        AdapterSet({"a": base, "b": quantized})


def test_a_merged_model_stands_alone_and_is_not_written_over(folders: dict[str, Path], tmp_path: Path) -> None:
    merge_artefact(folders["code"], tmp_path / "whole")
    alone, notes = load_artefact(tmp_path / "whole")
    assert not notes.adapter and not alone.has_adapters
    torch.testing.assert_close(scores(alone), scores(load_artefact(folders["code"])[0]), rtol=1e-4, atol=1e-5)
    with pytest.raises(UsageError, match="exists already"):
        merge_artefact(folders["code"], tmp_path / "whole")
    with pytest.raises(UsageError, match="whole already"):
        merge_artefact(tmp_path / "whole", tmp_path / "again")
