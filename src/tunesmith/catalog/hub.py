"""Models and data sets of the hub; what its cache holds needs no network, and a missing network is said at once."""

from __future__ import annotations

import itertools
import json
import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

from tunesmith.errors import NotFoundError, ResourceError, UsageError
from tunesmith.events import Listener, Progress, nobody

PATTERNS = ["*.safetensors", "*.json", "*.txt", "*.model", "tokenizer*", "*.jinja"]
"""What is fetched of a model: no pickles, no code."""
PROBE_SECONDS = 2.0


def is_id(name: str) -> bool:
    """Whether a name has the form of a hub id, ``owner/name``."""
    return re.fullmatch(r"[A-Za-z0-9][\w.-]{0,95}/[\w.-]{1,96}", name) is not None


def reference_of(folder: Path) -> tuple[str, str] | None:
    """Id and revision of a model whose folder is a snapshot in a cache of the hub; ``None`` for any other folder."""
    owner, _, name = folder.parent.parent.name.removeprefix("models--").partition("--")
    in_cache = folder.parent.name == "snapshots" and folder.parent.parent.name.startswith("models--")
    return (f"{owner}/{name}", folder.name) if in_cache and is_id(f"{owner}/{name}") else None


def model_folder(name: str, on_event: Listener = nobody, *, revision: str | None = None) -> Path:
    """The folder of a hub model in the hub's own cache, downloaded first if it is not complete there.

    Args:
        name: ``owner/name``.
        on_event: Hears how many bytes have come.
        revision: A commit; default: the newest.

    Raises:
        NotFoundError: The hub knows no such model, or does not show it to you.
        ResourceError: The hub cannot be reached, or the model has no safetensors weights.
    """
    here = cached(name, revision)
    if here is not None:
        return here
    probe(name, "model")
    try:
        folder = _download(name, revision, on_event)
    except Exception as error:  # the hub client raises many kinds (HTTP, OS, its own); all mean the same here
        raise _unreachable(name, "model", str(error)) from error
    if not _is_whole(folder):
        raise ResourceError(
            f"{name} has no weights as safetensors, or no config.json",
            where=str(folder),
            fix="choose a model that is stored as safetensors; pickled weights are not loaded",
        )
    return folder


def _download(name: str, revision: str | None, on_event: Listener) -> Path:
    """Fetch what is missing of a model; files that came completely stay, whatever happens to the others."""
    from huggingface_hub import snapshot_download

    what = f"downloading {name}"
    on_event(Progress(what=what, done=0, total=None, unit="bytes"))
    silent = _bars(lambda done: None)
    files = snapshot_download(name, revision=revision, allow_patterns=PATTERNS, dry_run=True, tqdm_class=silent)
    total = sum(file.file_size or 0 for file in files if file.will_download)

    def tell(done: int) -> None:
        on_event(Progress(what=what, done=min(done, total), total=total, unit="bytes"))

    folder = Path(snapshot_download(name, revision=revision, allow_patterns=PATTERNS, tqdm_class=_bars(tell)))
    tell(total)
    return folder


def _bars(tell: Callable[[int], None]) -> type[Any]:
    """A class of bars for the hub's library that draws nothing and tells how many bytes have come.

    The library counts bytes twice, as they arrive and as they are written, from several threads; the larger count is
    told, and it never falls.
    """
    from huggingface_hub.utils.tqdm import tqdm

    lock, most = threading.Lock(), 0

    class Bar(tqdm):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **(options | {"disable": True}))
            self.counts_bytes = options.get("unit") == "B"

        def update(self, n: float | None = 1) -> None:
            nonlocal most
            self.n += n or 0  # a disabled bar does not count by itself
            with lock:
                if self.counts_bytes and self.n > most:
                    most = int(self.n)
                    tell(most)

    return Bar


