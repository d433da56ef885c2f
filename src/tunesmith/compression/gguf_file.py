"""Models as GGUF files, which llama.cpp and what is built on it (Ollama, LM Studio) load.

Tensors get the names of the ``gguf`` package's own table. What those names cannot say (the order of rotated rows, the
kind of pre-tokenizer) is known here for the architectures in :data:`ARCHITECTURES` only: others are refused, since a
file that loads and answers wrongly is worse than none.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from tunesmith.data.render import ConversationRenderer
from tunesmith.errors import ResourceError, UsageError
from tunesmith.models.model import Model

ARCHITECTURES = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}
"""``model_type`` of transformers -> name of the architecture in GGUF."""
ROTATED_IN_PAIRS = ("llama", "mistral")
"""llama.cpp rotates neighbouring numbers of a head here; transformers those half a head apart."""
FORMATS = ("f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0")
"""What the ``gguf`` package can write."""
WITH_TOOL = ("q2_k", "q3_k", "q4_k", "q5_k", "q6_k", "iq4_xs", "iq4_nl")
"""What llama.cpp's own tool makes of an f16 file."""
PRE_TOKENIZERS: tuple[tuple[str, str], ...] = (
    (r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+", "llama-bpe"),
    (r"\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+", "qwen2"),
)
"""End of the pattern that splits text -> llama.cpp's name for that pattern."""


def refuse_unknown(model: Model, outtype: str) -> None:
    """Say what cannot be written before anything is.

    Raises:
        UsageError: With the reason and what to do instead.
    """
    if outtype in WITH_TOOL or outtype.rstrip("_sml") in WITH_TOOL:
        raise UsageError(
            f"{outtype} is made by llama.cpp's own tool, which no Python package replaces",
            where="--outtype",
            fix=f"export f16, then `llama-quantize model-f16.gguf model-{outtype}.gguf {outtype.upper()}`; "
            "of what is written here, q4_1 is the nearest",
        )
    if outtype not in FORMATS:
        raise UsageError(f"unknown format {outtype!r}", where="--outtype", fix=f"one of {', '.join(FORMATS)}")
    if model.form != "generate":
        raise UsageError(
            f"GGUF is for models that write, and this one's form is `{model.form}`",
            where="--to",
            fix="use `--to onnx` or `--to safetensors`",
        )
    kind = cast(Any, model.transformer()).config.model_type
    if kind not in ARCHITECTURES:
        raise UsageError(
            f"how the architecture `{kind}` is written as GGUF is not known here",
            where="--to",
            fix=f"export safetensors and convert them with llama.cpp's `convert_hf_to_gguf.py`; known here: "
            f"{', '.join(ARCHITECTURES)}",
        )
    pre_tokenizer(model.tokenizer)


def write_gguf(model: Model, path: Path, outtype: str, *, name: str, licence: str | None) -> None:
    """Write weights, tokenizer and chat template of a causal model.

    Args:
        model: Without adapters; see :func:`refuse_unknown`.
        path: The file.
        outtype: One of :data:`FORMATS`, for matrices; vectors stay in fp32.
        name: Of the model, for the file's own record.
        licence: SPDX identifier of the base model's licence, if known.

    Raises:
        ResourceError: The disk is full.
    """
    from gguf import GGUFWriter

    transformer: Any = model.transformer()
    config = transformer.config
    writer = GGUFWriter(path, ARCHITECTURES[config.model_type])
    try:
        writer.add_name(name)
        if licence:
            writer.add_license(licence)
        _add_shape(writer, config, outtype)
        _add_tokenizer(writer, model)
        for key, values, kind in _tensors(transformer, config, outtype):
            writer.add_tensor(key, values, raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    except OSError as error:
        raise ResourceError(
            f"cannot write the GGUF file: {error}", where=str(path), fix="free some disk space"
        ) from error
    finally:
        writer.close()


def _add_shape(writer: Any, config: Any, outtype: str) -> None:
    from gguf import LlamaFileType

    heads = config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(heads)
    writer.add_head_count_kv(getattr(config, "num_key_value_heads", None) or heads)
    writer.add_key_length(width)
    writer.add_value_length(width)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_rope_freq_base(_rope_base(config))
    if ARCHITECTURES[config.model_type] == "llama":
        writer.add_rope_dimension_count(width)
    names = {"f32": "ALL_F32"}
    writer.add_file_type(getattr(LlamaFileType, names.get(outtype, f"MOSTLY_{outtype.upper()}")))
    writer.add_quantization_version(2)


def _rope_base(config: Any) -> float:
    """The base of the rotation's frequencies.

    Raises:
        UsageError: The frequencies are scaled, in a way that is not written here.
    """
    parameters = dict(getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {})
    kind = parameters.get("rope_type", parameters.get("type", "default"))
    if kind not in (None, "default"):
        raise UsageError(
            f"rotations scaled by `{kind}` are not written as GGUF here",
            where="--to",
            fix="export safetensors and convert them with llama.cpp's `convert_hf_to_gguf.py`",
        )
    return float(parameters.get("rope_theta") or getattr(config, "rope_theta", None) or 10_000.0)


# --- tokenizer --------------------------------------------------------------------------------------------------------


def pre_tokenizer(tokenizer: Any) -> str:
    """llama.cpp's name for how a byte-level BPE tokenizer cuts text before it merges.

    Raises:
        UsageError: It is another kind of tokenizer, or cuts in a way that is not known here.
    """
    description = json.loads(tokenizer.backend_tokenizer.to_str())
    refusal = UsageError(
        "this tokenizer is not known here, and llama.cpp would cut texts in another way than it does",
        where="--to",
        fix="export safetensors and convert them with llama.cpp's `convert_hf_to_gguf.py`",
    )
    if description["model"]["type"] != "BPE" or description["model"].get("byte_fallback"):
        raise refusal
    if (description.get("normalizer") or {"type": "NFC"})["type"] != "NFC":
        raise refusal
    steps = description.get("pre_tokenizer") or {}
    parts = steps.get("pretokenizers", [steps])
    kinds = [part.get("type") for part in parts]
    level = next((part for part in parts if part.get("type") == "ByteLevel"), None)
    if level is None or level.get("add_prefix_space"):
        raise refusal
    if kinds == ["ByteLevel"] and level.get("use_regex", True):
        return "gpt-2"
    if kinds == ["Digits", "ByteLevel"] and parts[0].get("individual_digits") and level.get("use_regex", True):
        return "smollm"
    if kinds == ["Split", "ByteLevel"]:
        pattern = str(parts[0].get("pattern", {}).get("Regex", ""))
        for end, name in PRE_TOKENIZERS:
            if pattern.endswith(end):
                return name
    raise refusal


def _add_tokenizer(writer: Any, model: Model) -> None:
    tokenizer = model.tokenizer
    description = json.loads(tokenizer.backend_tokenizer.to_str())
    tokens, kinds = _vocabulary(tokenizer, int(cast(Any, model.transformer()).config.vocab_size))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre_tokenizer(tokenizer))
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges(
        [" ".join(pair) if isinstance(pair, list) else pair for pair in description["model"]["merges"]]
    )
    _add_special_tokens(writer, tokenizer, model.eos_ids or [tokenizer.eos_token_id])
    if isinstance(tokenizer.chat_template, str):
        writer.add_chat_template(tokenizer.chat_template)


def _vocabulary(tokenizer: Any, size: int) -> tuple[list[str], list[Any]]:
    """The token of each of ``size`` rows of the embedding, and its kind; rows without a token get one."""
    from gguf import TokenType

    by_id = {number: token for token, number in tokenizer.get_vocab().items()}
    kinds = dict.fromkeys(by_id, TokenType.NORMAL)
    for number, token in tokenizer.added_tokens_decoder.items():
        kinds[number] = TokenType.CONTROL if token.special else TokenType.USER_DEFINED
    tokens = [by_id.get(number, f"[PAD{number}]") for number in range(size)]
    return tokens, [kinds.get(number, TokenType.UNUSED) for number in range(size)]


def _add_special_tokens(writer: Any, tokenizer: Any, ends: list[int]) -> None:
    """Which tokens begin, end, pad and stand for the unknown; ``ends`` has those that end an answer."""
    if tokenizer.bos_token_id is not None:
        writer.add_bos_token_id(tokenizer.bos_token_id)
    main = tokenizer.eos_token_id if tokenizer.eos_token_id in ends else ends[0]
    writer.add_eos_token_id(main)
    turn = next((number for number in ends if number != main), None)
    if turn is not None:
        writer.add_eot_token_id(turn)
    if tokenizer.unk_token_id is not None:
        writer.add_unk_token_id(tokenizer.unk_token_id)
    if tokenizer.pad_token_id is not None:
        writer.add_pad_token_id(tokenizer.pad_token_id)
    opens = tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]
    writer.add_add_bos_token(bool(opens))


