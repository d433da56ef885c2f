"""The whole way at a provider, against one that replies as the openai package's types say, and against our own."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

import pytest

import hosted_fake
import serving
from conftest import labelled_rows, write_jsonl
from hosted_fake import KEY, Fault
from tiny import Events
from tunesmith import pipeline, recipe_file
from tunesmith.cli.main import run as cli
from tunesmith.compression.quantize import quantize
from tunesmith.compression.settings import Quantize
from tunesmith.errors import InterruptedRun, TunesmithError, UsageError
from tunesmith.hosted import client as clients
from tunesmith.hosted import compare, jobs, openai_api, table
from tunesmith.hosted.importing import bring_home
from tunesmith.hosted.settings import Hosted
from tunesmith.runs import Run, read_events


@pytest.fixture(scope="module")
def there() -> Iterator[tuple[hosted_fake.Provider, str]]:
    """A provider, its key in the environment, and no waiting."""
    with pytest.MonkeyPatch.context() as patch, hosted_fake.provider() as (state, address):
        patch.setenv("OPENAI_API_KEY", KEY)
        patch.setattr(jobs, "FIRST_WAIT", 0.01)
        patch.setattr(openai_api, "RETRIES", 0)
        yield state, address


def recipe(folder: Path, address: str, **more: Any) -> Any:
    data = write_jsonl(folder / "reviews.jsonl", labelled_rows(120))
    tree: dict[str, Any] = {
        "task": "text-classification",
        "model": "gpt-4.1-mini",
        "method": "hosted",
        "data": {"train": [str(data)], "test": 0.3},
        "hosted": {"base_url": address, "poll_seconds": 0.01, "suffix": "reviews"},
        "evaluate": {"resamples": 100},
    }
    return recipe_file.parse(recipe_file.merged(tree, more))


@pytest.fixture(scope="module")
def finished(there: tuple[hosted_fake.Provider, str], tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("hosted")
    return pipeline.run(recipe(folder, there[1]), run_dir=folder / "run")


def test_a_hosted_run_is_measured_like_a_local_one(there: tuple[hosted_fake.Provider, str], finished: Run) -> None:
    state, _ = there
    summary = finished.summary()
    assert finished.status == "finished" and len(state.jobs) == 1
    assert finished.metrics["accuracy"].value > 0.8 > finished.baselines["base"]["accuracy"].value
    assert set(finished.baselines) == {"base", "few-shot-5", "majority"}
    assert finished.verdict.startswith("Tuning paid off") and finished.report().is_file()
    hosted = summary["hosted"]
    assert hosted["model"] == "ft:gpt-4.1-mini:org::ftjob-0" and hosted["job"] == "ftjob-0"
    assert hosted["training_cost_usd"] == pytest.approx(3000 * 5 / 1e6)  # by the tokens that the provider counted
    tuned, shots = hosted["usage"]["tuned"], hosted["usage"]["few-shot-5"]
    assert tuned["calls"] == 34 and shots["prompt_tokens"] > 3 * tuned["prompt_tokens"]
    by_hand = (
        0.8 * (tuned["prompt_tokens"] - tuned["cached_tokens"])
        + 0.2 * tuned["cached_tokens"]
        + 3.2 * tuned["written_tokens"]
    ) / 34e3
    assert tuned["usd_per_1000_calls"] == pytest.approx(by_hand)
    cost = json.loads((finished.path / "report.json").read_text())["cost"]
    assert set(cost["seconds"]) == {"rest", "evaluate"} and sum(cost["seconds"].values()) == summary["seconds"]
    assert cost["job_seconds"] == summary["tuning_seconds"] >= 60 > summary["seconds"]  # the provider's clock is ahead
    assert "<dt>The provider's job</dt>" in finished.report().read_text(encoding="utf-8")
    steps = [(event["step"], event["loss"]) for event in read_events(finished.path) if event["type"] == "step"]
    assert steps == [(1, 1.0), (2, 0.5)]
    validated = [event for event in read_events(finished.path) if event["type"] == "validated"]
    assert validated[0]["metrics"] == {"loss": 0.5, "token_accuracy": 0.7}  # from the results file, sent in base64
    assert json.loads((finished.path / "checkpoints.json").read_text())[0]["step_number"] == 1
    sent = state.files["file-0"][1].decode().splitlines()
    assert json.loads(sent[0])["messages"][-1]["content"] in ("positive", "negative")


def test_the_key_is_in_no_text(
    there: tuple[hosted_fake.Provider, str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    state, address = there
    caplog.set_level(logging.DEBUG)
    state.faults += [
        Fault("GET", "/files", 500, times=2),  # its message repeats the key
        Fault("GET", r"/fine_tuning/jobs/ftjob-\d+", 400),
    ]
    heard = Events()
    with pytest.raises(TunesmithError) as caught:
        pipeline.run(recipe(tmp_path, address, training={"seed": 7}), run_dir=tmp_path / "run", on_event=heard)
    assert "***" in str(caught.value)  # the place where it was
    chain: list[str] = []
    error: BaseException | None = caught.value
    while error is not None:
        chain += [str(error), repr(error), repr(error.__dict__)]
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    pipeline.resume(tmp_path / "run", on_event=heard)
    files = [path.read_text(errors="replace") for path in tmp_path.rglob("*") if path.is_file()]
    known = table.load()
    settings = Hosted(base_url=address)
    connected = clients.connect(settings, known)
    texts = [*chain, *files, caplog.text, repr(heard), repr(connected.key), repr(connected), str(vars(connected))]
    assert any("***" in text for text in files)
    assert not [text for text in texts if KEY in text]


def test_compare_says_when_tuning_pays(finished: Run) -> None:
    found = compare.compare(finished, [], table.load(), calls_a_month=1_000_000, today=date(2026, 11, 27))
    tuned, base, shots = found.ways
    assert (tuned.tuned, base.tuned, shots.name) == (True, False, "openai few-shot-5")
    assert found.tokens_saved_a_call == shots.prompt_tokens - tuned.prompt_tokens > 0  # type: ignore[operator]
    point = found.break_even[0]
    assert tuned.usd_per_1000_calls is not None and shots.usd_per_1000_calls is not None
    saved = (shots.usd_per_1000_calls - tuned.usd_per_1000_calls) / 1000
    if saved > 0:
        assert point.calls == pytest.approx(0.015 / saved)
    else:
        assert point.calls is None and point.verdict.startswith("never")
    picture = (finished.path / "cost.svg").read_text()
    assert picture.startswith("<svg") and "var(--" not in picture and tuned.name in picture
    assert json.loads((finished.path / "compare.json").read_text())["ways"][0]["name"] == tuned.name


@pytest.fixture(scope="module")
def here(finished: Run, tiny_encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run of this machine, measured on the rows of the hosted one."""
    given = finished.recipe
    local = {
        "task": given.task,
        "model": str(tiny_encoder),
        "method": "full",
        "data": {"train": given.data.train, "test": given.data.test},
        "training": {"epochs": 1, "compile": "off"},
        "evaluate": {"resamples": 100, "baselines": []},
    }
    return pipeline.run(recipe_file.parse(local), run_dir=tmp_path_factory.mktemp("local") / "here")


