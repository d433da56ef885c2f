"""How each kind of system answers test rows: the tuned model, prompts with and without examples, frozen features."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from tunesmith.arrays import FloatArray
from tunesmith.data.fitting import fit
from tunesmith.data.render import ConversationRenderer, encode_text
from tunesmith.data.rows import Row
from tunesmith.data.source_target import encode_target, source_text
from tunesmith.data.thoughts import without_empty_thought, written_text
from tunesmith.events import Listener, Notice
from tunesmith.models import inference, vectors, vision
from tunesmith.models.image_classifier import ImageClassifier
from tunesmith.models.model import TEXT_HEADS, Model
from tunesmith.prediction import preferences
from tunesmith.prediction.features import LinearHead, fit_label_heads, fit_linear_head, fit_score_head
from tunesmith.prediction.in_context import Shots, calibrated, shots_of
from tunesmith.prediction.likelihood import score_documents
from tunesmith.prediction.outputs import Outputs, Truth
from tunesmith.prediction.reading import true_label_sets
from tunesmith.prediction.references import UNCUT, answer_nats, learned
from tunesmith.prediction.setting import Setting
from tunesmith.prediction.span_answers import by_head
from tunesmith.tasks.base import Message, ReadsAnswers, Shortens, Task
from tunesmith.tasks.token_classification import written_spans

SIMILARITY_SCALE = 20.0
"""Cosines times this are logits: the scale with which sentence-transformers trains its encoders."""


def answer(
    model: Model, rows: Sequence[Row], setting: Setting, shots: Shots | None = None, *, score_references: bool = True
) -> Outputs:
    """Answers of a model to rows, by its head or by writing.

    Args:
        model: Any model that can do the task.
        rows: With their right answers, which the model does not see.
        setting: What all systems share.
        shots: Examples to put into each prompt.
        score_references: For written answers: also say how likely the right ones were (``nats``).
    """
    if setting.task.answer == "likelihood":
        return score_documents(model, rows, setting.task, setting.on_event)
    if setting.task.answer == "pair":
        return preferences.judge(model, rows, setting)
    if setting.task.answer == "thumb":
        return preferences.weigh(model, rows, setting)
    if model.form == "tag":
        return by_head(model, rows, setting.on_event)
    if isinstance(model.network, ImageClassifier):
        return _of_pictures(model, model.network, rows, setting)
    if model.form in TEXT_HEADS:
        return _by_text_head(model, rows, setting)
    if setting.task.answer == "label":
        return _by_likeliest_label(model, rows, setting, shots)
    return _by_writing(model, rows, setting, shots, score_references=score_references)


def _of_pictures(model: Model, network: ImageClassifier, rows: Sequence[Row], setting: Setting) -> Outputs:
    started = time.perf_counter()
    paths = _paths(rows, setting.task)
    probabilities = vision.probabilities(network, model.folder, paths, on_event=setting.on_event)
    return _outputs(started, [], probabilities=probabilities, thresholds=_thresholds(model))


def _by_text_head(model: Model, rows: Sequence[Row], setting: Setting) -> Outputs:
    started = time.perf_counter()
    examples = encode_rows(model, rows, setting.task)
    if model.form in ("score", "ordinal"):
        return _outputs(started, examples, scores=inference.scores(model, examples, on_event=setting.on_event))
    probabilities = inference.class_probabilities(model, examples, on_event=setting.on_event)
    return _outputs(started, examples, probabilities=probabilities, thresholds=_thresholds(model))


def _by_likeliest_label(model: Model, rows: Sequence[Row], setting: Setting, shots: Shots | None) -> Outputs:
    """Labels as answers by the model's own likelihood."""
    started = time.perf_counter()
    shots = shots or _own_shots(model, rows, setting.task)
    labels = setting.labels or []

    def ask(some: Sequence[Row], before: Shots | None) -> tuple[np.ndarray, int]:
        questions, prompts = _asked(model, some, setting, before, labels)
        choices = [questions.answer_tokens(label) for label in labels]
        found = inference.choice_probabilities(model, prompts, choices, on_event=setting.on_event)
        return found, sum(len(prompt) for prompt in prompts)

    probabilities, tokens = ask(rows, shots)
    if shots is not None and model.shown is not None and model.shown.settings.calibrate:
        probabilities = calibrated(probabilities, rows, shots, setting.task, lambda some, before: ask(some, before)[0])
    return Outputs(
        probabilities=probabilities,
        thresholds=_thresholds(model),
        prompt_tokens=tokens,
        seconds=time.perf_counter() - started,
    )


