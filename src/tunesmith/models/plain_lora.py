"""Adapters that began with a part of the base in them (PiSSA, OLoRA), saved as what any program loads.

Their base lost what the adapter began with: W = W' + s B0 A0. So W' + s B A = W + s (B A - B0 A0), which is plain LoRA
of twice the rank on the base as it was (Meng et al. 2024, arXiv 2404.02948).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

ADAPTER, CONFIG = "adapter_model.safetensors", "adapter_config.json"


def first_weights(wrapped: nn.Module) -> dict[str, torch.Tensor]:
    """Copies of a fresh adapter's matrices, by the names under which PEFT saves them."""
    return {
        name.replace(".default.", "."): parameter.detach().clone()
        for name, parameter in wrapped.named_parameters()
        if "lora_A" in name or "lora_B" in name
    }


def save_on_the_first_base(folder: Path, first: Mapping[str, torch.Tensor]) -> None:
    """Rewrite an adapter that PEFT has saved to ``folder``, so that it belongs to the base as it was."""
    tensors = load_file(folder / ADAPTER)
    for name, began in first.items():
        began = began.to(tensors[name].device)
        joined = [tensors[name], began] if "lora_A" in name else [tensors[name], -began]
        tensors[name] = torch.cat(joined, dim=0 if "lora_A" in name else 1).contiguous()
    save_file(tensors, folder / ADAPTER, metadata={"format": "pt"})
    path = folder / CONFIG
    config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    factor = math.sqrt(2) if config["use_rslora"] else 2  # the scale, alpha over (the root of) the rank, stays
    config |= {
        "r": 2 * config["r"],
        "lora_alpha": factor * config["lora_alpha"],
        "rank_pattern": {name: 2 * rank for name, rank in config["rank_pattern"].items()},
        "alpha_pattern": {name: factor * alpha for name, alpha in config["alpha_pattern"].items()},
        "init_lora_weights": True,
    }
    path.write_text(json.dumps(config, indent=2, sort_keys=True), encoding="utf-8")
