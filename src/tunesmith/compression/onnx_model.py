"""Encoders and small decoders as ONNX graphs, encoders also in 8 bits, and models that ONNX Runtime computes."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import torch
from torch import nn

from tunesmith import words
from tunesmith.errors import MissingExtraError, ResourceError, UsageError
from tunesmith.models.heads import SentenceClassifier
from tunesmith.models.load import load_tokenizer, quiet
from tunesmith.models.model import Model
from tunesmith.models.saving import ONNX_FILE, ArtefactNotes, notes_of, write_notes

INPUTS = ("input_ids", "attention_mask")
LARGEST = 2**31
"""Bytes of a graph in one file: what protobuf can write."""


def require_onnx() -> None:
    """Raise where the packages are missing that write and run ONNX graphs.

    Raises:
        MissingExtraError: They are the extra ``onnx``.
    """
    for package in ("onnx", "onnxruntime", "onnxscript"):
        if importlib.util.find_spec(package) is None:
            raise MissingExtraError(package, "onnx", "an ONNX graph")


class _Logits(nn.Module):
    """What the graph computes: the scores of the head, (B, C) or (B, S, C), or of the vocabulary, (B, S, V)."""

    def __init__(self, network: nn.Module, writes: bool) -> None:
        super().__init__()
        self.network = network
        self.options = {"use_cache": False} if writes else {}

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Scores in fp32."""
        found = self.network(input_ids=input_ids, attention_mask=attention_mask, **self.options)
        return (found if isinstance(found, torch.Tensor) else found.logits).float()


def write_graph(model: Model, path: Path) -> None:
    """Write a model with its head as an ONNX graph in fp32: ``input_ids``, ``attention_mask`` -> ``logits``.

    Both inputs are (batch, sequence) int64 of any size. A decoder's graph has no cache of keys and values: it reads the
    whole text for each token.

    Raises:
        UsageError: The weights are too large for one file.
        ResourceError: The exporter of torch cannot express the network.
    """
    if (size := sum(p.numel() * 4 for p in model.network.parameters())) >= LARGEST:
        raise UsageError(
            f"the graph would take {words.size(size)}, and ONNX files hold 2 GB",
            where="--to",
            fix="use `--to gguf` or `--to safetensors`",
        )
    positions = getattr(cast(Any, model.transformer()).config, "max_position_embeddings", None)
    shape = {0: torch.export.Dim("batch"), 1: torch.export.Dim("sequence", max=positions)}
    # Two tensors: one that is given twice becomes one input.
    example = tuple(torch.ones(2, 8, dtype=torch.long, device=model.device) for _ in INPUTS)
    try:
        with _attending_plainly(model), _hushed(), torch.no_grad():
            # In two steps: alone, torch.onnx.export falls back to ways of tracing that hide what is wrong.
            program = torch.export.export(
                _Logits(model.network, writes=model.form == "generate").eval(),
                example,
                dynamic_shapes=dict.fromkeys(INPUTS, shape),
            )
            torch.onnx.export(
                program, (), str(path), input_names=list(INPUTS), output_names=["logits"], external_data=False,
                dynamo=True, verbose=False,
            )  # fmt: skip
    except (RuntimeError, ValueError, TypeError, NotImplementedError) as error:
        reason = str(error).strip().splitlines()[0][:300]
        raise ResourceError(f"torch cannot export this network to ONNX: {reason}", where=str(path)) from error


def quantize_graph(source: Path, target: Path) -> None:
    """Weights in 8 bits with a scale for each output, activations in 8 bits as they come.

    Weights take 7 of their 8 bits: without VNNI, sums of pairs of products saturate otherwise.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with _hushed():
        quantize_dynamic(
            source, target, weight_type=QuantType.QInt8, per_channel=True, reduce_range=True,
            extra_options={"MatMulConstBOnly": True},
        )  # fmt: skip


def save_onnx_int8(model: Model, folder: Path, *, task: str, system_prompt: str | None) -> None:
    """Write a model that :func:`load_onnx` reads.

    Raises:
        ResourceError: The disk is full, or the network cannot be exported.
    """
    notes = notes_of(model, task=task, system_prompt=system_prompt)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            whole = Path(scratch) / "whole.onnx"
            write_graph(model, whole)
            quantize_graph(whole, folder / ONNX_FILE)
        model.tokenizer.save_pretrained(folder)
        write_notes(folder, notes)
    except OSError as error:
        raise ResourceError(
            f"cannot write the model: {error}", where=str(folder), fix="free some disk space"
        ) from error


class OnnxNetwork(nn.Module):
    """A network that ONNX Runtime computes, in the place of a transformers model with a head. It cannot be trained."""

    base_model_prefix = ""

    def __init__(self, path: Path) -> None:
        super().__init__()
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3
        try:
            self._session: Any = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # its own classes derive from Exception alone
            raise ResourceError(f"ONNX Runtime cannot read the graph: {error}", where=str(path)) from error
        self.file_bytes = path.stat().st_size
        self.place = nn.Parameter(torch.zeros(1), requires_grad=False)  # tells others device and dtype

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Any:
        """An object with ``logits``."""
        given = zip(INPUTS, (input_ids, attention_mask), strict=True)
        [logits] = self._session.run(["logits"], {name: tensor.long().cpu().numpy() for name, tensor in given})
        return SimpleNamespace(logits=torch.from_numpy(logits))


def load_onnx(folder: Path, notes: ArtefactNotes) -> Model:
    """Read what :func:`save_onnx_int8` wrote.

    Raises:
        MissingExtraError: ONNX Runtime is not installed.
        ResourceError: The graph is damaged.
    """
    if importlib.util.find_spec("onnxruntime") is None:
        raise MissingExtraError("onnxruntime", "onnx", "this model")
    return Model(
        network=OnnxNetwork(folder / ONNX_FILE).eval(),
        tokenizer=load_tokenizer(folder),
        form=notes.form,
        name=notes.base,
        folder=folder,
        max_length=notes.max_length,
        labels=notes.labels,
        thresholds=notes.thresholds,
    )


@contextlib.contextmanager
def _attending_plainly(model: Model) -> Iterator[None]:
    """Attention as plain products, which the exporter understands."""
    transformer: Any = model.network.encoder if isinstance(model.network, SentenceClassifier) else model.network
    before = transformer.config._attn_implementation
    transformer.set_attn_implementation("eager")
    try:
        yield
    finally:
        transformer.set_attn_implementation(before)


@contextlib.contextmanager
def _hushed() -> Iterator[None]:
    """The exporter and the quantizer talk to the terminal, of what concerns their makers."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with quiet(), warnings.catch_warnings(), contextlib.redirect_stdout(None):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