def _by_writing(
    model: Model, rows: Sequence[Row], setting: Setting, shots: Shots | None, *, score_references: bool
) -> Outputs:
    """Answers in the model's own words: spans read from them, or the texts with what they are worth."""
    started = time.perf_counter()
    task = setting.task
    shots = shots or _own_shots(model, rows, task)
    questions, prompts = _asked(model, rows, setting, shots, ())
    written = inference.generate(
        model,
        prompts,
        **setting.generation.model_dump(),
        seed=setting.seed,
        on_event=setting.on_event,
    )
    texts = [written_text(model.tokenizer, tokens) for tokens in written]
    taken = Outputs(
        prompt_tokens=sum(len(prompt) for prompt in prompts),
        written_tokens=sum(len(tokens) for tokens in written),
        seconds=time.perf_counter() - started,  # what follows is our question, not the system's work
    )
    if task.answer == "spans":
        labels = setting.labels or []
        spans = [written_spans(text, task.input_text(row), labels) for text, row in zip(texts, rows, strict=True)]
        return replace(taken, spans=spans)
    worth = setting.judges.score(rows, texts, written) if setting.judges is not None else {}
    if isinstance(task, ReadsAnswers):
        marked = [_with_marks(model, tokens) for tokens in written]
        texts = [task.read_answer(row, *both) for row, *both in zip(rows, texts, marked, strict=True)]
    answered = replace(taken, texts=texts, rewards=worth.get("rewards"), judged=worth.get("judged"))
    if not score_references or task.answer != "text":
        return answered
    sizes = np.asarray([max(1, len(task.target_text(row).encode())) for row in rows], dtype=np.float64)
    nats, shares = questions.reference_nats()
    return replace(answered, nats=nats, reference_bytes=sizes * shares)


def _with_marks(model: Model, tokens: Sequence[int]) -> str:
    """An answer with the special tokens by which some families mark calls of tools, without those that end it."""
    ends = {*model.eos_ids, model.pad_id}
    kept = [token for token in tokens if token not in ends]
    return without_empty_thought(model.tokenizer.decode(kept, skip_special_tokens=False).strip())


def _own_shots(model: Model, rows: Sequence[Row], task: Task) -> Shots | None:
    """What a model that was taught in context shows before each row."""
    return None if model.shown is None else shots_of(model.shown, rows, task)


def reference_nats(model: Model, rows: Sequence[Row], setting: Setting) -> FloatArray:
    """How unlikely a model that writes finds the right answers, (N,) in nats; nothing is written."""
    questions = _sources(model, rows, setting) if model.form == "seq2seq" else _prompts(model, rows, setting, None)
    return questions.reference_nats()[0]


def inputs(model: Model, rows: Sequence[Row], setting: Setting) -> list[list[int]]:
    """The tokens that a model is given for each row: a prompt if it writes the answer, else the text."""
    if model.form in ("generate", "seq2seq") and setting.task.answer != "likelihood":
        return _asked(model, rows, setting, None, ())[1]
    return encode_rows(model, rows, setting.task)


def _asked(
    model: Model, rows: Sequence[Row], setting: Setting, shots: Shots | None, labels: Sequence[str]
) -> tuple[_Questions, list[list[int]]]:
    """Rows as questions, and their prompts cut to what leaves room for the longest answer."""
    if model.form == "seq2seq":  # an encoder's source was cut to its own limit
        questions = _sources(model, rows, setting)
        return questions, questions.prompts
    questions = _prompts(model, rows, setting, shots)
    longest = max((len(questions.answer_tokens(label)) for label in labels), default=setting.generation.max_new_tokens)
    return questions, _fitting(questions.prompts, rows, prompt_limit(model) - longest, setting.on_event)


