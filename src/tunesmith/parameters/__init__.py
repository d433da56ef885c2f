"""Step 4: which parameters train. A row of :data:`~tunesmith.parameters.kinds.KINDS` a kind.

The row names a module of this folder with a function ``apply(model, settings)``, which changes the model in place and
sets ``requires_grad``. The registry is lazy: naming a kind imports nothing heavy.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from tunesmith.parameters.kinds import KINDS

if TYPE_CHECKING:
    from tunesmith.models.model import Model
    from tunesmith.parameters.settings import Parameters


def apply(model: Model, settings: Parameters) -> None:
    """Add what tokens are new, and choose what trains: afterwards exactly the parameters with ``requires_grad``."""
    tokens = getattr(settings, "new_tokens", [])
    if tokens:
        from tunesmith.models.new_tokens import add_tokens

        add_tokens(model, tokens)
    importlib.import_module(f"tunesmith.parameters.{KINDS[settings.kind].module}").apply(model, settings)


def learning_rate(kind: str, form: str) -> float:
    """The default peak learning rate of a kind, for a model that answers in this form: by a head, or in writing."""
    rates = KINDS[kind].rates
    return {"generate": rates.decoder, "seq2seq": rates.encoder_decoder}.get(form, rates.with_head)
