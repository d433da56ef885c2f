"""GGUF files as folders in transformers' format: converted once, in a process of its own, kept in bf16.

Parsers of GGUF have had holes, and the file is often somebody else's: the conversion runs in a separate process with
a limit on its time and memory. That process is ``python -m tunesmith.catalog.gguf FILE FOLDER``.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from tunesmith.catalog import cache
from tunesmith.errors import ResourceError
from tunesmith.events import Listener, Phase

FORMAT = 1
"""Raised when the conversion changes, so that folders of an older one are made again."""
SECONDS_AT_LEAST, SECONDS_PER_GB = 600, 240
MEMORY_AT_LEAST, MEMORY_PER_BYTE = 16 * 2**30, 24
"""Limit of the address space: 2-bit weights grow 16-fold on the way through fp32, and torch reserves some GB unused."""
PROBES = (
    "Hello, world! It's 9:30 -- isn't it?",
    "  def f(x):\n\treturn x ** 2  # naïve\n",
    "Größe, ½, 日本語, Привет, 🙂",
)


def model_folder(path: Path, on_event: Listener) -> Path:
    """The cached conversion of a user's ``.gguf`` file; made again when the file has changed.

    Raises:
        ResourceError: It is no GGUF file, or transformers cannot convert it.
    """
    place, stat = str(path.resolve()), path.stat()
    key = {"file": place, "bytes": stat.st_size, "changed": stat.st_mtime_ns, "format": FORMAT}
    name = f"{path.stem}-{hashlib.sha256(place.encode()).hexdigest()[:12]}"

    def build(staging: Path) -> dict[str, Any]:
        convert(path, staging, on_event)
        return {"quantized_origin": "gguf"}

    # Not deep: hashing the many gigabytes of a user's own model at every start would cost more than it protects.
    return cache.ensure(cache.root() / "gguf" / name, build, key=key, on_event=on_event, deep=False)


def convert(source: Path, folder: Path, on_event: Listener) -> None:
    """Write weights (safetensors, bf16), config, tokenizer and chat template of a GGUF file into ``folder``.

    Raises:
        ResourceError: It is no GGUF file, of an unknown architecture, or too much for the limits.
    """
    with source.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise ResourceError("not a GGUF file (its first bytes differ)", where=str(source))
    size = source.stat().st_size
    on_event(Phase(step="model", message=f"converting {source.name} to safetensors in bf16 (once; it is kept)"))
    command = [sys.executable, "-P", "-m", "tunesmith.catalog.gguf", str(source), str(folder)]
    paths = [str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])]
    offline = {"HF_HUB_OFFLINE": "1", "PYTHONPATH": os.pathsep.join(paths)}
    seconds = SECONDS_AT_LEAST + SECONDS_PER_GB * size / 1e9
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, env=os.environ | offline, timeout=seconds
        )
    except subprocess.TimeoutExpired as error:
        raise ResourceError(f"the conversion took more than {seconds:.0f} s", where=str(source)) from error
    if done.returncode != 0:
        lines = [line.strip() for line in done.stderr.decode("utf-8", "replace").splitlines() if line.strip()]
        reason = lines[-1] if done.returncode > 0 and lines else f"stopped by signal {-done.returncode}"
        raise ResourceError(
            f"transformers cannot convert this GGUF file: {reason}",
            where=str(source),
            fix="use the model's safetensors files, if there are any",
        )


def _convert_here(source: Path, folder: Path) -> None:
    """The conversion itself, in this process."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    place = {"gguf_file": source.name, "local_files_only": True}
    model = AutoModelForCausalLM.from_pretrained(
        source.parent, dtype=torch.bfloat16, quantization_config=GgufConfig(dequantize=True), **place
    )
    if hasattr(model.config, "quantization_config"):  # the weights are plain now; a leftover would refuse to be saved
        del model.config.quantization_config
    tokenizer = AutoTokenizer.from_pretrained(source.parent, **place)
    tokenizer.model_max_length = model.config.max_position_embeddings  # a GGUF's tokenizer knows no limit
    model.generation_config.eos_token_id = _end_tokens(source, tokenizer.eos_token_id)
    model.generation_config._from_model_config = False  # else a loader may derive it anew and lose the line above
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    _tidy_tokenizer_config(folder / "tokenizer_config.json")
    _check_tokenizer(tokenizer, AutoTokenizer.from_pretrained(folder, local_files_only=True))


def _end_tokens(source: Path, eos: int) -> int | list[int]:
    """What ends an answer: EOS, and the end of a turn where the file names another token for it."""
    from gguf import GGUFReader

    field = GGUFReader(source).get_field("tokenizer.ggml.eot_token_id")
    turn = int(field.contents()) if field is not None else eos
    return eos if turn == eos else [eos, turn]


def _tidy_tokenizer_config(path: Path) -> None:
    """Leave out how the tokenizer was loaded, and name its class as every version of transformers knows it."""
    config = json.loads(path.read_text(encoding="utf-8"))
    config = {key: value for key, value in config.items() if key not in ("is_local", "local_files_only", "backend")}
    if config.get("tokenizer_class") == "TokenizersBackend":
        config["tokenizer_class"] = "PreTrainedTokenizerFast"
    path.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _check_tokenizer(original: Any, saved: Any) -> None:
    """Refuse a conversion whose saved tokenizer differs from the one in the GGUF file."""
    for text in PROBES:
        if original(text)["input_ids"] != saved(text)["input_ids"]:
            raise RuntimeError(f"the saved tokenizer reads {text!r} differently")
    for name in ("eos_token_id", "pad_token_id", "bos_token_id", "chat_template"):
        if getattr(original, name) != getattr(saved, name):
            raise RuntimeError(f"the saved tokenizer has another {name}")


def _limit_memory(file_bytes: int) -> None:
    """Let this process end with an error instead of taking the machine's memory."""
    try:
        import resource
    except ImportError:  # not on Windows
        return
    limit = max(MEMORY_AT_LEAST, MEMORY_PER_BYTE * file_bytes)
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    resource.setrlimit(resource.RLIMIT_AS, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))


if __name__ == "__main__":
    _limit_memory(Path(sys.argv[1]).stat().st_size)
    _convert_here(Path(sys.argv[1]), Path(sys.argv[2]))
    print(json.dumps({"folder": sys.argv[2]}))
