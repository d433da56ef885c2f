"""Weights out of an ONNX graph, under the names of the PyTorch module it was exported from.

Reads just enough of the protobuf wire format for that; ONNX itself is a heavy package to ask for because of one model.
The field numbers are those of ``onnx.proto3``, the wire format is protobuf's ("Encoding" in its guide).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from tunesmith.errors import ResourceError

GRAPH_OF_MODEL = 7
NODE_OF_GRAPH, INITIALIZER_OF_GRAPH = 1, 5
INPUT_OF_NODE, NAME_OF_NODE, OP_OF_NODE = 1, 3, 4
DIMS_OF_TENSOR, TYPE_OF_TENSOR, NAME_OF_TENSOR, DATA_OF_TENSOR = 1, 2, 8, 9
FLOAT = 1
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


def linear_and_named_weights(model: bytes) -> dict[str, Any]:
    """Map the initializers of an exported BERT to the state dict of ``BertModel``.

    The exporter keeps the names of embeddings, norms and biases (with a prefix), but calls the transposed weight of a
    linear layer ``onnx::MatMul_470``; the name of the product that uses it tells the layer.

    Args:
        model: A serialised ``ModelProto``.

    Returns:
        Name -> float32 array, in PyTorch's layout (out, in).

    Raises:
        ResourceError: The bytes are no such graph, or a weight cannot be named.
    """
    try:
        graph = memoryview(next(value for number, value in _fields(memoryview(model)) if number == GRAPH_OF_MODEL))
        arrays = dict(_tensor(value) for number, value in _fields(graph) if number == INITIALIZER_OF_GRAPH)
        products = [_node(value) for number, value in _fields(graph) if number == NODE_OF_GRAPH]
    except (IndexError, ValueError, StopIteration, TypeError) as error:
        raise ResourceError(f"not an ONNX model that can be read: {error}") from error
    users = {name: node for op, node, inputs in products if op == "MatMul" for name in inputs if name in arrays}
    weights = {}
    for name, array in arrays.items():
        if name in users:
            path = users[name].removesuffix("/MatMul").split("auto_model/")[-1].replace("/", ".")
            weights[f"{path}.weight"] = array.T.copy()
        elif "auto_model." in name:
            weights[name.split("auto_model.")[-1]] = array
        else:
            raise ResourceError(f"the ONNX graph holds a weight whose layer is unknown: {name}")
    return {re.sub(r"\.+", ".", name): array for name, array in weights.items()}


def _tensor(message: Any) -> tuple[str, Any]:
    """Name and float32 array of a ``TensorProto`` with raw data."""
    import numpy as np

    dims: list[int] = []
    name, kind, data = "", 0, b""
    for number, value in _fields(message):
        if number == DIMS_OF_TENSOR:
            dims += [value] if isinstance(value, int) else list(_varints(value))
        elif number == TYPE_OF_TENSOR:
            kind = value
        elif number == NAME_OF_TENSOR:
            name = bytes(value).decode("utf-8")
        elif number == DATA_OF_TENSOR:
            data = value
    if kind != FLOAT:
        raise ValueError(f"{name} is not float32")
    return name, np.frombuffer(data, dtype="<f4").reshape(dims)


def _node(message: Any) -> tuple[str, str, list[str]]:
    """Operator, name and inputs of a ``NodeProto``."""
    operator, name, inputs = "", "", []
    for number, value in _fields(message):
        if number == OP_OF_NODE:
            operator = bytes(value).decode("utf-8")
        elif number == NAME_OF_NODE:
            name = bytes(value).decode("utf-8")
        elif number == INPUT_OF_NODE:
            inputs.append(bytes(value).decode("utf-8"))
    return operator, name, inputs


def _fields(message: memoryview) -> Iterator[tuple[int, Any]]:
    """Field number and value (int, or a view of bytes) of each field of a message."""
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        number, wire = tag >> 3, tag & 7
        if wire == _VARINT:
            value, at = _varint(message, at)
            yield number, value
            continue
        if wire == _BYTES:
            length, at = _varint(message, at)
        elif wire in (_FIXED32, _FIXED64):
            length = 4 if wire == _FIXED32 else 8
        else:
            raise ValueError(f"unknown wire type {wire}")
        if at + length > len(message):
            raise ValueError("a field is longer than its message")
        yield number, message[at : at + length]
        at += length


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    """The number at a position, and the position after it."""
    value = shift = 0
    while True:
        byte = message[at]
        value |= (byte & 0x7F) << shift
        at += 1
        if byte < 0x80:
            return value, at
        shift += 7
        if shift > 63:
            raise ValueError("a number is longer than 64 bits")


def _varints(packed: memoryview) -> Iterator[int]:
    at = 0
    while at < len(packed):
        value, at = _varint(packed, at)
        yield value
