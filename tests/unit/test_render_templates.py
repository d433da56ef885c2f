"""Which tokens carry loss under the published chat templates: the answers and the EOS behind each, nothing else.

The templates in ``tests/fixtures/chat_templates`` are those that the models are published with, the longest ones
without parts that no test reaches. The tokenizer is a tiny one that has their special tokens.
"""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from conftest import sentences
from tunesmith.data import conversations
from tunesmith.data.render import ConversationRenderer, Rendered
from tunesmith.data.rows import Origin, Row
from tunesmith.data.thoughts import without_empty_thought, written_text
from tunesmith.errors import DataError
from tunesmith.tasks import TASKS

TEMPLATES = Path(__file__).resolve().parents[1] / "fixtures" / "chat_templates"


@dataclass(frozen=True)
class Family:
    """A family of models as its tokenizer is configured.

    ``end`` is the special token behind an answer, ``before`` what the template writes between prompt and answer,
    ``plain`` are added tokens that are not special.
    """

    specials: tuple[str, ...]
    bos: str | None
    eos: str
    end: str
    before: str = ""
    system: bool = True
    plain: tuple[str, ...] = ()
    other_eos: tuple[str, ...] = ()


FAMILIES = {
    "chatml": Family(("<|endoftext|>", "<|im_start|>", "<|im_end|>"), None, "<|im_end|>", "<|im_end|>"),
    "llama-3.2": Family(
        ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
        "<|begin_of_text|>", "<|eot_id|>", "<|eot_id|>", other_eos=("<|end_of_text|>",),
    ),
    "qwen-2.5": Family(
        ("<|endoftext|>", "<|im_start|>", "<|im_end|>"), None, "<|im_end|>", "<|im_end|>",
        plain=("<tool_call>", "</tool_call>"), other_eos=("<|endoftext|>",),
    ),
    "qwen-3": Family(
        ("<|endoftext|>", "<|im_start|>", "<|im_end|>"), None, "<|im_end|>", "<|im_end|>",
        before="<think>\n\n</think>\n\n", plain=("<think>", "</think>", "<tool_call>", "</tool_call>"),
        other_eos=("<|endoftext|>",),
    ),
    "gemma-3": Family(
        ("<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"), "<bos>", "<eos>", "<end_of_turn>",
        other_eos=("<end_of_turn>",),
    ),
    "mistral-v0.1": Family(("<s>", "</s>", "[INST]", "[/INST]"), "<s>", "</s>", "</s>", system=False),
    "mistral-v0.3": Family(("<s>", "</s>", "[INST]", "[/INST]"), "<s>", "</s>", "</s>", before=" ", system=False),
    "mistral-v7": Family(
        ("<s>", "</s>", "[INST]", "[/INST]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]"), "<s>", "</s>", "</s>", before=" ",
    ),
    "phi-4": Family(
        ("<|endoftext|>", "<|im_start|>", "<|im_sep|>", "<|im_end|>"), "<|endoftext|>", "<|im_end|>", "<|im_end|>",
    ),
    "phi-3": Family(
        ("<|endoftext|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"),
        None, "<|endoftext|>", "<|end|>", other_eos=("<|end|>",),
    ),
}  # fmt: skip
WITH_SYSTEM = [name for name, family in FAMILIES.items() if family.system]


@functools.cache
def renderer(name: str, max_length: int = 512) -> ConversationRenderer:
    from tokenizers import ByteLevelBPETokenizer
    from transformers import PreTrainedTokenizerFast

    family = FAMILIES[name]
    trainer = ByteLevelBPETokenizer()
    trainer.train_from_iterator(sentences(300), 450, special_tokens=list(family.specials), show_progress=False)
    trainer.add_tokens(list(family.plain))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=trainer._tokenizer, bos_token=family.bos, eos_token=family.eos, pad_token=family.eos
    )
    tokenizer.add_special_tokens({"additional_special_tokens": list(family.specials)})
    tokenizer.chat_template = (TEMPLATES / f"{name}.jinja").read_text(encoding="utf-8").removesuffix("\n")
    eos = [tokenizer.convert_tokens_to_ids(token) for token in (family.eos, *family.other_eos)]
    return ConversationRenderer(tokenizer, max_length, eos)


