"""vLLM as the engine, against a stand-in with the interface of vLLM 0.33: what is asked of it, and what comes of it.

The stand-in computes with transformers and PEFT, greedily and one request at a time. vLLM itself needs a GPU.
"""

from __future__ import annotations

import asyncio
import sys
import threading
import types
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import openai
import pytest
import torch

import tiny
from serving import serving, wait_for
from tunesmith.errors import MissingExtraError, ResourceError
from tunesmith.models.saving import load_artefact, save_artefact
from tunesmith.recipe import LoRA
from tunesmith.server.app import create_app
from tunesmith.server.database import JobRow
from tunesmith.server.settings import Settings

TUNED = "ft:gpt-tiny:local:one:abc"
ASK: list[Any] = [{"role": "user", "content": "what is the capital of france"}]


class RequestOutputKind(Enum):
    CUMULATIVE, DELTA, FINAL_ONLY = range(3)


@dataclass(kw_only=True)
class StructuredOutputsParams:
    json: Any = None


@dataclass(kw_only=True)
class SamplingParams:
    """The fields of vLLM's that are used."""

    max_tokens: int | None = 16
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    logit_bias: dict[int, float] | None = None
    logprobs: int | None = None
    stop_token_ids: list[int] | None = None
    structured_outputs: StructuredOutputsParams | None = None
    detokenize: bool = True
    output_kind: RequestOutputKind = RequestOutputKind.CUMULATIVE


@dataclass(kw_only=True)
class LoRARequest:
    lora_name: str
    lora_int_id: int
    lora_path: str = ""


@dataclass(kw_only=True)
class AsyncEngineArgs:
    model: str
    dtype: str = "auto"
    max_model_len: int | None = None
    max_num_seqs: int | None = None
    gpu_memory_utilization: float = 0.9
    generation_config: str = "auto"
    trust_remote_code: bool = False
    enable_lora: bool = False
    max_loras: int = 1
    max_lora_rank: int = 16
    enable_prefix_caching: bool | None = None
    disable_log_stats: bool = False


@dataclass
class AsyncLLM:
    """Writes what the model finds likeliest; waits before the first token while ``stalled``, before others ``held``."""

    arguments: AsyncEngineArgs
    asked: list[Any] = field(default_factory=list)
    aborted: list[str] = field(default_factory=list)
    held: bool = False
    stalled: bool = False
    fails: bool = False
    down: bool = False

    made = []  # type: ignore[var-annotated]  # noqa: RUF012

    @classmethod
    def from_engine_args(cls, engine_args: AsyncEngineArgs) -> AsyncLLM:
        if "broken" in engine_args.model:
            raise RuntimeError("no kernel image is available")
        cls.made.append(cls(engine_args))
        return cls.made[-1]

    def shutdown(self, timeout: float | None = None) -> None:
        self.down = True

    async def generate(
        self, prompt: Any, sampling_params: SamplingParams, request_id: str, *, lora_request: LoRARequest | None = None
    ) -> AsyncIterator[Any]:
        self.asked.append(SimpleNamespace(prompt=prompt, params=sampling_params, id=request_id, lora=lora_request))
        assert sampling_params.output_kind is RequestOutputKind.DELTA
        try:
            if self.fails:
                raise RuntimeError("the engine is dead")
            folder = Path(lora_request.lora_path if lora_request else self.arguments.model)
            network = load_artefact(folder)[0].network if lora_request else tiny.build(folder, "generate").network
            ids = list(prompt["prompt_token_ids"])
            for number in range(sampling_params.max_tokens or 16):
                while self.held if number else self.stalled:
                    await asyncio.sleep(0.01)
                with torch.inference_mode():
                    log_p = network(input_ids=torch.tensor([ids])).logits[0, -1].float().log_softmax(-1)
                ids.append(int(log_p.argmax()))
                ended = ids[-1] in (sampling_params.stop_token_ids or [])
                ended = ended or number + 1 == sampling_params.max_tokens
                top = log_p.topk(max(1, sampling_params.logprobs or 0)).indices.tolist()
                logprobs = [{token: SimpleNamespace(logprob=float(log_p[token])) for token in top}]
                part = SimpleNamespace(
                    token_ids=ids[-1:], logprobs=None if sampling_params.logprobs is None else logprobs
                )
                yield SimpleNamespace(outputs=[part], finished=ended, num_cached_tokens=3)
                if ended:
                    return
                await asyncio.sleep(0)
        except (asyncio.CancelledError, GeneratorExit):
            self.aborted.append(request_id)
            raise


