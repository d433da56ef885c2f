"""The loss of a tuned model on held-out rows, in fp32, with nothing but transformers and PEFT.

Every contender's result goes through this one script, so that neither its precision nor its loss code counts.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from measuring import read_lines, read_spec, write_result
from peft import PeftModel
from torch.nn import functional
from transformers import AutoModelForCausalLM

TOKENS_A_PASS = 1024


def main() -> None:
    spec = read_spec()
    model = load(spec["model"], Path(spec["tuned"]) if spec["tuned"] else None)
    rows = sorted(read_lines(spec["held_out"]), key=lambda row: len(row["input_ids"]))
    nats, count = 0.0, 0
    with torch.inference_mode():
        for batch in batches(rows):
            width = max(len(row["input_ids"]) for row in batch)
            ids = torch.tensor([row["input_ids"] + [0] * (width - len(row["input_ids"])) for row in batch])
            labels = torch.tensor([row["labels"] + [-100] * (width - len(row["labels"])) for row in batch])
            mask = torch.tensor([[1] * len(row["labels"]) + [0] * (width - len(row["labels"])) for row in batch])
            logits = model(input_ids=ids, attention_mask=mask).logits[:, :-1]
            targets = labels[:, 1:]
            nats += float(functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum"))
            count += int((targets != -100).sum())
    write_result(spec, loss=nats / count, tokens=count, rows=len(rows))


def load(base: str, tuned: Path | None) -> Any:
    """The base model, a model saved whole, or the base with an adapter; in fp32."""
    adapter = tuned is not None and (tuned / "adapter_config.json").is_file()
    source = base if tuned is None or adapter else str(tuned)
    model: Any = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    if adapter:
        model = PeftModel.from_pretrained(model, str(tuned))
    return model.eval()


def batches(rows: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """Rows in their order, in rectangles of a bounded number of tokens."""
    found: list[list[dict[str, Any]]] = []
    for row in rows:
        if not found or (len(found[-1]) + 1) * len(row["input_ids"]) > TOKENS_A_PASS:
            found.append([])
        found[-1].append(row)
    return found


if __name__ == "__main__":
    main()
