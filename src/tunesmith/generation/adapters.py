"""Several LoRA adapters side by side on one base model in memory; each row of a batch uses its own."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch

from tunesmith.errors import ResourceError, UsageError
from tunesmith.models.load import quiet
from tunesmith.models.model import Model
from tunesmith.parameters.fused_lora import adapters_of_rows, fuse

MORE_THAN_LORA = (
    "use_dora",
    "modules_to_save",
    "target_parameters",
    "trainable_token_indices",
    "layer_replication",
    "alora_invocation_tokens",
    "use_qalora",
    "use_bdlora",
    "arrow_config",
)
"""Keys of an adapter's configuration that change more than a product added to linear layers."""


def is_plain_lora(folder: Path) -> bool:
    """Whether the adapter in a folder can share a base with others: it adds low-rank products to linear layers only."""
    try:
        config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ResourceError(f"cannot read the adapter's configuration: {error}", where=str(folder)) from error
    more = [key for key in MORE_THAN_LORA if config.get(key)]
    return config.get("peft_type") == "LORA" and config.get("bias", "none") == "none" and not more


class Adapters:
    """The adapters on one model. Not thread-safe: for the thread that runs the model.

    Args:
        model: A base model; its network is wrapped by PEFT with the first adapter.
    """

    def __init__(self, model: Model) -> None:
        self.model = model
        self._names: dict[str, str] = {}  # PEFT's names may hold no dot
        self._numbers = itertools.count()

    def __contains__(self, name: str) -> bool:
        return name in self._names

    def load(self, name: str, folder: Path) -> None:
        """Load an adapter.

        Raises:
            UsageError: It is more than plain LoRA on linear layers, or does not fit the model.
            ResourceError: Files are missing or damaged.
        """
        from peft import PeftModel

        inner = f"a{next(self._numbers)}"
        network: Any = self.model.network
        try:
            with quiet():
                if hasattr(network, "peft_config"):
                    network.load_adapter(folder, inner, autocast_adapter_dtype=False)
                else:
                    network = PeftModel.from_pretrained(network, folder, inner, autocast_adapter_dtype=False)
        except (OSError, ValueError, RuntimeError) as error:
            raise ResourceError(f"cannot load the adapter: {error}", where=str(folder)) from error
        self.model.network = network.eval()
        self._names[name] = inner
        fuse(network)
        self._refuse_other_layers(name, inner, folder)

    def drop(self, name: str) -> None:
        """Take an adapter out of memory."""
        network: Any = self.model.network
        inner = self._names.pop(name)
        if self._names:  # PEFT wants one of those that are there to be the active one
            network.set_adapter(next(iter(self._names.values())))
            network.delete_adapter(inner)
        else:
            self.model.network = network.unload()

    def use(self, names: Sequence[str | None]) -> AbstractContextManager[None]:
        """Within, each row of a batch uses the adapter that is named for it."""
        wanted = dict.fromkeys(name for name in names if name is not None)
        if len(wanted) == 1 and None not in names:
            return self.use_for_all(names[0])
        rows = {
            self._names[name]: torch.tensor([n for n, own in enumerate(names) if own == name], device=self.model.device)
            for name in wanted
        }
        return adapters_of_rows(rows)

    def use_for_all(self, name: str | None) -> AbstractContextManager[None]:
        """Within, every row uses this adapter (``None``: the base)."""
        return adapters_of_rows({} if name is None else {self._names[name]: slice(None)})

    def _refuse_other_layers(self, name: str, inner: str, folder: Path) -> None:
        from peft.tuners.lora.layer import Linear, LoraLayer

        layer: Any
        for layer in self.model.network.modules():
            if isinstance(layer, LoraLayer) and inner in (*layer.lora_A, *layer.lora_embedding_A):
                if isinstance(layer, Linear) and inner not in layer.lora_variant:
                    continue
                self.drop(name)
                raise UsageError(
                    f"the adapter changes a {type(layer).__name__}, and can share its base with others only if it is "
                    "plain LoRA on linear layers",
                    where=str(folder),
                )