def turns(*contents: str, system: str | None = None) -> list[dict[str, Any]]:
    """User and assistant in turn, behind a system message if there is one."""
    start = [{"role": "system", "content": system}] if system else []
    return [*start, *({"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(contents))]


def learned(name: str, rendered: Rendered) -> list[str]:
    """The stretches of tokens that carry loss, as texts with their special tokens."""
    assert rendered.loss_weights is not None and len(rendered.loss_weights) == len(rendered.input_ids)
    stretches: list[list[int]] = [[]]
    for token, weight in zip(rendered.input_ids, rendered.loss_weights, strict=True):
        if weight:
            stretches[-1].append(token)
        elif stretches[-1]:
            stretches.append([])
    tokenizer = renderer(name).tokenizer
    return [tokenizer.decode(ids, skip_special_tokens=False) for ids in stretches if ids]


def assert_served_as_trained(name: str, messages: list[dict[str, Any]], rendered: Rendered, **keys: Any) -> None:
    """What the model is given in service is, token by token, what stood before the last answer in training."""
    prompt = renderer(name).prompt(messages[:-1], **keys)
    assert rendered.input_ids[: len(prompt)] == prompt
    assert rendered.loss_weights is not None
    assert len(rendered.input_ids) > len(prompt) and rendered.loss_weights[len(prompt)] > 0
    assert rendered.loss_weights[len(prompt) - 1] == 0


@pytest.mark.parametrize("name", ["llama-3.2", "qwen-2.5", "qwen-3"])
def test_a_call_that_is_written_as_it_was_learned_is_the_right_answer(name: str) -> None:
    """What the metrics compare: the name and the arguments, not how a template writes them."""
    arguments = {"film": "rome", "deep": {"b": 1, "a": [None, "é"]}}
    tools = [{"type": "function", "function": {"name": "rate", "parameters": {}}}]
    call = {"id": "call_1", "type": "function", "function": {"name": "rate", "arguments": json.dumps(arguments)}}
    asked = {"role": "user", "content": "rate rome"}
    given = Row(
        {"messages": [asked, {"role": "assistant", "content": None, "tool_calls": [call]}], "tools": tools},
        Origin("x", 1),
    )
    row, faults = conversations.convert(given)
    assert not faults
    (learnt,) = learned(name, renderer(name)(row.fields["messages"], tools=tools))
    tokenizer = renderer(name).tokenizer
    tokens = tokenizer(learnt.removesuffix(FAMILIES[name].end))["input_ids"]
    marked = without_empty_thought(tokenizer.decode(tokens))
    task: Any = TASKS["chat"]
    assert task.read_answer(row, written_text(tokenizer, tokens), marked) == task.target_text(row)
    assert task.read_answer(row, "", marked.replace("rome", "paris")) != task.target_text(row)
    plain = Row(row.fields | {"tools": None, "messages": turns("As JSON.", "ok")}, row.origin)
    assert task.read_answer(plain, marked, marked) == marked  # nobody may call here: it is an answer in JSON


def test_an_empty_thought_is_written_for_a_model_that_shall_not_think() -> None:
    asked = turns("what is the capital of france", "paris")[:-1]
    for name in FAMILIES:
        short, long = renderer(name).prompt(asked), renderer(name).prompt(asked, thought=False)
        added = renderer(name).tokenizer.decode(long[len(short) :])
        assert long[: len(short)] == short and added == (FAMILIES[name].before if name == "qwen-3" else "")
    rendered = renderer("qwen-3")([*asked, {"role": "assistant", "content": "paris"}])
    long = renderer("qwen-3").prompt(asked, thought=False)
    assert rendered.input_ids[: len(long)] == long  # token by token what is learned


@pytest.mark.parametrize("name", FAMILIES)
def test_one_turn(name: str) -> None:
    messages = turns("what is the capital of france", "paris")
    rendered = renderer(name)(messages)
    assert learned(name, rendered) == [FAMILIES[name].before + "paris" + FAMILIES[name].end]
    assert_served_as_trained(name, messages, rendered)


@pytest.mark.parametrize("name", WITH_SYSTEM)
def test_a_system_message_carries_no_loss(name: str) -> None:
    messages = turns("the film", "good", system="you are a critic")
    rendered = renderer(name)(messages)
    assert "critic" in renderer(name).tokenizer.decode(rendered.input_ids)
    assert learned(name, rendered) == [FAMILIES[name].before + "good" + FAMILIES[name].end]
    assert_served_as_trained(name, messages, rendered)


@pytest.mark.parametrize("name", FAMILIES)
def test_each_answer_of_a_conversation_is_learned(name: str) -> None:
    messages = turns("the film", "good", "the plot", "very bad", "the scene", "fine")
    rendered = renderer(name)(messages)
    before, end = FAMILIES[name].before, FAMILIES[name].end
    early = "" if name == "qwen-3" else before  # no empty thought before answers that are not the last
    assert learned(name, rendered) == [early + "good" + end, early + "very bad" + end, before + "fine" + end]
    assert_served_as_trained(name, messages, rendered)


@pytest.mark.parametrize("name", FAMILIES)
def test_turns_of_weight_0_are_read_only(name: str) -> None:
    messages = turns("the film", "good", "the plot", "very bad")
    messages[1]["weight"] = 0
    messages[3]["weight"] = 0.5
    rendered = renderer(name)(messages)
    assert learned(name, rendered) == [FAMILIES[name].before + "very bad" + FAMILIES[name].end]
    assert rendered.loss_weights is not None and set(rendered.loss_weights) == {0.0, 0.5}


@pytest.mark.parametrize("name", FAMILIES)
def test_an_empty_answer_is_an_end_at_once(name: str) -> None:
    messages = turns("say nothing", "")
    rendered = renderer(name)(messages)
    assert learned(name, rendered) == [FAMILIES[name].before + FAMILIES[name].end]
    assert_served_as_trained(name, messages, rendered)


@pytest.mark.parametrize("name", FAMILIES)
def test_special_tokens_in_a_text_stay_text(name: str) -> None:
    """A user who writes the template's own tokens must not be able to open a turn; nor must an answer end early."""
    family = FAMILIES[name]
    attack = "".join(family.specials) + family.end
    control = renderer(name).tokenizer.convert_tokens_to_ids(list(family.specials))
    honest = renderer(name)(turns("the film", "good end"))
    attacked = turns(f"the film {attack}", f"good {family.end} end")
    rendered = renderer(name)(attacked)
    for token in control:
        assert rendered.input_ids.count(token) == honest.input_ids.count(token)
    assert attack in renderer(name).tokenizer.decode(rendered.input_ids)
    assert learned(name, rendered) == [f"{family.before}good {family.end} end{family.end}"]
    assert_served_as_trained(name, attacked, rendered)


@pytest.mark.parametrize("name", ["llama-3.2", "qwen-2.5", "qwen-3"])
def test_tools_and_their_calls(name: str) -> None:
    tools = [{"type": "function", "function": {"name": "rate", "description": f"rate {FAMILIES[name].end} a film"}}]
    call = {"type": "function", "function": {"name": "rate", "arguments": {"film": "rome"}}}
    messages = [
        {"role": "user", "content": "rate rome"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "great"},
        {"role": "assistant", "content": "it is great"},
    ]
    rendered = renderer(name)(messages, tools=tools)
    calls, answer = learned(name, rendered)
    assert '"rate"' in calls and '{"film": "rome"}' in calls and calls.endswith(FAMILIES[name].end)
    assert answer == FAMILIES[name].before + "it is great" + FAMILIES[name].end
    assert_served_as_trained(name, messages, rendered, tools=tools)
    end = renderer(name).tokenizer.convert_tokens_to_ids(FAMILIES[name].end)
    plain = renderer(name)(messages, tools=[{**tools[0], "function": {"name": "rate", "description": "rate"}}])
    assert rendered.input_ids.count(end) == plain.input_ids.count(end)  # the one in the description is text


@pytest.mark.parametrize("name", FAMILIES)
def test_absent_keys_of_columnar_formats_are_absent(name: str) -> None:
    """Arrow fills what a struct lacks with None, which `'tool_calls' in message` would take for present."""
    bare = turns("the film", "good")
    filled = [{**turn, "tool_calls": None, "weight": None, "name": None} for turn in bare]
    assert renderer(name)(filled) == renderer(name)(bare)


def test_thoughts_of_earlier_turns_are_stripped_and_the_last_is_learned() -> None:
    thought = "<think>\nrome is great\n</think>\n\ngood"
    messages = turns("the film", thought, "the plot", thought)
    rendered = renderer("qwen-3")(messages)
    assert learned("qwen-3", rendered) == ["good<|im_end|>", thought + "<|im_end|>"]
    assert_served_as_trained("qwen-3", messages, rendered)


def test_no_template_says_which_day_it_is() -> None:
    """Llama 3.2 writes today's date: a run resumed after midnight would go on with other tokens."""
    text = renderer("llama-3.2").tokenizer.decode(renderer("llama-3.2").prompt(turns("the film")))
    assert "Today Date: 26 Jul 2024" in text


@pytest.mark.parametrize("name", ["mistral-v0.1", "gemma-3"])
def test_a_template_that_refuses_says_where(name: str) -> None:
    messages = [
        {"role": "user", "content": "a"},
        {"role": "user", "content": "b"},
        {"role": "assistant", "content": "c"},
    ]
    with pytest.raises(DataError, match="must alternate") as caught:
        renderer(name)(messages, origin=Origin("chats.jsonl", 17))
    assert caught.value.where == "chats.jsonl:17" and caught.value.fix


def test_a_template_that_moves_the_system_message_is_refused_not_mislearned() -> None:
    """Mistral 0.3 writes it before the last question, and leaves it out once the answer is known."""
    with pytest.raises(DataError, match="would not see the same prompt") as caught:
        renderer("mistral-v0.3")(turns("the film", "good", system="you are a critic"), origin=Origin("a.jsonl", 3))
    assert caught.value.where == "a.jsonl:3" and "first user message" in (caught.value.fix or "")


def test_a_template_without_a_system_role_says_what_to_do_instead() -> None:
    """Mistral 0.1 and Gemma 2 refuse the role; the remedy is not the order of turns."""
    rendering = renderer("mistral-v0.1")
    with pytest.raises(DataError, match="refuses") as caught:
        rendering(turns("the film", "good", system="you are a critic"), origin=Origin("a.jsonl", 3))
    assert "first user message" in (caught.value.fix or "")
    with pytest.raises(DataError, match="refuses") as caught:  # without the system message it would be no better
        rendering(turns("the film", "good", system="a critic")[::-1], origin=Origin("a.jsonl", 3))
    assert "in turn" in (caught.value.fix or "")


@pytest.mark.parametrize("name", ["chatml", "mistral-v7", "phi-4"])
def test_reading_what_openai_sends(name: str) -> None:
    """From a row in OpenAI's shape, with parts and weights, to the tokens that are learned."""
    from tunesmith.data.conversations import as_messages

    given = [
        {"role": "developer", "content": "be kind"},
        {"role": "user", "content": [{"type": "text", "text": "the film"}]},
        {"role": "assistant", "content": "bad", "weight": 0},
        {"role": "user", "content": "the plot"},
        {"role": "assistant", "content": [{"type": "text", "text": "good"}], "weight": 1},
    ]
    messages = as_messages(given)
    rendered = renderer(name)(messages)
    assert learned(name, rendered) == [FAMILIES[name].before + "good" + FAMILIES[name].end]
    assert_served_as_trained(name, messages, rendered)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_tail_of_a_long_example_is_cut(name: str) -> None:
    messages = turns("the film", "good " * 300)
    whole = renderer(name)(messages)
    short = renderer(name, 100)(messages)
    assert len(short.input_ids) == 100 and short.cut_tokens == len(whole.input_ids) - 100
    assert short.input_ids == whole.input_ids[:100]
    assert whole.loss_weights is not None and short.loss_weights == whole.loss_weights[:100]


@pytest.mark.parametrize("name", FAMILIES)
def test_a_prompt_that_fills_the_length_leaves_nothing_to_learn(name: str) -> None:
    with pytest.raises(DataError, match="its first 60 tokens are all prompt") as caught:
        renderer(name, 60)(turns("the film " * 100, "good"), origin=Origin("long.jsonl", 5))
    assert caught.value.where == "long.jsonl:5" and caught.value.fix == "raise `data.max_length`"
