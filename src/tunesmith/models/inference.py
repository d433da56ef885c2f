"""Asking a model: class probabilities, likelihoods of given answers, written answers, embeddings.

Rows are worked on longest first, in rectangles of a bounded number of tokens, and come back in their own order.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch

from tunesmith.data.batches import Batch
from tunesmith.data.source_target import TARGET_IDS
from tunesmith.events import Listener, Progress, nobody
from tunesmith.models import virtual_tokens, visibility
from tunesmith.models.load import output_names
from tunesmith.models.model import Model, decoder_of

TOKENS_A_PASS = 4096
"""Tokens of one forward pass, padding included."""
SCORING_LABELS = "scoring labels"
"""For the progress bar."""

TokenLists = Sequence[Sequence[int]]


def class_probabilities(model: Model, examples: TokenLists, *, on_event: Listener = nobody) -> np.ndarray:
    """Softmax of the head's scores, (N, C) float64, for N tokenized texts; with several labels each one's sigmoid."""
    scores = head_scores(model, examples, what="classifying", on_event=on_event)
    return _sigmoid(scores) if model.form == "multi-label" else _normalised(scores)


def head_scores(
    model: Model, examples: TokenLists, *, what: str = "scoring", on_event: Listener = nobody
) -> np.ndarray:
    """The head's scores, (N, C) float64, for N tokenized texts."""

    def ask(batch: Batch) -> torch.Tensor:
        return model.class_logits(batch)

    return _map_batches(model, examples, ask, len(output_names(model.form, model.labels)), what, on_event)


def scores(model: Model, examples: TokenLists, *, on_event: Listener = nobody) -> np.ndarray:
    """The score that a head for scores or grades gives each of N tokenized texts, (N,) float64.

    Of grades it is the first that the truth is not likely to lie above (arXiv 2111.08851, equation 7).
    """
    found = head_scores(model, examples, on_event=on_event)
    if model.form == "score":
        return found[:, 0]
    grades = np.array([float(grade) for grade in model.labels or []])
    return cast(np.ndarray, grades[(_sigmoid(found).cumprod(axis=1) > 0.5).sum(axis=1)])


def _sigmoid(values: np.ndarray) -> np.ndarray:
    from scipy.special import expit

    return cast(np.ndarray, expit(values))


def tag_probabilities(model: Model, examples: TokenLists, *, on_event: Listener = nobody) -> list[np.ndarray]:
    """Softmax of the tags of every token, an array (S, C) float64 for each of N tokenized texts."""
    result: list[np.ndarray] = [np.zeros((0, 0))] * len(examples)
    model.network.eval()
    done = 0
    with torch.inference_mode():
        for rows in _rectangles([len(e) for e in examples]):
            batch = _padded(model, examples, rows)
            places = batch.attention_mask.nonzero(as_tuple=True)
            found = torch.softmax(model.token_logits(batch, *places).double(), dim=-1).cpu().numpy()
            ends = np.cumsum([len(examples[row]) for row in rows])
            for row, values in zip(rows, np.split(found, ends[:-1]), strict=True):
                result[row] = values
            done += len(rows)
            on_event(Progress(what="tagging", done=done, total=len(examples)))
    return result


def embeddings(model: Model, examples: TokenLists, *, on_event: Listener = nobody) -> np.ndarray:
    """One vector a text, (N, d) float64: the sentence encoder's own pooling, else the mean over the tokens."""
    width = int(cast(Any, model.transformer()).config.hidden_size)
    return _map_batches(model, examples, model.sentence_vectors, width, "embedding", on_event)


def answer_nats(
    model: Model,
    examples: TokenLists,
    weights: Sequence[Sequence[float]],
    *,
    what: str = "scoring answers",
    on_event: Listener = nobody,
) -> np.ndarray:
    """Negative log likelihood, in nats, of the tokens of each example that carry weight; (N,) float64."""

    def with_weights(batch: Batch) -> Batch:
        carried = _rectangle([weights[row] for row in batch.rows], 0.0, np.float32, batch.input_ids.shape[1])
        return dataclasses.replace(batch, loss_weights=carried.to(batch.input_ids.device))

    return _nats(model, examples, with_weights, what, on_event)


