"""Many adapters on one base, the engine's thread, answers in JSON."""

from __future__ import annotations

import json
import threading
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
import torch

import tiny
from tunesmith.errors import ResourceError, UsageError
from tunesmith.generation.adapters import Adapters, is_plain_lora
from tunesmith.generation.batch import Request, RunningBatch, Token
from tunesmith.generation.constraints import Grammars
from tunesmith.generation.engine import Engine, QueueFullError
from tunesmith.generation.sampling import Sampling
from tunesmith.generation.text import TextStream
from tunesmith.models import inference
from tunesmith.models.load import load_model
from tunesmith.models.model import Model
from tunesmith.models.saving import load_artefact, save_artefact
from tunesmith.recipe import LoRA


def tuned(base: Path, folder: Path, seed: int, **settings: Any) -> Path:
    """An adapter with random weights, saved as a run saves it."""
    model = tiny.build(base, "generate", LoRA(rank=4, **settings))
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.trainable():
            if "lora_B" in name:
                parameter.normal_(std=0.5)
    save_artefact(model, folder, task="chat", system_prompt=None)
    return folder


@pytest.fixture(scope="module")
def adapters(tiny_decoder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("adapters")
    return {
        "one": tuned(tiny_decoder, root / "one", 1),
        "ft:two.1": tuned(tiny_decoder, root / "two", 2, targets=["q_proj", "down_proj"]),
    }


@pytest.fixture
def model(tiny_decoder: Path) -> Model:
    return load_model(tiny_decoder, name="tiny", form="generate", dtype=torch.float64)


def heard_by(requests: list[Request]) -> list[list[Token]]:
    heard: list[list[Token]] = [[] for _ in requests]
    for request, tokens in zip(requests, heard, strict=True):
        request.on_token = tokens.append
    return heard


def greedy(prompt: list[int], adapter: str | None = None, count: int = 12) -> Request:
    return Request(prompt=prompt, sampling=Sampling(max_new_tokens=count), on_token=print, adapter=adapter)


def ids_of(tokens: list[Token]) -> list[int]:
    return [token.choice.token for token in tokens if token.choice]


# --- adapters --------------------------------------------------------------------------------------------------------


def test_rows_of_one_batch_use_adapters_of_their_own(model: Model, adapters: dict[str, Path]) -> None:
    """As if each adapter had been loaded alone; other layers, and a name with dots and colons, among them."""
    prompts = [model.tokenizer(row["prompt"])["input_ids"] for row in tiny.question_rows(9)]
    names = [(None, "one", "ft:two.1")[n % 3] for n in range(9)]
    expected = []
    for prompt, name in zip(prompts, names, strict=True):
        alone = load_artefact(adapters[name])[0] if name else model
        expected += inference.generate(alone, [prompt], max_new_tokens=12)
    side_by_side = Adapters(model)
    for name, folder in adapters.items():
        side_by_side.load(name, folder)
    batch = RunningBatch(model, adapters=side_by_side)
    requests = [greedy(prompt, name) for prompt, name in zip(prompts, names, strict=True)]
    heard = heard_by(requests)
    for request in requests:
        batch.add(request)
    batch.run()
    assert [ids_of(tokens) for tokens in heard] == expected
    assert len({tuple(answer) for answer in expected}) >= 3


def test_adapters_come_and_go(model: Model, adapters: dict[str, Path]) -> None:
    prompt = model.tokenizer("what is the capital")["input_ids"]
    plain = inference.generate(model, [prompt], max_new_tokens=8)
    side_by_side = Adapters(model)
    side_by_side.load("one", adapters["one"])
    side_by_side.drop("one")
    assert "one" not in side_by_side
    side_by_side.load("ft:two.1", adapters["ft:two.1"])
    batch = RunningBatch(model, adapters=side_by_side)
    requests = [greedy(prompt, None, 8), greedy(prompt, "ft:two.1", 8)]
    heard = heard_by(requests)
    for request in requests:
        batch.add(request)
    batch.run()
    alone = load_artefact(adapters["ft:two.1"])[0]
    assert [ids_of(heard[0])] == plain
    assert [ids_of(heard[1])] == inference.generate(alone, [prompt], max_new_tokens=8)


def test_more_than_plain_lora_does_not_share_its_base(tmp_path: Path, adapters: dict[str, Path]) -> None:
    assert is_plain_lora(adapters["one"])
    config = json.loads((adapters["one"] / "adapter_config.json").read_text())
    for change in ({"use_dora": True}, {"peft_type": "IA3"}, {"modules_to_save": ["lm_head"]}, {"bias": "all"}):
        (tmp_path / "adapter_config.json").write_text(json.dumps(config | change))
        assert not is_plain_lora(tmp_path)


# --- the thread ------------------------------------------------------------------------------------------------------


class Gate:
    """Lets a test hold the engine between two steps."""

    def __init__(self, engine: Engine) -> None:
        self.opened = threading.Event()
        self.reached = threading.Event()
        self.done: Future[None] = engine.call(self._wait)
        assert self.reached.wait(10)

    def _wait(self) -> None:
        self.reached.set()
        self.opened.wait(10)


@pytest.fixture
def engine(model: Model) -> Any:
    engine = Engine(RunningBatch(model, max_rows=2), queue_limit=3)
    yield engine
    engine.close()


def test_requests_from_many_threads_are_all_answered(engine: Engine, model: Model) -> None:
    engine.queue_limit = 100
    prompts = [model.tokenizer(row["prompt"])["input_ids"] for row in tiny.question_rows(12)]
    expected = inference.generate(model, prompts, max_new_tokens=12)
    answers: list[list[int]] = [[] for _ in prompts]
    ends = [threading.Event() for _ in prompts]

    def ask(number: int) -> None:
        def hear(token: Token) -> None:
            if token.choice:
                answers[number].append(token.choice.token)
            if token.finish_reason:
                ends[number].set()

        request = greedy(prompts[number])
        request.on_token = hear
        engine.submit([request])

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(12)]
    for thread in threads:
        thread.start()
    assert all(end.wait(20) for end in ends)
    assert answers == expected


