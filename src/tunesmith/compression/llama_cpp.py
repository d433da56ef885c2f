"""llama.cpp, asked for greedy tokens in a process of its own: it may hang or crash, and takes only itself with it.

That process is ``python -m tunesmith.compression.llama_cpp FILE TOKENS``, which reads prompts (lists of token ids) as
JSON from stdin and prints the tokens written behind each. The package ``xllamacpp`` is a build of llama.cpp that runs
on any processor of its family.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tunesmith.errors import ResourceError

PACKAGE = "xllamacpp"
SECONDS = 300


def installed() -> bool:
    """Whether it can be asked at all."""
    return importlib.util.find_spec(PACKAGE) is not None


def greedy(path: Path, prompts: Sequence[Sequence[int]], count: int) -> list[list[int]]:
    """The tokens that llama.cpp writes behind each prompt, at most ``count``.

    Raises:
        ResourceError: It cannot load the file, crashes, or takes too long.
    """
    command = [sys.executable, "-m", "tunesmith.compression.llama_cpp", str(path), str(count)]
    here = {"PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)}
    asked = json.dumps([list(prompt) for prompt in prompts]).encode()
    try:
        done = subprocess.run(command, input=asked, capture_output=True, env=os.environ | here, timeout=SECONDS)
    except subprocess.TimeoutExpired as error:
        raise ResourceError(f"llama.cpp took more than {SECONDS} s", where=str(path)) from error
    lines = done.stdout.decode("utf-8", "replace").strip().splitlines()
    if done.returncode != 0 or not lines:
        said = [line for line in done.stderr.decode("utf-8", "replace").splitlines() if "Error: " in line]
        reason = said[-1] if said else f"it ended with code {done.returncode}"
        raise ResourceError(f"llama.cpp cannot answer: {reason}", where=str(path))
    written: list[list[int]] = json.loads(lines[-1])
    return written


def _ask_here(path: str, count: int) -> list[list[int]]:
    import xllamacpp

    prompts = json.load(sys.stdin)
    parameters = xllamacpp.CommonParams()
    parameters.model.path = path
    parameters.n_ctx = max(map(len, prompts)) + 2 * count
    parameters.n_parallel = 1
    parameters.warmup = False
    server = xllamacpp.Server(parameters)
    written = []
    for prompt in prompts:
        # The tokens are told by the way, with their likelihoods.
        asked = {"prompt": prompt, "n_predict": count, "temperature": 0.0, "logprobs": 1, "cache_prompt": False}
        told = server.handle_completions(asked)
        answer = told if isinstance(told, dict) else json.loads(told)
        try:
            written.append([token["id"] for token in answer["choices"][0]["logprobs"]["content"]])
        except (KeyError, IndexError, TypeError) as error:
            raise RuntimeError(f"an answer of another form: {answer}"[:400]) from error
    return written


if __name__ == "__main__":
    code = 1
    try:
        print(json.dumps(_ask_here(sys.argv[1], int(sys.argv[2]))), flush=True)
        code = 0
    except Exception as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
    os._exit(code)  # its server was seen to wait for itself for ever at the end of a process
