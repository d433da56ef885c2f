"""What a recipe may say about quantizing a finished model. Nothing here imports torch."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from tunesmith.strict import Part

QuantizationKind = Literal["int8", "int8-static", "int8-weights", "int4-weights", "fp8", "onnx-int8"]
KINDS: dict[QuantizationKind, str] = {
    "int8": "weights and activations in 8 bits; each token's activations get a scale of their own while it runs (W8A8)",
    "int8-static": "the same with scales of activations that calibration data have fixed before",
    "int8-weights": "weights in 8 bits; activations keep about 14",
    "int4-weights": "linear layers in 4 bits, embeddings in 8; activations keep about 14",
    "fp8": "weights and activations in 8-bit floats, on GPUs that multiply them",
    "onnx-int8": "an encoder as an ONNX graph with 8-bit weights and activations, run by ONNX Runtime",
}
AwareKind = Literal["int8", "int8-weights", "int4-weights"]
"""Number formats that a model can be trained for."""
GROUP = 32
"""Weights of a row that share a scale in 4 bits."""


class Quantize(Part):
    """How a finished model is quantized, and what that may cost."""

    to: QuantizationKind = Field(description="The number format: see the page on quantization.")
    data: list[str] = Field(
        default=[], description="Calibration data, in the task's own format; default: the run's training rows."
    )
    rows: int = Field(default=64, ge=4, le=4096, description="Rows that calibrate, and that layers are probed with.")
    budget: float | None = Field(
        default=None,
        ge=0,
        description="How much of its primary metric the model may lose on the validation rows (of bits per byte: the "
        "relative rise). The most sensitive layers are left as they are until that is met. `null`: none is.",
    )
    keep: list[str] = Field(default=[], description="Layers to leave as they are, by name: `layer 0`, `embedding`.")


def spelled_out(value: Any) -> Any:
    """Accept ``int8`` for ``{to: int8}``."""
    return {"to": value} if isinstance(value, str) else value


QuantizeChoice = Annotated[Quantize, BeforeValidator(spelled_out)]
