"""The inference half of the API as the OpenAI client sees it, on a live server with tiny models."""

from __future__ import annotations

import asyncio
import itertools
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx2 as httpx
import numpy as np
import openai
import pytest
import torch
import yaml

import tiny
from serving import serving, wait_for
from tunesmith.compression.onnx_model import save_onnx_int8
from tunesmith.data.render import ConversationRenderer
from tunesmith.models import inference
from tunesmith.models.load import load_model
from tunesmith.models.saving import load_artefact, save_artefact
from tunesmith.recipe import LoRA
from tunesmith.server.app import create_app
from tunesmith.server.auth import LOCAL
from tunesmith.server.database import CheckpointRow, JobRow
from tunesmith.server.routes import embeddings
from tunesmith.server.settings import Settings

TUNED = ("ft:gpt-tiny:local:one:abc", "ft:gpt-tiny:local:two:def")
ASK: list[Any] = [{"role": "user", "content": "what is the capital of france"}]

TEMPLATE_WITH_TOOLS = (
    "{% if tools %}{{ '<|im_start|>system\n' }}{% for t in tools %}{{ t.function.name }}{% endfor %}"
    "{{ '<|im_end|>\n' }}"
    "{% endif %}{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content }}"
    "{% for c in m.tool_calls or [] %}{{ c.function.name + ' ' + c.function.arguments.city }}{% endfor %}"
    "{{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@pytest.fixture(scope="module")
def live(tiny_decoder: Path, tiny_encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimpleNamespace]:
    """A server with a base that writes, one that embeds, one with tools, and two adapters from finished jobs."""
    root = tmp_path_factory.mktemp("live")
    with_tools = load_model(tiny_decoder, name="tools", form="generate")
    with_tools.tokenizer.chat_template = TEMPLATE_WITH_TOOLS
    with_tools.network.save_pretrained(root / "tools")
    with_tools.tokenizer.save_pretrained(root / "tools")
    labels = tiny.build(tiny_encoder, "classify", dtype=torch.float32)
    save_artefact(labels, root / "run" / "model", task="text-classification", system_prompt=None)
    names = {"gpt-tiny": tiny_decoder, "encoder": tiny_encoder, "org/tools": root / "tools", "labels": root / "run"}
    (root / "models.yaml").write_text(
        yaml.safe_dump({name: str(folder) for name, folder in names.items()}, sort_keys=False)
    )
    app = create_app(Settings(data=root / "data", models=root / "models.yaml", workers=0))
    services = app.state.services
    for seed, name in enumerate(TUNED, 1):
        add_job(services, f"ftjob-{seed}", name, tiny_decoder, seed)
    with serving(app) as address:
        yield SimpleNamespace(address=address, services=services, base=tiny_decoder)


def add_job(services: Any, job_id: str, name: str, base: Path, seed: int) -> None:
    """A finished job with a random adapter, and one checkpoint."""
    adapter(base, services.folders.run(job_id) / "model", seed)
    adapter(base, services.folders.checkpoint(job_id, 3), seed + 10)
    row = dict(
        id=job_id, owner="local", created_at=1.0, finished_at=2.0, status="succeeded", model="gpt-tiny", seed=0,
        training_file="file-x", method={"type": "supervised"}, fine_tuned_model=name, result_files=[],
    )  # fmt: skip
    with services.database.write() as session:
        session.add(JobRow(**row))
    values = dict(id=f"ftckpt-{seed}", job_id=job_id, step=3, model=f"{name}:ckpt-step-3", created_at=2.0, metrics={})
    with services.database.write() as session:
        session.add(CheckpointRow(**values))


def adapter(base: Path, folder: Path, seed: int) -> None:
    model = tiny.build(base, "generate", LoRA(rank=4), dtype=torch.float32)
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.trainable():
            if "lora_B" in name:
                parameter.normal_(std=0.5)
    save_artefact(model, folder, task="chat", system_prompt=None)


@pytest.fixture
def client(live: SimpleNamespace) -> Any:
    with client_of(live, strict=True) as client:
        yield client


@pytest.fixture
def lenient(live: SimpleNamespace) -> Any:
    """For what breaks the client's own types at OpenAI too: base64 vectors, and streams of the older completions."""
    with client_of(live, strict=False) as client:
        yield client


def client_of(live: SimpleNamespace, strict: bool) -> Any:
    return openai.OpenAI(
        base_url=f"{live.address}/v1", api_key="none", max_retries=0, timeout=180, _strict_response_validation=strict
    )


def streamed(chunks: Any) -> str:
    return "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)


# --- chat ------------------------------------------------------------------------------------------------------------


def test_an_answer_is_what_the_model_writes_behind_the_prompt_of_training(client: Any, live: SimpleNamespace) -> None:
    for name in ("gpt-tiny", *TUNED, f"{TUNED[0]}:ckpt-step-3"):
        answer = client.chat.completions.create(model=name, messages=ASK, temperature=0, max_tokens=16)
        folder = None if name == "gpt-tiny" else live.services.registry.find(name, LOCAL).folder
        model = load_artefact(folder)[0] if folder else load_model(live.base, name="tiny", dtype=torch.float32)
        prompt = ConversationRenderer(model.tokenizer, 256, model.eos_ids).prompt(ASK)
        written = inference.generate(model, [prompt], max_new_tokens=16)[0]
        text = model.tokenizer.decode(written, skip_special_tokens=True)
        assert answer.choices[0].message.content == text.rstrip("\ufffd")  # a character that was cut is left out
        assert answer.usage.prompt_tokens == len(prompt)
        assert answer.usage.completion_tokens == len(written)
        assert answer.model == name and answer.id.startswith("chatcmpl-")


def test_a_stream_says_role_text_reason_usage_and_done(client: Any, live: SimpleNamespace) -> None:
    asked: dict[str, Any] = dict(model="gpt-tiny", messages=ASK, temperature=0, max_tokens=12)
    whole = client.chat.completions.create(**asked)
    chunks = list(client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    assert chunks[0].choices[0].delta.role == "assistant" and chunks[0].choices[0].delta.content == ""
    assert streamed(chunks) == whole.choices[0].message.content
    assert [c.choices[0].finish_reason for c in chunks[:-1]] == [None] * (len(chunks) - 2) + ["length"]
    assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert all(chunk.usage is None for chunk in chunks[:-1])
    with httpx.stream("POST", f"{live.address}/v1/chat/completions", json={**asked, "stream": True}) as response:
        lines = [line for line in response.iter_lines() if line]
    assert response.headers["content-type"].startswith("text/event-stream")
    assert lines[-1] == "data: [DONE]" and all(line.startswith("data: {") for line in lines[:-1])


def test_azures_paths_name_the_model(live: SimpleNamespace) -> None:
    body = {"messages": ASK, "max_tokens": 2}
    path = "openai/deployments/org%2Ftools/chat/completions?api-version=2025-04-01"
    assert httpx.post(f"{live.address}/{path}", json=body).json()["model"] == "org/tools"
    missing = httpx.post(f"{live.address}/v1/chat/completions", json=body)
    assert missing.status_code == 400 and missing.json()["error"]["param"] == "model"


def test_several_answers_each_with_its_seed(client: Any) -> None:
    asked: dict[str, Any] = dict(model="gpt-tiny", messages=ASK, n=3, max_tokens=10, temperature=1.5)
    first = client.chat.completions.create(**asked, seed=5)
    again = client.chat.completions.create(**asked, seed=5)
    other = client.chat.completions.create(**asked, seed=6)
    texts = [[choice.message.content for choice in answer.choices] for answer in (first, again, other)]
    assert texts[0] == texts[1] != texts[2] and len(set(texts[0])) > 1
    chunks = list(client.chat.completions.create(**asked, seed=5, stream=True))
    for number in range(3):
        mine = [c.choices[0].delta.content or "" for c in chunks if c.choices[0].index == number]
        assert "".join(mine) == texts[0][number]


def test_log_probabilities_bytes_and_alternatives(client: Any) -> None:
    asked: dict[str, Any] = dict(model="gpt-tiny", messages=ASK, temperature=0, max_tokens=6)
    answer = client.chat.completions.create(**asked, logprobs=True, top_logprobs=4)
    content = answer.choices[0].logprobs.content
    assert len(content) == answer.usage.completion_tokens
    for token in content:
        assert token.logprob <= 0 and len(token.top_logprobs) == 4
        assert token.top_logprobs[0].token == token.token and token.top_logprobs[0].logprob == token.logprob
    text = b"".join(bytes(token.bytes) for token in content).decode(errors="ignore")
    assert text.startswith(answer.choices[0].message.content)
    chunks = list(client.chat.completions.create(**asked, logprobs=True, stream=True))
    seen = [t for c in chunks if c.choices[0].logprobs for t in c.choices[0].logprobs.content]
    assert [t.token for t in seen] == [t.token for t in content]
    assert client.chat.completions.create(**asked).choices[0].logprobs is None


def test_a_stop_string_ends_the_answer(client: Any) -> None:
    asked: dict[str, Any] = dict(model="gpt-tiny", messages=ASK, temperature=0, max_tokens=30)
    text = client.chat.completions.create(**asked).choices[0].message.content
    stop = text[len(text) // 2 : len(text) // 2 + 2]
    stopped = client.chat.completions.create(**asked, stop=[stop, "never"])
    assert stopped.choices[0].message.content == text[: text.find(stop)]
    assert stopped.choices[0].finish_reason == "stop"
    assert streamed(client.chat.completions.create(**asked, stop=stop, stream=True)) == text[: text.find(stop)]


def test_answers_in_json_parse(client: Any) -> None:
    schema = {
        "type": "object",
        "properties": {"kind": {"enum": ["film", "plot"]}, "stars": {"type": "integer", "minimum": 0, "maximum": 5}},
        "required": ["kind", "stars"],
        "additionalProperties": False,
    }
    form: Any = {"type": "json_schema", "json_schema": {"name": "review", "schema": schema, "strict": True}}
    answer = client.chat.completions.create(
        model=TUNED[0], messages=ASK, response_format=form, n=5, temperature=1.8, max_tokens=100
    )
    for choice in answer.choices:
        value = json.loads(choice.message.content)
        assert value["kind"] in ("film", "plot") and 0 <= value["stars"] <= 5
        assert choice.finish_reason == "stop"
    form = {"type": "json_object"}
    answer = client.chat.completions.create(model="gpt-tiny", messages=ASK, response_format=form, max_tokens=5)
    assert answer.choices[0].message.content.lstrip().startswith("{")
    with pytest.raises(openai.BadRequestError) as caught:
        form = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "nothing"}}}
        client.chat.completions.create(model="gpt-tiny", messages=ASK, response_format=form)
    assert caught.value.code == "invalid_json_schema"


