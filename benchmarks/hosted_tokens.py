"""Are our token counts those of tiktoken? On 10,000 strings, for both vocabularies.

    python benchmarks/hosted_tokens.py PYTHON CACHE [OUT]

``PYTHON`` is an interpreter of an environment with tiktoken, ``CACHE`` a folder with its vocabularies (it downloads
them where it can; the package llama-index-core brings them along under ``_static/tiktoken_cache``).
"""

from __future__ import annotations

import json
import os
import pydoc_data.topics
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tunesmith.environment import machine
from tunesmith.hosted.tokens import counter

VOCABULARIES = ("o200k_base", "cl100k_base")
COUNT = 10_000
POOLS = (
    "abcdefghijklmnopqrstuvwxyz      ",
    "ABCdefGHIjkl'sLL'll're 've\n\n\r\t  ",
    "0123456789.,:;-+%$€ ",
    "äöüßéèñçøåÆŒ ",
    "漢字かなカナ中文文本。、 ",
    "مرحبا بالعالم  ",
    "हिन्दी भाषा क्षत्रि ",
    "ру́сский язык ",
    "🙂👍🏽👩‍👩‍👧‍👦🇩🇪 ",
    "<|endoftext|><|im_start|>{}[]()\"'`~\\/",
    "\u00a0\u2003\u3000\u200b\u0301\u0345\u017f",
)
PEER = """
import json, sys, tiktoken
strings = json.load(open(sys.argv[1], encoding="utf-8"))
names = sys.argv[2:]
counts = {name: [len(tiktoken.get_encoding(name).encode_ordinary(text)) for text in strings] for name in names}
print(json.dumps({"version": tiktoken.__version__, "counts": counts}))
"""


def strings() -> list[str]:
    """Lines of Python's documentation, and mixtures of scripts, spaces and marks."""
    found = [line for text in pydoc_data.topics.topics.values() for line in text.split("\n") if line.strip()]
    found = found[: COUNT * 7 // 10]
    source = random.Random(0)
    while len(found) < COUNT:
        pool = "".join(source.sample(POOLS, source.randint(1, 4)))
        found.append("".join(source.choice(pool) for _ in range(source.randint(1, 120))))
    return found


def main() -> None:
    """Count with both, and write what differs."""
    python, cache, *out = sys.argv[1:]
    texts = strings()
    with tempfile.NamedTemporaryFile("w", suffix=".json", encoding="utf-8") as file:
        json.dump(texts, file)
        file.flush()
        peer = subprocess.run(
            [python, "-c", PEER, file.name, *VOCABULARIES],
            env={**os.environ, "TIKTOKEN_CACHE_DIR": cache},
            capture_output=True,
            text=True,
            check=True,
        )
    theirs = json.loads(peer.stdout)
    result = {"strings": len(texts), "tiktoken": theirs["version"], "machine": machine(), "vocabularies": {}}
    for name in VOCABULARIES:
        count = counter(name)
        started = time.perf_counter()
        ours = [count(text) for text in texts]
        result["vocabularies"][name] = {
            "tokens": sum(ours),
            "strings_that_differ": sum(a != b for a, b in zip(ours, theirs["counts"][name], strict=True)),
            "seconds": round(time.perf_counter() - started, 2),
        }
    text = json.dumps(result, indent=1) + "\n"
    print(text)
    if out:
        Path(out[0]).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