def target_nats(model: Model, sources: TokenLists, targets: TokenLists, *, on_event: Listener = nobody) -> np.ndarray:
    """Negative log likelihood, in nats, of the target that an encoder-decoder model writes to each source; (N,)."""

    def with_targets(batch: Batch) -> Batch:
        ids = _rectangle([targets[row] for row in batch.rows], -1, np.int64)
        return dataclasses.replace(batch, extra={TARGET_IDS: ids.to(batch.input_ids.device)})

    return _nats(model, sources, with_targets, "scoring answers", on_event)


def _nats(
    model: Model, examples: TokenLists, complete: Callable[[Batch], Batch], what: str, on_event: Listener
) -> np.ndarray:
    """Summed losses of the answers; ``complete`` adds to a batch what its rows shall say."""
    from tunesmith.objectives.supervised import token_losses

    def ask(batch: Batch) -> torch.Tensor:
        losses, weight_N, rows_N = token_losses(model, complete(batch))
        sums = torch.zeros(len(batch.rows), dtype=torch.float64, device=losses.losses_N.device)
        return sums.index_add_(0, rows_N, (losses.losses_N * weight_N).double()).unsqueeze(1)

    return _map_batches(model, examples, ask, 1, what, on_event)[:, 0]


def _rectangle(lines: Sequence[Sequence[float]], pad: float, kind: type, width: int = 0) -> torch.Tensor:
    """Lines of differing lengths, padded on the right."""
    result: np.ndarray = np.full((len(lines), max(width, *map(len, lines))), pad, dtype=kind)
    for n, line in enumerate(lines):
        result[n, : len(line)] = line
    return torch.from_numpy(result)


def masked_answers(
    model: Model, examples: TokenLists, targets: TokenLists, *, on_event: Listener = nobody
) -> np.ndarray:
    """For each example the nats of its masked tokens and how many were guessed right; (N, 2) float64.

    Args:
        model: A masked language model.
        examples: N token lists with masks.
        targets: What was masked at each place, negative elsewhere.
        on_event: Told the progress.
    """
    from tunesmith.objectives.language import KEPT, masked_losses

    def ask(batch: Batch) -> torch.Tensor:
        asked = torch.full_like(batch.input_ids, KEPT)
        for n, row in enumerate(batch.rows):
            asked[n, : len(targets[row])] = torch.tensor(targets[row], device=asked.device)
        losses, rows_N = masked_losses(model, batch, asked)
        sums = torch.zeros(len(batch.rows), 2, dtype=torch.float64, device=asked.device)
        found_N2 = torch.stack([losses.losses_N.double(), losses.correct_N.double()], dim=1)
        return sums.index_add_(0, rows_N, found_N2)

    return _map_batches(model, examples, ask, 2, "filling in masks", on_event)


def _map_batches(
    model: Model,
    examples: TokenLists,
    ask: Callable[[Batch], torch.Tensor],
    width: int,
    what: str,
    on_event: Listener,
) -> np.ndarray:
    result = np.zeros((len(examples), width))
    model.network.eval()
    done = 0
    with torch.inference_mode():
        for rows in _rectangles([len(e) for e in examples]):
            result[rows] = ask(_padded(model, examples, rows)).double().cpu().numpy()
            done += len(rows)
            on_event(Progress(what=what, done=done, total=len(examples)))
    return result