def test_a_full_queue_refuses_and_says_when_to_come_back(engine: Engine) -> None:
    gate = Gate(engine)
    requests = [greedy([5, 6, 7]) for _ in range(4)]
    heard_by(requests)
    engine.submit(requests[:2])
    with pytest.raises(QueueFullError, match="2 requests are waiting already") as caught:
        engine.submit(requests[2:])
    assert 1 <= caught.value.retry_after <= 60
    engine.submit(requests[2:3])
    gate.opened.set()


def test_more_than_can_ever_run_and_wait_is_refused_even_when_idle(engine: Engine) -> None:
    with pytest.raises(UsageError, match="6 answers are asked for at once; 5 can"):
        engine.submit([greedy([5, 6, 7]) for _ in range(6)])
    assert engine.waiting == 0


def test_a_cancelled_request_leaves_before_the_next_step(engine: Engine, model: Model) -> None:
    model.eos_ids = []
    heard: list[Token] = []
    ended = threading.Event()
    request = greedy([5, 6, 7], count=10_000)
    request.on_token = lambda token: (heard.append(token), ended.set() if token.finish_reason else None)
    engine.submit([request])
    engine.call(lambda: None).result(10)
    engine.cancel([request])
    assert ended.wait(10)
    assert heard[-1].finish_reason == "cancelled" and len(heard) < 250
    assert engine.call(lambda: engine.running).result(10) == 0


