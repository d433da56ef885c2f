"""The command ``tunesmith serve``, and its tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from tunesmith.cli.output import Json, print_json, print_table
from tunesmith.errors import MissingExtraError

app = typer.Typer(add_completion=False, rich_markup_mode="markdown")
token_app = typer.Typer(help="Make, list and revoke tokens. They are kept as hashes.", no_args_is_help=True)
app.add_typer(token_app, name="token")
Data = Annotated[
    Path, typer.Option("--data", metavar="DIR", help="Files, runs and tokens live here.", envvar="TUNESMITH_DATA")
]
HOME = Path("server")


@app.callback(invoke_without_command=True)
def serve(
    context: typer.Context,
    host: Annotated[str, typer.Option(help="Address to listen on; one that others reach needs a token.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 takes a free one.")] = 8000,
    token: Annotated[
        str | None,
        typer.Option(help="A token with all rights; better from the environment.", envvar="TUNESMITH_TOKEN"),
    ] = None,
    database: Annotated[
        str | None,
        typer.Option(help="`sqlite:///FILE`, `postgresql://...`; default: in DIR.", envvar="TUNESMITH_DATABASE"),
    ] = None,
    storage: Annotated[
        str | None,
        typer.Option(metavar="URL", help="`s3://bucket/prefix` keeps files and runs.", envvar="TUNESMITH_STORAGE"),
    ] = None,
    workers: Annotated[int, typer.Option(min=0, help="Jobs trained at once; 0 trains none.")] = 1,
    models: Annotated[
        Path | None, typer.Option(metavar="FILE", help="`models.yaml`: names that clients use -> local models.")
    ] = None,
    model_memory: Annotated[
        float | None,
        typer.Option(
            min=0.1,
            metavar="GB",
            help="Memory for models that answer, with their caches; default: half of what is free.",
        ),
    ] = None,
    engine: Annotated[
        Literal["own", "vllm"], typer.Option(help="What writes the answers; `vllm` where it is installed.")
    ] = "own",
    python_graders: Annotated[
        bool, typer.Option(help="Let `reinforcement` jobs bring graders of Python: code of whoever may tune runs here.")
    ] = False,
    data: Data = HOME,
    allowed_host: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="A further host name to answer to; may be repeated.")
    ] = None,
    rebuild_index: Annotated[
        bool,
        typer.Option("--rebuild-index", help="Restore the database from DIR and storage first; stop other servers."),
    ] = False,
    as_json: Json = False,
) -> None:
    """Serve the OpenAI API: files, fine-tuning jobs, and the models that they make.

    Point a client at it with `base_url="http://127.0.0.1:8000/v1"`. Without a token only this machine can connect.
    """
    if context.invoked_subcommand is not None:
        return
    _need_extra()
    from pydantic import SecretStr

    from tunesmith.server.serving import say
    from tunesmith.server.serving import serve as run_server
    from tunesmith.server.settings import Settings

    settings = Settings(
        data=data,
        host=host,
        port=port,
        token=SecretStr(token) if token else None,
        database=database,
        storage=storage,
        workers=workers,
        models=models,
        model_memory_bytes=int(model_memory * 2**30) if model_memory else None,
        engine=engine,
        python_graders=python_graders,
        allowed_hosts=tuple(name.lower() for name in allowed_host or ()),
    )
    run_server(settings, _announce_json if as_json else say, rebuild=rebuild_index)


def _announce_json(sentence: str, facts: dict[str, Any]) -> None:
    print_json(facts)


@token_app.command("add")
def add(
    name: Annotated[str, typer.Argument(help="What the token is called in lists and in the audit log.")],
    scope: Annotated[list[str], typer.Option(help="`admin`, `tune` or `infer`; may be repeated.")],
    owner: Annotated[str | None, typer.Option(help="Project that files and jobs belong to; default: the name.")] = None,
    data: Data = HOME,
    as_json: Json = False,
) -> None:
    """Make a token and print it, this once."""
    secret = _tokens(data).add(name, scope, owner).get_secret_value()
    if as_json:
        print_json({"name": name, "token": secret})
    else:
        print(secret)


@token_app.command("list")
def list_tokens(data: Data = HOME, as_json: Json = False) -> None:
    """List the tokens: names, rights, owners."""
    stored = _tokens(data).all()
    if as_json:
        print_json([{"name": t.name, "scopes": t.scopes, "owner": t.owner, "created_at": t.created_at} for t in stored])
    else:
        print_table(("name", "scopes", "owner"), ((t.name, ", ".join(t.scopes), t.owner) for t in stored))


@token_app.command("revoke")
def revoke(
    name: Annotated[str, typer.Argument(help="The token's name.")], data: Data = HOME, as_json: Json = False
) -> None:
    """Forget a token; a running server refuses it from the next request on."""
    _tokens(data).revoke(name)
    if as_json:
        print_json({"name": name, "revoked": True})


def _tokens(data: Path) -> Any:
    _need_extra()
    from tunesmith.server.auth import Tokens

    return Tokens(data)


def _need_extra() -> None:
    for package in ("fastapi", "uvicorn", "sqlalchemy", "python_multipart"):
        try:
            __import__(package)
        except ImportError as error:
            raise MissingExtraError(package, "server", "`tunesmith serve`") from error
