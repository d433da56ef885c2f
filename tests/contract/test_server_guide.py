"""OpenAI's guide to fine-tuning, word for word, against ``tunesmith serve`` with a real model and real rows.

Takes minutes, so it is asked for: ``TUNESMITH_ACCEPTANCE=1 python -m pytest tests/contract/test_server_guide.py -s``.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.shared_data,
    pytest.mark.download,
    pytest.mark.skipif("TUNESMITH_ACCEPTANCE" not in os.environ, reason="takes minutes: set TUNESMITH_ACCEPTANCE=1"),
]
ROWS = 40
MODELS = """
gpt-4.1-mini:
  model: smollm2-135m-instruct
  recipe: {data: {max_length: 256}}
"""
GUIDE = """
import json, time
from openai import OpenAI

client = OpenAI()

file = client.files.create(file=open("mydata.jsonl", "rb"), purpose="fine-tune")
job = client.fine_tuning.jobs.create(
    training_file=file.id,
    model="gpt-4.1-mini-2025-04-14",
    method={"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 1}}},
)
assert client.fine_tuning.jobs.list(limit=10).data[0].id == job.id
while job.status not in ("succeeded", "failed", "cancelled"):
    time.sleep(2)
    job = client.fine_tuning.jobs.retrieve(job.id)
events = client.fine_tuning.jobs.list_events(fine_tuning_job_id=job.id, limit=10)
checkpoints = client.fine_tuning.jobs.checkpoints.list(job.id)
completion = client.chat.completions.create(
    model=job.fine_tuned_model,
    messages=[{"role": "system", "content": "Is this sentence of a film review positive or negative?"},
              {"role": "user", "content": "a gorgeous, witty, seductive movie ."}],
    max_completion_tokens=8,
    temperature=0,
)
print(json.dumps({
    "status": job.status,
    "error": job.error and job.error.message,
    "model": job.fine_tuned_model,
    "trained_tokens": job.trained_tokens,
    "events": [event.message for event in events.data],
    "checkpoints": [checkpoint.fine_tuned_model_checkpoint for checkpoint in checkpoints.data],
    "answer": completion.choices[0].message.content,
}))
"""


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    (tmp_path / "models.yaml").write_text(MODELS)
    command = [sys.executable, "-c", "from tunesmith.cli.main import main; main()", "serve", "--port", "0"]
    options = ["--data", str(tmp_path / "server"), "--models", str(tmp_path / "models.yaml")]
    with subprocess.Popen([*command, *options], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield re.search(r"http://\S+", process.stdout.readline())[0]  # type: ignore[index]
        process.terminate()


def rows(folder: Path) -> list[dict[str, object]]:
    """Sentences of film reviews, positive and negative in turn."""
    system = "Is this sentence of a film review positive or negative?"
    texts = [(folder / f"rt-polarity.{end}").read_text(encoding="latin-1").splitlines() for end in ("pos", "neg")]
    return [
        {
            "messages": [
                {"role": "system", "content": system},
                {"role": "user", "content": texts[n % 2][n // 2].strip()},
                {"role": "assistant", "content": ("positive", "negative")[n % 2]},
            ]
        }
        for n in range(ROWS)
    ]


def test_the_guide_as_it_is_written(shared_data: Path, tmp_path: Path, address: str) -> None:
    (tmp_path / "mydata.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in rows(shared_data / "sentence_polarity"))
    )
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", GUIDE],
        cwd=tmp_path,
        env=os.environ | {"OPENAI_BASE_URL": address, "OPENAI_API_KEY": "none"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    print(f"\n{time.monotonic() - started:.0f} s: {json.dumps(told, indent=1)}")
    assert told["status"] == "succeeded", told["error"]
    assert told["model"].startswith("ft:gpt-4.1-mini-2025-04-14:") and told["trained_tokens"] > 1000
    assert told["events"][0] == "The job has successfully completed"
    assert any(event.startswith("Step ") for event in told["events"])
    assert told["checkpoints"] and all(":ckpt-step-" in name for name in told["checkpoints"])
    assert told["answer"]