def test_a_step_that_fails_costs_its_requests_and_not_the_server(
    engine: Engine, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    def explode(hidden: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("out of memory")

    outcome: list[str] = []
    for _ in range(2):
        ended = threading.Event()
        request = greedy([5, 6, 7], count=3)
        request.on_token = lambda token, ended=ended: (
            (outcome.append(token.finish_reason), ended.set()) if token.finish_reason else None
        )
        with monkeypatch.context() as patched:
            if not outcome:
                patched.setattr(model, "vocabulary_scores", explode)
            engine.submit([request])
            assert ended.wait(10)
    assert outcome[0] == "failed" and outcome[1] in ("length", "stop")


def test_who_asks_a_closed_engine_is_told(engine: Engine) -> None:
    """A model was deleted while the prompt was being rendered."""
    engine.close()
    requests = [greedy([5, 6, 7]), greedy([5, 6, 8])]
    heard = heard_by(requests)
    engine.submit(requests)
    assert [[token.finish_reason for token in tokens] for tokens in heard] == [["failed"], ["failed"]]
    assert engine.waiting == 0
    with pytest.raises(ResourceError, match="taken out of memory"):
        engine.call(lambda: None).result(10)


def test_an_adapter_that_is_gone_costs_its_own_requests_only(model: Model, adapters: dict[str, Path]) -> None:
    side_by_side = Adapters(model)
    side_by_side.load("one", adapters["one"])
    engine = Engine(RunningBatch(model, adapters=side_by_side))
    try:
        gate = Gate(engine)
        requests = [greedy([5, 6, 7]), greedy([5, 6, 8], "one"), greedy([5, 6, 9], "deleted")]
        heard, ended = heard_by(requests), threading.Semaphore(0)
        for request, tokens in zip(requests, heard, strict=True):
            request.on_token = lambda token, tokens=tokens: (
                tokens.append(token), ended.release() if token.finish_reason else None
            )  # fmt: skip
        engine.submit(requests)
        gate.opened.set()
        assert all(ended.acquire(timeout=20) for _ in requests)
    finally:
        engine.close()
    assert [tokens[-1].finish_reason == "failed" for tokens in heard] == [False, False, True]


# --- JSON ------------------------------------------------------------------------------------------------------------

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 6},
        "kind": {"enum": ["film", "plot"]},
        "stars": {"type": "integer", "minimum": 0, "maximum": 5},
        "tags": {"type": "array", "items": {"type": "boolean"}, "maxItems": 2},
    },
    "required": ["name", "kind", "stars", "tags"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def grammars(tiny_decoder: Path) -> Grammars:
    pytest.importorskip("llguidance", reason="answers in JSON need the extra `server`")
    model = load_model(tiny_decoder, name="tiny", form="generate")
    return Grammars(model.tokenizer, model.eos_ids)


def test_answers_by_a_schema_always_parse(model: Model, grammars: Grammars) -> None:
    """A random model, hot: whatever comes out is valid."""
    batch = RunningBatch(model)
    constraint = grammars.json(SCHEMA)
    requests = [
        Request(
            prompt=[5, 6, n + 7], on_token=print, constraint=constraint.copy(), text=TextStream(model.tokenizer),
            sampling=Sampling(max_new_tokens=200, temperature=2.0, seed=n),
        )
        for n in range(20)
    ]  # fmt: skip
    heard = heard_by(requests)
    for request in requests:
        batch.add(request)
    batch.run()
    values = [json.loads("".join(token.text for token in tokens)) for tokens in heard]
    assert all(tokens[-1].finish_reason == "stop" for tokens in heard)
    for value in values:
        assert list(value) == ["name", "kind", "stars", "tags"]
        assert len(value["name"]) <= 6 and value["kind"] in ("film", "plot") and 0 <= value["stars"] <= 5
        assert all(isinstance(tag, bool) for tag in value["tags"])
    assert len({json.dumps(value) for value in values}) > 10


@pytest.mark.parametrize("schema", [{"type": "nothing"}, 5, {"$ref": "#/nowhere"}], ids=str)
def test_a_schema_that_cannot_be_used_is_refused(schema: Any, grammars: Grammars) -> None:
    with pytest.raises(UsageError, match="the JSON schema cannot be used"):
        grammars.json(schema)