def dataset(name: str, split: str = "train", on_event: Listener = nobody) -> Any:
    """A hub data set as a streaming ``datasets.IterableDataset``.

    Args:
        name: ``owner/name``, also with ``hub:`` in front, and ``/config`` and ``:split`` behind it.
        split: Which split, if the name has none.
        on_event: Hears that it is opened.

    Raises:
        UsageError: The name has not that form.
        NotFoundError: The hub knows no such data set, configuration or split, or there are several configurations.
        ResourceError: The hub cannot be reached.
    """
    given, _, own_split = name.removeprefix("hub:").partition(":")
    name, config = _parted(given)
    if not is_id(name) or (config is not None and re.fullmatch(r"[\w][\w.+-]*", config) is None):
        raise UsageError(f"{given!r} is no hub id", fix="write hub:owner/name, hub:owner/name/config, or either:split")
    probe(name, "dataset")
    import datasets

    on_event(Progress(what=f"opening {name}", done=0, total=None))
    try:
        return datasets.load_dataset(name, config, split=own_split or split, streaming=True)
    except ValueError as error:
        raise _no_part(str(error), given, name, own_split or split) from error
    except Exception as error:  # as above: many kinds
        raise _unreachable(name, "data", str(error)) from error


def rows(data: Any, name: str) -> Iterator[dict[str, Any]]:
    """The rows of a data set that :func:`dataset` has opened.

    Args:
        data: The data set.
        name: What to call it in errors.

    Raises:
        ResourceError: The stream breaks off; says before which row.
    """
    stream = iter(data)
    for number in itertools.count(1):
        try:
            row = next(stream)
        except StopIteration:
            return
        except MemoryError:
            raise
        except Exception as error:  # as above: many kinds
            raise _broken_off(error, f"{name}:{number}") from error
        yield dict(row)


def picture(path: str, name: str, row: int) -> bytes | None:
    """The content of a picture that a data set of the hub only names, as one of folders of pictures does.

    Args:
        path: ``hf://datasets/owner/name@commit/file``, or ``zip://file::`` in front of such an archive.
        name: Of the data set, as for :func:`dataset`.
        row: Its number, for errors.

    Returns:
        ``None`` for anything but a file of this data set: what strangers write must not open others.

    Raises:
        ResourceError: The hub does not give it.
    """
    repository, _ = _parted(name.removeprefix("hub:").partition(":")[0])
    *archives, source = path.split("::")
    own = re.match(rf"hf://datasets/{re.escape(repository)}(@[0-9a-f]+)?/", source, re.IGNORECASE)
    if own is None or ".." in source.split("/") or not all(part.startswith("zip://") for part in archives):
        return None
    from datasets import DownloadConfig
    from datasets.utils.file_utils import xopen

    try:
        with xopen(path, "rb", download_config=DownloadConfig()) as file:
            content: bytes = file.read()
            return content
    except FileNotFoundError:
        return None
    except MemoryError:
        raise
    except Exception as error:  # as above: many kinds
        raise _broken_off(error, f"{name}:{row}") from error


def _broken_off(error: Exception, where: str) -> ResourceError:
    return ResourceError(
        f"the data set of the hub cannot be read on: {type(error).__name__}: {_first_line(str(error))}",
        where=where,
        fix="run it again; where the connection is bad, fetch the files first (`hf download OWNER/NAME "
        "--repo-type dataset --local-dir DIR`) and name DIR in its place",
    )


def _parted(name: str) -> tuple[str, str | None]:
    """``owner/name`` and the configuration behind it, if there is one."""
    owner, _, rest = name.partition("/")
    own_name, slash, config = rest.partition("/")
    return f"{owner}/{own_name}", config if slash else None


