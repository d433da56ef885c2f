"""Commands that look things up: methods, catalog, doctor."""

from __future__ import annotations

from typing import Annotated

import typer

from tunesmith import words
from tunesmith.cli.output import Json, print_json, print_pairs, print_table

catalog = typer.Typer(add_completion=False, rich_markup_mode="markdown")


def methods(
    parameters: Annotated[
        bool, typer.Option("--parameters", help="List what may train instead: the values of `parameters.kind`.")
    ] = False,
    as_json: Json = False,
) -> None:
    """List the ways to fine-tune, and when each is right."""
    from tunesmith.methods import METHODS
    from tunesmith.parameters import kinds

    rows = kinds.rows() if parameters else [method.as_dict() for method in METHODS.values()]
    if as_json:
        print_json(rows)
    elif parameters:
        print_table(
            ("kind", "what trains", "when it is right", "source"),
            (list(row.values()) for row in rows),
        )
    else:
        print_table(
            ("method", "what it does", "when it is right", "objective", "parameters"),
            (list(row.values()) for row in rows),
        )


@catalog.callback(invoke_without_command=True)
def list_unless_told_otherwise(context: typer.Context, as_json: Json = False) -> None:
    """List, fetch and remove models and data that need no hub. Without a command: list."""
    if context.invoked_subcommand is None:
        list_them(as_json)


@catalog.command("list")
def list_them(as_json: Json = False) -> None:
    """List the named models and data, and which are already here."""
    from tunesmith.catalog import entries, is_cached

    rows = [{**entry.as_dict(), "cached": is_cached(entry.name)} for entry in entries()]
    if as_json:
        print_json(rows)
        return
    print_table(
        ("name", "kind", "MB", "here", "licence", "what"),
        (
            (
                row["name"],
                row["kind"],
                f"{row['size_bytes'] / 1e6:.0f}",
                "yes" if row["cached"] else "no",
                row["licence"],
                row["what"],
            )
            for row in rows
        ),
    )


@catalog.command("get")
def get_it(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A name of the list.")],
    accept_licence: Annotated[
        bool, typer.Option("--accept-licence", help="Accept the terms of a model that has some.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Fetch a model or data set into the cache and print its folder."""
    from tunesmith import progress
    from tunesmith.catalog import get

    with progress.shown() as on_event:
        path = get(name, accept_licence=accept_licence, on_event=on_event)
    if as_json:
        print_json({"name": name, "path": path})
    else:
        print(path)


@catalog.command("rm")
def remove_it(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A name of the list.")],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    as_json: Json = False,
) -> None:
    """Remove a model or data set from the cache. What needs it later fetches it again."""
    from tunesmith.catalog import cached_bytes, remove
    from tunesmith.cli.asking import require_yes

    size = cached_bytes(name)
    if size and not yes:
        require_yes(f"Remove {name} ({words.size(size)}) from the cache?")
    freed = remove(name)
    if as_json:
        print_json({"removed": name, "bytes": freed})
    else:
        print(f"removed {name}: {words.size(freed)} are free again" if freed else f"the cache holds nothing of {name}")


def doctor(as_json: Json = False) -> None:
    """Say what this machine can do, what is slow and why.

    Each finding comes with how to mend it. Products in bf16 and fp32 are measured, and the hub is given two seconds.
    """
    from tunesmith.doctor import examine

    found = examine()
    if as_json:
        print_json(found.as_dict())
        return
    for title, facts in found.sections.items():
        print(f"\n{title}")
        print_pairs(_readable(name, value) for name, value in facts.items())
    print("\nfindings" if found.findings else "\nNothing stands in the way.")
    for finding in found.findings:
        print(f"  {finding.level}: {finding.what}\n    why: {finding.why}\n    how to mend it: {finding.fix}")


def _readable(name: str, value: object) -> tuple[str, object]:
    """A fact for people: bytes in words, no underscores."""
    if name.endswith("_bytes") and isinstance(value, int):
        name, value = name.removesuffix("_bytes"), words.size(value)
    if isinstance(value, list):
        value = ", ".join(f"{gpu['name']} ({words.size(gpu['memory_bytes'])})" for gpu in value) or "none"
    return f"  {name.replace('_', ' ')}", value
