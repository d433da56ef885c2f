"""Commands that look things up: methods, catalog, doctor."""

from __future__ import annotations

from typing import Annotated

import typer

from tunesmith.cli.output import Json, print_json, print_pairs, print_table

catalog = typer.Typer(add_completion=False, rich_markup_mode="markdown")


def methods(as_json: Json = False) -> None:
    """List the ways to fine-tune, and when each is right."""
    from tunesmith.methods import METHODS

    rows = [method.as_dict() for method in METHODS.values()]
    if as_json:
        print_json(rows)
    else:
        print_table(
            ("method", "what it does", "when it is right", "objective", "parameters"), (row.values() for row in rows)
        )


@catalog.callback(invoke_without_command=True)
def list_unless_told_otherwise(context: typer.Context, as_json: Json = False) -> None:
    """List and fetch models and data that need no hub. Without a command: list."""
    if context.invoked_subcommand is None:
        list_them(as_json)


@catalog.command("list")
def list_them(as_json: Json = False) -> None:
    """List the named models and data, and which are already here."""
    from tunesmith.catalog import entries, is_cached

    rows = [
        {
            "name": entry.name,
            "kind": entry.kind,
            "what": entry.what,
            "licence": entry.licence,
            "size_bytes": entry.size_bytes,
            "cached": is_cached(entry.name),
        }
        for entry in entries()
    ]
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
    name: Annotated[str, typer.Argument(metavar="NAME", help="A name of the list, or a hub id.")],
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


def doctor(as_json: Json = False) -> None:
    """Say what this machine can do, what is slow and why, and how to mend it."""
    from tunesmith.doctor import examine

    found = examine()
    if as_json:
        print_json(found.as_dict())
        return
    for title, facts in found.sections.items():
        print(f"\n{title}")
        print_pairs((f"  {name}", value) for name, value in facts.items())
    print("\nfindings" if found.findings else "\nNothing stands in the way.")
    for finding in found.findings:
        print(f"  {finding.level}: {finding.what}\n    why: {finding.why}\n    how to mend it: {finding.fix}")
