"""The base that an adapter stands on: how it is written down, and how it is found again, here or elsewhere.

Written down are its folder, and the name by which the catalog or the hub gives the same model on any machine. The
folder is looked at first, so that nothing is fetched where the base is at hand.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from tunesmith import catalog
from tunesmith.errors import ResourceError
from tunesmith.events import Listener, nobody

if TYPE_CHECKING:
    from tunesmith.models.saving import ArtefactNotes

ADAPTER_CONFIG = "adapter_config.json"
KEYS = ("base", "base_folder", "base_model_name_or_path", "tokenizer_name_or_path")
"""What names the base in ``tunesmith.json`` and in PEFT's configuration."""


def find_base(notes: ArtefactNotes, folder: Path, on_event: Listener = nobody, *, fetch: bool = True) -> Path:
    """The folder of an adapter's base model, fetched if it is gone and goes by a name.

    Args:
        notes: Of the adapter.
        folder: Where the adapter is, for errors.
        on_event: Hears about progress.
        fetch: Whether a base that is not on this machine may be fetched.

    Raises:
        ResourceError: The base is not where it was and goes by no name, or is not fetched, or cannot be.
    """
    recorded = Path(notes.base_folder)
    if recorded.is_dir() and (recorded.is_absolute() or notes.base_name is None):
        return recorded  # a name of its own is no path: some other folder may be called so
    if notes.base_name is not None:
        found = catalog.published_model(notes.base_name, notes.base_revision, on_event, fetch=fetch)
        if found is not None:
            return found
        fetch_it = "hf download" if "/" in notes.base_name else "tunesmith catalog get"
        raise ResourceError(
            f"the base model of this adapter, {notes.base_name}, is not on this machine",
            where=str(folder),
            fix=f"fetch it first: `{fetch_it} {notes.base_name}`",
        )
    raise ResourceError(
        f"the base model of this adapter, {notes.base}, is no longer at {recorded}",
        where=str(folder),
        fix=f"put the model back there, or write where it is as `base_folder` into {folder / 'tunesmith.json'}",
    )


def name_hub_base(folder: Path, base: Path) -> None:
    """Let an adapter that PEFT has saved to ``folder`` name a base of the hub by its id, as PEFT finds it anywhere."""
    name, revision = catalog.reference_of(base)
    path = folder / ADAPTER_CONFIG
    if name is None or revision is None or not path.is_file():
        return
    config = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(renamed(config, name) | {"revision": revision}, indent=2), encoding="utf-8")


def renamed(content: dict[str, object], name: str) -> dict[str, object]:
    """Notes or a configuration with another name for the base, wherever they name it."""
    return content | {key: name for key in KEYS if content.get(key)}
