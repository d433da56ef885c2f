"""Shared pieces of the tests: tiny random models with real tokenizers, and small data files."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Iterator
from datetime import date
from pathlib import Path

import hypothesis
import pytest

hypothesis.settings.register_profile("any-machine", deadline=None)  # a slow machine is not a wrong answer
hypothesis.settings.load_profile("any-machine")
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test reaches for a hub; the tests of the hub set it themselves
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # tiny tensors on a busy machine: spinning threads cost 4x
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # several processes of tests share the cores

CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
_WORDS = (
    "the a film movie plot actor scene great good fine lovely bad dull awful poor and is was with very quite not what "
    "capital of france spain italy paris madrid rome question answer please tell me more system user assistant "
    "positive negative classify text label one"
)
WORDS = _WORDS.split()


def sentences(count: int, seed: int = 0) -> list[str]:
    """Texts of 3 to 12 known words."""
    source = random.Random(seed)
    return [" ".join(source.choices(WORDS, k=source.randint(3, 12))) for _ in range(count)]


def labelled_rows(count: int, seed: int = 0) -> list[dict[str, str]]:
    """Reviews whose label follows from their words, so that a model can learn them."""
    source = random.Random(seed)
    rows = []
    for number in range(count):
        label = ("positive", "negative")[number % 2]
        key = source.choice(["great", "good", "lovely"] if label == "positive" else ["bad", "awful", "dull"])
        filler = source.choices(["the", "a", "film", "movie", "plot", "scene", "very", "quite"], k=source.randint(3, 9))
        filler.insert(source.randrange(len(filler)), key)
        rows.append({"text": " ".join([*filler, str(number)]), "label": label})
    return rows


def write_jsonl(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="session", autouse=True)
def the_day() -> Iterator[None]:
    """Providers' last days pass; the tests stand still on a day when some are open."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tunesmith.hosted.clock.today", lambda: date(2026, 11, 27))
        yield


@pytest.fixture(scope="session")
def tiny_encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random BERT of 2 layers that pools by the mean, with a word-piece tokenizer; sentence-transformers layout."""
    return make_encoder(tmp_path_factory.mktemp("tiny-encoder"), pooling="mean")


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same without a sentence-transformers layout: a stock classification model."""
    return make_encoder(tmp_path_factory.mktemp("tiny-bert"), pooling=None)


@pytest.fixture(scope="session")
def tiny_decoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama of 2 layers with 4 query and 2 key heads, a byte-level tokenizer and ChatML; pad is EOS."""
    return make_decoder(tmp_path_factory.mktemp("tiny-decoder"))


@pytest.fixture(scope="session")
def tiny_t5(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random T5 of 2 + 2 layers with a unigram tokenizer; its decoder starts with pad."""
    return make_t5(tmp_path_factory.mktemp("tiny-t5"))


@pytest.fixture(scope="session")
def tiny_bart(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random BART of 2 + 2 layers with a byte-level tokenizer; its decoder starts with EOS, and BOS is forced."""
    return make_bart(tmp_path_factory.mktemp("tiny-bart"))


def make_encoder(folder: Path, pooling: str | None) -> Path:
    import torch
    from tokenizers import BertWordPieceTokenizer
    from transformers import BertConfig, BertModel, BertTokenizerFast

    trainer = BertWordPieceTokenizer()
    trainer.train_from_iterator(sentences(500) + [str(n) for n in range(200)], vocab_size=400, show_progress=False)
    trainer.save_model(str(folder))
    tokenizer = BertTokenizerFast(str(folder / "vocab.txt"), model_max_length=64)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=64,
    )
    BertModel(config).save_pretrained(folder)
    if pooling:
        (folder / "1_Pooling").mkdir()
        settings = {"word_embedding_dimension": 32, f"pooling_mode_{pooling}_tokens": True}
        (folder / "1_Pooling" / "config.json").write_text(json.dumps(settings), encoding="utf-8")
    return folder


def make_decoder(folder: Path) -> Path:
    import torch
    from tokenizers import ByteLevelBPETokenizer
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    trainer = ByteLevelBPETokenizer()
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    trainer.train_from_iterator(sentences(500), vocab_size=500, special_tokens=specials, show_progress=False)
    trainer.save(str(folder / "raw.json"))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "raw.json"),
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|im_end|>",
        unk_token="<|endoftext|>",
    )
    tokenizer.chat_template = CHATML
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def make_t5(folder: Path) -> Path:
    import torch
    from tokenizers import SentencePieceUnigramTokenizer
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration

    raw = SentencePieceUnigramTokenizer()
    raw.train_from_iterator(
        sentences(500),
        vocab_size=300,
        special_tokens=["<pad>", "</s>", "<unk>"],
        unk_token="<unk>",
        show_progress=False,
    )
    raw.post_processor = TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw._tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = T5Config(
        vocab_size=len(tokenizer), d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4,
        pad_token_id=0, eos_token_id=1, decoder_start_token_id=0, n_positions=128,
    )  # fmt: skip
    T5ForConditionalGeneration(config).save_pretrained(folder)
    return folder


def make_bart(folder: Path) -> Path:
    import torch
    from tokenizers import ByteLevelBPETokenizer
    from tokenizers.processors import TemplateProcessing
    from transformers import BartConfig, BartForConditionalGeneration, PreTrainedTokenizerFast

    raw = ByteLevelBPETokenizer()
    specials = ["<s>", "<pad>", "</s>", "<unk>"]
    raw.train_from_iterator(sentences(500), vocab_size=400, special_tokens=specials, show_progress=False)
    raw._tokenizer.post_processor = TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw._tokenizer, bos_token="<s>", pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = BartConfig(
        vocab_size=len(tokenizer), d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4,
        decoder_attention_heads=4, encoder_ffn_dim=64, decoder_ffn_dim=64, max_position_embeddings=128,
        bos_token_id=0, pad_token_id=1, eos_token_id=2, decoder_start_token_id=2,
    )  # fmt: skip
    model = BartForConditionalGeneration(config)
    # What a published BART has: settings that an evaluation must not take over unasked.
    model.generation_config.update(num_beams=3, min_length=9, no_repeat_ngram_size=2, forced_bos_token_id=0)
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def reviews(tmp_path: Path) -> Path:
    """A JSONL file of 120 labelled reviews."""
    return write_jsonl(tmp_path / "reviews.jsonl", labelled_rows(120))


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    """A JSONL file of 60 prompts with completions."""
    rows = [
        {"prompt": f"what is the capital of {country} {n}", "completion": f"{city}"}
        for n in range(20)
        for country, city in (("france", "paris"), ("spain", "madrid"), ("italy", "rome"))
    ]
    return write_jsonl(tmp_path / "questions.jsonl", rows)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The real data sets beside the checkout."""
    folder = Path(__file__).resolve().parents[1].parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("the real data sets are not beside the checkout (../shared/data)")
    return folder