TOOL: Any = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "the weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"enum": ["paris", "rome"]}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}


def test_a_required_tool_is_called(client: Any) -> None:
    asked: dict[str, Any] = dict(model="org/tools", messages=ASK, tools=[TOOL], max_tokens=180)
    answer = client.chat.completions.create(**asked, tool_choice="required")
    call = answer.choices[0].message.tool_calls[0]
    assert answer.choices[0].finish_reason == "tool_calls" and answer.choices[0].message.content is None
    assert call.function.name == "weather" and json.loads(call.function.arguments)["city"] in ("paris", "rome")
    named: Any = {"type": "function", "function": {"name": "weather"}}
    chunks = list(client.chat.completions.create(**asked, tool_choice=named, stream=True))
    calls = [call for chunk in chunks for call in chunk.choices[0].delta.tool_calls or []]
    assert [call.function.name for call in calls] == ["weather"] and json.loads(calls[0].function.arguments)
    assert chunks[-1].choices[0].finish_reason == "tool_calls"
    followed = [*ASK, {"role": "assistant", "content": None, "tool_calls": [call.model_dump()]},
                {"role": "tool", "tool_call_id": call.id, "content": "sunny"}]  # fmt: skip
    again = client.chat.completions.create(**{**asked, "messages": followed, "max_tokens": 3})
    assert again.usage.prompt_tokens > answer.usage.prompt_tokens
    with pytest.raises(openai.BadRequestError, match="knows no tools"):
        client.chat.completions.create(model="gpt-tiny", messages=ASK, tools=[TOOL])


