"""Take a tuned model home: a provider's job becomes a recipe for this machine, with the old model's answers to meet."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tunesmith import disk
from tunesmith.data import conversations
from tunesmith.errors import DataError, UsageError
from tunesmith.events import Listener, Notice, Phase
from tunesmith.hosted.answers import Asker
from tunesmith.hosted.client import Client, Job, ProviderError
from tunesmith.recipe import Data, Recipe
from tunesmith.server.recipes import job_recipe

OLD_ANSWERS = "old_answers.jsonl"
VALIDATION_SHARE = 0.1
"""Of the training rows, where the provider's validation rows become the test."""


def bring_home(
    client: Client,
    job_id: str,
    model: str,
    folder: Path,
    tell: Listener,
    *,
    train: Path | None = None,
    ask: int = 0,
    stored: int = 0,
    most_tokens: int = 256,
) -> tuple[Recipe, dict[str, Any]]:
    """Write a folder with ``recipe.yaml``, data, ``import.json`` and, where there are some, the old model's answers.

    Args:
        client: Of the provider that has the job.
        job_id: The job.
        model: What to tune here, as a recipe calls it.
        folder: Where to write; it must not hold a recipe yet.
        tell: Told what is done.
        train: The user's copy of the training file, where the provider has it no more.
        ask: How many of the validation rows the old model is asked, while it still answers.
        stored: How many answers are taken that the provider has kept (``store: true``).
        most_tokens: Longest answer of the old model.

    Raises:
        UsageError: There is a recipe in the folder, or there are no answers of the kind that is asked for.
        ProviderError: The job or its training file is not there.
    """
    if (folder / "recipe.yaml").exists():
        raise UsageError("there is a recipe in this folder already", where=str(folder), fix="name another: `--out DIR`")
    job = client.job(job_id)
    tell(Phase(step="data", message=f"files of {job.id} at {client.provider.what}"))
    training = _file(client, job.training_file, train, folder / "train.jsonl")
    validation = _file(client, job.validation_file, None, folder / "validation.jsonl") if job.validation_file else None
    met = _old_answers(client, job, validation, folder, tell, ask=ask, stored=stored, most_tokens=most_tokens)
    numbers = {name: value for name, value in job.hyperparameters.items() if isinstance(value, int | float)}
    recipe = job_recipe(
        model,
        {},
        method=job.method,
        training=training,
        validation=validation,
        seed=job.seed or 0,
        hyperparameters={name: value for name, value in numbers.items() if name in _KNOWN},
        grader=job.grader,
    )
    if met:
        data = recipe.data.model_dump() | {"test": [str(met)], "validation": VALIDATION_SHARE}
        recipe = recipe.model_copy(update={"data": Data.model_validate(data)})
    facts = {
        "job": job.as_dict(),
        "provider": client.provider.what,
        "training_rows": _rows(training),
        "validation_rows": _rows(validation) if validation else 0,
        "old_answers": _rows(met) if met else 0,
    }
    disk.write_json(folder / "import.json", facts)
    disk.write_text(folder / "recipe.yaml", _commented(job, recipe, client, bool(met)))
    return recipe, facts


_KNOWN = ("n_epochs", "batch_size", "learning_rate_multiplier", "beta")


def _file(client: Client, file_id: str | None, own: Path | None, path: Path) -> Path:
    """A file of the provider, or the user's copy of it, without a byte-order mark."""
    if own is not None:
        content = own.read_bytes()
    else:
        try:
            content = client.content(str(file_id))
        except ProviderError as error:
            if error.status in (403, 404):
                error.fix = "the file is gone there: give your own copy by `--train FILE`"
            raise
    disk.write_bytes(path, content.removeprefix(codecs.BOM_UTF8))
    return path


def _old_answers(
    client: Client,
    job: Job,
    validation: Path | None,
    folder: Path,
    tell: Listener,
    *,
    ask: int,
    stored: int,
    most_tokens: int,
) -> Path | None:
    """Write what the old model answered: kept answers of real use, and answers to the validation rows."""
    found: list[list[dict[str, Any]]] = []
    if (ask or stored) and job.tuned_model is None:
        raise UsageError(f"the job made no model ({job.status}), so there are no answers of it", where=job.id)
    if stored:
        if not client.provider.stored_answers:
            raise UsageError(f"{client.provider.what} keeps no answers", fix="leave out `--stored`, and use `--ask N`")
        found += client.stored_answers(str(job.tuned_model), stored)
    if ask:
        if validation is None:
            raise UsageError(
                "the job had no validation file, and a model's answers to its training rows say little",
                fix="use `--stored N`, or ask it questions of your own",
            )
        asker = Asker(client, folder / "asked.jsonl", tell)
        questions = [{"messages": prompt} for prompt in _prompts(validation)][:ask]
        answers = asker.ask("the old model", str(job.tuned_model), questions, most_tokens)
        found += [
            [*question["messages"], {"role": "assistant", "content": answer.text}]
            for question, answer in zip(questions, answers, strict=True)
            if answer.text
        ]
    if not found:
        text = "there are no answers of the old model to compare with"
        tell(Notice(level="info", message=text, fix="`--ask N`, while it still answers, or `--stored N`"))
        return None
    lines = [json.dumps({"messages": turns}, ensure_ascii=False) for turns in found]
    disk.write_text(folder / OLD_ANSWERS, "\n".join(lines) + "\n")
    return folder / OLD_ANSWERS


def _prompts(path: Path) -> Iterator[list[dict[str, Any]]]:
    """The questions of a file of conversations, or of preferences."""
    for number, line in enumerate(disk.lines_of(path), 1):
        if not line.strip():
            continue
        try:
            values = json.loads(line)
            given = values["input"] if "preferred_output" in values else {"messages": values["messages"][:-1]}
            yield conversations.as_messages(given["messages"])
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"no conversation: {error}", where=f"{path}:{number}") from error


def _rows(path: Path) -> int:
    return sum(1 for line in disk.lines_of(path) if line.strip())


def _commented(job: Job, recipe: Recipe, client: Client, met: bool) -> str:
    """The recipe as a file, with what it came from."""
    lines: Sequence[str] = (
        f"From the job {job.id} of {client.provider.what}: {job.model}, {job.method}, {job.hyperparameters}.",
        "Its learning_rate_multiplier multiplies the rate that is usual here: it says how much more, not what.",
        "The test rows are questions with the old model's answers: metrics say how near the new one comes to them."
        if met
        else "Give `data.test` rows that neither model has seen, to compare them.",
    )
    fields = recipe.model_dump(mode="json", exclude_unset=True)
    import yaml

    body = yaml.safe_dump(fields, sort_keys=False, allow_unicode=True)
    return "".join(f"# {line}\n" for line in lines) + body
