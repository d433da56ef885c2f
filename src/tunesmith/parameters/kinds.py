"""The table of kinds: what trains, when that is right, and at which rate, with sources. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from tunesmith.parameters.settings import SHORT_FORMS


class Rates(NamedTuple):
    """Default peak learning rates, by how the model answers."""

    with_head: float
    decoder: float
    encoder_decoder: float


@dataclass(frozen=True)
class Kind:
    """One value of ``parameters.kind``.

    Attributes:
        module: The module of :mod:`tunesmith.parameters` that applies it.
        what: What trains.
        when: When to use it.
        source: The paper.
        rates: Default peak learning rates.
        rates_from: Where these rates come from.
    """

    module: str
    what: str
    when: str
    source: str
    rates: Rates
    rates_from: str


_LORA_RATES = Rates(5e-4, 2e-4, 5e-4), "LoRA's"
_VECTORS = Rates(1e-2, 5e-3, 1e-2), "ours: few numbers of small effect each take large steps"
_NO_RATES = Rates(0.0, 0.0, 0.0)

KINDS: dict[str, Kind] = {
    "full": Kind(
        "full",
        "every parameter",
        "the model is small or the data are many, and memory allows it (about 16 bytes a parameter)",
        "",
        Rates(5e-5, 2e-5, 1e-4),
        "BERT (arXiv 1810.04805, A.3: 2e-5 to 5e-5); Alpaca and Zephyr; the documentation of transformers on T5 "
        "(1e-4 to 3e-4; BART's authors took 3e-5)",
    ),
    "head": Kind(
        "head",
        "the task's head alone",
        "data are few, or the base already knows the domain; the cheapest there is",
        "",
        Rates(1e-3, 1e-3, 1e-3),
        "a linear layer on fixed features is a convex problem and takes a large step (Adam's own default)",
    ),
    "layers": Kind(
        "layers",
        "chosen layers, names, biases (BitFit) or norms, and the head",
        "between head and full: quick, nothing added, and it cannot forget much",
        "Howard & Ruder 2018, arXiv 1801.06146; BitFit: arXiv 2106.10199",
        Rates(1e-4, 4e-5, 2e-4),
        "twice the rate of full training: fewer layers move",
    ),
    "lora": Kind(
        "lora",
        "low-rank matrices beside linear layers",
        "the first choice: near the quality of full training, megabytes a task, merges without a trace",
        "arXiv 2106.09685",
        Rates(5e-4, 2e-4, 5e-4),
        "LoRA's own GLUE runs (table 9); QLoRA (arXiv 2305.14314, table 9); ours: five times that of full training",
    ),
    "ia3": Kind(
        "adapter",
        "factors of keys, values and feed-forward activations",
        "very few examples; kilobytes a task",
        "arXiv 2205.05638",
        Rates(5e-3, 3e-3, 3e-3),
        "the paper's 3e-3, with an encoder-decoder",
    ),
    "vera": Kind(
        "adapter",
        "two vectors a layer around shared random matrices",
        "thousands of adapters must be kept: a tenth of LoRA's size",
        "arXiv 2310.11454",
        *_VECTORS,
    ),
    "randlora": Kind(
        "adapter",
        "weights of sums of random low-rank matrices",
        "LoRA's rank is too low and memory for full training is missing",
        "arXiv 2502.00987",
        *_LORA_RATES,
    ),
    "loha": Kind(
        "adapter",
        "Hadamard products of low-rank matrices",
        "a higher rank for as many parameters; common for images",
        "arXiv 2108.06098",
        *_LORA_RATES,
    ),
    "lokr": Kind(
        "adapter",
        "Kronecker products of small matrices",
        "as LoHa, smaller still",
        "arXiv 2309.14859",
        *_LORA_RATES,
    ),
    "oft": Kind(
        "adapter",
        "rotations of blocks of the inputs",
        "what the base knows must be kept: angles between its neurons do not change",
        "arXiv 2306.07280, 2506.19847",
        *_LORA_RATES,
    ),
    "hra": Kind(
        "adapter",
        "chains of Householder reflections",
        "between OFT and LoRA",
        "arXiv 2405.17484",
        *_LORA_RATES,
    ),
    "miss": Kind(
        "adapter",
        "one small matrix a layer, shared by shards of the weight",
        "LoRA is too slow or too large",
        "arXiv 2409.15371",
        *_LORA_RATES,
    ),
    "vblora": Kind(
        "adapter",
        "mixtures from a bank of vectors that all layers share",
        "the smallest files of all that still write text well",
        "arXiv 2405.15179",
        *_VECTORS,
    ),
    "fourierft": Kind(
        "adapter",
        "a few Fourier coefficients of each weight's update",
        "as VeRA",
        "arXiv 2405.03003",
        *_VECTORS,
    ),
    "road": Kind(
        "adapter",
        "rotations of pairs of outputs",
        "many adapters served side by side: its cost there is the least",
        "arXiv 2409.00119",
        *_VECTORS,
    ),
    "delora": Kind(
        "adapter",
        "low-rank directions and their length apart",
        "training is unstable at LoRA's rates",
        "arXiv 2503.18225",
        *_LORA_RATES,
    ),
    "prompt-tuning": Kind(
        "prompt",
        "the embeddings of virtual tokens before every text",
        "large models that write text; one model serves many tasks in one batch",
        "arXiv 2104.08691",
        Rates(1e-2, 1e-2, 1e-2),
        "ours: the paper's 0.3 is Adafactor's, relative to the size of the weights",
    ),
    "p-tuning": Kind(
        "prompt",
        "the same, behind a small network that makes them train more steadily",
        "as prompt tuning, where that does not get going",
        "arXiv 2103.10385",
        Rates(1e-3, 1e-3, 1e-3),
        "ours: the network's weights are those of a usual layer",
    ),
    "prefix-tuning": Kind(
        "prompt",
        "keys and values of virtual tokens in every layer",
        "models that write text; stronger than prompt tuning, larger",
        "arXiv 2101.00190",
        Rates(1e-2, 1e-2, 1e-2),
        "ours",
    ),
    "in-context": Kind(
        "",
        "nothing: training rows stand in the prompt as examples",
        "a handful of labels and a model that follows instructions; costs time with every answer",
        "arXiv 2005.14165; calibration: arXiv 2102.09690",
        _NO_RATES,
        "",
    ),
    "none": Kind("", "nothing: a classifier is fitted on frozen features", "a baseline in seconds", "", _NO_RATES, ""),
}


def rows() -> list[dict[str, str]]:
    """Rows of ``tunesmith methods --parameters``: every value of ``parameters.kind``, short forms last."""
    found = [{"kind": name, "what": row.what, "when": row.when, "source": row.source} for name, row in KINDS.items()]
    for name, meaning in SHORT_FORMS.items():
        settings = ", ".join(f"{key}: {str(value).lower()}" for key, value in meaning.items())
        found.append({"kind": name, "what": f"short for {{{settings}}}", "when": "", "source": ""})
    return found