def _rectangles(lengths: Sequence[int], overhead: int = 0) -> Iterator[list[int]]:
    """Indices in groups of about equal length; ``overhead`` tokens are added to each row."""
    order = sorted(range(len(lengths)), key=lambda n: -lengths[n])
    start = 0
    while start < len(order):
        rows = max(1, TOKENS_A_PASS // max(1, lengths[order[start]] + overhead))
        yield order[start : start + rows]
        start += rows


def _padded(model: Model, examples: TokenLists, rows: list[int]) -> Batch:
    lengths = np.asarray([len(examples[row]) for row in rows])
    ids = np.full((len(rows), int(lengths.max())), model.pad_id, dtype=np.int64)
    for n, row in enumerate(rows):
        ids[n, : lengths[n]] = examples[row]
    mask = np.arange(ids.shape[1])[None, :] < lengths[:, None]
    return Batch(torch.from_numpy(ids), torch.from_numpy(mask), None, None, rows, int(lengths.sum())).to(model.device)


# --- choosing among given answers ------------------------------------------------------------------------------------


def choice_probabilities(
    model: Model, prompts: TokenLists, choices: TokenLists, *, on_event: Listener = nobody
) -> np.ndarray:
    """Probability of each of C given answers after each of N prompts, normalised over the answers.

    An answer's score is the likelihood of all its tokens (with the EOS that ends it). All answers stand in one row
    behind the prompt, at the same positions, each seeing the prompt and itself only, so a row costs one forward pass
    whatever C is. What all prompts begin with is computed once.

    Args:
        model: A causal model.
        prompts: N token lists.
        choices: C token lists, each not empty.
        on_event: Told the progress.

    Returns:
        (N, C) float64.
    """
    model.network.eval()
    if model.form == "seq2seq":
        return _target_probabilities(model, prompts, choices, on_event)
    tails = _Tails.of(choices)
    shared = _common_start(prompts)
    scores = np.zeros((len(prompts), len(choices)))
    done = 0
    with torch.inference_mode():
        prefix = _Prefix.of(model, prompts[0][:shared])
        own = [list(prompt[shared:]) for prompt in prompts]
        for rows in _rectangles([len(ids) for ids in own], overhead=len(tails.ids) + shared // 8):
            scores[rows] = _score_rows(model, [own[row] for row in rows], tails, prefix)
            done += len(rows)
            on_event(Progress(what=SCORING_LABELS, done=done, total=len(prompts)))
    return _normalised(scores)


def _target_probabilities(model: Model, sources: TokenLists, choices: TokenLists, on_event: Listener) -> np.ndarray:
    """The same for an encoder-decoder model: each source is read once, each choice written behind it."""
    network: Any = model.transformer()
    encoder = network.get_encoder()

    def ask(batch: Batch) -> torch.Tensor:
        encoded = encoder(input_ids=batch.input_ids, attention_mask=batch.attention_mask)
        scores = []
        for choice in choices:
            labels = torch.tensor([list(choice)] * len(batch.rows), device=model.device)
            logits = network(encoder_outputs=encoded, attention_mask=batch.attention_mask, labels=labels).logits
            log_p = torch.log_softmax(logits.double(), -1).gather(2, labels[:, :, None])
            scores.append(log_p.sum(dim=(1, 2)))
        return torch.stack(scores, dim=1)

    return _normalised(_map_batches(model, sources, ask, len(choices), SCORING_LABELS, on_event))


def _normalised(scores: np.ndarray) -> np.ndarray:
    """Log likelihoods (N, C) as probabilities that add up to 1."""
    likelihoods = np.exp(scores - scores.max(axis=1, keepdims=True))
    return cast(np.ndarray, likelihoods / likelihoods.sum(axis=1, keepdims=True))


@dataclass(frozen=True)
class _Tails:
    """The answers laid out in one row, without their last tokens (nothing follows those).

    ``ids``, ``owner`` and ``depth`` have one value a laid-out token; ``targets`` has one ``(choice, source, token)``
    for every token of every answer, ``source`` being the laid-out token that predicts it, -1 for the prompt's last.
    """

    ids: list[int]
    owner: list[int]
    depth: list[int]
    targets: list[tuple[int, int, int]]

    @classmethod
    def of(cls, choices: TokenLists) -> _Tails:
        ids: list[int] = []
        owner: list[int] = []
        depth: list[int] = []
        targets: list[tuple[int, int, int]] = []
        for choice, tokens in enumerate(choices):
            source = -1
            for position, token in enumerate(tokens):
                targets.append((choice, source, token))
                if position < len(tokens) - 1:
                    source = len(ids)
                    ids.append(token)
                    owner.append(choice)
                    depth.append(position)
        return cls(ids, owner, depth, targets)


@dataclass(frozen=True)
class _Prefix:
    """Keys and values of the tokens that all prompts begin with."""

    length: int
    layers: list[tuple[torch.Tensor, torch.Tensor]]

    @classmethod
    def of(cls, model: Model, ids: Sequence[int]) -> _Prefix:
        before = model.virtual_tokens
        layers = virtual_tokens.keys_and_values(model.wrapped) if before else []
        if not ids:
            return cls(before, layers)
        cache = virtual_tokens.cache_of(layers, 1)
        tokens = torch.tensor([list(ids)], device=model.device)
        decoder_of(model.transformer())(input_ids=tokens, past_key_values=cache, use_cache=True)
        return cls(before + len(ids), [(layer.keys, layer.values) for layer in cast(Any, cache.layers)])

    def cache(self, rows: int) -> Any:
        """A fresh cache that holds the prefix for a number of rows."""
        return virtual_tokens.cache_of(self.layers, rows)


def _score_rows(model: Model, own: list[list[int]], tails: _Tails, prefix: _Prefix) -> np.ndarray:
    """Log likelihoods of the choices behind some rows, (B, C)."""
    lengths = torch.tensor([len(ids) for ids in own], device=model.device)
    width = int(lengths.max()) + len(tails.ids)
    ids = torch.full((len(own), width), model.pad_id, dtype=torch.long, device=model.device)
    for n, row in enumerate(own):
        ids[n, : len(row) + len(tails.ids)] = torch.tensor(row + tails.ids, device=model.device)
    place, owner = _layout(lengths, width, tails)
    hidden_BSd = decoder_of(model.transformer())(
        input_ids=ids,
        attention_mask=_masks(model, place, owner, prefix.length),
        position_ids=place + prefix.length,
        past_key_values=prefix.cache(len(own)),
        use_cache=True,
    ).last_hidden_state
    sources = torch.tensor([source for _, source, _ in tails.targets], device=model.device)
    columns = lengths[:, None] + torch.where(sources < 0, -1, sources)[None, :]  # (B, T)
    needed_BTd = torch.take_along_dim(hidden_BSd, columns[:, :, None].expand(-1, -1, hidden_BSd.shape[-1]), dim=1)
    tokens = torch.tensor([token for _, _, token in tails.targets], device=model.device)
    log_p_BT = _token_log_probabilities(model, needed_BTd, tokens)
    result = torch.zeros(len(own), 1 + max(c for c, _, _ in tails.targets), dtype=torch.float64)
    choice = torch.tensor([c for c, _, _ in tails.targets])
    return result.index_add_(1, choice, log_p_BT.cpu()).numpy()


def _layout(lengths: torch.Tensor, width: int, tails: _Tails) -> tuple[torch.Tensor, torch.Tensor]:
    """Position (B, S) of each token in its own text, and its owner: -1 the prompt, a choice, or -2 padding."""
    column = torch.arange(width, device=lengths.device).expand(len(lengths), -1)
    behind = column - lengths[:, None]
    index = behind.clamp(0, max(0, len(tails.ids) - 1))
    owners = torch.tensor(tails.owner or [-2], device=lengths.device)[index]
    depths = torch.tensor(tails.depth or [0], device=lengths.device)[index]
    inside = behind < 0
    owner = torch.where(inside, -1, torch.where(behind < len(tails.ids), owners, -2))
    place = torch.where(inside, column, lengths[:, None] + depths)
    return place, owner


def _masks(model: Model, place: torch.Tensor, owner: torch.Tensor, prefix: int) -> Any:
    """Who may see whom, (B, 1, S, prefix + S) bool: earlier tokens of the prompt and of the same answer."""
    batch, width = place.shape
    earlier = place[:, None, :] <= place[:, :, None]
    related = (owner[:, None, :] == -1) | (owner[:, None, :] == owner[:, :, None])
    allowed = torch.cat([earlier.new_ones(batch, width, prefix), earlier & related], dim=2)
    keys = torch.cat([torch.arange(prefix, device=place.device).expand(batch, -1), place + prefix], dim=1)
    return visibility.masks(cast(Any, model.transformer()).config, allowed, place + prefix, keys)


def _token_log_probabilities(model: Model, hidden_BTd: torch.Tensor, tokens_T: torch.Tensor) -> torch.Tensor:
    """Log probability of T given tokens at T positions of each row, (B, T) float64."""
    rows = []
    for hidden_Td in hidden_BTd:  # one row at a time: the scores of a whole batch may be large
        scores_TV = model.vocabulary_scores(hidden_Td)
        rows.append(torch.log_softmax(scores_TV, -1).gather(1, tokens_T[:, None])[:, 0].double())
    return torch.stack(rows)


def _common_start(prompts: TokenLists) -> int:
    """How many tokens all prompts share from the start, leaving each at least one of its own."""
    shortest = min(len(prompt) for prompt in prompts) - 1
    first = prompts[0]
    return next((n for n in range(shortest) if any(p[n] != first[n] for p in prompts)), max(0, shortest))


# --- writing ---------------------------------------------------------------------------------------------------------


def generate(
    model: Model,
    prompts: TokenLists,
    *,
    max_new_tokens: int,
    temperature: float = 0.0,
    top_p: float = 1.0,
    top_k: int = 0,
    no_repeat_ngram_size: int = 0,
    num_beams: int = 1,
    length_penalty: float = 1.0,
    seed: int = 0,
    what: str = "writing answers",
    on_event: Listener = nobody,
) -> list[list[int]]:
    """Write an answer behind each prompt, up to its EOS (which is not returned).

    Greedy at temperature 0; else sampled, each answer by a seed of its own, so the same for the same seed whatever
    else is asked. Beams, and models that cannot write in a running batch, go through transformers' ``generate``, where
    what a seed gives depends on the batch.

    Args:
        model: Causal, or an encoder-decoder.
        prompts: N token lists: what comes before the answer, or what the encoder reads.
        max_new_tokens: Longest answer.
        temperature: Scores are divided by it; 0 takes the likeliest token.
        top_p: Sample from the likeliest tokens that together have this probability.
        top_k: Sample from this many of the likeliest tokens; 0 is all.
        no_repeat_ngram_size: No run of this many tokens may occur twice in an answer; 0 allows all.
        num_beams: Beams searched; 1 is none.
        length_penalty: Of beams: above 0 favours long answers.
        seed: Of the samples.
        what: For the progress bar.
        on_event: Told the progress.
    """
    from tunesmith.generation import padded
    from tunesmith.generation.batch import Request, RunningBatch, Token, unsupported
    from tunesmith.generation.sampling import Sampling

    model.network.eval()
    answers: list[list[int]] = [[] for _ in prompts]
    ended = 0

    def told(count: int) -> None:
        nonlocal ended
        ended += count
        on_event(Progress(what=what, done=ended, total=len(prompts)))

    def hear(row: int, token: Token) -> None:
        if token.choice is not None:
            answers[row].append(token.choice.token)
        if token.finish_reason is not None:
            told(1)

    sampling = Sampling(
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        no_repeat_ngram_size=no_repeat_ngram_size,
        seed=seed,
    )
    if num_beams > 1 or unsupported(model):
        groups: Iterable[list[int]] = [[row] for row in range(len(prompts))]
        apart = unsupported(model) or model.virtual_tokens  # these may have no way to ignore padding
        if model.form == "seq2seq" or not apart:
            groups = _rectangles([len(prompt) * num_beams for prompt in prompts], overhead=max_new_tokens * num_beams)
        return padded.write(
            model, prompts, groups, sampling, num_beams=num_beams, length_penalty=length_penalty, told=told
        )
    batch = RunningBatch(model)
    for row in sorted(range(len(prompts)), key=lambda row: -len(prompts[row])):  # prompts of a length are read together
        of_row = dataclasses.replace(sampling, seed=f"{seed}:{row}")
        batch.add(Request(prompt=prompts[row], sampling=of_row, on_token=functools.partial(hear, row)))
    batch.run()
    return answers