@dataclass(frozen=True)
class _Questions:
    """Rows as a model that writes is asked them.

    Attributes:
        prompts: The tokens that it is given, for each row.
        answer_tokens: The tokens of an answer as training writes it, with the EOS behind it.
        reference_nats: How unlikely the model finds the right answers, (N,) in nats, and what share of each it was
            asked about, (N,): all, unless an answer is longer than what it can read.
    """

    prompts: list[list[int]]
    answer_tokens: Callable[[str], list[int]]
    reference_nats: Callable[[], tuple[FloatArray, FloatArray]]


def _sources(model: Model, rows: Sequence[Row], setting: Setting) -> _Questions:
    """For an encoder-decoder model."""
    tokenizer, limit = model.tokenizer, model.max_length
    texts = [source_text(setting.task, row, setting.system_prompt) for row in rows]
    prompts = [encode_text(tokenizer, text, limit)[0] for text in texts]

    def reference_nats() -> tuple[FloatArray, FloatArray]:
        targets = [encode_target(tokenizer, setting.task.target_text(row), limit) for row in rows]
        nats = inference.target_nats(model, prompts, [ids for ids, _ in targets], on_event=setting.on_event)
        return nats, np.asarray([len(ids) / (len(ids) + cut) for ids, cut in targets])

    return _Questions(
        prompts=prompts,
        answer_tokens=lambda answer: encode_target(tokenizer, answer, limit)[0],
        reference_nats=reference_nats,
    )


