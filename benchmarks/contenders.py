"""Who races whom, and in which settings. The first contender of a group is the one the others are compared with."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

ALLOCATOR = {
    "GLIBC_TUNABLES": (
        "glibc.malloc.hugetlb=1:glibc.malloc.mmap_threshold=8589934592:glibc.malloc.trim_threshold=17179869184"
    )
}
"""glibc keeps freed blocks: what a user who knows of it sets before Python starts.

Tunesmith does the like by itself where it trains.
"""


@dataclass(frozen=True)
class Group:
    """Contenders that do the same work.

    Attributes:
        name: As in `--only`.
        what: For the table's caption.
        workload: ``tokens`` (SmolLM2-135M) or ``texts`` (MiniLM-L6).
        settings: The same for all contenders.
        steps: Updates of a run; ``None`` for one pass over the data.
        counts: ``speed`` (seconds and memory), or ``loss``: what was learnt, which takes many more updates to tell and
            may be measured beside other work.
    """

    name: str
    what: str
    workload: str
    settings: dict[str, Any]
    steps: int | None = None
    counts: str = "speed"


@dataclass(frozen=True)
class Contender:
    """One way to do the work of a group, as a process of its own."""

    group: str
    name: str
    what: str
    script: str
    options: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def is_peer(self) -> bool:
        """Whether it runs in the peers' environment."""
        return self.script.startswith("peers/")

    @property
    def path(self) -> str:
        """`group/name`, as in `--only`."""
        return f"{self.group}/{self.name}"


_GENERATE = {"batch_size": 8, "schedule": "linear", "weight_decay": 0.0, "max_grad_norm": 1.0}
_LORA = _GENERATE | {"parameters": "lora", "rank": 16, "alpha": 32, "learning_rate": 2e-4}
_FULL = _GENERATE | {"parameters": "full", "learning_rate": 2e-5}
_OF_FOUR = {"batch_size": 4}  # for half the hours

GROUPS = {
    group.name: group
    for group in (
        Group(
            "lora",
            "SmolLM2-135M, LoRA rank 16, alpha 32, all linear layers; batches of 8, loss on the answers",
            "tokens",
            _LORA,
            steps=20,
        ),
        Group(
            "full",
            "SmolLM2-135M, all parameters; batches of 8, loss on the answers",
            "tokens",
            _FULL,
            steps=20,
        ),
        Group("lora-loss", "The same LoRA, 200 updates of 4", "tokens", _LORA | _OF_FOUR, steps=200, counts="loss"),
        Group("full-loss", "All parameters, 200 updates of 4", "tokens", _FULL | _OF_FOUR, steps=200, counts="loss"),
        Group(
            "classify",
            "MiniLM-L6, all parameters, one epoch of 4,000 texts, batches of 8; then 1,000 texts classified",
            "texts",
            {"batch_size": 8, "learning_rate": 5e-5, "max_length": 256},
        ),
        Group(
            "features",
            "MiniLM-L6 frozen: 5,000 texts embedded, logistic regression on 4,000 of them",
            "texts",
            {"max_length": 256},
        ),
    )
}

_TRL = "peers/trl_sft.py"
_HF = "peers/hf_classify.py"
_OURS = "ours/generate.py"
_CLASSIFY = "ours/classify.py"
_HALF = {"dtype": "bfloat16", "gradient_checkpointing": False}
_WIDE = {"dtype": "float32", "gradient_checkpointing": False}

CONTENDERS = [
    Contender("lora", "trl-default", "TRL SFTTrainer, its defaults", _TRL),
    Contender(
        "lora",
        "trl-tuned",
        "bf16 weights, no gradient checkpointing, allocator tuned",
        _TRL,
        _HALF,
        ALLOCATOR,
    ),
    Contender(
        "lora",
        "trl-grouped",
        "the same, batches grouped by length",
        _TRL,
        _HALF | {"train_sampling_strategy": "group_by_length"},
        ALLOCATOR,
    ),
    Contender("lora", "tunesmith", "compile off", _OURS, {"compile": "off"}),
    Contender("lora", "tunesmith-compiled", "compile on", _OURS, {"compile": "on"}),
    Contender("full", "trl-default", "TRL SFTTrainer, its defaults", _TRL),
    Contender(
        "full",
        "trl-tuned",
        "fp32 weights under bf16 autocast, no gradient checkpointing, allocator tuned",
        _TRL,
        _WIDE,
        ALLOCATOR,
    ),
    Contender("full", "tunesmith", "bf16 weights with fp32 masters, compile off", _OURS, {"compile": "off"}),
    Contender("full", "tunesmith-compiled", "the same, compile on", _OURS, {"compile": "on"}),
    Contender("lora-loss", "trl-tuned", "bf16 weights", _TRL, _HALF, ALLOCATOR),
    Contender("lora-loss", "tunesmith", "bf16 weights, adapters with fp32 masters", _OURS, {"compile": "off"}),
    Contender("full-loss", "trl-tuned", "fp32 weights under bf16 autocast", _TRL, _WIDE, ALLOCATOR),
    Contender("full-loss", "tunesmith", "bf16 weights with fp32 masters", _OURS, {"compile": "off"}),
    Contender("classify", "hf-trainer", "HF Trainer, its defaults", _HF),
    Contender("classify", "hf-trainer-tuned", "bf16 autocast, allocator tuned", _HF, {"bf16": True}, ALLOCATOR),
    Contender("classify", "tunesmith", "the same recipe, dropout on, compile off", _CLASSIFY, {"compile": "off"}),
    Contender("classify", "tunesmith-compiled", "dropout on, compile on", _CLASSIFY, {"compile": "on"}),
    Contender(
        "classify", "tunesmith-no-dropout", "dropout 0, compile off", _CLASSIFY, {"compile": "off", "dropout": 0.0}
    ),
    Contender(
        "classify",
        "tunesmith-no-dropout-compiled",
        "dropout 0, compile on",
        _CLASSIFY,
        {"compile": "on", "dropout": 0.0},
    ),
    Contender(
        "features", "transformers", "plain loop, fp32, batches of 8", "peers/features.py", {"engine": "transformers"}
    ),
    Contender(
        "features",
        "sentence-transformers",
        "`encode`, its defaults: fp32, sorted by length, batches of 32",
        "peers/features.py",
        {"engine": "sentence-transformers"},
    ),
    Contender("features", "tunesmith", "precision auto", "ours/features.py"),
]