def test_compare_puts_a_local_run_beside_it(finished: Run, here: Run) -> None:
    found = compare.compare(finished, [here], table.load(), usd_per_hour=3.6)
    way = found.ways[-1]
    assert (way.name, way.kind, way.tuned) == ("here", "local", True)
    assert way.latency is not None and way.usd_per_1000_calls == pytest.approx(way.latency)  # 0.001 dollars a second
    assert way.fixed_usd == pytest.approx(here.summary()["tuning_seconds"] / 1000)
    assert way.quality == here.metrics["accuracy"].as_dict() and way.prompt_tokens
    assert way.latency_of == "mean over batches" and "single calls" in found.ways[0].latency_of
    assert any("not alike" in note for note in found.notes)
    assert any("gpt-4.1-mini were last seen on 2025-12-31" in note for note in found.notes)
    assert found.quality is not None and len(found.quality["runs"]) == 2
    assert [point.way for point in found.break_even] == [finished.summary()["hosted"]["model"], "here"]
    assert found.break_even[1].days_left is None  # nobody shuts this machine down
    unknown = compare.compare(finished, [here], table.load())
    assert unknown.ways[-1].usd_per_1000_calls is None and any("this machine" in note for note in unknown.notes)


def test_compare_puts_a_quantized_run_beside_it(
    finished: Run, here: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = quantize(here, Quantize(to="int8", rows=8), target=tmp_path / "small")
    report = json.loads((small.path / "report.json").read_text())
    assert report["systems"][0]["name"] == "tuned" and report["systems"][0]["written_tokens_per_row"] is None
    report["systems"][0]["written_tokens_per_row"] = 3.5  # as of a model that writes
    (small.path / "report.json").write_text(json.dumps(report))
    found = compare.compare(finished, [here, small], table.load(), usd_per_hour=3.6)
    whole, narrow = found.ways[-2:]
    assert (narrow.name, narrow.kind, narrow.tuned) == ("small", "local", True)
    assert narrow.quality == small.metrics["accuracy"].as_dict() and narrow.latency and narrow.usd_per_1000_calls
    assert (whole.written_tokens, narrow.written_tokens) == (None, 3.5)
    assert found.quality is not None and len(found.quality["runs"]) == 3
    assert "small" in [point.way for point in found.break_even]
    assert cli(["hosted", "compare", str(finished.path), str(small.path)]) == 0
    shown = capsys.readouterr().out
    assert "mean over batches" in " ".join(shown.split()) and "not alike" in shown
    with pytest.raises(UsageError, match="must have `method: hosted`") as caught:
        compare.compare(here, [finished], table.load())
    assert "`tunesmith compare`" in str(caught.value.fix)


def copied(run: Run, folder: Path, provider: str, model: str, **facts: Any) -> Run:
    """The same run as if another provider had made it of another model."""
    shutil.copytree(run.path, folder)
    tree = run.recipe.model_dump(mode="json", exclude_unset=True)
    tree |= {"model": model, "hosted": {**tree["hosted"], "provider": provider}}
    (folder / "recipe.yaml").write_text(recipe_file.parse(tree).to_yaml())
    summary = json.loads((folder / "summary.json").read_text())
    hosted = summary["hosted"] | {"provider": provider, "model": f"{model}-tuned"} | facts
    hosted["usage"]["tuned"]["model"] = f"{model}-tuned"
    for name in set(hosted["usage"]) - {"tuned"}:
        hosted["usage"][name]["model"] = model
    (folder / "summary.json").write_text(json.dumps(summary | {"hosted": hosted}))
    return Run(folder)


def test_each_provider_shuts_down_its_own_models_alone(finished: Run, tmp_path: Path) -> None:
    lasting = copied(finished, tmp_path / "nebius", "nebius", "llama-8b", shutdown=None)
    ended, soon = date(2027, 2, 1), date(2027, 1, 1)
    for first, second in ((finished, lasting), (lasting, finished)):
        found = compare.compare(first, [second], table.load(), calls_a_month=1000, today=ended)
        days = {way.name: way.shutdown for way in found.ways if way.tuned}
        assert days == {"ft:gpt-4.1-mini:org::ftjob-0": date(2027, 1, 14), "llama-8b-tuned": None}
        verdicts = {point.way: point.verdict for point in found.break_even}
        assert "was shut down on 2027-01-14" in verdicts["ft:gpt-4.1-mini:org::ftjob-0"]
        assert "shut down" not in verdicts.get("llama-8b-tuned", "")
    stored = json.loads((lasting.path / "compare.json").read_text())["ways"]
    assert {way["shutdown"] for way in stored} == {"2027-01-14", None}
    assert found.as_dict()["ways"][0]["shutdown"] is None
    for first, marked in ((lasting, False), (finished, True)):
        made = compare.compare(first, [], table.load(), calls_a_month=1000, today=soon)
        assert made.picture is not None and (">shut down<" in made.picture.read_text()) is marked


def test_a_break_even_is_capped_by_the_day_that_the_provider_itself_gives(finished: Run, tmp_path: Path) -> None:
    assert finished.summary()["hosted"]["shutdown"] == "2027-01-14"
    assert jobs.read_state(finished.path)["shutdown"] == "2027-01-14"
    for told, capped in (("2026-12-01", date(2026, 12, 1)), ("2027-12-01", date(2027, 1, 14))):
        other = copied(finished, tmp_path / told, "openai", "gpt-4.1-mini", shutdown=told)
        found = compare.compare(other, [], table.load(), today=date(2026, 11, 27))
        assert found.ways[0].shutdown == capped
        assert found.break_even[0].days_left == (capped - date(2026, 11, 27)).days


def test_a_model_that_the_provider_has_shut_down_is_not_asked_for(
    there: tuple[hosted_fake.Provider, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state, address = there
    monkeypatch.setattr(state, "shutdown", "2026-01-01")
    made, sent = len(state.jobs), len(state.files)
    with pytest.raises(UsageError, match="was shut down on 2026-01-01") as caught:
        pipeline.run(recipe(tmp_path, address, training={"seed": 11}), run_dir=tmp_path / "run")
    assert "gpt-4.1," in str(caught.value.fix) and "gpt-4.1-mini" not in str(caught.value.fix)
    assert (len(state.jobs), len(state.files)) == (made, sent)


@pytest.mark.parametrize("why", ["closed", "no key", "unknown"])
def test_what_is_in_vain_reads_no_data_and_leaves_no_folder(
    there: tuple[hosted_fake.Provider, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    from tunesmith.data import prepare

    monkeypatch.setattr(prepare, "prepare", None)
    monkeypatch.setattr(pipeline, "prepare", None)  # whoever reads data fails otherwise
    model = {"closed": "gpt-4.1-nano", "no key": "gpt-4.1-mini", "unknown": "gpt-4.1-mimi"}[why]
    if why == "no key":
        monkeypatch.delenv("OPENAI_API_KEY")
    wanted = {"closed": "was shut down on", "no key": "no key for OpenAI", "unknown": "no model 'gpt-4.1-mimi'"}[why]
    with pytest.raises(TunesmithError, match=wanted):
        pipeline.run(recipe(tmp_path, there[1], model=model), run_dir=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("fault", "far", "resumable"),
    [
        (Fault("GET", "/files", "drop", times=99), "no job was made, so nothing is charged", True),
        (Fault("GET", "/fine_tuning/jobs", 500, times=99), "nothing is charged; training_file and validation", True),
        (Fault("POST", "/fine_tuning/jobs", 500, times=99), "whether the job was made is not known", True),
        (Fault("POST", "/files", 401), "no job was made", True),
        (Fault("POST", "/fine_tuning/jobs", 400), "no job was made, so nothing is charged; training_file", False),
        (
            Fault("GET", "/fine_tuning/jobs/[^/]*/checkpoints", "drop", times=99),
            "is made: going on makes no other",
            True,
        ),
    ],
)
def test_an_error_says_how_far_the_job_is_and_how_to_go_on(
    there: tuple[hosted_fake.Provider, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fault: Fault,
    far: str,
    resumable: bool,
) -> None:
    state, address = there
    monkeypatch.setattr(jobs, "LOOKS", (0.01,))
    monkeypatch.setattr(jobs, "LONGEST_WAIT", 0.01)
    monkeypatch.setattr(state, "faults", [fault])
    asked = recipe(tmp_path, address, hosted={"suffix": tmp_path.name[-20:]})
    with pytest.raises(clients.ProviderError) as caught:
        pipeline.run(asked, run_dir=tmp_path / "run")
    assert far in caught.value.what
    assert (f"`tunesmith resume {tmp_path / 'run'}`" in str(caught.value.fix)) is resumable
    failed = [event for event in read_events(tmp_path / "run") if event["type"] == "run_failed"]
    assert failed[0]["error"]["fix"] == caught.value.fix


def test_stopping_before_the_job_is_made_says_so(
    there: tuple[hosted_fake.Provider, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(seconds: float) -> None:
        raise KeyboardInterrupt

    state, address = there
    monkeypatch.setattr(state, "faults", [Fault("GET", "/files", "drop", times=99)])
    with monkeypatch.context() as patch:
        patch.setattr(jobs.time, "sleep", interrupt)  # while it waits to ask again
        with pytest.raises(InterruptedRun, match="stopped: no job was made, so nothing is charged") as caught:
            pipeline.run(recipe(tmp_path, address, training={"seed": 31}), run_dir=tmp_path / "run")
    assert caught.value.fix == f"tunesmith resume {tmp_path / 'run'}"
    state.faults = []
    assert pipeline.resume(tmp_path / "run").status == "finished"


@pytest.mark.parametrize("known", [True, False])
def test_a_job_that_was_made_in_time_is_followed_after_the_closing_day(
    there: tuple[hosted_fake.Provider, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, known: bool
) -> None:
    def stopped(*args: Any, **more: Any) -> None:
        raise InterruptedRun("stopped")

    asked = recipe(tmp_path, there[1], training={"seed": 12 + known})
    with monkeypatch.context() as patch, pytest.raises(InterruptedRun):
        patch.setattr(jobs, "follow", stopped)
        pipeline.run(asked, run_dir=tmp_path / "run")
    if not known:  # killed before it could write down what was made
        state = jobs.read_state(tmp_path / "run") | {"job": None}
        (tmp_path / "run" / jobs.STATE).write_text(json.dumps(state))
    own = tmp_path / "own.yaml"
    own.write_text("providers: {openai: {jobs_until: 2026-01-01}}\n")
    monkeypatch.setenv(table.OVERRIDE, str(own))
    assert pipeline.resume(tmp_path / "run").status == "finished"


def test_a_job_comes_home_with_the_old_models_answers(
    there: tuple[hosted_fake.Provider, str], tmp_path: Path, finished: Run
) -> None:
    client = clients.connect(Hosted(base_url=there[1]), table.load())
    made, facts = bring_home(client, "ftjob-0", "smollm2-135m-instruct", tmp_path / "home", Events(), ask=5)
    assert facts["training_rows"] == 78 and facts["old_answers"] == 5 and facts["validation_rows"] == 8
    read = recipe_file.load(tmp_path / "home" / "recipe.yaml")
    assert read == made and read.training.epochs == 3 and read.training.batch_size == 1
    assert read.data.test == [str(tmp_path / "home" / "old_answers.jsonl")]
    first = json.loads((tmp_path / "home" / "old_answers.jsonl").read_text().splitlines()[0])
    assert first["messages"][-1]["content"] in ("positive", "negative")
    with pytest.raises(UsageError, match="already"):
        bring_home(client, "ftjob-0", "smollm2-135m-instruct", tmp_path / "home", Events())


def test_a_job_comes_home_with_the_answers_that_were_stored(
    there: tuple[hosted_fake.Provider, str], finished: Run, tmp_path: Path
) -> None:
    """Answers of real use, kept by the provider, become the test rows, and a run says how near it comes to them."""
    state, address = there
    old = finished.summary()["hosted"]["model"]
    for n in range(12):
        text = f"a {'fine' if n % 2 else 'dull'} evening in row {n}"
        state.store(old, [{"role": "system", "content": "Judge."}, {"role": "user", "content": text}])
    state.store("gpt-4.1-mini", [{"role": "user", "content": "another model's"}])
    client = clients.connect(Hosted(base_url=address), table.load())
    made, facts = bring_home(client, "ftjob-0", "smollm2-135m-instruct", tmp_path / "home", Events(), stored=10)
    assert facts["old_answers"] == 10 and made.data.test == [str(tmp_path / "home" / "old_answers.jsonl")]
    lines = [json.loads(line)["messages"] for line in (tmp_path / "home" / "old_answers.jsonl").open()]
    assert [turn["role"] for turn in lines[0]] == ["system", "user", "assistant"]
    known = {made.id: (made.choices[0].message.content, asked[-1]["content"]) for made, asked in state.stored.values()}
    assert [(turns[-1]["content"], turns[-2]["content"]) for turns in lines] == list(known.values())[:10]
    assert recipe_file.load(tmp_path / "home" / "recipe.yaml") == made


def test_the_new_model_is_compared_on_the_stored_answers(
    there: tuple[hosted_fake.Provider, str], finished: Run, tiny_decoder: Path, tmp_path: Path
) -> None:
    state, address = there
    old = finished.summary()["hosted"]["model"]
    for n in range(4):
        state.store(old, [{"role": "user", "content": f"a dull evening, number {n}"}])
    client = clients.connect(Hosted(base_url=address), table.load())
    home = tmp_path / "home"
    bring_home(client, "ftjob-0", str(tiny_decoder), home, Events(), stored=4)
    short = ["training.max_steps=1", "training.compile=off", "evaluate.resamples=100", "evaluate.baselines=[base]"]
    read = recipe_file.load(home / "recipe.yaml", overrides=[*short, "evaluate.generation.max_new_tokens=4"])
    run = pipeline.run(read, run_dir=tmp_path / "run")
    assert set(run.metrics) >= {"chrf", "exact_match"} and set(run.baselines) == {"base"}
    answers = [json.loads(line) for line in (run.path / "predictions.jsonl").open()]
    assert len(answers) == 4 and {answer["reference"] for answer in answers} <= {"positive", "negative"}


def test_a_job_of_preferences_is_measured_by_what_it_writes(
    there: tuple[hosted_fake.Provider, str], tmp_path: Path
) -> None:
    pairs = [
        {
            "prompt": row["text"],
            "chosen": row["label"],
            "rejected": "negative" if row["label"] == "positive" else "positive",
        }
        for row in labelled_rows(120)
    ]
    data = {"train": [str(write_jsonl(tmp_path / "pairs.jsonl", pairs))]}
    heard = Events()
    asked = recipe(tmp_path, there[1], task="preference", data=data)
    run = pipeline.run(asked, run_dir=tmp_path / "run", on_event=heard)
    assert there[0].jobs[run.summary()["hosted"]["job"]].method.type == "dpo"  # type: ignore[union-attr]
    tuned, base = run.metrics["exact_match"], run.baselines["base"]["exact_match"]
    answers = [json.loads(line) for line in (run.path / "predictions.jsonl").open()]
    right = [answer["answer"] == answer["reference"] for answer in answers]
    assert tuned.value == pytest.approx(sum(right) / 34) and tuned.low < tuned.value < tuned.high
    assert tuned.value > base.value + 0.2
    assert "few-shot-5" in run.baselines and run.report().is_file() and "Not measured" not in run.verdict
    assert any("preferred answers" in str(getattr(event, "message", "")) for event in heard)


def test_a_job_of_reinforcement_is_measured_by_its_grader(
    there: tuple[hosted_fake.Provider, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one model that learned from graders was shut down in October 2026."""
    monkeypatch.setattr("tunesmith.hosted.clock.today", lambda: date(2026, 9, 1))
    rows = [
        {"messages": [{"role": "user", "content": row["text"]}], "wanted": row["label"]} for row in labelled_rows(120)
    ]
    data = {"train": [str(write_jsonl(tmp_path / "prompts.jsonl", rows))]}
    grader = {
        "type": "string_check",
        "name": "label",
        "input": "{{sample.output_text}}",
        "reference": "{{item.wanted}}",
        "operation": "eq",
    }
    asked = recipe(tmp_path, there[1], model="o4-mini", task="prompts", data=data, hosted={"grader": grader})
    run = pipeline.run(asked, run_dir=tmp_path / "run")
    tuned, base = run.metrics["reward"], run.baselines["base"]["reward"]
    wanted = {row["messages"][0]["content"]: row["wanted"] for row in rows}
    answers = [json.loads(line) for line in (run.path / "predictions.jsonl").open()]
    right = [wanted[answer["input"]] == answer["answer"] for answer in answers]
    assert tuned.value == pytest.approx(sum(right) / 34) and tuned.low < tuned.value < tuned.high
    assert tuned.value > base.value + 0.2
    assert run.report().is_file() and "reward" in run.report().read_text().lower()

    model_asked = {"type": "score_model", "name": "x", "model": "gpt-4.1", "range": [0, 1]}
    model_asked["input"] = [{"role": "user", "content": "{{sample.output_text}}"}]
    other = recipe(tmp_path, there[1], model="o4-mini", task="prompts", data=data, hosted={"grader": model_asked})
    unmeasured = pipeline.run(other, run_dir=tmp_path / "other")
    assert (
        unmeasured.verdict.startswith("Not measured: ") and "gpt-4.1" in unmeasured.verdict
    )  # no model of this machine


# --- the same with our own server -------------------------------------------------------------------------------------


def test_the_whole_way_with_ones_own_server(
    tiny_decoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TUNESMITH_TOKEN", raising=False)
    data = tmp_path / "chat.jsonl"
    data.write_bytes(serving.jsonl(serving.chat_rows(40)))
    tree = {
        "task": "chat",
        "model": "gpt-tiny",
        "method": "hosted",
        "data": {"train": [str(data)], "validation": 0.0, "test": 0.2},
        "evaluate": {"resamples": 100, "baselines": ["base"], "generation": {"max_new_tokens": 4}},
    }
    with serving.server(tmp_path / "server", tiny_decoder, min_examples=10) as address:
        hosted = {"provider": "tunesmith", "base_url": f"{address}/v1", "poll_seconds": 0.1, "epochs": 1}
        heard = Events()
        run = pipeline.run(recipe_file.parse(tree | {"hosted": hosted}), run_dir=tmp_path / "run", on_event=heard)
        client = clients.connect(Hosted(**hosted), table.load())
        assert [job.status for job in client.jobs(10)] == ["succeeded"]
        files = {"training_file": run.path / "sent" / "training_file.jsonl"}
        settings = recipe_file.load(run.path / "recipe.yaml").hosted
        assert settings is not None
        (tmp_path / "again").mkdir()
        again = jobs.Intent.begin(tmp_path / "again", client, "gpt-tiny", "supervised", settings, 0, files)
        jobs.make(again, client, settings, 0, files, heard)
        assert len(client.jobs(10)) == 1  # the same intent: the same job
        _, facts = bring_home(client, client.jobs(1)[0].id, "smollm2-135m-instruct", tmp_path / "home", heard)
    summary = run.summary()
    assert summary["hosted"]["training_cost_usd"] == 0.0 and summary["hosted"]["model"].startswith("ft:gpt-tiny:local")
    assert summary["hosted"]["trained_tokens"] > 0 and summary["hosted"]["usage"]["tuned"]["written_tokens"] > 0
    assert set(run.metrics) >= {"exact_match", "chrf"} and set(run.baselines) == {"base"}
    assert again.state["job"] == summary["hosted"]["job"]
    steps = [event for event in read_events(run.path) if event["type"] == "step"]
    assert steps and all(event["loss"] > 0 for event in steps)
    assert (run.path / "results.csv").read_text().startswith("step,train_loss")
    assert 25 < facts["training_rows"] < 40
