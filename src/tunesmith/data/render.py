"""The one rendering: from a row to tokens and loss weights, for training, evaluation, few-shot prompts and serving.

Training and serving meet at the answer's first token: what stands before it is rendered by the same template and cut
at the same place, so the model is asked in service exactly what it was taught.
"""

from __future__ import annotations

import datetime
import functools
import itertools
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from tunesmith.data import templates
from tunesmith.data.fitting import TOO_LONG, TOO_LONG_FIX, fit
from tunesmith.data.rows import Origin, Row
from tunesmith.data.settings import LossOn
from tunesmith.data.thoughts import is_empty_thought
from tunesmith.errors import DataError
from tunesmith.tasks.base import Message, Task

PLAIN_TEMPLATE = (
    "{% for message in messages %}{{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}"
    "{% if not loop.last or add_generation_prompt %}{{ '\n' }}{% endif %}{% endfor %}"
)
"""For base models without a chat template: the texts, one under the other, with EOS behind each answer."""

TEMPLATE_DATE = datetime.datetime(2024, 7, 26)
"""The day that templates are told is today (the default of Llama 3's own). Llama 3.2 and others write the date into
the system message: with the real one, a model tuned today would be asked something else tomorrow, and a run that is
resumed after midnight would go on with other tokens."""

_NOW = re.compile(r"""strftime_now\(\s*(?P<quote>["'])(?P<format>.{0,99}?)(?P=quote)\s*\)""")
_NO_SYSTEM_ROLE = (
    "this template has no lasting place for a system message: write its text at the head of the first user message, "
    "for training and in service"
)
_FIRST_PLACEHOLDER = 0xF0000  # a plane of Unicode that is for private use: no text in the wild has it


@dataclass(frozen=True, slots=True)
class Rendered:
    """A row as the model sees it.

    Attributes:
        input_ids: Token ids, length S.
        loss_weights: For each token, the weight of the loss of predicting it (S values); ``None`` for a class label.
        label: Index of the class; ``None`` for generated text.
        cut_tokens: How many tokens were cut off to fit.
        extra: What an objective needs besides: name -> values of any number (a tag for each token, the tokens of a
            summary, a target for each class). All rows of a set have the same names.
    """

    input_ids: list[int]
    loss_weights: list[float] | None = None
    label: int | None = None
    cut_tokens: int = 0
    extra: Mapping[str, Sequence[int] | Sequence[float]] = field(default_factory=dict)


Render = Callable[[Row], Rendered]


def conversation_renderer(
    renderer: ConversationRenderer,
    task: Task,
    labels: Sequence[str] | None,
    system_prompt: str | None = None,
    loss_on: LossOn = "every-answer",
) -> Render:
    """Render rows for a model that writes the answer; the loss is on the answers.

    The returned function raises :class:`DataError` if every token or no token of an example would carry loss.
    """

    def render(row: Row) -> Rendered:
        row, cut = fit(task, row, length_of, renderer.max_length)
        messages = task.conversation(row, labels, system_prompt)
        if loss_on == "last-answer":
            messages = only_last_learned(messages)
        rendered = renderer(messages, tools=row.fields.get("tools"), origin=row.origin)
        return replace(rendered, cut_tokens=cut) if cut else rendered

    def length_of(row: Row) -> int:
        return renderer.length(task.conversation(row, labels, system_prompt), tools=row.fields.get("tools"))

    return render


def uncut(render: Render) -> Render:
    """The same rendering, which refuses rows that would lose their end (``data.truncate: false``).

    The returned function raises :class:`DataError` for such a row.
    """

    def whole(row: Row) -> Rendered:
        rendered = render(row)
        if rendered.cut_tokens:
            what = f"{TOO_LONG}; tokens too many: {rendered.cut_tokens:,}"
            raise DataError(what, where=str(row.origin), fix=TOO_LONG_FIX)
        return rendered

    return whole


def only_last_learned(messages: Sequence[Message]) -> list[Message]:
    """The same messages, those before the last without loss unless they name a weight of their own."""
    return [*({"weight": 0.0, **message} for message in messages[:-1]), *messages[-1:]]


