"""What models in memory take, and that all of it together stays within the limit."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import tiny
from tunesmith.errors import UsageError
from tunesmith.generation.batch import Request, Token
from tunesmith.generation.sampling import Sampling
from tunesmith.models.load import load_model
from tunesmith.models.saving import load_artefact, read_notes, save_artefact
from tunesmith.recipe import LoRA, Prompt
from tunesmith.server.errors import ApiError
from tunesmith.server.model_sizes import artefact_bytes, bytes_per_token, loaded_bytes, stored_bytes
from tunesmith.server.pool import LEAST_TOKENS, Limits, Pool


@pytest.fixture(autouse=True)
def fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever this machine multiplies fast."""
    monkeypatch.setattr("tunesmith.models.precision.choose_dtype", lambda precision, device: torch.float32)


@pytest.fixture
def folders(tiny_decoder: Path, tiny_encoder: Path, tmp_path: Path) -> dict[str, Path]:
    """Two bases that write, one that does not, and an adapter on the first."""
    found = {"first": tiny_decoder, "second": tmp_path / "second", "encoder": tiny_encoder, "tuned": tmp_path / "tuned"}
    shutil.copytree(tiny_decoder, found["second"])
    model = tiny.build(tiny_decoder, "generate", LoRA(rank=4), dtype=torch.float32)
    save_artefact(model, found["tuned"], task="chat", system_prompt=None)
    return found


def opened(pool: Pool, name: str, folders: dict[str, Path]) -> Any:
    async def load() -> Any:
        async with pool.use(name, lambda: folders[name]) as loaded:
            return loaded

    return asyncio.run(load())


def total(pool: Pool) -> int:
    """Weights and room for keys and values, counted once more."""
    found = 0
    for host in pool.hosts():
        batch = getattr(host.engine, "_batch", None)
        found += loaded_bytes(host.model)  # with the adapters on it
        found += batch._cache_tokens * bytes_per_token(host.model) if batch else 0
    return found


@pytest.mark.parametrize("limit", [400_000, 520_000, 600_000])
def test_weights_and_caches_together_stay_within_the_limit(limit: int, folders: dict[str, Path]) -> None:
    pool = Pool(Limits(memory_bytes=limit))
    try:
        for name in ("first", "tuned", "second", "encoder", "first", "second"):
            opened(pool, name, folders)
            assert name in pool.names()
            assert total(pool) <= pool.bytes <= limit
        assert ("first" in pool.names()) is (limit == 600_000)
    finally:
        pool.close()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_count_in_the_precision_in_which_they_are_loaded(dtype: torch.dtype, tiny_decoder: Path) -> None:
    """Whatever they are stored in."""
    model = load_model(tiny_decoder, name="tiny", dtype=dtype)
    assert loaded_bytes(model) == pytest.approx(model.total_parameters * dtype.itemsize, rel=0.01)
    assert stored_bytes(tiny_decoder, dtype) == pytest.approx(loaded_bytes(model), rel=0.05)


@pytest.mark.parametrize("quantization", ["none", "int8", "int4"])
def test_what_a_run_made_counts_with_its_base(quantization: Any, folders: dict[str, Path], tmp_path: Path) -> None:
    settings = LoRA(rank=4, quantization=quantization)
    model = tiny.build(folders["first"], "generate", settings, dtype=torch.bfloat16)
    save_artefact(model, tmp_path / "run", task="chat", system_prompt=None)
    guessed = artefact_bytes(tmp_path / "run", read_notes(tmp_path / "run"))
    assert guessed == sum(stored_bytes(place, torch.bfloat16) for place in (folders["first"], tmp_path / "run"))
    loaded = loaded_bytes(load_artefact(tmp_path / "run")[0])
    assert loaded == pytest.approx(guessed, rel=0.3) if quantization == "none" else loaded < guessed


def test_weights_that_lie_there_twice_count_once(tiny_decoder: Path, tmp_path: Path) -> None:
    expected = stored_bytes(tiny_decoder, torch.float32)
    load_model(tiny_decoder, name="tiny", dtype=torch.float32).network.save_pretrained(
        tmp_path / "shards", max_shard_size="50KB"
    )
    for folder in (tmp_path / "shards", shutil.copytree(tiny_decoder, tmp_path / "one")):
        shutil.copy(tiny_decoder / "model.safetensors", folder / "consolidated.safetensors")
        assert stored_bytes(folder, torch.float32) == pytest.approx(expected, rel=0.1)


