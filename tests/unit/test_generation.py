"""The running batch: joining, leaving, reuse, seeds, stops."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models

from conftest import sentences
from tunesmith.errors import UsageError
from tunesmith.generation.batch import Request, RunningBatch, Token
from tunesmith.generation.sampling import Draw, Sampling, choose
from tunesmith.generation.text import TextStream, token_bytes
from tunesmith.models.load import load_model, load_tokenizer
from tunesmith.models.model import Model


@pytest.fixture(scope="module")
def decoder(tiny_decoder: Path) -> Model:
    return load_model(tiny_decoder, name="tiny", form="generate", dtype=torch.float64)


@pytest.fixture(scope="module")
def tokenizer(tiny_decoder: Path) -> Any:
    return load_tokenizer(tiny_decoder)


def request(model: Model, text: str, heard: list[Token], **settings: Any) -> Request:
    sampling = Sampling(**{"max_new_tokens": 12, **settings})
    return Request(prompt=model.tokenizer(text)["input_ids"], sampling=sampling, on_token=heard.append)


def ids_of(heard: Sequence[Token]) -> list[int]:
    return [token.choice.token for token in heard if token.choice]


# --- the batch -------------------------------------------------------------------------------------------------------


def test_a_seed_gives_the_same_answer_whatever_else_runs(decoder: Model) -> None:
    alone: list[Token] = []
    batch = RunningBatch(decoder)
    batch.add(request(decoder, "the film was", alone, temperature=1.0, seed=7, top_p=0.9))
    batch.run()
    crowd: list[list[Token]] = [[] for _ in range(9)]
    batch = RunningBatch(decoder, max_rows=4)
    for n, text in enumerate(sentences(9)):
        batch.add(request(decoder, text, crowd[n], temperature=1.5, seed=n))
        batch.step()
    again: list[Token] = []
    batch.add(request(decoder, "the film was", again, temperature=1.0, seed=7, top_p=0.9))
    batch.run()
    assert ids_of(again) == ids_of(alone)
    other: list[Token] = []
    batch.add(request(decoder, "the film was", other, temperature=1.0, seed=8, top_p=0.9))
    batch.run()
    assert ids_of(other) != ids_of(alone)


def test_a_cancelled_row_leaves_within_a_step(decoder: Model) -> None:
    first, second, third = [], [], []
    batch = RunningBatch(decoder, max_rows=2)
    requests = [request(decoder, text, heard, max_new_tokens=50) for text, heard in
                (("the film", first), ("a plot", second), ("an actor", third))]  # fmt: skip
    for each in requests:
        batch.add(each)
    batch.step()
    assert [len(heard) for heard in (first, second, third)] == [1, 1, 0]
    batch.cancel(requests[0])
    assert first[-1].finish_reason == "cancelled" and len(batch.running) == 1
    batch.step()
    assert len(first) == 2 and len(third) == 1  # its place is taken at once
    batch.cancel(requests[2])
    batch.cancel(requests[2])  # a second time changes nothing
    batch.run()
    assert len(ids_of(second)) == 50


def test_a_waiting_request_can_be_cancelled(decoder: Model) -> None:
    heard: list[Token] = []
    batch = RunningBatch(decoder, max_rows=1)
    batch.add(request(decoder, "the film", []))
    waiting = request(decoder, "a plot", heard)
    batch.add(waiting)
    batch.step()
    batch.cancel(waiting)
    batch.run()
    assert [token.finish_reason for token in heard] == ["cancelled"]


def test_a_prompt_that_begins_the_same_is_not_read_again(decoder: Model) -> None:
    batch = RunningBatch(decoder, max_rows=3)
    long = " ".join(sentences(6))
    first = request(decoder, long, [], max_new_tokens=4)
    batch.add(first)
    batch.run()
    unrelated = request(decoder, "a dull and awful plot", [])
    batch.add(unrelated)
    batch.run()
    second = request(decoder, long + " and more", [])
    batch.add(second)
    batch.run()
    assert first.reused_tokens == 0 and unrelated.reused_tokens <= 1
    assert second.reused_tokens >= len(first.prompt) - 2
    batch.withdraw(None)
    third = request(decoder, long, [])
    batch.add(third)
    batch.run()
    assert third.reused_tokens == 0


def test_the_answers_of_a_group_read_their_prompt_once(decoder: Model) -> None:
    batch = RunningBatch(decoder)
    text = " ".join(sentences(4))
    group = [request(decoder, text, [], temperature=1.0, seed=n) for n in range(6)]
    for each in group:
        batch.add(each)
    batch.run()
    length = len(group[0].prompt)
    assert [each.reused_tokens for each in group] == [0, *[length - 1] * 5]


def test_what_one_adapter_computed_is_no_use_to_another(decoder: Model) -> None:
    batch = RunningBatch(decoder)
    text = " ".join(sentences(4))
    requests = [request(decoder, text, []) for _ in range(2)]
    requests[1].adapter = "other"
    for each in requests:
        batch.add(each)
        batch.run()
    assert [each.reused_tokens for each in requests] == [0, 0]


def test_withdrawing_an_adapter_fails_its_rows_only(decoder: Model) -> None:
    batch = RunningBatch(decoder, max_rows=2)
    heard: list[list[Token]] = [[], [], []]
    requests = [request(decoder, "the film", tokens, max_new_tokens=5) for tokens in heard]
    requests[0].adapter = requests[2].adapter = "gone"
    for each in requests:
        batch.add(each)
    batch.step()
    batch.withdraw("gone")
    batch.run()
    assert [tokens[-1].finish_reason for tokens in heard] == ["failed", "length", "failed"]


def test_a_prompt_that_fills_the_context_is_refused(decoder: Model) -> None:
    batch = RunningBatch(decoder)
    with pytest.raises(UsageError, match="300 tokens; the model takes 1 to 255"):
        batch.add(Request(prompt=[5] * 300, sampling=Sampling(max_new_tokens=1), on_token=print))
    heard: list[Token] = []
    batch.add(Request(prompt=[5] * 250, sampling=Sampling(max_new_tokens=100), on_token=heard.append))
    batch.run()
    assert heard[-1].finish_reason in ("length", "stop") and len(ids_of(heard)) <= 6


def test_the_cache_stays_within_its_limit(decoder: Model) -> None:
    batch = RunningBatch(decoder, cache_tokens=512)
    answers: list[list[Token]] = [[] for _ in range(10)]
    decoder_eos, decoder.eos_ids = decoder.eos_ids, []
    try:
        for heard, text in zip(answers, sentences(10), strict=True):
            batch.add(request(decoder, text, heard, max_new_tokens=150))
        while batch.busy:
            batch.step()
            assert batch._cache.num_slots * batch._cache.length <= 512
    finally:
        decoder.eos_ids = decoder_eos
    assert [len(ids_of(heard)) for heard in answers] == [150] * 10


def test_a_long_prompt_that_begins_like_a_slot_that_must_go(decoder: Model) -> None:
    """The limit leaves no room for the slots that remember its start."""
    batch = RunningBatch(decoder, cache_tokens=512)
    for n in range(8):
        batch.add(request(decoder, f"the film was {n}", [], max_new_tokens=2))
    batch.run()
    assert batch._cache.num_slots == 8
    heard: list[Token] = []
    long = "the film was " + " ".join(sentences(30))
    batch.add(request(decoder, long, heard, max_new_tokens=4))
    batch.run()
    alone: list[Token] = []
    fresh = RunningBatch(decoder)
    fresh.add(request(decoder, long, alone, max_new_tokens=4))
    fresh.run()
    assert ids_of(heard) == ids_of(alone) != []


# --- choosing a token ------------------------------------------------------------------------------------------------


def draws(count: int, **settings: Any) -> list[Draw]:
    sampling = Sampling(max_new_tokens=1, **settings)
    return [Draw(sampling, Sampling(max_new_tokens=1, seed=n).generator(), []) for n in range(count)]


def shares(scores: torch.Tensor, **settings: Any) -> torch.Tensor:
    found = choose(scores.expand(2000, -1).clone(), draws(2000, **settings))
    return torch.bincount(torch.tensor([choice.token for choice in found]), minlength=len(scores)) / 2000


SCORES = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()


def test_tokens_are_drawn_by_their_probability() -> None:
    torch.testing.assert_close(shares(SCORES, temperature=1.0), SCORES.exp(), atol=0.04, rtol=0)
    colder = torch.softmax(SCORES / 0.5, 0)
    torch.testing.assert_close(shares(SCORES, temperature=0.5), colder, atol=0.04, rtol=0)
    assert shares(SCORES, temperature=1e-6).tolist() == [1, 0, 0, 0]


@pytest.mark.parametrize("settings", [{"top_p": 0.7}, {"top_k": 2}], ids=str)
def test_only_the_nucleus_is_drawn_from(settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    for try_first in (512, 1):  # the second way must sort everything
        monkeypatch.setattr("tunesmith.generation.sampling.NUCLEUS_TRY", try_first)
        expected = torch.tensor([5 / 8, 3 / 8, 0, 0])
        torch.testing.assert_close(shares(SCORES, temperature=1.0, **settings), expected, atol=0.04, rtol=0)


def test_penalties_biases_and_constraints_move_the_choice() -> None:
    class OnlyOdd:
        def allowed(self) -> torch.Tensor:
            return torch.tensor([False, True, False])  # shorter than the vocabulary: the rest is not allowed

        def accept(self, token: int) -> None: ...

    def pick(written: list[int], constraint: Any = None, **settings: Any) -> int:
        sampling = Sampling(max_new_tokens=1, **settings)
        return choose(SCORES[None].clone(), [Draw(sampling, sampling.generator(), written, constraint)])[0].token

    assert pick([0, 0]) == 0
    assert pick([0, 0], frequency_penalty=0.3) == 1  # 0.6 is more than log(0.5 / 0.3)
    assert pick([0], frequency_penalty=0.3) == 0
    assert pick([0, 0], presence_penalty=0.6) == 1
    assert pick([], logit_bias={3: 5.0}) == 3
    assert pick([], OnlyOdd()) == 1


# --- tokens to text --------------------------------------------------------------------------------------------------


TEXTS = ["the film was é 😀 fine", "日本語 and a film", "ok 👩‍👩‍👧 ok", "Zażółć", ""]


@pytest.mark.parametrize("text", TEXTS)
def test_pieces_are_whole_characters_and_join_to_the_text(text: str, tokenizer: Any) -> None:
    ids = tokenizer(text)["input_ids"]
    stream = TextStream(tokenizer)
    pieces = [stream.push(token) for token in ids] + [stream.finish()]
    assert "".join(pieces) == tokenizer.decode(ids) == text
    assert not any("\ufffd" in piece for piece in pieces)
    assert b"".join(token_bytes(tokenizer, token) for token in ids).decode() == text


def test_a_character_cut_in_the_middle_is_left_out(tokenizer: Any) -> None:
    ids = tokenizer("fine 😀")["input_ids"][:-1]
    stream = TextStream(tokenizer)
    assert "".join([*(stream.push(token) for token in ids), stream.finish()]) == "fine "


@pytest.mark.parametrize(
    "stop", [["was fi"], ["x", "e film w"], ["film was fine and good!"], ["the film", "film"]], ids=str
)
def test_a_stop_string_over_several_tokens_cuts_the_text(stop: list[str], tokenizer: Any) -> None:
    text = "the film was fine and good"
    stream, pieces = TextStream(tokenizer, stop), []
    for token in tokenizer(text)["input_ids"]:
        pieces.append(stream.push(token))
        if stream.stopped:
            break
    pieces.append(stream.finish())
    place = min((text.find(s) for s in stop if s in text), default=len(text))
    assert "".join(pieces) == text[:place]
    assert stream.stopped is any(s in text for s in stop)


@pytest.mark.parametrize(("is_turn", "shown"), [(True, "It is"), (False, "<think>")])
def test_a_stop_string_does_not_act_in_an_empty_thought(is_turn: bool, shown: str, tokenizer: Any) -> None:
    """Which is no part of a turn's text."""
    stream, text = TextStream(tokenizer, ["\n"], is_turn=is_turn), ""
    for token in tokenizer("<think>\n\n</think>\n\nIt is\nsunny")["input_ids"]:
        text += stream.push(token)
        if stream.stopped:
            break
    assert stream.stopped and text + stream.finish() == shown