def _no_part(reason: str, given: str, name: str, split: str) -> NotFoundError:
    """What the hub's library says of a configuration or split that is not there, or not named: it lists the known."""
    known = [item.strip(" '\"") for item in "".join(re.findall(r"\[([^\]]*)\]", reason)[:1]).split(",")]
    listed, where = ", ".join(filter(None, known)), f"hub:{given}"
    if "split" in reason.lower() and not reason.startswith(("Config", "BuilderConfig")):
        fix = f"name one of its splits ({listed}): hub:{given}:SPLIT" if listed else f"name one: hub:{given}:SPLIT"
        return NotFoundError(f"the data set has no split {split!r}", where=where, fix=fix)
    if "config" in reason.lower():
        missing = "missing" in reason
        what = "the data set has several configurations" if missing else "the data set has no such configuration"
        fix = f"name one of them ({listed}): hub:{name}/CONFIG" if listed else f"name one: hub:{name}/CONFIG"
        return NotFoundError(what, where=where, fix=fix)
    return NotFoundError(reason.strip().splitlines()[0] if reason.strip() else "no such data", where=where)


def probe(name: str, kind: str) -> None:
    """Ask the hub once, with little patience, whether it is there and has a model or data set.

    The hub's client would go on trying for minutes.

    Raises:
        NotFoundError: It has no such thing, or does not show it to you.
        ResourceError: It cannot be reached.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    problem = problem_of(lambda: HfApi().repo_info(name, repo_type=kind, timeout=PROBE_SECONDS), PROBE_SECONDS + 1)
    if isinstance(problem, GatedRepoError):
        raise NotFoundError(
            f"{name} is shown only to those who accepted its terms on the hub", fix="run `hf auth login`"
        )
    if isinstance(problem, RepositoryNotFoundError):
        raise NotFoundError(
            f"{_nor_here(name, kind)}the hub has no {kind} {name}, or does not show it to you",
            fix="check the spelling; for a private one run `hf auth login`",
        )
    if problem is not None:
        raise _unreachable(name, "model" if kind == "model" else "data", str(problem))


def problem_of(question: Callable[[], object], seconds: float) -> BaseException | None:
    """What a question over the network ends in if it is not answered within some seconds; ``None`` if it is.

    It is put in a thread that is not waited for: looking up a host name has no time limit of its own.
    """
    outcome: list[BaseException | None] = []

    def ask() -> None:
        try:
            question()
            outcome.append(None)
        except BaseException as error:
            outcome.append(error)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(seconds)
    return outcome[0] if outcome else TimeoutError(f"no answer within {seconds:g} s")


def _unreachable(name: str, kind: Literal["model", "data"], reason: str) -> ResourceError:
    from tunesmith.catalog.table import ENTRIES

    offline = ", ".join(entry.name for entry in ENTRIES.values() if entry.kind == kind)
    own = "a folder or a .gguf file" if kind == "model" else "a file or a folder"
    return ResourceError(
        f"{_nor_here(name, kind)}{name} cannot be fetched from the hub: {_first_line(reason)}",
        fix=f"without the hub these work (see `tunesmith catalog`): {offline}; or give {own}",
    )


def _nor_here(name: str, kind: str) -> str:
    """What else a model's id may have been meant for, if there is a folder of the owner's name."""
    return f"there is no folder {name!r} here, and " if kind == "model" and Path(name).parent.is_dir() else ""


def _first_line(text: str) -> str:
    return next(iter(text.strip().splitlines()), "no reason given")


def cached(name: str, revision: str | None) -> Path | None:
    """The model's folder in the hub's cache, if everything that loading needs is there."""
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(name, revision=revision, allow_patterns=PATTERNS, local_files_only=True))
    except (OSError, ValueError):  # LocalEntryNotFoundError, and HFValidationError of a name that no model can have
        return None
    return folder if _is_whole(folder) else None


def _is_whole(folder: Path) -> bool:
    """Whether a snapshot has a config and all the weight files that it speaks of."""
    if not (folder / "config.json").is_file():
        return False
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return (folder / "model.safetensors").is_file()
    try:
        files = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (ValueError, KeyError, AttributeError):
        return False
    return all((folder / file).is_file() for file in files)
