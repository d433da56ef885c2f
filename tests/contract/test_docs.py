"""The documentation keeps its word: commands parse, recipes are valid, Python compiles, generated pages are current."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from tunesmith.cli.main import app
from tunesmith.recipe_file import parse

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


def blocks(language: str) -> Iterator[tuple[str, str]]:
    """Code blocks of a language in all pages, each with its place."""
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for found in re.finditer(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
            line = text.count("\n", 0, found.start()) + 2
            yield f"{page.relative_to(ROOT)}:{line}", found.group(1)


def shell_lines(first_word: str) -> list[Any]:
    return [
        pytest.param(shlex.split(line, comments=True), id=f"{place} {line.split('#')[0].strip()}")
        for place, text in blocks("bash")
        for line in text.replace("\\\n", " ").splitlines()
        if line.split(maxsplit=1)[:1] == [first_word]
    ]


def parse_command_line(words: list[str]) -> None:
    """Let the real parsers read a command line, down to the last sub-command, and call nothing."""
    command: Any = typer.main.get_command(app)
    context = command.make_context(words[0], words[1:])
    while hasattr(command, "commands"):
        rest = [*context._protected_args, *context.args]
        if not rest:
            return
        name, command, arguments = command.resolve_command(context, rest)
        context = command.make_context(name, arguments, parent=context)


@pytest.mark.parametrize("words", shell_lines("tunesmith"))
def test_every_command_of_the_docs_parses(words: list[str]) -> None:
    parse_command_line(words)


@pytest.mark.parametrize(
    "line", ["tunesmith tune --bogus", "tunesmith catalog fetch x", "tunesmith resume", "tunesmith evl"]
)
def test_a_wrong_command_would_be_found(line: str) -> None:
    with pytest.raises(typer.TyperException):
        parse_command_line(shlex.split(line))


@pytest.mark.parametrize("words", shell_lines("make"))
def test_every_make_target_of_the_docs_exists(words: list[str]) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    assert set(words[1:]) <= targets


@pytest.mark.parametrize(
    "text", [pytest.param(text, id=place) for place, text in blocks("yaml") if re.search("^task:", text, re.MULTILINE)]
)
def test_every_recipe_of_the_docs_is_valid(text: str) -> None:
    parse(yaml.safe_load(text)).resolved()


@pytest.mark.parametrize("text", [pytest.param(text, id=place) for place, text in blocks("python")])
def test_every_name_that_the_docs_use_exists(text: str) -> None:
    tree = ast.parse(text)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for name in node.names:
                importlib.import_module(name.name)
        elif isinstance(node, ast.ImportFrom) and node.module:
            module = importlib.import_module(node.module)
            assert all(hasattr(module, name.name) for name in node.names)
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "tunesmith":
            assert hasattr(importlib.import_module("tunesmith"), node.attr)


def test_the_generated_pages_are_current() -> None:
    spec = importlib.util.spec_from_file_location("generate_docs", ROOT / "scripts" / "generate_docs.py")
    assert spec is not None and spec.loader is not None
    generate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generate)
    pages = generate.pages()
    assert {path.name for path in (ROOT / "docs" / "reference").glob("*.md")} == pages.keys()
    for name, text in pages.items():
        assert (ROOT / "docs" / "reference" / name).read_text(encoding="utf-8") == text, f"{name}: run `make docs`"


def test_the_first_screen_of_the_readme_sets_up_and_tests() -> None:
    first_screen = "\n".join((ROOT / "README.md").read_text(encoding="utf-8").splitlines()[:30])
    assert "make demo" in first_screen and "make test" in first_screen


def test_every_link_between_pages_leads_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"
