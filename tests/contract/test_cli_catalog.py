"""`tunesmith catalog`, and the terms that a command asks for wherever it needs a model that has some."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from threading import Thread

import pytest

from conftest import labelled_rows, write_jsonl
from tunesmith import catalog, words
from tunesmith.catalog import Entry, cache, packages, terms
from tunesmith.cli import main
from tunesmith.cli.asking import asked_for_terms
from tunesmith.errors import ResourceError

GEMMA = "gemma3-270m"


class Terminal(io.StringIO):
    """Somebody who types these lines."""

    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TUNESMITH_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv(terms.ACCEPT_VARIABLE, raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "cache"


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The entries whose terms were shown; no package index answers."""
    seen: list[str] = []

    def text_of(entry: Entry) -> str:
        seen.append(entry.name)
        return "You may not."

    def fetch(entry: Entry, on_event: object) -> list[Path]:
        raise ResourceError(f"no index for {entry.name}")

    monkeypatch.setattr(terms, "text_of", text_of)
    monkeypatch.setattr(packages, "fetch", fetch)
    return seen


def at_a_terminal(monkeypatch: pytest.MonkeyPatch, typed: str) -> None:
    monkeypatch.setattr(sys, "stdin", Terminal(typed))
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)


def command(name: str, tmp_path: Path, base: Path) -> list[str]:
    """Commands that need the model: at once, to plan, as the base, and for the evaluation alone."""
    rows = str(write_jsonl(tmp_path / "reviews.jsonl", labelled_rows(40)))
    recipe = ["--task", "text-classification", "--method", "peft", "--train", rows]
    return {
        "get": ["catalog", "get", GEMMA],
        "plan": ["plan", *recipe, "--model", GEMMA],
        "tune": ["tune", *recipe, "--model", GEMMA],
        "larger": ["tune", *recipe, "--model", str(base), "--set", f"evaluate.baselines=[{{larger: {GEMMA}}}]"],
    }[name]


COMMANDS = ["get", "plan", "tune", "larger"]


@pytest.mark.parametrize("name", COMMANDS)
def test_terms_are_asked_for_once_in_a_terminal(
    name: str, shown: list[str], tiny_encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    at_a_terminal(monkeypatch, "n\n")
    assert main.run(command(name, tmp_path, tiny_encoder)) == 4
    said = capsys.readouterr().err
    assert shown == [GEMMA] and "You may not." in said
    assert terms.ACCEPT_VARIABLE in said and "--accept-licence" in said
    assert not list(tmp_path.glob("runs/*/data.json"))  # asked before any work

    at_a_terminal(monkeypatch, "y\n")
    if name != "larger":  # which would go on and train
        assert main.run(command(name, tmp_path, tiny_encoder)) == 4
        assert "no index for" in capsys.readouterr().err
        assert main.run(command(name, tmp_path, tiny_encoder)) == 4
        assert shown == [GEMMA] * 2  # remembered
        record = json.loads((cache.root() / "licences" / f"{GEMMA}.json").read_text(encoding="utf-8"))
        assert record["by"] == "answer"


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("how", ["no terminal", "--json"])
def test_nobody_is_asked_without_a_terminal_or_for_a_program(
    how: str, name: str, shown: list[str], tiny_encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    if how == "--json":
        at_a_terminal(monkeypatch, "y\n")
    else:
        monkeypatch.setattr(sys, "stdin", io.StringIO("y\n"))
    assert main.run([*command(name, tmp_path, tiny_encoder), "--json"]) == 4
    error = json.loads(capsys.readouterr().out)["error"]
    assert terms.ACCEPT_VARIABLE in error["fix"] and "--accept-licence" in error["fix"]
    assert shown == []


def test_a_thread_of_a_server_asks_nobody(shown: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    at_a_terminal(monkeypatch, "y\n")
    caught: list[ResourceError] = []

    def wish() -> None:
        with pytest.raises(ResourceError) as error:
            catalog.get(GEMMA)
        caught.append(error.value)

    with asked_for_terms(as_json=False):
        thread = Thread(target=wish)
        thread.start()
        thread.join()
    assert "must be accepted" in caught[0].what and shown == []


# --- removing ------------------------------------------------------------------------------------------------------


def test_what_the_cache_holds_is_removed_after_a_yes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = catalog.get("python-reference")
    size = catalog.cached_bytes("python-reference")
    assert size > 100_000
    monkeypatch.setattr(sys, "stdin", io.StringIO("n\n"))
    assert main.run(["catalog", "rm", "python-reference"]) == 130
    assert folder.is_dir() and "nothing was removed" in capsys.readouterr().err
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n"))
    assert main.run(["catalog", "rm", "python-reference"]) == 0
    assert f"{words.size(size)}" in capsys.readouterr().out
    assert not folder.exists() and not catalog.is_cached("python-reference")


def test_removing_tells_programs_how_many_bytes_are_free_again(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    [file] = catalog.ENTRIES["movie-ratings"].packages
    packages.folder().mkdir(parents=True)
    (packages.folder() / file.filename).write_bytes(b"12345")
    assert main.run(["catalog", "rm", "movie-ratings", "--yes", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"removed": "movie-ratings", "bytes": 5}
    assert list(packages.folder().iterdir()) == []
    assert main.run(["catalog", "rm", "movie-ratings", "--json"]) == 0  # there is nothing to ask about
    assert json.loads(capsys.readouterr().out)["bytes"] == 0
    assert main.run(["catalog", "rm", "movie-rating", "--yes", "--json"]) == 4
    assert "movie-ratings" in json.loads(capsys.readouterr().out)["error"]["fix"]