def test_a_run_with_a_classification_head_answers_with_the_label(client: Any, live: SimpleNamespace) -> None:
    folder = Path(live.services.registry.bases["labels"].model) / "model"
    model = load_artefact(folder)[0]
    for text in ("a good film", "what an awful plot and a bad actor"):
        best = inference.class_probabilities(model, [model.tokenizer(text)["input_ids"]])[0].argmax()
        asked: dict[str, Any] = dict(model="labels", messages=[{"role": "user", "content": text}])
        assert client.chat.completions.create(**asked).choices[0].message.content == tiny.LABELS[best]
        assert streamed(client.chat.completions.create(**asked, stream=True)) == tiny.LABELS[best]
    with pytest.raises(openai.BadRequestError, match="answers in one piece"):
        client.chat.completions.create(**asked, logprobs=True)


# --- the other routes ------------------------------------------------------------------------------------------------


def test_completions_go_on_where_texts_end(client: Any, lenient: Any, live: SimpleNamespace) -> None:
    model = load_model(live.base, name="tiny", dtype=torch.float32)
    prompts = ["the film was", "a plot"]
    asked: dict[str, Any] = dict(model="gpt-tiny", temperature=0, max_tokens=8)
    answer = client.completions.create(prompt=prompts, n=2, **asked)
    written = inference.generate(model, [model.tokenizer(p)["input_ids"] for p in prompts], max_new_tokens=8)
    expected = [model.tokenizer.decode(ids, skip_special_tokens=True).rstrip("\ufffd") for ids in written]
    assert [choice.text for choice in answer.choices] == [expected[0]] * 2 + [expected[1]] * 2
    by_tokens = client.completions.create(prompt=model.tokenizer(prompts[0])["input_ids"], **asked)
    assert by_tokens.choices[0].text == expected[0]
    chunks = list(lenient.completions.create(prompt=prompts[0], echo=True, stream=True, **asked))
    assert "".join(chunk.choices[0].text for chunk in chunks) == prompts[0] + expected[0]
    scored = client.completions.create(prompt=prompts[0], logprobs=2, **asked)
    assert len(scored.choices[0].logprobs.tokens) == 8 == len(scored.choices[0].logprobs.text_offset)


