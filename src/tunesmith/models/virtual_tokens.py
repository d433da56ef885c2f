"""Virtual tokens (prompt tuning and its kin) as what they are to the layers: keys and values before every text.

PEFT puts the virtual tokens of prompt tuning into every row and computes them again for each. In a causal model they
see only each other, so here they go through the network once and every row sees the same keys and values: the same
numbers, and nothing that reads hidden states has to know of them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


def count(network: nn.Module) -> int:
    """How many virtual tokens stand before every text; 0 for all but PEFT's prompt-learning wrappers.

    It is 0 within PEFT's ``disable_adapter()`` too, which lets the wrapper pass everything on to the base.
    """
    wrapper: Any = network
    config = getattr(network, "active_peft_config", None)
    if config is None or not config.is_prompt_learning or wrapper.forward == wrapper.base_model.forward:
        return 0
    return int(config.num_virtual_tokens)


def keys_and_values(network: nn.Module) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Keys and values (1, K, P, h) of the P virtual tokens in every layer, differentiable in what trains."""
    wrapper: Any = network
    if wrapper.active_peft_config.peft_type == "PREFIX_TUNING":
        cache = wrapper.get_prompt(batch_size=1)
    else:
        from transformers import DynamicCache

        prompts = wrapper.get_prompt(batch_size=1).to(wrapper.word_embeddings.weight.dtype)
        cache = DynamicCache()
        wrapper.get_base_model().base_model(inputs_embeds=prompts, past_key_values=cache, use_cache=True)
    return [(layer.keys, layer.values) for layer in cache.layers]


def cache_of(layers: list[tuple[torch.Tensor, torch.Tensor]], rows: int) -> Any:
    """A fresh cache that holds keys and values (1, K, P, h) for a number of rows."""
    from transformers import DynamicCache

    cache = DynamicCache()
    for number, (keys, values) in enumerate(layers):
        cache.update(keys.expand(rows, -1, -1, -1), values.expand(rows, -1, -1, -1), number)
    return cache
