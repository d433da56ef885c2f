"""Other projects' clients of OpenAI's API tune a model here: LiteLLM, and wandb's sync of what came of it.

They are fetched once, pinned, into an environment of their own in the user's cache. ``scripts/check_clients.py`` also
knows DSPy and llama-index-finetuning, which want far more packages.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import venv
from pathlib import Path

import pytest

import serving

PINS = ("litellm==1.110.2", "wandb==0.31.0", "openai==3.57.0", "pandas==3.1.1")
SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "check_clients.py"


@pytest.fixture(scope="module")
def python() -> str:
    """The interpreter of an environment with the clients."""
    home = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "tunesmith-tests"
    place = home / f"clients-py{sys.version_info.major}{sys.version_info.minor}-{'-'.join(PINS[:2])}"
    found, done = place / "bin" / "python", place / "complete"
    if not done.is_file():
        venv.create(place, with_pip=True, clear=True)
        command = [
            found,
            "-m",
            "pip",
            "install",
            "--quiet",
            "--disable-pip-version-check",
            "--only-binary=:all:",
            *PINS,
        ]
        try:
            made = subprocess.run(command, capture_output=True, text=True, timeout=300)
        except subprocess.TimeoutExpired:
            pytest.skip(f"pip did not fetch {' '.join(PINS)} within five minutes")
        if made.returncode:
            pytest.skip(f"pip cannot fetch {' '.join(PINS)}: {made.stderr.strip().splitlines()[-1:]}")
        done.touch()
    return str(found)


def test_clients_of_other_projects(python: str, tmp_path: Path, tiny_decoder: Path) -> None:
    with serving.server(tmp_path / "data", tiny_decoder) as address:
        done = subprocess.run(
            [python, SCRIPT, "gpt-tiny"],
            env={"OPENAI_BASE_URL": f"{address}/v1", "OPENAI_API_KEY": "none", "PATH": os.environ["PATH"],
                 "HOME": str(tmp_path), "LITELLM_LOCAL_MODEL_COST_MAP": "True"},
            cwd=tmp_path, capture_output=True, text=True, timeout=500,
        )  # fmt: skip
    said = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"client"')]
    results = {line["client"]: line for line in said}
    assert done.returncode == 0, (said, done.stderr[-2000:])
    assert results["litellm"]["good"] and results["wandb"]["good"], said