def test_a_graph_labels_and_gives_no_embeddings(tiny_encoder: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    model = tiny.build(tiny_encoder, "classify", dtype=torch.float32)
    save_onnx_int8(model, tmp_path / "graph", task="text-classification", system_prompt=None)
    (tmp_path / "models.yaml").write_text(yaml.safe_dump({"graph": str(tmp_path / "graph")}))
    app = create_app(Settings(data=tmp_path / "data", models=tmp_path / "models.yaml", workers=0))
    with serving(app) as address, httpx.Client(base_url=address, timeout=180) as http:
        answer = http.post("/v1/chat/completions", json={"model": "graph", "messages": ASK})
        assert answer.status_code == 200, answer.text
        assert answer.json()["choices"][0]["message"]["content"] in model.labels
        refused = http.post("/v1/embeddings", json={"model": "graph", "input": "france"})
        assert (refused.status_code, refused.json()["error"]["code"]) == (400, "unsupported_model")


def test_embeddings_as_numbers_and_base64(client: Any, lenient: Any, live: SimpleNamespace) -> None:
    texts = ["the film was good", "a bad plot"]
    numbers = client.embeddings.create(model="encoder", input=texts, encoding_format="float")
    packed = lenient.embeddings.create(model="encoder", input=texts)  # the client asks for base64 and unpacks it
    assert numbers.usage.prompt_tokens == packed.usage.prompt_tokens > 4
    for one, other in zip(numbers.data, packed.data, strict=True):
        assert np.linalg.norm(one.embedding) == pytest.approx(1, abs=1e-5)
        np.testing.assert_allclose(one.embedding, other.embedding, atol=1e-6)
    short = client.embeddings.create(model="encoder", input=texts[0], dimensions=8, encoding_format="float")
    cut = np.asarray(numbers.data[0].embedding[:8])
    np.testing.assert_allclose(short.data[0].embedding, cut / np.linalg.norm(cut), atol=1e-5)
    of_tuned = client.embeddings.create(model=TUNED[0], input=texts[0], encoding_format="float")
    of_base = client.embeddings.create(model="gpt-tiny", input=texts[0], encoding_format="float")
    assert not np.allclose(of_tuned.data[0].embedding, of_base.data[0].embedding, atol=1e-3)
    with pytest.raises(openai.BadRequestError) as caught:
        client.embeddings.create(model="encoder", input="film " * 100)
    assert caught.value.code == "context_length_exceeded"
    for nothing in ("", ["film", ""], [[]], []):
        with pytest.raises(openai.BadRequestError, match=r"is empty|must hold 1") as caught:
            client.embeddings.create(model="encoder", input=nothing)
        assert (caught.value.code, caught.value.param) == ("invalid_value", "input")


def test_a_request_has_an_end(client: Any, live: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    """One client cannot occupy a model for all others."""
    asked: dict[str, Any] = {"model": "gpt-tiny", "max_tokens": 1}
    for prompts, n, words in ((128, 128, "16384 answers .* up to 2048"), (10, 40, "400 answers .*; 320 can")):
        with pytest.raises(openai.BadRequestError, match=words) as caught:
            client.completions.create(prompt=["a"] * prompts, n=n, **asked)
        assert caught.value.code == "too_many_answers"
    texts = ["the film was good", "a bad plot", "fine"]
    whole = client.embeddings.create(model="encoder", input=texts, encoding_format="float")
    monkeypatch.setattr(embeddings, "TOKENS_AT_ONCE", 3)
    parts = client.embeddings.create(model="encoder", input=texts, encoding_format="float")
    for one, other in zip(whole.data, parts.data, strict=True):
        np.testing.assert_allclose(one.embedding, other.embedding, atol=1e-5)
    monkeypatch.setattr(embeddings, "MAX_TOKENS", whole.usage.prompt_tokens - 1)
    with pytest.raises(openai.BadRequestError, match="together") as caught:
        client.embeddings.create(model="encoder", input=texts)
    assert caught.value.code == "max_tokens_per_request"


def test_dated_names_share_one_model(client: Any, live: SimpleNamespace) -> None:
    for name in ("gpt-tiny", "gpt-tiny-2025-04-14", "gpt-tiny-2099-99-99"):
        assert client.chat.completions.create(model=name, messages=ASK, max_tokens=1).model == name
    assert [name for name in live.services.pool.names() if name.startswith("gpt-tiny")] == ["gpt-tiny"]
    assert live.services.pool._loaded["gpt-tiny"].users == 0


def test_responses_whole_and_as_events(client: Any) -> None:
    items: Any = [{"role": "user", "content": [{"type": "input_text", "text": "what is the plot"}]}]
    whole = client.responses.create(model="gpt-tiny", input=items, instructions="be good", temperature=0,
                                    max_output_tokens=9)  # fmt: skip
    assert whole.status == "incomplete" and whole.incomplete_details.reason == "max_output_tokens"
    assert whole.usage.output_tokens == 9 and whole.output_text
    events = list(
        client.responses.create(model="gpt-tiny", input=items, instructions="be good", temperature=0,
                                max_output_tokens=9, stream=True)
    )  # fmt: skip
    assert [e.sequence_number for e in events] == list(range(len(events)))
    kinds = [e.type for e in events]
    assert kinds[:4] == ["response.created", "response.in_progress", "response.output_item.added",
                         "response.content_part.added"]  # fmt: skip
    assert kinds[-4:] == ["response.output_text.done", "response.content_part.done", "response.output_item.done",
                          "response.incomplete"]  # fmt: skip
    assert "".join(e.delta for e in events if e.type == "response.output_text.delta") == whole.output_text
    form: Any = {"format": {"type": "json_schema", "name": "x", "schema": {"enum": ["film"]}}}
    assert client.responses.create(model="gpt-tiny", input="film?", text=form).output_text == '"film"'


def test_responses_call_functions(client: Any) -> None:
    tool: Any = {"type": "function", "strict": None, **TOOL["function"]}
    asked: dict[str, Any] = dict(model="org/tools", input="weather", tools=[tool], max_output_tokens=180)
    whole = client.responses.create(**asked, tool_choice="required")
    (call,) = whole.output
    assert whole.status == "completed" and (call.type, call.name) == ("function_call", "weather")
    assert json.loads(call.arguments)["city"] in ("paris", "rome") and whole.tools[0].name == "weather"
    events = list(client.responses.create(**asked, tool_choice={"type": "function", "name": "weather"}, stream=True))
    assert [e.sequence_number for e in events] == list(range(len(events)))
    assert [e.type for e in events] == [
        "response.created", "response.in_progress", "response.output_item.added",
        "response.function_call_arguments.delta", "response.function_call_arguments.done",
        "response.output_item.done", "response.completed",
    ]  # fmt: skip
    assert events[3].delta == events[4].arguments == events[-1].response.output[0].arguments
    history = [{"role": "user", "content": "weather"}, call.model_dump(exclude_none=True),
               {"type": "function_call_output", "call_id": call.call_id, "output": "sunny"}]  # fmt: skip
    again = client.responses.create(**{**asked, "input": history, "max_output_tokens": 3})
    assert again.usage.input_tokens > whole.usage.input_tokens and again.output[0].type == "message"
    plain = client.responses.create(**{**asked, "max_output_tokens": 3}, tool_choice="none")
    assert plain.output[0].type == "message" and plain.usage.input_tokens < whole.usage.input_tokens
    for change in (
        {"tools": [{"type": "web_search"}]},
        {"tools": [{"type": "function"}]},
        {"tool_choice": "required", "tools": []},
    ):
        with pytest.raises(openai.BadRequestError, match="tool"):
            client.responses.create(**{**asked, **change})


def test_models_are_listed_shown_and_deleted(client: Any, live: SimpleNamespace) -> None:
    name = "ft:gpt-tiny:local:gone:ghi"
    add_job(live.services, "ftjob-gone", name, live.base, 7)
    assert [m.id for m in client.models.list()] == [
        "gpt-tiny",
        "encoder",
        "org/tools",
        "labels",
        name,
        TUNED[1],
        TUNED[0],
    ]
    assert client.models.retrieve("org/tools").id == "org/tools"
    assert client.models.retrieve(name).owned_by == "local"
    client.chat.completions.create(model=name, messages=ASK, max_tokens=1)
    assert name in live.services.pool.names()
    assert client.models.delete(name).deleted
    assert name not in live.services.pool.names()
    for gone in (name, f"{name}:ckpt-step-3"):
        with pytest.raises(openai.NotFoundError) as caught:
            client.chat.completions.create(model=gone, messages=ASK)
        assert caught.value.code == "model_not_found"
    assert name not in [m.id for m in client.models.list()]
    with pytest.raises(openai.PermissionDeniedError):
        client.models.delete("gpt-tiny")


# --- bad requests ----------------------------------------------------------------------------------------------------

BAD: list[tuple[dict[str, Any], str]] = [
    ({"model": "nothing"}, "model_not_found"),
    ({"model": "encoder"}, "unsupported_model"),
    ({"messages": [{"role": "user", "content": "film " * 300}]}, "context_length_exceeded"),
    ({"max_tokens": 500}, "context_length_exceeded"),
    ({"messages": []}, "invalid_value"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}, "unsupported_content"),
    ({"messages": [{"role": "user", "contents": "hi"}]}, "missing_parameter"),
    ({"messages": [{"role": "user", "content": "hi", "weigth": 1}]}, "unknown_parameter"),
    ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "missing_parameter"),
    ({"temperature": 3}, "invalid_value"),
    ({"stop": list("abcde")}, "invalid_value"),
    ({"logit_bias": {"99999": 1}}, "invalid_value"),
    ({"extra_body": {"unheard_of": 1}}, "unknown_parameter"),
    ({"response_format": {"type": "json_schema"}}, "missing_required_parameter"),
]