def prompt_renderer(renderer: ConversationRenderer, task: Task, system_prompt: str | None = None) -> Render:
    """Render the prompts of rows alone, for a model that learns from answers of its own.

    The returned function raises :class:`DataError` if a prompt leaves no room for an answer.
    """

    def render(row: Row) -> Rendered:
        turns = task.conversation(row, None, system_prompt)
        prompt = renderer.prompt(turns[:-1], tools=row.fields.get("tools"))
        if len(prompt) >= renderer.max_length:
            raise DataError(
                f"the prompt has {len(prompt)} tokens, which leaves no room for an answer",
                where=str(row.origin),
                fix="raise `data.max_length`, or leave the row out",
            )
        return Rendered(prompt, loss_weights=[0.0] * len(prompt))

    return render


def encode_text(tokenizer: Any, text: str, max_length: int) -> tuple[list[int], int]:
    """Tokens of a bare text, cut to ``max_length`` with the model's own special tokens, and how many were cut.

    Special tokens spelled out inside the text stay text: a user must not be able to write ``[SEP]``.
    """
    encoded = tokenizer(text, truncation=True, max_length=max_length, split_special_tokens=True)
    wrapping = tokenizer.num_special_tokens_to_add()
    cut = sum(len(part.ids) - wrapping for part in encoded.encodings[0].overflowing)
    return list(encoded["input_ids"]), cut


def eos_token_ids(tokenizer: Any, generation_config: Any = None) -> list[int]:
    """All token ids that end an answer: the tokenizer's EOS and those of the generation config."""
    ids = getattr(generation_config, "eos_token_id", None)
    known = [ids] if isinstance(ids, int) else list(ids or [])
    if tokenizer.eos_token_id is not None:
        known.append(tokenizer.eos_token_id)
    return sorted(set(known))