def test_an_adapter_is_served_on_the_weights_beside_which_it_learned(folders: dict[str, Path], tmp_path: Path) -> None:
    folders["narrow"] = tmp_path / "narrow"
    model = tiny.build(folders["first"], "generate", LoRA(rank=4, quantization="int8"), dtype=torch.float32)
    save_artefact(model, folders["narrow"], task="chat", system_prompt=None)
    pool = Pool(Limits(memory_bytes=10_000_000))
    try:
        assert opened(pool, "tuned", folders).adapter == "tuned"
        narrow = opened(pool, "narrow", folders)
        assert narrow.adapter is None and narrow.host.model.quantization == "int8"
    finally:
        pool.close()


def test_what_never_fits_is_told_from_what_must_wait(folders: dict[str, Path]) -> None:
    pool = Pool(Limits(memory_bytes=150_000))  # the weights alone would fit
    try:
        with pytest.raises(ApiError) as caught:
            opened(pool, "first", folders)
        assert (caught.value.status_code, caught.value.code) == (507, "model_too_large") and not pool.hosts()
        pool.limits = Limits(memory_bytes=220_000)
        host = opened(pool, "first", folders).host
        pool.limits = Limits(memory_bytes=host.bytes)
        with pytest.raises(ApiError) as caught:
            opened(pool, "tuned", folders)  # not beside its own base
        assert caught.value.code == "model_too_large"
    finally:
        pool.close()


def longer(base: Path, folder: Path) -> Path:
    """The same model with 4096 positions."""
    shutil.copytree(base, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 4096}))
    return folder


def test_small_models_share_a_large_memory(folders: dict[str, Path], tmp_path: Path) -> None:
    """None reserves what it can never use."""
    pool = Pool(Limits(memory_bytes=2**33))
    try:
        for number in range(5):
            folders[f"n{number}"] = shutil.copytree(folders["first"], tmp_path / f"n{number}")
            assert opened(pool, f"n{number}", folders).host.engine.context == 256
        assert len(pool.hosts()) == 5 and total(pool) <= pool.bytes < 2**26
    finally:
        pool.close()


def test_a_share_shrinks_before_a_model_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    pool = Pool(Limits(memory_bytes=1_100_000))
    folders["long"] = longer(folders["first"], tmp_path / "long")
    folders["other"] = longer(folders["first"], tmp_path / "other")

    async def load() -> tuple[int, ...]:
        async with contextlib.AsyncExitStack() as held:
            names = ("first", "long", "other")  # all of them at work
            hosts = [(await held.enter_async_context(pool.use(n, lambda n=n: folders[n]))).host for n in names]
            assert total(pool) <= pool.bytes <= 1_100_000
            return tuple(host.engine.context for host in hosts)

    try:
        *_, before, last = asyncio.run(load())
        assert LEAST_TOKENS <= last < before < 4096
    finally:
        pool.close()


def test_virtual_tokens_come_on_top_of_what_is_promised(folders: dict[str, Path], tmp_path: Path) -> None:
    base = longer(folders["first"], tmp_path / "long")
    model = tiny.build(base, "generate", Prompt(kind="prompt-tuning", tokens=300), dtype=torch.float32)
    save_artefact(model, tmp_path / "prompted", task="chat", system_prompt=None)
    pool = Pool(Limits(memory_bytes=400_000))
    try:
        engine = opened(pool, "prompted", {"prompted": tmp_path / "prompted"}).host.engine
        assert LEAST_TOKENS <= engine.context < 2 * LEAST_TOKENS
    finally:
        pool.close()


def test_an_answer_ends_where_the_cache_does(folders: dict[str, Path], tmp_path: Path) -> None:
    pool = Pool(Limits(memory_bytes=220_000))
    folders["long"] = longer(folders["first"], tmp_path / "long")
    try:
        engine = opened(pool, "long", folders).host.engine
        batch = engine._batch
        assert engine.context == 319  # 256 at least, in whole steps of the cache; the model would take 4096
        batch.model.eos_ids = []
        heard: list[Token] = []
        asked = Request(prompt=[5] * 100, sampling=Sampling(max_new_tokens=500), on_token=heard.append)
        batch.add(asked)
        while batch.busy:
            batch.step()
            assert batch._cache.num_slots * batch._cache.length <= batch._cache_tokens
        assert heard[-1].finish_reason == "length" and 100 + len(heard) == engine.context
        with pytest.raises(UsageError, match="the model takes 1 to"):
            batch.add(Request(prompt=[5] * 319, sampling=Sampling(max_new_tokens=1), on_token=print))
    finally:
        pool.close()
