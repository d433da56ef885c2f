"""How much faster the server answers many clients at once than one after the other.

    python benchmarks/server.py --model smollm2-135m-instruct --streams 64 --tokens 64

starts ``tunesmith serve`` on a free port, asks with OpenAI's client - first one stream at a time, then all at once -
and prints (and with ``--output`` writes) the figures. ``--model tiny`` is a random Llama of two layers: there the time
goes into everything but the network. Needs the extras ``server`` and ``dev``.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import openai

QUESTIONS = (
    "What is the capital of France?",
    "Tell me about the plot of a film that you like.",
    "Explain in a few sentences why the sky is blue.",
    "Write a short poem about the sea.",
)


@dataclass(frozen=True)
class Answer:
    """One stream: what was written, and when."""

    tokens: int
    first: float
    seconds: float
    text: str


async def ask(client: openai.AsyncOpenAI, model: str, number: int, tokens: int) -> Answer:
    """One stream to its end."""
    started, first, text, written = time.perf_counter(), 0.0, [], 0
    stream = await client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": f"{QUESTIONS[number % len(QUESTIONS)]} ({number})"}],
        max_tokens=tokens,
        temperature=1.0,
        seed=number,
        stream=True,
        stream_options={"include_usage": True},
    )
    async for chunk in stream:
        if chunk.usage is not None:
            written = chunk.usage.completion_tokens
        if chunk.choices and chunk.choices[0].delta.content:
            first = first or time.perf_counter() - started
            text.append(chunk.choices[0].delta.content)
    return Answer(written, first, time.perf_counter() - started, "".join(text))


async def measure(address: str, model: str, streams: int, alone: int, tokens: int) -> dict[str, Any]:
    """One at a time, then all at once."""
    async with openai.AsyncOpenAI(base_url=address, api_key="none", max_retries=0, timeout=600) as client:
        await ask(client, model, 0, 2)  # loads the model
        started = time.perf_counter()
        apart = [await ask(client, model, number, tokens) for number in range(alone)]
        apart_seconds = time.perf_counter() - started
        started = time.perf_counter()
        asked = [ask(client, model, number, tokens) for number in range(streams)]
        together = await asyncio.gather(*asked, return_exceptions=True)
        together_seconds = time.perf_counter() - started
    answered = [answer for answer in together if isinstance(answer, Answer)]
    one_by_one = sum(answer.tokens for answer in apart) / apart_seconds
    at_once = sum(answer.tokens for answer in answered) / together_seconds
    same = sum(a.text == b.text for a, b in zip(apart, together, strict=False) if isinstance(b, Answer))
    return {
        "streams": streams,
        "failed": len(together) - len(answered),
        "errors": sorted({repr(error)[:200] for error in together if not isinstance(error, Answer)}),
        "tokens_per_second_one_at_a_time": round(one_by_one, 1),
        "tokens_per_second_at_once": round(at_once, 1),
        "ratio": round(at_once / one_by_one, 2),
        "first_token_seconds_alone": round(statistics.median(answer.first for answer in apart), 3),
        "first_token_seconds_at_once": {
            "median": round(statistics.median(answer.first for answer in answered), 3),
            "worst": round(max(answer.first for answer in answered), 3),
        },
        "answers_equal_to_those_alone": f"{same} of {min(alone, streams)}",
    }


def tiny_model(folder: Path) -> Path:
    """The tests' random Llama of two layers."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
    from conftest import make_decoder

    folder.mkdir()
    return make_decoder(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m-instruct", help="as in models.yaml, or `tiny`")
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--alone", type=int, default=8, help="how many are asked one at a time")
    parser.add_argument("--tokens", type=int, default=64, help="longest answer")
    parser.add_argument("--output", type=Path)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as root:
        model = str(tiny_model(Path(root) / "tiny")) if asked.model == "tiny" else asked.model
        (Path(root) / "models.yaml").write_text(json.dumps({"measured": model}), encoding="utf-8")
        command = [sys.executable, "-c", "from tunesmith.cli.main import main; main()", "serve", "--port", "0"]
        command += ["--workers", "0", "--data", f"{root}/data", "--models", f"{root}/models.yaml"]
        server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        try:
            assert server.stdout is not None
            address = re.search(r"http://\S+/v1", server.stdout.readline())
            assert address is not None, "the server did not start"
            found = asyncio.run(measure(address[0], "measured", asked.streams, asked.alone, asked.tokens))
        finally:
            server.terminate()
            server.wait(30)
    facts = {
        "model": asked.model,
        "longest_answer_tokens": asked.tokens,
        **found,
        "cores": len(os.sched_getaffinity(0)),
        "load_average": round(os.getloadavg()[0], 1),
        "versions": {name: metadata.version(name) for name in ("torch", "transformers", "tunesmith")},
    }
    text = json.dumps(facts, indent=1)
    print(text)
    if asked.output:
        asked.output.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
