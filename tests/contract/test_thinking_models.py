"""A model that thinks before it answers: who is asked with an empty thought already written, and when."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

import tiny
import tunesmith
from tunesmith.models import inference

TEMPLATE = Path(__file__).resolve().parents[1] / "fixtures" / "chat_templates" / "qwen-3.jinja"
EMPTY = "<think>\n\n</think>\n\n"


@pytest.fixture
def thinker(tiny_decoder: Path, tmp_path: Path) -> Path:
    """The tiny decoder with the template of Qwen 3."""
    folder = tmp_path / "thinker"
    shutil.copytree(tiny_decoder, folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = TEMPLATE.read_text(encoding="utf-8")
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("thought", ["", EMPTY, "<think>\nwhich country\n</think>\n\n"], ids=["none", "empty", "some"])
def test_untuned_models_think_if_the_answers_do(
    thought: str, thinker: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, list[str]]] = []  # who, and its prompts
    generate = inference.generate

    def remember(model: Any, prompts: list[list[int]], **keys: Any) -> Any:
        who = "base" if not model.has_adapters else "tuned"
        asked.append((who, [model.tokenizer.decode(prompt) for prompt in prompts]))
        return generate(model, prompts, **keys)

    monkeypatch.setattr(inference, "generate", remember)
    rows = [row | {"completion": thought + row["completion"]} for row in tiny.question_rows(60)]
    run = tunesmith.tune(
        rows, task="text-generation", model=str(thinker), method="peft", run_dir=tmp_path / "run", precision="fp32",
        training={"max_steps": 2, "batch_size": 8},
        evaluate={"baselines": ["base", "few-shot"], "resamples": 100, "generation": {"max_new_tokens": 4}},
    )  # fmt: skip
    prompts = {who: [text for name, texts in asked if name == who for text in texts] for who in ("base", "tuned")}
    assert prompts["tuned"] and not any(text.endswith(EMPTY) for text in prompts["tuned"])  # as it is asked in service
    spared = [text.endswith(EMPTY) for text in prompts["base"]]
    assert len(spared) > len(prompts["tuned"]) and set(spared) == {thought in ("", EMPTY)}
    reference = run.path.joinpath("predictions.jsonl").read_text(encoding="utf-8")
    assert ("which country" in reference) is (thought not in ("", EMPTY)) and EMPTY.strip() not in reference