class ConversationRenderer:
    """Turns messages into tokens with a tokenizer's chat template.

    Args:
        tokenizer: A fast tokenizer of transformers (character offsets are needed). Without a chat template it is
            given :data:`PLAIN_TEMPLATE` (behind BOS, if it puts one before bare texts), which is then saved with
            the model. A template that asks for the date gets :data:`TEMPLATE_DATE`, in the saved model too.
        max_length: Longest example in tokens; the tail of a longer one is cut.
        eos_ids: Token ids that end an answer; default: the tokenizer's EOS.
    """

    def __init__(self, tokenizer: Any, max_length: int, eos_ids: Sequence[int] | None = None) -> None:
        if not tokenizer.chat_template:
            tokenizer.chat_template = "{{ bos_token }}" * _adds_bos(tokenizer) + PLAIN_TEMPLATE
        tokenizer.chat_template = _on_a_fixed_day(tokenizer.chat_template)
        templates.start()
        specials = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.eos_ids = list(eos_ids or eos_token_ids(tokenizer))
        self._to_placeholder = {text: chr(_FIRST_PLACEHOLDER + n) for n, text in enumerate(specials)}
        self._from_placeholder = {mark: text for text, mark in self._to_placeholder.items()}
        self._special = re.compile("|".join(re.escape(s) for s in sorted(specials, key=len, reverse=True)) or "(?!)")
        self._placeholder = re.compile(f"[{''.join(self._from_placeholder)}]" if specials else "(?!)")

    def __call__(self, messages: Sequence[Message], *, tools: Any = None, origin: Origin | None = None) -> Rendered:
        """Tokens and loss weights of a whole conversation.

        Every assistant turn carries loss with its ``weight`` (1 unless given), from its first token to the EOS that
        ends it; EOS always carries loss, and is added where the template leaves it out.

        Raises:
            DataError: No token, or every token, would carry loss; a weight is no number of 0 or more; or the template
                cannot be used on these messages.
            TemplateLimitError: The template takes too much time or memory.
        """
        where = str(origin) if origin else None
        text = self._text(messages, tools, where)
        answers = self._answers(messages, tools, text, where)
        ids, offsets = self._tokens(text, [answer.start for answer in answers])
        weights = [0.0] * len(ids)
        for answer in answers:
            inside = [n for n, (a, b) in enumerate(offsets) if b > answer.start and a < answer.limit]
            ends = [n for n in inside if ids[n] in self.eos_ids]
            for n in inside:
                if n <= ends[0] if ends else offsets[n][0] < answer.end:
                    weights[n] = answer.weight
            if not ends and answer is answers[-1] and self.eos_ids:
                ids.append(self.tokenizer.eos_token_id or self.eos_ids[0])
                weights.append(answer.weight)
        cut = max(0, len(ids) - self.max_length)
        ids, weights = ids[: self.max_length], weights[: self.max_length]
        if not any(weights):
            raise DataError(
                "no token of this example carries loss, so nothing can be learned from it"
                + (f" (its first {self.max_length} tokens are all prompt)" if cut else ""),
                where=where,
                fix="raise `data.max_length`" if cut else "give it an answer with a weight over 0",
            )
        if all(weights):
            raise DataError(
                "every token of this example carries loss: there is no prompt before the answer",
                where=where,
                fix="give it a prompt; to learn from bare text use a language objective",
            )
        return Rendered(input_ids=ids, loss_weights=weights, cut_tokens=cut)

    def length(self, messages: Sequence[Message], *, tools: Any = None) -> int:
        """Tokens of a whole conversation, or one or two more: where an answer begins, a merge may be undone."""
        return len(self._tokens(self._text(messages, tools, None), [])[0]) + 2

    def prompt(self, messages: Sequence[Message], *, tools: Any = None, thought: bool = True) -> list[int]:
        """Tokens of a conversation up to the point where the model begins its answer.

        Args:
            messages: Without the answer.
            tools: That may be called.
            thought: Whether a model that thinks before it answers may. If not, the empty thought which its template
                puts before an answer without one is already written.
        """
        text = self._text(messages, tools, None, add_generation_prompt=True)
        return self._tokens(text if thought else text + self._empty_thought, [])[0]

    @functools.cached_property
    def _empty_thought(self) -> str:
        """What the template writes between a prompt and an answer, if that is an empty thought."""
        question, answer = {"role": "user", "content": "?"}, "!"
        prompt = self._text([question], None, None, add_generation_prompt=True)
        whole = self._text([question, {"role": "assistant", "content": answer}], None, None)
        between = whole.removeprefix(prompt).partition(answer)[0]
        return between if is_empty_thought(between) else ""

    def _text(
        self, messages: Sequence[Message], tools: Any, where: str | None, add_generation_prompt: bool = False
    ) -> str:
        """Apply the template, with every special token that the data spell out replaced by a placeholder."""
        # Columnar formats fill absent keys with None, which templates take for present (`'tool_calls' in message`).
        given = [{key: value for key, value in message.items() if value is not None} for message in messages]
        safe = [{"content": "", **self._neutral(message)} for message in given]
        tools = self._neutral(tools) or None
        _refuse_unwritten(str(self.tokenizer.chat_template), given, tools, where)
        try:
            return templates.render(
                self.tokenizer.get_chat_template(tools=tools),
                safe,
                tools=tools,
                add_generation_prompt=add_generation_prompt,
                variables=self.tokenizer.special_tokens_map,
            )
        except (templates.TemplateError, ValueError) as error:  # none of several templates is the default one
            fix = "most templates want an optional system message first, then user and assistant in turn"
            if messages and messages[0].get("role") == "system" and self._takes(messages[1:], tools):
                fix = _NO_SYSTEM_ROLE
            what = f"the model's chat template refuses these messages: {error}"
            raise DataError(what, where=where, fix=fix) from error

    def _takes(self, messages: Sequence[Message], tools: Any) -> bool:
        """Whether the template has nothing against these messages."""
        try:
            self._text(messages, tools, None)
        except DataError:
            return False
        return True

    def _neutral(self, value: Any) -> Any:
        if isinstance(value, str):
            return self._special.sub(lambda match: self._to_placeholder[match.group()], value)
        if isinstance(value, list):
            return [self._neutral(item) for item in value]
        if isinstance(value, dict):
            return {key: self._neutral(item) for key, item in value.items()}
        return value

    def _answers(self, messages: Sequence[Message], tools: Any, text: str, where: str | None) -> list[_Answer]:
        """Where the assistant's turns with weight stand in the rendered text."""
        answers: list[_Answer] = []
        for number, message in enumerate(messages):
            weight = _weight(message, number, where)
            if message.get("role") != "assistant" or not weight:
                continue
            prefix = self._text(messages[:number], tools, where, add_generation_prompt=True)
            if not text.startswith(prefix):
                system = messages[0].get("role") == "system" and number == 2
                fix = f"give message {number + 1} `weight: 0`, or split the conversation before it"
                raise DataError(
                    f"the model's chat template writes what stands before message {number + 1} differently once the "
                    "answer is known, so training and serving would not see the same prompt",
                    where=where,
                    fix=_NO_SYSTEM_ROLE if system else fix,
                )
            last = number == len(messages) - 1
            end = len(text) if last else _common_prefix(text, self._text(messages[: number + 1], tools, where))
            if answers:
                answers[-1].limit = min(answers[-1].limit, len(prefix))
            answers.append(_Answer(start=len(prefix), end=end, limit=len(text), weight=weight))
        return answers

    def _tokens(self, text: str, starts: Sequence[int]) -> tuple[list[int], list[tuple[int, int]]]:
        """Tokenize a rendered text; no token crosses one of ``starts`` or the edge of a placeholder.

        Returns:
            Token ids and their character offsets in ``text``.
        """
        cuts = {0, len(text)}
        for match in self._placeholder.finditer(text):
            cuts |= {match.start(), match.end()}
        ids, offsets = self._segments(text, sorted(cuts))
        edges = {offset for span in offsets for offset in range(span[0] + 1, span[1])}
        crossed = [start for start in starts if start in edges]
        if crossed:  # rare: a merge over the boundary that serving, which tokenizes the prompt alone, cannot make
            ids, offsets = self._segments(text, sorted(cuts | set(crossed)))
        return ids, offsets

    def _segments(self, text: str, cuts: Sequence[int]) -> tuple[list[int], list[tuple[int, int]]]:
        ids: list[int] = []
        offsets: list[tuple[int, int]] = []
        for start, end in itertools.pairwise(cuts):
            part = text[start:end]
            literal = self._from_placeholder.get(part)
            encoded = self.tokenizer(
                literal or part,
                add_special_tokens=False,
                split_special_tokens=literal is not None,
                return_offsets_mapping=True,
                verbose=False,
            )
            ids += encoded["input_ids"]
            offsets += [(start, end) if literal else (start + a, start + b) for a, b in encoded["offset_mapping"]]
        return ids, offsets


