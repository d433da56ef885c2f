"""The one rendering: what is asked in service is what was taught, for any text."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import CHATML, sentences
from tunesmith.data.render import ConversationRenderer, encode_text, eos_token_ids
from tunesmith.data.rows import Origin
from tunesmith.errors import DataError
from tunesmith.models.load import load_tokenizer

KINDS = ("byte-level", "metaspace", "split digits")
PIECES = [*"ab 'é\n\t1.", "the", " film", "  ", "\n\n", "<|im_end|>", "<|im_start|>"]
TEXTS = st.lists(st.sampled_from(PIECES), max_size=12).map("".join)


@functools.cache
def tokenizer_of(kind: str, template: str | None = CHATML) -> Any:
    """Three families of tokenizers: GPT-2's bytes, SentencePiece's `▁`, and Llama 3's pieces of a pattern."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.BPE(byte_fallback=kind == "metaspace", unk_token="<unk>" if kind == "metaspace" else None))
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    if kind == "metaspace":
        made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
        made.decoder = decoders.Metaspace()
        trainer = trainers.BpeTrainer(
            vocab_size=400, show_progress=False,
            special_tokens=[*specials, "<unk>", *(f"<0x{n:02X}>" for n in range(256))],
        )  # fmt: skip
    else:
        bytes_ = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=kind == "byte-level")
        pattern = Regex(
            r"(?i:'s|'t)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
        )
        split = pre_tokenizers.Split(pattern, "isolated")
        made.pre_tokenizer = bytes_ if kind == "byte-level" else pre_tokenizers.Sequence([split, bytes_])
        made.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=400, show_progress=False, special_tokens=specials,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        )  # fmt: skip
    edges = ["user\nassistant\n\n\n  'a' ab aab\n\n a\n the"] * 300  # merges over what stands between prompt and answer
    made.train_from_iterator([*sentences(200), *edges], trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<|im_end|>", pad_token="<|im_end|>")
    tokenizer.add_special_tokens({"additional_special_tokens": specials})
    tokenizer.chat_template = template
    return tokenizer


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=150)
@given(question=TEXTS, answer=TEXTS)
def test_the_prompt_is_the_beginning_of_the_example(kind: str, question: str, answer: str) -> None:
    """Whatever stands at the edge: a merge over it would make training and serving differ by a token."""
    rendering = ConversationRenderer(tokenizer_of(kind), 10_000)
    asked = [{"role": "user", "content": question}]
    rendered = rendering([*asked, {"role": "assistant", "content": answer}])
    prompt = rendering.prompt(asked)
    assert rendered.input_ids[: len(prompt)] == prompt
    assert rendered.loss_weights is not None
    assert not any(rendered.loss_weights[: len(prompt)])
    tail = rendered.loss_weights[len(prompt) :]
    end = rendered.input_ids[len(prompt) :].index(rendering.eos_ids[0])  # an EOS in the text is no EOS
    assert tail == [1.0] * (end + 1) + [0.0] * (len(tail) - end - 1)


@pytest.mark.parametrize("kind", ["byte-level", "split digits"])
@settings(max_examples=100)
@given(question=TEXTS, answer=TEXTS)
def test_the_learned_tokens_spell_the_answer(kind: str, question: str, answer: str) -> None:
    rendering = ConversationRenderer(tokenizer_of(kind), 10_000)
    rendered = rendering([{"role": "user", "content": question}, {"role": "assistant", "content": answer}])
    assert rendered.loss_weights is not None
    learned = [t for t, w in zip(rendered.input_ids, rendered.loss_weights, strict=True) if w]
    assert rendering.tokenizer.decode(learned) == answer + "<|im_end|>"


@pytest.mark.parametrize("kind", KINDS)
def test_a_base_model_without_a_template(kind: str) -> None:
    """Texts one under the other, EOS behind the answer, which the template leaves to us to learn."""
    rendering = ConversationRenderer(tokenizer_of(kind, None), 100)
    asked = [{"role": "user", "content": "the film"}]
    rendered = rendering([*asked, {"role": "assistant", "content": "good"}])
    assert rendering.tokenizer.decode(rendered.input_ids) == "the film\ngood<|im_end|>"
    prompt = rendering.prompt(asked)
    assert rendered.input_ids[: len(prompt)] == prompt
    assert rendered.loss_weights == [0.0] * len(prompt) + [1.0] * (len(rendered.input_ids) - len(prompt))
    assert rendering.tokenizer.chat_template  # it is saved with the model


def test_a_base_model_that_wants_bos_gets_it() -> None:
    """Gemma and Llama saw every text of their pre-training behind BOS; without it they are other models."""
    from tokenizers.processors import TemplateProcessing

    tokenizer = load_copy(tokenizer_of("byte-level"))
    tokenizer.chat_template = None
    tokenizer.bos_token = "<|endoftext|>"
    bos = tokenizer.bos_token_id
    without = ConversationRenderer(load_copy(tokenizer, template=None), 100).prompt([{"role": "user", "content": "a"}])
    assert without[0] != bos  # GPT-2 has a BOS and does not write it
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", bos)]
    )
    assert ConversationRenderer(tokenizer, 100).prompt([{"role": "user", "content": "a"}]) == [bos, *without]


def load_copy(tokenizer: Any, template: str | None = CHATML) -> Any:
    from copy import deepcopy

    copied = deepcopy(tokenizer)
    copied.chat_template = template
    return copied