@pytest.mark.parametrize(
    ("prompt", "shown"), [("<think>\n", "It is\nsunny"), ("<think>", "It is\nsunny"), ("a", "\nIt is\nsunny")]
)
def test_white_space_in_a_thought_that_the_prompt_opens_is_not_shown(prompt: str, shown: str, tokenizer: Any) -> None:
    stream = TextStream(tokenizer, is_turn=True, behind=tokenizer(prompt)["input_ids"])
    pieces = [stream.push(token) for token in tokenizer("\n</think>\n\nIt is\nsunny")["input_ids"]]
    assert "".join([*pieces, stream.finish()]) == shown


@pytest.mark.parametrize(("stop", "shown"), [("in", "<th"), ("<think", ""), ("k>", "<think")])
def test_a_stop_string_acts_in_what_was_no_thought_after_all(stop: str, shown: str, tokenizer: Any) -> None:
    """An answer that ends where a thought might have begun."""
    stream = TextStream(tokenizer, [stop], is_turn=True)
    assert [stream.push(token) for token in tokenizer("<think")["input_ids"]][-1] == "" and not stream.stopped
    assert stream.finish() == shown and stream.stopped is (stop in "<think")
    assert stream.finish() == ""


@pytest.mark.parametrize(
    ("behind", "ids", "text"),
    [
        ([], [2, 3], "the film"),  # a text begins without a space
        ([1], [2, 3], "the film"),
        ([1, 2], [3, 4], " film was"),
        ([1, 2], [5], "s"),
        ([2] * 20, [3], " film"),
        ([2, 6], [7, 3], "\ufffd film"),  # a character that began in the prompt
        ([2, 6, 7], [6, 7], "é"),
    ],
)
def test_the_space_between_a_prompt_and_what_follows_is_kept(behind: list[int], ids: list[int], text: str) -> None:
    """Decoders like those of Llama 2 and Mistral strip the space before the first word."""
    words = {"<unk>": 0, "<s>": 1, "▁the": 2, "▁film": 3, "▁was": 4, "s": 5, "<0xC3>": 6, "<0xA9>": 7}
    backend = Tokenizer(models.BPE(vocab=words, merges=[], byte_fallback=True, unk_token="<unk>"))
    backend.add_special_tokens(["<s>"])
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    backend.decoder = decoders.Sequence(steps)
    stream = TextStream(SimpleNamespace(backend_tokenizer=backend), behind=behind)
    assert "".join([*(stream.push(token) for token in ids), stream.finish()]) == text