@dataclass
class _Answer:
    """Character positions of one assistant turn: it ends with the first EOS before ``limit``, or else at ``end``."""

    start: int
    end: int
    limit: int
    weight: float


def _refuse_unwritten(template: str, messages: Sequence[Mapping[str, Any]], tools: Any, where: str | None) -> None:
    """A template that knows no tools leaves them out, and a call with them: an empty answer would be learned."""
    lost = [name for name, given in (("tools", tools), ("tool_calls", any(m.get("tool_calls") for m in messages)))
            if given and name not in template]  # fmt: skip
    if lost:
        raise DataError(
            f"the model's chat template knows no `{lost[0]}`: what the row holds there would be left out",
            where=where,
            fix="choose a model whose template does (Qwen 2.5 and 3, Llama 3.2), or leave such rows out",
        )


def _weight(message: Message, number: int, where: str | None) -> float:
    """The loss weight of a message: 1 unless it says otherwise."""
    given = message.get("weight")
    try:
        weight = 1.0 if given is None else float(given)
    except (TypeError, ValueError):
        weight = math.nan
    if not (math.isfinite(weight) and weight >= 0):
        raise DataError(
            f"the weight of message {number + 1} is {given!r}",
            where=where,
            fix="give a number of 0 or more, or leave it out (1)",
        )
    return weight


def _on_a_fixed_day(template: Any) -> Any:
    """A template (or several by name) that writes :data:`TEMPLATE_DATE` where it would write today's."""
    if isinstance(template, dict):
        return {name: _on_a_fixed_day(text) for name, text in template.items()}
    return _NOW.sub(lambda match: json.dumps(TEMPLATE_DATE.strftime(match["format"])), template)


def _adds_bos(tokenizer: Any) -> bool:
    """Whether the tokenizer puts BOS before a bare text, as the model saw its texts in pre-training."""
    return tokenizer.bos_token_id is not None and tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]


def _common_prefix(first: str, second: str) -> int:
    """Length of the longest common prefix."""
    shorter = min(len(first), len(second))
    return next((n for n in range(shorter) if first[n] != second[n]), shorter)
