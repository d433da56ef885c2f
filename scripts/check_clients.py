"""Tune through other projects' clients of OpenAI's API, against a running server.

Run in an environment of its own: pip install litellm dspy llama-index-finetuning "mistralai<2" wandb pandas, then
OPENAI_BASE_URL=http://127.0.0.1:8000/v1 OPENAI_API_KEY=none python scripts/check_clients.py MODEL

MODEL is a name that the server knows. One line of JSON is printed for each client that is installed; the exit code is 1
if one of them failed.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ENDED = ("succeeded", "failed", "cancelled")


def rows() -> list[dict[str, Any]]:
    """Twelve conversations."""
    return [
        {"messages": [{"role": "user", "content": f"what is {n} + 1"}, {"role": "assistant", "content": str(n + 1)}]}
        for n in range(12)
    ]


def with_litellm(model: str, file: Path) -> str:
    """LiteLLM's own calls for files and jobs."""
    import litellm

    base = {"custom_llm_provider": "openai", "api_base": os.environ["OPENAI_BASE_URL"]}
    sent = litellm.create_file(file=file.open("rb"), purpose="fine-tune", **base)
    job = litellm.create_fine_tuning_job(model=model, training_file=sent.id, **base)
    while job.status not in ENDED:
        time.sleep(0.5)
        job = litellm.retrieve_fine_tuning_job(fine_tuning_job_id=job.id, **base)
    return f"{job.status}: {job.fine_tuned_model}"


def with_dspy(model: str, file: Path) -> str:
    """DSPy's provider: it sends the older `hyperparameters`, and reads the newest event."""
    from dspy.clients.openai import OpenAIProvider, TrainingJobOpenAI
    from dspy.clients.utils_finetune import TrainDataFormat

    job = TrainingJobOpenAI()
    arguments = {"train_data_format": TrainDataFormat.CHAT, "train_kwargs": {"n_epochs": 1}}
    return f"succeeded: {OpenAIProvider.finetune(job, model, rows(), **arguments)}"


def with_llama_index(model: str, file: Path) -> str:
    """llama-index-finetuning's engine."""
    from llama_index.finetuning import OpenAIFinetuneEngine

    engine = OpenAIFinetuneEngine(model, str(file), validate_json=False)
    engine.finetune()
    while (job := engine.get_current_job()).status not in ENDED:
        time.sleep(0.5)
    return f"{job.status}: {job.fine_tuned_model}"


def with_wandb(model: str, file: Path) -> str:
    """Wandb's sync of the newest job, offline: it reads the results file; artefacts need wandb's own server."""
    os.environ["WANDB_MODE"] = "offline"
    os.environ.setdefault("WANDB_DIR", tempfile.mkdtemp())
    from wandb.integration.openai.fine_tuning import WandbLogger

    for name in ("_ensure_logged_in", "_log_artifacts"):
        setattr(WandbLogger, name, classmethod(lambda cls, *values: True))
    return str(WandbLogger.sync(num_fine_tunes=1, project="check", overwrite=True))


CLIENTS: dict[str, tuple[str, Callable[[str, Path], str]]] = {
    "litellm": ("litellm", with_litellm),
    "dspy": ("dspy", with_dspy),
    "llama-index-finetuning": ("llama_index", with_llama_index),
    "wandb": ("wandb", with_wandb),
}


def main() -> int:
    """Run every client that is installed."""
    file = Path(tempfile.mkdtemp()) / "train.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows()), encoding="utf-8")
    failed = 0
    for name, (module, check) in CLIENTS.items():
        if importlib.util.find_spec(module) is None:
            print(json.dumps({"client": name, "result": "not installed"}), flush=True)
            continue
        try:
            result = check(sys.argv[1], file)
        except Exception as error:
            result = f"{type(error).__name__}: {error}"
        good = result.startswith("succeeded: ft:") or result.endswith("successfully")
        failed += not good
        print(json.dumps({"client": name, "good": good, "result": result}), flush=True)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