def test_the_batch_ends_a_row_at_a_stop_string(decoder: Model) -> None:
    heard: list[Token] = []
    batch = RunningBatch(decoder)
    batch.add(request(decoder, "the film was", heard, max_new_tokens=30))
    batch.run()
    text = decoder.tokenizer.decode(ids_of(heard))
    stop = text[len(text) // 2 : len(text) // 2 + 3]
    heard.clear()
    stopped = request(decoder, "the film was", heard, max_new_tokens=30)
    stopped.text = TextStream(decoder.tokenizer, [stop])
    batch.add(stopped)
    batch.run()
    assert "".join(token.text for token in heard) == text[: text.find(stop)]
    assert heard[-1].finish_reason == "stop"


def test_a_stop_string_that_is_found_at_the_very_end_is_the_reason_of_the_end(decoder: Model) -> None:
    heard: list[Token] = []
    (mark,) = decoder.tokenizer("<", add_special_tokens=False)["input_ids"]
    asked = request(decoder, "the film was", heard, max_new_tokens=1, logit_bias={mark: 100.0})
    asked.text = TextStream(decoder.tokenizer, ["<"], is_turn=True)
    batch = RunningBatch(decoder)
    batch.add(asked)
    batch.run()
    assert [(token.text, token.finish_reason) for token in heard] == [("", "stop")]