# --- tensors ----------------------------------------------------------------------------------------------------------


def _tensors(transformer: Any, config: Any, outtype: str) -> Iterator[tuple[str, np.ndarray, Any]]:
    """Name, numbers as they are written, and their kind."""
    from gguf import GGML_QUANT_SIZES, MODEL_ARCH, GGMLQuantizationType, get_tensor_name_map, quants

    arch = next(arch for arch in MODEL_ARCH if arch.name.lower() == ARCHITECTURES[config.model_type])
    names = get_tensor_name_map(arch, config.num_hidden_layers)
    tied = bool(config.tie_word_embeddings)
    for key, tensor in transformer.state_dict().items():
        if tied and key == "lm_head.weight":
            continue
        name = names.get_name(key, try_suffixes=(".weight", ".bias"))
        if name is None:
            raise UsageError(f"GGUF has no place for {key}", where="--to", fix="use `--to safetensors`")
        values = _in_order(key, tensor.detach(), config).float().cpu().numpy()
        kind = GGMLQuantizationType[outtype.upper()]
        block = GGML_QUANT_SIZES[kind][0]
        if values.ndim < 2 or values.shape[-1] % block:  # vectors, and rows that blocks do not divide
            kind = GGMLQuantizationType.F32 if values.ndim < 2 else GGMLQuantizationType.F16
        yield name, quants.quantize(np.ascontiguousarray(values), kind), kind