def _prompts(model: Model, rows: Sequence[Row], setting: Setting, shots: Shots | None) -> _Questions:
    """For a causal model: conversations up to the answer."""
    renderer = ConversationRenderer(model.tokenizer, UNCUT, model.eos_ids)
    limit = prompt_limit(model) if shots else min(prompt_limit(model), model.max_length)
    room = limit - min(setting.generation.max_new_tokens, limit // 2)
    asked = [
        (turns, row.fields.get("tools"))
        for row, turns in zip(rows, _fitted(renderer, rows, setting, shots, room), strict=True)
    ]
    chooses = setting.task.answer == "label"  # among answers as training writes them, empty thoughts included
    thought = setting.may_think or chooses

    def reference_nats() -> tuple[FloatArray, FloatArray]:
        rendered = [
            renderer(turns, tools=tools, origin=row.origin) for (turns, tools), row in zip(asked, rows, strict=True)
        ]
        nats, sizes = answer_nats(model, rendered, prompt_limit(model), setting.on_event)
        return nats, sizes / [learned(example.loss_weights) for example in rendered]

    return _Questions(
        prompts=[renderer.prompt(turns[:-1], tools=tools, thought=thought) for turns, tools in asked],
        answer_tokens=functools.partial(_answer_tokens, renderer),
        reference_nats=reference_nats,
    )


def _fitted(
    renderer: ConversationRenderer, rows: Sequence[Row], setting: Setting, shots: Shots | None, room: int
) -> list[list[Message]]:
    """Conversations whose prompts have at most ``room`` tokens where the task's rows can be shortened; said once.

    Examples go first, those farthest from the question before others; then the end of the document.
    """
    if not isinstance(setting.task, Shortens):
        return [with_shots(row, setting, shots(row) if shots else ()) for row in rows]
    conversations, cut, fewer = [], [], []

    def length_of(row: Row, shown: Sequence[Row]) -> int:
        return len(renderer.prompt(with_shots(row, setting, shown)[:-1], thought=setting.may_think))

    for row in rows:
        shown = list(shots(row)) if shots else []
        wanted = len(shown)
        while shown and length_of(row, shown) > room:
            del shown[0]
        shorter, lost = fit(setting.task, row, functools.partial(length_of, shown=shown), room)
        cut += [str(row.origin)] * (lost > 0)
        fewer += [str(row.origin)] * (len(shown) < wanted)
        conversations.append(with_shots(shorter, setting, shown))
    for places, what in (
        (fewer, "prompts had no room for all examples"),
        (cut, "documents were too long and lost their end"),
    ):
        if places:
            message = f"{len(places)} of {len(rows)} {what}"
            where = ", ".join(places[:5]) + (", ..." if len(places) > 5 else "")
            setting.on_event(Notice(level="info", message=message, where=where))
    return conversations


def prompt_limit(model: Model) -> int:
    """Longest prompt with examples: what the model's positions allow, not the length that training was cut to."""
    config: Any = model.transformer().config
    positions = getattr(config, "max_position_embeddings", None)
    return int(positions) - model.virtual_tokens if positions else model.max_length


def _fitting(prompts: Sequence[list[int]], rows: Sequence[Row], room: int, on_event: Listener) -> list[list[int]]:
    """Prompts cut on the left to the room that a model's positions leave them beside the answer; said once."""
    room = max(1, room)
    cut = [str(row.origin) for prompt, row in zip(prompts, rows, strict=True) if len(prompt) > room]
    if cut:
        on_event(
            Notice(
                level="warning",
                message=f"{len(cut)} of {len(rows)} prompts are longer than the {room} tokens that the model can read "
                "besides its answer, and lost their beginning",
                where=", ".join(cut[:5]) + (", ..." if len(cut) > 5 else ""),
                fix="shorten them, lower `evaluate.generation.max_new_tokens`, or take a model with more positions",
            )
        )
    return [prompt[-room:] for prompt in prompts]


def _answer_tokens(renderer: ConversationRenderer, label: str) -> list[int]:
    """A label as training writes it: whatever the template puts before it, its tokens, and the EOS behind it."""
    question = {"role": "user", "content": "?"}
    rendered = renderer([question, {"role": "assistant", "content": label}])
    return [token for token, weight in zip(rendered.input_ids, rendered.loss_weights or [], strict=True) if weight]


def with_shots(row: Row, setting: Setting, shots: Sequence[Row]) -> list[Message]:
    """The row's conversation with worked examples before it. Only the answer asked for carries loss."""
    own = setting.task.conversation(row, setting.labels, setting.system_prompt)
    own = [*({**turn, "weight": 0.0} for turn in own[:-1]), {**own[-1], "weight": 1.0}]
    if not shots:
        return own
    opening = own[:1] if own and own[0]["role"] == "system" else []
    examples = [
        {**turn, "weight": 0.0}
        for shot in shots
        for turn in setting.task.conversation(shot, setting.labels, None)
        if turn["role"] != "system"
    ]
    return [*opening, *examples, *own[len(opening) :]]


def by_label_similarity(model: Model, rows: Sequence[Row], setting: Setting) -> Outputs:
    """Zero-shot with a sentence encoder: the label whose name lies nearest to the text."""
    started = time.perf_counter()
    labels = setting.labels or []
    examples = encode_rows(model, rows, setting.task)
    names = [encode_text(model.tokenizer, label.replace("_", " "), model.max_length)[0] for label in labels]
    found = inference.embeddings(model, examples, on_event=setting.on_event)
    probabilities = _by_cosine(found, inference.embeddings(model, names))
    return _outputs(started, examples, probabilities=probabilities)


def by_nearest_centroid(model: Model, rows: Sequence[Row], shots: Sequence[Row], setting: Setting) -> Outputs:
    """Few-shot with a sentence encoder: the label whose examples' mean lies nearest to the text."""
    started = time.perf_counter()
    labels = setting.labels or []
    examples = encode_rows(model, rows, setting.task)
    shown = inference.embeddings(model, encode_rows(model, shots, setting.task))
    of_shot = np.asarray([labels.index(setting.task.target_text(shot)) for shot in shots])
    shown /= np.linalg.norm(shown, axis=1, keepdims=True)
    centroids = np.stack([shown[of_shot == number].mean(0) for number in range(len(labels))])
    probabilities = _by_cosine(inference.embeddings(model, examples, on_event=setting.on_event), centroids)
    return _outputs(started, examples, probabilities=probabilities)


def by_features(head: LinearHead, model: Model, rows: Sequence[Row], setting: Setting) -> Outputs:
    """A fitted linear head on the frozen model's embeddings."""
    started = time.perf_counter()
    examples = encode_rows(model, rows, setting.task)
    features = inference.embeddings(model, examples, on_event=setting.on_event)
    if setting.task.answer == "score":
        return _outputs(started, examples, scores=head.scores(features)[:, 0])
    if setting.task.answer == "labels":
        found = 1 / (1 + np.exp(-head.scores(features)))
        return _outputs(started, examples, probabilities=found, thresholds=_thresholds(model))
    return _outputs(started, examples, probabilities=head.probabilities(features))


def fit_features(model: Model, train: Sequence[Row], validation: Sequence[Row], setting: Setting) -> LinearHead:
    """Fit that head: the penalty is chosen on the validation rows."""
    labels = setting.labels or []
    features, wanted = features_and_answers(model, train, setting)
    chosen_on = features_and_answers(model, validation, setting) if len(validation) else None
    if setting.task.answer == "score":
        return fit_score_head(features, wanted, chosen_on)
    if setting.task.answer == "labels":
        return fit_label_heads(features, wanted, chosen_on)
    return fit_linear_head(features, wanted, len(labels), chosen_on)


def features_and_answers(model: Model, rows: Sequence[Row], setting: Setting) -> tuple[np.ndarray, Any]:
    """Vectors of rows, (N, d) float64, and their right answers as numbers: of labels, of sets of labels, or scores."""
    labels = setting.labels or []
    if isinstance(model.network, ImageClassifier):
        found = vision.vectors(model.network, model.folder, _paths(rows, setting.task), on_event=setting.on_event)
    else:
        found = vectors.of_texts(model, encode_rows(model, rows, setting.task), setting.on_event)
    right = [setting.task.reference(row) for row in rows]
    if setting.task.answer == "score":
        return found, np.array(right)
    if setting.task.answer == "labels":
        return found, true_label_sets(Truth("labels", right, labels))
    return found, [labels.index(label) for label in right]


def _paths(rows: Sequence[Row], task: Task) -> list[Path]:
    return [Path(task.input_text(row)) for row in rows]


def encode_rows(model: Model, rows: Sequence[Row], task: Task) -> list[list[int]]:
    """The texts of rows as tokens."""
    return [encode_text(model.tokenizer, task.input_text(row), model.max_length)[0] for row in rows]


def majority(train: Sequence[Row], rows: Sequence[Row], setting: Setting) -> Outputs:
    """Always the same answer: the commonest label of the training data, the commonest labels, or the mean score."""
    labels = setting.labels or []
    if setting.task.answer == "score":
        mean = float(np.mean([setting.task.reference(row) for row in train]))
        return Outputs(scores=np.full(len(rows), mean))
    if setting.task.answer == "labels":
        right = Truth("labels", [setting.task.reference(row) for row in train], labels)
        shares = true_label_sets(right).mean(axis=0)
        thresholds = np.full(len(labels), min(0.5, float(shares.max())))  # at least one label is given
        return Outputs(probabilities=np.tile(shares, (len(rows), 1)), thresholds=thresholds)
    counts = np.zeros(len(labels))
    for row in train:
        counts[labels.index(setting.task.target_text(row))] += 1
    return Outputs(probabilities=np.tile(counts / counts.sum(), (len(rows), 1)))


def _by_cosine(vectors: np.ndarray, anchors: np.ndarray) -> np.ndarray:
    vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    anchors = anchors / np.linalg.norm(anchors, axis=1, keepdims=True)
    scores = np.exp(SIMILARITY_SCALE * (vectors @ anchors.T))
    result: np.ndarray = scores / scores.sum(axis=1, keepdims=True)
    return result


def _thresholds(model: Model) -> np.ndarray | None:
    return None if model.thresholds is None else np.asarray(model.thresholds)


def _outputs(
    started: float,
    examples: Sequence[Sequence[int]],
    *,
    probabilities: np.ndarray | None = None,
    thresholds: np.ndarray | None = None,
    scores: np.ndarray | None = None,
) -> Outputs:
    return Outputs(
        probabilities=probabilities,
        thresholds=thresholds,
        scores=scores,
        prompt_tokens=sum(len(ids) for ids in examples),
        seconds=time.perf_counter() - started,
    )
