"""Several adapters on one base in memory: switched, combined, merged into the weights and taken out again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from tunesmith.errors import NotFoundError, UsageError
from tunesmith.models.combining import DENSITY, add_weighted
from tunesmith.models.load import quiet
from tunesmith.models.precision import default_device
from tunesmith.models.saving import load_artefact, read_notes
from tunesmith.prediction.predicting import Prediction, predict
from tunesmith.recipe import Generation

Combination = Literal["linear", "ties", "dare_linear", "dare_ties"]
"""A weighted sum of what the adapters add to the weights; TIES (arXiv 2306.01708) and DARE (arXiv 2311.03099) thin them
out before."""


class AdapterSet:
    """The adapters of several runs on the base that they share; the first is active.

    Args:
        folders: Name -> folder of a tuned model (``run.model_folder``). The base is loaded once.

    Raises:
        UsageError: They do not share a base, or are of a kind that cannot be switched.
        NotFoundError: A folder holds no tuned model.
    """

    def __init__(self, folders: Mapping[str, Path]) -> None:
        if not folders:
            raise UsageError("no adapter is named", fix='tunesmith.load_adapters({"law": "runs/law"})')
        notes = {name: read_notes(folder) for name, folder in folders.items()}
        first = next(iter(notes))
        for name, note in notes.items():
            _refuse_unsuitable(name, note.adapter, note.form)
            if note.new_tokens:
                raise UsageError(
                    f"{name!r} has tokens of its own, which the other adapters' base does not know",
                    where=str(folders[name]),
                    fix="merge it into a model of its own: `tunesmith merge`",
                )
            if (note.base_identity, note.quantization, note.quantizer, note.dtype) != (
                notes[first].base_identity,
                notes[first].quantization,
                notes[first].quantizer,
                notes[first].dtype,
            ):
                raise UsageError(
                    f"the adapters {first!r} and {name!r} do not share a base: {notes[first].base} in "
                    f"{notes[first].dtype}, {note.base} in {note.dtype}",
                    where=str(folders[name]),
                    fix="take adapters that were tuned on the same model in the same precision",
                )
        self.notes = notes
        self.model, _ = load_artefact(folders[first], device=default_device())
        if self.model.virtual_tokens:
            raise UsageError(f"{first!r} is made of virtual tokens, which are not switched", fix="take LoRA adapters")
        self._names = {first: "default"}  # PEFT's names may hold no dot
        self.active: str | None = first
        for name, folder in folders.items():
            if name != first:
                self._add(name, folder)

    @property
    def names(self) -> list[str]:
        """The adapters that are there."""
        return list(self._names)

    @property
    def _network(self) -> Any:
        return self.model.wrapped

    def use(self, name: str | None) -> None:
        """Let the model answer with this adapter; ``None``: as the base does.

        Raises:
            NotFoundError: There is no such adapter.
        """
        if name is None:
            self._network.base_model.disable_adapter_layers()
        else:
            self._network.base_model.enable_adapter_layers()
            self._network.set_adapter(self._inner(name), inference_mode=True)
        self.active = name

    def combine(
        self, name: str, weights: Mapping[str, float], *, how: Combination = "linear", density: float = DENSITY
    ) -> None:
        """Make a new adapter from LoRA adapters, and use it.

        Args:
            name: Of the new one, whose rank is that of the others together.
            weights: Adapter -> its weight.
            how: The way to combine.
            density: For TIES and DARE: the share of each adapter's values that is kept.

        Raises:
            UsageError: The name is taken, or the adapters cannot be combined.
            NotFoundError: There is no such adapter.
        """
        if name in self._names:
            raise UsageError(f"there is an adapter {name!r} already", fix="choose another name")
        inner = f"a{len(self._names)}"
        parts = {self._inner(part): weight for part, weight in weights.items()}
        try:
            add_weighted(self._network, parts, inner, how, density)
        except (ValueError, AttributeError, NotImplementedError) as error:
            raise UsageError(f"these adapters cannot be combined: {error}", fix="take LoRA adapters") from error
        self._names[name] = inner
        self.notes[name] = self.notes[next(iter(weights))]
        self.use(name)

    def merge(self) -> None:
        """Add the active adapter into the base's weights: its answers cost what the base's do.

        Raises:
            UsageError: None is active, or the base is quantized.
        """
        if self.active is None or self.model.quantization != "none":
            reason = "no adapter is active" if self.active is None else "a quantized base cannot take an adapter in"
            raise UsageError(reason, fix="use one, or `tunesmith merge` to write a whole model")
        with quiet():
            self._network.merge_adapter([self._inner(self.active)])

    def unmerge(self) -> None:
        """Take the merged adapter out of the weights again (but for rounding)."""
        self._network.unmerge_adapter()

    def predict(self, rows: Sequence[Any], *, max_new_tokens: int = 128) -> list[Prediction]:
        """Answer texts or dictionaries with what is active."""
        notes = self.notes[self.active if self.active is not None else self.names[0]]
        return predict(self.model, notes, rows, Generation(max_new_tokens=max_new_tokens))

    def _add(self, name: str, folder: Path) -> None:
        from tunesmith.parameters.fused_lora import fuse

        inner = f"a{len(self._names)}"
        with quiet():
            self._network.load_adapter(folder, inner, autocast_adapter_dtype=False)
        self._names[name] = inner
        fuse(self._network)

    def _inner(self, name: str) -> str:
        if name not in self._names:
            raise NotFoundError(f"there is no adapter {name!r}", fix=f"adapters here: {', '.join(self._names)}")
        return self._names[name]


def _refuse_unsuitable(name: str, adapter: bool, form: str) -> None:
    if not adapter:
        raise UsageError(f"{name!r} is a whole model, no adapter", fix="tune with `parameters: {kind: lora}`")
    if form != "generate":
        raise UsageError(
            f"{name!r} answers with a head of its own, which is not switched with the adapter",
            fix="load each run by itself: `tunesmith.load`",
        )