def _in_order(key: str, tensor: torch.Tensor, config: Any) -> torch.Tensor:
    """Rows of queries and keys in the order in which llama.cpp rotates them."""
    if config.model_type not in ROTATED_IN_PAIRS:
        return tensor
    heads = None
    if ".q_proj." in key:
        heads = config.num_attention_heads
    elif ".k_proj." in key:
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    if heads is None:
        return tensor
    halves = tensor.view(heads, 2, tensor.shape[0] // heads // 2, *tensor.shape[1:])
    return halves.transpose(1, 2).reshape(tensor.shape)


CHATML = """TEMPLATE \"\"\"{{- range .Messages }}<|im_start|>{{ .Role }}
{{ .Content }}<|im_end|>
{{ end }}<|im_start|>assistant
\"\"\"
"""
"""The chat template again in Ollama's own language, for the family that is written out here."""


def modelfile(file: str, model: Model, system_prompt: str | None = None) -> str:
    """A Modelfile by which Ollama serves the GGUF file beside it.

    Ollama's templates are written in Go's language: one of the ChatML family is written out; others Ollama looks up by
    the template in the file, as far as it knows them.

    Args:
        file: Name of the GGUF file.
        model: What is in it.
        system_prompt: That the model was taught with.
    """
    ends = [model.tokenizer.convert_ids_to_tokens(number) for number in model.eos_ids]
    stops = "".join(f"PARAMETER stop {json.dumps(token, ensure_ascii=False)}\n" for token in dict.fromkeys(ends))
    chatml = "<|im_start|>" in str(model.tokenizer.chat_template or "")
    said = _system(model, system_prompt) if chatml else system_prompt or ""
    system = f"SYSTEM {_quoted(said)}\n" if said else ""
    return f"FROM ./{file}\n{CHATML if chatml else ''}{system}PARAMETER temperature 0\n{stops}"


def _system(model: Model, system_prompt: str | None) -> str:
    """The system turn that a conversation begins with: the recipe's, else the one that the model's template adds."""
    if system_prompt:
        return system_prompt
    prompt = ConversationRenderer(model.tokenizer, sys.maxsize, model.eos_ids).prompt(
        [{"role": "user", "content": "?"}]
    )
    found = re.match(r"\s*<\|im_start\|>system\n(.*?)<\|im_end\|>", model.tokenizer.decode(prompt), re.DOTALL)
    return found[1] if found else ""


def _quoted(text: str) -> str:
    """A text as a Modelfile takes it."""
    return json.dumps(text, ensure_ascii=False) if '"""' in text else f'"""{text}"""'