@pytest.fixture(autouse=True)
def vllm(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The stand-in, where ``import vllm`` finds it."""
    parts: dict[str, dict[str, Any]] = {
        "vllm": {"AsyncEngineArgs": AsyncEngineArgs, "SamplingParams": SamplingParams},
        "vllm.v1": {}, "vllm.v1.engine": {}, "vllm.v1.engine.async_llm": {"AsyncLLM": AsyncLLM},
        "vllm.lora": {}, "vllm.lora.request": {"LoRARequest": LoRARequest},
        "vllm.sampling_params": {
            "RequestOutputKind": RequestOutputKind, "StructuredOutputsParams": StructuredOutputsParams,
        },
    }  # fmt: skip
    for name, values in parts.items():
        module = types.ModuleType(name)
        vars(module).update(values)
        monkeypatch.setitem(sys.modules, name, module)
    AsyncLLM.made.clear()
    return AsyncLLM


@pytest.fixture(scope="module")
def root(tiny_decoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data of a server with a finished job."""
    root = tmp_path_factory.mktemp("vllm")
    (root / "models.yaml").write_text(f"gpt-tiny: {tiny_decoder}\n")
    services = create_app(settings(root, "own")).state.services
    model = tiny.build(tiny_decoder, "generate", LoRA(rank=4), dtype=torch.float32)
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.trainable():
            if "lora_B" in name:
                parameter.normal_(std=0.5)
    save_artefact(model, services.folders.run("ftjob-1") / "model", task="chat", system_prompt=None)
    row = dict(
        id="ftjob-1", owner="local", created_at=1.0, finished_at=2.0, status="succeeded", model="gpt-tiny", seed=0,
        training_file="file-x", method={"type": "supervised"}, fine_tuned_model=TUNED, result_files=[],
    )  # fmt: skip
    with services.database.write() as session:
        session.add(JobRow(**row))
    services.database.close()
    return root


def settings(root: Path, engine: Any, **more: Any) -> Settings:
    return Settings(data=root / "data", models=root / "models.yaml", workers=0, engine=engine, **more)


@pytest.fixture
def address(root: Path) -> Iterator[str]:
    with serving(create_app(settings(root, "vllm", queue_limit=2))) as address:
        yield address


def client_of(address: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0, timeout=120)


def test_base_and_adapter_answer_as_with_the_own_engine(root: Path, address: str, vllm: Any) -> None:
    with serving(create_app(settings(root, "own"))) as other:
        asked: Any = {"messages": ASK, "max_tokens": 6, "temperature": 0, "logprobs": True, "top_logprobs": 2}
        for model in ("gpt-tiny", TUNED):
            ours, theirs = (client_of(a).chat.completions.create(model=model, **asked) for a in (other, address))
            assert ours.choices[0].message.content == theirs.choices[0].message.content
            assert ours.choices[0].finish_reason == theirs.choices[0].finish_reason
            assert ours.usage and theirs.usage and ours.usage.total_tokens == theirs.usage.total_tokens
            for one, two in zip(ours.choices[0].logprobs.content, theirs.choices[0].logprobs.content, strict=True):
                assert one.token == two.token and one.logprob == pytest.approx(two.logprob, abs=2e-2)
                assert [t.token for t in one.top_logprobs][:1] == [t.token for t in two.top_logprobs][:1]
    (engine,) = vllm.made  # one base for both, in one precision
    assert not engine.arguments.trust_remote_code and engine.arguments.enable_lora
    assert [bool(asked.lora) for asked in engine.asked] == [False, True]
    assert Path(engine.asked[1].lora.lora_path).name == "model" and engine.asked[1].lora.lora_int_id == 1


def test_settings_of_a_request_arrive(address: str, vllm: Any) -> None:
    asked: Any = {"messages": ASK, "temperature": 0.7, "top_p": 0.9, "max_tokens": 3, "seed": 5, "n": 2}
    asked |= {"presence_penalty": 0.5, "frequency_penalty": 0.25, "logit_bias": {"7": -5}}
    schema = {"type": "object", "properties": {"city": {"type": "string"}}}
    form: Any = {"type": "json_schema", "json_schema": {"name": "city", "schema": schema}}
    client_of(address).chat.completions.create(model="gpt-tiny", response_format=form, **asked)
    one, two = (asked.params for asked in vllm.made[0].asked)
    assert (one.temperature, one.top_p, one.max_tokens, one.top_k) == (0.7, 0.9, 3, 0)
    assert (one.presence_penalty, one.frequency_penalty, one.logit_bias) == (0.5, 0.25, {7: -5})
    assert one.seed != two.seed and one.structured_outputs.json == schema and not one.detokenize
    client_of(address).chat.completions.create(model="gpt-tiny", **asked)
    assert [asked.params.seed for asked in vllm.made[0].asked[2:]] == [one.seed, two.seed]


def test_a_stop_string_and_a_client_that_leaves_end_the_work(address: str, vllm: Any) -> None:
    client = client_of(address)
    whole = client.chat.completions.create(model="gpt-tiny", messages=ASK, max_tokens=8, temperature=0)
    text = whole.choices[0].message.content or ""
    stop = text[len(text) // 2]
    cut = client.chat.completions.create(model="gpt-tiny", messages=ASK, max_tokens=8, temperature=0, stop=stop)
    assert cut.choices[0].finish_reason == "stop" and cut.choices[0].message.content == text[: text.index(stop)]
    engine = vllm.made[0]
    assert engine.asked[1].id in engine.aborted
    engine.held = True
    stream = client.chat.completions.create(model="gpt-tiny", messages=ASK, max_tokens=8, stream=True)
    next(iter(stream))
    stream.close()
    wait_for(lambda: engine.asked[2].id in engine.aborted)


def test_a_full_queue_a_dead_engine_and_embeddings(address: str, vllm: Any) -> None:
    client = client_of(address)
    asked: Any = {"model": "gpt-tiny", "messages": ASK, "max_tokens": 1}
    assert len(client.chat.completions.create(**asked, n=3).choices) == 3  # nobody waits: more than may wait, too
    vllm.made[0].stalled = True
    first = threading.Thread(target=lambda: client.chat.completions.create(**asked))
    first.start()
    wait_for(lambda: len(vllm.made[0].asked) == 4)
    with pytest.raises(openai.RateLimitError) as full:
        client.chat.completions.create(**asked, n=2)
    assert int(full.value.response.headers["Retry-After"]) >= 1
    vllm.made[0].stalled = False
    first.join()
    with pytest.raises(openai.BadRequestError, match="67 answers are asked for at once; 66 can run and wait") as never:
        client.chat.completions.create(**asked, n=67)
    assert never.value.code == "too_many_answers"
    vllm.made[0].fails = True
    with pytest.raises(openai.InternalServerError) as dead:
        client.chat.completions.create(model="gpt-tiny", messages=ASK, max_tokens=1)
    assert dead.value.status_code == 503 and "dead" not in str(dead.value)
    with pytest.raises(openai.BadRequestError, match="no embeddings"):
        client.embeddings.create(model="gpt-tiny", input="x")


def test_it_is_shut_down_with_the_server_and_its_absence_is_told(
    root: Path, tmp_path: Path, tiny_decoder: Path, vllm: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tunesmith.generation.vllm_engine import VllmAdapters, VllmEngine

    with serving(create_app(settings(root, "vllm"))) as address:
        client_of(address).chat.completions.create(model="gpt-tiny", messages=ASK, max_tokens=1)
    assert vllm.made[0].down
    options: Any = {"dtype": "float32", "eos_ids": [1], "context": 64, "memory_bytes": 10**6}
    with pytest.raises(ResourceError, match="no kernel image"):
        VllmEngine(tmp_path / "broken", **options)
    (tmp_path / "adapter_config.json").write_text('{"r": 128}')
    with pytest.raises(ResourceError, match="rank 128"):
        VllmAdapters().load("big", tmp_path)
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(MissingExtraError, match="vllm"):
        VllmEngine(tiny_decoder, **options)