def test_a_template_without_an_end_gets_one() -> None:
    template = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}"
    template += "{% if add_generation_prompt %}assistant: {% endif %}"
    rendering = ConversationRenderer(tokenizer_of("byte-level", template), 100)
    rendered = rendering([{"role": "user", "content": "the film"}, {"role": "assistant", "content": "good"}])
    assert rendering.tokenizer.decode(rendered.input_ids).endswith("assistant: good\n<|im_end|>")
    assert rendered.loss_weights is not None and rendered.loss_weights[-1] == 1.0


def test_rows_without_loss_and_rows_without_a_prompt_are_errors() -> None:
    rendering = ConversationRenderer(tokenizer_of("byte-level", "{{ messages[-1]['content'] }}"), 100)
    answer = {"role": "assistant", "content": "good film"}
    with pytest.raises(DataError, match="no token of this example") as caught:
        rendering([{"role": "user", "content": ""}, {**answer, "weight": 0}], origin=Origin("a.jsonl", 3))
    assert caught.value.where == "a.jsonl:3" and caught.value.fix
    with pytest.raises(DataError, match="every token of this example") as caught:
        rendering([{"role": "user", "content": ""}, answer], origin=Origin("a.jsonl", 4))
    assert caught.value.where == "a.jsonl:4" and caught.value.fix


def test_tools_that_a_template_would_leave_out_are_errors() -> None:
    renderer = ConversationRenderer(tokenizer_of("byte-level"), 512)
    asked: list[Any] = [{"role": "user", "content": "what is the weather like"}]
    call = {"type": "function", "function": {"name": "weather", "arguments": {}}}
    called = [*asked, {"role": "assistant", "content": None, "tool_calls": [call]}]
    with pytest.raises(DataError, match="knows no `tool_calls`") as caught:
        renderer(called, origin=Origin("calls.jsonl", 7))
    assert caught.value.where == "calls.jsonl:7" and "Qwen" in str(caught.value.fix)
    with pytest.raises(DataError, match="knows no `tools`"):
        renderer.prompt(asked, tools=[{"type": "function", "function": {"name": "weather"}}])


@pytest.mark.parametrize("weight", ["much", -1, float("nan"), float("inf"), [1]])
def test_a_weight_that_is_no_weight(weight: Any) -> None:
    rendering = ConversationRenderer(tokenizer_of("byte-level"), 100)
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "weight": weight}]
    with pytest.raises(DataError, match="the weight of message 2") as caught:
        rendering(messages, origin=Origin("a.jsonl", 9))
    assert caught.value.where == "a.jsonl:9"


def test_special_tokens_in_a_bare_text_stay_text(tiny_bert: Path) -> None:
    tokenizer = load_tokenizer(tiny_bert)
    ids, cut = encode_text(tokenizer, "good [SEP] [CLS] bad [MASK] [PAD]", 64)
    assert cut == 0
    for token in (tokenizer.sep_token_id, tokenizer.cls_token_id):
        assert ids.count(token) == 1
    assert tokenizer.mask_token_id not in ids and tokenizer.pad_token_id not in ids


@pytest.mark.parametrize("length", [8, 11, 25])
def test_a_long_text_keeps_its_special_tokens_and_says_what_was_cut(length: int, tiny_bert: Path) -> None:
    tokenizer = load_tokenizer(tiny_bert)
    whole, _ = encode_text(tokenizer, "good bad " * 20, 64)
    ids, cut = encode_text(tokenizer, "good bad " * 20, length)
    assert ids == [*whole[: length - 1], tokenizer.sep_token_id]
    assert len(ids) + cut == len(whole)


def test_ends_of_answers_come_from_tokenizer_and_generation_config() -> None:
    from types import SimpleNamespace

    tokenizer: Any = SimpleNamespace(eos_token_id=2)
    assert eos_token_ids(tokenizer) == [2]
    assert eos_token_ids(tokenizer, SimpleNamespace(eos_token_id=[7, 2])) == [2, 7]
    assert eos_token_ids(tokenizer, SimpleNamespace(eos_token_id=5)) == [2, 5]
    assert eos_token_ids(SimpleNamespace(eos_token_id=None), SimpleNamespace(eos_token_id=None)) == []


def test_labels_are_scored_as_they_were_taught() -> None:
    """Qwen 3 writes an empty thought before each answer: a label without it was never seen in training."""
    from tunesmith.prediction.answering import _answer_tokens

    template = CHATML.replace(
        "message['content'] +", "('<t>' if message['role'] == 'assistant' else '') + message['content'] +"
    )
    rendering = ConversationRenderer(tokenizer_of("byte-level", template), 100)
    found = _answer_tokens(rendering, "good")
    assert rendering.tokenizer.decode(found) == "<t>good<|im_end|>"
    assert found[-1] == rendering.eos_ids[0]


@pytest.mark.parametrize("kind", ["byte-level", "split digits"])
def test_a_merge_over_the_edge_is_not_made(kind: str) -> None:
    """Two newlines are one token here: the first ends the prompt, the second begins the answer."""
    rendering = ConversationRenderer(tokenizer_of(kind), 100)
    assert len(rendering.tokenizer("\n\n")["input_ids"]) == 1
    asked = [{"role": "user", "content": "the film"}]
    rendered = rendering([*asked, {"role": "assistant", "content": "\n"}])
    prompt = rendering.prompt(asked)
    assert rendered.input_ids[: len(prompt)] == prompt
    assert rendering.tokenizer.decode(rendered.input_ids[len(prompt) :]) == "\n<|im_end|>\n"