@pytest.mark.parametrize(("change", "code"), BAD, ids=lambda value: value if isinstance(value, str) else "")
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_bad_requests_get_openais_errors(change: dict[str, Any], code: str, stream: bool, client: Any) -> None:
    asked = {"model": "gpt-tiny", "messages": ASK, "max_tokens": 2, **change}
    with pytest.raises((openai.BadRequestError, openai.NotFoundError)) as caught:
        client.chat.completions.create(**asked, stream=stream)
    assert caught.value.code == code and caught.value.type == "invalid_request_error"
    if "messages" in change and code.endswith("_parameter"):
        assert caught.value.param.startswith("messages[0].")


# --- load ------------------------------------------------------------------------------------------------------------


def test_sixty_four_streams_at_once(live: SimpleNamespace) -> None:
    """Over three models on one base; none fails, and each gets what it would get alone."""
    names = ["gpt-tiny", *TUNED]

    async def ask(client: Any, number: int) -> str:
        stream = await client.chat.completions.create(
            model=names[number % 3], messages=[{"role": "user", "content": f"the film {number}"}], stream=True,
            max_tokens=20, temperature=1.2, seed=number,
        )  # fmt: skip
        return "".join([c.choices[0].delta.content or "" async for c in stream])

    async def all_of_them() -> tuple[list[str], list[str]]:
        async with openai.AsyncOpenAI(base_url=f"{live.address}/v1", api_key="x", max_retries=0) as client:
            together = await asyncio.gather(*(ask(client, n) for n in range(64)))
            return list(together), [await ask(client, n) for n in range(0, 64, 9)]

    together, alone = asyncio.run(all_of_them())
    assert together[::9] == alone
    assert len(set(together)) > 32


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
def test_a_client_that_goes_away_frees_its_row(
    stream: bool, client: Any, live: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    client.chat.completions.create(model="gpt-tiny", messages=ASK, max_tokens=1)
    host = live.services.pool._loaded["gpt-tiny"].host  # other models may be in memory too
    step, steps = host.engine._batch.step, itertools.count()
    monkeypatch.setattr(host.engine._batch, "step", lambda: (time.sleep(0.1), next(steps), step()))
    body = {"model": "gpt-tiny", "messages": ASK, "stream": stream, "logit_bias": {"2": -100}}
    if stream:
        with httpx.stream("POST", f"{live.address}/v1/chat/completions", json=body, timeout=180) as answer:
            lines = answer.iter_lines()
            next(lines)
            wait_for(lambda: host.engine.running == 1)
    else:
        with pytest.raises(httpx.TimeoutException):
            httpx.post(f"{live.address}/v1/chat/completions", json=body, timeout=0.5)
    wait_for(lambda: host.engine.running == 0)
    assert next(steps) < 100  # the whole answer would take twice as many
    wait_for(lambda: all(m.users == 0 for m in live.services.pool._loaded.values()))


def test_a_full_queue_is_429_with_a_time_to_come_back(live: SimpleNamespace, client: Any) -> None:
    client.chat.completions.create(model="gpt-tiny", messages=ASK, max_tokens=1)
    engine = live.services.pool._loaded["gpt-tiny"].host.engine
    limit, engine.queue_limit = engine.queue_limit, 0
    held, opened = threading.Event(), threading.Event()
    engine.call(lambda: (held.set(), opened.wait(120)))
    assert held.wait(120)
    try:
        first = threading.Thread(
            target=lambda: client.chat.completions.create(model="gpt-tiny", messages=ASK, max_tokens=1)
        )
        first.start()
        wait_for(lambda: engine.waiting == 1)
        with pytest.raises(openai.RateLimitError) as caught:
            client.chat.completions.create(model="gpt-tiny", messages=ASK, max_tokens=1)
        assert caught.value.code == "queue_full" and int(caught.value.response.headers["retry-after"]) >= 1
    finally:
        opened.set()
        engine.queue_limit = limit
    first.join()


def test_what_was_used_last_stays_in_memory(live: SimpleNamespace, client: Any) -> None:
    """A pool that holds the base and one adapter: a second one takes the first one's place."""
    from dataclasses import replace

    pool = live.services.pool
    for name in TUNED:
        client.chat.completions.create(model=name, messages=ASK, max_tokens=1)
    assert set(TUNED) <= set(pool.names())
    limits, adapter_bytes = pool.limits, pool._loaded[TUNED[0]].bytes
    for name in list(pool.names()):
        asyncio.run(pool.drop(name))
    client.chat.completions.create(model=TUNED[0], messages=ASK, max_tokens=1)
    pool.limits = replace(limits, memory_bytes=pool.bytes + adapter_bytes // 2)
    try:
        before = client.chat.completions.create(model=TUNED[0], messages=ASK, max_tokens=8, temperature=0)
        client.chat.completions.create(model=TUNED[1], messages=ASK, max_tokens=1)
        assert TUNED[1] in pool.names() and TUNED[0] not in pool.names()
        after = client.chat.completions.create(model=TUNED[0], messages=ASK, max_tokens=8, temperature=0)
        assert before.choices[0].message.content == after.choices[0].message.content
        pool.limits = replace(limits, memory_bytes=1000)
        with pytest.raises(openai.InternalServerError) as caught:
            client.chat.completions.create(model="encoder", messages=ASK)
        assert caught.value.code == "model_too_large"
    finally:
        pool.limits = limits
