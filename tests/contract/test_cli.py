"""The command line: quick to start, strict about streams and exit codes, one form of error."""

from __future__ import annotations

import errno
import gzip
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from tunesmith.cli import failures, main, predicting
from tunesmith.cli.recipe_flags import FLAGS, RecipeChoices, describe
from tunesmith.errors import DataError, InterruptedRun, ResourceError, TunesmithError, UsageError
from tunesmith.recipe import Recipe, Training
from tunesmith.recipe_file import line_numbers, load, parse

HEAVY = ("torch", "transformers", "sklearn", "pandas", "matplotlib", "datasets", "peft", "scipy")
RECIPE = "task: text-classification\nmodel: minilm-l6\ndata: {train: reviews.csv}\n"


def leaves(command: Any, path: str) -> list[Any]:
    below = getattr(command, "commands", {})
    own = [] if below and path != "tunesmith runs" and path != "tunesmith catalog" else [(path, command)]
    return own + [leaf for name, sub in below.items() for leaf in leaves(sub, f"{path} {name}")]


ALL = [leaf for name in main.COMMANDS for leaf in leaves(main.load_command(name), f"tunesmith {name}")]


# --- start ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [["--help"], ["tune", "--help"], ["methods", "--json"], ["recipe", "schema"]])
def test_light_commands_import_nothing_heavy(arguments: list[str]) -> None:
    program = (
        "import sys\n"
        "from tunesmith.cli.main import run\n"
        f"code = run({arguments!r})\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)\n"
        "sys.exit(code)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr.strip().splitlines()[-1] == "[]"
    assert done.stdout.strip()


def test_it_runs_as_a_module() -> None:
    command = [sys.executable, "-m", "tunesmith", "methods", "--jso"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2 and "--json" in done.stderr


def test_the_overview_imports_no_command() -> None:
    program = (
        "import sys\nfrom tunesmith.cli.main import run\nrun(['--help'])\n"
        "print([n for n in sys.modules if n.startswith('tunesmith.') and 'cli' not in n], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stderr.strip() == "[]"
    assert all(name in done.stdout for name in main.COMMANDS)


@pytest.mark.parametrize("name", main.COMMANDS)
def test_the_overview_says_what_the_command_says(name: str) -> None:
    assert " ".join(main.load_command(name).help.split("\n\n")[0].split()) == main.COMMANDS[name].what


@pytest.mark.parametrize(("path", "command"), ALL, ids=[path for path, _ in ALL])
def test_every_command_takes_json_and_explains_its_options(path: str, command: Any) -> None:
    options = [option for parameter in command.params for option in getattr(parameter, "opts", ())]
    assert "--json" in options
    assert all(parameter.help for parameter in command.params if parameter.name != "help")
    assert command.help


# --- the recipe's flags --------------------------------------------------------------------------------------------


def shown_recipe(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    assert main.run(["recipe", "show", *arguments, "--json"]) == 0
    return dict(json.loads(capsys.readouterr().out))


def test_flags_set_the_keys_of_the_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    by_flags = shown_recipe(
        capsys, "--task", "text-classification", "--model", "m", "--method", "peft",
        "--train", "a.csv", "--train", "b.csv",
        "--validation", "0.2", "--test", "c.csv", "--set", "training.epochs=1", "--set", "data.columns.text=review",
    )  # fmt: skip
    assert by_flags["data"]["train"] == ["a.csv", "b.csv"]
    assert by_flags["data"]["validation"] == 0.2
    assert by_flags["data"]["test"] == ["c.csv"]
    assert by_flags["data"]["columns"] == {"text": "review"}
    assert by_flags["stages"][0]["training"]["epochs"] == 1
    assert by_flags["stages"][0]["parameters"]["kind"] == "lora"


def test_flags_change_a_file_and_set_has_the_last_word(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "r.yaml"
    file.write_text(RECIPE, encoding="utf-8")
    shown = shown_recipe(capsys, str(file), "--model", "other", "--train", "ü: #1.csv", "--set", "model=last")
    assert shown["model"] == "last"
    assert shown["data"]["train"] == ["ü: #1.csv"]


@pytest.mark.parametrize("key", FLAGS.values())
def test_a_flag_is_explained_by_its_key(key: str) -> None:
    assert describe(key) in str(main.load_command("tune").params and [p.help for p in main.load_command("tune").params])


def test_what_recipe_show_prints_is_a_recipe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "r.yaml"
    file.write_text(RECIPE.replace("minilm-l6", "not-here"), encoding="utf-8")
    assert main.run(["recipe", "show", str(file)]) == 0
    shown = capsys.readouterr().out
    assert parse(yaml.safe_load(shown)) == load(file).resolved()
    assert set(Training.model_fields) <= set(yaml.safe_load(shown)["stages"][0]["training"]), "nulls too"
    rate = comments(shown)["stages", "0", "training", "learning_rate"]
    rates, _, why = rate.partition("; ")
    assert rates == "by the model: 5e-05 with a head, 2e-05 for a decoder, 0.0001 for an encoder-decoder"
    assert why == "not-here is not on this machine"


def test_recipe_show_fills_in_what_the_model_decides(
    tiny_encoder: Path, tiny_t5: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "r.yaml"
    tree = {"task": "text-classification", "model": str(tiny_encoder), "data": {"train": "a.csv"}}
    file.write_text(json.dumps(tree), encoding="utf-8")
    assert main.run(["recipe", "show", str(file)]) == 0
    shown = capsys.readouterr().out
    assert yaml.safe_load(shown)["stages"][0]["training"]["learning_rate"] == 5e-5
    stage = {keys[-1]: said for keys, said in comments(shown).items() if keys[0] == "stages"}
    assert stage == {
        "objective": "by the task and the model: classify",
        "batch_size": "by the training rows: one in 20 of them, at least 4, at most 32",
        "micro_tokens": "4096 on a processor, 16384 on a GPU",
    }
    parse(yaml.safe_load(shown))
    flags = ("--task", "summarization", "--model", str(tiny_t5), "--method", "full", "--train", "a.jsonl")
    assert shown_recipe(capsys, *flags)["stages"][0]["training"]["learning_rate"] == 1e-4


def test_recipe_show_says_why_the_model_decides_nothing(tiny_encoder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ("--task", "text-generation", "--model", str(tiny_encoder), "--train", "a.jsonl")
    assert main.run(["recipe", "show", *flags]) == 0
    assert "it cannot write text" in comments(capsys.readouterr().out)["stages", "0", "training", "learning_rate"]


@pytest.mark.parametrize(
    ("model", "why"),
    [
        ("small.gguf", "small.gguf is converted when the run first loads it"),
        ("missing.gguf", "missing.gguf is not on this machine"),
        ("runs/a", "nobody/such-model is not on this machine"),
    ],
)
def test_recipe_show_names_the_model_that_it_cannot_read(
    model: str, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("small.gguf").write_bytes(b"GGUF")
    Path("runs/a").mkdir(parents=True)
    Path("runs/a/recipe.yaml").write_text(RECIPE.replace("minilm-l6", "nobody/such-model"), encoding="utf-8")
    flags = ("--task", "text-classification", "--model", model, "--train", "a.csv")
    assert main.run(["recipe", "show", *flags]) == 0
    rate = comments(capsys.readouterr().out)["stages", "0", "training", "learning_rate"]
    assert rate.partition("; ")[2] == why


def test_recipe_show_of_a_fit_has_no_rate(tiny_encoder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ("--task", "text-classification", "--model", str(tiny_encoder), "--train", "a.csv", "--method", "features")
    assert main.run(["recipe", "show", *flags]) == 0
    assert comments(capsys.readouterr().out)["stages", "0", "training", "learning_rate"] == "not used"


def comments(shown: str) -> dict[tuple[str, ...], str]:
    """Path of each key -> the comment on its line."""
    lines = shown.splitlines()
    numbers = line_numbers(yaml.compose(shown, Loader=yaml.SafeLoader))
    return {
        keys: lines[number - 1].partition("  # ")[2]
        for keys, number in numbers.items()
        if "  # " in lines[number - 1] and not keys[-1].isdigit()
    }


def test_the_schema_is_the_recipes_own(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["recipe", "schema"]) == 0
    assert json.loads(capsys.readouterr().out) == Recipe.model_json_schema()


# --- errors --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        ["tune", "--bogus"],
        ["tun"],
        ["tune"],
        ["tune", "none.yaml"],
        ["check", "--task", "text-classification", "--model", "m", "--set", "trainin.epochs=1"],
        ["catalog", "fetch"],
        ["resume"],
    ],
)
def test_wrong_usage_is_two_in_words_and_in_json(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main.run(arguments) == 2
    spoken = capsys.readouterr()
    assert spoken.out == ""
    assert spoken.err.startswith("Error: ") and "Traceback" not in spoken.err

    assert main.run([*arguments, "--json"]) == 2
    printed = capsys.readouterr()
    error = json.loads(printed.out)["error"]
    assert set(error) == {"code", "what", "where", "fix"} and error["code"] in ("usage", "recipe")
    assert printed.err == ""


def test_a_recipe_error_says_what_where_and_how(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "r.yaml"
    file.write_text(RECIPE + "trainin: {epochs: 1}\n", encoding="utf-8")
    assert main.run(["tune", str(file)]) == 2
    assert capsys.readouterr().err.splitlines() == [
        "Error: unknown key `trainin`",
        f"  where: {file}:4",
        "  how to mend it: did you mean `training`?",
    ]


def test_all_unknown_keys_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "r.yaml"
    file.write_text(RECIPE + "trainin: {epochs: 1}\nmodle: m\n", encoding="utf-8")
    assert main.run(["tune", str(file)]) == 2
    assert capsys.readouterr().err.splitlines()[0] == "Error: unknown key `trainin` (and 1 more: `modle`)"


def test_a_mistyped_command_is_guessed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["tun"]) == 2
    assert "'tune'" in capsys.readouterr().err


class Failing:
    """Stands in for the table of methods and fails when it is read."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def values(self) -> None:
        raise self.error


@pytest.mark.parametrize(
    ("error", "code", "name"),
    [
        (DataError("a bad row", where="a.csv:3"), 3, "data"),
        (ResourceError("no room"), 4, "resource"),
        (MemoryError(), 4, "resource"),
        (OSError(errno.ENOSPC, "No space left on device", "/x"), 4, "resource"),
        (PermissionError(errno.EACCES, "Permission denied", "/x"), 2, "usage"),
        (InterruptedRun("stopped", fix="tunesmith resume runs/x"), 130, "interrupted"),
        (KeyError("oops"), 1, "error"),
    ],
)
def test_every_failure_has_its_exit_code(
    error: BaseException, code: int, name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("tunesmith.methods.METHODS", Failing(error))
    assert main.run(["methods", "--json"]) == code
    printed = capsys.readouterr()
    assert json.loads(printed.out)["error"]["code"] == name
    assert "Traceback" not in printed.err


def test_ctrl_c_is_130_and_no_traceback(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("tunesmith.methods.METHODS", Failing(KeyboardInterrupt()))
    assert main.run(["methods"]) == 130
    printed = capsys.readouterr()
    assert "stopped before anything had to be saved" in printed.err and not printed.out
    assert main.run(["methods", "--json"]) == 130
    assert json.loads(capsys.readouterr().out)["error"]["code"] == "interrupted"


def test_a_defect_says_so_and_debug_shows_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("tunesmith.methods.METHODS", Failing(ZeroDivisionError("by zero")))
    assert main.run(["methods"]) == 1
    quiet = capsys.readouterr().err
    assert "defect" in quiet and "--debug" in quiet and "Traceback" not in quiet
    assert main.run(["--debug", "methods"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_torch_out_of_memory_is_a_resource() -> None:
    torch = pytest.importorskip("torch")
    error = failures.as_tunesmith_error(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"))
    assert isinstance(error, ResourceError) and error.exit_code == 4 and "micro_tokens" in (error.fix or "")


def test_markup_in_an_error_is_text(capsys: pytest.CaptureFixture[str]) -> None:
    failures.print_error(TunesmithError("the label [red]x[/red] is unknown"), as_json=False)
    assert "[red]x[/red]" in capsys.readouterr().err


# --- single commands -----------------------------------------------------------------------------------------------


def test_methods_json_has_the_promised_fields(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["methods", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert all(set(row) == {"name", "what", "when", "objective", "parameters"} for row in rows)
    assert {"peft", "features"} <= {row["name"] for row in rows}


@pytest.mark.parametrize("arguments", [["catalog", "--json"], ["catalog", "list", "--json"]])
def test_the_catalog_lists_itself(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(arguments) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows["minilm-l6"]["kind"] == "model" and rows["movie-ratings"]["kind"] == "data"
    assert all(isinstance(row["cached"], bool) for row in rows.values())


def test_an_unknown_catalog_name_is_four(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["catalog", "get", "minilm-l5", "--json"]) == 4
    assert "minilm-l" in json.loads(capsys.readouterr().out)["error"]["fix"]


INIT = ["init", "--task", "text-classification", "--train", "a.csv", "--model", "minilm-l6"]


def test_init_writes_a_recipe_and_replaces_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    assert main.run([*INIT, "--method", "peft"]) == 0
    assert capsys.readouterr().out == "recipe.yaml\n"
    recipe = load("recipe.yaml")
    assert (recipe.task, recipe.method, recipe.data.train) == ("text-classification", "peft", ["a.csv"])
    assert main.run(INIT) == 2
    assert main.run([*INIT, "--force"]) == 0


def test_init_replaces_a_recipe_as_a_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*paths: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    Path("recipe.yaml").write_text("mine", encoding="utf-8")
    monkeypatch.setattr(os, "replace", full)
    assert main.run([*INIT, "--force"]) != 0
    assert [(path.name, path.read_text(encoding="utf-8")) for path in tmp_path.iterdir()] == [("recipe.yaml", "mine")]


def test_init_without_answers_and_without_a_terminal_names_the_flag(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    assert main.run(["init", "--task", "chat", "--model", "m"]) == 2
    assert "--train" in capsys.readouterr().err
    assert not (tmp_path / "recipe.yaml").exists()


def test_init_asks_the_five_questions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    answers = {
        "task": "chat",
        "data.train": "talks.jsonl",
        "model": "m",
        "method": "instruction",
        "evaluate.baselines": "base, few-shot: 3",
    }
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "stdin", Terminal())
    monkeypatch.setattr(typer, "prompt", lambda key, **_: answers[key])
    assert main.run(["init"]) == 0
    recipe = load("recipe.yaml")
    assert (recipe.task, recipe.model, recipe.method) == ("chat", "m", "instruction")
    assert [(b.kind, b.shots) for b in recipe.evaluate.baselines] == [("base", None), ("few-shot", 3)]


def test_without_recipe_or_flags_the_error_says_what_to_give() -> None:
    with pytest.raises(UsageError, match="no recipe") as caught:
        RecipeChoices().recipe()
    assert "--train" in (caught.value.fix or "")


def test_prediction_rows_are_json_or_plain_text(tmp_path: Path) -> None:
    file = tmp_path / "in.txt"
    file.write_text('\ufeff{"text": "a"}\n\nplain words\n', encoding="utf-8")
    assert list(predicting._rows(file)) == [(1, {"text": "a"}), (3, "plain words")]


def test_prediction_rows_in_another_encoding_are_no_defect(tmp_path: Path) -> None:
    file = tmp_path / "in.txt"
    file.write_bytes("ein schöner Film\n".encode("latin-1"))
    with pytest.raises(DataError, match="utf-8") as caught:
        list(predicting._rows(file))
    assert caught.value.where == str(file)
    assert list(predicting._rows(file, "latin-1")) == [(1, "ein schöner Film")]


def test_what_is_piped_in_another_encoding_names_its_line(monkeypatch: pytest.MonkeyPatch) -> None:
    piped = io.TextIOWrapper(io.BytesIO("fine\nein schöner Film\n".encode("latin-1")), "utf-8", "surrogateescape")
    monkeypatch.setattr(sys, "stdin", piped)
    with pytest.raises(DataError, match="utf-8") as caught:
        list(predicting._rows(None))
    assert caught.value.where == "stdin:2"


def test_sentences_of_a_conll_file_are_rows(tmp_path: Path) -> None:
    file = tmp_path / "in.conll"
    file.write_text("a\tO\nfilm\tO\n\nMadrid\tB-city\n", encoding="utf-8")
    rows = list(predicting._rows(file))
    assert [(line, row["tokens"]) for line, row in rows if isinstance(row, dict)] == [
        (1, ["a", "film"]),
        (4, ["Madrid"]),
    ]


def test_prediction_rows_are_unpacked_as_training_data_are(tmp_path: Path) -> None:
    lines, table = tmp_path / "in.txt.gz", tmp_path / "in.csv.gz"
    lines.write_bytes(gzip.compress(b'{"text": "a"}\nplain words\n'))
    assert list(predicting._rows(lines)) == [(1, {"text": "a"}), (2, "plain words")]
    table.write_bytes(gzip.compress(b'text,label\n"a, b",x\n'))
    assert list(predicting._rows(table)) == [(2, {"text": "a, b", "label": "x"})]


@pytest.mark.parametrize("content", [b"plain words\n", gzip.compress(b"words " * 1000)[:-20]], ids=["plain", "cut"])
def test_a_damaged_gzip_file_is_no_defect(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "in.jsonl.gz"
    file.write_bytes(content)
    with pytest.raises(DataError, match="no whole gzip file") as caught:
        list(predicting._rows(file))
    assert caught.value.where == str(file) and caught.value.fix


def test_a_bad_prediction_row_names_its_line(tmp_path: Path) -> None:
    file = tmp_path / "in.jsonl"
    file.write_text('{"text": "a"}\n{"text": \n', encoding="utf-8")
    with pytest.raises(DataError) as caught:
        list(predicting._rows(file))
    assert caught.value.where == f"{file}:2"


def test_numbers_that_json_lacks_become_null(capsys: pytest.CaptureFixture[str]) -> None:
    from tunesmith.cli.output import print_json

    print_json({"a": [float("nan"), 1.5], "b": {"c": float("inf")}, "d": Path("x")})
    assert json.loads(capsys.readouterr().out) == {"a": [None, 1.5], "b": {"c": None}, "d": "x"}
