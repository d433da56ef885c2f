"""Answers by transformers' own ``generate``, in padded batches: what the running batch cannot do.

That is beam search, encoder-decoder models, virtual tokens, and decoders whose layers keep another state than keys and
values. All settings are passed, so that nothing of what a model's ``generation_config.json`` would do unasked (BART's
sets four beams and a least length, Qwen's a temperature) comes into an answer; token ids are taken from there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from transformers import LogitsProcessor

from tunesmith.generation.sampling import Sampling, repeating
from tunesmith.models.load import quiet
from tunesmith.models.model import Model

NEUTRAL = {
    "min_length": 0,
    "max_length": None,
    "repetition_penalty": 1.0,
    "encoder_repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "encoder_no_repeat_ngram_size": 0,
    "diversity_penalty": 0.0,
    "num_return_sequences": 1,
    "early_stopping": False,
}
"""Settings of ``generate`` that change nothing."""


def write(
    model: Model,
    prompts: Sequence[Sequence[int]],
    groups: Iterable[Sequence[int]],
    sampling: Sampling,
    *,
    num_beams: int = 1,
    length_penalty: float = 1.0,
    told: Callable[[int], None],
) -> list[list[int]]:
    """Write an answer to each prompt, up to its EOS (which is not returned).

    Args:
        model: Causal (prompts are padded on the left) or encoder-decoder (on the right).
        prompts: N token lists.
        groups: Indices of the prompts that are worked on together.
        sampling: How tokens are chosen; with ``num_beams`` of more than 1 its temperature must be 0.
        num_beams: Beams searched; 1 is none.
        length_penalty: A beam's log likelihood is divided by its length to this power: over 0 favours long answers.
        told: Told the number of answers after each group.
    """
    network: Any = model.wrapped if model.virtual_tokens else model.transformer()  # PEFT's puts virtual tokens in front
    answers: list[list[int]] = [[] for _ in prompts]
    torch.manual_seed(int(sampling.seed))
    for rows in groups:
        ids, mask = _padded(model, [prompts[row] for row in rows])
        start = 1 if model.form == "seq2seq" else ids.shape[1]  # behind the decoder's start token, or the prompt
        with torch.inference_mode(), quiet():
            written = network.generate(
                input_ids=ids,
                attention_mask=mask,
                max_new_tokens=sampling.max_new_tokens,
                do_sample=sampling.temperature > 0,
                temperature=sampling.temperature or 1.0,
                top_p=sampling.top_p,
                top_k=sampling.top_k,
                num_beams=num_beams,
                length_penalty=length_penalty,
                logits_processor=[_NoRepeat(sampling.no_repeat_ngram_size, start)],
                eos_token_id=model.eos_ids,
                pad_token_id=model.pad_id,
                **NEUTRAL,
            )[:, start:].tolist()
        for row, tokens in zip(rows, written, strict=True):
            end = next((n for n, token in enumerate(tokens) if token in model.eos_ids), len(tokens))
            answers[row] = tokens[:end]
        told(len(rows))
    return answers


def _padded(model: Model, prompts: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and mask, (B, S) each."""
    width = max(len(prompt) for prompt in prompts)
    ids = torch.full((len(prompts), width), model.pad_id, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for n, prompt in enumerate(prompts):
        place = slice(0, len(prompt)) if model.form == "seq2seq" else slice(width - len(prompt), width)
        ids[n, place] = torch.tensor(list(prompt))
        mask[n, place] = 1
    return ids.to(model.device), mask.to(model.device)


class _NoRepeat(LogitsProcessor):
    """Forbids runs of tokens that the answer holds already; transformers' own counts those of the prompt as well."""

    def __init__(self, size: int, start: int) -> None:
        self.size = size
        self.start = start

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        for row, tokens in enumerate(input_ids[:, self.start :].tolist() if self.size else ()):
            scores[row, repeating(tokens, self.size)] = -torch.inf
        return scores
